/* Everything a client says is checked here, once; what comes out can be used as it is. */
#include "daemon/wire.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/keys.h"

enum { BUMP_ALIGN = 16 };

static const char *const role_names[ROLE_COUNT] = {"system", "user", "assistant", "tool"};

const char *wire_role_name(uint32_t role)
{
    return role < ROLE_COUNT ? role_names[role] : "user";
}

static void *bump_alloc(void *data, size_t bytes)
{
    struct bump *bump = data;
    size_t from = (bump->used + BUMP_ALIGN - 1) / BUMP_ALIGN * BUMP_ALIGN;

    if (from > bump->capacity || bytes > bump->capacity - from) {
        bump->full = true;
        return NULL;
    }
    bump->used = from + bytes;
    return bump->bytes + from;
}

static void bump_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

static int fail(struct wire_fault *fault, Silt__V1__Error__Code code, const char *message)
{
    fault->code = code;
    snprintf(fault->message, sizeof fault->message, "%s", message);
    return -EINVAL;
}

static int invalid(struct wire_fault *fault, const char *message)
{
    return fail(fault, SILT__V1__ERROR__CODE__INVALID, message);
}

bool wire_utf8_valid(const uint8_t *text, size_t bytes)
{
    size_t i = 0;

    while (i < bytes) {
        uint32_t c = text[i], least;
        size_t more;

        if (c < 0x80) {
            i++;
            continue;
        }
        if (c >= 0xc2 && c < 0xe0) {
            more = 1, least = 0x80, c &= 0x1f;
        } else if (c >= 0xe0 && c < 0xf0) {
            more = 2, least = 0x800, c &= 0x0f;
        } else if (c >= 0xf0 && c < 0xf5) {
            more = 3, least = 0x10000, c &= 0x07;
        } else {
            return false;
        }
        if (bytes - i <= more)
            return false;
        for (size_t j = 1; j <= more; j++) {
            if ((text[i + j] & 0xc0) != 0x80)
                return false;
            c = c << 6 | (text[i + j] & 0x3f);
        }
        if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
            return false;
        i += more + 1;
    }
    return true;
}

