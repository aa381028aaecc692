#include "tests/unit/faults.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

uint64_t faults_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

uint64_t faults_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

struct faults_steps faults_steps(uint64_t stride_otherwise)
{
    struct faults_steps steps = {faults_number("SILT_FROM", 1),
                                 faults_number("SILT_STRIDE", stride_otherwise)};

    if (!steps.from || !steps.stride)
        abort();
    return steps;
}

bool faults_shared(void)
{
    return faults_number("SILT_FROM", 1) > 1;
}

void faults_say(const struct faults_steps *steps, const char *way, uint64_t count, const char *what)
{
    if (steps->stride == 1 && steps->from == 1)
        printf("%s: each of %" PRIu64 " %s\n", way, count, what);
    else
        printf("%s: %" PRIu64 " %s, each %" PRIu64 ". from %" PRIu64 "\n", way, count, what,
               steps->stride, steps->from);
}
