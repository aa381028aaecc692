/*
 * Cold segments on their way to the disk.
 *
 * A segment is copied into a staging place by whoever computes it and written by the step thread;
 * until it is on disk it is read from staging, so that a segment can be fetched from the moment it
 * was put. Records lie at places that follow from their numbers, so there is no index to lose.
 */
#include "stream/spill.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static size_t up(size_t bytes, size_t align)
{
    return (bytes + align - 1) & ~(align - 1);
}

/* ---- open and close ---- */

static uint32_t file_records(const struct segment_shape *shape)
{
    uint32_t records = SPILL_FILE_RECORDS;
    while (records < SPILL_FILE_RECORDS_MAX &&
           2 * records * shape->record_bytes <= SPILL_FILE_BYTES)
        records *= 2;
    return records;
}

/* Record buffers come first: they are page-aligned and what the kernel registers. Those of staging
 * lie as records do in a file, so that neighbours there are one write. */
static size_t buffers_bytes(const struct spill_options *o, const struct segment_shape *shape)
{
    size_t rows = (size_t)o->fetches_max * STREAM_RECALL_MAX + 2;
    return DISK_ALIGN + rows * segment_buffer_bytes(shape) +
           (file_records(shape) + o->staging_max) * shape->record_bytes;
}

/* Means on their way to a record that is made again, and a record to round them in. */
static size_t mend_bytes(const struct segment_shape *shape)
{
    return SEGMENT_LEVELS * up(shape->values * sizeof(f16), 64) +
           up(segment_buffer_bytes(shape), 64);
}

static bool possible(const struct engine *engine, const struct spill_options *o)
{
    return engine->shape.comp && o->streams_max && o->streams_max <= SPILL_STREAMS_MAX &&
           o->staging_max && o->staging_max <= SPILL_STAGING_MAX &&
           o->fetches_max <= SPILL_FETCHES_MAX &&
           (o->dtype == SEGMENT_F16 || o->dtype == SEGMENT_INT8);
}

size_t spill_record_bytes(const struct engine *engine, enum segment_dtype dtype)
{
    struct segment_shape shape;
    segment_shape_make(&shape, engine, dtype);
    return shape.record_bytes;
}

uint32_t spill_file_records(const struct engine *engine, enum segment_dtype dtype)
{
    struct segment_shape shape;
    segment_shape_make(&shape, engine, dtype);
    return file_records(&shape);
}

size_t spill_bytes(const struct engine *engine, const struct spill_options *o)
{
    struct segment_shape shape;
    if (!possible(engine, o))
        return 0;
    segment_shape_make(&shape, engine, o->dtype);
    return buffers_bytes(o, &shape) + up(sizeof(struct spill), 64) + disk_engine_bytes() +
           up(o->streams_max * sizeof(struct spill_stream), 64) +
           up(o->staging_max * sizeof(struct spill_io), 64) + mend_bytes(&shape) +
           up(o->fetches_max * sizeof(struct spill_fetch), 64) + DISK_RING_BYTES;
}

static void carve(struct spill *s, uint8_t *buffers, uint8_t *at)
{
    const struct spill_options *o = &s->options;
    size_t record = segment_buffer_bytes(&s->shape);
    s->page = buffers;
    buffers += DISK_ALIGN;
    for (int i = 0; i < 2; i++, buffers += record)
        s->merge[i] = buffers;
    s->batch = buffers;
    buffers += s->file_records * s->shape.record_bytes;
    s->streams = (void *)at;
    at += up(o->streams_max * sizeof *s->streams, 64);
    s->staging = (void *)at;
    at += up(o->staging_max * sizeof *s->staging, 64);
    s->fetches = (void *)at;
    at += up(o->fetches_max * sizeof *s->fetches, 64);
    for (int i = 0; i < SEGMENT_LEVELS; i++, at += up(s->shape.values * sizeof(f16), 64))
        s->mend.mean[i].rows = (void *)at;
    s->mend.record = at;
    memset(s->streams, 0, o->streams_max * sizeof *s->streams);
    memset(s->staging, 0, o->staging_max * sizeof *s->staging);
    memset(s->fetches, 0, o->fetches_max * sizeof *s->fetches);
    for (uint32_t i = 0; i < o->staging_max; i++, buffers += s->shape.record_bytes)
        s->staging[i].record = buffers;
    for (uint32_t i = 0; i < o->fetches_max; i++) {
        s->fetches[i].spill = s;
        for (int j = 0; j < STREAM_RECALL_MAX; j++, buffers += record) {
            s->fetches[i].part[j].record = buffers;
            s->fetches[i].part[j].kind = SPILL_READ;
            s->fetches[i].part[j].fetch = &s->fetches[i];
        }
    }
}

