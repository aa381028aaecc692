/*
 * Entries of a layer: what each row of a batch leaves in its timeline's memory.
 *
 * A block of threads takes one run of rows for one KV head, a thread one pair of dimensions, and
 * walks the run in order, so that sums are those of token after token (DMC, arXiv 2403.09636)
 * however many rows come at a time. Rows are read ahead in groups: the walk then waits for memory
 * once a group. This is the one place that decides when a token merges and how the window stands
 * for each item (`held`, `edge`): merging is done at once, and seen one item later.
 */
#include "kernels/cuda.cuh"

enum { AHEAD = 8 };

struct rows_job {
    struct cuda_batch b;
    const float *bias; /* [2 kv_heads] */
    uint32_t layer;
};

/* A thread's place: its pair of dimensions in one head. */
struct place {
    uint32_t head, index, pair, half, kv_heads;
    size_t dim;
};

struct group {
    float2 k[AHEAD], v[AHEAD], turn[AHEAD];
    float merge[AHEAD], weight[AHEAD]; /* logits */
};

static __device__ void group_read(struct group *g, const struct cuda_batch &b,
                                  const struct place &p, uint32_t row, uint32_t rows, bool decides)
{
    size_t stride = (size_t)(b.shape.heads + 2 * b.shape.kv_heads) * p.dim;
    const float *k = b.qkv + row * stride + (b.shape.heads + p.head) * p.dim + 2 * p.pair;
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
        if (i >= rows)
            break;
        g->k[i] = *(const float2 *)(k + i * stride);
        g->v[i] = *(const float2 *)(k + i * stride + p.kv_heads * p.dim);
        g->turn[i] = ((const float2 *)b.rotation)[(size_t)(row + i) * p.half + p.pair];
        if (decides) {
            const float *logit = b.decide + (size_t)(row + i) * 2 * p.kv_heads + p.head;
            g->merge[i] = logit[0];
            g->weight[i] = logit[p.kv_heads];
        }
    }
}

