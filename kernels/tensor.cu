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

struct weight_job {
    bf16 *out;
    const uint8_t *source;
    size_t row_bytes;
    uint32_t type, rows, cols;
    struct cuda_lora lora[CUDA_LORAS_MAX];
};

/* A low-rank update is added before the rounding: it costs no products later. */
static __global__ void weight_kernel(struct weight_job job)
{
    uint32_t row = blockIdx.x;
    const uint8_t *from = job.source + row * job.row_bytes;
    for (uint32_t col = threadIdx.x; col < job.cols; col += THREADS) {
        float value = value_at(from, job.type, col);
        for (int l = 0; l < CUDA_LORAS_MAX; l++) {
            const struct cuda_lora *lora = &job.lora[l];
            for (uint32_t r = 0; r < lora->rank; r++)
                value += lora->b[(size_t)row * lora->rank + r] *
                         lora->a[(size_t)r * job.cols + col];
        }
        job.out[(size_t)row * job.cols + col] = bf16_from_float(value);
    }
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
    LAUNCH(c, weight_kernel, dim3(out->rows), dim3(THREADS), job);
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
