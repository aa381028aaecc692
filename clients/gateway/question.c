/* A question's way through siltd: what of its history is new goes in as turns, the end is asked. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/chat.h"

enum { DRAIN_MS = 30000, ITEMS_PER_MESSAGE = 64, TURN_BYTES_MAX = 256 << 10 };

static const char producer_name[] = "gateway";

struct question *question_open(struct gateway *gateway)
{
    struct question *q = calloc(1, sizeof *q);
    pthread_condattr_t clock;

    if (!q)
        return NULL;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->news, &clock);
    pthread_condattr_destroy(&clock);
    q->gateway = gateway;
    q->holders = 1;
    q->id = atomic_fetch_add(&gateway->id_last, 1) + 1;
    q->begun_us = now_us();
    q->created = time(NULL);
    return q;
}

static void question_drop(struct question *q)
{
    int holders;

    pthread_mutex_lock(&q->lock);
    holders = --q->holders;
    pthread_mutex_unlock(&q->lock);
    if (holders)
        return;
    client_answer_free(&q->answer);
    text_free(&q->text);
    text_free(&q->out);
    chat_free(&q->chat);
    pthread_cond_destroy(&q->news);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

void question_close(struct question **question)
{
    struct question *q = *question;

    if (!q)
        return;
    pthread_mutex_lock(&q->lock);
    q->abandoned = true;
    if (q->pooled)
        q->pooled->interrupted = true;
    /* The connection's place is not another's before: there are no more questions than places. */
    while (q->holders > 1 && !q->ended)
        pthread_cond_wait(&q->news, &q->lock);
    pthread_mutex_unlock(&q->lock);
    question_drop(q);
    *question = NULL;
}

bool question_wait(struct question *q, size_t seen, int milliseconds)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += milliseconds / 1000;
    until.tv_nsec += milliseconds % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&q->lock);
    while (q->text.bytes <= seen && !q->ended)
        if (pthread_cond_timedwait(&q->news, &q->lock, &until) == ETIMEDOUT)
            break;
    return q->text.bytes > seen || q->ended;
}

static int on_text(void *user, const uint8_t *bytes, size_t bytes_count)
{
    struct question *q = user;
    int over;

    pthread_mutex_lock(&q->lock);
    if (!q->first_us)
        q->first_us = now_us();
    for (size_t i = 0; i < bytes_count; i++) {
        char out[UTF8_OUT_MAX];
        size_t n = utf8_push(&q->utf8, bytes[i], out);

        if (n)
            text_add(&q->text, out, n);
    }
    over = q->abandoned || q->text.failed || q->text.bytes > ANSWER_TEXT_MAX ||
           now_us() - q->begun_us > (uint64_t)q->gateway->options.answer_seconds * 1000000;
    pthread_cond_signal(&q->news);
    pthread_mutex_unlock(&q->lock);
    return over;
}

static int fault(struct question *q, int code, const char *what)
{
    q->error = (struct client_error){.code = code};
    if (code == -EBUSY)
        snprintf(q->error.text, sizeof q->error.text,
                 "another request of stream %s is under way: one after the other", q->chat.stream);
    else
        snprintf(q->error.text, sizeof q->error.text, "the record of stream %s %s: %s",
                 q->chat.stream, what, strerror(-code));
    return code;
}

/* ---- what is new ---- */

/* The link broke in the middle: nobody knows. */
static bool unknown(int code)
{
    return code == -ECONNRESET || code == -ECONNREFUSED || code == -ETIMEDOUT || code == -EINTR;
}

/* A request that never ended: siltd's count of tokens says if anything of it arrived. */
static int settle_doubt(struct question *q, struct chain *chain,
                        const struct client_stream_stat *stat)
{
    if (!chain->doubt || stat->tokens_acked == chain->tokens_before ||
        (q->chat.history != HISTORY_FULL && q->chat.history != HISTORY_STRICT)) {
        chain->doubt = false;
        return 0;
    }
    q->error = (struct client_error){.code = -EINPROGRESS};
    snprintf(q->error.text, sizeof q->error.text,
             "an earlier request of stream %s was cut off, and whether its messages are in the "
             "stream is not known. Send once with the header X-Silt-History: adopt (this history "
             "is what the stream holds) or append (all that is sent is new)",
             q->chat.stream);
    return q->error.code;
}

