/*
 * Recall: cold segments come back for one question.
 *
 * They are placed as the chunks just before the ring, where they would stand had the text between
 * been left out; summary and sinks move back to make room (DESIGN 2.6).
 */
#include "stream/gpu.h"

#include <errno.h>
#include <string.h>

/* The slots of one segment, as the COMP tokens of the chunk that starts at `start` (DESIGN 2.3). */
static void place_segment(struct stream *stream, const f16 *rows, uint32_t index, int64_t start)
{
    struct engine *e = stream->engine;
    const struct shape *s = &e->shape;
    size_t dim = s->head_dim, of_head = (size_t)STREAM_RECALL_MAX * s->comp * dim;
    for (uint32_t i = 0; i < s->comp; i++)
        rotation_row(e, start + (int64_t)(i + 1) * (s->chunk / s->comp) - 1, e->rotation + i * dim);
    for (uint32_t h = 0; h < stream->layout.heads; h++) {
        const f16 *from = rows + (size_t)h * s->comp * 2 * dim;
        f16 *key = stream->recall_k + h * of_head + (size_t)index * s->comp * dim;
        f16 *value = stream->recall_v + h * of_head + (size_t)index * s->comp * dim;
        for (uint32_t i = 0; i < s->comp; i++) {
            memcpy(key + i * dim, from + 2 * i * dim, dim * sizeof *key);
            memcpy(value + i * dim, from + (2 * i + 1) * dim, dim * sizeof *value);
        }
        e->kernels->rotate(e->kernels, key, key, e->rotation, s->comp, s->head_dim);
    }
}

int fork_recall(struct fork *fork, const struct cold_segment *segments, uint32_t count)
{
    struct stream *stream = &fork->stream;
    const struct shape *s = &stream->engine->shape;
    if (count > fork_recall_max(fork) || count > stream->state->summary_count)
        return -EINVAL;
    for (uint32_t i = 1; i < count; i++)
        if (segments[i].number <= segments[i - 1].number)
            return -EINVAL;
    if (fork->fed)
        return -EBUSY;
    if (stream->device)
        return gpu_fork_recall(fork, segments, count);
    int64_t start = ccm_ring_start(stream->engine, stream->state) - (int64_t)count * s->chunk;
    for (uint32_t i = 0; i < count; i++)
        place_segment(stream, segments[i].rows, i, start + (int64_t)i * s->chunk);
    stream->recall_rows = count * s->comp;
    ccm_place_old_rows(stream, count);
    return 0;
}
