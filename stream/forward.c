/*
 * One pass of the model over rows of several timelines.
 *
 * The rows of all items share every projection; attention, merging and rotation go item by item.
 * Each row's result depends on its own timeline alone (kernels.h), so what runs together never
 * changes what comes out.
 */
#include "stream/internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LORA_COLUMNS_MAX = 4096, LOGIT_ROWS = STREAM_BLOCK_TOKENS };

struct work {
    size_t bytes;
    uint32_t q_dim, qkv_dim, lora_dim;
    float *x;               /* [rows][dim] residual stream */
    float *h;               /* [rows][dim] normed */
    float *qkv;             /* [rows][q_dim + 2 kv_dim] */
    float *att;             /* [rows][q_dim] */
    float *gate_up;         /* [rows][2 ff] */
    float *act;             /* [rows][ff] */
    float *lora;            /* [rows][lora_dim] */
    float *rotation;        /* [rows][head_dim / 2][2] */
    float *importance;      /* [kv_heads][rows] */
    float *logits;          /* [LOGIT_ROWS][vocab] */
    uint8_t *a;             /* [kv_heads][rows] */
    f16 *k_local, *v_local; /* [kv_heads][rows][head_dim]: rows as computed, k rotated */
    f16 *k_entry, *v_entry; /* the same shape: the running entry after each row */
    void *q;                /* quantised activations of the widest input */
};

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t widest_lora(const struct engine *e)
{
    uint32_t widest = 1;
    for (uint32_t n = 0; n < e->shape.layers; n++) {
        widest = max_u32(widest, max_u32(e->layer[n].comp.in.rows, e->layer[n].dmc.in.rows));
        widest = max_u32(widest, max_u32(e->layer[n].comp.rank[3], e->layer[n].dmc.rank[3]));
    }
    return widest;
}

static void *carve(char *memory, size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 63) & ~(size_t)63;
    return memory ? memory + at : NULL;
}

/* Two passes: sizes first, then pointers into the one block. */
static size_t carve_work(struct work *w, const struct engine *e, char *memory)
{
    const struct shape *s = &e->shape;
    const struct kernels *k = e->kernels;
    size_t used = 0, rows = FORWARD_ROWS_MAX;
    uint32_t widest = max_u32(max_u32(s->dim, s->ff), w->q_dim);
    w->x = carve(memory, &used, rows * s->dim * sizeof(float));
    w->h = carve(memory, &used, rows * s->dim * sizeof(float));
    w->qkv = carve(memory, &used, rows * w->qkv_dim * sizeof(float));
    w->att = carve(memory, &used, rows * w->q_dim * sizeof(float));
    w->gate_up = carve(memory, &used, rows * 2 * s->ff * sizeof(float));
    w->act = carve(memory, &used, rows * s->ff * sizeof(float));
    w->lora = carve(memory, &used, rows * w->lora_dim * sizeof(float));
    w->rotation = carve(memory, &used, rows * s->head_dim * sizeof(float));
    w->importance = carve(memory, &used, rows * s->kv_heads * sizeof(float));
    w->logits = carve(memory, &used, (size_t)LOGIT_ROWS * s->vocab * sizeof(float));
    w->a = carve(memory, &used, rows * s->kv_heads);
    w->k_local = carve(memory, &used, rows * s->kv_dim * sizeof(f16));
    w->v_local = carve(memory, &used, rows * s->kv_dim * sizeof(f16));
    w->k_entry = carve(memory, &used, rows * s->kv_dim * sizeof(f16));
    w->v_entry = carve(memory, &used, rows * s->kv_dim * sizeof(f16));
    w->q = carve(memory, &used, k->quantize_bytes(k, FORWARD_ROWS_MAX, widest));
    return used;
}

int work_open(struct work **out, struct engine *e)
{
    const struct shape *s = &e->shape;
    struct work *w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->q_dim = s->heads * s->head_dim;
    w->qkv_dim = w->q_dim + 2 * s->kv_dim;
    w->lora_dim = widest_lora(e);
    w->bytes = carve_work(w, e, NULL);
    char *memory = aligned_alloc(64, w->bytes);
    if (!memory) {
        free(w);
        return -ENOMEM;
    }
    memset(memory, 0, w->bytes);
    carve_work(w, e, memory);
    *out = w;
    return 0;
}

void work_close(struct work **w)
{
    if (!*w)
        return;
    free((*w)->x); /* the first piece of the block */
    free(*w);
    *w = NULL;
}

