/*
 * source: where fed bytes come from, and how they become the text of a stream.
 */
#ifndef SILT_SOURCE_H
#define SILT_SOURCE_H

#include "clients/silt/convert.h"
#include "clients/silt/silt.h"

enum {
    SOURCE_HEAD_BYTES = 1024,
    SOURCE_PIECE_BYTES = 64 << 10,
    STREAM_NAME_BYTES = 160,
    SOURCE_ROTATED_MAX = 8
};

/* What all sources of one feed have in common. */
struct intake {
    struct silt *silt;
    const char *stream; /* "%" stands for a file's name */
    bool each;          /* it has one: a stream a file */
    struct client_open_options open;
    enum convert_format format;
    uint64_t start_us; /* wall clock at which a recording began; 0: not known */
    bool lines;        /* several files feed one stream: each is cut at line ends */
    bool growing;      /* files are followed: the end of one is not its last */
};

/* Opens that stream: 0, -EBUSY: not now, or the exit code after saying so. */
int intake_open(const struct intake *intake, const char *stream);
/* Wall clock of text that is to be sent; 0: none is known. *bytes becomes as many as it holds for.
 * `whole`: it begins with a whole line. */
uint64_t intake_time(const struct intake *intake, const uint8_t *text, size_t *bytes, bool whole);

struct source {
    const struct intake *intake;
    char *path; /* owned */
    char stream[STREAM_NAME_BYTES];
    int fd;
    uint64_t device, inode;
    uint64_t size;
    uint64_t offset; /* of the next byte to read */
    uint64_t skip;   /* bytes of converted text that siltd has already */
    size_t head_bytes;
    uint8_t head[SOURCE_HEAD_BYTES]; /* first bytes, as they were when it was opened */
    struct convert *convert;         /* NULL: sent as it is */
    bool converted_all;              /* the end was pushed */
    bool ended_line;                 /* what was sent so far ends a line */
    struct producer *producer;
    int64_t idle_us; /* since when there is nothing to read; 0: there was */
};
/* Takes an open file, closes it on failure, and attaches its producer at the byte after the last
 * acked one. Returns 0 or the exit code after saying so; -ENODATA: the file is empty, so it has no
 * identity yet; -EBUSY: not now; after these two the file stays the caller's. The path is copied.
 */
int source_open(struct source *source, const struct intake *intake, const char *path, int fd);
/* An open file for it, or the exit code negated less one after saying so. */
int source_file(const char *path, const char *stream);
/* Opens what rotation has most likely made of a file: PATH.1 to PATH.8, PATH-20261122 of the last
 * eight days, oldest first; what is packed or empty is left out, and the oldest of too many.
 * Returns how many of fds [SOURCE_ROTATED_MAX]. */
int source_rotated(const char *path, int *fds);
void source_close(struct source *source);
/* Sends one piece if there is one and credit for it. `end`: mark the end of input with the last
 * byte. Returns bytes sent, 0: nothing now, or -errno with silt->error. */
int source_send(struct source *source, bool end);
/* Whether something of the file, as long as it was at the last look, is still to be sent. */
bool source_left(const struct source *source);
/* Looks how long it is now; true: it was cut short, or emptied and written anew. */
bool source_truncated(struct source *source);

/* stdin.c: what comes down a pipe, as text or as one turn of a talk. */
struct pipe {
    const struct intake *intake;
    const char *producer_id; /* NULL: a fresh one */
    const char *turn;        /* role; NULL: text */
    struct progress *progress;
    uint64_t bytes; /* sent */
};
/* Returns the exit code. */
int pipe_feed(struct pipe *pipe);
/* Waits for the acks of all that was sent: 0 or the exit code. path: what it is, for the words
 * after Ctrl-C; NULL: stdin. */
int feed_drain(struct silt *silt, struct progress *progress, struct producer *producer,
               const char *path);
/* Says silt->error, or that it was Ctrl-C, and how far siltd has acked. */
int feed_fail(struct silt *silt, struct progress *progress, struct producer *producer,
              const char *path);
/* After Ctrl-C: what is on its way still counts. EXIT_STOPPED, or another after saying so. */
int feed_settle(struct silt *silt, struct producer *producer);
void feed_draw(struct progress *progress, const struct producer *producer);

/* follow.c: feeds files as they grow until stopped. A path may be a pattern: what it matches is
 * looked up again and again. Returns the exit code. */
int follow_run(const struct intake *intake, char **paths, int path_count, bool quiet);
/* A pattern that names no file as it stands. */
bool path_is_pattern(const char *path);
/* Not a folder or the like, which a pattern may match too. */
bool path_is_file(const char *path);

#endif
