/*
 * Blocks of up to 32 queries on tensor cores. Part of attend.cu.
 *
 * A warp takes M times 16 queries of one query head, and every key that it loads meets all of them;
 * all warps of a block of threads share the KV head's tiles, which go round a ring: STAGES - 1 are
 * on their way or ready while one is computed.
 */
#ifndef SILT_KERNELS_ATTEND_TILE_CUH
#define SILT_KERNELS_ATTEND_TILE_CUH

template <int D, int TILE, int STAGES> struct tile_shared {
    struct tile<D, TILE> ring[STAGES]; /* before it the queries, and after it what comes out */
    struct view_row row[STAGES][TILE]; /* of a tile, one turn before it is read */
    struct view view;
    struct cuda_item item;
};

/* A warp's queries, turned, to shared memory: a row in one piece. All that a warp asks for is asked
 * before any of it is used, so nothing is asked for on a condition: rows beyond the item's repeat
 * its last. */
template <int D, int M>
static __device__ __forceinline__ void tile_queries(const struct attend_pass &job,
                                                    const struct cuda_item &item,
                                                    uint32_t query_head, uint32_t first,
                                                    uint32_t (*to)[D / 2 + 4])
{
    constexpr uint32_t PAIRS = D / 2, ONCE = 16;
    uint32_t lane = threadIdx.x % WARP, last = item.rows - 1;
    for (uint32_t from = 0; from < M * 16 * PAIRS; from += ONCE * WARP) {
        struct query_pair q[ONCE];
#pragma unroll
        for (uint32_t n = 0; n < ONCE; n++) {
            uint32_t at = from + n * WARP + lane;
            q[n] =
                query_read(job, item.row + min(first + at / PAIRS, last), query_head, at % PAIRS);
        }
#pragma unroll
        for (uint32_t n = 0; n < ONCE; n++) {
            uint32_t at = from + n * WARP + lane;
            to[at / PAIRS][at % PAIRS] = query_turn(job, q[n]);
        }
    }
    __syncwarp();
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

/* A warp's rows through shared memory, so that they leave in pieces of 16 bytes. */
template <int D, int M>
static __device__ __forceinline__ void tile_store(const struct attend_pass &job,
                                                  const struct cuda_item &item, uint32_t query_head,
                                                  uint32_t first, const struct query_rows<D, M> *r,
                                                  uint32_t (*out)[D / 2 + 4])
{
    constexpr uint32_t PIECES = D / 8;
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = quad_sum(r->total[m][half]);
            float scale = total > 0 ? 1.0f / total : 0.0f;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                out[m * 16 + half * 8 + lane / 4][n * 4 + lane % 4] =
                    bf16_pair(r->out[m][n][2 * half] * scale, r->out[m][n][2 * half + 1] * scale);
        }
    __syncwarp();
#pragma unroll 4
    for (uint32_t at = lane; at < M * 16 * PIECES; at += WARP) {
        uint32_t i = at / PIECES, piece = at % PIECES;
        if (first + i >= item.rows)
            break;
        size_t row = (size_t)(item.row + first + i) * job.b.shape.heads + query_head;
        ((uint4 *)(job.b.att + row * D))[piece] = ((const uint4 *)out[i])[piece];
    }
}

/* Keys in turn, STEP at once. */
template <int D, int M, int USED, int TILE, int STEP>
static __device__ __forceinline__ void tile_compute(struct query_rows<D, M> *r,
                                                    const struct tile<D, TILE> *t,
                                                    const struct view *w, uint32_t first,
                                                    uint32_t query)
{
#pragma unroll
    for (uint32_t from = 0; from < TILE; from += STEP) {
        float s[USED][STEP / 8][4];
        if (from && first + from >= w->keys)
            break;
        scores<D, M, USED, STEP, TILE>(s, r, t, from);
#pragma unroll
        for (int m = 0; m < USED; m++) {
            if (first + from + STEP > w->local)
                tile_mask<STEP>(s[m], w, first + from, query + m * 16);
            weigh<D, M, STEP>(s[m], r, m);
        }
        add_values<D, M, USED, STEP, TILE>(r, s, t, from);
    }
}

