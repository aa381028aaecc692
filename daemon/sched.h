/*
 * sched: the compute thread, which alone touches live KV, and what it does next.
 *
 * Work comes in slices: one ingest block (32 tokens of one stream; 64 while no question is there),
 * 32 tokens of a question, or one token of an answer. Questions go first, but after ASK_SLICES of
 * them a block of ingest runs, so neither starves the other; streams take turns slice by slice, and
 * so do questions.
 *
 * On a device a slice is one pass, over all questions or over streams, a chunk of each at most
 * while others wait. A question that comes waits for the pass of ingest under way, of at most
 * engine_info.batch_tokens; from then on ingest takes passes of a SCHED_ASKED_SHARE-th of that, one
 * after ASK_SLICES of the questions' own. So its first token, after n slices of prompt and recall,
 * comes behind one whole pass of ingest and n / ASK_SLICES small ones, however much text waits; and
 * behind what the search thread has under way, of one stream, where it looks for text.
 */
#ifndef SILT_DAEMON_SCHED_H
#define SILT_DAEMON_SCHED_H

#include "daemon/ask.h"
#include "daemon/ingest.h"
#include "daemon/meter.h"
#include "daemon/queue.h"

enum {
    ASK_SLICES = 4,
    BACKGROUND_ROUNDS = 8, /* of ingest, then a slice of background work */
    SCHED_ASKED_SHARE = 8,
};

enum sched_kind { SCHED_OPEN, SCHED_CLOSE, SCHED_ASK };
/* From the loop thread. */
struct sched_request {
    enum sched_kind kind;
    uint32_t index;      /* slot or ask */
    uint64_t stream_id;  /* open: of a stream that may have checkpoints, 0: new */
    uint64_t tokens_max; /* open: what its journal holds */
};

enum sched_news { SCHED_OPENED, SCHED_CLOSED, SCHED_CREDIT, SCHED_TEXT, SCHED_END };
/* To the loop thread; SCHED_TEXT is followed by bytes_count of text. */
struct sched_message {
    enum sched_news news;
    uint32_t index; /* slot or ask */
    uint32_t bytes_count;
    int result;
    struct ask_end end;
};

struct sched {
    struct spill *spill;   /* NULL: no cold segments */
    struct search *search; /* NULL: no text index */
    struct engine *engine;
    const struct tokenizer *tokenizer;
    struct engine_info info;
    struct slot *slots; /* [slot_count] */
    struct ask *asks;   /* [ask_count] */
    uint32_t slot_count, ask_count, lag_tokens_max;
    struct queue *inbox, *loop;
    const struct doorbell *bell, *journal_bell;
    struct keeper *keeper;          /* NULL: no checkpoints */
    struct meter *meter;            /* NULL: no loss meter */
    bool (*background)(void *user); /* work for when there is little else; NULL: none */
    void *background_user;
    /* Of this thread's time: at work; of that in passes over streams' text, so many of them; for
     * the device alone in these; segments that left, handed to the disk's thread; what is told of
     * streams after a pass, and checkpoints. */
    _Atomic uint64_t compute_us, read_us, passes, wait_us, leave_us, save_us;
    _Atomic bool *stopping;
    _Atomic uint64_t *tokens_computed;   /* of the process */
    struct sample_candidate *candidates; /* [vocab_count] */
    uint64_t *entries;                   /* [layers * kv_heads] */
    uint32_t slot_next, ask_next;        /* whose turn it is */
    uint32_t rounds;
    bool failed; /* the device has: nothing can be computed any more */
};

void *sched_main(void *sched);
/* One round: messages, at most ASK_SLICES slices of questions, one block. False: nothing to do. */
bool sched_step(struct sched *sched);
void sched_send(struct sched *sched, const struct sched_message *message, const void *text);

/* One block of a slot's stream, where it has tokens. */
bool sched_feed_block(struct sched *sched, struct slot *slot);
/* A slot's next tokens are in its stream. */
void sched_computed(struct sched *sched, struct slot *slot, uint32_t count);
/* A pass that began then is done. */
void sched_note_read(struct sched *sched, uint64_t start_us);
void sched_offer_room(struct sched *sched, struct slot *slot);
void sched_fail_stream(struct slot *slot, int error);
/* Says so once, when it has. */
bool sched_device_failed(struct sched *sched);

/* sched_batch.c: the same for all streams, and for all questions, in one pass. */
bool sched_feed_batch(struct sched *sched, bool asked);
bool sched_ask_batch(struct sched *sched);

/* sched_state.c: from and to the disk. */
void sched_open(struct sched *sched, struct slot *slot, const struct sched_request *request);
/* Closes the stream once it is saved, or at once where that cannot be. False: later. */
bool sched_close(struct sched *sched, struct slot *slot);
/* Before the end, as many as the time allows. */
void sched_save_all(struct sched *sched);
/* A checkpoint where one is due. */
void sched_checkpoint(struct sched *sched, struct slot *slot);
void sched_publish(struct sched *sched, struct slot *slot, uint32_t computed);

/* ask_run.c: one slice of a question. False: it waits for ingest. Where want_count is set then,
 * these tokens are to go into its fork, and ask_fed is to be told how that went. */
bool ask_step(struct sched *sched, struct ask *ask);
void ask_fed(struct sched *sched, struct ask *ask, int result);
/* cold.c: the stream just opened in a slot gives its cold segments. */
void cold_watch(struct slot *slot);

/* ask_recall.c: what a question needs of the far past, before it is computed. */
/* Asks the index; false: there is nothing to find. */
bool ask_find(struct sched *sched, struct ask *ask);
/* One step of PHASE_FIND or PHASE_FETCH. False: it waits; else the phase has changed. */
bool ask_recall_step(struct sched *sched, struct ask *ask);
/* Nothing of the question is with other threads any more; false: not yet. */
bool ask_recall_end(struct ask *ask);
/* The question as a turn with what was found around it, and text before all turns; or as text which
 * the answer goes on: ask->goes_on. 0, -ENOSPC. */
int ask_recall_prompt(struct sched *sched, struct ask *ask);
/* Takes a new question in. */
void ask_begin(struct sched *sched, struct ask *ask);

#endif
