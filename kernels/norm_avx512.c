/* See norm_simd.h; this file is compiled for avx512. */
#include "kernels/norm_simd.h"
