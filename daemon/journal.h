/*
 * journal: the durable truth about streams, in one SQLite database (WAL, synchronous=FULL).
 *
 * A stream's journal is a sequence of items (ordinals 0, 1, 2, ...): text, token ids, turns, marks.
 * Everything else about the stream follows from it. This file knows SQL and nothing of threads: one
 * journal belongs to one thread. Errors: negative errno; -ENOSPC disk full, -EIO the rest of what
 * SQLite says, its words in journal_error.
 * Limits: stream ids below 2^23, items of one stream below 2^40; SQLite's memory is bounded by
 * JOURNAL_HEAP_BYTES.
 */
#ifndef SILT_DAEMON_JOURNAL_H
#define SILT_DAEMON_JOURNAL_H

#include "daemon/wire.h"

enum {
    /* 1 had no branches, and no hash in its pages; 2, which had a row for each item that was
     * trimmed away, and pages that did not say where they belong, goes on as this one. */
    JOURNAL_FORMAT = 3,
    JOURNAL_CACHE_BYTES = 1 << 20, /* appends and reads in order: more does not serve */
    JOURNAL_HEAP_BYTES = 48 << 20, /* cache, statements, one item in work, WAL index */
    JOURNAL_WAL_PAGES = 4096,      /* then the log is folded into the database */
    STREAM_ID_MAX = 1 << 23,
};

struct journal_options {
    const char *folder; /* exists, is ours */
    uint64_t model_fingerprint, adapter_fingerprint;
    const char *model_name, *kernels_name;
    uint32_t kernels_revision;
    bool rebuild; /* take another adapter */
};
struct journal_stream {
    uint64_t id;
    char name[NAME_BYTES_MAX + 1];
    uint32_t dmc_ratio, ring_segments;
    uint64_t created_us;
    uint64_t items, tokens, bytes_text;
    char producer[PRODUCER_BYTES_MAX + 1]; /* of the newest item */
    struct token_text text;                /* what waits at the end */
};
struct journal_item {
    struct wire_item item; /* pointers live until the next call on the journal */
    uint64_t time_us;
    uint64_t token_from;  /* tokens formed before it */
    uint32_t held_before; /* text bytes that waited before it */
    uint64_t next;        /* the item behind it, and behind those that were trimmed away with it */
};

struct journal;
int journal_open(struct journal **out, const struct journal_options *options, char *error,
                 size_t error_bytes);
void journal_close(struct journal **journal);
const char *journal_error(const struct journal *journal);
/* Grows with the kernels' name or revision. */
uint64_t journal_epoch(const struct journal *journal);
uint64_t journal_disk_bytes(const struct journal *journal);

/* A transaction; every writing call must stand in one, else or where that has failed since it gets
 * an error. commit returns when it is on disk. */
int journal_begin(struct journal *journal);
int journal_commit(struct journal *journal);
void journal_rollback(struct journal *journal);
/* A place in it: what one request changes is kept or taken back without the others'. */
int journal_mark(struct journal *journal);
int journal_keep(struct journal *journal);
/* -ENOBUFS: so much was changed that it went to the log, and SQLite (3.40) leaves what is committed
 * behind that without sums, so that a crash loses it: the transaction is to be rolled back. */
int journal_take_back(struct journal *journal);

/* out->id is set; -EEXIST; -EOVERFLOW: all numbers have been given, to streams that are gone too.
 */
int journal_stream_create(struct journal *journal, struct journal_stream *stream);
int journal_stream_get(struct journal *journal, uint64_t id, struct journal_stream *out);
/* -ENOENT. */
int journal_stream_find(struct journal *journal, const char *name, struct journal_stream *out);
/* Calls each for every stream, in order of name, until it returns non-zero. */
typedef int journal_each_fn(void *user, const struct journal_stream *stream);
int journal_stream_each(struct journal *journal, journal_each_fn *each, void *user);
/* Writes how far it has come. */
int journal_stream_update(struct journal *journal, const struct journal_stream *stream);
/* A new stream, branch->name, that has all of the parent's items and producers as they stand in the
 * journal now, and is filled in here. -ENOENT: no parent; -EEXIST: the name is taken; -EOVERFLOW.
 */
int journal_stream_branch(struct journal *journal, uint64_t parent, struct journal_stream *branch);
/* Before items that are there already are changed: copies those that it shares with branches, so
 * that each has its own. */
int journal_stream_part(struct journal *journal, uint64_t id);
/* It shares items with a branch or the stream it branched from. */
bool journal_stream_shares(struct journal *journal, uint64_t id);
/* Gives pages that nothing is in back to the file system. */
int journal_shrink(struct journal *journal);
/* Its text is overwritten on disk, but for what branches have of it. */
int journal_stream_remove(struct journal *journal, uint64_t id);
/* Folds the log into the database and cuts it to nothing. */
int journal_truncate_log(struct journal *journal);

/* 0 and 0 for a producer not seen before. */
int journal_producer_get(struct journal *journal, uint64_t stream, const char *producer,
                         uint64_t *sequence, uint64_t *bytes_acked);
int journal_producer_set(struct journal *journal, uint64_t stream, const char *producer,
                         uint64_t sequence, uint64_t bytes_acked);

int journal_item_append(struct journal *journal, uint64_t stream, uint64_t ordinal,
                        const struct journal_item *item);
/* One that was trimmed away is text of no bytes. -ENOENT: none has this ordinal. */
int journal_item_get(struct journal *journal, uint64_t stream, uint64_t ordinal,
                     struct journal_item *out);
/* These change items of a stream that shares none (journal_stream_part); what they take out is
 * overwritten on disk. An item becomes another, in its place. */
int journal_item_put(struct journal *journal, uint64_t stream, uint64_t ordinal,
                     enum item_kind kind, const void *bytes, size_t bytes_count);
/* Its first bytes stay. */
int journal_item_cut(struct journal *journal, uint64_t stream, uint64_t ordinal, uint32_t bytes);
int journal_item_prepend(struct journal *journal, uint64_t stream, uint64_t ordinal,
                         const void *bytes, size_t bytes_count);
int journal_item_place(struct journal *journal, uint64_t stream, uint64_t ordinal,
                       uint64_t token_from, uint32_t held_before);
/* Items [from, to) become empty text. */
int journal_items_clear(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to,
                        uint64_t token_from, uint32_t held_before);
/* Items [from, to) are trimmed away: the item at `to` is one of no tokens and nothing waits before
 * it, and so is each of them from now on. */
int journal_items_drop(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to);
/* Items from `from` on begin so many tokens earlier. */
int journal_items_shift(struct journal *journal, uint64_t stream, uint64_t from, uint64_t tokens);
/* Lets go of the item read last, so that the log can be folded. */
void journal_item_done(struct journal *journal);

#endif
