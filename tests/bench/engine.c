/*
 * What the engine does in a second: projections, prefill, decode at several depths, ingest with
 * compression and spill, the COMP pass, answers from a stream's memory, the tokenizer.
 *
 * Prints one line a figure, "name value unit", so that a script can pair it with another program's
 * figures in one run. Where a limit of the machine bounds a figure, a line "name.macs" or
 * "name.bytes" says what one of its units takes: multiply-adds of the projections, or bytes read of
 * weights and KV rows. The text is the licence of this repository, over and over: speed does not
 * depend on what is read.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stream/internal.h"
#include "tests/bench/measure.h"

enum {
    PREFILL_TOKENS = 512,
    DECODE_TOKENS = 64,
    REPEATS = 5, /* of what takes a fraction of a second: the median counts */
    TEXT_BYTES_MAX = 1 << 20,
    FLAT_TENTH = 5120, /* tokens: more than ring and window hold */
    PASS_TOKENS = 64,
    SPILL_STREAM = 1,
};

struct bench {
    struct engine *engine;
    int32_t *tokens; /* [count] */
    uint32_t count;
    float *logits; /* [vocab] */
    const char *only, *spill;
    uint32_t stream_tokens, long_tokens;
    double row_macs, row_bytes, kv_bytes; /* of one token: projections, weights read, a KV row */
};

/* A stream, its fork, and where its cold segments go. */
struct timeline {
    struct stream *stream;
    struct fork *fork;
    struct spill *spill;
    void *memory, *fork_memory, *spill_memory;
    size_t fork_bytes;
};

static bool wanted(const struct bench *b, const char *name)
{
    return !b->only || strstr(name, b->only);
}

static void figure(const char *name, double value, const char *unit)
{
    printf("%-28s %10.2f %s\n", name, value, unit);
    fflush(stdout);
}

static void taking(const char *name, const char *what, double amount)
{
    char line[80];
    snprintf(line, sizeof line, "%s.%s", name, what);
    figure(line, amount, "each");
}

static void check(bool right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "bench: %s\n", what);
    exit(1);
}

static void *memory_of(size_t bytes, size_t align)
{
    void *memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    check(memory, "no memory");
    return memory;
}

static double projection_macs(const struct projection *p)
{
    double macs = 0;
    for (uint32_t i = 0; i < p->count; i++)
        macs += (double)p->part[i].rows * p->part[i].cols;
    return macs;
}

/* What a token takes at least. Packed weights are as large as the file's. */
static void count_work(struct bench *b)
{
    const struct engine *e = b->engine;
    const struct shape *s = &e->shape;
    for (uint32_t n = 0; n < s->layers; n++) {
        const struct layer *l = &e->layer[n];
        b->row_macs += projection_macs(&l->qkv) + projection_macs(&l->o) +
                       projection_macs(&l->gate_up) + projection_macs(&l->down);
    }
    bool tied = !gguf_tensor(e->model, "output.weight");
    for (size_t i = 0; i < gguf_tensor_count(e->model); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(e->model, i);
        if (t != e->embedding || tied)
            b->row_bytes += (double)t->data_bytes;
    }
    b->kv_bytes = 2.0 * s->layers * s->kv_dim * sizeof(f16);
}

static void project_all(struct bench *b, const struct projection *p, const void *q, float *out)
{
    struct kernels *k = b->engine->kernels;
    for (uint32_t i = 0; i < p->count; i++)
        k->matmul(k, out, p->part[i].rows, &p->part[i], NULL, 0, q, STREAM_BLOCK_TOKENS, false);
}

static void project_layers(struct bench *b, const float *x, void *q, float *out)
{
    const struct shape *s = &b->engine->shape;
    struct kernels *k = b->engine->kernels;
    for (uint32_t n = 0; n < s->layers; n++) {
        const struct layer *l = &b->engine->layer[n];
        k->quantize(k, q, x, STREAM_BLOCK_TOKENS, s->dim);
        project_all(b, &l->qkv, q, out);
        project_all(b, &l->o, q, out);
        project_all(b, &l->gate_up, q, out);
        k->quantize(k, q, x, STREAM_BLOCK_TOKENS, s->ff);
        project_all(b, &l->down, q, out);
    }
}

/* The projections of a block of tokens alone, layer after layer: weights come from memory. */
static void bench_projections(struct bench *b)
{
    const struct engine *e = b->engine;
    const struct shape *s = &e->shape;
    uint32_t widest = s->ff > s->dim ? s->ff : s->dim;
    size_t bytes = e->kernels->quantize_bytes(e->kernels, STREAM_BLOCK_TOKENS, widest);
    if (!wanted(b, "projections") || !e->layer[0].down.part[0].quantized)
        return;
    float *x = memory_of(sizeof *x * STREAM_BLOCK_TOKENS * widest, 64);
    float *out = memory_of(sizeof *out * STREAM_BLOCK_TOKENS * 2 * s->ff, 64);
    void *q = memory_of(bytes, 64);
    for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS * widest; i++)
        x[i] = (float)(i % 127) - 63;
    double took[REPEATS];
    for (uint32_t r = 0; r < REPEATS; r++) {
        double start = seconds();
        for (uint32_t at = 0; at < PREFILL_TOKENS; at += STREAM_BLOCK_TOKENS)
            project_layers(b, x, q, out);
        took[r] = seconds() - start;
    }
    figure("projections", PREFILL_TOKENS / median(took, REPEATS), "tokens/s");
    taking("projections", "macs", b->row_macs);
    free(x);
    free(out);
    free(q);
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

