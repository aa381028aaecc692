/*
 * The far past of streams: cold segments and the text index, opened beside the engine.
 *
 * The loop thread is the spill's step thread. A segment leaves its ring on the compute thread,
 * which copies it and goes on; only a full staging area makes it wait, and the wait is measured.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/pages.h"
#include "daemon/serve.h"

enum {
    /* Segments on their way to the disk, the more the smaller they are: half of them make a step.
     */
    STAGING_SEGMENTS_MIN = 8,
    STAGING_SEGMENTS_MAX = 64,
    STAGING_BYTES = 1 << 20,
    FETCHES = 2,               /* questions that read segments at the same time */
    ATTACH_PATIENCE_MS = 1000, /* a stream's first segments may come before the loop knows its id */
    EPOCH = 1,
    KIND = 'A',      /* of segments, with their type added: another where their files are others */
    KIND_BYTES = 16, /* in segments/.kind: that, then how many a file holds */
    COLD_PERIOD_US = 100000, /* the folder is measured so often, */
    COLD_SHARE = 50,         /* and for one part in so many of the time at most */
    SAY_PERIOD_US = 60000000,
    TRIM_AGAIN_US = 5000000, /* a stream that can give nothing away is asked again */
    UNGRANTED_MAX = 20, /* measurements in which segments can make room before it is called full */
    /* What text, index and their logs may add meanwhile: the index of a text takes some five times
     * the text's own. */
    DISK_RESERVE_BYTES_MAX = 8 << 20,
    DISK_RESERVE_SHARE = 4,
    TEXT_SHARE = 12,        /* of the reserve, one part in so many is text's */
    INDEX_TOKEN_BYTES = 16, /* that the index takes for one, its log among them */
};

static uint32_t staging_segments(const struct core *core)
{
    size_t count = STAGING_BYTES / spill_record_bytes(core->engine, core->config.segments);

    if (count > STAGING_SEGMENTS_MAX)
        return STAGING_SEGMENTS_MAX;
    return count < STAGING_SEGMENTS_MIN ? STAGING_SEGMENTS_MIN : (uint32_t)count;
}

struct spill_options cold_options(const struct core *core, uint32_t streams_max)
{
    return (struct spill_options){.folder = core->config.data,
                                  .streams_max = streams_max,
                                  .staging_max = staging_segments(core),
                                  .fetches_max = FETCHES,
                                  .dtype = core->config.segments};
}

static void fetched(void *user)
{
    struct core *core = user;

    doorbell_ring(&core->compute_bell);
}

static void segment_leaves(void *user, const struct segment_view *segment)
{
    static const struct timespec pause = {.tv_nsec = 1000000};
    struct slot *slot = user;
    struct chunk_time time = {0};
    int result = -ENOENT;

    if (slot->times_count)
        time = slot->times[segment->number % slot->times_count];
    if (time.end != segment->number + 1)
        time = (struct chunk_time){0};

    for (int i = 0; i < ATTACH_PATIENCE_MS && result == -ENOENT; i++) {
        uint64_t stream_id = atomic_load(&slot->stream_id);

        if (i)
            nanosleep(&pause, NULL);
        if (!stream_id)
            return; /* being removed */
        result = spill_put_wait(slot->spill, stream_id, segment, time.from_us, time.to_us);
    }
    if (result)
        say(SAY_WARN, "a segment of stream %s is not kept: %s", slot->name, strerror(-result));
}

void cold_watch(struct slot *slot)
{
    struct stream_stat stat;

    if (!slot->spill)
        return;
    stream_on_segment_leave(slot->stream, segment_leaves, slot);
    stream_stat(slot->stream, &stat);
    spill_expect(slot->spill, atomic_load(&slot->stream_id), stat.segments_cold);
}

static void step(void *user)
{
    struct core *core = user;

    spill_step(core->spill, false);
}

