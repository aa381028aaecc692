/*
 * How quantised weights lie on the device.
 *
 * A file has rows of blocks, 32 values each behind a scale, at addresses that are even and no more.
 * Here the blocks of 32 rows that stand above one another are one tile of the same bytes, and the
 * tiles of 32 rows follow one another from left to right: a warp reads a tile in wide loads that
 * lie together, and each lane gets what it multiplies. Lane 4 g + q has, of rows g, g + 8, g + 16
 * and g + 24, values 8 q .. 8 q + 7:
 *
 *     Q4_0, Q4_1   codes [lane][4 rows], a word of 8: value i at bit 16 (i % 2) + 4 (i / 2)
 *     Q8_0         codes [2][lane][2 rows][8]
 *     behind them  scales [g][4 rows], with Q4_1's minimum behind each
 *
 * Rows that are missing in the last tile are zeros.
 */
#ifndef SILT_KERNELS_WEIGHT_TILE_CUH
#define SILT_KERNELS_WEIGHT_TILE_CUH

#include "kernels/cuda.cuh"

enum {
    TILE_ROWS = CUDA_TILE_ROWS,
    TILE_CODES = TILE_ROWS * KERNELS_BLOCK, /* of one tile */
    Q4_0_BYTES = 18,                        /* of a block */
    Q4_1_BYTES = 20,
    Q8_0_BYTES = 34,
};

static __device__ __host__ __forceinline__ uint32_t block_bytes(int type)
{
    return type == TENSOR_Q8_0 ? Q8_0_BYTES : type == TENSOR_Q4_1 ? Q4_1_BYTES : Q4_0_BYTES;
}
static __device__ __host__ __forceinline__ uint32_t tile_bytes(int type)
{
    return TILE_ROWS * block_bytes(type);
}
static __device__ __host__ __forceinline__ uint32_t codes_bytes(int type)
{
    return type == TENSOR_Q8_0 ? TILE_CODES : TILE_CODES / 2;
}
/* Where in its tile a row has values 8 quad on, a word or, of Q8_0, two. */
static __device__ __forceinline__ uint32_t codes_at(int type, uint32_t row, uint32_t quad)
{
    uint32_t lane = row % 8 * 4 + quad, nth = row % TILE_ROWS / 8;
    return type == TENSOR_Q8_0 ? nth / 2 * 512 + lane * 16 + nth % 2 * 8 : lane * 16 + nth * 4;
}
/* Where in its tile a row's scale is. */
static __device__ __forceinline__ uint32_t scale_at(int type, uint32_t row)
{
    uint32_t nth = row % 8 * 4 + row % TILE_ROWS / 8;
    return codes_bytes(type) + nth * (type == TENSOR_Q4_1 ? 4 : 2);
}
/* Where among a matrix's tiles the one with this row and block is. */
static __device__ __forceinline__ size_t tile_at(int type, uint32_t row, uint32_t block,
                                                 uint32_t cols)
{
    return ((size_t)(row / TILE_ROWS) * (cols / KERNELS_BLOCK) + block) * tile_bytes(type);
}
static __device__ __forceinline__ float half_at(const uint8_t *bytes)
{
    return half_to_float(*(const f16 *)bytes);
}

#endif
