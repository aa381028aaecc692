/*
 * check: each kernel op against what it must give, on every path that the machine has.
 *
 * After dav1d's checkasm: one check_OP a family, random and worst-case inputs from a printed seed,
 * buffers between guard bands, tolerances with names, and the benchmark of an op beside its test.
 * What an op must give is worked out in double precision where that is possible, so that the
 * reference is under test as well.
 */
#ifndef SILT_CHECK_H
#define SILT_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define EPSILON 0x1p-24 /* half a unit in the last place of 1.0f */

/* Rows and pieces that two threads share out evenly leave five with some over. */
enum { CHECK_THREADS = 2, CHECK_THREADS_MORE = 5 };

struct check {
    struct kernels *one, *two, *five; /* the path under test, by its threads */
    uint64_t seed, state;
    const char *filter;
    uint32_t passed, failed;
    bool failing; /* the open case */
    char label[160];
};

typedef void check_fn(struct check *c);
check_fn check_tensor, check_pool, check_matmul, check_norm, check_swiglu, check_rope, check_rotate,
    check_merge, check_attend, check_fold, check_pack_f16, check_int8, check_nll;
check_fn bench_matmul, bench_norm, bench_swiglu, bench_rope, bench_merge, bench_attend, bench_fold,
    bench_int8, bench_nll, bench_pool, bench_tensor;
void bench_limits(void);

/* device.c, device_rows.c: the same of a device's ops (kernels/cuda.h), against what they must
 * give. Small: few sizes, for tools under which all is slow. */
int check_device(struct check *c, bool small, bool bench);

/* ---- cases: a case is everything between begin and end; end frees its buffers ---- */

void case_begin(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void case_end(struct check *c);
/* Marks the case as failed and says why; only the first reason of a case is printed. */
void case_fail(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* 64-byte aligned, between guard bands that case_end looks at; filled with NaN. */
void *case_buffer(struct check *c, size_t bytes);
float *case_floats(struct check *c, size_t count);

/* Fails unless |got - want| <= tolerance for each, and both are finite. */
void case_near(struct check *c, const char *what, const float *got, const double *want,
               const double *tolerance, size_t count);
/* Fails unless the bytes are equal. */
void case_same(struct check *c, const char *what, const void *got, const void *want, size_t bytes);

/* ---- inputs ---- */

enum fill {
    FILL_NORMAL, /* standard normal */
    FILL_ZERO,
    FILL_TOP,    /* +-127: every activation code saturates */
    FILL_BLOCKS, /* the same, of one sign for each 32: sums of products are as large as they get */
    FILL_LARGE,  /* normal * 1e15 */
    FILL_DENORMAL, /* normal * 1e-39 */
    FILL_SPIKE,    /* small but for one in 32 */
    FILL_COUNT
};
const char *fill_name(enum fill fill);

uint32_t random_u32(struct check *c);
float random_uniform(struct check *c, float low, float high);
float random_normal(struct check *c);
void fill_floats(struct check *c, float *out, size_t count, enum fill fill);
void fill_halves(struct check *c, f16 *out, size_t count, float scale);
/* cos, sin pairs of random angles, [rows][head_dim/2][2] */
void fill_rotation(struct check *c, float *out, uint32_t rows, uint32_t head_dim);
double double_of(f16 h);

/* ---- benchmark ---- */

double seconds_now(void);

/* Least seconds a call of `statement` takes, over several batches. */
#define BENCH_SECONDS(result, statement)                                                           \
    do {                                                                                           \
        (result) = 1e9;                                                                            \
        for (int batch_ = 0; batch_ < 5; batch_++) {                                               \
            uint32_t calls_ = 0;                                                                   \
            double from_ = seconds_now(), spent_;                                                  \
            do {                                                                                   \
                statement;                                                                         \
                calls_++;                                                                          \
                spent_ = seconds_now() - from_;                                                    \
            } while (spent_ < 0.01);                                                               \
            if (spent_ / calls_ < (result))                                                        \
                (result) = spent_ / calls_;                                                        \
        }                                                                                          \
    } while (0)

/* What bounds an op: the machine's multiply-adds of a kind, or the bytes that it reads. */
enum bound { BOUND_NONE, BOUND_INT8, BOUND_FLOAT, BOUND_READ, BOUND_COUNT };
/* What this machine does in a second at most with so many threads, on the path's instruction set.
 * Measured at the first call. 0: not known. */
double limit_of(const struct kernels *k, enum bound bound);
/* One line: path, threads, what, microseconds, the rate of `amount` and its share of the limit. */
void bench_line(const struct kernels *k, const char *what, double seconds, enum bound bound,
                double amount);

#endif
