/* What search.c and search_find.c share. */
#ifndef SILT_DAEMON_SEARCH_INTERNAL_H
#define SILT_DAEMON_SEARCH_INTERNAL_H

#include "daemon/search.h"
#include "daemon/search_table.h"

enum {
    SEARCH_WORD_BYTES_MAX = 128, /* the longest sums in hex; one that is cut stands nowhere */
    EXPRESSION_BYTES = SEARCH_WORDS_MAX * (SEARCH_WORD_BYTES_MAX + 8),
    CHUNK_TEXT_MAX = SEARCH_CHUNK_MAX * 24,
    RANK_PHRASES_MAX = 384,
    TERM_TOKENS_MAX = (SEARCH_WORD_BYTES_MAX + 1) / 2,
    POSTINGS_MAX = 512 << 10, /* at a time: those of a question in 40,000 to 150,000 chunks */
    BLOCK_PLACES = 4096,      /* more than a chunk has, few enough for a cache next to the core */
    BLOCK_CHUNKS = 1024,
    AROUND_CHUNKS = 3,                   /* the best one and its neighbours */
    RANK_WORDS_MAX = CHUNK_TEXT_MAX / 2, /* of a text: marks or blanks are between them */
};

enum {
    ADD_CHUNK,
    ADD_WORDS,
    FIND,
    READ_TERM,
    GET_TEXT,
    GET_EXCERPT,
    GET_END,
    SEARCH_STATEMENTS,
};
/* Where indexing of a live stream stands. */
struct cursor {
    uint64_t stream_id; /* 0: free */
    struct reader_place place;
    uint64_t chunk; /* being gathered */
    uint32_t count; /* tokens of it */
    uint64_t time_from_us, time_to_us;
    uint32_t before_count;
    int32_t before[SEARCH_OVERLAP]; /* [before_count] the end of the chunk before */
    int32_t tokens[SEARCH_CHUNK_MAX];
    uint64_t failed;   /* the stream that could not be indexed, which was said; 0: none */
    uint64_t believed; /* the stream whose index was found not to be ahead; 0: none */
};

/* Where chunks have a question's terms: chunk - from << 32 | word of it << 16 | term, so that they
 * sort by chunk and word. */
struct postings {
    uint64_t from, to;    /* chunks that are asked for */
    uint64_t rows;        /* chunks of the index; 0: not known yet */
    uint64_t held;        /* chunks below the question's end that have the term being read */
    uint32_t term;        /* being read */
    uint32_t count, room; /* of place: POSTINGS_MAX, or less for a test */
    uint32_t begin[RANK_PHRASES_MAX], end[RANK_PHRASES_MAX]; /* of each term's; taken ones go */
    uint32_t width;                                          /* chunks of a block */
    uint32_t of_chunk[BLOCK_CHUNKS + 1];                     /* of a block, while it is sorted */
    uint64_t taken[BLOCK_PLACES], sorted[BLOCK_PLACES];      /* of a block */
    uint64_t place[POSTINGS_MAX];                            /* [count] term by term */
};

/* What the index has for a word: its stem, or several behind each other where marks are in it. */
struct rank_term {
    char text[SEARCH_WORD_BYTES_MAX + 1];
    uint32_t token_count;
    uint64_t token[TERM_TOKENS_MAX]; /* [token_count] hashes */
    uint64_t held;                   /* chunks below the question's end that have it */
    uint32_t phrase;                 /* the first that it is the term of; UINT32_MAX: none */
};
/* A word that may stand for one of the question's. */
struct rank_phrase {
    uint32_t group; /* the question's word */
    uint32_t term;
    uint32_t next; /* of the same term, for another word; UINT32_MAX: none */
    float weight;  /* once weighed */
};
struct search_rank {
    uint64_t stream_id, question_hash;
    uint64_t chunk_end; /* at most UINT32_MAX: what is behind it counts nowhere */
    uint32_t group_count, phrase_count, term_count;
    struct rank_phrase phrase[RANK_PHRASES_MAX]; /* [phrase_count] */
    struct rank_term term[RANK_PHRASES_MAX];     /* [term_count] */
    uint32_t cap[RANK_PHRASES_MAX]; /* [term_count] more than a term can add to a score */
    bool absent[SEARCH_WORDS_MAX];  /* no chunk has something that stands for the word */
    float most[SEARCH_WORDS_MAX];   /* once weighed: the weight of its rarest, absent or not */
    bool weighed;
};

/* A text's words. */
struct rank_word {
    uint64_t stem;     /* hash */
    uint32_t from, to; /* bytes of the text */
};
struct rank_words {
    uint32_t count;
    struct rank_word word[RANK_WORDS_MAX]; /* [count] */
};

