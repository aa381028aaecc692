/*
 * A question's chunks, by words and by meaning, and the parts of them that are about it.
 *
 * Both lists are put together by rank (reciprocal rank fusion, Cormack, Clarke and Buettcher 2009):
 * BM25 and keys have no common scale.
 */
#include "daemon/search_internal.h"

#include <errno.h>
#include <string.h>

#include "daemon/log.h"

/* Ranks count as if there were so many better ones: the first of a list is no proof. */
enum { FUSE_RANK = 10 };

static int find_words(struct search *s, struct word_table *t, const struct search_job *job,
                      struct search_hit *hits)
{
    sqlite3_stmt *f = t->statement[FIND];
    int code = SQLITE_DONE, count = 0;

    sqlite3_bind_text(f, 1, s->expression, -1, SQLITE_STATIC);
    sqlite3_bind_int64(f, 2, (int64_t)job->chunk_end);
    sqlite3_bind_int(f, 3, SEARCH_HITS_MAX);
    while (count < SEARCH_HITS_MAX && (code = sqlite3_step(f)) == SQLITE_ROW)
        hits[count++] =
            (struct search_hit){(uint64_t)sqlite3_column_int64(f, 0), -sqlite3_column_double(f, 1)};
    sqlite3_reset(f);
    sqlite3_clear_bindings(f);
    return code == SQLITE_ROW || code == SQLITE_DONE ? count : -EIO;
}

static int find_near(struct search *s, struct word_table *t, const struct search_job *job,
                     struct search_hit *hits)
{
    struct recall_hit near[SEARCH_HITS_MAX];
    int count;

    if (!job->table || !t->recall)
        return 0;
    count =
        recall_file_find(s->keys, t->key_file, job->table, job->chunk_end, near, SEARCH_HITS_MAX);
    if (count == -EBADMSG)
        search_drop_keys(s, t);
    for (int i = 0; i < count; i++)
        hits[i] = (struct search_hit){near[i].chunk, near[i].score};
    return count < 0 ? 0 : count; /* an answer from words alone is still an answer */
}

int search_fuse(struct search_hit *out, uint32_t out_max, const struct search_hit *words,
                uint32_t word_count, const struct search_hit *near, uint32_t near_count)
{
    struct search_hit all[2 * SEARCH_HITS_MAX];
    uint32_t count = 0;

    for (uint32_t i = 0; i < word_count; i++)
        all[count++] = (struct search_hit){words[i].chunk, 1.0 / (FUSE_RANK + i)};
    for (uint32_t i = 0; i < near_count; i++) {
        uint32_t at = 0;

        while (at < count && all[at].chunk != near[i].chunk)
            at++;
        if (at == count)
            all[count++] = (struct search_hit){near[i].chunk, 0};
        all[at].score += 1.0 / (FUSE_RANK + i);
    }
    /* By insertion, which keeps the order of equals: words first. */
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i; j && all[j].score > all[j - 1].score; j--) {
            struct search_hit swap = all[j];

            all[j] = all[j - 1];
            all[j - 1] = swap;
        }
    count = count < out_max ? count : out_max;
    memcpy(out, all, count * sizeof *out);
    return (int)count;
}

static int find(struct search *s, struct word_table *t, struct search_job *job)
{
    struct search_hit words[SEARCH_HITS_MAX], near[SEARCH_HITS_MAX];
    size_t bytes =
        search_expression(job->question, job->question_bytes, s->expression, EXPRESSION_BYTES);
    int word_count = 0, near_count = 0;

    job->hit_count = 0;
    if (!bytes)
        return 0; /* marks alone ask for nothing */
    s->expression[bytes] = '\0';
    if (s->options.by != SEARCH_BY_KEYS)
        word_count = find_words(s, t, job, words);
    if (s->options.by != SEARCH_BY_WORDS)
        near_count = find_near(s, t, job, near);
    job->hit_count = (uint32_t)search_fuse(job->hits, SEARCH_HITS_MAX, words,
                                           word_count < 0 ? 0 : (uint32_t)word_count, near,
                                           (uint32_t)near_count);
    return word_count < 0 ? word_count : 0;
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
static int get_excerpt(struct search *s, struct word_table *t, struct search_text *out)
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

static int get_text(struct search *s, struct word_table *t, struct search_text *out)
{
    sqlite3_stmt *get = t->statement[GET_TEXT];
    int code;

    out->bytes = 0;
    out->text[0] = '\0';
    out->token_from = out->chunk * s->options.chunk_tokens;
    out->token_to = out->token_from + s->options.chunk_tokens;
    out->time_us = out->time_to_us = 0;
    sqlite3_bind_int64(get, 1, (int64_t)out->chunk);
    code = sqlite3_step(get);
    if (code == SQLITE_ROW) {
        out->token_from = (uint64_t)sqlite3_column_int64(get, 0);
        out->token_to = (uint64_t)sqlite3_column_int64(get, 1);
        out->time_us = (uint64_t)sqlite3_column_int64(get, 2);
        out->time_to_us = (uint64_t)sqlite3_column_int64(get, 4);
        copy_text(out, get, 3);
    }
    sqlite3_reset(get);
    if (code != SQLITE_ROW && code != SQLITE_DONE)
        return -EIO;
    return out->bytes ? get_excerpt(s, t, out) : 0;
}

static int texts(struct search *s, struct word_table *t, struct search_job *job)
{
    size_t bytes =
        search_expression(job->question, job->question_bytes, s->expression, EXPRESSION_BYTES);
    int result = 0;

    s->expression[bytes] = '\0';
    for (uint32_t i = 0; i < job->text_count && !result; i++)
        result = get_text(s, t, &job->text[i]);
    return result;
}

static void try_job(struct search *s, struct search_job *job, bool again)
{
    struct word_table *t;

    if (job->kind == SEARCH_FIND || again)
        search_catch_up(s, job);
    t = search_table(s, job->stream_id);
    job->result = t ? 0 : -EIO;
    job->hit_count = job->kind == SEARCH_FIND ? 0 : job->hit_count;
    if (t && job->kind == SEARCH_FIND)
        job->result = find(s, t, job);
    if (t && job->kind == SEARCH_TEXTS)
        job->result = texts(s, t, job);
}

/* A database that cannot be read is made again, once for a job. */
void search_run_job(struct search *s, struct search_job *job)
{
    try_job(s, job, false);
    if (job->result) {
        say(SAY_WARN, "the text index of stream %llu is damaged: it is made again",
            (unsigned long long)job->stream_id);
        search_drop_index(s, job->stream_id);
        try_job(s, job, true);
    }
    atomic_store(&job->done, true);
    if (s->options.done_bell)
        doorbell_ring(s->options.done_bell);
}
