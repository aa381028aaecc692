/* What runs next: streams take turns, questions go first within their bound, and disturb nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/rig.h"

static const struct rig_options options = {.slots = 3, .asks = 2, .lag_tokens_max = 8192};

static struct rig rig;
static char folder[64];

static int set_up(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    return rig_open(&rig, folder, &options);
}

static int tear_down(void **state)
{
    (void)state;
    rig_close(&rig);
    rig_folder_drop(folder);
    return 0;
}

/* The linker sends the daemon's calls here. */
static uint32_t states_read;
const void *__real_stream_state(const struct stream *stream, size_t *bytes);
const void *__wrap_stream_state(const struct stream *stream, size_t *bytes);
const void *__wrap_stream_state(const struct stream *stream, size_t *bytes)
{
    states_read++;
    return __real_stream_state(stream, bytes);
}

static uint64_t computed(uint32_t slot)
{
    return atomic_load(&rig.slots[slot].ring.head);
}

/* Streams with `bytes` of text each, acked and not computed. */
static void fill(uint32_t streams, size_t bytes)
{
    static const char *const names[] = {"a", "b", "c"};
    char *text = malloc(bytes);

    for (size_t i = 0; i < bytes; i++)
        text[i] = i % 6 == 5 ? ' ' : (char)('a' + i * i % 23);
    for (uint32_t i = 0; i < streams; i++)
        rig_stream(&rig, i, names[i], 4);
    rig_settle(&rig);
    for (uint32_t i = 0; i < streams; i++)
        rig_text(&rig, i, "p", 1, text, bytes);
    while (rig_ingest(&rig))
        ;
    free(text);
    for (uint32_t i = 0; i < streams; i++)
        assert_true(slot_lag(&rig.slots[i]) > 1000);
}

static void streams_take_turns(void **state)
{
    uint64_t least, most;

    (void)state;
    fill(3, 4000);
    for (int step = 0; step < 30; step++) {
        assert_true(rig_compute(&rig));
        least = most = computed(0);
        for (uint32_t i = 1; i < 3; i++) {
            least = computed(i) < least ? computed(i) : least;
            most = computed(i) > most ? computed(i) : most;
        }
        assert_true(most - least <= STREAM_PASS_TOKENS);
    }
    assert_int_equal(least + most, 2 * 10 * STREAM_PASS_TOKENS);
}

/* While a question runs, every step still computes its block, and the question gets its slices. */
static void neither_starves(void **state)
{
    uint64_t before;
    int steps = 0;

    (void)state;
    fill(1, 6000);
    rig_ask(&rig, 0, 0, "What is it?", 40);
    while (!rig.ended[0]) {
        before = computed(0);
        rig_compute(&rig);
        if (!rig.ended[0]) /* slices are short while it runs */
            assert_int_equal(computed(0) - before, STREAM_BLOCK_TOKENS);
        assert_true(computed(0) > before);
        assert_true(++steps < 60);
    }
    assert_int_equal(rig.ends[0].error, 0);
    assert_true(rig.ends[0].answer_tokens > 0);
    assert_true(steps >= (int)(rig.ends[0].answer_tokens / ASK_SLICES));
    assert_true(rig.ends[0].position <= STREAM_BLOCK_TOKENS);
}

static void two_questions_take_turns(void **state)
{
    (void)state;
    fill(2, 3000);
    rig_ask(&rig, 0, 0, "What is it?", 30);
    rig_ask(&rig, 1, 1, "What is it?", 30);
    for (int i = 0; i < 400 && !(rig.ended[0] && rig.ended[1]); i++) {
        uint32_t a = rig.asks[0].answer_count, b = rig.asks[1].answer_count;

        rig_compute(&rig);
        if (rig.asks[0].phase == PHASE_DECODE && rig.asks[1].phase == PHASE_DECODE)
            assert_true((a > b ? a - b : b - a) <= ASK_SLICES);
    }
    assert_true(rig.ended[0] && rig.ended[1]);
}

