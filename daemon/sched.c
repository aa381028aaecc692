/* Round robin over streams and questions; see sched.h for the bound between them. */
#include "daemon/sched.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "daemon/clock.h"
#include "daemon/log.h"

void sched_send(struct sched *sched, const struct sched_message *message, const void *text)
{
    static const uint64_t head = LOOP_SCHED;
    struct queue_part parts[] = {
        {&head, sizeof head}, {message, sizeof *message}, {text, message->bytes_count}};

    queue_push_wait(sched->loop, parts, 3);
}

/* ---- streams ---- */

/* A stream that cannot be computed stops; its journal goes on. It never happens with good input:
 * token ids are checked when they come in. */
void sched_fail_stream(struct slot *slot, int error)
{
    say(SAY_ERROR, "stream %s cannot be computed (%s): it stops here, its journal goes on; %s",
        slot->name, strerror(-error),
        error == -ENOSPC ? "its pins hold more tokens than --pin-tokens-max: start siltd with as "
                           "many as before"
                         : "restart siltd to compute it again");
    pthread_mutex_lock(&slot->stat_lock);
    slot->stat.failed = true;
    pthread_mutex_unlock(&slot->stat_lock);
}

bool sched_device_failed(struct sched *sched)
{
    const char *why = engine_failure(sched->engine);

    if (why && !sched->failed)
        say(SAY_ERROR,
            "the device has failed (%s): siltd ends; what was acked is in its journal, and streams "
            "go on from their newest checkpoints: start it again, with --device cpu if the device "
            "stays away",
            why);
    sched->failed = sched->failed || why;
    return sched->failed;
}

/* Tells the other threads what the tokens just taken make possible. */
void sched_offer_room(struct sched *sched, struct slot *slot)
{
    struct sched_message message = {.news = SCHED_CREDIT, .index = slot->index};

    if (atomic_load(&slot->behind) && ring_count(&slot->ring) <= slot->ring.capacity / 2)
        doorbell_ring(sched->journal_bell);
    if (atomic_load(&slot->credit_wanted) && slot_lag(slot) <= sched->lag_tokens_max / 2) {
        atomic_store(&slot->credit_wanted, false);
        sched_send(sched, &message, NULL);
    }
}

void sched_note_read(struct sched *sched, uint64_t start_us)
{
    struct engine_times times;

    engine_times(sched->engine, &times);
    atomic_fetch_add(&sched->read_us, clock_us() - start_us);
    atomic_fetch_add(&sched->passes, 1);
    atomic_store(&sched->wait_us, times.wait_us);
    atomic_store(&sched->leave_us, times.leave_us);
}

void sched_computed(struct sched *sched, struct slot *slot, uint32_t count)
{
    uint64_t head = atomic_load_explicit(&slot->ring.head, memory_order_relaxed);
    uint64_t start = clock_us();

    atomic_store_explicit(&slot->ring.head, head + count, memory_order_release);
    atomic_fetch_add(sched->tokens_computed, count);
    sched_publish(sched, slot, count);
    sched_checkpoint(sched, slot);
    sched_offer_room(sched, slot);
    atomic_fetch_add(&sched->save_us, clock_us() - start);
}

/* A pass of two blocks is faster than two of one; while questions wait, slices stay short. */
static uint32_t room_of(const struct sched *sched, const struct slot *slot)
{
    for (uint32_t i = 0; i < sched->ask_count; i++)
        if (sched->asks[i].phase != PHASE_IDLE)
            return stream_block_room(slot->stream);
    return stream_pass_room(slot->stream);
}

