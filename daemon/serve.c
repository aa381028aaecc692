/*
 * Requests become messages to the journal and compute threads; their news become replies.
 *
 * The loop thread never waits for the others: where a queue is full, the client is told BUSY. So
 * the others may wait for it.
 */
#include "daemon/serve.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/log.h"

enum { FRAMES_PER_ROUND = 64, NEWS_PER_ROUND = 1024 };

static bool same_client(const struct wire_client *a, const struct wire_client *b)
{
    return a->bytes == b->bytes && memcmp(a->id, b->id, a->bytes) == 0;
}

/* ---- what a client may have in the journal's queue ---- */

static struct flight *find_flight(struct core *core, const struct wire_client *client)
{
    struct flight *free = NULL;

    for (uint32_t i = 0; i < FLIGHTS_MAX; i++) {
        struct flight *flight = &core->flights[i];

        if (flight->count && same_client(&flight->client, client))
            return flight;
        if (!flight->count && !free)
            free = flight;
    }
    return free;
}

static void land(struct core *core, const struct wire_client *client, uint32_t bytes)
{
    struct flight *flight = find_flight(core, client);

    if (!flight || !flight->count)
        return;
    flight->count--;
    flight->bytes -= bytes < flight->bytes ? bytes : flight->bytes;
}

int serve_push(struct core *core, const struct ingest_request *request, size_t bytes_count)
{
    struct queue_part part = {request, bytes_count};
    struct flight *flight = find_flight(core, &request->client);
    int result;

    if (!flight || (flight->count && flight->bytes + bytes_count > FLIGHT_BYTES_MAX))
        return -EAGAIN;
    result = queue_push(&core->journal_queue, &part, 1);
    if (result)
        return result;
    if (!flight->count) {
        flight->client = request->client;
        flight->bytes = 0;
    }
    flight->count++;
    flight->bytes += request->flight_bytes;
    core->table.records[request->record].flights++;
    core->table.records[request->record].touched_us = clock_us();
    return 0;
}

static struct ingest_request *new_request(struct core *core, enum ingest_kind kind,
                                          const struct wire_client *client, uint64_t id,
                                          uint32_t record)
{
    struct ingest_request *out = (struct ingest_request *)(void *)core->request;

    memset(out, 0, sizeof *out);
    out->kind = kind;
    out->record = record;
    out->slot = core->table.records[record].slot;
    out->stream_id = core->table.records[record].stream_id;
    out->client = *client;
    out->request_id = id;
    out->flight_bytes = sizeof *out;
    return out;
}

static void push_or_busy(struct core *core, const struct ingest_request *request,
                         size_t bytes_count)
{
    if (serve_push(core, request, bytes_count) != 0)
        reply_busy(core, &request->client, request->request_id,
                   "too many requests wait for the disk: send this again in a moment");
}

/* ---- requests ---- */

/* The record of a stream that is there and awake, or RECORD_NONE and the client is told. */
static uint32_t wanted(struct core *core, const struct wire_client *client, uint64_t id,
                       const char *name)
{
    uint32_t record = table_find(&core->table, name);
    int result;

    if (record == RECORD_NONE || core->table.records[record].state == RECORD_REMOVING) {
        reply_error(core, client, id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them, `silt open %s` makes it", name,
                    name);
        return RECORD_NONE;
    }
    result = serve_wake(core, record);
    if (!result)
        return record;
    if (result == -EBUSY)
        reply_busy(core, client, id, "the stream is changing places: send this again in a moment");
    else
        reply_error(core, client, id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "all %u places for live streams are in use: try again when one is idle, or "
                    "start siltd with a larger --streams-max",
                    core->plan.streams_max);
    return RECORD_NONE;
}

/* What a stream gets that asks for nothing; written down when it is created. */
static uint32_t default_ratio(const struct core *core)
{
    for (uint32_t i = 0; i < core->info.ratio_count; i++)
        if (core->info.ratio[i] == DMC_RATIO_DEFAULT)
            return DMC_RATIO_DEFAULT;
    return 1;
}

