/*
 * Byte-level BPE (tokenizer.ggml.model = gpt2): text to tokens and back, and the turns of a chat.
 *
 * Text becomes pre-tokens (pretoken.c), a pre-token becomes tokens by merging the adjacent pair of
 * lowest rank until none is left. Most pre-tokens are one token, so they are first looked up whole;
 * which vocabulary entries may be taken so was worked out at open (vocab.c). That table is part of
 * the read-only tokenizer: there is no cache to share between threads.
 */
#include "stream/token.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stream/vocab.h"

/* ---- merging ---- */

size_t merge_bytes(const struct tokenizer *t, const uint8_t *bytes, size_t count, int32_t *out)
{
    uint32_t rank[PRETOKEN_BYTES_MAX + 1]; /* of the pair (i, i + 1) */
    int32_t into[PRETOKEN_BYTES_MAX + 1];
    size_t left = count;
    assert(count <= PRETOKEN_BYTES_MAX);
    for (size_t i = 0; i < count; i++)
        out[i] = t->byte_id[bytes[i]];
    for (size_t i = 0; i + 1 < count; i++) {
        const struct merge *merge = merge_find(t, out[i], out[i + 1]);
        rank[i] = merge ? merge->rank : UINT32_MAX;
        into[i] = merge ? merge->id : TOKEN_NONE;
    }
    while (left > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < left; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == UINT32_MAX)
            break;
        out[best] = into[best];
        size_t tail = left - best - 2;
        memmove(out + best + 1, out + best + 2, tail * sizeof *out);
        memmove(rank + best, rank + best + 1, tail * sizeof *rank);
        memmove(into + best, into + best + 1, tail * sizeof *into);
        left--;
        for (size_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < left; i++) {
            const struct merge *merge = merge_find(t, out[i], out[i + 1]);
            rank[i] = merge ? merge->rank : UINT32_MAX;
            into[i] = merge ? merge->id : TOKEN_NONE;
        }
    }
    return left;
}

static size_t pretoken_tokens(const struct tokenizer *t, const uint8_t *bytes, size_t count,
                              int32_t *out)
{
    int32_t id = count == 1 ? t->byte_id[bytes[0]] : vocab_find(t, bytes, count);
    if (id != TOKEN_NONE && (count == 1 || (t->flags[id] & TOKEN_WHOLE))) {
        *out = id;
        return 1;
    }
    return merge_bytes(t, bytes, count, out);
}

/* ---- text ---- */

size_t token_count_max(const struct token_text *text, size_t bytes)
{
    return text->held_bytes + bytes; /* no token is shorter than a byte */
}

/* Tokens of all finished pre-tokens of bytes; *used: the bytes they take. */
static size_t feed_whole(const struct tokenizer *t, const uint8_t *bytes, size_t count, size_t stop,
                         bool final, int32_t *out, size_t *used)
{
    size_t at = 0, tokens = 0;
    while (at < stop) {
        size_t length = pretoken_next(t->rule, bytes + at, count - at, final);
        if (!length)
            break;
        tokens += pretoken_tokens(t, bytes + at, length, out + tokens);
        at += length;
    }
    *used = at;
    return tokens;
}

size_t token_feed(const struct tokenizer *tokenizer, struct token_text *text, const uint8_t *bytes,
                  size_t bytes_count, int32_t *out)
{
    size_t tokens = 0, at = 0, used;
    if (!bytes_count)
        return 0;
    /* What waits is looked at together with as much new text as fits behind it, until nothing that
     * was held is left; from there on the new text is read in place. */
    while (text->held_bytes && at < bytes_count) {
        size_t held = text->held_bytes, more = sizeof text->held - held;
        more = more < bytes_count - at ? more : bytes_count - at;
        memcpy(text->held + held, bytes + at, more);
        tokens += feed_whole(tokenizer, text->held, held + more, held, false, out + tokens, &used);
        if (used >= held) {
            at += used - held;
            text->held_bytes = 0;
        } else {
            at += more;
            text->held_bytes = (uint32_t)(held + more - used);
            memmove(text->held, text->held + used, text->held_bytes);
        }
    }
    if (text->held_bytes)
        return tokens;
    tokens += feed_whole(tokenizer, bytes + at, bytes_count - at, bytes_count - at, false,
                         out + tokens, &used);
    at += used;
    assert(bytes_count - at <= sizeof text->held);
    text->held_bytes = (uint32_t)(bytes_count - at);
    memcpy(text->held, bytes + at, text->held_bytes);
    return tokens;
}

