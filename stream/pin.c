/*
 * Pins: ranges of a stream's text that are kept as they were read.
 *
 * A pin's rows are what the base model makes of its tokens behind the stream's first ones, and of
 * nothing else: whenever they are computed, they are the same bits. Keys are kept un-rotated too
 * and placed anew with the sinks, between these and the summary, so that all distances stay inside
 * the trained context (layout_make counts the pins).
 */
#include "stream/gpu.h"

#include <errno.h>
#include <string.h>

static struct pin_state *pins_of(const struct stream *stream)
{
    return STATE_AT(stream->state, stream->layout.pins, struct pin_state);
}

uint32_t pin_rows(const struct layout *l, const struct state *state)
{
    return l->pin_rows ? STATE_AT_CONST(state, l->pins, struct pin_state)->rows : 0;
}

bool pin_plausible(const struct layout *l, const struct state *state)
{
    if (!l->pin_rows)
        return true;
    const struct pin_state *pins = STATE_AT_CONST(state, l->pins, struct pin_state);
    uint64_t rows = 0;
    if (pins->count > STREAM_PINS_MAX)
        return false;
    for (uint32_t i = 0; i < pins->count; i++) {
        uint64_t count = pins->pin[i].to - pins->pin[i].from;
        if (count == 0 || count > l->pin_rows)
            return false;
        rows += count;
    }
    return rows == pins->rows && rows <= l->pin_rows;
}

void pin_place(struct stream *stream, int64_t position)
{
    struct engine *e = stream->engine;
    const struct layout *l = &stream->layout;
    uint32_t rows = pin_rows(l, stream->state), dim = l->head_dim;
    for (uint32_t at = 0; at < rows; at += STREAM_BLOCK_TOKENS) {
        uint32_t n = rows - at < STREAM_BLOCK_TOKENS ? rows - at : STREAM_BLOCK_TOKENS;
        float rotation[STREAM_BLOCK_TOKENS * KERNELS_HEAD_DIM_MAX];
        for (uint32_t i = 0; i < n; i++)
            rotation_row(e, position + at + i, rotation + i * dim);
        for (uint32_t h = 0; h < l->heads; h++) {
            size_t row = ((size_t)h * l->pin_rows + at) * dim;
            e->kernels->rotate(e->kernels, STATE_AT(stream->state, l->pin_k, f16) + row,
                               STATE_AT(stream->state, l->pin_raw, f16) + row, rotation, n, dim);
        }
    }
}

/* On a device, by way of where pins are computed: old and new place may overlap. */
static void move_device_rows(const struct stream *stream, f16 *rows, uint32_t to, uint32_t from,
                             uint32_t count)
{
    const struct layout *l = &stream->layout;
    const struct tail *tail = &stream->engine->pin_tail;
    if (from == to)
        return;
    gpu_rows_copy(stream->engine, tail->k, tail->capacity, rows + (size_t)from * l->head_dim,
                  l->pin_rows, count);
    gpu_rows_copy(stream->engine, rows + (size_t)to * l->head_dim, l->pin_rows, tail->k,
                  tail->capacity, count);
}

/* Rows [from, from + count) of every head move down to `to`. */
static void move_rows(const struct stream *stream, uint32_t to, uint32_t from, uint32_t count)
{
    const struct layout *l = &stream->layout;
    const size_t parts[] = {l->pin_raw, l->pin_k, l->pin_v};
    for (int p = 0; stream->device && p < 3; p++)
        move_device_rows(stream, STATE_AT(stream->device, parts[p], f16), to, from, count);
    if (stream->device)
        return;
    for (int p = 0; p < 3; p++)
        for (uint32_t h = 0; h < l->heads; h++) {
            f16 *rows =
                STATE_AT(stream->state, parts[p], f16) + (size_t)h * l->pin_rows * l->head_dim;
            memmove(rows + (size_t)to * l->head_dim, rows + (size_t)from * l->head_dim,
                    (size_t)count * l->head_dim * sizeof *rows);
        }
}

static bool wanted(uint64_t from, uint64_t to, const struct stream_pin *pins, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (pins[i].from == from && pins[i].to == to)
            return true;
    return false;
}

static bool held(const struct pin_state *state, const struct stream_pin *pin)
{
    for (uint32_t i = 0; i < state->count; i++)
        if (state->pin[i].from == pin->from && state->pin[i].to == pin->to)
            return true;
    return false;
}

/* True: some have gone. */
static bool drop_others(const struct stream *stream, const struct stream_pin *pins, uint32_t count)
{
    struct pin_state *state = pins_of(stream);
    uint32_t kept = 0, to = 0, from = 0, before = state->count;
    for (uint32_t i = 0; i < before; i++) {
        uint32_t rows = (uint32_t)(state->pin[i].to - state->pin[i].from);
        if (wanted(state->pin[i].from, state->pin[i].to, pins, count)) {
            move_rows(stream, to, from, rows);
            state->pin[kept++] = state->pin[i];
            to += rows;
        }
        from += rows;
    }
    state->count = kept;
    state->rows = to;
    return kept != before;
}

