/*
 * Products of few rows with weights kept quantised: what limits them is reading the weights, which
 * are a fraction of the bytes of those made bf16 first.
 *
 * A block of threads takes a row of tiles (weight_tile.cuh) and 8 to 32 rows of x. Its warps take
 * turns along the tiles, and their sums are added in one order, whatever the rows of x. Codes
 * become floats by a mask and an exponent's bits, which is less work than a conversion, then
 * weights, and bf16 as weight_make rounds them; the tensor cores multiply. An instruction sums over
 * 16 columns whatever their order: a lane has eight that lie together. A row of x has a column of
 * it to itself, so its result does not depend on the others.
 *
 * (Codes multiplied as bf16, with scales and minima applied to a block's sums, take a tenth to a
 * fourth less time for up to 16 rows, more for 64; but weights that are not rounded are other ones
 * than those of all other products.)
 */
#include "kernels/weight_tile.cuh"

enum {
    WARPS = 16,
    EIGHT = 8,              /* rows of x that an instruction takes */
    APART = TILE_ROWS + 4,  /* sums in shared memory, so that a warp's are in banks of their own */
    CODE_BITS = 0x78787878, /* four codes, where a float's third byte has them */
    CODE_16 = 0x80808080,   /* the rest of that byte, */
    FLOAT_16 = 0x41000000,  /* and the byte above it, of 16 + code */
};

struct file_job {
    void *out;
    size_t out_stride;
    const uint8_t *source;
    const bf16 *x;
    uint32_t kind, rows, cols, x_rows;
};

/* What a lane needs of a tile, and of the rows of x beside it: eight columns of each. */
template <int type, int count> struct piece {
    uint4 codes[type == TENSOR_Q8_0 ? 2 : 1];
    uint4 x[count];
    uint32_t scale[4]; /* of rows g, g + 8, g + 16, g + 24, Q4_1's minimum above it */
};

template <int type, int count>
static __device__ __forceinline__ void load_piece(struct piece<type, count> &p, const uint8_t *tile,
                                                  const bf16 *const x[count], uint32_t block)
{
    uint32_t lane = threadIdx.x % WARP;
    const uint8_t *scales = tile + codes_bytes(type);
#pragma unroll
    for (int i = 0; i < (type == TENSOR_Q8_0 ? 2 : 1); i++)
        p.codes[i] = load_once((const uint4 *)tile + i * WARP + lane);
    if (type == TENSOR_Q4_1) {
        uint4 four = load_once((const uint4 *)scales + lane / 4);
        p.scale[0] = four.x;
        p.scale[1] = four.y;
        p.scale[2] = four.z;
        p.scale[3] = four.w;
    } else {
        const uint32_t *two = (const uint32_t *)scales + lane / 4 * 2;
        uint32_t low = two[0], high = two[1];
        p.scale[0] = low;
        p.scale[1] = low >> 16;
        p.scale[2] = high;
        p.scale[3] = high >> 16;
    }
#pragma unroll
    for (int n = 0; n < count; n++)
        p.x[n] = *(const uint4 *)(x[n] + (size_t)block * KERNELS_BLOCK);
}

/* The instructions' operands of tile rows 16 t .. 16 t + 15, of four columns and of four more: the
 * weights, as weight_make rounds them. d, m: scales and minima of two rows. */
template <int type>
static __device__ __forceinline__ void operands(uint32_t a[2][4], const uint4 *codes, int t,
                                                const float d[2], const float m[2])
{
    const uint4 &c = codes[type == TENSOR_Q8_0 ? t : 0];
    uint32_t first[2] = {c.x, c.y}, second[2] = {c.z, c.w};
#pragma unroll
    for (int row = 0; row < 2; row++) {
        uint32_t word = t ? second[row] : first[row];
        uint32_t low = (word << 3 & CODE_BITS) | CODE_16;
        uint32_t high = (word >> 1 & CODE_BITS) | CODE_16;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            float value[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (type == TENSOR_Q8_0) {
                    uint32_t four = row ? second[pair / 2] : first[pair / 2];
                    value[i] = d[row] * (float)(int8_t)(four >> (pair % 2 * 16 + i * 8));
                } else {
                    uint32_t bits = __byte_perm(pair % 2 ? high : low, FLOAT_16,
                                                0x7044 | (pair / 2 + 2 * i) << 8);
                    value[i] = fmaf(d[row], __uint_as_float(bits) - 16.0f, m[row]);
                }
            }
            a[pair / 2][pair % 2 * 2 + row] = bf16_pair(value[0], value[1]);
        }
    }
}

