/*
 * Cold segments: what is put comes back bit for bit, from staging and from disk, after a restart,
 * by either engine; what is not right never does.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/disk_fault.h"
#include "tests/unit/spill_rig.h"

/* ---- records ---- */

static void a_record_is_told_from_others(void **state)
{
    (void)state;
    for (enum segment_dtype dtype = SEGMENT_F16; dtype <= SEGMENT_INT8; dtype++) {
        struct segment_shape shape;
        segment_shape_make(&shape, spill_rig_engine, dtype);
        uint8_t *record = calloc(1, segment_buffer_bytes(&shape));
        f16 *rows = malloc(sizeof(f16) * VALUES);
        struct segment_place place = {
            .stream_id = 5, .stream_epoch = 1, .number = 9, .offset = 9 * shape.record_bytes};
        struct segment_header covers = {
            .token_from = 2304, .token_to = 2560, .weight = 1, .held = {1}};
        assert_int_equal(segment_check(&shape, record, &place), SEGMENT_MISSING);
        spill_rig_rows(5, 9, rows);
        segment_put_rows(&shape, record, rows);
        segment_seal(&shape, record, &place, &covers);
        assert_int_equal(segment_check(&shape, record, &place), SEGMENT_FINE);
        for (size_t i = 0; i < shape.record_bytes; i += i < 256 ? 1 : 61) {
            record[i] ^= 1;
            assert_int_not_equal(segment_check(&shape, record, &place), SEGMENT_FINE);
            record[i] ^= 1;
        }
        struct segment_place other = place;
        other.number++;
        assert_int_equal(segment_check(&shape, record, &other), SEGMENT_MISDIRECTED);
        other = place;
        other.stream_id++;
        assert_int_equal(segment_check(&shape, record, &other), SEGMENT_MISDIRECTED);
        other = place;
        other.stream_epoch++;
        assert_int_equal(segment_check(&shape, record, &other), SEGMENT_STALE);
        shape.adapter_fingerprint++;
        assert_int_equal(segment_check(&shape, record, &place), SEGMENT_STALE);
        const f16 *back = segment_take_rows(&shape, record);
        double error = 0, norm = 0;
        for (int i = 0; i < VALUES; i++) {
            double d = (double)f16_to_f32(back[i]) - (double)f16_to_f32(rows[i]);
            error += d * d;
            norm += (double)f16_to_f32(rows[i]) * (double)f16_to_f32(rows[i]);
        }
        printf("dtype %d: record of %zu bytes, rows differ by %.2g of their norm\n", dtype,
               shape.record_bytes, sqrt(error / norm));
        assert_true(dtype == SEGMENT_F16 ? error <= 0 : sqrt(error / norm) < 0.01);
        free(record);
        free(rows);
    }
}

/* ---- the store ---- */

static void comes_back(void **state)
{
    (void)state;
    for (int plain = 0; plain < 2; plain++) {
        spill_rig_clear();
        struct held h = spill_rig_open(plain, SEGMENT_F16);
        struct spill_stat stat;
        spill_stat(h.spill, &stat);
        printf("engine: %s\n", stat.engine_name);
        assert_int_equal(spill_rig_put(h.spill, 7, 0), -ENOENT);
        assert_int_equal(spill_attach(h.spill, 7, 1), 0);
        assert_int_equal(spill_attach(h.spill, 8, 1), 0);
        assert_int_equal(spill_attach(h.spill, 7, 1), -EEXIST);
        spill_rig_put_many(h.spill, 7, 0, 3);
        assert_int_equal(spill_rig_fetch_one(h.spill, 7, 2), 1); /* perhaps still in staging */
        spill_rig_put_many(h.spill, 7, 3, 300);
        spill_rig_put_many(h.spill, 8, 0, 20);
        assert_int_equal(
            spill_rig_fetch(h.spill, 7, (uint64_t[]){299, 0, 255, 256, 17, 100, 3, 298}, 8), 255);
        assert_int_equal(spill_rig_fetch(h.spill, 8, (uint64_t[]){19, 20, 0}, 3), 5);
        spill_rig_close(&h);
        h = spill_rig_open(plain, SEGMENT_F16);
        assert_int_equal(spill_attach(h.spill, 7, 1), 0);
        assert_int_equal(spill_rig_stat(h.spill, 7).chunks_to, 300);
        assert_int_equal(spill_rig_stat(h.spill, 7).chunks_from, 0);
        assert_int_equal(
            spill_rig_fetch(h.spill, 7, (uint64_t[]){299, 0, 255, 256, 17, 100, 3, 298}, 8), 255);
        spill_rig_put_many(h.spill, 7, 290, 310); /* a replay brings some of them again */
        assert_int_equal(spill_rig_fetch(h.spill, 7, (uint64_t[]){295, 309}, 2), 3);
        for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
            assert_int_equal(spill_rig_faults(h.spill, (enum segment_fault)i), 0);
        spill_rig_close(&h);
    }
}

