#include "daemon/keeper.h"

#include <errno.h>
#include <string.h>

#include "daemon/log.h"

bool keeper_room_close(struct keeper *keeper)
{
    int room = atomic_load(&keeper->room);

    while (room != KEEPER_TAKEN)
        if (atomic_compare_exchange_weak(&keeper->room, &room, KEEPER_WAIT))
            return true;
    return false;
}

void keeper_room_open(struct keeper *keeper, uint64_t bytes)
{
    atomic_store(&keeper->room_bytes, bytes);
    atomic_store(&keeper->room, KEEPER_ONE);
    doorbell_ring(keeper->compute_bell); /* it may sleep while a stream waits to leave its place */
}

/* 0, -EBUSY or -ENOSPC, as keeper_take says. */
static int take_room(struct keeper *keeper, uint64_t stream_id, size_t bytes)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    int room = atomic_load(&keeper->room);

    keeper->replaces = false;
    if (room == KEEPER_ANY)
        return 0;
    if (room != KEEPER_ONE)
        return -EBUSY;
    keeper->replaces = bytes + CHECKPOINT_HEAD_BYTES > atomic_load(&keeper->room_bytes);
    if (keeper->replaces && checkpoint_list(&keeper->at, stream_id, tokens) < 2)
        return -ENOSPC;
    return atomic_compare_exchange_strong(&keeper->room, &room, KEEPER_TAKEN) ? 0 : -EBUSY;
}

static void give_room(struct keeper *keeper)
{
    int room = KEEPER_TAKEN;

    atomic_compare_exchange_strong(&keeper->room, &room, KEEPER_WAIT);
}

int keeper_take(struct keeper *keeper, const struct slot *slot, size_t bytes, uint64_t tokens)
{
    uint64_t stream_id = atomic_load(&slot->stream_id);
    const void *state;
    int result;

    if (bytes > keeper->buffer_bytes)
        return -EMSGSIZE;
    if (atomic_load_explicit(&keeper->busy, memory_order_acquire))
        return -EBUSY;
    result = stream_id ? take_room(keeper, stream_id, bytes) : -ENOENT;
    if (result)
        return result;
    state = stream_state(slot->stream, &bytes);
    if (!state) {
        give_room(keeper);
        return -EIO;
    }
    /* Not busy: the lock is free, or held for a moment by keeper_cut. */
    pthread_mutex_lock(&keeper->lock);
    stream_id = atomic_load(&slot->stream_id);
    if (stream_id) {
        memcpy(keeper->buffer, state, bytes);
        keeper->bytes = bytes;
        keeper->tokens = tokens;
        keeper->stream_id = stream_id;
        keeper->forgotten = false;
        atomic_store_explicit(&keeper->busy, true, memory_order_release);
    }
    pthread_mutex_unlock(&keeper->lock);
    if (!stream_id) {
        give_room(keeper);
        return -ENOENT;
    }
    doorbell_ring(&keeper->bell);
    return 0;
}

void keeper_disown(struct keeper *keeper, uint64_t stream_id, uint64_t tokens)
{
    uint64_t list[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(&keeper->at, stream_id, list);
    int result;

    if (!count || list[count - 1] <= tokens)
        return;
    result = keeper_cut(keeper, stream_id, tokens);
    say(SAY_WARN, "checkpoints of stream %llu are ahead of the journal: they go%s%s",
        (unsigned long long)stream_id, result ? ": " : "", result ? strerror(-result) : "");
}

uint64_t keeper_restore(struct keeper *keeper, uint64_t stream_id, struct stream *stream,
                        uint64_t tokens_max)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(&keeper->at, stream_id, tokens);

    while (count-- > 0) {
        size_t bytes = 0;
        int result;

        if (tokens[count] > tokens_max)
            continue;
        result = checkpoint_read(&keeper->at, stream_id, tokens[count], keeper->restore,
                                 keeper->buffer_bytes, &bytes);
        if (!result)
            result = stream_restore(stream, keeper->restore, bytes);
        if (!result)
            return tokens[count];
        say(SAY_WARN, "checkpoint of stream %llu at token %llu is not used: %s",
            (unsigned long long)stream_id, (unsigned long long)tokens[count],
            result == -EBADMSG || result == -EINVAL
                ? "it is damaged, or of another model, adapter, version or --pin-tokens-max"
                : strerror(-result));
    }
    return 0;
}

int keeper_cut(struct keeper *keeper, uint64_t stream_id, uint64_t tokens)
{
    int result;

    pthread_mutex_lock(&keeper->lock);
    if (atomic_load(&keeper->busy) && keeper->stream_id == stream_id && keeper->tokens > tokens)
        keeper->forgotten = true;
    result = checkpoint_cut(&keeper->at, stream_id, tokens);
    pthread_mutex_unlock(&keeper->lock);
    return result;
}

void keeper_trim(struct keeper *keeper, uint64_t stream_id, uint64_t tokens)
{
    pthread_mutex_lock(&keeper->lock);
    checkpoint_trim(&keeper->at, stream_id, tokens);
    pthread_mutex_unlock(&keeper->lock);
}

int keeper_branch(struct keeper *keeper, uint64_t parent, uint64_t branch, uint64_t tokens)
{
    int result;

    pthread_mutex_lock(&keeper->lock);
    result = checkpoint_branch(&keeper->at, parent, branch, tokens);
    pthread_mutex_unlock(&keeper->lock);
    if (result)
        say(SAY_WARN, "checkpoints of stream %llu are not shared with its branch: %s",
            (unsigned long long)parent, strerror(-result));
    return result;
}

/* The oldest of at least two makes room. */
static void drop_oldest(struct keeper *keeper)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];

    if (checkpoint_list(&keeper->at, keeper->stream_id, tokens) > 1)
        checkpoint_trim(&keeper->at, keeper->stream_id, tokens[1]);
}

void keeper_step(struct keeper *keeper)
{
    int result = 0;

    if (!atomic_load_explicit(&keeper->busy, memory_order_acquire))
        return;
    pthread_mutex_lock(&keeper->lock);
    if (!keeper->forgotten && keeper->replaces)
        drop_oldest(keeper);
    if (!keeper->forgotten)
        result = checkpoint_write(&keeper->at, keeper->stream_id, keeper->tokens, keeper->buffer,
                                  keeper->bytes);
    if (!result && !keeper->forgotten)
        checkpoint_thin(&keeper->at, keeper->stream_id);
    if (result)
        say(SAY_ERROR, "checkpoint of stream %llu at token %llu: %s; recovery takes longer",
            (unsigned long long)keeper->stream_id, (unsigned long long)keeper->tokens,
            strerror(-result));
    atomic_store(&keeper->failed, result != 0);
    atomic_fetch_add(&keeper->written, result == 0);
    give_room(keeper);
    atomic_store_explicit(&keeper->busy, false, memory_order_release);
    pthread_mutex_unlock(&keeper->lock);
    doorbell_ring(keeper->compute_bell);
}

void *keeper_main(void *argument)
{
    struct keeper *keeper = argument;

    for (;;) {
        bool stop = atomic_load(keeper->stopping);

        keeper_step(keeper);
        if (stop && !atomic_load(&keeper->busy))
            return NULL;
        if (!stop)
            doorbell_wait(&keeper->bell, -1);
    }
}