template <int type, int count>
static __device__ __forceinline__ void multiply(float sum[2][count][4],
                                                const struct piece<type, count> &p)
{
#pragma unroll
    for (int t = 0; t < 2; t++) {
        uint32_t a[2][4];
        float d[2], m[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            d[h] = half_to_float((f16)p.scale[2 * t + h]);
            m[h] =
                type == TENSOR_Q4_1 ? half_to_float((f16)(p.scale[2 * t + h] >> 16)) : -8.0f * d[h];
        }
        operands<type>(a, p.codes, t, d, m);
#pragma unroll
        for (int n = 0; n < count; n++) {
            mma_16x8x16_bf16(sum[t][n], a[0], p.x[n].x, p.x[n].y);
            mma_16x8x16_bf16(sum[t][n], a[1], p.x[n].z, p.x[n].w);
        }
    }
}

/* A warp's tiles, every WARPS-th: sums of 32 rows by 8 `count` ones. `depth` are read at once. */
template <int type, int count, int depth>
static __device__ __forceinline__ void sum_tiles(float sum[2][count][4], const struct file_job &job)
{
    uint32_t lane = threadIdx.x % WARP, tiles = job.cols / KERNELS_BLOCK;
    const uint8_t *row = job.source + (size_t)blockIdx.y * tiles * tile_bytes(type);
    const bf16 *x[count];
#pragma unroll
    for (int n = 0; n < count; n++) { /* beyond the last row: that one again */
        uint32_t at = (blockIdx.x * count + n) * EIGHT + lane / 4;
        x[n] = job.x + (size_t)min(at, job.x_rows - 1) * job.cols + lane % 4 * EIGHT;
    }
    for (uint32_t b = threadIdx.x / WARP; b < tiles; b += WARPS * depth) {
        struct piece<type, count> p[depth];
#pragma unroll
        for (int i = 0; i < depth; i++)
            if (b + i * WARPS < tiles)
                load_piece(p[i], row + (size_t)(b + i * WARPS) * tile_bytes(type), x,
                           b + i * WARPS);
#pragma unroll
        for (int i = 0; i < depth; i++)
            if (b + i * WARPS < tiles)
                multiply(sum, p[i]);
    }
}

static __device__ __forceinline__ void put(const struct file_job &job, uint32_t x_row, uint32_t row,
                                           float value)
{
    size_t to = (size_t)x_row * job.out_stride + row;
    if (row >= job.rows || x_row >= job.x_rows)
        return;
    if (job.kind == CUDA_OUT_BF16)
        ((bf16 *)job.out)[to] = bf16_from_float(value);
    else
        ((float *)job.out)[to] =
            value + (job.kind == CUDA_OUT_F32_ADD ? ((float *)job.out)[to] : 0.0f);
}

/* The warps' sums are added in the warps' order. */
template <int type, int count, int depth, int at_once>
static __global__ void __launch_bounds__(WARPS *WARP, at_once) file_kernel(struct file_job job)
{
    __shared__ float all[WARPS][EIGHT][APART];
    float sum[2][count][4] = {};
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    sum_tiles<type, count, depth>(sum, job);
#pragma unroll
    for (int n = 0; n < count; n++) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            all[warp][lane % 4 * 2 + i % 2][i / 2 * 8 + lane / 4] = sum[i / 4][n][i % 4];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < EIGHT * TILE_ROWS; i += WARPS * WARP) {
            uint32_t at = i / TILE_ROWS, row = i % TILE_ROWS;
            float value = 0;
#pragma unroll
            for (uint32_t w = 0; w < WARPS; w++)
                value += all[w][at][row];
            put(job, (blockIdx.x * count + n) * EIGHT + at, blockIdx.y * TILE_ROWS + row, value);
        }
        __syncthreads();
    }
}

template <int type, int count, int depth, int at_once>
static void launch(struct cuda *c, const struct file_job &job)
{
    dim3 grid((job.x_rows + EIGHT * count - 1) / (EIGHT * count),
              (job.rows + TILE_ROWS - 1) / TILE_ROWS);
    const auto kernel = file_kernel<type, count, depth, at_once>;
    LAUNCH(c, kernel, grid, dim3(WARPS * WARP), job);
}

/* More rows of x a block take registers. How many tiles are read at once is what was the fastest;
 * a row's sums are the same for any. */
template <int type> static void launch_type(struct cuda *c, const struct file_job &job)
{
    uint32_t tiles = job.cols / KERNELS_BLOCK, blocks = (job.rows + TILE_ROWS - 1) / TILE_ROWS;
    if (job.x_rows > 2 * EIGHT)
        launch<type, 4, 2, 1>(c, job);
    else if (job.x_rows > EIGHT)
        launch<type, 2, 4, 1>(c, job);
    else if (blocks <= c->processors && tiles > 2 * WARPS)
        launch<type, 1, 4, 1>(c, job);
    else
        launch<type, 1, 2, 2>(c, job);
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
