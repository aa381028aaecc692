/*
 * daemon: the process. Bytes come in over ZeroMQ, tokens go out; no maths here.
 *
 * A `daemon` owns the socket, the journal, the engine with its streams, three threads and the one
 * arena that all of them live in. The loop thread (the caller of daemon_run) talks to clients, the
 * journal thread makes what was sent durable and turns it into tokens, the compute thread alone
 * touches live KV. They talk through fixed queues; nothing is buffered without bound.
 *
 * Callers need not know: the wire, the journal's layout, what runs next.
 * Threads: daemon_open, daemon_run and daemon_close belong to one thread; daemon_stop may be called
 * from any. Errors: 0 or a negative errno, with a sentence that says what to do.
 * Limits: the enum below, config.h's options, and the plan (plan.h) that adds them up.
 */
#ifndef SILT_DAEMON_H
#define SILT_DAEMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/endpoint.h"
#include "stream/stream.h"

enum {
    FRAME_BYTES_MAX = WIRE_FRAME_BYTES_MAX,
    FRAME_BYTES_HARD_MAX = FRAME_BYTES_MAX + (64 << 10), /* beyond, the connection is cut */
    NAME_BYTES_MAX = WIRE_NAME_BYTES_MAX,
    PRODUCER_BYTES_MAX = WIRE_PRODUCER_BYTES_MAX,
    CLIENT_ID_BYTES_MAX = 64, /* ZeroMQ routing id */
    QUESTION_BYTES_MAX = 16 << 10,
    SYSTEM_BYTES_MAX = 4 << 10,
    ITEMS_MAX = 4096, /* of one Feed */
    UNPACK_BYTES_MAX = 4 << 20,
    REPLY_BYTES_MAX = 8 << 10,
    LIST_PAGE_MAX = 7, /* so many fit a reply but for rare troubles */
    PATH_BYTES_MAX = 1024,
    ERROR_BYTES_MAX = 400,

    STREAMS_LIVE_MAX = 4096,    /* bound of --streams-max */
    STREAMS_KNOWN_MAX = 16384,  /* live and parked */
    CLIENTS_LIVE_MAX = 4096,    /* bound of --clients-max */
    FORKS_LIVE_MAX = 64,        /* bound of --forks-max */
    WAITERS_MAX = 1024,         /* producers told BUSY that wait for an Ack */
    FLIGHTS_MAX = 1024,         /* clients with a request in the journal's queue */
    FLIGHT_BYTES_MAX = 2 << 20, /* of one client in the journal's queue */

    JOURNAL_QUEUE_BYTES = 8 << 20,
    LOOP_QUEUE_BYTES = 1 << 20,
    COMPUTE_QUEUE_BYTES = 1 << 20,
    BATCH_MAX = 256, /* requests of one commit */

    LAG_TOKENS_DEFAULT = 65536,
    LAG_TOKENS_MIN = 4096,
    LAG_TOKENS_LIMIT = 1 << 22,
    ANSWER_TOKENS_DEFAULT = 256,
    ANSWER_TOKENS_MIN = 16, /* room a question must leave */
    ANSWER_BYTES_MAX = 32 << 10,
    RECENT_TOKENS = 64, /* the repeat penalty looks back this far */

    BUSY_RETRY_US = 200000,
    SEND_PATIENCE_US = 30000000, /* a client that takes no answer for so long loses its question */
    KEEP_PATIENCE_US = 30000000, /* nor is an answer kept whose stream has no room for so long */
    TICK_MS = 100,
};

_Static_assert(FRAME_BYTES_MAX < FRAME_BYTES_HARD_MAX, "a frame a bit too large gets an answer");
_Static_assert(FLIGHT_BYTES_MAX >= FRAME_BYTES_MAX + (64 << 10), "one client can send one frame");
_Static_assert(JOURNAL_QUEUE_BYTES >= 4 * FLIGHT_BYTES_MAX, "one client never fills the queue");
_Static_assert(UNPACK_BYTES_MAX >= 2 * FRAME_BYTES_MAX, "a frame of plain text unpacks");
_Static_assert(QUESTION_BYTES_MAX + SYSTEM_BYTES_MAX < FRAME_BYTES_MAX, "a question fits a frame");

struct config;
struct daemon;
/* Opens everything and prints the memory plan; serves nothing yet. */
int daemon_open(struct daemon **out, const struct config *config, char *error, size_t error_bytes);
/* Serves until daemon_stop; returns when the commit in flight is done and the threads are. */
int daemon_run(struct daemon *daemon);
/* Asks daemon_run to return. Any thread, any number of times, also from a signal handler. */
void daemon_stop(struct daemon *daemon);
void daemon_close(struct daemon **daemon);

#endif
