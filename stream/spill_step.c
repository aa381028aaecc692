/*
 * The step thread's part: what waits is started, what has ended is looked at.
 *
 * The lock is held while states change, never while the disk works.
 */
#include "stream/spill.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

/* ---- the end of an operation, under the lock ---- */

static void end_write(struct spill *s, struct spill_io *io, int result)
{
    if (!result || result == -EIO) /* else it found no room, and nobody asked the disk */
        s->writes_fail = result;
    if (result) {
        s->stat.segments_lost++;
        s->streams[io->stream].lost++;
        s->stat.last_error = result;
    } else {
        s->stat.segments_written++;
        s->streams[io->stream].repaired += io->mends == MENDS_EXACT;
        s->streams[io->stream].approximate += io->mends == MENDS_APPROXIMATE;
    }
    io->state = IO_FREE;
    pthread_cond_broadcast(&s->room);
}

static enum segment_fault fault_of(const struct spill *s, const struct spill_io *io, int result)
{
    if (result)
        return result == -ENOENT ? SEGMENT_MISSING : SEGMENT_UNREADABLE;
    if (io->op.done < SEGMENT_HEADER_BYTES)
        return SEGMENT_MISSING; /* the file ends before it */
    if (io->op.done < io->op.count)
        return SEGMENT_TORN;
    return segment_check(&s->shape, io->record, &io->place);
}

/* True: the fetch is complete and somebody waits for it. */
static bool end_read(struct spill *s, struct spill_io *io, enum segment_fault fault)
{
    struct spill_fetch *f = io->fetch;
    struct spill_stream *stream = &s->streams[io->stream];
    bool left = spill_has_left(stream, &io->place); /* dropped since it was asked for: no damage */
    io->fault = fault;
    io->state = IO_DONE;
    if (fault && !left)
        spill_note_fault(s, stream, fault);
    s->stat.segments_fetched += !fault;
    if (!left &&
        (fault || segment_lacks_some((const struct segment_header *)(const void *)io->record)))
        spill_note_damage(s, &io->place);
    if (--f->left)
        return false;
    if (f->abandoned) {
        f->used = false;
        return false;
    }
    atomic_store(&f->done, true);
    return true;
}

/* Of neighbours written as one nobody knows which was refused: each is tried by itself. */
static void end_writes(struct spill *s, struct spill_io *first, int result)
{
    for (uint32_t i = 0; i < first->run; i++) {
        if (result && first->run > 1) {
            first[i].alone = true;
            first[i].state = IO_READY;
        } else {
            end_write(s, &first[i], result);
        }
    }
}

static bool end_io(struct spill *s, struct spill_io *io, int result)
{
    bool ready = false;
    /* The check reads a whole record: done before the lock is taken. */
    enum segment_fault fault = io->kind == SPILL_READ ? fault_of(s, io, result) : SEGMENT_FINE;
    pthread_mutex_lock(&s->lock);
    if (io->kind == SPILL_READ)
        ready = end_read(s, io, fault);
    else
        end_writes(s, io, result);
    pthread_mutex_unlock(&s->lock);
    return ready;
}

/* ---- its beginning ---- */

/* A record is never read and written at the same time. Under the lock. */
static bool is_read_now(const struct spill *s, const struct segment_place *place)
{
    for (uint32_t i = 0; i < s->options.fetches_max; i++) {
        const struct spill_fetch *f = &s->fetches[i];
        for (uint32_t j = 0; f->used && j < f->count; j++)
            if (f->part[j].state == IO_FLYING && f->part[j].place.number == place->number &&
                f->part[j].place.level == place->level &&
                f->part[j].place.stream_id == place->stream_id)
                return true;
    }
    return false;
}

static bool same_file(const struct spill *s, const struct segment_place *a,
                      const struct segment_place *b)
{
    return a->stream_id == b->stream_id && a->level == b->level &&
           a->number / s->file_records == b->number / s->file_records;
}

