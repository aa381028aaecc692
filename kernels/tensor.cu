/* From a file's numbers to bf16 weights, and embeddings looked up row by row. */
#include "kernels/cuda.cuh"

enum { THREADS = 256, Q4_0_BYTES = 18, Q4_1_BYTES = 20, Q8_0_BYTES = 34 };

/* A byte address, for blocks that are aligned to nothing. */
static __device__ float half_at(const uint8_t *bytes)
{
    return half_to_float((f16)(bytes[0] | bytes[1] << 8));
}

/* Value `col` of a row of a file's tensor, as tensor_row gives it. */
static __device__ float value_at(const uint8_t *row, uint32_t type, uint32_t col)
{
    uint32_t block = col / KERNELS_BLOCK, i = col % KERNELS_BLOCK;
    const uint8_t *at;
    switch (type) {
    case TENSOR_F32:
        return ((const float *)row)[col];
    case TENSOR_F16:
        return half_at(row + 2 * (size_t)col);
    case TENSOR_BF16:
        return bf16_to_float(((const bf16 *)row)[col]);
    case TENSOR_Q8_0:
        at = row + (size_t)block * Q8_0_BYTES;
        return half_at(at) * (float)(int8_t)at[2 + i];
    case TENSOR_Q4_0: {
        at = row + (size_t)block * Q4_0_BYTES;
        float d = half_at(at);
        uint32_t code = i < 16 ? at[2 + i] & 15u : at[2 + i - 16] >> 4;
        return d * (float)code - 8.0f * d;
    }
    default: {
        at = row + (size_t)block * Q4_1_BYTES;
        uint32_t code = i < 16 ? at[4 + i] & 15u : at[4 + i - 16] >> 4;
        return half_at(at) * (float)code + half_at(at + 2);
    }
    }
}

/* ---- weights ---- */

enum { EIGHT = 8, TOGETHER = 4 /* rows of a thread: what it reads of an update serves them all */ };

struct weight_job {
    bf16 *out;
    const uint8_t *source;
    size_t row_bytes;
    uint32_t type, rows, cols;
    struct cuda_lora lora[CUDA_LORAS_MAX];
};

/* Two bytes; blocks and rows begin at even addresses, and no more than that. */
static __device__ __forceinline__ uint32_t pair_at(const uint8_t *bytes)
{
    return *(const uint16_t *)bytes;
}

/* Eight values of a block of 4-bit codes, from `codes` on: those of a quarter are the lower or the
 * upper halves of eight bytes. */
static __device__ __forceinline__ void nibbles_at(float out[EIGHT], const uint8_t *codes,
                                                  uint32_t quarter, float d, float m)
{
    codes += quarter % 2 * EIGHT;
#pragma unroll
    for (int i = 0; i < EIGHT; i += 2) {
        uint32_t two = pair_at(codes + i) >> (quarter / 2 * 4);
        out[i] = d * (float)(two & 15u) + m;
        out[i + 1] = d * (float)(two >> 8 & 15u) + m;
    }
}

/* Values 8 eighth .. 8 eighth + 7 of a row, as value_at gives each. */
static __device__ __forceinline__ void eight_at(float out[EIGHT], const uint8_t *row, uint32_t type,
                                                uint32_t eighth)
{
    uint32_t block = eighth / 4, quarter = eighth % 4;
    const uint8_t *at;
    switch (type) {
    case TENSOR_Q4_0: {
        at = row + (size_t)block * Q4_0_BYTES;
        float d = half_to_float((f16)pair_at(at));
        nibbles_at(out, at + 2, quarter, d, -8.0f * d);
        return;
    }
    case TENSOR_Q4_1:
        at = row + (size_t)block * Q4_1_BYTES;
        nibbles_at(out, at + 4, quarter, half_to_float((f16)pair_at(at)),
                   half_to_float((f16)pair_at(at + 2)));
        return;
    case TENSOR_Q8_0: {
        at = row + (size_t)block * Q8_0_BYTES;
        float d = half_to_float((f16)pair_at(at));
        at += 2 + quarter * EIGHT;
#pragma unroll
        for (int i = 0; i < EIGHT; i += 2) {
            uint32_t two = pair_at(at + i);
            out[i] = d * (float)(int8_t)(two & 255u);
            out[i + 1] = d * (float)(int8_t)(two >> 8);
        }
        return;
    }
    default:
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            out[i] = value_at(row, type, eighth * EIGHT + i);
    }
}

