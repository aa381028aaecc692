/* stamp: wall-clock times as logs and transcripts write them. */
#ifndef SILT_STAMP_H
#define SILT_STAMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The time that begins a line, in microseconds since 1970: 2026-05-31T09:30:00.5+02:00 (RFC 3339,
 * with T or a space, "." or "," and a zone or that of here), May 31 09:30:00 (syslog, the newest
 * such day that is not ahead), [31/May/2026:09:30:00 +0200] (httpd), 1780000000.5 (seconds). An
 * opening bracket may stand before. False: it begins with none, or with one out of 1990 to
 * tomorrow. */
bool stamp_read(const char *line, size_t bytes, uint64_t *time_us);
/* The wall clock of text: the time that one of its first few lines begins with; 0: none of them
 * does. *bytes becomes as many as it holds for: up to a line with a time a minute away, looked for
 * every half a KiB. `whole`: the text begins with a whole line. start_us: when a recording began,
 * whose lines begin with the time into it, "[H:MM:SS]"; 0: lines are a log's. */
uint64_t stamp_span(const char *text, size_t *bytes, bool whole, uint64_t start_us);
/* Time into a recording, [H:]M:SS with a fraction: characters read, 0: there is none. */
size_t stamp_offset(const char *text, size_t bytes, double *seconds);

#endif
