/* client: the connection. Opens the socket, watches it come and go, sends frames and hands replies
 * to whoever waits for them. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "clients/link.h"

enum {
    CONNECT_MS = 5000,
    TIMEOUT_MS = 30000,
    RECONNECT_FIRST_MS = 50, /* doubles up to the last */
    RECONNECT_LAST_MS = 2000,
    MISSES_MAX = 7,      /* it has doubled so far then */
    HEARTBEAT_MS = 5000, /* finds a peer that is gone without a word, over TCP */
    HEARTBEAT_DEAD_MS = 20000,
    SEND_QUEUE_MAX = 256,
    BLOCKED_MS = 5, /* until the next try to send */
    TURN_MS = 200,  /* how often a wait looks at its interrupt flag */
    LATER_MS = 20,
    LATER_MAX = 150, /* sends of one request */
};

int64_t client_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int client_fail(struct client_error *error, int code, const char *format, ...)
{
    va_list list;

    if (!error)
        return code;
    *error = (struct client_error){.code = code};
    va_start(list, format);
    vsnprintf(error->text, sizeof error->text, format, list);
    va_end(list);
    return code;
}

int client_fail_wire(struct client_error *error, const Silt__V1__Error *wire)
{
    static const int codes[] = {
        [SILT__V1__ERROR__CODE__INTERNAL] = -EIO,
        [SILT__V1__ERROR__CODE__INVALID] = -EINVAL,
        [SILT__V1__ERROR__CODE__NOT_FOUND] = -ENOENT,
        [SILT__V1__ERROR__CODE__EXISTS] = -EEXIST,
        [SILT__V1__ERROR__CODE__BUSY] = -EBUSY,
        [SILT__V1__ERROR__CODE__GAP] = -EILSEQ,
        [SILT__V1__ERROR__CODE__TOO_LARGE] = -EMSGSIZE,
        [SILT__V1__ERROR__CODE__NO_SPACE] = -ENOSPC,
        [SILT__V1__ERROR__CODE__DENIED] = -EACCES,
        [SILT__V1__ERROR__CODE__UNSUPPORTED] = -EOPNOTSUPP,
        [SILT__V1__ERROR__CODE__SHUTTING_DOWN] = -ESHUTDOWN,
    };
    size_t code = (size_t)wire->code;
    int result = code < sizeof codes / sizeof *codes ? codes[code] : -EIO;

    client_fail(error, result, "%s", wire->message[0] ? wire->message : strerror(-result));
    if (error) {
        error->retry_us = wire->retry_us;
        error->expected_sequence = wire->expected_sequence;
    }
    return result;
}

static bool is_interrupted(const struct client *client)
{
    return client->options.interrupted && *client->options.interrupted;
}

bool client_name_ok(const char *name, size_t bytes_max)
{
    size_t bytes = name ? strlen(name) : 0;

    if (!bytes || bytes > bytes_max || name[0] == '.')
        return false;
    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") ==
           bytes;
}

int client_name_check(const char *stream, struct client_error *error)
{
    if (client_name_ok(stream, WIRE_NAME_BYTES_MAX))
        return 0;
    return client_fail(error, -EINVAL,
                       "\"%.140s\" is not a stream name: use 1 to %d of A-Z a-z 0-9 . _ - and no "
                       "dot at the start",
                       stream ? stream : "", WIRE_NAME_BYTES_MAX);
}

/* The monitor ends before its reader goes: an event that nobody reads would hold libzmq's thread,
 * and whoever ends the monitor, for ever. */
static void link_down(struct client *client)
{
    if (client->socket)
        zmq_socket_monitor(client->socket, NULL, 0);
    if (client->monitor)
        zmq_close(client->monitor);
    if (client->socket)
        zmq_close(client->socket);
    client->monitor = client->socket = NULL;
    client->connected = false;
}

static void socket_set(void *socket, int option, int value)
{
    zmq_setsockopt(socket, option, &value, sizeof value);
}

