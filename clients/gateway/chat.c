/* POST /v1/chat/completions and /api/ask: answers as JSON or as an event stream. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/chat.h"

enum {
    FIRST_MS = 15000,     /* for the first text, before a stream begins without it */
    HEARTBEAT_MS = 10000, /* a comment, so that nobody in between gives up */
    LOOK_MS = 1000,       /* how often a wait looks who is still there */
    STREAM_BLOCK_BYTES = 4096,
};

static const char *finish_of(const struct question *q)
{
    return q->answer.finish == FINISH_LENGTH ? "length" : "stop";
}

static json_t *sources_json(const struct client_answer *answer)
{
    json_t *list = json_array();

    for (size_t i = 0; i < answer->source_count; i++) {
        const struct client_source *source = &answer->sources[i];
        json_t *text = json_string(source->text);

        json_array_append_new(
            list,
            json_pack("{s:I, s:I, s:I, s:I, s:o}", "segment", (json_int_t)source->segment, "from",
                      (json_int_t)source->from, "to", (json_int_t)source->to, "time_us",
                      (json_int_t)source->time_us, "text", text ? text : json_string("")));
    }
    return list;
}

/* What OpenAI's form has no place for. */
static json_t *silt_json(const struct question *q)
{
    return json_pack("{s:s, s:b, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o}", "stream", q->chat.stream,
                     "branched", q->branched, "position", (json_int_t)q->answer.position, "acked",
                     (json_int_t)q->answer.acked, "messages_known", (json_int_t)q->messages_known,
                     "messages_new", (json_int_t)q->messages_new, "wait_seconds",
                     (double)q->answer.wait_us / 1e6, "prefill_seconds",
                     (double)q->answer.prefill_us / 1e6, "decode_seconds",
                     (double)q->answer.decode_us / 1e6, "sources", sources_json(&q->answer));
}

static json_t *usage_json(const struct question *q)
{
    json_int_t asked = q->answer.question_tokens, answered = q->answer.answer_tokens;

    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", asked, "completion_tokens", answered,
                     "total_tokens", asked + answered);
}

static json_t *head_json(const struct question *q, const char *object)
{
    char id[48];

    snprintf(id, sizeof id, "chatcmpl-%llx-%llu", (unsigned long long)q->created,
             (unsigned long long)q->id);
    return json_pack("{s:s, s:s, s:I, s:s}", "id", id, "object", object, "created",
                     (json_int_t)q->created, "model", "silt");
}

static json_t *text_json(const struct question *q, size_t from)
{
    json_t *json = json_stringn(q->text.data ? q->text.data + from : "", q->text.bytes - from);

    return json ? json : json_string("");
}

/* ---- event stream ---- */

static void event(struct question *q, json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);

    if (text)
        text_addf(&q->out, "data: %s\n\n", text);
    free(text);
    json_decref(json);
}

static void event_chunk(struct question *q, json_t *delta, const char *finish, bool last)
{
    json_t *chunk = head_json(q, "chat.completion.chunk");
    json_t *choice =
        json_pack("{s:i, s:o, s:s?}", "index", 0, "delta", delta, "finish_reason", finish);

    json_object_set_new(chunk, "choices", json_pack("[o]", choice));
    if (last)
        json_object_set_new(chunk, "silt", silt_json(q));
    event(q, chunk);
}

static void event_error(struct question *q)
{
    event(q, json_pack("{s:{s:o, s:s, s:i}}", "error", "message", message_json(q->error.text),
                       "type", "server_error", "code", -q->error.code));
}

static void events_end(struct question *q)
{
    if (q->error.code) {
        event_error(q);
    } else if (q->plain) {
        event(q, json_pack("{s:o, s:s, s:o}", "done", silt_json(q), "finish", finish_of(q), "usage",
                           usage_json(q)));
    } else {
        event_chunk(q, json_object(), finish_of(q), true);
        if (q->chat.usage) {
            json_t *chunk = head_json(q, "chat.completion.chunk");

            json_object_set_new(chunk, "choices", json_array());
            json_object_set_new(chunk, "usage", usage_json(q));
            event(q, chunk);
        }
    }
    if (!q->plain)
        text_addf(&q->out, "data: [DONE]\n\n");
}

/* Fills `out` with what there is to say next; locked. */
static void events_fill(struct question *q, bool news)
{
    q->out.bytes = q->out_at = 0;
    if (!q->step) {
        q->step = 1;
        if (!q->plain)
            event_chunk(q, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), NULL,
                        false);
    }
    if (q->text.bytes > q->sent) {
        json_t *text = text_json(q, q->sent);

        q->sent = q->text.bytes;
        if (q->plain)
            event(q, json_pack("{s:o}", "text", text));
        else
            event_chunk(q, json_pack("{s:o}", "content", text), NULL, false);
    }
    if (q->ended && q->step == 1) {
        events_end(q);
        q->step = 2;
    }
    if (!news)
        text_addf(&q->out, ": still at it\n\n");
}

/* As question_wait, and no longer than the question may take: then siltd is told to stop, and it
 * ends. */
