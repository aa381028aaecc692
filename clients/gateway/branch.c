/*
 * branch: an edited history goes on in a stream of its own.
 *
 * A stream cannot be edited, so the turns up to the last common one and what follows are fed to a
 * new stream, NAME.edit-N. Every later request finds the branch that holds its history, by that
 * branch's chain. There are at most BRANCHES_MAX of a stream: then the one that was longest unused
 * is removed for the new one.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/gateway/chat.h"

struct choice {
    int best, unused, oldest; /* numbers of branches; 0: none */
    uint64_t best_count;
    int64_t oldest_s;
};

static int branch_name(char out[WIRE_NAME_BYTES_MAX + 1], const char *stream, int number)
{
    int bytes = snprintf(out, WIRE_NAME_BYTES_MAX + 1, "%s.edit-%d", stream, number);

    return bytes > WIRE_NAME_BYTES_MAX ? -ENAMETOOLONG : 0;
}

/* What branch `number` holds of the history. */
static int weigh(struct question *q, struct client *client, const char *stream, int number,
                 struct choice *choice)
{
    char name[WIRE_NAME_BYTES_MAX + 1];
    struct client_stream_stat stat;
    struct chain chain;
    struct stat file;
    size_t differs;
    int r = branch_name(name, stream, number);

    if (r)
        return r;
    r = client_stat(client, name, &stat, &q->error);
    if (r == -ENOENT && !choice->unused)
        choice->unused = number;
    if (r)
        return r == -ENOENT ? 0 : r;
    r = chain_open(&chain, q->gateway->options.state, name, stat.created_us);
    client_stat_free(&stat);
    if (r)
        return r == -EBUSY ? 0 : r;
    if (chain.count > choice->best_count && chain.count < q->chat.count && !chain.doubt &&
        !chain_match(&chain, q->chat.messages, q->chat.count, &differs)) {
        choice->best = number;
        choice->best_count = chain.count;
    }
    if (!fstat(chain.fd, &file) && (!choice->oldest || file.st_mtime < choice->oldest_s)) {
        choice->oldest = number;
        choice->oldest_s = file.st_mtime;
    }
    chain_close(&chain);
    return 0;
}

static int refuse(struct question *q, int code, const char *stream)
{
    if (!q->error.code || q->error.code == -ENOENT)
        snprintf(q->error.text, sizeof q->error.text,
                 "this history is not what stream %.60s holds, and no branch of it can be made: %s",
                 stream, strerror(-code));
    q->error.code = code;
    return code;
}

int branch_take(struct question *q, struct client *client, const struct client_stream_stat *origin,
                struct chain *chain, uint64_t *tokens)
{
    const struct client_open_options options = {.dmc_ratio = origin->dmc_ratio_asked,
                                                .ring_segments = origin->ring_segments};
    char stream[WIRE_NAME_BYTES_MAX + 1];
    struct client_stream_stat stat;
    struct choice choice = {0};
    int number, r = 0;

    chain_close(chain);
    q->error = (struct client_error){0};
    memcpy(stream, q->chat.stream, sizeof stream);
    for (int i = 1; i <= BRANCHES_MAX && !r; i++)
        r = weigh(q, client, stream, i, &choice);
    number = choice.best ? choice.best : choice.unused ? choice.unused : choice.oldest;
    if (!r)
        r = number ? branch_name(q->chat.stream, stream, number) : -EBUSY;
    if (!r && !choice.best && !choice.unused)
        r = client_stream_remove(client, q->chat.stream, &q->error);
    if (!r)
        r = client_stream_open(client, q->chat.stream, &options, NULL, &q->error);
    if (!r)
        r = client_stat(client, q->chat.stream, &stat, &q->error);
    if (r)
        return refuse(q, r, stream);
    r = chain_open(chain, q->gateway->options.state, q->chat.stream, stat.created_us);
    *tokens = stat.tokens_acked;
    client_stat_free(&stat);
    q->error = (struct client_error){0};
    q->branched = !choice.best;
    q->messages_known = choice.best ? (size_t)chain->count : 0;
    return r ? refuse(q, r, stream) : 0;
}
