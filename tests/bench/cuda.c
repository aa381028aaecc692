/*
 * What a GPU does in a second: ingest of many streams, the projections alone, answers of many
 * forks, with compressed memory and with all rows kept; and what each op takes of it.
 *
 * One CSV row a figure: figure, streams, value, unit, then what it ran with. Every figure is the
 * median of its rounds; the text is this repository's licence or --text, tokenised, each stream
 * beginning elsewhere in it.
 */
#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stream/gpu.h"
#include "tests/bench/measure.h"

enum { ROUNDS = 3, TEXT_BYTES_MAX = 8 << 20, STREAMS_MAX = 8192 };

struct bench {
    struct engine *engine;
    struct engine_info info;
    int32_t *tokens; /* [count] */
    size_t count;
    uint32_t streams, ratio, tail;
    bool apart;        /* SwiGLU in an op of its own */
    uint32_t chunks;   /* of a stream, timed */
    uint64_t position; /* in each stream's text */
    uint64_t left;     /* segments */
    const char *commit;
};

struct held {
    struct stream *stream;
    void *memory;
};

static void figure(const struct bench *b, const char *name, uint32_t streams, double value,
                   const char *unit)
{
    printf("%s,%u,%u,%.6g,%s,\"%s\",%s\n", name, b->ratio, streams, value, unit,
           b->info.kernels_name, b->commit);
    fflush(stdout);
}

static struct held open_stream(struct bench *b)
{
    struct stream_options options = {.dmc_ratio = b->ratio};
    char error[256] = "";
    size_t bytes = stream_bytes(b->engine, &options, error, sizeof error);
    struct held h = {.memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63)};
    if (!bytes || !h.memory)
        die(*error ? error : "no memory");
    int code = stream_open(&h.stream, b->engine, &options, h.memory, bytes);
    if (code)
        die(code == -ENOMEM ? "no room on the device for so many streams" : strerror(-code));
    return h;
}

static const int32_t *text_at(const struct bench *b, uint32_t stream, uint64_t position,
                              uint32_t count)
{
    uint64_t at = (stream * 7919ull + position) % (b->count - count);
    return b->tokens + at;
}

static void segment_left(void *user, const struct segment_view *segment)
{
    struct bench *b = user;
    (void)segment;
    b->left++;
}

/* The next tokens of every stream, in one call. */
static void feed_all(struct bench *b, struct held *h, uint32_t streams, uint32_t count)
{
    static struct stream_work work[STREAMS_MAX];
    for (uint32_t i = 0; i < streams; i++)
        work[i] = (struct stream_work){h[i].stream, text_at(b, i, b->position, count), count, 0};
    int code = streams_feed(work, streams);
    if (code)
        die(code == -EIO ? b->engine->gpu->cuda->error_text : strerror(-code));
    b->position += count;
}

/* Rings are filled first, so that segments leave in every chunk that is timed. */
static double bench_ingest(struct bench *b, struct held *h, uint32_t streams, bool spill)
{
    uint32_t chunk = b->info.chunk_tokens, fill = b->info.ring_segments + 2;
    double rate[ROUNDS], ratio = 0;
    for (uint32_t i = 0; i < streams; i++) {
        h[i] = open_stream(b);
        if (spill)
            stream_on_segment_leave(h[i].stream, segment_left, b);
    }
    b->position = 0;
    for (uint32_t c = 0; c < fill; c++)
        feed_all(b, h, streams, chunk);
    b->left = 0;
    for (uint32_t r = 0; r < ROUNDS; r++) {
        double start = seconds();
        feed_all(b, h, streams, b->chunks * chunk);
        rate[r] = (double)streams * b->chunks * chunk / (seconds() - start);
    }
    for (uint32_t i = 0; i < streams; i++) {
        struct stream_stat stat;
        stream_stat(h[i].stream, &stat);
        ratio += stat.ratio_realised / streams;
    }
    figure(b, spill ? "ingest-segments-out" : "ingest", streams, median(rate, ROUNDS), "tokens/s");
    figure(b, "ratio-realised", streams, ratio, "x");
    if (spill)
        figure(b, "segments-out", streams, (double)b->left, "segments");
    return median(rate, ROUNDS);
}

