/* The device: opened, its memory, its two orders of work, and the first error that it meets. */
#include "kernels/cuda.cuh"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARCH_MIN = 80, ERROR_WHAT_MAX = 100 };

/* nvcc's list of what it builds for, the oldest first: 900 is compute capability 9.0. */
static const int built_for[] = {__CUDA_ARCH_LIST__};

void cuda_fail(struct cuda *c, int code, const char *what, const char *why)
{
    if (c->state->recording) { /* nothing ran: graph_again has it queued as it is */
        c->state->unrecordable = true;
        return;
    }
    if (c->state->error)
        return;
    c->state->error = code;
    snprintf(c->error_text, sizeof c->error_text, "%s: %.*s: %s", c->name, ERROR_WHAT_MAX, what,
             why);
}

void cuda_note(struct cuda *c, cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        cuda_fail(c, error == cudaErrorMemoryAllocation ? -ENOMEM : -EIO, what,
                  cudaGetErrorString(error));
}

/* ---- memory ---- */

/* Room for one more in the list of what is taken. */
static bool room_to_take(struct cuda_state *s)
{
    if (s->taken_count < s->taken_max)
        return true;
    uint32_t max = s->taken_max ? 2 * s->taken_max : 64;
    void **taken = (void **)realloc(s->taken, max * sizeof *taken);
    if (!taken)
        return false;
    s->taken = taken;
    s->taken_max = max;
    return true;
}

static void *take(struct cuda *c, size_t bytes)
{
    struct cuda_state *s = c->state;
    void *memory = NULL;
    if (!room_to_take(s))
        return NULL;
    if (cudaMalloc(&memory, bytes ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError(); /* a full device is the caller's to judge */
        return NULL;
    }
    s->taken[s->taken_count++] = memory;
    cuda_note(c, cudaMemsetAsync(memory, 0, bytes, s->stream), "clear");
    return memory;
}

static void give(struct cuda *c, void *memory)
{
    struct cuda_state *s = c->state;
    for (uint32_t i = s->taken_count; memory && i-- > 0;)
        if (s->taken[i] == memory) {
            s->taken[i] = s->taken[--s->taken_count];
            break;
        }
    cuda_note(c, cudaFree(memory), "free");
}

static void *take_host(struct cuda *c, size_t bytes)
{
    void *host = NULL;
    (void)c;
    if (cudaMallocHost(&host, bytes ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    return host;
}

static void give_host(struct cuda *c, void *host)
{
    cuda_note(c, cudaFreeHost(host), "free host memory");
}

static void copy_in(struct cuda *c, void *to, const void *host, size_t bytes)
{
    cuda_note(c, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, c->state->stream),
              "copy to the device");
}

static void copy_out(struct cuda *c, void *host, const void *from, size_t bytes)
{
    cuda_note(c, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, c->state->stream),
              "copy from the device");
}

static void copy(struct cuda *c, void *to, const void *from, size_t bytes)
{
    cuda_note(c, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, c->state->stream),
              "copy on the device");
}

static void clear(struct cuda *c, void *to, size_t bytes)
{
    cuda_note(c, cudaMemsetAsync(to, 0, bytes, c->state->stream), "clear");
}

static void copy_out_later(struct cuda *c, void *host, const void *from, size_t bytes)
{
    struct cuda_state *s = c->state;
    if (s->out_begun - s->out_done == OUT_EVENTS) {
        cuda_fail(c, -EINVAL, "copies out", "too many at a time");
        return;
    }
    cuda_note(c, cudaEventRecord(s->queued, s->stream), "event");
    cuda_note(c, cudaStreamWaitEvent(s->copies, s->queued, 0), "event");
    cuda_note(c, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, s->copies),
              "copy from the device");
    cuda_note(c, cudaEventRecord(s->copied[s->out_begun++ % OUT_EVENTS], s->copies), "event");
}

static int wait_out(struct cuda *c)
{
    struct cuda_state *s = c->state;
    if (s->out_begun != s->out_done)
        cuda_note(c, cudaEventSynchronize(s->copied[s->out_done++ % OUT_EVENTS]), "copies out");
    return s->error;
}

static int sync(struct cuda *c)
{
    cuda_note(c, cudaStreamSynchronize(c->state->stream), "compute");
    return c->state->error;
}

static size_t memory_used(struct cuda *c)
{
    size_t left = 0, all = 0;
    cuda_note(c, cudaMemGetInfo(&left, &all), "memory");
    return all - left;
}

