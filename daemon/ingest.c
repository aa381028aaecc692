/* Group commit: apply every waiting request, commit once, then publish and answer. */
#include "daemon/ingest.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "daemon/forget.h"
#include "daemon/log.h"
#include "daemon/pages.h"
#include "daemon/replay.h"

enum {
    SLICE_BYTES = 4096,
    LOG_TRIES_MAX = 100,
    JOURNAL_COPIES = 2, /* text is in the log first, then in the database too */
};
_Static_assert((int)SLICE_BYTES >= (int)PRETOKEN_BYTES_MAX, "a slice holds a pre-token");

uint32_t ingest_scratch_tokens(uint32_t lag_tokens_max)
{
    return lag_tokens_max + SLICE_BYTES + 2 * PRETOKEN_BYTES_MAX + 64;
}

void ingest_refuse(struct ingest_result *result, Silt__V1__Error__Code code, const char *message)
{
    result->error = 1 + (uint32_t)code;
    snprintf(result->message, sizeof result->message, "%s", message);
}

void ingest_refuse_long(struct ingest_result *result)
{
    ingest_refuse(result, SILT__V1__ERROR__CODE__TOO_LARGE,
                  "the text there came with a larger --lag-tokens-max: start siltd with as much as "
                  "before, then send this again");
}

void ingest_failed(struct ingest *ingest, int error)
{
    if (!ingest->broken)
        say(SAY_ERROR, "journal: %s (%s)", journal_error(ingest->journal), strerror(-error));
    ingest->broken = true;
}

bool ingest_begin(struct ingest *ingest)
{
    int result;

    if (ingest->broken)
        return false;
    if (ingest->writing)
        return true;
    result = journal_begin(ingest->journal);
    if (result) {
        ingest_failed(ingest, result);
        return false;
    }
    ingest->writing = true;
    return true;
}

static uint64_t lag_of(const struct slot *slot)
{
    return slot->ingest.working.tokens - atomic_load(&slot->ring.head);
}

/* Free tokens of the queue; small rests are called none, so that nobody sends crumbs. */
static uint64_t credit_of(const struct ingest *ingest, const struct slot *slot)
{
    uint64_t lag = lag_of(slot);
    uint64_t room = lag < ingest->lag_tokens_max ? ingest->lag_tokens_max - lag : 0;

    return room >= ingest->lag_tokens_max / 4 ? room : 0;
}

/* ---- tokens of a request ---- */

struct forming {
    struct token_text text;
    uint32_t count;
    bool too_many;
};

static void form_text(struct ingest *ingest, struct forming *forming, const uint8_t *bytes,
                      size_t bytes_count)
{
    while (bytes_count && !forming->too_many) {
        size_t n = bytes_count < SLICE_BYTES ? bytes_count : SLICE_BYTES;

        forming->count += (uint32_t)token_feed(ingest->tokenizer, &forming->text, bytes, n,
                                               ingest->scratch + forming->count);
        forming->too_many = forming->count > ingest->lag_tokens_max;
        bytes += n;
        bytes_count -= n;
    }
}

static void form_turn(struct ingest *ingest, struct forming *forming, uint32_t role,
                      const uint8_t *bytes, size_t bytes_count)
{
    int n = token_turn(ingest->tokenizer, wire_role_name(role), bytes, bytes_count,
                       ingest->scratch + forming->count, ingest->scratch_max - forming->count);

    forming->count += n > 0 ? (uint32_t)n : 0;
    forming->too_many = n < 0 || forming->count > ingest->lag_tokens_max;
}

static void form_item(struct ingest *ingest, struct forming *forming, const struct wire_item *item)
{
    if (item->kind == ITEM_TEXT) {
        form_text(ingest, forming, item->bytes, item->bytes_count);
        return;
    }
    forming->count +=
        (uint32_t)token_flush(ingest->tokenizer, &forming->text, ingest->scratch + forming->count);
    forming->too_many = forming->count > ingest->lag_tokens_max;
    if (forming->too_many)
        return;
    if (item->kind == ITEM_TURN)
        form_turn(ingest, forming, item->detail, item->bytes, item->bytes_count);
    if (item->kind == ITEM_TOKENS) {
        uint32_t n = item->bytes_count / (uint32_t)sizeof(int32_t);

        forming->too_many = forming->count + n > ingest->lag_tokens_max;
        if (!forming->too_many && n)
            memcpy(ingest->scratch + forming->count, item->bytes, item->bytes_count);
        if (!forming->too_many)
            forming->count += n;
    }
}

