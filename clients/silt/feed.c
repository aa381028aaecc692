/* feed: files, a pipe, a turn of talk, or files that grow, into a stream. */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/silt/source.h"
#include "clients/silt/stamp.h"

static const char help[] =
    "silt feed STREAM [FILE…] [options]\n"
    "\n"
    "Appends text to a stream, which is created with the defaults when it is new. Without FILE,\n"
    "what comes on stdin, as it comes. What siltd has acked is on its disk; a FILE that is fed\n"
    "again goes on after its last acked byte, so an interrupted feed is simply run again.\n"
    "\n"
    "  silt feed book chapter1.txt chapter2.txt     one after the other\n"
    "  silt feed log --follow /var/log/syslog       for ever, over rotation and truncation\n"
    "  silt feed web --follow '/var/log/nginx/*.log'         a pattern: new files join in\n"
    "  silt feed app-% --follow '/var/log/app/*.log'         a stream for each file\n"
    "  journalctl -f -o short-iso | silt feed journal        a pipe\n"
    "  kubectl logs -f --timestamps deploy/web | silt feed web\n"
    "  silt feed talk meeting.vtt --format vtt      \"[0:01:23] Ann: text\" from captions\n"
    "  echo \"Be brief.\" | silt feed chat --turn system      one turn of a talk\n"
    "  silt feed book chapter1.txt --wait && silt ask book \"Who is the butler?\"\n"
    "\n"
    "STREAM may hold one %, which stands for a FILE's name. A FILE may be a quoted pattern of\n"
    "* ? [ ]; with --follow it is matched again every second. Where STREAM holds %, let it match\n"
    "names that stay ('*.log', not '*.log*').\n"
    "\n"
    "  -f, --follow       keep reading as the files grow; several in one stream are cut at line "
    "ends\n"
    "  --format FORMAT    plain (as it is), transcript (lines of time and speaker), vtt or srt:\n"
    "                     the last three become lines \"[H:MM:SS] Speaker: text\"\n"
    "  --start TIME       wall clock at which a recording began: 2026-05-31T09:30:00+02:00\n"
    "  --wait             return when all of it is computed, not only acked\n"
    "  --turn ROLE        the input is one turn: system, user, assistant or tool\n"
    "  --producer NAME    the name stdin is numbered under (a fresh one)\n"
    "  --dmc RATIO, --ring N   for a stream that is new, as silt open\n"
    "  --patience SECONDS  how long to wait for a siltd that is away (files 60; a pipe and\n"
    "                     --follow, once it was there, for ever, and for a full disk to get room)\n"
    "  -q, --quiet        no progress, no summary\n"
    "\n"
    "Times stay in the text, and a time that begins a line (RFC 3339, syslog, httpd, seconds) is\n"
    "kept as the text's wall clock, which `silt ask` names with its sources.\n"
    "\n"
    "--follow looks five times a second. A file that is renamed is read to its end, two seconds\n"
    "after it last grew, then the new one under its name. So a name must stay with a file for half "
    "a\n"
    "second, and while siltd is away up to 16 files may take turns in one name. A feed that is\n"
    "started again first reads on in what was rotated meanwhile, FILE.1 to FILE.8 or\n"
    "FILE-20260531 of the last eight days, from the first that it knows; packed ones it cannot\n"
    "(delaycompress). A file that is emptied (copytruncate) starts anew; what was written between\n"
    "the last look and the emptying is lost, so let logrotate rename where it can.\n"
    "\n"
    "A FILE or stdin ends with a mark: its last word is complete. --follow never marks. Ctrl-C\n"
    "stops cleanly and says how far siltd has acked.\n";

enum {
    WAIT_MS = 200,
    SETTLE_MS = 1000,
    DRAIN_MS = 20000,
    BLOCK_TOKENS = 32, /* siltd computes in blocks: fewer wait for more text */
    PATIENCE_S = 60,
    BUSY_SAY_US = 3000000, /* siltd was busy for so long: why is said */
};

