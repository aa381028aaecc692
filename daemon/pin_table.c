#include "daemon/pin_table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/forget.h"
#include "daemon/ingest.h"
#include "daemon/journal_pin.h"
#include "daemon/log.h"
#include "daemon/replay.h"

/* ---- the journal thread ---- */

static int load_one(void *user, const struct journal_pin *pin, const int32_t *tokens)
{
    struct slot_pins *pins = user;
    uint32_t count = atomic_load(&pins->count);
    uint64_t all = pin->before + (pin->to - pin->from);
    struct slot_pin *to = &pins->pin[count];

    if (pin->until <= pin->at)
        return 0; /* let go before it came to be seen */
    if (count == SLOT_PINS_MAX || all > SLOT_PIN_TOKENS_MAX - pins->used)
        return -EBADMSG;
    to->from = pin->from;
    to->to = pin->to;
    to->at = pin->at;
    to->before = pin->before;
    to->first = pins->used;
    atomic_store(&to->until, pin->until);
    memcpy(pins->tokens + pins->used, tokens, all * sizeof *tokens);
    pins->used += (uint32_t)all;
    atomic_store(&pins->count, count + 1);
    return 0;
}

static int count_one(void *user, const struct journal_pin *pin, const int32_t *tokens)
{
    (void)pin;
    (void)tokens;
    ++*(uint32_t *)user;
    return 0;
}

/* What the stream was to attend to it does not, here. */
static int say_lost(struct ingest *ingest, uint64_t stream_id)
{
    uint32_t count = 0;
    int result = journal_pin_each(ingest->journal, stream_id, count_one, &count);

    if (count)
        say(SAY_WARN,
            "this siltd keeps no room for the %u pinned ranges of stream %llu, which is computed "
            "without them: start it with --pin-tokens-max (and the adapter) as before",
            count, (unsigned long long)stream_id);
    return result;
}

int pins_load(struct ingest *ingest, struct slot *slot, uint64_t stream_id)
{
    slot->pins.used = 0;
    atomic_store(&slot->pins.count, 0);
    return ingest->pin_tokens_max
               ? journal_pin_each(ingest->journal, stream_id, load_one, &slot->pins)
               : say_lost(ingest, stream_id);
}

/* An entry that is there may have ended; one that is not there is new. */
static int sync_one(void *user, const struct journal_pin *pin, const int32_t *tokens)
{
    struct slot_pins *pins = user;

    for (uint32_t i = 0; i < atomic_load(&pins->count); i++) {
        struct slot_pin *have = &pins->pin[i];

        if (have->from == pin->from && have->to == pin->to && have->at == pin->at) {
            atomic_store(&have->until, pin->until);
            return 0;
        }
    }
    return load_one(user, pin, tokens);
}

void pins_sync(struct ingest *ingest, struct slot *slot)
{
    int error = ingest->broken ? 0
                               : journal_pin_each(ingest->journal, slot->ingest.stream_id, sync_one,
                                                  &slot->pins);

    slot->ingest.pinning = false;
    if (!error)
        return;
    say(SAY_ERROR,
        "the pins of stream %llu cannot be read (%s): nothing that comes is computed without them, "
        "restart siltd",
        (unsigned long long)slot->ingest.stream_id, strerror(-error));
    replay_stop(ingest, slot);
}

/* Tokens [from, from + count) of a stream, out of its journal; of text that was trimmed away what
 * stands in its place wherever it is read again. */
