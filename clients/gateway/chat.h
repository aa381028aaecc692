/*
 * chat: a conversation's request, and the question it becomes.
 *
 * A `question` runs on a thread of its own that talks to siltd; the connection's thread takes the
 * text as it comes. It is shared by the two and goes with the last of them.
 */
#ifndef SILT_GATEWAY_CHAT_H
#define SILT_GATEWAY_CHAT_H

#include "clients/gateway/chain.h"
#include "clients/gateway/gateway.h"

enum history_mode {
    HISTORY_FULL,   /* as OpenAI's clients do: all of the conversation, of which the end is new; one
                       that was edited goes on in a branch of the stream */
    HISTORY_STRICT, /* the same, but one that was edited is refused */
    HISTORY_APPEND, /* all that is sent is new */
    HISTORY_ADOPT,  /* all but the last is taken to be in the stream, whatever it says */
    HISTORY_NONE,   /* a question outside of any conversation: nothing is kept */
};

struct chat {
    json_t *json; /* what the strings below are part of */
    char stream[WIRE_NAME_BYTES_MAX + 1];
    struct message *messages; /* [count], contents owned */
    size_t count;
    enum history_mode history;
    struct client_ask ask;
    struct client_sampling sampling;
    const char *stop[STOP_STRINGS_MAX];
    bool streamed, usage;
};

/* Reads the body: 0, or -EINVAL with a sentence. */
int chat_parse(struct chat *chat, struct MHD_Connection *connection, const struct text *body,
               struct client_error *error);
int chat_parse_ask(struct chat *chat, const struct text *body, struct client_error *error);
void chat_free(struct chat *chat);

struct question {
    struct gateway *gateway;
    struct chat chat;
    pthread_mutex_t lock;
    pthread_cond_t news;
    int holders;
    struct pooled *pooled; /* while it talks to siltd */
    bool abandoned;        /* nobody reads any more */
    struct text text;      /* UTF-8 */
    struct utf8 utf8;
    bool ended;
    struct client_error error; /* code 0: none */
    struct client_answer answer;
    size_t messages_known, messages_new;
    bool branched;
    uint64_t id, begun_us, first_us;
    time_t created;

    /* The connection's thread's own. */
    size_t sent;
    int step;
    struct text out; /* frames of the event stream still to be taken */
    size_t out_at;
    bool plain; /* the page's event stream, not OpenAI's */
};

/* A question with nothing in it yet, whose chat is to be filled: it points into itself, so it stays
 * where it is. NULL: no memory. */
struct question *question_open(struct gateway *gateway);
/* Begins on a thread of its own; 0 or -errno. */
int question_start(struct question *question);
/* Nobody reads any more: what is under way ends, which is waited for. */
void question_close(struct question **question);
/* Waits for text after `seen` bytes or the end; false: neither within the time. Locked on return.
 */
bool question_wait(struct question *question, size_t seen, int milliseconds);

/* ---- branch.c: histories that were edited ---- */

enum { BRANCHES_MAX = 8 };

/* After chain_match said -ESTALE: closes the chain and opens that of the branch which holds most of
 * the history and nothing else, or a new one, whose name the chat gets. A new branch is an empty
 * stream: the caller feeds it the common turns with the rest. *tokens: of that stream. 0, or a
 * negative errno with question->error. */
int branch_take(struct question *question, struct client *client,
                const struct client_stream_stat *origin, struct chain *chain, uint64_t *tokens);

#endif