/* Of both kinds of records. */
static void neighbours_are_one_write(void **state)
{
    const enum segment_dtype kinds[] = {SEGMENT_F16, SEGMENT_INT8};
    struct cold_segment out[STREAM_RECALL_MAX];
    struct disk_fault count = {0};
    struct spill_fetch *f;
    (void)state;
    for (int i = 0; i < 2; i++) {
        spill_rig_clear();
        struct held h = spill_rig_open(false, kinds[i]);
        disk_fault_init(&count, &h.spill->disk, h.spill->shape.record_bytes);
        disk_fault_set(&count, FAULT_NONE, DISK_WRITE, 0);
        assert_int_equal(spill_attach(h.spill, 1, 1), 0);
        for (uint64_t n = 0; n < STAGING; n++)
            assert_int_equal(spill_rig_put(h.spill, 1, n), 0);
        spill_drain(h.spill);
        assert_int_equal(count.count, 1);
        assert_int_equal(spill_fetch(h.spill, 1, (uint64_t[]){0, 1, 2, 3}, STAGING, &f), 0);
        while (!spill_fetched(f))
            spill_step(h.spill, true);
        assert_int_equal(spill_segments(f, out), STAGING);
        spill_release(&f);
        spill_rig_close(&h);
    }
}

static void staging_is_bounded(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t i = 0; i < STAGING; i++)
        assert_int_equal(spill_rig_put(h.spill, 1, i), 0);
    assert_int_equal(spill_rig_put(h.spill, 1, STAGING), -EAGAIN);
    assert_int_equal(spill_rig_fetch_one(h.spill, 1, 1), 1);
    while (spill_rig_put(h.spill, 1, STAGING) == -EAGAIN)
        spill_step(h.spill, true);
    struct spill_fetch *f[FETCHES + 1];
    uint64_t chunk = 0;
    for (int i = 0; i < FETCHES; i++)
        assert_int_equal(spill_fetch(h.spill, 1, &chunk, 1, &f[i]), 0);
    assert_int_equal(spill_fetch(h.spill, 1, &chunk, 1, &f[FETCHES]), -EAGAIN);
    for (int i = 0; i < FETCHES; i++)
        spill_release(&f[i]); /* perhaps not read yet */
    spill_drain(h.spill);
    assert_int_equal(spill_rig_fetch_one(h.spill, 1, 1), 1);
    spill_rig_close(&h);
}

static void *putter(void *user)
{
    static f16 rows[VALUES];
    struct spill *spill = user;
    for (uint64_t i = 0; i < 60; i++) {
        spill_rig_rows(3, i, rows);
        struct segment_view view = {i, i * TINY_CHUNK, (i + 1) * TINY_CHUNK, rows, sizeof rows};
        if (spill_put_wait(spill, 3, &view, i + 1, i + 2))
            return spill;
    }
    return NULL;
}

static void threads_meet(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    pthread_t thread;
    void *result;
    struct spill_stat stat;
    assert_int_equal(spill_attach(h.spill, 3, 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, putter, h.spill), 0);
    do {
        spill_step(h.spill, false);
        spill_stat(h.spill, &stat);
    } while (stat.segments_written < 60);
    pthread_join(thread, &result);
    assert_null(result);
    assert_int_equal(spill_rig_fetch(h.spill, 3, (uint64_t[]){0, 59, 31}, 3), 7);
    spill_rig_close(&h);
}

