/*
 * CCM: a finished chunk becomes a segment of m slots, segments a ring, what leaves the ring a
 * summary.
 *
 * Compressed Context Memory (arXiv 2312.03414): the ring is its concat memory, bounded; the summary
 * its merge memory. K is kept un-rotated, so that averaging keys means something and old rows can
 * be placed anew each chunk: no query ever sees a distance beyond the trained context, however long
 * the stream (DESIGN 2.6).
 */
#include "stream/gpu.h"

#include <assert.h>
#include <string.h>
#include <xxhash.h>

uint32_t ccm_visible(const struct engine *e, const struct layout *l, const struct state *state,
                     uint32_t *first)
{
    (void)l;
    uint32_t ring = e->shape.comp + e->shape.sinks;
    *first = state->summary_count ? 0 : e->shape.comp;
    if (state->chunks < 2) /* the sinks' own chunk is still there */
        *first = ring;
    return ring + state->ring_count * e->shape.comp - *first;
}

int64_t ccm_ring_start(const struct engine *e, const struct state *state)
{
    uint64_t back = state->ring_count ? state->ring_count : state->chunks > 0;
    return (int64_t)((state->chunks - back) * e->shape.chunk);
}

/* Slots of one head's keys or values as queries see them, *stride floats apart: the mean, or what
 * the adapter's map makes of it. */
static const float *seen_slots(struct engine *e, uint32_t head, bool value, const float *mean,
                               size_t *stride)
{
    const struct shape *s = &e->shape;
    const struct layer *layer = &e->layer[head / s->kv_heads];
    uint32_t part = head % s->kv_heads + (value ? s->kv_heads : 0);
    size_t dim = s->head_dim;
    *stride = 2 * dim;
    mean += value ? dim : 0;
    if (!layer->summary_map)
        return mean;
    const float *bias = layer->summary_bias + part * dim;
    for (uint32_t i = 0; i < s->comp; i++)
        for (size_t n = 0; n < dim; n++)
            e->mapped[i * dim + n] = mean[i * *stride + n] + bias[n];
    e->kernels->matmul(e->kernels, e->mapped, dim, &layer->summary_map[part], mean, *stride, NULL,
                       s->comp, true);
    *stride = dim;
    return e->mapped;
}

/* Un-rotated keys go to f16 and are rotated. */
static void place_summary(struct stream *stream, int64_t at)
{
    struct engine *e = stream->engine;
    struct kernels *k = e->kernels;
    const struct layout *l = &stream->layout;
    const struct shape *s = &e->shape;
    size_t dim = s->head_dim, stride;
    for (uint32_t i = 0; i < s->comp; i++)
        rotation_row(e, at + i, e->rotation + i * dim);
    for (uint32_t h = 0; h < l->heads; h++) {
        const float *mean =
            STATE_AT(stream->state, l->summary, float) + (size_t)h * s->comp * 2 * dim;
        f16 *key = STATE_AT(stream->state, l->fixed_k, f16) + (size_t)h * l->fixed_rows * dim;
        f16 *value = STATE_AT(stream->state, l->fixed_v, f16) + (size_t)h * l->fixed_rows * dim;
        const float *from = seen_slots(e, h, false, mean, &stride);
        for (uint32_t i = 0; i < s->comp; i++)
            k->pack_f16(k, key + i * dim, from + i * stride, dim);
        from = seen_slots(e, h, true, mean, &stride);
        for (uint32_t i = 0; i < s->comp; i++)
            k->pack_f16(k, value + i * dim, from + i * stride, dim);
        k->rotate(k, key, key, e->rotation, s->comp, s->head_dim);
    }
}

/* The summary goes to P - kn - m + s; sinks to P - kn - m - 8 + j, or j while P = 0. */
void ccm_place_old_rows(struct stream *stream, uint32_t recalled)
{
    if (stream->device) {
        gpu_place_old_rows(stream, recalled);
        return;
    }
    struct engine *e = stream->engine;
    struct kernels *k = e->kernels;
    const struct layout *l = &stream->layout;
    const struct shape *s = &e->shape;
    int64_t start = ccm_ring_start(e, stream->state);
    int64_t summary_at = start - (int64_t)recalled * s->chunk - s->comp;
    int64_t pins_at = summary_at - pin_rows(l, stream->state);
    int64_t sinks_at = start ? pins_at - s->sinks : 0;
    size_t dim = s->head_dim;
    for (uint32_t j = 0; j < s->sinks; j++)
        rotation_row(e, sinks_at + j, e->rotation + j * dim);
    for (uint32_t h = 0; h < l->heads; h++)
        k->rotate(k,
                  STATE_AT(stream->state, l->fixed_k, f16) +
                      ((size_t)h * l->fixed_rows + s->comp) * dim,
                  STATE_AT(stream->state, l->sink_k, f16) + (size_t)h * s->sinks * dim, e->rotation,
                  s->sinks, s->head_dim);
    pin_place(stream, pins_at);
    if (stream->state->summary_count)
        place_summary(stream, summary_at);
}

