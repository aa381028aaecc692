/*
 * Two engines behind one seam, and the queue above it.
 *
 * io_uring: memory and files are registered once, so that the kernel neither pins pages nor looks
 * up files at every transfer. Where registering is refused (RLIMIT_MEMLOCK) the plain opcodes do
 * the same work a little slower.
 */
#include "stream/ring.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <unistd.h>

/* ---- io_uring ---- */

struct uring {
    struct disk_engine engine;
    struct io_uring ring;
    const uint8_t *registered;
    size_t registered_bytes; /* 0: no registered buffer */
    bool files;              /* registered */
    uint32_t flying;
    int fd[DISK_FILES_MAX];
};

static bool is_registered(const struct uring *u, const struct disk_op *op)
{
    return u->registered_bytes && op->bytes >= u->registered &&
           op->bytes + op->count <= u->registered + u->registered_bytes;
}

static void prepare(struct uring *u, struct io_uring_sqe *sqe, struct disk_op *op)
{
    int fd = u->files ? (int)op->file : u->fd[op->file];
    uint8_t *bytes = op->bytes + op->done;
    unsigned count = (unsigned)(op->count - op->done);
    uint64_t offset = op->offset + op->done;
    if (op->kind == DISK_SYNC)
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else if (op->kind == DISK_READ && is_registered(u, op))
        io_uring_prep_read_fixed(sqe, fd, bytes, count, offset, 0);
    else if (op->kind == DISK_READ)
        io_uring_prep_read(sqe, fd, bytes, count, offset);
    else if (is_registered(u, op))
        io_uring_prep_write_fixed(sqe, fd, bytes, count, offset, 0);
    else
        io_uring_prep_write(sqe, fd, bytes, count, offset);
    if (u->files)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, op);
}

static int uring_start(struct disk_engine *engine, struct disk_op *op)
{
    struct uring *u = (struct uring *)engine;
    if (u->flying == DISK_DEPTH)
        return -EAGAIN;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe)
        return -EAGAIN;
    prepare(u, sqe, op);
    u->flying++;
    return 0;
}

static int uring_reap(struct disk_engine *engine, struct disk_done *out, uint32_t max, bool wait)
{
    struct uring *u = (struct uring *)engine;
    int code = 0;
    uint32_t count = 0;
    if (!u->flying)
        return 0;
    do
        code = wait ? io_uring_submit_and_wait(&u->ring, 1) : io_uring_submit(&u->ring);
    while (code == -EINTR);
    /* -EAGAIN, -EBUSY: what was not taken stays in the queue for the next call. */
    if (code < 0 && code != -EAGAIN && code != -EBUSY)
        return code;
    struct io_uring_cqe *cqe;
    while (count < max && io_uring_peek_cqe(&u->ring, &cqe) == 0) {
        out[count++] = (struct disk_done){io_uring_cqe_get_data(cqe), cqe->res};
        io_uring_cqe_seen(&u->ring, cqe);
    }
    u->flying -= count;
    return (int)count;
}

static int uring_file_set(struct disk_engine *engine, uint32_t slot, int fd)
{
    struct uring *u = (struct uring *)engine;
    u->fd[slot] = fd;
    if (!u->files)
        return 0;
    int code = io_uring_register_files_update(&u->ring, slot, &fd, 1);
    return code < 0 ? code : 0;
}

static void uring_close(struct disk_engine *engine)
{
    struct uring *u = (struct uring *)engine;
    assert(!u->flying);
    io_uring_queue_exit(&u->ring);
}

static void uring_quiet(struct disk_engine *engine, bool quiet)
{
    struct uring *u = (struct uring *)engine;
    (void)io_uring_cq_eventfd_toggle(&u->ring, !quiet); /* an old kernel goes on telling */
}

int disk_engine_uring(struct disk_engine **out, void *memory, void *registered,
                      size_t registered_bytes, int event_fd)
{
    struct uring *u = memory;
    *u = (struct uring){
        .engine = {"io_uring", uring_start, uring_reap, uring_file_set, uring_close, uring_quiet}};
    int code = io_uring_queue_init(DISK_DEPTH, &u->ring, 0);
    if (code < 0)
        return code;
    if (event_fd >= 0 && (code = io_uring_register_eventfd(&u->ring, event_fd)) < 0) {
        io_uring_queue_exit(&u->ring);
        return code;
    }
    struct iovec whole = {registered, registered_bytes};
    if (registered_bytes && io_uring_register_buffers(&u->ring, &whole, 1) == 0) {
        u->registered = registered;
        u->registered_bytes = registered_bytes;
    }
    u->files = io_uring_register_files_sparse(&u->ring, DISK_FILES_MAX) == 0;
    *out = &u->engine;
    return 0;
}

/* ---- plain calls ---- */

/* What start did waits here for reap. */
struct plain {
    struct disk_engine engine;
    struct disk_done done[DISK_DEPTH];
    uint32_t count;
    int fd[DISK_FILES_MAX];
};

static int plain_start(struct disk_engine *engine, struct disk_op *op)
{
    struct plain *p = (struct plain *)engine;
    if (p->count == DISK_DEPTH)
        return -EAGAIN;
    int fd = p->fd[op->file];
    uint8_t *bytes = op->bytes + op->done;
    size_t count = op->count - op->done;
    off_t offset = (off_t)(op->offset + op->done);
    ssize_t n;
    do {
        if (op->kind == DISK_SYNC)
            n = fdatasync(fd);
        else
            n = op->kind == DISK_READ ? pread(fd, bytes, count, offset)
                                      : pwrite(fd, bytes, count, offset);
    } while (n < 0 && errno == EINTR);
    p->done[p->count++] = (struct disk_done){op, n < 0 ? -errno : (int)n};
    return 0;
}

