/*
 * The window: KV entries of the previous chunk and of the open one, and the flat state they live
 * in.
 *
 * DMC (arXiv 2403.09636) lets each KV head append or merge by itself, so heads differ in length. A
 * head's room is its quota: once its appends reach it, every further token of the chunk merges.
 * That turns an average into a guarantee.
 */
#include "stream/internal.h"

#include <assert.h>
#include <errno.h>
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
    return fail_with(
        error, error_bytes, -EINVAL,
        "DMC ratio %u is not one this adapter serves (%u ratios up to %ux); choose another", asked,
        i->ratio_count, i->ratio[i->ratio_count - 1]);
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
    /* The farthest pair of rows a query ever sees stays inside the trained context (DESIGN 2.6). */
    uint64_t reach = (uint64_t)(l->ring + 2 + (l->ring ? STREAM_RECALL_MAX : 0)) * s->chunk +
                     FORK_TOKENS_MAX + s->comp + s->sinks;
    if (l->ring > STREAM_RING_MAX || (l->ring && !s->comp) || reach > s->context)
        return fail_with(error, error_bytes, -EINVAL,
                         "a ring of %u segments reaches %llu tokens back, past the model's trained "
                         "context of %u; choose a smaller ring",
                         l->ring, (unsigned long long)reach, s->context);
    size_t row = s->head_dim * sizeof(f16), heads = l->heads;
    take(l, sizeof(struct state));
    l->fixed_rows = s->comp + s->sinks + l->ring * s->comp;
    l->capacity = take(l, heads * sizeof(uint32_t));
    l->row = take(l, heads * sizeof(uint32_t));
    for (int w = 0; w < 2; w++)
        l->count[w] = take(l, heads * sizeof(uint32_t));
    l->entries_total = take(l, heads * sizeof(uint64_t));
    l->fixed_k = take(l, heads * l->fixed_rows * row);
    l->fixed_v = take(l, heads * l->fixed_rows * row);
    l->sink_k = take(l, heads * s->sinks * row);
    l->summary = take(l, heads * s->comp * 2 * s->head_dim * sizeof(float));
    l->ring_k = take(l, heads * l->ring * s->comp * row);
    l->pending = take(l, heads * s->comp * 2 * row);
    for (uint32_t h = 0; h < l->heads; h++)
        l->window_rows += head_capacity(e, l, h);
    for (int w = 0; w < 2; w++) {
        l->window_k[w] = take(l, l->window_rows * row);
        l->window_v[w] = take(l, l->window_rows * row);
    }
    if (l->ratio > 1) {
        l->z = take(l, heads * sizeof(float));
        l->sum_k = take(l, heads * s->head_dim * sizeof(float));
        l->sum_v = take(l, heads * s->head_dim * sizeof(float));
    }
    return 0;
}

void state_init(struct state *state, const struct engine *e, const struct layout *l)
{
    memset(state, 0, l->bytes);
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
                   const float *logit, size_t stride, uint32_t rows, uint8_t *a)
{
    uint32_t held = STATE_AT_CONST(state, l->count[state->open], uint32_t)[head];
    uint32_t most = STATE_AT_CONST(state, l->capacity, uint32_t)[head];
    for (uint32_t i = 0; i < rows; i++) {
        bool first = state->chunk_tokens + i == 0;
        a[i] = !first && (logit[i * stride] > 0 || held >= most);
        held += !a[i];
    }
    assert(held <= most);
}

void window_append(const struct layout *l, struct state *state, uint32_t head,
                   const struct block_rows *b)
{
    uint32_t *count = STATE_AT(state, l->count[state->open], uint32_t) + head;
    uint32_t row = STATE_AT_CONST(state, l->row, uint32_t)[head];
    size_t dim = l->head_dim;
    f16 *k = STATE_AT(state, l->window_k[state->open], f16) + row * dim;
    f16 *v = STATE_AT(state, l->window_v[state->open], f16) + row * dim;
    uint32_t at = *count - (b->a && b->a[0]); /* a merging first token rewrites the newest entry */
    for (uint32_t i = 0; i < b->rows; i++) {
        if (b->merged && b->merged[i])
            continue;
        assert(at < STATE_AT_CONST(state, l->capacity, uint32_t)[head]);
        memcpy(k + at * dim, b->k + i * dim, dim * sizeof *k);
        memcpy(v + at * dim, b->v + i * dim, dim * sizeof *v);
        at++;
    }
    *count = at;
}
