/*
 * Staying below the quota: history grows coarser with age, then it ends.
 *
 * Two neighbouring segments become one, their mean weighted by the chunks each stands for, in a
 * file of the next level; it is on the disk before its halves go. The level with the most records
 * gives way first, so that all levels come to hold about as many and each covers twice the text of
 * the one below: resolution falls off with age as memory's does. The top level drops its oldest
 * when it has the most: merging the rest further would leave nothing fine of the newest.
 */
#include "stream/spill.h"

#include <errno.h>
#include <string.h>

struct spill_range spill_held(struct spill *s, const struct spill_stream *stream, uint32_t level)
{
    pthread_mutex_lock(&s->lock);
    struct spill_range range = stream->level[level];
    pthread_mutex_unlock(&s->lock);
    return range;
}

/* The same without what is only on its way to the disk: merged before it is there, it would be
 * taken for lost. */
static struct spill_range on_disk(struct spill *s, const struct spill_stream *stream,
                                  uint32_t level)
{
    pthread_mutex_lock(&s->lock);
    struct spill_range range = stream->level[level];
    for (uint32_t i = 0; i < s->options.staging_max && !level; i++) {
        const struct spill_io *io = &s->staging[i];
        if (io->state != IO_FREE && io->only && &s->streams[io->stream] == stream &&
            io->place.number < range.to)
            range.to = io->place.number;
    }
    if (range.to < range.from)
        range.to = range.from;
    pthread_mutex_unlock(&s->lock);
    return range;
}

static uint64_t count_of(struct spill_range range)
{
    return range.to - range.from;
}

static struct spill_stream *largest(struct spill *s)
{
    struct spill_stream *most = NULL;
    for (uint32_t i = 0; i < s->options.streams_max; i++)
        if (s->streams[i].used && (!most || s->streams[i].bytes > most->bytes))
            most = &s->streams[i];
    return most;
}

static struct segment_place place_of(const struct spill *s, const struct spill_stream *stream,
                                     uint32_t level, uint64_t number)
{
    return (struct segment_place){.stream_id = stream->id,
                                  .stream_epoch = stream->epoch,
                                  .number = number,
                                  .level = level,
                                  .offset = spill_offset(s, number)};
}

/* Records from a place on, all of one file, from or to memory. Bytes, or negative errno. */
static int64_t transfer(struct spill *s, enum disk_kind kind, const struct segment_place *place,
                        uint8_t *records, uint32_t count)
{
    struct segment_place last = *place;
    last.number += count - 1;
    int slot = spill_file_get(s, &last, kind == DISK_WRITE);
    if (slot < 0)
        return slot;
    struct disk_op op = {.kind = kind,
                         .file = (uint32_t)slot,
                         .bytes = records,
                         .count = count * s->shape.record_bytes,
                         .offset = place->offset};
    int code = disk_run(&s->disk, &op);
    return code ? code : (int64_t)op.done;
}

/* What is wrong with a half of which so many bytes (or negative errno) came. */
static enum segment_fault fault_of(const struct spill *s, const struct segment_place *place,
                                   const uint8_t *record, int64_t came)
{
    if (came == -ENOENT || (came >= 0 && came < (int64_t)s->shape.record_bytes))
        return SEGMENT_MISSING;
    return came < 0 ? SEGMENT_UNREADABLE : segment_check(&s->shape, record, place);
}

static void note_unfit(struct spill *s, struct spill_stream *stream,
                       const struct segment_place *place, enum segment_fault fault)
{
    pthread_mutex_lock(&s->lock);
    spill_note_fault(s, stream, fault);
    if (fault != SEGMENT_MISSING) /* which the quota may be the cause of */
        spill_note_damage(s, place);
    pthread_mutex_unlock(&s->lock);
}

/* Records of a level, into the batch; of each whether it is fit. One that is not as it came with
 * the others is asked for by itself: what is given up here is gone. */
static void read_batch(struct spill *s, struct spill_stream *stream, uint32_t level,
                       uint64_t number, uint32_t count, bool *fit)
{
    struct segment_place place = place_of(s, stream, level, number);
    size_t bytes = s->shape.record_bytes;
    int64_t came = transfer(s, DISK_READ, &place, s->batch, count);
    uint64_t first = spill_held(s, stream, level).from;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *record = s->batch + i * bytes;
        place = place_of(s, stream, level, number + i);
        enum segment_fault fault =
            fault_of(s, &place, record, came < 0 ? came : came - (int64_t)(i * bytes));
        fit[i] = false;
        if (number + i < first)
            continue; /* the stream has none before it */
        s->astray |= came == -ENOENT;
        if (fault && came != -ENOENT)
            fault = fault_of(s, &place, record, transfer(s, DISK_READ, &place, record, 1));
        if (fault)
            note_unfit(s, stream, &place, fault);
        fit[i] = !fault;
    }
}

