/* fold, pack_f16 and nll. */
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

static void nll_case(struct check *c, uint32_t rows, uint32_t vocab, float scale)
{
    case_begin(c, "nll %ux%u, scale %g", rows, vocab, (double)scale);
    size_t count = (size_t)rows * vocab;
    float *logits = case_floats(c, count), *out = case_floats(c, rows);
    float *five = case_floats(c, rows);
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
    c->five->nll(c->five, five, logits, targets, rows, vocab);
    case_same(c, "five threads", five, out, rows * sizeof *out);
    case_end(c);
}

void check_nll(struct check *c)
{
    for (uint32_t vocab = 1; vocab < 50; vocab += 7)
        nll_case(c, vocab % 5 + 1, vocab, 3.0f);
    nll_case(c, 3, 49152, 4.0f);
    nll_case(c, 2, 128256, 4.0f);
    nll_case(c, 1, 50257, 4.0f);
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
