/*
 * Recall: cold segments in a fork are what a longer ring would have held there, and leave the
 * stream alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/stream_rig.h"

enum {
    VALUES = TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM,
    CHUNKS = 12,
    RING = 2,
    QUESTION = 40
};

static struct engine *engine;
static int32_t tokens[CHUNKS * TINY_CHUNK + 40];

struct held {
    struct stream *stream;
    void *memory;
    f16 (*left)[VALUES]; /* what left its ring */
    uint32_t count;
};

static int set_up(void **state)
{
    (void)state;
    struct tiny_options options = TINY_DEFAULTS;
    options.weight_type = options.embed_type = TENSOR_F32; /* no rounding of activations */
    if (stream_rig_write(&options))
        return -1;
    engine = stream_rig_engine((struct engine_options){
        .adapter_path = stream_rig_adapter, .threads = 1, .feature_mask = UINT32_MAX});
    stream_rig_tokens(engine, tokens, sizeof tokens / sizeof *tokens);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    stream_rig_tear_down(&engine);
    return 0;
}

static void segment_leaves(void *user, const struct segment_view *segment)
{
    struct held *h = user;
    memcpy(h->left[h->count++], segment->rows, segment->rows_bytes);
}

static void open_stream(struct held *h, uint32_t ring)
{
    struct stream_options options = {.dmc_ratio = 4, .ring_segments = ring};
    size_t bytes = stream_bytes(engine, &options, NULL, 0);
    *h = (struct held){.memory = aligned_alloc(64, (bytes + 63) / 64 * 64),
                       .left = calloc(CHUNKS, sizeof *h->left)};
    assert_int_equal(stream_open(&h->stream, engine, &options, h->memory, bytes), 0);
    stream_on_segment_leave(h->stream, segment_leaves, h);
}

static void drop(struct held *h)
{
    stream_close(&h->stream);
    free(h->memory);
    free(h->left);
}

static struct fork *open_fork(const struct held *h, void **memory)
{
    struct fork *fork;
    struct stream_options options = {.dmc_ratio = 4, .ring_segments = h->stream->layout.ring};
    size_t bytes = (fork_bytes(engine, &options) + 63) / 64 * 64;
    *memory = aligned_alloc(64, bytes);
    assert_int_equal(fork_open(&fork, h->stream, *memory, bytes), 0);
    return fork;
}

static const float *ask(struct fork *fork)
{
    assert_int_equal(fork_feed(fork, tokens + 100, QUESTION), 0);
    return fork_logits(fork);
}

