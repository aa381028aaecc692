/* Quantise, RMS norm and SwiGLU over vectors (see simd.h). Rows are shared out over the pool. */
#include <math.h>

#include "kernels/packed.h"
#include "kernels/simd.h"
#include "kernels/x86.h"

/* Fewer elements than this are done as fast alone: what a second thread would save goes to its
 * wake-up and to caches. */
enum { ELEMENTS_SHARED = 16384 };

struct row_job {
    float *out;
    void *q;
    const float *x, *y; /* y: the norm's weight [cols] */
    uint32_t rows, cols;
    float eps;
};

struct rows_argument {
    range_task *task;
    struct row_job *job;
    uint32_t each, rest;  /* rows of a lane of the pool; where the rows behind them begin */
    uint32_t lane_pieces; /* its rows, then tiles of the rest */
};

static void rows_piece(void *argument, uint32_t index)
{
    const struct rows_argument *a = argument;
    uint32_t lane = index / a->lane_pieces, at = index % a->lane_pieces;
    uint32_t from = lane * a->each, to = from + a->each;
    if (at > 0) {
        from = a->rest + (lane * (a->lane_pieces - 1) + at - 1) * TILE_ROWS;
        to = min_u32(from + TILE_ROWS, a->job->rows);
    }
    if (from < to)
        a->task(a->job, from, to);
}

static void rows_run(struct kernels *k, range_task *task, struct row_job *job)
{
    struct rows_argument a = {.task = task, .job = job, .each = rows_each(k, job->rows)};
    a.rest = a.each * k->threads;
    uint32_t tiles = tile_count(job->rows - a.rest);
    a.lane_pieces = 1 + (tiles + k->threads - 1) / k->threads;
    if (k->threads == 1 || (size_t)job->rows * job->cols < ELEMENTS_SHARED)
        task(job, 0, job->rows);
    else
        pool_run(k->pool, rows_piece, &a, k->threads * a.lane_pieces);
}

/* One row into its tile: for each block scale = max|x| / 127, the same arithmetic as the reference,
 * bit for bit. */
INLINE void quantize_row(void *q, const float *x, uint32_t row, uint32_t rows, uint32_t cols)
{
    struct tile t = tile_at(q, rows, cols, row / TILE_ROWS);
    size_t r = row % TILE_ROWS;
    for (size_t b = 0; b < cols / KERNELS_BLOCK; b++, x += KERNELS_BLOCK) {
        vec value[KERNELS_BLOCK / LANES], top = v_set(0.0f);
        UNROLL
        for (int i = 0; i < KERNELS_BLOCK / LANES; i++) {
            value[i] = v_load(x + i * LANES);
            top = v_max(top, v_abs(value[i]));
        }
        float most = v_top(top);
        float inverse = most < QUANTIZE_TINY ? 0.0f : 127.0f / most;
        float scale = most < QUANTIZE_TINY ? 0.0f : most / 127.0f;
        int8_t *codes = t.codes + (b * t.rows + r) * KERNELS_BLOCK;
        UNROLL
        for (int i = 0; i < KERNELS_BLOCK / LANES; i++) {
            value[i] = v_mul(value[i], v_set(inverse));
        }
        int32_t sum = v_store_bytes(codes, value);
        t.scale[b * t.rows + r] = scale;
        t.scaled_sum[b * t.rows + r] = scale * (float)sum;
        t.neg_sum[b * t.rows + r] = -sum;
    }
}

static void quantize_rows(void *argument, uint32_t from, uint32_t to)
{
    const struct row_job *job = argument;
    for (uint32_t i = from; i < to; i++)
        quantize_row(job->q, job->x + (size_t)i * job->cols, i, job->rows, job->cols);
}

void ISA(quantize)(struct kernels *k, void *q, const float *x, uint32_t rows, uint32_t cols)
{
    assert(cols % KERNELS_BLOCK == 0 && rows <= KERNELS_ROWS_MAX);
    struct row_job job = {.q = q, .x = x, .rows = rows, .cols = cols};
    rows_run(k, quantize_rows, &job);
}

static void norm_rows(void *argument, uint32_t from, uint32_t to)
{
    const struct row_job *job = argument;
    uint32_t cols = job->cols, whole = cols - cols % LANES;
    vec_mask rest = mask_first(cols - whole);
    for (uint32_t i = from; i < to; i++) {
        const float *x = job->x + (size_t)i * cols;
        float *out = job->out + (size_t)i * cols;
        vec sum[2] = {v_set(0.0f), v_set(0.0f)};
        uint32_t c = 0;
        for (; c + 2 * LANES <= whole; c += 2 * LANES) {
            vec a = v_load(x + c), b = v_load(x + c + LANES);
            sum[0] = v_fma(a, a, sum[0]);
            sum[1] = v_fma(b, b, sum[1]);
        }
        for (; c < cols; c += LANES) {
            vec a = c < whole ? v_load(x + c) : v_load_part(x + c, rest);
            sum[0] = v_fma(a, a, sum[0]);
        }
        float mean = v_sum(v_add(sum[0], sum[1])) / (float)cols + job->eps;
        vec scale = v_set(1.0f / sqrtf(mean));
        for (c = 0; c < whole; c += LANES)
            v_store(out + c, v_mul(v_mul(v_load(x + c), scale), v_load(job->y + c)));
        if (whole < cols) {
            vec a = v_mul(v_load_part(x + c, rest), scale);
            v_store_part(out + c, v_mul(a, v_load_part(job->y + c, rest)), rest);
        }
        if (job->q)
            quantize_row(job->q, out, i, job->rows, cols);
    }
}

void ISA(norm)(struct kernels *k, float *out, void *q, const float *x, const float *weight,
               uint32_t rows, uint32_t cols, float eps)
{
    assert(rows <= KERNELS_ROWS_MAX && cols > 0 && (!q || cols % KERNELS_BLOCK == 0));
    struct row_job job = {out, q, x, weight, rows, cols, eps};
    rows_run(k, norm_rows, &job);
}

INLINE vec swiglu_vec(vec gate, vec up)
{
    vec e = v_exp(v_sub(v_set(0.0f), gate));
    return v_mul(v_div(gate, v_add(v_set(1.0f), e)), up);
}

static void swiglu_rows(void *argument, uint32_t from, uint32_t to)
{
    const struct row_job *job = argument;
    uint32_t cols = job->cols, whole = cols - cols % LANES;
    vec_mask rest = mask_first(cols - whole);
    for (uint32_t i = from; i < to; i++) {
        const float *gate = job->x + (size_t)i * 2 * cols, *up = gate + cols;
        float *out = job->out + (size_t)i * cols;
        for (uint32_t c = 0; c < whole; c += LANES)
            v_store(out + c, swiglu_vec(v_load(gate + c), v_load(up + c)));
        if (whole < cols) {
            vec a = v_load_part(gate + whole, rest), b = v_load_part(up + whole, rest);
            v_store_part(out + whole, swiglu_vec(a, b), rest);
        }
        if (job->q)
            quantize_row(job->q, out, i, job->rows, cols);
    }
}

void ISA(swiglu)(struct kernels *k, float *out, void *q, const float *gate_up, uint32_t rows,
                 uint32_t cols)
{
    assert(rows <= KERNELS_ROWS_MAX && (!q || cols % KERNELS_BLOCK == 0));
    struct row_job job = {.out = out, .q = q, .x = gate_up, .rows = rows, .cols = cols};
    rows_run(k, swiglu_rows, &job);
}
