/*
 * The hot paths one after another under callgrind, which counts the instructions of each: figures
 * that a noisy machine cannot move. tests/bench/instructions runs it and compares.
 *
 *     valgrind --tool=callgrind --instr-atstart=no bench-hot FOLDER MODEL ADAPTER MASK VOCAB
 *
 * Prints "figure units" in the order of the dumps that callgrind writes: the instructions of dump N
 * over the units of line N are the figure. One thread. FOLDER is scratch; MODEL is a small
 * one, for a real one takes minutes here; VOCAB is the model whose tokenizer is counted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <valgrind/callgrind.h>

#include "daemon/journal.h"
#include "stream/internal.h"
#include "stream/token.h"
#include "tests/bench/hot.h"

enum {
    BLOCK = STREAM_BLOCK_TOKENS,
    RATIO = 4,
    TEXT_BYTES = 64 << 10,
    PIECE_BYTES = 16 << 10, /* of one message */
    MERGE_JOBS = 8,
    FRAME_BYTES = 256 << 10,
    ACKS = 64,
};

struct hot {
    struct engine *engine;
    struct tokenizer *tokenizer;
    const char *folder;
    uint8_t text[TEXT_BYTES];
    int32_t tokens[TEXT_BYTES]; /* first VOCAB's, then below MODEL's number of tokens */
    uint32_t count, piece_tokens;
};

void hot_check(bool right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "bench-hot: %s\n", what);
    exit(1);
}

