/* ask: a question; the answer as it comes, then where it was asked and what it rests on. */
#include <float.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt ask STREAM \"QUESTION\" [options]\n"
    "\n"
    "Asks what a stream has read. The answer comes as it is written, then the position it was\n"
    "asked at and its sources. The stream goes on reading meanwhile; it does not see the question\n"
    "unless --keep is given. Ctrl-C ends the answer.\n"
    "\n"
    "  silt ask log \"What failed last night?\"\n"
    "  silt ask log \"What failed?\" --wait             first read all that was fed so far\n"
    "  silt ask log \"And before that?\" --at 120000    as the stream was at that token\n"
    "  silt ask chat \"Hello, I am Ada.\" --keep        question and answer join the stream\n"
    "  silt ask log $'Text: my card is gone\\nIntent:'  goes on a list of such texts that was fed\n"
    "  silt ask log \"Which host?\" --json | jq -r .answer\n"
    "\n"
    "  --recall none|segments|text|auto   bring back cold memory for this question (auto)\n"
    "  --wait             wait until all that was acked so far is computed\n"
    "  --at POSITION      ask the past, a token position\n"
    "  --keep             question and answer become turns of the stream\n"
    "  --system TEXT      how to answer, for this question\n"
    "  --tokens N         longest answer (256)\n"
    "  --stop TEXT        end the answer at this text (up to 8 times)\n"
    "  --temperature T    0: always the likeliest word (0, or 0.7 where one of the next line is "
    "given)\n"
    "  --top-p P  --top-k K  --min-p P  --seed N (the same answer again)\n"
    "  --repeat-penalty R   1: none\n"
    "  -q, --quiet        the answer alone\n"
    "  --json             one JSON object at the end: answer, position, acked, sources, timings\n";

enum { STOP_MAX = 8, SOURCES_SHOWN = 4, UNSAID = -1, WAIT_SAY_US = 1000000 };

struct question {
    struct client_ask ask;
    struct client_sampling sampling;
    const char *stop[STOP_MAX];
    bool json, quiet;
    bool sampled; /* an option was given that means nothing at temperature 0 */
    char *text;   /* of the answer, where --json collects it */
    size_t text_bytes, text_room;
    bool newline;       /* nothing was printed, or its last byte is one */
    bool answered;      /* the answer has begun */
    int64_t wait_us;    /* when it was last waited for aloud; 0: not yet */
    struct silt *silt;  /* that asks */
    struct silt beside; /* that looks how far siltd has read meanwhile */
};

static const struct option longs[] = {
    {"recall", required_argument, NULL, 'R'}, {"wait", no_argument, NULL, 'w'},
    {"at", required_argument, NULL, 'a'},     {"keep", no_argument, NULL, 'k'},
    {"system", required_argument, NULL, 's'}, {"tokens", required_argument, NULL, 'n'},
    {"stop", required_argument, NULL, 'S'},   {"temperature", required_argument, NULL, 't'},
    {"top-p", required_argument, NULL, 'p'},  {"top-k", required_argument, NULL, 'K'},
    {"min-p", required_argument, NULL, 'm'},  {"repeat-penalty", required_argument, NULL, 'P'},
    {"seed", required_argument, NULL, 'e'},   {"quiet", no_argument, NULL, 'q'},
    {"json", no_argument, NULL, 'j'},         SILT_OPTIONS};

static int recall_option(const struct silt *silt, struct question *q)
{
    static const char *const names[] = {"auto", "none", "segments", "text"};

    for (int i = 0; i < 4; i++)
        if (!strcmp(optarg, names[i])) {
            q->ask.recall = (enum client_recall)i;
            return 0;
        }
    return silt_usage(silt, "--recall is none, segments, text or auto, not \"%s\"", optarg);
}

/* Options of sampling: 0, the exit code, or -1 where option is none of them. */
static int sampling_option(const struct silt *silt, struct question *q, int option)
{
    struct client_sampling *sampling = &q->sampling;
    uint64_t number;
    int r;

    q->ask.sampling = sampling;
    q->sampled |= option != 'P';
    switch (option) {
    case 't':
        return silt_real(silt, "--temperature", optarg, 0, 10, &sampling->temperature);
    case 'p':
        r = silt_real(silt, "--top-p", optarg, 0, 1, &sampling->top_p);
        if (!r && sampling->top_p == 0)
            sampling->top_p = FLT_MIN; /* the likeliest alone; to siltd 0 is no limit */
        return r;
    case 'm':
        return silt_real(silt, "--min-p", optarg, 0, 1, &sampling->min_p);
    case 'P':
        return silt_real(silt, "--repeat-penalty", optarg, 0.01, 10, &sampling->repeat_penalty);
    case 'K':
        r = silt_number(silt, "--top-k", optarg, 0, UINT32_MAX, &number);
        sampling->top_k = (uint32_t)number;
        return r;
    default:
        return silt_number(silt, "--seed", optarg, 0, UINT64_MAX, &sampling->seed);
    }
}