/* The item at `at` of a request; returns where the next one starts. */
static const uint8_t *next_item(const uint8_t *at, struct wire_item *out)
{
    struct ingest_item head;

    memcpy(&head, at, sizeof head);
    out->kind = (enum item_kind)head.kind;
    out->detail = head.detail;
    out->bytes = at + sizeof head;
    out->bytes_count = head.bytes_count;
    return at + sizeof head + (head.bytes_count + 7u) / 8 * 8;
}

/* ---- feed ---- */

/* Room for `count` tokens behind all that is acked? */
static bool has_room(const struct ingest *ingest, struct slot *slot, uint32_t count)
{
    return lag_of(slot) + count <= ingest->lag_tokens_max;
}

static void stage_tokens(const struct ingest *ingest, struct slot *slot, uint32_t count,
                         uint64_t time_us)
{
    struct ingest_slot *in = &slot->ingest;

    if (!in->live)
        return; /* replay gets there */
    slot_note_time(slot, in->staged, in->staged + count, time_us);
    for (uint32_t i = 0; i < count; i++)
        slot->ring.tokens[(in->staged + i) % slot->ring.capacity] = ingest->scratch[i];
    in->staged += count;
}

static int store_item(struct ingest *ingest, struct slot *slot, const struct wire_item *item,
                      uint64_t time_us, const struct item_place *place)
{
    struct tail *tail = &slot->ingest.working;
    struct journal_item row = {.item = *item,
                               .time_us = time_us,
                               .token_from = tail->tokens + place->tokens_before,
                               .held_before = place->held_before};
    int result = journal_item_append(ingest->journal, slot->ingest.stream_id, tail->items, &row);

    tail->items++;
    if (item->kind == ITEM_TEXT)
        tail->bytes_text += item->bytes_count;
    return result;
}

static const struct wire_item producer_change = {.kind = ITEM_MARK, .detail = MARK_PRODUCER_CHANGE};

/* Stores what form_request has formed. */
static void store_request(struct ingest *ingest, struct slot *slot,
                          const struct ingest_request *request, bool new_producer,
                          const struct forming *forming)
{
    struct tail *tail = &slot->ingest.working;
    const struct item_place *place = ingest->places;
    const uint8_t *at = (const uint8_t *)(request + 1);
    struct wire_item item;
    int result = 0;

    if (new_producer)
        result = store_item(ingest, slot, &producer_change, request->time_us, place++);
    for (uint32_t i = 0; !result && i < request->item_count; i++) {
        at = next_item(at, &item);
        result = store_item(ingest, slot, &item, request->time_us, place++);
    }
    if (result) {
        ingest_failed(ingest, result);
        return;
    }
    tail->text = forming->text;
    tail->tokens += forming->count;
    snprintf(tail->producer, sizeof tail->producer, "%s", request->producer);
    stage_tokens(ingest, slot, forming->count, request->time_us);
}

/* Forms the tokens of a request in scratch and notes where each item begins. */
static void form_request(struct ingest *ingest, const struct slot *slot,
                         const struct ingest_request *request, bool new_producer,
                         struct forming *forming, uint64_t *text_bytes)
{
    const uint8_t *at = (const uint8_t *)(request + 1);
    struct item_place *place = ingest->places;
    struct wire_item item;

    *forming = (struct forming){.text = slot->ingest.working.text};
    *text_bytes = 0;
    if (new_producer) {
        *place++ = (struct item_place){0, forming->text.held_bytes};
        form_item(ingest, forming, &producer_change);
    }
    for (uint32_t i = 0; i < request->item_count && !forming->too_many; i++) {
        at = next_item(at, &item);
        *place++ = (struct item_place){forming->count, forming->text.held_bytes};
        form_item(ingest, forming, &item);
        if (item.kind == ITEM_TEXT)
            *text_bytes += item.bytes_count;
    }
}

