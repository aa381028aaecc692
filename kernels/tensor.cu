/* From a file's numbers to bf16 weights, and embeddings looked up row by row. */
#include "kernels/weight_tile.cuh"

enum { THREADS = 256, EMBED_THREADS = 64, EIGHT = 8 };

static __device__ __host__ __forceinline__ bool in_tiles(uint32_t type)
{
    return type == TENSOR_Q8_0 || type == TENSOR_Q4_0 || type == TENSOR_Q4_1;
}

/* ---- tiles ---- */

/* A thread's eight codes of a file's block, in a tile's order. */
static __device__ __forceinline__ void codes_of(uint32_t word[2], const uint8_t *block,
                                                uint32_t type, uint32_t quad)
{
    const uint8_t *codes = block + (type == TENSOR_Q4_1 ? 4 : 2);
#pragma unroll
    for (uint32_t i = 0; i < EIGHT; i++) {
        if (type == TENSOR_Q8_0) {
            word[i / 4] |= (uint32_t)codes[quad * EIGHT + i] << (i % 4 * 8);
        } else { /* of a quarter, the lower or the upper halves of eight bytes */
            uint32_t code = codes[quad % 2 * EIGHT + i] >> (quad / 2 * 4) & 15u;
            word[0] |= code << (i % 2 * 16 + i / 2 * 4);
        }
    }
}

/* Each thread eight values of a row; the first of a block its scale too. */
static __global__ void tile_kernel(uint8_t *out, const uint8_t *source, uint32_t type,
                                   uint32_t rows, uint32_t cols)
{
    uint32_t eighths = cols / EIGHT;
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    uint32_t row = (uint32_t)(at / eighths), block = (uint32_t)(at % eighths) / 4, quad = at % 4;
    if (row >= (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS)
        return;
    const uint8_t *from =
        source + ((size_t)row * (cols / KERNELS_BLOCK) + block) * block_bytes(type);
    uint8_t *tile = out + tile_at(type, row, block, cols);
    uint32_t *codes = (uint32_t *)(tile + codes_at(type, row, quad)), word[2] = {0, 0};
    if (row < rows)
        codes_of(word, from, type, quad);
    codes[0] = word[0];
    if (type == TENSOR_Q8_0)
        codes[1] = word[1];
    for (uint32_t i = 0; !quad && i < (type == TENSOR_Q4_1 ? 2 : 1); i++)
        ((f16 *)(tile + scale_at(type, row)))[i] = row < rows ? ((const f16 *)from)[i] : 0;
}

static void tile(struct cuda *c, void *out, const void *source, enum tensor_type type,
                 uint32_t rows, uint32_t cols)
{
    size_t threads = (size_t)(rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * (cols / EIGHT);
    LAUNCH(c, tile_kernel, dim3((uint32_t)((threads + THREADS - 1) / THREADS)), dim3(THREADS),
           (uint8_t *)out, (const uint8_t *)source, (uint32_t)type, rows, cols);
}

/* ---- weights ---- */

enum { TOGETHER = 4 /* rows of a thread: what it reads of an update serves them all */ };

struct weight_job {
    bf16 *out;
    const void *source;
    uint32_t type, rows, cols;
    struct cuda_lora lora[CUDA_LORAS_MAX];
};

/* Values 8 eighth .. 8 eighth + 7 of a row, as tensor_row gives them. */
static __device__ __forceinline__ void eight_at(float out[EIGHT], const void *source, uint32_t type,
                                                uint32_t row, uint32_t eighth, uint32_t cols)
{
    size_t first = (size_t)row * cols + (size_t)eighth * EIGHT;
    if (!in_tiles(type)) {
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            out[i] = type == TENSOR_F32   ? ((const float *)source)[first + i]
                     : type == TENSOR_F16 ? half_to_float(((const f16 *)source)[first + i])
                                          : bf16_to_float(((const bf16 *)source)[first + i]);
        return;
    }
    const uint8_t *tile = (const uint8_t *)source + tile_at(type, row, eighth / 4, cols);
    const uint32_t *codes = (const uint32_t *)(tile + codes_at(type, row, eighth % 4));
    const uint8_t *scale = tile + scale_at(type, row);
    float d = half_at(scale);
    if (type == TENSOR_Q8_0) {
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            out[i] = d * (float)(int8_t)(codes[i / 4] >> (i % 4 * 8));
        return;
    }
    float m = type == TENSOR_Q4_1 ? half_at(scale + 2) : -8.0f * d;
#pragma unroll
    for (int i = 0; i < EIGHT; i++)
        out[i] = d * (float)(codes[0] >> (i % 2 * 16 + i / 2 * 4) & 15u) + m;
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
            uint32_t at = row + n * EIGHT;
            float b = at < rows ? lora.b[(size_t)at * lora.rank + r] : 0.0f;
#pragma unroll
            for (int i = 0; i < EIGHT; i++)
                value[n][i] += b * __uint_as_float(a[i]);
        }
    }
}

