/*
 * Checkpoints on disks that fail: every call in turn, in each way, the power cut at one of them,
 * bytes that rot. The newest one that reads is right.
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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/rig.h"

static uint64_t seed_first = 1, rounds = 40;

/* How the call goes that is counted out. Every write of some size is short besides. */
enum way { WAY_EIO, WAY_ENOSPC, WAY_SHORT, WAY_LATE, WAYS };
static const char *const way_names[WAYS] = {"EIO", "ENOSPC", "short", "late"};

static uint64_t file_calls, file_fail_at;
static enum way way;

/* 0: it goes as it should, or late. */
static int file_fails(void)
{
    if (++file_calls != file_fail_at)
        return 0;
    if (way == WAY_LATE)
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    return way == WAY_EIO ? -EIO : way == WAY_ENOSPC ? -ENOSPC : 0;
}

/* One byte is moved where the call is to be short. */
static size_t length(size_t count)
{
    return way == WAY_SHORT && file_calls == file_fail_at && count ? 1 : count;
}

static int fault_open(void *user, const char *path, int flags)
{
    int code = file_fails();

    return code ? code : files_real.open(user, path, flags);
}

static ssize_t fault_read(void *user, int fd, void *bytes, size_t count, off_t at)
{
    int code = file_fails();

    return code ? code : files_real.read(user, fd, bytes, length(count), at);
}

static ssize_t fault_write(void *user, int fd, const void *bytes, size_t count, off_t at)
{
    int code = file_fails();

    return code ? code
                : files_real.write(user, fd, bytes, length(count > 5000 ? count / 2 : count), at);
}

static int fault_sync(void *user, int fd)
{
    int code = file_fails();

    return code ? code : files_real.sync(user, fd);
}

static int fault_close(void *user, int fd)
{
    int result = files_real.close(user, fd), code = file_fails();

    return code ? code : result;
}

static int fault_rename(void *user, const char *from, const char *to)
{
    int code = file_fails();

    return code ? code : files_real.rename(user, from, to);
}

