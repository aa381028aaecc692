#include "tests/unit/vfs_fault.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FILES_MAX = 32 };

/* A write since the last sync. */
struct change {
    struct change *before;
    sqlite3_int64 at, size_before;
    int bytes;
    uint8_t *was, *is; /* [bytes] */
};

struct file {
    sqlite3_file base;
    sqlite3_file *real;
    struct change *changes;
};

static sqlite3_vfs *real_vfs;
static sqlite3_vfs vfs;
static struct file *files[FILES_MAX];
static uint64_t calls, fail_at;
static int fail_code;
static bool fail_on, met, dead, lies;

/* The code to fail with, or SQLITE_OK. */
static int next_call(void)
{
    calls++;
    if (dead)
        return SQLITE_IOERR;
    if (!fail_at || (fail_on ? calls < fail_at : calls != fail_at))
        return SQLITE_OK;
    met = true;
    if (fail_code != VFS_LATE)
        return fail_code;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return SQLITE_OK;
}

static void forget_changes(struct file *file)
{
    while (file->changes) {
        struct change *change = file->changes;

        file->changes = change->before;
        free(change->was);
        free(change->is);
        free(change);
    }
}

static int file_close(sqlite3_file *f)
{
    struct file *file = (struct file *)f;
    int code = file->real->pMethods->xClose(file->real);

    forget_changes(file);
    for (int i = 0; i < FILES_MAX; i++)
        if (files[i] == file)
            files[i] = NULL;
    free(file->real);
    return code;
}

static int file_read(sqlite3_file *f, void *bytes, int count, sqlite3_int64 at)
{
    struct file *file = (struct file *)f;
    int code = next_call(), half = code == VFS_SHORT ? count / 2 : count;

    if (code && code != VFS_SHORT)
        return SQLITE_IOERR_READ;
    code = file->real->pMethods->xRead(file->real, bytes, half, at);
    if (code || half == count)
        return code;
    memset((uint8_t *)bytes + half, 0, (size_t)(count - half)); /* as SQLite's own does */
    return SQLITE_IOERR_SHORT_READ;
}

static void note_change(struct file *file, const void *bytes, int count, sqlite3_int64 at)
{
    struct change *change = calloc(1, sizeof *change);

    if (!change)
        abort();
    change->at = at;
    change->bytes = count;
    change->was = calloc(1, (size_t)count);
    change->is = malloc((size_t)count);
    if (!change->was || !change->is)
        abort();
    memcpy(change->is, bytes, (size_t)count);
    file->real->pMethods->xFileSize(file->real, &change->size_before);
    file->real->pMethods->xRead(file->real, change->was, count, at);
    change->before = file->changes;
    file->changes = change;
}

static int file_write(sqlite3_file *f, const void *bytes, int count, sqlite3_int64 at)
{
    struct file *file = (struct file *)f;
    int code = next_call();

    if (code && code != VFS_SHORT)
        return code == SQLITE_FULL ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    count = code ? count / 2 : count;
    note_change(file, bytes, count, at);
    if (!code)
        return file->real->pMethods->xWrite(file->real, bytes, count, at);
    file->real->pMethods->xWrite(file->real, bytes, count, at);
    return SQLITE_IOERR_WRITE;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    struct file *file = (struct file *)f;
    int code = next_call();

    return code ? SQLITE_IOERR_TRUNCATE : file->real->pMethods->xTruncate(file->real, size);
}

static int file_sync(sqlite3_file *f, int flags)
{
    struct file *file = (struct file *)f;
    int code = next_call();

    (void)flags;
    if (code)
        return SQLITE_IOERR_FSYNC;
    if (!lies)
        forget_changes(file); /* the real disk need not work for it */
    return SQLITE_OK;
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xFileSize(file->real, size);
}

static int file_lock(sqlite3_file *f, int level)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xLock(file->real, level);
}

static int file_unlock(sqlite3_file *f, int level)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xUnlock(file->real, level);
}

static int file_check_lock(sqlite3_file *f, int *out)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xCheckReservedLock(file->real, out);
}

static int file_control(sqlite3_file *f, int op, void *argument)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xFileControl(file->real, op, argument);
}

static int file_sector(sqlite3_file *f)
{
    (void)f;
    return 4096;
}

