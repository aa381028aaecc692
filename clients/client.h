/*
 * client: the C library that talks to siltd.
 *
 * A `client` is one connection. It opens streams, asks, and reads what a stream holds. A `producer`
 * belongs to a client and appends to one stream under a name of its own: its messages are numbered,
 * kept until siltd has them on disk, and sent again after a lost connection, so nothing is lost and
 * nothing is stored twice. Callers need not know: ZeroMQ, protobuf, sequence numbers, credit.
 *
 * Threads: a client with its producers belongs to one thread at a time; use one client a thread.
 * Ownership: the caller keeps what it passes in, which may go when the call returns; *_open gives
 * an object that only *_close frees; *_free empties a result the library filled. A close nulls the
 * pointer and takes NULL.
 * Errors: 0 or a negative errno, the same in client_error.code with a sentence that says what to
 * do. A client_error may be NULL. -ECONNREFUSED: no siltd answers there; -ETIMEDOUT: it is silent;
 * -EBUSY: try again in retry_us; -EINTR: `interrupted` became set; others as the wire's codes:
 * -EINVAL, -ENOENT, -EEXIST, -EILSEQ (gap), -EMSGSIZE, -ENOSPC, -EACCES, -EOPNOTSUPP, -ESHUTDOWN,
 * -EIO (siltd failed inside). A request whose connection goes is sent again on the next one, and
 * siltd does no change twice; but a question is not: -ECONNRESET.
 * Limits: a producer holds at most PRODUCER_HELD_BYTES_MAX unacked and never more than siltd's
 * credit, a client's producers together CLIENT_HELD_BYTES_MAX, so a slow siltd slows the caller:
 * calls that send block until there is room.
 */
#ifndef SILT_CLIENT_H
#define SILT_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CLIENT_ITEM_BYTES_MAX = 512 << 10, /* text of one message; producer_write cuts by itself */
    CLIENT_TOKENS_MAX = 64 << 10,      /* token ids of one message */
    PRODUCER_HELD_MAX = 16,            /* messages unacked */
    PRODUCER_HELD_BYTES_MAX = 1 << 20,
    CLIENT_HELD_BYTES_MAX = 64 << 20, /* of all its producers together */
    CLIENT_WAIT_FOREVER = -1,
    CLIENT_KEY_BYTES = 40, /* a CURVE key as text */
};

struct client_error {
    int code; /* negative errno; 0: none */
    char text[400];
    uint64_t retry_us;
    uint64_t expected_sequence;
};

struct client_options {
    /* Each NULL: of the environment (SILT_ENDPOINT, SILT_SERVER_KEY, SILT_CLIENT_KEY), else of
     * $XDG_CONFIG_HOME/silt/client.conf, else the default. Keys are for tcp:// alone. */
    const char *endpoint;
    const char *server_key; /* siltd's public key, CLIENT_KEY_BYTES of text */
    const char *client_key; /* path of a file that client_key_new made */
    int connect_ms;         /* how long to try to reach siltd; 0: 5,000; or CLIENT_WAIT_FOREVER */
    int reconnect_ms;       /* the same once it had been reached; 0: connect_ms */
    int timeout_ms;         /* for an answer that needs no computing; 0: 30,000 */
    int busy_ms; /* to try again for, where siltd is busy and says when; 0: that is -EBUSY */
    const atomic_bool *interrupted; /* NULL, or what a signal handler or another thread sets */
    /* Called when the connection goes (up false) and comes back; NULL: nobody cares. */
    void (*on_link)(void *user, bool up);
    /* Called when siltd's disk or plan is full; producers then wait and try again. NULL: they fail
     * with -ENOSPC. */
    void (*on_full)(void *user, const struct client_error *why);
    /* Called at the start of every wait, five times a second at least while a call lasts: for what
     * cannot wait for siltd. It must not use the client. NULL: nothing. */
    void (*on_turn)(void *user);
    void *user;
};

struct client;
/* Does not wait for siltd: the first request does. */
int client_open(struct client **out, const struct client_options *options,
                struct client_error *error);
