/*
 * endless: one stream without end. Feeds text for as many tokens as asked and watches that memory,
 * bytes in use and the time a chunk takes stay what they were.
 *
 * Each sample is a row of CSV; the last lines say what was seen and whether it held. Exit status 0:
 * it did.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/client.h"
#include "soak/siltd.h"

enum {
    SAMPLES_MAX = 1 << 16,
    PIECE_BYTES = 16 << 10,
    TEXT_BYTES_MAX = 64 << 20,
    SETTLE_TOKENS = 10000, /* from here on nothing may grow */
    SAMPLE_MS = 250,
};
#define RESIDENT_GROWTH_MAX 0.01 /* of the process, after SETTLE_TOKENS */

struct sample {
    double seconds;
    uint64_t tokens, acked, resident, used, disk, segments_cold;
};

struct soak {
    struct siltd siltd;
    struct client *client;
    struct producer *producer;
    const char *program, *model, *adapter, *csv;
    uint64_t tokens;
    uint32_t threads, ratio;
    uint8_t *text;
    size_t text_bytes, text_at;
    struct sample *samples;
    size_t sample_count;
    double start;
    uint64_t plan;
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
    if (s->text_bytes < PIECE_BYTES) {
        fprintf(stderr, "soak: no text to feed; name some files\n");
        return -ENOENT;
    }
    return 0;
}

static int take_sample(struct soak *s, struct sample *out)
{
    struct client_stream_stat stat;
    struct client_error error;
    if (client_stat(s->client, "endless", &stat, &error))
        return complain("stat", &error);
    *out = (struct sample){
        now() - s->start, stat.tokens_computed, stat.tokens_acked, siltd_resident_bytes(&s->siltd),
        stat.bytes_used,  stat.bytes_disk,      stat.segments_cold};
    s->plan = stat.bytes_plan;
    client_stat_free(&stat);
    if (s->sample_count < SAMPLES_MAX)
        s->samples[s->sample_count++] = *out;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " tokens, %.0f tokens/s, resident %.1f MB   ",
                out->tokens, s->tokens, (double)out->tokens / out->seconds,
                (double)out->resident / 1e6);
    return 0;
}

/* Feeds whatever fits siltd's credit, a sample every quarter of a second, until enough is computed.
 */
static int feed(struct soak *s)
{
    struct client_error error;
    struct sample last = {0};
    double next = s->start;
    while (last.tokens < s->tokens) {
        while (producer_room(s->producer) >= PIECE_BYTES &&
               last.acked < s->tokens + (s->tokens >> 3)) {
            size_t left = s->text_bytes - s->text_at,
                   bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
            if (producer_write(s->producer, s->text + s->text_at, bytes, &error))
                return complain("feed", &error);
            s->text_at = (s->text_at + bytes) % s->text_bytes;
        }
        if (producer_work(s->producer, 20, &error))
            return complain("feed", &error);
        if (now() < next)
            continue;
        next += SAMPLE_MS / 1e3;
        int code = take_sample(s, &last);
        if (code)
            return code;
    }
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    return 0;
}

static double seconds_at(const struct soak *s, double tokens)
{
    for (size_t i = 1; i < s->sample_count; i++) {
        const struct sample *a = &s->samples[i - 1], *b = &s->samples[i];
        if ((double)b->tokens >= tokens && b->tokens > a->tokens)
            return a->seconds + (b->seconds - a->seconds) * (tokens - (double)a->tokens) /
                                    (double)(b->tokens - a->tokens);
    }
    return s->samples[s->sample_count - 1].seconds;
}

static void write_csv(const struct soak *s, FILE *f)
{
    fprintf(f, "seconds,tokens_computed,tokens_acked,resident_bytes,used_bytes,disk_bytes,segments_"
               "cold\n");
    for (size_t i = 0; i < s->sample_count; i++) {
        const struct sample *a = &s->samples[i];
        fprintf(f, "%.2f,%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n",
                a->seconds, a->tokens, a->acked, a->resident, a->used, a->disk, a->segments_cold);
    }
}

