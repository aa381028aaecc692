/*
 * The text around what was found: what no line says, the discussion may.
 *
 * It is put together of the chunks next to the best one, whose texts the index keeps each with the
 * end of the chunk before.
 */
#include <string.h>

#include "daemon/search_internal.h"

/* A chunk's text behind `used` bytes of s->around; *place: where the line of the best chunk is. New
 * `used`, 0: the chunk is not there. */
static size_t add_chunk(struct search *s, sqlite3_stmt *get, uint64_t chunk, size_t used,
                        const struct search_text *best, size_t *place)
{
    size_t bytes = 0, shared = 0;

    sqlite3_bind_int64(get, 1, (int64_t)chunk);
    if (sqlite3_step(get) == SQLITE_ROW) {
        const uint8_t *text = sqlite3_column_text(get, 3), *line = NULL;
        uint32_t focus = best->focus_to - best->focus_from;

        bytes = (size_t)sqlite3_column_bytes(get, 3);
        bytes = bytes < CHUNK_TEXT_MAX ? bytes : CHUNK_TEXT_MAX;
        shared = search_overlap(s->around, used, text, bytes);
        if (bytes && chunk == best->chunk) {
            line = memmem(text, bytes, best->text + best->focus_from, focus);
            *place = used - shared + (line ? (size_t)(line - text) + focus / 2 : bytes / 2);
        }
        if (bytes)
            memcpy(s->around + used, text + shared, bytes - shared);
    }
    sqlite3_reset(get);
    return bytes ? used + bytes - shared : 0;
}

static bool splits_character(const uint8_t *text, size_t bytes, size_t at)
{
    return at < bytes && (text[at] & 0xc0) == 0x80;
}

/* So many tokens of a text around one of its bytes, whole characters: [*from, *to). */
static void cut_around(struct search *s, const uint8_t *text, size_t bytes, size_t place,
                       uint32_t tokens, size_t *from, size_t *to)
{
    uint32_t count = search_form_tokens(s, text, bytes), at = 0, first;
    size_t end = 0;

    for (; at < count && end <= place; at++)
        end += search_count_bytes(s, at, at + 1);
    first = at > tokens / 2 ? at - tokens / 2 : 0;
    if (count - first < tokens)
        first = count > tokens ? count - tokens : 0;
    *from = search_count_bytes(s, 0, first);
    *to = *from + search_count_bytes(s, first, first + tokens < count ? first + tokens : count);
    *to = *to < bytes ? *to : bytes;
    while (*from < *to && (splits_character(text, bytes, *from) || text[*from] <= ' '))
        ++*from;
    while (*to > *from && (splits_character(text, bytes, *to) || text[*to - 1] <= ' '))
        --*to;
}

void search_around(struct search *s, struct word_table *t, struct search_job *job)
{
    const struct search_text *best = &job->text[0];
    uint64_t chunk = best->chunk ? best->chunk - 1 : 0;
    size_t used = 0, place = 0, from = 0, to, more;

    job->around_bytes = 0;
    if (!job->around_tokens || !job->text_count || !best->bytes || best->about)
        return;
    for (; chunk <= best->chunk + 1 && chunk < job->chunk_end; chunk++) {
        more = add_chunk(s, t->statement[GET_TEXT], chunk, used, best, &place);
        if (!more && chunk == best->chunk)
            return;
        used = more ? more : used;
    }
    /* No more than can be tokens again. */
    if (place > CHUNK_TEXT_MAX / 2)
        from = place - CHUNK_TEXT_MAX / 2;
    to = used - from < CHUNK_TEXT_MAX ? used : from + CHUNK_TEXT_MAX;
    while (from < to && splits_character(s->around, used, from))
        from++;
    memmove(s->around, s->around + from, to - from);
    cut_around(s, s->around, to - from, place - from, job->around_tokens, &from, &to);
    job->around_bytes = search_cut(s->around + from, (uint32_t)(to - from), SEARCH_AROUND_MAX);
    memcpy(job->around, s->around + from, job->around_bytes);
}
