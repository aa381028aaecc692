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

enum { FRAMES_PER_ROUND = 64 };

bool serve_same_client(const struct wire_client *a, const struct wire_client *b)
{
    return a->bytes == b->bytes && a->door == b->door && memcmp(a->id, b->id, a->bytes) == 0;
}

/* ---- what a client may have in the journal's queue ---- */

static struct flight *find_flight(struct core *core, const struct wire_client *client)
{
    struct flight *free = NULL;

    for (uint32_t i = 0; i < FLIGHTS_MAX; i++) {
        struct flight *flight = &core->flights[i];

        if (flight->count && serve_same_owner(&flight->client, client))
            return flight;
        if (!flight->count && !free)
            free = flight;
    }
    return free;
}

void serve_land(struct core *core, const struct wire_client *client, uint32_t bytes)
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
    changes_begin(&core->changes, request->change);
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

void serve_refuse_place(struct core *core, const struct wire_client *client, uint64_t id,
                        int result)
{
    if (result == -EBUSY)
        reply_busy(core, client, id, "the stream is changing places: send this again in a moment");
    else if (result == -EAGAIN)
        reply_error(core, client, id, SILT__V1__ERROR__CODE__BUSY,
                    "all %u places for live streams are at work: send this again, or start siltd "
                    "with a larger --streams-max",
                    core->plan.streams_max);
    else
        reply_error(core, client, id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "the stream alone is larger than all places for live streams together: start "
                    "siltd with a larger --streams-max");
}

/* The record of a stream that is there and awake, or RECORD_NONE and the client is told. */
static uint32_t wanted(struct core *core, const struct wire_client *client, uint64_t id,
                       const char *name)
{
    uint32_t record = table_find(&core->table, name);
    int result;

    if (record == RECORD_NONE) {
        reply_error(core, client, id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them, `silt open %s` makes it", name,
                    name);
        return RECORD_NONE;
    }
    result = serve_wake(core, record);
    if (!result)
        return record;
    serve_refuse_place(core, client, id, result);
    return RECORD_NONE;
}

/* What a stream gets that asks for nothing; written down when it is created. */
static uint32_t default_ratio(const struct core *core)
{
    for (uint32_t i = 0; i < core->info.ratio_count; i++)
        if (core->info.ratio[i] == STREAM_RATIO_DEFAULT)
            return STREAM_RATIO_DEFAULT;
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
    /* A fork copies the state, wherever it lies; and a checkpoint is one. */
    if (stream_state_bytes(core->engine, options) > core->plan.state_bytes) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "a question on a ring of %u segments does not fit the plan's forks: ask for "
                    "fewer with --ring",
                    request->ring_segments);
        return false;
    }
    return true;
}

/* The lowest ratio whose stream fits what is free of the plan; where none does, the highest: an
 * idle stream has to make room for it. */
static void choose_ratio(const struct core *core, struct wire_request *request)
{
    size_t room = extents_room(&core->pool);
    uint32_t best = 0, highest = 0;

    for (uint32_t i = 0; i < core->info.ratio_count; i++) {
        struct stream_options options = {core->info.ratio[i], request->ring_segments};
        char why[ERROR_BYTES_MAX];
        size_t bytes = stream_bytes(core->engine, &options, why, sizeof why);

        if (bytes && bytes <= room &&
            stream_device_bytes(core->engine, &options) <=
                core->plan.device_pool_bytes - core->device_used &&
            (!best || options.dmc_ratio < best))
            best = options.dmc_ratio;
        if (bytes && options.dmc_ratio > highest)
            highest = options.dmc_ratio;
    }
    request->dmc_ratio = best ? best : highest;
}