/* io_uring if the kernel lets us and the folder takes O_DIRECT; else plain calls. */
static int open_engine(struct spill *s, uint8_t *buffers)
{
    struct disk_engine *engine;
    int code = -ENOSYS;
    if (s->direct)
        code = disk_engine_uring(&engine, s->engine_memory, buffers,
                                 buffers_bytes(&s->options, &s->shape), s->event_fd);
    if (code) {
        s->direct = false;
        code = disk_engine_plain(&engine, s->engine_memory);
    }
    if (code)
        return code;
    disk_init(&s->disk, engine);
    s->stat.engine_name = engine->name;
    return 0;
}

int spill_open(struct spill **out, const struct engine *engine, const struct spill_options *o,
               void *memory, size_t memory_bytes, char *error, size_t error_bytes)
{
    struct segment_shape shape;
    *out = NULL;
    if (!possible(engine, o) || (uintptr_t)memory % DISK_ALIGN ||
        memory_bytes < spill_bytes(engine, o))
        return fail_with(error, error_bytes, -EINVAL, "cold segments: options out of range");
    segment_shape_make(&shape, engine, o->dtype);
    uint8_t *at = (uint8_t *)memory + buffers_bytes(o, &shape);
    struct spill *s = (void *)at;
    *s = (struct spill){.shape = shape,
                        .file_records = file_records(&shape),
                        .options = *o,
                        .event_fd = -1,
                        .folder_fd = -1};
    at += up(sizeof *s, 64);
    s->engine_memory = at;
    carve(s, memory, at + disk_engine_bytes());
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->room, NULL);
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = s->event_fd < 0 ? -errno : 0;
    if (code)
        fail_with(error, error_bytes, code, "cold segments: no event fd: %s", strerror(-code));
    if (!code)
        code = spill_folder_open(s, error, error_bytes);
    if (!code && (code = open_engine(s, memory)))
        fail_with(error, error_bytes, code, "cold segments: no disk engine: %s", strerror(-code));
    if (code) {
        if (s->folder_fd >= 0)
            close(s->folder_fd);
        if (s->event_fd >= 0)
            close(s->event_fd);
        return code;
    }
    *out = s;
    return 0;
}

void spill_close(struct spill **spill)
{
    struct spill *s = *spill;
    if (!s)
        return;
    spill_drain(s);
    for (uint32_t i = 0; i < DISK_FILES_MAX; i++)
        if (s->files[i].used)
            disk_file_drop(&s->disk, i);
    s->disk.engine->close(s->disk.engine);
    close(s->folder_fd);
    close(s->event_fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->room);
    *spill = NULL;
}

void spill_stat(struct spill *s, struct spill_stat *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stat;
    out->bytes_limit = s->limit;
    pthread_mutex_unlock(&s->lock);
}

int spill_fd(const struct spill *s)
{
    return s->event_fd;
}

void spill_ring_bell(struct spill *s)
{
    uint64_t one = 1;
    ssize_t n = write(s->event_fd, &one, sizeof one);
    (void)n; /* full means it is readable, which is all we want */
}

