/* attend: spans, local rows, sliding starts; any number of queries, heads, rows. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check/check.h"

/* A score is off by its dot product's roundings; a weight by that, by e^x and by the sum over rows.
 */
#define SCORE_ERRORS(dims)  (2.0 * (dims) + 4.0)
#define WEIGHT_ERRORS(rows) (4.0 * (rows) + 16.0)

struct shape {
    uint32_t queries, group, head_dim, spans, span_rows;
    bool local, first;
    float size; /* of queries and keys */
};

static void shape_label(struct check *c, const struct shape *s, const char *what)
{
    case_begin(c, "attend %s: %u queries %u heads of %u, %u spans of %u%s%s, size %g", what,
               s->queries, s->group, s->head_dim, s->spans, s->span_rows, s->local ? " local" : "",
               s->first ? " first" : "", (double)s->size);
}

static f16 *halves(struct check *c, size_t count, float scale)
{
    f16 *out = case_buffer(c, count * 2);
    fill_halves(c, out, count, scale);
    return out;
}

static struct attend_job job_make(struct check *c, const struct shape *s)
{
    enum { GAP = 4 };
    size_t width = (size_t)s->group * s->head_dim;
    struct attend_job job = {.stride = width + GAP,
                             .out_stride = width + GAP + 3,
                             .queries = s->queries,
                             .group = s->group,
                             .span_count = s->spans};
    float *q = case_floats(c, s->queries * job.stride);
    for (size_t i = 0; i < s->queries * job.stride; i++)
        q[i] = random_normal(c) * s->size;
    job.q = q;
    job.out = case_floats(c, s->queries * job.out_stride);
    for (uint32_t i = 0; i < s->spans; i++) {
        uint32_t rows = i == 0 ? s->span_rows : s->span_rows * (i + 1) % 97;
        size_t count = (size_t)rows * s->head_dim;
        job.span[i] = (struct attend_span){halves(c, count, s->size), halves(c, count, 1.0f), rows};
    }
    if (s->local) {
        job.k_local = halves(c, (size_t)s->queries * s->head_dim, s->size);
        job.v_local = halves(c, (size_t)s->queries * s->head_dim, 1.0f);
    }
    uint32_t *first = case_buffer(c, s->queries * sizeof *first);
    for (uint32_t i = 0; i < s->queries; i++)
        first[i] = i + random_u32(c) % (s->span_rows + 2);
    job.first = s->first ? first : NULL;
    return job;
}

/* The rows that query i sees, in order; returns their count. */
static uint32_t rows_seen(const struct attend_job *job, uint32_t i, uint32_t head_dim,
                          const f16 **k, const f16 **v)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < job->span_count; s++)
        for (uint32_t r = s == 0 && job->first ? job->first[i] : 0; r < job->span[s].rows; r++) {
            k[count] = job->span[s].k + (size_t)r * head_dim;
            v[count++] = job->span[s].v + (size_t)r * head_dim;
        }
    for (uint32_t r = 0; job->k_local && r <= i; r++) {
        k[count] = job->k_local + (size_t)r * head_dim;
        v[count++] = job->v_local + (size_t)r * head_dim;
    }
    return count;
}

enum { SEEN_MAX = 10000 };

static void expect_head(struct check *c, const struct attend_job *job, uint32_t i, uint32_t g,
                        uint32_t head_dim, float scale)
{
    static const f16 *k[SEEN_MAX], *v[SEEN_MAX];
    static double score[SEEN_MAX];
    double top = -INFINITY, size = 0.0, total = 0.0, want[256] = {0}, tolerance[256] = {0};
    const float *q = job->q + i * job->stride + (size_t)g * head_dim;
    uint32_t count = rows_seen(job, i, head_dim, k, v);
    for (uint32_t r = 0; r < count; r++) {
        double dot = 0.0, magnitude = 0.0;
        for (uint32_t d = 0; d < head_dim; d++) {
            dot += (double)q[d] * double_of(k[r][d]);
            magnitude += fabs((double)q[d] * double_of(k[r][d]));
        }
        score[r] = dot * (double)scale;
        size = fmax(size, magnitude * (double)scale);
        top = fmax(top, score[r]);
    }
    for (uint32_t r = 0; r < count; r++) {
        double p = exp(score[r] - top);
        total += p;
        for (uint32_t d = 0; d < head_dim; d++) {
            want[d] += p * double_of(v[r][d]);
            tolerance[d] += p * fabs(double_of(v[r][d]));
        }
    }
    double errors = (2.0 * SCORE_ERRORS(head_dim) * size + WEIGHT_ERRORS(count)) * EPSILON;
    for (uint32_t d = 0; d < head_dim; d++) {
        want[d] = count ? want[d] / total : 0.0;
        tolerance[d] = count ? tolerance[d] / total * errors : 0.0;
    }
    case_near(c, "out", job->out + i * job->out_stride + (size_t)g * head_dim, want, tolerance,
              head_dim);
}