struct feed {
    struct silt *silt;
    struct intake intake;
    const char *producer, *turn;
    bool wait, quiet;
    int patience_ms; /* 0: by what is fed */
    struct progress progress;
    uint64_t bytes; /* sent by this run */
    unsigned files;
    int64_t busy_us; /* since when siltd is busy; 0: it is not */
    bool busy_said;
};

static const struct option longs[] = {{"follow", no_argument, NULL, 'f'},
                                      {"format", required_argument, NULL, 'F'},
                                      {"start", required_argument, NULL, 's'},
                                      {"wait", no_argument, NULL, 'w'},
                                      {"quiet", no_argument, NULL, 'q'},
                                      {"turn", required_argument, NULL, 't'},
                                      {"producer", required_argument, NULL, 'p'},
                                      {"dmc", required_argument, NULL, 'd'},
                                      {"ring", required_argument, NULL, 'r'},
                                      {"patience", required_argument, NULL, 'P'},
                                      SILT_OPTIONS};

static int format_option(struct feed *feed, const char *name)
{
    for (int i = 0; i < FORMAT_COUNT; i++)
        if (!strcmp(name, convert_names[i])) {
            feed->intake.format = (enum convert_format)i;
            return 0;
        }
    return silt_usage(feed->silt, "--format is plain, transcript, vtt or srt, not \"%s\"", name);
}

static int start_option(struct feed *feed, const char *time)
{
    if (stamp_read(time, strlen(time), &feed->intake.start_us))
        return 0;
    return silt_usage(feed->silt,
                      "--start takes a time such as 2026-05-31T09:30:00+02:00 that is not ahead, "
                      "not \"%s\"",
                      time);
}

static int turn_option(struct feed *feed, const char *role)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};

    feed->turn = role;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (!strcmp(role, roles[i]))
            return 0;
    return silt_usage(feed->silt, "--turn is system, user, assistant or tool, not \"%s\"", role);
}

static int feed_option(struct silt *silt, struct feed *feed, int option)
{
    uint64_t number = 0;
    int r = 0;

    switch (option) {
    case 'f':
        feed->intake.growing = true;
        break;
    case 'w':
        feed->wait = true;
        break;
    case 'q':
        feed->quiet = true;
        break;
    case 't':
        r = turn_option(feed, optarg);
        break;
    case 'F':
        r = format_option(feed, optarg);
        break;
    case 's':
        r = start_option(feed, optarg);
        break;
    case 'p':
        feed->producer = optarg;
        break;
    case 'd':
        feed->intake.open.dmc_auto = !strcmp(optarg, "auto");
        if (!feed->intake.open.dmc_auto)
            r = silt_number(silt, "--dmc", optarg, 1, 8, &number);
        feed->intake.open.dmc_ratio = (uint32_t)number;
        break;
    case 'r':
        r = silt_number(silt, "--ring", optarg, 1, 256, &number);
        feed->intake.open.ring_segments = (uint32_t)number;
        break;
    case 'P':
        r = silt_number(silt, "--patience", optarg, 0, 1000000, &number);
        feed->patience_ms = (int)number * 1000 + 1;
        break;
    default:
        r = silt_option(silt, &command_feed, option);
        return r >= 0 ? r : -1;
    }
    return r ? r : -1;
}

void feed_draw(struct progress *progress, const struct producer *producer)
{
    struct producer_status status;

    producer_status(producer, &status);
    if (status.tokens_acked) {
        progress->tokens_acked = status.tokens_acked;
        progress->tokens_computed = status.tokens_computed;
    }
    progress->bytes_done = status.bytes_acked;
    progress_draw(progress);
}

int feed_settle(struct silt *silt, struct producer *producer)
{
    int r = producer_drain(producer, SETTLE_MS, &silt->error);

    if (r == -ETIMEDOUT) {
        silt_say("stopping: siltd has yet to ack what is on its way; Ctrl-C again leaves that to "
                 "the next feed");
        r = producer_drain(producer, DRAIN_MS, &silt->error);
    }
    return r ? silt_fail(silt) : EXIT_STOPPED;
}

