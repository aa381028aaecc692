/*
 * search: which parts of a stream a question is about, by its words (SQLite FTS5, BM25) and by its
 * meaning (recall_keys.h), fused.
 *
 * Every finished chunk is one row: its text, tokens and time, in a database of its stream's own
 * (DATA/search), so that removing a stream is removing a file. The rows follow from the journal,
 * which the search thread reads over its own connection at its own pace; lost or damaged, they are
 * made again. Questions are put to the same thread as jobs.
 * Limits: SEARCH_OPEN_MAX databases are open at a time; SQLite's memory grows by SEARCH_HEAP_BYTES.
 */
#ifndef SILT_DAEMON_SEARCH_H
#define SILT_DAEMON_SEARCH_H

#include "daemon/queue.h"
#include "daemon/slot.h"

enum {
    SEARCH_FORMAT = 1,
    SEARCH_OPEN_MAX = 4,
    SEARCH_CACHE_BYTES = 2 << 20, /* of each */
    SEARCH_HEAP_BYTES = SEARCH_OPEN_MAX * (SEARCH_CACHE_BYTES + (2 << 20)),
    SEARCH_HITS_MAX = 64,
    SEARCH_WORD_HITS_MAX = 256, /* what the keys find may have little of the words, and counts */
    SEARCH_WORDS_MAX = 32,      /* of a question */
    SEARCH_TEXT_MAX = 800,      /* of a chunk, around the question's words */
    SEARCH_FOCUS_MIN = 32,      /* bytes: a line so short says little by itself */
    SEARCH_FOCUS_MAX = 320,
    SEARCH_AROUND_MAX = 8192, /* bytes */
    SEARCH_EXCERPT_WORDS = 64,
    SEARCH_ENTRIES_MIN = 2, /* of a list that the question goes on */
    SEARCH_ENTRIES_BYTES = 880,
    SEARCH_OVERLAP = 32,     /* tokens of the chunk before that are indexed with a chunk */
    SEARCH_CHUNK_MAX = 1024, /* tokens */
    SEARCH_BATCH = 16,       /* chunks of one transaction */
    SEARCH_CATCH_UP = 64,    /* batches indexed at most before a question is asked */
    SEARCH_JOBS_MAX = FORKS_LIVE_MAX,
    SEARCH_PERIOD_MS = 250, /* it looks for new tokens so often */
};

struct search_hit {
    uint64_t chunk;
    double score; /* larger is better */
};
struct search_text {
    uint64_t chunk, token_from, token_to;
    uint64_t time_us, time_to_us; /* of its first and last text */
    uint32_t bytes;
    uint32_t focus_from, focus_to; /* bytes of text: what of it is put before the question */
    bool about;                    /* it has two of the question's words in one place, or more */
    char text[SEARCH_TEXT_MAX];    /* whole UTF-8 characters, terminated */
};

enum search_kind { SEARCH_FIND, SEARCH_TEXTS };
/* The caller's until it is done. */
struct search_job {
    enum search_kind kind;
    _Atomic bool done;
    uint64_t stream_id;
    int result;
    /* SEARCH_FIND: chunks below chunk_end that are about the question, best first; table: what it
     * asks for by meaning (fork_recall_table), NULL: by words alone */
    const uint8_t *table;
    const uint8_t *question;
    uint32_t question_bytes;
    uint64_t chunk_end;
    struct search_hit hits[SEARCH_HITS_MAX];
    uint32_t hit_count;
    /* SEARCH_TEXTS: of the texts, search_entries */
    uint32_t entries_bytes;
    uint8_t entries[SEARCH_ENTRIES_BYTES];
    /* SEARCH_TEXTS: text[i].chunk is given; of each the part that is about the question; what is
     * not indexed comes back with 0 bytes */
    struct search_text text[STREAM_RECALL_MAX];
    uint32_t text_count;
    /* and where text[0] is not about it, around_tokens of text, some less at its ends, with what is
     * put of text[0] in the middle, of its chunk and those next to it that are below chunk_end;
     * whole UTF-8 characters */
    uint32_t around_tokens; /* 0: none are wanted */
    uint32_t around_bytes;
    uint8_t around[SEARCH_AROUND_MAX];
};

/* Which of the two signals counts. */
enum search_by { SEARCH_BY_BOTH, SEARCH_BY_WORDS, SEARCH_BY_KEYS };

struct search_options {
    const char *folder; /* the data folder */
    bool keys;          /* recall keys are kept */
    uint64_t model_fingerprint;
    enum search_by by;
    const struct tokenizer *tokenizer;
    const struct engine *engine; /* whose lexicon has words near the question's; NULL: none */
    uint32_t chunk_tokens;
    uint32_t item_tokens_max; /* that one item forms */
    struct slot *slots;       /* [slot_count] */
    uint32_t slot_count;
    const struct doorbell *done_bell; /* rung when a job is done; NULL: none */
    _Atomic bool *stopping;
};