static __device__ uint32_t turned(float2 v, float2 turn)
{
    return half_pair(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

static __device__ void put(f16 *rows, size_t row, const struct place &p, uint32_t pair)
{
    ((uint32_t *)(rows + row * p.dim))[p.pair] = pair;
}

/* Un-merged, un-rotated K and V of the stream's first tokens. */
static __device__ void keep_sink(const struct cuda_item &item, const struct place &p, uint32_t i,
                                 float2 k, float2 v)
{
    uint64_t at = item.tokens + i;
    if (at >= item.sinks)
        return;
    put(item.sink_k, (size_t)p.index * item.sinks + at, p, half_pair(k.x, k.y));
    put(item.sink_v, (size_t)p.index * item.fixed_rows + at, p, half_pair(v.x, v.y));
}

static __device__ void put_local(const struct cuda_batch &b, const struct place &p, uint32_t row,
                                 uint32_t k, uint32_t v)
{
    put(b.k_local, (size_t)row * p.kv_heads + p.head, p, k);
    put(b.v_local, (size_t)row * p.kv_heads + p.head, p, v);
}

/* The running entry of one head, a pair of its dimensions. */
struct entry {
    float z;
    float2 sum_k, sum_v;
    uint32_t k, v; /* as stored */
};

static __device__ void entry_take(struct entry *e, bool merges, float o, float2 k, float2 v,
                                  float2 turn)
{
    e->z = merges ? e->z + o : o;
    e->sum_k.x = merges ? e->sum_k.x + o * k.x : o * k.x;
    e->sum_k.y = merges ? e->sum_k.y + o * k.y : o * k.y;
    e->sum_v.x = merges ? e->sum_v.x + o * v.x : o * v.x;
    e->sum_v.y = merges ? e->sum_v.y + o * v.y : o * v.y;
    e->k = turned(make_float2(e->sum_k.x / e->z, e->sum_k.y / e->z), turn);
    e->v = half_pair(e->sum_v.x / e->z, e->sum_v.y / e->z);
}

/* What a run of one head carries from item to item: the running entry, and the entries in view of
 * the item at hand with the newest of them as it was then. The next item sees what this one began
 * with. */
struct walk {
    struct entry now;
    uint32_t held;
    bool fresh; /* now is not in the window yet */
    uint32_t seen, edge_k, edge_v;
    uint32_t keep; /* entries that must stay as they are: in view once the run has ended */
    bool grown;    /* the newest of those is in grown_k, v too */
};

/* The running entry to where it lies: what is in view stays as it is until the chunk's end, or
 * until the next pass has come to see more. */
static __device__ void walk_flush(const struct cuda_item &item, const struct place &p,
                                  struct walk *w)
{
    if (!w->fresh)
        return;
    bool grows = w->held == w->keep;
    size_t row = grows ? p.index : (size_t)item.window_row[p.index] + w->held - 1;
    put(grows ? item.grown_k : item.open_k, row, p, w->now.k);
    put(grows ? item.grown_v : item.open_v, row, p, w->now.v);
    w->grown = w->grown || grows;
    w->fresh = false;
}

static __device__ void walk_step(const struct cuda_item &item, const struct place &p,
                                 struct walk *w, bool merges, float o, const struct group &g,
                                 uint32_t j)
{
    if (!merges) {
        walk_flush(item, p, w);
        w->held++;
    }
    entry_take(&w->now, merges, o, g.k[j], g.v[j], g.turn[j]);
    w->fresh = true;
}

/* A row as it is: rounded to f16 once, before rotation, so that a stored key and the one just used
 * are the same bits. */
static __device__ uint32_t raw_key(uint32_t raw, float2 turn)
{
    return turned(make_float2(half_to_float((f16)raw), half_to_float((f16)(raw >> 16))), turn);
}

static __device__ void merge_item(const struct rows_job &job, const struct place &p,
                                  uint32_t item_at, struct walk *w, bool last)
{
    const struct cuda_batch &b = job.b;
    const struct cuda_item &item = b.item[item_at];
    uint32_t most = item.capacity[p.index];
    float bias_a = job.bias[p.head] + item.ratio_bias[p.index];
    float bias_o = job.bias[p.kv_heads + p.head];
    size_t seen = (size_t)item_at * p.kv_heads + p.head;
    if (p.pair == 0)
        b.held[seen] = w->seen;
    put(b.edge_k, seen, p, w->edge_k);
    put(b.edge_v, seen, p, w->edge_v);
    w->seen = w->held;
    w->edge_k = w->now.k;
    w->edge_v = w->now.v;
    if (last) {
        walk_flush(item, p, w);
        w->keep = w->held;
    }
    for (uint32_t from = 0; from < item.rows; from += AHEAD) {
        struct group g;
        uint32_t rows = min(item.rows - from, (uint32_t)AHEAD);
        group_read(&g, b, p, item.row + from, rows, true);
#pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
            if (j >= rows)
                break;
            uint32_t i = from + j;
            bool opens = item.chunk_tokens + i == 0;
            bool merges = !opens && (g.merge[j] + bias_a > 0 || w->held >= most);
            float o = 1.0f / (1.0f + expf(-(g.weight[j] + bias_o))) + 0.0078125f; /* + 2^-7 */
            uint32_t v = half_pair(g.v[j].x, g.v[j].y);
            uint32_t k = raw_key(half_pair(g.k[j].x, g.k[j].y), g.turn[j]);
            walk_step(item, p, w, merges, o, g, j);
            keep_sink(item, p, i, g.k[j], g.v[j]);
            put_local(b, p, item.row + i, k, v);
            if (last) {
                put(item.raw_k, (size_t)p.index * CUDA_ITEM_ROWS + i, p, k);
                put(item.raw_v, (size_t)p.index * CUDA_ITEM_ROWS + i, p, v);
            }
        }
    }
}

static __device__ uint32_t take(const f16 *rows, size_t row, const struct place &p)
{
    return ((const uint32_t *)(rows + row * p.dim))[p.pair];
}

/* The raw rows that the first item sees are kept: the last item writes its own in their place. */
static __device__ void keep_before(const struct cuda_batch &b, const struct cuda_item &item,
                                   const struct place &p, uint32_t run)
{
    for (uint32_t i = 0; i < item.before_rows; i++) {
        size_t from = (size_t)p.index * CUDA_ITEM_ROWS + i;
        size_t to = ((size_t)run * p.kv_heads + p.head) * CUDA_ITEM_ROWS + i;
        put(b.before_k, to, p, take(item.raw_k, from, p));
        put(b.before_v, to, p, take(item.raw_v, from, p));
    }
}

static __device__ void walk_begin(const struct cuda_item &item, const struct place &p,
                                  struct walk *w)
{
    *w = (struct walk){};
    w->now.z = item.z[p.index];
    w->now.sum_k = ((const float2 *)(item.sum_k + p.index * p.dim))[p.pair];
    w->now.sum_v = ((const float2 *)(item.sum_v + p.index * p.dim))[p.pair];
    if (!item.chunk_tokens)
        return;
    size_t row = item.window_row[p.index];
    bool grown = item.grown[p.index];
    w->held = item.held[p.index];
    w->seen = item.open_count[p.index];
    w->now.k = take(item.open_k, row + w->held - 1, p);
    w->now.v = take(item.open_v, row + w->held - 1, p);
    if (w->seen) {
        w->edge_k = take(item.open_k, row + w->seen - 1, p);
        w->edge_v = take(item.open_v, row + w->seen - 1, p);
    }
    if (!grown)
        return;
    uint32_t k = take(item.grown_k, p.index, p), v = take(item.grown_v, p.index, p);
    put(item.open_k, row + w->seen - 1, p, k); /* in view from the second item on */
    put(item.open_v, row + w->seen - 1, p, v);
    if (w->seen == w->held) {
        w->now.k = k;
        w->now.v = v;
    }
}

static __device__ void walk_end(const struct cuda_item &item, const struct place &p,
                                const struct walk &w)
{
    ((float2 *)(item.sum_k + p.index * p.dim))[p.pair] = w.now.sum_k;
    ((float2 *)(item.sum_v + p.index * p.dim))[p.pair] = w.now.sum_v;
    if (p.pair)
        return;
    item.z[p.index] = w.now.z;
    item.open_count[p.index] = w.seen;
    item.held[p.index] = w.held;
    item.grown[p.index] = w.grown;
}

static __device__ void merge_run(const struct rows_job &job, const struct place &p,
                                 const struct cuda_run &run, uint32_t run_at)
{
    const struct cuda_item &item = job.b.item[run.item];
    struct walk w;
    walk_begin(item, p, &w);
    keep_before(job.b, item, p, run_at);
    __syncthreads(); /* all have read what one of them writes at the end */
    for (uint32_t i = 0; i < run.items; i++)
        merge_item(job, p, run.item + i, &w, i + 1 == run.items);
    walk_flush(item, p, &w);
    walk_end(item, p, w);
}

/* Rows that no rule merges. */
static __device__ void plain_item(const struct rows_job &job, const struct place &p,
                                  uint32_t item_at, uint32_t held)
{
    const struct cuda_batch &b = job.b;
    const struct cuda_item &item = b.item[item_at];
    for (uint32_t from = 0; from < item.rows; from += AHEAD) {
        struct group g;
        uint32_t rows = min(item.rows - from, (uint32_t)AHEAD);
        group_read(&g, b, p, item.row + from, rows, false);
#pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
            if (j >= rows)
                break;
            uint32_t i = from + j;
            uint32_t raw = half_pair(g.k[j].x, g.k[j].y), v = half_pair(g.v[j].x, g.v[j].y);
            uint32_t k = raw_key(raw, g.turn[j]);
            put_local(b, p, item.row + i, k, v);
            if (item.flags & CUDA_STREAM) {
                size_t row = item.window_row[p.index] + held + i;
                put(item.open_k, row, p, k);
                put(item.open_v, row, p, v);
                keep_sink(item, p, i, g.k[j], g.v[j]);
            }
            if (item.flags & CUDA_COMP) {
                put(item.segment, 2 * ((size_t)p.index * item.rows + i), p, raw);
                put(item.segment, 2 * ((size_t)p.index * item.rows + i) + 1, p, v);
            }
            if (item.flags & CUDA_TAIL) {
                size_t row = (size_t)p.index * item.tail_capacity + item.tail_rows + i;
                put(item.tail_k, row, p, k);
                put(item.tail_v, row, p, v);
            }
        }
    }
}

