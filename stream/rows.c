/*
 * One layer of one item of a pass: its keys and values, what its queries see, and where its rows
 * go.
 */
#include "stream/forward.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- keys and values of one layer of one item ---- */

static const float *row_kv(const struct item_rows *r, uint32_t head, bool value)
{
    const struct work *w = r->e->work;
    const struct shape *s = &r->e->shape;
    return w->qkv + (size_t)r->item->row * w->qkv_dim + w->q_dim + (value ? s->kv_dim : 0) +
           head * s->head_dim;
}

static f16 *local(const struct item_rows *r, f16 *base, uint32_t head)
{
    return base + ((size_t)head * FORWARD_ROWS_MAX + r->item->row) * r->e->shape.head_dim;
}

/* Un-merged, un-rotated K and V of the stream's first tokens. */
static void capture_sinks(const struct item_rows *r, uint32_t head)
{
    const struct stream *stream = r->item->stream;
    const struct shape *s = &r->e->shape;
    const struct layout *l = &stream->layout;
    struct kernels *k = r->e->kernels;
    uint32_t index = r->layer * s->kv_heads + head;
    for (uint32_t i = 0; i < r->item->rows; i++) {
        uint64_t at = (uint64_t)r->item->position + i;
        if (at >= s->sinks)
            return;
        size_t stride = r->e->work->qkv_dim;
        f16 *sink_k =
            STATE_AT(r->item->state, l->sink_k, f16) + (index * s->sinks + at) * s->head_dim;
        f16 *sink_v = STATE_AT(r->item->state, l->fixed_v, f16) +
                      ((size_t)index * l->fixed_rows + s->comp + at) * s->head_dim;
        k->pack_f16(k, sink_k, row_kv(r, head, false) + i * stride, s->head_dim);
        k->pack_f16(k, sink_v, row_kv(r, head, true) + i * stride, s->head_dim);
    }
}

/* Rows as computed: rounded to f16 once, before rotation, so that a stored key and the one just
 * used are the same bits. */
static void plain_rows(const struct item_rows *r, uint32_t head, struct row_piece piece)
{
    const struct shape *s = &r->e->shape;
    const struct work *w = r->e->work;
    const struct forward_item *item = r->item;
    struct kernels *k = r->e->kernels;
    size_t dim = s->head_dim, index = r->layer * s->kv_heads + head;
    f16 *kl = local(r, w->k_local, head), *vl = local(r, w->v_local, head);
    for (uint32_t i = piece.from; i < piece.to; i++) {
        k->pack_f16(k, kl + i * dim, row_kv(r, head, false) + i * w->qkv_dim, dim);
        k->pack_f16(k, vl + i * dim, row_kv(r, head, true) + i * w->qkv_dim, dim);
    }
    for (uint32_t i = piece.from; item->kind == FORWARD_COMP && i < piece.to; i++) {
        f16 *to = item->segment + (index * s->comp + i) * 2 * dim;
        memcpy(to, kl + i * dim, dim * sizeof(f16));
        memcpy(to + dim, vl + i * dim, dim * sizeof(f16));
    }
    k->rotate(k, kl + piece.from * dim, kl + piece.from * dim,
              w->rotation + (item->row + piece.from) * dim, piece.to - piece.from, s->head_dim);
}

static void trace_decisions(const struct item_rows *r, uint32_t head, const float *logit,
                            const uint8_t *a)
{
    struct forward_trace *t = r->e->trace;
    uint32_t heads = r->e->shape.layers * r->e->shape.kv_heads;
    if (!t || t->rows + r->item->row + r->item->rows > t->rows_max)
        return;
    for (uint32_t i = 0; i < r->item->rows; i++) {
        size_t at =
            (size_t)(t->rows + r->item->row + i) * heads + r->layer * r->e->shape.kv_heads + head;
        t->merged[at] = a[i];
        t->logit[at] = logit[i * r->e->work->lora_dim];
    }
}

/* Decisions and importances of a block, one head; the logits sit behind the LoRA's columns
 * (add_lora_qkv). */