bool sched_feed_block(struct sched *sched, struct slot *slot)
{
    uint64_t head = atomic_load_explicit(&slot->ring.head, memory_order_relaxed);
    uint32_t count = ring_count(&slot->ring), room, first;
    int32_t block[STREAM_PASS_TOKENS];
    uint64_t start;
    int result;

    sched_offer_room(sched, slot);
    if (!count || slot->stat.failed)
        return false;
    room = room_of(sched, slot);
    if (room > STREAM_PASS_TOKENS)
        room = STREAM_PASS_TOKENS;
    count = count < room ? count : room;
    first = (uint32_t)(head % slot->ring.capacity);
    for (uint32_t i = 0; i < count; i++)
        block[i] = slot->ring.tokens[(first + i) % slot->ring.capacity];
    result = sched->info.pin_tokens_max && head % sched->info.chunk_tokens == 0
                 ? pins_apply(slot, head)
                 : 0;
    start = clock_us();
    if (!result)
        result = sched->meter ? meter_feed(sched->meter, slot, block, count)
                              : stream_feed(slot->stream, block, count);
    sched_note_read(sched, start);
    if (result) {
        if (!sched_device_failed(sched))
            sched_fail_stream(slot, result);
        return false;
    }
    sched_computed(sched, slot, count);
    return true;
}

/* One pass of the next stream that has tokens. */
static bool feed_next(struct sched *sched)
{
    for (uint32_t i = 0; i < sched->slot_count; i++) {
        struct slot *slot = &sched->slots[(sched->slot_next + i) % sched->slot_count];

        if (slot->stream && !slot->closing && sched_feed_block(sched, slot)) {
            sched->slot_next = (slot->index + 1) % sched->slot_count;
            return true;
        }
    }
    return false;
}

/* ---- questions ---- */

static bool ask_next(struct sched *sched)
{
    for (uint32_t i = 0; i < sched->ask_count; i++) {
        struct ask *ask = &sched->asks[(sched->ask_next + i) % sched->ask_count];

        if (ask->phase != PHASE_IDLE && ask_step(sched, ask)) {
            if (ask->want_count)
                ask_fed(sched, ask, fork_feed(ask->fork, ask->want, ask->want_count));
            sched->ask_next = (ask->index + 1) % sched->ask_count;
            return true;
        }
    }
    return false;
}

static void take_messages(struct sched *sched)
{
    const struct sched_request *next;
    size_t bytes_count;

    while ((next = queue_front(sched->inbox, &bytes_count))) {
        struct sched_request request = *next;

        assert(bytes_count == sizeof request);
        queue_pop(sched->inbox);
        if (request.kind == SCHED_OPEN)
            sched_open(sched, &sched->slots[request.index], &request);
        else if (request.kind == SCHED_CLOSE)
            sched->slots[request.index].closing = !sched_close(sched, &sched->slots[request.index]);
        else
            ask_begin(sched, &sched->asks[request.index]);
    }
}

static void close_waiting(struct sched *sched)
{
    for (uint32_t i = 0; i < sched->slot_count; i++)
        if (sched->slots[i].closing)
            sched->slots[i].closing = !sched_close(sched, &sched->slots[i]);
}

bool sched_step(struct sched *sched)
{
    uint64_t start = clock_us();
    bool batched = sched->info.batch_tokens > STREAM_BLOCK_TOKENS, asked = false, worked;

    take_messages(sched);
    close_waiting(sched);
    for (int i = 0; i < ASK_SLICES && (batched ? sched_ask_batch(sched) : ask_next(sched)); i++)
        asked = true;
    worked = (batched ? sched_feed_batch(sched, asked) : feed_next(sched)) || asked;
    if (sched->failed)
        return true;
    if (sched->meter && !asked)
        worked = meter_step(sched->meter) || worked;
    if (sched->background && (!worked || ++sched->rounds % BACKGROUND_ROUNDS == 0))
        worked = sched->background(sched->background_user) || worked;
    if (worked)
        atomic_fetch_add(&sched->compute_us, clock_us() - start);
    return worked;
}

void *sched_main(void *argument)
{
    struct sched *sched = argument;

    while (!atomic_load(sched->stopping) && !sched->failed)
        if (!sched_step(sched))
            doorbell_wait(sched->bell, -1);
    streams_give(sched->engine);
    if (!sched->failed)
        sched_save_all(sched);
    return NULL;
}