static void close_streams(struct held *h, uint32_t streams)
{
    for (uint32_t i = 0; i < streams; i++) {
        stream_close(&h[i].stream);
        free(h[i].memory);
    }
}

/* Rows that a token of ingest costs: COMP's among them. */
static double rows_per_token(const struct bench *b)
{
    double chunk = b->info.chunk_tokens;
    return (chunk + b->engine->shape.comp) / chunk;
}

/* The projections of as many rows as a pass has, nothing else: what ingest can come near to. On
 * what the passes before left, for a product of zeros is a faster one. */
static double bench_projections(struct bench *b, uint32_t rows)
{
    struct gpu *g = b->engine->gpu;
    struct cuda *c = g->cuda;
    double rate[ROUNDS];
    rows = rows < g->rows_max ? rows : g->rows_max;
    enum gpu_kind kind = b->ratio > 1 ? GPU_DMC : GPU_BASE;
    c->few = false;
    for (uint32_t r = 0; r <= ROUNDS; r++) { /* the first warms up */
        double start = c->seconds(c);
        for (uint32_t n = 0; n < b->info.layer_count; n++) {
            const struct gpu_layer *l = &g->layer[n];
            const struct cuda_weight *qkv = &l->qkv[kind].made, *o = &l->o[kind].made;
            const struct cuda_weight *gate_up = &l->gate_up.made, *down = &l->down.made;
            c->matmul(c, g->batch.qkv, CUDA_OUT_F32, qkv->rows, qkv, g->batch.h, rows);
            c->matmul(c, g->batch.x, CUDA_OUT_F32_ADD, o->rows, o, g->batch.att, rows);
            c->matmul(c, g->batch.gate_up, CUDA_OUT_BF16, gate_up->rows, gate_up, g->batch.h, rows);
            c->matmul(c, g->batch.x, CUDA_OUT_F32_ADD, down->rows, down, g->batch.act, rows);
        }
        if (r)
            rate[r - 1] = rows / (c->seconds(c) - start);
    }
    figure(b, "projections-alone", rows, median(rate, ROUNDS), "rows/s");
    return median(rate, ROUNDS);
}

/* ---- what an op takes ---- */

enum op {
    OP_NORM,
    OP_WEIGHTS, /* made bf16 */
    OP_QKV,
    OP_ROWS,
    OP_ATTEND,
    OP_O,
    OP_GATE_UP,
    OP_SWIGLU,
    OP_DOWN,
    OP_SLIDE,
    OP_OTHER,
    OPS
};

/* The device's table as it was, and seconds of each op: none runs beside another then. */
static struct {
    struct cuda was;
    const struct gpu *gpu;
    double seconds[OPS];
} timed;

#define TIMED(c, op, call)                                                                         \
    do {                                                                                           \
        double start = (c)->seconds(c);                                                            \
        timed.was.call;                                                                            \
        timed.seconds[op] += (c)->seconds(c) - start;                                              \
    } while (0)

static void timed_norm(struct cuda *c, const struct cuda_batch *b, const float *weight,
                       const float *decide, uint32_t from, uint32_t to)
{
    TIMED(c, OP_NORM, norm(c, b, weight, decide, from, to));
}

static void timed_weight_make(struct cuda *c, struct cuda_weight *out, const void *source,
                              enum tensor_type type, const struct cuda_lora *lora, uint32_t loras)
{
    TIMED(c, OP_WEIGHTS, weight_make(c, out, source, type, lora, loras));
}

static void timed_rows(struct cuda *c, const struct cuda_batch *b, uint32_t layer,
                       const float *bias)
{
    TIMED(c, OP_ROWS, make_rows(c, b, layer, bias));
}

static void timed_attend(struct cuda *c, const struct cuda_batch *b, uint32_t layer)
{
    TIMED(c, OP_ATTEND, attend(c, b, layer));
}

static void timed_gate(struct cuda *c, const struct cuda_batch *b, const struct cuda_weight *w)
{
    double *part = timed.seconds, start = c->seconds(c),
           before = part[OP_GATE_UP] + part[OP_SWIGLU];
    timed.was.gate(c, b, w);
    double took = c->seconds(c) - start;
    part[OP_GATE_UP] +=
        took - (part[OP_GATE_UP] + part[OP_SWIGLU] - before); /* it may be two ops */
}