struct search {
    struct search_options options;
    char folder[PATH_BYTES_MAX + 8];
    pthread_mutex_t lock;      /* of all below but jobs; held over a batch or some jobs */
    pthread_mutex_t jobs_lock; /* of jobs and their count; never held for long */
    struct doorbell bell;
    struct reader *reader;
    struct recall_keys *keys; /* NULL: the adapter has none */
    struct word_table tables[SEARCH_OPEN_MAX];
    struct search_job *jobs[SEARCH_JOBS_MAX];
    uint32_t job_count, slot_next; /* slot_next: of the search thread alone */
    uint64_t uses;
    char expression[EXPRESSION_BYTES];
    struct search_rank rank;
    struct postings postings;
    struct rank_words words;
    uint8_t text[CHUNK_TEXT_MAX], around[AROUND_CHUNKS * CHUNK_TEXT_MAX];
    int32_t tokens[CHUNK_TEXT_MAX + 2 * PRETOKEN_BYTES_MAX]; /* of a chunk's text, formed again */
    struct cursor cursors[];                                 /* [slot_count] */
};

/* A stream's database; one that is damaged or of another version is made anew. NULL: it cannot be
 * opened, which is said unless quiet. */
struct word_table *search_table(struct search *search, uint64_t stream_id, bool quiet);
/* All chunks that the question may see are in the index before it is asked, so that the same
 * question at the same position finds the same; one far behind is asked as it is. */
void search_catch_up(struct search *search, const struct search_job *job);
/* A stream's recall keys are damaged: they are made again from the journal. */
void search_drop_keys(struct search *search, struct word_table *table);
/* All of a stream's index goes. */
int search_drop_index(struct search *search, uint64_t stream_id);

/* search_query.c: the next word of a text from *at on, in lower case, cut at SEARCH_WORD_BYTES_MAX.
 * False: no more. */
struct search_word {
    char text[SEARCH_WORD_BYTES_MAX + 1];
    size_t bytes;
};
bool search_next_word(const uint8_t *text, size_t bytes_count, size_t *at, struct search_word *out);
/* The words that a question asks with, in lower case; how many. */
uint32_t search_question_words(const uint8_t *question, size_t bytes_count,
                               char out[][SEARCH_WORD_BYTES_MAX + 1]);
/* search_postings.c: in SQL gather(words) puts where a row has the term into `postings`. */
int search_postings_register(fts5_api *api, struct postings *postings);
/* Reads where chunks of [from, to) have the terms that some chunk has or that have not been
 * counted, and counts them: held of each. As many chunks as there is room for, one at least:
 * postings->to says which. to: at most UINT32_MAX. */
int search_gather(struct search *search, struct word_table *table, uint64_t from, uint64_t to);
/* The places of the next chunks that have any, sorted; all of a chunk, NULL: no more. */
const uint64_t *search_next_places(struct postings *postings, uint32_t *count);

/* search_rank.c: the chunks below chunk_end that have most of a job's question in one place, best
 * first, older before newer where they are equal, at most SEARCH_WORD_HITS_MAX. How many, or
 * negative errno. */
int search_rank_find(struct search *search, struct word_table *table, const struct search_job *job,
                     struct search_hit *hits);
/* Closeness of a place with all of the question's words, each as rare as the stream has it up to
 * the question's moment; 0 where no chunk has any. */
float search_rank_most(const struct search_rank *rank);
/* Makes search->rank that of a job's question, where it is not. */
int search_rank_question(struct search *search, struct word_table *table,
                         const struct search_job *job);
/* Of a chunk's text the bytes that have most of the question of search->rank in one place. */
struct rank_place {
    uint32_t words; /* of the question; 0: the text has little of it */
    uint32_t from, to;
};
int search_rank_place(struct search *search, struct word_table *table, const uint8_t *text,
                      size_t bytes_count, struct rank_place *out);

/* search_find.c: at most CHUNK_TEXT_MAX bytes of text as tokens again, in search->tokens; how many,
 * and the bytes of [from, to) of them. */
uint32_t search_form_tokens(struct search *search, const uint8_t *text, size_t bytes_count);
size_t search_count_bytes(const struct search *search, uint32_t from, uint32_t to);
/* How much of a chunk's indexed text, which begins with the end of the chunk before, stands at the
 * end of what is there. */
size_t search_overlap(const uint8_t *have, size_t have_bytes, const uint8_t *text, size_t bytes);
/* search_around.c: makes job->around, once its texts are there. */
void search_around(struct search *search, struct word_table *table, struct search_job *job);
/* search_entries.c: of the texts of a job, once they are there. */
void search_job_entries(struct search *search, struct word_table *table, struct search_job *job);
/* search_find.c */
void search_run_job(struct search *search, struct search_job *job);

#endif
