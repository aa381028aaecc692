/*
 * producer: appends to one stream, exactly once.
 *
 * Messages are packed as they are sent and held until siltd's ack says that they are in its
 * journal. After a lost connection the producer attaches again, learns what arrived, and sends the
 * rest. What is held is bounded by a number of messages and of bytes, and by the credit of the
 * newest ack: all that is unacked together never exceeds it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/link.h"

enum {
    PIECE_BYTES = 64 << 10, /* text of one message of producer_write */
    CREDIT_ASK_MS = 1000,   /* no credit for so long: ask again */
    ACK_ASK_MS = 5000,      /* no ack for so long */
    WAIT_MS = 200,
    BUSY_MS = 200,
    FULL_MS = 1000,
};

struct held {
    uint64_t sequence, request_id;
    size_t payload_bytes; /* counts against credit */
    size_t frame_bytes;
    uint8_t *frame;
    bool sent; /* on this connection */
};

struct producer {
    struct client *client;
    struct producer *next;
    char stream[WIRE_NAME_BYTES_MAX + 1];
    char id[WIRE_PRODUCER_BYTES_MAX + 1];
    uint64_t epoch; /* of the connection it is attached on; 0: none yet */
    uint64_t attach_id, attach_epoch;
    bool attaching;
    int64_t attach_us;
    int64_t news_us;  /* when it last sent, or heard of siltd */
    int64_t retry_us; /* siltd is busy: not before */
    uint64_t sequence_next;
    struct producer_status status;
    struct held held[PRODUCER_HELD_MAX]; /* ring, oldest at first */
    uint32_t first, count;
    size_t held_bytes; /* payloads */
    struct client_error fault;
};

static struct held *held_at(struct producer *p, uint32_t i)
{
    return &p->held[(p->first + i) % PRODUCER_HELD_MAX];
}

static void attach(struct producer *p)
{
    Silt__V1__Attach wire = SILT__V1__ATTACH__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;

    wire.stream = p->stream;
    wire.producer = p->id;
    request.id = ++p->client->id_last;
    request.body_case = SILT__V1__REQUEST__BODY_ATTACH;
    request.attach = &wire;
    if (client_send(p->client, &request))
        return;
    p->attach_id = request.id;
    p->attach_epoch = p->client->epoch;
    p->attaching = true;
    p->attach_us = p->news_us = client_now_us();
}

static void held_drop(struct producer *p, uint64_t sequence_acked)
{
    while (p->count && held_at(p, 0)->sequence <= sequence_acked) {
        struct held *held = held_at(p, 0);

        p->held_bytes -= held->payload_bytes;
        p->client->held_bytes -= held->payload_bytes;
        free(held->frame);
        *held = (struct held){0};
        p->first = (p->first + 1) % PRODUCER_HELD_MAX;
        p->count--;
    }
    if (sequence_acked > p->status.sequence_acked)
        p->status.sequence_acked = sequence_acked;
}

/* Sends what is held and not yet sent on this connection, in order. */
static void held_send(struct producer *p)
{
    if (p->fault.code || p->attaching || !p->epoch || p->epoch != p->client->epoch ||
        client_now_us() < p->retry_us)
        return;
    for (uint32_t i = 0; i < p->count; i++) {
        struct held *held = held_at(p, i);

        if (held->sent)
            continue;
        if (client_send_frame(p->client, held->frame, held->frame_bytes))
            return;
        held->sent = true;
        p->news_us = client_now_us();
    }
}

static void on_attached(struct producer *p, const Silt__V1__Attached *attached)
{
    uint64_t lowest = p->status.sequence_acked + 1;

    p->attaching = false;
    if (p->epoch && attached->next_sequence < lowest) {
        client_fail(&p->fault, -EILSEQ,
                    "siltd has %llu messages of producer %s where it had acked %llu: its data "
                    "folder is older than the acks",
                    (unsigned long long)attached->next_sequence - 1, p->id,
                    (unsigned long long)lowest - 1);
        return;
    }
    if (!p->epoch)
        p->sequence_next = attached->next_sequence;
    held_drop(p, attached->next_sequence - 1);
    if (p->sequence_next < attached->next_sequence) {
        client_fail(&p->fault, -EEXIST, "another client feeds as producer %s too: one at a time",
                    p->id);
        return;
    }
    p->epoch = p->client->epoch;
    p->status.bytes_acked = attached->bytes_acked;
    p->status.credit_bytes = attached->credit_bytes;
    for (uint32_t i = 0; i < p->count; i++)
        held_at(p, i)->sent = false;
}