void serve_send_opened(struct core *core, const struct wire_client *client, uint64_t id,
                       const struct record *record, bool created)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Opened opened = SILT__V1__OPENED__INIT;
    const struct slot *slot = &core->slots[record->slot];

    opened.stream = (char *)(uintptr_t)record->name;
    opened.created = created;
    opened.dmc_ratio = record->options.dmc_ratio;
    opened.ring_segments = record->options.ring_segments;
    opened.bytes_plan = slot->memory_bytes + stream_device_bytes(core->engine, &slot->options);
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
        serve_send_opened(core, client, request->id, record,
                          changes_find(&core->changes, request->change) != NULL);
        return;
    }
    out = new_request(core, INGEST_CREATE, client, request->id, index);
    snprintf(out->name, sizeof out->name, "%s", record->name);
    out->change = request->change;
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
    int result;

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
    result = serve_wake(core, index);
    if (result) {
        table_drop(&core->table, index);
        serve_refuse_place(core, client, request->id, result);
        return;
    }
    out = new_request(core, INGEST_CREATE, client, request->id, index);
    snprintf(out->name, sizeof out->name, "%s", record->name);
    out->change = request->change;
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

static void serve_pins(struct core *core, const struct wire_client *client,
                       const struct wire_request *request)
{
    uint32_t record = wanted(core, client, request->id, request->stream);
    struct ingest_request *out;

    if (record == RECORD_NONE)
        return;
    out = new_request(core, INGEST_PIN, client, request->id, record);
    out->verb = (uint32_t)request->verb;
    out->from = request->from;
    out->to = request->to;
    out->change = request->change;
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

static void serve_stat(struct core *core, const struct wire_client *client,
                       const struct wire_request *request)
{
    uint32_t record;

    if (!request->stream[0]) {
        stats_process(core, client, request->id);
        return;
    }
    record = table_find(&core->table, request->stream);
    if (record == RECORD_NONE)
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them", request->stream);
    else
        stats_stream(core, client, request->id, record);
}

/* Whether the client is told what became of the request when it came before. */
static bool asked_again(struct core *core, const struct wire_client *client,
                        struct wire_request *request)
{
    const struct change *change = changes_find(&core->changes, request->change);

    if (!change)
        return false;
    if (!change->done) {
        reply_busy(core, client, request->id, "that is being done: send this again in a moment");
        return true;
    }
    if (request->kind == REQUEST_REMOVE)
        serve_send_removed(core, client, request->id, request->stream);
    else if (request->kind == REQUEST_FORK)
        serve_send_forked(core, client, request->id, request->stream, request->branch,
                          change->tokens);
    else if (request->kind == REQUEST_FORGET)
        serve_send_forgotten(core, client, request->id, request->stream, request->from, request->to,
                             change->tokens);
    else if (request->kind == REQUEST_PINS)
        request->verb = SILT__V1__PINS__VERB__LIST; /* which answers as the others do */
    return request->kind == REQUEST_REMOVE || request->kind == REQUEST_FORK ||
           request->kind == REQUEST_FORGET;
}

static void dispatch(struct core *core, const struct wire_client *client,
                     struct wire_request *request)
{
    if (atomic_load(&core->stopping)) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__SHUTTING_DOWN,
                    "siltd is stopping: connect again when it is back");
        return;
    }
    if (!serve_permitted(core, client, request))
        return;
    request->change = changes_key(request->change, client->door == DOOR_NETWORK ? client->key : "");
    if (asked_again(core, client, request))
        return;
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
    case REQUEST_FORGET:
        serve_erase(core, client, request);
        break;
    case REQUEST_FORK:
        serve_fork(core, client, request);
        break;
    case REQUEST_PINS:
        serve_pins(core, client, request);
        break;
    case REQUEST_KEYS:
        serve_keys(core, client, request);
        break;
    }
}

static void refuse_client(struct core *core, const struct wire_client *client, uint64_t id)
{
    char text[200];

    snprintf(text, sizeof text,
             "siltd serves %u clients at once and has as many%s: try again when one has left, or "
             "start it with a larger --clients-max",
             core->config.clients_max,
             client->door == DOOR_NETWORK ? ", or half of them by this client's key, or three "
                                            "quarters over the network"
                                          : "");
    reply_busy(core, client, id, text);
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
        else if (!core->gate.admitted)
            refuse_client(core, &client, request.id);
        else
            dispatch(core, &client, &request);
    }
}

void serve_tick(void *user)
{
    struct core *core = user;

    serve_owed_tick(core);
    serve_ask_tick(core);
    serve_past_tick(core);
    serve_erase_tick(core);
    cold_tick(core);
}
