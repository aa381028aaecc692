/* Packs a file's weights into panels, and cuts a matmul over panels into pieces (see packed.h). */
#include <errno.h>

#include "kernels/packed.h"

static bool layout_of(enum packed_layout *out, enum tensor_type type)
{
    switch (type) {
    case TENSOR_Q4_1:
        *out = PACKED_Q4_1;
        return true;
    case TENSOR_Q4_0:
        *out = PACKED_Q4_0;
        return true;
    case TENSOR_Q8_0:
        *out = PACKED_Q8_0;
        return true;
    case TENSOR_F32:
        *out = PACKED_F32;
        return true;
    case TENSOR_F16:
        *out = PACKED_F16;
        return true;
    case TENSOR_BF16:
        *out = PACKED_BF16;
        return true;
    default:
        return false;
    }
}

static size_t padded_bytes(enum packed_layout layout, uint32_t rows, uint32_t cols)
{
    return (size_t)((rows + PANEL_COLS - 1) / PANEL_COLS) * panel_bytes(layout, cols);
}

size_t weight_bytes_packed(const struct kernels *k, enum tensor_type type, uint32_t rows,
                           uint32_t cols)
{
    enum packed_layout layout;
    (void)k;
    if (!layout_of(&layout, type) || tensor_row_bytes(type, cols) == 0)
        return 0;
    return padded_bytes(layout, rows, cols);
}

/* Column n of a panel from one file row of 4-bit blocks. The file keeps values 0-15 in low nibbles
 * and 16-31 in high ones, which is groups 0-3 and 4-7: the bytes go over as they are. */
static void pack_column_q4(uint8_t *codes, f16 *d, f16 *m, const uint8_t *row, uint32_t blocks,
                           uint32_t n)
{
    for (uint32_t b = 0; b < blocks; b++) {
        memcpy(&d[b * PANEL_COLS + n], row, 2);
        row += 2;
        if (m) {
            memcpy(&m[b * PANEL_COLS + n], row, 2);
            row += 2;
        }
        for (uint32_t j = 0; j < 4; j++, row += 4)
            memcpy(codes + b * 256 + j * 64 + n * 4, row, 4);
    }
}

static void pack_column_q8(uint8_t *codes, f16 *d, const uint8_t *row, uint32_t blocks, uint32_t n)
{
    for (uint32_t b = 0; b < blocks; b++) {
        memcpy(&d[b * PANEL_COLS + n], row, 2);
        row += 2;
        for (uint32_t j = 0; j < 8; j++, row += 4)
            for (uint32_t i = 0; i < 4; i++)
                codes[b * 512 + j * 64 + n * 4 + i] = row[i] ^ 0x80; /* + 128 */
    }
}

static void pack_column_float(uint8_t *panel, const uint8_t *row, size_t item, uint32_t cols,
                              uint32_t n)
{
    for (uint32_t c = 0; c < cols; c++)
        memcpy(panel + (c * PANEL_COLS + n) * item, row + c * item, item);
}

int weight_pack_packed(const struct kernels *k, struct weight *out, void *memory,
                       const void *source, enum tensor_type type, uint32_t rows, uint32_t cols)
{
    enum packed_layout layout;
    (void)k;
    if (!layout_of(&layout, type))
        return -ENOTSUP;
    if (cols == 0 || tensor_row_bytes(type, cols) == 0)
        return -EINVAL;
    assert(((uintptr_t)memory & 63) == 0);
    *out = (struct weight){rows, cols, layout <= PACKED_Q8_0, layout, memory};
    memset(memory, 0, padded_bytes(layout, rows, cols)); /* the columns that pad */
    size_t row_bytes = tensor_row_bytes(type, cols);
    uint32_t blocks = cols / KERNELS_BLOCK;
    for (uint32_t n = 0; n < rows; n++) {
        const uint8_t *row = (const uint8_t *)source + n * row_bytes;
        uint32_t column = n % PANEL_COLS;
        if (out->quantized) {
            struct panel panel = panel_at(out, layout, n / PANEL_COLS);
            uint8_t *codes = (uint8_t *)(uintptr_t)panel.codes;
            f16 *d = (f16 *)(uintptr_t)panel.d, *m = (f16 *)(uintptr_t)panel.m;
            if (layout == PACKED_Q8_0)
                pack_column_q8(codes, d, row, blocks, column);
            else
                pack_column_q4(codes, d, layout == PACKED_Q4_1 ? m : NULL, row, blocks, column);
        } else {
            uint8_t *panel = (uint8_t *)memory + n / PANEL_COLS * panel_bytes(layout, cols);
            pack_column_float(panel, row, row_bytes / cols, cols, column);
        }
    }
    return 0;
}

