/*
 * Attention of a ragged batch: for each item and KV head, its queries over all that the item sees,
 * whose length the device alone knows.
 *
 * What is seen lies in up to SPANS_MAX places. A `view` strings them together, so that keys have
 * consecutive numbers and no tile is cut where a span ends. Three kernels read it: the plain one,
 * one warp a query, for any head size; `tile`, tensor cores for blocks of up to 32 queries; and
 * `few`, for single tokens, whose query heads fill the rows of one tile and whose keys are split
 * over warps and blocks. In all of them the query heads that share a KV head read its rows once.
 * The order of sums depends on the keys' numbers alone. (FlashAttention, arXiv 2205.14135;
 * Flash-Decoding.)
 */
#include "kernels/cuda.cuh"

enum {
    SPANS_MAX = CUDA_SPANS_MAX + 6, /* two window buffers, edge, rows before, tail, own rows */
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

/* The keys of one item and KV head, numbered. */
struct view {
    const f16 *k[SPANS_MAX], *v[SPANS_MAX];
    uint32_t end[SPANS_MAX]; /* number after the span's last key */
    uint32_t stride[SPANS_MAX];
    uint32_t spans, keys, local; /* local: number of the item's first own row */
};

static __device__ void view_add(struct view *w, const f16 *k, const f16 *v, uint32_t rows,
                                uint32_t stride)
{
    if (!rows)
        return;
    w->k[w->spans] = k;
    w->v[w->spans] = v;
    w->stride[w->spans] = stride;
    w->keys += rows;
    w->end[w->spans++] = w->keys;
}

/* The open chunk: its entries as they stood an item ago, and that item's rows as they are. */
static __device__ void view_open(struct view *w, const struct cuda_batch &b,
                                 const struct cuda_item &item, uint32_t item_at, uint32_t head,
                                 uint32_t index)
{
    uint32_t kv_heads = b.shape.kv_heads, dim = b.shape.head_dim;
    bool joins = item.flags & CUDA_STREAM;
    size_t row = item.window_row[index], at = (size_t)item_at * kv_heads + head;
    if (!item.z) { /* nothing merges: all entries, and none lag */
        view_add(w, item.open_k + row * dim, item.open_v + row * dim,
                 joins ? b.held[at] : item.open_count[index], dim);
        return;
    }
    uint32_t held = joins ? b.held[at] : item.open_count[index];
    if (held) { /* the newest has grown since, but for a later item */
        view_add(w, item.open_k + row * dim, item.open_v + row * dim, held - joins, dim);
        view_add(w, b.edge_k + at * dim, b.edge_v + at * dim, joins, dim);
    }
    if (item.before_row >= 0) {
        size_t before = (size_t)item.before_row * kv_heads + head;
        view_add(w, b.k_local + before * dim, b.v_local + before * dim, item.before_rows,
                 kv_heads * dim);
    } else if (joins) {
        size_t kept = ((size_t)item.run * kv_heads + head) * CUDA_ITEM_ROWS;
        view_add(w, b.before_k + kept * dim, b.before_v + kept * dim, item.before_rows, dim);
    } else {
        size_t kept = (size_t)index * CUDA_ITEM_ROWS;
        view_add(w, item.raw_k + kept * dim, item.raw_v + kept * dim, item.before_rows, dim);
    }
}

/* This is the one place that says which rows an item's queries see. */
static __device__ void view_make(struct view *w, const struct cuda_batch &b, uint32_t layer,
                                 uint32_t item_at, uint32_t head)
{
    const struct cuda_item &item = b.item[item_at];
    uint32_t kv_heads = b.shape.kv_heads, index = layer * kv_heads + head;
    uint32_t dim = b.shape.head_dim;
    w->spans = w->keys = 0;
    for (uint32_t i = 0; i < item.span_count; i++) {
        const struct cuda_span &s = item.span[i];
        size_t row = (size_t)index * s.stride + s.first;
        view_add(w, s.k + row * dim, s.v + row * dim, s.rows, dim);
    }
    if (item.open_count) {
        size_t row = item.window_row[index];
        view_add(w, item.previous_k + row * dim, item.previous_v + row * dim,
                 item.previous_count[index], dim);
        view_open(w, b, item, item_at, head, index);
    }
    if (item.flags & CUDA_TAIL) {
        size_t row = (size_t)index * item.tail_capacity + item.tail_first;
        view_add(w, item.tail_k + row * dim, item.tail_v + row * dim,
                 item.tail_rows - item.tail_first, dim);
    }
    w->local = w->keys;
    size_t row = (size_t)item.row * kv_heads + head;
    view_add(w, b.k_local + row * dim, b.v_local + row * dim, item.rows, kv_heads * dim);
}

static __device__ __forceinline__ uint32_t span_of(const struct view *w, uint32_t key)
{
    uint32_t s = 0;
    while (s + 1 < w->spans && key >= w->end[s])
        s++;
    return s;
}

static __device__ __forceinline__ size_t key_at(const struct view *w, uint32_t s, uint32_t key)
{
    return (size_t)(key - (s ? w->end[s - 1] : 0)) * w->stride[s];
}

/* Pair p of a query head, turned by RoPE and scaled. */
static __device__ __forceinline__ float2 query_pair(const struct attend_pass &job, uint32_t row,
                                                    uint32_t query_head, uint32_t p)
{
    const struct cuda_shape &s = job.b.shape;
    size_t stride = (size_t)(s.heads + 2 * s.kv_heads) * s.head_dim;
    float2 q = *(const float2 *)(job.b.qkv + row * stride + query_head * s.head_dim + 2 * p);
    float2 turn = ((const float2 *)job.b.rotation)[(size_t)row * (s.head_dim / 2) + p];
    return make_float2((q.x * turn.x - q.y * turn.y) * job.scale,
                       (q.x * turn.y + q.y * turn.x) * job.scale);
}

/* ---- plain ---- */

/* One query head of one row; a lane holds the dimensions lane, lane + 32, … */
static __device__ void plain_query(const struct attend_pass &job, const struct view *w,
                                   uint32_t row, uint32_t query_head, uint32_t query)
{
    uint32_t dim = job.b.shape.head_dim, lane = threadIdx.x % WARP;
    float q[PLAIN_DIMS], out[PLAIN_DIMS], top = -INFINITY, total = 0;
    for (uint32_t i = 0, d = lane; i < PLAIN_DIMS; i++, d += WARP) {
        float2 pair = d < dim ? query_pair(job, row, query_head, d / 2) : make_float2(0, 0);
        q[i] = d % 2 ? pair.y : pair.x;
        out[i] = 0;
    }
    for (uint32_t key = 0; key < w->keys; key++) {
        if (key > w->local + query)
            break;
        uint32_t s = span_of(w, key);
        const f16 *k = w->k[s] + key_at(w, s, key), *v = w->v[s] + key_at(w, s, key);
        float score = 0;
        for (uint32_t i = 0, d = lane; d < dim; i++, d += WARP)
            score += q[i] * half_to_float(k[d]);
        score = warp_sum(score);
        float higher = fmaxf(top, score), keep = exp2f(top - higher), p = exp2f(score - higher);
        total = total * keep + p;
        for (uint32_t i = 0, d = lane; d < dim; i++, d += WARP)
            out[i] = out[i] * keep + p * half_to_float(v[d]);
        top = higher;
    }
    bf16 *to = job.b.att + ((size_t)row * job.b.shape.heads + query_head) * dim;
    for (uint32_t i = 0, d = lane; d < dim; i++, d += WARP)
        to[d] = bf16_from_float(total > 0 ? out[i] / total : 0.0f);
}

static __global__ void plain_kernel(struct attend_pass job)
{
    __shared__ struct view view;
    const struct cuda_item &item = job.b.item[blockIdx.x];
    uint32_t head = blockIdx.y / job.b.shape.group;
    if (threadIdx.x == 0)
        view_make(&view, job.b, job.layer, blockIdx.x, head);
    __syncthreads();
    for (uint32_t i = threadIdx.x / WARP; i < item.rows; i += PLAIN_WARPS)
        plain_query(job, &view, item.row + i, blockIdx.y, i);
}

/* ---- tiles of keys in shared memory ---- */

/* Keys and values of a tile, rows a little apart so that eight of them meet no bank twice. */
template <int D, int KEYS> struct tile {
    f16 k[KEYS][D + 8], v[KEYS][D + 8];
};

template <int D, int KEYS, int THREADS>
static __device__ __forceinline__ void tile_read(struct tile<D, KEYS> *t, const struct view *w,
                                                 uint32_t first)
{
    constexpr int PIECES = D / 8;
    uint32_t threads = THREADS ? THREADS : blockDim.x;
    for (uint32_t at = threadIdx.x; at < KEYS * PIECES; at += threads) {
        uint32_t row = at / PIECES, col = at % PIECES * 8, key = first + row;
        const f16 *k = NULL, *v = NULL;
        if (key < w->keys) {
            uint32_t s = span_of(w, key);
            size_t offset = key_at(w, s, key) + col;
            k = w->k[s] + offset;
            v = w->v[s] + offset;
        }
        copy_begin(&t->k[row][col], k);
        copy_begin(&t->v[row][col], v);
    }
}

/* 16 rows of queries and what they have summed so far: rows lane / 4 and 8 more. */
template <int D> struct rows16 {
    uint32_t q[D / 16][4];
    float out[D / 8][4];
    float top[2], total[2];
};

template <int D>
static __device__ __forceinline__ void rows16_clear(struct rows16<D> *r)
{
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        r->out[n][0] = r->out[n][1] = r->out[n][2] = r->out[n][3] = 0;
    r->top[0] = r->top[1] = -INFINITY;
    r->total[0] = r->total[1] = 0;
}

/* Scores of 16 rows against KEYS keys of a tile from key `from` on. */
template <int D, int KEYS, int TILE>
static __device__ __forceinline__ void scores(float s[KEYS / 8][4], const struct rows16<D> *r,
                                              const struct tile<D, TILE> *t, uint32_t from)
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t k[4];
            load_matrices(k, &t->k[from + n * 16 + lane / 16 * 8 + lane % 8]
                                  [d * 16 + lane / 8 % 2 * 8],
                          false);
            mma_16x8x16(s[2 * n], r->q[d], k[0], k[1]);
            mma_16x8x16(s[2 * n + 1], r->q[d], k[2], k[3]);
        }
    }
}

