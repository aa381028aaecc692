/* What the journal says of the arithmetic that its streams were computed with, and of changes that
 * clients may ask for again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/changes.h"
#include "daemon/journal_branch.h"
#include "tests/unit/rig.h"

static char folder[128];

static uint64_t epoch_of(const char *kernels_name, uint32_t kernels_revision)
{
    const struct journal_options options = {.folder = folder,
                                            .model_name = "tiny",
                                            .kernels_name = kernels_name,
                                            .kernels_revision = kernels_revision};
    struct journal *journal;
    char error[ERROR_BYTES_MAX];
    uint64_t epoch;

    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    epoch = journal_epoch(journal);
    journal_close(&journal);
    return epoch;
}

static void other_bits_are_another_epoch(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    assert_int_equal(epoch_of("avx2", 1), 1);
    assert_int_equal(epoch_of("avx2", 1), 1);
    assert_int_equal(epoch_of("avx512", 1), 2);
    assert_int_equal(epoch_of("avx512", 2), 3);
    assert_int_equal(epoch_of("avx512", 2), 3);
    assert_int_equal(epoch_of("avx512", 1), 4);
    rig_folder_drop(folder);
}

static struct changes changes;

/* Changes [from, to) of a transaction of their own, kept or not; what a start knows then. */
static void change(uint64_t from, uint64_t to, bool keep)
{
    const struct journal_options options = {
        .folder = folder, .model_name = "tiny", .kernels_name = "avx2"};
    struct journal *journal;
    char error[ERROR_BYTES_MAX];

    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    assert_int_equal(journal_begin(journal), 0);
    for (uint64_t key = from; key < to; key++)
        assert_int_equal(journal_change_add(journal, key, 10 * key), 0);
    if (keep)
        assert_int_equal(journal_commit(journal), 0);
    else
        journal_rollback(journal);
    changes = (struct changes){0};
    assert_int_equal(changes_load(&changes, journal), 0);
    journal_close(&journal);
}

static void the_newest_changes_are_known(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    change(1, CHANGES_MAX + 1, true);
    assert_true(changes_find(&changes, 1)->done && changes_find(&changes, 1)->tokens == 10);
    change(CHANGES_MAX + 1, CHANGES_MAX + 7, false);
    assert_null(changes_find(&changes, CHANGES_MAX + 1));
    change(UINT64_MAX - 6, UINT64_MAX, true);
    assert_null(changes_find(&changes, 6));
    assert_non_null(changes_find(&changes, 7));
    assert_true(changes_find(&changes, UINT64_MAX - 6)->done);
    assert_null(changes_find(&changes, 0));
    /* On its way, refused, then done. */
    changes_begin(&changes, 5000);
    assert_false(changes_find(&changes, 5000)->done);
    assert_null(changes_find(&changes, 7));
    changes_end(&changes, 5000, false, 0);
    assert_null(changes_find(&changes, 5000));
    changes_end(&changes, 5000, true, 3);
    assert_true(changes_find(&changes, 5000)->done && changes_find(&changes, 5000)->tokens == 3);
    rig_folder_drop(folder);
}

/* Whoever has one key pushes its own out, not others'. */
static void a_key_s_changes_are_bounded(void **state)
{
    uint64_t one = changes_key(7, "one"), two = changes_key(1, "two"), local = changes_key(7, "");

    (void)state;
    assert_int_equal(changes_key(0, "one"), 0);
    assert_true(one != changes_key(7, "two") && one != local && one == changes_key(7, "one"));
    rig_folder(folder, sizeof folder);
    change(local, local + 3, true);
    change(one, one + 5, true);
    for (uint64_t from = 0; from < 3 * CHANGES_MAX; from += CHANGES_MAX)
        change(two + from, two + from + CHANGES_MAX, true);
    for (int i = 0; i < 2; i++) { /* of the journal, then of this start's requests */
        for (uint64_t n = 0; n < 5; n++)
            assert_true(changes_find(&changes, one + n)->done);
        assert_non_null(changes_find(&changes, local));
        assert_null(changes_find(&changes, two + 3 * CHANGES_MAX - CHANGES_OF_KEY_MAX - 1));
        assert_non_null(changes_find(&changes, two + 3 * CHANGES_MAX - CHANGES_OF_KEY_MAX));
        for (uint64_t n = 0; n < 3 * CHANGES_MAX; n++)
            changes_end(&changes, two + n, true, 1);
    }
    rig_folder_drop(folder);
}

