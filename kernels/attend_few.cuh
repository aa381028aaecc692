/*
 * Single tokens: the few queries that share a KV head fill the 16 rows of one tile (row = query *
 * group + head), and their keys are split, FEW_KEYS to a block of threads and from there over its
 * warps. Where several blocks share an item their sums meet in `partial`. Part of attend.cu.
 */
#ifndef SILT_KERNELS_ATTEND_FEW_CUH
#define SILT_KERNELS_ATTEND_FEW_CUH

template <int D>
static __device__ __forceinline__ void few_queries(const struct attend_pass &job,
                                                   const struct cuda_item &item, uint32_t head,
                                                   struct rows16<D> *r)
{
    uint32_t lane = threadIdx.x % WARP, group = job.b.shape.group;
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t row = lane / 4 + part % 2 * 8, pair = d * 8 + lane % 4 + part / 2 * 4;
            float2 q = row < item.rows * group
                           ? query_pair(job, item.row + row / group,
                                        head * group + row % group, pair)
                           : make_float2(0, 0);
            r->q[d][part] = half_pair(q.x, q.y);
        }
}

/* As tile_mask, for 16 keys and rows that are query * group + head. */
static __device__ __forceinline__ void few_mask(float s[2][4], const struct view *w,
                                                uint32_t first, uint32_t group)
{
    uint32_t lane = threadIdx.x % WARP;
    uint32_t last[2] = {min(w->local + lane / 4 / group, w->keys - 1),
                        min(w->local + (lane / 4 + 8) / group, w->keys - 1)};
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t key = first + n * 8 + lane % 4 * 2 + i % 2;
            if (key > last[i / 2])
                s[n][i] = -INFINITY;
        }
}

/* What the warps of a block, or the blocks of an item, have summed: [parts][top, total, out]. */
struct few_sums {
    const float *top, *total, *out; /* [parts][16], [parts][16], [parts][16][D] */
    size_t step, out_step;          /* floats from one part to the next */
    uint32_t parts;
};

/* Joins the parts of one row and dimension, in their order. */
static __device__ __forceinline__ float few_join(const struct few_sums &f, uint32_t row,
                                                 size_t at, float *top, float *total)
{
    float out = 0;
    *top = -INFINITY;
    *total = 0;
    for (uint32_t p = 0; p < f.parts; p++)
        *top = fmaxf(*top, f.top[p * f.step + row]);
    for (uint32_t p = 0; p < f.parts; p++) {
        float part = f.top[p * f.step + row];
        float keep = part == -INFINITY ? 0.0f : exp2f(part - *top);
        *total += keep * f.total[p * f.step + row];
        out += keep * f.out[p * f.out_step + at];
    }
    return out;
}

static __device__ __forceinline__ void few_store(const struct attend_pass &job,
                                                 const struct cuda_item &item, uint32_t head,
                                                 uint32_t row, uint32_t col, float value)
{
    const struct cuda_shape &s = job.b.shape;
    size_t query_head = head * s.group + row % s.group;
    job.b.att[((size_t)(item.row + row / s.group) * s.heads + query_head) * s.head_dim + col] =
        bf16_from_float(value);
}

static __device__ __forceinline__ float *few_partial(const struct attend_pass &job, uint32_t item,
                                                     uint32_t head)
{
    size_t one = (size_t)FEW_ROWS * (job.b.shape.head_dim + 2);
    return job.b.partial + ((size_t)item * job.b.shape.kv_heads + head) * job.splits * one;
}

template <int D, int WARPS> struct few_shared {
    float top[WARPS][FEW_ROWS], total[WARPS][FEW_ROWS], out[WARPS][FEW_ROWS][D];
};

/* A warp's rows to shared memory. */
template <int D, int WARPS>
static __device__ __forceinline__ void few_put(struct few_shared<D, WARPS> *shared,
                                               const struct rows16<D> *r)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = lane / 4 + half * 8;
        float total = quad_sum(r->total[half]);
        shared->top[warp][row] = r->top[half];
        shared->total[warp][row] = total;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            shared->out[warp][row][n * 8 + lane % 4 * 2] = r->out[n][2 * half];
            shared->out[warp][row][n * 8 + lane % 4 * 2 + 1] = r->out[n][2 * half + 1];
        }
    }
}

