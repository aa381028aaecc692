#include "daemon/repair.h"

#include <errno.h>
#include <string.h>

#include "daemon/log.h"

size_t repair_bytes(size_t stream_bytes, uint32_t item_tokens_max)
{
    return (stream_bytes + 63) / 64 * 64 + reader_bytes(item_tokens_max);
}

int repair_open(struct repair *r, const char *folder, const struct tokenizer *tokenizer,
                uint32_t item_tokens_max, void *memory, size_t bytes)
{
    r->memory = memory;
    r->memory_bytes = (bytes - reader_bytes(item_tokens_max)) / 64 * 64;
    r->phase = REPAIR_IDLE;
    return reader_open(&r->reader, folder, tokenizer, item_tokens_max,
                       (char *)memory + r->memory_bytes);
}

void repair_close(struct repair *r)
{
    stream_close(&r->stream);
    reader_close(&r->reader);
}

static void end(struct repair *r)
{
    stream_close(&r->stream);
    spill_release(&r->fetch);
    r->phase = REPAIR_IDLE;
}

static bool give_up(struct repair *r, const char *why)
{
    say(SAY_WARN, "the cold segment of chunks %llu to %llu of stream %llu is not made again: %s",
        (unsigned long long)r->damage.chunk_from, (unsigned long long)r->damage.chunk_to,
        (unsigned long long)r->damage.stream_id, why);
    spill_mend_skip(r->spill);
    end(r);
    return true;
}

static const struct slot *find_slot(const struct repair *r)
{
    for (uint32_t i = 0; i < r->slot_count; i++) {
        const struct slot *slot = &r->slots[i];

        if (slot->stream && !atomic_load(&slot->past) &&
            atomic_load(&slot->stream_id) == r->damage.stream_id)
            return slot;
    }
    return NULL;
}

/* ---- where it begins ---- */

static int read_from(struct repair *r, uint64_t position)
{
    r->position = position;
    r->count = r->taken = 0;
    r->time = (struct chunk_time){0};
    r->phase = REPAIR_FEED;
    return reader_seek(r->reader, &r->place, r->damage.stream_id, position);
}

/* Summary and sinks: of the checkpoint nearest to a position, or as they are now. */
static int restore_near(struct repair *r, uint64_t position)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX], best = UINT64_MAX, nearest = 0;
    uint32_t count = r->keeper ? checkpoint_list(&r->keeper->at, r->damage.stream_id, tokens) : 0;
    const void *state;
    size_t bytes;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t away = tokens[i] > position ? tokens[i] - position : position - tokens[i];

        if (away >= best)
            continue;
        best = away;
        nearest = tokens[i];
    }
    if (best < UINT64_MAX &&
        checkpoint_read(&r->keeper->at, r->damage.stream_id, nearest, r->keeper->restore,
                        r->keeper->buffer_bytes, &bytes) == 0 &&
        stream_restore(r->stream, r->keeper->restore, bytes) == 0)
        return 0;
    state = stream_state(r->slot->stream, &bytes);
    return state ? stream_restore(r->stream, state, bytes) : -EIO;
}

/* Begins near the segment; -EINVAL: it is too near the start of the stream's text for that. */
static int begin_near(struct repair *r)
{
    uint64_t chunk = r->damage.chunk_from;
    bool warm = chunk >= REPAIR_WARM_CHUNKS &&
                (chunk - REPAIR_WARM_CHUNKS) * r->chunk_tokens >= r->text_from;
    int result = warm ? 0 : -EINVAL;

    if (!result)
        result = restore_near(r, chunk * r->chunk_tokens);
    if (!result)
        result = stream_seed(r->stream, chunk - REPAIR_WARM_CHUNKS);
    if (result)
        return result;
    r->approximate = true;
    r->seed_to = chunk - REPAIR_WARM_CHUNKS;
    r->seeded = r->seed_to - r->slot->options.ring_segments;
    r->phase = REPAIR_SEED;
    return 0;
}

static bool begin(struct repair *r)
{
    uint64_t first, checkpoint;
    size_t bytes;

    if (!spill_damaged(r->spill, &r->damage))
        return false;
    r->slot = find_slot(r);
    r->approximate = false;
    if (!r->slot) {
        spill_mend_skip(r->spill); /* when the stream is back it is found again */
        return true;
    }
    r->streams = r->slot->streams;
    first = r->damage.chunk_from * r->chunk_tokens;
    if (reader_first(r->reader, r->damage.stream_id, &r->text_from))
        return give_up(r, "its text cannot be read");
    bytes = stream_bytes(r->engine, &r->slot->options, NULL, 0);
    if (!bytes || bytes > r->memory_bytes)
        return give_up(r, "the stream's ring is larger than the plan's");
    if (stream_open(&r->stream, r->engine, &r->slot->options, r->memory, bytes))
        return give_up(r, "no stream can be opened for it");
    checkpoint = r->keeper ? keeper_restore(r->keeper, r->damage.stream_id, r->stream, first) : 0;
    if (first - checkpoint > r->tokens_max || checkpoint < r->text_from) {
        if (begin_near(r) == 0)
            return true;
        stream_close(&r->stream); /* restoring from afar has changed it */
        if (stream_open(&r->stream, r->engine, &r->slot->options, r->memory, bytes))
            return give_up(r, "no stream can be opened for it");
        checkpoint = 0;
    }
    if (checkpoint < r->text_from)
        return give_up(r, "its text was trimmed away");
    if (read_from(r, checkpoint))
        return give_up(r, "its text cannot be read");
    return true;
}

