/* The summary's running mean, f16 rounding, and the loss of a token, over vectors (see simd.h). */
#include <math.h>

#include "kernels/simd.h"
#include "kernels/x86.h"

void ISA(fold)(struct kernels *k, float *summary, const f16 *segment, size_t count, float alpha)
{
    (void)k;
    vec keep = v_set(1.0f - alpha), share = v_set(alpha);
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec kept = v_mul(keep, v_load(summary + i));
        v_store(summary + i, v_add(kept, v_mul(share, v_load_f16(segment + i))));
    }
    for (; i < count; i++)
        summary[i] = (1.0f - alpha) * summary[i] + alpha * f16_to_f32(segment[i]);
}

void ISA(pack_f16)(struct kernels *k, f16 *out, const float *in, size_t count)
{
    (void)k;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        v_store_f16(out + i, v_load(in + i));
    for (; i < count; i++)
        out[i] = f16_from_f32(in[i]);
}

struct nll_job {
    float *out;
    const float *logits; /* [rows][vocab] */
    const int32_t *targets;
    uint32_t vocab;
};

static float row_top(const float *row, uint32_t vocab)
{
    vec top = v_set(row[0]);
    uint32_t c = 0;
    for (; c + LANES <= vocab; c += LANES)
        top = v_max(top, v_load(row + c));
    float most = v_top(top);
    for (; c < vocab; c++)
        most = row[c] > most ? row[c] : most;
    return most;
}

/* Short sums in fp32, their sum in double. */
static double row_total(const float *row, uint32_t vocab, float top)
{
    enum { SHORT = 64 * LANES };
    double total = 0.0;
    for (uint32_t from = 0; from < vocab; from += SHORT) {
        uint32_t to = min_u32(from + SHORT, vocab), c = from;
        vec sum = v_set(0.0f);
        for (; c + LANES <= to; c += LANES)
            sum = v_add(sum, v_exp(v_sub(v_load(row + c), v_set(top))));
        total += (double)v_sum(sum);
        for (; c < to; c++)
            total += (double)expf(row[c] - top);
    }
    return total;
}

static void nll_rows(void *argument, uint32_t from, uint32_t to)
{
    const struct nll_job *job = argument;
    for (uint32_t i = from; i < to; i++) {
        const float *row = job->logits + (size_t)i * job->vocab;
        assert(job->targets[i] >= 0 && (uint32_t)job->targets[i] < job->vocab);
        float top = row_top(row, job->vocab);
        double total = row_total(row, job->vocab, top);
        job->out[i] = (float)(log(total) + (double)top - (double)row[job->targets[i]]);
    }
}

void ISA(nll)(struct kernels *k, float *out, const float *logits, const int32_t *targets,
              uint32_t rows, uint32_t vocab)
{
    struct nll_job job = {out, logits, targets, vocab};
    pool_ranges(k->pool, nll_rows, &job, rows, 1);
}
