/* search_table: the database of one stream's words, opened, checked and removed. */
#ifndef SILT_DAEMON_SEARCH_TABLE_H
#define SILT_DAEMON_SEARCH_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include <sqlite3.h>

enum { WORD_STATEMENTS_MAX = 12 };

struct word_table {
    uint64_t stream_id; /* 0: free */
    uint64_t touched;
    sqlite3 *db;
    sqlite3_stmt *statement[WORD_STATEMENTS_MAX];
};

/* Of t->stream_id, made where it is missing. -ESTALE: of another version; -EIO: it cannot be used.
 * Then, too, it is to be closed. */
int word_table_open(struct word_table *t, const char *folder, int version,
                    const char *const *statement_text, int statement_count);
void word_table_close(struct word_table *t);
int word_table_unlink(const char *folder, uint64_t stream_id);
/* The last error was rot, not a disk that is full or gone. */
bool word_table_damaged(const struct word_table *t);

#endif
