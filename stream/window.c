/*
 * The window: KV entries of the previous chunk and of the open one, and the flat state they live
 * in.
 *
 * DMC (arXiv 2403.09636) lets each KV head append or merge by itself, so heads differ in length. A
 * head's room is its quota: once its appends reach it, every further token of the chunk merges.
 * That turns an average into a guarantee.
 *
 * A merge is seen a block late (delayed eviction: DMS, arXiv 2506.05345). Queries of block b see
 * the open chunk's entries as they stood when block b-2 ended, then the rows of blocks b-1 and b as
 * they were computed. So the newest block's entries wait: new ones behind those in view, and in a
 * row of its own what the newest one in view has grown to. At the chunk's end nothing waits.
 */
#include "stream/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { STATE_ALIGN = 64 };

static size_t take(struct layout *l, size_t bytes)
{
    size_t at = l->bytes;
    l->bytes += (bytes + STATE_ALIGN - 1) & ~(size_t)(STATE_ALIGN - 1);
    return at;
}

static uint32_t head_capacity(const struct engine *e, const struct layout *l, uint32_t head)
{
    return l->ratio == 1 ? e->shape.chunk : e->quota[l->ratio_index * l->heads + head];
}

static int pick_ratio(struct layout *l, const struct engine *e, uint32_t asked, char *error,
                      size_t error_bytes)
{
    const struct engine_info *i = &e->info;
    char list[80] = "";
    size_t at = 0;

    l->ratio = asked ? asked : 1;
    for (uint32_t r = 1; !asked && r < i->ratio_count; r++)
        if (i->ratio[r] <= STREAM_RATIO_DEFAULT)
            l->ratio = i->ratio[r];
    for (uint32_t r = 0; r < i->ratio_count; r++) {
        if (i->ratio[r] == l->ratio) {
            l->ratio_index = r ? r - 1 : 0;
            return 0;
        }
    }
    for (uint32_t r = 0; r < i->ratio_count && at < sizeof list; r++)
        at += (size_t)snprintf(list + at, sizeof list - at, r ? ", %u" : "%u", i->ratio[r]);
    return fail_with(error, error_bytes, -EINVAL,
                     "DMC ratio %u is not one this adapter serves: choose of %s", asked, list);
}

/* The farthest pair of rows a query ever sees stays inside the trained context (DESIGN 2.6). */
static int check_reach(const struct layout *l, const struct engine *e, char *error,
                       size_t error_bytes)
{
    const struct shape *s = &e->shape;
    uint64_t chunks = l->ring ? l->ring + 1 + STREAM_RECALL_MAX : 2; /* the newest of the ring is
                                                                        the previous chunk's */
    uint64_t reach = chunks * s->chunk + FORK_TOKENS_MAX + s->comp + s->sinks;
    if (!l->ring && reach > s->context)
        return fail_with(error, error_bytes, -EINVAL,
                         "the model was trained on %u tokens, too few for a window and a question: "
                         "%llu are needed; take one of a longer context",
                         s->context, (unsigned long long)reach);
    if (l->ring > STREAM_RING_MAX || (l->ring && !s->comp) || reach > s->context)
        return fail_with(error, error_bytes, -EINVAL,
                         "a ring of %u segments reaches %llu tokens back, past the model's trained "
                         "context of %u; choose a smaller ring",
                         l->ring, (unsigned long long)reach, s->context);
    reach += s->pins;
    reach -= (l->ring ? STREAM_RECALL_MAX : 0) * s->chunk; /* pins may take places of recall's */
    if (reach > s->context)
        return fail_with(error, error_bytes, -EINVAL,
                         "%u pinned tokens beside a ring of %u segments reach past the model's "
                         "trained context of %u; choose a smaller ring or --pin-tokens-max",
                         s->pins, l->ring, s->context);
    return 0;
}

