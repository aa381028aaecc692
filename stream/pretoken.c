/*
 * The pre-token rules as hand-written scanners. They stand for these regular expressions, tried in
 * order at each place:
 *
 * GPT-2:   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * Llama 3: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
 * ?[^\s\p{L}\p{N}]+[\r\n]*
 *          |\s*[\r\n]+|\s+(?!\S)|\s+
 *
 * smollm cuts every \p{N} out before it applies GPT-2's to each part, so a digit also acts as an
 * end of text: blanks before it are not shared with it.
 */
#include "stream/pretoken.h"

#include <string.h>
#include <utf8proc.h>

#include "stream/stream.h"

enum kind { KIND_LETTER, KIND_NUMBER, KIND_SPACE, KIND_OTHER, KIND_WAIT };

/* ASCII by table, the rest by KIND_WAIT. */
#define L KIND_LETTER
#define N KIND_NUMBER
#define S KIND_SPACE
#define O KIND_OTHER
static const uint8_t ascii_kind[128] = {
    O, O, O, O, O, O, O, O, O, S, S, S, S, S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O,
    S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, N, N, N, N, N, N, N, N, N, N, O, O, O, O, O, O,
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O,
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O,
};
#undef L
#undef N
#undef S
#undef O

struct scan {
    const uint8_t *text;
    size_t bytes;
    bool final;
};

static enum kind code_point_kind(utf8proc_int32_t code)
{
    /* White_Space; 9 to 13 and 32 are ASCII. Category Z would miss U+0085. */
    if (code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
        code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000)
        return KIND_SPACE;
    utf8proc_category_t category = utf8proc_category(code);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO)
        return KIND_LETTER;
    if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO)
        return KIND_NUMBER;
    return KIND_OTHER;
}

/* Whether the bytes, fewer than their lead byte announces, may still become a character. */
static bool may_continue(const uint8_t *text, size_t bytes, size_t wanted)
{
    static const uint8_t second_min[256] = {[0xe0] = 0xa0, [0xf0] = 0x90};
    static const uint8_t second_max[256] = {[0xed] = 0x9f, [0xf4] = 0x8f};
    if (bytes >= wanted)
        return false;
    for (size_t i = 1; i < bytes; i++)
        if ((text[i] & 0xc0) != 0x80)
            return false;
    uint8_t most = second_max[text[0]] ? second_max[text[0]] : 0xbf;
    return bytes < 2 || (text[1] >= second_min[text[0]] && text[1] <= most);
}

/* Kind of the character at a place, its bytes in *length. KIND_WAIT: the text ends there or
 * inside a character and more may come; at the true end *length is 0. */
static enum kind kind_at(const struct scan *s, size_t at, size_t *length)
{
    const uint8_t *text = s->text + at;
    size_t left = s->bytes - at;
    *length = left ? 1 : 0;
    if (!left)
        return KIND_WAIT;
    if (text[0] < 0x80)
        return ascii_kind[text[0]];
    size_t wanted = text[0] < 0xc2   ? 1
                    : text[0] < 0xe0 ? 2
                    : text[0] < 0xf0 ? 3
                    : text[0] < 0xf5 ? 4
                                     : 1;
    if (wanted > left && !s->final && may_continue(text, left, wanted))
        return KIND_WAIT;
    utf8proc_int32_t code;
    utf8proc_ssize_t used =
        utf8proc_iterate(text, (utf8proc_ssize_t)(left < wanted ? left : wanted), &code);
    if (used < 2 || code < 0)
        return KIND_OTHER;
    *length = (size_t)used;
    return code_point_kind(code);
}

/* End of a run of one kind that goes on at a place. 0: wait. */
static size_t run_end(const struct scan *s, size_t at, enum kind kind)
{
    for (;;) {
        while (at < s->bytes && at < PRETOKEN_BYTES_MAX && s->text[at] < 0x80 &&
               ascii_kind[s->text[at]] == kind)
            at++;
        size_t length;
        enum kind next = kind_at(s, at, &length);
        if (next == KIND_WAIT)
            return s->final ? at : 0;
        if (next != kind || at + length > PRETOKEN_BYTES_MAX)
            return at;
        at += length;
    }
}

