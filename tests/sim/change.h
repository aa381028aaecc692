/* change: streams branch, go for good and lose their oldest text, among messages in the queue. */
#ifndef SILT_SIM_CHANGE_H
#define SILT_SIM_CHANGE_H

#include "tests/sim/model.h"
#include "tests/unit/rig.h"

enum { STREAMS = 3 };
extern const char *const stream_names[STREAMS];

struct change_counts {
    uint64_t branches, removals, trims;
};
extern struct change_counts change_counts;

/* One request that the loop thread might push now, for any stream. */
void change_act(struct rig *rig, struct model *model, uint64_t random);
/* What became of one. True: a commit stands. */
bool change_took(struct model *model, const struct ingest_result *result);
/* A crash: what was under way is not. */
void change_crash(struct model *model);
/* After it the journal has this stream, or not, and the model says otherwise. True: a commit that
 * had failed explains it; what it had made is gone then, or removed. */
bool change_explains(struct rig *rig, struct model *model, uint64_t stream_id);

#endif
