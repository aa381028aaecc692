/* layout: what the arena holds and how large each part is; the plan asks, daemon_open carves. */
#ifndef SILT_DAEMON_LAYOUT_H
#define SILT_DAEMON_LAYOUT_H

#include "daemon/core.h"

/* What one client's messages may take in libzmq; more where it may come over the network. */
uint64_t layout_client_bytes(bool network);

uint32_t layout_ring_tokens(uint32_t lag_tokens_max);
uint64_t layout_ring_bytes(uint32_t lag_tokens_max);
uint64_t layout_record_bytes(uint32_t streams_max, uint32_t forks_max, uint32_t heads);
uint64_t layout_queue_bytes(void);
uint64_t layout_work_bytes(uint32_t lag_tokens_max, uint32_t vocab_count);
/* Takes every part from the arena. */
void layout_carve(struct core *core, uint32_t heads);

#endif
