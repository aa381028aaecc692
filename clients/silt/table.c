/* table: the streams as rows, in as many columns as the terminal has room for. */
#include "clients/silt/table.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "clients/silt/strip.h"

enum column { TOKENS, RATE, LAG, RATIO, MEMORY, PLAN, PINS, COLD, DISK, LOSS, COLUMN_COUNT };
enum { NAME_LEAST = 16, NAME_MOST = 48 };
static const struct {
    const char *head;
    int width; /* with the space before it; the heading and its mark fit */
    enum sort sort;
} columns[COLUMN_COUNT] = {
    [TOKENS] = {"tokens", 14, BY_TOKENS}, [RATE] = {"rate/s", 9, BY_RATE},
    [LAG] = {"lag", 10, BY_LAG},          [RATIO] = {"ratio", 7, SORT_COUNT},
    [MEMORY] = {"memory", 9, BY_MEMORY},  [PLAN] = {"plan", 9, SORT_COUNT},
    [PINS] = {"pinned", 7, SORT_COUNT},   [COLD] = {"cold", 8, SORT_COUNT},
    [DISK] = {"disk", 9, SORT_COUNT},     [LOSS] = {"loss", 8, SORT_COUNT},
};
/* The first of these stay longest. */
static const enum column worth[COLUMN_COUNT] = {TOKENS, LAG,  RATE, MEMORY, RATIO,
                                                LOSS,   DISK, PLAN, COLD,   PINS};

static int by_more(double a, double b)
{
    return a < b ? 1 : a > b ? -1 : 0;
}

int table_compare(enum sort sort, const struct row *a, const struct row *b)
{
    int r = 0;

    switch (sort) {
    case BY_TOKENS:
        r = by_more((double)a->acked, (double)b->acked);
        break;
    case BY_RATE:
        r = by_more(a->rate, b->rate);
        break;
    case BY_LAG:
        r = by_more((double)a->lag, (double)b->lag);
        break;
    case BY_MEMORY:
        r = by_more((double)a->used, (double)b->used);
        break;
    case BY_NAME:
    case SORT_COUNT:
        break;
    }
    return r ? r : strcmp(a->stream, b->stream);
}

/* Which columns this terminal has room for; returns how wide the name may be. */
static int columns_fit(bool shown[COLUMN_COUNT])
{
    int left = COLS - 1 - NAME_LEAST; /* the last cell stays free: it would wrap the cursor */
    bool room = true;                 /* a lesser column does not take a better one's place */

    for (int i = 0; i < COLUMN_COUNT; i++) {
        room = room && columns[worth[i]].width <= left;
        shown[worth[i]] = room;
        left -= room ? columns[worth[i]].width : 0;
    }
    return left + NAME_LEAST > NAME_MOST ? NAME_MOST : left + NAME_LEAST;
}

/* One heading of `width`, to the right unless it is the name's. */
static void draw_head(const char *head, int width, bool left, bool marked)
{
    int length = (int)strlen(head) + marked;

    printw("%*s", left ? 0 : width - length, "");
    if (marked)
        attr_on(A_REVERSE, NULL);
    printw("%s%s", marked ? "*" : "", head);
    if (marked)
        attr_off(A_REVERSE, NULL);
    printw("%*s", left ? width - length : 0, "");
}

void table_head(enum sort sort, int line)
{
    bool shown[COLUMN_COUNT];
    int name = columns_fit(shown);

    move(line, 0);
    attr_on(A_BOLD, NULL);
    draw_head("stream", name, true, sort == BY_NAME);
    for (enum column c = 0; c < COLUMN_COUNT; c++)
        if (shown[c])
            draw_head(columns[c].head, columns[c].width, false, sort == columns[c].sort);
    attr_off(A_BOLD, NULL);
}

/* In thousands, millions … where the digits would not fit: a cut number would be another number. */
static const char *count_fit(char *out, uint64_t count, int width)
{
    static const char units[] = "kMGTPE";

    text_count(out, count);
    for (int i = 0; (int)strlen(out) > width && units[i]; i++) {
        char thousands[TEXT_BYTES];

        count /= 1000;
        snprintf(out, TEXT_BYTES, "%.*s%c", TEXT_BYTES - 2, text_count(thousands, count), units[i]);
    }
    return out;
}

static const char *cell(const struct row *row, enum column column, char *out)
{
    int width = columns[column].width - 1;

    switch (column) {
    case TOKENS:
        return count_fit(out, row->acked, width);
    case RATE:
        return count_fit(out, (uint64_t)llround(row->rate), width);
    case LAG:
        return count_fit(out, row->lag, width);
    case RATIO:
        snprintf(out, TEXT_BYTES, row->ratio > 0 ? "%.1fx" : "-", row->ratio);
        return out;
    case MEMORY:
        return text_bytes(out, row->used);
    case PLAN:
        return text_bytes(out, row->plan);
    case PINS:
        return count_fit(out, row->pinned, width);
    case COLD:
        return count_fit(out, row->cold, width);
    case DISK:
        return text_bytes(out, row->disk);
    case LOSS:
        if (isnan(row->loss))
            return "-";
        snprintf(out, TEXT_BYTES, "%+.3f", row->loss);
        return out;
    case COLUMN_COUNT:
        break;
    }
    return "";
}

void table_row(const struct row *row, int line, bool chosen)
{
    bool shown[COLUMN_COUNT];
    int name = columns_fit(shown);
    char text[TEXT_BYTES];

    move(line, 0);
    if (row->degraded)
        strip_paint(PAINT_BAD, true);
    if (chosen)
        attr_on(A_REVERSE, NULL);
    printw("%s%-*.*s", row->degraded ? "!" : "", name - row->degraded, name - row->degraded,
           row->stream);
    for (enum column c = 0; c < COLUMN_COUNT; c++) {
        bool behind = c == LAG && row->lag && !chosen;

        if (!shown[c])
            continue;
        if (behind)
            strip_paint(PAINT_LAG, true);
        printw("%*s", columns[c].width, cell(row, c, text));
        if (behind)
            strip_paint(PAINT_LAG, false);
    }
    if (row->degraded)
        strip_paint(PAINT_BAD, false);
    if (chosen)
        attr_off(A_REVERSE, NULL);
}

static int text_make(char *out, size_t out_bytes, const char *format, va_list args)
{
    vsnprintf(out, out_bytes, format, args);
    return COLS - 1 - getcurx(stdscr);
}

void table_part(const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    if (text_make(text, sizeof text, format, args) >= (int)strlen(text))
        addstr(text);
    va_end(args);
}

void table_cut(const char *format, ...)
{
    char text[512];
    va_list args;
    int left;

    va_start(args, format);
    left = text_make(text, sizeof text, format, args);
    va_end(args);
    if (left > 0)
        addnstr(text, left);
}
