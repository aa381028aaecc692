/* See rope_simd.h; this file is compiled for avx512. */
#include "kernels/rope_simd.h"
