/* The write-ahead log as SQLite's file format describes it (sqlite.org/fileformat2.html, 4.1). */
#include "daemon/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    NAME_BYTES = 1100,
    MAGIC = 0x377f0682, /* the last bit: sums are of big-endian words */
};

struct sum {
    uint32_t a, b;
    bool big;
};

static uint32_t word(const uint8_t *at, bool big)
{
    return big ? (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]
               : (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
}

static void sum_add(struct sum *sum, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i += 8) {
        sum->a += word(bytes + i, sum->big) + sum->b;
        sum->b += word(bytes + i + 4, sum->big) + sum->a;
    }
}

static bool sum_is(const struct sum *sum, const uint8_t *at)
{
    return sum->a == word(at, true) && sum->b == word(at + 4, true);
}

/* Bytes of the log that are whole and of this salt, up to `wanted`. UINT64_MAX: another log has
 * begun since the witness was written. */
static uint64_t whole_bytes(int fd, const struct pages_witness *witness)
{
    uint8_t header[LOG_HEAD_BYTES], frame[FRAME_BYTES];
    struct sum sum = {0};
    uint64_t at = LOG_HEAD_BYTES;

    if (pread(fd, header, sizeof header, 0) != (ssize_t)sizeof header ||
        (word(header, true) & ~1u) != MAGIC)
        return 0;
    sum.big = word(header, true) & 1;
    sum_add(&sum, header, 24);
    if (!sum_is(&sum, header + 24))
        return 0;
    if (memcmp(header + 16, witness->salt, sizeof witness->salt) != 0)
        return UINT64_MAX;
    while (at + FRAME_BYTES <= witness->bytes) {
        if (pread(fd, frame, sizeof frame, (off_t)at) != (ssize_t)sizeof frame ||
            memcmp(frame + 8, witness->salt, sizeof witness->salt) != 0)
            return at;
        sum_add(&sum, frame, 8);
        sum_add(&sum, frame + FRAME_HEAD_BYTES, PAGES_BYTES);
        if (!sum_is(&sum, frame + 16))
            return at;
        at += FRAME_BYTES;
    }
    return at;
}

/* False: there is none, or it is damaged itself and says nothing. */
static bool read_witness(const char *path, struct pages_witness *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool right = fd >= 0 && pread(fd, out, sizeof *out, 0) == (ssize_t)sizeof *out &&
                 out->hash == XXH3_64bits(out, offsetof(struct pages_witness, hash));

    if (fd >= 0)
        close(fd);
    return right;
}

int pages_log_check(const char *database, char *error, size_t error_bytes)
{
    char log[NAME_BYTES], path[NAME_BYTES];
    struct pages_witness witness;
    uint64_t whole = 0;
    int fd;

    snprintf(log, sizeof log, "%s-wal", database);
    snprintf(path, sizeof path, "%s-synced", database);
    if (!read_witness(path, &witness) || witness.bytes <= LOG_HEAD_BYTES)
        return 0;
    /* A sync may fall into the filling of a disk's block, behind the last frame that counts. */
    witness.bytes -= (witness.bytes - LOG_HEAD_BYTES) % FRAME_BYTES;
    fd = open(log, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        whole = whole_bytes(fd, &witness);
        close(fd);
    }
    if (whole >= witness.bytes)
        return 0;
    snprintf(error, error_bytes,
             "%s is damaged: it was on disk up to byte %llu and is whole up to byte %llu, so acked "
             "text is missing: restore it from a copy, or remove %s to go on without that text",
             log, (unsigned long long)witness.bytes, (unsigned long long)whole, path);
    return -EBADMSG;
}
