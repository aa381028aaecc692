/* The summary's running mean, f16 and int8 rounding, and the loss of a token, over vectors (see
 * simd.h). */
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

static float row_most(const f16 *row, uint32_t cols)
{
    vec top = v_set(0.0f);
    uint32_t c = 0;
    for (; c + LANES <= cols; c += LANES)
        top = v_max(top, v_abs(v_load_f16(row + c)));
    float most = v_top(top);
    for (; c < cols; c++)
        most = fmaxf(most, fabsf(f16_to_f32(row[c])));
    return most;
}

void ISA(pack_int8)(struct kernels *k, int8_t *out, float *scale, const f16 *in, uint32_t rows,
                    uint32_t cols)
{
    (void)k;
    for (uint32_t i = 0; i < rows; i++, in += cols, out += cols) {
        float most = row_most(in, cols), inverse = most > 0.0f ? 127.0f / most : 0.0f;
        uint32_t c = 0;
        for (; c + KERNELS_BLOCK <= cols; c += KERNELS_BLOCK) {
            vec block[KERNELS_BLOCK / LANES];
            UNROLL
            for (int l = 0; l < KERNELS_BLOCK / LANES; l++)
                block[l] = v_mul(v_load_f16(in + c + l * LANES), v_set(inverse));
            v_store_bytes(out + c, block);
        }
        for (; c < cols; c++)
            out[c] = (int8_t)lrintf(f16_to_f32(in[c]) * inverse);
        scale[i] = most / 127.0f;
    }
}

/* Row by row from the last one, each from a copy, as its own f16 may lie where it is read from. */
void ISA(unpack_int8)(struct kernels *k, f16 *out, const int8_t *in, const float *scale,
                      uint32_t rows, uint32_t cols)
{
    (void)k;
    int8_t row[KERNELS_HEAD_DIM_MAX];
    assert(cols <= KERNELS_HEAD_DIM_MAX);
    for (uint32_t i = rows; i-- > 0;) {
        f16 *to = out + (size_t)i * cols;
        uint32_t c = 0;
        memcpy(row, in + (size_t)i * cols, cols);
        for (; c + LANES <= cols; c += LANES)
            v_store_f16(to + c, v_mul(v_load_bytes(row + c), v_set(scale[i])));
        for (; c < cols; c++)
            to[c] = f16_from_f32((float)row[c] * scale[i]);
    }
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
