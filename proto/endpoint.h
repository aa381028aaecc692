/*
 * endpoint: where siltd listens and silt looks when nobody says otherwise.
 *
 * Also the version, and the limits of the wire that both sides check. No state, any thread.
 */
#ifndef SILT_ENDPOINT_H
#define SILT_ENDPOINT_H

#include <ctype.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define SILT_VERSION "0.1.0" /* of siltd and of what is built with it */

enum {
    WIRE_FRAME_BYTES_MAX = 1 << 20,
    WIRE_NAME_BYTES_MAX = 128,
    WIRE_PRODUCER_BYTES_MAX = 64,
    ENDPOINT_BYTES_MAX = 256,
    WIRE_KEY_BYTES = 40, /* a CURVE key as Z85 text, ZeroMQ RFC 32 */
    WIRE_KEY_NAME_BYTES_MAX = 64,
};

/* Writes ipc://$XDG_RUNTIME_DIR/silt.sock where that folder is named, else
 * ipc:///tmp/silt-UID/silt.sock, whose folder siltd makes with mode 0700. Returns 0, or -1 where
 * the path is too long. */
static inline int endpoint_default(char *out, size_t out_bytes)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int n = runtime && runtime[0] == '/'
                ? snprintf(out, out_bytes, "ipc://%s/silt.sock", runtime)
                : snprintf(out, out_bytes, "ipc:///tmp/silt-%u/silt.sock", (unsigned)getuid());

    return n < 0 || (size_t)n >= out_bytes ? -1 : 0;
}

/* Whether an endpoint is in this user's folder in /tmp, which anybody could have made first: then
 * who answers there has to be this user, or root. */
static inline bool endpoint_in_tmp(const char *endpoint)
{
    char own[64];
    int n = snprintf(own, sizeof own, "ipc:///tmp/silt-%u/", (unsigned)getuid());

    return strncmp(endpoint, own, (size_t)n) == 0;
}

/* Whether what stands behind the last colon is a port that can be had: ZeroMQ takes 99999 for what
 * is left of it in 16 bits. 0 or *, where one listens: any. */
static inline bool endpoint_port_valid(const char *endpoint, bool listens)
{
    const char *port = strrchr(endpoint, ':');
    char *end;
    unsigned long number;

    if (listens && port && strcmp(port, ":*") == 0)
        return true;
    if (!port || !isdigit((unsigned char)port[1]))
        return false;
    number = strtoul(port + 1, &end, 10);
    return !*end && number <= 65535 && (number || listens);
}

#endif
