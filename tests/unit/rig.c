/* Sizes are siltd's own; memory is the C library's, so that a sanitizer sees every overrun. */
#include "tests/unit/rig.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/layout.h"
#include "tests/unit/tiny_model.h"

enum { LOOP_BYTES = 8 << 20 };

char rig_own_folder[64];
static struct engine *engine;
static char engine_folder[64];

static void drop_engine(void)
{
    engine_close(&engine);
    rig_folder_drop(engine_folder);
}

static void die(const char *what)
{
    fprintf(stderr, "rig: %s\n", what);
    abort();
}

void rig_folder(char *out, size_t out_bytes)
{
    const char *under = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";

    if ((size_t)snprintf(out, out_bytes, "%s/silt-rig-XXXXXX", under) >= out_bytes || !mkdtemp(out))
        die("no folder for temporary files");
}

void rig_folder_drop(const char *folder)
{
    DIR *list = opendir(folder);
    struct dirent *entry;

    while (list && (entry = readdir(list))) {
        char path[512];
        struct stat status;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (lstat(path, &status) == 0 && S_ISDIR(status.st_mode))
            rig_folder_drop(path);
        else
            unlink(path);
    }
    if (list)
        closedir(list);
    rmdir(folder);
}

int rig_folder_set_up(void **state)
{
    (void)state;
    rig_folder(rig_own_folder, sizeof rig_own_folder);
    return 0;
}

int rig_folder_tear_down(void **state)
{
    (void)state;
    rig_folder_drop(rig_own_folder);
    return 0;
}

struct engine *rig_engine(void)
{
    struct tiny_options tiny = TINY_DEFAULTS;
    struct engine_options options = {
        .device = DEVICE_CPU, .threads = 1, .feature_mask = UINT32_MAX};
    char model[96], adapter[96], error[400];

    if (engine)
        return engine;
    rig_folder(engine_folder, sizeof engine_folder);
    snprintf(model, sizeof model, "%s/tiny.gguf", engine_folder);
    snprintf(adapter, sizeof adapter, "%s/adapter.gguf", engine_folder);
    if (tiny_model_write(model, &tiny) || tiny_adapter_write(adapter, model, &tiny))
        die("no tiny model");
    options.model_path = model;
    options.adapter_path = adapter;
    if (engine_open(&engine, &options, error, sizeof error))
        die(error);
    atexit(drop_engine);
    return engine;
}

/* Zeros at a multiple of 64. By calloc: queues of megabytes of which a test uses little cost
 * little. */
static void *take(struct rig *rig, size_t bytes)
{
    uint8_t *memory = calloc(1, bytes + 48);

    if (!memory || rig->memory_count == sizeof rig->memory / sizeof *rig->memory)
        die("no memory");
    rig->memory[rig->memory_count++] = memory;
    return memory + (64 - (uintptr_t)memory % 64) % 64;
}

static void make_slots(struct rig *rig, const struct engine_info *info)
{
    uint32_t heads = info->layer_count * info->kv_head_count;
    uint32_t capacity = layout_ring_tokens(rig->options.lag_tokens_max);
    int32_t *tokens = take(rig, (size_t)rig->options.slots * capacity * sizeof *tokens);
    uint64_t *entries = take(rig, (size_t)rig->options.slots * heads * sizeof *entries);

    for (uint32_t i = 0; i < rig->options.slots; i++) {
        rig->slots[i].index = i;
        rig->slots[i].name = "";
        rig->slots[i].ring.tokens = tokens + (size_t)i * capacity;
        rig->slots[i].ring.capacity = capacity;
        rig->slots[i].stat.entries = entries + (size_t)i * heads;
        pthread_mutex_init(&rig->slots[i].stat_lock, NULL);
    }
}