int layout_make(struct layout *l, const struct engine *e, const struct stream_options *options,
                char *error, size_t error_bytes)
{
    const struct shape *s = &e->shape;
    *l = (struct layout){.heads = s->layers * s->kv_heads, .head_dim = s->head_dim};
    int code = pick_ratio(l, e, options->dmc_ratio, error, error_bytes);
    if (code)
        return code;
    l->ring = options->ring_segments ? options->ring_segments : s->ring;
    code = check_reach(l, e, error, error_bytes);
    if (code)
        return code;
    size_t row = s->head_dim * sizeof(f16), heads = l->heads;
    take(l, sizeof(struct state));
    l->fixed_rows = s->comp + s->sinks + l->ring * s->comp;
    l->capacity = take(l, heads * sizeof(uint32_t));
    l->row = take(l, heads * sizeof(uint32_t));
    for (int w = 0; w < 2; w++)
        l->count[w] = take(l, heads * sizeof(uint32_t));
    if (l->ratio > 1) {
        l->held = take(l, heads * sizeof(uint32_t));
        l->grown = take(l, heads * sizeof(uint32_t));
    }
    l->entries_total = take(l, heads * sizeof(uint64_t));
    l->pin_rows = s->pins;
    if (l->pin_rows)
        l->pins = take(l, sizeof(struct pin_state));
    l->fixed_k = take(l, heads * l->fixed_rows * row);
    l->fixed_v = take(l, heads * l->fixed_rows * row);
    l->sink_k = take(l, heads * s->sinks * row);
    l->summary = take(l, heads * s->comp * 2 * s->head_dim * sizeof(float));
    l->ring_k = take(l, heads * l->ring * s->comp * row);
    for (uint32_t h = 0; h < l->heads; h++)
        l->window_rows += head_capacity(e, l, h);
    for (int w = 0; w < 2; w++) {
        l->window_k[w] = take(l, l->window_rows * row);
        l->window_v[w] = take(l, l->window_rows * row);
    }
    if (l->ratio > 1) {
        l->grown_k = take(l, heads * row);
        l->grown_v = take(l, heads * row);
        l->raw_k = take(l, heads * STREAM_BLOCK_TOKENS * row);
        l->raw_v = take(l, heads * STREAM_BLOCK_TOKENS * row);
        l->z = take(l, heads * sizeof(float));
        l->sum_k = take(l, heads * s->head_dim * sizeof(float));
        l->sum_v = take(l, heads * s->head_dim * sizeof(float));
    }
    if (l->pin_rows) {
        l->pin_raw = take(l, heads * l->pin_rows * row);
        l->pin_k = take(l, heads * l->pin_rows * row);
        l->pin_v = take(l, heads * l->pin_rows * row);
    }
    return 0;
}

void state_init(struct state *state, const struct engine *e, const struct layout *l)
{
    memset(state, 0, e->gpu ? l->fixed_k : l->bytes);
    state->magic = STATE_MAGIC;
    state->version = STATE_VERSION;
    state->bytes = l->bytes;
    state->model_fingerprint = e->info.model_fingerprint;
    state->adapter_fingerprint = e->info.adapter_fingerprint;
    state->ratio = l->ratio;
    state->ring = l->ring;
    uint32_t *capacity = STATE_AT(state, l->capacity, uint32_t);
    uint32_t *row = STATE_AT(state, l->row, uint32_t);
    uint32_t at = 0;
    for (uint32_t h = 0; h < l->heads; h++) {
        capacity[h] = head_capacity(e, l, h);
        row[h] = at;
        at += capacity[h];
    }
    assert(at == l->window_rows);
}

void window_decide(const struct layout *l, const struct state *state, uint32_t head,
                   const float *logit, size_t stride, uint32_t chunk_at, uint32_t rows, uint8_t *a)
{
    uint32_t held = STATE_AT_CONST(state, l->held, uint32_t)[head];
    uint32_t most = STATE_AT_CONST(state, l->capacity, uint32_t)[head];
    for (uint32_t i = 0; i < rows; i++) {
        bool first = chunk_at + i == 0;
        a[i] = !first && (logit[i * stride] > 0 || held >= most);
        held += !a[i];
    }
    assert(held <= most);
}

