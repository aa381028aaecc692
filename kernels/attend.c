/*
 * Reference of attention. For each query and head: the largest score over all visible rows, then
 * the sum of exp(score - largest) and of the values weighted by it. Scores are computed twice, so
 * that nothing has to be stored.
 */
#include <math.h>

#include "kernels/internal.h"

struct row_sum {
    float top, total;
    float out[KERNELS_HEAD_DIM_MAX];
};

static float row_score(const float *q, const f16 *k, uint32_t head_dim, float scale)
{
    float dot = 0.0f;
    for (uint32_t c = 0; c < head_dim; c++)
        dot += q[c] * f16_to_f32(k[c]);
    return dot * scale;
}

/* One row of keys and values: finds the top on the first pass (v NULL), adds up on the second. */
static void row_visit(struct row_sum *sum, const float *q, const f16 *k, const f16 *v,
                      uint32_t head_dim, float scale)
{
    float score = row_score(q, k, head_dim, scale);
    if (!v) {
        sum->top = score > sum->top ? score : sum->top;
        return;
    }
    float p = expf(score - sum->top);
    sum->total += p;
    for (uint32_t c = 0; c < head_dim; c++)
        sum->out[c] += p * f16_to_f32(v[c]);
}

static void rows_visit(struct row_sum *sum, const struct attend_job *job, const float *q,
                       uint32_t query, bool values, uint32_t head_dim, float scale)
{
    for (uint32_t s = 0; s < job->span_count; s++) {
        const struct attend_span *span = &job->span[s];
        uint32_t first = s == 0 && job->first ? job->first[query] : 0;
        for (uint32_t r = first; r < span->rows; r++) {
            size_t at = (size_t)r * head_dim;
            row_visit(sum, q, span->k + at, values ? span->v + at : NULL, head_dim, scale);
        }
    }
    for (uint32_t r = 0; job->k_local && r <= query; r++) {
        size_t at = (size_t)r * head_dim;
        row_visit(sum, q, job->k_local + at, values ? job->v_local + at : NULL, head_dim, scale);
    }
}

struct attend_all {
    const struct attend_job *jobs;
    uint32_t head_dim;
    float scale;
};

static void attend_range(void *argument, uint32_t from, uint32_t to)
{
    const struct attend_all *all = argument;
    for (uint32_t j = from; j < to; j++) {
        const struct attend_job *job = &all->jobs[j];
        for (uint32_t i = 0; i < job->queries; i++)
            for (uint32_t g = 0; g < job->group; g++) {
                size_t at = i * job->stride + (size_t)g * all->head_dim;
                float *out = job->out + i * job->out_stride + (size_t)g * all->head_dim;
                struct row_sum sum = {.top = -INFINITY};
                rows_visit(&sum, job, job->q + at, i, false, all->head_dim, all->scale);
                rows_visit(&sum, job, job->q + at, i, true, all->head_dim, all->scale);
                for (uint32_t c = 0; c < all->head_dim; c++)
                    out[c] = sum.total > 0.0f ? sum.out[c] / sum.total : 0.0f;
            }
    }
}

void attend_ref(struct kernels *k, const struct attend_job *jobs, uint32_t count, uint32_t head_dim,
                float scale)
{
    assert(head_dim <= KERNELS_HEAD_DIM_MAX);
    struct attend_all all = {jobs, head_dim, scale};
    pool_ranges(k->pool, attend_range, &all, count, 1);
}