static bool options_of(struct core *core, const struct wire_client *client,
                       const struct wire_request *request, struct stream_options *options,
                       size_t *bytes)
{
    char why[ERROR_BYTES_MAX / 2] = "";

    *options = (struct stream_options){request->dmc_ratio, request->ring_segments};
    if (!options->dmc_ratio)
        options->dmc_ratio = default_ratio(core);
    if (!options->ring_segments)
        options->ring_segments = core->info.ring_segments;
    *bytes = stream_bytes(core->engine, options, why, sizeof why);
    if (!*bytes) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__INVALID, "%s", why);
        return false;
    }
    if (fork_bytes(core->engine, options) > core->plan.fork_bytes) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "a question on a ring of %u segments does not fit the plan's forks: ask for "
                    "fewer with --ring",
                    request->ring_segments);
        return false;
    }
    return true;
}

/* The lowest ratio whose stream fits what is free; the largest if none does. */
static void choose_ratio(const struct core *core, struct wire_request *request)
{
    size_t room = core->pool.bytes - core->pool.used;
    uint32_t best = 0;

    for (uint32_t i = 0; i < core->info.ratio_count; i++) {
        struct stream_options options = {core->info.ratio[i], request->ring_segments};
        char why[ERROR_BYTES_MAX];
        size_t bytes = stream_bytes(core->engine, &options, why, sizeof why);

        if (bytes && bytes <= room && (!best || options.dmc_ratio < best))
            best = options.dmc_ratio;
    }
    request->dmc_ratio = best;
}

static void send_opened(struct core *core, const struct wire_client *client, uint64_t id,
                        const struct record *record, bool created)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Opened opened = SILT__V1__OPENED__INIT;
    const struct slot *slot = &core->slots[record->slot];

    opened.stream = (char *)(uintptr_t)record->name;
    opened.created = created;
    opened.dmc_ratio = record->options.dmc_ratio;
    opened.ring_segments = record->options.ring_segments;
    opened.bytes_plan = slot->memory_bytes;
    opened.compression_off = core->info.adapter_fingerprint == 0;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_OPENED;
    reply.opened = &opened;
    reply_send(core, client, &reply);
}

static void open_existing(struct core *core, const struct wire_client *client,
                          const struct wire_request *request, uint32_t index)
{
    struct record *record = &core->table.records[index];
    bool other_ratio = request->dmc_ratio && request->dmc_ratio != record->options.dmc_ratio;
    bool other_ring =
        request->ring_segments && request->ring_segments != record->options.ring_segments;
    struct ingest_request *out;

    if (other_ratio || other_ring) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__EXISTS,
                    "'%s' exists with DMC ratio %u and ring %u, which are fixed: open it without "
                    "options, or remove it first",
                    record->name, record->options.dmc_ratio, record->options.ring_segments);
        return;
    }
    if (record->stream_id) {
        send_opened(core, client, request->id, record, false);
        return;
    }
    out = new_request(core, INGEST_CREATE, client, request->id, index);
    snprintf(out->name, sizeof out->name, "%s", record->name);
    push_or_busy(core, out, sizeof *out);
}

static void open_new(struct core *core, const struct wire_client *client,
                     struct wire_request *request)
{
    struct stream_options options = {0};
    struct ingest_request *out;
    struct record *record;
    uint32_t index;
    size_t bytes;

    if (request->dmc_auto)
        choose_ratio(core, request);
    if (!options_of(core, client, request, &options, &bytes))
        return;
    index = table_add(&core->table, request->stream);
    if (index == RECORD_NONE) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "siltd keeps at most %d streams: `silt rm` one first", STREAMS_KNOWN_MAX);
        return;
    }
    record = &core->table.records[index];
    record->options = options;
    if (serve_wake(core, index) != 0) {
        table_drop(&core->table, index);
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "no room for another live stream of %zu bytes: remove one, try again when one "
                    "is idle, or start siltd with a larger --streams-max",
                    bytes);
        return;
    }
    out = new_request(core, INGEST_CREATE, client, request->id, index);
    snprintf(out->name, sizeof out->name, "%s", record->name);
    if (serve_push(core, out, sizeof *out) != 0) {
        reply_busy(core, client, request->id, "too many requests wait for the disk");
        record->forget = true;
        serve_leave(core, index);
    }
}

static void serve_open(struct core *core, const struct wire_client *client,
                       struct wire_request *request)
{
    uint32_t record = table_find(&core->table, request->stream);

    if (record == RECORD_NONE)
        open_new(core, client, request);
    else if ((record = wanted(core, client, request->id, request->stream)) != RECORD_NONE)
        open_existing(core, client, request, record);
}