bool wire_name_valid(const char *name, size_t bytes_max)
{
    size_t n = strnlen(name, bytes_max + 1);

    if (n == 0 || n > bytes_max || name[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');

        if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-')
            return false;
    }
    return true;
}

static int take_stream(struct wire_request *out, const char *name, bool may_be_empty,
                       struct wire_fault *fault)
{
    out->stream = name;
    if (may_be_empty && !name[0])
        return 0;
    if (!wire_name_valid(name, NAME_BYTES_MAX))
        return invalid(fault, "a stream's name is 1 to 128 bytes of A-Z a-z 0-9 . _ - and does not "
                              "start with a dot");
    return 0;
}

static int take_producer(struct wire_request *out, const char *name, struct wire_fault *fault)
{
    out->producer = name;
    if (!wire_name_valid(name, PRODUCER_BYTES_MAX))
        return invalid(fault, "a producer's id is 1 to 64 bytes of A-Z a-z 0-9 . _ - and does not "
                              "start with a dot");
    return 0;
}

static int take_tokens(const Silt__V1__Tokens *tokens, uint32_t vocab_count, struct wire_item *out,
                       struct wire_fault *fault)
{
    for (size_t i = 0; i < tokens->n_ids; i++) {
        if (tokens->ids[i] < vocab_count)
            continue;
        snprintf(fault->message, sizeof fault->message,
                 "token %u is not of the model's vocabulary of %u", tokens->ids[i], vocab_count);
        fault->code = SILT__V1__ERROR__CODE__INVALID;
        return -EINVAL;
    }
    out->kind = ITEM_TOKENS;
    out->bytes = (const uint8_t *)tokens->ids;
    out->bytes_count = (uint32_t)(tokens->n_ids * sizeof *tokens->ids);
    return 0;
}

static int take_turn(const Silt__V1__Turn *turn, struct wire_item *out, struct wire_fault *fault)
{
    uint32_t role = 0;

    while (role < ROLE_COUNT && strcmp(turn->role, role_names[role]) != 0)
        role++;
    if (role == ROLE_COUNT)
        return invalid(fault, "a turn's role is system, user, assistant or tool");
    out->kind = ITEM_TURN;
    out->detail = role;
    out->bytes = turn->text.data;
    out->bytes_count = (uint32_t)turn->text.len;
    return 0;
}

static int take_item(const Silt__V1__Item *item, uint32_t vocab_count, struct wire_item *out,
                     struct wire_fault *fault)
{
    memset(out, 0, sizeof *out);
    switch (item->body_case) {
    case SILT__V1__ITEM__BODY_TEXT:
        out->kind = ITEM_TEXT;
        out->bytes = item->text.data;
        out->bytes_count = (uint32_t)item->text.len;
        return 0;
    case SILT__V1__ITEM__BODY_TOKENS:
        return take_tokens(item->tokens, vocab_count, out, fault);
    case SILT__V1__ITEM__BODY_TURN:
        return take_turn(item->turn, out, fault);
    case SILT__V1__ITEM__BODY_MARK:
        if ((unsigned)item->mark->kind > MARK_PRODUCER_CHANGE)
            return invalid(fault, "a mark is FLUSH, END_OF_INPUT or PRODUCER_CHANGE");
        out->kind = ITEM_MARK;
        out->detail = (uint32_t)item->mark->kind;
        return 0;
    default:
        return invalid(fault, "an item is text, tokens, a turn or a mark");
    }
}

static int take_feed(struct bump *bump, const Silt__V1__Feed *feed, uint32_t vocab_count,
                     struct wire_request *out, struct wire_fault *fault)
{
    struct wire_item *items;
    int result = take_stream(out, feed->stream, false, fault);

    if (!result)
        result = take_producer(out, feed->producer, fault);
    if (result)
        return result;
    if (feed->sequence == 0)
        return invalid(fault, "sequences of a producer run 1, 2, 3, ...");
    if (feed->n_items == 0 || feed->n_items > ITEMS_MAX)
        return invalid(fault, "a Feed has 1 to 4096 items");
    items = bump_alloc(bump, feed->n_items * sizeof *items);
    if (!items)
        return fail(fault, SILT__V1__ERROR__CODE__TOO_LARGE, "too many items: send fewer a frame");
    for (size_t i = 0; !result && i < feed->n_items; i++)
        result = take_item(feed->items[i], vocab_count, &items[i], fault);
    out->sequence = feed->sequence;
    out->time_us = feed->time_us;
    out->items = items;
    out->item_count = (uint32_t)feed->n_items;
    return result;
}

static bool sampling_valid(const Silt__V1__Sampling *sampling)
{
    return sampling->temperature >= 0 && sampling->temperature <= 10 && sampling->top_p >= 0 &&
           sampling->top_p <= 1 && sampling->min_p >= 0 && sampling->min_p <= 1 &&
           sampling->repeat_penalty >= 0 && sampling->repeat_penalty <= 10;
}

static int take_ask(const Silt__V1__Ask *ask, struct wire_request *out, struct wire_fault *fault)
{
    size_t question = strlen(ask->question), system = strlen(ask->system);
    int result = take_stream(out, ask->stream, false, fault);

    out->ask = ask;
    if (result)
        return result;
    if (question == 0 || question > QUESTION_BYTES_MAX)
        return invalid(fault, "a question is 1 to 16384 bytes");
    if (system > SYSTEM_BYTES_MAX)
        return invalid(fault, "a system text is at most 4096 bytes");
    if (!wire_utf8_valid((const uint8_t *)ask->question, question) ||
        !wire_utf8_valid((const uint8_t *)ask->system, system))
        return invalid(fault, "question and system text must be UTF-8");
    if ((unsigned)ask->recall > SILT__V1__ASK__RECALL__TEXT)
        return invalid(fault, "recall is AUTO, NONE, SEGMENTS or TEXT");
    if (ask->n_stop > STOP_STRINGS_MAX)
        return invalid(fault, "at most 8 stop strings");
    for (size_t i = 0; i < ask->n_stop; i++)
        if (!ask->stop[i][0] || strlen(ask->stop[i]) > STOP_BYTES_MAX)
            return invalid(fault, "a stop string is 1 to 64 bytes");
    if (ask->sampling && !sampling_valid(ask->sampling))
        return invalid(fault, "sampling: temperature and repeat_penalty are 0 to 10, top_p and "
                              "min_p 0 to 1");
    return 0;
}

static int take_keys(const Silt__V1__Keys *keys, struct wire_request *out, struct wire_fault *fault)
{
    bool allow = keys->verb == SILT__V1__KEYS__VERB__ALLOW;
    int result = take_stream(out, keys->stream, true, fault);

    out->keys = keys;
    if (result || keys->verb == SILT__V1__KEYS__VERB__LIST)
        return result;
    if (!allow && keys->verb != SILT__V1__KEYS__VERB__DENY)
        return invalid(fault, "keys are listed, allowed or denied");
    if (!keys_text_valid(keys->key))
        return invalid(fault, "a public key is 40 characters as `silt key new` prints them");
    if (allow && !wire_name_valid(keys->name, KEY_NAME_BYTES_MAX))
        return invalid(fault, "a key's name is 1 to 64 bytes of A-Z a-z 0-9 . _ - and does not "
                              "start with a dot");
    if (keys->all == (keys->stream[0] != '\0'))
        return invalid(fault, "name either one stream or all of them");
    return 0;
}

static int take_open(const Silt__V1__Open *open, struct wire_request *out, struct wire_fault *fault)
{
    out->dmc_ratio = open->dmc_ratio;
    out->ring_segments = open->ring_segments;
    out->dmc_auto = open->dmc_auto;
    return take_stream(out, open->stream, false, fault);
}

static int take_body(struct bump *bump, const Silt__V1__Request *request, uint32_t vocab_count,
                     struct wire_request *out, struct wire_fault *fault)
{
    int result;

    switch (request->body_case) {
    case SILT__V1__REQUEST__BODY_OPEN:
        out->kind = REQUEST_OPEN;
        return take_open(request->open, out, fault);
    case SILT__V1__REQUEST__BODY_ATTACH:
        out->kind = REQUEST_ATTACH;
        result = take_stream(out, request->attach->stream, false, fault);
        return result ? result : take_producer(out, request->attach->producer, fault);
    case SILT__V1__REQUEST__BODY_FEED:
        out->kind = REQUEST_FEED;
        return take_feed(bump, request->feed, vocab_count, out, fault);
    case SILT__V1__REQUEST__BODY_ASK:
        out->kind = REQUEST_ASK;
        return take_ask(request->ask, out, fault);
    case SILT__V1__REQUEST__BODY_CANCEL:
        out->kind = REQUEST_CANCEL;
        out->ask_id = request->cancel->ask_id;
        return 0;
    case SILT__V1__REQUEST__BODY_STAT:
        out->kind = REQUEST_STAT;
        return take_stream(out, request->stat->stream, true, fault);
    case SILT__V1__REQUEST__BODY_LIST:
        out->kind = REQUEST_LIST;
        return take_stream(out, request->list->after, true, fault);
    case SILT__V1__REQUEST__BODY_REMOVE:
        out->kind = REQUEST_REMOVE;
        return take_stream(out, request->remove->stream, false, fault);
    case SILT__V1__REQUEST__BODY_FORK:
        out->kind = REQUEST_FORK;
        result = take_stream(out, request->fork->branch, false, fault);
        out->branch = out->stream;
        return result ? result : take_stream(out, request->fork->stream, false, fault);
    case SILT__V1__REQUEST__BODY_PINS:
        out->kind = REQUEST_PINS;
        out->verb = request->pins->verb;
        out->from = request->pins->from;
        out->to = request->pins->to;
        if ((unsigned)out->verb > SILT__V1__PINS__VERB__UNPIN)
            return invalid(fault, "pins are listed, pinned or unpinned");
        if (out->verb && out->from >= out->to)
            return invalid(fault, "a range is tokens [from, to), from before to");
        return take_stream(out, request->pins->stream, false, fault);
    case SILT__V1__REQUEST__BODY_KEYS:
        out->kind = REQUEST_KEYS;
        return take_keys(request->keys, out, fault);
    case SILT__V1__REQUEST__BODY_FORGET:
        out->kind = REQUEST_FORGET;
        out->from = request->forget->from;
        out->to = request->forget->to;
        if (out->from >= out->to)
            return invalid(fault, "a range of tokens is half-open: --from is less than --to");
        return take_stream(out, request->forget->stream, false, fault);
    default:
        return fail(fault, SILT__V1__ERROR__CODE__UNSUPPORTED,
                    "this siltd (" SILT_VERSION ") does not know that request");
    }
}

/* The client's number and what it asks for become one: the number under another request is not the
 * same change, whatever client was careless with it. */
static void take_change(uint64_t number, struct wire_request *out)
{
    const uint64_t parts[] = {(uint64_t)out->kind, (uint64_t)out->verb, out->from, out->to};
    uint64_t sum = number;

    switch (out->kind) {
    case REQUEST_PINS:
        if (out->verb == SILT__V1__PINS__VERB__LIST)
            return;
        break;
    case REQUEST_OPEN:
    case REQUEST_REMOVE:
    case REQUEST_FORGET:
    case REQUEST_FORK:
        break;
    default:
        return;
    }
    if (!number)
        return;
    sum = XXH3_64bits_withSeed(parts, sizeof parts, sum);
    sum = XXH3_64bits_withSeed(out->stream, strlen(out->stream), sum);
    if (out->branch)
        sum = XXH3_64bits_withSeed(out->branch, strlen(out->branch), sum);
    out->change = sum ? sum : 1;
}

int wire_parse(struct bump *bump, const uint8_t *frame, size_t frame_bytes, uint32_t vocab_count,
               struct wire_request *out, struct wire_fault *fault)
{
    ProtobufCAllocator allocator = {bump_alloc, bump_free, bump};
    Silt__V1__Request *request;
    int result;

    memset(out, 0, sizeof *out);
    memset(fault, 0, sizeof *fault);
    bump->used = 0;
    bump->full = false;
    if (frame_bytes > FRAME_BYTES_MAX)
        return fail(fault, SILT__V1__ERROR__CODE__TOO_LARGE,
                    "a frame is at most 1 MiB: send the text in smaller pieces");
    request = silt__v1__request__unpack(&allocator, frame_bytes, frame);
    if (!request && bump->full)
        return fail(fault, SILT__V1__ERROR__CODE__TOO_LARGE, "too many items: send fewer a frame");
    if (!request)
        return invalid(fault, "not a silt request: the frame does not parse as silt.v1.Request "
                              "(proto/silt.proto)");
    out->id = fault->id = request->id;
    result = take_body(bump, request, vocab_count, out, fault);
    if (!result)
        take_change(request->change, out);
    return result;
}

int wire_pack(const Silt__V1__Reply *reply, uint8_t *out, size_t out_bytes)
{
    size_t bytes = silt__v1__reply__get_packed_size(reply);

    if (bytes > out_bytes)
        return -EMSGSIZE;
    return (int)silt__v1__reply__pack(reply, out);
}
