/* The runtime's calls and cuBLASLt's products, in plain memory; and troubles, on request. */
#include "kernels/cuda.cuh"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static enum simt_trouble trouble;
static size_t memory_most = (size_t)1 << 30, memory_used;
static cudaError_t last; /* of a call that failed and left the device as it is */

void simt_trouble(enum simt_trouble now, size_t memory_bytes)
{
    trouble = now;
    memory_most = memory_bytes ? memory_bytes : (size_t)1 << 30;
}

/* SILT_EMULATE_BREAK names a file: once it is there, the device breaks. */
static cudaError_t state(void)
{
    static const char *const file = getenv("SILT_EMULATE_BREAK");
    if (file && access(file, F_OK) == 0)
        trouble = SIMT_BROKEN;
    return trouble == SIMT_BROKEN ? cudaErrorLaunchFailure : cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "unspecified launch failure";
}
cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last;
    last = cudaSuccess;
    return error == cudaSuccess ? state() : error;
}
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = trouble == SIMT_NO_DEVICE ? 0 : 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device)
{
    (void)device;
    int major = trouble == SIMT_OLD_DEVICE ? 6 : trouble == SIMT_OTHER_DEVICE ? 8 : 9;
    *out = {"emulated", major, major == 9 ? 0 : 6, 1};
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device)
{
    return device ? cudaErrorLaunchFailure : cudaSuccess;
}

/* Each piece has its size in front; fresh memory holds nothing of use. */
enum { FRONT = 256, SMALL = 512, LARGE = 2 << 20 };

/* As a device gives it. */
static size_t units(size_t bytes)
{
    size_t unit = bytes < LARGE / 2 ? SMALL : LARGE;
    return (bytes + unit - 1) / unit * unit;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    *out = NULL;
    if (trouble == SIMT_NO_MEMORY || memory_used + units(bytes) > memory_most)
        return cudaErrorMemoryAllocation;
    char *memory = (char *)aligned_alloc(FRONT, (bytes + 2 * FRONT - 1) / FRONT * FRONT);
    if (!memory)
        return cudaErrorMemoryAllocation;
    memset(memory, 0xff, bytes + FRONT);
    memcpy(memory, &bytes, sizeof bytes);
    memory_used += units(bytes);
    *out = memory + FRONT;
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory)
{
    if (!memory)
        return cudaSuccess;
    size_t bytes;
    memcpy(&bytes, (char *)memory - FRONT, sizeof bytes);
    memory_used -= units(bytes);
    free((char *)memory - FRONT);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    *out = calloc(1, bytes);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *memory)
{
    free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *total = memory_most;
    *left = memory_most > memory_used ? memory_most - memory_used : 0;
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t)
{
    simt_queue([=] { memset(to, value, bytes); });
    return state();
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    simt_queue([=] { memmove(to, from, bytes); });
    return state();
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    *out = NULL;
    return state();
}
cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return state();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned)
{
    return state();
}
cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    *out = NULL;
    return state();
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned)
{
    *out = NULL;
    return state();
}
cudaError_t cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return state();
}
cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return state();
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t)
{
    *milliseconds = 1e3f * (float)clock() / (float)CLOCKS_PER_SEC;
    return state();
}
/* ---- graphs: what was queued is kept, and done again ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    if (trouble == SIMT_NO_CAPTURE)
        return last = cudaErrorLaunchFailure;
    simt_recording = new std::vector<std::function<void()>>;
    return state();
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *out)
{
    *out = simt_recording;
    simt_recording = NULL;
    return trouble == SIMT_NO_GRAPHS ? cudaErrorLaunchFailure : state();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    *out = new std::vector<std::function<void()>>(*graph);
    return state();
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return trouble == SIMT_NO_UPLOAD ? last = cudaErrorMemoryAllocation : state();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t)
{
    for (const auto &work : *graph)
        work();
    return state();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void)
{
    return state();
}

/* ---- products, in place of kernels/matmul.cu ---- */

static void multiply(void *out, enum cuda_out kind, size_t out_stride, const struct cuda_weight *w,
                     const bf16 *x, uint32_t rows)
{
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t n = 0; n < w->rows; n++) {
            float sum = 0;
            for (uint32_t k = 0; k < w->cols; k++)
                sum += bf16_to_float(x[(size_t)i * w->cols + k]) *
                       bf16_to_float(w->data[(size_t)n * w->cols + k]);
            size_t at = i * out_stride + n;
            if (kind == CUDA_OUT_BF16)
                ((bf16 *)out)[at] = bf16_from_float(sum);
            else
                ((float *)out)[at] = sum + (kind == CUDA_OUT_F32_ADD ? ((float *)out)[at] : 0);
        }
}

static void matmul(struct cuda *c, void *out, enum cuda_out kind, size_t out_stride,
                   const struct cuda_weight *w, const bf16 *x, uint32_t rows)
{
    struct cuda_weight weight = *w;
    cuda_note(c, state(), "matmul");
    simt_queue([=] { multiply(out, kind, out_stride, &weight, x, rows); });
}

int cuda_open_matmul(struct cuda *c, char *error, size_t error_bytes)
{
    (void)error;
    (void)error_bytes;
    c->matmul = matmul;
    return 0;
}

void cuda_close_matmul(struct cuda *c)
{
    (void)c;
}