static size_t fixed_slot(const struct stream *stream, uint32_t head, uint32_t ring_slot)
{
    const struct shape *s = &stream->engine->shape;
    return ((size_t)head * stream->layout.fixed_rows + s->comp + s->sinks + ring_slot * s->comp) *
           s->head_dim;
}

/* A segment of the ring as it was made: [heads][comp][2: K un-rotated, V][head_dim]. */
static void gather(const struct stream *stream, uint32_t slot, f16 *out)
{
    const struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    const struct shape *s = &stream->engine->shape;
    size_t dim = s->head_dim;
    for (uint32_t h = 0; h < l->heads; h++) {
        const f16 *key =
            STATE_AT_CONST(state, l->ring_k, f16) + ((size_t)slot * l->heads + h) * s->comp * dim;
        const f16 *value = STATE_AT_CONST(state, l->fixed_v, f16) + fixed_slot(stream, h, slot);
        f16 *to = out + (size_t)h * s->comp * 2 * dim;
        for (uint32_t i = 0; i < s->comp; i++) {
            memcpy(to + 2 * i * dim, key + i * dim, dim * sizeof *to);
            memcpy(to + (2 * i + 1) * dim, value + i * dim, dim * sizeof *to);
        }
    }
}

void ccm_give_segment(struct stream *stream, const struct segment_view *segment)
{
    uint64_t from = monotonic_us();
    stream->leave(stream->leave_user, segment);
    stream->engine->times.leave_us += monotonic_us() - from;
}

/* The oldest segment leaves: whole, to whoever keeps cold segments, and as its share of the
 * summary's running mean. */
static void leave_ring(struct stream *stream)
{
    struct engine *e = stream->engine;
    struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    const struct shape *s = &e->shape;
    f16 *segment = e->leaving;
    gather(stream, state->ring_first, segment);
    size_t count = (size_t)l->heads * s->comp * 2 * s->head_dim;
    uint64_t number = state->summary_count++;
    if (stream->leave) {
        struct segment_view view = {number, number * s->chunk, (number + 1) * s->chunk, segment,
                                    count * sizeof(f16)};
        ccm_give_segment(stream, &view);
    }
    float alpha = 1.0f / (float)state->summary_count;
    e->kernels->fold(e->kernels, STATE_AT(state, l->summary, float), segment, count,
                     alpha > s->alpha_min ? alpha : s->alpha_min);
    state->ring_first = (state->ring_first + 1) % l->ring;
    state->ring_count--;
}

void ccm_set_ring(struct stream *stream, uint32_t slot, uint64_t chunk, const f16 *rows)
{
    if (stream->device) {
        gpu_set_ring(stream, slot, chunk, rows);
        return;
    }
    struct engine *e = stream->engine;
    struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    const struct shape *s = &e->shape;
    size_t dim = s->head_dim;
    for (uint32_t i = 0; i < s->comp; i++)
        rotation_row(e, (int64_t)(chunk * s->chunk + (uint64_t)(i + 1) * (s->chunk / s->comp)) - 1,
                     e->rotation + i * dim);
    for (uint32_t h = 0; h < l->heads; h++) {
        const f16 *from = rows + (size_t)h * s->comp * 2 * dim;
        f16 *raw = STATE_AT(state, l->ring_k, f16) + ((size_t)slot * l->heads + h) * s->comp * dim;
        f16 *key = STATE_AT(state, l->fixed_k, f16) + fixed_slot(stream, h, slot);
        f16 *value = STATE_AT(state, l->fixed_v, f16) + fixed_slot(stream, h, slot);
        for (uint32_t i = 0; i < s->comp; i++) {
            memcpy(raw + i * dim, from + 2 * i * dim, dim * sizeof *raw);
            memcpy(value + i * dim, from + (2 * i + 1) * dim, dim * sizeof *value);
        }
        e->kernels->rotate(e->kernels, key, raw, e->rotation, s->comp, s->head_dim);
    }
}

