/*
 * The memory of a stream: cuts, forks, restore, rows and bytes, the slide, and that the hash
 * follows. All with a tiny random model made here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/stream_rig.h"

enum { TOKENS = 10 * TINY_CHUNK };

static struct engine *engine;
static int32_t tokens[TOKENS];

static struct engine *engine_with(uint32_t threads, uint32_t features, const char *adapter)
{
    return stream_rig_engine((struct engine_options){
        .adapter_path = adapter, .threads = threads, .feature_mask = features});
}

static int set_up(void **state)
{
    (void)state;
    if (stream_rig_write(&TINY_DEFAULTS))
        return -1;
    engine = engine_with(2, UINT32_MAX, stream_rig_adapter);
    stream_rig_tokens(engine, tokens, TOKENS);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    stream_rig_tear_down(&engine);
    return 0;
}

static void cuts_and_threads_do_not_matter(void **state)
{
    (void)state;
    enum { THREADS = 5 }; /* rows come out even for some, with tiles left over for others */
    const uint32_t mask[] = {0, FEATURE_AVX2, UINT32_MAX};
    for (int m = 0; m < 3; m++) {
        uint64_t hash[THREADS];
        for (uint32_t threads = 1; threads <= THREADS; threads++) {
            struct engine *e = engine_with(threads, mask[m], stream_rig_adapter);
            struct held_stream whole = stream_rig_open(e, 4, 2), cut = stream_rig_open(e, 4, 2);
            uint32_t count = 4 * TINY_CHUNK, step = 1;
            assert_int_equal(stream_feed(whole.stream, tokens, count), 0);
            for (uint32_t at = 0; at < count; at += step, step = step % 77 + 3) {
                if (step > count - at)
                    step = count - at;
                assert_int_equal(stream_feed(cut.stream, tokens + at, step), 0);
            }
            hash[threads - 1] = stream_rig_stat(&whole).memory_hash;
            assert_int_equal(stream_rig_stat(&whole).hash_chunk, 4);
            assert_true(hash[threads - 1] == stream_rig_stat(&cut).memory_hash);
            stream_rig_close(&whole);
            stream_rig_close(&cut);
            engine_close(&e);
            assert_true(hash[threads - 1] == hash[0]);
        }
        assert_true(hash[0] != 0);
    }
}

/* Many streams in one call: each as if alone; one with a bad token fails alone. */
static void together_as_alone(void **state)
{
    (void)state;
    enum { STREAMS = 3 };
    struct held_stream alone[STREAMS], together[STREAMS], bad = stream_rig_open(engine, 2, 2);
    struct stream_work work[STREAMS + 1];
    int32_t none = -1;
    for (uint32_t i = 0; i < STREAMS; i++) {
        alone[i] = stream_rig_open(engine, 1u << i, 2);
        together[i] = stream_rig_open(engine, 1u << i, 2);
    }
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < STREAMS; i++) {
            uint32_t count = TINY_CHUNK - 31 * i;
            work[i] = (struct stream_work){together[i].stream, tokens + round * count, count, 1};
            assert_int_equal(stream_feed(alone[i].stream, tokens + round * count, count), 0);
        }
        work[STREAMS] = (struct stream_work){bad.stream, &none, 1, 0};
        assert_int_equal(streams_feed(work, STREAMS + 1), -EINVAL);
        assert_int_equal(work[STREAMS].result, -EINVAL);
        for (uint32_t i = 0; i < STREAMS; i++)
            assert_int_equal(work[i].result, 0);
    }
    for (uint32_t i = 0; i < STREAMS; i++) {
        size_t bytes, same;
        const void *a = stream_state(alone[i].stream, &bytes);
        assert_memory_equal(a, stream_state(together[i].stream, &same), bytes);
        stream_rig_close(&alone[i]);
        stream_rig_close(&together[i]);
    }
    stream_rig_close(&bad);
}

