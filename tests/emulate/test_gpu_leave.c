/* Segments that leave their rings on a device while it computes the next pass, emulated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_may_leave_beside_the_next_pass),
    };
    return cmocka_run_group_tests_name("gpu leave, emulated", tests, rig_set_up, rig_tear_down);
}
