/*
 * A stream begun in the middle, for one segment to be computed again without all the text before.
 *
 * Summary and sinks come from another position of the same stream, the ring from segments that are
 * on disk. The window is empty: chunks that are fed first fill it, and what is computed then is
 * near what it was, not the same.
 */
#include "stream/gpu.h"

#include <errno.h>
#include <string.h>

int stream_seed(struct stream *stream, uint64_t chunks)
{
    const struct layout *l = &stream->layout;
    struct state *state = stream->state;
    size_t counts = l->heads * sizeof(uint32_t);
    if (!l->ring || chunks <= l->ring || !state->summary_count)
        return -EINVAL;
    state->tokens = chunks * stream->engine->shape.chunk;
    state->chunks = chunks;
    state->summary_count = chunks - l->ring;
    state->hash = state->hash_chunk = 0;
    state->chunk_tokens = state->pending_count = 0;
    state->ring_count = l->ring;
    state->ring_first = 0;
    for (int w = 0; w < 2; w++)
        memset(STATE_AT(state, l->count[w], uint32_t), 0, counts);
    if (l->ratio > 1) {
        memset(STATE_AT(state, l->held, uint32_t), 0, counts);
        memset(STATE_AT(state, l->grown, uint32_t), 0, counts);
    }
    if (stream->device)
        gpu_stream_send(stream);
    ccm_place_old_rows(stream, 0);
    return 0;
}

int stream_seed_segment(struct stream *stream, uint64_t chunk, const f16 *rows)
{
    const struct state *state = stream->state;
    uint64_t first = state->chunks - stream->layout.ring;
    if (chunk < first || chunk >= state->chunks)
        return -EINVAL;
    ccm_set_ring(stream, (uint32_t)(chunk - first), chunk, rows);
    return 0;
}
