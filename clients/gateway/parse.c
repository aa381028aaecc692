/* A chat request's JSON, read strictly: what would be ignored silently is refused instead. */
#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "clients/gateway/chat.h"

enum { TOKENS_MOST = 1 << 20 };

#define FAIL(...) fail(error, __VA_ARGS__)

static int fail(struct client_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static int fail(struct client_error *error, const char *format, ...)
{
    va_list list;

    *error = (struct client_error){.code = -EINVAL};
    va_start(list, format);
    vsnprintf(error->text, sizeof error->text, format, list);
    va_end(list);
    return -EINVAL;
}

static bool is_given(const json_t *value)
{
    return value && !json_is_null(value);
}

/* A whole number: 1, 0 where none is given, or -EINVAL. */
static int integer_of(const json_t *json, const char *name, json_int_t least, json_int_t most,
                      json_int_t *out, struct client_error *error)
{
    const json_t *value = json_object_get(json, name);

    if (!is_given(value))
        return 0;
    *out = json_integer_value(value);
    if (!json_is_integer(value) || *out < least || *out > most)
        return FAIL("%s is a whole number from %lld to %lld", name, (long long)least,
                    (long long)most);
    return 1;
}

/* True or false: 0 with *out, which stays where none is given, or -EINVAL. */
static int flag_of(const json_t *json, const char *name, bool *out, struct client_error *error)
{
    const json_t *value = json_object_get(json, name);

    if (is_given(value) && !json_is_boolean(value))
        return FAIL("%s is true or false", name);
    *out = is_given(value) ? json_is_true(value) : *out;
    return 0;
}

/* Fields that would change the answer, and that siltd does not have. */
static int refuse_unsupported(const json_t *json, struct client_error *error)
{
    static const char *const absent[] = {"tools", "functions", "logit_bias", "audio"};
    static const char *const zero[] = {"presence_penalty", "frequency_penalty"};
    const json_t *format = json_object_get(json_object_get(json, "response_format"), "type");

    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        const json_t *value = json_object_get(json, absent[i]);

        if (json_array_size(value) || json_object_size(value))
            return FAIL("%s is not supported: leave it out", absent[i]);
    }
    for (size_t i = 0; i < sizeof zero / sizeof *zero; i++) {
        const json_t *value = json_object_get(json, zero[i]);

        if (is_given(value) && (!json_is_number(value) || json_number_value(value) != 0))
            return FAIL("%s is not supported: leave it out or use 0", zero[i]);
    }
    if (integer_of(json, "n", 1, 1, &(json_int_t){0}, error) < 0)
        return FAIL("n must be 1: one answer a question");
    if (json_is_true(json_object_get(json, "logprobs")))
        return FAIL("logprobs are not supported");
    if (json_is_string(format) && strcmp(json_string_value(format), "text") != 0)
        return FAIL("response_format must be text");
    return 0;
}

static int content_of(const json_t *content, char **out, struct client_error *error)
{
    struct text text = {0};
    const json_t *part;
    size_t i;

    if (json_is_string(content)) {
        text_add(&text, json_string_value(content), json_string_length(content));
    } else if (json_is_array(content)) {
        json_array_foreach(content, i, part)
        {
            const char *type = json_string_value(json_object_get(part, "type"));
            const json_t *words = json_object_get(part, "text");

            if (!type || strcmp(type, "text") != 0 || !json_is_string(words)) {
                text_free(&text);
                return FAIL("a message's content is text alone: images and sounds are not "
                            "supported");
            }
            text_add(&text, json_string_value(words), json_string_length(words));
        }
    } else {
        return FAIL("a message needs a content, a string or an array of text parts");
    }
    text_add(&text, "", 0);
    if (text.failed || !text.data) {
        text_free(&text);
        return FAIL("out of memory");
    }
    if (strlen(text.data) != text.bytes) {
        text_free(&text);
        return FAIL("a message must not hold the character U+0000");
    }
    *out = text.data;
    return 0;
}

static const char *role_of(const json_t *json)
{
    static const char *const names[][2] = {{"system", "system"}, {"developer", "system"},
                                           {"user", "user"},     {"assistant", "assistant"},
                                           {"tool", "tool"},     {"function", "tool"}};
    const char *role = json_string_value(json_object_get(json, "role"));

    for (size_t i = 0; role && i < sizeof names / sizeof *names; i++)
        if (!strcmp(role, names[i][0]))
            return names[i][1];
    return NULL;
}

