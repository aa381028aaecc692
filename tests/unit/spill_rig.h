/*
 * spill_rig: a store of cold segments in a folder under TMPDIR, and segments whose rows follow from
 * where they belong, so that what comes back can be told right from wrong.
 */
#ifndef SILT_SPILL_RIG_H
#define SILT_SPILL_RIG_H

#include "stream/spill.h"
#include "tests/unit/tiny_model.h"

enum {
    VALUES = TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM,
    STAGING = 4,
    FETCHES = 2
};

extern char spill_rig_folder[80];
extern struct engine *spill_rig_engine; /* the tiny one, between set_up and tear_down */

struct held {
    struct spill *spill;
    void *memory;
};

struct held spill_rig_open(bool plain, enum segment_dtype dtype);
void spill_rig_close(struct held *h);
void spill_rig_clear(void); /* empties the folder */
int spill_rig_set_up(void **state);
int spill_rig_tear_down(void **state);
void spill_rig_rows(uint64_t stream, uint64_t number, f16 *rows);
int spill_rig_put(struct spill *spill, uint64_t stream, uint64_t number);
void spill_rig_put_many(struct spill *spill, uint64_t stream, uint64_t from, uint64_t to);
/* Fetches chunks and says which of them came back, as bits; a wrong one fails the test. */
uint32_t spill_rig_fetch(struct spill *spill, uint64_t stream, const uint64_t *chunks,
                         uint32_t count);
uint32_t spill_rig_fetch_one(struct spill *spill, uint64_t stream, uint64_t chunk);
uint64_t spill_rig_faults(struct spill *spill, enum segment_fault fault);
struct spill_stream_stat spill_rig_stat(struct spill *spill, uint64_t stream);
uint64_t spill_rig_disk_use(void); /* of all segment files, as the file system says */
/* What spill says it takes is what its files take, but for the blocks in which the file system
 * notes where the pieces of a file lie: holes need some, and they come and go as it writes back. */
void spill_rig_check_disk(uint64_t bytes_said);

#endif