static void serve_attach(struct core *core, const struct wire_client *client,
                         const struct wire_request *request)
{
    uint32_t record = wanted(core, client, request->id, request->stream);
    struct ingest_request *out;

    if (record == RECORD_NONE)
        return;
    out = new_request(core, INGEST_ATTACH, client, request->id, record);
    snprintf(out->producer, sizeof out->producer, "%s", request->producer);
    push_or_busy(core, out, sizeof *out);
}

static void serve_feed(struct core *core, const struct wire_client *client,
                       const struct wire_request *request)
{
    uint32_t record = wanted(core, client, request->id, request->stream);
    struct ingest_request *out;
    uint8_t *at;

    if (record == RECORD_NONE)
        return;
    out = new_request(core, INGEST_FEED, client, request->id, record);
    snprintf(out->producer, sizeof out->producer, "%s", request->producer);
    out->sequence = request->sequence;
    out->time_us = request->time_us ? request->time_us : clock_wall_us();
    out->item_count = request->item_count;
    at = (uint8_t *)(out + 1);
    for (uint32_t i = 0; i < request->item_count; i++) {
        const struct wire_item *item = &request->items[i];
        struct ingest_item head = {(uint32_t)item->kind, item->detail, item->bytes_count, 0};

        assert((size_t)(at - core->request) + sizeof head + item->bytes_count + 8 <=
               REQUEST_BYTES_MAX);
        memcpy(at, &head, sizeof head);
        if (item->bytes_count)
            memcpy(at + sizeof head, item->bytes, item->bytes_count);
        at += sizeof head + (item->bytes_count + 7u) / 8 * 8;
    }
    out->flight_bytes = (uint32_t)(at - core->request);
    push_or_busy(core, out, out->flight_bytes);
}

static void serve_remove(struct core *core, const struct wire_client *client,
                         const struct wire_request *request)
{
    uint32_t index = table_find(&core->table, request->stream);
    struct record *record = index == RECORD_NONE ? NULL : &core->table.records[index];
    struct ingest_request *out;

    if (!record || record->state == RECORD_REMOVING || !record->stream_id) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them", request->stream);
        return;
    }
    if (record->state == RECORD_LEAVING) {
        reply_busy(core, client, request->id, "the stream is changing places: try again");
        return;
    }
    out = new_request(core, INGEST_REMOVE, client, request->id, index);
    if (serve_push(core, out, sizeof *out) != 0) {
        reply_busy(core, client, request->id, "too many requests wait for the disk");
        return;
    }
    record->state = RECORD_REMOVING;
    for (uint32_t i = 0; i < core->plan.forks_max; i++)
        if (core->asks[i].stage != ASK_FREE && core->asks[i].record == index)
            atomic_store(&core->asks[i].cancelled, true);
    doorbell_ring(&core->compute_bell);
}

static void serve_stat(struct core *core, const struct wire_client *client,
                       const struct wire_request *request)
{
    uint32_t record;

    if (!request->stream[0]) {
        stats_process(core, client, request->id);
        return;
    }
    record = table_find(&core->table, request->stream);
    if (record == RECORD_NONE || core->table.records[record].state == RECORD_REMOVING)
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them", request->stream);
    else
        stats_stream(core, client, request->id, record);
}

static void dispatch(struct core *core, const struct wire_client *client,
                     struct wire_request *request)
{
    if (atomic_load(&core->stopping)) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__SHUTTING_DOWN,
                    "siltd is stopping: connect again when it is back");
        return;
    }
    switch (request->kind) {
    case REQUEST_OPEN:
        serve_open(core, client, request);
        break;
    case REQUEST_ATTACH:
        serve_attach(core, client, request);
        break;
    case REQUEST_FEED:
        serve_feed(core, client, request);
        break;
    case REQUEST_ASK:
        serve_ask(core, client, request);
        break;
    case REQUEST_CANCEL:
        serve_cancel(core, client, request);
        break;
    case REQUEST_STAT:
        serve_stat(core, client, request);
        break;
    case REQUEST_LIST:
        stats_list(core, client, request->id, request->stream);
        break;
    case REQUEST_REMOVE:
        serve_remove(core, client, request);
        break;
    }
}

void serve_frames(void *user)
{
    struct core *core = user;
    struct wire_client client;
    struct wire_request request;
    struct wire_fault fault;
    const uint8_t *bytes;
    size_t bytes_count;

    for (int i = 0; i < FRAMES_PER_ROUND; i++) {
        int result = gate_receive(&core->gate, &client, &bytes, &bytes_count);

        if (result == -EAGAIN)
            return;
        if (result == -EPROTO)
            continue;
        if (result == -EBADMSG)
            reply_error(core, &client, 0, SILT__V1__ERROR__CODE__INVALID,
                        "a request is one frame from a DEALER socket");
        else if (wire_parse(&core->bump, bytes, bytes_count, core->info.vocab_count, &request,
                            &fault) != 0)
            reply_error(core, &client, fault.id, fault.code, "%s", fault.message);
        else
            dispatch(core, &client, &request);
    }
}

