/*
 * Entries of the question's own form.
 *
 * "Text: where is my card?\nIntent:" asks for what stands behind "Intent:" where a stream was fed
 * such texts with their intents. Where a question's last line is open, and begins lines of the
 * found text which go on behind it, the question is one more entry of a list, and what it needs are
 * the entries most like it, whole: of those the model goes on from the pattern, and from the
 * nearest last (Liu et al., "What Makes Good In-Context Examples for GPT-3?", DeeLIO 2022). An
 * entry is what stands between blank lines. How alike two are say the words that they share, each
 * by how few of the entries have it.
 */
#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/search_internal.h"

enum { LIST_MAX = 256, MARK_MIN = 2, GAP = 2 };

struct mark {
    const uint8_t *text;
    uint32_t bytes;
};

struct entry {
    uint32_t from, to; /* bytes of s->around */
    uint32_t words;    /* of the question's, that it has: a bit each */
    uint32_t size;     /* distinct words */
    double score;
    bool taken;
};
_Static_assert(SEARCH_WORDS_MAX <= 32, "a bit for each word of the question");

struct entry_list {
    struct entry entries[LIST_MAX];
    uint32_t count;
};

static uint32_t trim(const uint8_t *text, uint32_t from, uint32_t to)
{
    while (to > from && text[to - 1] <= ' ')
        to--;
    return to;
}

uint32_t search_mark(const uint8_t *question, uint32_t bytes, const uint8_t **out)
{
    uint32_t first = 0, to = trim(question, 0, bytes), from = to;

    while (first < to && question[first] <= ' ')
        first++;
    while (from > first && question[from - 1] != '\n')
        from--;
    *out = question + from;
    /* A last line that ends with a word is most often a whole one: "Thanks". */
    return from > first && to - from >= MARK_MIN && strchr(":>=|-", question[to - 1]) ? to - from
                                                                                      : 0;
}

/* Whether a line of [from, to) begins with the mark and goes on. */
static bool has_mark(const uint8_t *text, uint32_t from, uint32_t to, const struct mark *mark)
{
    while (from < to) {
        const uint8_t *line_end = memchr(text + from, '\n', to - from);
        uint32_t end = line_end ? (uint32_t)(line_end - text) : to;

        if (end - from > mark->bytes && memcmp(text + from, mark->text, mark->bytes) == 0 &&
            trim(text, from + mark->bytes, end) > from + mark->bytes)
            return true;
        from = end + 1;
    }
    return false;
}

static bool is_there(const struct entry_list *list, const uint8_t *text, uint32_t from, uint32_t to)
{
    for (uint32_t i = 0; i < list->count; i++) {
        const struct entry *e = &list->entries[i];

        if (e->to - e->from == to - from && memcmp(text + e->from, text + from, to - from) == 0)
            return true;
    }
    return false;
}

static void add_entry(struct entry_list *list, const uint8_t *text, uint32_t from, uint32_t to,
                      const struct mark *mark)
{
    to = trim(text, from, to);
    while (from < to && text[from] <= ' ')
        from++;
    if (from == to || to - from + GAP > SEARCH_ENTRIES_BYTES || list->count == LIST_MAX ||
        !has_mark(text, from, to, mark) || is_there(list, text, from, to))
        return;
    list->entries[list->count++] = (struct entry){.from = from, .to = to};
}

/* What stands between blank lines and has the mark. */
static void collect(struct entry_list *list, const uint8_t *text, uint32_t bytes,
                    const struct mark *mark)
{
    uint32_t from = 0;

    for (uint32_t at = 0; at < bytes;) {
        const uint8_t *line_end = memchr(text + at, '\n', bytes - at);
        uint32_t next = line_end ? (uint32_t)(line_end - text) + 1 : bytes;

        if (trim(text, at, next) == at) {
            add_entry(list, text, from, at, mark);
            from = next;
        }
        at = next;
    }
    add_entry(list, text, from, bytes, mark);
}

/* Which of the question's words an entry has, and how many words in all. */
static void see_words(struct entry *e, const uint8_t *text, char asked[][SEARCH_WORD_BYTES_MAX + 1],
                      uint32_t asked_count)
{
    uint32_t seen[SEARCH_ENTRIES_BYTES / 2 + 1], i;
    struct search_word word;
    size_t at = e->from;

    while (search_next_word(text, e->to, &at, &word)) {
        uint32_t hash = (uint32_t)XXH3_64bits(word.text, word.bytes);

        for (i = 0; i < e->size && seen[i] != hash; i++)
            ;
        if (i < e->size)
            continue;
        seen[e->size++] = hash;
        for (i = 0; i < asked_count; i++)
            if (strcmp(asked[i], word.text) == 0)
                e->words |= 1u << i;
    }
}

