/*
 * Streams and forks as pieces of the device's arena: opened, copied, read back; and questions,
 * whose rows are computed for many forks at once.
 *
 * A fork's copy of the state is never written: the tokens that waited for their block are computed
 * as rows of its tail, with the stream's own weights, and see what they would have seen in a block.
 */
#include "stream/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = STREAM_BLOCK_TOKENS };

/* ---- streams ---- */

int gpu_stream_open(struct stream *s)
{
    struct gpu *g = s->engine->gpu;
    const struct layout *l = &s->layout;
    const uint32_t *capacity = STATE_AT_CONST(s->state, l->capacity, uint32_t);
    if (!gpu_take(g, l->bytes, &s->device, NULL))
        return -ENOMEM;
    for (uint32_t h = 0; h < l->heads; h++)
        s->window_most = capacity[h] > s->window_most ? capacity[h] : s->window_most;
    gpu_stream_send(s);
    return 0;
}

void gpu_stream_send(struct stream *s)
{
    struct cuda *c = s->engine->gpu->cuda;
    c->copy_in(c, s->device, s->state, s->layout.fixed_k);
}

size_t gpu_stream_bytes(const struct layout *l)
{
    return gpu_aligned(l->bytes);
}

void gpu_stream_close(struct stream *s)
{
    gpu_give_leaving(s->engine);
    gpu_give(s->engine->gpu, s->device);
    s->device = NULL;
}

const void *gpu_stream_state(const struct stream *s)
{
    struct gpu *g = s->engine->gpu;
    size_t bytes = s->layout.bytes;
    if (bytes > g->state_host_bytes) {
        g->cuda->give_host(g->cuda, g->state_host);
        g->state_host = g->cuda->take_host(g->cuda, bytes);
        g->state_host_bytes = g->state_host ? bytes : 0;
    }
    if (!g->state_host)
        return NULL;
    g->cuda->copy_out(g->cuda, g->state_host, s->device, bytes);
    if (g->cuda->sync(g->cuda))
        return NULL;
    memcpy(g->state_host, s->state, s->layout.fixed_k);
    return g->state_host;
}

int gpu_stream_restore(struct stream *s, const void *state)
{
    struct gpu *g = s->engine->gpu;
    g->cuda->copy_in(g->cuda, s->device, state, s->layout.bytes); /* waits: not pinned */
    memcpy(s->state, state, s->layout.fixed_k);
    return g->cuda->sync(g->cuda);
}

/* ---- forks ---- */

size_t gpu_recall_values(const struct engine *e)
{
    return (size_t)e->gpu->heads * STREAM_RECALL_MAX * e->shape.comp * e->shape.head_dim;
}

/* The waiting tokens as the first rows of the tail. */
static int compute_pending(struct fork *f)
{
    struct stream *s = &f->stream;
    struct engine *e = s->engine;
    uint32_t rows = s->state->pending_count;
    if (!rows)
        return 0;
    struct gpu_slot *p = gpu_pass_begin(e);
    struct cuda_item *item =
        gpu_pass_item(e, p, s->layout.ratio > 1 ? GPU_DMC : GPU_BASE, s->state->pending, rows,
                      (int64_t)s->state->tokens, false);
    gpu_item_stream(s, item);
    gpu_item_tail(&f->tail, item);
    p->keys_max = e->shape.context;
    p->ragged = true; /* even of one token: too rare to be recorded */
    gpu_pass_run(e, p);
    f->tail.count = f->pending = rows;
    return e->gpu->cuda->sync(e->gpu->cuda);
}

int gpu_tail_open(struct fork *f, struct engine *e, uint32_t capacity)
{
    size_t bytes = gpu_tail_bytes(e, capacity);
    f->tail.capacity = capacity;
    if (!gpu_take(e->gpu, 2 * bytes, &f->tail.k, &f->tail.v))
        return -ENOMEM;
    f->tail.v = f->tail.k + bytes / sizeof(f16);
    return 0;
}

