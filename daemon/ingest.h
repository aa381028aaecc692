/*
 * ingest: the journal thread. Requests that must be durable come in, what became of them goes out.
 *
 * All requests that wait are stored in one transaction (group commit); only when it is on disk are
 * they answered, and only then do their tokens become visible to the compute thread. A request is
 * taken whole or not at all. Tokens are formed here, as items are accepted: the ring of a stream
 * gets them at once, or, while the stream is behind its journal (after a start, or woken from the
 * disk), by reading the items again in order.
 */
#ifndef SILT_DAEMON_INGEST_H
#define SILT_DAEMON_INGEST_H

#include "daemon/journal.h"
#include "daemon/keeper.h"
#include "daemon/queue.h"
#include "daemon/slot.h"

enum ingest_kind {
    INGEST_CREATE, /* or find: a stream of this name */
    INGEST_LOAD,   /* a stream of the journal comes to a slot */
    INGEST_UNLOAD, /* and leaves it */
    INGEST_ATTACH,
    INGEST_FEED,
    INGEST_KEEP, /* question and answer */
    INGEST_REMOVE,
    INGEST_BRANCH, /* a new stream that has all of another so far */
    INGEST_PIN,    /* list, pin or unpin */
    INGEST_FORGET, /* tokens of a stream in no slot */
    INGEST_TRIM, /* the oldest text of a stream, up to token `to` at most; 0: none, but fold the log
                  */
};

struct ingest_request {
    enum ingest_kind kind;
    uint32_t slot; /* SLOT_NONE: remove of a parked stream */
    uint32_t record, ask;
    uint64_t stream_id; /* load, remove, forget; branch: of the parent */
    uint64_t from, to;  /* forget, pin: tokens */
    uint32_t verb;      /* pin: Pins.Verb */
    bool past;          /* load: the stream as it was at tokens_to, to be read alone */
    uint64_t tokens_to;
    uint64_t request_id, change;
    struct wire_client client;
    char name[NAME_BYTES_MAX + 1]; /* create, branch */
    char producer[PRODUCER_BYTES_MAX + 1];
    uint64_t sequence, time_us;
    uint32_t item_count, flight_bytes;
    /* item_count times an ingest_item with its bytes, padded to 8, follows */
};
struct ingest_item {
    uint32_t kind, detail, bytes_count, padding;
};

/* Goes to the loop thread. */
struct ingest_result {
    enum ingest_kind kind;
    uint32_t slot, record, ask;
    uint64_t stream_id, parent_id, request_id, change;
    struct wire_client client;
    char producer[PRODUCER_BYTES_MAX + 1];
    uint64_t sequence; /* acked up to here */
    uint64_t bytes_acked, tokens_acked, bytes_text, created_us;
    uint64_t first; /* trim, branch: the first token whose text is left */
    uint64_t credit_tokens;
    uint64_t expected_sequence;
    uint32_t flight_bytes;
    bool created;
    uint32_t error; /* 0, else 1 + Error.Code */
    char message[200];
};

/* First word of every message to the loop thread says which it is. */
enum loop_message { LOOP_INGEST = 1, LOOP_SCHED = 2 };

/* Where an item of the request in work begins. */
struct item_place {
    uint32_t tokens_before, held_before;
};

struct ingest {
    struct search *search; /* forgets what is removed; NULL: none */
    struct spill *spill;   /* so does this */
    uint32_t chunk_tokens, sink_tokens;
    uint32_t pin_tokens_max; /* 0: no pins */
    struct journal *journal;
    const struct tokenizer *tokenizer;
    struct slot *slots; /* [slot_count] */
    uint32_t slot_count, lag_tokens_max;
    struct queue *inbox, *loop;
    const struct doorbell *bell, *compute_bell;
    struct keeper *keeper; /* NULL: no checkpoints */
    _Atomic bool *stopping;
    _Atomic bool *disk_failed;    /* the last commit did not work */
    _Atomic bool *disk_full;      /* --disk is used up: nothing is taken; NULL: no such bound */
    bool trims;                   /* then the oldest text makes room */
    _Atomic uint64_t *disk_grant; /* no text is taken once pages_grown is there; NULL: any */
    uint64_t pending_bytes;       /* text in the open transaction, in no file yet */
    _Atomic uint64_t *disk_bytes;
    int32_t *scratch; /* [scratch_max] tokens of one request or item */
    uint32_t scratch_max;
    struct item_place *places;     /* [ITEMS_MAX + 1] */
    struct ingest_result *results; /* [BATCH_MAX] */
    uint32_t result_count;
    bool writing, broken; /* a transaction is open; it has failed */
};

/* Tokens that scratch must hold. */
uint32_t ingest_scratch_tokens(uint32_t lag_tokens_max);
/* Runs until stopping is set and the inbox is empty. */
void *ingest_main(void *ingest);
/* One batch and one round of replay; what ingest_main repeats. True: there is more to do. */
bool ingest_step(struct ingest *ingest);

/* Of the batch in work, shared by ingest.c and ingest_stream.c. */
/* Opens the transaction where none is. False: it cannot be, and all in the batch will be told. */
bool ingest_begin(struct ingest *ingest);
/* The transaction is lost; everything in this batch is told so when it ends. */
void ingest_failed(struct ingest *ingest, int error);
void ingest_refuse(struct ingest_result *result, Silt__V1__Error__Code code, const char *message);
void ingest_refuse_long(struct ingest_result *result); /* -EMSGSIZE of forget_form */

/* ingest_stream.c */
void ingest_load(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                 struct ingest_result *result);
/* The stream leaves its slot; what this batch has added to it is kept. */
void ingest_unload(struct ingest *ingest, struct slot *slot);
/* Create, remove, branch, forget or pin, with the client's number for it. slot: NULL where the
 * stream is in none. */
void ingest_change(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                   struct ingest_result *result);
void ingest_trim(struct ingest *ingest, const struct ingest_request *request,
                 struct ingest_result *result);
/* Writes how far a stream has come in this batch. */
int ingest_save_tail(struct ingest *ingest, const struct ingest_slot *in);

#endif
