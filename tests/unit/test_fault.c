/*
 * Disks that fail: every call of the journal in turn, the power cut at random, every call of a
 * checkpoint in turn, bytes that rot. What was acked is there, and nothing wrong is served.
 *
 * argv[1] or SILT_SEED: the seed, printed; SILT_ROUNDS: more of the random ones.
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
static char folder[64];
static uint64_t seed_first = 1, rounds = 40;

static uint64_t mix(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

static int new_folder(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    return 0;
}

static int drop_folder(void **state)
{
    (void)state;
    rig_folder_drop(folder);
    return 0;
}

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

    assert_int_equal(rig_open(&rig, folder, &options), 0);
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
    if (rig_open(&rig, folder, &options) == 0) {
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

static void each_journal_call_fails(int code, bool for_ever, uint64_t stride)
{
    enum { LAST = 12 };
    uint64_t n = 1, acked;

    while (run_with_fault(n, code, for_ever, LAST, &acked)) {
        if (!for_ever && acked)
            assert_int_equal(acked, LAST); /* one failure: the next try works */
        check_after(acked, LAST);
        rig_folder_drop(folder);
        assert_int_equal(mkdir(folder, 0700), 0);
        n += stride;
    }
    print_message("calls of the journal: %" PRIu64 "\n", n);
    assert_int_equal(acked, LAST);
}

static void one_read_or_write_fails(void **state)
{
    (void)state;
    each_journal_call_fails(SQLITE_IOERR, false, 1);
}

static void the_disk_is_full(void **state)
{
    (void)state;
    each_journal_call_fails(SQLITE_FULL, true, 3);
}

