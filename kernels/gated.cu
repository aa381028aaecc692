/*
 * The feed-forward part's first half, act = SwiGLU(h w^T), in one kernel where the GPU is a Hopper:
 * a projection by itself writes gates and ups that nothing but SwiGLU reads again, more bytes than
 * all else in a layer. Elsewhere, and for single tokens, it is the projection, then SwiGLU.
 *
 * A block of threads goes through tiles of 128 rows by 128 columns of act. One thread has the copy
 * engine bring pieces of h and w, 64 columns at a time, some pieces ahead; two groups of four warps
 * multiply them, 64 rows each, gates beside ups, so that a thread ends with both of what it writes.
 * A row's sums have the same order at any number of rows. (PTX ISA, wgmma and
 * cp.async.bulk.tensor.)
 */
#include "kernels/cuda.cuh"

#ifdef SILT_HOPPER
#include <cuda.h>

enum {
    TILE_ROWS = 128,
    TILE_COLS = 128, /* of act: as many gates and as many ups */
    PIECE = 64,      /* columns of h at a time: 128 bytes, as wide as the shared memory's swizzle */
    STAGES = 4,
    BAND = 12, /* tiles, one below the other, whose pieces of w are read together */
    GROUP = 4 * WARP, /* threads that multiply together */
    GROUPS = 2,
    THREADS = GROUPS * GROUP + WARP, /* the last warp brings the pieces */
    SWIZZLED = 1024, /* bytes after which the swizzle repeats: where a stage begins */
    STEP = 16,                       /* columns of h that an instruction takes */
    SUMS = 2 * TILE_COLS / 2,        /* of a thread: 64 rows by 256 columns over 128 threads */
};

struct stage {
    bf16 h[TILE_ROWS][PIECE], w[2 * TILE_COLS][PIECE]; /* w: gates, then ups */
};

struct shared {
    struct stage stage[STAGES];
    uint64_t full[STAGES], empty[STAGES];
};

enum { SHARED_BYTES = sizeof(struct shared) + SWIZZLED };

struct gated_job {
    bf16 *act;
    uint32_t rows, ff, pieces, tiles_down, tiles_across, tiles;
};

/* ---- instructions ---- */

static __device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void barrier_make(uint64_t *barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(barrier)), "r"(arrivals)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(barrier)) : "memory");
}

static __device__ __forceinline__ void barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_at(barrier)),
                 "r"(bytes)
                 : "memory");
}

/* Until the phase of that parity is over. */
static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}" ::"r"(shared_at(barrier)),
                 "r"(parity)
                 : "memory");
}

/* A box of the matrix, from column and row on; beyond its end are zeros. */
static __device__ __forceinline__ void bring(bf16 *to, const CUtensorMap *matrix, uint32_t column,
                                             uint32_t row, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_at(to)),
                 "l"(matrix), "r"(column), "r"(row), "r"(shared_at(barrier))
                 : "memory");
}

/* A matrix of rows of 128 bytes, swizzled by eights of them. */
static __device__ __forceinline__ uint64_t matrix_at(const bf16 *rows)
{
    return (uint64_t)(shared_at(rows) & 0x3ffff) >> 4 | (uint64_t)1 << 16 |
           (uint64_t)(8 * PIECE * sizeof(bf16) >> 4) << 32 | (uint64_t)1 << 62;
}

#define EACH8(X, n)                                                                                \
    X(n), X(n + 1), X(n + 2), X(n + 3), X(n + 4), X(n + 5), X(n + 6), X(n + 7)
#define EACH32(X, n) EACH8(X, n), EACH8(X, n + 8), EACH8(X, n + 16), EACH8(X, n + 24)
#define SUM(n)       "+f"(sum[n])

/* sum (+)= 64 rows of a by 256 rows of b, over 16 columns; all 128 threads of a group. */
static __device__ __forceinline__ void multiply(float sum[SUMS], uint64_t a, uint64_t b, bool adds)
{
    asm volatile(
        "{\n"
        ".reg .pred adds;\n"
        "setp.ne.b32 adds, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
        "%125, %126, %127}, %128, %129, adds, 1, 1, 0, 0;\n"
        "}"
        : EACH32(SUM, 0), EACH32(SUM, 32), EACH32(SUM, 64), EACH32(SUM, 96)
        : "l"(a), "l"(b), "r"((int)adds));
}

