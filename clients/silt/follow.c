/*
 * follow: files that grow, for as long as nobody stops us.
 *
 * Looks at each name a few times a second, which works on every file system. A name that goes to
 * another file has that one opened at once, so that it cannot get away, and taken up when the file
 * before has been quiet for a moment and is acked. A file that is cut short is the same file with a
 * new text. Names that do not exist yet are waited for; patterns are matched again and again, and a
 * file that several names lead to, as rotation makes them, is followed once. While a call waits for
 * siltd, names are watched on.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/silt/source.h"

enum {
    LOOK_MS = 200,
    GLOB_US = 1000000,
    QUIET_US = 2000000, /* a writer may still hold the old file for a moment */
    NEXT_MAX = 16,
    SAY_FILES_MAX = 20, /* more are not named one by one */
    HANDLES_SPARE = 32, /* for all but the files */
};

struct file {
    int fd;
    uint64_t device, inode;
    bool rotated; /* it lost the name before we looked */
};

/* A name, the file that is read under it, and those that took the name since. */
struct name {
    char *path;   /* owned */
    bool matched; /* by a pattern */
    bool missing; /* said so */
    bool ignored; /* said why */
    bool is_open;
    bool looked_back;  /* for files that had the name before */
    bool behind_known; /* one of them was siltd's */
    struct source source;
    struct file next[NEXT_MAX]; /* [next_count], oldest first */
    int next_count;
    int64_t next_us;        /* since when the oldest waits */
    uint64_t device, inode; /* of the newest file of all these */
};

struct follow {
    const struct intake *intake;
    struct silt *silt;
    struct name **names; /* [count], of room */
    size_t count, room;
    size_t files_max; /* that the system lets us hold open */
    char **patterns;  /* [pattern_count] */
    int pattern_count;
    int64_t glob_us;  /* when they were matched last */
    int64_t watch_us; /* when names were watched last */
    int watched;      /* what that gave: 0 or the exit code */
    bool full;        /* said so */
    bool quiet, backlog;
    struct progress progress;
};

bool path_is_pattern(const char *path)
{
    struct stat st;

    return strpbrk(path, "*?[") && stat(path, &st);
}

