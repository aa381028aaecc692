/*
 * What a question needs of the far past: found by its words, fetched from disk, put where the
 * question sees it.
 *
 * The index and the disk are other threads'; the question waits for them while ingest and other
 * questions go on. Whatever they cannot give is left out: an answer from less is still an answer,
 * and its sources say what it had.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/sched.h"

enum {
    TABLE_BYTES_MAX = 1024, /* of a question, by which it is looked for */
    AROUND_TOKENS = 768,    /* of text read again, the found line in its middle */
    ANSWER_ROOM = 512,      /* that text leaves, where the question asks for as much */
    LINE_BYTES_MAX = 2 * (SEARCH_TEXT_MAX + 8) + 256, /* before and after */
};
_Static_assert(SEARCH_ENTRIES_BYTES + 256 <= (int)LINE_BYTES_MAX, "entries fit as well");

/* What the question asks for by meaning; without recall keys its words alone are looked for. */
static void ask_table(struct sched *sched, struct ask *ask)
{
    int32_t *tokens = ask->tokens; /* nothing else is in them yet */
    struct token_text text = {0};
    uint32_t bytes = ask->question_bytes;
    int from = token_turn_open(sched->tokenizer, "user", tokens, FORK_TOKENS_MAX);
    size_t count = from > 0 ? (size_t)from : 0;

    ask->job.table = NULL;
    if (bytes > TABLE_BYTES_MAX)
        bytes = TABLE_BYTES_MAX;
    if (!ask->table || from < 0 || count + token_count_max(&text, bytes) > FORK_TOKENS_MAX)
        return;
    count += token_feed(sched->tokenizer, &text, ask->question, bytes, tokens + count);
    count += token_flush(sched->tokenizer, &text, tokens + count);
    if (fork_recall_table(ask->fork, tokens, (uint32_t)count, (uint32_t)from, ask->table) == 0)
        ask->job.table = ask->table;
}

bool ask_find(struct sched *sched, struct ask *ask)
{
    struct slot *slot = &sched->slots[ask->slot];
    struct stream_stat stat;
    bool texts = ask->recall != RECALL_SEGMENTS;

    ask->chunk_count = ask->recalled = 0;
    ask->job.text_count = ask->job.entries_bytes = ask->job.around_bytes = 0;
    if (ask->recall == RECALL_NONE || !sched->search)
        return false;
    stream_stat(slot->stream, &stat);
    ask->cold_chunks = stat.segments_cold;
    /* The newest finished chunk is still there word by word. */
    ask->job.chunk_end = texts ? stat.chunks - (stat.chunks > 0) : stat.segments_cold;
    ask->job.kind = SEARCH_FIND;
    ask->job.stream_id = atomic_load(&slot->stream_id);
    ask->job.question = ask->question;
    ask->job.question_bytes = ask->question_bytes;
    if (ask->job.chunk_end)
        ask_table(sched, ask);
    if (!ask->job.chunk_end || !ask->job.stream_id || search_submit(sched->search, &ask->job) != 0)
        return false;
    ask->searching = true;
    ask->phase = PHASE_FIND;
    return true;
}

static void choose(struct ask *ask)
{
    uint32_t count = ask->job.hit_count;

    if (count > STREAM_RECALL_MAX)
        count = STREAM_RECALL_MAX;
    for (uint32_t i = 0; i < count; i++)
        ask->chunks[i] = ask->job.hits[i].chunk;
    ask->chunk_count = count;
}

/* Segments from the disk and texts from the index, at the same time. */
static void fetch(struct sched *sched, struct ask *ask)
{
    uint64_t cold[STREAM_RECALL_MAX];
    uint32_t count = 0;

    for (uint32_t i = 0; i < ask->chunk_count; i++) {
        ask->job.text[i].chunk = ask->chunks[i];
        if (ask->chunks[i] < ask->cold_chunks)
            cold[count++] = ask->chunks[i];
    }
    ask->job.kind = SEARCH_TEXTS;
    ask->job.text_count = ask->chunk_count;
    ask->job.around_tokens = ask->recall == RECALL_SEGMENTS ? 0 : AROUND_TOKENS;
    ask->searching = ask->chunk_count && search_submit(sched->search, &ask->job) == 0;
    if (!ask->searching)
        ask->job.text_count = ask->job.entries_bytes = 0;
    if (count && sched->spill) {
        streams_give(sched->engine); /* one of them may have left its ring in the last pass */
        spill_fetch(sched->spill, ask->job.stream_id, cold, count, &ask->fetch);
    }
    ask->phase = PHASE_FETCH;
}