static int ask_option(struct silt *silt, struct question *q, int option)
{
    uint64_t number;
    int r;

    switch (option) {
    case 'R':
        return recall_option(silt, q);
    case 'w':
        q->ask.wait = true;
        return 0;
    case 'k':
        q->ask.keep = true;
        return 0;
    case 'a':
        q->ask.at_given = true;
        return silt_number(silt, "--at", optarg, 0, UINT64_MAX, &q->ask.at_position);
    case 's':
        q->ask.system = optarg;
        return 0;
    case 'n':
        r = silt_number(silt, "--tokens", optarg, 1, UINT32_MAX, &number);
        q->ask.tokens_max = (uint32_t)number;
        return r;
    case 'S':
        if (q->ask.stop_count == STOP_MAX)
            return silt_usage(silt, "at most %d --stop", STOP_MAX);
        q->stop[q->ask.stop_count++] = optarg;
        return 0;
    case 'q':
        q->quiet = true;
        return 0;
    case 'j':
        q->json = true;
        return 0;
    default:
        return sampling_option(silt, q, option);
    }
}

static int on_token(void *user, const uint8_t *bytes, size_t bytes_count)
{
    struct question *q = user;

    if (!bytes_count)
        return 0;
    q->answered = true;
    progress_hide();
    q->newline = bytes[bytes_count - 1] == '\n';
    if (!q->json) {
        text_print(stdout, bytes, bytes_count);
        /* Nobody reads any more: no use in going on. */
        return fflush(stdout) != 0;
    }
    if (q->text_bytes + bytes_count > q->text_room) {
        size_t room = (q->text_bytes + bytes_count) * 2 + 256;
        char *text = realloc(q->text, room);

        if (!text)
            return 1;
        q->text = text;
        q->text_room = room;
    }
    memcpy(q->text + q->text_bytes, bytes, bytes_count);
    q->text_bytes += bytes_count;
    return 0;
}

static json_t *sources_json(const struct client_answer *answer)
{
    json_t *json = json_array();

    for (size_t i = 0; i < answer->source_count; i++) {
        const struct client_source *source = &answer->sources[i];
        json_t *one = json_pack("{s:I, s:I, s:I, s:o}", "segment", (json_int_t)source->segment,
                                "from", (json_int_t)source->from, "to", (json_int_t)source->to,
                                "text", text_json(source->text, strlen(source->text)));
        char time[TEXT_BYTES];

        json_object_set_new(one, "time",
                            source->time_us ? json_string(text_time_iso(time, source->time_us))
                                            : json_null());
        json_object_set_new(one, "time_to",
                            source->time_to_us
                                ? json_string(text_time_iso(time, source->time_to_us))
                                : json_null());
        json_array_append_new(json, one);
    }
    return json;
}

static int answer_json(const struct question *q, const struct client_answer *answer)
{
    static const char *const finish[] = {"end", "length", "stop", "cancelled"};
    json_t *timings = json_pack("{s:f, s:f, s:f}", "wait_seconds", (double)answer->wait_us / 1e6,
                                "prefill_seconds", (double)answer->prefill_us / 1e6,
                                "decode_seconds", (double)answer->decode_us / 1e6);

    return text_json_print(json_pack(
        "{s:s, s:o, s:I, s:I, s:I, s:s, s:I, s:I, s:o, s:o}", "stream", q->ask.stream, "answer",
        text_json(q->text ? q->text : "", q->text_bytes), "position", (json_int_t)answer->position,
        "acked", (json_int_t)answer->acked, "rebuilding_to", (json_int_t)answer->rebuilding_to,
        "finish", finish[answer->finish & 3], "question_tokens",
        (json_int_t)answer->question_tokens, "answer_tokens", (json_int_t)answer->answer_tokens,
        "sources", sources_json(answer), "timings", timings));
}

static void source_print(const struct client_source *source)
{
    enum { SHOWN_BYTES = 160 };
    const char *text = source->text;
    char from[TEXT_BYTES], to[TEXT_BYTES], time[TEXT_BYTES] = "";
    size_t bytes = strlen(text), shown = text_whole(text, bytes, SHOWN_BYTES);

    if (source->time_us)
        text_time(time, source->time_us);
    printf("  segment %" PRIu64 ", tokens %s to %s%s%s\n", source->segment,
           text_count(from, source->from), text_count(to, source->to), time[0] ? ", " : "", time);
    if (!bytes)
        return;
    fputs("      ", stdout);
    for (size_t i = 0; i < shown; i++)
        text_print(stdout, text[i] == '\n' ? " " : &text[i], 1);
    puts(shown < bytes ? " …" : "");
}

