/*
 * A stream whose oldest text was trimmed away, its branches and its past: nothing that needs the
 * text takes what stands in its place for it, in whatever order requests meet in one batch.
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
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/journal_branch.h"
#include "daemon/search.h"
#include "tests/unit/rig.h"
#include "tests/unit/vfs_fault.h"

enum { LAG = 8192, HALF_BYTES = 4000, PINS = 64, SINKS = 8 };

/* Files of checkpoints: the process dies at a sync, or no name goes. */
static int syncs_left;
static bool names_stay;

static int sync_or_die(void *user, int fd)
{
    if (syncs_left && !--syncs_left)
        _exit(0);
    return files_real.sync(user, fd);
}

static int unlink_or_not(void *user, const char *path)
{
    return names_stay ? -EIO : files_real.unlink(user, path);
}

static struct files files;
static const struct rig_options options = {
    .slots = 2, .asks = 1, .lag_tokens_max = LAG, .checkpoints = true, .files = &files};
static struct rig rig;
static uint64_t id, first, sequence, seed;

static void push(const struct ingest_request *request)
{
    struct queue_part part = {request, sizeof *request};

    assert_int_equal(queue_push(&rig.journal_queue, &part, 1), 0);
}

static void push_branch(const char *name)
{
    struct ingest_request request = {.kind = INGEST_BRANCH, .slot = SLOT_NONE, .stream_id = id};

    snprintf(request.name, sizeof request.name, "%s", name);
    push(&request);
}

static void push_removal(void)
{
    push(&(struct ingest_request){.kind = INGEST_REMOVE, .slot = SLOT_NONE, .stream_id = id});
}

static void push_trim(void)
{
    push(&(struct ingest_request){
        .kind = INGEST_TRIM, .slot = SLOT_NONE, .stream_id = id, .to = UINT64_MAX});
}

static void feed_half(void)
{
    char text[HALF_BYTES];

    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(faults_random(&seed) % 6 ? 'a' + faults_random(&seed) % 26 : ' ');
    rig_text(&rig, 0, "p", ++sequence, text, sizeof text / 2);
    rig_text(&rig, 0, "p", ++sequence, text + sizeof text / 2, sizeof text / 2);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
}

static void leave(void)
{
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    rig_settle(&rig);
    rig_order(&rig, SCHED_CLOSE, 0, 0, 0);
    rig_settle(&rig);
    rig_forget(&rig);
}

/* In no slot, with two checkpoints and no text before the first. */
static int set_up(void **state)
{
    rig_folder_set_up(state);
    files = files_real;
    files.sync = sync_or_die;
    files.unlink = unlink_or_not;
    if (rig_open(&rig, rig_own_folder, &options))
        return -1;
    sequence = 0;
    seed = 11;
    for (int half = 0; half < 2; half++) {
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        id = atomic_load(&rig.slots[0].stream_id);
        feed_half();
        leave();
    }
    push_trim();
    rig_settle(&rig);
    first = rig_last(&rig, INGEST_TRIM)->first;
    assert_true(first > 0);
    rig_forget(&rig);
    return 0;
}

static int tear_down(void **state)
{
    rig_close(&rig);
    return rig_folder_tear_down(state);
}

static uint64_t hash_of(const char *name)
{
    uint64_t hash;

    rig_stream(&rig, 0, name, 4);
    rig_settle(&rig);
    assert_int_equal(slot_lag(&rig.slots[0]), 0);
    hash = rig_hash(&rig, 0);
    leave();
    return hash;
}

static void a_branch_knows_what_is_gone(void **state)
{
    (void)state;
    push_branch("b");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->error, 0);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->first, first);
}

/* It was asked for while there was text. */
static void the_past_is_not_made_of_nothing(void **state)
{
    struct ingest_request request = {
        .kind = INGEST_LOAD, .slot = 1, .stream_id = id, .past = true, .tokens_to = first - 1};

    (void)state;
    push(&request);
    rig_ingest(&rig);
    assert_int_equal(rig_last(&rig, INGEST_LOAD)->error, 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_false(rig.slots[1].ingest.open);
    request.tokens_to = first;
    push(&request);
    rig_ingest(&rig);
    assert_int_equal(rig_last(&rig, INGEST_LOAD)->error, 0);
    assert_true(rig.slots[1].ingest.open);
}

/* What it remembers of text that is gone is in its checkpoints alone. */
static void a_branch_remembers_though_its_stream_goes_at_once(void **state)
{
    uint64_t hash = hash_of("a");

    (void)state;
    push_branch("b");
    push_removal();
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->error, 0);
    assert_int_equal(rig_last(&rig, INGEST_REMOVE)->error, 0);
    assert_true(hash_of("b") == hash);
}

