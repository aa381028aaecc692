/* Reference of the small ops: the summary's running mean, f16 rounding, and the loss of a token. */
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
