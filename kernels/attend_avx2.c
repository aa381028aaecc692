/* See attend_simd.h; this file is compiled for avx2. */
#include "kernels/attend_simd.h"
