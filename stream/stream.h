/*
 * stream: one unbounded timeline of tokens in a fixed number of bytes.
 *
 * Two nouns carry it. An `engine` is a base model with its adapter: shared, read-only once open. A
 * `stream` is one mutable timeline: tokens go in, and what it has read stays attendable in a block
 * of memory whose size is known before it is opened. DMC (Dynamic Memory Compression, arXiv
 * 2403.09636) merges KV entries inside a chunk, CCM (Compressed Context Memory, arXiv 2312.03414)
 * folds each finished chunk into a few learned KV slots. A `fork` is a view of a stream at one
 * position in which a question runs; it never disturbs the stream.
 *
 * Callers need not know: layers, heads, positions, where rows lie, when a chunk ends.
 * Threads: an engine with all its streams and forks belongs to one thread (the compute owner). The
 * tokenizer may be used from any thread. Errors: 0 or a negative errno; the functions that open
 * something also write a sentence that says what to do. Limits: see the enum below; ring and ratio
 * are fixed when a stream is opened.
 */
#ifndef SILT_STREAM_H
#define SILT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    STREAM_PASS_TOKENS = 64,  /* computed together where they are there: two blocks */
    STREAM_BLOCK_TOKENS = 32, /* ingest computes blocks of this many tokens, aligned in the chunk;
                               * what is merged in one is seen merged when the next has ended */
    STREAM_SINK_TOKENS_MAX = 16, /* an adapter may ask for fewer */
    STREAM_RING_MAX = 256,
    STREAM_RATIO_MAX = 8,
    STREAM_RATIO_DEFAULT = 4,
    STREAM_RATIOS_MAX = 8,
    STREAM_RECALL_MAX = 8,    /* cold segments a question may bring back */
    RECALL_QUERY_TOKENS = 32, /* of a question that count most: what a recall table holds */
    STREAM_PINS_MAX = 16,     /* ranges of a stream that stay uncompressed */
    FORK_TOKENS_MAX = 1920,
    PRETOKEN_BYTES_MAX = 1024,
};

/* ---- engine: weights and adapter, shared, read-only ---- */

/* Weights on a GPU: bf16, or quantised ones with the file's values, each matrix made bf16 before
 * its products: less memory, more time, the same bits; but single tokens of up to 64 answers are
 * multiplied with these values at once, which sums in another order. */
enum device_weights {
    WEIGHTS_AUTO, /* bf16 where there is room for a stream beside them */
    WEIGHTS_BF16,
    WEIGHTS_FILE
};

struct engine_options {
    const char *model_path; /* GGUF of a Llama-family model */
    const char
        *adapter_path; /* silt adapter; NULL: none, streams then keep a sliding window only */
    enum device device;
    uint32_t threads;        /* 0: as many as the process may use */
    uint32_t feature_mask;   /* UINT32_MAX: all that the machine has */
    uint32_t pin_tokens_max; /* that a stream may pin, all ranges together; 0: none */
    bool exact; /* fp32 weights and activations, slow and large: what int8 is measured by */
    /* DEVICE_CUDA alone */
    size_t device_bytes; /* of the device's memory, weights and all; 0: what is free */
    uint32_t batch_rows; /* computed together at most; 0: a default */
    enum device_weights device_weights;
};

struct engine_info {
    char model_name[128];
    uint64_t model_fingerprint;   /* XXH3-64 of the model file */
    uint64_t adapter_fingerprint; /* XXH3-64 of the adapter file, 0: none */
    uint32_t layer_count, head_count, kv_head_count, head_dim, model_dim, vocab_count;
    uint32_t context_tokens; /* trained context */
    uint32_t chunk_tokens, comp_tokens, ring_segments, sink_tokens;
    uint32_t pin_tokens_max;                        /* 0: there are no pins */
    uint32_t ratio_count, ratio[STREAM_RATIOS_MAX]; /* DMC ratios served, 1 among them */
    const char *kernels_name;
    uint32_t kernels_revision; /* one name with another revision gives other bits */
    uint32_t threads;
    size_t weights_bytes; /* packed weights held in memory */
    size_t work_bytes;    /* activations and scratch */
    /* On a GPU, else 0: weights, activations, and the arena of streams and forks. */
    size_t device_weights_bytes, device_work_bytes, device_arena_bytes;
    size_t device_scratch_bytes; /* of the weights: where quantised ones are made bf16; 0: all are
                                  * bf16 */
    size_t device_kept_bytes;    /* of weights that are bf16, were they kept as in the file; 0: they
                                  * are, or none is quantised */
    /* Tokens that are computed together fastest: a block, or what a device takes in one pass. */
    uint32_t batch_tokens;
};