static void timed_swiglu(struct cuda *c, const struct cuda_batch *b)
{
    TIMED(c, OP_SWIGLU, swiglu(c, b));
}

static void timed_matmul(struct cuda *c, void *out, enum cuda_out kind, size_t out_stride,
                         const struct cuda_weight *w, const bf16 *x, uint32_t rows)
{
    size_t at = (size_t)((const char *)w - (const char *)timed.gpu->layer);
    size_t member = at % sizeof(struct gpu_layer);
    enum op op = member >= offsetof(struct gpu_layer, down)      ? OP_DOWN
                 : member >= offsetof(struct gpu_layer, gate_up) ? OP_GATE_UP
                 : member >= offsetof(struct gpu_layer, o)       ? OP_O
                                                                 : OP_QKV;
    TIMED(c, op, matmul(c, out, kind, out_stride, w, x, rows));
}

static void timed_slide(struct cuda *c, const struct cuda_slide *slide, uint32_t count,
                        uint32_t heads, uint32_t head_dim)
{
    TIMED(c, OP_SLIDE, slide(c, slide, count, heads, head_dim));
}

static void timed_embed(struct cuda *c, const struct cuda_batch *b, const void *table,
                        enum tensor_type type, const float *comp)
{
    TIMED(c, OP_OTHER, embed(c, b, table, type, comp));
}

static void timed_rotations(struct cuda *c, float *out, const int64_t *position, uint32_t rows,
                            const double *inverse_frequency, uint32_t head_dim)
{
    TIMED(c, OP_OTHER, rotations(c, out, position, rows, inverse_frequency, head_dim));
}

/* A chunk of every stream, op by op. */
static void bench_ops(struct bench *b, struct held *h, uint32_t streams)
{
    static const char *const names[] = {"op-norms",  "op-weights", "op-qkv",     "op-entries",
                                        "op-attend", "op-o",       "op-gate-up", "op-swiglu",
                                        "op-down",   "op-slide",   "op-other"};
    struct cuda *c = b->engine->gpu->cuda;
    double rows = (double)streams * b->info.chunk_tokens * rows_per_token(b);
    timed.was = *c;
    timed.gpu = b->engine->gpu;
    c->norm = timed_norm;
    c->weight_make = timed_weight_make;
    c->make_rows = timed_rows;
    c->attend = timed_attend;
    c->gate = timed_gate;
    c->swiglu = timed_swiglu;
    c->matmul = timed_matmul;
    c->slide = timed_slide;
    c->embed = timed_embed;
    c->rotations = timed_rotations;
    feed_all(b, h, streams, b->info.chunk_tokens);
    c->norm = timed.was.norm;
    c->weight_make = timed.was.weight_make;
    c->make_rows = timed.was.make_rows;
    c->attend = timed.was.attend;
    c->gate = timed.was.gate;
    c->swiglu = timed.was.swiglu;
    c->matmul = timed.was.matmul;
    c->slide = timed.was.slide;
    c->embed = timed.was.embed;
    c->rotations = timed.was.rotations;
    for (int i = 0; i < OPS; i++)
        figure(b, names[i], streams, timed.seconds[i] / rows / b->info.layer_count * 32000 * 1e6,
               "us a layer of 32000 rows");
}

/* Copies on the device, read and written bytes: what decode can come near to. */
static void bench_bandwidth(struct bench *b)
{
    enum { BYTES = 1 << 30, COPIES = 16 };
    struct gpu *g = b->engine->gpu;
    struct cuda *c = g->cuda;
    char *from, *to;
    double rate[ROUNDS];
    if (!gpu_take(g, BYTES, &from, NULL) || !gpu_take(g, BYTES, &to, NULL))
        die("no room on the device for two pieces of 1 GiB");
    for (uint32_t r = 0; r < ROUNDS; r++) {
        double start = c->seconds(c);
        for (int i = 0; i < COPIES; i++)
            c->copy(c, to, from, BYTES);
        rate[r] = 2.0 * BYTES * COPIES / (c->seconds(c) - start);
    }
    figure(b, "bandwidth", 1, median(rate, ROUNDS), "bytes/s");
    gpu_give(g, from);
    gpu_give(g, to);
}

/* ---- attention alone ---- */

/* Keys that a query of the next pass would see of a stream's memory in the last layer, the mean of
 * its heads. */
