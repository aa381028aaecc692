/*
 * Questions from the loop thread's side: admission, text to the client as it takes it, the end.
 *
 * A client that reads slowly holds only its own answer up, which waits in the question's own
 * buffer; after SEND_PATIENCE_US without taking anything it loses the question.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/serve.h"

enum { TEXT_PIECE_MAX = 4 << 10 };
_Static_assert(TEXT_PIECE_MAX + 1024 <= REPLY_BYTES_MAX, "a piece of an answer fits a reply");

static const struct sample_options sampling_default = {
    .temperature = 0.2f, .top_p = 0.95f, .repeat_penalty = 1.1f, .seed = 1};

static struct ask *free_ask(struct core *core)
{
    for (uint32_t i = 0; i < core->plan.forks_max; i++)
        if (core->asks[i].stage == ASK_FREE)
            return &core->asks[i];
    return NULL;
}

static void fill_options(struct ask *ask, const Silt__V1__Ask *from)
{
    ask->wait = from->wait;
    ask->keep = from->keep;
    ask->recall = (enum ask_recall)from->recall;
    ask->tokens_max = from->tokens_max ? from->tokens_max : ANSWER_TOKENS_DEFAULT;
    ask->sampling = sampling_default;
    if (from->sampling) {
        const Silt__V1__Sampling *s = from->sampling;

        ask->sampling = (struct sample_options){
            .temperature = s->temperature,
            .top_p = s->top_p > 0 ? s->top_p : 1.0f,
            .min_p = s->min_p,
            .top_k = s->top_k,
            .repeat_penalty = s->repeat_penalty > 0 ? s->repeat_penalty : 1.0f,
            .seed = s->seed};
    }
    memset(&ask->stop, 0, sizeof ask->stop);
    ask->stop.count = (uint32_t)from->n_stop;
    for (uint32_t i = 0; i < ask->stop.count; i++) {
        ask->stop.bytes[i] = (uint32_t)strlen(from->stop[i]);
        memcpy(ask->stop.text[i], from->stop[i], ask->stop.bytes[i]);
    }
    ask->question_bytes = (uint32_t)strlen(from->question);
    memcpy(ask->question, from->question, ask->question_bytes);
    ask->system_bytes = (uint32_t)strlen(from->system);
    memcpy(ask->system, from->system, ask->system_bytes);
}

/* The record in whose place a question runs: the stream's, or of its past. RECORD_NONE: the client
 * is told. */
static uint32_t place_for(struct core *core, const struct wire_client *client,
                          const struct wire_request *request, uint32_t index)
{
    const Silt__V1__Ask *from = request->ask;
    int result;

    if (serve_erasing(core, index)) {
        reply_busy(core, client, request->id,
                   "something is being taken out of the stream: try again in a moment");
        return RECORD_NONE;
    }
    if (from->at_given && !serve_is_present(core, index, from->at_position))
        return serve_past(core, client, request, index);
    result = serve_wake(core, index);
    if (!result)
        return index;
    serve_refuse_place(core, client, request->id, result);
    return RECORD_NONE;
}

void serve_ask(struct core *core, const struct wire_client *client,
               const struct wire_request *request)
{
    uint32_t index = table_find(&core->table, request->stream);
    struct ask *ask = free_ask(core);
    struct record *record = index == RECORD_NONE ? NULL : &core->table.records[index];
    struct queue_part part;
    struct sched_request out = {.kind = SCHED_ASK};
    uint64_t acked;

    if (!record) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "no stream is called '%s': `silt ls` lists them", request->stream);
        return;
    }
    if (!serve_may_ask(core, client)) {
        reply_busy(core, client, request->id,
                   "this client's key has as many questions under way as one key may: try again "
                   "when one is answered");
        return;
    }
    if (!ask) {
        reply_busy(core, client, request->id,
                   "all forks are in use: try again in a moment, or start siltd with a larger "
                   "--forks-max");
        return;
    }
    index = place_for(core, client, request, index);
    if (index == RECORD_NONE)
        return;
    acked = serve_acked(core, record);
    record = &core->table.records[index];
    fill_options(ask, request->ask);
    ask->slot = record->slot;
    ask->record = index;
    ask->acked = acked;
    ask->wait |= record->past;
    ask->wait_for = record->past ? record->tokens : acked;
    ask->admitted_us = clock_us();
    ask->client = *client;
    ask->request_id = request->id;
    ask->text_bytes = ask->sent_bytes = 0;
    ask->stuck_us = ask->keep_us = 0;
    ask->ended = false;
    atomic_store(&ask->cancelled, false);
    out.index = ask->index;
    part = (struct queue_part){&out, sizeof out};
    if (queue_push(&core->compute_queue, &part, 1) != 0) {
        reply_busy(core, client, request->id, "too many requests wait: try again in a moment");
        return;
    }
    ask->stage = ASK_RUNNING;
    record->asks++;
}

