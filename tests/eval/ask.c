/*
 * Questions behind documents: what a stream that has read one answers from its memory alone.
 *
 * A document carries a question and its answer. ccm and none read the text into a stream and ask in
 * a fork, as the daemon does; full puts all of it into one context and scores the answer there
 * (what the same model could know), but writes none. Segments that a document's "recall" names
 * come back from where the ring has dropped them, as a search's finds do; the text of its "before"
 * is read again in front of the question. A document that asks the
 * one before it again is not read: its question goes to that one's stream. Exact match and F1 are
 * SQuAD's: of words, without case, punctuation and articles.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "stream/internal.h"
#include "stream/token.h"
#include "tests/eval/eval.h"

enum {
    ANSWER_TOKENS_MAX = 256,
    TURN_TOKENS_MAX = FORK_TOKENS_MAX - ANSWER_TOKENS_MAX, /* with found text around the question */
    BEFORE_BYTES_MAX = 16 << 10,
    WORDS_MAX = 256,
    SAID_TOKENS = 48
};

struct question {
    int32_t tail[TURN_TOKENS_MAX]; /* text read again, the question's turn, the answer's opening */
    int32_t gold[ANSWER_TOKENS_MAX];
    uint32_t tail_count, gold_count;
};

static size_t tokens_of(const struct tokenizer *tokenizer, const char *text, int32_t *out,
                        size_t most)
{
    struct token_text state = {0};
    size_t bytes = strlen(text);
    if (token_count_max(&state, bytes) + 1 > most)
        return 0;
    size_t count = token_feed(tokenizer, &state, (const uint8_t *)text, bytes, out);
    return count + token_flush(tokenizer, &state, out + count);
}

/* Text as it is, no turn: it is as if the stream had it once more. */
static int before_make(struct question *q, const struct tokenizer *tokenizer, const char *text)
{
    int32_t tokens[BEFORE_BYTES_MAX];
    size_t count = tokens_of(tokenizer, text, tokens, BEFORE_BYTES_MAX);
    if (!count || count > TURN_TOKENS_MAX)
        return *text ? -ENOSPC : 0;
    memcpy(q->tail, tokens, count * sizeof *tokens);
    q->tail_count = (uint32_t)count;
    return 0;
}

static int question_make(struct question *q, const struct tokenizer *tokenizer,
                         const struct document *document)
{
    int result = document->before ? before_make(q, tokenizer, document->before) : 0;
    if (result)
        return result;
    int turn = token_turn(tokenizer, "user", (const uint8_t *)document->question,
                          strlen(document->question), q->tail + q->tail_count,
                          TURN_TOKENS_MAX - q->tail_count);
    if (turn < 0)
        return turn;
    q->tail_count += (uint32_t)turn;
    int opening = token_turn_open(tokenizer, "assistant", q->tail + q->tail_count,
                                  TURN_TOKENS_MAX - q->tail_count);
    if (opening < 0)
        return opening;
    q->tail_count += (uint32_t)opening;
    /* Room for more tokens than any answer of this many bytes can have. */
    int32_t gold[4 * ANSWER_TOKENS_MAX];
    size_t count = tokens_of(tokenizer, document->answer, gold, 4 * ANSWER_TOKENS_MAX);
    if (!count || count > ANSWER_TOKENS_MAX)
        return -ENOSPC;
    memcpy(q->gold, gold, count * sizeof *gold);
    q->gold_count = (uint32_t)count;
    return 0;
}

double log_sum(const float *logits, uint32_t count)
{
    double top = -INFINITY, sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        top = fmax(top, (double)logits[i]);
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - top);
    return top + log(sum);
}

static double loss_of(const float *logits, uint32_t count, int32_t token)
{
    return log_sum(logits, count) - (double)logits[token];
}

enum { LANES = EVAL_LANES_MAX, BLOCK = STREAM_BLOCK_TOKENS, KEPT_MAX = 4 * STREAM_RECALL_MAX };

/* A document read, whose questions are asked behind it in turn. */
struct reading {
    const struct document
        *documents;      /* [count]: the one that is read, and those that ask it again */
    struct asked *asked; /* [count] */
    uint32_t count;
    void *memory, *fork_memory;
    struct stream *stream;
    f16 *segments;                      /* [kept_count][segment], those wanted */
    struct cold_segment kept[KEPT_MAX]; /* [kept_count], oldest first */
    uint32_t kept_count;
};

