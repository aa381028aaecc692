#include "tests/emulate/gpu_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char model_path[64], adapter_path[64];
struct engine *cpu, *gpu;
int32_t tokens[TOKENS + 1];

struct held stream_of(struct engine *e, uint32_t ratio, uint32_t ring)
{
    struct stream_options options = {.dmc_ratio = ratio, .ring_segments = ring};
    size_t bytes = (stream_bytes(e, &options, NULL, 0) + 63) & ~(size_t)63;
    struct held h = {.memory = aligned_alloc(64, bytes)};
    assert_non_null(h.memory);
    assert_int_equal(stream_open(&h.stream, e, &options, h.memory, bytes), 0);
    return h;
}

void drop(struct held *h)
{
    stream_close(&h->stream);
    free(h->memory);
}

uint64_t hash_of(const struct held *h)
{
    struct stream_stat stat;
    stream_stat(h->stream, &stat);
    return stat.memory_hash;
}

static struct engine *open_engine(const struct engine_options *options, char *error,
                                  size_t error_bytes, int *code)
{
    struct engine *e = NULL;
    *code = engine_open(&e, options, error, error_bytes);
    return e;
}

static struct engine_options options_of(enum device device, uint32_t rows)
{
    return (struct engine_options){.model_path = model_path,
                                   .adapter_path = adapter_path,
                                   .device = device,
                                   .threads = 1,
                                   .feature_mask = UINT32_MAX,
                                   .pin_tokens_max = RIG_PINS,
                                   .device_bytes = 96 << 20,
                                   .batch_rows = rows};
}

struct engine *engine_on(enum device device, char *error, size_t error_bytes, int *code)
{
    struct engine_options options = options_of(device, 1024);
    return open_engine(&options, error, error_bytes, code);
}

struct engine *engine_in_passes_of(uint32_t rows)
{
    struct engine_options options = options_of(DEVICE_CUDA, rows);
    char error[256] = "";
    int code;
    struct engine *e = open_engine(&options, error, sizeof error, &code);
    if (!e)
        fail_msg("%d: %s", code, error);
    return e;
}

struct engine *engine_of(enum device device, const struct tiny_options *model,
                         enum device_weights weights, size_t device_bytes, char *error,
                         size_t error_bytes, int *code)
{
    char paths[2][80];
    struct engine_options options = {.model_path = paths[0],
                                     .adapter_path = paths[1],
                                     .device = device,
                                     .threads = 1,
                                     .feature_mask = UINT32_MAX,
                                     .device_bytes = device_bytes,
                                     .device_weights = weights,
                                     .batch_rows = 1024};
    snprintf(paths[0], sizeof paths[0], "%s.other", model_path);
    snprintf(paths[1], sizeof paths[1], "%s.other", adapter_path);
    assert_int_equal(tiny_model_write(paths[0], model), 0);
    assert_int_equal(tiny_adapter_write(paths[1], paths[0], model), 0);
    struct engine *e = open_engine(&options, error, error_bytes, code);
    unlink(paths[0]);
    unlink(paths[1]);
    return e;
}

/* Float weights: what differs is bf16 against fp32 alone, not int8 activations. */
int rig_set_up(void **state)
{
    (void)state;
    char error[256] = "";
    int code;
    snprintf(model_path, sizeof model_path, "/tmp/silt-gpu-%d.gguf", getpid());
    snprintf(adapter_path, sizeof adapter_path, "/tmp/silt-gpu-%d.adapter.gguf", getpid());
    struct tiny_options options = TINY_DEFAULTS;
    options.weight_type = options.embed_type = TENSOR_F32;
    options.recall = true;
    options.recall_layer = 1;
    if (tiny_model_write(model_path, &options) ||
        tiny_adapter_write(adapter_path, model_path, &options))
        return -1;
    cpu = engine_on(DEVICE_CPU, error, sizeof error, &code);
    gpu = engine_on(DEVICE_CUDA, error, sizeof error, &code);
    if (!cpu || !gpu) {
        fprintf(stderr, "%s\n", error);
        return -1;
    }
    uint64_t x = 88172645463325252u;
    for (int i = 0; i <= TOKENS; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        tokens[i] = (int32_t)(3 + x % (cpu->shape.vocab - 3));
    }
    return 0;
}

int rig_tear_down(void **state)
{
    (void)state;
    engine_close(&cpu);
    engine_close(&gpu);
    unlink(model_path);
    unlink(adapter_path);
    return 0;
}

struct fork *fork_of(const struct held *h, void **memory)
{
    struct fork *f;
    struct stream_options options = {.dmc_ratio = h->stream->layout.ratio,
                                     .ring_segments = h->stream->layout.ring};
    size_t bytes = (fork_bytes(h->stream->engine, &options) + 63) & ~(size_t)63;
    *memory = aligned_alloc(64, bytes);
    assert_non_null(*memory);
    assert_int_equal(fork_open(&f, h->stream, *memory, bytes), 0);
    return f;
}

double logits_apart(struct fork *a, struct fork *b)
{
    const float *x = fork_logits(a), *y = fork_logits(b);
    double far = 0, top = 0;
    for (uint32_t i = 0; i < cpu->shape.vocab; i++) {
        far = fmax(far, fabs((double)x[i] - (double)y[i]));
        top = fmax(top, fabs((double)x[i]));
    }
    return far / top;
}

uint32_t rig_left[2];
f16 rig_left_rows[8][TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM];

void rig_leaves(void *user, const struct segment_view *segment)
{
    uint32_t *count = user;
    assert_int_equal(segment->number, *count);
    assert_int_equal(segment->token_from, *count * TINY_CHUNK);
    assert_int_equal(segment->token_to, (*count + 1) * TINY_CHUNK);
    assert_int_equal(segment->rows_bytes, sizeof rig_left_rows[0]);
    if (count == &rig_left[0])
        memcpy(rig_left_rows[*count], segment->rows, segment->rows_bytes);
    *count += 1;
}
