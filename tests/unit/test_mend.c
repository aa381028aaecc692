/*
 * Mending: a record that was merged comes out of its chunks' segments as it was, in both kinds of
 * payload, and so does one that lacks a chunk; a stream begun near a segment computes one near it.
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

#include "stream/internal.h"
#include "tests/unit/spill_rig.h"

enum { CHUNKS = 24, RING = 4, WARM = 2 };

static void file_of(const struct held *h, uint32_t level, uint64_t number, char *out,
                    size_t out_bytes)
{
    snprintf(out, out_bytes, "%s/segments/%016llx/%u-%08llx.seg", spill_rig_folder, 1ull, level,
             (unsigned long long)number / h->spill->file_records);
}

/* A record's bytes, or others in its place. */
static void record(struct held *h, uint32_t level, uint64_t number, uint8_t *bytes, bool write)
{
    size_t size = h->spill->shape.record_bytes;
    char path[160];
    FILE *file;

    file_of(h, level, number, path, sizeof path);
    file = fopen(path, write ? "r+" : "r");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)(number % h->spill->file_records * size), SEEK_SET), 0);
    assert_int_equal(write ? fwrite(bytes, size, 1, file) : fread(bytes, size, 1, file), 1);
    fclose(file);
}

static void mend_all(struct held *h)
{
    static f16 rows[VALUES];
    struct spill_damage damage;

    assert_true(spill_damaged(h->spill, &damage));
    for (uint64_t n = damage.chunk_from; n < damage.chunk_to; n++) {
        struct segment_view view = {n, n * TINY_CHUNK, (n + 1) * TINY_CHUNK, rows, sizeof rows};

        spill_rig_rows(damage.stream_id, n, rows);
        spill_mend_add(h->spill, &view, n + 1, n + 2);
    }
    assert_int_equal(spill_mend_end(h->spill, false), 0);
    spill_drain(h->spill);
    assert_false(spill_damaged(h->spill, &damage));
}

static void merged_as_it_was(enum segment_dtype dtype)
{
    spill_rig_clear();
    struct held h = spill_rig_open(true, dtype);
    size_t size = h.spill->shape.record_bytes;
    uint8_t *was = malloc(size), *now = malloc(size);
    spill_limit(h.spill, 120 * size);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 700);
    spill_drain(h.spill);
    uint32_t checked = 0;
    for (uint32_t level = 0; level < SEGMENT_LEVELS; level++) {
        struct spill_range range = h.spill->streams[0].level[level];
        if (range.from == range.to)
            continue;
        uint64_t number = range.to - 1;
        record(&h, level, number, was, false);
        memcpy(now, was, size);
        now[9000] ^= 4;
        record(&h, level, number, now, true);
        struct spill_fetch *f;
        struct cold_segment out[STREAM_RECALL_MAX];
        assert_int_equal(spill_fetch(h.spill, 1, (uint64_t[]){number << level}, 1, &f), 0);
        while (!spill_fetched(f))
            spill_step(h.spill, true);
        assert_int_equal(spill_segments(f, out), 0);
        spill_release(&f);
        mend_all(&h);
        record(&h, level, number, now, false);
        assert_memory_equal(was, now, size);
        checked++;
    }
    assert_true(checked >= 2);
    assert_int_equal(spill_rig_stat(h.spill, 1).segments_repaired, checked);
    assert_int_equal(spill_rig_stat(h.spill, 1).segments_approximate, 0);
    spill_rig_close(&h);
    free(was);
    free(now);
}

/* Chunks of which the quota has made means, one of them rotten before (none: MEANS). */
enum { MEANS = 700 };
static struct held make_means(uint64_t rotten)
{
    static uint8_t bytes[1 << 16];
    spill_rig_clear();
    struct held h = spill_rig_open(true, SEGMENT_F16);
    assert_true(h.spill->shape.record_bytes <= sizeof bytes);
    /* The blocks in which a file system notes where holes lie come and go: twice the same means. */
    spill_limit(h.spill, 120 * h.spill->shape.record_bytes + 16 * 4096);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t n = 0; n < MEANS; n++) {
        spill_rig_put_many(h.spill, 1, n, n + 1);
        spill_drain(h.spill);
        if (n != rotten)
            continue;
        record(&h, 0, rotten, bytes, false);
        bytes[9000] ^= 4;
        record(&h, 0, rotten, bytes, true);
    }
    return h;
}

/* The chunks averaged in what is served for one; 0: nothing is. */
static uint32_t served(struct held *h, uint64_t chunk)
{
    struct spill_fetch *f;
    struct cold_segment out[STREAM_RECALL_MAX];
    assert_int_equal(spill_fetch(h->spill, 1, &chunk, 1, &f), 0);
    while (!spill_fetched(f))
        spill_step(h->spill, true);
    uint32_t count = spill_segments(f, out);
    spill_release(&f);
    return count ? out[0].weight : 0;
}

/* A mean of four that lacks its second or third is nobody's answer for that one, answers for the
 * others, and is made again with all four. */
static void a_mean_that_lacks_one(void **state)
{
    (void)state;
    for (uint64_t i = 1; i < 3; i++) {
        static uint8_t whole[1 << 16], now[1 << 16];
        struct spill_damage damage;
        struct held h = make_means(MEANS);
        uint64_t number = h.spill->streams[0].level[2].from + 1, lost = 4 * number + i;
        assert_true(number + 1 < h.spill->streams[0].level[2].to);
        record(&h, 2, number, whole, false);
        spill_rig_close(&h);
        h = make_means(lost);
        assert_int_equal(h.spill->streams[0].level[2].from + 1, number);
        assert_true(spill_damaged(h.spill, &damage)); /* merging has said so */
        assert_int_equal(damage.chunk_from, 4 * number);
        for (uint64_t n = 4 * number; n < 4 * number + 4; n++)
            assert_int_equal(served(&h, n), n == lost ? 0 : 3);
        mend_all(&h);
        for (uint64_t n = 4 * number; n < 4 * number + 4; n++)
            assert_int_equal(served(&h, n), 4);
        record(&h, 2, number, now, false);
        assert_memory_equal(whole, now, h.spill->shape.record_bytes);
        spill_rig_close(&h);
    }
}