static double difference(const float *a, const float *b)
{
    double most = 0;
    for (uint32_t i = 0; i < engine->shape.vocab; i++)
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

/* `to` becomes what `from` is, but for a ring that holds only its newest segments. */
static void shorten(const struct held *from, struct held *to)
{
    const struct layout *a = &from->stream->layout, *b = &to->stream->layout;
    const struct state *x = from->stream->state;
    struct state *y = to->stream->state;
    size_t dim = a->head_dim, slots = engine->shape.comp + engine->shape.sinks;
    uint32_t comp = engine->shape.comp;
    memcpy(y, x, sizeof *y);
    y->bytes = b->bytes;
    y->ring = y->ring_count = b->ring;
    y->ring_first = 0;
    y->summary_count = x->summary_count + a->ring - b->ring;
    memcpy((char *)y + b->capacity, (const char *)x + a->capacity, a->fixed_k - a->capacity);
    memcpy((char *)y + b->sink_k, (const char *)x + a->sink_k, a->ring_k - a->sink_k);
    memcpy((char *)y + b->window_k[0], (const char *)x + a->window_k[0], a->bytes - a->window_k[0]);
    for (uint32_t h = 0; h < a->heads; h++)
        for (int v = 0; v < 2; v++) {
            const f16 *in = STATE_AT_CONST(x, v ? a->fixed_v : a->fixed_k, f16) +
                            (size_t)h * a->fixed_rows * dim;
            f16 *out =
                STATE_AT(y, v ? b->fixed_v : b->fixed_k, f16) + (size_t)h * b->fixed_rows * dim;
            memcpy(out, in, slots * dim * sizeof *out);
            for (uint32_t i = 0; i < b->ring; i++) {
                uint32_t slot = (x->ring_first + a->ring - b->ring + i) % a->ring;
                memcpy(out + (slots + (size_t)i * comp) * dim,
                       in + (slots + (size_t)slot * comp) * dim, comp * dim * sizeof *out);
            }
        }
}

/* The segments that a ring longer by k would hold, recalled: the same rows at the same places. */
static void recall_is_a_longer_ring(void **state)
{
    (void)state;
    for (uint32_t k = 1; k <= STREAM_RECALL_MAX - 2; k++) {
        struct held wide, narrow;
        struct cold_segment segments[STREAM_RECALL_MAX];
        void *memory[3];
        open_stream(&wide, RING + k);
        open_stream(&narrow, RING);
        /* Whole blocks: a fork computes a partial one before anything is recalled. */
        assert_int_equal(
            stream_feed(wide.stream, tokens, CHUNKS * TINY_CHUNK + STREAM_BLOCK_TOKENS), 0);
        assert_true(wide.count >= 1);
        shorten(&wide, &narrow);
        for (uint32_t i = 0; i < k; i++) { /* the oldest of the wide ring, as they would leave it */
            static f16 rows[STREAM_RECALL_MAX][VALUES];
            const struct layout *l = &wide.stream->layout;
            uint32_t slot = (wide.stream->state->ring_first + i) % l->ring;
            size_t dim = l->head_dim, comp = engine->shape.comp;
            for (size_t h = 0; h < l->heads; h++)
                for (size_t j = 0; j < comp; j++) {
                    memcpy(rows[i] + ((h * comp + j) * 2) * dim,
                           STATE_AT_CONST(wide.stream->state, l->ring_k, f16) +
                               ((slot * l->heads + h) * comp + j) * dim,
                           dim * sizeof(f16));
                    memcpy(rows[i] + ((h * comp + j) * 2 + 1) * dim,
                           STATE_AT_CONST(wide.stream->state, l->fixed_v, f16) +
                               (h * l->fixed_rows + comp + engine->shape.sinks + slot * comp + j) *
                                   dim,
                           dim * sizeof(f16));
                }
            segments[i] = (struct cold_segment){.number = wide.count + i, .rows = rows[i]};
        }
        struct fork *a = open_fork(&wide, &memory[0]), *b = open_fork(&narrow, &memory[1]),
                    *c = open_fork(&narrow, &memory[2]);
        assert_int_equal(fork_recall(b, segments, k), 0);
        const float *long_ring = ask(a), *recalled = ask(b), *without = ask(c);
        printf("%u recalled: %.2g from a ring longer by as many, %.2g without them\n", k,
               difference(recalled, long_ring), difference(without, long_ring));
        assert_true(difference(recalled, long_ring) < 1e-3);
        assert_true(difference(without, long_ring) > 20 * difference(recalled, long_ring));
        for (int i = 0; i < 3; i++)
            free(memory[i]);
        drop(&wide);
        drop(&narrow);
    }
}

static void recall_has_rules(void **state)
{
    (void)state;
    struct held h;
    void *memory;
    open_stream(&h, RING);
    assert_int_equal(stream_feed(h.stream, tokens, CHUNKS * TINY_CHUNK), 0);
    struct stream_stat before, after;
    stream_stat(h.stream, &before);
    struct fork *fork = open_fork(&h, &memory);
    float *plain = malloc(engine->shape.vocab * sizeof *plain);
    float *recalled = malloc(engine->shape.vocab * sizeof *plain);
    memcpy(plain, ask(fork), engine->shape.vocab * sizeof *plain);
    struct cold_segment s[STREAM_RECALL_MAX + 1];
    for (uint32_t i = 0; i <= STREAM_RECALL_MAX; i++)
        s[i] = (struct cold_segment){.number = i, .rows = h.left[i]};
    assert_int_equal(fork_recall(fork, s, 2), -EBUSY);
    fork_rewind(fork);
    assert_null(fork_logits(fork));
    assert_int_equal(fork_recall(fork, s, STREAM_RECALL_MAX + 1), -EINVAL);
    assert_int_equal(fork_recall(fork, (struct cold_segment[]){s[1], s[0]}, 2), -EINVAL);
    assert_int_equal(fork_recall(fork, s, STREAM_RECALL_MAX), 0);
    memcpy(recalled, ask(fork), engine->shape.vocab * sizeof *plain);
    assert_true(difference(plain, recalled) > 1e-3);
    fork_rewind(fork); /* what was recalled stays */
    assert_true(difference(ask(fork), recalled) <= 0);
    fork_rewind(fork);
    assert_int_equal(fork_recall(fork, NULL, 0), 0);
    assert_true(difference(ask(fork), plain) <= 0);
    stream_stat(h.stream, &after);
    assert_int_equal(before.memory_hash, after.memory_hash);
    free(memory);
    free(plain);
    free(recalled);
    drop(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recall_is_a_longer_ring),
        cmocka_unit_test(recall_has_rules),
    };
    return cmocka_run_group_tests_name("recall", tests, set_up, tear_down);
}
