/*
 * The journal part with the compute part behind it: numbering, marks, credit, replay, checkpoints.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/pages.h"
#include "tests/unit/rig.h"

static const struct rig_options plain = {.slots = 2, .asks = 1, .lag_tokens_max = 8192};
static const struct rig_options saving = {
    .slots = 2, .asks = 1, .lag_tokens_max = 8192, .checkpoints = true};

static struct rig rig;
static char folder[64];

static int set_up(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    return rig_open(&rig, folder, &plain);
}

static int tear_down(void **state)
{
    (void)state;
    rig_close(&rig);
    rig_folder_drop(folder);
    return 0;
}

/* Words, digits, spaces and some bytes that are not UTF-8. */
static void fill_text(uint8_t *text, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i++) {
        uint64_t r = faults_random(&seed);

        text[i] = r % 7 == 0    ? ' '
                  : r % 61 == 0 ? '\n'
                  : r % 97 == 0 ? (uint8_t)(0x80 + r % 128)
                                : (uint8_t)('a' + r % 26);
    }
}

static Silt__V1__Error__Code code_of(const struct ingest_result *result)
{
    assert_non_null(result);
    assert_int_not_equal(result->error, 0);
    return (Silt__V1__Error__Code)(result->error - 1);
}

static void numbers_are_kept(void **state)
{
    const struct ingest_result *ack;

    (void)state;
    assert_int_equal(rig_stream(&rig, 0, "a", 4), 0);
    rig_text(&rig, 0, "p", 1, "one ", 4);
    rig_text(&rig, 0, "p", 2, "two ", 4);
    rig_settle(&rig);
    ack = rig_last(&rig, INGEST_FEED);
    assert_int_equal(ack->error, 0);
    assert_int_equal(ack->sequence, 2);
    assert_int_equal(ack->bytes_acked, 8);
    rig_forget(&rig);
    rig_text(&rig, 0, "p", 1, "one ", 4);
    rig_settle(&rig);
    ack = rig_last(&rig, INGEST_FEED);
    assert_int_equal(ack->error, 0);
    assert_int_equal(ack->sequence, 2);
    assert_int_equal(atomic_load(&rig.slots[0].bytes_text), 8);
    rig_text(&rig, 0, "p", 4, "four ", 5);
    rig_settle(&rig);
    ack = rig_last(&rig, INGEST_FEED);
    assert_int_equal(code_of(ack), SILT__V1__ERROR__CODE__GAP);
    assert_int_equal(ack->expected_sequence, 3);
    assert_non_null(strstr(ack->message, "expected sequence 3"));
    rig_request(&rig, INGEST_ATTACH, 0, "p");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_ATTACH)->sequence, 2);
    rig_request(&rig, INGEST_ATTACH, 0, "new");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_ATTACH)->sequence, 0);
}

/* A repeat in the very batch of its original is one too. */
static void repeats_in_one_batch(void **state)
{
    (void)state;
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    rig_forget(&rig);
    rig_text(&rig, 0, "p", 1, "one ", 4);
    rig_text(&rig, 0, "p", 1, "one ", 4);
    rig_text(&rig, 0, "p", 3, "three ", 6);
    rig_ingest(&rig);
    assert_int_equal(rig.result_count, 3);
    assert_int_equal(rig.results[1].error, 0);
    assert_int_equal(rig.results[1].sequence, 1);
    assert_int_equal(code_of(&rig.results[2]), SILT__V1__ERROR__CODE__GAP);
    assert_int_equal(atomic_load(&rig.slots[0].bytes_text), 4);
}

/* The memory is the text's, however it was cut into messages and items. */
static void cuts_do_not_matter(void **state)
{
    enum { BYTES = 3000 };
    static uint8_t text[BYTES];
    uint64_t seed = 5, sequence = 1, hash;
    size_t at = 0;

    (void)state;
    fill_text(text, BYTES, 1);
    rig_stream(&rig, 0, "whole", 4);
    rig_stream(&rig, 1, "cut", 4);
    rig_text(&rig, 0, "p", 1, text, BYTES);
    while (at < BYTES) {
        rig_feed_begin(&rig, 1, "p", sequence++);
        for (uint64_t items = 1 + faults_random(&seed) % 3; items && at < BYTES; items--) {
            size_t n = 1 + faults_random(&seed) % 23;

            n = n < BYTES - at ? n : BYTES - at;
            rig_item(&rig, ITEM_TEXT, 0, text + at, n);
            at += n;
        }
        rig_push(&rig);
        if (faults_random(&seed) % 4 == 0)
            rig_settle(&rig);
    }
    rig_settle(&rig);
    assert_int_equal(atomic_load(&rig.slots[0].tokens_acked),
                     atomic_load(&rig.slots[1].tokens_acked));
    assert_int_equal(slot_lag(&rig.slots[1]), 0);
    hash = rig_hash(&rig, 0);
    assert_int_not_equal(hash, 0);
    assert_int_equal(rig_hash(&rig, 1), hash);
}

