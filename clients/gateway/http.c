/* HTTP: what is let in, where it goes, how it is answered. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "clients/gateway/gateway.h"

enum { IDLE_SECONDS = 30 };

struct route {
    const char *method, *path;
    handler_fn *handler;
    bool prefix; /* the path goes on */
    bool open;   /* needs no key */
};
static const struct route routes[] = {
    {"GET", "/", page_get, false, true},
    {"GET", "/app.js", page_get, false, true},
    {"GET", "/style.css", page_get, false, true},
    {"GET", "/healthz", health_get, false, true},
    {"GET", "/metrics", metrics_get, false, false},
    {"GET", "/v1/models", models_get, false, false},
    {"GET", "/api/status", status_get, false, false},
    {"GET", "/api/streams/", status_get, true, false},
    {"POST", "/v1/chat/completions", chat_post, false, false},
    {"POST", "/api/ask", ask_post, false, false},
};
enum { ROUTE_COUNT = sizeof routes / sizeof *routes };

enum MHD_Result reply_queue(struct gateway *gateway, struct MHD_Connection *connection,
                            unsigned status, const char *type, struct MHD_Response *response)
{
    enum MHD_Result r;

    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", type);
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Content-Security-Policy",
                            "default-src 'self'; img-src data:; frame-ancestors 'none'");
    if (status == MHD_HTTP_TOO_MANY_REQUESTS || status == MHD_HTTP_SERVICE_UNAVAILABLE)
        MHD_add_response_header(response, "Retry-After", "1");
    r = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    count_request(&gateway->counters, status);
    return r;
}

enum MHD_Result reply_text(struct gateway *gateway, struct MHD_Connection *connection,
                           unsigned status, const char *type, struct text *text)
{
    struct MHD_Response *response;

    if (text->failed)
        text_free(text);
    response = MHD_create_response_from_buffer(text->bytes, text->data ? text->data : (void *)"",
                                               text->data ? MHD_RESPMEM_MUST_FREE
                                                          : MHD_RESPMEM_PERSISTENT);
    *text = (struct text){0};
    return reply_queue(gateway, connection, status, type, response);
}

enum MHD_Result reply_json(struct gateway *gateway, struct MHD_Connection *connection,
                           unsigned status, json_t **json)
{
    struct text text = {0};

    text.data = json_dumps(*json, JSON_COMPACT);
    text.bytes = text.data ? strlen(text.data) : 0;
    json_decref(*json);
    *json = NULL;
    return reply_text(gateway, connection, status, "application/json", &text);
}

json_t *message_json(const char *message)
{
    struct utf8 utf8 = {.have = 0};
    struct text text = {0};
    char out[UTF8_OUT_MAX];
    json_t *json;

    for (; *message; message++)
        text_add(&text, out, utf8_push(&utf8, (uint8_t)*message, out));
    text_add(&text, out, utf8_end(&utf8, out));
    json = json_string(text.data ? text.data : "");
    text_free(&text);
    return json;
}

enum MHD_Result reply_error(struct gateway *gateway, struct MHD_Connection *connection,
                            unsigned status, const char *code, const char *format, ...)
{
    char message[600];
    va_list list;
    json_t *json;
    const char *type = status >= 500   ? "server_error"
                       : status == 429 ? "rate_limit_error"
                                       : "invalid_request_error";

    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    json = json_pack("{s:{s:o, s:s, s:s, s:n}}", "error", "message", message_json(message), "type",
                     type, "code", code, "param");
    return reply_json(gateway, connection, status, &json);
}

enum MHD_Result reply_client_error(struct gateway *gateway, struct MHD_Connection *connection,
                                   const struct client_error *error)
{
    static const struct {
        int error;
        unsigned status;
        const char *code;
    } table[] = {
        {-EINVAL, 400, "invalid"},
        {-ENOENT, 404, "stream_not_found"},
        {-EEXIST, 409, "exists"},
        {-ESTALE, 409, "history_edited"},
        {-EBUSY, 429, "busy"},
        {-EMSGSIZE, 413, "too_large"},
        {-ENOSPC, 507, "no_space"},
        {-EACCES, 403, "denied"},
        {-EOPNOTSUPP, 400, "unsupported"},
        {-ESHUTDOWN, 503, "shutting_down"},
        {-ECONNREFUSED, 503, "no_siltd"},
        {-ECONNRESET, 502, "siltd_went_away"},
        {-ETIMEDOUT, 504, "siltd_silent"},
        {-EINTR, 504, "time_limit"},
        {-EINPROGRESS, 409, "history_in_doubt"},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].error == error->code)
            return reply_error(gateway, connection, table[i].status, table[i].code, "%s",
                               error->text);
    return reply_error(gateway, connection, 500, "internal", "%s", error->text);
}

/* ---- who may ---- */

/* A page of another site that a browser on this machine shows must not reach us under its own name
 * for our address. */
static bool host_allowed(const struct gateway *gateway, struct MHD_Connection *connection)
{
    const char *host = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Host");
    size_t bytes;

    if (!gateway->options.loopback)
        return true;
    if (!host)
        return false;
    bytes = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
    return (bytes == 9 && !strncasecmp(host, "localhost", 9)) ||
           (bytes == 5 && !strncmp(host, "[::1]", 5)) ||
           (bytes == strlen(gateway->options.host) &&
            !strncmp(host, gateway->options.host, bytes)) ||
           (bytes == 9 && !strncmp(host, "127.0.0.1", 9));
}

