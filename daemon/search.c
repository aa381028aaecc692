/*
 * One database a stream; a batch of chunks is one transaction, so a crash leaves whole chunks.
 *
 * The lock is held over each batch and each job: who forgets a stream waits for one of them. Jobs
 * are handed over under a lock of their own, for no compute thread waits for this one's disk; a job
 * waits for the batch under way.
 */
#include "daemon/search_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/journal.h"
#include "daemon/log.h"

static const char *const statement_text[SEARCH_STATEMENTS] = {
    [ADD_CHUNK] = "REPLACE INTO chunks VALUES (?,?,?,?,?,?)",
    [ADD_WORDS] = "INSERT INTO words (rowid, text) VALUES (?,?)",
    [FIND] = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ? AND rowid < ? "
             "ORDER BY rank LIMIT ?",
    [READ_TERM] = "SELECT 1 FROM words WHERE words MATCH ? AND rowid < ? AND gather(words)",
    [GET_TEXT] = "SELECT token_from, token_to, time_from_us, text, time_to_us FROM chunks WHERE "
                 "chunk = ?",
    [GET_EXCERPT] = "SELECT snippet(words, 0, '', '', ' … ', ?) FROM words "
                    "WHERE words MATCH ? AND rowid = ?",
    [GET_END] = "SELECT max(chunk) FROM chunks",
};

/* ---- databases ---- */

struct chunk_text {
    const char *text;
    int bytes;
    uint64_t time_from_us, time_to_us;
};

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

static int run(sqlite3_stmt *s)
{
    int code = sqlite3_step(s);

    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return code == SQLITE_DONE ? 0 : -EIO;
}

static int put_row(const struct search *s, struct word_table *t, uint64_t chunk,
                   const struct chunk_text *of)
{
    sqlite3_stmt *add = t->statement[ADD_CHUNK];

    sqlite3_bind_int64(add, 1, (int64_t)chunk);
    sqlite3_bind_int64(add, 2, (int64_t)(chunk * s->options.chunk_tokens));
    sqlite3_bind_int64(add, 3, (int64_t)((chunk + 1) * s->options.chunk_tokens));
    sqlite3_bind_int64(add, 4, (int64_t)of->time_from_us);
    sqlite3_bind_int64(add, 5, (int64_t)of->time_to_us);
    sqlite3_bind_text(add, 6, of->text, of->bytes, SQLITE_STATIC);
    return run(add);
}

/* Of what was trimmed away nothing is indexed: the last chunk of it stands for all. */
static void pass_trimmed(struct search *s, struct word_table *t)
{
    uint64_t first, chunk;

    if (reader_first(s->reader, t->stream_id, &first))
        return;
    chunk = first / s->options.chunk_tokens;
    if (t->chunks < chunk && !put_row(s, t, chunk - 1, &(struct chunk_text){.text = ""}))
        t->chunks = chunk;
    if (t->recall && t->key_chunks < chunk)
        t->key_chunks = recall_file_trim(t->recall, t->key_file, chunk);
}

static int set_up(struct search *s, struct word_table *t, uint64_t stream_id)
{
    int result;

    t->stream_id = stream_id;
    t->touched = ++s->uses;
    result = word_table_open(t, s->folder, SEARCH_FORMAT << 16 | (int)s->options.chunk_tokens,
                             &s->postings, statement_text, SEARCH_STATEMENTS);
    if (!result)
        result = chunks_of(t, &t->chunks);
    if (!result)
        word_table_open_keys(t, s->folder, s->keys, (uint32_t)(t - s->tables));
    if (!result)
        pass_trimmed(s, t);
    return result;
}

/* What is there and whole stays where it cannot be opened now, as on a disk that is full. */
struct word_table *search_table(struct search *s, uint64_t stream_id, bool quiet)
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
    result = set_up(s, t, stream_id);
    if (result == -ESTALE || (result && word_table_damaged(t))) {
        say(SAY_WARN, "the text index of stream %llu cannot be used (%s): it is made again",
            (unsigned long long)stream_id, sqlite3_errmsg(t->db));
        search_drop_index(s, stream_id); /* where it was being indexed that begins again, too */
        result = set_up(s, t, stream_id);
    }
    if (!result)
        return t;
    if (!quiet)
        say(SAY_WARN, "the text index of stream %llu cannot be opened: %s",
            (unsigned long long)stream_id, sqlite3_errmsg(t->db));
    word_table_close(t);
    return NULL;
}

