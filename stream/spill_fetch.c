/*
 * Cold segments on their way back, some of them for one question.
 *
 * What waits to be written is copied from staging; the rest the step thread reads.
 */
#include "stream/spill.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* The record that holds a chunk now. False: none does. */
static bool find_record(const struct spill *s, const struct spill_stream *stream, uint64_t chunk,
                        struct segment_place *out)
{
    for (uint32_t level = 0; level < SEGMENT_LEVELS; level++) {
        uint64_t number = chunk >> level;
        if (number < stream->level[level].from || number >= stream->level[level].to)
            continue;
        *out = (struct segment_place){.stream_id = stream->id,
                                      .stream_epoch = stream->epoch,
                                      .number = number,
                                      .level = level,
                                      .offset = spill_offset(s, number)};
        return true;
    }
    return false;
}

static bool same_place(const struct segment_place *a, const struct segment_place *b)
{
    return a->stream_id == b->stream_id && a->level == b->level && a->number == b->number;
}

void spill_follow(struct spill *s, struct spill_io *part)
{
    const struct spill_stream *stream = &s->streams[part->stream];
    if (spill_has_left(stream, &part->place))
        (void)find_record(s, stream, part->place.number << part->place.level, &part->place);
}

/* What is still on its way to the disk is taken from there. Under the lock. */
static bool take_staged(struct spill *s, struct spill_io *part)
{
    for (uint32_t i = 0; i < s->options.staging_max; i++) {
        const struct spill_io *io = &s->staging[i];
        if ((io->state != IO_READY && io->state != IO_FLYING) ||
            !same_place(&io->place, &part->place))
            continue;
        memcpy(part->record, io->record, s->shape.record_bytes);
        part->state = IO_DONE;
        return true;
    }
    return false;
}

/* One more record to fetch, unless another chunk has brought it. Under the lock. */
static void add_part(struct spill *s, struct spill_fetch *f, const struct spill_stream *stream,
                     uint64_t chunk)
{
    struct spill_io *part = &f->part[f->count];
    part->fault = SEGMENT_FINE;
    part->stream = (uint32_t)(stream - s->streams);
    if (!find_record(s, stream, chunk, &part->place)) {
        /* Older ones than there are may have been dropped; newer ones are lost. */
        if (chunk >= stream->level[0].to)
            spill_note_fault(s, (struct spill_stream *)(uintptr_t)stream, SEGMENT_MISSING);
        return;
    }
    for (uint32_t i = 0; i < f->count; i++)
        if (same_place(&f->part[i].place, &part->place))
            return;
    f->taken[f->count++] = false;
    if (!take_staged(s, part)) {
        part->state = IO_READY;
        f->left++;
    }
}

int spill_fetch(struct spill *s, uint64_t stream_id, const uint64_t *chunks, uint32_t count,
                struct spill_fetch **out)
{
    struct spill_fetch *f = NULL;
    int code = 0;
    *out = NULL;
    if (count > STREAM_RECALL_MAX)
        return -EINVAL;
    pthread_mutex_lock(&s->lock);
    const struct spill_stream *stream = spill_find(s, stream_id);
    for (uint32_t i = 0; i < s->options.fetches_max && !f; i++)
        if (!s->fetches[i].used)
            f = &s->fetches[i];
    if (!stream || !f) {
        code = stream ? -EAGAIN : -ENOENT;
    } else {
        f->used = true;
        f->abandoned = false;
        f->count = f->left = 0;
        f->chunk_count = count;
        memcpy(f->chunk, chunks, count * sizeof *chunks);
        for (uint32_t i = 0; i < count; i++)
            add_part(s, f, stream, chunks[i]);
        atomic_store(&f->done, f->left == 0);
        *out = f;
    }
    pthread_mutex_unlock(&s->lock);
    if (!code)
        spill_ring_bell(s);
    return code;
}

bool spill_fetched(const struct spill_fetch *f)
{
    return atomic_load(&f->done);
}

static void sort_newest_last(struct cold_segment *list, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i; j > 0 && list[j].number < list[j - 1].number; j--) {
            struct cold_segment swap = list[j];
            list[j] = list[j - 1];
            list[j - 1] = swap;
        }
}

/* Two records may have become one while they waited to be read. */
static bool came_before(const struct spill_fetch *f, uint32_t part)
{
    for (uint32_t i = 0; i < part; i++)
        if (!f->part[i].fault && same_place(&f->part[i].place, &f->part[part].place))
            return true;
    return false;
}

static bool is_asked(const struct spill_fetch *f, const struct segment_header *h)
{
    for (uint32_t i = 0; i < f->chunk_count; i++)
        if (segment_holds(h, f->chunk[i]))
            return true;
    return false;
}

uint32_t spill_segments(struct spill_fetch *f, struct cold_segment *out)
{
    uint32_t count = 0;
    assert(spill_fetched(f));
    for (uint32_t i = 0; i < f->count; i++) {
        struct spill_io *part = &f->part[i];
        struct segment_header h;
        if (part->fault || came_before(f, i))
            continue;
        if (!f->taken[i])
            segment_take_rows(&f->spill->shape, part->record);
        f->taken[i] = true;
        memcpy(&h, part->record, sizeof h);
        if (!is_asked(f, &h))
            continue;
        out[count++] = (struct cold_segment){
            .number = ((h.number + 1) << h.level) - 1,
            .token_from = h.token_from,
            .token_to = h.token_to,
            .time_from_us = h.time_from_us,
            .time_to_us = h.time_to_us,
            .weight = h.weight,
            .rows = (const f16 *)(const void *)(part->record + SEGMENT_HEADER_BYTES)};
    }
    sort_newest_last(out, count);
    return count;
}

void spill_release(struct spill_fetch **fetch)
{
    struct spill_fetch *f = *fetch;
    if (!f)
        return;
    pthread_mutex_lock(&f->spill->lock);
    if (f->left)
        f->abandoned = true; /* what is under way still writes into it */
    else
        f->used = false;
    pthread_mutex_unlock(&f->spill->lock);
    *fetch = NULL;
}