/* The block's rows: final where it saw all keys, else into partial. */
template <int D, int WARPS>
static __device__ __forceinline__ void few_finish(const struct attend_pass &job,
                                                  const struct few_shared<D, WARPS> *shared,
                                                  bool alone)
{
    const struct cuda_item &item = job.b.item[blockIdx.x];
    struct few_sums f;
    f.top = shared->top[0];
    f.total = shared->total[0];
    f.out = shared->out[0][0];
    f.step = FEW_ROWS;
    f.out_step = FEW_ROWS * D;
    f.parts = WARPS;
    float *to = alone ? NULL
                      : few_partial(job, blockIdx.x, blockIdx.y) +
                            (size_t)blockIdx.z * FEW_ROWS * (D + 2);
    for (uint32_t at = threadIdx.x; at < item.rows * job.b.shape.group * D; at += WARPS * WARP) {
        float top, total, out = few_join(f, at / D, at, &top, &total);
        if (alone) {
            few_store(job, item, blockIdx.y, at / D, at % D, total > 0 ? out / total : 0.0f);
            continue;
        }
        to[at] = out;
        if (at % D == 0) {
            to[FEW_ROWS * D + at / D] = top;
            to[FEW_ROWS * (D + 1) + at / D] = total;
        }
    }
}

template <int D, int TILE, int WARPS>
static __global__ void few_kernel(struct attend_pass job)
{
    static_assert(TILE == WARPS * 16, "16 keys a warp");
    /* The tiles are done with when the warps' sums meet. */
    __shared__ __align__(16) union {
        struct tile<D, TILE> tiles[2];
        struct few_shared<D, WARPS> sums;
    } shared;
    __shared__ struct view view;
    const struct cuda_item &item = job.b.item[blockIdx.x];
    uint32_t warp = threadIdx.x / WARP, group = job.b.shape.group;
    if (threadIdx.x == 0)
        view_make(&view, job.b, job.layer, blockIdx.x, blockIdx.y);
    __syncthreads();
    uint32_t from = blockIdx.z * FEW_KEYS;
    if (from >= view.keys)
        return;
    uint32_t to = view.keys - from < FEW_KEYS ? view.keys : from + FEW_KEYS;
    uint32_t count = (to - from + TILE - 1) / TILE;
    struct rows16<D> r;
    few_queries<D>(job, item, blockIdx.y, &r);
    rows16_clear<D>(&r);
    tile_read<D, TILE, WARPS * WARP>(&shared.tiles[0], &view, from);
    copy_commit();
    for (uint32_t t = 0; t < count; t++) {
        float s[2][4];
        uint32_t first = from + t * TILE;
        if (t + 1 < count)
            tile_read<D, TILE, WARPS * WARP>(&shared.tiles[(t + 1) % 2], &view, first + TILE);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        scores<D, 16, TILE>(s, &r, &shared.tiles[t % 2], warp * 16);
        if (first + TILE > view.local)
            few_mask(s, &view, first + warp * 16, group);
        weigh<D, 16>(s, &r);
        add_values<D, 16, TILE>(&r, s, &shared.tiles[t % 2], warp * 16);
        __syncthreads();
    }
    copy_wait<0>();
    few_put<D, WARPS>(&shared.sums, &r);
    __syncthreads();
    few_finish<D, WARPS>(job, &shared.sums, view.keys <= FEW_KEYS);
}

/* Joins what several blocks summed for an item. */
static __global__ void few_join_kernel(struct attend_pass job)
{
    __shared__ struct view view;
    const struct cuda_item &item = job.b.item[blockIdx.x];
    uint32_t dim = job.b.shape.head_dim;
    if (threadIdx.x == 0)
        view_make(&view, job.b, job.layer, blockIdx.x, blockIdx.y);
    __syncthreads();
    if (view.keys <= FEW_KEYS)
        return;
    const float *from = few_partial(job, blockIdx.x, blockIdx.y);
    struct few_sums f;
    f.out = from;
    f.top = from + FEW_ROWS * dim;
    f.total = f.top + FEW_ROWS;
    f.step = f.out_step = (size_t)FEW_ROWS * (dim + 2);
    f.parts = (view.keys + FEW_KEYS - 1) / FEW_KEYS;
    for (uint32_t at = threadIdx.x; at < item.rows * job.b.shape.group * dim; at += blockDim.x) {
        float top, total, out = few_join(f, at / dim, at, &top, &total);
        few_store(job, item, blockIdx.y, at / dim, at % dim, total > 0 ? out / total : 0.0f);
    }
}

template <int D, int TILE, int WARPS>
static bool few_launch(struct cuda *c, const struct attend_pass &job)
{
    dim3 grid(job.b.items, job.b.shape.kv_heads, job.splits ? job.splits : 1);
    LAUNCH(c, (few_kernel<D, TILE, WARPS>), grid, dim3(WARPS * WARP), job);
    if (job.splits > 1)
        LAUNCH(c, few_join_kernel, dim3(job.b.items, job.b.shape.kv_heads), dim3(2 * WARP), job);
    return true;
}

#endif
