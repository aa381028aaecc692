/* See fold_simd.h; this file is compiled for avx2. */
#include "kernels/fold_simd.h"
