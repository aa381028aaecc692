/* Rows of activations: RMS norm with the decision heads in it, SwiGLU, and the loss of a token.
 *
 * Memory is all that the first two wait for. They stand between projections, which go through the
 * rows from the first to the last, and go from the last to the first: what the projection before
 * wrote last is still in the cache, and so is then what the next one reads first. */
#include "kernels/cuda.cuh"

enum {
    THREADS = 128,
    WIDE_THREADS = 256,
    SWIGLU_ROWS = 4, /* of a thread */
    NARROW = 9,      /* pairs of a lane that stay in registers, two rows of them */
    WIDE = 64,       /* or one row */
};

struct norm_job {
    bf16 *h;
    float *decide;
    const float *x, *weight, *decide_weight;
    uint32_t rows, dim, columns, from, to;
    float eps;
};

/* Dot products of normed rows with the decision heads. */
template <int PAIRS, int ROWS>
static __device__ __forceinline__ void decide(const struct norm_job &job, uint32_t row,
                                              const float2 v[ROWS][PAIRS])
{
    uint32_t lane = threadIdx.x % WARP, pairs = job.dim / 2;
    for (uint32_t column = 0; column < job.columns; column++) {
        const float2 *head = (const float2 *)(job.decide_weight + (size_t)column * job.dim);
        float dot[ROWS] = {};
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            uint32_t i = lane + n * WARP;
            float2 d = i < pairs ? head[i] : make_float2(0, 0);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                dot[r] = fmaf(v[r][n].y, d.y, fmaf(v[r][n].x, d.x, dot[r]));
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float sum = warp_sum(dot[r]);
            if (lane == 0 && row + r >= job.from && row + r < job.to)
                job.decide[(size_t)(row + r) * job.columns + column] = sum;
        }
    }
}

/* A warp some rows, two neighbours a lane at a time; a row is read once. */
template <int PAIRS, int ROWS> static __global__ void norm_kernel(struct norm_job job)
{
    uint32_t lane = threadIdx.x % WARP, pairs = job.dim / 2;
    uint32_t blocks = (job.rows + THREADS / WARP * ROWS - 1) / (THREADS / WARP * ROWS);
    uint32_t row = ((blocks - 1 - blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP) * ROWS;
    float2 v[ROWS][PAIRS];
    if (row >= job.rows)
        return;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            const float2 *x = (const float2 *)(job.x + (size_t)(row + r) * job.dim);
            uint32_t i = lane + n * WARP;
            v[r][n] = i < pairs && row + r < job.rows ? x[i] : make_float2(0, 0);
        }
    float scale[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float squares = 0;
#pragma unroll
        for (int n = 0; n < PAIRS; n++)
            squares = fmaf(v[r][n].y, v[r][n].y, fmaf(v[r][n].x, v[r][n].x, squares));
        scale[r] = 1.0f / sqrtf(warp_sum(squares) / (float)job.dim + job.eps);
    }
#pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        uint32_t i = lane + n * WARP;
        float2 w = i < pairs ? ((const float2 *)job.weight)[i] : make_float2(0, 0);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            v[r][n] = make_float2(v[r][n].x * scale[r] * w.x, v[r][n].y * scale[r] * w.y);
            if (i < pairs && row + r < job.rows)
                ((uint32_t *)(job.h + (size_t)(row + r) * job.dim))[i] =
                    bf16_pair(v[r][n].x, v[r][n].y);
        }
    }
    if (row + ROWS > job.from && row < job.to)
        decide<PAIRS, ROWS>(job, row, v);
}

