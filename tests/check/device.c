/* A device's ops, but for its entries (device_rows.c), attention (device_attend.c), what is
 * made of logits (device_logits.c), and a chunk's end (device_slide.c). */
#include "tests/check/device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- buffers ---- */

enum { GUARD_BYTES = 256, PUT_MAX = 128, GUARD_BYTE = 0xa5, NAN_BYTE = 0xff };

/* Beyond what fp32 sums of so many terms may be off, half a unit of bf16 or f16. */
static const double bf16_half = 0x1p-8, f16_half = 0x1p-11;

static struct {
    char *base;
    size_t bytes;
} put[PUT_MAX];
static uint32_t put_count;

void *device_put(struct on_device *d, const void *from, size_t bytes)
{
    size_t all = bytes + 2 * GUARD_BYTES;
    char *host = malloc(all), *base = d->cuda->take(d->cuda, all);
    if (!host || !base || put_count == PUT_MAX)
        abort();
    memset(host, GUARD_BYTE, all);
    if (from)
        memcpy(host + GUARD_BYTES, from, bytes);
    else
        memset(host + GUARD_BYTES, NAN_BYTE, bytes);
    d->cuda->copy_in(d->cuda, base, host, all);
    if (d->cuda->sync(d->cuda))
        case_fail(d->c, "%s", d->cuda->error_text);
    put[put_count].base = base;
    put[put_count++].bytes = bytes;
    free(host);
    return base + GUARD_BYTES;
}

void device_get(struct on_device *d, void *to, const void *from, size_t bytes)
{
    d->cuda->copy_out(d->cuda, to, from, bytes);
    if (d->cuda->sync(d->cuda))
        case_fail(d->c, "%s", d->cuda->error_text);
}

void device_end(struct on_device *d)
{
    uint8_t guard[2 * GUARD_BYTES];
    for (; put_count; put_count--) {
        char *base = put[put_count - 1].base;
        device_get(d, guard, base, GUARD_BYTES);
        device_get(d, guard + GUARD_BYTES, base + GUARD_BYTES + put[put_count - 1].bytes,
                   GUARD_BYTES);
        for (int i = 0; i < 2 * GUARD_BYTES; i++)
            if (guard[i] != GUARD_BYTE) {
                case_fail(d->c, "writes beyond buffer %u of the case", put_count - 1);
                break;
            }
        d->cuda->give(d->cuda, base);
    }
    case_end(d->c);
}