static void marks_flush_and_turns_part(void **state)
{
    uint64_t before;

    (void)state;
    rig_stream(&rig, 0, "a", 4);
    rig_text(&rig, 0, "p", 1, "half a wo", 9);
    rig_settle(&rig);
    before = atomic_load(&rig.slots[0].tokens_acked);
    rig_feed_begin(&rig, 0, "p", 2);
    rig_item(&rig, ITEM_MARK, MARK_FLUSH, NULL, 0);
    rig_push(&rig);
    rig_settle(&rig);
    assert_true(atomic_load(&rig.slots[0].tokens_acked) > before);
    before = atomic_load(&rig.slots[0].tokens_acked);
    rig_feed_begin(&rig, 0, "p", 3);
    rig_item(&rig, ITEM_TURN, ROLE_USER, "Hello", 5);
    rig_item(&rig, ITEM_TOKENS, 0, (int32_t[]){5, 6, 7}, 12);
    rig_push(&rig);
    rig_settle(&rig);
    assert_true(atomic_load(&rig.slots[0].tokens_acked) > before + 3 + 2);
    /* Another producer's text never joins what waits. */
    rig_text(&rig, 0, "p", 4, "wo", 2);
    rig_settle(&rig);
    before = atomic_load(&rig.slots[0].tokens_acked);
    rig_text(&rig, 0, "q", 1, "rd", 2);
    rig_settle(&rig);
    assert_true(atomic_load(&rig.slots[0].tokens_acked) > before);
}

static void lag_is_bounded(void **state)
{
    static uint8_t text[30000];
    const struct ingest_result *last;
    uint64_t sequence = 0;

    (void)state;
    fill_text(text, sizeof text, 3);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    rig_text(&rig, 0, "p", 1, text, sizeof text);
    rig_ingest(&rig);
    assert_int_equal(code_of(rig_last(&rig, INGEST_FEED)), SILT__V1__ERROR__CODE__TOO_LARGE);
    do { /* nobody computes */
        rig_text(&rig, 0, "p", ++sequence, text, 2000);
        rig_ingest(&rig);
        last = rig_last(&rig, INGEST_FEED);
        assert_true(slot_lag(&rig.slots[0]) <= plain.lag_tokens_max);
    } while (!last->error);
    assert_int_equal(code_of(last), SILT__V1__ERROR__CODE__BUSY);
    assert_int_equal(last->sequence, sequence - 1);
    assert_int_equal(last->credit_tokens, 0);
    assert_int_equal(atomic_load(&rig.slots[0].bytes_text), (sequence - 1) * 2000);
    assert_int_equal(rig.credits, 0);
    rig_settle(&rig);
    assert_int_equal(rig.credits, 1);
    rig_text(&rig, 0, "p", sequence, text, 2000);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
}

/* Who feeds a stream that nobody will compute is not told to wait. */
static void a_stream_that_failed_is_said(void **state)
{
    static uint8_t text[2000];
    const struct ingest_result *last;
    uint64_t sequence = 0;

    (void)state;
    fill_text(text, sizeof text, 3);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    sched_fail_stream(&rig.slots[0], -EIO);
    do {
        rig_text(&rig, 0, "p", ++sequence, text, sizeof text);
        rig_settle(&rig);
        last = rig_last(&rig, INGEST_FEED);
    } while (!last->error && sequence < 100);
    assert_true(sequence > 1); /* its journal goes on */
    assert_int_equal(code_of(last), SILT__V1__ERROR__CODE__INTERNAL);
    assert_non_null(strstr(last->message, "restart siltd"));
}

