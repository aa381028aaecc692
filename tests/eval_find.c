/*
 * eval-find MODEL.gguf ADAPTER.gguf TEXT FOLDER < questions: which chunks of a stream questions
 * find, without the model having read it.
 *
 * TEXT goes into a journal in FOLDER, which must not exist, or be one of such a run; the search
 * thread's code indexes it, and every line "CHUNK_END<tab>QUESTION" is looked for in the chunks
 * below CHUNK_END; in both a form feed stands for the end of a line. Out goes a line of the chunks
 * found, best first: by words, by keys and by both, a tab between them, then the excerpt that would
 * stand before the question, 1 where all that is asked for stands in it, else 0 (ask_recall.c then
 * says it twice), and last the entries of a list that the question goes on. They need no more than
 * text, so that a million tokens take seconds; tests/eval/facts.py reads the answers. The closing
 * line on stderr says what each way of looking costs.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/journal.h"
#include "daemon/search_internal.h"

enum { PIECE_BYTES = 32 << 10, PIECE_TOKENS = 1 << 17, LINE_BYTES = 4096 };

static struct engine *engine;
static struct slot slot;
static clock_t spent[3], spent_texts; /* by enum search_by */

static void die(const char *what, const char *why)
{
    fprintf(stderr, "eval-find: %s: %s\n", what, why);
    exit(1);
}

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);

    if (!memory)
        die("no memory", strerror(ENOMEM));
    memset(memory, 0, bytes);
    return memory;
}

/* The file's next piece as an item, its tokens counted as ingest does. False: there is none. */
static bool add_piece(struct journal *journal, struct journal_stream *stream, FILE *file)
{
    static uint8_t bytes[PIECE_BYTES];
    static int32_t tokens[PIECE_TOKENS];
    size_t count = fread(bytes, 1, sizeof bytes, file);
    struct journal_item item = {.item = {.kind = ITEM_TEXT, .bytes = bytes},
                                .time_us = 1,
                                .token_from = stream->tokens,
                                .held_before = stream->text.held_bytes};

    if (!count)
        return false;
    item.item.bytes_count = (uint32_t)count;
    if (journal_item_append(journal, stream->id, stream->items++, &item))
        die("journal", journal_error(journal));
    stream->tokens += token_feed(engine_tokenizer(engine), &stream->text, bytes, count, tokens);
    stream->bytes_text += count;
    return true;
}

static void make_journal(const char *folder, const char *text_path)
{
    struct engine_info info;
    struct journal_options options = {.folder = folder, .model_name = "model"};
    struct journal_stream stream = {.name = "s", .dmc_ratio = 1, .ring_segments = 1};
    struct journal *journal;
    char error[ERROR_BYTES_MAX];
    FILE *file = fopen(text_path, "rb");
    int result;

    engine_info(engine, &info);
    options.model_fingerprint = info.model_fingerprint;
    options.kernels_name = info.kernels_name;
    options.kernels_revision = info.kernels_revision;
    if (!file)
        die(text_path, strerror(errno));
    if (journal_open(&journal, &options, error, sizeof error))
        die("journal", error);
    if (journal_stream_find(journal, stream.name, &stream) != 0) {
        result = journal_begin(journal);
        if (result || journal_stream_create(journal, &stream))
            die("journal", journal_error(journal));
        while (add_piece(journal, &stream, file))
            ;
        if (journal_stream_update(journal, &stream) || journal_commit(journal))
            die("journal", journal_error(journal));
    }
    journal_close(&journal);
    fclose(file);
    atomic_store(&slot.stream_id, stream.id);
    atomic_store(&slot.tokens_loaded, stream.tokens);
    atomic_store(&slot.tokens_acked, stream.tokens);
}

static struct search *open_search(const char *folder)
{
    struct engine_info info;
    struct search_options options = {
        .folder = folder,
        .keys = recall_table_bytes(engine) > 0,
        .tokenizer = engine_tokenizer(engine),
        .engine = engine,
        .item_tokens_max = PIECE_TOKENS,
        .slots = &slot,
        .slot_count = 1,
    };
    struct search *search;
    char error[ERROR_BYTES_MAX] = "";

    engine_info(engine, &info);
    options.model_fingerprint = info.model_fingerprint;
    options.chunk_tokens = info.chunk_tokens;
    if (search_open(&search, &options, take(search_bytes(1, PIECE_TOKENS)), error, sizeof error))
        die("search", error);
    while (search_step(search))
        ;
    return search;
}

/* What the question asks for by meaning, as ask_recall.c makes it. */
static bool make_table(struct fork *fork, const char *question, uint8_t *table)
{
    static int32_t tokens[LINE_BYTES + PRETOKEN_BYTES_MAX];
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    struct token_text text = {0};
    int from = token_turn_open(tokenizer, "user", tokens, LINE_BYTES);
    size_t count = from > 0 ? (size_t)from : 0;

    count +=
        token_feed(tokenizer, &text, (const uint8_t *)question, strlen(question), tokens + count);
    count += token_flush(tokenizer, &text, tokens + count);
    return fork_recall_table(fork, tokens, (uint32_t)count, (uint32_t)from, table) == 0;
}

