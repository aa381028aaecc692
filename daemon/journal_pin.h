/*
 * journal_pin: the pinned ranges of streams, with the tokens they stand for.
 *
 * A pin is seen by the stream from `at` on and until `until`, both chunk starts that lay ahead when
 * they were written down: computed again from the journal, a stream meets its pins where it met
 * them before. So a pin that was let go stays on record. Within a transaction, but for each.
 */
#ifndef SILT_DAEMON_JOURNAL_PIN_H
#define SILT_DAEMON_JOURNAL_PIN_H

#include <sqlite3.h>

#include "daemon/journal.h"

#define JOURNAL_PINS                                                                               \
    "CREATE TABLE IF NOT EXISTS pins (stream INTEGER, first INTEGER, last INTEGER, at INTEGER,"    \
    " until INTEGER, tokens BLOB);"                                                                \
    "CREATE INDEX IF NOT EXISTS pins_stream ON pins (stream, at, first);"

struct journal_pin {
    uint64_t from, to, at;
    uint64_t until;  /* UINT64_MAX: it holds */
    uint32_t before; /* of the stream's first tokens, ahead of the range's */
};
/* In order of `at`; tokens [before + to - from] live during the call. Non-zero ends it. */
typedef int journal_pin_fn(void *user, const struct journal_pin *pin, const int32_t *tokens);
int journal_pin_each(struct journal *journal, uint64_t stream, journal_pin_fn *each, void *user);
int journal_pin_add(struct journal *journal, uint64_t stream, const struct journal_pin *pin,
                    const int32_t *tokens);
/* The pin [from, to) that holds is seen until `until`. */
int journal_pin_end(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to,
                    uint64_t until);
int journal_pin_branch(sqlite3 *db, uint64_t parent, uint64_t branch);
int journal_pin_drop(sqlite3 *db, uint64_t stream);
/* Tokens [from, to) have gone: pins that hold some of them go too, later ones move down. sinks: how
 * many of a stream's first tokens pins may have with them. */
int journal_pin_forget(struct journal *journal, uint64_t stream, uint64_t from, uint64_t to,
                       uint32_t chunk_tokens, uint32_t sinks);

#endif
