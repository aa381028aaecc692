/* rope, rotate and merge. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check/check.h"

/* Two products and a sum, fused or not. */
#define ROPE_ERRORS 3.0
/* Of an f16 result: half a unit of its own, and the fp32 error under it. */
#define HALF_EPSILON 0x1p-11
#define HALF_TINY    0x1p-25

static const uint32_t dims[] = {2, 6, 8, 16, 22, 32, 64, 96, 128, 256};
enum { DIMS = sizeof dims / sizeof dims[0] };

/* out, and the sum of magnitudes for the tolerance */
static void turn_plain(double *out, double *magnitude, const double *in, const float *rotation,
                       uint32_t head_dim)
{
    for (uint32_t i = 0; i < head_dim; i += 2) {
        double e = in[i], o = in[i + 1];
        double cosine = (double)rotation[i], sine = (double)rotation[i + 1];
        out[i] = e * cosine - o * sine;
        out[i + 1] = e * sine + o * cosine;
        magnitude[i] = fabs(e * cosine) + fabs(o * sine);
        magnitude[i + 1] = fabs(e * sine) + fabs(o * cosine);
    }
}

static void rope_case(struct check *c, uint32_t rows, uint32_t heads, uint32_t head_dim,
                      enum fill fill)
{
    enum { GAP = 5 };
    case_begin(c, "rope %u rows %u heads of %u %s", rows, heads, head_dim, fill_name(fill));
    size_t stride = heads * head_dim + GAP, count = rows * stride;
    float *x = case_floats(c, count), *rotation = case_floats(c, rows * head_dim);
    double *want = case_buffer(c, count * sizeof(double));
    double *tolerance = case_buffer(c, count * sizeof(double));
    fill_floats(c, x, count, fill);
    fill_rotation(c, rotation, rows, head_dim);
    for (uint32_t i = 0; i < rows; i++) {
        for (size_t k = 0; k < stride; k++) {
            want[i * stride + k] = (double)x[i * stride + k];
            tolerance[i * stride + k] = 0.0; /* of the gap */
        }
        for (uint32_t h = 0; h < heads; h++) {
            double *head = want + i * stride + h * head_dim, *t = tolerance + (head - want);
            turn_plain(head, t, head, rotation + i * head_dim, head_dim);
            for (uint32_t k = 0; k < head_dim; k++)
                t[k] = ROPE_ERRORS * (t[k] * EPSILON + 0x1p-149);
        }
    }
    float *alone = case_floats(c, count);
    memcpy(alone, x, count * sizeof *x);
    c->one->rope(c->one, x, stride, rotation, rows, heads, head_dim);
    case_near(c, "x", x, want, tolerance, count);
    for (uint32_t i = 0; i < rows; i++)
        c->one->rope(c->one, alone + i * stride, stride, rotation + i * head_dim, 1, heads,
                     head_dim);
    case_same(c, "rows alone", alone, x, count * sizeof *x);
    case_end(c);
}

void check_rope(struct check *c)
{
    for (uint32_t i = 0; i < DIMS; i++)
        rope_case(c, i % 5 * 8 + 1, i % 4 + 1, dims[i], FILL_NORMAL);
    for (enum fill fill = 0; fill < FILL_COUNT; fill++)
        rope_case(c, 3, 12, 64, fill);
}

static void halves_near(struct check *c, const char *what, const f16 *got, const double *want,
                        const double *error, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double off = fabs(double_of(got[i]) - want[i]);
        double allowed = fabs(want[i]) * HALF_EPSILON + HALF_TINY + error[i] * (1 + HALF_EPSILON);
        if (!(off <= allowed)) {
            case_fail(c, "%s[%zu] is %.6g, should be %.9g", what, i, double_of(got[i]), want[i]);
            return;
        }
    }
}

static void rotate_case(struct check *c, uint32_t rows, uint32_t head_dim, float scale)
{
    case_begin(c, "rotate %u rows of %u, scale %g", rows, head_dim, (double)scale);
    size_t count = (size_t)rows * head_dim;
    f16 *in = case_buffer(c, count * 2), *out = case_buffer(c, count * 2);
    f16 *alone = case_buffer(c, head_dim * 2u);
    float *rotation = case_floats(c, count);
    double *want = case_buffer(c, count * sizeof(double));
    double *error = case_buffer(c, count * sizeof(double));
    fill_halves(c, in, count, scale);
    fill_rotation(c, rotation, rows, head_dim);
    for (size_t i = 0; i < count; i++)
        want[i] = double_of(in[i]);
    turn_plain(want, error, want, rotation, (uint32_t)count); /* rows are whole pairs */
    for (size_t i = 0; i < count; i++)
        error[i] *= ROPE_ERRORS * EPSILON;
    c->one->rotate(c->one, out, in, rotation, rows, head_dim);
    halves_near(c, "out", out, want, error, count);
    for (uint32_t i = 0; i < rows; i++) {
        c->one->rotate(c->one, alone, in + i * head_dim, rotation + i * head_dim, 1, head_dim);
        case_same(c, "a row alone", alone, out + i * head_dim, head_dim * 2u);
    }
    case_end(c);
}

