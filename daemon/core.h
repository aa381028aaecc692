/* core: the parts of a running daemon that its threads share; the loop thread's own state too. */
#ifndef SILT_DAEMON_CORE_H
#define SILT_DAEMON_CORE_H

#include "daemon/changes.h"
#include "daemon/config.h"
#include "daemon/gate.h"
#include "daemon/ingest.h"
#include "daemon/loop.h"
#include "daemon/plan.h"
#include "daemon/repair.h"
#include "daemon/sched.h"
#include "daemon/table.h"

enum {
    HEADS_MAX = 4096,                        /* layers * kv_heads */
    REQUEST_BYTES_MAX = 2 * FRAME_BYTES_MAX, /* a feed as the journal gets it: 16 bytes an item */
    ERASES_MAX = 16,                         /* removals at the same time */
    STATS_BYTES = 256 << 10,                 /* the parts of a stat reply before it is packed */
};
_Static_assert(REQUEST_BYTES_MAX >= FRAME_BYTES_MAX + ITEMS_MAX * 24 + 1024, "a frame always fits");

/* A producer that is owed an Ack: it was told to wait for room, or did not read the last one. */
struct waiter {
    bool used;
    bool for_room; /* the compute thread says when */
    bool unsent;   /* the tick tries again */
    uint32_t record;
    uint64_t request_id, sequence, bytes_acked;
    struct wire_client client;
    char producer[PRODUCER_BYTES_MAX + 1];
};

/* A client with requests in the journal's queue. */
struct flight {
    struct wire_client client;
    uint32_t count, bytes;
};

/* A range of a stream, or all of it, that is to go. */
struct erase {
    bool used, sent;
    enum ingest_kind kind; /* INGEST_REMOVE or INGEST_FORGET */
    uint32_t record;
    uint64_t request_id, change, from, to;
    struct wire_client client;
};

struct core {
    struct config config;
    struct plan plan;
    struct arena arena;
    struct engine *engine;
    struct engine_info info;
    struct journal *journal;
    int lock_fd;
    uint64_t started_us;

    struct slot *slots; /* [plan.streams_max] */
    struct ask *asks;   /* [plan.forks_max] */
    struct extents pool;
    uint64_t device_used; /* of plan.device_pool_bytes */
    struct queue journal_queue, compute_queue, loop_queue;
    struct doorbell journal_bell, compute_bell, loop_bell, stop_bell;
    struct ingest ingest;
    struct sched sched;
    struct keeper keeper;
    struct meter meter;
    void *meter_memory; /* NULL: there is none */
    pthread_t journal_thread, compute_thread, keeper_thread;
    bool journal_runs, compute_runs, keeper_runs;
    _Atomic bool stopping, journal_done, compute_done, keeper_stopping;
    _Atomic bool disk_failed;
    _Atomic uint64_t disk_bytes, tokens_computed;

    struct spill *spill;   /* cold segments; NULL: compression is off */
    struct search *search; /* text index */
    struct repair repair;
    void *repair_memory;
    void *spill_memory, *search_memory;
    pthread_t search_thread;
    bool search_runs;
    _Atomic bool disk_full;       /* --disk: what cannot be dropped fills it */
    _Atomic uint64_t disk_others; /* bytes under --data without segments */
    _Atomic uint64_t disk_grant;  /* pages_grown up to which --disk surely holds */
    uint64_t cold_next_us, past_count;
    uint32_t cold_ungranted; /* measurements in a row that left no room for text */
    uint64_t cold_said_us, cold_merged, cold_dropped; /* what --disk has cost, as last said */
    bool trimming,
        log_folded; /* the journal thread is asked to trim; has folded its log since full */

    /* The loop thread's. */
    struct loop loop;
    struct gate gate;
    struct keys keys;
    struct bump bump;
    uint8_t *reply;      /* [REPLY_BYTES_MAX] */
    uint64_t dropped_us; /* when the log said so last of one */
    struct table table;
    struct waiter *waiters; /* [WAITERS_MAX] */
    struct flight *flights; /* [FLIGHTS_MAX] */
    struct erase erases[ERASES_MAX];
    struct changes changes;
    uint8_t *request; /* [REQUEST_BYTES_MAX] on its way to the journal */
    uint8_t *stats;   /* [STATS_BYTES] */
};

#endif
