/*
 * A range of tokens rarely begins and ends where items do, and a word may wait over many of them.
 * So the items at both ends become token ids, which need no tokenizer to come out the same, the
 * items between become empty, and the bytes that waited at either end are moved out of the text
 * they belonged to. Every item keeps its ordinal: places in the journal stay what they were.
 */
#include "daemon/forget.h"

#include <errno.h>
#include <string.h>

#include "daemon/journal_pin.h"
#include "daemon/log.h"
#include "daemon/replay.h"
#include "daemon/search.h"

enum { SLICE_BYTES = 4096 };

struct cut {
    struct ingest *ingest;
    struct journal_stream *stream;
    uint64_t from, to;     /* tokens */
    uint64_t first, last;  /* items that form the first and the last of them */
    uint32_t head, tail;   /* tokens of these two that stay */
    struct token_text end; /* what waited behind the last */
    uint64_t end_token;    /* formed up to there, as it was */
    uint64_t place;        /* tokens before the first, as it is now */
    uint32_t held;         /* bytes that wait before it */
    uint64_t changed_from; /* the first token that may be another now */
};

int forget_form(struct ingest *ingest, struct token_text *text, const struct journal_item *item)
{
    const struct wire_item *i = &item->item;
    int32_t *out = ingest->scratch;
    uint32_t room = ingest->scratch_max, count = 0;

    for (uint32_t done = 0; i->kind == ITEM_TEXT && done < i->bytes_count;) {
        uint32_t n = i->bytes_count - done;

        n = n < SLICE_BYTES ? n : SLICE_BYTES;
        if (token_count_max(text, n) > room - count)
            return -EMSGSIZE;
        count += (uint32_t)token_feed(ingest->tokenizer, text, i->bytes + done, n, out + count);
        done += n;
    }
    if (i->kind == ITEM_TEXT)
        return (int)count;
    if (token_count_max(text, 0) > room)
        return -EMSGSIZE;
    count = (uint32_t)token_flush(ingest->tokenizer, text, out);
    if (i->kind == ITEM_TURN) {
        int n = token_turn(ingest->tokenizer, wire_role_name(i->detail), i->bytes, i->bytes_count,
                           out + count, room - count);

        return n < 0 ? -EMSGSIZE : (int)count + n;
    }
    if (i->kind == ITEM_TOKENS) {
        if (i->bytes_count / sizeof *out > room - count)
            return -EMSGSIZE;
        if (i->bytes_count)
            memcpy(out + count, i->bytes, i->bytes_count);
        count += i->bytes_count / (uint32_t)sizeof *out;
    }
    return (int)count;
}

/* The tokens an item forms, into scratch; what waits behind it is in `text` then. */
static int form_at(struct cut *c, uint64_t ordinal, struct journal_item *item,
                   struct token_text *text)
{
    struct journal *journal = c->ingest->journal;
    uint64_t id = c->stream->id;
    int result = journal_item_get(journal, id, ordinal, item);

    if (!result)
        result = replay_text_before(c->ingest, id, ordinal, item->held_before, text);
    if (!result)
        result = journal_item_get(journal, id, ordinal, item); /* its bytes have moved */
    return result ? result : forget_form(c->ingest, text, item);
}

static int put_tokens(struct cut *c, uint64_t ordinal, uint32_t count)
{
    return journal_item_put(c->ingest->journal, c->stream->id, ordinal, ITEM_TOKENS,
                            c->ingest->scratch, count * sizeof *c->ingest->scratch);
}

/* The item behind the range: what waited before it is part of it now; or tokens before it where it
 * is no text, then *flushed of them behind the tail in scratch. */
static int join_next(struct cut *c, uint32_t tail_at, uint32_t *flushed)
{
    struct journal *journal = c->ingest->journal;
    uint64_t id = c->stream->id, ordinal = c->last + 1;
    bool is_last = ordinal == c->stream->items;
    struct journal_item item;
    int result;

    *flushed = 0;
    if (!c->end.held_bytes)
        return 0;
    result = journal_item_get(journal, id, is_last ? c->last : ordinal, &item);
    if (result)
        return result;
    if (!is_last && item.item.kind != ITEM_TEXT) {
        *flushed = (uint32_t)token_flush(c->ingest->tokenizer, &c->end,
                                         c->ingest->scratch + tail_at + c->tail);
        return 0;
    }
    c->stream->bytes_text += c->end.held_bytes;
    if (!is_last)
        return journal_item_prepend(journal, id, ordinal, c->end.held, c->end.held_bytes);
    item.item = (struct wire_item){ITEM_TEXT, 0, c->end.held, c->end.held_bytes};
    c->stream->items++;
    return journal_item_append(journal, id, ordinal, &item);
}

