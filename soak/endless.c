/*
 * endless: one stream without end. Feeds text for as many tokens or minutes as asked and watches
 * that memory, bytes in use and the time a chunk takes stay what they were, and that facts planted
 * on the way are found again at any distance. It is fed on while it is asked, as a stream is by who
 * knows nothing of questions.
 *
 * Samples become rows of CSV, a thousand at most however long it runs; the last lines say what was
 * seen and whether it held. Exit status 0: it did.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/client.h"
#include "soak/probe.h"
#include "soak/siltd.h"

enum {
    TOKENS_DEFAULT = 200000,
    SAMPLES_MAX = 1 << 14, /* then every second one goes */
    ROWS_MAX = 1000,       /* of the CSV */
    AHEAD_TOKENS = 3500,   /* acked and not computed: the loss meter rests above 4,096 */
    TEXT_BYTES_MAX = 64 << 20,
    /* From here on nothing may grow. Questions' memory is planned from the start, but is resident
     * once questions have used it. */
    SETTLE_TOKENS = 10000,
    SETTLE_QUESTIONS = 2,
    CHUNK_TOKENS = 256,
    SAMPLE_MS = 250,
    DRAIN_MS = 60000,
    PROBES = 200,            /* of a run of so many tokens; of one by the clock, */
    PROBES_SO_FAR = 64,      /* each so much of what was read further on */
    PROBE_TOKENS_MIN = 4096, /* but not more often */
    PROBE_TOKENS_MAX = 50000,
};
#define TOKENS_ENDLESS      ((uint64_t)1 << 50) /* with --minutes alone */
#define RESIDENT_GROWTH_MAX 0.01                /* of the process, after SETTLE_TOKENS */
#define RESIDENT_SLACK      6e6  /* of a process so small that a cache is more than that */
#define SLOWER_MAX          1.25 /* processor time a chunk, last tenth against first */
#define FOUND_MIN           0.9  /* of the planted facts asked for; a random model finds fewer */

struct sample {
    double seconds, cpu; /* of siltd's processor */
    uint64_t tokens, acked, indexed, resident, used, disk, segments_cold;
    uint32_t asked, found, answered;
    double nll, loss; /* of the loss meter, nats a token; 0: nothing scored yet */
};

/* A question on its way, in a thread and by a client of its own; the probe is the thread's then. */
struct question {
    struct client *client;
    struct probe *probe;
    pthread_t thread;
    bool asked;
    atomic_bool answered;
    uint64_t before;
    int result;
    struct client_error error;
};

