#include "daemon/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zmq.h>

#include "daemon/wire.h"

enum {
    FILE_PATH_MAX = PATH_BYTES_MAX + 32,
    LINE_BYTES_MAX = KEY_BYTES + KEY_NAME_BYTES_MAX + NAME_BYTES_MAX + 8
};

static void path_of(const struct keys *keys, const char *file, char *out)
{
    snprintf(out, FILE_PATH_MAX, "%s/%s", keys->folder, file);
}

bool keys_text_valid(const char *key)
{
    uint8_t raw[32];

    return strnlen(key, KEY_BYTES + 1) == KEY_BYTES && zmq_z85_decode(raw, key) != NULL;
}

static int fail(char *error, size_t error_bytes, int result, const char *path, const char *why)
{
    snprintf(error, error_bytes, "%s %s", path, why);
    return result;
}

/* ---- files ---- */

static int sync_folder(struct keys *keys)
{
    int result = files_sync_folder(keys->files, keys->folder);

    keys->unsynced = result != 0;
    return result;
}

/* The whole text beside the old one, then in its place: a crash leaves one of both. *written: the
 * file is the new one, with an error too where only its name may not be durable. */
static int write_lines(struct keys *keys, const char *file,
                       size_t (*line)(const struct keys *, uint32_t, char *), uint32_t count,
                       bool *written)
{
    const struct files *files = keys->files;
    char path[FILE_PATH_MAX], fresh[FILE_PATH_MAX + 4], text[LINE_BYTES_MAX];
    off_t at = 0;
    int fd, result = 0, closed;

    *written = false;
    path_of(keys, file, path);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    fd = files->open(files->user, fresh, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0)
        return fd;
    for (uint32_t i = 0; !result && i < count; i++) {
        size_t bytes = line(keys, i, text);

        result = files_write_all(files, fd, text, bytes, at);
        at += (off_t)bytes;
    }
    if (!result)
        result = files->sync(files->user, fd);
    closed = files->close(files->user, fd);
    if (!result)
        result = closed;
    if (!result)
        result = files->rename(files->user, fresh, path);
    *written = !result;
    if (!result)
        return sync_folder(keys);
    files->unlink(files->user, fresh);
    return result;
}

static size_t server_line(const struct keys *keys, uint32_t i, char *out)
{
    return (size_t)snprintf(out, LINE_BYTES_MAX, "%s = %s\n", i ? "secret-key" : "public-key",
                            i ? keys->secret_key : keys->public_key);
}

static size_t grant_line(const struct keys *keys, uint32_t i, char *out)
{
    const struct grant *grant = &keys->grants[i];

    return (size_t)snprintf(out, LINE_BYTES_MAX, "%s %s %s\n", grant->key, grant->name,
                            grant->stream[0] ? grant->stream : "*");
}

/* NULL with *result 0: it is not there. */
static FILE *open_private(const char *path, int *result, char *error, size_t error_bytes)
{
    FILE *file = fopen(path, "re");
    struct stat status;

    *result = 0;
    if (!file && errno == ENOENT)
        return NULL;
    if (!file || fstat(fileno(file), &status) != 0) {
        *result = fail(error, error_bytes, -EIO, path, "cannot be read");
    } else if (status.st_mode & 077) {
        *result = fail(error, error_bytes, -EPERM, path, "can be read by others: chmod 600 it");
    } else {
        return file;
    }
    if (file)
        fclose(file);
    return NULL;
}

static int make_pair(struct keys *keys, char *error, size_t error_bytes)
{
    bool written;
    int result;

    if (!zmq_has("curve"))
        return 0; /* only TCP needs it, and says so */
    if (zmq_curve_keypair(keys->public_key, keys->secret_key) != 0)
        return fail(error, error_bytes, -EIO, keys->folder, "gets no key pair from libzmq");
    result = write_lines(keys, "server", server_line, 2, &written);
    if (result)
        fail(error, error_bytes, result, keys->folder, "cannot be written");
    return result;
}

static int read_pair(struct keys *keys, char *error, size_t error_bytes)
{
    char path[FILE_PATH_MAX], line[LINE_BYTES_MAX], check[KEY_BYTES + 1] = "";
    FILE *file;
    int result;

    path_of(keys, "server", path);
    file = open_private(path, &result, error, error_bytes);
    if (!file)
        return result ? result : make_pair(keys, error, error_bytes);
    while (fgets(line, sizeof line, file)) {
        (void)sscanf(line, "public-key = %40s", keys->public_key);
        (void)sscanf(line, "secret-key = %40s", keys->secret_key);
    }
    fclose(file);
    explicit_bzero(line, sizeof line);
    if (keys_text_valid(keys->secret_key) && zmq_curve_public(check, keys->secret_key) == 0 &&
        strcmp(check, keys->public_key) == 0)
        return 0;
    return fail(error, error_bytes, -EINVAL, path,
                "holds no key pair: restore it, or remove it and give clients the new server key");
}