static int file_device(sqlite3_file *f)
{
    (void)f;
    return 0; /* promises nothing: no power-safe overwrite, no atomic writes */
}

static int shm_map(sqlite3_file *f, int page, int bytes, int extend, void volatile **out)
{
    struct file *file = (struct file *)f;
    int code = next_call();

    return code ? SQLITE_IOERR_SHMMAP
                : file->real->pMethods->xShmMap(file->real, page, bytes, extend, out);
}

static int shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xShmLock(file->real, offset, n, flags);
}

static void shm_barrier(sqlite3_file *f)
{
    struct file *file = (struct file *)f;

    file->real->pMethods->xShmBarrier(file->real);
}

static int shm_unmap(sqlite3_file *f, int remove)
{
    struct file *file = (struct file *)f;

    return file->real->pMethods->xShmUnmap(file->real, remove);
}

static const sqlite3_io_methods methods = {
    .iVersion = 2,
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_unlock,
    .xCheckReservedLock = file_check_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector,
    .xDeviceCharacteristics = file_device,
    .xShmMap = shm_map,
    .xShmLock = shm_lock,
    .xShmBarrier = shm_barrier,
    .xShmUnmap = shm_unmap,
};

static int open_file(sqlite3_vfs *self, const char *name, sqlite3_file *f, int flags, int *out)
{
    struct file *file = (struct file *)f;
    int code = next_call();

    (void)self;
    memset(file, 0, sizeof *file);
    if (code)
        return SQLITE_CANTOPEN;
    file->real = calloc(1, (size_t)real_vfs->szOsFile);
    if (!file->real)
        return SQLITE_NOMEM;
    code = real_vfs->xOpen(real_vfs, name, file->real, flags, out);
    if (code) {
        free(file->real);
        return code;
    }
    file->base.pMethods = &methods;
    for (int i = 0; i < FILES_MAX; i++)
        if (!files[i]) {
            files[i] = file;
            return SQLITE_OK;
        }
    abort();
}

static int delete_file(sqlite3_vfs *self, const char *name, int sync)
{
    int code = next_call();

    (void)self;
    return code ? SQLITE_IOERR_DELETE : real_vfs->xDelete(real_vfs, name, sync);
}

void vfs_fault_install(void)
{
    if (real_vfs)
        return;
    real_vfs = sqlite3_vfs_find(NULL);
    vfs = *real_vfs;
    vfs.zName = "fault";
    vfs.szOsFile = (int)sizeof(struct file);
    vfs.xOpen = open_file;
    vfs.xDelete = delete_file;
    sqlite3_vfs_register(&vfs, 1);
}

void vfs_fault_at(uint64_t at, int code, bool for_ever)
{
    calls = 0;
    fail_at = at;
    fail_code = code;
    fail_on = for_ever;
    met = false;
}

uint64_t vfs_fault_calls(void)
{
    return calls;
}

bool vfs_fault_met(void)
{
    return met;
}

void vfs_fault_lie(bool lie)
{
    lies = lie;
}

static uint64_t mix(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

/* Back to what was synced, then forward by the writes that made it. */
static void cut_file(struct file *file, uint64_t *seed)
{
    const sqlite3_io_methods *real = file->real->pMethods;
    struct change *forward = NULL;

    while (file->changes) {
        struct change *change = file->changes;

        file->changes = change->before;
        real->xWrite(file->real, change->was, change->bytes, change->at);
        real->xTruncate(file->real, change->size_before);
        change->before = forward;
        forward = change;
    }
    while (forward) {
        struct change *change = forward;
        uint64_t fate = mix(seed) % 4;

        if (fate < 2) /* half of a write that was torn */
            real->xWrite(file->real, change->is, fate ? change->bytes : change->bytes / 2,
                         change->at);
        forward = change->before;
        change->before = file->changes;
        file->changes = change;
    }
    forget_changes(file);
}

void vfs_fault_cut(uint64_t seed)
{
    for (int i = 0; i < FILES_MAX; i++)
        if (files[i])
            cut_file(files[i], &seed);
    dead = true;
}

void vfs_fault_mend(void)
{
    dead = false;
    vfs_fault_at(0, 0, false);
}
