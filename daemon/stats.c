/* Replies to Stat and List. What the compute thread published last is shown; nothing waits for it.
 */
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/serve.h"

enum { HEADS_SHOWN_MAX = (REPLY_BYTES_MAX - 2048) / 9 }; /* of 9 bytes each, beside all else */

static const char *const tier_names[TIER_COUNT] = {
    [TIER_SINKS] = "sinks",   [TIER_SUMMARY] = "summary", [TIER_RING] = "ring",
    [TIER_WINDOW] = "window", [TIER_PINS] = "pins",       [TIER_STATE] = "state",
};

/* What a stream's reply points to, kept until it is packed. */
struct stat_parts {
    Silt__V1__StreamStat stat;
    Silt__V1__Tier tiers[TIER_COUNT];
    Silt__V1__Tier *tier_list[TIER_COUNT];
    Silt__V1__LossMeter loss;
    Silt__V1__Pin pins[STREAM_PINS_MAX];
    Silt__V1__Pin *pin_list[STREAM_PINS_MAX];
    uint64_t recalled[STREAM_RECALL_MAX];
    char *degraded[8];
    char faults[240], rebuilding[80], lossy[120];
    double head_ratio[];
};

static struct stat_parts *parts_at(struct core *core, uint32_t index)
{
    return (struct stat_parts *)(void *)(core->stats + index * sizeof(struct stat_parts));
}
_Static_assert(STATS_BYTES >= LIST_PAGE_MAX * sizeof(struct stat_parts), "a page of streams fits");
_Static_assert(STATS_BYTES >= sizeof(struct stat_parts) + HEADS_MAX * sizeof(double),
               "a stream with all its heads fits");

/* Plan and tiers, and how many chunks stand for the text. */
static void fill_held(struct stat_parts *parts, const struct stream_stat *stat)
{
    parts->stat.bytes_plan = stat->bytes_plan;
    parts->stat.chunks = stat->chunks;
    parts->stat.segments_ring = stat->segments_ring;
    parts->stat.segments_cold = stat->segments_cold;
    for (int i = 0; i < TIER_COUNT; i++) {
        silt__v1__tier__init(&parts->tiers[i]);
        parts->tiers[i].name = (char *)(uintptr_t)tier_names[i];
        parts->tiers[i].bytes_plan = stat->tier_plan_bytes[i];
        parts->tiers[i].bytes_used = stat->tier_used_bytes[i];
        parts->tier_list[i] = &parts->tiers[i];
    }
    parts->stat.tiers = parts->tier_list;
    parts->stat.n_tiers = TIER_COUNT;
}

/* Of a stream that is not in its place; its shape tells as much. */
static void fill_shape(const struct core *core, const struct stream_options *options,
                       uint64_t tokens, struct stat_parts *parts)
{
    struct stream_stat shape;

    if (stream_stat_shape(core->engine, options, tokens, &shape) == 0)
        fill_held(parts, &shape);
}

static void fill_parked(const struct core *core, const struct record *record,
                        struct stat_parts *parts)
{
    Silt__V1__StreamStat *out = &parts->stat;

    out->parked = true;
    out->tokens_acked = out->tokens_computed = record->tokens;
    out->bytes_text = record->bytes_text;
    out->indexed_to = record->indexed_to;
    fill_shape(core, &record->options, record->tokens, parts);
    out->memory_hash = record->memory_hash;
    out->hash_chunk = record->memory_hash ? out->chunks : 0;
    out->recall_hits = record->recall_hits;
}

static void fill_heads(const struct core *core, const struct slot *slot, struct stat_parts *parts)
{
    uint32_t heads = core->info.layer_count * core->info.kv_head_count;
    const struct slot_stat *stat = &slot->stat;

    if (!stat->entries_chunks || heads > HEADS_SHOWN_MAX)
        return;
    for (uint32_t i = 0; i < heads; i++)
        parts->head_ratio[i] =
            stat->entries[i]
                ? (double)stat->entries_chunks * core->info.chunk_tokens / (double)stat->entries[i]
                : 0;
    parts->stat.head_ratio = parts->head_ratio;
    parts->stat.n_head_ratio = heads;
}

/* What holds. */
static size_t fill_pins(const struct slot *slot, Silt__V1__Pin *pins, Silt__V1__Pin **list)
{
    uint64_t head = atomic_load(&slot->ring.head);
    size_t count = 0;

    for (uint32_t i = 0; i < atomic_load(&slot->pins.count) && count < STREAM_PINS_MAX; i++) {
        const struct slot_pin *pin = &slot->pins.pin[i];

        if (atomic_load(&pin->until) != UINT64_MAX)
            continue;
        silt__v1__pin__init(&pins[count]);
        pins[count].from = pin->from;
        pins[count].to = pin->to;
        pins[count].held = pin->at < head;
        list[count] = &pins[count];
        count++;
    }
    return count;
}

