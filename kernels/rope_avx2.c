/* See rope_simd.h; this file is compiled for avx2. */
#include "kernels/rope_simd.h"
