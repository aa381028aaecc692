/*
 * Attention over vectors (see simd.h), online softmax over tiles of 64 rows.
 *
 * Many queries: a lane is a query, and keys and values are broadcast, so that nothing is ever
 * summed across lanes and a query's result cannot depend on its neighbours. The heads of a group
 * share each broadcast. Few queries: a lane is a key while scores are made, and a dimension while
 * values are added up. Both do the same operations in the same order on a query's numbers, so which
 * of the two runs never shows, bit for bit:
 *
 *   score  a chain of fused multiply-adds over the dimensions, ascending, then times scale
 *   sums   l = l * e^(old top - new top), then + p for each row of the tile, ascending; values too
 *
 * A row that a query does not see has p = 0, which leaves its sums as they are.
 *
 * How far from the limit: 32 queries over 700 rows run at 72 % of the fp32 multiply-add peak (a
 * tenth goes to exponents, the rest to widening f16 and to sums that pass through the cache); one
 * query at 35 to 40 %, a third of it spent on turning keys.
 */
#include "kernels/attend_work.h"

/* ---- many queries ---- */

static void many_load(struct attend_work *w)
{
    vec block[LANES];
    const struct attend_job *job = w->job;
    for (uint32_t h = 0; h < w->heads; h++)
        for (uint32_t c = 0; c < w->dims; c += LANES) {
            vec_mask mask = mask_first(w->head_dim - c);
            UNROLL
            for (uint32_t i = 0; i < LANES; i++) {
                uint32_t query = w->query + min_u32(i, w->queries - 1);
                size_t at = query * job->stride + (size_t)(w->head + h) * w->head_dim + c;
                block[i] = v_load_part(job->q + at, mask);
            }
            v_transpose(block);
            UNROLL
            for (uint32_t i = 0; i < LANES; i++)
                v_store(w->q + (h * w->dims + c + i) * LANES, block[i]);
        }
    sums_clear(w, w->dims * LANES);
}

static void many_store(struct attend_work *w)
{
    vec block[LANES];
    const struct attend_job *job = w->job;
    for (uint32_t h = 0; h < w->heads; h++)
        for (uint32_t c = 0; c < w->dims; c += LANES) {
            vec_mask mask = mask_first(w->head_dim - c);
            UNROLL
            for (uint32_t i = 0; i < LANES; i++)
                block[i] = over(v_load(w->out + (h * w->dims + c + i) * LANES), w->total[h]);
            v_transpose(block);
            UNROLL
            for (uint32_t i = 0; i < LANES; i++) {
                size_t at =
                    (w->query + i) * job->out_stride + (size_t)(w->head + h) * w->head_dim + c;
                if (i < w->queries)
                    v_store_part(job->out + at, block[i], mask);
            }
        }
}

/* p = scale * q . k for `step` rows at a time */
INLINE void many_scores(struct attend_work *w, const uint32_t heads, const uint32_t step)
{
    const uint32_t dims = w->dims;
    const vec scale = v_set(w->scale);
    for (uint32_t j = 0; j < w->rows; j += step) {
        vec sum[24];
        UNROLL
        for (uint32_t i = 0; i < step * heads; i++)
            sum[i] = v_set(0.0f);
        const float *k = w->keys + j * dims, *q = w->q;
        for (uint32_t c = 0; c < w->head_dim; c++, k++, q += LANES) {
            vec lanes[HEADS_MAX];
            UNROLL
            for (uint32_t h = 0; h < heads; h++)
                lanes[h] = v_load(q + h * dims * LANES);
            UNROLL
            for (uint32_t r = 0; r < step; r++) {
                vec key = v_set(k[r * dims]);
                UNROLL
                for (uint32_t h = 0; h < heads; h++)
                    sum[r * heads + h] = v_fma(key, lanes[h], sum[r * heads + h]);
            }
        }
        UNROLL
        for (uint32_t i = 0; i < step * heads; i++)
            v_store(w->p + (j * heads + i) * LANES, v_mul(sum[i], scale));
    }
}

