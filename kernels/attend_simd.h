/*
 * Attention over vectors (see simd.h), online softmax over tiles of 64 rows.
 *
 * Rows come in stretches of 256, counted from the job's first row. Each has sums of its own, and
 * they are joined in ascending order (flash-decoding, Dao et al. 2023): so that the stretches of
 * one query can be shared out over threads, and the bits are the same if they are not.
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
 * tenth goes to exponents, the rest to widening f16 and to sums that pass through the cache). One
 * query of a long history runs at the speed of memory with two threads; with one at 35 % of that
 * peak, a third of it spent on turning keys.
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
                block[i] =
                    over(v_load(w->joined.out + (h * w->dims + c + i) * LANES), w->joined.total[h]);
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
    const uint32_t floats = w->dims * LANES;
    many_load(w);
    sums_clear(w, floats);
    joined_clear(w, floats);
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
        if ((at + TILE) % STRETCH == 0 || at + TILE >= w->rows_end) {
            sums_join(w, floats);
            sums_clear(w, floats);
        }
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

/* Asks for row j of a tile, or, with ahead = TILE, for the row of the next tile as far as it goes
 * on where this tile's does: one query's rows come from memory. Past the end of a span a prefetch
 * may run. */
INLINE void fetch(const struct attend_work *w, const f16 *const row[TILE], uint32_t j, size_t ahead)
{
    const char *from = (const char *)(row[min_u32(j, w->rows - 1)] + ahead * w->head_dim);
    for (uint32_t at = 0; at < w->head_dim * sizeof(f16); at += 64)
        _mm_prefetch(from + at, _MM_HINT_T0);
}

/* p = scale * q . k, four vectors of rows at a time. */
INLINE void few_scores(struct attend_work *w, const float *q, bool first, const uint32_t heads)
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
            if (j == 0 && c < TILE) {
                fetch(w, w->key_row, c, TILE);
                if (first)
                    fetch(w, w->value_row, c, 0);
            }
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
            fetch(w, w->value_row, j, TILE);
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

/* The rows from `row` to the end of their stretch. */
INLINE void few_stretch(struct attend_work *w, uint32_t row, const uint32_t heads)
{
    const float *q = w->job->q + w->query * w->job->stride + (size_t)w->head * w->head_dim;
    uint32_t end = min_u32((row / STRETCH + 1) * STRETCH, w->rows_end);
    sums_clear(w, w->dims);
    for (bool first = true; row < end; row += TILE, first = false) {
        uint32_t c = 0;
        tile_find(w, row);
        few_keys(w);
        few_scores(w, q, first, heads);
        for (uint32_t h = 0; h < heads; h++)
            few_softmax(w, h);
        for (; c + 4 * LANES <= w->head_dim; c += 4 * LANES)
            few_values(w, heads, c, 4, true);
        for (; c + LANES <= w->head_dim; c += LANES)
            few_values(w, heads, c, 1, true);
        if (c < w->dims)
            few_values(w, heads, c, 1, false);
    }
}

static void few_store(const struct attend_work *w)
{
    const struct attend_job *job = w->job;
    float *out = job->out + w->query * job->out_stride + (size_t)w->head * w->head_dim;
    for (uint32_t h = 0; h < w->heads; h++)
        for (uint32_t c = 0; c < w->head_dim; c += LANES) {
            vec sum = over(v_load(w->joined.out + h * w->dims + c), w->joined.total[h]);
            v_store_part(out + h * w->head_dim + c, sum, mask_first(w->head_dim - c));
        }
}

static void few_sums(struct attend_work *w, uint32_t row)
{
    switch (w->heads) {
    case 1:
        few_stretch(w, row, 1);
        return;
    case 2:
        few_stretch(w, row, 2);
        return;
    default:
        assert(w->heads == HEADS_MAX);
        few_stretch(w, row, HEADS_MAX);
    }
}

static void few_run(struct attend_work *w)
{
    joined_clear(w, w->dims);
    for (uint32_t row = w->rows_first; row < w->rows_end; row = (row / STRETCH + 1) * STRETCH) {
        few_sums(w, row);
        sums_join(w, w->dims);
    }
    few_store(w);
}

/* ---- pieces: (LANES queries, job, up to 3 heads of its group) ---- */

struct attend_all {
    const struct attend_job *jobs;
    uint32_t count;                    /* jobs */
    uint32_t head_dim, passes, chunks; /* passes over the heads, chunks of queries, the most of any
                                          job */
    float scale;
    uint32_t stretches; /* of one query, the most of any job */
    uint32_t runs;      /* pieces of one query */
    float *part;        /* [job][pass][query][stretch]: part_floats, see part_store */
};

static uint32_t head_passes(uint32_t group)
{
    return (group + HEADS_MAX - 1) / HEADS_MAX;
}

/* Some heads of a job; heads are shared out evenly: 4 are 2 + 2. */
static void work_begin(struct attend_work *w, const struct attend_all *all, uint32_t job,
                       uint32_t pass)
{
    w->job = &all->jobs[job];
    uint32_t group = w->job->group, passes = head_passes(group);
    w->head_dim = all->head_dim;
    w->dims = (uint32_t)round_up(all->head_dim, LANES);
    w->scale = all->scale;
    w->head = pass * group / passes;
    w->heads = (pass + 1) * group / passes - w->head;
}

static void many_heads(struct attend_work *w)
{
    switch (w->heads) {
    case 1:
        many_run(w, 1);
        return;
    case 2:
        many_run(w, 2);
        return;
    default:
        assert(w->heads == HEADS_MAX);
        many_run(w, HEADS_MAX);
    }
}