static void find(struct search *search, struct search_job *job, enum search_by by)
{
    clock_t start;

    search->options.by = by;
    job->kind = SEARCH_FIND;
    if (search_submit(search, job))
        die("search", "full");
    start = clock();
    search_step(search);
    spent[by] += clock() - start;
    if (job->result)
        die("search", strerror(-job->result));
    for (uint32_t i = 0; i < job->hit_count && i < STREAM_RECALL_MAX; i++)
        printf("%s%llu", i ? " " : "", (unsigned long long)job->hits[i].chunk);
}

/* The best chunk's, on one line, and the entries of all. */
static void print_excerpt(struct search *search, struct search_job *job)
{
    clock_t start;

    job->kind = SEARCH_TEXTS;
    for (job->text_count = 0;
         job->text_count < job->hit_count && job->text_count < STREAM_RECALL_MAX; job->text_count++)
        job->text[job->text_count].chunk = job->hits[job->text_count].chunk;
    if (search_submit(search, job))
        die("search", "full");
    start = clock();
    search_step(search);
    spent_texts += clock() - start;
    for (uint32_t i = job->text[0].focus_from; job->text_count && i < job->text[0].focus_to; i++)
        putchar((uint8_t)job->text[0].text[i] < ' ' ? ' ' : job->text[0].text[i]);
    printf("\t%d\t", job->text_count && job->text[0].about);
    for (uint32_t i = 0; job->text_count && i < job->entries_bytes; i++)
        putchar(job->entries[i] == '\n' ? '\f' : job->entries[i] < ' ' ? ' ' : job->entries[i]);
}

static void answer(struct search *search, struct fork *fork, uint8_t *table, char *line)
{
    static struct search_job job;
    char *question = strchr(line, '\t');

    if (!question++)
        return;
    job.stream_id = atomic_load(&slot.stream_id);
    job.question = (const uint8_t *)question;
    job.question_bytes = (uint32_t)strlen(question);
    job.chunk_end = strtoull(line, NULL, 10);
    job.table = table && make_table(fork, question, table) ? table : NULL;
    find(search, &job, SEARCH_BY_WORDS);
    printf("\t");
    find(search, &job, SEARCH_BY_KEYS);
    printf("\t");
    find(search, &job, SEARCH_BY_BOTH);
    printf("\t");
    print_excerpt(search, &job);
    printf("\n");
}

static void print_cost(unsigned asked)
{
    double each = 1e3 / CLOCKS_PER_SEC / (asked ? asked : 1);

    fprintf(stderr,
            "%llu tokens, %u questions; ms of a core each: by words %.1f, by keys %.1f, by both "
            "%.1f, then the texts %.1f; SQLite's memory %.1f MB\n",
            (unsigned long long)atomic_load(&slot.tokens_acked), asked,
            each * (double)spent[SEARCH_BY_WORDS], each * (double)spent[SEARCH_BY_KEYS],
            each * (double)spent[SEARCH_BY_BOTH], each * (double)spent_texts,
            (double)sqlite3_memory_highwater(0) / 1e6);
}

int main(int argc, char **argv)
{
    struct engine_options options = {.threads = 1, .feature_mask = UINT32_MAX};
    struct stream_options want = {.dmc_ratio = 1};
    struct stream *stream;
    struct fork *fork;
    struct search *search;
    char error[ERROR_BYTES_MAX] = "", line[LINE_BYTES];
    size_t bytes;
    uint8_t *table;
    unsigned asked = 0;

    if (argc != 5) {
        fprintf(stderr, "usage: eval-find MODEL.gguf ADAPTER.gguf TEXT FOLDER < questions\n");
        return 2;
    }
    options.model_path = argv[1];
    options.adapter_path = argv[2];
    if (engine_open(&engine, &options, error, sizeof error))
        die(argv[2], error);
    bytes = stream_bytes(engine, &want, error, sizeof error);
    if (!bytes || stream_open(&stream, engine, &want, take(bytes), bytes))
        die("stream", error);
    bytes = fork_bytes(engine, &want);
    if (fork_open(&fork, stream, take(bytes), bytes))
        die("fork", "no memory");
    if (mkdir(argv[4], 0700) != 0 && errno != EEXIST)
        die(argv[4], strerror(errno));
    make_journal(argv[4], argv[3]);
    search = open_search(argv[4]);
    table = recall_table_bytes(engine) ? take(recall_table_bytes(engine)) : NULL;
    for (; fgets(line, sizeof line, stdin); asked++) {
        line[strcspn(line, "\n")] = '\0';
        for (char *c = line; *c; c++)
            *c = *c == '\f' ? '\n' : *c;
        answer(search, fork, table, line);
    }
    print_cost(asked);
    search_close(&search);
    return 0;
}
