/*
 * The search under callgrind: indexing, then a question by words, by keys and by both (closeness),
 * and the texts that it would have put before it.
 *
 * The stream's text is drawn word by word from that of hot.c, with three facts in it, so that all
 * of it stays what it is; what a question asks for by meaning is made up, for no real model reads
 * it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/journal.h"
#include "daemon/search_internal.h"
#include "tests/bench/hot.h"

enum {
    CHUNK = 256,
    PIECE_BYTES = 8 << 10,
    PIECES = 48, /* some 370 chunks */
    PIECE_TOKENS = 16 << 10,
    WORD_MAX = 24,
    LINE_WORDS = 12,
    VOCAB_MAX = 1 << 16,
};

/* One of the question's words is in most chunks. */
static const char question[] = "What was the crimson automobile of the license office sold for?";
static const char fact[] = "The red car of the license office was sold for 48213 crowns.\n";

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* Fills a piece with lines of words that `words` has, each begun where a word begins. */
static size_t make_piece(uint8_t *out, const uint8_t *words, size_t bytes, uint32_t *seed)
{
    size_t used = 0;

    for (uint32_t count = 1; used + WORD_MAX + 2 < PIECE_BYTES; count++) {
        size_t at = draw(seed) % (bytes - 2 * WORD_MAX), n = 0;

        while (words[at] > ' ' && ++n < WORD_MAX)
            at++;
        while (words[at] <= ' ' && at < bytes - WORD_MAX)
            at++;
        for (n = 0; n < WORD_MAX && words[at + n] > ' '; n++)
            out[used++] = words[at + n];
        out[used++] = count % LINE_WORDS ? ' ' : '\n';
    }
    return used;
}

static void make_journal(const char *folder, const struct tokenizer *tokenizer, struct slot *slot,
                         const uint8_t *words, size_t bytes)
{
    static uint8_t piece[PIECE_BYTES + sizeof fact];
    static int32_t tokens[PIECE_TOKENS];
    struct journal_options options = {.folder = folder, .model_name = "", .kernels_name = "hot"};
    struct journal_stream stream = {.name = "s", .dmc_ratio = 1, .ring_segments = 1};
    struct journal *journal;
    char error[ERROR_BYTES_MAX] = "";
    uint32_t seed = 1;

    hot_check(mkdir(folder, 0700) == 0 && !journal_open(&journal, &options, error, sizeof error),
              error);
    hot_check(!journal_begin(journal) && !journal_stream_create(journal, &stream), "journal");
    for (uint32_t i = 0; i < PIECES; i++) {
        size_t used = make_piece(piece, words, bytes, &seed);
        struct journal_item item = {.item = {.kind = ITEM_TEXT, .bytes = piece},
                                    .time_us = 1,
                                    .token_from = stream.tokens,
                                    .held_before = stream.text.held_bytes};

        if (i % (PIECES / 3) == 1) {
            memcpy(piece + used, fact, sizeof fact - 1);
            used += sizeof fact - 1;
        }
        item.item.bytes_count = (uint32_t)used;
        hot_check(!journal_item_append(journal, stream.id, stream.items++, &item), "journal item");
        stream.tokens += token_feed(tokenizer, &stream.text, piece, used, tokens);
        stream.bytes_text += used;
    }
    hot_check(!journal_stream_update(journal, &stream) && !journal_commit(journal), "journal");
    journal_close(&journal);
    atomic_store(&slot->stream_id, stream.id);
    atomic_store(&slot->tokens_loaded, stream.tokens);
    atomic_store(&slot->tokens_acked, stream.tokens);
}

static void run(struct search *search, struct search_job *job)
{
    atomic_store(&job->done, false);
    hot_check(search_submit(search, job) == 0, "search: full");
    search_step(search);
    hot_check(atomic_load(&job->done) && job->result == 0 && job->hit_count > 0, "search");
}

/* Each once before it counts, with another question, for that opens the stream's database. */
static void ask(struct search *search, struct search_job *job, enum search_by by,
                const char *figure)
{
    static const char other[] = "Who of them was at the meeting?";

    search->options.by = by;
    job->kind = SEARCH_FIND;
    job->question = (const uint8_t *)other;
    job->question_bytes = sizeof other - 1;
    run(search, job);
    job->question = (const uint8_t *)question;
    job->question_bytes = sizeof question - 1;
    hot_begin();
    run(search, job);
    hot_end(figure, 1);
}

static void ask_all(struct search *search, uint64_t stream_id)
{
    struct search_job *job = calloc(1, sizeof *job);
    uint8_t *table = hot_memory((size_t)VOCAB_MAX * RECALL_QUERY_TOKENS);
    uint32_t seed = 2;

    hot_check(job, "no memory");
    /* A table of few tokens that are near to each of the question's. */
    for (size_t i = 0; i < (size_t)VOCAB_MAX * RECALL_QUERY_TOKENS; i++)
        table[i] = draw(&seed) % 64 ? 0 : (uint8_t)draw(&seed);
    job->stream_id = stream_id;
    job->chunk_end = UINT32_MAX;
    job->table = table;
    ask(search, job, SEARCH_BY_WORDS, "search-words");
    ask(search, job, SEARCH_BY_KEYS, "search-keys");
    ask(search, job, SEARCH_BY_BOTH, "search-both");
    job->kind = SEARCH_TEXTS;
    for (job->text_count = 0;
         job->text_count < job->hit_count && job->text_count < STREAM_RECALL_MAX; job->text_count++)
        job->text[job->text_count].chunk = job->hits[job->text_count].chunk;
    hot_begin();
    run(search, job);
    hot_end("search-texts", 1);
    hot_check(strstr(job->text[0].text, "48213"), "the fact is not found first");
    free(table);
    free(job);
}

void hot_search(const char *folder, const struct engine *engine, const struct tokenizer *tokenizer,
                const uint8_t *words, size_t bytes)
{
    static struct slot slot;
    struct search_options options = {
        .folder = folder,
        .keys = true,
        .model_fingerprint = 1,
        .tokenizer = tokenizer,
        .engine = engine,
        .chunk_tokens = CHUNK,
        .item_tokens_max = PIECE_TOKENS,
        .slots = &slot,
        .slot_count = 1,
    };
    void *memory = hot_memory(search_bytes(1, PIECE_TOKENS));
    struct search *search;
    char error[ERROR_BYTES_MAX] = "";

    make_journal(folder, tokenizer, &slot, words, bytes);
    hot_check(!search_open(&search, &options, memory, error, sizeof error), error);
    search_step(search); /* the first batch makes the database */
    hot_begin();
    while (search_step(search))
        ;
    hot_end("search-index-token", (double)atomic_load(&slot.tokens_acked));
    ask_all(search, atomic_load(&slot.stream_id));
    search_close(&search);
    free(memory);
}