/* As many tokens wait as may: for the compute thread, or for nobody. */
static void refuse_full(struct slot *slot, struct ingest_result *result)
{
    bool failed;

    pthread_mutex_lock(&slot->stat_lock);
    failed = slot->stat.failed;
    pthread_mutex_unlock(&slot->stat_lock);
    if (failed || atomic_load(&slot->unread))
        ingest_refuse(result, SILT__V1__ERROR__CODE__INTERNAL,
                      "the stream cannot be computed, and has as many tokens waiting as it may: "
                      "see siltd's log, restart siltd, then send this again");
    else
        ingest_refuse(
            result, SILT__V1__ERROR__CODE__BUSY,
            "the stream has as many tokens waiting as it may: an Ack follows when there is "
            "room, then send this again");
}

/* Stores the request where it fits. False: refused, nothing is stored. */
static bool take_items(struct ingest *ingest, struct slot *slot,
                       const struct ingest_request *request, struct ingest_result *result,
                       uint64_t *text_bytes)
{
    const struct tail *tail = &slot->ingest.working;
    /* Text of two producers never joins; where none waits there is nothing to separate. */
    bool new_producer = tail->text.held_bytes && strcmp(tail->producer, request->producer) != 0;
    struct forming forming;

    form_request(ingest, slot, request, new_producer, &forming, text_bytes);
    if (forming.too_many) {
        snprintf(result->message, sizeof result->message,
                 "one message forms more than %u tokens, all that may wait (--lag-tokens-max): "
                 "send it in smaller pieces",
                 ingest->lag_tokens_max);
        result->error = 1 + SILT__V1__ERROR__CODE__TOO_LARGE;
        return false;
    }
    if (!has_room(ingest, slot, forming.count)) {
        refuse_full(slot, result);
        return false;
    }
    if (ingest->trims && atomic_load(ingest->disk_full)) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__BUSY,
                      "the data folder is as large as --disk allows: the oldest text makes room "
                      "for this, send it again in a moment");
        return false;
    }
    if (ingest->disk_full && atomic_load(ingest->disk_full)) {
        ingest_refuse(
            result, SILT__V1__ERROR__CODE__NO_SPACE,
            "the data folder is as large as --disk allows: remove streams or raise it, then "
            "send this again");
        return false;
    }
    if (ingest->disk_grant &&
        pages_grown() + JOURNAL_COPIES * ingest->pending_bytes >= atomic_load(ingest->disk_grant)) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__BUSY,
                      "the data folder is near what --disk allows and is being measured: send "
                      "this again in a moment");
        return false;
    }
    if (!ingest_begin(ingest))
        return true;
    ingest->pending_bytes += *text_bytes;
    slot->ingest.touched = true;
    store_request(ingest, slot, request, new_producer, &forming);
    return true;
}

static void apply_feed(struct ingest *ingest, struct slot *slot,
                       const struct ingest_request *request, struct ingest_result *result)
{
    uint64_t sequence, bytes_acked, text_bytes;
    int error = journal_producer_get(ingest->journal, slot->ingest.stream_id, request->producer,
                                     &sequence, &bytes_acked);

    if (error) {
        ingest_failed(ingest, error);
        return;
    }
    if (request->sequence > sequence + 1) {
        snprintf(result->message, sizeof result->message,
                 "expected sequence %llu of producer %s, got %llu: send the missing ones first",
                 (unsigned long long)(sequence + 1), request->producer,
                 (unsigned long long)request->sequence);
        result->error = 1 + SILT__V1__ERROR__CODE__GAP;
        result->expected_sequence = sequence + 1;
    } else if (request->sequence == sequence + 1 &&
               take_items(ingest, slot, request, result, &text_bytes)) {
        sequence++;
        bytes_acked += text_bytes;
        error = ingest->broken ? 0
                               : journal_producer_set(ingest->journal, slot->ingest.stream_id,
                                                      request->producer, sequence, bytes_acked);
        if (error)
            ingest_failed(ingest, error);
    }
    result->sequence = sequence;
    result->bytes_acked = bytes_acked;
}

static void apply_attach(struct ingest *ingest, struct slot *slot, struct ingest_result *result)
{
    int error = journal_producer_get(ingest->journal, slot->ingest.stream_id, result->producer,
                                     &result->sequence, &result->bytes_acked);

    if (error)
        ingest_failed(ingest, error);
}

/* ---- requests ---- */

