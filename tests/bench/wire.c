/*
 * Feeds a siltd as fast as it acks: tokens a second that are on its disk, over the wire and back.
 *
 *     bench-wire ENDPOINT STREAMS SECONDS FILE [ids MODEL]
 *
 * One client with a producer for each stream sends FILE's text over and over, in messages as large
 * as the client library makes them and as siltd's credit allows; with `ids` it sends the text's
 * token ids instead. Time runs from the first message to the last ack. Prints one figure.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "stream/token.h"
#include "tests/bench/measure.h"

enum { STREAMS_MAX = 64, PIECE_BYTES = 64 << 10, PIECE_IDS = 16 << 10, WAIT_MS = 100 };

struct feed {
    struct producer *producer;
    size_t at; /* in the text, bytes or ids */
    uint64_t tokens_before;
};

struct bench {
    struct client *client;
    struct feed feeds[STREAMS_MAX];
    uint32_t count;
    uint8_t *text; /* [bytes] */
    size_t bytes;
    uint32_t *ids; /* [id_count], NULL: text is sent */
    size_t id_count;
    uint64_t sent_bytes;
};

static void fail(const char *what, const struct client_error *error)
{
    fprintf(stderr, "bench-wire: %s: %s\n", what, error ? error->text : "cannot be read");
    exit(1);
}

static void read_text(struct bench *b, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0)
        fail(path, NULL);
    b->bytes = (size_t)ftell(file);
    rewind(file);
    b->text = malloc(b->bytes);
    if (b->bytes < PIECE_BYTES || !b->text || fread(b->text, 1, b->bytes, file) != b->bytes)
        fail(path, NULL);
    fclose(file);
}

static void make_ids(struct bench *b, const char *model)
{
    struct client_error error = {0};
    struct tokenizer *tokenizer = NULL;
    struct gguf *gguf = NULL;
    struct token_text state = {0};
    if (gguf_open(&gguf, model, error.text, sizeof error.text) ||
        tokenizer_open(&tokenizer, gguf, error.text, sizeof error.text))
        fail(model, &error);
    b->ids = malloc((b->bytes + 1) * sizeof *b->ids);
    if (!b->ids)
        fail("ids", NULL);
    b->id_count = token_feed(tokenizer, &state, b->text, b->bytes, (int32_t *)b->ids);
    b->id_count += token_flush(tokenizer, &state, (int32_t *)b->ids + b->id_count);
    tokenizer_close(&tokenizer);
    gguf_close(&gguf);
}

/* One message where there is room for it. */
static bool send_piece(struct bench *b, struct feed *feed)
{
    struct client_error error;
    struct client_item item = {.kind = b->ids ? ITEM_TOKENS : ITEM_TEXT};
    size_t room = producer_room(feed->producer);
    size_t most = b->ids ? PIECE_IDS : PIECE_BYTES;
    size_t left = (b->ids ? b->id_count : b->bytes) - feed->at;

    room = b->ids ? room / sizeof *b->ids : room;
    if (room < most / 4) /* no crumbs */
        return false;
    most = most < room ? most : room;
    most = most < left ? most : left;
    if (b->ids) {
        item.tokens = b->ids + feed->at;
        item.tokens_count = most;
    } else {
        item.bytes = b->text + feed->at;
        item.bytes_count = most;
    }
    if (producer_send(feed->producer, &item, 1, 0, &error))
        fail("send", &error);
    feed->at = most == left ? 0 : feed->at + most;
    b->sent_bytes += most * (b->ids ? sizeof *b->ids : 1);
    return true;
}

static void open_streams(struct bench *b, const char *endpoint)
{
    struct client_options options = {.endpoint = endpoint, .connect_ms = 20000};
    struct client_error error;
    if (client_open(&b->client, &options, &error))
        fail(endpoint, &error);
    for (uint32_t i = 0; i < b->count; i++) {
        char name[16];
        struct client_stream_stat stat;
        snprintf(name, sizeof name, "s%u", i);
        if (client_stream_open(b->client, name, &(struct client_open_options){0},
                               &(struct client_opened){0}, &error) ||
            producer_open(&b->feeds[i].producer, b->client, name, "bench", &error) ||
            client_stat(b->client, name, &stat, &error))
            fail(name, &error);
        b->feeds[i].tokens_before = stat.tokens_acked;
        client_stat_free(&stat);
        b->feeds[i].at = (b->ids ? b->id_count : b->bytes) / b->count * i;
    }
}

static uint64_t run(struct bench *b, double limit, double *took)
{
    double start = seconds();
    uint64_t tokens = 0;
    struct client_error error;

    while (seconds() - start < limit) {
        bool sent = false;
        for (uint32_t i = 0; i < b->count; i++)
            while (send_piece(b, &b->feeds[i]))
                sent = true;
        if (client_poll(b->client, -1, sent ? 0 : WAIT_MS) < 0)
            fail("poll", NULL);
    }
    for (uint32_t i = 0; i < b->count; i++)
        if (producer_drain(b->feeds[i].producer, 60000, &error))
            fail("drain", &error);
    *took = seconds() - start;
    for (uint32_t i = 0; i < b->count; i++) {
        struct producer_status status;
        producer_status(b->feeds[i].producer, &status);
        tokens += status.tokens_acked - b->feeds[i].tokens_before;
    }
    return tokens;
}

int main(int argc, char **argv)
{
    static struct bench b;
    double took;

    if (argc < 5 || (argc > 5 && (argc != 7 || strcmp(argv[5], "ids") != 0))) {
        fprintf(stderr, "usage: bench-wire ENDPOINT STREAMS SECONDS FILE [ids MODEL]\n");
        return 2;
    }
    b.count = (uint32_t)strtoul(argv[2], NULL, 10);
    if (b.count < 1 || b.count > STREAMS_MAX)
        return 2;
    read_text(&b, argv[4]);
    if (argc == 7)
        make_ids(&b, argv[6]);
    open_streams(&b, argv[1]);
    uint64_t tokens = run(&b, strtod(argv[3], NULL), &took);
    printf("wire-%s-%u %.0f tokens/s acked, %.1f MB/s\n", b.ids ? "ids" : "text", b.count,
           (double)tokens / took, (double)b.sent_bytes / took / 1e6);
    for (uint32_t i = 0; i < b.count; i++)
        producer_close(&b.feeds[i].producer);
    client_close(&b.client);
    free(b.text);
    free(b.ids);
    return 0;
}
