/*
 * One document under one policy, in blocks of STREAM_BLOCK_TOKENS.
 *
 * The ccm kinds are a stream; full and window are a history of raw rows. A window that must hold as
 * many rows as ccm would asks a stream that reads the same tokens beside it, since how many rows
 * DMC keeps depends on the text; the time this takes is not counted.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stream/internal.h"
#include "stream/segment.h"
#include "stream/token.h"
#include "tests/eval/eval.h"

enum { BLOCK = STREAM_BLOCK_TOKENS, PROGRESS_BLOCKS = 16 };

struct runner {
    const struct eval_options *options;
    struct engine *engine;
    struct engine_info info;
    int32_t bos;
    void *memory[2]; /* of the streams */
    size_t memory_bytes;
    struct stream *stream;     /* scored, or the one that a window takes its rows from */
    struct stream *other;      /* ccm-swap: lends its memory */
    struct segment_shape int8; /* segments_int8: how cold segments are kept, */
    uint8_t *record;           /* room for one, NULL: not asked for, */
    uint64_t rounded;          /* and the newest chunk whose segment went through it */
    struct history *history;
    uint32_t rows_max; /* of the history */
    size_t row_bytes;  /* K and V of one row, all layers and heads */
};

/* A run over consecutive tokens: a document, or one block of it. */
struct span {
    const int32_t *tokens; /* [count] */
    size_t count;
    size_t score_from;    /* first token whose loss counts, as a target */
    size_t offset, whole; /* place in the document and its length, for the quarters */
};

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool uses_history(enum policy policy)
{
    return policy == POLICY_FULL || policy == POLICY_WINDOW || policy == POLICY_WINDOW_LORA;
}

static bool uses_stream(const struct eval_options *o)
{
    return !uses_history(o->policy) || (o->policy != POLICY_FULL && !o->kv_rows);
}

static int reset(struct runner *r)
{
    struct stream **streams[2] = {&r->stream, &r->other};
    for (int i = 0; i < 2; i++) {
        if (!r->memory[i])
            continue;
        stream_close(streams[i]);
        int result =
            stream_open(streams[i], r->engine, &r->options->stream, r->memory[i], r->memory_bytes);
        if (result)
            return result;
    }
    r->rounded = UINT64_MAX;
    if (r->options->policy == POLICY_NONE)
        stream_hide_memory(r->stream, true);
    if (r->options->policy == POLICY_CCM_SWAP)
        stream_swap_memory(r->stream, r->other);
    if (r->history)
        history_reset(r->history);
    return 0;
}

/* Says in error what the options and the files cannot do together. */
static int check(const struct runner *r, char *error, size_t error_bytes)
{
    const struct eval_options *o = r->options;
    const char *what = NULL;
    uint32_t context = r->info.context_tokens;
    if (uses_stream(o) && !r->info.comp_tokens)
        what = uses_history(o->policy)
                   ? "window takes its rows from ccm: name an --adapter, or say --kv-rows N"
                   : "this policy needs compressed memory: name an --adapter";
    else if (o->policy == POLICY_WINDOW_LORA && r->info.ratio_count < 2)
        what = "window+lora needs an --adapter with a DMC part";
    else if (o->segments_int8 && o->policy != POLICY_CCM)
        what = "--segments int8 goes with ccm";
    else if (o->kv_rows && (o->kv_rows <= r->info.sink_tokens || o->kv_rows > context))
        what = "--kv-rows must be more than the sinks and no more than the trained context";
    else if (o->context && (o->context <= r->info.sink_tokens || o->context > context))
        what = "--context must be more than the sinks and no more than the trained context";
    else if (o->block && o->block > (o->context ? o->context : context))
        what = "--block must fit the context";
    if (what)
        snprintf(error, error_bytes, "%s", what);
    return what ? -EINVAL : 0;
}

static int open_streams(struct runner *r, char *error, size_t error_bytes)
{
    size_t bytes = stream_bytes(r->engine, &r->options->stream, error, error_bytes);
    if (!bytes)
        return -EINVAL;
    r->memory_bytes = (bytes + 63) & ~(size_t)63;
    for (int i = 0; i < (r->options->policy == POLICY_CCM_SWAP ? 2 : 1); i++) {
        r->memory[i] = aligned_alloc(64, r->memory_bytes);
        if (!r->memory[i]) {
            snprintf(error, error_bytes, "not enough memory for a stream of %zu bytes", bytes);
            return -ENOMEM;
        }
    }
    return 0;
}

static int open_record(struct runner *r)
{
    segment_shape_make(&r->int8, r->engine, SEGMENT_INT8);
    r->record = aligned_alloc(64, (segment_buffer_bytes(&r->int8) + 63) & ~(size_t)63);
    return r->record ? 0 : -ENOMEM;
}

