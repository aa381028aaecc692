/*
 * A sliding window of raw rows, for evaluation: what a model without compression does in the same
 * number of rows.
 *
 * Rows keep their true positions, the sinks are re-placed before the window's first row each block
 * (StreamingLLM, arXiv 2309.17453, with distances as the model was trained).
 */
#include "stream/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct history {
    struct engine *engine;
    struct tail tail;
    uint32_t rows_max;
    bool dmc_lora;
    uint64_t tokens;
    uint32_t first[STREAM_PASS_TOKENS];
};

static uint32_t heads_of(const struct engine *e)
{
    return e->shape.layers * e->shape.kv_heads;
}

/* Rows of all heads, on the engine's device. */
static bool take_rows(struct history *h, f16 **out, uint32_t rows)
{
    struct engine *e = h->engine;
    size_t bytes = heads_of(e) * (size_t)(rows ? rows : 1) * e->shape.head_dim * sizeof(f16);
    return e->gpu ? gpu_take(e->gpu, bytes, out, NULL) : (*out = malloc(bytes)) != NULL;
}

static void give_rows(const struct history *h, f16 *rows)
{
    if (h->engine->gpu)
        gpu_give(h->engine->gpu, rows);
    else
        free(rows);
}

int history_open(struct history **out, struct engine *e, uint32_t rows_max, bool dmc_lora)
{
    const struct shape *s = &e->shape;
    *out = NULL;
    struct history *h = calloc(1, sizeof *h);
    if (!h)
        return -ENOMEM;
    *h = (struct history){.engine = e, .rows_max = rows_max, .dmc_lora = dmc_lora};
    /* Twice the window: rows move to the front only once in a window's length. */
    h->tail.capacity = 2 * (rows_max + STREAM_PASS_TOKENS);
    struct tail *t = &h->tail;
    if (!take_rows(h, &t->k, t->capacity) || !take_rows(h, &t->v, t->capacity) ||
        !take_rows(h, &t->sink_k, s->sinks) || !take_rows(h, &t->sink_v, s->sinks) ||
        !take_rows(h, &t->sink_k_raw, s->sinks) || rows_max <= s->sinks) {
        history_close(&h);
        return rows_max <= s->sinks ? -EINVAL : -ENOMEM;
    }
    *out = h;
    return 0;
}

void history_close(struct history **history)
{
    struct history *h = *history;
    if (!h)
        return;
    give_rows(h, h->tail.k);
    give_rows(h, h->tail.v);
    give_rows(h, h->tail.sink_k);
    give_rows(h, h->tail.sink_v);
    give_rows(h, h->tail.sink_k_raw);
    free(h);
    *history = NULL;
}

void history_reset(struct history *h)
{
    h->tail.start = h->tail.count = h->tail.sinks = 0;
    h->tokens = 0;
}

int history_rewind(struct history *h, uint64_t tokens)
{
    if (h->tail.start || h->tail.sinks || h->tokens != h->tail.count || tokens > h->tokens)
        return -EINVAL;
    h->tail.count = (uint32_t)tokens;
    h->tokens = tokens;
    return 0;
}

static void move_to_front(struct history *h)
{
    struct tail *t = &h->tail;
    size_t dim = h->engine->shape.head_dim, rows = t->count - t->start;
    if (h->engine->gpu) { /* twice the window: old and new place do not overlap */
        gpu_rows_copy(h->engine, t->k, t->capacity, t->k + t->start * dim, t->capacity,
                      (uint32_t)rows);
        gpu_rows_copy(h->engine, t->v, t->capacity, t->v + t->start * dim, t->capacity,
                      (uint32_t)rows);
    }
    for (uint32_t i = 0; !h->engine->gpu && i < heads_of(h->engine); i++) {
        f16 *k = t->k + (size_t)i * t->capacity * dim, *v = t->v + (size_t)i * t->capacity * dim;
        memmove(k, k + t->start * dim, rows * dim * sizeof *k);
        memmove(v, v + t->start * dim, rows * dim * sizeof *v);
    }
    t->start = 0;
    t->count = (uint32_t)rows;
}

