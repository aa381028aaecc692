/* What is indexed and what is asked: tokens as text, a question's words as an FTS5 expression. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "daemon/search_internal.h"

/* Words that nearly every chunk has, or that belong to asking. */
static const char *const stop_words[] = {
    "a",      "about", "all",  "an",    "and",  "any",   "are",  "as",    "at",    "be",    "been",
    "but",    "by",    "can",  "could", "did",  "do",    "does", "for",   "from",  "had",   "has",
    "have",   "he",    "her",  "him",   "his",  "how",   "i",    "if",    "in",    "into",  "is",
    "it",     "its",   "me",   "my",    "no",   "not",   "of",   "on",    "or",    "our",   "she",
    "should", "so",    "some", "tell",  "than", "that",  "the",  "their", "them",  "then",  "there",
    "they",   "this",  "to",   "was",   "we",   "were",  "what", "when",  "where", "which", "who",
    "whom",   "whose", "why",  "will",  "with", "would", "you",  "your",
};

static bool is_letter(uint8_t c)
{
    return c >= 0x80 || isalnum(c);
}

static bool is_stop_word(const struct search_word *word)
{
    for (size_t i = 0; i < sizeof stop_words / sizeof *stop_words; i++)
        if (strcmp(stop_words[i], word->text) == 0)
            return true;
    return word->bytes == 1 && !isdigit((uint8_t)word->text[0]);
}

bool search_next_word(const uint8_t *text, size_t bytes_count, size_t *at, struct search_word *out)
{
    while (*at < bytes_count && !is_letter(text[*at]))
        ++*at;
    out->bytes = 0;
    for (; *at < bytes_count && is_letter(text[*at]); ++*at)
        if (out->bytes < SEARCH_WORD_BYTES_MAX)
            out->text[out->bytes++] = (char)(text[*at] < 0x80 ? tolower(text[*at]) : text[*at]);
    out->text[out->bytes] = '\0';
    return out->bytes > 0;
}

static bool is_new(const struct search_word *words, size_t count, const struct search_word *word)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(words[i].text, word->text) == 0)
            return false;
    return true;
}

static size_t collect(const uint8_t *question, size_t bytes_count, bool all,
                      struct search_word *words)
{
    size_t at = 0, count = 0;
    struct search_word word;

    while (count < SEARCH_WORDS_MAX && search_next_word(question, bytes_count, &at, &word))
        if ((all || !is_stop_word(&word)) && is_new(words, count, &word))
            words[count++] = word;
    return count;
}

uint32_t search_question_words(const uint8_t *question, size_t bytes_count,
                               char out[][SEARCH_WORD_BYTES_MAX + 1])
{
    struct search_word words[SEARCH_WORDS_MAX];
    size_t count = collect(question, bytes_count, false, words);

    if (!count)
        count = collect(question, bytes_count, true, words);
    for (size_t i = 0; i < count; i++)
        memcpy(out[i], words[i].text, words[i].bytes + 1);
    return (uint32_t)count;
}

/* Any of the words, each quoted: FTS5 ranks by how many a chunk has and how rare they are. */
size_t search_expression(const uint8_t *question, size_t bytes_count, char *out, size_t out_bytes)
{
    char words[SEARCH_WORDS_MAX][SEARCH_WORD_BYTES_MAX + 1];
    uint32_t count = search_question_words(question, bytes_count, words);
    size_t used = 0;

    for (uint32_t i = 0; i < count; i++) {
        size_t need = strlen(words[i]) + 2 + (i ? 4 : 0);

        if (used + need >= out_bytes)
            break;
        used +=
            (size_t)snprintf(out + used, out_bytes - used, "%s\"%s\"", i ? " OR " : "", words[i]);
    }
    return used;
}

static size_t add_token(const struct tokenizer *tokenizer, int32_t token, uint8_t *out, size_t used,
                        size_t bytes_max)
{
    size_t bytes_count;
    const uint8_t *bytes = token_bytes(tokenizer, token, &bytes_count);

    if (token_is_special(tokenizer, token) || bytes_count > bytes_max - used)
        return used;
    memcpy(out + used, bytes, bytes_count);
    return used + bytes_count;
}