static void every_token_counts(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 2, 4), b = stream_rig_open(engine, 2, 4);
    int32_t kept = tokens[100];
    assert_int_equal(stream_feed(a.stream, tokens, TINY_CHUNK), 0);
    tokens[100] = kept == 5 ? 6 : 5;
    assert_int_equal(stream_feed(b.stream, tokens, TINY_CHUNK), 0);
    tokens[100] = kept;
    assert_true(stream_rig_stat(&a).memory_hash != stream_rig_stat(&b).memory_hash);
    stream_rig_close(&a);
    stream_rig_close(&b);
}

/* Of a stream that is not there, its length tells as much as the stream itself. */
static void shape_says(const struct stream_stat *stat)
{
    struct stream_options options = {stat->dmc_ratio, stat->ring_segments};
    struct stream_stat shape;
    assert_int_equal(stream_stat_shape(engine, &options, stat->tokens_computed, &shape), 0);
    assert_int_equal(shape.chunks, stat->chunks);
    assert_int_equal(shape.segments_ring, stat->segments_ring);
    assert_int_equal(shape.segments_cold, stat->segments_cold);
    assert_int_equal(shape.bytes_plan, stat->bytes_plan);
    assert_memory_equal(shape.tier_plan_bytes, stat->tier_plan_bytes, sizeof shape.tier_plan_bytes);
}

/* Ring, summary, rows and tiers as DESIGN 2.4 and 2.5 say, chunk by chunk; nothing ever passes the
 * plan. */
static void slides_as_designed(void **state)
{
    (void)state;
    struct held_stream h = stream_rig_open(engine, 1, 4);
    for (uint32_t chunk = 1; chunk <= 10; chunk++) {
        assert_int_equal(stream_feed(h.stream, tokens + (chunk - 1) * TINY_CHUNK, TINY_CHUNK), 0);
        struct stream_stat s = stream_rig_stat(&h);
        uint32_t ring = chunk < 4 ? chunk : 4, cold = chunk - ring;
        assert_int_equal(s.chunks, chunk);
        assert_int_equal(s.segments_ring, ring);
        assert_int_equal(s.segments_cold, cold);
        uint32_t fixed = ring * TINY_COMP + (cold ? TINY_COMP : 0) + (chunk < 2 ? 0 : TINY_SINKS);
        assert_true(s.rows_mean == fixed + TINY_CHUNK);
        size_t plan = 0, used = 0;
        for (int t = 0; t < TIER_COUNT; t++) {
            assert_true(s.tier_used_bytes[t] <= s.tier_plan_bytes[t]);
            plan += s.tier_plan_bytes[t];
            used += s.tier_used_bytes[t];
        }
        assert_int_equal(plan, s.bytes_plan);
        assert_int_equal(plan, h.bytes);
        assert_true(used <= plan);
        shape_says(&s);
    }
    stream_rig_close(&h);
}

static void quotas_hold(void **state)
{
    (void)state;
    for (uint32_t ratio = 2; ratio <= 8; ratio *= 2) {
        struct held_stream h = stream_rig_open(engine, ratio, 4);
        assert_int_equal(stream_feed(h.stream, tokens, TOKENS), 0);
        struct stream_stat s = stream_rig_stat(&h);
        shape_says(&s);
        uint64_t counts[TINY_LAYERS * TINY_KV_HEADS];
        assert_int_equal(stream_entries(h.stream, counts), TOKENS / TINY_CHUNK);
        for (uint32_t i = 0; i < TINY_LAYERS * TINY_KV_HEADS; i++) {
            const uint32_t *capacity =
                STATE_AT_CONST(h.stream->state, h.stream->layout.capacity, uint32_t);
            assert_true(capacity[i] <= 2 * TINY_CHUNK / ratio);
            assert_true(counts[i] <= (uint64_t)capacity[i] * (TOKENS / TINY_CHUNK));
            assert_true(counts[i] >= TOKENS / TINY_CHUNK);
        }
        stream_rig_close(&h);
    }
}

