/*
 * Questions with given answers behind documents: how likely the model has each of these from what
 * its memory holds of the text.
 *
 * A document is read once and asked many questions. ccm and none ask each in a fork of its own,
 * where what a search has found, segments and text, may stand before it; full asks in one context
 * with all of the text. A question is a user's turn and its answers end with the assistant's, or
 * else ("raw") both are plain text that goes on where the document ends.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stream/internal.h"
#include "stream/token.h"
#include "tests/eval/eval.h"

enum { LANES = EVAL_LANES_MAX, BLOCK = STREAM_BLOCK_TOKENS };
enum { TAIL_MAX = FORK_TOKENS_MAX, CHOICE_MAX = 31 }; /* a block with the token before it */

struct choice {
    int32_t tokens[CHOICE_MAX];
    uint32_t count;
};

/* A document that was read. */
struct source {
    const struct document *document;
    struct chosen *out; /* [choice_question_count] */
    void *memory;
    struct stream *stream;
    struct history *history;
    f16 *segments;             /* [cold_count][segment] */
    struct cold_segment *cold; /* [cold_count]; those that a question recalls */
    uint32_t cold_count;
};

/* A question that is being asked. */
struct branch {
    struct source *source;
    const struct choice_question *question;
    struct chosen *out;
    int32_t tail[TAIL_MAX];
    uint32_t tail_count;
    struct choice choices[EVAL_CHOICES_MAX];
    void *memory;
    struct fork *fork;
};

/* ---- words as tokens ---- */

/* The text's tokens at out + count, or -ENOSPC. */
static int add_text(const struct tokenizer *tokenizer, const char *text, int32_t *out, size_t most)
{
    static int32_t tokens[TAIL_MAX * 8];
    struct token_text state = {0};
    size_t bytes = strlen(text), count;
    if (token_count_max(&state, bytes) + 1 > TAIL_MAX * 8)
        return -ENOSPC;
    count = token_feed(tokenizer, &state, (const uint8_t *)text, bytes, tokens);
    count += token_flush(tokenizer, &state, tokens + count);
    if (count > most)
        return -ENOSPC;
    memcpy(out, tokens, count * sizeof *out);
    return (int)count;
}

static int make_tail(struct branch *b, const struct tokenizer *tokenizer)
{
    const struct choice_question *q = b->question;
    int again = q->before ? add_text(tokenizer, q->before, b->tail, TAIL_MAX) : 0;
    int turn, opening = 0;
    if (again < 0)
        return again;
    int32_t *tail = b->tail + again;
    size_t most = TAIL_MAX - (size_t)again;
    if (q->raw) {
        turn = add_text(tokenizer, q->text, tail, most);
    } else {
        turn = token_turn(tokenizer, "user", (const uint8_t *)q->text, strlen(q->text), tail, most);
        if (turn > 0)
            opening = token_turn_open(tokenizer, "assistant", tail + turn, most - (size_t)turn);
    }
    if (turn < 0 || opening < 0)
        return turn < 0 ? turn : opening;
    b->tail_count = (uint32_t)(again + turn + opening);
    return turn + opening ? 0 : -EINVAL;
}

static int make_branch(struct branch *b, const struct tokenizer *tokenizer)
{
    const struct choice_question *q = b->question;
    int result = make_tail(b, tokenizer);
    for (uint32_t i = 0; i < q->choice_count && !result; i++) {
        struct choice *c = &b->choices[i];
        int count = add_text(tokenizer, q->choices[i], c->tokens, CHOICE_MAX);
        result = count > 0 ? 0 : count < 0 ? count : -EINVAL;
        c->count = result ? 0 : (uint32_t)count;
        b->out->loss[i] = 0.0;
    }
    b->out->tail_tokens = b->tail_count;
    return result;
}

/* ---- in forks of a memory ---- */

static bool is_wanted(const struct document *document, uint64_t chunk)
{
    for (uint32_t i = 0; i < document->choice_question_count; i++)
        for (uint32_t j = 0; j < document->choice_questions[i].recall_count; j++)
            if (document->choice_questions[i].recall[j] == chunk)
                return true;
    return false;
}

