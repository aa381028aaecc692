/*
 * One table of items, keyed by stream and ordinal in one integer, so that a stream's items lie
 * together in one tree and no second index is written. The row of a stream says how far its journal
 * has come, in the same transaction as the items: after a crash both are there or neither.
 */
#include "daemon/journal.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/clock.h"
#include "daemon/journal_branch.h"
#include "daemon/journal_check.h"
#include "daemon/journal_pin.h"
#include "daemon/pages.h"

enum statement {
    BEGIN,
    COMMIT,
    ROLLBACK,
    STREAM_CREATE,
    STREAM_GET,
    STREAM_FIND,
    STREAM_EACH,
    STREAM_UPDATE,
    STREAM_REMOVE,
    STREAM_BRANCH,
    PRODUCERS_REMOVE,
    PRODUCER_GET,
    PRODUCER_SET,
    ITEM_APPEND,
    ITEM_GET,
    ITEM_PUT,
    ITEM_CUT,
    ITEM_PREPEND,
    ITEM_PLACE,
    ITEMS_CLEAR,
    ITEMS_SHIFT,
    STATEMENT_COUNT,
};

#define STREAM_COLUMNS                                                                             \
    "id, name, dmc_ratio, ring, created_us, items, tokens, bytes_text, producer, held"

static const char *const statement_text[STATEMENT_COUNT] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [STREAM_CREATE] = "INSERT INTO streams (name, dmc_ratio, ring, created_us) VALUES (?,?,?,?)",
    [STREAM_GET] = "SELECT " STREAM_COLUMNS " FROM streams WHERE id = ?",
    [STREAM_FIND] = "SELECT " STREAM_COLUMNS " FROM streams WHERE name = ?",
    [STREAM_EACH] = "SELECT " STREAM_COLUMNS " FROM streams ORDER BY name",
    [STREAM_UPDATE] = "UPDATE streams SET items = ?, tokens = ?, bytes_text = ?, producer = ?, "
                      "held = ? WHERE id = ?",
    [STREAM_REMOVE] = "DELETE FROM streams WHERE id = ?",
    [STREAM_BRANCH] = "INSERT INTO streams (name, dmc_ratio, ring, created_us, items, tokens, "
                      "bytes_text, producer, held) SELECT ?, dmc_ratio, ring, ?, items, tokens, "
                      "bytes_text, producer, held FROM streams WHERE id = ?",
    [PRODUCERS_REMOVE] = "DELETE FROM producers WHERE stream = ?",
    [PRODUCER_GET] = "SELECT sequence, bytes FROM producers WHERE stream = ? AND producer = ?",
    [PRODUCER_SET] = "INSERT INTO producers (stream, producer, sequence, bytes) VALUES (?,?,?,?) "
                     "ON CONFLICT (stream, producer) DO UPDATE SET sequence = excluded.sequence, "
                     "bytes = excluded.bytes",
    [ITEM_APPEND] = "INSERT INTO items (key, kind, detail, time_us, token_from, held_before, "
                    "payload) VALUES (?,?,?,?,?,?,?)",
    [ITEM_GET] = JOURNAL_ITEM_FROM("kind, detail, time_us, token_from, held_before, payload"),
    [ITEM_PUT] = "UPDATE items SET kind = ?, detail = 0, payload = ? WHERE key = ?",
    [ITEM_CUT] = "UPDATE items SET payload = substr(payload, 1, ?) WHERE key = ?",
    [ITEM_PREPEND] = "UPDATE items SET payload = CAST(? || payload AS BLOB) WHERE key = ?",
    [ITEM_PLACE] = "UPDATE items SET token_from = ?, held_before = ? WHERE key = ?",
    [ITEMS_CLEAR] = "UPDATE items SET kind = ?, detail = 0, payload = x'', token_from = ?, "
                    "held_before = ? WHERE key BETWEEN ? AND ?",
    [ITEMS_SHIFT] = "UPDATE items SET token_from = token_from - ? WHERE key BETWEEN ? AND ?",
};

struct journal {
    sqlite3 *db;
    sqlite3_stmt *statement[STATEMENT_COUNT];
    char path[PATH_BYTES_MAX + 16];
    uint64_t epoch;
    bool committing; /* by journal_commit, or a call that is a transaction of its own */
};

static int64_t item_key(uint64_t stream, uint64_t ordinal)
{
    return (int64_t)(stream << ORDINAL_BITS | ordinal);
}

