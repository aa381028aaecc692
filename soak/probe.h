/*
 * probe: facts planted in a stream, and questions for them much later.
 *
 * A fact is a line that its number and the seed make, so nothing but where they stand is kept. A
 * probe asks for one of those and looks for it in the answer's sources, which is
 * recall, and in the answer itself, which is what the model makes of it.
 */
#ifndef SILT_SOAK_PROBE_H
#define SILT_SOAK_PROBE_H

#include "clients/client.h"

enum { FACT_BYTES = 96, FACTS_MAX = 1 << 14 };

struct probe {
    uint64_t seed;
    uint32_t planted, asked, found, answered;
    uint64_t end[FACTS_MAX]; /* [planted], tokens of the stream up to where the fact ends at most */
};

/* The line of the next fact: out [FACT_BYTES]. Returns its bytes; 0: there are enough. */
size_t probe_plant(struct probe *probe, char *out);
void probe_planted(struct probe *probe, uint64_t end);
/* Asks for one that ends before so many tokens; 0 when there is none, or -errno. */
int probe_ask(struct probe *probe, struct client *client, const char *stream, uint64_t before,
              struct client_error *error);

#endif
