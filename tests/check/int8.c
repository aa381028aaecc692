/* pack_int8 and unpack_int8. */
#include <math.h>
#include <string.h>

#include "tests/check/check.h"

/* Both are exact by definition: every path gives the same bytes. */
static void int8_case(struct check *c, uint32_t rows, uint32_t cols, float scale)
{
    case_begin(c, "int8 %ux%u, scale %g", rows, cols, (double)scale);
    size_t count = (size_t)rows * cols;
    f16 *in = case_buffer(c, count * 2), *out = case_buffer(c, count * 2);
    f16 *back = case_buffer(c, count * 2);
    int8_t *codes = case_buffer(c, count), *want = case_buffer(c, count);
    float *scales = case_floats(c, rows), *want_scales = case_floats(c, rows);
    fill_halves(c, in, count, scale);
    for (uint32_t col = 0; col < cols; col++)
        in[col] = 0; /* a row without a scale */
    for (uint32_t i = 0; i < rows; i++) {
        double most = 0.0;
        for (uint32_t col = 0; col < cols; col++)
            most = fmax(most, fabs(double_of(in[i * cols + col])));
        want_scales[i] = (float)most / 127.0f;
        float inverse = most > 0.0 ? 127.0f / (float)most : 0.0f;
        for (uint32_t at = i * cols; at < (i + 1) * cols; at++) {
            want[at] = (int8_t)rint((double)((float)double_of(in[at]) * inverse));
            back[at] = f16_from_f32((float)want[at] * want_scales[i]);
        }
    }
    c->one->pack_int8(c->one, codes, scales, in, rows, cols);
    case_same(c, "codes", codes, want, count);
    case_same(c, "scales", scales, want_scales, rows * sizeof *scales);
    c->one->unpack_int8(c->one, out, codes, scales, rows, cols);
    case_same(c, "back", out, back, count * 2);
    memcpy(out, codes, count);
    c->one->unpack_int8(c->one, out, (int8_t *)out, scales, rows, cols);
    case_same(c, "back in place", out, back, count * 2);
    case_end(c);
}

void check_int8(struct check *c)
{
    for (uint32_t cols = 2; cols <= KERNELS_HEAD_DIM_MAX; cols = cols * 3 / 2 + 1)
        int8_case(c, 1 + cols % 7, cols, 3.0f);
    int8_case(c, 5, 128, 2.0f);
    int8_case(c, 3, KERNELS_HEAD_DIM_MAX, 2.0f);
    int8_case(c, 9, 64, 1e-6f); /* f16 under its least normal number */
    int8_case(c, 9, 64, 1e4f);
    int8_case(c, 2880, 64, 1.0f); /* a segment of the default model */
}

void bench_int8(struct check *c)
{
    enum { ROWS = 2880, COLS = 64 }; /* a segment of the default model */
    f16 *rows = case_buffer(c, ROWS * COLS * 2);
    int8_t *codes = case_buffer(c, ROWS * COLS);
    float *scales = case_floats(c, ROWS);
    fill_halves(c, rows, ROWS * COLS, 1.0f);
    double seconds;
    BENCH_SECONDS(seconds, c->one->pack_int8(c->one, codes, scales, rows, ROWS, COLS));
    bench_line(c->one, "pack_int8 2880x64", seconds, BOUND_READ, ROWS * COLS * 2.0);
    BENCH_SECONDS(seconds, c->one->unpack_int8(c->one, rows, codes, scales, ROWS, COLS));
    bench_line(c->one, "unpack_int8 2880x64", seconds, BOUND_READ, ROWS * COLS * 1.0);
    case_end(c);
}
