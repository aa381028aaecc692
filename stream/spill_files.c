/*
 * Where records lie: folder/segments/STREAM/LEVEL-FILE.seg, each of file_records records.
 *
 * What is there is found again by looking: the first and last records of each level that carry a
 * header of this stream. What is dropped is punched out, so numbers keep their places. Files are
 * short because ext4 lets all writes of a file end before it grows: one of large records has all
 * its room before the first write and never keeps the disk waiting. Mostly it goes as a whole.
 */
#include "stream/spill.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_MAX_BYTES = 64 };

static void stream_name(uint64_t stream_id, char *out)
{
    snprintf(out, NAME_MAX_BYTES, "%016" PRIx64, stream_id);
}

static void file_name(uint64_t stream_id, uint32_t level, uint64_t number, char *out)
{
    snprintf(out, NAME_MAX_BYTES, "%016" PRIx64 "/%u-%08" PRIx64 ".seg", stream_id, level, number);
}

uint64_t spill_offset(const struct spill *s, uint64_t number)
{
    return number % s->file_records * s->shape.record_bytes;
}

/* Calls each(user, folder, name) for what is in a folder, closes it. 0 or negative errno. */
static int each_entry(int folder, int (*each)(void *user, int folder, const char *name), void *user)
{
    _Alignas(struct dirent64) char buffer[4096];
    ssize_t bytes = 0;
    int code = 0;
    while (!code && (bytes = getdents64(folder, buffer, sizeof buffer)) > 0) {
        for (ssize_t at = 0; at < bytes && !code;) {
            const struct dirent64 *entry = (void *)(buffer + at);
            if (entry->d_name[0] != '.')
                code = each(user, folder, entry->d_name);
            at += entry->d_reclen;
        }
    }
    if (bytes < 0)
        code = -errno;
    close(folder);
    return code;
}

static int open_folder(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* ---- the folder of all ---- */

static int add_blocks(void *user, int folder, const char *name)
{
    struct stat status;
    if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0)
        *(uint64_t *)user += (uint64_t)status.st_blocks * 512;
    return 0;
}

static int add_stream_blocks(void *user, int folder, const char *name)
{
    int fd = open_folder(folder, name);
    return fd < 0 ? 0 : each_entry(fd, add_blocks, user);
}

static bool takes_direct(int folder)
{
    int fd = openat(folder, ".probe", O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
    if (fd >= 0)
        close(fd);
    (void)unlinkat(folder, ".probe", 0);
    return fd >= 0;
}

int spill_folder_open(struct spill *s, char *error, size_t error_bytes)
{
    int n = snprintf(s->folder, sizeof s->folder, "%s/segments", s->options.folder);
    if (n < 0 || (size_t)n >= sizeof s->folder)
        return fail_with(error, error_bytes, -ENAMETOOLONG, "cold segments: path too long");
    if (mkdir(s->folder, 0700) && errno != EEXIST)
        return fail_with(error, error_bytes, -errno, "%s: %s", s->folder, strerror(errno));
    s->folder_fd = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->folder_fd < 0)
        return fail_with(error, error_bytes, -errno, "%s: %s", s->folder, strerror(errno));
    s->direct = !s->options.plain && takes_direct(s->folder_fd);
    int fd = open_folder(s->folder_fd, ".");
    int code = fd < 0 ? fd : each_entry(fd, add_stream_blocks, &s->stat.bytes_disk);
    if (code)
        return fail_with(error, error_bytes, code, "%s: %s", s->folder, strerror(-code));
    return 0;
}

/* Files are closed first: one that is open and has no name any more would count, and then not. */
void spill_count(struct spill *s)
{
    uint64_t all = 0;
    for (uint32_t i = 0; i < s->options.streams_max; i++) {
        char name[NAME_MAX_BYTES];
        uint64_t bytes = 0;
        if (!s->streams[i].used)
            continue;
        spill_files_drop(s, s->streams[i].id);
        stream_name(s->streams[i].id, name);
        add_stream_blocks(&bytes, s->folder_fd, name);
        pthread_mutex_lock(&s->lock);
        s->streams[i].bytes = bytes;
        pthread_mutex_unlock(&s->lock);
    }
    s->astray = false;
    int fd = open_folder(s->folder_fd, ".");
    if (fd < 0 || each_entry(fd, add_stream_blocks, &all))
        return;
    pthread_mutex_lock(&s->lock);
    s->stat.bytes_disk = all;
    pthread_mutex_unlock(&s->lock);
}

