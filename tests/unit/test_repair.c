/*
 * Repair: a cold segment that was spoilt is computed again from the journal, the same to the bit;
 * where its text was trimmed away it stays away, for what stands in the text's place is not it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/repair.h"
#include "tests/unit/rig.h"
#include "tests/unit/tiny_model.h"

enum {
    LAG = 8192,
    STAGING = 64,
    EPOCH = 1,
    RECORD_MAX = 64 << 10,
    FILE_RECORDS = 64, /* of records so small */
    SPOILT_AT = 9000,
};

static struct rig rig;
static struct spill *spill;
static struct repair repair;
static void *spill_memory, *repair_memory;
static uint64_t id;
static size_t record_bytes;

static void open_spill(void)
{
    struct spill_options options = {.folder = rig_own_folder,
                                    .streams_max = 2,
                                    .staging_max = STAGING,
                                    .fetches_max = 2,
                                    .dtype = SEGMENT_F16,
                                    .plain = true};
    size_t bytes = (spill_bytes(rig.engine, &options) + 4095) / 4096 * 4096;
    char error[200];

    spill_memory = aligned_alloc(4096, bytes);
    assert_int_equal(
        spill_open(&spill, rig.engine, &options, spill_memory, bytes, error, sizeof error), 0);
    record_bytes = spill_record_bytes(rig.engine, SEGMENT_F16);
    assert_true(record_bytes <= RECORD_MAX);
    rig.ingest.spill = rig.sched.spill = rig.slots[0].spill = spill;
}

static void open_repair(void)
{
    struct stream_options options = {.dmc_ratio = 1};
    uint32_t item_tokens = ingest_scratch_tokens(LAG);
    size_t bytes =
        (repair_bytes(stream_bytes(rig.engine, &options, NULL, 0), item_tokens) + 63) / 64 * 64;

    repair = (struct repair){.engine = rig.engine,
                             .spill = spill,
                             .keeper = &rig.keeper,
                             .slots = rig.slots,
                             .slot_count = 1,
                             .chunk_tokens = TINY_CHUNK,
                             .tokens_max = REPAIR_TOKENS_MAX};
    repair_memory = aligned_alloc(64, bytes);
    assert_int_equal(repair_open(&repair, rig_own_folder, engine_tokenizer(rig.engine), item_tokens,
                                 repair_memory, bytes),
                     0);
}

static int set_up(void **state)
{
    struct rig_options options = {.slots = 1, .lag_tokens_max = LAG, .checkpoints = true};

    rig_folder_set_up(state);
    if (rig_open(&rig, rig_own_folder, &options))
        return -1;
    open_spill();
    open_repair();
    return 0;
}

static int tear_down(void **state)
{
    repair_close(&repair);
    free(repair_memory);
    rig_close(&rig);
    spill_close(&spill);
    free(spill_memory);
    return rig_folder_tear_down(state);
}

/* With plain calls what is started has ended. */
static void write_all(void)
{
    for (int i = 0; i < 4; i++)
        spill_step(spill, false);
}

static void feed(uint64_t tokens)
{
    static char text[4096];
    uint64_t seed = 7;

    rig_stream(&rig, 0, "a", 4);
    rig_ingest(&rig);
    id = atomic_load(&rig.slots[0].stream_id);
    assert_int_equal(spill_attach(spill, id, EPOCH), 0);
    rig_settle(&rig);
    for (uint64_t n = 1; atomic_load(&rig.slots[0].ring.head) < tokens; n++) {
        for (size_t i = 0; i < sizeof text; i++)
            text[i] = (char)(faults_random(&seed) % 6 ? 'a' + faults_random(&seed) % 26 : ' ');
        assert_int_equal(rig_text(&rig, 0, "p", n, text, sizeof text), 0);
        rig_settle(&rig);
        assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
        rig_forget(&rig);
        write_all();
    }
}

/* The record of a chunk: what is on disk, or with `write` what comes there. */
static void record(uint64_t chunk, uint8_t *bytes, bool write)
{
    char path[160];
    FILE *file;

    snprintf(path, sizeof path, "%s/segments/%016llx/0-%08llx.seg", rig_own_folder,
             (unsigned long long)id, (unsigned long long)chunk / FILE_RECORDS);
    file = fopen(path, write ? "r+" : "r");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)(chunk % FILE_RECORDS * record_bytes), SEEK_SET), 0);
    assert_int_equal(
        write ? fwrite(bytes, record_bytes, 1, file) : fread(bytes, record_bytes, 1, file), 1);
    fclose(file);
}