/* Sets messages_known: how many at the start are in the stream already. */
static int find_known(struct question *q, struct chain *chain)
{
    struct chat *chat = &q->chat;
    size_t differs = 0;
    int r;

    if (chat->history == HISTORY_APPEND)
        return 0;
    if (chat->history == HISTORY_ADOPT) {
        r = chain_reset(chain);
        for (size_t i = 0; i + 1 < chat->count && !r; i++)
            r = chain_append(chain, chat->messages[i].role, chat->messages[i].content);
        q->messages_known = chat->count - 1;
        return r ? fault(q, r, "cannot be written") : 0;
    }
    r = chain_match(chain, chat->messages, chat->count, &differs);
    if (r == -ESTALE && chat->history == HISTORY_FULL)
        return r;
    if (r == -ESTALE) {
        q->error = (struct client_error){.code = r};
        snprintf(
            q->error.text, sizeof q->error.text,
            "message %zu is not what stream %s holds (it has %llu): a stream cannot be "
            "edited. Send the history as it was, use another stream, send only what is new with "
            "the header X-Silt-History: append, or leave the header out and a branch is made",
            differs, chat->stream, (unsigned long long)chain->count);
        return r;
    }
    if (r)
        return fault(q, r, "cannot be read");
    q->messages_known = (size_t)chain->count;
    if (q->messages_known < chat->count)
        return 0;
    q->error = (struct client_error){.code = -ESTALE};
    snprintf(q->error.text, sizeof q->error.text,
             "all %zu messages are in stream %s already: nothing is asked", chat->count,
             chat->stream);
    return -ESTALE;
}

/* The turns of the next message to siltd, at least one. Returns how many. */
static size_t fill_items(const struct chat *chat, size_t at, size_t to, struct client_item *items)
{
    size_t count = 0, bytes = 0;

    for (; at < to && count < ITEMS_PER_MESSAGE && bytes < TURN_BYTES_MAX; at++, count++) {
        const struct message *message = &chat->messages[at];

        items[count] = (struct client_item){.kind = ITEM_TURN,
                                            .role = message->role,
                                            .bytes = (const uint8_t *)message->content,
                                            .bytes_count = strlen(message->content)};
        if (count && bytes + items[count].bytes_count > TURN_BYTES_MAX)
            break;
        bytes += items[count].bytes_count;
    }
    return count;
}

/* How far siltd has them: the chain knows these turns, whatever becomes of those behind them. */
static int note_acked(struct question *q, struct chain *chain, size_t from, size_t to,
                      uint64_t messages_acked)
{
    struct client_item items[ITEMS_PER_MESSAGE];
    int r = 0;

    for (; messages_acked && from < to && !r; messages_acked--) {
        size_t count = fill_items(&q->chat, from, to, items);

        for (; count && !r; count--, from++)
            r = chain_append(chain, q->chat.messages[from].role, q->chat.messages[from].content);
    }
    return r ? fault(q, r, "cannot be written") : 0;
}

static int feed_turns(struct question *q, struct client *client, struct chain *chain, size_t from,
                      size_t to)
{
    struct client_item items[ITEMS_PER_MESSAGE];
    struct producer_status before = {0}, after = {0};
    struct producer *producer = NULL;
    struct client_error why;
    int r = producer_open(&producer, client, q->chat.stream, producer_name, &q->error), drained;

    if (r)
        return r;
    producer_status(producer, &before);
    for (size_t at = from; at < to && !r;) {
        size_t count = fill_items(&q->chat, at, to, items);

        r = producer_send(producer, items, count, 0, &q->error);
        at += count;
    }
    drained = producer_drain(producer, DRAIN_MS, r ? &why : &q->error);
    producer_status(producer, &after);
    producer_close(&producer);
    if (r && unknown(drained))
        q->error = why;
    r = r && !unknown(drained) ? r : drained;
    drained = note_acked(q, chain, from, to, after.sequence_acked - before.sequence_sent);
    return drained ? drained : r;
}

/* ---- asking ---- */

static int ask(struct question *q, struct client *client)
{
    char out[UTF8_OUT_MAX];
    int r = client_ask(client, &q->chat.ask, on_text, q, &q->answer, &q->error);
    size_t n;

    pthread_mutex_lock(&q->lock);
    n = utf8_end(&q->utf8, out);
    if (n)
        text_add(&q->text, out, n);
    pthread_mutex_unlock(&q->lock);
    if (!r && q->answer.finish == FINISH_CANCELLED) {
        q->error = (struct client_error){.code = -EINTR};
        snprintf(q->error.text, sizeof q->error.text,
                 "the answer took longer than %u s and was cut off: nothing of it is kept",
                 q->gateway->options.answer_seconds);
    }
    return r;
}

