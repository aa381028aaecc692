/*
 * Streams on the device: work is cut into passes, each takes blocks of as many streams as fit, and
 * a chunk that fills is closed in the pass of its last block.
 */
#include "stream/gpu.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>

enum { BLOCK = STREAM_BLOCK_TOKENS };

/* ---- what comes back ---- */

/* Counts to the host's copy; of a closed chunk its digest. */
static void take_lane(struct engine *e, struct gpu_slot *p, uint32_t index)
{
    struct gpu_lane *lane = &p->lane[index];
    struct stream *s = lane->stream;
    if (!s)
        return;
    const struct layout *l = &s->layout;
    struct state *state = s->state;
    const uint32_t *count = STATE_AT(state, l->count[lane->window], uint32_t);
    memcpy(STATE_AT(state, l->count[0], char), p->counts + (size_t)index * e->gpu->count_words,
           l->entries_total - l->count[0]);
    for (uint32_t i = 0; i < BLOCK; i++)
        s->rows_block[i] = lane->rows + i + 1;
    s->rows_block_count = BLOCK;
    if (!lane->closed)
        return;
    uint64_t *total = STATE_AT(state, l->entries_total, uint64_t);
    for (uint32_t h = 0; h < l->heads; h++)
        total[h] += count[h];
    uint64_t chain[2] = {state->hash, p->digest[index]};
    state->hash = XXH3_64bits(chain, sizeof chain);
    state->hash_chunk = lane->chunk + 1;
}

void gpu_give_leaving(struct engine *e)
{
    struct gpu *g = e->gpu;
    struct gpu_slot *p = g->owes;
    size_t values = g->segment_bytes / sizeof(f16);
    uint64_t chunk = e->shape.chunk;
    g->owes = NULL;
    for (uint32_t i = 0, left = 0; p && i < p->lanes; i++) {
        const struct gpu_lane *lane = &p->lane[i];
        uint64_t number = lane->leaving_number;
        if (!lane->leaves)
            continue;
        struct segment_view view = {number, number * chunk, (number + 1) * chunk,
                                    p->leaving + left++ * values, g->segment_bytes};
        ccm_give_segment(lane->stream, &view);
    }
}

/* What left in the pass before is given while the device computes this one. */
static int take_pass(struct engine *e, struct gpu_slot *p)
{
    int code = 0;
    gpu_give_leaving(e);
    uint64_t from = monotonic_us();
    for (; p->copies_out; p->copies_out--)
        code = e->gpu->cuda->wait_out(e->gpu->cuda);
    e->times.wait_us += monotonic_us() - from;
    for (uint32_t i = 0; i < p->lanes && !code; i++)
        take_lane(e, p, i);
    e->gpu->owes = code ? NULL : p;
    return code;
}

/* Takes what passes send back, to the last. 0 or the device's first error. */
static int settle(struct engine *e)
{
    struct gpu *g = e->gpu;
    int code = 0;
    while (g->taken != g->queued) {
        int taken = take_pass(e, &g->slot[g->taken++ % GPU_SLOTS]);
        code = code ? code : taken;
    }
    return code;
}

struct gpu_slot *gpu_pass_begin(struct engine *e)
{
    struct gpu *g = e->gpu;
    if (g->queued - g->taken == GPU_SLOTS)
        (void)take_pass(e, &g->slot[g->taken++ % GPU_SLOTS]); /* an error stays in the device */
    struct gpu_slot *p = &g->slot[g->queued % GPU_SLOTS];
    if (g->owes == p)
        gpu_give_leaving(e);
    p->rows = p->items = p->runs = p->lanes = p->slides = p->leaves = 0;
    p->rows_most = p->items_most = p->keys_max = p->copies_out = 0;
    p->ragged = false;
    memset(p->kind_rows, 0, sizeof p->kind_rows);
    return p;
}

static void send_back(struct gpu *g, struct gpu_slot *p, void *host, const void *from, size_t bytes)
{
    if (!bytes)
        return;
    g->cuda->copy_out_later(g->cuda, host, from, bytes);
    p->copies_out++;
}