static int open_spill(struct core *core, char *error, size_t error_bytes)
{
    struct spill_options options = cold_options(core, core->plan.streams_max);
    struct spill_stat stat;
    int result;

    if (!core->info.adapter_fingerprint || core->config.segments == SEGMENT_NONE)
        return 0;
    options.fetched = fetched;
    options.fetched_user = core;
    result = spill_open(&core->spill, core->engine, &options, core->spill_memory,
                        core->plan.spill_bytes, error, error_bytes);
    if (result)
        return result;
    spill_stat(core->spill, &stat);
    if (strcmp(stat.engine_name, "io_uring") == 0)
        say(SAY_INFO, "cold segments: io_uring, O_DIRECT");
    else
        say(SAY_WARN, "cold segments: plain reads and writes through the page cache: this kernel "
                      "or file system refuses io_uring with O_DIRECT");
    core->cold_next_us = 0;
    cold_tick(core);
    for (uint32_t i = 0; i < core->plan.streams_max; i++)
        core->slots[i].spill = core->spill;
    core->sched.spill = core->ingest.spill = core->spill;
    return loop_add_fd(&core->loop, spill_fd(core->spill), step, core);
}

/* What is found unfit is made again by the compute thread. */
static int open_repair(struct core *core, char *error, size_t error_bytes)
{
    struct repair *repair = &core->repair;
    int result;

    if (!core->spill)
        return 0;
    *repair = (struct repair){.engine = core->engine,
                              .spill = core->spill,
                              .keeper = &core->keeper,
                              .slots = core->slots,
                              .slot_count = core->plan.streams_max,
                              .chunk_tokens = core->info.chunk_tokens,
                              .tokens_max = REPAIR_TOKENS_MAX};
    result = repair_open(repair, core->config.data, engine_tokenizer(core->engine),
                         ingest_scratch_tokens(core->config.lag_tokens_max), core->repair_memory,
                         core->plan.repair_bytes);
    if (result) {
        snprintf(error, error_bytes, "the journal in %s cannot be read to repair segments",
                 core->config.data);
        return result;
    }
    core->sched.background = repair_step;
    core->sched.background_user = repair;
    return 0;
}

int cold_open(struct core *core, char *error, size_t error_bytes)
{
    struct search_options options = {.folder = core->config.data,
                                     .keys = core->plan.table_bytes > 0,
                                     .model_fingerprint = core->info.model_fingerprint,
                                     .by = core->config.find,
                                     .tokenizer = engine_tokenizer(core->engine),
                                     .engine = core->engine,
                                     .chunk_tokens = core->info.chunk_tokens,
                                     .item_tokens_max =
                                         ingest_scratch_tokens(core->config.lag_tokens_max),
                                     .slots = core->slots,
                                     .slot_count = core->plan.streams_max,
                                     .done_bell = &core->compute_bell,
                                     .stopping = &core->stopping};
    int result = open_spill(core, error, error_bytes);

    if (options.by == SEARCH_BY_KEYS && !options.keys) {
        snprintf(error, error_bytes,
                 "--find keys: the adapter has no recall keys; stream/retrofit/key.py adds them");
        return -ENOTSUP;
    }
    if (!options.keys)
        say(SAY_INFO, "the far past is found by words alone%s",
            options.by == SEARCH_BY_WORDS ? "" : ": the adapter has no recall keys");
    if (!result)
        result = search_open(&core->search, &options, core->search_memory, error, error_bytes);
    core->sched.search = core->ingest.search = core->search;
    return result ? result : open_repair(core, error, error_bytes);
}

/* Calls remove for each stream that has something in a folder of --data and is not known. */
static void sweep(struct core *core, const char *folder, bool (*known)(void *, uint64_t),
                  void (*remove)(struct core *, uint64_t))
{
    char path[PATH_BYTES_MAX + 16];
    struct dirent *entry;
    DIR *list;

    snprintf(path, sizeof path, "%s/%s", core->config.data, folder);
    list = opendir(path);
    while (list && (entry = readdir(list))) {
        char *end;
        uint64_t stream_id = strtoull(entry->d_name, &end, 16);

        if (end - entry->d_name == 16 && (*end == '\0' || strncmp(end, ".db", 3) == 0) &&
            !(known && known(core, stream_id)))
            remove(core, stream_id);
    }
    if (list)
        closedir(list);
}