bf16 bf16_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (bf16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

double double_of_bf16(bf16 b)
{
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

void fill_bf16(struct check *c, float *values, bf16 *packed, size_t count, float scale)
{
    for (size_t i = 0; i < count; i++) {
        packed[i] = bf16_of(random_normal(c) * scale);
        values[i] = (float)double_of_bf16(packed[i]);
    }
}

static void bf16_near(struct on_device *d, const char *what, const bf16 *got, const double *want,
                      const double *slack, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double off = fabs(double_of_bf16(got[i]) - want[i]);
        if (!(off <= fabs(want[i]) * bf16_half + slack[i])) {
            case_fail(d->c, "%s[%zu] is %g, not %g", what, i, double_of_bf16(got[i]), want[i]);
            return;
        }
    }
}

/* ---- rows of activations ---- */

static void norm_case(struct on_device *d, uint32_t dim, uint32_t rows, enum fill fill)
{
    struct check *c = d->c;
    uint32_t columns = 6, from = rows / 3, to = rows - rows / 4;
    case_begin(c, "norm, %u rows of %u, %s", rows, dim, fill_name(fill));
    float *x = case_floats(c, (size_t)rows * dim), *weight = case_floats(c, dim);
    float *heads = case_floats(c, (size_t)columns * dim);
    float *decide = case_floats(c, (size_t)rows * columns);
    bf16 *h = case_buffer(c, (size_t)rows * dim * sizeof *h);
    double *want = case_buffer(c, (size_t)rows * dim * sizeof *want);
    double *slack = case_buffer(c, (size_t)rows * dim * sizeof *slack);
    fill_floats(c, x, (size_t)rows * dim, fill);
    fill_floats(c, weight, dim, FILL_NORMAL);
    fill_floats(c, heads, (size_t)columns * dim, FILL_NORMAL);
    struct cuda_batch b = {.shape = {.kv_heads = columns / 2, .dim = dim, .norm_eps = 1e-5f},
                           .rows = rows};
    b.x = device_put(d, x, (size_t)rows * dim * sizeof *x);
    b.h = device_put(d, NULL, (size_t)rows * dim * sizeof *h);
    b.decide = device_put(d, NULL, (size_t)rows * columns * sizeof *decide);
    d->cuda->norm(d->cuda, &b, device_put(d, weight, dim * sizeof *weight),
                  device_put(d, heads, (size_t)columns * dim * sizeof *heads), from, to);
    device_get(d, h, b.h, (size_t)rows * dim * sizeof *h);
    device_get(d, decide, b.decide, (size_t)rows * columns * sizeof *decide);
    for (uint32_t r = 0; r < rows; r++) {
        double squares = 0;
        for (uint32_t i = 0; i < dim; i++)
            squares += (double)x[r * dim + i] * (double)x[r * dim + i];
        double scale = 1 / sqrt(squares / dim + (double)b.shape.norm_eps);
        for (uint32_t i = 0; i < dim; i++) {
            size_t at = (size_t)r * dim + i;
            want[at] = (double)x[at] * scale * (double)weight[i];
            slack[at] = fabs(want[at]) * dim * EPSILON + 1e-38;
        }
        for (uint32_t n = 0; r >= from && r < to && n < columns; n++) {
            double dot = 0, size = 0;
            for (uint32_t i = 0; i < dim; i++) {
                double term = want[(size_t)r * dim + i] * (double)heads[(size_t)n * dim + i];
                dot += term;
                size += fabs(term);
            }
            double got = (double)decide[(size_t)r * columns + n];
            if (!(fabs(got - dot) <= 2 * dim * EPSILON * size + 1e-30))
                case_fail(c, "decision %u of row %u is %g, not %g", n, r, got, dot);
        }
    }
    bf16_near(d, "h", h, want, slack, (size_t)rows * dim);
    device_end(d);
}

static void check_norms(struct on_device *d)
{
    static const uint32_t dims[] = {8, 72, 576, 2048, 4096, 4104}, rows[] = {1, 5, 33, 129};
    for (size_t i = 0; i < (d->small ? 3 : 6); i++)
        for (size_t r = 0; r < (d->small ? 2 : 4); r++)
            for (enum fill fill = FILL_NORMAL; fill < FILL_COUNT; fill++)
                if (fill != FILL_LARGE && (r == 1 || fill == FILL_NORMAL))
                    norm_case(d, dims[i], rows[r], fill);
}

static void swiglu_case(struct on_device *d, uint32_t ff, uint32_t rows, float scale)
{
    struct check *c = d->c;
    case_begin(c, "swiglu, %u rows of %u, scale %g", rows, ff, (double)scale);
    size_t in = (size_t)rows * 2 * ff, out = (size_t)rows * ff;
    float *values = case_floats(c, in);
    bf16 *packed = case_buffer(c, in * sizeof *packed), *act = case_buffer(c, out * sizeof *act);
    double *want = case_buffer(c, out * sizeof *want), *slack = case_buffer(c, out * sizeof *slack);
    fill_bf16(c, values, packed, in, scale);
    struct cuda_batch b = {.shape = {.ff = ff}, .rows = rows};
    b.gate_up = device_put(d, packed, in * sizeof *packed);
    b.act = device_put(d, NULL, out * sizeof *act);
    d->cuda->swiglu(d->cuda, &b);
    device_get(d, act, b.act, out * sizeof *act);
    for (size_t at = 0; at < out; at++) {
        double gate = (double)values[at / ff * 2 * ff + at % ff];
        double up = (double)values[at / ff * 2 * ff + ff + at % ff];
        want[at] = gate / (1 + exp(-gate)) * up;
        /* The device's fast exponential: a few units, more where it is large; past e^88 none. */
        slack[at] = fabs(want[at]) * (8 + fabs(gate)) * 2 * EPSILON + 1e-34;
    }
    bf16_near(d, "act", act, want, slack, out);
    device_end(d);
}

static void check_swiglus(struct on_device *d)
{
    static const uint32_t ffs[] = {8, 96, 1536, 2056, 8192};
    for (size_t i = 0; i < (d->small ? 3 : 5); i++)
        for (uint32_t rows = 1; rows < 40; rows += 19) {
            swiglu_case(d, ffs[i], rows, 1);
            swiglu_case(d, ffs[i], rows, 30);
        }
}

/* Products and SwiGLU at once, gates and ups rounded between or not; rows alone are rows of many.
 */
static void gate_case(struct on_device *d, uint32_t ff, uint32_t cols, uint32_t rows, bool apart)
{
    struct check *c = d->c;
    case_begin(c, "gate, %u rows by %u x %u%s", rows, ff, cols, apart ? ", apart" : "");
    d->cuda->apart = apart;
    size_t out = (size_t)rows * ff;
    float *x = case_floats(c, (size_t)rows * cols), *w = case_floats(c, (size_t)2 * ff * cols);
    bf16 *xs = case_buffer(c, (size_t)rows * cols * sizeof *xs);
    bf16 *ws = case_buffer(c, (size_t)2 * ff * cols * sizeof *ws);
    bf16 *act = case_buffer(c, out * sizeof *act), *one = case_buffer(c, ff * sizeof *one);
    double *want = case_buffer(c, out * sizeof *want), *slack = case_buffer(c, out * sizeof *slack);
    fill_bf16(c, x, xs, (size_t)rows * cols, 1);
    fill_bf16(c, w, ws, (size_t)2 * ff * cols, 0.1f);
    struct cuda_weight weight = {device_put(d, ws, (size_t)2 * ff * cols * sizeof *ws), 2 * ff,
                                 cols};
    bf16 *in = device_put(d, xs, (size_t)rows * cols * sizeof *xs);
    struct cuda_batch b = {.shape = {.ff = ff, .dim = cols}, .rows = rows, .h = in};
    b.gate_up = device_put(d, NULL, 2 * out * sizeof(bf16));
    b.act = device_put(d, NULL, out * sizeof *act);
    d->cuda->gate(d->cuda, &b, &weight);
    device_get(d, act, b.act, out * sizeof *act);
    for (size_t at = 0; at < out; at++) {
        const float *row = x + at / ff * cols, *gates = w + at % ff * cols;
        double gate = 0, up = 0, terms = 0;
        for (uint32_t k = 0; k < cols; k++) {
            gate += (double)row[k] * (double)gates[k];
            up += (double)row[k] * (double)gates[(size_t)ff * cols + k];
            terms += fabs((double)row[k]) *
                     (fabs((double)gates[k]) + fabs((double)gates[(size_t)ff * cols + k]));
        }
        want[at] = gate / (1 + exp(-gate)) * up;
        slack[at] = fabs(want[at]) * (3 + fabs(gate)) * bf16_half +
                    (1 + fabs(gate) + fabs(up)) * terms * cols * EPSILON;
    }
    bf16_near(d, "act", act, want, slack, out);
    for (uint32_t r = 0; r < rows; r += rows / 3 + 1) {
        b.rows = 1;
        b.h = in + (size_t)r * cols;
        d->cuda->gate(d->cuda, &b, &weight);
        device_get(d, one, b.act, ff * sizeof *one);
        case_same(c, "a row computed alone", one, act + (size_t)r * ff, ff * sizeof *one);
    }
    device_end(d);
}

static void check_gates(struct on_device *d)
{
    static const uint32_t shapes[][2] = {{8, 8}, {136, 72}, {128, 64}, {1536, 576}};
    static const uint32_t rows[] = {1, 32, 129, 257};
    for (size_t i = 0; i < (d->small ? 3 : 4); i++)
        for (size_t r = 0; r < 4; r++)
            for (int apart = 0; apart < 2; apart++)
                gate_case(d, shapes[i][0], shapes[i][1], rows[r], apart);
    d->cuda->apart = false;
}

/* ---- weights and products ---- */

/* Rows of a product alone are the rows of a product of many, to the bit. */
static void same_alone(struct on_device *d, const struct cuda_weight *w, const bf16 *x,
                       const float *all, uint32_t rows)
{
    float *one = malloc(w->rows * sizeof *one);
    float *out = device_put(d, NULL, (size_t)w->rows * sizeof *out);
    for (uint32_t r = 0; r < rows; r += rows / 3 + 1) {
        d->cuda->matmul(d->cuda, out, CUDA_OUT_F32, w->rows, w, x + (size_t)r * w->cols, 1);
        device_get(d, one, out, w->rows * sizeof *one);
        case_same(d->c, "a row computed alone", one, all + (size_t)r * w->rows,
                  w->rows * sizeof *one);
    }
    free(one);
}

static void matmul_case(struct on_device *d, uint32_t wide, uint32_t cols, uint32_t rows,
                        enum cuda_out kind, bool few)
{
    struct check *c = d->c;
    case_begin(c, "matmul, %u rows by %u x %u, out %d%s", rows, wide, cols, kind,
               few ? ", few" : "");
    size_t out = (size_t)rows * wide, size = kind == CUDA_OUT_BF16 ? sizeof(bf16) : sizeof(float);
    float *x = case_floats(c, (size_t)rows * cols), *w = case_floats(c, (size_t)wide * cols);
    bf16 *xs = case_buffer(c, (size_t)rows * cols * sizeof *xs);
    bf16 *ws = case_buffer(c, (size_t)wide * cols * sizeof *ws);
    float *before = case_floats(c, out), *got = case_floats(c, out);
    bf16 *got16 = case_buffer(c, out * sizeof *got16);
    double *want = case_buffer(c, out * sizeof *want), *slack = case_buffer(c, out * sizeof *slack);
    fill_bf16(c, x, xs, (size_t)rows * cols, 1);
    fill_bf16(c, w, ws, (size_t)wide * cols, 0.05f);
    fill_floats(c, before, out, FILL_NORMAL);
    struct cuda_weight weight = {device_put(d, ws, (size_t)wide * cols * sizeof *ws), wide, cols};
    bf16 *in = device_put(d, xs, (size_t)rows * cols * sizeof *xs);
    void *to = device_put(d, kind == CUDA_OUT_F32_ADD ? before : NULL, out * size);
    d->cuda->few = few;
    d->cuda->matmul(d->cuda, to, kind, wide, &weight, in, rows);
    device_get(d, kind == CUDA_OUT_BF16 ? (void *)got16 : got, to, out * size);
    for (size_t at = 0; at < out; at++) {
        double sum = 0, terms = 0;
        for (uint32_t k = 0; k < cols; k++) {
            double term = (double)x[at / wide * cols + k] * (double)w[at % wide * cols + k];
            sum += term;
            terms += fabs(term);
        }
        want[at] = sum + (kind == CUDA_OUT_F32_ADD ? (double)before[at] : 0);
        slack[at] = (terms + fabs(want[at])) * cols * EPSILON + 1e-30;
    }
    if (kind == CUDA_OUT_BF16)
        bf16_near(d, "out", got16, want, slack, out);
    else
        case_near(c, "out", got, want, slack, out);
    if (kind == CUDA_OUT_F32)
        same_alone(d, &weight, in, got, rows);
    d->cuda->few = false;
    device_end(d);
}

static void check_matmuls(struct on_device *d)
{
    static const uint32_t shapes[][2] = {{8, 8}, {40, 64}, {960, 576}, {576, 1536}};
    static const uint32_t rows[] = {1, 3, 32, 257};
    for (size_t i = 0; i < (d->small ? 2 : 4); i++)
        for (size_t r = 0; r < (i < 2 ? 4 : 2); r++)
            for (int kind = CUDA_OUT_F32; kind <= CUDA_OUT_BF16; kind++)
                for (int few = 0; few < 2; few++)
                    matmul_case(d, shapes[i][0], shapes[i][1], rows[r], kind, few);
}

/* A file's rows on the device, as products want them. */
static const void *put_rows(struct on_device *d, const uint8_t *source, enum tensor_type type,
                            uint32_t rows, uint32_t cols)
{
    size_t row = tensor_row_bytes(type, cols);
    void *from = device_put(d, source, rows * row), *to;
    if (type != TENSOR_Q8_0 && type != TENSOR_Q4_0 && type != TENSOR_Q4_1)
        return from;
    to = device_put(d, NULL, (rows + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS * CUDA_TILE_ROWS * row);
    d->cuda->tile(d->cuda, to, from, type, rows, cols);
    return to;
}

/* Without an update to the bit: scale times code is exact, and all else is one rounding. */
static void weight_case(struct on_device *d, enum tensor_type type, uint32_t rows, uint32_t cols,
                        uint32_t loras)
{
    enum { RANK = 3 };
    struct check *c = d->c;
    size_t row = tensor_row_bytes(type, cols), values = (size_t)rows * cols;
    case_begin(c, "weight_make, type %d, %u x %u, %u low-rank", (int)type, rows, cols, loras);
    uint8_t *source = case_buffer(c, rows * row);
    float *plain = case_floats(c, values), *a = case_floats(c, (size_t)RANK * cols);
    float *bs = case_floats(c, (size_t)rows * RANK);
    bf16 *got = case_buffer(c, values * sizeof *got);
    double *want = case_buffer(c, values * sizeof *want);
    double *slack = case_buffer(c, values * sizeof *slack);
    for (size_t i = 0; i < rows * row; i++)
        source[i] = (uint8_t)random_u32(c);
    for (size_t i = 0; i < rows * row; i++) /* no infinities among scales and values */
        source[i] &= i % 2 ? (type == TENSOR_F32 || type == TENSOR_BF16 ? 0xbf : 0xbb) : 0xff;
    for (uint32_t r = 0; r < rows; r++)
        tensor_row(plain + (size_t)r * cols, source + r * row, type, cols);
    fill_floats(c, a, (size_t)RANK * cols, FILL_NORMAL);
    fill_floats(c, bs, (size_t)rows * RANK, FILL_NORMAL);
    struct cuda_lora lora[2] = {
        {device_put(d, a, RANK * cols * sizeof *a), device_put(d, bs, rows * RANK * sizeof *bs),
         RANK},
    };
    lora[1] = lora[0];
    struct cuda_weight out = {device_put(d, NULL, values * sizeof *got), rows, cols};
    d->cuda->weight_make(d->cuda, &out, put_rows(d, source, type, rows, cols), type, lora, loras);
    device_get(d, got, out.data, values * sizeof *got);
    for (size_t at = 0; at < values; at++) {
        double low = 0, terms = 0;
        for (uint32_t k = 0; k < RANK; k++) {
            double term = (double)bs[at / cols * RANK + k] * (double)a[k * cols + at % cols];
            low += loras * term;
            terms += loras * fabs(term);
        }
        want[at] = (double)plain[at] + low;
        slack[at] = (terms + fabs((double)plain[at])) * 16 * EPSILON + 1e-38;
        if (!loras && got[at] != bf16_of(plain[at]))
            case_fail(c, "out[%zu] is %04x, not %04x", at, got[at], bf16_of(plain[at]));
    }
    bf16_near(d, "out", got, want, slack, values);
    device_end(d);
}

/* Rows alone are rows of many; the weights are those that weight_make makes. */
static void file_case(struct on_device *d, enum tensor_type type, uint32_t wide, uint32_t cols,
                      uint32_t rows, enum cuda_out kind)
{
    struct check *c = d->c;
    size_t row = tensor_row_bytes(type, cols), out = (size_t)rows * wide;
    size_t size = kind == CUDA_OUT_BF16 ? sizeof(bf16) : sizeof(float);
    case_begin(c, "matmul_file, type %d, %u rows by %u x %u, out %d", (int)type, rows, wide, cols,
               kind);
    uint8_t *source = case_buffer(c, wide * row);
    float *w = case_floats(c, (size_t)wide * cols), *x = case_floats(c, (size_t)rows * cols);
    bf16 *xs = case_buffer(c, (size_t)rows * cols * sizeof *xs);
    float *before = case_floats(c, out), *got = case_floats(c, out), *one = case_floats(c, wide);
    bf16 *got16 = case_buffer(c, out * sizeof *got16);
    double *want = case_buffer(c, out * sizeof *want), *slack = case_buffer(c, out * sizeof *slack);
    for (size_t i = 0; i < wide * row; i++) /* scales from 2^-15 up to 2 */
        source[i] = (uint8_t)(random_u32(c) & (i % 2 ? 0xbf : 0xff));
    for (uint32_t r = 0; r < wide; r++)
        tensor_row(w + (size_t)r * cols, source + r * row, type, cols);
    fill_bf16(c, x, xs, (size_t)rows * cols, 1);
    fill_floats(c, before, out, FILL_NORMAL);
    const void *from = put_rows(d, source, type, wide, cols);
    bf16 *in = device_put(d, xs, (size_t)rows * cols * sizeof *xs);
    void *to = device_put(d, kind == CUDA_OUT_F32_ADD ? before : NULL, out * size);
    d->cuda->matmul_file(d->cuda, to, kind, wide, from, type, wide, cols, in, rows);
    device_get(d, kind == CUDA_OUT_BF16 ? (void *)got16 : got, to, out * size);
    for (size_t at = 0; at < out; at++) {
        double sum = 0, terms = 0;
        for (uint32_t k = 0; k < cols; k++) {
            double weight = double_of_bf16(bf16_of(w[at % wide * cols + k]));
            double term = (double)x[at / wide * cols + k] * weight;
            sum += term;
            terms += fabs(term);
        }
        want[at] = sum + (kind == CUDA_OUT_F32_ADD ? (double)before[at] : 0);
        slack[at] = (terms + fabs(want[at])) * cols * EPSILON + 1e-30;
    }
    if (kind == CUDA_OUT_BF16)
        bf16_near(d, "out", got16, want, slack, out);
    else
        case_near(c, "out", got, want, slack, out);
    for (uint32_t r = 0; kind == CUDA_OUT_F32 && r < rows; r += rows / 3 + 1) {
        d->cuda->matmul_file(d->cuda, to, kind, wide, from, type, wide, cols, in + (size_t)r * cols,
                             1);
        device_get(d, one, to, wide * sizeof *one);
        case_same(c, "a row computed alone", one, got + (size_t)r * wide, wide * sizeof *one);
    }
    device_end(d);
}

static void check_files(struct on_device *d)
{
    static const enum tensor_type types[] = {TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q4_1};
    static const uint32_t shapes[][2] = {{1, 32}, {40, 96}, {33, 576}, {960, 576}, {576, 1536}};
    static const uint32_t rows[] = {1, 8, 9, CUDA_FILE_ROWS, 37};
    for (size_t i = 0; i < 3; i++)
        for (size_t s = 0; s < (d->small ? 3 : 5); s++)
            for (size_t r = 0; r < 5; r++)
                for (int kind = CUDA_OUT_F32; kind <= CUDA_OUT_BF16; kind++)
                    file_case(d, types[i], shapes[s][0], shapes[s][1], rows[r], kind);
}

static void check_weights(struct on_device *d)
{
    static const enum tensor_type types[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_BF16,
                                             TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q4_1};
    static const uint32_t shapes[][2] = {{9, 96}, {1, 32}, {4, 2080}, {131, 576}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t s = 0; s < (d->small ? 3 : 4); s++)
            for (uint32_t loras = 0; loras <= 2; loras++)
                weight_case(d, types[i], shapes[s][0], shapes[s][1], loras);
}

/* ---- rotation ---- */

static void rotate_case(struct on_device *d, uint32_t dim, uint32_t rows, int64_t position)
{
    enum { HEADS = 3 };
    struct check *c = d->c;
    size_t stride = rows + 3, values = HEADS * stride * dim;
    case_begin(c, "rotations and rotate, %u rows of %u at %lld", rows, dim, (long long)position);
    f16 *in = case_buffer(c, values * sizeof *in), *got = case_buffer(c, values * sizeof *got);
    double *frequency = case_buffer(c, dim / 2 * sizeof *frequency);
    int64_t *at = case_buffer(c, rows * sizeof *at);
    float *turn = case_floats(c, (size_t)rows * dim);
    fill_halves(c, in, values, 1);
    for (uint32_t i = 0; i < dim / 2; i++)
        frequency[i] = pow(1e5, -2.0 * i / dim);
    for (uint32_t r = 0; r < rows; r++)
        at[r] = position + (int64_t)r;
    float *turns = device_put(d, NULL, (size_t)rows * dim * sizeof *turns);
    f16 *rotated = device_put(d, in, values * sizeof *in);
    d->cuda->rotations(d->cuda, turns, device_put(d, at, rows * sizeof *at), rows,
                       device_put(d, frequency, dim / 2 * sizeof *frequency), dim);
    d->cuda->rotate(d->cuda, rotated, stride, device_put(d, in, values * sizeof *in), stride, turns,
                    rows, HEADS, dim);
    device_get(d, turn, turns, (size_t)rows * dim * sizeof *turn);
    device_get(d, got, rotated, values * sizeof *got);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < dim / 2; i++) {
            double angle = remainder((double)at[r] * frequency[i], 2 * M_PI);
            double cosine = cos(angle), sine = sin(angle);
            const float *pair = turn + ((size_t)r * dim / 2 + i) * 2;
            if (!(fabs((double)pair[0] - cosine) < 1e-6 && fabs((double)pair[1] - sine) < 1e-6))
                case_fail(c, "angle %u of row %u", i, r);
            for (uint32_t h = 0; h < HEADS; h++) {
                size_t from = (h * stride + r) * dim + 2 * i;
                double x = double_of(in[from]), y = double_of(in[from + 1]);
                double want[2] = {x * cosine - y * sine, x * sine + y * cosine};
                for (int n = 0; n < 2; n++)
                    if (!(fabs(double_of(got[from + (size_t)n]) - want[n]) <=
                          f16_half * fabs(want[n]) + 1e-5 * (fabs(x) + fabs(y)) + 1e-7))
                        case_fail(c, "head %u, row %u, pair %u", h, r, i);
            }
        }
    device_end(d);
}

static void check_rotates(struct on_device *d)
{
    static const int64_t positions[] = {0, -40, 8191, 3000000000, 1000000000000};
    static const uint32_t dims[] = {2, 30, 64, 128};
    for (size_t i = 0; i < (d->small ? 2 : 5); i++)
        for (size_t n = 0; n < 4; n++)
            rotate_case(d, dims[n], 1 + 16 * (uint32_t)(n % 2), positions[i]);
}

/* ---- all ---- */

static const struct {
    const char *name;
    void (*check)(struct on_device *d);
    void (*bench)(struct on_device *d);
} ops[] = {
    {"norm", check_norms, NULL},           {"swiglu", check_swiglus, NULL},
    {"matmul", check_matmuls, NULL},       {"gate", check_gates, NULL},
    {"weight", check_weights, NULL},       {"file", check_files, bench_device_file},
    {"logits", check_device_logits, NULL}, {"rotate", check_rotates, NULL},
    {"rows", check_device_rows, NULL},     {"attend", check_device_attend, NULL},
    {"slide", check_device_slide, NULL},
};

int check_device(struct check *c, bool small, bool bench)
{
    struct on_device d = {.c = c, .small = small};
    static struct kernels names = {.name = "cuda"};
    char error[300];
    c->one = &names; /* what a case that fails is said to be of */
    if (cuda_open(&d.cuda, error, sizeof error)) {
        printf("skip: %s\n", error);
        return 77;
    }
    printf("seed %llu, %s\n", (unsigned long long)c->seed, d.cuda->name);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        uint32_t passed = c->passed, failed = c->failed;
        if (c->filter && !strstr(ops[i].name, c->filter))
            continue;
        c->state = c->seed * 1000003u + i;
        if (bench && ops[i].bench)
            ops[i].bench(&d);
        if (bench)
            continue;
        ops[i].check(&d);
        printf("%-12s %u passed, %u failed\n", ops[i].name, c->passed - passed, c->failed - failed);
    }
    cuda_close(&d.cuda);
    if (bench)
        return c->failed != 0;
    printf("%u passed, %u failed\n", c->passed, c->failed);
    return c->failed != 0;
}
