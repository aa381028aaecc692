/*
 * One database a stream; a batch of chunks is one transaction, so a crash leaves whole chunks.
 *
 * The lock is held over each round: who forgets a stream waits for at most one batch.
 */
#include "daemon/search.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/journal.h"
#include "daemon/log.h"
#include "daemon/search_table.h"

enum { EXPRESSION_BYTES = SEARCH_WORDS_MAX * 48, CHUNK_TEXT_MAX = SEARCH_CHUNK_MAX * 24 };

enum { ADD_CHUNK, ADD_WORDS, FIND, GET_TEXT, GET_EXCERPT, GET_END, STATEMENTS };
static const char *const statement_text[STATEMENTS] = {
    [ADD_CHUNK] = "REPLACE INTO chunks VALUES (?,?,?,?,?,?)",
    [ADD_WORDS] = "INSERT INTO words (rowid, text) VALUES (?,?)",
    [FIND] = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ? AND rowid < ? "
             "ORDER BY rank LIMIT ?",
    [GET_TEXT] = "SELECT token_from, token_to, time_from_us, text, time_to_us FROM chunks WHERE "
                 "chunk = ?",
    [GET_EXCERPT] = "SELECT snippet(words, 0, '', '', ' … ', ?) FROM words "
                    "WHERE words MATCH ? AND rowid = ?",
    [GET_END] = "SELECT max(chunk) FROM chunks",
};
/* Where indexing of a live stream stands. */
struct cursor {
    uint64_t stream_id; /* 0: free */
    struct reader_place place;
    uint64_t chunk; /* being gathered */
    uint32_t count; /* tokens of it */
    uint64_t time_from_us, time_to_us;
    bool failed; /* said once */
    uint32_t before_count;
    int32_t before[SEARCH_OVERLAP]; /* [before_count] the end of the chunk before */
    int32_t tokens[SEARCH_CHUNK_MAX];
};

struct search {
    struct search_options options;
    char folder[PATH_BYTES_MAX + 8];
    pthread_mutex_t lock; /* of all below */
    struct doorbell bell;
    struct reader *reader;
    struct word_table tables[SEARCH_OPEN_MAX];
    struct search_job *jobs[SEARCH_JOBS_MAX];
    uint32_t job_count, slot_next;
    uint64_t uses;
    char expression[EXPRESSION_BYTES];
    uint8_t text[CHUNK_TEXT_MAX];
    struct cursor cursors[]; /* [slot_count] */
};

/* ---- databases ---- */

static int set_up(struct search *s, struct word_table *t)
{
    return word_table_open(t, s->folder, SEARCH_FORMAT << 16 | (int)s->options.chunk_tokens,
                           statement_text, STATEMENTS);
}

/* A stream's database; one that cannot be used is made anew, once. NULL: there is none. */
static struct word_table *use_table(struct search *s, uint64_t stream_id)
{
    struct word_table *t = &s->tables[0];
    int result;

    for (int i = 0; i < SEARCH_OPEN_MAX; i++) {
        if (s->tables[i].stream_id == stream_id) {
            s->tables[i].touched = ++s->uses;
            return &s->tables[i];
        }
        if (s->tables[i].touched < t->touched)
            t = &s->tables[i];
    }
    word_table_close(t);
    t->stream_id = stream_id;
    t->touched = ++s->uses;
    result = set_up(s, t);
    if (result) {
        say(SAY_WARN, "the text index of stream %llu cannot be used (%s): it is made again",
            (unsigned long long)stream_id, t->db ? sqlite3_errmsg(t->db) : "no memory");
        word_table_close(t);
        word_table_unlink(s->folder, stream_id);
        t->stream_id = stream_id;
        t->touched = ++s->uses;
        result = set_up(s, t);
    }
    if (!result)
        return t;
    word_table_close(t);
    return NULL;
}

/* ---- indexing ---- */

static int run(sqlite3_stmt *s)
{
    int code = sqlite3_step(s);

    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return code == SQLITE_DONE ? 0 : -EIO;
}