/* The stream is still there, and what it remembers with it. */
static void a_removal_that_fails_takes_nothing(void **state)
{
    uint64_t hash = hash_of("a"), failures = 0;

    (void)state;
    for (uint64_t n = 1;; n++, failures++) {
        vfs_fault_at(n, SQLITE_IOERR, true);
        push_removal();
        rig_settle(&rig);
        vfs_fault_mend();
        if (!rig_last(&rig, INGEST_REMOVE)->error)
            break;
        rig_forget(&rig);
        assert_true(hash_of("a") == hash);
    }
    assert_true(failures > 3);
    assert_int_equal(checkpoint_list(&rig.keeper.at, id, (uint64_t[CHECKPOINTS_SEEN_MAX]){0}), 0);
}

/* The text is still there, and what was made of it. */
static void a_trim_that_fails_takes_nothing(void **state)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX], failures = 0;
    uint32_t count;

    (void)state;
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    feed_half();
    leave();
    count = checkpoint_list(&rig.keeper.at, id, tokens);
    for (uint64_t n = 1;; n++, failures++) {
        vfs_fault_at(n, SQLITE_IOERR, true);
        push_trim();
        rig_settle(&rig);
        vfs_fault_mend();
        if (!rig_last(&rig, INGEST_TRIM)->error)
            break;
        assert_int_equal(checkpoint_list(&rig.keeper.at, id, tokens), count);
    }
    assert_true(failures > 3);
    assert_true(rig_last(&rig, INGEST_TRIM)->first > first);
    assert_true(checkpoint_list(&rig.keeper.at, id, tokens) < count);
    assert_true(tokens[0] >= rig_last(&rig, INGEST_TRIM)->first);
}

/* A process that dies at the n-th sync of a folder of checkpoints. True: at none. */
static bool branches_whole(int n)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        if (rig_open(&rig, rig_own_folder, &options))
            _exit(2);
        syncs_left = n;
        push_branch("b");
        rig_settle(&rig);
        _exit(rig_last(&rig, INGEST_BRANCH)->error ? 2 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status);
}

static void a_branch_that_is_there_remembers(void **state)
{
    uint64_t hash = hash_of("a");
    struct journal_stream stream;
    int deaths = 0;
    bool whole;

    (void)state;
    do {
        rig_close(&rig);
        whole = branches_whole(deaths + 1);
        assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
        if (journal_stream_find(rig.journal, "b", &stream) == 0)
            assert_true(hash_of("b") == hash);
        else
            assert_false(whole);
        deaths += !whole;
    } while (!whole);
    assert_true(deaths > 1);
}

/* A branch that could not have its parent's checkpoints would remember less than it says. */
static void a_branch_remembers_or_is_refused(void **state)
{
    uint64_t hash = hash_of("a");
    struct journal_stream stream;
    char path[PATH_BYTES_MAX + 64];
    FILE *file;

    (void)state;
    snprintf(path, sizeof path, "%s/%016llx", rig.keeper.at.folder, (unsigned long long)id + 1);
    file = fopen(path, "we"); /* where the branch's folder is to be */
    assert_non_null(file);
    fclose(file);
    push_branch("b");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->error, 1 + SILT__V1__ERROR__CODE__INTERNAL);
    assert_int_equal(journal_stream_find(rig.journal, "b", &stream), -ENOENT);
    assert_false(atomic_load(&rig.disk_failed));
    unlink(path);
    push_branch("b");
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_BRANCH)->error, 0);
    assert_true(hash_of("b") == hash);
}

/* Its number comes again, with another stream. */
static void a_branch_that_fails_leaves_nothing(void **state)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX], hash = hash_of("a"), branch = 0, failures = 0;

    (void)state;
    for (uint64_t n = 1;; n++) {
        vfs_fault_at(n, SQLITE_IOERR, true);
        push_branch("b");
        rig_settle(&rig);
        vfs_fault_mend();
        if (!rig_last(&rig, INGEST_BRANCH)->error)
            break;
        branch = rig_last(&rig, INGEST_BRANCH)->stream_id;
        assert_int_equal(branch ? checkpoint_list(&rig.keeper.at, branch, tokens) : 0, 0);
        failures += branch > 0;
    }
    assert_true(failures > 1);
    branch = rig_last(&rig, INGEST_BRANCH)->stream_id + 1;
    rig_forget(&rig);
    names_stay = true;
    for (uint64_t n = 1; !checkpoint_list(&rig.keeper.at, branch, tokens); n++) {
        assert_true(n < 100);
        vfs_fault_at(n, SQLITE_IOERR, true);
        push_branch("c");
        rig_settle(&rig);
        vfs_fault_mend();
    }
    names_stay = false;
    rig_stream(&rig, 0, "d", 4);
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_CREATE)->stream_id, branch);
    assert_int_equal(checkpoint_list(&rig.keeper.at, branch, tokens), 0);
    leave();
    assert_true(hash_of("a") == hash);
    assert_true(hash_of("b") == hash);
}