/* The text that waited before the first item leaves the items before it, down to the one it began
 * in; those become empty. */
static int unhold(struct cut *c, uint32_t held)
{
    struct journal *journal = c->ingest->journal;
    uint64_t id = c->stream->id, ordinal = c->first, emptied;
    struct journal_item item;
    struct token_text text;
    int result, count;

    c->held = 0;
    if (!held)
        return 0;
    c->stream->bytes_text -= held;
    for (;;) {
        if (!ordinal)
            return -EBADMSG;
        result = journal_item_get(journal, id, --ordinal, &item);
        if (result || item.item.kind != ITEM_TEXT)
            return result ? result : -EBADMSG;
        if (item.item.bytes_count >= held)
            break;
        held -= item.item.bytes_count;
    }
    emptied = ordinal + 1;
    result = journal_item_cut(journal, id, ordinal, item.item.bytes_count - held);
    if (!result)
        result = journal_item_get(journal, id, ordinal, &item);
    if (!result)
        result = replay_text_before(c->ingest, id, ordinal, item.held_before, &text);
    if (!result)
        result = journal_item_get(journal, id, ordinal, &item);
    if (result)
        return result;
    c->place = item.token_from;
    count = forget_form(c->ingest, &text, &item);
    if (count < 0)
        return count;
    c->place += (uint64_t)count;
    c->held = text.held_bytes;
    count = (int)token_flush(c->ingest->tokenizer, &text, c->ingest->scratch);
    /* The tokenizer sees less text behind it than it did: nearly always the same tokens. */
    if (c->place + (uint64_t)count != c->from - c->head)
        c->changed_from = item.token_from;
    c->from = c->place + (uint64_t)count + c->head; /* where the range was, as it is now */
    return journal_items_clear(journal, id, emptied, c->first, c->place, c->held);
}

/* The first item keeps only what stands before the range. */
static int put_head(struct cut *c)
{
    struct journal_item item;
    struct token_text text;
    int count = form_at(c, c->first, &item, &text);

    return count < 0 ? count : put_tokens(c, c->first, c->head);
}

/* Both ends of the range as tokens, what is between them empty, what follows moved down. Scratch
 * holds the last item's tokens that stay: the tail, behind the head where it is the first too. */
static int rewrite(struct cut *c, uint32_t held_first)
{
    struct journal *journal = c->ingest->journal;
    uint64_t id = c->stream->id, next = c->last + 1, tokens, items = c->stream->items;
    bool several = c->first < c->last;
    uint32_t flushed, tail_at = several ? 0 : c->head;
    int result = join_next(c, tail_at, &flushed);

    if (!result)
        result = put_tokens(c, c->last, tail_at + c->tail + flushed);
    if (!result && several)
        result = put_head(c);
    if (!result)
        result = unhold(c, held_first);
    if (!result) /* nothing is refused behind this: what is kept of before is no more */
        result = journal_keep(journal);
    if (!result)
        result = journal_items_clear(journal, id, c->first + 1, c->last, c->from, 0);
    if (!result && several)
        result = journal_item_place(journal, id, c->last, c->from, 0);
    if (!result)
        result = journal_item_place(journal, id, c->first, c->place, c->held);
    if (result)
        return result;
    tokens = c->from + c->tail;
    c->stream->tokens -= c->end_token - tokens;
    if (next < items)
        result = journal_items_shift(journal, id, next, c->end_token - tokens);
    if (!result && next < c->stream->items && c->end.held_bytes + flushed)
        result = journal_item_place(journal, id, next, tokens + flushed, 0);
    return result;
}

/* The last item that loses tokens, and what of it stays. Where the range ends the stream, so does
 * what waits for more text: no position names it. */