static double keys_seen(const struct bench *b, const struct stream *s)
{
    const struct layout *l = &s->layout;
    uint32_t first, kv_heads = b->engine->gpu->shape.kv_heads, entries = 0;
    for (uint32_t h = l->heads - kv_heads; h < l->heads; h++)
        for (int w = 0; w < 2; w++)
            entries += STATE_AT_CONST(s->state, l->count[w], uint32_t)[h];
    return ccm_visible(b->engine, l, s->state, &first) + pin_rows(l, s->state) +
           (double)entries / kv_heads + window_raw_rows(l, s->state->chunk_tokens);
}

/* The last pass's batch, which lies on the device until the next. */
static struct {
    struct cuda_batch batch;
    void (*attend)(struct cuda *c, const struct cuda_batch *b, uint32_t layer);
} noted;

static void note_attend(struct cuda *c, const struct cuda_batch *b, uint32_t layer)
{
    noted.batch = *b;
    noted.attend(c, b, layer);
}

/* Attention of the last pass in the last layer, again and again: nothing has changed since what it
 * reads there. keys: before an item's own rows, the mean; readers: items that share them. */
static void bench_attend(struct bench *b, const char *name, double keys, double readers)
{
    enum { TIMES = 20 };
    struct cuda *c = b->engine->gpu->cuda;
    const struct cuda_batch *p = &noted.batch;
    const struct cuda_shape *s = &p->shape;
    double time[ROUNDS], each = (double)p->rows / p->items;
    for (uint32_t r = 0; r < ROUNDS; r++) {
        double start = c->seconds(c);
        for (int i = 0; i < TIMES; i++)
            noted.attend(c, p, b->info.layer_count - 1);
        time[r] = (c->seconds(c) - start) / TIMES;
    }
    double products = p->rows * (keys + (each + 1) / 2), took = median(time, ROUNDS);
    double rows = (keys / readers * p->items + p->rows) * s->kv_heads * 2 * sizeof(f16);
    double ends = (double)p->rows * s->heads * (sizeof(float) + sizeof(bf16));
    printf("# %s: %u rows of %u items, %.1f keys before each\n", name, p->rows, p->items, keys);
    figure(b, name, p->items, took * 1e6, "us");
    figure(b, name, p->items, 4 * products * s->heads * s->head_dim / took, "flop/s");
    figure(b, name, p->items, (rows + ends) * s->head_dim / took, "bytes/s");
}

/* As of a pass of ingest: half a chunk of as many streams as fit. */
static void bench_attend_ingest(struct bench *b, struct held *h, uint32_t streams)
{
    uint32_t half = b->info.chunk_tokens / 2;
    uint32_t fit = b->engine->gpu->rows_max / (half + b->engine->shape.comp) - 1;
    double keys = 0;
    streams = streams < fit ? streams : fit;
    for (uint32_t i = 0; i < streams; i++)
        keys += keys_seen(b, h[i].stream) / 2 / streams;
    feed_all(b, h, streams, half);
    for (uint32_t i = 0; i < streams; i++)
        keys += keys_seen(b, h[i].stream) / 2 / streams;
    bench_attend(b, "attend-ingest", keys, half / STREAM_BLOCK_TOKENS);
}

/* Of a step: bf16 ones are read; kept ones are read as they are and, where they are made bf16,
 * written and read as that. */
static size_t weight_moved(const struct gpu_weight *w, bool makes)
{
    size_t made = (size_t)w->made.rows * w->made.cols * sizeof(bf16);
    size_t kept = 0;
    for (uint32_t i = 0; i < w->parts; i++)
        kept += w->part[i].rows * tensor_row_bytes(w->part[i].type, w->made.cols);
    return kept && makes ? kept + 2 * made : kept ? kept : made;
}

static size_t weights_moved(const struct bench *b, uint32_t forks)
{
    const struct gpu *g = b->engine->gpu;
    bool makes = g->makes || forks > CUDA_FILE_ROWS;
    size_t bytes = weight_moved(&g->head, makes);
    for (uint32_t n = 0; n < b->info.layer_count; n++) {
        const struct gpu_layer *l = &g->layer[n];
        bytes += weight_moved(&l->qkv[GPU_BASE], makes) + weight_moved(&l->o[GPU_BASE], makes) +
                 weight_moved(&l->gate_up, makes) + weight_moved(&l->down, makes);
    }
    return bytes;
}