/* For who watches. */
static void note_hits(struct slot *slot, const struct cold_segment *segments, uint32_t count)
{
    if (!count)
        return;
    pthread_mutex_lock(&slot->stat_lock);
    slot->stat.recall_hits += count;
    slot->stat.recalled_us = clock_wall_us();
    slot->stat.recalled_count = count;
    for (uint32_t i = 0; i < count; i++)
        slot->stat.recalled[i] = segments[i].number;
    pthread_mutex_unlock(&slot->stat_lock);
}

/* The segments go into the fork; the disk's buffers are free again. */
static void recall(struct sched *sched, struct ask *ask)
{
    struct cold_segment all[STREAM_RECALL_MAX], *segments = all;
    uint32_t count, most;

    if (!ask->fetch)
        return;
    count = spill_segments(ask->fetch, all);
    /* One that covers more by now than had left the ring at a past position is not of that past. */
    while (count && segments[count - 1].number >= ask->cold_chunks)
        count--;
    most = fork_recall_max(ask->fork); /* pins take places: the newest come first */
    if (count > most) {
        segments += count - most;
        count = most;
    }
    if (fork_recall(ask->fork, segments, count) == 0) {
        ask->recalled = count;
        note_hits(&sched->slots[ask->slot], segments, count);
    }
    spill_release(&ask->fetch);
}

bool ask_recall_step(struct sched *sched, struct ask *ask)
{
    if (ask->searching && !atomic_load(&ask->job.done))
        return false;
    ask->searching = false;
    if (ask->phase == PHASE_FIND) {
        choose(ask);
        fetch(sched, ask);
        return true;
    }
    if (ask->fetch && !spill_fetched(ask->fetch))
        return false;
    recall(sched, ask);
    ask->phase = PHASE_PREFILL;
    return true;
}

bool ask_recall_end(struct ask *ask)
{
    if (ask->searching && !atomic_load(&ask->job.done))
        return false;
    ask->searching = false;
    spill_release(&ask->fetch);
    return true;
}

/* The words around a question are chosen by measurement: on the default model an answer comes from
 * a passage under such a line, and from whole chunks or a bare question behind them it does not.
 * Said a second time behind the question, with the wish for its own words, the passage is answered
 * from and not the model's own idea of what is asked (Xu et al., "Re-Reading Improves Reasoning",
 * EMNLP 2024, repeats the question likewise). Right of 150 facts 100,000 tokens back: 49.3 %
 * without, 65.3 % with the passage two more times, 76.0 % so; where two passages stand there,
 * 36.0 %. */
static const char before_text[] = "Use this text to answer the question.\n\n";
static const char before_question[] = "Question: ";
static const char after_text[] = "Answer with a sentence of the text.";

static size_t append(char *out, size_t used, const void *bytes, size_t bytes_count)
{
    memcpy(out + used, bytes, bytes_count);
    return used + bytes_count;
}

static size_t append_line(const struct search_text *found, char *text, size_t used)
{
    used = append(text, used, found->text + found->focus_from, found->focus_to - found->focus_from);
    return append(text, used, "\n\n", 2);
}

/* The question, alone or with the found line before it, and once more behind it: not where that is
 * about no one place, as what a text is about, which is not to be answered with a sentence of it.
 * Tokens from `from` on, or -ENOSPC. */
static int write_turn(struct sched *sched, struct ask *ask, bool line, char *text, uint32_t to)
{
    const struct search_text *found = &ask->job.text[0];
    uint32_t from = ask->prompt_count;
    size_t used = 0;

    if (from >= to)
        return -ENOSPC;
    if (line) {
        used = append(text, used, before_text, sizeof before_text - 1);
        used = append_line(found, text, used);
        used = append(text, used, before_question, sizeof before_question - 1);
    }
    used = append(text, used, ask->question, ask->question_bytes);
    if (line && found->about) {
        used = append(text, used, "\n\n", 2);
        used = append_line(found, text, used);
        used = append(text, used, after_text, sizeof after_text - 1);
    }
    return token_turn(sched->tokenizer, "user", (const uint8_t *)text, used, ask->tokens + from,
                      to - from);
}

