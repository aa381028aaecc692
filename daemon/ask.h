/*
 * ask: one question on its way, from admission to its last reply.
 *
 * The loop thread fills it, hands it to the compute thread and alone talks to the client; the
 * compute thread runs the fork and sends text and the end back as messages. `cancelled` is the one
 * word both read.
 */
#ifndef SILT_DAEMON_ASK_H
#define SILT_DAEMON_ASK_H

#include <stdatomic.h>

#include "daemon/search.h"
#include "daemon/slot.h"
#include "daemon/wire.h"

enum ask_stage { ASK_FREE, ASK_RUNNING, ASK_KEEPING, ASK_ENDING };
enum ask_phase { PHASE_IDLE, PHASE_WAIT, PHASE_FIND, PHASE_FETCH, PHASE_PREFILL, PHASE_DECODE };
/* Silt__V1__Ask__Recall */
enum ask_recall { RECALL_AUTO, RECALL_NONE, RECALL_SEGMENTS, RECALL_TEXT };

struct ask_end {
    uint64_t position;
    uint32_t question_tokens, answer_tokens;
    uint32_t finish; /* Done.Finish */
    uint32_t error;  /* 0, else 1 + Error.Code */
    uint64_t wait_us, prefill_us, decode_us;
    uint64_t rebuilding_to; /* Done.rebuilding_to */
    char message[160];
};

struct ask {
    uint32_t index;
    _Atomic bool cancelled;

    /* The loop's; the compute thread reads what stands before `stage`. */
    uint32_t slot;
    bool wait, keep;
    enum ask_recall recall;
    uint32_t tokens_max;
    struct sample_options sampling;
    struct stop_strings stop;
    uint64_t acked;    /* when it was admitted */
    uint64_t wait_for; /* tokens that must be computed first */
    uint64_t admitted_us;
    uint32_t question_bytes, system_bytes;
    uint8_t question[QUESTION_BYTES_MAX], system[SYSTEM_BYTES_MAX];
    void *memory; /* of the fork */
    size_t memory_bytes;
    enum ask_stage stage;
    struct wire_client client;
    uint64_t request_id;
    uint32_t text_bytes, sent_bytes;
    uint8_t text[ANSWER_BYTES_MAX]; /* the answer; what is behind sent_bytes waits for the client */
    uint32_t record;
    uint64_t stuck_us; /* since when the client takes nothing, 0: it does */
    uint64_t keep_us;  /* since when question and answer are to go to the journal, 0: not yet */
    bool ended;
    struct ask_end end;

    /* The compute thread's. */
    enum ask_phase phase;
    struct fork *fork;
    struct sampler sampler;
    struct stop_strings held;
    const int32_t *want; /* [want_count] of tokens: to be fed next */
    uint32_t want_count;
    uint32_t prompt_count, fed;
    uint32_t answer_count, answer_bytes, answer_max;
    int32_t tokens[FORK_TOKENS_MAX]; /* prompt, then answer */
    uint64_t position, started_us, decode_us, rebuilding_to;
    /* Recall: the job is the search thread's while it is under way; its texts are the answer's
     * sources, which the loop thread reads once the answer has ended. */
    struct search_job job;
    uint8_t *table; /* of recall keys, stream.h; NULL: there are none */
    bool searching;
    struct spill_fetch *fetch;
    uint64_t chunks[STREAM_RECALL_MAX]; /* chosen, best first */
    uint32_t chunk_count;
    bool goes_on;         /* a list: no turn, the answer goes on the question's text */
    uint64_t cold_chunks; /* chunks below have left the ring */
    uint32_t recalled;    /* segments that came back */
};

#endif