static void attend_piece(void *argument, uint32_t index)
{
    const struct attend_all *all = argument;
    uint32_t pass = index % all->passes, job = index / all->passes % all->count;
    uint32_t query = index / all->passes / all->count * LANES;
    if (pass >= head_passes(all->jobs[job].group) || query >= all->jobs[job].queries)
        return;
    struct attend_work w;
    work_begin(&w, all, job, pass);
    uint32_t queries = min_u32(w.job->queries - query, LANES);
    bool few = queries <= FEW_QUERIES;
    w.queries = few ? 1 : queries;
    for (w.query = query; w.query < query + queries; w.query += w.queries) {
        rows_bound(&w);
        few ? few_run(&w) : many_heads(&w);
    }
}

/* ---- pieces of few queries over many rows: (job, heads, query, run of stretches) ---- */

enum { PART_FLOATS_MAX = 32768 };

/* What a part holds: top, total [heads] of a vector each, out [heads][dims]. */
static uint32_t part_floats(uint32_t head_dim)
{
    return HEADS_MAX * (2 * LANES + (uint32_t)round_up(head_dim, LANES));
}

static void part_store(const struct attend_work *w, float *part)
{
    for (uint32_t h = 0; h < w->heads; h++, part += 2 * LANES) {
        v_store(part, w->top[h]);
        v_store(part + LANES, w->total[h]);
    }
    memcpy(part, w->out, (size_t)w->heads * w->dims * sizeof *part);
}

static void part_load(struct attend_work *w, const float *part)
{
    for (uint32_t h = 0; h < w->heads; h++, part += 2 * LANES) {
        w->top[h] = v_load(part);
        w->total[h] = v_load(part + LANES);
    }
    memcpy(w->out, part, (size_t)w->heads * w->dims * sizeof *part);
}

/* Query `index` of (job, pass, query); false: there is none, or it sees nothing. */
static bool shared_query(struct attend_work *w, const struct attend_all *all, uint32_t index)
{
    uint32_t job = index / (all->passes * all->chunks), pass = index / all->chunks % all->passes;
    w->query = index % all->chunks;
    w->queries = 1;
    if (pass >= head_passes(all->jobs[job].group) || w->query >= all->jobs[job].queries)
        return false;
    work_begin(w, all, job, pass);
    rows_bound(w);
    return true;
}

/* A run is fetched ahead of its use as one, so it is as long as sharing allows. */
static void shared_piece(void *argument, uint32_t index)
{
    const struct attend_all *all = argument;
    struct attend_work w;
    uint32_t query = index / all->runs, run = index % all->runs;
    if (!shared_query(&w, all, query))
        return;
    uint32_t from = run * all->stretches / all->runs, to = (run + 1) * all->stretches / all->runs;
    float *part = all->part + (size_t)query * all->stretches * part_floats(all->head_dim);
    for (uint32_t s = from; s < to; s++) {
        uint32_t row = s * STRETCH > w.rows_first ? s * STRETCH : w.rows_first;
        if (row / STRETCH != s || row >= w.rows_end)
            continue;
        few_sums(&w, row);
        part_store(&w, part + (size_t)s * part_floats(all->head_dim));
    }
}

static void shared_join(const struct attend_all *all, uint32_t index)
{
    struct attend_work w;
    if (!shared_query(&w, all, index))
        return;
    joined_clear(&w, w.dims);
    for (uint32_t s = w.rows_first / STRETCH; s * STRETCH < w.rows_end; s++) {
        size_t part = (size_t)index * all->stretches + s;
        part_load(&w, all->part + part * part_floats(all->head_dim));
        sums_join(&w, w.dims);
    }
    few_store(&w);
}

/* Runs a query, so that threads get as much each; 1: they do without. Few rows are read sooner than
 * parts pass from core to core. */
static uint32_t shared_runs(uint32_t threads, uint32_t queries, uint32_t stretches)
{
    enum { STRETCHES_SHARED = 8 };
    uint32_t runs = 1;
    while (stretches >= STRETCHES_SHARED && runs < stretches && queries * runs % threads != 0 &&
           queries * runs < 4 * threads)
        runs++;
    return runs;
}

/* False: nothing gained, or too many parts to hold. */
static bool attend_shared(struct kernels *k, struct attend_all *all, uint32_t count,
                          uint32_t queries)
{
    _Alignas(64) float part[PART_FLOATS_MAX];
    uint32_t units = count * all->passes * queries;
    all->runs = shared_runs(k->threads, units, all->stretches);
    if (all->runs == 1 || queries > FEW_QUERIES ||
        (size_t)units * all->stretches * part_floats(all->head_dim) > PART_FLOATS_MAX)
        return false;
    all->chunks = queries;
    all->part = part;
    pool_run(k->pool, shared_piece, all, units * all->runs);
    for (uint32_t i = 0; i < units; i++)
        shared_join(all, i);
    return true;
}

void ISA(attend)(struct kernels *k, const struct attend_job *jobs, uint32_t count,
                 uint32_t head_dim, float scale)
{
    assert(head_dim > 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    struct attend_all all = {
        .jobs = jobs, .count = count, .head_dim = head_dim, .passes = 1, .scale = scale};
    uint32_t queries = 0;
    for (uint32_t j = 0; j < count; j++) {
        uint32_t passes = head_passes(jobs[j].group), rows = span_rows(&jobs[j]);
        rows += jobs[j].k_local ? jobs[j].queries : 0;
        all.passes = passes > all.passes ? passes : all.passes;
        queries = jobs[j].queries > queries ? jobs[j].queries : queries;
        all.stretches = rows / STRETCH + 1 > all.stretches ? rows / STRETCH + 1 : all.stretches;
    }
    if (attend_shared(k, &all, count, queries))
        return;
    all.chunks = (queries + LANES - 1) / LANES;
    pool_run(k->pool, attend_piece, &all, count * all.passes * all.chunks);
}