static void feed_lines(int count)
{
    for (int i = 0; i < count; i++) {
        char line[32];
        int n = snprintf(line, sizeof line, "line %d of many ", i);

        rig_text(&rig, 0, "p", ++sequence, line, (size_t)n);
    }
    rig_settle(&rig);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
}

/* Wherever it is begun, what is read ends where the stream does. */
static void check_places(uint64_t all)
{
    void *memory = aligned_alloc(64, reader_bytes(rig.ingest.scratch_max));
    struct reader *reader;
    struct reader_place place;
    const int32_t *tokens;
    uint64_t time_us;
    int count;

    assert_int_equal(reader_open(&reader, rig_own_folder, engine_tokenizer(rig_engine()),
                                 rig.ingest.scratch_max, memory),
                     0);
    for (uint64_t token = 0; token < all; token += 97) {
        assert_int_equal(reader_seek(reader, &place, id, token), 0);
        assert_true(place.token <= token);
        while ((count = reader_next(reader, &place, &tokens, &time_us)) > 0)
            ;
        assert_int_equal(count, 0);
        assert_int_equal(place.token, all);
    }
    reader_close(&reader);
    free(memory);
}

static int64_t count_rows(void)
{
    sqlite3_stmt *s;
    int64_t rows;

    assert_int_equal(
        sqlite3_prepare_v2(journal_db(rig.journal), "SELECT count(*) FROM items", -1, &s, NULL), 0);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    rows = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return rows;
}

/* What was trimmed before is not gone over again, nothing of it stays, and every place is found. */
static void a_trim_costs_what_it_trims(void **state)
{
    enum { LINES = 150, TRIMS = 6 };
    char from[PATH_BYTES_MAX + 64], to[sizeof from];
    uint64_t tokens[CHECKPOINTS_SEEN_MAX], old;
    uint32_t count;
    int changes;

    (void)state;
    for (int i = 0; i < TRIMS; i++) {
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        feed_lines(LINES);
        leave();
        if (i == TRIMS - 1) { /* a crash left one of before */
            assert_true(checkpoint_list(&rig.keeper.at, id, tokens) > 1);
            old = tokens[0];
            snprintf(from, sizeof from, "%s/%016llx/%016llx", rig.keeper.at.folder,
                     (unsigned long long)id, (unsigned long long)old);
            snprintf(to, sizeof to, "%s/kept", rig_own_folder);
            assert_int_equal(link(from, to), 0);
        }
        changes = sqlite3_total_changes(journal_db(rig.journal));
        push_trim();
        rig_settle(&rig);
        assert_int_equal(rig_last(&rig, INGEST_TRIM)->error, 0);
        changes = sqlite3_total_changes(journal_db(rig.journal)) - changes;
        assert_in_range(changes, 1, LINES + 20);
    }
    assert_true(rig_last(&rig, INGEST_TRIM)->first > old);
    assert_in_range(count_rows(), 2, 2 * LINES + 20);
    count = checkpoint_list(&rig.keeper.at, id, tokens);
    check_places(tokens[count - 1]);
    assert_int_equal(checkpoint_cut(&rig.keeper.at, id, 0), 0);
    assert_int_equal(checkpoint_write(&rig.keeper.at, id, 1, "", 0), 0); /* its folder */
    assert_int_equal(rename(to, from), 0);
    hash_of("a");
    assert_true(checkpoint_list(&rig.keeper.at, id, tokens) > 1);
}

/* Each has its own items then, and neither those that are gone. */
static void a_branch_of_trimmed_text_is_parted(void **state)
{
    struct journal_item item;
    struct journal_stream stream;
    uint64_t branch, hash, places[400][2];
    int64_t rows;

    (void)state;
    for (int i = 0; i < 2; i++) {
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        feed_lines(150);
        leave();
        push_trim();
        rig_settle(&rig);
    }
    hash = hash_of("a");
    assert_int_equal(journal_stream_get(rig.journal, id, &stream), 0);
    assert_in_range(stream.items, 300, 399);
    for (uint64_t i = 0; i < stream.items; i++) {
        assert_int_equal(journal_item_get(rig.journal, id, i, &item), 0);
        places[i][0] = item.token_from;
        places[i][1] = item.item.bytes_count;
    }
    push_branch("b");
    rig_settle(&rig);
    branch = rig_last(&rig, INGEST_BRANCH)->stream_id;
    rows = count_rows();
    assert_in_range(rows, 2, 250);
    for (int parted = 0; parted < 2; parted++) {
        for (uint64_t i = 0; i < stream.items; i++) {
            assert_int_equal(journal_item_get(rig.journal, branch, i, &item), 0);
            assert_int_equal(item.token_from, places[i][0]);
            assert_int_equal(item.item.bytes_count, places[i][1]);
        }
        assert_int_equal(journal_item_get(rig.journal, branch, stream.items, &item), -ENOENT);
        assert_int_equal(journal_begin(rig.journal), 0);
        assert_int_equal(journal_stream_part(rig.journal, branch), 0);
        assert_int_equal(journal_commit(rig.journal), 0);
    }
    assert_int_equal(count_rows(), 2 * rows);
    assert_true(hash_of("b") == hash);
}

