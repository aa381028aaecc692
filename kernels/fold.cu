/*
 * A chunk's end (stream/ccm.c): the oldest segment of a full ring leaves for the summary, the
 * chunk's own joins, summary, pins and sinks are placed anew. A block of threads does all
 * of it for one (layer, KV head) of one stream: nothing crosses heads.
 */
#include "kernels/cuda.cuh"

enum { THREADS = 128, MAP_SLOTS = 4 /* that share a read of the map */ };

/* One head's part of a slide. */
struct head_slide {
    const struct cuda_slide *s;
    size_t head, heads, dim;
};

static __device__ size_t segment_at(const struct head_slide &h, uint32_t slot, bool value)
{
    return ((h.head * h.s->comp + slot) * 2 + value) * h.dim;
}

/* Of the ring's slot: f16 rows in ring_k, and in fixed_k and fixed_v. */
static __device__ size_t ring_at(const struct head_slide &h)
{
    return ((size_t)h.s->slot * h.heads + h.head) * h.s->comp * h.dim;
}
static __device__ size_t fixed_at(const struct head_slide &h)
{
    return (h.head * h.s->fixed_rows + h.s->comp + h.s->sinks +
            (size_t)h.s->slot * h.s->comp) * h.dim;
}

static __device__ void leave_ring(const struct head_slide &h)
{
    const struct cuda_slide *s = h.s;
    const f16 *key = s->ring_k + ring_at(h), *value = s->fixed_v + fixed_at(h);
    float keep = 1.0f - s->alpha;
    for (uint32_t at = threadIdx.x; at < s->comp * h.dim; at += THREADS) {
        uint32_t slot = at / (uint32_t)h.dim, col = at % (uint32_t)h.dim;
        size_t k = segment_at(h, slot, false) + col, v = segment_at(h, slot, true) + col;
        s->summary[k] = keep * s->summary[k] + s->alpha * half_to_float(key[at]);
        s->summary[v] = keep * s->summary[v] + s->alpha * half_to_float(value[at]);
        if (s->leaving) {
            s->leaving[k] = key[at];
            s->leaving[v] = value[at];
        }
    }
}

/* Turns a pair of a stored key. */
static __device__ void turn_pair(f16 *out, float even, float odd, float2 turn)
{
    *(uint32_t *)out =
        half_pair(even * turn.x - odd * turn.y, even * turn.y + odd * turn.x);
}

static __device__ void join_ring(const struct head_slide &h)
{
    const struct cuda_slide *s = h.s;
    const float2 *turn = (const float2 *)s->rotation;
    f16 *raw = s->ring_k + ring_at(h), *key = s->fixed_k + fixed_at(h);
    f16 *value = s->fixed_v + fixed_at(h);
    for (uint32_t at = threadIdx.x; at < s->comp * h.dim / 2; at += THREADS) {
        uint32_t slot = 2 * at / (uint32_t)h.dim, col = 2 * at % (uint32_t)h.dim;
        const f16 *k = s->segment + segment_at(h, slot, false) + col;
        const f16 *v = s->segment + segment_at(h, slot, true) + col;
        *(uint32_t *)(raw + 2 * at) = *(const uint32_t *)k;
        *(uint32_t *)(value + 2 * at) = *(const uint32_t *)v;
        turn_pair(key + 2 * at, half_to_float(k[0]), half_to_float(k[1]), turn[at]);
    }
}

static __device__ void place_pins(const struct head_slide &h)
{
    const struct cuda_slide *s = h.s;
    const float2 *turn = (const float2 *)s->rotation + (2 * s->comp + s->sinks) * h.dim / 2;
    const f16 *raw = s->pin_raw + h.head * s->pin_stride * h.dim;
    f16 *key = s->pin_k + h.head * s->pin_stride * h.dim;
    for (uint32_t at = threadIdx.x; at < s->pins * h.dim / 2; at += THREADS)
        turn_pair(key + 2 * at, half_to_float(raw[2 * at]), half_to_float(raw[2 * at + 1]),
                  turn[at]);
}

