/*
 * Reference of the DMC merge. A run of tokens shares one entry: the mean of their keys and values
 * weighted by importance, kept as running sums, so that the entry after each token is known.
 */
#include "kernels/internal.h"

static void merge_head(const struct merge_job *job, uint32_t head_dim)
{
    float z = *job->z;
    for (uint32_t i = 0; i < job->rows; i++) {
        const float *k = job->k + i * job->stride, *v = job->v + i * job->stride;
        const float *rotation = job->rotation + (size_t)i * head_dim;
        f16 *k_out = job->k_out + (size_t)i * head_dim, *v_out = job->v_out + (size_t)i * head_dim;
        /* A run that begins reads nothing of the state before it: that may be anything. */
        bool begins = job->a[i] == 0;
        float o = job->o[i];
        z = begins ? o : z + o;
        for (uint32_t c = 0; c < head_dim; c++) {
            job->sum_k[c] = begins ? o * k[c] : job->sum_k[c] + o * k[c];
            job->sum_v[c] = begins ? o * v[c] : job->sum_v[c] + o * v[c];
            v_out[c] = f16_from_f32(job->sum_v[c] / z);
        }
        for (uint32_t c = 0; c < head_dim; c += 2) {
            float even = job->sum_k[c] / z, odd = job->sum_k[c + 1] / z;
            k_out[c] = f16_from_f32(even * rotation[c] - odd * rotation[c + 1]);
            k_out[c + 1] = f16_from_f32(even * rotation[c + 1] + odd * rotation[c]);
        }
    }
    *job->z = z;
}

void merge_ref(struct kernels *k, const struct merge_job *jobs, uint32_t count, uint32_t head_dim)
{
    (void)k;
    assert(head_dim % 2 == 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    for (uint32_t j = 0; j < count; j++)
        merge_head(&jobs[j], head_dim);
}
