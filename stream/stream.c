/* A stream's life: open, feed, score, look at, save, restore. */
#include "stream/stream.h"
#include "stream/gpu.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The handle lies at the head of the caller's memory, the state behind it. */
static size_t handle_bytes(void)
{
    return (sizeof(struct stream) + 63) & ~(size_t)63;
}

/* Of a stream's state in the caller's memory; on a GPU the rest lies there. */
static size_t held_bytes(const struct engine *e, const struct layout *layout)
{
    return e->gpu ? (layout->fixed_k + 63) & ~(size_t)63 : layout->bytes;
}

size_t stream_bytes(const struct engine *engine, const struct stream_options *options, char *error,
                    size_t error_bytes)
{
    struct layout layout;
    if (layout_make(&layout, engine, options, error, error_bytes))
        return 0;
    return handle_bytes() + held_bytes(engine, &layout);
}

size_t stream_device_bytes(const struct engine *engine, const struct stream_options *options)
{
    struct layout layout;
    return !engine->gpu || layout_make(&layout, engine, options, NULL, 0)
               ? 0
               : gpu_stream_bytes(&layout);
}

size_t stream_state_bytes(const struct engine *engine, const struct stream_options *options)
{
    struct layout layout;
    return layout_make(&layout, engine, options, NULL, 0) ? 0 : layout.bytes;
}

int stream_open(struct stream **out, struct engine *engine, const struct stream_options *options,
                void *memory, size_t memory_bytes)
{
    struct layout layout;
    int code = layout_make(&layout, engine, options, NULL, 0);
    if (code)
        return code;
    size_t bytes = handle_bytes() + held_bytes(engine, &layout);
    if (memory_bytes < bytes || (uintptr_t)memory % 64)
        return -EINVAL;
    struct stream *s = memory;
    *s = (struct stream){.engine = engine, .layout = layout};
    s->state = (void *)((char *)memory + handle_bytes());
    state_init(s->state, engine, &layout);
    if (engine->gpu && (code = gpu_stream_open(s)))
        return code;
    *out = s;
    return 0;
}

void stream_close(struct stream **stream)
{
    if (*stream && (*stream)->device)
        gpu_stream_close(*stream);
    if (*stream)
        (*stream)->state = NULL;
    *stream = NULL;
}

void stream_on_segment_leave(struct stream *stream, segment_leave_fn *leave, void *user)
{
    if (stream->device)
        gpu_give_leaving(stream->engine);
    stream->leave = leave;
    stream->leave_user = user;
}

uint32_t stream_block_room(const struct stream *stream)
{
    return STREAM_BLOCK_TOKENS - stream->state->pending_count;
}

static bool known(const struct engine *e, const int32_t *tokens, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->shape.vocab)
            return false;
    return true;
}

/* Mean over heads of the u32 [heads] at an offset of the state. */
static double heads_mean(const struct stream *stream, size_t offset)
{
    const uint32_t *count = STATE_AT_CONST(stream->state, offset, uint32_t);
    uint64_t sum = 0;
    for (uint32_t h = 0; h < stream->layout.heads; h++)
        sum += count[h];
    return (double)sum / stream->layout.heads;
}

/* What the tokens of a block see, for stream_rows_block; of two at once it is not known. */
static void note_rows(struct stream *stream, uint32_t count)
{
    double before = stream_rows_now(stream);
    stream->rows_block_count = 0;
    if (count > STREAM_BLOCK_TOKENS)
        return;
    for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS; i++)
        stream->rows_block[i] = before + i + 1;
    stream->rows_block_count = STREAM_BLOCK_TOKENS;
}

/* Computes whole blocks of the open chunk, at most STREAM_PASS_TOKENS, in one pass; the COMP tokens
 * go with the block that fills the chunk. */