/* The pass is queued: what it sends back is on its way. */
static void end_pass(struct engine *e, struct gpu_slot *p)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    uint32_t turns = g->turns;
    if (p->slides) {
        const int64_t *position =
            gpu_sent(g, p, p->slide_position, p->slides * turns * sizeof *p->slide_position);
        const struct cuda_slide *slide = gpu_sent(g, p, p->slide, p->slides * sizeof *p->slide);
        c->rotations(c, g->slide_rotation, position, p->slides * turns, g->inverse_frequency,
                     g->shape.head_dim);
        c->clear(c, p->d_digest, g->lanes_max * sizeof *p->d_digest);
        c->slide(c, slide, p->slides, g->heads, g->shape.head_dim);
    }
    const uint32_t *const *source = gpu_sent(g, p, p->source, p->lanes * sizeof *p->source);
    c->gather(c, p->d_counts, source, p->lanes, g->count_words);
    send_back(g, p, p->counts, p->d_counts, (size_t)p->lanes * g->count_words * sizeof *p->counts);
    send_back(g, p, p->digest, p->d_digest, p->slides ? p->lanes * sizeof *p->digest : 0);
    send_back(g, p, p->leaving, p->d_leaving, p->leaves * g->segment_bytes);
    g->queued++;
}

/* ---- a lane: some blocks of one stream ---- */

static enum gpu_kind kind_of(const struct stream *s)
{
    return s->layout.ratio > 1 ? GPU_DMC : GPU_BASE;
}

static uint32_t blocks_ready(const struct stream_work *w)
{
    return (w->stream->state->pending_count + w->count - w->stream->fed) / BLOCK;
}

/* The next block's tokens: those that waited, then the work's. */
static void next_block(struct stream_work *w, int32_t *block)
{
    struct state *state = w->stream->state;
    uint32_t held = state->pending_count;
    memcpy(block, state->pending, held * sizeof *block);
    memcpy(block + held, w->tokens + w->stream->fed, (BLOCK - held) * sizeof *block);
    w->stream->fed += BLOCK - held;
    state->pending_count = 0;
}

static void note_keys(struct gpu_slot *p, const struct stream *s, uint32_t more)
{
    uint32_t keys = s->layout.fixed_rows + s->layout.pin_rows + s->recall_rows +
                    2 * s->window_most + 3 * CUDA_ITEM_ROWS + more;
    p->keys_max = keys > p->keys_max ? keys : p->keys_max;
}

static void add_blocks(struct engine *e, struct gpu_slot *p, struct stream_work *w, uint32_t blocks)
{
    struct stream *s = w->stream;
    struct state *state = s->state;
    struct gpu_lane *lane = &p->lane[p->lanes];
    *lane = (struct gpu_lane){
        .stream = s, .work = lane->work, .window = state->open, .chunk = state->chunks};
    lane->rows = stream_rows_now(s);
    lane->from = s->fed;
    lane->row = p->rows;
    lane->tokens = blocks * BLOCK;
    p->source[p->lanes++] = STATE_AT(s->device, s->layout.count[0], uint32_t);
    for (uint32_t j = 0; j < blocks; j++) {
        int32_t block[BLOCK];
        next_block(w, block);
        struct cuda_item *item =
            gpu_pass_item(e, p, kind_of(s), block, BLOCK, (int64_t)state->tokens, j > 0);
        gpu_item_stream(s, item);
        item->flags = CUDA_STREAM | (s->layout.ratio > 1 ? CUDA_MERGES : 0);
        if (j && item->before_rows)
            item->before_row = (int32_t)item->row - BLOCK;
        s->last_row = item->row;
        state->tokens += BLOCK;
        state->chunk_tokens += BLOCK;
    }
    note_keys(p, s, 0);
}

static void add_comp(struct engine *e, struct gpu_slot *p, uint32_t lane)
{
    struct stream *s = p->lane[lane].stream;
    enum gpu_kind kind = s->layout.ratio > 1 ? GPU_COMP_DMC : GPU_COMP;
    int64_t start = (int64_t)(s->state->chunks * e->shape.chunk);
    struct cuda_item *item = gpu_pass_item(e, p, kind, NULL, e->shape.comp, start, false);
    gpu_item_stream(s, item);
    item->flags = CUDA_COMP;
    item->segment = (f16 *)(void *)((char *)e->gpu->segments + lane * e->gpu->segment_bytes);
    if (item->before_rows)
        item->before_row = (int32_t)s->last_row;
}