/* Bytes of an English contraction at the start; 0: none; SIZE_MAX: wait. */
static size_t contraction(const struct scan *s, bool any_case)
{
    uint8_t c[2] = {0, 0};
    if (s->text[0] != '\'')
        return 0;
    for (size_t i = 0; i < 2; i++) {
        if (i + 1 >= s->bytes)
            return s->final ? 0 : SIZE_MAX;
        c[i] = s->text[i + 1];
        if (any_case && c[i] >= 'A' && c[i] <= 'Z')
            c[i] = (uint8_t)(c[i] | 0x20);
        if (i == 0 && (c[0] == 's' || c[0] == 't' || c[0] == 'm' || c[0] == 'd'))
            return 2;
        if (i == 0 && c[0] != 'r' && c[0] != 'v' && c[0] != 'l')
            return 0;
    }
    return c[1] == (c[0] == 'l' ? 'l' : 'e') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : a run of blanks leaves its last one to what follows, where something follows. */
static size_t blanks(const struct scan *s, bool digit_ends, bool line_ends)
{
    size_t at = 0, last = 0, line = 0, length;
    for (;;) {
        enum kind kind = kind_at(s, at, &length);
        if (kind == KIND_WAIT && !s->final)
            return 0;
        if (kind == KIND_SPACE && at + length <= PRETOKEN_BYTES_MAX) {
            last = at;
            at += length;
            if (s->text[last] == '\r' || s->text[last] == '\n')
                line = at;
            continue;
        }
        if (line_ends && line) /* \s*[\r\n]+ comes first */
            return line;
        if (kind == KIND_WAIT || kind == KIND_SPACE || (digit_ends && kind == KIND_NUMBER) ||
            last == 0)
            return at;
        return last;
    }
}

static size_t next_gpt2(const struct scan *s, bool digits)
{
    size_t length, second;
    enum kind kind = kind_at(s, 0, &length);
    if (kind == KIND_WAIT)
        return 0;
    size_t short_form = contraction(s, false);
    if (short_form)
        return short_form == SIZE_MAX ? 0 : short_form;
    if (digits && kind == KIND_NUMBER)
        return length;
    if (s->text[0] == ' ') {
        enum kind next = kind_at(s, 1, &second);
        if (next == KIND_WAIT)
            return s->final ? 1 : 0;
        if (digits && next == KIND_NUMBER)
            return 1;
        if (next != KIND_SPACE)
            return run_end(s, 1 + second, next);
    }
    return kind == KIND_SPACE ? blanks(s, digits, false) : run_end(s, length, kind);
}

/* A run of signs takes the line ends after it along. */
static size_t signs_llama3(const struct scan *s, size_t at)
{
    at = run_end(s, at, KIND_OTHER);
    if (!at)
        return 0;
    while (at < s->bytes && at < PRETOKEN_BYTES_MAX && (s->text[at] == '\r' || s->text[at] == '\n'))
        at++;
    return at < s->bytes || s->final || at >= PRETOKEN_BYTES_MAX ? at : 0;
}

static size_t next_llama3(const struct scan *s, size_t digits_max)
{
    size_t length, second;
    enum kind kind = kind_at(s, 0, &length);
    if (kind == KIND_WAIT)
        return 0;
    size_t short_form = contraction(s, true);
    if (short_form)
        return short_form == SIZE_MAX ? 0 : short_form;
    if (kind == KIND_LETTER)
        return run_end(s, length, KIND_LETTER);
    if (kind == KIND_NUMBER) {
        for (size_t i = 1; i < digits_max; i++) {
            enum kind next = kind_at(s, length, &second);
            if (next == KIND_WAIT && !s->final)
                return 0;
            if (next != KIND_NUMBER)
                break;
            length += second;
        }
        return length;
    }
    enum kind next = kind_at(s, length, &second);
    if (next == KIND_WAIT && !s->final)
        return 0;
    if (next == KIND_LETTER && s->text[0] != '\r' && s->text[0] != '\n')
        return run_end(s, length + second, KIND_LETTER);
    if (kind == KIND_OTHER)
        return signs_llama3(s, length);
    if (s->text[0] == ' ' && next == KIND_OTHER)
        return signs_llama3(s, length + second);
    return blanks(s, false, true);
}

size_t pretoken_next(enum pretoken_rule rule, const uint8_t *text, size_t bytes, bool final)
{
    struct scan s = {text, bytes, final};
    switch (rule) {
    case PRETOKEN_GPT2:
        return next_gpt2(&s, false);
    case PRETOKEN_SMOLLM:
        return next_gpt2(&s, true);
    case PRETOKEN_LLAMA3:
        return next_llama3(&s, 3);
    case PRETOKEN_QWEN2:
        return next_llama3(&s, 1);
    }
    return bytes;
}

bool pretoken_rule_find(const char *name, size_t name_bytes, enum pretoken_rule *out)
{
    static const struct {
        const char *name;
        enum pretoken_rule rule;
    } known[] = {
        {"smollm", PRETOKEN_SMOLLM},    {"starcoder", PRETOKEN_SMOLLM},
        {"refact", PRETOKEN_SMOLLM},    {"command-r", PRETOKEN_SMOLLM},
        {"codeshell", PRETOKEN_SMOLLM}, {"gpt-2", PRETOKEN_GPT2},
        {"gpt2", PRETOKEN_GPT2},        {"default", PRETOKEN_GPT2},
        {"olmo", PRETOKEN_GPT2},        {"phi-2", PRETOKEN_GPT2},
        {"mpt", PRETOKEN_GPT2},         {"llama-bpe", PRETOKEN_LLAMA3},
        {"llama3", PRETOKEN_LLAMA3},    {"llama-v3", PRETOKEN_LLAMA3},
        {"qwen2", PRETOKEN_QWEN2},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strlen(known[i].name) == name_bytes && memcmp(known[i].name, name, name_bytes) == 0) {
            *out = known[i].rule;
            return true;
        }
    }
    return false;
}
