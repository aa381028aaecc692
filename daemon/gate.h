/*
 * gate: the ROUTER sockets. Frames come in with who sent them, replies go out.
 *
 * Two doors: the local one (ipc, mode 0600: who may open the file may do everything) and, where
 * asked for, the network's (tcp). The network's speaks CURVE alone: siltd proves who it is,
 * everything is encrypted, and a client must prove a key of `keys` before a frame of it is read.
 * The check is ZAP's (ZeroMQ RFC 27), answered by gate_authenticate.
 *
 * Limits: a frame over FRAME_BYTES_HARD_MAX cuts its connection; GATE_IN_MAX frames of a client
 * (GATE_NETWORK_IN_MAX over the network) wait in its pipe, then it is not read; GATE_OUT_MAX
 * replies wait for it, then sending says -EAGAIN. Over the network a client is cut that answers no
 * ping, as one in the middle of a frame cannot, so that neither its place nor half a frame stays.
 */
#ifndef SILT_DAEMON_GATE_H
#define SILT_DAEMON_GATE_H

#include <zmq.h>

#include "daemon/clients.h"
#include "daemon/keys.h"
#include "daemon/wire.h"

enum {
    GATE_DOORS = 2,
    GATE_HANDSHAKE_MS = 5000, /* then a connection that has proved nothing is cut */
    GATE_PING_MS = 10000,     /* over the network, which does not tell of who vanishes */
    GATE_SILENCE_MS = 30000,  /* after a ping with no whole message: cut */
    GATE_IN_MAX = 1,
    GATE_NETWORK_IN_MAX = 2, /* with one, libzmq's CURVE never gets past a client's id */
    GATE_OUT_MAX = 256,      /* libzmq learns of what was read in halves of this, and late */
    /* One frame in the pipe, one being received, and the replies it has not read. */
    GATE_CLIENT_BYTES = (GATE_IN_MAX + 1) * FRAME_BYTES_HARD_MAX + GATE_OUT_MAX * REPLY_BYTES_MAX,
    GATE_NETWORK_CLIENT_BYTES =
        GATE_CLIENT_BYTES + (GATE_NETWORK_IN_MAX - GATE_IN_MAX) * FRAME_BYTES_HARD_MAX,
};

struct gate {
    void *context;
    void *socket[GATE_DOORS]; /* of a door that is not open: NULL */
    void *zap;
    const struct keys *keys;
    struct clients clients;
    bool admitted;   /* who sent the frame received last is a client, or one too many */
    zmq_msg_t frame; /* received last */
    bool holds_frame;
    uint64_t refused_us;              /* when the log said so last */
    uint8_t turn;                     /* the door that is read first */
    char path[ENDPOINT_BYTES_MAX];    /* of the socket file, to be removed */
    char network[ENDPOINT_BYTES_MAX]; /* what the network's door is bound to; empty: none */
};
int gate_open(struct gate *gate, const char *endpoint, char *error, size_t error_bytes);
/* Opens the network's door too; keys must live as long as the gate. */
int gate_open_network(struct gate *gate, const char *endpoint, const struct keys *keys, char *error,
                      size_t error_bytes);
void gate_close(struct gate *gate);
/* Answers who waits for a handshake; to be called when gate->zap can be read. */
void gate_authenticate(struct gate *gate);
/* 0: the frame is in *bytes until the next call; -EAGAIN: none; -EBADMSG: not one frame from a
 * DEALER, to be answered; -EPROTO: from nobody who can be. */
int gate_receive(struct gate *gate, struct wire_client *client, const uint8_t **bytes,
                 size_t *bytes_count);
/* -EAGAIN: the client reads too slowly; -EHOSTUNREACH: it has gone. */
int gate_send(struct gate *gate, const struct wire_client *client, const void *bytes,
              size_t bytes_count);

#endif
