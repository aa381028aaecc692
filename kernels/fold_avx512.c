/* See fold_simd.h; this file is compiled for avx512. */
#include "kernels/fold_simd.h"
