/*
 * A fork: the stream's state copied at one position, and a tail of raw rows behind it.
 *
 * A stream's state is a few megabytes without pointers, so a fork takes a copy (milliseconds)
 * rather than share rows under a stream that goes on. A fork never slides; its rows take the next
 * positions up to FORK_TOKENS_MAX. The stream's pending tokens come first among them, computed as
 * their block will compute them once it is full: until then nothing of them is merged anyway.
 */
#include "stream/gpu.h"

#include <errno.h>
#include <string.h>

enum { TAIL_ROWS_MAX = STREAM_BLOCK_TOKENS + FORK_TOKENS_MAX };

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static size_t tail_bytes(const struct engine *e)
{
    const struct shape *s = &e->shape;
    return aligned((size_t)s->layers * s->kv_heads * TAIL_ROWS_MAX * s->head_dim * sizeof(f16));
}

static size_t recall_bytes(const struct engine *e)
{
    const struct shape *s = &e->shape;
    return aligned((size_t)s->layers * s->kv_heads * STREAM_RECALL_MAX * s->comp * s->head_dim *
                   sizeof(f16));
}

static size_t bytes_for(const struct engine *e, const struct layout *layout)
{
    if (e->gpu) /* the rest lies in its arena */
        return aligned(sizeof(struct fork)) + aligned(layout->fixed_k) +
               aligned(e->shape.vocab * sizeof(float));
    return aligned(sizeof(struct fork)) + aligned(layout->bytes) + 2 * tail_bytes(e) +
           2 * recall_bytes(e) + aligned(e->shape.vocab * sizeof(float));
}

size_t fork_bytes(const struct engine *engine, const struct stream_options *options)
{
    struct layout layout;
    return layout_make(&layout, engine, options, NULL, 0) ? 0 : bytes_for(engine, &layout);
}

size_t fork_device_bytes(const struct engine *engine, const struct stream_options *options)
{
    struct layout layout;
    return !engine->gpu || layout_make(&layout, engine, options, NULL, 0)
               ? 0
               : gpu_fork_bytes(engine, &layout);
}

static void compute_pending(struct fork *f)
{
    struct state *state = f->stream.state;
    struct forward_item item = {.kind = FORWARD_RAW,
                                .stream = &f->stream,
                                .state = state,
                                .tail = &f->tail,
                                .tokens = state->pending,
                                .rows = state->pending_count,
                                .position = (int64_t)state->tokens,
                                .dmc_lora = f->stream.layout.ratio > 1};
    if (item.rows)
        forward_run(f->stream.engine, &item, 1);
    f->pending = item.rows;
}

int fork_open(struct fork **out, const struct stream *stream, void *memory, size_t memory_bytes)
{
    struct engine *e = stream->engine;
    if (memory_bytes < bytes_for(e, &stream->layout) || (uintptr_t)memory % 64)
        return -EINVAL;
    struct fork *f = memory;
    char *at = (char *)memory + aligned(sizeof *f);
    *f = (struct fork){.stream = *stream, .tail.capacity = TAIL_ROWS_MAX};
    f->stream.leave = NULL;
    f->stream.state = (void *)at;
    f->position = stream->state->tokens + stream->state->pending_count;
    if (e->gpu) {
        memcpy(f->stream.state, stream->state, stream->layout.fixed_k);
        f->logits = (void *)(at + aligned(stream->layout.fixed_k));
        int code = gpu_fork_open(f, stream, FORK_TOKENS_MAX);
        *out = code ? NULL : f;
        return code;
    }
    memcpy(f->stream.state, stream->state, stream->layout.bytes);
    at += aligned(stream->layout.bytes);
    f->tail.k = (void *)at;
    f->tail.v = (void *)(at + tail_bytes(e));
    at += 2 * tail_bytes(e);
    f->stream.recall_k = (void *)at;
    f->stream.recall_v = (void *)(at + recall_bytes(e));
    f->logits = (void *)(at + 2 * recall_bytes(e));
    compute_pending(f);
    *out = f;
    return 0;
}

void fork_close(struct fork **fork)
{
    if (*fork && (*fork)->stream.device)
        gpu_fork_close(*fork);
    *fork = NULL;
}

static int32_t likeliest(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

int fork_feed(struct fork *f, const int32_t *tokens, uint32_t count)
{
    struct engine *e = f->stream.engine;
    if (count > fork_room(f))
        return -ENOSPC;
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->shape.vocab)
            return -EINVAL;
    if (f->tail.k && e->gpu) {
        struct fork_work work = {.fork = f, .tokens = tokens, .count = count};
        return gpu_forks_feed(&work, 1);
    }
    for (uint32_t at = 0; at < count;) {
        uint32_t rows = count - at < STREAM_PASS_TOKENS ? count - at : STREAM_PASS_TOKENS;
        struct forward_item item = {.kind = FORWARD_RAW,
                                    .stream = &f->stream,
                                    .state = f->stream.state,
                                    .tail = &f->tail,
                                    .tokens = tokens + at,
                                    .rows = rows,
                                    .position = (int64_t)(f->stream.state->tokens + f->tail.count)};
        forward_run(e, &item, 1);
        at += rows;
        if (at == count)
            forward_logits(e, rows - 1, 1, f->logits);
        f->fed = true;
    }
    return 0;
}

int forks_feed(struct fork_work *work, uint32_t count)
{
    int first = 0;
    bool gpu = count && work[0].fork->stream.engine->gpu;
    for (uint32_t i = 0; i < count; i++) {
        struct fork_work *w = &work[i];
        uint32_t vocab = w->fork->stream.engine->shape.vocab;
        w->result = w->count > fork_room(w->fork) ? -ENOSPC : 0;
        for (uint32_t t = 0; t < w->count && !w->result; t++)
            w->result = w->tokens[t] < 0 || (uint32_t)w->tokens[t] >= vocab ? -EINVAL : 0;
        if (!gpu && !w->result)
            w->result = fork_feed(w->fork, w->tokens, w->count);
        if (!gpu && !w->result && w->best)
            *w->best = likeliest(w->fork->logits, vocab);
        first = first ? first : w->result;
    }
    int code = gpu ? gpu_forks_feed(work, count) : 0;
    return first ? first : code;
}

void fork_rewind(struct fork *fork)
{
    fork->tail.count = fork->pending;
    fork->fed = false;
}

int fork_rewind_to(struct fork *fork, uint32_t tokens)
{
    if (tokens > fork->tail.count - fork->pending)
        return -EINVAL;
    fork->tail.count = fork->pending + tokens;
    fork->fed = false;
    return 0;
}

const float *fork_logits(struct fork *fork)
{
    return fork->fed ? fork->logits : NULL;
}

uint64_t fork_position(const struct fork *fork)
{
    return fork->position;
}

uint32_t fork_room(const struct fork *fork)
{
    return FORK_TOKENS_MAX - (fork->tail.count - fork->pending);
}
