/*
 * One vector of floats, as wide as the file that includes this is compiled for: 16 lanes with
 * AVX-512, 8 with AVX2. The ops that only move and scale floats are written once over it
 * (OP_simd.h) and compiled for each width (OP_avx2.c, OP_avx512.c).
 *
 * Partial vectors take a lane count; lanes past it read as zero and are not written.
 */
#ifndef SILT_KERNELS_SIMD_H
#define SILT_KERNELS_SIMD_H

#include <immintrin.h>

#include "kernels/internal.h"

/* Loops over arrays of registers must vanish, or the arrays go to memory. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

enum { LANES = 16 };
typedef __m512 vec;
typedef __mmask16 vec_mask; /* a bit a lane */

#define ISA(name) name##_avx512

INLINE vec_mask mask_first(uint32_t count)
{
    return (vec_mask)(count >= LANES ? 0xffffu : (1u << count) - 1);
}
INLINE vec_mask mask_bits(uint32_t bits)
{
    return (vec_mask)bits;
}
INLINE vec v_set(float f)
{
    return _mm512_set1_ps(f);
}
INLINE vec v_load(const float *from)
{
    return _mm512_loadu_ps(from);
}
INLINE vec v_load_part(const float *from, vec_mask mask)
{
    return _mm512_maskz_loadu_ps(mask, from);
}
INLINE void v_store(float *to, vec a)
{
    _mm512_storeu_ps(to, a);
}
INLINE void v_store_part(float *to, vec a, vec_mask mask)
{
    _mm512_mask_storeu_ps(to, mask, a);
}
INLINE vec v_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
INLINE vec v_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vec v_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vec v_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}
INLINE vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vec v_abs(vec a)
{
    return _mm512_abs_ps(a);
}
/* a where the mask has a bit, else b */
INLINE vec v_select(vec_mask mask, vec a, vec b)
{
    return _mm512_mask_blend_ps(mask, b, a);
}
INLINE bool v_equal(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ) == 0;
}
INLINE vec_mask v_is_zero(vec a)
{
    return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_EQ_OQ);
}
INLINE float v_sum(vec a)
{
    return _mm512_reduce_add_ps(a);
}
INLINE float v_top(vec a)
{
    return _mm512_reduce_max_ps(a);
}
INLINE vec v_load_f16(const f16 *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}
INLINE void v_store_f16(f16 *to, vec a)
{
    __m256i half = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((__m256i *)(void *)to, half);
}
/* Pairs of lanes: (a0 a0 a2 a2 …), (a1 a1 a3 a3 …), (a1 a0 a3 a2 …); even lanes a b - c, odd
 * a b + c. */
INLINE vec v_evens(vec a)
{
    return _mm512_moveldup_ps(a);
}
INLINE vec v_odds(vec a)
{
    return _mm512_movehdup_ps(a);
}
INLINE vec v_swap(vec a)
{
    return _mm512_permute_ps(a, 0xb1);
}
INLINE vec v_fmaddsub(vec a, vec b, vec c)
{
    return _mm512_fmaddsub_ps(a, b, c);
}
/* 2^n * p, n whole */
INLINE vec v_scale2(vec p, vec n)
{
    return _mm512_scalef_ps(p, n);
}
INLINE vec v_round(vec a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* A block of numbers of magnitude up to 127 to the nearest bytes; returns their sum. */
INLINE int32_t v_store_bytes(int8_t *to, const vec a[KERNELS_BLOCK / LANES])
{
    __m512i low = _mm512_cvtps_epi32(a[0]), high = _mm512_cvtps_epi32(a[1]);
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128((__m128i *)(void *)(to + 16), _mm512_cvtepi32_epi8(high));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
}

INLINE vec v_load_bytes(const int8_t *from)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)from);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

