/*
 * How much of a question a chunk has in one place, by its words and by words near them in meaning.
 *
 * A question's word and what may stand for it (engine_near_words) are one term, of which a place
 * counts the rarest once; a third of that is how rare all of them together are (Pirkola's
 * structured queries, SIGIR 1998), so that a word with many kin says less. Of a chunk the densest
 * RANK_WINDOW words count: "the red car" is asked for where "crimson" stands beside "automobile",
 * not where a chunk has one of them here and the other there. Words that the index does not tell
 * apart, for it has stems, are read once; a window that cannot be better than those found is
 * passed over by the sum of what its words can add at most.
 */
#include "daemon/search_internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <xxhash.h>

enum { RANK_WINDOW = 8, NEAR_MAX = 64, CAP_SCALE = 1 << 12, MARKS = 1 << 12 };
#define WEIGHT_MIN  0.1   /* of what is in every other chunk */
#define PLACE_SHARE 0.25f /* of the question, for a place to be the one it asks for */

/* ---- the question ---- */

static int see_stem(void *user, int flags, const char *text, int bytes, int from, int to)
{
    struct rank_term *term = user;

    (void)from;
    (void)to;
    if (!(flags & FTS5_TOKEN_COLOCATED) && term->token_count < TERM_TOKENS_MAX)
        term->token[term->token_count++] = XXH3_64bits(text, (size_t)bytes);
    return SQLITE_OK;
}

/* The term of a word, in *index; a new one where none is the same to the index. */
static int add_term(struct search_rank *r, struct word_table *t, const char *text, uint32_t *index)
{
    struct rank_term *term = &r->term[r->term_count], *old = r->term;

    term->token_count = 0;
    if (word_table_stems(t, text, strlen(text), term, see_stem))
        return -EIO;
    while (old < term && (old->token_count != term->token_count ||
                          memcmp(old->token, term->token, term->token_count * sizeof *old->token)))
        old++;
    *index = (uint32_t)(old - r->term);
    if (old < term)
        return 0;
    memcpy(term->text, text, strlen(text) + 1);
    term->held = 0;
    r->term_count++;
    return 0;
}

static int add_phrase(struct search_rank *r, struct word_table *t, const char *text, uint32_t group)
{
    struct rank_phrase *phrase = &r->phrase[r->phrase_count];

    if (r->phrase_count == RANK_PHRASES_MAX)
        return 0;
    r->phrase_count++;
    phrase->group = group;
    return add_term(r, t, text, &phrase->term);
}

static int add_phrases(struct search *s, struct word_table *t, const struct search_job *job)
{
    struct search_rank *r = &s->rank;
    char words[SEARCH_WORDS_MAX][SEARCH_WORD_BYTES_MAX + 1];
    struct near_word near[NEAR_MAX];
    uint32_t count = search_question_words(job->question, job->question_bytes, words);
    uint32_t each = count ? (RANK_PHRASES_MAX - count) / count : 0;
    int result = 0;

    r->group_count = count;
    for (uint32_t g = 0; g < count && !result; g++) {
        uint32_t n = 0;

        result = add_phrase(r, t, words[g], g);
        if (s->options.engine)
            n = engine_near_words(s->options.engine, words[g], near,
                                  each < NEAR_MAX ? each : NEAR_MAX);
        for (uint32_t i = 0; i < n && !result; i++)
            result = add_phrase(r, t, near[i].text, g);
    }
    return result;
}

static float rarity(double rows, double with)
{
    with = fmin(with, rows);
    return (float)fmax(WEIGHT_MIN, log((rows - with + 0.5) / (with + 0.5)));
}

/* Phrases that no chunk has go: most that may stand for a word none has. */
static void drop_absent(struct search_rank *r)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < r->phrase_count; i++)
        if (r->term[r->phrase[i].term].held)
            r->phrase[kept++] = r->phrase[i];
        else
            r->absent[r->phrase[i].group] = true;
    r->phrase_count = kept;
}

/* A term stands for each of its words once; all of what it stands for is the most it can add. */
static void link_phrase(struct search_rank *r, uint32_t index)
{
    struct rank_phrase *phrase = &r->phrase[index];
    struct rank_term *term = &r->term[phrase->term];

    for (uint32_t i = term->phrase; i != UINT32_MAX; i = r->phrase[i].next)
        if (r->phrase[i].group == phrase->group)
            return;
    phrase->next = term->phrase;
    term->phrase = index;
    r->cap[phrase->term] += (uint32_t)(phrase->weight * CAP_SCALE) + 2; /* sums are rounded, too */
}

