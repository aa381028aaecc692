/* ask: a question and the answer that comes in pieces. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/link.h"

enum {
    CANCEL_MS = 5000, /* for siltd to say that a cancelled answer has ended */
    STOP_MAX = 8,
};

struct asking {
    struct client *client;
    client_token_fn *token;
    void *user;
    struct client_answer *out;
    bool cancelled;
};

static void ask_cancel(struct client *client, uint64_t ask_id)
{
    Silt__V1__Cancel cancel = SILT__V1__CANCEL__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;

    cancel.ask_id = ask_id;
    request.id = ++client->id_last;
    request.body_case = SILT__V1__REQUEST__BODY_CANCEL;
    request.cancel = &cancel;
    client_send(client, &request);
}

void client_answer_free(struct client_answer *answer)
{
    for (size_t i = 0; answer->sources && i < answer->source_count; i++)
        free(answer->sources[i].text);
    free(answer->sources);
    *answer = (struct client_answer){0};
}

static int answer_copy(struct client_answer *out, const Silt__V1__Done *done)
{
    *out = (struct client_answer){
        .position = done->position,
        .acked = done->acked,
        .rebuilding_to = done->rebuilding_to,
        .question_tokens = done->question_tokens,
        .answer_tokens = done->answer_tokens,
        .finish = (enum client_finish)done->finish,
        .wait_us = done->wait_us,
        .prefill_us = done->prefill_us,
        .decode_us = done->decode_us,
        .source_count = done->n_sources,
        .sources = calloc(done->n_sources + 1, sizeof *out->sources),
    };
    for (size_t i = 0; out->sources && i < done->n_sources; i++) {
        const Silt__V1__Source *source = done->sources[i];

        out->sources[i] = (struct client_source){
            .segment = source->segment,
            .from = source->from,
            .to = source->to,
            .time_us = source->time_us,
            .time_to_us = source->time_to_us,
            .text = strdup(source->text),
        };
        if (!out->sources[i].text) {
            client_answer_free(out);
            return -ENOMEM;
        }
    }
    return out->sources ? 0 : -ENOMEM;
}

static int ask_reply(struct pending *pending, const wire_reply *reply)
{
    struct asking *asking = pending->user;

    switch (reply->body_case) {
    case SILT__V1__REPLY__BODY_TOKEN:
        if (asking->token && !asking->cancelled &&
            asking->token(asking->user, reply->token->text.data, reply->token->text.len)) {
            asking->cancelled = true;
            ask_cancel(asking->client, pending->id);
        }
        return 1;
    case SILT__V1__REPLY__BODY_DONE:
        return answer_copy(asking->out, reply->done);
    default:
        return client_fail(pending->error, -EPROTO,
                           "siltd's reply does not fit the question: its version is another's");
    }
}

static int ask_fill(Silt__V1__Ask *wire, Silt__V1__Sampling *sampling, const struct client_ask *ask,
                    struct client_error *error)
{
    int r = client_name_check(ask->stream, error);

    if (r)
        return r;
    if (!ask->question || !ask->question[0])
        return client_fail(error, -EINVAL, "the question is empty");
    if (ask->stop_count > STOP_MAX)
        return client_fail(error, -EINVAL, "at most %d stop strings", STOP_MAX);
    wire->stream = (char *)ask->stream;
    wire->question = (char *)ask->question;
    wire->recall = (Silt__V1__Ask__Recall)ask->recall;
    wire->wait = ask->wait;
    wire->keep = ask->keep;
    wire->at_given = ask->at_given;
    wire->at_position = ask->at_position;
    wire->tokens_max = ask->tokens_max;
    if (ask->system)
        wire->system = (char *)ask->system;
    wire->stop = (char **)ask->stop;
    wire->n_stop = ask->stop_count;
    if (ask->sampling) {
        sampling->temperature = ask->sampling->temperature;
        sampling->top_p = ask->sampling->top_p;
        sampling->min_p = ask->sampling->min_p;
        sampling->top_k = ask->sampling->top_k;
        sampling->repeat_penalty = ask->sampling->repeat_penalty;
        sampling->seed = ask->sampling->seed;
        wire->sampling = sampling;
    }
    return 0;
}

/* The flag is set: siltd is told, and its last word awaited with the flag out of sight. */
static int ask_interrupted(struct client *client, wire_request *request, struct pending *pending)
{
    const atomic_bool *interrupted = client->options.interrupted;
    struct asking *asking = pending->user;
    int r;

    client->options.interrupted = NULL;
    if (!asking->cancelled)
        ask_cancel(client, pending->id);
    asking->cancelled = true;
    pending->sent_us = client_now_us();
    pending->timeout_ms = CANCEL_MS;
    client->pending = pending;
    r = client_wait(client, request, pending);
    client->pending = NULL;
    client->options.interrupted = interrupted;
    return r;
}

int client_ask(struct client *client, const struct client_ask *ask, client_token_fn *token,
               void *user, struct client_answer *out, struct client_error *error)
{
    Silt__V1__Ask wire = SILT__V1__ASK__INIT;
    Silt__V1__Sampling sampling = SILT__V1__SAMPLING__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;
    struct asking asking = {.client = client, .token = token, .user = user, .out = out};
    struct pending pending = {.reply = ask_reply, .user = &asking, .error = error};
    int r;

    *out = (struct client_answer){0};
    r = ask_fill(&wire, &sampling, ask, error);
    if (r)
        return r;
    request.body_case = SILT__V1__REQUEST__BODY_ASK;
    request.ask = &wire;
    r = client_request(client, &request, &pending);
    if (r == -EINTR && !pending.done && pending.epoch && !pending.later_us)
        r = ask_interrupted(client, &request, &pending);
    return r;
}
