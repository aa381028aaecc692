/*
 * Reference of quantise and matmul: this file defines what they mean.
 *
 * A weight block of 32 is w = d * code + m (Q4_1), d * (code - 8) (Q4_0) or d * code (Q8_0); an
 * activation block is x = s * code. Their dot product is
 *
 *     d s sum(code_w code_x) + m s sum(code_x)
 *
 * with both sums in int32, exact; the blocks are added up in fp32, in ascending order. Nothing in
 * it knows of the other rows.
 */
#include <errno.h>
#include <math.h>

#include "kernels/internal.h"

/* Activations: codes [rows][cols] int8 | scale [rows][cols/32] | sum [rows][cols/32] int32. */
struct activations {
    int8_t *codes;
    float *scale;
    int32_t *sum;
};

static struct activations activations_at(void *q, uint32_t rows, uint32_t cols)
{
    size_t blocks = (size_t)rows * (cols / KERNELS_BLOCK);
    int8_t *codes = q;
    float *scale = (float *)(void *)(codes + (size_t)rows * cols);
    return (struct activations){codes, scale, (int32_t *)(void *)(scale + blocks)};
}

size_t quantize_bytes_ref(const struct kernels *k, uint32_t rows, uint32_t cols)
{
    (void)k;
    assert(cols % KERNELS_BLOCK == 0);
    return round_up((size_t)rows * cols + (size_t)rows * (cols / KERNELS_BLOCK) * 8, 64);
}

/* One block: scale = max|x| / 127, code = x * (127 / max|x|) to the nearest even. */
static float quantize_block(int8_t *codes, int32_t *sum, const float *x)
{
    float top = 0.0f;
    for (int i = 0; i < KERNELS_BLOCK; i++)
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    float inverse = top < QUANTIZE_TINY ? 0.0f : 127.0f / top;
    int32_t total = 0;
    for (int i = 0; i < KERNELS_BLOCK; i++) {
        /* Adding 1.5 * 2^23 leaves the rounded integer in the low bits. */
        float shifted = x[i] * inverse + 12582912.0f;
        uint32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        codes[i] = (int8_t)(uint8_t)(bits & 255u);
        total += codes[i];
    }
    *sum = total;
    return top < QUANTIZE_TINY ? 0.0f : top / 127.0f;
}

void quantize_ref(struct kernels *k, void *q, const float *x, uint32_t rows, uint32_t cols)
{
    (void)k;
    assert(cols % KERNELS_BLOCK == 0 && rows <= KERNELS_ROWS_MAX);
    struct activations to = activations_at(q, rows, cols);
    for (size_t b = 0; b < (size_t)rows * (cols / KERNELS_BLOCK); b++)
        to.scale[b] =
            quantize_block(to.codes + b * KERNELS_BLOCK, &to.sum[b], x + b * KERNELS_BLOCK);
}

/* The reference packs nothing: a weight is the file's rows. */
size_t weight_bytes_ref(const struct kernels *k, enum tensor_type type, uint32_t rows,
                        uint32_t cols)
{
    (void)k;
    return round_up(tensor_row_bytes(type, cols) * rows, 64);
}

int weight_pack_ref(const struct kernels *k, struct weight *out, void *memory, const void *source,
                    enum tensor_type type, uint32_t rows, uint32_t cols)
{
    (void)k;
    bool quantized = type == TENSOR_Q4_0 || type == TENSOR_Q4_1 || type == TENSOR_Q8_0;
    if (!quantized && type != TENSOR_F32 && type != TENSOR_F16 && type != TENSOR_BF16)
        return -ENOTSUP;
    if (quantized && cols % KERNELS_BLOCK != 0)
        return -EINVAL;
    memcpy(memory, source, tensor_row_bytes(type, cols) * rows);
    *out = (struct weight){rows, cols, quantized, (uint32_t)type, memory};
    return 0;
}

struct matmul_job {
    float *out; /* [rows][out_stride] */
    size_t out_stride;
    const struct weight *w;
    const float *x; /* [rows][x_stride] */
    size_t x_stride;
    struct activations q;
    uint32_t rows;
    bool accumulate;
};

struct weight_block {
    float d, m;
    int8_t codes[KERNELS_BLOCK];
};

