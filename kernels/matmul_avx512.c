/*
 * Matmul with AVX-512 VNNI. Quantised: 8 rows of activations against two panels, 16 chains of
 * vpdpbusd (weights unsigned, activations signed). 4-bit codes become bytes in registers, once for
 * the 8 rows; one broadcast of activations serves both panels. A single row takes two panels as
 * well, and is bound by the bytes of the weight.
 *
 * How far from the limit: a block of 32 costs 8 vpdpbusd, a multiplication and two fused
 * multiply-adds (one without m), all on the same two pipes, so that of the dot-product peak 73 %
 * can be had (80 % without m). Seen on a Zen 5: 65 to 68 % (70 %); a weight that comes from
 * memory costs blocks of rows nothing more, since it is fetched a panel ahead, and one row reads it
 * at the speed of memory. Float weights reach 95 % of the fp32 peak.
 *
 * Every variant does the same operations in the same order on an output, so a row's result does not
 * depend on how many rows came with it.
 */
#include "kernels/packed.h"
#include "kernels/simd.h"
#include "kernels/x86.h"

INLINE __m512i broadcast4(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

/* dot[p * rows + r] of one block: the codes of `rows` rows against `panels` panels. Two panels
 * share each broadcast of activations, and rows * panels chains hide the latency of the dot
 * product. */
INLINE void block_dots(__m512i dot[], const struct panel panel[], size_t b, const int8_t *x,
                       const int32_t *neg_sum, const int rows, const int panels,
                       const enum packed_layout layout)
{
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL
    for (int r = 0; r < rows; r++) {
        __m512i start = _mm512_setzero_si512();
        if (layout == PACKED_Q4_0) /* codes are 8 too high */
            start = _mm512_slli_epi32(_mm512_set1_epi32(neg_sum[r]), 3);
        if (layout == PACKED_Q8_0) /* 128 too high */
            start = _mm512_slli_epi32(_mm512_set1_epi32(neg_sum[r]), 7);
        UNROLL
        for (int p = 0; p < panels; p++)
            dot[p * rows + r] = start;
    }
    UNROLL
    for (int g = 0; g < 4; g++) {
        __m512i w[2], w4[2]; /* groups g and g + 4 */
        UNROLL
        for (int p = 0; p < panels; p++) {
            const uint8_t *codes = panel[p].codes + b * panel_code_bytes(layout) + g * 64;
            w[p] = _mm512_load_si512(codes);
            if (layout == PACKED_Q8_0) {
                w4[p] = _mm512_load_si512(codes + 256);
            } else {
                w4[p] = _mm512_and_si512(_mm512_srli_epi16(w[p], 4), low);
                w[p] = _mm512_and_si512(w[p], low);
            }
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512i a = broadcast4(x + r * KERNELS_BLOCK + g * 4);
            UNROLL
            for (int p = 0; p < panels; p++)
                dot[p * rows + r] = _mm512_dpbusd_epi32(dot[p * rows + r], w[p], a);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512i a = broadcast4(x + r * KERNELS_BLOCK + g * 4 + 16);
            UNROLL
            for (int p = 0; p < panels; p++)
                dot[p * rows + r] = _mm512_dpbusd_epi32(dot[p * rows + r], w4[p], a);
        }
    }
}

enum { PASS_ROWS = 8 };

/* `rows` rows of a tile from row r0 on, against `panels` panels; both constant where inlined. */
INLINE void strip(__m512 sum[], const struct panel panel[], const struct tile *t, uint32_t r0,
                  uint32_t blocks, struct ahead ahead, const int rows, const int panels,
                  const enum packed_layout layout)
{
    UNROLL
    for (int i = 0; i < rows * panels; i++)
        sum[i] = _mm512_setzero_ps();
    for (size_t b = 0; b < blocks; b++) {
        size_t at = b * t->rows + r0;
        __m512i dot[16];
        for (size_t i = 0; i < ahead.step; i += 64)
            _mm_prefetch(ahead.from + i, _MM_HINT_T1);
        ahead.from += ahead.step;
        block_dots(dot, panel, b, t->codes + at * KERNELS_BLOCK, t->neg_sum + at, rows, panels,
                   layout);
        UNROLL
        for (int p = 0; p < panels; p++) {
            __m512 d = v_load_f16(panel[p].d + b * PANEL_COLS), m = _mm512_setzero_ps();
            if (layout == PACKED_Q4_1)
                m = v_load_f16(panel[p].m + b * PANEL_COLS);
            UNROLL
            for (int r = 0; r < rows; r++) {
                __m512 ds = _mm512_mul_ps(d, _mm512_set1_ps(t->scale[at + (size_t)r]));
                __m512 s = sum[p * rows + r];
                s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p * rows + r]), ds, s);
                if (layout == PACKED_Q4_1)
                    s = _mm512_fmadd_ps(m, _mm512_set1_ps(t->scaled_sum[at + (size_t)r]), s);
                sum[p * rows + r] = s;
            }
        }
    }
}