static void state_restores_bit_for_bit(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 4, 2), b = stream_rig_open(engine, 4, 2),
                       other = stream_rig_open(engine, 2, 2);
    size_t bytes;
    assert_int_equal(stream_feed(a.stream, tokens, 1100), 0);
    const void *saved = stream_state(a.stream, &bytes);
    assert_int_equal(stream_restore(b.stream, saved, bytes), 0);
    assert_int_equal(stream_restore(other.stream, saved, bytes), -EINVAL);
    assert_int_equal(stream_feed(a.stream, tokens + 1100, 900), 0);
    assert_int_equal(stream_feed(b.stream, tokens + 1100, 900), 0);
    assert_true(stream_rig_stat(&a).memory_hash == stream_rig_stat(&b).memory_hash);
    assert_memory_equal(a.stream->state, b.stream->state, bytes);
    const struct layout *l = &a.stream->layout;
    const struct state *whole = a.stream->state;
    assert_int_equal(whole->chunk_tokens, 192); /* in mid-chunk: something waits */
    const size_t places[] = {l->count[0] + 12, l->held + 12, l->grown + 12,
                             offsetof(struct state, version), offsetof(struct state, ring_count)};
    uint32_t seen = STATE_AT_CONST(whole, l->count[whole->open], uint32_t)[3];
    const uint32_t wrong[] = {100000, seen - 1, 2, STATE_VERSION - 1, 3};
    struct state *broken = malloc(bytes);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(broken, whole, bytes);
        assert_int_equal(stream_restore(b.stream, broken, bytes), 0);
        *STATE_AT(broken, places[i], uint32_t) = wrong[i];
        assert_int_equal(stream_restore(b.stream, broken, bytes), -EINVAL);
    }
    free(broken);
    stream_rig_close(&a);
    stream_rig_close(&b);
    stream_rig_close(&other);
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

static void forks_do_not_disturb(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 4, 2), b = stream_rig_open(engine, 4, 2);
    void *memory[2];
    assert_int_equal(stream_feed(a.stream, tokens, 1110), 0);
    assert_int_equal(stream_feed(b.stream, tokens, 1110), 0);
    struct fork *one = fork_of(&a, &memory[0]), *two = fork_of(&a, &memory[1]);
    assert_int_equal(fork_position(one), 1110);
    assert_null(fork_logits(one));
    assert_int_equal(fork_feed(one, tokens + 5, 70), 0);
    assert_int_equal(stream_feed(a.stream, tokens + 1110, 800), 0);
    for (uint32_t i = 0; i < 70;
         i++) /* row by row gives what blocks gave, though the stream has gone on */
        assert_int_equal(fork_feed(two, tokens + 5 + i, 1), 0);
    for (uint32_t i = 0; i < engine->shape.vocab; i++)
        assert_true(fabsf(fork_logits(one)[i] - fork_logits(two)[i]) < 0.05f);
    assert_int_equal(fork_room(one), FORK_TOKENS_MAX - 70);
    assert_int_equal(stream_feed(b.stream, tokens + 1110, 800), 0);
    assert_true(stream_rig_stat(&a).memory_hash == stream_rig_stat(&b).memory_hash);
    assert_int_equal(fork_feed(one, (int32_t[]){-1}, 1), -EINVAL);
    fork_close(&one);
    fork_close(&two);
    free(memory[0]);
    free(memory[1]);
    stream_rig_close(&a);
    stream_rig_close(&b);
}

static void a_fork_has_an_end(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 8, 2);
    void *memory;
    assert_int_equal(stream_feed(a.stream, tokens, 40), 0);
    struct fork *fork = fork_of(&a, &memory);
    assert_int_equal(fork_feed(fork, tokens, FORK_TOKENS_MAX), 0);
    assert_int_equal(fork_room(fork), 0);
    assert_int_equal(fork_feed(fork, tokens, 1), -ENOSPC);
    fork_close(&fork);
    free(memory);
    stream_rig_close(&a);
}

/* A question's logits depend on far text only through the memory: changing one ring segment's chunk
 * changes them. */