static int add_chunk(struct search *s, struct word_table *t, const struct cursor *c)
{
    struct search_tokens parts[] = {{c->before, c->before_count}, {c->tokens, c->count}};
    size_t bytes = search_chunk_text(s->options.tokenizer, parts, 2, s->text, CHUNK_TEXT_MAX);
    sqlite3_stmt *add = t->statement[ADD_CHUNK], *words = t->statement[ADD_WORDS];
    int result;

    sqlite3_bind_int64(add, 1, (int64_t)c->chunk);
    sqlite3_bind_int64(add, 2, (int64_t)(c->chunk * s->options.chunk_tokens));
    sqlite3_bind_int64(add, 3, (int64_t)((c->chunk + 1) * s->options.chunk_tokens));
    sqlite3_bind_int64(add, 4, (int64_t)c->time_from_us);
    sqlite3_bind_int64(add, 5, (int64_t)c->time_to_us);
    sqlite3_bind_text(add, 6, (const char *)s->text, (int)bytes, SQLITE_STATIC);
    result = run(add);
    if (result)
        return result;
    sqlite3_bind_int64(words, 1, (int64_t)c->chunk);
    sqlite3_bind_text(words, 2, (const char *)s->text, (int)bytes, SQLITE_STATIC);
    return run(words);
}

/* Chunks that are in the index: it has no gaps. */
static int chunks_of(struct word_table *t, uint64_t *end)
{
    sqlite3_stmt *s = t->statement[GET_END];
    int code = sqlite3_step(s);

    *end = 0;
    if (code == SQLITE_ROW && sqlite3_column_type(s, 0) != SQLITE_NULL)
        *end = (uint64_t)sqlite3_column_int64(s, 0) + 1;
    sqlite3_reset(s);
    return code == SQLITE_ROW ? 0 : -EIO;
}

static int start_cursor(struct search *s, struct cursor *c, struct word_table *t,
                        uint64_t stream_id)
{
    uint64_t from;
    int result;

    memset(c, 0, offsetof(struct cursor, tokens));
    result = chunks_of(t, &c->chunk);
    if (result)
        return result;
    c->stream_id = stream_id;
    from = c->chunk * s->options.chunk_tokens;
    return reader_seek(s->reader, &c->place, stream_id,
                       from > SEARCH_OVERLAP ? from - SEARCH_OVERLAP : 0);
}

/* A token before the chunk being gathered. */
static void note_before(struct cursor *c, int32_t token)
{
    if (c->before_count == SEARCH_OVERLAP)
        memmove(c->before, c->before + 1, --c->before_count * sizeof *c->before);
    c->before[c->before_count++] = token;
}

static void begin_chunk(struct cursor *c)
{
    uint32_t n = c->count < SEARCH_OVERLAP ? c->count : SEARCH_OVERLAP;

    memcpy(c->before, c->tokens + c->count - n, n * sizeof *c->before);
    c->before_count = n;
    c->chunk++;
    c->count = 0;
}

/* Puts tokens into chunks; those of chunks indexed before are skipped. Chunks finished, or error.
 */
static int gather(struct search *s, struct cursor *c, struct word_table *t, const int32_t *tokens,
                  uint64_t first, int count, uint64_t time_us)
{
    uint64_t from = c->chunk * s->options.chunk_tokens + c->count;
    int done = 0, result;

    for (int i = 0; i < count; i++) {
        if (first + (uint64_t)i < from) {
            note_before(c, tokens[i]);
            continue;
        }
        if (!c->count)
            c->time_from_us = time_us;
        c->time_to_us = time_us;
        c->tokens[c->count++] = tokens[i];
        if (c->count < s->options.chunk_tokens)
            continue;
        result = add_chunk(s, t, c);
        if (result)
            return result;
        begin_chunk(c);
        done++;
    }
    return done;
}

/* One transaction. 1: there is more; 0: all that is in the journal is indexed. */
static int index_batch(struct search *s, struct cursor *c, struct word_table *t)
{
    int done = 0, count = 1, result = 0;

    if (sqlite3_exec(t->db, "BEGIN", NULL, NULL, NULL))
        return -EIO;
    while (!result && done < SEARCH_BATCH && count > 0) {
        const int32_t *tokens;
        uint64_t time_us, first = c->place.token;

        count = reader_next(s->reader, &c->place, &tokens, &time_us);
        result = count < 0 ? count : gather(s, c, t, tokens, first, count, time_us);
        if (result > 0) {
            done += result;
            result = 0;
        }
    }
    if (sqlite3_exec(t->db, result ? "ROLLBACK" : "COMMIT", NULL, NULL, NULL) && !result)
        result = -EIO;
    return result ? result : count > 0;
}