/* --disk: what a measurement of the folder has left room for is taken, and then no more. */
static void growth_is_bounded_by_the_grant(void **state)
{
    static uint8_t text[4096];
    _Atomic uint64_t grant = pages_grown() + (256 << 10);
    const struct ingest_result *last;
    uint64_t sequence = 0;

    (void)state;
    fill_text(text, sizeof text, 3);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    rig.ingest.disk_grant = &grant;
    do {
        rig_text(&rig, 0, "p", ++sequence, text, sizeof text);
        rig_settle(&rig);
        last = rig_last(&rig, INGEST_FEED);
        assert_true(pages_grown() < atomic_load(&grant) + (64 << 10)); /* one commit past it */
    } while (!last->error);
    assert_int_equal(code_of(last), SILT__V1__ERROR__CODE__BUSY);
    assert_true(sequence > 2);
    atomic_store(&grant, pages_grown() + 1); /* however little there is: a message goes */
    rig_text(&rig, 0, "p", sequence, text, sizeof text);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
}

/* Feeds `bytes` of the text of `seed` in messages of about 500, with turns and marks between. */
static uint64_t feed_mixture(uint32_t slot, uint64_t first, size_t bytes, uint64_t seed)
{
    uint8_t text[600];
    uint64_t sequence = first;

    for (size_t at = 0; at < bytes; at += 500) {
        size_t n = 1 + faults_random(&seed) % 599;

        fill_text(text, n, seed + at);
        rig_feed_begin(&rig, slot, "p", sequence++);
        rig_item(&rig, ITEM_TEXT, 0, text, n);
        if (faults_random(&seed) % 5 == 0)
            rig_item(&rig, ITEM_TURN, ROLE_ASSISTANT, "I see.", 6);
        if (faults_random(&seed) % 5 == 0)
            rig_item(&rig, ITEM_TOKENS, 0, (int32_t[]){9, 8, 7, 6}, 16);
        if (faults_random(&seed) % 7 == 0)
            rig_item(&rig, ITEM_MARK, MARK_FLUSH, NULL, 0);
        rig_push(&rig);
        rig_settle(&rig);
        assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
        rig_forget(&rig);
    }
    return sequence;
}

static void a_crash_and_replay_change_nothing(void **state)
{
    uint64_t next, hash, tokens;

    (void)state;
    rig_stream(&rig, 0, "a", 4);
    next = feed_mixture(0, 1, 8000, 11);
    rig_stream(&rig, 1, "b", 4);
    feed_mixture(1, 1, 8000, 11);
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &plain), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_stream(&rig, 1, "b", 4);
    rig_settle(&rig);
    assert_int_equal(rig_hash(&rig, 0), rig_hash(&rig, 1));
    /* The text that waited goes on where it was, also when it is fed before the replay is done. */
    feed_mixture(1, next, 4000, 99);
    tokens = atomic_load(&rig.slots[1].tokens_acked);
    hash = rig_hash(&rig, 1);
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &plain), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_ingest(&rig);
    feed_mixture(0, next, 4000, 99);
    assert_int_equal(atomic_load(&rig.slots[0].tokens_acked), tokens);
    assert_int_equal(rig_hash(&rig, 0), hash);
}

/* With a checkpoint the journal is read from its middle; the memory is the same bit for bit. */
static void a_checkpoint_changes_nothing(void **state)
{
    uint64_t hash, tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count;

    (void)state;
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    rig_stream(&rig, 0, "a", 4);
    feed_mixture(0, 1, 40000, 21);
    hash = rig_hash(&rig, 0);
    count = checkpoint_list(&rig.keeper.at, atomic_load(&rig.slots[0].stream_id), tokens);
    assert_true(count >= 1);
    assert_true(tokens[0] >= CHECKPOINT_TOKENS);
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_compute(&rig);
    assert_int_equal(rig.slots[0].checkpoint, tokens[count - 1]);
    rig_settle(&rig);
    assert_int_equal(rig_hash(&rig, 0), hash);
    assert_int_equal(slot_lag(&rig.slots[0]), 0);
}