static void on_ack(struct producer *p, const Silt__V1__Ack *ack)
{
    if (p->epoch != p->client->epoch || ack->sequence < p->status.sequence_acked)
        return;
    held_drop(p, ack->sequence);
    p->status.bytes_acked = ack->bytes_acked;
    p->status.tokens_acked = ack->tokens_acked;
    p->status.tokens_computed = ack->tokens_computed;
    p->status.credit_bytes = ack->credit_bytes;
    p->news_us = client_now_us();
}

static void on_error(struct producer *p, const Silt__V1__Error *wire)
{
    struct client_error error;
    int r = client_fail_wire(&error, wire);

    bool full = r == -ENOSPC && p->client->options.on_full;

    p->attaching = false;
    if (full && client_now_us() >= p->retry_us)
        p->client->options.on_full(p->client->options.user, &error);
    if (r == -EBUSY || r == -ESHUTDOWN || r == -EILSEQ || full) {
        /* All of it again from where siltd says it is, after the pause it asks for. */
        uint64_t pause_us = wire->retry_us ? wire->retry_us : BUSY_MS * 1000;

        if (p->epoch)
            p->epoch = UINT64_MAX;
        if (full && pause_us < FULL_MS * 1000)
            pause_us = FULL_MS * 1000;
        p->retry_us = client_now_us() + (int64_t)pause_us;
        return;
    }
    p->fault = error;
}

bool producers_reply(struct client *client, const wire_reply *reply)
{
    for (struct producer *p = client->producers; p; p = p->next) {
        if (reply->body_case == SILT__V1__REPLY__BODY_ACK) {
            if (!strcmp(reply->ack->producer, p->id) && !strcmp(reply->ack->stream, p->stream)) {
                on_ack(p, reply->ack);
                return true;
            }
            continue;
        }
        if (reply->id == p->attach_id && reply->body_case == SILT__V1__REPLY__BODY_ATTACHED) {
            on_attached(p, reply->attached);
            return true;
        }
        if (reply->body_case != SILT__V1__REPLY__BODY_ERROR)
            continue;
        if (p->attaching && reply->id == p->attach_id) {
            on_error(p, reply->error);
            return true;
        }
        for (uint32_t i = 0; i < p->count; i++)
            if (held_at(p, i)->sent && held_at(p, i)->request_id == reply->id) {
                on_error(p, reply->error);
                return true;
            }
    }
    return false;
}

void producers_work(struct client *client)
{
    int64_t now = client_now_us();

    for (struct producer *p = client->producers; p && client->connected; p = p->next) {
        bool here = p->epoch == client->epoch;
        /* Without credit an ack is to come; one that we were too slow to take is lost. */
        bool silent = now - p->news_us > (p->count ? ACK_ASK_MS : CREDIT_ASK_MS) * 1000 &&
                      (p->count || p->status.credit_bytes == 0);

        if (p->fault.code || now < p->retry_us)
            continue;
        /* An attach that was sent on a connection that is gone has no answer; nor has one whose
         * answer siltd let go, as it does for a client that is slow to read. */
        if (p->attach_epoch != client->epoch || now - p->attach_us > ACK_ASK_MS * 1000)
            p->attaching = false;
        if (!p->attaching && (!here || silent))
            attach(p);
        held_send(p);
    }
}

int producers_timeout(const struct client *client, int timeout_ms)
{
    int64_t now = client_now_us();

    for (const struct producer *p = client->producers; p; p = p->next) {
        int64_t wait_ms = (p->retry_us - now + 999) / 1000;

        if (wait_ms > 0 && wait_ms < timeout_ms)
            timeout_ms = (int)wait_ms;
    }
    return timeout_ms;
}

int producer_fault(const struct producer *producer, struct client_error *error)
{
    if (error && producer->fault.code)
        *error = producer->fault;
    return producer->fault.code;
}

int producer_work(struct producer *p, int timeout_ms, struct client_error *error)
{
    int r = producer_fault(p, error);

    if (!r)
        r = client_reachable(p->client, error);
    if (r)
        return r;
    r = client_poll(p->client, -1, timeout_ms);
    if (r < 0)
        return client_fail(error, r, "%s", r == -EINTR ? "interrupted" : strerror(-r));
    return producer_fault(p, error);
}

int producer_open(struct producer **out, struct client *client, const char *stream, const char *id,
                  struct client_error *error)
{
    int64_t start_us = client_now_us();
    struct producer *p;
    int r = client_name_check(stream, error);