/* As SQLite takes it back by itself where the disk fails under a statement of it. */
static void nothing_is_stored_behind_a_lost_transaction(void **state)
{
    const struct journal_options options = {
        .folder = folder, .model_name = "tiny", .kernels_name = "avx2"};
    struct journal_stream first = {.name = "first"}, second = {.name = "second"}, found;
    struct journal_item item = {.item = {ITEM_TEXT, 0, (const uint8_t *)"text", 4}};
    struct journal *journal;
    char error[ERROR_BYTES_MAX];

    (void)state;
    rig_folder(folder, sizeof folder);
    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_stream_create(journal, &first), 0);
    assert_int_equal(sqlite3_exec(journal_db(journal), "ROLLBACK", NULL, NULL, NULL), 0);
    assert_int_equal(journal_item_append(journal, first.id, 0, &item), -EIO);
    assert_int_equal(journal_stream_create(journal, &second), -EIO);
    assert_int_equal(journal_change_add(journal, 1, 1), -EIO);
    assert_int_equal(journal_mark(journal), -EIO);
    assert_int_equal(journal_stream_create(journal, &second), -EIO);
    assert_int_not_equal(journal_commit(journal), 0);
    journal_rollback(journal);
    journal_close(&journal);
    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    assert_int_equal(journal_stream_find(journal, "first", &found), -ENOENT);
    assert_int_equal(journal_stream_find(journal, "second", &found), -ENOENT);
    assert_int_equal(journal_item_get(journal, first.id, 0, &item), -ENOENT);
    journal_close(&journal);
    rig_folder_drop(folder);
}

/* More of it than SQLite may hold in memory, in bytes and in items. */
static void however_much_is_shared_is_parted_and_goes(void **state)
{
    enum { LARGE = 40, ITEMS = 150000, BYTES = 100000, HEAP = 3 << 20 };
    const struct journal_options options = {
        .folder = folder, .model_name = "tiny", .kernels_name = "avx2"};
    struct journal_stream stream = {.name = "a"}, branch = {.name = "b"};
    static uint8_t text[BYTES];
    struct journal_item item = {.item = {ITEM_TEXT, 0, text, BYTES}};
    struct journal *journal;
    char error[ERROR_BYTES_MAX];

    (void)state;
    rig_folder(folder, sizeof folder);
    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    sqlite3_hard_heap_limit64(HEAP);
    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_stream_create(journal, &stream), 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        item.token_from = i;
        item.item.bytes_count = i < LARGE ? BYTES : 1;
        memset(text, (int)i, item.item.bytes_count);
        assert_int_equal(journal_item_append(journal, stream.id, i, &item), 0);
    }
    stream.items = ITEMS;
    assert_int_equal(journal_stream_update(journal, &stream), 0);
    assert_int_equal(journal_stream_branch(journal, stream.id, &branch), 0);
    assert_int_equal(journal_commit(journal), 0);
    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_stream_part(journal, stream.id), 0);
    assert_int_equal(journal_commit(journal), 0);
    assert_false(journal_stream_shares(journal, stream.id));
    assert_int_equal(journal_stream_remove(journal, stream.id), -EIO); /* in no transaction */
    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_stream_remove(journal, stream.id), 0);
    assert_int_equal(journal_commit(journal), 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        assert_int_equal(journal_item_get(journal, branch.id, i, &item), 0);
        assert_int_equal(item.token_from, i);
        assert_int_equal(item.item.bytes_count, i < LARGE ? BYTES : 1);
        memset(text, (int)i, item.item.bytes_count);
        assert_memory_equal(item.item.bytes, text, item.item.bytes_count);
    }
    assert_int_equal(journal_item_get(journal, branch.id, ITEMS, &item), -ENOENT);
    journal_close(&journal);
    rig_folder_drop(folder);
}