size_t quantize_bytes_packed(const struct kernels *k, uint32_t rows, uint32_t cols)
{
    (void)k;
    assert(cols % KERNELS_BLOCK == 0);
    size_t blocks = (size_t)rows * (cols / KERNELS_BLOCK);
    return round_up((size_t)rows * cols + blocks * 12, 64);
}

/* ---- pieces ---- */

struct panels_argument {
    const struct panel_job *job;
    panel_task *task;
};

static void panels_piece(void *argument, uint32_t index)
{
    const struct panels_argument *a = argument;
    const struct panel_job *job = a->job;
    uint32_t panels = panel_count(job->w), rest = index;
    if (job->each > 0) { /* a lane: its rows, then its part of the rest */
        uint32_t lane = index / job->lane_pieces, at = index % job->lane_pieces;
        if (at < job->chunks) {
            uint32_t from = at * job->chunk_step, to = min_u32(from + job->chunk_step, panels);
            a->task(job, from, to, lane * job->each, (lane + 1) * job->each);
            return;
        }
        rest = lane * (job->lane_pieces - job->chunks) + at - job->chunks;
        if (rest >= job->rest_pieces)
            return;
    }
    uint32_t panel = rest / job->row_pieces * job->panel_step;
    uint32_t row = job->rest + rest % job->row_pieces * job->row_step;
    a->task(job, panel, min_u32(panel + job->panel_step, panels), row,
            min_u32(row + job->row_step, job->rows));
}

/* Cuts the rows from `rest` on into pieces of panels, and of rows where there are too few panels.
 */
static uint32_t rest_cut(const struct kernels *k, struct panel_job *job, uint32_t pieces,
                         uint32_t panel_unit, uint32_t row_unit)
{
    uint32_t panels = panel_count(job->w), rows = job->rows - job->rest;
    job->panel_step = (uint32_t)round_up((panels + pieces - 1) / pieces, panel_unit);
    job->row_step = rows;
    uint32_t panel_pieces = (panels + job->panel_step - 1) / job->panel_step;
    if (panel_pieces < k->threads) {
        uint32_t row_pieces = (k->threads + panel_pieces - 1) / panel_pieces;
        job->row_step = (uint32_t)round_up((rows + row_pieces - 1) / row_pieces, row_unit);
    }
    job->row_pieces = (rows + job->row_step - 1) / job->row_step;
    return panel_pieces * job->row_pieces;
}

void panels_run(struct kernels *k, struct panel_job *job, panel_task *task, uint32_t panel_unit,
                uint32_t row_unit)
{
    enum { PIECES_PER_THREAD = 4 };
    struct panels_argument argument = {job, task};
    uint32_t panels = panel_count(job->w);
    size_t macs = (size_t)panels * PANEL_COLS * job->w->cols * job->rows;
    size_t least = job->w->quantized ? MACS_PER_PIECE_QUANTIZED : MACS_PER_PIECE_FLOAT;
    size_t bytes = panels * panel_bytes((enum packed_layout)job->w->layout, job->w->cols);
    size_t pieces = macs / least + bytes / BYTES_PER_PIECE;
    if (k->threads == 1 || pieces < 2) {
        task(job, 0, panels, 0, job->rows);
        return;
    }
    job->each = rows_each(k, job->rows);
    job->rest = job->each * k->threads;
    pieces = min_u32((uint32_t)pieces, k->threads * PIECES_PER_THREAD);
    if (job->rest < job->rows)
        job->rest_pieces = rest_cut(k, job, (uint32_t)pieces, panel_unit, row_unit);
    uint32_t chunks = (uint32_t)pieces / k->threads + 1;
    job->chunk_step = (uint32_t)round_up((panels + chunks - 1) / chunks, panel_unit);
    job->chunks = (panels + job->chunk_step - 1) / job->chunk_step;
    job->lane_pieces = job->chunks + (job->rest_pieces + k->threads - 1) / k->threads;
    pool_run(k->pool, panels_piece, &argument,
             job->each > 0 ? k->threads * job->lane_pieces : job->rest_pieces);
}
