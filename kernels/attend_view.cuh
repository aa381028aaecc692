/*
 * What an item's queries see, with its keys numbered. Part of attend.cu.
 *
 * Three reads that wait for each other lead to the first key: the item, its counts, the row. So all
 * threads read the item at once, the counts are asked for before anything else is done, and a lane
 * a span makes the view of them.
 */
#ifndef SILT_KERNELS_ATTEND_VIEW_CUH
#define SILT_KERNELS_ATTEND_VIEW_CUH

/* Spans of the view: the item's, then in this order. Those that an item lacks have no rows. */
enum {
    SPAN_PREVIOUS = CUDA_SPANS_MAX,
    SPAN_OPEN,
    SPAN_EDGE,
    SPAN_BEFORE,
    SPAN_TAIL,
    SPAN_OWN,
    SPANS
};

struct view_span {
    const f16 *k, *v;
    uint32_t stride, begin; /* number of its first key */
};

/* The keys of one item and KV head, numbered: no tile is cut where a span ends. */
struct view {
    struct view_span span[SPANS];
    __align__(16) uint32_t end[SPANS]; /* number after the span's last key */
    uint32_t rows[SPANS];
    uint32_t keys, local; /* local: number of the item's first own row */
};

/* An item's counts of one KV head: held are those of the open chunk that it sees. */
struct view_counts {
    uint32_t row, previous, held;
};

static __device__ void item_read(struct cuda_item *to, const struct cuda_item *from)
{
    static_assert(sizeof *to % sizeof(uint64_t) == 0, "whole words");
    for (uint32_t i = threadIdx.x; i < sizeof *to / sizeof(uint64_t); i += blockDim.x)
        ((uint64_t *)to)[i] = ((const uint64_t *)from)[i];
}

static __device__ __forceinline__ struct view_counts view_count(const struct cuda_batch &b,
                                                                const struct cuda_item &item,
                                                                uint32_t layer, uint32_t item_at,
                                                                uint32_t head)
{
    uint32_t index = layer * b.shape.kv_heads + head;
    struct view_counts n = {0, 0, 0};
    if (!item.open_count)
        return n;
    n.row = item.window_row[index];
    n.previous = item.previous_count[index];
    n.held = item.flags & CUDA_STREAM ? b.held[item_at * b.shape.kv_heads + head]
                                      : item.open_count[index];
    return n;
}

/* The item before: in the batch, kept as the pass began, or as the stream has it. */
static __device__ __forceinline__ void view_before(struct view_span *s, const struct cuda_batch &b,
                                                   const struct cuda_item &item, uint32_t index,
                                                   uint32_t head)
{
    uint32_t kv_heads = b.shape.kv_heads, dim = b.shape.head_dim;
    const f16 *k = item.raw_k, *v = item.raw_v;
    size_t row = (size_t)index * CUDA_ITEM_ROWS;
    if (item.before_row >= 0) {
        k = b.k_local;
        v = b.v_local;
        row = (size_t)item.before_row * kv_heads + head;
        s->stride = kv_heads * dim;
    } else if (item.flags & CUDA_STREAM) {
        k = b.before_k;
        v = b.before_v;
        row = ((size_t)item.run * kv_heads + head) * CUDA_ITEM_ROWS;
    }
    s->k = k + row * dim;
    s->v = v + row * dim;
}

/* Span i and its rows. This is the one place that says which rows an item's queries see. */
static __device__ __forceinline__ uint32_t
view_span(struct view_span *s, const struct cuda_batch &b, const struct cuda_item &item,
          const struct view_counts &n, uint32_t i, uint32_t index, uint32_t item_at, uint32_t head)
{
    uint32_t kv_heads = b.shape.kv_heads, dim = b.shape.head_dim;
    /* Where it merges, the newest entry has grown since, but for a later item. */
    bool merges = item.open_count && item.z, edge = merges && item.flags & CUDA_STREAM && n.held;
    const f16 *k = NULL, *v = NULL;
    size_t row = n.row;
    uint32_t rows = 0;
    s->stride = dim;
    if (i < item.span_count) {
        const struct cuda_span &from = item.span[i];
        k = from.k, v = from.v;
        row = (size_t)index * from.stride + from.first;
        rows = from.rows;
    } else if (i == SPAN_PREVIOUS) {
        k = item.previous_k, v = item.previous_v;
        rows = n.previous;
    } else if (i == SPAN_OPEN) {
        k = item.open_k, v = item.open_v;
        rows = n.held - edge;
    } else if (i == SPAN_EDGE && edge) {
        k = b.edge_k, v = b.edge_v;
        row = (size_t)item_at * kv_heads + head;
        rows = 1;
    } else if (i == SPAN_BEFORE && merges) {
        view_before(s, b, item, index, head);
        return item.before_rows;
    } else if (i == SPAN_TAIL && item.flags & CUDA_TAIL) {
        k = item.tail_k, v = item.tail_v;
        row = (size_t)index * item.tail_capacity + item.tail_first;
        rows = item.tail_rows - item.tail_first;
    } else if (i == SPAN_OWN) {
        k = b.k_local, v = b.v_local;
        row = (size_t)item.row * kv_heads + head;
        rows = item.rows;
        s->stride = kv_heads * dim;
    }
    s->k = k + row * dim;
    s->v = v + row * dim;
    return rows;
}

/* By one warp, a lane a span. */
static __device__ void view_make(struct view *w, const struct cuda_batch &b,
                                 const struct cuda_item &item, const struct view_counts &n,
                                 uint32_t layer, uint32_t item_at, uint32_t head)
{
    uint32_t lane = threadIdx.x % WARP, begin = 0, rows = 0;
    struct view_span s;
    if (lane < SPANS) {
        rows = view_span(&s, b, item, n, lane, layer * b.shape.kv_heads + head, item_at, head);
        w->rows[lane] = rows;
    }
    __syncwarp();
    if (lane >= SPANS)
        return;
#pragma unroll
    for (uint32_t i = 0; i < SPANS; i++)
        begin += i < lane ? w->rows[i] : 0;
    s.begin = begin;
    w->span[lane] = s;
    w->end[lane] = begin + rows;
    if (lane == SPAN_OWN) {
        w->local = begin;
        w->keys = begin + rows;
    }
}

/* The item and its view in shared memory, by all threads of a block. */
static __device__ __forceinline__ void view_open(struct cuda_item *item, struct view *w,
                                                 const struct cuda_batch &b, uint32_t layer,
                                                 uint32_t item_at, uint32_t head)
{
    item_read(item, &b.item[item_at]);
    __syncthreads();
    if (threadIdx.x < WARP)
        view_make(w, b, *item, view_count(b, *item, layer, item_at, head), layer, item_at, head);
    __syncthreads();
}

/* Where a key's and its value's row lie. */
struct view_row {
    const f16 *k, *v;
};

/* Beyond the last key the last again: what nobody sees must be a number all the same. */
static __device__ __forceinline__ struct view_row view_find(const struct view *w, uint32_t key)
{
    uint32_t s = 0;
    key = min(key, w->keys - 1);
#pragma unroll
    for (uint32_t i = 0; i < SPAN_OWN; i++)
        s += key >= w->end[i];
    size_t offset = (size_t)(key - w->span[s].begin) * w->span[s].stride;
    struct view_row at = {w->span[s].k + offset, w->span[s].v + offset};
    return at;
}

#endif
