/*
 * libFuzzer: any bytes as a checkpoint file. What is taken is what lies there, whole; all else is
 * refused. (A state behind a right hash is siltd's own: stream_restore checks its shape.)
 *
 *     clang -g -O1 -std=c17 -D_GNU_SOURCE -I. -fsanitize=fuzzer,address,undefined \
 *         tests/fuzz/fuzz_checkpoint.c daemon/checkpoint.c daemon/files.c -lxxhash
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/checkpoint.h"

enum { STATE_MAX = 3000, STREAM = 7, TOKENS = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

struct input {
    const uint8_t *bytes;
    size_t count;
};

static int give_open(void *user, const char *path, int flags)
{
    (void)user, (void)path, (void)flags;
    return 3;
}

/* In small pieces: a short read is no end. */
static ssize_t give_read(void *user, int fd, void *bytes, size_t count, off_t at)
{
    const struct input *input = user;
    size_t left = (size_t)at < input->count ? input->count - (size_t)at : 0;
    size_t n = count < left ? count : left;

    (void)fd;
    n = n > 1000 ? 1000 : n;
    if (n)
        memcpy(bytes, input->bytes + at, n);
    return (ssize_t)n;
}

static int give_close(void *user, int fd)
{
    (void)user, (void)fd;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static uint8_t state[STATE_MAX];
    struct input input = {data, bytes};
    struct files files = {
        .open = give_open, .read = give_read, .close = give_close, .user = &input};
    struct checkpoints at = {.files = &files, .model_fingerprint = 1, .adapter_fingerprint = 2};
    size_t state_bytes = 0;

    if (checkpoint_read(&at, STREAM, TOKENS, state, sizeof state, &state_bytes) != 0)
        return 0;
    /* It was taken: then it is what was written, all of it in the buffer. */
    if (state_bytes > sizeof state || bytes < CHECKPOINT_HEAD_BYTES + state_bytes ||
        memcmp(state, data + CHECKPOINT_HEAD_BYTES, state_bytes) != 0)
        abort();
    return 0;
}