size_t work_bytes(const struct work *w)
{
    return w->bytes;
}

void rotation_row(const struct engine *e, int64_t position, float *out)
{
    for (uint32_t i = 0; i < e->shape.head_dim / 2; i++) {
        double angle = remainder((double)position * e->inverse_frequency[i], 2 * M_PI);
        out[2 * i] = (float)cos(angle);
        out[2 * i + 1] = (float)sin(angle);
    }
}

/* ---- inputs ---- */

static int64_t comp_position(const struct engine *e, const struct state *state, uint32_t slot)
{
    uint64_t start = state->chunks * e->shape.chunk;
    return (int64_t)(start + (uint64_t)(slot + 1) * (e->shape.chunk / e->shape.comp)) - 1;
}

static void load_rows(struct engine *e, const struct forward_item *item)
{
    struct work *w = e->work;
    const struct shape *s = &e->shape;
    size_t row_bytes = tensor_row_bytes(e->embedding->type, s->dim);
    for (uint32_t i = 0; i < item->rows; i++) {
        size_t row = item->row + i;
        bool comp = item->kind == FORWARD_COMP;
        if (comp)
            memcpy(w->x + row * s->dim, e->comp_embedding + (size_t)i * s->dim,
                   s->dim * sizeof(float));
        else
            tensor_row(w->x + row * s->dim,
                       (const char *)e->embedding->data + (size_t)item->tokens[i] * row_bytes,
                       e->embedding->type, s->dim);
        rotation_row(e, comp ? comp_position(e, item->state, i) : item->position + i,
                     w->rotation + row * s->head_dim);
    }
}

/* ---- projections ---- */

static void project(struct engine *e, const struct projection *p, float *out, size_t stride,
                    const float *x, size_t x_stride, uint32_t rows, bool accumulate)
{
    for (uint32_t i = 0; i < p->count; i++)
        e->kernels->matmul(e->kernels, out + p->column[i], stride, &p->part[i], x, x_stride,
                           e->work->q, rows, accumulate);
}

static bool uses_dmc(const struct forward_item *item)
{
    return item->dmc_lora ||
           (item->kind != FORWARD_RAW && item->stream && item->stream->layout.ratio > 1);
}

/* Adds B (A h) to q, k, v of an item's rows; leaves the outputs of `in` in the work area. */
static void add_lora_qkv(struct engine *e, const struct lora *lora, const struct forward_item *item)
{
    struct work *w = e->work;
    const struct shape *s = &e->shape;
    struct kernels *k = e->kernels;
    const uint32_t column[3] = {0, w->q_dim, w->q_dim + s->kv_dim};
    if (!lora->in.rows)
        return;
    float *low = w->lora + (size_t)item->row * w->lora_dim;
    k->matmul(k, low, w->lora_dim, &lora->in, w->h + (size_t)item->row * s->dim, s->dim, NULL,
              item->rows, false);
    uint32_t at = 0;
    for (int i = 0; i < 3; i++) {
        if (lora->rank[i])
            k->matmul(k, w->qkv + (size_t)item->row * w->qkv_dim + column[i], w->qkv_dim,
                      &lora->b[i], low + at, w->lora_dim, NULL, item->rows, true);
        at += lora->rank[i];
    }
}

static void add_lora_o(struct engine *e, const struct lora *lora, const struct forward_item *item)
{
    struct work *w = e->work;
    struct kernels *k = e->kernels;
    if (!lora->rank[3])
        return;
    float *low = w->lora + (size_t)item->row * w->lora_dim;
    k->matmul(k, low, w->lora_dim, &lora->o_a, w->att + (size_t)item->row * w->q_dim, w->q_dim,
              NULL, item->rows, false);
    k->matmul(k, w->x + (size_t)item->row * e->shape.dim, e->shape.dim, &lora->o_b, low,
              w->lora_dim, NULL, item->rows, true);
}

/* ---- keys and values of one layer of one item ---- */

