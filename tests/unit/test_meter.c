/* The loss meter: its numbers are those of an independent count, it disturbs nothing, keeps to its
 * share and stands back under lag. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/rig.h"

enum { LAG_MAX = 16384, WINDOW = METER_WINDOW_TOKENS, CHUNK = 256, TEXT = 12000 };

static const struct rig_options options = {.slots = 2, .asks = 1, .lag_tokens_max = LAG_MAX};
static struct rig rig;
static struct meter meter;
static char folder[64];
static void *memory;

static int set_up(void **state)
{
    struct engine_info info;

    (void)state;
    rig_folder(folder, sizeof folder);
    if (rig_open(&rig, folder, &options))
        return -1;
    engine_info(rig.engine, &info);
    memory = aligned_alloc(64, (meter_bytes(rig.engine) + 63) / 64 * 64);
    memset(memory, 0, meter_bytes(rig.engine));
    meter_open(&meter, rig.engine, &info, memory);
    meter.slots = rig.slots;
    meter.slot_count = options.slots;
    meter.compute_us = &rig.sched.compute_us;
    assert_int_equal(meter.window, WINDOW);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rig_close(&rig);
    rig_folder_drop(folder);
    free(memory);
    return 0;
}

static void fill_text(char *text, size_t bytes, uint32_t seed)
{
    for (size_t i = 0; i < bytes; i++) {
        seed = seed * 1664525u + 1013904223u;
        text[i] = seed >> 29 == 0 ? ' ' : (char)('a' + (seed >> 16) % 26);
    }
}

/* One stream that has text and has not computed it. */
static void fed(uint32_t slot, const char *name, size_t bytes)
{
    char *text = malloc(bytes);

    fill_text(text, bytes, slot + 1);
    rig.slots[slot].record = slot;
    rig_stream(&rig, slot, name, 2);
    rig_settle(&rig);
    assert_int_equal(rig_text(&rig, slot, "p", 1, text, bytes), 0);
    while (rig_ingest(&rig))
        ;
    free(text);
}

/* As if all that there is to do had long been done. */
static void afford(void)
{
    atomic_store(&rig.sched.compute_us, UINT64_MAX / 4);
}

static struct loss loss_of(uint32_t slot)
{
    struct loss loss = {0};

    meter_read(&meter, rig.slots[slot].record, atomic_load(&rig.slots[slot].stream_id), &loss);
    return loss;
}

/* ---- parts ---- */

static void interval_is_students(void **state)
{
    /* Of 1, 2, 4, 7 by hand: mean 3.5, s 2.6458, t(3) 3.182. */
    static const double with[] = {2, 4, 6, 10}, without[] = {1, 2, 2, 3};
    struct loss loss = {0};
    double low, high;

    (void)state;
    for (int i = 0; i < 4; i++) {
        loss_interval(&loss, &low, &high);
        if (i < 2)
            assert_true(low == 0 && high == 0);
        loss_add(&loss, with[i], without[i]);
    }
    loss_interval(&loss, &low, &high);
    assert_true(fabs(loss.difference - 3.5) < 1e-12);
    assert_true(fabs(low - (3.5 - 3.182 * 2.645751 / 2)) < 1e-4);
    assert_true(fabs(high - (3.5 + 3.182 * 2.645751 / 2)) < 1e-4);
    assert_true(fabs(loss.with_memory - 22) < 1e-12);
}

/* As with known tables: 2.571 at 5 degrees, 2.086 at 20. */
static void quantiles_of_more(void **state)
{
    static const struct {
        int n;
        double t;
    } known[] = {{6, 2.571}, {11, 2.228}, {21, 2.086}, {101, 1.984}};

    (void)state;
    for (size_t k = 0; k < 4; k++) {
        struct loss loss = {0};
        double low, high, s;

        for (int i = 0; i < known[k].n; i++)
            loss_add(&loss, i % 2, 0);
        s = sqrt(loss.square / (known[k].n - 1) / known[k].n);
        loss_interval(&loss, &low, &high);
        assert_true(fabs((high - low) / 2 / s - known[k].t) < 0.004);
    }
}

static void scoring_changes_nothing(void **state)
{
    struct engine *e = rig.engine;
    struct stream_options two = {.dmc_ratio = 2};
    size_t bytes = stream_bytes(e, &two, NULL, 0);
    void *a_memory = aligned_alloc(64, (bytes + 63) / 64 * 64),
         *b_memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct stream *a, *b;
    int32_t tokens[1024], targets[1024];
    float nll[1024];
    double sum = 0, other = 0;
    uint32_t scored = 0;

    (void)state;
    assert_int_equal(stream_open(&a, e, &two, a_memory, bytes), 0);
    assert_int_equal(stream_open(&b, e, &two, b_memory, bytes), 0);
    for (int i = 0; i < 1024; i++)
        tokens[i] = 3 + (i * i + 7 * i) % 250;
    for (int i = 0; i < 1024; i++)
        targets[i] = i % 32 == 31 ? -1 : tokens[i + 1];
    for (uint32_t at = 0, piece = 1; at < 1024; at += piece, piece = piece % 45 + 1) {
        piece = piece < 1024 - at ? piece : 1024 - at;
        assert_int_equal(stream_feed_scored(a, tokens + at, piece, &sum, &scored), 0);
    }
    assert_int_equal(stream_score(b, tokens, targets, 1024, nll), 0);
    for (int i = 0; i < 1024; i++)
        other += nll[i];
    assert_int_equal(scored, 1024 / 32 * 31);
    assert_true(fabs(sum - other) < 1e-6 * other);
    (void)stream_state(a, &bytes);
    assert_memory_equal(stream_state(a, &bytes), stream_state(b, &bytes), bytes);
    free(a_memory);
    free(b_memory);
}

