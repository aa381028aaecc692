/* Documents out of a file: JSON lines with a "text", plain or packed with zstd, or plain text. */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "tests/eval/eval.h"

struct buffer {
    uint8_t *data;
    size_t bytes, room;
};

static int fail(int result, char *error, size_t error_bytes, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static int fail(int result, char *error, size_t error_bytes, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, error_bytes, format, arguments);
    va_end(arguments);
    return result;
}

static int buffer_reserve(struct buffer *b, size_t more)
{
    if (b->room - b->bytes >= more)
        return 0;
    size_t room = 2 * (b->bytes + more);
    uint8_t *data = realloc(b->data, room);
    if (!data)
        return -ENOMEM;
    b->data = data;
    b->room = room;
    return 0;
}

static bool ends_in(const char *text, const char *end)
{
    size_t bytes = strlen(text), end_bytes = strlen(end);
    return bytes >= end_bytes && strcmp(text + bytes - end_bytes, end) == 0;
}

static int read_plain(struct buffer *out, FILE *file)
{
    for (;;) {
        if (buffer_reserve(out, 1 << 16))
            return -ENOMEM;
        size_t count = fread(out->data + out->bytes, 1, out->room - out->bytes, file);
        out->bytes += count;
        if (!count)
            return ferror(file) ? -EIO : 0;
    }
}

static int read_packed(struct buffer *out, FILE *file)
{
    uint8_t packed[1 << 16];
    ZSTD_DStream *stream = ZSTD_createDStream();
    size_t count, left = 0;
    int result = stream ? 0 : -ENOMEM;
    while (!result && (count = fread(packed, 1, sizeof packed, file)) > 0) {
        ZSTD_inBuffer in = {packed, count, 0};
        while (!result && in.pos < in.size) {
            result = buffer_reserve(out, 1 << 17);
            if (result)
                break;
            ZSTD_outBuffer to = {out->data, out->room, out->bytes};
            left = ZSTD_decompressStream(stream, &to, &in);
            out->bytes = to.pos;
            if (ZSTD_isError(left))
                result = -EBADMSG;
        }
    }
    if (!result && (left || ferror(file)))
        result = -EBADMSG;
    ZSTD_freeDStream(stream);
    return result;
}

static int read_file(struct buffer *out, const char *path, char *error, size_t error_bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return fail(-errno, error, error_bytes, "%s: %s: name a text or JSON-lines file", path,
                    strerror(errno));
    int result = ends_in(path, ".zst") ? read_packed(out, file) : read_plain(out, file);
    fclose(file);
    if (result)
        return fail(result, error, error_bytes, "%s: cannot be read whole: %s", path,
                    result == -EBADMSG ? "it is not sound zstd data" : strerror(-result));
    return 0;
}

/* The document under construction; with --join the only one. */
struct builder {
    struct documents *out;
    const struct eval_options *options;
    const struct tokenizer *tokenizer;
    struct token_text text;
    struct buffer tokens; /* int32_t */
};

static int build_text(struct builder *b, const uint8_t *text, size_t bytes)
{
    size_t most = token_count_max(&b->text, bytes) * sizeof(int32_t);
    if (buffer_reserve(&b->tokens, most))
        return -ENOMEM;
    int32_t *to = (int32_t *)(void *)(b->tokens.data + b->tokens.bytes);
    b->tokens.bytes += token_feed(b->tokenizer, &b->text, text, bytes, to) * sizeof *to;
    b->out->bytes += bytes;
    return 0;
}

/* Tokens as they are; the engine refuses those that are not of its vocabulary. */
static int build_tokens(struct builder *b, const json_t *tokens)
{
    size_t count = json_array_size(tokens);
    if (buffer_reserve(&b->tokens, count * sizeof(int32_t)))
        return -ENOMEM;
    int32_t *to = (int32_t *)(void *)(b->tokens.data + b->tokens.bytes);
    for (size_t i = 0; i < count; i++) {
        json_int_t token = json_integer_value(json_array_get(tokens, i));
        to[i] = token < 0 || token > INT32_MAX ? -1 : (int32_t)token;
    }
    b->tokens.bytes += count * sizeof *to;
    return 0;
}