struct engine;
int engine_open(struct engine **out, const struct engine_options *options, char *error,
                size_t error_bytes);
void engine_close(struct engine **engine);
void engine_info(const struct engine *engine, struct engine_info *out);
/* On a GPU, before any stream is opened: takes so many bytes of it for streams and forks, and no
 * more (at most device_arena_bytes, which else the first of them takes). 0, or -ENOMEM with a
 * sentence: another process has it by now. */
int engine_device_take(struct engine *engine, size_t bytes, char *error, size_t error_bytes);
/* On a GPU, with its memory and before any stream: does once, on nothing, all that a stream and a
 * question make it do, so that what is loaded, recorded and touched then does not come later. 0, or
 * what the device failed with, said in error. */
int engine_warm(struct engine *engine, char *error, size_t error_bytes);

/* ---- text ---- */

struct tokenizer;
const struct tokenizer *engine_tokenizer(const struct engine *engine);
/* What the device said when it failed; NULL: it has not. After -EIO nothing more is computed there.
 */
const char *engine_failure(const struct engine *engine);
/* Where the time of feeding streams went so far; for the thread that feeds them. */
struct engine_times {
    uint64_t wait_us;  /* for the device, once the host had done its part; 0 on a CPU */
    uint64_t leave_us; /* in segment_leave_fn */
};
void engine_times(const struct engine *engine, struct engine_times *out);
/* Words that may stand for a word, by the adapter's lexicon, nearest first: how many, at most max;
 * 0 where it has none; letters, digits and bytes above 0x7f, whatever the file holds. word: a form
 * in lower case, terminated. Any thread. */
enum { NEAR_WORD_BYTES_MAX = 31 };
struct near_word {
    char text[NEAR_WORD_BYTES_MAX + 1]; /* terminated */
};
uint32_t engine_near_words(const struct engine *engine, const char *word, struct near_word *out,
                           uint32_t max);

/* One continuous text fed in any cuts: the bytes that still wait for more. Zero it to begin. No
 * pointers: it may be stored. */
struct token_text {
    uint32_t held_bytes;
    uint8_t held[PRETOKEN_BYTES_MAX + 8];
};

/* Most tokens that feeding `bytes` more bytes to a text can form. */
size_t token_count_max(const struct token_text *text, size_t bytes);
/* Feeds bytes; writes the tokens of every pre-token that is finished, the rest waits in text. Never
 * forms special tokens. A byte that the vocabulary has no token for is read as U+FFFD; all else,
 * invalid UTF-8 included, comes back from token_bytes as it was. out has room for token_count_max.
 * Returns the tokens written. */
size_t token_feed(const struct tokenizer *tokenizer, struct token_text *text, const uint8_t *bytes,
                  size_t bytes_count, int32_t *out);
/* A mark: what waits becomes tokens now. Returns the tokens written. */
size_t token_flush(const struct tokenizer *tokenizer, struct token_text *text, int32_t *out);
/* The bytes a token stands for, not terminated; special tokens give their name. Valid as long as
 * the tokenizer. */
const uint8_t *token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *bytes_count);
bool token_is_special(const struct tokenizer *tokenizer, int32_t id);
/* Ends an answer: end-of-turn and end-of-text tokens. */
bool token_is_end(const struct tokenizer *tokenizer, int32_t id);
/* Chat template of one turn, "<|im_start|>role\n" text "<|im_end|>\n". -EINVAL: role not system,
 * user, assistant or tool; -ENOSPC: out_max too small. Returns the tokens written. */
