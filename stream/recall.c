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