static bool may_write(const struct spill *s, const struct spill_io *io)
{
    return io->state == IO_READY && (!s->limit || io->promised) && !is_read_now(s, &io->place) &&
           !spill_has_left(&s->streams[io->stream], &io->place);
}

/* Records that a replay or a mend brought again, of chunks that were merged or dropped before these
 * were written. At their places they would be taken for the first of their level at the next start.
 * Under the lock. */
static void let_go(struct spill *s)
{
    for (uint32_t i = 0; i < s->options.staging_max; i++) {
        struct spill_io *io = &s->staging[i];
        if (io->state != IO_READY || !spill_has_left(&s->streams[io->stream], &io->place))
            continue;
        io->state = IO_FREE;
        pthread_cond_broadcast(&s->room);
    }
}

/* Places from this one on that follow each other in their file as they do in memory: one write,
 * for which disk and file system are asked once. Under the lock. */
static uint32_t run_from(const struct spill *s, const struct spill_io *first)
{
    const struct spill_io *end = s->staging + s->options.staging_max, *io = first + 1;
    size_t bytes = s->shape.record_bytes, most = SPILL_RUN_BYTES / bytes;
    while (io < end && !first->alone && (size_t)(io - first) < most && !io->alone &&
           io->place.number == io[-1].place.number + 1 && io->record == io[-1].record + bytes &&
           same_file(s, &io->place, &first->place) && may_write(s, io))
        io++;
    return (uint32_t)(io - first);
}

static void set_run(struct spill_io *first, uint32_t count, enum spill_io_state state)
{
    for (uint32_t i = 0; i < count; i++)
        first[i].state = state;
    first->run = count;
}

/* The oldest record that waits for the disk, marked FLYING, with those that are written with it;
 * reads first, a question waits for them. NULL: none. */
static struct spill_io *next_io(struct spill *s, bool writes)
{
    struct spill_io *next = NULL;
    pthread_mutex_lock(&s->lock);
    let_go(s);
    for (uint32_t i = 0; i < s->options.fetches_max && !next; i++)
        for (uint32_t j = 0; s->fetches[i].used && j < s->fetches[i].count && !next; j++)
            if (s->fetches[i].part[j].state == IO_READY)
                next = &s->fetches[i].part[j];
    writes &= !next;
    for (uint32_t i = 0; i < s->options.staging_max && writes; i++) {
        struct spill_io *io = &s->staging[i];
        if ((!next || io->order < next->order) && may_write(s, io))
            next = io;
    }
    if (next && next->kind == SPILL_READ)
        spill_follow(s, next);
    if (next)
        set_run(next, next->kind == SPILL_WRITE ? run_from(s, next) : 1, IO_FLYING);
    pthread_mutex_unlock(&s->lock);
    return next;
}

static void put_back(struct spill *s, struct spill_io *io)
{
    pthread_mutex_lock(&s->lock);
    set_run(io, io->run, IO_READY);
    pthread_mutex_unlock(&s->lock);
}

/* Bytes that files will grow by for the segments waiting to be written. What is put from now on is
 * not among them, and waits for the next step. */
static uint64_t growth(struct spill *s)
{
    struct segment_place place[SPILL_STAGING_MAX];
    uint32_t count = 0;
    uint64_t bytes = 0;
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < s->options.staging_max; i++) {
        struct spill_io *io = &s->staging[i];
        uint32_t j = 0;
        if (io->state != IO_READY)
            continue;
        io->promised = true;
        while (j < count && !same_file(s, &place[j], &io->place))
            j++;
        if (j == count)
            place[count++] = io->place;
        else if (place[j].number < io->place.number)
            place[j].number = io->place.number;
    }
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < count; i++)
        bytes += spill_growth(s, &place[i]);
    /* Merging takes room before it gives some back. */
    return bytes ? bytes + (spill_unit(s) + SPILL_GROW_MERGED) * s->shape.record_bytes : 0;
}