/* In a time that does not tell how much of the key was right. */
static bool key_right(const struct gateway *gateway, struct MHD_Connection *connection)
{
    const char *given = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Authorization");
    const char *key = gateway->options.key;
    size_t key_bytes = strlen(key), given_bytes;
    unsigned differ;

    if (!key_bytes)
        return true;
    if (!given || strncasecmp(given, "Bearer ", 7) != 0)
        return false;
    given += 7;
    given_bytes = strlen(given);
    differ = given_bytes != key_bytes;
    for (size_t i = 0; i < given_bytes; i++)
        differ |= (unsigned)(given[i] ^ key[i % key_bytes]);
    return !differ;
}

static bool is_json(struct MHD_Connection *connection)
{
    const char *type = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Type");

    return type && !strncasecmp(type, "application/json", 16);
}

enum MHD_Result route(struct gateway *gateway, struct MHD_Connection *connection,
                      struct request *request)
{
    const struct route *found = NULL;

    if (!host_allowed(gateway, connection))
        return reply_error(gateway, connection, 403, "host",
                           "this gateway serves this machine alone, under the names localhost and "
                           "%s",
                           gateway->options.host);
    for (int i = 0; i < ROUTE_COUNT && !found; i++) {
        size_t bytes = strlen(routes[i].path);

        if (routes[i].prefix ? !strncmp(request->url, routes[i].path, bytes)
                             : !strcmp(request->url, routes[i].path))
            found = &routes[i];
    }
    if (!found)
        return reply_error(gateway, connection, 404, "not_found",
                           "there is nothing here: /v1/chat/completions, /v1/models, /metrics, "
                           "/healthz and / are");
    if (!found->open && !key_right(gateway, connection))
        return reply_error(gateway, connection, 401, "key",
                           "the key is missing or wrong: Authorization: Bearer KEY");
    if (strcmp(request->method, found->method) != 0 &&
        !(!strcmp(request->method, "HEAD") && !strcmp(found->method, "GET")))
        return reply_error(gateway, connection, 405, "method", "this takes %s", found->method);
    if (!strcmp(found->method, "POST") && !is_json(connection))
        return reply_error(gateway, connection, 415, "type",
                           "the body must be JSON: Content-Type: application/json");
    return found->handler(gateway, connection, request);
}

/* ---- libmicrohttpd ---- */

static void body_take(const struct gateway *gateway, struct request *request, const char *data,
                      size_t bytes)
{
    if (request->refused)
        return;
    if (request->body.bytes + bytes > gateway->options.body_bytes_max) {
        request->refused = MHD_HTTP_CONTENT_TOO_LARGE;
        text_free(&request->body);
        return;
    }
    text_add(&request->body, data, bytes);
    if (request->body.failed)
        request->refused = MHD_HTTP_INTERNAL_SERVER_ERROR;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *bytes, void **state)
{
    struct gateway *gateway = user;
    struct request *request = *state;

    (void)version;
    if (!request) {
        const char *length =
            MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Length");

        request = calloc(1, sizeof *request);
        *state = request;
        if (!request)
            return MHD_NO;
        /* Before the body is sent: whoever says how much it is need not send it. */
        if (length && strtoull(length, NULL, 10) > gateway->options.body_bytes_max)
            return reply_error(gateway, connection, 413, "too_large",
                               "a request is at most %zu bytes", gateway->options.body_bytes_max);
        return MHD_YES;
    }
    if (*bytes) {
        body_take(gateway, request, data, *bytes);
        *bytes = 0;
        return MHD_YES;
    }
    if (request->refused)
        return reply_error(gateway, connection, request->refused, "too_large",
                           "a request is at most %zu bytes", gateway->options.body_bytes_max);
    request->url = url;
    request->method = method;
    return route(gateway, connection, request);
}

static void on_end(void *user, struct MHD_Connection *connection, void **state,
                   enum MHD_RequestTerminationCode code)
{
    struct request *request = *state;

    (void)user;
    (void)code;
    /* A question may have asked for longer, and the connection may stay for another request. */
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)IDLE_SECONDS);
    if (request)
        text_free(&request->body);
    free(request);
    *state = NULL;
}

int http_open(struct gateway *gateway)
{
    const struct gateway_options *options = &gateway->options;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(options->port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(options->port)};
    bool is_v4 = inet_pton(AF_INET, options->host, &v4.sin_addr) == 1;
    unsigned flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD |
                     MHD_USE_POLL | (is_v4 ? 0 : MHD_USE_IPv6);
    struct sockaddr *address = is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;

    if (!is_v4 && inet_pton(AF_INET6, options->host, &v6.sin6_addr) != 1)
        return -EINVAL;
    errno = 0;
    gateway->http = MHD_start_daemon(
        flags, options->port, NULL, NULL, on_request, gateway, MHD_OPTION_SOCK_ADDR, address,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)options->connections_max,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)(32 << 10), MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u, MHD_OPTION_NOTIFY_COMPLETED,
        on_end, NULL, MHD_OPTION_END);
    return gateway->http ? 0 : errno ? -errno : -EIO;
}

void http_close(struct gateway *gateway)
{
    if (gateway->http)
        MHD_stop_daemon(gateway->http);
    gateway->http = NULL;
}
