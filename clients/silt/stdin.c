/* stdin: what comes down a pipe, as it comes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "clients/silt/source.h"

enum { WAIT_MS = 200, TURN_BYTES_MAX = CLIENT_ITEM_BYTES_MAX };

/* Reads what is there: bytes, 0 at the end, or -errno. */
static ssize_t stdin_read(uint8_t *out, size_t room)
{
    ssize_t bytes = read(STDIN_FILENO, out, room);

    return bytes < 0 ? -errno : bytes;
}

/* *whole: text begins with a whole line; then, whether what follows does. */
static int send_text(struct pipe *pipe, struct producer *producer, const uint8_t *text,
                     size_t bytes, bool *whole)
{
    struct client_error *error = &pipe->intake->silt->error;
    int r = 0;

    while (bytes && !r) {
        size_t room = producer_room(producer);
        struct client_item item = {.kind = ITEM_TEXT, .bytes = text};
        uint64_t time_us;

        if (!room) {
            r = producer_work(producer, WAIT_MS, error);
            continue;
        }
        item.bytes_count = room < bytes ? room : bytes;
        time_us = intake_time(pipe->intake, text, &item.bytes_count, *whole);
        r = producer_send(producer, &item, 1, time_us, error);
        text += item.bytes_count;
        bytes -= item.bytes_count;
        *whole = text[-1] == '\n';
        if (!r)
            pipe->bytes += item.bytes_count;
    }
    return r;
}

/* Sends what was read, or what became of it; bytes 0: the end. */
static int send_read(struct pipe *pipe, struct producer *producer, struct convert *convert,
                     const uint8_t *piece, size_t bytes, bool *whole)
{
    const uint8_t *text = piece;
    size_t ready = bytes;
    int r = 0;

    if (convert) {
        r = convert_push(convert, piece, bytes, !bytes);
        text = convert_text(convert, &ready);
    }
    if (!r)
        r = send_text(pipe, producer, text, ready, whole);
    if (!r && convert)
        convert_take(convert, ready);
    return r;
}

static int pump(struct pipe *pipe, struct producer *producer, struct convert *convert)
{
    static uint8_t piece[SOURCE_PIECE_BYTES];
    struct silt *silt = pipe->intake->silt;
    bool whole = true;

    for (;;) {
        size_t room = producer_room(producer);
        ssize_t bytes;
        int r = producer_work(producer, 0, &silt->error);

        if (!r)
            r = client_poll(silt->client, room ? STDIN_FILENO : -1, WAIT_MS);
        if (r < 0)
            return r;
        feed_draw(pipe->progress, producer);
        if (!room || !r)
            continue;
        bytes = stdin_read(piece, room < sizeof piece ? room : sizeof piece);
        if (bytes == -EINTR || bytes == -EAGAIN)
            continue;
        if (bytes < 0)
            return (int)bytes;
        r = send_read(pipe, producer, convert, piece, (size_t)bytes, &whole);
        if (r || !bytes)
            return r;
    }
}

/* Whatever was to say something has failed: a turn without words would stay in the talk. */
static int nothing(struct client_error *error)
{
    *error = (struct client_error){.code = -EINVAL};
    snprintf(error->text, sizeof error->text, "stdin is empty: there is no turn to add");
    return error->code;
}

/* All of stdin as one turn: it is sent when it is complete. */
static int one_turn(struct pipe *pipe, struct producer *producer)
{
    uint8_t *text = malloc(TURN_BYTES_MAX + 1);
    struct client_item item = {.kind = ITEM_TURN, .bytes = text, .role = pipe->turn};
    int r = text ? 0 : -ENOMEM;

    while (!r && item.bytes_count <= TURN_BYTES_MAX) {
        ssize_t bytes = stdin_read(text + item.bytes_count, TURN_BYTES_MAX + 1 - item.bytes_count);

        if (bytes == 0)
            break;
        if (bytes > 0)
            item.bytes_count += (size_t)bytes;
        else if (bytes != -EAGAIN && bytes != -EINTR)
            r = (int)bytes;
        else if (client_poll(pipe->intake->silt->client, STDIN_FILENO, WAIT_MS) == -EINTR)
            r = -EINTR;
    }
    /* `echo` ends what it says with a line end that is not part of it. */
    if (item.bytes_count && text[item.bytes_count - 1] == '\n')
        item.bytes_count--;
    if (!r && !item.bytes_count)
        r = nothing(&pipe->intake->silt->error);
    if (!r)
        r = producer_send(producer, &item, 1, 0, &pipe->intake->silt->error);
    pipe->bytes += item.bytes_count;
    free(text);
    return r;
}

static int all_of_it(struct pipe *pipe, struct producer *producer)
{
    const struct client_item end = {.kind = ITEM_MARK, .mark = MARK_END_OF_INPUT};
    struct convert *convert = NULL;
    int r;

    if (pipe->turn)
        return one_turn(pipe, producer);
    r = convert_open(&convert, pipe->intake->format);
    if (!r)
        r = pump(pipe, producer, convert);
    if (!r)
        r = producer_send(producer, &end, 1, 0, &pipe->intake->silt->error);
    convert_close(&convert);
    return r;
}

int pipe_feed(struct pipe *pipe)
{
    struct silt *silt = pipe->intake->silt;
    struct client_error *error = &silt->error;
    struct producer *producer = NULL;
    const char *id = pipe->producer_id;
    char fresh_id[64];
    uint64_t fresh = 0;
    int r;

    if (!id && getrandom(&fresh, sizeof fresh, 0) != sizeof fresh) {
        silt_say("the system gives no random numbers");
        return EXIT_REFUSED;
    }
    snprintf(fresh_id, sizeof fresh_id, "stdin-%016" PRIx64, fresh);
    if (producer_open(&producer, silt->client, pipe->intake->stream, id ? id : fresh_id, error))
        return silt_fail(silt);
    pipe->progress->what = id ? id : "stdin";
    if (pipe->progress->on && isatty(STDIN_FILENO)) { /* a line drawn over would be in the way */
        silt_say("reading what is typed; Ctrl-D on a line of its own ends it");
        pipe->progress->on = false;
    }
    r = all_of_it(pipe, producer);
    if (r && !error->code) {
        error->code = r;
        snprintf(error->text, sizeof error->text, "cannot read stdin: %s", strerror(-r));
    }
    r = r ? feed_fail(silt, pipe->progress, producer, NULL)
          : feed_drain(silt, pipe->progress, producer, NULL);
    producer_close(&producer);
    return r;
}
