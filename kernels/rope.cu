/* RoPE's angles, and stored keys turned to where they act. Queries are turned where they are read
 * (attend.cu), fresh keys where they are stored (merge.cu). */
#include "kernels/cuda.cuh"

enum { THREADS = 256 };

/* Angle in double, reduced mod 2 pi, then fp32 (stream's rotation_row). */
static __global__ void rotations_kernel(float2 *out, const int64_t *position, uint64_t total,
                                        const double *inverse_frequency, uint32_t half)
{
    uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= total)
        return;
    uint64_t row = at / half;
    double turn = 6.283185307179586476925286766559;
    double angle =
        remainder((double)position[row] * inverse_frequency[at - row * half], turn);
    out[at] = make_float2((float)cos(angle), (float)sin(angle));
}

static void rotations(struct cuda *c, float *out, const int64_t *position, uint32_t rows,
                      const double *inverse_frequency, uint32_t head_dim)
{
    uint64_t total = (uint64_t)rows * (head_dim / 2);
    if (total)
        LAUNCH(c, rotations_kernel, dim3((uint32_t)((total + THREADS - 1) / THREADS)),
               dim3(THREADS), (float2 *)out, position, total, inverse_frequency, head_dim / 2);
}

static __global__ void rotate_kernel(f16 *out, size_t out_stride, const f16 *in, size_t in_stride,
                                     const float2 *rotation, uint32_t rows, uint32_t half)
{
    size_t head = blockIdx.x;
    for (uint32_t at = threadIdx.x; at < rows * half; at += THREADS) {
        const f16 *from = in + head * in_stride * 2 * half + 2 * (size_t)at;
        float even = half_to_float(from[0]), odd = half_to_float(from[1]);
        float2 turn = rotation[at];
        f16 *to = out + head * out_stride * 2 * half + 2 * (size_t)at;
        to[0] = half_from_float(even * turn.x - odd * turn.y);
        to[1] = half_from_float(even * turn.y + odd * turn.x);
    }
}

static void rotate(struct cuda *c, f16 *out, size_t out_stride, const f16 *in, size_t in_stride,
                   const float *rotation, uint32_t rows, uint32_t heads, uint32_t head_dim)
{
    if (rows)
        LAUNCH(c, rotate_kernel, dim3(heads), dim3(THREADS), out, out_stride, in, in_stride,
               (const float2 *)rotation, rows, head_dim / 2);
}

void cuda_table_rope(struct cuda *c)
{
    c->rotations = rotations;
    c->rotate = rotate;
}
