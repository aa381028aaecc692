/* What forward.c and rows.c share: the work area of a pass, and one layer of one of its items. */
#ifndef SILT_STREAM_FORWARD_H
#define SILT_STREAM_FORWARD_H

#include "stream/internal.h"

struct work {
    size_t bytes;
    uint32_t q_dim, qkv_dim, lora_dim;
    float *x;               /* [rows][dim] residual stream */
    float *h;               /* [rows][dim] normed */
    float *qkv;             /* [rows][q_dim + 2 kv_dim] */
    float *att;             /* [rows][q_dim] */
    float *gate_up;         /* [rows][2 ff] */
    float *act;             /* [rows][ff] */
    float *lora;            /* [rows][lora_dim] */
    float *rotation;        /* [rows][head_dim / 2][2] */
    float *importance;      /* [kv_heads][rows] */
    float *logits;          /* [LOGIT_ROWS][vocab] */
    uint8_t *a;             /* [kv_heads][rows] */
    f16 *k_local, *v_local; /* [kv_heads][rows][head_dim]: rows as computed, k rotated */
    f16 *k_entry, *v_entry; /* the same shape: the running entry after each row */
    void *q;                /* quantised activations of the widest input */
};

static inline uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Work on rows one by one is cut into pieces of at most a block's rows of one item. */
struct row_piece {
    uint32_t item, from, to; /* rows of the item */
};

static inline uint32_t row_pieces_of(const struct forward_item *item)
{
    return (item->rows + STREAM_BLOCK_TOKENS - 1) / STREAM_BLOCK_TOKENS;
}

static inline uint32_t row_piece_count(const struct forward_item *items, uint32_t count)
{
    uint32_t pieces = 0;
    for (uint32_t i = 0; i < count; i++)
        pieces += row_pieces_of(&items[i]);
    return pieces;
}

static inline struct row_piece row_piece_at(const struct forward_item *items, uint32_t index)
{
    struct row_piece piece = {0, 0, 0};
    for (; index >= row_pieces_of(&items[piece.item]); piece.item++)
        index -= row_pieces_of(&items[piece.item]);
    const struct forward_item *item = &items[piece.item];
    piece.from = index * STREAM_BLOCK_TOKENS;
    piece.to = piece.from + STREAM_BLOCK_TOKENS;
    piece.to = piece.to < item->rows ? piece.to : item->rows;
    return piece;
}

/* One layer of one item. */
struct item_rows {
    struct engine *e;
    struct forward_item *item;
    uint32_t layer;
};

/* Keys and values of all items as computed, those of raw ones in their tails; queries are rotated.
 */
void rows_make(struct engine *e, struct forward_item *items, uint32_t count, uint32_t layer);
/* Decisions and merges, behind those of the items before it. */
void rows_merge(const struct item_rows *rows);
/* Attention of all heads over what the item sees, and over its own rows up to each query. */
void rows_attend(const struct item_rows *rows);
/* What was made joins the window: an item after this one sees it. */
void rows_keep(const struct item_rows *rows);

#endif
