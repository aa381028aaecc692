/*
 * Streams come from the newest checkpoint that is whole, and go to one when they leave their slot.
 *
 * A checkpoint saves time alone: whatever it holds can be computed again from the journal, so a
 * failed one is said and passed over.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/sched.h"

enum {
    RATE_WINDOW_US = 2000000,
    SAVE_ALL_US_MAX = 3000000, /* siltd ends promptly, saved or not */
    SAVE_TOKENS_MIN = 256,     /* fewer than these are computed again sooner than read */
};

void sched_publish(struct sched *sched, struct slot *slot, uint32_t computed)
{
    struct slot_stat *stat = &slot->stat;
    struct stream_stat now;
    uint64_t time_us = clock_us(), chunks = 0;
    bool new_chunk;

    stream_stat(slot->stream, &now);
    slot->rate_tokens += computed;
    new_chunk = now.chunks != stat->stream.chunks;
    if (new_chunk)
        chunks = stream_entries(slot->stream, sched->entries);
    pthread_mutex_lock(&slot->stat_lock);
    stat->stream = now;
    if (new_chunk) {
        memcpy(stat->entries, sched->entries,
               sizeof *stat->entries * sched->info.layer_count * sched->info.kv_head_count);
        stat->entries_chunks = chunks;
    }
    if (time_us - slot->rate_us >= RATE_WINDOW_US) {
        stat->tokens_per_second =
            (double)slot->rate_tokens * 1e6 / (double)(time_us - slot->rate_us);
        slot->rate_us = time_us;
        slot->rate_tokens = 0;
    }
    pthread_mutex_unlock(&slot->stat_lock);
}

void sched_open(struct sched *sched, struct slot *slot, const struct sched_request *request)
{
    struct sched_message message = {.news = SCHED_OPENED, .index = slot->index};
    struct stream_stat stat;
    uint64_t tokens;

    assert(!slot->stream);
    slot->checkpoint = 0;
    slot->streams++;
    message.result =
        stream_open(&slot->stream, sched->engine, &slot->options, slot->memory, slot->memory_bytes);
    if (!message.result) {
        if (sched->keeper && request->stream_id && !atomic_load(&slot->past))
            keeper_disown(sched->keeper, request->stream_id, request->tokens_max);
        if (sched->keeper && request->stream_id)
            slot->checkpoint = keeper_restore(sched->keeper, request->stream_id, slot->stream,
                                              request->tokens_max);
        if (!atomic_load(&slot->past))
            cold_watch(slot);
        stream_stat(slot->stream, &stat);
        tokens = stat.tokens_computed + stat.tokens_pending;
        assert(tokens == slot->checkpoint);
        atomic_store(&slot->rebuild_to, request->tokens_max > tokens ? request->tokens_max : 0);
        atomic_store(&slot->ring.head, tokens);
        atomic_store(&slot->ring.tail, tokens);
        slot->rate_us = clock_us();
        slot->rate_tokens = 0;
        sched_publish(sched, slot, 0);
        atomic_store_explicit(&slot->ready, true, memory_order_release);
        doorbell_ring(sched->journal_bell);
    }
    sched_send(sched, &message, NULL);
}

static int save(struct sched *sched, struct slot *slot)
{
    uint64_t tokens = atomic_load(&slot->ring.head);
    size_t bytes = stream_state_bytes(sched->engine, &slot->options);
    int result = keeper_take(sched->keeper, slot, bytes, tokens);

    if (!result)
        slot->checkpoint = tokens;
    return result;
}

void sched_checkpoint(struct sched *sched, struct slot *slot)
{
    if (sched->keeper && !atomic_load(&slot->past) &&
        atomic_load(&slot->ring.head) - slot->checkpoint >= CHECKPOINT_TOKENS)
        save(sched, slot); /* the buffer taken: tried again after the next block */
}

static bool worth_saving(const struct sched *sched, const struct slot *slot)
{
    return sched->keeper && slot->stream && !slot->stat.failed && !atomic_load(&slot->past) &&
           atomic_load(&slot->ring.head) - slot->checkpoint >= SAVE_TOKENS_MIN;
}

void sched_save_all(struct sched *sched)
{
    uint64_t end_us = clock_us() + SAVE_ALL_US_MAX;

    for (uint32_t i = 0; i < sched->slot_count; i++)
        while (worth_saving(sched, &sched->slots[i]) && save(sched, &sched->slots[i]) == -EBUSY) {
            if (clock_us() >= end_us)
                return;
            doorbell_wait(sched->bell, 20);
        }
}

bool sched_close(struct sched *sched, struct slot *slot)
{
    struct sched_message message = {.news = SCHED_CLOSED, .index = slot->index};

    if (worth_saving(sched, slot) && save(sched, slot) == -EBUSY)
        return false;
    stream_close(&slot->stream);
    sched_send(sched, &message, NULL);
    return true;
}
