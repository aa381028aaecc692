/* How fast a device's products with quantised weights are, beside those with bf16 ones. */
#include "tests/check/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of weights, so that what is read again has left the device's cache meanwhile. */
enum { SPAN_BYTES = 256 << 20, TIMES = 5, PRODUCTS_MAX = 400, ROWS_MAX = 64 };

enum way { WAY_FILE, WAY_MADE, WAY_BF16 };

struct file_bench {
    struct cuda *cuda;
    char *span; /* [SPAN_BYTES], of any values */
    bf16 *x, *made;
    float *out;
    enum tensor_type type;
    uint32_t wide, cols, rows;
};

static void product(const struct file_bench *b, enum way way, char *at)
{
    struct cuda *c = b->cuda;
    struct cuda_weight weight = {way == WAY_BF16 ? (bf16 *)at : b->made, b->wide, b->cols};
    if (way == WAY_MADE)
        c->weight_make(c, &weight, at, b->type, NULL, 0);
    if (way == WAY_FILE)
        c->matmul_file(c, b->out, CUDA_OUT_F32, b->wide, at, b->type, b->wide, b->cols, b->x,
                       b->rows);
    else
        c->matmul(c, b->out, CUDA_OUT_F32, b->wide, &weight, b->x, b->rows);
}

/* Seconds of one product: of as many as the span has weights for, launched as one. */
static double seconds_of(const struct file_bench *b, enum way way)
{
    struct cuda *c = b->cuda;
    struct {
        uint32_t wide, cols, rows, type, way;
    } key = {b->wide, b->cols, b->rows, b->type, way};
    size_t bytes =
        b->wide * (way == WAY_BF16 ? b->cols * sizeof(bf16) : tensor_row_bytes(b->type, b->cols));
    bytes = (bytes + 255) / 256 * 256;
    size_t count = SPAN_BYTES / bytes;
    double best = 1e9;
    count = count < PRODUCTS_MAX ? count : PRODUCTS_MAX;
    for (int time = -3; time < TIMES; time++) {
        double start = c->seconds(c);
        if (!c->graph_begin(c, &key, sizeof key))
            do
                for (size_t i = 0; i < count; i++)
                    product(b, way, b->span + i * bytes);
            while (c->graph_again(c));
        double now = c->seconds(c);
        best = time >= 0 && now - start < best ? now - start : best;
    }
    return best / (double)count;
}

static void bench_rows(const struct file_bench *b, const char *name)
{
    double bytes = (double)b->wide * (double)tensor_row_bytes(b->type, b->cols);
    char what[64];
    snprintf(what, sizeof what, "%s %ux%u", name, b->wide, b->cols);
    printf("%-16s %4u", what, b->rows);
    double seconds = seconds_of(b, WAY_FILE);
    printf(" | %8.2f %6.0f | %8.2f | %8.2f\n", seconds * 1e6, bytes / seconds * 1e-9,
           seconds_of(b, WAY_MADE) * 1e6, seconds_of(b, WAY_BF16) * 1e6);
}

void bench_device_file(struct on_device *d)
{
    static const struct {
        enum tensor_type type;
        const char *name;
    } types[] = {{TENSOR_Q4_1, "q4_1"}, {TENSOR_Q4_0, "q4_0"}, {TENSOR_Q8_0, "q8_0"}};
    static const uint32_t shapes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336},
                                         {960, 576},   {576, 576},   {3072, 576},   {576, 1536}};
    static const uint32_t rows[] = {1, 4, 8, 16, 32, ROWS_MAX};
    enum { WIDE_MAX = 28672, COLS_MAX = 14336 };
    struct file_bench b = {.cuda = d->cuda};
    uint32_t *some = malloc(1 << 20);
    if (!some)
        abort();
    for (size_t i = 0; i < (1 << 18); i++)
        some[i] = random_u32(d->c) & 0xbf3fbfffu; /* no infinities among scales and values */
    b.span = device_put(d, NULL, SPAN_BYTES);
    for (size_t at = 0; at < SPAN_BYTES; at += 1 << 20)
        d->cuda->copy_in(d->cuda, b.span + at, some, 1 << 20);
    b.x = device_put(d, NULL, (size_t)ROWS_MAX * COLS_MAX * sizeof(bf16));
    d->cuda->copy(d->cuda, b.x, b.span, (size_t)ROWS_MAX * COLS_MAX * sizeof(bf16));
    b.made = device_put(d, NULL, (size_t)WIDE_MAX * 4096 * sizeof(bf16));
    b.out = device_put(d, NULL, (size_t)ROWS_MAX * WIDE_MAX * sizeof(float));
    d->cuda->few = true;
    printf("weight, rows: us and GB/s of matmul_file | us of weight_make and matmul | of matmul\n");
    for (size_t t = 0; t < 3; t++)
        for (size_t s = 0; s < 8; s++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                b.type = types[t].type;
                b.wide = shapes[s][0];
                b.cols = shapes[s][1];
                b.rows = rows[r];
                bench_rows(&b, types[t].name);
            }
    d->cuda->few = false;
    free(some);
    device_end(d);
}
