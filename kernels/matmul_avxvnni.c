/* Quantised matmul with 256-bit vpdpbusd; float weights go the AVX2 way. */
#define DOT_VNNI 1
#include "kernels/matmul_256.h"

void matmul_avxvnni(struct kernels *k, float *out, size_t out_stride, const struct weight *w,
                    const float *x, size_t x_stride, const void *q, uint32_t rows, bool accumulate)
{
    static panel_task *const task[] = {
        [PACKED_Q4_1] = panels_q4_1, [PACKED_Q4_0] = panels_q4_0, [PACKED_Q8_0] = panels_q8_0};
    assert(rows <= KERNELS_ROWS_MAX);
    if (!w->quantized) {
        matmul_avx2(k, out, out_stride, w, x, x_stride, q, rows, accumulate);
        return;
    }
    assert(q);
    struct panel_job job = {.out = out,
                            .out_stride = out_stride,
                            .w = w,
                            .q = (void *)(uintptr_t)q,
                            .rows = rows,
                            .accumulate = accumulate};
    panels_run(k, &job, task[w->layout], 1, TILE_ROWS);
}