/* How rare each phrase is, and, for a third, all that stand for one word of the question together.
 * Once a question. */
static void weigh(struct search_rank *r, double rows)
{
    uint64_t together[SEARCH_WORDS_MAX] = {0};
    float all[SEARCH_WORDS_MAX];

    drop_absent(r);
    for (uint32_t i = 0; i < r->phrase_count; i++)
        together[r->phrase[i].group] += r->term[r->phrase[i].term].held;
    for (uint32_t g = 0; g < r->group_count; g++) {
        all[g] = rarity(rows, (double)together[g]);
        r->most[g] = r->absent[g] ? (2 * rarity(rows, 0) + all[g]) / 3 : 0;
    }
    for (uint32_t i = 0; i < r->term_count; i++) {
        r->term[i].phrase = UINT32_MAX;
        r->cap[i] = 0;
    }
    for (uint32_t i = 0; i < r->phrase_count; i++) {
        struct rank_phrase *phrase = &r->phrase[i];
        uint32_t g = phrase->group;

        phrase->weight = (2 * rarity(rows, (double)r->term[phrase->term].held) + all[g]) / 3;
        r->most[g] = fmaxf(r->most[g], phrase->weight);
        link_phrase(r, i);
    }
    r->weighed = true;
}

static uint64_t end_of(const struct search_job *job)
{
    return job->chunk_end < UINT32_MAX ? job->chunk_end : UINT32_MAX;
}

/* Chunks of the index that are before the question's moment: it has no gaps behind what was
 * trimmed away. */
static uint64_t rows_below(const struct word_table *t, uint64_t rows, uint64_t chunk_end)
{
    uint64_t behind = t->chunks > chunk_end ? t->chunks - chunk_end : 0;

    return rows > behind ? rows - behind : 0;
}

/* The question's words, what may stand for them, and, weighed, where the first chunks have it: of
 * those below `to`. */
static int read_question(struct search *s, struct word_table *t, const struct search_job *job,
                         uint64_t to)
{
    struct search_rank *r = &s->rank;
    int result;

    r->stream_id = job->stream_id;
    r->chunk_end = end_of(job);
    r->question_hash = XXH3_64bits(job->question, job->question_bytes);
    r->phrase_count = r->term_count = 0;
    r->weighed = false;
    memset(r->absent, 0, sizeof r->absent);
    result = add_phrases(s, t, job);
    if (!result)
        result = search_gather(s, t, 0, to);
    if (!result)
        weigh(r, (double)rows_below(t, s->postings.rows, r->chunk_end));
    return result;
}

int search_rank_question(struct search *s, struct word_table *t, const struct search_job *job)
{
    struct search_rank *r = &s->rank;

    if (r->weighed && r->stream_id == job->stream_id && r->chunk_end == end_of(job) &&
        r->question_hash == XXH3_64bits(job->question, job->question_bytes))
        return 0;
    return read_question(s, t, job, 0);
}

float search_rank_most(const struct search_rank *r)
{
    float sum = 0;

    for (uint32_t g = 0; g < r->group_count && r->weighed && r->phrase_count; g++)
        sum += r->most[g];
    return sum;
}

/* ---- a chunk ---- */

/* Of a chunk's words: the densest window. */
struct window {
    float score;
    uint32_t words;    /* of the question's, that are there */
    uint32_t from, to; /* words of the chunk, both in it */
};

static uint32_t word_of(uint64_t place)
{
    return place >> 16 & UINT16_MAX;
}

static uint32_t term_of(uint64_t place)
{
    return place & UINT16_MAX;
}

/* All of the places, which lie within RANK_WINDOW. */
static struct window score_window(const struct search_rank *r, const uint64_t *place,
                                  uint32_t count)
{
    float best[SEARCH_WORDS_MAX] = {0};
    struct window out = {.from = word_of(place[0])};

    for (uint32_t i = 0; i < count; i++)
        for (uint32_t at = r->term[term_of(place[i])].phrase; at != UINT32_MAX;
             at = r->phrase[at].next)
            if (r->phrase[at].weight > best[r->phrase[at].group]) {
                best[r->phrase[at].group] = r->phrase[at].weight;
                out.to = word_of(place[i]);
            }
    for (uint32_t g = 0; g < r->group_count; g++) {
        out.score += best[g];
        out.words += best[g] > 0;
    }
    return out;
}

/* The densest window of a chunk's places, in order; one that is no better than `least` is not
 * looked for. */
