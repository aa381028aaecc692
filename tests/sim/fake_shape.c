/* The real engine's record with what cold segments ask of an engine: a shape, and kernels that need
 * nothing of the machine. */
#include <stdarg.h>
#include <stdio.h>

#include "stream/internal.h"
#include "tests/sim/cold.h"

struct engine sim_engine = {.shape = {.layers = 1,
                                      .heads = 1,
                                      .kv_heads = 1,
                                      .head_dim = 16,
                                      .kv_dim = 16,
                                      .chunk = 256,
                                      .comp = 4},
                            .info = {.model_fingerprint = 1, .adapter_fingerprint = 2}};

bool sim_engine_open(void)
{
    struct kernels_options options = {.threads = 1};

    return kernels_open(&sim_engine.kernels, &options) == 0;
}

/* weights.c's, which would bring the real engine. */
int fail_with(char *error, size_t error_bytes, int code, const char *format, ...)
{
    va_list list;

    va_start(list, format);
    vsnprintf(error, error_bytes, format, list);
    va_end(list);
    return code;
}
