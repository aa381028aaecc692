/*
 * The text state at any token is recovered from the journal alone: an item says how many bytes
 * waited before it, and the items before it end in those bytes.
 */
#include "daemon/replay.h"

#include <errno.h>
#include <string.h>

#include "daemon/forget.h"
#include "daemon/log.h"

enum { SLICE_BYTES = 4096, ITEMS_PER_STEP = 64 };

static uint32_t ring_room(const struct slot *slot)
{
    return slot->ring.capacity - ring_count(&slot->ring);
}

/* Puts tokens in the ring, without those that the stream has already (it came from a checkpoint).
 * The caller has seen that there is room. */
static void put_tokens(struct slot *slot, const int32_t *tokens, uint32_t count, uint64_t time_us)
{
    struct replay *replay = &slot->ingest.replay;
    uint64_t tail = atomic_load_explicit(&slot->ring.tail, memory_order_relaxed);
    uint64_t end = slot->ingest.past ? slot->ingest.tokens_to : UINT64_MAX;

    slot_note_time(slot, replay->token, replay->token + count, time_us);
    for (uint32_t i = 0; i < count; i++, replay->token++)
        if (replay->token >= tail && replay->token < end)
            slot->ring.tokens[tail++ % slot->ring.capacity] = tokens[i];
    atomic_store_explicit(&slot->ring.tail, tail, memory_order_release);
}

int replay_find(struct ingest *ingest, uint64_t stream_id, uint64_t items, uint64_t token,
                struct journal_item *item, uint64_t *ordinal)
{
    uint64_t low = 0, high = items, first;
    int result = forget_first(ingest, stream_id, &first);

    if (!result && token < first)
        high = 0; /* the gap, which the first item stands for */
    while (!result && high > low + 1) {
        uint64_t middle = low + (high - low) / 2;

        result = journal_item_get(ingest->journal, stream_id, middle, item);
        if (result)
            return result;
        if (item->token_from <= token)
            low = middle;
        else
            high = middle;
    }
    *ordinal = low;
    return result ? result : journal_item_get(ingest->journal, stream_id, low, item);
}

int replay_text_before(struct ingest *ingest, uint64_t stream_id, uint64_t ordinal,
                       uint32_t held_bytes, struct token_text *text)
{
    uint32_t missing = held_bytes;

    if (held_bytes > sizeof text->held)
        return -EBADMSG;
    text->held_bytes = held_bytes;
    while (missing) {
        struct journal_item item;
        uint32_t n;
        int result =
            ordinal ? journal_item_get(ingest->journal, stream_id, --ordinal, &item) : -EBADMSG;

        if (result)
            return result;
        if (item.item.kind != ITEM_TEXT)
            return -EBADMSG;
        n = item.item.bytes_count < missing ? item.item.bytes_count : missing;
        missing -= n;
        if (n)
            memcpy(text->held + missing, item.item.bytes + item.item.bytes_count - n, n);
    }
    return 0;
}

/* Times of the chunks that a restored stream holds in its ring: their segments leave it later. */
static int note_times(struct ingest *ingest, struct slot *slot, uint64_t token, uint64_t ordinal)
{
    const struct ingest_slot *in = &slot->ingest;
    uint64_t held = (uint64_t)(slot->options.ring_segments + 2) * slot->chunk_tokens, at, time_us;
    struct journal_item item;
    uint64_t from = token > held ? token - held : 0, first;
    int result = forget_first(ingest, in->stream_id, &first);

    if (!result)
        result = replay_find(ingest, in->stream_id, in->committed.items,
                             from < first ? first : from, &item, &at);

    for (time_us = item.time_us; !result && at < ordinal; time_us = item.time_us) {
        uint64_t begin = item.token_from;

        result = journal_item_get(ingest->journal, in->stream_id, ++at, &item);
        if (!result)
            slot_note_time(slot, begin, item.token_from, time_us);
    }
    return result;
}

static int start(struct ingest *ingest, struct slot *slot)
{
    struct ingest_slot *in = &slot->ingest;
    struct replay *replay = &in->replay;
    uint64_t token = atomic_load(&slot->ring.tail);
    struct journal_item item;
    int result;

    memset(replay, 0, sizeof *replay);
    replay->started = true;
    if (in->committed.items == 0 || token == 0)
        return 0;
    if (token > in->committed.tokens)
        return -EBADMSG;
    result =
        replay_find(ingest, in->stream_id, in->committed.items, token, &item, &replay->ordinal);
    if (result)
        return result;
    replay->token = item.token_from;
    result = note_times(ingest, slot, token, replay->ordinal);
    if (!result) /* its bytes have moved */
        result = journal_item_get(ingest->journal, in->stream_id, replay->ordinal, &item);
    if (result)
        return result;
    return replay_text_before(ingest, in->stream_id, replay->ordinal, item.held_before,
                              &replay->text);
}

/* One item, or a slice of a text item. 1: went on; 0: no room. */
static int replay_text(struct ingest *ingest, struct slot *slot, const struct journal_item *item)
{
    struct replay *replay = &slot->ingest.replay;
    size_t left = item->item.bytes_count - replay->offset;
    size_t n = left < SLICE_BYTES ? left : SLICE_BYTES;
    size_t count;

    if (token_count_max(&replay->text, n) > ring_room(slot))
        return 0;
    count = token_feed(ingest->tokenizer, &replay->text, item->item.bytes + replay->offset, n,
                       ingest->scratch);
    put_tokens(slot, ingest->scratch, (uint32_t)count, item->time_us);
    replay->offset += n;
    if (replay->offset == item->item.bytes_count) {
        replay->offset = 0;
        replay->ordinal = item->next;
    }
    return 1;
}

