#include "daemon/changes.h"

#include <sqlite3.h>

#include "daemon/journal_branch.h"
#include "daemon/journal_check.h"

const struct change *changes_find(const struct changes *changes, uint64_t key)
{
    for (uint32_t i = 0; key && i < CHANGES_MAX; i++)
        if (changes->ring[i].key == key)
            return &changes->ring[i];
    return NULL;
}

void changes_begin(struct changes *changes, uint64_t key)
{
    if (!key || changes_find(changes, key))
        return;
    changes->ring[changes->next] = (struct change){.key = key};
    changes->next = (changes->next + 1) % CHANGES_MAX;
}

void changes_end(struct changes *changes, uint64_t key, bool done, uint64_t tokens)
{
    changes_begin(changes, key); /* it may have been overwritten on its way */
    for (uint32_t i = 0; key && i < CHANGES_MAX; i++)
        if (changes->ring[i].key == key)
            changes->ring[i] = (struct change){done ? key : 0, tokens, done};
}

/* They are rare: a statement is made for each call. */
int changes_load(struct changes *changes, struct journal *journal)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(journal_db(journal),
                                  "SELECT key, tokens FROM changes ORDER BY ordinal", -1, &s, NULL);

    if (code)
        return journal_errno(code);
    while ((code = sqlite3_step(s)) == SQLITE_ROW)
        changes_end(changes, (uint64_t)sqlite3_column_int64(s, 0), true,
                    (uint64_t)sqlite3_column_int64(s, 1));
    sqlite3_finalize(s);
    return journal_errno(code);
}

int journal_change_add(struct journal *journal, uint64_t key, uint64_t tokens)
{
    sqlite3 *db = journal_db(journal);
    sqlite3_stmt *s;
    int code =
        sqlite3_prepare_v2(db, "INSERT INTO changes (key, tokens) VALUES (?,?)", -1, &s, NULL);

    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, (int64_t)key);
    sqlite3_bind_int64(s, 2, (int64_t)tokens);
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    if (code != SQLITE_DONE)
        return journal_errno(code);
    code = sqlite3_prepare_v2(db,
                              "DELETE FROM changes WHERE ordinal <= (SELECT max(ordinal) FROM "
                              "changes) - ?",
                              -1, &s, NULL);
    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, CHANGES_MAX);
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    return journal_errno(code);
}
