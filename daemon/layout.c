#include "daemon/layout.h"

enum { ALIGN = 64, RING_SLACK_TOKENS = 8192, CHUNK_TOKENS = 256 };

_Static_assert(RING_SLACK_TOKENS >= 4096 + PRETOKEN_BYTES_MAX + 8,
               "a slice of replayed text always fits an empty ring");

static uint64_t up(uint64_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

uint32_t layout_ring_tokens(uint32_t lag_tokens_max)
{
    return lag_tokens_max + RING_SLACK_TOKENS;
}

/* Chunks whose times a slot remembers: those of a full token ring and of the stream's own. Where an
 * adapter's chunks are shorter, some are forgotten. */
static uint32_t times_count(uint32_t lag_tokens_max)
{
    return layout_ring_tokens(lag_tokens_max) / CHUNK_TOKENS + STREAM_RING_MAX + 8;
}

uint64_t layout_ring_bytes(uint32_t lag_tokens_max)
{
    return up((uint64_t)layout_ring_tokens(lag_tokens_max) * sizeof(int32_t)) +
           up(times_count(lag_tokens_max) * sizeof(struct chunk_time));
}

uint64_t layout_record_bytes(uint32_t streams_max, uint32_t forks_max, uint32_t heads)
{
    return up(streams_max * sizeof(struct slot)) + streams_max * up(heads * sizeof(uint64_t)) +
           up(forks_max * sizeof(struct ask)) + up(streams_max * sizeof(struct extent)) +
           up(STREAMS_KNOWN_MAX * sizeof(struct record)) + up(TABLE_BUCKETS * sizeof(uint32_t)) +
           up(STREAMS_KNOWN_MAX * sizeof(uint32_t)) + up(WAITERS_MAX * sizeof(struct waiter)) +
           up(FLIGHTS_MAX * sizeof(struct flight)) + up(GRANTS_MAX * sizeof(struct grant)) +
           64 * ALIGN;
}

uint64_t layout_client_bytes(bool network)
{
    return network ? GATE_NETWORK_CLIENT_BYTES : GATE_CLIENT_BYTES;
}

uint64_t layout_queue_bytes(void)
{
    return JOURNAL_QUEUE_BYTES + COMPUTE_QUEUE_BYTES + LOOP_QUEUE_BYTES;
}

uint64_t layout_work_bytes(uint32_t lag_tokens_max, uint32_t vocab_count)
{
    return up((uint64_t)ingest_scratch_tokens(lag_tokens_max) * sizeof(int32_t)) +
           up((ITEMS_MAX + 1) * sizeof(struct item_place)) +
           up(BATCH_MAX * sizeof(struct ingest_result)) +
           up((uint64_t)vocab_count * sizeof(struct sample_candidate)) + UNPACK_BYTES_MAX +
           REPLY_BYTES_MAX + REQUEST_BYTES_MAX + up(STATS_BYTES) + up(HEADS_MAX * sizeof(uint64_t));
}

static void *take(struct core *core, size_t count, size_t each_bytes)
{
    return arena_take(&core->arena, count, each_bytes, ALIGN);
}

static void carve_streams(struct core *core, uint32_t heads)
{
    const struct plan *plan = &core->plan;
    uint32_t capacity = layout_ring_tokens(core->config.lag_tokens_max);

    core->pool.base = take(core, plan->pool_bytes, 1);
    core->pool.bytes = plan->pool_bytes;
    core->pool.list = take(core, plan->streams_max, sizeof *core->pool.list);
    core->pool.list_max = plan->streams_max;
    core->slots = take(core, plan->streams_max, sizeof *core->slots);
    for (uint32_t i = 0; i < plan->streams_max; i++) {
        struct slot *slot = &core->slots[i];

        slot->index = i;
        slot->ring.capacity = capacity;
        slot->ring.tokens = take(core, capacity, sizeof(int32_t));
        slot->times_count = times_count(core->config.lag_tokens_max);
        slot->times = take(core, slot->times_count, sizeof *slot->times);
        slot->chunk_tokens = core->info.chunk_tokens;
        arena_settle(&core->arena, slot->ring.tokens);
        slot->stat.entries = take(core, heads, sizeof(uint64_t));
        pthread_mutex_init(&slot->stat_lock, NULL);
    }
    core->asks = take(core, plan->forks_max, sizeof *core->asks);
    for (uint32_t i = 0; i < plan->forks_max; i++) {
        core->asks[i].index = i;
        core->asks[i].memory = take(core, plan->fork_bytes, 1);
        core->asks[i].memory_bytes = plan->fork_bytes;
        core->asks[i].table = plan->table_bytes ? take(core, plan->table_bytes, 1) : NULL;
    }
}

static void carve_queues(struct core *core)
{
    queue_init(&core->journal_queue, take(core, JOURNAL_QUEUE_BYTES, 1), JOURNAL_QUEUE_BYTES,
               &core->journal_bell);
    queue_init(&core->compute_queue, take(core, COMPUTE_QUEUE_BYTES, 1), COMPUTE_QUEUE_BYTES,
               &core->compute_bell);
    queue_init(&core->loop_queue, take(core, LOOP_QUEUE_BYTES, 1), LOOP_QUEUE_BYTES,
               &core->loop_bell);
}

static void carve_loop(struct core *core)
{
    struct record *records = take(core, STREAMS_KNOWN_MAX, sizeof *records);
    uint32_t *buckets = take(core, TABLE_BUCKETS, sizeof *buckets);
    uint32_t *order = take(core, STREAMS_KNOWN_MAX, sizeof *order);

    table_init(&core->table, records, buckets, order, STREAMS_KNOWN_MAX);
    core->waiters = take(core, WAITERS_MAX, sizeof *core->waiters);
    core->flights = take(core, FLIGHTS_MAX, sizeof *core->flights);
    core->keys.grants = take(core, GRANTS_MAX, sizeof *core->keys.grants);
    core->bump.bytes = take(core, UNPACK_BYTES_MAX, 1);
    core->bump.capacity = UNPACK_BYTES_MAX;
    core->reply = take(core, REPLY_BYTES_MAX, 1);
    core->request = take(core, REQUEST_BYTES_MAX, 1);
    core->stats = take(core, STATS_BYTES, 1);
}

void layout_carve(struct core *core, uint32_t heads)
{
    struct ingest *ingest = &core->ingest;

    carve_streams(core, heads);
    core->keeper.buffer_bytes = core->plan.state_bytes;
    core->keeper.buffer = take(core, core->plan.state_bytes, 1);
    core->keeper.restore = take(core, core->plan.state_bytes, 1);
    core->spill_memory = arena_take(&core->arena, core->plan.spill_bytes, 1, 4096);
    core->repair_memory = take(core, core->plan.repair_bytes, 1);
    core->search_memory = take(core, core->plan.search_bytes, 1);
    if (core->plan.meter_bytes)
        core->meter_memory = take(core, core->plan.meter_bytes, 1);
    carve_queues(core);
    carve_loop(core);
    ingest->scratch_max = ingest_scratch_tokens(core->config.lag_tokens_max);
    ingest->scratch = take(core, ingest->scratch_max, sizeof *ingest->scratch);
    ingest->places = take(core, ITEMS_MAX + 1, sizeof *ingest->places);
    ingest->results = take(core, BATCH_MAX, sizeof *ingest->results);
    core->sched.candidates = take(core, core->info.vocab_count, sizeof *core->sched.candidates);
    core->sched.entries = take(core, HEADS_MAX, sizeof *core->sched.entries);
    arena_settle(&core->arena, core->keeper.buffer);
}