static int open_history(struct runner *r, char *error, size_t error_bytes)
{
    const struct eval_options *o = r->options;
    const struct engine_info *info = &r->info;
    uint32_t ring = o->stream.ring_segments ? o->stream.ring_segments : info->ring_segments;
    r->rows_max = (ring + 1) * info->comp_tokens + info->sink_tokens + 2 * info->chunk_tokens;
    if (o->policy == POLICY_FULL)
        r->rows_max = o->context ? o->context : info->context_tokens;
    else if (o->kv_rows)
        r->rows_max = o->kv_rows;
    int result = history_open(&r->history, r->engine, r->rows_max, o->policy == POLICY_WINDOW_LORA);
    if (result)
        snprintf(error, error_bytes, "a history of %u rows cannot be opened: %s", r->rows_max,
                 strerror(-result));
    return result;
}

int runner_open(struct runner **out, struct engine *engine, const struct eval_options *options,
                char *error, size_t error_bytes)
{
    struct runner *r = calloc(1, sizeof *r);
    int result = -ENOMEM;
    *out = NULL;
    if (!r)
        goto error;
    r->options = options;
    r->engine = engine;
    r->bos = tokenizer_bos(engine_tokenizer(engine));
    engine_info(engine, &r->info);
    r->row_bytes = 2 * sizeof(f16) * r->info.layer_count * r->info.kv_head_count * r->info.head_dim;
    result = check(r, error, error_bytes);
    if (!result && uses_stream(options))
        result = open_streams(r, error, error_bytes);
    if (!result && options->segments_int8)
        result = open_record(r);
    if (!result && uses_history(options->policy))
        result = open_history(r, error, error_bytes);
    if (result)
        goto error;
    *out = r;
    return 0;

error:
    runner_close(&r);
    return result;
}

void runner_close(struct runner **runner)
{
    struct runner *r = *runner;
    if (!r)
        return;
    history_close(&r->history);
    stream_close(&r->stream);
    stream_close(&r->other);
    free(r->record);
    free(r->memory[0]);
    free(r->memory[1]);
    free(r);
    *runner = NULL;
}

/* A history's block: rows[i] gets the KV rows that token i attended. */
static int history_block(struct runner *r, const int32_t *tokens, const int32_t *targets,
                         uint32_t count, size_t at, float *nll, double *rows)
{
    uint32_t visible[BLOCK];
    for (uint32_t i = 0; i < count; i++) {
        double wanted = r->stream ? rows[i] : (double)r->rows_max;
        double least = (double)r->info.sink_tokens + 1.0;
        wanted = fmin(fmax(round(wanted), least), (double)r->rows_max);
        visible[i] = (uint32_t)wanted;
        rows[i] = fmin(wanted, (double)(at + i + 1));
    }
    return history_score(r->history, tokens, targets, count, visible, nll);
}

/* The newest segment, to disk as int8 and back, in the ring at once: more than recall would ever
 * bring back so, hence the most that it can cost. */
static void round_segment(struct runner *r)
{
    const struct state *state = r->stream->state;
    struct segment_view view;

    if (!r->record || !stream_newest_segment(r->stream, &view) || view.number == r->rounded)
        return;
    r->rounded = view.number;
    segment_put_rows(&r->int8, r->record, view.rows);
    ccm_set_ring(r->stream, (state->ring_first + state->ring_count - 1) % r->stream->layout.ring,
                 view.number, segment_take_rows(&r->int8, r->record));
}

/* A stream's block; rows are counted as queries of this policy see them. */
static int stream_block(struct runner *r, const int32_t *tokens, const int32_t *targets, float *nll,
                        double *rows)
{
    double hidden = 0.0;
    uint32_t first;
    if (r->options->policy == POLICY_NONE) {
        uint32_t visible = ccm_visible(r->engine, &r->stream->layout, r->stream->state, &first);
        bool sinks = first <= r->info.comp_tokens;
        hidden = (double)(visible - (sinks ? r->info.sink_tokens : 0));
    }
    int result = targets ? stream_score(r->stream, tokens, targets, BLOCK, nll)
                         : stream_feed(r->stream, tokens, BLOCK);
    if (result)
        return result;
    round_segment(r);
    stream_rows_block(r->stream, rows, BLOCK);
    for (uint32_t i = 0; i < BLOCK; i++)
        rows[i] -= hidden;
    return 0;
}

/* The other document, from its beginning again where it is the shorter one. */
static int feed_other(struct runner *r, const struct document *other, size_t at)
{
    int32_t tokens[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++)
        tokens[i] = other->tokens[(at + i) % other->count];
    return stream_feed(r->other, tokens, BLOCK);
}

/* Tokens and targets of the block at a place; the rest of a last block is padding that nobody sees.
 */
