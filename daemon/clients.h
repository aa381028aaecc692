/*
 * clients: how many are served at once. The loop thread's alone.
 *
 * A connection becomes a client with its first frame, where fewer than --clients-max are, and stops
 * being one when it is cut; libzmq tells of that over a monitor. What others send meanwhile is
 * answered BUSY and kept nowhere, so the plan's share for clients holds. Over the network a key has
 * at most half of the places, and all keys together three quarters: the rest is for who is on this
 * machine, who could not take a key's places back otherwise.
 */
#ifndef SILT_DAEMON_CLIENTS_H
#define SILT_DAEMON_CLIENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/daemon.h"

struct clients {
    void *monitor[2];             /* of a door that is not open: NULL */
    int32_t fd[CLIENTS_LIVE_MAX]; /* [count] of their connections */
    uint64_t owner[CLIENTS_LIVE_MAX];
    uint32_t count, max;
    int32_t fd_max[2];  /* of a door's connections */
    uint64_t short_us;  /* when the log last said that files are short */
    uint64_t looked_us; /* for those of them that have gone */
};
/* Before a socket is bound. What comes through a door where files are short, over the network
 * first, is cut at once: libzmq ends the process where a local client finds none. */
int clients_watch(struct clients *clients, void *context, void *socket, int door);
void clients_close(struct clients *clients);
/* Forgets who has gone: before any frame is looked at, as a connection may have a dead one's fd. */
void clients_drain(struct clients *clients);
/* False: there are as many as may be. fd < 0: not known, and let in. key: NULL: of this machine. */
bool clients_admit(struct clients *clients, int fd, const char *key);
/* The key is allowed nothing any more: its connections have no places. */
void clients_deny(struct clients *clients, const char *key);

#endif
