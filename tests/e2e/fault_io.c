/*
 * Loaded before a program's libraries (LD_PRELOAD): its calls on the files of a data folder fail as
 * a test says while it runs. io_uring, which no library call is behind, is said not to be there.
 *
 * SILT_FAULT_IO names a file of one `struct faults`, which the test writes and this maps.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { JOURNAL, CHECKPOINTS, INDEX, SEGMENTS, PARTS, NO_PART = PARTS };
enum { GET, PUT, WAYS };
enum { FDS_MAX = 1024, SHORT = -1, LATE = -2 };

/* Of each part, for what reads and what changes it. */
struct faults {
    _Atomic int32_t code[PARTS][WAYS]; /* an errno, SHORT or LATE; 0: none */
    _Atomic int32_t at[PARTS][WAYS];   /* only this call from now, counted down; 0: every one */
    _Atomic int32_t met[PARTS][WAYS];
};

static struct faults none, *faults = &none;
static _Atomic uint8_t part_of[FDS_MAX]; /* 1 + part; 0: none */

#define REAL(name) (__extension__(__typeof__(&(name))) dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("SILT_FAULT_IO");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *memory =
        fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory != MAP_FAILED)
        faults = memory;
    if (fd >= 0)
        close(fd);
}

static int part_by_name(const char *path)
{
    return strstr(path, "/journal.db")                          ? JOURNAL
           : strstr(path, "/checkpoints/")                      ? CHECKPOINTS
           : strstr(path, "/search/")                           ? INDEX
           : strstr(path, "/segments/") || strstr(path, ".seg") ? SEGMENTS
                                                                : NO_PART;
}

/* What the next call on a part comes to: an errno, SHORT, or 0. */
static int next(int part, int way)
{
    int code = part == NO_PART ? 0 : faults->code[part][way];

    if (!code)
        return 0;
    if (faults->at[part][way]) {
        if (--faults->at[part][way])
            return 0;
        faults->code[part][way] = 0;
    }
    faults->met[part][way]++;
    if (code != LATE)
        return code;
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    return 0;
}

static int next_of(int fd, int way)
{
    return fd < 0 || fd >= FDS_MAX || !part_of[fd] ? 0 : next(part_of[fd] - 1, way);
}

static int fail(int code)
{
    errno = code == SHORT ? EIO : code;
    return -1;
}

/* ---- names ---- */

static int note(int fd, const char *path)
{
    int part = part_by_name(path);

    if (fd >= 0 && fd < FDS_MAX)
        part_of[fd] = part == NO_PART ? 0 : (uint8_t)(1 + part);
    return fd;
}

#define OPENS(name, at_declared, at_given)                                                         \
    int name(at_declared const char *path, int flags, ...)                                         \
    {                                                                                              \
        int code = flags & O_CREAT ? next(part_by_name(path), PUT) : 0;                            \
        mode_t mode = 0;                                                                           \
        va_list list;                                                                              \
        va_start(list, flags);                                                                     \
        if (flags & (O_CREAT | O_TMPFILE))                                                         \
            mode = va_arg(list, mode_t);                                                           \
        va_end(list);                                                                              \
        return code ? fail(code) : note(REAL(name)(at_given path, flags, mode), path);             \
    }
#define NOTHING
#define COMMA_AT at,
#define INT_AT   int at,
OPENS(open, NOTHING, NOTHING)
OPENS(open64, NOTHING, NOTHING)
OPENS(openat, INT_AT, COMMA_AT)
OPENS(openat64, INT_AT, COMMA_AT)

int close(int fd)
{
    if (fd >= 0 && fd < FDS_MAX)
        part_of[fd] = 0;
    return REAL(close)(fd);
}

int rename(const char *from, const char *to)
{
    int code = next(part_by_name(to), PUT);

    return code ? fail(code) : REAL(rename)(from, to);
}

int unlink(const char *path)
{
    int code = next(part_by_name(path), PUT);

    return code ? fail(code) : REAL(unlink)(path);
}

/* ---- bytes ---- */

#define MOVES(name, way, bytes_type, more_declared, more_given)                                    \
    ssize_t name(int fd, bytes_type bytes, size_t count more_declared)                             \
    {                                                                                              \
        int code = next_of(fd, way);                                                               \
        if (code && (code != SHORT || count < 2))                                                  \
            return fail(code);                                                                     \
        return REAL(name)(fd, bytes, code ? count / 2 : count more_given);                         \
    }
#define OFFSET , off_t at
#define AND_AT , at
MOVES(read, GET, void *, NOTHING, NOTHING)
MOVES(write, PUT, const void *, NOTHING, NOTHING)
MOVES(pread, GET, void *, OFFSET, AND_AT)
MOVES(pread64, GET, void *, OFFSET, AND_AT)
MOVES(pwrite, PUT, const void *, OFFSET, AND_AT)
MOVES(pwrite64, PUT, const void *, OFFSET, AND_AT)

#define CHANGES(name, more_declared, more_given)                                                   \
    int name(int fd more_declared)                                                                 \
    {                                                                                              \
        int code = next_of(fd, PUT);                                                               \
        return code ? fail(code) : REAL(name)(fd more_given);                                      \
    }
#define RANGE     , int mode, off_t at, off_t count
#define AND_RANGE , mode, at, count
CHANGES(fsync, NOTHING, NOTHING)
CHANGES(fdatasync, NOTHING, NOTHING)
CHANGES(ftruncate, OFFSET, AND_AT)
CHANGES(ftruncate64, OFFSET, AND_AT)
CHANGES(fallocate, RANGE, AND_RANGE)
CHANGES(fallocate64, RANGE, AND_RANGE)

int io_uring_queue_init(unsigned entries, void *ring, unsigned flags);
int io_uring_queue_init(unsigned entries, void *ring, unsigned flags)
{
    (void)entries, (void)ring, (void)flags;
    return -ENOSYS;
}
