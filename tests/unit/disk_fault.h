/*
 * A disk that fails on purpose: stands before a disk engine and spoils the n-th operation of a
 * kind.
 */
#ifndef SILT_DISK_FAULT_H
#define SILT_DISK_FAULT_H

#include "stream/ring.h"

enum disk_fault_kind {
    FAULT_NONE,
    FAULT_EIO,       /* says -EIO and does nothing */
    FAULT_ENOSPC,    /* says -ENOSPC and does nothing */
    FAULT_AGAIN,     /* says -EAGAIN once */
    FAULT_SHORT,     /* moves half of it, whole blocks */
    FAULT_DELAY,     /* ends only when nothing else is under way */
    FAULT_LOST,      /* a write that says it was done and was not; a read of nothing */
    FAULT_TORN,      /* a write of which only the first half arrives, said to be done */
    FAULT_FLIP,      /* one bit changes on the way */
    FAULT_MISDIRECT, /* lands, or is read, one record further on */
    FAULT_KINDS
};

struct disk_fault {
    struct disk_engine engine; /* first: it is one */
    struct disk_engine *inner;
    enum disk_fault_kind kind;
    enum disk_kind of;   /* operations counted */
    uint32_t at;         /* which one, from 1; 0: none */
    uint32_t count;      /* so far */
    size_t record_bytes; /* of a misdirected one */
    struct disk_op *spoilt;
    struct disk_done ended[DISK_DEPTH]; /* without the inner engine */
    uint32_t ended_count;
    struct disk_op *delayed;
    uint32_t broken; /* so many calls of reap find the engine itself failing */
    bool (*bad)(void *user, const struct disk_op *op); /* always -EIO; NULL: none is */
    void *bad_user;
};

/* Puts itself before the engine of a disk that is idle. */
void disk_fault_init(struct disk_fault *fault, struct disk *disk, size_t record_bytes);
/* Spoils the at-th operation of a kind from now on. */
void disk_fault_set(struct disk_fault *fault, enum disk_fault_kind kind, enum disk_kind of,
                    uint32_t at);
const char *disk_fault_name(enum disk_fault_kind kind);

#endif