void spill_limit(struct spill *s, uint64_t bytes)
{
    pthread_mutex_lock(&s->lock);
    s->limit = bytes;
    bool over = bytes && s->stat.bytes_disk > bytes;
    pthread_mutex_unlock(&s->lock);
    if (over)
        spill_ring_bell(s);
}

/* ---- streams ---- */

struct spill_stream *spill_find(struct spill *s, uint64_t stream_id)
{
    for (uint32_t i = 0; i < s->options.streams_max; i++)
        if (s->streams[i].used && s->streams[i].id == stream_id)
            return &s->streams[i];
    return NULL;
}

void spill_note_fault(struct spill *s, struct spill_stream *stream, enum segment_fault fault)
{
    s->stat.faults[fault]++;
    if (stream)
        stream->faults[fault]++;
}

int spill_attach(struct spill *s, uint64_t stream_id, uint64_t epoch)
{
    struct spill_stream stream = {.used = true, .id = stream_id, .epoch = epoch};
    uint32_t place = 0;
    while (place < s->options.streams_max && s->streams[place].used)
        place++;
    if (spill_find(s, stream_id))
        return -EEXIST;
    if (place == s->options.streams_max)
        return -ENOSPC;
    spill_drain(s);
    int code = spill_scan(s, &stream);
    pthread_mutex_lock(&s->lock);
    if (!code)
        s->streams[place] = stream;
    s->attached += !code;
    pthread_mutex_unlock(&s->lock);
    return code;
}

void spill_detach(struct spill *s, uint64_t stream_id)
{
    struct spill_stream *stream = spill_find(s, stream_id);
    if (!stream)
        return;
    spill_drain(s);
    spill_files_drop(s, stream_id);
    pthread_mutex_lock(&s->lock);
    stream->used = false;
    s->attached--;
    if (s->mend.place.stream_id == stream_id)
        s->mend.place.stream_id = 0; /* no stream's: its text may be another when it is back */
    pthread_mutex_unlock(&s->lock);
}

int spill_stream_stat(struct spill *s, uint64_t stream_id, struct spill_stream_stat *out)
{
    *out = (struct spill_stream_stat){.chunks_from = UINT64_MAX};
    pthread_mutex_lock(&s->lock);
    struct spill_stream *stream = spill_find(s, stream_id);
    for (uint32_t i = 0; stream && i < SEGMENT_LEVELS; i++) {
        struct spill_range range = stream->level[i];
        if (range.from == range.to)
            continue;
        out->records += range.to - range.from;
        if (range.from << i < out->chunks_from)
            out->chunks_from = range.from << i;
        if (range.to << i > out->chunks_to)
            out->chunks_to = range.to << i;
    }
    if (out->chunks_from == UINT64_MAX)
        out->chunks_from = 0;
    if (stream) {
        out->bytes_disk = stream->bytes;
        out->segments_merged = stream->merged;
        out->segments_dropped = stream->dropped;
        out->segments_lost = stream->lost;
        out->segments_repaired = stream->repaired;
        out->segments_approximate = stream->approximate;
        memcpy(out->faults, stream->faults, sizeof out->faults);
    }
    pthread_mutex_unlock(&s->lock);
    return stream ? 0 : -ENOENT;
}

/* ---- to the disk ---- */

struct spill_io *spill_staging_take(struct spill *s)
{
    uint32_t most = s->options.staging_max;
    for (uint32_t i = 0; i < most; i++) {
        uint32_t at = (s->staging_next + i) % most;
        struct spill_io *io = &s->staging[at];
        if (io->state != IO_FREE)
            continue;
        s->staging_next = (at + 1) % most; /* what is put one after the other lies so */
        io->state = IO_FILLING;
        io->kind = SPILL_WRITE;
        io->order = s->orders++;
        io->promised = io->alone = io->only = false;
        io->mends = MENDS_NOTHING;
        return io;
    }
    return NULL;
}