struct asked {
    const struct document *document;
    struct question q;
    struct answer *out;
    struct fork *fork;
    struct history *history;
    int32_t next; /* token to feed */
    size_t used;  /* bytes of what it said */
    bool silent;  /* has said all */
};

static bool recalls(const struct document *document, uint64_t number)
{
    for (uint32_t i = 0; i < document->recall_count; i++)
        if (document->recall[i] == number)
            return true;
    return false;
}

/* A segment that leaves the ring is kept where a question recalls it. */
static void keep_segment(void *user, const struct segment_view *segment)
{
    struct reading *reading = user;
    size_t values = segment->rows_bytes / sizeof(f16);
    f16 *to = reading->segments + reading->kept_count * values;
    bool wanted = false;
    for (uint32_t i = 0; i < reading->count; i++)
        wanted = wanted || recalls(&reading->documents[i], segment->number);
    if (!wanted || reading->kept_count == KEPT_MAX)
        return;
    memcpy(to, segment->rows, segment->rows_bytes);
    reading->kept[reading->kept_count++] = (struct cold_segment){.number = segment->number,
                                                                 .token_from = segment->token_from,
                                                                 .token_to = segment->token_to,
                                                                 .weight = 1,
                                                                 .rows = to};
}

static int open_reading(struct reading *reading, struct engine *engine,
                        const struct eval_options *options)
{
    struct engine_info info;
    engine_info(engine, &info);
    size_t bytes = (stream_bytes(engine, &options->stream, NULL, 0) + 63) & ~(size_t)63;
    size_t fork_size = (fork_bytes(engine, &options->stream) + 63) & ~(size_t)63;
    size_t segment = (size_t)info.layer_count * info.kv_head_count * info.comp_tokens * 2 *
                     info.head_dim * sizeof(f16);
    reading->memory = aligned_alloc(64, bytes);
    reading->fork_memory = aligned_alloc(64, fork_size);
    reading->segments = malloc(KEPT_MAX * segment);
    if (!reading->memory || !reading->fork_memory || !reading->segments)
        return -ENOMEM;
    int result = stream_open(&reading->stream, engine, &options->stream, reading->memory, bytes);
    if (!result)
        stream_on_segment_leave(reading->stream, keep_segment, reading);
    return result;
}

static void close_reading(struct reading *reading)
{
    stream_close(&reading->stream);
    free(reading->segments);
    free(reading->fork_memory);
    free(reading->memory);
}

static int open_fork(const struct reading *reading, struct asked *asked, struct engine *engine,
                     const struct eval_options *options)
{
    struct cold_segment recall[STREAM_RECALL_MAX];
    uint32_t count = 0;
    size_t fork_size = (fork_bytes(engine, &options->stream) + 63) & ~(size_t)63;
    int result = fork_open(&asked->fork, reading->stream, reading->fork_memory, fork_size);
    for (uint32_t i = 0; i < reading->kept_count && count < STREAM_RECALL_MAX; i++)
        if (recalls(asked->document, reading->kept[i].number))
            recall[count++] = reading->kept[i];
    return result || !count ? result : fork_recall(asked->fork, recall, count);
}

static int feed_tails(struct asked *const *asked, uint32_t count, bool says)
{
    struct fork_work work[LANES];
    for (uint32_t i = 0; i < count; i++)
        work[i] = (struct fork_work){.fork = asked[i]->fork,
                                     .tokens = asked[i]->q.tail,
                                     .count = asked[i]->q.tail_count,
                                     .best = says ? &asked[i]->next : NULL};
    return forks_feed(work, count);
}

/* The answers' loss, token by token. */
static int score_answers(struct asked *const *asked, uint32_t count, uint32_t vocab)
{
    int result = feed_tails(asked, count, false);
    for (uint32_t at = 0; !result; at++) {
        struct fork_work work[LANES];
        uint32_t going = 0;
        for (uint32_t i = 0; i < count; i++) {
            struct asked *a = asked[i];
            if (at >= a->q.gold_count)
                continue;
            a->out->nll += loss_of(fork_logits(a->fork), vocab, a->q.gold[at]);
            if (at + 1 < a->q.gold_count)
                work[going++] =
                    (struct fork_work){.fork = a->fork, .tokens = &a->q.gold[at], .count = 1};
        }
        if (!going)
            break;
        result = forks_feed(work, going);
    }
    return result;
}