struct soak {
    struct siltd siltd;
    struct client *client;
    struct producer *producer;
    const char *program, *csv;
    struct siltd_options options;
    uint64_t tokens;
    double minutes, slower_max, found_min;
    uint32_t ratio;
    uint8_t *text;
    size_t text_bytes, text_at;
    struct sample *samples; /* [SAMPLES_MAX] */
    size_t sample_count;
    double sample_s; /* between two */
    double start;
    uint64_t plan, plant_at, ask_at;
    struct probe probe;
    struct question question;
    uint32_t asked, found, answered; /* of the probe, by questions that have come back */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int complain(const char *what, const struct client_error *error)
{
    fprintf(stderr, "soak: %s: %s\n", what, error->text);
    return error->code ? error->code : -EIO;
}

/* The files named, else what every Debian machine has to read. */
static int read_text(struct soak *s, char **files, int count)
{
    static char *standard[] = {
        "/usr/share/common-licenses/GPL-3",      "/usr/share/common-licenses/GPL-2",
        "/usr/share/common-licenses/LGPL-2.1",   "/usr/share/common-licenses/MPL-2.0",
        "/usr/share/common-licenses/Apache-2.0", "/usr/share/common-licenses/GFDL-1.3",
        "/usr/share/perl/5.36/perl5db.pl",       "/var/log/dpkg.log"};
    if (!count) {
        files = standard;
        count = (int)(sizeof standard / sizeof *standard);
    }
    s->text = malloc(TEXT_BYTES_MAX);
    if (!s->text)
        return -ENOMEM;
    for (int i = 0; i < count; i++) {
        FILE *f = fopen(files[i], "rb");
        if (!f)
            continue;
        s->text_bytes += fread(s->text + s->text_bytes, 1, TEXT_BYTES_MAX - s->text_bytes, f);
        fclose(f);
    }
    if (s->text_bytes < AHEAD_TOKENS) {
        fprintf(stderr, "soak: no text to feed; name some files\n");
        return -ENOENT;
    }
    return 0;
}

/* Room for more: every second one goes, and they come half as often. */
static void thin(struct soak *s)
{
    for (size_t i = 0; i < SAMPLES_MAX / 2; i++)
        s->samples[i] = s->samples[2 * i];
    s->sample_count = SAMPLES_MAX / 2;
    s->sample_s *= 2;
}

static int look(struct soak *s, struct sample *out)
{
    struct client_stream_stat stat;
    struct client_error error;
    if (client_stat(s->client, "endless", &stat, &error))
        return complain("stat", &error);
    *out = (struct sample){.seconds = now() - s->start,
                           .cpu = siltd_cpu_seconds(&s->siltd),
                           .tokens = stat.tokens_computed,
                           .acked = stat.tokens_acked,
                           .indexed = stat.indexed_to,
                           .resident = siltd_resident_bytes(&s->siltd),
                           .used = stat.bytes_used,
                           .disk = stat.bytes_disk,
                           .segments_cold = stat.segments_cold,
                           .asked = s->asked,
                           .found = s->found,
                           .answered = s->answered,
                           .nll = stat.loss.with_memory,
                           .loss = stat.loss.difference};
    s->plan = stat.bytes_plan;
    client_stat_free(&stat);
    return 0;
}

static void record(struct soak *s, const struct sample *out)
{
    if (s->sample_count == SAMPLES_MAX)
        thin(s);
    s->samples[s->sample_count++] = *out;
    if (isatty(STDERR_FILENO))
        fprintf(stderr,
                "\r%" PRIu64 " tokens, %.0f s, %.0f tokens/s, resident %.1f MB, found %u of %u   ",
                out->tokens, out->seconds, (double)out->tokens / out->seconds,
                (double)out->resident / 1e6, out->found, out->asked);
}

/* Tokens from one planted fact, and one question, to the next. */
static uint64_t probe_distance(const struct soak *s, uint64_t position)
{
    uint64_t tokens = s->tokens == TOKENS_ENDLESS ? position / PROBES_SO_FAR : s->tokens / PROBES;

    if (tokens < PROBE_TOKENS_MIN)
        tokens = PROBE_TOKENS_MIN;
    return tokens < PROBE_TOKENS_MAX ? tokens : PROBE_TOKENS_MAX;
}

/* A fact, acked, so that it is known where in the stream it ends. */
static int plant(struct soak *s)
{
    struct client_error error;
    struct client_stream_stat stat;
    char fact[FACT_BYTES];
    size_t bytes = probe_plant(&s->probe, fact);
    if (producer_write(s->producer, fact, bytes, &error) ||
        producer_drain(s->producer, DRAIN_MS, &error) ||
        client_stat(s->client, "endless", &stat, &error))
        return complain("plant", &error);
    probe_planted(&s->probe, stat.tokens_acked + 1);
    client_stat_free(&stat);
    return 0;
}

static void *ask(void *question)
{
    struct question *q = question;
    q->result = probe_ask(q->probe, q->client, "endless", q->before, &q->error);
    atomic_store(&q->answered, true);
    return NULL;
}

/* Waits for the question that is on its way, where there is one. */
static int take_answer(struct soak *s)
{
    struct question *q = &s->question;
    if (!q->asked)
        return 0;
    pthread_join(q->thread, NULL);
    q->asked = false;
    s->asked = s->probe.asked;
    s->found = s->probe.found;
    s->answered = s->probe.answered;
    return q->result ? complain("ask", &q->error) : 0;
}

static int begin_question(struct soak *s, uint64_t before)
{
    struct question *q = &s->question;
    q->probe = &s->probe;
    q->before = before;
    atomic_store(&q->answered, false);
    q->asked = pthread_create(&q->thread, NULL, ask, q) == 0;
    return q->asked ? 0 : -EAGAIN;
}

static int probe(struct soak *s, const struct sample *last)
{
    int code = 0;
    if (s->question.asked && !atomic_load(&s->question.answered))
        return 0;
    code = take_answer(s);
    if (!code && last->acked >= s->plant_at) {
        s->plant_at = last->acked + probe_distance(s, last->acked);
        code = plant(s);
    }
    if (!code && last->tokens >= s->ask_at) {
        /* The index is ahead of what a question sees, and the newest chunks are there word by word
         * and so among no sources. */
        uint64_t before = last->indexed < last->tokens ? last->indexed : last->tokens;
        before = before > 2 * CHUNK_TOKENS ? before - 2 * CHUNK_TOKENS : 0;
        s->ask_at = last->tokens + probe_distance(s, last->tokens);
        code = begin_question(s, before);
    }
    return code;
}

/* Keeps siltd busy and hardly more: a stream that lags is not scored by the loss meter. A token is
 * a byte at least. */
static int feed_ahead(struct soak *s, const struct sample *last)
{
    struct client_error error;
    uint64_t lag = last->acked - last->tokens;
    size_t left = s->text_bytes - s->text_at, room = producer_room(s->producer), bytes;
    bytes = lag < AHEAD_TOKENS ? (size_t)(AHEAD_TOKENS - lag) : 0;
    bytes = bytes < left ? bytes : left;
    bytes = bytes < room ? bytes : room;
    if (bytes && producer_write(s->producer, s->text + s->text_at, bytes, &error))
        return complain("feed", &error);
    s->text_at = (s->text_at + bytes) % s->text_bytes;
    if (producer_drain(s->producer, DRAIN_MS, &error))
        return complain("feed", &error);
    if (!bytes && producer_work(s->producer, 5, &error))
        return complain("feed", &error);
    return 0;
}

/* Feeds until enough is computed or the time is over. */
static int feed(struct soak *s)
{
    struct sample last = {0};
    double next = s->start;
    while (last.tokens < s->tokens && (!s->minutes || last.seconds < s->minutes * 60)) {
        int code = feed_ahead(s, &last);
        if (!code)
            code = look(s, &last);
        if (code)
            return code;
        if (now() < next)
            continue;
        next = now() + s->sample_s;
        record(s, &last);
        code = probe(s, &last);
        if (code)
            return code;
    }
    record(s, &last); /* the end too: a sample may be some seconds old */
    int code = take_answer(s);
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    return code;
}

static void write_csv(const struct soak *s, FILE *f)
{
    size_t step = (s->sample_count + ROWS_MAX - 1) / ROWS_MAX;
    fprintf(f, "seconds,tokens_computed,tokens_acked,resident_bytes,used_bytes,disk_bytes,segments_"
               "cold,recall_asked,recall_found,recall_answered,cpu_seconds,nll,loss\n");
    for (size_t i = 0; i < s->sample_count; i += step) {
        const struct sample *a = &s->samples[i];
        fprintf(f,
                "%.2f,%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64
                ",%u,%u,%u,%.2f,%.4f,%.4f\n",
                a->seconds, a->tokens, a->acked, a->resident, a->used, a->disk, a->segments_cold,
                a->asked, a->found, a->answered, a->cpu, a->nll, a->loss);
    }
}

/* Tokens a second of wall clock, and milliseconds of processor a chunk, between two shares of the
 * run. Other work on the machine slows the former; the latter it hardly touches. */
static void pace(const struct soak *s, double from, double to, double *rate, double *cpu_ms)
{
    double n = (double)s->samples[s->sample_count - 1].tokens;
    const struct sample *a = &s->samples[0], *b = NULL;
    for (size_t i = 0; i < s->sample_count; i++) {
        if ((double)s->samples[i].tokens <= from * n)
            a = &s->samples[i];
        if (!b && (double)s->samples[i].tokens >= to * n)
            b = &s->samples[i];
    }
    *rate = *cpu_ms = 0;
    if (!b || b->tokens <= a->tokens)
        return;
    *rate = (double)(b->tokens - a->tokens) / (b->seconds - a->seconds);
    *cpu_ms = 1e3 * CHUNK_TOKENS * (b->cpu - a->cpu) / (double)(b->tokens - a->tokens);
}

static bool judge_memory(const struct soak *s)
{
    uint64_t least = UINT64_MAX, most = 0, used = 0;
    for (size_t i = 0; i < s->sample_count; i++) {
        const struct sample *a = &s->samples[i];
        if (a->tokens < SETTLE_TOKENS ||
            (a->asked < SETTLE_QUESTIONS && s->probe.asked > SETTLE_QUESTIONS))
            continue;
        least = a->resident < least ? a->resident : least;
        most = a->resident > most ? a->resident : most;
        used = a->used > used ? a->used : used;
    }
    double growth = (double)most / (double)least - 1;
    printf(
        "resident memory after %d tokens and %d questions: %.1f to %.1f MB, %.2f %% apart (at most "
        "%.0f %%, or %.0f MB)\n",
        SETTLE_TOKENS, SETTLE_QUESTIONS, (double)least / 1e6, (double)most / 1e6, 100 * growth,
        100 * RESIDENT_GROWTH_MAX, RESIDENT_SLACK / 1e6);
    printf("stream: at most %.2f MB in use of the %.2f MB planned\n", (double)used / 1e6,
           (double)s->plan / 1e6);
    return (growth <= RESIDENT_GROWTH_MAX || (double)(most - least) < RESIDENT_SLACK) &&
           used <= s->plan;
}

static int judge(const struct soak *s)
{
    const struct probe *p = &s->probe;
    const struct sample *end = &s->samples[s->sample_count - 1];
    double first, second, last, first_ms, second_ms, last_ms;
    bool ok = judge_memory(s);
    pace(s, 0, 0.1, &first, &first_ms);
    pace(s, 0.1, 0.2, &second, &second_ms);
    pace(s, 0.9, 1, &last, &last_ms);
    printf("%" PRIu64
           " tokens in %.0f s; first, second and last tenth: %.0f, %.0f, %.0f tokens/s\n",
           end->tokens, end->seconds, first, second, last);
    printf("time a chunk, last tenth to first: %.3f on the clock, %.3f of the processor (%.2f and "
           "%.2f ms; at most %.2f); to second: %.3f and %.3f\n",
           first / last, last_ms / first_ms, last_ms, first_ms, s->slower_max, second / last,
           last_ms / second_ms);
    printf("facts planted %u, asked for %u, among the sources %u (at least %.0f %%), in the answer "
           "%u\n",
           p->planted, p->asked, p->found, 100 * s->found_min, p->answered);
    if (end->nll > 0)
        printf("loss meter: %.3f nats a token with the memory, %+.3f against 2,048 raw tokens\n",
               end->nll, end->loss);
    ok &= last_ms <= s->slower_max * first_ms && p->found >= s->found_min * p->asked;
    puts(ok ? "held" : "did not hold");
    return ok ? 0 : 1;
}

static int run(struct soak *s)
{
    struct client_error error;
    struct client_opened opened;
    int code = siltd_start(&s->siltd, s->program, &s->options);
    if (code)
        return code;
    struct client_options options = {.endpoint = s->siltd.endpoint};
    struct client_open_options open_options = {.dmc_ratio = s->ratio};
    if ((code = client_open(&s->client, &options, &error)) ||
        (code = client_open(&s->question.client, &options, &error)) ||
        (code = client_stream_open(s->client, "endless", &open_options, &opened, &error)) ||
        (code = producer_open(&s->producer, s->client, "endless", "soak", &error)))
        return complain("open", &error);
    s->start = now();
    s->sample_s = SAMPLE_MS / 1e3;
    s->ask_at = PROBE_TOKENS_MIN;
    code = feed(s);
    if (code)
        return code;
    FILE *csv = s->csv ? fopen(s->csv, "a") : NULL;
    if (s->csv && !csv) {
        fprintf(stderr, "soak: %s: %s\n", s->csv, strerror(errno));
        return -errno;
    }
    write_csv(s, csv ? csv : stdout);
    if (csv)
        fclose(csv);
    return judge(s);
}

static void usage(void)
{
    puts(
        "endless [FILE…]: one stream without end; memory and time a chunk must stay flat, planted\n"
        "facts must be found\n"
        "  --tokens N (200000)   --minutes M (no limit)   whichever is over first\n"
        "  --dmc 1|2|4|8   --threads N   --device cpu|cuda   --seed N (1)\n"
        "  --slower-max X (1.25) most that a chunk of the last tenth may take, of one of the "
        "first\n"
        "  --found-min X (0.9)   least share of the facts asked for that must be found\n"
        "  --siltd PROGRAM (build/siltd)  --model GGUF  --adapter GGUF   default: those of siltd\n"
        "  --disk SIZE           siltd's quota: cold segments are merged, then dropped\n"
        "  --csv FILE            samples are appended there, else printed");
}

static const struct option longs[] = {
    {"tokens", 1, 0, 'n'},    {"minutes", 1, 0, 'M'}, {"dmc", 1, 0, 'd'},
    {"threads", 1, 0, 't'},   {"seed", 1, 0, 'S'},    {"siltd", 1, 0, 's'},
    {"model", 1, 0, 'm'},     {"adapter", 1, 0, 'a'}, {"csv", 1, 0, 'c'},
    {"disk", 1, 0, 'D'},      {"help", 0, 0, 'h'},    {"slower-max", 1, 0, 'x'},
    {"found-min", 1, 0, 'F'}, {"device", 1, 0, 'g'},  {0}};

/* False: show how it is used. */
static bool take_option(struct soak *s, int option)
{
    switch (option) {
    case 'n':
        s->tokens = strtoull(optarg, NULL, 0);
        return true;
    case 'M':
        s->minutes = strtod(optarg, NULL);
        return true;
    case 'd':
        s->ratio = (uint32_t)strtoul(optarg, NULL, 0);
        return true;
    case 't':
        s->options.threads = optarg;
        return true;
    case 'S':
        s->probe.seed = strtoull(optarg, NULL, 0);
        return true;
    case 'x':
        s->slower_max = strtod(optarg, NULL);
        return true;
    case 'F':
        s->found_min = strtod(optarg, NULL);
        return true;
    case 's':
        s->program = optarg;
        return true;
    case 'm':
        s->options.model = optarg;
        return true;
    case 'a':
        s->options.adapter = optarg;
        return true;
    case 'g':
        s->options.device = optarg;
        return true;
    case 'c':
        s->csv = optarg;
        return true;
    case 'D':
        s->options.disk = optarg;
        return true;
    default:
        return false;
    }
}

int main(int argc, char **argv)
{
    struct soak s = {.program = "build/siltd",
                     .slower_max = SLOWER_MAX,
                     .found_min = FOUND_MIN,
                     .probe = {.seed = 1}};
    int code;

    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;)
        if (!take_option(&s, c)) {
            usage();
            return c == 'h' ? 0 : 2;
        }
    if (!s.tokens)
        s.tokens = s.minutes > 0 ? TOKENS_ENDLESS : TOKENS_DEFAULT;
    s.samples = calloc(SAMPLES_MAX, sizeof *s.samples);
    code = s.samples ? read_text(&s, argv + optind, argc - optind) : -ENOMEM;
    if (!code)
        code = run(&s);
    (void)take_answer(&s);
    producer_close(&s.producer);
    client_close(&s.question.client);
    client_close(&s.client);
    if (s.siltd.pid && siltd_stop(&s.siltd)) {
        fprintf(stderr, "soak: siltd did not end cleanly\n");
        code = 1;
    }
    free(s.samples);
    free(s.text);
    return code ? 1 : 0;
}
