#include "daemon/journal_pin.h"

#include <errno.h>

#include "daemon/journal_branch.h"
#include "daemon/journal_check.h"

/* Pins are rare: a statement is made for each call. */
static int prepare(sqlite3 *db, const char *sql, sqlite3_stmt **out)
{
    return journal_errno(sqlite3_prepare_v2(db, sql, -1, out, NULL));
}

static int run(sqlite3 *db, const char *sql, const uint64_t *values, int count)
{
    sqlite3_stmt *s;
    int result = prepare(db, sql, &s);

    if (result)
        return result;
    for (int i = 0; i < count; i++)
        sqlite3_bind_int64(s, i + 1, (int64_t)values[i]);
    result = journal_errno(sqlite3_step(s));
    sqlite3_finalize(s);
    return result;
}

int journal_pin_each(struct journal *journal, uint64_t stream, journal_pin_fn *each, void *user)
{
    sqlite3_stmt *s;
    int result = prepare(journal_db(journal),
                         "SELECT first, last, at, until, tokens FROM pins WHERE stream = ? "
                         "ORDER BY at, first",
                         &s),
        code = SQLITE_DONE;

    if (result)
        return result;
    sqlite3_bind_int64(s, 1, (int64_t)stream);
    while (!result && (code = sqlite3_step(s)) == SQLITE_ROW) {
        struct journal_pin pin = {.from = (uint64_t)sqlite3_column_int64(s, 0),
                                  .to = (uint64_t)sqlite3_column_int64(s, 1),
                                  .at = (uint64_t)sqlite3_column_int64(s, 2),
                                  .until = UINT64_MAX};
        uint64_t bytes = (uint64_t)sqlite3_column_bytes(s, 4);

        if (sqlite3_column_type(s, 3) != SQLITE_NULL)
            pin.until = (uint64_t)sqlite3_column_int64(s, 3);
        pin.before = (uint32_t)(bytes / sizeof(int32_t) - (pin.to - pin.from));
        if (pin.from >= pin.to || bytes / sizeof(int32_t) < pin.to - pin.from)
            result = -EBADMSG;
        else
            result = each(user, &pin, sqlite3_column_blob(s, 4));
    }
    sqlite3_finalize(s);
    return result ? result : journal_errno(code);
}

int journal_pin_add(struct journal *journal, uint64_t stream, const struct journal_pin *pin,
                    const int32_t *tokens)
{
    const uint64_t same[] = {stream, pin->from, pin->to, pin->at};
    sqlite3_stmt *s;
    /* One that was let go before it came to be seen, as often as that is done. */
    int result =
        run(journal_db(journal),
            "DELETE FROM pins WHERE stream = ? AND first = ? AND last = ? AND at = ?", same, 4);

    if (!result)
        result =
            prepare(journal_db(journal),
                    "INSERT INTO pins (stream, first, last, at, tokens) VALUES (?,?,?,?,?)", &s);
    if (result)
        return result;
    sqlite3_bind_int64(s, 1, (int64_t)stream);
    sqlite3_bind_int64(s, 2, (int64_t)pin->from);
    sqlite3_bind_int64(s, 3, (int64_t)pin->to);
    sqlite3_bind_int64(s, 4, (int64_t)pin->at);
    sqlite3_bind_blob(s, 5, tokens, (int)((pin->before + pin->to - pin->from) * sizeof *tokens),
                      SQLITE_STATIC);
    result = journal_errno(sqlite3_step(s));
    sqlite3_finalize(s);
    return result;
}

int journal_pin_end(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to,
                    uint64_t until)
{
    return run(journal_db(journal),
               "UPDATE pins SET until = ?4 WHERE stream = ?1 AND first = ?2 AND last = ?3 AND "
               "until IS NULL",
               (uint64_t[]){stream, from, to, until}, 4);
}

int journal_pin_branch(sqlite3 *db, uint64_t parent, uint64_t branch)
{
    return run(db,
               "INSERT INTO pins (stream, first, last, at, until, tokens) "
               "SELECT ?2, first, last, at, until, tokens FROM pins WHERE stream = ?1",
               (uint64_t[]){parent, branch}, 2);
}

int journal_pin_drop(sqlite3 *db, uint64_t stream)
{
    return run(db, "DELETE FROM pins WHERE stream = ?", &stream, 1);
}

/* ?1 stream, ?2 from, ?3 to, ?4 chunk. Chunk starts stay chunk starts, and behind the window of
 * what is pinned. */
int journal_pin_forget(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to,
                       uint32_t chunk_tokens, uint32_t sinks)
{
    static const char *const steps[] = {
        "DELETE FROM pins WHERE stream = ?1 AND first < ?3 AND last > ?2 AND ?4",
        "UPDATE pins SET first = first - (?3 - ?2), last = last - (?3 - ?2) WHERE stream = ?1 "
        "AND first >= ?3 AND ?4",
        "UPDATE pins SET at = (CASE WHEN at >= ?3 THEN at - (?3 - ?2) WHEN at > ?2 THEN ?2 ELSE "
        "at END + ?4 - 1) / ?4 * ?4, until = (CASE WHEN until >= ?3 THEN until - (?3 - ?2) WHEN "
        "until > ?2 THEN ?2 ELSE until END + ?4 - 1) / ?4 * ?4 WHERE stream = ?1",
        "UPDATE pins SET at = max(at, ((last - 1) / ?4 + 2) * ?4) WHERE stream = ?1 AND ?2 < ?3",
    };
    const uint64_t values[] = {stream, from, to, chunk_tokens};
    int result = 0;

    if (from < sinks) /* all of them have some of it */
        return journal_pin_drop(journal_db(journal), stream);
    for (size_t i = 0; !result && i < sizeof steps / sizeof *steps; i++)
        result = run(journal_db(journal), steps[i], values, 4);
    return result;
}