static void weight_block_read(struct weight_block *out, const uint8_t *from, uint32_t type)
{
    out->d = f16_to_f32(load_f16(from));
    out->m = 0.0f;
    if (type == TENSOR_Q8_0) {
        memcpy(out->codes, from + 2, KERNELS_BLOCK);
        return;
    }
    int offset = type == TENSOR_Q4_0 ? 8 : 0;
    const uint8_t *nibbles = from + 2;
    if (type == TENSOR_Q4_1) {
        out->m = f16_to_f32(load_f16(nibbles));
        nibbles += 2;
    }
    for (int i = 0; i < 16; i++) {
        out->codes[i] = (int8_t)((nibbles[i] & 15) - offset);
        out->codes[i + 16] = (int8_t)((nibbles[i] >> 4) - offset);
    }
}

static int32_t dot_block(const int8_t *a, const int8_t *b)
{
    int32_t dot = 0;
    for (int i = 0; i < KERNELS_BLOCK; i++)
        dot += a[i] * b[i];
    return dot;
}

/* Adds row n of a quantised weight to every row's sum, a block at a time. */
static void matmul_quantized(const struct matmul_job *job, float *sums, uint32_t n)
{
    const struct weight *w = job->w;
    uint32_t blocks = w->cols / KERNELS_BLOCK;
    size_t row_bytes = tensor_row_bytes((enum tensor_type)w->layout, w->cols);
    size_t block_bytes = row_bytes / blocks;
    const uint8_t *from = (const uint8_t *)w->data + n * row_bytes;
    for (uint32_t b = 0; b < blocks; b++, from += block_bytes) {
        struct weight_block block;
        weight_block_read(&block, from, w->layout);
        for (uint32_t i = 0; i < job->rows; i++) {
            size_t at = (size_t)i * blocks + b;
            float s = job->q.scale[at];
            int32_t dot = dot_block(block.codes, job->q.codes + at * KERNELS_BLOCK);
            sums[i] += block.d * s * (float)dot;
            sums[i] += block.m * (s * (float)job->q.sum[at]);
        }
    }
}

static void matmul_float(const struct matmul_job *job, float *sums, uint32_t n)
{
    enum { COLS_MAX = 64 };
    const struct weight *w = job->w;
    enum tensor_type type = (enum tensor_type)w->layout;
    const uint8_t *from = (const uint8_t *)w->data + n * tensor_row_bytes(type, w->cols);
    float values[COLS_MAX];
    for (uint32_t c = 0; c < w->cols; c += COLS_MAX) {
        uint32_t count = min_u32(w->cols - c, COLS_MAX);
        tensor_row(values, from + tensor_row_bytes(type, c), type, count);
        for (uint32_t i = 0; i < job->rows; i++) {
            const float *x = job->x + i * job->x_stride + c;
            for (uint32_t j = 0; j < count; j++)
                sums[i] += x[j] * values[j];
        }
    }
}

static void matmul_range(void *argument, uint32_t from, uint32_t to)
{
    const struct matmul_job *job = argument;
    for (uint32_t n = from; n < to; n++) {
        float sums[KERNELS_ROWS_MAX] = {0};
        if (job->w->quantized)
            matmul_quantized(job, sums, n);
        else
            matmul_float(job, sums, n);
        for (uint32_t i = 0; i < job->rows; i++) {
            float *out = job->out + i * job->out_stride + n;
            *out = job->accumulate ? *out + sums[i] : sums[i];
        }
    }
}

void matmul_ref(struct kernels *k, float *out, size_t out_stride, const struct weight *w,
                const float *x, size_t x_stride, const void *q, uint32_t rows, bool accumulate)
{
    assert(rows <= KERNELS_ROWS_MAX && (w->quantized ? q != NULL : x != NULL));
    struct matmul_job job = {.out = out,
                             .out_stride = out_stride,
                             .w = w,
                             .x = x,
                             .x_stride = x_stride,
                             .rows = rows,
                             .accumulate = accumulate};
    if (w->quantized) /* read only, though the type has no const */
        job.q = activations_at((void *)(uintptr_t)q, rows, w->cols);
    pool_ranges(k->pool, matmul_range, &job, w->rows, pool_step(k, w->rows, 1, 4));
}
