/*
 * The open chunk: blocks against single tokens, forks in mid-block, and merges that are seen a
 * block late. With a tiny random model made here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/stream_rig.h"

enum { TOKENS = 5 * TINY_CHUNK };

static struct engine *engine;
static int32_t tokens[TOKENS];

static int set_up(void **state)
{
    (void)state;
    if (stream_rig_write(&TINY_DEFAULTS))
        return -1;
    engine = stream_rig_engine((struct engine_options){
        .adapter_path = stream_rig_adapter, .threads = 2, .feature_mask = UINT32_MAX});
    stream_rig_tokens(engine, tokens, TOKENS);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    stream_rig_tear_down(&engine);
    return 0;
}

static struct fork *fork_of(const struct held_stream *h, void **memory)
{
    struct stream_options options = {.dmc_ratio = h->stream->layout.ratio,
                                     .ring_segments = h->stream->layout.ring};
    size_t bytes = fork_bytes(h->stream->engine, &options);
    struct fork *fork;
    *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    assert_int_equal(fork_open(&fork, h->stream, *memory, bytes), 0);
    return fork;
}

/* One token as its block computes it, by itself, behind those before it: DESIGN 2.1. */
static void feed_single(struct fork *fork, int32_t token)
{
    struct stream *stream = &fork->stream;
    struct forward_item item = {.kind = FORWARD_RAW,
                                .stream = stream,
                                .state = stream->state,
                                .tail = &fork->tail,
                                .tokens = &token,
                                .rows = 1,
                                .position = (int64_t)(stream->state->tokens + fork->tail.count),
                                .dmc_lora = stream->layout.ratio > 1};
    forward_run(stream->engine, &item, 1);
}

/* Row i of the newest block of a head, as the stream keeps it. */
static const f16 *row_of_block(const struct stream *stream, bool value, uint32_t head, uint32_t i)
{
    const struct layout *l = &stream->layout;
    const struct state *state = stream->state;
    bool closed = state->chunk_tokens == 0;
    uint32_t w = closed ? !state->open : state->open;
    uint32_t end = closed ? TINY_CHUNK : state->chunk_tokens;
    size_t at = (size_t)head * STREAM_BLOCK_TOKENS + i, from = value ? l->raw_v : l->raw_k;
    if (l->ratio == 1) {
        at = STATE_AT_CONST(state, l->row, uint32_t)[head] + end - STREAM_BLOCK_TOKENS + i;
        from = value ? l->window_v[w] : l->window_k[w];
    }
    return STATE_AT_CONST(state, from, f16) + at * l->head_dim;
}

static void assert_rows_of_block(const struct fork *fork, const struct stream *stream,
                                 uint32_t rows)
{
    const struct layout *l = &stream->layout;
    const struct tail *t = &fork->tail;
    size_t bytes = l->head_dim * sizeof(f16);
    for (uint32_t h = 0; h < l->heads; h++)
        for (uint32_t i = 0; i < rows; i++) {
            size_t at = ((size_t)h * t->capacity + i) * l->head_dim;
            assert_memory_equal(t->k + at, row_of_block(stream, false, h, i), bytes);
            assert_memory_equal(t->v + at, row_of_block(stream, true, h, i), bytes);
        }
}

/* Every row of a block is, bit for bit, the row of its token computed alone. */
static void blocks_equal_single_tokens(void **state)
{
    (void)state;
    for (uint32_t ratio = 1; ratio <= 8; ratio *= 2) {
        struct held_stream h = stream_rig_open(engine, ratio, 2);
        for (uint32_t at = 0; at < 3 * TINY_CHUNK + 64; at += STREAM_BLOCK_TOKENS) {
            void *memory;
            struct fork *fork = fork_of(&h, &memory);
            for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS; i++)
                feed_single(fork, tokens[at + i]);
            assert_int_equal(stream_feed(h.stream, tokens + at, STREAM_BLOCK_TOKENS), 0);
            assert_rows_of_block(fork, h.stream, STREAM_BLOCK_TOKENS);
            fork_close(&fork);
            free(memory);
        }
        stream_rig_close(&h);
    }
}

/* Two blocks in one pass, with the COMP tokens behind them, leave the bits that one block after the
 * other does. */
static void passes_equal_blocks(void **state)
{
    (void)state;
    for (uint32_t ratio = 1; ratio <= 8; ratio *= 2) {
        struct held_stream pass = stream_rig_open(engine, ratio, 2);
        struct held_stream block = stream_rig_open(engine, ratio, 2);
        for (uint32_t at = 0; at < 4 * TINY_CHUNK; at += STREAM_PASS_TOKENS) {
            size_t bytes;
            assert_int_equal(stream_pass_room(pass.stream), STREAM_PASS_TOKENS);
            assert_int_equal(stream_feed(pass.stream, tokens + at, STREAM_PASS_TOKENS), 0);
            assert_int_equal(stream_pass_room(pass.stream), STREAM_PASS_TOKENS);
            for (uint32_t i = 0; i < STREAM_PASS_TOKENS; i += STREAM_BLOCK_TOKENS)
                assert_int_equal(stream_feed(block.stream, tokens + at + i, STREAM_BLOCK_TOKENS),
                                 0);
            const void *one = stream_state(pass.stream, &bytes);
            assert_memory_equal(one, stream_state(block.stream, &bytes), bytes);
        }
        stream_rig_close(&pass);
        stream_rig_close(&block);
    }
}