static int messages_of(struct chat *chat, struct client_error *error)
{
    const json_t *list = json_object_get(chat->json, "messages");
    size_t count = json_array_size(list);

    if (!count || count > MESSAGES_MAX)
        return FAIL("messages must be an array of 1 to %d", MESSAGES_MAX);
    chat->messages = calloc(count, sizeof *chat->messages);
    if (!chat->messages)
        return FAIL("out of memory");
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_array_get(list, i);
        char *content = NULL;
        int r;

        chat->messages[i].role = role_of(one);
        if (!chat->messages[i].role)
            return FAIL("message %zu: role is system, user, assistant or tool", i);
        r = content_of(json_object_get(one, "content"), &content, error);
        if (r)
            return r;
        chat->messages[i].content = content;
        chat->count = i + 1;
    }
    if (strcmp(chat->messages[count - 1].role, "user") != 0)
        return FAIL("the last message must be the user's");
    chat->ask.question = chat->messages[count - 1].content;
    return chat->ask.question[0] ? 0 : FAIL("the last message is empty");
}

static int number_of(const json_t *json, const char *name, double least, double most, float *out,
                     struct client_error *error)
{
    const json_t *value = json_object_get(json, name);

    if (!is_given(value))
        return 0;
    if (!json_is_number(value) || json_number_value(value) < least ||
        json_number_value(value) > most)
        return FAIL("%s is a number from %g to %g", name, least, most);
    *out = (float)json_number_value(value);
    return 1;
}

static int sampling_of(struct chat *chat, struct client_error *error)
{
    struct client_sampling *sampling = &chat->sampling;
    json_int_t seed;
    int r, given = 0;

    /* What siltd takes where nothing is said; one field given must not unset the others. */
    *sampling = (struct client_sampling){
        .temperature = 0.2f, .top_p = 0.95f, .repeat_penalty = 1.1f, .seed = 1};
    r = number_of(chat->json, "temperature", 0, 2, &sampling->temperature, error);
    given |= r;
    if (r >= 0)
        r = number_of(chat->json, "top_p", 0, 1, &sampling->top_p, error);
    given |= r;
    if (r >= 0)
        r = integer_of(chat->json, "seed", INT64_MIN, INT64_MAX, &seed, error);
    given |= r;
    if (r < 0)
        return r;
    if (r)
        sampling->seed = (uint64_t)seed;
    /* The likeliest token alone; to siltd 0 would be no limit. */
    if (sampling->top_p == 0)
        sampling->top_p = FLT_MIN;
    chat->ask.sampling = given ? sampling : NULL;
    return 0;
}

static int stop_of(struct chat *chat, struct client_error *error)
{
    const json_t *stop = json_object_get(chat->json, "stop");
    size_t count = json_is_string(stop) ? 1 : json_array_size(stop);

    if (count > STOP_STRINGS_MAX)
        return FAIL("at most %d stop strings", STOP_STRINGS_MAX);
    if (is_given(stop) && !json_is_string(stop) && !json_is_array(stop))
        return FAIL("stop is a string or an array of strings");
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_is_string(stop) ? stop : json_array_get(stop, i);

        if (!json_string_length(one) || json_string_length(one) > 64)
            return FAIL("a stop string has 1 to 64 bytes");
        chat->stop[i] = json_string_value(one);
    }
    chat->ask.stop = chat->stop;
    chat->ask.stop_count = count;
    return 0;
}

static int recall_of(struct chat *chat, const json_t *extra, struct client_error *error)
{
    static const char *const recalls[] = {"auto", "none", "segments", "text"};
    const json_t *value = json_object_get(extra, "recall");
    const char *recall = json_string_value(value);

    for (int i = 0; recall && i < 4; i++)
        if (!strcmp(recall, recalls[i])) {
            chat->ask.recall = (enum client_recall)i;
            return 0;
        }
    return is_given(value) ? FAIL("silt.recall is auto, none, segments or text") : 0;
}

