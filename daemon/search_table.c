/* A database is made of the journal's text: where anything is wrong with it, it is made again. */
#include "daemon/search_table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/files.h"
#include "daemon/log.h"
#include "daemon/pages.h"
#include "daemon/search_internal.h"

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS chunks (chunk INTEGER PRIMARY KEY, token_from INTEGER,"
    " token_to INTEGER, time_from_us INTEGER, time_to_us INTEGER, text TEXT);"
    "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (text, content='chunks',"
    " content_rowid='chunk', tokenize='porter unicode61 remove_diacritics 2');";

static void path_of(const char *folder, uint64_t stream_id, const char *end, char *out)
{
    snprintf(out, PATH_BYTES_MAX + 48, "%s/%016" PRIx64 ".db%s", folder, stream_id, end);
}

void word_table_open_keys(struct word_table *t, const char *folder, struct recall_keys *keys,
                          uint32_t file)
{
    char path[PATH_BYTES_MAX + 48];
    int64_t count;

    t->key_chunks = UINT64_MAX;
    if (!keys)
        return;
    path_of(folder, t->stream_id, "-keys", path);
    count = recall_file_open(keys, file, path, t->stream_id);
    if (count < 0) {
        say(SAY_WARN,
            "the recall keys of stream %llu cannot be used (%s): its far past is found by words "
            "alone",
            (unsigned long long)t->stream_id, strerror((int)-count));
        return;
    }
    t->recall = keys;
    t->key_file = file;
    t->key_chunks = (uint64_t)count;
}

void word_table_drop_keys(struct word_table *t, const char *folder)
{
    struct recall_keys *keys = t->recall;
    char path[PATH_BYTES_MAX + 48];

    recall_file_close(keys, t->key_file);
    t->recall = NULL;
    path_of(folder, t->stream_id, "-keys", path);
    unlink(path);
    word_table_open_keys(t, folder, keys, t->key_file);
}

void word_table_close(struct word_table *t)
{
    if (t->recall)
        recall_file_close(t->recall, t->key_file);
    for (int i = 0; i < WORD_STATEMENTS_MAX; i++)
        sqlite3_finalize(t->statement[i]);
    if (t->stemmer)
        t->tokenizer.xDelete(t->stemmer);
    sqlite3_close(t->db);
    memset(t, 0, sizeof *t);
}

int word_table_unlink(const char *folder, uint64_t stream_id)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-keys"};
    char path[PATH_BYTES_MAX + 48];
    int result = 0, synced;

    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        path_of(folder, stream_id, ends[i], path);
        if (unlink(path) != 0 && errno != ENOENT)
            result = -errno;
    }
    synced = files_sync_folder(&files_real, folder);
    return result ? result : synced;
}

/* What a database was made with; another one is made again. */
static int check_version(const struct word_table *t, int version)
{
    int found = 0;
    sqlite3_stmt *get;
    char text[64];
    int code = sqlite3_prepare_v2(t->db, "PRAGMA user_version", -1, &get, NULL);

    if (!code && sqlite3_step(get) == SQLITE_ROW)
        found = sqlite3_column_int(get, 0);
    sqlite3_finalize(get);
    if (code)
        return -EIO;
    if (found && found != version)
        return -ESTALE;
    snprintf(text, sizeof text, "PRAGMA user_version=%d", version);
    return found || !sqlite3_exec(t->db, text, NULL, NULL, NULL) ? 0 : -EIO;
}

static int open_stemmer(struct word_table *t, fts5_api *api)
{
    static const char *args[] = {"unicode61", "remove_diacritics", "2"}; /* as in the schema */
    void *module;

    return api->xFindTokenizer(api, "porter", &module, &t->tokenizer) ||
                   t->tokenizer.xCreate(module, args, 3, &t->stemmer)
               ? -EIO
               : 0;
}

int word_table_stems(const struct word_table *t, const char *text, size_t bytes_count, void *user,
                     int (*see)(void *, int, const char *, int, int, int))
{
    int code = t->tokenizer.xTokenize(t->stemmer, user, FTS5_TOKENIZE_DOCUMENT, text,
                                      (int)bytes_count, see);

    return code ? -EIO : 0;
}

static int register_functions(struct word_table *t, struct postings *postings)
{
    fts5_api *api = NULL;
    sqlite3_stmt *get;

    if (sqlite3_prepare_v2(t->db, "SELECT fts5(?1)", -1, &get, NULL))
        return -EIO;
    sqlite3_bind_pointer(get, 1, &api, "fts5_api_ptr", NULL);
    sqlite3_step(get);
    sqlite3_finalize(get);
    if (!api || search_postings_register(api, postings))
        return -EIO;
    return open_stemmer(t, api);
}

/* Tables that are not these are another version's. */
static int failed(const struct word_table *t)
{
    return sqlite3_errcode(t->db) == SQLITE_ERROR ? -ESTALE : -EIO;
}

int word_table_open(struct word_table *t, const char *folder, int version,
                    struct postings *postings, const char *const *statement_text,
                    int statement_count)
{
    char path[PATH_BYTES_MAX + 48], pragmas[200];
    int result;

    path_of(folder, t->stream_id, "", path);
    if (sqlite3_open_v2(path, &t->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        PAGES_VFS) ||
        pages_reserve(t->db))
        return -EIO;
    sqlite3_extended_result_codes(t->db, 1); /* or FTS5 does not say that it was damage */
    snprintf(pragmas, sizeof pragmas,
             "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; "
             "PRAGMA cache_size=-%d;"
             "PRAGMA mmap_size=0; PRAGMA wal_autocheckpoint=512; PRAGMA journal_size_limit=0;",
             SEARCH_CACHE_BYTES >> 10);
    if (sqlite3_exec(t->db, pragmas, NULL, NULL, NULL))
        return -EIO;
    result = check_version(t, version);
    if (!result && sqlite3_exec(t->db, schema, NULL, NULL, NULL))
        result = failed(t);
    if (!result)
        result = register_functions(t, postings);
    for (int i = 0; i < statement_count && !result; i++)
        if (sqlite3_prepare_v3(t->db, statement_text[i], -1, SQLITE_PREPARE_PERSISTENT,
                               &t->statement[i], NULL))
            result = failed(t);
    return result;
}

bool word_table_damaged(const struct word_table *t)
{
    int code = sqlite3_extended_errcode(t->db), kind = code & 0xff;

    return kind == SQLITE_CORRUPT || kind == SQLITE_NOTADB || code == SQLITE_IOERR_DATA ||
           code == SQLITE_IOERR_READ || code == SQLITE_IOERR_SHORT_READ;
}
