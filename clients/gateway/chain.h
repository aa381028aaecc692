/*
 * chain: how much of a conversation a stream holds, as a file of hashes.
 *
 * Hash i covers message i and all before it, so a history is recognised by its last hash alone and
 * the first message that was edited is found. One file a stream, locked while a request uses it:
 * two requests on one stream never mix. Before siltd is told of new messages the file says so
 * (`doubt`), afterwards it has them: a gateway that was killed between the two knows what it does
 * not know.
 * Errors: negative errno; -EBUSY: another request has the chain.
 */
#ifndef SILT_GATEWAY_CHAIN_H
#define SILT_GATEWAY_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chain_hash {
    uint8_t bytes[16];
};
struct chain {
    int fd;
    uint64_t count; /* messages that the stream holds */
    bool doubt;     /* a request has begun and not ended */
    uint64_t tokens_before, created_us;
    struct chain_hash last;
};
struct message {
    const char *role, *content;
};

/* A chain of another stream of the same name (created_us differs) starts anew. */
int chain_open(struct chain *chain, const char *folder, const char *stream, uint64_t created_us);
void chain_close(struct chain *chain);
/* How many messages at the start of a history the chain has: all of its own, else *differs is the
 * number of the first that does not fit, from 0, and the return -ESTALE. */
int chain_match(const struct chain *chain, const struct message *messages, size_t count,
                size_t *differs);
int chain_append(struct chain *chain, const char *role, const char *content);
/* Forgets all. */
int chain_reset(struct chain *chain);
int chain_begin(struct chain *chain, uint64_t tokens_before);
int chain_end(struct chain *chain);

#endif