/* "KEY NAME STREAM" as one line; spaces are in none of them. */
static bool parse_grant(const char *line, struct grant *out)
{
    char key[KEY_BYTES + 2], name[KEY_NAME_BYTES_MAX + 2], stream[NAME_BYTES_MAX + 2], rest;

    _Static_assert(KEY_BYTES == 40 && KEY_NAME_BYTES_MAX == 64 && NAME_BYTES_MAX == 128,
                   "the widths below are one more");
    if (sscanf(line, "%41s %65s %129s %c", key, name, stream, &rest) != 3)
        return false;
    if (!keys_text_valid(key) || !wire_name_valid(name, KEY_NAME_BYTES_MAX))
        return false;
    if (strcmp(stream, "*") != 0 && !wire_name_valid(stream, NAME_BYTES_MAX))
        return false;
    memcpy(out->key, key, sizeof out->key);
    memcpy(out->name, name, sizeof out->name);
    snprintf(out->stream, sizeof out->stream, "%.128s", strcmp(stream, "*") ? stream : "");
    return true;
}

static int read_grants(struct keys *keys, char *error, size_t error_bytes)
{
    char path[FILE_PATH_MAX], line[LINE_BYTES_MAX], why[96];
    unsigned number = 0;
    FILE *file;
    int result;

    path_of(keys, "clients", path);
    file = open_private(path, &result, error, error_bytes);
    while (file && !result && fgets(line, sizeof line, file)) {
        number++;
        if (keys->count < GRANTS_MAX && strchr(line, '\n') &&
            parse_grant(line, &keys->grants[keys->count])) {
            keys->count++;
            continue;
        }
        snprintf(why, sizeof why, "line %u is not KEY NAME STREAM, or there are more than %d",
                 number, GRANTS_MAX);
        result = fail(error, error_bytes, -EINVAL, path, why);
    }
    if (file)
        fclose(file);
    return result;
}

int keys_open(struct keys *keys, const struct files *files, const char *data, char *error,
              size_t error_bytes)
{
    int result;

    keys->files = files;
    keys->count = 0;
    snprintf(keys->folder, sizeof keys->folder, "%s/keys", data);
    if (mkdir(keys->folder, 0700) != 0 && errno != EEXIST)
        return fail(error, error_bytes, -errno, keys->folder, "cannot be made");
    result = read_pair(keys, error, error_bytes);
    return result ? result : read_grants(keys, error, error_bytes);
}

void keys_close(struct keys *keys)
{
    explicit_bzero(keys->secret_key, sizeof keys->secret_key);
    keys->count = 0;
}

/* ---- grants ---- */

bool keys_known(const struct keys *keys, const char *key)
{
    for (uint32_t i = 0; i < keys->count; i++)
        if (strcmp(keys->grants[i].key, key) == 0)
            return true;
    return false;
}

bool keys_may(const struct keys *keys, const char *key, const char *stream)
{
    for (uint32_t i = 0; i < keys->count; i++) {
        const struct grant *grant = &keys->grants[i];

        if (strcmp(grant->key, key) == 0 &&
            (!grant->stream[0] || (stream && strcmp(grant->stream, stream) == 0)))
            return true;
    }
    return false;
}

int keys_allow(struct keys *keys, const char *key, const char *name, const char *stream,
               bool *holds)
{
    struct grant *grant = &keys->grants[keys->count];
    int result;

    *holds = true;
    for (uint32_t i = 0; i < keys->count; i++)
        if (strcmp(keys->grants[i].key, key) == 0 &&
            strcmp(keys->grants[i].stream, stream ? stream : "") == 0)
            return keys->unsynced ? sync_folder(keys) : 0;
    *holds = false;
    if (keys->count == GRANTS_MAX)
        return -ENOSPC;
    snprintf(grant->key, sizeof grant->key, "%s", key);
    snprintf(grant->name, sizeof grant->name, "%s", name);
    snprintf(grant->stream, sizeof grant->stream, "%s", stream ? stream : "");
    keys->count++;
    result = write_lines(keys, "clients", grant_line, keys->count, holds);
    if (!*holds)
        keys->count--;
    return result;
}

/* What is denied goes behind the end first, so that a failed write can take it back. */
int keys_deny(struct keys *keys, const char *key, const char *stream, bool *holds)
{
    uint32_t all = keys->count, kept = 0;
    int result;

    *holds = true;
    for (uint32_t i = 0; i < all; i++) {
        struct grant grant = keys->grants[i];

        if (strcmp(grant.key, key) == 0 && (!stream || strcmp(grant.stream, stream) == 0))
            continue;
        keys->grants[i] = keys->grants[kept];
        keys->grants[kept++] = grant;
    }
    if (kept == all) {
        result = keys->unsynced ? sync_folder(keys) : 0;
        return result ? result : -ENOENT;
    }
    keys->count = kept;
    result = write_lines(keys, "clients", grant_line, kept, holds);
    if (!*holds)
        keys->count = all;
    return result;
}