static void remove_segments(struct core *core, uint64_t stream_id)
{
    if (core->spill)
        spill_erase(core->spill, stream_id, 0);
}

static void remove_words(struct core *core, uint64_t stream_id)
{
    search_forget(core->search, stream_id);
}

/* Segments of another kind than the ones that are there, or in files of another length, cannot lie
 * beside them: these go, and the text of their chunks is still found. True: they are of another. */
static bool kind_changed(const struct core *core)
{
    char path[PATH_BYTES_MAX + 24], kind[KIND_BYTES] = "", now[KIND_BYTES] = "";
    ssize_t bytes;
    int fd;
    bool changed;

    if (!core->spill)
        return false;
    snprintf(path, sizeof path, "%s/segments/.kind", core->config.data);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    snprintf(now, sizeof now, "%c%u", KIND + (int)core->config.segments,
             spill_file_records(core->engine, core->config.segments));
    bytes = read(fd, kind, sizeof kind);
    changed = bytes < 0 || memcmp(kind, now, sizeof now) != 0;
    if (changed && bytes > 0)
        say(SAY_WARN, "--segments is another than before, or their files are of another length: "
                      "the cold segments so far go and are made again as questions need them");
    if (pwrite(fd, now, sizeof now, 0) != (ssize_t)sizeof now)
        say(SAY_WARN, "%s cannot be written: %s", path, strerror(errno));
    close(fd);
    return changed;
}

void cold_sweep(struct core *core, bool (*known)(void *core, uint64_t stream_id))
{
    bool all = kind_changed(core) || core->config.rebuild;

    sweep(core, "segments", all ? NULL : known, remove_segments);
    sweep(core, "search", known, remove_words);
}

/* ---- the quota ---- */

/* Disk taken by a folder and what is in it, but for one entry. */
static uint64_t folder_bytes(int at, const char *name, const char *without, int depth)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    struct stat status;
    uint64_t sum = 0;

    while (folder && (entry = readdir(folder))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            (without && strcmp(entry->d_name, without) == 0) ||
            fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        sum += (uint64_t)status.st_blocks * 512;
        if (S_ISDIR(status.st_mode) && depth)
            sum += folder_bytes(fd, entry->d_name, NULL, depth - 1);
    }
    if (folder)
        closedir(folder);
    else if (fd >= 0)
        close(fd);
    return sum;
}

static uint64_t file_bytes(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}

void cold_stream_bytes(const struct core *core, uint64_t stream_id, uint64_t *segments,
                       uint64_t *checkpoints, uint64_t *index)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-keys"};
    struct spill_stream_stat cold;
    char path[PATH_BYTES_MAX + 64];

    snprintf(path, sizeof path, "%s/checkpoints/%016llx", core->config.data,
             (unsigned long long)stream_id);
    *checkpoints = folder_bytes(AT_FDCWD, path, NULL, 0);
    snprintf(path, sizeof path, "%s/segments/%016llx", core->config.data,
             (unsigned long long)stream_id);
    if (core->spill && spill_stream_stat(core->spill, stream_id, &cold) == 0)
        *segments = cold.bytes_disk;
    else
        *segments = folder_bytes(AT_FDCWD, path, NULL, 0); /* of a parked stream */
    *index = 0;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        snprintf(path, sizeof path, "%s/search/%016llx.db%s", core->config.data,
                 (unsigned long long)stream_id, ends[i]);
        *index += file_bytes(path);
    }
}