static int build_finish(struct builder *b, const char *id, const char *kind)
{
    if (buffer_reserve(&b->tokens, token_count_max(&b->text, 1) * sizeof(int32_t)))
        return -ENOMEM;
    int32_t *to = (int32_t *)(void *)(b->tokens.data + b->tokens.bytes);
    b->tokens.bytes += token_flush(b->tokenizer, &b->text, to) * sizeof *to;
    uint8_t *fitting = realloc(b->tokens.data, b->tokens.bytes + 1);
    b->tokens.data = fitting ? fitting : b->tokens.data;
    struct document *list = realloc(b->out->list, (b->out->count + 1) * sizeof *list);
    if (!list)
        return -ENOMEM;
    b->out->list = list;
    struct document *document = &list[b->out->count++];
    *document = (struct document){.id = strdup(id),
                                  .kind = strdup(kind),
                                  .tokens = (int32_t *)(void *)b->tokens.data,
                                  .count = b->tokens.bytes / sizeof(int32_t)};
    if (b->options->tokens_max && !b->options->streams && document->count > b->options->tokens_max)
        document->count = (size_t)b->options->tokens_max;
    b->tokens = (struct buffer){0};
    return document->id && document->kind ? 0 : -ENOMEM;
}

static bool build_enough(const struct builder *b, uint32_t documents)
{
    const struct eval_options *o = b->options;
    uint64_t most = o->tokens_max * (o->streams ? o->streams : 1);
    return (o->documents_max && documents >= o->documents_max) ||
           (o->join && most && b->tokens.bytes / sizeof(int32_t) >= most);
}

/* The one joined document becomes streams of tokens_max each, as many as it has tokens for. */
static int build_streams(struct builder *b)
{
    struct document whole = b->out->list[0];
    uint64_t size = b->options->tokens_max, count = whole.count / size;
    struct document *list;
    if (count > b->options->streams)
        count = b->options->streams;
    if (!count || !(list = calloc(count, sizeof *list)))
        return count ? -ENOMEM : 0; /* too short to cut: one stream */
    int result = 0;
    for (uint64_t i = 0; i < count; i++) {
        char id[32];
        snprintf(id, sizeof id, "stream %llu", (unsigned long long)i + 1);
        list[i] = (struct document){.id = strdup(id),
                                    .kind = strdup(whole.kind),
                                    .tokens = malloc(size * sizeof(int32_t)),
                                    .count = size};
        if (!list[i].id || !list[i].kind || !list[i].tokens)
            result = -ENOMEM;
        else
            memcpy(list[i].tokens, whole.tokens + i * size, size * sizeof(int32_t));
    }
    documents_free(b->out);
    b->out->list = list;
    b->out->count = count;
    return result;
}

static int build_recall(const json_t *object, uint64_t **out, uint32_t *out_count)
{
    const json_t *recall = json_object_get(object, "recall");
    size_t count = json_array_size(recall);
    *out = count ? calloc(count, sizeof **out) : NULL;
    *out_count = *out ? (uint32_t)count : 0;
    for (uint32_t i = 0; i < *out_count; i++)
        (*out)[i] = (uint64_t)json_integer_value(json_array_get(recall, i));
    return !count || *out ? 0 : -ENOMEM;
}

static int build_choice_question(struct choice_question *q, const json_t *object)
{
    const char *text = json_string_value(json_object_get(object, "question"));
    const char *before = json_string_value(json_object_get(object, "before"));
    const json_t *choices = json_object_get(object, "choices");
    size_t count = json_array_size(choices);
    if (!text || !count || count > EVAL_CHOICES_MAX)
        return -EBADMSG;
    q->raw = json_is_true(json_object_get(object, "raw"));
    q->text = strdup(text);
    q->before = before ? strdup(before) : NULL;
    q->choices = calloc(count, sizeof *q->choices);
    if (!q->text || !q->choices || (before && !q->before))
        return -ENOMEM;
    for (q->choice_count = 0; q->choice_count < count; q->choice_count++) {
        const char *choice = json_string_value(json_array_get(choices, q->choice_count));
        if (!choice)
            return -EBADMSG;
        q->choices[q->choice_count] = strdup(choice);
        if (!q->choices[q->choice_count])
            return -ENOMEM;
    }
    return build_recall(object, &q->recall, &q->recall_count);
}

static int build_choice_questions(struct document *document, const json_t *questions)
{
    size_t count = json_array_size(questions);
    int result = 0;
    document->choice_questions = calloc(count, sizeof *document->choice_questions);
    if (!document->choice_questions)
        return -ENOMEM;
    document->choice_question_count = (uint32_t)count;
    for (size_t i = 0; i < count && !result; i++)
        result =
            build_choice_question(&document->choice_questions[i], json_array_get(questions, i));
    return result;
}

