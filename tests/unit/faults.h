/* What tests share that let calls fail, one after the other or at random. */
#ifndef SILT_TEST_FAULTS_H
#define SILT_TEST_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

uint64_t faults_random(uint64_t *seed); /* 31 bits */
/* The environment's. */
uint64_t faults_number(const char *name, uint64_t otherwise);

/* Calls that fail in turn, n = from, from + stride, …: SILT_FROM=2 SILT_STRIDE=8 is the second of
 * eight processes that share all of them. */
struct faults_steps {
    uint64_t from, stride;
};
struct faults_steps faults_steps(uint64_t stride_otherwise);
bool faults_shared(void); /* not the first: what is done once is done there */
/* A line that soak/faults adds up: of the calls `what`, so many went wrong in some way. */
void faults_say(const struct faults_steps *steps, const char *way, uint64_t count,
                const char *what);

#endif