/* ---- open files ---- */

/* What a file holds of the disk has changed. */
static void account(struct spill *s, struct spill_file *file, int slot)
{
    struct stat status;
    if (fstat(s->disk.fd[slot], &status))
        return;
    uint64_t now = (uint64_t)status.st_blocks * 512;
    pthread_mutex_lock(&s->lock);
    struct spill_stream *stream = spill_find(s, file->stream_id);
    s->stat.bytes_disk += now - file->blocks;
    if (stream)
        stream->bytes += now - file->blocks;
    pthread_mutex_unlock(&s->lock);
    file->blocks = now;
}

static int find_file(const struct spill *s, uint64_t stream_id, uint32_t level, uint64_t number)
{
    for (int i = 0; i < DISK_FILES_MAX; i++) {
        const struct spill_file *f = &s->files[i];
        if (f->used && f->stream_id == stream_id && f->level == level && f->number == number)
            return i;
    }
    return -ENOENT;
}

/* Makes room for one more file by closing the one used longest ago. */
static int make_slot(struct spill *s)
{
    int oldest = -EMFILE;
    for (int i = 0; i < DISK_FILES_MAX; i++) {
        const struct spill_file *f = &s->files[i];
        if (!f->used)
            return 0;
        if (!f->users && (oldest < 0 || f->touched < s->files[oldest].touched))
            oldest = i;
    }
    if (oldest < 0)
        return oldest;
    disk_file_drop(&s->disk, (uint32_t)oldest);
    s->files[oldest].used = false;
    return 0;
}

static int open_file(struct spill *s, uint64_t stream_id, uint32_t level, uint64_t number,
                     bool write)
{
    char name[NAME_MAX_BYTES], folder[NAME_MAX_BYTES];
    struct stat status;
    int flags = O_RDWR | O_CLOEXEC | (s->direct ? O_DIRECT : 0) | (write ? O_CREAT : 0);
    int code = make_slot(s);
    if (code)
        return code;
    stream_name(stream_id, folder);
    file_name(stream_id, level, number, name);
    int fd = openat(s->folder_fd, name, flags, 0600);
    if (fd < 0 && errno == ENOENT && write && mkdirat(s->folder_fd, folder, 0700) == 0)
        fd = openat(s->folder_fd, name, flags, 0600);
    if (fd < 0 || fstat(fd, &status)) {
        code = -errno;
        if (fd >= 0)
            close(fd);
        return code == -EMFILE ? -ENFILE : code; /* ours means: all slots are in use */
    }
    int slot = disk_file_add(&s->disk, fd);
    if (slot < 0) {
        close(fd);
        return slot;
    }
    s->files[slot] = (struct spill_file){.used = true,
                                         .stream_id = stream_id,
                                         .number = number,
                                         .level = level,
                                         .grown = (uint64_t)status.st_size / s->shape.record_bytes,
                                         .blocks = (uint64_t)status.st_blocks * 512};
    return slot;
}

uint32_t spill_unit(const struct spill *s)
{
    uint32_t unit = s->file_records;
    uint64_t share = (uint64_t)SPILL_UNIT_SHARE * s->attached * s->shape.record_bytes;
    while (s->limit && unit > SPILL_UNIT_MIN &&
           unit * share / (unit > SPILL_FILE_RECORDS ? 1 : SPILL_UNIT_SHARE / 4) > s->limit)
        unit /= 2;
    return unit;
}

/* How many records a file has room for when it has room for this one. */
static uint64_t grown_for(const struct spill *s, uint32_t level, uint64_t record)
{
    uint64_t step = level ? SPILL_GROW_MERGED : spill_unit(s);
    return (record / step + 1) * step;
}

static bool has_room(const struct spill *s, uint64_t records)
{
    uint64_t most = s->limit > s->merge_limit ? s->limit : s->merge_limit;
    return !s->limit || s->stat.bytes_disk + records * s->shape.record_bytes <= most;
}

