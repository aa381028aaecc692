/* Streams come to places and leave them, as the loop thread has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>

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
    core.info = rig.sched.info;
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

int main(void)
{
    const struct CMUnitTest tests[] = {rig_folder_test(a_place_that_is_not_taken_is_nobody_s)};

    return cmocka_run_group_tests_name("serve", tests, NULL, NULL);
}