/* ---- indexing ---- */

static int add_text(struct search *s, struct word_table *t, const struct cursor *c)
{
    struct search_tokens parts[] = {{c->before, c->before_count}, {c->tokens, c->count}};
    size_t bytes = search_chunk_text(s->options.tokenizer, parts, 2, s->text, CHUNK_TEXT_MAX);
    sqlite3_stmt *words = t->statement[ADD_WORDS];
    const struct chunk_text of = {(const char *)s->text, (int)bytes, c->time_from_us,
                                  c->time_to_us};
    int result = put_row(s, t, c->chunk, &of);

    if (result)
        return result;
    sqlite3_bind_int64(words, 1, (int64_t)c->chunk);
    sqlite3_bind_text(words, 2, (const char *)s->text, (int)bytes, SQLITE_STATIC);
    result = run(words);
    t->chunks = result ? t->chunks : c->chunk + 1;
    return result;
}

/* Of text and keys one may be there already: each is made again for itself. */
static int add_chunk(struct search *s, struct word_table *t, const struct cursor *c)
{
    int32_t tokens[SEARCH_CHUNK_MAX + SEARCH_OVERLAP];
    int result = c->chunk < t->chunks    ? 0
                 : c->chunk == t->chunks ? add_text(s, t, c)
                                         : -EINVAL; /* chunks before it are gone */

    if (result || !t->recall || c->chunk < t->key_chunks)
        return result;
    memcpy(tokens, c->tokens, c->count * sizeof *tokens);
    memcpy(tokens + c->count, c->before, c->before_count * sizeof *tokens);
    result = recall_file_add(t->recall, t->key_file, c->chunk, tokens, c->count + c->before_count);
    t->key_chunks = result ? t->key_chunks : c->chunk + 1;
    return result;
}

/* -ESTALE: chunks are indexed that the journal did not have when the stream came. It is an earlier
 * copy of itself, or has lost its end, and others come in their place. */
static int start_cursor(struct search *s, struct cursor *c, struct word_table *t,
                        uint64_t stream_id, uint64_t loaded)
{
    uint64_t items, tokens, from, indexed = t->chunks;
    int result = reader_count(s->reader, stream_id, &items, &tokens);

    if (t->recall && t->key_chunks > indexed)
        indexed = t->key_chunks;
    if (c->believed != stream_id && loaded < tokens)
        tokens = loaded;
    if (!result && indexed > tokens / s->options.chunk_tokens)
        result = -ESTALE;
    if (result)
        return result;
    c->believed = stream_id;
    memset(c, 0, offsetof(struct cursor, tokens));
    c->chunk = t->chunks < t->key_chunks ? t->chunks : t->key_chunks;
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

/* One transaction. 1: there is more; 0: all that is in the journal is indexed. After an error,
 * which is the database's last, it is to be closed. */
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
    if (!result && sqlite3_exec(t->db, "COMMIT", NULL, NULL, NULL))
        result = -EIO;
    if (!result && t->recall)
        result = recall_file_write(t->recall, t->key_file);
    return result ? result : count > 0;
}

/* A question may wait for the index. */
static void note_indexed(const struct search *s, struct slot *slot, bool failed)
{
    atomic_store(&slot->unindexed, failed);
    if (s->options.done_bell)
        doorbell_ring(s->options.done_bell);
}

void search_drop_keys(struct search *s, struct word_table *t)
{
    say(SAY_WARN, "the recall keys of stream %llu are damaged: they are made again",
        (unsigned long long)t->stream_id);
    word_table_drop_keys(t, s->folder);
    for (uint32_t i = 0; i < s->options.slot_count; i++)
        if (s->cursors[i].stream_id == t->stream_id)
            s->cursors[i].stream_id = 0; /* begins again from what is stored */
}

