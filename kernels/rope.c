/* Reference of RoPE on queries and keys, fresh (fp32) or stored (f16). */
#include "kernels/internal.h"

/* Turns the pairs of one head; rotation [head_dim/2][2]. */
static void rotate_head(float *out, const float *in, const float *rotation, uint32_t head_dim)
{
    for (uint32_t c = 0; c < head_dim; c += 2) {
        float even = in[c], odd = in[c + 1];
        out[c] = even * rotation[c] - odd * rotation[c + 1];
        out[c + 1] = even * rotation[c + 1] + odd * rotation[c];
    }
}

void rope_ref(struct kernels *k, float *x, size_t stride, const float *rotation, uint32_t rows,
              uint32_t heads, uint32_t head_dim)
{
    (void)k;
    assert(head_dim % 2 == 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t h = 0; h < heads; h++) {
            float *head = x + i * stride + (size_t)h * head_dim;
            rotate_head(head, head, rotation + (size_t)i * head_dim, head_dim);
        }
}

void rotate_ref(struct kernels *k, f16 *out, const f16 *in, const float *rotation, uint32_t rows,
                uint32_t head_dim)
{
    (void)k;
    assert(head_dim % 2 == 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    float head[KERNELS_HEAD_DIM_MAX];
    for (uint32_t i = 0; i < rows; i++) {
        size_t at = (size_t)i * head_dim;
        for (uint32_t c = 0; c < head_dim; c++)
            head[c] = f16_to_f32(in[at + c]);
        rotate_head(head, head, rotation + at, head_dim);
        for (uint32_t c = 0; c < head_dim; c++)
            out[at + c] = f16_from_f32(head[c]);
    }
}
