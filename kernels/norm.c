/* Reference of the ops that work on one row of activations: RMS norm and SwiGLU. */
#include <math.h>

#include "kernels/internal.h"

void norm_ref(struct kernels *k, float *out, void *q, const float *x, const float *weight,
              uint32_t rows, uint32_t cols, float eps)
{
    assert(rows <= KERNELS_ROWS_MAX && cols > 0);
    for (uint32_t i = 0; i < rows; i++) {
        const float *from = x + (size_t)i * cols;
        float *to = out + (size_t)i * cols;
        float squares = 0.0f;
        for (uint32_t c = 0; c < cols; c++)
            squares += from[c] * from[c];
        float scale = 1.0f / sqrtf(squares / (float)cols + eps);
        for (uint32_t c = 0; c < cols; c++)
            to[c] = from[c] * scale * weight[c];
    }
    if (q)
        quantize_ref(k, q, out, rows, cols);
}

void swiglu_ref(struct kernels *k, float *out, void *q, const float *gate_up, uint32_t rows,
                uint32_t cols)
{
    assert(rows <= KERNELS_ROWS_MAX);
    for (uint32_t i = 0; i < rows; i++) {
        const float *gate = gate_up + (size_t)i * 2 * cols, *up = gate + cols;
        for (uint32_t c = 0; c < cols; c++)
            out[(size_t)i * cols + c] = gate[c] / (1.0f + expf(-gate[c])) * up[c];
    }
    if (q)
        quantize_ref(k, q, out, rows, cols);
}
