/*
 * A question's chunks, by words and by meaning, and the parts of them that are about it.
 *
 * With both signals a chunk's words count by closeness (search_rank.c), which knows other words for
 * the question's; BM25 is what words alone are measured by. Of the keys' list, which has something
 * for every chunk, the best counts as 1 and the last as 0. A chunk's words count as a share of the
 * whole question, each word as rare as the stream has it: a chunk that has but a common one of them
 * is no proof against what the keys say, and a quarter of the question in one place weighs as much
 * as all they can say. Then both are added: measured against fusion by rank and other shares
 * (stream/retrofit/RUNS.md).
 */
#include "daemon/search_internal.h"

#include <errno.h>
#include <string.h>

#include "daemon/log.h"

enum {
    EXCERPT_TOKENS = 96,
    OVERLAP_BYTES_MAX = SEARCH_OVERLAP * 24,
    EXCERPT_STEP = 4,
    PLACE_TOKENS = 32,
    FOCUS_TOKENS = 16, /* of the line that is put before a question */
    CLOSE_SHARE = 4,
    ABOUT_WORDS = 2, /* of the question in one place, where it has what is asked for */
};

/* By BM25. */
static int find_words(const struct search *s, struct word_table *t, const struct search_job *job,
                      struct search_hit *hits)
{
    sqlite3_stmt *f = t->statement[FIND];
    int code = SQLITE_DONE, count = 0;

    sqlite3_bind_text(f, 1, s->expression, -1, SQLITE_STATIC);
    sqlite3_bind_int64(f, 2, (int64_t)job->chunk_end);
    sqlite3_bind_int(f, 3, SEARCH_WORD_HITS_MAX);
    while (count < SEARCH_WORD_HITS_MAX && (code = sqlite3_step(f)) == SQLITE_ROW)
        hits[count++] =
            (struct search_hit){(uint64_t)sqlite3_column_int64(f, 0), -sqlite3_column_double(f, 1)};
    sqlite3_reset(f);
    sqlite3_clear_bindings(f);
    return code == SQLITE_ROW || code == SQLITE_DONE ? count : -EIO;
}

/* Best first, by insertion, which keeps the order of equals. */
static void sort_hits(struct search_hit *hits, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i; j && hits[j].score > hits[j - 1].score; j--) {
            struct search_hit swap = hits[j];

            hits[j] = hits[j - 1];
            hits[j - 1] = swap;
        }
}

int search_fuse(struct search_hit *out, uint32_t out_max, const struct search_words *words,
                const struct search_hit *near, uint32_t near_count)
{
    struct search_hit all[SEARCH_WORD_HITS_MAX + SEARCH_HITS_MAX];
    uint32_t count = 0;
    double least = near_count > 1 ? near[near_count - 1].score : 0;
    double most = words->most > 0 ? words->most / CLOSE_SHARE : 1;

    for (uint32_t i = 0; i < words->count; i++)
        all[count++] = (struct search_hit){words->hits[i].chunk, words->hits[i].score / most};
    for (uint32_t i = 0; i < near_count; i++) {
        double span = near[0].score - least;
        uint32_t at = 0;

        while (at < count && all[at].chunk != near[i].chunk)
            at++;
        if (at == count)
            all[count++] = (struct search_hit){near[i].chunk, 0};
        all[at].score += span > 0 ? (near[i].score - least) / span : 1;
    }
    sort_hits(all, count); /* of equals words first */
    count = count < out_max ? count : out_max;
    memcpy(out, all, count * sizeof *out);
    return (int)count;
}

static void copy_text(struct search_text *out, sqlite3_stmt *from, int column)
{
    const uint8_t *text = sqlite3_column_text(from, column);

    out->bytes =
        search_cut(text, (uint32_t)sqlite3_column_bytes(from, column), SEARCH_TEXT_MAX - 1);
    if (out->bytes)
        memcpy(out->text, text, out->bytes);
    out->text[out->bytes] = '\0';
}

/* Around the question's words, where the chunk has any; s->expression is of that question. */
static int excerpt_words(struct search *s, struct word_table *t, struct search_text *out)
{
    sqlite3_stmt *get = t->statement[GET_EXCERPT];
    int code;

    if (!s->expression[0])
        return 0;
    sqlite3_bind_int(get, 1, SEARCH_EXCERPT_WORDS);
    sqlite3_bind_text(get, 2, s->expression, -1, SQLITE_STATIC);
    sqlite3_bind_int64(get, 3, (int64_t)out->chunk);
    code = sqlite3_step(get);
    if (code == SQLITE_ROW)
        copy_text(out, get, 0);
    sqlite3_reset(get);
    sqlite3_clear_bindings(get);
    return code == SQLITE_ROW || code == SQLITE_DONE ? 0 : -EIO;
}

