/*
 * source: a file that is fed, known by what it is and not by its name.
 *
 * Its producer's id is a hash of device, inode, time of birth where the file system has one, and
 * its first bytes, so that siltd's count of acked bytes says where to go on, without a note on our
 * side. A file may be fed while it is still short: the id covers as many first bytes as there were
 * then, one of a few steps, and later feeds try the steps from long to short. A file that is
 * shorter than what was acked has been emptied: it gets the next generation of the id and starts
 * anew.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "clients/silt/source.h"
#include "clients/silt/stamp.h"

static const size_t head_steps[] = {SOURCE_HEAD_BYTES, 256, 64, 16, 4, 1};
enum {
    STEP_COUNT = sizeof head_steps / sizeof *head_steps,
    GENERATION_MAX = 10000,
    ID_BYTES = 64,
};

static uint64_t birth(int fd)
{
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &stx) || !(stx.stx_mask & STATX_BTIME))
        return 0;
    return (uint64_t)stx.stx_btime.tv_sec * 1000000000 + stx.stx_btime.tv_nsec;
}

/* ---- what all files of a feed share ---- */

/* The stream of a file: name [STREAM_NAME_BYTES]. */
static void name_stream(const struct intake *intake, const char *path, char *name)
{
    const char *file = strrchr(path, '/'), *mark = strchr(intake->stream, '%');
    char base[STREAM_NAME_BYTES];

    if (!mark) {
        snprintf(name, STREAM_NAME_BYTES, "%s", intake->stream);
        return;
    }
    snprintf(base, sizeof base, "%s", file ? file + 1 : path);
    for (char *c = base; *c; c++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-", *c))
            *c = '_';
    /* What does not fit is longer than a name may be, and is refused as that. */
    int bytes = snprintf(name, STREAM_NAME_BYTES, "%.*s%s%s", (int)(mark - intake->stream),
                         intake->stream, base, mark + 1);
    if (bytes >= STREAM_NAME_BYTES)
        name[STREAM_NAME_BYTES - 1] = '\0';
}

/* Files that grow outlast whatever passes. */
static int refused(const struct intake *intake)
{
    int code = intake->silt->error.code;

    if (code == -EBUSY ||
        (intake->growing && (code == -ETIMEDOUT || code == -ECONNRESET || code == -ECONNREFUSED)))
        return -EBUSY;
    return silt_fail(intake->silt);
}

int intake_open(const struct intake *intake, const char *stream)
{
    struct silt *silt = intake->silt;
    struct client_opened opened;

    int r = client_stream_open(silt->client, stream, &intake->open, &opened, &silt->error);

    if (r)
        return refused(intake);
    if (opened.created && opened.compression_off)
        silt_say("siltd has no adapter for its model: compression is off, the stream keeps a "
                 "sliding window only");
    return 0;
}

uint64_t intake_time(const struct intake *intake, const uint8_t *text, size_t *bytes, bool whole)
{
    /* Captions say how long after a beginning that was not given. */
    if (intake->format != FORMAT_PLAIN && !intake->start_us)
        return 0;
    return stamp_span((const char *)text, bytes, whole, intake->start_us);
}

/* ---- which file it is ---- */

static void source_id(char *out, const struct source *source, size_t head_bytes,
                      unsigned generation)
{
    uint64_t key[3] = {source->device, source->inode, birth(source->fd)};
    XXH3_state_t *state = XXH3_createState();

    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, key, sizeof key);
    /* Converted it is another text, with another count of bytes. */
    if (source->intake->format != FORMAT_PLAIN)
        XXH3_64bits_update(state, &source->intake->format, sizeof source->intake->format);
    XXH3_64bits_update(state, source->head, head_bytes);
    snprintf(out, ID_BYTES, "file-%016" PRIx64 "-%zu.%u", XXH3_64bits_digest(state), head_bytes,
             generation);
    XXH3_freeState(state);
}

/* Attaches as one candidate; *known: it has acked bytes. 0, -EBUSY or the exit code. */
static int candidate(struct source *source, size_t head_bytes, unsigned generation,
                     struct producer_status *status, bool *known)
{
    struct silt *silt = source->intake->silt;
    char id[ID_BYTES];