static void decide(const struct item_rows *r, uint32_t head, struct merge_job *job)
{
    const struct shape *s = &r->e->shape;
    struct work *w = r->e->work;
    const struct layout *l = &r->item->stream->layout;
    const struct lora *lora = &r->e->layer[r->layer].dmc;
    uint32_t index = r->layer * s->kv_heads + head;
    float bias_a = lora->decide_bias[head] + r->e->ratio_bias[l->ratio_index * l->heads + index];
    float bias_o = lora->decide_bias[s->kv_heads + head];
    float *logit = w->lora + (size_t)r->item->row * w->lora_dim + lora->decide_column + head;
    uint8_t *a = w->a + head * FORWARD_ROWS_MAX + r->item->row;
    float *o = w->importance + head * FORWARD_ROWS_MAX + r->item->row;
    for (uint32_t i = 0; i < r->item->rows; i++) {
        logit[i * w->lora_dim] += bias_a;
        o[i] = 1.0f / (1.0f + expf(-(logit[i * w->lora_dim + s->kv_heads] + bias_o))) +
               0.0078125f; /* + 2^-7 */
    }
    window_decide(l, r->item->state, index, logit, w->lora_dim, r->item->chunk_at, r->item->rows,
                  a);
    trace_decisions(r, head, logit, a);
    *job = (struct merge_job){
        .k = row_kv(r, head, false),
        .v = row_kv(r, head, true),
        .stride = w->qkv_dim,
        .a = a,
        .o = o,
        .rotation = w->rotation + (size_t)r->item->row * s->head_dim,
        .z = STATE_AT(r->item->state, l->z, float) + index,
        .sum_k = STATE_AT(r->item->state, l->sum_k, float) + (size_t)index * s->head_dim,
        .sum_v = STATE_AT(r->item->state, l->sum_v, float) + (size_t)index * s->head_dim,
        .k_out = local(r, w->k_entry, head),
        .v_out = local(r, w->v_entry, head),
        .rows = r->item->rows,
    };
}

static bool merges(const struct forward_item *item)
{
    return item->kind == FORWARD_STREAM && item->stream->layout.ratio > 1;
}

struct rows_all {
    struct engine *e;
    struct forward_item *items;
    uint32_t layer;
};

static void append_tail(const struct item_rows *r, uint32_t head, struct row_piece piece)
{
    const struct shape *s = &r->e->shape;
    const struct work *w = r->e->work;
    struct tail *t = r->item->tail;
    size_t index = r->layer * s->kv_heads + head, from = piece.from * s->head_dim,
           bytes = (size_t)(piece.to - piece.from) * s->head_dim * sizeof(f16);
    size_t at = (index * t->capacity + t->count) * s->head_dim + from;
    assert(t->count + r->item->rows <= t->capacity);
    memcpy(t->k + at, local(r, w->k_local, head) + from, bytes);
    memcpy(t->v + at, local(r, w->v_local, head) + from, bytes);
}

/* Raw rows join their tail at once: they are in view once it counts them, behind all layers. */
static void make_piece(void *argument, uint32_t index)
{
    const struct rows_all *all = argument;
    const struct shape *s = &all->e->shape;
    struct kernels *k = all->e->kernels;
    const struct work *w = all->e->work;
    struct row_piece piece = row_piece_at(all->items, index);
    struct item_rows r = {all->e, &all->items[piece.item], all->layer};
    size_t row = r.item->row + piece.from;
    for (uint32_t head = 0; head < s->kv_heads; head++) {
        if (r.item->kind == FORWARD_STREAM && piece.from == 0)
            capture_sinks(&r, head);
        plain_rows(&r, head, piece);
        if (r.item->kind == FORWARD_RAW)
            append_tail(&r, head, piece);
    }
    k->rope(k, w->qkv + row * w->qkv_dim, w->qkv_dim, w->rotation + row * s->head_dim,
            piece.to - piece.from, s->kv_heads * s->group, s->head_dim);
}

void rows_make(struct engine *e, struct forward_item *items, uint32_t count, uint32_t layer)
{
    struct rows_all all = {e, items, layer};
    pool_run(e->kernels->pool, make_piece, &all, row_piece_count(items, count));
}

void rows_merge(const struct item_rows *r)
{
    struct merge_job job[64];
    struct kernels *k = r->e->kernels;
    const struct shape *s = &r->e->shape;
    for (uint32_t head = 0; merges(r->item) && head < s->kv_heads; head++) {
        decide(r, head, &job[head % 64]);
        if (head % 64 == 63 || head + 1 == s->kv_heads)
            k->merge(k, job, head % 64 + 1, s->head_dim);
    }
}

/* ---- attention ---- */

static void add_span(struct attend_job *job, const f16 *k, const f16 *v, size_t row, uint32_t rows,
                     uint32_t dim)
{
    if (!rows)
        return;
    assert(job->span_count < ATTEND_SPANS_MAX);
    job->span[job->span_count++] = (struct attend_span){k + row * dim, v + row * dim, rows};
}

/* Rows [from, to) of `fixed`, as far as they are in [first, end). */
struct fixed_view {
    uint32_t first, end;
};

static void add_fixed(struct attend_job *job, const struct stream *stream, uint32_t index,
                      const struct fixed_view *view, uint32_t from, uint32_t to)
{
    from = max_u32(from, view->first);
    to = to < view->end ? to : view->end;
    const struct layout *l = &stream->layout;
    add_span(job, STATE_AT_CONST(stream->state, l->fixed_k, f16),
             STATE_AT_CONST(stream->state, l->fixed_v, f16), (size_t)index * l->fixed_rows + from,
             to > from ? to - from : 0, l->head_dim);
}

