/* The x86 versions of each op, by instruction set. */
#ifndef SILT_KERNELS_X86_H
#define SILT_KERNELS_X86_H

#include "kernels/kernels.h"

/* AVX2, FMA, F16C, BMI2 */
quantize_fn quantize_avx2;
norm_fn norm_avx2;
matmul_fn matmul_avx2;
swiglu_fn swiglu_avx2;
rope_fn rope_avx2;
rotate_fn rotate_avx2;
merge_fn merge_avx2;
attend_fn attend_avx2;
fold_fn fold_avx2;
pack_f16_fn pack_f16_avx2;
pack_int8_fn pack_int8_avx2;
unpack_int8_fn unpack_int8_avx2;
nll_fn nll_avx2;

/* the same with 256-bit vpdpbusd */
matmul_fn matmul_avxvnni;

/* AVX-512 F, BW, DQ, VL and VNNI */
quantize_fn quantize_avx512;
norm_fn norm_avx512;
matmul_fn matmul_avx512;
swiglu_fn swiglu_avx512;
rope_fn rope_avx512;
rotate_fn rotate_avx512;
merge_fn merge_avx512;
attend_fn attend_avx512;
fold_fn fold_avx512;
pack_f16_fn pack_f16_avx512;
pack_int8_fn pack_int8_avx512;
unpack_int8_fn unpack_int8_avx512;
nll_fn nll_avx512;

#endif
