/* The tests of the emulated device on a real one. Of the troubles that it may have, it can be
 * broken for good, where SILT_BREAK asks for it and nothing else is tested in that process; a test
 * of any other is left out, and so is one of an order of threads. */
#include <cuda_runtime.h>
#include <stdlib.h>

extern "C" void _skip(const char *file, int line); /* cmocka's */
extern "C" void simt_trouble(int trouble, size_t memory_bytes);

enum { FINE, BROKEN = 4 }; /* of gpu_rig.h */

static __global__ void break_kernel(void)
{
    __trap();
}

extern "C" void simt_backwards(bool)
{
    _skip(__FILE__, __LINE__);
}

void simt_trouble(int trouble, size_t memory_bytes)
{
    if (trouble == BROKEN && getenv("SILT_BREAK")) {
        break_kernel<<<1, 1>>>();
        (void)cudaDeviceSynchronize();
    } else if (trouble != FINE || memory_bytes) {
        _skip(__FILE__, __LINE__);
    }
}
