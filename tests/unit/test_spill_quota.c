/*
 * The quota of cold segments: it holds, history grows coarser below it and is dropped only where
 * nothing can be merged.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/spill_rig.h"

/* Rows of a merged segment are near the mean of what it stands for. */
static void check_mean(const struct cold_segment *s, uint64_t stream)
{
    static f16 rows[VALUES];
    static double mean[VALUES];
    memset(mean, 0, sizeof mean);
    uint64_t first = s->token_from / TINY_CHUNK;
    assert_int_equal(s->number - first + 1, s->weight);
    for (uint64_t n = first; n <= s->number; n++) {
        spill_rig_rows(stream, n, rows);
        for (int i = 0; i < VALUES; i++)
            mean[i] += (double)f16_to_f32(rows[i]) / s->weight;
    }
    for (int i = 0; i < VALUES; i++)
        assert_true(fabs(mean[i] - (double)f16_to_f32(s->rows[i])) < 4e-3);
}

/* The chunk comes back in a segment, whole or merged. */
static bool has_chunk(struct spill *spill, uint64_t chunk)
{
    struct cold_segment out[STREAM_RECALL_MAX];
    struct spill_fetch *f;
    bool found;
    assert_int_equal(spill_fetch(spill, 1, &chunk, 1, &f), 0);
    while (!spill_fetched(f))
        spill_step(spill, true);
    found = spill_segments(f, out) == 1 && out[0].token_from <= chunk * TINY_CHUNK &&
            chunk * TINY_CHUNK < out[0].token_to;
    spill_release(&f);
    return found;
}

/* Files that grew while there was room give it back. */
static void a_limit_comes_down(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    uint64_t limit = 48 * h.spill->shape.record_bytes;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t n = 0; n < 200; n += 20)
        spill_rig_put_many(h.spill, 1, n, n + 20);
    spill_drain(h.spill);
    spill_limit(h.spill, limit);
    spill_step(h.spill, false);
    spill_stat(h.spill, &stat);
    assert_true(stat.bytes_disk <= limit);
    assert_int_equal(stat.segments_dropped, 0); /* as long as some can be merged */
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_from, 0);
    for (uint64_t n = 0; n < 200; n += 9)
        assert_true(has_chunk(h.spill, n));
    spill_rig_put_many(h.spill, 1, 200, 220);
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_true(stat.bytes_disk <= limit);
    assert_int_equal(stat.last_error, 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_to, 220);
    spill_rig_check_disk(stat.bytes_disk);
    spill_rig_close(&h);
}

/* Nor does the first of an odd number go: of a branch, which has no segments from before it. */
static void an_odd_first_is_merged_too(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    uint64_t limit = 100 * h.spill->shape.record_bytes;
    spill_limit(h.spill, limit);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t n = 7; n < 307; n += 20)
        spill_rig_put_many(h.spill, 1, n, n + 20);
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_true(stat.bytes_disk <= limit && stat.segments_merged > 100);
    assert_int_equal(stat.segments_dropped, 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_from / 8, 0);
    assert_false(has_chunk(h.spill, 6));
    for (uint64_t n = 7; n < 307; n++)
        assert_true(has_chunk(h.spill, n));
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_MISSING), 0);
    spill_rig_close(&h);
}

/* Of a small quota the room that files have ahead is no large part: what it holds is merged. */
static void a_small_quota_of_several_streams(void **state)
{
    enum { STREAMS = 3, CHUNKS = 300, RECORDS = 72 };
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    spill_limit(h.spill, RECORDS * h.spill->shape.record_bytes);
    for (uint64_t stream = 1; stream <= STREAMS; stream++)
        assert_int_equal(spill_attach(h.spill, stream, 1), 0);
    for (uint64_t n = 0; n < CHUNKS; n += 4)
        for (uint64_t stream = 1; stream <= STREAMS; stream++)
            spill_rig_put_many(h.spill, stream, n, n + 4);
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_true(stat.bytes_disk <= RECORDS * h.spill->shape.record_bytes);
    assert_int_equal(stat.segments_dropped, 0);
    assert_int_equal(stat.segments_lost, 0);
    for (uint64_t stream = 1; stream <= STREAMS; stream++)
        assert_int_equal(spill_rig_stat(h.spill, stream).chunks_from, 0);
    spill_rig_close(&h);
}