static void answer_print(const struct client_answer *answer, const struct question *q)
{
    char position[TEXT_BYTES], acked[TEXT_BYTES], wait[TEXT_BYTES], read[TEXT_BYTES],
        wrote[TEXT_BYTES];

    if (answer->finish == FINISH_CANCELLED && !answer->question_tokens && !q->answered) {
        puts("stopped before the question was asked");
        return;
    }
    printf("\nasked at token %s of %s acked; waited %s, read the question in %s, wrote %u tokens "
           "in %s%s\n",
           text_count(position, answer->position), text_count(acked, answer->acked),
           text_seconds(wait, (double)answer->wait_us / 1e6),
           text_seconds(read, (double)answer->prefill_us / 1e6), answer->answer_tokens,
           text_seconds(wrote, (double)answer->decode_us / 1e6),
           answer->finish == FINISH_CANCELLED ? " (stopped)"
           : answer->finish == FINISH_LENGTH  ? " (cut at its length)"
                                              : "");
    if (!answer->rebuilding_to && !q->ask.at_given && answer->position < answer->acked / 2)
        puts("most of the stream was not read yet: --wait asks when all of it is");
    if (answer->rebuilding_to)
        printf("rebuilding %s/%s: the stream is being read again, the answer saw it so far\n",
               position, text_count(acked, answer->rebuilding_to));
    if (answer->source_count)
        puts("sources");
    for (size_t i = 0; i < answer->source_count && i < SOURCES_SHOWN; i++)
        source_print(&answer->sources[i]);
    if (answer->source_count > SOURCES_SHOWN)
        printf("  and %zu more: --json names all\n", answer->source_count - SOURCES_SHOWN);
}

/* Until the answer begins, whoever looks at a terminal hears how far siltd has read: on a
 * connection of its own, as the question waits on the other. */
static void on_wait(void *user)
{
    struct question *q = user;
    char computed[TEXT_BYTES], acked[TEXT_BYTES];
    struct client_stream_stat stat;
    int64_t now_us = silt_now_us();

    if (!q->wait_us)
        q->wait_us = now_us;
    if (q->answered || now_us - q->wait_us < WAIT_SAY_US || !isatty(STDERR_FILENO) ||
        !client_connected(q->silt->client))
        return;
    q->wait_us = now_us;
    if (q->ask.at_given) {
        progress_note("silt: the stream as it was is read again");
        return;
    }
    if (!q->beside.client && silt_connect(&q->beside, 0))
        return;
    if (client_stat(q->beside.client, q->ask.stream, &stat, NULL))
        return;
    if (stat.lag_tokens)
        progress_note("silt: %s of %s tokens are read", text_count(computed, stat.tokens_computed),
                      text_count(acked, stat.tokens_acked));
    else
        progress_note("silt: the question is read");
    client_stat_free(&stat);
}

static int ask(struct silt *silt, struct question *q)
{
    struct client_answer answer;
    int r = silt_connect(silt, 0);

    if (r)
        return r;
    q->silt = silt;
    q->beside = (struct silt){.endpoint = silt->endpoint,
                              .server_key = silt->server_key,
                              .client_key = silt->client_key,
                              .command = silt->command};
    silt->turn_user = q;
    silt->turn = on_wait;
    r = client_ask(silt->client, &q->ask, on_token, q, &answer, &silt->error);
    silt->turn = NULL;
    client_close(&q->beside.client);
    progress_hide();
    if (!q->json && !q->newline)
        putchar('\n');
    if (r)
        return silt_fail(silt);
    if (q->json)
        r = answer_json(q, &answer);
    else if (!q->quiet)
        answer_print(&answer, q);
    if (answer.finish == FINISH_CANCELLED)
        r = EXIT_STOPPED;
    client_answer_free(&answer);
    return r;
}

static int run(struct silt *silt, int argc, char **argv)
{
    /* What a sampling option leaves unsaid; without any, siltd's own defaults hold. */
    struct question q = {
        .newline = true,
        .sampling = {.temperature = UNSAID, .top_p = 1, .repeat_penalty = 1},
    };
    int option, r;

    while ((option = getopt_long(argc, argv, "c:hq", longs, NULL)) != -1) {
        if (option == 'c' || option == 'h' || option == '?') {
            r = silt_option(silt, &command_ask, option);
            if (r >= 0)
                return r;
        } else {
            r = ask_option(silt, &q, option);
            if (r)
                return r;
        }
    }
    if (argc - optind != 2)
        return silt_usage(silt, "give a stream and one question in quotes");
    q.ask.stream = argv[optind];
    q.ask.question = argv[optind + 1];
    q.ask.stop = q.stop;
    if (q.sampling.temperature < 0)
        q.sampling.temperature = q.sampled ? 0.7f : 0;
    r = ask(silt, &q);
    free(q.text);
    return r;
}

const struct command command_ask = {
    .name = "ask",
    .summary = "ask a question of a stream",
    .help = help,
    .run = run,
};
