/* Reads items as replay does, over a connection that never writes. */
#include <errno.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#include "daemon/journal_branch.h"
#include "daemon/pages.h"
#include "daemon/search.h"

enum { SLICE_BYTES = 4096 };

enum { GET_HEAD, GET_ITEM, GET_COUNT, STATEMENTS };
static const char *const statement_text[STATEMENTS] = {
    [GET_HEAD] = JOURNAL_ITEM_FROM("token_from, held_before"),
    [GET_ITEM] = JOURNAL_ITEM_FROM("kind, detail, time_us, payload, token_from"),
    [GET_COUNT] = "SELECT items, tokens FROM streams WHERE id = ?",
};

struct reader {
    sqlite3 *db;
    sqlite3_stmt *statement[STATEMENTS];
    const struct tokenizer *tokenizer;
    uint32_t tokens_max;
    int32_t tokens[]; /* [tokens_max] */
};

size_t reader_bytes(uint32_t tokens_max)
{
    return (sizeof(struct reader) + tokens_max * sizeof(int32_t) + 63) & ~(size_t)63;
}

int reader_open(struct reader **out, const char *folder, const struct tokenizer *tokenizer,
                uint32_t tokens_max, void *memory)
{
    struct reader *r = memory;
    char path[PATH_BYTES_MAX + 16];
    int code;

    memset(r, 0, sizeof *r);
    r->tokenizer = tokenizer;
    r->tokens_max = tokens_max;
    snprintf(path, sizeof path, "%s/journal.db", folder);
    code = sqlite3_open_v2(path, &r->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX, PAGES_VFS);
    if (!code)
        code = sqlite3_exec(r->db, "PRAGMA cache_size=-512; PRAGMA mmap_size=0;", NULL, NULL, NULL);
    if (r->db)
        sqlite3_busy_timeout(r->db, 2000);
    for (int i = 0; i < STATEMENTS && !code; i++)
        code = sqlite3_prepare_v3(r->db, statement_text[i], -1, SQLITE_PREPARE_PERSISTENT,
                                  &r->statement[i], NULL);
    *out = r;
    if (code)
        reader_close(out);
    return code ? -EIO : 0;
}

void reader_close(struct reader **reader)
{
    if (!*reader)
        return;
    for (int i = 0; i < STATEMENTS; i++)
        sqlite3_finalize((*reader)->statement[i]);
    sqlite3_close((*reader)->db);
    *reader = NULL;
}

static void bind_item(sqlite3_stmt *s, uint64_t stream_id, uint64_t ordinal)
{
    sqlite3_bind_int64(s, 1, (int64_t)stream_id);
    sqlite3_bind_int64(s, 2, (int64_t)ordinal);
}

/* SQLITE_ROW: 1, done: 0. The caller resets. */
static int step(sqlite3_stmt *s)
{
    int code = sqlite3_step(s);

    return code == SQLITE_ROW ? 1 : code == SQLITE_DONE ? 0 : -EIO;
}

static int get_head(struct reader *r, uint64_t stream_id, uint64_t ordinal, uint64_t *token_from,
                    uint32_t *held_before)
{
    sqlite3_stmt *s = r->statement[GET_HEAD];
    int result;

    bind_item(s, stream_id, ordinal);
    result = step(s);
    if (result > 0) {
        *token_from = (uint64_t)sqlite3_column_int64(s, 0);
        *held_before = (uint32_t)sqlite3_column_int64(s, 1);
    }
    sqlite3_reset(s);
    return result > 0 ? 0 : result < 0 ? result : -ENOENT;
}

int reader_count(struct reader *r, uint64_t stream_id, uint64_t *items, uint64_t *tokens)
{
    sqlite3_stmt *s = r->statement[GET_COUNT];
    int result;

    sqlite3_bind_int64(s, 1, (int64_t)stream_id);
    result = step(s);
    *items = result > 0 ? (uint64_t)sqlite3_column_int64(s, 0) : 0;
    *tokens = result > 0 ? (uint64_t)sqlite3_column_int64(s, 1) : 0;
    sqlite3_reset(s);
    return result < 0 ? result : 0;
}