/* A segment that leaves the ring is kept where a question recalls it. */
static void keep_segment(void *user, const struct segment_view *segment)
{
    struct source *s = user;
    size_t values = segment->rows_bytes / sizeof(f16);
    if (!is_wanted(s->document, segment->number))
        return;
    f16 *to = s->segments + s->cold_count * values;
    memcpy(to, segment->rows, segment->rows_bytes);
    s->cold[s->cold_count++] = (struct cold_segment){.number = segment->number,
                                                     .token_from = segment->token_from,
                                                     .token_to = segment->token_to,
                                                     .weight = 1,
                                                     .rows = to};
}

static int open_source(struct source *s, struct engine *engine, const struct eval_options *options)
{
    struct engine_info info;
    engine_info(engine, &info);
    size_t bytes = (stream_bytes(engine, &options->stream, NULL, 0) + 63) & ~(size_t)63;
    size_t segment = (size_t)info.layer_count * info.kv_head_count * info.comp_tokens * 2 *
                     info.head_dim * sizeof(f16);
    uint32_t wanted = 0;
    for (uint64_t chunk = 0; chunk * info.chunk_tokens < s->document->count; chunk++)
        wanted += is_wanted(s->document, chunk);
    s->memory = aligned_alloc(64, bytes);
    s->segments = malloc((wanted + 1) * segment);
    s->cold = calloc(wanted + 1, sizeof *s->cold);
    if (!s->memory || !s->segments || !s->cold)
        return -ENOMEM;
    int result = stream_open(&s->stream, engine, &options->stream, s->memory, bytes);
    if (!result && wanted)
        stream_on_segment_leave(s->stream, keep_segment, s);
    return result;
}

static int read_streams(struct engine *engine, const struct eval_options *options,
                        struct source *sources, uint32_t count)
{
    struct stream_work work[LANES];
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        result = open_source(&sources[i], engine, options);
        work[i] = (struct stream_work){sources[i].stream, sources[i].document->tokens,
                                       (uint32_t)sources[i].document->count, 0};
    }
    if (!result)
        result = streams_feed(work, count);
    for (uint32_t i = 0; i < count && !result; i++)
        if (options->policy == POLICY_NONE)
            stream_hide_memory(sources[i].stream, true);
    return result;
}

static int open_branch(struct branch *b, struct engine *engine, const struct eval_options *options)
{
    struct cold_segment recalled[STREAM_RECALL_MAX];
    const struct source *s = b->source;
    size_t bytes = (fork_bytes(engine, &options->stream) + 63) & ~(size_t)63;
    uint32_t count = 0;
    if (!b->memory && !(b->memory = aligned_alloc(64, bytes)))
        return -ENOMEM;
    int result = fork_open(&b->fork, s->stream, b->memory, bytes);
    for (uint32_t i = 0; i < s->cold_count && count < STREAM_RECALL_MAX; i++)
        for (uint32_t j = 0; j < b->question->recall_count; j++)
            if (b->question->recall[j] == s->cold[i].number)
                recalled[count++] = s->cold[i];
    b->out->recalled = count;
    b->out->rows = stream_rows_now(s->stream);
    return result || !count ? result : fork_recall(b->fork, recalled, count);
}

/* Choice `which` of every branch, behind its question; the first token's loss is known. */
static int score_choice(struct branch *branches, uint32_t count, uint32_t which, uint32_t vocab)
{
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++)
        result = fork_rewind_to(branches[i].fork, branches[i].tail_count);
    for (uint32_t at = 0; !result; at++) {
        struct fork_work work[LANES];
        struct branch *of[LANES];
        uint32_t going = 0;
        for (uint32_t i = 0; i < count; i++) {
            struct branch *b = &branches[i];
            if (which >= b->question->choice_count || at + 1 >= b->choices[which].count)
                continue;
            of[going] = b;
            work[going++] = (struct fork_work){
                .fork = b->fork, .tokens = &b->choices[which].tokens[at], .count = 1};
        }
        if (!going)
            break;
        result = forks_feed(work, going);
        for (uint32_t i = 0; i < going && !result; i++) {
            const float *logits = fork_logits(of[i]->fork);
            of[i]->out->loss[which] +=
                log_sum(logits, vocab) - (double)logits[of[i]->choices[which].tokens[at + 1]];
        }
    }
    return result;
}

