/*
 * kernels: one op, one name, every device.
 *
 * A `struct kernels` is a device with its worker pool and a table of ops. The reference versions
 * (OP.c) say what an op means; a faster version (OP_avx2.c, OP_avx512.c, OP.cu) stands in its place
 * in the table when the machine has what it needs. Callers need not know which one runs, nor how a
 * weight is laid out once it is packed.
 *
 * Rules every version keeps:
 *  - Rows are batch-invariant: row i of a result depends on row i of the input alone, bit for bit,
 * at any row count and any thread count. A stream's memory being a pure function of its text rests
 * on it.
 *  - Results are fp32. Quantised weights meet activations quantised to int8 by blocks of 32 (scale
 * = max|x| / 127).
 *  - No op allocates. Buffers are the caller's; their shapes stand in the comments, row-major,
 * [rows][cols]. Outputs never overlap inputs but where an op says that they may be the same.
 *  - A table belongs to one thread at a time: its pool runs one op at a time. rope, rotate and
 * pack_f16 use no pool and may run inside a task of it.
 *
 * Limits: cols of a quantised weight and of quantised activations are a multiple of 32; head_dim is
 * even, at most 256; quantize, norm, matmul and swiglu take at most KERNELS_ROWS_MAX rows a call.
 */
#ifndef SILT_KERNELS_H
#define SILT_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint16_t f16; /* IEEE binary16 bits */

enum {
    /* Grows with every change of a bit in what any path gives for the same input. 2: attention over
     * more than 256 rows is joined from stretches of them. */
    KERNELS_REVISION = 2,
    KERNELS_BLOCK = 32,
    KERNELS_ROWS_MAX = 96,
    KERNELS_HEAD_DIM_MAX = 256,
    ATTEND_SPANS_MAX = 7
};

/* Numbers of the GGUF file format (ggml_type). */
enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q8_0 = 8,
    TENSOR_BF16 = 30,
};

enum device { DEVICE_CPU, DEVICE_CUDA };

/* Bits of kernels_options.feature_mask and of kernels_features(). */
enum feature {
    FEATURE_AVX2 = 1u << 0,        /* AVX2, FMA, F16C */
    FEATURE_AVX_VNNI = 1u << 1,    /* 256-bit vpdpbusd */
    FEATURE_AVX512 = 1u << 2,      /* F, BW, DQ, VL */
    FEATURE_AVX512_VNNI = 1u << 3, /* 512-bit vpdpbusd */
    FEATURE_AVX512_BF16 = 1u << 4, /* vdpbf16ps */
    FEATURE_AMX_INT8 = 1u << 5,
};

/* A packed matrix W [rows][cols] of y = W x. Opaque but for its shape. */
struct weight {
    uint32_t rows, cols;
    bool quantized;   /* wants int8 activations; else fp32 ones */
    uint32_t layout;  /* not packed, but referred to for a GPU: the tensor_type */
    const void *data; /* the caller's memory, 64-byte aligned */
};

/* Rows that every query of a job sees: keys with RoPE applied, and values, [rows][head_dim]. */
struct attend_span {
    const f16 *k, *v;
    uint32_t rows;
};

/* Attention of a block of queries for one KV head. Softmax in fp32 over all visible rows together:
 * the spans in order, then the local rows. A query that sees no row gets zeros. */
struct attend_job {
    const float *q;            /* query i, head g: q + i * stride + g * head_dim, RoPE applied */
    float *out;                /* query i, head g: out + i * out_stride + g * head_dim */
    size_t stride, out_stride; /* floats from one query to the next */
    uint32_t queries, group;
    struct attend_span span[ATTEND_SPANS_MAX];
    uint32_t span_count;
    const f16 *k_local, *v_local; /* [queries][head_dim], row i is seen by queries from i on; NULL:
                                     none */
    const uint32_t *first; /* [queries], the first row of span[0] that query i sees; NULL: all */
};

/* The DMC merge of a block for one KV head (DESIGN 2.1; DMC, arXiv 2403.09636). */
struct merge_job {
    const float *k, *v; /* row i: k + i * stride, before RoPE */
    size_t stride;
    const uint8_t *a;         /* [rows] nonzero: merge into the running entry; 0: begin a new one,
                                 whatever the state held */
    const float *o;           /* [rows] importance */
    const float *rotation;    /* [rows][head_dim/2][2] cos, sin */
    float *z, *sum_k, *sum_v; /* running state: [1], [head_dim], [head_dim]; in and out */
    f16 *k_out, *v_out;       /* [rows][head_dim]: the running entry after token i, k rotated */
    uint32_t rows;
};

struct kernels;

typedef size_t weight_bytes_fn(const struct kernels *k, enum tensor_type type, uint32_t rows,
                               uint32_t cols);
typedef int weight_pack_fn(const struct kernels *k, struct weight *out, void *memory,
                           const void *source, enum tensor_type type, uint32_t rows, uint32_t cols);
typedef size_t quantize_bytes_fn(const struct kernels *k, uint32_t rows, uint32_t cols);
typedef void quantize_fn(struct kernels *k, void *q, const float *x, uint32_t rows, uint32_t cols);
typedef void norm_fn(struct kernels *k, float *out, void *q, const float *x, const float *weight,
                     uint32_t rows, uint32_t cols, float eps);
