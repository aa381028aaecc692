/*
 * The engine on a GPU: weights there, streams' memories in one arena there, and passes over many
 * timelines at once (kernels/cuda.h). Between the files gpu*.c and their callers in stream/.
 *
 * A stream keeps its handle, its state's header and its counts on the host; the rest of its state
 * lies in the arena, in the layout that a CPU stream has, so that either can read the other's.
 * Nothing the host decides needs an answer from the device: chunks, slots and positions follow from
 * the number of tokens alone. So passes are queued two deep, and what comes back of one (counts,
 * digests, segments that leave) is taken while the next one runs; segments, most of the host's
 * work, also while a pass of the next call does.
 */
#ifndef SILT_STREAM_GPU_H
#define SILT_STREAM_GPU_H

#include "kernels/cuda.h"
#include "stream/internal.h"

enum {
    GPU_SLOTS = 2,            /* passes under way */
    GPU_ROWS_DEFAULT = 32768, /* of a pass */
    GPU_LOGIT_ROWS = 512,
    GPU_REGIONS_MAX = 16384, /* pieces of the arena */
    /* Keys that queries see are counted in such steps, so that passes repeat: attention of few rows
     * splits keys in them, whatever their bound, and whole blocks do not ask for it. */
    GPU_KEYS_STEP = 1024,
};

/* Rows that use the same weights lie together in a batch, in this order. */
enum gpu_kind { GPU_BASE, GPU_DMC, GPU_COMP, GPU_COMP_DMC, GPU_KINDS };

/* Rows [from, from + rows) of a matrix with the file's values, and what is added to them. */
struct gpu_part {
    const void *source; /* on the device, quantised ones in tiles */
    enum tensor_type type;
    bool quantised;
    uint32_t from, rows;
    struct cuda_lora lora[CUDA_LORAS_MAX];
    uint32_t loras;
};

/* A projection's matrix: bf16; or its parts, which are made bf16 in a scratch that all such
 * matrices share, before each product. */
struct gpu_weight {
    struct cuda_weight made;
    struct gpu_part part[PROJECTION_PARTS_MAX];
    uint32_t parts; /* 0: made is the matrix itself */
    bool one;       /* parts of one type, whose tiles are one matrix's */
};

struct gpu_layer {
    float *attn_norm, *ffn_norm; /* [dim] */
    float *decide, *decide_bias; /* [2 kv_heads][dim], [2 kv_heads]; NULL without DMC */
    struct gpu_weight qkv[GPU_KINDS], o[GPU_KINDS], gate_up, down;
};

struct gpu_region {
    size_t at, bytes;
    void *holder[2]; /* addresses of the pointers into it, that move with it; NULL: none */
};

/* A timeline's part of a pass, kept until what came back has been taken. */
struct gpu_lane {
    struct stream *stream; /* NULL: a fork's */
    uint32_t window;       /* which buffer was open */
    bool closed;           /* the chunk ended */
    uint64_t chunk;        /* its number */
    double rows;           /* seen by its first token, for stream_rows_block */
    uint32_t work;         /* place in what was fed, */
    uint32_t from, row;    /* its first token here, and that one's row in the pass */
    uint32_t tokens;
    bool leaves; /* a segment is in the slot's leaving */
    uint64_t leaving_number;
};

/* What one pass reads from the host and sends back; two of them take turns. */
struct gpu_slot {
    char *in; /* pinned, [in_bytes]: everything below up to `out` lies in it */
    struct cuda_item *item;
    struct cuda_run *run;
    int32_t *token, *target;
    int64_t *position, *slide_position;
    struct cuda_slide *slide;
    const uint32_t **source; /* [lanes] arrays to gather */
    uint32_t *counts;        /* pinned out: [lanes][count_words] */
    uint64_t *digest;        /* pinned out: [lanes] */
    f16 *leaving;            /* pinned out: [leave_max] segments */
    uint32_t *d_counts;      /* on the device, as the three above */
    uint64_t *d_digest;
    f16 *d_leaving;
    struct gpu_lane *lane;
    uint32_t rows, items, runs, lanes, slides, leaves;
    uint32_t kind_rows[GPU_KINDS + 1]; /* where a kind's rows begin */
    uint32_t rows_most, items_most, keys_max;
    bool ragged;         /* has a block of odd size, so that its like hardly comes again */
    uint32_t copies_out; /* begun for it */
};

