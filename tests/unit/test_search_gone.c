/* The text index at its ends: trimmed text, files that cannot be read, words longer than most. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stream/ring.h"
#include "tests/unit/search_rig.h"
#include "tests/unit/vfs_fault.h"

enum { CHUNK = SEARCH_RIG_CHUNK };

/* Nothing is near to begin with. */
static struct search_rig *open_parts(bool keys)
{
    struct search_rig *p = search_rig_open(keys);

    search_rig_mean(p);
    return p;
}

/* So many times a text, as one message. */
static void feed(struct search_rig *p, uint32_t slot, uint64_t sequence, const char *text,
                 uint32_t times)
{
    size_t bytes = strlen(text);
    char *all = malloc(bytes * times + 1);

    for (uint32_t i = 0; i < times; i++)
        memcpy(all + i * bytes, text, bytes + 1);
    rig_text(&p->rig, slot, "p", sequence, all, bytes * times);
    rig_settle(&p->rig);
    search_rig_index(p);
    free(all);
}

static int run(struct search_rig *p, enum search_kind kind)
{
    p->job.kind = kind;
    return search_rig_run(p, &p->job);
}

static void look(struct search_rig *p, const char *question)
{
    search_rig_look(p, &p->job, question);
}

static bool synced; /* since files of the index went */
int __real_files_sync_folder(const struct files *files, const char *path);
int __wrap_files_sync_folder(const struct files *files, const char *path);

int __wrap_files_sync_folder(const struct files *files, const char *path)
{
    int result = __real_files_sync_folder(files, path);

    synced = !result && strstr(path, "/search");
    return result;
}

/* The power is cut: what went from a folder that was not synced since is there again. */
static void what_is_forgotten_does_not_come_back(void **state)
{
    struct search_rig *p = open_parts(true);
    char command[600];

    (void)state;
    feed(p, 0, 1, "Ottoline has the key. ", 60);
    search_rig_stop(p);
    snprintf(command, sizeof command, "cp -a %s/search %s/kept", p->folder, p->folder);
    assert_int_equal(system(command), 0);
    search_rig_start(p);
    synced = false;
    assert_int_equal(search_forget(p->search, atomic_load(&p->rig.slots[0].stream_id)), 0);
    search_rig_stop(p);
    snprintf(command, sizeof command, "mv %s/kept/* %s/search", p->folder, p->folder);
    if (!synced)
        assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "grep -rqa Ottoline %s/search", p->folder);
    assert_int_not_equal(system(command), 0);
    search_rig_start(p);
    search_rig_close(p);
}

/* The place had an earlier question's, of another stream, and now the index cannot be read. */
static void nothing_of_another_question_is_left(void **state)
{
    struct search_rig *p = open_parts(true);
    char command[512];

    (void)state;
    feed(p, 0, 1, "Ottoline has the key. ", 60);
    look(p, "Who has the key?");
    assert_non_null(strstr(p->job.text[0].text, "Ottoline"));
    snprintf(command, sizeof command, "mv %s/search %s/gone && : >%s/search", p->folder, p->folder,
             p->folder);
    assert_int_equal(system(command), 0);
    p->job.stream_id++;
    assert_true(run(p, SEARCH_TEXTS) < 0);
    assert_int_equal(p->job.text[0].bytes, 0);
    assert_int_equal(p->job.text[0].focus_to, 0);
    assert_int_equal(p->job.text[0].time_us, 0);
    assert_string_equal(p->job.text[0].text, "");
    search_rig_close(p);
}

/* Text before a token goes as trim_items has it go. */
static void trim(struct search_rig *p, uint64_t token)
{
    struct journal *journal = p->rig.journal;
    uint64_t id = atomic_load(&p->rig.slots[0].stream_id);

    assert_int_equal(journal_begin(journal), 0);
    assert_int_equal(journal_item_put(journal, id, 0, ITEM_GAP, &token, sizeof token), 0);
    assert_int_equal(journal_commit(journal), 0);
    assert_int_equal(search_trim(p->search, id, token / CHUNK), 0);
}

