/*
 * journal_branch: streams that share the first part of another's journal.
 *
 * Items lie under the stream that wrote them. A branch has a row in `spans` for each run of items
 * that it has of others: items [first, last) lie under `strand`. Everything from its own start on
 * lies under its own id, so both sides go on without knowing of each other. What a stream leaves
 * behind when it is removed stays as long as a branch has it.
 */
#ifndef SILT_DAEMON_JOURNAL_BRANCH_H
#define SILT_DAEMON_JOURNAL_BRANCH_H

#include <sqlite3.h>

#include "daemon/journal.h"

enum { ORDINAL_BITS = 40 }; /* of an item's key; the stream's id stands above them */

#define JOURNAL_SPANS                                                                              \
    "CREATE TABLE IF NOT EXISTS spans (stream INTEGER, first INTEGER, last INTEGER,"               \
    " strand INTEGER, PRIMARY KEY (stream, first)) WITHOUT ROWID;"                                 \
    "CREATE INDEX IF NOT EXISTS spans_strand ON spans (strand);"

/* The key of item ?2 of stream ?1. */
#define JOURNAL_ITEM_KEY                                                                           \
    "(coalesce((SELECT strand FROM spans WHERE stream = ?1 AND first <= ?2 AND last > ?2), ?1)"    \
    " << 40 | ?2)"

/* Its row; of one that was trimmed away the next that is left. The last column is which it is. */
#define JOURNAL_ITEM_FROM(columns)                                                                 \
    "SELECT " columns ", key & 0xffffffffff FROM items WHERE key BETWEEN " JOURNAL_ITEM_KEY        \
    " AND " JOURNAL_ITEM_KEY " | 0xffffffffff ORDER BY key LIMIT 1"

/* For the files of the journal alone. */
sqlite3 *journal_db(struct journal *journal);
/* Within a transaction, as the next. */
int journal_branch_make(sqlite3 *db, uint64_t parent, uint64_t branch);
/* The stream's row is gone: so go its spans, and all items that nobody has any more. */
int journal_branch_drop(sqlite3 *db, uint64_t stream);
/* Items that the stream shares are copied: it has its own, and its branches have theirs. */
int journal_branch_part(sqlite3 *db, uint64_t stream);

#endif