static void apply(struct ingest *ingest, const struct ingest_request *request)
{
    struct slot *slot = request->slot == SLOT_NONE ? NULL : &ingest->slots[request->slot];
    struct ingest_result *result = &ingest->results[ingest->result_count++];
    bool needs_stream = request->kind == INGEST_ATTACH || request->kind == INGEST_FEED ||
                        request->kind == INGEST_KEEP;

    memset(result, 0, sizeof *result);
    result->kind = request->kind;
    result->slot = request->slot;
    result->record = request->record;
    result->ask = request->ask;
    result->stream_id = request->stream_id;
    result->request_id = request->request_id;
    result->change = request->change;
    result->client = request->client;
    result->flight_bytes = request->flight_bytes;
    memcpy(result->producer, request->producer, sizeof result->producer);
    if (needs_stream && (!slot || !slot->ingest.open)) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__NOT_FOUND,
                      "the stream is gone: open it again");
        return;
    }
    if (request->kind == INGEST_LOAD)
        ingest_load(ingest, slot, request, result);
    else if (request->kind == INGEST_TRIM)
        ingest_trim(ingest, request, result);
    else if (request->kind == INGEST_ATTACH)
        apply_attach(ingest, slot, result);
    else if (request->kind == INGEST_FEED)
        apply_feed(ingest, slot, request, result);
    else if (request->kind == INGEST_KEEP)
        take_items(ingest, slot, request, result, &(uint64_t){0});
    else if (request->kind == INGEST_UNLOAD)
        ingest_unload(ingest, slot);
    else
        ingest_change(ingest, slot, request, result);
}

/* ---- the batch's end ---- */

static int save_tails(struct ingest *ingest)
{
    int result = 0;

    for (uint32_t i = 0; !result && i < ingest->slot_count; i++)
        result = ingest_save_tail(ingest, &ingest->slots[i].ingest);
    return result;
}

static void publish(struct slot *slot)
{
    struct ingest_slot *in = &slot->ingest;

    in->touched = false;
    in->committed = in->working;
    atomic_store(&slot->tokens_acked, in->committed.tokens);
    atomic_store(&slot->bytes_text, in->committed.bytes_text);
    if (in->live)
        atomic_store_explicit(&slot->ring.tail, in->staged, memory_order_release);
}

static void take_back(struct slot *slot)
{
    struct ingest_slot *in = &slot->ingest;

    in->touched = false;
    in->working = in->committed;
    in->staged = atomic_load(&slot->ring.tail);
}

/* How far a producer's text is on disk, now that the batch is not. */
static void take_back_sequence(struct ingest *ingest, struct ingest_result *result)
{
    if (journal_producer_get(ingest->journal, result->stream_id, result->producer,
                             &result->sequence, &result->bytes_acked))
        result->sequence = result->bytes_acked = 0; /* it cannot be read: nothing is said */
    if (result->error == 1 + SILT__V1__ERROR__CODE__GAP)
        result->error = 0; /* behind what is gone: it is refused as that is */
    result->expected_sequence = 0;
}

/* Nothing of the batch is on disk: every answer that says otherwise is turned. A refusal too says
 * how far the producer is: an Ack follows it when there is room. */
static void fail_results(struct ingest *ingest)
{
    for (uint32_t i = 0; i < ingest->result_count; i++) {
        struct ingest_result *result = &ingest->results[i];

        if (result->kind == INGEST_FEED)
            take_back_sequence(ingest, result);
        if (result->created || (result->kind == INGEST_LOAD && !result->error))
            ingest->slots[result->slot].ingest.open = false;
        if (result->kind == INGEST_BRANCH && result->stream_id && ingest->keeper)
            (void)keeper_cut(ingest->keeper, result->stream_id, 0); /* else when its number comes */
        if (!result->error)
            ingest_refuse(
                result, SILT__V1__ERROR__CODE__NO_SPACE,
                "the journal cannot be written (disk full?): nothing was stored; make room "
                "under --data and send it again");
    }
}

/* What was removed goes from the log too. A reader may be in the way for a moment. */
static void cut_log(struct journal *journal)
{
    static const struct timespec pause = {.tv_nsec = 10000000};
    int result = -EBUSY;

    journal_item_done(journal);
    for (int i = 0; result == -EBUSY && i < LOG_TRIES_MAX; i++) {
        if (i)
            nanosleep(&pause, NULL);
        result = journal_truncate_log(journal);
    }
    if (result)
        say(SAY_WARN, "removed text may stay in the journal's log until siltd is started again: %s",
            strerror(-result));
}