int feed_stop(struct silt *silt, struct progress *progress, struct producer *producer,
              const char *path)
{
    struct producer_status status;
    int r;

    progress_clear(progress);
    silt_stop = false;
    r = feed_settle(silt, producer);
    producer_status(producer, &status);
    if (path)
        silt_say("stopped: %s is acked up to byte %" PRIu64 "; the same command goes on from there",
                 path, status.bytes_acked);
    else
        silt_say("stopped: %" PRIu64 " bytes of stdin are acked", status.bytes_acked);
    return r;
}

int feed_fail(struct silt *silt, struct progress *progress, struct producer *producer,
              const char *path)
{
    struct producer_status status;
    int r;

    if (silt_stop)
        return feed_stop(silt, progress, producer, path);
    progress_clear(progress);
    r = silt_fail(silt);
    producer_status(producer, &status);
    if (path && status.bytes_acked)
        silt_say("%s is acked up to byte %" PRIu64 "; the same command goes on from there", path,
                 status.bytes_acked);
    else if (!path && status.sequence_sent)
        silt_say("%" PRIu64 " bytes of stdin are acked", status.bytes_acked);
    return r;
}

int feed_drain(struct silt *silt, struct progress *progress, struct producer *producer,
               const char *path)
{
    struct producer_status status;

    for (;;) {
        producer_status(producer, &status);
        if (!status.held_count)
            return 0;
        feed_draw(progress, producer);
        if (producer_work(producer, WAIT_MS, &silt->error))
            return feed_fail(silt, progress, producer, path);
    }
}

/* Sends a file to its end: 0 or -errno with silt->error. */
static int file_send(struct feed *feed, struct source *source)
{
    while (source_left(source) && !silt_stop) {
        int r = source_send(source, true);

        if (r == 0 && producer_room(source->producer) && source_left(source)) {
            silt_say("%s became shorter while it was read: stopped at byte %" PRIu64, source->path,
                     source->offset);
            return 0;
        }
        if (r == 0)
            r = producer_work(source->producer, WAIT_MS, &feed->silt->error);
        if (r < 0)
            return r;
        feed_draw(&feed->progress, source->producer);
    }
    return 0;
}

/* siltd is busy, as a rule for a moment: a stream comes to its place. False: we are stopped. */
static bool wait_busy(struct feed *feed)
{
    int64_t now_us = silt_now_us();

    if (!feed->busy_us)
        feed->busy_us = now_us;
    if (!feed->busy_said && now_us - feed->busy_us > BUSY_SAY_US) {
        progress_clear(&feed->progress);
        silt_say("waiting: %s", feed->silt->error.text);
        feed->busy_said = true;
    }
    return client_poll(feed->silt->client, -1, WAIT_MS) >= 0;
}

static int feed_file(struct feed *feed, const char *path)
{
    struct silt *silt = feed->silt;
    struct source source;
    struct producer_status before, after;
    int r, fd = source_file(path, feed->intake.stream);

    if (fd < 0)
        return -fd - 1;
    while ((r = source_open(&source, &feed->intake, path, fd)) == -EBUSY && wait_busy(feed))
        ;
    feed->busy_us = 0;
    if (r == -EBUSY) {
        close(fd);
        r = EXIT_STOPPED;
    }
    if (r == EXIT_STOPPED) {
        progress_clear(&feed->progress);
        silt_say("stopped before %s; the same command goes on there", path);
        return r;
    }
    if (r == -ENODATA) {
        close(fd);
        silt_say("%s is empty", path);
        return EXIT_DONE;
    }
    if (r)
        return r;
    producer_status(source.producer, &before);
    feed->progress.what = path;
    feed->progress.bytes_all = source.convert ? 0 : source.size;
    feed->progress.stream = source.stream;
    if (!feed->quiet && before.bytes_acked && !source.convert && source.offset == source.size)
        silt_say("%s: nothing new, all %" PRIu64 " bytes were acked before", path, source.size);
    else if (!feed->quiet && before.bytes_acked)
        silt_say("%s: goes on after byte %" PRIu64, path, before.bytes_acked);
    r = file_send(feed, &source);
    r = r < 0 || silt_stop ? feed_fail(silt, &feed->progress, source.producer, path)
                           : feed_drain(silt, &feed->progress, source.producer, path);
    producer_status(source.producer, &after);
    feed->bytes += after.bytes_acked - before.bytes_acked;
    feed->files++;
    if (!r && source.convert && !after.bytes_acked) {
        progress_clear(&feed->progress);
        silt_say("%s has nothing that is %s: is --format right?", path,
                 convert_names[feed->intake.format]);
        r = EXIT_REFUSED;
    }
    source_close(&source);
    return r;
}

