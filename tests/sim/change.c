#include "tests/sim/change.h"

#include <stdio.h>
#include <string.h>

struct change_counts change_counts;
const char *const stream_names[STREAMS] = {"a", "b", "c"};

static void push(struct rig *rig, struct model *model, struct model *of,
                 struct ingest_request *request)
{
    struct queue_part part = {request, sizeof *request};

    request->slot = SLOT_NONE;
    request->record = (uint32_t)(of - model);
    if (queue_push(&rig->journal_queue, &part, 1) == 0)
        of->changing++;
}

void change_act(struct rig *rig, struct model *model, uint64_t random)
{
    struct model *m = &model[random % STREAMS], *other = &model[(random >> 4) % STREAMS];
    struct journal_stream stream;
    struct ingest_request request = {.ask = (uint32_t)(m - model)};

    if (!m->exists || journal_stream_find(rig->journal, stream_names[m - model], &stream) != 0)
        return;
    request.stream_id = stream.id;
    switch (random >> 8 & 3) {
    case 0: /* whatever is under way of it */
        if (other->exists || other->changing)
            return;
        request.kind = INGEST_BRANCH;
        snprintf(request.name, sizeof request.name, "%s", stream_names[other - model]);
        push(rig, model, other, &request);
        return;
    case 1:
        request.kind = INGEST_TRIM;
        request.to =
            m->slot == SLOT_NONE ? stream.tokens : atomic_load(&rig->slots[m->slot].ring.head);
        m->trimmed = true;
        break;
    case 2:
        request.kind = INGEST_REMOVE;
        break;
    default:
        request.kind = INGEST_FORGET; /* no range: refused */
    }
    if (!m->changing && (m->slot == SLOT_NONE || request.kind == INGEST_TRIM))
        push(rig, model, m, &request);
}

static void branched(struct model *branch, const struct model *parent)
{
    *branch = (struct model){.count = parent->count,
                             .unsure = parent->unsure,
                             .trimmed = parent->trimmed,
                             .slot = SLOT_NONE,
                             .exists = true};
    memcpy(branch->message, parent->message, sizeof branch->message);
    memcpy(branch->acked, parent->acked, sizeof branch->acked);
    change_counts.branches++;
}

bool change_took(struct model *model, const struct ingest_result *result)
{
    struct model *m = &model[result->record];
    bool failed = result->error == 1 + SILT__V1__ERROR__CODE__NO_SPACE;

    if (result->kind != INGEST_BRANCH && result->kind != INGEST_REMOVE &&
        result->kind != INGEST_TRIM && result->kind != INGEST_FORGET)
        return false;
    m->changing--;
    if (failed && result->kind == INGEST_BRANCH)
        m->may_be_there = true;
    if (failed && result->kind == INGEST_REMOVE)
        m->may_be_gone = true;
    if (result->error)
        return false;
    if (result->kind == INGEST_BRANCH) {
        branched(m, &model[result->ask]);
    } else if (result->kind == INGEST_REMOVE) {
        *m = (struct model){.slot = SLOT_NONE};
        change_counts.removals++;
    } else if (result->kind == INGEST_TRIM) { /* of nothing: the log is folded, no batch commits */
        change_counts.trims += result->first > 0;
        return result->first > 0;
    }
    return true;
}

void change_crash(struct model *model)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        model[i].changing = 0;
}

bool change_explains(struct rig *rig, struct model *m, uint64_t stream_id)
{
    struct ingest_request request = {
        .kind = INGEST_REMOVE, .slot = SLOT_NONE, .stream_id = stream_id};
    struct queue_part part = {&request, sizeof request};
    bool may = stream_id ? m->may_be_there : m->may_be_gone;

    *m = (struct model){.slot = SLOT_NONE};
    if (!may || !stream_id)
        return may;
    rig_forget(rig);
    if (queue_push(&rig->journal_queue, &part, 1) != 0)
        return false;
    rig_settle(rig);
    may = rig_last(rig, INGEST_REMOVE)->error == 0;
    rig_forget(rig);
    return may;
}
