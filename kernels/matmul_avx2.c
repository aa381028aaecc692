/* Matmul with AVX2 and FMA: quantised weights as in matmul_256.h, float ones here. */
#define DOT_VNNI 0
#include "kernels/matmul_256.h"

INLINE __m256 float_load(const uint8_t *panel, size_t at, const enum packed_layout layout)
{
    if (layout == PACKED_F32)
        return _mm256_load_ps((const float *)(const void *)panel + at);
    const f16 *from = (const f16 *)(const void *)panel + at;
    if (layout == PACKED_F16)
        return v_load_f16(from);
    __m128i half = _mm_load_si128((const __m128i *)(const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* 4 rows or 1, against `halves` halves of panels: a chain of fused multiply-adds in c. */
INLINE void float_strip(const struct panel_job *job, uint32_t index, uint32_t row, const int rows,
                        const int halves, const enum packed_layout layout)
{
    __m256 sum[8];
    const size_t bytes = panel_bytes(layout, job->w->cols);
    const uint8_t *panel = (const uint8_t *)job->w->data + index * bytes;
    const float *x = job->x + row * job->x_stride;
    UNROLL
    for (int i = 0; i < rows * halves; i++)
        sum[i] = _mm256_setzero_ps();
    for (size_t c = 0; c < job->w->cols; c++) {
        UNROLL
        for (int h = 0; h < halves; h++) {
            size_t at = c * PANEL_COLS + (size_t)(h % 2) * 8;
            __m256 w = float_load(panel + (size_t)(h / 2) * bytes, at, layout);
            UNROLL
            for (int r = 0; r < rows; r++)
                sum[h * rows + r] = _mm256_fmadd_ps(
                    _mm256_set1_ps(x[(size_t)r * job->x_stride + c]), w, sum[h * rows + r]);
        }
    }
    UNROLL
    for (int h = 0; h < halves; h++)
        UNROLL
    for (int r = 0; r < rows; r++)
        store_columns(job, sum[h * rows + r], row + (uint32_t)r,
                      index * PANEL_COLS + (uint32_t)h * 8);
}

INLINE void floats_layout(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                          uint32_t row_from, uint32_t row_to, const enum packed_layout layout)
{
    uint32_t index = panel_from;
    if (row_to - row_from < STRIP_ROWS)
        for (; index + 4 <= panel_to; index += 4)
            for (uint32_t row = row_from; row < row_to; row++)
                float_strip(job, index, row, 1, 8, layout);
    for (; index < panel_to; index++) {
        uint32_t row = row_from;
        for (; row + STRIP_ROWS <= row_to; row += STRIP_ROWS)
            float_strip(job, index, row, STRIP_ROWS, 2, layout);
        for (; row < row_to; row++)
            float_strip(job, index, row, 1, 2, layout);
    }
}

static void floats_f32(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                       uint32_t row_from, uint32_t row_to)
{
    floats_layout(job, panel_from, panel_to, row_from, row_to, PACKED_F32);
}

static void floats_f16(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                       uint32_t row_from, uint32_t row_to)
{
    floats_layout(job, panel_from, panel_to, row_from, row_to, PACKED_F16);
}

static void floats_bf16(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                        uint32_t row_from, uint32_t row_to)
{
    floats_layout(job, panel_from, panel_to, row_from, row_to, PACKED_BF16);
}

void matmul_avx2(struct kernels *k, float *out, size_t out_stride, const struct weight *w,
                 const float *x, size_t x_stride, const void *q, uint32_t rows, bool accumulate)
{
    static panel_task *const task[] = {
        [PACKED_Q4_1] = panels_q4_1, [PACKED_Q4_0] = panels_q4_0, [PACKED_Q8_0] = panels_q8_0,
        [PACKED_F32] = floats_f32,   [PACKED_F16] = floats_f16,   [PACKED_BF16] = floats_bf16};
    assert(rows <= KERNELS_ROWS_MAX && (w->quantized ? q != NULL : x != NULL));
    struct panel_job job = {.out = out,
                            .out_stride = out_stride,
                            .w = w,
                            .x = x,
                            .x_stride = x_stride,
                            .q = (void *)(uintptr_t)q,
                            .rows = rows,
                            .accumulate = accumulate};
    panels_run(k, &job, task[w->layout], 1, w->quantized ? TILE_ROWS : STRIP_ROWS);
}
