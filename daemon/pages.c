/* Calls go through to the VFS below, whose file lies behind ours in the memory SQLite gives, and
 * the witness's behind that. */
#include "daemon/pages.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

enum { NAME_BYTES = 1100, FRAME_PAGES_AT = 4, FRAME_SALT_AT = 8 };

struct page_file {
    sqlite3_file base;
    bool database;
    bool witnessed; /* it is the journal's log */
    struct pages_witness witness;
    int64_t written; /* end of what was written last; 0: nothing since the sync */
    int64_t size;    /* as far as this handle knows: others may have made it longer since */
    char path[NAME_BYTES];
};

static sqlite3_vfs *below, vfs;
static _Atomic uint64_t grown;

static sqlite3_file *real(sqlite3_file *file)
{
    return (sqlite3_file *)((struct page_file *)(void *)file + 1);
}

static size_t real_bytes(void)
{
    return ((size_t)below->szOsFile + 7) / 8 * 8;
}

static sqlite3_file *witness_of(struct page_file *file)
{
    return (sqlite3_file *)(void *)((char *)(file + 1) + real_bytes());
}

/* ---- the witness ---- */

static uint64_t witness_hash(const struct pages_witness *w)
{
    return XXH3_64bits(w, offsetof(struct pages_witness, hash));
}

/* One small write: it lands whole or not at all, and where it does not the log is not believed. */
static int put_witness(struct page_file *file, uint64_t bytes, bool sync)
{
    sqlite3_file *w = witness_of(file);
    int code;

    file->witness.bytes = bytes;
    file->witness.hash = witness_hash(&file->witness);
    code = w->pMethods->xWrite(w, &file->witness, sizeof file->witness, 0);
    return code || !sync ? code : w->pMethods->xSync(w, SQLITE_SYNC_NORMAL);
}

/* That part of the log is about to be another. Where it cannot be lowered the disk may hold what it
 * held: the next write tries again. */
static int lower_witness(struct page_file *file, int64_t at)
{
    uint64_t before = file->witness.bytes;
    int code;

    if (!file->witnessed || (uint64_t)at >= before)
        return SQLITE_OK;
    code = put_witness(file, at > 0 ? (uint64_t)at : 0, true);
    if (code)
        file->witness.bytes = before;
    return code;
}

/* Where a transaction outgrew the cache, pages of it that are in the log are written over, and at
 * last the heads of its frames, for their sums: the last page lies behind the last head. */
static int64_t last_frame(const struct page_file *file)
{
    int64_t frames = file->written - LOG_HEAD_BYTES, rest = frames % FRAME_BYTES;

    frames = frames / FRAME_BYTES + (rest == FRAME_HEAD_BYTES);
    return LOG_HEAD_BYTES + (frames - 1) * FRAME_BYTES;
}

/* Up to the frame that was written last, if it ends a transaction: of one that was taken back,
 * frames may lie in the log that are no part of it. */
static int raise_witness(struct page_file *file)
{
    sqlite3_file *log = real(&file->base);
    uint8_t head[FRAME_HEAD_BYTES];
    uint32_t pages; /* of the database after it; 0: it ends none */
    int64_t at = last_frame(file);
    int code;

    if (!file->witnessed || at < LOG_HEAD_BYTES)
        return SQLITE_OK;
    code = log->pMethods->xRead(log, head, sizeof head, at);
    if (code)
        return code;
    file->written = 0;
    memcpy(&pages, head + FRAME_PAGES_AT, sizeof pages);
    if (!pages)
        return SQLITE_OK;
    memcpy(file->witness.salt, head + FRAME_SALT_AT, sizeof file->witness.salt);
    return put_witness(file, (uint64_t)at + FRAME_BYTES, false);
}