/* One greedy token of every fork a step. */
static void decode_steps(struct bench *b, struct fork_work *work, int32_t *token, uint32_t count,
                         const char *name, double row_bytes)
{
    enum { STEPS = 16 };
    double rate[ROUNDS];
    for (uint32_t i = 0; i < count; i++) {
        token[i] = *text_at(b, i, 0, 1);
        work[i].tokens = &token[i];
        work[i].best = &token[i];
        work[i].count = 1;
    }
    for (uint32_t r = 0; r < ROUNDS; r++) {
        double start = seconds();
        for (int s = 0; s < STEPS; s++)
            if (forks_feed(work, count))
                die(b->engine->gpu->cuda->error_text);
        rate[r] = (double)count * STEPS / (seconds() - start);
    }
    figure(b, name, count, median(rate, ROUNDS), "tokens/s");
    figure(b, "kv-bytes", count, row_bytes, "bytes");
    /* Of the four kinds of q, k, v and o one is read a step; what a stream's fork holds counts
     * whole. */
    figure(b, "decode-bytes", count,
           median(rate, ROUNDS) / count * (row_bytes + (double)weights_moved(b, count)), "bytes/s");
}

static void bench_decode(struct bench *b, struct held *h, uint32_t count)
{
    static struct fork_work work[STREAMS_MAX];
    static struct fork fork[STREAMS_MAX];
    static int32_t token[STREAMS_MAX];
    struct gpu *g = b->engine->gpu;
    size_t before = 0, bytes = 0;
    for (uint32_t i = 0; i < g->regions; i++)
        before += g->region[i].bytes;
    for (uint32_t i = 0; i < count; i++) {
        fork[i] = (struct fork){.stream = *h[i].stream};
        struct fork *f = &fork[i];
        f->stream.leave = NULL;
        f->position = f->stream.state->tokens;
        f->logits = NULL;
        if (gpu_fork_open(f, h[i].stream, b->tail))
            die("no room on the device for so many forks");
        work[i] = (struct fork_work){.fork = f};
    }
    for (uint32_t i = 0; i < g->regions; i++)
        bytes += g->region[i].bytes;
    decode_steps(b, work, token, count, "decode-compressed", (double)(bytes - before));
    double keys = 0;
    for (uint32_t i = 0; i < count; i++)
        keys += (fork[i].tail.count - 1 + keys_seen(b, &fork[i].stream)) / count;
    bench_attend(b, "attend-decode", keys, 1);
    for (uint32_t i = 0; i < count; i++)
        gpu_fork_close(&fork[i]);
}

/* All of `depth` rows kept: they hold what the device's memory holds, which is read all the same.
 */
static void bench_decode_full(struct bench *b, uint32_t count, uint32_t depth)
{
    static struct fork_work work[STREAMS_MAX];
    static struct fork fork[STREAMS_MAX];
    static int32_t token[STREAMS_MAX];
    struct gpu *g = b->engine->gpu;
    if (depth > b->engine->shape.context)
        die("-x: more rows than the model was trained for");
    size_t row = 2 * sizeof(f16) * g->heads * g->shape.head_dim;
    for (uint32_t i = 0; i < count; i++) {
        fork[i] = (struct fork){.stream = {.engine = b->engine}};
        if (gpu_tail_open(&fork[i], b->engine, depth + 64))
            die("no room on the device for so many rows");
        static struct state none;
        fork[i].stream.state = &none;
        fork[i].tail.count = depth;
        work[i] = (struct fork_work){.fork = &fork[i]};
    }
    decode_steps(b, work, token, count, "decode-full", (double)row * (depth + 64) * count);
    bench_attend(b, "attend-full", fork[0].tail.count - 1, 1);
    for (uint32_t i = 0; i < count; i++)
        gpu_fork_close(&fork[i]);
}

