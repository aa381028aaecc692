/*
 * A question in its fork: template and question in slices of one block, then token by token.
 *
 * The fork is opened when the question's turn comes and its wait is over, so the position it sees
 * is one position of the stream, whatever is fed meanwhile.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/sched.h"

enum { ASK_PASS_TOKENS = 256 /* of a prompt, in a device's pass */ };

static void finish(struct sched *sched, struct ask *ask, Silt__V1__Done__Finish how)
{
    struct sched_message message = {.news = SCHED_END, .index = ask->index};
    uint64_t now = clock_us();

    message.end = (struct ask_end){.position = ask->position,
                                   .question_tokens = ask->prompt_count,
                                   .answer_tokens = ask->answer_count,
                                   .finish = (uint32_t)how,
                                   .rebuilding_to = ask->rebuilding_to};
    message.end.wait_us = (ask->started_us ? ask->started_us : now) - ask->admitted_us;
    if (ask->decode_us) {
        message.end.prefill_us = ask->decode_us - ask->started_us;
        message.end.decode_us = now - ask->decode_us;
    }
    fork_close(&ask->fork);
    ask->phase = PHASE_IDLE;
    sched_send(sched, &message, NULL);
}

/* Whatever cannot be done on a device that has failed, it is for that. */
static void fail(struct sched *sched, struct ask *ask, Silt__V1__Error__Code code, const char *text)
{
    struct sched_message message = {.news = SCHED_END, .index = ask->index};

    if (engine_failure(sched->engine)) {
        code = SILT__V1__ERROR__CODE__INTERNAL;
        text = "the device has failed: see siltd's log";
    }
    message.end.error = 1 + (uint32_t)code;
    snprintf(message.end.message, sizeof message.end.message, "%s", text);
    fork_close(&ask->fork);
    ask->phase = PHASE_IDLE;
    sched_send(sched, &message, NULL);
}

void ask_begin(struct sched *sched, struct ask *ask)
{
    (void)sched;
    assert(ask->phase == PHASE_IDLE && !ask->fork);
    ask->phase = PHASE_WAIT;
    ask->prompt_count = ask->fed = ask->want_count = 0;
    ask->answer_count = ask->answer_bytes = 0;
    ask->position = ask->started_us = ask->decode_us = 0;
    ask->chunk_count = ask->recalled = ask->job.text_count = 0;
    ask->held = ask->stop;
    ask->goes_on = false;
    sampler_init(&ask->sampler, &ask->sampling);
}

static int add_turn(struct sched *sched, struct ask *ask, const char *role, const void *bytes,
                    size_t bytes_count)
{
    int n = token_turn(sched->tokenizer, role, bytes, bytes_count, ask->tokens + ask->prompt_count,
                       FORK_TOKENS_MAX - ask->prompt_count);

    ask->prompt_count += n > 0 ? (uint32_t)n : 0;
    return n < 0 ? n : 0;
}

static int build_prompt(struct sched *sched, struct ask *ask)
{
    int result = 0, n;

    /* No system turn of our own: measured on the default model, one between the text and the
     * question turns the answer away from the text, and the adapter is trained without it. */
    if (ask->system_bytes)
        result = add_turn(sched, ask, "system", ask->system, ask->system_bytes);
    if (!result)
        result = ask_recall_prompt(sched, ask);
    if (result)
        return result;
    n = ask->goes_on
            ? 0
            : token_turn_open(sched->tokenizer, "assistant", ask->tokens + ask->prompt_count,
                              FORK_TOKENS_MAX - ask->prompt_count);
    if (n < 0)
        return n;
    ask->prompt_count += (uint32_t)n;
    return ask->prompt_count + ANSWER_TOKENS_MIN <= FORK_TOKENS_MAX ? 0 : -ENOSPC;
}

/* All that was acked when the question came is in the stream and its chunks in the text index, or
 * all of the past that it is about; or nobody asked for that. */
static bool wait_over(const struct sched *sched, const struct ask *ask, const struct slot *slot)
{
    uint64_t chunks = ask->wait_for / sched->info.chunk_tokens;

    if (!ask->wait)
        return true;
    if (atomic_load(&slot->ring.head) < ask->wait_for)
        return false;
    return !sched->search || atomic_load(&slot->past) || atomic_load(&slot->unindexed) ||
           atomic_load(&slot->indexed_to) >= chunks * sched->info.chunk_tokens;
}

static bool start(struct sched *sched, struct ask *ask)
{
    struct slot *slot = &sched->slots[ask->slot];
    int result;

    if (!slot->stream || slot->stat.failed || atomic_load(&slot->unread)) {
        fail(sched, ask, SILT__V1__ERROR__CODE__INTERNAL,
             "the stream cannot be computed: see siltd's log, restart siltd");
        return true;
    }
    if (!wait_over(sched, ask, slot))
        return false;
    result = fork_open(&ask->fork, slot->stream, ask->memory, ask->memory_bytes);
    if (!result && sched->info.pin_tokens_max)
        result = pins_apply_fork(slot, ask->fork, sched->info.chunk_tokens);
    if (result) {
        fail(sched, ask, SILT__V1__ERROR__CODE__NO_SPACE,
             "no fork can be opened on this stream: its ring may be larger than the plan's");
        return true;
    }
    ask->started_us = clock_us();
    ask->position = fork_position(ask->fork);
    ask->rebuilding_to = slot_rebuilding(slot);
    if (!ask_find(sched, ask))
        ask->phase = PHASE_PREFILL;
    return true;
}