/* The first chunk at 1x is base weights over all that came before, too. */
static void raw_is_what_a_stream_begins_with(void **state)
{
    struct engine *e = rig.engine;
    void *raw_memory = aligned_alloc(64, (raw_bytes(e, 512) + 63) / 64 * 64);
    struct stream_options one = {.dmc_ratio = 1};
    size_t bytes = stream_bytes(e, &one, NULL, 0);
    void *stream_memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct stream *stream;
    struct raw *raw;
    int32_t tokens[512], targets[512];
    float nll[512], expected[512];

    (void)state;
    for (int i = 0; i < 512; i++)
        tokens[i] = 3 + (i * i + 11 * i) % 250;
    for (int i = 0; i < 512; i++)
        targets[i] = i < 511 ? tokens[i + 1] : -1;
    assert_int_equal(stream_open(&stream, e, &one, stream_memory, bytes), 0);
    assert_int_equal(stream_score(stream, tokens, targets, 512, expected), 0);
    assert_int_equal(raw_open(&raw, e, 512, raw_memory, raw_bytes(e, 512)), 0);
    for (int round = 0; round < 2; round++) {
        for (int at = 0; at < 512; at += 32)
            assert_int_equal(raw_score(raw, tokens + at, targets + at, 32, nll + at), 0);
        for (int i = 0; i < CHUNK; i++)
            assert_true(fabsf(nll[i] - expected[i]) < 1e-4f);
        assert_int_equal(raw_score(raw, tokens, NULL, 1, NULL), -ENOSPC);
        raw_reset(raw);
    }
    tokens[0] = -1;
    assert_int_equal(raw_score(raw, tokens, NULL, 1, NULL), -EINVAL);
    free(stream_memory);
    free(raw_memory);
}

/* ---- the whole ---- */

/* What a sample must say, counted anew from the tokens of the stream. */
static void check_sample(uint32_t slot, const struct loss *loss)
{
    struct stream_options two = {.dmc_ratio = 2};
    size_t bytes = stream_bytes(rig.engine, &two, NULL, 0);
    void *room = aligned_alloc(64, (bytes + 63) / 64 * 64);
    const int32_t *all = rig.slots[slot].ring.tokens;
    uint64_t head = atomic_load(&rig.slots[slot].ring.head), at = 0;
    struct stream *stream;
    double with_memory = 0, ignored = 0, with_window = 0;
    uint32_t scored = 0, none = 0;
    float nll[32];

    assert_true(head < rig.slots[slot].ring.capacity);
    while (at + WINDOW <= head && memcmp(all + at, meter.tokens, WINDOW * sizeof *all) != 0)
        at++;
    assert_true(at + WINDOW <= head && (at + WINDOW) % CHUNK == 0);
    assert_int_equal(stream_open(&stream, rig.engine, &two, room, bytes), 0);
    assert_int_equal(
        stream_feed_scored(stream, all, (uint32_t)at + WINDOW - CHUNK, &ignored, &none), 0);
    assert_int_equal(
        stream_feed_scored(stream, all + at + WINDOW - CHUNK, CHUNK, &with_memory, &scored), 0);
    raw_reset(meter.raw);
    for (uint32_t i = 0; i < WINDOW; i += 32) {
        int32_t targets[32];

        for (int j = 0; j < 32; j++)
            targets[j] = j < 31 ? all[at + i + (uint32_t)j + 1] : -1;
        assert_int_equal(raw_score(meter.raw, all + at + i, targets, 32, nll), 0);
        for (int j = 0; j < 31 && i >= WINDOW - CHUNK; j++)
            with_window += nll[j];
    }
    assert_int_equal(scored, CHUNK / 32 * 31);
    assert_true(fabs(loss->with_memory - with_memory / scored) < 1e-6);
    assert_true(fabs(loss->with_window - with_window / scored) < 1e-6);
    assert_true(fabs(loss->difference - (with_memory - with_window) / scored) < 1e-6);
    free(room);
}