typedef void matmul_fn(struct kernels *k, float *out, size_t out_stride, const struct weight *w,
                       const float *x, size_t x_stride, const void *q, uint32_t rows,
                       bool accumulate);
typedef void swiglu_fn(struct kernels *k, float *out, void *q, const float *gate_up, uint32_t rows,
                       uint32_t cols);
typedef void rope_fn(struct kernels *k, float *x, size_t stride, const float *rotation,
                     uint32_t rows, uint32_t heads, uint32_t head_dim);
typedef void rotate_fn(struct kernels *k, f16 *out, const f16 *in, const float *rotation,
                       uint32_t rows, uint32_t head_dim);
typedef void merge_fn(struct kernels *k, const struct merge_job *jobs, uint32_t count,
                      uint32_t head_dim);
typedef void attend_fn(struct kernels *k, const struct attend_job *jobs, uint32_t count,
                       uint32_t head_dim, float scale);
typedef void fold_fn(struct kernels *k, float *summary, const f16 *segment, size_t count,
                     float alpha);
typedef void pack_f16_fn(struct kernels *k, f16 *out, const float *in, size_t count);
typedef void pack_int8_fn(struct kernels *k, int8_t *out, float *scale, const f16 *in,
                          uint32_t rows, uint32_t cols);
typedef void unpack_int8_fn(struct kernels *k, f16 *out, const int8_t *in, const float *scale,
                            uint32_t rows, uint32_t cols);
typedef void nll_fn(struct kernels *k, float *out, const float *logits, const int32_t *targets,
                    uint32_t rows, uint32_t vocab);

struct kernels {
    const char *name; /* "reference", "avx2", "avx512-vnni", … */
    uint32_t features;
    uint32_t threads;
    struct pool *pool;

    /* Bytes a packed weight takes, and the packing itself; memory is 64-byte aligned. -ENOTSUP:
     * type unknown, -EINVAL: cols not a multiple of 32. Q4_0, Q4_1 and Q8_0 stay quantised; F32,
     * F16 and BF16 stay float. */
    weight_bytes_fn *weight_bytes;
    weight_pack_fn *weight_pack;
    /* int8 activations: q holds quantize_bytes, 64-byte aligned; x [rows][cols]. What is in q is
     * good for a matmul of exactly as many rows. */
    quantize_bytes_fn *quantize_bytes;
    quantize_fn *quantize;
    /* out = x / rms(x) * weight; out [rows][cols] fp32, and quantised into q where q is not NULL;
     * out may be x. */
    norm_fn *norm;
    /* out[i][n] (+)= sum_c x[i][c] W[n][c]. Quantised weights read q (of exactly these rows), float
     * ones x. */
    matmul_fn *matmul;
    /* out [rows][cols] = silu(gate) * up, quantised into q where q is not NULL; a row of gate_up is
     * [gate cols | up cols]. */
    swiglu_fn *swiglu;
    /* Rotates the pairs (2i, 2i+1) of each head of x in place; rotation [rows][head_dim/2][2] =
     * cos, sin. */
    rope_fn *rope;
    /* The same for stored f16 keys: in, out [rows][head_dim]. */
    rotate_fn *rotate;
    merge_fn *merge;
    attend_fn *attend;
    /* summary = (1 - alpha) * summary + alpha * segment */
    fold_fn *fold;
    pack_f16_fn *pack_f16;
    /* Finite rows as int8, and back: scale[i] = max |in[i]| / 127, out = in / scale, to the
     * nearest. in, out [rows][cols]. unpack_int8 may write its f16 from the address on that its
     * int8 begin at. */
    pack_int8_fn *pack_int8;
    unpack_int8_fn *unpack_int8;
    /* out[i] = logsumexp(logits[i]) - logits[i][targets[i]], logits [rows][vocab], targets in the
     * vocabulary */
    nll_fn *nll;
};

struct kernels_options {
    enum device device;
    uint32_t threads;      /* 0: as many as the process may use */
    uint32_t feature_mask; /* 0: reference only; UINT32_MAX: all that the machine has */
};

/* Features of this machine, before any mask. */
uint32_t kernels_features(void);
/* Space-separated names of the features in a set, into text. */
void kernels_feature_names(uint32_t features, char *text, size_t text_bytes);

/* Opens a table with its worker pool. 0, -ENOTSUP (device not compiled in or absent), -ENOMEM,
 * -EAGAIN (no thread). */
int kernels_open(struct kernels **out, const struct kernels_options *options);
void kernels_close(struct kernels **kernels);

/* Bytes of a row of cols values in the file's own layout, 0 for an unknown type or cols that do not
 * fit. */
size_t tensor_row_bytes(enum tensor_type type, uint32_t cols);
/* One row of a file's tensor to fp32 (embeddings are looked up this way). */
void tensor_row(float *out, const void *row, enum tensor_type type, uint32_t cols);
/* Whether whole rows of a tensor, `bytes` of them, hold neither infinities nor NaN. */
bool tensor_finite(const void *rows, enum tensor_type type, size_t bytes);

float f16_to_f32(f16 h);
f16 f16_from_f32(float f); /* round to nearest even */

/* Runs task(argument, i) for i in 0..count-1 over the pool, returns when all are done. Of n threads
 * thread t begins with those from t * count / n on, so that jobs which cut the same rows in the
 * same way find them in the cache that they left them in. */
void pool_run(struct pool *pool, void (*task)(void *argument, uint32_t index), void *argument,
              uint32_t count);

#endif