/* Whether a question gets the segment of a chunk. */
static bool served(uint64_t chunk)
{
    struct cold_segment out[STREAM_RECALL_MAX];
    struct spill_fetch *fetch;
    uint32_t count;

    assert_int_equal(spill_fetch(spill, id, &chunk, 1, &fetch), 0);
    while (!spill_fetched(fetch))
        spill_step(spill, true);
    count = spill_segments(fetch, out);
    spill_release(&fetch);
    return count > 0;
}

static void spoil(uint64_t chunk)
{
    uint8_t bytes[RECORD_MAX];

    record(chunk, bytes, false);
    bytes[SPOILT_AT] ^= 4;
    record(chunk, bytes, true);
    assert_false(served(chunk));
    while (repair_step(&repair))
        write_all();
}

/* The oldest text goes, up to the first checkpoint. Returns the first token that is left. */
static uint64_t trim(void)
{
    struct ingest_request request = {.kind = INGEST_TRIM,
                                     .slot = SLOT_NONE,
                                     .stream_id = id,
                                     .to = atomic_load(&rig.slots[0].ring.head)};
    struct queue_part part = {&request, sizeof request};

    assert_int_equal(queue_push(&rig.journal_queue, &part, 1), 0);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_TRIM)->error, 0);
    return rig_last(&rig, INGEST_TRIM)->first;
}

static void as_it_was(void **state)
{
    uint8_t was[RECORD_MAX], now[RECORD_MAX];

    (void)state;
    feed(12 * TINY_CHUNK);
    record(3, was, false);
    spoil(3);
    assert_true(served(3));
    record(3, now, false);
    assert_memory_equal(was, now, record_bytes);
}

static void not_from_text_that_is_gone(void **state)
{
    uint8_t was[RECORD_MAX], now[RECORD_MAX];
    struct spill_stream_stat stat;
    uint64_t first;

    (void)state;
    feed(2 * CHECKPOINT_TOKENS + 12 * TINY_CHUNK);
    first = trim();
    assert_true(first > 40 * TINY_CHUNK && first < CHECKPOINT_TOKENS + 4096);
    for (uint64_t chunk = 3; chunk < first / TINY_CHUNK; chunk += 17) {
        spoil(chunk);
        assert_false(served(chunk));
    }
    assert_int_equal(spill_stream_stat(spill, id, &stat), 0);
    assert_int_equal(stat.segments_repaired + stat.segments_approximate, 0);
    /* What is left is enough for those behind it. */
    first = first / TINY_CHUNK + 8;
    record(first, was, false);
    spoil(first);
    record(first, now, false);
    assert_memory_equal(was, now, record_bytes);
}

/* A stream that loses text in between leaves its slot, and may be back in it before the next step:
 * what was read before is not what it holds now. */
static void not_of_what_it_was_before_it_left(void **state)
{
    uint8_t bytes[RECORD_MAX];

    (void)state;
    feed(12 * TINY_CHUNK);
    record(3, bytes, false);
    bytes[SPOILT_AT] ^= 4;
    record(3, bytes, true);
    assert_false(served(3));
    assert_true(repair_step(&repair) && repair_step(&repair));
    assert_int_equal(repair.phase, REPAIR_FEED);
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    rig_order(&rig, SCHED_CLOSE, 0, 0, 0);
    rig_settle(&rig);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    while (repair_step(&repair))
        write_all();
    assert_false(served(3)); /* found again, and made of what is there now */
    while (repair_step(&repair))
        write_all();
    assert_true(served(3));
}

/* Its text goes while it is read. */
static void not_from_text_that_goes_meanwhile(void **state)
{
    enum { CHUNK = 30, STEPS = 40 };
    uint8_t bytes[RECORD_MAX];
    struct spill_stream_stat stat;

    (void)state;
    feed(2 * CHECKPOINT_TOKENS + 12 * TINY_CHUNK);
    record(CHUNK, bytes, false);
    bytes[SPOILT_AT] ^= 4;
    record(CHUNK, bytes, true);
    assert_false(served(CHUNK));
    for (int i = 0; i < STEPS; i++)
        assert_true(repair_step(&repair));
    assert_int_equal(repair.phase, REPAIR_FEED);
    assert_true(trim() > (CHUNK + 1) * TINY_CHUNK);
    while (repair_step(&repair))
        write_all();
    assert_int_equal(spill_stream_stat(spill, id, &stat), 0);
    assert_int_equal(stat.segments_repaired + stat.segments_approximate, 0);
    assert_false(served(CHUNK));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(as_it_was, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_from_text_that_is_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_of_what_it_was_before_it_left, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_from_text_that_goes_meanwhile, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("repair", tests, NULL, NULL);
}
