/* What search.c and search_find.c share. */
#ifndef SILT_DAEMON_SEARCH_INTERNAL_H
#define SILT_DAEMON_SEARCH_INTERNAL_H

#include "daemon/search.h"
#include "daemon/search_table.h"

enum {
    SEARCH_WORD_BYTES_MAX = 40,
    EXPRESSION_BYTES = SEARCH_WORDS_MAX * 48,
    CHUNK_TEXT_MAX = SEARCH_CHUNK_MAX * 24,
    RANK_PHRASES_MAX = 384,
};

enum {
    ADD_CHUNK,
    ADD_WORDS,
    FIND,
    FIND_CLOSE,
    GET_TEXT,
    GET_EXCERPT,
    GET_PLACES,
    COUNT_WORD,
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
    bool failed; /* said once */
    uint32_t before_count;
    int32_t before[SEARCH_OVERLAP]; /* [before_count] the end of the chunk before */
    int32_t tokens[SEARCH_CHUNK_MAX];
};

/* A question's words, and what may stand for them. */
struct search_rank {
    uint64_t stream_id, question_hash;
    uint32_t group_count, phrase_count;
    uint32_t group[RANK_PHRASES_MAX]; /* the question's word that a phrase stands for */
    uint64_t held[RANK_PHRASES_MAX];  /* chunks that have it */
    float weight[RANK_PHRASES_MAX];   /* once weighed */
    bool absent[SEARCH_WORDS_MAX];    /* no chunk has something that stands for the word */
    float most[SEARCH_WORDS_MAX];     /* once weighed: the weight of its rarest, absent or not */
    bool weighed;
    size_t used; /* of expression */
    char expression[RANK_PHRASES_MAX * (SEARCH_WORD_BYTES_MAX + 8)];
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
    uint8_t text[CHUNK_TEXT_MAX];
    int32_t tokens[CHUNK_TEXT_MAX + 2 * PRETOKEN_BYTES_MAX]; /* of a chunk's text, formed again */
    struct cursor cursors[];                                 /* [slot_count] */
};

/* A stream's database; one that cannot be used is made anew, once. NULL: there is none. */
struct word_table *search_table(struct search *search, uint64_t stream_id);
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
/* search_rank.c: makes search->rank.expression. */
void search_rank_question(struct search *search, struct word_table *table,
                          const struct search_job *job);
/* Whether it is that of a job's question, weighed for its stream or to be. */
bool search_rank_is_of(const struct search_rank *rank, const struct search_job *job);
/* Closeness of a place with all of the question's words, each as rare as the stream has it; 0 until
 * a chunk has been ranked. */
float search_rank_most(const struct search_rank *rank);
/* In SQL closeness(words) is what a chunk has of the question in `rank`, and place(words)
 * where it has that: words of the question << 48 | from << 24 | to, in bytes, or -1. */
int search_rank_register(sqlite3 *db, struct search_rank *rank);

/* search_entries.c: of the texts of a job, once they are there. */
void search_job_entries(struct search *search, struct word_table *table, struct search_job *job);
/* search_find.c */
void search_run_job(struct search *search, struct search_job *job);

#endif
