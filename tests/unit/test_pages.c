/* The journal's log: what was synced of it is known, however the transaction came into it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/pages.h"
#include "tests/unit/rig.h"
#include "tests/unit/vfs_fault.h"

#define LARGE                                                                                      \
    "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) "        \
    "INSERT INTO t SELECT i, randomblob(1000) FROM n;"                                             \
    "UPDATE t SET v = randomblob(1000) WHERE k % 3 = 0"

static void path_of(const char *name, char out[128])
{
    snprintf(out, 128, "%s/%s", rig_own_folder, name);
}

static void must(sqlite3 *db, const char *text)
{
    if (sqlite3_exec(db, text, NULL, NULL, NULL))
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
}

static sqlite3 *open_log(char path[128])
{
    sqlite3 *db;

    path_of("journal.db", path);
    assert_int_equal(pages_register(), 0);
    assert_int_equal(
        sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, PAGES_VFS), 0);
    assert_int_equal(pages_reserve(db), 0);
    must(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;"
             "CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB); PRAGMA cache_size=10");
    return db;
}

/* The transaction is larger than the cache: pages of it go to the log, are read and changed again,
 * and lie where they lay. */
static void a_large_transaction_is_known_whole(void **state)
{
    char path[128], log[128], error[400] = "";
    struct stat status;
    uint8_t byte;
    sqlite3 *db = open_log(path);

    (void)state;
    path_of("journal.db-wal", log);
    must(db, LARGE "; COMMIT");
    assert_int_equal(pages_log_check(path, error, sizeof error), 0);
    assert_int_equal(stat(log, &status), 0);
    assert_int_equal((status.st_size - LOG_HEAD_BYTES) % FRAME_BYTES, 0);
    for (int frames = 1; frames <= 3; frames++) { /* from the last, which commits it, back */
        int fd = open(log, O_RDWR);
        off_t at = status.st_size - frames * FRAME_BYTES + 100;

        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        assert_int_equal(pages_log_check(path, error, sizeof error), -EBADMSG);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
    }
    assert_int_equal(pages_log_check(path, error, sizeof error), 0);
    sqlite3_close(db);
}

/* What of one is in the log counts for nothing once it was taken back, whenever that is synced. */
static void nothing_taken_back_is_missed(void **state)
{
    char path[128], error[400] = "";
    sqlite3 *db = open_log(path);

    (void)state;
    must(db, "INSERT INTO t VALUES (0, randomblob(5000))");
    must(db, LARGE "; ROLLBACK");
    must(db, "PRAGMA wal_checkpoint(PASSIVE)");
    assert_int_equal(pages_log_check(path, error, sizeof error), 0);
    must(db, LARGE "; COMMIT");
    assert_int_equal(pages_log_check(path, error, sizeof error), 0);
    sqlite3_close(db);
}

/* A frame whose head alone is in the log is no part of it. */
static void half_a_frame_is_not_missed(void **state)
{
    char path[128], error[400] = "";
    uint64_t calls = 0;
    bool met = true;
    sqlite3 *db;

    (void)state;
    vfs_fault_install();
    db = open_log(path);
    while (met) {
        must(db, "INSERT INTO t (v) VALUES (randomblob(5000))");
        vfs_fault_at(++calls, SQLITE_IOERR, false);
        sqlite3_exec(db, "INSERT INTO t (v) VALUES (randomblob(9000))", NULL, NULL, NULL);
        met = vfs_fault_met();
        vfs_fault_mend();
        must(db, "PRAGMA wal_checkpoint(PASSIVE)"); /* which syncs the log */
        assert_int_equal(pages_log_check(path, error, sizeof error), 0);
    }
    assert_true(calls > 6);
    sqlite3_close(db);
}

static int count_all(const char *path)
{
    sqlite3 *db;
    int code;

    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, PAGES_VFS), 0);
    sqlite3_extended_result_codes(db, 1);
    assert_int_equal(pages_reserve(db), 0);
    code = sqlite3_exec(db, "SELECT sum(length(v)) FROM t", NULL, NULL, NULL);
    sqlite3_close(db);
    return code;
}

/* Whole, but another's: a write that went astray is no page of where it lies. */
static void a_page_in_another_s_place_is_rot(void **state)
{
    uint8_t page[2][PAGES_BYTES];
    char path[128];
    sqlite3 *db = open_log(path);
    int fd;

    (void)state;
    must(db, LARGE "; COMMIT");
    sqlite3_close(db);
    assert_int_equal(count_all(path), 0);
    fd = open(path, O_RDWR);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pread(fd, page[i], PAGES_BYTES, (40 + i) * PAGES_BYTES), PAGES_BYTES);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pwrite(fd, page[i], PAGES_BYTES, (41 - i) * PAGES_BYTES), PAGES_BYTES);
    assert_int_equal(count_all(path), SQLITE_IOERR_DATA);
    for (int i = 0; i < 2; i++) { /* as silt wrote them before they said where they lie */
        uint64_t hash = XXH3_64bits(page[i], PAGES_BYTES - PAGES_HASH_BYTES);

        memcpy(page[i] + PAGES_BYTES - PAGES_HASH_BYTES, &hash, sizeof hash);
        assert_int_equal(pwrite(fd, page[i], PAGES_BYTES, (40 + i) * PAGES_BYTES), PAGES_BYTES);
    }
    assert_int_equal(count_all(path), 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        rig_folder_test(a_large_transaction_is_known_whole),
        rig_folder_test(nothing_taken_back_is_missed),
        rig_folder_test(half_a_frame_is_not_missed),
        rig_folder_test(a_page_in_another_s_place_is_rot),
    };

    return cmocka_run_group_tests_name("pages", tests, NULL, NULL);
}
