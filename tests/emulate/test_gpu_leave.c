/* Segments that leave their rings on a device while it computes the next pass, emulated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "tests/emulate/gpu_rig.h"

static uint32_t left[2];
static f16 left_rows[8][TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM];

static void leaves(void *user, const struct segment_view *segment)
{
    uint32_t *count = user;
    assert_int_equal(segment->number, *count);
    assert_int_equal(segment->token_from, *count * TINY_CHUNK);
    assert_int_equal(segment->token_to, (*count + 1) * TINY_CHUNK);
    assert_int_equal(segment->rows_bytes, sizeof left_rows[0]);
    if (count == &left[0])
        memcpy(left_rows[*count], segment->rows, segment->rows_bytes);
    *count += 1;
}

/* The same segments in the same order, one pass later, or when they are asked for. */
static void segments_may_leave_beside_the_next_pass(void **state)
{
    (void)state;
    enum { STREAMS = 2, RING = 2, CHUNKS = 6 };
    struct held alone = stream_of(gpu, 2, RING), h[STREAMS];
    struct stream_work work[STREAMS];
    static char rows[sizeof left_rows];
    left[0] = 0;
    stream_on_segment_leave(alone.stream, leaves, &left[0]);
    assert_int_equal(stream_feed(alone.stream, tokens, CHUNKS * TINY_CHUNK), 0);
    assert_int_equal(left[0], CHUNKS - RING);
    memcpy(rows, left_rows, sizeof rows);
    memset(left_rows, 0, sizeof left_rows);
    left[0] = left[1] = 0;
    for (uint32_t i = 0; i < STREAMS; i++) {
        h[i] = stream_of(gpu, 2, RING);
        stream_on_segment_leave(h[i].stream, leaves, &left[i]);
    }
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
        const int32_t *text = tokens + chunk * TINY_CHUNK;
        uint32_t gone = chunk < RING ? 0 : chunk - RING;
        for (uint32_t i = 0; i < STREAMS; i++)
            work[i] = (struct stream_work){h[i].stream, text, TINY_CHUNK, 1};
        assert_int_equal(streams_feed_ahead(work, STREAMS), 0);
        assert_int_equal(left[0], gone);
        assert_int_equal(left[1], gone);
    }
    assert_true(hash_of(&h[0]) == hash_of(&alone));
    drop(&h[1]); /* gives what is its own, and the other's */
    assert_int_equal(left[0], CHUNKS - RING);
    assert_int_equal(left[1], CHUNKS - RING);
    assert_memory_equal(rows, left_rows, sizeof rows);
    /* One that is asked for, and one that what comes next asks for. */
    work[0] = (struct stream_work){h[0].stream, tokens, TINY_CHUNK, 1};
    assert_int_equal(streams_feed_ahead(work, 1), 0);
    assert_int_equal(left[0], CHUNKS - RING);
    streams_give(gpu);
    assert_int_equal(left[0], CHUNKS - RING + 1);
    assert_int_equal(streams_feed_ahead(work, 1), 0);
    assert_int_equal(stream_feed(h[0].stream, tokens, 5), 0);
    assert_int_equal(left[0], CHUNKS - RING + 2);
    assert_int_equal(streams_feed_ahead(work, 1), 0);
    stream_on_segment_leave(h[0].stream, NULL, NULL);
    assert_int_equal(left[0], CHUNKS - RING + 3);
    drop(&h[0]);
    drop(&alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_may_leave_beside_the_next_pass),
    };
    return cmocka_run_group_tests_name("gpu leave, emulated", tests, rig_set_up, rig_tear_down);
}
