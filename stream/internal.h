/*
 * What the files of stream/ share, and tests may look into: the engine's weights, the layout of a
 * stream's state, and one forward pass over rows of several timelines. Not for the daemon.
 */
#ifndef SILT_STREAM_INTERNAL_H
#define SILT_STREAM_INTERNAL_H

#include <time.h>

#include "stream/gguf.h"
#include "stream/stream.h"

enum {
    FORWARD_ROWS_MAX = KERNELS_ROWS_MAX,
    LAYERS_MAX = 256,
    STATE_MAGIC = 0x746c6973, /* "silt" */
    STATE_VERSION = 4,        /* 2: segments join the ring at once, merges are seen a block late;
                               * 3: counts lie together; 4: the list of pins behind them */
};

static inline uint64_t monotonic_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* ---- weights ---- */

struct shape {
    uint32_t layers, heads, kv_heads, group, head_dim, kv_dim, dim, ff, vocab, context;
    float norm_eps;
    /* of the adapter; without one: comp 0, ring 0 */
    uint32_t chunk, comp, ring, sinks;
    uint32_t pins; /* tokens a stream may pin */
    float alpha_min;
};

/* One or several matrices that read the same input, fused into one where their types allow it. */
enum { PROJECTION_PARTS_MAX = 3 };
struct projection {
    struct weight part[PROJECTION_PARTS_MAX];
    uint32_t column[PROJECTION_PARTS_MAX]; /* where a part's outputs begin */
    uint32_t count;
};

/* Low-rank update of q, k, v, o (LoRA, arXiv 2106.09685); `in` stacks the A of q, k, v and, for
 * DMC, the decision rows. */
struct lora {
    struct weight in;         /* [rank_q + rank_k + rank_v (+ 2 kv_heads)][dim] */
    struct weight b[3];       /* q, k, v: [out][rank] */
    struct weight o_a, o_b;   /* [rank][heads * head_dim], [dim][rank] */
    uint32_t rank[4];         /* q, k, v, o; 0: none */
    uint32_t decide_column;   /* of the decision logits in the outputs of in */
    const float *decide_bias; /* [2 * kv_heads] */
};

struct layer {
    const float *attn_norm, *ffn_norm; /* [dim] */
    struct projection qkv;             /* [heads * head_dim | kv_dim | kv_dim][dim] */
    struct projection o;               /* [dim][heads * head_dim] */
    struct projection gate_up;         /* [ff | ff][dim] */
    struct projection down;            /* [dim][ff] */
    struct lora comp, dmc;
    /* What queries see of the summary: x + W x + b of each KV head's keys, then of its values.
     * NULL: the mean itself. */
    struct weight *summary_map; /* [2 * kv_heads], [head_dim][head_dim] each */
    const float *summary_bias;  /* [2 * kv_heads][head_dim] */
};

/* How questions find chunks (FORMAT.md, recall keys). */
enum { RECALL_QUESTION_MAX = 64, RECALL_DIM_MAX = 256, RECALL_VOCAB_MAX = 1 << 16 };
struct recall_key {
    uint32_t layer, dim;      /* dim 0: the adapter has none */
    struct weight token;      /* [vocab][dim], as long as the gain */
    struct weight query;      /* [dim][2 * model dim] */
    const float *query_bias;  /* [dim] */
    const float *weight;      /* [vocab] */
    const float *weight_deep; /* [model dim] */
    float *input;             /* [STREAM_BLOCK_TOKENS][2 * model dim] scratch */
    float *queries;           /* [RECALL_QUESTION_MAX][dim] scratch */
};

/* Raw rows of a fork or of a history. */
struct tail {
    f16 *k, *v; /* [layers * kv_heads][capacity][head_dim] */
    uint32_t capacity;
    uint32_t start, count; /* attended rows are start..count */
    const uint32_t *first; /* [rows of the item] per query, relative to start; NULL: all. Without a
                              stream only */
    f16 *sink_k_raw, *sink_k, *sink_v; /* [layers * kv_heads][sinks][head_dim]; NULL: none */
    uint32_t sinks;                    /* rows of them attended */
};