static float shape_scale(const struct shape *s)
{
    return 1.0f / sqrtf((float)s->head_dim);
}

/* Rows between the outputs stay untouched: they hold the buffer's pattern. */
static void expect_gaps(struct check *c, const struct attend_job *job, uint32_t head_dim)
{
    size_t width = (size_t)job->group * head_dim;
    uint32_t pattern = UINT32_MAX;
    for (uint32_t i = 0; i < job->queries; i++)
        for (size_t at = width; at < job->out_stride; at++)
            case_same(c, "gap", job->out + i * job->out_stride + at, &pattern, 4);
}

static void attend_case(struct check *c, const struct shape *s)
{
    shape_label(c, s, "values");
    struct attend_job job = job_make(c, s);
    float scale = shape_scale(s);
    c->one->attend(c->one, &job, 1, s->head_dim, scale);
    for (uint32_t i = 0; i < s->queries; i++)
        for (uint32_t g = 0; g < s->group; g++)
            expect_head(c, &job, i, g, s->head_dim, scale);
    expect_gaps(c, &job, s->head_dim);

    /* Fewer queries, and two threads over one job or two, give the same bits. */
    size_t row_bytes = (size_t)s->group * s->head_dim * sizeof(float);
    struct attend_job jobs[2] = {job, job};
    for (uint32_t queries = 1; queries < s->queries; queries += 1 + queries / 5) {
        jobs[0].out = case_floats(c, queries * job.out_stride);
        jobs[0].queries = queries;
        c->one->attend(c->one, jobs, 1, s->head_dim, scale);
        for (uint32_t i = 0; i < queries; i++)
            case_same(c, "fewer queries", jobs[0].out + i * job.out_stride,
                      job.out + i * job.out_stride, row_bytes);
    }
    struct kernels *table[2] = {c->two, c->five};
    for (uint32_t n = 0; n < 4; n++) { /* one job or two are shared out where they are long */
        uint32_t count = n % 2 + 1;
        for (uint32_t j = 0; j < count; j++) {
            jobs[j] = job;
            jobs[j].out = case_floats(c, s->queries * job.out_stride);
        }
        table[n / 2]->attend(table[n / 2], jobs, count, s->head_dim, scale);
        for (uint32_t i = 0; i < s->queries * count; i++)
            case_same(c, "more threads", jobs[i % count].out + i / count * job.out_stride,
                      job.out + i / count * job.out_stride, row_bytes);
    }
    case_end(c);
}

/* Jobs of one call that have nothing in common but the size of a head, each as alone. */
static void jobs_case(struct check *c, const struct shape *shapes, uint32_t count)
{
    struct attend_job job[4], alone;
    uint32_t head_dim = shapes[0].head_dim;
    case_begin(c, "attend %u jobs, %u rows at most", count, shapes[0].span_rows);
    for (uint32_t j = 0; j < count; j++)
        job[j] = job_make(c, &shapes[j]);
    struct kernels *table[3] = {c->one, c->two, c->five};
    for (int n = 0; n < 3; n++) {
        for (uint32_t j = 0; j < count; j++)
            job[j].out = case_floats(c, job[j].queries * job[j].out_stride);
        table[n]->attend(table[n], job, count, head_dim, shape_scale(shapes));
        for (uint32_t j = 0; j < count; j++) {
            size_t floats = job[j].queries * job[j].out_stride;
            alone = job[j];
            alone.out = case_floats(c, floats);
            c->one->attend(c->one, &alone, 1, head_dim, shape_scale(shapes));
            case_same(c, "a job alone", alone.out, job[j].out, floats * sizeof(float));
        }
    }
    case_end(c);
}

/* Some queries see rows, those before and behind them none. */
static void unseen_case(struct check *c, uint32_t queries)
{
    enum { DIM = 32, ROWS = 300 };
    struct shape s = {queries, 4, DIM, 1, ROWS, false, true, 1};
    shape_label(c, &s, "some nothing");
    struct attend_job job = job_make(c, &s);
    uint32_t *first = case_buffer(c, queries * sizeof *first);
    for (uint32_t i = 0; i < queries; i++)
        first[i] = i % 3 == 1 ? 7 * i : ROWS + i % 3;
    job.first = first;
    c->one->attend(c->one, &job, 1, DIM, shape_scale(&s));
    for (uint32_t i = 0; i < queries; i++)
        for (uint32_t g = 0; g < s.group; g++)
            expect_head(c, &job, i, g, DIM, shape_scale(&s));
    case_end(c);
}

/* Query i of a block gives the bits of query i alone, with the local rows before it as one more
 * span. */