/* The segment just made joins the ring at once, rotated to its own positions: while its chunk's
 * entries are there too, a query finds the gist beside them (README, "where measuring changed
 * it"). */
static void join_ring(struct stream *stream)
{
    struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    if (state->ring_count == l->ring)
        leave_ring(stream);
    ccm_set_ring(stream, (state->ring_first + state->ring_count) % l->ring, state->chunks,
                 stream->engine->segment);
    state->ring_count++;
}

/* H = XXH3-64(H, segment, summary, counts, closed entries) */
static void chain_hash(struct stream *stream)
{
    struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    const struct shape *s = &stream->engine->shape;
    XXH3_state_t *x = stream->engine->hash;
    (void)XXH3_64bits_reset(x);
    size_t slots = (size_t)l->heads * s->comp * 2 * s->head_dim;
    const uint32_t *count = STATE_AT(state, l->count[state->open], uint32_t);
    const uint32_t *row = STATE_AT(state, l->row, uint32_t);
    (void)XXH3_64bits_update(x, &state->hash, sizeof state->hash);
    (void)XXH3_64bits_update(x, stream->engine->segment, slots * sizeof(f16));
    (void)XXH3_64bits_update(x, STATE_AT(state, l->summary, float), slots * sizeof(float));
    (void)XXH3_64bits_update(x, count, l->heads * sizeof *count);
    for (uint32_t h = 0; h < l->heads; h++) {
        size_t bytes = (size_t)count[h] * s->head_dim * sizeof(f16),
               at = (size_t)row[h] * s->head_dim;
        (void)XXH3_64bits_update(x, STATE_AT(state, l->window_k[state->open], f16) + at, bytes);
        (void)XXH3_64bits_update(x, STATE_AT(state, l->window_v[state->open], f16) + at, bytes);
    }
    state->hash = XXH3_64bits_digest(x);
    state->hash_chunk = state->chunks + 1;
}

bool stream_newest_segment(const struct stream *stream, struct segment_view *out)
{
    const struct layout *l = &stream->layout;
    const struct state *state = stream->state;
    const struct shape *s = &stream->engine->shape;
    if (!state->ring_count)
        return false;
    uint32_t slot = (state->ring_first + state->ring_count - 1) % l->ring;
    if (!stream->device)
        gather(stream, slot, stream->engine->leaving);
    *out = (struct segment_view){
        .number = state->chunks - 1,
        .token_from = (state->chunks - 1) * s->chunk,
        .token_to = state->chunks * s->chunk,
        .rows = stream->device ? gpu_ring_segment(stream, slot) : stream->engine->leaving,
        .rows_bytes = (size_t)l->heads * s->comp * 2 * s->head_dim * sizeof(f16)};
    return out->rows != NULL;
}

bool ccm_comp_item(struct stream *stream, uint32_t rows, struct forward_item *out)
{
    struct engine *e = stream->engine;
    *out = (struct forward_item){.kind = FORWARD_COMP,
                                 .stream = stream,
                                 .state = stream->state,
                                 .rows = e->shape.comp,
                                 .segment = e->segment};
    return stream->layout.ring && rows + e->shape.comp <= FORWARD_ROWS_MAX;
}

void ccm_close_chunk(struct stream *stream, bool computed)
{
    struct engine *e = stream->engine;
    struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    struct forward_item item;
    assert(state->chunk_tokens == e->shape.chunk);
    if (l->ring && !computed) {
        ccm_comp_item(stream, 0, &item);
        forward_run(e, &item, 1);
    }
    if (l->ring)
        join_ring(stream);
    window_close(l, state);
    uint64_t *total = STATE_AT(state, l->entries_total, uint64_t);
    const uint32_t *count = STATE_AT(state, l->count[state->open], uint32_t);
    for (uint32_t h = 0; h < l->heads; h++)
        total[h] += count[h];
    chain_hash(stream);
    state->open = !state->open;
    memset(STATE_AT(state, l->count[state->open], uint32_t), 0, l->heads * sizeof(uint32_t));
    state->chunks++;
    state->chunk_tokens = 0;
    ccm_place_old_rows(stream, 0);
}