static sqlite3_stmt *use(struct journal *journal, enum statement which)
{
    sqlite3_stmt *s = journal->statement[which];

    sqlite3_reset(s);
    return s;
}

/* Runs a statement that gives no rows. */
static int run(sqlite3_stmt *s)
{
    int code = sqlite3_step(s);

    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return journal_errno(code);
}

static void bind_u64(sqlite3_stmt *s, int at, uint64_t value)
{
    sqlite3_bind_int64(s, at, (int64_t)value);
}

/* SQLite takes a whole transaction back when the disk fails under any statement in it, a read too;
 * what came behind it would be on disk by itself, a part of a batch. */
static int refuse_commit(void *journal)
{
    return !((const struct journal *)journal)->committing;
}

static int set_up(struct journal *journal)
{
    char pragmas[400];

    snprintf(
        pragmas, sizeof pragmas,
        "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA "
        "secure_delete=ON;"
        "PRAGMA cache_size=-%d; PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY;"
        "PRAGMA wal_autocheckpoint=%d; PRAGMA journal_size_limit=%d; PRAGMA busy_timeout=2000;",
        JOURNAL_CACHE_BYTES >> 10, JOURNAL_WAL_PAGES, JOURNAL_WAL_PAGES * 4096);
    return journal_errno(sqlite3_exec(journal->db, pragmas, NULL, NULL, NULL));
}

static int prepare(struct journal *journal)
{
    for (int i = 0; i < STATEMENT_COUNT; i++) {
        int code = sqlite3_prepare_v3(journal->db, statement_text[i], -1, SQLITE_PREPARE_PERSISTENT,
                                      &journal->statement[i], NULL);

        if (code)
            return journal_errno(code);
    }
    return 0;
}

static int open_database(struct journal *journal, char *error, size_t error_bytes)
{
    int result = journal_check_pages(journal->path, error, error_bytes);

    if (!result)
        result = journal_errno(pages_register());
    if (!result)
        result = journal_errno(sqlite3_open_v2(
            journal->path, &journal->db,
            SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, PAGES_VFS));
    if (result)
        return result;
    sqlite3_extended_result_codes(journal->db, 1);
    return journal_errno(pages_reserve(journal->db));
}

int journal_open(struct journal **out, const struct journal_options *options, char *error,
                 size_t error_bytes)
{
    struct journal *journal = calloc(1, sizeof *journal);
    int result;

    *out = NULL;
    error[0] = '\0';
    if (!journal) {
        snprintf(error, error_bytes, "no memory for the journal");
        return -ENOMEM;
    }
    snprintf(journal->path, sizeof journal->path, "%s/journal.db", options->folder);
    sqlite3_hard_heap_limit64(JOURNAL_HEAP_BYTES);
    result = pages_log_check(journal->path, error, error_bytes);
    if (!result)
        result = open_database(journal, error, error_bytes);
    if (!result)
        result = set_up(journal);
    if (!result)
        result = journal_check(journal->db, options, &journal->epoch, error, error_bytes);
    if (!result)
        result = prepare(journal);
    if (result)
        goto error;
    /* Text that was removed just before a crash goes from the log now. */
    (void)journal_truncate_log(journal);
    sqlite3_commit_hook(journal->db, refuse_commit, journal);
    *out = journal;
    return 0;

error:
    if (!error[0])
        snprintf(error, error_bytes, "the journal %s cannot be used: %s%s", journal->path,
                 journal->db ? sqlite3_errmsg(journal->db) : "no memory",
                 result == -EBADMSG ? "; restore it from a copy or give another --data folder"
                                    : "; is its folder writable and the disk not full?");
    journal_close(&journal);
    return result;
}

void journal_close(struct journal **journal)
{
    if (!*journal)
        return;
    for (int i = 0; i < STATEMENT_COUNT; i++)
        sqlite3_finalize((*journal)->statement[i]);
    sqlite3_close((*journal)->db);
    free(*journal);
    *journal = NULL;
}

const char *journal_error(const struct journal *journal)
{
    return sqlite3_errmsg(journal->db);
}

uint64_t journal_epoch(const struct journal *journal)
{
    return journal->epoch;
}

uint64_t journal_disk_bytes(const struct journal *journal)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-synced"};
    uint64_t sum = 0;

    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        char path[PATH_BYTES_MAX + 24];
        struct stat status;

        snprintf(path, sizeof path, "%s%s", journal->path, ends[i]);
        if (stat(path, &status) == 0)
            sum += (uint64_t)status.st_blocks * 512;
    }
    return sum;
}

