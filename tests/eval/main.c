/* silt-eval: options, then each document in turn. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/eval/eval.h"

#define MODEL_DEFAULT   "build/models/smollm2-135m-instruct-q4_1.gguf"
#define ADAPTER_DEFAULT "stream/adapters/smollm2-135m-instruct.gguf"

static const char help[] =
    "silt-eval: how well a model predicts a text under one way of remembering what it has read\n"
    "\n"
    "    silt-eval --text FILE --policy POLICY [option…]\n"
    "\n"
    "FILE is JSON lines, one document a line with its text in \"text\" (.jsonl, .jsonl.zst), or "
    "one\n"
    "plain text. Each document is one stream; its first token is not scored.\n"
    "\n"
    "policies\n"
    "  full         all rows of the newest --context tokens, sliding with sinks kept; base "
    "weights\n"
    "  window       at every token as many rows as ccm would hold, the newest; base weights\n"
    "  window+lora  the same with the DMC LoRA\n"
    "  ccm          silt's memory: window, ring, summary\n"
    "  none         ccm with ring and summary hidden: what they are worth is the difference\n"
    "  no-summary   ccm with the summary hidden\n"
    "  ccm-swap     ccm with ring and summary of the next document of its kind (of the first, for\n"
    "               the last): what is content in them, and what any prompt would do\n"
    "  ccm-foreign  the same with a document half of its kind's away: of joined ones, the next is\n"
    "               often of the same source\n"
    "\n"
    "  --model GGUF       default: " MODEL_DEFAULT " (make model)\n"
    "  --adapter GGUF     default: " ADAPTER_DEFAULT " for the\n"
    "                     default model; `none`: none\n"
    "  --context N        full: tokens in view (default: what the model was trained for)\n"
    "  --kv-rows N        window: rows at every token, in place of ccm's\n"
    "  --ring N           segments attended (default: the adapter's)\n"
    "  --segments f16|int8  ccm: the ring's segments as siltd's option keeps them on disk; what "
    "int8\n"
    "                     costs is the difference (default: f16)\n"
    "  --dmc 1|2|4|8      merge KV entries by this ratio (default: 4 where the adapter can)\n"
    "  --tokens N         cut every document after N tokens\n"
    "  --documents N      the first N documents alone\n"
    "  --join             string all documents together, a blank line between them\n"
    "  --streams N        with --join: cut what is joined into N streams of --tokens tokens each\n"
    "  --ask              each document has a \"question\" and its \"answer\": asks behind it, "
    "from\n"
    "                     the memory alone (ccm, none), and scores the answer (full: in context)\n"
    "  --choose           each document has \"questions\", each with its \"choices\": how "
    "likely each of\n"
    "                     these is behind it, from the memory alone (ccm, none) or in context "
    "(full)\n"
    "  --block N          independent blocks of N tokens, the second half of each scored, as\n"
    "                     llama.cpp's perplexity tool does\n"
    "  --device cpu|cuda  --threads N\n"
    "  --device-weights bf16|file  with --device cuda: as siltd's option (default: bf16 where it "
    "fits)\n"
    "  --lanes N          documents computed side by side, at most 64 (default: all on a GPU)\n"
    "  --device-memory N  MB of the GPU's memory, so that several have room (default: what is "
    "free)\n"
    "  --features MASK    instruction sets the kernels may use, 0: the reference (default: all)\n"
    "  --exact            fp32 weights and activations, slow: what the int8 of ingest is measured "
    "by\n"
    "  --json             one JSON line a document, then one with \"total\": true\n"
    "\n"
    "Loss (nll) is in nats a token. Compare policies on the same documents:\n"
    "\n"
    "    for p in full window ccm ccm-swap; do silt-eval --text book.jsonl --tokens 65536 --policy "
    "$p; done\n";

static int usage(const char *what, const char *which)
{
    fprintf(stderr, "silt-eval: %s%s%s (--help explains)\n", what, which ? ": " : "",
            which ? which : "");
    return 2;
}

static bool number(const char *text, uint64_t most, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    *out = value;
    return !errno && end != text && !*end && text[0] != '-' && value <= most;
}

enum {
    OPTION_MODEL = 256,
    OPTION_ADAPTER,
    OPTION_TEXT,
    OPTION_POLICY,
    OPTION_CONTEXT,
    OPTION_KV_ROWS,
    OPTION_RING,
    OPTION_SEGMENTS,
    OPTION_DMC,
    OPTION_TOKENS,
    OPTION_DOCUMENTS,
    OPTION_JOIN,
    OPTION_STREAMS,
    OPTION_ASK,
    OPTION_CHOOSE,
    OPTION_EXACT,
    OPTION_BLOCK,
    OPTION_DEVICE,
    OPTION_DEVICE_WEIGHTS,
    OPTION_THREADS,
    OPTION_LANES,
    OPTION_DEVICE_MEMORY,
    OPTION_FEATURES,
    OPTION_JSON,
};

/* Options that take a number. False: not one of them, or out of range. */
static bool set_number(struct eval_options *o, int option, const char *text)
{
    uint64_t value;
    if (!number(text, option == OPTION_TOKENS ? UINT64_MAX : UINT32_MAX, &value))
        return false;
    /* 0 stands for "not given" in most, so that it cannot be asked for. */
    if (!value && option != OPTION_FEATURES && option != OPTION_THREADS)
        return false;
    switch (option) {
    case OPTION_CONTEXT:
        o->context = (uint32_t)value;
        return true;
    case OPTION_KV_ROWS:
        o->kv_rows = (uint32_t)value;
        return true;
    case OPTION_RING:
        o->stream.ring_segments = (uint32_t)value;
        return value <= STREAM_RING_MAX;
    case OPTION_DMC:
        o->stream.dmc_ratio = (uint32_t)value;
        return value <= STREAM_RATIO_MAX;
    case OPTION_TOKENS:
        o->tokens_max = value;
        return true;
    case OPTION_DOCUMENTS:
        o->documents_max = (uint32_t)value;
        return true;
    case OPTION_STREAMS:
        o->streams = (uint32_t)value;
        return true;
    case OPTION_BLOCK:
        o->block = (uint32_t)value;
        return value >= 4;
    case OPTION_THREADS:
        o->engine.threads = (uint32_t)value;
        return true;
    case OPTION_LANES:
        o->lanes = (uint32_t)value;
        return value <= EVAL_LANES_MAX;
    case OPTION_DEVICE_MEMORY:
        o->engine.device_bytes = (size_t)value << 20;
        return true;
    case OPTION_FEATURES:
        o->engine.feature_mask = (uint32_t)value;
        return true;
    default:
        return false;
    }
}