static struct window find_window(const struct search_rank *r, const uint64_t *place, uint32_t count,
                                 float least)
{
    struct window best = {.score = least};
    uint32_t cap = 0, end = 0;

    for (uint32_t i = 0; i < count; i++) {
        while (end < count && word_of(place[end]) < word_of(place[i]) + RANK_WINDOW)
            cap += r->cap[term_of(place[end++])];
        if (cap > (uint32_t)(best.score * CAP_SCALE)) {
            struct window window = score_window(r, place + i, end - i);

            if (window.score > best.score)
                best = window;
        }
        cap -= r->cap[term_of(place[i])];
    }
    return best;
}

/* The chunks come in order: of equals the first. */
static void keep_best(struct search_hit *hits, uint32_t *count, struct search_hit hit)
{
    uint32_t at = *count < SEARCH_WORD_HITS_MAX ? (*count)++ : SEARCH_WORD_HITS_MAX - 1;

    for (; at && hits[at - 1].score < hit.score; at--)
        hits[at] = hits[at - 1];
    hits[at] = hit;
}

static void rank_chunks(struct search *s, struct search_hit *hits, uint32_t *hit_count)
{
    struct postings *p = &s->postings;
    const uint64_t *place;
    uint32_t count;

    while ((place = search_next_places(p, &count)))
        for (uint32_t from = 0, to = 0; from < count; from = to) {
            bool full = *hit_count == SEARCH_WORD_HITS_MAX;
            float least = full ? (float)hits[SEARCH_WORD_HITS_MAX - 1].score : 0;
            uint64_t chunk = place[from] >> 32;
            struct window window;

            while (to < count && place[to] >> 32 == chunk)
                to++;
            window = find_window(&s->rank, place + from, to - from, least);
            if (window.words)
                keep_best(hits, hit_count,
                          (struct search_hit){p->from + chunk, (double)window.score});
        }
}

int search_rank_find(struct search *s, struct word_table *t, const struct search_job *job,
                     struct search_hit *hits)
{
    uint64_t end = end_of(job);
    uint32_t count = 0;
    int result = read_question(s, t, job, end);

    while (!result) {
        rank_chunks(s, hits, &count);
        if (s->postings.to == end)
            return (int)count;
        result = search_gather(s, t, s->postings.to, end);
    }
    return result;
}

/* ---- where in a chunk ---- */

static int see_word(void *user, int flags, const char *text, int bytes, int from, int to)
{
    struct rank_words *w = user;

    if (!(flags & FTS5_TOKEN_COLOCATED) && w->count < RANK_WORDS_MAX)
        w->word[w->count++] =
            (struct rank_word){XXH3_64bits(text, (size_t)bytes), (uint32_t)from, (uint32_t)to};
    return SQLITE_OK;
}

static bool term_stands_at(const struct rank_term *term, const struct rank_words *w, uint32_t at)
{
    if (!term->held || term->token_count > w->count - at)
        return false;
    for (uint32_t i = 0; i < term->token_count; i++)
        if (term->token[i] != w->word[at + i].stem)
            return false;
    return true;
}

/* A bit for each stem that a term begins with, or that looks like it: few words of a text do. */
static void mark_stems(const struct search_rank *r, uint64_t bits[MARKS / 64])
{
    memset(bits, 0, MARKS / 8);
    for (uint32_t i = 0; i < r->term_count; i++)
        if (r->term[i].held)
            bits[r->term[i].token[0] % MARKS / 64] |= UINT64_C(1) << r->term[i].token[0] % 64;
}

int search_rank_place(struct search *s, struct word_table *t, const uint8_t *text,
                      size_t bytes_count, struct rank_place *out)
{
    const struct search_rank *r = &s->rank;
    struct postings *p = &s->postings;
    struct rank_words *w = &s->words;
    uint64_t bits[MARKS / 64];
    struct window window;

    *out = (struct rank_place){0};
    w->count = p->count = 0;
    if (word_table_stems(t, (const char *)text, bytes_count, w, see_word))
        return -EIO;
    mark_stems(r, bits);
    for (uint32_t at = 0; at < w->count; at++) {
        uint64_t stem = w->word[at].stem;

        for (uint32_t i = 0; bits[stem % MARKS / 64] >> stem % 64 & 1 && i < r->term_count; i++)
            if (term_stands_at(&r->term[i], w, at) && p->count < p->room)
                p->place[p->count++] = (uint64_t)at << 16 | i;
    }
    window = find_window(r, p->place, p->count, 0);
    if (window.words && window.score >= search_rank_most(r) * PLACE_SHARE)
        *out = (struct rank_place){window.words, w->word[window.from].from, w->word[window.to].to};
    return 0;
}
