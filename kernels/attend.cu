/*
 * Attention of a ragged batch: for each item and KV head, its queries over all that the item sees,
 * whose length the device alone knows.
 *
 * What is seen lies in up to SPANS places. A `view` strings them together, so that keys have
 * consecutive numbers and no tile is cut where a span ends. Three kernels read it: the plain one,
 * one warp a query, for any head size; `tile`, tensor cores for blocks of up to 32 queries; and
 * `few`, for single tokens, whose query heads fill the rows of one tile and whose keys are split
 * over warps and blocks. In all of them the query heads that share a KV head read its rows once.
 * The order of sums depends on the keys' numbers alone. (FlashAttention, arXiv 2205.14135;
 * Flash-Decoding.)
 */
#include "kernels/cuda.cuh"

enum {
    PLAIN_WARPS = 4,
    PLAIN_DIMS = KERNELS_HEAD_DIM_MAX / WARP,
    TILE_WARPS_MAX = 8,
    FEW_ROWS = 16,
    FEW_KEYS = 1024, /* of one block of threads */
};

struct attend_pass {
    struct cuda_batch b;
    uint32_t layer, splits;
    float scale; /* of scores, log2(e) in it: weights are powers of two */
};

#include "kernels/attend_view.cuh"

/* A pair of a query head's values, and the sine and cosine that turn it. */
struct query_pair {
    float2 value, turn;
};

static __device__ __forceinline__ struct query_pair query_read(const struct attend_pass &job,
                                                               uint32_t row, uint32_t query_head,
                                                               uint32_t p)
{
    const struct cuda_shape &s = job.b.shape;
    size_t stride = (size_t)(s.heads + 2 * s.kv_heads) * s.head_dim;
    struct query_pair q;
    q.value = *(const float2 *)(job.b.qkv + row * stride + query_head * s.head_dim + 2 * p);
    q.turn = ((const float2 *)job.b.rotation)[(size_t)row * (s.head_dim / 2) + p];
    return q;
}

/* Turned by RoPE and scaled. */
static __device__ __forceinline__ float2 query_value(const struct attend_pass &job,
                                                     const struct query_pair &q)
{
    return make_float2((q.value.x * q.turn.x - q.value.y * q.turn.y) * job.scale,
                       (q.value.x * q.turn.y + q.value.y * q.turn.x) * job.scale);
}

static __device__ __forceinline__ uint32_t query_turn(const struct attend_pass &job,
                                                      const struct query_pair &q)
{
    float2 turned = query_value(job, q);
    return half_pair(turned.x, turned.y);
}

/* ---- plain ---- */

/* One query head of one row; a lane holds the dimensions lane, lane + 32, … */
static __device__ void plain_query(const struct attend_pass &job, const struct view *w,
                                   uint32_t row, uint32_t query_head, uint32_t query)
{
    uint32_t dim = job.b.shape.head_dim, lane = threadIdx.x % WARP;
    float q[PLAIN_DIMS], out[PLAIN_DIMS], top = -INFINITY, total = 0;
    for (uint32_t i = 0, d = lane; i < PLAIN_DIMS; i++, d += WARP) {
        float2 pair =
            d < dim ? query_value(job, query_read(job, row, query_head, d / 2)) : make_float2(0, 0);
        q[i] = d % 2 ? pair.y : pair.x;
        out[i] = 0;
    }
    for (uint32_t key = 0; key < w->keys; key++) {
        if (key > w->local + query)
            break;
        struct view_row at = view_find(w, key);
        float score = 0;
        for (uint32_t i = 0, d = lane; d < dim; i++, d += WARP)
            score += q[i] * half_to_float(at.k[d]);
        score = warp_sum(score);
        float higher = fmaxf(top, score), keep = exp2f(top - higher), p = exp2f(score - higher);
        total = total * keep + p;
        for (uint32_t i = 0, d = lane; d < dim; i++, d += WARP)
            out[i] = out[i] * keep + p * half_to_float(at.v[d]);
        top = higher;
    }
    bf16 *to = job.b.att + ((size_t)row * job.b.shape.heads + query_head) * dim;
    for (uint32_t i = 0, d = lane; d < dim; i++, d += WARP)
        to[d] = bf16_from_float(total > 0 ? out[i] / total : 0.0f);
}

