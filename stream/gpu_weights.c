/*
 * Weights on the device: bf16, q, k, v and gate, up fused, low-rank updates added before rounding.
 *
 * Rows of four kinds of timelines use different q, k, v and o: base, with DMC's update, with
 * COMP's, with both. Each kind gets matrices of its own, so that a pass computes no update at all.
 */
#include "stream/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One load: a place on the device for a file's rows, and for a low-rank update. */
struct upload {
    struct engine *e;
    struct gpu *g;
    char *source;
    size_t source_bytes;
    float *lora[CUDA_LORAS_MAX]; /* [rank][cols] then [rows][rank] */
    size_t lora_bytes;
    float *host; /* of lora_bytes */
    bool failed;
};

static void *take(struct upload *u, size_t bytes)
{
    void *memory = u->g->cuda->take(u->g->cuda, bytes);
    u->failed = u->failed || !memory;
    u->g->weights_bytes += bytes;
    return memory;
}

static void *send(struct upload *u, const void *host, size_t bytes)
{
    void *memory = take(u, bytes);
    if (memory)
        u->g->cuda->copy_in(u->g->cuda, memory, host, bytes);
    return memory;
}

static float *send_floats(struct upload *u, const float *host, size_t count)
{
    return host ? send(u, host, count * sizeof *host) : NULL;
}

/* A matrix's rows as fp32 on the host. */
static void floats_of(float *out, const struct weight *w)
{
    size_t row = tensor_row_bytes((enum tensor_type)w->layout, w->cols);
    for (uint32_t i = 0; i < w->rows; i++)
        tensor_row(out + (size_t)i * w->cols, (const char *)w->data + i * row,
                   (enum tensor_type)w->layout, w->cols);
}

/* A (rank x cols) and B (rows x rank) to the device. */
static struct cuda_lora send_lora(struct upload *u, int which, const float *a,
                                  const struct weight *b, uint32_t cols)
{
    struct cuda *c = u->g->cuda;
    struct cuda_lora lora = {.rank = b->cols};
    float *to = u->lora[which];
    size_t a_count = (size_t)b->cols * cols;
    floats_of(u->host, b);
    c->copy_in(c, to, a, a_count * sizeof *a);
    c->copy_in(c, to + a_count, u->host, (size_t)b->rows * b->cols * sizeof *a);
    lora.a = to;
    lora.b = to + a_count;
    return lora;
}

/* The low-rank updates of part `part` (q, k, v; 3: o) of a kind. */
static uint32_t loras_of(struct upload *u, const struct layer *layer, enum gpu_kind kind, int part,
                         uint32_t cols, struct cuda_lora *out, float *o_a)
{
    const struct lora *from[2] = {
        kind == GPU_DMC || kind == GPU_COMP_DMC ? &layer->dmc : NULL,
        kind == GPU_COMP || kind == GPU_COMP_DMC ? &layer->comp : NULL,
    };
    uint32_t count = 0;
    for (int i = 0; i < 2; i++) {
        const struct lora *l = from[i];
        if (!l || !l->rank[part])
            continue;
        if (part == 3) {
            floats_of(o_a, &l->o_a);
            out[count] = send_lora(u, (int)count, o_a, &l->o_b, cols);
        } else {
            uint32_t at = 0;
            for (int p = 0; p < part; p++)
                at += l->rank[p];
            const float *a = (const float *)l->in.data + (size_t)at * cols;
            out[count] = send_lora(u, (int)count, a, &l->b[part], cols);
        }
        count++;
    }
    return count;
}

/* Rows [row, row + part's) of out; all of the part's file rows go over once. */
static void make_part(struct upload *u, const struct cuda_weight *out, uint32_t row,
                      const struct weight *part, const struct cuda_lora *lora, uint32_t loras)
{
    struct cuda *c = u->g->cuda;
    enum tensor_type type = (enum tensor_type)part->layout;
    struct cuda_weight to = {out->data + (size_t)row * out->cols, part->rows, part->cols};
    c->copy_in(c, u->source, part->data, part->rows * tensor_row_bytes(type, part->cols));
    c->weight_make(c, &to, u->source, type, lora, loras);
}

static struct cuda_weight make_projection(struct upload *u, const struct projection *p,
                                          const struct layer *layer, enum gpu_kind kind,
                                          int first_part, float *o_a)
{
    struct cuda_weight out = {.cols = p->part[0].cols};
    for (uint32_t i = 0; i < p->count; i++)
        out.rows += p->part[i].rows;
    out.data = take(u, (size_t)out.rows * out.cols * sizeof(bf16));
    for (uint32_t i = 0; out.data && i < p->count; i++) {
        struct cuda_lora lora[CUDA_LORAS_MAX];
        uint32_t loras =
            first_part < 0 ? 0 : loras_of(u, layer, kind, first_part + (int)i, out.cols, lora, o_a);
        make_part(u, &out, p->column[i], &p->part[i], lora, loras);
    }
    return out;
}

