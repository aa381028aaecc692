/*
 * Forgetting a range: what the journal forms afterwards is what it formed before without the range,
 * wherever its ends fall in items of all kinds, and the stream computes from it what a stream
 * computes that never saw the range.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/search.h"
#include "tests/unit/rig.h"

enum { TOKENS_MAX = 60000, LAG = 8192, ROUNDS = 60 };

static const struct rig_options options = {
    .slots = 2, .asks = 1, .lag_tokens_max = LAG, .checkpoints = true};
static struct rig rig;
static char folder[64];
static uint64_t id;

static int set_up(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    return rig_open(&rig, folder, &options);
}

static int tear_down(void **state)
{
    (void)state;
    rig_close(&rig);
    rig_folder_drop(folder);
    return 0;
}

/* Text whose words run over many items, turns, ids and marks. */
static uint64_t feed_items(uint64_t sequence, int count, uint64_t *seed)
{
    for (int i = 0; i < count; i++) {
        uint64_t kind = faults_random(seed) % 16;
        uint8_t text[300];
        size_t bytes =
            kind < 8 ? 1 + faults_random(seed) % 3 : 1 + faults_random(seed) % sizeof text;

        for (size_t b = 0; b < bytes; b++) {
            uint64_t r = faults_random(seed);

            text[b] = r % 6 == 0 ? ' ' : r % 50 == 0 ? '\n' : (uint8_t)('a' + r % 26);
        }
        rig_feed_begin(&rig, 0, "p", sequence++);
        if (kind == 14)
            rig_item(&rig, ITEM_TURN, ROLE_USER, text, bytes);
        else if (kind == 15)
            rig_item(&rig, ITEM_TOKENS, 0, (int32_t[]){40, 41, 42, 43, 44}, 5 * sizeof(int32_t));
        else if (kind == 13)
            rig_item(&rig, ITEM_MARK, MARK_FLUSH, NULL, 0);
        else
            rig_item(&rig, ITEM_TEXT, 0, text, bytes);
        rig_push(&rig);
        rig_settle(&rig);
        assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
        rig_forget(&rig);
    }
    return sequence;
}

/* All tokens that the journal's items form. */
static uint32_t read_tokens(int32_t *out)
{
    struct engine *engine = rig_engine();
    void *memory = aligned_alloc(64, reader_bytes(ingest_scratch_tokens(LAG)));
    struct reader *reader;
    struct reader_place place;
    const int32_t *tokens;
    uint64_t time_us;
    uint32_t sum = 0;
    int count;

    assert_int_equal(
        reader_open(&reader, folder, engine_tokenizer(engine), ingest_scratch_tokens(LAG), memory),
        0);
    assert_int_equal(reader_seek(reader, &place, id, 0), 0);
    while ((count = reader_next(reader, &place, &tokens, &time_us)) > 0) {
        assert_true(sum + (uint32_t)count <= TOKENS_MAX);
        memcpy(out + sum, tokens, (uint32_t)count * sizeof *tokens);
        sum += (uint32_t)count;
    }
    assert_int_equal(count, 0);
    reader_close(&reader);
    free(memory);
    return sum;
}

static void leave_slot(void)
{
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    rig_settle(&rig);
    rig_order(&rig, SCHED_CLOSE, 0, id, 0);
    rig_settle(&rig);
    assert_null(rig.slots[0].stream);
}

static const struct ingest_result *forget(uint64_t from, uint64_t to)
{
    struct ingest_request request = {
        .kind = INGEST_FORGET, .slot = SLOT_NONE, .stream_id = id, .from = from, .to = to};
    struct queue_part part = {&request, sizeof request};

    rig_forget(&rig);
    assert_int_equal(queue_push(&rig.journal_queue, &part, 1), 0);
    rig_settle(&rig);
    return rig_last(&rig, INGEST_FORGET);
}

/* Takes [from, to) out of the tokens and the journal alike and compares. */
static uint32_t check_range(int32_t *tokens, uint32_t count, uint32_t from, uint32_t to)
{
    static int32_t now[TOKENS_MAX];
    const struct ingest_result *result = forget(from, to);
    uint32_t left;

    assert_int_equal(result->error, 0);
    assert_int_equal(result->tokens_acked, count - (to - from));
    memmove(tokens + from, tokens + to, (count - to) * sizeof *tokens);
    count -= to - from;
    left = read_tokens(now);
    assert_int_equal(left, count);
    assert_memory_equal(now, tokens, count * sizeof *tokens);
    return count;
}