static void the_ring_is_attended(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 1, 4), b = stream_rig_open(engine, 1, 4);
    float x[STREAM_BLOCK_TOKENS], y[STREAM_BLOCK_TOKENS];
    int32_t targets[STREAM_BLOCK_TOKENS];
    assert_int_equal(stream_feed(a.stream, tokens, 6 * TINY_CHUNK), 0);
    assert_int_equal(stream_feed(b.stream, tokens, 6 * TINY_CHUNK), 0);
    stream_hide_memory(b.stream, true);
    for (int i = 0; i < STREAM_BLOCK_TOKENS; i++)
        targets[i] = tokens[i + 1];
    assert_int_equal(stream_score(a.stream, tokens, targets, STREAM_BLOCK_TOKENS, x), 0);
    assert_int_equal(stream_score(b.stream, tokens, targets, STREAM_BLOCK_TOKENS, y), 0);
    double difference = 0;
    for (int i = 0; i < STREAM_BLOCK_TOKENS; i++)
        difference += fabs((double)x[i] - (double)y[i]);
    assert_true(difference > 1e-3);
    stream_rig_close(&a);
    stream_rig_close(&b);
}

static void segment_leaves(void *user, const struct segment_view *segment)
{
    uint64_t *count = user;
    assert_int_equal(segment->number, *count);
    assert_int_equal(segment->token_from, *count * TINY_CHUNK);
    assert_int_equal(segment->rows_bytes,
                     TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM * sizeof(f16));
    ++*count;
}

static void segments_leave_in_order(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 4, 3);
    uint64_t count = 0;
    stream_on_segment_leave(a.stream, segment_leaves, &count);
    assert_int_equal(stream_feed(a.stream, tokens, TOKENS), 0);
    assert_int_equal(count, TOKENS / TINY_CHUNK - 3);
    stream_rig_close(&a);
}

/* Full attention in history, window as large as the text, is what a stream computes within its
 * first chunk. */
static void history_agrees_with_a_stream(void **state)
{
    (void)state;
    struct held_stream a = stream_rig_open(engine, 1, 4);
    struct history *h;
    int32_t targets[TINY_CHUNK];
    float x[TINY_CHUNK], y[TINY_CHUNK], z[TINY_CHUNK];
    for (int i = 0; i < TINY_CHUNK; i++)
        targets[i] = tokens[i + 1];
    assert_int_equal(history_open(&h, engine, 600, false), 0);
    assert_int_equal(stream_score(a.stream, tokens, targets, TINY_CHUNK, x), 0);
    assert_int_equal(history_score(h, tokens, targets, TINY_CHUNK, NULL, y), 0);
    for (int i = 0; i < TINY_CHUNK; i++)
        assert_true(fabsf(x[i] - y[i]) < 1e-2f);
    /* A long history slides, and its rows stay finite and different from those of a shorter one. */
    for (int i = 1; i < 8; i++)
        assert_int_equal(history_score(h, tokens + i * TINY_CHUNK, targets, TINY_CHUNK, NULL, z),
                         0);
    for (int i = 0; i < TINY_CHUNK; i++)
        assert_true(isfinite(z[i]));
    history_close(&h);
    stream_rig_close(&a);
}

static void options_are_checked(void **state)
{
    (void)state;
    char error[256];
    assert_int_equal(
        stream_bytes(engine, &(struct stream_options){.dmc_ratio = 3}, error, sizeof error), 0);
    assert_non_null(strstr(error, "ratio"));
    assert_int_equal(
        stream_bytes(engine, &(struct stream_options){.ring_segments = 200}, error, sizeof error),
        0);
    assert_non_null(strstr(error, "ring"));
    struct held_stream a = stream_rig_open(engine, 0, 0);
    assert_int_equal(stream_rig_stat(&a).dmc_ratio, STREAM_RATIO_DEFAULT);
    assert_int_equal(stream_feed(a.stream, (int32_t[]){1, 1 << 30}, 2), -EINVAL);
    assert_int_equal(stream_rig_stat(&a).tokens_pending, 0);
    stream_rig_close(&a);
}