static bool has_kind(const struct engine *e, enum gpu_kind kind)
{
    bool dmc = e->info.ratio_count > 1, comp = e->shape.comp > 0;
    return kind == GPU_BASE || (kind == GPU_DMC && dmc) || (kind == GPU_COMP && comp) ||
           (kind == GPU_COMP_DMC && dmc && comp);
}

static void load_layer(struct upload *u, uint32_t n, float *o_a)
{
    const struct engine *e = u->e;
    const struct shape *s = &e->shape;
    const struct layer *from = &e->layer[n];
    struct gpu_layer *to = &u->g->layer[n];
    to->attn_norm = send_floats(u, from->attn_norm, s->dim);
    to->ffn_norm = send_floats(u, from->ffn_norm, s->dim);
    if (from->dmc.decide_bias) {
        const float *rows =
            (const float *)from->dmc.in.data + (size_t)from->dmc.decide_column * s->dim;
        to->decide = send_floats(u, rows, (size_t)2 * s->kv_heads * s->dim);
        to->decide_bias = send_floats(u, from->dmc.decide_bias, 2 * s->kv_heads);
    }
    for (enum gpu_kind kind = 0; kind < GPU_KINDS; kind++) {
        if (!has_kind(e, kind))
            continue;
        to->qkv[kind] = make_projection(u, &from->qkv, from, kind, 0, o_a);
        to->o[kind] = make_projection(u, &from->o, from, kind, 3, o_a);
    }
    to->gate_up = make_projection(u, &from->gate_up, from, GPU_BASE, -1, o_a);
    to->down = make_projection(u, &from->down, from, GPU_BASE, -1, o_a);
}

static void widest(struct upload *u, const struct projection *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        size_t bytes = p->part[i].rows *
                       tensor_row_bytes((enum tensor_type)p->part[i].layout, p->part[i].cols);
        u->source_bytes = bytes > u->source_bytes ? bytes : u->source_bytes;
    }
}

static void widest_lora(struct upload *u, const struct lora *l)
{
    const struct shape *s = &u->e->shape;
    size_t wide = s->heads * s->head_dim > s->dim ? s->heads * s->head_dim : s->dim;
    for (int i = 0; i < 4; i++) {
        size_t bytes = 2 * wide * l->rank[i] * sizeof(float);
        u->lora_bytes = bytes > u->lora_bytes ? bytes : u->lora_bytes;
    }
}

static void measure(struct upload *u)
{
    const struct engine *e = u->e;
    widest(u, &e->head);
    for (uint32_t n = 0; n < e->shape.layers; n++) {
        const struct layer *l = &e->layer[n];
        widest(u, &l->qkv);
        widest(u, &l->o);
        widest(u, &l->gate_up);
        widest(u, &l->down);
        widest_lora(u, &l->comp);
        widest_lora(u, &l->dmc);
    }
}

static void load_shared(struct upload *u)
{
    struct engine *e = u->e;
    struct gpu *g = u->g;
    const struct shape *s = &e->shape;
    g->head = make_projection(u, &e->head, NULL, GPU_BASE, -1, NULL);
    g->embedding = send(u, e->embedding->data, e->embedding->data_bytes);
    g->output_norm = send_floats(u, e->output_norm, s->dim);
    g->comp_embedding = send_floats(u, e->comp_embedding, (size_t)s->comp * s->dim);
    g->ratio_bias = send_floats(u, e->ratio_bias, (size_t)(e->info.ratio_count - 1) * g->heads);
    g->inverse_frequency = send(u, e->inverse_frequency, s->head_dim / 2 * sizeof(double));
}

int gpu_load_weights(struct engine *e, char *error, size_t error_bytes)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    struct upload u = {.e = e, .g = g};
    measure(&u);
    float *o_a = NULL;
    u.source = c->take(c, u.source_bytes);
    u.failed = !u.source;
    if (u.lora_bytes) {
        u.host = malloc(u.lora_bytes);
        o_a = malloc(u.lora_bytes);
        for (int i = 0; i < CUDA_LORAS_MAX; i++) {
            u.lora[i] = c->take(c, u.lora_bytes);
            u.failed = u.failed || !u.lora[i] || !u.host || !o_a;
        }
    }
    if (!u.failed)
        load_shared(&u);
    for (uint32_t n = 0; n < e->shape.layers && !u.failed; n++)
        load_layer(&u, n, o_a);
    int code = c->sync(c);
    c->give(c, u.source);
    for (int i = 0; i < CUDA_LORAS_MAX; i++)
        c->give(c, u.lora[i]);
    free(u.host);
    free(o_a);
    if (u.failed && !code)
        return fail_with(error, error_bytes, -ENOMEM,
                         "%s: no room for the weights, %zu MB of %zu MB free so far", c->name,
                         g->weights_bytes >> 20, c->memory_free_bytes >> 20);
    return code ? fail_with(error, error_bytes, code, "%s", c->error_text) : 0;
}
