/*
 * A short text at base weights, every row kept: what the model makes of it without any compression.
 *
 * The loss meter's reference. Positions begin at 0, no row ever goes.
 */
#include "stream/gpu.h"

#include <errno.h>

struct raw {
    struct engine *engine;
    struct tail tail;
};

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static size_t rows_bytes(const struct engine *e, uint32_t tokens)
{
    const struct shape *s = &e->shape;
    return aligned((size_t)s->layers * s->kv_heads * tokens * s->head_dim * sizeof(f16));
}

size_t raw_bytes(const struct engine *engine, uint32_t tokens)
{
    return aligned(sizeof(struct raw)) + (engine->gpu ? 0 : 2 * rows_bytes(engine, tokens));
}

size_t raw_device_bytes(const struct engine *engine, uint32_t tokens)
{
    return engine->gpu ? gpu_aligned(2 * gpu_tail_bytes(engine, tokens)) : 0;
}

int raw_open(struct raw **out, struct engine *engine, uint32_t tokens, void *memory,
             size_t memory_bytes)
{
    if (memory_bytes < raw_bytes(engine, tokens) || (uintptr_t)memory % 64 ||
        tokens > engine->shape.context)
        return -EINVAL;
    struct raw *raw = memory;
    char *rows = (char *)memory + aligned(sizeof *raw);
    *raw = (struct raw){.engine = engine,
                        .tail = {.k = (void *)rows,
                                 .v = (void *)(rows + rows_bytes(engine, tokens)),
                                 .capacity = tokens}};
    if (engine->gpu) {
        (void)gpu_take(engine->gpu, raw_device_bytes(engine, tokens), &raw->tail.k, &raw->tail.v);
        raw->tail.v =
            raw->tail.k ? raw->tail.k + gpu_tail_bytes(engine, tokens) / sizeof(f16) : NULL;
    }
    *out = raw->tail.k ? raw : NULL;
    return raw->tail.k ? 0 : -ENOMEM;
}

void raw_reset(struct raw *raw)
{
    raw->tail.count = 0;
}

int raw_score(struct raw *raw, const int32_t *tokens, const int32_t *targets, uint32_t count,
              float *nll)
{
    struct engine *e = raw->engine;
    if (count > STREAM_BLOCK_TOKENS)
        return -EINVAL;
    if (count > raw->tail.capacity - raw->tail.count)
        return -ENOSPC;
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->shape.vocab ||
            (targets && targets[i] >= (int32_t)e->shape.vocab))
            return -EINVAL;
    if (e->gpu) {
        struct gpu_rows run = {.tail = &raw->tail,
                               .tokens = tokens,
                               .targets = targets,
                               .count = count,
                               .layers = e->shape.layers,
                               .position = raw->tail.count,
                               .nll = nll};
        return gpu_rows_run(e, &run, 1);
    }
    struct forward_item item = {.kind = FORWARD_RAW,
                                .tail = &raw->tail,
                                .tokens = tokens,
                                .rows = count,
                                .position = raw->tail.count};
    forward_run(e, &item, 1);
    if (targets)
        forward_nll(e, 0, count, targets, nll);
    return 0;
}
