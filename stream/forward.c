/*
 * One pass of the model over rows of several timelines.
 *
 * The rows of all items share every projection; attention, merging and rotation go item by item, in
 * order: in each layer an item sees what those before it have left there, so two blocks of a stream
 * and the COMP tokens behind them run in one pass. Each row's result depends on its own timeline
 * alone (kernels.h), so what runs together never changes what comes out.
 */
#include "stream/forward.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOGIT_ROWS = STREAM_BLOCK_TOKENS };

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

struct load {
    struct engine *e;
    const struct forward_item *items;
};

/* Inputs and rotations of some rows of one item. */
static void load_piece(void *argument, uint32_t index)
{
    const struct load *load = argument;
    struct engine *e = load->e;
    struct work *w = e->work;
    const struct shape *s = &e->shape;
    struct row_piece piece = row_piece_at(load->items, index);
    const struct forward_item *item = &load->items[piece.item];
    size_t row_bytes = tensor_row_bytes(e->embedding->type, s->dim);
    for (uint32_t i = piece.from; i < piece.to; i++) {
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

/* Rows of one pass that a low-rank update touches. */
struct lora_rows {
    uint32_t from, count;
};

/* Adds B (A h) to q, k, v of some rows; leaves the outputs of `in` in the work area. */
static void add_lora_qkv(struct engine *e, const struct lora *lora, struct lora_rows rows)
{
    struct work *w = e->work;
    const struct shape *s = &e->shape;
    struct kernels *k = e->kernels;
    const uint32_t column[3] = {0, w->q_dim, w->q_dim + s->kv_dim};
    if (!lora->in.rows)
        return;
    float *low = w->lora + (size_t)rows.from * w->lora_dim;
    k->matmul(k, low, w->lora_dim, &lora->in, w->h + (size_t)rows.from * s->dim, s->dim, NULL,
              rows.count, false);
    uint32_t at = 0;
    for (int i = 0; i < 3; i++) {
        if (lora->rank[i])
            k->matmul(k, w->qkv + (size_t)rows.from * w->qkv_dim + column[i], w->qkv_dim,
                      &lora->b[i], low + at, w->lora_dim, NULL, rows.count, true);
        at += lora->rank[i];
    }
}

static void add_lora_o(struct engine *e, const struct lora *lora, struct lora_rows rows)
{
    struct work *w = e->work;
    struct kernels *k = e->kernels;
    if (!lora->rank[3])
        return;
    float *low = w->lora + (size_t)rows.from * w->lora_dim;
    k->matmul(k, low, w->lora_dim, &lora->o_a, w->att + (size_t)rows.from * w->q_dim, w->q_dim,
              NULL, rows.count, false);
    k->matmul(k, w->x + (size_t)rows.from * e->shape.dim, e->shape.dim, &lora->o_b, low,
              w->lora_dim, NULL, rows.count, true);
}

/* Each item's own updates; items next to each other share the DMC one. */
static void add_loras(struct engine *e, const struct layer *layer, const struct forward_item *items,
                      uint32_t count,
                      void (*add)(struct engine *, const struct lora *, struct lora_rows))
{
    for (uint32_t i = 0; i < count; i++)
        if (items[i].kind == FORWARD_COMP)
            add(e, &layer->comp, (struct lora_rows){items[i].row, items[i].rows});
    for (uint32_t i = 0; i < count; i++) {
        struct lora_rows rows = {items[i].row, 0};
        for (; i < count && uses_dmc(&items[i]); i++)
            rows.count += items[i].rows;
        if (rows.count)
            add(e, &layer->dmc, rows);
    }
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
    add_loras(e, layer, items, count, add_lora_qkv);
    rows_make(e, items, count, n);
    for (uint32_t i = 0; i < count; i++) {
        struct item_rows r = {e, &items[i], n};
        rows_merge(&r);
        rows_attend(&r);
        rows_keep(&r);
    }
    k->quantize(k, w->q, w->att, rows, w->q_dim);
    project(e, &layer->o, w->x, e->shape.dim, w->att, w->q_dim, rows, true);
    add_loras(e, layer, items, count, add_lora_o);
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
        items[i].chunk_at = items[i].state ? items[i].state->chunk_tokens : 0;
        for (uint32_t j = 0; j < i; j++) /* blocks before it in this pass */
            if (items[j].kind == FORWARD_STREAM && items[j].state == items[i].state)
                items[i].chunk_at += items[j].rows;
    }
    struct load load = {e, items};
    pool_run(e->kernels->pool, load_piece, &load, row_piece_count(items, count));
    for (uint32_t n = 0; n < layers; n++) {
        attention(e, n, items, count, rows);
        feed_forward(e, n, rows);
    }
    for (uint32_t i = 0; i < count; i++)
        if (items[i].kind == FORWARD_RAW)
            items[i].tail->count += items[i].rows;
    for (uint32_t i = 0; i < count && e->trace; i++)
        if (items[i].kind == FORWARD_STREAM && items[i].stream->layout.ratio > 1)
            e->trace->rows += items[i].rows;
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