int token_turn(const struct tokenizer *tokenizer, const char *role, const uint8_t *bytes,
               size_t bytes_count, int32_t *out, size_t out_max);
/* The opening of a turn that the model is to finish: "<|im_start|>role\n". Returns the tokens
 * written or -ENOSPC. */
int token_turn_open(const struct tokenizer *tokenizer, const char *role, int32_t *out,
                    size_t out_max);

/* ---- stream ---- */

struct stream_options {
    uint32_t dmc_ratio;     /* 1, or one of the adapter's; 0: STREAM_RATIO_DEFAULT, or 1 where the
                             * adapter has no DMC part */
    uint32_t ring_segments; /* 0: the adapter's */
};

enum stream_tier {
    TIER_SINKS,
    TIER_SUMMARY,
    TIER_RING,
    TIER_WINDOW,
    TIER_PINS,
    TIER_STATE,
    TIER_COUNT
};

struct stream_stat {
    uint64_t tokens_computed; /* in finished blocks */
    uint32_t tokens_pending;  /* waiting for their block, under STREAM_BLOCK_TOKENS */
    uint64_t chunks;          /* finished */
    uint32_t segments_ring;
    uint64_t segments_cold; /* left the ring, folded into the summary */
    uint32_t dmc_ratio, ring_segments;
    double ratio_realised; /* tokens in closed chunks / mean entries; 1 before the first */
    double rows_mean;      /* KV rows that a query attends now, besides its own: mean over layers
                            * and heads */
    uint64_t memory_hash;  /* hash chain at the last chunk's end, 0 before */
    uint64_t hash_chunk;   /* chunks it covers */
    size_t bytes_plan;
    size_t tier_plan_bytes[TIER_COUNT], tier_used_bytes[TIER_COUNT];
};

/* A segment that leaves the ring, at the moment it does. Pointers are valid during the call alone.
 */
struct segment_view {
    uint64_t number; /* of its chunk, from 0 */
    uint64_t token_from, token_to;
    const f16 *rows; /* [layer][kv_head][slot][2: K un-rotated, V][head_dim] */
    size_t rows_bytes;
};
typedef void segment_leave_fn(void *user, const struct segment_view *segment);

struct stream;

/* Bytes a stream holds for its whole life; 0: options not possible with this engine, said in error.
 */
size_t stream_bytes(const struct engine *engine, const struct stream_options *options, char *error,
                    size_t error_bytes);
/* Opens in the caller's memory (64-byte aligned, stream_bytes of it), which it must keep until
 * close. */
int stream_open(struct stream **out, struct engine *engine, const struct stream_options *options,
                void *memory, size_t memory_bytes);
void stream_close(struct stream **stream);
void stream_on_segment_leave(struct stream *stream, segment_leave_fn *leave, void *user);
/* The segment of the chunk finished last, in memory of the engine: valid until a chunk of any
 * stream is. False: there is none, or the device has failed. */
bool stream_newest_segment(const struct stream *stream, struct segment_view *out);
/* Takes tokens and computes every block that fills (COMP, ring and summary included); under
 * STREAM_BLOCK_TOKENS wait. For fairness between streams feed at most stream_block_room tokens at a
 * time: that is one block of work. -EINVAL: a token is not of the vocabulary (none is taken then).
 */
int stream_feed(struct stream *stream, const int32_t *tokens, uint32_t count);
uint32_t stream_block_room(const struct stream *stream);
/* The same up to the end of a pass, which takes two blocks: that many tokens are computed together,
 * faster than one block after the other, and give the same bits. */
uint32_t stream_pass_room(const struct stream *stream);
/* stream_feed of many streams in one call: what a device computes together, it computes fast. Each
 * stream appears once; what it holds afterwards is, bit for bit, what feeding it alone would have
 * given. Where a work fails, its stream stays at its last finished block and the others go on. For
 * fairness to questions bound the tokens of one call. 0, or the first result that is not 0. */
struct stream_work {
    struct stream *stream;
    const int32_t *tokens; /* [count] */
    uint32_t count;
    int result; /* out: as of stream_feed */
};
int streams_feed(struct stream_work *work, uint32_t count);
/* The same; but segments that leave their rings in a device's last pass are given only when the
 * device has the next one, or by streams_give, or when anything else is done with that stream that
 * may need it: so whoever keeps them does that while the device computes. */