static int find_end(struct cut *c)
{
    struct journal_stream *stream = c->stream;
    struct journal_item item;
    int32_t *scratch = c->ingest->scratch;
    int result, count;

    if (c->to == stream->tokens) {
        c->last = stream->items - 1;
        c->end_token = c->to;
        c->end.held_bytes = stream->text.held_bytes = 0;
        return 0;
    }
    result = replay_find(c->ingest, stream->id, stream->items, c->to - 1, &item, &c->last);
    if (result)
        return result;
    count = form_at(c, c->last, &item, &c->end);
    if (count < 0)
        return count;
    c->end_token = item.token_from + (uint32_t)count;
    c->tail = (uint32_t)(c->end_token - c->to);
    memmove(scratch + (c->first == c->last ? c->head : 0), scratch + (c->to - item.token_from),
            c->tail * sizeof *scratch);
    return 0;
}

static int forget_items(struct cut *c)
{
    struct journal *journal = c->ingest->journal;
    struct journal_item item;
    uint32_t held;
    int result = replay_find(c->ingest, c->stream->id, c->stream->items, c->from, &item, &c->first);

    if (result)
        return result;
    held = item.held_before;
    c->place = item.token_from;
    c->head = (uint32_t)(c->from - item.token_from);
    if (c->to == c->stream->tokens) { /* else find_end forms it with the tail */
        struct token_text text;

        result = form_at(c, c->first, &item, &text);
    }
    if (result >= 0)
        result = find_end(c);
    for (uint64_t i = c->first; !result && i <= c->last; i++) {
        result = journal_item_get(journal, c->stream->id, i, &item);
        if (!result && item.item.kind == ITEM_TEXT)
            c->stream->bytes_text -= item.item.bytes_count;
    }
    return result ? result : rewrite(c, held);
}

static int forget_after(struct ingest *ingest, const struct journal_stream *stream, uint64_t token)
{
    uint64_t chunk = token / ingest->chunk_tokens, whole = token;
    int result = 0;

    /* A checkpoint brings the segments of its ring again, so none may be kept that comes too late
     * for those that go although their chunks stay. */
    if (ingest->spill) {
        uint64_t first = spill_erase_first(ingest->spill, stream->id, chunk);
        uint64_t latest = (first + stream->ring_segments) * ingest->chunk_tokens;

        whole = latest < whole ? latest : whole;
    }
    if (ingest->keeper)
        result = keeper_cut(ingest->keeper, stream->id, whole);
    if (!result && ingest->spill)
        result = spill_erase(ingest->spill, stream->id, chunk);
    if (!result && ingest->search)
        result = search_forget(ingest->search, stream->id);
    return result;
}

int forget_first(struct ingest *ingest, uint64_t stream_id, uint64_t *token)
{
    struct journal_item item;
    int result = journal_item_get(ingest->journal, stream_id, 0, &item);

    *token = 0;
    if (!result && item.item.kind == ITEM_GAP && item.item.bytes_count == sizeof *token)
        memcpy(token, item.item.bytes, sizeof *token);
    return result == -ENOENT ? 0 : result;
}

/* That was trimmed away before, or it is as if. */
static bool is_trimmed(const struct journal_item *item, uint64_t first)
{
    return item->token_from < first || (item->token_from == first && item->item.kind == ITEM_TEXT &&
                                        !item->item.bytes_count && !item->held_before);
}

/* The first item that is not: those before are left as they are. */
static int find_untrimmed(struct ingest *ingest, const struct journal_stream *stream,
                          uint64_t first, uint64_t *ordinal)
{
    uint64_t low = 0, high = first ? stream->items : 0;
    struct journal_item item;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        int result = journal_item_get(ingest->journal, stream->id, middle, &item);

        if (result)
            return result;
        if (is_trimmed(&item, first))
            low = middle + 1;
        else
            high = middle;
    }
    *ordinal = low;
    return 0;
}

/* Items before the one with token `to` in it go; what waits before that one stays in the last of
 * them. */