struct engine {
    struct kernels *kernels;
    struct tokenizer *tokenizer;
    struct gguf *model, *adapter;
    struct lexicon *lexicon; /* NULL: the adapter has none */
    struct engine_info info;
    struct engine_times times;
    struct shape shape;
    bool exact; /* fp32 throughout, see engine_options */
    struct layer layer[LAYERS_MAX];
    const float *output_norm;            /* [dim] */
    struct projection head;              /* [vocab][dim] */
    const struct gguf_tensor *embedding; /* in the model's map */
    const float *comp_embedding;         /* [comp][dim] */
    const float *ratio_bias;             /* [ratios above 1][layers * kv_heads] */
    const uint32_t *quota;               /* [ratios above 1][layers * kv_heads] */
    struct recall_key recall;
    double *inverse_frequency; /* [head_dim / 2] of RoPE */
    void *weights_memory;
    size_t weights_used;
    struct work *work;         /* activations, forward.c */
    f16 *segment;              /* [layers * kv_heads][comp][2][head_dim]: the segment being made */
    f16 *leaving;              /* the same shape: the one leaving the ring */
    struct XXH3_state_s *hash; /* for the chain, ccm.c */
    struct tail pin_tail;      /* where a pin's rows are computed, pins + sinks of them */
    float *rotation;           /* [max(comp, sinks)][head_dim / 2][2] */
    float *mapped;             /* [comp][head_dim]: slots of a summary that is mapped */
    struct gpu *gpu;           /* NULL: computed on the CPU; see gpu.h */
    struct forward_trace *trace; /* tests: what the DMC heads decided; NULL: none */
};

/* Decisions of every stream row, in the order computed; entries [rows][layers * kv_heads]. */
struct forward_trace {
    uint8_t *merged;
    float *logit;
    uint32_t rows, rows_max;
};

/* weights.c: opens both files, checks them against each other, packs. */
int weights_load(struct engine *engine, const struct engine_options *options, char *error,
                 size_t error_bytes);
void weights_free(struct engine *engine);
/* metadata.c: shape, RoPE and vocabulary size of e->model, and chunk and sinks of a window alone;
 * chunk, ring, ratios of e->adapter, whose
 * fingerprint of the base must be the model's (-ESTALE). Each says in error what is wrong. */
int metadata_read_model(struct engine *engine, char *error, size_t error_bytes);
int metadata_read_adapter(struct engine *engine, const char *path, char *error, size_t error_bytes);
/* The model's general.name, terminated, as a log, JSON and a terminal may have it: whole UTF-8
 * characters that fit, "?" for what is none or would steer a terminal. Empty where it has none. */
