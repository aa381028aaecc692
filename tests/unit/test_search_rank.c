/*
 * A question's words in one place: what the search finds of random texts, beside looking at every
 * window of every chunk.
 *
 * argv[1] or SILT_SEED: the seed, printed; SILT_ROUNDS: more of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/search_internal.h"
#include "tests/unit/rig.h"

enum {
    CHUNKS_MAX = 1500,
    WORDS_MAX = 48, /* of a chunk's text */
    TEXT_MAX = WORDS_MAX * 16,
    STEMS_MAX = 2 * WORDS_MAX,
    QUESTIONS = 12,
    WINDOW = 8,
    STREAM = 77,
};

static uint64_t seed_first = 1, rounds = 12;

/* Some are near to others, have the same stem, or are more than one word to the index. */
static const char *const vocabulary[] = {
    "car",    "red",     "auto",   "crimson", "automobile", "ruddy", "oxide",  "rust",
    "walks",  "walking", "walked", "gates",   "gate",       "river", "stone",  "bread",
    "market", "trains",  "don’t",  "t",       "don",        "Grüße", "Grusse", "keeper’s",
    "keeper", "s",       "48213",  "vault",   "boat",       "cars",  "reds",   "Überfahrt",
};
enum { VOCABULARY = sizeof vocabulary / sizeof *vocabulary };

struct row {
    char text[TEXT_MAX];
    bool kept; /* the index still has it */
    uint32_t count;
    uint64_t stem[STEMS_MAX];                /* [count] */
    uint32_t from[STEMS_MAX], to[STEMS_MAX]; /* [count] bytes */
};
/* The naive view of a question. */
struct phrase {
    uint32_t group, count;
    uint64_t stem[TERM_TOKENS_MAX]; /* [count] */
    uint64_t held;
    float weight;
};
struct wanted {
    uint32_t groups, count;
    struct phrase phrase[RANK_PHRASES_MAX]; /* [count] */
    float most;
};
struct bench {
    char folder[128];
    struct rig rig;
    struct search *search;
    void *memory;
    struct word_table *table;
    uint64_t seed;
    uint32_t chunks;
    struct row row[CHUNKS_MAX];
    struct wanted wanted;
};

static uint32_t draw(struct bench *b, uint32_t below)
{
    return (uint32_t)(faults_random(&b->seed) % below);
}

/* ---- texts ---- */

static int see_row(void *user, int flags, const char *text, int bytes, int from, int to)
{
    struct row *row = user;

    (void)flags;
    assert_true(row->count < STEMS_MAX);
    row->from[row->count] = (uint32_t)from;
    row->to[row->count] = (uint32_t)to;
    row->stem[row->count++] = XXH3_64bits(text, (size_t)bytes);
    return SQLITE_OK;
}

/* The first words of the vocabulary are the rare ones. */
static const char *draw_word(struct bench *b)
{
    uint32_t most = draw(b, VOCABULARY), least = draw(b, VOCABULARY);

    return vocabulary[most > least ? most : least];
}

static void make_row(struct bench *b, struct row *row)
{
    uint32_t words = draw(b, 8) ? draw(b, WORDS_MAX) : 0;

    row->kept = true;
    row->count = 0;
    row->text[0] = '\0';
    for (uint32_t i = 0; i < words; i++) {
        size_t used = strlen(row->text);

        snprintf(row->text + used, sizeof row->text - used, "%s%s", draw_word(b),
                 draw(b, 6) ? " " : ", ");
    }
    assert_int_equal(word_table_stems(b->table, row->text, strlen(row->text), row, see_row), 0);
}

static void put_row(struct bench *b, uint32_t chunk)
{
    sqlite3_stmt *add = b->table->statement[ADD_CHUNK], *words = b->table->statement[ADD_WORDS];

    sqlite3_bind_int64(add, 1, chunk);
    sqlite3_bind_text(add, 6, b->row[chunk].text, -1, SQLITE_STATIC);
    sqlite3_bind_int64(words, 1, chunk);
    sqlite3_bind_text(words, 2, b->row[chunk].text, -1, SQLITE_STATIC);
    assert_int_equal(sqlite3_step(add), SQLITE_DONE);
    assert_int_equal(sqlite3_step(words), SQLITE_DONE);
    sqlite3_reset(add);
    sqlite3_reset(words);
}

