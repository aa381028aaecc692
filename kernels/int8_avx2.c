/* See int8_simd.h; this file is compiled for avx2. */
#include "kernels/int8_simd.h"