/* A question that goes on a list is its next entry: no turn, but text behind the entries most like
 * it, up to where it ends, and a blank line ends the answer. The model then says a label of theirs;
 * in a turn it says something about the text (right of 192 made questions with four examples and
 * with sixteen, in turns and so: 79 and 95 %, 93 and 98 %). */
static int write_entries(struct sched *sched, struct ask *ask, char *text, uint32_t to)
{
    struct token_text held = {0};
    uint32_t from = ask->prompt_count;
    const uint8_t *mark, *question = ask->question;
    uint32_t bytes = search_mark(question, ask->question_bytes, &mark);
    size_t used = append(text, 0, "\n\n", 2);
    uint32_t count;

    bytes += (uint32_t)(mark - question);
    used = append(text, used, ask->job.entries, ask->job.entries_bytes);
    for (; bytes && *question <= ' '; bytes--)
        question++;
    used = append(text, used, question, bytes);
    if (from >= to || token_count_max(&held, used) > FORK_TOKENS_MAX - from ||
        ask->held.count == STOP_STRINGS_MAX)
        return -ENOSPC;
    count = (uint32_t)token_feed(sched->tokenizer, &held, (const uint8_t *)text, used,
                                 ask->tokens + from);
    count += (uint32_t)token_flush(sched->tokenizer, &held, ask->tokens + from + count);
    return count <= to - from ? (int)count : -ENOSPC;
}

static void stop_at_blank_line(struct stop_strings *stop)
{
    stop->bytes[stop->count] = 2;
    memcpy(stop->text[stop->count++], "\n\n", 2);
}

/* Where the line is about no one place, the text around it goes in front of all turns, as if the
 * stream had it once more: a question about a discussion needs more than a line of it. In the
 * question's own turn the same text loses answers that a line gives, and where a line is what was
 * asked for, text in front of the turn may, too (stream/retrofit/RUNS.md). */
static void read_again(struct sched *sched, struct ask *ask, uint32_t to)
{
    int32_t tokens[SEARCH_AROUND_MAX];
    struct token_text text = {0};
    size_t count =
        token_feed(sched->tokenizer, &text, ask->job.around, ask->job.around_bytes, tokens);

    count += token_flush(sched->tokenizer, &text, tokens + count);
    if (ask->prompt_count + count > to)
        return;
    memmove(ask->tokens + count, ask->tokens, ask->prompt_count * sizeof *tokens);
    memcpy(ask->tokens, tokens, count * sizeof *tokens);
    ask->prompt_count += (uint32_t)count;
}

/* As much of what was found as fits beside the question, the beginning of the assistant's turn and
 * an answer. */
int ask_recall_prompt(struct sched *sched, struct ask *ask)
{
    char text[LINE_BYTES_MAX + QUESTION_BYTES_MAX]; /* one turn */
    int tokens = token_turn_open(sched->tokenizer, "assistant", ask->tokens + ask->prompt_count,
                                 FORK_TOKENS_MAX - ask->prompt_count);
    uint32_t begins = tokens > 0 ? (uint32_t)tokens : 0, to;
    uint32_t answer = ANSWER_TOKENS_MIN + (ask->tokens_max > begins ? ask->tokens_max : begins);
    bool found = ask->recall != RECALL_SEGMENTS && ask->job.text_count, line = false;

    tokens = -ENOSPC;
    to = FORK_TOKENS_MAX - (answer < ANSWER_ROOM ? answer : ANSWER_ROOM);
    if (found && ask->job.entries_bytes)
        tokens = write_entries(sched, ask, text, to);
    ask->goes_on = tokens > 0;
    if (ask->goes_on)
        stop_at_blank_line(&ask->held);
    if (!ask->goes_on && found && ask->job.text[0].bytes) {
        tokens = write_turn(sched, ask, true, text, to);
        line = tokens > 0;
    }
    if (tokens < 0) /* no room for more than the question */
        tokens = write_turn(sched, ask, false, text, FORK_TOKENS_MAX);
    if (tokens < 0)
        return tokens;
    ask->prompt_count += (uint32_t)tokens;
    if (line)
        read_again(sched, ask, to);
    return 0;
}
