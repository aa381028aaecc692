/* What one piece of attention holds, which rows it sees, and its sums (see attend_simd.h). */
#ifndef SILT_KERNELS_ATTEND_WORK_H
#define SILT_KERNELS_ATTEND_WORK_H

#include <float.h>
#include <math.h>

#include "kernels/simd.h"
#include "kernels/x86.h"

enum {
    TILE = 64,       /* rows of keys and values at a time */
    STRETCH = 256,   /* rows that share one softmax; whole tiles */
    HEADS_MAX = 3,   /* of a group at a time; larger groups take several passes */
    FEW_QUERIES = 6, /* up to so many, one by one is quicker */
    DIMS = KERNELS_HEAD_DIM_MAX,
};

/* What one piece of work holds: some heads of one job, for LANES queries. */
struct attend_work {
    _Alignas(64) float q[HEADS_MAX * DIMS * LANES];   /* [head][dim][query]; few: [head][dim] */
    _Alignas(64) float out[HEADS_MAX * DIMS * LANES]; /* the same */
    _Alignas(64) float keys[TILE * DIMS];             /* [row][dims]; few: [dim][row] */
    _Alignas(64) float values[TILE * DIMS];           /* [row][dims] */
    _Alignas(64) float p[TILE * HEADS_MAX * LANES];   /* [row][head][query]; few: [head][row] */
    vec top[HEADS_MAX], total[HEADS_MAX];             /* [query]; few: all lanes the same */
    struct {
        _Alignas(64) float out[HEADS_MAX * DIMS * LANES];
        vec top[HEADS_MAX], total[HEADS_MAX];
    } joined; /* of the stretches before this one */
    const struct attend_job *job;
    uint32_t head, heads; /* of the group */
    uint32_t query, queries;
    uint32_t head_dim, dims;       /* dims: head_dim rounded up to whole vectors */
    uint32_t rows_first, rows_end; /* of all rows, those that some query may see */
    float scale;
    /* this tile */
    uint32_t row, rows;
    bool plain;          /* every query sees every row */
    uint32_t seen[TILE]; /* a bit a query */
    const f16 *key_row[TILE], *value_row[TILE];
};

/* ---- which rows ---- */

static uint32_t span_rows(const struct attend_job *job)
{
    uint32_t rows = 0;
    for (uint32_t s = 0; s < job->span_count; s++)
        rows += job->span[s].rows;
    return rows;
}

static void first_range(const struct attend_work *w, uint32_t *least, uint32_t *most)
{
    *least = UINT32_MAX;
    *most = 0;
    for (uint32_t i = w->query; i < w->query + w->queries; i++) {
        uint32_t first = min_u32(w->job->first[i], w->job->span[0].rows);
        *least = min_u32(*least, first);
        *most = first > *most ? first : *most;
    }
}

/* Tiles begin at multiples of TILE whatever the queries are: a query's sums must not depend on
 * who came with it. */
static void rows_bound(struct attend_work *w)
{
    const struct attend_job *job = w->job;
    w->rows_first = 0;
    if (job->first && job->span_count > 0) {
        uint32_t least, most;
        first_range(w, &least, &most);
        w->rows_first = least / TILE * TILE;
    }
    w->rows_end = span_rows(job) + (job->k_local ? w->query + w->queries : 0);
}

static uint32_t local_seen(const struct attend_work *w, uint32_t row)
{
    uint32_t seen = 0;
    for (uint32_t i = 0; i < w->queries; i++)
        if (w->query + i >= row)
            seen |= 1u << i;
    return seen;
}

static uint32_t first_seen(const struct attend_work *w, uint32_t row)
{
    uint32_t seen = 0;
    for (uint32_t i = 0; i < w->queries; i++)
        if (row >= w->job->first[w->query + i])
            seen |= 1u << i;
    return seen;
}