/* The first tokens' rows sit at positions 0, 1, …, rotated; turning them back gives the un-rotated
 * keys. Done once, while position 0 is still in the tail: the rows are stored a second time with
 * the inverse rotation. */
static void keep_sinks(struct history *h)
{
    struct engine *e = h->engine;
    struct tail *t = &h->tail;
    uint32_t sinks = e->shape.sinks;
    size_t dim = e->shape.head_dim;
    if (e->gpu) {
        gpu_rows_turn(e, t->sink_k_raw, sinks, t->k, t->capacity, 0, -1, sinks);
        gpu_rows_copy(e, t->sink_v, sinks, t->v, t->capacity, sinks);
        return;
    }
    for (uint32_t j = 0; j < sinks; j++)
        rotation_row(e, -(int64_t)j, e->rotation + j * dim);
    for (uint32_t i = 0; i < heads_of(e); i++) {
        e->kernels->rotate(e->kernels, t->sink_k_raw + (size_t)i * sinks * dim,
                           t->k + (size_t)i * t->capacity * dim, e->rotation, sinks,
                           e->shape.head_dim);
        memcpy(t->sink_v + (size_t)i * sinks * dim, t->v + (size_t)i * t->capacity * dim,
               sinks * dim * sizeof *t->v);
    }
}

static void place_sinks(struct history *h, int64_t window_start)
{
    struct engine *e = h->engine;
    struct tail *t = &h->tail;
    size_t dim = e->shape.head_dim;
    if (e->gpu) {
        gpu_rows_turn(e, t->sink_k, t->sinks, t->sink_k_raw, t->sinks, window_start - t->sinks, 1,
                      t->sinks);
        return;
    }
    for (uint32_t j = 0; j < t->sinks; j++)
        rotation_row(e, window_start - t->sinks + j, e->rotation + j * dim);
    for (uint32_t i = 0; i < heads_of(e) && t->sinks; i++)
        e->kernels->rotate(e->kernels, t->sink_k + (size_t)i * t->sinks * dim,
                           t->sink_k_raw + (size_t)i * t->sinks * dim, e->rotation, t->sinks,
                           e->shape.head_dim);
}

/* First token that query t attends besides the sinks, or 0 while the window still reaches the sinks
 * themselves. */
static uint64_t window_first(const struct history *h, uint64_t t, uint32_t rows_visible)
{
    uint32_t sinks = h->engine->shape.sinks;
    if (t + 1 <= rows_visible)
        return 0;
    return t + 1 - (rows_visible - sinks);
}

static void plan_block(struct history *h, const uint32_t *rows_visible, uint32_t rows)
{
    struct tail *t = &h->tail;
    uint64_t base = h->tokens - (t->count - t->start); /* token of the tail's row `start` */
    uint64_t oldest = UINT64_MAX, first[STREAM_PASS_TOKENS];
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t visible = rows_visible ? rows_visible[i] : h->rows_max;
        first[i] = window_first(h, h->tokens + i, visible);
        if (first[i] < oldest)
            oldest = first[i];
    }
    bool slid =
        oldest >
        0; /* else some query of the block still sees the sinks in their own place: then all do */
    if (slid && !t->sinks) {
        keep_sinks(h);
        t->sinks = h->engine->shape.sinks;
    }
    if (slid && oldest > base) {
        t->start += (uint32_t)(oldest - base);
        base = oldest;
    }
    for (uint32_t i = 0; i < rows; i++) {
        uint64_t from = slid && first[i] > base ? first[i] - base : 0;
        uint32_t held = t->count - t->start;
        h->first[i] = from > held ? held : (uint32_t)from;
    }
    place_sinks(h, (int64_t)base);
    t->first = h->first;
    if (t->count + rows > t->capacity)
        move_to_front(h);
}

static bool alike(const uint32_t *first, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        if (first[i] != first[0])
            return false;
    return !first[0];
}