/* The bytes that waited before an item end the text items before it. */
static int find_text(struct reader *r, struct reader_place *place, uint32_t held)
{
    uint64_t ordinal = place->ordinal;
    uint32_t missing = held;
    sqlite3_stmt *s = r->statement[GET_ITEM];
    int result = held > sizeof place->text.held ? -EBADMSG : 0;

    place->text.held_bytes = held;
    while (missing && !result) {
        uint32_t n;

        if (!ordinal)
            return -EBADMSG;
        bind_item(s, place->stream_id, --ordinal);
        result = step(s) > 0 && sqlite3_column_int(s, 0) == ITEM_TEXT &&
                         (uint64_t)sqlite3_column_int64(s, 5) == ordinal
                     ? 0
                     : -EBADMSG;
        n = result ? 0 : (uint32_t)sqlite3_column_bytes(s, 3);
        n = n < missing ? n : missing;
        missing -= n;
        if (n)
            memcpy(place->text.held + missing,
                   (const uint8_t *)sqlite3_column_blob(s, 3) + sqlite3_column_bytes(s, 3) - n, n);
        sqlite3_reset(s);
    }
    return result;
}

int reader_seek(struct reader *r, struct reader_place *place, uint64_t stream_id, uint64_t token)
{
    uint64_t low = 0, high, from = 0, tokens, first;
    uint32_t held = 0;
    int result = reader_count(r, stream_id, &high, &tokens);

    memset(place, 0, sizeof *place);
    place->stream_id = stream_id;
    while (!result && token && high - low > 1 && high) {
        uint64_t middle = low + (high - low) / 2;

        result = get_head(r, stream_id, middle, &from, &held);
        if (from <= token)
            low = middle;
        else
            high = middle;
    }
    if (!result)
        result = reader_first(r, stream_id, &first);
    if (result || !token || !high)
        return result;
    if (token < first) { /* the first item stands for what was trimmed away */
        place->offset = place->token = token;
        return 0;
    }
    result = get_head(r, stream_id, low, &from, &held);
    place->ordinal = low;
    place->token = from;
    return result ? result : find_text(r, place, held);
}

static int take_turn(struct reader *r, const sqlite3_stmt *item, uint32_t count)
{
    sqlite3_stmt *s = (sqlite3_stmt *)(uintptr_t)item;

    return token_turn(r->tokenizer, wire_role_name((uint32_t)sqlite3_column_int(s, 1)),
                      sqlite3_column_blob(s, 3), (size_t)sqlite3_column_bytes(s, 3),
                      r->tokens + count, r->tokens_max - count);
}

/* A whole item that is not text; what waited becomes tokens before it. */
static int take_other(struct reader *r, struct reader_place *place, sqlite3_stmt *s)
{
    int kind = sqlite3_column_int(s, 0);
    uint32_t count = (uint32_t)token_flush(r->tokenizer, &place->text, r->tokens);

    if (kind == ITEM_TURN) {
        int n = take_turn(r, s, count);

        if (n < 0)
            return n;
        count += (uint32_t)n;
    } else if (kind == ITEM_TOKENS) {
        size_t n = (size_t)sqlite3_column_bytes(s, 3) / sizeof(int32_t) - place->offset;

        if (n > r->tokens_max - count)
            n = r->tokens_max - count;
        if (n)
            memcpy(r->tokens + count,
                   (const uint8_t *)sqlite3_column_blob(s, 3) + place->offset * sizeof(int32_t),
                   n * sizeof(int32_t));
        count += (uint32_t)n;
        place->offset += n;
        if (place->offset * sizeof(int32_t) + sizeof(int32_t) <= (size_t)sqlite3_column_bytes(s, 3))
            return (int)count;
    }
    place->offset = 0;
    place->ordinal++;
    return (int)count;
}