static int plain_reap(struct disk_engine *engine, struct disk_done *out, uint32_t max, bool wait)
{
    struct plain *p = (struct plain *)engine;
    uint32_t count = p->count < max ? p->count : max;
    (void)wait; /* all that was started has ended */
    memcpy(out, p->done, count * sizeof *out);
    p->count -= count;
    memmove(p->done, p->done + count, p->count * sizeof *out);
    return (int)count;
}

static int plain_file_set(struct disk_engine *engine, uint32_t slot, int fd)
{
    ((struct plain *)engine)->fd[slot] = fd;
    return 0;
}

static void plain_close(struct disk_engine *engine)
{
    (void)engine;
}

int disk_engine_plain(struct disk_engine **out, void *memory)
{
    struct plain *p = memory;
    *p = (struct plain){
        .engine = {"pread", plain_start, plain_reap, plain_file_set, plain_close, NULL}};
    *out = &p->engine;
    return 0;
}

size_t disk_engine_bytes(void)
{
    size_t most =
        sizeof(struct uring) > sizeof(struct plain) ? sizeof(struct uring) : sizeof(struct plain);
    return (most + 63) & ~(size_t)63;
}

/* ---- the queue above ---- */

void disk_init(struct disk *disk, struct disk_engine *engine)
{
    *disk = (struct disk){.engine = engine};
    for (int i = 0; i < DISK_FILES_MAX; i++)
        disk->fd[i] = -1;
}

int disk_file_add(struct disk *disk, int fd)
{
    for (uint32_t i = 0; i < DISK_FILES_MAX; i++) {
        if (disk->fd[i] >= 0)
            continue;
        int code = disk->engine->file_set(disk->engine, i, fd);
        if (code)
            return code;
        disk->fd[i] = fd;
        return (int)i;
    }
    return -ENFILE;
}

void disk_file_drop(struct disk *disk, uint32_t slot)
{
    (void)disk->engine->file_set(disk->engine, slot, -1);
    close(disk->fd[slot]);
    disk->fd[slot] = -1;
}

static void wait_in_line(struct disk *disk, struct disk_op *op)
{
    op->next = NULL;
    if (disk->waiting)
        disk->waiting_last->next = op;
    else
        disk->waiting = op;
    disk->waiting_last = op;
}

void disk_start(struct disk *disk, struct disk_op *op)
{
    op->done = 0;
    op->result = 0;
    op->retries = 0;
    wait_in_line(disk, op);
}

/* True: the operation has ended; false: it stands in line again for what is left of it. */
static bool ended(struct disk *disk, struct disk_op *op, int result)
{
    bool short_of = false;
    if (result == -EAGAIN || result == -EINTR) {
        op->result = result;
        short_of = ++op->retries < DISK_RETRIES_MAX;
    } else if (result < 0 || op->kind == DISK_SYNC) {
        op->result = result < 0 ? result : 0;
    } else {
        op->done += (size_t)result;
        op->result = 0;
        short_of = op->done < op->count && result > 0 && ++op->retries < DISK_RETRIES_MAX;
        if (op->kind == DISK_WRITE && op->done < op->count && !short_of)
            op->result = -EIO; /* a write that does not get on */
    }
    if (short_of)
        wait_in_line(disk, op);
    return !short_of;
}

/* Hands what waits to the engine. Operations it refuses outright are put into out as ended. */
static uint32_t launch(struct disk *disk, struct disk_op **out, uint32_t max)
{
    uint32_t count = 0;
    while (disk->waiting && count < max) {
        struct disk_op *op = disk->waiting;
        int code = disk->engine->start(disk->engine, op);
        if (code == -EAGAIN)
            break;
        disk->waiting = op->next;
        if (code) {
            op->result = code;
            out[count++] = op;
        } else {
            disk->flying++;
        }
    }
    return count;
}

uint32_t disk_reap(struct disk *disk, struct disk_op **out, uint32_t max, bool wait)
{
    struct disk_done done[DISK_DEPTH];
    uint32_t count = launch(disk, out, max);
    while (disk->flying && count < max) {
        uint32_t room = max - count < DISK_DEPTH ? max - count : DISK_DEPTH;
        int n = disk->engine->reap(disk->engine, done, room, wait && !count);
        if (n < 0 && n != -EAGAIN && n != -EBUSY)
            return count; /* the ring itself fails: what is under way stays so */
        for (int i = 0; i < n; i++) {
            disk->flying--;
            if (ended(disk, done[i].op, done[i].result))
                out[count++] = done[i].op;
        }
        count += launch(disk, out + count, max - count);
        if (n <= 0 && (!wait || count))
            break;
    }
    return count;
}

void disk_quiet(struct disk *disk, bool quiet)
{
    if (disk->engine->quiet)
        disk->engine->quiet(disk->engine, quiet);
}

int disk_run(struct disk *disk, struct disk_op *op)
{
    struct disk_op *out[1] = {NULL};
    assert(disk_idle(disk));
    disk_start(disk, op);
    while (!disk_reap(disk, out, 1, true) && !disk_idle(disk))
        ;
    return op->result;
}