size_t token_flush(const struct tokenizer *tokenizer, struct token_text *text, int32_t *out)
{
    size_t used;
    size_t tokens =
        feed_whole(tokenizer, text->held, text->held_bytes, text->held_bytes, true, out, &used);
    text->held_bytes = 0;
    return tokens;
}

const uint8_t *token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *bytes_count)
{
    *bytes_count = 0;
    if (id < 0 || (uint32_t)id >= tokenizer->vocab_count)
        return tokenizer->text;
    *bytes_count = tokenizer->offset[id + 1] - tokenizer->offset[id];
    return tokenizer->text + tokenizer->offset[id];
}

bool token_is_special(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (uint32_t)id < tokenizer->vocab_count &&
           (tokenizer->flags[id] & TOKEN_SPECIAL);
}

bool token_is_end(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (uint32_t)id < tokenizer->vocab_count && (tokenizer->flags[id] & TOKEN_END);
}

/* ---- turns ---- */

/* A turn on its way into the caller's room; full once something did not fit. */
struct turn {
    const struct tokenizer *tokenizer;
    struct token_text text;
    int32_t *out;
    size_t count, out_max;
    bool full;
};

static void turn_put(struct turn *turn, const int32_t *tokens, size_t count)
{
    if (count > turn->out_max - turn->count)
        turn->full = true;
    if (turn->full)
        return;
    memcpy(turn->out + turn->count, tokens, count * sizeof *tokens);
    turn->count += count;
}

static void turn_text(struct turn *turn, const uint8_t *bytes, size_t bytes_count)
{
    enum { SLICE = 512 };
    int32_t tokens[sizeof turn->text.held + SLICE];
    for (size_t at = 0; at < bytes_count && !turn->full; at += SLICE) {
        size_t slice = bytes_count - at < SLICE ? bytes_count - at : SLICE;
        turn_put(turn, tokens, token_feed(turn->tokenizer, &turn->text, bytes + at, slice, tokens));
    }
}

static void turn_special(struct turn *turn, int32_t id)
{
    int32_t tokens[sizeof turn->text.held];
    turn_put(turn, tokens, token_flush(turn->tokenizer, &turn->text, tokens));
    if (id != TOKEN_NONE)
        turn_put(turn, &id, 1);
}

/* The role's name as the model knows it; NULL: no role. */
static const char *role_name(const struct tokenizer *t, const char *role)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role, roles[i]) == 0)
            return i == 3 && !t->tool_role ? "user" : roles[i];
    return NULL;
}

static int turn_begin(struct turn *turn, const struct tokenizer *t, const char *role, int32_t *out,
                      size_t out_max)
{
    const char *name = role_name(t, role);
    *turn = (struct turn){.tokenizer = t, .out = out, .out_max = out_max};
    if (!name)
        return -EINVAL;
    if (t->turn_start != TOKEN_NONE)
        turn_special(turn, t->turn_start);
    turn_text(turn, (const uint8_t *)name, strlen(name));
    turn_text(turn, (const uint8_t *)(t->turn_start != TOKEN_NONE ? "\n" : ": "),
              t->turn_start != TOKEN_NONE ? 1 : 2);
    return 0;
}

static int turn_finish(struct turn *turn)
{
    turn_special(turn, TOKEN_NONE);
    return turn->full || turn->count > INT32_MAX ? -ENOSPC : (int)turn->count;
}

int token_turn(const struct tokenizer *tokenizer, const char *role, const uint8_t *bytes,
               size_t bytes_count, int32_t *out, size_t out_max)
{
    struct turn turn;
    int result = turn_begin(&turn, tokenizer, role, out, out_max);
    if (result)
        return result;
    turn_text(&turn, bytes, bytes_count);
    if (tokenizer->turn_end != TOKEN_NONE)
        turn_special(&turn, tokenizer->turn_end);
    turn_text(&turn, (const uint8_t *)"\n", 1);
    return turn_finish(&turn);
}

int token_turn_open(const struct tokenizer *tokenizer, const char *role, int32_t *out,
                    size_t out_max)
{
    struct turn turn;
    int result = turn_begin(&turn, tokenizer, role, out, out_max);
    return result ? result : turn_finish(&turn);
}
