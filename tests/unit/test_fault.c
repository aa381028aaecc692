/*
 * The journal on disks that fail: every call of it in turn, in each way, and the power cut at
 * random. What was acked is there, and nothing wrong is served.
 *
 * argv[1] or SILT_SEED: the seed, printed; SILT_ROUNDS: more of the random ones; SILT_STRIDE=1:
 * each call in all ways, else one in five in most (faults_steps shares them among processes).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/rig.h"
#include "tests/unit/vfs_fault.h"

static const struct rig_options options = {.slots = 2, .asks = 1, .lag_tokens_max = 8192};

static struct rig rig;
static uint64_t seed_first = 1, rounds = 40;

static size_t message(uint64_t sequence, char *out, size_t out_bytes)
{
    int n = snprintf(out, out_bytes, "message %" PRIu64 " of a log that somebody wro", sequence);

    return (size_t)n;
}

/* Feeds from where the journal says to `last`, as a client would that tries again `tries` times.
 * Returns the last acked. */
static uint64_t feed_to(uint64_t last, int tries)
{
    uint64_t sequence = 0;

    for (int i = 0; i < tries; i++) {
        const struct ingest_result *result;
        char text[80];

        rig_forget(&rig);
        rig_request(&rig, INGEST_ATTACH, 0, "p");
        rig_settle(&rig);
        result = rig_last(&rig, INGEST_ATTACH);
        if (!result || result->error)
            continue;
        sequence = result->sequence;
        while (sequence < last) {
            rig_forget(&rig);
            rig_text(&rig, 0, "p", sequence + 1, text, message(sequence + 1, text, sizeof text));
            rig_settle(&rig);
            result = rig_last(&rig, INGEST_FEED);
            if (!result || result->error)
                break;
            assert_int_equal(result->sequence, sequence + 1);
            sequence++;
        }
        if (sequence == last)
            break;
    }
    return sequence;
}

/* Opens again on a disk that works: all that was acked is there, and the memory is that of the
 * same text fed to a stream that knew no trouble. */
static void check_after(uint64_t acked, uint64_t last)
{
    uint64_t stored;

    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_request(&rig, INGEST_ATTACH, 0, "p");
    rig_settle(&rig);
    stored = rig_last(&rig, INGEST_ATTACH)->error ? 0 : rig_last(&rig, INGEST_ATTACH)->sequence;
    assert_true(stored >= acked);
    assert_int_equal(feed_to(last, 1), last);
    rig_stream(&rig, 1, "clean", 4);
    rig_settle(&rig);
    for (uint64_t i = 1; i <= last; i++) {
        char text[80];

        rig_text(&rig, 1, "q", i, text, message(i, text, sizeof text));
        if (i % 16 == 0)
            rig_settle(&rig);
    }
    rig_settle(&rig);
    assert_int_equal(atomic_load(&rig.slots[0].bytes_text), atomic_load(&rig.slots[1].bytes_text));
    assert_int_equal(rig_hash(&rig, 0), rig_hash(&rig, 1));
    rig_close(&rig);
}

static bool run_with_fault(uint64_t n, int code, bool for_ever, uint64_t last, uint64_t *acked)
{
    bool was_met;

    *acked = 0;
    vfs_fault_at(n, code, for_ever);
    if (rig_open(&rig, rig_own_folder, &options) == 0) {
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        if (rig.slots[0].stream)
            *acked = feed_to(last, 3);
        rig_close(&rig);
    }
    was_met = vfs_fault_met();
    vfs_fault_mend();
    return was_met;
}

static void each_journal_call_fails(const char *way, int code, bool for_ever, uint64_t stride)
{
    enum { LAST = 12 };
    struct faults_steps steps = faults_steps(stride);
    uint64_t n = steps.from, count = 0, acked;

    while (run_with_fault(n, code, for_ever, LAST, &acked)) {
        if (!for_ever && acked)
            assert_int_equal(acked, LAST); /* one failure: the next try works */
        check_after(acked, LAST);
        rig_folder_drop(rig_own_folder);
        assert_int_equal(mkdir(rig_own_folder, 0700), 0);
        n += steps.stride;
        count++;
    }
    faults_say(&steps, way, count, "calls of the journal");
    assert_int_equal(acked, LAST);
    assert_true(n > 50);
}

static void one_read_or_write_fails(void **state)
{
    (void)state;
    each_journal_call_fails("EIO once", SQLITE_IOERR, false, 1);
}

