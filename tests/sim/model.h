/* model: what the simulation's producers know of a stream, which the journal has to agree with. */
#ifndef SILT_SIM_MODEL_H
#define SILT_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

enum { PRODUCERS = 2, MESSAGES_MAX = 512, SENT_MAX = 256 };

/* A message of a stream, by who sent it and its number: that says what is in it. */
struct message {
    uint32_t producer;
    uint32_t stream; /* it was sent to, which this one may have branched from */
    uint64_t sequence;
    uint64_t batch; /* of a doubt: the commit that failed */
};

struct model {
    struct message message[MESSAGES_MAX]; /* in the journal for sure, in order */
    uint32_t count;
    uint64_t acked[PRODUCERS];
    struct message doubt[SENT_MAX]; /* told that nothing was stored by a disk that failed */
    uint32_t doubt_count;
    bool unsure;   /* two commits that failed say different things and both fit */
    uint32_t slot; /* SLOT_NONE: parked */
    bool exists;
    uint32_t changing; /* requests of change.c under way */
    bool trimmed;      /* maybe: its memory of the text that is gone is in its checkpoints alone */
    bool may_be_there, may_be_gone; /* by a commit that failed */
};

void model_append(struct model *model, struct message message);
/* stored [PRODUCERS]: the journal's numbers after a crash. It may have more than was acked: a
 * commit that failed has reached the disk after all. False: it has what nobody sent. */
bool model_settle(struct model *model, const uint64_t *stored);

#endif