/* Rows that no warp's registers hold. */
static __global__ void norm_long_kernel(struct norm_job job)
{
    uint32_t row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= job.rows)
        return;
    const float2 *x = (const float2 *)(job.x + (size_t)row * job.dim);
    const float2 *weight = (const float2 *)job.weight;
    uint32_t *h = (uint32_t *)(job.h + (size_t)row * job.dim);
    uint32_t pairs = job.dim / 2;
    float squares = 0;
    for (uint32_t i = lane; i < pairs; i += WARP) {
        float2 v = x[i];
        squares += v.x * v.x + v.y * v.y;
    }
    float scale = 1.0f / sqrtf(warp_sum(squares) / (float)job.dim + job.eps);
    for (uint32_t i = lane; i < pairs; i += WARP) {
        float2 v = x[i], w = weight[i];
        h[i] = bf16_pair(v.x * scale * w.x, v.y * scale * w.y);
    }
    for (uint32_t column = 0; row >= job.from && row < job.to && column < job.columns; column++) {
        const float2 *head = (const float2 *)(job.decide_weight + (size_t)column * job.dim);
        float dot = 0;
        for (uint32_t i = lane; i < pairs; i += WARP) {
            float2 v = x[i], w = weight[i], d = head[i];
            dot += v.x * scale * w.x * d.x + v.y * scale * w.y * d.y;
        }
        dot = warp_sum(dot);
        if (lane == 0)
            job.decide[(size_t)row * job.columns + column] = dot;
    }
}

template <int PAIRS, int ROWS> static void norm_launch(struct cuda *c, const struct norm_job &job)
{
    uint32_t rows = THREADS / WARP * ROWS, blocks = (job.rows + rows - 1) / rows;
    LAUNCH(c, (norm_kernel<PAIRS, ROWS>), dim3(blocks), dim3(THREADS), job);
}

static void norm(struct cuda *c, const struct cuda_batch *b, const float *weight,
                 const float *decide, uint32_t from, uint32_t to)
{
    struct norm_job job = {};
    job.h = b->h;
    job.decide = b->decide;
    job.x = b->x;
    job.weight = weight;
    job.decide_weight = decide;
    job.rows = b->rows;
    job.dim = b->shape.dim;
    job.columns = 2 * b->shape.kv_heads;
    job.from = from;
    job.to = to;
    job.eps = b->shape.norm_eps;
    if (job.dim <= 2 * WARP * NARROW)
        norm_launch<NARROW, 2>(c, job);
    else if (job.dim <= WARP * WIDE)
        norm_launch<WIDE / 2, 1>(c, job);
    else if (job.dim <= 2 * WARP * WIDE)
        norm_launch<WIDE, 1>(c, job);
    else
        LAUNCH(c, norm_long_kernel, dim3((b->rows + THREADS / WARP - 1) / (THREADS / WARP)),
               dim3(THREADS), job);
}

static __device__ float gated(float gate, float up)
{
    return __fdividef(gate, 1.0f + __expf(-gate)) * up; /* to more bits than bf16 has */
}

static __device__ uint32_t gated_pair(uint32_t gate, uint32_t up)
{
    return bf16_pair(gated(bf16_to_float((bf16)gate), bf16_to_float((bf16)up)),
                     gated(bf16_to_float((bf16)(gate >> 16)), bf16_to_float((bf16)(up >> 16))));
}

static __device__ uint4 gated_piece(uint4 gate, uint4 up)
{
    return make_uint4(gated_pair(gate.x, up.x), gated_pair(gate.y, up.y),
                      gated_pair(gate.z, up.z), gated_pair(gate.w, up.w));
}

/* A piece is eight values, 16 bytes; a thread takes the same one of some rows, all read before any
 * is used. A row of gate_up is [gate ff | up ff], ff a multiple of 8. */
static __global__ void swiglu_kernel(uint4 *out, const uint4 *gate_up, uint32_t rows,
                                     uint32_t pieces)
{
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    uint32_t blocks = (rows + SWIGLU_ROWS - 1) / SWIGLU_ROWS;
    size_t row = (size_t)(blocks - 1 - blockIdx.x) * SWIGLU_ROWS;
    uint4 gate[SWIGLU_ROWS], up[SWIGLU_ROWS];
    if (i >= pieces)
        return;
#pragma unroll
    for (uint32_t r = 0; r < SWIGLU_ROWS; r++)
        if (row + r < rows) {
            gate[r] = gate_up[(row + r) * 2 * pieces + i];
            up[r] = gate_up[(row + r) * 2 * pieces + pieces + i];
        }
#pragma unroll
    for (uint32_t r = 0; r < SWIGLU_ROWS; r++)
        if (row + r < rows)
            out[(row + r) * pieces + i] = gated_piece(gate[r], up[r]);
}