/* Tokens that an item stands for whose text was trimmed away. */
static uint64_t gap_tokens(sqlite3_stmt *s)
{
    uint64_t count = 0;

    if (sqlite3_column_int(s, 0) == ITEM_GAP && sqlite3_column_bytes(s, 3) == (int)sizeof count)
        memcpy(&count, sqlite3_column_blob(s, 3), sizeof count);
    return count;
}

int reader_first(struct reader *r, uint64_t stream_id, uint64_t *token)
{
    sqlite3_stmt *s = r->statement[GET_ITEM];
    int result;

    bind_item(s, stream_id, 0);
    result = step(s);
    *token = result > 0 ? gap_tokens(s) : 0;
    sqlite3_reset(s);
    return result < 0 ? result : 0;
}

/* Some of what was trimmed away. */
static int take_gap(struct reader *r, struct reader_place *place, sqlite3_stmt *s)
{
    uint64_t count = gap_tokens(s) - place->offset;
    uint32_t n = r->tokens_max;

    n = count < n ? (uint32_t)count : n;
    for (uint32_t i = 0; i < n; i++)
        r->tokens[i] = GAP_TOKEN;
    place->offset += n;
    if (n == count) {
        place->offset = 0;
        place->ordinal++;
    }
    return (int)n;
}

/* A slice of a text item. */
static int take_text(struct reader *r, struct reader_place *place, sqlite3_stmt *s)
{
    size_t bytes = (size_t)sqlite3_column_bytes(s, 3), n = bytes - place->offset;
    const uint8_t *text = sqlite3_column_blob(s, 3);
    size_t count = 0;

    if (n > SLICE_BYTES)
        n = SLICE_BYTES;
    if (n)
        count = token_feed(r->tokenizer, &place->text, text + place->offset, n, r->tokens);
    place->offset += n;
    if (place->offset == bytes) {
        place->offset = 0;
        place->ordinal++;
    }
    return (int)count;
}

/* -EBADMSG: it is not what was there when the reader came to its place. Its text was trimmed away
 * since: it is gone or shorter, or begins with the first token that is left. */
static int take_item(struct reader *r, struct reader_place *place, sqlite3_stmt *s)
{
    uint64_t ordinal = (uint64_t)sqlite3_column_int64(s, 5);
    int kind = sqlite3_column_int(s, 0);
    size_t bytes = (size_t)sqlite3_column_bytes(s, 3);
    uint64_t most = kind == ITEM_TEXT     ? bytes
                    : kind == ITEM_TOKENS ? bytes / sizeof(int32_t)
                                          : gap_tokens(s);

    if (ordinal > place->ordinal && (place->offset || place->text.held_bytes))
        return -EBADMSG;
    place->ordinal = ordinal;
    if (place->offset > most ||
        (!place->offset && (uint64_t)sqlite3_column_int64(s, 4) > place->token))
        return -EBADMSG;
    return kind == ITEM_TEXT  ? take_text(r, place, s)
           : kind == ITEM_GAP ? take_gap(r, place, s)
                              : take_other(r, place, s);
}

int reader_next(struct reader *r, struct reader_place *place, const int32_t **tokens,
                uint64_t *time_us)
{
    sqlite3_stmt *s = r->statement[GET_ITEM];
    int count = 0, result;

    do {
        bind_item(s, place->stream_id, place->ordinal);
        result = step(s);
        if (result > 0) {
            *time_us = (uint64_t)sqlite3_column_int64(s, 2);
            count = take_item(r, place, s);
        }
        sqlite3_reset(s);
    } while (result > 0 && count == 0); /* an item may form none */
    *tokens = r->tokens;
    if (result < 0 || count < 0)
        return result < 0 ? result : count;
    place->token += (uint64_t)count;
    return count;
}
