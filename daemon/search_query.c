/* A question's words, quoted, any of them: FTS5 ranks by how many and how rare. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "daemon/search.h"

enum { WORD_BYTES_MAX = 40 };

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

struct word {
    char text[WORD_BYTES_MAX + 1];
    size_t bytes;
};

static bool is_letter(uint8_t c)
{
    return c >= 0x80 || isalnum(c);
}

static bool is_stop_word(const struct word *word)
{
    for (size_t i = 0; i < sizeof stop_words / sizeof *stop_words; i++)
        if (strcmp(stop_words[i], word->text) == 0)
            return true;
    return word->bytes == 1 && !isdigit((uint8_t)word->text[0]);
}

/* The next word from *at on, cut at WORD_BYTES_MAX. False: no more. */
static bool next_word(const uint8_t *text, size_t bytes_count, size_t *at, struct word *out)
{
    while (*at < bytes_count && !is_letter(text[*at]))
        ++*at;
    out->bytes = 0;
    for (; *at < bytes_count && is_letter(text[*at]); ++*at)
        if (out->bytes < WORD_BYTES_MAX)
            out->text[out->bytes++] = (char)(text[*at] < 0x80 ? tolower(text[*at]) : text[*at]);
    out->text[out->bytes] = '\0';
    return out->bytes > 0;
}

static bool is_new(const struct word *words, size_t count, const struct word *word)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(words[i].text, word->text) == 0)
            return false;
    return true;
}

static size_t collect(const uint8_t *question, size_t bytes_count, bool all, struct word *words)
{
    size_t at = 0, count = 0;
    struct word word;

    while (count < SEARCH_WORDS_MAX && next_word(question, bytes_count, &at, &word))
        if ((all || !is_stop_word(&word)) && is_new(words, count, &word))
            words[count++] = word;
    return count;
}

size_t search_expression(const uint8_t *question, size_t bytes_count, char *out, size_t out_bytes)
{
    struct word words[SEARCH_WORDS_MAX];
    size_t count = collect(question, bytes_count, false, words), used = 0;

    if (!count)
        count = collect(question, bytes_count, true, words);
    for (size_t i = 0; i < count; i++) {
        size_t need = words[i].bytes + 2 + (i ? 4 : 0);

        if (used + need >= out_bytes)
            break;
        used += (size_t)snprintf(out + used, out_bytes - used, "%s\"%s\"", i ? " OR " : "",
                                 words[i].text);
    }
    return used;
}
