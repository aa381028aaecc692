/* What journal_open does before anything is read: tables, format, model, adapter, kernel path. */
#ifndef SILT_DAEMON_JOURNAL_CHECK_H
#define SILT_DAEMON_JOURNAL_CHECK_H

#include <sqlite3.h>

#include "daemon/journal.h"

/* Before format 2 pages had no hash, so they cannot be checked now: -ESTALE. */
int journal_check_pages(const char *path, char *error, size_t error_bytes);
/* Makes the tables of a new journal. -ESTALE with the way out in error: it is not this siltd's. */
int journal_check(sqlite3 *db, const struct journal_options *options, uint64_t *epoch, char *error,
                  size_t error_bytes);
int journal_errno(int code); /* of SQLite's codes */

/* Pages of the transaction in work that found no room in the cache and went to the log, since this
 * was asked last. */
int journal_spills(sqlite3 *db);

#endif