static void swiglu(struct cuda *c, const struct cuda_batch *b)
{
    uint32_t pieces = b->shape.ff / 8, threads = (pieces + WARP - 1) / WARP * WARP;
    threads = min(threads, (uint32_t)WIDE_THREADS);
    if (b->rows)
        LAUNCH(c, swiglu_kernel,
               dim3((b->rows + SWIGLU_ROWS - 1) / SWIGLU_ROWS, (pieces + threads - 1) / threads),
               dim3(threads), (uint4 *)b->act, (const uint4 *)b->gate_up, b->rows, pieces);
}

/* Sums over a block, in a fixed order. */
static __device__ double block_sum(double value, double *shared)
{
    shared[threadIdx.x] = value;
    __syncthreads();
    for (uint32_t step = WIDE_THREADS / 2; step; step /= 2) {
        if (threadIdx.x < step)
            shared[threadIdx.x] += shared[threadIdx.x + step];
        __syncthreads();
    }
    double sum = shared[0];
    __syncthreads();
    return sum;
}

static __device__ float block_top(float value, float *shared)
{
    shared[threadIdx.x] = value;
    __syncthreads();
    for (uint32_t step = WIDE_THREADS / 2; step; step /= 2) {
        if (threadIdx.x < step)
            shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + step]);
        __syncthreads();
    }
    float top = shared[0];
    __syncthreads();
    return top;
}

static __global__ void nll_kernel(float *out, const float *logits, const int32_t *targets,
                                  uint32_t vocab)
{
    __shared__ double sums[WIDE_THREADS];
    __shared__ float tops[WIDE_THREADS];
    const float *row = logits + (size_t)blockIdx.x * vocab;
    int32_t target = targets[blockIdx.x];
    float top = -INFINITY;
    for (uint32_t i = threadIdx.x; i < vocab; i += WIDE_THREADS)
        top = fmaxf(top, row[i]);
    top = block_top(top, tops);
    double total = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += WIDE_THREADS)
        total += (double)expf(row[i] - top);
    total = block_sum(total, sums);
    if (threadIdx.x == 0)
        out[blockIdx.x] =
            target < 0 ? 0.0f : (float)(log(total) + (double)top - (double)row[target]);
}

static void nll(struct cuda *c, float *out, const float *logits, const int32_t *targets,
                uint32_t rows, uint32_t vocab)
{
    LAUNCH(c, nll_kernel, dim3(rows), dim3(WIDE_THREADS), out, logits, targets, vocab);
}

static __global__ void best_kernel(int32_t *out, const float *logits, uint32_t vocab)
{
    __shared__ float tops[WIDE_THREADS];
    __shared__ uint32_t places[WIDE_THREADS];
    const float *row = logits + (size_t)blockIdx.x * vocab;
    float top = -INFINITY;
    uint32_t place = 0; /* where none is a number: a token all the same */
    for (uint32_t i = threadIdx.x; i < vocab; i += WIDE_THREADS)
        if (row[i] > top) {
            top = row[i];
            place = i;
        }
    tops[threadIdx.x] = top;
    places[threadIdx.x] = place;
    __syncthreads();
    for (uint32_t step = WIDE_THREADS / 2; step; step /= 2) {
        uint32_t a = threadIdx.x, b = a + step;
        if (a < step && (tops[b] > tops[a] || (tops[b] == tops[a] && places[b] < places[a]))) {
            tops[a] = tops[b];
            places[a] = places[b];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        out[blockIdx.x] = (int32_t)places[0];
}

static void best(struct cuda *c, int32_t *out, const float *logits, uint32_t rows, uint32_t vocab)
{
    LAUNCH(c, best_kernel, dim3(rows), dim3(WIDE_THREADS), out, logits, vocab);
}

void cuda_table_norm(struct cuda *c)
{
    c->best = best;
    c->norm = norm;
    c->swiglu = swiglu;
    c->nll = nll;
}