/* A pair of columns of MAP_SLOTS slots of the summary as queries see them; there may be fewer. */
static __device__ void seen_slots(const struct head_slide &h, uint32_t slot, uint32_t col,
                                  bool value, float2 *seen)
{
    const struct cuda_slide *s = h.s;
    const float *x[MAP_SLOTS];
    for (uint32_t n = 0; n < MAP_SLOTS; n++) {
        uint32_t last = s->comp - 1;
        x[n] = s->summary + segment_at(h, slot + n < last ? slot + n : last, value);
        seen[n] = *(const float2 *)(x[n] + col);
    }
    if (!s->map)
        return;
    size_t part = 2 * h.head + value;
    float2 bias = *(const float2 *)(s->map_bias + part * h.dim + col);
    const float *map = s->map + part * h.dim * h.dim + col;
    for (uint32_t n = 0; n < MAP_SLOTS; n++)
        seen[n] = make_float2(seen[n].x + bias.x, seen[n].y + bias.y);
#pragma unroll 4
    for (uint32_t i = 0; i < h.dim; i += 2) {
        float2 even = *(const float2 *)(map + i * h.dim);
        float2 odd = *(const float2 *)(map + (i + 1) * h.dim);
        for (uint32_t n = 0; n < MAP_SLOTS; n++) {
            float2 in = *(const float2 *)(x[n] + i);
            seen[n].x += even.x * in.x + odd.x * in.y;
            seen[n].y += even.y * in.x + odd.y * in.y;
        }
    }
}

static __device__ void place_summary(const struct head_slide &h)
{
    const struct cuda_slide *s = h.s;
    const float2 *turn = (const float2 *)s->rotation + (s->comp + s->sinks) * h.dim / 2;
    f16 *key = s->fixed_k + h.head * s->fixed_rows * h.dim;
    f16 *value = s->fixed_v + h.head * s->fixed_rows * h.dim;
    uint32_t pairs = (uint32_t)h.dim / 2, groups = (s->comp + MAP_SLOTS - 1) / MAP_SLOTS;
    for (uint32_t at = threadIdx.x; at < groups * pairs; at += THREADS) {
        uint32_t slot = at / pairs * MAP_SLOTS, pair = at % pairs;
        float2 k[MAP_SLOTS], v[MAP_SLOTS];
        seen_slots(h, slot, 2 * pair, false, k);
        seen_slots(h, slot, 2 * pair, true, v);
        for (uint32_t n = 0; n < MAP_SLOTS && slot + n < s->comp; n++) {
            uint32_t to = (slot + n) * pairs + pair;
            turn_pair(key + 2 * to, half_to_float(half_from_float(k[n].x)),
                      half_to_float(half_from_float(k[n].y)), turn[to]);
            *(uint32_t *)(value + 2 * to) = half_pair(v[n].x, v[n].y);
        }
    }
}

static __device__ void place_old_rows(const struct head_slide &h)
{
    const struct cuda_slide *s = h.s;
    const float2 *turn = (const float2 *)s->rotation + s->comp * h.dim / 2;
    const f16 *sink = s->sink_k + h.head * s->sinks * h.dim;
    f16 *key = s->fixed_k + (h.head * s->fixed_rows + s->comp) * h.dim;
    for (uint32_t at = threadIdx.x; at < s->sinks * h.dim / 2; at += THREADS)
        turn_pair(key + 2 * at, half_to_float(sink[2 * at]), half_to_float(sink[2 * at + 1]),
                  turn[at]);
    place_pins(h);
    if (s->places_summary)
        place_summary(h);
}

/* What waited comes into view: nothing lags behind a chunk's end. */
static __device__ void settle(const struct head_slide &h)
{
    const struct cuda_slide *s = h.s;
    uint32_t seen = s->open_count[h.head], held = s->held[h.head];
    size_t newest = ((size_t)s->window_row[h.head] + seen - 1) * h.dim, from = h.head * h.dim;
    for (uint32_t i = threadIdx.x; s->grown[h.head] && i < h.dim; i += THREADS) {
        s->open_k[newest + i] = s->grown_k[from + i];
        s->open_v[newest + i] = s->grown_v[from + i];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        s->open_count[h.head] = held;
        s->held[h.head] = s->grown[h.head] = 0;
    }
}

