/*
 * One pass on the device: rows of many timelines through all layers, queued without a look back.
 *
 * Items are added kind by kind (gpu_kind), so that rows that use the same weights lie together; all
 * else runs over all rows at once.
 */
#include "stream/gpu.h"

#include <assert.h>
#include <string.h>

/* Larger passes compute for longer than they take to launch; ragged ones (the end of a question)
 * would each leave a graph of some megabytes that is never launched. */
enum { GRAPH_ROWS_MAX = 2048 };

struct cuda_item *gpu_pass_item(struct engine *e, struct gpu_slot *p, enum gpu_kind kind,
                                const int32_t *tokens, uint32_t rows, int64_t position, bool joins)
{
    struct gpu *g = e->gpu;
    assert(rows <= CUDA_ITEM_ROWS && p->items < g->items_max && p->rows + rows <= g->rows_max);
    struct cuda_item *item = &p->item[p->items];
    *item = (struct cuda_item){.row = p->rows, .rows = rows, .before_row = -1};
    for (uint32_t i = 0; i < rows; i++) {
        p->token[p->rows + i] = tokens ? tokens[i] : -1 - (int32_t)i;
        p->target[p->rows + i] = -1;
        p->position[p->rows + i] =
            tokens ? position + i
                   : position + (int64_t)(i + 1) * (e->shape.chunk / e->shape.comp) - 1;
    }
    if (joins) {
        p->run[p->runs - 1].items++;
    } else {
        p->run[p->runs] = (struct cuda_run){p->items, 1};
        p->runs++;
    }
    item->run = p->runs - 1;
    uint32_t items = p->run[p->runs - 1].items;
    p->items_most = items > p->items_most ? items : p->items_most;
    p->items++;
    p->rows += rows;
    p->rows_most = rows > p->rows_most ? rows : p->rows_most;
    p->ragged |= tokens && rows != 1 && rows != CUDA_ITEM_ROWS;
    for (int k = kind; k < GPU_KINDS; k++)
        p->kind_rows[k + 1] = p->rows;
    return item;
}

static void add_span(struct cuda_item *item, const f16 *k, const f16 *v, uint32_t stride,
                     uint32_t first, uint32_t rows)
{
    if (!rows)
        return;
    assert(item->span_count < CUDA_SPANS_MAX);
    item->span[item->span_count++] =
        (struct cuda_span){.k = k, .v = v, .stride = stride, .first = first, .rows = rows};
}

/* Rows [from, to) of `fixed`, as far as they are in view. */
static void add_fixed(struct cuda_item *item, const struct stream *s, const uint32_t view[2],
                      uint32_t from, uint32_t to)
{
    const struct layout *l = &s->layout;
    from = from > view[0] ? from : view[0];
    to = to < view[1] ? to : view[1];
    add_span(item, STATE_AT(s->device, l->fixed_k, f16), STATE_AT(s->device, l->fixed_v, f16),
             l->fixed_rows, from, to > from ? to - from : 0);
}

/* As add_memory of forward.c. */
static void add_spans(const struct stream *s, struct cuda_item *item)
{
    const struct engine *e = s->engine;
    const struct layout *l = &s->layout;
    uint32_t view[2], comp = e->shape.comp, ring = comp + e->shape.sinks;
    view[1] = ccm_visible(e, l, s->state, &view[0]);
    view[1] += view[0];
    if (s->swap) {
        add_fixed(item, s->swap, view, 0, comp);
        add_fixed(item, s, view, comp, ring);
        add_fixed(item, s->swap, view, ring, view[1]);
    } else if (s->hide_memory) {
        add_fixed(item, s, view, comp, ring);
    } else {
        add_fixed(item, s, view, s->hide_summary ? comp : 0, view[1]);
    }
    add_span(item, STATE_AT(s->device, l->pin_k, f16), STATE_AT(s->device, l->pin_v, f16),
             l->pin_rows, 0, pin_rows(l, s->state));
    add_span(item, s->recall_k, s->recall_v, STREAM_RECALL_MAX * comp, 0, s->recall_rows);
}

