/*
 * link: what the files of the client library share, and nobody else includes.
 *
 * One socket lives from one connection to the next: when a connection goes, the socket goes with
 * all that was queued in it, so that nothing old reaches a new siltd behind the back of the
 * sequence numbers. Whoever waits sees `epoch` change and sends again what may be sent again.
 */
#ifndef SILT_CLIENT_LINK_H
#define SILT_CLIENT_LINK_H

#include <limits.h>

#include "clients/client.h"
#include "proto/endpoint.h"
#include "proto/silt.pb-c.h"

typedef Silt__V1__Request wire_request;
typedef Silt__V1__Reply wire_reply;

/* A request that waits for its replies. The caller sets the first five. */
struct pending {
    /* Returns 1 when it wants more, else 0 or -errno. */
    int (*reply)(struct pending *pending, const wire_reply *reply);
    void *user;
    struct client_error *error;
    bool again;         /* may be sent again on a new connection; else losing it is -ECONNRESET */
    bool change;        /* siltd knows it when it comes again */
    int timeout_ms;     /* 0: none */
    uint64_t id, epoch; /* of the connection it was sent on; 0: not yet */
    int64_t sent_us;
    unsigned sends;
    bool lost;        /* it was sent on a connection that went */
    int64_t busy_us;  /* since when siltd has been; 0: it is not */
    int64_t later_us; /* not sent again until then, as siltd was busy; 0: it was not */
    bool done;
    int result;
};

struct client {
    struct client_options options;
    char endpoint[ENDPOINT_BYTES_MAX];
    bool curve; /* the keys are used */
    char server_key[CLIENT_KEY_BYTES + 1], public_key[CLIENT_KEY_BYTES + 1];
    char secret_key[CLIENT_KEY_BYTES + 1];
    bool denied;   /* siltd does not take the key */
    bool stranger; /* who listens there is another user, and gets nothing */
    void *context, *socket, *monitor;
    bool connected;
    bool blocked;     /* the last send found no room */
    bool ever;        /* siltd has been reached before */
    uint64_t epoch;   /* connections so far; 0: never */
    int64_t down_us;  /* since when there is no connection */
    int64_t up_us;    /* without a socket: not before */
    int misses;       /* connections in a row that brought no reply */
    uint64_t id_last; /* of the requests */
    bool resent;      /* the last request went out on more than one connection */
    struct pending *pending;
    struct producer *producers; /* attached to this client */
    size_t held_bytes;          /* payloads unacked, of all of them */
};

/* curve.c */
struct client_settings {
    char endpoint[ENDPOINT_BYTES_MAX], server_key[128], client_key[PATH_MAX];
};
/* What was asked for, or what environment, file and defaults say. */
int client_settings(struct client_settings *out, const struct client_options *options,
                    struct client_error *error);
/* Reads the keys where the endpoint needs them. */
int client_curve(struct client *client, const struct client_settings *settings,
                 struct client_error *error);

int64_t client_now_us(void);
/* Fills error (may be NULL) and returns code. */
int client_fail(struct client_error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The error of a reply, as -errno. */
int client_fail_wire(struct client_error *error, const Silt__V1__Error *wire);
/* 0, or -ECONNREFUSED once siltd has been out of reach for longer than the options allow. */
int client_reachable(struct client *client, struct client_error *error);
/* Sends a packed frame: 0, -EAGAIN: not now. */
int client_send_frame(struct client *client, const void *frame, size_t frame_bytes);
/* Packs and sends: 0, -EAGAIN, -EMSGSIZE. */
int client_send(struct client *client, const wire_request *request);
/* Sends request and waits for the end of its replies. */
int client_request(struct client *client, wire_request *request, struct pending *pending);
/* The same for a request of one reply, which may be sent again; `reply` as in pending. */
int client_run(struct client *client, wire_request *request,
               int (*reply)(struct pending *, const wire_reply *), void *user,
               struct client_error *error);
/* The same for a request that changes something: siltd does not do it twice. */
int client_change(struct client *client, wire_request *request,
                  int (*reply)(struct pending *, const wire_reply *), void *user,
                  struct client_error *error);
/* -EPROTO: the reply is another's. */
int client_odd(struct client_error *error);
/* The same for a request that has its id. */
int client_wait(struct client *client, const wire_request *request, struct pending *pending);

bool client_name_ok(const char *name, size_t bytes_max);
int client_name_check(const char *stream, struct client_error *error);

/* Of the producers: a reply that no request waits for, and the work after each turn of the link. */
bool producers_reply(struct client *client, const wire_reply *reply);
void producers_work(struct client *client);
/* Milliseconds until a producer wants to work again, at most timeout_ms. */
int producers_timeout(const struct client *client, int timeout_ms);

#endif