/* A question may wait for the index. */
static void note_indexed(const struct search *s, struct slot *slot, bool failed)
{
    atomic_store(&slot->unindexed, failed);
    if (s->options.done_bell)
        doorbell_ring(s->options.done_bell);
}

static int drop_index(struct search *s, uint64_t stream_id)
{
    for (int i = 0; i < SEARCH_OPEN_MAX; i++)
        if (s->tables[i].stream_id == stream_id)
            word_table_close(&s->tables[i]);
    for (uint32_t i = 0; i < s->options.slot_count; i++)
        if (s->cursors[i].stream_id == stream_id)
            s->cursors[i].stream_id = 0;
    return word_table_unlink(s->folder, stream_id);
}

/* The slot's stream goes on being indexed. True: there is more to do now. */
static bool index_slot(struct search *s, uint32_t index)
{
    struct slot *slot = &s->options.slots[index];
    struct cursor *c = &s->cursors[index];
    uint64_t stream_id = atomic_load(&slot->stream_id), chunk = s->options.chunk_tokens;
    struct word_table *t;
    int result = 0;

    if (!stream_id || atomic_load(&slot->past))
        return false;
    if (c->stream_id == stream_id && atomic_load(&slot->tokens_acked) < (c->chunk + 1) * chunk)
        return false;
    t = use_table(s, stream_id);
    if (!t)
        note_indexed(s, slot, true);
    if (!t)
        return false;
    if (c->stream_id != stream_id)
        result = start_cursor(s, c, t, stream_id);
    if (!result)
        result = index_batch(s, c, t);
    if (result < 0) {
        if (!c->failed)
            say(SAY_WARN, "stream %llu cannot be indexed at chunk %llu (%s): %s",
                (unsigned long long)stream_id, (unsigned long long)c->chunk, strerror(-result),
                sqlite3_errmsg(t->db));
        if (word_table_damaged(t)) {
            drop_index(s, stream_id); /* begins again from nothing */
            return true;
        }
        word_table_close(t);
        c->stream_id = 0; /* begins again from what is stored */
        note_indexed(s, slot, true);
        return false;
    }
    atomic_store(&slot->indexed_to, c->chunk * chunk);
    note_indexed(s, slot, false);
    return result > 0 && atomic_load(&slot->tokens_acked) >= (c->chunk + 1) * chunk;
}

/* ---- jobs ---- */

static int find(struct search *s, struct word_table *t, struct search_job *job)
{
    sqlite3_stmt *f = t->statement[FIND];
    size_t bytes =
        search_expression(job->question, job->question_bytes, s->expression, EXPRESSION_BYTES);
    int code = SQLITE_DONE;

    job->hit_count = 0;
    if (!bytes)
        return 0;
    sqlite3_bind_text(f, 1, s->expression, (int)bytes, SQLITE_STATIC);
    sqlite3_bind_int64(f, 2, (int64_t)job->chunk_end);
    sqlite3_bind_int(f, 3, SEARCH_HITS_MAX);
    while (job->hit_count < SEARCH_HITS_MAX && (code = sqlite3_step(f)) == SQLITE_ROW)
        job->hits[job->hit_count++] =
            (struct search_hit){(uint64_t)sqlite3_column_int64(f, 0), -sqlite3_column_double(f, 1)};
    sqlite3_reset(f);
    sqlite3_clear_bindings(f);
    return code == SQLITE_ROW || code == SQLITE_DONE ? 0 : -EIO;
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

/* All chunks that the question may see are in the index before it is asked, so that the same
 * question at the same position finds the same; one far behind is asked as it is. */
static void catch_up(struct search *s, const struct search_job *job)
{
    for (uint32_t i = 0; i < s->options.slot_count; i++) {
        struct cursor *c = &s->cursors[i];

        if (atomic_load(&s->options.slots[i].stream_id) != job->stream_id ||
            atomic_load(&s->options.slots[i].past))
            continue;
        for (int n = 0; n < SEARCH_CATCH_UP; n++) {
            if (c->stream_id == job->stream_id && c->chunk >= job->chunk_end)
                return;
            index_slot(s, i);
            if (c->stream_id != job->stream_id)
                return; /* it cannot be indexed */
        }
    }
}

static void try_job(struct search *s, struct search_job *job, bool again)
{
    struct word_table *t;

    if (job->kind == SEARCH_FIND || again)
        catch_up(s, job);
    t = use_table(s, job->stream_id);
    job->result = t ? 0 : -EIO;
    job->hit_count = job->kind == SEARCH_FIND ? 0 : job->hit_count;
    if (t && job->kind == SEARCH_FIND)
        job->result = find(s, t, job);
    if (t && job->kind == SEARCH_TEXTS)
        job->result = texts(s, t, job);
}

/* A database that cannot be read is made again, once for a job. */
static void run_job(struct search *s, struct search_job *job)
{
    try_job(s, job, false);
    if (job->result) {
        say(SAY_WARN, "the text index of stream %llu is damaged: it is made again",
            (unsigned long long)job->stream_id);
        drop_index(s, job->stream_id);
        try_job(s, job, true);
    }
    atomic_store(&job->done, true);
    if (s->options.done_bell)
        doorbell_ring(s->options.done_bell);
}

/* ---- the thread ---- */

bool search_step(struct search *s)
{
    bool more = false;

    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < s->job_count; i++)
        run_job(s, s->jobs[i]);
    s->job_count = 0;
    for (uint32_t i = 0; i < s->options.slot_count && !more; i++) {
        uint32_t slot = (s->slot_next + i) % s->options.slot_count;

        more = index_slot(s, slot);
        if (more)
            s->slot_next = (slot + 1) % s->options.slot_count;
    }
    pthread_mutex_unlock(&s->lock);
    return more;
}

