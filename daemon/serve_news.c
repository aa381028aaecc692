/* What the journal and compute threads report becomes replies and changes of the table. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/serve.h"

enum { NEWS_PER_ROUND = 1024 };

/* ---- news of the journal thread ---- */

/* An Ack stands for all before it, so one entry a producer is enough. NULL: all are taken; it was
 * told when to try again, or it will attach and learn. */
static struct waiter *owe(struct core *core, const struct waiter *ack)
{
    struct waiter *place = NULL;
    bool for_room = false;

    for (uint32_t i = 0; i < WAITERS_MAX; i++) {
        struct waiter *waiter = &core->waiters[i];

        if (waiter->used && waiter->record == ack->record &&
            serve_same_client(&waiter->client, &ack->client) &&
            strcmp(waiter->producer, ack->producer) == 0) {
            place = waiter;
            for_room = waiter->for_room;
            break;
        }
        if (!waiter->used && !place)
            place = waiter;
    }
    if (!place)
        return NULL;
    *place = *ack;
    place->used = true;
    place->for_room = for_room;
    return place;
}

static int send_ack(struct core *core, const struct waiter *waiter, uint64_t credit)
{
    const struct record *record = &core->table.records[waiter->record];
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Ack ack = SILT__V1__ACK__INIT;

    ack.stream = (char *)(uintptr_t)record->name;
    ack.producer = (char *)(uintptr_t)waiter->producer;
    ack.sequence = waiter->sequence;
    ack.bytes_acked = waiter->bytes_acked;
    if (record->slot != SLOT_NONE) {
        ack.tokens_acked = atomic_load(&core->slots[record->slot].tokens_acked);
        ack.tokens_computed = atomic_load(&core->slots[record->slot].ring.head);
    }
    ack.credit_bytes = credit;
    reply.id = waiter->request_id;
    reply.body_case = SILT__V1__REPLY__BODY_ACK;
    reply.ack = &ack;
    return reply_send(core, &waiter->client, &reply);
}

static uint64_t room_of(const struct core *core, const struct record *record)
{
    uint64_t lag = record->slot == SLOT_NONE ? 0 : slot_lag(&core->slots[record->slot]);

    return lag < core->config.lag_tokens_max ? core->config.lag_tokens_max - lag : 0;
}

/* Sends what is owed, with the room there is now; where the client does not read, the tick tries
 * again. One that is told of none, as others took it meanwhile, is owed another when there is. */
static void pay(struct core *core, struct waiter *waiter)
{
    const struct record *record = &core->table.records[waiter->record];
    uint64_t room = room_of(core, record);
    int result = send_ack(core, waiter, room);

    waiter->unsent = result == -EAGAIN;
    waiter->for_room = room == 0 && result != -EHOSTUNREACH;
    waiter->used = waiter->unsent || waiter->for_room;
    if (!waiter->for_room)
        return;
    atomic_store(&core->slots[record->slot].credit_wanted, true);
    doorbell_ring(&core->compute_bell);
}

void serve_owed_tick(struct core *core)
{
    for (uint32_t i = 0; i < WAITERS_MAX; i++)
        if (core->waiters[i].used && core->waiters[i].unsent)
            pay(core, &core->waiters[i]);
}

static void send_attached(struct core *core, const struct ingest_result *result)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Attached attached = SILT__V1__ATTACHED__INIT;

    attached.stream = core->table.records[result->record].name;
    attached.producer = (char *)(uintptr_t)result->producer;
    attached.next_sequence = result->sequence + 1;
    attached.bytes_acked = result->bytes_acked;
    attached.credit_bytes = result->credit_tokens;
    reply.id = result->request_id;
    reply.body_case = SILT__V1__REPLY__BODY_ATTACHED;
    reply.attached = &attached;
    reply_send(core, &result->client, &reply);
}

void serve_result_error(struct core *core, const struct ingest_result *result)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Error error = SILT__V1__ERROR__INIT;

    error.code = (Silt__V1__Error__Code)(result->error - 1);
    error.message = (char *)(uintptr_t)result->message;
    error.expected_sequence = result->expected_sequence;
    if (error.code == SILT__V1__ERROR__CODE__BUSY || error.code == SILT__V1__ERROR__CODE__NO_SPACE)
        error.retry_us = BUSY_RETRY_US;
    reply.id = result->request_id;
    reply.body_case = SILT__V1__REPLY__BODY_ERROR;
    reply.error = &error;
    reply_send(core, &result->client, &reply);
}

static void feed_result(struct core *core, const struct ingest_result *result)
{
    struct waiter ack = {.record = result->record,
                         .request_id = result->request_id,
                         .sequence = result->sequence,
                         .bytes_acked = result->bytes_acked,
                         .client = result->client};
    struct waiter *owed;

    memcpy(ack.producer, result->producer, sizeof ack.producer);
    if (result->credit_tokens == 0 && (owed = owe(core, &ack)))
        owed->for_room = true;
    if (result->error)
        serve_result_error(core, result);
    else if (send_ack(core, &ack, result->credit_tokens) == -EAGAIN && (owed = owe(core, &ack)))
        owed->unsent = true;
}

