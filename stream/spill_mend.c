/*
 * Records that were found unfit, and what is put in their place.
 *
 * Whoever can compute segments again takes one damage at a time, brings the segments of its chunks
 * in order, and they are averaged as merging would have averaged them: pairs, then pairs of pairs,
 * each mean rounded as the disk rounds it. So from the same segments comes the same record.
 */
#include "stream/spill.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

void spill_note_damage(struct spill *s, const struct segment_place *place)
{
    for (uint32_t i = 0; i < s->damage_count; i++)
        if (s->damage[i].stream_id == place->stream_id && s->damage[i].level == place->level &&
            s->damage[i].number == place->number)
            return;
    if (s->damage_count < SPILL_DAMAGE_MAX) /* else when it is met again */
        s->damage[s->damage_count++] = *place;
}

void spill_raise_damage(struct spill *s, uint64_t stream_id, uint32_t level, uint64_t from,
                        uint64_t to)
{
    uint32_t count = s->damage_count;

    s->damage_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct segment_place place = s->damage[i];
        if (place.stream_id == stream_id && place.level == level && place.number >= from &&
            place.number < to) {
            place.level++;
            place.number /= 2;
            place.offset = spill_offset(s, place.number);
        }
        spill_note_damage(s, &place);
    }
}

/* Under the lock. */
static void drop_first(struct spill *s)
{
    s->damage_count--;
    memmove(s->damage, s->damage + 1, s->damage_count * sizeof *s->damage);
}

/* What is being mended, unless it was merged meanwhile: then it is begun anew. */
static void drop_mended(struct spill *s)
{
    const struct segment_place *a = &s->damage[0], *b = &s->mend.place;
    if (s->damage_count && a->stream_id == b->stream_id && a->level == b->level &&
        a->number == b->number)
        drop_first(s);
}

bool spill_has_left(const struct spill_stream *stream, const struct segment_place *place)
{
    return stream && stream->used && stream->id == place->stream_id &&
           (place->number < stream->level[place->level].from ||
            place->number >= stream->level[place->level].to);
}

bool spill_damaged(struct spill *s, struct spill_damage *out)
{
    bool found;

    pthread_mutex_lock(&s->lock);
    while (s->damage_count && spill_has_left(spill_find(s, s->damage[0].stream_id), &s->damage[0]))
        drop_first(s);
    found = s->damage_count > 0;
    if (found) {
        struct segment_place place = s->damage[0];
        *out = (struct spill_damage){.stream_id = place.stream_id,
                                     .chunk_from = place.number << place.level,
                                     .chunk_to = (place.number + 1) << place.level};
        s->mend.place = place;
        s->mend.depth = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

void spill_mend_skip(struct spill *s)
{
    pthread_mutex_lock(&s->lock);
    drop_mended(s);
    pthread_mutex_unlock(&s->lock);
}

/* What the disk would give back of these rows. */
static void round_rows(struct spill *s, f16 *rows)
{
    if (s->shape.dtype != SEGMENT_INT8)
        return;
    segment_put_rows(&s->shape, s->mend.record, rows);
    memcpy(rows, segment_take_rows(&s->shape, s->mend.record), s->shape.values * sizeof *rows);
}

void spill_mend_add(struct spill *s, const struct segment_view *segment, uint64_t time_from_us,
                    uint64_t time_to_us)
{
    struct spill_mend *m = &s->mend;
    size_t bytes = s->shape.values * sizeof(f16);

    assert(m->depth < SEGMENT_LEVELS && segment->rows_bytes == bytes);
    memcpy(m->mean[m->depth].rows, segment->rows, bytes);
    round_rows(s, m->mean[m->depth].rows);
    m->mean[m->depth].covers = (struct segment_header){.token_from = segment->token_from,
                                                       .token_to = segment->token_to,
                                                       .time_from_us = time_from_us,
                                                       .time_to_us = time_to_us,
                                                       .weight = 1,
                                                       .held = {1}};
    m->depth++;
    while (m->depth > 1 &&
           m->mean[m->depth - 2].covers.weight == m->mean[m->depth - 1].covers.weight) {
        struct spill_mean *a = &m->mean[m->depth - 2], *b = &m->mean[m->depth - 1];
        segment_raise(&a->covers, false);
        segment_raise(&b->covers, true);
        segment_average(&s->shape, a->rows, &a->covers, b->rows, &b->covers);
        round_rows(s, a->rows);
        m->depth--;
    }
}

int spill_mend_end(struct spill *s, bool approximate)
{
    struct spill_mend *m = &s->mend;
    struct spill_stream *stream;
    struct spill_io *io = NULL;
    int code = 0;

    assert(m->depth == 1);
    pthread_mutex_lock(&s->lock);
    stream = spill_find(s, m->place.stream_id);
    if (!stream || spill_has_left(stream, &m->place))
        code = -ENOENT;
    else if (!(io = spill_staging_take(s)))
        code = -EAGAIN;
    if (io) {
        io->stream = (uint32_t)(stream - s->streams);
        io->place = m->place;
        io->place.stream_epoch = stream->epoch;
        io->mends = approximate ? MENDS_APPROXIMATE : MENDS_EXACT;
    }
    if (code != -EAGAIN)
        drop_mended(s);
    pthread_mutex_unlock(&s->lock);
    if (!io)
        return code;
    segment_put_rows(&s->shape, io->record, m->mean[0].rows);
    segment_seal(&s->shape, io->record, &io->place, &m->mean[0].covers);
    spill_staging_ready(s, io);
    return 0;
}

void spill_expect(struct spill *s, uint64_t stream_id, uint64_t chunks)
{
    uint64_t covered = 0, missing;

    pthread_mutex_lock(&s->lock);
    struct spill_stream *stream = spill_find(s, stream_id);
    for (uint32_t i = 0; stream && i < SEGMENT_LEVELS; i++)
        if (stream->level[i].to << i > covered)
            covered = stream->level[i].to << i;
    missing = chunks > covered ? (chunks - covered) * s->shape.record_bytes : 0;
    if (stream && missing && (!s->limit || s->stat.bytes_disk + missing <= s->limit)) {
        struct spill_range *range = &stream->level[0];
        if (range->from == range->to)
            range->from = covered;
        range->to = chunks;
    }
    /* Without a quota nothing was ever dropped. */
    if (stream && !s->limit && stream->level[0].from < stream->level[0].to && !stream->level[1].to)
        stream->level[0].from = 0;
    pthread_mutex_unlock(&s->lock);
}