void hot_begin(void)
{
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

void hot_end(const char *figure, double units)
{
    CALLGRIND_DUMP_STATS;
    CALLGRIND_STOP_INSTRUMENTATION;
    printf("%s %.0f\n", figure, units);
    fflush(stdout);
}

void *hot_memory(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    hot_check(memory, "no memory");
    return memory;
}

/* ---- the engine ---- */

/* A question on the stream, then a token of its answer. */
static void hot_answer(struct hot *h, const struct stream *stream,
                       const struct stream_options *options)
{
    size_t bytes = fork_bytes(h->engine, options);
    void *memory = hot_memory(bytes);
    struct fork *fork;
    hot_check(fork_open(&fork, stream, memory, bytes) == 0, "fork");
    hot_begin();
    hot_check(fork_feed(fork, h->tokens, BLOCK) == 0, "question");
    hot_end("question-token", BLOCK);
    hot_begin();
    hot_check(fork_feed(fork, h->tokens, 1) == 0 && fork_logits(fork), "answer");
    hot_end("answer-token", 1);
    fork_close(&fork);
    free(memory);
}

/* A block in the middle of a chunk, and a chunk's last block with all that its end brings: the COMP
 * pass and the slide. */
static void hot_stream(struct hot *h)
{
    struct stream_options options = {.dmc_ratio = RATIO};
    struct engine_info info;
    char error[256] = "";
    engine_info(h->engine, &info);
    for (uint32_t i = 0; i < h->count; i++)
        h->tokens[i] %= (int32_t)info.vocab_count;
    size_t bytes = stream_bytes(h->engine, &options, error, sizeof error);
    hot_check(bytes, error);
    void *memory = hot_memory(bytes);
    uint32_t chunk = info.chunk_tokens;
    struct stream *stream;
    hot_check(stream_open(&stream, h->engine, &options, memory, bytes) == 0, "stream");
    hot_check(h->count > 3 * chunk, "too little text");
    stream_feed(stream, h->tokens, 2 * chunk + chunk / 2);
    hot_begin();
    stream_feed(stream, h->tokens + 2 * chunk + chunk / 2, BLOCK);
    hot_end("ingest-token", BLOCK);
    stream_feed(stream, h->tokens + 2 * chunk + chunk / 2 + BLOCK, chunk / 2 - 2 * BLOCK);
    hot_begin();
    stream_feed(stream, h->tokens + 3 * chunk - BLOCK, BLOCK);
    hot_end("chunk-end-with-block", 1);
    hot_answer(h, stream, &options);
    stream_close(&stream);
    free(memory);
}

static void hot_merge(struct hot *h)
{
    enum { DIM = 64 };
    static float rows[BLOCK * DIM], rotation[BLOCK * DIM], importance[BLOCK];
    static float z[MERGE_JOBS], sums[MERGE_JOBS][2][DIM];
    static f16 out[MERGE_JOBS][2][BLOCK * DIM];
    static uint8_t merges[BLOCK];
    struct merge_job jobs[MERGE_JOBS];
    struct kernels *k = h->engine->kernels;
    for (uint32_t i = 0; i < BLOCK; i++) {
        importance[i] = 0.5f;
        merges[i] = i % 4 != 0;
    }
    for (uint32_t j = 0; j < MERGE_JOBS; j++)
        jobs[j] = (struct merge_job){.k = rows,
                                     .v = rows,
                                     .stride = DIM,
                                     .a = merges,
                                     .o = importance,
                                     .rotation = rotation,
                                     .z = &z[j],
                                     .sum_k = sums[j][0],
                                     .sum_v = sums[j][1],
                                     .k_out = out[j][0],
                                     .v_out = out[j][1],
                                     .rows = BLOCK};
    hot_begin();
    k->merge(k, jobs, MERGE_JOBS, DIM);
    hot_end("merge-row", MERGE_JOBS * BLOCK);
}

/* ---- text, wire, journal ---- */

static void hot_tokenizer(struct hot *h)
{
    struct token_text state = {0};
    hot_begin();
    h->count = (uint32_t)token_feed(h->tokenizer, &state, h->text, TEXT_BYTES, h->tokens);
    hot_end("tokenizer-token", h->count);
    state = (struct token_text){0};
    h->piece_tokens =
        (uint32_t)token_feed(h->tokenizer, &state, h->text, PIECE_BYTES, (int32_t[PIECE_BYTES]){0});
}

static size_t pack_feed(const struct hot *h, bool ids, uint8_t *frame)
{
    Silt__V1__Request request = SILT__V1__REQUEST__INIT;
    Silt__V1__Feed feed = SILT__V1__FEED__INIT;
    Silt__V1__Item item, *items = &item;
    Silt__V1__Tokens tokens = SILT__V1__TOKENS__INIT;
    static char stream[] = "stream", producer[] = "producer";
    silt__v1__item__init(&item);
    feed.stream = stream;
    feed.producer = producer;
    feed.sequence = 1;
    feed.items = &items;
    feed.n_items = 1;
    item.body_case = ids ? SILT__V1__ITEM__BODY_TOKENS : SILT__V1__ITEM__BODY_TEXT;
    if (ids) {
        tokens.ids = (uint32_t *)(uintptr_t)h->tokens;
        tokens.n_ids = h->piece_tokens;
        item.tokens = &tokens;
    } else {
        item.text.data = (uint8_t *)(uintptr_t)h->text;
        item.text.len = PIECE_BYTES;
    }
    request.body_case = SILT__V1__REQUEST__BODY_FEED;
    request.feed = &feed;
    hot_check(silt__v1__request__get_packed_size(&request) <= FRAME_BYTES, "frame");
    return silt__v1__request__pack(&request, frame);
}

static void hot_decode(const struct hot *h, bool ids, const char *figure)
{
    struct bump bump = {.bytes = hot_memory(UNPACK_BYTES_MAX), .capacity = UNPACK_BYTES_MAX};
    uint8_t *frame = hot_memory(FRAME_BYTES);
    size_t bytes = pack_feed(h, ids, frame);
    struct wire_request request;
    struct wire_fault fault;
    hot_begin();
    int result = wire_parse(&bump, frame, bytes, INT32_MAX, &request, &fault);
    hot_end(figure, h->piece_tokens);
    hot_check(result == 0 && request.item_count == 1, "wire_parse");
    free(frame);
    free(bump.bytes);
}

static void hot_encode(void)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Ack ack = SILT__V1__ACK__INIT;
    static char stream[] = "stream", producer[] = "producer";
    uint8_t frame[REPLY_BYTES_MAX];
    int bytes = 0;
    ack.stream = stream;
    ack.producer = producer;
    ack.tokens_acked = ack.bytes_acked = 1000000;
    reply.body_case = SILT__V1__REPLY__BODY_ACK;
    reply.ack = &ack;
    hot_begin();
    for (uint64_t i = 0; i < ACKS; i++) {
        reply.id = ack.sequence = i;
        bytes = wire_pack(&reply, frame, sizeof frame);
    }
    hot_end("wire-ack", ACKS);
    hot_check(bytes > 0, "wire_pack");
}

