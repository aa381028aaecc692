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

static int interrupted; /* so many sends of a message's last part are, by a signal */

int __real_zmq_send(void *socket, const void *bytes, size_t bytes_count, int flags);
int __wrap_zmq_send(void *socket, const void *bytes, size_t bytes_count, int flags);

int __wrap_zmq_send(void *socket, const void *bytes, size_t bytes_count, int flags)
{
    if (flags & ZMQ_SNDMORE || !interrupted)
        return __real_zmq_send(socket, bytes, bytes_count, flags);
    interrupted--;
    errno = EINTR;
    return -1;
}

/* A client of the gate's, and who it is. */
static void *connect_client(struct wire_client *client)
{
    const int patience_ms = 5000;
    char endpoint[128];
    const uint8_t *bytes;
    size_t bytes_count;
    void *socket;

    snprintf(endpoint, sizeof endpoint, "ipc://%s/s", rig_own_folder);
    assert_int_equal(gate_open(&core.gate, endpoint, endpoint, sizeof endpoint), 0);
    core.gate.clients.max = 1;
    socket = zmq_socket(core.gate.context, ZMQ_DEALER);
    snprintf(endpoint, sizeof endpoint, "ipc://%s/s", rig_own_folder);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience_ms, sizeof patience_ms), 0);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    assert_int_equal(zmq_send(socket, "", 0, 0), 0);
    while (gate_receive(&core.gate, client, &bytes, &bytes_count) == -EAGAIN)
        ;
    return socket;
}

/* The credit of the next Ack. */
static uint64_t next_credit(void *socket)
{
    uint8_t frame[1024];
    int bytes = zmq_recv(socket, frame, sizeof frame, 0);
    Silt__V1__Reply *reply;
    uint64_t credit;

    assert_in_range(bytes, 1, sizeof frame);
    reply = silt__v1__reply__unpack(NULL, (size_t)bytes, frame);
    assert_non_null(reply);
    assert_int_equal(reply->body_case, SILT__V1__REPLY__BODY_ACK);
    credit = reply->ack->credit_bytes;
    silt__v1__reply__free_unpacked(reply, NULL);
    return credit;
}

/* Else the next reply would be the rest of this one, and another client's. */
static void a_signal_parts_no_reply(void **state)
{
    struct wire_client client;
    char reply[16];
    void *socket;

    (void)state;
    set_up_core();
    socket = connect_client(&client);
    interrupted = 1;
    assert_int_equal(gate_send(&core.gate, &client, "whole", 5), 0);
    assert_int_equal(zmq_recv(socket, reply, sizeof reply, 0), 5);
    zmq_close(socket);
    gate_close(&core.gate);
}

/* The room that was offered is another producer's before the first is told. */
static void who_is_told_of_no_room_is_told_of_some(void **state)
{
    static uint8_t reply[REPLY_BYTES_MAX];
    static struct waiter waiters[WAITERS_MAX];
    struct slot *slot = &rig.slots[0];
    void *socket;

    (void)state;
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    set_up_core();
    core.waiters = waiters;
    core.reply = reply;
    core.loop_bell = core.compute_bell = rig.bell;
    core.config.lag_tokens_max = options.lag_tokens_max;
    queue_init(&core.loop_queue, queue_memory[1], QUEUE_BYTES, &rig.bell);
    rig.sched.loop = &core.loop_queue;
    waiters[0] = (struct waiter){
        .used = true, .for_room = true, .record = table_add(&core.table, "s"), .producer = "p"};
    records[waiters[0].record].slot = 0;
    socket = connect_client(&waiters[0].client);

    atomic_store(&slot->credit_wanted, true);
    sched_offer_room(&rig.sched, slot);
    atomic_store(&slot->tokens_acked, options.lag_tokens_max);
    serve_news(&core);
    assert_int_equal(next_credit(socket), 0);
    atomic_store(&slot->ring.head, options.lag_tokens_max);
    sched_offer_room(&rig.sched, slot);
    serve_news(&core);
    assert_int_equal(next_credit(socket), options.lag_tokens_max);
    assert_false(waiters[0].used);
    zmq_close(socket);
    gate_close(&core.gate);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        rig_folder_test(a_place_that_is_not_taken_is_nobody_s),
        rig_folder_test(another_gives_text_away),
        rig_folder_test(a_signal_parts_no_reply),
        rig_folder_test(who_is_told_of_no_room_is_told_of_some),
    };

    return cmocka_run_group_tests_name("serve", tests, NULL, NULL);
}
