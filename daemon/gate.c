/* libzmq would take over a socket file that another siltd listens on: that is found out first. */
#include "daemon/gate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/log.h"

static int fail(char *error, size_t error_bytes, int result, const char *format,
                const char *endpoint, const char *why)
{
    snprintf(error, error_bytes, format, endpoint, why);
    return result;
}

/* 1: somebody listens; 0: nobody, the file is free or stale; or a negative errno. */
static int socket_taken(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat status;
    int fd, result;

    if (lstat(path, &status) != 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(status.st_mode))
        return -EEXIST;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    result = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN;
    close(fd);
    return result;
}

/* The folder of the socket, made with mode 0700 where it is missing; it must be ours alone. */
static int prepare_folder(const char *path, const char *endpoint, char *error, size_t error_bytes)
{
    char folder[ENDPOINT_BYTES_MAX];
    struct stat status;
    char *cut;

    snprintf(folder, sizeof folder, "%s", path);
    cut = strrchr(folder, '/');
    if (!cut || cut == folder)
        return 0;
    *cut = '\0';
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return fail(error, error_bytes, -errno,
                    "--listen %s: its folder cannot be made (%s): choose another path", endpoint,
                    strerror(errno));
    if (stat(folder, &status) != 0 || !S_ISDIR(status.st_mode))
        return fail(error, error_bytes, -ENOTDIR, "--listen %s: %s", endpoint,
                    "its folder is not a folder");
    if (strncmp(folder, "/tmp/silt-", 10) == 0 && status.st_uid != getuid())
        return fail(error, error_bytes, -EACCES, "--listen %s: %s", endpoint,
                    "its folder belongs to somebody else; choose another path");
    return 0;
}

static int prepare_path(struct gate *gate, const char *endpoint, char *error, size_t error_bytes)
{
    const char *path = endpoint + strlen("ipc://");
    int result;

    if (!path[0] || strlen(path) >= sizeof((struct sockaddr_un *)0)->sun_path)
        return fail(error, error_bytes, -ENAMETOOLONG, "--listen %s: %s", endpoint,
                    "a socket's path is 1 to 107 bytes");
    result = prepare_folder(path, endpoint, error, error_bytes);
    if (result)
        return result;
    result = socket_taken(path);
    if (result > 0)
        return fail(error, error_bytes, -EADDRINUSE, "--listen %s: %s", endpoint,
                    "another siltd listens there; stop it or choose another path");
    if (result < 0)
        return fail(error, error_bytes, result, "--listen %s: %s", endpoint,
                    result == -EEXIST ? "that file exists and is not a socket" : strerror(-result));
    unlink(path);
    snprintf(gate->path, sizeof gate->path, "%s", path);
    return 0;
}

static int set_option(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0 ? 0 : -errno;
}

static int make_socket(struct gate *gate, int door)
{
    void **out = &gate->socket[door];
    int64_t frame_max = FRAME_BYTES_HARD_MAX;
    int result = 0;

    if (!gate->context) {
        gate->context = zmq_ctx_new();
        if (!gate->context)
            return -errno;
        zmq_ctx_set(gate->context, ZMQ_IO_THREADS, 1);
    }
    *out = zmq_socket(gate->context, ZMQ_ROUTER);
    if (!*out)
        return -errno;
    if (zmq_setsockopt(*out, ZMQ_MAXMSGSIZE, &frame_max, sizeof frame_max) != 0)
        return -errno;
    result |= set_option(*out, ZMQ_RCVHWM, GATE_IN_MAX);
    result |= set_option(*out, ZMQ_SNDHWM, GATE_OUT_MAX);
    result |= set_option(*out, ZMQ_LINGER, 200);
    result |= set_option(*out, ZMQ_ROUTER_MANDATORY, 1);
    result |= set_option(*out, ZMQ_BACKLOG, 128);
    return result ? -EINVAL : clients_watch(&gate->clients, gate->context, *out, door);
}

int gate_open(struct gate *gate, const char *endpoint, char *error, size_t error_bytes)
{
    mode_t mask;
    int result;

    memset(gate, 0, sizeof *gate);
    if (strncmp(endpoint, "ipc://", 6) != 0)
        return fail(error, error_bytes, -EINVAL, "--listen %s: %s", endpoint,
                    "give ipc://PATH, or tcp://ADDRESS:PORT for clients with keys");
    result = prepare_path(gate, endpoint, error, error_bytes);
    if (result)
        return result;
    result = make_socket(gate, DOOR_LOCAL);
    if (result) {
        fail(error, error_bytes, result, "--listen %s: no socket: %s", endpoint, strerror(-result));
        goto error;
    }
    mask = umask(0177);
    if (zmq_bind(gate->socket[DOOR_LOCAL], endpoint) != 0) {
        result = -errno;
        fail(error, error_bytes, result, "--listen %s: %s", endpoint, zmq_strerror(errno));
    }
    umask(mask);
    if (result)
        goto error;
    return 0;

error:
    gate_close(gate);
    return result;
}

/* ---- parts of messages ---- */