void gpu_item_stream(const struct stream *s, struct cuda_item *item)
{
    const struct layout *l = &s->layout;
    const struct state *state = s->state;
    const struct shape *shape = &s->engine->shape;
    char *base = s->device;
    size_t heads = l->heads, dim = l->head_dim;
    uint32_t open = state->open;
    add_spans(s, item);
    item->window_row = STATE_AT(base, l->row, uint32_t);
    item->capacity = STATE_AT(base, l->capacity, uint32_t);
    item->previous_count = STATE_AT(base, l->count[!open], uint32_t);
    item->open_count = STATE_AT(base, l->count[open], uint32_t);
    item->previous_k = STATE_AT(base, l->window_k[!open], f16);
    item->previous_v = STATE_AT(base, l->window_v[!open], f16);
    item->open_k = STATE_AT(base, l->window_k[open], f16);
    item->open_v = STATE_AT(base, l->window_v[open], f16);
    item->sink_k = STATE_AT(base, l->sink_k, f16);
    item->sink_v = STATE_AT(base, l->fixed_v, f16) + shape->comp * dim;
    item->sinks = shape->sinks;
    item->fixed_rows = l->fixed_rows;
    item->tokens = state->tokens;
    item->chunk_tokens = state->chunk_tokens;
    if (l->ratio == 1)
        return;
    item->z = STATE_AT(base, l->z, float);
    item->sum_k = STATE_AT(base, l->sum_k, float);
    item->sum_v = STATE_AT(base, l->sum_v, float);
    item->ratio_bias = s->engine->gpu->ratio_bias + l->ratio_index * heads;
    item->held = STATE_AT(base, l->held, uint32_t);
    item->grown = STATE_AT(base, l->grown, uint32_t);
    item->grown_k = STATE_AT(base, l->grown_k, f16);
    item->grown_v = STATE_AT(base, l->grown_v, f16);
    item->raw_k = STATE_AT(base, l->raw_k, f16);
    item->raw_v = STATE_AT(base, l->raw_v, f16);
    item->before_rows = window_raw_rows(l, state->chunk_tokens);
}

void gpu_item_tail(const struct tail *t, struct cuda_item *item)
{
    item->flags |= CUDA_TAIL;
    item->tail_k = t->k;
    item->tail_v = t->v;
    item->tail_capacity = t->capacity;
    item->tail_rows = t->count;
    item->tail_first = t->start;
    if (t->sinks)
        add_span(item, t->sink_k, t->sink_v, t->sinks, 0, t->sinks);
}

/* ---- queued ---- */

/* The batch as the device sees it: what came in lies in g->in as in the slot. */
static struct cuda_batch batch_of(const struct gpu *g, const struct gpu_slot *p)
{
    struct cuda_batch b = g->batch;
    b.rows = p->rows;
    b.items = p->items;
    b.runs = p->runs;
    b.rows_most = p->rows_most;
    b.items_most = p->items_most;
    b.keys_max = p->keys_max;
    b.item = (void *)(g->in + ((char *)p->item - p->in));
    b.run = (void *)(g->in + ((char *)p->run - p->in));
    b.token = (void *)(g->in + ((char *)p->token - p->in));
    b.position = (void *)(g->in + ((char *)p->position - p->in));
    return b;
}

/* A few single tokens with quantised weights that nothing is added to: these are read as they are.
 * That sums in another order, as products of single tokens do beside others anyway. */
static bool reads_file(const struct gpu *g, const struct gpu_weight *w, uint32_t rows)
{
    bool all = g->cuda->few && !g->makes && w->parts && rows <= CUDA_FILE_ROWS;
    for (uint32_t i = 0; i < w->parts; i++)
        all = all && w->part[i].quantised && !w->part[i].loras;
    return all;
}

static void project(struct gpu *g, void *out, enum cuda_out kind, const struct gpu_weight *w,
                    const bf16 *x, uint32_t rows)
{
    struct cuda *c = g->cuda;
    size_t value_bytes = kind == CUDA_OUT_BF16 ? sizeof(bf16) : sizeof(float);
    if (!reads_file(g, w, rows)) {
        c->matmul(c, out, kind, w->made.rows, gpu_weight(g, w), x, rows);
        return;
    }
    for (uint32_t i = 0; i < (w->one ? 1 : w->parts); i++) {
        const struct gpu_part *p = &w->part[i];
        c->matmul_file(c, (char *)out + p->from * value_bytes, kind, w->made.rows, p->source,
                       p->type, w->one ? w->made.rows : p->rows, w->made.cols, x, rows);
    }
}

static void gate(struct gpu *g, const struct cuda_batch *b, const struct gpu_weight *w)
{
    if (!reads_file(g, w, b->rows)) {
        g->cuda->gate(g->cuda, b, gpu_weight(g, w));
        return;
    }
    project(g, b->gate_up, CUDA_OUT_BF16, w, b->h, b->rows);
    g->cuda->swiglu(g->cuda, b);
}

static void project_kinds(struct gpu *g, const struct gpu_slot *p, void *out, enum cuda_out kind,
                          const struct gpu_weight *weight, const bf16 *x)
{
    for (int k = 0; k < GPU_KINDS; k++) {
        size_t from = p->kind_rows[k], rows = p->kind_rows[k + 1] - from;
        if (rows)
            project(g, (float *)out + from * weight[k].made.rows, kind, &weight[k],
                    x + from * weight[k].made.cols, (uint32_t)rows);
    }
}

/* A part of the slot's pinned memory, to the same place on the device. */
static void send(struct gpu *g, const struct gpu_slot *p, const void *part, size_t bytes)
{
    if (bytes)
        g->cuda->copy_in(g->cuda, g->in + ((const char *)part - p->in), part, bytes);
}

void *gpu_sent(struct gpu *g, const struct gpu_slot *p, const void *part, size_t bytes)
{
    send(g, p, part, bytes);
    return g->in + ((const char *)part - p->in);
}

