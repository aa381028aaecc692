/*
 * Questions behind documents: what a stream that has read one answers from its memory alone.
 *
 * A document carries a question and its answer. ccm and none read the text into a stream and ask in
 * a fork, as the daemon does; full puts all of it into one context and scores the answer there
 * (what the same model could know), but writes none. Exact match and F1 are SQuAD's: of words,
 * without case, punctuation and articles.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "stream/internal.h"
#include "stream/token.h"
#include "tests/eval/eval.h"

enum { TURN_TOKENS_MAX = 1024, ANSWER_TOKENS_MAX = 256, WORDS_MAX = 256, SAID_TOKENS = 48 };

struct question {
    int32_t tail[TURN_TOKENS_MAX]; /* the question as a turn, and the opening of the answer's */
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

static int question_make(struct question *q, const struct tokenizer *tokenizer,
                         const struct document *document)
{
    int turn = token_turn(tokenizer, "user", (const uint8_t *)document->question,
                          strlen(document->question), q->tail, TURN_TOKENS_MAX);
    if (turn < 0)
        return turn;
    int opening =
        token_turn_open(tokenizer, "assistant", q->tail + turn, TURN_TOKENS_MAX - (size_t)turn);
    if (opening < 0)
        return opening;
    q->tail_count = (uint32_t)(turn + opening);
    /* Room for more tokens than any answer of this many bytes can have. */
    int32_t gold[4 * ANSWER_TOKENS_MAX];
    size_t count = tokens_of(tokenizer, document->answer, gold, 4 * ANSWER_TOKENS_MAX);
    if (!count || count > ANSWER_TOKENS_MAX)
        return -ENOSPC;
    memcpy(q->gold, gold, count * sizeof *gold);
    q->gold_count = (uint32_t)count;
    return 0;
}

static double loss_of(const float *logits, uint32_t count, int32_t token)
{
    double top = -INFINITY, sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        top = fmax(top, (double)logits[i]);
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - top);
    return top + log(sum) - (double)logits[token];
}

/* The answer's loss, token by token, then what the model itself would say. */
static int ask_fork(struct fork *fork, const struct engine_info *info,
                    const struct tokenizer *tokenizer, const struct question *q, struct answer *out)
{
    int result = fork_feed(fork, q->tail, q->tail_count);
    for (uint32_t i = 0; !result && i < q->gold_count; i++) {
        out->nll += loss_of(fork_logits(fork), info->vocab_count, q->gold[i]);
        result = fork_feed(fork, &q->gold[i], 1);
    }
    fork_rewind(fork);
    if (!result)
        result = fork_feed(fork, q->tail, q->tail_count);
    size_t used = 0;
    for (int i = 0; !result && i < SAID_TOKENS; i++) {
        const float *logits = fork_logits(fork);
        int32_t best = 0;
        for (uint32_t t = 1; t < info->vocab_count; t++)
            best = logits[t] > logits[best] ? (int32_t)t : best;
        if (token_is_end(tokenizer, best))
            break;
        size_t bytes;
        const uint8_t *text = token_bytes(tokenizer, best, &bytes);
        if (used + bytes >= sizeof out->said)
            break;
        memcpy(out->said + used, text, bytes);
        used += bytes;
        result = fork_feed(fork, &best, 1);
    }
    out->said[used] = '\0';
    return result;
}

static int ask_stream(struct engine *engine, const struct eval_options *options,
                      const struct document *document, const struct question *q, struct answer *out)
{
    struct engine_info info;
    struct stream *stream = NULL;
    struct fork *fork = NULL;
    engine_info(engine, &info);
    size_t bytes = (stream_bytes(engine, &options->stream, NULL, 0) + 63) & ~(size_t)63;
    size_t fork_size = (fork_bytes(engine, &options->stream) + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, bytes), *fork_memory = aligned_alloc(64, fork_size);
    int result = memory && fork_memory ? 0 : -ENOMEM;
    if (!result)
        result = stream_open(&stream, engine, &options->stream, memory, bytes);
    if (!result)
        result = stream_feed(stream, document->tokens, (uint32_t)document->count);
    if (!result && options->policy == POLICY_NONE)
        stream_hide_memory(stream, true);
    if (!result)
        result = fork_open(&fork, stream, fork_memory, fork_size);
    if (!result)
        result = ask_fork(fork, &info, engine_tokenizer(engine), q, out);
    fork_close(&fork);
    stream_close(&stream);
    free(fork_memory);
    free(memory);
    return result;
}

/* Everything in one context; what is older than that slides out. */
static int ask_full(struct engine *engine, const struct eval_options *options,
                    const struct document *document, const struct question *q, struct answer *out)
{
    enum { BLOCK = STREAM_BLOCK_TOKENS };
    struct engine_info info;
    struct history *history = NULL;
    engine_info(engine, &info);
    size_t asked = document->count + q->tail_count, count = asked + q->gold_count;
    int32_t *all = malloc(count * sizeof *all);
    int result =
        all ? history_open(&history, engine,
                           options->context ? options->context : info.context_tokens, false)
            : -ENOMEM;
    if (result)
        goto end;
    memcpy(all, document->tokens, document->count * sizeof *all);
    memcpy(all + document->count, q->tail, q->tail_count * sizeof *all);
    memcpy(all + asked, q->gold, q->gold_count * sizeof *all);
    for (size_t at = 0; !result && at < count; at += BLOCK) {
        uint32_t size = count - at < BLOCK ? (uint32_t)(count - at) : BLOCK;
        int32_t targets[BLOCK];
        float nll[BLOCK];
        for (uint32_t i = 0; i < size; i++)
            targets[i] = at + i + 1 >= asked && at + i + 1 < count ? all[at + i + 1] : -1;
        result = history_score(history, all + at, targets, size, NULL, nll);
        for (uint32_t i = 0; !result && i < size; i++)
            out->nll += targets[i] < 0 ? 0.0 : (double)nll[i];
    }
end:
    history_close(&history);
    free(all);
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

int ask_document(struct engine *engine, const struct eval_options *options,
                 const struct document *document, struct answer *out)
{
    struct question *q = calloc(1, sizeof *q);
    *out = (struct answer){0};
    int result = q ? question_make(q, engine_tokenizer(engine), document) : -ENOMEM;
    if (!result)
        result = options->policy == POLICY_FULL ? ask_full(engine, options, document, q, out)
                                                : ask_stream(engine, options, document, q, out);
    if (!result) {
        out->tokens = q->gold_count;
        out->nll /= q->gold_count;
        answer_match(out->said, document->answer, &out->exact, &out->f1);
    }
    free(q);
    return result;
}
