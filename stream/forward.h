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

/* One layer of one item. */
struct item_rows {
    struct engine *e;
    struct forward_item *item;
    uint32_t layer;
};

/* Keys and values of all items as computed; queries are rotated. */
void rows_make(struct engine *e, struct forward_item *items, uint32_t count, uint32_t layer);
/* Decisions and merges, behind those of the items before it. */
void rows_merge(const struct item_rows *rows);
/* Attention of all heads over what the item sees, and over its own rows up to each query. */
void rows_attend(const struct item_rows *rows);
/* What was made joins the window or the tail: an item after this one sees it. */
void rows_keep(const struct item_rows *rows);

#endif