static int path_match(const char *path, glob_t *found)
{
    if (!glob(path, 0, NULL, found) && found->gl_pathc)
        return 0;
    silt_say("no file matches %s: --follow waits for one", path);
    return EXIT_REFUSED;
}

/* A path, or the files that a pattern matches, in order of name. */
static int feed_path(struct feed *feed, const char *path)
{
    glob_t found = {0};
    int r = EXIT_DONE;

    if (!path_is_pattern(path))
        return feed_file(feed, path);
    r = path_match(path, &found);
    for (size_t i = 0; i < found.gl_pathc && !r; i++)
        if (path_is_file(found.gl_pathv[i]))
            r = feed_file(feed, found.gl_pathv[i]);
    globfree(&found);
    return r;
}

/* Until siltd has computed what it had acked, but for the start of a block. */
static int feed_wait(struct feed *feed)
{
    struct client_stream_stat stat;
    uint64_t goal = 0;

    for (;;) {
        uint64_t computed;
        bool stopped;

        if (client_stat(feed->silt->client, feed->intake.stream, &stat, &feed->silt->error))
            return silt_fail(feed->silt);
        if (!goal || stat.tokens_acked < goal) /* some may be forgotten meanwhile */
            goal = stat.tokens_acked;
        stopped = stat.stopped;
        computed = stat.tokens_computed;
        feed->progress.tokens_acked = stat.tokens_acked;
        feed->progress.tokens_computed = computed;
        client_stat_free(&stat);
        if (computed + BLOCK_TOKENS > goal)
            return EXIT_DONE;
        if (stopped) {
            progress_clear(&feed->progress);
            silt_say("all is acked, but stream %s is not computed: see siltd's log, restart siltd",
                     feed->intake.stream);
            return EXIT_REFUSED;
        }
        progress_draw(&feed->progress);
        if (client_poll(feed->silt->client, -1, WAIT_MS) == -EINTR) {
            progress_clear(&feed->progress);
            silt_say("stopped: all is acked, %" PRIu64 " tokens are not computed yet",
                     goal - computed);
            return EXIT_STOPPED;
        }
    }
}

static void feed_summary(struct feed *feed)
{
    struct client_stream_stat stat;
    char bytes[TEXT_BYTES], tokens[TEXT_BYTES], lag[TEXT_BYTES], used[TEXT_BYTES], plan[TEXT_BYTES];

    if (feed->quiet)
        return;
    if (feed->intake.each) {
        silt_say("%s of %u files acked, each in the stream of its name: silt ls lists them",
                 text_bytes(bytes, feed->bytes), feed->files);
        return;
    }
    if (client_stat(feed->silt->client, feed->intake.stream, &stat, NULL))
        return;
    silt_say("%s acked; stream %s holds %s tokens (%s not computed yet) in %s of %s",
             text_bytes(bytes, feed->bytes), feed->intake.stream,
             text_count(tokens, stat.tokens_acked), text_count(lag, stat.lag_tokens),
             text_bytes(used, stat.bytes_used), text_bytes(plan, stat.bytes_plan));
    client_stat_free(&stat);
}

