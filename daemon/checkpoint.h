/*
 * checkpoint: a stream's live memory on disk, so that recovery computes only what came after it.
 *
 * One file a checkpoint, DATA/checkpoints/STREAM/TOKENS in hex: a 4 KiB head with everything that
 * must match (magic, version, model, adapter, stream, position, length, hashes), then the state. It
 * appears under its name only when it is whole and on disk. A branch has its parent's by hard link,
 * TOKENS.STREAM, the parent's number in the name, so that the head still says whose it must be.
 * What does not match, or is torn or rotten, is passed over: an older one is taken, or the journal
 * is replayed from its start. Stale ones are thinned: the last two stay, older ones grow rarer with
 * age, CHECKPOINTS_MAX in all. Errors: negative errno; -EBADMSG: not a checkpoint of this stream,
 * model and position, or damaged.
 */
#ifndef SILT_DAEMON_CHECKPOINT_H
#define SILT_DAEMON_CHECKPOINT_H

#include "daemon/daemon.h"
#include "daemon/files.h"

enum {
    CHECKPOINT_TOKENS = 16384, /* computed between two of a stream: what recovery repeats at most */
    CHECKPOINT_VERSION = 1,
    CHECKPOINT_HEAD_BYTES = 4096,
    CHECKPOINTS_MAX = 8,       /* of a stream */
    CHECKPOINTS_LEAST = 3,     /* the first and the last two */
    CHECKPOINTS_SEEN_MAX = 64, /* files looked at in a stream's folder */
};

struct checkpoints {
    const struct files *files;
    char folder[PATH_BYTES_MAX];
    uint64_t model_fingerprint, adapter_fingerprint;
};

/* Writes and publishes. */
int checkpoint_write(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens,
                     const void *state, size_t bytes);
int checkpoint_read(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens, void *state,
                    size_t bytes_max, size_t *bytes);
/* Positions in ascending order; returns how many, at most CHECKPOINTS_SEEN_MAX. */
uint32_t checkpoint_list(const struct checkpoints *at, uint64_t stream_id, uint64_t *tokens);
/* The branch has those of the parent up to tokens_max too, on the same blocks of the disk, and no
 * others. */
int checkpoint_branch(const struct checkpoints *at, uint64_t parent, uint64_t branch,
                      uint64_t tokens_max);
void checkpoint_thin(const struct checkpoints *at, uint64_t stream_id);
/* For a disk that is full: of one stream all but the first and the last two go. Returns how many,
 * 0: there are none to spare. */
uint32_t checkpoint_spare(const struct checkpoints *at);
/* Those before `tokens` go. */
void checkpoint_trim(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens);
/* All of a stream past `tokens` go, overwritten; 0: all. The names are gone from disk when it
 * returns. */
int checkpoint_cut(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens);
/* At the start: all of every stream that `known` (NULL: none is) does not know go, and of the
 * others what a crash left half written. One that stays keeps no other. */
typedef bool checkpoint_known_fn(void *user, uint64_t stream_id);
int checkpoint_sweep(const struct checkpoints *at, checkpoint_known_fn *known, void *user);

#endif