static int converse(struct question *q, struct client *client, struct chain *chain)
{
    const struct message *last = &q->chat.messages[q->chat.count - 1];
    size_t to = q->chat.count - 1, from = q->messages_known;
    int r = from < to ? feed_turns(q, client, chain, from, to) : 0;

    if (!r)
        r = ask(q, client);
    if (!r && !q->error.code) {
        q->messages_new = q->chat.count - from;
        r = chain_append(chain, last->role, last->content);
        if (!r)
            r = chain_append(chain, "assistant", q->text.data ? q->text.data : "");
        if (r)
            fault(q, r, "cannot be written");
    }
    if (!unknown(r))
        chain_end(chain);
    return r;
}

static int with_chain(struct question *q, struct client *client)
{
    struct client_stream_stat stat;
    struct chain chain;
    uint64_t tokens;
    int r = client_stream_open(client, q->chat.stream, NULL, NULL, &q->error);

    if (!r)
        r = client_stat(client, q->chat.stream, &stat, &q->error);
    if (r)
        return r;
    r = chain_open(&chain, q->gateway->options.state, q->chat.stream, stat.created_us);
    if (r) {
        fault(q, r, "cannot be opened");
        goto error;
    }
    tokens = stat.tokens_acked;
    r = settle_doubt(q, &chain, &stat);
    if (!r)
        r = find_known(q, &chain);
    if (r == -ESTALE && !q->error.code)
        r = branch_take(q, client, &stat, &chain, &tokens);
    if (!r && chain_begin(&chain, tokens))
        r = fault(q, -EIO, "cannot be written");
    if (!r)
        r = converse(q, client, &chain);
    chain_close(&chain);
error:
    client_stat_free(&stat);
    return r;
}

/* Under the lock. */
static void count_end(struct question *q)
{
    struct counters *counters = &q->gateway->counters;
    uint64_t end = now_us();

    if (q->error.code) {
        atomic_fetch_add(q->abandoned ? &counters->cancelled : &counters->refused, 1);
        return;
    }
    atomic_fetch_add(&counters->answered, 1);
    atomic_fetch_add(&counters->tokens, q->answer.answer_tokens);
    atomic_fetch_add(&counters->new_messages, q->messages_new);
    atomic_fetch_add(&counters->known_messages, q->messages_known);
    histogram_add(&counters->whole, end - q->begun_us);
    if (q->first_us)
        histogram_add(&counters->first_text, q->first_us - q->begun_us);
}

static void pooled_set(struct question *q, struct pooled *pooled)
{
    pthread_mutex_lock(&q->lock);
    q->pooled = pooled;
    if (pooled && q->abandoned)
        pooled->interrupted = true;
    pthread_mutex_unlock(&q->lock);
}

static void question_run(struct question *q)
{
    struct pooled *pooled = pool_take(q->gateway, true, &q->error);
    int r = -EBUSY;

    atomic_fetch_add(&q->gateway->counters.under_way, 1);
    if (pooled) {
        pooled_set(q, pooled);
        q->error = (struct client_error){0};
        r = q->chat.history == HISTORY_NONE ? ask(q, pooled->client)
                                            : with_chain(q, pooled->client);
        pooled_set(q, NULL);
    }
    if (r && !q->error.code)
        q->error.code = r;
    if (q->error.code && !q->error.text[0])
        snprintf(q->error.text, sizeof q->error.text, "%s", strerror(-q->error.code));
    pool_give(q->gateway, &pooled, q->error.code);
    pthread_mutex_lock(&q->lock);
    count_end(q);
    atomic_fetch_sub(&q->gateway->counters.under_way, 1);
    q->ended = true;
    pthread_cond_signal(&q->news);
    pthread_mutex_unlock(&q->lock);
}

static void *question_thread(void *user)
{
    struct question *q = user;

    question_run(q);
    question_drop(q);
    return NULL;
}

int question_start(struct question *q)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int r;

    q->holders = 2;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 512 << 10);
    r = pthread_create(&thread, &attributes, question_thread, q);
    pthread_attr_destroy(&attributes);
    if (r)
        q->holders = 1;
    return -r;
}