/* Starts one record, or one run. False: nothing waits, or no file slot is free. */
static bool start_one(struct spill *s, bool writes, uint32_t *ended, bool *ready)
{
    struct spill_io *io = next_io(s, writes);
    if (!io)
        return false;
    const struct spill_io *last = io + (io->run - 1);
    int slot = spill_file_get(s, &last->place, io->kind == SPILL_WRITE);
    if (slot == -EMFILE && s->disk.flying) {
        put_back(s, io);
        return false;
    }
    if (slot < 0) {
        *ready |= end_io(s, io, slot);
        ++*ended;
        return true;
    }
    io->op = (struct disk_op){.kind = io->kind == SPILL_WRITE ? DISK_WRITE : DISK_READ,
                              .file = (uint32_t)slot,
                              .bytes = io->record,
                              .count = io->run * s->shape.record_bytes,
                              .offset = io->place.offset,
                              .user = io};
    s->files[slot].users++;
    disk_start(&s->disk, &io->op);
    return true;
}

static uint32_t reap_some(struct spill *s, bool wait, bool *ready)
{
    struct disk_op *out[DISK_DEPTH];
    uint32_t count = disk_reap(&s->disk, out, DISK_DEPTH, wait);
    for (uint32_t i = 0; i < count; i++) {
        s->files[out[i]->file].users--;
        *ready |= end_io(s, out[i]->user, out[i]->result);
    }
    return count;
}

static uint32_t turn_over(struct spill *s, bool wait, bool *ready)
{
    uint32_t ended = 0, n;
    do {
        while (start_one(s, true, &ended, ready))
            ;
        n = reap_some(s, wait && !ended, ready);
        ended += n;
    } while (n);
    return ended;
}

/* Whether somebody waits for what is under way. Writes nobody waits for: the next step, which the
 * next segments bring, finds them ended. */
static bool is_awaited(struct spill *s)
{
    pthread_mutex_lock(&s->lock);
    bool awaited = s->waiting || s->disk.waiting;
    for (uint32_t i = 0; i < s->options.staging_max; i++)
        awaited |= s->staging[i].state == IO_READY;
    for (uint32_t i = 0; i < s->options.fetches_max; i++)
        awaited |= s->fetches[i].used && s->fetches[i].left;
    pthread_mutex_unlock(&s->lock);
    return awaited;
}

uint32_t spill_step(struct spill *s, bool wait)
{
    uint32_t ended = 0;
    bool ready = false;
    uint64_t rung, need;
    if (read(s->event_fd, &rung, sizeof rung) < 0)
        assert(errno == EAGAIN || errno == EINTR);
    disk_quiet(&s->disk, true);
    need = s->limit ? growth(s) : 0;
    if (s->limit && s->stat.bytes_disk + need > s->limit) {
        /* Reads first: what they were promised may be merged away. */
        while (start_one(s, false, &ended, &ready))
            ;
        while (!disk_idle(&s->disk))
            ended += reap_some(s, true, &ready);
        spill_make_room(s, need);
    }
    ended += turn_over(s, wait && !ended, &ready);
    if (is_awaited(s)) {
        disk_quiet(&s->disk, false);
        ended += turn_over(s, false, &ready); /* what ended before it was told */
    }
    if (ready && s->options.fetched)
        s->options.fetched(s->options.fetched_user);
    return ended;
}

/* Something is put, read or written. */
static bool busy(struct spill *s)
{
    bool found = false;
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < s->options.staging_max; i++)
        found |= s->staging[i].state != IO_FREE;
    for (uint32_t i = 0; i < s->options.fetches_max; i++)
        found |= s->fetches[i].used && s->fetches[i].left;
    pthread_mutex_unlock(&s->lock);
    return found || !disk_idle(&s->disk);
}

void spill_drain(struct spill *s)
{
    while (busy(s))
        if (!spill_step(s, true))
            sched_yield(); /* a segment is just being copied */
}