/* First of the `size` tokens that are nearest to the question, and how near they are; the middle
 * one of equals, so that what it asks for has text on both sides. */
static uint32_t nearest_window(const uint8_t *table, const int32_t *tokens, uint32_t count,
                               uint32_t size, uint32_t *score_out)
{
    uint32_t first = 0, last = 0, best = 0, end = count > size ? count - size : 0;
    uint16_t window[EXCERPT_TOKENS];

    size = count < size ? count : size;
    for (uint32_t at = 0; at <= end; at += EXCERPT_STEP) {
        uint32_t score;

        for (uint32_t i = 0; i < size; i++)
            window[i] = (uint16_t)tokens[at + i];
        score = recall_score(table, window, size);
        if (score > best)
            first = at;
        if (score >= best)
            last = at;
        best = score > best ? score : best;
    }
    *score_out = best;
    return (first + last) / 2;
}

uint32_t search_form_tokens(struct search *s, const uint8_t *text, size_t bytes_count)
{
    struct token_text held = {0};
    size_t count = token_feed(s->options.tokenizer, &held, text, bytes_count, s->tokens);

    return (uint32_t)(count + token_flush(s->options.tokenizer, &held, s->tokens + count));
}

/* Bytes of a chunk's text. */
struct span {
    bool found, about;
    uint32_t from, to;
};

size_t search_overlap(const uint8_t *have, size_t have_bytes, const uint8_t *text, size_t bytes)
{
    size_t most = have_bytes < bytes ? have_bytes : bytes;

    most = most < OVERLAP_BYTES_MAX ? most : OVERLAP_BYTES_MAX;
    while (most && memcmp(have + have_bytes - most, text, most) != 0)
        most--;
    return most;
}

size_t search_count_bytes(const struct search *s, uint32_t from, uint32_t to)
{
    size_t bytes = 0, one;

    for (uint32_t i = from; i < to; i++) {
        token_bytes(s->options.tokenizer, s->tokens[i], &one);
        bytes += one;
    }
    return bytes;
}

/* What is nearest to the question by meaning: the middle of its nearest tokens. */
static struct span nearest_place(const struct search *s, const uint8_t *table, uint32_t count)
{
    uint32_t score, first = nearest_window(table, s->tokens, count, EXCERPT_TOKENS, &score);
    uint32_t size = count - first < EXCERPT_TOKENS ? count - first : EXCERPT_TOKENS;

    first += nearest_window(table, s->tokens + first, size, FOCUS_TOKENS, &score);
    first = first + FOCUS_TOKENS / 2 < count ? first + FOCUS_TOKENS / 2 : count - 1;
    first = (uint32_t)search_count_bytes(s, 0, first);
    return (struct span){true, false, first, first};
}

/* First of the EXCERPT_TOKENS around a byte of their text. */
static uint32_t window_around(const struct search *s, uint32_t count, size_t byte)
{
    uint32_t at = 0, most = count > EXCERPT_TOKENS ? count - EXCERPT_TOKENS : 0;
    size_t end = 0;

    for (; at < count && end <= byte; at++)
        end += search_count_bytes(s, at, at + 1);
    at = at > EXCERPT_TOKENS / 2 ? at - EXCERPT_TOKENS / 2 : 0;
    return at < most ? at : most;
}

/* What of the excerpt, which begins with byte `at` of the chunk's text, the place is in. */
static void focus_on(struct search_text *out, uint32_t at, const struct span *place)
{
    out->focus_from = place->from > at ? place->from - at : 0;
    out->focus_to = place->to > at ? place->to - at : 0;
    out->focus_to = out->focus_to < out->bytes ? out->focus_to : out->bytes;
    if (out->focus_from > out->focus_to)
        out->focus_from = out->focus_to;
    search_focus((const uint8_t *)out->text, out->bytes, &out->focus_from, &out->focus_to);
}

/* Where a chunk's text has the words of the question of s->rank. */
static int find_place(struct search *s, struct word_table *t, const uint8_t *text,
                      size_t bytes_count, struct span *out)
{
    struct rank_place place = {0};
    int result =
        s->options.by == SEARCH_BY_BOTH ? search_rank_place(s, t, text, bytes_count, &place) : 0;

    *out = (struct span){place.words > 0, place.words >= ABOUT_WORDS, place.from, place.to};
    return result;
}