/* A signal may come before these have done anything. */
static int socket_connect(void *socket, const char *endpoint)
{
    int r;

    do
        r = zmq_connect(socket, endpoint);
    while (r && errno == EINTR);
    return r ? -errno : 0;
}

static int socket_watch(void *socket, const char *endpoint, int events)
{
    int r;

    do
        r = zmq_socket_monitor(socket, endpoint, events);
    while (r && errno == EINTR);
    return r ? -errno : 0;
}

/* A socket that connects by itself, again and again with growing pauses. */
static int link_up(struct client *client)
{
    char watch[64];
    int r;

    client->socket = zmq_socket(client->context, ZMQ_DEALER);
    if (!client->socket)
        return -errno;
    socket_set(client->socket, ZMQ_LINGER, 0);
    if (strchr(client->endpoint, '['))
        socket_set(client->socket, ZMQ_IPV6, 1);
    /* Nothing is queued for a connection that is not there. */
    socket_set(client->socket, ZMQ_IMMEDIATE, 1);
    socket_set(client->socket, ZMQ_SNDHWM, SEND_QUEUE_MAX);
    socket_set(client->socket, ZMQ_RECONNECT_IVL, RECONNECT_FIRST_MS);
    socket_set(client->socket, ZMQ_RECONNECT_IVL_MAX, RECONNECT_LAST_MS);
    socket_set(client->socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
    socket_set(client->socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_DEAD_MS);
    int64_t frame_bytes_max = WIRE_FRAME_BYTES_MAX;
    zmq_setsockopt(client->socket, ZMQ_MAXMSGSIZE, &frame_bytes_max, sizeof frame_bytes_max);

    if (client->curve &&
        (zmq_setsockopt(client->socket, ZMQ_CURVE_SERVERKEY, client->server_key,
                        CLIENT_KEY_BYTES) ||
         zmq_setsockopt(client->socket, ZMQ_CURVE_PUBLICKEY, client->public_key,
                        CLIENT_KEY_BYTES) ||
         zmq_setsockopt(client->socket, ZMQ_CURVE_SECRETKEY, client->secret_key, CLIENT_KEY_BYTES)))
        return -errno;

    snprintf(watch, sizeof watch, "inproc://watch-%p", client->socket);
    r = socket_watch(client->socket, watch,
                     ZMQ_EVENT_CONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                         ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_DISCONNECTED);
    if (r)
        return r;
    client->monitor = zmq_socket(client->context, ZMQ_PAIR);
    if (!client->monitor)
        return -errno;
    socket_set(client->monitor, ZMQ_LINGER, 0);
    r = socket_connect(client->monitor, watch);
    return r ? r : socket_connect(client->socket, client->endpoint);
}

int client_open(struct client **out, const struct client_options *options,
                struct client_error *error)
{
    struct client *client = calloc(1, sizeof *client);
    struct client_settings settings;
    int r = -ENOMEM;

    *out = NULL;
    if (!client)
        return client_fail(error, r, "out of memory");
    if (options)
        client->options = *options;
    if (!client->options.connect_ms)
        client->options.connect_ms = CONNECT_MS;
    if (!client->options.reconnect_ms)
        client->options.reconnect_ms = client->options.connect_ms;
    if (!client->options.timeout_ms)
        client->options.timeout_ms = TIMEOUT_MS;
    r = client_settings(&settings, &client->options, error);
    if (r)
        goto error;
    memcpy(client->endpoint, settings.endpoint, sizeof client->endpoint);
    r = client_curve(client, &settings, error);
    if (r)
        goto error;
    client->context = zmq_ctx_new();
    r = client->context ? link_up(client) : -ENOMEM;
    if (r) {
        client_fail(error, r, "cannot connect to \"%s\": %s. An endpoint looks like %s",
                    client->endpoint, zmq_strerror(-r),
                    "ipc:///run/silt/silt.sock or tcp://HOST:PORT");
        goto error;
    }
    client->down_us = client_now_us();
    *out = client;
    return 0;
error:
    client_close(&client);
    return r;
}

void client_close(struct client **client)
{
    if (!*client)
        return;
    link_down(*client);
    while ((*client)->context && zmq_ctx_term((*client)->context) && errno == EINTR)
        continue;
    explicit_bzero((*client)->secret_key, sizeof(*client)->secret_key);
    free(*client);
    *client = NULL;
}

const char *client_endpoint(const struct client *client)
{
    return client->endpoint;
}

bool client_connected(const struct client *client)
{
    return client->connected;
}

/* A socket that this user may not open: waiting mends nothing. */
static bool is_anothers(const struct client *client)
{
    static const char ipc[] = "ipc://";

    return !strncmp(client->endpoint, ipc, sizeof ipc - 1) &&
           access(client->endpoint + sizeof ipc - 1, W_OK) && errno == EACCES;
}

int client_reachable(struct client *client, struct client_error *error)
{
    int patience_ms = client->ever ? client->options.reconnect_ms : client->options.connect_ms;
    int64_t down_ms;

    if (client->denied && !client->connected)
        return client_fail(error, -EACCES,
                           "siltd at %s does not take this client's key: on its machine, `silt key "
                           "allow '%s' STREAM` lets it in",
                           client->endpoint, client->public_key);
    if (client->stranger && !client->connected)
        return client_fail(error, -EACCES,
                           "%s is not this user's siltd: another user has made that folder and "
                           "listens there; have it removed, or name another endpoint with -c or "
                           "SILT_ENDPOINT",
                           client->endpoint);
    if (client->connected || patience_ms == CLIENT_WAIT_FOREVER)
        return 0;
    down_ms = (client_now_us() - client->down_us) / 1000;
    if (down_ms < patience_ms && (client->ever || !is_anothers(client)))
        return 0;
    if (!client->ever && client->curve)
        return client_fail(
            error, -ECONNREFUSED,
            "no siltd with that server key answers at %s after %d s: is it there "
            "(siltd --listen tcp://…), and is the key what `silt key server` prints?",
            client->endpoint, (int)((down_ms + 500) / 1000));
    if (is_anothers(client))
        return client_fail(error, -ECONNREFUSED,
                           "%s is another user's, who alone may open it: run this as that user "
                           "(sudo -u USER …), or name another with -c or SILT_ENDPOINT",
                           client->endpoint);
    return client_fail(error, -ECONNREFUSED,
                       client->ever ? "siltd at %s went away %d s ago and has not come back"
                                    : "no siltd answers at %s after %d s: start one (siltd "
                                      "--listen ENDPOINT), or name another with -c or "
                                      "SILT_ENDPOINT",
                       client->endpoint, (int)((down_ms + 500) / 1000));
}

int client_send_frame(struct client *client, const void *frame, size_t frame_bytes)
{
    if (!client->connected)
        return -EAGAIN;
    client->blocked = zmq_send(client->socket, frame, frame_bytes, ZMQ_DONTWAIT) < 0;
    return client->blocked ? -EAGAIN : 0;
}

int client_send(struct client *client, const wire_request *request)
{
    size_t bytes = protobuf_c_message_get_packed_size(&request->base);
    uint8_t *frame;
    int r;

    if (bytes > WIRE_FRAME_BYTES_MAX)
        return -EMSGSIZE;
    frame = malloc(bytes + 1);
    if (!frame)
        return -ENOMEM;
    protobuf_c_message_pack(&request->base, frame);
    r = client_send_frame(client, frame, bytes);
    free(frame);
    return r;
}

/* siltd is busy, and says when to try again: for as long as was asked for, or, as a change that was
 * sent before may be in its hands still and only its end says what became of it, for longer. */
static bool comes_later(const struct client *client, struct pending *pending,
                        const wire_reply *reply)
{
    int64_t now_us = client_now_us();

    if (reply->body_case != SILT__V1__REPLY__BODY_ERROR || !reply->error->retry_us ||
        reply->error->code != SILT__V1__ERROR__CODE__BUSY)
        return false;
    if (!pending->busy_us)
        pending->busy_us = now_us;
    if (now_us - pending->busy_us >= (int64_t)client->options.busy_ms * 1000 &&
        (!pending->change || !pending->lost || pending->sends > LATER_MAX))
        return false;
    pending->later_us = now_us + (int64_t)reply->error->retry_us;
    return true;
}

static void link_reply(struct client *client, const wire_reply *reply)
{
    struct pending *pending = client->pending;
    int r;

    if (!pending || pending->done || reply->id != pending->id) {
        producers_reply(client, reply);
        return;
    }
    if (comes_later(client, pending, reply))
        return;
    if (reply->body_case == SILT__V1__REPLY__BODY_ERROR)
        r = client_fail_wire(pending->error, reply->error);
    else
        r = pending->reply(pending, reply);
    if (r == 1)
        return;
    pending->result = r;
    pending->done = true;
}

/* Takes what has come, a bounded number so that the caller gets its turn. */
static void link_receive(struct client *client)
{
    for (int i = 0; i < 64 && client->socket; i++) {
        zmq_msg_t frame;
        wire_reply *reply;

        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, client->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            return;
        }
        /* What is no reply is another program's or a newer siltd's: the request times out. */
        reply = silt__v1__reply__unpack(NULL, zmq_msg_size(&frame), zmq_msg_data(&frame));
        zmq_msg_close(&frame);
        if (!reply)
            continue;
        client->misses = 0;
        link_reply(client, reply);
        silt__v1__reply__free_unpacked(reply, NULL);
    }
}