static void start(void)
{
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
}

static void copy_journal(const char *from, const char *to)
{
    char command[400];

    snprintf(command, sizeof command, "rm -f %s/%s*; cp %s/%s %s/%s", rig_own_folder, to,
             rig_own_folder, from, rig_own_folder, to);
    assert_int_equal(system(command), 0);
}

/* What was computed of text that the journal has not is not of what came in its place, although
 * that is longer by now. */
static void the_journal_may_be_put_back(void **state)
{
    uint64_t sequence_then = sequence, hash;

    (void)state;
    rig_close(&rig);
    copy_journal("journal.db", "copy");
    start();
    feed_half();
    leave();
    rig_close(&rig);
    copy_journal("copy", "journal.db");
    start();
    sequence = sequence_then;
    feed_half();
    feed_half();
    hash = rig_hash(&rig, 0);
    rig_close(&rig);
    start();
    assert_true(rig_hash(&rig, 0) == hash);
}

static void run_sql(const char *text)
{
    assert_int_equal(journal_begin(rig.journal), 0);
    assert_int_equal(sqlite3_exec(journal_db(rig.journal), text, NULL, NULL, NULL), 0);
    assert_int_equal(journal_commit(rig.journal), 0);
}

/* Then no stream is made any more, which is said; those that are there go on. */
static void when_all_numbers_are_given(void **state)
{
    const struct ingest_result *made, *branched;

    (void)state;
    run_sql("UPDATE sqlite_sequence SET seq = 8388607 WHERE name = 'streams'");
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    rig_stream(&rig, 1, "new", 4);
    push_branch("b");
    rig_text(&rig, 0, "p", ++sequence, "text", 4);
    rig_settle(&rig);
    made = rig_last(&rig, INGEST_CREATE);
    branched = rig_last(&rig, INGEST_BRANCH);
    assert_int_equal(made->error, 1 + SILT__V1__ERROR__CODE__NO_SPACE);
    assert_non_null(strstr(made->message, "8388607"));
    assert_int_equal(branched->error, 1 + SILT__V1__ERROR__CODE__NO_SPACE);
    assert_string_equal(branched->message, made->message);
    assert_false(rig.slots[1].ingest.open);
    assert_int_equal(rig_last(&rig, INGEST_FEED)->error, 0);
    assert_int_equal(journal_stream_find(rig.journal, "new", &(struct journal_stream){0}), -ENOENT);
    assert_int_equal(journal_stream_find(rig.journal, "b", &(struct journal_stream){0}), -ENOENT);
}

static uint32_t pin(uint64_t from, uint64_t to)
{
    struct ingest_request request = {.kind = INGEST_PIN,
                                     .slot = 0,
                                     .stream_id = id,
                                     .verb = SILT__V1__PINS__VERB__PIN,
                                     .from = from,
                                     .to = to};

    push(&request);
    rig_settle(&rig);
    return rig_last(&rig, INGEST_PIN)->error;
}

/* With a pin come the stream's first tokens, which are gone too. */
static void no_other_text_is_pinned(void **state)
{
    const struct slot_pins *pins = &rig.slots[0].pins;

    (void)state;
    rig.ingest.pin_tokens_max = PINS;
    rig.ingest.sink_tokens = SINKS;
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    assert_int_equal(pin(first - 20, first - 4), 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_int_equal(pin(first - 1, first + 4), 1 + SILT__V1__ERROR__CODE__INVALID);
    assert_int_equal(atomic_load(&pins->count), 0);
    assert_int_equal(pin(first, first + 20), 0);
    assert_int_equal(atomic_load(&pins->count), 1);
    assert_int_equal(pins->pin[0].before, SINKS);
    for (int i = 0; i < SINKS; i++)
        assert_int_equal(pins->tokens[i], GAP_TOKEN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_branch_knows_what_is_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_past_is_not_made_of_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_branch_remembers_though_its_stream_goes_at_once, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_removal_that_fails_takes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_trim_that_fails_takes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_branch_that_is_there_remembers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_branch_remembers_or_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_branch_that_fails_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_trim_costs_what_it_trims, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_branch_of_trimmed_text_is_parted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_journal_may_be_put_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(when_all_numbers_are_given, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_other_text_is_pinned, set_up, tear_down),
    };

    vfs_fault_install();
    return cmocka_run_group_tests_name("timelines", tests, NULL, NULL);
}