struct item_rows {
    struct engine *e;
    struct forward_item *item;
    uint32_t layer;
};

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
static void plain_rows(const struct item_rows *r, uint32_t head)
{
    const struct shape *s = &r->e->shape;
    const struct work *w = r->e->work;
    struct kernels *k = r->e->kernels;
    f16 *kl = local(r, w->k_local, head), *vl = local(r, w->v_local, head);
    for (uint32_t i = 0; i < r->item->rows; i++) {
        k->pack_f16(k, kl + i * s->head_dim, row_kv(r, head, false) + i * w->qkv_dim, s->head_dim);
        k->pack_f16(k, vl + i * s->head_dim, row_kv(r, head, true) + i * w->qkv_dim, s->head_dim);
    }
    if (r->item->kind == FORWARD_COMP) {
        size_t index = r->layer * s->kv_heads + head, dim = s->head_dim;
        f16 *to = r->item->segment + index * s->comp * 2 * dim;
        for (uint32_t i = 0; i < r->item->rows; i++) {
            memcpy(to + (2 * i) * dim, kl + i * dim, dim * sizeof(f16));
            memcpy(to + (2 * i + 1) * dim, vl + i * dim, dim * sizeof(f16));
        }
    }
    k->rotate(k, kl, kl, w->rotation + (size_t)r->item->row * s->head_dim, r->item->rows,
              s->head_dim);
}

