#include "daemon/changes.h"

#include <sqlite3.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/journal_branch.h"
#include "daemon/journal_check.h"

static uint64_t owner_of(uint64_t key)
{
    return key >> CHANGES_KEY_SHIFT;
}

uint64_t changes_key(uint64_t change, const char *owner)
{
    uint64_t low = change & ((UINT64_C(1) << CHANGES_KEY_SHIFT) - 1), high = 0;

    if (!change)
        return 0;
    if (*owner)
        high = 1 + XXH3_64bits(owner, strlen(owner)) % (UINT64_MAX >> CHANGES_KEY_SHIFT);
    return high << CHANGES_KEY_SHIFT | (low ? low : 1);
}

const struct change *changes_find(const struct changes *changes, uint64_t key)
{
    for (uint32_t i = 0; key && i < CHANGES_MAX; i++)
        if (changes->known[i].key == key)
            return &changes->known[i];
    return NULL;
}

/* One that is free, or the oldest's: its own where a key has all it may. */
static struct change *place_for(struct changes *changes, uint64_t key)
{
    struct change *oldest = NULL, *own = NULL, *free = NULL;
    uint32_t count = 0;

    for (uint32_t i = 0; i < CHANGES_MAX; i++) {
        struct change *c = &changes->known[i];
        bool is_own = c->key && owner_of(key) && owner_of(c->key) == owner_of(key);

        count += is_own;
        if (!c->key)
            free = c;
        if (is_own && (!own || c->order < own->order))
            own = c;
        if (!oldest || c->order < oldest->order)
            oldest = c;
    }
    return count >= CHANGES_OF_KEY_MAX ? own : free ? free : oldest;
}

void changes_begin(struct changes *changes, uint64_t key)
{
    if (key && !changes_find(changes, key))
        *place_for(changes, key) = (struct change){.key = key, .order = changes->orders++};
}

void changes_end(struct changes *changes, uint64_t key, bool done, uint64_t tokens)
{
    changes_begin(changes, key); /* it may have been overwritten on its way */
    for (uint32_t i = 0; key && i < CHANGES_MAX; i++)
        if (changes->known[i].key == key) {
            changes->known[i].key = done ? key : 0;
            changes->known[i].tokens = tokens;
            changes->known[i].done = done;
        }
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

/* Of the oldest those go that there is no place for: of one key, and of all. */
static int drop_oldest(sqlite3 *db, uint64_t key)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(
        db,
        "DELETE FROM changes WHERE (?1 AND key >> 48 & 65535 = ?1 AND ordinal <= (SELECT ordinal "
        "FROM changes WHERE key >> 48 & 65535 = ?1 ORDER BY ordinal DESC LIMIT 1 OFFSET ?2)) OR "
        "ordinal <= (SELECT ordinal FROM changes ORDER BY ordinal DESC LIMIT 1 OFFSET ?3)",
        -1, &s, NULL);

    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, (int64_t)owner_of(key));
    sqlite3_bind_int64(s, 2, CHANGES_OF_KEY_MAX);
    sqlite3_bind_int64(s, 3, CHANGES_MAX);
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    return journal_errno(code);
}
_Static_assert(CHANGES_KEY_SHIFT == 48, "the statement shifts by as much");

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
    return code == SQLITE_DONE ? drop_oldest(db, key) : journal_errno(code);
}
