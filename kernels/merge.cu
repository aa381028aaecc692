/*
 * Entries of a layer: what each row of a batch leaves in its timeline's memory.
 *
 * A block of threads takes one run of rows for one KV head. First all of the run's decisions are
 * made, a row a thread. Then some `walkers` take an item each, a thread one pair of dimensions, and
 * walk it in order, so that sums are those of token after token (DMC, arXiv 2403.09636) however
 * many rows come at a time: a walker whose first entry began in an earlier item begins there too.
 * Rows are read ahead in groups: the walk then waits for memory once a group. This is the one place
 * that decides when a token merges and how the window stands for each item (`held`, `edge`):
 * merging is done at once, and seen one item later.
 */
#include "kernels/cuda.cuh"

enum {
    AHEAD = 2,
    THREADS_MAX = 256,
    BLOCKS = 3, /* at a time on a processor: more wait for memory together than in one that reads
                 * further ahead */
    PIECE = 16, /* bytes */
    LINE = 128,
};

struct rows_job {
    struct cuda_batch b;
    const float *bias; /* [2 kv_heads] */
    uint32_t layer, walkers;
};

/* A thread's place: its pair of dimensions in one head. */
struct place {
    uint32_t head, index, pair, half, kv_heads;
    uint32_t walker, walkers; /* walker == walkers: none, it fills up a warp */
    size_t dim;
};

struct group {
    float2 k[AHEAD], v[AHEAD], turn[AHEAD];
};

static __device__ __forceinline__ void group_read(struct group *g, const struct cuda_batch &b,
                                                  const struct place &p, uint32_t row,
                                                  uint32_t rows)
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
    }
}