    *out = NULL;
    if (r)
        return r;
    if (!client_name_ok(id, WIRE_PRODUCER_BYTES_MAX))
        return client_fail(error, -EINVAL,
                           "\"%.80s\" is not a producer's name: use 1 to %d of A-Z a-z 0-9 . _ -",
                           id ? id : "", WIRE_PRODUCER_BYTES_MAX);
    p = calloc(1, sizeof *p);
    if (!p)
        return client_fail(error, -ENOMEM, "out of memory");
    memcpy(p->stream, stream, strlen(stream));
    memcpy(p->id, id, strlen(id));
    p->client = client;
    p->next = client->producers;
    client->producers = p;
    while (!r && !p->epoch) {
        r = producer_work(p, WAIT_MS, error);
        if (!r && !p->epoch && client->connected &&
            client_now_us() - start_us > (int64_t)client->options.timeout_ms * 1000)
            r = client_fail(error, -ETIMEDOUT, "siltd at %s did not answer in %d s",
                            client->endpoint, client->options.timeout_ms / 1000);
    }
    if (r)
        producer_close(&p);
    *out = p;
    return r;
}

void producer_close(struct producer **producer)
{
    struct producer *p = *producer;

    if (!p)
        return;
    for (struct producer **at = &p->client->producers; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    for (uint32_t i = 0; i < PRODUCER_HELD_MAX; i++)
        free(p->held[i].frame);
    p->client->held_bytes -= p->held_bytes;
    free(p);
    *producer = NULL;
}

void producer_status(const struct producer *producer, struct producer_status *out)
{
    *out = producer->status;
    out->sequence_sent = producer->sequence_next - 1;
    out->held_count = producer->count;
}

size_t producer_room(const struct producer *producer)
{
    size_t bytes = producer->status.credit_bytes < PRODUCER_HELD_BYTES_MAX
                       ? (size_t)producer->status.credit_bytes
                       : PRODUCER_HELD_BYTES_MAX;

    if (producer->count == PRODUCER_HELD_MAX || bytes <= producer->held_bytes ||
        producer->client->held_bytes >= CLIENT_HELD_BYTES_MAX)
        return 0;
    bytes -= producer->held_bytes;
    return bytes < CLIENT_ITEM_BYTES_MAX ? bytes : CLIENT_ITEM_BYTES_MAX;
}

/* ---- messages ---- */

/* The wire's form of one item, with room for what it points to. */
struct wire_item {
    Silt__V1__Item item;
    union {
        Silt__V1__Tokens tokens;
        Silt__V1__Turn turn;
        Silt__V1__Mark mark;
    };
};

static int item_fill(struct wire_item *out, const struct client_item *in, size_t *payload_bytes,
                     struct client_error *error)
{
    silt__v1__item__init(&out->item);
    switch (in->kind) {
    case ITEM_TEXT:
        out->item.body_case = SILT__V1__ITEM__BODY_TEXT;
        out->item.text.data = (uint8_t *)in->bytes;
        out->item.text.len = in->bytes_count;
        break;
    case ITEM_TOKENS:
        silt__v1__tokens__init(&out->tokens);
        out->item.body_case = SILT__V1__ITEM__BODY_TOKENS;
        out->item.tokens = &out->tokens;
        out->tokens.ids = (uint32_t *)in->tokens;
        out->tokens.n_ids = in->tokens_count;
        break;
    case ITEM_TURN:
        silt__v1__turn__init(&out->turn);
        out->item.body_case = SILT__V1__ITEM__BODY_TURN;
        out->item.turn = &out->turn;
        out->turn.role = (char *)(in->role ? in->role : "user");
        out->turn.text.data = (uint8_t *)in->bytes;
        out->turn.text.len = in->bytes_count;
        break;
    case ITEM_MARK:
        silt__v1__mark__init(&out->mark);
        out->item.body_case = SILT__V1__ITEM__BODY_MARK;
        out->item.mark = &out->mark;
        out->mark.kind = (Silt__V1__Mark__Kind)in->mark;
        break;
    }
    if (in->kind == ITEM_TEXT || in->kind == ITEM_TURN)
        *payload_bytes += in->bytes_count;
    if (in->kind == ITEM_TOKENS)
        *payload_bytes += in->tokens_count * 4;
    if (*payload_bytes > CLIENT_ITEM_BYTES_MAX ||
        (in->kind == ITEM_TOKENS && in->tokens_count > CLIENT_TOKENS_MAX))
        return client_fail(error, -EMSGSIZE, "a message holds at most %d bytes or %d tokens",
                           CLIENT_ITEM_BYTES_MAX, CLIENT_TOKENS_MAX);
    return 0;
}

static int held_pack(struct producer *p, Silt__V1__Feed *feed, size_t payload_bytes,
                     struct client_error *error)
{
    wire_request request = SILT__V1__REQUEST__INIT;
    struct held *held = held_at(p, p->count);
    size_t bytes;

    feed->stream = p->stream;
    feed->producer = p->id;
    feed->sequence = p->sequence_next;
    request.id = ++p->client->id_last;
    request.body_case = SILT__V1__REQUEST__BODY_FEED;
    request.feed = feed;
    bytes = protobuf_c_message_get_packed_size(&request.base);
    if (bytes > WIRE_FRAME_BYTES_MAX)
        return client_fail(error, -EMSGSIZE, "a message is at most %d bytes on the wire",
                           WIRE_FRAME_BYTES_MAX);
    held->frame = malloc(bytes);
    if (!held->frame)
        return client_fail(error, -ENOMEM, "out of memory");
    protobuf_c_message_pack(&request.base, held->frame);
    held->frame_bytes = bytes;
    held->payload_bytes = payload_bytes;
    held->sequence = p->sequence_next++;
    held->request_id = request.id;
    held->sent = false;
    p->held_bytes += payload_bytes;
    p->client->held_bytes += payload_bytes;
    p->count++;
    return 0;
}

/* Whether a message may join what is held. One that no credit could ever cover goes alone: siltd
 * then says whether it takes it. */
static bool held_fits(const struct producer *p, size_t payload_bytes)
{
    if (!p->epoch || p->count == PRODUCER_HELD_MAX)
        return false;
    if (payload_bytes && p->client->held_bytes >= CLIENT_HELD_BYTES_MAX)
        return false;
    if (p->count == 0)
        return payload_bytes == 0 || p->status.credit_bytes > 0;
    return p->held_bytes + payload_bytes <= PRODUCER_HELD_BYTES_MAX &&
           p->held_bytes + payload_bytes <= p->status.credit_bytes;
}

int producer_send(struct producer *producer, const struct client_item *items, size_t item_count,
                  uint64_t time_us, struct client_error *error)
{
    enum { ITEMS_MAX = 64 };
    struct wire_item wire[ITEMS_MAX];
    Silt__V1__Item *list[ITEMS_MAX];
    Silt__V1__Feed feed = SILT__V1__FEED__INIT;
    size_t payload_bytes = 0;
    int r = producer_fault(producer, error);

    if (!r && (item_count == 0 || item_count > ITEMS_MAX))
        r = client_fail(error, -EINVAL, "a message holds 1 to %d items", ITEMS_MAX);
    for (size_t i = 0; i < item_count && !r; i++) {
        r = item_fill(&wire[i], &items[i], &payload_bytes, error);
        list[i] = &wire[i].item;
    }
    while (!r && !held_fits(producer, payload_bytes))
        r = producer_work(producer, WAIT_MS, error);
    if (r)
        return r;
    feed.items = list;
    feed.n_items = item_count;
    feed.time_us = time_us;
    r = held_pack(producer, &feed, payload_bytes, error);
    if (!r)
        held_send(producer);
    return r;
}

int producer_write(struct producer *producer, const void *bytes, size_t bytes_count,
                   struct client_error *error)
{
    const uint8_t *at = bytes;

    while (bytes_count) {
        struct client_item item = {.kind = ITEM_TEXT, .bytes = at};
        size_t room = producer_room(producer);
        int r;

        if (!room) {
            r = producer_work(producer, WAIT_MS, error);
            if (r)
                return r;
            continue;
        }
        item.bytes_count = room < PIECE_BYTES ? room : PIECE_BYTES;
        if (item.bytes_count > bytes_count)
            item.bytes_count = bytes_count;
        r = producer_send(producer, &item, 1, 0, error);
        if (r)
            return r;
        at += item.bytes_count;
        bytes_count -= item.bytes_count;
    }
    return 0;
}

int producer_drain(struct producer *producer, int timeout_ms, struct client_error *error)
{
    uint64_t acked = producer->status.sequence_acked;
    int64_t news_us = client_now_us();

    while (producer->count) {
        int r = producer_work(producer, WAIT_MS, error);

        if (r)
            return r;
        if (producer->status.sequence_acked != acked) {
            acked = producer->status.sequence_acked;
            news_us = client_now_us();
        }
        if (timeout_ms != CLIENT_WAIT_FOREVER && client_now_us() - news_us > timeout_ms * 1000LL)
            return client_fail(error, -ETIMEDOUT, "siltd at %s has not acked %u messages in %d s",
                               producer->client->endpoint, producer->count, timeout_ms / 1000);
    }
    return producer_fault(producer, error);
}