static int ask_forks(struct engine *engine, const struct eval_options *options,
                     struct branch *branches, uint32_t count)
{
    struct fork_work work[LANES];
    struct engine_info info;
    int result = 0;
    engine_info(engine, &info);
    for (uint32_t i = 0; i < count && !result; i++) {
        result = open_branch(&branches[i], engine, options);
        work[i] = (struct fork_work){
            .fork = branches[i].fork, .tokens = branches[i].tail, .count = branches[i].tail_count};
    }
    if (!result)
        result = forks_feed(work, count);
    for (uint32_t i = 0; i < count && !result; i++) {
        struct branch *b = &branches[i];
        const float *logits = fork_logits(b->fork);
        double sum = log_sum(logits, info.vocab_count);
        for (uint32_t c = 0; c < b->question->choice_count; c++)
            b->out->loss[c] = sum - (double)logits[b->choices[c].tokens[0]];
    }
    for (uint32_t c = 0; c < EVAL_CHOICES_MAX && !result; c++)
        result = score_choice(branches, count, c, info.vocab_count);
    for (uint32_t i = 0; i < count; i++)
        fork_close(&branches[i].fork);
    return result;
}

/* ---- in one context ---- */

/* Some tokens of each history, a block at a time; targets NULL: not scored. Each no more than one
 * block where it is scored. */
static int feed_histories(struct history_work *all, uint32_t count)
{
    int result = 0;
    for (uint32_t at = 0; !result; at += BLOCK) {
        struct history_work work[LANES];
        uint32_t going = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (at >= all[i].count)
                continue;
            work[going] = all[i];
            work[going].tokens += at;
            work[going++].count = all[i].count - at < BLOCK ? all[i].count - at : BLOCK;
        }
        if (!going)
            break;
        result = histories_score(work, going);
    }
    return result;
}

static int read_histories(struct engine *engine, const struct eval_options *options,
                          struct source *sources, uint32_t count)
{
    struct history_work work[LANES];
    struct engine_info info;
    int result = 0;
    engine_info(engine, &info);
    for (uint32_t i = 0; i < count && !result; i++) {
        const struct document *document = sources[i].document;
        result = history_open(&sources[i].history, engine,
                              options->context ? options->context : info.context_tokens, false);
        work[i] = (struct history_work){.history = sources[i].history,
                                        .tokens = document->tokens,
                                        .count = (uint32_t)document->count};
    }
    if (!result && count == 1) /* alone, in larger passes */
        return history_score(work->history, work->tokens, NULL, work->count, NULL, NULL);
    return result ? result : feed_histories(work, count);
}

/* Choice `which` behind the question's last token, which comes again. */
static int score_in_context(struct branch *branches, uint32_t count, uint32_t which)
{
    struct history_work work[LANES];
    int32_t tokens[LANES][BLOCK];
    float nll[LANES][BLOCK];
    struct branch *of[LANES];
    uint32_t going = 0;
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        struct branch *b = &branches[i];
        const struct choice *c = &b->choices[which];
        if (which >= b->question->choice_count)
            continue;
        result = history_rewind(b->source->history, b->source->document->count + b->tail_count - 1);
        tokens[going][0] = b->tail[b->tail_count - 1];
        memcpy(tokens[going] + 1, c->tokens, (c->count - 1) * sizeof *c->tokens);
        of[going] = b;
        work[going] = (struct history_work){.history = b->source->history,
                                            .tokens = tokens[going],
                                            .targets = c->tokens,
                                            .count = c->count,
                                            .nll = nll[going]};
        going++;
    }
    if (!result && going)
        result = feed_histories(work, going);
    for (uint32_t i = 0; i < going && !result; i++)
        for (uint32_t j = 0; j < work[i].count; j++)
            of[i]->out->loss[which] += (double)nll[i][j];
    return result;
}

