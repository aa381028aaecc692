/* strip: parts of a stream's memory in colours, for top. */
#ifndef SILT_STRIP_H
#define SILT_STRIP_H

#include <curses.h>

#include "clients/silt/silt.h"

enum paint {
    PAINT_COLD = 1,
    PAINT_SINKS,
    PAINT_PINS,
    PAINT_SUMMARY,
    PAINT_RING,
    PAINT_WINDOW,
    PAINT_LAG,
    PAINT_BAD,
    PAINT_HIT /* cold, and just brought back */
};
void strip_paint(enum paint paint, bool on);
/* Two lines: the strip and its legend. hit: what was recalled last lights up. */
void strip_draw(const struct client_stream_stat *stat, bool hit, int line);
/* Ratios by head, from this line on. */
void strip_heads(const struct client_stream_stat *stat, int line);

#endif
