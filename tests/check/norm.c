/* RMS norm and SwiGLU, and that what they quantise is what they wrote. */
#include <math.h>
#include <stdio.h>

#include "tests/check/check.h"

/* The sum of squares in any order, its root, and three more roundings. */
#define NORM_ERRORS(cols) (0.5 * (cols) + 6.0)
/* e^x to 1.5 units in the last place, then a sum, a quotient and a product. */
#define SWIGLU_ERRORS 6.0

/* q must hold the bits that quantise makes of out: seen through a matmul with random weights. */
static void expect_quantized(struct check *c, const void *q, const float *out, uint32_t rows,
                             uint32_t cols)
{
    enum { OUTPUTS = 20 };
    struct kernels *k = c->one;
    uint8_t *source = case_buffer(c, tensor_row_bytes(TENSOR_Q8_0, cols) * OUTPUTS);
    for (uint32_t b = 0; b < OUTPUTS * cols / 32; b++) {
        f16 *d = (f16 *)(void *)(source + b * 34u);
        *d = f16_from_f32(random_normal(c));
        for (uint32_t i = 2; i < 34; i++)
            source[b * 34u + i] = (uint8_t)random_u32(c);
    }
    struct weight w;
    void *memory = case_buffer(c, k->weight_bytes(k, TENSOR_Q8_0, OUTPUTS, cols));
    k->weight_pack(k, &w, memory, source, TENSOR_Q8_0, OUTPUTS, cols);
    void *again = case_buffer(c, k->quantize_bytes(k, rows, cols));
    k->quantize(k, again, out, rows, cols);
    float *a = case_floats(c, rows * OUTPUTS), *b = case_floats(c, rows * OUTPUTS);
    k->matmul(k, a, OUTPUTS, &w, NULL, 0, q, rows, false);
    k->matmul(k, b, OUTPUTS, &w, NULL, 0, again, rows, false);
    case_same(c, "quantised rows", a, b, rows * OUTPUTS * sizeof *a);
}

static void norm_case(struct check *c, uint32_t rows, uint32_t cols, enum fill fill)
{
    const float eps = 1e-5f;
    case_begin(c, "norm %ux%u %s", rows, cols, fill_name(fill));
    size_t count = (size_t)rows * cols;
    float *x = case_floats(c, count), *weight = case_floats(c, cols);
    float *out = case_floats(c, count), *alone = case_floats(c, cols);
    double *want = case_buffer(c, count * sizeof(double));
    double *tolerance = case_buffer(c, count * sizeof(double));
    fill_floats(c, x, count, fill);
    fill_floats(c, weight, cols, FILL_NORMAL);
    for (uint32_t i = 0; i < rows; i++) {
        double squares = 0.0;
        for (uint32_t k = 0; k < cols; k++)
            squares += (double)x[i * cols + k] * (double)x[i * cols + k];
        double scale = 1.0 / sqrt(squares / cols + (double)eps);
        for (uint32_t k = 0; k < cols; k++) {
            want[i * cols + k] = (double)x[i * cols + k] * scale * (double)weight[k];
            tolerance[i * cols + k] =
                NORM_ERRORS(cols) * (fabs(want[i * cols + k]) * EPSILON + 0x1p-149);
        }
    }
    bool quantize = cols % 32 == 0;
    size_t q_bytes = quantize ? c->one->quantize_bytes(c->one, rows, cols) : 0;
    void *q = quantize ? case_buffer(c, q_bytes) : NULL;
    c->one->norm(c->one, out, q, x, weight, rows, cols, eps);
    case_near(c, "out", out, want, tolerance, count);
    if (quantize)
        expect_quantized(c, q, out, rows, cols);
    struct kernels *table[2] = {c->two, c->five};
    for (int i = 0; i < 2; i++) {
        float *shared = case_floats(c, count);
        void *again = quantize ? case_buffer(c, q_bytes) : NULL;
        table[i]->norm(table[i], shared, again, x, weight, rows, cols, eps);
        case_same(c, "more threads", shared, out, count * sizeof *out);
        case_same(c, "more threads, quantised", again, q, q_bytes);
    }
    for (uint32_t i = 0; i < rows; i++) {
        c->one->norm(c->one, alone, NULL, x + i * cols, weight, 1, cols, eps);
        case_same(c, "a row alone", alone, out + i * cols, cols * sizeof *out);
    }
    c->one->norm(c->one, x, NULL, x, weight, rows, cols, eps);
    case_same(c, "in place", x, out, count * sizeof *out);
    case_end(c);
}

void check_norm(struct check *c)
{
    static const uint32_t cols[] = {1, 3, 15, 16, 17, 31, 32, 64, 96, 100, 576, 1536};
    for (size_t i = 0; i < sizeof cols / sizeof cols[0]; i++)
        norm_case(c, (uint32_t)(i * 5 % 64) + 1, cols[i], FILL_NORMAL);
    for (enum fill fill = 0; fill < FILL_COUNT; fill++)
        norm_case(c, 7, 192, fill);
    norm_case(c, 37, 1536, FILL_NORMAL); /* enough for threads to share */
    norm_case(c, 96, 224, FILL_NORMAL);
    norm_case(c, 5, 4096, FILL_NORMAL);
}