bool path_is_file(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static void say(struct follow *follow, const char *path, const char *what, uint64_t offset)
{
    if (follow->quiet)
        return;
    progress_clear(&follow->progress);
    silt_say("%s: %s %" PRIu64, path, what, offset);
}

/* ---- names ---- */

static bool held_elsewhere(const struct follow *follow, const struct name *self,
                           const struct stat *st)
{
    for (size_t i = 0; i < follow->count; i++) {
        const struct name *name = follow->names[i];

        if (name == self)
            continue;
        if (name->is_open && name->source.device == st->st_dev && name->source.inode == st->st_ino)
            return true;
        for (int j = 0; j < name->next_count; j++)
            if (name->next[j].device == st->st_dev && name->next[j].inode == st->st_ino)
                return true;
    }
    return false;
}

/* Opens what has the name now, if that is not the file we know. Returns 0 or the exit code. */
static int name_watch(struct follow *follow, struct name *name)
{
    bool known = name->is_open || name->next_count;
    struct stat st;
    int fd;

    if (name->ignored)
        return 0;
    if (stat(name->path, &st)) {
        if (errno == ENOENT && !known && !name->missing && !name->matched) {
            silt_say("%s does not exist yet: waiting for it", name->path);
            name->missing = true;
        }
        return 0;
    }
    if ((known && st.st_dev == name->device && st.st_ino == name->inode) ||
        name->next_count == NEXT_MAX || (name->matched && held_elsewhere(follow, name, &st)))
        return 0;
    fd = source_file(name->path, follow->intake->stream);
    if (fd < 0 && !known && !name->matched)
        return -fd - 1;
    if (fd < 0) { /* said once: this one is looked at no more */
        name->ignored = !known;
        name->device = st.st_dev;
        name->inode = st.st_ino;
        return 0;
    }
    /* Between the two looks the name may have moved on once more. */
    fstat(fd, &st);
    if (name->next_count < 2) /* from when there is one behind the oldest, that one is given up */
        name->next_us = silt_now_us();
    name->device = st.st_dev;
    name->inode = st.st_ino;
    name->next[name->next_count++] =
        (struct file){.fd = fd, .device = name->device, .inode = name->inode};
    name->missing = false;
    return 0;
}

static void name_free(struct name **name)
{
    for (int i = 0; i < (*name)->next_count; i++)
        close((*name)->next[i].fd);
    if ((*name)->is_open)
        source_close(&(*name)->source);
    free((*name)->path);
    free(*name);
    *name = NULL;
}

static int name_add(struct follow *follow, const char *path, bool matched)
{
    struct name *name;

    if (follow->count == follow->room) {
        size_t room = follow->room ? 2 * follow->room : 64;
        void *names = realloc(follow->names, room * sizeof *follow->names);

        if (!names)
            goto error;
        follow->names = names;
        follow->room = room;
    }
    name = calloc(1, sizeof *name);
    if (!name)
        goto error;
    name->path = strdup(path);
    name->matched = matched;
    if (!name->path) {
        free(name);
        goto error;
    }
    follow->names[follow->count++] = name;
    return 0;
error:
    silt_say("out of memory");
    return EXIT_REFUSED;
}

static bool name_known(const struct follow *follow, const char *path)
{
    for (size_t i = 0; i < follow->count; i++)
        if (!strcmp(follow->names[i]->path, path))
            return true;
    return false;
}

/* A name whose file another name leads to already comes back when that is no more so. */
static int match(struct follow *follow, const char *path)
{
    struct stat st;

    if (name_known(follow, path) || stat(path, &st) || !S_ISREG(st.st_mode) ||
        held_elsewhere(follow, NULL, &st))
        return 0;
    if (follow->count >= follow->files_max) {
        if (!follow->full)
            silt_say("%zu files are followed, more may not be open at once (ulimit -n): %s and "
                     "what comes after it wait",
                     follow->count, path);
        follow->full = true;
        return 0;
    }
    return name_add(follow, path, true);
}

static int match_patterns(struct follow *follow)
{
    bool first = !follow->glob_us;
    int r = 0;

    if (follow->glob_us && silt_now_us() - follow->glob_us < GLOB_US)
        return 0;
    follow->glob_us = silt_now_us();
    for (int i = 0; i < follow->pattern_count && !r; i++) {
        glob_t found = {0};

        if (!glob(follow->patterns[i], GLOB_NOSORT, NULL, &found))
            for (size_t j = 0; j < found.gl_pathc && !r; j++)
                r = match(follow, found.gl_pathv[j]);
        else if (first)
            silt_say("no file matches %s yet: waiting for one", follow->patterns[i]);
        globfree(&found);
    }
    return r;
}

/* Of the client's waits, and of the loop. */
static void watch_all(void *user)
{
    struct follow *follow = user;
    int64_t now = silt_now_us();
    int r;

    if (follow->watched || (follow->watch_us && now - follow->watch_us < LOOK_MS * 900))
        return;
    follow->watch_us = now;
    r = match_patterns(follow);
    for (size_t i = 0; i < follow->count && !r; i++)
        r = name_watch(follow, follow->names[i]);
    follow->watched = r;
}

/* ---- files ---- */

static void next_drop(struct name *name)
{
    memmove(name->next, name->next + 1, sizeof *name->next * (size_t)--name->next_count);
    name->next_us = silt_now_us();
}

/* Of the files that a name had before, siltd wants those it has not all of, from the first that it
 * has some of. */
static bool file_wanted(struct name *name)
{
    const struct source *source = &name->source;

    name->behind_known |= source->offset > 0;
    return name->behind_known && source->offset < source->size;
}

/* While nobody followed it the name may have gone to another file: those it had before come first.
 */
static void look_back(const struct follow *follow, struct name *name)
{
    int fds[SOURCE_ROTATED_MAX];
    int count = 0, found = 0;

    if (!name->looked_back && follow->intake->format == FORMAT_PLAIN)
        found = source_rotated(name->path, fds);
    name->looked_back = true;
    for (int i = 0; i < found; i++) {
        struct stat st;

        if (fstat(fds[i], &st) || held_elsewhere(follow, NULL, &st) ||
            name->next_count == NEXT_MAX) {
            close(fds[i]);
            continue;
        }
        memmove(name->next + count + 1, name->next + count,
                sizeof *name->next * (size_t)(name->next_count++ - count));
        name->next[count++] =
            (struct file){.fd = fds[i], .device = st.st_dev, .inode = st.st_ino, .rotated = true};
    }
}

/* Takes up the oldest file that waits: 0 or the exit code. */
static int file_begin(struct follow *follow, struct name *name)
{
    bool rotated;
    int r;

    if (!client_connected(follow->silt->client))
        return 0;
    look_back(follow, name);
    rotated = name->next[0].rotated;
    r = source_open(&name->source, follow->intake, name->path, name->next[0].fd);
    if (r == -ENODATA) {
        /* Nothing yet; one that others have replaced gets nothing any more. */
        if (name->next_count > 1 && silt_now_us() - name->next_us > QUIET_US) {
            close(name->next[0].fd);
            next_drop(name);
        }
        return 0;
    }
    if (r == -EBUSY) /* the next look tries again */
        return 0;
    next_drop(name);
    if (rotated && (r == EXIT_REFUSED || (!r && !file_wanted(name)))) {
        if (!r)
            source_close(&name->source);
        return file_begin(follow, name);
    }
    if (r && name->matched && r != EXIT_STOPPED && r != EXIT_AWAY) {
        name->ignored = true;
        return 0;
    }
    if (r)
        return r;
    name->is_open = true;
    say(follow, name->path,
        rotated               ? "was rotated meanwhile: the old file goes on at byte"
        : name->source.offset ? "goes on at byte"
                              : "new to the stream, from byte",
        name->source.offset);
    return 0;
}

/* All of it must be acked before the first byte of what follows. */
static bool file_acked(const struct name *name)
{
    struct producer_status status;

    producer_status(name->source.producer, &status);
    return !status.held_count;
}

static void file_end(struct name *name)
{
    source_close(&name->source);
    name->is_open = false;
    name->next_us = silt_now_us();
}

/* The same file with a new text: it is opened anew, before those that wait. */
static int file_restart(struct follow *follow, struct name *name)
{
    int fd;

    if (!file_acked(name))
        return 0;
    say(follow, name->path, "was cut short: starts anew, after byte", name->source.offset);
    fd = fcntl(name->source.fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || name->next_count == NEXT_MAX) {
        silt_say("%s: cannot be opened anew: %s", name->path, strerror(errno));
        return EXIT_REFUSED;
    }
    file_end(name);
    memmove(name->next + 1, name->next, sizeof *name->next * (size_t)name->next_count);
    name->next[0] =
        (struct file){.fd = fd, .device = name->source.device, .inode = name->source.inode};
    name->next_count++;
    return file_begin(follow, name);
}

/* A writer that is gone leaves its last line, or its last caption, as it is. */
static int file_rest(struct source *source)
{
    struct intake rest = *source->intake;
    const struct intake *kept = source->intake;
    int r;

    rest.lines = false;
    source->intake = &rest;
    r = source_send(source, source->convert != NULL);
    source->intake = kept;
    return r;
}

/* 0 or the exit code; a name with nothing left is marked by a path that is empty. */
static int file_quiet(struct follow *follow, struct name *name)
{
    struct source *source = &name->source;
    struct stat st;
    int r;

    if (!source->idle_us)
        source->idle_us = silt_now_us();
    if (silt_now_us() - source->idle_us < QUIET_US || fstat(source->fd, &st) ||
        (!name->next_count && !(name->matched && !st.st_nlink)))
        return 0;
    r = file_rest(source);
    if (r < 0)
        return silt_fail(follow->silt);
    if (r > 0 || !file_acked(name))
        return 0;
    say(follow, name->path,
        name->next_count ? "rotated: the old file ended at byte" : "is gone: it ended at byte",
        source->offset);
    file_end(name);
    return name->next_count ? file_begin(follow, name) : 0;
}

/* One look at one name: 0 or the exit code. */
static int name_look(struct follow *follow, struct name *name)
{
    struct source *source = &name->source;
    int r;

    if (!name->is_open)
        return name->next_count ? file_begin(follow, name) : 0;
    if (source_truncated(source))
        return file_restart(follow, name);
    r = source_send(source, false);
    if (r < 0)
        return silt_fail(follow->silt);
    if (r == 0)
        return file_quiet(follow, name);
    source->idle_us = 0;
    follow->backlog |= source_left(source) && producer_room(source->producer) > 0;
    return 0;
}

static bool name_gone(const struct name *name)
{
    struct stat st;

    return name->matched && !name->is_open && !name->next_count && stat(name->path, &st);
}

/* ---- the loop ---- */

static void follow_progress(struct follow *follow)
{
    struct producer_status status;
    uint64_t done = 0;

    for (size_t i = 0; i < follow->count; i++)
        if (follow->names[i]->is_open) {
            producer_status(follow->names[i]->source.producer, &status);
            done += status.bytes_acked;
        }
    follow->progress.bytes_done = done;
    progress_draw(&follow->progress);
}

/* Says how far each file is safe, once siltd has acked what was on its way. */
static int follow_stop(struct follow *follow)
{
    int result = EXIT_STOPPED;
    size_t said = 0;

    silt_stop = false;
    progress_clear(&follow->progress);
    for (size_t i = 0; i < follow->count; i++) {
        struct source *source = &follow->names[i]->source;
        struct producer_status status;

        if (!follow->names[i]->is_open)
            continue;
        if (result == EXIT_STOPPED)
            result = feed_settle(follow->silt, source->producer);
        producer_status(source->producer, &status);
        if (said++ < SAY_FILES_MAX)
            silt_say("%s: acked up to byte %" PRIu64 "; the same command goes on from there",
                     source->path, status.bytes_acked);
    }
    if (said > SAY_FILES_MAX)
        silt_say("and so %zu more files", said - SAY_FILES_MAX);
    return result;
}

static int look_at_all(struct follow *follow)
{
    int r;

    watch_all(follow);
    r = follow->watched;
    follow->backlog = false;
    for (size_t i = 0; i < follow->count && !silt_stop && !r; i++) {
        r = name_look(follow, follow->names[i]);
        if (!r && name_gone(follow->names[i])) {
            name_free(&follow->names[i]);
            follow->names[i--] = follow->names[--follow->count];
        }
    }
    return r;
}

/* Acks may wake us at any time; names are looked at in their own time, or when more waits to be
 * read. */
static int follow_loop(struct follow *follow)
{
    int64_t next_us = 0;

    for (;;) {
        int64_t left_ms = (next_us - silt_now_us() + 999) / 1000;
        int r;

        if (left_ms <= 0 || follow->backlog) {
            next_us = silt_now_us() + LOOK_MS * 1000;
            r = look_at_all(follow);
            if (r && !silt_stop)
                return r;
            left_ms = (next_us - silt_now_us() + 999) / 1000;
        }
        if (!silt_stop)
            client_poll(follow->silt->client, -1,
                        follow->backlog || left_ms < 0 ? 0 : (int)left_ms);
        if (silt_stop)
            return follow_stop(follow);
        follow_progress(follow);
    }
}

/* As many open files as the system allows. */
static size_t files_max(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit))
        return 256;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur > 2 * HANDLES_SPARE ? limit.rlim_cur - HANDLES_SPARE : HANDLES_SPARE;
}

int follow_run(const struct intake *intake, char **paths, int path_count, bool quiet)
{
    struct intake shared = *intake;
    struct follow follow = {
        .intake = &shared,
        .silt = intake->silt,
        .quiet = quiet,
        .files_max = files_max(),
        .patterns = calloc((size_t)path_count, sizeof *follow.patterns),
        .progress = {.on = !quiet && isatty(STDERR_FILENO),
                     .client = intake->silt->client,
                     .stream = intake->stream,
                     .what = path_count == 1 ? paths[0] : "files"},
    };
    int r = follow.patterns ? 0 : EXIT_REFUSED;

    for (int i = 0; i < path_count && !r; i++)
        if (path_is_pattern(paths[i]))
            follow.patterns[follow.pattern_count++] = paths[i];
        else
            r = name_add(&follow, paths[i], false);
    shared.lines = !intake->each && (path_count > 1 || follow.pattern_count);
    intake->silt->turn_user = &follow;
    intake->silt->turn = watch_all;
    if (!r)
        r = follow_loop(&follow);
    intake->silt->turn = NULL;
    for (size_t i = 0; i < follow.count; i++)
        name_free(&follow.names[i]);
    free(follow.names);
    free(follow.patterns);
    return r;
}
