/*
 * Finding the far past on disks that fail: every call of the text index and of the journal it is
 * made from, and every operation on the recall keys, in turn and in each way, until a run meets
 * none. What is found is of the chunk it is said to be of; on a disk that works again all is found.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/search_internal.h"
#include "tests/unit/disk_fault.h"
#include "tests/unit/rig.h"
#include "tests/unit/vfs_fault.h"

enum { CHUNK = 256, CHUNKS_MAX = 64, FACTS = 6, STEPS_MAX = 200 };

static const struct rig_options options = {.slots = 1, .asks = 1, .lag_tokens_max = 1 << 16};

static char folder[64];
static struct rig rig;
static struct search *search;
static struct search_job job;
static struct disk_fault keys_fault;
static void *memory;
static uint8_t *table; /* near the letter Z alone */
static _Atomic bool stopping;
static uint64_t chunk_count;
static char truth[CHUNKS_MAX][SEARCH_TEXT_MAX]; /* the text of each chunk */

/* Words that come once, so that a text says where it is from; a Z between two facts. */
static void feed_all(void)
{
    static char text[8192];
    uint32_t word = 0;

    for (uint32_t i = 0; i < FACTS; i++) {
        size_t used = 0;

        for (uint32_t n = 0; n < 60 + 17 * i; n++)
            used += (size_t)snprintf(text + used, sizeof text - used, "w%05u ", word++);
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "The keeper of gate%u is person%u. %s", i, i, i == 3 ? "Z " : "");
        rig_text(&rig, 0, "p", i + 1, text, used);
        rig_settle(&rig);
    }
}

/* An error is told, never more. */
static bool open_search(enum disk_fault_kind kind, enum disk_kind of, uint32_t at)
{
    struct search_options o = {.folder = folder,
                               .keys = true,
                               .model_fingerprint = 1,
                               .tokenizer = engine_tokenizer(rig_engine()),
                               .chunk_tokens = CHUNK,
                               .item_tokens_max = 1 << 17,
                               .slots = rig.slots,
                               .slot_count = 1,
                               .stopping = &stopping};
    char error[400] = "";

    memory = aligned_alloc(64, (search_bytes(1, o.item_tokens_max) + 63) / 64 * 64);
    assert_non_null(memory);
    if (search_open(&search, &o, memory, error, sizeof error)) {
        free(memory);
        return false;
    }
    disk_fault_init(&keys_fault, recall_keys_disk(search->keys), DISK_ALIGN);
    disk_fault_set(&keys_fault, kind, of, at);
    return true;
}

static void close_search(void)
{
    search_close(&search);
    free(memory);
}

static void run_job(enum search_kind kind, const char *question, const uint8_t *by)
{
    job.kind = kind;
    job.stream_id = atomic_load(&rig.slots[0].stream_id);
    job.question = (const uint8_t *)question;
    job.question_bytes = (uint32_t)strlen(question);
    job.table = by;
    job.chunk_end = chunk_count;
    assert_int_equal(search_submit(search, &job), 0);
    search_step(search);
    assert_true(atomic_load(&job.done));
}

/* Each piece of an excerpt is in the text of the chunk it is said to be of. */
static void check_text(const struct search_text *text)
{
    static const char gap[] = " … ";
    char copy[SEARCH_TEXT_MAX];

    assert_true(text->chunk < chunk_count && text->bytes < SEARCH_TEXT_MAX);
    memcpy(copy, text->text, text->bytes);
    copy[text->bytes] = '\0';
    for (char *piece = copy, *next; piece; piece = next) {
        next = strstr(piece, gap);
        if (next) {
            *next = '\0';
            next += sizeof gap - 1;
        }
        if (!strstr(truth[text->chunk], piece))
            fail_msg("chunk %" PRIu64 " has not: %s", text->chunk, piece);
    }
}

/* Right, or nothing. How many chunks have the word. */
static uint32_t look(const char *question, const char *word, const uint8_t *by)
{
    uint32_t count;

    run_job(SEARCH_FIND, question, by);
    count = job.result ? 0 : job.hit_count;
    job.text_count = count < STREAM_RECALL_MAX ? count : STREAM_RECALL_MAX;
    for (uint32_t i = 0; i < count; i++)
        assert_true(job.hits[i].chunk < chunk_count &&
                    strstr(truth[job.hits[i].chunk], word) != NULL);
    for (uint32_t i = 0; i < job.text_count; i++)
        job.text[i].chunk = job.hits[i].chunk;
    run_job(SEARCH_TEXTS, question, by);
    for (uint32_t i = 0; i < job.text_count && !job.result; i++)
        check_text(&job.text[i]);
    return count;
}

