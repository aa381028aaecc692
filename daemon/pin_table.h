/*
 * pin_table: the pins of the stream in a slot, between the thread that writes them down and the one
 * that computes with them.
 *
 * Entries are added and ended by the journal thread, never changed otherwise while the stream is in
 * its slot. Limits: SLOT_PINS_MAX and SLOT_PIN_TOKENS_MAX over a stream's whole life, ended ones
 * too, for it must be possible to compute it again.
 */
#ifndef SILT_DAEMON_PIN_TABLE_H
#define SILT_DAEMON_PIN_TABLE_H

#include <stdatomic.h>

#include "daemon/daemon.h"

enum {
    PIN_TOKENS_DEFAULT = 128,
    PIN_TOKENS_LIMIT = 1024, /* bound of --pin-tokens-max */
    SLOT_PINS_MAX = 64,
    SLOT_PIN_TOKENS_MAX = 4096,
};

struct slot_pin {
    uint64_t from, to, at;
    _Atomic uint64_t until; /* UINT64_MAX: it holds */
    uint32_t before, first; /* of the stream's first tokens; where its tokens lie */
};
struct slot_pins {
    _Atomic uint32_t count;
    uint32_t used; /* tokens; the journal thread's */
    struct slot_pin pin[SLOT_PINS_MAX];
    int32_t tokens[SLOT_PIN_TOKENS_MAX];
};

struct slot;
struct sched;
struct fork;
struct ingest;
struct ingest_request;
struct ingest_result;

/* Journal thread: what the journal has of the stream that comes to the slot. */
int pins_load(struct ingest *ingest, struct slot *slot, uint64_t stream_id);
void ingest_pin(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                struct ingest_result *result);
/* After the commit, before tokens behind it can be computed: what is new in the journal. Where that
 * cannot be read no such token is. */
void pins_sync(struct ingest *ingest, struct slot *slot);
/* Compute thread, at a chunk's start: the stream's pins become what they are from there on. */
int pins_apply(struct slot *slot, uint64_t token);
/* The same for a question, which sees what holds although the stream itself does not yet. */
int pins_apply_fork(const struct slot *slot, struct fork *fork, uint32_t chunk_tokens);

#endif
