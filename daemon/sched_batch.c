/*
 * On a device: a round computes every question's next slice in one pass, then blocks of all streams
 * that have some in another. See sched.h for the bound between them.
 */
#include <assert.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/sched.h"

enum { STREAMS_PASS_MAX = 1024, ASKS_PASS_MAX = 256 };

/* Streams of one pass and the tokens of each, which lie in the slots' rings. */
struct feed {
    struct stream_work work[STREAMS_PASS_MAX];
    struct slot *slot[STREAMS_PASS_MAX];
    uint32_t count;
};

/* At most `share` tokens, to a block's end and within the chunk: pins are applied between chunks,
 * and one pass computes no more of a stream. */
static uint32_t turn_tokens(const struct sched *sched, const struct slot *slot, uint32_t share)
{
    uint64_t head = atomic_load_explicit(&slot->ring.head, memory_order_relaxed);
    uint32_t chunk = sched->info.chunk_tokens, count = ring_count(&slot->ring);
    uint32_t to_end = chunk - (uint32_t)(head % chunk);
    uint32_t to_wrap = slot->ring.capacity - (uint32_t)(head % slot->ring.capacity);
    uint32_t most = stream_block_room(slot->stream) + share - STREAM_BLOCK_TOKENS;

    count = count < most ? count : most;
    count = count < to_end ? count : to_end;
    return count < to_wrap ? count : to_wrap;
}

static bool has_turn(const struct slot *slot)
{
    return slot->stream && !slot->closing && !slot->stat.failed && ring_count(&slot->ring);
}

/* The meter's stream, where it is to be scored, goes alone, a block. */
static bool goes_alone(struct sched *sched, struct slot *slot)
{
    return sched->meter && meter_alone(sched->meter, slot) && sched_feed_block(sched, slot);
}

/* A slot's next tokens, with what is pinned between them. */
static void add_work(const struct sched *sched, struct feed *feed, struct slot *slot,
                     uint32_t count)
{
    uint64_t head = atomic_load_explicit(&slot->ring.head, memory_order_relaxed);
    struct stream_work *work = &feed->work[feed->count];

    work->stream = slot->stream;
    work->tokens = slot->ring.tokens + head % slot->ring.capacity;
    work->count = count;
    work->result = sched->info.pin_tokens_max && head % sched->info.chunk_tokens == 0
                       ? pins_apply(slot, head)
                       : 0;
    feed->slot[feed->count++] = slot;
}

/* A stream's memory is read once for all of its tokens in a pass: where not all streams can have a
 * chunk, those whose turn it is have one, and the others in the passes that follow. True: one was
 * computed alone. */
static bool gather(struct sched *sched, struct feed *feed, uint32_t tokens_max)
{
    uint32_t active = 0, share, left = tokens_max, from = sched->slot_next;
    uint32_t chunk = sched->info.chunk_tokens < tokens_max ? sched->info.chunk_tokens : tokens_max;
    bool alone = false;

    for (uint32_t i = 0; i < sched->slot_count; i++)
        active += has_turn(&sched->slots[i]);
    share = active ? tokens_max / active / STREAM_BLOCK_TOKENS * STREAM_BLOCK_TOKENS : 0;
    share = share > chunk ? share : chunk;
    for (uint32_t i = 0; i < sched->slot_count && feed->count < STREAMS_PASS_MAX; i++) {
        struct slot *slot = &sched->slots[(from + i) % sched->slot_count];
        uint32_t count;

        sched_offer_room(sched, slot);
        if (!has_turn(slot))
            continue;
        if (goes_alone(sched, slot)) {
            alone = true;
            continue;
        }
        count = turn_tokens(sched, slot, share);
        if (count > left)
            break;
        left -= count;
        add_work(sched, feed, slot, count);
        sched->slot_next = (slot->index + 1) % sched->slot_count;
    }
    return alone;
}

/* Streams whose pins could not be applied are not fed. */
static void compute(struct feed *feed)
{
    uint32_t fine = 0;

    for (uint32_t i = 0; i < feed->count; i++) {
        struct stream_work work = feed->work[i];
        struct slot *slot = feed->slot[i];

        if (work.result)
            continue;
        feed->work[i] = feed->work[fine];
        feed->slot[i] = feed->slot[fine];
        feed->work[fine] = work;
        feed->slot[fine++] = slot;
    }
    if (fine)
        (void)streams_feed_ahead(feed->work, fine); /* each work has its result */
}

/* What was computed is told, and that it was. */
static void publish(struct sched *sched, const struct feed *feed)
{
    for (uint32_t i = 0; i < feed->count && !sched_device_failed(sched); i++) {
        const struct stream_work *work = &feed->work[i];

        if (work->result) {
            sched_fail_stream(feed->slot[i], work->result);
            continue;
        }
        if (sched->meter)
            meter_collect(sched->meter, feed->slot[i], work->tokens, work->count);
        sched_computed(sched, feed->slot[i], work->count);
    }
}

bool sched_feed_batch(struct sched *sched, bool asked)
{
    uint32_t share = asked ? SCHED_ASKED_SHARE : 1;
    uint64_t start = clock_us(), read;
    struct feed feed;
    bool alone;

    feed.count = 0;
    alone = gather(sched, &feed, sched->info.batch_tokens / share);
    if (!feed.count) {
        streams_give(sched->engine);
        return alone;
    }
    read = clock_us();
    compute(&feed);
    sched_note_read(sched, read);
    if (sched->meter)
        meter_note_pass(sched->meter, clock_us() - start);
    publish(sched, &feed);
    return true;
}

bool sched_ask_batch(struct sched *sched)
{
    struct fork_work work[ASKS_PASS_MAX];
    struct ask *asks[ASKS_PASS_MAX];
    uint32_t count = 0, from = sched->ask_next;
    bool worked = false;

    for (uint32_t i = 0; i < sched->ask_count && count < ASKS_PASS_MAX; i++) {
        struct ask *ask = &sched->asks[(from + i) % sched->ask_count];

        if (ask->phase == PHASE_IDLE || !ask_step(sched, ask))
            continue;
        worked = true;
        sched->ask_next = (ask->index + 1) % sched->ask_count;
        if (!ask->want_count)
            continue;
        work[count] =
            (struct fork_work){.fork = ask->fork, .tokens = ask->want, .count = ask->want_count};
        asks[count++] = ask;
    }
    if (count)
        (void)forks_feed(work, count);
    for (uint32_t i = 0; i < count; i++)
        ask_fed(sched, asks[i], work[i].result);
    (void)sched_device_failed(sched);
    return worked;
}
