/* A journal of another model, adapter or format is refused with the way out, never misread. */
#include "daemon/journal_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/changes.h"
#include "daemon/clock.h"
#include "daemon/journal_branch.h"
#include "daemon/journal_pin.h"
#include "daemon/pages.h"

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, kernels TEXT, since_us INTEGER);"
    "CREATE TABLE IF NOT EXISTS streams (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " name TEXT UNIQUE NOT NULL, dmc_ratio INTEGER, ring INTEGER, created_us INTEGER,"
    " items INTEGER DEFAULT 0, tokens INTEGER DEFAULT 0, bytes_text INTEGER DEFAULT 0,"
    " producer TEXT DEFAULT '', held BLOB DEFAULT x'');"
    "CREATE TABLE IF NOT EXISTS producers (stream INTEGER, producer TEXT, sequence INTEGER,"
    " bytes INTEGER, PRIMARY KEY (stream, producer)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS items (key INTEGER PRIMARY KEY, kind INTEGER, detail INTEGER,"
    " time_us INTEGER, token_from INTEGER, held_before INTEGER, payload BLOB);" JOURNAL_SPANS
        JOURNAL_PINS JOURNAL_CHANGES;

int journal_errno(int code)
{
    if (code == SQLITE_IOERR_DATA)
        return -EBADMSG; /* rot: pages.h */
    if (code == SQLITE_CONSTRAINT_COMMITHOOK)
        return -EIO; /* its transaction has failed before */
    switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return 0;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_NOMEM:
        return -ENOMEM;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EBUSY;
    case SQLITE_CONSTRAINT:
        return -EEXIST;
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return -EBADMSG;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
        return -EACCES;
    default:
        return -EIO;
    }
}

int journal_spills(sqlite3 *db)
{
    int count = 0, most;

    sqlite3_db_status(db, SQLITE_DBSTATUS_CACHE_SPILL, &count, &most, true);
    return count;
}

static int meta_get(sqlite3 *db, const char *name, char *out, size_t out_bytes)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(db, "SELECT value FROM meta WHERE name = ?", -1, &s, 0);

    if (code)
        return journal_errno(code);
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    code = sqlite3_step(s);
    if (code == SQLITE_ROW)
        snprintf(out, out_bytes, "%s", (const char *)sqlite3_column_text(s, 0));
    sqlite3_finalize(s);
    return code == SQLITE_ROW ? 0 : code == SQLITE_DONE ? -ENOENT : journal_errno(code);
}

static int meta_set(sqlite3 *db, const char *name, const char *value)
{
    sqlite3_stmt *s;
    int code = sqlite3_prepare_v2(db, "REPLACE INTO meta VALUES (?,?)", -1, &s, 0);

    if (code)
        return journal_errno(code);
    sqlite3_bind_text(s, 1, name, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 2, value, -1, SQLITE_STATIC);
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    return journal_errno(code);
}

/* Nothing in it was made by any model. */
static bool is_empty(sqlite3 *db)
{
    sqlite3_stmt *s;
    bool empty = false;

    if (sqlite3_prepare_v2(db, "SELECT 1 FROM streams LIMIT 1", -1, &s, 0) == SQLITE_OK)
        empty = sqlite3_step(s) == SQLITE_DONE;
    sqlite3_finalize(s);
    return empty;
}

/* What is stored under name must be value; a new journal takes it. -ESTALE: it is `found`. */
static int meta_match(sqlite3 *db, const char *name, const char *value, char *found,
                      size_t found_bytes)
{
    int result = meta_get(db, name, found, found_bytes);

    if (result == -ENOENT)
        return meta_set(db, name, value);
    if (result)
        return result;
    return strcmp(found, value) == 0 ? 0 : -ESTALE;
}

/* The same of what made the streams: a journal without any takes another. */
static int meta_match_streams(sqlite3 *db, const char *name, const char *value, char *found,
                              size_t found_bytes)
{
    int result = meta_match(db, name, value, found, found_bytes);

    return result == -ESTALE && is_empty(db) ? meta_set(db, name, value) : result;
}

static int check_model(sqlite3 *db, const struct journal_options *options, char *error,
                       size_t error_bytes)
{
    char value[32], found[160];
    int result;

    snprintf(value, sizeof value, "%016" PRIx64, options->model_fingerprint);
    result = meta_match_streams(db, "model_fingerprint", value, found, sizeof found);
    if (!result)
        return meta_set(db, "model_name", options->model_name);
    if (result == -ESTALE) {
        char name[128] = "another model";

        meta_get(db, "model_name", name, sizeof name);
        snprintf(error, error_bytes,
                 "the journal in %s was written with %s (fingerprint %s), this model is %s "
                 "(%s): start with the old --model, or give another --data folder",
                 options->folder, name, found, options->model_name, value);
    }
    return result;
}

