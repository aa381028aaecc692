/* Stands in for CUDA's header; simt.h has what is used of it. */
#ifndef SILT_TESTS_EMULATE_CUDA_FP16_H
#define SILT_TESTS_EMULATE_CUDA_FP16_H

#include "tests/emulate/simt.h"

#endif
