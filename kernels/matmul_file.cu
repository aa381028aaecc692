/*
 * Products of few rows with weights as they are in the file: what limits them is reading the
 * weights, and quantised ones are a fraction of the bytes of those made bf16 first.
 *
 * A block of threads takes 32 rows of the weight and 8 or 16 of x. Its warps share the columns
 * out in stretches, make each quantised block of theirs bf16 in registers, as weight_make rounds
 * it, and multiply with the tensor cores; their sums are added in one order. An instruction sums
 * over 16 columns whatever their order: a lane takes those that lie together, four lower and four
 * upper ones of a block. A row of x has a column of the instruction to itself, so its result does
 * not depend on the others.
 */
#include "kernels/cuda.cuh"

enum {
    WARPS = 16,
    THREADS = WARPS * WARP,
    TILES = 2,
    ROWS = TILES * 16, /* of the weight */
    EIGHT = 8,         /* rows of x that an instruction takes */
    Q4_0_BYTES = 18,
    Q4_1_BYTES = 20,
    Q8_0_BYTES = 34,
};

struct file_job {
    void *out;
    size_t out_stride, row_bytes;
    const uint8_t *source;
    const bf16 *x;
    uint32_t kind, rows, cols, x_rows;
};

static __device__ __forceinline__ uint32_t pair_at(const uint8_t *bytes)
{
    return *(const uint16_t *)bytes;
}

static __device__ __forceinline__ float scale_at(const uint8_t *bytes)
{
    return half_to_float((f16)pair_at(bytes));
}

/* Of a quantised block, values 4 quad .. 4 quad + 3 and 16 more: pairs of bf16. */
template <int type>
static __device__ __forceinline__ void block_at(uint32_t out[4], const uint8_t *block,
                                                uint32_t quad)
{
    float d = scale_at(block);
    if (type == TENSOR_Q8_0) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t two = pair_at(block + 2 + i / 2 * 16 + 4 * quad + i % 2 * 2);
            out[i] = bf16_pair(d * (float)(int8_t)(two & 255u), d * (float)(int8_t)(two >> 8));
        }
        return;
    }
    float m = type == TENSOR_Q4_1 ? scale_at(block + 2) : -8.0f * d;
    const uint8_t *codes = block + (type == TENSOR_Q4_1 ? 4 : 2) + 4 * quad;
    uint32_t four = pair_at(codes) | pair_at(codes + 2) << 16;
#pragma unroll
    for (int i = 0; i < 4; i++) { /* lower halves of the bytes, then the upper ones */
        uint32_t two = four >> (i % 2 * 16 + i / 2 * 4);
        out[i] = bf16_pair(d * (float)(two & 15u) + m, d * (float)(two >> 8 & 15u) + m);
    }
}

static __device__ __host__ __forceinline__ uint32_t block_bytes(int type)
{
    return type == TENSOR_Q8_0 ? Q8_0_BYTES : type == TENSOR_Q4_1 ? Q4_1_BYTES : Q4_0_BYTES;
}

/* The warp's stretch of columns: sums of 32 rows by 8 `count` ones. */
template <int type, int count>
static __device__ __forceinline__ void sum_blocks(float sum[TILES][count][4],
                                                  const struct file_job &job, uint32_t from,
                                                  uint32_t to)
{
    uint32_t lane = threadIdx.x % WARP, quad = lane % 4, step = block_bytes(type);
    const uint8_t *row[TILES][2];
    uint32_t x[count];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) { /* beyond the last row: that one again */
            uint32_t at = blockIdx.x * ROWS + t * 16 + h * 8 + lane / 4;
            row[t][h] = job.source + min(at, job.rows - 1) * job.row_bytes;
        }
#pragma unroll
    for (int n = 0; n < count; n++) {
        uint32_t at = (blockIdx.y * count + n) * EIGHT + lane / 4;
        x[n] = min(at, job.x_rows - 1) * job.cols + 4 * quad;
    }