static void make_parts(struct rig *rig, const struct engine_info *info)
{
    uint32_t lag = rig->options.lag_tokens_max;

    rig->ingest = (struct ingest){.journal = rig->journal,
                                  .tokenizer = engine_tokenizer(rig->engine),
                                  .slots = rig->slots,
                                  .slot_count = rig->options.slots,
                                  .lag_tokens_max = lag,
                                  .chunk_tokens = info->chunk_tokens,
                                  .inbox = &rig->journal_queue,
                                  .loop = &rig->loop_queue,
                                  .bell = &rig->bell,
                                  .compute_bell = &rig->bell,
                                  .stopping = &rig->stopping,
                                  .disk_failed = &rig->disk_failed,
                                  .disk_bytes = &rig->disk_bytes,
                                  .scratch_max = ingest_scratch_tokens(lag)};
    rig->ingest.scratch = take(rig, rig->ingest.scratch_max * sizeof(int32_t));
    rig->ingest.places = take(rig, (ITEMS_MAX + 1) * sizeof(struct item_place));
    rig->ingest.results = take(rig, BATCH_MAX * sizeof(struct ingest_result));
    rig->sched = (struct sched){.engine = rig->engine,
                                .tokenizer = engine_tokenizer(rig->engine),
                                .info = *info,
                                .slots = rig->slots,
                                .asks = rig->asks,
                                .slot_count = rig->options.slots,
                                .ask_count = rig->options.asks,
                                .lag_tokens_max = lag,
                                .inbox = &rig->compute_queue,
                                .loop = &rig->loop_queue,
                                .bell = &rig->bell,
                                .journal_bell = &rig->bell,
                                .stopping = &rig->stopping,
                                .tokens_computed = &rig->tokens_computed};
    rig->sched.candidates = take(rig, info->vocab_count * sizeof(struct sample_candidate));
    rig->sched.entries = take(rig, HEADS_MAX * sizeof(uint64_t));
}

static void make_keeper(struct rig *rig, const struct engine_info *info)
{
    struct stream_options options = {.dmc_ratio = 1};
    char error[200];

    if (!rig->options.checkpoints)
        return;
    pthread_mutex_init(&rig->keeper.lock, NULL);
    rig->keeper.bell = rig->bell;
    rig->keeper.compute_bell = &rig->bell;
    rig->keeper.stopping = &rig->stopping;
    rig->keeper.buffer_bytes = stream_bytes(rig->engine, &options, error, sizeof error);
    rig->keeper.buffer = take(rig, rig->keeper.buffer_bytes);
    rig->keeper.restore = take(rig, rig->keeper.buffer_bytes);
    rig->keeper.at.files = rig->options.files ? rig->options.files : &files_real;
    rig->keeper.at.model_fingerprint = info->model_fingerprint;
    rig->keeper.at.adapter_fingerprint = info->adapter_fingerprint;
    snprintf(rig->keeper.at.folder, sizeof rig->keeper.at.folder, "%s/checkpoints", rig->folder);
    rig->ingest.keeper = rig->sched.keeper = &rig->keeper;
}

static void make_asks(struct rig *rig)
{
    struct stream_options options = {.dmc_ratio = 1};
    size_t bytes = (fork_bytes(rig->engine, &options) + 63) / 64 * 64;
    uint8_t *memory = take(rig, rig->options.asks * bytes + 64);

    rig->asks = take(rig, (rig->options.asks + 1) * sizeof *rig->asks);
    for (uint32_t i = 0; i < rig->options.asks; i++) {
        rig->asks[i].index = i;
        rig->asks[i].memory = memory + i * bytes;
        rig->asks[i].memory_bytes = bytes;
    }
}

int rig_open(struct rig *rig, const char *folder, const struct rig_options *options)
{
    struct engine_info info;
    struct journal_options journal = {.folder = folder, .model_name = "tiny"};
    char error[ERROR_BYTES_MAX];
    int result;

    memset(rig, 0, sizeof *rig);
    rig->options = *options;
    snprintf(rig->folder, sizeof rig->folder, "%s", folder);
    rig->engine = rig_engine();
    engine_info(rig->engine, &info);
    journal.model_fingerprint = info.model_fingerprint;
    journal.adapter_fingerprint = info.adapter_fingerprint;
    journal.kernels_name = info.kernels_name;
    journal.kernels_revision = info.kernels_revision;
    result = journal_open(&rig->journal, &journal, error, sizeof error);
    if (result)
        return result;
    if (doorbell_open(&rig->bell))
        die("no eventfd");
    queue_init(&rig->journal_queue, take(rig, JOURNAL_QUEUE_BYTES), JOURNAL_QUEUE_BYTES,
               &rig->bell);
    queue_init(&rig->compute_queue, take(rig, COMPUTE_QUEUE_BYTES), COMPUTE_QUEUE_BYTES,
               &rig->bell);
    queue_init(&rig->loop_queue, take(rig, LOOP_BYTES), LOOP_BYTES, &rig->bell);
    rig->request = take(rig, REQUEST_BYTES_MAX);
    make_slots(rig, &info);
    make_asks(rig);
    make_parts(rig, &info);
    make_keeper(rig, &info);
    return 0;
}

