/*
 * loop: waits for a ZeroMQ socket, file descriptors and one timer, and calls who is concerned.
 *
 * Knows nothing of streams. One thread.
 */
#ifndef SILT_DAEMON_LOOP_H
#define SILT_DAEMON_LOOP_H

#include <stdbool.h>
#include <stdint.h>

enum { LOOP_SOURCES_MAX = 8 };

typedef void loop_fn(void *user);
struct loop_source {
    void *socket; /* ZeroMQ, or NULL */
    int fd;
    loop_fn *ready;
    void *user;
};
struct loop {
    struct loop_source source[LOOP_SOURCES_MAX];
    uint32_t source_count;
    loop_fn *tick;
    void *tick_user;
    uint64_t tick_us, tick_next_us;
    bool stop;
};
/* 0 or -ENOSPC. */
int loop_add_socket(struct loop *loop, void *socket, loop_fn *ready, void *user);
int loop_add_fd(struct loop *loop, int fd, loop_fn *ready, void *user);
void loop_every(struct loop *loop, uint64_t period_us, loop_fn *tick, void *user);
/* Until loop->stop. 0 or what poll said. */
int loop_run(struct loop *loop);

#endif