static const char *adapter_name(const char *fingerprint)
{
    return strspn(fingerprint, "0") == strlen(fingerprint) ? "none" : fingerprint;
}

static int check_adapter(sqlite3 *db, const struct journal_options *options, char *error,
                         size_t error_bytes)
{
    char value[32], found[64];
    int result;

    snprintf(value, sizeof value, "%016" PRIx64, options->adapter_fingerprint);
    result = meta_match_streams(db, "adapter_fingerprint", value, found, sizeof found);
    if (result == -ESTALE && options->rebuild)
        return meta_set(db, "adapter_fingerprint", value);
    if (result == -ESTALE)
        snprintf(error, error_bytes,
                 "the streams in %s were computed with adapter %s, this one is %s: start with the "
                 "old --adapter, or add --rebuild to compute every stream again from its journal",
                 options->folder, adapter_name(found), adapter_name(value));
    return result;
}

static int check_format(sqlite3 *db, const struct journal_options *options, char *error,
                        size_t error_bytes)
{
    char value[32], found[64];
    int result;

    snprintf(value, sizeof value, "%d", JOURNAL_FORMAT);
    result = meta_match(db, "format", value, found, sizeof found);
    if (result == -ESTALE && strcmp(found, "2") == 0)
        return meta_set(db, "format", value);
    if (result == -ESTALE)
        snprintf(error, error_bytes,
                 "the journal in %s has format %s, this siltd (" SILT_VERSION ") reads %s: use "
                 "the siltd that wrote it, or give another --data folder",
                 options->folder, found, value);
    return result;
}

/* A change of kernel path, or of the bits of one, is only recorded: memories computed across it
 * agree within tolerance. */
static int note_epoch(sqlite3 *db, const struct journal_options *options, uint64_t *epoch)
{
    sqlite3_stmt *s = NULL;
    char kernels[400];
    bool same = false;
    int code = sqlite3_prepare_v2(
        db, "SELECT epoch, kernels FROM epochs ORDER BY epoch DESC LIMIT 1", -1, &s, 0);

    snprintf(kernels, sizeof kernels, "%s, revision %" PRIu32, options->kernels_name,
             options->kernels_revision);
    if (code)
        return journal_errno(code);
    if (sqlite3_step(s) == SQLITE_ROW) {
        *epoch = (uint64_t)sqlite3_column_int64(s, 0);
        same = strcmp((const char *)sqlite3_column_text(s, 1), kernels) == 0;
    }
    sqlite3_finalize(s);
    if (same)
        return 0;
    ++*epoch;
    code = sqlite3_prepare_v2(db, "INSERT INTO epochs VALUES (?,?,?)", -1, &s, 0);
    if (code)
        return journal_errno(code);
    sqlite3_bind_int64(s, 1, (int64_t)*epoch);
    sqlite3_bind_text(s, 2, kernels, -1, SQLITE_STATIC);
    sqlite3_bind_int64(s, 3, (int64_t)clock_wall_us());
    code = sqlite3_step(s);
    sqlite3_finalize(s);
    return journal_errno(code);
}

int journal_check_pages(const char *path, char *error, size_t error_bytes)
{
    enum { RESERVED_AT = 20 };
    uint8_t header[RESERVED_AT + 1];
    FILE *file = fopen(path, "re");
    size_t bytes = file ? fread(header, 1, sizeof header, file) : 0;

    if (file)
        fclose(file);
    if (bytes < sizeof header || header[RESERVED_AT] == PAGES_HASH_BYTES)
        return 0;
    snprintf(error, error_bytes,
             "the journal %s is of format 1 or damaged, this siltd (" SILT_VERSION ") reads "
             "format %d: use the siltd that wrote it, or give another --data folder",
             path, JOURNAL_FORMAT);
    return -ESTALE;
}

int journal_check(sqlite3 *db, const struct journal_options *options, uint64_t *epoch, char *error,
                  size_t error_bytes)
{
    int result = journal_errno(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL));

    if (!result)
        result = journal_errno(sqlite3_exec(db, schema, NULL, NULL, NULL));
    if (!result)
        result = check_format(db, options, error, error_bytes);
    if (!result)
        result = check_model(db, options, error, error_bytes);
    if (!result)
        result = check_adapter(db, options, error, error_bytes);
    if (!result)
        result = note_epoch(db, options, epoch);
    if (!result)
        result = journal_errno(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL));
    return result;
}
