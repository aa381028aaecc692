/* A device's losses and best tokens against sums in double. */
#include <math.h>

#include "tests/check/device.h"

static void logits_case(struct on_device *d, uint32_t vocab, uint32_t rows, enum fill fill)
{
    struct check *c = d->c;
    case_begin(c, "nll and best, %u rows of %u, %s", rows, vocab, fill_name(fill));
    float *logits = case_floats(c, (size_t)rows * vocab), *nll = case_floats(c, rows);
    int32_t *target = case_buffer(c, rows * sizeof *target), *best = case_buffer(c, rows * 4);
    double *want = case_buffer(c, rows * sizeof *want), *slack = case_buffer(c, rows * 8);
    fill_floats(c, logits, (size_t)rows * vocab, fill);
    for (uint32_t r = 0; r < rows; r++)
        target[r] = r % 4 == 3 ? -1 : (int32_t)(random_u32(c) % vocab);
    float *in = device_put(d, logits, (size_t)rows * vocab * sizeof *logits);
    float *out = device_put(d, NULL, rows * sizeof *out);
    int32_t *most = device_put(d, NULL, rows * sizeof *most);
    d->cuda->nll(d->cuda, out, in, device_put(d, target, rows * sizeof *target), rows, vocab);
    d->cuda->best(d->cuda, most, in, rows, vocab);
    device_get(d, nll, out, rows * sizeof *nll);
    device_get(d, best, most, rows * sizeof *best);
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = logits + (size_t)r * vocab;
        uint32_t top = 0;
        double sum = 0;
        for (uint32_t i = 1; i < vocab; i++)
            top = row[i] > row[top] ? i : top;
        for (uint32_t i = 0; i < vocab; i++)
            sum += exp((double)row[i] - (double)row[top]);
        want[r] = target[r] < 0 ? 0 : log(sum) + (double)row[top] - (double)row[target[r]];
        slack[r] = (1 + fabs(want[r]) + fabs((double)row[top])) * 64 * EPSILON;
        if (best[r] != (int32_t)top)
            case_fail(c, "best of row %u is %d, not %u", r, best[r], top);
    }
    case_near(c, "nll", nll, want, slack, rows);
    device_end(d);
}

/* Weights may be what no product is a number of. */
static void no_number_case(struct on_device *d)
{
    enum { VOCAB = 300 };
    int32_t best = -1;
    case_begin(d->c, "best of what are no numbers");
    int32_t *most = device_put(d, NULL, sizeof *most);
    d->cuda->best(d->cuda, most, device_put(d, NULL, VOCAB * sizeof(float)), 1, VOCAB);
    device_get(d, &best, most, sizeof best);
    if (best != 0)
        case_fail(d->c, "it is %d, not 0", best);
    device_end(d);
}

void check_device_logits(struct on_device *d)
{
    static const uint32_t vocabs[] = {3, 255, 1000, 49152};
    for (size_t i = 0; i < (d->small ? 3 : 4); i++)
        for (enum fill fill = FILL_NORMAL; fill < FILL_COUNT; fill++)
            if (fill != FILL_LARGE)
                logits_case(d, vocabs[i], 1 + 6 * (fill == FILL_NORMAL), fill);
    no_number_case(d);
}