static void swiglu_case(struct check *c, uint32_t rows, uint32_t cols, enum fill fill)
{
    case_begin(c, "swiglu %ux%u %s", rows, cols, fill_name(fill));
    size_t count = (size_t)rows * cols;
    float *x = case_floats(c, 2 * count), *out = case_floats(c, count);
    float *alone = case_floats(c, cols);
    double *want = case_buffer(c, count * sizeof(double));
    double *tolerance = case_buffer(c, count * sizeof(double));
    fill_floats(c, x, 2 * count, fill);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t k = 0; k < cols; k++) {
            if (fill == FILL_NORMAL) /* the whole range of e^x */
                x[i * 2 * cols + k] *= k % 3 == 0 ? 25.0f : 1.0f;
            double gate = (double)x[i * 2 * cols + k], up = (double)x[i * 2 * cols + cols + k];
            double *to = &want[i * cols + k];
            *to = gate / (1.0 + exp(-gate)) * up;
            tolerance[i * cols + k] =
                SWIGLU_ERRORS * EPSILON * fabs(*to) + 1e-37 * fabs(up * gate) + 0x1p-149;
        }
    bool quantize = cols % 32 == 0;
    size_t q_bytes = quantize ? c->one->quantize_bytes(c->one, rows, cols) : 0;
    void *q = quantize ? case_buffer(c, q_bytes) : NULL;
    c->one->swiglu(c->one, out, q, x, rows, cols);
    case_near(c, "out", out, want, tolerance, count);
    if (quantize)
        expect_quantized(c, q, out, rows, cols);
    struct kernels *table[2] = {c->two, c->five};
    for (int i = 0; i < 2; i++) {
        float *shared = case_floats(c, count);
        void *again = quantize ? case_buffer(c, q_bytes) : NULL;
        table[i]->swiglu(table[i], shared, again, x, rows, cols);
        case_same(c, "more threads", shared, out, count * sizeof *out);
        case_same(c, "more threads, quantised", again, q, q_bytes);
    }
    for (uint32_t i = 0; i < rows; i++) {
        c->one->swiglu(c->one, alone, NULL, x + i * 2 * cols, 1, cols);
        case_same(c, "a row alone", alone, out + i * cols, cols * sizeof *out);
    }
    case_end(c);
}

void check_swiglu(struct check *c)
{
    static const uint32_t cols[] = {1, 7, 16, 31, 32, 96, 1536};
    for (size_t i = 0; i < sizeof cols / sizeof cols[0]; i++)
        swiglu_case(c, (uint32_t)(i * 9 % 40) + 1, cols[i], FILL_NORMAL);
    for (enum fill fill = 0; fill < FILL_COUNT; fill++)
        swiglu_case(c, 5, 64, fill);
    swiglu_case(c, 37, 1536, FILL_NORMAL);
    swiglu_case(c, 96, 224, FILL_NORMAL);
}

void bench_norm(struct check *c)
{
    enum { ROWS = 32, COLS = 576 };
    struct kernels *table[2] = {c->one, c->two};
    float *x = case_floats(c, ROWS * COLS), *out = case_floats(c, ROWS * COLS);
    fill_floats(c, x, ROWS * COLS, FILL_NORMAL);
    for (int i = 0; i < 2; i++) {
        struct kernels *k = table[i];
        void *q = case_buffer(c, k->quantize_bytes(k, ROWS, COLS));
        double seconds;
        BENCH_SECONDS(seconds, k->norm(k, out, q, x, x, ROWS, COLS, 1e-5f));
        bench_line(k, "norm+quantize 32x576", seconds, BOUND_NONE, 0);
        BENCH_SECONDS(seconds, k->quantize(k, q, x, ROWS, COLS));
        bench_line(k, "quantize 32x576", seconds, BOUND_NONE, 0);
    }
    case_end(c);
}

void bench_swiglu(struct check *c)
{
    enum { ROWS = 32, COLS = 1536 };
    struct kernels *table[2] = {c->one, c->two};
    float *x = case_floats(c, ROWS * COLS * 2), *out = case_floats(c, ROWS * COLS);
    fill_floats(c, x, ROWS * COLS * 2, FILL_NORMAL);
    for (int i = 0; i < 2; i++) {
        struct kernels *k = table[i];
        void *q = case_buffer(c, k->quantize_bytes(k, ROWS, COLS));
        double seconds;
        BENCH_SECONDS(seconds, k->swiglu(k, out, q, x, ROWS, COLS));
        bench_line(k, "swiglu+quantize 32x1536", seconds, BOUND_NONE, 0);
    }
    case_end(c);
}