    producer_close(&source->producer);
    source_id(id, source, head_bytes, generation);
    if (producer_open(&source->producer, silt->client, source->stream, id, &silt->error))
        return refused(source->intake);
    producer_status(source->producer, status);
    *known = status->sequence_sent > 0;
    return 0;
}

/* Bytes of text that the whole file is: converted, it has another length than on disk. */
static int text_bytes_of(struct source *source, uint64_t *bytes)
{
    static uint8_t piece[SOURCE_PIECE_BYTES];
    struct convert *convert;
    uint64_t at = 0;
    int r = convert_open(&convert, source->intake->format);

    *bytes = source->size;
    if (r || !convert)
        return r;
    *bytes = 0;
    while (!r) {
        ssize_t n = pread(source->fd, piece, sizeof piece, (off_t)at);
        size_t ready;

        r = n < 0 ? -errno : convert_push(convert, piece, (size_t)n, n == 0);
        convert_text(convert, &ready);
        convert_take(convert, ready);
        *bytes += ready;
        if (n <= 0)
            break;
        at += (uint64_t)n;
    }
    convert_close(&convert);
    return r;
}

static int source_attach(struct source *source)
{
    struct producer_status status = {0};
    uint64_t text_bytes;
    size_t head_bytes = 0;
    unsigned generation = 0;
    bool known = false;
    int r = text_bytes_of(source, &text_bytes);

    if (r) {
        silt_say("cannot read %s: %s", source->path, strerror(-r));
        return EXIT_REFUSED;
    }
    for (int i = 0; i < STEP_COUNT && !r && !known; i++)
        if (head_steps[i] <= source->head_bytes) {
            r = candidate(source, head_steps[i], 0, &status, &known);
            if (known || !head_bytes)
                head_bytes = head_steps[i];
        }
    if (!r && !known)
        r = candidate(source, head_bytes, 0, &status, &known);
    while (!r && known && status.bytes_acked > text_bytes && generation < GENERATION_MAX) {
        uint64_t acked = status.bytes_acked;

        r = candidate(source, head_bytes, ++generation, &status, &known);
        if (!r && !known)
            silt_say("%s is shorter than what was read of it (%" PRIu64 " bytes now, %" PRIu64
                     " acked): it starts anew as another producer",
                     source->path, text_bytes, acked);
    }
    if (source->intake->format == FORMAT_PLAIN)
        source->offset = status.bytes_acked;
    else
        source->skip = status.bytes_acked;
    return r;
}

/* Text packed for the disk is no text. */
static bool is_packed(const uint8_t *head, size_t bytes)
{
    static const struct {
        const char *magic;
        size_t bytes;
    } kinds[] = {{"\x1f\x8b", 2},
                 {"\x28\xb5\x2f\xfd", 4},
                 {"\xfd"
                  "7zXZ",
                  5},
                 {"BZh", 3}};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (bytes >= kinds[i].bytes && !memcmp(head, kinds[i].magic, kinds[i].bytes))
            return true;
    return false;
}

int source_file(const char *path, const char *stream)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    uint8_t head[8];
    ssize_t bytes = fd < 0 ? 0 : pread(fd, head, sizeof head, 0);
    struct stat st;

    if (fd < 0 || fstat(fd, &st)) {
        silt_say("cannot read %s: %s", path, strerror(errno));
    } else if (S_ISDIR(st.st_mode)) {
        silt_say("%s is a folder: name its files, as in '%s%s*.log'", path, path,
                 path[strlen(path) - 1] == '/' ? "" : "/");
    } else if (!S_ISREG(st.st_mode) || (bytes > 0 && !st.st_size)) { /* /proc has such files */
        silt_say("%s is not an ordinary file: feed it by a pipe instead (… | silt feed %s)", path,
                 stream);
    } else if (bytes > 0 && is_packed(head, (size_t)bytes)) {
        silt_say("%s is compressed: unpack it into a pipe instead (zcat, zstdcat … | silt feed %s)",
                 path, stream);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1 - EXIT_REFUSED;
}

struct rotated {
    int fd;
    struct timespec time; /* when it was written last */
};