int streams_feed_ahead(struct stream_work *work, uint32_t count);
void streams_give(struct engine *engine);
/* The same, and scores as stream_score does; work and score of a stream stand at one place. */
struct stream_targets {
    const int32_t *targets; /* [work's count] */
    float *nll;             /* out: [work's count] */
};
int streams_score(struct stream_work *work, const struct stream_targets *score, uint32_t count);
/* Bytes of the device's arena (engine_info.arena_bytes) that a stream or a fork takes; 0 on a CPU.
 */
size_t stream_device_bytes(const struct engine *engine, const struct stream_options *options);
size_t fork_device_bytes(const struct engine *engine, const struct stream_options *options);
/* Bytes of stream_state. */
size_t stream_state_bytes(const struct engine *engine, const struct stream_options *options);
/* stream_feed that also scores: nll[i] is -log p(targets[i]) after tokens[i], in nats. targets[i] <
 * 0: not scored, 0. The stream must have no pending tokens and count be a multiple of
 * STREAM_BLOCK_TOKENS: -EINVAL. */
int stream_score(struct stream *stream, const int32_t *tokens, const int32_t *targets,
                 uint32_t count, float *nll);
/* stream_feed that also scores what it computes: of every block, all tokens but the first, each
 * after those before it. Adds their -log p in nats to *nll and their number to *scored. */
int stream_feed_scored(struct stream *stream, const int32_t *tokens, uint32_t count, double *nll,
                       uint32_t *scored);
void stream_stat(const struct stream *stream, struct stream_stat *out);
/* The same of a stream that is not here, of `tokens` that all are computed, as far as its shape
 * tells: plan, chunks and segments; all else is 0. -EINVAL: not possible with this engine. */
int stream_stat_shape(const struct engine *engine, const struct stream_options *options,
                      uint64_t tokens, struct stream_stat *out);
/* Entries per (layer, kv head) of the closed chunks, summed: counts [layers * kv_heads], chunks
 * covered as the result. */
uint64_t stream_entries(const struct stream *stream, uint64_t *counts);

/* A stream's whole state is one flat block without pointers: what a checkpoint stores and a fork
 * copies. */
const void *stream_state(const struct stream *stream, size_t *bytes);
/* Puts back a state taken from a stream with the same engine and options. -EINVAL: it is not one.
 */
int stream_restore(struct stream *stream, const void *state, size_t bytes);

/* Makes a stream that was restored from any of its checkpoints with a summary stand after `chunks`
 * chunks, for segments to be computed near what they were: summary and sinks stay, the window is
 * empty, and the ring's chunks, [chunks - ring, chunks), are to be given by stream_seed_segment.
 * -EINVAL: too near the start. */
int stream_seed(struct stream *stream, uint64_t chunks);
int stream_seed_segment(struct stream *stream, uint64_t chunk, const f16 *rows);

/* ---- pins: ranges that stay uncompressed ---- */

struct stream_pin {
    uint64_t from, to;     /* tokens of the stream, half-open */
    const int32_t *tokens; /* [before + to - from]: the stream's first tokens, then the range's */
    uint32_t before;       /* at most the adapter's sinks, and `from` */
};
/* These are the stream's pins from now on: the rows of new ones are computed, in this order, others
 * go. What follows attends to them, so the result is a function of where in the stream this is
 * called. -ENOSPC: STREAM_PINS_MAX, or more tokens than pin_tokens_max; -EINVAL. */
int stream_pins(struct stream *stream, const struct stream_pin *pins, uint32_t count);

/* ---- raw: a short text without compression ---- */

struct raw;
/* At most `tokens` of them, in the caller's memory (64-byte aligned), which it must keep; on a
 * device the rows lie there, until the engine is closed. */
size_t raw_bytes(const struct engine *engine, uint32_t tokens);
size_t raw_device_bytes(const struct engine *engine, uint32_t tokens);
int raw_open(struct raw **out, struct engine *engine, uint32_t tokens, void *memory,
             size_t memory_bytes);
