/* table: the streams siltd knows, by name. The loop thread's alone. */
#ifndef SILT_DAEMON_TABLE_H
#define SILT_DAEMON_TABLE_H

#include "daemon/slot.h"

#define RECORD_NONE UINT32_MAX

enum record_state {
    RECORD_FREE,
    RECORD_PARKED,  /* in the journal alone */
    RECORD_LIVE,    /* has a slot; requests go to the journal in order */
    RECORD_ERASING, /* in no slot; the journal takes it, or a part of it, out */
    RECORD_COMING,  /* a branch that the journal has not confirmed */
    RECORD_LEAVING, /* the journal has let go of the slot; the compute thread has to */
};

struct record {
    char name[NAME_BYTES_MAX + 1];
    enum record_state state;
    uint64_t stream_id; /* 0: the journal has not confirmed it */
    struct stream_options options;
    uint32_t slot;
    uint32_t flights; /* requests in the journal's queue */
    uint32_t asks;
    uint32_t next; /* of the same hash, or free */
    uint64_t created_us, touched_us;
    uint64_t tokens, bytes_text; /* of a parked one, here and below */
    uint64_t memory_hash;        /* behind its last chunk; 0: not known */
    uint64_t indexed_to;         /* 0: not known */
    uint64_t recall_hits;        /* since siltd started */
    uint64_t first_position;     /* text before it was trimmed away */
    uint64_t trim_after_us;      /* nothing of it may go before */
    bool past;                   /* a stream as it was at `tokens`, for one question */
    bool forget;                 /* when it has left: the name is free again */
    bool closing;                /* the compute thread has been told to let go */
};

struct table {
    struct record *records; /* [record_max] */
    uint32_t *buckets;      /* [bucket_count] */
    uint32_t *order;        /* [count], by name */
    uint32_t record_max, bucket_count, count, free;
};
enum { TABLE_BUCKETS = 32768 };

void table_init(struct table *table, struct record *records, uint32_t *buckets, uint32_t *order,
                uint32_t record_max);
uint32_t table_find(const struct table *table, const char *name); /* RECORD_NONE */
/* RECORD_NONE: full. */
uint32_t table_add(struct table *table, const char *name);
void table_drop(struct table *table, uint32_t index);
/* Place in `order` of the first name after `name`. */
uint32_t table_after(const struct table *table, const char *name);

#endif
