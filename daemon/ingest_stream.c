/* Streams come to the journal thread, branch, forget and leave. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/changes.h"
#include "daemon/forget.h"
#include "daemon/ingest.h"

static void take_slot(struct slot *slot, const struct journal_stream *stream)
{
    struct ingest_slot *in = &slot->ingest;

    memset(in, 0, sizeof *in);
    if (slot->times_count)
        memset(slot->times, 0, slot->times_count * sizeof *slot->times);
    in->open = true;
    in->stream_id = stream->id;
    in->working.items = stream->items;
    in->working.tokens = stream->tokens;
    in->working.bytes_text = stream->bytes_text;
    in->working.text = stream->text;
    snprintf(in->working.producer, sizeof in->working.producer, "%s", stream->producer);
    in->committed = in->working;
    atomic_store(&slot->stream_id, stream->id);
    atomic_store(&slot->tokens_acked, stream->tokens);
    atomic_store(&slot->bytes_text, stream->bytes_text);
}

/* The number of a branch whose commit failed comes again; where its checkpoints could not be taken
 * away then, they are now. Else nobody is waited for: the keeper may be writing one. */
static int clear_checkpoints(struct ingest *ingest, uint64_t stream_id)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];

    if (!ingest->keeper || !checkpoint_list(&ingest->keeper->at, stream_id, tokens))
        return 0;
    return keeper_cut(ingest->keeper, stream_id, 0);
}

static void refuse_number(struct ingest_result *result)
{
    snprintf(result->message, sizeof result->message,
             "siltd has made %d streams in this data folder, removed ones too, and can make no "
             "more: start it with another --data",
             STREAM_ID_MAX - 1);
    result->error = 1 + SILT__V1__ERROR__CODE__NO_SPACE;
}

static void create_stream(struct ingest *ingest, struct slot *slot,
                          const struct ingest_request *request, struct ingest_result *result)
{
    struct journal_stream stream = {.dmc_ratio = slot->options.dmc_ratio,
                                    .ring_segments = slot->options.ring_segments};
    int error;

    if (slot->ingest.open) { /* a second Open of the same stream, behind the first */
        result->stream_id = slot->ingest.stream_id;
        return;
    }
    snprintf(stream.name, sizeof stream.name, "%s", request->name);
    if (!ingest_begin(ingest))
        return;
    error = journal_stream_create(ingest->journal, &stream);
    if (error == -EOVERFLOW) {
        refuse_number(result);
        return;
    }
    if (!error)
        error = clear_checkpoints(ingest, stream.id);
    if (error) {
        ingest_failed(ingest, error);
        return;
    }
    take_slot(slot, &stream);
    (void)pins_load(ingest, slot, stream.id); /* there are none */
    slot->ingest.touched = true;
    result->created = true;
    result->stream_id = stream.id;
    result->created_us = stream.created_us;
}

void ingest_load(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                 struct ingest_result *result)
{
    struct journal_stream stream;
    uint64_t first = 0;
    int error = journal_stream_get(ingest->journal, request->stream_id, &stream);

    if (!error && request->past)
        error = forget_first(ingest, stream.id, &first);
    /* Its text may have gone while this waited in the queue. */
    if (!error && request->past && request->tokens_to < first) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__INVALID,
                      "the text before that position was trimmed away to stay below --disk");
        return;
    }

    if (!error)
        take_slot(slot, &stream);
    if (!error)
        error = pins_load(ingest, slot, stream.id);
    if (error)
        slot->ingest.open = false;
    if (error == -EBADMSG)
        ingest_refuse(result, SILT__V1__ERROR__CODE__INTERNAL,
                      "its pinned ranges, or what else is kept of it there, are damaged or more "
                      "than this siltd can hold: start the one that it was pinned with, or restore "
                      "the journal");
    else if (error)
        ingest_failed(ingest, error);
    if (!error && request->past) {
        slot->ingest.past = true;
        slot->ingest.tokens_to = request->tokens_to;
        atomic_store(&slot->tokens_acked, request->tokens_to);
    }
}

