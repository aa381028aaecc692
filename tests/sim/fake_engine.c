/*
 * The engine's face with nothing behind it: a stream's memory is a hash of the tokens it was fed.
 *
 * What siltd's core must get right (which tokens, in which order, none twice, none lost, state
 * there and back) shows in the hash; what a model would add is left out, so a schedule takes
 * milliseconds. A pre-token is a run of bytes up to a space, 24 at most; its tokens are groups of
 * three bytes, so that text cut at the wrong place gives other tokens.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/sched.h"
#include "tests/sim/cold.h"
#include "tests/unit/rig.h"

enum { VOCAB = 64, TOKEN_START = 0, TOKEN_END = 1, TOKEN_FIRST = 4, CHUNK = 256, RUN_MAX = 24 };
enum { OWED_MAX = 16 };

struct tokenizer {
    int nothing;
};
struct stream {
    uint64_t magic, computed, hash;
    uint32_t pending_count, ratio;
    int32_t pending[STREAM_BLOCK_TOKENS];
    uint64_t ring[SIM_RING]; /* hashes at the ends of the newest chunks */
    /* No state: who hears of its segments. */
    segment_leave_fn *leave;
    void *leave_user;
};
enum { STATE_BYTES = offsetof(struct stream, leave) };
struct fork {
    uint64_t hash, position;
    uint32_t fed;
    float logits[VOCAB];
};

static struct tokenizer the_tokenizer;
bool sim_batched;
/* What left rings in the last pass of a device. */
static struct owed {
    struct stream *stream;
    uint64_t number;
    f16 rows[SIM_VALUES];
} owed[OWED_MAX];
static uint32_t owed_count;
static bool feeds_ahead;

int engine_open(struct engine **out, const struct engine_options *options, char *error,
                size_t error_bytes)
{
    (void)options, (void)error, (void)error_bytes;
    *out = &sim_engine;
    return 0;
}

void engine_close(struct engine **engine)
{
    *engine = NULL;
}

void engine_info(const struct engine *engine, struct engine_info *out)
{
    (void)engine;
    *out = (struct engine_info){.model_name = "fake",
                                .model_fingerprint = 1,
                                .adapter_fingerprint = 2,
                                .layer_count = 1,
                                .kv_head_count = 1,
                                .vocab_count = VOCAB,
                                .chunk_tokens = CHUNK,
                                .ring_segments = 4,
                                .batch_tokens = sim_batched ? 4 * CHUNK : STREAM_BLOCK_TOKENS,
                                .kernels_name = "fake",
                                .threads = 1};
}

const struct tokenizer *engine_tokenizer(const struct engine *engine)
{
    (void)engine;
    return &the_tokenizer;
}

/* ---- text ---- */

size_t token_count_max(const struct token_text *text, size_t bytes)
{
    return text->held_bytes + bytes;
}

static size_t finish_run(struct token_text *text, int32_t *out)
{
    size_t count = 0;

    for (uint32_t i = 0; i < text->held_bytes; i += 3) {
        uint32_t n = text->held_bytes - i < 3 ? text->held_bytes - i : 3;

        out[count++] =
            TOKEN_FIRST + (int32_t)(XXH3_64bits(text->held + i, n) % (VOCAB - TOKEN_FIRST));
    }
    text->held_bytes = 0;
    return count;
}

size_t token_feed(const struct tokenizer *tokenizer, struct token_text *text, const uint8_t *bytes,
                  size_t bytes_count, int32_t *out)
{
    size_t count = 0;

    (void)tokenizer;
    for (size_t i = 0; i < bytes_count; i++) {
        text->held[text->held_bytes++] = bytes[i];
        if (bytes[i] == ' ' || text->held_bytes == RUN_MAX)
            count += finish_run(text, out + count);
    }
    return count;
}

size_t token_flush(const struct tokenizer *tokenizer, struct token_text *text, int32_t *out)
{
    (void)tokenizer;
    return finish_run(text, out);
}

const uint8_t *token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *bytes_count)
{
    static const uint8_t text[] = "abc ";

    (void)tokenizer, (void)id;
    *bytes_count = 4;
    return text;
}

bool token_is_special(const struct tokenizer *tokenizer, int32_t id)
{
    (void)tokenizer;
    return id < TOKEN_FIRST;
}

bool token_is_end(const struct tokenizer *tokenizer, int32_t id)
{
    (void)tokenizer;
    return id == TOKEN_END;
}

int token_turn(const struct tokenizer *tokenizer, const char *role, const uint8_t *bytes,
               size_t bytes_count, int32_t *out, size_t out_max)
{
    struct token_text text = {0};
    size_t count = 0;

    if (out_max < bytes_count + 4 + RUN_MAX)
        return -ENOSPC;
    out[count++] = TOKEN_START;
    out[count++] = TOKEN_FIRST + role[0] % 8;
    count += token_feed(tokenizer, &text, bytes, bytes_count, out + count);
    count += token_flush(tokenizer, &text, out + count);
    out[count++] = TOKEN_END;
    return (int)count;
}

