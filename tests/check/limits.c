/*
 * What this machine can do at most: dot products a second by instruction set, out of registers, and
 * bytes read a second, by threads. The figures of the benchmark stand beside them.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check/check.h"

enum { LIMIT_THREADS_MAX = 64 };

#if defined(__x86_64__)

/* Twelve chains of one instruction, so that its latency does not show. Written as text, so that
 * this file needs no instruction set of its own. */
#define CHAIN(op, r) op " %%" r "15, %%" r "14, %%" r
#define CHAINS(op, r)                                                                              \
    CHAIN(op, r)                                                                                   \
    "0\n" CHAIN(op, r) "1\n" CHAIN(op, r) "2\n" CHAIN(op, r) "3\n" CHAIN(op, r) "4\n" CHAIN(       \
        op,                                                                                        \
        r) "5\n" CHAIN(op,                                                                         \
                       r) "6\n" CHAIN(op,                                                          \
                                      r) "7\n" CHAIN(op,                                           \
                                                     r) "8\n" CHAIN(op,                            \
                                                                    r) "9\n" CHAIN(op,             \
                                                                                   r) "10"         \
                                                                                      "\n" CHAIN(  \
                                                                                          op,      \
                                                                                          r) "11"  \
                                                                                             "\n"
#define CLOBBERS                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm14", "xmm15"
#define PEAK(name, op, r)                                                                          \
    static void name(void)                                                                         \
    {                                                                                              \
        __asm__ volatile("vpxor %%xmm14, %%xmm14, %%xmm14\n vpxor %%xmm15, %%xmm15, %%xmm15\n"     \
                         "mov $1000, %%ecx\n 1:\n" CHAINS(op, r) "dec %%ecx\n jnz 1b\n vzeroupper" \
                         :                                                                         \
                         :                                                                         \
                         : "ecx", "cc", CLOBBERS);                                                 \
    }
enum { PEAK_OPS = 12 * 1000 };

PEAK(peak_maddubs_256, "vpmaddubsw", "ymm")
PEAK(peak_fma_256, "vfmadd231ps", "ymm")
PEAK(peak_vnni_256, "%{vex%} vpdpbusd", "ymm")
PEAK(peak_fma_512, "vfmadd231ps", "zmm")
PEAK(peak_vnni_512, "vpdpbusd", "zmm")
PEAK(peak_bf16_512, "vdpbf16ps", "zmm")

enum peak { PEAK_MADDUBS, PEAK_VNNI_256, PEAK_VNNI_512, PEAK_BF16, PEAK_FMA_256, PEAK_FMA_512 };
static const struct {
    const char *name;
    uint32_t features;
    void (*run)(void);
    double macs; /* of one instruction */
} peaks[] = {
    [PEAK_MADDUBS] = {"int8  vpmaddubsw 256 (without its adds)", FEATURE_AVX2, peak_maddubs_256,
                      32},
    [PEAK_VNNI_256] = {"int8  vpdpbusd 256", FEATURE_AVX_VNNI, peak_vnni_256, 32},
    [PEAK_VNNI_512] = {"int8  vpdpbusd 512", FEATURE_AVX512_VNNI, peak_vnni_512, 64},
    [PEAK_BF16] = {"bf16  vdpbf16ps 512", FEATURE_AVX512_BF16, peak_bf16_512, 32},
    [PEAK_FMA_256] = {"fp32  fma 256", FEATURE_AVX2, peak_fma_256, 8},
    [PEAK_FMA_512] = {"fp32  fma 512", FEATURE_AVX512, peak_fma_512, 16},
};

struct worker {
    enum peak peak;
    double macs; /* a second */
    pthread_barrier_t *start;
};

static void *worker_run(void *argument)
{
    struct worker *w = argument;
    double seconds;
    pthread_barrier_wait(w->start);
    BENCH_SECONDS(seconds, peaks[w->peak].run());
    w->macs = PEAK_OPS * peaks[w->peak].macs / seconds;
    return NULL;
}

/* Multiply-adds a second of so many threads at once; 0 where the machine cannot. Two threads of one
 * core share its multipliers: then two give no more than one. */
static double peak_macs(enum peak peak, uint32_t threads)
{
    struct worker worker[LIMIT_THREADS_MAX];
    pthread_t thread[LIMIT_THREADS_MAX];
    pthread_barrier_t start;
    double macs = 0.0;
    if (!(kernels_features() & peaks[peak].features) || threads > LIMIT_THREADS_MAX)
        return 0.0;
    pthread_barrier_init(&start, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        worker[i] = (struct worker){peak, 0.0, &start};
        if (pthread_create(&thread[i], NULL, worker_run, &worker[i]) != 0)
            abort();
    }
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        macs += worker[i].macs;
    }
    pthread_barrier_destroy(&start);
    return macs;
}