void client_close(struct client **client);
const char *client_endpoint(const struct client *client);
bool client_connected(const struct client *client);
/* Lets the connection work (acks, reconnects) for at most timeout_ms or until fd can be read (-1:
 * none). Returns 1: fd is readable; 0: something came or the time is over; -EINTR. */
int client_poll(struct client *client, int fd, int timeout_ms);

/* ---- keys ---- */

/* Makes a key pair and writes it to a new file, mode 0600; -EEXIST: there is one.
 * public_key: [CLIENT_KEY_BYTES + 1]. */
int client_key_new(const char *path, char *public_key, struct client_error *error);
/* The pair of a file that nobody else may read; secret_key may be NULL. */
int client_key_read(const char *path, char *public_key, char *secret_key,
                    struct client_error *error);
bool client_key_valid(const char *key);
/* Where a client looks for its key when nobody names another. 0 or -ENAMETOOLONG. */
int client_key_path(char *out, size_t out_bytes);

struct client_grant {
    char key[CLIENT_KEY_BYTES + 1];
    char name[68];
    char stream[132]; /* empty: every stream */
};
struct client_server {
    char key[CLIENT_KEY_BYTES + 1]; /* public */
    char listen[256];               /* where it takes keys; empty: nowhere */
};
/* As client_list; each may be NULL. siltd answers over its local socket alone, else -EACCES. */
typedef int client_grant_fn(void *user, const struct client_grant *grant);
int client_keys(struct client *client, struct client_server *out, client_grant_fn *each, void *user,
                struct client_error *error);
/* stream NULL: every one; for deny: all that the key has. -ENOENT: it was not allowed that. */
int client_key_allow(struct client *client, const char *key, const char *name, const char *stream,
                     struct client_error *error);
int client_key_deny(struct client *client, const char *key, const char *stream,
                    struct client_error *error);

/* ---- streams ---- */

struct client_open_options {
    uint32_t dmc_ratio;     /* 1, 2, 4, 8; 0: the default */
    uint32_t ring_segments; /* 0: the adapter's */
    bool dmc_auto;          /* the lowest ratio that fits the free plan */
};
struct client_opened {
    bool created, compression_off;
    uint32_t dmc_ratio, ring_segments;
    uint64_t bytes_plan;
};
/* Creates a stream or confirms one that exists; -EEXIST: it has other options. */
int client_stream_open(struct client *client, const char *stream,
                       const struct client_open_options *options, struct client_opened *out,
                       struct client_error *error);
/* branch: a new stream that has all that was acked of the other; *tokens of it (NULL: not wanted).
 * -EEXIST: the name is taken. */
int client_stream_fork(struct client *client, const char *stream, const char *branch,
                       uint64_t *tokens, struct client_error *error);
int client_stream_remove(struct client *client, const char *stream, struct client_error *error);
struct client_forgotten {
    uint64_t from, to; /* as they were */
    uint64_t tokens;   /* what the stream holds now */
};
/* Takes tokens [from, to) out for good, and pins that have some of them; later ones move down by as
 * many. */
int client_stream_forget(struct client *client, const char *stream, uint64_t from, uint64_t to,
                         struct client_forgotten *out, struct client_error *error);

