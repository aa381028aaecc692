/*
 * meter: what a stream's memory costs, measured while it reads.
 *
 * Now and then one chunk of one stream is scored twice: as the stream computes it, with its memory,
 * and by the base model that sees the newest METER_WINDOW_TOKENS uncompressed and nothing older.
 * The difference in nats a token, chunk by chunk, is one sample; its mean and 95 % interval say
 * what the memory loses (or, where it reaches farther than the window, gains).
 *
 * The compute thread's alone but for meter_read. The reference runs in slices of one block, after
 * everything else; a sample is begun only when METER_SHARE of all computing so far pays for it, and
 * nothing of it runs while a stream is more than METER_LAG_TOKENS behind.
 */
#ifndef SILT_DAEMON_METER_H
#define SILT_DAEMON_METER_H

#include "daemon/slot.h"

enum {
    METER_WINDOW_TOKENS = 2048, /* of the reference, the scored chunk its last part */
    METER_LAG_TOKENS = 4096,
    METER_SAME_BLOCKS = 64, /* another stream may come first; then the same is taken again */
    METER_FLAG_CHUNKS = 8,  /* samples before a stream may be flagged */
    METER_IDLE_S = 300,     /* a stream that reads nothing for so long gives way to one that does */
};
#define METER_SHARE        0.02
#define METER_FLAG_DEFAULT 0.1

/* Of one stream since siltd started. */
struct loss {
    uint64_t stream_id; /* 0: none yet */
    uint64_t chunks;
    double with_memory, with_window; /* sums of the chunks' means, nats a token */
    double difference, square;       /* Welford's mean and sum of squares */
    bool flagged;
};
/* The 95 % interval of a loss's mean difference by Student's t; both 0 under two chunks. */
void loss_interval(const struct loss *loss, double *low, double *high);
void loss_add(struct loss *loss, double with_memory, double with_window);

enum meter_phase { METER_REST, METER_COLLECT, METER_SCORE, METER_REFER };
struct meter {
    struct raw *raw;
    uint32_t window, chunk; /* tokens */
    double flag;
    bool batched; /* a device computes many blocks in the time of one */
    const struct slot *slots;
    uint32_t slot_count;
    int32_t *tokens;     /* [window], newest last */
    struct loss *losses; /* [STREAMS_KNOWN_MAX], by record */
    pthread_mutex_t lock;
    enum meter_phase phase;
    uint32_t slot, last_slot, same_blocks;
    uint64_t stream_id;
    uint64_t read_us;                   /* when it last read */
    uint64_t held;                      /* tokens of this stream collected so far */
    uint32_t referred;                  /* tokens the reference has seen */
    double memory_nll, nll;             /* sums over the chunk */
    uint32_t scored, counted;           /* tokens in them */
    uint64_t block_us;                  /* what a block, or a pass, takes, smoothed */
    const _Atomic uint64_t *compute_us; /* of the compute thread at work */
    _Atomic uint64_t meter_us;          /* of that the meter's */
};

/* Rows and tables of a meter; 0: this engine needs none, its streams lose nothing they could keep.
 */
size_t meter_bytes(const struct engine *engine);
size_t meter_device_bytes(const struct engine *engine); /* of a GPU's memory */
/* In meter_bytes of memory, 64-byte aligned. The caller then sets slots, flag and compute_us. */
void meter_open(struct meter *meter, struct engine *engine, const struct engine_info *info,
                void *memory);
/* stream_feed, of a slot whose turn it is; scores where it is the chunk for it. */
int meter_feed(struct meter *meter, struct slot *slot, const int32_t *tokens, uint32_t count);
/* On a device the streams are fed together, and one slot's at a time alone: when meter_alone says
 * that its next block is to be scored, by meter_feed. What the others were fed, and how long a pass
 * took, the meter is told. */
bool meter_alone(struct meter *meter, const struct slot *slot);
void meter_collect(struct meter *meter, const struct slot *slot, const int32_t *tokens,
                   uint32_t count);
void meter_note_pass(struct meter *meter, uint64_t took_us);
/* One block of the reference. False: there is nothing to do now. */
bool meter_step(struct meter *meter);
/* False: nothing is known of that stream. Any thread. */
bool meter_read(struct meter *meter, uint32_t record, uint64_t stream_id, struct loss *out);

#endif
