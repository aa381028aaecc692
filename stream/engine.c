/* The engine: kernels, weights and one work area, opened in that order and closed in the other. */
#include "stream/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static int open_buffers(struct engine *e)
{
    const struct shape *s = &e->shape;
    size_t slots = (size_t)s->layers * s->kv_heads * s->comp * 2 * s->head_dim;
    size_t rows = s->comp > s->sinks ? s->comp : s->sinks;
    size_t mapped = e->layer[0].summary_map ? s->comp : 0;
    size_t scratch = (rows + mapped) * s->head_dim;
    e->segment = calloc(slots ? 2 * slots : 1, sizeof *e->segment);
    e->rotation = calloc(scratch ? scratch : 1, sizeof *e->rotation);
    e->hash = XXH3_createState();
    if (!e->segment || !e->rotation || !e->hash)
        return -ENOMEM;
    e->leaving = e->segment + slots;
    e->mapped = e->rotation + rows * s->head_dim;
    if (s->pins) {
        struct tail *t = &e->pin_tail;
        t->capacity = s->pins + s->sinks;
        size_t pinned = (size_t)s->layers * s->kv_heads * t->capacity * s->head_dim;
        t->k = calloc(2 * pinned, sizeof *t->k);
        if (!t->k)
            return -ENOMEM;
        t->v = t->k + pinned;
        e->info.pin_tokens_max = s->pins;
    }
    e->info.work_bytes = 2 * slots * sizeof(f16) + scratch * sizeof(float);
    e->info.work_bytes +=
        (size_t)2 * s->layers * s->kv_heads * e->pin_tail.capacity * s->head_dim * sizeof(f16);
    return 0;
}

static int open_device(struct engine *e, char *error, size_t error_bytes)
{
    e->gpu = calloc(1, sizeof *e->gpu);
    return e->gpu ? cuda_open(&e->gpu->cuda, error, error_bytes)
                  : fail_with(error, error_bytes, -ENOMEM, "no memory for a device");
}

int engine_open(struct engine **out, const struct engine_options *options, char *error,
                size_t error_bytes)
{
    *out = NULL;
    struct engine *e = calloc(1, sizeof *e);
    if (!e)
        return fail_with(error, error_bytes, -ENOMEM, "no memory for an engine");
    struct kernels_options want = {DEVICE_CPU, options->threads, options->feature_mask};
    int code = options->device == DEVICE_CUDA ? open_device(e, error, error_bytes) : 0;
    if (!code && (code = kernels_open(&e->kernels, &want)))
        fail_with(error, error_bytes, code, "cannot open the CPU kernels: %s", strerror(-code));
    if (!code)
        code = weights_load(e, options, error, error_bytes);
    if (!code && e->adapter && (code = lexicon_open(&e->lexicon, e->adapter)))
        fail_with(error, error_bytes, code, "no memory for the adapter's lexicon");
    if (!code && e->info.adapter_fingerprint) /* without one all that is kept is raw */
        e->shape.pins = options->pin_tokens_max;
    if (!code && e->gpu)
        code = gpu_open(e, options, error, error_bytes);
    else if (!code && ((code = open_buffers(e)) || (code = work_open(&e->work, e))))
        fail_with(error, error_bytes, code, "no memory for the engine's work area");
    if (code) {
        engine_close(&e);
        return code;
    }
    e->info.work_bytes += e->work ? work_bytes(e->work) : 0;
    if (e->gpu) {
        e->info.kernels_name = e->gpu->cuda->name;
        e->info.work_bytes += e->gpu->host_bytes;
        e->info.device_weights_bytes = e->gpu->weights_bytes;
        e->info.device_scratch_bytes = e->gpu->scratch_bytes;
        e->info.device_kept_bytes = gpu_kept_bytes(e);
        e->info.device_work_bytes = e->gpu->work_bytes;
        e->info.device_arena_bytes = e->gpu->arena_bytes;
    }
    e->info.batch_tokens = e->gpu ? e->gpu->lanes_max * STREAM_BLOCK_TOKENS : STREAM_BLOCK_TOKENS;
    *out = e;
    return 0;
}

void engine_close(struct engine **engine)
{
    struct engine *e = *engine;
    if (!e)
        return;
    if (e->work)
        work_close(&e->work);
    gpu_close(e);
    free(e->segment);
    free(e->pin_tail.k);
    free(e->rotation);
    (void)XXH3_freeState(e->hash);
    free(e->lexicon);
    weights_free(e);
    kernels_close(&e->kernels);
    free(e);
    *engine = NULL;
}

void engine_info(const struct engine *engine, struct engine_info *out)
{
    *out = engine->info;
}

int engine_device_take(struct engine *engine, size_t bytes, char *error, size_t error_bytes)
{
    return engine->gpu ? gpu_arena(engine->gpu, bytes, error, error_bytes) : 0;
}

const char *engine_failure(const struct engine *engine)
{
    return engine->gpu && *engine->gpu->cuda->error_text ? engine->gpu->cuda->error_text : NULL;
}

void engine_times(const struct engine *engine, struct engine_times *out)
{
    *out = engine->times;
}

int engine_warm(struct engine *engine, char *error, size_t error_bytes)
{
    int code = engine->gpu ? gpu_warm(engine) : 0;
    const char *why = engine_failure(engine);
    return code ? fail_with(error, error_bytes, code, "%s", why ? why : strerror(-code)) : 0;
}

const struct tokenizer *engine_tokenizer(const struct engine *engine)
{
    return engine->tokenizer;
}
