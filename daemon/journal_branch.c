/* Branches are made and dropped, and items trimmed away, seldom: the statements for that are
 * prepared as they are needed. */
#include "daemon/journal_branch.h"

#include <errno.h>

#include "daemon/journal_check.h"

_Static_assert(ORDINAL_BITS == 40, "JOURNAL_ITEM_KEY shifts by as much");

enum {
    STRANDS_MAX = 64,    /* looked at in one round */
    PRODUCERS_MAX = 256, /* copied in one */
};

/* Runs one statement over up to three numbers. */
static int run(sqlite3 *db, const char *text, uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t value[] = {a, b, c};
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(db, text, -1, &s, NULL);

    if (code)
        return journal_errno(code);
    for (int i = 0; i < 3 && i < sqlite3_bind_parameter_count(s); i++)
        sqlite3_bind_int64(s, i + 1, (int64_t)value[i]);
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    return journal_errno(code);
}

/* SQLite holds in memory what one statement takes from a table and puts into it. */
static int copy_producers(sqlite3 *db, uint64_t parent, uint64_t branch)
{
    int result;

    do
        result = run(db,
                     "INSERT INTO producers SELECT ?2, producer, sequence, bytes FROM producers "
                     "WHERE stream = ?1 AND producer > coalesce((SELECT max(producer) FROM "
                     "producers WHERE stream = ?2), '') ORDER BY producer LIMIT ?3",
                     parent, branch, PRODUCERS_MAX);
    while (!result && sqlite3_changes(db) == PRODUCERS_MAX);
    return result;
}

int journal_branch_make(sqlite3 *db, uint64_t parent, uint64_t branch)
{
    int result = run(db,
                     "INSERT INTO spans SELECT ?2, first, last, strand FROM spans "
                     "WHERE stream = ?1",
                     parent, branch, 0);

    if (!result)
        result = run(db,
                     "INSERT INTO spans SELECT ?2, own, items, ?1 FROM (SELECT items, coalesce("
                     "(SELECT max(last) FROM spans WHERE stream = ?1), 0) AS own "
                     "FROM streams WHERE id = ?1) WHERE items > own",
                     parent, branch, 0);
    return result ? result : copy_producers(db, parent, branch);
}

/* Items of a strand behind the last that a branch has. */
static int trim_strand(sqlite3 *db, uint64_t strand)
{
    return run(db,
               "DELETE FROM items WHERE key BETWEEN (?1 << 40 | coalesce((SELECT max(last) FROM "
               "spans WHERE strand = ?1), 0)) AND ((?1 + 1) << 40) - 1",
               strand, 0, 0);
}

/* What a statement over one stream names, at most STRANDS_MAX. */
static int list(sqlite3 *db, const char *text, uint64_t stream, uint64_t *out, uint32_t *count)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(db, text, -1, &s, NULL);

    *count = 0;
    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, (int64_t)stream);
    while ((code = sqlite3_step(s)) == SQLITE_ROW && *count < STRANDS_MAX)
        out[(*count)++] = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return journal_errno(code);
}

bool journal_stream_shares(struct journal *journal, uint64_t stream)
{
    uint64_t found[STRANDS_MAX];
    uint32_t count;

    (void)list(journal_db(journal), "SELECT 1 FROM spans WHERE stream = ?1 OR strand = ?1 LIMIT 1",
               stream, found, &count);
    return count > 0;
}

/* The stream has nothing of others any more: what only it had of streams that are gone, goes. */
static int drop_spans(sqlite3 *db, uint64_t stream)
{
    uint64_t strand[STRANDS_MAX];
    uint32_t count;
    int result;

    do {
        result = list(db,
                      "SELECT strand FROM spans WHERE stream = ? AND strand NOT IN "
                      "(SELECT id FROM streams)",
                      stream, strand, &count);
        for (uint32_t i = 0; i < count && !result; i++) {
            result = run(db, "DELETE FROM spans WHERE stream = ?1 AND strand = ?2", stream,
                         strand[i], 0);
            if (!result)
                result = trim_strand(db, strand[i]);
        }
    } while (!result && count == STRANDS_MAX);
    return result ? result : run(db, "DELETE FROM spans WHERE stream = ?1", stream, 0, 0);
}

int journal_branch_drop(sqlite3 *db, uint64_t stream)
{
    int result = drop_spans(db, stream);

    return result ? result : trim_strand(db, stream);
}

/* One item at a time, for the same reason; those that were trimmed away are passed over. */
static int copy_span(sqlite3 *db, uint64_t stream, uint64_t strand, uint64_t first, uint64_t last)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(db,
                                  "INSERT INTO items SELECT ?1 << 40 | (key & 0xffffffffff), kind, "
                                  "detail, time_us, token_from, held_before, payload FROM items "
                                  "WHERE key >= ?2 << 40 | ?3 AND key < ?2 << 40 | ?4 "
                                  "ORDER BY key LIMIT 1",
                                  -1, &s, NULL);

    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, (int64_t)stream);
    sqlite3_bind_int64(s, 2, (int64_t)strand);
    sqlite3_bind_int64(s, 4, (int64_t)last);
    for (uint64_t i = first; i < last && (!code || code == SQLITE_DONE);) {
        sqlite3_bind_int64(s, 3, (int64_t)i);
        code = sqlite3_step(s);
        sqlite3_reset(s);
        i = (uint64_t)sqlite3_last_insert_rowid(db) % (UINT64_C(1) << ORDINAL_BITS) + 1;
        i = sqlite3_changes(db) ? i : last;
    }
    sqlite3_finalize(s);
    return journal_errno(code);
}

static int copy_items(sqlite3 *db, uint64_t stream)
{
    sqlite3_stmt *s;
    int result = 0, code = sqlite3_prepare_v2(
                        db, "SELECT strand, first, last FROM spans WHERE stream = ?", -1, &s, NULL);

    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, (int64_t)stream);
    while (!result && (code = sqlite3_step(s)) == SQLITE_ROW)
        result =
            copy_span(db, stream, (uint64_t)sqlite3_column_int64(s, 0),
                      (uint64_t)sqlite3_column_int64(s, 1), (uint64_t)sqlite3_column_int64(s, 2));
    sqlite3_finalize(s);
    result = result ? result : journal_errno(code);
    return result ? result : drop_spans(db, stream);
}

int journal_branch_part(sqlite3 *db, uint64_t stream)
{
    uint64_t branch[STRANDS_MAX];
    uint32_t count;
    int result = copy_items(db, stream);

    do {
        if (!result)
            result = list(db, "SELECT DISTINCT stream FROM spans WHERE strand = ?", stream, branch,
                          &count);
        for (uint32_t i = 0; i < count && !result; i++)
            result = copy_items(db, branch[i]);
    } while (!result && count == STRANDS_MAX);
    return result;
}

int journal_items_drop(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to)
{
    return run(journal_db(journal),
               "DELETE FROM items WHERE key >= ?1 << 40 | ?2 AND key < ?1 << 40 | ?3", stream, from,
               to);
}