static void a_quota_holds(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    uint64_t limit = 160 * h.spill->shape.record_bytes;
    spill_limit(h.spill, limit);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t n = 0; n < 1000; n += 20) {
        spill_rig_put_many(h.spill, 1, n, n + 20);
        spill_stat(h.spill, &stat);
        assert_true(stat.bytes_disk <= limit);
    }
    spill_drain(h.spill);
    struct spill_stream_stat before = spill_rig_stat(h.spill, 1);
    spill_stat(h.spill, &stat);
    printf("quota of 160 records: chunks %llu to %llu in %llu records, %llu merged, %llu dropped\n",
           (unsigned long long)before.chunks_from, (unsigned long long)before.chunks_to,
           (unsigned long long)before.records, (unsigned long long)stat.segments_merged,
           (unsigned long long)stat.segments_dropped);
    assert_int_equal(before.chunks_to, 1000);
    assert_int_equal(stat.segments_lost, 0);
    assert_int_equal(stat.last_error, 0);
    assert_true(before.chunks_from < 500);
    spill_rig_check_disk(stat.bytes_disk);
    spill_rig_close(&h);
    h = spill_rig_open(true, SEGMENT_F16); /* the other engine reads the same files */
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    struct spill_stream_stat after = spill_rig_stat(h.spill, 1);
    assert_int_equal(after.records, before.records);
    assert_int_equal(after.chunks_from, before.chunks_from);
    assert_in_range(after.bytes_disk + 8 * 4096, before.bytes_disk, before.bytes_disk + 16 * 4096);
    for (uint64_t n = before.chunks_from; n < 1000; n += 37) {
        struct spill_fetch *f;
        struct cold_segment out[STREAM_RECALL_MAX];
        assert_int_equal(spill_fetch(h.spill, 1, (uint64_t[]){n, n}, 2, &f), 0);
        while (!spill_fetched(f))
            spill_step(h.spill, true);
        assert_int_equal(spill_segments(f, out), 1);
        assert_true(out[0].token_from <= n * TINY_CHUNK && n * TINY_CHUNK < out[0].token_to);
        check_mean(&out[0], 1);
        spill_release(&f);
    }
    spill_rig_close(&h);
}

/* An engine during whose starts another segment is put, as by the compute thread. */
struct putting {
    struct disk_engine engine; /* first: it is one */
    struct disk_engine *inner;
    struct spill *spill;
    uint64_t next;
    struct spill_fetch *fetch; /* asked for while segments are merged */
};

static int put_and_start(struct disk_engine *engine, struct disk_op *op)
{
    struct putting *p = (struct putting *)engine;
    if (op->kind == DISK_WRITE && spill_rig_put(p->spill, 1, p->next) == 0)
        p->next++;
    return p->inner->start(p->inner, op);
}

static int reap_inner(struct disk_engine *engine, struct disk_done *out, uint32_t max, bool wait)
{
    struct putting *p = (struct putting *)engine;
    return p->inner->reap(p->inner, out, max, wait);
}

static int set_file_inner(struct disk_engine *engine, uint32_t slot, int fd)
{
    struct putting *p = (struct putting *)engine;
    return p->inner->file_set(p->inner, slot, fd);
}

/* Room is made for what waits when a step begins: what is put while it writes waits for the next,
 * and is not lost for want of room. */
static void what_comes_meanwhile_is_not_lost(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    struct putting p = {{"putting", put_and_start, reap_inner, set_file_inner, NULL, NULL},
                        h.spill->disk.engine,
                        h.spill,
                        0,
                        NULL};
    uint64_t limit = 100 * h.spill->shape.record_bytes;
    spill_limit(h.spill, limit);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    h.spill->disk.engine = &p.engine;
    while (p.next < 1000) {
        assert_int_equal(spill_rig_put(h.spill, 1, p.next), 0);
        p.next++;
        spill_step(h.spill, true);
        while (!disk_idle(&h.spill->disk))
            spill_step(h.spill, true);
        spill_stat(h.spill, &stat);
        assert_true(stat.bytes_disk <= limit);
    }
    h.spill->disk.engine = p.inner;
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_int_equal(stat.segments_lost, 0);
    assert_int_equal(stat.last_error, 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_to, p.next);
    spill_rig_close(&h);
}

static int ask_and_start(struct disk_engine *engine, struct disk_op *op)
{
    struct putting *p = (struct putting *)engine;
    if (op->kind == DISK_SYNC && !p->fetch)
        assert_int_equal(spill_fetch(p->spill, 1, (uint64_t[]){0, 1, 190}, 3, &p->fetch), 0);
    return p->inner->start(p->inner, op);
}

/* Two chunks are asked for whose means are just being synced: they come as the one that they are
 * by the time they are read, and nobody says that a record is missing. */