void rig_close(struct rig *rig)
{
    for (uint32_t i = 0; i < rig->options.asks; i++)
        fork_close(&rig->asks[i].fork);
    for (uint32_t i = 0; i < rig->options.slots; i++) {
        stream_close(&rig->slots[i].stream);
        free(rig->slots[i].memory);
    }
    journal_close(&rig->journal);
    doorbell_close(&rig->bell);
    for (uint32_t i = 0; i < rig->memory_count; i++)
        free(rig->memory[i]);
    memset(rig, 0, sizeof *rig);
}

void rig_order(struct rig *rig, enum sched_kind kind, uint32_t slot, uint64_t stream_id,
               uint64_t tokens_max)
{
    struct sched_request request = {kind, slot, stream_id, tokens_max};
    struct queue_part part = {&request, sizeof request};

    if (queue_push(&rig->compute_queue, &part, 1))
        die("the compute queue is full");
}

static struct ingest_request *begin(struct rig *rig, enum ingest_kind kind, uint32_t slot,
                                    const char *producer)
{
    struct ingest_request *request = (struct ingest_request *)(void *)rig->request;

    memset(request, 0, sizeof *request);
    request->kind = kind;
    request->slot = slot;
    if (slot != SLOT_NONE)
        request->stream_id = atomic_load(&rig->slots[slot].stream_id);
    snprintf(request->producer, sizeof request->producer, "%s", producer);
    rig->request_bytes = sizeof *request;
    return request;
}

int rig_push(struct rig *rig)
{
    struct queue_part part = {rig->request, rig->request_bytes};

    return queue_push(&rig->journal_queue, &part, 1);
}

int rig_stream(struct rig *rig, uint32_t slot_index, const char *name, uint32_t ratio)
{
    struct slot *slot = &rig->slots[slot_index];
    struct stream_options options = {.dmc_ratio = ratio};
    struct journal_stream stream = {0};
    struct ingest_request *request;
    char error[200];
    bool known = journal_stream_find(rig->journal, name, &stream) == 0;

    slot->options = options;
    slot->memory_bytes = stream_bytes(rig->engine, &options, error, sizeof error);
    free(slot->memory);
    slot->memory = aligned_alloc(64, (slot->memory_bytes + 63) / 64 * 64);
    slot->used = true;
    atomic_store(&slot->ready, false);
    atomic_store(&slot->tokens_loaded, stream.tokens);
    atomic_store(&slot->stream_id, stream.id);
    atomic_store(&slot->ring.head, 0);
    atomic_store(&slot->ring.tail, 0);
    slot->stat.failed = false;
    request = begin(rig, known ? INGEST_LOAD : INGEST_CREATE, slot_index, "");
    request->stream_id = stream.id;
    snprintf(request->name, sizeof request->name, "%s", name);
    rig_order(rig, SCHED_OPEN, slot_index, stream.id, stream.tokens);
    return rig_push(rig);
}

void rig_feed_begin(struct rig *rig, uint32_t slot, const char *producer, uint64_t sequence)
{
    begin(rig, INGEST_FEED, slot, producer)->sequence = sequence;
}

void rig_item(struct rig *rig, enum item_kind kind, uint32_t detail, const void *bytes,
              size_t bytes_count)
{
    struct ingest_item head = {(uint32_t)kind, detail, (uint32_t)bytes_count, 0};
    uint8_t *at = rig->request + rig->request_bytes;

    memcpy(at, &head, sizeof head);
    if (bytes_count)
        memcpy(at + sizeof head, bytes, bytes_count);
    rig->request_bytes += sizeof head + (bytes_count + 7) / 8 * 8;
    ((struct ingest_request *)(void *)rig->request)->item_count++;
}