/* splitmix64 of a word and its place: the sum over all words is the same in any order. */
static __device__ uint64_t word_hash(uint64_t place, uint32_t word)
{
    uint64_t x = place * 0x9e3779b97f4a7c15ull + word + 0x632be59bd9b4e019ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* Four words at a time where they lie so. */
static __device__ uint64_t words_hash(uint64_t part, size_t place, const void *words, size_t count)
{
    const uint32_t *word = (const uint32_t *)words;
    uint64_t sum = 0;
    size_t fours = (uintptr_t)words % sizeof(uint4) ? 0 : count / 4;
    part <<= 56;
#pragma unroll 4
    for (size_t i = threadIdx.x; i < fours; i += THREADS) {
        uint4 v = ((const uint4 *)words)[i];
        sum += word_hash(part | (place + 4 * i), v.x) + word_hash(part | (place + 4 * i + 1), v.y) +
               word_hash(part | (place + 4 * i + 2), v.z) +
               word_hash(part | (place + 4 * i + 3), v.w);
    }
    for (size_t i = 4 * fours + threadIdx.x; i < count; i += THREADS)
        sum += word_hash(part | (place + i), word[i]);
    return sum;
}

/* Of the new segment, the summary, the count and the entries of the chunk just finished. */
static __device__ void digest(const struct head_slide &h)
{
    __shared__ uint64_t sums[THREADS];
    const struct cuda_slide *s = h.s;
    size_t slots = (size_t)s->comp * 2 * h.dim, at = h.head * slots;
    uint64_t sum = 0;
    if (s->segment)
        sum += words_hash(1, at / 2, s->segment + at, slots / 2) +
               words_hash(2, at, s->summary + at, slots);
    uint32_t count = s->open_count[h.head];
    size_t row = (size_t)s->window_row[h.head] * h.dim, words = count * h.dim / 2;
    sum += words_hash(4, row / 2, s->open_k + row, words) +
           words_hash(5, row / 2, s->open_v + row, words);
    if (threadIdx.x == 0)
        sum += word_hash((uint64_t)3 << 56 | h.head, count);
    sums[threadIdx.x] = sum;
    for (uint32_t step = THREADS / 2; step; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step)
            sums[threadIdx.x] += sums[threadIdx.x + step];
    }
    if (threadIdx.x == 0)
        atomicAdd((unsigned long long *)s->digest, (unsigned long long)sums[0]);
}

static __global__ void slide_kernel(const struct cuda_slide *slides, uint32_t heads, uint32_t dim)
{
    struct head_slide h;
    h.s = slides + blockIdx.x;
    h.head = blockIdx.y;
    h.heads = heads;
    h.dim = dim;
    const struct cuda_slide *s = h.s;
    if (s->held)
        settle(h);
    if (s->leaves)
        leave_ring(h);
    __syncthreads();
    if (s->segment)
        join_ring(h);
    __syncthreads();
    digest(h);
    place_old_rows(h);
    if (threadIdx.x == 0)
        s->next_count[h.head] = 0;
}

static void slide(struct cuda *c, const struct cuda_slide *slides, uint32_t count, uint32_t heads,
                  uint32_t head_dim)
{
    if (count)
        LAUNCH(c, slide_kernel, dim3(count, heads), dim3(THREADS), slides, heads, head_dim);
}

static __global__ void gather_kernel(uint32_t *to, const uint32_t *const *from, uint32_t words)
{
    for (uint32_t i = threadIdx.x; i < words; i += THREADS)
        to[(size_t)blockIdx.x * words + i] = from[blockIdx.x][i];
}

static void gather(struct cuda *c, uint32_t *to, const uint32_t *const *from, uint32_t arrays,
                   uint32_t words)
{
    if (arrays)
        LAUNCH(c, gather_kernel, dim3(arrays), dim3(THREADS), to, from, words);
}

void cuda_table_fold(struct cuda *c)
{
    c->slide = slide;
    c->gather = gather;
}
