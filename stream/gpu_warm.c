/*
 * A device before the first stream comes. A block of a stream and a question are computed, of
 * nothing, so that all kernels are loaded, algorithms chosen and buffers touched; then each size of
 * pass that one stream and its question have is recorded. Else all of that is taken little by
 * little, the last of it after millions of tokens. What many streams and questions do together has
 * too many sizes for that, and is recorded as it comes again.
 */
#include "stream/gpu.h"

#include <errno.h>
#include <stdlib.h>

enum { BLOCK = STREAM_BLOCK_TOKENS };

struct warm {
    struct engine *engine;
    struct stream *stream;
    struct fork *fork;
    void *stream_memory, *fork_memory;
    size_t fork_bytes;
    uint8_t *table;  /* of recall keys; NULL: none */
    f16 *segment;    /* zeros; NULL: the adapter makes none */
    int32_t *tokens; /* [chunk], all 0 */
};

static void *take(size_t bytes)
{
    return aligned_alloc(64, (bytes + 63) & ~(size_t)63);
}

static int open_warm(struct warm *w, uint32_t ratio)
{
    struct engine *e = w->engine;
    struct stream_options options = {.dmc_ratio = ratio};
    size_t bytes = stream_bytes(e, &options, NULL, 0);
    w->fork_bytes = fork_bytes(e, &options);
    w->stream_memory = take(bytes);
    w->fork_memory = take(w->fork_bytes);
    w->tokens = calloc(e->shape.chunk, sizeof *w->tokens);
    w->segment = e->gpu->segment_bytes ? calloc(1, e->gpu->segment_bytes) : NULL;
    w->table = recall_table_bytes(e) ? take(recall_table_bytes(e)) : NULL;
    if (!w->stream_memory || !w->fork_memory || !w->tokens ||
        (!w->segment && e->gpu->segment_bytes) || (!w->table && recall_table_bytes(e)))
        return -ENOMEM;
    return stream_open(&w->stream, e, &options, w->stream_memory, bytes);
}

static void close_warm(struct warm *w)
{
    fork_close(&w->fork);
    stream_close(&w->stream);
    free(w->fork_memory);
    free(w->stream_memory);
    free(w->tokens);
    free(w->segment);
    free(w->table);
}

/* ---- recorded ---- */

/* Some blocks of a stream's chunk, with its COMP rows where they end it; or of a prompt. */
static void record_blocks(struct warm *w, enum gpu_kind kind, uint32_t blocks, uint32_t comp,
                          uint32_t layers)
{
    struct engine *e = w->engine;
    struct gpu_slot *p = gpu_pass_begin(e);
    for (uint32_t i = 0; i < blocks; i++)
        gpu_pass_item(e, p, kind, w->tokens, BLOCK, 0, i > 0);
    if (comp)
        gpu_pass_item(e, p, kind + GPU_COMP - GPU_BASE, NULL, comp, 0, false);
    gpu_pass_record(e, p, layers);
}

static void record_reading(struct warm *w)
{
    const struct shape *shape = &w->engine->shape;
    enum gpu_kind kind = w->stream->layout.ratio > 1 ? GPU_DMC : GPU_BASE;
    uint32_t most = shape->chunk / BLOCK;
    most = most < CUDA_RUN_ITEMS ? most : CUDA_RUN_ITEMS;
    for (uint32_t blocks = 1; blocks <= most; blocks++) {
        record_blocks(w, kind, blocks, 0, shape->layers);
        if (w->stream->layout.ring)
            record_blocks(w, kind, blocks, shape->comp, shape->layers);
    }
}

/* An answer's next token, with so many keys in view at most. */
static void record_token(struct warm *w, uint32_t keys)
{
    struct engine *e = w->engine;
    struct gpu_slot *p = gpu_pass_begin(e);
    gpu_pass_item(e, p, GPU_BASE, w->tokens, 1, 0, false);
    p->keys_max = keys;
    gpu_pass_record(e, p, e->shape.layers);
}

/* What a fork of the stream sees at most. */
static uint32_t keys_most(const struct stream *s)
{
    return s->layout.fixed_rows + s->layout.pin_rows + STREAM_RECALL_MAX * s->engine->shape.comp +
           2 * s->window_most + 3 * CUDA_ITEM_ROWS + FORK_TOKENS_MAX;
}

static void record_asking(struct warm *w)
{
    const struct engine *e = w->engine;
    uint32_t keys = 0, most = keys_most(w->stream);
    if (w->table)
        record_blocks(w, GPU_BASE, 1, 0, e->recall.layer);
    record_blocks(w, GPU_BASE, 1, 0, e->shape.layers);
    while (keys < most)
        record_token(w, keys += GPU_KEYS_STEP);
}

/* ---- done ---- */

/* The last token has all keys in view that there may be, whatever there is. */
static int ask(struct warm *w)
{
    struct engine *e = w->engine;
    struct cold_segment segment[STREAM_RECALL_MAX];
    uint32_t count = 0;
    int code = fork_open(&w->fork, w->stream, w->fork_memory, w->fork_bytes);
    if (!code && w->segment)
        count = fork_recall_max(w->fork);
    for (uint32_t i = 0; i < count; i++)
        segment[i] = (struct cold_segment){.number = i, .weight = 1, .rows = w->segment};
    if (!code && w->table)
        code = fork_recall_table(w->fork, w->tokens, BLOCK, 0, w->table);
    if (!code && count)
        code = gpu_fork_recall(w->fork, segment, count); /* of no stream: none has left a ring */
    code = code ? code : fork_feed(w->fork, w->tokens, BLOCK);
    code = code ? code : fork_feed(w->fork, w->tokens, 1);
    if (code)
        return code;
    struct gpu_slot *p = gpu_pass_begin(e);
    struct cuda_item *item = gpu_pass_item(e, p, GPU_BASE, w->tokens, 1, 0, false);
    gpu_item_stream(&w->fork->stream, item);
    gpu_item_tail(&w->fork->tail, item);
    p->keys_max = keys_most(w->stream);
    gpu_pass_run(e, p);
    return e->gpu->cuda->sync(e->gpu->cuda);
}

static int warm_ratio(struct engine *e, uint32_t ratio)
{
    struct warm w = {.engine = e};
    uint32_t scored = 0;
    double nll = 0;
    int code = open_warm(&w, ratio);
    if (!code)
        code = stream_feed_scored(w.stream, w.tokens, BLOCK, &nll, &scored);
    code = code ? code : ask(&w);
    if (!code) {
        record_reading(&w);
        record_asking(&w);
        code = e->gpu->cuda->sync(e->gpu->cuda);
    }
    close_warm(&w);
    return code == -ENOMEM ? 0 : code; /* what a small arena has no room for comes when it comes */
}

int gpu_warm(struct engine *e)
{
    int code = warm_ratio(e, 1);
    for (uint32_t i = 0; i < e->info.ratio_count && !code; i++)
        if (e->info.ratio[i] > 1)
            return warm_ratio(e, e->info.ratio[i]); /* all of them compute alike */
    return code;
}
