/*
 * simt: CUDA kernels on a CPU, thread by thread, so that their logic is tested where there is no
 * GPU.
 *
 * A block's threads are fibers of one system thread; blocks run one after another. Barriers and
 * warp functions hand over to the next fiber until all have arrived, so a kernel that needs a
 * barrier and has none gives wrong results here too, in one order of threads or in the other. The
 * tensor-core and copy instructions of kernels/cuda.cuh are written out with the register layouts
 * of the PTX manual. Not covered: speed, memory order between blocks, what a real device rounds
 * otherwise.
 */
#ifndef SILT_TESTS_EMULATE_SIMT_H
#define SILT_TESTS_EMULATE_SIMT_H

#include <float.h>
#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__      static
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __CUDA_ARCH_LIST__ 900

struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct float2 {
    float x, y;
};
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}

struct simt_thread {
    dim3 thread;
    uint32_t lane, warp, collectives;
};
extern struct simt_thread *simt_now;
extern dim3 simt_block, simt_threads;
#define threadIdx (simt_now->thread)
#define blockIdx  simt_block
#define blockDim  simt_threads

/* Threads and blocks run from the last to the first: what depends on their order shows. */
extern "C" void simt_backwards(bool now);
void simt_launch(dim3 grid, dim3 block, const std::function<void()> &kernel);
/* A kernel with its arguments, taken now. */
template <typename Kernel, typename... Arguments>
std::function<void()> simt_call(Kernel *kernel, Arguments... arguments)
{
    return [=] { kernel(arguments...); };
}
/* Done at once or, while a graph is being recorded, whenever that is launched. */
void simt_queue(std::function<void()> work);
extern std::vector<std::function<void()>> *simt_recording;
void __syncthreads(void);
/* Every lane gives `bytes` (at most 64) and sees what all lanes of its warp gave. */
typedef uint8_t simt_values[32][64];
const simt_values *simt_exchange(const void *value, size_t bytes);

static inline float __shfl_xor_sync(uint32_t mask, float value, int step)
{
    float other;
    (void)mask;
    uint32_t lane = simt_now->lane;
    memcpy(&other, (*simt_exchange(&value, sizeof value))[lane ^ (uint32_t)step], sizeof other);
    return other;
}

static inline uint32_t __ballot_sync(uint32_t mask, bool value)
{
    uint32_t bits = 0, one = value;
    (void)mask;
    const simt_values *all = simt_exchange(&one, sizeof one);
    for (uint32_t i = 0; i < 32; i++) {
        memcpy(&one, (*all)[i], sizeof one);
        bits |= one << i;
    }
    return bits;
}

static inline void __syncwarp(void)
{
    char none = 0;
    (void)simt_exchange(&none, sizeof none);
}

/* ---- numbers ---- */

#define __popc __builtin_popcount
static inline int __clz(uint32_t x)
{
    return x ? __builtin_clz(x) : 32;
}
extern "C" {
uint16_t f16_from_f32(float f);
float f16_to_f32(uint16_t h);
}
struct __half {
    uint16_t bits;
};
typedef __half __nv_bfloat16;
static inline __half __ushort_as_half(uint16_t bits)
{
    return {bits};
}
static inline uint16_t __half_as_ushort(__half h)
{
    return h.bits;
}
static inline float __half2float(__half h)
{
    return f16_to_f32(h.bits);
}
static inline __half __float2half_rn(float f)
{
    return {f16_from_f32(f)};
}
static inline float __uint_as_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
/* To nearest, ties to even. */
static inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return {(uint16_t)(bits >> 16 | 0x40)};
    return {(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 b)
{
    return b.bits;
}
#define __expf           expf
#define __fdividef(a, b) ((a) / (b))
static inline float exp2_near(float x)
{
    return exp2f(x);
}
/* Byte i is that one of y and x together that the i-th lowest digit of `of` names. */
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t of)
{
    uint64_t all = (uint64_t)y << 32 | x;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++)
        out |= (uint32_t)(all >> ((of >> (4 * i) & 7) * 8) & 255) << (8 * i);
    return out;
}
static inline uint32_t min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
static inline unsigned long long atomicAdd(unsigned long long *to, unsigned long long value)
{
    unsigned long long old = *to;
    *to += value;
    return old;
}

/* ---- instructions of kernels/cuda.cuh ---- */

static inline void fetch_line(const void *)
{
}
static inline uint4 load_once(const uint4 *at)
{
    return *at;
}

void mma_16x8x16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
void mma_16x8x16_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
void load_matrices(uint32_t out[4], const uint16_t *row, bool transpose);
static inline void copy_begin(uint16_t *shared, const uint16_t *from)
{
    memcpy(shared, from, 16);
}
static inline void copy_commit(void)
{
}
template <int left> static inline void copy_wait(void)
{
}

#endif