static void bench_peaks(uint32_t threads)
{
    for (enum peak i = 0; i < sizeof peaks / sizeof peaks[0]; i++) {
        double macs = peak_macs(i, threads);
        if (macs > 0.0)
            printf("limit  %-40s %u thread%s %8.1f GMAC/s\n", peaks[i].name, threads,
                   threads == 1 ? " " : "s", macs * 1e-9);
    }
}

static double path_macs(const struct kernels *k, bool int8)
{
    if (strcmp(k->name, "avx512-vnni") == 0)
        return peak_macs(int8 ? PEAK_VNNI_512 : PEAK_FMA_512, k->threads);
    if (strcmp(k->name, "avx-vnni") == 0)
        return peak_macs(int8 ? PEAK_VNNI_256 : PEAK_FMA_256, k->threads);
    if (strcmp(k->name, "avx2") == 0)
        return peak_macs(int8 ? PEAK_MADDUBS : PEAK_FMA_256, k->threads);
    return 0.0;
}

#else
static void bench_peaks(uint32_t threads)
{
    (void)threads;
}
static double path_macs(const struct kernels *k, bool int8)
{
    (void)k;
    (void)int8;
    return 0.0;
}
#endif

struct reader {
    const uint64_t *from;
    size_t words;
    double seconds;
    uint64_t sum;
    pthread_barrier_t *start;
};

static void *reader_run(void *argument)
{
    struct reader *r = argument;
    uint64_t sum[8] = {0};
    pthread_barrier_wait(r->start);
    double from = seconds_now();
    for (size_t i = 0; i + 8 <= r->words; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += r->from[i + (size_t)j];
    r->seconds = seconds_now() - from;
    for (int j = 0; j < 8; j++)
        r->sum += sum[j];
    return NULL;
}

/* Bytes a second that so many threads read from memory. */
static double read_bytes(uint32_t threads)
{
    enum { BYTES = 256 << 20 };
    struct reader reader[LIMIT_THREADS_MAX];
    pthread_t thread[LIMIT_THREADS_MAX];
    pthread_barrier_t start;
    uint64_t *memory = malloc(BYTES);
    if (!memory || threads > LIMIT_THREADS_MAX) {
        free(memory);
        return 0.0;
    }
    memset(memory, 1, BYTES);
    double best = 0.0;
    for (int turn = 0; turn < 5; turn++) {
        double longest = 0.0;
        pthread_barrier_init(&start, NULL, threads);
        for (uint32_t i = 0; i < threads; i++) {
            size_t words = BYTES / 8 / threads;
            reader[i] = (struct reader){memory + i * words, words, 0.0, 0, &start};
            if (pthread_create(&thread[i], NULL, reader_run, &reader[i]) != 0)
                abort();
        }
        for (uint32_t i = 0; i < threads; i++) {
            pthread_join(thread[i], NULL);
            longest = reader[i].seconds > longest ? reader[i].seconds : longest;
        }
        pthread_barrier_destroy(&start);
        best = BYTES / longest > best ? BYTES / longest : best;
    }
    free(memory);
    return best;
}

double limit_of(const struct kernels *k, enum bound bound)
{
    static struct {
        const char *path;
        double limit[BOUND_COUNT];
    } known[CHECK_THREADS + 1]; /* by threads */
    if (k->threads > CHECK_THREADS)
        return 0.0;
    if (known[k->threads].path != k->name) {
        double *limit = known[k->threads].limit;
        known[k->threads].path = k->name;
        limit[BOUND_INT8] = path_macs(k, true);
        limit[BOUND_FLOAT] = path_macs(k, false);
        limit[BOUND_READ] = read_bytes(k->threads);
    }
    return known[k->threads].limit[bound];
}

void bench_limits(void)
{
    char names[128];
    kernels_feature_names(kernels_features(), names, sizeof names);
    printf("limit  this machine has: %s\n", names[0] ? names : "no vector instructions we use");
    cpu_set_t usable;
    CPU_ZERO(&usable);
    uint32_t cores = 1;
    if (sched_getaffinity(0, sizeof usable, &usable) == 0)
        cores = (uint32_t)CPU_COUNT(&usable);
    for (uint32_t threads = 1; threads <= cores && threads <= 8; threads *= 2)
        bench_peaks(threads);
    for (uint32_t threads = 1; threads <= cores && threads <= 8; threads *= 2)
        printf("limit  %-40s %u thread%s %8.1f GB/s\n", "read from memory", threads,
               threads == 1 ? " " : "s", read_bytes(threads) * 1e-9);
}