uint32_t window_raw_rows(const struct layout *l, uint32_t chunk_at)
{
    return l->ratio > 1 && chunk_at ? STREAM_BLOCK_TOKENS : 0;
}

/* Where the open chunk's rows of a head lie. */
static f16 *window_rows(const struct layout *l, struct state *state, const size_t buffer[2],
                        uint32_t head)
{
    size_t row = STATE_AT_CONST(state, l->row, uint32_t)[head];
    return STATE_AT(state, buffer[state->open], f16) + row * l->head_dim;
}

static void settle(const struct layout *l, struct state *state, uint32_t head)
{
    uint32_t *count = STATE_AT(state, l->count[state->open], uint32_t) + head;
    uint32_t *grown = STATE_AT(state, l->grown, uint32_t) + head;
    size_t dim = l->head_dim;
    if (*grown) {
        size_t newest = (*count - 1) * dim, from = head * dim;
        memcpy(window_rows(l, state, l->window_k, head) + newest,
               STATE_AT_CONST(state, l->grown_k, f16) + from, dim * sizeof(f16));
        memcpy(window_rows(l, state, l->window_v, head) + newest,
               STATE_AT_CONST(state, l->grown_v, f16) + from, dim * sizeof(f16));
    }
    *grown = 0;
    *count = STATE_AT_CONST(state, l->held, uint32_t)[head];
}

/* The entries of a block, behind those in view; a merging first token grows the newest of these. */
static void keep_entries(const struct layout *l, struct state *state, uint32_t head,
                         const struct block_rows *b)
{
    uint32_t seen = STATE_AT_CONST(state, l->count[state->open], uint32_t)[head];
    size_t dim = l->head_dim;
    f16 *k = window_rows(l, state, l->window_k, head);
    f16 *v = window_rows(l, state, l->window_v, head);
    uint32_t at = seen - b->a[0];
    for (uint32_t i = 0; i < b->rows; i++) {
        if (i + 1 < b->rows && b->a[i + 1]) /* the next token merged into it */
            continue;
        bool grows = at < seen;
        assert(at < STATE_AT_CONST(state, l->capacity, uint32_t)[head]);
        memcpy(grows ? STATE_AT(state, l->grown_k, f16) + head * dim : k + at * dim,
               b->entry_k + i * dim, dim * sizeof *k);
        memcpy(grows ? STATE_AT(state, l->grown_v, f16) + head * dim : v + at * dim,
               b->entry_v + i * dim, dim * sizeof *v);
        at++;
    }
    STATE_AT(state, l->grown, uint32_t)[head] = b->a[0];
    STATE_AT(state, l->held, uint32_t)[head] = at;
}

void window_enter(const struct layout *l, struct state *state, uint32_t head,
                  const struct block_rows *b)
{
    size_t bytes = b->rows * l->head_dim * sizeof(f16);
    if (l->ratio > 1) {
        size_t at = (size_t)head * STREAM_BLOCK_TOKENS * l->head_dim;
        assert(b->rows == STREAM_BLOCK_TOKENS);
        settle(l, state, head);
        keep_entries(l, state, head, b);
        memcpy(STATE_AT(state, l->raw_k, f16) + at, b->k, bytes);
        memcpy(STATE_AT(state, l->raw_v, f16) + at, b->v, bytes);
        return;
    }
    uint32_t *count = STATE_AT(state, l->count[state->open], uint32_t) + head;
    size_t at = (size_t)*count * l->head_dim;
    assert(*count + b->rows <= STATE_AT_CONST(state, l->capacity, uint32_t)[head]);
    memcpy(window_rows(l, state, l->window_k, head) + at, b->k, bytes);
    memcpy(window_rows(l, state, l->window_v, head) + at, b->v, bytes);
    *count += b->rows;
}

void window_close(const struct layout *l, struct state *state)
{
    if (l->ratio == 1)
        return;
    for (uint32_t h = 0; h < l->heads; h++)
        settle(l, state, h);
    memset(STATE_AT(state, l->held, uint32_t), 0, l->heads * sizeof(uint32_t));
}