void check_rotate(struct check *c)
{
    for (uint32_t i = 0; i < DIMS; i++)
        rotate_case(c, i * 7 % 20 + 1, dims[i], i % 3 == 2 ? 1e-5f : 2.0f);
}

/* Relative error of a running mean of up to `rows` terms. */
#define MERGE_ERRORS(rows) (3.0 * (rows) + 8.0)

struct merge_plain {
    double z, sum_k[256], sum_v[256], size_k[256], size_v[256]; /* sizes: sums of magnitudes */
};

/* Entry i by the definition, into k_want and v_want with their errors. */
static void merge_expect(struct merge_plain *m, const struct merge_job *job, uint32_t i,
                         uint32_t head_dim, double *want[2], double *error[2])
{
    double k[256], v[256], at[256], keep = job->a[i] ? 1.0 : 0.0, o = (double)job->o[i];
    m->z = keep * m->z + o;
    for (uint32_t d = 0; d < head_dim; d++) {
        double key = o * (double)job->k[i * job->stride + d];
        double value = o * (double)job->v[i * job->stride + d];
        m->sum_k[d] = keep * m->sum_k[d] + key;
        m->sum_v[d] = keep * m->sum_v[d] + value;
        m->size_k[d] = keep * m->size_k[d] + fabs(key);
        m->size_v[d] = keep * m->size_v[d] + fabs(value);
        k[d] = m->sum_k[d] / m->z;
        at[d] = m->size_k[d] / m->z;
        v[d] = m->sum_v[d] / m->z;
    }
    size_t row = (size_t)i * head_dim;
    double unused[256], errors = MERGE_ERRORS(job->rows) * EPSILON;
    turn_plain(want[0] + row, unused, k, job->rotation + row, head_dim);
    for (uint32_t d = 0; d < head_dim; d++) {
        error[0][row + d] = errors * (at[d] + at[d ^ 1]);
        want[1][row + d] = v[d];
        error[1][row + d] = errors * m->size_v[d] / m->z;
    }
}

static struct merge_job merge_make(struct check *c, uint32_t rows, uint32_t head_dim,
                                   uint32_t merge_percent)
{
    struct merge_job job = {.stride = head_dim + 3u, .rows = rows};
    float *k = case_floats(c, rows * job.stride), *v = case_floats(c, rows * job.stride);
    float *o = case_floats(c, rows), *rotation = case_floats(c, (size_t)rows * head_dim);
    uint8_t *a = case_buffer(c, rows);
    fill_floats(c, k, rows * job.stride, FILL_NORMAL);
    fill_floats(c, v, rows * job.stride, FILL_NORMAL);
    fill_rotation(c, rotation, rows, head_dim);
    for (uint32_t i = 0; i < rows; i++) {
        o[i] = random_uniform(c, 0x1p-7f, 1.0f);
        a[i] = random_u32(c) % 100 < merge_percent;
    }
    job.k = k, job.v = v, job.o = o, job.rotation = rotation, job.a = a;
    job.z = case_floats(c, 1);
    job.sum_k = case_floats(c, head_dim);
    job.sum_v = case_floats(c, head_dim);
    job.k_out = case_buffer(c, (size_t)rows * head_dim * 2);
    job.v_out = case_buffer(c, (size_t)rows * head_dim * 2);
    return job;
}

/* One token at a time gives the bits that the block gave, state included. */
static void merge_singly(struct check *c, const struct merge_job *block, const float *state,
                         uint32_t head_dim)
{
    struct merge_job job = *block;
    size_t count = (size_t)block->rows * head_dim;
    float *s = case_floats(c, 1 + 2 * head_dim);
    memcpy(s, state, (1 + 2 * head_dim) * sizeof *s);
    job.z = s, job.sum_k = s + 1, job.sum_v = s + 1 + head_dim;
    job.k_out = case_buffer(c, count * 2);
    job.v_out = case_buffer(c, count * 2);
    f16 *k = job.k_out, *v = job.v_out;
    job.rows = 1;
    for (uint32_t i = 0; i < block->rows; i++) {
        c->one->merge(c->one, &job, 1, head_dim);
        job.k += job.stride, job.v += job.stride, job.a++, job.o++;
        job.rotation += head_dim, job.k_out += head_dim, job.v_out += head_dim;
    }
    case_same(c, "k one by one", k, block->k_out, count * 2);
    case_same(c, "v one by one", v, block->v_out, count * 2);
    case_same(c, "z one by one", s, block->z, sizeof *s);
    case_same(c, "sum_k one by one", s + 1, block->sum_k, head_dim * sizeof *s);
    case_same(c, "sum_v one by one", s + 1 + head_dim, block->sum_v, head_dim * sizeof *s);
}