int search_drop_index(struct search *s, uint64_t stream_id)
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
    uint64_t loaded = atomic_load(&slot->tokens_loaded);
    struct word_table *t;
    int result = 0;

    if (!stream_id || atomic_load(&slot->stream_id) != stream_id)
        return false; /* it may be gone before `loaded` was read */
    if (c->stream_id == stream_id && atomic_load(&slot->tokens_acked) < (c->chunk + 1) * chunk) {
        /* It may have been away from its place, and come back before others were looked at. */
        if (atomic_exchange(&slot->indexed_to, c->chunk * chunk) != c->chunk * chunk)
            note_indexed(s, slot, false);
        return false;
    }
    t = search_table(s, stream_id, c->failed == stream_id);
    if (!t) {
        c->failed = stream_id;
        note_indexed(s, slot, true);
        return false;
    }
    if (c->stream_id != stream_id)
        result = start_cursor(s, c, t, stream_id, loaded);
    if (!result)
        result = index_batch(s, c, t);
    if (result == -ESTALE) {
        say(SAY_WARN, "the text index of stream %llu is ahead of the journal: it is made again",
            (unsigned long long)stream_id);
        search_drop_index(s, stream_id);
        return true;
    }
    if (result < 0) {
        if (c->failed != stream_id)
            say(SAY_WARN, "stream %llu cannot be indexed at chunk %llu (%s): %s",
                (unsigned long long)stream_id, (unsigned long long)c->chunk, strerror(-result),
                sqlite3_errmsg(t->db));
        c->failed = stream_id;
        if (word_table_damaged(t)) {
            search_drop_index(s, stream_id); /* begins again from nothing */
            return true;
        }
        word_table_close(t);
        c->stream_id = 0; /* begins again from what is stored */
        note_indexed(s, slot, true);
        return false;
    }
    c->failed = 0;
    atomic_store(&slot->indexed_to, c->chunk * chunk);
    note_indexed(s, slot, false);
    return result > 0 && atomic_load(&slot->tokens_acked) >= (c->chunk + 1) * chunk;
}

/* Where a stream is, or where its past is asked while it rests. */
static uint32_t slot_of(const struct search *s, uint64_t stream_id)
{
    uint32_t found = SLOT_NONE;

    for (uint32_t i = 0; i < s->options.slot_count; i++)
        if (atomic_load(&s->options.slots[i].stream_id) == stream_id &&
            (found == SLOT_NONE || !atomic_load(&s->options.slots[i].past)))
            found = i;
    return found;
}

void search_catch_up(struct search *s, const struct search_job *job)
{
    uint32_t slot = slot_of(s, job->stream_id);
    const struct cursor *c;

    if (slot == SLOT_NONE)
        return;
    c = &s->cursors[slot];
    for (int n = 0; n < SEARCH_CATCH_UP; n++) {
        if (c->stream_id == job->stream_id && c->chunk >= job->chunk_end)
            return;
        if (!index_slot(s, slot) && c->stream_id != job->stream_id)
            return; /* it cannot be indexed */
    }
}

/* ---- the thread ---- */

static void run_jobs(struct search *s)
{
    struct search_job *jobs[SEARCH_JOBS_MAX];
    uint32_t count;

    pthread_mutex_lock(&s->jobs_lock);
    count = s->job_count;
    memcpy(jobs, s->jobs, count * sizeof *jobs);
    s->job_count = 0;
    pthread_mutex_unlock(&s->jobs_lock);
    if (!count)
        return;
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < count; i++)
        search_run_job(s, jobs[i]);
    pthread_mutex_unlock(&s->lock);
}

static bool has_jobs(struct search *s)
{
    bool has;

    pthread_mutex_lock(&s->jobs_lock);
    has = s->job_count > 0;
    pthread_mutex_unlock(&s->jobs_lock);
    return has;
}

