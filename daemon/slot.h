/*
 * slot: the place of one live stream, shared by the three threads, each with its own part.
 *
 * The loop thread gives a slot to a stream and takes it back; in between the journal thread writes
 * the token ring and the compute thread reads it. Positions in the ring are tokens of the stream.
 */
#ifndef SILT_DAEMON_SLOT_H
#define SILT_DAEMON_SLOT_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/daemon.h"
#include "daemon/pin_table.h"

#define SLOT_NONE UINT32_MAX

/* Tokens that are durable and not yet computed. One writer, one reader. */
struct token_ring {
    int32_t *tokens; /* [capacity] */
    uint32_t capacity;
    _Atomic uint64_t head; /* next to compute */
    _Atomic uint64_t tail; /* next to come */
};

/* Wall clock of the text of one chunk, as its sources gave it. */
struct chunk_time {
    uint64_t end; /* chunk + 1; 0: nothing is known here */
    uint64_t from_us, to_us;
};

/* What stat shows, copied out by the compute thread after each block. */
struct slot_stat {
    struct stream_stat stream;
    uint64_t entries_chunks;
    uint64_t *entries; /* [layers * kv_heads], of closed chunks */
    double tokens_per_second;
    bool failed;          /* computing it stopped with an error */
    uint64_t recall_hits; /* cold segments that came back for questions */
    uint64_t recalled_us; /* when the last ones did, wall clock; 0: never */
    uint32_t recalled_count;
    uint64_t recalled[STREAM_RECALL_MAX]; /* their chunks, oldest first */
};

/* How far a stream's journal has come. */
struct tail {
    uint64_t items;  /* in the journal */
    uint64_t tokens; /* that they formed */
    uint64_t bytes_text;
    char producer[PRODUCER_BYTES_MAX + 1]; /* of the newest item */
    struct token_text text;
};

/* Where the ring is filled from while it is behind the journal. */
struct replay {
    uint64_t ordinal; /* of the item */
    size_t offset;    /* bytes of a text item already fed */
    uint64_t token;   /* the next token formed here */
    struct token_text text;
    bool started;
};

struct ingest_slot {
    uint64_t stream_id;
    bool open; /* a stream of the journal is here */
    bool past; /* as it was at tokens_to; nothing is added to it */
    uint64_t tokens_to;
    bool live;    /* all that is in the journal has gone through the ring's tail */
    bool touched; /* by the batch in work */
    bool pinning; /* so are its pins */
    struct tail working, committed;
    uint64_t staged; /* ring position behind the batch's tokens */
    struct replay replay;
};

struct slot {
    uint32_t index;

    /* The loop's, fixed while others hold the slot. */
    bool used;
    uint32_t record;
    const char *name; /* its record's: what the log calls the stream */
    void *memory;
    size_t memory_bytes;
    struct stream_options options;

    struct token_ring ring;
    _Atomic uint64_t stream_id; /* 0: not known yet, or forgotten */
    _Atomic uint64_t tokens_acked;
    _Atomic uint64_t tokens_loaded; /* acked when it came here; UINT64_MAX: it is a past */
    _Atomic uint64_t bytes_text;
    _Atomic uint64_t indexed_to; /* tokens in the text index; the search thread's */
    _Atomic bool unindexed;      /* the search thread cannot */
    _Atomic uint64_t rebuild_to; /* tokens that are read again from the journal; 0: none were */
    _Atomic bool past;           /* as the stream was once: never saved, gone with its question */
    _Atomic bool unread;         /* its journal could not be read to the end */
    _Atomic bool ready;          /* the compute thread has opened the stream and set the ring */
    _Atomic bool behind;         /* the journal thread wants a ring when there is room */
    _Atomic bool credit_wanted;  /* a producer waits for room */

    pthread_mutex_t stat_lock;
    struct slot_stat stat;

    struct ingest_slot ingest; /* the journal thread's */
    /* [times_count] by chunk: the journal thread's of tokens that the ring does not show yet, then
     * the compute thread's, which needs them until a chunk leaves the stream's ring. */
    struct chunk_time *times;
    uint32_t times_count, chunk_tokens;

    struct slot_pins pins;
    struct spill *spill; /* where its cold segments go; NULL: nowhere */

    struct stream *stream; /* the compute thread's, as all below */
    uint64_t streams;      /* that came here so far */
    uint64_t rate_us, rate_tokens;
    uint64_t checkpoint; /* tokens in the newest one */
    bool closing;        /* told to close; waits to be saved */
};

/* Tokens [from, to) of the stream are of this time. */
static inline void slot_note_time(struct slot *slot, uint64_t from, uint64_t to, uint64_t time_us)
{
    while (from < to && slot->times_count) {
        uint64_t chunk = from / slot->chunk_tokens;
        struct chunk_time *time = &slot->times[chunk % slot->times_count];

        if (time->end != chunk + 1)
            *time = (struct chunk_time){chunk + 1, time_us, time_us};
        if (time_us < time->from_us)
            time->from_us = time_us;
        if (time_us > time->to_us)
            time->to_us = time_us;
        from = (chunk + 1) * slot->chunk_tokens;
    }
}

static inline uint32_t ring_count(const struct token_ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);

    return (uint32_t)(tail - head);
}

/* Where the stream is going that is read again from the journal; 0: it is there. */
static inline uint64_t slot_rebuilding(const struct slot *slot)
{
    uint64_t to = atomic_load(&slot->rebuild_to);

    return atomic_load(&slot->ring.head) < to ? to : 0;
}

/* Tokens acked and not yet handed to the stream. */
static inline uint64_t slot_lag(const struct slot *slot)
{
    uint64_t head = atomic_load(&slot->ring.head);
    uint64_t acked = atomic_load(&slot->tokens_acked);

    return acked > head ? acked - head : 0;
}

#endif