/* A signal between two parts would leave the first to stand before those of another message. */
static int send_part(void *socket, const void *bytes, size_t bytes_count, int more)
{
    int result;

    do
        result = zmq_send(socket, bytes, bytes_count, ZMQ_DONTWAIT | more);
    while (result < 0 && errno == EINTR);
    return result;
}

static int receive_part(void *socket, zmq_msg_t *out)
{
    int result;

    do
        result = zmq_msg_recv(out, socket, ZMQ_DONTWAIT);
    while (result < 0 && errno == EINTR);
    return result;
}

/* ---- the network's door ---- */

/* Without CURVE's options the socket would take anybody: any that fails is the end. */
static int set_curve(void *socket, const struct keys *keys)
{
    static const char domain[] = "silt"; /* libzmq asks ZAP only where there is one */
    int result = set_option(socket, ZMQ_CURVE_SERVER, 1);

    if (zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, keys->secret_key, KEY_BYTES) != 0)
        result = -errno;
    if (zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, domain, sizeof domain - 1) != 0)
        result = -errno;
    result = result ? result : set_option(socket, ZMQ_RCVHWM, GATE_NETWORK_IN_MAX);
    result = result ? result : set_option(socket, ZMQ_HEARTBEAT_IVL, GATE_PING_MS);
    result = result ? result : set_option(socket, ZMQ_HEARTBEAT_TIMEOUT, GATE_SILENCE_MS);
    return result ? result : set_option(socket, ZMQ_HANDSHAKE_IVL, GATE_HANDSHAKE_MS);
}

int gate_open_network(struct gate *gate, const char *endpoint, const struct keys *keys, char *error,
                      size_t error_bytes)
{
    size_t bytes = sizeof gate->network;
    void *socket;
    int result;

    if (!zmq_has("curve"))
        return fail(error, error_bytes, -ENOTSUP, "--listen %s: %s", endpoint,
                    "this libzmq has no CURVE, and TCP without it could be read by anybody: "
                    "listen on ipc:// alone");
    gate->keys = keys;
    gate->zap = zmq_socket(gate->context, ZMQ_REP);
    if (!gate->zap || zmq_bind(gate->zap, "inproc://zeromq.zap.01") != 0) {
        result = -errno;
        return fail(error, error_bytes, result, "--listen %s: no ZAP socket: %s", endpoint,
                    zmq_strerror(-result));
    }
    result = make_socket(gate, DOOR_NETWORK);
    socket = gate->socket[DOOR_NETWORK];
    if (!result)
        result = set_curve(socket, keys);
    if (!result && strchr(endpoint, '['))
        result = set_option(socket, ZMQ_IPV6, 1);
    if (!result && zmq_bind(socket, endpoint) != 0)
        result = -errno;
    if (!result && zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, gate->network, &bytes) != 0)
        result = -errno;
    if (result)
        fail(error, error_bytes, result,
             result == -EADDRINUSE ? "--listen %s: %s; choose another port"
                                   : "--listen %s: %s; 0.0.0.0 is all of this machine's addresses",
             endpoint, zmq_strerror(-result));
    return result;
}

/* One frame of the ZAP request as text; longer ones are cut, which fits nothing they may be. */
static size_t zap_frame(struct gate *gate, char *out, size_t out_bytes, bool *more)
{
    size_t bytes = 0;
    zmq_msg_t frame;

    zmq_msg_init(&frame);
    if (receive_part(gate->zap, &frame) >= 0)
        bytes = zmq_msg_size(&frame);
    if (bytes > out_bytes - 1)
        bytes = out_bytes - 1;
    memcpy(out, zmq_msg_data(&frame), bytes);
    out[bytes] = '\0';
    *more = zmq_msg_more(&frame);
    zmq_msg_close(&frame);
    return bytes;
}

static void zap_reply(struct gate *gate, const char *request, size_t request_bytes, const char *key)
{
    const char *code = key[0] ? "200" : "400", *text = key[0] ? "OK" : "this key is not allowed";

    send_part(gate->zap, "1.0", 3, ZMQ_SNDMORE);
    send_part(gate->zap, request, request_bytes, ZMQ_SNDMORE);
    send_part(gate->zap, code, 3, ZMQ_SNDMORE);
    send_part(gate->zap, text, strlen(text), ZMQ_SNDMORE);
    send_part(gate->zap, key, strlen(key), ZMQ_SNDMORE);
    send_part(gate->zap, "", 0, 0);
}

/* Whoever is refused tries again and again: the log says it once in a while. */
static void say_refused(struct gate *gate, const char *address, const char *key)
{
    if (say_again(&gate->refused_us))
        say(SAY_WARN, "a client at %.64s was refused: its key %s is not allowed", address, key);
}

