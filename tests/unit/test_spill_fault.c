/* Cold segments on a disk that fails, each operation in each way: what is fetched is right, what is
 * lost is counted, and the store goes on. SILT_STRIDE=1: each operation of merging too
 * (faults_steps shares them among processes). */
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
#include "tests/unit/faults.h"
#include "tests/unit/spill_rig.h"

static void check_after(struct held *h, enum disk_fault_kind kind, uint32_t at, uint32_t run)
{
    struct spill_stat stat;
    uint32_t right = 0, least = 12 - run - 1;
    for (uint64_t n = 0; n < 12; n += 4)
        right += (uint32_t)__builtin_popcount(
            spill_rig_fetch(h->spill, 1, (uint64_t[]){n, n + 1, n + 2, n + 3}, 4));
    spill_stat(h->spill, &stat);
    uint64_t found = 0;
    for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
        found += stat.faults[i];
    /* Whatever happened: at most the records of one write and one beside them suffer, and each of
     * them is counted; of several whose write was refused, none. */
    if (run > 1 && kind != FAULT_NONE && kind < FAULT_LOST)
        least = 12;
    if (right < least || right + found < 12)
        fail_msg("%s of operation %u, %u a write: %u segments right, %llu faults",
                 disk_fault_name(kind), at, run, right, (unsigned long long)found);
}

/* One run with the at-th operation of a kind spoilt, `run` segments a write. False: it came to
 * fewer. */
static bool operation_fails(enum disk_fault_kind kind, enum disk_kind of, uint32_t at, uint32_t run)
{
    struct disk_fault fault;
    spill_rig_clear();
    struct held h = spill_rig_open(at & 1, SEGMENT_F16);
    disk_fault_init(&fault, &h.spill->disk, h.spill->shape.record_bytes);
    disk_fault_set(&fault, kind, of, at);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t n = 0; n < 12; n += run) {
        spill_rig_put_many(h.spill, 1, n, n + run);
        spill_drain(h.spill);
    }
    check_after(&h, of == DISK_READ ? FAULT_NONE : kind, at, run);
    bool met = fault.count >= at;
    disk_fault_set(&fault, FAULT_NONE, DISK_READ, 0);
    spill_rig_put_many(h.spill, 1, 0, 14);
    spill_drain(h.spill);
    assert_int_equal(spill_rig_fetch(h.spill, 1, (uint64_t[]){0, 3, 6, 9, 11, 12, 13}, 7), 127);
    spill_rig_close(&h);
    return met;
}

static void every_operation_may_fail(void **state)
{
    (void)state;
    if (faults_shared())
        skip();
    for (uint32_t run = 1; run <= STAGING; run += STAGING - 1) {
        uint32_t count[3] = {0};
        for (enum disk_fault_kind kind = FAULT_EIO; kind < FAULT_KINDS; kind++)
            for (enum disk_kind of = DISK_READ; of <= DISK_SYNC; of++) {
                uint32_t at = 1;
                while (operation_fails(kind, of, at, run))
                    at++;
                count[of] = at - 1;
            }
        print_message("%u a write: %d ways of each of %u reads, %u writes and %u syncs\n", run,
                      FAULT_KINDS - 1, count[DISK_READ], count[DISK_WRITE], count[DISK_SYNC]);
        assert_true(count[DISK_READ] >= 12);
        assert_int_equal(count[DISK_WRITE], 12 / run);
    }
}

static bool is_right(struct spill *s, uint64_t chunk)
{
    struct spill_fetch *f;
    struct cold_segment out[STREAM_RECALL_MAX];
    assert_int_equal(spill_fetch(s, 1, &chunk, 1, &f), 0);
    while (!spill_fetched(f))
        spill_step(s, true);
    uint32_t count = spill_segments(f, out);
    spill_release(&f);
    return count == 1;
}

/* One spoilt operation costs no more than it must. What a read or a sync got wrong is there still;
 * a write that is said to have failed is made again, but for a segment's first; one that was
 * silently spoilt costs the records it held, and one beside them where it went astray. */
static void check_lost(struct held *h, enum disk_fault_kind kind, enum disk_kind of, uint32_t at)
{
    uint64_t count = 0, first = 0, last = 0, end = spill_rig_stat(h->spill, 1).chunks_to, most;
    uint32_t level = SEGMENT_LEVELS - 1;
    for (uint64_t n = spill_rig_stat(h->spill, 1).chunks_from; n < end; n++) {
        if (is_right(h->spill, n))
            continue;
        first = count++ ? first : n;
        last = n;
    }
    while (level && first >> level >= h->spill->streams[0].level[level].to)
        level--;
    most = spill_unit(h->spill) / 2 + 1;
    most = of != DISK_WRITE ? 0 : kind < FAULT_LOST ? 1 : most << level;
    if (count && last - first >= most)
        fail_msg("%s of operation %u (kind %d): %llu lost, from %llu to %llu",
                 disk_fault_name(kind), at, of, (unsigned long long)count,
                 (unsigned long long)first, (unsigned long long)last);
}