static void waiting_sees_all_that_was_acked(void **state)
{
    uint64_t acked;

    (void)state;
    fill(1, 3000);
    acked = atomic_load(&rig.slots[0].tokens_acked);
    rig_ask(&rig, 0, 0, "What is it?", 4);
    rig.asks[0].wait = true;
    rig_settle(&rig);
    assert_true(rig.ended[0]);
    assert_int_equal(rig.ends[0].position, acked);
}

static void questions_leave_no_trace(void **state)
{
    uint64_t hash;
    static uint8_t first[RIG_TEXT_MAX];
    uint32_t bytes;

    (void)state;
    fill(1, 3000);
    rig_settle(&rig);
    hash = rig_hash(&rig, 0);
    rig_ask(&rig, 0, 0, "What is it?", 20);
    rig_settle(&rig);
    bytes = rig.text_bytes[0];
    memcpy(first, rig.text[0], bytes);
    assert_int_equal(rig_hash(&rig, 0), hash);
    rig_ask(&rig, 1, 0, "What is it?", 20);
    rig_settle(&rig);
    assert_int_equal(rig.text_bytes[1], bytes);
    assert_memory_equal(rig.text[1], first, bytes);
    assert_int_equal(rig_hash(&rig, 0), hash);
}

static void cancelled_and_too_long(void **state)
{
    static char question[QUESTION_BYTES_MAX];

    (void)state;
    fill(1, 3000);
    rig_ask(&rig, 0, 0, "What is it?", 1000);
    for (int i = 0; i < 10; i++)
        rig_compute(&rig);
    assert_false(rig.ended[0]);
    atomic_store(&rig.asks[0].cancelled, true);
    rig_compute(&rig);
    assert_true(rig.ended[0]);
    assert_int_equal(rig.ends[0].finish, SILT__V1__DONE__FINISH__CANCELLED);
    for (size_t i = 0; i + 1 < sizeof question; i++)
        question[i] = "qzxjk "[i % 6];
    rig_ask(&rig, 0, 0, question, 10);
    rig_settle(&rig);
    assert_true(rig.ended[0]);
    assert_int_equal(rig.ends[0].error, 1 + SILT__V1__ERROR__CODE__TOO_LARGE);
    rig_ask(&rig, 0, 0, "And now?", 5);
    rig_settle(&rig);
    assert_int_equal(rig.ends[0].error, 0);
}

static void stop_strings_end_an_answer(void **state)
{
    uint32_t bytes;

    (void)state;
    fill(1, 2000);
    rig_settle(&rig);
    rig_ask(&rig, 0, 0, "What is it?", 30);
    rig_settle(&rig);
    bytes = rig.text_bytes[0];
    assert_true(bytes > 6);
    rig_ask(&rig, 1, 0, "What is it?", 30);
    rig.asks[1].stop.count = 1;
    rig.asks[1].stop.bytes[0] = 3;
    memcpy(rig.asks[1].stop.text[0], rig.text[0] + 3, 3);
    rig_settle(&rig);
    assert_int_equal(rig.ends[1].finish, SILT__V1__DONE__FINISH__STOP);
    assert_true(rig.text_bytes[1] <= 3);
}

/* A device's is copied from there: not for a buffer that another stream's fills. */
static void a_state_is_read_where_it_can_be_kept(void **state)
{
    static const struct rig_options saving = {
        .slots = 2, .lag_tokens_max = 65536, .checkpoints = true};

    (void)state;
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    rig.options.checkpoints = false; /* nobody writes what the keeper has taken */
    states_read = 0;
    fill(2, 40000);
    rig_settle(&rig);
    for (uint32_t i = 0; i < 2; i++)
        assert_true(computed(i) > CHECKPOINT_TOKENS + 8 * STREAM_BLOCK_TOKENS);
    assert_int_equal(states_read, 1);
    assert_true((rig.slots[0].checkpoint > 0) != (rig.slots[1].checkpoint > 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(streams_take_turns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(neither_starves, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_questions_take_turns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(waiting_sees_all_that_was_acked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(questions_leave_no_trace, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cancelled_and_too_long, set_up, tear_down),
        cmocka_unit_test_setup_teardown(stop_strings_end_an_answer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_state_is_read_where_it_can_be_kept, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