static void a_stream(uint64_t *seed, int items, uint64_t *sequence)
{
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    id = atomic_load(&rig.slots[0].stream_id);
    *sequence = feed_items(1, items, seed);
}

static void the_rest_stays(void **state)
{
    static int32_t tokens[TOKENS_MAX];
    uint64_t seed = 11, sequence;
    uint32_t count;

    (void)state;
    a_stream(&seed, 600, &sequence);
    leave_slot();
    count = read_tokens(tokens);
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t length = 1 + (uint32_t)faults_random(&seed) % (i % 3 ? 40 : 400);
        uint32_t from = (uint32_t)faults_random(&seed) % (count - length);

        if (i == 20)
            from = 0;
        if (i == 30)
            from = count - length;
        count = check_range(tokens, count, from, from + length);
    }
    assert_true(count > 1000);
    /* What comes now joins what is left. */
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    assert_int_equal(atomic_load(&rig.slots[0].ring.head), count);
    sequence = feed_items(sequence, 40, &seed);
    {
        static int32_t now[TOKENS_MAX];
        uint32_t more = read_tokens(now);

        assert_int_equal(more, atomic_load(&rig.slots[0].ring.head));
        assert_true(more > count);
        assert_memory_equal(now, tokens, count * sizeof *tokens);
    }
}

/* The state of a stream that is fed the tokens and nothing else. */
static uint64_t hash_of(const int32_t *tokens, uint32_t count)
{
    struct stream_options want = {.dmc_ratio = 4};
    char error[200];
    size_t bytes = stream_bytes(rig_engine(), &want, error, sizeof error);
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct stream *stream;
    const void *at;
    uint64_t hash;

    assert_int_equal(stream_open(&stream, rig_engine(), &want, memory, bytes), 0);
    assert_int_equal(stream_feed(stream, tokens, count), 0);
    at = stream_state(stream, &bytes);
    hash = XXH3_64bits(at, bytes);
    stream_close(&stream);
    free(memory);
    return hash;
}

static void the_memory_never_saw_it(void **state)
{
    static int32_t tokens[TOKENS_MAX];
    uint64_t seed = 5, sequence, kept[CHECKPOINTS_SEEN_MAX];
    uint32_t count;

    (void)state;
    a_stream(&seed, 400, &sequence);
    while (atomic_load(&rig.slots[0].ring.head) < 2 * CHECKPOINT_TOKENS + 4000)
        sequence = feed_items(sequence, 100, &seed);
    leave_slot();
    count = read_tokens(tokens);
    assert_true(checkpoint_list(&rig.keeper.at, id, kept) >= 3);
    count = check_range(tokens, count, CHECKPOINT_TOKENS + 5000, CHECKPOINT_TOKENS + 5100);
    assert_int_equal(checkpoint_list(&rig.keeper.at, id, kept), 1);
    assert_true(kept[0] <= CHECKPOINT_TOKENS + 5000);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    assert_int_equal(rig_hash(&rig, 0), hash_of(tokens, count));
    assert_int_equal(slot_rebuilding(&rig.slots[0]), 0);
    assert_int_equal(atomic_load(&rig.slots[0].rebuild_to), count); /* it was behind */
}

