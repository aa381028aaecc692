/*
 * What the .cu files share: the device's state, launching, and the few instructions that C++ has no
 * words for.
 *
 * Kernels use a small part of CUDA, so that tests/emulate can run them on a CPU, thread by thread,
 * where there is no GPU: no dynamic parallelism, static shared memory, and only the warp functions
 * below.
 */
#ifndef SILT_KERNELS_CUDA_CUH
#define SILT_KERNELS_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda.h"

#ifdef __CUDACC__
#define LAUNCH(c, kernel, grid, block, ...)                                                        \
    do {                                                                                           \
        kernel<<<grid, block, 0, (c)->state->stream>>>(__VA_ARGS__);                               \
        cuda_note(c, cudaGetLastError(), #kernel);                                                 \
    } while (0)
#else
#define LAUNCH(c, kernel, grid, block, ...)                                                        \
    do {                                                                                           \
        simt_launch(grid, block, simt_call(kernel, __VA_ARGS__));                                  \
        cuda_note(c, cudaGetLastError(), #kernel);                                                 \
    } while (0)
#endif

enum { OUT_EVENTS = 8, WARP = 32, GRAPHS_MAX = 64, GRAPH_KEY_MAX = 64 };

struct lt; /* matmul.cu */

/* A pass that came before; once it comes again, recorded. */
struct graph {
    char key[GRAPH_KEY_MAX];
    cudaGraphExec_t ready; /* NULL: not recorded yet */
    uint64_t used;         /* when, by the count of passes; 0: this place is free */
};

struct cuda_state {
    cudaStream_t stream, copies;
    cudaEvent_t queued, copied[OUT_EVENTS];
    uint32_t out_begun, out_done; /* copies out, later */
    cudaEvent_t start;
    void **taken; /* [taken_max]: memory, given back at close at the latest */
    uint32_t taken_count, taken_max;
    int error;                                  /* the first, sticky */
    struct graph graph[GRAPHS_MAX], *recording; /* NULL: nothing is being recorded */
    uint64_t passes;
    bool unrecordable; /* something queued while recording was refused */
    bool graphs_off;
    struct lt *lt;
    void *encode_matrix; /* the driver's call for gated.cu; NULL: not on this device */
};

/* Keeps the first error and what was being done. */
void cuda_note(struct cuda *c, cudaError_t error, const char *what);
void cuda_fail(struct cuda *c, int code, const char *what, const char *why);

/* Each puts its file's ops into the table. */
int cuda_open_matmul(struct cuda *c, char *error, size_t error_bytes);
void cuda_close_matmul(struct cuda *c);
void cuda_table_matmul_file(struct cuda *c);
void cuda_table_tensor(struct cuda *c);
void cuda_table_norm(struct cuda *c);
void cuda_table_gated(struct cuda *c);
void cuda_table_rope(struct cuda *c);
void cuda_table_merge(struct cuda *c);
void cuda_table_attend(struct cuda *c);
void cuda_table_fold(struct cuda *c);
void cuda_table_graph(struct cuda *c);
void cuda_close_graphs(struct cuda *c);

/* ---- numbers ---- */

static __device__ __forceinline__ float half_to_float(f16 h)
{
    return __half2float(__ushort_as_half(h));
}
static __device__ __forceinline__ f16 half_from_float(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}
/* Two halves in a register, the first in the lower bits. */
static __device__ __forceinline__ uint32_t half_pair(float low, float high)
{
    return (uint32_t)half_from_float(low) | (uint32_t)half_from_float(high) << 16;
}
static __device__ __forceinline__ bf16 bf16_from_float(float f)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}
static __device__ __forceinline__ float bf16_to_float(bf16 b)
{
    return __uint_as_float((uint32_t)b << 16);
}
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    return (uint32_t)bf16_from_float(low) | (uint32_t)bf16_from_float(high) << 16;
}

/* ---- a warp ---- */

static __device__ __forceinline__ float warp_sum(float value)
{
    for (int step = WARP / 2; step; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

#ifdef __CUDACC__
/* A line of memory comes as near as the cache that all processors share. */
static __device__ __forceinline__ void fetch_line(const void *at)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}
/* 16 bytes that are read once: they do not take the place of what is read again. */
static __device__ __forceinline__ uint4 load_once(const uint4 *at)
{
    uint4 out;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(at));
    return out;
}
/* 2^x to 2 units in the last place, 0 where that is below the normal numbers. */
static __device__ __forceinline__ float exp2_near(float x)
{
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
/* d += a b: a 16x16, b 16x8 of f16, d fp32 (PTX ISA, mma.m16n8k16). */
static __device__ __forceinline__ void mma_16x8x16(float d[4], const uint32_t a[4], uint32_t b0,
                                                   uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* The same of bf16. */
static __device__ __forceinline__ void mma_16x8x16_bf16(float d[4], const uint32_t a[4],
                                                        uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* Four 8x8 matrices of f16 from shared memory, transposed or not: lane l names row l % 8 of matrix
 * l / 8. */
static __device__ __forceinline__ void load_matrices(uint32_t out[4], const f16 *row,
                                                     bool transpose)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (transpose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(at));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(at));
}
/* 16 bytes to shared memory without waiting. */
static __device__ __forceinline__ void copy_begin(f16 *shared, const f16 *from)
{
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
static __device__ __forceinline__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most `left` of the committed groups are under way. */
template <int left> static __device__ __forceinline__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}
#endif

#endif