int journal_begin(struct journal *journal)
{
    journal_item_done(journal);
    return run(use(journal, BEGIN));
}

int journal_commit(struct journal *journal)
{
    int result;

    journal->committing = true;
    result = run(use(journal, COMMIT));
    journal->committing = false;
    return result;
}

void journal_rollback(struct journal *journal)
{
    if (!sqlite3_get_autocommit(journal->db))
        run(use(journal, ROLLBACK));
}

int journal_mark(struct journal *journal)
{
    if (sqlite3_get_autocommit(journal->db))
        return -EIO;             /* it would begin another */
    journal_spills(journal->db); /* those before count no more */
    return journal_errno(sqlite3_exec(journal->db, "SAVEPOINT mark", NULL, NULL, NULL));
}

int journal_keep(struct journal *journal)
{
    return journal_errno(sqlite3_exec(journal->db, "RELEASE mark", NULL, NULL, NULL));
}

int journal_take_back(struct journal *journal)
{
    int code;

    journal_item_done(journal);
    code = sqlite3_exec(journal->db, "ROLLBACK TO mark; RELEASE mark", NULL, NULL, NULL);
    return code ? journal_errno(code) : journal_spills(journal->db) ? -ENOBUFS : 0;
}

/* Of the row that was just made, which goes again where it can have none. */
static int take_number(struct journal *journal, uint64_t *id)
{
    sqlite3_stmt *s = use(journal, STREAM_REMOVE);
    int result;

    *id = (uint64_t)sqlite3_last_insert_rowid(journal->db);
    if (*id < STREAM_ID_MAX)
        return 0;
    bind_u64(s, 1, *id);
    result = run(s);
    return result ? result : -EOVERFLOW;
}

int journal_stream_create(struct journal *journal, struct journal_stream *stream)
{
    sqlite3_stmt *s = use(journal, STREAM_CREATE);
    int result;

    stream->created_us = clock_wall_us();
    sqlite3_bind_text(s, 1, stream->name, -1, SQLITE_STATIC);
    bind_u64(s, 2, stream->dmc_ratio);
    bind_u64(s, 3, stream->ring_segments);
    bind_u64(s, 4, stream->created_us);
    result = run(s);
    return result ? result : take_number(journal, &stream->id);
}

static void read_stream(sqlite3_stmt *s, struct journal_stream *out)
{
    const void *held;
    size_t held_bytes;

    memset(out, 0, sizeof *out);
    out->id = (uint64_t)sqlite3_column_int64(s, 0);
    snprintf(out->name, sizeof out->name, "%s", (const char *)sqlite3_column_text(s, 1));
    out->dmc_ratio = (uint32_t)sqlite3_column_int64(s, 2);
    out->ring_segments = (uint32_t)sqlite3_column_int64(s, 3);
    out->created_us = (uint64_t)sqlite3_column_int64(s, 4);
    out->items = (uint64_t)sqlite3_column_int64(s, 5);
    out->tokens = (uint64_t)sqlite3_column_int64(s, 6);
    out->bytes_text = (uint64_t)sqlite3_column_int64(s, 7);
    snprintf(out->producer, sizeof out->producer, "%s", (const char *)sqlite3_column_text(s, 8));
    held = sqlite3_column_blob(s, 9);
    held_bytes = (size_t)sqlite3_column_bytes(s, 9);
    if (held_bytes > sizeof out->text.held)
        held_bytes = 0;
    if (held_bytes)
        memcpy(out->text.held, held, held_bytes);
    out->text.held_bytes = (uint32_t)held_bytes;
}

static int one_stream(sqlite3_stmt *s, struct journal_stream *out)
{
    int code = sqlite3_step(s);

    if (code == SQLITE_ROW)
        read_stream(s, out);
    sqlite3_reset(s);
    return code == SQLITE_DONE ? -ENOENT : journal_errno(code);
}

int journal_stream_get(struct journal *journal, uint64_t id, struct journal_stream *out)
{
    sqlite3_stmt *s = use(journal, STREAM_GET);

    bind_u64(s, 1, id);
    return one_stream(s, out);
}

int journal_stream_find(struct journal *journal, const char *name, struct journal_stream *out)
{
    sqlite3_stmt *s = use(journal, STREAM_FIND);

    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    return one_stream(s, out);
}