static void score(struct entry_list *list, const uint8_t *text, const uint8_t *question,
                  uint32_t question_bytes)
{
    char asked[SEARCH_WORDS_MAX][SEARCH_WORD_BYTES_MAX + 1];
    uint32_t count = search_question_words(question, question_bytes, asked);

    for (uint32_t i = 0; i < list->count; i++)
        see_words(&list->entries[i], text, asked, count);
    for (uint32_t word = 0; word < count; word++) {
        uint32_t have = 0;

        for (uint32_t i = 0; i < list->count; i++)
            have += list->entries[i].words >> word & 1;
        for (uint32_t i = 0; i < list->count; i++)
            if (list->entries[i].words >> word & 1)
                list->entries[i].score +=
                    log((list->count + 1) / (have + 0.5)) / sqrt(list->entries[i].size + 1.0);
    }
}

/* The best, the best of them last: bytes of out. */
static uint32_t put(struct entry_list *list, const uint8_t *text, uint8_t *out)
{
    const struct entry *taken[LIST_MAX];
    uint32_t count = 0, used = 0;

    while (count < list->count) {
        struct entry *best = NULL;

        for (uint32_t i = 0; i < list->count; i++)
            if (!list->entries[i].taken && (!best || list->entries[i].score > best->score))
                best = &list->entries[i];
        if (used + best->to - best->from + GAP > SEARCH_ENTRIES_BYTES)
            break;
        best->taken = true;
        used += best->to - best->from + GAP;
        taken[count++] = best;
    }
    for (used = 0; count; used += GAP) {
        const struct entry *e = taken[--count];

        memcpy(out + used, text + e->from, e->to - e->from);
        used += e->to - e->from;
        memcpy(out + used, "\n\n", GAP);
    }
    return used;
}

uint32_t search_entries(const uint8_t *text, uint32_t bytes, const uint8_t *question,
                        uint32_t question_bytes, uint8_t *out)
{
    struct entry_list list = {.count = 0};
    struct mark mark;

    mark.bytes = search_mark(question, question_bytes, &mark.text);
    if (!mark.bytes)
        return 0;
    collect(&list, text, bytes, &mark);
    if (list.count < SEARCH_ENTRIES_MIN)
        return 0;
    score(&list, text, question, question_bytes);
    return put(&list, text, out);
}

/* ---- of what was found ---- */

/* A chunk's text behind `used` bytes of s->text, of which it repeats the end where it follows. */
static uint32_t add_chunk(struct search *s, struct word_table *t, uint64_t chunk, bool follows,
                          uint32_t used)
{
    sqlite3_stmt *get = t->statement[GET_TEXT];

    sqlite3_bind_int64(get, 1, (int64_t)chunk);
    if (sqlite3_step(get) == SQLITE_ROW) {
        const uint8_t *text = sqlite3_column_text(get, 3);
        uint32_t bytes = text ? (uint32_t)sqlite3_column_bytes(get, 3) : 0, shared = 0;

        if (follows && bytes) {
            shared = (uint32_t)search_overlap(s->text, used, text, bytes);
        } else if (used && used + GAP <= CHUNK_TEXT_MAX) {
            memcpy(s->text + used, "\n\n", GAP);
            used += GAP;
        }
        bytes -= shared;
        bytes = bytes < CHUNK_TEXT_MAX - used ? bytes : CHUNK_TEXT_MAX - used;
        if (bytes)
            memcpy(s->text + used, text + shared, bytes);
        used += bytes;
    }
    sqlite3_reset(get);
    return used;
}

/* The found chunks' texts in the stream's order, in s->text, which is indexing's and free. */
static uint32_t gather(struct search *s, struct word_table *t, const struct search_job *job)
{
    uint64_t least = 0;
    uint32_t used = 0;

    for (uint32_t done = 0; done < job->text_count; done++) {
        uint64_t chunk = UINT64_MAX;

        for (uint32_t i = 0; i < job->text_count; i++)
            if (job->text[i].chunk >= least && job->text[i].chunk < chunk)
                chunk = job->text[i].chunk;
        if (chunk == UINT64_MAX)
            break;
        used = add_chunk(s, t, chunk, done && chunk == least, used);
        least = chunk + 1;
    }
    return used;
}

void search_job_entries(struct search *s, struct word_table *t, struct search_job *job)
{
    const uint8_t *mark;

    job->entries_bytes = 0;
    if (job->text_count && search_mark(job->question, job->question_bytes, &mark))
        job->entries_bytes = search_entries(s->text, gather(s, t, job), job->question,
                                            job->question_bytes, job->entries);
}