/* Room for a record and, where the quota leaves it, some more behind it. */
static int grow(struct spill *s, int slot, uint64_t record)
{
    struct spill_file *f = &s->files[slot];
    uint64_t from = f->grown, bytes = s->shape.record_bytes, to = grown_for(s, f->level, record);
    if (record < from)
        return 0;
    if (!has_room(s, to - from))
        to = record + 1;
    if (!has_room(s, to - from))
        return -EDQUOT;
    if (fallocate(s->disk.fd[slot], 0, (off_t)(from * bytes), (off_t)((to - from) * bytes)) &&
        errno != EOPNOTSUPP)
        return -errno;
    f->grown = to;
    account(s, f, slot);
    return 0;
}

int spill_file_get(struct spill *s, const struct segment_place *place, bool write)
{
    uint64_t number = place->number / s->file_records;
    int slot = find_file(s, place->stream_id, place->level, number);
    if (slot < 0)
        slot = open_file(s, place->stream_id, place->level, number, write);
    if (slot < 0)
        return slot;
    s->files[slot].touched = ++s->uses;
    int code = write ? grow(s, slot, place->number % s->file_records) : 0;
    return code ? code : slot;
}

uint64_t spill_growth(struct spill *s, const struct segment_place *place)
{
    int slot = spill_file_get(s, place, false);
    uint64_t record = place->number % s->file_records, from = slot < 0 ? 0 : s->files[slot].grown;
    return record < from ? 0 : (grown_for(s, place->level, record) - from) * s->shape.record_bytes;
}

void spill_files_drop(struct spill *s, uint64_t stream_id)
{
    for (uint32_t i = 0; i < DISK_FILES_MAX; i++) {
        if (!s->files[i].used || s->files[i].stream_id != stream_id)
            continue;
        disk_file_drop(&s->disk, i);
        s->files[i].used = false;
    }
}

/* ---- what is there ---- */

struct found {
    uint64_t bytes;
    struct spill_range file[SEGMENT_LEVELS]; /* from the first to one past the last */
};

/* False: it is none of ours. */
static bool is_file(const char *name, uint32_t *level, uint64_t *number)
{
    char rest[8] = "";
    return sscanf(name, "%" SCNu32 "-%8" SCNx64 "%7s", level, number, rest) == 3 &&
           strcmp(rest, ".seg") == 0 && *level < SEGMENT_LEVELS;
}

static int find_files(void *user, int folder, const char *name)
{
    struct found *found = user;
    uint32_t level;
    uint64_t number;
    add_blocks(&found->bytes, folder, name);
    if (!is_file(name, &level, &number))
        return 0;
    struct spill_range *range = &found->file[level];
    if (range->from == range->to)
        *range = (struct spill_range){number, number + 1};
    else if (number < range->from)
        range->from = number;
    else if (number >= range->to)
        range->to = number + 1;
    return 0;
}

/* Whether a record's header is what it should be. */
static bool is_there(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t number)
{
    struct segment_place place = {.stream_id = stream->id,
                                  .stream_epoch = stream->epoch,
                                  .number = number,
                                  .level = level,
                                  .offset = spill_offset(s, number)};
    int slot = spill_file_get(s, &place, false);
    if (slot < 0)
        return false;
    struct disk_op op = {.kind = DISK_READ,
                         .file = (uint32_t)slot,
                         .bytes = s->page,
                         .count = DISK_ALIGN,
                         .offset = place.offset};
    if (disk_run(&s->disk, &op) || op.done < op.count)
        return false;
    enum segment_fault fault = segment_check_header(&s->shape, s->page, &place);
    if (fault && fault != SEGMENT_MISSING) {
        pthread_mutex_lock(&s->lock);
        spill_note_fault(s, stream, fault);
        pthread_mutex_unlock(&s->lock);
    }
    return !fault;
}

static void scan_level(struct spill *s, struct spill_stream *stream, uint32_t level,
                       struct spill_range files)
{
    struct spill_range *range = &stream->level[level];
    uint64_t from = files.from * s->file_records, to = files.to * s->file_records;
    while (from < to && !is_there(s, stream, level, from))
        from++;
    while (to > from && !is_there(s, stream, level, to - 1))
        to--;
    *range = from < to ? (struct spill_range){from, to} : (struct spill_range){0, 0};
}

/* A level begins where those above it end. Before that may still lie the halves of means whose
 * merging was cut off, without a gap. A gap: what lies before it was merged long ago and should
 * have gone; the means count. */