static int fault_unlink(void *user, const char *path)
{
    int code = file_fails();

    return code ? code : files_real.unlink(user, path);
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
        state_bytes[i] = (uint8_t)faults_random(&seed);
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

/* Written, thinned, read back, cut: each call of it in turn until a run that meets none. */
static uint64_t calls_fail(struct checkpoints *at, uint64_t *last)
{
    for (uint64_t n = 1;; n++) {
        uint64_t tokens = *last + CHECKPOINT_TOKENS, found;
        int result;

        fill_state(tokens);
        file_calls = 0;
        file_fail_at = n;
        result = checkpoint_write(at, 7, tokens, state_bytes, STATE_BYTES);
        checkpoint_thin(at, 7);
        if (way == WAY_SHORT || way == WAY_LATE)
            assert_int_equal(result, 0);
        found = newest_right(at); /* one that a read refused is passed over for an older one */
        file_fail_at = 0;
        if (file_calls < n)
            return n - 1;
        assert_true(found == tokens || result || found == *last || !*last);
        found = newest_right(at);
        assert_true(found == tokens || (result && found == *last));
        *last = found;
    }
}

static void each_checkpoint_call_fails(void **state)
{
    struct checkpoints at = {.files = &files_fault, .model_fingerprint = 1};
    uint64_t last = 0;

    (void)state;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", rig_own_folder);
    for (way = 0; way < WAYS; way++)
        print_message("%s: each of %" PRIu64 " calls of a checkpoint written, thinned and read\n",
                      way_names[way], calls_fail(&at, &last));
    for (way = 0; way < WAYS; way++) { /* each call of its removal */
        uint64_t n = 1;

        for (int result = -1; result; n++) {
            fill_state(100);
            assert_int_equal(checkpoint_write(&at, 7, 100, state_bytes, STATE_BYTES), 0);
            file_calls = 0;
            file_fail_at = n;
            result = checkpoint_cut(&at, 7, 0);
            result = file_calls < n ? result : -1;
            file_fail_at = 0;
            assert_true(result || newest_right(&at) == 0);
        }
    }
    way = WAY_EIO;
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
    power_gone |= file_fails() != 0;
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
            assert_int_equal(truncate(cut_file[i].path, (off_t)(faults_random(seed) %
                                                                ((uint64_t)status.st_size + 1))),
                             0);
    if (cut_name.to[0] && faults_random(seed) % 2)
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
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", rig_own_folder);
    after = at;
    after.files = &files_real;
    for (uint64_t round = 1; round <= 10 * rounds; round++) {
        uint64_t tokens = round * CHECKPOINT_TOKENS, found;
        int result;

        fill_state(tokens);
        file_calls = 0;
        file_fail_at = 1 + faults_random(&seed) % 24;
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
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", rig_own_folder);
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
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", rig_own_folder);
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
        off_t where = (off_t)(faults_random(&seed) % (CHECKPOINT_HEAD_BYTES + STATE_BYTES));
        uint8_t was, is;

        assert_int_equal(pread(fd, &was, 1, where), 1);
        is = was ^ (uint8_t)(1u << faults_random(&seed) % 8);
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

static bool is_seven(void *user, uint64_t stream_id)
{
    (void)user;
    return stream_id == 7;
}

static bool is_there(const char *folder, const char *name)
{
    char path[PATH_BYTES_MAX + 64];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static void what_a_crash_left_goes(void **state)
{
    struct checkpoints at = {.files = &files_real, .model_fingerprint = 1};
    char half[PATH_BYTES_MAX + 64];

    (void)state;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", rig_own_folder);
    fill_state(100);
    assert_int_equal(checkpoint_write(&at, 8, 100, state_bytes, STATE_BYTES), 0);
    assert_int_equal(checkpoint_branch(&at, 8, 7, 100), 0);
    assert_int_equal(checkpoint_write(&at, 7, 100, state_bytes, STATE_BYTES), 0);
    for (int stream = 7; stream < 9; stream++) {
        snprintf(half, sizeof half, "%s/%016x/%016x.new", at.folder, stream, 200);
        close(open(half, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    }
    assert_int_equal(checkpoint_sweep(&at, is_seven, NULL), 0);
    assert_false(is_there(at.folder, "0000000000000008"));
    assert_false(is_there(at.folder, "0000000000000007/00000000000000c8.new"));
    assert_true(is_there(at.folder, "0000000000000007/0000000000000064"));
    assert_true(is_there(at.folder, "0000000000000007/0000000000000064.0000000000000008"));
    assert_int_equal(newest_right(&at), 100);
}

static int open_but_one(void *user, const char *path, int flags)
{
    return strstr(path, "/0000000000000009/") ? -EIO : files_real.open(user, path, flags);
}

/* A file that cannot be overwritten keeps no other from going. */
static void one_that_stays_keeps_no_other(void **state)
{
    struct files some = files_real;
    struct checkpoints at = {.files = &files_real, .model_fingerprint = 1};

    (void)state;
    some.open = open_but_one;
    snprintf(at.folder, sizeof at.folder, "%s/checkpoints", rig_own_folder);
    for (uint64_t stream = 8; stream < 24; stream++)
        assert_int_equal(checkpoint_write(&at, stream, 100, state_bytes, 100), 0);
    at.files = &some;
    assert_int_equal(checkpoint_sweep(&at, is_seven, NULL), -EIO);
    for (uint64_t stream = 8; stream < 24; stream++)
        assert_int_equal(checkpoint_list(&at, stream, (uint64_t[CHECKPOINTS_SEEN_MAX]){0}),
                         stream == 9);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        rig_folder_test(each_checkpoint_call_fails),
        rig_folder_test(the_power_goes_at_a_checkpoint),
        rig_folder_test(old_ones_grow_rarer),
        rig_folder_test(rot_is_seen),
        rig_folder_test(what_a_crash_left_goes),
        rig_folder_test(one_that_stays_keeps_no_other),
    };

    seed_first = argc > 1 ? strtoull(argv[1], NULL, 10) : faults_number("SILT_SEED", seed_first);
    rounds = faults_number("SILT_ROUNDS", rounds);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