static void compute_blocks(struct stream *stream, const int32_t *tokens, uint32_t count,
                           const int32_t *targets, float *nll)
{
    struct state *state = stream->state;
    struct engine *e = stream->engine;
    struct forward_item item[STREAM_PASS_TOKENS / STREAM_BLOCK_TOKENS + 1];
    uint32_t items = 0;
    assert(count <= STREAM_PASS_TOKENS && count % STREAM_BLOCK_TOKENS == 0 &&
           state->chunk_tokens + count <= e->shape.chunk);
    for (uint32_t at = 0; at < count; at += STREAM_BLOCK_TOKENS)
        item[items++] = (struct forward_item){.kind = FORWARD_STREAM,
                                              .stream = stream,
                                              .state = state,
                                              .tokens = tokens + at,
                                              .rows = STREAM_BLOCK_TOKENS,
                                              .position = (int64_t)(state->tokens + at)};
    note_rows(stream, count);
    bool full = state->chunk_tokens + count == e->shape.chunk;
    bool comp = full && ccm_comp_item(stream, count, &item[items]);
    forward_run(e, item, items + comp);
    if (nll)
        forward_nll(e, 0, count, targets, nll);
    state->tokens += count;
    state->chunk_tokens += count;
    if (full)
        ccm_close_chunk(stream, comp);
}

/* The pending tokens, a whole block of them. */
static void compute_pending(struct stream *stream, const int32_t *targets, float *nll)
{
    assert(stream->state->pending_count == STREAM_BLOCK_TOKENS);
    compute_blocks(stream, stream->state->pending, STREAM_BLOCK_TOKENS, targets, nll);
    stream->state->pending_count = 0;
    memset(stream->state->pending, 0, sizeof stream->state->pending);
}

uint32_t stream_pass_room(const struct stream *stream)
{
    const struct state *state = stream->state;
    uint32_t pass = STREAM_PASS_TOKENS - state->chunk_tokens % STREAM_PASS_TOKENS;
    uint32_t chunk = stream->engine->shape.chunk - state->chunk_tokens;
    return (pass < chunk ? pass : chunk) - state->pending_count;
}

int stream_feed(struct stream *stream, const int32_t *tokens, uint32_t count)
{
    struct state *state = stream->state;
    if (!known(stream->engine, tokens, count))
        return -EINVAL;
    if (stream->device) {
        struct stream_work work = {stream, tokens, count, 0};
        return gpu_streams_feed(&work, NULL, 1);
    }
    while (count) {
        int32_t pass[STREAM_PASS_TOKENS];
        uint32_t room = stream_pass_room(stream), held = state->pending_count;
        uint32_t taken = room < count ? room : count;
        uint32_t whole = (held + taken) / STREAM_BLOCK_TOKENS * STREAM_BLOCK_TOKENS;
        memcpy(pass, state->pending, held * sizeof *pass);
        memcpy(pass + held, tokens, taken * sizeof *pass);
        if (whole)
            compute_blocks(stream, pass, whole, NULL, NULL);
        /* zeros behind them: a state is the same bytes however its text was cut */
        state->pending_count = held + taken - whole;
        memset(state->pending, 0, sizeof state->pending);
        memcpy(state->pending, pass + whole, state->pending_count * sizeof *pass);
        tokens += taken;
        count -= taken;
    }
    return 0;
}

/* The pending tokens, a whole block of them, wherever the stream is. */
static int score_pending(struct stream *stream, const int32_t *targets, float *nll)
{
    int32_t block[STREAM_BLOCK_TOKENS];
    struct stream_work work = {stream, block, STREAM_BLOCK_TOKENS, 0};
    if (!stream->device) {
        compute_pending(stream, targets, nll);
        return 0;
    }
    memcpy(block, stream->state->pending, sizeof block);
    stream->state->pending_count = 0;
    return gpu_streams_feed(&work, &(struct stream_targets){targets, nll}, 1);
}