/* When to try again. libzmq pauses where nobody listens; who takes the connection and cuts it,
 * again and again, as a siltd with another key does, is given the same pauses here. */
static void link_later(struct client *client)
{
    int64_t pause_ms = 0;

    if (client->misses)
        pause_ms = (int64_t)RECONNECT_FIRST_MS << (client->misses - 1);
    if (pause_ms > RECONNECT_LAST_MS)
        pause_ms = RECONNECT_LAST_MS;
    if (client->misses < MISSES_MAX)
        client->misses++;
    client->up_us = client_now_us() + pause_ms * 1000;
}

/* Whether another user listens at the other end of a new connection where only this one should. */
static bool is_strangers(const struct client *client, int fd)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;

    return endpoint_in_tmp(client->endpoint) &&
           (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) ||
            (peer.uid != getuid() && peer.uid != 0));
}

/* One event of the monitor: two frames, its number (16 bits) with a value (32 bits), and an
 * endpoint. */
static void link_event(struct client *client)
{
    uint8_t event[6] = {0};
    char where[8];
    uint16_t number;
    int32_t value;

    if (zmq_recv(client->monitor, event, sizeof event, ZMQ_DONTWAIT) < 0)
        return;
    while (zmq_recv(client->monitor, where, sizeof where, ZMQ_DONTWAIT) < 0 && errno == EINTR)
        continue; /* else it would be the next event */
    memcpy(&number, event, sizeof number);
    memcpy(&value, event + sizeof number, sizeof value);
    if (number == ZMQ_EVENT_CONNECTED) {
        client->stranger = is_strangers(client, value);
        if (client->stranger) {
            link_down(client);
            link_later(client);
        }
    } else if (number == ZMQ_EVENT_HANDSHAKE_SUCCEEDED && !client->connected) {
        client->connected = true;
        client->epoch++;
        if (client->ever && client->options.on_link)
            client->options.on_link(client->options.user, true);
        client->ever = true;
        client->denied = false;
    } else if (number == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
        client->denied = true;
    } else if (number == ZMQ_EVENT_DISCONNECTED) {
        bool was = client->connected;

        if (was)
            client->down_us = client_now_us();
        /* An answer may end in the very moment that siltd does. */
        for (int i = 0; i < 16; i++)
            link_receive(client);
        link_down(client);
        link_later(client);
        if (was && client->options.on_link)
            client->options.on_link(client->options.user, false);
    }
}