int rig_text(struct rig *rig, uint32_t slot, const char *producer, uint64_t sequence,
             const void *bytes, size_t bytes_count)
{
    rig_feed_begin(rig, slot, producer, sequence);
    rig_item(rig, ITEM_TEXT, 0, bytes, bytes_count);
    return rig_push(rig);
}

int rig_request(struct rig *rig, enum ingest_kind kind, uint32_t slot, const char *producer)
{
    begin(rig, kind, slot, producer);
    return rig_push(rig);
}

void rig_ask(struct rig *rig, uint32_t index, uint32_t slot, const char *question, uint32_t tokens)
{
    struct ask *ask = &rig->asks[index];

    ask->slot = slot;
    ask->wait = ask->keep = false;
    ask->tokens_max = tokens;
    ask->sampling = (struct sample_options){.temperature = 0, .top_p = 1, .repeat_penalty = 1};
    memset(&ask->stop, 0, sizeof ask->stop);
    ask->wait_for = ask->acked = atomic_load(&rig->slots[slot].tokens_acked);
    ask->question_bytes = (uint32_t)strlen(question);
    memcpy(ask->question, question, ask->question_bytes);
    ask->system_bytes = 0;
    atomic_store(&ask->cancelled, false);
    rig->ended[index] = false;
    rig->text_bytes[index] = 0;
    rig_order(rig, SCHED_ASK, index, 0, 0);
}

static void take_compute_news(struct rig *rig, const struct sched_message *message)
{
    uint32_t at = message->index;

    if (message->news == SCHED_OPENED)
        rig->opened += message->result == 0;
    else if (message->news == SCHED_CLOSED)
        rig->closed++;
    else if (message->news == SCHED_CREDIT)
        rig->credits++;
    else if (message->news == SCHED_END) {
        rig->ends[at] = message->end;
        rig->ended[at] = true;
    } else if (rig->text_bytes[at] + message->bytes_count <= RIG_TEXT_MAX) {
        memcpy(rig->text[at] + rig->text_bytes[at], message + 1, message->bytes_count);
        rig->text_bytes[at] += message->bytes_count;
    }
}

static void take_news(struct rig *rig)
{
    const uint64_t *news;
    size_t bytes_count;

    while ((news = queue_front(&rig->loop_queue, &bytes_count))) {
        if (*news == LOOP_SCHED)
            take_compute_news(rig, (const struct sched_message *)(news + 1));
        else if (rig->result_count < RIG_RESULTS_MAX) {
            rig->batches[rig->result_count] = rig->batch;
            rig->results[rig->result_count++] = *(const struct ingest_result *)(news + 1);
        }
        queue_pop(&rig->loop_queue);
    }
}

bool rig_ingest(struct rig *rig)
{
    bool more = ingest_step(&rig->ingest);

    rig->batch++;
    take_news(rig);
    return more;
}

bool rig_compute(struct rig *rig)
{
    bool worked = sched_step(&rig->sched);

    take_news(rig);
    if (rig->options.checkpoints)
        keeper_step(&rig->keeper);
    return worked;
}

void rig_settle(struct rig *rig)
{
    size_t bytes_count;

    for (int idle = 0; idle < 3;) {
        bool moved = rig_ingest(rig);

        moved |= rig_compute(rig);
        moved |= queue_front(&rig->journal_queue, &bytes_count) != NULL;
        idle = moved ? 0 : idle + 1;
    }
}

void rig_forget(struct rig *rig)
{
    rig->result_count = 0;
}

const struct ingest_result *rig_last(const struct rig *rig, enum ingest_kind kind)
{
    for (uint32_t i = rig->result_count; i-- > 0;)
        if (rig->results[i].kind == kind)
            return &rig->results[i];
    return NULL;
}

uint64_t rig_hash(struct rig *rig, uint32_t slot)
{
    size_t bytes;
    const void *state = stream_state(rig->slots[slot].stream, &bytes);

    return XXH3_64bits(state, bytes);
}