static int judge(const struct soak *s)
{
    uint64_t least = UINT64_MAX, most = 0, used = 0;
    for (size_t i = 0; i < s->sample_count; i++) {
        const struct sample *a = &s->samples[i];
        if (a->tokens < SETTLE_TOKENS)
            continue;
        least = a->resident < least ? a->resident : least;
        most = a->resident > most ? a->resident : most;
        used = a->used > used ? a->used : used;
    }
    double n = (double)s->tokens, growth = (double)most / (double)least - 1;
    double early = seconds_at(s, 0.2 * n) - seconds_at(s, 0.1 * n),
           late = seconds_at(s, n) - seconds_at(s, 0.9 * n);
    printf("resident memory after %d tokens: %.1f to %.1f MB, %.2f %% apart (at most %.0f %%)\n",
           SETTLE_TOKENS, (double)least / 1e6, (double)most / 1e6, 100 * growth,
           100 * RESIDENT_GROWTH_MAX);
    printf("stream: at most %.2f MB in use of the %.2f MB planned\n", (double)used / 1e6,
           (double)s->plan / 1e6);
    printf("time a chunk, last tenth to second tenth: %.3f (%.1f and %.1f tokens/s)\n",
           late / early, 0.1 * n / late, 0.1 * n / early);
    bool ok = growth <= RESIDENT_GROWTH_MAX && used <= s->plan;
    puts(ok ? "held" : "did not hold");
    return ok ? 0 : 1;
}

static int run(struct soak *s)
{
    struct client_error error;
    struct client_opened opened;
    int code = siltd_start(&s->siltd, s->program, s->model, s->adapter, s->threads);
    if (code)
        return code;
    struct client_options options = {.endpoint = s->siltd.endpoint};
    struct client_open_options open_options = {.dmc_ratio = s->ratio};
    if ((code = client_open(&s->client, &options, &error)) ||
        (code = client_stream_open(s->client, "endless", &open_options, &opened, &error)) ||
        (code = producer_open(&s->producer, s->client, "endless", "soak", &error)))
        return complain("open", &error);
    s->start = now();
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
    puts("endless [FILE…]: one stream without end; memory and time a chunk must stay flat\n"
         "  --tokens N (200000)   --dmc 1|2|4|8   --threads N\n"
         "  --siltd PROGRAM (build/siltd)  --model GGUF  --adapter GGUF   default: those of siltd\n"
         "  --csv FILE            samples are appended there, else printed");
}

int main(int argc, char **argv)
{
    struct soak s = {.program = "build/siltd", .tokens = 200000};
    static const struct option longs[] = {
        {"tokens", 1, 0, 'n'}, {"dmc", 1, 0, 'd'},   {"threads", 1, 0, 't'},
        {"siltd", 1, 0, 's'},  {"model", 1, 0, 'm'}, {"adapter", 1, 0, 'a'},
        {"csv", 1, 0, 'c'},    {"help", 0, 0, 'h'},  {0}};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        switch (c) {
        case 'n':
            s.tokens = strtoull(optarg, NULL, 0);
            break;
        case 'd':
            s.ratio = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 't':
            s.threads = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 's':
            s.program = optarg;
            break;
        case 'm':
            s.model = optarg;
            break;
        case 'a':
            s.adapter = optarg;
            break;
        case 'c':
            s.csv = optarg;
            break;
        default:
            usage();
            return c == 'h' ? 0 : 2;
        }
    }
    s.samples = calloc(SAMPLES_MAX, sizeof *s.samples);
    int code = s.samples ? read_text(&s, argv + optind, argc - optind) : -ENOMEM;
    if (!code)
        code = run(&s);
    producer_close(&s.producer);
    client_close(&s.client);
    if (s.siltd.pid && siltd_stop(&s.siltd)) {
        fprintf(stderr, "soak: siltd did not end cleanly\n");
        code = 1;
    }
    free(s.samples);
    free(s.text);
    return code ? 1 : 0;
}