static void one_read_or_write_is_short(void **state)
{
    (void)state;
    each_journal_call_fails("short once", VFS_SHORT, false, 5);
}

static void one_call_is_late(void **state)
{
    (void)state;
    each_journal_call_fails("late once", VFS_LATE, false, 5);
}

static void the_disk_fails(void **state)
{
    (void)state;
    each_journal_call_fails("EIO from then on", SQLITE_IOERR, true, 5);
}

static void the_disk_is_full(void **state)
{
    (void)state;
    each_journal_call_fails("ENOSPC from then on", SQLITE_FULL, true, 5);
}

/* Full, then not: acks stop, say so, and go on without a restart. */
static void room_comes_back(void **state)
{
    const struct ingest_result *result;

    (void)state;
    if (faults_shared())
        skip();
    vfs_fault_mend();
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    assert_int_equal(feed_to(5, 1), 5);
    vfs_fault_at(1, SQLITE_FULL, true);
    assert_int_equal(feed_to(10, 2), 5);
    result = rig_last(&rig, INGEST_FEED);
    if (result)
        assert_int_equal(result->error, 1 + SILT__V1__ERROR__CODE__NO_SPACE);
    assert_true(atomic_load(&rig.disk_failed));
    vfs_fault_mend();
    assert_int_equal(feed_to(10, 1), 10);
    assert_false(atomic_load(&rig.disk_failed));
    rig_close(&rig);
    check_after(10, 10);
}

/* A batch that could not be stored says of none of its messages that they were: not where they were
 * refused for want of room, behind which an Ack follows, nor where one is missing before them. */
static void what_is_not_stored_is_not_acked(void **state)
{
    uint32_t refused = 0;
    char text[4000];

    (void)state;
    if (faults_shared())
        skip();
    memset(text, 'x', sizeof text);
    for (size_t i = 0; i < sizeof text; i += 2)
        text[i] = ' ';
    vfs_fault_mend();
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    assert_int_equal(feed_to(3, 1), 3);
    rig_forget(&rig);
    for (uint64_t sequence = 4; sequence < 12; sequence++) /* until there is no room */
        rig_text(&rig, 0, "p", sequence, text, sizeof text);
    rig_text(&rig, 0, "p", 20, text, 10);
    vfs_fault_at(1, SQLITE_FULL, true);
    rig_ingest(&rig);
    vfs_fault_mend();
    for (uint32_t i = 0; i < rig.result_count; i++) {
        const struct ingest_result *result = &rig.results[i];

        assert_int_equal(result->kind, INGEST_FEED);
        assert_true(result->error == 1 + SILT__V1__ERROR__CODE__NO_SPACE ||
                    result->error == 1 + SILT__V1__ERROR__CODE__BUSY);
        assert_true(result->sequence == 3 || result->sequence == 0);
        assert_int_equal(result->expected_sequence, 0);
        refused += result->error == 1 + SILT__V1__ERROR__CODE__BUSY;
    }
    assert_true(rig.result_count == 9 && refused > 0);
    rig_close(&rig);
    check_after(3, 3);
}

/* The log is folded into the database behind a commit: where that fails, what was committed was. */
static void the_log_cannot_be_folded_in(void **state)
{
    enum { LAST = 4000, FOLDING_CALLS = 60 };
    uint64_t folded = 0, calls = 0;

    (void)state;
    if (faults_shared())
        skip();
    for (int spoilt = 0; spoilt < 2; spoilt++) {
        vfs_fault_mend();
        rig_folder_drop(rig_own_folder);
        assert_int_equal(mkdir(rig_own_folder, 0700), 0);
        assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        for (uint64_t n = 1; n <= (spoilt ? folded + 3 : LAST); n++) {
            vfs_fault_at(spoilt && n == folded ? calls / 2 : 0, SQLITE_IOERR, false);
            assert_int_equal(feed_to(n, 1), n);
            if (spoilt && n == folded)
                assert_true(vfs_fault_met());
            if (spoilt)
                continue;
            calls = vfs_fault_calls();
            folded = n;
            if (calls > FOLDING_CALLS)
                break;
        }
        rig_close(&rig);
    }
    assert_true(calls > FOLDING_CALLS);
    check_after(folded + 3, folded + 3);
}