static void a_sample_is_what_it_says(void **state)
{
    uint64_t without;
    struct loss loss;

    (void)state;
    fed(0, "plain", TEXT);
    rig_settle(&rig);
    without = rig.slots[0].stat.stream.memory_hash;
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &options), 0);
    meter.slots = rig.slots;
    meter.compute_us = &rig.sched.compute_us;
    rig.sched.meter = &meter;
    fed(0, "metered", TEXT);
    /* Nothing while it lags, nothing that is not paid for. */
    while (slot_lag(&rig.slots[0]) > METER_LAG_TOKENS) {
        afford();
        rig_compute(&rig);
        assert_true(meter.phase == METER_REST || meter.phase == METER_COLLECT);
    }
    while (loss_of(0).chunks == 0 && (slot_lag(&rig.slots[0]) || meter.phase == METER_REFER)) {
        afford();
        rig_compute(&rig);
    }
    loss = loss_of(0);
    assert_int_equal(loss.chunks, 1);
    check_sample(0, &loss);
    rig_settle(&rig);
    assert_int_equal(rig.slots[0].stat.stream.memory_hash, without);
}

/* On a device, where all others have nothing to read. */
static void a_stream_that_is_scored_alone_goes_on(void **state)
{
    bool scored = false;

    (void)state;
    rig.sched.meter = &meter;
    rig.sched.info.batch_tokens = 4 * CHUNK;
    meter.batched = true;
    fed(0, "a", TEXT);
    while (ring_count(&rig.slots[0].ring)) {
        afford();
        assert_true(rig_compute(&rig)); /* else the compute thread sleeps */
        scored |= meter.phase == METER_SCORE;
    }
    assert_true(scored);
}

static void the_share_is_kept(void **state)
{
    uint64_t spent;

    (void)state;
    rig.sched.meter = &meter;
    fed(0, "a", TEXT);
    rig_settle(&rig);
    /* So little computing pays for no window of 2,048. */
    assert_int_equal(atomic_load(&meter.meter_us), 0);
    assert_int_equal(loss_of(0).chunks, 0);
    /* As much computing as one sample needs fifty times over: one sample, then no more. */
    spent = 60 * (uint64_t)((WINDOW + CHUNK) / 32) * meter.block_us;
    atomic_store(&rig.sched.compute_us, spent);
    for (uint64_t i = 2; i < 40; i++) {
        char text[2000];

        fill_text(text, sizeof text, (uint32_t)i);
        assert_int_equal(rig_text(&rig, 0, "p", i, text, sizeof text), 0);
        rig_settle(&rig);
        atomic_store(&rig.sched.compute_us, spent); /* time stands still */
    }
    assert_in_range(loss_of(0).chunks, 1, 2);
    assert_true((double)atomic_load(&meter.meter_us) > METER_SHARE * (double)spent / 2);
}

static void streams_take_turns_and_are_flagged(void **state)
{
    (void)state;
    rig.sched.meter = &meter;
    meter.flag = -100; /* everything loses more */
    fed(0, "a", 4000);
    fed(1, "b", 4000);
    for (uint64_t i = 2; loss_of(0).chunks + loss_of(1).chunks < 2 * METER_FLAG_CHUNKS; i++) {
        char text[1500];

        assert_true(i < 2000);
        for (uint32_t slot = 0; slot < 2; slot++) {
            fill_text(text, sizeof text, (uint32_t)(2 * i + slot));
            assert_int_equal(rig_text(&rig, slot, "p", i, text, sizeof text), 0);
            afford();
            rig_settle(&rig);
            rig_forget(&rig);
        }
        if (loss_of(0).chunks < METER_FLAG_CHUNKS)
            assert_false(loss_of(0).flagged);
    }
    assert_in_range(loss_of(0).chunks, METER_FLAG_CHUNKS - 1, METER_FLAG_CHUNKS + 1);
    assert_true(loss_of(0).flagged || loss_of(1).flagged);
}

/* The stream whose turn it is has no more text, and may have left its place: another is measured.
 */
static void a_stream_that_stops_holds_up_none(void **state)
{
    (void)state;
    rig.sched.meter = &meter;
    fed(0, "a", 1500);
    while (slot_lag(&rig.slots[0])) {
        afford();
        rig_compute(&rig);
    }
    assert_int_equal(meter.phase, METER_COLLECT);
    assert_int_equal(meter.slot, 0);
    for (uint64_t i = 1; i < 40 && !loss_of(1).chunks; i++) {
        char text[1500];

        if (i == 1)
            fed(1, "b", sizeof text);
        if (i == 10) /* till then it may come back */
            assert_int_equal(meter.slot, 0);
        if (i == 10)
            meter.read_us -= (METER_IDLE_S + 1) * UINT64_C(1000000);
        fill_text(text, sizeof text, (uint32_t)i);
        assert_int_equal(rig_text(&rig, 1, "p", i + 1, text, sizeof text), 0);
        afford();
        rig_settle(&rig);
    }
    assert_int_equal(loss_of(1).chunks, 1);
    assert_int_equal(loss_of(0).chunks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interval_is_students),
        cmocka_unit_test(quantiles_of_more),
        cmocka_unit_test_setup_teardown(scoring_changes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(raw_is_what_a_stream_begins_with, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_sample_is_what_it_says, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_stream_that_is_scored_alone_goes_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_share_is_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(streams_take_turns_and_are_flagged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_stream_that_stops_holds_up_none, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
