/*
 * follow: files that grow, for as long as nobody stops us.
 *
 * Looks at each file a few times a second, which works on every file system. A file whose name goes
 * to another file is read to its end, then the new one is opened under its own producer. A file
 * that is cut short is the same file with a new text. Names that do not exist yet are waited for. A
 * file that has its name for less than two seconds may be missed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/silt/silt.h"

enum {
    LOOK_MS = 200,
    ROTATE_GRACE_US = 1000000, /* a writer may still hold the old file for a moment */
    DRAIN_MS = 20000,
};

struct follow {
    struct silt *silt;
    const char *stream;
    struct source *sources; /* [count] */
    int count;
    bool quiet;
    bool *open;    /* [count] */
    bool *missing; /* [count], said so */
    struct progress progress;
};

static void say(struct follow *follow, const char *path, const char *what, uint64_t offset)
{
    if (follow->quiet)
        return;
    progress_clear(&follow->progress);
    silt_say("%s: %s %" PRIu64, path, what, offset);
}

/* Opens source i when it can be. Returns 0 or the exit code. */
static int follow_open(struct follow *follow, int i, const char *path)
{
    struct source *source = &follow->sources[i];
    struct stat st;
    int r;

    if (stat(path, &st) && errno == ENOENT) {
        if (!follow->missing[i])
            silt_say("%s does not exist yet: waiting for it", path);
        follow->missing[i] = true;
        return 0;
    }
    source->lines = follow->count > 1;
    r = source_open(source, follow->silt, follow->stream, path);
    if (r == -ENODATA)
        return 0;
    if (r)
        return r;
    follow->open[i] = true;
    follow->missing[i] = false;
    say(follow, path, source->offset ? "goes on at byte" : "new to the stream, from byte",
        source->offset);
    return 0;
}

/* The old file is done with: all of it must be acked before the new one's first byte. */
static int follow_reopen(struct follow *follow, int i)
{
    struct source *source = &follow->sources[i];
    const char *path = source->path;
    int r = producer_drain(source->producer, DRAIN_MS, &follow->silt->error);

    if (r)
        return silt_fail(follow->silt);
    source_close(source);
    follow->open[i] = false;
    return follow_open(follow, i, path);
}

/* One look at one file. *busy: something was sent. */
static int follow_look(struct follow *follow, int i, bool *busy)
{
    struct source *source = &follow->sources[i];
    enum source_change change;
    int r;

    if (!follow->open[i])
        return follow_open(follow, i, source->path);
    change = source_changed(source);
    if (change == SOURCE_TRUNCATED) {
        say(follow, source->path, "was cut short: starts anew, after byte", source->offset);
        return follow_reopen(follow, i);
    }
    /* A writer that is gone leaves its last line as it is. */
    r = source_send(source, follow->silt, false);
    if (r == 0 && change == SOURCE_ROTATED && source->lines && source->offset < source->size) {
        source->lines = false;
        r = source_send(source, follow->silt, false);
        source->lines = true;
    }
    if (r < 0)
        return silt_fail(follow->silt);
    if (r > 0) {
        *busy = true;
        source->idle_us = 0;
        return 0;
    }
    if (!source->idle_us)
        source->idle_us = silt_now_us();
    if (change == SOURCE_ROTATED && source->offset >= source->size &&
        silt_now_us() - source->idle_us > ROTATE_GRACE_US) {
        say(follow, source->path, "rotated: the old file ended at byte", source->offset);
        return follow_reopen(follow, i);
    }
    return 0;
}

static void follow_progress(struct follow *follow)
{
    struct producer_status status;
    uint64_t done = 0;

    for (int i = 0; i < follow->count; i++)
        if (follow->open[i]) {
            producer_status(follow->sources[i].producer, &status);
            done += status.bytes_acked;
        }
    follow->progress.bytes_done = done;
    progress_draw(&follow->progress);
}

/* Says how far each file is safe, once siltd has acked what was on its way. */
static int follow_stop(struct follow *follow)
{
    int result = EXIT_STOPPED;

    silt_stop = 0;
    progress_clear(&follow->progress);
    for (int i = 0; i < follow->count; i++) {
        struct source *source = &follow->sources[i];
        struct producer_status status;

        if (!follow->open[i])
            continue;
        if (producer_drain(source->producer, DRAIN_MS, &follow->silt->error))
            result = silt_fail(follow->silt);
        producer_status(source->producer, &status);
        silt_say("%s: acked up to byte %" PRIu64 "; the same command goes on from there",
                 source->path, status.bytes_acked);
    }
    return result;
}

static int follow_loop(struct follow *follow)
{
    for (;;) {
        bool busy = false;
        int r = 0;

        for (int i = 0; i < follow->count && !silt_stop; i++) {
            r = follow_look(follow, i, &busy);
            if (silt_stop)
                break;
            if (r)
                return r;
        }
        if (!silt_stop)
            client_poll(follow->silt->client, -1, busy ? 0 : LOOK_MS);
        if (silt_stop)
            return follow_stop(follow);
        follow_progress(follow);
    }
}

int follow_run(struct silt *silt, const char *stream, char **paths, int path_count, bool quiet)
{
    struct follow follow = {
        .silt = silt,
        .stream = stream,
        .count = path_count,
        .quiet = quiet,
        .sources = calloc((size_t)path_count, sizeof *follow.sources),
        .open = calloc((size_t)path_count, sizeof *follow.open),
        .missing = calloc((size_t)path_count, sizeof *follow.missing),
        .progress = {.on = !quiet && isatty(STDERR_FILENO),
                     .client = silt->client,
                     .stream = stream,
                     .what = path_count == 1 ? paths[0] : "files"},
    };
    int r = EXIT_REFUSED;

    if (follow.sources && follow.open && follow.missing) {
        for (int i = 0; i < path_count; i++)
            follow.sources[i] = (struct source){.path = paths[i], .fd = -1};
        r = follow_loop(&follow);
        for (int i = 0; i < path_count; i++)
            source_close(&follow.sources[i]);
    }
    free(follow.sources);
    free(follow.open);
    free(follow.missing);
    return r;
}
