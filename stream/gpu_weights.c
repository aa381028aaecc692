/*
 * Weights on the device: q, k, v and gate, up fused, low-rank updates added before rounding to
 * bf16.
 *
 * Rows of four kinds of timelines use different q, k, v and o: base, with DMC's update, with
 * COMP's, with both. Either each kind has bf16 matrices of its own, made here once, so that a pass
 * computes no update at all; or, where they would not fit, the file's values stay as they are, in
 * tiles, with the updates beside them, and a matrix is made before each of its products, in the
 * same place and by the same op: the same bits, for some time and a fraction of the bytes.
 * (gpu_pass.c multiplies such rows at once for single tokens.)
 */
#include "stream/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { O_PART = 3, LORA_PARTS = 4, LORA_ALIGN = 64 /* floats */ };
enum { BASE_ALONE = 1 << GPU_BASE };

/* One load: a place on the device for a file's rows, and for a layer's low-rank updates. */
struct upload {
    struct engine *e;
    struct gpu *g;
    char *source, *tiles; /* [sizes.part] as in the file, in tiles */
    float *lora_memory;   /* [sizes.lora] */
    size_t lora_used;
    float *host;                                       /* [sizes.lora] */
    struct cuda_lora lora[CUDA_LORAS_MAX][LORA_PARTS]; /* the layer's: DMC, COMP; q, k, v, o */
    uint32_t kinds;                                    /* bits */
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

/* ---- sizes ---- */

static bool quantised(enum tensor_type type)
{
    return type == TENSOR_Q4_0 || type == TENSOR_Q4_1 || type == TENSOR_Q8_0;
}

/* A tensor's rows on the device, quantised ones in tiles; the file has no more. */
static size_t rows_bytes(enum tensor_type type, uint32_t rows, uint32_t cols)
{
    if (quantised(type))
        rows = (rows + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS * CUDA_TILE_ROWS;
    return rows * tensor_row_bytes(type, cols);
}

static size_t part_bytes(const struct weight *part)
{
    return rows_bytes((enum tensor_type)part->layout, part->rows, part->cols);
}

static size_t file_bytes(const struct projection *p)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < p->count; i++)
        bytes += part_bytes(&p->part[i]);
    return bytes;
}

static size_t bf16_bytes(const struct projection *p)
{
    size_t rows = 0;
    for (uint32_t i = 0; i < p->count; i++)
        rows += p->part[i].rows;
    return rows * p->part[0].cols * sizeof(bf16);
}

/* Of 16 bits and more a value, bf16 is no larger and takes no time. */
static bool worth_keeping(const struct projection *p)
{
    return file_bytes(p) < bf16_bytes(p);
}

/* Floats of an update of a part: A [rank][cols], B [rows][rank]. */
static size_t lora_floats(const struct shape *s, const struct lora *l, int part)
{
    size_t in = part == O_PART ? (size_t)s->heads * s->head_dim : s->dim;
    size_t out = part == O_PART ? s->dim : part ? s->kv_dim : s->heads * s->head_dim;
    size_t count = l->rank[part] * (in + out);
    return (count + LORA_ALIGN - 1) / LORA_ALIGN * LORA_ALIGN;
}

static size_t layer_lora_floats(const struct shape *s, const struct layer *layer)
{
    size_t count = 0;
    for (int part = 0; part < LORA_PARTS; part++)
        count += lora_floats(s, &layer->dmc, part) + lora_floats(s, &layer->comp, part);
    return count;
}

static uint32_t kinds_of(const struct engine *e)
{
    bool dmc = e->info.ratio_count > 1, comp = e->shape.comp > 0;
    return BASE_ALONE | (dmc ? 1 << GPU_DMC : 0) | (comp ? 1 << GPU_COMP : 0) |
           (dmc && comp ? 1 << GPU_COMP_DMC : 0);
}

static struct weight embedding_of(const struct engine *e)
{
    return (struct weight){.data = (void *)e->embedding->data,
                           .layout = e->embedding->type,
                           .rows = e->shape.vocab,
                           .cols = e->shape.dim};
}