bool search_step(struct search *s)
{
    bool more = false;
    uint32_t from = s->slot_next;

    run_jobs(s);
    for (uint32_t i = 0; i < s->options.slot_count && !more; i++) {
        uint32_t slot = (from + i) % s->options.slot_count;

        pthread_mutex_lock(&s->lock);
        more = !atomic_load(&s->options.slots[slot].past) && index_slot(s, slot);
        pthread_mutex_unlock(&s->lock);
        more = has_jobs(s) || more;
        if (more)
            s->slot_next = (slot + 1) % s->options.slot_count;
    }
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
    pthread_mutex_lock(&s->jobs_lock);
    if (s->job_count < SEARCH_JOBS_MAX) {
        s->jobs[s->job_count++] = job;
        result = 0;
    }
    pthread_mutex_unlock(&s->jobs_lock);
    doorbell_ring(&s->bell);
    return result;
}

int search_forget(struct search *s, uint64_t stream_id)
{
    int result;

    pthread_mutex_lock(&s->lock);
    result = search_drop_index(s, stream_id);
    pthread_mutex_unlock(&s->lock);
    return result;
}

static int run_below(sqlite3 *db, const char *text, uint64_t chunk)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(db, text, -1, &s, NULL);

    if (code)
        return -EIO;
    sqlite3_bind_int64(s, 1, (int64_t)chunk);
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    return code == SQLITE_DONE ? 0 : -EIO;
}

static int trim_rows(sqlite3 *db, uint64_t chunk)
{
    int result = sqlite3_exec(db, "BEGIN", NULL, NULL, NULL) ? -EIO : 0;

    if (!result)
        result = run_below(db,
                           "INSERT INTO words (words, rowid, text) SELECT 'delete', chunk, text "
                           "FROM chunks WHERE chunk < ? AND text <> ''",
                           chunk);
    if (!result) /* the last row says how far the index goes */
        result = run_below(
            db, "DELETE FROM chunks WHERE chunk < ? AND chunk < (SELECT max(chunk) FROM chunks)",
            chunk);
    if (!result)
        result = run_below(db, "UPDATE chunks SET text = '' WHERE chunk < ?", chunk);
    if (!result && sqlite3_exec(db, "COMMIT", NULL, NULL, NULL))
        result = -EIO;
    sqlite3_exec(db,
                 result ? "ROLLBACK" : "PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)",
                 NULL, NULL, NULL);
    return result;
}

int search_trim(struct search *s, uint64_t stream_id, uint64_t chunk)
{
    struct word_table *t;
    int result;

    pthread_mutex_lock(&s->lock);
    t = search_table(s, stream_id, false);
    result = t ? trim_rows(t->db, chunk) : -EIO;
    if (!result && t->recall)
        (void)recall_file_trim(t->recall, t->key_file, chunk);
    pthread_mutex_unlock(&s->lock);
    return result;
}

size_t search_bytes(uint32_t slot_count, uint32_t item_tokens_max)
{
    size_t bytes = sizeof(struct search) + slot_count * sizeof(struct cursor);

    return ((bytes + 63) & ~(size_t)63) + ((recall_keys_bytes() + 63) & ~(size_t)63) +
           reader_bytes(item_tokens_max);
}

int search_open(struct search **out, const struct search_options *options, void *memory,
                char *error, size_t error_bytes)
{
    struct search *s = memory;
    size_t own = search_bytes(options->slot_count, 0) - reader_bytes(0);
    size_t keys = (recall_keys_bytes() + 63) & ~(size_t)63;
    int result;

    *out = NULL;
    memset(s, 0, own - keys);
    s->options = *options;
    s->postings.room = POSTINGS_MAX;
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
    if (options->keys)
        result =
            recall_keys_open(&s->keys, options->model_fingerprint, (char *)memory + own - keys);
    if (result) {
        snprintf(error, error_bytes, "no disk engine for the recall keys: %s", strerror(-result));
        reader_close(&s->reader);
        doorbell_close(&s->bell);
        return result;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->jobs_lock, NULL);
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
    recall_keys_close(&s->keys);
    reader_close(&s->reader);
    doorbell_close(&s->bell);
    pthread_mutex_destroy(&s->jobs_lock);
    pthread_mutex_destroy(&s->lock);
    *search = NULL;
}