void raw_reset(struct raw *raw); /* empty again */
/* Takes at most STREAM_BLOCK_TOKENS at base weights; targets and nll as in stream_score, NULL: not
 * scored. -ENOSPC: all rows are taken. */
int raw_score(struct raw *raw, const int32_t *tokens, const int32_t *targets, uint32_t count,
              float *nll);

/* ---- cold segments on disk ---- */

/*
 * A `spill` keeps the segments that left the rings of all streams, in folder/segments. Segments are
 * put by the compute thread and wait in a few staging places until the disk has them; a fetch reads
 * some of them back for one question. One thread, the step thread, does all input and output in
 * spill_step and alone calls what is marked so. What is on disk can be made again from the journal:
 * nothing here is synced for its own sake, and nothing is used that does not check out.
 */
enum segment_dtype { SEGMENT_NONE, SEGMENT_F16, SEGMENT_INT8 };

/* What was wrong with a record, and so was not used. */
enum segment_fault {
    SEGMENT_FINE,
    SEGMENT_MISSING,     /* deleted, or never written */
    SEGMENT_TORN,        /* its header is no header */
    SEGMENT_MISDIRECTED, /* of another stream or place */
    SEGMENT_STALE,       /* of another model, adapter, format or age of the stream */
    SEGMENT_ROTTEN,      /* changed since, or half written */
    SEGMENT_UNREADABLE,  /* the disk says so */
    SEGMENT_FAULTS
};
const char *segment_fault_name(enum segment_fault fault);

struct spill_options {
    const char *folder;
    uint32_t streams_max; /* attached at a time */
    uint32_t staging_max; /* segments waiting to be written; then spill_put says -EAGAIN */
    uint32_t fetches_max; /* at a time */
    enum segment_dtype dtype;
    bool plain; /* neither io_uring nor O_DIRECT */
    /* Called by spill_step when a fetch is done; NULL: none. */
    void (*fetched)(void *user);
    void *fetched_user;
};
struct spill_stat {
    const char *engine_name;                                    /* "io_uring" or "pread" */
    uint64_t segments_written, segments_fetched, segments_lost; /* lost: the disk refused them */
    uint64_t segments_merged, segments_dropped;                 /* for the quota's sake */
    uint64_t faults[SEGMENT_FAULTS];
    uint64_t bytes_disk, bytes_limit; /* limit 0: none */
    uint64_t wait_us;                 /* that spill_put_wait took */
    int last_error;
};
struct spill_stream_stat {
    uint64_t chunks_from, chunks_to; /* with a segment on disk */
    uint64_t records;                /* that hold them */
    uint64_t bytes_disk;
    uint64_t segments_merged, segments_dropped;       /* since it was attached */
    uint64_t segments_repaired, segments_approximate; /* written by spill_repair */
    uint64_t segments_lost;                           /* the disk refused them */
    uint64_t faults[SEGMENT_FAULTS];
};
/* A segment read back; rows are valid until the fetch is released. */
struct cold_segment {
    uint64_t number; /* of the newest chunk it covers */
    uint64_t token_from, token_to;
    uint64_t time_from_us, time_to_us; /* 0: not known */
    uint32_t weight;                   /* chunks averaged in it */
    const f16 *rows;                   /* as in segment_view */
};

/* A record that was found unfit; the segments of its chunks, averaged, are to be put there. */
struct spill_damage {
    uint64_t stream_id, chunk_from, chunk_to;
};

struct spill;
struct spill_fetch;
/* Bytes a cold segment takes on the disk. */
size_t spill_record_bytes(const struct engine *engine, enum segment_dtype dtype);
/* Cold segments in one file: with their type, what a folder's files must have been made with. */
uint32_t spill_file_records(const struct engine *engine, enum segment_dtype dtype);
size_t spill_bytes(const struct engine *engine, const struct spill_options *options);
/* Opens in the caller's memory, DISK_ALIGN (4,096) aligned. */
int spill_open(struct spill **out, const struct engine *engine, const struct spill_options *options,
               void *memory, size_t memory_bytes, char *error, size_t error_bytes);