static bool witness_name(const char *name, char *out)
{
    static const char end[] = "/journal.db-wal";
    size_t bytes = name ? strlen(name) : 0;

    if (bytes < sizeof end || strcmp(name + bytes - (sizeof end - 1), end) != 0)
        return false;
    return snprintf(out, NAME_BYTES, "%.*s-synced", (int)(bytes - 4), name) < NAME_BYTES;
}

static int open_witness(struct page_file *file, const char *name, int flags)
{
    sqlite3_file *w = witness_of(file);
    int code;

    if (!(flags & SQLITE_OPEN_WAL) || !(flags & SQLITE_OPEN_READWRITE) ||
        !witness_name(name, file->path))
        return SQLITE_OK;
    code = below->xOpen(below, file->path, w,
                        SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
    if (code)
        return code;
    file->witnessed = true;
    code = w->pMethods->xRead(w, &file->witness, sizeof file->witness, 0);
    if (code || file->witness.hash != witness_hash(&file->witness))
        memset(&file->witness, 0, sizeof file->witness);
    return code == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : code;
}

static void close_witness(struct page_file *file)
{
    if (file->witnessed)
        witness_of(file)->pMethods->xClose(witness_of(file));
    file->witnessed = false;
}

/* ---- files ---- */

/* Number: of the page, from 1; 0: as formats before the third have it, wherever it lies. */
static uint64_t page_hash(const uint8_t *page, uint64_t number)
{
    return XXH3_64bits_withSeed(page, PAGES_BYTES - PAGES_HASH_BYTES, number);
}

static uint64_t number_of(sqlite3_int64 at)
{
    return (uint64_t)at / PAGES_BYTES + 1;
}

static int file_close(sqlite3_file *f)
{
    close_witness((struct page_file *)(void *)f);
    return real(f)->pMethods->xClose(real(f));
}

/* Behind the end of a file SQLite takes zeros, which a new page is; half a page is none. */
static bool all_zero(const uint8_t *bytes, int count)
{
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, (size_t)count - 1) == 0);
}

static int file_read(sqlite3_file *f, void *bytes, int count, sqlite3_int64 at)
{
    const struct page_file *file = (const struct page_file *)(void *)f;
    int code = real(f)->pMethods->xRead(real(f), bytes, count, at);
    uint64_t hash;

    if (!file->database || count != PAGES_BYTES)
        return code;
    if (code == SQLITE_IOERR_SHORT_READ && !all_zero(bytes, count))
        return SQLITE_IOERR_DATA;
    if (code)
        return code;
    memcpy(&hash, (uint8_t *)bytes + PAGES_BYTES - PAGES_HASH_BYTES, sizeof hash);
    return hash == page_hash(bytes, number_of(at)) || hash == page_hash(bytes, 0)
               ? SQLITE_OK
               : SQLITE_IOERR_DATA;
}

static int file_write(sqlite3_file *f, const void *bytes, int count, sqlite3_int64 at)
{
    struct page_file *file = (struct page_file *)(void *)f;
    uint8_t page[PAGES_BYTES];
    int code;

    if (at + count > file->size) {
        atomic_fetch_add(&grown, (uint64_t)(at + count - file->size));
        file->size = at + count;
    }
    if (file->database && count == PAGES_BYTES) {
        uint64_t hash = page_hash(bytes, number_of(at));

        memcpy(page, bytes, PAGES_BYTES - PAGES_HASH_BYTES);
        memcpy(page + PAGES_BYTES - PAGES_HASH_BYTES, &hash, sizeof hash);
        return real(f)->pMethods->xWrite(real(f), page, count, at);
    }
    code = lower_witness(file, at);
    if (!code)
        code = real(f)->pMethods->xWrite(real(f), bytes, count, at);
    file->written = code ? 0 : at + count; /* of a frame half written its head alone says nothing */
    return code;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    struct page_file *file = (struct page_file *)(void *)f;
    int code = lower_witness(file, size);

    if (!code)
        code = real(f)->pMethods->xTruncate(real(f), size);
    if (!code)
        file->size = size;
    return code;
}