struct sizes {
    size_t bf16;    /* all matrices of all kinds, and the embeddings */
    size_t scratch; /* the largest one that would be kept as in the file */
    size_t part;    /* the largest part on the device, or the embeddings */
    size_t made;    /* the largest part of those that are bf16 anyway */
    size_t lora;    /* floats of a layer's updates, the most */
    size_t loras;   /* of all layers' */
    size_t less;    /* that those take as in the file which are worth it */
};

static void larger(size_t *most, size_t bytes)
{
    *most = bytes > *most ? bytes : *most;
}

/* A tied head: it lies there. */
static bool is_embedding(const struct engine *e, const struct projection *p)
{
    return p->part[0].data == e->embedding->data;
}

static void add_projection(struct sizes *s, const struct engine *e, const struct projection *p,
                           uint32_t kinds)
{
    size_t bytes = bf16_bytes(p) * (size_t)__builtin_popcount(kinds);
    s->bf16 += bytes;
    if (worth_keeping(p)) {
        larger(&s->scratch, bf16_bytes(p));
        s->less += bytes - (is_embedding(e, p) ? 0 : file_bytes(p));
    }
    for (uint32_t i = 0; i < p->count; i++)
        larger(worth_keeping(p) ? &s->part : &s->made, part_bytes(&p->part[i]));
}

static struct sizes sizes_of(const struct engine *e)
{
    struct weight embedding = embedding_of(e);
    struct sizes s = {.bf16 = part_bytes(&embedding), .part = part_bytes(&embedding)};
    uint32_t kinds = kinds_of(e);
    add_projection(&s, e, &e->head, BASE_ALONE);
    for (uint32_t n = 0; n < e->shape.layers; n++) {
        const struct layer *l = &e->layer[n];
        add_projection(&s, e, &l->qkv, kinds);
        add_projection(&s, e, &l->o, kinds);
        add_projection(&s, e, &l->gate_up, BASE_ALONE);
        add_projection(&s, e, &l->down, BASE_ALONE);
        larger(&s.lora, layer_lora_floats(&e->shape, l));
        s.loras += layer_lora_floats(&e->shape, l);
    }
    larger(&s.part, s.made);
    return s;
}

size_t gpu_bf16_bytes(const struct engine *e)
{
    return sizes_of(e).bf16;
}

size_t gpu_kept_bytes(const struct engine *e)
{
    struct sizes s = sizes_of(e);
    return e->gpu->keep || !s.scratch
               ? 0
               : e->gpu->weights_bytes - s.less + s.scratch + s.loras * sizeof(float);
}

/* ---- low-rank updates ---- */

/* A matrix's rows as fp32 on the host. */
static void floats_of(float *out, const struct weight *w)
{
    size_t row = tensor_row_bytes((enum tensor_type)w->layout, w->cols);
    for (uint32_t i = 0; i < w->rows; i++)
        tensor_row(out + (size_t)i * w->cols, (const char *)w->data + i * row,
                   (enum tensor_type)w->layout, w->cols);
}

/* A (rank x cols) and B (rows x rank) to the device, one behind the other. */
static struct cuda_lora send_lora(struct upload *u, const struct lora *l, int part)
{
    const struct shape *s = &u->e->shape;
    const struct weight *b = part == O_PART ? &l->o_b : &l->b[part];
    size_t count = lora_floats(s, l, part), a_count, a_from = 0;
    if (!count)
        return (struct cuda_lora){0};
    float *to = u->g->keep ? take(u, count * sizeof *to) : u->lora_memory + u->lora_used;
    if (!to)
        return (struct cuda_lora){0};
    if (part == O_PART) {
        a_count = (size_t)l->o_a.rows * l->o_a.cols;
        floats_of(u->host, &l->o_a);
    } else {
        a_count = (size_t)l->rank[part] * s->dim;
        for (int p = 0; p < part; p++)
            a_from += l->rank[p];
        memcpy(u->host, (const float *)l->in.data + a_from * s->dim, a_count * sizeof *to);
    }
    floats_of(u->host + a_count, b);
    u->g->cuda->copy_in(u->g->cuda, to, u->host,
                        (a_count + (size_t)b->rows * b->cols) * sizeof *to);
    u->lora_used += count;
    return (struct cuda_lora){.a = to, .b = to + a_count, .rank = b->cols};
}