static bool is_older(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

/* Adds a file to those that are there, oldest first; of too many the oldest goes. */
static int rotated_add(struct rotated *list, int count, const char *path)
{
    uint8_t head[8];
    struct stat st;
    ssize_t n = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), at = count;

    if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode))
        n = pread(fd, head, sizeof head, 0);
    while (n > 0 && at && is_older(&st.st_mtim, &list[at - 1].time))
        at--;
    if (n <= 0 || is_packed(head, (size_t)n) || (!at && count == SOURCE_ROTATED_MAX)) {
        if (fd >= 0)
            close(fd);
        return count;
    }
    if (count == SOURCE_ROTATED_MAX) {
        close(list[0].fd);
        memmove(list, list + 1, sizeof *list * (size_t)--count);
        at--;
    }
    memmove(list + at + 1, list + at, sizeof *list * (size_t)(count - at));
    list[at] = (struct rotated){.fd = fd, .time = st.st_mtim};
    return count + 1;
}

int source_rotated(const char *path, int *fds)
{
    struct rotated list[SOURCE_ROTATED_MAX];
    char name[PATH_MAX], day[16];
    int64_t now = time(NULL);
    int count = 0;

    /* Names are tried, not listed: a folder may hold tens of thousands that are followed. */
    for (int i = 0; i < SOURCE_ROTATED_MAX; i++) {
        time_t then = now - (int64_t)i * 86400;
        struct tm local;

        snprintf(name, sizeof name, "%s.%d", path, i + 1);
        count = rotated_add(list, count, name);
        strftime(day, sizeof day, "%Y%m%d", localtime_r(&then, &local));
        snprintf(name, sizeof name, "%s-%s", path, day);
        count = rotated_add(list, count, name);
    }
    for (int i = 0; i < count; i++)
        fds[i] = list[i].fd;
    return count;
}

int source_open(struct source *source, const struct intake *intake, const char *path, int fd)
{
    struct stat st;
    ssize_t head;
    int r = EXIT_REFUSED;

    *source = (struct source){.intake = intake, .fd = fd, .ended_line = true};
    head = pread(fd, source->head, sizeof source->head, 0);
    if (head == 0) {
        source->fd = -1;
        return -ENODATA;
    }
    if (head < 0 || fstat(fd, &st)) {
        silt_say("cannot read %s: %s", path, strerror(errno));
        goto error;
    }
    name_stream(intake, path, source->stream);
    source->path = strdup(path);
    if (!source->path || convert_open(&source->convert, intake->format)) {
        silt_say("out of memory");
        goto error;
    }
    source->device = st.st_dev;
    source->inode = st.st_ino;
    source->size = (uint64_t)st.st_size;
    source->head_bytes = (size_t)head;
    r = intake->each ? intake_open(intake, source->stream) : 0;
    if (!r)
        r = source_attach(source);
    if (r == -EBUSY)
        source->fd = -1;
    if (r)
        goto error;
    return 0;
error:
    source_close(source);
    return r;
}

void source_close(struct source *source)
{
    producer_close(&source->producer);
    convert_close(&source->convert);
    free(source->path);
    source->path = NULL;
    if (source->fd >= 0)
        close(source->fd);
    source->fd = -1;
}

/* ---- sending ---- */

/* Of several files in one stream each is cut at line ends; a line longer than a piece is cut all
 * the same. */
static size_t lines_cut(const uint8_t *piece, size_t bytes, size_t room)
{
    const uint8_t *last = memrchr(piece, '\n', bytes);

    if (last)
        return (size_t)(last - piece) + 1;
    return bytes == room && room == SOURCE_PIECE_BYTES ? bytes : 0;
}

static ssize_t read_at(struct source *source, uint8_t *piece, size_t room)
{
    struct silt *silt = source->intake->silt;
    ssize_t bytes = pread(source->fd, piece, room, (off_t)source->offset);

    if (bytes >= 0)
        return bytes;
    bytes = -errno;
    silt->error = (struct client_error){.code = (int)bytes};
    snprintf(silt->error.text, sizeof silt->error.text, "cannot read %s: %s", source->path,
             strerror((int)-bytes));
    return bytes;
}