static int feed_run(struct feed *feed, char **paths, int path_count)
{
    struct intake *intake = &feed->intake;
    struct pipe pipe = {.intake = intake,
                        .producer_id = feed->producer,
                        .turn = feed->turn,
                        .progress = &feed->progress};
    int r;

    do
        r = intake->each ? 0 : intake_open(intake, intake->stream);
    while (r == -EBUSY && wait_busy(feed));
    feed->busy_us = 0;
    if (r)
        return r == -EBUSY ? EXIT_STOPPED : r;
    feed->progress.client = feed->silt->client;
    feed->progress.stream = intake->stream;
    feed->progress.on = !feed->quiet && isatty(STDERR_FILENO);
    if (intake->growing)
        return follow_run(intake, paths, path_count, feed->quiet);
    if (!path_count) {
        r = pipe_feed(&pipe);
        feed->bytes = pipe.bytes;
    }
    for (int i = 0; i < path_count && !r; i++)
        r = feed_path(feed, paths[i]);
    if (!r && feed->wait)
        r = feed_wait(feed);
    progress_clear(&feed->progress);
    if (!r)
        feed_summary(feed);
    return r;
}

/* Before anything is fed or created: 0 or the exit code after saying why a path cannot be. */
static int path_check(const struct feed *feed, const char *path)
{
    glob_t found = {0};
    int fd, r;

    if (path_is_pattern(path)) {
        r = path_match(path, &found);
        globfree(&found);
        return r;
    }
    fd = source_file(path, feed->intake.stream);
    if (fd < 0)
        return -fd - 1;
    close(fd);
    return 0;
}

/* What cannot go together: 0 or the exit code after saying so. */
static int feed_check(const struct feed *feed, int path_count)
{
    const struct intake *intake = &feed->intake;
    const char *mark = strchr(intake->stream, '%');

    if (intake->growing && !path_count)
        return silt_usage(feed->silt, "--follow needs a FILE; a pipe is followed anyway");
    if (intake->growing && feed->wait)
        return silt_usage(feed->silt, "--follow has no end to --wait for: leave one out, and let "
                                      "silt ask --wait");
    if (feed->turn && path_count)
        return silt_usage(feed->silt, "--turn reads stdin, not files");
    if (feed->turn && intake->format != FORMAT_PLAIN)
        return silt_usage(feed->silt, "--turn takes plain text: leave out --format");
    if (feed->producer && path_count)
        return silt_usage(feed->silt, "--producer names stdin; a FILE is known by itself");
    if (intake->start_us && intake->format == FORMAT_PLAIN)
        return silt_usage(feed->silt, "--start is for --format transcript, vtt or srt");
    if (mark && !path_count)
        return silt_usage(feed->silt, "%% in STREAM stands for a FILE's name: name files");
    if (mark && strchr(mark + 1, '%'))
        return silt_usage(feed->silt, "STREAM may hold one %%");
    if (mark && feed->wait)
        return silt_usage(feed->silt, "--wait is for one stream: leave out %%");
    return 0;
}

static int run(struct silt *silt, int argc, char **argv)
{
    struct feed feed = {.silt = silt, .intake = {.silt = silt}};
    int option, r, path_count;
    bool endless;

    while ((option = getopt_long(argc, argv, "c:hfq", longs, NULL)) != -1) {
        r = feed_option(silt, &feed, option);
        if (r >= 0)
            return r;
    }
    if (optind == argc)
        return silt_usage(silt, "name a stream");
    feed.intake.stream = argv[optind++];
    if (argc - optind == 1 && !strcmp(argv[optind], "-"))
        optind = argc; /* as others write stdin */
    path_count = argc - optind;
    r = feed_check(&feed, path_count);
    for (int i = 0; i < path_count && !r && !feed.intake.growing; i++)
        r = path_check(&feed, argv[argc - path_count + i]);
    if (r)
        return r;
    feed.intake.each = strchr(feed.intake.stream, '%') != NULL;
    /* What comes down a pipe cannot be read a second time. */
    endless = feed.intake.growing || (!path_count && !feed.turn);
    if (!feed.patience_ms)
        feed.patience_ms = endless ? CLIENT_WAIT_FOREVER : PATIENCE_S * 1000;
    r = silt_connect(silt, feed.patience_ms);
    if (r)
        return r;
    return feed_run(&feed, argv + optind, path_count);
}

const struct command command_feed = {
    .name = "feed",
    .summary = "append text to a stream: files, stdin, or files that grow",
    .help = help,
    .run = run,
};
