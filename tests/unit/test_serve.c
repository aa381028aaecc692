/* Streams come to places and leave them, as the loop thread has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>

#include "daemon/serve.h"
#include "tests/unit/rig.h"

enum { QUEUE_BYTES = 1 << 10, POOL_BYTES = 8 << 20 };

static const struct rig_options options = {.slots = 1, .lag_tokens_max = 4096};
static struct rig rig;
static struct core core;
static struct flight flights[FLIGHTS_MAX];
static struct record records[2];
static uint32_t buckets[TABLE_BUCKETS], order[2];
static struct extent list[8];
static _Alignas(64) uint8_t queue_memory[2][QUEUE_BYTES];
static _Alignas(64) uint8_t pool[POOL_BYTES];

static void set_up_core(void)
{
    core = (struct core){.info = rig.sched.info};
    core.engine = rig.engine;
    core.slots = rig.slots;
    core.flights = flights;
    core.plan.streams_max = options.slots;
    core.pool = (struct extents){.base = pool, .bytes = POOL_BYTES, .list = list, .list_max = 8};
    queue_init(&core.journal_queue, queue_memory[0], QUEUE_BYTES, &rig.bell);
    queue_init(&core.compute_queue, queue_memory[1], QUEUE_BYTES, &rig.bell);
    table_init(&core.table, records, buckets, order, 2);
}

/* The journal's queue is full: the stream stays where it is, and no thread takes the place for its.
 */
static void a_place_that_is_not_taken_is_nobody_s(void **state)
{
    struct queue_part part = {(uint8_t[64]){0}, 64};
    uint32_t index;

    (void)state;
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    set_up_core();
    index = table_add(&core.table, "s");
    records[index].stream_id = 7;
    records[index].options.dmc_ratio = 4;
    while (queue_push(&core.journal_queue, &part, 1) == 0)
        ;
    assert_int_equal(serve_wake(&core, index), -EBUSY);
    assert_int_equal(records[index].state, RECORD_PARKED);
    assert_int_equal(records[index].slot, SLOT_NONE);
    assert_false(rig.slots[0].used);
    assert_int_equal(core.pool.used, 0);
    assert_int_equal(atomic_load(&rig.slots[0].stream_id), 0);
    rig_close(&rig);
}

/* The stream with the most text has none that may go: it is not indexed. */
static void another_gives_text_away(void **state)
{
    const struct ingest_request *request;
    size_t bytes;

    (void)state;
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    set_up_core();
    for (uint32_t i = 0; i < 2; i++)
        table_add(&core.table, i ? "less" : "most");
    for (uint32_t i = 0; i < 2; i++) {
        records[i].stream_id = 7 + i;
        records[i].tokens = 1000;
        records[i].bytes_text = 4000;
    }
    records[0].state = RECORD_LIVE;
    records[0].slot = 0;
    atomic_store(&rig.slots[0].bytes_text, 9000);
    atomic_store(&rig.slots[0].ring.head, 1000);
    snprintf(core.config.data, sizeof core.config.data, "%s", rig_own_folder);
    core.config.disk_bytes = 1;
    core.config.when_full_trim = core.log_folded = true;
    core.keeper.compute_bell = &rig.bell;
    cold_tick(&core);
    request = queue_front(&core.journal_queue, &bytes);
    assert_non_null(request);
    assert_int_equal(request->kind, INGEST_TRIM);
    assert_int_equal(request->record, 1);
    assert_int_equal(request->to, 1000);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        rig_folder_test(a_place_that_is_not_taken_is_nobody_s),
        rig_folder_test(another_gives_text_away),
    };

    return cmocka_run_group_tests_name("serve", tests, NULL, NULL);
}
