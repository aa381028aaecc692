/*
 * Grants on a disk whose every call fails in turn: what siltd lets in is what its file says, and
 * whether something has holds is said as it is.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/keys.h"

static const char one[] = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
static const char two[] = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";

static uint64_t calls, fail_at;

static int fails(void)
{
    return ++calls == fail_at ? -EIO : 0;
}

static int fault_open(void *user, const char *path, int flags)
{
    return fails() ? -EIO : files_real.open(user, path, flags);
}

static ssize_t fault_write(void *user, int fd, const void *bytes, size_t count, off_t at)
{
    return fails() ? -EIO : files_real.write(user, fd, bytes, count, at);
}

static int fault_sync(void *user, int fd)
{
    return fails() ? -EIO : files_real.sync(user, fd);
}

static int fault_rename(void *user, const char *from, const char *to)
{
    return fails() ? -EIO : files_real.rename(user, from, to);
}

static struct files faulty(void)
{
    struct files files = files_real;

    files.open = fault_open;
    files.write = fault_write;
    files.sync = fault_sync;
    files.rename = fault_rename;
    return files;
}

static void open_keys(struct keys *keys, const struct files *files, const char *data)
{
    char error[ERROR_BYTES_MAX];

    *keys = (struct keys){.grants = calloc(GRANTS_MAX, sizeof *keys->grants)};
    assert_non_null(keys->grants);
    assert_int_equal(keys_open(keys, files, data, error, sizeof error), 0);
}

static void shut(struct keys *keys)
{
    keys_close(keys);
    free(keys->grants);
}

static int change(struct keys *keys, bool allow, bool *holds)
{
    return allow ? keys_allow(keys, two, "two", NULL, holds) : keys_deny(keys, two, NULL, holds);
}

/* One change whose n-th call fails. False: it has fewer. */
static bool trial(const struct files *files, const char *data, bool allow, uint64_t n)
{
    struct keys keys, file;
    bool holds, held;
    int result;

    open_keys(&keys, files, data);
    assert_int_equal(keys_allow(&keys, one, "one", "s", &holds), 0);
    if (keys_known(&keys, two) == allow)
        assert_int_equal(change(&keys, !allow, &holds), 0);
    calls = 0;
    fail_at = n;
    result = change(&keys, allow, &holds);
    assert_int_equal(result, calls < n ? 0 : -EIO);
    assert_int_equal(keys_known(&keys, two) == allow, holds);
    assert_true(holds || result);
    if (result && holds) { /* another change that fails is not taken for this one */
        fail_at = calls + 1;
        assert_int_equal(keys_allow(&keys, one, "one", "t", &held), -EIO);
        assert_true(!held && !keys_may(&keys, one, "t"));
    }
    fail_at = 0;
    open_keys(&file, &files_real, data);
    assert_int_equal(keys_known(&file, two), keys_known(&keys, two));
    assert_true(keys_may(&file, one, "s") && keys_may(&keys, one, "s"));
    shut(&file);
    /* Again, on a disk that is well: it is so, and durable, which takes a call. */
    calls = 0;
    held = holds;
    assert_int_equal(change(&keys, allow, &holds), allow || !held ? 0 : -ENOENT);
    assert_true(holds && (!result || calls));
    shut(&keys);
    return result;
}

static void each_call_fails(void **state)
{
    static const char *const left[] = {"server", "clients", "clients.new"};
    struct files files = faulty();
    char data[] = "/tmp/silt-keys-XXXXXX", path[64];

    (void)state;
    assert_non_null(mkdtemp(data));
    for (int allow = 0; allow < 2; allow++) {
        uint64_t n = 1;

        while (trial(&files, data, allow, n))
            n++;
        print_message("%s: each of %d calls fails\n", allow ? "allow" : "deny", (int)n - 1);
        assert_in_range(n, 6, 100);
    }
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        snprintf(path, sizeof path, "%s/keys/%s", data, left[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/keys", data);
    assert_int_equal(rmdir(path) | rmdir(data), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_call_fails)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
