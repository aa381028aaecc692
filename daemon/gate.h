/*
 * gate: the ROUTER socket. Frames come in with who sent them, replies go out.
 *
 * Limits: a frame over FRAME_BYTES_HARD_MAX cuts its connection; GATE_IN_MAX frames of a client
 * wait in its pipe, then it is not read; GATE_OUT_MAX replies wait for it, then sending says
 * -EAGAIN.
 */
#ifndef SILT_DAEMON_GATE_H
#define SILT_DAEMON_GATE_H

#include <zmq.h>

#include "daemon/wire.h"

enum {
    GATE_IN_MAX = 1,
    GATE_OUT_MAX = 256, /* libzmq learns of what was read in halves of this, and late */
    /* One frame in the pipe, one being received, and the replies it has not read. */
    GATE_CLIENT_BYTES = (GATE_IN_MAX + 1) * FRAME_BYTES_HARD_MAX + GATE_OUT_MAX * REPLY_BYTES_MAX,
};

struct gate {
    void *context, *socket;
    zmq_msg_t frame; /* received last */
    bool holds_frame;
    char path[ENDPOINT_BYTES_MAX]; /* of the socket file, to be removed */
};
int gate_open(struct gate *gate, const char *endpoint, char *error, size_t error_bytes);
void gate_close(struct gate *gate);
/* 0: the frame is in *bytes until the next call; -EAGAIN: none; -EBADMSG: not one frame from a
 * DEALER, to be answered. */
int gate_receive(struct gate *gate, struct wire_client *client, const uint8_t **bytes,
                 size_t *bytes_count);
/* -EAGAIN: the client reads too slowly; -EHOSTUNREACH: it has gone. */
int gate_send(struct gate *gate, const struct wire_client *client, const void *bytes,
              size_t bytes_count);

#endif
