/* convert: see convert.h. */
#include "clients/silt/convert.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/silt/stamp.h"

enum { LINE_BYTES_MAX = 16 << 10, SPEAKER_BYTES_MAX = 80 };

const char *const convert_names[FORMAT_COUNT] = {"plain", "transcript", "vtt", "srt"};

struct convert {
    enum convert_format format;
    char line[LINE_BYTES_MAX]; /* [line_bytes], not whole yet */
    size_t line_bytes;
    bool began;   /* a first line was seen */
    bool in_cue;  /* a time was read: text follows */
    bool skipped; /* a block of no interest, to its blank line */
    double cue_seconds;
    char speaker[SPEAKER_BYTES_MAX + 1];
    char last[LINE_BYTES_MAX]; /* [last_bytes], newest caption that was given */
    size_t last_bytes;
    uint8_t *text; /* [text_bytes], of room text_room */
    size_t text_bytes, text_room;
    bool failed;
};

/* ---- text out ---- */

static void put(struct convert *c, const char *bytes, size_t count)
{
    if (c->text_bytes + count > c->text_room) {
        size_t room = 2 * (c->text_bytes + count) + 4096;
        uint8_t *text = realloc(c->text, room);

        if (!text) {
            c->failed = true;
            return;
        }
        c->text = text;
        c->text_room = room;
    }
    if (count) /* with nothing yet, there is no memory either */
        memcpy(c->text + c->text_bytes, bytes, count);
    c->text_bytes += count;
}

/* "[0:01:23] Ann: ", of which either part may be missing. */
static void put_head(struct convert *c, double seconds, const char *speaker, size_t speaker_bytes)
{
    char head[48];
    unsigned long whole = seconds > 0 ? (unsigned long)seconds : 0;

    if (seconds >= 0) {
        snprintf(head, sizeof head, "[%lu:%02lu:%02lu] ", whole / 3600, whole / 60 % 60,
                 whole % 60);
        put(c, head, strlen(head));
    }
    if (speaker_bytes) {
        put(c, speaker, speaker_bytes);
        put(c, ": ", 2);
    }
}

static void put_line(struct convert *c, const char *line, size_t bytes)
{
    put(c, line, bytes);
    put(c, "\n", 1);
}

static void trim(const char **line, size_t *bytes)
{
    while (*bytes && strchr(" \t\r", **line)) {
        ++*line;
        --*bytes;
    }
    while (*bytes && strchr(" \t\r", (*line)[*bytes - 1]))
        --*bytes;
}

/* ---- captions ---- */

static size_t entity(const char *text, size_t bytes, char *out)
{
    static const char *const names[][2] = {{"&amp;", "&"},  {"&lt;", "<"}, {"&gt;", ">"},
                                           {"&nbsp;", " "}, {"&lrm;", ""}, {"&rlm;", ""},
                                           {"&quot;", "\""}};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t length = strlen(names[i][0]);

        if (length <= bytes && !memcmp(text, names[i][0], length)) {
            *out = names[i][1][0];
            return length;
        }
    }
    return 0;
}

/* Takes tags and entities out of a caption's line, in place; <v Name> sets the speaker. */
static size_t untag(struct convert *c, char *line, size_t bytes)
{
    size_t out = 0;

    for (size_t i = 0; i < bytes;) {
        const char *stop = NULL;
        char plain = 0;
        size_t length = line[i] == '&' ? entity(line + i, bytes - i, &plain) : 0;

        if (line[i] == '<')
            stop = memchr(line + i, '>', bytes - i);
        else if (line[i] == '{' && i + 1 < bytes && line[i + 1] == '\\')
            stop = memchr(line + i, '}', bytes - i);
        if (stop && line[i] == '<' && line[i + 1] == 'v' && strchr(" .\t", line[i + 2])) {
            const char *name = memchr(line + i, ' ', (size_t)(stop - (line + i)));
            size_t name_bytes = name ? (size_t)(stop - name) : 0;

            if (name)
                trim(&name, &name_bytes);
            if (name && name_bytes <= SPEAKER_BYTES_MAX) {
                memcpy(c->speaker, name, name_bytes);
                c->speaker[name_bytes] = '\0';
            }
        }
        if (stop) {
            i = (size_t)(stop - line) + 1;
        } else if (length) {
            if (plain)
                line[out++] = plain;
            i += length;
        } else {
            line[out++] = line[i++];
        }
    }
    return out;
}

/* Captions that roll show each line twice: the second time it is not new. */
static void caption(struct convert *c, char *line, size_t bytes)
{
    const char *text = line;

    bytes = untag(c, line, bytes);
    trim(&text, &bytes);
    if (!bytes || (bytes == c->last_bytes && !memcmp(text, c->last, bytes)))
        return;
    memcpy(c->last, text, bytes);
    c->last_bytes = bytes;
    put_head(c, c->cue_seconds, c->speaker, strlen(c->speaker));
    put_line(c, text, bytes);
}

static bool begins(const char *line, size_t bytes, const char *word)
{
    size_t length = strlen(word);

    return bytes >= length && !memcmp(line, word, length);
}