/* What the quota costs the past is said when it begins, then once in a while. */
static void say_costs(struct core *core, uint64_t now)
{
    struct spill_stat stat;

    if (!core->spill || now < core->cold_said_us + SAY_PERIOD_US)
        return;
    spill_stat(core->spill, &stat);
    if (stat.segments_merged == core->cold_merged && stat.segments_dropped == core->cold_dropped)
        return;
    say(SAY_INFO,
        "to stay below --disk, %llu cold segments were averaged with their neighbours and %llu "
        "dropped, the oldest first",
        (unsigned long long)(stat.segments_merged - core->cold_merged),
        (unsigned long long)(stat.segments_dropped - core->cold_dropped));
    core->cold_said_us = now;
    core->cold_merged = stat.segments_merged;
    core->cold_dropped = stat.segments_dropped;
}

/* Where a stream's text may be trimmed to at most: what is neither computed nor indexed yet
 * stays. */
static uint64_t trim_most(const struct core *core, const struct record *record)
{
    const struct slot *slot = record->slot == SLOT_NONE ? NULL : &core->slots[record->slot];
    uint64_t head = slot ? atomic_load(&slot->ring.head) : record->tokens;
    uint64_t indexed = slot ? atomic_load(&slot->indexed_to) : record->tokens;

    return head < indexed ? head : indexed;
}

/* Nobody waits for anything of the record but in order: it is there as long as a request for it is
 * in the journal's queue. */
static bool is_settled(const struct record *record)
{
    return (record->state == RECORD_LIVE || record->state == RECORD_PARKED) && !record->past &&
           record->stream_id;
}

/* The stream with the most text that may lose some now; to fold the log, any. NULL: none. */
static struct record *to_trim(struct core *core, uint64_t now)
{
    struct record *most = NULL;
    uint64_t most_bytes = 0;

    for (uint32_t i = 0; i < core->table.count; i++) {
        struct record *record = &core->table.records[core->table.order[i]];
        uint64_t bytes = record->slot == SLOT_NONE
                             ? record->bytes_text
                             : atomic_load(&core->slots[record->slot].bytes_text);

        if (!is_settled(record))
            continue;
        if (!core->log_folded)
            return record;
        if (record->trim_after_us <= now && bytes > most_bytes && trim_most(core, record)) {
            most = record;
            most_bytes = bytes;
        }
    }
    return most;
}

/* The journal's log is folded, which may be room enough; then the stream with the most text gives
 * the oldest of it away. */
static void trim_largest(struct core *core, uint64_t now)
{
    struct ingest_request request = {
        .kind = INGEST_TRIM, .slot = SLOT_NONE, .flight_bytes = sizeof request};
    struct record *record = core->trimming ? NULL : to_trim(core, now);

    if (!record)
        return;
    request.record = (uint32_t)(record - core->table.records);
    request.stream_id = record->stream_id;
    request.to = core->log_folded ? trim_most(core, record) : 0;
    core->trimming = serve_push(core, &request, sizeof request) == 0;
}

void cold_trimmed(struct core *core, const struct ingest_result *result)
{
    struct record *record = &core->table.records[result->record];

    core->trimming = false;
    core->cold_next_us = 0; /* look again at once */
    core->log_folded = true;
    if (!result->error && !result->first)
        return;
    if (result->error) {
        record->trim_after_us = clock_us() + TRIM_AGAIN_US;
        return;
    }
    say(SAY_WARN, "to stay below --disk, the text of stream %s before token %llu was trimmed away",
        record->name, (unsigned long long)result->first);
    record->first_position = result->first;
    if (record->slot == SLOT_NONE)
        record->bytes_text = result->bytes_text;
}

/* How much text may be taken before the folder is measured again: `share`, or what is left beside
 * all that is used, since segments have yet to go, and what the index is still to take. Measuring
 * alone would be too late on a busy machine. Returns how much. */