/* ---- what is not right ---- */

static void change_file(uint64_t stream, size_t at, const char *from_path, size_t bytes)
{
    char path[160];
    snprintf(path, sizeof path, "%s/segments/%016llx/0-00000000.seg", spill_rig_folder,
             (unsigned long long)stream);
    uint8_t *buffer = malloc(bytes);
    int fd = open(path, O_RDWR), from = open(from_path ? from_path : path, O_RDONLY);
    assert_true(fd >= 0 && from >= 0);
    assert_int_equal(pread(from, buffer, bytes, (off_t)at), bytes);
    if (!from_path)
        buffer[bytes / 2] ^= 16;
    assert_int_equal(pwrite(fd, buffer, bytes, (off_t)at), bytes);
    close(fd);
    close(from);
    free(buffer);
}

static void wrong_records_are_not_used(void **state)
{
    (void)state;
    char path[160];
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    size_t record = h.spill->shape.record_bytes;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_attach(h.spill, 2, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 20);
    spill_rig_put_many(h.spill, 2, 0, 20);
    spill_rig_close(&h);
    snprintf(path, sizeof path, "%s/segments/%016llx/0-00000000.seg", spill_rig_folder, 2ull);
    change_file(1, 3 * record, path, record);           /* of another stream */
    change_file(1, 4 * record + 8192, NULL, 512);       /* a bit of its rows */
    change_file(1, 5 * record, NULL, sizeof(uint64_t)); /* and of its header */
    h = spill_rig_open(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){2, 3, 4, 5, 6}, 5), 1 | 16);
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_MISDIRECTED), 1);
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_ROTTEN), 1);
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_TORN), 1);
    /* What is computed again heals. */
    spill_rig_put_many(h.spill, 1, 3, 6);
    spill_drain(h.spill);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){2, 3, 4, 5, 6}, 5), 31);
    spill_detach(h.spill, 1);
    /* The file ends in a record, as when power went. */
    snprintf(path, sizeof path, "%s/segments/%016llx/0-00000000.seg", spill_rig_folder, 1ull);
    assert_int_equal(truncate(path, (off_t)(18 * record + 4096)), 0);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_to, 19); /* its header is whole */
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){17, 18}, 2), 1);
    spill_detach(h.spill, 1);
    /* A stream computed anew does not take its old segments for its own. */
    assert_int_equal(spill_attach(h.spill, 1, 2), 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_to, 0);
    assert_true(spill_rig_faults(h.spill, SEGMENT_STALE) > 0);
    /* A file that somebody deletes is missing, not an error. */
    spill_rig_put_many(h.spill, 1, 0, 5);
    spill_detach(h.spill, 1);
    assert_int_equal(spill_attach(h.spill, 1, 2), 0);
    spill_files_drop(h.spill, 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){1, 2}, 2), 0);
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_MISSING), 2);
    spill_rig_close(&h);
}

static void removing_and_cutting(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_attach(h.spill, 2, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 40);
    spill_rig_put_many(h.spill, 2, 0, 40);
    assert_int_equal(spill_erase_first(h.spill, 1, 10), 10);
    spill_detach(h.spill, 1);
    assert_int_equal(spill_erase(h.spill, 1, 10), 0);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_to, 10);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){9, 10, 11}, 3), 1);
    spill_rig_put_many(h.spill, 1, 10, 12);
    spill_drain(h.spill);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){9, 10, 11, 12}, 4), 7);
    spill_stat(h.spill, &stat);
    spill_rig_check_disk(stat.bytes_disk);
    spill_detach(h.spill, 1);
    assert_int_equal(spill_erase(h.spill, 1, 0), 0);
    assert_int_equal(spill_stream_stat(h.spill, 1, &(struct spill_stream_stat){0}), -ENOENT);
    assert_int_equal(spill_rig_fetch(h.spill, 2, (uint64_t[]){9, 39}, 2), 3);
    spill_stat(h.spill, &stat);
    spill_rig_check_disk(stat.bytes_disk);
    spill_detach(h.spill, 2);
    assert_int_equal(spill_erase(h.spill, 2, 0), 0);
    assert_int_equal(spill_rig_disk_use(), 0);
    spill_rig_close(&h);
}