INLINE void store_columns(const struct panel_job *job, __m512 sum, uint32_t row, uint32_t panel)
{
    uint32_t n = panel * PANEL_COLS;
    __mmask16 mask = mask_first(job->w->rows - n);
    float *out = job->out + row * job->out_stride + n;
    if (job->accumulate)
        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
    _mm512_mask_storeu_ps(out, mask, sum);
}

/* One strip, and its sums to where they belong; the tile begins at row `row`. */
INLINE void strip_store(const struct panel_job *job, const struct panel panel[], uint32_t index,
                        const struct tile *t, uint32_t row, uint32_t r0, const int rows,
                        const int panels, const enum packed_layout layout)
{
    __m512 sum[16];
    uint32_t blocks = job->w->cols / KERNELS_BLOCK;
    struct ahead ahead = {0};
    if (rows == PASS_ROWS || job->rows == 1)
        ahead = ahead_of(job, layout, index, (uint32_t)panels, (row + r0) / PASS_ROWS, PASS_ROWS);
    strip(sum, panel, t, r0, blocks, ahead, rows, panels, layout);
    UNROLL
    for (int p = 0; p < panels; p++) {
        UNROLL
        for (int r = 0; r < rows; r++)
            store_columns(job, sum[p * rows + r], row + r0 + (uint32_t)r, index + (uint32_t)p);
    }
}

/* One or two panels against the rows from..to, which are whole tiles of the job. */
INLINE void panels_pass(const struct panel_job *job, uint32_t index, const int panels,
                        uint32_t row_from, uint32_t row_to, const enum packed_layout layout)
{
    struct panel panel[2];
    for (uint32_t p = 0; p < (uint32_t)panels; p++)
        panel[p] = panel_at(job->w, layout, index + p);
    for (uint32_t row = row_from; row < row_to; row += TILE_ROWS) {
        struct tile t = tile_at(job->q, job->rows, job->w->cols, row / TILE_ROWS);
        uint32_t r = 0;
        for (; t.rows - r >= PASS_ROWS; r += PASS_ROWS)
            strip_store(job, panel, index, &t, row, r, PASS_ROWS, panels, layout);
        if (t.rows - r >= 4) {
            strip_store(job, panel, index, &t, row, r, 4, panels, layout);
            r += 4;
        }
        for (; r < t.rows; r++)
            strip_store(job, panel, index, &t, row, r, 1, panels, layout);
    }
}

INLINE void panels_layout(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                          uint32_t row_from, uint32_t row_to, const enum packed_layout layout)
{
    uint32_t index = panel_from;
    for (; index + 2 <= panel_to; index += 2)
        panels_pass(job, index, 2, row_from, row_to, layout);
    if (index < panel_to)
        panels_pass(job, index, 1, row_from, row_to, layout);
}

static void panels_q4_1(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                        uint32_t row_from, uint32_t row_to)
{
    panels_layout(job, panel_from, panel_to, row_from, row_to, PACKED_Q4_1);
}

static void panels_q4_0(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                        uint32_t row_from, uint32_t row_to)
{
    panels_layout(job, panel_from, panel_to, row_from, row_to, PACKED_Q4_0);
}

static void panels_q8_0(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                        uint32_t row_from, uint32_t row_to)
{
    panels_layout(job, panel_from, panel_to, row_from, row_to, PACKED_Q8_0);
}