/* Reads 512 tokens, or answers 64 from `at` on. */
static double history_seconds(struct bench *b, struct history *h, uint32_t at, bool decode)
{
    double start = seconds();
    if (!decode) {
        history_score(h, b->tokens, NULL, PREFILL_TOKENS, NULL, NULL);
        forward_logits(b->engine, STREAM_BLOCK_TOKENS - 1, 1, b->logits);
    }
    for (uint32_t i = 0; decode && i < DECODE_TOKENS; i++) {
        history_score(h, b->tokens + at + i, NULL, 1, NULL, NULL);
        forward_logits(b->engine, 0, 1, b->logits);
    }
    return seconds() - start;
}

static void bench_history(struct bench *b, const char *name, uint32_t depth, bool decode)
{
    struct history *h;
    double took[REPEATS];
    if (!wanted(b, name))
        return;
    uint32_t each = decode ? DECODE_TOKENS : PREFILL_TOKENS;
    if (history_open(&h, b->engine, depth + PREFILL_TOKENS + REPEATS * DECODE_TOKENS, false))
        exit(1);
    history_score(h, b->tokens, NULL, decode ? depth : STREAM_BLOCK_TOKENS, NULL, NULL);
    for (uint32_t r = 0; r < REPEATS; r++) {
        if (!depth)
            history_reset(h);
        took[r] = history_seconds(b, h, depth + (depth ? r * each : 0), decode);
    }
    figure(name, each / median(took, REPEATS), "tokens/s");
    double rows = depth + (depth ? 0.5 * REPEATS : 0.5) * DECODE_TOKENS;
    taking(name, decode ? "bytes" : "macs",
           decode ? b->row_bytes + rows * b->kv_bytes : b->row_macs);
    history_close(&h);
}

/* ---- streams ---- */

static void segment_leaves(void *user, const struct segment_view *segment)
{
    struct timeline *t = user;
    while (spill_put(t->spill, SPILL_STREAM, segment, 0, 0) == -EAGAIN)
        spill_step(t->spill, true);
    spill_step(t->spill, false);
}

static void spill_begin(struct bench *b, struct timeline *t)
{
    struct spill_options options = {.folder = b->spill,
                                    .streams_max = 1,
                                    .staging_max = 16,
                                    .fetches_max = 1,
                                    .dtype = SEGMENT_F16};
    char error[256];
    size_t bytes = spill_bytes(b->engine, &options);
    t->spill_memory = memory_of(bytes, 4096);
    if (spill_open(&t->spill, b->engine, &options, t->spill_memory, (bytes + 4095) / 4096 * 4096,
                   error, sizeof error))
        check(false, error);
    check(spill_attach(t->spill, SPILL_STREAM, (uint64_t)getpid()) == 0, "cannot spill");
    stream_on_segment_leave(t->stream, segment_leaves, t);
}

/* False: the adapter does not serve the ratio. */
static bool timeline_open(struct bench *b, struct timeline *t, uint32_t ratio, bool spill)
{
    struct stream_options options = {.dmc_ratio = ratio};
    char error[256];
    size_t bytes = stream_bytes(b->engine, &options, error, sizeof error);
    *t = (struct timeline){0};
    if (!bytes)
        return false;
    t->memory = memory_of(bytes, 64);
    t->fork_bytes = fork_bytes(b->engine, &options);
    t->fork_memory = memory_of(t->fork_bytes, 64);
    check(stream_open(&t->stream, b->engine, &options, t->memory, bytes) == 0, "no stream");
    if (spill)
        spill_begin(b, t);
    return true;
}

static void timeline_close(struct timeline *t)
{
    if (t->spill)
        spill_close(&t->spill);
    stream_close(&t->stream);
    free(t->memory);
    free(t->fork_memory);
    free(t->spill_memory);
}

/* Ingest from an empty stream on; `closing`: what the pass that ends a chunk takes longer than
 * others, which is COMP and the slide. */
static double ingest(struct bench *b, struct timeline *t, uint32_t tokens, double *closing)
{
    uint32_t chunk = b->engine->shape.chunk, ends = 0, others = 0;
    double *end = memory_of(sizeof *end * (tokens / PASS_TOKENS + 1), 64);
    double *other = memory_of(sizeof *other * (tokens / PASS_TOKENS + 1), 64);
    double start = seconds();
    for (uint32_t at = 0; at < tokens; at += PASS_TOKENS) {
        double before = seconds();
        stream_feed(t->stream, b->tokens + at % (b->count - PASS_TOKENS), PASS_TOKENS);
        if ((at + PASS_TOKENS) % chunk == 0)
            end[ends++] = seconds() - before;
        else
            other[others++] = seconds() - before;
    }
    double took = seconds() - start;
    *closing = median(end, ends) - median(other, others);
    free(end);
    free(other);
    return took;
}