void metadata_model_name(const struct gguf *model, char *out, size_t out_bytes);
/* lexicon.c: the adapter's, for free(); NULL: it has none. 0 or -ENOMEM. */
int lexicon_open(struct lexicon **out, const struct gguf *adapter);
/* Writes "file: what" into error and returns code. Bytes are said in MB, as silt has them. */
enum { MB = 1000000 };
int fail_with(char *error, size_t error_bytes, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- a stream's state: one flat block, no pointers (window.c lays it out) ---- */

/*
 * Rows of one (layer, kv head) in `fixed`, rotated for use: [summary m | sinks | ring R*m]. What is
 * visible is always one run of them: nothing in the first chunk, the ring in the second, sinks and
 * ring until a segment leaves it, then all.
 */
struct layout {
    uint32_t ratio, ratio_index; /* index into quota and ratio_bias; unused at 1 */
    uint32_t ring;               /* segments */
    uint32_t fixed_rows;         /* comp + sinks + ring * comp */
    uint32_t heads;              /* layers * kv_heads */
    uint32_t head_dim;
    uint32_t window_rows; /* sum of the capacities of all heads, one chunk */
    size_t capacity;      /* u32 [heads]: entries a head may hold a chunk */
    size_t row;           /* u32 [heads]: first row of a head in a window buffer */
    size_t count[2];      /* u32 [heads]: entries in view, by buffer */
    /* ratio above 1: */
    size_t held;             /* u32 [heads]: entries in view and those that wait behind them */
    size_t grown;            /* u32 [heads]: 1: the newest entry in view has grown, to grown_k, v */
    size_t entries_total;    /* u64 [heads]: entries of closed chunks */
    size_t pins;             /* struct pin_state, as stream/pin.c keeps them; pin_rows 0: none */
    size_t fixed_k, fixed_v; /* f16 [heads][fixed_rows][head_dim] */
    size_t sink_k;           /* f16 [heads][sinks][head_dim], un-rotated */
    size_t summary;          /* f32 [heads][comp][2][head_dim], un-rotated K | V */
    size_t ring_k;           /* f16 [ring][heads][comp][head_dim], un-rotated */
    size_t window_k[2], window_v[2]; /* f16 [window_rows][head_dim] */
    /* The rest at ratios above 1. The newest block of the open chunk: its rows as computed, and its
     * entries, which come into view a block later (window.c). */
    size_t grown_k, grown_v;      /* f16 [heads][head_dim] */
    size_t raw_k, raw_v;          /* f16 [heads][STREAM_BLOCK_TOKENS][head_dim] */
    size_t z, sum_k, sum_v;       /* f32 [heads], [heads][head_dim] twice: the running entries */
    uint32_t pin_rows;            /* capacity of the next three */
    size_t pin_raw, pin_k, pin_v; /* f16 [heads][pin_rows][head_dim]: K un-rotated, K placed, V */
    size_t bytes;
};

struct state {
    uint32_t magic, version;
    uint64_t bytes;
    uint64_t model_fingerprint, adapter_fingerprint;
    uint32_t ratio, ring;
    uint64_t tokens;        /* in finished blocks */
    uint64_t chunks;        /* finished */
    uint64_t summary_count; /* segments folded */
    uint64_t hash, hash_chunk;
    uint32_t chunk_tokens;           /* of the open chunk, in finished blocks */
    uint32_t ring_count, ring_first; /* segments held; slot of the oldest */
    uint32_t open;                   /* which window buffer the open chunk fills */
    uint32_t pending_count;
    int32_t pending[STREAM_BLOCK_TOKENS]; /* tokens that wait for their block */
};

struct pin_range {
    uint64_t from, to; /* tokens */
};
struct pin_state {
    uint32_t count, rows;
    struct pin_range pin[STREAM_PINS_MAX]; /* in the order of their rows */
};

#define STATE_AT(state, offset, type) ((type *)(void *)((char *)(state) + (offset)))
#define STATE_AT_CONST(state, offset, type)                                                        \
    ((const type *)(const void *)((const char *)(state) + (offset)))

int layout_make(struct layout *out, const struct engine *engine,
                const struct stream_options *options, char *error, size_t error_bytes);
void state_init(struct state *state, const struct engine *engine, const struct layout *layout);

struct stream {
    struct engine *engine;
    struct layout layout;
    struct state *state;    /* on a GPU: up to layout.fixed_k */
    char *device;           /* the whole state in the GPU's arena; NULL: on the CPU */
    uint32_t window_most;   /* on a GPU: entries of a head a chunk at most */
    uint32_t fed, last_row; /* on a GPU: of the work under way */
    segment_leave_fn *leave;
    void *leave_user;
    /* a fork's: cold segments brought back, rotated to where they act (recall.c) */
    f16 *recall_k, *recall_v; /* [layers * kv_heads][STREAM_RECALL_MAX * comp][head_dim] */
    uint32_t recall_rows;
    /* evaluation only */
    double rows_block[STREAM_BLOCK_TOKENS]; /* see stream_rows_block */
    uint32_t rows_block_count;
    bool hide_memory; /* ring and summary are not attended */
    bool hide_summary;
    const struct stream *swap; /* ring and summary are read from this one, at the same position */
};

/* ---- one forward pass ---- */

enum forward_kind {
    FORWARD_STREAM, /* a whole block of the open chunk: DMC at ratios above 1, joins the window */
    FORWARD_COMP,   /* the COMP tokens of the chunk just filled: their K, V are its segment */
    FORWARD_RAW,    /* rows join a tail, un-merged */
};

/* A question in its own rows behind a copy of a stream's state. */
struct fork {
    struct stream stream; /* over the copied state */
    struct tail tail;     /* the stream's pending tokens, then those of the question */
    float *logits;        /* [vocab] */
    uint32_t pending;     /* rows of the tail that no rewind forgets */
    bool fed;
    uint64_t position;
    uint32_t fed_count, last_row; /* on a GPU: of the work under way */
    bool in_pass;
};

struct forward_item {
    enum forward_kind kind;
    const struct stream *stream; /* whose rows are attended; NULL: the tail alone */
    struct state *state;         /* the state written by STREAM items */
    struct tail *tail;           /* RAW */
    const int32_t *tokens;       /* [rows]; unused by COMP */
    uint32_t rows;
    int64_t position;  /* of the first row; unused by COMP */
    f16 *segment;      /* COMP: out, [layers * kv_heads][comp][2][head_dim] */
    bool dmc_lora;     /* RAW: with the DMC LoRA: a fork's pending tokens, and a baseline */
    uint32_t row;      /* set by forward_run: first row in the batch */
    uint32_t chunk_at; /* set by forward_run: tokens of the open chunk before it */
};

int work_open(struct work **out, struct engine *engine);
void work_close(struct work **work);
size_t work_bytes(const struct work *work);
/* Runs the layers over all rows of the items, at most FORWARD_ROWS_MAX together. An item sees what
 * those before it leave in the same stream's window. Hidden states stay in the work area. */
void forward_run(struct engine *engine, struct forward_item *items, uint32_t count);
/* The first layers alone, for one item: hidden states [rows][dim], valid until the next run. */
const float *forward_hidden(struct engine *engine, struct forward_item *item, uint32_t layers);
/* Scratch that no pass holds on to: [STREAM_BLOCK_TOKENS][vocab]; activations of the widest input.
 */
void work_scratch(struct work *work, float **logits, void **quantized);
/* Logits of rows [row, row + rows) of the last run into out [rows][vocab]. */
void forward_logits(struct engine *engine, uint32_t row, uint32_t rows, float *out);
/* nll [rows] of targets after those rows; targets < 0 give 0. */
void forward_nll(struct engine *engine, uint32_t row, uint32_t rows, const int32_t *targets,
                 float *nll);
/* cos, sin of position * frequency for one row: out [head_dim / 2][2]; angle in double, reduced mod
 * 2 pi. */
void rotation_row(const struct engine *engine, int64_t position, float *out);

/* recall_key.c: keys of the whole vocabulary as Q8_0 rows [vocab][map rows]; scratch
 * [KERNELS_ROWS_MAX][model dim + map rows]. */
void recall_key_rows(struct engine *engine, const struct weight *map, const float *bias,
                     const float *gain, float *scratch, uint8_t *rows);

/* window.c: one head's rows of one block. */
struct block_rows {
    const f16 *k, *v; /* [rows][head_dim], as computed, k rotated */
    /* ratio above 1 */
    const f16 *entry_k, *entry_v; /* [rows][head_dim]: the running entry after each token */
    const uint8_t *a;             /* [rows] decisions, 0 or 1 */
    uint32_t rows;
};
/* Decides for one head of a block that begins `chunk_at` tokens into its chunk: a [rows] from
 * logits (stride floats apart), forced by chunk start and quota. */
void window_decide(const struct layout *layout, const struct state *state, uint32_t head,
                   const float *logit, size_t stride, uint32_t chunk_at, uint32_t rows, uint8_t *a);
/* Takes a block's rows into the open window of one head. Ratio above 1: what waited comes into
 * view, the block's own entries wait, its rows stand for them. */
void window_enter(const struct layout *layout, struct state *state, uint32_t head,
                  const struct block_rows *block);
/* The chunk is full and its segment made: what waited comes into view. */
void window_close(const struct layout *layout, struct state *state);
/* Rows of the newest block that are seen as they were computed, `chunk_at` tokens into the open
 * chunk: of every head the same. */
uint32_t window_raw_rows(const struct layout *layout, uint32_t chunk_at);

/* ccm.c: the COMP tokens of the chunk that a pass of so many rows fills, as an item behind them.
 * False: there is no ring, or no room in the pass. */
/* To whoever watches segments leave; somebody does. */
void ccm_give_segment(struct stream *stream, const struct segment_view *segment);
bool ccm_comp_item(struct stream *stream, uint32_t rows, struct forward_item *out);
/* The segment of the chunk just filled joins the ring, and the window slides. Runs COMP where no
 * pass has computed it. */
void ccm_close_chunk(struct stream *stream, bool computed);
/* Rows of `fixed` that are attended: [*first, *first + result). */
uint32_t ccm_visible(const struct engine *engine, const struct layout *layout,
                     const struct state *state, uint32_t *first);
/* Start of the oldest ring chunk; without a ring, of the previous chunk. */
int64_t ccm_ring_start(const struct engine *engine, const struct state *state);
/* A chunk's segment to a place of the ring, rotated to its own positions. */
void ccm_set_ring(struct stream *stream, uint32_t slot, uint64_t chunk, const f16 *rows);
/* Summary and sinks to their places before the ring and `recalled` chunks. */
void ccm_place_old_rows(struct stream *stream, uint32_t recalled);

/* pin.c */
uint32_t pin_rows(const struct layout *layout, const struct state *state); /* attended */
bool pin_plausible(const struct layout *layout, const struct state *state);
/* Rotates them to where they act, the first at `position`. */
void pin_place(struct stream *stream, int64_t position);

/* history.c, for evaluation: a sliding window of raw rows at base weights, its sinks kept and
 * re-placed (StreamingLLM, arXiv 2309.17453). Query t attends its newest rows_visible[t] rows, the
 * sinks and itself among them. */
struct history;
int history_open(struct history **out, struct engine *engine, uint32_t rows_max, bool dmc_lora);
void history_close(struct history **history);
void history_reset(struct history *history);
/* Forgets all but the first `tokens`. -EINVAL: it has fewer, or has slid. */
int history_rewind(struct history *history, uint64_t tokens);
/* As stream_score. rows_visible [count], each in sinks + 1 .. rows_max; NULL: rows_max for all.
 * targets NULL: not scored. */
int history_score(struct history *history, const int32_t *tokens, const int32_t *targets,
                  uint32_t count, const uint32_t *rows_visible, float *nll);
/* The same of many histories of one engine and one dmc_lora, at most a block each: together what a
 * device computes together. Each appears once. */
struct history_work {
    struct history *history;
    const int32_t *tokens, *targets; /* [count] */
    uint32_t count;
    const uint32_t *rows_visible; /* [count] */
    float *nll;                   /* out: [count] */
};
int histories_score(const struct history_work *work, uint32_t count);

/* Evaluation: ring and summary are not attended (the sinks are). */
void stream_hide_memory(struct stream *stream, bool hide);
void stream_hide_summary(struct stream *stream, bool hide); /* the ring is attended */
/* Evaluation: ring and summary are read from other, which must be at the same position with the
 * same options: feed both in lockstep, a block each, other last (fed first, it has already slid at
 * a chunk's end). NULL: back to its own. */
void stream_swap_memory(struct stream *stream, const struct stream *other);
/* Evaluation: as fork_rewind, but the first `tokens` of those fed stay; fork_logits is NULL until
 * more are fed. -EINVAL: fewer were fed. */
int fork_rewind_to(struct fork *fork, uint32_t tokens);
/* KV rows that a query attends now, besides its own: mean over layers and heads. */
double stream_rows_now(const struct stream *stream);
/* Those that each of the last `count` tokens attended, its own included, oldest first; of a stream
 * that is fed block by block, at most a block. */
void stream_rows_block(const struct stream *stream, double *rows, uint32_t count);

#endif