void serve_cancel(struct core *core, const struct wire_client *client,
                  const struct wire_request *request)
{
    for (uint32_t i = 0; i < core->plan.forks_max; i++) {
        struct ask *ask = &core->asks[i];

        if (ask->stage != ASK_FREE && ask->request_id == request->ask_id &&
            serve_same_client(&ask->client, client)) {
            atomic_store(&ask->cancelled, true);
            doorbell_ring(&core->compute_bell);
            return;
        }
    }
    reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                "no question %llu of this client is being answered",
                (unsigned long long)request->ask_id);
}

static void release(struct core *core, struct ask *ask)
{
    struct record *record = &core->table.records[ask->record];

    ask->stage = ASK_FREE;
    assert(record->asks > 0);
    record->asks--;
    if (record->state == RECORD_LEAVING)
        serve_leave(core, ask->record);
    else
        serve_past_end(core, ask->record);
}

/* The client has gone or takes nothing: whatever is still to come is for nobody. */
void serve_ask_abandon(struct core *core, struct ask *ask)
{
    atomic_store(&ask->cancelled, true);
    doorbell_ring(&core->compute_bell);
    ask->sent_bytes = ask->text_bytes;
    ask->client.bytes = 0;
}

/* True: the reply is with the client, or the client is given up. */
static bool deliver(struct core *core, struct ask *ask, const Silt__V1__Reply *reply)
{
    int result = ask->client.bytes ? reply_send(core, &ask->client, reply) : 0;
    uint64_t now = clock_us();

    if (!result) {
        ask->stuck_us = 0;
        return true;
    }
    if (!ask->stuck_us)
        ask->stuck_us = now;
    if (result != -EHOSTUNREACH && now - ask->stuck_us < SEND_PATIENCE_US)
        return false;
    if (result != -EHOSTUNREACH)
        say(SAY_WARN, "a client takes no answer for %d s: its question is dropped",
            SEND_PATIENCE_US / 1000000);
    serve_ask_abandon(core, ask);
    return true;
}

/* Sends what waits. True: nothing does any more. */
static bool send_text(struct core *core, struct ask *ask)
{
    while (ask->sent_bytes < ask->text_bytes) {
        Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
        Silt__V1__Token token = SILT__V1__TOKEN__INIT;
        uint32_t bytes = ask->text_bytes - ask->sent_bytes;

        if (bytes > TEXT_PIECE_MAX)
            bytes = TEXT_PIECE_MAX;
        token.text.data = ask->text + ask->sent_bytes;
        token.text.len = bytes;
        reply.id = ask->request_id;
        reply.body_case = SILT__V1__REPLY__BODY_TOKEN;
        reply.token = &token;
        if (!deliver(core, ask, &reply))
            return false;
        if (ask->sent_bytes < ask->text_bytes)
            ask->sent_bytes += bytes;
    }
    return true;
}

/* What the answer had of the far past: chunks whose segment or text was put before it. */
static size_t fill_sources(const struct ask *ask, Silt__V1__Source *sources,
                           Silt__V1__Source **list)
{
    size_t count = 0;

    for (uint32_t i = 0; i < ask->job.text_count; i++) {
        const struct search_text *text = &ask->job.text[i];
        Silt__V1__Source *source = &sources[count];

        silt__v1__source__init(source);
        source->segment = text->chunk;
        source->from = text->token_from;
        source->to = text->token_to;
        source->time_us = text->time_us;
        source->time_to_us = text->time_to_us;
        if (wire_utf8_valid((const uint8_t *)text->text, text->bytes))
            source->text = (char *)(uintptr_t)text->text;
        list[count++] = source;
    }
    return count;
}
_Static_assert(STREAM_RECALL_MAX *(SEARCH_TEXT_MAX + 64) + 1024 <= REPLY_BYTES_MAX,
               "all sources fit a reply");

static bool send_done(struct core *core, struct ask *ask)
{
    Silt__V1__Source sources[STREAM_RECALL_MAX], *list[STREAM_RECALL_MAX];
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Done done = SILT__V1__DONE__INIT;
    Silt__V1__Error error = SILT__V1__ERROR__INIT;

    reply.id = ask->request_id;
    if (ask->end.error) {
        error.code = (Silt__V1__Error__Code)(ask->end.error - 1);
        error.message = ask->end.message;
        reply.body_case = SILT__V1__REPLY__BODY_ERROR;
        reply.error = &error;
        return deliver(core, ask, &reply);
    }
    done.position = ask->end.position;
    done.acked = ask->acked;
    done.question_tokens = ask->end.question_tokens;
    done.answer_tokens = ask->end.answer_tokens;
    done.finish = (Silt__V1__Done__Finish)ask->end.finish;
    done.sources = list;
    done.n_sources = fill_sources(ask, sources, list);
    done.wait_us = ask->end.wait_us;
    done.prefill_us = ask->end.prefill_us;
    done.decode_us = ask->end.decode_us;
    done.rebuilding_to = ask->end.rebuilding_to;
    reply.body_case = SILT__V1__REPLY__BODY_DONE;
    reply.done = &done;
    return deliver(core, ask, &reply);
}

