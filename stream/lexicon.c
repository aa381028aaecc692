/*
 * Words near in meaning to one: entries of the adapter's lexicon (FORMAT.md), in the order of their
 * words. A question asks for each of its words, and walking some megabytes took half a millisecond.
 */
#include "stream/internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexicon {
    size_t count;
    struct gguf_string entry[]; /* [count] in the adapter's map */
};

/* The next part up to a blank. False: no more. */
static bool next_part(struct gguf_string *entry, struct gguf_string *out)
{
    const char *blank = entry->bytes ? memchr(entry->text, ' ', entry->bytes) : NULL;

    *out = (struct gguf_string){entry->text, blank ? (size_t)(blank - entry->text) : entry->bytes};
    entry->text += out->bytes + (blank != NULL);
    entry->bytes -= out->bytes + (blank != NULL);
    return out->bytes > 0;
}

/* Letters and digits, of any script: they become part of a query, in which quotes end a word. */
static bool is_word(struct gguf_string word)
{
    for (size_t i = 0; i < word.bytes; i++)
        if ((uint8_t)word.text[i] < 0x80 && !isalnum((uint8_t)word.text[i]))
            return false;
    return word.bytes <= NEAR_WORD_BYTES_MAX;
}

static uint32_t take_near(struct gguf_string entry, struct near_word *out, uint32_t max)
{
    struct gguf_string word;
    uint32_t count = 0;

    while (count < max && next_part(&entry, &word)) {
        if (!is_word(word))
            continue;
        memcpy(out[count].text, word.text, word.bytes);
        out[count++].text[word.bytes] = '\0';
    }
    return count;
}

static int compare_entries(const void *a, const void *b)
{
    struct gguf_string one = *(const struct gguf_string *)a, two = *(const struct gguf_string *)b;
    struct gguf_string x, y;

    (void)next_part(&one, &x);
    (void)next_part(&two, &y);
    int order = memcmp(x.text, y.text, x.bytes < y.bytes ? x.bytes : y.bytes);
    return order ? order : (x.bytes > y.bytes) - (x.bytes < y.bytes);
}

int lexicon_open(struct lexicon **out, const struct gguf *adapter)
{
    struct gguf_array_cursor cursor;
    struct lexicon *l;
    bool sorted = true;

    *out = NULL;
    if (!gguf_array_strings(adapter, "silt.lexicon", &cursor))
        return 0;
    l = calloc(1, sizeof *l + cursor.left * sizeof *l->entry);
    if (!l)
        return -ENOMEM;
    for (; gguf_array_string_next(&cursor, &l->entry[l->count]); l->count++)
        sorted &= !l->count || compare_entries(&l->entry[l->count - 1], &l->entry[l->count]) <= 0;
    if (!sorted)
        qsort(l->entry, l->count, sizeof *l->entry, compare_entries);
    *out = l;
    return 0;
}

uint32_t engine_near_words(const struct engine *engine, const char *word, struct near_word *out,
                           uint32_t max)
{
    const struct lexicon *l = engine->lexicon;
    const struct gguf_string key = {word, strlen(word)}, *found;
    struct gguf_string entry, first;

    if (!l || !key.bytes)
        return 0;
    found = bsearch(&key, l->entry, l->count, sizeof *l->entry, compare_entries);
    if (!found)
        return 0;
    entry = *found;
    (void)next_part(&entry, &first);
    return take_near(entry, out, max);
}