int token_turn_open(const struct tokenizer *tokenizer, const char *role, int32_t *out,
                    size_t out_max)
{
    (void)tokenizer;
    if (out_max < 2)
        return -ENOSPC;
    out[0] = TOKEN_START;
    out[1] = TOKEN_FIRST + role[0] % 8;
    return 2;
}

/* ---- streams ---- */

size_t stream_bytes(const struct engine *engine, const struct stream_options *options, char *error,
                    size_t error_bytes)
{
    (void)engine, (void)options, (void)error, (void)error_bytes;
    return sizeof(struct stream);
}

size_t stream_device_bytes(const struct engine *engine, const struct stream_options *options)
{
    (void)engine, (void)options;
    return 0;
}

size_t fork_device_bytes(const struct engine *engine, const struct stream_options *options)
{
    return stream_device_bytes(engine, options);
}

size_t stream_state_bytes(const struct engine *engine, const struct stream_options *options)
{
    (void)engine, (void)options;
    return sizeof(struct stream);
}

size_t raw_device_bytes(const struct engine *engine, uint32_t tokens)
{
    (void)engine, (void)tokens;
    return 0;
}

int stream_open(struct stream **out, struct engine *engine, const struct stream_options *options,
                void *memory, size_t memory_bytes)
{
    (void)engine, (void)memory_bytes;
    *out = memory;
    memset(*out, 0, sizeof **out);
    (*out)->magic = 0x51175117;
    (*out)->ratio = options->dmc_ratio;
    return 0;
}

void stream_close(struct stream **stream)
{
    streams_give(&sim_engine);
    *stream = NULL;
}

void stream_on_segment_leave(struct stream *stream, segment_leave_fn *leave, void *user)
{
    streams_give(&sim_engine);
    stream->leave = leave;
    stream->leave_user = user;
}

static void give(const struct owed *from)
{
    struct segment_view view = {.number = from->number,
                                .token_from = from->number * CHUNK,
                                .token_to = (from->number + 1) * CHUNK,
                                .rows = from->rows,
                                .rows_bytes = sizeof from->rows};

    from->stream->leave(from->stream->leave_user, &view);
}

void streams_give(struct engine *engine)
{
    (void)engine;
    for (uint32_t i = 0; i < owed_count; i++)
        give(&owed[i]);
    owed_count = 0;
}

void sim_engine_crash(void)
{
    owed_count = 0;
}

/* A chunk is full: the oldest of the ring leaves it, its rows one number made of its text. */
static void end_chunk(struct stream *stream)
{
    uint64_t chunk = stream->computed / CHUNK - 1, *place = &stream->ring[chunk % SIM_RING];
    struct owed left = {.stream = stream, .number = chunk - SIM_RING};

    for (int i = 0; i < SIM_VALUES; i++)
        left.rows[i] = f16_from_f32((float)(1 + *place % 60) / 4);
    *place = stream->hash;
    if (chunk < SIM_RING || !stream->leave)
        return;
    if (owed_count == OWED_MAX)
        streams_give(&sim_engine);
    owed[owed_count++] = left;
    if (!feeds_ahead)
        streams_give(&sim_engine);
}

int stream_feed(struct stream *stream, const int32_t *tokens, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= VOCAB)
            return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        stream->pending[stream->pending_count++] = tokens[i];
        if (stream->pending_count == STREAM_BLOCK_TOKENS) {
            stream->hash = XXH3_64bits_withSeed(stream->pending, sizeof stream->pending,
                                                stream->hash ^ stream->computed);
            stream->computed += STREAM_BLOCK_TOKENS;
            stream->pending_count = 0;
            memset(stream->pending, 0, sizeof stream->pending);
            if (stream->computed % CHUNK == 0)
                end_chunk(stream);
        }
    }
    return 0;
}

int streams_feed_ahead(struct stream_work *work, uint32_t count)
{
    int first = 0;

    streams_give(&sim_engine);
    feeds_ahead = true;
    for (uint32_t i = 0; i < count; i++) {
        work[i].result = stream_feed(work[i].stream, work[i].tokens, work[i].count);
        first = first ? first : work[i].result;
    }
    feeds_ahead = false;
    return first;
}

int stream_feed_scored(struct stream *stream, const int32_t *tokens, uint32_t count, double *nll,
                       uint32_t *scored)
{
    *nll += count;
    *scored += count;
    return stream_feed(stream, tokens, count);
}

uint32_t stream_block_room(const struct stream *stream)
{
    return STREAM_BLOCK_TOKENS - stream->pending_count;
}

uint32_t stream_pass_room(const struct stream *stream)
{
    return STREAM_PASS_TOKENS - (uint32_t)(stream->computed % STREAM_PASS_TOKENS) -
           stream->pending_count;
}

void stream_stat(const struct stream *stream, struct stream_stat *out)
{
    *out = (struct stream_stat){.tokens_computed = stream->computed,
                                .tokens_pending = stream->pending_count,
                                .chunks = stream->computed / CHUNK,
                                .segments_cold = stream->computed / CHUNK > SIM_RING
                                                     ? stream->computed / CHUNK - SIM_RING
                                                     : 0,
                                .memory_hash = stream->hash};
}