int ingest_save_tail(struct ingest *ingest, const struct ingest_slot *in)
{
    struct journal_stream stream = {.id = in->stream_id,
                                    .items = in->working.items,
                                    .tokens = in->working.tokens,
                                    .bytes_text = in->working.bytes_text,
                                    .text = in->working.text};

    if (!in->open || !in->touched)
        return 0;
    memcpy(stream.producer, in->working.producer, sizeof stream.producer);
    return journal_stream_update(ingest->journal, &stream);
}

void ingest_unload(struct ingest *ingest, struct slot *slot)
{
    /* Of a batch that has failed nothing is written: there may be no transaction any more. */
    int error = ingest->broken ? 0 : ingest_save_tail(ingest, &slot->ingest);

    if (error)
        ingest_failed(ingest, error);
    slot->ingest.open = false;
    atomic_store(&slot->behind, false);
}

/* The branch has its parent's checkpoints on disk before it is there itself: of text that was
 * trimmed away nothing else knows. False: it cannot have them and is refused. */
static bool share_checkpoints(struct ingest *ingest, struct ingest_result *result)
{
    if (!ingest->keeper ||
        !keeper_branch(ingest->keeper, result->parent_id, result->stream_id, result->tokens_acked))
        return true;
    (void)keeper_cut(ingest->keeper, result->stream_id, 0); /* else when its number comes again */
    if (!result->first)                                     /* it is computed from its journal */
        return true;
    ingest_refuse(result, SILT__V1__ERROR__CODE__INTERNAL,
                  "the oldest text of the stream was trimmed away, and the checkpoints that "
                  "remember it cannot be shared with a branch: see siltd's log");
    return false;
}

/* What this batch has added to the parent belongs to the branch too. */
static int make_branch(struct ingest *ingest, const struct ingest_request *request,
                       struct ingest_result *result)
{
    struct journal_stream branch = {0};
    int error = 0;

    snprintf(branch.name, sizeof branch.name, "%s", request->name);
    for (uint32_t i = 0; !error && i < ingest->slot_count; i++)
        if (ingest->slots[i].ingest.stream_id == request->stream_id)
            error = ingest_save_tail(ingest, &ingest->slots[i].ingest);
    if (!error)
        error = journal_stream_branch(ingest->journal, request->stream_id, &branch);
    if (!error)
        error = forget_first(ingest, branch.id, &result->first);
    result->stream_id = branch.id;
    result->tokens_acked = branch.tokens;
    result->bytes_text = branch.bytes_text;
    result->created_us = branch.created_us;
    return error;
}

static void branch_stream(struct ingest *ingest, const struct ingest_request *request,
                          struct ingest_result *result)
{
    bool stays = false;
    int error;

    result->parent_id = request->stream_id;
    result->stream_id = 0; /* not yet known */
    if (!ingest_begin(ingest))
        return;
    error = journal_mark(ingest->journal);
    if (!error)
        error = make_branch(ingest, request, result);
    if (error == -ENOENT)
        ingest_refuse(result, SILT__V1__ERROR__CODE__NOT_FOUND, "the stream was removed just now");
    else if (error == -EOVERFLOW)
        refuse_number(result);
    else if (!error)
        stays = share_checkpoints(ingest, result);
    if (!error || result->error)
        error = stays ? journal_keep(ingest->journal) : journal_take_back(ingest->journal);
    if (error)
        ingest_failed(ingest, error);
}

/* Questions about its past have nothing to read any more. */
static void leave_past(struct ingest *ingest, uint64_t stream_id)
{
    for (uint32_t i = 0; i < ingest->slot_count; i++)
        if (ingest->slots[i].ingest.past && ingest->slots[i].ingest.stream_id == stream_id) {
            ingest->slots[i].ingest.open = false;
            atomic_store(&ingest->slots[i].stream_id, 0);
        }
}

static void remove_stream(struct ingest *ingest, struct slot *slot,
                          const struct ingest_request *request)
{
    int error;

    if (slot) {
        slot->ingest.open = false;
        atomic_store(&slot->behind, false);
    }
    leave_past(ingest, request->stream_id);
    if (slot)
        atomic_store(&slot->stream_id, 0);
    if (!ingest_begin(ingest))
        return;
    forget_for_room(ingest, request->stream_id);
    error = journal_stream_remove(ingest->journal, request->stream_id);
    if (error)
        ingest_failed(ingest, error);
}