/* The likeliest token joins what was said; false: that is all. */
static bool say_token(struct asked *a, const struct tokenizer *tokenizer)
{
    size_t bytes;
    const uint8_t *text;
    if (a->silent || token_is_end(tokenizer, a->next))
        return false;
    text = token_bytes(tokenizer, a->next, &bytes);
    if (a->used + bytes >= sizeof a->out->said)
        return false;
    memcpy(a->out->said + a->used, text, bytes);
    a->used += bytes;
    return true;
}

/* What the model itself would say. */
static int say_answers(struct asked *const *asked, uint32_t count,
                       const struct tokenizer *tokenizer)
{
    for (uint32_t i = 0; i < count; i++)
        fork_rewind(asked[i]->fork);
    int result = feed_tails(asked, count, true);
    for (int at = 0; at < SAID_TOKENS && !result; at++) {
        struct fork_work work[LANES];
        int32_t token[LANES];
        uint32_t going = 0;
        for (uint32_t i = 0; i < count; i++) {
            struct asked *a = asked[i];
            a->silent = !say_token(a, tokenizer);
            if (a->silent)
                continue;
            token[going] = a->next;
            work[going] = (struct fork_work){
                .fork = a->fork, .tokens = &token[going], .count = 1, .best = &a->next};
            going++;
        }
        if (!going)
            break;
        result = forks_feed(work, going);
    }
    return result;
}

/* The questions of that number, of all that have so many. */
static int ask_round(struct engine *engine, const struct eval_options *options,
                     const struct reading *readings, uint32_t count, uint32_t round)
{
    struct asked *asked[LANES];
    struct engine_info info;
    uint32_t going = 0;
    int result = 0;
    engine_info(engine, &info);
    for (uint32_t i = 0; i < count && !result; i++) {
        if (round >= readings[i].count)
            continue;
        asked[going] = &readings[i].asked[round];
        result = open_fork(&readings[i], asked[going++], engine, options);
    }
    if (!result)
        result = score_answers(asked, going, info.vocab_count);
    if (!result)
        result = say_answers(asked, going, engine_tokenizer(engine));
    for (uint32_t i = 0; i < going; i++)
        fork_close(&asked[i]->fork);
    return result;
}

static int ask_streams(struct engine *engine, const struct eval_options *options,
                       struct reading *readings, uint32_t count)
{
    struct stream_work work[LANES];
    uint32_t rounds = 0;
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        struct reading *r = &readings[i];
        result = open_reading(r, engine, options);
        work[i] =
            (struct stream_work){r->stream, r->documents->tokens, (uint32_t)r->documents->count, 0};
        rounds = r->count > rounds ? r->count : rounds;
    }
    if (!result)
        result = streams_feed(work, count);
    for (uint32_t i = 0; i < count && !result && options->policy == POLICY_NONE; i++)
        stream_hide_memory(readings[i].stream, true);
    for (uint32_t round = 0; round < rounds && !result; round++)
        result = ask_round(engine, options, readings, count, round);
    return result;
}

/* Token i of the text, the question and the right answer. */
static int32_t token_at(const struct asked *a, size_t i)
{
    size_t text = a->document->count;
    if (i < text)
        return a->document->tokens[i];
    return i < text + a->q.tail_count ? a->q.tail[i - text] : a->q.gold[i - text - a->q.tail_count];
}

/* Everything in one context; what is older than that slides out. */
static int ask_full(struct engine *engine, const struct eval_options *options, struct asked *asked,
                    uint32_t count)
{
    struct engine_info info;
    int result = 0;
    engine_info(engine, &info);
    for (uint32_t i = 0; i < count && !result; i++)
        result = history_open(&asked[i].history, engine,
                              options->context ? options->context : info.context_tokens, false);
    for (size_t at = 0; !result; at += BLOCK) {
        static int32_t tokens[LANES][BLOCK], targets[LANES][BLOCK];
        static float nll[LANES][BLOCK];
        struct history_work work[LANES];
        struct answer *out[LANES];
        uint32_t going = 0;
        for (uint32_t i = 0; i < count; i++) {
            const struct asked *a = &asked[i];
            size_t said = a->document->count + a->q.tail_count, all = said + a->q.gold_count;
            if (at >= all)
                continue;
            uint32_t size = all - at < BLOCK ? (uint32_t)(all - at) : BLOCK;
            for (uint32_t j = 0; j < size; j++) {
                size_t next = at + j + 1;
                tokens[going][j] = token_at(a, at + j);
                targets[going][j] = next >= said && next < all ? token_at(a, next) : -1;
            }
            work[going] = (struct history_work){a->history, tokens[going], targets[going],
                                                size,       NULL,          nll[going]};
            out[going++] = a->out;
        }
        if (!going)
            break;
        result = histories_score(work, going);
        for (uint32_t i = 0; i < going && !result; i++)
            for (uint32_t j = 0; j < work[i].count; j++)
                out[i]->nll += targets[i][j] < 0 ? 0.0 : (double)nll[i][j];
    }
    return result;
}