static uint32_t block_fill(const struct runner *r, const struct span *span, size_t at,
                           int32_t *tokens, int32_t *targets)
{
    uint32_t count = span->count - at < BLOCK ? (uint32_t)(span->count - at) : BLOCK;
    for (uint32_t i = 0; i < BLOCK; i++) {
        size_t next = at + i + 1;
        tokens[i] = i < count ? span->tokens[at + i] : 0;
        targets[i] = next < span->count && next >= span->score_from ? span->tokens[next] : -1;
    }
    if (at == 0 && r->options->block && r->bos >= 0)
        tokens[0] = r->bos;
    return count;
}

static void score_block(const struct span *span, size_t at, uint32_t count, const int32_t *targets,
                        const float *nll, const double *rows, struct score *out)
{
    for (uint32_t i = 0; i < count; i++) {
        out->tokens++;
        out->rows += rows[i];
        if (targets[i] < 0)
            continue;
        size_t quarter = (span->offset + at + i + 1) * EVAL_QUARTERS / span->whole;
        out->nll[quarter] += (double)nll[i];
        out->scored[quarter]++;
    }
}

static void score_bytes(struct runner *r, const double *rows, uint32_t count, struct score *out)
{
    size_t bytes = 0;
    if (r->history) {
        for (uint32_t i = 0; i < count; i++)
            if (rows[i] * (double)r->row_bytes > (double)bytes)
                bytes = (size_t)(rows[i] * (double)r->row_bytes);
    } else {
        struct stream_stat stat;
        stream_stat(r->stream, &stat);
        for (int i = 0; i < TIER_COUNT; i++)
            bytes += stat.tier_used_bytes[i];
    }
    out->kv_bytes_peak = bytes > out->kv_bytes_peak ? bytes : out->kv_bytes_peak;
}

static int run_block(struct runner *r, const struct span *span, const struct document *other,
                     size_t at, struct score *out)
{
    int32_t tokens[BLOCK], targets[BLOCK];
    float nll[BLOCK];
    double rows[BLOCK] = {0};
    uint32_t count = block_fill(r, span, at, tokens, targets);
    int result = 0;
    if (r->history && r->stream)
        result = stream_block(r, tokens, NULL, NULL, rows);
    double start = seconds();
    if (!result)
        result = r->history ? history_block(r, tokens, targets, count, at, nll, rows)
                            : stream_block(r, tokens, targets, nll, rows);
    out->seconds += seconds() - start;
    /* The other goes last: fed first, it would have slid at a chunk's end before the block that
     * still sees its ring. */
    if (!result && r->options->policy == POLICY_CCM_SWAP)
        result = feed_other(r, other, at);
    if (result)
        return result;
    for (uint32_t i = 0; i < count; i++)
        if (targets[i] >= 0 && !isfinite(nll[i]))
            return -ERANGE;
    score_block(span, at, count, targets, nll, rows, out);
    score_bytes(r, rows, count, out);
    return 0;
}

static int run_span(struct runner *r, const struct span *span, const struct document *other,
                    struct score *out, progress_fn *progress, void *user)
{
    int result = reset(r);
    for (size_t at = 0; !result && at < span->count; at += BLOCK) {
        result = run_block(r, span, other, at, out);
        if (progress && at / BLOCK % PROGRESS_BLOCKS == 0)
            progress(user, span->offset + at);
    }
    return result;
}

int runner_score(struct runner *r, const struct document *document, const struct document *other,
                 struct score *out, progress_fn *progress, void *user)
{
    struct span span = {document->tokens, document->count, 1, 0, document->count};
    struct stream_stat stat = {.ratio_realised = 1.0};
    int result = 0;
    *out = (struct score){0};
    if (!r->options->block) {
        result = run_span(r, &span, other, out, progress, user);
    } else {
        /* As llama.cpp's perplexity tool: the last, unfull block is left out, a block's first half
         * is context, and the token at the middle is not scored. */
        span.count = r->options->block;
        span.score_from = span.count / 2 + 1;
        for (; !result && span.offset + span.count <= document->count; span.offset += span.count) {
            span.tokens = document->tokens + span.offset;
            result = run_span(r, &span, other, out, progress, user);
        }
    }
    if (!result && r->stream && !r->history)
        stream_stat(r->stream, &stat);
    out->entries = (double)out->tokens / stat.ratio_realised;
    return result;
}

void score_add(struct score *total, const struct score *score)
{
    for (int i = 0; i < EVAL_QUARTERS; i++) {
        total->nll[i] += score->nll[i];
        total->scored[i] += score->scored[i];
    }
    total->tokens += score->tokens;
    total->rows += score->rows;
    total->entries += score->entries;
    total->seconds += score->seconds;
    if (score->kv_bytes_peak > total->kv_bytes_peak)
        total->kv_bytes_peak = score->kv_bytes_peak;
}