/* ---- a chunk's end ---- */

/* As ccm.c: the oldest segment of a full ring leaves, the new one joins. */
static void slide_ring(struct engine *e, struct gpu_slot *p, uint32_t at, struct cuda_slide *d)
{
    struct gpu_lane *lane = &p->lane[at];
    struct stream *s = lane->stream;
    struct state *state = s->state;
    uint32_t ring = s->layout.ring;
    size_t segment = e->gpu->segment_bytes / sizeof(f16);
    d->segment = e->gpu->segments + at * segment;
    if (state->ring_count == ring) {
        lane->leaving_number = state->summary_count++;
        float alpha = 1.0f / (float)state->summary_count;
        d->leaves = true;
        d->alpha = alpha > e->shape.alpha_min ? alpha : e->shape.alpha_min;
        lane->leaves = s->leave != NULL;
        if (lane->leaves)
            d->leaving = p->d_leaving + p->leaves++ * segment;
        state->ring_first = (state->ring_first + 1) % ring;
        state->ring_count--;
    }
    d->slot = (state->ring_first + state->ring_count) % ring;
    state->ring_count++;
}

/* Where summary, pins and sinks go with `recalled` chunks between them and the ring; the ring's new
 * rows where their chunk was. */
static void slide_positions(const struct stream *s, uint32_t recalled, int64_t chunk,
                            int64_t *position)
{
    const struct shape *shape = &s->engine->shape;
    uint32_t comp = shape->comp, pinned = pin_rows(&s->layout, s->state);
    int64_t start = ccm_ring_start(s->engine, s->state);
    int64_t summary = start - (int64_t)recalled * shape->chunk - comp, pins = summary - pinned;
    int64_t sinks = start ? pins - shape->sinks : 0;
    for (uint32_t i = 0; i < comp; i++) {
        position[i] = chunk * shape->chunk + (int64_t)(i + 1) * (shape->chunk / comp) - 1;
        position[comp + shape->sinks + i] = summary + i;
    }
    for (uint32_t i = 0; i < shape->sinks; i++)
        position[comp + i] = sinks + i;
    for (uint32_t i = 0; i < shape->pins; i++)
        position[2 * comp + shape->sinks + i] = i < pinned ? pins + i : 0;
}

static void slide_memory(const struct stream *s, struct cuda_slide *d)
{
    const struct layout *l = &s->layout;
    const struct shape *shape = &s->engine->shape;
    char *base = s->device;
    d->comp = shape->comp;
    d->sinks = shape->sinks;
    d->fixed_rows = l->fixed_rows;
    d->fixed_k = STATE_AT(base, l->fixed_k, f16);
    d->fixed_v = STATE_AT(base, l->fixed_v, f16);
    d->ring_k = STATE_AT(base, l->ring_k, f16);
    d->sink_k = STATE_AT(base, l->sink_k, f16);
    d->summary = STATE_AT(base, l->summary, float);
    d->map = s->engine->gpu->summary_map;
    d->map_bias = s->engine->gpu->summary_bias;
    d->window_row = STATE_AT(base, l->row, uint32_t);
    d->pin_raw = STATE_AT(base, l->pin_raw, f16);
    d->pin_k = STATE_AT(base, l->pin_k, f16);
    d->pins = pin_rows(l, s->state);
    d->pin_stride = l->pin_rows;
}

