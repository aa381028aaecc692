/* matmul and quantise: all weight types, against the sum in double over the same int8 codes. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check/check.h"

/* Rounding errors that a sum over blocks may collect, each relative to the sum of magnitudes: two
 * additions and two products a block, and the last addition. */
#define MATMUL_ERRORS(terms) (4.0 * (terms) + 4.0)

static const struct {
    enum tensor_type type;
    const char *name;
    bool quantized;
} types[] = {
    {TENSOR_Q4_1, "q4_1", true}, {TENSOR_Q4_0, "q4_0", true}, {TENSOR_Q8_0, "q8_0", true},
    {TENSOR_F32, "f32", false},  {TENSOR_F16, "f16", false},  {TENSOR_BF16, "bf16", false},
};
enum { TYPES = sizeof types / sizeof types[0] };

enum codes { CODES_RANDOM, CODES_TOP, CODES_BOTTOM, CODES_KINDS };

struct product {
    uint32_t type, rows, cols, batch;
    uint8_t *source;          /* the file's rows */
    float *x;                 /* [batch][cols] */
    double *want, *tolerance; /* [batch][rows] */
};

static void fill_block(struct check *c, uint8_t *block, enum tensor_type type, enum codes codes)
{
    f16 d = f16_from_f32(random_normal(c) * 0.01f), m = f16_from_f32(random_normal(c) * 0.05f);
    size_t bytes = tensor_row_bytes(type, 32), header = type == TENSOR_Q4_1 ? 4 : 2;
    memcpy(block, &d, 2);
    if (type == TENSOR_Q4_1)
        memcpy(block + 2, &m, 2);
    for (size_t i = header; i < bytes; i++) {
        uint8_t byte = (uint8_t)random_u32(c);
        if (codes == CODES_TOP)
            byte = type == TENSOR_Q8_0 ? 0x7f : 0xff;
        if (codes == CODES_BOTTOM)
            byte = type == TENSOR_Q8_0 ? 0x80 : 0x00;
        block[i] = byte;
    }
}

static void fill_source(struct check *c, struct product *p, enum codes codes)
{
    enum tensor_type type = types[p->type].type;
    if (types[p->type].quantized) {
        size_t blocks = (size_t)p->rows * p->cols / 32;
        for (size_t b = 0; b < blocks; b++)
            fill_block(c, p->source + b * tensor_row_bytes(type, 32), type, codes);
        return;
    }
    for (size_t i = 0; i < (size_t)p->rows * p->cols; i++) {
        float w = codes == CODES_TOP ? 100.0f : random_normal(c) * 0.05f;
        uint32_t bits;
        memcpy(&bits, &w, 4);
        uint16_t half = type == TENSOR_F16 ? f16_from_f32(w) : (uint16_t)(bits >> 16);
        if (type == TENSOR_F32)
            memcpy(p->source + 4 * i, &w, 4);
        else
            memcpy(p->source + 2 * i, &half, 2);
    }
}

/* The codes that the contract fixes: x * (127 / max) to the nearest even, scale max / 127. */
static void quantize_plain(double *out, const float *x, uint32_t cols)
{
    for (uint32_t b = 0; b < cols; b += 32) {
        float top = 0.0f;
        for (uint32_t i = 0; i < 32; i++)
            top = fmaxf(top, fabsf(x[b + i]));
        bool zero = top < 0x1p-118f;
        float inverse = zero ? 0.0f : 127.0f / top, scale = zero ? 0.0f : top / 127.0f;
        for (uint32_t i = 0; i < 32; i++)
            out[b + i] = (double)nearbyintf(x[b + i] * inverse) * (double)scale;
    }
}

/* want and tolerance of row i, given its activations as the kernels see them. */
static void expect_row(struct product *p, const double *x, uint32_t i, float *weights)
{
    enum tensor_type type = types[p->type].type;
    double terms = types[p->type].quantized ? p->cols / 32 : p->cols;
    for (uint32_t n = 0; n < p->rows; n++) {
        double sum = 0.0, magnitude = 0.0;
        const uint8_t *row = p->source + n * tensor_row_bytes(type, p->cols);
        tensor_row(weights, row, type, p->cols);
        for (uint32_t k = 0; k < p->cols; k++) {
            double w = (double)weights[k], offset = 0.0;
            if (type == TENSOR_Q4_1) { /* d code + m: exact here, rounded in tensor_row */
                const uint8_t *block = row + k / 32 * 20;
                f16 d, m;
                memcpy(&d, block, 2);
                memcpy(&m, block + 2, 2);
                uint8_t byte = block[4 + k % 16];
                offset = double_of(m);
                w = double_of(d) * (k % 32 < 16 ? byte & 15 : byte >> 4) + offset;
            }
            sum += w * x[k];
            magnitude += (fabs(w) + 2.0 * fabs(offset)) * fabs(x[k]);
        }
        p->want[i * p->rows + n] = sum;
        p->tolerance[i * p->rows + n] = MATMUL_ERRORS(terms) * (magnitude * EPSILON + 0x1p-149);
    }
}

