#include "tests/unit/disk_fault.h"

#include <errno.h>
#include <string.h>

static void say(struct disk_fault *f, struct disk_op *op, int result)
{
    f->ended[f->ended_count++] = (struct disk_done){op, result};
}

/* Starts part of an operation, as the engine sees it now; the caller's fields stay as they are. */
static int start_part(struct disk_fault *f, struct disk_op *op, size_t count, uint64_t further)
{
    size_t whole = op->count;
    uint64_t offset = op->offset;
    op->count = count;
    op->offset += further;
    int code = f->inner->start(f->inner, op);
    op->count = whole;
    op->offset = offset;
    return code;
}

static size_t half(const struct disk_op *op)
{
    return op->done + ((op->count - op->done) / 2 / DISK_ALIGN + 1) * DISK_ALIGN;
}

static int start(struct disk_engine *engine, struct disk_op *op)
{
    struct disk_fault *f = (struct disk_fault *)engine;
    if (f->bad && f->bad(f->bad_user, op)) {
        say(f, op, -EIO);
        return 0;
    }
    if (op->kind != f->of || ++f->count != f->at)
        return f->inner->start(f->inner, op);
    size_t left = op->count - op->done;
    switch (f->kind) {
    case FAULT_EIO:
        say(f, op, -EIO);
        return 0;
    case FAULT_ENOSPC:
        say(f, op, -ENOSPC);
        return 0;
    case FAULT_AGAIN:
        say(f, op, -EAGAIN);
        return 0;
    case FAULT_LOST:
        say(f, op, op->kind == DISK_SYNC ? 0 : (int)left);
        return 0;
    case FAULT_SHORT:
        return op->kind == DISK_SYNC ? f->inner->start(f->inner, op)
                                     : start_part(f, op, half(op), 0);
    case FAULT_DELAY:
        f->delayed = op;
        return 0;
    case FAULT_MISDIRECT:
        return start_part(f, op, op->count, f->record_bytes);
    default:
        break;
    }
    f->spoilt = op;
    if (f->kind == FAULT_TORN && op->kind == DISK_WRITE)
        return start_part(f, op, half(op), 0);
    if (f->kind == FAULT_FLIP && op->kind == DISK_WRITE)
        op->bytes[op->count / 2] ^= 4;
    return f->inner->start(f->inner, op);
}

static void spoil(struct disk_fault *f, struct disk_done *done)
{
    struct disk_op *op = done->op;
    if (op != f->spoilt)
        return;
    f->spoilt = NULL;
    if (f->kind == FAULT_TORN && op->kind == DISK_WRITE)
        done->result = (int)(op->count - op->done);
    if (f->kind == FAULT_FLIP && op->kind != DISK_SYNC)
        op->bytes[op->count / 2] ^= 4; /* of a write: the memory is whole again */
}

static int reap(struct disk_engine *engine, struct disk_done *out, uint32_t max, bool wait)
{
    struct disk_fault *f = (struct disk_fault *)engine;
    uint32_t count = f->ended_count < max ? f->ended_count : max;
    if (f->broken) {
        f->broken--;
        return -ENOMEM;
    }
    memcpy(out, f->ended, count * sizeof *out);
    f->ended_count -= count;
    memmove(f->ended, f->ended + count, f->ended_count * sizeof *out);
    int n = f->inner->reap(f->inner, out + count, max - count, wait && !count && !f->delayed);
    if (n < 0)
        return n;
    for (int i = 0; i < n; i++)
        spoil(f, &out[count + (uint32_t)i]);
    count += (uint32_t)n;
    if (!count && wait && f->delayed) {
        struct disk_op *op = f->delayed;
        f->delayed = NULL;
        int code = f->inner->start(f->inner, op);
        if (code)
            say(f, op, code);
        return reap(engine, out, max, true);
    }
    return (int)count;
}

static int file_set(struct disk_engine *engine, uint32_t slot, int fd)
{
    struct disk_fault *f = (struct disk_fault *)engine;
    return f->inner->file_set(f->inner, slot, fd);
}

static void close_inner(struct disk_engine *engine)
{
    struct disk_fault *f = (struct disk_fault *)engine;
    f->inner->close(f->inner);
}

static void quiet_inner(struct disk_engine *engine, bool quiet)
{
    struct disk_fault *f = (struct disk_fault *)engine;
    if (f->inner->quiet)
        f->inner->quiet(f->inner, quiet);
}

void disk_fault_init(struct disk_fault *f, struct disk *disk, size_t record_bytes)
{
    *f = (struct disk_fault){.engine = {"fault", start, reap, file_set, close_inner, quiet_inner},
                             .inner = disk->engine,
                             .record_bytes = record_bytes};
    disk->engine = &f->engine;
}

void disk_fault_set(struct disk_fault *f, enum disk_fault_kind kind, enum disk_kind of, uint32_t at)
{
    f->kind = kind;
    f->of = of;
    f->at = at;
    f->count = 0;
    f->spoilt = NULL;
}

const char *disk_fault_name(enum disk_fault_kind kind)
{
    static const char *const names[FAULT_KINDS] = {"none",  "EIO",  "ENOSPC", "again", "short",
                                                   "delay", "lost", "torn",   "flip",  "misdirect"};
    return names[kind];
}
