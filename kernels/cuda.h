/*
 * cuda: the device that computes many timelines together, seen from C.
 *
 * The CPU's table (kernels.h) takes one op of a few rows at a time. A GPU wants thousands of rows
 * in one launch, from timelines whose memories differ in length by layer and head, and must never
 * wait for the host to learn those lengths. So a device has ops of its own over a ragged batch:
 * `items` say which rows of the batch belong to which timeline and where its memory lies; lengths
 * stay on the device. Callers need not know how a kernel cuts the work, nor that cuBLASLt runs the
 * projections.
 *
 * Rules every op keeps:
 *  - Rows are batch-invariant: a row's result depends on its own timeline alone, bit for bit, at
 *    any number of rows. Reductions have a fixed order; projections use one cuBLASLt algorithm a
 *    weight, chosen once, without split-K; gates and SwiGLU are one kernel where they can be. But a
 *    pass whose items have few rows each (answers' next tokens) sums in another order than one that
 *    has blocks too: a stream's rows always come as blocks, a question's may not.
 *  - Activations that enter a projection are bf16, sums and the residual stream fp32, keys and
 *    values f16 (as kernels.h).
 *  - Ops are queued in order and return at once. An error is kept and comes back from sync(), with
 *    a sentence in error_text; what was queued after it does nothing of use.
 *  - Pointers are the device's unless a name says host.
 *
 * Limits: head_dim even, at most KERNELS_HEAD_DIM_MAX; a weight's cols, and the feed-forward width,
 * a multiple of 8. Attention has tensor cores for a head_dim of 32, 64 or 128 and up to 8 query
 * heads a KV head (4 at 128; single tokens 16), and is slow beyond. Threads: as kernels.h, a device
 * belongs to one thread.
 */
#ifndef SILT_KERNELS_CUDA_H
#define SILT_KERNELS_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t bf16; /* the upper half of a float */

enum {
    CUDA_ITEM_ROWS = 32, /* rows of an item at most */
    CUDA_RUN_ITEMS = 8,  /* items of a run that merges at most */
    CUDA_SPANS_MAX = 5,
    CUDA_LORAS_MAX = 2,
    CUDA_TILE_ROWS = 32,
    CUDA_FILE_ROWS = 64, /* that a product with tiles pays for */
};

/* Rows that lie alike for every (layer, kv head): head h's begin at (h * stride + first). */
struct cuda_span {
    const f16 *k, *v; /* [heads][stride][head_dim] */
    uint32_t stride, first, rows;
};

enum cuda_item_flag {
    CUDA_STREAM = 1, /* rows join the open window */
    CUDA_MERGES = 2, /* by DMC's rule; else each row is an entry */
    CUDA_COMP = 4,   /* rows are a chunk's segment */
    CUDA_TAIL = 8,   /* rows join a tail */
};

/*
 * Consecutive rows of one timeline. Merging lags by one item: a merging item's queries see
 *
 *     spans | entries of the previous chunk | entries of the open one as they stood when the item
 *     before the last one ended | rows of the item before, un-merged | tail rows | its own,
 * causally
 *
 * COMP rows and tails behind a merging stream see the same of the stream's last item; where nothing
 * merges an entry is a row and all of them are seen. heads = layers * kv_heads; arrays are indexed
 * layer * kv_heads + kv head.
 */
