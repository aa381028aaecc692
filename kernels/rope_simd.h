/* RoPE, fresh and stored, and the DMC merge, over vectors (see simd.h). */
#include "kernels/simd.h"
#include "kernels/x86.h"

/* Pairs (e, o) turned by pairs (cos, sin): e cos - o sin, o cos + e sin. */
INLINE vec turn(vec x, vec rotation)
{
    return v_fmaddsub(x, v_evens(rotation), v_mul(v_swap(x), v_odds(rotation)));
}

struct rope_job {
    float *x;
    size_t stride;
    const float *rotation;
    uint32_t heads, head_dim;
};

static void rope_rows(void *argument, uint32_t from, uint32_t to)
{
    const struct rope_job *job = argument;
    uint32_t head_dim = job->head_dim;
    for (uint32_t i = from; i < to; i++) {
        const float *rotation = job->rotation + (size_t)i * head_dim;
        for (uint32_t c = 0; c < head_dim; c += LANES) {
            vec_mask mask = mask_first(head_dim - c);
            vec r = v_load_part(rotation + c, mask);
            for (uint32_t h = 0; h < job->heads; h++) {
                float *x = job->x + i * job->stride + (size_t)h * head_dim + c;
                v_store_part(x, turn(v_load_part(x, mask), r), mask);
            }
        }
    }
}

void ISA(rope)(struct kernels *k, float *x, size_t stride, const float *rotation, uint32_t rows,
               uint32_t heads, uint32_t head_dim)
{
    (void)k; /* shorter than a wake-up */
    assert(head_dim % 2 == 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    struct rope_job job = {x, stride, rotation, heads, head_dim};
    rope_rows(&job, 0, rows);
}

void ISA(rotate)(struct kernels *k, f16 *out, const f16 *in, const float *rotation, uint32_t rows,
                 uint32_t head_dim)
{
    (void)k;
    assert(head_dim % 2 == 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    /* A row is whole pairs, so rows need no bounds of their own. */
    size_t count = (size_t)rows * head_dim, c = 0;
    for (; c + LANES <= count; c += LANES)
        v_store_f16(out + c, turn(v_load_f16(in + c), v_load(rotation + c)));
    if (c < count) {
        uint32_t left = (uint32_t)(count - c);
        vec r = v_load_part(rotation + c, mask_first(left));
        v_store_f16_part(out + c, turn(v_load_f16_part(in + c, left), r), left);
    }
}

/* Lanes c.. of one head through all rows: the running sums stay in registers. `importance` and
 * `weight` are o and z after each row. */
INLINE void merge_lanes(const struct merge_job *job, const float *z, uint32_t c, uint32_t head_dim)
{
    uint32_t left = head_dim - c;
    vec_mask mask = mask_first(left);
    vec sum_k = v_load_part(job->sum_k + c, mask), sum_v = v_load_part(job->sum_v + c, mask);
    for (uint32_t i = 0; i < job->rows; i++) {
        size_t at = (size_t)i * head_dim + c;
        vec o = v_set(job->o[i]);
        vec k = v_mul(o, v_load_part(job->k + i * job->stride + c, mask));
        vec v = v_mul(o, v_load_part(job->v + i * job->stride + c, mask));
        sum_k = job->a[i] ? v_add(sum_k, k) : k;
        sum_v = job->a[i] ? v_add(sum_v, v) : v;
        vec key = turn(v_div(sum_k, v_set(z[i])), v_load_part(job->rotation + at, mask));
        vec value = v_div(sum_v, v_set(z[i]));
        if (left >= LANES) {
            v_store_f16(job->k_out + at, key);
            v_store_f16(job->v_out + at, value);
        } else {
            v_store_f16_part(job->k_out + at, key, left);
            v_store_f16_part(job->v_out + at, value, left);
        }
    }
    v_store_part(job->sum_k + c, sum_k, mask);
    v_store_part(job->sum_v + c, sum_v, mask);
}

void ISA(merge)(struct kernels *k, const struct merge_job *jobs, uint32_t count, uint32_t head_dim)
{
    (void)k; /* shorter than a wake-up */
    assert(head_dim % 2 == 0 && head_dim <= KERNELS_HEAD_DIM_MAX);
    for (uint32_t j = 0; j < count; j++) {
        const struct merge_job *job = &jobs[j];
        assert(job->rows <= KERNELS_ROWS_MAX);
        float z[KERNELS_ROWS_MAX], running = *job->z;
        for (uint32_t i = 0; i < job->rows; i++) {
            running = job->a[i] ? running + job->o[i] : job->o[i];
            z[i] = running;
        }
        for (uint32_t c = 0; c < head_dim; c += LANES)
            merge_lanes(job, z, c, head_dim);
        *job->z = running;
    }
}