void gpu_pass_run(struct engine *e, struct gpu_slot *p)
{
    gpu_pass_layers(e, p, e->shape.layers);
}

/* All that a pass's launches depend on, beside what lies on the device. */
struct pass_key {
    uint32_t rows, items, runs, rows_most, items_most, keys_max, layers, simple, makes;
    uint32_t kind_rows[GPU_KINDS + 1];
};

static void run_layers(struct engine *e, const struct gpu_slot *p, uint32_t layers)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    struct cuda_batch b = batch_of(g, p);
    c->embed(c, &b, g->embedding, e->embedding->type, g->comp_embedding);
    c->rotations(c, b.rotation, b.position, b.rows, g->inverse_frequency, g->shape.head_dim);
    for (uint32_t n = 0; n < layers; n++) {
        const struct gpu_layer *l = &g->layer[n];
        c->norm(c, &b, l->attn_norm, l->decide, p->kind_rows[GPU_DMC], p->kind_rows[GPU_DMC + 1]);
        project_kinds(g, p, b.qkv, CUDA_OUT_F32, l->qkv, b.h);
        c->make_rows(c, &b, n, l->decide_bias);
        c->attend(c, &b, n);
        project_kinds(g, p, b.x, CUDA_OUT_F32_ADD, l->o, b.att);
        c->norm(c, &b, l->ffn_norm, NULL, 0, 0);
        gate(g, &b, &l->gate_up);
        project(g, b.x, CUDA_OUT_F32_ADD, &l->down, b.act, b.rows);
    }
}

static void queue_layers(struct engine *e, struct gpu_slot *p, uint32_t layers)
{
    struct cuda *c = e->gpu->cuda;
    struct pass_key key;
    memset(&key, 0, sizeof key);
    key = (struct pass_key){.rows = p->rows,
                            .items = p->items,
                            .runs = p->runs,
                            .rows_most = p->rows_most,
                            .items_most = p->items_most,
                            .keys_max = p->rows_most == CUDA_ITEM_ROWS ? 0 : p->keys_max,
                            .layers = layers,
                            .simple = c->simple,
                            .makes = e->gpu->makes};
    memcpy(key.kind_rows, p->kind_rows, sizeof key.kind_rows);
    if (c->graph_begin(c, &key, sizeof key))
        return;
    do
        run_layers(e, p, layers);
    while (c->graph_again(c));
}

void gpu_pass_layers(struct engine *e, struct gpu_slot *p, uint32_t layers)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    assert(p->keys_max <= g->keys_most);
    p->keys_max = (p->keys_max + GPU_KEYS_STEP - 1) / GPU_KEYS_STEP * GPU_KEYS_STEP;
    c->few = p->rows_most == 1;
    send(g, p, p->item, p->items * sizeof *p->item);
    send(g, p, p->run, p->runs * sizeof *p->run);
    send(g, p, p->token, p->rows * sizeof *p->token);
    send(g, p, p->position, p->rows * sizeof *p->position);
    if (p->rows > GRAPH_ROWS_MAX || p->ragged)
        run_layers(e, p, layers);
    else
        queue_layers(e, p, layers);
}

void gpu_pass_record(struct engine *e, struct gpu_slot *p, uint32_t layers)
{
    struct cuda *c = e->gpu->cuda;
    c->few = p->rows_most == 1;
    c->ahead = true;
    queue_layers(e, p, layers);
    c->ahead = false;
}

void gpu_logits(struct engine *e, const uint32_t *row, uint32_t rows)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    const uint32_t *source[GPU_LOGIT_ROWS];
    struct cuda_batch b = g->batch;
    assert(rows <= GPU_LOGIT_ROWS);
    for (uint32_t i = 0; i < rows; i++)
        source[i] = (const uint32_t *)(g->batch.x + (size_t)row[i] * e->shape.dim);
    c->copy_in(c, g->row_source, source, rows * sizeof *source);
    c->gather(c, (uint32_t *)g->x_last, g->row_source, rows, e->shape.dim);
    b.rows = rows;
    b.x = g->x_last;
    c->norm(c, &b, g->output_norm, NULL, 0, 0);
    project(g, g->logits, CUDA_OUT_F32, &g->head, b.h, rows);
}

int gpu_pass_score(struct engine *e, struct gpu_slot *p, uint32_t rows)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    const int32_t *target = gpu_sent(g, p, p->target, rows * sizeof *p->target);
    for (uint32_t at = 0; at < rows; at += GPU_LOGIT_ROWS) {
        uint32_t row[GPU_LOGIT_ROWS], n = rows - at;
        n = n < GPU_LOGIT_ROWS ? n : GPU_LOGIT_ROWS;
        for (uint32_t i = 0; i < n; i++)
            row[i] = at + i;
        gpu_logits(e, row, n);
        c->nll(c, g->nll + at, g->logits, target + at, n, e->shape.vocab);
    }
    c->copy_out(c, g->nll_host, g->nll, rows * sizeof *g->nll_host);
    return c->sync(c);
}