/* Waits for what is under way. Step thread. */
void spill_close(struct spill **spill);
void spill_stat(struct spill *spill, struct spill_stat *out);
/* Readable when spill_step has something to do now; segments that were put wait a little for others
 * to be written with, so it is to be called every tenth of a second, too. */
int spill_fd(const struct spill *spill);
/* Starts what waits, ends what is done; with wait, until something under way ends. How much ended.
 */
uint32_t spill_step(struct spill *spill, bool wait);
/* Segments may take this much of the disk, 0: no limit. Older ones are merged pairwise, then
 * dropped, to stay below; with room for under some 100 segments, newer ones are lost too. */
void spill_limit(struct spill *spill, uint64_t bytes);

/* A stream's segments become known; epoch tells its ages apart (a stream computed anew has another
 * one). -ENOSPC: streams_max. Step thread, as the next. */
int spill_attach(struct spill *spill, uint64_t stream_id, uint64_t epoch);
void spill_detach(struct spill *spill, uint64_t stream_id);
/* Segments of chunks from `chunk` on go for good: overwritten, then given back. Any thread; the
 * stream must not be attached. */
int spill_erase(struct spill *spill, uint64_t stream_id, uint64_t chunk);
/* The first chunk that spill_erase leaves without a segment: one averaged with a later one goes
 * with it. */
uint64_t spill_erase_first(struct spill *spill, uint64_t stream_id, uint64_t chunk);
/* Any thread. -ENOENT: not attached. */
int spill_stream_stat(struct spill *spill, uint64_t stream_id, struct spill_stream_stat *out);

/* Takes a copy. Any thread. -EAGAIN: staging is full; -ENOENT: the stream is not attached. */
int spill_put(struct spill *spill, uint64_t stream_id, const struct segment_view *segment,
              uint64_t time_from_us, uint64_t time_to_us);
/* Waits for room; not for the step thread. */
int spill_put_wait(struct spill *spill, uint64_t stream_id, const struct segment_view *segment,
                   uint64_t time_from_us, uint64_t time_to_us);
/* Mending is one thread's, any but the step thread's, of one damage at a time: the oldest. False:
 * there is none. */
bool spill_damaged(struct spill *spill, struct spill_damage *out);
/* The next chunk's segment. */
void spill_mend_add(struct spill *spill, const struct segment_view *segment, uint64_t time_from_us,
                    uint64_t time_to_us);
/* After the last: the record is written in its place. -EAGAIN: staging is full, call again;
 * -ENOENT: it is of no use any more. */
int spill_mend_end(struct spill *spill, bool approximate);
/* This one cannot be mended. */
void spill_mend_skip(struct spill *spill);
/* The stream has spilled so many chunks: those that have no record are missing, unless the quota is
 * why. */
void spill_expect(struct spill *spill, uint64_t stream_id, uint64_t chunks);
/* Asks for the segments of some chunks, at most STREAM_RECALL_MAX. Any thread. -EAGAIN: all fetches
 * are in use. */
int spill_fetch(struct spill *spill, uint64_t stream_id, const uint64_t *chunks, uint32_t count,
                struct spill_fetch **out);
bool spill_fetched(const struct spill_fetch *fetch);
/* Of a fetch that is done: the segments that are fit for use and cover a chunk that was asked for,
 * oldest first; out [STREAM_RECALL_MAX]. */
uint32_t spill_segments(struct spill_fetch *fetch, struct cold_segment *out);
void spill_release(struct spill_fetch **fetch);

/* ---- fork: a question at one position ---- */

struct fork;
size_t fork_bytes(const struct engine *engine, const struct stream_options *options);
/* Opens at the stream's position, its pending tokens included. */
int fork_open(struct fork **out, const struct stream *stream, void *memory, size_t memory_bytes);
void fork_close(struct fork **fork);
/* fork_feed of many forks in one call; each appears once. best not NULL: gets the likeliest next
 * token, and fork_logits is not to be asked. 0, or the first result that is not 0. */