/* Rows become columns. */
INLINE void v_transpose(vec a[LANES])
{
    __m512 t[LANES];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        a[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        a[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        a[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        a[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

#else

enum { LANES = 8 };
typedef __m256 vec;
typedef __m256i vec_mask; /* all ones in a lane */

#define ISA(name) name##_avx2

INLINE vec_mask mask_first(uint32_t count)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)min_u32(count, LANES)), lane);
}
INLINE vec_mask mask_bits(uint32_t bits)
{
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);
}
INLINE vec v_set(float f)
{
    return _mm256_set1_ps(f);
}
INLINE vec v_load(const float *from)
{
    return _mm256_loadu_ps(from);
}
INLINE vec v_load_part(const float *from, vec_mask mask)
{
    return _mm256_maskload_ps(from, mask);
}
INLINE void v_store(float *to, vec a)
{
    _mm256_storeu_ps(to, a);
}
INLINE void v_store_part(float *to, vec a, vec_mask mask)
{
    _mm256_maskstore_ps(to, mask, a);
}
INLINE vec v_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
INLINE vec v_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vec v_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vec v_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}
INLINE vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vec v_abs(vec a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
INLINE vec v_select(vec_mask mask, vec a, vec b)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask));
}
INLINE bool v_equal(vec a, vec b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)) == 0;
}
INLINE vec_mask v_is_zero(vec a)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_EQ_OQ));
}
INLINE float v_sum(vec a)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float v_top(vec a)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE vec v_load_f16(const f16 *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}
INLINE void v_store_f16(f16 *to, vec a)
{
    __m128i half = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128((__m128i *)(void *)to, half);
}
INLINE vec v_evens(vec a)
{
    return _mm256_moveldup_ps(a);
}
INLINE vec v_odds(vec a)
{
    return _mm256_movehdup_ps(a);
}
INLINE vec v_swap(vec a)
{
    return _mm256_permute_ps(a, 0xb1);
}
INLINE vec v_fmaddsub(vec a, vec b, vec c)
{
    return _mm256_fmaddsub_ps(a, b, c);
}
/* In two steps, so that a power under the least normal number still comes out right. */
INLINE vec v_scale2(vec p, vec n)
{
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i whole = _mm256_cvtps_epi32(n);
    __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}
INLINE vec v_round(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE int32_t v_store_bytes(int8_t *to, const vec a[KERNELS_BLOCK / LANES])
{
    /* Packing works within halves of a register: dwords 0 4 1 5 2 6 3 7 of the bytes come out. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i w0 = _mm256_packs_epi32(_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1]));
    __m256i w1 = _mm256_packs_epi32(_mm256_cvtps_epi32(a[2]), _mm256_cvtps_epi32(a[3]));
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(w0, w1), order);
    _mm256_storeu_si256((__m256i *)(void *)to, bytes);
    __m256i eight = _mm256_madd_epi16(_mm256_add_epi16(w0, w1), _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
INLINE vec v_load_bytes(const int8_t *from)
{
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)from);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
INLINE void v_transpose(vec a[LANES])
{
    __m256 t[LANES];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
    }
    UNROLL
    for (int i = 0; i < 8; i++)
        a[i] = t[i];
}

#endif

/*
 * e^x within 1.5 units in the last place: x = n ln 2 + r, e^r by a polynomial fitted for the least
 * relative error on |r| <= ln 2 / 2. e^0 is 1 exactly; under -104 it is 0.
 */
INLINE vec v_exp_low(vec x) /* x <= 88 */
{
    x = v_max(v_set(-105.0f), x); /* keeps n in range; and NaN, as the second operand does */
    vec n = v_round(v_mul(x, v_set(0x1.715476p+0f)));
    vec r = v_fma(n, v_set(-0x1.62e4p-1f), x);
    r = v_fma(n, v_set(-0x1.7f7d1cp-20f), r);
    vec p = v_set(0x1.6a25b6p-10f);
    p = v_fma(p, r, v_set(0x1.1239dep-7f));
    p = v_fma(p, r, v_set(0x1.5558fp-5f));
    p = v_fma(p, r, v_set(0x1.555492p-3f));
    p = v_fma(p, r, v_set(0x1.fffffcp-2f));
    p = v_fma(v_mul(p, r), r, r);
    return v_scale2(v_add(p, v_set(1.0f)), n);
}
/* The same for any x; over 88.7 it is infinite. */
INLINE vec v_exp(vec x)
{
    return v_exp_low(v_sub(v_set(0.0f), v_max(v_set(-89.5f), v_sub(v_set(0.0f), x))));
}

/* f16 of part of a vector, by way of memory */
INLINE vec v_load_f16_part(const f16 *from, uint32_t count)
{
    f16 some[LANES] = {0};
    memcpy(some, from, (size_t)min_u32(count, LANES) * sizeof *some);
    return v_load_f16(some);
}
INLINE void v_store_f16_part(f16 *to, vec a, uint32_t count)
{
    f16 some[LANES];
    v_store_f16(some, a);
    memcpy(to, some, (size_t)min_u32(count, LANES) * sizeof *some);
}

#endif