/* What it needs is in the fork: now it can be written down. False: it does not fit. */
static bool begin_prefill(struct sched *sched, struct ask *ask)
{
    uint32_t room;

    if (build_prompt(sched, ask)) {
        fail(sched, ask, SILT__V1__ERROR__CODE__TOO_LARGE,
             "question and system text do not fit a fork: shorten them");
        return false;
    }
    room = fork_room(ask->fork);
    room = room > ask->prompt_count ? room - ask->prompt_count : 0;
    ask->answer_max = ask->tokens_max < room ? ask->tokens_max : room;
    return true;
}

static void prefill(struct sched *sched, struct ask *ask)
{
    bool batched = sched->info.batch_tokens > STREAM_BLOCK_TOKENS;
    uint32_t most = batched ? ASK_PASS_TOKENS : STREAM_BLOCK_TOKENS, left;

    if (!ask->prompt_count && !begin_prefill(sched, ask))
        return;
    left = ask->prompt_count - ask->fed;
    ask->want = ask->tokens + ask->fed;
    ask->want_count = left < most ? left : most;
}

void ask_fed(struct sched *sched, struct ask *ask, int result)
{
    uint32_t count = ask->want_count;

    ask->want_count = 0;
    if (result) {
        fail(sched, ask, SILT__V1__ERROR__CODE__INTERNAL,
             ask->phase == PHASE_PREFILL ? "the question cannot be computed"
                                         : "the answer cannot be computed");
        return;
    }
    if (ask->phase != PHASE_PREFILL)
        return;
    ask->fed += count;
    if (ask->fed == ask->prompt_count) {
        ask->phase = PHASE_DECODE;
        ask->decode_us = clock_us();
    }
}

static void send_text(struct sched *sched, struct ask *ask, const uint8_t *text, size_t bytes_count)
{
    struct sched_message message = {
        .news = SCHED_TEXT, .index = ask->index, .bytes_count = (uint32_t)bytes_count};

    if (!bytes_count)
        return;
    ask->answer_bytes += (uint32_t)bytes_count;
    sched_send(sched, &message, text);
}

static void finish_held(struct sched *sched, struct ask *ask, Silt__V1__Done__Finish how)
{
    uint8_t rest[STOP_BYTES_MAX];

    send_text(sched, ask, rest, stop_flush(&ask->held, rest));
    finish(sched, ask, how);
}

static int32_t pick(struct sched *sched, struct ask *ask)
{
    uint32_t recent = ask->answer_count < RECENT_TOKENS ? ask->answer_count : RECENT_TOKENS;
    const int32_t *end = ask->tokens + ask->prompt_count + ask->answer_count;

    return sample_token(&ask->sampler, fork_logits(ask->fork), sched->info.vocab_count,
                        end - recent, recent, sched->candidates);
}

static void decode(struct sched *sched, struct ask *ask)
{
    uint8_t shown[PRETOKEN_BYTES_MAX + 2 * STOP_BYTES_MAX];
    size_t bytes_count, shown_bytes;
    const uint8_t *bytes;
    int32_t token;
    bool stopped;

    if (ask->answer_count >= ask->answer_max ||
        ask->answer_bytes + sizeof shown > ANSWER_BYTES_MAX) {
        finish_held(sched, ask, SILT__V1__DONE__FINISH__LENGTH);
        return;
    }
    token = pick(sched, ask);
    if (token_is_end(sched->tokenizer, token)) {
        finish_held(sched, ask, SILT__V1__DONE__FINISH__END);
        return;
    }
    ask->tokens[ask->prompt_count + ask->answer_count++] = token;
    bytes = token_bytes(sched->tokenizer, token, &bytes_count);
    if (bytes_count > PRETOKEN_BYTES_MAX)
        bytes_count = PRETOKEN_BYTES_MAX;
    stopped = stop_feed(&ask->held, bytes, bytes_count, shown, &shown_bytes);
    send_text(sched, ask, shown, shown_bytes);
    if (stopped) {
        finish(sched, ask, SILT__V1__DONE__FINISH__STOP);
        return;
    }
    if (ask->answer_count < ask->answer_max) {
        ask->want = ask->tokens + ask->prompt_count + ask->answer_count - 1;
        ask->want_count = 1;
    }
}

bool ask_step(struct sched *sched, struct ask *ask)
{
    if (atomic_load(&ask->cancelled)) {
        if (!ask_recall_end(ask))
            return false;
        finish(sched, ask, SILT__V1__DONE__FINISH__CANCELLED);
        return true;
    }
    switch (ask->phase) {
    case PHASE_WAIT:
        return start(sched, ask);
    case PHASE_FIND:
    case PHASE_FETCH:
        return ask_recall_step(sched, ask);
    case PHASE_PREFILL:
        prefill(sched, ask);
        return true;
    case PHASE_DECODE:
        decode(sched, ask);
        return true;
    case PHASE_IDLE:
        break;
    }
    return false;
}
