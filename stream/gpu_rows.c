/*
 * Raw rows on the device that belong to no stream (a pin being read, the loss meter's reference, a
 * question alone, windows for evaluation), and rows that are moved or turned where they lie.
 *
 * Each call waits for the device: these are rare, small, or for measuring.
 */
#include "stream/gpu.h"

#include <assert.h>
#include <string.h>

enum { BLOCK = STREAM_BLOCK_TOKENS };

size_t gpu_tail_bytes(const struct engine *e, uint32_t capacity)
{
    const struct shape *s = &e->shape;
    return (size_t)s->layers * s->kv_heads * capacity * s->head_dim * sizeof(f16);
}

/* Rows whose views begin alike go in blocks, others one by one: a row sees those before it in the
 * tail, where the pass has put them before it attends. */
static void add_rows(struct engine *e, struct gpu_slot *p, const struct gpu_rows *r)
{
    struct tail *t = r->tail;
    uint32_t start = t->start, row = p->rows, rows;
    assert(r->count <= (r->first ? BLOCK : e->shape.chunk) && r->count <= t->capacity - t->count);
    for (uint32_t at = 0; at < r->count; at += rows) {
        rows = r->first ? 1 : r->count - at < BLOCK ? r->count - at : BLOCK;
        t->start = start + (r->first ? r->first[at] : 0);
        struct cuda_item *item = gpu_pass_item(e, p, r->dmc_lora ? GPU_DMC : GPU_BASE,
                                               r->tokens + at, rows, r->position + at, at > 0);
        gpu_item_tail(t, item);
        t->count += rows;
        uint32_t keys = t->count - t->start + t->sinks;
        p->keys_max = keys > p->keys_max ? keys : p->keys_max;
    }
    t->start = start;
    if (r->targets)
        memcpy(p->target + row, r->targets, r->count * sizeof *p->target);
}

uint32_t gpu_rows_most(const struct engine *e)
{
    const struct gpu *g = e->gpu;
    uint32_t rows = g->rows_max < g->items_max ? g->rows_max : g->items_max; /* an item a row */
    return rows / BLOCK ? rows / BLOCK : 1;
}

int gpu_rows_run(struct engine *e, const struct gpu_rows *r, uint32_t count)
{
    struct gpu *g = e->gpu;
    struct gpu_slot *p = gpu_pass_begin(e);
    bool scored = false;
    for (uint32_t i = 0; i < count; i++) {
        scored |= r[i].targets != NULL;
        add_rows(e, p, &r[i]);
    }
    gpu_pass_layers(e, p, r->layers);
    int code = scored ? gpu_pass_score(e, p, p->rows) : g->cuda->sync(g->cuda);
    const float *nll = g->nll_host;
    for (uint32_t i = 0; i < count && !code; nll += r[i].count, i++)
        if (r[i].targets)
            memcpy(r[i].nll, nll, r[i].count * sizeof *nll);
    return code;
}

void gpu_rows_turn(struct engine *e, f16 *out, uint32_t out_stride, const f16 *in,
                   uint32_t in_stride, int64_t position, int step, uint32_t count)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    struct gpu_slot *p = gpu_pass_begin(e);
    assert(count <= g->rows_max);
    for (uint32_t i = 0; i < count; i++)
        p->position[i] = step * (position + i);
    const int64_t *sent = gpu_sent(g, p, p->position, count * sizeof *sent);
    c->rotations(c, g->batch.rotation, sent, count, g->inverse_frequency, g->shape.head_dim);
    c->rotate(c, out, out_stride, in, in_stride, g->batch.rotation, count, g->heads,
              g->shape.head_dim);
    (void)c->sync(c); /* the slot is free again; an error stays in the device */
}

void gpu_rows_copy(struct engine *e, f16 *out, uint32_t out_stride, const f16 *in,
                   uint32_t in_stride, uint32_t count)
{
    struct gpu *g = e->gpu;
    size_t dim = g->shape.head_dim;
    for (size_t h = 0; h < g->heads; h++)
        g->cuda->copy(g->cuda, out + h * out_stride * dim, in + h * in_stride * dim,
                      count * dim * sizeof *out);
}