/* Halves 2i and 2i + 1 of the batch become its record i, at `place`. One that is not fit leaves
 * the other alone; none leaves nothing, as if it had never been written. */
static void average_pair(struct spill *s, uint32_t i, const bool *fit,
                         const struct segment_place *place)
{
    struct segment_header covers[2];
    size_t bytes = s->shape.record_bytes;
    uint8_t *out = s->batch + i * bytes;
    f16 *rows[2];
    for (uint32_t half = 0; half < 2; half++) {
        memcpy(s->merge[half], s->batch + (2 * i + half) * bytes, bytes);
        memcpy(&covers[half], s->merge[half], sizeof covers[half]);
        if (fit[half]) {
            segment_take_rows(&s->shape, s->merge[half]);
            segment_raise(&covers[half], half);
        }
        rows[half] = (f16 *)(void *)(s->merge[half] + SEGMENT_HEADER_BYTES);
    }
    if (!fit[0] && !fit[1]) {
        memset(out, 0, bytes);
        return;
    }
    if (fit[0] && fit[1])
        segment_average(&s->shape, rows[0], &covers[0], rows[1], &covers[1]);
    segment_put_rows(&s->shape, out, rows[!fit[0]]);
    segment_seal(&s->shape, out, place, &covers[!fit[0]]);
}

/* Means that the batch holds, to the disk. One whose place takes nothing, now or ever, is given up,
 * as if its halves had been unfit, and made again when it is asked for: else nothing would ever be
 * merged behind it, and there were no room for newer segments. But of a disk that takes nothing at
 * all nothing is given up. */
static int write_means(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t from,
                       uint64_t to)
{
    struct segment_place place = place_of(s, stream, level, from);
    int64_t code = transfer(s, DISK_WRITE, &place, s->batch, (uint32_t)(to - from));
    if (code != -EIO || s->writes_fail)
        return code < 0 ? (int)code : 0;
    for (uint64_t n = from; n < to; n++) {
        place = place_of(s, stream, level, n);
        code = transfer(s, DISK_WRITE, &place, s->batch + (n - from) * s->shape.record_bytes, 1);
        if (code < 0 && code != -EIO)
            return (int)code;
        if (code < 0)
            note_unfit(s, stream, &place, SEGMENT_UNREADABLE);
    }
    return 0;
}

/* Pairs [from, to) of a level become records of the next, of one file as their halves are. */
static int merge_pairs(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t from,
                       uint64_t to)
{
    bool fit[SPILL_FILE_RECORDS_MAX];
    read_batch(s, stream, level, 2 * from, (uint32_t)(2 * (to - from)), fit);
    for (uint64_t n = from; n < to; n++) {
        struct segment_place place = place_of(s, stream, level + 1, n);
        average_pair(s, (uint32_t)(n - from), fit + 2 * (n - from), &place);
    }
    return write_means(s, stream, level + 1, from, to);
}

static int sync_level(struct spill *s, const struct spill_stream *stream, uint32_t level,
                      uint64_t from, uint64_t to)
{
    int code = 0;
    for (uint64_t file = from / s->file_records; file <= (to - 1) / s->file_records; file++) {
        struct segment_place place = place_of(s, stream, level, file * s->file_records);
        int slot = spill_file_get(s, &place, false);
        struct disk_op op = {.kind = DISK_SYNC, .file = (uint32_t)slot};
        if (slot >= 0 && !code)
            code = disk_run(&s->disk, &op);
    }
    return code;
}

/* Records [from, to) of a level go, and with them what is older of that level. */
static int drop(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t to)
{
    int code = spill_punch(s, stream, level, spill_held(s, stream, level).from, to);
    pthread_mutex_lock(&s->lock);
    stream->level[level].from = to;
    pthread_mutex_unlock(&s->lock);
    return code;
}

/* Pairs of a level that are merged together: the oldest half of it, as many as there is room for
 * beside their halves, and a unit, at most; they end where a file of halves does, if any ends. The
 * first may be alone in its pair. short_of: there is less room than that, the limit having come
 * down: a few means go beyond it until their halves have gone, not what they stand for. */
