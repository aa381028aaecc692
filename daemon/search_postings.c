/*
 * Where a question's terms stand, out of the text index: each term is read once, in order of the
 * chunks, and then all of some chunks at a time are taken together.
 *
 * FTS5 itself would walk the chunks that have any of the terms, at each asking every term's list
 * where it stands: with the hundreds that may stand for a question's words that was ten times as
 * much work. What does not fit the room that there is, later chunks, is left to another pass.
 */
#include "daemon/search_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Room for more: chunks from the middle on are left to another pass. */
static void narrow(struct postings *p)
{
    uint64_t width = 0;

    for (uint32_t i = 0; i < p->count; i++)
        width = p->place[i] >> 32 > width ? p->place[i] >> 32 : width;
    for (width++; p->count > p->room / 2 && width > 1;) {
        uint32_t kept = 0;

        width = (width + 1) / 2;
        for (uint32_t term = 0, i = 0; term <= p->term; term++) {
            uint32_t end = term < p->term ? p->begin[term + 1] : p->count;

            for (p->begin[term] = kept; i < end; i++)
                if (p->place[i] >> 32 < width)
                    p->place[kept++] = p->place[i];
        }
        p->count = kept;
    }
    p->to = p->from + width;
}

static void add_place(struct postings *p, uint64_t chunk, int word)
{
    if (p->count == p->room)
        narrow(p);
    if (p->count < p->room && chunk < p->to && word <= UINT16_MAX)
        p->place[p->count++] = (chunk - p->from) << 32 | (uint64_t)word << 16 | p->term;
}

/* gather(words) */
static void gather_row(const Fts5ExtensionApi *api, Fts5Context *fts, sqlite3_context *out,
                       int value_count, sqlite3_value **values)
{
    struct postings *p = api->xUserData(fts);
    uint64_t chunk = (uint64_t)api->xRowid(fts);
    sqlite3_int64 rows = (sqlite3_int64)p->rows;
    Fts5PhraseIter at;
    int column, word, code = rows ? SQLITE_OK : api->xRowCount(fts, &rows);

    (void)value_count;
    (void)values;
    p->rows = (uint64_t)rows;
    p->held++;
    if (!code && chunk >= p->from && chunk < p->to)
        for (code = api->xPhraseFirst(fts, 0, &at, &column, &word); !code && column >= 0;
             api->xPhraseNext(fts, &at, &column, &word))
            add_place(p, chunk, word);
    if (code)
        sqlite3_result_error_code(out, code);
    else
        sqlite3_result_int(out, 0);
}

int search_postings_register(fts5_api *api, struct postings *p)
{
    return api->xCreateFunction(api, "gather", p, gather_row, NULL) ? -EIO : 0;
}

static int read_term(struct word_table *t, const char *text, uint64_t chunk_end)
{
    sqlite3_stmt *read = t->statement[READ_TERM];
    char phrase[SEARCH_WORD_BYTES_MAX + 8];
    int code;

    snprintf(phrase, sizeof phrase, "\"%s\"", text);
    sqlite3_bind_text(read, 1, phrase, -1, SQLITE_STATIC);
    sqlite3_bind_int64(read, 2, (int64_t)chunk_end);
    code = sqlite3_step(read); /* no row is true: one step reads them all */
    sqlite3_reset(read);
    sqlite3_clear_bindings(read);
    return code == SQLITE_DONE ? 0 : -EIO;
}

int search_gather(struct search *s, struct word_table *t, uint64_t from, uint64_t to)
{
    struct postings *p = &s->postings;
    struct search_rank *r = &s->rank;
    int result = 0;

    p->from = from;
    p->to = to;
    p->rows = 0;
    p->count = 0;
    p->width = BLOCK_CHUNKS;
    for (p->term = 0; p->term < r->term_count && !result; p->term++) {
        struct rank_term *term = &r->term[p->term];

        p->begin[p->term] = p->count;
        if (!term->token_count || (r->weighed && !term->held))
            continue;
        p->held = 0;
        result = read_term(t, term->text, r->chunk_end);
        term->held = p->held;
    }
    for (uint32_t i = 0; i < p->term; i++)
        p->end[i] = i + 1 < p->term ? p->begin[i + 1] : p->count;
    return result;
}

/* ---- chunk by chunk ---- */

/* The first chunk of [from, …) with a place that was not taken. False: there is none. */
static bool first_chunk(const struct postings *p, uint64_t *chunk)
{
    *chunk = UINT64_MAX;
    for (uint32_t i = 0; i < p->term; i++)
        if (p->begin[i] < p->end[i] && p->place[p->begin[i]] >> 32 < *chunk)
            *chunk = p->place[p->begin[i]] >> 32;
    return *chunk != UINT64_MAX;
}

/* Copies the places of chunks below `end`, term by term. False: they are too many. */
static bool copy_places(struct postings *p, uint64_t end, uint32_t *count)
{
    *count = 0;
    for (uint32_t i = 0; i < p->term; i++)
        for (uint32_t at = p->begin[i]; at < p->end[i] && p->place[at] >> 32 < end; at++) {
            if (*count == BLOCK_PLACES)
                return false;
            p->taken[(*count)++] = p->place[at];
        }
    return true;
}

static void drop_places(struct postings *p, uint64_t end)
{
    for (uint32_t i = 0; i < p->term; i++)
        while (p->begin[i] < p->end[i] && p->place[p->begin[i]] >> 32 < end)
            p->begin[i]++;
}

/* By counting for the chunk, which leaves a few of each, and by insertion for the rest. */
static void sort_places(struct postings *p, uint64_t first, uint32_t count)
{
    uint32_t *to = p->of_chunk;

    memset(to, 0, sizeof p->of_chunk);
    for (uint32_t i = 0; i < count; i++)
        to[(p->taken[i] >> 32) - first + 1]++;
    for (uint32_t i = 1; i < BLOCK_CHUNKS; i++)
        to[i] += to[i - 1];
    for (uint32_t i = 0; i < count; i++)
        p->sorted[to[(p->taken[i] >> 32) - first]++] = p->taken[i];
    for (uint32_t i = 1; i < count; i++) {
        uint64_t place = p->sorted[i];
        uint32_t j = i;

        for (; j && p->sorted[j - 1] > place; j--)
            p->sorted[j] = p->sorted[j - 1];
        p->sorted[j] = place;
    }
}

const uint64_t *search_next_places(struct postings *p, uint32_t *count)
{
    uint64_t first;

    if (!first_chunk(p, &first))
        return NULL;
    /* A chunk alone with more is cut: no text has so many words. */
    while (!copy_places(p, first + p->width, count) && p->width > 1)
        p->width /= 2;
    drop_places(p, first + p->width);
    sort_places(p, first, *count);
    if (*count < BLOCK_PLACES / 4 && p->width < BLOCK_CHUNKS)
        p->width *= 2;
    return p->sorted;
}
