/*
 * How much of a question a chunk has in one place, by its words and by words near them in meaning.
 *
 * A question's word and what may stand for it (engine_near_words) are one term, of which a place
 * counts the rarest once; a third of that is how rare all of them together are (Pirkola's
 * structured queries, SIGIR 1998), so that a word with many kin says less. Of a chunk the densest
 * RANK_WINDOW words count: "the red car" is asked for where "crimson" stands beside "automobile",
 * not where a chunk has one of them here and the other there. FTS5 calls it for every chunk that
 * has any of the words.
 */
#include "daemon/search_internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

enum { RANK_WINDOW = 8, NEAR_MAX = 64 };
#define WEIGHT_MIN  0.1   /* of what is in every other chunk */
#define PLACE_SHARE 0.25f /* of the question, for a place to be the one it asks for */

/* ---- the question ---- */

/* Chunks with a word. False: that cannot be told, nor will the search be. */
static bool count_chunks(struct word_table *t, const char *text, uint64_t *chunks)
{
    sqlite3_stmt *count = t->statement[COUNT_WORD];
    char phrase[SEARCH_WORD_BYTES_MAX + 8];
    bool known;

    snprintf(phrase, sizeof phrase, "\"%s\"", text);
    sqlite3_bind_text(count, 1, phrase, -1, SQLITE_STATIC);
    known = sqlite3_step(count) == SQLITE_ROW;
    *chunks = known ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    sqlite3_reset(count);
    return known;
}

/* Only what some chunk has: most that may stand for a word none has, and each costs every chunk. */
static void add_phrase(struct search_rank *r, struct word_table *t, const char *text,
                       uint32_t group)
{
    size_t need = strlen(text) + 6;
    uint64_t held;

    if (r->phrase_count == RANK_PHRASES_MAX || r->used + need >= sizeof r->expression)
        return;
    if (count_chunks(t, text, &held) && !held) {
        r->absent[group] = true;
        return;
    }
    r->held[r->phrase_count] = held;
    r->used += (size_t)snprintf(r->expression + r->used, sizeof r->expression - r->used, "%s\"%s\"",
                                r->used ? " OR " : "", text);
    r->group[r->phrase_count++] = group;
}

bool search_rank_is_of(const struct search_rank *r, const struct search_job *job)
{
    return r->stream_id == job->stream_id &&
           r->question_hash == XXH3_64bits(job->question, job->question_bytes);
}

void search_rank_question(struct search *s, struct word_table *t, const struct search_job *job)
{
    struct search_rank *r = &s->rank;
    char words[SEARCH_WORDS_MAX][SEARCH_WORD_BYTES_MAX + 1];
    struct near_word near[NEAR_MAX];
    uint32_t count = search_question_words(job->question, job->question_bytes, words), each;

    r->stream_id = job->stream_id;
    r->question_hash = XXH3_64bits(job->question, job->question_bytes);
    r->group_count = count;
    r->phrase_count = 0;
    r->used = 0;
    r->weighed = false;
    memset(r->absent, 0, sizeof r->absent);
    r->expression[0] = '\0';
    if (!count)
        return;
    each = (RANK_PHRASES_MAX - count) / count;
    for (uint32_t g = 0; g < count; g++) {
        uint32_t n = 0;

        add_phrase(r, t, words[g], g);
        if (s->options.engine)
            n = engine_near_words(s->options.engine, words[g], near,
                                  each < NEAR_MAX ? each : NEAR_MAX);
        for (uint32_t i = 0; i < n; i++)
            add_phrase(r, t, near[i].text, g);
    }
}

/* ---- a chunk ---- */

static float rarity(double rows, double with)
{
    with = fmin(with, rows);
    return (float)fmax(WEIGHT_MIN, log((rows - with + 0.5) / (with + 0.5)));
}

/* How rare each phrase is, and, for a third, all that stand for one word of the question together.
 * Once a question. */
static int weigh(const Fts5ExtensionApi *api, Fts5Context *fts, struct search_rank *r)
{
    uint64_t together[SEARCH_WORDS_MAX] = {0};
    sqlite3_int64 rows = 0;
    int code = api->xRowCount(fts, &rows);
    float all[SEARCH_WORDS_MAX];

    if ((uint32_t)api->xPhraseCount(fts) != r->phrase_count)
        return SQLITE_ERROR;
    for (uint32_t i = 0; i < r->phrase_count; i++)
        together[r->group[i]] += r->held[i];
    for (uint32_t g = 0; g < r->group_count; g++) {
        all[g] = rarity((double)rows, (double)together[g]);
        r->most[g] = r->absent[g] ? (2 * rarity((double)rows, 0) + all[g]) / 3 : 0;
    }
    for (uint32_t i = 0; i < r->phrase_count; i++) {
        uint32_t g = r->group[i];

        r->weight[i] = (2 * rarity((double)rows, (double)r->held[i]) + all[g]) / 3;
        r->most[g] = fmaxf(r->most[g], r->weight[i]);
    }
    r->weighed = !code;
    return code;
}

