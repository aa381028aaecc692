/*
 * Documents under one policy, in blocks of STREAM_BLOCK_TOKENS, some side by side in lanes on a
 * device.
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

enum { BLOCK = STREAM_BLOCK_TOKENS, STEP_MAX = 512, PROGRESS_STEPS = 16 };

/* A run over consecutive tokens: a document, or one block of it. */
struct span {
    const int32_t *tokens; /* [count] */
    size_t count;
    size_t score_from;    /* first token whose loss counts, as a target */
    size_t offset, whole; /* place in the document and its length, for the quarters */
};

/* A span on its way, and what the step now done has of it. */
struct lane {
    struct span span;
    const struct document *other;
    struct score *out;
    void *memory[2];       /* of the streams */
    struct stream *stream; /* scored, or the one that a window takes its rows from */
    struct stream *lender; /* ccm-swap and ccm-foreign: its memory is seen */
    struct history *history;
    uint64_t rounded; /* newest chunk whose segment went through int8 */
    uint32_t count;   /* tokens of the step; padding follows to whole blocks */
    int32_t tokens[STEP_MAX], targets[STEP_MAX], lent[STEP_MAX];
    uint32_t visible[STEP_MAX];
    float nll[STEP_MAX];
    double rows[STEP_MAX];
};

struct runner {
    const struct eval_options *options;
    struct engine *engine;
    struct engine_info info;
    int32_t bos;
    size_t memory_bytes;       /* of a stream */
    struct segment_shape int8; /* segments_int8: how cold segments are kept, */
    uint8_t *record;           /* room for one, NULL: not asked for */
    uint32_t rows_max;         /* of a history */
    size_t row_bytes;          /* K and V of one row, all layers and heads */
    uint32_t step;             /* tokens of a lane at a time */
    bool rows_known;
    uint32_t lanes, running;
    struct lane *lane[EVAL_LANES_MAX]; /* [lanes], the running ones first */
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

static bool borrows(enum policy policy)
{
    return policy == POLICY_CCM_SWAP || policy == POLICY_CCM_FOREIGN;
}

static int reset(const struct runner *r, struct lane *lane)
{
    struct stream **streams[2] = {&lane->stream, &lane->lender};
    for (int i = 0; i < 2; i++) {
        if (!lane->memory[i])
            continue;
        stream_close(streams[i]);
        int result = stream_open(streams[i], r->engine, &r->options->stream, lane->memory[i],
                                 r->memory_bytes);
        if (result)
            return result;
    }
    lane->rounded = UINT64_MAX;
    if (r->options->policy == POLICY_NONE)
        stream_hide_memory(lane->stream, true);
    if (r->options->policy == POLICY_NO_SUMMARY)
        stream_hide_summary(lane->stream, true);
    if (lane->lender)
        stream_swap_memory(lane->stream, lane->lender);
    if (lane->history)
        history_reset(lane->history);
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

static int open_streams(struct runner *r, struct lane *lane, char *error, size_t error_bytes)
{
    for (int i = 0; i < (borrows(r->options->policy) ? 2 : 1); i++) {
        lane->memory[i] = aligned_alloc(64, r->memory_bytes);
        if (!lane->memory[i]) {
            snprintf(error, error_bytes, "not enough memory for a stream of %zu bytes",
                     r->memory_bytes);
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

static int open_history(struct runner *r, struct lane *lane, char *error, size_t error_bytes)
{
    const struct eval_options *o = r->options;
    const struct engine_info *info = &r->info;
    uint32_t ring = o->stream.ring_segments ? o->stream.ring_segments : info->ring_segments;
    r->rows_max = (ring + 1) * info->comp_tokens + info->sink_tokens + 2 * info->chunk_tokens;
    if (o->policy == POLICY_FULL)
        r->rows_max = o->context ? o->context : info->context_tokens;
    else if (o->kv_rows)
        r->rows_max = o->kv_rows;
    int result =
        history_open(&lane->history, r->engine, r->rows_max, o->policy == POLICY_WINDOW_LORA);
    if (result)
        snprintf(error, error_bytes, "a history of %u rows cannot be opened: %s", r->rows_max,
                 strerror(-result));
    return result;
}

static void close_lane(struct lane *lane)
{
    history_close(&lane->history);
    stream_close(&lane->stream);
    stream_close(&lane->lender);
    free(lane->memory[0]);
    free(lane->memory[1]);
    free(lane);
}

static int open_lane(struct runner *r, char *error, size_t error_bytes)
{
    struct lane *lane = calloc(1, sizeof *lane);
    int result = lane ? 0 : -ENOMEM;
    if (!result && uses_stream(r->options))
        result = open_streams(r, lane, error, error_bytes);
    if (!result && uses_history(r->options->policy))
        result = open_history(r, lane, error, error_bytes);
    if (!result)
        result = reset(r, lane);
    if (result && lane)
        close_lane(lane);
    if (!result)
        r->lane[r->lanes++] = lane;
    return result;
}

/* A device computes a chunk faster than its blocks; but how many rows a block sees of a chunk that
 * DMC merges is known only where it ends with the step. */
static void choose_step(struct runner *r)
{
    const struct eval_options *o = r->options;
    struct stream_stat stat = {.dmc_ratio = 1};
    bool device = o->engine.device == DEVICE_CUDA;
    if (r->lane[0]->stream)
        stream_stat(r->lane[0]->stream, &stat);
    r->step = BLOCK;
    r->rows_known = true;
    bool counts = o->policy == POLICY_CCM || o->policy == POLICY_NO_SUMMARY;
    if (!device || uses_history(o->policy) || o->segments_int8 || (stat.dmc_ratio > 1 && counts) ||
        r->info.chunk_tokens > STEP_MAX)
        return;
    r->step = r->info.chunk_tokens;
    r->rows_known = stat.dmc_ratio == 1;
}

int runner_open(struct runner **out, struct engine *engine, const struct eval_options *options,
                size_t documents, char *error, size_t error_bytes)
{
    struct runner *r = calloc(1, sizeof *r);
    int result = -ENOMEM;
    size_t lanes = options->lanes && !options->block ? options->lanes : 1;
    *out = NULL;
    if (!r)
        goto error;
    r->options = options;
    r->engine = engine;
    r->bos = tokenizer_bos(engine_tokenizer(engine));
    engine_info(engine, &r->info);
    r->row_bytes = 2 * sizeof(f16) * r->info.layer_count * r->info.kv_head_count * r->info.head_dim;
    result = check(r, error, error_bytes);
    if (!result && uses_stream(options)) {
        size_t bytes = stream_bytes(r->engine, &options->stream, error, error_bytes);
        r->memory_bytes = (bytes + 63) & ~(size_t)63;
        result = bytes ? 0 : -EINVAL;
    }
    if (!result && options->segments_int8)
        result = open_record(r);
    lanes = lanes < documents ? lanes : documents;
    for (size_t i = 0; i < (lanes ? lanes : 1) && !result; i++)
        result = open_lane(r, error, error_bytes);
    if (result)
        goto error;
    choose_step(r);
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
    for (uint32_t i = 0; i < r->lanes; i++)
        close_lane(r->lane[i]);
    free(r->record);
    free(r);
    *runner = NULL;
}

uint32_t runner_lanes(const struct runner *runner)
{
    return runner->lanes;
}

/* The newest segment, to disk as int8 and back, in the ring at once: more than recall would ever
 * bring back so, hence the most that it can cost. */
static void round_segment(const struct runner *r, struct lane *lane)
{
    const struct state *state = lane->stream->state;
    struct segment_view view;

    if (!r->record || !stream_newest_segment(lane->stream, &view) || view.number == lane->rounded)
        return;
    lane->rounded = view.number;
    segment_put_rows(&r->int8, r->record, view.rows);
    ccm_set_ring(lane->stream,
                 (state->ring_first + state->ring_count - 1) % lane->stream->layout.ring,
                 view.number, segment_take_rows(&r->int8, r->record));
}

/* Rows of a stream that queries of this policy do not see. */
static double hidden_rows(const struct runner *r, const struct stream *stream)
{
    enum policy policy = r->options->policy;
    if (policy != POLICY_NONE && policy != POLICY_NO_SUMMARY)
        return 0.0;
    uint32_t first, comp = r->info.comp_tokens;
    uint32_t visible = ccm_visible(r->engine, &stream->layout, stream->state, &first);
    if (policy == POLICY_NO_SUMMARY)
        return first < comp ? (double)(comp - first) : 0.0;
    return (double)(visible - (first <= comp ? r->info.sink_tokens : 0));
}

static uint32_t whole_blocks(const struct lane *lane)
{
    return (lane->count + BLOCK - 1) / BLOCK * BLOCK;
}

/* The step's tokens and targets; the rest of a last block is padding that nobody sees. */
static void fill_lane(const struct runner *r, struct lane *lane, size_t at)
{
    const struct span *span = &lane->span;
    lane->count = span->count - at < r->step ? (uint32_t)(span->count - at) : r->step;
    for (uint32_t i = 0; i < whole_blocks(lane); i++) {
        size_t next = at + i + 1;
        lane->tokens[i] = i < lane->count ? span->tokens[at + i] : 0;
        lane->targets[i] = next < span->count && next >= span->score_from ? span->tokens[next] : -1;
        lane->rows[i] = 0.0;
        if (lane->lender) /* from its beginning again where it is the shorter one */
            lane->lent[i] = lane->other->tokens[(at + i) % lane->other->count];
    }
    if (at == 0 && r->options->block && r->bos >= 0)
        lane->tokens[0] = r->bos;
    double rows = lane->stream ? stream_rows_now(lane->stream) - hidden_rows(r, lane->stream) : 0.0;
    for (uint32_t i = 0; lane->stream && i < lane->count; i++)
        lane->rows[i] = rows + i + 1;
}

/* Rows of a history: lane->rows gets what each token attended. */
static void see_rows(const struct runner *r, struct lane *lane, size_t at)
{
    for (uint32_t i = 0; i < lane->count; i++) {
        double wanted = lane->stream ? lane->rows[i] : (double)r->rows_max;
        double least = (double)r->info.sink_tokens + 1.0;
        wanted = fmin(fmax(round(wanted), least), (double)r->rows_max);
        lane->visible[i] = (uint32_t)wanted;
        lane->rows[i] = fmin(wanted, (double)(at + i + 1));
    }
}

static void score_lane(const struct runner *r, struct lane *lane, size_t at, double elapsed)
{
    const struct span *span = &lane->span;
    struct score *out = lane->out;
    size_t bytes = 0;
    for (uint32_t i = 0; i < lane->count; i++) {
        out->tokens++;
        out->rows += r->rows_known ? lane->rows[i] : NAN;
        if (r->options->policy == POLICY_FULL || lane->history)
            bytes = lane->rows[i] * (double)r->row_bytes > (double)bytes
                        ? (size_t)(lane->rows[i] * (double)r->row_bytes)
                        : bytes;
        if (lane->targets[i] < 0)
            continue;
        size_t quarter = (span->offset + at + i + 1) * EVAL_QUARTERS / span->whole;
        out->nll[quarter] += (double)lane->nll[i];
        out->scored[quarter]++;
    }
    if (!lane->history) {
        struct stream_stat stat;
        stream_stat(lane->stream, &stat);
        for (int i = 0; i < TIER_COUNT; i++)
            bytes += stat.tier_used_bytes[i];
    }
    out->kv_bytes_peak = bytes > out->kv_bytes_peak ? bytes : out->kv_bytes_peak;
    out->seconds += elapsed / r->running;
}

/* The running lanes' streams, scored or only fed; lenders: those whose memory is lent. */
static int run_streams(const struct runner *r, bool scored, bool lenders)
{
    struct stream_work work[EVAL_LANES_MAX];
    struct stream_targets score[EVAL_LANES_MAX];
    for (uint32_t i = 0; i < r->running; i++) {
        struct lane *lane = r->lane[i];
        work[i] = (struct stream_work){lenders ? lane->lender : lane->stream,
                                       lenders ? lane->lent : lane->tokens, whole_blocks(lane), 0};
        score[i] = (struct stream_targets){lane->targets, lane->nll};
    }
    return scored ? streams_score(work, score, r->running) : streams_feed(work, r->running);
}

static int run_histories(const struct runner *r, size_t at)
{
    struct history_work work[EVAL_LANES_MAX];
    for (uint32_t i = 0; i < r->running; i++) {
        struct lane *lane = r->lane[i];
        see_rows(r, lane, at);
        work[i] = (struct history_work){lane->history, lane->tokens,  lane->targets,
                                        lane->count,   lane->visible, lane->nll};
    }
    return histories_score(work, r->running);
}

static int run_step(struct runner *r, size_t at)
{
    bool history = r->lane[0]->history != NULL;
    int result = 0;
    for (uint32_t i = 0; i < r->running; i++)
        fill_lane(r, r->lane[i], at);
    if (history && r->lane[0]->stream)
        result = run_streams(r, false, false);
    double start = seconds();
    if (!result)
        result = history ? run_histories(r, at) : run_streams(r, true, false);
    double elapsed = seconds() - start;
    for (uint32_t i = 0; i < r->running && !result && !history; i++)
        round_segment(r, r->lane[i]);
    /* Lenders go last: fed first, they would have slid at a chunk's end before the block that
     * still sees their rings. */
    if (!result && borrows(r->options->policy))
        result = run_streams(r, false, true);
    if (result)
        return result;
    for (uint32_t i = 0; i < r->running; i++) {
        struct lane *lane = r->lane[i];
        for (uint32_t j = 0; j < lane->count; j++)
            if (lane->targets[j] >= 0 && !isfinite(lane->nll[j]))
                return -ERANGE;
        score_lane(r, lane, at, elapsed);
    }
    return 0;
}

/* Lanes whose span has ended make room for those that run on. */
static void retire(struct runner *r, size_t at)
{
    for (uint32_t i = 0; i < r->running;) {
        struct lane *lane = r->lane[i];
        struct stream_stat stat = {.ratio_realised = 1.0};
        if (lane->span.count > at) {
            i++;
            continue;
        }
        if (lane->stream && !lane->history)
            stream_stat(lane->stream, &stat);
        lane->out->entries += (double)lane->span.count / stat.ratio_realised;
        r->lane[i] = r->lane[--r->running];
        r->lane[r->running] = lane;
    }
}

/* The first `count` lanes' spans, from their beginnings. */
static int run_spans(struct runner *r, uint32_t count, progress_fn *progress, void *user)
{
    int result = 0;
    size_t done = 0;
    r->running = count;
    for (uint32_t i = 0; i < count && !result; i++)
        result = reset(r, r->lane[i]);
    for (size_t at = 0; !result && r->running; at += r->step) {
        for (uint32_t i = 0; i < r->running; i++)
            done += r->lane[i]->count;
        result = run_step(r, at);
        if (progress && at / r->step % PROGRESS_STEPS == 0)
            progress(user, r->lane[0]->span.offset + done);
        retire(r, at + r->step);
    }
    return result;
}

int runner_score(struct runner *r, const struct document *const *documents,
                 const struct document *const *others, uint32_t count, struct score *out,
                 progress_fn *progress, void *user)
{
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct document *document = documents[i];
        out[i] = (struct score){0};
        r->lane[i]->span = (struct span){document->tokens, document->count, 1, 0, document->count};
        r->lane[i]->other = others[i];
        r->lane[i]->out = &out[i];
        r->lane[i]->count = 0;
    }
    if (!r->options->block)
        return run_spans(r, count, progress, user);
    /* As llama.cpp's perplexity tool: the last, unfull block is left out, a block's first half is
     * context, and the token at the middle is not scored. One lane. */
    struct span *span = &r->lane[0]->span;
    span->count = r->options->block;
    span->score_from = span->count / 2 + 1;
    for (; !result && span->offset + span->count <= documents[0]->count;
         span->offset += span->count) {
        span->tokens = documents[0]->tokens + span->offset;
        result = run_spans(r, 1, progress, user);
    }
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