struct gpu {
    struct cuda *cuda;
    struct cuda_shape shape;
    uint32_t heads;       /* layers * kv_heads */
    uint32_t count_words; /* of a state's arrays from count[0] to entries_total, at most */
    uint32_t rows_max, items_max, lanes_max, leave_max;
    uint32_t keys_most; /* in view of a query, as the host counts them */
    uint32_t turns; /* rows turned at a chunk's end: [comp join | sinks | comp summary | pins] */
    struct gpu_layer layer[LAYERS_MAX];
    struct gpu_weight head;
    bool keep;     /* quantised matrices stay as in the file */
    bool makes;    /* and are made bf16 for a few single tokens too */
    bf16 *scratch; /* where one of them is made; NULL: there are none */
    size_t scratch_bytes;
    void *embedding; /* the file's values, quantised ones in tiles */
    float *comp_embedding, *output_norm, *ratio_bias;
    float *summary_map, *summary_bias; /* as struct cuda_slide's; NULL: the adapter has none */
    double *inverse_frequency;
    size_t weights_bytes, work_bytes; /* on the device; the scratch is of the weights */
    size_t host_bytes;                /* pinned, and tables */
    struct cuda_batch batch;          /* activations; one pass at a time computes */
    char *in;                         /* on the device: the slot's in */
    size_t in_bytes;
    float *slide_rotation, *x_last, *logits, *nll;
    float *nll_host;             /* pinned: [rows] */
    const uint32_t **row_source; /* [logit rows] on the device */
    int32_t *best;
    uint32_t *scratch_count;
    f16 *segments; /* [lanes][segment]: COMP's */
    size_t segment_bytes;
    struct gpu_slot slot[GPU_SLOTS];
    uint32_t queued, taken; /* passes */
    struct gpu_slot *owes;  /* taken, but what left rings in it is not given yet; NULL: none */
    char *arena;
    size_t arena_bytes;
    struct gpu_region *region; /* in use, by place */
    uint32_t regions;
    char *state_host; /* pinned, for stream_state: a whole state */
    size_t state_host_bytes;
    f16 *segment_host; /* pinned [2][segment]: one to look at, and its rows on the way */
    f16 *
        recall_host; /* pinned [2][recall rows] on their way to a fork; NULL: nothing is recalled */
    float *hidden;   /* pinned [STREAM_BLOCK_TOKENS][dim]; NULL without recall keys */
    float *near;     /* [STREAM_BLOCK_TOKENS][vocab], and activations quantised, for the same */
    void *quantized;
};

/* gpu.c: opens the device for the weights that weights_load found, and plans its memory. */
int gpu_open(struct engine *engine, const struct engine_options *options, char *error,
             size_t error_bytes);
void gpu_close(struct engine *engine);
/* The arena, of so many bytes; 0 or -ENOMEM with a sentence. */
int gpu_arena(struct gpu *g, size_t bytes, char *error, size_t error_bytes);
/* A piece of the arena, cleared, into the pointer at `holder`, and true; or NULL and false: it is
 * full. A later one may move it: its place is what is there then, and in a second pointer into it,
 * which the caller sets (NULL: there is none). Both stay where they are until it is given back. */
bool gpu_take(struct gpu *g, size_t bytes, void *holder, void *second);
size_t gpu_aligned(size_t bytes); /* what a piece takes */
void gpu_give(struct gpu *g, void *memory);

/* gpu_weights.c */
int gpu_load_weights(struct engine *engine, char *error, size_t error_bytes);
/* What all of them would take as bf16, but for small things. */
size_t gpu_bf16_bytes(const struct engine *engine);
/* engine_info.device_kept_bytes */
size_t gpu_kept_bytes(const struct engine *engine);
/* " as bf16", for a sentence. */
const char *gpu_weights_are(const struct gpu *g);
/* The matrix for the products queued next, until another is asked for. */
const struct cuda_weight *gpu_weight(struct gpu *g, const struct gpu_weight *w);

/* gpu_feed.c: a pass is begun; gpu_pass.c: filled kind by kind, and queued. */
struct gpu_slot *gpu_pass_begin(struct engine *e); /* waits for what its slot still holds */
/* Rows for an item of a timeline; tokens NULL: COMP. NULL where the pass is full. */
struct cuda_item *gpu_pass_item(struct engine *e, struct gpu_slot *p, enum gpu_kind kind,
                                const int32_t *tokens, uint32_t rows, int64_t position, bool joins);