/* Summary, sinks, ring, pins and what was recalled; then the previous chunk's entries, those of the
 * open one that are in view, and its newest block's rows. */
static void add_memory(struct attend_job *job, const struct forward_item *item, uint32_t index)
{
    const struct stream *stream = item->stream;
    const struct engine *e = stream->engine;
    const struct layout *l = &stream->layout;
    const struct state *state = stream->state;
    uint32_t comp = e->shape.comp, sinks = comp + e->shape.sinks;
    struct fixed_view view;
    view.end = ccm_visible(e, l, state, &view.first) + view.first;
    if (stream->swap) {
        add_fixed(job, stream->swap, index, &view, 0, comp);
        add_fixed(job, stream, index, &view, comp, sinks);
        add_fixed(job, stream->swap, index, &view, sinks, view.end);
    } else if (stream->hide_memory) {
        add_fixed(job, stream, index, &view, comp, sinks);
    } else {
        add_fixed(job, stream, index, &view, stream->hide_summary ? comp : 0, view.end);
    }
    add_span(job, STATE_AT_CONST(state, l->pin_k, f16), STATE_AT_CONST(state, l->pin_v, f16),
             (size_t)index * l->pin_rows, pin_rows(l, state), l->head_dim);
    add_span(job, stream->recall_k, stream->recall_v,
             (size_t)index * STREAM_RECALL_MAX * e->shape.comp, stream->recall_rows, l->head_dim);
    uint32_t row = STATE_AT_CONST(state, l->row, uint32_t)[index];
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t w = i ? state->open : !state->open;
        add_span(job, STATE_AT_CONST(state, l->window_k[w], f16),
                 STATE_AT_CONST(state, l->window_v[w], f16), row,
                 STATE_AT_CONST(state, l->count[w], uint32_t)[index], l->head_dim);
    }
    if (l->ratio > 1)
        add_span(job, STATE_AT_CONST(state, l->raw_k, f16), STATE_AT_CONST(state, l->raw_v, f16),
                 (size_t)index * STREAM_BLOCK_TOKENS, window_raw_rows(l, item->chunk_at),
                 l->head_dim);
}

static void add_tail(struct attend_job *job, const struct tail *t, uint32_t index, uint32_t dim)
{
    size_t row = (size_t)index * t->capacity + t->start;
    add_span(job, t->k, t->v, row, t->count - t->start, dim);
    if (t->sinks)
        add_span(job, t->sink_k, t->sink_v, (size_t)index * t->sinks, t->sinks, dim);
}

static void make_job(const struct item_rows *r, uint32_t head, struct attend_job *job)
{
    struct work *w = r->e->work;
    const struct shape *s = &r->e->shape;
    uint32_t index = r->layer * s->kv_heads + head;
    *job = (struct attend_job){
        .q = w->qkv + (size_t)r->item->row * w->qkv_dim + head * s->group * s->head_dim,
        .out = w->att + (size_t)r->item->row * w->q_dim + head * s->group * s->head_dim,
        .stride = w->qkv_dim,
        .out_stride = w->q_dim,
        .queries = r->item->rows,
        .group = s->group,
        .k_local = local(r, w->k_local, head),
        .v_local = local(r, w->v_local, head),
    };
    if (r->item->stream)
        add_memory(job, r->item, index);
    if (r->item->tail) {
        if (!r->item->stream && r->item->tail->count > r->item->tail->start)
            job->first = r->item->tail->first;
        add_tail(job, r->item->tail, index, s->head_dim);
    }
}

void rows_keep(const struct item_rows *r)
{
    const struct shape *s = &r->e->shape;
    const struct work *w = r->e->work;
    for (uint32_t head = 0; r->item->kind == FORWARD_STREAM && head < s->kv_heads; head++) {
        struct block_rows rows = {.k = local(r, w->k_local, head),
                                  .v = local(r, w->v_local, head),
                                  .entry_k = local(r, w->k_entry, head),
                                  .entry_v = local(r, w->v_entry, head),
                                  .a = w->a + (size_t)head * FORWARD_ROWS_MAX + r->item->row,
                                  .rows = r->item->rows};
        window_enter(&r->item->stream->layout, r->item->state, r->layer * s->kv_heads + head,
                     &rows);
    }
}

void rows_attend(const struct item_rows *r)
{
    struct attend_job job[64];
    struct kernels *k = r->e->kernels;
    const struct shape *s = &r->e->shape;
    float scale = 1.0f / sqrtf((float)s->head_dim);
    for (uint32_t head = 0; head < s->kv_heads; head++) {
        make_job(r, head, &job[head % 64]);
        if (head % 64 == 63 || head + 1 == s->kv_heads)
            k->attend(k, job, head % 64 + 1, s->head_dim, scale);
    }
}