size_t gpu_fork_bytes(const struct engine *e, const struct layout *l)
{
    return gpu_aligned(l->bytes) + gpu_aligned(2 * gpu_recall_values(e) * sizeof(f16)) +
           gpu_aligned(2 * gpu_tail_bytes(e, FORK_TOKENS_MAX + BLOCK));
}

/* A fork's windows never grow: what they hold says more than what they have room for. */
static uint32_t window_most(const struct stream *s)
{
    uint32_t most = 0;
    for (int w = 0; w < 2; w++) {
        const uint32_t *count = STATE_AT_CONST(s->state, s->layout.count[w], uint32_t);
        for (uint32_t h = 0; h < s->layout.heads; h++)
            most = count[h] > most ? count[h] : most;
    }
    return most;
}

int gpu_fork_open(struct fork *f, const struct stream *from, uint32_t capacity)
{
    struct engine *e = from->engine;
    struct gpu *g = e->gpu;
    struct stream *s = &f->stream;
    size_t recalled = gpu_recall_values(e);
    if (!gpu_take(g, s->layout.bytes, &s->device, NULL) ||
        (recalled && !gpu_take(g, 2 * recalled * sizeof(f16), &s->recall_k, &s->recall_v)) ||
        gpu_tail_open(f, e, capacity + BLOCK)) {
        gpu_fork_close(f);
        return -ENOMEM;
    }
    s->recall_v = s->recall_k ? s->recall_k + recalled : NULL;
    s->window_most = window_most(s);
    g->cuda->copy(g->cuda, s->device, from->device, s->layout.bytes);
    return compute_pending(f);
}

void gpu_fork_close(struct fork *f)
{
    struct gpu *g = f->stream.engine->gpu;
    gpu_give(g, f->stream.device);
    gpu_give(g, f->stream.recall_k);
    gpu_give(g, f->tail.k);
    f->stream.device = NULL;
    f->stream.recall_k = f->tail.k = NULL;
}

/* Un-rotated keys and values of all segments to the host's copy of the recall rows, then rotated
 * where they lie. */
int gpu_fork_recall(struct fork *f, const struct cold_segment *segments, uint32_t count)
{
    struct stream *s = &f->stream;
    struct engine *e = s->engine;
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    uint32_t comp = e->shape.comp, rows = count * comp, stride = STREAM_RECALL_MAX * comp;
    size_t dim = e->shape.head_dim, half = gpu_recall_values(e);
    f16 *host = g->recall_host;
    if (!host)
        return count ? -EINVAL : 0;
    memset(host, 0, 2 * half * sizeof *host);
    struct gpu_slot *p = gpu_pass_begin(e);
    int64_t start = ccm_ring_start(e, s->state) - (int64_t)count * e->shape.chunk;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t slot = 0; slot < comp; slot++) {
            size_t row = (size_t)i * comp + slot;
            p->position[row] = start + (int64_t)i * e->shape.chunk +
                               (int64_t)(slot + 1) * (e->shape.chunk / comp) - 1;
            for (uint32_t h = 0; h < g->heads; h++) {
                const f16 *from = segments[i].rows + ((size_t)h * comp + slot) * 2 * dim;
                memcpy(host + (h * (size_t)stride + row) * dim, from, dim * sizeof *from);
                memcpy(host + half + (h * (size_t)stride + row) * dim, from + dim,
                       dim * sizeof *from);
            }
        }
    c->copy_in(c, s->recall_k, host, 2 * half * sizeof *host);
    const int64_t *position = gpu_sent(g, p, p->position, rows * sizeof *position);
    c->rotations(c, g->batch.rotation, position, rows, g->inverse_frequency, (uint32_t)dim);
    c->rotate(c, s->recall_k, stride, s->recall_k, stride, g->batch.rotation, rows, g->heads,
              (uint32_t)dim);
    int code = c->sync(c);
    s->recall_rows = rows;
    gpu_place_old_rows(s, count);
    return code;
}

/* ---- questions ---- */

