/* strip: one stream's memory on a line, oldest first, as questions read it; and its heads. */
#include "clients/silt/strip.h"

#include <math.h>
#include <string.h>

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

/* `filled` of `width` cells in a colour, the rest as dots. */
static void draw_part(enum paint paint, int width, int filled)
{
    for (int i = 0; i < width; i++) {
        strip_paint(paint, i < filled);
        addch(i < filled ? ' ' : '.');
        strip_paint(paint, false);
    }
    addch(' ');
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
        addch(lit ? '*' : ' ');
        strip_paint(lit ? PAINT_HIT : PAINT_COLD, false);
    }
    if (cells)
        addch(' ');
}

/* Parts are as wide as their plans; cold ones by the logarithm of their number. */
void strip_draw(const struct client_stream_stat *stat, bool hit, int line)
{
    static const struct {
        const char *name;
        enum paint paint;
    } parts[] = {{"sinks", PAINT_SINKS}, {"summary", PAINT_SUMMARY}, {"window", PAINT_WINDOW}};
    int width = COLS - 24 > 20 ? COLS - 24 : 20;
    int cold = stat->segments_cold ? 2 + (int)log2((double)stat->segments_cold) : 0;
    const struct client_tier *ring = tier_of(stat, "ring");
    uint64_t plan = ring->bytes_plan;

    for (int i = 0; i < 3; i++)
        plan += tier_of(stat, parts[i].name)->bytes_plan;
    move(line, 0);
    draw_cold(stat, cold, hit);
    for (int i = 0; i < 3; i++) {
        const struct client_tier *tier = tier_of(stat, parts[i].name);
        int cells = share(tier->bytes_plan, plan, width);

        if (i == 2) { /* the ring stands before the window */
            int segments = (int)stat->ring_segments;
            int each = share(ring->bytes_plan, plan, width) / (segments ? segments : 1);

            for (int s = 0; s < segments; s++)
                draw_part(PAINT_RING, each > 1 ? each - 1 : 1,
                          (uint64_t)s < stat->segments_ring ? each > 1 ? each - 1 : 1 : 0);
        }
        draw_part(parts[i].paint, cells ? cells : 1,
                  share(tier->bytes_used, tier->bytes_plan, cells ? cells : 1));
    }
    move(line + 1, 0);
    for (enum paint paint = PAINT_COLD; paint <= PAINT_WINDOW; paint++) {
        static const char *const names[] = {"", "cold", "sinks", "summary", "ring", "window"};

        draw_part(paint, 2, 2);
        printw("%s   ", names[paint]);
    }
}

/* A digit for each head: how many tokens an entry stands for. */
void strip_heads(const struct client_stream_stat *stat, int line)
{
    if (!stat->head_ratio_count || stat->head_ratio_count < (size_t)stat->layers * stat->kv_heads)
        return;
    mvprintw(line, 0,
             "tokens an entry stands for, a row for each KV head, a column for each layer");
    for (uint32_t h = 0; h < stat->kv_heads && line + 1 + (int)h < LINES; h++)
        for (uint32_t l = 0; l < stat->layers && (int)l < COLS; l++) {
            double ratio = stat->head_ratio[(size_t)l * stat->kv_heads + h];

            mvaddch(line + 1 + (int)h, (int)l,
                    ratio > 9.5 ? '+' : (chtype)('0' + (int)(ratio + 0.5)));
        }
}