static void *quantized(struct check *c, struct kernels *k, const float *x, uint32_t rows,
                       uint32_t cols)
{
    void *q = case_buffer(c, k->quantize_bytes(k, rows, cols));
    k->quantize(k, q, x, rows, cols);
    return q;
}

/* A row alone, and all rows with more threads, give the bits that the batch gave. */
static void expect_same_rows(struct check *c, const struct product *p, const struct weight *w,
                             const float *batch)
{
    size_t row_bytes = p->rows * sizeof(float);
    float *alone = case_floats(c, p->rows);
    bool quantize = types[p->type].quantized;
    for (uint32_t i = 0; i<p->batch; i += p->batch> 20 ? 7 : 1) {
        const float *x = p->x + (size_t)i * p->cols;
        void *q = quantize ? quantized(c, c->one, x, 1, p->cols) : NULL;
        c->one->matmul(c->one, alone, p->rows, w, x, p->cols, q, 1, false);
        case_same(c, "a row alone", alone, batch + (size_t)i * p->rows, row_bytes);
    }
    struct kernels *table[2] = {c->two, c->five};
    for (int i = 0; i < 2; i++) {
        float *shared = case_floats(c, (size_t)p->batch * p->rows);
        void *q = quantize ? quantized(c, table[i], p->x, p->batch, p->cols) : NULL;
        table[i]->matmul(table[i], shared, p->rows, w, p->x, p->cols, q, p->batch, false);
        case_same(c, "more threads", shared, batch, p->batch * row_bytes);
    }
}

/* With accumulate, and into a matrix with wider rows whose gaps stay as they are. However many
 * threads there are, each sum is added once. */
static void expect_accumulate(struct check *c, const struct product *p, const struct weight *w,
                              const void *q, const float *batch)
{
    enum { GAP = 3 };
    struct kernels *table[2] = {c->one, c->five};
    size_t stride = p->rows + GAP;
    float *out = case_floats(c, p->batch * stride);
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < p->batch * stride; i++)
            out[i] = (float)i;
        table[k]->matmul(table[k], out, stride, w, p->x, p->cols, q, p->batch, true);
        for (size_t at = 0; at < p->batch * stride; at++) {
            size_t i = at / stride, n = at % stride;
            float want = n < p->rows ? (float)at + batch[i * p->rows + n] : (float)at;
            if (out[at] != want)
                case_fail(c, "accumulate at row %zu column %zu, %u threads: %.9g, should be %.9g",
                          i, n, table[k]->threads, (double)out[at], (double)want);
        }
    }
}

static void matmul_case(struct check *c, uint32_t type, uint32_t rows, uint32_t cols,
                        uint32_t batch, enum fill fill, enum codes codes)
{
    enum tensor_type file = types[type].type;
    case_begin(c, "matmul %s %ux%u batch %u %s codes %d", types[type].name, rows, cols, batch,
               fill_name(fill), (int)codes);
    struct product p = {.type = type, .rows = rows, .cols = cols, .batch = batch};
    p.source = case_buffer(c, tensor_row_bytes(file, cols) * rows);
    p.x = case_floats(c, (size_t)batch * cols);
    p.want = case_buffer(c, (size_t)batch * rows * sizeof(double));
    p.tolerance = case_buffer(c, (size_t)batch * rows * sizeof(double));
    fill_source(c, &p, codes);
    fill_floats(c, p.x, (size_t)batch * cols, fill);

    struct weight w;
    void *memory = case_buffer(c, c->one->weight_bytes(c->one, file, rows, cols));
    if (c->one->weight_pack(c->one, &w, memory, p.source, file, rows, cols) != 0)
        case_fail(c, "not packed");
    double *x = case_buffer(c, cols * sizeof(double));
    float *scratch = case_floats(c, cols);
    for (uint32_t i = 0; i < batch; i++) {
        for (uint32_t k = 0; k < cols; k++)
            x[k] = (double)p.x[(size_t)i * cols + k];
        if (types[type].quantized)
            quantize_plain(x, p.x + (size_t)i * cols, cols);
        expect_row(&p, x, i, scratch);
    }
    float *out = case_floats(c, (size_t)batch * rows);
    void *q = types[type].quantized ? quantized(c, c->one, p.x, batch, cols) : NULL;
    c->one->matmul(c->one, out, rows, &w, p.x, cols, q, batch, false);
    case_near(c, "out", out, p.want, p.tolerance, (size_t)batch * rows);
    expect_same_rows(c, &p, &w, out);
    expect_accumulate(c, &p, &w, q, out);
    case_end(c);
}