static __global__ void plain_kernel(struct attend_pass job)
{
    __shared__ struct cuda_item item;
    __shared__ struct view view;
    view_open(&item, &view, job.b, job.layer, blockIdx.x, blockIdx.y / job.b.shape.group);
    for (uint32_t i = threadIdx.x / WARP; i < item.rows; i += PLAIN_WARPS)
        plain_query(job, &view, item.row + i, blockIdx.y, i);
}

/* ---- tiles of keys in shared memory ---- */

/* Keys and values of a tile, rows a little apart so that eight of them meet no bank twice. */
template <int D, int KEYS> struct tile {
    f16 k[KEYS][D + 8], v[KEYS][D + 8];
};

/* Begins to copy the rows that `at` names, by THREADS threads of which this one is `thread`;
 * THREADS 0: by as many as run. */
template <int D, int KEYS, int THREADS>
static __device__ __forceinline__ void tile_read(struct tile<D, KEYS> *t, const struct view_row *at,
                                                 uint32_t thread)
{
    constexpr uint32_t PIECES = D / 8; /* of 16 bytes */
    uint32_t threads = THREADS ? THREADS : blockDim.x, col = thread % PIECES * 8;
#pragma unroll(THREADS ? (KEYS * PIECES + THREADS - 1) / THREADS : 1)
    for (uint32_t from = 0; from < KEYS * PIECES; from += threads) {
        uint32_t row = (from + thread) / PIECES;
        if (from + threads > KEYS * PIECES && row >= KEYS)
            break;
        struct view_row source = at[row];
        copy_begin(&t->k[row][col], source.k + col);
        copy_begin(&t->v[row][col], source.v + col);
    }
}

/* M times 16 rows of queries and what they have summed so far: rows lane / 4 and 8 more. */
template <int D, int M> struct query_rows {
    uint32_t q[M][D / 16][4];
    float out[M][D / 8][4];
    float top[M][2], total[M][2];
};

template <int D, int M>
static __device__ __forceinline__ void rows_clear(struct query_rows<D, M> *r)
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            r->out[m][n][0] = r->out[m][n][1] = r->out[m][n][2] = r->out[m][n][3] = 0;
        r->top[m][0] = r->top[m][1] = -INFINITY;
        r->total[m][0] = r->total[m][1] = 0;
    }
}

/* Queries from shared memory, in pairs. */
template <int D, int M>
static __device__ __forceinline__ void rows_load(struct query_rows<D, M> *r,
                                                 const uint32_t (*from)[D / 2 + 4])
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            load_matrices(r->q[m][d], (const f16 *)&from[m * 16 + lane % 16][d * 8 + lane / 16 * 4],
                          false);
}

/* Scores of the first USED times 16 rows against KEYS keys of a tile from key `from` on. */
template <int D, int M, int USED, int KEYS, int TILE>
static __device__ __forceinline__ void scores(float s[USED][KEYS / 8][4],
                                              const struct query_rows<D, M> *r,
                                              const struct tile<D, TILE> *t, uint32_t from)
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < USED; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t k[4];
            load_matrices(
                k, &t->k[from + n * 16 + lane / 16 * 8 + lane % 8][d * 16 + lane / 8 % 2 * 8],
                false);
#pragma unroll
            for (int m = 0; m < USED; m++) {
                mma_16x8x16(s[m][2 * n], r->q[m][d], k[0], k[1]);
                mma_16x8x16(s[m][2 * n + 1], r->q[m][d], k[2], k[3]);
            }
        }
    }
}

/*
 * Scores become weights. They are powers of two of the distance to `top`, which need not be the
 * largest score: it moves, and what was summed shrinks, once a score is TOP_SLACK above it, so that
 * weights stay within f16. Whether it moves depends on a row's own scores alone.
 */
enum { TOP_SLACK = 8 };