/* ---- float weights ---- */

INLINE __m512 float_load(const uint8_t *panel, size_t c, enum packed_layout layout)
{
    if (layout == PACKED_F32)
        return _mm512_load_ps(panel + c * 64);
    __m256i half = _mm256_load_si256((const __m256i *)(const void *)(panel + c * 32));
    if (layout == PACKED_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* 8 rows or 1, against 1, 2 or 4 panels: sums run over c in ascending order, one fused
 * multiply-add each. */
INLINE void float_strip(const struct panel_job *job, uint32_t index, uint32_t row, const int rows,
                        const int panels, const enum packed_layout layout)
{
    __m512 sum[16];
    const size_t bytes = panel_bytes(layout, job->w->cols);
    const uint8_t *panel = (const uint8_t *)job->w->data + index * bytes;
    const float *x = job->x + row * job->x_stride;
    UNROLL
    for (int i = 0; i < rows * panels; i++)
        sum[i] = _mm512_setzero_ps();
    for (size_t c = 0; c < job->w->cols; c++) {
        __m512 w[4];
        UNROLL
        for (int p = 0; p < panels; p++)
            w[p] = float_load(panel + (size_t)p * bytes, c, layout);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_set1_ps(x[(size_t)r * job->x_stride + c]);
            UNROLL
            for (int p = 0; p < panels; p++)
                sum[p * rows + r] = _mm512_fmadd_ps(value, w[p], sum[p * rows + r]);
        }
    }
    UNROLL
    for (int p = 0; p < panels; p++)
        UNROLL
    for (int r = 0; r < rows; r++)
        store_columns(job, sum[p * rows + r], row + (uint32_t)r, index + (uint32_t)p);
}

INLINE void floats_layout(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                          uint32_t row_from, uint32_t row_to, const enum packed_layout layout)
{
    uint32_t index = panel_from;
    for (; index + 4 <= panel_to && row_to - row_from < 8; index += 4)
        for (uint32_t row = row_from; row < row_to; row++)
            float_strip(job, index, row, 1, 4, layout);
    for (; index + 2 <= panel_to; index += 2) {
        uint32_t row = row_from;
        for (; row + 8 <= row_to; row += 8)
            float_strip(job, index, row, 8, 2, layout);
        for (; row < row_to; row++)
            float_strip(job, index, row, 1, 2, layout);
    }
    for (; index < panel_to; index++) {
        uint32_t row = row_from;
        for (; row + 8 <= row_to; row += 8)
            float_strip(job, index, row, 8, 1, layout);
        for (; row < row_to; row++)
            float_strip(job, index, row, 1, 1, layout);
    }
}

static void floats_f32(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                       uint32_t row_from, uint32_t row_to)
{
    floats_layout(job, panel_from, panel_to, row_from, row_to, PACKED_F32);
}

static void floats_f16(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                       uint32_t row_from, uint32_t row_to)
{
    floats_layout(job, panel_from, panel_to, row_from, row_to, PACKED_F16);
}

static void floats_bf16(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                        uint32_t row_from, uint32_t row_to)
{
    floats_layout(job, panel_from, panel_to, row_from, row_to, PACKED_BF16);
}

void matmul_avx512(struct kernels *k, float *out, size_t out_stride, const struct weight *w,
                   const float *x, size_t x_stride, const void *q, uint32_t rows, bool accumulate)
{
    static panel_task *const task[] = {
        [PACKED_Q4_1] = panels_q4_1, [PACKED_Q4_0] = panels_q4_0, [PACKED_Q8_0] = panels_q8_0,
        [PACKED_F32] = floats_f32,   [PACKED_F16] = floats_f16,   [PACKED_BF16] = floats_bf16,
    };
    assert(rows <= KERNELS_ROWS_MAX && (w->quantized ? q != NULL : x != NULL));
    struct panel_job job = {.out = out,
                            .out_stride = out_stride,
                            .w = w,
                            .x = x,
                            .x_stride = x_stride,
                            .q = (void *)(uintptr_t)q,
                            .rows = rows,
                            .accumulate = accumulate};
    panels_run(k, &job, task[w->layout], 2, w->quantized ? TILE_ROWS : 8);
}
