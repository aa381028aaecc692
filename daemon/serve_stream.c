/* Which streams are live: slots are given on the first request and taken back when nobody holds
 * them.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/forget.h"
#include "daemon/log.h"
#include "daemon/serve.h"

static uint32_t free_slot(const struct core *core)
{
    for (uint32_t i = 0; i < core->plan.streams_max; i++)
        if (!core->slots[i].used)
            return i;
    return SLOT_NONE;
}

/* Orders to the compute thread: at most one for a slot and one for a question are ever under way,
 * and the queue has room for all of them. */
static void order(struct core *core, enum sched_kind kind, uint32_t index)
{
    const struct record *record = &core->table.records[core->slots[index].record];
    struct sched_request request = {kind, index, record->stream_id, record->tokens};
    struct queue_part part = {&request, sizeof request};
    int result = queue_push(&core->compute_queue, &part, 1);

    assert(result == 0 || result == -ESHUTDOWN);
    (void)result;
}
_Static_assert(COMPUTE_QUEUE_BYTES >= (2 * STREAMS_LIVE_MAX + FORKS_LIVE_MAX) * 64,
               "orders to the compute thread always fit");

static int load(struct core *core, uint32_t index)
{
    const struct record *record = &core->table.records[index];
    struct ingest_request request = {.kind = INGEST_LOAD,
                                     .slot = record->slot,
                                     .record = index,
                                     .stream_id = record->stream_id,
                                     .past = record->past,
                                     .tokens_to = record->tokens,
                                     .flight_bytes = sizeof request};

    return serve_push(core, &request, sizeof request);
}

static bool idle(const struct core *core, const struct record *record)
{
    return record->state == RECORD_LIVE && record->stream_id && !record->asks && !record->flights &&
           atomic_load(&core->slots[record->slot].ready) &&
           slot_lag(&core->slots[record->slot]) == 0;
}

/* Starts to park the stream that was idle longest. -EBUSY: one is on its way out; -EAGAIN: none is
 * idle. */
static int make_room(struct core *core)
{
    struct wire_client nobody = {0};
    struct record *oldest = NULL;
    struct ingest_request request = {.kind = INGEST_UNLOAD, .flight_bytes = sizeof request};

    for (uint32_t i = 0; i < core->plan.streams_max; i++) {
        struct record *record = &core->table.records[core->slots[i].record];

        if (!core->slots[i].used)
            continue;
        if (record->state != RECORD_LIVE)
            return -EBUSY;
        if (idle(core, record) && (!oldest || record->touched_us < oldest->touched_us))
            oldest = record;
    }
    if (!oldest)
        return -EAGAIN;
    request.client = nobody;
    request.slot = oldest->slot;
    request.record = (uint32_t)(oldest - core->table.records);
    if (serve_push(core, &request, sizeof request) == 0)
        oldest->state = RECORD_LEAVING;
    return -EBUSY;
}

/* A stream and its past may both be live: they have the same segments. */
static void detach(struct core *core, const struct slot *slot, uint64_t stream_id)
{
    for (uint32_t i = 0; i < core->plan.streams_max; i++) {
        const struct slot *other = &core->slots[i];

        if (other->used && other != slot && atomic_load(&other->stream_id) == stream_id)
            return;
    }
    cold_detach(core, stream_id);
}

static void give_slot(struct slot *slot, const struct record *record, uint32_t index, size_t bytes)
{
    slot->used = true;
    slot->memory_bytes = bytes;
    slot->options = record->options;
    slot->record = index;
    slot->name = record->name;
    slot->stat.failed = false;
    slot->stat.recall_hits = record->recall_hits;
    slot->stat.recalled_us = slot->stat.recalled_count = 0;
    atomic_store(&slot->past, record->past);
    atomic_store(&slot->unread, false);
    atomic_store(&slot->tokens_loaded, record->past ? UINT64_MAX : record->tokens);
    atomic_store(&slot->stream_id, record->stream_id);
    atomic_store(&slot->tokens_acked, record->tokens);
    atomic_store(&slot->indexed_to, 0);
    atomic_store(&slot->rebuild_to, 0);
    atomic_store(&slot->unindexed, false);
    atomic_store(&slot->ready, false);
    atomic_store(&slot->behind, false);
    atomic_store(&slot->credit_wanted, false);
    atomic_store(&slot->ring.head, 0);
    atomic_store(&slot->ring.tail, 0);
}

static void give_memory(struct core *core, struct slot *slot)
{
    extents_give(&core->pool, slot->memory);
    slot->memory = NULL;
    core->device_used -= stream_device_bytes(core->engine, &slot->options);
}

/* Nobody holds it any more. */
static void empty_slot(struct core *core, struct slot *slot, uint64_t stream_id)
{
    /* Else the search thread went on with it, and made what is forgotten next from a journal that
     * has yet to lose it. */
    atomic_store(&slot->stream_id, 0);
    detach(core, slot, stream_id);
    give_memory(core, slot);
    slot->used = false;
}