struct search;
size_t search_bytes(uint32_t slot_count, uint32_t item_tokens_max);
/* In the caller's memory, 64-byte aligned. */
int search_open(struct search **out, const struct search_options *options, void *memory,
                char *error, size_t error_bytes);
void search_close(struct search **search);
void *search_main(void *search);
/* One round: all jobs, then a batch of chunks of each slot until one has more or a job comes. True:
 * there is more to do. */
bool search_step(struct search *search);
void search_wake(struct search *search);
/* -EAGAIN: too many jobs. Any thread. */
int search_submit(struct search *search, struct search_job *job);
/* Its rows are gone when this returns, and none come. Any thread but search's. */
int search_forget(struct search *search, uint64_t stream_id);
/* Text of chunks below `chunk` can be found no more; as search_forget. */
int search_trim(struct search *search, uint64_t stream_id, uint64_t chunk);

/* search_query.c: tokens as text, special ones left out, whole characters only; at most bytes_max,
 * its length. */
struct search_tokens {
    const int32_t *tokens; /* [count] */
    uint32_t count;
};
size_t search_chunk_text(const struct tokenizer *tokenizer, const struct search_tokens *parts,
                         uint32_t part_count, uint8_t *out, size_t bytes_max);
/* Bytes of a text that fit bytes_max and end with a character. */
uint32_t search_cut(const uint8_t *text, uint32_t bytes, uint32_t bytes_max);
/* [from, to) of a text grows to whole lines, where these are long to whole sentences, of
 * SEARCH_FOCUS_MIN bytes at the least where there are as many and SEARCH_FOCUS_MAX at most. */
void search_focus(const uint8_t *text, uint32_t bytes, uint32_t *from, uint32_t *to);
/* search_entries.c: paragraphs of a text that are of the question's own form, as many of those most
 * like it as fit, the nearest last, each with a blank line behind it; out [SEARCH_ENTRIES_BYTES].
 * Returns their bytes; 0: the question has no search_mark, or that begins no lines that go on. */
uint32_t search_entries(const uint8_t *text, uint32_t bytes, const uint8_t *question,
                        uint32_t question_bytes, uint8_t *out);
/* The last line of a question that has others, if it is open: it ends, but for blanks, with one of
 * ":>=|-". Its bytes without these blanks, or 0. */
uint32_t search_mark(const uint8_t *question, uint32_t bytes, const uint8_t **out);
/* The question as an FTS5 expression; 0: no word is in it. */
size_t search_expression(const uint8_t *question, size_t bytes_count, char *out, size_t out_bytes);

/* search_find.c: what words found and what keys found (best first, near_count of at most
 * SEARCH_HITS_MAX) as one list of at most out_max. Returns its length. */
struct search_words {
    struct search_hit hits[SEARCH_WORD_HITS_MAX]; /* best first */
    uint32_t count;
    double most; /* score of a chunk that has all of the question in one place; 0: none can */
};
int search_fuse(struct search_hit *out, uint32_t out_max, const struct search_words *words,
                const struct search_hit *near, uint32_t near_count);

/* search_read.c: the tokens of a stream, out of the journal. */
struct reader_place {
    uint64_t stream_id, ordinal;
    size_t offset;  /* bytes of a text item already taken */
    uint64_t token; /* the next one formed here */
    struct token_text text;
};
struct reader;
/* tokens_max: of one item; ingest_scratch_tokens are enough for any that was taken. */
size_t reader_bytes(uint32_t tokens_max);
int reader_open(struct reader **out, const char *folder, const struct tokenizer *tokenizer,
                uint32_t tokens_max, void *memory);
void reader_close(struct reader **reader);
/* What the journal has of a stream; 0 and 0 where it has none of that number. */
int reader_count(struct reader *reader, uint64_t stream_id, uint64_t *items, uint64_t *tokens);
/* To the item in which a token begins; tokens before it come again and are to be skipped. */
int reader_seek(struct reader *reader, struct reader_place *place, uint64_t stream_id,
                uint64_t token);
/* The first token whose text is left: what comes before was trimmed away, and GAP_TOKENs stand in
 * its place. 0 where all of it is there. */
int reader_first(struct reader *reader, uint64_t stream_id, uint64_t *token);
/* The next tokens, some of one item, valid until the next call; time_us is the item's. 0: none yet.
 */
int reader_next(struct reader *reader, struct reader_place *place, const int32_t **tokens,
                uint64_t *time_us);

#endif