/* The segment that covers a chunk, or the last before it. */
static const struct cold_segment *covering(const struct cold_segment *list, uint32_t count,
                                           uint64_t token)
{
    const struct cold_segment *best = count ? &list[0] : NULL;

    for (uint32_t i = 0; i < count; i++)
        if (list[i].token_from <= token)
            best = &list[i];
    return best;
}

/* Some segments of the ring. */
static bool seed(struct repair *r)
{
    struct cold_segment list[STREAM_RECALL_MAX];
    uint64_t chunks[STREAM_RECALL_MAX];
    uint32_t count = 0, found;

    while (count < STREAM_RECALL_MAX && r->seeded + count < r->seed_to) {
        chunks[count] = r->seeded + count;
        count++;
    }
    if (!r->fetch)
        return spill_fetch(r->spill, r->damage.stream_id, chunks, count, &r->fetch) != -EAGAIN;
    if (!spill_fetched(r->fetch))
        return false;
    found = spill_segments(r->fetch, list);
    for (uint32_t i = 0; i < count; i++) {
        const struct cold_segment *from = covering(list, found, chunks[i] * r->chunk_tokens);

        if (!from || stream_seed_segment(r->stream, chunks[i], from->rows))
            return give_up(r, "the segments before it are unfit too");
    }
    spill_release(&r->fetch);
    r->seeded += count;
    if (r->seeded == r->seed_to && read_from(r, r->seed_to * r->chunk_tokens))
        return give_up(r, "its text cannot be read");
    return true;
}

/* ---- and goes on ---- */

/* More tokens, those before the position left out. False: there are none. */
static bool read_more(struct repair *r)
{
    while (r->taken == r->count) {
        uint64_t first = r->place.token;
        int n = reader_next(r->reader, &r->place, &r->tokens, &r->time_us);

        if (n <= 0)
            return false;
        r->count = (uint32_t)n;
        r->taken = r->position <= first             ? 0
                   : r->position - first < r->count ? (uint32_t)(r->position - first)
                                                    : r->count;
    }
    return true;
}

static void note_time(struct repair *r)
{
    if (!r->time.from_us || r->time_us < r->time.from_us)
        r->time.from_us = r->time_us;
    if (r->time_us > r->time.to_us)
        r->time.to_us = r->time_us;
}

static bool end_chunk(struct repair *r)
{
    struct segment_view segment;
    uint64_t chunk = r->position / r->chunk_tokens - 1;

    if (chunk >= r->damage.chunk_from) {
        if (!stream_newest_segment(r->stream, &segment))
            return false;
        spill_mend_add(r->spill, &segment, r->time.from_us, r->time.to_us);
    }
    if (chunk + 1 == r->damage.chunk_to)
        r->phase = REPAIR_END;
    r->time = (struct chunk_time){0};
    return true;
}

static bool feed(struct repair *r)
{
    uint32_t room = stream_block_room(r->stream), count;

    if (!read_more(r))
        return give_up(r, "its text cannot be read");
    count = r->count - r->taken;
    room = room < STREAM_BLOCK_TOKENS ? room : STREAM_BLOCK_TOKENS;
    count = count < room ? count : room;
    if (stream_feed(r->stream, r->tokens + r->taken, count))
        return give_up(r, "it cannot be computed");
    note_time(r);
    r->taken += count;
    r->position += count;
    if (r->position % r->chunk_tokens == 0 && !end_chunk(r))
        return give_up(r, "it cannot be computed");
    return true;
}

static bool finish(struct repair *r)
{
    int result = spill_mend_end(r->spill, r->approximate);

    if (result == -EAGAIN)
        return true; /* the disk is at work */
    if (!result)
        say(SAY_INFO, "the cold segment of chunks %llu to %llu of stream %llu is made again: %s",
            (unsigned long long)r->damage.chunk_from, (unsigned long long)r->damage.chunk_to,
            (unsigned long long)r->damage.stream_id,
            r->approximate ? "approximate, from its neighbours" : "repaired, as it was");
    end(r);
    return true;
}

bool repair_step(void *user)
{
    struct repair *r = user;

    if (r->phase == REPAIR_IDLE)
        return begin(r);
    if (find_slot(r) != r->slot || r->slot->streams != r->streams)
        return give_up(r, "its stream has left");
    switch (r->phase) {
    case REPAIR_SEED:
        return seed(r);
    case REPAIR_FEED:
        return feed(r);
    default:
        return finish(r);
    }
}