struct fork_work {
    struct fork *fork;
    const int32_t *tokens; /* [count] */
    uint32_t count;
    int32_t *best;
    int result; /* out: as of fork_feed */
};
int forks_feed(struct fork_work *work, uint32_t count);
/* Appends raw rows (base weights, no merging). One call computes all of them, in blocks; for
 * fairness feed at most STREAM_BLOCK_TOKENS at a time. -ENOSPC: past FORK_TOKENS_MAX; -EINVAL: bad
 * token. */
int fork_feed(struct fork *fork, const int32_t *tokens, uint32_t count);
/* Logits after the last token fed, [vocab_count]; NULL before the first. */
const float *fork_logits(struct fork *fork);
/* Brings cold segments in, oldest first, before the first token is fed or after fork_rewind:
 * they act as the chunks just before the ring, and summary and sinks move back to make room
 * (DESIGN 2.6). Replaces what was recalled before. -EINVAL: more than STREAM_RECALL_MAX, or not in
 * order; -EBUSY: tokens were fed. */
int fork_recall(struct fork *fork, const struct cold_segment *segments, uint32_t count);
/* How many segments fork_recall takes: pins may leave room for fewer inside the trained context. */
uint32_t fork_recall_max(const struct fork *fork);
/* stream_pins for this question alone, before fork_recall and fork_feed; -EBUSY: too late. */
int fork_pins(struct fork *fork, const struct stream_pin *pins, uint32_t count);
/* Forgets the tokens fed, not what was recalled. */
void fork_rewind(struct fork *fork);
/* What a question asks for, by meaning: how near each token of the vocabulary is to each of its
 * tokens, table [vocab][RECALL_QUERY_TOKENS]. tokens: the opening of its turn and, from `from` on,
 * the question; read with nothing before it, by the first layers alone. -ENOTSUP: the adapter has
 * no recall keys; -EBUSY: tokens were fed. */
int fork_recall_table(struct fork *fork, const int32_t *tokens, uint32_t count, uint32_t from,
                      uint8_t *table);
/* Bytes of such a table; 0: no recall keys. */
size_t recall_table_bytes(const struct engine *engine);
/* Of a chunk, by the distinct tokens in it: larger is nearer. */
uint32_t recall_score(const uint8_t *table, const uint16_t *tokens, uint32_t count);
uint64_t fork_position(const struct fork *fork); /* tokens of the stream it saw */
uint32_t fork_room(const struct fork *fork);     /* tokens that still fit */

/* ---- sampling ---- */

struct sample_options {
    float temperature;    /* 0: greedy */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    uint32_t top_k;       /* 0: off */
    float repeat_penalty; /* 1: off; over the tokens given to sample_token */
    uint64_t seed;
};
struct sampler {
    struct sample_options options;
    uint64_t state;
};
void sampler_init(struct sampler *sampler, const struct sample_options *options);
/* Picks a token. scratch [vocab_count] pairs; recent: tokens the repeat penalty covers. Same seed,
 * same logits: same token. */
struct sample_candidate {
    float logit;
    int32_t id;
};
int32_t sample_token(struct sampler *sampler, const float *logits, uint32_t vocab_count,
                     const int32_t *recent, uint32_t recent_count,
                     struct sample_candidate *scratch);

/* Stop strings over text that comes in pieces. Bytes that may be the start of a stop string are
 * held back. */
enum { STOP_STRINGS_MAX = 8, STOP_BYTES_MAX = 64 };
struct stop_strings {
    uint32_t count;
    uint8_t text[STOP_STRINGS_MAX][STOP_BYTES_MAX];
    uint32_t bytes[STOP_STRINGS_MAX];
    uint8_t held[STOP_BYTES_MAX];
    uint32_t held_bytes;
};
/* Feeds bytes; out (room for bytes_count + STOP_BYTES_MAX) gets what is safe to show. True: a stop
 * string was met, and what comes before it has been written. */
bool stop_feed(struct stop_strings *stop, const uint8_t *bytes, size_t bytes_count, uint8_t *out,
               size_t *out_bytes);
/* What is still held at the end of an answer. */
size_t stop_flush(struct stop_strings *stop, uint8_t *out);

#endif
