/*
 * What the engine does in a second: prefill, decode at several depths, ingest with compression, the
 * tokenizer.
 *
 * Prints one line a figure, "name value unit", so that a script can pair it with another program's
 * figures in one run. The text is the licence of this repository, over and over: speed does not
 * depend on what is read.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stream/internal.h"

enum {
    PREFILL_TOKENS = 512,
    DECODE_TOKENS = 64,
    TEXT_BYTES_MAX = 1 << 20,
    FLAT_TENTH = 5120, /* tokens: more than ring and window hold */
};

struct bench {
    struct engine *engine;
    int32_t *tokens; /* [count] */
    uint32_t count;
    float *logits; /* [vocab] */
    const char *only;
    uint32_t stream_tokens;
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool wanted(const struct bench *b, const char *name)
{
    return !b->only || strstr(name, b->only);
}

static void figure(const char *name, double value, const char *unit)
{
    printf("%-28s %10.2f %s\n", name, value, unit);
    fflush(stdout);
}

static void bench_tokenizer(struct bench *b, const uint8_t *text, size_t bytes)
{
    const struct tokenizer *t = engine_tokenizer(b->engine);
    struct token_text state = {0};
    uint32_t copies = (uint32_t)(TEXT_BYTES_MAX / bytes) + 1;
    int32_t *out = malloc(token_count_max(&state, bytes) * copies * sizeof *out);
    size_t count = 0;
    if (!out)
        exit(1);
    double start = seconds();
    for (uint32_t i = 0; i < copies; i++)
        count += token_feed(t, &state, text, bytes, out + count);
    count += token_flush(t, &state, out + count);
    if (wanted(b, "tokenizer"))
        figure("tokenizer", (double)bytes * copies / (seconds() - start) / 1e6, "MB/s");
    b->tokens = out;
    b->count = (uint32_t)count;
}

static void bench_history(struct bench *b, const char *name, uint32_t depth, bool decode)
{
    struct history *h;
    if (!wanted(b, name))
        return;
    if (history_open(&h, b->engine, depth + PREFILL_TOKENS + DECODE_TOKENS, false))
        exit(1);
    history_score(h, b->tokens, NULL, decode ? depth : STREAM_BLOCK_TOKENS, NULL, NULL);
    if (!decode)
        history_reset(h);
    double start = seconds();
    uint32_t count = decode ? DECODE_TOKENS : PREFILL_TOKENS;
    if (!decode) {
        history_score(h, b->tokens, NULL, count, NULL, NULL);
        forward_logits(b->engine, STREAM_BLOCK_TOKENS - 1, 1, b->logits);
    }
    for (uint32_t i = 0; decode && i < count; i++) {
        history_score(h, b->tokens + depth + i, NULL, 1, NULL, NULL);
        forward_logits(b->engine, 0, 1, b->logits);
    }
    figure(name, count / (seconds() - start), "tokens/s");
    history_close(&h);
}

/* Ingest from an empty stream on, then the answer of a fork at its end. */
static void bench_stream(struct bench *b, uint32_t ratio)
{
    struct stream_options options = {.dmc_ratio = ratio};
    char name[64], error[256];
    snprintf(name, sizeof name, "ingest-%ux", ratio);
    if (!wanted(b, name))
        return;
    size_t bytes = stream_bytes(b->engine, &options, error, sizeof error);
    if (!bytes)
        return; /* the adapter does not serve this ratio */
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    size_t more = fork_bytes(b->engine, &options);
    void *fork_memory = aligned_alloc(64, (more + 63) & ~(size_t)63);
    struct stream *stream;
    struct fork *fork;
    if (!memory || !fork_memory || stream_open(&stream, b->engine, &options, memory, bytes))
        exit(1);
    double start = seconds();
    for (uint32_t at = 0; at < b->stream_tokens; at += PREFILL_TOKENS)
        stream_feed(stream, b->tokens + at % (b->count - PREFILL_TOKENS), PREFILL_TOKENS);
    figure(name, b->stream_tokens / (seconds() - start), "tokens/s");
    if (fork_open(&fork, stream, fork_memory, more))
        exit(1);
    start = seconds();
    fork_feed(fork, b->tokens, STREAM_BLOCK_TOKENS);
    snprintf(name, sizeof name, "first-token-%ux", ratio);
    figure(name, 1e3 * (seconds() - start), "ms after a question of 32 tokens");
    start = seconds();
    for (uint32_t i = 0; i < DECODE_TOKENS; i++)
        fork_feed(fork, b->tokens + i, 1);
    snprintf(name, sizeof name, "answer-%ux", ratio);
    figure(name, DECODE_TOKENS / (seconds() - start), "tokens/s");
    fork_close(&fork);
    stream_close(&stream);
    free(memory);
    free(fork_memory);
}

/* Time a chunk in the last tenth of a longer stream, over that in its first and second. */
static void bench_flat(struct bench *b)
{
    struct stream_options options = {.dmc_ratio = 2};
    char error[256];
    size_t bytes = stream_bytes(b->engine, &options, error, sizeof error);
    double took[10];
    struct stream *stream;
    if (!wanted(b, "tenth") || !bytes)
        return;
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!memory || stream_open(&stream, b->engine, &options, memory, bytes))
        exit(1);
    for (uint32_t tenth = 0; tenth < 10; tenth++) {
        double start = seconds();
        for (uint32_t at = 0; at < FLAT_TENTH; at += PREFILL_TOKENS)
            stream_feed(stream, b->tokens + (tenth * FLAT_TENTH + at) % (b->count - PREFILL_TOKENS),
                        PREFILL_TOKENS);
        took[tenth] = seconds() - start;
    }
    figure("last-to-first-tenth", took[9] / took[0], "of the time a chunk takes");
    figure("last-to-second-tenth", took[9] / took[1], "of the time a chunk takes");
    stream_close(&stream);
    free(memory);
}