/* As compute, on a device. */
static int compute_device(const struct stream *stream, const struct stream_pin *pin, uint32_t rows)
{
    struct engine *e = stream->engine;
    const struct layout *l = &stream->layout;
    struct tail *tail = &e->pin_tail;
    uint32_t all = pin->before + rows, chunk = e->shape.chunk;
    size_t from = (size_t)pin->before * l->head_dim;
    size_t to = (size_t)pins_of(stream)->rows * l->head_dim;
    int code = 0;
    for (uint32_t at = 0; at < all && !code; at += chunk) {
        struct gpu_rows run = {.tail = tail,
                               .tokens = pin->tokens + at,
                               .count = all - at < chunk ? all - at : chunk,
                               .layers = e->shape.layers,
                               .position = at};
        code = gpu_rows_run(e, &run, 1);
    }
    gpu_rows_turn(e, STATE_AT(stream->device, l->pin_raw, f16) + to, l->pin_rows, tail->k + from,
                  tail->capacity, pin->before, -1, rows);
    gpu_rows_copy(e, STATE_AT(stream->device, l->pin_v, f16) + to, l->pin_rows, tail->v + from,
                  tail->capacity, rows);
    return code;
}

/* One pass over what stands before it and the pin itself; its rows join the others. */
static void compute(const struct stream *stream, const struct stream_pin *pin, uint32_t rows)
{
    struct engine *e = stream->engine;
    const struct layout *l = &stream->layout;
    const struct pin_state *state = pins_of(stream);
    struct tail *tail = &e->pin_tail;
    uint32_t all = pin->before + rows, dim = l->head_dim;
    for (uint32_t at = 0; at < all; at += STREAM_BLOCK_TOKENS) {
        struct forward_item item = {.kind = FORWARD_RAW,
                                    .tail = tail,
                                    .tokens = pin->tokens + at,
                                    .rows = all - at < STREAM_BLOCK_TOKENS ? all - at
                                                                           : STREAM_BLOCK_TOKENS,
                                    .position = at};
        forward_run(e, &item, 1);
    }
    for (uint32_t i = 0; i < rows; i++) {
        float back[KERNELS_HEAD_DIM_MAX];
        rotation_row(e, -(int64_t)(pin->before + i), back);
        for (uint32_t h = 0; h < l->heads; h++) {
            size_t from = ((size_t)h * tail->capacity + pin->before + i) * dim;
            size_t to = ((size_t)h * l->pin_rows + state->rows + i) * dim;
            e->kernels->rotate(e->kernels, STATE_AT(stream->state, l->pin_raw, f16) + to,
                               tail->k + from, back, 1, dim);
            memcpy(STATE_AT(stream->state, l->pin_v, f16) + to, tail->v + from,
                   dim * sizeof *tail->v);
        }
    }
}

static int add_pin(const struct stream *stream, const struct stream_pin *pin)
{
    struct pin_state *state = pins_of(stream);
    uint32_t rows = (uint32_t)(pin->to - pin->from);
    int code = 0;
    stream->engine->pin_tail.start = stream->engine->pin_tail.count = 0;
    if (stream->device)
        code = compute_device(stream, pin, rows);
    else
        compute(stream, pin, rows);
    state->pin[state->count++] = (struct pin_range){pin->from, pin->to};
    state->rows += rows;
    return code;
}

int stream_pins(struct stream *stream, const struct stream_pin *pins, uint32_t count)
{
    const struct shape *s = &stream->engine->shape;
    uint64_t rows = 0;
    if (count > STREAM_PINS_MAX || (count && !stream->layout.pin_rows))
        return -ENOSPC;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t own = pins[i].to - pins[i].from;
        if (pins[i].from >= pins[i].to || pins[i].before > s->sinks)
            return -EINVAL;
        if (own > s->pins)
            return -ENOSPC;
        for (uint64_t j = 0; j < pins[i].before + own; j++)
            if (pins[i].tokens[j] < 0 || (uint32_t)pins[i].tokens[j] >= s->vocab)
                return -EINVAL;
        rows += own;
    }
    if (rows > s->pins)
        return -ENOSPC;
    if (!stream->layout.pin_rows)
        return 0;
    bool changed = drop_others(stream, pins, count);
    int code = 0;
    for (uint32_t i = 0; i < count && !code; i++)
        if (!held(pins_of(stream), &pins[i])) {
            code = add_pin(stream, &pins[i]);
            changed = true;
        }
    if (changed)
        ccm_place_old_rows(stream, 0);
    return code;
}

int fork_pins(struct fork *fork, const struct stream_pin *pins, uint32_t count)
{
    return fork->fed || fork->stream.recall_rows ? -EBUSY : stream_pins(&fork->stream, pins, count);
}

uint32_t fork_recall_max(const struct fork *fork)
{
    const struct stream *stream = &fork->stream;
    const struct shape *s = &stream->engine->shape;
    uint64_t chunks = stream->layout.ring ? stream->layout.ring + 1 : 2;
    uint64_t reach = chunks * s->chunk + FORK_TOKENS_MAX + s->comp + s->sinks +
                     pin_rows(&stream->layout, stream->state);
    uint64_t room = reach < s->context ? (s->context - reach) / s->chunk : 0;
    return room < STREAM_RECALL_MAX ? (uint32_t)room : STREAM_RECALL_MAX;
}