struct client_tier {
    char name[32];
    uint64_t bytes_plan, bytes_used;
    bool on_device; /* of the GPU's memory */
};
enum { CLIENT_PINS_MAX = 16 };
struct client_pin {
    uint64_t from, to; /* tokens, half-open */
    bool held;         /* the stream attends to it; else only questions do, until its next chunk */
};
struct client_pins {
    size_t count;
    uint32_t tokens_max; /* of all pins together; 0: this siltd keeps none */
    struct client_pin pin[CLIENT_PINS_MAX];
};
/* What a stream's memory costs: as it reads, against the newest 2,048 tokens uncompressed. */
struct client_loss {
    uint64_t chunks;                             /* scored; 0: none yet */
    double with_memory, with_window, difference; /* nats a token; above 0: the memory loses */
    double low, high;                            /* 95 % interval of the difference */
    bool flagged;                                /* low is above siltd's --loss-flag */
};
enum { CLIENT_RECALLED_MAX = 8 };
struct client_stream_stat {
    char stream[132];
    uint64_t tokens_acked, tokens_computed, lag_tokens, chunks, segments_ring, segments_cold;
    uint64_t bytes_plan, bytes_used, bytes_disk, bytes_text;
    uint64_t memory_hash, hash_chunk, indexed_to, created_us, numerics_epoch;
    uint64_t first_position; /* text before it was trimmed away */
    uint64_t rebuilding_to;  /* read again from the journal up to here; 0: no */
    uint64_t segments_merged, segments_dropped, segments_repaired, segments_approximate;
    uint64_t bytes_segments, bytes_checkpoints, bytes_index;
    double dmc_ratio, rows_mean, tokens_per_second;
    uint32_t dmc_ratio_asked, ring_segments, layers, kv_heads;
    size_t tier_count, head_ratio_count, degraded_count;
    bool parked;     /* on the disk alone, until it is fed or asked */
    bool stopped;    /* computed no further until siltd is started again: degraded says why */
    bool hash_known; /* of memory_hash: not of every parked stream */
    struct client_tier *tiers;
    double *head_ratio; /* [layers * kv_heads] */
    char **degraded;
    struct client_loss loss;
    struct client_pins pins; /* of client_stat; a list says how much alone; parked: not known */
    uint64_t pin_tokens;     /* of all pins together; parked: not known */
    uint64_t recall_hits;    /* cold segments that came back for questions */
    uint64_t recalled_us;    /* when the last ones did, wall clock; 0: never */
    size_t recalled_count;
    uint64_t recalled[CLIENT_RECALLED_MAX]; /* their chunks, oldest first */
};
struct client_process_stat {
    uint64_t bytes_plan, bytes_used, bytes_disk, bytes_resident, uptime_us, tokens_computed;
    uint64_t compute_us, meter_us; /* of the compute thread; of that the loss meter's */
    /* Of compute_us: in so many passes over streams' text, for the device alone in these; handing
     * segments to the disk's thread, waiting for the disk in that; what comes behind a pass. */
    uint64_t read_us, passes, wait_us, leave_us, disk_us, save_us;
    double loss_flag;
    uint32_t streams, streams_max, forks, forks_max, threads;
    size_t tier_count, degraded_count;
    struct client_tier *tiers;
    char **degraded;
    char *model, *adapter, *kernels, *device, *version; /* adapter empty: compression is off */
};
int client_stat(struct client *client, const char *stream, struct client_stream_stat *out,
                struct client_error *error);
void client_stat_free(struct client_stream_stat *stat);
int client_process_stat(struct client *client, struct client_process_stat *out,
                        struct client_error *error);
void client_process_stat_free(struct client_process_stat *stat);

/* Calls `each` for every stream in order of name; the stat is valid during the call alone. A
 * non-zero return of each ends the list and is passed on. */
typedef int client_list_fn(void *user, const struct client_stream_stat *stat);
int client_list(struct client *client, client_list_fn *each, void *user,
                struct client_error *error);

/* ---- pins ---- */

/* Each gives what is pinned afterwards; out may be NULL. pin: -ENOSPC: no room, or not a range of
 * the stream; unpin: every pin that has some of the range goes; -ENOENT: none has. */
int client_pins(struct client *client, const char *stream, struct client_pins *out,
                struct client_error *error);
int client_pin(struct client *client, const char *stream, uint64_t from, uint64_t to,
               struct client_pins *out, struct client_error *error);
int client_unpin(struct client *client, const char *stream, uint64_t from, uint64_t to,
                 struct client_pins *out, struct client_error *error);

/* ---- questions ---- */

enum client_recall { RECALL_AUTO, RECALL_NONE, RECALL_SEGMENTS, RECALL_TEXT };
enum client_finish { FINISH_END, FINISH_LENGTH, FINISH_STOP, FINISH_CANCELLED };

