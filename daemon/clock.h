/* Two clocks in microseconds: one that never goes back, one that people read. */
#ifndef SILT_DAEMON_CLOCK_H
#define SILT_DAEMON_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_read_us(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static inline uint64_t clock_us(void)
{
    return clock_read_us(CLOCK_MONOTONIC);
}

static inline uint64_t clock_wall_us(void)
{
    return clock_read_us(CLOCK_REALTIME);
}

#endif