/* Writes that were not synced are lost, kept or torn. */
static void the_power_goes(void **state)
{
    (void)state;
    if (faults_shared())
        skip();
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t seed = seed_first * 1000 + round, last = 3 + faults_random(&seed) % 40, acked;

        rig_folder_drop(rig_own_folder);
        assert_int_equal(mkdir(rig_own_folder, 0700), 0);
        assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        acked = feed_to(last, 1);
        if (faults_random(&seed) % 2) { /* in the middle of a commit */
            char text[80];

            vfs_fault_at(1 + faults_random(&seed) % 6, SQLITE_IOERR, true);
            rig_text(&rig, 0, "p", acked + 1, text, message(acked + 1, text, sizeof text));
            rig_settle(&rig);
        }
        vfs_fault_cut(faults_random(&seed));
        rig_close(&rig);
        vfs_fault_mend();
        {
            char path[96];

            snprintf(path, sizeof path, "%s/journal.db-shm", rig_own_folder);
            unlink(path); /* shared memory does not outlive the power */
        }
        check_after(acked, last + 5);
    }
    print_message("power cuts: %" PRIu64 " from seed %" PRIu64 ", acked and lost: 0\n", rounds,
                  seed_first);
}

/* A call fails, all goes on, then the power goes: what failed has left nothing behind that a cut
 * shows, such as a witness of more of the log than there is. */
static void a_call_fails_and_then_the_power_goes(void **state)
{
    enum { LAST = 12 };
    struct faults_steps steps = faults_steps(1);
    uint64_t count = 0, acked, cuts = 2;
    bool met = true;
    char path[96];

    (void)state;
    for (uint64_t n = steps.from; met; n += steps.stride) {
        for (uint64_t seed = 0; seed < cuts; seed++) {
            rig_folder_drop(rig_own_folder);
            assert_int_equal(mkdir(rig_own_folder, 0700), 0);
            assert_false(run_with_fault(0, 0, false, LAST / 2, &acked));
            vfs_fault_at(n, SQLITE_IOERR, false);
            if (rig_open(&rig, rig_own_folder, &options) == 0) {
                rig_stream(&rig, 0, "a", 4);
                rig_settle(&rig);
                if (rig.slots[0].stream)
                    acked = feed_to(LAST / 2 + 1 + seed, 3) > acked ? LAST / 2 + 1 + seed : acked;
                met = vfs_fault_met();
                vfs_fault_cut(seed_first * 1000 + n * cuts + seed);
                rig_close(&rig);
            }
            vfs_fault_mend();
            snprintf(path, sizeof path, "%s/journal.db-shm", rig_own_folder);
            unlink(path);
            check_after(acked, LAST);
        }
        count += met;
    }
    faults_say(&steps, "EIO, then a power cut", count, "calls of the journal");
}

/* The canary: where syncs do nothing, the same cuts must lose something, or these tests are blind.
 */
static void a_disk_that_lies_is_found_out(void **state)
{
    int found = 0;

    (void)state;
    if (faults_shared())
        skip();
    for (uint64_t round = 0; round < 10; round++) {
        uint64_t acked, stored = 0;

        rig_folder_drop(rig_own_folder);
        assert_int_equal(mkdir(rig_own_folder, 0700), 0);
        vfs_fault_lie(true);
        assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        acked = feed_to(20, 1);
        vfs_fault_cut(seed_first * 77 + round);
        rig_close(&rig);
        vfs_fault_lie(false);
        vfs_fault_mend();
        if (rig_open(&rig, rig_own_folder, &options) == 0) {
            uint64_t bytes;
            struct journal_stream stream;

            if (journal_stream_find(rig.journal, "a", &stream) == 0)
                journal_producer_get(rig.journal, stream.id, "p", &stored, &bytes);
            rig_close(&rig);
        }
        found += stored < acked;
    }
    assert_true(found > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        rig_folder_test(one_read_or_write_fails),
        rig_folder_test(one_read_or_write_is_short),
        rig_folder_test(one_call_is_late),
        rig_folder_test(the_disk_fails),
        rig_folder_test(the_disk_is_full),
        rig_folder_test(room_comes_back),
        rig_folder_test(what_is_not_stored_is_not_acked),
        rig_folder_test(the_log_cannot_be_folded_in),
        rig_folder_test(the_power_goes),
        rig_folder_test(a_call_fails_and_then_the_power_goes),
        rig_folder_test(a_disk_that_lies_is_found_out),
    };

    seed_first = argc > 1 ? strtoull(argv[1], NULL, 10) : faults_number("SILT_SEED", seed_first);
    rounds = faults_number("SILT_ROUNDS", rounds);
    vfs_fault_install();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
