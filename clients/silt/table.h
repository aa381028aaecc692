/* table: the streams as rows, in as many columns as the terminal has room for; for top. */
#ifndef SILT_TABLE_H
#define SILT_TABLE_H

#include <curses.h>

#include "clients/silt/silt.h"

enum sort { BY_NAME, BY_TOKENS, BY_RATE, BY_LAG, BY_MEMORY, SORT_COUNT };

struct row {
    char stream[132];
    uint64_t acked, computed, lag, used, plan, disk, cold, pinned;
    double rate, ratio, loss; /* loss NAN: not measured */
    bool degraded;
};
/* Negative, 0, positive as a stands before, with or behind b. */
int table_compare(enum sort sort, const struct row *a, const struct row *b);
/* Columns by their worth, as many as COLS holds; the one that it is sorted by is marked. */
void table_head(enum sort sort, int line);
void table_row(const struct row *row, int line, bool chosen);

/* As printw from the cursor on, in what is left of its line: part whole or not at all, cut as far
 * as there is room. Nothing wraps. */
void table_part(const char *format, ...) __attribute__((format(printf, 1, 2)));
void table_cut(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