/* Scores to weights, sums scaled to the new top. Rows are padded to a multiple of step. */
INLINE void many_softmax(struct attend_work *w, const uint32_t heads, uint32_t rows)
{
    for (uint32_t h = 0; h < heads; h++) {
        vec top = w->top[h];
        float *p = w->p + h * LANES;
        const size_t next = (size_t)heads * LANES;
        if (!w->plain)
            for (uint32_t j = 0; j < rows; j++) {
                vec s = v_select(mask_bits(w->seen[j]), v_load(p + j * next), v_set(-INFINITY));
                v_store(p + j * next, s);
            }
        for (uint32_t j = 0; j < rows; j++)
            top = v_max(top, v_load(p + j * next));
        vec shrink = v_exp_low(v_sub(w->top[h], top));
        vec total = v_mul(w->total[h], shrink);
        for (uint32_t j = 0; j < rows; j++) {
            vec e = v_exp_low(v_sub(v_load(p + j * next), top));
            total = v_add(total, e);
            v_store(p + j * next, e);
        }
        if (!v_equal(w->top[h], top)) /* else shrink is 1 */
            for (uint32_t c = 0; c < w->dims; c++) {
                float *out = w->out + (h * w->dims + c) * LANES;
                v_store(out, v_mul(v_load(out), shrink));
            }
        w->top[h] = top;
        w->total[h] = total;
    }
}

/* out += p * v, `step` dimensions at a time */
INLINE void many_values(struct attend_work *w, const uint32_t heads, const uint32_t step,
                        uint32_t rows)
{
    const uint32_t dims = w->dims;
    for (uint32_t c = 0; c < w->head_dim; c += step) {
        vec sum[24];
        float *out = w->out + c * LANES;
        UNROLL
        for (uint32_t h = 0; h < heads; h++)
            UNROLL
        for (uint32_t i = 0; i < step; i++)
            sum[h * step + i] = v_load(out + (h * dims + i) * LANES);
        const float *v = w->values + c, *p = w->p;
        for (uint32_t j = 0; j < rows; j++, v += dims, p += heads * LANES) {
            vec weight[HEADS_MAX];
            UNROLL
            for (uint32_t h = 0; h < heads; h++)
                weight[h] = v_load(p + h * LANES);
            UNROLL
            for (uint32_t i = 0; i < step; i++) {
                vec value = v_set(v[i]);
                UNROLL
                for (uint32_t h = 0; h < heads; h++)
                    sum[h * step + i] = v_fma(value, weight[h], sum[h * step + i]);
            }
        }
        UNROLL
        for (uint32_t h = 0; h < heads; h++)
            UNROLL
        for (uint32_t i = 0; i < step; i++)
            v_store(out + (h * dims + i) * LANES, sum[h * step + i]);
    }
}

INLINE void many_run(struct attend_work *w, const uint32_t heads)
{
    const uint32_t step = LANES / 2; /* 3 heads: 24 sums in 32 registers, or 12 in 16 */
    many_load(w);
    for (uint32_t at = w->rows_first; at < w->rows_end; at += TILE) {
        tile_find(w, at);
        uint32_t rows = (uint32_t)round_up(w->rows, step);
        for (uint32_t j = 0; j < w->rows; j++) {
            row_widen(w->keys + j * w->dims, w->key_row[j], w->head_dim, w->dims);
            row_widen(w->values + j * w->dims, w->value_row[j], w->head_dim, w->dims);
        }
        memset(w->keys + w->rows * w->dims, 0, (rows - w->rows) * w->dims * sizeof *w->keys);
        memset(w->values + w->rows * w->dims, 0, (rows - w->rows) * w->dims * sizeof *w->values);
        many_scores(w, heads, step);
        many_softmax(w, heads, rows);
        many_values(w, heads, step, rows);
    }
    many_store(w);
}

/* ---- one query of few ---- */

/* LANES rows from row j on, LANES dimensions from c on: rows become columns. */
INLINE void few_block(struct attend_work *w, uint32_t j, uint32_t c, const bool whole)
{
    vec block[LANES];
    UNROLL
    for (uint32_t i = 0; i < LANES; i++) {
        /* rows past the end repeat the last; nobody sees them */
        const f16 *from = w->key_row[min_u32(j + i, w->rows - 1)] + c;
        block[i] = whole ? v_load_f16(from) : v_load_f16_part(from, w->head_dim - c);
    }
    v_transpose(block);
    UNROLL
    for (uint32_t i = 0; i < LANES; i++) {
        v_store(w->keys + (c + i) * TILE + j, block[i]);
    }
}