static bool wait_in_time(struct question *q, size_t seen, int milliseconds)
{
    uint64_t most_us = (uint64_t)q->gateway->options.answer_seconds * 1000000;
    uint64_t took_us = now_us() - q->begun_us;
    uint64_t left_ms = took_us < most_us ? (most_us - took_us) / 1000 + 1 : LOOK_MS;
    bool news =
        question_wait(q, seen, left_ms < (uint64_t)milliseconds ? (int)left_ms : milliseconds);

    if (!q->ended && q->pooled && now_us() - q->begun_us > most_us)
        q->pooled->interrupted = true;
    return news;
}

static ssize_t on_read(void *user, uint64_t position, char *buffer, size_t room)
{
    struct question *q = user;
    size_t bytes;

    (void)position;
    if (q->out_at == q->out.bytes) {
        bool news;

        if (q->step == 2)
            return MHD_CONTENT_READER_END_OF_STREAM;
        news = wait_in_time(q, q->sent, HEARTBEAT_MS);
        events_fill(q, news);
        pthread_mutex_unlock(&q->lock);
        if (q->out.failed)
            return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    bytes = q->out.bytes - q->out_at;
    if (bytes > room)
        bytes = room;
    memcpy(buffer, q->out.data + q->out_at, bytes);
    q->out_at += bytes;
    return (ssize_t)bytes;
}

static void on_read_end(void *user)
{
    struct question *q = user;

    question_close(&q);
}

/* ---- the whole of it ---- */

static enum MHD_Result reply_whole(struct question *q, struct MHD_Connection *connection)
{
    json_t *json = head_json(q, "chat.completion");
    json_t *message = json_pack("{s:s, s:o}", "role", "assistant", "content", text_json(q, 0));
    json_t *choice =
        json_pack("{s:i, s:o, s:s}", "index", 0, "message", message, "finish_reason", finish_of(q));

    json_object_set_new(json, "choices", json_pack("[o]", choice));
    json_object_set_new(json, "usage", usage_json(q));
    json_object_set_new(json, "silt", silt_json(q));
    return reply_json(q->gateway, connection, 200, &json);
}

/* Whoever asked has closed the connection: libmicrohttpd looks only when there is something to
 * send.
 */
static bool hung_up(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct pollfd link = {.fd = info ? info->connect_fd : -1, .events = POLLRDHUP};

    return poll(&link, 1, 0) > 0 && link.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

/* Waits for the end of an answer, or, where it is streamed, for its first text, but not for ever.
 * False: nobody reads it any more. */
static bool wait_for_answer(struct question *q, struct MHD_Connection *connection, bool *ended)
{
    uint64_t most_us = (uint64_t)FIRST_MS * 1000;
    bool news, left;

    do {
        news = wait_in_time(q, q->chat.streamed ? 0 : ANSWER_TEXT_MAX * 2, LOOK_MS);
        *ended = q->ended;
        pthread_mutex_unlock(&q->lock);
        left = !news && hung_up(connection);
    } while (!news && !left && (!q->chat.streamed || now_us() - q->begun_us < most_us));
    return !left;
}

static enum MHD_Result answer(struct question *q, struct MHD_Connection *connection)
{
    struct gateway *gateway = q->gateway;
    struct MHD_Response *response;
    enum MHD_Result r;
    bool ended;

    /* The connection is silent for as long as siltd thinks. */
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT,
                              (unsigned)gateway->options.answer_seconds + 60);
    if (!wait_for_answer(q, connection, &ended)) {
        question_close(&q);
        return MHD_NO;
    }
    if (ended && q->error.code) {
        r = reply_client_error(gateway, connection, &q->error);
        question_close(&q);
        return r;
    }
    if (!q->chat.streamed) {
        r = reply_whole(q, connection);
        question_close(&q);
        return r;
    }
    response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, on_read, q,
                                                 on_read_end);
    if (!response)
        question_close(&q);
    return reply_queue(gateway, connection, 200, "text/event-stream", response);
}

static enum MHD_Result post(struct gateway *gateway, struct MHD_Connection *connection,
                            struct request *request, bool plain)
{
    struct question *q = question_open(gateway);
    struct client_error error;
    enum MHD_Result reply;
    int r;

    if (!q)
        return MHD_NO;
    q->plain = plain;
    r = plain ? chat_parse_ask(&q->chat, &request->body, &error)
              : chat_parse(&q->chat, connection, &request->body, &error);
    text_free(&request->body);
    if (r) {
        reply = reply_client_error(gateway, connection, &error);
        question_close(&q);
        return reply;
    }
    r = question_start(q);
    if (r) {
        reply = reply_error(gateway, connection, 503, "threads", "no thread for the question: %s",
                            strerror(-r));
        question_close(&q);
        return reply;
    }
    return answer(q, connection);
}

enum MHD_Result chat_post(struct gateway *gateway, struct MHD_Connection *connection,
                          struct request *request)
{
    return post(gateway, connection, request, false);
}

enum MHD_Result ask_post(struct gateway *gateway, struct MHD_Connection *connection,
                         struct request *request)
{
    return post(gateway, connection, request, true);
}