/* What a stream's rows see, and where its rows go. */
void gpu_item_stream(const struct stream *s, struct cuda_item *item);
void gpu_item_tail(const struct tail *t, struct cuda_item *item);
void gpu_pass_run(struct engine *e, struct gpu_slot *p);
void gpu_pass_layers(struct engine *e, struct gpu_slot *p, uint32_t layers); /* the first ones */
/* Records the pass for later, by its numbers of rows and items alone, and computes nothing. Kernels
 * that it calls have been used before. */
void gpu_pass_record(struct engine *e, struct gpu_slot *p, uint32_t layers);
/* Queues the copy of a part of the slot's pinned memory; where it will be on the device. */
void *gpu_sent(struct gpu *g, const struct gpu_slot *p, const void *part, size_t bytes);
/* Logits of `rows` rows (places in the batch), at most GPU_LOGIT_ROWS, into g->logits. */
void gpu_logits(struct engine *e, const uint32_t *row, uint32_t rows);
/* Losses of the batch's first rows, whose targets are in the slot, to g->nll_host: there once it
 * returns. */
int gpu_pass_score(struct engine *e, struct gpu_slot *p, uint32_t rows);

/* gpu_feed.c: stream.h's functions for streams on the device. */
/* score NULL: none is scored. */
int gpu_streams_feed(struct stream_work *work, const struct stream_targets *score, uint32_t count);
/* What leaves in the last pass is given by the next one, or by gpu_give_leaving. */
int gpu_streams_feed_ahead(struct stream_work *work, const struct stream_targets *score,
                           uint32_t count);
void gpu_give_leaving(struct engine *e);
int gpu_stream_open(struct stream *s);
void gpu_stream_send(struct stream *s); /* what the host keeps of it, to the device */
void gpu_stream_close(struct stream *s);
const void *gpu_stream_state(const struct stream *s);
int gpu_stream_restore(struct stream *s, const void *state);
void gpu_place_old_rows(struct stream *s, uint32_t recalled);
/* As ccm.c's. */
void gpu_set_ring(struct stream *s, uint32_t slot, uint64_t chunk, const f16 *rows);
/* Valid until the next; NULL: the device has failed. */
const f16 *gpu_ring_segment(const struct stream *s, uint32_t slot);
size_t gpu_stream_bytes(const struct layout *l); /* of the arena */

/* gpu_fork.c */
int gpu_fork_open(struct fork *f, const struct stream *from, uint32_t capacity);
/* A tail alone: raw rows without a stream, for measurements. */
int gpu_tail_open(struct fork *f, struct engine *e, uint32_t capacity);
void gpu_fork_close(struct fork *f);
int gpu_forks_feed(struct fork_work *work, uint32_t count);
int gpu_fork_recall(struct fork *f, const struct cold_segment *segments, uint32_t count);
size_t gpu_recall_values(const struct engine *e); /* of a fork's recalled keys, or values */
size_t gpu_fork_bytes(const struct engine *e, const struct layout *l); /* of the arena */

/* gpu_warm.c: see engine_warm */
int gpu_warm(struct engine *e);

/* gpu_rows.c: raw rows on the device, and rows that move or turn there. */
/* Rows join a tail that no stream stands before, computed by the first layers. first [rows]: where
 * in the tail each row's view begins, as struct tail says; NULL: where the tail's does. targets
 * NULL: not scored. Of many tails in one pass: layers and LoRA as the first's, and no more than
 * gpu_rows_most. */
struct gpu_rows {
    struct tail *tail;
    const int32_t *tokens, *targets; /* [count] */
    const uint32_t *first;           /* [count] */
    uint32_t count;                  /* at most a block, or a chunk where first is NULL */
    uint32_t layers;
    int64_t position; /* of the first row */
    bool dmc_lora;
    float *nll; /* out: [count], where there are targets */
};
int gpu_rows_run(struct engine *e, const struct gpu_rows *rows, uint32_t count);
uint32_t gpu_rows_most(const struct engine *e); /* blocks of tails in a pass */
/* out rows [i] = in rows [i] of all heads, turned to step * (position + i); strides in rows. */
void gpu_rows_turn(struct engine *e, f16 *out, uint32_t out_stride, const f16 *in,
                   uint32_t in_stride, int64_t position, int step, uint32_t count);
/* Rows of all heads that may not overlap. */
void gpu_rows_copy(struct engine *e, f16 *out, uint32_t out_stride, const f16 *in,
                   uint32_t in_stride, uint32_t count);
size_t gpu_tail_bytes(const struct engine *e, uint32_t capacity); /* of the arena */

#endif
