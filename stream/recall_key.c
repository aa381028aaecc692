/*
 * Recall keys: how near every token of the vocabulary is to a question, in one table of bytes.
 *
 * A chunk's key is the set of its tokens, so scoring a chunk is looking its tokens up and keeping
 * the best for each of the question's (late interaction, ColBERT, arXiv 2004.12832; FORMAT.md has
 * the formulas, retrofit/key.py the training). The question is read with nothing before it: the
 * same question asks for the same, wherever the stream stands.
 */
#include "stream/gpu.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

enum { QUESTION_MAX = RECALL_QUESTION_MAX, Q8_BLOCK_BYTES = 2 + KERNELS_BLOCK };

static void unit_rms(float *out, const float *x, uint32_t count)
{
    float sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    float scale = 1.0f / sqrtf(sum / (float)count + 1e-5f);
    for (uint32_t i = 0; i < count; i++)
        out[i] = x[i] * scale;
}

/* To the given length. */
static void set_length(float *x, uint32_t count, float length)
{
    float sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    float scale = length / sqrtf(sum > 1e-24f ? sum : 1e-24f);
    for (uint32_t i = 0; i < count; i++)
        x[i] *= scale;
}

static void embedding_row(const struct engine *e, int32_t token, float *out)
{
    size_t row_bytes = tensor_row_bytes(e->embedding->type, e->shape.dim);
    tensor_row(out, (const char *)e->embedding->data + (size_t)token * row_bytes,
               e->embedding->type, e->shape.dim);
    unit_rms(out, out, e->shape.dim);
}

/* A row as Q8_0 holds it: blocks of an f16 scale and 32 codes. */
static void quantize_row(uint8_t *out, const float *x, uint32_t count)
{
    for (uint32_t b = 0; b < count / KERNELS_BLOCK;
         b++, x += KERNELS_BLOCK, out += Q8_BLOCK_BYTES) {
        float top = 0;
        for (int i = 0; i < KERNELS_BLOCK; i++)
            top = fmaxf(top, fabsf(x[i]));
        f16 scale = f16_from_f32(top / 127);
        float inverse = top > 0 ? 127 / top : 0;
        memcpy(out, &scale, sizeof scale);
        for (int i = 0; i < KERNELS_BLOCK; i++)
            out[2 + i] = (uint8_t)(int8_t)lrintf(x[i] * inverse);
    }
}

void recall_key_rows(struct engine *e, const struct weight *map, const float *bias,
                     const float *gain, float *scratch, uint8_t *rows)
{
    const uint32_t dim = e->shape.dim, c = map->rows;
    float *in = scratch, *out = scratch + (size_t)KERNELS_ROWS_MAX * dim;
    for (uint32_t v = 0; v < e->shape.vocab; v += KERNELS_ROWS_MAX) {
        uint32_t count = e->shape.vocab - v;
        count = count < KERNELS_ROWS_MAX ? count : KERNELS_ROWS_MAX;
        for (uint32_t i = 0; i < count; i++)
            embedding_row(e, (int32_t)(v + i), in + (size_t)i * dim);
        e->kernels->matmul(e->kernels, out, c, map, in, dim, NULL, count, false);
        for (uint32_t i = 0; i < count; i++) {
            for (uint32_t j = 0; j < c; j++)
                out[i * c + j] += bias[j];
            set_length(out + i * c, c, gain[v + i]);
            quantize_row(rows + (v + i) * tensor_row_bytes(TENSOR_Q8_0, c), out + i * c, c);
        }
    }
}

size_t recall_table_bytes(const struct engine *engine)
{
    return engine->recall.dim ? (size_t)engine->shape.vocab * RECALL_QUERY_TOKENS : 0;
}

/* Queries of a block of the question's tokens, each as long as it counts. */
static void make_queries(struct engine *e, const int32_t *tokens, uint32_t count,
                         const float *hidden, float *out)
{
    const struct recall_key *r = &e->recall;
    const uint32_t dim = e->shape.dim, c = r->dim;
    for (uint32_t i = 0; i < count; i++) {
        embedding_row(e, tokens[i], r->input + (size_t)i * 2 * dim);
        unit_rms(r->input + (size_t)i * 2 * dim + dim, hidden + (size_t)i * dim, dim);
    }
    e->kernels->matmul(e->kernels, out, c, &r->query, r->input, 2 * dim, NULL, count, false);
    for (uint32_t i = 0; i < count; i++) {
        const float *deep = r->input + (size_t)i * 2 * dim + dim;
        float weight = r->weight[tokens[i]];
        for (uint32_t j = 0; j < dim; j++)
            weight += deep[j] * r->weight_deep[j];
        for (uint32_t j = 0; j < c; j++)
            out[i * c + j] += r->query_bias[j];
        set_length(out + i * c, c, weight > 20 ? weight : log1pf(expf(weight)));
    }
}

