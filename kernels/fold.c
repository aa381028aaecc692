/* Reference of the small ops: the summary's running mean, f16 and int8 rounding, and the loss of a
 * token. */
#include <math.h>

#include "kernels/internal.h"

void fold_ref(struct kernels *k, float *summary, const f16 *segment, size_t count, float alpha)
{
    (void)k;
    float keep = 1.0f - alpha;
    for (size_t i = 0; i < count; i++)
        summary[i] = keep * summary[i] + alpha * f16_to_f32(segment[i]);
}

void pack_f16_ref(struct kernels *k, f16 *out, const float *in, size_t count)
{
    (void)k;
    for (size_t i = 0; i < count; i++)
        out[i] = f16_from_f32(in[i]);
}

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

/* The sum runs in double: 49,152 terms of one sign would lose digits that the quality bars need. */
void nll_ref(struct kernels *k, float *out, const float *logits, const int32_t *targets,
             uint32_t rows, uint32_t vocab)
{
    (void)k;
    for (uint32_t i = 0; i < rows; i++) {
        const float *row = logits + (size_t)i * vocab;
        assert(targets[i] >= 0 && (uint32_t)targets[i] < vocab);
        float top = row[0];
        for (uint32_t c = 1; c < vocab; c++)
            top = row[c] > top ? row[c] : top;
        double total = 0.0;
        for (uint32_t c = 0; c < vocab; c++)
            total += (double)expf(row[c] - top);
        out[i] = (float)(log(total) + (double)top - (double)row[targets[i]]);
    }
}
