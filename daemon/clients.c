#include "daemon/clients.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <xxhash.h>
#include <zmq.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/wire.h"

enum { LOOK_US = 100000 }; /* for clients that have gone, where there is no place for another */

/* Numbers are given from the lowest up, so that of a connection says how many files there are. */
static int32_t fd_max(int door)
{
    struct rlimit limit;
    rlim_t most = INT32_MAX;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < most)
        most = limit.rlim_cur;
    return (int32_t)(most / 8 * (door == DOOR_NETWORK ? 6 : 7));
}

int clients_watch(struct clients *clients, void *context, void *socket, int door)
{
    char address[32];
    int none = 0;

    snprintf(address, sizeof address, "inproc://clients-%d", door);
    clients->fd_max[door] = fd_max(door);
    if (zmq_socket_monitor(socket, address, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED) != 0)
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

/* Whose a place is; 0: of somebody on this machine. */
static uint64_t owner_of(const char *key)
{
    return key ? XXH3_64bits(key, strlen(key)) | 1 : 0;
}

static void drop(struct clients *clients, uint32_t i)
{
    clients->count--;
    clients->fd[i] = clients->fd[clients->count];
    clients->owner[i] = clients->owner[clients->count];
}

static uint32_t find(const struct clients *clients, int32_t fd)
{
    uint32_t i = 0;

    while (i < clients->count && clients->fd[i] != fd)
        i++;
    return i;
}

static void cut_short(struct clients *clients, int door, int32_t fd)
{
    if (fd < clients->fd_max[door])
        return;
    shutdown(fd, SHUT_RDWR);
    if (say_again(&clients->short_us))
        say(SAY_WARN, "files are short (ulimit -n): new connections %s are cut",
            door == DOOR_NETWORK ? "over the network" : "to the local socket");
}

/* An event is two frames: its number (16 bits) with the connection's fd (32 bits), and an address.
 */
void clients_drain(struct clients *clients)
{
    uint8_t event[6], address[8];

    for (int door = 0; door < 2; door++)
        while (clients->monitor[door] &&
               zmq_recv(clients->monitor[door], event, sizeof event, ZMQ_DONTWAIT) >= 0) {
            uint16_t number;
            uint32_t gone;
            int32_t fd;

            memcpy(&number, event, sizeof number);
            memcpy(&fd, event + sizeof number, sizeof fd);
            while (zmq_recv(clients->monitor[door], address, sizeof address, ZMQ_DONTWAIT) < 0 &&
                   errno == EINTR)
                continue; /* else it would be the next event */
            if (number == ZMQ_EVENT_ACCEPTED) {
                cut_short(clients, door, fd);
                continue;
            }
            gone = find(clients, fd);
            if (gone < clients->count)
                drop(clients, gone);
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
            drop(clients, i);
    }
}

static bool is_room(const struct clients *clients, uint64_t owner)
{
    uint32_t max = clients->max, network = 0, own = 0;

    if (clients->count == max)
        return false;
    if (!owner || max == 1)
        return true;
    for (uint32_t i = 0; i < clients->count; i++) {
        network += clients->owner[i] != 0;
        own += clients->owner[i] == owner;
    }
    return network < max * 3 / 4 && own < max / 2;
}

bool clients_admit(struct clients *clients, int fd, const char *key)
{
    uint64_t owner = owner_of(key);
    uint32_t i = find(clients, fd);

    if (fd < 0 || (i < clients->count && clients->owner[i] == owner))
        return true;
    if (i < clients->count) /* whoever had this number has gone */
        drop(clients, i);
    if (!is_room(clients, owner))
        forget_closed(clients);
    if (!is_room(clients, owner))
        return false;
    clients->owner[clients->count] = owner;
    clients->fd[clients->count++] = fd;
    return true;
}

void clients_deny(struct clients *clients, const char *key)
{
    uint64_t owner = owner_of(key);

    for (uint32_t i = 0; i < clients->count;)
        if (clients->owner[i] == owner)
            drop(clients, i);
        else
            i++;
}