static void few_keys(struct attend_work *w)
{
    for (uint32_t j = 0; j < TILE; j += LANES) {
        uint32_t c = 0;
        for (; c + LANES <= w->head_dim; c += LANES)
            few_block(w, j, c, true);
        if (c < w->dims)
            few_block(w, j, c, false);
    }
}

/* Asks for one row of the next tile, as far as it goes on where this tile's row does: one query's
 * rows come from memory. Past the end of a span a prefetch may run. */
INLINE void fetch_next(const struct attend_work *w, const f16 *const row[TILE], uint32_t j)
{
    const char *next = (const char *)(row[min_u32(j, w->rows - 1)] + (size_t)TILE * w->head_dim);
    for (uint32_t at = 0; at < w->head_dim * sizeof(f16); at += 64)
        _mm_prefetch(next + at, _MM_HINT_T0);
}

/* p = scale * q . k, four vectors of rows at a time. */
INLINE void few_scores(struct attend_work *w, const float *q, const uint32_t heads)
{
    enum { PARTS = 4 };
    for (uint32_t j = 0; j < TILE; j += PARTS * LANES) {
        vec sum[HEADS_MAX * PARTS];
        UNROLL
        for (uint32_t i = 0; i < heads * PARTS; i++) {
            sum[i] = v_set(0.0f);
        }
        for (uint32_t c = 0; c < w->head_dim; c++) {
            const float *key = w->keys + c * TILE + j;
            if (j == 0 && c < TILE)
                fetch_next(w, w->key_row, c);
            UNROLL
            for (uint32_t h = 0; h < heads; h++) {
                vec one = v_set(q[h * w->head_dim + c]);
                UNROLL
                for (uint32_t p = 0; p < PARTS; p++) {
                    vec *to = &sum[h * PARTS + p];
                    *to = v_fma(v_load(key + p * LANES), one, *to);
                }
            }
        }
        UNROLL
        for (uint32_t h = 0; h < heads; h++) {
            UNROLL
            for (uint32_t p = 0; p < PARTS; p++) {
                vec score = v_mul(sum[h * PARTS + p], v_set(w->scale));
                v_store(w->p + h * TILE + j + p * LANES, score);
            }
        }
    }
}

/* Scores to weights; what has been summed up of out and total is scaled to the new top. */
static void few_softmax(struct attend_work *w, uint32_t h)
{
    enum { PARTS = TILE / LANES };
    float *p = w->p + h * TILE, *out = w->out + h * w->dims;
    if (!w->plain)
        for (uint32_t j = 0; j < TILE; j++)
            p[j] = w->seen[j] & 1 ? p[j] : -INFINITY;
    vec top = w->top[h];
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++) {
        top = v_max(top, v_load(p + i * LANES));
    }
    top = v_set(v_top(top));
    UNROLL
    for (uint32_t i = 0; i < PARTS; i++) {
        v_store(p + i * LANES, v_exp_low(v_sub(v_load(p + i * LANES), top)));
    }
    if (v_equal(w->top[h], top)) /* shrink would be 1 */
        return;
    vec shrink = v_exp_low(v_sub(w->top[h], top));
    w->total[h] = v_mul(w->total[h], shrink);
    for (uint32_t c = 0; c < w->dims; c += LANES)
        v_store(out + c, v_mul(v_load(out + c), shrink));
    w->top[h] = top;
}

/* `parts` vectors of dimensions from c on, of all heads; the weights' total along with the first.
 */
INLINE void few_values(struct attend_work *w, const uint32_t heads, uint32_t c,
                       const uint32_t parts, const bool whole)
{
    vec sum[HEADS_MAX * 4], total[HEADS_MAX];
    float *out = w->out + c;
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        total[h] = w->total[h];
        UNROLL
        for (uint32_t i = 0; i < parts; i++) {
            sum[h * parts + i] = v_load(out + h * w->dims + i * LANES);
        }
    }
    for (uint32_t j = 0; j < w->rows; j++) {
        const f16 *from = w->value_row[j] + c;
        vec value[4];
        if (c == 0)
            fetch_next(w, w->value_row, j);
        UNROLL
        for (uint32_t i = 0; i < parts; i++) {
            value[i] =
                whole ? v_load_f16(from + i * LANES) : v_load_f16_part(from, w->head_dim - c);
        }
        UNROLL
        for (uint32_t h = 0; h < heads; h++) {
            vec weight = v_set(w->p[h * TILE + j]);
            total[h] = v_add(total[h], weight);
            UNROLL
            for (uint32_t i = 0; i < parts; i++) {
                sum[h * parts + i] = v_fma(value[i], weight, sum[h * parts + i]);
            }
        }
    }
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        if (c + parts * LANES >= w->dims) /* once a tile */
            w->total[h] = total[h];
        UNROLL
        for (uint32_t i = 0; i < parts; i++) {
            v_store(out + h * w->dims + i * LANES, sum[h * parts + i]);
        }
    }
}