struct cuda_item {
    uint32_t row, rows; /* in the batch */
    uint32_t flags, run;
    uint32_t chunk_tokens; /* of the open chunk before the first row */
    uint64_t tokens;       /* of the stream before the first row: its first ones become sinks */
    struct cuda_span span[CUDA_SPANS_MAX];
    uint32_t span_count;
    /* un-merged rows of the item before: in the batch from before_row on, or raw_k (-1: as it was
     * when the pass began) */
    uint32_t before_rows;
    int32_t before_row;
    /* the window; open_count NULL: none */
    const uint32_t *window_row, *capacity, *previous_count; /* [heads] */
    uint32_t *open_count;                                   /* [heads] */
    const f16 *previous_k, *previous_v;                     /* [window rows][head_dim] */
    f16 *open_k, *open_v;
    float *z, *sum_k, *sum_v; /* [heads], [heads][head_dim] twice; NULL: the stream never merges */
    const float *ratio_bias;  /* [heads] */
    /* Where it merges, open_count are the entries in view; those of the last item lie behind them,
     * up to held, and the newest in view may have grown (stream/window.c). */
    uint32_t *held, *grown; /* [heads] */
    f16 *grown_k, *grown_v; /* [heads][head_dim] */
    f16 *raw_k, *raw_v;     /* [heads][CUDA_ITEM_ROWS][head_dim] the last item's rows */
    f16 *sink_k, *sink_v;   /* head h's at h * sinks, at h * fixed_rows */
    uint32_t sinks, fixed_rows;
    f16 *segment;                      /* COMP: out [heads][rows][2][head_dim] */
    f16 *tail_k, *tail_v;              /* [heads][tail_capacity][head_dim] */
    uint32_t tail_capacity, tail_rows; /* rows before the item's */
    uint32_t tail_first;               /* of them, the first one seen */
};

/* Items of one timeline that follow one another in the batch, and in its text. */
struct cuda_run {
    uint32_t item, items;
};

struct cuda_shape {
    uint32_t heads, kv_heads, group, head_dim, dim, ff, vocab;
    float norm_eps;
};

/* A batch on the device and its activations. */
struct cuda_batch {
    struct cuda_shape shape;
    uint32_t rows, items, runs;
    uint32_t rows_most;  /* of an item; 1: single tokens */
    uint32_t items_most; /* of a run */
    uint32_t keys_max;   /* that any query sees, a bound that the host knows */
    const struct cuda_item *item;
    const struct cuda_run *run;
    const int32_t *token;     /* [rows] -1 - slot: a COMP token */
    const int64_t *position;  /* [rows] */
    float *x;                 /* [rows][dim] residual stream */
    bf16 *h;                  /* [rows][dim] normed */
    float *qkv;               /* [rows][(heads + 2 kv_heads) * head_dim], before RoPE */
    bf16 *att;                /* [rows][heads * head_dim] */
    bf16 *gate_up;            /* [rows][2 ff] */
    bf16 *act;                /* [rows][ff] */
    float *decide;            /* [rows][2 kv_heads] logits of merging and importance */
    float *rotation;          /* [rows][head_dim / 2][2] cos, sin */
    f16 *k_local, *v_local;   /* [rows][kv_heads][head_dim] un-merged, k rotated */
    uint32_t *held;           /* [items][kv_heads] open entries that the item's queries see */
    f16 *edge_k, *edge_v;     /* [items][kv_heads][head_dim] the newest of them, as it was then */
    f16 *before_k, *before_v; /* [runs][kv_heads][CUDA_ITEM_ROWS][head_dim] raw rows, kept */
    float *partial;           /* of queries split along their keys, see partial_bytes */
};

/* bf16 [rows][cols], and the algorithm that its products use. */
struct cuda_weight {
    bf16 *data;
    uint32_t rows, cols;
};
struct cuda_lora {
    const float *a, *b; /* [rank][cols], [rows][rank] */
    uint32_t rank;
};

/* A finished chunk of one stream: the oldest segment of a full ring leaves for the summary, the
 * chunk's own joins (stream/ccm.c says why). */