static int send_text(struct source *source, const uint8_t *text, size_t bytes, uint64_t time_us,
                     bool marked)
{
    struct silt *silt = source->intake->silt;
    struct client_item items[2] = {{.kind = ITEM_TEXT, .bytes = text, .bytes_count = bytes},
                                   {.kind = ITEM_MARK, .mark = MARK_END_OF_INPUT}};
    int r = producer_send(source->producer, items, marked ? 2 : 1, time_us, &silt->error);

    if (!r)
        source->ended_line = text[bytes - 1] == '\n';
    return r;
}

static int send_plain(struct source *source, size_t room, bool end)
{
    static uint8_t piece[SOURCE_PIECE_BYTES];
    ssize_t bytes = read_at(source, piece, room);
    size_t cut = (size_t)bytes;
    bool marked = false;
    uint64_t time_us;
    uint8_t next;
    int r;

    if (bytes <= 0)
        return (int)bytes;
    if (source->intake->lines && !end)
        cut = lines_cut(piece, cut, room);
    if (!cut)
        return 0;
    time_us = intake_time(source->intake, piece, &cut, source->ended_line);
    /* The mark goes with the last byte: what is acked whole needs no second look. */
    if (end)
        marked = pread(source->fd, &next, 1, (off_t)(source->offset + cut)) == 0;
    r = send_text(source, piece, cut, time_us, marked);
    if (r)
        return r;
    source->offset += cut;
    if (source->offset > source->size)
        source->size = source->offset;
    return (int)cut;
}

/* Reads on until a piece of text is ready that siltd does not have, or the file's end. */
static int convert_more(struct source *source, bool end, size_t *ready)
{
    static uint8_t piece[SOURCE_PIECE_BYTES];

    convert_text(source->convert, ready);
    while (*ready < SOURCE_PIECE_BYTES && !source->converted_all) {
        ssize_t bytes = read_at(source, piece, sizeof piece);
        size_t known;
        int r;

        if (bytes < 0 || (bytes == 0 && !end))
            return (int)bytes;
        r = convert_push(source->convert, piece, (size_t)bytes, bytes == 0);
        if (r) {
            source->intake->silt->error = (struct client_error){.code = r, .text = "out of memory"};
            return r;
        }
        source->converted_all = bytes == 0;
        source->offset += (uint64_t)bytes;
        if (source->offset > source->size)
            source->size = source->offset;
        convert_text(source->convert, ready);
        known = source->skip < *ready ? (size_t)source->skip : *ready;
        convert_take(source->convert, known);
        source->skip -= known;
        *ready -= known;
    }
    return 0;
}

static int send_converted(struct source *source, size_t room, bool end)
{
    const uint8_t *text;
    size_t ready;
    uint64_t time_us;
    int r = convert_more(source, end, &ready);

    if (r || !ready)
        return r;
    text = convert_text(source->convert, &ready);
    if (room > ready)
        room = ready;
    time_us = intake_time(source->intake, text, &room, source->ended_line);
    r = send_text(source, text, room, time_us, source->converted_all && room == ready);
    if (!r)
        convert_take(source->convert, room);
    return r ? r : (int)room;
}

int source_send(struct source *source, bool end)
{
    size_t room = producer_room(source->producer);

    if (!room)
        return producer_fault(source->producer, &source->intake->silt->error);
    if (room > SOURCE_PIECE_BYTES)
        room = SOURCE_PIECE_BYTES;
    return source->convert ? send_converted(source, room, end) : send_plain(source, room, end);
}

bool source_left(const struct source *source)
{
    size_t ready;

    convert_text(source->convert, &ready);
    return source->offset < source->size || ready ||
           (source->convert && !source->converted_all && !source->intake->growing);
}

bool source_truncated(struct source *source)
{
    uint8_t head[SOURCE_HEAD_BYTES];
    struct stat here;

    if (fstat(source->fd, &here))
        return false;
    if ((uint64_t)here.st_size < source->offset)
        return true;
    /* Emptied and grown past where we were between two looks: other first bytes tell. */
    if ((uint64_t)here.st_size != source->size &&
        pread(source->fd, head, source->head_bytes, 0) == (ssize_t)source->head_bytes &&
        memcmp(head, source->head, source->head_bytes))
        return true;
    source->size = (uint64_t)here.st_size;
    return false;
}