void stats_pins(struct core *core, const struct wire_client *client, uint64_t id, uint32_t record)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__PinsReply pins = SILT__V1__PINS_REPLY__INIT;
    Silt__V1__Pin pin[STREAM_PINS_MAX], *list[STREAM_PINS_MAX];

    pins.stream = core->table.records[record].name;
    pins.pins = list;
    if (core->table.records[record].slot != SLOT_NONE)
        pins.n_pins = fill_pins(&core->slots[core->table.records[record].slot], pin, list);
    pins.tokens_max = core->info.pin_tokens_max;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_PINS;
    reply.pins = &pins;
    reply_send(core, client, &reply);
}

/* Tokens computed and hash are of one moment: the ring's head moves before the hash is there. */
static void fill_live(const struct core *core, struct slot *slot, struct stat_parts *parts,
                      bool with_heads)
{
    Silt__V1__StreamStat *out = &parts->stat;
    uint64_t rebuild_to = 0;

    fill_shape(core, &slot->options, 0, parts); /* until it is ready */
    out->indexed_to = atomic_load(&slot->indexed_to);
    pthread_mutex_lock(&slot->stat_lock);
    if (atomic_load(&slot->ready)) {
        const struct stream_stat *stat = &slot->stat.stream;

        rebuild_to = atomic_load(&slot->rebuild_to);
        out->tokens_computed = stat->tokens_computed + stat->tokens_pending;
        out->memory_hash = stat->memory_hash;
        out->hash_chunk = stat->hash_chunk;
        out->dmc_ratio = stat->ratio_realised;
        out->rows_mean = stat->rows_mean;
        out->tokens_per_second = slot->stat.tokens_per_second;
        fill_held(parts, stat);
        out->recalled_us = slot->stat.recalled_us;
        out->n_recalled = slot->stat.recalled_count;
        memcpy(parts->recalled, slot->stat.recalled, sizeof parts->recalled);
        out->recalled = parts->recalled;
        out->pins = parts->pin_list;
        out->n_pins = fill_pins(slot, parts->pins, parts->pin_list);
        for (size_t i = 0; i < out->n_pins; i++)
            out->pin_tokens += (uint32_t)(parts->pins[i].to - parts->pins[i].from);
        if (with_heads)
            fill_heads(core, slot, parts);
        else
            out->n_pins = 0; /* a page of streams has no room for them */
    }
    out->recall_hits = slot->stat.recall_hits;
    out->tokens_acked = atomic_load(&slot->tokens_acked);
    out->bytes_text = atomic_load(&slot->bytes_text);
    if (out->tokens_acked > out->tokens_computed)
        out->lag_tokens = out->tokens_acked - out->tokens_computed;
    else
        out->tokens_per_second = 0;
    if (out->tokens_computed < rebuild_to) {
        out->rebuilding_to = rebuild_to;
        snprintf(parts->rebuilding, sizeof parts->rebuilding, "rebuilding %llu/%llu",
                 (unsigned long long)out->tokens_computed, (unsigned long long)rebuild_to);
        parts->degraded[out->n_degraded++] = parts->rebuilding;
    }
    out->stopped = slot->stat.failed || atomic_load(&slot->unread);
    if (slot->stat.failed)
        parts->degraded[out->n_degraded++] = "not computed: see siltd's log";
    if (atomic_load(&slot->unread))
        parts->degraded[out->n_degraded++] = "its journal cannot be read: see siltd's log";
    if (atomic_load(&slot->unindexed))
        parts->degraded[out->n_degraded++] = "its text index cannot be written or read: what is "
                                             "far back is found in part";
    pthread_mutex_unlock(&slot->stat_lock);
}

/* What became of cold segments, and those that could not be used. */
static void fill_cold(struct core *core, uint64_t stream_id, struct stat_parts *parts)
{
    struct spill_stream_stat cold;
    size_t used = 0;

    if (!core->spill || spill_stream_stat(core->spill, stream_id, &cold) != 0)
        return;
    parts->stat.segments_merged = cold.segments_merged;
    parts->stat.segments_dropped = cold.segments_dropped;
    parts->stat.segments_repaired = cold.segments_repaired;
    parts->stat.segments_approximate = cold.segments_approximate;
    for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS && used < sizeof parts->faults; i++)
        if (cold.faults[i])
            used += (size_t)snprintf(
                parts->faults + used, sizeof parts->faults - used, "%s%llu %s",
                used ? ", " : "cold segments not used: ", (unsigned long long)cold.faults[i],
                segment_fault_name((enum segment_fault)i));
    if (cold.segments_lost && used < sizeof parts->faults)
        used += (size_t)snprintf(
            parts->faults + used, sizeof parts->faults - used, "%s%llu not written",
            used ? ", " : "cold segments not used: ", (unsigned long long)cold.segments_lost);
    if (used && cold.segments_repaired + cold.segments_approximate && used < sizeof parts->faults)
        snprintf(parts->faults + used, sizeof parts->faults - used,
                 "; %llu repaired, %llu approximate", (unsigned long long)cold.segments_repaired,
                 (unsigned long long)cold.segments_approximate);
    if (used)
        parts->degraded[parts->stat.n_degraded++] = parts->faults;
}

