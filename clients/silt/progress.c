/* progress: one line that is drawn over itself: how far, how fast, how far behind, how much memory.
 */
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "clients/silt/silt.h"

enum { DRAW_US = 200000, STAT_US = 1000000, BAR_MAX = 24, LINE_MAX_BYTES = 512 };

static bool shown; /* a line that the next output is to take away */

static size_t columns(void)
{
    struct winsize size;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || !size.ws_col)
        return 80;
    return size.ws_col < LINE_MAX_BYTES ? size.ws_col : LINE_MAX_BYTES - 1;
}

static void memory_read(struct progress *p)
{
    struct client_stream_stat stat;

    if (client_stat(p->client, p->stream, &stat, NULL))
        return;
    p->memory_used = stat.bytes_used;
    p->memory_plan = stat.bytes_plan;
    p->tokens_acked = stat.tokens_acked;
    p->tokens_computed = stat.tokens_computed;
    client_stat_free(&stat);
}

/* Smoothed over a few seconds: blocks of several streams come in bursts. */
static void rate_update(struct progress *p, int64_t now)
{
    double seconds = (double)(now - p->rate_us) / 1e6, fresh;

    if (!p->rate_us || p->tokens_computed < p->tokens_before) {
        p->rate_us = now;
        p->tokens_before = p->tokens_computed;
        return;
    }
    if (seconds < 0.9)
        return;
    fresh = (double)(p->tokens_computed - p->tokens_before) / seconds;
    p->rate = p->rate > 0 ? 0.7 * p->rate + 0.3 * fresh : fresh;
    p->rate_us = now;
    p->tokens_before = p->tokens_computed;
}

static size_t bar(const struct progress *p, char *out, size_t out_bytes)
{
    char done[TEXT_BYTES], all[TEXT_BYTES], fill[BAR_MAX + 1];
    double share = p->bytes_all ? (double)p->bytes_done / (double)p->bytes_all : 0;
    int n;

    if (!p->bytes_all)
        n = snprintf(out, out_bytes, "%s", text_bytes(done, p->bytes_done));
    else {
        for (int i = 0; i < BAR_MAX; i++)
            fill[i] = i < (int)(share * BAR_MAX) ? '#' : '.';
        fill[BAR_MAX] = 0;
        n = snprintf(out, out_bytes, "[%s] %3.0f%%  %s of %s", fill, share * 100,
                     text_bytes(done, p->bytes_done), text_bytes(all, p->bytes_all));
    }
    return n > 0 ? (size_t)n : 0;
}

/* As much of it as the terminal is wide: on the next line it could not be drawn over. */
static void line_show(const char *line, size_t bytes)
{
    fprintf(stderr, "\r%.*s\033[K", (int)text_whole(line, bytes, columns() - 1), line);
    fflush(stderr);
    shown = true;
}

void progress_draw(struct progress *p)
{
    char line[LINE_MAX_BYTES], a[TEXT_BYTES], b[TEXT_BYTES], c[TEXT_BYTES], d[TEXT_BYTES],
        e[TEXT_BYTES];
    int64_t now = silt_now_us();
    uint64_t lag = p->tokens_acked > p->tokens_computed ? p->tokens_acked - p->tokens_computed : 0;
    size_t n;
    int more;

    if (!p->on || now - p->drawn_us < DRAW_US)
        return;
    p->drawn_us = now;
    if (now - p->stat_us > STAT_US) {
        memory_read(p);
        p->stat_us = now;
    }
    rate_update(p, now);
    n = bar(p, line, sizeof line);
    /* Of a stream a file there is no one number. */
    if (p->memory_plan)
        more = snprintf(line + n, sizeof line - n, "  %s tokens  %s/s  lag %s  memory %s of %s  %s",
                        text_count(a, p->tokens_computed), text_count(b, (uint64_t)p->rate),
                        text_count(c, lag), text_bytes(d, p->memory_used),
                        text_bytes(e, p->memory_plan), p->what);
    else
        more = snprintf(line + n, sizeof line - n, "  %s", p->what);
    n += more > 0 ? (size_t)more : 0;
    line_show(line, n < sizeof line ? n : sizeof line - 1);
}

void progress_note(const char *format, ...)
{
    char line[LINE_MAX_BYTES];
    va_list list;
    int n;

    if (!isatty(STDERR_FILENO))
        return;
    va_start(list, format);
    n = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    line_show(line, n < (int)sizeof line ? (size_t)n : sizeof line - 1);
}

void progress_hide(void)
{
    if (shown)
        fputs("\r\033[K", stderr);
    shown = false;
}

void progress_clear(struct progress *p)
{
    progress_hide();
    p->drawn_us = 0;
}
