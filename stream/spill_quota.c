/*
 * Staying below the quota: history grows coarser with age, then it ends.
 *
 * Two neighbouring segments become one, their mean weighted by the chunks each stands for, in a
 * file of the next level; it is on the disk before its halves go. The level with the most records
 * gives way first, so that all levels come to hold about as many and each covers twice the text of
 * the one below: resolution falls off with age as memory's does. The top level drops its oldest.
 */
#include "stream/spill.h"

#include <errno.h>
#include <string.h>

static uint64_t held(const struct spill_stream *stream, uint32_t level)
{
    return stream->level[level].to - stream->level[level].from;
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

static int transfer(struct spill *s, enum disk_kind kind, const struct segment_place *place,
                    uint8_t *record)
{
    int slot = spill_file_get(s, place, kind == DISK_WRITE);
    if (slot < 0)
        return slot;
    struct disk_op op = {.kind = kind,
                         .file = (uint32_t)slot,
                         .bytes = record,
                         .count = s->shape.record_bytes,
                         .offset = place->offset};
    int code = disk_run(&s->disk, &op);
    return !code && op.done < op.count && kind != DISK_SYNC ? -ENODATA : code;
}

/* A half and its header. False: it is not fit for use. */
static bool read_half(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t number,
                      uint8_t *record, struct segment_header *h)
{
    struct segment_place place = place_of(s, stream, level, number);
    int code = transfer(s, DISK_READ, &place, record);
    enum segment_fault fault = code == -ENOENT || code == -ENODATA ? SEGMENT_MISSING
                               : code                              ? SEGMENT_UNREADABLE
                                      : segment_check(&s->shape, record, &place);
    if (fault) {
        pthread_mutex_lock(&s->lock);
        spill_note_fault(s, stream, fault);
        if (fault != SEGMENT_MISSING) /* which the quota may be the cause of */
            spill_note_damage(s, &place);
        pthread_mutex_unlock(&s->lock);
        return false;
    }
    memcpy(h, record, sizeof *h);
    segment_take_rows(&s->shape, record);
    return true;
}

/* Records 2n and 2n + 1 of a level become n of the next. A half that is not fit leaves the other
 * alone. */
static int merge_pair(struct spill *s, struct spill_stream *stream, uint32_t level, uint64_t number)
{
    struct segment_header a, b;
    f16 *rows[2];
    bool has_a = read_half(s, stream, level, 2 * number, s->merge[0], &a);
    bool has_b = read_half(s, stream, level, 2 * number + 1, s->merge[1], &b);
    if (!has_a && !has_b)
        return 0;
    for (int i = 0; i < 2; i++)
        rows[i] = (f16 *)(void *)(s->merge[i] + SEGMENT_HEADER_BYTES);
    if (has_a && has_b)
        segment_average(&s->shape, rows[0], &a, rows[1], &b);
    struct segment_header *covers = has_a ? &a : &b;
    f16 *mean = has_a ? rows[0] : rows[1];
    struct segment_place place = place_of(s, stream, level + 1, number);
    segment_put_rows(&s->shape, s->merge[2], mean);
    segment_seal(&s->shape, s->merge[2], &place, covers);
    return transfer(s, DISK_WRITE, &place, s->merge[2]);
}

static int sync_level(struct spill *s, const struct spill_stream *stream, uint32_t level,
                      uint64_t from, uint64_t to)
{
    int code = 0;
    for (uint64_t file = from / SPILL_FILE_RECORDS; file <= (to - 1) / SPILL_FILE_RECORDS; file++) {
        struct segment_place place = place_of(s, stream, level, file * SPILL_FILE_RECORDS);
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
    int code = spill_punch(s, stream, level, stream->level[level].from, to);
    pthread_mutex_lock(&s->lock);
    stream->level[level].from = to;
    pthread_mutex_unlock(&s->lock);
    return code;
}

static int merge_some(struct spill *s, struct spill_stream *stream, uint32_t level)
{
    struct spill_range range = stream->level[level];
    uint64_t from = (range.from + 1) / 2, to = range.to / 2;
    int code = 0;
    if (to > from + SPILL_MERGE_BATCH)
        to = from + SPILL_MERGE_BATCH;
    for (uint64_t n = from; n < to && !code; n++)
        code = merge_pair(s, stream, level, n);
    if (!code)
        code = sync_level(s, stream, level + 1, from, to);
    if (code)
        return code;
    pthread_mutex_lock(&s->lock);
    if (stream->level[level + 1].from == stream->level[level + 1].to)
        stream->level[level + 1].from = from;
    stream->level[level + 1].to = to;
    s->stat.segments_merged += 2 * (to - from);
    stream->merged += 2 * (to - from);
    pthread_mutex_unlock(&s->lock);
    return drop(s, stream, level, 2 * to);
}

void spill_make_room(struct spill *s, uint64_t need)
{
    struct spill_stream *stream;
    int code = 0;
    while (s->stat.bytes_disk + need > s->limit && (stream = largest(s)) && !code) {
        uint32_t level = 0, top = SEGMENT_LEVELS - 1;
        for (uint32_t i = 1; i < SEGMENT_LEVELS; i++)
            if (held(stream, i) > held(stream, level))
                level = i;
        if (!held(stream, level)) {
            if (spill_shrink(s))
                continue;
            break;
        }
        if (held(stream, level) > 2 && level < top &&
            (code = merge_some(s, stream, level)) != -EDQUOT)
            continue;
        /* No room even to merge: the limit has come down. */
        code = 0;
        if (spill_shrink(s) && s->stat.bytes_disk + need <= s->limit)
            break;
        for (level = top; !held(stream, level); level--)
            ;
        code = drop(s, stream, level, stream->level[level].from + 1);
        pthread_mutex_lock(&s->lock);
        s->stat.segments_dropped++;
        stream->dropped++;
        pthread_mutex_unlock(&s->lock);
    }
    if (code) {
        pthread_mutex_lock(&s->lock);
        s->stat.last_error = code;
        pthread_mutex_unlock(&s->lock);
    }
}