/* There is more of it that is as near, and older, than a search finds at most. */
static void trimmed_text_takes_no_place(void **state)
{
    struct search_rig *p = open_parts(true);
    uint64_t token;
    uint32_t found = 0;

    (void)state;
    feed(p, 0, 1, "Z stone. ", (SEARCH_HITS_MAX + 8) * CHUNK / 6);
    token = atomic_load(&p->rig.slots[0].tokens_acked) / CHUNK * CHUNK;
    assert_true(token > (SEARCH_HITS_MAX + 4) * CHUNK);
    feed(p, 0, 2, "river bread market. ", 200);
    feed(p, 0, 3, "Z is Ottoline's. ", 1);
    feed(p, 0, 4, "river bread market. ", 200);
    search_rig_near(p, "Z Z");
    look(p, "Whoever?");
    assert_int_equal(p->job.hit_count, SEARCH_HITS_MAX);
    assert_true(p->job.hits[0].chunk * CHUNK < token);
    trim(p, token);
    look(p, "Whoever?");
    assert_in_range(p->job.hit_count, 1, STREAM_RECALL_MAX);
    for (uint32_t i = 0; i < p->job.hit_count; i++) {
        assert_true(p->job.hits[i].chunk * CHUNK >= token);
        found += strstr(p->job.text[i].text, "Ottoline") != NULL;
    }
    assert_in_range(found, 1, 2); /* twice where it is near a chunk's end */
    search_rig_close(p);
}

/* Bytes that the recall keys take, and rows of chunks. */
static void measure(struct search_rig *p, uint64_t *bytes, int64_t *rows)
{
    uint64_t id = atomic_load(&p->rig.slots[0].stream_id);
    sqlite3_stmt *get;
    char path[200];
    off_t data, hole = 0;
    int fd;

    snprintf(path, sizeof path, "%s/search/%016llx.db-keys", p->folder, (unsigned long long)id);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    *bytes = 0; /* not the file's blocks: some say where the others lie */
    while ((data = lseek(fd, hole, SEEK_DATA)) >= 0) {
        hole = lseek(fd, data, SEEK_HOLE);
        *bytes += (uint64_t)(hole - data);
    }
    close(fd);
    assert_int_equal(sqlite3_prepare_v2(search_table(p->search, id, false)->db,
                                        "SELECT count(*) FROM chunks", -1, &get, NULL),
                     0);
    assert_int_equal(sqlite3_step(get), SQLITE_ROW);
    *rows = sqlite3_column_int64(get, 0);
    sqlite3_finalize(get);
}

/* However much of it there was; nor where the index is made again. */
static void trimmed_text_takes_no_room(void **state)
{
    struct search_rig *p = open_parts(true);
    uint64_t id = atomic_load(&p->rig.slots[0].stream_id), token, bytes;
    int64_t rows;

    (void)state;
    feed(p, 0, 1, "river bread market. ", 4000);
    rig_feed_begin(&p->rig, 0, "p", 2); /* so that nothing waits */
    rig_item(&p->rig, ITEM_MARK, MARK_FLUSH, NULL, 0);
    rig_push(&p->rig);
    rig_settle(&p->rig);
    token = atomic_load(&p->rig.slots[0].tokens_acked);
    assert_true(token > 60 * CHUNK);
    feed(p, 0, 3, "Ottoline has the key. ", 1);
    feed(p, 0, 4, "river bread market. ", 200);
    measure(p, &bytes, &rows);
    assert_true(bytes > 8 * DISK_ALIGN && rows > 60);
    assert_int_equal(journal_begin(p->rig.journal), 0);
    assert_int_equal(journal_items_drop(p->rig.journal, id, 1, 2), 0);
    assert_int_equal(journal_commit(p->rig.journal), 0);
    trim(p, token);
    for (int made_again = 0; made_again < 2; made_again++) {
        measure(p, &bytes, &rows);
        assert_true(bytes <= 3 * DISK_ALIGN && rows <= 14);
        look(p, "Who has the key?");
        assert_in_range(p->job.hit_count, 1, 2 * STREAM_RECALL_MAX);
        assert_non_null(strstr(p->job.text[0].text, "Ottoline"));
        assert_true(p->job.hits[0].chunk >= token / CHUNK);
        if (!made_again)
            search_drop_index(p->search, id);
        search_rig_index(p);
    }
    feed(p, 0, 5, "Barnaby has the boat. ", 60);
    look(p, "Who has the boat?");
    assert_non_null(strstr(p->job.text[0].text, "Barnaby"));
    search_rig_close(p);
}