static int read_tokens(struct ingest *ingest, const struct ingest_slot *in, uint64_t from,
                       uint32_t count, int32_t *out)
{
    uint64_t ordinal, token, first;
    struct token_text text;
    struct journal_item item;
    uint32_t have = 0;
    int result = forget_first(ingest, in->stream_id, &first);

    while (!result && have < count && from + have < first)
        out[have++] = GAP_TOKEN;
    from += have;
    if (!result)
        result = replay_find(ingest, in->stream_id, in->working.items, from, &item, &ordinal);
    if (result)
        return result;
    token = item.token_from;
    result = replay_text_before(ingest, in->stream_id, ordinal, item.held_before, &text);
    for (; !result && have < count && ordinal < in->working.items; ordinal++) {
        int formed;

        result = journal_item_get(ingest->journal, in->stream_id, ordinal, &item);
        formed = result ? result : forget_form(ingest, &text, &item);
        if (formed < 0)
            return formed;
        for (int i = 0; i < formed && have < count; i++, token++)
            if (token >= from)
                out[have++] = ingest->scratch[i];
        token = item.token_from + (uint64_t)formed;
    }
    return result ? result : have == count ? 0 : -EBADMSG;
}

/* The next chunk start that cannot have been computed. */
static uint64_t next_chunk(const struct ingest *ingest, const struct ingest_slot *in)
{
    return (in->working.tokens / ingest->chunk_tokens + 1) * ingest->chunk_tokens;
}

/* NULL, or why it cannot be pinned. */
static const char *refusal(const struct ingest *ingest, const struct slot *slot, uint64_t from,
                           uint64_t to, uint32_t before)
{
    const struct slot_pins *pins = &slot->pins;
    uint32_t held = 0;
    uint64_t tokens = 0;

    for (uint32_t i = 0; i < atomic_load(&pins->count); i++) {
        const struct slot_pin *pin = &pins->pin[i];

        if (atomic_load(&pin->until) != UINT64_MAX)
            continue;
        held++;
        tokens += pin->to - pin->from;
        if (pin->from < to && pin->to > from)
            return "some of it is pinned already: silt unpin it first";
    }
    if (from >= to || to > slot->ingest.working.tokens)
        return "that range is not in the stream: silt stat says how many tokens it holds";
    if (to - from + tokens > ingest->pin_tokens_max || held == STREAM_PINS_MAX)
        return "there is no room for it: silt pins says how many tokens a stream may pin (siltd's "
               "--pin-tokens-max), in 16 ranges at most";
    if (atomic_load(&pins->count) == SLOT_PINS_MAX ||
        to - from + before > SLOT_PIN_TOKENS_MAX - pins->used)
        return "this stream has been pinned too often: 64 ranges in its life";
    return NULL;
}

static void pin(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                struct ingest_result *result)
{
    struct ingest_slot *in = &slot->ingest;
    uint32_t sinks = ingest->sink_tokens;
    struct journal_pin new = {.from = request->from, .to = request->to, .until = UINT64_MAX};
    int32_t tokens[PIN_TOKENS_LIMIT + STREAM_SINK_TOKENS_MAX];
    uint64_t first, left = ((request->to - 1) / ingest->chunk_tokens + 2) * ingest->chunk_tokens;
    const char *why;
    int error;

    new.before = (uint32_t)(new.from < sinks ? new.from : sinks);
    why = refusal(ingest, slot, new.from, new.to, new.before);
    if (why) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__NO_SPACE, why);
        return;
    }
    error = forget_first(ingest, in->stream_id, &first);
    if (error) {
        ingest_failed(ingest, error);
        return;
    }
    if (new.from < first) {
        ingest_refuse(result, SILT__V1__ERROR__CODE__INVALID,
                      "the text there was trimmed away to stay below --disk: silt stat says from "
                      "which token on there is some");
        return;
    }
    new.at = next_chunk(ingest, in) > left ? next_chunk(ingest, in) : left;
    if (!ingest_begin(ingest))
        return;
    error = read_tokens(ingest, in, 0, new.before, tokens);
    if (!error)
        error =
            read_tokens(ingest, in, new.from, (uint32_t)(new.to - new.from), tokens + new.before);
    if (error == -EMSGSIZE) {
        ingest_refuse_long(result);
        return;
    }
    if (!error)
        error = journal_pin_add(ingest->journal, in->stream_id, &new, tokens);
    if (error)
        ingest_failed(ingest, error);
    slot->ingest.pinning = true;
}