/* What one message costs the journal when it is a batch of its own: begin, item, producer, commit.
 * The first goes uncounted. */
static void hot_journal(const struct hot *h)
{
    struct journal_options options = {.folder = h->folder, .model_name = "", .kernels_name = "hot"};
    struct journal_stream stream = {.name = "s", .dmc_ratio = RATIO};
    struct journal_item item = {.item = {ITEM_TEXT, 0, h->text, PIECE_BYTES}};
    struct journal *journal;
    char error[256];
    hot_check(journal_open(&journal, &options, error, sizeof error) == 0, error);
    for (uint64_t i = 0; i < 2; i++) {
        int result;
        if (i)
            hot_begin();
        result = journal_begin(journal);
        if (!i)
            result = result ? result : journal_stream_create(journal, &stream);
        result = result ? result : journal_item_append(journal, stream.id, i, &item);
        result = result ? result : journal_producer_set(journal, stream.id, "p", i + 1, 1);
        result = result ? result : journal_stream_update(journal, &stream);
        result = result ? result : journal_commit(journal);
        if (i)
            hot_end("journal-token", h->piece_tokens);
        hot_check(result == 0, "journal");
    }
    journal_close(&journal);
}

/* Files that do not change with the code. */
static void read_text(struct hot *h)
{
    static const char *const paths[] = {"LICENSE", "tests/golden/token_text.txt",
                                        "tests/golden/smollm2-135m-instruct.txt"};
    size_t bytes = 0;
    while (bytes < TEXT_BYTES)
        for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
            FILE *file = fopen(paths[i], "rb");
            hot_check(file, "run it from the top of the repository");
            bytes += fread(h->text + bytes, 1, TEXT_BYTES - bytes, file);
            fclose(file);
        }
}

static void open_all(struct hot *h, char **argv)
{
    struct engine_options options = {.model_path = argv[2],
                                     .adapter_path = argv[3],
                                     .threads = 1,
                                     .feature_mask = (uint32_t)strtoul(argv[4], NULL, 0)};
    struct gguf *gguf = NULL;
    char error[512] = "";
    h->folder = argv[1];
    hot_check(engine_open(&h->engine, &options, error, sizeof error) == 0, error);
    hot_check(gguf_open(&gguf, argv[5], error, sizeof error) == 0, error);
    hot_check(tokenizer_open(&h->tokenizer, gguf, error, sizeof error) == 0, error);
    gguf_close(&gguf);
    printf("# %s\n", h->engine->kernels->name);
}

int main(int argc, char **argv)
{
    static struct hot h;
    char asked[4096];
    if (argc != 6) {
        fprintf(stderr, "usage: bench-hot FOLDER MODEL ADAPTER MASK VOCAB, under callgrind\n");
        return 2;
    }
    open_all(&h, argv);
    read_text(&h);
    hot_tokenizer(&h);
    if (h.engine->kernels->features) { /* else they were counted before */
        hot_decode(&h, false, "wire-text-token");
        hot_decode(&h, true, "wire-ids-token");
        hot_encode();
        hot_journal(&h);
        snprintf(asked, sizeof asked, "%s/asked", h.folder);
        hot_search(asked, h.engine, h.tokenizer, h.text, TEXT_BYTES);
    }
    hot_merge(&h);
    hot_stream(&h);
    tokenizer_close(&h.tokenizer);
    engine_close(&h.engine);
    return 0;
}