static int build_line(struct builder *b, const uint8_t *line, size_t bytes, uint32_t number)
{
    char name[32];
    json_t *object = json_loadb((const char *)line, bytes, 0, NULL);
    json_t *text = json_object_get(object, "text"), *tokens = json_object_get(object, "tokens");
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *kind = json_string_value(json_object_get(object, "kind"));
    json_t *question = json_object_get(object, "question");
    json_t *answer = json_object_get(object, "answer");
    json_t *questions = json_object_get(object, "questions");
    int result = -EBADMSG;
    /* Where full attention is asked, each question has a context of its own. */
    bool again = b->options->ask && b->options->policy != POLICY_FULL && b->out->count && !text &&
                 !tokens && json_is_true(json_object_get(object, "again"));
    if ((!json_is_string(text) && !again && (!json_is_array(tokens) || b->options->join)) ||
        (b->options->ask && (!json_is_string(question) || !json_is_string(answer))) ||
        (b->options->choose && !json_array_size(questions)))
        goto end;
    snprintf(name, sizeof name, "line %u", number);
    result = 0;
    if (b->options->join && number > 1)
        result = build_text(b, (const uint8_t *)"\n\n", 2);
    if (!result && json_is_string(text))
        result = build_text(b, (const uint8_t *)json_string_value(text), json_string_length(text));
    else if (!result)
        result = build_tokens(b, tokens);
    if (!result && !b->options->join)
        result = build_finish(b, id ? id : name, kind ? kind : "");
    if (!result && b->options->ask) {
        struct document *document = &b->out->list[b->out->count - 1];
        document->question = strdup(json_string_value(question));
        document->answer = strdup(json_string_value(answer));
        document->again = again;
        const char *before = json_string_value(json_object_get(object, "before"));
        document->before = before ? strdup(before) : NULL;
        result = document->question && document->answer
                     ? build_recall(object, &document->recall, &document->recall_count)
                     : -ENOMEM;
    }
    if (!result && b->options->choose)
        result = build_choice_questions(&b->out->list[b->out->count - 1], questions);
end:
    json_decref(object);
    return result;
}

static int build_lines(struct builder *b, const struct buffer *file, const char *path, char *error,
                       size_t error_bytes)
{
    uint32_t number = 0, documents = 0;
    for (size_t at = 0; at < file->bytes && !build_enough(b, documents);) {
        const uint8_t *line = file->data + at, *end = memchr(line, '\n', file->bytes - at);
        size_t bytes = end ? (size_t)(end - line) : file->bytes - at;
        at += bytes + 1;
        number++;
        if (bytes == 0)
            continue;
        int result = build_line(b, line, bytes, number);
        if (result == -EBADMSG)
            return fail(result, error, error_bytes,
                        "%s: line %u is no JSON object with a string \"text\"%s: give one document "
                        "a line",
                        path, number,
                        b->options->ask ? ", a \"question\" and an \"answer\""
                        : b->options->choose
                            ? ", and \"questions\" with at most 16 \"choices\" each"
                            : "");
        if (result)
            return fail(result, error, error_bytes, "not enough memory for the tokens");
        documents++;
    }
    return 0;
}

int documents_load(struct documents *out, const struct eval_options *options,
                   const struct tokenizer *tokenizer, char *error, size_t error_bytes)
{
    struct buffer file = {0};
    struct builder b = {.out = out, .options = options, .tokenizer = tokenizer};
    const char *path = options->text;
    *out = (struct documents){0};
    int result = read_file(&file, path, error, error_bytes);
    if (result)
        goto end;
    bool lines = ends_in(path, ".jsonl") || ends_in(path, ".jsonl.zst");
    if (lines)
        result = build_lines(&b, &file, path, error, error_bytes);
    else if ((result = build_text(&b, file.data, file.bytes)))
        fail(result, error, error_bytes, "not enough memory for the tokens");
    if (!result && (!lines || options->join) && (result = build_finish(&b, path, "")))
        fail(result, error, error_bytes, "not enough memory for the tokens");
    if (!result && options->streams && out->count && (result = build_streams(&b)))
        fail(result, error, error_bytes, "not enough memory for the streams");
    if (!result && !out->count)
        result = fail(-EBADMSG, error, error_bytes, "%s: there is no document in it", path);
end:
    free(file.data);
    free(b.tokens.data);
    if (result)
        documents_free(out);
    return result;
}

static void choice_question_free(struct choice_question *question)
{
    for (uint32_t i = 0; i < question->choice_count; i++)
        free(question->choices[i]);
    free(question->choices);
    free(question->text);
    free(question->before);
    free(question->recall);
}

void document_free(struct document *document)
{
    for (uint32_t i = 0; i < document->choice_question_count; i++)
        choice_question_free(&document->choice_questions[i]);
    free(document->choice_questions);
    free(document->id);
    free(document->kind);
    free(document->question);
    free(document->answer);
    free(document->before);
    free(document->tokens);
    free(document->recall);
}

void documents_free(struct documents *documents)
{
    for (size_t i = 0; i < documents->count; i++)
        document_free(&documents->list[i]);
    free(documents->list);
    *documents = (struct documents){0};
}