static void what_is_asked_for_is_merged_meanwhile(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct cold_segment out[STREAM_RECALL_MAX];
    struct spill_damage damage;
    struct putting p = {{"asking", ask_and_start, reap_inner, set_file_inner, NULL, NULL},
                        h.spill->disk.engine,
                        h.spill,
                        0,
                        NULL};
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 200);
    spill_drain(h.spill);
    h.spill->disk.engine = &p.engine;
    spill_limit(h.spill, 150 * h.spill->shape.record_bytes);
    spill_step(h.spill, false);
    assert_non_null(p.fetch);
    while (!spill_fetched(p.fetch))
        spill_step(h.spill, true);
    h.spill->disk.engine = p.inner;
    assert_int_equal(spill_segments(p.fetch, out), 2);
    assert_true(out[0].token_from == 0 && out[0].weight >= 2 && out[1].number == 190);
    check_mean(&out[0], 1);
    spill_release(&p.fetch);
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_MISSING), 0);
    assert_false(spill_damaged(h.spill, &damage));
    spill_rig_close(&h);
}

/* The next start has so many records, and all of stream 1's 200 chunks in them. */
static void check_next_start(uint64_t records)
{
    struct held h = spill_rig_open(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).records, records);
    for (uint64_t n = 0; n < 200; n++)
        assert_true(has_chunk(h.spill, n));
    assert_int_equal(spill_rig_faults(h.spill, SEGMENT_MISSING), 0);
    spill_rig_close(&h);
}

/* A chunk that a replay brings again, and that is merged before it is written: at its old place it
 * would stand alone, and all from there on would be taken for missing at the next start. */
static void what_was_merged_is_not_written_again(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 200);
    spill_drain(h.spill);
    assert_int_equal(spill_rig_put(h.spill, 1, 0), 0);
    spill_limit(h.spill, 150 * h.spill->shape.record_bytes);
    spill_drain(h.spill);
    struct spill_stream_stat before = spill_rig_stat(h.spill, 1);
    assert_true(before.segments_merged > 0);
    spill_rig_check_disk(before.bytes_disk);
    spill_rig_close(&h);
    check_next_start(before.records);
}

static void copy_file(const char *from, const char *to)
{
    char command[360];
    snprintf(command, sizeof command, "cp %s %s", from, to);
    assert_int_equal(system(command), 0);
}

/* A file of records that are merged is there again: it could not be removed, or came back from a
 * copy. The means count: with what lies between the file and the first record of its level they
 * would be taken for missing, and be merged as nothing. */
static void what_was_merged_comes_back(void **state)
{
    char path[160], aside[160];
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 200);
    spill_drain(h.spill);
    snprintf(path, sizeof path, "%s/segments/%016x/0-%08x.seg", spill_rig_folder, 1, 0);
    snprintf(aside, sizeof aside, "%s/aside", spill_rig_folder);
    copy_file(path, aside);
    spill_limit(h.spill, 150 * h.spill->shape.record_bytes);
    spill_drain(h.spill);
    spill_step(h.spill, false);
    struct spill_stream_stat before = spill_rig_stat(h.spill, 1);
    assert_true(before.segments_merged > h.spill->file_records);
    spill_rig_close(&h);
    copy_file(aside, path);
    check_next_start(before.records);
}

/* Somebody removes a file that is open: what is left of it serves, and its bytes are given back
 * when its turn comes. */
static void a_file_is_removed_by_hand(void **state)
{
    char path[160];
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_stat stat;
    spill_limit(h.spill, 100 * h.spill->shape.record_bytes);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, 60);
    spill_drain(h.spill);
    snprintf(path, sizeof path, "%s/segments/%016x/0-%08x.seg", spill_rig_folder, 1, 0);
    assert_int_equal(unlink(path), 0);
    for (uint64_t n = 60; n < 300; n += 20)
        spill_rig_put_many(h.spill, 1, n, n + 20);
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_int_equal(stat.last_error, 0);
    assert_int_equal(stat.segments_lost, 0);
    for (uint64_t n = 0; n < 300; n++)
        assert_true(has_chunk(h.spill, n));
    spill_rig_check_disk(stat.bytes_disk);
    spill_rig_close(&h);
}