/* One question of each history at most. */
static int ask_histories(struct branch *branches, uint32_t count)
{
    struct history_work work[LANES];
    int result = 0;
    for (uint32_t i = 0; i < count && !result; i++) {
        struct branch *b = &branches[i];
        result = history_rewind(b->source->history, b->source->document->count);
        b->out->rows = (double)b->source->document->count;
        work[i] = (struct history_work){
            .history = b->source->history, .tokens = b->tail, .count = b->tail_count};
    }
    if (!result)
        result = feed_histories(work, count);
    for (uint32_t c = 0; c < EVAL_CHOICES_MAX && !result; c++)
        result = score_in_context(branches, count, c);
    return result;
}

/* ---- both ---- */

/* Questions of `count` documents, some side by side at a time. */
struct chooser {
    struct engine *engine;
    const struct eval_options *options;
    struct source *sources; /* [count] */
    uint32_t count;
    struct branch *branches;   /* [most] */
    uint32_t most;             /* at least count */
    uint32_t document, asking; /* the next question */
};

static int add_branch(struct chooser *c, uint32_t place, uint32_t document, uint32_t asking)
{
    struct branch *b = &c->branches[place];
    b->source = &c->sources[document];
    b->question = &b->source->document->choice_questions[asking];
    b->out = &b->source->out[asking];
    return make_branch(b, engine_tokenizer(c->engine));
}

/* In forks any that are next; in one context the next of each document. How many, or what was
 * wrong. */
static int next_branches(struct chooser *c)
{
    bool full = c->options->policy == POLICY_FULL;
    uint32_t going = 0;
    int result = 0;
    for (uint32_t i = 0; full && i < c->count && !result; i++)
        if (c->asking < c->sources[i].document->choice_question_count)
            result = add_branch(c, going++, i, c->asking);
    c->asking += full;
    while (!full && c->document < c->count && going < c->most && !result) {
        if (c->asking < c->sources[c->document].document->choice_question_count) {
            result = add_branch(c, going++, c->document, c->asking++);
        } else {
            c->document++;
            c->asking = 0;
        }
    }
    return result ? result : (int)going;
}

static int ask_all(struct chooser *c)
{
    bool full = c->options->policy == POLICY_FULL;
    int result = full ? read_histories(c->engine, c->options, c->sources, c->count)
                      : read_streams(c->engine, c->options, c->sources, c->count);
    while (!result) {
        int going = next_branches(c);
        if (going <= 0)
            return going;
        result = full ? ask_histories(c->branches, (uint32_t)going)
                      : ask_forks(c->engine, c->options, c->branches, (uint32_t)going);
    }
    return result;
}

int choose_documents(struct engine *engine, const struct eval_options *options,
                     const struct document *documents, uint32_t count, struct chosen **out)
{
    struct chooser c = {.engine = engine, .options = options, .count = count};
    c.most = options->lanes > count ? options->lanes : count;
    c.sources = calloc(count, sizeof *c.sources);
    c.branches = calloc(c.most, sizeof *c.branches);
    int result = c.sources && c.branches && c.most <= LANES ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < count && c.sources; i++) {
        c.sources[i].document = &documents[i];
        c.sources[i].out = out[i];
    }
    if (!result)
        result = ask_all(&c);
    for (uint32_t i = 0; i < c.most && c.branches; i++)
        free(c.branches[i].memory);
    for (uint32_t i = 0; i < count && c.sources; i++) {
        stream_close(&c.sources[i].stream);
        history_close(&c.sources[i].history);
        free(c.sources[i].segments);
        free(c.sources[i].cold);
        free(c.sources[i].memory);
    }
    free(c.branches);
    free(c.sources);
    return result;
}