/* The part of a chunk's text around the question's words, or else around what is nearest to it. */
static void excerpt_near(struct search *s, const uint8_t *table, struct span place,
                         const uint8_t *text, size_t bytes_count, struct search_text *out)
{
    uint32_t first, last, count = search_form_tokens(s, text, bytes_count);
    size_t from, bytes;

    if (!count)
        return;
    if (!place.found)
        place = nearest_place(s, table, count);
    first = window_around(s, count, place.from + (place.to - place.from) / 2);
    last = first + EXCERPT_TOKENS < count ? first + EXCERPT_TOKENS : count;
    from = search_count_bytes(s, 0, first);
    bytes = search_count_bytes(s, first, last);
    while (from < bytes_count && bytes && (text[from] & 0xc0) == 0x80)
        from++, bytes--; /* the rest of a character that began before */
    if (from > bytes_count || bytes > bytes_count - from)
        return; /* a byte that no token stands for: the chunk's beginning does */
    out->bytes = search_cut(text + from, (uint32_t)bytes, SEARCH_TEXT_MAX - 1);
    if (from + out->bytes < bytes_count)
        out->bytes = search_cut(text + from, out->bytes + 1, out->bytes);
    memcpy(out->text, text + from, out->bytes);
    out->text[out->bytes] = '\0';
    focus_on(out, (uint32_t)from, &place);
    out->about = place.about;
}

/* As what is not indexed comes back: the place was an earlier question's, of any stream. */
static void empty_text(const struct search *s, struct search_text *out)
{
    uint64_t from = out->chunk * s->options.chunk_tokens;

    *out = (struct search_text){
        .chunk = out->chunk, .token_from = from, .token_to = from + s->options.chunk_tokens};
}

static int get_text(struct search *s, struct word_table *t, const uint8_t *table,
                    struct search_text *out)
{
    sqlite3_stmt *get = t->statement[GET_TEXT];
    struct span place;
    int code, result = 0;

    sqlite3_bind_int64(get, 1, (int64_t)out->chunk);
    code = sqlite3_step(get);
    if (code == SQLITE_ROW) {
        out->token_from = (uint64_t)sqlite3_column_int64(get, 0);
        out->token_to = (uint64_t)sqlite3_column_int64(get, 1);
        out->time_us = (uint64_t)sqlite3_column_int64(get, 2);
        out->time_to_us = (uint64_t)sqlite3_column_int64(get, 4);
        copy_text(out, get, 3);
        if (table && out->bytes) {
            const uint8_t *text = sqlite3_column_text(get, 3);
            size_t bytes = (size_t)sqlite3_column_bytes(get, 3);

            bytes = bytes < CHUNK_TEXT_MAX ? bytes : CHUNK_TEXT_MAX;
            result = find_place(s, t, text, bytes, &place);
            if (!result)
                excerpt_near(s, table, place, text, bytes, out);
        }
    }
    sqlite3_reset(get);
    if (code != SQLITE_ROW && code != SQLITE_DONE)
        result = -EIO;
    if (!result && out->bytes && !table)
        result = excerpt_words(s, t, out);
    if (out->focus_from == out->focus_to)
        out->focus_to = out->bytes;
    return result;
}

/* A chunk counts again with its nearest PLACE_TOKENS: what is asked for stands in one place. */
static void add_places(struct search *s, struct word_table *t, const uint8_t *table,
                       struct search_hit *hits, uint32_t count)
{
    sqlite3_stmt *get = t->statement[GET_TEXT];

    for (uint32_t i = 0; i < count; i++) {
        uint32_t score = 0;

        sqlite3_bind_int64(get, 1, (int64_t)hits[i].chunk);
        if (sqlite3_step(get) == SQLITE_ROW) {
            const uint8_t *text = sqlite3_column_text(get, 3);
            size_t bytes = (size_t)sqlite3_column_bytes(get, 3);

            bytes = bytes < CHUNK_TEXT_MAX ? bytes : CHUNK_TEXT_MAX;
            if (text)
                nearest_window(table, s->tokens, search_form_tokens(s, text, bytes), PLACE_TOKENS,
                               &score);
        }
        sqlite3_reset(get);
        hits[i].score += score;
    }
    sort_hits(hits, count);
}