/* In transactions of a few chunks each, so that the index has many parts; some of it goes. */
static void fill(struct bench *b)
{
    uint32_t trimmed;

    b->chunks = 1 + draw(b, draw(b, 3) ? CHUNKS_MAX : 40);
    for (uint32_t i = 0; i < b->chunks;) {
        uint32_t end = i + 1 + draw(b, 32);

        assert_int_equal(sqlite3_exec(b->table->db, "BEGIN", NULL, NULL, NULL), 0);
        for (; i < end && i < b->chunks; i++) {
            make_row(b, &b->row[i]);
            put_row(b, i);
        }
        assert_int_equal(sqlite3_exec(b->table->db, "COMMIT", NULL, NULL, NULL), 0);
    }
    b->table->chunks = b->chunks;
    trimmed = draw(b, 2) ? 0 : draw(b, b->chunks);
    assert_int_equal(search_trim(b->search, STREAM, trimmed), 0);
    for (uint32_t i = 0; i < trimmed; i++) {
        b->row[i].kept = !b->row[i].text[0];
        b->row[i].count = 0;
        b->row[i].text[0] = '\0';
    }
}

static struct bench *open_bench(uint64_t seed)
{
    struct bench *b = calloc(1, sizeof *b);
    struct rig_options rig = {.slots = 1, .asks = 1, .lag_tokens_max = 1 << 16};
    struct search_options options = {.folder = b->folder,
                                     .tokenizer = engine_tokenizer(rig_engine()),
                                     .engine = rig_engine(),
                                     .chunk_tokens = 256,
                                     .item_tokens_max = 1 << 17,
                                     .slots = b->rig.slots,
                                     .slot_count = 1};
    size_t bytes = (search_bytes(1, options.item_tokens_max) + 63) / 64 * 64;
    char error[400] = "";

    b->seed = seed * 0x9e3779b97f4a7c15u;
    rig_folder(b->folder, sizeof b->folder);
    assert_int_equal(rig_open(&b->rig, b->folder, &rig), 0);
    b->memory = aligned_alloc(64, bytes);
    if (search_open(&b->search, &options, b->memory, error, sizeof error))
        fail_msg("%s", error);
    b->table = search_table(b->search, STREAM, false);
    assert_non_null(b->table);
    fill(b);
    if (draw(b, 2)) /* room for some of the texts at a time */
        b->search->postings.room = 2 * STEMS_MAX + draw(b, 800);
    return b;
}

static void close_bench(struct bench *b)
{
    search_close(&b->search);
    free(b->memory);
    rig_close(&b->rig);
    rig_folder_drop(b->folder);
    free(b);
}

/* ---- what is to be found ---- */

static int see_phrase(void *user, int flags, const char *text, int bytes, int from, int to)
{
    struct phrase *phrase = user;

    (void)flags;
    (void)from;
    (void)to;
    phrase->stem[phrase->count++] = XXH3_64bits(text, (size_t)bytes);
    return SQLITE_OK;
}

static bool stands_at(const struct phrase *phrase, const struct row *row, uint32_t at)
{
    if (!phrase->count || at + phrase->count > row->count)
        return false;
    return memcmp(phrase->stem, row->stem + at, phrase->count * sizeof *row->stem) == 0;
}

static float rarity(uint64_t rows, uint64_t with)
{
    double n = (double)rows, k = fmin((double)with, n);

    return (float)fmax(0.1, log((n - k + 0.5) / (k + 0.5)));
}

/* False: no chunk of those that count, below `end`, has it. */
static bool want_phrase(struct bench *b, const char *text, uint32_t group, uint32_t end)
{
    struct phrase *phrase = &b->wanted.phrase[b->wanted.count];

    *phrase = (struct phrase){.group = group};
    word_table_stems(b->table, text, strlen(text), phrase, see_phrase);
    for (uint32_t i = 0; i < end; i++) {
        bool has = false;

        for (uint32_t at = 0; at < b->row[i].count; at++)
            has = has || stands_at(phrase, &b->row[i], at);
        phrase->held += has;
    }
    b->wanted.count += phrase->held > 0;
    return phrase->held > 0;
}

static uint32_t rows_below(const struct bench *b, uint32_t end)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < end; i++)
        rows += b->row[i].kept;
    return rows;
}

/* What is behind the moment that is asked about, chunk `end`, is nothing to it. */
static void want(struct bench *b, const char *question, uint32_t end)
{
    uint32_t rows = rows_below(b, end);
    struct wanted *w = &b->wanted;
    char words[SEARCH_WORDS_MAX][SEARCH_WORD_BYTES_MAX + 1];
    struct near_word near[64];

    w->count = 0;
    w->most = 0;
    w->groups = search_question_words((const uint8_t *)question, strlen(question), words);
    for (uint32_t g = 0; g < w->groups; g++) {
        uint32_t first = w->count, n = engine_near_words(rig_engine(), words[g], near, 64);
        bool absent = !want_phrase(b, words[g], g, end);
        uint64_t together = 0;
        float all, most;

        for (uint32_t i = 0; i < n; i++)
            absent |= !want_phrase(b, near[i].text, g, end);
        for (uint32_t i = first; i < w->count; i++)
            together += w->phrase[i].held;
        all = rarity(rows, together);
        most = absent ? (2 * rarity(rows, 0) + all) / 3 : 0;
        for (uint32_t i = first; i < w->count; i++) {
            w->phrase[i].weight = (2 * rarity(rows, w->phrase[i].held) + all) / 3;
            most = fmaxf(most, w->phrase[i].weight);
        }
        w->most += most;
    }
}