int journal_stream_each(struct journal *journal, journal_each_fn *each, void *user)
{
    sqlite3_stmt *s = use(journal, STREAM_EACH);
    struct journal_stream stream;
    int code, result = 0;

    while (!result && (code = sqlite3_step(s)) == SQLITE_ROW) {
        read_stream(s, &stream);
        result = each(user, &stream);
    }
    sqlite3_reset(s);
    return result ? result : journal_errno(code);
}

int journal_stream_update(struct journal *journal, const struct journal_stream *stream)
{
    sqlite3_stmt *s = use(journal, STREAM_UPDATE);

    bind_u64(s, 1, stream->items);
    bind_u64(s, 2, stream->tokens);
    bind_u64(s, 3, stream->bytes_text);
    sqlite3_bind_text(s, 4, stream->producer, -1, SQLITE_STATIC);
    sqlite3_bind_blob(s, 5, stream->text.held, (int)stream->text.held_bytes, SQLITE_STATIC);
    bind_u64(s, 6, stream->id);
    return run(s);
}

int journal_stream_remove(struct journal *journal, uint64_t id)
{
    sqlite3_stmt *s = use(journal, PRODUCERS_REMOVE);
    int result;

    bind_u64(s, 1, id);
    result = run(s);
    if (result)
        return result;
    s = use(journal, STREAM_REMOVE);
    bind_u64(s, 1, id);
    result = run(s);
    result = result ? result : journal_pin_drop(journal->db, id);
    return result ? result : journal_branch_drop(journal->db, id);
}

int journal_stream_branch(struct journal *journal, uint64_t parent, struct journal_stream *branch)
{
    sqlite3_stmt *s = use(journal, STREAM_BRANCH);
    char name[sizeof branch->name];
    uint64_t id;
    int result;

    memcpy(name, branch->name, sizeof name);
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    bind_u64(s, 2, clock_wall_us());
    bind_u64(s, 3, parent);
    result = run(s);
    if (result)
        return result;
    if (sqlite3_changes(journal->db) != 1)
        return -ENOENT;
    result = take_number(journal, &id);
    result = result ? result : journal_branch_make(journal->db, parent, id);
    result = result ? result : journal_pin_branch(journal->db, parent, id);
    return result ? result : journal_stream_get(journal, id, branch);
}

sqlite3 *journal_db(struct journal *journal)
{
    return journal->db;
}

int journal_stream_part(struct journal *journal, uint64_t id)
{
    return journal_branch_part(journal->db, id);
}

int journal_shrink(struct journal *journal)
{
    int code;

    journal->committing = true;
    code = sqlite3_exec(journal->db, "PRAGMA incremental_vacuum", NULL, NULL, NULL);
    journal->committing = false;
    return journal_errno(code);
}

int journal_truncate_log(struct journal *journal)
{
    return journal_errno(
        sqlite3_wal_checkpoint_v2(journal->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL));
}

int journal_producer_get(struct journal *journal, uint64_t stream, const char *producer,
                         uint64_t *sequence, uint64_t *bytes_acked)
{
    sqlite3_stmt *s = use(journal, PRODUCER_GET);
    int code;

    bind_u64(s, 1, stream);
    sqlite3_bind_text(s, 2, producer, -1, SQLITE_STATIC);
    *sequence = *bytes_acked = 0;
    code = sqlite3_step(s);
    if (code == SQLITE_ROW) {
        *sequence = (uint64_t)sqlite3_column_int64(s, 0);
        *bytes_acked = (uint64_t)sqlite3_column_int64(s, 1);
    }
    sqlite3_reset(s);
    return journal_errno(code);
}

int journal_producer_set(struct journal *journal, uint64_t stream, const char *producer,
                         uint64_t sequence, uint64_t bytes_acked)
{
    sqlite3_stmt *s = use(journal, PRODUCER_SET);

    bind_u64(s, 1, stream);
    sqlite3_bind_text(s, 2, producer, -1, SQLITE_STATIC);
    bind_u64(s, 3, sequence);
    bind_u64(s, 4, bytes_acked);
    return run(s);
}