/* ---- news of the journal thread ---- */

static void wait_for_room(struct core *core, const struct ingest_result *result)
{
    struct waiter *free = NULL;

    for (uint32_t i = 0; i < WAITERS_MAX; i++) {
        struct waiter *waiter = &core->waiters[i];

        if (waiter->used && waiter->record == result->record &&
            same_client(&waiter->client, &result->client) &&
            strcmp(waiter->producer, result->producer) == 0) {
            free = waiter;
            break;
        }
        if (!waiter->used && !free)
            free = waiter;
    }
    if (!free)
        return; /* it was told when to try again */
    free->used = true;
    free->record = result->record;
    free->request_id = result->request_id;
    free->sequence = result->sequence;
    free->bytes_acked = result->bytes_acked;
    free->client = result->client;
    memcpy(free->producer, result->producer, sizeof free->producer);
}

static void send_ack(struct core *core, const struct waiter *waiter, uint64_t credit)
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
    reply_send(core, &waiter->client, &reply);
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

static void send_result_error(struct core *core, const struct ingest_result *result)
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
    struct waiter once = {.record = result->record,
                          .request_id = result->request_id,
                          .sequence = result->sequence,
                          .bytes_acked = result->bytes_acked,
                          .client = result->client};

    if (result->credit_tokens == 0)
        wait_for_room(core, result);
    memcpy(once.producer, result->producer, sizeof once.producer);
    if (result->error)
        send_result_error(core, result);
    else
        send_ack(core, &once, result->credit_tokens);
}

static void create_result(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    if (!result->error) {
        record->stream_id = result->stream_id;
        if (result->created)
            record->created_us = result->created_us;
        send_opened(core, &result->client, result->request_id, record, result->created);
        return;
    }
    send_result_error(core, result);
    if (!record->stream_id && !record->flights) {
        record->forget = true;
        serve_leave(core, result->record);
    }
}

static void remove_result(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Removed removed = SILT__V1__REMOVED__INIT;

    if (result->error) {
        send_result_error(core, result);
    } else {
        removed.stream = record->name;
        reply.id = result->request_id;
        reply.body_case = SILT__V1__REPLY__BODY_REMOVED;
        reply.removed = &removed;
        reply_send(core, &result->client, &reply);
    }
    record->forget = !result->error;
    serve_leave(core, result->record);
}

static void load_result(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    if (!result->error)
        return;
    say(SAY_ERROR, "stream %s cannot be read from the journal", record->name);
    serve_leave(core, result->record);
}

static void journal_news(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    assert(record->flights > 0);
    record->flights--;
    land(core, &result->client, result->flight_bytes);
    switch (result->kind) {
    case INGEST_CREATE:
        create_result(core, result);
        break;
    case INGEST_LOAD:
        load_result(core, result);
        break;
    case INGEST_ATTACH:
        if (result->error)
            send_result_error(core, result);
        else
            send_attached(core, result);
        break;
    case INGEST_FEED:
        feed_result(core, result);
        break;
    case INGEST_KEEP:
        serve_ask_kept(core, &core->asks[result->ask], result);
        break;
    case INGEST_REMOVE:
        remove_result(core, result);
        break;
    case INGEST_UNLOAD:
        serve_leave(core, result->record);
        break;
    }
    if (record->state == RECORD_LEAVING)
        serve_leave(core, result->record);
}

/* ---- news of the compute thread ---- */

static void credit_news(struct core *core, uint32_t slot_index)
{
    struct slot *slot = &core->slots[slot_index];
    uint64_t lag = slot_lag(slot);
    uint64_t room = lag < core->config.lag_tokens_max ? core->config.lag_tokens_max - lag : 0;

    for (uint32_t i = 0; i < WAITERS_MAX; i++) {
        struct waiter *waiter = &core->waiters[i];

        if (!waiter->used || core->table.records[waiter->record].slot != slot_index)
            continue;
        send_ack(core, waiter, room);
        waiter->used = false;
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

void serve_tick(void *user)
{
    struct core *core = user;

    serve_ask_tick(core);
}
