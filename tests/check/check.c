/* Runs the checks over the paths of this machine. See check.h. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/check/check.h"

/* With the address sanitizer reads beyond a buffer are seen too. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)   ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

static const struct {
    const char *name;
    check_fn *check, *bench;
} ops[] = {
    {"tensor", check_tensor, bench_tensor}, {"pool", check_pool, bench_pool},
    {"matmul", check_matmul, bench_matmul}, {"norm", check_norm, bench_norm},
    {"swiglu", check_swiglu, bench_swiglu}, {"rope", check_rope, bench_rope},
    {"rotate", check_rotate, NULL},         {"merge", check_merge, bench_merge},
    {"attend", check_attend, bench_attend}, {"fold", check_fold, bench_fold},
    {"pack_f16", check_pack_f16, NULL},     {"int8", check_int8, bench_int8},
    {"nll", check_nll, bench_nll},
};
enum { OPS = sizeof ops / sizeof ops[0] };

/* Each path is asked for by the features that lead to it. */
static const struct {
    const char *name;
    uint32_t features;
} paths[] = {
    {"reference", 0},
    {"avx2", FEATURE_AVX2},
    {"avx-vnni", FEATURE_AVX2 | FEATURE_AVX_VNNI},
    {"avx512-vnni", FEATURE_AVX2 | FEATURE_AVX512 | FEATURE_AVX512_VNNI},
};
enum { PATHS = sizeof paths / sizeof paths[0] };

/* ---- buffers and cases ---- */

enum { GUARD_BYTES = 256, BUFFERS_MAX = 128, GUARD_BYTE = 0xa5, FILL_BYTE = 0xff };

static struct {
    uint8_t *base;
    size_t bytes;
} buffers[BUFFERS_MAX];
static uint32_t buffer_count;

void *case_buffer(struct check *c, size_t bytes)
{
    (void)c;
    size_t padded = (bytes + 63) / 64 * 64;
    uint8_t *base = aligned_alloc(64, padded + 2 * GUARD_BYTES);
    if (!base || buffer_count == BUFFERS_MAX)
        abort();
    memset(base, GUARD_BYTE, padded + 2 * GUARD_BYTES);
    memset(base + GUARD_BYTES, FILL_BYTE, bytes);
    buffers[buffer_count].base = base;
    buffers[buffer_count++].bytes = bytes;
    ASAN_POISON_MEMORY_REGION(base, GUARD_BYTES);
    ASAN_POISON_MEMORY_REGION(base + GUARD_BYTES + bytes, padded - bytes + GUARD_BYTES);
    return base + GUARD_BYTES;
}

float *case_floats(struct check *c, size_t count)
{
    return case_buffer(c, count * sizeof(float));
}

void case_begin(struct check *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->label, sizeof c->label, format, args);
    va_end(args);
    c->failing = false;
}

void case_fail(struct check *c, const char *format, ...)
{
    if (c->failing)
        return;
    c->failing = true;
    va_list args;
    va_start(args, format);
    printf("FAIL %s %s: ", c->one->name, c->label);
    vprintf(format, args);
    printf(" (--seed %llu)\n", (unsigned long long)c->seed);
    va_end(args);
}

void case_end(struct check *c)
{
    for (uint32_t i = 0; i < buffer_count; i++) {
        size_t bytes = buffers[i].bytes, end = (bytes + 63) / 64 * 64 + 2 * GUARD_BYTES;
        ASAN_UNPOISON_MEMORY_REGION(buffers[i].base, end);
        for (size_t at = 0; at < end; at++) {
            bool inside = at >= GUARD_BYTES && at < GUARD_BYTES + bytes;
            if (!inside && buffers[i].base[at] != GUARD_BYTE) {
                case_fail(c, "buffer %u of %zu bytes: written at offset %td", i, bytes,
                          (ptrdiff_t)at - GUARD_BYTES);
                break;
            }
        }
        free(buffers[i].base);
    }
    buffer_count = 0;
    c->passed += !c->failing;
    c->failed += c->failing;
}

void case_near(struct check *c, const char *what, const float *got, const double *want,
               const double *tolerance, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double off = fabs((double)got[i] - want[i]);
        if (!(off <= tolerance[i])) {
            case_fail(c, "%s[%zu] is %.9g, should be %.9g: off by %.3g, %.3g allowed", what, i,
                      (double)got[i], want[i], off, tolerance[i]);
            return;
        }
    }
}

void case_same(struct check *c, const char *what, const void *got, const void *want, size_t bytes)
{
    const uint8_t *a = got, *b = want;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i]) {
            case_fail(c, "%s differs at byte %zu of %zu", what, i, bytes);
            return;
        }
}

/* ---- inputs ---- */

const char *fill_name(enum fill fill)
{
    static const char *const name[] = {"normal", "zero",     "top",  "blocks",
                                       "large",  "denormal", "spike"};
    return name[fill];
}

