/*
 * Quantised matmul with 256-bit registers: 4 rows against a panel, two registers wide. Included
 * with DOT_VNNI set to what the instruction set offers:
 *
 *   DOT_VNNI 1   vpdpbusd: bytes to int32 in one instruction
 *   DOT_VNNI 0   vpmaddubsw adds pairs of products in int16, which saturates. 4-bit codes cannot
 *                reach it, not even over the 8 groups of a block: 16 * 15 * 127 = 30,480. 8-bit
 *                ones could, so there the weight is made |w| <= 128, its sign moved over to the
 *                activation, and each group is widened by itself: 2 * 128 * 127 = 32,512.
 *
 * The integer sums are exact, so both give the same bits. Seen on a Zen 5: 68 % of the dot-product
 * peak with VNNI; without it 40 % of what vpmaddubsw alone could do, whose sums cost as much again.
 */
#include "kernels/packed.h"
#include "kernels/simd.h"
#include "kernels/x86.h"

enum { STRIP_ROWS = 4 };

INLINE __m256i broadcast4(const int8_t *from)
{
    int32_t four;
    memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

/* dot += weights * activations; for 4-bit codes without VNNI the lanes are int16 */
INLINE __m256i dot_add(__m256i dot, __m256i w, __m256i x, const enum packed_layout layout)
{
#if DOT_VNNI
    (void)layout;
    return _mm256_dpbusd_avx_epi32(dot, w, x);
#else
    if (layout != PACKED_Q8_0)
        return _mm256_add_epi16(dot, _mm256_maddubs_epi16(w, x));
    w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

/* What the sum of products with unsigned codes has too much, taken off: 8 or 128 times the sum of
 * the activations. */
INLINE __m256i dot_finish(__m256i dot, int32_t neg_sum, const enum packed_layout layout)
{
    if (!DOT_VNNI && layout != PACKED_Q8_0)
        dot = _mm256_madd_epi16(dot, _mm256_set1_epi16(1));
    if (layout == PACKED_Q4_0)
        dot = _mm256_add_epi32(dot, _mm256_slli_epi32(_mm256_set1_epi32(neg_sum), 3));
    if (DOT_VNNI && layout == PACKED_Q8_0)
        dot = _mm256_add_epi32(dot, _mm256_slli_epi32(_mm256_set1_epi32(neg_sum), 7));
    return dot;
}

/* One block: dot[h * rows + r] of `rows` rows against both halves of a panel, which share each
 * broadcast of activations. */
INLINE void block_dots(__m256i dot[], const uint8_t *codes, const int8_t *x, const int rows,
                       const enum packed_layout layout)
{
    const __m256i low = _mm256_set1_epi8(15);
    UNROLL
    for (int i = 0; i < 2 * rows; i++) {
        dot[i] = _mm256_setzero_si256();
    }
    UNROLL
    for (int g = 0; g < 8; g++) {
        __m256i w[2];
        bool nibbles = layout != PACKED_Q8_0;
        UNROLL
        for (int h = 0; h < 2; h++) {
            const uint8_t *from = codes + (nibbles ? g % 4 : g) * 64 + h * 32;
            w[h] = _mm256_load_si256((const __m256i *)(const void *)from);
            if (nibbles)
                w[h] = _mm256_and_si256(g < 4 ? w[h] : _mm256_srli_epi16(w[h], 4), low);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m256i a = broadcast4(x + r * KERNELS_BLOCK + g * 4);
            dot[r] = dot_add(dot[r], w[0], a, layout);
            dot[rows + r] = dot_add(dot[rows + r], w[1], a, layout);
        }
    }
}

/* sum[h * rows + r]: `rows` rows of a tile from r0 on against both halves of a panel. */
INLINE void strip(__m256 sum[], const struct panel *panel, const struct tile *t, uint32_t r0,
                  uint32_t blocks, struct ahead ahead, const int rows,
                  const enum packed_layout layout)
{
    UNROLL
    for (int i = 0; i < 2 * rows; i++) {
        sum[i] = _mm256_setzero_ps();
    }
    for (size_t b = 0; b < blocks; b++) {
        size_t at = b * t->rows + r0;
        __m256i dot[2 * STRIP_ROWS];
        for (size_t i = 0; i < ahead.step; i += 64)
            _mm_prefetch(ahead.from + i, _MM_HINT_T1);
        ahead.from += ahead.step;
        block_dots(dot, panel->codes + b * panel_code_bytes(layout), t->codes + at * KERNELS_BLOCK,
                   rows, layout);
        UNROLL
        for (int h = 0; h < 2; h++) {
            __m256 d = v_load_f16(panel->d + b * PANEL_COLS + h * 8), m = _mm256_setzero_ps();
            if (layout == PACKED_Q4_1)
                m = v_load_f16(panel->m + b * PANEL_COLS + h * 8);
            UNROLL
            for (int r = 0; r < rows; r++) {
                const size_t i = at + (size_t)r;
                __m256i whole = dot_finish(dot[h * rows + r], t->neg_sum[i], layout);
                __m256 ds = _mm256_mul_ps(d, _mm256_set1_ps(t->scale[i]));
                __m256 s = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), ds, sum[h * rows + r]);
                if (layout == PACKED_Q4_1)
                    s = _mm256_fmadd_ps(m, _mm256_set1_ps(t->scaled_sum[i]), s);
                sum[h * rows + r] = s;
            }
        }
    }
}

/* 8 sums to columns n.. of a row, as many as the weight has. */
INLINE void store_columns(const struct panel_job *job, __m256 sum, uint32_t row, uint32_t n)
{
    if (n >= job->w->rows)
        return;
    float *out = job->out + row * job->out_stride + n;
    __m256i mask = mask_first(job->w->rows - n);
    if (job->accumulate)
        sum = _mm256_add_ps(_mm256_maskload_ps(out, mask), sum);
    _mm256_maskstore_ps(out, mask, sum);
}

INLINE void panels_layout(const struct panel_job *job, uint32_t panel_from, uint32_t panel_to,
                          uint32_t row_from, uint32_t row_to, const enum packed_layout layout)
{
    uint32_t blocks = job->w->cols / KERNELS_BLOCK;
    for (uint32_t index = panel_from; index < panel_to; index++) {
        struct panel panel = panel_at(job->w, layout, index);
        for (uint32_t tile = row_from / TILE_ROWS; tile * TILE_ROWS < row_to; tile++) {
            struct tile t = tile_at(job->q, job->rows, job->w->cols, tile);
            uint32_t r = 0, row = tile * TILE_ROWS, n = index * PANEL_COLS;
            for (; r + STRIP_ROWS <= t.rows; r += STRIP_ROWS) {
                __m256 sum[2 * STRIP_ROWS];
                struct ahead ahead =
                    ahead_of(job, layout, index, 1, (row + r) / STRIP_ROWS, STRIP_ROWS);
                strip(sum, &panel, &t, r, blocks, ahead, STRIP_ROWS, layout);
                UNROLL
                for (uint32_t i = 0; i < 2 * STRIP_ROWS; i++) {
                    store_columns(job, sum[i], row + r + i % STRIP_ROWS, n + i / STRIP_ROWS * 8);
                }
            }
            for (; r < t.rows; r++) {
                __m256 sum[2];
                struct ahead ahead = {0};
                if (job->rows == 1)
                    ahead = ahead_of(job, layout, index, 1, 0, STRIP_ROWS);
                strip(sum, &panel, &t, r, blocks, ahead, 1, layout);
                store_columns(job, sum[0], row + r, n);
                store_columns(job, sum[1], row + r, n + 8);
            }
        }
    }
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