static void scan_overlap(struct spill *s, struct spill_stream *stream, uint32_t level)
{
    struct spill_range *range = &stream->level[level];
    uint64_t covered = 0, at = range->from;
    for (uint32_t above = level + 1; above < SEGMENT_LEVELS; above++)
        if (stream->level[above].to << (above - level) > covered)
            covered = stream->level[above].to << (above - level);
    covered = covered < range->to ? covered : range->to;
    while (at < covered && is_there(s, stream, level, at))
        at++;
    if (at < covered)
        range->from = covered;
}

int spill_scan(struct spill *s, struct spill_stream *stream)
{
    char name[NAME_MAX_BYTES];
    struct found found = {0};
    stream_name(stream->id, name);
    int fd = open_folder(s->folder_fd, name);
    if (fd == -ENOENT)
        return 0;
    int code = fd < 0 ? fd : each_entry(fd, find_files, &found);
    if (code)
        return code;
    stream->bytes = found.bytes;
    for (uint32_t level = 0; level < SEGMENT_LEVELS; level++)
        if (found.file[level].from < found.file[level].to)
            scan_level(s, stream, level, found.file[level]);
    for (uint32_t level = 0; level < SEGMENT_LEVELS; level++)
        scan_overlap(s, stream, level);
    return 0;
}

/* ---- what goes ---- */

/* The whole file. */
static int unlink_file(struct spill *s, int slot)
{
    struct spill_file *f = &s->files[slot];
    char name[NAME_MAX_BYTES];
    file_name(f->stream_id, f->level, f->number, name);
    if (unlinkat(s->folder_fd, name, 0) && errno != ENOENT) /* removed by hand: it goes now */
        return -errno;
    pthread_mutex_lock(&s->lock);
    struct spill_stream *stream = spill_find(s, f->stream_id);
    s->stat.bytes_disk -= f->blocks;
    if (stream)
        stream->bytes -= f->blocks;
    pthread_mutex_unlock(&s->lock);
    disk_file_drop(&s->disk, (uint32_t)slot);
    f->used = false;
    return 0;
}

static int punch_file(struct spill *s, int slot, uint64_t record, uint64_t count)
{
    struct spill_file *f = &s->files[slot];
    if (fallocate(s->disk.fd[slot], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(record * s->shape.record_bytes), (off_t)(count * s->shape.record_bytes)))
        return -errno;
    if (record < f->grown && record + count >= f->grown)
        f->grown = record; /* written again, it needs its blocks again */
    account(s, f, slot);
    return 0;
}

int spill_punch(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t from,
                uint64_t to)
{
    int code = 0;
    while (from < to && !code) {
        struct segment_place place = {.stream_id = stream->id, .number = from, .level = level};
        uint64_t record = from % s->file_records, count = s->file_records - record;
        /* What lies before these may be the level's still. */
        bool all = count <= to - from && (!record || from <= spill_held(s, stream, level).from);
        if (count > to - from)
            count = to - from;
        from += count;
        int slot = spill_file_get(s, &place, false);
        s->astray |= slot == -ENOENT;
        if (slot == -ENOENT)
            continue;
        if (slot < 0)
            code = slot;
        else if (all)
            code = unlink_file(s, slot);
        else
            code = punch_file(s, slot, record, count);
    }
    return code;
}

struct shrinking {
    struct spill *spill;
    struct spill_stream *stream;
};

/* A file grows over records that found no room, and were never of the level. */
static int shrink_file(void *user, int folder, const char *name)
{
    struct shrinking *shrinking = user;
    struct spill *s = shrinking->spill;
    uint32_t level;
    uint64_t number;
    (void)folder;
    if (!is_file(name, &level, &number))
        return 0;
    struct spill_range range = spill_held(s, shrinking->stream, level);
    uint64_t first = number * s->file_records, end = first + s->file_records;
    struct segment_place place = {
        .stream_id = shrinking->stream->id, .number = first, .level = level};
    if (range.from <= first && range.to >= end)
        return 0;
    int slot = spill_file_get(s, &place, false);
    if (slot < 0)
        return 0;
    if (range.from == range.to || range.from >= end || range.to <= first) {
        (void)unlink_file(s, slot);
        return 0;
    }
    if (range.from > first)
        (void)punch_file(s, slot, 0, range.from - first);
    if (range.to < first + s->files[slot].grown)
        (void)punch_file(s, slot, range.to - first, first + s->files[slot].grown - range.to);
    return 0;
}

