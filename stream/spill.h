/* What spill.c and spill_files.c share, and tests may look into. */
#ifndef SILT_STREAM_SPILL_H
#define SILT_STREAM_SPILL_H

#include <pthread.h>
#include <stdatomic.h>

#include "stream/segment.h"

enum {
    SPILL_FILE_RECORDS = 16,     /* of one file at least, */
    SPILL_FILE_RECORDS_MAX = 64, /* and more where they are small */
    SPILL_FILE_BYTES = 2 << 20,
    SPILL_UNIT_SHARE = 32, /* a stream's unit takes one part in so many of its quota at most, */
    SPILL_UNIT_MIN = 2,    /* and where it is a file's least records or fewer one in four */
    SPILL_RUN_BYTES = 512 << 10, /* of neighbours that are written as one, at most */
    SPILL_GROW_MERGED = 4,       /* files of higher levels grow by as many at least */
    SPILL_PATH_MAX = 1024,
    SPILL_STREAMS_MAX = 65536,
    SPILL_STAGING_MAX = 64,
    SPILL_FETCHES_MAX = 64,
    SPILL_DAMAGE_MAX = 32, /* records that wait to be made again */
};

/* Records of one level that are there, in numbers of that level. */
struct spill_range {
    uint64_t from, to;
};

/* The oldest chunks are in the highest level, the newest in level 0. */
struct spill_stream {
    bool used;
    uint64_t id, epoch;
    struct spill_range level[SEGMENT_LEVELS];
    uint64_t bytes;
    uint64_t merged, dropped, repaired, approximate, lost;
    uint64_t faults[SEGMENT_FAULTS];
};

/* A file with a slot of the disk. */
struct spill_file {
    bool used;
    uint64_t stream_id, number;
    uint32_t level;
    uint32_t users;   /* operations under way */
    uint64_t touched; /* when it was used last, in uses */
    uint64_t grown;   /* records there is room for; 0: not known yet */
    uint64_t blocks;  /* bytes of the disk it holds */
};

enum spill_io_kind { SPILL_WRITE, SPILL_READ };
enum spill_io_state { IO_FREE, IO_FILLING, IO_READY, IO_FLYING, IO_DONE };

enum spill_mends { MENDS_NOTHING, MENDS_EXACT, MENDS_APPROXIMATE };

/* One record on its way. */
struct spill_io {
    struct disk_op op;
    enum spill_io_kind kind;
    enum spill_io_state state;
    struct segment_place place;
    uint32_t stream; /* index in streams */
    uint64_t order;  /* in which it was put */
    uint8_t *record; /* [segment_buffer_bytes]; of staging [record_bytes] */
    bool promised;   /* a write that the quota has room for */
    bool alone;      /* a write that failed beside others */
    bool only;       /* a write of what no file has yet */
    uint32_t run;    /* places of staging, from this one on, that are one write */
    enum spill_mends mends;
    struct spill_fetch *fetch;
    enum segment_fault fault;
};

struct spill_fetch {
    struct spill *spill;
    bool used, abandoned;
    uint64_t chunk[STREAM_RECALL_MAX]; /* [chunk_count] asked for */
    uint32_t chunk_count;
    uint32_t count;
    uint32_t left; /* parts still to be read */
    _Atomic bool done;
    bool taken[STREAM_RECALL_MAX]; /* rows are f16 already */
    struct spill_io part[STREAM_RECALL_MAX];
};

/* A record being made again: means that still wait for their neighbours. */
struct spill_mean {
    f16 *rows; /* [values] */
    struct segment_header covers;
};
struct spill_mend {
    struct segment_place place;
    struct spill_mean mean[SEGMENT_LEVELS];
    uint32_t depth;
    uint8_t *record; /* [segment_buffer_bytes] */
};

