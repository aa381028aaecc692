/* replay: fills the token ring of a stream that is behind its journal, by reading items again. */
#ifndef SILT_DAEMON_REPLAY_H
#define SILT_DAEMON_REPLAY_H

#include "daemon/ingest.h"

/* A bounded piece of work. True: there is more to do now; false: the ring is full, the compute
 * thread has not opened the stream yet, or all is done and the slot live. */
bool replay_step(struct ingest *ingest, struct slot *slot);
/* What the stream's journal has cannot be read: no more tokens come to its ring, which is told to
 * those who wait for them. */
void replay_stop(struct ingest *ingest, struct slot *slot);

/* Where a token is: the last of a stream's items that begins at or before it. The item lives as
 * journal_item_get says. */
int replay_find(struct ingest *ingest, uint64_t stream_id, uint64_t items, uint64_t token,
                struct journal_item *item, uint64_t *ordinal);
/* The bytes that waited before item `ordinal`, out of the text items before it. */
int replay_text_before(struct ingest *ingest, uint64_t stream_id, uint64_t ordinal,
                       uint32_t held_bytes, struct token_text *text);

#endif