static bool finds_chunk(const struct search_rig *p, uint64_t chunk)
{
    for (uint32_t i = 0; i < p->job.hit_count; i++)
        if (p->job.hits[i].chunk == chunk)
            return true;
    return false;
}

/* That the text is still there is said; with room again it goes. */
static void a_full_disk_keeps_what_is_trimmed(void **state)
{
    struct search_rig *p = open_parts(false);
    uint64_t id = atomic_load(&p->rig.slots[0].stream_id);

    (void)state;
    feed(p, 0, 1, "Ottoline has the key. ", 60);
    for (uint64_t n = 1;; n++) {
        int result;

        vfs_fault_at(n, SQLITE_FULL, false);
        result = search_trim(p->search, id, 1);
        vfs_fault_at(0, 0, false);
        look(p, "Who has the key?");
        assert_true(p->job.hit_count > 0);
        assert_int_equal(finds_chunk(p, 0), result != 0);
        if (!result)
            break;
    }
    search_rig_close(p);
}

/* On a full disk an index that is not open cannot be opened: it stays what it is, which is said of
 * indexing once, and of each question. */
static void a_full_disk_takes_no_index(void **state)
{
    struct search_rig *p = open_parts(true);
    int was = dup(STDERR_FILENO), said = memfd_create("said", MFD_CLOEXEC);
    char path[200], text[4096] = "";
    uint32_t lines = 0;

    (void)state;
    feed(p, 0, 1, "Ottoline has the key. ", 60);
    look(p, "Who has the key?");
    snprintf(path, sizeof path, "%s/search/%016llx.db", p->folder,
             (unsigned long long)p->job.stream_id);
    for (int i = 0; i < SEARCH_OPEN_MAX; i++)
        word_table_close(&p->search->tables[i]);
    p->search->cursors[0].stream_id = 0;
    dup2(said, STDERR_FILENO);
    vfs_fault_at(1, SQLITE_FULL, true);
    for (int i = 0; i < 5; i++)
        search_step(p->search);
    run(p, SEARCH_TEXTS);
    vfs_fault_at(0, 0, false);
    dup2(was, STDERR_FILENO);
    assert_true(p->job.result < 0);
    assert_int_equal(access(path, F_OK), 0);
    assert_true(pread(said, text, sizeof text - 1, 0) > 0);
    for (uint32_t at = 0; text[at]; at++)
        lines += text[at] == '\n';
    assert_int_equal(lines, 2);
    assert_int_equal(run(p, SEARCH_TEXTS), 0);
    assert_non_null(strstr(p->job.text[0].text, "Ottoline"));
    close(said);
    close(was);
    search_rig_close(p);
}

/* A byte of the page that this part of a stream's database begins with is another. NULL: the
 * database is gone. */