int journal_item_append(struct journal *journal, uint64_t stream, uint64_t ordinal,
                        const struct journal_item *item)
{
    sqlite3_stmt *s = use(journal, ITEM_APPEND);

    sqlite3_bind_int64(s, 1, item_key(stream, ordinal));
    sqlite3_bind_int(s, 2, (int)item->item.kind);
    bind_u64(s, 3, item->item.detail);
    bind_u64(s, 4, item->time_us);
    bind_u64(s, 5, item->token_from);
    bind_u64(s, 6, item->held_before);
    sqlite3_bind_blob(s, 7, item->item.bytes_count ? item->item.bytes : (const uint8_t *)"",
                      (int)item->item.bytes_count, SQLITE_STATIC);
    return run(s);
}

int journal_item_get(struct journal *journal, uint64_t stream, uint64_t ordinal,
                     struct journal_item *out)
{
    sqlite3_stmt *s = use(journal, ITEM_GET);
    int code;

    bind_u64(s, 1, stream);
    bind_u64(s, 2, ordinal);
    code = sqlite3_step(s);
    if (code != SQLITE_ROW) {
        sqlite3_reset(s);
        return code == SQLITE_DONE ? -ENOENT : journal_errno(code);
    }
    out->item.kind = (enum item_kind)sqlite3_column_int(s, 0);
    out->item.detail = (uint32_t)sqlite3_column_int(s, 1);
    out->time_us = (uint64_t)sqlite3_column_int64(s, 2);
    out->token_from = (uint64_t)sqlite3_column_int64(s, 3);
    out->held_before = (uint32_t)sqlite3_column_int64(s, 4);
    out->item.bytes = sqlite3_column_blob(s, 5);
    out->item.bytes_count = (uint32_t)sqlite3_column_bytes(s, 5);
    out->next = (uint64_t)sqlite3_column_int64(s, 6);
    if (out->next == ordinal)
        out->next++;
    else
        out->item = (struct wire_item){.kind = ITEM_TEXT};
    return 0;
}

int journal_item_put(struct journal *journal, uint64_t stream, uint64_t ordinal,
                     enum item_kind kind, const void *bytes, size_t bytes_count)
{
    sqlite3_stmt *s = use(journal, ITEM_PUT);

    sqlite3_bind_int(s, 1, (int)kind);
    sqlite3_bind_blob(s, 2, bytes_count ? bytes : "", (int)bytes_count, SQLITE_STATIC);
    sqlite3_bind_int64(s, 3, item_key(stream, ordinal));
    return run(s);
}

int journal_item_cut(struct journal *journal, uint64_t stream, uint64_t ordinal, uint32_t bytes)
{
    sqlite3_stmt *s = use(journal, ITEM_CUT);

    sqlite3_bind_int64(s, 1, bytes);
    sqlite3_bind_int64(s, 2, item_key(stream, ordinal));
    return run(s);
}

int journal_item_prepend(struct journal *journal, uint64_t stream, uint64_t ordinal,
                         const void *bytes, size_t bytes_count)
{
    sqlite3_stmt *s = use(journal, ITEM_PREPEND);

    sqlite3_bind_blob(s, 1, bytes, (int)bytes_count, SQLITE_STATIC);
    sqlite3_bind_int64(s, 2, item_key(stream, ordinal));
    return run(s);
}

int journal_item_place(struct journal *journal, uint64_t stream, uint64_t ordinal,
                       uint64_t token_from, uint32_t held_before)
{
    sqlite3_stmt *s = use(journal, ITEM_PLACE);

    bind_u64(s, 1, token_from);
    bind_u64(s, 2, held_before);
    sqlite3_bind_int64(s, 3, item_key(stream, ordinal));
    return run(s);
}

int journal_items_clear(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to,
                        uint64_t token_from, uint32_t held_before)
{
    sqlite3_stmt *s = use(journal, ITEMS_CLEAR);

    if (from >= to)
        return 0;
    sqlite3_bind_int(s, 1, ITEM_TEXT);
    bind_u64(s, 2, token_from);
    bind_u64(s, 3, held_before);
    sqlite3_bind_int64(s, 4, item_key(stream, from));
    sqlite3_bind_int64(s, 5, item_key(stream, to) - 1);
    return run(s);
}

int journal_items_shift(struct journal *journal, uint64_t stream, uint64_t from, uint64_t tokens)
{
    sqlite3_stmt *s = use(journal, ITEMS_SHIFT);

    bind_u64(s, 1, tokens);
    sqlite3_bind_int64(s, 2, item_key(stream, from));
    sqlite3_bind_int64(s, 3, item_key(stream + 1, 0) - 1);
    return run(s);
}

void journal_item_done(struct journal *journal)
{
    sqlite3_reset(journal->statement[ITEM_GET]);
}