/* One of a silt whose memory was made by other rules: the journal is read from its beginning. */
static void an_old_checkpoint_is_not_used(void **state)
{
    uint64_t hash, id, tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count;

    (void)state;
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    rig_stream(&rig, 0, "a", 4);
    feed_mixture(0, 1, 40000, 21);
    hash = rig_hash(&rig, 0);
    id = atomic_load(&rig.slots[0].stream_id);
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    count = checkpoint_list(&rig.keeper.at, id, tokens);
    assert_true(count >= 1);
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes;
        uint32_t *old = (void *)rig.keeper.restore; /* magic, version, ... */
        assert_int_equal(
            checkpoint_read(&rig.keeper.at, id, tokens[i], old, rig.keeper.buffer_bytes, &bytes),
            0);
        old[1]--;
        assert_int_equal(checkpoint_write(&rig.keeper.at, id, tokens[i], old, bytes), 0);
    }
    rig_stream(&rig, 0, "a", 4);
    rig_compute(&rig);
    assert_int_equal(rig.slots[0].checkpoint, 0);
    rig_settle(&rig);
    assert_int_equal(rig_hash(&rig, 0), hash);
    assert_int_equal(slot_lag(&rig.slots[0]), 0);
}

static void set_format(const char *change)
{
    char path[PATH_BYTES_MAX], text[128];
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/journal.db", folder);
    snprintf(text, sizeof text, "UPDATE meta SET value = value %s WHERE name = 'format'", change);
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, PAGES_VFS), 0);
    assert_int_equal(pages_reserve(db), 0);
    assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), 0);
    assert_int_equal(sqlite3_changes(db), 1);
    assert_int_equal(sqlite3_close(db), 0);
}

/* The journal of a silt to come: it is not read, and not touched. The last one's becomes this
 * one's.
 */
static void another_format_is_refused(void **state)
{
    uint64_t hash;

    (void)state;
    rig_stream(&rig, 0, "a", 4);
    feed_mixture(0, 1, 2000, 41);
    hash = rig_hash(&rig, 0);
    rig_close(&rig);
    set_format("+ 1");
    assert_int_equal(rig_open(&rig, folder, &plain), -ESTALE);
    for (int last = 0; last < 2; last++) {
        set_format(last ? "- 2" : "- 1");
        assert_int_equal(rig_open(&rig, folder, &plain), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        assert_int_equal(rig_hash(&rig, 0), hash);
        rig_close(&rig);
        set_format("+ 1");
        assert_int_equal(rig_open(&rig, folder, &plain), -ESTALE);
    }
    set_format("- 1");
    assert_int_equal(rig_open(&rig, folder, &plain), 0);
}

/* A stream leaves its slot and comes back to another one. */
static void parking_changes_nothing(void **state)
{
    uint64_t hash, id;

    (void)state;
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    rig_stream(&rig, 0, "a", 4);
    feed_mixture(0, 1, 3000, 31);
    hash = rig_hash(&rig, 0);
    id = atomic_load(&rig.slots[0].stream_id);
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    rig_settle(&rig);
    rig_order(&rig, SCHED_CLOSE, 0, id, 0);
    rig_settle(&rig);
    assert_int_equal(rig.closed, 1);
    rig_text(&rig, 0, "p", 100, "x", 1);
    rig_settle(&rig);
    assert_int_equal(code_of(rig_last(&rig, INGEST_FEED)), SILT__V1__ERROR__CODE__NOT_FOUND);
    rig_stream(&rig, 1, "a", 4);
    rig_settle(&rig);
    assert_true(rig.slots[1].checkpoint > 0);
    assert_int_equal(rig_hash(&rig, 1), hash);
}

/* To be forgotten in part a stream leaves its slot at once, whatever was sent before that and is in
 * the same batch; with its last word still open. */
static void what_comes_as_it_leaves_is_kept(void **state)
{
    static const char text[] = "it was the best of times, it was the worst of ti";
    static const char rest[] = "mes";
    struct journal_stream before, after;
    uint64_t id, next;

    (void)state;
    rig_stream(&rig, 0, "a", 4);
    next = feed_mixture(0, 1, 3000, 31);
    id = atomic_load(&rig.slots[0].stream_id);
    assert_int_equal(journal_stream_get(rig.journal, id, &before), 0);
    rig_text(&rig, 0, "p", next, text, sizeof text - 1);
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
    assert_int_equal(journal_stream_get(rig.journal, id, &after), 0);
    assert_int_equal(after.items, before.items + 1);
    assert_int_equal(after.bytes_text, before.bytes_text + sizeof text - 1);
    assert_true(after.tokens > before.tokens);
    rig_order(&rig, SCHED_CLOSE, 0, id, 0);
    rig_settle(&rig);
    rig_stream(&rig, 1, "a", 4);
    rig_text(&rig, 1, "p", next + 1, rest, sizeof rest - 1);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
    assert_int_equal(atomic_load(&rig.slots[1].tokens_acked), atomic_load(&rig.slots[1].ring.head));
    assert_int_equal(journal_stream_get(rig.journal, id, &after), 0);
    assert_int_equal(after.items, before.items + 2);
}

static void removal_leaves_nothing(void **state)
{
    struct journal_stream stream;
    char command[160];
    uint64_t tokens[CHECKPOINTS_SEEN_MAX], id;

    (void)state;
    rig_close(&rig);
    assert_int_equal(rig_open(&rig, folder, &saving), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_text(&rig, 0, "p", 1, "the secret word is xyzzyplugh, ", 31);
    rig_settle(&rig);
    feed_mixture(0, 2, 40000, 5);
    id = atomic_load(&rig.slots[0].stream_id);
    assert_true(checkpoint_list(&rig.keeper.at, id, tokens) > 0);
    rig_request(&rig, INGEST_REMOVE, 0, "");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_REMOVE)->error, 0);
    assert_int_equal(journal_stream_find(rig.journal, "a", &stream), -ENOENT);
    assert_int_equal(checkpoint_list(&rig.keeper.at, id, tokens), 0);
    snprintf(command, sizeof command, "%s/journal.db", folder);
    {
        FILE *file = fopen(command, "re");
        static char bytes[8 << 20];
        size_t n = fread(bytes, 1, sizeof bytes, file);

        fclose(file);
        assert_null(memmem(bytes, n, "xyzzyplugh", 10));
    }
    rig_text(&rig, 0, "p", 3, "x", 1);
    rig_settle(&rig);
    assert_int_equal(code_of(rig_last(&rig, INGEST_FEED)), SILT__V1__ERROR__CODE__NOT_FOUND);
}