int serve_wake(struct core *core, uint32_t index)
{
    struct record *record = &core->table.records[index];
    struct slot *slot;
    char why[ERROR_BYTES_MAX];
    size_t bytes, on_device;
    uint32_t place;

    record->touched_us = clock_us();
    if (record->state == RECORD_LIVE)
        return 0;
    if (record->state != RECORD_PARKED)
        return -EBUSY;
    bytes = stream_bytes(core->engine, &record->options, why, sizeof why);
    on_device = stream_device_bytes(core->engine, &record->options);
    if (!bytes || bytes > core->pool.bytes || on_device > core->plan.device_pool_bytes)
        return -ENOSPC;
    place = free_slot(core);
    if (place == SLOT_NONE)
        return make_room(core);
    slot = &core->slots[place];
    if (on_device > core->plan.device_pool_bytes - core->device_used)
        return make_room(core);
    slot->memory = extents_take(&core->pool, bytes);
    if (!slot->memory)
        return make_room(core);
    core->device_used += on_device;
    give_slot(slot, record, index, bytes);
    record->slot = place;
    cold_attach(core, record->stream_id);
    if (record->stream_id && load(core, index) != 0) {
        empty_slot(core, slot, record->stream_id);
        record->slot = SLOT_NONE;
        return -EBUSY;
    }
    record->state = RECORD_LIVE;
    order(core, SCHED_OPEN, place);
    return 0;
}

static void drop_waiters(struct core *core, uint32_t record)
{
    for (uint32_t i = 0; i < WAITERS_MAX; i++)
        if (core->waiters[i].record == record)
            core->waiters[i].used = false;
}

static void left(struct core *core, uint32_t index)
{
    struct record *record = &core->table.records[index];

    drop_waiters(core, index);
    record->slot = SLOT_NONE;
    record->state = RECORD_PARKED;
    record->closing = false;
    if (record->forget)
        table_drop(&core->table, index);
    else
        serve_erase_left(core, index);
}

void serve_leave(struct core *core, uint32_t index)
{
    struct record *record = &core->table.records[index];

    if (record->state == RECORD_FREE)
        return;
    if (record->state == RECORD_LIVE)
        record->state = RECORD_LEAVING;
    if (record->asks || record->flights)
        return; /* the last of them calls again */
    if (record->slot == SLOT_NONE) {
        left(core, index);
    } else if (!record->closing) {
        record->closing = true;
        order(core, SCHED_CLOSE, record->slot);
    }
}

/* Of all its text, as the compute thread left it; 0: it had not come so far. */
static uint64_t last_hash(const struct slot *slot)
{
    const struct stream_stat *stat = &slot->stat.stream;
    bool is_whole = atomic_load(&slot->ready) && stat->tokens_computed + stat->tokens_pending ==
                                                     atomic_load(&slot->tokens_acked);

    return is_whole ? stat->memory_hash : 0;
}

void serve_slot_closed(struct core *core, uint32_t slot_index)
{
    struct slot *slot = &core->slots[slot_index];
    struct record *record = &core->table.records[slot->record];

    record->tokens = atomic_load(&slot->tokens_acked);
    record->bytes_text = atomic_load(&slot->bytes_text);
    record->memory_hash = last_hash(slot);
    record->indexed_to = atomic_load(&slot->indexed_to);
    record->recall_hits = slot->stat.recall_hits;
    empty_slot(core, slot, record->stream_id);
    left(core, slot->record);
}

static int add_record(void *user, const struct journal_stream *stream)
{
    struct core *core = user;
    uint32_t index = table_add(&core->table, stream->name);
    struct record *record;

    if (index == RECORD_NONE)
        return -ENOSPC;
    record = &core->table.records[index];
    record->stream_id = stream->id;
    record->options.dmc_ratio = stream->dmc_ratio;
    record->options.ring_segments = stream->ring_segments;
    record->created_us = stream->created_us;
    record->tokens = stream->tokens;
    record->bytes_text = stream->bytes_text;
    /* Where it cannot be read the stream says so itself when it is needed. */
    (void)forget_first(&core->ingest, stream->id, &record->first_position);
    return 0;
}

static bool known(void *user, uint64_t stream_id)
{
    const struct core *core = user;

    for (uint32_t i = 0; i < core->table.count; i++)
        if (core->table.records[core->table.order[i]].stream_id == stream_id)
            return true;
    return false;
}

int serve_start(struct core *core, char *error, size_t error_bytes)
{
    uint32_t woken = 0;
    int result = journal_stream_each(core->journal, add_record, core);

    if (!result)
        result = changes_load(&core->changes, core->journal);
    if (result) {
        snprintf(error, error_bytes, "the streams of the journal cannot be listed: %s",
                 result == -ENOSPC ? "there are more than this siltd keeps"
                                   : journal_error(core->journal));
        return result;
    }
    result = checkpoint_sweep(&core->keeper.at, core->config.rebuild ? NULL : known, core);
    if (result)
        say(SAY_WARN, "checkpoints that are no stream's any more stay: %s", strerror(-result));
    cold_sweep(core, known);
    for (uint32_t i = 0; i < core->table.count && woken < core->plan.streams_max; i++)
        woken += serve_wake(core, core->table.order[i]) == 0;
    if (core->table.count)
        say(SAY_INFO, "%u streams in the journal, %u of them live", core->table.count, woken);
    return 0;
}