/* Bytes at the end that begin a character and do not end it. */
static size_t unfinished(const uint8_t *text, size_t bytes_count)
{
    for (size_t back = 1; back <= 3 && back <= bytes_count; back++) {
        uint8_t lead = text[bytes_count - back];
        size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;

        if ((lead & 0xc0) != 0x80)
            return need > back ? back : 0;
    }
    return 0;
}

size_t search_chunk_text(const struct tokenizer *tokenizer, const struct search_tokens *parts,
                         uint32_t part_count, uint8_t *out, size_t bytes_max)
{
    size_t used = 0, from = 0;

    for (uint32_t i = 0; i < part_count; i++)
        for (uint32_t j = 0; j < parts[i].count; j++)
            used = add_token(tokenizer, parts[i].tokens[j], out, used, bytes_max);
    while (from < used && from < 3 && (out[from] & 0xc0) == 0x80)
        from++; /* the rest of a character that began before */
    used -= unfinished(out + from, used - from);
    memmove(out, out + from, used - from);
    return used - from;
}

uint32_t search_cut(const uint8_t *text, uint32_t bytes, uint32_t bytes_max)
{
    if (bytes <= bytes_max)
        return bytes;
    while (bytes_max && (text[bytes_max] & 0xc0) == 0x80)
        bytes_max--;
    return bytes_max;
}

/* Whether a line, or a sentence, ends with byte i. */
static bool ends_with(const uint8_t *text, uint32_t bytes, uint32_t i, bool sentences)
{
    if (text[i] == '\n')
        return true;
    return sentences && (text[i] == '.' || text[i] == '?' || text[i] == '!') &&
           (i + 1 == bytes || isspace(text[i + 1]));
}

static void grow(const uint8_t *text, uint32_t bytes, bool sentences, uint32_t *from, uint32_t *to)
{
    while (*from > 0 && !ends_with(text, bytes, *from - 1, sentences))
        --*from;
    while (*to < bytes && !(*to && ends_with(text, bytes, *to - 1, sentences)))
        ++*to;
}

/* SEARCH_FOCUS_MAX of [from, to) around a byte, whole characters. */
static void shrink(const uint8_t *text, uint32_t bytes, uint32_t byte, uint32_t *from, uint32_t *to)
{
    if (byte > *from + SEARCH_FOCUS_MAX / 2)
        *from = byte - SEARCH_FOCUS_MAX / 2;
    if (*to - *from < SEARCH_FOCUS_MAX)
        *from = *to - SEARCH_FOCUS_MAX;
    *to = *from + SEARCH_FOCUS_MAX;
    while (*from < *to && (text[*from] & 0xc0) == 0x80)
        ++*from;
    while (*to > *from && *to < bytes && (text[*to] & 0xc0) == 0x80)
        --*to;
}

/* One more line: what follows, which may be the reply, or else what stands before. */
static bool widen(const uint8_t *text, uint32_t bytes, uint32_t *from, uint32_t *to)
{
    uint32_t first = *from, last = *to;

    if (last < bytes)
        last++;
    else if (first > 0)
        first--;
    else
        return false;
    grow(text, bytes, false, &first, &last);
    if (last - first > SEARCH_FOCUS_MAX)
        return false;
    *from = first;
    *to = last;
    return true;
}

void search_focus(const uint8_t *text, uint32_t bytes, uint32_t *from, uint32_t *to)
{
    uint32_t first = *from, last = *to;

    grow(text, bytes, false, &first, &last);
    if (last - first > SEARCH_FOCUS_MAX) {
        first = *from;
        last = *to;
        grow(text, bytes, true, &first, &last);
    }
    if (last - first > SEARCH_FOCUS_MAX)
        shrink(text, bytes, *from + (*to - *from) / 2, &first, &last);
    while (last - first < SEARCH_FOCUS_MIN && widen(text, bytes, &first, &last))
        ;
    while (first < last && isspace(text[first]))
        first++;
    while (last > first && isspace(text[last - 1]))
        last--;
    *from = first;
    *to = last;
}