struct cuda_slide {
    bool leaves;
    uint32_t comp, sinks, fixed_rows;
    uint32_t slot; /* of the ring, that the leaving segment gives up and the joining one takes */
    bool places_summary;                      /* once something was folded */
    float alpha;                              /* the leaving segment's share of the summary */
    const f16 *segment;                       /* [heads][comp][2][head_dim] new; NULL: none */
    f16 *fixed_k, *fixed_v, *ring_k, *sink_k; /* as stream/internal.h's layout */
    float *summary;
    /* What queries see of it: x + W x + b of each slot's key and value, [heads][2][in][out] and
     * [heads][2][head_dim]; NULL: x. */
    const float *map, *map_bias;
    f16 *leaving;       /* out, same shape as segment; NULL: nobody asks */
    const f16 *pin_raw; /* [heads][pin_stride][head_dim] un-rotated; pin_k: where they are turned */
    f16 *pin_k;
    uint32_t pins, pin_stride;  /* rows */
    const float *rotation;      /* [comp join | sinks | comp summary | pins][head_dim]: where they
                                 * go */
    const uint32_t *window_row; /* of the chunk just finished, as the next six */
    uint32_t *open_count, *held, *grown; /* held NULL: nothing waits to come into view */
    f16 *open_k, *open_v;
    const f16 *grown_k, *grown_v;
    uint32_t *next_count; /* of the next one, zeroed */
    uint64_t *digest;     /* out: of segment, summary, counts and entries */
};

/* Where projections' results go. */
enum cuda_out { CUDA_OUT_F32, CUDA_OUT_F32_ADD, CUDA_OUT_BF16 };

struct cuda {
    const char *name; /* "cuda" and the device's own name */
    char error_text[256];
    size_t memory_bytes, memory_free_bytes; /* at open */
    uint32_t processors;
    uint32_t graphs; /* recorded so far */
    bool ahead;  /* passes are recorded, not computed, and those that have been stay as they are */
    bool few;    /* products of single tokens: another algorithm, as fixed as the first */
    bool simple; /* attention by the plain kernel that the fast ones are checked against */
    bool apart;  /* SwiGLU apart from its projection, as it is where they cannot be one */
    struct cuda_state *state;

    /* ---- memory, copies, order ---- */
    void *(*take)(struct cuda *c, size_t bytes); /* NULL: none left; sync() says how it stands */
    void (*give)(struct cuda *c, void *memory);
    void *(*take_host)(struct cuda *c, size_t bytes); /* pinned */
    void (*give_host)(struct cuda *c, void *host);
    void (*copy_in)(struct cuda *c, void *to, const void *host, size_t bytes);
    void (*copy_out)(struct cuda *c, void *host, const void *from, size_t bytes);
    void (*copy)(struct cuda *c, void *to, const void *from, size_t bytes);
    void (*clear)(struct cuda *c, void *to, size_t bytes);
    /* A second order of copies out, beside the ops: begins once all queued so far is done. wait_out
     * returns when the oldest one not yet waited for has arrived. */
    void (*copy_out_later)(struct cuda *c, void *host, const void *from, size_t bytes);
    int (*wait_out)(struct cuda *c);
    /* Waits for all that was queued. 0, or the first error since the device was opened: -ENOMEM,
     * -EIO (the device is lost: close it). */
    int (*sync)(struct cuda *c);
    size_t (*memory_used)(struct cuda *c); /* of the device, by everybody */
    double (*seconds)(struct cuda *c);     /* of the device's clock, once what was queued is done */

    /* ---- passes that come again ---- */
    /* True: what was queued the last time under this key (at most 64 bytes) is queued again, as one
     * graph. False: the caller queues it, then asks graph_again, and where that is true queues it
     * once more: it could not be recorded. What is queued between the two may depend on the key
     * and on what lies on the device alone. */
    bool (*graph_begin)(struct cuda *c, const void *key, size_t key_bytes);
    bool (*graph_again)(struct cuda *c);

    /* ---- weights ---- */
    /* Rows of a file's tensor, Q8_0, Q4_0 or Q4_1, so that a product reads them in wide loads: the
     * same values in the same bytes, of a multiple of CUDA_TILE_ROWS rows, at a multiple of 16.
     * source: the device's copy of the file's bytes, at an even address; apart from out. */
    void (*tile)(struct cuda *c, void *out, const void *source, enum tensor_type type,
                 uint32_t rows, uint32_t cols);
    /* out = bf16(rows of a file's tensor + sum of b a). source: what tile made of them or, of
     * another type, the device's copy of the file's bytes; a at a multiple of 16. */
    void (*weight_make)(struct cuda *c, struct cuda_weight *out, const void *source,
                        enum tensor_type type, const struct cuda_lora *lora, uint32_t lora_count);
    /* out (rows x w.rows, row stride out_stride) = x w^T; x bf16 [rows][w.cols] */
    void (*matmul)(struct cuda *c, void *out, enum cuda_out kind, size_t out_stride,
                   const struct cuda_weight *w, const bf16 *x, uint32_t rows);

