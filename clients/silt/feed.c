/* feed: files, a pipe, a turn of talk, or files that grow, into a stream. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt feed STREAM [FILE…] [options]\n"
    "\n"
    "Appends text to a stream, which is created with the defaults when it is new. Without FILE,\n"
    "what comes on stdin, as it comes. What siltd has acked is on its disk; a FILE that is fed\n"
    "again goes on after its last acked byte, so an interrupted feed is simply run again.\n"
    "\n"
    "  silt feed book chapter1.txt chapter2.txt     one after the other\n"
    "  silt feed log --follow /var/log/syslog       for ever, over rotation and truncation\n"
    "  journalctl -f | silt feed journal            a pipe\n"
    "  echo \"Be brief.\" | silt feed chat --turn system      one turn of a talk\n"
    "  silt feed book chapter1.txt --wait && silt ask book \"Who is the butler?\"\n"
    "\n"
    "  -f, --follow       keep reading as the files grow; several are cut at line ends\n"
    "  --wait             return when all of it is computed, not only acked\n"
    "  --turn ROLE        the input is one turn: system, user, assistant or tool\n"
    "  --producer NAME    the name stdin is numbered under (a fresh one)\n"
    "  --dmc RATIO, --ring N   for a stream that is new, as silt open\n"
    "  --patience SECONDS how long to wait for a siltd that is away (60; --follow: for ever)\n"
    "  -q, --quiet        no progress, no summary\n"
    "\n"
    "A FILE or stdin ends with a mark: its last word is complete. --follow never marks. Ctrl-C\n"
    "stops cleanly and says how far siltd has acked.\n";

enum {
    WAIT_MS = 200,
    DRAIN_MS = 20000,
    BLOCK_TOKENS = 32, /* siltd computes in blocks: fewer wait for more text */
    PATIENCE_S = 60,
    TURN_BYTES_MAX = CLIENT_ITEM_BYTES_MAX,
};

struct feed {
    struct silt *silt;
    struct client_open_options open;
    const char *stream, *producer, *turn;
    bool follow, wait, quiet;
    int patience_ms;
    struct progress progress;
    uint64_t bytes; /* sent by this run */
};

static const struct option longs[] = {{"follow", no_argument, NULL, 'f'},
                                      {"wait", no_argument, NULL, 'w'},
                                      {"quiet", no_argument, NULL, 'q'},
                                      {"turn", required_argument, NULL, 't'},
                                      {"producer", required_argument, NULL, 'p'},
                                      {"dmc", required_argument, NULL, 'd'},
                                      {"ring", required_argument, NULL, 'r'},
                                      {"patience", required_argument, NULL, 'P'},
                                      SILT_OPTIONS};