/* Whatever of the range is pinned goes whole. */
static void unpin(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                  struct ingest_result *result)
{
    struct ingest_slot *in = &slot->ingest;
    uint64_t until = next_chunk(ingest, in);
    uint32_t ended = 0;

    for (uint32_t i = 0; i < atomic_load(&slot->pins.count); i++) {
        struct slot_pin *pin = &slot->pins.pin[i];

        if (atomic_load(&pin->until) != UINT64_MAX || pin->from >= request->to ||
            pin->to <= request->from)
            continue;
        if (!ended++ && !ingest_begin(ingest))
            return;
        int error = journal_pin_end(ingest->journal, in->stream_id, pin->from, pin->to, until);
        if (error) {
            ingest_failed(ingest, error);
            return;
        }
        slot->ingest.pinning = true;
    }
    if (!ended)
        ingest_refuse(result, SILT__V1__ERROR__CODE__NOT_FOUND,
                      "nothing of that range is pinned: silt pins lists what is");
}

void ingest_pin(struct ingest *ingest, struct slot *slot, const struct ingest_request *request,
                struct ingest_result *result)
{
    if (!slot->ingest.open || slot->ingest.pinning)
        ingest_refuse(result, SILT__V1__ERROR__CODE__BUSY,
                      "the stream's pins are changing: send this again in a moment");
    else if (request->verb == SILT__V1__PINS__VERB__LIST)
        return;
    else if (!ingest->pin_tokens_max)
        ingest_refuse(result, SILT__V1__ERROR__CODE__NO_SPACE,
                      "this siltd keeps no room for pins: start it with --pin-tokens-max N "
                      "(without an adapter there are none)");
    else if (request->verb == SILT__V1__PINS__VERB__PIN)
        pin(ingest, slot, request, result);
    else
        unpin(ingest, slot, request, result);
}

/* ---- the compute thread ---- */

static struct stream_pin view(const struct slot_pins *pins, const struct slot_pin *pin)
{
    return (struct stream_pin){.from = pin->from,
                               .to = pin->to,
                               .tokens = pins->tokens + pin->first,
                               .before = pin->before};
}

/* By when and where they begin: the same however they came here. */
static void sort(struct stream_pin *list, uint64_t *at, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i;
             j && (at[j] < at[j - 1] || (at[j] == at[j - 1] && list[j].from < list[j - 1].from));
             j--) {
            struct stream_pin pin = list[j];
            uint64_t begin = at[j];

            list[j] = list[j - 1];
            at[j] = at[j - 1];
            list[j - 1] = pin;
            at[j - 1] = begin;
        }
}

int pins_apply(struct slot *slot, uint64_t token)
{
    uint64_t at[STREAM_PINS_MAX];
    struct stream_pin list[STREAM_PINS_MAX];
    uint32_t count = 0, all = atomic_load(&slot->pins.count);

    for (uint32_t i = 0; i < all && count < STREAM_PINS_MAX; i++) {
        const struct slot_pin *pin = &slot->pins.pin[i];

        if (pin->at <= token && token < atomic_load(&pin->until))
            list[count] = view(&slot->pins, pin), at[count++] = pin->at;
    }
    sort(list, at, count);
    return stream_pins(slot->stream, list, count);
}

int pins_apply_fork(const struct slot *slot, struct fork *fork, uint32_t chunk_tokens)
{
    uint64_t token = fork_position(fork), chunk = token / chunk_tokens;
    uint64_t at[STREAM_PINS_MAX];
    struct stream_pin list[STREAM_PINS_MAX];
    uint32_t count = 0, all = atomic_load(&slot->pins.count);

    for (uint32_t i = 0; i < all && count < STREAM_PINS_MAX; i++) {
        const struct slot_pin *pin = &slot->pins.pin[i];
        uint64_t until = atomic_load(&pin->until);
        bool now = until == UINT64_MAX && (pin->to - 1) / chunk_tokens + 2 <= chunk;

        if (atomic_load(&slot->past))
            now = pin->at <= token && token < until;
        if (now)
            list[count] = view(&slot->pins, pin), at[count++] = pin->at;
    }
    sort(list, at, count);
    return fork_pins(fork, list, count);
}