/* The RECALL_QUERY_TOKENS that count most come first; the rest is left out. */
static uint32_t keep_longest(const struct recall_key *r, uint32_t count)
{
    const uint32_t c = r->dim;
    while (count > RECALL_QUERY_TOKENS) {
        uint32_t least = 0;
        float length[QUESTION_MAX] = {0};
        for (uint32_t i = 0; i < count; i++) {
            for (uint32_t j = 0; j < c; j++)
                length[i] += r->queries[i * c + j] * r->queries[i * c + j];
            if (length[i] < length[least])
                least = i;
        }
        count--;
        memmove(r->queries + least * c, r->queries + (least + 1) * c,
                (size_t)(count - least) * c * sizeof(float));
    }
    return count;
}

static void fill_table(struct engine *e, uint32_t count, uint8_t *table)
{
    const struct recall_key *r = &e->recall;
    const uint32_t vocab = e->shape.vocab;
    float *near, top = 1e-9f;
    void *q;
    if (e->gpu) {
        near = e->gpu->near;
        q = e->gpu->quantized;
    } else {
        work_scratch(e->work, &near, &q);
    }
    e->kernels->quantize(e->kernels, q, r->queries, count, r->dim);
    e->kernels->matmul(e->kernels, near, vocab, &r->token, r->queries, r->dim, q, count, false);
    for (size_t i = 0; i < (size_t)count * vocab; i++)
        top = near[i] > top ? near[i] : top;
    for (uint32_t v = 0; v < vocab; v++)
        for (uint32_t i = 0; i < RECALL_QUERY_TOKENS; i++) {
            float x = i < count ? near[(size_t)i * vocab + v] * (255 / top) : 0;
            table[(size_t)v * RECALL_QUERY_TOKENS + i] = x > 0 ? (uint8_t)(x + 0.5f) : 0;
        }
}

/* Hidden states of a block of the question, behind those before it. */
static const float *read_block(struct engine *e, struct tail *tail, const int32_t *tokens,
                               uint32_t rows, uint32_t position)
{
    struct forward_item item = {
        .kind = FORWARD_RAW, .tail = tail, .tokens = tokens, .rows = rows, .position = position};
    struct gpu_rows run = {.tail = tail,
                           .tokens = tokens,
                           .count = rows,
                           .layers = e->recall.layer,
                           .position = position};
    struct gpu *g = e->gpu;
    if (!g)
        return forward_hidden(e, &item, e->recall.layer);
    if (gpu_rows_run(e, &run, 1))
        return NULL;
    g->cuda->copy_out(g->cuda, g->hidden, g->batch.x, (size_t)rows * e->shape.dim * sizeof(float));
    return g->cuda->sync(g->cuda) ? NULL : g->hidden;
}

int fork_recall_table(struct fork *f, const int32_t *tokens, uint32_t count, uint32_t from,
                      uint8_t *table)
{
    struct engine *e = f->stream.engine;
    const struct recall_key *r = &e->recall;
    uint32_t kept = 0;
    if (!r->dim)
        return -ENOTSUP;
    if (f->tail.count != f->pending || from >= count)
        return f->tail.count != f->pending ? -EBUSY : -EINVAL;
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->shape.vocab)
            return -EINVAL;
    if (count > from + QUESTION_MAX)
        count = from + QUESTION_MAX;
    if (count > f->tail.capacity - f->tail.count)
        return -ENOSPC;
    struct tail alone = f->tail; /* its free rows, and none of the stream's */
    alone.start = alone.count;
    for (uint32_t at = 0; at < count;) {
        uint32_t rows = count - at < STREAM_BLOCK_TOKENS ? count - at : STREAM_BLOCK_TOKENS;
        const float *hidden = read_block(e, &alone, tokens + at, rows, at);
        if (!hidden)
            return -EIO;
        uint32_t skip = from > at ? from - at < rows ? from - at : rows : 0;
        if (skip < rows)
            make_queries(e, tokens + at + skip, rows - skip, hidden + (size_t)skip * e->shape.dim,
                         r->queries + (size_t)kept * r->dim);
        kept += rows - skip;
        at += rows;
    }
    fill_table(e, keep_longest(r, kept), table);
    return 0;
}

uint32_t recall_score(const uint8_t *table, const uint16_t *tokens, uint32_t count)
{
    uint8_t best[RECALL_QUERY_TOKENS] = {0};
    uint32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *near = table + (size_t)tokens[i] * RECALL_QUERY_TOKENS;
        for (int j = 0; j < RECALL_QUERY_TOKENS; j++)
            best[j] = near[j] > best[j] ? near[j] : best[j];
    }
    for (int j = 0; j < RECALL_QUERY_TOKENS; j++)
        sum += best[j];
    return sum;
}
