/*
 * cold: the far past under the simulation, spill.c itself over a disk that fails as it is told.
 *
 * Each chunk of a stream gives a segment whose rows are one number, made of what the chunk holds.
 * What comes back must be that number, or for a merged one a mean between those it covers.
 */
#ifndef SILT_SIM_COLD_H
#define SILT_SIM_COLD_H

#include "stream/stream.h"

enum { SIM_RING = 4, SIM_CHUNK = 256, SIM_VALUES = 4 * 2 * 16 };

extern struct engine sim_engine;
/* Once, before it is used. */
bool sim_engine_open(void);
/* What has left rings and was not given yet is gone. */
void sim_engine_crash(void);
extern bool sim_batched; /* the engine takes many streams at a time, as a device does */

struct cold_counts {
    uint64_t put, fetched, merged, missing, faults;
};
extern struct cold_counts cold_counts;

struct spill *cold_start(const char *folder); /* behind rig_open */
/* Before rig_close. power: unsynced records may be lost or torn. */
void cold_crash(uint64_t random, bool power);
void cold_forget(void); /* another schedule: nothing is known of any stream */
void cold_come(uint64_t stream_id);
void cold_go(uint64_t stream_id);
/* A segment has left the ring. The same chunk may again, after a replay: as it was. */
void cold_leave(uint64_t stream_id, const struct segment_view *segment);
void cold_act(uint64_t random, uint64_t stream_id); /* one thing that the disk may do, or a fetch */
const char *cold_wrong(void);                       /* NULL: nothing has been */
uint64_t cold_trace(void);                          /* of what has left and come back */

/* A fault of siltd's that the checks must find: now and then a segment goes under another stream's
 * id, or over the one before it. */
enum cold_canary { CANARY_NONE, CANARY_STREAM, CANARY_PLACE };
void cold_plant(enum cold_canary canary);

#endif