static int feed_option(struct silt *silt, struct feed *feed, int option)
{
    uint64_t number = 0;
    int r = 0;

    switch (option) {
    case 'f':
        feed->follow = true;
        break;
    case 'w':
        feed->wait = true;
        break;
    case 'q':
        feed->quiet = true;
        break;
    case 't':
        feed->turn = optarg;
        break;
    case 'p':
        feed->producer = optarg;
        break;
    case 'd':
        feed->open.dmc_auto = !strcmp(optarg, "auto");
        if (!feed->open.dmc_auto)
            r = silt_number(silt, "--dmc", optarg, 1, 8, &number);
        feed->open.dmc_ratio = (uint32_t)number;
        break;
    case 'r':
        r = silt_number(silt, "--ring", optarg, 1, 256, &number);
        feed->open.ring_segments = (uint32_t)number;
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

static void feed_draw(struct feed *feed, const struct producer *producer)
{
    struct producer_status status;

    producer_status(producer, &status);
    if (status.tokens_acked) {
        feed->progress.tokens_acked = status.tokens_acked;
        feed->progress.tokens_computed = status.tokens_computed;
    }
    feed->progress.bytes_done = status.bytes_acked;
    progress_draw(&feed->progress);
}

/* Waits for the acks of all that was sent. */
static int feed_drain(struct feed *feed, struct producer *producer)
{
    struct producer_status status;

    for (;;) {
        producer_status(producer, &status);
        if (!status.held_count)
            return 0;
        feed_draw(feed, producer);
        if (producer_work(producer, WAIT_MS, &feed->silt->error))
            return silt_fail(feed->silt);
    }
}

/* After Ctrl-C: what is on its way still counts, then the user hears how far it got. */
static int feed_stop(struct feed *feed, struct producer *producer, const char *path)
{
    struct producer_status status;
    int r = EXIT_STOPPED;

    progress_clear(&feed->progress);
    silt_stop = 0;
    if (producer_drain(producer, DRAIN_MS, &feed->silt->error))
        r = silt_fail(feed->silt);
    producer_status(producer, &status);
    if (path)
        silt_say("stopped: %s is acked up to byte %" PRIu64 "; the same command goes on from there",
                 path, status.bytes_acked);
    else
        silt_say("stopped: %" PRIu64 " bytes of stdin are acked", status.bytes_acked);
    return r;
}

static int feed_file(struct feed *feed, const char *path)
{
    struct source source = {.fd = -1};
    uint64_t begin;
    int r = source_open(&source, feed->silt, feed->stream, path);

    if (r == -ENODATA) {
        silt_say("%s is empty", path);
        return EXIT_DONE;
    }
    if (r)
        return r;
    begin = source.offset;
    feed->progress.what = path;
    feed->progress.bytes_all = source.size;
    if (!feed->quiet && begin == source.size)
        silt_say("%s: nothing new, all %" PRIu64 " bytes were acked before", path, source.size);
    else if (!feed->quiet && begin)
        silt_say("%s: goes on after byte %" PRIu64, path, begin);
    while (source.offset < source.size && !silt_stop) {
        r = source_send(&source, feed->silt, true);
        if (r == 0 && producer_room(source.producer)) {
            silt_say("%s became shorter while it was read: stopped at byte %" PRIu64, path,
                     source.offset);
            break;
        }
        if (r == 0)
            r = producer_work(source.producer, WAIT_MS, &feed->silt->error);
        if (r < 0)
            break;
        feed_draw(feed, source.producer);
    }
    if (silt_stop)
        r = feed_stop(feed, source.producer, path);
    else
        r = r < 0 ? silt_fail(feed->silt) : feed_drain(feed, source.producer);
    if (r == EXIT_STOPPED && silt_stop)
        r = feed_stop(feed, source.producer, path);
    feed->bytes += source.offset - begin;
    source_close(&source);
    return r;
}

/* Reads what is there: bytes, 0 at the end, or -errno. */
static ssize_t stdin_read(uint8_t *out, size_t room)
{
    ssize_t bytes = read(STDIN_FILENO, out, room);

    return bytes < 0 ? -errno : bytes;
}

static int stdin_pump(struct feed *feed, struct producer *producer)
{
    static uint8_t piece[SOURCE_PIECE_BYTES];
    struct client_error *error = &feed->silt->error;

    for (;;) {
        size_t room = producer_room(producer);
        ssize_t bytes;
        int r = producer_work(producer, 0, error);

        if (!r)
            r = client_poll(feed->silt->client, room ? STDIN_FILENO : -1, WAIT_MS);
        if (r < 0)
            return r;
        feed_draw(feed, producer);
        if (!room || !r)
            continue;
        bytes = stdin_read(piece, room < sizeof piece ? room : sizeof piece);
        if (bytes == -EINTR || bytes == -EAGAIN)
            continue;
        if (bytes <= 0)
            return (int)bytes;
        r = producer_write(producer, piece, (size_t)bytes, error);
        if (r)
            return r;
        feed->bytes += (uint64_t)bytes;
    }
}

/* All of stdin as one turn: it is sent when it is complete. */
static int stdin_turn(struct feed *feed, struct producer *producer)
{
    uint8_t *text = malloc(TURN_BYTES_MAX + 1);
    struct client_item item = {.kind = ITEM_TURN, .bytes = text, .role = feed->turn};
    int r = text ? 0 : -ENOMEM;

    while (!r && item.bytes_count <= TURN_BYTES_MAX) {
        ssize_t bytes = stdin_read(text + item.bytes_count, TURN_BYTES_MAX + 1 - item.bytes_count);

        if (bytes == 0)
            break;
        if (bytes < 0)
            r = (int)bytes;
        else
            item.bytes_count += (size_t)bytes;
    }
    /* `echo` ends what it says with a line end that is not part of it. */
    if (item.bytes_count && text[item.bytes_count - 1] == '\n')
        item.bytes_count--;
    if (!r)
        r = producer_send(producer, &item, 1, 0, &feed->silt->error);
    feed->bytes += item.bytes_count;
    free(text);
    return r;
}

static int feed_stdin(struct feed *feed)
{
    const struct client_item end = {.kind = ITEM_MARK, .mark = MARK_END_OF_INPUT};
    struct client_error *error = &feed->silt->error;
    struct producer *producer = NULL;
    char id[64];
    uint64_t fresh = 0;
    int r;

    if (!feed->producer && getrandom(&fresh, sizeof fresh, 0) != sizeof fresh) {
        silt_say("the system gives no random numbers");
        return EXIT_REFUSED;
    }
    snprintf(id, sizeof id, "stdin-%016" PRIx64, fresh);
    if (producer_open(&producer, feed->silt->client, feed->stream,
                      feed->producer ? feed->producer : id, error))
        return silt_fail(feed->silt);
    feed->progress.what = feed->producer ? feed->producer : "stdin";
    r = feed->turn ? stdin_turn(feed, producer) : stdin_pump(feed, producer);
    if (!r && !feed->turn)
        r = producer_send(producer, &end, 1, 0, error);
    if (r && !error->code) {
        error->code = r;
        snprintf(error->text, sizeof error->text, "cannot read stdin: %s", strerror(-r));
    }
    r = r ? silt_fail(feed->silt) : feed_drain(feed, producer);
    if (r == EXIT_STOPPED || silt_stop)
        r = feed_stop(feed, producer, NULL);
    producer_close(&producer);
    return r;
}

/* Until siltd has computed what it had acked, but for the start of a block. */
static int feed_wait(struct feed *feed)
{
    struct client_stream_stat stat;
    uint64_t goal = 0;

    for (;;) {
        uint64_t computed;

        if (client_stat(feed->silt->client, feed->stream, &stat, &feed->silt->error))
            return silt_fail(feed->silt);
        if (!goal)
            goal = stat.tokens_acked;
        computed = stat.tokens_computed;
        feed->progress.tokens_acked = stat.tokens_acked;
        feed->progress.tokens_computed = computed;
        client_stat_free(&stat);
        if (computed + BLOCK_TOKENS > goal)
            return EXIT_DONE;
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

    if (feed->quiet || client_stat(feed->silt->client, feed->stream, &stat, NULL))
        return;
    silt_say("%s acked; stream %s holds %s tokens (%s not computed yet) in %s of %s",
             text_bytes(bytes, feed->bytes), feed->stream, text_count(tokens, stat.tokens_acked),
             text_count(lag, stat.lag_tokens), text_bytes(used, stat.bytes_used),
             text_bytes(plan, stat.bytes_plan));
    client_stat_free(&stat);
}

static int feed_run(struct feed *feed, char **paths, int path_count)
{
    struct silt *silt = feed->silt;
    struct client_opened opened;
    int r;

    if (client_stream_open(silt->client, feed->stream, &feed->open, &opened, &silt->error))
        return silt_fail(silt);
    if (opened.created && opened.compression_off)
        silt_say("siltd has no adapter for its model: compression is off, the stream keeps a "
                 "sliding window only");
    feed->progress.client = silt->client;
    feed->progress.stream = feed->stream;
    feed->progress.on = !feed->quiet && isatty(STDERR_FILENO);
    if (feed->follow)
        return follow_run(silt, feed->stream, paths, path_count, feed->quiet);
    r = path_count ? EXIT_DONE : feed_stdin(feed);
    for (int i = 0; i < path_count && !r; i++)
        r = feed_file(feed, paths[i]);
    if (!r && feed->wait)
        r = feed_wait(feed);
    progress_clear(&feed->progress);
    if (!r)
        feed_summary(feed);
    return r;
}

static int run(struct silt *silt, int argc, char **argv)
{
    struct feed feed = {.silt = silt};
    int option, r;

    while ((option = getopt_long(argc, argv, "c:hfq", longs, NULL)) != -1) {
        r = feed_option(silt, &feed, option);
        if (r >= 0)
            return r;
    }
    if (optind == argc)
        return silt_usage(silt, "name a stream");
    feed.stream = argv[optind++];
    if (feed.follow && optind == argc)
        return silt_usage(silt, "--follow needs a FILE; a pipe is followed anyway");
    if (feed.turn && optind < argc)
        return silt_usage(silt, "--turn reads stdin, not files");
    if (!feed.patience_ms)
        feed.patience_ms = feed.follow ? CLIENT_WAIT_FOREVER : PATIENCE_S * 1000;
    r = silt_connect(silt, feed.patience_ms);
    if (r)
        return r;
    return feed_run(&feed, argv + optind, argc - optind);
}

const struct command command_feed = {
    .name = "feed",
    .summary = "append text to a stream: files, stdin, or files that grow",
    .help = help,
    .run = run,
};