struct spill {
    struct segment_shape shape;
    uint32_t file_records; /* SPILL_FILE_RECORDS to SPILL_FILE_RECORDS_MAX, a power of two */
    struct spill_options options;
    char folder[SPILL_PATH_MAX];
    int folder_fd, event_fd;
    bool direct; /* O_DIRECT */
    struct disk disk;
    void *engine_memory;
    pthread_mutex_t lock;         /* of streams, staging, fetches and stat */
    pthread_cond_t room;          /* in staging */
    uint32_t waiting;             /* threads that wait for it */
    struct spill_stream *streams; /* [streams_max] */
    uint32_t attached;            /* of them in use */
    struct spill_io *staging;     /* [staging_max] */
    struct spill_fetch *fetches;  /* [fetches_max] */
    uint8_t *page;                /* [DISK_ALIGN] for headers alone */
    uint8_t *merge[2];            /* [segment_buffer_bytes]: two halves, as f16 */
    uint8_t *batch;               /* [file_records][record_bytes] halves, then means */
    struct spill_file files[DISK_FILES_MAX];
    uint64_t uses, orders;
    uint32_t staging_next; /* place to be taken, if it is free */
    uint64_t limit;
    uint64_t merge_limit; /* while merging goes beyond it; else 0 */
    bool astray;          /* a file was not there that should be: bytes are to be counted again */
    bool writes_fail;     /* the segment written last could not be: -EIO */
    struct spill_stat stat;
    struct segment_place damage[SPILL_DAMAGE_MAX]; /* oldest first; the first is being mended */
    uint32_t damage_count;
    struct spill_mend mend; /* of the thread that mends */
};

/* spill_files.c; all of the step thread. */

/* Makes folder/segments and finds out what it supports; counts what is there. */
int spill_folder_open(struct spill *spill, char *error, size_t error_bytes);
/* What folders hold, where somebody else has been at them. The disk must be idle. */
void spill_count(struct spill *spill);
/* The slot of a record's file, opened and grown as needed. -ENOENT, -EMFILE: all in use, … */
int spill_file_get(struct spill *spill, const struct segment_place *place, bool write);
void spill_files_drop(struct spill *spill, uint64_t stream_id);
uint64_t spill_offset(const struct spill *spill, uint64_t number);
/* Records that files of level 0 grow by, and pairs merged for one sync: the more the less each of
 * them costs, and the more of the quota stands empty. A power of two from SPILL_UNIT_MIN to
 * file_records. */
uint32_t spill_unit(const struct spill *spill);
/* Bytes that a record's file will grow by to hold it. */
uint64_t spill_growth(struct spill *spill, const struct segment_place *place);
/* Which records of a stream are there, from its folder. */
int spill_scan(struct spill *spill, struct spill_stream *stream);
/* Gives records [from, to) of a level, its oldest, back to the file system. */
int spill_punch(struct spill *spill, struct spill_stream *stream, uint32_t level, uint64_t from,
                uint64_t to);
/* Gives back what files have grown by and no record of their level lies in. The disk must be idle.
 */
void spill_shrink(struct spill *spill);

/* spill_quota.c: merges and drops until `need` more bytes fit the limit; the disk must be idle. */
void spill_make_room(struct spill *spill, uint64_t need);
/* Which records of a level there are now: what is put meanwhile extends level 0. Takes the lock. */
struct spill_range spill_held(struct spill *spill, const struct spill_stream *stream,
                              uint32_t level);

/* spill_mend.c; under the lock. */
void spill_note_damage(struct spill *spill, const struct segment_place *place);
/* The record was merged or dropped since: the stream, which is its own, has none there any more. */
bool spill_has_left(const struct spill_stream *stream, const struct segment_place *place);
/* Records [from, to) of a level are merged: what was unfit among them is lacking in the next. */
void spill_raise_damage(struct spill *spill, uint64_t stream_id, uint32_t level, uint64_t from,
                        uint64_t to);

/* spill_fetch.c: a part that waits to be read, of a record that has been merged since it was asked
 * for, gets the place of the one that holds its chunks now. Under the lock. */
void spill_follow(struct spill *spill, struct spill_io *part);

/* spill.c */
/* A place in staging, FILLING, for a record; NULL: none is free. Under the lock. */
struct spill_io *spill_staging_take(struct spill *spill);
/* It is filled and may be written. */
void spill_staging_ready(struct spill *spill, struct spill_io *io);
struct spill_stream *spill_find(struct spill *spill, uint64_t stream_id);
/* There is something for the step thread to do. */
void spill_ring_bell(struct spill *spill);
void spill_drain(struct spill *spill);
void spill_note_fault(struct spill *spill, struct spill_stream *stream, enum segment_fault fault);

#endif
