/*
 * Products of few rows with weights kept quantised: what limits them is reading the weights, which
 * are a fraction of the bytes of those made bf16 first.
 *
 * A block of threads takes a row of tiles (weight_tile.cuh) and 8 to 32 rows of x. Its warps take
 * turns along the tiles, and their sums are added in one order, whatever the rows of x. Codes
 * become floats by a mask and an exponent's bits, which is half of the work of a conversion, then
 * weights, and bf16 as weight_make rounds them; the tensor cores multiply. Or, another way, codes
 * become bf16, 16 above what they are, what is 16 too much is taken off the sums over a block, and
 * its scale and minimum are applied to these: less work for few rows, with weights un-rounded. An
 * instruction sums over 16 columns whatever their order. A row of x has a column of it to itself,
 * so its result does not depend on the others.
 */
#include "kernels/weight_tile.cuh"

enum {
    EIGHT = 8,             /* rows of x that an instruction takes */
    APART = TILE_ROWS + 4, /* sums in shared memory, so that a warp's are in banks of their own */
    BF16_16 = 0x41804180,
    BF16_16_LESS = 0xc180c180, /* -16, twice */
    BF16_24_LESS = 0xc1c0c1c0,
    CODE_BITS = 0x00780078,  /* of 16 + code */
    BYTE_CODES = 0x78787878, /* the same of a float's third byte */
    BYTE_16 = 0x80808080,
    FLOAT_16 = 0x41000000, /* with that byte, 16 */
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

/* Values 2 pair and 2 pair + 1 of eight: 16 + code; of Q8_0 the codes. */
static __device__ __forceinline__ uint32_t nibbles(uint32_t word, int pair)
{
    return ((pair ? word >> (4 * pair - 3) : word << 3) & CODE_BITS) | BF16_16;
}
static __device__ __forceinline__ uint32_t bytes(uint32_t word, int pair)
{
    return bf16_pair((float)(int8_t)(word >> (pair % 2 * 16)),
                     (float)(int8_t)(word >> (pair % 2 * 16 + 8)));
}

/* The instructions' operands of tile rows 16 t .. 16 t + 15: of four columns, then of four more. */
template <int type>
static __device__ __forceinline__ void operands(uint32_t a[2][4], const uint4 *codes, int t)
{
    const uint4 &c = codes[type == TENSOR_Q8_0 ? t : 0];
    uint32_t first[2] = {c.x, c.y}, second[2] = {c.z, c.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = i % 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int pair = 2 * half + i / 2;
            if (type == TENSOR_Q8_0)
                a[half][i] = bytes(row ? second[half] : first[half], pair);
            else
                a[half][i] = nibbles(t ? second[row] : first[row], pair);
        }
    }
}

/* The same of the weights, as weight_make rounds them. d, m: scales and minima of two rows. */
template <int type>
static __device__ __forceinline__ void rounded(uint32_t a[2][4], const uint4 *codes, int t,
                                               const float d[2], const float m[2])
{
    const uint4 &c = codes[type == TENSOR_Q8_0 ? t : 0];
    uint32_t first[2] = {c.x, c.y}, second[2] = {c.z, c.w};
#pragma unroll
    for (int row = 0; row < 2; row++) {
        uint32_t word = t ? second[row] : first[row];
        uint32_t low = (word << 3 & BYTE_CODES) | BYTE_16;
        uint32_t high = (word >> 1 & BYTE_CODES) | BYTE_16;
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
static __device__ __forceinline__ void multiply_rounded(float sum[2][count][4],
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
        rounded<type>(a, p.codes, t, d, m);
#pragma unroll
        for (int n = 0; n < count; n++) {
            mma_16x8x16_bf16(sum[t][n], a[0], p.x[n].x, p.x[n].y);
            mma_16x8x16_bf16(sum[t][n], a[1], p.x[n].z, p.x[n].w);
        }
    }
}

template <int type, int count>
static __device__ __forceinline__ void multiply(float sum[2][count][4],
                                                const struct piece<type, count> &p)
{
    const uint32_t less_16 = type == TENSOR_Q4_1 ? BF16_16_LESS : BF16_24_LESS;
    const uint32_t less[4] = {less_16, less_16, less_16, less_16};
    float before[count][4] = {}; /* what the codes are too large by, times x */
#pragma unroll
    for (int n = 0; type != TENSOR_Q8_0 && n < count; n++) {
        mma_16x8x16_bf16(before[n], less, p.x[n].x, p.x[n].y);
        mma_16x8x16_bf16(before[n], less, p.x[n].z, p.x[n].w);
    }
#pragma unroll
    for (int t = 0; t < 2; t++) {
        uint32_t a[2][4];
        float d[2], m[2];
        operands<type>(a, p.codes, t);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            d[h] = half_to_float((f16)p.scale[2 * t + h]);
            m[h] = half_to_float((f16)(p.scale[2 * t + h] >> 16)) * -0.0625f;
        }
#pragma unroll
        for (int n = 0; n < count; n++) {
            float of[4] = {before[n][0], before[n][1], before[n][2], before[n][3]};
            mma_16x8x16_bf16(of, a[0], p.x[n].x, p.x[n].y);
            mma_16x8x16_bf16(of, a[1], p.x[n].z, p.x[n].w);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (type == TENSOR_Q4_1)
                    sum[t][n][i] = fmaf(m[i / 2], before[n][i], sum[t][n][i]);
                sum[t][n][i] = fmaf(d[i / 2], of[i], sum[t][n][i]);
            }
        }
    }
}

