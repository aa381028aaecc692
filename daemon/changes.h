/*
 * changes: what clients asked to be changed and may ask for again, since the answer got lost.
 *
 * A client whose connection went before the reply cannot know what was done. It asks again with the
 * same number (Request.change); what is known here by that number is answered and not done twice:
 * not to a stream of the same name that somebody else has made meanwhile either. The journal has
 * them too, each in the transaction of what it stands for, so that they outlive siltd. Over the
 * network a key has a part of the places: who asks for much pushes its own out.
 */
#ifndef SILT_DAEMON_CHANGES_H
#define SILT_DAEMON_CHANGES_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/journal.h"

enum {
    CHANGES_MAX = 1024,       /* the newest; a client gives up long before */
    CHANGES_OF_KEY_MAX = 128, /* of one key */
    CHANGES_KEY_SHIFT = 48,   /* whose it is stands above a change */
};

struct change {
    uint64_t key; /* of changes_key; 0: none */
    uint64_t order;
    uint64_t tokens;
    bool done; /* else on its way to the journal */
};
struct changes {
    struct change known[CHANGES_MAX];
    uint64_t orders;
};

/* A wire_request's change, of whose it is: a key of the network, or "" for who is on this machine.
 */
uint64_t changes_key(uint64_t change, const char *owner);

/* Those of the journal. */
int changes_load(struct changes *changes, struct journal *journal);
/* NULL: nobody has asked for it, or it was refused. */
const struct change *changes_find(const struct changes *changes, uint64_t key);
/* key 0 is none, here and below. */
void changes_begin(struct changes *changes, uint64_t key);
/* tokens: what the reply said; it is in the journal, or (done false) was refused. */
void changes_end(struct changes *changes, uint64_t key, bool done, uint64_t tokens);

#define JOURNAL_CHANGES                                                                            \
    "CREATE TABLE IF NOT EXISTS changes (ordinal INTEGER PRIMARY KEY, key INTEGER, tokens "        \
    "INTEGER);"

/* Within the transaction of the change; the oldest go that there is no place for. */
int journal_change_add(struct journal *journal, uint64_t key, uint64_t tokens);

#endif