static void close_lane(struct engine *e, struct gpu_slot *p, uint32_t at)
{
    struct gpu *g = e->gpu;
    struct gpu_lane *lane = &p->lane[at];
    struct stream *s = lane->stream;
    struct state *state = s->state;
    const struct layout *l = &s->layout;
    uint32_t open = state->open, turns = g->turns;
    struct cuda_slide *d = &p->slide[p->slides];
    *d = (struct cuda_slide){.rotation =
                                 g->slide_rotation + (size_t)p->slides * turns * e->shape.head_dim};
    slide_memory(s, d);
    d->open_count = STATE_AT(s->device, l->count[open], uint32_t);
    d->next_count = STATE_AT(s->device, l->count[!open], uint32_t);
    d->open_k = STATE_AT(s->device, l->window_k[open], f16);
    d->open_v = STATE_AT(s->device, l->window_v[open], f16);
    if (l->ratio > 1) {
        d->held = STATE_AT(s->device, l->held, uint32_t);
        d->grown = STATE_AT(s->device, l->grown, uint32_t);
        d->grown_k = STATE_AT(s->device, l->grown_k, f16);
        d->grown_v = STATE_AT(s->device, l->grown_v, f16);
    }
    d->digest = p->d_digest + at;
    if (l->ring)
        slide_ring(e, p, at, d);
    d->places_summary = state->summary_count > 0;
    state->open = !open;
    state->chunks++;
    state->chunk_tokens = 0;
    slide_positions(s, 0, (int64_t)lane->chunk, p->slide_position + p->slides * turns);
    p->slides++;
}

/* Nothing ends here: counts of no entries, and a digest that nobody reads. */
static void slide_alone(struct stream *s, uint32_t recalled, int64_t chunk, uint32_t slot,
                        const f16 *segment)
{
    struct engine *e = s->engine;
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    struct gpu_slot *p = gpu_pass_begin(e);
    struct cuda_slide *d = p->slide;
    *d = (struct cuda_slide){
        .rotation = g->slide_rotation, .segment = segment, .slot = slot, .digest = p->d_digest};
    slide_memory(s, d);
    d->places_summary = s->state->summary_count > 0;
    d->open_count = d->next_count = g->scratch_count;
    slide_positions(s, recalled, chunk, p->slide_position);
    const int64_t *position = gpu_sent(g, p, p->slide_position, g->turns * sizeof *position);
    const struct cuda_slide *slide = gpu_sent(g, p, d, sizeof *d);
    c->rotations(c, g->slide_rotation, position, g->turns, g->inverse_frequency, g->shape.head_dim);
    c->slide(c, slide, 1, g->heads, g->shape.head_dim);
    (void)c->sync(c); /* the slot is free again */
}

void gpu_place_old_rows(struct stream *s, uint32_t recalled)
{
    slide_alone(s, recalled, 0, 0, NULL);
}

void gpu_set_ring(struct stream *s, uint32_t slot, uint64_t chunk, const f16 *rows)
{
    struct gpu *g = s->engine->gpu;
    memcpy(g->segment_host, rows, g->segment_bytes);
    g->cuda->copy_in(g->cuda, g->segments, g->segment_host, g->segment_bytes);
    slide_alone(s, 0, (int64_t)chunk, slot, g->segments);
}

const f16 *gpu_ring_segment(const struct stream *s, uint32_t slot)
{
    struct gpu *g = s->engine->gpu;
    struct cuda *c = g->cuda;
    const struct layout *l = &s->layout;
    size_t comp = s->engine->shape.comp, dim = l->head_dim, head = comp * dim;
    f16 *out = g->segment_host, *key = out + g->segment_bytes / sizeof *out;
    f16 *value = key + l->heads * head;
    const f16 *rows = STATE_AT(s->device, l->fixed_v, f16);
    c->copy_out(c, key, STATE_AT(s->device, l->ring_k, f16) + slot * l->heads * head,
                l->heads * head * sizeof *key);
    for (size_t h = 0; h < l->heads; h++) {
        size_t row = h * l->fixed_rows + comp + s->engine->shape.sinks + slot * comp;
        c->copy_out(c, value + h * head, rows + row * dim, head * sizeof *value);
    }
    if (c->sync(c))
        return NULL;
    for (size_t i = 0; i < l->heads * comp; i++) {
        memcpy(out + 2 * i * dim, key + i * dim, dim * sizeof *out);
        memcpy(out + (2 * i + 1) * dim, value + i * dim, dim * sizeof *out);
    }
    return out;
}

/* ---- a pass ---- */

/* Blocks of streams that have some, as many of each as there are to its chunk's end: a stream's
 * memory is then read once for all of them. Who does not fit waits for the next pass. */