static uint8_t *read_text(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    uint8_t *text = malloc(TEXT_BYTES_MAX);
    if (!f || !text) {
        fprintf(stderr, "bench: %s: %s (run from the top of the repository)\n", path,
                strerror(errno));
        exit(1);
    }
    *bytes = fread(text, 1, TEXT_BYTES_MAX, f);
    fclose(f);
    return text;
}

static void usage(void)
{
    puts("bench: speed of the engine, one figure a line\n"
         "  --model GGUF --adapter GGUF    default: those of `make model` and stream/adapters\n"
         "  --threads N (2)   --kernels MASK (all; 0: reference, see kernels.h)\n"
         "  --only WORD       figures whose name holds WORD\n"
         "  --tokens N        of an ingest run (8192)");
}

int main(int argc, char **argv)
{
    struct engine_options options = {.model_path = "build/models/smollm2-135m-instruct-q4_1.gguf",
                                     .adapter_path = "stream/adapters/smollm2-135m-instruct.gguf",
                                     .threads = 2,
                                     .feature_mask = UINT32_MAX};
    struct bench b = {.stream_tokens = 8192};
    static const struct option longs[] = {{"model", 1, 0, 'm'},   {"adapter", 1, 0, 'a'},
                                          {"threads", 1, 0, 't'}, {"kernels", 1, 0, 'k'},
                                          {"only", 1, 0, 'o'},    {"tokens", 1, 0, 'n'},
                                          {"help", 0, 0, 'h'},    {0}};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        switch (c) {
        case 'm':
            options.model_path = optarg;
            break;
        case 'a':
            options.adapter_path = *optarg ? optarg : NULL;
            break;
        case 't':
            options.threads = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'k':
            options.feature_mask = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'o':
            b.only = optarg;
            break;
        case 'n':
            b.stream_tokens = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        default:
            usage();
            return c != 'h';
        }
    }
    char error[512];
    double start = seconds();
    if (engine_open(&b.engine, &options, error, sizeof error)) {
        fprintf(stderr, "bench: %s\n", error);
        return 1;
    }
    struct engine_info info;
    engine_info(b.engine, &info);
    printf("# %s, %s kernels, %u threads\n", info.model_name, info.kernels_name, info.threads);
    if (wanted(&b, "start"))
        figure("start", seconds() - start, "s from nothing to ready");
    b.logits = malloc(info.vocab_count * sizeof *b.logits);
    size_t bytes;
    uint8_t *text = read_text("LICENSE", &bytes);
    bench_tokenizer(&b, text, bytes);
    bench_history(&b, "prefill-512", 0, false);
    bench_history(&b, "decode-0", 0, true);
    bench_history(&b, "decode-4096", 4096, true);
    for (uint32_t ratio = 1; ratio <= STREAM_RATIO_MAX; ratio *= 2)
        bench_stream(&b, ratio);
    bench_flat(&b);
    free(text);
    free(b.tokens);
    free(b.logits);
    engine_close(&b.engine);
    return 0;
}
