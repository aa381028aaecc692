/*
 * Recall: cold segments come back for one question.
 *
 * A key says what a segment is about: the mean over its slots of the un-rotated K of a few layers.
 * Un-rotated, because where a segment once stood says nothing about what it holds.
 */
#include "stream/internal.h"
#include "stream/segment.h"

#include <errno.h>
#include <string.h>

enum { KEY_LAYERS_MAX = 4 };

static uint32_t key_layers(const struct engine *e)
{
    uint32_t fit = SEGMENT_KEY_MAX / e->shape.kv_dim;
    uint32_t most = fit < KEY_LAYERS_MAX ? fit : KEY_LAYERS_MAX;
    return most < e->shape.layers ? most : e->shape.layers;
}

/* Spread over the middle of the model, where attention is about content more than about place. */
static uint32_t key_layer(const struct engine *e, uint32_t i)
{
    uint32_t count = key_layers(e);
    return e->shape.layers * (2 * i + 1) / (2 * count);
}

uint32_t recall_key_count(const struct engine *e)
{
    return e->shape.comp ? key_layers(e) * e->shape.kv_dim : 0;
}

void recall_key(const struct engine *e, const f16 *rows, f16 *key)
{
    const struct shape *s = &e->shape;
    for (uint32_t i = 0; i < key_layers(e) * s->kv_heads; i++) {
        size_t head = (size_t)key_layer(e, i / s->kv_heads) * s->kv_heads + i % s->kv_heads;
        const f16 *from = rows + head * s->comp * 2 * s->head_dim;
        for (uint32_t d = 0; d < s->head_dim; d++) {
            float sum = 0;
            for (uint32_t slot = 0; slot < s->comp; slot++)
                sum += f16_to_f32(from[(size_t)slot * 2 * s->head_dim + d]);
            key[(size_t)i * s->head_dim + d] = f16_from_f32(sum / (float)s->comp);
        }
    }
}

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
    if (count > STREAM_RECALL_MAX || count > stream->state->summary_count)
        return -EINVAL;
    for (uint32_t i = 1; i < count; i++)
        if (segments[i].number <= segments[i - 1].number)
            return -EINVAL;
    if (fork->tail.count)
        return -EBUSY;
    int64_t start = ccm_ring_start(stream->engine, stream->state) - (int64_t)count * s->chunk;
    for (uint32_t i = 0; i < count; i++)
        place_segment(stream, segments[i].rows, i, start + (int64_t)i * s->chunk);
    stream->recall_rows = count * s->comp;
    ccm_place_old_rows(stream, count);
    return 0;
}