static void flip(struct search_rig *p, const char *part)
{
    uint64_t id = atomic_load(&p->rig.slots[0].stream_id);
    char path[200], text[100];
    sqlite3_stmt *get;
    uint8_t byte;
    off_t at;
    int fd;

    snprintf(text, sizeof text, "SELECT rootpage FROM sqlite_master WHERE name = '%s'",
             part ? part : "words_data");
    assert_int_equal(
        sqlite3_prepare_v2(search_table(p->search, id, false)->db, text, -1, &get, NULL), 0);
    assert_int_equal(sqlite3_step(get), SQLITE_ROW);
    at = (off_t)(sqlite3_column_int(get, 0) - 1) * 4096 + 2000;
    sqlite3_finalize(get);
    for (int i = 0; i < SEARCH_OPEN_MAX; i++)
        word_table_close(&p->search->tables[i]);
    snprintf(path, sizeof path, "%s/search/%016llx.db", p->folder, (unsigned long long)id);
    fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
    if (!part)
        assert_int_equal(unlink(path), 0);
}

/* Nobody asks meanwhile: met where the index is opened, or only where it is written, it is made
 * again from the first chunk on. */
static void damage_met_by_indexing_is_mended(void **state)
{
    static const char *const parts[] = {"words_data", "words_docsize", NULL};

    (void)state;
    for (int i = 0; i < 6; i++) {
        struct search_rig *p = open_parts(i % 2);

        feed(p, 0, 1, "Ottoline has the key. ", 1);
        feed(p, 0, 2, "river bread market. ", 60);
        flip(p, parts[i / 2]);
        feed(p, 0, 3, "river bread market. ", 200);
        for (int times = 0; times < 10; times++)
            search_step(p->search);
        assert_int_equal(atomic_load(&p->rig.slots[0].indexed_to),
                         atomic_load(&p->rig.slots[0].tokens_acked) / CHUNK * CHUNK);
        look(p, "Who has the key?");
        assert_true(p->job.hit_count > 0);
        assert_non_null(strstr(p->job.text[0].text, "Ottoline"));
        search_rig_close(p);
    }
}

/* As soon as somebody asks, too: the question finds what it would have. */
static void damage_met_by_a_question_is_mended(void **state)
{
    struct search_rig *p = open_parts(true);

    (void)state;
    feed(p, 0, 1, "Ottoline has the key. ", 1);
    feed(p, 0, 2, "river bread market. ", 60);
    flip(p, "words_data");
    look(p, "Who has the key?");
    assert_true(p->job.hit_count > 0);
    assert_non_null(strstr(p->job.text[0].text, "Ottoline"));
    search_rig_close(p);
}

static void stop_all(struct search_rig *p)
{
    search_rig_stop(p);
    rig_close(&p->rig);
}

/* The journal is an earlier copy of itself: what was indexed behind it is not the stream's, even
 * where there is more text again before anybody looks. */
static void an_index_ahead_of_the_journal_is_not_believed(void **state)
{
    (void)state;
    for (int looks = 0; looks < 2; looks++) {
        struct search_rig *p = open_parts(false);
        char command[600];

        feed(p, 0, 1, "river bread market. ", 60);
        stop_all(p);
        snprintf(command, sizeof command, "cp %s/journal.db %s/copy", p->folder, p->folder);
        assert_int_equal(system(command), 0);
        search_rig_start_all(p);
        feed(p, 0, 2, "Ottoline has the key. ", 60);
        stop_all(p);
        snprintf(command, sizeof command, "rm %s/journal.db*; mv %s/copy %s/journal.db", p->folder,
                 p->folder, p->folder);
        assert_int_equal(system(command), 0);
        search_rig_start_all(p);
        if (looks)
            search_step(p->search);
        feed(p, 0, 2, "Barnaby has the boat. ", 120);
        look(p, "Who has the key?");
        assert_int_equal(p->job.hit_count, 0);
        look(p, "Who has the boat?");
        assert_true(p->job.hit_count > 0);
        search_rig_close(p);
    }
}

