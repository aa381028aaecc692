/* Reference of rows that cold segments keep as int8, a scale each, and of their way back. */
#include <math.h>

#include "kernels/internal.h"

void pack_int8_ref(struct kernels *k, int8_t *out, float *scale, const f16 *in, uint32_t rows,
                   uint32_t cols)
{
    (void)k;
    for (uint32_t i = 0; i < rows; i++, in += cols, out += cols) {
        float most = 0.0f;
        for (uint32_t c = 0; c < cols; c++)
            most = fmaxf(most, fabsf(f16_to_f32(in[c])));
        float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        for (uint32_t c = 0; c < cols; c++)
            out[c] = (int8_t)lrintf(f16_to_f32(in[c]) * inverse);
        scale[i] = most / 127.0f;
    }
}

/* From the last value to the first: a f16 never lands on an int8 that is still to be read. */
void unpack_int8_ref(struct kernels *k, f16 *out, const int8_t *in, const float *scale,
                     uint32_t rows, uint32_t cols)
{
    (void)k;
    for (size_t i = (size_t)rows * cols; i-- > 0;)
        out[i] = f16_from_f32((float)in[i] * scale[i / cols]);
}