void check_matmul(struct check *c)
{
    static const uint32_t shapes[][3] = {/* rows, cols, batch */
                                         {1, 32, 1},
                                         {16, 32, 1},
                                         {17, 64, 2},
                                         {31, 96, 3},
                                         {33, 160, 5},
                                         {48, 64, 16},
                                         {50, 96, 17},
                                         {15, 64, 31},
                                         {192, 576, 32},
                                         {64, 256, 33},
                                         {96, 64, 64},
                                         {32, 576, 32},
                                         {16, 1536, 64},
                                         /* more threads than panels, rows left over by threads */
                                         {32, 4096, 20},
                                         {20, 14336, 3},
                                         {80, 2048, 96},
                                         {1031, 320, 41}};
    for (uint32_t type = 0; type < TYPES; type++) {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            matmul_case(c, type, shapes[s][0], shapes[s][1], shapes[s][2], FILL_NORMAL,
                        CODES_RANDOM);
        for (enum fill fill = 0; fill < FILL_COUNT; fill++)
            for (enum codes codes = 0; codes < CODES_KINDS; codes++)
                matmul_case(c, type, 33, 128, 19, fill, codes);
        if (!types[type].quantized) /* odd inner sizes */
            for (uint32_t cols = 1; cols < 40; cols += 6)
                matmul_case(c, type, 37, cols, 11, FILL_NORMAL, CODES_RANDOM);
    }
    case_begin(c, "matmul rejects");
    struct weight w;
    float nothing[64] __attribute__((aligned(64))) = {0};
    if (c->one->weight_pack(c->one, &w, nothing, nothing, TENSOR_Q4_1, 1, 33) == 0)
        case_fail(c, "packed 33 columns of q4_1");
    if (c->one->weight_pack(c->one, &w, nothing, nothing, (enum tensor_type)99, 1, 32) == 0)
        case_fail(c, "packed type 99");
    case_end(c);
}

static void bench_shape(struct check *c, struct kernels *k, uint32_t type, uint32_t rows,
                        uint32_t cols, uint32_t batch, uint32_t copies)
{
    enum tensor_type file = types[type].type;
    struct product p = {.type = type, .rows = rows, .cols = cols, .batch = batch};
    p.source = case_buffer(c, tensor_row_bytes(file, cols) * rows);
    fill_source(c, &p, CODES_RANDOM);
    p.x = case_floats(c, (size_t)batch * cols);
    fill_floats(c, p.x, (size_t)batch * cols, FILL_NORMAL);
    size_t bytes = k->weight_bytes(k, file, rows, cols);
    uint8_t *memory = case_buffer(c, bytes * copies);
    struct weight w[64];
    for (uint32_t i = 0; i < copies; i++)
        k->weight_pack(k, &w[i], memory + i * bytes, p.source, file, rows, cols);
    void *q = types[type].quantized ? quantized(c, k, p.x, batch, cols) : NULL;
    float *out = case_floats(c, (size_t)batch * rows);
    double seconds;
    uint32_t turn = 0;
    BENCH_SECONDS(seconds,
                  k->matmul(k, out, rows, &w[turn++ % copies], p.x, cols, q, batch, false));
    char what[80];
    snprintf(what, sizeof what, "matmul %s %ux%u batch %u%s", types[type].name, rows, cols, batch,
             copies > 1 ? " cold" : "");
    if (batch == 1)
        bench_line(k, what, seconds, BOUND_READ, (double)bytes);
    else
        bench_line(k, what, seconds, types[type].quantized ? BOUND_INT8 : BOUND_FLOAT,
                   (double)rows * cols * batch);
    case_end(c);
}

void bench_matmul(struct check *c)
{
    static const uint32_t shapes[][5] = {
        /* type, rows, cols, batch, copies: more than one so that the weights come from memory */
        {0, 960, 576, 32, 1},   {0, 576, 576, 32, 1},  {0, 3072, 576, 32, 1},
        {0, 576, 1536, 32, 1},  {0, 576, 576, 16, 1},  {0, 3072, 576, 32, 64},
        {0, 576, 1536, 32, 64}, {2, 3072, 576, 32, 1}, {3, 32, 576, 32, 1},
        {3, 576, 32, 32, 1},    {4, 32, 576, 32, 1},   {4, 576, 32, 32, 1},
        {4, 3072, 576, 32, 1},  {5, 3072, 576, 32, 1}, {0, 3072, 576, 1, 64},
        {0, 576, 1536, 1, 64},  {2, 49152, 576, 1, 3}, {4, 3072, 576, 1, 32},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const uint32_t *v = shapes[s];
        bench_shape(c, c->one, v[0], v[1], v[2], v[3], v[4]);
        bench_shape(c, c->two, v[0], v[1], v[2], v[3], v[4]);
    }
}
