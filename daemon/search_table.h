/* search_table: the database of one stream's words and its recall keys, opened, checked, removed.
 */
#ifndef SILT_DAEMON_SEARCH_TABLE_H
#define SILT_DAEMON_SEARCH_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include <sqlite3.h>

#include "daemon/recall_keys.h"

enum { WORD_STATEMENTS_MAX = 12 };

struct word_table {
    uint64_t stream_id; /* 0: free */
    uint64_t touched;
    sqlite3 *db;
    sqlite3_stmt *statement[WORD_STATEMENTS_MAX];
    fts5_tokenizer tokenizer; /* the words' */
    Fts5Tokenizer *stemmer;
    uint64_t chunks; /* in the database: it has no gaps */
    /* The file of recall keys beside it. */
    struct recall_keys *recall; /* NULL: none are kept, or this one cannot be had */
    uint32_t key_file;
    uint64_t key_chunks; /* that have a key; UINT64_MAX: none are kept */
};

struct postings; /* what gather() in a statement fills */

/* Of t->stream_id, made where it is missing. -ESTALE: of another version; -EIO: it cannot be used.
 * Then, too, it is to be closed. */
int word_table_open(struct word_table *t, const char *folder, int version,
                    struct postings *postings, const char *const *statement_text,
                    int statement_count);
/* Calls see(user, …) for each word of a text as the index has it, as Fts5Tokenizer's xTokenize. */
int word_table_stems(const struct word_table *t, const char *text, size_t bytes_count, void *user,
                     int (*see)(void *, int, const char *, int, int, int));
void word_table_close(struct word_table *t);
/* For good: after a power loss, too. */
int word_table_unlink(const char *folder, uint64_t stream_id);
/* Opens the recall keys of an open table in place `file` of keys (NULL: none are kept). */
void word_table_open_keys(struct word_table *t, const char *folder, struct recall_keys *keys,
                          uint32_t file);
/* They are damaged: they begin again from nothing. */
void word_table_drop_keys(struct word_table *t, const char *folder);
/* The last error was rot, or what cannot be read; not a disk that is full. */
bool word_table_damaged(const struct word_table *t);

#endif