template <int D, int M, int KEYS>
static __device__ __forceinline__ void weigh(float s[KEYS / 8][4], struct query_rows<D, M> *r,
                                             int m)
{
    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float old = r->top[m][half], top = s[0][2 * half], total = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        top = top > old + TOP_SLACK ? top : old;
        float base = top == -INFINITY ? 0.0f : top; /* no key seen yet */
        keep[half] = old == top ? 1.0f : exp2_near(old - base);
        r->top[m][half] = top;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            s[n][2 * half] = exp2_near(s[n][2 * half] - base);
            s[n][2 * half + 1] = exp2_near(s[n][2 * half + 1] - base);
            total += s[n][2 * half] + s[n][2 * half + 1];
        }
        r->total[m][half] = r->total[m][half] * keep[half] + total;
    }
    if (keep[0] == 1.0f && keep[1] == 1.0f)
        return;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        r->out[m][n][0] *= keep[0];
        r->out[m][n][1] *= keep[0];
        r->out[m][n][2] *= keep[1];
        r->out[m][n][3] *= keep[1];
    }
}

template <int D, int M, int USED, int KEYS, int TILE>
static __device__ __forceinline__ void add_values(struct query_rows<D, M> *r,
                                                  const float s[USED][KEYS / 8][4],
                                                  const struct tile<D, TILE> *t, uint32_t from)
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        uint32_t p[USED][4];
#pragma unroll
        for (int m = 0; m < USED; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[m][i] =
                    half_pair(s[m][2 * n + i / 2][i % 2 * 2], s[m][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t v[4];
            load_matrices(
                v, &t->v[from + n * 16 + lane / 8 % 2 * 8 + lane % 8][d * 16 + lane / 16 * 8],
                true);
#pragma unroll
            for (int m = 0; m < USED; m++) {
                mma_16x8x16(r->out[m][2 * d], p[m], v[0], v[1]);
                mma_16x8x16(r->out[m][2 * d + 1], p[m], v[2], v[3]);
            }
        }
    }
}

/* Sums of the four lanes that hold a row. */
static __device__ __forceinline__ float quad_sum(float value)
{
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

#include "kernels/attend_few.cuh"
#include "kernels/attend_tile.cuh"

/* ---- which one ---- */

static size_t partial_bytes(const struct cuda_shape *s, uint32_t items, uint32_t keys_max)
{
    size_t splits = (keys_max + FEW_KEYS - 1) / FEW_KEYS;
    return splits < 2 ? 0
                      : items * (size_t)s->kv_heads * splits * FEW_ROWS * (s->head_dim + 2) *
                            sizeof(float);
}

static bool attend_fast(struct cuda *c, const struct attend_pass &job)
{
    const struct cuda_shape &s = job.b.shape;
    if (job.b.rows_most * s.group <= FEW_ROWS) {
        switch (s.head_dim) {
        case 32:
            return few_launch<32, 4, 2>(c, job);
        case 64:
            return few_launch<64, 4, 2>(c, job);
        case 128:
            return few_launch<128, 2, 2>(c, job);
        }
        return false;
    }
    switch (s.head_dim) {
    case 32:
        return tile_launch<32, 2, 32, 32, 4>(c, job);
    case 64:
        return tile_launch<64, 2, 32, 32, 4>(c, job);
    case 128:
        return tile_launch<128, 1, 32, 32, 2>(c, job);
    }
    return false;
}

static void attend(struct cuda *c, const struct cuda_batch *b, uint32_t layer)
{
    struct attend_pass job;
    job.b = *b;
    job.layer = layer;
    job.splits = (b->keys_max + FEW_KEYS - 1) / FEW_KEYS;
    job.scale = 1.4426950408889634f / sqrtf((float)b->shape.head_dim);
    if (!c->simple && attend_fast(c, job))
        return;
    LAUNCH(c, plain_kernel, dim3(b->items, b->shape.heads), dim3(PLAIN_WARPS * WARP), job);
}

void cuda_table_attend(struct cuda *c)
{
    c->attend = attend;
    c->partial_bytes = partial_bytes;
}
