/* Rows that cold segments keep as int8, and their way back, over vectors (see simd.h). */
#include <math.h>

#include "kernels/simd.h"
#include "kernels/x86.h"

static float row_most(const f16 *row, uint32_t cols)
{
    vec top = v_set(0.0f);
    uint32_t c = 0;
    for (; c + LANES <= cols; c += LANES)
        top = v_max(top, v_abs(v_load_f16(row + c)));
    float most = v_top(top);
    for (; c < cols; c++)
        most = fmaxf(most, fabsf(f16_to_f32(row[c])));
    return most;
}

void ISA(pack_int8)(struct kernels *k, int8_t *out, float *scale, const f16 *in, uint32_t rows,
                    uint32_t cols)
{
    (void)k;
    for (uint32_t i = 0; i < rows; i++, in += cols, out += cols) {
        float most = row_most(in, cols), inverse = most > 0.0f ? 127.0f / most : 0.0f;
        uint32_t c = 0;
        for (; c + KERNELS_BLOCK <= cols; c += KERNELS_BLOCK) {
            vec block[KERNELS_BLOCK / LANES];
            UNROLL
            for (int l = 0; l < KERNELS_BLOCK / LANES; l++)
                block[l] = v_mul(v_load_f16(in + c + l * LANES), v_set(inverse));
            v_store_bytes(out + c, block);
        }
        for (; c < cols; c++)
            out[c] = (int8_t)lrintf(f16_to_f32(in[c]) * inverse);
        scale[i] = most / 127.0f;
    }
}

/* Row by row from the last one, each from a copy, as its own f16 may lie where it is read from. */
void ISA(unpack_int8)(struct kernels *k, f16 *out, const int8_t *in, const float *scale,
                      uint32_t rows, uint32_t cols)
{
    (void)k;
    int8_t row[KERNELS_HEAD_DIM_MAX];
    assert(cols <= KERNELS_HEAD_DIM_MAX);
    for (uint32_t i = rows; i-- > 0;) {
        f16 *to = out + (size_t)i * cols;
        uint32_t c = 0;
        memcpy(row, in + (size_t)i * cols, cols);
        for (; c + LANES <= cols; c += LANES)
            v_store_f16(to + c, v_mul(v_load_bytes(row + c), v_set(scale[i])));
        for (; c < cols; c++)
            to[c] = f16_from_f32((float)row[c] * scale[i]);
    }
}
