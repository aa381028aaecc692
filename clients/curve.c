/* curve: CURVE keys of a client, and where it finds endpoint and keys when nobody names them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "clients/link.h"

bool client_key_valid(const char *key)
{
    uint8_t raw[32];

    return key && strnlen(key, CLIENT_KEY_BYTES + 1) == CLIENT_KEY_BYTES &&
           zmq_z85_decode(raw, key) != NULL;
}

/* ---- key files ---- */

int client_key_new(const char *path, char *public_key, struct client_error *error)
{
    char secret[CLIENT_KEY_BYTES + 1], text[400];
    int fd, bytes;
    bool written;

    /* One that begins with a dash would be an option to those who type it. */
    do {
        if (zmq_curve_keypair(public_key, secret))
            return client_fail(error, -ENOTSUP, "this libzmq has no CURVE: no keys can be made");
    } while (public_key[0] == '-');
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        int r = -errno;

        explicit_bzero(secret, sizeof secret);
        return client_fail(error, r,
                           r == -EEXIST ? "%s exists: a key is never written over"
                                        : "%s cannot be made: %s",
                           path, strerror(-r));
    }
    bytes = snprintf(text, sizeof text,
                     "# A client key of silt. Who has this file may use what the key is allowed.\n"
                     "public-key = %s\nsecret-key = %s\n",
                     public_key, secret);
    written = write(fd, text, (size_t)bytes) == bytes && fsync(fd) == 0;
    explicit_bzero(secret, sizeof secret);
    explicit_bzero(text, sizeof text);
    if (!close(fd) && written)
        return 0;
    unlink(path);
    return client_fail(error, -EIO, "%s cannot be written", path);
}

int client_key_read(const char *path, char *public_key, char *secret_key,
                    struct client_error *error)
{
    char line[256], check[CLIENT_KEY_BYTES + 1], secret[CLIENT_KEY_BYTES + 1] = "";
    FILE *file = fopen(path, "re");
    struct stat stat;

    if (!file || fstat(fileno(file), &stat)) {
        int r = -errno;

        if (file)
            fclose(file);
        return client_fail(error, r,
                           "the client key %s cannot be read: %s; `silt key new` makes one", path,
                           strerror(-r));
    }
    public_key[0] = '\0';
    while (fgets(line, sizeof line, file)) {
        (void)sscanf(line, "public-key = %40s", public_key);
        (void)sscanf(line, "secret-key = %40s", secret);
    }
    fclose(file);
    explicit_bzero(line, sizeof line);
    if (stat.st_mode & 077)
        return client_fail(error, -EPERM, "the client key %s can be read by others: chmod 600 it",
                           path);
    if (!client_key_valid(secret) || zmq_curve_public(check, secret) || strcmp(check, public_key))
        return client_fail(error, -EINVAL, "%s is no client key: `silt key new` makes one", path);
    if (secret_key)
        memcpy(secret_key, secret, sizeof secret);
    explicit_bzero(secret, sizeof secret);
    return 0;
}

/* ---- settings ---- */

static int setting_path(char *out, size_t out_bytes, const char *file)
{
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    int n = config && config[0] == '/'
                ? snprintf(out, out_bytes, "%s/silt/%s", config, file)
                : snprintf(out, out_bytes, "%s/.config/silt/%s", home ? home : "", file);

    return n < 0 || (size_t)n >= out_bytes ? -ENAMETOOLONG : 0;
}

int client_key_path(char *out, size_t out_bytes)
{
    return setting_path(out, out_bytes, "client.key");
}

static char *trimmed(char *text)
{
    size_t bytes;

    text += strspn(text, " \t");
    bytes = strlen(text);
    while (bytes && strchr(" \t\r\n", text[bytes - 1]))
        text[--bytes] = '\0';
    return text;
}

