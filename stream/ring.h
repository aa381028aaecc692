/*
 * ring: reads and writes of whole blocks, many at a time, done by io_uring or by plain calls.
 *
 * A `disk_engine` is the seam: one struct of functions that start an operation and report how it
 * ended, raw. io_uring is one, pread/pwrite another, a disk that fails on purpose a third (tests).
 * A `disk` above it keeps the depth bounded, goes on after short transfers and tries again what was
 * refused for now. Operations are the caller's and hold its memory until they come back from
 * disk_reap. One thread uses a disk; nothing is allocated after open.
 */
#ifndef SILT_STREAM_RING_H
#define SILT_STREAM_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DISK_ALIGN = 4096, /* of offsets, counts and memory where a file is O_DIRECT */
    DISK_DEPTH = 32,   /* operations under way */
    DISK_FILES_MAX = 64,
    DISK_RETRIES_MAX = 1000, /* of an operation that was refused for now */
    /* What the kernel keeps for a ring of this depth, for the memory plan: entries of 64 and twice
     * as many of 16 bytes, rounded up generously. */
    DISK_RING_BYTES = 64 << 10,
};

enum disk_kind { DISK_READ, DISK_WRITE, DISK_SYNC };

struct disk_op {
    enum disk_kind kind;
    uint32_t file; /* slot given to disk_file_add */
    uint8_t *bytes;
    size_t count;
    uint64_t offset;
    size_t done; /* out: less than count where a read met the end of the file */
    int result;  /* out: 0 or negative errno */
    uint32_t retries;
    struct disk_op *next;
    void *user;
};

struct disk_done {
    struct disk_op *op;
    int result; /* bytes, or negative errno, as the system said */
};

struct disk_engine {
    const char *name;
    /* Begins with bytes [done, count) of op. 0, -EAGAIN: no room now, or what went wrong. */
    int (*start)(struct disk_engine *engine, struct disk_op *op);
    /* Hands over what start took; with wait, until one has ended. How many are in out, or negative
     * errno. */
    int (*reap)(struct disk_engine *engine, struct disk_done *out, uint32_t max, bool wait);
    /* A file comes to a slot, or leaves it (fd -1). */
    int (*file_set)(struct disk_engine *engine, uint32_t slot, int fd);
    void (*close)(struct disk_engine *engine);
    /* Whether its event_fd keeps still when an operation ends. NULL: it has none. */
    void (*quiet)(struct disk_engine *engine, bool quiet);
};

/* Bytes of memory, 64-byte aligned, an engine lives in: the larger of both. */
size_t disk_engine_bytes(void);
/* memory[registered, + registered_bytes) is where most operations' bytes will lie; event_fd (-1:
 * none) becomes readable when an operation ends. -ENOSYS, -EPERM, …: the kernel refuses. */
int disk_engine_uring(struct disk_engine **out, void *memory, void *registered,
                      size_t registered_bytes, int event_fd);
int disk_engine_plain(struct disk_engine **out, void *memory);

struct disk {
    struct disk_engine *engine;
    struct disk_op *waiting, *waiting_last; /* not started yet, oldest first */
    uint32_t flying;
    int fd[DISK_FILES_MAX]; /* -1: free */
};

void disk_init(struct disk *disk, struct disk_engine *engine);
/* A free slot, which the disk closes at disk_file_drop; -ENFILE: none, the caller drops one first.
 */
int disk_file_add(struct disk *disk, int fd);
/* No operation on it may be under way. */
void disk_file_drop(struct disk *disk, uint32_t slot);
/* Queues an operation; it begins when there is room. */
void disk_start(struct disk *disk, struct disk_op *op);
/* Starts what waits and gives back what has ended, at most max; with wait, at least one unless
 * nothing is under way. */
uint32_t disk_reap(struct disk *disk, struct disk_op **out, uint32_t max, bool wait);
static inline bool disk_idle(const struct disk *disk)
{
    return !disk->flying && !disk->waiting;
}
/* While quiet, nobody is told that an operation ends: it is found by the next disk_reap. */
void disk_quiet(struct disk *disk, bool quiet);
/* Does one operation and waits for it. Only while the disk is idle. Its result. */
int disk_run(struct disk *disk, struct disk_op *op);

#endif
