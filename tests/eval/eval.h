/*
 * silt-eval: the loss of a model over text, under one way of remembering what was read.
 *
 * text.c reads documents, policy.c runs one of them, ask.c asks behind one, choose.c asks which of
 * some answers, report.c says what came out, main.c joins them.
 */
#ifndef SILT_EVAL_H
#define SILT_EVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stream/stream.h"

enum { EVAL_QUARTERS = 4, EVAL_LANES_MAX = 64, EVAL_CHOICES_MAX = 16 };

enum policy {
    POLICY_FULL,        /* raw rows of the newest tokens, base weights */
    POLICY_WINDOW,      /* as many raw rows as ccm holds at each token, base weights */
    POLICY_WINDOW_LORA, /* the same with the DMC LoRA */
    POLICY_NONE,        /* ccm with ring and summary hidden */
    POLICY_CCM,         /* the whole of silt's memory */
    POLICY_NO_SUMMARY,  /* ccm with the summary hidden */
    POLICY_CCM_SWAP,    /* ccm with the next document's ring and summary */
    POLICY_CCM_FOREIGN, /* ccm with those of one half of the documents farther */
    POLICY_COUNT
};

struct eval_options {
    const char *text;
    struct engine_options engine;
    struct stream_options stream;
    enum policy policy;
    uint32_t context;       /* full: tokens seen; 0: what the model was trained for */
    uint32_t kv_rows;       /* window: rows at every token; 0: as ccm */
    uint32_t block;         /* tokens of independent blocks; 0: whole documents */
    uint64_t tokens_max;    /* of a document; 0: all */
    uint32_t documents_max; /* 0: all */
    uint32_t streams;       /* join: cut into so many of tokens_max each; 0: one */
    uint32_t lanes;         /* documents side by side, at most EVAL_LANES_MAX; 0: one */
    bool segments_int8;     /* the ring's segments as --segments int8 would keep them cold */
    bool join, json;
    bool ask;    /* each document's question, behind it */
    bool choose; /* each document's questions, each with its possible answers */
};

/* ---- text.c ---- */

struct choice_question {
    char *text;
    char *before;   /* text that is read again in front of it, or NULL */
    char **choices; /* [choice_count], at most EVAL_CHOICES_MAX */
    uint32_t choice_count;
    uint64_t *recall; /* [recall_count] */
    uint32_t recall_count;
    bool raw; /* text as it is, no turn */
};
struct document {
    char *id, *kind;         /* "" where the file says none */
    char *question, *answer; /* with --ask, else NULL */
    char *before;            /* with --ask, text that is read again before the question, or NULL */
    int32_t *tokens;         /* [count] */
    size_t count;
    bool again;       /* it asks the document before it, and has no tokens of its own */
    uint64_t *recall; /* [recall_count] chunks that the question recalls, where they are cold */
    uint32_t recall_count;
    struct choice_question *choice_questions; /* [choice_question_count] with --choose */
    uint32_t choice_question_count;
};
struct documents {
    struct document *list; /* [count] */
    size_t count;
    uint64_t bytes; /* of text */
};
/* Reads and tokenises FILE.jsonl, FILE.jsonl.zst, or any other as one plain text. */
int documents_load(struct documents *out, const struct eval_options *options,
                   const struct tokenizer *tokenizer, char *error, size_t error_bytes);
void documents_free(struct documents *documents);
void document_free(struct document *document); /* what it holds */

/* ---- policy.c ---- */

/* Sums over scored tokens. */
struct score {
    double nll[EVAL_QUARTERS]; /* nats, by quarter of the document */
    uint64_t scored[EVAL_QUARTERS];
    uint64_t tokens; /* read */
    double rows;     /* sum over tokens of KV rows attended; not a number: not known */
    double entries;  /* tokens / dmc_ratio, summed, so that the total's ratio is by length */
    size_t kv_bytes_peak;
    double seconds;
};
/* Called now and then while a document runs. */
typedef void progress_fn(void *user, size_t tokens);

struct runner;
/* Lanes for so many documents: on a device they are computed together. */
int runner_open(struct runner **out, struct engine *engine, const struct eval_options *options,
                size_t documents, char *error, size_t error_bytes);
void runner_close(struct runner **runner);
uint32_t runner_lanes(const struct runner *runner);
/* Scores documents, at most runner_lanes; others are those whose memory ccm-swap and ccm-foreign
 * use. 0 or what the engine said. */
int runner_score(struct runner *runner, const struct document *const *documents,
                 const struct document *const *others, uint32_t count, struct score *out,
                 progress_fn *progress, void *user);
void score_add(struct score *total, const struct score *score);

/* ---- ask.c ---- */

/* ln of the sum of exp of the logits: a token's loss and its logit. */
double log_sum(const float *logits, uint32_t count);

struct answer {
    double nll;       /* nats a token of the right answer */
    uint32_t tokens;  /* of it */
    double exact, f1; /* of what was said, greedily; full says nothing */
    char said[512];
};
/* Asks documents' questions behind them, at most EVAL_LANES_MAX side by side and any number that
 * ask one of these again; out [count]. -ENOSPC: question or answer too long. */
int ask_documents(struct engine *engine, const struct eval_options *options,
                  const struct document *documents, uint32_t count, struct answer *out);
/* 0 to 1: the same words in the same order; F1 of words. */
void answer_match(const char *said, const char *gold, double *exact, double *f1);

/* ---- choose.c ---- */

struct chosen {
    double loss[EVAL_CHOICES_MAX];  /* nats of all of a choice's tokens */
    double rows;                    /* KV rows before the question: of the memory, or all */
    uint32_t recalled, tail_tokens; /* segments brought back; of the question as it was put */
};
/* Asks all questions of documents, at most EVAL_LANES_MAX side by side; out [count] of
 * [choice_question_count]. -ENOSPC: question or choice too long; -EINVAL: one is empty, or full has
 * no room for all of a document. */
int choose_documents(struct engine *engine, const struct eval_options *options,
                     const struct document *documents, uint32_t count, struct chosen **out);

/* ---- report.c ---- */

const char *policy_name(enum policy policy);
void report_begin(const struct eval_options *options, const struct engine_info *info,
                  const struct documents *documents);
/* document NULL: the total. */
void report_line(const struct eval_options *options, const struct document *document,
                 const struct score *score);
/* document NULL: the mean of count answers, whose sums are in answer. */
void report_answer(const struct eval_options *options, const struct document *document,
                   const struct answer *answer, size_t count);
/* A JSON line. */
void report_chosen(const struct eval_options *options, const struct document *document,
                   const struct chosen *chosen);
/* The progress line on a terminal; text NULL clears it. */
void report_progress(const char *text);

#endif