INLINE void few_run(struct attend_work *w, const uint32_t heads)
{
    const struct attend_job *job = w->job;
    const float *q = job->q + w->query * job->stride + (size_t)w->head * w->head_dim;
    float *out = job->out + w->query * job->out_stride + (size_t)w->head * w->head_dim;
    sums_clear(w, w->dims);
    for (uint32_t row = w->rows_first; row < w->rows_end; row += TILE) {
        uint32_t c = 0;
        tile_find(w, row);
        few_keys(w);
        few_scores(w, q, heads);
        for (uint32_t h = 0; h < heads; h++)
            few_softmax(w, h);
        for (; c + 4 * LANES <= w->head_dim; c += 4 * LANES)
            few_values(w, heads, c, 4, true);
        for (; c + LANES <= w->head_dim; c += LANES)
            few_values(w, heads, c, 1, true);
        if (c < w->dims)
            few_values(w, heads, c, 1, false);
    }
    for (uint32_t h = 0; h < heads; h++)
        for (uint32_t c = 0; c < w->head_dim; c += LANES) {
            vec sum = over(v_load(w->out + h * w->dims + c), w->total[h]);
            v_store_part(out + h * w->head_dim + c, sum, mask_first(w->head_dim - c));
        }
}

/* ---- pieces: (job, up to 3 heads of its group, LANES queries) ---- */

struct attend_all {
    const struct attend_job *jobs;
    uint32_t head_dim, passes, chunks; /* passes over the heads, chunks of queries, the most of any
                                          job */
    float scale;
};

static uint32_t head_passes(uint32_t group)
{
    return (group + HEADS_MAX - 1) / HEADS_MAX;
}

static void work_run(struct attend_work *w)
{
    rows_bound(w);
    bool few = w->queries == 1;
    switch (w->heads) {
    case 1:
        few ? few_run(w, 1) : many_run(w, 1);
        return;
    case 2:
        few ? few_run(w, 2) : many_run(w, 2);
        return;
    default:
        assert(w->heads == HEADS_MAX);
        few ? few_run(w, HEADS_MAX) : many_run(w, HEADS_MAX);
    }
}

static void attend_piece(void *argument, uint32_t index)
{
    const struct attend_all *all = argument;
    const struct attend_job *job = &all->jobs[index / (all->passes * all->chunks)];
    uint32_t pass = index / all->chunks % all->passes, passes = head_passes(job->group);
    uint32_t query = index % all->chunks * LANES;
    if (pass >= passes || query >= job->queries)
        return;
    struct attend_work w;
    w.job = job;
    w.head_dim = all->head_dim;
    w.dims = (uint32_t)round_up(all->head_dim, LANES);
    w.scale = all->scale;
    /* heads shared out evenly: 4 are 2 + 2 */
    w.head = pass * job->group / passes;
    w.heads = (pass + 1) * job->group / passes - w.head;
    uint32_t queries = min_u32(job->queries - query, LANES);
    bool few = queries <= FEW_QUERIES;
    w.queries = few ? 1 : queries;
    for (w.query = query; w.query < query + queries; w.query += w.queries)
        work_run(&w);
}

void ISA(attend)(struct kernels *k, const struct attend_job *jobs, uint32_t count,
                 uint32_t head_dim, float scale)
{
    assert(head_dim > 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    struct attend_all all = {jobs, head_dim, 1, 1, scale};
    for (uint32_t j = 0; j < count; j++) {
        uint32_t passes = head_passes(jobs[j].group);
        uint32_t chunks = (jobs[j].queries + LANES - 1) / LANES;
        all.passes = passes > all.passes ? passes : all.passes;
        all.chunks = chunks > all.chunks ? chunks : all.chunks;
    }
    pool_run(k->pool, attend_piece, &all, count * all.passes * all.chunks);
}