/* The rows of an item come near, a thread a row. */
static __device__ void rows_fetch(const struct cuda_batch &b, const struct place &p,
                                  const struct cuda_item &item)
{
    size_t stride = (size_t)(b.shape.heads + 2 * b.shape.kv_heads) * p.dim;
    for (uint32_t i = p.pair; i < item.rows; i += p.half) {
        const float *k = b.qkv + (item.row + i) * stride + (b.shape.heads + p.head) * p.dim;
        const float *turn = b.rotation + (item.row + i) * p.dim;
        for (uint32_t d = 0; d < p.dim; d += LINE / sizeof(float)) {
            fetch_line(k + d);
            fetch_line(k + p.kv_heads * p.dim + d);
            fetch_line(turn + d);
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

/* A row as it is: rounded to f16 once, before rotation, so that a stored key and the one just used
 * are the same bits. */
static __device__ uint32_t raw_key(uint32_t raw, float2 turn)
{
    return turned(make_float2(half_to_float((f16)raw), half_to_float((f16)(raw >> 16))), turn);
}

static __device__ uint32_t take(const f16 *rows, size_t row, const struct place &p)
{
    return ((const uint32_t *)(rows + row * p.dim))[p.pair];
}

/* ---- rows that merge ---- */

/* Of a run and head: which rows have an entry of their own, how many entries there were when each
 * item began, and what each row weighs. */
struct choices {
    uint32_t opens[CUDA_RUN_ITEMS], held[CUDA_RUN_ITEMS + 1];
    float weight[CUDA_RUN_ITEMS][CUDA_ITEM_ROWS];
};

/* The running entry, a pair of its dimensions. */
struct entry {
    float z;
    float2 sum_k, sum_v;
};

static __device__ __forceinline__ void entry_take(struct entry *e, bool opens, float o, float2 k,
                                                  float2 v)
{
    if (opens)
        *e = (struct entry){};
    e->z += o;
    e->sum_k.x = fmaf(o, k.x, e->sum_k.x); /* one rounding, wherever this stands */
    e->sum_k.y = fmaf(o, k.y, e->sum_k.y);
    e->sum_v.x = fmaf(o, v.x, e->sum_v.x);
    e->sum_v.y = fmaf(o, v.y, e->sum_v.y);
}

/* The window as the pass found it; all threads read before any writes. */
struct found {
    struct entry entry;           /* the one that was running */
    uint32_t held, seen;          /* entries, and those in view */
    uint32_t now_k, now_v;        /* the newest, as it is stored */
    uint32_t edge_k, edge_v;      /* the newest in view, as it was seen */
    bool grown;                   /* which has grown since, to: */
    uint32_t grown_k, grown_v;
};

static __device__ void window_find(struct found *f, const struct cuda_item &item,
                                   const struct place &p)
{
    *f = (struct found){};
    if (!item.chunk_tokens)
        return;
    f->entry.z = item.z[p.index];
    f->entry.sum_k = ((const float2 *)(item.sum_k + p.index * p.dim))[p.pair];
    f->entry.sum_v = ((const float2 *)(item.sum_v + p.index * p.dim))[p.pair];
    f->held = item.held[p.index];
    f->seen = item.open_count[p.index];
    if (p.walker)
        return;
    size_t row = item.window_row[p.index];
    f->grown = item.grown[p.index];
    f->grown_k = take(item.grown_k, p.index, p);
    f->grown_v = take(item.grown_v, p.index, p);
    f->now_k = take(item.open_k, row + f->held - 1, p);
    f->now_v = take(item.open_v, row + f->held - 1, p);
    if (f->seen) {
        f->edge_k = take(item.open_k, row + f->seen - 1, p);
        f->edge_v = take(item.open_v, row + f->seen - 1, p);
    }
}

/* What an item is to see: entries, and the newest of them as it is now. */
static __device__ void put_seen(const struct cuda_batch &b, const struct place &p, uint32_t item_at,
                                uint32_t held, uint32_t edge_k, uint32_t edge_v)
{
    size_t at = (size_t)item_at * p.kv_heads + p.head;
    if (p.pair == 0)
        b.held[at] = held;
    put(b.edge_k, at, p, edge_k);
    put(b.edge_v, at, p, edge_v);
}

/* The first two items see what the pass found; what has grown comes into view with the second. */
static __device__ void window_show(const struct rows_job &job, const struct place &p,
                                   const struct cuda_run &run, const struct found &f)
{
    const struct cuda_item &item = job.b.item[run.item];
    bool newest = f.grown && f.seen == f.held;
    put_seen(job.b, p, run.item, f.seen, f.edge_k, f.edge_v);
    if (run.items > 1)
        put_seen(job.b, p, run.item + 1, f.held, newest ? f.grown_k : f.now_k,
                 newest ? f.grown_v : f.now_v);
    if (!f.grown)
        return;
    size_t row = (size_t)item.window_row[p.index] + f.seen - 1;
    put(item.open_k, row, p, f.grown_k);
    put(item.open_v, row, p, f.grown_v);
}

/* The raw rows that the first item sees are kept: the last item writes its own in their place. */
static __device__ void keep_before(const struct cuda_batch &b, const struct cuda_item &item,
                                   const struct place &p, uint32_t run)
{
    size_t words = CUDA_ITEM_ROWS * p.dim, pieces = words * sizeof(f16) / PIECE;
    size_t from = p.index * words, to = ((size_t)run * p.kv_heads + p.head) * words;
    for (uint32_t i = threadIdx.x; item.before_rows && i < pieces; i += blockDim.x) {
        ((uint4 *)(b.before_k + to))[i] = ((const uint4 *)(item.raw_k + from))[i];
        ((uint4 *)(b.before_v + to))[i] = ((const uint4 *)(item.raw_v + from))[i];
    }
}

/* What the decision heads say, a warp an item. */
static __device__ void choose(struct choices *c, const struct rows_job &job, const struct place &p,
                              const struct cuda_run &run)
{
    uint32_t lane = threadIdx.x % WARP;
    for (uint32_t i = threadIdx.x / WARP; i < run.items; i += blockDim.x / WARP) {
        const struct cuda_item &item = job.b.item[run.item + i];
        float bias_a = job.bias[p.head] + item.ratio_bias[p.index];
        float bias_o = job.bias[p.kv_heads + p.head];
        bool opens = false;
        if (lane < item.rows) {
            const float *logit =
                job.b.decide + (size_t)(item.row + lane) * 2 * p.kv_heads + p.head;
            opens = item.chunk_tokens + lane == 0 || !(logit[0] + bias_a > 0);
            c->weight[i][lane] =
                1.0f / (1.0f + expf(-(logit[p.kv_heads] + bias_o))) + 0.0078125f; /* + 2^-7 */
        }
        uint32_t mask = __ballot_sync(0xffffffffu, opens);
        if (lane == 0)
            c->opens[i] = mask;
    }
}

/* Once the chunk's quota of entries is reached, all merge. One thread. */
static __device__ void choose_within(struct choices *c, uint32_t items, uint32_t held,
                                     uint32_t most)
{
    for (uint32_t i = 0; i < items; i++) {
        uint32_t room = held < most ? most - held : held == 0, opens = c->opens[i];
        while ((uint32_t)__popc(opens) > room)
            opens &= ~(0x80000000u >> __clz(opens));
        c->opens[i] = opens;
        c->held[i] = held;
        held += (uint32_t)__popc(opens);
    }
    c->held[items] = held;
}

/* The entry that runs when item i begins: from the row on that opened it, which may lie some items
 * before, or from what the pass found. */
static __device__ void catch_up(struct entry *e, const struct rows_job &job, const struct place &p,
                                const struct cuda_run &run, const struct choices *c, uint32_t i)
{
    uint32_t at = i, first = 0;
    while (at && !c->opens[at - 1])
        at--;
    if (at)
        first = 31 - (uint32_t)__clz(c->opens[--at]);
    for (; at < i; at++, first = 0) {
        const struct cuda_item &item = job.b.item[run.item + at];
        for (uint32_t from = first; from < item.rows; from += AHEAD) {
            struct group g;
            uint32_t rows = min(item.rows - from, (uint32_t)AHEAD);
            group_read(&g, job.b, p, item.row + from, rows);
#pragma unroll
            for (uint32_t j = 0; j < AHEAD; j++) {
                if (j >= rows)
                    break;
                entry_take(e, c->opens[at] >> (from + j) & 1, c->weight[at][from + j], g.k[j],
                           g.v[j]);
            }
        }
    }
}

/* The walk over an item. */
struct walk {
    struct entry now;
    float2 turn; /* of its newest row */
    uint32_t held;
    bool fresh, grown; /* now is not in the window yet; is in grown_k, v */
};

/* The running entry as it is stored. */
static __device__ __forceinline__ void walk_rows(const struct walk *w, uint32_t *k, uint32_t *v)
{
    const struct entry *e = &w->now;
    *k = turned(make_float2(e->sum_k.x / e->z, e->sum_k.y / e->z), w->turn);
    *v = half_pair(e->sum_v.x / e->z, e->sum_v.y / e->z);
}

/* The running entry to where it lies: what comes into view with the run's last item (keep entries)
 * stays as it is until the chunk's end, or until the next pass has come to see more. */
static __device__ void walk_flush(const struct cuda_item &item, const struct place &p,
                                  struct walk *w, uint32_t window, uint32_t keep)
{
    uint32_t k, v;
    if (!w->fresh)
        return;
    bool grows = w->held == keep;
    size_t row = grows ? p.index : (size_t)window + w->held - 1;
    walk_rows(w, &k, &v);
    put(grows ? item.grown_k : item.open_k, row, p, k);
    put(grows ? item.grown_v : item.open_v, row, p, v);
    w->grown = w->grown || grows;
    w->fresh = false;
}

/* A row's own key and value. */
static __device__ void put_row(const struct cuda_batch &b, const struct cuda_item &item,
                               const struct place &p, uint32_t row, uint32_t i, float2 key,
                               float2 value, float2 turn, bool last)
{
    uint32_t v = half_pair(value.x, value.y), k = raw_key(half_pair(key.x, key.y), turn);
    put_local(b, p, row + i, k, v);
    if (last) {
        put(item.raw_k, (size_t)p.index * CUDA_ITEM_ROWS + i, p, k);
        put(item.raw_v, (size_t)p.index * CUDA_ITEM_ROWS + i, p, v);
    }
}

static __device__ void walk_end(const struct cuda_item &item, const struct place &p,
                                const struct walk &w, uint32_t seen)
{
    ((float2 *)(item.sum_k + p.index * p.dim))[p.pair] = w.now.sum_k;
    ((float2 *)(item.sum_v + p.index * p.dim))[p.pair] = w.now.sum_v;
    if (p.pair)
        return;
    item.z[p.index] = w.now.z;
    item.open_count[p.index] = seen;
    item.held[p.index] = w.held;
    item.grown[p.index] = w.grown;
}

static __device__ void merge_item(const struct rows_job &job, const struct place &p,
                                  const struct cuda_run &run, const struct choices *c, uint32_t i,
                                  const struct entry &found)
{
    const struct cuda_batch &b = job.b;
    const struct cuda_item &item = b.item[run.item + i];
    bool last = i + 1 == run.items, sinks = item.tokens < item.sinks;
    uint32_t opens = c->opens[i], keep = last ? c->held[i] : UINT32_MAX;
    uint32_t row = item.row, count = item.rows, window = item.window_row[p.index];
    struct walk w = {found, {}, c->held[i], false, false};
    if (!(opens & 1))
        catch_up(&w.now, job, p, run, c, i);
    for (uint32_t from = 0; from < count; from += AHEAD) {
        struct group g;
        uint32_t rows = min(count - from, (uint32_t)AHEAD);
        group_read(&g, b, p, row + from, rows);
#pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
            if (j >= rows)
                break;
            bool own = opens >> (from + j) & 1;
            if (own) {
                walk_flush(item, p, &w, window, keep);
                w.held++;
            }
            entry_take(&w.now, own, c->weight[i][from + j], g.k[j], g.v[j]);
            w.turn = g.turn[j];
            w.fresh = true;
            if (sinks)
                keep_sink(item, p, from + j, g.k[j], g.v[j]);
            put_row(b, item, p, row, from + j, g.k[j], g.v[j], g.turn[j], last);
        }
    }
    if (i + 2 < run.items) {
        uint32_t k, v;
        walk_rows(&w, &k, &v);
        put_seen(b, p, run.item + i + 2, w.held, k, v);
    }
    if (i + 2 >= run.items || c->opens[i + 1] & 1) /* else it goes on in the next item */
        walk_flush(item, p, &w, window, keep);
    if (last)
        walk_end(item, p, w, keep);
}

static __device__ void merge_run(const struct rows_job &job, const struct place &p,
                                 const struct cuda_run &run, uint32_t run_at)
{
    __shared__ struct choices choices;
    const struct cuda_item &item = job.b.item[run.item];
    bool walks = p.walker < p.walkers;
    struct found found = {};
    for (uint32_t i = p.walker; walks && i < run.items; i += p.walkers)
        rows_fetch(job.b, p, job.b.item[run.item + i]);
    choose(&choices, job, p, run);
    keep_before(job.b, item, p, run_at);
    if (walks)
        window_find(&found, item, p);
    __syncthreads(); /* all have read what is written from here on */
    if (p.walker == 0)
        window_show(job, p, run, found);
    if (threadIdx.x == 0)
        choose_within(&choices, run.items, found.held, item.capacity[p.index]);
    __syncthreads(); /* the entry that window_show writes may grow again in any item */
    for (uint32_t i = p.walker; walks && i < run.items; i += p.walkers)
        merge_item(job, p, run, &choices, i, found.entry);
}

/* ---- rows that do not ---- */

/* A group of rows from `from` on; held: entries before the item's. */
static __device__ void plain_rows(const struct rows_job &job, const struct place &p,
                                  const struct cuda_item &item, uint32_t from, uint32_t held)
{
    const struct cuda_batch &b = job.b;
    struct group g;
    uint32_t rows = min(item.rows - from, (uint32_t)AHEAD);
    group_read(&g, b, p, item.row + from, rows);
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

/* Groups of rows go to the walkers in turn. */
static __device__ void plain_run(const struct rows_job &job, const struct place &p,
                                 const struct cuda_run &run)
{
    const struct cuda_item &first = job.b.item[run.item];
    bool joins = first.flags & CUDA_STREAM, walks = p.walker < p.walkers;
    uint32_t held = joins ? first.open_count[p.index] : 0, groups = 0;
    __syncthreads(); /* all have read what one of them writes at the end */
    for (uint32_t i = 0; walks && i < run.items; i++) {
        const struct cuda_item &item = job.b.item[run.item + i];
        if (threadIdx.x == 0)
            job.b.held[(size_t)(run.item + i) * p.kv_heads + p.head] = held;
        for (uint32_t from = 0; from < item.rows; from += AHEAD, groups++)
            if (groups % p.walkers == p.walker)
                plain_rows(job, p, item, from, held);
        held += item.rows;
    }
    if (joins && threadIdx.x == 0)
        first.open_count[p.index] = held;
}

static __global__ void __launch_bounds__(THREADS_MAX, BLOCKS) rows_kernel(struct rows_job job)
{
    const struct cuda_run run = job.b.run[blockIdx.x];
    struct place p;
    p.head = blockIdx.y;
    p.kv_heads = job.b.shape.kv_heads;
    p.index = job.layer * p.kv_heads + p.head;
    p.dim = job.b.shape.head_dim;
    p.half = (uint32_t)p.dim / 2;
    p.pair = threadIdx.x % p.half;
    p.walkers = job.walkers;
    p.walker = min(threadIdx.x / p.half, p.walkers);
    if (job.b.item[run.item].flags & CUDA_MERGES)
        merge_run(job, p, run, blockIdx.x);
    else
        plain_run(job, p, run);
}

static void make_rows(struct cuda *c, const struct cuda_batch *b, uint32_t layer,
                      const float *bias)
{
    struct rows_job job;
    uint32_t half = b->shape.head_dim / 2, most = THREADS_MAX / half;
    job.b = *b;
    job.bias = bias;
    job.layer = layer;
    job.walkers = b->items_most < most ? b->items_most : most;
    uint32_t warps = (half * job.walkers + WARP - 1) / WARP;
    LAUNCH(c, rows_kernel, dim3(b->runs, b->shape.kv_heads), dim3(warps * WARP), job);
}

void cuda_table_merge(struct cuda *c)
{
    c->make_rows = make_rows;
}