/* Full, then not: acks stop, say so, and go on without a restart. */
static void room_comes_back(void **state)
{
    const struct ingest_result *result;

    (void)state;
    vfs_fault_mend();
    assert_int_equal(rig_open(&rig, folder, &options), 0);
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

/* Writes that were not synced are lost, kept or torn. */
static void the_power_goes(void **state)
{
    (void)state;
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t seed = seed_first * 1000 + round, last = 3 + mix(&seed) % 40, acked;

        rig_folder_drop(folder);
        assert_int_equal(mkdir(folder, 0700), 0);
        assert_int_equal(rig_open(&rig, folder, &options), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        acked = feed_to(last, 1);
        if (mix(&seed) % 2) { /* in the middle of a commit */
            char text[80];

            vfs_fault_at(1 + mix(&seed) % 6, SQLITE_IOERR, true);
            rig_text(&rig, 0, "p", acked + 1, text, message(acked + 1, text, sizeof text));
            rig_settle(&rig);
        }
        vfs_fault_cut(mix(&seed));
        rig_close(&rig);
        vfs_fault_mend();
        {
            char path[96];

            snprintf(path, sizeof path, "%s/journal.db-shm", folder);
            unlink(path); /* shared memory does not outlive the power */
        }
        check_after(acked, last + 5);
    }
    print_message("power cuts: %" PRIu64 " from seed %" PRIu64 ", acked and lost: 0\n", rounds,
                  seed_first);
}

/* The canary: where syncs do nothing, the same cuts must lose something, or these tests are blind.
 */
static void a_disk_that_lies_is_found_out(void **state)
{
    int found = 0;

    (void)state;
    for (uint64_t round = 0; round < 10; round++) {
        uint64_t acked, stored = 0;

        rig_folder_drop(folder);
        assert_int_equal(mkdir(folder, 0700), 0);
        vfs_fault_lie(true);
        assert_int_equal(rig_open(&rig, folder, &options), 0);
        rig_stream(&rig, 0, "a", 4);
        rig_settle(&rig);
        acked = feed_to(20, 1);
        vfs_fault_cut(seed_first * 77 + round);
        rig_close(&rig);
        vfs_fault_lie(false);
        vfs_fault_mend();
        if (rig_open(&rig, folder, &options) == 0) {
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

/* ---- checkpoints ---- */

static uint64_t file_calls, file_fail_at;

static bool file_fails(void)
{
    return ++file_calls == file_fail_at;
}

static int fault_open(void *user, const char *path, int flags)
{
    return file_fails() ? -EIO : files_real.open(user, path, flags);
}

static ssize_t fault_read(void *user, int fd, void *bytes, size_t count, off_t at)
{
    return file_fails() ? -EIO : files_real.read(user, fd, bytes, count, at);
}

/* Short when it does not fail: the rest must follow. */
static ssize_t fault_write(void *user, int fd, const void *bytes, size_t count, off_t at)
{
    if (file_fails())
        return -ENOSPC;
    return files_real.write(user, fd, bytes, count > 5000 ? count / 2 : count, at);
}

static int fault_sync(void *user, int fd)
{
    return file_fails() ? -EIO : files_real.sync(user, fd);
}

static int fault_close(void *user, int fd)
{
    int result = files_real.close(user, fd);

    return file_fails() ? -EIO : result;
}

static int fault_rename(void *user, const char *from, const char *to)
{
    return file_fails() ? -EIO : files_real.rename(user, from, to);
}

static int fault_unlink(void *user, const char *path)
{
    return file_fails() ? -EIO : files_real.unlink(user, path);
}

static const struct files files_fault = {.open = fault_open,
                                         .read = fault_read,
                                         .write = fault_write,
                                         .sync = fault_sync,
                                         .close = fault_close,
                                         .rename = fault_rename,
                                         .unlink = fault_unlink};

enum { STATE_BYTES = 40000 };
static uint8_t state_bytes[STATE_BYTES], read_bytes[STATE_BYTES];

static void fill_state(uint64_t tokens)
{
    uint64_t seed = tokens;

    for (size_t i = 0; i < STATE_BYTES; i++)
        state_bytes[i] = (uint8_t)mix(&seed);
}

/* Whatever the newest one that reads is, it is right. */
static uint64_t newest_right(const struct checkpoints *at)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(at, 7, tokens);
    size_t bytes;

    while (count-- > 0) {
        if (checkpoint_read(at, 7, tokens[count], read_bytes, STATE_BYTES, &bytes))
            continue;
        assert_int_equal(bytes, STATE_BYTES);
        fill_state(tokens[count]);
        assert_memory_equal(read_bytes, state_bytes, STATE_BYTES);
        return tokens[count];
    }
    return 0;
}

static void each_checkpoint_call_fails(void **state)
{
    struct checkpoints at = {.files = &files_fault, .model_fingerprint = 1};
    uint64_t n, last = 0;

    (void)state;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", folder);
    for (n = 1;; n++) {
        uint64_t tokens = n * CHECKPOINT_TOKENS, found;
        int result;

        fill_state(tokens);
        file_calls = 0;
        file_fail_at = n;
        result = checkpoint_write(&at, 7, tokens, state_bytes, STATE_BYTES);
        checkpoint_thin(&at, 7);
        file_fail_at = 0;
        found = newest_right(&at);
        assert_true(found == tokens || (result && found == last));
        last = found;
        if (file_calls < n)
            break;
    }
    print_message("calls of a checkpoint: %" PRIu64 "\n", n);
    assert_int_equal(checkpoint_cut(&at, 7, 0), 0);
    assert_int_equal(newest_right(&at), 0);
}

/* A disk whose power goes at one of the calls: what was written since the last sync is lost or
 * torn, names that no sync of their folder has made durable may be the old ones. */
static struct {
    char path[PATH_BYTES_MAX + 96];
    bool open, dirty;
} cut_file[64]; /* by fd */
static struct {
    char from[PATH_BYTES_MAX + 96], to[PATH_BYTES_MAX + 96];
} cut_name;
static bool power_gone;

static bool power_goes(void)
{
    power_gone |= file_fails();
    return power_gone;
}

static int cut_open(void *user, const char *path, int flags)
{
    int fd = power_goes() ? -EIO : files_real.open(user, path, flags);

    assert_true(fd < (int)(sizeof cut_file / sizeof *cut_file));
    if (fd >= 0) {
        cut_file[fd].open = true;
        snprintf(cut_file[fd].path, sizeof cut_file[fd].path, "%s", path);
    }
    return fd;
}

static ssize_t cut_write(void *user, int fd, const void *bytes, size_t count, off_t at)
{
    cut_file[fd].dirty = true;
    /* What is under way when the power goes arrives in part. */
    if (power_goes())
        return count > 100 ? (files_real.write(user, fd, bytes, count / 3, at), -EIO) : -EIO;
    return files_real.write(user, fd, bytes, count > 9000 ? count / 2 : count, at);
}

static int cut_sync(void *user, int fd)
{
    (void)user;
    if (power_goes())
        return -EIO;
    cut_file[fd].dirty = false;
    if (strstr(cut_name.to, cut_file[fd].path) == cut_name.to) /* its folder */
        cut_name.to[0] = '\0';
    return 0;
}

static int cut_close(void *user, int fd)
{
    if (!cut_file[fd].dirty)
        cut_file[fd].open = false;
    return files_real.close(user, fd);
}

static int cut_rename(void *user, const char *from, const char *to)
{
    int result = power_goes() ? -EIO : files_real.rename(user, from, to);

    if (!result) {
        snprintf(cut_name.from, sizeof cut_name.from, "%s", from);
        snprintf(cut_name.to, sizeof cut_name.to, "%s", to);
    }
    return result;
}

static int cut_unlink(void *user, const char *path)
{
    return power_goes() ? -EIO : files_real.unlink(user, path);
}

static const struct files files_cut = {.open = cut_open,
                                       .read = fault_read,
                                       .write = cut_write,
                                       .sync = cut_sync,
                                       .close = cut_close,
                                       .rename = cut_rename,
                                       .unlink = cut_unlink};

static void after_the_cut(uint64_t *seed)
{
    struct stat status;

    for (size_t i = 0; i < sizeof cut_file / sizeof *cut_file; i++)
        if (cut_file[i].dirty && stat(cut_file[i].path, &status) == 0)
            assert_int_equal(
                truncate(cut_file[i].path, (off_t)(mix(seed) % ((uint64_t)status.st_size + 1))), 0);
    if (cut_name.to[0] && mix(seed) % 2)
        rename(cut_name.to, cut_name.from);
    memset(cut_file, 0, sizeof cut_file);
    cut_name.to[0] = '\0';
    power_gone = false;
}

static void the_power_goes_at_a_checkpoint(void **state)
{
    struct checkpoints at = {.files = &files_cut, .model_fingerprint = 1}, after = at;
    uint64_t last = 0, seed = seed_first, cuts = 0;

    (void)state;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", folder);
    after = at;
    after.files = &files_real;
    for (uint64_t round = 1; round <= 10 * rounds; round++) {
        uint64_t tokens = round * CHECKPOINT_TOKENS, found;
        int result;

        fill_state(tokens);
        file_calls = 0;
        file_fail_at = 1 + mix(&seed) % 24;
        result = checkpoint_write(&at, 7, tokens, state_bytes, STATE_BYTES);
        if (!result)
            checkpoint_thin(&at, 7);
        cuts += power_gone;
        file_fail_at = 0;
        after_the_cut(&seed);
        found = newest_right(&after);
        /* What was told to be there is; what was not told may be. */
        assert_true(found == tokens || (result && found == last));
        last = found;
    }
    print_message("power cuts at checkpoints: %" PRIu64 ", lost or wrong: 0\n", cuts);
    assert_true(cuts > rounds);
}

static void old_ones_grow_rarer(void **state)
{
    struct checkpoints at = {.files = &files_real, .model_fingerprint = 1};
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count;

    (void)state;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", folder);
    for (uint64_t i = 1; i <= 60; i++) {
        assert_int_equal(checkpoint_write(&at, 7, i * 100, state_bytes, 100), 0);
        checkpoint_thin(&at, 7);
        count = checkpoint_list(&at, 7, tokens);
        assert_true(count <= CHECKPOINTS_MAX);
        assert_int_equal(tokens[count - 1], i * 100);
        if (i > 1)
            assert_int_equal(tokens[count - 2], (i - 1) * 100);
    }
    assert_int_equal(count, CHECKPOINTS_MAX);
    assert_int_equal(tokens[0], 100);
    assert_true(tokens[2] - tokens[1] > tokens[count - 1] - tokens[count - 2]);
}

static void rot_is_seen(void **state)
{
    struct checkpoints at = {.files = &files_real, .model_fingerprint = 1}, other = at;
    uint64_t seed = seed_first, found = 0;
    char path[PATH_BYTES_MAX + 64];
    size_t bytes;
    int fd;

    (void)state;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", folder);
    memcpy(other.folder, at.folder, sizeof other.folder);
    other.model_fingerprint = 2;
    fill_state(100);
    assert_int_equal(checkpoint_write(&at, 7, 100, state_bytes, STATE_BYTES), 0);
    assert_int_equal(checkpoint_read(&other, 7, 100, read_bytes, STATE_BYTES, &bytes), -EBADMSG);
    assert_int_equal(checkpoint_read(&at, 7, 100, read_bytes, STATE_BYTES - 1, &bytes), -EBADMSG);
    snprintf(path, sizeof path, "%s/%016x/%016x", at.folder, 7, 100);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (int i = 0; i < 3000; i++) {
        off_t where = (off_t)(mix(&seed) % (CHECKPOINT_HEAD_BYTES + STATE_BYTES));
        uint8_t was, is;

        assert_int_equal(pread(fd, &was, 1, where), 1);
        is = was ^ (uint8_t)(1u << mix(&seed) % 8);
        assert_int_equal(pwrite(fd, &is, 1, where), 1);
        if (checkpoint_read(&at, 7, 100, read_bytes, STATE_BYTES, &bytes) == 0)
            assert_memory_equal(read_bytes, state_bytes, STATE_BYTES); /* in the head's padding */
        else
            found++;
        assert_int_equal(pwrite(fd, &was, 1, where), 1);
    }
    print_message("flips: 3000, seen %" PRIu64 ", harmless %" PRIu64 "\n", found, 3000 - found);
    assert_int_equal(checkpoint_read(&at, 7, 100, read_bytes, STATE_BYTES, &bytes), 0);
    for (off_t cut = CHECKPOINT_HEAD_BYTES + STATE_BYTES - 1; cut >= 0; cut -= 997) {
        assert_int_equal(ftruncate(fd, cut), 0);
        assert_int_equal(checkpoint_read(&at, 7, 100, read_bytes, STATE_BYTES, &bytes), -EBADMSG);
    }
    close(fd);
    /* One that lies where another belongs. */
    assert_int_equal(checkpoint_write(&at, 7, 100, state_bytes, STATE_BYTES), 0);
    {
        char elsewhere[PATH_BYTES_MAX + 64];

        snprintf(elsewhere, sizeof elsewhere, "%s/%016x/%016x", at.folder, 7, 200);
        assert_int_equal(rename(path, elsewhere), 0);
    }
    assert_int_equal(checkpoint_read(&at, 7, 200, read_bytes, STATE_BYTES, &bytes), -EBADMSG);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_read_or_write_fails, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(the_disk_is_full, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(room_comes_back, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(the_power_goes, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_disk_that_lies_is_found_out, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(each_checkpoint_call_fails, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(the_power_goes_at_a_checkpoint, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(old_ones_grow_rarer, new_folder, drop_folder),
        cmocka_unit_test_setup_teardown(rot_is_seen, new_folder, drop_folder),
    };
    const char *seed = argc > 1 ? argv[1] : getenv("SILT_SEED");

    if (seed)
        seed_first = strtoull(seed, NULL, 10);
    if (getenv("SILT_ROUNDS"))
        rounds = strtoull(getenv("SILT_ROUNDS"), NULL, 10);
    vfs_fault_install();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