/* Of a chunk's words: the densest window. */
struct window {
    float score;
    int words;    /* of the question's, that are there */
    int from, to; /* words of the chunk, both in it */
};

/* Of the words from `first` on that lie within RANK_WINDOW. */
static int score_window(const Fts5ExtensionApi *api, Fts5Context *fts, const struct search_rank *r,
                        int first, int count, struct window *out)
{
    float best[SEARCH_WORDS_MAX] = {0};
    int phrase, column, offset, code = SQLITE_OK;

    *out = (struct window){0};
    for (int i = first; i < count; i++) {
        code = api->xInst(fts, i, &phrase, &column, &offset);
        if (i == first)
            out->from = offset;
        if (code || offset >= out->from + RANK_WINDOW)
            break;
        uint32_t g = r->group[phrase];
        if (r->weight[phrase] > best[g]) {
            best[g] = r->weight[phrase];
            out->to = offset;
        }
    }
    for (uint32_t g = 0; g < r->group_count; g++) {
        out->score += best[g];
        out->words += best[g] > 0;
    }
    return code;
}

static int find_window(const Fts5ExtensionApi *api, Fts5Context *fts, struct search_rank *r,
                       struct window *out)
{
    int count = 0, code = r->weighed ? SQLITE_OK : weigh(api, fts, r);
    struct window window;

    *out = (struct window){0};
    if (!code)
        code = api->xInstCount(fts, &count);
    for (int i = 0; i < count && !code; i++) {
        code = score_window(api, fts, r, i, count, &window);
        if (!code && window.score > out->score)
            *out = window;
    }
    return code;
}

/* closeness(words) */
static void rank_chunk(const Fts5ExtensionApi *api, Fts5Context *fts, sqlite3_context *out,
                       int value_count, sqlite3_value **values)
{
    struct window window;
    int code = find_window(api, fts, api->xUserData(fts), &window);

    (void)value_count;
    (void)values;
    if (code)
        sqlite3_result_error_code(out, code);
    else
        sqlite3_result_double(out, (double)window.score);
}

/* ---- where in the chunk ---- */

struct bytes_of {
    struct window window;
    int word, from, to; /* the window's bytes */
};

static int see_word(void *user, int flags, const char *text, int bytes, int from, int to)
{
    struct bytes_of *b = user;

    (void)text;
    (void)bytes;
    if (flags & FTS5_TOKEN_COLOCATED)
        return SQLITE_OK;
    if (b->word == b->window.from)
        b->from = from;
    if (b->word == b->window.to)
        b->to = to;
    return b->word++ < b->window.to ? SQLITE_OK : SQLITE_DONE;
}

float search_rank_most(const struct search_rank *r)
{
    float sum = 0;

    for (uint32_t g = 0; g < r->group_count && r->weighed; g++)
        sum += r->most[g];
    return sum;
}

/* place(words): the densest window's words of the question << 48 | its first byte << 24 | the one
 * behind its last, or -1 where it has little of the question. */
static void place_chunk(const Fts5ExtensionApi *api, Fts5Context *fts, sqlite3_context *out,
                        int value_count, sqlite3_value **values)
{
    struct search_rank *r = api->xUserData(fts);
    struct bytes_of place = {0};
    const char *text;
    int bytes, code = find_window(api, fts, r, &place.window);

    (void)value_count;
    (void)values;
    if (!code && place.window.score < search_rank_most(r) * PLACE_SHARE) {
        sqlite3_result_int64(out, -1);
        return;
    }
    if (!code)
        code = api->xColumnText(fts, 0, &text, &bytes);
    if (!code)
        code = api->xTokenize(fts, text, bytes, &place, see_word);
    if (code && code != SQLITE_DONE)
        sqlite3_result_error_code(out, code);
    else
        sqlite3_result_int64(out, (sqlite3_int64)place.window.words << 48 |
                                      (sqlite3_int64)place.from << 24 | place.to);
}

int search_rank_register(sqlite3 *db, struct search_rank *rank)
{
    fts5_api *api = NULL;
    sqlite3_stmt *get;

    if (sqlite3_prepare_v2(db, "SELECT fts5(?1)", -1, &get, NULL))
        return -EIO;
    sqlite3_bind_pointer(get, 1, &api, "fts5_api_ptr", NULL);
    sqlite3_step(get);
    sqlite3_finalize(get);
    if (!api || api->xCreateFunction(api, "closeness", rank, rank_chunk, NULL) ||
        api->xCreateFunction(api, "place", rank, place_chunk, NULL))
        return -EIO;
    return 0;
}
