/*
 * Other timelines of a stream: branches that go on by themselves, and its past for one question.
 *
 * A branch is a name for what the journal has by then; it costs no memory until it is used. The
 * past is a stream in a place of its own: the nearest checkpoint before the position, then the
 * journal up to it, block by block in turn with all other streams; it goes when its question ends.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/serve.h"

void serve_fork(struct core *core, const struct wire_client *client,
                const struct wire_request *request)
{
    uint32_t parent = table_find(&core->table, request->stream), index;
    const struct record *from = parent == RECORD_NONE ? NULL : &core->table.records[parent];
    struct ingest_request out = {
        .kind = INGEST_BRANCH, .slot = SLOT_NONE, .client = *client, .request_id = request->id};

    if (!from || !from->stream_id) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them", request->stream);
        return;
    }
    if (table_find(&core->table, request->branch) != RECORD_NONE) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__EXISTS,
                    "'%s' exists: give the branch another name, or remove that first",
                    request->branch);
        return;
    }
    index = table_add(&core->table, request->branch);
    if (index == RECORD_NONE) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "siltd keeps at most %d streams: `silt rm` one first", STREAMS_KNOWN_MAX);
        return;
    }
    out.record = index;
    out.change = request->change;
    out.stream_id = from->stream_id;
    out.flight_bytes = sizeof out;
    snprintf(out.name, sizeof out.name, "%s", request->branch);
    core->table.records[index].options = from->options;
    core->table.records[index].state = RECORD_COMING;
    if (serve_push(core, &out, sizeof out) != 0) {
        table_drop(&core->table, index);
        reply_busy(core, client, request->id, "too many requests wait for the disk");
    }
}

const char *serve_stream_name(const struct core *core, uint64_t stream_id)
{
    for (uint32_t i = 0; i < core->table.count; i++) {
        const struct record *record = &core->table.records[core->table.order[i]];

        if (record->stream_id == stream_id && !record->past)
            return record->name;
    }
    return ""; /* removed meanwhile */
}

void serve_send_forked(struct core *core, const struct wire_client *client, uint64_t id,
                       const char *stream, const char *branch, uint64_t tokens)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Forked forked = SILT__V1__FORKED__INIT;

    forked.stream = (char *)(uintptr_t)stream;
    forked.branch = (char *)(uintptr_t)branch;
    forked.tokens = tokens;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_FORKED;
    reply.forked = &forked;
    reply_send(core, client, &reply);
}

void serve_forked(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    record->stream_id = result->stream_id;
    record->tokens = result->tokens_acked;
    record->bytes_text = result->bytes_text;
    record->created_us = result->created_us;
    record->first_position = result->first;
    record->state = RECORD_PARKED;
    serve_send_forked(core, &result->client, result->request_id,
                      serve_stream_name(core, result->parent_id), record->name, record->tokens);
}

/* ---- the past ---- */

uint64_t serve_acked(const struct core *core, const struct record *record)
{
    return record->slot == SLOT_NONE ? record->tokens
                                     : atomic_load(&core->slots[record->slot].tokens_acked);
}

bool serve_is_present(const struct core *core, uint32_t index, uint64_t position)
{
    const struct record *record = &core->table.records[index];

    return record->state == RECORD_LIVE &&
           atomic_load(&core->slots[record->slot].ring.head) == position;
}

uint32_t serve_past(struct core *core, const struct wire_client *client,
                    const struct wire_request *request, uint32_t index)
{
    const struct record *now = &core->table.records[index];
    uint64_t acked = serve_acked(core, now), at = request->ask->at_position;
    struct record *past;
    char name[32];
    uint32_t place;

    if (at < now->first_position) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__INVALID,
                    "position %" PRIu64 " is not available: text before %" PRIu64
                    " was trimmed to stay below --disk",
                    at, now->first_position);
        return RECORD_NONE;
    }
    if (request->ask->keep || at > acked) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__INVALID,
                    at > acked ? "position %" PRIu64 " is not available: 0 to %" PRIu64 " are"
                               : "what is asked of the past, position %" PRIu64 " of %" PRIu64
                                 ", cannot be kept: ask without one of both",
                    at, acked);
        return RECORD_NONE;
    }
    /* No client's name begins with a dot. */
    snprintf(name, sizeof name, ".past-%" PRIu64, core->past_count++);
    place = now->stream_id ? table_add(&core->table, name) : RECORD_NONE;
    if (place != RECORD_NONE) {
        past = &core->table.records[place];
        past->stream_id = now->stream_id;
        past->options = now->options;
        past->tokens = at;
        past->past = past->forget = true;
        if (serve_wake(core, place) == 0)
            return place;
        table_drop(&core->table, place);
    }
    reply_busy(core, client, request->id,
               "no place is free for the stream as it was: try again when one is idle, or start "
               "siltd with a larger --streams-max");
    return RECORD_NONE;
}

void serve_past_end(struct core *core, uint32_t index)
{
    struct record *record = &core->table.records[index];
    struct ingest_request out = {
        .kind = INGEST_UNLOAD, .slot = record->slot, .record = index, .flight_bytes = sizeof out};

    if (record->past && !record->asks && record->state == RECORD_LIVE &&
        serve_push(core, &out, sizeof out) == 0)
        record->state = RECORD_LEAVING;
}

void serve_past_tick(struct core *core)
{
    for (uint32_t i = 0; i < core->plan.streams_max; i++)
        if (core->slots[i].used)
            serve_past_end(core, core->slots[i].record);
}