template <int D, int M, int TILE, int STEP, int STAGES, int WARPS, int BLOCKS>
static __global__ void __launch_bounds__(WARPS *WARP, BLOCKS) tile_kernel(struct attend_pass job)
{
    constexpr int THREADS = WARPS < TILE_WARPS_MAX ? WARPS * WARP : 0;
    static_assert(TILE == WARP, "a lane finds a row");
    static_assert(WARPS * M * 16 <= 2 * TILE * STAGES, "queries fit into the ring");
    __shared__ __align__(16) struct tile_shared<D, TILE, STAGES> shared;
    const struct cuda_item &item = shared.item;
    const struct view *view = &shared.view;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, turn = 0;
    uint32_t parts = CUDA_ITEM_ROWS / 16 / M;
    uint32_t query_head = blockIdx.y * job.b.shape.group + warp / parts;
    uint32_t query = warp % parts * M * 16;
    uint32_t(*own)[D / 2 + 4] = (uint32_t(*)[D / 2 + 4]) & shared.ring[0] + warp * M * 16;
    struct query_rows<D, M> r;
    item_read(&shared.item, &job.b.item[blockIdx.x]);
    __syncthreads();
    struct view_counts counts = view_count(job.b, item, job.layer, blockIdx.x, blockIdx.y);
    tile_queries<D, M>(job, item, query_head, query, own);
    rows_load<D, M>(&r, own);
    rows_clear<D, M>(&r);
    if (warp == 0)
        view_make(&shared.view, job.b, item, counts, job.layer, blockIdx.x, blockIdx.y);
    __syncthreads();
    for (uint32_t key = threadIdx.x; key < STAGES * TILE; key += blockDim.x)
        shared.row[key / TILE][key % TILE] = view_find(view, key);
    __syncthreads();
    uint32_t count = (view->keys + TILE - 1) / TILE;
    for (uint32_t t = 0; t < STAGES - 1; t++) {
        if (t < count)
            tile_read<D, TILE, THREADS>(&shared.ring[t], shared.row[t], threadIdx.x);
        copy_commit();
    }
    for (uint32_t t = 0; t < count; t++) {
        uint32_t ahead = t + STAGES - 1, slot = ahead % STAGES;
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (ahead < count)
            tile_read<D, TILE, THREADS>(&shared.ring[slot], shared.row[slot], threadIdx.x);
        copy_commit();
        if (warp == turn) /* the warps in turn */
            shared.row[t % STAGES][lane] = view_find(view, (ahead + 1) * TILE + lane);
        turn = turn + 1 < blockDim.x / WARP ? turn + 1 : 0;
        if (query + 16 * (M - 1) < item.rows)
            tile_compute<D, M, M, TILE, STEP>(&r, &shared.ring[t % STAGES], view, t * TILE, query);
        else if (M > 1)
            tile_compute<D, M, 1, TILE, STEP>(&r, &shared.ring[t % STAGES], view, t * TILE, query);
    }
    __syncthreads();
    tile_store<D, M>(job, item, query_head, query, &r, own);
}

/* Registers decide how many blocks of threads share a multiprocessor: 168 of them let twelve warps.
 * Three and four warps know how many they are; eight are for any number: of 32 rows each they need
 * more than the half of all registers, of 16 rows not. */
template <int D, int M, int TILE, int STEP, int STAGES>
static bool tile_launch(struct cuda *c, const struct attend_pass &job)
{
    uint32_t warps = job.b.shape.group * (CUDA_ITEM_ROWS / 16 / M);
    dim3 grid(job.b.items, job.b.shape.kv_heads), block(warps * WARP);
    if (warps == 3)
        LAUNCH(c, (tile_kernel<D, M, TILE, STEP, STAGES, 3, 3>), grid, block, job);
    else if (warps == 4)
        LAUNCH(c, (tile_kernel<D, M, TILE, STEP, STAGES, 4, 3>), grid, block, job);
    else if (warps <= TILE_WARPS_MAX)
        LAUNCH(c, (tile_kernel<D, M, TILE, STEP, STAGES, TILE_WARPS_MAX, 2 / M>), grid, block, job);
    return warps <= TILE_WARPS_MAX;
}

#endif
