/* stamp: see stamp.h. */
#include "clients/silt/stamp.h"

#include <stddef.h>
#include <string.h>
#include <time.h>

enum {
    STAMP_BYTES_MAX = 48,
    LINES_MAX = 8,
    SECONDS_1990 = 631152000,
    SECONDS_DAY = 86400,
    SECONDS_DIGITS = 10, /* of a count since 1970 in our days */
    SPAN_BYTES = 512,    /* about a chunk of log */
    SPAN_US = 60000000,
};

/* A reader of one short line: what does not fit sets `wrong` and reads on as zeroes. */
struct scan {
    const char *at, *end;
    bool wrong;
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool take(struct scan *scan, char c)
{
    bool here = scan->at < scan->end && *scan->at == c;

    scan->at += here;
    return here;
}

static void expect(struct scan *scan, const char *any)
{
    if (scan->at < scan->end && strchr(any, *scan->at))
        scan->at++;
    else
        scan->wrong = true;
}

static int number(struct scan *scan, int digits)
{
    int value = 0;

    for (int i = 0; i < digits; i++) {
        if (scan->at >= scan->end || !is_digit(*scan->at)) {
            scan->wrong = true;
            return 0;
        }
        value = value * 10 + (*scan->at++ - '0');
    }
    return value;
}

/* Digits after a point or comma, as microseconds. */
static uint64_t fraction(struct scan *scan)
{
    uint64_t us = 0, unit = 100000;

    if (scan->at + 1 >= scan->end || (*scan->at != '.' && *scan->at != ',') ||
        !is_digit(scan->at[1]))
        return 0;
    for (scan->at++; scan->at < scan->end && is_digit(*scan->at); scan->at++, unit /= 10)
        us += unit * (uint64_t)(*scan->at - '0');
    return us;
}

/* "Z", "+02:00", "+0200" or nothing: false, the time is that of here. */
static bool zone(struct scan *scan, int *seconds)
{
    int sign, hours;

    *seconds = 0;
    if (take(scan, 'Z'))
        return true;
    if (scan->at >= scan->end || (*scan->at != '+' && *scan->at != '-'))
        return false;
    sign = *scan->at++ == '-' ? -1 : 1;
    hours = number(scan, 2);
    take(scan, ':');
    *seconds = sign * (hours * 3600 + number(scan, 2) * 60);
    return true;
}

static void clock_of(struct scan *scan, struct tm *tm)
{
    tm->tm_hour = number(scan, 2);
    expect(scan, ":");
    tm->tm_min = number(scan, 2);
    expect(scan, ":");
    tm->tm_sec = number(scan, 2);
    if (tm->tm_hour > 23 || tm->tm_min > 59 || tm->tm_sec > 60)
        scan->wrong = true;
}

static int month(struct scan *scan)
{
    static const char names[] = "JanFebMarAprMayJunJulAugSepOctNovDec";

    for (int i = 0; i < 12 && scan->end - scan->at >= 3; i++)
        if (!memcmp(scan->at, names + 3L * i, 3)) {
            scan->at += 3;
            return i;
        }
    scan->wrong = true;
    return 0;
}

static bool finish(const struct scan *scan, struct tm *tm, bool zoned, int zone_seconds,
                   uint64_t us, uint64_t *time_us)
{
    time_t seconds;

    if (scan->wrong || tm->tm_mday < 1 || tm->tm_mday > 31)
        return false;
    tm->tm_isdst = -1;
    seconds = zoned ? timegm(tm) - zone_seconds : mktime(tm);
    if (seconds < SECONDS_1990 || seconds > time(NULL) + SECONDS_DAY)
        return false;
    *time_us = (uint64_t)seconds * 1000000 + us;
    return true;
}

static bool rfc3339(struct scan scan, uint64_t *time_us)
{
    struct tm tm = {.tm_year = number(&scan, 4) - 1900};
    uint64_t us;
    bool zoned;
    int seconds;

    expect(&scan, "-");
    tm.tm_mon = number(&scan, 2) - 1;
    expect(&scan, "-");
    tm.tm_mday = number(&scan, 2);
    expect(&scan, "T ");
    clock_of(&scan, &tm);
    us = fraction(&scan);
    zoned = zone(&scan, &seconds);
    if (tm.tm_mon < 0 || tm.tm_mon > 11)
        return false;
    return finish(&scan, &tm, zoned, seconds, us, time_us);
}

static bool httpd(struct scan scan, uint64_t *time_us)
{
    struct tm tm = {.tm_mday = number(&scan, 2)};
    int seconds;
    bool zoned;

    expect(&scan, "/");
    tm.tm_mon = month(&scan);
    expect(&scan, "/");
    tm.tm_year = number(&scan, 4) - 1900;
    expect(&scan, ":");
    clock_of(&scan, &tm);
    take(&scan, ' ');
    zoned = zone(&scan, &seconds);
    return finish(&scan, &tm, zoned, seconds, 0, time_us);
}

/* No year is written: that of the newest such day that is not ahead. */
static bool syslog_old(struct scan scan, uint64_t *time_us)
{
    time_t now = time(NULL);
    struct tm here, tm = {.tm_mon = month(&scan)};
    uint64_t us;

    expect(&scan, " ");
    tm.tm_mday = take(&scan, ' ') ? number(&scan, 1) : number(&scan, 2);
    expect(&scan, " ");
    clock_of(&scan, &tm);
    us = fraction(&scan);
    localtime_r(&now, &here);
    tm.tm_year = here.tm_year;
    if (tm.tm_mon > here.tm_mon || (tm.tm_mon == here.tm_mon && tm.tm_mday > here.tm_mday + 1))
        tm.tm_year--;
    return finish(&scan, &tm, false, 0, us, time_us);
}

static bool seconds_since_1970(struct scan scan, uint64_t *time_us)
{
    uint64_t value = 0, us;
    int digits = 0;

    while (scan.at < scan.end && is_digit(*scan.at) && digits <= SECONDS_DIGITS) {
        value = value * 10 + (uint64_t)(*scan.at++ - '0');
        digits++;
    }
    us = fraction(&scan);
    if (digits != SECONDS_DIGITS || (scan.at < scan.end && !strchr(" \t])", *scan.at)) ||
        value > (uint64_t)time(NULL) + SECONDS_DAY)
        return false;
    *time_us = value * 1000000 + us;
    return true;
}

/* httpd puts the client's name first: its time is looked for where its bracket opens. */
static bool bracketed(const char *line, size_t bytes, uint64_t *time_us)
{
    enum { FAR = 160 };
    const char *open = memchr(line, '[', bytes < FAR ? bytes : FAR);

    return open && httpd((struct scan){.at = open + 1, .end = line + bytes}, time_us);
}

bool stamp_read(const char *line, size_t bytes, uint64_t *time_us)
{
    size_t begin = bytes && (line[0] == '[' || line[0] == '(') ? 1 : 0;
    struct scan scan = {.at = line + begin, .end = line + bytes};

    if (bytes - begin > STAMP_BYTES_MAX)
        scan.end = scan.at + STAMP_BYTES_MAX;
    return rfc3339(scan, time_us) || syslog_old(scan, time_us) ||
           seconds_since_1970(scan, time_us) || bracketed(line, bytes, time_us);
}

size_t stamp_offset(const char *text, size_t bytes, double *seconds)
{
    struct scan scan = {.at = text, .end = text + bytes};
    double total = 0;

    for (int parts = 1;; parts++) {
        double value = 0;
        int digits = 0;

        while (scan.at < scan.end && is_digit(*scan.at) && digits < 3) {
            value = value * 10 + (*scan.at++ - '0');
            digits++;
        }
        if (!digits || (parts > 1 && (digits != 2 || value > 59)))
            return 0;
        total = total * 60 + value;
        if (parts > 1 && (scan.at == scan.end || *scan.at != ':')) {
            *seconds = total + (double)fraction(&scan) / 1e6;
            return (size_t)(scan.at - text);
        }
        if (parts == 3 || !take(&scan, ':'))
            return 0;
    }
}

static bool line_time(const char *line, const char *end, uint64_t start_us, uint64_t *time_us)
{
    size_t bytes = (size_t)(end - line);
    double seconds;

    if (!start_us)
        return stamp_read(line, bytes, time_us);
    if (line[0] != '[' || !stamp_offset(line + 1, bytes - 1, &seconds))
        return false;
    *time_us = start_us + (uint64_t)(seconds * 1e6);
    return true;
}

/* The line that begins at or behind `at`, which is behind a line's first byte. */
static const char *line_from(const char *at, const char *end)
{
    const char *stop = at < end ? memchr(at - 1, '\n', (size_t)(end - at)) : NULL;

    return stop ? stop + 1 : end;
}

/* The first line with a time far from first_us, of those that begin every `step` bytes or more. */
static const char *line_far(const char *line, const char *end, uint64_t start_us, uint64_t first_us,
                            ptrdiff_t step)
{
    uint64_t us;

    while (line < end) {
        const char *next = line_from(line + 1, end);

        if (line_time(line, next, start_us, &us) &&
            (us > first_us + SPAN_US || first_us > us + SPAN_US))
            return line;
        if (next - line < step)
            next = end - line > step ? line_from(line + step, end) : end;
        line = next;
    }
    return end;
}

uint64_t stamp_span(const char *text, size_t *bytes, bool whole, uint64_t start_us)
{
    const char *end = text + *bytes, *line = whole ? text : line_from(text + 1, end), *far;
    uint64_t first_us = 0;

    for (int i = 0; i < LINES_MAX && line < end && !first_us; i++) {
        const char *next = line_from(line + 1, end);

        if (!line_time(line, next, start_us, &first_us))
            first_us = 0;
        line = next;
    }
    if (line - text < SPAN_BYTES)
        line = end - text > SPAN_BYTES ? line_from(text + SPAN_BYTES, end) : end;
    far = line_far(line, end, start_us, first_us, SPAN_BYTES);
    if (far < end && far - line > SPAN_BYTES)
        line = line_from(far - SPAN_BYTES, end);
    if (far < end)
        *bytes = (size_t)(line_far(line, far, start_us, first_us, 0) - text);
    return first_us;
}