static void read_text(struct bench *b, const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *text = malloc(TEXT_BYTES_MAX);
    struct token_text state = {0};
    if (!f || !text)
        die("cannot read the text (run from the top of the repository, or name --text)");
    size_t bytes = fread(text, 1, TEXT_BYTES_MAX, f);
    fclose(f);
    size_t one = token_count_max(&state, bytes);
    b->tokens = malloc((one + 65536) * 2 * sizeof *b->tokens);
    if (!b->tokens)
        die("no memory");
    const struct tokenizer *t = engine_tokenizer(b->engine);
    b->count = token_feed(t, &state, text, bytes, b->tokens);
    for (size_t i = 0; b->count < 65536; i++) /* a short text again */
        b->tokens[b->count++] = b->tokens[i];
    free(text);
}

static void bench_all_ingest(struct bench *b, struct held *h)
{
    uint32_t n = b->streams;
    bench_bandwidth(b);
    double rate = bench_ingest(b, h, n, false) * rows_per_token(b);
    double alone = bench_projections(b, (uint32_t)(n * b->info.chunk_tokens * rows_per_token(b)));
    figure(b, "ingest-rows", n, rate, "rows/s");
    figure(b, "ingest-of-projections", n, rate / alone, "1");
    bench_ops(b, h, n);
    bench_attend_ingest(b, h, n);
    close_streams(h, n);
    (void)bench_ingest(b, h, n, true);
    close_streams(h, n);
}

int main(int argc, char **argv)
{
    struct engine_options options = {.model_path = "build/models/smollm2-135m-instruct-q4_1.gguf",
                                     .adapter_path = "stream/adapters/smollm2-135m-instruct.gguf",
                                     .device = DEVICE_CUDA,
                                     .threads = 1,
                                     .feature_mask = UINT32_MAX};
    struct bench b = {.streams = 1000, .ratio = 2, .tail = 256, .chunks = 2, .commit = "unknown"};
    const char *text = "LICENSE", *only = "", *weights = "";
    uint32_t depth = 8192;
    for (int c; (c = getopt(argc, argv, "m:a:t:n:d:r:c:k:o:x:M:w:g")) != -1;) {
        unsigned long n = optarg ? strtoul(optarg, NULL, 0) : 0;
        if (c == 'm')
            options.model_path = optarg;
        else if (c == 'a')
            options.adapter_path = *optarg ? optarg : NULL;
        else if (c == 't')
            text = optarg;
        else if (c == 'n')
            b.streams = n < STREAMS_MAX ? (uint32_t)n : STREAMS_MAX;
        else if (c == 'd')
            b.ratio = (uint32_t)n;
        else if (c == 'r')
            options.batch_rows = (uint32_t)n;
        else if (c == 'M')
            options.device_bytes = n;
        else if (c == 'w')
            options.device_weights = strcmp(weights = optarg, "bf16") ? WEIGHTS_FILE : WEIGHTS_BF16;
        else if (c == 'c')
            b.chunks = (uint32_t)n;
        else if (c == 'k')
            b.commit = optarg;
        else if (c == 'o')
            only = optarg;
        else if (c == 'x')
            depth = (uint32_t)n;
        else if (c == 'g')
            b.apart = true;
        else
            die("-m GGUF -a ADAPTER -t TEXT -n STREAMS -d RATIO -r ROWS -c CHUNKS -k COMMIT -o "
                "ingest|decode|full -x DEPTH -M DEVICE_BYTES -w bf16|file|made -g");
    }
    char error[512];
    if (engine_open(&b.engine, &options, error, sizeof error))
        die(error);
    engine_info(b.engine, &b.info);
    noted.attend = b.engine->gpu->cuda->attend;
    b.engine->gpu->cuda->attend = note_attend;
    b.engine->gpu->cuda->apart = b.apart;
    b.engine->gpu->makes = strcmp(weights, "made") == 0;
    figure(&b, b.info.device_scratch_bytes ? "weights-kept" : "weights-bf16", 0,
           (double)b.info.device_weights_bytes, "bytes");
    read_text(&b, text);
    static struct held h[STREAMS_MAX];
    if (!*only || strstr(only, "ingest"))
        bench_all_ingest(&b, h);
    if (strstr(only, "decode")) {
        (void)bench_ingest(&b, h, b.streams, false);
        for (uint32_t count = b.streams; count >= 1; count /= 4)
            bench_decode(&b, h, count);
    }
    if (strstr(only, "full"))
        for (uint32_t count = b.streams; count >= 1; count /= 4)
            bench_decode_full(&b, count, depth);
    engine_close(&b.engine);
    return 0;
}