static __device__ __forceinline__ void multiply_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void multiply_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* All but the newest commit are done. */
static __device__ __forceinline__ void multiply_wait_older(void)
{
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

/* All are done; the compiler is told that the sums are new. */
static __device__ __forceinline__ void multiply_wait(float sum[SUMS])
{
    asm volatile("wgmma.wait_group.sync.aligned 0;"
                 : EACH32(SUM, 0), EACH32(SUM, 32), EACH32(SUM, 64), EACH32(SUM, 96)::"memory");
}

/* ---- the kernel ---- */

/* Where a tile lies: those that are worked on at a time are about as many across as down, so that
 * what they read is in the cache. */
static __device__ void tile_place(const struct gated_job &job, uint32_t tile, uint32_t *row,
                                  uint32_t *col)
{
    uint32_t band = tile / (BAND * job.tiles_across) * BAND, at = tile - band * job.tiles_across;
    uint32_t down = min(job.tiles_down - band, (uint32_t)BAND);
    *row = (band + at % down) * TILE_ROWS;
    *col = at / down * TILE_COLS;
}

/* The last warp's first thread: pieces of one tile after another, as stages come free. */
static __device__ void bring_tiles(const struct gated_job &job, struct shared *s,
                                   const CUtensorMap *h, const CUtensorMap *w)
{
    uint32_t turn = 0;
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        uint32_t row, col;
        tile_place(job, tile, &row, &col);
        for (uint32_t piece = 0; piece < job.pieces; piece++, turn++) {
            uint32_t at = turn % STAGES;
            struct stage *to = &s->stage[at];
            barrier_wait(&s->empty[at], (turn / STAGES & 1) ^ 1);
            barrier_expect(&s->full[at], sizeof *to);
            bring(&to->h[0][0], h, piece * PIECE, row, &s->full[at]);
            bring(&to->w[0][0], w, piece * PIECE, col, &s->full[at]);
            bring(&to->w[TILE_COLS][0], w, piece * PIECE, job.ff + col, &s->full[at]);
        }
    }
}

/* SwiGLU of two neighbours of a row, gates in sums n and n + 1. */
static __device__ __forceinline__ uint32_t gated_sums(const float sum[SUMS], int n)
{
    float gate = sum[n], next = sum[n + 1];
    return bf16_pair(__fdividef(gate, 1.0f + __expf(-gate)) * sum[n + SUMS / 2],
                     __fdividef(next, 1.0f + __expf(-next)) * sum[n + 1 + SUMS / 2]);
}

/*
 * Four lanes hold a row of act, each two neighbours of every eight columns; of four times eight
 * columns each lane takes one eight whole, 16 bytes: a 4 x 4 matrix of words is turned over.
 */
static __device__ __forceinline__ uint4 turn_over(const uint32_t word[4])
{
    uint32_t quad = threadIdx.x % 4;
    bool odd = quad & 1, high = quad & 2;
    uint32_t a = odd ? word[0] : word[1], b = odd ? word[2] : word[3];
    a = __shfl_xor_sync(0xffffffffu, a, 1);
    b = __shfl_xor_sync(0xffffffffu, b, 1);
    uint32_t m0 = odd ? a : word[0], m1 = odd ? word[1] : a;
    uint32_t m2 = odd ? b : word[2], m3 = odd ? word[3] : b;
    a = high ? m0 : m2;
    b = high ? m1 : m3;
    a = __shfl_xor_sync(0xffffffffu, a, 2);
    b = __shfl_xor_sync(0xffffffffu, b, 2);
    return high ? make_uint4(a, b, m2, m3) : make_uint4(m0, m1, a, b);
}

/* Sum 4 n + 2 r + c is of row lane / 4 + 8 r of the warp's 16, column 8 n + lane % 4 * 2 + c. */
static __device__ __forceinline__ void put_tile(const struct gated_job &job, const float sum[SUMS],
                                                uint32_t row, uint32_t col)
{
    uint32_t lane = threadIdx.x % WARP;
    row += threadIdx.x / WARP * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < TILE_COLS / 8; n += 4)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t word[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                word[i] = gated_sums(sum, 4 * (n + i) + 2 * r);
            uint4 eight = turn_over(word);
            uint32_t at = col + 8 * (n + lane % 4);
            if (row + 8 * r < job.rows && at < job.ff)
                *(uint4 *)(job.act + (size_t)(row + 8 * r) * job.ff + at) = eight;
        }
}