/* Connects where there is no socket and it is time to. Returns how long to wait: timeout_ms at
 * most. */
static int link_again(struct client *client, int timeout_ms)
{
    int64_t wait_ms = (client->up_us - client_now_us() + 999) / 1000;

    if (client->socket)
        return timeout_ms;
    if (wait_ms > 0)
        return wait_ms < timeout_ms ? (int)wait_ms : timeout_ms;
    if (!link_up(client))
        return 0;
    link_down(client); /* too many open files: there may be room later */
    return timeout_ms;
}

int client_poll(struct client *client, int fd, int timeout_ms)
{
    zmq_pollitem_t items[3] = {{.fd = fd, .events = ZMQ_POLLIN}};
    int first = fd < 0, count = 1;

    if (client->options.on_turn)
        client->options.on_turn(client->options.user);
    timeout_ms = link_again(client, timeout_ms);
    if (client->socket) {
        items[count++] = (zmq_pollitem_t){.socket = client->monitor, .events = ZMQ_POLLIN};
        items[count++] = (zmq_pollitem_t){.socket = client->socket, .events = ZMQ_POLLIN};
    }
    if (is_interrupted(client))
        return -EINTR;
    producers_work(client);
    timeout_ms = producers_timeout(client, timeout_ms);
    if (client->blocked && timeout_ms > BLOCKED_MS)
        timeout_ms = BLOCKED_MS;
    if (zmq_poll(items + first, count - first, timeout_ms) < 0 && errno != EINTR)
        return -errno;
    /* Replies before the news that their connection is gone. */
    if (count == 3 && items[2].revents)
        link_receive(client);
    if (count == 3 && items[1].revents)
        link_event(client);
    producers_work(client);
    if (is_interrupted(client))
        return -EINTR;
    return fd >= 0 && items[0].revents;
}