/* What its memory costs, as far as it has been measured. */
static void fill_loss(struct core *core, uint32_t index, struct stat_parts *parts)
{
    Silt__V1__LossMeter *out = &parts->loss;
    struct loss loss;

    if (!core->sched.meter ||
        !meter_read(core->sched.meter, index, core->table.records[index].stream_id, &loss))
        return;
    silt__v1__loss_meter__init(out);
    out->chunks = loss.chunks;
    out->with_memory = loss.with_memory / (double)loss.chunks;
    out->with_window = loss.with_window / (double)loss.chunks;
    out->difference = loss.difference;
    loss_interval(&loss, &out->low, &out->high);
    out->flagged = loss.flagged;
    parts->stat.loss = out;
    if (!loss.flagged)
        return;
    /* What it loses stands beside it, and changes: the reason is a label of the metrics. */
    snprintf(parts->lossy, sizeof parts->lossy,
             "memory surely loses more nats a token than --loss-flag %.3f",
             core->sched.meter->flag);
    parts->degraded[parts->stat.n_degraded++] = parts->lossy;
}

static void fill_stream(struct core *core, uint32_t index, struct stat_parts *parts,
                        bool with_heads)
{
    const struct record *record = &core->table.records[index];
    Silt__V1__StreamStat *out = &parts->stat;

    silt__v1__stream_stat__init(out);
    out->stream = (char *)(uintptr_t)record->name;
    out->dmc_ratio_asked = record->options.dmc_ratio;
    out->ring_segments = record->options.ring_segments;
    out->created_us = record->created_us;
    out->first_position = record->first_position;
    out->layers = core->info.layer_count;
    out->kv_heads = core->info.kv_head_count;
    out->numerics_epoch = journal_epoch(core->journal);
    out->pin_tokens_max = core->info.pin_tokens_max;
    out->degraded = parts->degraded;
    if (core->info.adapter_fingerprint == 0)
        parts->degraded[out->n_degraded++] = "compression is off: no adapter for this model";
    if (record->slot != SLOT_NONE)
        fill_live(core, &core->slots[record->slot], parts, with_heads);
    else
        fill_parked(core, record, parts);
    fill_cold(core, record->stream_id, parts);
    cold_stream_bytes(core, record->stream_id, &out->bytes_segments, &out->bytes_checkpoints,
                      &out->bytes_index);
    out->bytes_disk =
        out->bytes_text + out->bytes_segments + out->bytes_checkpoints + out->bytes_index;
    fill_loss(core, index, parts);
}

void stats_stream(struct core *core, const struct wire_client *client, uint64_t id, uint32_t record)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__StatReply stat = SILT__V1__STAT_REPLY__INIT;
    struct stat_parts *parts = parts_at(core, 0);

    fill_stream(core, record, parts, true);
    stat.stream = &parts->stat;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_STAT;
    reply.stat = &stat;
    reply_send(core, client, &reply);
}

void stats_list(struct core *core, const struct wire_client *client, uint64_t id, const char *after)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__ListReply list = SILT__V1__LIST_REPLY__INIT;
    Silt__V1__StreamStat *page[LIST_PAGE_MAX];
    uint32_t at = after[0] ? table_after(&core->table, after) : 0;

    list.streams = page;
    for (; at < core->table.count && list.n_streams < LIST_PAGE_MAX; at++) {
        uint32_t record = core->table.order[at];
        struct stat_parts *parts = parts_at(core, (uint32_t)list.n_streams);

        if (core->table.records[record].past || !core->table.records[record].stream_id ||
            !serve_may_see(core, client, core->table.records[record].name))
            continue;
        fill_stream(core, record, parts, false);
        page[list.n_streams++] = &parts->stat;
    }
    list.more = at < core->table.count;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_LIST;
    reply.list = &list;
    /* Streams with long names and every trouble at once: the rest come with the next page. */
    while (list.n_streams > 1 && silt__v1__reply__get_packed_size(&reply) > REPLY_BYTES_MAX) {
        list.n_streams--;
        list.more = true;
    }
    reply_send(core, client, &reply);
}