/* Of a pair one was rotten when they became one record: that holds the other, and is not taken for
 * the lost one. */
static void a_mean_is_none_of_what_it_lacks(void **state)
{
    struct spill_stat stat;
    struct spill_fetch *f;
    struct cold_segment out[STREAM_RECALL_MAX];
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    uint64_t file = h.spill->file_records;
    spill_rig_put_many(h.spill, 1, 0, file);
    spill_drain(h.spill);
    change_file(1, spill_offset(h.spill, 7) + SEGMENT_HEADER_BYTES, NULL, 100);
    spill_stat(h.spill, &stat);
    /* One record less than one more may need. */
    spill_limit(h.spill, stat.bytes_disk + (2 * SPILL_FILE_RECORDS + SPILL_GROW_MERGED - 1) *
                                               h.spill->shape.record_bytes);
    spill_rig_put_many(h.spill, 1, file, file + 1);
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_int_equal(stat.segments_merged, file / 2);
    for (uint64_t n = 4; n < 8; n++) {
        assert_int_equal(spill_fetch(h.spill, 1, &n, 1, &f), 0);
        while (!spill_fetched(f))
            spill_step(h.spill, true);
        assert_int_equal(spill_segments(f, out), n < 7);
        if (n < 7)
            assert_int_equal(out[0].weight, n < 6 ? 2 : 1);
        spill_release(&f);
    }
    spill_rig_close(&h);
}

/* ---- from a stream ---- */

struct kept {
    struct spill *spill;
    f16 rows[12][VALUES];
    uint32_t count;
};

static void segment_leaves(void *user, const struct segment_view *segment)
{
    struct kept *kept = user;
    memcpy(kept->rows[kept->count++], segment->rows, segment->rows_bytes);
    while (spill_put(kept->spill, 4, segment, 0, 0) == -EAGAIN)
        spill_step(kept->spill, true);
}

static void a_stream_spills(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct stream_options options = {.dmc_ratio = 4, .ring_segments = 2};
    size_t bytes = stream_bytes(spill_rig_engine, &options, NULL, 0);
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct stream *stream;
    struct kept *kept = calloc(1, sizeof *kept);
    struct spill_fetch *f;
    struct cold_segment out[STREAM_RECALL_MAX];
    kept->spill = h.spill;
    assert_int_equal(spill_attach(h.spill, 4, 1), 0);
    assert_int_equal(stream_open(&stream, spill_rig_engine, &options, memory, bytes), 0);
    stream_on_segment_leave(stream, segment_leaves, kept);
    for (int32_t i = 0; i < 8 * TINY_CHUNK; i++)
        assert_int_equal(stream_feed(stream, &(int32_t){3 + i * 7 % 200}, 1), 0);
    assert_int_equal(kept->count, 6);
    assert_int_equal(spill_fetch(h.spill, 4, (uint64_t[]){0, 1, 2, 3, 4, 5}, 6, &f), 0);
    while (!spill_fetched(f))
        spill_step(h.spill, true);
    assert_int_equal(spill_segments(f, out), 6);
    for (int i = 0; i < 6; i++)
        assert_memory_equal(out[i].rows, kept->rows[i], sizeof kept->rows[i]);
    spill_release(&f);
    stream_close(&stream);
    free(memory);
    free(kept);
    spill_rig_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_record_is_told_from_others),
        cmocka_unit_test(comes_back),
        cmocka_unit_test(neighbours_are_one_write),
        cmocka_unit_test(staging_is_bounded),
        cmocka_unit_test(threads_meet),
        cmocka_unit_test(wrong_records_are_not_used),
        cmocka_unit_test(removing_and_cutting),
        cmocka_unit_test(a_mean_is_none_of_what_it_lacks),
        cmocka_unit_test(a_stream_spills),
    };
    return cmocka_run_group_tests_name("spill", tests, spill_rig_set_up, spill_rig_tear_down);
}
