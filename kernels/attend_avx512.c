/* See attend_simd.h; this file is compiled for avx512. */
#include "kernels/attend_simd.h"