static uint64_t grant_text(struct core *core, uint64_t grown, uint64_t used, uint64_t index,
                           uint64_t share)
{
    uint64_t most = core->config.disk_bytes, room = used < most ? most - used : 0;
    uint64_t left = room > index ? room - index : 0, grant = left < share ? left : share;

    core->cold_ungranted = room ? 0 : core->cold_ungranted + 1;
    atomic_store(&core->disk_grant, grown + grant);
    return grant;
}

/* What the index will take for text that is acked and not in it yet. Of a stream that it has not
 * begun with since it came, nobody knows where it stands. */
static uint64_t index_to_come(const struct core *core, uint64_t most)
{
    uint64_t tokens = 0;

    for (uint32_t i = 0; core->search && i < core->plan.streams_max; i++) {
        const struct slot *slot = &core->slots[i];
        uint64_t indexed = atomic_load(&slot->indexed_to), acked = atomic_load(&slot->tokens_acked);

        if (indexed && indexed < acked && atomic_load(&slot->stream_id))
            tokens += acked - indexed;
    }
    return tokens < most / INDEX_TOKEN_BYTES ? tokens * INDEX_TOKEN_BYTES : most;
}

/* Everything under --data counts: what journal, index and checkpoints take, segments cannot have;
 * where these alone fill it, nothing more is acked. */
void cold_tick(struct core *core)
{
    uint64_t now = clock_us(), most = core->config.disk_bytes, others, used;
    uint64_t reserve = most / DISK_RESERVE_SHARE, grown = pages_grown(), index;
    uint64_t checkpoint = core->plan.state_bytes + CHECKPOINT_HEAD_BYTES;
    struct spill_stat cold = {0};
    bool full, quiet;

    if (core->spill)
        step(core); /* segments that wait for others to be written with */
    if (now < core->cold_next_us)
        return;
    quiet = most && keeper_room_close(&core->keeper);
    others = folder_bytes(AT_FDCWD, core->config.data, "segments", 2);
    atomic_store(&core->disk_others, others);
    core->cold_next_us = now + (clock_us() - now) * COLD_SHARE;
    if (core->cold_next_us < now + COLD_PERIOD_US)
        core->cold_next_us = now + COLD_PERIOD_US;
    if (!most)
        return;
    say_costs(core, now);
    if (reserve > DISK_RESERVE_BYTES_MAX)
        reserve = DISK_RESERVE_BYTES_MAX;
    if (core->spill)
        spill_stat(core->spill, &cold);
    index = index_to_come(core, reserve / 2);
    used = others + cold.bytes_disk + reserve / 2;
    used += index + grant_text(core, grown, used + checkpoint, index, reserve / TEXT_SHARE);
    if (quiet)
        keeper_room_open(&core->keeper, used < most ? most - used : 0);
    others += checkpoint; /* one on its way counts before it is there */
    full = others + reserve >= most || core->cold_ungranted >= UNGRANTED_MAX;
    if (core->spill)
        spill_limit(core->spill, full ? 1 : most - others - reserve);
    if (full && (core->config.when_full_trim || !core->log_folded))
        trim_largest(core, now);
    core->log_folded &= full;
    if (full != atomic_exchange(&core->disk_full, full))
        say(full ? SAY_ERROR : SAY_INFO,
            full ? "--disk is full: nothing is acked until streams are removed or it is raised"
                 : "--disk has room again");
}

void cold_close(struct core *core)
{
    repair_close(&core->repair);
    spill_close(&core->spill);
    search_close(&core->search);
}

void cold_attach(struct core *core, uint64_t stream_id)
{
    int result = core->spill && stream_id ? spill_attach(core->spill, stream_id, EPOCH) : 0;

    if (result && result != -EEXIST)
        say(SAY_WARN, "the cold segments of stream %llu cannot be used: %s",
            (unsigned long long)stream_id, strerror(-result));
}

void cold_detach(struct core *core, uint64_t stream_id)
{
    if (core->spill)
        spill_detach(core->spill, stream_id);
}