static void without_an_adapter_it_slides(void **state)
{
    (void)state;
    struct engine *e = engine_with(1, UINT32_MAX, NULL);
    struct held_stream a = stream_rig_open(e, 0, 0);
    assert_int_equal(stream_feed(a.stream, tokens, TOKENS), 0);
    struct stream_stat s = stream_rig_stat(&a);
    assert_int_equal(s.dmc_ratio, 1);
    assert_int_equal(s.segments_ring, 0);
    assert_true(s.rows_mean <= 2 * 1024 + TINY_SINKS);
    stream_rig_close(&a);
    engine_close(&e);
}

/* The tiny model as one that was trained on so many tokens. */
static void set_context(const char *path, uint32_t context)
{
    static const char key[] = "llama.context_length";
    static char bytes[1 << 22];
    FILE *file = fopen(stream_rig_model, "r");
    size_t count = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    char *at = memmem(bytes, count, key, sizeof key - 1);
    assert_true(at && count < sizeof bytes);
    memcpy(at + sizeof key - 1 + sizeof(uint32_t), &context, sizeof context);
    file = fopen(path, "w");
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    fclose(file);
}

/* Its window is then as long as a question beside it leaves room for; it had not opened. */
static void a_short_context_slides_too(void **state)
{
    static const uint32_t context[] = {4096, 3000, 2048};
    (void)state;
    char path[96], error[256];
    snprintf(path, sizeof path, "%s.short", stream_rig_model);
    for (size_t i = 0; i < sizeof context / sizeof *context; i++) {
        set_context(path, context[i]);
        struct engine *e =
            stream_rig_engine((struct engine_options){.model_path = path, .threads = 1});
        struct held_stream a = stream_rig_open(e, 0, 0);
        void *memory;
        assert_int_equal(stream_feed(a.stream, tokens, 2 * 1024 + 70), 0);
        struct fork *fork = fork_of(&a, &memory);
        struct stream_stat s = stream_rig_stat(&a);
        assert_true(s.rows_mean > 8 && s.rows_mean + FORK_TOKENS_MAX <= context[i]);
        assert_int_equal(fork_feed(fork, tokens, FORK_TOKENS_MAX), 0);
        fork_close(&fork);
        free(memory);
        stream_rig_close(&a);
        engine_close(&e);
    }
    set_context(path, 1024);
    struct engine *e = stream_rig_engine((struct engine_options){.model_path = path});
    assert_int_equal(stream_bytes(e, &(struct stream_options){0}, error, sizeof error), 0);
    assert_non_null(strstr(error, "trained on 1024 tokens, too few"));
    engine_close(&e);
    unlink(path);
}

static void an_adapter_of_another_model_is_refused(void **state)
{
    (void)state;
    struct tiny_options options = TINY_DEFAULTS;
    char other[96], error[256];
    struct engine *e;
    snprintf(other, sizeof other, "%s.other", stream_rig_model);
    options.seed = 2;
    assert_int_equal(tiny_model_write(other, &options), 0);
    struct engine_options want = {
        .model_path = other, .adapter_path = stream_rig_adapter, .feature_mask = UINT32_MAX};
    assert_int_equal(engine_open(&e, &want, error, sizeof error), -ESTALE);
    assert_non_null(strstr(error, "another model"));
    want.model_path = "/nonexistent.gguf";
    assert_int_equal(engine_open(&e, &want, error, sizeof error), -ENOENT);
    assert_non_null(strstr(error, "nonexistent"));
    unlink(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_and_threads_do_not_matter),
        cmocka_unit_test(together_as_alone),
        cmocka_unit_test(every_token_counts),
        cmocka_unit_test(slides_as_designed),
        cmocka_unit_test(quotas_hold),
        cmocka_unit_test(state_restores_bit_for_bit),
        cmocka_unit_test(forks_do_not_disturb),
        cmocka_unit_test(a_fork_has_an_end),
        cmocka_unit_test(the_ring_is_attended),
        cmocka_unit_test(segments_leave_in_order),
        cmocka_unit_test(history_agrees_with_a_stream),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(without_an_adapter_it_slides),
        cmocka_unit_test(a_short_context_slides_too),
        cmocka_unit_test(an_adapter_of_another_model_is_refused),
    };
    return cmocka_run_group_tests_name("stream", tests, set_up, tear_down);
}
