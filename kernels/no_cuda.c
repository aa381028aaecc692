/* In place of the .cu files where nvcc was not found. */
#include <errno.h>
#include <stdio.h>

#include "kernels/cuda.h"

int cuda_open(struct cuda **out, char *error, size_t error_bytes)
{
    *out = NULL;
    snprintf(error, error_bytes,
             "this silt was built without CUDA: install the CUDA toolkit and run make again, or "
             "use --device cpu");
    return -ENOTSUP;
}

void cuda_close(struct cuda **c)
{
    *c = NULL;
}