static int find_near(struct search *s, struct word_table *t, const struct search_job *job,
                     struct search_hit *hits)
{
    struct recall_hit near[SEARCH_HITS_MAX];
    uint64_t first;
    int count;

    if (!job->table || !t->recall)
        return 0;
    /* What was trimmed away has keys still, and neither text nor a segment. */
    count = reader_first(s->reader, t->stream_id, &first);
    if (!count)
        count = recall_file_find(s->keys, t->key_file, job->table, first / s->options.chunk_tokens,
                                 job->chunk_end, near, SEARCH_HITS_MAX);
    if (count == -EBADMSG)
        search_drop_keys(s, t);
    else if (count < 0)
        say(SAY_WARN, "the recall keys of stream %llu cannot be read: %s",
            (unsigned long long)t->stream_id, strerror(-count));
    for (int i = 0; i < count; i++)
        hits[i] = (struct search_hit){near[i].chunk, near[i].score};
    if (count > 0)
        add_places(s, t, job->table, hits, (uint32_t)count);
    return count < 0 ? 0 : count; /* an answer from words alone is still an answer */
}

static int find(struct search *s, struct word_table *t, struct search_job *job)
{
    struct search_hit near[SEARCH_HITS_MAX];
    struct search_words words = {.most = 0};
    int word_count = 0, near_count = 0;
    size_t bytes =
        search_expression(job->question, job->question_bytes, s->expression, EXPRESSION_BYTES);

    job->hit_count = 0;
    if (!bytes)
        return 0; /* marks alone ask for nothing */
    s->expression[bytes] = '\0';
    if (s->options.by != SEARCH_BY_WORDS)
        near_count = find_near(s, t, job, near);
    if (s->options.by == SEARCH_BY_WORDS) /* last: what fails is the database's last error */
        word_count = find_words(s, t, job, words.hits);
    if (s->options.by == SEARCH_BY_BOTH) {
        word_count = search_rank_find(s, t, job, words.hits);
        words.most = (double)search_rank_most(&s->rank);
    }
    words.count = word_count < 0 ? 0 : (uint32_t)word_count;
    job->hit_count =
        (uint32_t)search_fuse(job->hits, SEARCH_HITS_MAX, &words, near, (uint32_t)near_count);
    return word_count < 0 ? word_count : 0;
}

static int texts(struct search *s, struct word_table *t, struct search_job *job)
{
    size_t bytes =
        search_expression(job->question, job->question_bytes, s->expression, EXPRESSION_BYTES);
    const uint8_t *table = s->options.by == SEARCH_BY_WORDS ? NULL : job->table;
    int result = 0;

    s->expression[bytes] = '\0';
    if (table && s->options.by == SEARCH_BY_BOTH)
        result = search_rank_question(s, t, job);
    for (uint32_t i = 0; i < job->text_count && !result; i++)
        result = get_text(s, t, table, &job->text[i]);
    if (result)
        return result;
    search_job_entries(s, t, job);
    search_around(s, t, job);
    return 0;
}

/* True: its database is damaged. */
static bool try_job(struct search *s, struct search_job *job, bool again)
{
    struct word_table *t = search_table(s, job->stream_id, false); /* made again where it has to */

    if (t && (job->kind == SEARCH_FIND || again)) {
        search_catch_up(s, job);
        t = search_table(s, job->stream_id, false);
    }
    job->result = t ? 0 : -EIO;
    job->hit_count = job->kind == SEARCH_FIND ? 0 : job->hit_count;
    for (uint32_t i = 0; i < job->text_count && job->kind == SEARCH_TEXTS; i++)
        empty_text(s, &job->text[i]);
    if (t && job->kind == SEARCH_FIND)
        job->result = find(s, t, job);
    if (t && job->kind == SEARCH_TEXTS)
        job->result = texts(s, t, job);
    if (t && job->result)
        say(SAY_WARN, "the text index of stream %llu cannot be read: %s",
            (unsigned long long)job->stream_id, sqlite3_errmsg(t->db));
    return t && job->result && word_table_damaged(t);
}

/* A database that is damaged is made again, once for a job. */
void search_run_job(struct search *s, struct search_job *job)
{
    if (try_job(s, job, false)) {
        say(SAY_WARN, "the text index of stream %llu is damaged: it is made again",
            (unsigned long long)job->stream_id);
        search_drop_index(s, job->stream_id);
        (void)try_job(s, job, true);
    }
    atomic_store(&job->done, true);
    if (s->options.done_bell)
        doorbell_ring(s->options.done_bell);
}