static __device__ __forceinline__ void add_lora(float value[TOGETHER][EIGHT],
                                                const struct cuda_lora &lora, uint32_t row,
                                                uint32_t rows, uint32_t col, uint32_t cols)
{
    for (uint32_t r = 0; r < lora.rank; r++) {
        const uint4 *from = (const uint4 *)(lora.a + (size_t)r * cols + col);
        uint4 low = from[0], high = from[1];
        const uint32_t a[EIGHT] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            float b = row + n < rows ? lora.b[(size_t)(row + n) * lora.rank + r] : 0.0f;
#pragma unroll
            for (int i = 0; i < EIGHT; i++)
                value[n][i] += b * __uint_as_float(a[i]);
        }
    }
}

/* Each thread eight columns of some rows. A low-rank update is added before the rounding: it costs
 * no products later. */
static __global__ void weight_kernel(struct weight_job job)
{
    uint32_t eighths = job.cols / EIGHT, at = blockIdx.x * THREADS + threadIdx.x;
    uint32_t row = at / eighths * TOGETHER, eighth = at % eighths, col = eighth * EIGHT;
    float value[TOGETHER][EIGHT];
    if (row >= job.rows)
        return;
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) /* the last row again where there are no more */
        eight_at(value[n], job.source + min(row + n, job.rows - 1) * job.row_bytes, job.type,
                 eighth);
    for (int l = 0; l < CUDA_LORAS_MAX; l++)
        add_lora(value, job.lora[l], row, job.rows, col, job.cols);
#pragma unroll
    for (int n = 0; n < TOGETHER; n++)
        if (row + n < job.rows)
            *(uint4 *)(job.out + (size_t)(row + n) * job.cols + col) = make_uint4(
                bf16_pair(value[n][0], value[n][1]), bf16_pair(value[n][2], value[n][3]),
                bf16_pair(value[n][4], value[n][5]), bf16_pair(value[n][6], value[n][7]));
}

static size_t row_bytes_of(enum tensor_type type, uint32_t cols)
{
    size_t blocks = cols / KERNELS_BLOCK;
    switch (type) {
    case TENSOR_F32:
        return (size_t)cols * 4;
    case TENSOR_F16:
    case TENSOR_BF16:
        return (size_t)cols * 2;
    case TENSOR_Q8_0:
        return blocks * Q8_0_BYTES;
    case TENSOR_Q4_0:
        return blocks * Q4_0_BYTES;
    default:
        return blocks * Q4_1_BYTES;
    }
}

static void weight_make(struct cuda *c, struct cuda_weight *out, const void *source,
                        enum tensor_type type, const struct cuda_lora *lora, uint32_t lora_count)
{
    struct weight_job job = {};
    job.out = out->data;
    job.source = (const uint8_t *)source;
    job.row_bytes = row_bytes_of(type, out->cols);
    job.type = type;
    job.rows = out->rows;
    job.cols = out->cols;
    for (uint32_t i = 0; i < lora_count; i++)
        job.lora[i] = lora[i];
    uint32_t threads = (out->rows + TOGETHER - 1) / TOGETHER * (out->cols / EIGHT);
    LAUNCH(c, weight_kernel, dim3((threads + THREADS - 1) / THREADS), dim3(THREADS), job);
}

static __global__ void embed_kernel(float *x, const int32_t *token, const uint8_t *table,
                                    size_t row_bytes, uint32_t type, const float *comp,
                                    uint32_t dim)
{
    size_t row = blockIdx.x;
    int32_t id = token[row];
    for (uint32_t col = threadIdx.x; col < dim; col += THREADS)
        x[row * dim + col] = id < 0 ? comp[(size_t)(-1 - id) * dim + col]
                                    : value_at(table + (size_t)id * row_bytes, type, col);
}

static void embed(struct cuda *c, const struct cuda_batch *b, const void *table,
                  enum tensor_type type, const float *comp)
{
    LAUNCH(c, embed_kernel, dim3(b->rows), dim3(THREADS), b->x, b->token, (const uint8_t *)table,
           row_bytes_of(type, b->shape.dim), (uint32_t)type, comp, b->shape.dim);
}

void cuda_table_tensor(struct cuda *c)
{
    c->weight_make = weight_make;
    c->embed = embed;
}