/* More than SQLite may hold in memory: one a minute makes half a million a year. */
static void however_many_producers_come_with_a_branch(void **state)
{
    enum { PRODUCERS = 100000, HEAP = 4 << 20 };
    const struct journal_options options = {
        .folder = folder, .model_name = "tiny", .kernels_name = "avx2"};
    struct journal_stream stream = {.name = "a"}, branch = {.name = "b"};
    struct journal *journal;
    char error[ERROR_BYTES_MAX], name[PRODUCER_BYTES_MAX];
    uint64_t sequence, bytes;

    (void)state;
    rig_folder(folder, sizeof folder);
    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    sqlite3_hard_heap_limit64(HEAP);
    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_stream_create(journal, &stream), 0);
    for (uint64_t i = 0; i < PRODUCERS; i++) {
        snprintf(name, sizeof name, "producer of a minute %llu", (unsigned long long)i);
        assert_int_equal(journal_producer_set(journal, stream.id, name, i + 1, 2 * i), 0);
    }
    assert_int_equal(journal_mark(journal), 0);
    assert_int_equal(journal_stream_branch(journal, stream.id, &branch), 0);
    assert_int_equal(journal_keep(journal), 0);
    assert_int_equal(journal_commit(journal), 0);
    for (uint64_t i = 0; i < PRODUCERS; i++) {
        snprintf(name, sizeof name, "producer of a minute %llu", (unsigned long long)i);
        assert_int_equal(journal_producer_get(journal, branch.id, name, &sequence, &bytes), 0);
        assert_int_equal(sequence, i + 1);
        assert_int_equal(bytes, 2 * i);
    }
    journal_close(&journal);
    rig_folder_drop(folder);
}

/* The log as a crash leaves it. */
static void expect_after_a_crash(uint64_t stream, uint64_t items)
{
    struct journal_options options = {.model_name = "tiny", .kernels_name = "avx2"};
    struct journal_item item;
    struct journal *journal;
    char error[ERROR_BYTES_MAX], other[128], command[700];

    rig_folder(other, sizeof other);
    snprintf(command, sizeof command, "cp %s/journal.db* %s && rm -f %s/*-shm", folder, other,
             other);
    assert_int_equal(system(command), 0);
    options.folder = other;
    if (journal_open(&journal, &options, error, sizeof error))
        fail_msg("%s", error);
    for (uint64_t i = 0; i <= items; i++)
        assert_int_equal(journal_item_get(journal, stream, i, &item), i < items ? 0 : -ENOENT);
    journal_close(&journal);
    rig_folder_drop(other);
}

/* More than the cache holds is taken back: what is committed behind that is there after a crash, or
 * it is not committed. */
static void what_follows_a_large_part_taken_back_is_kept(void **state)
{
    const struct journal_options options = {
        .folder = folder, .model_name = "tiny", .kernels_name = "avx2"};
    struct journal_item item = {.item = {ITEM_TEXT, 0, (const uint8_t *)"text", 4}};
    struct journal_stream stream = {.name = "a"};
    struct journal *journal;
    char error[ERROR_BYTES_MAX], name[PRODUCER_BYTES_MAX];
    uint64_t seed = 3, items = 0;

    (void)state;
    rig_folder(folder, sizeof folder);
    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_stream_create(journal, &stream), 0);
    assert_int_equal(journal_commit(journal), 0);
    for (int producers = 10; producers <= 100000; producers *= 100) {
        int result;

        assert_int_equal(journal_begin(journal), 0);
        assert_int_equal(journal_mark(journal), 0);
        for (int i = 0; i < producers; i++) {
            snprintf(name, sizeof name, i < producers / 2 ? "in order %09llu" : "producer %llu",
                     i < producers / 2 ? (unsigned long long)i
                                       : (unsigned long long)faults_random(&seed));
            assert_int_equal(journal_producer_set(journal, stream.id, name, 1, 1), 0);
        }
        result = journal_take_back(journal);
        if (!result)
            result = journal_item_append(journal, stream.id, items, &item);
        result = result ? result : journal_commit(journal);
        journal_rollback(journal);
        items += !result;
        assert_true(items || producers > 10);
        expect_after_a_crash(stream.id, items);
    }
    journal_close(&journal);
    rig_folder_drop(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_bits_are_another_epoch),
        cmocka_unit_test(the_newest_changes_are_known),
        cmocka_unit_test(a_key_s_changes_are_bounded),
        cmocka_unit_test(nothing_is_stored_behind_a_lost_transaction),
        cmocka_unit_test(however_much_is_shared_is_parted_and_goes),
        cmocka_unit_test(what_follows_a_large_part_taken_back_is_kept),
        cmocka_unit_test(however_many_producers_come_with_a_branch)};
    return cmocka_run_group_tests_name("journal", tests, NULL, NULL);
}