int stream_feed_scored(struct stream *stream, const int32_t *tokens, uint32_t count, double *nll,
                       uint32_t *scored)
{
    struct state *state = stream->state;
    int32_t targets[STREAM_BLOCK_TOKENS];
    float block[STREAM_BLOCK_TOKENS];
    if (!known(stream->engine, tokens, count))
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        state->pending[state->pending_count++] = tokens[i];
        if (state->pending_count < STREAM_BLOCK_TOKENS)
            continue;
        for (uint32_t j = 0; j < STREAM_BLOCK_TOKENS; j++)
            targets[j] = j + 1 < STREAM_BLOCK_TOKENS ? state->pending[j + 1] : -1;
        int code = score_pending(stream, targets, block);
        if (code)
            return code;
        for (uint32_t j = 0; j + 1 < STREAM_BLOCK_TOKENS; j++)
            *nll += block[j];
        *scored += STREAM_BLOCK_TOKENS - 1;
    }
    return 0;
}

void streams_give(struct engine *engine)
{
    if (engine->gpu)
        gpu_give_leaving(engine);
}

int streams_feed(struct stream_work *work, uint32_t count)
{
    int result = streams_feed_ahead(work, count);
    if (count)
        streams_give(work[0].stream->engine);
    return result;
}

int streams_feed_ahead(struct stream_work *work, uint32_t count)
{
    int first = 0;
    bool gpu = count && work[0].stream->device;
    for (uint32_t i = 0; gpu && i < count; i++)
        work[i].result = known(work[i].stream->engine, work[i].tokens, work[i].count) ? 0 : -EINVAL;
    if (gpu)
        return gpu_streams_feed_ahead(work, NULL, count);
    for (uint32_t i = 0; i < count; i++) {
        work[i].result = stream_feed(work[i].stream, work[i].tokens, work[i].count);
        first = first ? first : work[i].result;
    }
    return first;
}

static bool scorable(const struct stream *stream, const int32_t *tokens, const int32_t *targets,
                     uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (targets[i] >= 0 && (uint32_t)targets[i] >= stream->engine->shape.vocab)
            return false;
    return known(stream->engine, tokens, count) && !stream->state->pending_count &&
           count % STREAM_BLOCK_TOKENS == 0;
}

int stream_score(struct stream *stream, const int32_t *tokens, const int32_t *targets,
                 uint32_t count, float *nll)
{
    if (!scorable(stream, tokens, targets, count))
        return -EINVAL;
    if (stream->device) {
        struct stream_work work = {stream, tokens, count, 0};
        return gpu_streams_feed(&work, &(struct stream_targets){targets, nll}, 1);
    }
    for (uint32_t i = 0; i < count; i += STREAM_BLOCK_TOKENS) {
        compute_blocks(stream, tokens + i, STREAM_BLOCK_TOKENS, targets + i, nll + i);
    }
    return 0;
}

int streams_score(struct stream_work *work, const struct stream_targets *score, uint32_t count)
{
    bool gpu = count && work[0].stream->device;
    int first = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct stream_work *w = &work[i];
        w->result = scorable(w->stream, w->tokens, score[i].targets, w->count) ? 0 : -EINVAL;
        if (!gpu && !w->result)
            w->result =
                stream_score(w->stream, w->tokens, score[i].targets, w->count, score[i].nll);
        first = first ? first : w->result;
    }
    return gpu ? gpu_streams_feed(work, score, count) : first;
}

double stream_rows_now(const struct stream *stream)
{
    const struct layout *l = &stream->layout;
    uint32_t first;
    return ccm_visible(stream->engine, l, stream->state, &first) + heads_mean(stream, l->count[0]) +
           heads_mean(stream, l->count[1]) + window_raw_rows(l, stream->state->chunk_tokens);
}

void stream_rows_block(const struct stream *stream, double *rows, uint32_t count)
{
    assert(count <= stream->rows_block_count);
    memcpy(rows, stream->rows_block + stream->rows_block_count - count, count * sizeof *rows);
}

