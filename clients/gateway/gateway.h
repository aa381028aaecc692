/*
 * gateway: siltd for programs that speak HTTP: the chat of OpenAI's clients, Prometheus, a browser.
 *
 * One thread a connection (libmicrohttpd) and one a question; each question has a connection to
 * siltd of its own from the pool. What came before in a conversation is never sent to siltd again:
 * a chain of hashes, kept in a file for each stream, says how much of a history the stream has.
 *
 * Limits: connections, bytes of a request, messages of a history, seconds of a question; all fixed
 * at start, so the memory of the process is bounded by their product.
 */
#ifndef SILT_GATEWAY_H
#define SILT_GATEWAY_H

#include <jansson.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "clients/client.h"
#include "proto/endpoint.h"

enum {
    CONNECTIONS_LIMIT = 1024,
    MESSAGES_MAX = 16384,        /* of one request's history */
    ANSWER_TEXT_MAX = 128 << 10, /* three times siltd's longest, for U+FFFD */
    STREAMS_SHOWN_MAX = 10000,   /* in metrics and on the page */
    STOP_STRINGS_MAX = 8,        /* of one question */
    PATH_MAX_BYTES = 1024,
    KEY_MAX = 256,
};

struct gateway_options {
    const char *endpoint; /* of siltd; each NULL: the default */
    const char *server_key, *client_key;
    char host[64]; /* numeric address to listen on */
    uint16_t port;
    bool loopback; /* host is */
    bool anyone;   /* serve other machines without a key */
    char key[KEY_MAX];
    char state[PATH_MAX_BYTES]; /* folder of the chains */
    uint32_t connections_max, siltd_connections_max, answer_seconds;
    size_t body_bytes_max;
};

/* ---- pool.c: connections to siltd ---- */

struct pooled {
    struct client *client;
    atomic_bool interrupted; /* set to end what it does */
    bool used;
};
struct pool {
    pthread_mutex_t lock;
    pthread_cond_t given; /* back */
    bool stopping;
    uint32_t count, used;
    struct pooled *clients; /* [count] */
};

/* ---- metrics.c: what the gateway counts itself ---- */

enum { CODES_MAX = 16, BUCKETS = 9 };
struct histogram {
    atomic_ullong buckets[BUCKETS + 1]; /* the last: beyond all */
    atomic_ullong sum_us;
};
struct counters {
    atomic_uint code[CODES_MAX]; /* 0: free */
    atomic_ullong requests[CODES_MAX];
    atomic_ullong answered, refused, cancelled, tokens, new_messages, known_messages;
    atomic_int under_way;
    struct histogram first_text, whole;
};

struct gateway {
    struct gateway_options options;
    struct pool pool;
    struct counters counters;
    struct MHD_Daemon *http;
    atomic_ullong id_last;
};

int pool_open(struct pool *pool, uint32_t count);
/* Nobody has one any more. */
void pool_close(struct pool *pool);
/* Ends what is under way, and nothing new begins. */
void pool_stop(struct pool *pool);
/* Waits for one, some seconds. NULL with error filled: there are too many requests at once.
 * long_use: for a question; a quarter is kept from these, for what is answered at once. */
struct pooled *pool_take(struct gateway *gateway, bool long_use, struct client_error *error);
/* result: of what it was used for; one that lost siltd is not used again. */
void pool_give(struct gateway *gateway, struct pooled **pooled, int result);

void count_request(struct counters *counters, unsigned code);
void histogram_add(struct histogram *histogram, uint64_t us);
uint64_t now_us(void);

/* ---- text.c: growing text, UTF-8 ---- */

struct text {
    char *data;
    size_t bytes, room;
    bool failed; /* out of memory: what follows is not added */
};
void text_add(struct text *text, const void *data, size_t bytes);
void text_addf(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_free(struct text *text);

/* Takes bytes as they come and gives valid UTF-8: what is none, and U+0000, becomes U+FFFD. */
struct utf8 {
    uint8_t held[4];
    unsigned have, need;
};
enum { UTF8_OUT_MAX = 8 };
size_t utf8_push(struct utf8 *utf8, uint8_t byte, char out[UTF8_OUT_MAX]);
size_t utf8_end(struct utf8 *utf8, char out[UTF8_OUT_MAX]);

/* ---- http.c: requests in, responses out ---- */

struct request {
    const char *method, *url;
    struct text body;
    unsigned refused; /* a status found before the body was read */
    const char *why;
};
/* Sends and forgets json: status and body; takes json. */
enum MHD_Result reply_json(struct gateway *gateway, struct MHD_Connection *connection,
                           unsigned status, json_t **json);
/* Of an error: it may quote what the caller sent, cut anywhere. */
json_t *message_json(const char *message);
/* {"error": {"message", "type", "code"}}, as OpenAI's clients read it. */
enum MHD_Result reply_error(struct gateway *gateway, struct MHD_Connection *connection,
                            unsigned status, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* The status that says what siltd's error says. */
enum MHD_Result reply_client_error(struct gateway *gateway, struct MHD_Connection *connection,
                                   const struct client_error *error);
/* Takes text. */
enum MHD_Result reply_text(struct gateway *gateway, struct MHD_Connection *connection,
                           unsigned status, const char *type, struct text *text);
/* Adds the headers of every response, queues it and lets it go. */
enum MHD_Result reply_queue(struct gateway *gateway, struct MHD_Connection *connection,
                            unsigned status, const char *type, struct MHD_Response *response);
int http_open(struct gateway *gateway);
void http_close(struct gateway *gateway);
enum MHD_Result route(struct gateway *gateway, struct MHD_Connection *connection,
                      struct request *request);

/* ---- pages ---- */

typedef enum MHD_Result handler_fn(struct gateway *gateway, struct MHD_Connection *connection,
                                   struct request *request);
handler_fn page_get, health_get, metrics_get, models_get, status_get, chat_post, ask_post;

#endif
