/*
 * Single tokens: the few queries that share a KV head fill the 16 rows of one tile (row = query *
 * group + head), and their keys are split, FEW_KEYS to a block of threads and from there over its
 * warps. Where several blocks share an item their sums meet in `partial`. Part of attend.cu.
 */
#ifndef SILT_KERNELS_ATTEND_FEW_CUH
#define SILT_KERNELS_ATTEND_FEW_CUH

/* Rows beyond the item's repeat its last, as tile_queries's. */
template <int D>
static __device__ __forceinline__ void few_queries(const struct attend_pass &job,
                                                   const struct cuda_item &item, uint32_t head,
                                                   struct query_rows<D, 1> *r)
{
    uint32_t lane = threadIdx.x % WARP, group = job.b.shape.group, last = item.rows * group - 1;
    struct query_pair q[D / 16][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = min(lane / 4 + half * 8, last), i = row / group;
#pragma unroll
        for (int d = 0; d < D / 16; d++)
#pragma unroll
            for (int col = 0; col < 2; col++)
                q[d][half + 2 * col] = query_read(job, item.row + i, head * group + row - i * group,
                                                  d * 8 + lane % 4 + col * 4);
    }
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
        for (int part = 0; part < 4; part++)
            r->q[0][d][part] = query_turn(job, q[d][part]);
}

/* As tile_mask, for 16 keys and rows that are query * group + head. */
static __device__ __forceinline__ void few_mask(float s[2][4], const struct view *w, uint32_t first,
                                                uint32_t group)
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
static __device__ __forceinline__ float few_join(const struct few_sums &f, uint32_t row, size_t at,
                                                 float *top, float *total)
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
                                               const struct query_rows<D, 1> *r)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = lane / 4 + half * 8;
        float total = quad_sum(r->total[0][half]);
        shared->top[warp][row] = r->top[0][half];
        shared->total[warp][row] = total;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            shared->out[warp][row][n * 8 + lane % 4 * 2] = r->out[0][n][2 * half];
            shared->out[warp][row][n * 8 + lane % 4 * 2 + 1] = r->out[0][n][2 * half + 1];
        }
    }
}

/* The block's rows: final where it saw all keys, else into partial. */
template <int D, int WARPS>
static __device__ __forceinline__ void few_finish(const struct attend_pass &job,
                                                  const struct cuda_item &item,
                                                  const struct few_shared<D, WARPS> *shared,
                                                  bool alone)
{
    struct few_sums f;
    f.top = shared->top[0];
    f.total = shared->total[0];
    f.out = shared->out[0][0];
    f.step = FEW_ROWS;
    f.out_step = FEW_ROWS * D;
    f.parts = WARPS;
    float *to =
        alone ? NULL
              : few_partial(job, blockIdx.x, blockIdx.y) + (size_t)blockIdx.z * FEW_ROWS * (D + 2);
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

/* A warp's part of the keys: 16 of every WARPS * 16, in a ring of its own. No warp waits for
 * another before all have seen their last. */
template <int D, int STAGES> struct few_part {
    struct tile<D, 16> *ring; /* [STAGES] */
    struct view_row (*row)[16];
    const struct view *view;
    uint32_t from, step, count; /* first key, keys from one tile to the next, tiles */
};

template <int D, int STAGES>
static __device__ __forceinline__ void few_ahead(const struct few_part<D, STAGES> &part, uint32_t t)
{
    if (t < part.count)
        tile_read<D, 16, WARP>(&part.ring[t % STAGES], part.row[t % STAGES], threadIdx.x % WARP);
    copy_commit();
}

template <int D, int STAGES>
static __device__ __forceinline__ void few_begin(const struct few_part<D, STAGES> &part)
{
    for (uint32_t i = threadIdx.x % WARP; i < STAGES * 16; i += WARP)
        part.row[i / 16][i % 16] = view_find(part.view, part.from + i / 16 * part.step + i % 16);
    __syncwarp();
    for (uint32_t t = 0; t < STAGES - 1; t++)
        few_ahead(part, t);
}

template <int D, int STAGES>
static __device__ __forceinline__ void few_sum(const struct few_part<D, STAGES> &part,
                                               struct query_rows<D, 1> *r, uint32_t group)
{
    uint32_t lane = threadIdx.x % WARP;
    for (uint32_t t = 0; t < part.count; t++) {
        float s[1][2][4];
        uint32_t first = part.from + t * part.step;
        few_ahead(part, t + STAGES - 1);
        copy_wait<STAGES - 1>();
        __syncwarp();
        if (lane < 16)
            part.row[t % STAGES][lane] = view_find(part.view, first + STAGES * part.step + lane);
        scores<D, 1, 1, 16, 16>(s, r, &part.ring[t % STAGES], 0);
        if (first + 16 > part.view->local)
            few_mask(s[0], part.view, first, group);
        weigh<D, 1, 16>(s[0], r, 0);
        add_values<D, 1, 1, 16, 16>(r, s, &part.ring[t % STAGES], 0);
        __syncwarp();
    }
}

template <int D, int WARPS, int STAGES>
static __global__ void __launch_bounds__(WARPS *WARP) few_kernel(struct attend_pass job)
{
    /* The rings are done with when the warps' sums meet. */
    __shared__ __align__(16) union {
        struct tile<D, 16> ring[WARPS][STAGES];
        struct few_shared<D, WARPS> sums;
    } shared;
    __shared__ struct view_row row[WARPS][STAGES][16];
    __shared__ struct cuda_item item;
    __shared__ struct view view;
    uint32_t warp = threadIdx.x / WARP, from = blockIdx.z * FEW_KEYS;
    view_open(&item, &view, job.b, job.layer, blockIdx.x, blockIdx.y);
    if (from >= view.keys)
        return;
    struct few_part<D, STAGES> part = {
        shared.ring[warp], row[warp], &view, from + warp * 16
    };
    uint32_t to = min(view.keys, from + FEW_KEYS);
    part.step = WARPS * 16;
    part.count = to > part.from ? (to - part.from + part.step - 1) / part.step : 0;
    struct query_rows<D, 1> r;
    few_begin(part); /* keys are on their way while the queries are turned */
    few_queries<D>(job, item, blockIdx.y, &r);
    rows_clear<D, 1>(&r);
    few_sum(part, &r, job.b.shape.group);
    __syncthreads();
    few_put<D, WARPS>(&shared.sums, &r);
    __syncthreads();
    few_finish<D, WARPS>(job, item, &shared.sums, view.keys <= FEW_KEYS);
}

/* Joins what several blocks summed for an item. */
static __global__ void few_join_kernel(struct attend_pass job)
{
    __shared__ struct cuda_item item;
    __shared__ struct view view;
    uint32_t dim = job.b.shape.head_dim;
    view_open(&item, &view, job.b, job.layer, blockIdx.x, blockIdx.y);
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

template <int D, int WARPS, int STAGES>
static bool few_launch(struct cuda *c, const struct attend_pass &job)
{
    dim3 grid(job.b.items, job.b.shape.kv_heads, job.splits ? job.splits : 1);
    LAUNCH(c, (few_kernel<D, WARPS, STAGES>), grid, dim3(WARPS * WARP), job);
    if (job.splits > 1)
        LAUNCH(c, few_join_kernel, dim3(job.b.items, job.b.shape.kv_heads), dim3(2 * WARP), job);
    return true;
}

#endif
