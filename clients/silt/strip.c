/* strip: one stream's memory on a line, oldest first, as questions read it; and its heads. */
#include "clients/silt/strip.h"

#include <math.h>
#include <string.h>

#include "clients/silt/table.h"

void strip_paint(enum paint paint, bool on)
{
    attr_t look = has_colors() ? (attr_t)COLOR_PAIR(paint) : A_REVERSE;

    if (paint == PAINT_HIT)
        look |= A_BOLD;
    if (on)
        attr_on(look, NULL);
    else
        attr_off(look, NULL);
}

static const struct client_tier *tier_of(const struct client_stream_stat *stat, const char *name)
{
    static const struct client_tier none;

    for (size_t i = 0; i < stat->tier_count; i++)
        if (!strcmp(stat->tiers[i].name, name))
            return &stat->tiers[i];
    return &none;
}

/* Nothing behind the line's end: it would wrap. */
static void draw_cell(char cell)
{
    if (getcurx(stdscr) < COLS - 1)
        addch((chtype)cell);
}

/* `filled` of `width` cells in a colour, the rest as dots. */
static void draw_part(enum paint paint, int width, int filled)
{
    for (int i = 0; i < width; i++) {
        strip_paint(paint, i < filled);
        draw_cell(i < filled ? ' ' : '.');
        strip_paint(paint, false);
    }
    draw_cell(' ');
}

static int share(uint64_t part, uint64_t whole, int width)
{
    int cells = whole ? (int)((double)part / (double)whole * width + 0.5) : 0;

    return cells > width ? width : cells;
}

/* Where something just came back from, the cell lights up. */
static void draw_cold(const struct client_stream_stat *stat, int cells, bool hit)
{
    for (int i = 0; i < cells; i++) {
        bool lit = false;

        for (size_t j = 0; j < stat->recalled_count && hit; j++)
            lit |= share(stat->recalled[j], stat->segments_cold, cells - 1) == i;
        strip_paint(lit ? PAINT_HIT : PAINT_COLD, true);
        draw_cell(lit ? '*' : ' ');
        strip_paint(lit ? PAINT_HIT : PAINT_COLD, false);
    }
    if (cells)
        draw_cell(' ');
}

/* A part for each segment; where these would be too narrow, one part for all. */
static void draw_ring(const struct client_stream_stat *stat, int width)
{
    int segments = (int)stat->ring_segments, each = segments ? width / segments - 1 : 0;

    if (each < 1)
        draw_part(PAINT_RING, width, share(stat->segments_ring, stat->ring_segments, width));
    for (int s = 0; s < segments && each >= 1; s++)
        draw_part(PAINT_RING, each, (uint64_t)s < stat->segments_ring ? each : 0);
}

/* Parts are as wide as their plans, pins as what is pinned of theirs; cold ones by the logarithm of
 * their number. */
void strip_draw(const struct client_stream_stat *stat, bool hit, int line)
{
    static const struct {
        const char *name;
        enum paint paint;
    } parts[] = {{"sinks", PAINT_SINKS},
                 {"pins", PAINT_PINS},
                 {"summary", PAINT_SUMMARY},
                 {"ring", PAINT_RING},
                 {"window", PAINT_WINDOW}};
    enum { PART_COUNT = sizeof parts / sizeof *parts };
    int cold = stat->segments_cold ? 2 + (int)log2((double)stat->segments_cold) : 0;
    int width = COLS - cold - 8 > 20 ? COLS - cold - 8 : 20;
    uint64_t plan[PART_COUNT], used[PART_COUNT], sum = 0;

    for (int i = 0; i < PART_COUNT; i++) {
        const struct client_tier *tier = tier_of(stat, parts[i].name);

        used[i] = tier->bytes_used;
        plan[i] = tier->bytes_plan;
        if (parts[i].paint == PAINT_PINS && stat->pins.tokens_max)
            plan[i] = plan[i] * stat->pin_tokens / stat->pins.tokens_max;
        sum += plan[i];
    }
    move(line, 0);
    draw_cold(stat, cold, hit);
    for (int i = 0; i < PART_COUNT; i++) {
        int cells = share(plan[i], sum, width);

        cells = cells ? cells : 1;
        if (parts[i].paint == PAINT_RING)
            draw_ring(stat, cells);
        else if (plan[i])
            draw_part(parts[i].paint, cells, share(used[i], plan[i], cells));
    }
    move(line + 1, 0);
    for (enum paint paint = PAINT_COLD; paint <= PAINT_WINDOW; paint++) {
        static const char *const names[] = {"",        "cold", "sinks", "pins",
                                            "summary", "ring", "window"};

        draw_part(paint, 2, 2);
        table_part("%-9s", names[paint]);
    }
}

/* A digit for each head: how many tokens an entry stands for. */
void strip_heads(const struct client_stream_stat *stat, int line)
{
    if (!stat->head_ratio_count || stat->head_ratio_count < (size_t)stat->layers * stat->kv_heads)
        return;
    move(line, 0);
    table_cut("tokens an entry stands for, a row for each KV head, a column for each layer");
    for (uint32_t h = 0; h < stat->kv_heads && line + 1 + (int)h < LINES; h++)
        for (uint32_t l = 0; l < stat->layers && (int)l < COLS - 1; l++) {
            double ratio = stat->head_ratio[(size_t)l * stat->kv_heads + h];

            mvaddch(line + 1 + (int)h, (int)l,
                    ratio > 9.5 ? '+' : (chtype)('0' + (int)(ratio + 0.5)));
        }
}