uint64_t stream_entries(const struct stream *stream, uint64_t *counts)
{
    counts[0] = stream->computed;
    return stream->computed / CHUNK;
}

const void *stream_state(const struct stream *stream, size_t *bytes)
{
    *bytes = STATE_BYTES;
    return stream;
}

int stream_restore(struct stream *stream, const void *state, size_t bytes)
{
    const struct stream *from = state;

    if (bytes != STATE_BYTES || from->magic != stream->magic || from->ratio != stream->ratio)
        return -EINVAL;
    memcpy(stream, state, bytes);
    return 0;
}

/* ---- forks ---- */

/* Nor pins. */
int stream_pins(struct stream *stream, const struct stream_pin *pins, uint32_t count)
{
    (void)stream, (void)pins, (void)count;
    return -ENOTSUP;
}

int fork_pins(struct fork *fork, const struct stream_pin *pins, uint32_t count)
{
    (void)fork, (void)pins, (void)count;
    return -ENOTSUP;
}

uint32_t fork_recall_max(const struct fork *fork)
{
    (void)fork;
    return STREAM_RECALL_MAX;
}

/* No loss meter in the simulation. */
size_t raw_bytes(const struct engine *engine, uint32_t tokens)
{
    (void)engine, (void)tokens;
    return 0;
}

int raw_open(struct raw **out, struct engine *engine, uint32_t tokens, void *memory,
             size_t memory_bytes)
{
    (void)out, (void)engine, (void)tokens, (void)memory, (void)memory_bytes;
    return -ENOTSUP;
}

void raw_reset(struct raw *raw)
{
    (void)raw;
}

int raw_score(struct raw *raw, const int32_t *tokens, const int32_t *targets, uint32_t count,
              float *nll)
{
    (void)raw, (void)tokens, (void)targets, (void)count, (void)nll;
    return -ENOTSUP;
}

size_t fork_bytes(const struct engine *engine, const struct stream_options *options)
{
    (void)engine, (void)options;
    return sizeof(struct fork);
}

int fork_open(struct fork **out, const struct stream *stream, void *memory, size_t memory_bytes)
{
    (void)memory_bytes;
    *out = memory;
    memset(*out, 0, sizeof **out);
    (*out)->hash = XXH3_64bits(stream, STATE_BYTES);
    (*out)->position = stream->computed + stream->pending_count;
    return 0;
}

void fork_close(struct fork **fork)
{
    *fork = NULL;
}

int fork_feed(struct fork *fork, const int32_t *tokens, uint32_t count)
{
    if (fork->fed + count > FORK_TOKENS_MAX)
        return -ENOSPC;
    for (uint32_t i = 0; i < count; i++)
        fork->hash = XXH3_64bits_withSeed(&tokens[i], sizeof *tokens, fork->hash);
    fork->fed += count;
    for (uint32_t i = 0; i < VOCAB; i++)
        fork->logits[i] = (float)(XXH3_64bits_withSeed(&i, sizeof i, fork->hash) % 1000) / 100;
    return 0;
}

int forks_feed(struct fork_work *work, uint32_t count)
{
    int first = 0;

    for (uint32_t i = 0; i < count; i++) {
        work[i].result = fork_feed(work[i].fork, work[i].tokens, work[i].count);
        first = first ? first : work[i].result;
    }
    return first;
}

void engine_times(const struct engine *engine, struct engine_times *out)
{
    (void)engine;
    *out = (struct engine_times){0};
}

const char *engine_failure(const struct engine *engine)
{
    (void)engine;
    return NULL;
}

const float *fork_logits(struct fork *fork)
{
    return fork->logits;
}

int fork_recall(struct fork *fork, const struct cold_segment *segments, uint32_t count)
{
    (void)fork, (void)segments, (void)count;
    return 0;
}

void fork_rewind(struct fork *fork)
{
    fork->fed = 0;
}

uint64_t fork_position(const struct fork *fork)
{
    return fork->position;
}

uint32_t fork_room(const struct fork *fork)
{
    return FORK_TOKENS_MAX - fork->fed;
}

int fork_recall_table(struct fork *fork, const int32_t *tokens, uint32_t count, uint32_t from,
                      uint8_t *table)
{
    (void)fork, (void)tokens, (void)count, (void)from, (void)table;
    return -ENOTSUP;
}

size_t recall_table_bytes(const struct engine *engine)
{
    (void)engine;
    return 0;
}

uint32_t recall_score(const uint8_t *table, const uint16_t *tokens, uint32_t count)
{
    (void)table, (void)tokens, (void)count;
    return 0;
}

/* ---- the far past is cold.c's ---- */

static void segment_leaves(void *user, const struct segment_view *segment)
{
    const struct slot *slot = user;

    cold_leave(atomic_load(&slot->stream_id), segment);
}

void cold_watch(struct slot *slot)
{
    if (slot->spill)
        stream_on_segment_leave(slot->stream, segment_leaves, slot);
}