void *search_main(void *search)
{
    struct search *s = search;

    while (!atomic_load(s->options.stopping))
        if (!search_step(s))
            doorbell_wait(&s->bell, SEARCH_PERIOD_MS);
    search_step(s); /* nobody waits for a job for ever */
    return NULL;
}

void search_wake(struct search *s)
{
    doorbell_ring(&s->bell);
}

int search_submit(struct search *s, struct search_job *job)
{
    int result = -EAGAIN;

    atomic_store(&job->done, false);
    pthread_mutex_lock(&s->lock);
    if (s->job_count < SEARCH_JOBS_MAX) {
        s->jobs[s->job_count++] = job;
        result = 0;
    }
    pthread_mutex_unlock(&s->lock);
    doorbell_ring(&s->bell);
    return result;
}

int search_forget(struct search *s, uint64_t stream_id)
{
    int result;

    pthread_mutex_lock(&s->lock);
    result = drop_index(s, stream_id);
    pthread_mutex_unlock(&s->lock);
    return result;
}

size_t search_bytes(uint32_t slot_count, uint32_t item_tokens_max)
{
    size_t bytes = sizeof(struct search) + slot_count * sizeof(struct cursor);

    return ((bytes + 63) & ~(size_t)63) + reader_bytes(item_tokens_max);
}

int search_open(struct search **out, const struct search_options *options, void *memory,
                char *error, size_t error_bytes)
{
    struct search *s = memory;
    size_t own = search_bytes(options->slot_count, 0) - reader_bytes(0);
    int result;

    *out = NULL;
    memset(s, 0, own);
    s->options = *options;
    assert(options->chunk_tokens <= SEARCH_CHUNK_MAX);
    snprintf(s->folder, sizeof s->folder, "%.*s/search", PATH_BYTES_MAX - 1, options->folder);
    if (mkdir(s->folder, 0700) != 0 && errno != EEXIST) {
        result = -errno;
        snprintf(error, error_bytes, "%s cannot be made: %s", s->folder, strerror(errno));
        return result;
    }
    result = doorbell_open(&s->bell);
    if (result)
        return result;
    sqlite3_hard_heap_limit64(JOURNAL_HEAP_BYTES + SEARCH_HEAP_BYTES);
    result = reader_open(&s->reader, options->folder, options->tokenizer, options->item_tokens_max,
                         (char *)memory + own);
    if (result) {
        snprintf(error, error_bytes, "the journal in %s cannot be read for the text index",
                 options->folder);
        doorbell_close(&s->bell);
        return result;
    }
    pthread_mutex_init(&s->lock, NULL);
    *out = s;
    return 0;
}

void search_close(struct search **search)
{
    struct search *s = *search;

    if (!s)
        return;
    for (int i = 0; i < SEARCH_OPEN_MAX; i++)
        word_table_close(&s->tables[i]);
    reader_close(&s->reader);
    doorbell_close(&s->bell);
    pthread_mutex_destroy(&s->lock);
    *search = NULL;
}
