/* fold, pack_f16, pack_int8, unpack_int8 and nll. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check/check.h"

#define FOLD_ERRORS 4.0
/* Relative error of the sum of exponentials, which is absolute in its logarithm: 2 units of e^x, up
 * to 64 fp32 additions in a row, and the difference of logits. */
#define NLL_ERRORS 80.0

static void fold_case(struct check *c, size_t count, float alpha)
{
    case_begin(c, "fold %zu, alpha %g", count, (double)alpha);
    float *summary = case_floats(c, count);
    f16 *segment = case_buffer(c, count * 2);
    double *want = case_buffer(c, count * sizeof(double));
    double *tolerance = case_buffer(c, count * sizeof(double));
    fill_floats(c, summary, count, FILL_NORMAL);
    fill_halves(c, segment, count, 2.0f);
    for (size_t i = 0; i < count; i++) {
        double keep = (1.0 - (double)alpha) * (double)summary[i];
        double add = (double)alpha * double_of(segment[i]);
        want[i] = keep + add;
        tolerance[i] = FOLD_ERRORS * EPSILON * (fabs(keep) + fabs(add));
    }
    c->one->fold(c->one, summary, segment, count, alpha);
    case_near(c, "summary", summary, want, tolerance, count);
    case_end(c);
}

void check_fold(struct check *c)
{
    for (size_t count = 0; count < 70; count += 3)
        fold_case(c, count, random_uniform(c, 0.0f, 1.0f));
    fold_case(c, 1000, 1.0f);
    fold_case(c, 1000, 0.0f);
}

void check_pack_f16(struct check *c)
{
    for (enum fill fill = 0; fill < FILL_COUNT; fill++) {
        size_t count = 61 + 7 * (size_t)fill;
        case_begin(c, "pack_f16 %zu %s", count, fill_name(fill));
        float *in = case_floats(c, count);
        f16 *out = case_buffer(c, count * 2), *want = case_buffer(c, count * 2);
        fill_floats(c, in, count, fill);
        if (fill == FILL_DENORMAL) /* of f16, with ties */
            for (size_t i = 0; i < count; i++)
                in[i] = (float)(random_u32(c) % 4096) * 0x1p-26f;
        for (size_t i = 0; i < count; i++)
            want[i] = f16_from_f32(in[i]);
        c->one->pack_f16(c->one, out, in, count);
        case_same(c, "out", out, want, count * 2);
        case_end(c);
    }
}

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
    int8_case(c, 9, 64, 1e-6f); /* f16 under its least normal number */
    int8_case(c, 9, 64, 1e4f);
    int8_case(c, 2880, 64, 1.0f); /* a segment of the default model */
}

static void nll_case(struct check *c, uint32_t rows, uint32_t vocab, float scale)
{
    case_begin(c, "nll %ux%u, scale %g", rows, vocab, (double)scale);
    size_t count = (size_t)rows * vocab;
    float *logits = case_floats(c, count), *out = case_floats(c, rows), *two = case_floats(c, rows);
    int32_t *targets = case_buffer(c, rows * sizeof *targets);
    double want[64], tolerance[64];
    for (size_t i = 0; i < count; i++)
        logits[i] = random_normal(c) * scale;
    for (uint32_t i = 0; i < rows; i++) {
        const float *row = logits + (size_t)i * vocab;
        targets[i] = (int32_t)(random_u32(c) % vocab);
        double top = -INFINITY, total = 0.0;
        for (uint32_t k = 0; k < vocab; k++)
            top = fmax(top, (double)row[k]);
        for (uint32_t k = 0; k < vocab; k++)
            total += exp((double)row[k] - top);
        want[i] = log(total) + top - (double)row[targets[i]];
        tolerance[i] = EPSILON * (NLL_ERRORS + 4.0 * fabs(top) + fabs(want[i]));
    }
    c->one->nll(c->one, out, logits, targets, rows, vocab);
    case_near(c, "out", out, want, tolerance, rows);
    c->two->nll(c->two, two, logits, targets, rows, vocab);
    case_same(c, "two threads", two, out, rows * sizeof *out);
    case_end(c);
}

void check_nll(struct check *c)
{
    for (uint32_t vocab = 1; vocab < 50; vocab += 7)
        nll_case(c, vocab % 5 + 1, vocab, 3.0f);
    nll_case(c, 3, 49152, 4.0f);
    nll_case(c, 32, 1031, 60.0f); /* most terms vanish */
}

void bench_fold(struct check *c)
{
    enum { COUNT = 184320 }; /* a segment of the default model */
    float *summary = case_floats(c, COUNT);
    f16 *segment = case_buffer(c, COUNT * 2);
    fill_floats(c, summary, COUNT, FILL_NORMAL);
    fill_halves(c, segment, COUNT, 1.0f);
    double seconds;
    BENCH_SECONDS(seconds, c->one->fold(c->one, summary, segment, COUNT, 0.1f));
    bench_line(c->one, "fold a segment of 184320", seconds, BOUND_NONE, 0);
    case_end(c);
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

void bench_nll(struct check *c)
{
    enum { ROWS = 32, VOCAB = 49152 };
    float *logits = case_floats(c, (size_t)ROWS * VOCAB), out[ROWS];
    int32_t targets[ROWS] = {0};
    fill_floats(c, logits, (size_t)ROWS * VOCAB, FILL_NORMAL);
    struct kernels *table[2] = {c->one, c->two};
    for (int i = 0; i < 2; i++) {
        double seconds;
        BENCH_SECONDS(seconds, table[i]->nll(table[i], out, logits, targets, ROWS, VOCAB));
        bench_line(table[i], "nll 32x49152", seconds, BOUND_READ, (double)ROWS * VOCAB * 4);
    }
    case_end(c);
}