static void refuse_range(struct ingest_result *result, int error,
                         const struct ingest_request *request, uint64_t tokens)
{
    if (error == -EMSGSIZE) {
        ingest_refuse_long(result);
        return;
    }
    snprintf(result->message, sizeof result->message,
             "tokens %llu to %llu are not in the stream, which holds %llu",
             (unsigned long long)request->from, (unsigned long long)request->to,
             (unsigned long long)tokens);
    result->error = 1 + SILT__V1__ERROR__CODE__INVALID;
}

static void forget_tokens(struct ingest *ingest, const struct ingest_request *request,
                          struct ingest_result *result)
{
    struct journal_stream stream = {0};
    int error;

    if (!ingest_begin(ingest))
        return;
    error = journal_stream_get(ingest->journal, request->stream_id, &stream);
    if (!error)
        error = forget_range(ingest, &stream, request->from, request->to);
    if (error == -EINVAL || error == -EMSGSIZE) {
        refuse_range(result, error, request, stream.tokens);
        return;
    }
    if (!error)
        error = journal_stream_update(ingest->journal, &stream);
    if (error)
        ingest_failed(ingest, error);
    result->tokens_acked = stream.tokens;
    result->bytes_text = stream.bytes_text;
}

/* A live stream that is still being read again needs its text. */
static struct ingest_slot *live_slot(struct ingest *ingest, uint64_t stream_id, bool *behind)
{
    struct ingest_slot *found = NULL;

    *behind = false;
    for (uint32_t i = 0; i < ingest->slot_count; i++) {
        struct ingest_slot *in = &ingest->slots[i].ingest;

        if (!in->open || in->stream_id != stream_id)
            continue;
        *behind |= !in->live || in->past;
        found = in->past ? found : in;
    }
    return found;
}

void ingest_trim(struct ingest *ingest, const struct ingest_request *request,
                 struct ingest_result *result)
{
    struct journal_stream stream;
    bool behind;
    struct ingest_slot *in = live_slot(ingest, request->stream_id, &behind);
    int error = 0;

    if (!request->to)
        return; /* only the log is folded */
    if (!behind && !ingest_begin(ingest))
        return;
    if (in && in->touched)
        error = ingest_save_tail(ingest, in);
    if (!error && !behind)
        error = journal_stream_get(ingest->journal, request->stream_id, &stream);
    if (!error)
        error = behind ? -ENODATA : forget_oldest(ingest, &stream, request->to, &result->first);
    if (error == -ENODATA) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__NO_SPACE, "none of its text may go now");
        return;
    }
    if (!error)
        error = journal_stream_update(ingest->journal, &stream);
    if (error) {
        ingest_failed(ingest, error);
        return;
    }
    if (in)
        in->working.bytes_text = stream.bytes_text;
    if (in)
        in->touched = true;
    result->bytes_text = stream.bytes_text;
}

/* Beside what it stands for: both are on disk then or neither. What was so already, a pin that is
 * there, has stored nothing in this batch. */
static void note_change(struct ingest *ingest, const struct ingest_result *result)
{
    bool is_done = !result->error && (result->created || result->kind != INGEST_CREATE);
    int error;

    if (!result->change || !is_done || !ingest_begin(ingest))
        return;
    error = journal_change_add(ingest->journal, result->change, result->tokens_acked);
    if (error)
        ingest_failed(ingest, error);
}

void ingest_change(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                   struct ingest_result *result)
{
    if (request->kind == INGEST_CREATE)
        create_stream(ingest, slot, request, result);
    else if (request->kind == INGEST_REMOVE)
        remove_stream(ingest, slot, request);
    else if (request->kind == INGEST_BRANCH)
        branch_stream(ingest, request, result);
    else if (request->kind == INGEST_FORGET)
        forget_tokens(ingest, request, result);
    else if (request->kind == INGEST_PIN)
        ingest_pin(ingest, slot, request, result);
    note_change(ingest, result);
}