static __device__ void plain_run(const struct rows_job &job, const struct place &p,
                                 const struct cuda_run &run)
{
    const struct cuda_item &item = job.b.item[run.item];
    bool joins = item.flags & CUDA_STREAM;
    uint32_t held = joins ? item.open_count[p.index] : 0;
    __syncthreads();
    for (uint32_t i = 0; i < run.items; i++) {
        if (p.pair == 0)
            job.b.held[(size_t)(run.item + i) * p.kv_heads + p.head] = held;
        plain_item(job, p, run.item + i, held);
        held += job.b.item[run.item + i].rows;
    }
    if (joins && p.pair == 0)
        item.open_count[p.index] = held;
}

static __global__ void rows_kernel(struct rows_job job)
{
    const struct cuda_run run = job.b.run[blockIdx.x];
    struct place p;
    p.head = blockIdx.y;
    p.kv_heads = job.b.shape.kv_heads;
    p.index = job.layer * p.kv_heads + p.head;
    p.pair = threadIdx.x;
    p.dim = job.b.shape.head_dim;
    p.half = (uint32_t)p.dim / 2;
    if (job.b.item[run.item].flags & CUDA_MERGES)
        merge_run(job, p, run, blockIdx.x);
    else
        plain_run(job, p, run);
}

static void make_rows(struct cuda *c, const struct cuda_batch *b, uint32_t layer,
                      const float *bias)
{
    struct rows_job job;
    job.b = *b;
    job.bias = bias;
    job.layer = layer;
    LAUNCH(c, rows_kernel, dim3(b->runs, b->shape.kv_heads), dim3(b->shape.head_dim / 2), job);
}

void cuda_table_merge(struct cuda *c)
{
    c->make_rows = make_rows;
}
