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
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "clients/silt/silt.h"

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

static void source_id(char *out, const struct source *source, size_t head_bytes,
                      unsigned generation)
{
    uint64_t key[3] = {source->device, source->inode, birth(source->fd)};
    XXH3_state_t *state = XXH3_createState();

    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, key, sizeof key);
    XXH3_64bits_update(state, source->head, head_bytes);
    snprintf(out, ID_BYTES, "file-%016" PRIx64 "-%zu.%u", XXH3_64bits_digest(state), head_bytes,
             generation);
    XXH3_freeState(state);
}

/* Attaches as one candidate: 1 known (it has acked bytes), 0 new, or the exit code negated less
 * one.
 */
static int candidate(struct source *source, struct silt *silt, const char *stream,
                     size_t head_bytes, unsigned generation, struct producer_status *status)
{
    char id[ID_BYTES];

    producer_close(&source->producer);
    source_id(id, source, head_bytes, generation);
    if (producer_open(&source->producer, silt->client, stream, id, &silt->error))
        return -1 - silt_fail(silt);
    producer_status(source->producer, status);
    return status->sequence_sent > 0;
}

static int source_attach(struct source *source, struct silt *silt, const char *stream)
{
    struct producer_status status;
    size_t head_bytes = 0;
    unsigned generation = 0;
    int r = 0;

    for (int i = 0; i < STEP_COUNT && r == 0; i++)
        if (head_steps[i] <= source->head_bytes) {
            r = candidate(source, silt, stream, head_steps[i], 0, &status);
            if (r == 1 || !head_bytes)
                head_bytes = head_steps[i];
        }
    if (r == 0)
        r = candidate(source, silt, stream, head_bytes, 0, &status);
    while (r == 1 && status.bytes_acked > source->size && generation < GENERATION_MAX) {
        uint64_t acked = status.bytes_acked;

        r = candidate(source, silt, stream, head_bytes, ++generation, &status);
        if (r == 0)
            silt_say("%s is shorter than what was read of it (%" PRIu64 " bytes now, %" PRIu64
                     " acked): it starts anew as another producer",
                     source->path, source->size, acked);
    }
    if (r < 0)
        return -r - 1;
    source->offset = status.bytes_acked;
    return 0;
}

int source_open(struct source *source, struct silt *silt, const char *stream, const char *path)
{
    struct stat st;
    ssize_t head;
    int r = EXIT_REFUSED;

    *source = (struct source){.path = path, .lines = source->lines};
    source->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (source->fd < 0 || fstat(source->fd, &st)) {
        silt_say("cannot read %s: %s", path, strerror(errno));
        goto error;
    }
    if (!S_ISREG(st.st_mode)) {
        silt_say("%s is not a file: feed it by a pipe instead (… | silt feed %s)", path, stream);
        goto error;
    }
    source->device = st.st_dev;
    source->inode = st.st_ino;
    source->size = (uint64_t)st.st_size;
    head = pread(source->fd, source->head, sizeof source->head, 0);
    if (head < 0) {
        silt_say("cannot read %s: %s", path, strerror(errno));
        goto error;
    }
    source->head_bytes = (size_t)head;
    if (!head) {
        r = -ENODATA;
        goto error;
    }
    r = source_attach(source, silt, stream);
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
    if (source->fd >= 0)
        close(source->fd);
    source->fd = -1;
}

/* Of several files in one stream each is cut at line ends; a line longer than a piece is cut all
 * the same. */
static size_t lines_cut(const uint8_t *piece, size_t bytes, size_t room)
{
    const uint8_t *last = memrchr(piece, '\n', bytes);

    if (last)
        return (size_t)(last - piece) + 1;
    return bytes == room && room == SOURCE_PIECE_BYTES ? bytes : 0;
}

int source_send(struct source *source, struct silt *silt, bool end)
{
    static uint8_t piece[SOURCE_PIECE_BYTES];
    struct client_item items[2] = {{.kind = ITEM_TEXT, .bytes = piece},
                                   {.kind = ITEM_MARK, .mark = MARK_END_OF_INPUT}};
    size_t room = producer_room(source->producer), count = 1;
    uint8_t next;
    ssize_t bytes;
    int r;

    if (!room)
        return producer_fault(source->producer, &silt->error);
    if (room > sizeof piece)
        room = sizeof piece;
    bytes = pread(source->fd, piece, room, (off_t)source->offset);
    if (bytes < 0) {
        r = -errno;
        silt->error = (struct client_error){.code = r};
        snprintf(silt->error.text, sizeof silt->error.text, "cannot read %s: %s", source->path,
                 strerror(-r));
        return r;
    }
    items[0].bytes_count = (size_t)bytes;
    if (source->lines && !end && bytes)
        items[0].bytes_count = lines_cut(piece, (size_t)bytes, room);
    if (!items[0].bytes_count)
        return 0;
    /* The mark goes with the last byte: what is acked whole needs no second look. */
    if (end && pread(source->fd, &next, 1, (off_t)source->offset + bytes) == 0)
        count = 2;
    r = producer_send(source->producer, items, count, 0, &silt->error);
    if (r)
        return r;
    source->offset += items[0].bytes_count;
    if (source->offset > source->size)
        source->size = source->offset;
    return (int)items[0].bytes_count;
}

enum source_change source_changed(struct source *source)
{
    uint8_t head[SOURCE_HEAD_BYTES];
    struct stat here, there;

    if (fstat(source->fd, &here))
        return SOURCE_SAME;
    if ((uint64_t)here.st_size < source->offset)
        return SOURCE_TRUNCATED;
    /* Emptied and grown past where we were between two looks: other first bytes tell. */
    if ((uint64_t)here.st_size != source->size &&
        pread(source->fd, head, source->head_bytes, 0) == (ssize_t)source->head_bytes &&
        memcmp(head, source->head, source->head_bytes))
        return SOURCE_TRUNCATED;
    source->size = (uint64_t)here.st_size;
    if (stat(source->path, &there) == 0 &&
        (there.st_dev != source->device || there.st_ino != source->inode))
        return SOURCE_ROTATED;
    return SOURCE_SAME;
}