static void assert_fork_at(struct held_stream *h, uint32_t at)
{
    struct held_stream whole =
        stream_rig_open(engine, h->stream->layout.ratio, h->stream->layout.ring);
    size_t bytes;
    void *memory;
    struct fork *fork = fork_of(h, &memory);
    uint32_t pending = at % STREAM_BLOCK_TOKENS;
    assert_int_equal(fork_position(fork), at);
    assert_int_equal(fork_room(fork), FORK_TOKENS_MAX);
    assert_int_equal(fork->tail.count, pending);
    const void *copy = stream_state(h->stream, &bytes);
    assert_int_equal(stream_restore(whole.stream, copy, bytes), 0);
    if (pending) {
        uint32_t room = stream_block_room(whole.stream);
        assert_int_equal(stream_feed(whole.stream, tokens + at, room), 0);
        assert_rows_of_block(fork, whole.stream, pending);
    }
    fork_close(&fork);
    free(memory);
    stream_rig_close(&whole);
}

/* What a fork computes of a block that is not full yet is what the block gives once it is. */
static void a_fork_sees_what_its_block_will_see(void **state)
{
    (void)state;
    static const uint32_t places[] = {0, 1, 31, 32, 33, 63, 64, 224, 255, 256, 257, 287};
    for (uint32_t ratio = 1; ratio <= 8; ratio *= 2)
        for (uint32_t chunk = 0; chunk < 4; chunk++) {
            struct held_stream h = stream_rig_open(engine, ratio, 2);
            uint32_t fed = chunk * TINY_CHUNK;
            assert_int_equal(stream_feed(h.stream, tokens, fed), 0);
            for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
                uint32_t at = chunk * TINY_CHUNK + places[p];
                assert_int_equal(stream_feed(h.stream, tokens + fed, at - fed), 0);
                assert_fork_at(&h, at);
                fed = at;
            }
            stream_rig_close(&h);
        }
}

enum { HEADS = TINY_LAYERS * TINY_KV_HEADS, BLOCKS = TINY_CHUNK / STREAM_BLOCK_TOKENS };

/* Of a stream that has computed `block` + 1 blocks with these decisions. */
static void assert_lag(const struct held_stream *h, const uint8_t *merged, uint32_t block)
{
    const struct layout *l = &h->stream->layout;
    const struct state *s = h->stream->state;
    bool closed = (block + 1) % BLOCKS == 0;
    const uint32_t *seen = STATE_AT_CONST(s, l->count[closed ? !s->open : s->open], uint32_t);
    uint32_t from = block / BLOCKS * TINY_CHUNK, newest = block * STREAM_BLOCK_TOKENS;
    for (uint32_t head = 0; head < HEADS; head++) {
        uint32_t before = 0, appends = 0;
        for (uint32_t i = from; i < newest + STREAM_BLOCK_TOKENS; i++)
            *(i < newest ? &before : &appends) += !merged[i * HEADS + head];
        assert_int_equal(seen[head], closed ? before + appends : before);
        assert_int_equal(STATE_AT_CONST(s, l->held, uint32_t)[head], closed ? 0 : before + appends);
        assert_int_equal(STATE_AT_CONST(s, l->grown, uint32_t)[head],
                         closed ? 0 : merged[newest * HEADS + head]);
    }
}

/* The entries in view lag a block behind the decisions, and at a chunk's end they have all come. */
static void merges_are_seen_a_block_late(void **state)
{
    (void)state;
    static uint8_t merged[2 * TINY_CHUNK * HEADS];
    static float logit[2 * TINY_CHUNK * HEADS];
    struct forward_trace trace = {.merged = merged, .logit = logit, .rows_max = 2 * TINY_CHUNK};
    struct held_stream h = stream_rig_open(engine, 4, 2);
    engine->trace = &trace;
    for (uint32_t block = 0; block < 2 * BLOCKS; block++) {
        const int32_t *from = tokens + block * STREAM_BLOCK_TOKENS;
        double before = stream_rig_stat(&h).rows_mean, rows[STREAM_BLOCK_TOKENS];
        assert_int_equal(stream_feed(h.stream, from, STREAM_BLOCK_TOKENS), 0);
        assert_int_equal(trace.rows, (block + 1) * STREAM_BLOCK_TOKENS);
        assert_lag(&h, merged, block);
        stream_rows_block(h.stream, rows, STREAM_BLOCK_TOKENS);
        for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS; i++)
            assert_true(rows[i] == before + i + 1);
        if (block == 0) /* nothing is merged in view */
            assert_true(stream_rig_stat(&h).rows_mean == STREAM_BLOCK_TOKENS);
    }
    engine->trace = NULL;
    stream_rig_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_equal_single_tokens),
        cmocka_unit_test(passes_equal_blocks),
        cmocka_unit_test(a_fork_sees_what_its_block_will_see),
        cmocka_unit_test(merges_are_seen_a_block_late),
    };
    return cmocka_run_group_tests_name("window", tests, set_up, tear_down);
}
