/*
 * rig: the journal and compute parts of siltd on one thread, stepped by hand.
 *
 * No socket, no clock, no second thread: a test pushes requests, takes steps in any order it likes
 * and reads what would have gone to the loop thread. Closing it without a word is a crash: what is
 * on disk then is what a kill -9 leaves.
 */
#ifndef SILT_TEST_RIG_H
#define SILT_TEST_RIG_H

#include "daemon/keeper.h"
#include "daemon/sched.h"
#include "tests/unit/faults.h"

enum { RIG_SLOTS_MAX = 8, RIG_ASKS_MAX = 4, RIG_RESULTS_MAX = 256, RIG_TEXT_MAX = 64 << 10 };

struct rig_options {
    uint32_t slots, asks, lag_tokens_max;
    bool checkpoints;
    const struct files *files; /* of checkpoints; NULL: the kernel's */
};
struct rig {
    struct rig_options options;
    char folder[128];
    struct engine *engine;
    struct journal *journal;
    struct slot slots[RIG_SLOTS_MAX];
    struct ask *asks;
    struct queue journal_queue, compute_queue, loop_queue;
    struct doorbell bell;
    _Atomic bool stopping, disk_failed;
    _Atomic uint64_t disk_bytes, tokens_computed;
    struct keeper keeper;
    struct ingest ingest;
    struct sched sched;
    void *memory[16];
    uint32_t memory_count;
    uint8_t *request; /* [2 MiB] being built */
    size_t request_bytes;

    struct ingest_result results[RIG_RESULTS_MAX]; /* since rig_forget */
    uint64_t batches[RIG_RESULTS_MAX];             /* the step each came from */
    uint64_t batch;
    uint32_t result_count;
    uint32_t credits, closed, opened; /* news of the compute part */
    struct ask_end ends[RIG_ASKS_MAX];
    bool ended[RIG_ASKS_MAX];
    uint8_t text[RIG_ASKS_MAX][RIG_TEXT_MAX];
    uint32_t text_bytes[RIG_ASKS_MAX];
};

/* The tiny model and adapter, made once a process. */
struct engine *rig_engine(void);
void rig_folder(char *out, size_t out_bytes); /* a new empty one under /tmp */
void rig_folder_drop(const char *folder);

/* A test that has a folder of its own. */
#define rig_folder_test(test)                                                                      \
    cmocka_unit_test_setup_teardown(test, rig_folder_set_up, rig_folder_tear_down)
extern char rig_own_folder[64];
int rig_folder_set_up(void **state);
int rig_folder_tear_down(void **state);

/* 0 or what journal_open said. */
int rig_open(struct rig *rig, const char *folder, const struct rig_options *options);
void rig_close(struct rig *rig);

/* Creates the stream in this slot, or loads the journal's of that name. */
int rig_stream(struct rig *rig, uint32_t slot, const char *name, uint32_t ratio);
/* Builds and pushes a Feed. */
void rig_feed_begin(struct rig *rig, uint32_t slot, const char *producer, uint64_t sequence);
void rig_item(struct rig *rig, enum item_kind kind, uint32_t detail, const void *bytes,
              size_t bytes_count);
int rig_push(struct rig *rig);
/* One text item, pushed. */
int rig_text(struct rig *rig, uint32_t slot, const char *producer, uint64_t sequence,
             const void *bytes, size_t bytes_count);
int rig_request(struct rig *rig, enum ingest_kind kind, uint32_t slot, const char *producer);
void rig_ask(struct rig *rig, uint32_t ask, uint32_t slot, const char *question, uint32_t tokens);
void rig_order(struct rig *rig, enum sched_kind kind, uint32_t slot, uint64_t stream_id,
               uint64_t tokens_max);

bool rig_ingest(struct rig *rig);  /* a step of the journal part, news taken */
bool rig_compute(struct rig *rig); /* a step of the compute part, news taken */
void rig_settle(struct rig *rig);  /* until nothing moves */
void rig_forget(struct rig *rig);  /* results so far */
const struct ingest_result *rig_last(const struct rig *rig, enum ingest_kind kind);
uint64_t rig_hash(struct rig *rig, uint32_t slot); /* of the stream's whole state */

#endif
