/*
 * What is taken out for good: whole streams (rm) and ranges of one (forget).
 *
 * The stream and its past first leave their slots; with nobody at it, the journal thread
 * takes the text out and everything that was derived from it. Then a forgotten range's stream is
 * woken: it goes on from the last checkpoint before the range and reads the rest again.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/serve.h"

/* The past of the stream may be live for a question: it ends first. */
static bool is_live(const struct core *core, uint64_t stream_id)
{
    for (uint32_t i = 0; i < core->plan.streams_max; i++)
        if (core->slots[i].used &&
            core->table.records[core->slots[i].record].stream_id == stream_id)
            return true;
    return false;
}

/* Later, by the tick, where that cannot be now. */
static void send_to_journal(struct core *core, struct erase *erase)
{
    struct record *record = &core->table.records[erase->record];
    struct ingest_request request = {.kind = erase->kind,
                                     .slot = SLOT_NONE,
                                     .record = erase->record,
                                     .stream_id = record->stream_id,
                                     .from = erase->from,
                                     .to = erase->to,
                                     .client = erase->client,
                                     .request_id = erase->request_id,
                                     .change = erase->change,
                                     .flight_bytes = sizeof request};

    erase->sent =
        !is_live(core, record->stream_id) && serve_push(core, &request, sizeof request) == 0;
}

static struct erase *erase_of(struct core *core, uint32_t record)
{
    for (uint32_t i = 0; i < ERASES_MAX; i++)
        if (core->erases[i].used && core->erases[i].record == record)
            return &core->erases[i];
    return NULL;
}

bool serve_erase_left(struct core *core, uint32_t index)
{
    struct erase *erase = erase_of(core, index);

    if (!erase)
        return false;
    core->table.records[index].state = RECORD_ERASING;
    send_to_journal(core, erase);
    return true;
}

bool serve_erasing(struct core *core, uint32_t record)
{
    return erase_of(core, record) != NULL;
}

void serve_erase_tick(struct core *core)
{
    for (uint32_t i = 0; i < ERASES_MAX; i++) {
        struct erase *erase = &core->erases[i];

        if (erase->used && !erase->sent &&
            core->table.records[erase->record].state == RECORD_ERASING)
            send_to_journal(core, erase);
    }
}

/* Answers that may hold what is to go end here. */
static void cancel_asks(struct core *core, uint64_t stream_id)
{
    for (uint32_t i = 0; i < core->plan.forks_max; i++)
        if (core->asks[i].stage != ASK_FREE &&
            core->table.records[core->asks[i].record].stream_id == stream_id)
            atomic_store(&core->asks[i].cancelled, true);
    doorbell_ring(&core->compute_bell);
}

static int begin(struct core *core, struct erase *erase)
{
    struct record *record = &core->table.records[erase->record];
    struct ingest_request request = {.kind = INGEST_UNLOAD,
                                     .slot = record->slot,
                                     .record = erase->record,
                                     .flight_bytes = sizeof request};
    int result = 0;

    if (record->state == RECORD_LIVE)
        result = serve_push(core, &request, sizeof request);
    if (result)
        return result;
    erase->used = true;
    cancel_asks(core, record->stream_id);
    if (record->state == RECORD_LIVE)
        record->state = RECORD_LEAVING;
    else
        serve_erase_left(core, erase->record);
    return 0;
}

void serve_erase(struct core *core, const struct wire_client *client,
                 const struct wire_request *request)
{
    uint32_t index = table_find(&core->table, request->stream);
    const struct record *record = index == RECORD_NONE ? NULL : &core->table.records[index];
    struct erase *erase = NULL;

    if (!record || !record->stream_id) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them", request->stream);
        return;
    }
    for (uint32_t i = 0; i < ERASES_MAX && !erase; i++)
        if (!core->erases[i].used)
            erase = &core->erases[i];
    if (!erase || (record->state != RECORD_LIVE && record->state != RECORD_PARKED)) {
        reply_busy(core, client, request->id,
                   "the stream is changing places: send this again in a moment");
        return;
    }
    *erase = (struct erase){.kind = request->kind == REQUEST_REMOVE ? INGEST_REMOVE : INGEST_FORGET,
                            .record = index,
                            .client = *client,
                            .request_id = request->id,
                            .change = request->change,
                            .from = request->from,
                            .to = request->to};
    if (begin(core, erase) != 0)
        reply_busy(core, client, request->id,
                   "too many requests wait for the disk: send this again in a moment");
}

void serve_send_removed(struct core *core, const struct wire_client *client, uint64_t id,
                        const char *stream)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Removed removed = SILT__V1__REMOVED__INIT;

    removed.stream = (char *)(uintptr_t)stream;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_REMOVED;
    reply.removed = &removed;
    reply_send(core, client, &reply);
}

void serve_send_forgotten(struct core *core, const struct wire_client *client, uint64_t id,
                          const char *stream, uint64_t from, uint64_t to, uint64_t tokens)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Forgotten forgotten = SILT__V1__FORGOTTEN__INIT;

    forgotten.stream = (char *)(uintptr_t)stream;
    forgotten.from = from;
    forgotten.to = to;
    forgotten.tokens = tokens;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_FORGOTTEN;
    reply.forgotten = &forgotten;
    reply_send(core, client, &reply);
}

void serve_erased(struct core *core, const struct ingest_result *result)
{
    struct erase *erase = erase_of(core, result->record);
    struct record *record = &core->table.records[result->record];

    record->state = RECORD_PARKED;
    if (erase && result->error) {
        serve_result_error(core, result);
    } else if (result->kind == INGEST_REMOVE) {
        serve_send_removed(core, &result->client, result->request_id, record->name);
        table_drop(&core->table, result->record);
    } else if (erase) {
        record->tokens = result->tokens_acked;
        record->bytes_text = result->bytes_text;
        record->memory_hash = record->indexed_to = 0;
        say(SAY_INFO, "tokens %llu to %llu of stream %s are gone; what follows is read again",
            (unsigned long long)erase->from, (unsigned long long)erase->to, record->name);
        serve_send_forgotten(core, &result->client, result->request_id, record->name, erase->from,
                             erase->to, record->tokens);
    }
    if (erase)
        erase->used = false;
    if (record->state == RECORD_PARKED)
        (void)serve_wake(core, result->record); /* else when it is asked or fed */
}