/* Lower case, no punctuation, no articles; the words stay in text, which is cut up. */
static uint32_t words_of(char *text, char *words[WORDS_MAX])
{
    uint32_t count = 0;
    for (char *c = text; *c; c++)
        *c = ispunct((unsigned char)*c) ? ' ' : (char)tolower((unsigned char)*c);
    char *rest = text, *word;
    while (count < WORDS_MAX && (word = strsep(&rest, " \t\r\n")) != NULL)
        if (*word && strcmp(word, "a") != 0 && strcmp(word, "an") != 0 && strcmp(word, "the") != 0)
            words[count++] = word;
    return count;
}

void answer_match(const char *said, const char *gold, double *exact, double *f1)
{
    char *texts[2] = {strdup(said), strdup(gold)};
    char *words[2][WORDS_MAX];
    uint32_t count[2] = {0}, shared = 0;
    bool same;
    *exact = *f1 = 0.0;
    if (!texts[0] || !texts[1])
        goto end;
    for (int i = 0; i < 2; i++)
        count[i] = words_of(texts[i], words[i]);
    same = count[0] == count[1];
    for (uint32_t i = 0; same && i < count[0]; i++)
        same = strcmp(words[0][i], words[1][i]) == 0;
    bool used[WORDS_MAX] = {false};
    for (uint32_t i = 0; i < count[0]; i++) {
        for (uint32_t j = 0; j < count[1]; j++) {
            if (!used[j] && strcmp(words[0][i], words[1][j]) == 0) {
                used[j] = true;
                shared++;
                break;
            }
        }
    }
    *exact = same ? 1.0 : 0.0;
    *f1 = same ? 1.0 : 2.0 * shared / (count[0] + count[1]);
end:
    free(texts[0]);
    free(texts[1]);
}

/* Documents and those that ask them again, as readings; how many, at most LANES. */
static uint32_t make_readings(struct reading *readings, const struct document *documents,
                              struct asked *asked, uint32_t count)
{
    uint32_t made = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (i && documents[i].again)
            readings[made - 1].count++;
        else
            readings[made++] =
                (struct reading){.documents = &documents[i], .asked = &asked[i], .count = 1};
    }
    return made;
}

int ask_documents(struct engine *engine, const struct eval_options *options,
                  const struct document *documents, uint32_t count, struct answer *out)
{
    struct asked *asked = calloc(count, sizeof *asked);
    struct reading *readings = calloc(LANES, sizeof *readings);
    uint32_t reading_count = 0;
    int result = asked && readings ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < count && !result; i++) {
        out[i] = (struct answer){0};
        asked[i].document = &documents[i];
        asked[i].out = &out[i];
        result = question_make(&asked[i].q, engine_tokenizer(engine), &documents[i]);
    }
    if (!result) {
        reading_count = make_readings(readings, documents, asked, count);
        result = options->policy == POLICY_FULL
                     ? ask_full(engine, options, asked, count)
                     : ask_streams(engine, options, readings, reading_count);
    }
    for (uint32_t i = 0; i < count && asked; i++) {
        if (!result) {
            out[i].tokens = asked[i].q.gold_count;
            out[i].nll /= asked[i].q.gold_count;
            answer_match(out[i].said, documents[i].answer, &out[i].exact, &out[i].f1);
        }
        history_close(&asked[i].history);
    }
    for (uint32_t i = 0; i < reading_count; i++)
        close_reading(&readings[i]);
    free(readings);
    free(asked);
    return result;
}
