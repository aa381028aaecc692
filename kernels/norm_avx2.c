/* See norm_simd.h; this file is compiled for avx2. */
#include "kernels/norm_simd.h"