/* Clients refuse a whole reply for bytes in it that are no text. */
static char *adapter_path(const struct config *config)
{
    const char *path = config->adapter;
    bool valid = wire_utf8_valid((const uint8_t *)path, strlen(path));

    return (char *)(uintptr_t)(valid ? path : "(a path that is not UTF-8)");
}

static uint32_t forks_in_use(const struct core *core)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < core->plan.forks_max; i++)
        count += core->asks[i].stage != ASK_FREE;
    return count;
}

/* Bytes of a plan line in use now; lines that are not measured count whole. */
static uint64_t line_used(const struct core *core, const struct plan_line *line)
{
    if (strcmp(line->name, "GPU: streams") == 0)
        return core->device_used;
    if (strcmp(line->name, "GPU: forks (questions)") == 0)
        return forks_in_use(core) * line->each_bytes;
    if (strcmp(line->name, "streams") == 0)
        return core->pool.used;
    if (strcmp(line->name, "forks (questions)") == 0)
        return forks_in_use(core) * core->plan.fork_bytes;
    return line->bytes;
}

static void fill_process(struct core *core, Silt__V1__ProcessStat *out, Silt__V1__Tier *tiers,
                         Silt__V1__Tier **tier_list)
{
    for (uint32_t i = 0; i < core->plan.line_count; i++) {
        const struct plan_line *line = &core->plan.line[i];

        silt__v1__tier__init(&tiers[i]);
        tiers[i].name = (char *)(uintptr_t)line->name;
        tiers[i].bytes_plan = line->bytes;
        tiers[i].bytes_used = line_used(core, line);
        tiers[i].on_device = line->on_device;
        out->bytes_used += line->on_device ? 0 : tiers[i].bytes_used;
        tier_list[i] = &tiers[i];
    }
    out->tiers = tier_list;
    out->n_tiers = core->plan.line_count;
    out->bytes_plan = core->plan.bytes;
    out->bytes_disk = atomic_load(&core->disk_others);
    if (core->spill) {
        struct spill_stat cold;

        spill_stat(core->spill, &cold);
        out->bytes_disk += cold.bytes_disk;
        out->disk_us = cold.wait_us;
    }
    out->bytes_resident = plan_resident_bytes();
    out->streams = core->table.count;
    out->streams_max = core->plan.streams_max;
    out->forks = forks_in_use(core);
    out->forks_max = core->plan.forks_max;
    out->model = core->info.model_name;
    out->adapter = core->info.adapter_fingerprint ? adapter_path(&core->config) : "";
    out->kernels = (char *)(uintptr_t)core->info.kernels_name;
    out->threads = core->info.threads;
    out->device = core->config.device == DEVICE_CUDA ? "cuda" : "cpu";
    out->uptime_us = clock_us() - core->started_us;
    out->tokens_computed = atomic_load(&core->tokens_computed);
    out->version = SILT_VERSION;
    out->compute_us = atomic_load(&core->sched.compute_us);
    out->meter_us = atomic_load(&core->meter.meter_us);
    out->read_us = atomic_load(&core->sched.read_us);
    out->passes = atomic_load(&core->sched.passes);
    out->wait_us = atomic_load(&core->sched.wait_us);
    out->leave_us = atomic_load(&core->sched.leave_us);
    out->save_us = atomic_load(&core->sched.save_us);
    out->loss_flag = core->config.loss_flag;
}

void stats_process(struct core *core, const struct wire_client *client, uint64_t id)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__StatReply stat = SILT__V1__STAT_REPLY__INIT;
    Silt__V1__ProcessStat process = SILT__V1__PROCESS_STAT__INIT;
    Silt__V1__Tier tiers[PLAN_LINES_MAX];
    Silt__V1__Tier *tier_list[PLAN_LINES_MAX];
    char *degraded[4];

    fill_process(core, &process, tiers, tier_list);
    process.degraded = degraded;
    if (core->info.adapter_fingerprint == 0)
        degraded[process.n_degraded++] = "compression is off: no adapter for this model";
    if (atomic_load(&core->disk_failed))
        degraded[process.n_degraded++] = "the journal cannot be written: nothing is acked";
    if (atomic_load(&core->disk_full))
        degraded[process.n_degraded++] = "--disk is full: nothing is acked";
    if (atomic_load(&core->keeper.failed))
        degraded[process.n_degraded++] = "checkpoints cannot be written: recovery takes longer";
    stat.process = &process;
    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_STAT;
    reply.stat = &stat;
    reply_send(core, client, &reply);
}