static void add_rows(struct engine *e, struct gpu_slot *p, struct fork_work *w, uint32_t share)
{
    struct fork *f = w->fork;
    struct gpu *g = e->gpu;
    const struct stream *s = &f->stream;
    uint32_t keys = s->device ? s->layout.fixed_rows + pin_rows(&s->layout, s->state) +
                                    s->recall_rows + 2 * s->window_most + 3 * CUDA_ITEM_ROWS
                              : 0;
    for (uint32_t j = 0; j < share && f->fed_count < w->count; j++) {
        uint32_t rows = w->count - f->fed_count < BLOCK ? w->count - f->fed_count : BLOCK;
        if (p->rows + rows > g->rows_max || p->items == g->items_max)
            return;
        struct cuda_item *item =
            gpu_pass_item(e, p, GPU_BASE, w->tokens + f->fed_count, rows,
                          (int64_t)(f->stream.state->tokens + f->tail.count), j > 0);
        if (f->stream.device)
            gpu_item_stream(&f->stream, item);
        gpu_item_tail(&f->tail, item);
        f->tail.count += rows;
        f->fed_count += rows;
        f->last_row = p->rows - 1;
        f->in_pass = true;
    }
    keys += f->tail.count;
    p->keys_max = keys > p->keys_max ? keys : p->keys_max;
}

/* Logits, or the best token, of forks whose last token was in the pass. */
static int take_logits(struct engine *e, struct fork_work *const *done, uint32_t count)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    uint32_t row[GPU_LOGIT_ROWS] = {0};
    int32_t best[GPU_LOGIT_ROWS];
    size_t vocab = e->shape.vocab;
    for (uint32_t i = 0; i < count; i++)
        row[i] = done[i]->fork->last_row;
    gpu_logits(e, row, count);
    c->best(c, g->best, g->logits, count, e->shape.vocab);
    c->copy_out(c, best, g->best, count * sizeof *best);
    for (uint32_t i = 0; i < count; i++)
        if (!done[i]->best)
            c->copy_out(c, done[i]->fork->logits, g->logits + i * vocab, vocab * sizeof(float));
    int code = c->sync(c);
    for (uint32_t i = 0; i < count; i++)
        if (done[i]->best)
            *done[i]->best = best[i];
    return code;
}

static int finish(struct engine *e, struct fork_work *work, uint32_t count)
{
    struct fork_work *done[GPU_LOGIT_ROWS];
    uint32_t ready = 0;
    int code = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct fork *f = work[i].fork;
        if (work[i].result || !f->in_pass)
            continue;
        f->in_pass = false;
        if (f->fed_count == work[i].count)
            done[ready++] = &work[i];
        if (ready == GPU_LOGIT_ROWS) {
            code = code ? code : take_logits(e, done, ready);
            ready = 0;
        }
    }
    if (ready && !code)
        code = take_logits(e, done, ready);
    return code ? code : e->gpu->cuda->sync(e->gpu->cuda);
}

int gpu_forks_feed(struct fork_work *work, uint32_t count)
{
    struct engine *e = work[0].fork->stream.engine;
    struct gpu *g = e->gpu;
    int code = 0;
    for (uint32_t i = 0; i < count; i++)
        work[i].fork->fed_count = 0;
    while (!code) {
        struct gpu_slot *p = gpu_pass_begin(e);
        uint32_t active = 0;
        for (uint32_t i = 0; i < count; i++)
            active += !work[i].result && work[i].fork->fed_count < work[i].count;
        if (!active)
            break;
        uint32_t share = g->lanes_max / active ? g->lanes_max / active : 1;
        for (uint32_t i = 0; i < count; i++)
            if (!work[i].result && work[i].fork->fed_count < work[i].count)
                add_rows(e, p, &work[i], share);
        gpu_pass_run(e, p);
        code = finish(e, work, count);
    }
    for (uint32_t i = 0; i < count; i++) {
        work[i].fork->fed |= work[i].count && !work[i].result && !code;
        work[i].result = work[i].result ? work[i].result : code;
    }
    return code;
}