static size_t put_turn(uint8_t *at, enum turn_role role, const uint8_t *bytes, uint32_t bytes_count)
{
    struct ingest_item head = {ITEM_TURN, (uint32_t)role, bytes_count, 0};

    memcpy(at, &head, sizeof head);
    if (bytes_count)
        memcpy(at + sizeof head, bytes, bytes_count);
    return sizeof head + (bytes_count + 7u) / 8 * 8;
}

/* Question and answer go to the journal as one request: both are kept or neither. Where there is no
 * room now, the tick tries again. */
static void try_keep(struct core *core, struct ask *ask)
{
    struct ingest_request *out = (struct ingest_request *)(void *)core->request;
    uint8_t *at = (uint8_t *)(out + 1);

    memset(out, 0, sizeof *out);
    out->kind = INGEST_KEEP;
    out->slot = ask->slot;
    out->record = ask->record;
    out->ask = ask->index;
    out->client = ask->client;
    out->request_id = ask->request_id;
    out->time_us = clock_wall_us();
    out->item_count = 2;
    at += put_turn(at, ROLE_USER, ask->question, ask->question_bytes);
    at += put_turn(at, ROLE_ASSISTANT, ask->text, ask->text_bytes);
    out->flight_bytes = (uint32_t)(at - core->request);
    ask->stage = serve_push(core, out, out->flight_bytes) == 0 ? ASK_KEEPING : ASK_ENDING;
}
_Static_assert(REQUEST_BYTES_MAX > QUESTION_BYTES_MAX + ANSWER_BYTES_MAX + 4096,
               "question and answer fit a request");

/* Question and answer are to go to the journal now. What cannot be kept any more ends as that: it
 * holds a fork, and whoever asked waits for it. */
static bool to_be_kept(struct core *core, struct ask *ask)
{
    bool live = core->table.records[ask->record].state == RECORD_LIVE;
    uint64_t now = clock_us();

    if (!ask->keep || ask->end.error || ask->end.finish == SILT__V1__DONE__FINISH__CANCELLED)
        return false;
    if (atomic_load(&ask->cancelled)) {
        ask->end.finish = SILT__V1__DONE__FINISH__CANCELLED;
        return false;
    }
    if (!ask->keep_us)
        ask->keep_us = now;
    if (live && now - ask->keep_us < KEEP_PATIENCE_US)
        return true;
    ask->end.error = 1 + SILT__V1__ERROR__CODE__BUSY;
    snprintf(ask->end.message, sizeof ask->end.message, "the answer is not kept: %s",
             live ? "the stream had no room for it in 30 s, as it is far behind or --disk is full: "
                    "ask again when it has"
                  : "the stream left its place meanwhile: ask again");
    return false;
}

/* As far as it goes: text, journal, last reply. */
static void advance(struct core *core, struct ask *ask)
{
    if (!send_text(core, ask) || !ask->ended || ask->stage == ASK_KEEPING)
        return;
    ask->stage = ASK_ENDING;
    if (to_be_kept(core, ask))
        try_keep(core, ask);
    else if (send_done(core, ask))
        release(core, ask);
}

void serve_ask_text(struct core *core, struct ask *ask, const uint8_t *text, uint32_t bytes_count)
{
    assert(ask->stage == ASK_RUNNING);
    assert(bytes_count <= ANSWER_BYTES_MAX - ask->text_bytes);
    memcpy(ask->text + ask->text_bytes, text, bytes_count);
    ask->text_bytes += bytes_count;
    advance(core, ask);
}

void serve_ask_end(struct core *core, struct ask *ask, const struct ask_end *end)
{
    assert(ask->stage == ASK_RUNNING && !ask->ended);
    ask->end = *end;
    ask->ended = true;
    advance(core, ask);
}

void serve_ask_kept(struct core *core, struct ask *ask, const struct ingest_result *result)
{
    assert(ask->stage == ASK_KEEPING);
    ask->stage = ASK_ENDING;
    if (result->error == 1 + SILT__V1__ERROR__CODE__BUSY && !atomic_load(&core->stopping))
        return; /* the tick tries again */
    ask->keep = false;
    if (result->error) {
        ask->end.error = result->error;
        snprintf(ask->end.message, sizeof ask->end.message, "the answer is not kept: %.120s",
                 result->message);
    }
    advance(core, ask);
}

void serve_ask_tick(struct core *core)
{
    for (uint32_t i = 0; i < core->plan.forks_max; i++)
        if (core->asks[i].stage != ASK_FREE)
            advance(core, &core->asks[i]);
}