static void impossible_ranges(void **state)
{
    uint64_t seed = 3, sequence;
    const struct ingest_result *result;

    (void)state;
    a_stream(&seed, 30, &sequence);
    leave_slot();
    result = forget(10, 10);
    assert_int_equal(result->error, 1 + SILT__V1__ERROR__CODE__INVALID);
    result = forget(0, 1u << 30);
    assert_int_equal(result->error, 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_non_null(strstr(result->message, "not in the stream, which holds"));
}

static void the_text_is_gone_from_disk(void **state)
{
    static const char secret[] = "The secret word is xyzzyplugh, remember it well.";
    uint64_t seed = 9, sequence, from, to;
    char path[160];

    (void)state;
    a_stream(&seed, 50, &sequence);
    from = atomic_load(&rig.slots[0].tokens_acked);
    for (size_t i = 0; i < sizeof secret - 1; i++) { /* a byte an item */
        rig_text(&rig, 0, "p", sequence++, secret + i, 1);
        rig_settle(&rig);
    }
    sequence = feed_items(sequence, 10, &seed);
    to = atomic_load(&rig.slots[0].tokens_acked);
    leave_slot();
    assert_int_equal(forget(from, to)->error, 0);
    for (int i = 0; i < 2; i++) {
        static char bytes[8 << 20];
        FILE *file;
        size_t n;

        snprintf(path, sizeof path, "%s/journal.db%s", folder, i ? "-wal" : "");
        file = fopen(path, "re");
        n = file ? fread(bytes, 1, sizeof bytes, file) : 0;
        if (file)
            fclose(file);
        assert_true(i || n > 0);
        assert_null(memmem(bytes, n, "xyzzyplugh", 10));
    }
}

/* More of it than SQLite may hold in memory. */
static void much_is_forgotten(void **state)
{
    enum { ROOM = 250 << 10 };
    static char text[5000];
    uint64_t seed = 4, sequence, from, to;

    (void)state;
    a_stream(&seed, 10, &sequence);
    from = atomic_load(&rig.slots[0].tokens_acked);
    for (int i = 0; i < 80; i++) {
        for (size_t b = 0; b < sizeof text; b++)
            text[b] = (char)(faults_random(&seed) % 6 ? 'a' + faults_random(&seed) % 26 : ' ');
        rig_text(&rig, 0, "p", sequence++, text, sizeof text);
        rig_settle(&rig);
        assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
        rig_forget(&rig);
    }
    to = atomic_load(&rig.slots[0].tokens_acked) - 10;
    leave_slot();
    sqlite3_hard_heap_limit64(sqlite3_memory_used() + ROOM);
    assert_int_equal(forget(from, to)->error, 0);
}

/* A range that cannot be formed is refused when its items are half changed: only they go back, and
 * what came with it is stored. */
static void a_refusal_is_one_request_s(void **state)
{
    static int32_t many[600], before[TOKENS_MAX], after[TOKENS_MAX];
    struct ingest_request request = {
        .kind = INGEST_FORGET, .slot = SLOT_NONE, .from = 100, .to = 602};
    struct queue_part part = {&request, sizeof request};
    uint32_t count, scratch_max = rig.ingest.scratch_max;
    uint64_t acked;

    (void)state;
    for (uint32_t i = 0; i < 600; i++)
        many[i] = (int32_t)(40 + i % 50);
    assert_int_equal(rig_stream(&rig, 0, "s", 1), 0);
    rig_settle(&rig);
    id = rig.slots[0].ingest.stream_id;
    for (uint64_t sequence = 1; sequence <= 2; sequence++) {
        rig_feed_begin(&rig, 0, "p", sequence);
        rig_item(&rig, ITEM_TOKENS, 0, many, sequence == 1 ? sizeof many : 5 * sizeof *many);
        assert_int_equal(rig_push(&rig), 0);
        rig_settle(&rig);
    }
    leave_slot();
    count = read_tokens(before);
    assert_int_equal(rig_stream(&rig, 1, "other", 1), 0);
    rig_settle(&rig);
    rig_forget(&rig);
    rig.ingest.scratch_max = 300; /* the last item fits, which is changed first */
    request.stream_id = id;
    assert_int_equal(rig_text(&rig, 1, "p", 1, "one two ", 8), 0);
    assert_int_equal(queue_push(&rig.journal_queue, &part, 1), 0);
    assert_int_equal(rig_text(&rig, 1, "p", 2, "three four ", 11), 0);
    rig_ingest(&rig);
    assert_int_equal(rig.result_count, 3);
    assert_int_equal(rig.batches[0], rig.batches[2]);
    assert_int_equal(rig.results[0].error, 0);
    assert_int_equal(rig.results[1].error, 1 + SILT__V1__ERROR__CODE__TOO_LARGE);
    assert_int_equal(rig.results[2].error, 0);
    assert_int_equal(rig.results[2].bytes_acked, 19);
    assert_false(atomic_load(&rig.disk_failed));
    acked = atomic_load(&rig.slots[1].tokens_acked);
    rig.ingest.scratch_max = scratch_max;
    assert_int_equal(read_tokens(after), count);
    assert_memory_equal(after, before, count * sizeof *before);
    assert_int_equal(forget(100, 602)->error, 0);
    assert_int_equal(read_tokens(after), count - 502);
    assert_int_equal(atomic_load(&rig.slots[1].tokens_acked), acked);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_rest_stays, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_memory_never_saw_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(impossible_ranges, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_text_is_gone_from_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(much_is_forgotten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_refusal_is_one_request_s, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("forget", tests, NULL, NULL);
}
