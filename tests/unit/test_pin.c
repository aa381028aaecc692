/* Pins: the same rows whenever they are computed, seen by all that follows, gone when let go,
 * inside the trained context, and nothing where there are none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/stream_rig.h"

enum { TOKENS = 10 * TINY_CHUNK, PINS = 128 };

static struct engine *engine, *without;
static int32_t tokens[TOKENS];

static struct engine *engine_of(uint32_t pins)
{
    return stream_rig_engine((struct engine_options){.adapter_path = stream_rig_adapter,
                                                     .threads = 1,
                                                     .feature_mask = UINT32_MAX,
                                                     .pin_tokens_max = pins});
}

static int set_up(void **state)
{
    (void)state;
    if (stream_rig_write(&TINY_DEFAULTS))
        return -1;
    engine = engine_of(PINS);
    without = engine_of(0);
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = 3 + (i * i + 13 * i + i / 7) % 250;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    engine_close(&without);
    stream_rig_tear_down(&engine);
    return 0;
}

static struct held_stream stream_at(struct engine *e, uint32_t ratio, uint32_t count)
{
    struct held_stream h = stream_rig_open(e, ratio, 0);

    assert_int_equal(stream_feed(h.stream, tokens, count), 0);
    return h;
}

static void on_to(struct held_stream *h, uint32_t from, uint32_t to)
{
    assert_int_equal(stream_feed(h->stream, tokens + from, to - from), 0);
}

static uint64_t hash_of(const struct held_stream *h)
{
    return stream_rig_stat(h).memory_hash;
}

/* [from, to) of tokens behind the stream's first ones. text: [TINY_SINKS + PINS] */
static struct stream_pin pin_of(uint32_t from, uint32_t to, int32_t *text)
{
    uint32_t before = from < TINY_SINKS ? from : TINY_SINKS;

    memcpy(text, tokens, before * sizeof *text);
    memcpy(text + before, tokens + from, (to - from) * sizeof *text);
    return (struct stream_pin){from, to, text, before};
}

static const f16 *raw_of(const struct held_stream *h)
{
    return STATE_AT_CONST(h->stream->state, h->stream->layout.pin_raw, f16);
}

static size_t rows_bytes(const struct held_stream *h)
{
    const struct layout *l = &h->stream->layout;

    return (size_t)l->heads * l->pin_rows * l->head_dim * sizeof(f16);
}

static void none_pinned_is_none_there(void **state)
{
    (void)state;
    for (uint32_t ratio = 1; ratio <= 4; ratio *= 4) {
        struct held_stream a = stream_at(engine, ratio, TOKENS),
                           b = stream_at(without, ratio, TOKENS);

        assert_int_equal(hash_of(&a), hash_of(&b));
        assert_true(a.bytes > b.bytes);
        assert_int_equal(stream_pins(b.stream, NULL, 0), 0);
        stream_rig_close(&a);
        stream_rig_close(&b);
    }
}

static void rows_are_the_same_at_any_time(void **state)
{
    int32_t one[TINY_SINKS + PINS], two[TINY_SINKS + PINS];
    struct stream_pin pins[2] = {pin_of(0, 40, one), pin_of(300, 345, two)};
    struct held_stream early = stream_at(engine, 2, 3 * TINY_CHUNK);
    struct held_stream late = stream_at(engine, 2, 7 * TINY_CHUNK);
    struct held_stream plain = stream_at(engine, 2, 9 * TINY_CHUNK);
    uint64_t with_both;

    (void)state;
    assert_int_equal(stream_pins(early.stream, pins, 1), 0);
    assert_int_equal(pin_rows(&early.stream->layout, early.stream->state), 40);
    on_to(&early, 3 * TINY_CHUNK, 7 * TINY_CHUNK);
    assert_int_equal(stream_pins(early.stream, pins, 2), 0);
    assert_int_equal(stream_pins(late.stream, pins, 2), 0);
    assert_int_equal(pin_rows(&late.stream->layout, late.stream->state), 85);
    assert_memory_equal(raw_of(&early), raw_of(&late), rows_bytes(&late));
    on_to(&early, 7 * TINY_CHUNK, 9 * TINY_CHUNK);
    on_to(&late, 7 * TINY_CHUNK, 9 * TINY_CHUNK);
    /* They were seen, and from when on matters. */
    with_both = hash_of(&late);
    assert_int_not_equal(hash_of(&early), with_both);
    assert_int_not_equal(hash_of(&plain), with_both);
    /* The first goes: the second moves up and is what it was. */
    assert_int_equal(stream_pins(late.stream, pins + 1, 1), 0);
    assert_int_equal(stream_pins(plain.stream, pins + 1, 1), 0);
    for (uint32_t h = 0; h < late.stream->layout.heads; h++) {
        size_t at = (size_t)h * PINS * TINY_HEAD_DIM;

        assert_memory_equal(raw_of(&late) + at, raw_of(&plain) + at,
                            45 * TINY_HEAD_DIM * sizeof(f16));
    }
    stream_rig_close(&early);
    stream_rig_close(&late);
    stream_rig_close(&plain);
}