/* A fork's answer. `context` names it: "2x", "long". */
static void bench_answer(struct bench *b, struct timeline *t, const char *context)
{
    char name[64];
    check(fork_open(&t->fork, t->stream, t->fork_memory, t->fork_bytes) == 0, "no fork");
    double start = seconds();
    fork_feed(t->fork, b->tokens, STREAM_BLOCK_TOKENS);
    snprintf(name, sizeof name, "first-token-%s", context);
    figure(name, 1e3 * (seconds() - start), "ms after a question of 32 tokens");
    start = seconds();
    for (uint32_t i = 0; i < DECODE_TOKENS; i++)
        fork_feed(t->fork, b->tokens + i, 1);
    snprintf(name, sizeof name, "answer-%s", context);
    figure(name, DECODE_TOKENS / (seconds() - start), "tokens/s");
    double rows = stream_rows_now(t->stream) + STREAM_BLOCK_TOKENS + 0.5 * DECODE_TOKENS;
    taking(name, "bytes", b->row_bytes + rows * b->kv_bytes);
    fork_close(&t->fork);
}

static void bench_stream(struct bench *b, uint32_t ratio)
{
    struct timeline t;
    char name[64], context[16];
    double closing;
    snprintf(context, sizeof context, "%ux", ratio);
    snprintf(name, sizeof name, "ingest-%ux", ratio);
    if (!wanted(b, name) || !timeline_open(b, &t, ratio, false))
        return;
    figure(name, b->stream_tokens / ingest(b, &t, b->stream_tokens, &closing), "tokens/s");
    bench_answer(b, &t, context);
    timeline_close(&t);
}

/* A long text at 2x: DMC, COMP and, with a folder for cold segments, spill. */
static void bench_long(struct bench *b)
{
    struct timeline t;
    double closing;
    if (!wanted(b, "long") || !timeline_open(b, &t, 2, b->spill != NULL))
        return;
    figure("ingest-long", b->long_tokens / ingest(b, &t, b->long_tokens, &closing), "tokens/s");
    taking("ingest-long", "macs",
           b->row_macs * (1 + (double)b->engine->shape.comp / b->engine->shape.chunk));
    figure("comp-pass", b->engine->shape.comp / closing, "rows/s");
    taking("comp-pass", "macs", b->row_macs);
    bench_answer(b, &t, "long");
    timeline_close(&t);
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
         "  --tokens N        of an ingest run (8192)\n"
         "  --long N          of the long text (65536)\n"
         "  --spill FOLDER    where the long text's stream keeps its cold segments");
}

/* False: say how it is used. */
static bool options_read(int argc, char **argv, struct engine_options *options, struct bench *b)
{
    static const struct option longs[] = {{"model", 1, 0, 'm'},   {"adapter", 1, 0, 'a'},
                                          {"threads", 1, 0, 't'}, {"kernels", 1, 0, 'k'},
                                          {"only", 1, 0, 'o'},    {"tokens", 1, 0, 'n'},
                                          {"spill", 1, 0, 's'},   {"long", 1, 0, 'l'},
                                          {"help", 0, 0, 'h'},    {0}};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        switch (c) {
        case 'm':
            options->model_path = optarg;
            break;
        case 'a':
            options->adapter_path = *optarg ? optarg : NULL;
            break;
        case 't':
            options->threads = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'k':
            options->feature_mask = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'o':
            b->only = optarg;
            break;
        case 'n':
            b->stream_tokens = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 'l':
            b->long_tokens = (uint32_t)strtoul(optarg, NULL, 0);
            break;
        case 's':
            b->spill = optarg;
            break;
        default:
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct engine_options options = {.model_path = "build/models/smollm2-135m-instruct-q4_1.gguf",
                                     .adapter_path = "stream/adapters/smollm2-135m-instruct.gguf",
                                     .threads = 2,
                                     .feature_mask = UINT32_MAX};
    struct bench b = {.stream_tokens = 8192, .long_tokens = 65536};
    if (!options_read(argc, argv, &options, &b)) {
        usage();
        return 1;
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
    count_work(&b);
    bench_projections(&b);
    bench_history(&b, "prefill-512", 0, false);
    bench_history(&b, "decode-0", 0, true);
    bench_history(&b, "decode-4096", 4096, true);
    for (uint32_t ratio = 1; ratio <= STREAM_RATIO_MAX; ratio *= 2)
        bench_stream(&b, ratio);
    bench_long(&b);
    if (b.only) /* takes long, and the tests hold it too */
        bench_flat(&b);
    free(text);
    free(b.tokens);
    free(b.logits);
    engine_close(&b.engine);
    return 0;
}
