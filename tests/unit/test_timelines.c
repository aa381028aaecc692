/*
 * A stream whose oldest text was trimmed away, its branches and its past: nothing that needs the
 * text takes what stands in its place for it, in whatever order requests meet in one batch.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/rig.h"

enum { LAG = 8192, HALF_BYTES = 4000, PINS = 64, SINKS = 8 };

static const struct rig_options options = {
    .slots = 2, .asks = 1, .lag_tokens_max = LAG, .checkpoints = true};
static struct rig rig;
static uint64_t id, first, sequence, seed;

static void push(const struct ingest_request *request)
{
    struct queue_part part = {request, sizeof *request};

    assert_int_equal(queue_push(&rig.journal_queue, &part, 1), 0);
}

static void push_branch(const char *name)
{
    struct ingest_request request = {.kind = INGEST_BRANCH, .slot = SLOT_NONE, .stream_id = id};

    snprintf(request.name, sizeof request.name, "%s", name);
    push(&request);
}

static void push_removal(void)
{
    push(&(struct ingest_request){.kind = INGEST_REMOVE, .slot = SLOT_NONE, .stream_id = id});
}

static void feed_half(void)
{
    char text[HALF_BYTES];

    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(faults_random(&seed) % 6 ? 'a' + faults_random(&seed) % 26 : ' ');
    rig_text(&rig, 0, "p", ++sequence, text, sizeof text / 2);
    rig_text(&rig, 0, "p", ++sequence, text + sizeof text / 2, sizeof text / 2);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
}

static void leave(void)
{
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    rig_settle(&rig);
    rig_order(&rig, SCHED_CLOSE, 0, 0, 0);
    rig_settle(&rig);
    rig_forget(&rig);
}

/* In no slot, with two checkpoints and no text before the first. */
static int set_up(void **state)
{
    rig_folder_set_up(state);
    if (rig_open(&rig, rig_own_folder, &options))
        return -1;
    sequence = 0;
    seed = 11;
    for (int half = 0; half < 2; half++) {
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        id = atomic_load(&rig.slots[0].stream_id);
        feed_half();
        leave();
    }
    push(&(struct ingest_request){
        .kind = INGEST_TRIM, .slot = SLOT_NONE, .stream_id = id, .to = UINT64_MAX});
    rig_settle(&rig);
    first = rig_last(&rig, INGEST_TRIM)->first;
    assert_true(first > 0);
    rig_forget(&rig);
    return 0;
}

static int tear_down(void **state)
{
    rig_close(&rig);
    return rig_folder_tear_down(state);
}

static uint64_t hash_of(const char *name)
{
    uint64_t hash;

    rig_stream(&rig, 0, name, 4);
    rig_settle(&rig);
    assert_int_equal(slot_lag(&rig.slots[0]), 0);
    hash = rig_hash(&rig, 0);
    leave();
    return hash;
}

static void a_branch_knows_what_is_gone(void **state)
{
    (void)state;
    push_branch("b");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->error, 0);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->first, first);
}

/* It was asked for while there was text. */
static void the_past_is_not_made_of_nothing(void **state)
{
    struct ingest_request request = {
        .kind = INGEST_LOAD, .slot = 1, .stream_id = id, .past = true, .tokens_to = first - 1};

    (void)state;
    push(&request);
    rig_ingest(&rig);
    assert_int_equal(rig_last(&rig, INGEST_LOAD)->error, 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_false(rig.slots[1].ingest.open);
    request.tokens_to = first;
    push(&request);
    rig_ingest(&rig);
    assert_int_equal(rig_last(&rig, INGEST_LOAD)->error, 0);
    assert_true(rig.slots[1].ingest.open);
}

/* What it remembers of text that is gone is in its checkpoints alone. */
static void a_branch_remembers_though_its_stream_goes_at_once(void **state)
{
    uint64_t hash = hash_of("a");

    (void)state;
    push_branch("b");
    push_removal();
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->error, 0);
    assert_int_equal(rig_last(&rig, INGEST_REMOVE)->error, 0);
    assert_true(hash_of("b") == hash);
}

static uint32_t pin(uint64_t from, uint64_t to)
{
    struct ingest_request request = {.kind = INGEST_PIN,
                                     .slot = 0,
                                     .stream_id = id,
                                     .verb = SILT__V1__PINS__VERB__PIN,
                                     .from = from,
                                     .to = to};

    push(&request);
    rig_settle(&rig);
    return rig_last(&rig, INGEST_PIN)->error;
}

/* With a pin come the stream's first tokens, which are gone too. */
static void no_other_text_is_pinned(void **state)
{
    const struct slot_pins *pins = &rig.slots[0].pins;

    (void)state;
    rig.ingest.pin_tokens_max = PINS;
    rig.ingest.sink_tokens = SINKS;
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    assert_int_equal(pin(first - 20, first - 4), 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_int_equal(pin(first - 1, first + 4), 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_int_equal(atomic_load(&pins->count), 0);
    assert_int_equal(pin(first, first + 20), 0);
    assert_int_equal(atomic_load(&pins->count), 1);
    assert_int_equal(pins->pin[0].before, SINKS);
    for (int i = 0; i < SINKS; i++)
        assert_int_equal(pins->tokens[i], GAP_TOKEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_branch_knows_what_is_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_past_is_not_made_of_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_branch_remembers_though_its_stream_goes_at_once, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(no_other_text_is_pinned, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("timelines", tests, NULL, NULL);
}
