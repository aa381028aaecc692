/* Which instruction sets this machine has, and the table of ops that fits them. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/internal.h"
#include "kernels/packed.h"
#include "kernels/x86.h"

enum { THREADS_MAX = 256 };

static const struct {
    uint32_t bit;
    const char *name;
} feature_names[] = {
    {FEATURE_AVX2, "avx2"},
    {FEATURE_AVX_VNNI, "avx-vnni"},
    {FEATURE_AVX512, "avx512"},
    {FEATURE_AVX512_VNNI, "avx512-vnni"},
    {FEATURE_AVX512_BF16, "avx512-bf16"},
    {FEATURE_AMX_INT8, "amx-int8"},
};

#if defined(__x86_64__)
static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

uint32_t kernels_features(void)
{
    enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6, TILE_STATE = 0x60000 };
    uint32_t a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) /* OSXSAVE */
        return 0;
    bool fma = c >> 12 & 1, f16c = c >> 29 & 1;
    uint64_t state = xcr0(); /* what the system saves on a switch */
    uint32_t leaf1 = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if (a >= 1) {
        uint32_t b1, c1, d1;
        __get_cpuid_count(7, 1, &leaf1, &b1, &c1, &d1);
    }
    bool bmi2 = b >> 8 & 1;
    if ((state & YMM_STATE) == YMM_STATE && fma && f16c && bmi2 && (b >> 5 & 1)) {
        features |= FEATURE_AVX2;
        if (leaf1 >> 4 & 1)
            features |= FEATURE_AVX_VNNI;
    }
    bool f_dq_bw_vl = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
    if ((features & FEATURE_AVX2) && (state & ZMM_STATE) == ZMM_STATE && f_dq_bw_vl) {
        features |= FEATURE_AVX512;
        if (c >> 11 & 1)
            features |= FEATURE_AVX512_VNNI;
        if (leaf1 >> 5 & 1)
            features |= FEATURE_AVX512_BF16;
        if ((d >> 24 & 1) && (d >> 25 & 1) && (state & TILE_STATE) == TILE_STATE)
            features |= FEATURE_AMX_INT8;
    }
    return features;
}
#else
uint32_t kernels_features(void)
{
    return 0;
}
#endif

void kernels_feature_names(uint32_t features, char *text, size_t text_bytes)
{
    size_t used = 0;
    assert(text_bytes > 0);
    text[0] = 0;
    for (size_t i = 0; i < sizeof feature_names / sizeof feature_names[0]; i++) {
        if (!(features & feature_names[i].bit))
            continue;
        int count = snprintf(text + used, text_bytes - used, "%s%s", used ? " " : "",
                             feature_names[i].name);
        if (count < 0 || (size_t)count >= text_bytes - used)
            return; /* cut short */
        used += (size_t)count;
    }
}

static void table_reference(struct kernels *k)
{
    k->name = "reference";
    k->weight_bytes = weight_bytes_ref;
    k->weight_pack = weight_pack_ref;
    k->quantize_bytes = quantize_bytes_ref;
    k->quantize = quantize_ref;
    k->norm = norm_ref;
    k->matmul = matmul_ref;
    k->swiglu = swiglu_ref;
    k->rope = rope_ref;
    k->rotate = rotate_ref;
    k->merge = merge_ref;
    k->attend = attend_ref;
    k->fold = fold_ref;
    k->pack_f16 = pack_f16_ref;
    k->pack_int8 = pack_int8_ref;
    k->unpack_int8 = unpack_int8_ref;
    k->nll = nll_ref;
}

#if defined(__x86_64__)
static void table_avx2(struct kernels *k)
{
    k->name = "avx2";
    k->weight_bytes = weight_bytes_packed;
    k->weight_pack = weight_pack_packed;
    k->quantize_bytes = quantize_bytes_packed;
    k->quantize = quantize_avx2;
    k->norm = norm_avx2;
    k->matmul = matmul_avx2;
    k->swiglu = swiglu_avx2;
    k->rope = rope_avx2;
    k->rotate = rotate_avx2;
    k->merge = merge_avx2;
    k->attend = attend_avx2;
    k->fold = fold_avx2;
    k->pack_f16 = pack_f16_avx2;
    k->pack_int8 = pack_int8_avx2;
    k->unpack_int8 = unpack_int8_avx2;
    k->nll = nll_avx2;
}

static void table_avx512(struct kernels *k)
{
    k->name = "avx512-vnni";
    k->quantize = quantize_avx512;
    k->norm = norm_avx512;
    k->matmul = matmul_avx512;
    k->swiglu = swiglu_avx512;
    k->rope = rope_avx512;
    k->rotate = rotate_avx512;
    k->merge = merge_avx512;
    k->attend = attend_avx512;
    k->fold = fold_avx512;
    k->pack_f16 = pack_f16_avx512;
    k->pack_int8 = pack_int8_avx512;
    k->unpack_int8 = unpack_int8_avx512;
    k->nll = nll_avx512;
}

/* Climbs from one instruction set to the next and stops at the first that is missing. */
static void table_x86(struct kernels *k)
{
    const uint32_t avx512 = FEATURE_AVX512 | FEATURE_AVX512_VNNI;
    if (!(k->features & FEATURE_AVX2))
        return;
    table_avx2(k);
    if (k->features & FEATURE_AVX_VNNI) {
        k->name = "avx-vnni";
        k->matmul = matmul_avxvnni;
    }
    if ((k->features & avx512) == avx512)
        table_avx512(k);
}
#endif

static uint32_t threads_usable(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int count = CPU_COUNT(&set);
    return count > 0 ? (uint32_t)count : 1;
}

int kernels_open(struct kernels **out, const struct kernels_options *options)
{
    if (options->device != DEVICE_CPU)
        return -ENOTSUP;
    struct kernels *k = calloc(1, sizeof *k);
    if (!k)
        return -ENOMEM;
    k->features = kernels_features() & options->feature_mask;
    k->threads = options->threads ? options->threads : threads_usable();
    k->threads = min_u32(k->threads, THREADS_MAX);
    table_reference(k);
#if defined(__x86_64__)
    table_x86(k);
#endif
    int error = pool_open(&k->pool, k->threads);
    if (error != 0) {
        free(k);
        return error;
    }
    *out = k;
    return 0;
}

void kernels_close(struct kernels **handle)
{
    struct kernels *k = *handle;
    if (!k)
        return;
    *handle = NULL;
    pool_close(&k->pool);
    free(k);
}