static bool merge_fails(enum disk_fault_kind kind, enum disk_kind of, uint32_t at)
{
    struct disk_fault fault;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    disk_fault_init(&fault, &h.spill->disk, h.spill->shape.record_bytes);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_limit(h.spill, 120 * h.spill->shape.record_bytes);
    disk_fault_set(&fault, kind, of, at);
    spill_rig_put_many(h.spill, 1, 0, 240);
    spill_drain(h.spill);
    bool met = fault.count >= at;
    disk_fault_set(&fault, FAULT_NONE, DISK_READ, 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_to, 240);
    assert_true(spill_rig_stat(h.spill, 1).bytes_disk <= 120 * h.spill->shape.record_bytes);
    check_lost(&h, kind, of, at);
    spill_rig_close(&h);
    return met;
}

static void merging_may_fail(void **state)
{
    static const char *const what[] = {"reads of merging", "writes of merging", "syncs of merging"};
    struct faults_steps steps = faults_steps(61);
    (void)state;
    for (enum disk_fault_kind kind = FAULT_EIO; kind < FAULT_KINDS; kind++)
        for (enum disk_kind of = DISK_READ; of <= DISK_SYNC; of++) {
            uint32_t count = 0;
            while (merge_fails(kind, of, (uint32_t)(steps.from + count * steps.stride)))
                count++;
            faults_say(&steps, disk_fault_name(kind), count, what[of]);
            assert_true(count > 0);
        }
}

enum { BAD = 3, LIMIT = 120, PUT = 240 };

/* Record BAD of level 1 cannot be written, ever. */
static bool is_bad_place(void *user, const struct disk_op *op)
{
    const struct spill *s = user;
    const struct spill_file *file = &s->files[op->file];
    uint64_t at = BAD * s->shape.record_bytes;
    return op->kind == DISK_WRITE && file->level == 1 && file->number == 0 && op->offset <= at &&
           op->offset + op->count > at;
}

static bool is_write(void *user, const struct disk_op *op)
{
    (void)user;
    return op->kind == DISK_WRITE;
}

static void a_bad_place_costs_its_mean(void **state)
{
    struct disk_fault fault;
    uint64_t lost = 0;
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    disk_fault_init(&fault, &h.spill->disk, h.spill->shape.record_bytes);
    fault.bad = is_bad_place;
    fault.bad_user = h.spill;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_limit(h.spill, LIMIT * h.spill->shape.record_bytes);
    for (uint64_t n = 0; n < PUT; n += STAGING) {
        spill_rig_put_many(h.spill, 1, n, n + STAGING);
        spill_drain(h.spill);
    }
    assert_int_equal(spill_rig_stat(h.spill, 1).segments_lost, 0);
    assert_int_equal(spill_rig_stat(h.spill, 1).chunks_from, 0);
    for (uint64_t n = 0; n < PUT; n++)
        if (!is_right(h.spill, n)) {
            assert_int_equal(n / 2, BAD);
            lost++;
        }
    assert_true(lost <= 2);
    assert_true(spill_rig_stat(h.spill, 1).bytes_disk <= LIMIT * h.spill->shape.record_bytes);
    spill_rig_close(&h);
}

static void a_disk_that_takes_nothing_keeps_what_it_has(void **state)
{
    struct disk_fault fault;
    uint64_t right = 0;
    (void)state;
    spill_rig_clear();
    struct held h = spill_rig_open(false, SEGMENT_F16);
    disk_fault_init(&fault, &h.spill->disk, h.spill->shape.record_bytes);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    spill_limit(h.spill, LIMIT * h.spill->shape.record_bytes);
    for (uint64_t n = 0; n < PUT; n += STAGING) {
        fault.bad = n < PUT / 2 ? NULL : is_write;
        spill_rig_put_many(h.spill, 1, n, n + STAGING);
        spill_drain(h.spill);
    }
    for (uint64_t n = 0; n < PUT / 2; n++)
        right += is_right(h.spill, n);
    print_message("%u before the disk failed: %u right\n", PUT / 2, (uint32_t)right);
    assert_true(right >= PUT / 2 - SPILL_FILE_RECORDS);
    spill_rig_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_operation_may_fail),
        cmocka_unit_test(merging_may_fail),
        cmocka_unit_test(a_bad_place_costs_its_mean),
        cmocka_unit_test(a_disk_that_takes_nothing_keeps_what_it_has),
    };
    return cmocka_run_group_tests_name("spill_fault", tests, spill_rig_set_up, spill_rig_tear_down);
}
