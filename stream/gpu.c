/* The device behind an engine: its memory planned once, and the arena that streams and forks take
 * pieces of. */
#include "stream/gpu.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    ARENA_ALIGN = 256,
    LEAVE_BYTES_MAX = 256 << 20,
    ARENA_LEFT = 512 << 20 /* cuBLAS, kernels */
};

size_t gpu_aligned(size_t bytes)
{
    return (bytes + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
}

/* Buffers come out of one allocation: sizes first, then pointers (memory NULL: sizes alone). */
struct carver {
    char *memory;
    size_t used;
};

static void *carve(struct carver *c, size_t bytes)
{
    size_t at = c->used;
    c->used += gpu_aligned(bytes);
    return c->memory ? c->memory + at : NULL;
}

static size_t carve_batch(struct gpu *g, struct engine *e, char *memory)
{
    struct carver c = {.memory = memory};
    struct cuda_batch *b = &g->batch;
    const struct cuda_shape *s = &g->shape;
    size_t rows = g->rows_max, q_dim = (size_t)s->heads * s->head_dim;
    size_t kv_dim = (size_t)s->kv_heads * s->head_dim, items = g->items_max;
    b->x = carve(&c, rows * s->dim * sizeof(float));
    b->h = carve(&c, rows * s->dim * sizeof(bf16));
    b->qkv = carve(&c, rows * (q_dim + 2 * kv_dim) * sizeof(float));
    b->att = carve(&c, rows * q_dim * sizeof(bf16));
    b->gate_up = carve(&c, rows * 2 * s->ff * sizeof(bf16));
    b->act = carve(&c, rows * s->ff * sizeof(bf16));
    b->decide = carve(&c, rows * 2 * s->kv_heads * sizeof(float));
    b->rotation = carve(&c, rows * s->head_dim * sizeof(float));
    b->k_local = carve(&c, rows * kv_dim * sizeof(f16));
    b->v_local = carve(&c, rows * kv_dim * sizeof(f16));
    b->held = carve(&c, items * s->kv_heads * sizeof(uint32_t));
    b->edge_k = carve(&c, items * kv_dim * sizeof(f16));
    b->edge_v = carve(&c, items * kv_dim * sizeof(f16));
    b->before_k = carve(&c, g->lanes_max * kv_dim * CUDA_ITEM_ROWS * sizeof(f16));
    b->before_v = carve(&c, g->lanes_max * kv_dim * CUDA_ITEM_ROWS * sizeof(f16));
    b->partial = carve(&c, g->cuda->partial_bytes(s, g->items_max, g->keys_most));
    g->slide_rotation = carve(&c, g->lanes_max * (size_t)g->turns * s->head_dim * sizeof(float));
    g->segments = carve(&c, g->lanes_max * g->segment_bytes);
    g->x_last = carve(&c, (size_t)GPU_LOGIT_ROWS * s->dim * sizeof(float));
    g->logits = carve(&c, (size_t)GPU_LOGIT_ROWS * s->vocab * sizeof(float));
    g->nll = carve(&c, rows * sizeof(float));
    g->row_source = carve(&c, GPU_LOGIT_ROWS * sizeof(void *));
    g->best = carve(&c, GPU_LOGIT_ROWS * sizeof(int32_t));
    g->scratch_count = carve(&c, g->heads * sizeof(uint32_t) + sizeof(uint64_t));
    g->in = carve(&c, g->in_bytes);
    e->pin_tail.k = carve(&c, gpu_tail_bytes(e, e->pin_tail.capacity));
    e->pin_tail.v = carve(&c, gpu_tail_bytes(e, e->pin_tail.capacity));
    for (int i = 0; i < GPU_SLOTS; i++) {
        struct gpu_slot *p = &g->slot[i];
        p->d_counts = carve(&c, g->lanes_max * (size_t)g->count_words * sizeof(uint32_t));
        p->d_digest = carve(&c, g->lanes_max * sizeof(uint64_t));
        p->d_leaving = carve(&c, g->leave_max * g->segment_bytes);
    }
    return c.used;
}

/* What goes in with a pass, one copy: the same layout in each slot's pinned memory and in g->in. */
static size_t carve_in(const struct gpu *g, struct gpu_slot *p, char *memory)
{
    struct carver c = {.memory = memory};
    p->in = memory;
    p->item = carve(&c, g->items_max * sizeof *p->item);
    p->run = carve(&c, g->items_max * sizeof *p->run);
    p->token = carve(&c, g->rows_max * sizeof *p->token);
    p->target = carve(&c, g->rows_max * sizeof *p->target);
    p->position = carve(&c, g->rows_max * sizeof *p->position);
    p->slide_position = carve(&c, g->lanes_max * (size_t)g->turns * sizeof *p->slide_position);
    p->slide = carve(&c, g->lanes_max * sizeof *p->slide);
    p->source = carve(&c, g->lanes_max * sizeof *p->source);
    return c.used;
}

/* Of a stream as the adapter has it, at any ratio. */
static size_t state_most(const struct engine *e)
{
    size_t most = 0;
    for (uint32_t i = 0; i < e->info.ratio_count; i++) {
        size_t bytes =
            stream_state_bytes(e, &(struct stream_options){.dmc_ratio = e->info.ratio[i]});
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int open_slots(struct gpu *g, const struct engine *e)
{
    struct cuda *c = g->cuda;
    for (int i = 0; i < GPU_SLOTS; i++) {
        struct gpu_slot *p = &g->slot[i];
        char *in = c->take_host(c, g->in_bytes);
        p->counts = c->take_host(c, g->lanes_max * (size_t)g->count_words * sizeof *p->counts);
        p->digest = c->take_host(c, g->lanes_max * sizeof *p->digest);
        p->leaving = c->take_host(c, g->leave_max * g->segment_bytes);
        p->lane = calloc(g->lanes_max, sizeof *p->lane);
        if (in)
            carve_in(g, p, in);
        if (!in || !p->counts || !p->digest || !p->leaving || !p->lane)
            return -ENOMEM;
    }
    size_t recall_bytes = 2 * gpu_recall_values(e) * sizeof *g->recall_host;
    g->segment_host = c->take_host(c, 2 * g->segment_bytes);
    g->recall_host = recall_bytes ? c->take_host(c, recall_bytes) : NULL;
    g->nll_host = c->take_host(c, g->rows_max * sizeof *g->nll_host);
    g->state_host = c->take_host(c, g->state_host_bytes);
    return g->segment_host && g->nll_host && g->state_host && (g->recall_host || !recall_bytes)
               ? 0
               : -ENOMEM;
}

/* Keys are looked through on the CPU, and the question's hidden states come there. */
static int open_recall(struct gpu *g, const struct engine *e)
{
    struct kernels *k = e->kernels;
    size_t rows = STREAM_BLOCK_TOKENS, hidden = rows * e->shape.dim * sizeof *g->hidden;
    size_t near = rows * e->shape.vocab * sizeof *g->near;
    size_t quantized = k->quantize_bytes(k, STREAM_BLOCK_TOKENS, e->recall.dim);
    if (!e->recall.dim)
        return 0;
    g->hidden = g->cuda->take_host(g->cuda, hidden);
    g->near = aligned_alloc(64, (near + 63) & ~(size_t)63);
    g->quantized = aligned_alloc(64, (quantized + 63) & ~(size_t)63);
    g->host_bytes += hidden + near + quantized;
    return g->hidden && g->near && g->quantized ? 0 : -ENOMEM;
}

static void plan(struct gpu *g, struct engine *e, const struct engine_options *options)
{
    const struct shape *s = &e->shape;
    e->info.pin_tokens_max = s->pins;
    e->pin_tail.capacity = s->pins ? s->pins + s->sinks : 0;
    g->shape = (struct cuda_shape){.heads = s->heads,
                                   .kv_heads = s->kv_heads,
                                   .group = s->group,
                                   .head_dim = s->head_dim,
                                   .dim = s->dim,
                                   .ff = s->ff,
                                   .vocab = s->vocab,
                                   .norm_eps = s->norm_eps};
    g->heads = s->layers * s->kv_heads;
    g->count_words = 4 * ((g->heads + 15) & ~15u); /* window.c aligns each array to 64 bytes */
    g->turns = 2 * s->comp + s->sinks + s->pins;
    g->rows_max = options->batch_rows ? options->batch_rows : GPU_ROWS_DEFAULT;
    uint32_t least = s->chunk + s->comp; /* a whole chunk fits */
    g->rows_max = g->rows_max > least ? g->rows_max : least;
    g->lanes_max = g->rows_max / CUDA_ITEM_ROWS;
    g->rows_max += g->lanes_max * s->comp; /* each lane may end its chunk */
    g->items_max = 2 * g->lanes_max;
    g->items_max = g->items_max > CUDA_ITEM_ROWS ? g->items_max : CUDA_ITEM_ROWS; /* a row each */
    /* With a ring of one a chunk stands beside its own segment; and a block's rows count whole. */
    g->keys_most = s->context + s->comp + 4 * CUDA_ITEM_ROWS;
    g->segment_bytes = (size_t)g->heads * s->comp * 2 * s->head_dim * sizeof(f16);
    /* One at the least: a full chunk waits for its place. */
    size_t leave = g->segment_bytes ? LEAVE_BYTES_MAX / g->segment_bytes + 1 : 0;
    g->leave_max = leave < g->lanes_max ? (uint32_t)leave : g->lanes_max;
    g->state_host_bytes = state_most(e);
    struct gpu_slot none;
    g->in_bytes = carve_in(g, &none, NULL);
    g->host_bytes = GPU_SLOTS * (g->in_bytes + g->leave_max * g->segment_bytes +
                                 g->lanes_max * (g->count_words * sizeof(uint32_t) +
                                                 sizeof(uint64_t) + sizeof(struct gpu_lane))) +
                    GPU_REGIONS_MAX * sizeof *g->region + g->state_host_bytes +
                    2 * g->segment_bytes + 2 * gpu_recall_values(e) * sizeof *g->recall_host +
                    g->rows_max * sizeof *g->nll_host;
}

/* Of what is free now: a device gives memory in units, and libraries have taken some. */
static int plan_arena(struct gpu *g, const struct engine_options *options, char *error,
                      size_t error_bytes)
{
    struct cuda *c = g->cuda;
    size_t left = c->memory_bytes - c->memory_used(c);
    size_t most = left > ARENA_LEFT ? left - ARENA_LEFT : 0;
    size_t others = g->weights_bytes + g->work_bytes, asked = options->device_bytes;
    g->arena_bytes = !asked ? most : asked > others ? asked - others : 0;
    g->region = calloc(GPU_REGIONS_MAX, sizeof *g->region);
    if (!g->arena_bytes || g->arena_bytes > most || !g->region)
        return fail_with(
            error, error_bytes, -ENOMEM,
            "%s: no room for %zu MB of streams beside %zu MB of weights%s and %zu MB of "
            "activations (%zu MB are left, %d of them for libraries): free some of the GPU's "
            "memory, take a smaller model, or use --device cpu",
            c->name, g->arena_bytes / MB, g->weights_bytes / MB, gpu_weights_are(g),
            g->work_bytes / MB, left / MB, ARENA_LEFT / MB);
    return 0;
}

/* Whether quantised weights stay as they are: asked for, or bf16 leaves nothing for a stream. */
static bool keeps_weights(const struct gpu *g, const struct engine *e,
                          const struct engine_options *options)
{
    struct stream_options defaults = {0};
    size_t most = g->cuda->memory_free_bytes, asked = options->device_bytes;
    size_t least = gpu_bf16_bytes(e) + g->work_bytes + stream_device_bytes(e, &defaults);
    most = most > ARENA_LEFT ? most - ARENA_LEFT : 0;
    if (options->device_weights != WEIGHTS_AUTO)
        return options->device_weights == WEIGHTS_FILE;
    return least > (asked && asked < most ? asked : most);
}

int gpu_open(struct engine *e, const struct engine_options *options, char *error,
             size_t error_bytes)
{
    struct gpu *g = e->gpu;
    struct cuda *c = g->cuda;
    if (e->shape.comp > CUDA_ITEM_ROWS)
        return fail_with(error, error_bytes, -ENOTSUP,
                         "the adapter makes %u slots of a chunk, and a GPU computes at most %d: "
                         "use --device cpu or another --adapter",
                         e->shape.comp, CUDA_ITEM_ROWS);
    plan(g, e, options);
    g->work_bytes = carve_batch(g, e, NULL);
    g->keep = keeps_weights(g, e, options);
    int code = gpu_load_weights(e, error, error_bytes);
    if (code)
        return code;
    char *work = c->take(c, g->work_bytes);
    if (!work)
        return fail_with(error, error_bytes, -ENOMEM,
                         "%s: no room for %zu MB of activations beside %zu MB of weights%s: use a "
                         "smaller model, or --device cpu",
                         c->name, g->work_bytes / MB, g->weights_bytes / MB, gpu_weights_are(g));
    carve_batch(g, e, work);
    g->batch.shape = g->shape;
    if (open_slots(g, e) || open_recall(g, e))
        return fail_with(error, error_bytes, -ENOMEM, "no pinned memory for the device's work");
    code = plan_arena(g, options, error, error_bytes);
    if (!code && (code = c->sync(c)))
        fail_with(error, error_bytes, code, "%s", c->error_text);
    return code;
}

void gpu_close(struct engine *e)
{
    struct gpu *g = e->gpu;
    if (!g)
        return;
    struct cuda *c = g->cuda;
    for (int i = 0; c && i < GPU_SLOTS; i++) {
        struct gpu_slot *p = &g->slot[i];
        c->give_host(c, p->in);
        c->give_host(c, p->counts);
        c->give_host(c, p->digest);
        c->give_host(c, p->leaving);
        free(p->lane);
    }
    free(g->region);
    free(g->near);
    free(g->quantized);
    if (c) {
        c->give_host(c, g->state_host);
        c->give_host(c, g->segment_host);
        c->give_host(c, g->recall_host);
        c->give_host(c, g->nll_host);
        c->give_host(c, g->hidden);
    }
    e->pin_tail.k = NULL; /* the device's */
    cuda_close(&g->cuda);
    free(g);
    e->gpu = NULL;
}

int gpu_arena(struct gpu *g, size_t bytes, char *error, size_t error_bytes)
{
    assert(!g->arena && bytes <= g->arena_bytes);
    g->arena_bytes = bytes;
    g->arena = g->cuda->take(g->cuda, bytes);
    return g->arena ? 0
                    : fail_with(error, error_bytes, -ENOMEM,
                                "%s: %zu MB for streams were free and are not any more: another "
                                "program has taken them",
                                g->cuda->name, bytes / MB);
}

static void move_pointer(void *holder, size_t down)
{
    char *at = NULL;
    if (holder)
        memcpy(&at, holder, sizeof at); /* of whatever type */
    if (!at)
        return;
    at -= down;
    memcpy(holder, &at, sizeof at);
}

/* Pieces move down, one after the other, by way of the activations: no pass is being put together,
 * and those that are queued come first. */
static void close_gaps(struct gpu *g)
{
    struct cuda *c = g->cuda;
    size_t to = 0, most = (size_t)g->rows_max * g->shape.dim * sizeof *g->batch.x;
    for (uint32_t i = 0; i < g->regions; to += g->region[i++].bytes) {
        struct gpu_region *r = &g->region[i];
        size_t down = r->at - to;
        for (size_t at = 0, some; down && at < r->bytes; at += some) {
            some = r->bytes - at < most ? r->bytes - at : most;
            c->copy(c, g->batch.x, g->arena + r->at + at, some);
            c->copy(c, g->arena + to + at, g->batch.x, some);
        }
        move_pointer(r->holder[0], down);
        move_pointer(r->holder[1], down);
        r->at = to;
    }
}

/* Where so many bytes are free; SIZE_MAX: nowhere. i: the piece behind them. */
static size_t free_place(const struct gpu *g, size_t bytes, uint32_t *i)
{
    size_t at = 0;
    for (*i = 0; *i < g->regions && g->region[*i].at - at < bytes; ++*i)
        at = g->region[*i].at + g->region[*i].bytes;
    return *i < g->regions || g->arena_bytes - at >= bytes ? at : SIZE_MAX;
}

bool gpu_take(struct gpu *g, size_t bytes, void *holder, void *second)
{
    size_t at = SIZE_MAX;
    char *memory = NULL;
    uint32_t i = 0;
    bytes = gpu_aligned(bytes);
    if (g->regions < GPU_REGIONS_MAX && (g->arena || !gpu_arena(g, g->arena_bytes, NULL, 0)))
        at = free_place(g, bytes, &i);
    if (at == SIZE_MAX && g->arena && g->regions < GPU_REGIONS_MAX) {
        close_gaps(g);
        at = free_place(g, bytes, &i);
    }
    if (at != SIZE_MAX) {
        memmove(g->region + i + 1, g->region + i, (g->regions - i) * sizeof *g->region);
        g->region[i] = (struct gpu_region){at, bytes, {holder, second}};
        g->regions++;
        memory = g->arena + at;
        g->cuda->clear(g->cuda, memory, bytes);
    }
    memcpy(holder, &memory, sizeof memory);
    return memory;
}

void gpu_give(struct gpu *g, void *memory)
{
    size_t at = (size_t)((char *)memory - g->arena);
    for (uint32_t i = 0; memory && i < g->regions; i++) {
        if (g->region[i].at != at)
            continue;
        g->regions--;
        memmove(g->region + i, g->region + i + 1, (g->regions - i) * sizeof *g->region);
        return;
    }
    assert(!memory);
}