static void trace_decisions(const struct item_rows *r, uint32_t head, const float *logit,
                            const uint8_t *a)
{
    struct forward_trace *t = r->e->trace;
    uint32_t heads = r->e->shape.layers * r->e->shape.kv_heads;
    if (!t || t->rows + r->item->rows > t->rows_max)
        return;
    for (uint32_t i = 0; i < r->item->rows; i++) {
        size_t at = (size_t)(t->rows + i) * heads + r->layer * r->e->shape.kv_heads + head;
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
    window_decide(l, r->item->state, index, logit, w->lora_dim, r->item->rows, a);
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

static void make_rows(const struct item_rows *r)
{
    struct merge_job job[64];
    struct kernels *k = r->e->kernels;
    const struct shape *s = &r->e->shape;
    for (uint32_t head = 0; head < s->kv_heads; head++) {
        if (r->item->kind == FORWARD_STREAM)
            capture_sinks(r, head);
        plain_rows(r, head);
        if (merges(r->item))
            decide(r, head, &job[head % 64]);
        if (merges(r->item) && (head % 64 == 63 || head + 1 == s->kv_heads))
            k->merge(k, job, head % 64 + 1, s->head_dim);
    }
    if (merges(r->item) && r->e->trace && r->layer + 1 == s->layers)
        r->e->trace->rows += r->item->rows;
    k->rope(k, r->e->work->qkv + (size_t)r->item->row * r->e->work->qkv_dim, r->e->work->qkv_dim,
            r->e->work->rotation + (size_t)r->item->row * s->head_dim, r->item->rows, s->heads,
            s->head_dim);
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
        add_fixed(job, stream, index, &view, 0, view.end);
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
                 (size_t)index * STREAM_BLOCK_TOKENS, window_raw_rows(l, state), l->head_dim);
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

static void append_tail(const struct item_rows *r, uint32_t head)
{
    const struct shape *s = &r->e->shape;
    const struct work *w = r->e->work;
    struct tail *t = r->item->tail;
    size_t index = r->layer * s->kv_heads + head,
           bytes = (size_t)r->item->rows * s->head_dim * sizeof(f16);
    size_t at = (index * t->capacity + t->count) * s->head_dim;
    assert(t->count + r->item->rows <= t->capacity);
    memcpy(t->k + at, local(r, w->k_local, head), bytes);
    memcpy(t->v + at, local(r, w->v_local, head), bytes);
}

static void keep_rows(const struct item_rows *r)
{
    const struct shape *s = &r->e->shape;
    const struct work *w = r->e->work;
    for (uint32_t head = 0; head < s->kv_heads; head++) {
        if (r->item->kind == FORWARD_RAW)
            append_tail(r, head);
        if (r->item->kind != FORWARD_STREAM)
            continue;
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

static void attend_items(struct engine *e, struct forward_item *items, uint32_t count,
                         uint32_t layer)
{
    struct attend_job job[64];
    uint32_t jobs = 0;
    float scale = 1.0f / sqrtf((float)e->shape.head_dim);
    for (uint32_t i = 0; i < count; i++) {
        struct item_rows r = {e, &items[i], layer};
        for (uint32_t head = 0; head < e->shape.kv_heads; head++) {
            make_job(&r, head, &job[jobs++]);
            if (jobs == 64) {
                e->kernels->attend(e->kernels, job, jobs, e->shape.head_dim, scale);
                jobs = 0;
            }
        }
    }
    if (jobs)
        e->kernels->attend(e->kernels, job, jobs, e->shape.head_dim, scale);
}

/* ---- the pass ---- */

static void attention(struct engine *e, uint32_t n, struct forward_item *items, uint32_t count,
                      uint32_t rows)
{
    struct work *w = e->work;
    const struct layer *layer = &e->layer[n];
    struct kernels *k = e->kernels;
    k->norm(k, w->h, w->q, w->x, layer->attn_norm, rows, e->shape.dim, e->shape.norm_eps);
    project(e, &layer->qkv, w->qkv, w->qkv_dim, w->h, e->shape.dim, rows, false);
    for (uint32_t i = 0; i < count; i++) {
        struct item_rows r = {e, &items[i], n};
        if (items[i].kind == FORWARD_COMP)
            add_lora_qkv(e, &layer->comp, &items[i]);
        if (uses_dmc(&items[i]))
            add_lora_qkv(e, &layer->dmc, &items[i]);
        make_rows(&r);
    }
    attend_items(e, items, count, n);
    for (uint32_t i = 0; i < count; i++)
        keep_rows(&(struct item_rows){e, &items[i], n});
    k->quantize(k, w->q, w->att, rows, w->q_dim);
    project(e, &layer->o, w->x, e->shape.dim, w->att, w->q_dim, rows, true);
    for (uint32_t i = 0; i < count; i++) {
        if (items[i].kind == FORWARD_COMP)
            add_lora_o(e, &layer->comp, &items[i]);
        if (uses_dmc(&items[i]))
            add_lora_o(e, &layer->dmc, &items[i]);
    }
}

static void feed_forward(struct engine *e, uint32_t n, uint32_t rows)
{
    struct work *w = e->work;
    const struct layer *layer = &e->layer[n];
    struct kernels *k = e->kernels;
    k->norm(k, w->h, w->q, w->x, layer->ffn_norm, rows, e->shape.dim, e->shape.norm_eps);
    project(e, &layer->gate_up, w->gate_up, 2 * e->shape.ff, w->h, e->shape.dim, rows, false);
    k->swiglu(k, w->act, w->q, w->gate_up, rows, e->shape.ff);
    project(e, &layer->down, w->x, e->shape.dim, w->act, e->shape.ff, rows, true);
}

void work_scratch(struct work *w, float **logits, void **quantized)
{
    *logits = w->logits;
    *quantized = w->q;
}

static void run_layers(struct engine *e, struct forward_item *items, uint32_t count,
                       uint32_t layers)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        items[i].row = rows;
        rows += items[i].rows;
        assert(rows <= FORWARD_ROWS_MAX);
        load_rows(e, &items[i]);
    }
    for (uint32_t n = 0; n < layers; n++) {
        attention(e, n, items, count, rows);
        feed_forward(e, n, rows);
    }
    for (uint32_t i = 0; i < count; i++)
        if (items[i].kind == FORWARD_RAW)
            items[i].tail->count += items[i].rows;
}

void forward_run(struct engine *e, struct forward_item *items, uint32_t count)
{
    run_layers(e, items, count, e->shape.layers);
}

const float *forward_hidden(struct engine *e, struct forward_item *item, uint32_t layers)
{
    run_layers(e, item, 1, layers);
    return e->work->x + (size_t)item->row * e->shape.dim;
}

void forward_logits(struct engine *e, uint32_t row, uint32_t rows, float *out)
{
    struct work *w = e->work;
    struct kernels *k = e->kernels;
    size_t at = (size_t)row * e->shape.dim;
    k->norm(k, w->h + at, w->q, w->x + at, e->output_norm, rows, e->shape.dim, e->shape.norm_eps);
    project(e, &e->head, out, e->shape.vocab, w->h + at, e->shape.dim, rows, false);
}

void forward_nll(struct engine *e, uint32_t row, uint32_t rows, const int32_t *targets, float *nll)
{
    struct work *w = e->work;
    int32_t safe[LOGIT_ROWS];
    for (uint32_t at = 0; at < rows; at += LOGIT_ROWS) {
        uint32_t n = rows - at < LOGIT_ROWS ? rows - at : LOGIT_ROWS;
        for (uint32_t i = 0; i < n; i++)
            safe[i] = targets[at + i] < 0 ? 0 : targets[at + i];
        forward_logits(e, row + at, n, w->logits);
        e->kernels->nll(e->kernels, nll + at, w->logits, safe, n, e->shape.vocab);
        for (uint32_t i = 0; i < n; i++)
            if (targets[at + i] < 0)
                nll[at + i] = 0;
    }
}