static void fill_kind(struct engine *e, struct gpu_slot *p, struct stream_work *work,
                      uint32_t count, enum gpu_kind kind)
{
    struct gpu *g = e->gpu;
    for (uint32_t i = 0; i < count && p->lanes < g->lanes_max; i++) {
        struct stream *s = work[i].stream;
        if (work[i].result || kind_of(s) != kind)
            continue;
        uint32_t blocks = blocks_ready(&work[i]);
        uint32_t to_end = (e->shape.chunk - s->state->chunk_tokens) / BLOCK;
        uint32_t room = (g->rows_max - p->rows - (p->lanes + 1) * e->shape.comp) / BLOCK;
        if (p->rows + BLOCK + (p->lanes + 1) * e->shape.comp > g->rows_max)
            return;
        blocks = blocks < CUDA_RUN_ITEMS ? blocks : CUDA_RUN_ITEMS;
        blocks = blocks < to_end ? blocks : to_end;
        blocks = blocks < room ? blocks : room;
        if (!blocks || (blocks == to_end && s->leave && p->leaves == g->leave_max))
            continue;
        p->leaves += blocks == to_end && s->leave; /* so far: as many as may leave */
        p->lane[p->lanes].work = i;
        add_blocks(e, p, &work[i], blocks);
    }
}

static void fill_pass(struct engine *e, struct gpu_slot *p, struct stream_work *work,
                      uint32_t count)
{
    uint32_t chunk = e->shape.chunk;
    fill_kind(e, p, work, count, GPU_BASE);
    fill_kind(e, p, work, count, GPU_DMC);
    p->leaves = 0;
    for (int dmc = 0; dmc < 2; dmc++)
        for (uint32_t i = 0; i < p->lanes; i++) {
            const struct stream *s = p->lane[i].stream;
            if (s->state->chunk_tokens == chunk && s->layout.ring && (s->layout.ratio > 1) == dmc)
                add_comp(e, p, i);
        }
    for (uint32_t i = 0; i < p->lanes; i++) {
        p->lane[i].closed = p->lane[i].stream->state->chunk_tokens == chunk;
        if (p->lane[i].closed)
            close_lane(e, p, i);
    }
}

/* The rest waits for its block. */
static void keep_pending(struct stream_work *w)
{
    struct state *state = w->stream->state;
    uint32_t left = w->count - w->stream->fed;
    memcpy(state->pending + state->pending_count, w->tokens + w->stream->fed,
           left * sizeof *w->tokens);
    state->pending_count += left;
}

/* The lanes' rows are the pass's first, one behind the other: COMP's kinds come after. */
static int score_lanes(struct engine *e, struct gpu_slot *p, const struct stream_targets *score)
{
    const struct gpu_lane *lane = p->lane, *end = p->lane + p->lanes;
    for (; lane < end; lane++)
        memcpy(p->target + lane->row, score[lane->work].targets + lane->from,
               lane->tokens * sizeof *p->target);
    int code = gpu_pass_score(e, p, end[-1].row + end[-1].tokens);
    for (lane = p->lane; !code && lane < end; lane++)
        memcpy(score[lane->work].nll + lane->from, e->gpu->nll_host + lane->row,
               lane->tokens * sizeof *e->gpu->nll_host);
    return code;
}

int gpu_streams_feed_ahead(struct stream_work *work, const struct stream_targets *score,
                           uint32_t count)
{
    struct engine *e = work[0].stream->engine;
    int first = 0, code = 0;
    for (uint32_t i = 0; i < count; i++) {
        work[i].stream->fed = 0;
        first = first ? first : work[i].result;
    }
    for (bool more = true; more && !code;) {
        struct gpu_slot *p = gpu_pass_begin(e);
        fill_pass(e, p, work, count);
        more = p->lanes > 0;
        if (!more)
            break;
        gpu_pass_run(e, p);
        if (score)
            code = score_lanes(e, p, score);
        end_pass(e, p);
    }
    int settled = settle(e);
    code = code ? code : settled;
    for (uint32_t i = 0; i < count; i++) {
        if (!work[i].result && !code)
            keep_pending(&work[i]);
        work[i].result = work[i].result ? work[i].result : code;
    }
    return first ? first : code;
}

int gpu_streams_feed(struct stream_work *work, const struct stream_targets *score, uint32_t count)
{
    int code = gpu_streams_feed_ahead(work, score, count);
    gpu_give_leaving(work[0].stream->engine);
    return code;
}