static int file_sync(sqlite3_file *f, int flags)
{
    int code = real(f)->pMethods->xSync(real(f), flags);

    return code ? code : raise_witness((struct page_file *)(void *)f);
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return real(f)->pMethods->xFileSize(real(f), size);
}

static int file_lock(sqlite3_file *f, int level)
{
    return real(f)->pMethods->xLock(real(f), level);
}

static int file_unlock(sqlite3_file *f, int level)
{
    return real(f)->pMethods->xUnlock(real(f), level);
}

static int file_check_lock(sqlite3_file *f, int *out)
{
    return real(f)->pMethods->xCheckReservedLock(real(f), out);
}

static int file_control(sqlite3_file *f, int op, void *argument)
{
    return real(f)->pMethods->xFileControl(real(f), op, argument);
}

static int file_sector(sqlite3_file *f)
{
    return real(f)->pMethods->xSectorSize(real(f));
}

static int file_device(sqlite3_file *f)
{
    return real(f)->pMethods->xDeviceCharacteristics(real(f));
}

static int shm_map(sqlite3_file *f, int page, int bytes, int extend, void volatile **out)
{
    return real(f)->pMethods->xShmMap(real(f), page, bytes, extend, out);
}

static int shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
    return real(f)->pMethods->xShmLock(real(f), offset, n, flags);
}

static void shm_barrier(sqlite3_file *f)
{
    real(f)->pMethods->xShmBarrier(real(f));
}

static int shm_unmap(sqlite3_file *f, int remove)
{
    return real(f)->pMethods->xShmUnmap(real(f), remove);
}

static const sqlite3_io_methods methods = {
    .iVersion = 2, /* no memory maps: what is not read here is not checked */
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

/* ---- the VFS ---- */

static int open_file(sqlite3_vfs *self, const char *name, sqlite3_file *f, int flags, int *out)
{
    struct page_file *file = (struct page_file *)(void *)f;
    sqlite3_int64 size;
    int code;

    (void)self;
    memset(file, 0, sizeof *file);
    file->database = flags & SQLITE_OPEN_MAIN_DB;
    code = open_witness(file, name, flags);
    if (!code)
        code = below->xOpen(below, name, real(f), flags, out);
    if (code) {
        close_witness(file);
        return code;
    }
    if (real(f)->pMethods->xFileSize(real(f), &size) == SQLITE_OK)
        file->size = size;
    file->base.pMethods = &methods;
    return SQLITE_OK;
}

/* The log goes when the last connection closes, and its witness before it. */
static int delete_file(sqlite3_vfs *self, const char *name, int sync)
{
    char path[NAME_BYTES];
    int code = SQLITE_OK;

    (void)self;
    if (witness_name(name, path))
        code = below->xDelete(below, path, sync);
    return code && code != SQLITE_IOERR_DELETE_NOENT ? code : below->xDelete(below, name, sync);
}

int pages_register(void)
{
    sqlite3_vfs *now = sqlite3_vfs_find(NULL);

    if (!now)
        return SQLITE_ERROR;
    if (below == now)
        return SQLITE_OK;
    if (below)
        sqlite3_vfs_unregister(&vfs);
    below = now;
    vfs = *below;
    vfs.zName = PAGES_VFS;
    vfs.pNext = NULL;
    vfs.szOsFile = (int)(sizeof(struct page_file) + 2 * real_bytes());
    vfs.xOpen = open_file;
    vfs.xDelete = delete_file;
    return sqlite3_vfs_register(&vfs, 0);
}

uint64_t pages_grown(void)
{
    return atomic_load(&grown);
}

int pages_reserve(sqlite3 *db)
{
    int bytes = PAGES_HASH_BYTES;
    int code = sqlite3_file_control(db, "main", SQLITE_FCNTL_RESERVE_BYTES, &bytes);

    return code ? code : sqlite3_exec(db, "PRAGMA page_size=4096", NULL, NULL, NULL);
}
