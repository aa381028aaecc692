/*
 * keys: siltd's own CURVE key pair, and which client keys may use which streams over TCP.
 *
 * Both lie in DATA/keys, mode 0600: `server`, made at the first start, and `clients`, one grant a
 * line (key, name, stream or *). What a message says ends up in that file's lines alone, never in
 * a path. A line that cannot be read stops the start: guessing who may enter is no option.
 *
 * Threads: the loop's. Changes are on disk when a call returns. Limits: GRANTS_MAX.
 */
#ifndef SILT_DAEMON_KEYS_H
#define SILT_DAEMON_KEYS_H

#include "daemon/daemon.h"
#include "daemon/files.h"

enum {
    KEY_BYTES = WIRE_KEY_BYTES,
    KEY_NAME_BYTES_MAX = WIRE_KEY_NAME_BYTES_MAX,
    GRANTS_MAX = 1024,
};

struct grant {
    char key[KEY_BYTES + 1]; /* public, Z85 */
    char name[KEY_NAME_BYTES_MAX + 1];
    char stream[NAME_BYTES_MAX + 1]; /* empty: every stream */
};

struct keys {
    const struct files *files;
    char folder[PATH_BYTES_MAX + 8];
    char public_key[KEY_BYTES + 1], secret_key[KEY_BYTES + 1];
    struct grant *grants; /* [GRANTS_MAX], the caller's */
    uint32_t count;
    bool unsynced; /* the folder: it may not have the newest file after a power loss */
};

/* The pair of DATA/keys is read, or made where there is none. 0 or a negative errno with a sentence
 * in error. */
int keys_open(struct keys *keys, const struct files *files, const char *data, char *error,
              size_t error_bytes);
/* The secret leaves memory. */
void keys_close(struct keys *keys);
bool keys_text_valid(const char *key);
/* Is the key allowed anything; allowed that stream (NULL: every one)? */
bool keys_known(const struct keys *keys, const char *key);
bool keys_may(const struct keys *keys, const char *key, const char *stream);
/* stream NULL: every one. 0 also where it was so before; -ENOSPC: GRANTS_MAX; or what the disk
 * said: where it *holds nevertheless, but may not be after a power loss, until the same is
 * asked again without an error. */
int keys_allow(struct keys *keys, const char *key, const char *name, const char *stream,
               bool *holds);
/* stream NULL: all that the key has. -ENOENT: it has no such grant. */
int keys_deny(struct keys *keys, const char *key, const char *stream, bool *holds);

#endif
