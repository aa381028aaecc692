/*
 * Segments that leave their rings on a device, emulated: while it computes the next pass; and what
 * queries see of the summary that they become where the adapter maps it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emulate/gpu_rig.h"

/* The same segments in the same order, one pass later, or when they are asked for. */
static void segments_may_leave_beside_the_next_pass(void **state)
{
    (void)state;
    enum { STREAMS = 2, RING = 2, CHUNKS = 6 };
    struct held alone = stream_of(gpu, 2, RING), h[STREAMS];
    struct stream_work work[STREAMS];
    static char rows[sizeof rig_left_rows];
    rig_left[0] = 0;
    stream_on_segment_leave(alone.stream, rig_leaves, &rig_left[0]);
    assert_int_equal(stream_feed(alone.stream, tokens, CHUNKS * TINY_CHUNK), 0);
    assert_int_equal(rig_left[0], CHUNKS - RING);
    memcpy(rows, rig_left_rows, sizeof rows);
    memset(rig_left_rows, 0, sizeof rig_left_rows);
    rig_left[0] = rig_left[1] = 0;
    for (uint32_t i = 0; i < STREAMS; i++) {
        h[i] = stream_of(gpu, 2, RING);
        stream_on_segment_leave(h[i].stream, rig_leaves, &rig_left[i]);
    }
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
        const int32_t *text = tokens + chunk * TINY_CHUNK;
        uint32_t gone = chunk < RING ? 0 : chunk - RING;
        for (uint32_t i = 0; i < STREAMS; i++)
            work[i] = (struct stream_work){h[i].stream, text, TINY_CHUNK, 1};
        assert_int_equal(streams_feed_ahead(work, STREAMS), 0);
        assert_int_equal(rig_left[0], gone);
        assert_int_equal(rig_left[1], gone);
    }
    assert_true(hash_of(&h[0]) == hash_of(&alone));
    drop(&h[1]); /* gives what is its own, and the other's */
    assert_int_equal(rig_left[0], CHUNKS - RING);
    assert_int_equal(rig_left[1], CHUNKS - RING);
    assert_memory_equal(rows, rig_left_rows, sizeof rows);
    /* One that is asked for, and one that what comes next asks for. */
    work[0] = (struct stream_work){h[0].stream, tokens, TINY_CHUNK, 1};
    assert_int_equal(streams_feed_ahead(work, 1), 0);
    assert_int_equal(rig_left[0], CHUNKS - RING);
    streams_give(gpu);
    assert_int_equal(rig_left[0], CHUNKS - RING + 1);
    assert_int_equal(streams_feed_ahead(work, 1), 0);
    assert_int_equal(stream_feed(h[0].stream, tokens, 5), 0);
    assert_int_equal(rig_left[0], CHUNKS - RING + 2);
    assert_int_equal(streams_feed_ahead(work, 1), 0);
    stream_on_segment_leave(h[0].stream, NULL, NULL);
    assert_int_equal(rig_left[0], CHUNKS - RING + 3);
    drop(&h[0]);
    drop(&alone);
}

/* The device's summary in a stream on the CPU, which then places it. They round alike but for
 * fp32's own errors, which turn a key's last bits. */
static void placed_as_on_the_cpu(const struct stream *device, struct held *host, uint32_t recalled)
{
    const struct layout *l = &host->stream->layout;
    uint32_t dim = l->head_dim, comp = host->stream->engine->shape.comp, differ = 0;
    f16 *rows[2] = {STATE_AT(host->stream->state, l->fixed_k, f16),
                    STATE_AT(host->stream->state, l->fixed_v, f16)};
    const void *there = gpu_stream_state(device);
    assert_non_null(there);
    assert_int_equal(stream_restore(host->stream, there, l->bytes), 0);
    ccm_place_old_rows(host->stream, recalled);
    for (size_t h = 0; h < l->heads; h++)
        for (size_t i = h * l->fixed_rows * dim; i < (h * l->fixed_rows + comp) * dim; i++)
            for (int v = 0; v < 2; v++) {
                const f16 *got = STATE_AT_CONST(there, v ? l->fixed_v : l->fixed_k, f16) + i;
                double want = (double)f16_to_f32(rows[v][i]);
                differ += *got != rows[v][i];
                if (!(fabs((double)f16_to_f32(*got) - want) <= 0x1p-9 * (1 + fabs(want))))
                    fail_msg("head %zu, %s %zu: %g, not %g", h, v ? "value" : "key", i,
                             (double)f16_to_f32(*got), want);
            }
    assert_true(differ < 2 * l->heads * comp * dim / 50);
}

static void a_mapped_summary_is_the_cpus(void **state)
{
    (void)state;
    static const struct tiny_shape shapes[] = {
        {TINY_HEADS, TINY_KV_HEADS, 32, TINY_CHUNK, TINY_COMP, 2},
        {8, 1, 64, 64, 8, 1},
        {4, 2, 128, 96, 6, 1},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct tiny_shape *s = &shapes[i];
        struct tiny_options model = TINY_DEFAULTS;
        char error[256] = "";
        void *memory[2];
        int code;
        model.weight_type = model.embed_type = TENSOR_F32;
        model.lora_type = i ? TENSOR_F16 : TENSOR_F32;
        model.shape = *s;
        model.map = TINY_MAP_RANDOM;
        struct engine *on[2] = {
            engine_of(DEVICE_CPU, &model, WEIGHTS_AUTO, 0, error, sizeof error, &code),
            engine_of(DEVICE_CUDA, &model, WEIGHTS_AUTO, 160 << 20, error, sizeof error, &code)};
        if (!on[0] || !on[1])
            fail_msg("shape %zu: %d: %s", i, code, error);
        struct held fed[2] = {stream_of(on[0], 1, s->ring), stream_of(on[1], 1, s->ring)};
        struct held host = stream_of(on[0], 1, s->ring);
        for (uint32_t n = 0; n < 2; n++)
            assert_int_equal(stream_feed(fed[n].stream, tokens, 5 * s->chunk + 40), 0);
        placed_as_on_the_cpu(fed[1].stream, &host, 0);
        struct fork *f = fork_of(&fed[0], &memory[0]), *g = fork_of(&fed[1], &memory[1]);
        f16 *rows = calloc(1, on[1]->gpu->segment_bytes);
        struct cold_segment cold = {.number = 1, .rows = rows};
        assert_int_equal(fork_recall(f, &cold, 1), 0);
        assert_int_equal(fork_recall(g, &cold, 1), 0);
        assert_int_equal(fork_feed(f, tokens, 40), 0);
        assert_int_equal(fork_feed(g, tokens, 40), 0);
        assert_true(logits_apart(f, g) < 0.1);
        placed_as_on_the_cpu(&g->stream, &host, 1);
        fork_close(&f);
        fork_close(&g);
        for (uint32_t n = 0; n < 2; n++) {
            free(memory[n]);
            drop(&fed[n]);
        }
        free(rows);
        drop(&host);
        engine_close(&on[0]);
        engine_close(&on[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_may_leave_beside_the_next_pass),
        cmocka_unit_test(a_mapped_summary_is_the_cpus),
    };
    return cmocka_run_group_tests_name("gpu leave, emulated", tests, rig_set_up, rig_tear_down);
}
