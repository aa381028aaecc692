/* Words near in meaning to one: entries of the adapter's lexicon (FORMAT.md), walked in order. */
#include "stream/internal.h"

#include <string.h>

/* The next part up to a blank. False: no more. */
static bool next_part(struct gguf_string *entry, struct gguf_string *out)
{
    const char *blank = entry->bytes ? memchr(entry->text, ' ', entry->bytes) : NULL;

    *out = (struct gguf_string){entry->text, blank ? (size_t)(blank - entry->text) : entry->bytes};
    entry->text += out->bytes + (blank != NULL);
    entry->bytes -= out->bytes + (blank != NULL);
    return out->bytes > 0;
}

static uint32_t take_near(struct gguf_string entry, struct near_word *out, uint32_t max)
{
    struct gguf_string word;
    uint32_t count = 0;

    while (count < max && next_part(&entry, &word)) {
        if (word.bytes > NEAR_WORD_BYTES_MAX)
            continue;
        memcpy(out[count].text, word.text, word.bytes);
        out[count++].text[word.bytes] = '\0';
    }
    return count;
}

uint32_t engine_near_words(const struct engine *engine, const char *word, struct near_word *out,
                           uint32_t max)
{
    struct gguf_array_cursor cursor;
    struct gguf_string entry, first;
    size_t bytes = strlen(word);

    if (!engine->adapter || !gguf_array_strings(engine->adapter, "silt.lexicon", &cursor))
        return 0;
    while (gguf_array_string_next(&cursor, &entry)) {
        if (entry.bytes <= bytes || entry.text[bytes] != ' ' || entry.text[0] != word[0])
            continue;
        if (memcmp(entry.text, word, bytes) == 0) {
            next_part(&entry, &first);
            return take_near(entry, out, max);
        }
    }
    return 0;
}
