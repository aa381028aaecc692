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

static int make_socket(struct gate *gate)
{
    int64_t frame_max = FRAME_BYTES_HARD_MAX;
    int result = 0;

    gate->context = zmq_ctx_new();
    if (!gate->context)
        return -errno;
    zmq_ctx_set(gate->context, ZMQ_IO_THREADS, 1);
    gate->socket = zmq_socket(gate->context, ZMQ_ROUTER);
    if (!gate->socket)
        return -errno;
    if (zmq_setsockopt(gate->socket, ZMQ_MAXMSGSIZE, &frame_max, sizeof frame_max) != 0)
        return -errno;
    result |= set_option(gate->socket, ZMQ_RCVHWM, GATE_IN_MAX);
    result |= set_option(gate->socket, ZMQ_SNDHWM, GATE_OUT_MAX);
    result |= set_option(gate->socket, ZMQ_LINGER, 200);
    result |= set_option(gate->socket, ZMQ_ROUTER_MANDATORY, 1);
    result |= set_option(gate->socket, ZMQ_BACKLOG, 128);
    return result ? -EINVAL : 0;
}

int gate_open(struct gate *gate, const char *endpoint, char *error, size_t error_bytes)
{
    mode_t mask;
    int result;

    memset(gate, 0, sizeof *gate);
    if (strncmp(endpoint, "ipc://", 6) != 0)
        return fail(error, error_bytes, -EINVAL, "--listen %s: %s", endpoint,
                    "give ipc://PATH; TCP needs CURVE keys, which this siltd does not have yet");
    result = prepare_path(gate, endpoint, error, error_bytes);
    if (result)
        return result;
    result = make_socket(gate);
    if (result) {
        fail(error, error_bytes, result, "--listen %s: no socket: %s", endpoint, strerror(-result));
        goto error;
    }
    mask = umask(0177);
    if (zmq_bind(gate->socket, endpoint) != 0) {
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

void gate_close(struct gate *gate)
{
    if (gate->holds_frame)
        zmq_msg_close(&gate->frame);
    if (gate->socket)
        zmq_close(gate->socket);
    if (gate->context)
        zmq_ctx_term(gate->context);
    if (gate->path[0])
        unlink(gate->path);
    memset(gate, 0, sizeof *gate);
}

static void drop_rest(struct gate *gate)
{
    while (zmq_msg_more(&gate->frame))
        if (zmq_msg_recv(&gate->frame, gate->socket, ZMQ_DONTWAIT) < 0)
            return;
}

int gate_receive(struct gate *gate, struct wire_client *client, const uint8_t **bytes,
                 size_t *bytes_count)
{
    size_t id_bytes;
    bool id_fits;

    if (gate->holds_frame)
        zmq_msg_close(&gate->frame);
    zmq_msg_init(&gate->frame);
    gate->holds_frame = true;
    if (zmq_msg_recv(&gate->frame, gate->socket, ZMQ_DONTWAIT) < 0)
        return -EAGAIN;
    id_bytes = zmq_msg_size(&gate->frame);
    id_fits = id_bytes <= CLIENT_ID_BYTES_MAX;
    if (id_fits) {
        client->bytes = (uint8_t)id_bytes;
        memcpy(client->id, zmq_msg_data(&gate->frame), id_bytes);
    }
    if (!zmq_msg_more(&gate->frame) || zmq_msg_recv(&gate->frame, gate->socket, ZMQ_DONTWAIT) < 0 ||
        !id_fits) {
        drop_rest(gate);
        return -EPROTO; /* nobody that can be answered */
    }
    if (zmq_msg_more(&gate->frame)) {
        drop_rest(gate);
        return -EBADMSG;
    }
    *bytes = zmq_msg_data(&gate->frame);
    *bytes_count = zmq_msg_size(&gate->frame);
    return 0;
}

int gate_send(struct gate *gate, const struct wire_client *client, const void *bytes,
              size_t bytes_count)
{
    if (zmq_send(gate->socket, client->id, client->bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return errno == EHOSTUNREACH ? -EHOSTUNREACH : -EAGAIN;
    if (zmq_send(gate->socket, bytes, bytes_count, ZMQ_DONTWAIT) < 0)
        return errno == EHOSTUNREACH ? -EHOSTUNREACH : -EAGAIN;
    return 0;
}