static void caption_line(struct convert *c, char *line, size_t bytes)
{
    const char *text = line, *arrow;
    size_t text_bytes = bytes;
    double seconds;

    trim(&text, &text_bytes);
    if (!text_bytes) {
        c->in_cue = c->skipped = false;
        c->speaker[0] = '\0';
        return;
    }
    arrow = memmem(text, text_bytes, "-->", 3);
    if (arrow && stamp_offset(text, text_bytes, &seconds)) {
        c->cue_seconds = seconds;
        c->in_cue = true;
        c->skipped = false;
        c->speaker[0] = '\0';
        return;
    }
    if (!c->in_cue && (begins(text, text_bytes, "NOTE") || begins(text, text_bytes, "STYLE") ||
                       begins(text, text_bytes, "REGION")))
        c->skipped = true;
    /* Outside of a cue stand the header and the cues' numbers or names. */
    if (c->in_cue && !c->skipped)
        caption(c, line, bytes);
}

/* ---- transcripts ---- */

/* A time that may stand in brackets: characters of it, 0: none is here. */
static size_t time_here(const char *line, size_t bytes, double *seconds)
{
    static const char open[] = "[(", close[] = "])";
    const char *bracket = bytes ? memchr(open, line[0], 2) : NULL;
    size_t begin = bracket ? 1 : 0, length = stamp_offset(line + begin, bytes - begin, seconds);

    if (!length)
        return 0;
    length += begin;
    if (!bracket)
        return length == bytes || strchr(" \t", line[length]) ? length : 0;
    return length < bytes && line[length] == close[bracket - open] ? length + 1 : 0;
}

/* Where a speaker's name stands before a time: its length, with the time's place and end. */
static size_t speaker_before(const char *line, size_t bytes, size_t *time_end, double *seconds)
{
    for (size_t i = 1; i < bytes && i <= SPEAKER_BYTES_MAX; i++) {
        size_t length, name = i;

        if (strchr(".!?\":", line[i - 1]))
            return 0;
        if (!strchr(" \t[(", line[i]))
            continue;
        while (i < bytes && strchr(" \t", line[i]))
            i++;
        /* "At 12:30 we eat" has a time, but no speaker. */
        length = time_here(line + i, bytes - i, seconds);
        if (length && (i + length == bytes || strchr("[(", line[i]))) {
            *time_end = i + length;
            return name;
        }
    }
    return 0;
}

static void transcript_line(struct convert *c, const char *line, size_t bytes)
{
    double seconds = 0;
    size_t end = 0, name = 0;

    trim(&line, &bytes);
    if (!bytes) {
        put_line(c, "", 0);
        return;
    }
    end = time_here(line, bytes, &seconds);
    if (!end)
        name = speaker_before(line, bytes, &end, &seconds);
    if (end) {
        const char *rest = line + end;
        size_t rest_bytes = bytes - end;

        while (rest_bytes && strchr(" \t:-", *rest)) {
            rest++;
            rest_bytes--;
        }
        /* With nothing behind, or the end of a range, it heads the text that follows. */
        if (!rest_bytes || (*rest == '>' && memmem(line, bytes, "-->", 3))) {
            c->in_cue = true;
            c->cue_seconds = seconds;
            memcpy(c->speaker, line, name);
            c->speaker[name] = '\0';
            return;
        }
        c->in_cue = false;
        put_head(c, seconds, line, name);
        put_line(c, rest, rest_bytes);
        return;
    }
    if (c->in_cue)
        put_head(c, c->cue_seconds, c->speaker, strlen(c->speaker));
    c->in_cue = false;
    put_line(c, line, bytes);
}

/* ---- lines in ---- */

static void take_line(struct convert *c)
{
    char *line = c->line;
    size_t bytes = c->line_bytes;

    c->line_bytes = 0;
    if (!c->began && bytes >= 3 && !memcmp(line, "\xEF\xBB\xBF", 3)) {
        line += 3;
        bytes -= 3;
    }
    c->began = true;
    if (c->format == FORMAT_TRANSCRIPT)
        transcript_line(c, line, bytes);
    else
        caption_line(c, line, bytes);
}

int convert_open(struct convert **out, enum convert_format format)
{
    *out = NULL;
    if (format == FORMAT_PLAIN)
        return 0;
    *out = calloc(1, sizeof **out);
    if (!*out)
        return -ENOMEM;
    (*out)->format = format;
    return 0;
}

void convert_close(struct convert **convert)
{
    if (*convert)
        free((*convert)->text);
    free(*convert);
    *convert = NULL;
}

int convert_push(struct convert *c, const uint8_t *bytes, size_t bytes_count, bool end)
{
    for (size_t i = 0; i < bytes_count; i++) {
        if (bytes[i] != '\n')
            c->line[c->line_bytes++] = (char)bytes[i];
        if (bytes[i] == '\n' || c->line_bytes == LINE_BYTES_MAX)
            take_line(c);
    }
    if (end && c->line_bytes)
        take_line(c);
    return c->failed ? -ENOMEM : 0;
}

const uint8_t *convert_text(const struct convert *c, size_t *bytes_count)
{
    *bytes_count = c ? c->text_bytes : 0;
    return c ? c->text : NULL;
}

void convert_take(struct convert *c, size_t bytes_count)
{
    if (!bytes_count) /* of a file without captions there was never any text */
        return;
    c->text_bytes -= bytes_count;
    memmove(c->text, c->text + bytes_count, c->text_bytes);
}
