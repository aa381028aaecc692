/* Rows of activations: RMS norm with the decision heads in it, SwiGLU, and the loss of a token. */
#include "kernels/cuda.cuh"

enum { THREADS = 128, ROWS = THREADS / WARP, WIDE_THREADS = 256 };

struct norm_job {
    bf16 *h;
    float *decide;
    const float *x, *weight, *decide_weight;
    uint32_t rows, dim, columns, from, to;
    float eps;
};

/* A warp a row; two neighbours a lane, so that loads and stores are wide. */
static __global__ void norm_kernel(struct norm_job job)
{
    uint32_t row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
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
    if (row < job.from || row >= job.to)
        return;
    for (uint32_t column = 0; column < job.columns; column++) {
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
    LAUNCH(c, norm_kernel, dim3((b->rows + ROWS - 1) / ROWS), dim3(THREADS), job);
}

static __device__ float gated(float gate, float up)
{
    return gate / (1.0f + __expf(-gate)) * up;
}

static __device__ uint32_t gated_pair(uint32_t gate, uint32_t up)
{
    return bf16_pair(gated(bf16_to_float((bf16)gate), bf16_to_float((bf16)up)),
                     gated(bf16_to_float((bf16)(gate >> 16)), bf16_to_float((bf16)(up >> 16))));
}

/* Eight values a thread, 16 bytes: memory is all that this waits for. A row of gate_up is
 * [gate ff | up ff], ff a multiple of 8. */
static __global__ void swiglu_kernel(uint4 *out, const uint4 *gate_up, uint32_t pieces)
{
    uint32_t i = blockIdx.y * WIDE_THREADS + threadIdx.x;
    size_t row = blockIdx.x;
    if (i >= pieces)
        return;
    uint4 gate = gate_up[row * 2 * pieces + i], up = gate_up[row * 2 * pieces + pieces + i];
    out[row * pieces + i] = make_uint4(gated_pair(gate.x, up.x), gated_pair(gate.y, up.y),
                                       gated_pair(gate.z, up.z), gated_pair(gate.w, up.w));
}

static void swiglu(struct cuda *c, const struct cuda_batch *b)
{
    uint32_t pieces = b->shape.ff / 8;
    if (b->rows)
        LAUNCH(c, swiglu_kernel, dim3(b->rows, (pieces + WIDE_THREADS - 1) / WIDE_THREADS),
               dim3(WIDE_THREADS), (uint4 *)b->act, (const uint4 *)b->gate_up, pieces);
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
    uint32_t place = UINT32_MAX;
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