/* The chunk is, or was, in a coarser record: a replay brings it again, and it stays there. */
static bool has_gone(const struct spill_stream *stream, uint64_t number)
{
    for (uint32_t i = 1; i < SEGMENT_LEVELS; i++)
        if (number >> i < stream->level[i].to)
            return true;
    return number < stream->level[0].from;
}

/* True: it was not of the range. */
static bool extend(struct spill_range *range, uint64_t number)
{
    bool beyond = number >= range->to;
    if (range->from == range->to)
        range->from = number;
    range->to = beyond ? number + 1 : range->to;
    return beyond;
}

static void fill(struct spill *s, struct spill_io *io, const struct segment_view *segment,
                 uint64_t time_from_us, uint64_t time_to_us)
{
    struct segment_header covers = {.token_from = segment->token_from,
                                    .token_to = segment->token_to,
                                    .time_from_us = time_from_us,
                                    .time_to_us = time_to_us,
                                    .weight = 1,
                                    .held = {1}};
    segment_put_rows(&s->shape, io->record, segment->rows);
    segment_seal(&s->shape, io->record, &io->place, &covers);
}

static void wait_for_room(struct spill *s)
{
    uint64_t from = monotonic_us();
    s->waiting++;
    spill_ring_bell(s); /* what has been written may not have been looked at */
    pthread_cond_wait(&s->room, &s->lock);
    s->waiting--;
    s->stat.wait_us += monotonic_us() - from;
}

/* A staging place for the segment in out; NULL there with 0: it need not be written. Under the
 * lock. */
static int take_place(struct spill *s, uint64_t stream_id, uint64_t number, bool wait,
                      struct spill_io **out)
{
    struct spill_stream *stream;
    *out = NULL;
    for (;;) {
        stream = spill_find(s, stream_id);
        if (!stream)
            return -ENOENT;
        if (has_gone(stream, number))
            return 0;
        if ((*out = spill_staging_take(s)))
            break;
        if (!wait)
            return -EAGAIN;
        wait_for_room(s);
    }
    (*out)->stream = (uint32_t)(stream - s->streams);
    (*out)->place = (struct segment_place){.stream_id = stream_id,
                                           .stream_epoch = stream->epoch,
                                           .number = number,
                                           .offset = spill_offset(s, number)};
    (*out)->only = extend(&stream->level[0], number);
    return 0;
}

/* Neighbours written together cost the disk hardly more than one. A few that wait for others are
 * written by the next step, whatever it is for. */
void spill_staging_ready(struct spill *s, struct spill_io *io)
{
    uint32_t ready = 0, free = 0;
    pthread_mutex_lock(&s->lock);
    io->state = IO_READY;
    for (uint32_t i = 0; i < s->options.staging_max; i++) {
        ready += s->staging[i].state == IO_READY;
        free += s->staging[i].state == IO_FREE;
    }
    pthread_mutex_unlock(&s->lock);
    if (ready >= s->options.staging_max / 2 || !free)
        spill_ring_bell(s);
}

static int put(struct spill *s, uint64_t stream_id, const struct segment_view *segment,
               uint64_t time_from_us, uint64_t time_to_us, bool wait)
{
    struct spill_io *io;
    if (segment->rows_bytes != s->shape.values * sizeof(f16))
        return -EINVAL;
    pthread_mutex_lock(&s->lock);
    int code = take_place(s, stream_id, segment->number, wait, &io);
    pthread_mutex_unlock(&s->lock);
    if (!io)
        return code;
    fill(s, io, segment, time_from_us, time_to_us);
    spill_staging_ready(s, io);
    return 0;
}

int spill_put(struct spill *s, uint64_t stream_id, const struct segment_view *segment,
              uint64_t time_from_us, uint64_t time_to_us)
{
    return put(s, stream_id, segment, time_from_us, time_to_us, false);
}

int spill_put_wait(struct spill *s, uint64_t stream_id, const struct segment_view *segment,
                   uint64_t time_from_us, uint64_t time_to_us)
{
    return put(s, stream_id, segment, time_from_us, time_to_us, true);
}