/* Scores become weights; what was summed before shrinks to the new top. */
template <int D, int KEYS>
static __device__ __forceinline__ void weigh(float s[KEYS / 8][4], struct rows16<D> *r)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = r->top[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        float base = top == -INFINITY ? 0.0f : top; /* no key seen yet */
        float keep = exp2f(r->top[half] - base), total = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            s[n][2 * half] = exp2f(s[n][2 * half] - base);
            s[n][2 * half + 1] = exp2f(s[n][2 * half + 1] - base);
            total += s[n][2 * half] + s[n][2 * half + 1];
        }
        r->total[half] = r->total[half] * keep + total;
        r->top[half] = top;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            r->out[n][2 * half] *= keep;
            r->out[n][2 * half + 1] *= keep;
        }
    }
}

template <int D, int KEYS, int TILE>
static __device__ __forceinline__ void add_values(struct rows16<D> *r, const float s[KEYS / 8][4],
                                                  const struct tile<D, TILE> *t, uint32_t from)
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        uint32_t p[4] = {half_pair(s[2 * n][0], s[2 * n][1]), half_pair(s[2 * n][2], s[2 * n][3]),
                         half_pair(s[2 * n + 1][0], s[2 * n + 1][1]),
                         half_pair(s[2 * n + 1][2], s[2 * n + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t v[4];
            load_matrices(v, &t->v[from + n * 16 + lane / 8 % 2 * 8 + lane % 8]
                                  [d * 16 + lane / 16 * 8],
                          true);
            mma_16x8x16(r->out[2 * d], p, v[0], v[1]);
            mma_16x8x16(r->out[2 * d + 1], p, v[2], v[3]);
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
            return few_launch<32, 64, 4>(c, job);
        case 64:
            return few_launch<64, 64, 4>(c, job);
        case 128:
            return few_launch<128, 32, 2>(c, job);
        }
        return false;
    }
    switch (s.head_dim) {
    case 32:
        return tile_launch<32, 2, 64>(c, job);
    case 64:
        return tile_launch<64, 2, 64>(c, job);
    case 128:
        return tile_launch<128, 1, 32>(c, job);
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