/* The stream goes from one place to another, as it would by resting. */
static void move(struct search_rig *p, uint32_t from, uint32_t to)
{
    rig_request(&p->rig, INGEST_UNLOAD, from, "");
    rig_settle(&p->rig);
    rig_order(&p->rig, SCHED_CLOSE, from, 0, 0);
    rig_settle(&p->rig);
    atomic_store(&p->rig.slots[from].stream_id, 0);
    rig_stream(&p->rig, to, "s", 4);
    rig_settle(&p->rig);
}

/* Back in a place where it had been before: what was indexed in another meanwhile is not again. */
static void no_chunk_is_indexed_twice(void **state)
{
    struct search_rig *p = open_parts(true);
    uint64_t chunks;

    (void)state;
    feed(p, 0, 1, "river bread market. ", 60);
    move(p, 0, 1);
    feed(p, 1, 2, "river bread market. ", 120);
    move(p, 1, 0);
    for (int i = 0; i < SEARCH_OPEN_MAX; i++)
        word_table_close(&p->search->tables[i]);
    feed(p, 0, 3, "Ottoline has the key. ", 60);
    chunks = atomic_load(&p->rig.slots[0].tokens_acked) / CHUNK;
    assert_int_equal(atomic_load(&p->rig.slots[0].indexed_to), chunks * CHUNK);
    look(p, "Who has the key?");
    assert_int_equal(p->search->postings.rows, chunks);
    search_rig_close(p);
}

/* A stream that rests before all of it is indexed: what is asked of its past finds that, too. */
static void the_past_of_a_stream_at_rest_is_found(void **state)
{
    struct search_rig *p = open_parts(true);
    struct slot *slot = &p->rig.slots[0];

    (void)state;
    rig_text(&p->rig, 0, "p", 1, "Ottoline has the key. ", 22);
    for (uint64_t i = 2; i < 80; i++)
        rig_text(&p->rig, 0, "p", i, "river bread market. ", 20);
    rig_settle(&p->rig);
    atomic_store(&slot->past, true);
    search_step(p->search); /* for nobody */
    assert_int_equal(atomic_load(&slot->indexed_to), 0);
    look(p, "Who has the key?");
    assert_true(p->job.hit_count > 0);
    assert_non_null(strstr(p->job.text[0].text, "Ottoline"));
    search_rig_close(p);
}

/* A name longer than most words: a commit's or a file's sum, a class. */
static void long_names_are_found(void **state)
{
    static const char name[] = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    struct search_rig *p = open_parts(true);
    char text[200];

    (void)state;
    feed(p, 0, 1, "river bread market. ", 200);
    snprintf(text, sizeof text, "The sum %s is that of the winter archive. ", name);
    feed(p, 0, 2, text, 1);
    feed(p, 0, 3, "river bread market. ", 200);
    snprintf(text, sizeof text, "What has %s?", name);
    for (enum search_by by = SEARCH_BY_BOTH; by <= SEARCH_BY_WORDS; by++) {
        p->search->options.by = by;
        look(p, text);
        assert_int_equal(p->job.result, 0);
        assert_in_range(p->job.hit_count, 1, 2);
        assert_non_null(strstr(p->job.text[0].text, name));
    }
    search_rig_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_of_another_question_is_left),
        cmocka_unit_test(trimmed_text_takes_no_place),
        cmocka_unit_test(trimmed_text_takes_no_room),
        cmocka_unit_test(what_is_forgotten_does_not_come_back),
        cmocka_unit_test(a_full_disk_keeps_what_is_trimmed),
        cmocka_unit_test(a_full_disk_takes_no_index),
        cmocka_unit_test(damage_met_by_indexing_is_mended),
        cmocka_unit_test(damage_met_by_a_question_is_mended),
        cmocka_unit_test(an_index_ahead_of_the_journal_is_not_believed),
        cmocka_unit_test(the_past_of_a_stream_at_rest_is_found),
        cmocka_unit_test(no_chunk_is_indexed_twice),
        cmocka_unit_test(long_names_are_found),
    };

    vfs_fault_install();
    return cmocka_run_group_tests_name("search_gone", tests, NULL, NULL);
}