/* Of temperature 0 is the likeliest token; of all others 0 is no limit. */
struct client_sampling {
    float temperature, top_p, min_p, repeat_penalty;
    uint32_t top_k;
    uint64_t seed;
};
struct client_ask {
    const char *stream, *question;
    const char *system; /* NULL: the default */
    enum client_recall recall;
    bool wait;     /* first compute all that was acked when this arrived */
    bool keep;     /* question and answer become turns of the stream */
    bool at_given; /* ask at at_position, a token of the past */
    uint64_t at_position;
    uint32_t tokens_max;                    /* of the answer; 0: the default */
    const struct client_sampling *sampling; /* NULL: the defaults */
    const char *const *stop;                /* stop strings */
    size_t stop_count;
};
struct client_source {
    uint64_t segment, from, to;   /* tokens, half-open */
    uint64_t time_us, time_to_us; /* of its first and last text */
    char *text;
};
struct client_answer {
    uint64_t position, acked;
    uint64_t rebuilding_to; /* the stream is read again up to here, past position; 0: no */
    uint32_t question_tokens, answer_tokens;
    enum client_finish finish;
    uint64_t wait_us, prefill_us, decode_us;
    size_t source_count;
    struct client_source *sources;
};
/* Bytes of the answer as they come, not terminated; may end inside a UTF-8 character. Non-zero
 * cancels. */
typedef int client_token_fn(void *user, const uint8_t *bytes, size_t bytes_count);
/* Asks and waits for the end. When `interrupted` becomes set, the question is cancelled: 0 with
 * finish CANCELLED. -ECONNRESET: the connection went during the answer. */
int client_ask(struct client *client, const struct client_ask *ask, client_token_fn *token,
               void *user, struct client_answer *out, struct client_error *error);
void client_answer_free(struct client_answer *answer);

/* ---- producers ---- */

enum client_mark { MARK_FLUSH, MARK_END_OF_INPUT, MARK_PRODUCER_CHANGE };
enum client_item_kind { ITEM_TEXT, ITEM_TOKENS, ITEM_TURN, ITEM_MARK };

struct client_item {
    enum client_item_kind kind;
    const uint8_t *bytes; /* text, or the turn's */
    size_t bytes_count;
    const char *role;       /* of a turn */
    const uint32_t *tokens; /* [tokens_count] */
    size_t tokens_count;
    enum client_mark mark;
};
struct producer_status {
    uint64_t sequence_acked, sequence_sent;
    uint64_t bytes_acked;                   /* of this producer's text items, over its whole life */
    uint64_t tokens_acked, tokens_computed; /* of the stream, as of the newest ack */
    uint64_t credit_bytes;
    uint32_t held_count;
};

struct producer;
/* Attaches to a stream that exists; `id` names the producer for ever (at most 64 of
 * [A-Za-z0-9._-]). */
int producer_open(struct producer **out, struct client *client, const char *stream, const char *id,
                  struct client_error *error);
/* Does not wait for acks: producer_drain does. */
void producer_close(struct producer **producer);
void producer_status(const struct producer *producer, struct producer_status *out);
/* Bytes of text that can be sent now without waiting; 0: none. */
size_t producer_room(const struct producer *producer);
/* Sends one message, whole or not at all; waits for room, not for its ack. time_us: wall clock of
 * the source, 0: now. */
int producer_send(struct producer *producer, const struct client_item *items, size_t item_count,
                  uint64_t time_us, struct client_error *error);
/* Sends text of any length in messages that fit. */
int producer_write(struct producer *producer, const void *bytes, size_t bytes_count,
                   struct client_error *error);
/* Waits until all is acked, that is on siltd's disk. timeout_ms: CLIENT_WAIT_FOREVER or a limit
 * without any news. */
int producer_drain(struct producer *producer, int timeout_ms, struct client_error *error);
/* Lets the connection work for at most timeout_ms on behalf of a producer that has no room. 0, or
 * why it cannot go on. */
int producer_work(struct producer *producer, int timeout_ms, struct client_error *error);
/* 0, or why this producer cannot go on. */
int producer_fault(const struct producer *producer, struct client_error *error);

#endif