#pragma unroll 2
    for (uint32_t b = from; b < to; b++) {
        uint32_t w[TILES][2][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                block_at<type>(w[t][h], row[t][h] + (size_t)b * step, quad);
#pragma unroll
        for (int n = 0; n < count; n++) {
            const uint32_t *four = (const uint32_t *)(job.x + x[n] + b * KERNELS_BLOCK);
#pragma unroll
            for (int half = 0; half < 2; half++) { /* columns of the block */
                uint32_t x0 = four[8 * half], x1 = four[8 * half + 1];
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    const uint32_t a[4] = {w[t][0][2 * half], w[t][1][2 * half],
                                           w[t][0][2 * half + 1], w[t][1][2 * half + 1]};
                    mma_16x8x16_bf16(sum[t][n], a, x0, x1);
                }
            }
        }
    }
}

/* One warp after the other adds its sums to the block's, so that the order is always the same. */
template <int count>
static __device__ __forceinline__ void join_sums(float all[ROWS][EIGHT * count + 1],
                                                 const float sum[TILES][count][4])
{
    uint32_t lane = threadIdx.x % WARP;
    for (uint32_t turn = 0; turn < WARPS; turn++) {
        if (threadIdx.x / WARP == turn) {
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int n = 0; n < count; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float *to =
                            &all[t * 16 + i / 2 * 8 + lane / 4][n * EIGHT + lane % 4 * 2 + i % 2];
                        *to = turn ? *to + sum[t][n][i] : sum[t][n][i];
                    }
        }
        __syncthreads();
    }
}

template <int type, int count>
static __global__ void __launch_bounds__(THREADS, count == 1 ? 2 : 1)
    file_kernel(struct file_job job)
{
    __shared__ float all[ROWS][EIGHT * count + 1];
    float sum[TILES][count][4] = {};
    uint32_t blocks = job.cols / KERNELS_BLOCK, warp = threadIdx.x / WARP;
    sum_blocks<type, count>(sum, job, warp * blocks / WARPS, (warp + 1) * blocks / WARPS);
    join_sums<count>(all, sum);
    for (uint32_t i = threadIdx.x; i < ROWS * EIGHT * count; i += THREADS) {
        uint32_t row = blockIdx.x * ROWS + i % ROWS, at = i / ROWS;
        uint32_t x_row = blockIdx.y * EIGHT * count + at;
        if (row >= job.rows || x_row >= job.x_rows)
            continue;
        float value = all[i % ROWS][at];
        size_t to = x_row * job.out_stride + row;
        if (job.kind == CUDA_OUT_BF16)
            ((bf16 *)job.out)[to] = bf16_from_float(value);
        else
            ((float *)job.out)[to] =
                value + (job.kind == CUDA_OUT_F32_ADD ? ((float *)job.out)[to] : 0.0f);
    }
}

template <int type, int count> static void launch(struct cuda *c, const struct file_job &job)
{
    dim3 grid((job.rows + ROWS - 1) / ROWS, (job.x_rows + EIGHT * count - 1) / (EIGHT * count));
    const auto kernel = file_kernel<type, count>;
    LAUNCH(c, kernel, grid, dim3(THREADS), job);
}

/* More rows of x a block take registers, and the time that more blocks of threads would save. */
template <int type> static void launch_type(struct cuda *c, const struct file_job &job)
{
    if (job.x_rows <= EIGHT)
        launch<type, 1>(c, job);
    else
        launch<type, 2>(c, job);
}

static void matmul_file(struct cuda *c, void *out, enum cuda_out kind, size_t out_stride,
                        const void *source, enum tensor_type type, uint32_t w_rows, uint32_t cols,
                        const bf16 *x, uint32_t rows)
{
    struct file_job job = {};
    if (!rows)
        return;
    job.out = out;
    job.out_stride = out_stride;
    job.row_bytes = (size_t)(cols / KERNELS_BLOCK) * block_bytes(type);
    job.source = (const uint8_t *)source;
    job.x = x;
    job.kind = kind;
    job.rows = w_rows;
    job.cols = cols;
    job.x_rows = rows;
    if (type == TENSOR_Q8_0)
        launch_type<TENSOR_Q8_0>(c, job);
    else if (type == TENSOR_Q4_1)
        launch_type<TENSOR_Q4_1>(c, job);
    else
        launch_type<TENSOR_Q4_0>(c, job);
}

void cuda_table_matmul_file(struct cuda *c)
{
    c->matmul_file = matmul_file;
}
