/* Pins between the journal that keeps them and the thread that computes with them: where they do
 * not come across the stream is not computed as if it had none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#include "daemon/journal_branch.h"
#include "tests/unit/rig.h"

enum { PINS = 64, SINKS = 8, FROM = 20, TO = 40 };

static const struct rig_options options = {.slots = 2, .asks = 1, .lag_tokens_max = 8192};
static struct rig rig;

static void start(void)
{
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    rig.ingest.pin_tokens_max = PINS;
    rig.ingest.sink_tokens = SINKS;
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
}

static int set_up(void **state)
{
    rig_folder_set_up(state);
    start();
    return 0;
}

static int tear_down(void **state)
{
    rig_close(&rig);
    return rig_folder_tear_down(state);
}

static void push_text(uint32_t slot, uint64_t sequence)
{
    char text[4000];

    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(i % 5 ? 'a' + (i + sequence) % 23 : ' ');
    rig_text(&rig, slot, "p", sequence, text, sizeof text);
}

static void push_pin(void)
{
    struct ingest_request request = {.kind = INGEST_PIN,
                                     .slot = 0,
                                     .stream_id = atomic_load(&rig.slots[0].stream_id),
                                     .verb = SILT__V1__PINS__VERB__PIN,
                                     .from = FROM,
                                     .to = TO};
    struct queue_part part = {&request, sizeof request};

    assert_int_equal(queue_push(&rig.journal_queue, &part, 1), 0);
}

/* More than fits, as another siltd may have left them: the stream does not come, what is said is
 * why, and the others of its batch are stored. */
static void a_stream_with_unfit_pins_stays_away(void **state)
{
    const struct ingest_result *load;

    (void)state;
    assert_int_equal(journal_begin(rig.journal), 0);
    assert_int_equal(sqlite3_exec(journal_db(rig.journal),
                                  "INSERT INTO pins SELECT id, 0, 5000, 5376, NULL, "
                                  "zeroblob(20000) FROM streams WHERE name = 'a'",
                                  NULL, NULL, NULL),
                     0);
    assert_int_equal(journal_commit(rig.journal), 0);
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    rig.ingest.pin_tokens_max = PINS;
    rig_stream(&rig, 1, "b", 4);
    rig_settle(&rig);
    push_text(1, 1);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    load = rig_last(&rig, INGEST_LOAD);
    assert_int_equal(load->error, 1 + SILT__V1__ERROR__CODE__INTERNAL);
    assert_non_null(strstr(load->message, "pin"));
    assert_false(rig.slots[0].ingest.open);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
}

static int no_memory_left(void *user, sqlite3 *db, const char *name, int pages)
{
    (void)user;
    (void)db;
    (void)name;
    (void)pages;
    sqlite3_hard_heap_limit64(sqlite3_memory_used());
    return SQLITE_OK;
}

/* It is on disk, and cannot be read back: what comes behind it waits for another start. */
static void no_token_is_computed_without_a_pin(void **state)
{
    struct slot *slot = &rig.slots[0];
    uint64_t held;

    (void)state;
    push_text(0, 1);
    rig_settle(&rig);
    held = atomic_load(&slot->tokens_acked);
    assert_true(held > TO);
    sqlite3_wal_hook(journal_db(rig.journal), no_memory_left, NULL); /* behind the commit */
    push_pin();
    push_text(0, 2);
    rig_ingest(&rig);
    sqlite3_hard_heap_limit64(JOURNAL_HEAP_BYTES);
    push_text(0, 3);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_PIN)->error, 0);
    assert_true(atomic_load(&slot->unread));
    assert_true(atomic_load(&slot->tokens_acked) > held);
    assert_int_equal(atomic_load(&slot->ring.head), held);
    rig_close(&rig);
    start();
    assert_int_equal(atomic_load(&slot->pins.count), 1);
    assert_int_equal(atomic_load(&slot->ring.head), atomic_load(&slot->tokens_acked));
    assert_true(atomic_load(&slot->tokens_acked) > held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_stream_with_unfit_pins_stays_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_token_is_computed_without_a_pin, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("pin_table", tests, NULL, NULL);
}
