/*
 * keeper: the thread that writes checkpoints, one at a time, out of a buffer of its own.
 *
 * The compute thread copies a stream's state into the buffer where it is free and goes on; a
 * checkpoint that finds it taken comes a block later. Reading one back is the compute thread's,
 * into a second buffer. Under --disk one comes a measurement, where it has room; where it has none
 * it takes the place of its stream's oldest, so that recovery never has further to go for long.
 */
#ifndef SILT_DAEMON_KEEPER_H
#define SILT_DAEMON_KEEPER_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/checkpoint.h"
#include "daemon/queue.h"
#include "daemon/slot.h"

/* What may come until the folder is measured again. */
enum keeper_room {
    KEEPER_ANY,   /* there is no quota */
    KEEPER_WAIT,  /* it is being measured */
    KEEPER_ONE,   /* of room_bytes, or in the place of an older one */
    KEEPER_TAKEN, /* one is on its way */
};

struct keeper {
    struct checkpoints at;
    uint8_t *buffer;  /* [buffer_bytes] on its way to disk */
    uint8_t *restore; /* [buffer_bytes] the compute thread's */
    size_t buffer_bytes;
    struct doorbell bell;
    const struct doorbell *compute_bell;
    _Atomic bool *stopping;
    _Atomic bool busy;   /* the buffer is the keeper's */
    _Atomic bool failed; /* the last one could not be written */
    _Atomic uint64_t written;
    _Atomic int room; /* enum keeper_room */
    _Atomic uint64_t room_bytes;
    bool replaces; /* what is in the buffer: its stream's oldest goes first */

    pthread_mutex_t lock;              /* held while files come or go, and over all below */
    uint64_t stream_id, tokens, bytes; /* of what is in the buffer */
    bool forgotten;                    /* its stream was removed since */
};

/* The loop thread's, around a measurement of the folder under --disk. False: one is on its way and
 * may be half measured, so that nothing is to be concluded. */
bool keeper_room_close(struct keeper *keeper);
void keeper_room_open(struct keeper *keeper, uint64_t bytes);
/* The compute thread's. 0: the state, of stream_state_bytes, is on its way; -EBUSY: the buffer is
 * taken, or its room not yet measured; -ENOSPC: --disk has no room for it; -EMSGSIZE: it will never
 * fit; -ENOENT: the stream is being removed; -EIO: its device has failed. Where there is no room
 * the state is not asked for: a device's is copied for that, and many streams wait at a time. */
int keeper_take(struct keeper *keeper, const struct slot *slot, size_t bytes, uint64_t tokens);
/* Of a stream that comes with so many tokens those past them go: the journal is an earlier copy of
 * itself, or has lost its end, and other tokens come in their place. The compute thread's. */
void keeper_disown(struct keeper *keeper, uint64_t stream_id, uint64_t tokens);
/* Restores the newest checkpoint that is whole and not past tokens_max. 0: nothing is. */
uint64_t keeper_restore(struct keeper *keeper, uint64_t stream_id, struct stream *stream,
                        uint64_t tokens_max);
/* The journal thread's: no checkpoint past `tokens` stays, nor does one that is on its way come; 0:
 * none at all. Where the stream is in a slot, its stream_id there is 0 already. */
int keeper_cut(struct keeper *keeper, uint64_t stream_id, uint64_t tokens);
/* The journal thread's: checkpoints before `tokens` go. */
void keeper_trim(struct keeper *keeper, uint64_t stream_id, uint64_t tokens);
/* The journal thread's: a branch has its parent's checkpoints, and no other of its number. 0: they
 * are on disk; else it is said. */
int keeper_branch(struct keeper *keeper, uint64_t parent, uint64_t branch, uint64_t tokens);
void *keeper_main(void *keeper);
/* Writes what is in the buffer. */
void keeper_step(struct keeper *keeper);

#endif