/* What the WINDOW words from `at` on have of the question; `last`: the last that counts. */
static float window_score(const struct wanted *w, const struct row *row, uint32_t at,
                          struct rank_place *out)
{
    float best[SEARCH_WORDS_MAX] = {0}, sum = 0;

    *out = (struct rank_place){.from = row->from[at]};
    for (uint32_t i = at; i < row->count && i < at + WINDOW; i++)
        for (uint32_t k = 0; k < w->count; k++)
            if (stands_at(&w->phrase[k], row, i) &&
                w->phrase[k].weight > best[w->phrase[k].group]) {
                best[w->phrase[k].group] = w->phrase[k].weight;
                out->to = row->to[i];
            }
    for (uint32_t g = 0; g < w->groups; g++) {
        sum += best[g];
        out->words += best[g] > 0;
    }
    return sum;
}

/* The first of the best windows that begin with a word of the question. */
static float row_score(const struct wanted *w, const struct row *row, struct rank_place *out)
{
    float best = 0;

    *out = (struct rank_place){0};
    for (uint32_t at = 0; at < row->count; at++) {
        struct rank_place place;
        float score = window_score(w, row, at, &place);
        bool begins = false;

        for (uint32_t k = 0; k < w->count; k++)
            begins = begins || stands_at(&w->phrase[k], row, at);
        if (begins && score > best) {
            best = score;
            *out = place;
        }
    }
    return best;
}

static int better_first(const void *a, const void *b)
{
    const struct search_hit *x = a, *y = b;

    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return x->chunk < y->chunk ? -1 : 1;
}

static void compare(struct bench *b, const char *question, uint32_t chunk_end)
{
    static struct search_hit all[CHUNKS_MAX], hits[SEARCH_WORD_HITS_MAX];
    struct search_job job = {.stream_id = STREAM,
                             .question = (const uint8_t *)question,
                             .question_bytes = (uint32_t)strlen(question),
                             .chunk_end = chunk_end};
    int count = search_rank_find(b->search, b->table, &job, hits), want_count = 0;
    uint32_t end = chunk_end < b->chunks ? chunk_end : b->chunks;

    want(b, question, end);
    for (uint32_t i = 0; i < end; i++) {
        struct rank_place place, found;
        float score = row_score(&b->wanted, &b->row[i], &place);

        if (score > 0)
            all[want_count++] = (struct search_hit){i, (double)score};
        if (i % 16)
            continue;
        assert_int_equal(search_rank_place(b->search, b->table, (const uint8_t *)b->row[i].text,
                                           strlen(b->row[i].text), &found),
                         0);
        if (score < b->wanted.most / 4)
            place = (struct rank_place){0};
        assert_memory_equal(&found, &place, sizeof place);
    }
    qsort(all, (size_t)want_count, sizeof *all, better_first);
    want_count = want_count < SEARCH_WORD_HITS_MAX ? want_count : SEARCH_WORD_HITS_MAX;
    assert_int_equal(count, want_count);
    for (int i = 0; i < count; i++) {
        assert_int_equal(hits[i].chunk, all[i].chunk);
        assert_true(hits[i].score == all[i].score); /* to the bit */
    }
    if (count)
        assert_true(search_rank_most(&b->search->rank) == b->wanted.most);
}

/* ---- */

static void what_is_found_is_what_all_windows_have(void **state)
{
    uint64_t seed = seed_first;

    (void)state;
    for (uint64_t round = 0; round < rounds; round++, seed++) {
        struct bench *b = open_bench(seed);

        print_message("seed %llu: %u chunks, room for %u places\n", (unsigned long long)seed,
                      b->chunks, b->search->postings.room);
        for (int i = 0; i < QUESTIONS; i++) {
            char question[256] = "What of the";
            uint32_t words = 1 + draw(b, 7);

            for (uint32_t k = 0; k < words; k++) {
                size_t used = strlen(question);

                snprintf(question + used, sizeof question - used, " %s",
                         vocabulary[draw(b, VOCABULARY)]);
            }
            compare(b, question, draw(b, 2) ? UINT32_MAX : draw(b, b->chunks + 1));
        }
        compare(b, "Zeppelin?", UINT32_MAX);
        compare(b, "— …", UINT32_MAX);
        close_bench(b);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_found_is_what_all_windows_have),
    };

    seed_first = argc > 1 ? strtoull(argv[1], NULL, 10) : faults_number("SILT_SEED", seed_first);
    rounds = faults_number("SILT_ROUNDS", rounds);
    return cmocka_run_group_tests_name("search_rank", tests, NULL, NULL);
}