/* One that is not open: what it held is missing, and its bytes count no more once that is seen. */
static void a_closed_file_is_removed_by_hand(void **state)
{
    char path[160];
    (void)state;
    for (int number = 0; number < 3; number++) {
        spill_rig_clear();
        struct held h = spill_rig_open(false, SEGMENT_F16);
        struct spill_stat stat;
        spill_limit(h.spill, 300 * h.spill->shape.record_bytes);
        assert_int_equal(spill_attach(h.spill, 1, 1), 0);
        spill_rig_put_many(h.spill, 1, 0, 200);
        spill_drain(h.spill);
        spill_files_drop(h.spill, 1);
        snprintf(path, sizeof path, "%s/segments/%016x/0-%08x.seg", spill_rig_folder, 1, number);
        assert_int_equal(unlink(path), 0);
        for (uint64_t n = 200; n < 800; n += 20)
            spill_rig_put_many(h.spill, 1, n, n + 20);
        spill_drain(h.spill);
        spill_stat(h.spill, &stat);
        assert_int_equal(stat.last_error, 0);
        assert_int_equal(stat.segments_lost, 0);
        for (uint64_t n = 200; n < 800; n++)
            assert_true(has_chunk(h.spill, n));
        spill_rig_check_disk(stat.bytes_disk);
        spill_rig_check_disk(spill_rig_stat(h.spill, 1).bytes_disk);
        spill_rig_close(&h);
    }
}

/* The thread that computes, and waits for room. */
struct computing {
    struct spill *spill;
    uint64_t chunks;
    _Atomic bool ended;
};

static void *compute(void *arg)
{
    struct computing *c = arg;
    static f16 rows[VALUES];
    int code = 0;
    for (uint64_t n = 0; n < c->chunks && !code; n++) {
        spill_rig_rows(1, n, rows);
        struct segment_view view = {n, n * TINY_CHUNK, (n + 1) * TINY_CHUNK, rows, sizeof rows};
        code = spill_put_wait(c->spill, 1, &view, n + 1, n + 2);
    }
    atomic_store(&c->ended, true);
    return code ? c : NULL;
}

/* Few records a level, some of them on their way: none is merged before it is on the disk. What is
 * there of a stream is looked at while more comes (soak/faults threads: no race). */
static void chunks_come_while_room_is_made(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct computing c = {.spill = h.spill, .chunks = 600};
    struct spill_stat stat;
    uint64_t limit = 42 * h.spill->shape.record_bytes;
    pthread_t thread;
    void *failed;
    spill_limit(h.spill, limit);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, compute, &c), 0);
    while (!atomic_load(&c.ended)) {
        spill_step(h.spill, false);
        spill_stat(h.spill, &stat);
        assert_true(stat.bytes_disk <= limit);
    }
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    spill_drain(h.spill);
    spill_stat(h.spill, &stat);
    assert_int_equal(stat.segments_lost, 0);
    assert_int_equal(stat.last_error, 0);
    assert_int_equal(stat.faults[SEGMENT_MISSING], 0);
    assert_int_equal(stat.segments_dropped, 0);
    for (uint64_t n = 0; n < c.chunks; n++)
        assert_true(has_chunk(h.spill, n));
    spill_rig_close(&h);
}

/* Records of a level that begins anew far behind its last one: what files had grown by between the
 * two, over the end of a file too, is given back. */
static void a_gap_is_given_back(void **state)
{
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    struct spill_range *level = h.spill->streams[0].level;
    struct spill_stat stat;
    uint64_t file = h.spill->file_records, bytes = h.spill->shape.record_bytes;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_rig_put_many(h.spill, 1, 0, file + 2);
    spill_drain(h.spill);
    level[0].from = level[0].to;
    spill_rig_put_many(h.spill, 1, 3 * file + 1, 3 * file + 3);
    spill_drain(h.spill);
    assert_int_equal(level[0].from, 3 * file + 1);
    spill_shrink(h.spill);
    spill_stat(h.spill, &stat);
    assert_in_range(stat.bytes_disk, 2 * bytes, 2 * bytes + 4 * 4096);
    spill_rig_check_disk(stat.bytes_disk);
    assert_int_equal(spill_rig_stat(h.spill, 1).bytes_disk, stat.bytes_disk);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){3 * file + 1, 3 * file + 2}, 2), 3);
    spill_rig_put_many(h.spill, 1, 3 * file + 3, 4 * file + 1);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){3 * file + 1, 4 * file}, 2), 3);
    spill_rig_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_quota_holds),
        cmocka_unit_test(a_limit_comes_down),
        cmocka_unit_test(a_small_quota_of_several_streams),
        cmocka_unit_test(an_odd_first_is_merged_too),
        cmocka_unit_test(what_comes_meanwhile_is_not_lost),
        cmocka_unit_test(what_is_asked_for_is_merged_meanwhile),
        cmocka_unit_test(what_was_merged_is_not_written_again),
        cmocka_unit_test(what_was_merged_comes_back),
        cmocka_unit_test(a_file_is_removed_by_hand),
        cmocka_unit_test(a_closed_file_is_removed_by_hand),
        cmocka_unit_test(chunks_come_while_room_is_made),
        cmocka_unit_test(a_gap_is_given_back),
    };
    return cmocka_run_group_tests_name("spill quota", tests, spill_rig_set_up, spill_rig_tear_down);
}