static void merge_case(struct check *c, uint32_t rows, uint32_t head_dim, uint32_t merge_percent)
{
    enum { HEADS = 2 };
    case_begin(c, "merge %u rows of %u, %u %%", rows, head_dim, merge_percent);
    struct merge_job jobs[HEADS];
    float *state[HEADS];
    struct merge_plain plain[HEADS] = {0};
    for (int h = 0; h < HEADS; h++) {
        jobs[h] = merge_make(c, rows, head_dim, merge_percent);
        state[h] = case_floats(c, 1 + 2 * head_dim);
        if (h == 0) /* the first head starts in the middle of a run, the other with garbage */
            for (uint32_t i = 0; i <= 2 * head_dim; i++)
                state[h][i] = i == 0 ? 2.0f : random_normal(c);
        else
            ((uint8_t *)(uintptr_t)jobs[h].a)[0] = 0;
        *jobs[h].z = state[h][0];
        memcpy(jobs[h].sum_k, state[h] + 1, head_dim * sizeof(float));
        memcpy(jobs[h].sum_v, state[h] + 1 + head_dim, head_dim * sizeof(float));
        plain[h].z = h == 0 ? 2.0 : 0.0;
        for (uint32_t d = 0; h == 0 && d < head_dim; d++) {
            plain[h].sum_k[d] = (double)state[h][1 + d];
            plain[h].sum_v[d] = (double)state[h][1 + head_dim + d];
            plain[h].size_k[d] = fabs(plain[h].sum_k[d]);
            plain[h].size_v[d] = fabs(plain[h].sum_v[d]);
        }
    }
    c->one->merge(c->one, jobs, HEADS, head_dim);
    size_t count = (size_t)rows * head_dim;
    for (int h = 0; h < HEADS; h++) {
        double *want[2], *error[2];
        for (int i = 0; i < 2; i++) {
            want[i] = case_buffer(c, count * sizeof(double));
            error[i] = case_buffer(c, count * sizeof(double));
        }
        for (uint32_t i = 0; i < rows; i++)
            merge_expect(&plain[h], &jobs[h], i, head_dim, want, error);
        halves_near(c, "k", jobs[h].k_out, want[0], error[0], count);
        halves_near(c, "v", jobs[h].v_out, want[1], error[1], count);
        merge_singly(c, &jobs[h], state[h], head_dim);
    }
    case_end(c);
}

void check_merge(struct check *c)
{
    for (uint32_t i = 0; i < DIMS; i++)
        merge_case(c, i * 9 % 33 + 1, dims[i], 60);
    merge_case(c, 32, 64, 0);
    merge_case(c, 32, 64, 75);
    merge_case(c, 64, 64, 100);
}

void bench_rope(struct check *c)
{
    enum { ROWS = 32, HEADS = 12, DIM = 64 };
    float *x = case_floats(c, ROWS * HEADS * DIM), *rotation = case_floats(c, ROWS * DIM);
    fill_floats(c, x, ROWS * HEADS * DIM, FILL_NORMAL);
    fill_rotation(c, rotation, ROWS, DIM);
    double seconds;
    BENCH_SECONDS(seconds, c->one->rope(c->one, x, HEADS * DIM, rotation, ROWS, HEADS, DIM));
    bench_line(c->one, "rope 32 rows 12 heads of 64", seconds, BOUND_NONE, 0);
    case_end(c);
}

void bench_merge(struct check *c)
{
    struct merge_job jobs[3];
    for (int i = 0; i < 3; i++) {
        jobs[i] = merge_make(c, 32, 64, 75);
        *jobs[i].z = 1.0f;
        memset(jobs[i].sum_k, 0, 64 * 4);
        memset(jobs[i].sum_v, 0, 64 * 4);
    }
    double seconds;
    BENCH_SECONDS(seconds, c->one->merge(c->one, jobs, 3, 64));
    bench_line(c->one, "merge 32 rows 3 heads of 64", seconds, BOUND_NONE, 0);
    case_end(c);
}