static void alone_case(struct check *c, const struct shape *s)
{
    shape_label(c, s, "alone");
    struct attend_job job = job_make(c, s), one = job;
    size_t row_bytes = (size_t)s->group * s->head_dim * sizeof(float);
    c->one->attend(c->one, &job, 1, s->head_dim, shape_scale(s));
    one.queries = 1;
    one.span_count++;
    one.out = case_floats(c, job.out_stride);
    for (uint32_t i = 0; i < s->queries; i++) {
        size_t at = (size_t)i * s->head_dim;
        one.q = job.q + i * job.stride;
        one.span[s->spans] = (struct attend_span){job.k_local, job.v_local, i};
        one.k_local = job.k_local + at;
        one.v_local = job.v_local + at;
        one.first = job.first ? job.first + i : NULL;
        c->one->attend(c->one, &one, 1, s->head_dim, shape_scale(s));
        case_same(c, "a query alone", one.out, job.out + i * job.out_stride, row_bytes);
    }
    case_end(c);
}

void check_attend(struct check *c)
{
    static const struct shape shapes[] = {
        /* queries, group, head_dim, spans, rows, local, first, size */
        {1, 1, 64, 1, 1, false, false, 1},    {1, 3, 64, 3, 100, true, false, 1},
        {32, 3, 64, 6, 224, false, false, 1}, {32, 3, 64, 5, 224, true, false, 1},
        {16, 3, 64, 4, 131, true, false, 1},  {7, 3, 64, 2, 33, true, false, 1},
        {32, 3, 64, 1, 300, true, true, 1},   {32, 1, 64, 0, 0, true, false, 1},
        {20, 2, 32, 2, 40, true, true, 1},    {17, 4, 128, 2, 65, true, false, 1},
        {33, 9, 16, 1, 50, true, false, 1},   {64, 7, 8, 3, 20, true, true, 1},
        {5, 1, 2, 1, 31, true, false, 1},     {12, 5, 22, 6, 64, false, false, 1},
        {9, 3, 256, 1, 90, true, false, 1},   {32, 3, 64, 2, 90, true, false, 6},
        {3, 2, 64, 1, 90, false, true, 1},    {4, 3, 64, 1, 70, true, false, 0},
        {32, 3, 64, 2, 128, false, true, 4},  {2, 3, 64, 1, 8192, true, false, 1},
        {1, 3, 64, 4, 700, true, false, 1},   {1, 3, 64, 1, 7000, true, false, 1},
        {5, 4, 32, 2, 600, true, true, 2},    {1, 7, 128, 1, 513, false, true, 1},
        {5, 2, 128, 2, 2500, true, true, 1},  {40, 3, 64, 3, 520, true, true, 3},
        {1, 8, 64, 1, 2300, true, false, 1},  {32, 4, 128, 5, 256, true, false, 1},
        {31, 8, 64, 3, 255, true, true, 1},   {6, 4, 80, 1, 257, true, false, 30},
        {16, 1, 96, 2, 320, true, true, 1},
    };
    /* Threads share the longest job's rows; the others end before it. */
    static const struct shape together[2][4] = {
        {{1, 4, 64, 1, 2600, true, false, 1},
         {2, 1, 64, 3, 700, false, false, 1},
         {1, 2, 64, 2, 40, true, true, 1}},
        {{33, 3, 32, 2, 300, true, false, 1},
         {1, 7, 32, 1, 900, false, true, 1},
         {20, 2, 32, 0, 0, true, false, 1},
         {7, 5, 32, 4, 64, true, true, 1}},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        attend_case(c, &shapes[i]);
        if (shapes[i].local)
            alone_case(c, &shapes[i]);
    }
    jobs_case(c, together[0], 3);
    jobs_case(c, together[1], 4);
    unseen_case(c, 1);
    unseen_case(c, 5);
    unseen_case(c, 20);
    case_begin(c, "attend nothing");
    float q[64] = {1}, out[64] = {1}, zero[64] = {0};
    struct attend_job job = {.q = q, .out = out, .queries = 1, .group = 1};
    c->one->attend(c->one, &job, 1, 64, 1.0f);
    case_same(c, "out", out, zero, sizeof out);
    case_end(c);
}

static void bench_one(struct check *c, struct kernels *k, uint32_t queries, uint32_t rows)
{
    enum { HEADS = 3 };
    struct shape s = {queries, 3, 64, 1, rows, true, false, 1};
    struct attend_job jobs[HEADS];
    for (int i = 0; i < HEADS; i++)
        jobs[i] = job_make(c, &s);
    double seconds;
    BENCH_SECONDS(seconds, k->attend(k, jobs, HEADS, 64, 0.125f));
    char what[80];
    snprintf(what, sizeof what, "attend %u queries 9 heads of 64, %u rows", queries, rows);
    double scores = HEADS * 3.0 * queries * (rows + queries / 2.0);
    bench_line(k, what, seconds, BOUND_FLOAT, scores * 128);
    case_end(c);
}

void bench_attend(struct check *c)
{
    struct kernels *table[2] = {c->one, c->two};
    for (int i = 0; i < 2; i++) {
        bench_one(c, table[i], 32, 700);
        bench_one(c, table[i], 16, 700);
        bench_one(c, table[i], 1, 700);
        bench_one(c, table[i], 1, 4096);
    }
}
