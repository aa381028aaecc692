/*
 * Blocks of up to 32 queries on tensor cores. Part of attend.cu.
 *
 * A warp takes M times 16 queries of one query head; all warps of a block of threads share the KV
 * head's tiles, which come in two at a time: one is computed while the next is on its way.
 */
#ifndef SILT_KERNELS_ATTEND_TILE_CUH
#define SILT_KERNELS_ATTEND_TILE_CUH

/* Queries first .. first + 15 of an item, one head. */
template <int D>
static __device__ __forceinline__ void tile_queries(const struct attend_pass &job,
                                                    const struct cuda_item &item,
                                                    uint32_t query_head, uint32_t first,
                                                    struct rows16<D> *r)
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t i = first + lane / 4 + part % 2 * 8, pair = d * 8 + lane % 4 + part / 2 * 4;
            float2 q = i < item.rows ? query_pair(job, item.row + i, query_head, pair)
                                     : make_float2(0, 0);
            r->q[d][part] = half_pair(q.x, q.y);
        }
}

/* Own rows after a query's own; a tile's keys beyond the last are of no query. */
template <int KEYS>
static __device__ __forceinline__ void tile_mask(float s[KEYS / 8][4], const struct view *w,
                                                 uint32_t first, uint32_t query)
{
    uint32_t lane = threadIdx.x % WARP;
    uint32_t last = min(w->local + query + lane / 4, w->keys - 1);
    uint32_t last_8 = min(w->local + query + lane / 4 + 8, w->keys - 1);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t key = first + n * 8 + lane % 4 * 2 + i % 2;
            if (key > (i / 2 ? last_8 : last))
                s[n][i] = -INFINITY;
        }
}

template <int D>
static __device__ __forceinline__ void tile_store(const struct attend_pass &job,
                                                  const struct cuda_item &item,
                                                  uint32_t query_head, uint32_t first,
                                                  const struct rows16<D> *r)
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t i = first + lane / 4 + half * 8;
        float total = quad_sum(r->total[half]);
        float scale = total > 0 ? 1.0f / total : 0.0f;
        if (i >= item.rows)
            continue;
        uint32_t *to = (uint32_t *)(job.b.att +
                                    ((size_t)(item.row + i) * job.b.shape.heads + query_head) * D);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            to[n * 4 + lane % 4] =
                bf16_pair(r->out[n][2 * half] * scale, r->out[n][2 * half + 1] * scale);
    }
}

template <int D, int M, int TILE>
static __global__ void __launch_bounds__(TILE_WARPS_MAX *WARP) tile_kernel(struct attend_pass job)
{
    __shared__ __align__(16) struct tile<D, TILE> tiles[2];
    __shared__ struct view view;
    const struct cuda_item &item = job.b.item[blockIdx.x];
    uint32_t warp = threadIdx.x / WARP, parts = CUDA_ITEM_ROWS / 16 / M;
    uint32_t query_head = blockIdx.y * job.b.shape.group + warp / parts;
    uint32_t query = warp % parts * M * 16;
    if (threadIdx.x == 0)
        view_make(&view, job.b, job.layer, blockIdx.x, blockIdx.y);
    __syncthreads();
    struct rows16<D> r[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
        tile_queries<D>(job, item, query_head, query + m * 16, &r[m]);
        rows16_clear<D>(&r[m]);
    }
    uint32_t count = (view.keys + TILE - 1) / TILE;
    tile_read<D, TILE, 0>(&tiles[0], &view, 0);
    copy_commit();
    for (uint32_t t = 0; t < count; t++) {
        if (t + 1 < count)
            tile_read<D, TILE, 0>(&tiles[(t + 1) % 2], &view, (t + 1) * TILE);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M; m++) {
            float s[TILE / 8][4];
            if (query + m * 16 >= item.rows)
                break;
            scores<D, TILE, TILE>(s, &r[m], &tiles[t % 2], 0);
            if ((t + 1) * TILE > view.local)
                tile_mask<TILE>(s, &view, t * TILE, query + m * 16);
            weigh<D, TILE>(s, &r[m]);
            add_values<D, TILE, TILE>(&r[m], s, &tiles[t % 2], 0);
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++)
        tile_store<D>(job, item, query_head, query + m * 16, &r[m]);
}

template <int D, int M, int TILE>
static bool tile_launch(struct cuda *c, const struct attend_pass &job)
{
    uint32_t warps = job.b.shape.group * (CUDA_ITEM_ROWS / 16 / M);
    if (warps > TILE_WARPS_MAX)
        return false;
    LAUNCH(c, (tile_kernel<D, M, TILE>), dim3(job.b.items, job.b.shape.kv_heads),
           dim3(warps * WARP), job);
    return true;
}

#endif