static struct gpu_rows device_rows(struct history *h, const struct history_work *w)
{
    return (struct gpu_rows){.tail = &h->tail,
                             .tokens = w->tokens,
                             .targets = w->targets,
                             .first = alike(h->first, w->count) ? NULL : h->first,
                             .count = w->count,
                             .layers = h->engine->shape.layers,
                             .position = (int64_t)h->tokens,
                             .dmc_lora = h->dmc_lora,
                             .nll = w->nll};
}

static int score_block(struct history *h, const struct history_work *w)
{
    struct engine *e = h->engine;
    if (e->gpu) {
        struct gpu_rows run = device_rows(h, w);
        return gpu_rows_run(e, &run, 1);
    }
    struct forward_item item = {.kind = FORWARD_RAW,
                                .tail = &h->tail,
                                .tokens = w->tokens,
                                .rows = w->count,
                                .position = (int64_t)h->tokens,
                                .dmc_lora = h->dmc_lora};
    forward_run(e, &item, 1);
    if (w->targets)
        forward_nll(e, 0, w->count, w->targets, w->nll);
    return 0;
}

static bool scorable(const struct history_work *w)
{
    const struct history *h = w->history;
    const struct shape *s = &h->engine->shape;
    for (uint32_t i = 0; i < w->count; i++) {
        bool bad_target = w->targets && w->targets[i] >= 0 && (uint32_t)w->targets[i] >= s->vocab;
        bool bad_rows =
            w->rows_visible && (w->rows_visible[i] <= s->sinks || w->rows_visible[i] > h->rows_max);
        if (w->tokens[i] < 0 || (uint32_t)w->tokens[i] >= s->vocab || bad_target || bad_rows)
            return false;
    }
    return true;
}

/* The part of w from `at` on. */
static struct history_work part_of(const struct history_work *w, uint32_t at, uint32_t count)
{
    return (struct history_work){.history = w->history,
                                 .tokens = w->tokens + at,
                                 .targets = w->targets ? w->targets + at : NULL,
                                 .count = count,
                                 .rows_visible = w->rows_visible ? w->rows_visible + at : NULL,
                                 .nll = w->nll ? w->nll + at : NULL};
}

int histories_score(const struct history_work *work, uint32_t count)
{
    enum { TOGETHER = 64 };
    struct gpu_rows run[TOGETHER];
    int code = 0;
    for (uint32_t i = 0; i < count; i++)
        if (work[i].count > STREAM_BLOCK_TOKENS || !scorable(&work[i]))
            return -EINVAL;
    for (uint32_t at = 0, rows; at < count && !code; at += rows) {
        struct engine *e = work[at].history->engine;
        uint32_t most = e->gpu ? gpu_rows_most(e) : 1;
        most = most < TOGETHER ? most : TOGETHER;
        rows = count - at < most ? count - at : most;
        for (uint32_t i = 0; i < rows; i++) {
            plan_block(work[at + i].history, work[at + i].rows_visible, work[at + i].count);
            run[i] = device_rows(work[at + i].history, &work[at + i]);
        }
        code = e->gpu ? gpu_rows_run(e, run, rows) : score_block(work[at].history, &work[at]);
        for (uint32_t i = 0; i < rows && !code; i++)
            work[at + i].history->tokens += work[at + i].count;
    }
    return code;
}

int history_score(struct history *h, const int32_t *tokens, const int32_t *targets, uint32_t count,
                  const uint32_t *rows_visible, float *nll)
{
    struct engine *e = h->engine;
    struct history_work work = {h, tokens, targets, count, rows_visible, nll};
    if (!scorable(&work))
        return -EINVAL;
    for (uint32_t at = 0; at < count;) {
        /* where the window slides, the sinks are placed anew each block */
        bool whole = !e->gpu && !rows_visible && h->tokens + STREAM_PASS_TOKENS <= h->rows_max;
        uint32_t most = whole ? STREAM_PASS_TOKENS : STREAM_BLOCK_TOKENS;
        uint32_t rows = count - at < most ? count - at : most;
        struct history_work part = part_of(&work, at, rows);
        plan_block(h, part.rows_visible, rows);
        int code = score_block(h, &part);
        if (code)
            return code;
        h->tokens += rows;
        at += rows;
    }
    return 0;
}
