#include "daemon/loop.h"

#include <errno.h>
#include <zmq.h>

#include "daemon/clock.h"

static int add(struct loop *loop, struct loop_source source)
{
    if (loop->source_count == LOOP_SOURCES_MAX)
        return -ENOSPC;
    loop->source[loop->source_count++] = source;
    return 0;
}

int loop_add_socket(struct loop *loop, void *socket, loop_fn *ready, void *user)
{
    return add(loop, (struct loop_source){socket, -1, ready, user});
}

int loop_add_fd(struct loop *loop, int fd, loop_fn *ready, void *user)
{
    return add(loop, (struct loop_source){NULL, fd, ready, user});
}

void loop_every(struct loop *loop, uint64_t period_us, loop_fn *tick, void *user)
{
    loop->tick = tick;
    loop->tick_user = user;
    loop->tick_us = period_us;
    loop->tick_next_us = clock_us() + period_us;
}

static long wait_ms(const struct loop *loop)
{
    uint64_t now = clock_us();

    if (!loop->tick)
        return -1;
    return now >= loop->tick_next_us ? 0 : (long)((loop->tick_next_us - now) / 1000 + 1);
}

static void run_tick(struct loop *loop)
{
    uint64_t now = clock_us();

    if (!loop->tick || now < loop->tick_next_us)
        return;
    loop->tick_next_us = now + loop->tick_us;
    loop->tick(loop->tick_user);
}

int loop_run(struct loop *loop)
{
    zmq_pollitem_t set[LOOP_SOURCES_MAX];

    while (!loop->stop) {
        for (uint32_t i = 0; i < loop->source_count; i++)
            set[i] = (zmq_pollitem_t){
                .socket = loop->source[i].socket, .fd = loop->source[i].fd, .events = ZMQ_POLLIN};
        if (zmq_poll(set, (int)loop->source_count, wait_ms(loop)) < 0 && errno != EINTR)
            return -errno;
        for (uint32_t i = 0; i < loop->source_count && !loop->stop; i++)
            if (set[i].revents & ZMQ_POLLIN)
                loop->source[i].ready(loop->source[i].user);
        run_tick(loop);
    }
    return 0;
}