uint32_t random_u32(struct check *c)
{
    c->state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    uint64_t z = c->state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

float random_uniform(struct check *c, float low, float high)
{
    return low + (high - low) * (float)(random_u32(c) >> 8) * 0x1p-24f;
}

float random_normal(struct check *c)
{
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += random_uniform(c, -0.5f, 0.5f);
    return sum;
}

void fill_floats(struct check *c, float *out, size_t count, enum fill fill)
{
    for (size_t i = 0; i < count; i++) {
        float x = random_normal(c);
        switch (fill) {
        case FILL_ZERO:
            x = 0.0f;
            break;
        case FILL_TOP:
            x = x < 0.0f ? -127.0f : 127.0f;
            break;
        case FILL_BLOCKS:
            x = i / 32 % 2 ? -127.0f : 127.0f;
            break;
        case FILL_LARGE:
            x *= 1e15f;
            break;
        case FILL_DENORMAL:
            x *= 1e-39f;
            break;
        case FILL_SPIKE:
            x = random_u32(c) % 32 == 0 ? x * 1e4f : x * 1e-2f;
            break;
        default:
            break;
        }
        out[i] = x;
    }
}

void fill_halves(struct check *c, f16 *out, size_t count, float scale)
{
    for (size_t i = 0; i < count; i++)
        out[i] = f16_from_f32(random_normal(c) * scale);
}

void fill_rotation(struct check *c, float *out, uint32_t rows, uint32_t head_dim)
{
    for (uint32_t i = 0; i < rows * head_dim; i += 2) {
        float angle = random_uniform(c, -3.2f, 3.2f);
        out[i] = cosf(angle);
        out[i + 1] = sinf(angle);
    }
}

double double_of(f16 h)
{
    int exponent = h >> 10 & 31;
    double mantissa = h & 0x3ff;
    double value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(mantissa + 1024, exponent - 25);
    return h & 0x8000 ? -value : value;
}

/* ---- benchmark ---- */

static clockid_t bench_clock = CLOCK_MONOTONIC;

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(bench_clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void bench_line(const struct kernels *k, const char *what, double seconds, enum bound bound,
                double amount)
{
    static const char *const unit[BOUND_COUNT] = {"", "GMAC/s int8", "GMAC/s fp32", "GB/s"};
    printf("%-12s %u  %-44s %10.2f us", k->name, k->threads, what, seconds * 1e6);
    if (bound != BOUND_NONE) {
        double rate = amount / seconds, limit = limit_of(k, bound);
        printf("  %8.1f %-11s", rate * 1e-9, unit[bound]);
        if (limit > 0.0)
            printf(" %4.0f %%", 100.0 * rate / limit);
    }
    printf("\n");
}

/* ---- main ---- */

static bool wanted(const struct check *c, const char *name)
{
    return !c->filter || strstr(name, c->filter);
}

static void close_tables(struct check *c)
{
    kernels_close(&c->one);
    kernels_close(&c->two);
    kernels_close(&c->five);
}

static int open_tables(struct check *c, uint32_t features)
{
    static const uint32_t threads[] = {1, CHECK_THREADS, CHECK_THREADS_MORE};
    struct kernels **table[] = {&c->one, &c->two, &c->five};
    int error = 0;
    for (int i = 0; i < 3 && !error; i++)
        error = kernels_open(table[i], &(struct kernels_options){DEVICE_CPU, threads[i], features});
    if (error)
        close_tables(c);
    return error;
}

static int run_path(struct check *c, uint32_t path, bool bench)
{
    uint32_t have = kernels_features(), passed = c->passed, failed = c->failed;
    if ((paths[path].features & have) != paths[path].features) {
        printf("%-12s not checked: this machine does not have it\n", paths[path].name);
        return 0;
    }
    if (open_tables(c, paths[path].features) != 0) {
        printf("%-12s could not be opened\n", paths[path].name);
        c->failed++;
        return -1;
    }
    if (strcmp(c->one->name, paths[path].name) != 0) {
        printf("%-12s gave the table %s\n", paths[path].name, c->one->name);
        c->failed++;
    }
    for (uint32_t i = 0; i < OPS; i++) {
        if (!wanted(c, ops[i].name))
            continue;
        c->state = c->seed * 1000003u + i;
        if (!bench)
            ops[i].check(c);
        else if (ops[i].bench)
            ops[i].bench(c);
    }
    if (!bench)
        printf("%-12s %u passed, %u failed\n", paths[path].name, c->passed - passed,
               c->failed - failed);
    close_tables(c);
    return 0;
}

static int usage(void)
{
    printf("check [--list] [--seed N] [--path NAME] [--bench [--cpu-time]] [FILTER]\n"
           "check --device cuda [--short] [--seed N] [--bench] [FILTER]\n"
           "  --cpu-time  for a busy machine: time of the calling thread, good for one thread\n");
    return 2;
}

int main(int argc, char **argv)
{
    struct check c = {.seed = (uint64_t)time(NULL)};
    const char *path = NULL;
    bool bench = false, device = false, small = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) {
            for (uint32_t op = 0; op < OPS; op++)
                printf("%s\n", ops[op].name);
            return 0;
        }
        if (strcmp(argv[i], "--bench") == 0)
            bench = true;
        else if (strcmp(argv[i], "--cpu-time") == 0)
            bench_clock = CLOCK_THREAD_CPUTIME_ID;
        else if (strcmp(argv[i], "--short") == 0)
            small = true;
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc)
            device = strcmp(argv[++i], "cuda") == 0;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            c.seed = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--path") == 0 && i + 1 < argc)
            path = argv[++i];
        else if (argv[i][0] == '-' || c.filter)
            return usage();
        else
            c.filter = argv[i];
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (device)
        return check_device(&c, small, bench);
    if (bench && wanted(&c, "limits"))
        bench_limits();
    if (!bench)
        printf("seed %llu\n", (unsigned long long)c.seed);
    for (uint32_t p = 0; p < PATHS; p++)
        if (!path || strcmp(path, paths[p].name) == 0)
            run_path(&c, p, bench);
    if (bench)
        return 0;
    printf("%u passed, %u failed\n", c.passed, c.failed);
    return c.failed != 0;
}