static __device__ void multiply_tiles(const struct gated_job &job, struct shared *s)
{
    uint32_t group = threadIdx.x / GROUP, turn = 0, row, col;
    float sum[SUMS];
    for (uint32_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        for (uint32_t piece = 0; piece < job.pieces; piece++, turn++) {
            uint32_t at = turn % STAGES;
            barrier_wait(&s->full[at], turn / STAGES & 1);
            uint64_t a = matrix_at(&s->stage[at].h[group * 64][0]);
            uint64_t b = matrix_at(&s->stage[at].w[0][0]);
            multiply_begin();
#pragma unroll
            for (int k = 0; k < PIECE / STEP; k++)
                multiply(sum, a + k * (STEP * sizeof(bf16) >> 4),
                         b + k * (STEP * sizeof(bf16) >> 4), piece || k);
            multiply_commit();
            if (piece) { /* the piece before has been read */
                multiply_wait_older();
                if (threadIdx.x % WARP == 0)
                    barrier_arrive(&s->empty[(turn - 1) % STAGES]);
            }
        }
        multiply_wait(sum);
        if (threadIdx.x % WARP == 0)
            barrier_arrive(&s->empty[(turn - 1) % STAGES]);
        tile_place(job, tile, &row, &col);
        put_tile(job, sum, row, col);
    }
}

static __global__ void __launch_bounds__(THREADS, 1)
    gated_kernel(const __grid_constant__ CUtensorMap h, const __grid_constant__ CUtensorMap w,
                 struct gated_job job)
{
    extern __shared__ unsigned char memory[];
    struct shared *s = (struct shared *)(memory + (0u - shared_at(memory)) % SWIZZLED);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_make(&s->full[i], 1);
            barrier_make(&s->empty[i], GROUPS * GROUP / WARP);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < GROUPS * GROUP)
        multiply_tiles(job, s);
    else if (threadIdx.x == GROUPS * GROUP)
        bring_tiles(job, s, &h, &w);
}

/* ---- launched ---- */

/* bf16 [rows][cols] for the copy engine, in boxes of `box` rows. */
static bool matrix_make(struct cuda *c, CUtensorMap *out, const bf16 *data, uint32_t rows,
                        uint32_t cols, uint32_t box)
{
    const cuuint64_t size[2] = {cols, rows}, stride[1] = {cols * sizeof(bf16)};
    const cuuint32_t boxes[2] = {PIECE, box}, steps[2] = {1, 1};
    decltype(&cuTensorMapEncodeTiled) encode;
    *(void **)&encode = c->state->encode_matrix;
    return encode(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, size, stride, boxes,
                  steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

static bool fused(struct cuda *c, const struct cuda_batch *b, const struct cuda_weight *w)
{
    struct gated_job job = {};
    CUtensorMap h, weight;
    if (!c->state->encode_matrix || c->few || c->apart ||
        !matrix_make(c, &h, b->h, b->rows, w->cols, TILE_ROWS) ||
        !matrix_make(c, &weight, w->data, w->rows, w->cols, TILE_COLS))
        return false;
    job.act = b->act;
    job.rows = b->rows;
    job.ff = b->shape.ff;
    job.pieces = (w->cols + PIECE - 1) / PIECE;
    job.tiles_down = (job.rows + TILE_ROWS - 1) / TILE_ROWS;
    job.tiles_across = (job.ff + TILE_COLS - 1) / TILE_COLS;
    job.tiles = job.tiles_down * job.tiles_across;
    uint32_t blocks = job.tiles < c->processors ? job.tiles : c->processors;
    gated_kernel<<<blocks, THREADS, SHARED_BYTES, c->state->stream>>>(h, weight, job);
    cuda_note(c, cudaGetLastError(), "gated_kernel");
    return true;
}

/* Where anything is missing, encode_matrix stays NULL. */
static void open_fused(struct cuda *c)
{
    cudaDriverEntryPointQueryResult found;
    void *encode = NULL;
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
        major == 9 &&
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                         cudaEnableDefault, &found) == cudaSuccess &&
        found == cudaDriverEntryPointSuccess &&
        cudaFuncSetAttribute(gated_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             SHARED_BYTES) == cudaSuccess)
        c->state->encode_matrix = encode;
    (void)cudaGetLastError();
}
#else
static bool fused(struct cuda *, const struct cuda_batch *, const struct cuda_weight *)
{
    return false;
}
static void open_fused(struct cuda *)
{
}
#endif

static void gate(struct cuda *c, const struct cuda_batch *b, const struct cuda_weight *w)
{
    if (!b->rows || fused(c, b, w))
        return;
    c->matmul(c, b->gate_up, CUDA_OUT_BF16, w->rows, w, b->h, b->rows);
    c->swiglu(c, b);
}

void cuda_table_gated(struct cuda *c)
{
    open_fused(c);
    c->gate = gate;
}