/* What follows from a commit that is on disk. */
static void after_commit(struct ingest *ingest)
{
    bool removed = false;

    for (uint32_t i = 0; i < ingest->result_count; i++) {
        const struct ingest_result *result = &ingest->results[i];

        if (result->error)
            continue;
        removed |= result->kind == INGEST_REMOVE || result->kind == INGEST_FORGET ||
                   result->kind == INGEST_TRIM;
        if (result->kind == INGEST_REMOVE)
            forget_derived(ingest, result->stream_id);
        if (result->kind == INGEST_TRIM && result->first)
            forget_trimmed(ingest, result->stream_id, result->first);
        if (result->kind == INGEST_TRIM)
            journal_shrink(ingest->journal);
    }
    if (removed)
        cut_log(ingest->journal);
}

static void end_batch(struct ingest *ingest)
{
    int error = 0;

    if (ingest->writing && !ingest->broken) {
        error = save_tails(ingest);
        if (!error)
            error = journal_commit(ingest->journal);
        if (error)
            ingest_failed(ingest, error);
    }
    if (ingest->broken) {
        journal_rollback(ingest->journal);
        fail_results(ingest);
    }
    for (uint32_t i = 0; i < ingest->slot_count; i++) {
        if (ingest->slots[i].ingest.pinning) /* before tokens that come behind it */
            pins_sync(ingest, &ingest->slots[i]);
        if (!ingest->slots[i].ingest.touched)
            continue;
        if (ingest->broken)
            take_back(&ingest->slots[i]);
        else
            publish(&ingest->slots[i]);
    }
    after_commit(ingest);
    if (ingest->writing || ingest->broken)
        atomic_store(ingest->disk_failed, ingest->broken);
    ingest->writing = ingest->broken = false;
    ingest->pending_bytes = 0;
    atomic_store(ingest->disk_bytes, journal_disk_bytes(ingest->journal));
}

static void send_results(struct ingest *ingest)
{
    static const uint64_t head = LOOP_INGEST;

    for (uint32_t i = 0; i < ingest->result_count; i++) {
        struct ingest_result *result = &ingest->results[i];
        struct slot *slot = result->slot == SLOT_NONE ? NULL : &ingest->slots[result->slot];
        bool credit = slot && slot->ingest.open &&
                      (result->kind == INGEST_FEED || result->kind == INGEST_ATTACH);
        struct queue_part parts[] = {{&head, sizeof head}, {result, sizeof *result}};

        if (slot && slot->ingest.open)
            result->tokens_acked = slot->ingest.committed.tokens;
        if (credit)
            result->credit_tokens = credit_of(ingest, slot);
        queue_push_wait(ingest->loop, parts, 2);
        /* The loop thread knows of the waiter before it can hear of room. */
        if (credit && result->credit_tokens == 0)
            atomic_store(&slot->credit_wanted, true);
    }
    if (ingest->result_count)
        doorbell_ring(ingest->compute_bell);
    ingest->result_count = 0;
}

bool ingest_step(struct ingest *ingest)
{
    const struct ingest_request *request = NULL;
    size_t bytes_count;
    bool more = false;

    while (ingest->result_count < BATCH_MAX &&
           (request = queue_front(ingest->inbox, &bytes_count))) {
        assert(bytes_count >= sizeof *request);
        apply(ingest, request);
        queue_pop(ingest->inbox);
    }
    if (ingest->result_count) {
        more = request != NULL;
        end_batch(ingest);
        send_results(ingest);
    }
    for (uint32_t i = 0; i < ingest->slot_count; i++)
        if (ingest->slots[i].ingest.open && !ingest->slots[i].ingest.live)
            more |= replay_step(ingest, &ingest->slots[i]);
    journal_item_done(ingest->journal);
    return more;
}

void *ingest_main(void *argument)
{
    struct ingest *ingest = argument;
    size_t bytes_count;

    for (;;) {
        bool stop = atomic_load(ingest->stopping);

        if (ingest_step(ingest))
            continue;
        if (queue_front(ingest->inbox, &bytes_count))
            continue;
        if (stop)
            return NULL;
        doorbell_wait(ingest->bell, -1);
    }
}