static bool set_word(struct eval_options *o, int option, const char *text)
{
    switch (option) {
    case OPTION_MODEL:
        o->engine.model_path = text;
        return true;
    case OPTION_ADAPTER:
        o->engine.adapter_path = text;
        return true;
    case OPTION_TEXT:
        o->text = text;
        return true;
    case OPTION_POLICY:
        for (o->policy = 0; o->policy < POLICY_COUNT; o->policy++)
            if (strcmp(text, policy_name(o->policy)) == 0)
                return true;
        return false;
    case OPTION_SEGMENTS:
        o->segments_int8 = strcmp(text, "int8") == 0;
        return o->segments_int8 || strcmp(text, "f16") == 0;
    case OPTION_DEVICE:
        o->engine.device = strcmp(text, "cuda") == 0 ? DEVICE_CUDA : DEVICE_CPU;
        return o->engine.device == DEVICE_CUDA || strcmp(text, "cpu") == 0;
    case OPTION_DEVICE_WEIGHTS:
        o->engine.device_weights = strcmp(text, "file") == 0 ? WEIGHTS_FILE : WEIGHTS_BF16;
        return o->engine.device_weights == WEIGHTS_FILE || strcmp(text, "bf16") == 0;
    default:
        return false;
    }
}

/* 0, or the exit status with the fault said; -1: help was asked for. */
static int parse(struct eval_options *o, int argc, char **argv)
{
    static const struct option options[] = {
        {"model", 1, NULL, OPTION_MODEL},
        {"adapter", 1, NULL, OPTION_ADAPTER},
        {"text", 1, NULL, OPTION_TEXT},
        {"policy", 1, NULL, OPTION_POLICY},
        {"context", 1, NULL, OPTION_CONTEXT},
        {"kv-rows", 1, NULL, OPTION_KV_ROWS},
        {"ring", 1, NULL, OPTION_RING},
        {"segments", 1, NULL, OPTION_SEGMENTS},
        {"dmc", 1, NULL, OPTION_DMC},
        {"tokens", 1, NULL, OPTION_TOKENS},
        {"documents", 1, NULL, OPTION_DOCUMENTS},
        {"join", 0, NULL, OPTION_JOIN},
        {"streams", 1, NULL, OPTION_STREAMS},
        {"ask", 0, NULL, OPTION_ASK},
        {"choose", 0, NULL, OPTION_CHOOSE},
        {"exact", 0, NULL, OPTION_EXACT},
        {"block", 1, NULL, OPTION_BLOCK},
        {"device", 1, NULL, OPTION_DEVICE},
        {"device-weights", 1, NULL, OPTION_DEVICE_WEIGHTS},
        {"threads", 1, NULL, OPTION_THREADS},
        {"lanes", 1, NULL, OPTION_LANES},
        {"device-memory", 1, NULL, OPTION_DEVICE_MEMORY},
        {"features", 1, NULL, OPTION_FEATURES},
        {"json", 0, NULL, OPTION_JSON},
        {"help", 0, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int found, index = 0;
    while ((found = getopt_long(argc, argv, "h", options, &index)) != -1) {
        if (found == 'h')
            return -1;
        if (found == '?')
            return 2; /* getopt has said it */
        if (found == OPTION_JOIN)
            o->join = true;
        else if (found == OPTION_ASK)
            o->ask = true;
        else if (found == OPTION_CHOOSE)
            o->choose = true;
        else if (found == OPTION_EXACT)
            o->engine.exact = true;
        else if (found == OPTION_JSON)
            o->json = true;
        else if (!set_word(o, found, optarg) && !set_number(o, found, optarg)) {
            fprintf(stderr, "silt-eval: --%s %s is not possible (--help explains)\n",
                    options[index].name, optarg);
            return 2;
        }
    }
    if (optind < argc)
        return usage("one word too many", argv[optind]);
    if (!o->text)
        return usage("--text FILE is missing", NULL);
    if (o->policy == POLICY_COUNT)
        return usage("--policy is missing", NULL);
    if ((o->ask || o->choose) &&
        (o->join || o->block || (o->ask && o->choose) ||
         (o->policy != POLICY_CCM && o->policy != POLICY_NONE && o->policy != POLICY_FULL)))
        return usage("--ask and --choose go with ccm, none and full, one of them, and not with "
                     "--join or --block",
                     NULL);
    if (o->streams && !(o->join && o->tokens_max))
        return usage("--streams needs --join and --tokens", NULL);
    return 0;
}

/* The default adapter belongs to the default model. */
static void choose_files(struct eval_options *o)
{
    const char *adapter = o->engine.adapter_path;
    if (adapter && strcmp(adapter, "none") == 0)
        o->engine.adapter_path = NULL;
    else if (!adapter && !o->engine.model_path && access(ADAPTER_DEFAULT, R_OK) == 0)
        o->engine.adapter_path = ADAPTER_DEFAULT;
    if (!o->engine.model_path)
        o->engine.model_path = MODEL_DEFAULT;
}

struct progress {
    const struct documents *documents;
    size_t document;
    uint64_t done, all; /* tokens */
    time_t shown;
};

static void show_progress(void *user, size_t tokens)
{
    struct progress *p = user;
    char text[128];
    time_t now = time(NULL);
    if (now == p->shown)
        return;
    p->shown = now;
    uint64_t done = p->done + tokens;
    snprintf(text, sizeof text, "document %zu of %zu, %llu of %llu tokens, %.0f %%",
             p->document + 1, p->documents->count, (unsigned long long)done,
             (unsigned long long)p->all, p->all ? 100.0 * (double)done / (double)p->all : 0.0);
    report_progress(text);
}

/* The document whose memory document i is shown: the next of its kind, or one half of them away. */
static const struct document *other_of(const struct documents *documents, size_t i, bool foreign)
{
    size_t kin = 0, place = 0;
    const char *kind = documents->list[i].kind;
    for (size_t j = 0; j < documents->count; j++) {
        if (strcmp(documents->list[j].kind, kind) != 0)
            continue;
        place = j == i ? kin : place;
        kin++;
    }
    size_t wanted = (place + (foreign && kin > 2 ? kin / 2 : 1)) % kin;
    for (size_t j = 0;; j++)
        if (strcmp(documents->list[j].kind, kind) == 0 && wanted-- == 0)
            return &documents->list[j];
}

/* Scores as many documents as there are lanes, from the i-th on; how many, or what was wrong. */
static int run_some(struct runner *runner, const struct eval_options *options,
                    const struct documents *documents, size_t i, struct score *total,
                    struct progress *progress)
{
    const struct document *some[EVAL_LANES_MAX], *others[EVAL_LANES_MAX];
    struct score score[EVAL_LANES_MAX];
    uint32_t count = runner_lanes(runner);
    count = documents->count - i < count ? (uint32_t)(documents->count - i) : count;
    for (uint32_t j = 0; j < count; j++) {
        some[j] = &documents->list[i + j];
        others[j] = other_of(documents, i + j, options->policy == POLICY_CCM_FOREIGN);
    }
    int result = runner_score(runner, some, others, count, score, show_progress, progress);
    if (result) {
        report_progress(NULL);
        fprintf(stderr, "silt-eval: %s: %s\n", some[0]->id,
                result == -ERANGE ? "the loss is not a number" : strerror(-result));
        return result;
    }
    for (uint32_t j = 0; j < count; j++) {
        progress->done += some[j]->count;
        report_line(options, some[j], &score[j]);
        score_add(total, &score[j]);
    }
    return (int)count;
}

/* Documents too short to have a score are left out. */
static void leave_short(const struct eval_options *options, struct documents *documents)
{
    size_t kept = 0, least = options->block ? options->block : 2;
    for (size_t i = 0; i < documents->count; i++) {
        struct document document = documents->list[i];
        if (document.count < least) {
            fprintf(stderr, "silt-eval: %s: left out, %zu tokens are fewer than %zu\n", document.id,
                    document.count, least);
            document_free(&document);
            continue;
        }
        documents->list[kept++] = document;
    }
    documents->count = kept;
}

static int run_documents(struct runner *runner, const struct eval_options *options,
                         const struct documents *documents)
{
    struct score total = {0};
    struct progress progress = {.documents = documents};
    for (size_t i = 0; i < documents->count; i++)
        progress.all += documents->list[i].count;
    for (size_t i = 0; i < documents->count;) {
        progress.document = i;
        int done = run_some(runner, options, documents, i, &total, &progress);
        if (done < 0)
            return 1;
        i += (size_t)done;
    }
    report_line(options, NULL, &total);
    return 0;
}

/* Documents from the i-th on that are asked at once: as many as there are lanes, and all that ask
 * them again. */
static uint32_t asked_at_once(const struct documents *documents, size_t i, uint32_t lanes)
{
    uint32_t count = 0;
    for (uint32_t read = 0; i + count < documents->count; count++) {
        read += !documents->list[i + count].again;
        if (read > lanes)
            break;
    }
    return count;
}

static int run_questions(struct engine *engine, const struct eval_options *options,
                         const struct documents *documents)
{
    struct answer *answer = calloc(documents->count, sizeof *answer), total = {0};
    uint32_t lanes = options->lanes ? options->lanes : 1, count;
    int status = answer ? 0 : 1;
    for (size_t i = 0; i < documents->count && !status; i += count) {
        const struct document *document = &documents->list[i];
        count = asked_at_once(documents, i, lanes);
        int result = ask_documents(engine, options, document, count, answer);
        if (result) {
            fprintf(stderr, "silt-eval: %s: %s\n", document->id, strerror(-result));
            status = 1;
        }
        for (uint32_t j = 0; j < count && !status; j++) {
            report_answer(options, &document[j], &answer[j], 1);
            total.nll += answer[j].nll;
            total.exact += answer[j].exact;
            total.f1 += answer[j].f1;
        }
    }
    if (!status)
        report_answer(options, NULL, &total, documents->count);
    free(answer);
    return status;
}

/* As many documents as there are lanes from the i-th on: how many, or what was wrong. */
static int choose_some(struct engine *engine, const struct eval_options *options,
                       const struct document *documents, size_t left)
{
    struct chosen *out[EVAL_LANES_MAX] = {0};
    uint32_t lanes = options->lanes ? options->lanes : 1;
    uint32_t count = left < lanes ? (uint32_t)left : lanes;
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        out[i] = calloc(documents[i].choice_question_count, sizeof **out);
        result = out[i] ? result : -ENOMEM;
    }
    if (!result)
        result = choose_documents(engine, options, documents, count, out);
    if (result)
        fprintf(stderr, "silt-eval: %s: %s\n", documents->id, strerror(-result));
    for (uint32_t i = 0; i < count; i++) {
        if (!result)
            report_chosen(options, &documents[i], out[i]);
        free(out[i]);
    }
    return result ? result : (int)count;
}

static int run_choices(struct engine *engine, const struct eval_options *options,
                       const struct documents *documents)
{
    for (size_t i = 0; i < documents->count;) {
        int done = choose_some(engine, options, &documents->list[i], documents->count - i);
        if (done < 0)
            return 1;
        i += (size_t)done;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct eval_options options = {.engine = {.device = DEVICE_CPU, .feature_mask = UINT32_MAX},
                                   .policy = POLICY_COUNT};
    struct engine *engine = NULL;
    struct engine_info info;
    struct documents documents = {0};
    struct runner *runner = NULL;
    char error[1024] = "";
    int status = parse(&options, argc, argv);
    if (status == -1) {
        fputs(help, stdout);
        return 0;
    }
    if (status)
        return status;
    choose_files(&options);
    status = 1;
    if (engine_open(&engine, &options.engine, error, sizeof error) ||
        documents_load(&documents, &options, engine_tokenizer(engine), error, sizeof error))
        goto end;
    if (options.engine.device == DEVICE_CUDA && !options.lanes)
        options.lanes = EVAL_LANES_MAX;
    if ((options.policy == POLICY_CCM_SWAP || options.policy == POLICY_CCM_FOREIGN) &&
        documents.count < 2) {
        snprintf(error, sizeof error, "%s needs a second document to take the memory from",
                 policy_name(options.policy));
        goto end;
    }
    if (options.ask || options.choose) {
        status = options.ask ? run_questions(engine, &options, &documents)
                             : run_choices(engine, &options, &documents);
        goto end;
    }
    leave_short(&options, &documents);
    if (runner_open(&runner, engine, &options, documents.count, error, sizeof error))
        goto end;
    engine_info(engine, &info);
    report_begin(&options, &info, &documents);
    status = run_documents(runner, &options, &documents);
end:
    if (error[0])
        fprintf(stderr, "silt-eval: %s\n", error);
    runner_close(&runner);
    documents_free(&documents);
    engine_close(&engine);
    return status;
}