static void merged_f16(void **state)
{
    (void)state;
    merged_as_it_was(SEGMENT_F16);
}

static void merged_int8(void **state)
{
    (void)state;
    merged_as_it_was(SEGMENT_INT8);
}

/* ---- near a segment ---- */

struct begun {
    struct stream *stream;
    void *memory;
};

static struct begun open_stream(void)
{
    struct stream_options options = {.dmc_ratio = 4, .ring_segments = RING};
    size_t bytes = stream_bytes(spill_rig_engine, &options, NULL, 0);
    struct begun b = {.memory = aligned_alloc(64, (bytes + 63) / 64 * 64)};

    assert_int_equal(stream_open(&b.stream, spill_rig_engine, &options, b.memory, bytes), 0);
    return b;
}

static double distance(const f16 *a, const f16 *b)
{
    double sum = 0;

    for (int i = 0; i < VALUES; i++) {
        double d = (double)f16_to_f32(a[i]) - (double)f16_to_f32(b[i]);
        sum += d * d;
    }
    return sqrt(sum / VALUES);
}

static void begun_near_it_comes_near(void **state)
{
    static int32_t tokens[CHUNKS * TINY_CHUNK];
    static f16 rows[CHUNKS][VALUES];
    struct begun whole = open_stream(), part = open_stream();
    struct segment_view segment;
    uint64_t chunk = 12, seed = 5;
    size_t bytes;
    (void)state;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        tokens[i] = (int32_t)(3 + (seed >> 33) % 200);
    }
    assert_false(stream_newest_segment(whole.stream, &segment));
    for (uint64_t n = 0; n < CHUNKS; n++) {
        assert_int_equal(stream_feed(whole.stream, tokens + n * TINY_CHUNK, TINY_CHUNK), 0);
        assert_true(stream_newest_segment(whole.stream, &segment));
        assert_int_equal(segment.number, n);
        assert_int_equal(segment.rows_bytes, sizeof rows[n]);
        memcpy(rows[n], segment.rows, sizeof rows[n]);
    }
    assert_int_equal(stream_seed(part.stream, chunk), -EINVAL); /* no summary there yet */
    const void *far = stream_state(whole.stream, &bytes);
    assert_int_equal(stream_restore(part.stream, far, bytes), 0);
    assert_int_equal(stream_seed(part.stream, RING), -EINVAL);
    assert_int_equal(stream_seed(part.stream, chunk - WARM), 0);
    for (uint64_t n = chunk - WARM - RING; n < chunk - WARM; n++)
        assert_int_equal(stream_seed_segment(part.stream, n, rows[n]), 0);
    assert_int_equal(stream_seed_segment(part.stream, chunk, rows[chunk]), -EINVAL);
    for (uint64_t n = chunk - WARM; n <= chunk; n++)
        assert_int_equal(stream_feed(part.stream, tokens + n * TINY_CHUNK, TINY_CHUNK), 0);
    assert_true(stream_newest_segment(part.stream, &segment));
    assert_int_equal(segment.number, chunk);
    double near = distance(segment.rows, rows[chunk]),
           other = distance(rows[chunk - 1], rows[chunk]);
    printf("begun near it: %.2g away, its neighbour %.2g\n", near, other);
    assert_true(near < other / 4);
    stream_close(&whole.stream);
    stream_close(&part.stream);
    free(whole.memory);
    free(part.memory);
}

/* What was being made again when its stream left is not written when it is back: its text may have
 * been forgotten in between, and its segments made of other text. */
static void a_mend_ends_with_its_stream(void **state)
{
    static uint8_t bytes[1 << 16];
    static f16 rows[VALUES];
    struct spill_damage damage;
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(true, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, CHUNKS);
    spill_drain(h.spill);
    record(&h, 0, 20, bytes, false);
    bytes[9000] ^= 4;
    record(&h, 0, 20, bytes, true);
    assert_int_equal(spill_rig_fetch_one(h.spill, 1, 20), 0);
    assert_true(spill_damaged(h.spill, &damage));
    assert_int_equal(damage.chunk_from, 20);
    spill_rig_rows(1, 3, rows); /* other text */
    struct segment_view view = {20, 20 * TINY_CHUNK, 21 * TINY_CHUNK, rows, sizeof rows};
    spill_mend_add(h.spill, &view, 21, 22);
    spill_detach(h.spill, 1);
    assert_int_equal(spill_erase(h.spill, 1, 16), 0);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 16, CHUNKS);
    spill_drain(h.spill);
    assert_int_equal(spill_mend_end(h.spill, false), -ENOENT);
    spill_drain(h.spill);
    assert_int_equal(spill_rig_fetch_one(h.spill, 1, 20), 1);
    spill_rig_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merged_f16),
        cmocka_unit_test(merged_int8),
        cmocka_unit_test(a_mean_that_lacks_one),
        cmocka_unit_test(begun_near_it_comes_near),
        cmocka_unit_test(a_mend_ends_with_its_stream),
    };
    return cmocka_run_group_tests_name("mend", tests, spill_rig_set_up, spill_rig_tear_down);
}