    /* The same with w_rows rows of a file's tensor as tile made them, rounded as weight_make
     * rounds them. For CUDA_FILE_ROWS rows and fewer: for many, making the weight bf16 first takes
     * less time. cols: a multiple of 32; x at a multiple of 16. */
    void (*matmul_file)(struct cuda *c, void *out, enum cuda_out kind, size_t out_stride,
                        const void *source, enum tensor_type type, uint32_t w_rows, uint32_t cols,
                        const bf16 *x, uint32_t rows);

    /* ---- a pass ---- */
    /* table: as weight_make's source. */
    void (*embed)(struct cuda *c, const struct cuda_batch *b, const void *table,
                  enum tensor_type type, const float *comp);
    void (*rotations)(struct cuda *c, float *out, const int64_t *position, uint32_t rows,
                      const double *inverse_frequency, uint32_t head_dim);
    /* h = bf16(norm(x)); rows from..to also get decide_cols dot products with the fp32 h. */
    void (*norm)(struct cuda *c, const struct cuda_batch *b, const float *weight,
                 const float *decide, uint32_t from, uint32_t to);
    /* Entries of every run: decisions, merging, sinks, segment, window and tail (kernels.h's
     * merge). bias [2 kv_heads] */
    void (*make_rows)(struct cuda *c, const struct cuda_batch *b, uint32_t layer,
                      const float *bias);
    /* RoPE on the queries, then att = softmax over what each item sees. */
    void (*attend)(struct cuda *c, const struct cuda_batch *b, uint32_t layer);
    /* Bytes of cuda_batch.partial for `items` items of one row and keys_max keys. */
    size_t (*partial_bytes)(const struct cuda_shape *shape, uint32_t items, uint32_t keys_max);
    /* act = SwiGLU of h's products with w [gates ff | ups ff], by way of gate_up or without it. */
    void (*gate)(struct cuda *c, const struct cuda_batch *b, const struct cuda_weight *w);
    void (*swiglu)(struct cuda *c, const struct cuda_batch *b); /* act of gate_up */
    /* As kernels.h's nll; targets < 0 give 0. */
    void (*nll)(struct cuda *c, float *out, const float *logits, const int32_t *targets,
                uint32_t rows, uint32_t vocab);

    /* ---- a chunk's end ---- */
    void (*slide)(struct cuda *c, const struct cuda_slide *slide, uint32_t count, uint32_t heads,
                  uint32_t head_dim);
    /* Rotates stored keys of all heads: out, in [heads][*_stride rows][head_dim], rotation
     * [rows][head_dim]. */
    void (*rotate)(struct cuda *c, f16 *out, size_t out_stride, const f16 *in, size_t in_stride,
                   const float *rotation, uint32_t rows, uint32_t heads, uint32_t head_dim);
    /* to [arrays][words] from as many places: many small things in one copy out. */
    void (*gather)(struct cuda *c, uint32_t *to, const uint32_t *const *from, uint32_t arrays,
                   uint32_t words);
    /* The column of each row's largest logit, the first of equals; 0 where none is a number. */
    void (*best)(struct cuda *c, int32_t *out, const float *logits, uint32_t rows, uint32_t vocab);
};

/* Opens the first device. -ENOTSUP: built without CUDA; -ENODEV: no usable device, driver or
 * cuBLASLt; -ENOMEM; each said in error. */
int cuda_open(struct cuda **out, char *error, size_t error_bytes);
/* Gives back all memory of the device that was taken; pinned memory is the taker's. */
void cuda_close(struct cuda **c);

#ifdef __cplusplus
}
#endif

#endif