void stream_hide_memory(struct stream *stream, bool hide)
{
    stream->hide_memory = hide;
}

void stream_hide_summary(struct stream *stream, bool hide)
{
    stream->hide_summary = hide;
}

void stream_swap_memory(struct stream *stream, const struct stream *other)
{
    assert(!other || other->layout.bytes == stream->layout.bytes);
    stream->swap = other;
}

/* K or V of one row, all heads */
static size_t row_bytes(const struct layout *l, const struct shape *s)
{
    return (size_t)l->heads * s->head_dim * sizeof(f16);
}

static void plan_tiers(const struct engine *engine, const struct layout *l, struct stream_stat *out)
{
    const struct shape *s = &engine->shape;
    size_t row = row_bytes(l, s), *plan = out->tier_plan_bytes;
    out->bytes_plan =
        handle_bytes() + held_bytes(engine, l) + (engine->gpu ? gpu_stream_bytes(l) : 0);
    plan[TIER_SINKS] = 3 * row * s->sinks;
    plan[TIER_SUMMARY] = (2 + 4) * row * s->comp;
    plan[TIER_RING] = 3 * row * l->ring * s->comp;
    plan[TIER_WINDOW] = 4 * (size_t)l->window_rows * s->head_dim * sizeof(f16);
    if (l->ratio > 1)
        plan[TIER_WINDOW] += 2 * row * (STREAM_BLOCK_TOKENS + 1);
    plan[TIER_PINS] = 3 * row * l->pin_rows;
    plan[TIER_STATE] = out->bytes_plan;
    for (int t = 0; t < TIER_STATE; t++)
        plan[TIER_STATE] -= plan[t];
}

static void stat_tiers(const struct stream *stream, struct stream_stat *out)
{
    const struct layout *l = &stream->layout;
    const struct shape *s = &stream->engine->shape;
    const struct state *state = stream->state;
    size_t row = row_bytes(l, s);
    size_t *plan = out->tier_plan_bytes, *used = out->tier_used_bytes;
    plan_tiers(stream->engine, l, out);
    uint64_t held = state->tokens < s->sinks ? state->tokens : s->sinks;
    used[TIER_SINKS] = 3 * row * held;
    used[TIER_SUMMARY] = state->summary_count ? plan[TIER_SUMMARY] : 0;
    used[TIER_RING] = 3 * row * state->ring_count * s->comp;
    double entries = heads_mean(stream, l->count[!state->open]) +
                     heads_mean(stream, l->ratio > 1 ? l->held : l->count[state->open]);
    used[TIER_WINDOW] = (size_t)(entries * l->heads + 0.5) * 2 * s->head_dim * sizeof(f16);
    if (window_raw_rows(l, state->chunk_tokens))
        used[TIER_WINDOW] += 2 * row * (STREAM_BLOCK_TOKENS + 1);
    used[TIER_PINS] = 3 * row * pin_rows(l, state);
    used[TIER_STATE] = plan[TIER_STATE];
}

void stream_stat(const struct stream *stream, struct stream_stat *out)
{
    const struct state *state = stream->state;
    const struct layout *l = &stream->layout;
    const uint64_t *total = STATE_AT_CONST(state, l->entries_total, uint64_t);
    uint64_t entries = 0;
    for (uint32_t h = 0; h < l->heads; h++)
        entries += total[h];
    *out = (struct stream_stat){
        .tokens_computed = state->tokens,
        .tokens_pending = state->pending_count,
        .chunks = state->chunks,
        .segments_ring = state->ring_count,
        .segments_cold = state->summary_count,
        .dmc_ratio = l->ratio,
        .ring_segments = l->ring,
        .ratio_realised = entries ? (double)state->chunks * stream->engine->shape.chunk * l->heads /
                                        (double)entries
                                  : 1,
        .rows_mean = stream_rows_now(stream),
        .memory_hash = state->hash,
        .hash_chunk = state->hash_chunk,
    };
    stat_tiers(stream, out);
}