static void send_loras(struct upload *u, const struct layer *layer)
{
    u->lora_used = 0;
    for (int part = 0; part < LORA_PARTS; part++) {
        u->lora[0][part] = send_lora(u, &layer->dmc, part);
        u->lora[1][part] = send_lora(u, &layer->comp, part);
    }
}

/* Those of part `part` that a kind adds. */
static void add_loras(struct upload *u, struct gpu_part *out, enum gpu_kind kind, int part)
{
    bool adds[CUDA_LORAS_MAX] = {kind == GPU_DMC || kind == GPU_COMP_DMC,
                                 kind == GPU_COMP || kind == GPU_COMP_DMC};
    for (int i = 0; i < CUDA_LORAS_MAX; i++)
        if (adds[i] && u->lora[i][part].rank)
            out->lora[out->loras++] = u->lora[i][part];
}

/* ---- matrices ---- */

static void make_part(struct gpu *g, const struct cuda_weight *w, const struct gpu_part *p)
{
    struct cuda_weight to = {w->data + (size_t)p->from * w->cols, p->rows, w->cols};
    g->cuda->weight_make(g->cuda, &to, p->source, p->type, p->lora, p->loras);
}

const struct cuda_weight *gpu_weight(struct gpu *g, const struct gpu_weight *w)
{
    for (uint32_t i = 0; i < w->parts; i++)
        make_part(g, &w->made, &w->part[i]);
    return &w->made;
}

const char *gpu_weights_are(const struct gpu *g)
{
    return g->keep ? ", kept quantised" : " as bf16";
}

/* Rows of a file's tensor, quantised ones in tiles: to stay at `to` or, where that is NULL, until
 * the next ones come. */
static const void *send_rows(struct upload *u, void *to, const struct weight *w)
{
    enum tensor_type type = (enum tensor_type)w->layout;
    struct cuda *c = u->g->cuda;
    size_t bytes = w->rows * tensor_row_bytes(type, w->cols);
    if (w->data == u->e->embedding->data && u->g->embedding)
        return u->g->embedding;
    if (!quantised(type)) {
        c->copy_in(c, to ? to : u->source, w->data, bytes);
        return to ? to : u->source;
    }
    c->copy_in(c, u->source, w->data, bytes);
    to = to ? to : u->tiles;
    c->tile(c, to, u->source, type, w->rows, w->cols);
    return to;
}

static struct gpu_part part_of(const struct projection *p, uint32_t i, const void *source)
{
    enum tensor_type type = (enum tensor_type)p->part[i].layout;
    return (struct gpu_part){.source = source,
                             .type = type,
                             .quantised = quantised(type),
                             .from = p->column[i],
                             .rows = p->part[i].rows};
}

/* Whether parts that lie one behind the other are the tiles of one matrix. */
static bool one_matrix(const struct projection *p)
{
    bool one = true;
    for (uint32_t i = 0; i + 1 < p->count; i++)
        one = one && p->part[i].layout == p->part[i + 1].layout &&
              p->part[i].rows % CUDA_TILE_ROWS == 0;
    return one;
}

/* out [GPU_KINDS], of which `kinds` are wanted. first_part: of q, k, v, o, whose updates are added;
 * -1: none are. */
static void load_projection(struct upload *u, struct gpu_weight *out, uint32_t kinds,
                            const struct projection *p, int first_part)
{
    bool keep = u->g->keep && worth_keeping(p);
    size_t bytes = bf16_bytes(p);
    uint32_t cols = p->part[0].cols, rows = (uint32_t)(bytes / sizeof(bf16) / cols);
    char *to = keep && !is_embedding(u->e, p) ? take(u, file_bytes(p)) : NULL;
    for (enum gpu_kind k = 0; kinds >> k; k++)
        if (kinds >> k & 1) {
            out[k].made = (struct cuda_weight){keep ? u->g->scratch : take(u, bytes), rows, cols};
            out[k].one = one_matrix(p);
        }
    for (uint32_t i = 0; i < p->count && !u->failed; i++) {
        const void *source = send_rows(u, to, &p->part[i]);
        to = to ? to + part_bytes(&p->part[i]) : NULL;
        for (enum gpu_kind k = 0; kinds >> k; k++) {
            struct gpu_part part = part_of(p, i, source);
            if (!(kinds >> k & 1))
                continue;
            if (first_part >= 0)
                add_loras(u, &part, k, first_part + (int)i);
            if (keep)
                out[k].part[out[k].parts++] = part;
            else
                make_part(u->g, &out[k].made, &part);
        }
    }
}