/* A warp's tiles, every `warps`th: sums of 32 rows by 8 `count` ones. `depth` are read at once. */
template <int type, int count, int warps, int depth, bool rounds>
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
    for (uint32_t b = threadIdx.x / WARP; b < tiles; b += warps * depth) {
        struct piece<type, count> p[depth];
#pragma unroll
        for (int i = 0; i < depth; i++)
            if (b + i * warps < tiles)
                load_piece(p[i], row + (size_t)(b + i * warps) * tile_bytes(type), x,
                           b + i * warps);
#pragma unroll
        for (int i = 0; i < depth; i++)
            if (b + i * warps < tiles)
                rounds ? multiply_rounded(sum, p[i]) : multiply(sum, p[i]);
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
template <int type, int count, int warps, int depth, int at_once, bool rounds>
static __global__ void __launch_bounds__(warps *WARP, at_once) file_kernel(struct file_job job)
{
    __shared__ float all[warps][EIGHT][APART];
    float sum[2][count][4] = {};
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    sum_tiles<type, count, warps, depth, rounds>(sum, job);
#pragma unroll
    for (int n = 0; n < count; n++) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            all[warp][lane % 4 * 2 + i % 2][i / 2 * 8 + lane / 4] = sum[i / 4][n][i % 4];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < EIGHT * TILE_ROWS; i += warps * WARP) {
            uint32_t at = i / TILE_ROWS, row = i % TILE_ROWS;
            float value = 0;
#pragma unroll
            for (int w = 0; w < warps; w++)
                value += all[w][at][row];
            put(job, (blockIdx.x * count + n) * EIGHT + at, blockIdx.y * TILE_ROWS + row, value);
        }
        __syncthreads();
    }
}

template <int type, int count, int warps, int depth, int at_once, bool rounds>
static void launch(struct cuda *c, const struct file_job &job)
{
    dim3 grid((job.x_rows + EIGHT * count - 1) / (EIGHT * count),
              (job.rows + TILE_ROWS - 1) / TILE_ROWS);
    const auto kernel = file_kernel<type, count, warps, depth, at_once, rounds>;
    LAUNCH(c, kernel, grid, dim3(warps * WARP), job);
}

/* More rows of x a block take registers. What else a block takes is the same for any number of
 * them, for so are then a row's sums. */
template <int type, int warps, int depth, int at_once, bool rounds>
static void launch_rows(struct cuda *c, const struct file_job &job)
{
    const int fewer = at_once > 1 ? at_once / 2 : 1;
    if (job.x_rows <= EIGHT)
        launch<type, 1, warps, depth, at_once, rounds>(c, job);
    else if (job.x_rows <= 2 * EIGHT)
        launch<type, 2, warps, depth, fewer, rounds>(c, job);
    else
        launch<type, 4, warps, 2, 1, rounds>(c, job);
}

template <int type> static void launch_type(struct cuda *c, const struct file_job &job)
{
    const bool exact = type == TENSOR_Q8_0; /* takes no less time un-rounded */
    switch (c->file_form) {
    case 1:
        return launch_rows<type, 16, 2, 2, true>(c, job);
    case 2:
        return launch_rows<type, 8, 4, 2, true>(c, job);
    case 3:
        return launch_rows<type, 16, 4, 1, exact>(c, job);
    case 4:
        return launch_rows<type, 16, 2, 2, exact>(c, job);
    case 5:
        return launch_rows<type, 8, 4, 2, exact>(c, job);
    default:
        return launch_rows<type, 16, 4, 1, true>(c, job);
    }
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