/* One line `key = value`; what is already set stays. */
static int setting_take(struct client_settings *settings, char *line)
{
    char *value = strchr(line, '='), *key;
    char *field;
    size_t bytes;

    key = trimmed(line);
    if (!key[0] || key[0] == '#')
        return 0;
    if (!value)
        return -EINVAL;
    *value++ = '\0';
    key = trimmed(key);
    value = trimmed(value);
    if (!strcmp(key, "endpoint")) {
        field = settings->endpoint;
        bytes = sizeof settings->endpoint;
    } else if (!strcmp(key, "server-key")) {
        field = settings->server_key;
        bytes = sizeof settings->server_key;
    } else if (!strcmp(key, "client-key")) {
        field = settings->client_key;
        bytes = sizeof settings->client_key;
    } else {
        return -EINVAL;
    }
    if (field[0])
        return 0;
    return snprintf(field, bytes, "%s", value) < (int)bytes ? 0 : -EINVAL;
}

static int setting_set(char *field, size_t bytes, const char *option, const char *variable,
                       struct client_error *error)
{
    const char *from = option ? option : getenv(variable);

    if (snprintf(field, bytes, "%s", from ? from : "") < (int)bytes)
        return 0;
    return client_fail(error, -ENAMETOOLONG, "%s is longer than %zu bytes", variable, bytes - 1);
}

static int settings_file(struct client_settings *settings, struct client_error *error)
{
    char path[PATH_MAX], line[PATH_MAX + 64];
    unsigned number = 0;
    FILE *file;
    int r = 0;

    if (setting_path(path, sizeof path, "client.conf"))
        return 0;
    file = fopen(path, "re");
    if (!file)
        return 0; /* most have none */
    while (!r && fgets(line, sizeof line, file)) {
        number++;
        if (setting_take(settings, line))
            r = client_fail(error, -EINVAL,
                            "%s line %u is not `endpoint`, `server-key` or `client-key` = value",
                            path, number);
    }
    fclose(file);
    return r;
}

int client_settings(struct client_settings *out, const struct client_options *options,
                    struct client_error *error)
{
    int r;

    *out = (struct client_settings){0};
    r = setting_set(out->endpoint, sizeof out->endpoint, options->endpoint, "SILT_ENDPOINT", error);
    if (!r)
        r = setting_set(out->server_key, sizeof out->server_key, options->server_key,
                        "SILT_SERVER_KEY", error);
    if (!r)
        r = setting_set(out->client_key, sizeof out->client_key, options->client_key,
                        "SILT_CLIENT_KEY", error);
    if (!r)
        r = settings_file(out, error);
    if (!r && !out->endpoint[0] && endpoint_default(out->endpoint, sizeof out->endpoint))
        r = client_fail(error, -ENAMETOOLONG, "the endpoint's name is too long");
    if (r || strncmp(out->endpoint, "tcp://", 6) != 0 || out->client_key[0])
        return r;
    if (client_key_path(out->client_key, sizeof out->client_key))
        out->client_key[0] = '\0';
    return 0;
}

int client_curve(struct client *client, const struct client_settings *settings,
                 struct client_error *error)
{
    client->curve = strncmp(client->endpoint, "tcp://", 6) == 0;
    if (!client->curve)
        return 0;
    if (!endpoint_port_valid(client->endpoint, false))
        return client_fail(error, -EINVAL,
                           "cannot connect to \"%s\": give tcp://HOST:PORT, the port a number from "
                           "1 to 65535",
                           client->endpoint);
    if (!settings->server_key[0])
        return client_fail(error, -EACCES,
                           "%s is reached over the network, which needs siltd's server key: `silt "
                           "key server` on its machine prints it; give it as --server-key, "
                           "SILT_SERVER_KEY, or server-key in client.conf",
                           client->endpoint);
    if (!client_key_valid(settings->server_key))
        return client_fail(error, -EINVAL,
                           "\"%.60s\" is no server key: it has 40 characters, as `silt key server` "
                           "on siltd's machine prints it",
                           settings->server_key);
    memcpy(client->server_key, settings->server_key, sizeof client->server_key);
    return client_key_read(settings->client_key, client->public_key, client->secret_key, error);
}