void spill_shrink(struct spill *s)
{
    char name[NAME_MAX_BYTES];
    for (uint32_t i = 0; i < s->options.streams_max; i++) {
        if (!s->streams[i].used)
            continue;
        stream_name(s->streams[i].id, name);
        int fd = open_folder(s->folder_fd, name);
        if (fd >= 0)
            (void)each_entry(fd, shrink_file, &(struct shrinking){s, &s->streams[i]});
    }
}

/* ---- what must not be found again ---- */

struct erasing {
    const struct spill *spill;
    uint64_t chunk; /* the first that goes */
    uint64_t first; /* chunk that a record which goes begins with */
    uint64_t bytes; /* given back */
    bool look_only;
};

/* Zeros over what lies behind an offset, on the disk before it is given back. */
static int overwrite(int fd, off_t from)
{
    static const uint8_t zeros[1 << 16];
    off_t at = lseek(fd, from, SEEK_DATA), end = at < 0 ? -1 : lseek(fd, at, SEEK_HOLE);
    while (at >= 0 && at < end) {
        size_t n = end - at < (off_t)sizeof zeros ? (size_t)(end - at) : sizeof zeros;
        ssize_t written = pwrite(fd, zeros, n, at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? -errno : -EIO;
        at += written;
        if (at < end)
            continue;
        at = lseek(fd, at, SEEK_DATA);
        end = at < 0 ? -1 : lseek(fd, at, SEEK_HOLE);
    }
    return fdatasync(fd) ? -errno : 0;
}

/* A file's part behind an offset goes, with the file where that is all of it. */
static int erase_file(int folder, const char *name, off_t from, uint64_t *bytes)
{
    struct stat before, after = {0};
    int fd = openat(folder, name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    int code = fstat(fd, &before) ? -errno : overwrite(fd, from);
    if (!code && from && (ftruncate(fd, from) || fstat(fd, &after)))
        code = -errno;
    close(fd);
    if (!code && !from && unlinkat(folder, name, 0))
        code = -errno;
    if (!code && before.st_blocks > after.st_blocks)
        *bytes += (uint64_t)(before.st_blocks - after.st_blocks) * 512;
    return code;
}

static int erase_entry(void *user, int folder, const char *name)
{
    struct erasing *e = user;
    uint32_t level;
    uint64_t number, first = 0, to = 0;
    if (is_file(name, &level, &number)) {
        first = number * e->spill->file_records;
        to = e->chunk >> level;
        if (to >= first + e->spill->file_records)
            return 0;
        to = to > first ? to : first;
        if (to << level < e->first)
            e->first = to << level;
    }
    if (e->look_only)
        return 0;
    return erase_file(folder, name, (off_t)((to - first) * e->spill->shape.record_bytes),
                      &e->bytes);
}

uint64_t spill_erase_first(struct spill *s, uint64_t stream_id, uint64_t chunk)
{
    struct erasing e = {.spill = s, .chunk = chunk, .first = chunk, .look_only = true};
    char name[NAME_MAX_BYTES];
    stream_name(stream_id, name);
    int fd = open_folder(s->folder_fd, name);
    if (fd >= 0)
        (void)each_entry(fd, erase_entry, &e);
    return e.first;
}

int spill_erase(struct spill *s, uint64_t stream_id, uint64_t chunk)
{
    struct erasing e = {.spill = s, .chunk = chunk, .first = chunk};
    char name[NAME_MAX_BYTES];
    stream_name(stream_id, name);
    int fd = open_folder(s->folder_fd, name);
    if (fd == -ENOENT)
        return 0;
    int code = fd < 0 ? fd : each_entry(fd, erase_entry, &e);
    pthread_mutex_lock(&s->lock);
    s->stat.bytes_disk -= e.bytes < s->stat.bytes_disk ? e.bytes : s->stat.bytes_disk;
    pthread_mutex_unlock(&s->lock);
    if (!code && !chunk && unlinkat(s->folder_fd, name, AT_REMOVEDIR))
        code = -errno;
    return code;
}
