/* replay: fills the token ring of a stream that is behind its journal, by reading items again. */
#ifndef SILT_DAEMON_REPLAY_H
#define SILT_DAEMON_REPLAY_H

#include "daemon/ingest.h"

/* A bounded piece of work. True: there is more to do now; false: the ring is full, the compute
 * thread has not opened the stream yet, or all is done and the slot live. */
bool replay_step(struct ingest *ingest, struct slot *slot);

#endif