/* A child acks through a pipe and is killed; what it said was acked is there. */
static void killed_in_the_middle(void **state)
{
    (void)state;
    rig_close(&rig);
    for (int round = 0; round < 5; round++) {
        int ends[2];
        uint64_t acked = 0, next = 0;
        pid_t child;

        assert_int_equal(pipe(ends), 0);
        child = fork();
        if (child == 0) {
            uint64_t sequence = 0;

            if (rig_open(&rig, folder, &plain))
                _exit(1);
            rig_stream(&rig, 0, "a", 4);
            rig_request(&rig, INGEST_ATTACH, 0, "p");
            rig_settle(&rig);
            sequence = rig_last(&rig, INGEST_ATTACH)->sequence;
            for (;;) {
                char line[32];
                int n = snprintf(line, sizeof line, "line %llu\n", (unsigned long long)++sequence);

                rig_text(&rig, 0, "p", sequence, line, (size_t)n);
                rig_ingest(&rig);
                rig_compute(&rig);
                if (rig_last(&rig, INGEST_FEED)->error)
                    _exit(1);
                rig_forget(&rig);
                if (write(ends[1], &sequence, sizeof sequence) < 0)
                    _exit(1);
            }
        }
        close(ends[1]);
        for (int i = 0; i < 20 + 7 * round && read(ends[0], &next, sizeof next) == sizeof next; i++)
            acked = next;
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (read(ends[0], &next, sizeof next) == sizeof next)
            acked = next;
        close(ends[0]);
        assert_int_equal(rig_open(&rig, folder, &plain), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_request(&rig, INGEST_ATTACH, 0, "p");
        rig_settle(&rig);
        assert_true(acked > 0);
        assert_true(rig_last(&rig, INGEST_ATTACH)->sequence >= acked);
        assert_int_equal(slot_lag(&rig.slots[0]), 0);
        rig_close(&rig);
    }
    assert_int_equal(rig_open(&rig, folder, &plain), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(numbers_are_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(repeats_in_one_batch, set_up, tear_down),
        cmocka_unit_test_setup_teardown(cuts_do_not_matter, set_up, tear_down),
        cmocka_unit_test_setup_teardown(marks_flush_and_turns_part, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lag_is_bounded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_stream_that_failed_is_said, set_up, tear_down),
        cmocka_unit_test_setup_teardown(growth_is_bounded_by_the_grant, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_crash_and_replay_change_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_checkpoint_changes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_old_checkpoint_is_not_used, set_up, tear_down),
        cmocka_unit_test_setup_teardown(another_format_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(parking_changes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_comes_as_it_leaves_is_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(removal_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(killed_in_the_middle, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