int stream_stat_shape(const struct engine *engine, const struct stream_options *options,
                      uint64_t tokens, struct stream_stat *out)
{
    struct layout l;
    int code = layout_make(&l, engine, options, NULL, 0);
    if (code)
        return code;
    uint64_t chunks = tokens / engine->shape.chunk;
    *out = (struct stream_stat){
        .tokens_computed = tokens,
        .chunks = chunks,
        .segments_ring = (uint32_t)(chunks < l.ring ? chunks : l.ring),
        .segments_cold = l.ring && chunks > l.ring ? chunks - l.ring : 0,
        .dmc_ratio = l.ratio,
        .ring_segments = l.ring,
    };
    plan_tiers(engine, &l, out);
    return 0;
}

uint64_t stream_entries(const struct stream *stream, uint64_t *counts)
{
    memcpy(counts, STATE_AT_CONST(stream->state, stream->layout.entries_total, uint64_t),
           stream->layout.heads * sizeof *counts);
    return stream->state->chunks;
}

const void *stream_state(const struct stream *stream, size_t *bytes)
{
    *bytes = stream->layout.bytes;
    return stream->device ? gpu_stream_state(stream) : stream->state;
}

static bool plausible_head(const struct layout *l, const struct state *state, uint32_t head)
{
    uint32_t most = STATE_AT_CONST(state, l->capacity, uint32_t)[head];
    uint32_t seen = STATE_AT_CONST(state, l->count[state->open], uint32_t)[head];
    if (seen > most || STATE_AT_CONST(state, l->count[!state->open], uint32_t)[head] > most)
        return false;
    if (l->ratio == 1)
        return true;
    uint32_t held = STATE_AT_CONST(state, l->held, uint32_t)[head];
    uint32_t grown = STATE_AT_CONST(state, l->grown, uint32_t)[head];
    /* A chunk's first token appends: from its second block on something is held. */
    return held >= seen && held <= most && held >= (state->chunk_tokens > 0) && grown <= (seen > 0);
}

/* A state from outside is believed only as far as it keeps every index inside its buffers. */
static bool plausible(const struct stream *stream, const struct state *state)
{
    const struct layout *l = &stream->layout;
    const struct state *own = stream->state;
    const uint32_t chunk = stream->engine->shape.chunk;
    if (state->magic != STATE_MAGIC || state->version != STATE_VERSION ||
        state->bytes != l->bytes || state->model_fingerprint != own->model_fingerprint ||
        state->adapter_fingerprint != own->adapter_fingerprint || state->ratio != l->ratio ||
        state->ring != l->ring)
        return false;
    if (state->chunk_tokens >= chunk || state->chunk_tokens % STREAM_BLOCK_TOKENS ||
        state->ring_count > l->ring || state->ring_count > state->chunks ||
        (l->ring && state->ring_first >= l->ring) || state->open > 1 ||
        state->pending_count >= STREAM_BLOCK_TOKENS ||
        state->tokens != state->chunks * chunk + state->chunk_tokens)
        return false;
    if (memcmp(STATE_AT_CONST(state, l->capacity, char), STATE_AT_CONST(own, l->capacity, char),
               2 * (l->row - l->capacity)))
        return false;
    for (uint32_t h = 0; h < l->heads; h++)
        if (!plausible_head(l, state, h))
            return false;
    return pin_plausible(l, state) && known(stream->engine, state->pending, state->pending_count);
}

int stream_restore(struct stream *stream, const void *state, size_t bytes)
{
    if (bytes != stream->layout.bytes || !plausible(stream, state))
        return -EINVAL;
    if (stream->device)
        return gpu_stream_restore(stream, state);
    memcpy(stream->state, state, bytes);
    return 0;
}