/* A request is: version, its id, domain, address, identity, mechanism, and CURVE's raw key. */
void gate_authenticate(struct gate *gate)
{
    enum { VERSION, ID, DOMAIN, ADDRESS, IDENTITY, MECHANISM, KEY, FRAMES };
    char frame[FRAMES][256], rest[8], key[KEY_BYTES + 1] = "";
    size_t bytes[FRAMES] = {0};
    bool more = true;
    int count = 0;

    while (more && count < FRAMES) {
        bytes[count] = zap_frame(gate, frame[count], sizeof frame[count], &more);
        count++;
    }
    if (bytes[VERSION] == 0)
        return; /* nothing was there */
    while (more)
        zap_frame(gate, rest, sizeof rest, &more);
    if (count == FRAMES && strcmp(frame[VERSION], "1.0") == 0 &&
        strcmp(frame[MECHANISM], "CURVE") == 0 && bytes[KEY] == 32)
        zmq_z85_encode(key, (const uint8_t *)frame[KEY], 32);
    if (key[0] && !keys_known(gate->keys, key)) {
        say_refused(gate, frame[ADDRESS], key);
        key[0] = '\0';
    }
    zap_reply(gate, frame[ID], bytes[ID], key);
}

void gate_close(struct gate *gate)
{
    if (gate->holds_frame)
        zmq_msg_close(&gate->frame);
    clients_close(&gate->clients);
    for (int door = 0; door < GATE_DOORS; door++)
        if (gate->socket[door])
            zmq_close(gate->socket[door]);
    if (gate->zap)
        zmq_close(gate->zap);
    while (gate->context && zmq_ctx_term(gate->context) != 0 && errno == EINTR)
        continue; /* a second SIGTERM: the last replies are on their way */
    if (gate->path[0])
        unlink(gate->path);
    memset(gate, 0, sizeof *gate);
}

/* ---- frames ---- */

static void drop_rest(struct gate *gate, void *socket)
{
    while (zmq_msg_more(&gate->frame))
        if (receive_part(socket, &gate->frame) < 0)
            return;
}

/* Who sent the frame that is held. libzmq gives out ids of five bytes that begin with 0; a client
 * that brings its own could come to stand where another's replies go, so over the network it is
 * nobody. */
static bool sender_proved(struct gate *gate, struct wire_client *client)
{
    const char *key = zmq_msg_gets(&gate->frame, "User-Id");

    if (client->door == DOOR_LOCAL)
        return true;
    if (!key || !keys_text_valid(key) || client->bytes != 5 || client->id[0] != 0)
        return false;
    memcpy(client->key, key, sizeof client->key);
    return true;
}

/* The first frame of a message: the client's id. False: nothing waits at any door. */
static bool receive_id(struct gate *gate, struct wire_client *client)
{
    for (int i = 0; i < GATE_DOORS; i++) {
        gate->turn = (uint8_t)((gate->turn + 1) % GATE_DOORS);
        if (!gate->socket[gate->turn] || receive_part(gate->socket[gate->turn], &gate->frame) < 0)
            continue;
        client->door = gate->turn;
        return true;
    }
    return false;
}

/* One whose key is allowed nothing any more has no place, and is told why. */
static bool admit(struct gate *gate, const struct wire_client *client)
{
    bool is_local = client->door == DOOR_LOCAL;

    return (!is_local && !keys_known(gate->keys, client->key)) ||
           clients_admit(&gate->clients, zmq_msg_get(&gate->frame, ZMQ_SRCFD),
                         is_local ? NULL : client->key);
}

int gate_receive(struct gate *gate, struct wire_client *client, const uint8_t **bytes,
                 size_t *bytes_count)
{
    size_t id_bytes;
    bool id_fits;
    void *socket;

    if (gate->holds_frame)
        zmq_msg_close(&gate->frame);
    zmq_msg_init(&gate->frame);
    gate->holds_frame = true;
    memset(client, 0, sizeof *client);
    clients_drain(&gate->clients);
    if (!receive_id(gate, client))
        return -EAGAIN;
    socket = gate->socket[client->door];
    id_bytes = zmq_msg_size(&gate->frame);
    id_fits = id_bytes <= CLIENT_ID_BYTES_MAX;
    if (id_fits) {
        client->bytes = (uint8_t)id_bytes;
        memcpy(client->id, zmq_msg_data(&gate->frame), id_bytes);
    }
    if (!zmq_msg_more(&gate->frame) || receive_part(socket, &gate->frame) < 0 || !id_fits ||
        !sender_proved(gate, client)) {
        drop_rest(gate, socket);
        return -EPROTO; /* nobody that can be answered */
    }
    gate->admitted = admit(gate, client);
    if (zmq_msg_more(&gate->frame)) {
        drop_rest(gate, socket);
        return -EBADMSG;
    }
    *bytes = zmq_msg_data(&gate->frame);
    *bytes_count = zmq_msg_size(&gate->frame);
    return 0;
}

int gate_send(struct gate *gate, const struct wire_client *client, const void *bytes,
              size_t bytes_count)
{
    void *socket = gate->socket[client->door];

    if (send_part(socket, client->id, client->bytes, ZMQ_SNDMORE) < 0 ||
        send_part(socket, bytes, bytes_count, 0) < 0)
        return errno == EHOSTUNREACH ? -EHOSTUNREACH : -EAGAIN;
    return 0;
}