/* Each thread eight columns of some rows, those that a tile has together. A low-rank update is
 * added before the rounding: it costs no products later. */
static __global__ void weight_kernel(struct weight_job job)
{
    uint32_t eighths = job.cols / EIGHT, at = blockIdx.x * THREADS + threadIdx.x;
    uint32_t eighth = at % eighths, col = eighth * EIGHT;
    uint32_t row = at / eighths / EIGHT * TILE_ROWS + at / eighths % EIGHT;
    float value[TOGETHER][EIGHT];
    if (row >= job.rows)
        return;
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) /* the last row again where there are no more */
        eight_at(value[n], job.source, job.type, min(row + n * EIGHT, job.rows - 1), eighth,
                 job.cols);
    for (int l = 0; l < CUDA_LORAS_MAX; l++)
        add_lora(value, job.lora[l], row, job.rows, col, job.cols);
#pragma unroll
    for (int n = 0; n < TOGETHER; n++)
        if (row + n * EIGHT < job.rows)
            *(uint4 *)(job.out + (size_t)(row + n * EIGHT) * job.cols + col) = make_uint4(
                bf16_pair(value[n][0], value[n][1]), bf16_pair(value[n][2], value[n][3]),
                bf16_pair(value[n][4], value[n][5]), bf16_pair(value[n][6], value[n][7]));
}

static void weight_make(struct cuda *c, struct cuda_weight *out, const void *source,
                        enum tensor_type type, const struct cuda_lora *lora, uint32_t lora_count)
{
    struct weight_job job = {};
    job.out = out->data;
    job.source = source;
    job.type = type;
    job.rows = out->rows;
    job.cols = out->cols;
    for (uint32_t i = 0; i < lora_count; i++)
        job.lora[i] = lora[i];
    uint32_t threads = (out->rows + TILE_ROWS - 1) / TILE_ROWS * EIGHT * (out->cols / EIGHT);
    LAUNCH(c, weight_kernel, dim3((threads + THREADS - 1) / THREADS), dim3(THREADS), job);
}

/* A thread eight columns. */
static __global__ void embed_kernel(float *x, const int32_t *token, const void *table,
                                    uint32_t type, const float *comp, uint32_t dim)
{
    size_t row = blockIdx.x;
    int32_t id = token[row];
    for (uint32_t eighth = threadIdx.x; eighth < dim / EIGHT; eighth += EMBED_THREADS) {
        float value[EIGHT];
        if (id < 0)
            for (uint32_t i = 0; i < EIGHT; i++)
                value[i] = comp[(size_t)(-1 - id) * dim + eighth * EIGHT + i];
        else
            eight_at(value, table, type, (uint32_t)id, eighth, dim);
        for (uint32_t i = 0; i < EIGHT; i++)
            x[row * dim + eighth * EIGHT + i] = value[i];
    }
}

static void embed(struct cuda *c, const struct cuda_batch *b, const void *table,
                  enum tensor_type type, const float *comp)
{
    LAUNCH(c, embed_kernel, dim3(b->rows), dim3(EMBED_THREADS), b->x, b->token, table,
           (uint32_t)type, comp, b->shape.dim);
}

void cuda_table_tensor(struct cuda *c)
{
    c->tile = tile;
    c->weight_make = weight_make;
    c->embed = embed;
}
