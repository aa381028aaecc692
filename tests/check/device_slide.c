/* Where a chunk's end puts the summary on a device: its mean, or what a map makes of it. */
#include <math.h>

#include "tests/check/device.h"

enum { HEADS = 3, SINKS = 2, RING = 2, VALUES = 2 /* key, value */ };

struct slide_case {
    uint32_t dim, comp, fixed_rows;
    bool maps;
    float *summary;   /* [HEADS][comp][2][dim] */
    float *map, *add; /* [HEADS][2][in][out], [HEADS][2][dim] */
    float *rotation;  /* [comp | SINKS | comp][dim] */
    f16 *sinks;       /* [HEADS][SINKS][dim] */
};

static void fill_case(struct check *c, struct slide_case *s)
{
    size_t dim = s->dim, slots = (size_t)HEADS * s->comp * VALUES * dim;
    size_t square = (size_t)HEADS * VALUES * dim * dim, rows = 2 * s->comp + SINKS;
    s->fixed_rows = s->comp + SINKS + RING * s->comp;
    s->summary = case_floats(c, slots);
    s->map = case_floats(c, square);
    s->add = case_floats(c, HEADS * VALUES * dim);
    s->rotation = case_floats(c, rows * dim);
    s->sinks = case_buffer(c, HEADS * SINKS * dim * sizeof *s->sinks);
    fill_floats(c, s->summary, slots, FILL_NORMAL);
    fill_floats(c, s->add, HEADS * VALUES * dim, FILL_NORMAL);
    fill_rotation(c, s->rotation, (uint32_t)rows, s->dim);
    fill_halves(c, s->sinks, HEADS * SINKS * dim, 1);
    for (size_t i = 0; i < square; i++)
        s->map[i] = random_normal(c) / sqrtf((float)dim);
}

/* On the device, with nothing that leaves or joins; fixed [2][HEADS][fixed_rows][dim] comes back.
 */
static void slide_alone(struct on_device *d, const struct slide_case *s, f16 *fixed)
{
    size_t dim = s->dim, slots = (size_t)HEADS * s->comp * VALUES * dim;
    size_t rows = (size_t)HEADS * s->fixed_rows * dim;
    uint32_t counts[HEADS] = {0};
    uint64_t digest = 0;
    struct cuda_slide slide = {
        .comp = s->comp, .sinks = SINKS, .fixed_rows = s->fixed_rows, .places_summary = true};
    f16 *to = device_put(d, NULL, 2 * rows * sizeof *to);
    slide.fixed_k = to;
    slide.fixed_v = to + rows;
    slide.sink_k = device_put(d, s->sinks, HEADS * SINKS * dim * sizeof *s->sinks);
    slide.summary = device_put(d, s->summary, slots * sizeof *s->summary);
    slide.rotation = device_put(d, s->rotation, (2 * s->comp + SINKS) * dim * sizeof *s->rotation);
    slide.window_row = slide.open_count = slide.next_count = device_put(d, counts, sizeof counts);
    slide.digest = device_put(d, &digest, sizeof digest);
    if (s->maps) {
        slide.map = device_put(d, s->map, HEADS * VALUES * dim * dim * sizeof *s->map);
        slide.map_bias = device_put(d, s->add, HEADS * VALUES * dim * sizeof *s->add);
    }
    d->cuda->slide(d->cuda, device_put(d, &slide, sizeof slide), 1, HEADS, s->dim);
    device_get(d, fixed, to, 2 * rows * sizeof *fixed);
}

/* What is seen of a slot, and how far fp32 sums may be off. */
static double seen(const struct slide_case *s, uint32_t head, uint32_t slot, uint32_t value,
                   uint32_t col, double *slack)
{
    size_t dim = s->dim, part = head * VALUES + value;
    const float *x = s->summary + (((size_t)head * s->comp + slot) * VALUES + value) * dim;
    double sum = (double)x[col], terms = 0;
    *slack = 0;
    if (!s->maps)
        return sum;
    sum += (double)s->add[part * dim + col];
    for (size_t i = 0; i < dim; i++) {
        double term = (double)s->map[(part * dim + i) * dim + col] * (double)x[i];
        sum += term;
        terms += fabs(term);
    }
    *slack = (terms + fabs(sum) + 8) * (double)dim * EPSILON;
    return sum;
}

static void near(struct check *c, const char *what, f16 got, double want, double slack)
{
    if (!(fabs(double_of(got) - want) <= slack))
        case_fail(c, "%s is %g, not %g", what, double_of(got), want);
}

/* Keys are rounded before and after they are turned. */
static void check_slot(struct check *c, const struct slide_case *s, const f16 *fixed, uint32_t head,
                       uint32_t slot)
{
    const double half = 0x1p-11;
    const float *turn = s->rotation + (size_t)(s->comp + SINKS + slot) * s->dim;
    const f16 *key = fixed + ((size_t)head * s->fixed_rows + slot) * s->dim;
    const f16 *value = key + (size_t)HEADS * s->fixed_rows * s->dim;
    for (uint32_t i = 0; i < s->dim; i += 2) {
        double cosine = (double)turn[i], sine = (double)turn[i + 1], k[2], slack[2];
        for (uint32_t n = 0; n < 2; n++) {
            double off, v = seen(s, head, slot, 1, i + n, &off);
            near(c, "value", value[i + n], v, half * fabs(v) + off + 1e-7);
            k[n] = seen(s, head, slot, 0, i + n, &slack[n]);
        }
        double most = (fabs(k[0]) + fabs(k[1])) * (half + 4 * EPSILON) + slack[0] + slack[1];
        double even = k[0] * cosine - k[1] * sine, odd = k[0] * sine + k[1] * cosine;
        near(c, "key", key[i], even, most + half * fabs(even) + 1e-7);
        near(c, "key", key[i + 1], odd, most + half * fabs(odd) + 1e-7);
    }
}

static void slide_case(struct on_device *d, uint32_t dim, uint32_t comp, bool maps)
{
    struct check *c = d->c;
    struct slide_case s = {.dim = dim, .comp = comp, .maps = maps};
    const uint16_t untouched = 0xffff; /* as device_put fills */
    case_begin(c, "slide, %u slots of %u%s", comp, dim, maps ? ", mapped" : "");
    fill_case(c, &s);
    size_t rows = (size_t)HEADS * s.fixed_rows * dim;
    f16 *fixed = case_buffer(c, 2 * rows * sizeof *fixed);
    slide_alone(d, &s, fixed);
    for (uint32_t head = 0; head < HEADS; head++) {
        for (uint32_t slot = 0; slot < comp; slot++)
            check_slot(c, &s, fixed, head, slot);
        for (size_t i = (size_t)(comp + SINKS) * dim; i < (size_t)s.fixed_rows * dim; i++) {
            size_t at = head * (size_t)s.fixed_rows * dim + i;
            if (fixed[at] != untouched || fixed[rows + at] != untouched)
                case_fail(c, "a row of the ring is not what it was");
        }
    }
    device_end(d);
}

void check_device_slide(struct on_device *d)
{
    static const uint32_t dims[] = {32, 64, 128, 2, 96, 256}, comps[] = {16, 1, 6, 32};
    for (size_t i = 0; i < (d->small ? 4 : 6); i++)
        for (size_t n = 0; n < sizeof comps / sizeof *comps; n++)
            for (int maps = 0; maps < 2; maps++)
                slide_case(d, dims[i], comps[n], maps);
}