static uint32_t look_for_all(void)
{
    char question[64], word[16];
    uint32_t found = 0;

    for (uint32_t i = 0; i < FACTS - 1; i++) { /* the last is in no whole chunk yet */
        snprintf(word, sizeof word, "gate%u", i);
        snprintf(question, sizeof question, "Who keeps %s?", word);
        found += look(question, word, NULL) > 0;
    }
    return found + (look("Whoever?", "Z", table) > 0);
}

static void index_all(void)
{
    for (int i = 0; i < STEPS_MAX && search_step(search); i++)
        ;
}

static void drop_index(void)
{
    char path[80];

    snprintf(path, sizeof path, "%s/search", folder);
    rig_folder_drop(path);
}

/* An index made and asked while one call goes wrong, then on a disk that works. False: no call did.
 */
static bool with_fault(uint64_t n, int code, bool for_ever, enum disk_fault_kind kind,
                       enum disk_kind of)
{
    bool was_met;

    drop_index();
    vfs_fault_at(kind ? 0 : n, code, for_ever);
    if (!open_search(kind, of, (uint32_t)n)) {
        was_met = vfs_fault_met();
        vfs_fault_mend();
        assert_true(was_met);
        return true;
    }
    index_all();
    look_for_all();
    was_met = kind ? keys_fault.count >= n : vfs_fault_met();
    vfs_fault_mend();
    disk_fault_set(&keys_fault, FAULT_NONE, DISK_READ, 0);
    look_for_all(); /* what is found damaged now is made again */
    index_all();
    index_all();
    assert_int_equal(look_for_all(), FACTS);
    assert_false(atomic_load(&rig.slots[0].unindexed));
    close_search();
    return was_met;
}

static void each_call_of_the_index(void **state)
{
    static const struct {
        const char *name;
        int code;
        bool for_ever;
    } ways[] = {{"EIO once", SQLITE_IOERR, false},
                {"short once", VFS_SHORT, false},
                {"late once", VFS_LATE, false},
                {"EIO from then on", SQLITE_IOERR, true},
                {"ENOSPC from then on", SQLITE_FULL, true}};

    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        uint64_t n = 1;

        while (with_fault(n, ways[i].code, ways[i].for_ever, FAULT_NONE, DISK_READ))
            n++;
        print_message("%s: each of %" PRIu64 " calls of the text index\n", ways[i].name, n - 1);
        assert_true(n > 50);
    }
}

static void each_operation_on_the_keys(void **state)
{
    (void)state;
    for (enum disk_fault_kind kind = FAULT_EIO; kind < FAULT_KINDS; kind++)
        for (enum disk_kind of = DISK_READ; of <= DISK_WRITE; of++) {
            uint64_t n = 1;

            while (with_fault(n, 0, false, kind, of))
                n++;
            print_message("%s: each of %" PRIu64 " %s of recall keys\n", disk_fault_name(kind),
                          n - 1, of == DISK_READ ? "reads" : "writes");
            assert_true(n > 1);
        }
}

/* What a run without trouble has: that is taken for the truth. */
static int set_up(void **state)
{
    struct token_text held = {0};
    int32_t tokens[8];

    (void)state;
    say_level_set((enum say_level)(SAY_ERROR + 1));
    vfs_fault_install();
    rig_folder(folder, sizeof folder);
    if (rig_open(&rig, folder, &options))
        return -1;
    rig_stream(&rig, 0, "s", 4);
    rig_settle(&rig);
    feed_all();
    table = calloc(1 << 16, RECALL_QUERY_TOKENS);
    token_feed(engine_tokenizer(rig_engine()), &held, (const uint8_t *)"Z Z", 3, tokens);
    table[(size_t)tokens[0] * RECALL_QUERY_TOKENS] = 200;
    chunk_count = atomic_load(&rig.slots[0].tokens_acked) / CHUNK;
    if (chunk_count < 4 || chunk_count > CHUNKS_MAX || !open_search(FAULT_NONE, DISK_READ, 0))
        return -1;
    index_all();
    for (uint64_t i = 0; i < chunk_count; i++) {
        job.text_count = 1;
        job.text[0].chunk = i;
        run_job(SEARCH_TEXTS, "Zeppelin?", NULL);
        memcpy(truth[i], job.text[0].text, SEARCH_TEXT_MAX);
    }
    close_search();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rig_close(&rig);
    rig_folder_drop(folder);
    free(table);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_call_of_the_index),
        cmocka_unit_test(each_operation_on_the_keys),
    };

    return cmocka_run_group_tests_name("recall_fault", tests, set_up, tear_down);
}