static int trim_items(struct ingest *ingest, struct journal_stream *stream, uint64_t first,
                      uint64_t to)
{
    struct journal *journal = ingest->journal;
    struct journal_item item;
    struct token_text text = {0};
    uint64_t ordinal, tokens, from = 0;
    int result = find_untrimmed(ingest, stream, first, &from);

    if (!result)
        result = replay_find(ingest, stream->id, stream->items, to, &item, &ordinal);
    if (!result && (ordinal < 2 || item.token_from <= first))
        result = -ENODATA;
    tokens = item.token_from;
    if (!result)
        result = replay_text_before(ingest, stream->id, ordinal, item.held_before, &text);
    for (uint64_t i = from; !result && i < ordinal; i++) {
        result = journal_item_get(journal, stream->id, i, &item);
        if (!result && item.item.kind == ITEM_TEXT)
            stream->bytes_text -= item.item.bytes_count;
    }
    if (!result)
        result = journal_items_clear(journal, stream->id, ordinal - 1, ordinal, tokens, 0);
    if (!result)
        result = journal_items_drop(journal, stream->id, 1, ordinal - 1);
    if (!result && text.held_bytes)
        result = journal_item_put(journal, stream->id, ordinal - 1, ITEM_TEXT, text.held,
                                  text.held_bytes);
    stream->bytes_text += text.held_bytes;
    if (!result)
        result = journal_item_put(journal, stream->id, 0, ITEM_GAP, &tokens, sizeof tokens);
    return result ? result : journal_item_place(journal, stream->id, 0, 0, 0);
}

int forget_oldest(struct ingest *ingest, struct journal_stream *stream, uint64_t most,
                  uint64_t *first)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count;
    int result = forget_first(ingest, stream->id, first);

    if (result)
        return result;
    result = -ENODATA;
    if (journal_stream_shares(ingest->journal, stream->id))
        return result;
    count = ingest->keeper ? checkpoint_list(&ingest->keeper->at, stream->id, tokens) : 0;
    for (uint32_t i = 0; result == -ENODATA && i + 1 < count; i++)
        if (tokens[i] > *first && tokens[i] <= most)
            result = trim_items(ingest, stream, *first, tokens[i]);
    return result ? result : forget_first(ingest, stream->id, first);
}

void forget_trimmed(struct ingest *ingest, uint64_t stream_id, uint64_t first)
{
    int result =
        ingest->search ? search_trim(ingest->search, stream_id, first / ingest->chunk_tokens) : 0;

    if (ingest->keeper)
        keeper_trim(ingest->keeper, stream_id, first);
    if (result)
        say(SAY_WARN,
            "the index keeps the text of stream %llu that was trimmed away until more of it is: %s",
            (unsigned long long)stream_id, strerror(-result));
}

int forget_range(struct ingest *ingest, struct journal_stream *stream, uint64_t from, uint64_t to)
{
    struct cut c = {
        .ingest = ingest, .stream = stream, .from = from, .to = to, .changed_from = from};
    uint64_t first;
    int result = forget_first(ingest, stream->id, &first);

    if (!result && (from >= to || to > stream->tokens || from < first))
        result = -EINVAL;
    if (!result) /* branches keep what they have of it */
        result = journal_stream_part(ingest->journal, stream->id);
    /* Only of the ends: SQLite keeps in memory what pages were at a mark. */
    if (!result)
        result = journal_mark(ingest->journal);
    if (!result)
        result = forget_items(&c);
    if (result == -EMSGSIZE) {
        int back = journal_take_back(ingest->journal);

        return back ? back : result;
    }
    if (!result)
        result = journal_pin_forget(ingest->journal, stream->id, from, to, ingest->chunk_tokens,
                                    ingest->sink_tokens);
    return result ? result : forget_after(ingest, stream, c.changed_from);
}

void forget_for_room(struct ingest *ingest, uint64_t stream_id)
{
    uint64_t first;

    if (ingest->search)
        (void)search_forget(ingest->search, stream_id);
    if (forget_first(ingest, stream_id, &first) || first)
        return;
    if (ingest->keeper)
        (void)keeper_cut(ingest->keeper, stream_id, 0);
    if (ingest->spill)
        (void)spill_erase(ingest->spill, stream_id, 0);
}

void forget_derived(struct ingest *ingest, uint64_t stream_id)
{
    int checkpoints = ingest->keeper ? keeper_cut(ingest->keeper, stream_id, 0) : 0;
    int segments = ingest->spill ? spill_erase(ingest->spill, stream_id, 0) : 0;
    int index = ingest->search ? search_forget(ingest->search, stream_id) : 0;
    int result = checkpoints ? checkpoints : segments ? segments : index;

    if (result)
        say(SAY_WARN,
            "checkpoints, segments or index of removed stream %llu stay until siltd is started "
            "again: %s",
            (unsigned long long)stream_id, strerror(-result));
}