static double seconds(struct cuda *c)
{
    float milliseconds = 0;
    cuda_note(c, cudaEventRecord(c->state->queued, c->state->stream), "event");
    cuda_note(c, cudaEventSynchronize(c->state->queued), "event");
    cuda_note(c, cudaEventElapsedTime(&milliseconds, c->state->start, c->state->queued), "event");
    return 1e-3 * (double)milliseconds;
}

/* ---- open and close ---- */

static void table_memory(struct cuda *c)
{
    c->take = take;
    c->give = give;
    c->take_host = take_host;
    c->give_host = give_host;
    c->copy_in = copy_in;
    c->copy_out = copy_out;
    c->copy = copy;
    c->clear = clear;
    c->copy_out_later = copy_out_later;
    c->wait_out = wait_out;
    c->sync = sync;
    c->memory_used = memory_used;
    c->seconds = seconds;
}

/* What keeps this machine from being used, in words; NULL: nothing. */
static const char *unusable(struct cudaDeviceProp *properties)
{
    static char other[160];
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess)
        return cudaGetErrorString(error);
    if (!count)
        return "no device";
    error = cudaGetDeviceProperties(properties, 0);
    if (error == cudaSuccess)
        error = cudaSetDevice(0);
    if (error != cudaSuccess)
        return cudaGetErrorString(error);
    int arch = 10 * properties->major + properties->minor, least = built_for[0] / 10;
    if (arch < ARCH_MIN)
        return "the device is older than compute capability 8.0";
    if (arch >= least)
        return NULL;
    snprintf(other, sizeof other,
             "the device has compute capability %d.%d and this silt was built for %d.%d and newer: "
             "build it with make CUDA_ARCH=%d",
             properties->major, properties->minor, least / 10, least % 10, arch);
    return other;
}

static int open_orders(struct cuda *c)
{
    struct cuda_state *s = c->state;
    cuda_note(c, cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "stream");
    cuda_note(c, cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking), "stream");
    cuda_note(c, cudaEventCreate(&s->start), "event");
    cuda_note(c, cudaEventCreate(&s->queued), "event");
    for (int i = 0; i < OUT_EVENTS; i++)
        cuda_note(c, cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming), "event");
    if (!s->error)
        cuda_note(c, cudaEventRecord(s->start, s->stream), "event");
    return s->error;
}

int cuda_open(struct cuda **out, char *error, size_t error_bytes)
{
    static char name[300];
    struct cudaDeviceProp properties;
    *out = NULL;
    const char *why = unusable(&properties);
    if (why) {
        snprintf(error, error_bytes, "no usable GPU (%s); use --device cpu", why);
        return -ENODEV;
    }
    struct cuda *c = (struct cuda *)calloc(1, sizeof *c);
    if (c)
        c->state = (struct cuda_state *)calloc(1, sizeof *c->state);
    if (!c || !c->state) {
        snprintf(error, error_bytes, "no memory for a device");
        free(c);
        return -ENOMEM;
    }
    snprintf(name, sizeof name, "cuda, %s", properties.name);
    c->name = name;
    c->processors = (uint32_t)properties.multiProcessorCount;
    table_memory(c);
    cuda_table_matmul_file(c);
    cuda_table_tensor(c);
    cuda_table_norm(c);
    cuda_table_gated(c);
    cuda_table_rope(c);
    cuda_table_merge(c);
    cuda_table_attend(c);
    cuda_table_fold(c);
    cuda_table_graph(c);
    int code = open_orders(c);
    if (code)
        snprintf(error, error_bytes, "%s", c->error_text);
    if (!code)
        code = cuda_open_matmul(c, error, error_bytes);
    (void)cudaMemGetInfo(&c->memory_free_bytes, &c->memory_bytes);
    if (code) {
        cuda_close(&c);
        return code;
    }
    *out = c;
    return 0;
}

void cuda_close(struct cuda **handle)
{
    struct cuda *c = *handle;
    if (!c)
        return;
    struct cuda_state *s = c->state;
    (void)cudaDeviceSynchronize();
    cuda_close_graphs(c);
    cuda_close_matmul(c);
    for (int i = 0; i < OUT_EVENTS; i++)
        if (s->copied[i])
            (void)cudaEventDestroy(s->copied[i]);
    for (uint32_t i = 0; i < s->taken_count; i++)
        (void)cudaFree(s->taken[i]);
    free(s->taken);
    if (s->start)
        (void)cudaEventDestroy(s->start);
    if (s->queued)
        (void)cudaEventDestroy(s->queued);
    if (s->copies)
        (void)cudaStreamDestroy(s->copies);
    if (s->stream)
        (void)cudaStreamDestroy(s->stream);
    free(s);
    free(c);
    *handle = NULL;
}
