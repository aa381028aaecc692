/*
 * The layout in memory of weights and activations that every x86 version reads.
 *
 * A weight is cut into panels of 16 output columns (rows of the file's matrix), so that a vector
 * register holds the sums of one panel for one row of activations and never needs a sum across its
 * lanes. Inside a panel the inner dimension K runs in groups of 4, the width of a byte dot product:
 * group g of all 16 columns lies side by side in 64 bytes.
 *
 *   quantised   codes [blocks][code bytes] | d [blocks][16] f16 | m [blocks][16] f16 (Q4_1 alone)
 *               4 bits: 4 x 64 bytes a block; low nibbles hold groups 0-3, high ones groups 4-7
 *               8 bits: 8 x 64 bytes a block, code + 128 (unsigned, as vpdpbusd wants it)
 *   float       [K][16] in the file's own type
 *
 * 4-bit codes stay 4-bit: decode is bound by the bytes it reads. The columns that pad the last
 * panel are zero.
 *
 * Activations are cut into tiles of 16 rows, the last one as many as are left. Inside a tile a
 * block of 32 lies next to the same block of the next row, so that one pointer and short offsets
 * reach all of them:
 *
 *   codes [tile][block][row][32] int8 | scale, scaled_sum, neg_sum [tile][block][row]
 */
#ifndef SILT_KERNELS_PACKED_H
#define SILT_KERNELS_PACKED_H

#include "kernels/internal.h"

enum { PANEL_COLS = 16, TILE_ROWS = 16 };

enum packed_layout {
    PACKED_Q4_1, /* w = d code + m */
    PACKED_Q4_0, /* w = d (code - 8) */
    PACKED_Q8_0, /* w = d (code - 128) */
    PACKED_F32,
    PACKED_F16,
    PACKED_BF16,
};

weight_bytes_fn weight_bytes_packed;
weight_pack_fn weight_pack_packed;
quantize_bytes_fn quantize_bytes_packed;

/* ---- one panel of a weight ---- */

static inline size_t panel_code_bytes(enum packed_layout layout)
{
    return layout == PACKED_Q8_0 ? 512 : 256;
}

static inline size_t panel_bytes(enum packed_layout layout, uint32_t cols)
{
    size_t blocks = cols / KERNELS_BLOCK;
    switch (layout) {
    case PACKED_Q4_1:
        return blocks * (256 + 64);
    case PACKED_Q4_0:
        return round_up(blocks * (256 + 32), 64);
    case PACKED_Q8_0:
        return round_up(blocks * (512 + 32), 64);
    case PACKED_F32:
        return (size_t)cols * 64;
    default:
        return round_up((size_t)cols * 32, 64);
    }
}

struct panel {
    const uint8_t *codes; /* [blocks][code bytes] */
    const f16 *d, *m;     /* [blocks][16] */
};

static inline struct panel panel_at(const struct weight *w, enum packed_layout layout,
                                    uint32_t index)
{
    size_t blocks = w->cols / KERNELS_BLOCK;
    const uint8_t *codes = (const uint8_t *)w->data + index * panel_bytes(layout, w->cols);
    const f16 *d = (const f16 *)(const void *)(codes + blocks * panel_code_bytes(layout));
    return (struct panel){codes, d, d + blocks * PANEL_COLS};
}

static inline uint32_t panel_count(const struct weight *w)
{
    return (w->rows + PANEL_COLS - 1) / PANEL_COLS;
}

/* ---- one tile of activations ---- */

struct tile {
    uint32_t rows;     /* of this tile */
    int8_t *codes;     /* [block][rows][32] */
    float *scale;      /* [block][rows] */
    float *scaled_sum; /* scale * sum of codes */
    int32_t *neg_sum;  /* -sum of codes */
};

static inline struct tile tile_at(void *q, uint32_t rows, uint32_t cols, uint32_t index)
{
    size_t blocks = cols / KERNELS_BLOCK, first = (size_t)index * TILE_ROWS;
    int8_t *codes = q;
    float *scale = (float *)(void *)(codes + (size_t)rows * cols);
    float *scaled_sum = scale + rows * blocks;
    int32_t *neg_sum = (int32_t *)(void *)(scaled_sum + rows * blocks);
    return (struct tile){min_u32(rows - (uint32_t)first, TILE_ROWS), codes + first * cols,
                         scale + first * blocks, scaled_sum + first * blocks,
                         neg_sum + first * blocks};
}

static inline uint32_t tile_count(uint32_t rows)
{
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}

/* ---- who does which rows ---- */

/* Where there is a tile of rows or more for each thread, the pool's lane i has the same rows in
 * every op of a pass, whole tiles: a row's numbers stay in one core's cache from op to op, and no
 * two cores write to one line. Rows of a lane; 0: too few rows. The tiles left over are pieces
 * behind those. */
static inline uint32_t rows_each(const struct kernels *k, uint32_t rows)
{
    return rows / TILE_ROWS / k->threads * TILE_ROWS;
}

/* ---- what a matmul over panels needs; its pieces are (panel range) x (row range) ---- */

struct panel_job {
    float *out; /* [rows][out_stride] */
    size_t out_stride;
    const struct weight *w;
    const float *x; /* [rows][x_stride], float weights */
    size_t x_stride;
    void *q; /* quantised weights; read only */
    uint32_t rows;
    bool accumulate;
    uint32_t each,
        lane_pieces; /* rows of a lane of the pool; its pieces: these and some of the rest */
    uint32_t chunks, chunk_step; /* a lane's rows go in pieces of so many panels */
    uint32_t rest, rest_pieces;  /* from this row on, pieces of panels and rows: */
    uint32_t panel_step, row_step, row_pieces;
};

/* The weight comes from memory on the first pass of rows over a panel and from cache after it, so
 * each pass asks for its share of the panels that come next. */
struct ahead {
    const char *from;
    size_t step; /* bytes a block of 32; the last panel's run past the end, as a prefetch may */
};

static inline struct ahead ahead_of(const struct panel_job *job, enum packed_layout layout,
                                    uint32_t index, uint32_t panels, uint32_t pass,
                                    uint32_t pass_rows)
{
    size_t bytes = panel_bytes(layout, job->w->cols), blocks = job->w->cols / KERNELS_BLOCK;
    uint32_t rows = job->each ? job->each : job->rows;
    size_t passes = (rows + pass_rows - 1) / pass_rows;
    size_t step = round_up(panels * bytes / (passes * blocks), 64);
    const char *next = (const char *)job->w->data + (index + panels) * bytes;
    return (struct ahead){next + pass % passes * step * blocks, step};
}

/* A piece should take a thread about two microseconds at least, by what it computes and by what it
 * reads: less is not worth a wake-up. */
enum {
    MACS_PER_PIECE_QUANTIZED = 1 << 19,
    MACS_PER_PIECE_FLOAT = 1 << 17,
    BYTES_PER_PIECE = 1 << 16
};

/* Cuts a job into pieces of panels, a multiple of panel_unit, and, where there are too few panels,
 * of rows in row_unit; runs task(job, panel from, to, row from, to) on each. */
typedef void panel_task(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                        uint32_t row_from, uint32_t row_to);
void panels_run(struct kernels *k, struct panel_job *job, panel_task *task, uint32_t panel_unit,
                uint32_t row_unit);

#endif