static struct spill_range next_pairs(struct spill *s, const struct spill_stream *stream,
                                     uint32_t level, bool short_of)
{
    struct spill_range range = on_disk(s, stream, level);
    uint64_t from = range.from / 2, to = range.to / 2, most = count_of(range) / 4;
    uint64_t room = s->limit > s->stat.bytes_disk ? s->limit - s->stat.bytes_disk : 0;
    uint64_t unit = spill_unit(s), left = unit - from % unit, file = s->file_records / 2;
    most = most ? most : 1;
    most = most < left ? most : left;
    room /= s->shape.record_bytes;
    if (short_of && room < SPILL_GROW_MERGED)
        room = SPILL_GROW_MERGED;
    most = most < room ? most : room;
    to = to < from + most ? to : from + most;
    return (struct spill_range){from, to / file * file > from ? to / file * file : to};
}

static int merge_some(struct spill *s, struct spill_stream *stream, uint32_t level, bool short_of)
{
    struct spill_range range = next_pairs(s, stream, level, short_of);
    uint64_t from = range.from, to = range.to, end = from, pairs = spill_unit(s) / 2;
    int code = from < to ? 0 : -EDQUOT;
    s->merge_limit = short_of ? s->stat.bytes_disk + SPILL_GROW_MERGED * s->shape.record_bytes : 0;
    for (uint64_t n = from; n < to && !code; n = end) {
        end = (n / pairs + 1) * pairs; /* which no file ends within */
        end = end < to ? end : to;
        code = merge_pairs(s, stream, level, n, end);
    }
    s->merge_limit = 0;
    if (!code)
        code = sync_level(s, stream, level + 1, from, to);
    if (code) { /* what is of no level would never go */
        (void)spill_punch(s, stream, level + 1, from, end);
        return code;
    }
    pthread_mutex_lock(&s->lock);
    if (stream->level[level + 1].from == stream->level[level + 1].to)
        stream->level[level + 1].from = from;
    stream->level[level + 1].to = to;
    s->stat.segments_merged += 2 * to - stream->level[level].from;
    stream->merged += 2 * to - stream->level[level].from;
    spill_raise_damage(s, stream->id, level, 2 * from, 2 * to);
    pthread_mutex_unlock(&s->lock);
    return drop(s, stream, level, 2 * to);
}

/* The oldest records of all go: as many as one may be merged after. */
static int drop_oldest(struct spill *s, struct spill_stream *stream)
{
    uint64_t disk = s->stat.bytes_disk, over = disk > s->limit ? disk - s->limit : 0;
    uint64_t count = over / s->shape.record_bytes + 1;
    uint32_t level = SEGMENT_LEVELS - 1;
    while (!count_of(on_disk(s, stream, level)))
        level--;
    struct spill_range range = on_disk(s, stream, level);
    if (count > count_of(range))
        count = count_of(range);
    int code = drop(s, stream, level, range.from + count);
    pthread_mutex_lock(&s->lock);
    s->stat.segments_dropped += count;
    stream->dropped += count;
    pthread_mutex_unlock(&s->lock);
    return code;
}

void spill_make_room(struct spill *s, uint64_t need)
{
    /* So little that all levels of a stream do not fit it is as good as none: --disk is full. */
    bool some = s->limit > 2 * SEGMENT_LEVELS * s->shape.record_bytes, shrunk = false;
    struct spill_stream *stream;
    int code = 0;
    while (s->stat.bytes_disk + need > s->limit && (stream = largest(s)) && !code) {
        uint64_t most = 0, count;
        uint32_t level = 0;
        if (s->astray) {
            spill_count(s);
            continue;
        }
        for (uint32_t i = 0; i < SEGMENT_LEVELS; i++)
            if ((count = count_of(on_disk(s, stream, i))) > most) {
                most = count;
                level = i;
            }
        if (most > 2 && level < SEGMENT_LEVELS - 1 &&
            (code = merge_some(s, stream, level, some && shrunk)) != -EDQUOT)
            continue;
        /* No room even to merge: the limit has come down. What files have grown by goes first. */
        code = 0;
        if (!shrunk) {
            shrunk = true;
            spill_shrink(s);
            continue;
        }
        if (!most)
            break;
        code = drop_oldest(s, stream);
    }
    if (code) {
        pthread_mutex_lock(&s->lock);
        s->stat.last_error = code;
        pthread_mutex_unlock(&s->lock);
    }
}