static void create_result(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    if (!result->error) {
        record->stream_id = result->stream_id;
        cold_attach(core, record->stream_id);
        if (result->created)
            record->created_us = result->created_us;
        serve_send_opened(core, &result->client, result->request_id, record, result->created);
        return;
    }
    serve_result_error(core, result);
}

/* Its creation has failed, and nothing under way tries it again. */
static bool never_was(const struct record *record)
{
    return record->state == RECORD_LIVE && !record->stream_id && !record->flights;
}

static void load_result(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    if (!result->error)
        return;
    say(SAY_ERROR, "stream %s cannot be read from the journal: %s", record->name, result->message);
    if (record->slot != SLOT_NONE) {
        atomic_store(&core->slots[record->slot].unread, true); /* whoever waits for it is told */
        doorbell_ring(&core->compute_bell);
    }
    serve_leave(core, result->record);
}

static void journal_news(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    assert(record->flights > 0);
    record->flights--;
    serve_land(core, &result->client, result->flight_bytes);
    changes_end(&core->changes, result->change,
                !result->error && (result->created || result->kind != INGEST_CREATE),
                result->tokens_acked);
    switch (result->kind) {
    case INGEST_CREATE:
        create_result(core, result);
        break;
    case INGEST_LOAD:
        load_result(core, result);
        break;
    case INGEST_ATTACH:
        if (result->error)
            serve_result_error(core, result);
        else
            send_attached(core, result);
        break;
    case INGEST_FEED:
        feed_result(core, result);
        break;
    case INGEST_KEEP:
        serve_ask_kept(core, &core->asks[result->ask], result);
        break;
    case INGEST_PIN:
        if (result->error)
            serve_result_error(core, result);
        else
            stats_pins(core, &result->client, result->request_id, result->record);
        break;
    case INGEST_REMOVE:
    case INGEST_FORGET:
        serve_erased(core, result);
        break;
    case INGEST_TRIM:
        cold_trimmed(core, result);
        break;
    case INGEST_BRANCH:
        if (result->error) {
            serve_result_error(core, result);
            table_drop(&core->table, result->record);
            return;
        }
        serve_forked(core, result);
        break;
    case INGEST_UNLOAD:
        serve_leave(core, result->record);
        break;
    }
    record->forget |= never_was(record);
    if (record->state == RECORD_LEAVING || never_was(record))
        serve_leave(core, result->record);
}

/* ---- news of the compute thread ---- */

static void credit_news(struct core *core, uint32_t slot_index)
{
    for (uint32_t i = 0; i < WAITERS_MAX; i++) {
        struct waiter *waiter = &core->waiters[i];

        if (waiter->used && waiter->for_room &&
            core->table.records[waiter->record].slot == slot_index)
            pay(core, waiter);
    }
}

static void opened_news(struct core *core, const struct sched_message *message)
{
    struct record *record = &core->table.records[core->slots[message->index].record];

    if (!message->result)
        return;
    say(SAY_ERROR, "stream %s cannot be opened: %s", record->name, strerror(-message->result));
}

static void compute_news(struct core *core, const struct sched_message *message)
{
    switch (message->news) {
    case SCHED_OPENED:
        opened_news(core, message);
        break;
    case SCHED_CLOSED:
        serve_slot_closed(core, message->index);
        break;
    case SCHED_CREDIT:
        credit_news(core, message->index);
        break;
    case SCHED_TEXT:
        serve_ask_text(core, &core->asks[message->index], (const uint8_t *)(message + 1),
                       message->bytes_count);
        break;
    case SCHED_END:
        serve_ask_end(core, &core->asks[message->index], &message->end);
        break;
    }
}

void serve_news(void *user)
{
    struct core *core = user;
    const uint64_t *message;
    size_t bytes_count;

    doorbell_clear(&core->loop_bell);
    for (int i = 0; i < NEWS_PER_ROUND; i++) {
        message = queue_front(&core->loop_queue, &bytes_count);
        if (!message)
            break;
        if (*message == LOOP_INGEST)
            journal_news(core, (const struct ingest_result *)(message + 1));
        else
            compute_news(core, (const struct sched_message *)(message + 1));
        queue_pop(&core->loop_queue);
    }
    if (queue_front(&core->loop_queue, &bytes_count))
        doorbell_ring(&core->loop_bell);
    if (atomic_load(&core->stopping) && atomic_load(&core->journal_done) &&
        atomic_load(&core->compute_done) && !queue_front(&core->loop_queue, &bytes_count))
        core->loop.stop = true;
}