static int request_send(struct client *client, const wire_request *request, struct pending *pending)
{
    int r = client_send(client, request);

    if (!r) {
        pending->lost |= pending->epoch && pending->epoch != client->epoch;
        pending->epoch = client->epoch;
        pending->sent_us = client_now_us();
        pending->sends++;
        pending->later_us = 0;
    } else if (r == -EAGAIN) {
        r = 0;
    } else {
        client_fail(pending->error, r, "the request is too large: at most %d bytes",
                    WIRE_FRAME_BYTES_MAX);
    }
    return r;
}

int client_wait(struct client *client, const wire_request *request, struct pending *pending)
{
    int r = 0;

    while (!r && !pending->done) {
        int64_t now_us = client_now_us(), silent_ms = (now_us - pending->sent_us) / 1000;
        bool here = client->connected && pending->epoch == client->epoch;

        r = client_reachable(client, pending->error);
        if (r)
            break;
        if (pending->epoch && !here && !pending->again)
            return client_fail(pending->error, -ECONNRESET, "siltd at %s went away before the end",
                               client->endpoint);
        if (client->connected && (!here || (pending->later_us && now_us >= pending->later_us)))
            r = request_send(client, request, pending);
        else if (here && pending->timeout_ms && silent_ms > pending->timeout_ms)
            r = client_fail(pending->error, -ETIMEDOUT, "siltd at %s did not answer in %d s",
                            client->endpoint, (pending->timeout_ms + 500) / 1000);
        if (r)
            break;
        r = client_poll(client, -1, pending->later_us ? LATER_MS : TURN_MS);
        if (r < 0 && !pending->done)
            client_fail(pending->error, r, "%s", r == -EINTR ? "interrupted" : strerror(-r));
    }
    return pending->done ? pending->result : r;
}

int client_request(struct client *client, wire_request *request, struct pending *pending)
{
    int r;

    pending->id = request->id = ++client->id_last;
    client->pending = pending;
    r = client_wait(client, request, pending);
    client->pending = NULL;
    client->resent = pending->lost;
    return r;
}