static void a_checkpoint_holds_them(void **state)
{
    int32_t one[TINY_SINKS + PINS];
    struct stream_pin pin = pin_of(100, 150, one);
    struct held_stream a = stream_at(engine, 2, 4 * TINY_CHUNK), b = stream_at(engine, 2, 0);
    const void *saved;
    struct state *bad;
    size_t bytes;

    (void)state;
    assert_int_equal(stream_pins(a.stream, &pin, 1), 0);
    on_to(&a, 4 * TINY_CHUNK, 5 * TINY_CHUNK + 70);
    saved = stream_state(a.stream, &bytes);
    assert_int_equal(stream_restore(b.stream, saved, bytes), 0);
    on_to(&a, 5 * TINY_CHUNK + 70, TOKENS);
    on_to(&b, 5 * TINY_CHUNK + 70, TOKENS);
    assert_memory_equal(stream_state(a.stream, &bytes), stream_state(b.stream, &bytes), bytes);
    bad = malloc(bytes);
    memcpy(bad, saved, bytes);
    STATE_AT(bad, a.stream->layout.pins, struct pin_state)->pin[0].to += 1000;
    assert_int_equal(stream_restore(b.stream, bad, bytes), -EINVAL);
    free(bad);
    stream_rig_close(&a);
    stream_rig_close(&b);
}

static void limits_are_kept(void **state)
{
    int32_t one[TINY_SINKS + PINS], two[TINY_SINKS + PINS];
    struct stream_pin pins[2] = {pin_of(0, PINS, one), pin_of(300, 301, two)};
    struct held_stream a = stream_at(engine, 2, 4 * TINY_CHUNK);
    struct stream_options wide = {.dmc_ratio = 2, .ring_segments = 15};
    struct engine *large = engine_of(2200);
    char error[400] = "";

    (void)state;
    assert_int_equal(stream_pins(a.stream, pins, 2), -ENOSPC);
    assert_int_equal(pin_rows(&a.stream->layout, a.stream->state), 0);
    pins[1].tokens = (int32_t[]){-1, 0, 0, 0, 0, 0, 0, 0, 0};
    assert_int_equal(stream_pins(a.stream, pins + 1, 1), -EINVAL);
    assert_int_equal(stream_pins(a.stream, pins, 1), 0);
    /* 16 chunks, a question, 24 rows and 2,200 are past 8,192. */
    assert_int_equal(stream_bytes(large, &wide, error, sizeof error), 0);
    assert_non_null(strstr(error, "pin"));
    assert_true(stream_bytes(engine, &wide, error, sizeof error) > 0);
    engine_close(&large);
    stream_rig_close(&a);
}

static void questions_see_them_first(void **state)
{
    struct stream_options wide = {.dmc_ratio = 2, .ring_segments = 15};
    size_t stream_size = stream_bytes(engine, &wide, NULL, 0),
           fork_size = fork_bytes(engine, &wide);
    void *memory = aligned_alloc(64, (stream_size + 63) & ~(size_t)63);
    void *fork_memory = aligned_alloc(64, (fork_size + 63) & ~(size_t)63);
    int32_t one[TINY_SINKS + PINS];
    struct stream_pin pin = pin_of(0, PINS, one);
    struct stream *stream;
    struct fork *fork;
    float *before = malloc(engine->shape.vocab * sizeof *before);
    uint64_t hash;
    struct stream_stat stat;

    (void)state;
    assert_int_equal(stream_open(&stream, engine, &wide, memory, stream_size), 0);
    assert_int_equal(stream_feed(stream, tokens, TOKENS - 50), 0);
    stream_stat(stream, &stat);
    hash = stat.memory_hash;
    assert_int_equal(fork_open(&fork, stream, fork_memory, fork_size), 0);
    assert_int_equal(fork_recall_max(fork), STREAM_RECALL_MAX);
    assert_int_equal(fork_feed(fork, tokens, 20), 0);
    memcpy(before, fork_logits(fork), engine->shape.vocab * sizeof *before);
    assert_int_equal(fork_pins(fork, &pin, 1), -EBUSY);
    fork_close(&fork);
    assert_int_equal(fork_open(&fork, stream, fork_memory, fork_size), 0);
    assert_int_equal(fork_pins(fork, &pin, 1), 0);
    /* 8,192 less 16 chunks, 1,920, 24 and 128: seven chunks. */
    assert_int_equal(fork_recall_max(fork), 7);
    assert_int_equal(fork_feed(fork, tokens, 20), 0);
    assert_true(memcmp(before, fork_logits(fork), engine->shape.vocab * sizeof *before) != 0);
    fork_close(&fork);
    stream_stat(stream, &stat);
    assert_int_equal(stat.memory_hash, hash);
    assert_int_equal(pin_rows(&stream->layout, stream->state), 0);
    free(before);
    free(memory);
    free(fork_memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_pinned_is_none_there),
        cmocka_unit_test(rows_are_the_same_at_any_time),
        cmocka_unit_test(a_checkpoint_holds_them),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(questions_see_them_first),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