/* Rows j.. of the tile that lie in one run of rows starting at row `base` of the job's list. */
static uint32_t tile_fill(struct attend_work *w, uint32_t j, uint32_t base,
                          const struct attend_span *span)
{
    uint32_t end = min_u32(base + span->rows, w->row + w->rows);
    if (w->row + j >= end)
        return j;
    size_t offset = (size_t)(w->row + j - base) * w->head_dim;
    const f16 *k = span->k + offset, *v = span->v + offset;
    for (; w->row + j < end; j++, k += w->head_dim, v += w->head_dim) {
        w->key_row[j] = k;
        w->value_row[j] = v;
        w->seen[j] = UINT32_MAX;
    }
    return j;
}

/* Rows at..at+rows of the job's row list: where they are and who sees them. */
static void tile_find(struct attend_work *w, uint32_t at)
{
    const struct attend_job *job = w->job;
    w->row = at;
    w->rows = min_u32(w->rows_end - at, TILE);
    w->plain = w->rows == TILE;
    uint32_t base = 0, j = 0;
    for (uint32_t s = 0; s < job->span_count && j < w->rows; base += job->span[s++].rows)
        j = tile_fill(w, j, base, &job->span[s]);
    if (job->first && job->span_count > 0) {
        uint32_t least, most;
        first_range(w, &least, &most);
        for (uint32_t i = 0; i < j && at + i < most; i++) {
            w->seen[i] = first_seen(w, at + i);
            w->plain = false;
        }
    }
    if (j < w->rows) { /* local rows, if the loop above has passed all spans */
        uint32_t local = j;
        struct attend_span span = {job->k_local, job->v_local, job->queries};
        assert(job->k_local);
        j = tile_fill(w, j, base, &span);
        for (uint32_t i = local; i < j; i++)
            w->seen[i] = local_seen(w, at + i - base);
        w->plain = false;
    }
    assert(j == w->rows);
    for (; j < TILE; j++)
        w->seen[j] = 0;
}

INLINE void row_widen(float *to, const f16 *from, uint32_t head_dim, uint32_t dims)
{
    uint32_t c = 0;
    for (; c + LANES <= head_dim; c += LANES)
        v_store(to + c, v_load_f16(from + c));
    if (c < dims)
        v_store(to + c, v_load_f16_part(from + c, head_dim - c));
}

/* a / total, 0 where nothing was seen */
INLINE vec over(vec a, vec total)
{
    return v_div(a, v_select(v_is_zero(total), v_set(1.0f), total));
}

static void sums_clear(struct attend_work *w, uint32_t head_floats)
{
    memset(w->out, 0, (size_t)w->heads * head_floats * sizeof *w->out);
    for (uint32_t h = 0; h < w->heads; h++) {
        w->top[h] = v_set(-FLT_MAX);
        w->total[h] = v_set(0.0f);
    }
}

static void joined_clear(struct attend_work *w, uint32_t head_floats)
{
    memset(w->joined.out, 0, (size_t)w->heads * head_floats * sizeof *w->joined.out);
    for (uint32_t h = 0; h < w->heads; h++) {
        w->joined.top[h] = v_set(-FLT_MAX);
        w->joined.total[h] = v_set(0.0f);
    }
}

/* A stretch behind those before it; one in which nothing was seen leaves them as they are. */
static void sums_join(struct attend_work *w, uint32_t head_floats)
{
    for (uint32_t h = 0; h < w->heads; h++) {
        vec top = v_max(w->joined.top[h], w->top[h]);
        vec before = v_exp_low(v_sub(w->joined.top[h], top)),
            now = v_exp_low(v_sub(w->top[h], top));
        w->joined.top[h] = top;
        w->joined.total[h] = v_fma(w->total[h], now, v_mul(w->joined.total[h], before));
        for (uint32_t c = h * head_floats; c < (h + 1) * head_floats; c += LANES) {
            vec out = v_mul(v_load(w->joined.out + c), before);
            v_store(w->joined.out + c, v_fma(v_load(w->out + c), now, out));
        }
    }
}

#endif