static void load_layer(struct upload *u, uint32_t n)
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
    send_loras(u, from);
    load_projection(u, to->qkv, u->kinds, &from->qkv, 0);
    load_projection(u, to->o, u->kinds, &from->o, O_PART);
    load_projection(u, &to->gate_up, BASE_ALONE, &from->gate_up, -1);
    load_projection(u, &to->down, BASE_ALONE, &from->down, -1);
}

/* Of all heads, keys' and values' in turn, each matrix turned over: what threads of neighbouring
 * columns read lies side by side. */
static void load_summary_map(struct upload *u)
{
    const struct engine *e = u->e;
    size_t dim = e->shape.head_dim, square = dim * dim, matrices = 2 * (size_t)u->g->heads;
    uint32_t kv_heads = e->shape.kv_heads;
    if (!e->layer[0].summary_map)
        return;
    float *rows = malloc((square + matrices * (square + dim)) * sizeof *rows);
    if (!rows) {
        u->failed = true;
        return;
    }
    float *map = rows + square, *bias = map + matrices * square;
    for (size_t m = 0; m < matrices; m++) {
        const struct layer *layer = &e->layer[m / 2 / kv_heads];
        size_t part = m / 2 % kv_heads + m % 2 * kv_heads;
        floats_of(rows, &layer->summary_map[part]);
        for (size_t i = 0; i < square; i++)
            map[m * square + i % dim * dim + i / dim] = rows[i];
        memcpy(bias + m * dim, layer->summary_bias + part * dim, dim * sizeof *bias);
    }
    u->g->summary_map = send_floats(u, map, matrices * square);
    u->g->summary_bias = send_floats(u, bias, matrices * dim);
    free(rows);
}

static void load_shared(struct upload *u)
{
    struct engine *e = u->e;
    struct gpu *g = u->g;
    const struct shape *s = &e->shape;
    struct weight rows = embedding_of(e);
    void *embedding = take(u, part_bytes(&rows));
    if (embedding)
        send_rows(u, embedding, &rows);
    g->embedding = embedding;
    load_projection(u, &g->head, BASE_ALONE, &e->head, -1);
    g->output_norm = send_floats(u, e->output_norm, s->dim);
    g->comp_embedding = send_floats(u, e->comp_embedding, (size_t)s->comp * s->dim);
    g->ratio_bias = send_floats(u, e->ratio_bias, (size_t)(e->info.ratio_count - 1) * g->heads);
    load_summary_map(u);
    g->inverse_frequency = send(u, e->inverse_frequency, s->head_dim / 2 * sizeof(double));
}

int gpu_load_weights(struct engine *e, char *error, size_t error_bytes)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    struct sizes sizes = sizes_of(e);
    struct upload u = {.e = e, .g = g, .kinds = kinds_of(e)};
    g->keep = g->keep && sizes.scratch;
    g->scratch_bytes = g->keep ? sizes.scratch : 0;
    g->scratch = g->keep ? take(&u, sizes.scratch) : NULL;
    u.source = c->take(c, sizes.part);
    u.tiles = c->take(c, (g->keep ? sizes.made : sizes.part) + 1);
    u.lora_memory = c->take(c, sizes.lora * sizeof(float));
    u.host = malloc(sizes.lora * sizeof(float) + 1);
    u.failed = u.failed || !u.source || !u.tiles || !u.lora_memory || !u.host;
    if (!u.failed)
        load_shared(&u);
    for (uint32_t n = 0; n < e->shape.layers && !u.failed; n++)
        load_layer(&u, n);
    int code = c->sync(c);
    c->give(c, u.source);
    c->give(c, u.tiles);
    c->give(c, u.lora_memory);
    free(u.host);
    if (u.failed && !code)
        return fail_with(error, error_bytes, -ENOMEM,
                         "%s: no room for the weights%s, %zu MB so far of %zu MB that were free: "
                         "use a smaller model, or --device cpu",
                         c->name, gpu_weights_are(g), g->weights_bytes / MB,
                         c->memory_free_bytes / MB);
    return code ? fail_with(error, error_bytes, code, "%s", c->error_text) : 0;
}
