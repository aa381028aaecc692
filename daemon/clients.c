#include "daemon/clients.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <zmq.h>

#include "daemon/clock.h"

enum { LOOK_US = 100000 }; /* for clients that have gone, where there is no place for another */

int clients_watch(struct clients *clients, void *context, void *socket, int door)
{
    char address[32];
    int none = 0;

    snprintf(address, sizeof address, "inproc://clients-%d", door);
    if (zmq_socket_monitor(socket, address, ZMQ_EVENT_DISCONNECTED) != 0)
        return -errno;
    clients->monitor[door] = zmq_socket(context, ZMQ_PAIR);
    /* No event may be lost, and there are no more than connections. */
    if (!clients->monitor[door] ||
        zmq_setsockopt(clients->monitor[door], ZMQ_RCVHWM, &none, sizeof none) != 0 ||
        zmq_setsockopt(clients->monitor[door], ZMQ_LINGER, &none, sizeof none) != 0 ||
        zmq_connect(clients->monitor[door], address) != 0)
        return -errno;
    return 0;
}

void clients_close(struct clients *clients)
{
    for (int i = 0; i < 2; i++) {
        if (clients->monitor[i])
            zmq_close(clients->monitor[i]);
        clients->monitor[i] = NULL;
    }
}

static void forget(struct clients *clients, int32_t fd)
{
    for (uint32_t i = 0; i < clients->count; i++)
        if (clients->fd[i] == fd) {
            clients->fd[i] = clients->fd[--clients->count];
            return;
        }
}

/* An event is two frames: its number (16 bits) with the connection's fd (32 bits), and an address.
 */
void clients_drain(struct clients *clients)
{
    uint8_t event[6], address[8];

    for (int i = 0; i < 2; i++)
        while (clients->monitor[i] &&
               zmq_recv(clients->monitor[i], event, sizeof event, ZMQ_DONTWAIT) >= 0) {
            int32_t fd;

            memcpy(&fd, event + 2, sizeof fd);
            zmq_recv(clients->monitor[i], address, sizeof address, ZMQ_DONTWAIT);
            forget(clients, fd);
        }
}

/* A client's last frame may come behind the news that it has gone: then it has a place, and nothing
 * tells of it again. */
static void forget_closed(struct clients *clients)
{
    uint64_t now = clock_us();

    if (now - clients->looked_us < LOOK_US)
        return;
    clients->looked_us = now;
    for (uint32_t i = 0; i < clients->count;) {
        struct sockaddr_storage peer;
        socklen_t bytes = sizeof peer;

        if (getpeername(clients->fd[i], (struct sockaddr *)&peer, &bytes) == 0)
            i++;
        else
            clients->fd[i] = clients->fd[--clients->count];
    }
}

bool clients_admit(struct clients *clients, int fd)
{
    if (fd < 0)
        return true;
    for (uint32_t i = 0; i < clients->count; i++)
        if (clients->fd[i] == fd)
            return true;
    if (clients->count == clients->max)
        forget_closed(clients);
    if (clients->count == clients->max)
        return false;
    clients->fd[clients->count++] = fd;
    return true;
}