static int options_of(struct chat *chat, struct client_error *error)
{
    const json_t *extra = json_object_get(chat->json, "silt");
    json_int_t most = 0;
    int r = integer_of(chat->json, "max_completion_tokens", 1, TOKENS_MOST, &most, error);

    if (!r)
        r = integer_of(chat->json, "max_tokens", 1, TOKENS_MOST, &most, error);
    chat->ask.tokens_max = (uint32_t)most;
    if (r >= 0)
        r = recall_of(chat, extra, error);
    /* The question comes after what it is about: earlier turns are computed first. */
    chat->ask.wait = true;
    if (!r)
        r = flag_of(extra, "wait", &chat->ask.wait, error);
    if (!r)
        r = sampling_of(chat, error);
    return r ? r : stop_of(chat, error);
}

static int name_take(struct chat *chat, const char *name, struct client_error *error)
{
    if (!name || !name[0])
        return FAIL("name the stream of this conversation: the field \"user\", or the header "
                    "X-Silt-Stream");
    if (strlen(name) > WIRE_NAME_BYTES_MAX || name[0] == '.' ||
        name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")])
        return FAIL("\"%.140s\" is not a stream's name: use 1 to %d of A-Z a-z 0-9 . _ - and no "
                    "dot at the start",
                    name, WIRE_NAME_BYTES_MAX);
    memcpy(chat->stream, name, strlen(name) + 1);
    chat->ask.stream = chat->stream;
    return 0;
}

static int history_of(struct chat *chat, const char *mode, struct client_error *error)
{
    if (!mode || !strcasecmp(mode, "full"))
        chat->history = HISTORY_FULL;
    else if (!strcasecmp(mode, "append"))
        chat->history = HISTORY_APPEND;
    else if (!strcasecmp(mode, "strict"))
        chat->history = HISTORY_STRICT;
    else if (!strcasecmp(mode, "adopt"))
        chat->history = HISTORY_ADOPT;
    else
        return FAIL("X-Silt-History is full, strict, append or adopt");
    return 0;
}

static int body_load(struct chat *chat, const struct text *body, struct client_error *error)
{
    json_error_t wrong;

    *chat = (struct chat){0};
    *error = (struct client_error){0};
    chat->json = json_loadb(body->data ? body->data : "", body->bytes, 0, &wrong);
    if (!chat->json)
        return FAIL("the body is not JSON: %s", wrong.text);
    return json_is_object(chat->json) ? 0 : FAIL("the body must be a JSON object");
}

int chat_parse(struct chat *chat, struct MHD_Connection *connection, const struct text *body,
               struct client_error *error)
{
    const char *stream = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "X-Silt-Stream");
    const char *mode = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "X-Silt-History");
    int r = body_load(chat, body, error);

    if (!r)
        r = refuse_unsupported(chat->json, error);
    if (!r && !stream)
        stream = json_string_value(json_object_get(chat->json, "user"));
    if (!r)
        r = name_take(chat, stream, error);
    if (!r)
        r = history_of(chat, mode, error);
    if (!r)
        r = messages_of(chat, error);
    if (!r)
        r = options_of(chat, error);
    if (!r)
        r = flag_of(chat->json, "stream", &chat->streamed, error);
    if (!r)
        r = flag_of(json_object_get(chat->json, "stream_options"), "include_usage", &chat->usage,
                    error);
    chat->ask.keep = true;
    return r;
}

int chat_parse_ask(struct chat *chat, const struct text *body, struct client_error *error)
{
    int r = body_load(chat, body, error);

    if (!r)
        r = name_take(chat, json_string_value(json_object_get(chat->json, "stream")), error);
    if (!r) {
        chat->ask.question = json_string_value(json_object_get(chat->json, "question"));
        if (!chat->ask.question || !chat->ask.question[0])
            return FAIL("the question is empty");
        r = options_of(chat, error);
    }
    chat->ask.wait = false;
    if (!r)
        r = flag_of(chat->json, "wait", &chat->ask.wait, error);
    chat->history = HISTORY_NONE;
    chat->streamed = true;
    return r;
}

void chat_free(struct chat *chat)
{
    for (size_t i = 0; i < chat->count; i++)
        free((char *)(uintptr_t)chat->messages[i].content);
    free(chat->messages);
    json_decref(chat->json);
    *chat = (struct chat){0};
}