/* Goes on where it stopped for want of room: `offset` counts tokens here. */
static int replay_other(struct ingest *ingest, struct slot *slot, const struct journal_item *item)
{
    struct replay *replay = &slot->ingest.replay;
    struct token_text text = replay->text;
    uint32_t count = (uint32_t)token_flush(ingest->tokenizer, &text, ingest->scratch);
    uint32_t room = ring_room(slot), left;

    if (item->item.kind == ITEM_TURN) {
        int n = token_turn(ingest->tokenizer, wire_role_name(item->item.detail), item->item.bytes,
                           item->item.bytes_count, ingest->scratch + count,
                           ingest->scratch_max - count);
        if (n < 0)
            return n;
        count += (uint32_t)n;
    } else if (item->item.kind == ITEM_TOKENS) {
        uint32_t n = item->item.bytes_count / (uint32_t)sizeof(int32_t);

        if (n > ingest->scratch_max - count)
            return -ENOSPC;
        if (n)
            memcpy(ingest->scratch + count, item->item.bytes, item->item.bytes_count);
        count += n;
    }
    left = count - (uint32_t)replay->offset;
    if (left > room) {
        put_tokens(slot, ingest->scratch + replay->offset, room, item->time_us);
        replay->offset += room;
        return 0;
    }
    put_tokens(slot, ingest->scratch + replay->offset, left, item->time_us);
    replay->text = text;
    replay->offset = 0;
    replay->ordinal++;
    return 1;
}

/* Text that was trimmed away: where no checkpoint is behind it, its place is kept. */
static int replay_gap(struct ingest *ingest, struct slot *slot, const struct journal_item *item)
{
    struct replay *replay = &slot->ingest.replay;
    uint64_t count = 0;
    uint32_t room = ring_room(slot);

    if (item->item.bytes_count == sizeof count)
        memcpy(&count, item->item.bytes, sizeof count);
    if (!replay->offset && count > atomic_load(&slot->ring.tail))
        say(SAY_WARN,
            "stream %llu is read again with no checkpoint behind token %llu, before which its text "
            "was trimmed away: its memory holds nothing of that text",
            (unsigned long long)slot->ingest.stream_id, (unsigned long long)count);
    count -= replay->offset;
    room = room < ingest->scratch_max ? room : ingest->scratch_max;
    room = count < room ? (uint32_t)count : room;
    for (uint32_t i = 0; i < room; i++)
        ingest->scratch[i] = GAP_TOKEN;
    put_tokens(slot, ingest->scratch, room, 0);
    replay->offset += room;
    if (room < count)
        return 0;
    replay->offset = 0;
    replay->ordinal++;
    return 1;
}

static int replay_item(struct ingest *ingest, struct slot *slot)
{
    struct ingest_slot *in = &slot->ingest;
    struct journal_item item;
    int result = journal_item_get(ingest->journal, in->stream_id, in->replay.ordinal, &item);

    if (result)
        return result;
    if (item.item.kind == ITEM_GAP)
        return replay_gap(ingest, slot, &item);
    return item.item.kind == ITEM_TEXT ? replay_text(ingest, slot, &item)
                                       : replay_other(ingest, slot, &item);
}

static void go_live(struct slot *slot)
{
    struct ingest_slot *in = &slot->ingest;

    in->live = true;
    in->staged = atomic_load(&slot->ring.tail);
    atomic_store(&slot->behind, false);
}

/* Nobody waits for ever for what cannot be read. */
void replay_stop(struct ingest *ingest, struct slot *slot)
{
    slot->ingest.open = slot->ingest.live = false;
    atomic_store(&slot->unread, true);
    doorbell_ring(ingest->compute_bell);
}

static void fail_replay(struct ingest *ingest, struct slot *slot, int error)
{
    const struct ingest_slot *in = &slot->ingest;

    say(SAY_ERROR, "stream %llu: item %llu of its journal cannot be read: %s",
        (unsigned long long)in->stream_id, (unsigned long long)in->replay.ordinal,
        error == -EBADMSG  ? "it does not fit the items around it"
        : error == -ENOSPC ? "raise --lag-tokens-max to what it was"
                           : journal_error(ingest->journal));
    replay_stop(ingest, slot);
}

/* All of the journal, or of the past that is asked about, is in the ring. */
static bool at_end(const struct ingest_slot *in)
{
    return in->replay.ordinal == in->committed.items ||
           (in->past && in->replay.token >= in->tokens_to);
}

bool replay_step(struct ingest *ingest, struct slot *slot)
{
    struct ingest_slot *in = &slot->ingest;
    int result = 0;
    bool room = true;

    if (!atomic_load_explicit(&slot->ready, memory_order_acquire))
        return false;
    if (!in->replay.started)
        result = start(ingest, slot);
    for (int i = 0; !result && room && i < ITEMS_PER_STEP; i++) {
        if (at_end(in)) {
            go_live(slot);
            doorbell_ring(ingest->compute_bell);
            return false;
        }
        result = replay_item(ingest, slot);
        room = result != 0;
        result = result < 0 ? result : 0;
    }
    doorbell_ring(ingest->compute_bell);
    if (result) {
        fail_replay(ingest, slot, result);
        return false;
    }
    atomic_store(&slot->behind, !room);
    return room;
}
