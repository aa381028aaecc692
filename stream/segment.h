/*
 * segment: how one cold segment lies on disk, and how it is told from everything else that may.
 *
 * A record is a header page and a payload, both whole 4 KiB blocks. The header says what the
 * record is and where it belongs; a reader says what it expects. Whatever does not match is never
 * used: a record written half (torn), of another place (misdirected), of another model, adapter or
 * age of the stream (stale), changed since it was written (rotten), or not there.
 */
#ifndef SILT_STREAM_SEGMENT_H
#define SILT_STREAM_SEGMENT_H

#include "stream/internal.h"
#include "stream/ring.h"

enum {
    SEGMENT_VERSION = 3, /* 2: by the rules of STATE_VERSION 2; 3: says which chunks it holds */
    SEGMENT_HEADER_BYTES = DISK_ALIGN,
    SEGMENT_LEVELS = 8, /* a segment of level l averages 2^l chunks */
};
#define SEGMENT_MAGIC 0x31474553544c4953u /* "SILTSEG1" */

/* Little-endian, as every machine this runs on. */
struct segment_header {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint64_t model_fingerprint, adapter_fingerprint;
    uint64_t stream_id, stream_epoch;
    uint64_t number; /* of its level: covers chunks [number << level, (number + 1) << level) */
    uint32_t level, dtype;
    uint64_t token_from, token_to;
    uint64_t time_from_us, time_to_us; /* wall clock, 0: not known */
    uint32_t layers, kv_heads, slots, head_dim;
    uint32_t weight;   /* chunks averaged in it */
    uint32_t reserved; /* 0 */
    uint64_t held[2];  /* which of its chunks: bit i % 64 of [i / 64] for number << level + i */
    uint64_t payload_bytes;
    uint64_t offset; /* of this record in its file */
    uint64_t payload_hash;
    uint64_t header_hash; /* of the whole page with this field 0 */
};
_Static_assert(sizeof(struct segment_header) <= SEGMENT_HEADER_BYTES, "a header is one page");

/* What all records of one data folder share. */
struct segment_shape {
    uint32_t layers, kv_heads, slots, head_dim;
    uint64_t model_fingerprint, adapter_fingerprint;
    enum segment_dtype dtype;
    struct kernels *kernels; /* of the engine */
    size_t values;           /* f16 of the rows: layers * kv_heads * slots * 2 * head_dim */
    size_t payload_bytes;    /* of dtype */
    size_t record_bytes;     /* whole blocks; the f16 rows fit behind the header page */
};
void segment_shape_make(struct segment_shape *out, const struct engine *engine,
                        enum segment_dtype dtype);

/* Where a record belongs and what it covers. */
struct segment_place {
    uint64_t stream_id, stream_epoch, number, offset;
    uint32_t level;
};

/* Rows into the payload of a record: f16 as they are, or int8 with one scale for each slot's K and
 * V of a head. */
void segment_put_rows(const struct segment_shape *shape, uint8_t *record, const f16 *rows);
/* The payload as f16 rows in place, [layer][kv_head][slot][2][head_dim]; buffer holds
 * segment_buffer_bytes. */
const f16 *segment_take_rows(const struct segment_shape *shape, uint8_t *record);
/* What a record covers, as the first or the second half of one of the next level. */
void segment_raise(struct segment_header *covers, bool second);
/* Whether a chunk is in it: a mean may lack one of its place that was not fit when it was made. */
bool segment_holds(const struct segment_header *covers, uint64_t chunk);
bool segment_lacks_some(const struct segment_header *covers);
/* Two halves become their mean, in a, weighted by the chunks each stands for. */
void segment_average(const struct segment_shape *shape, f16 *a, struct segment_header *covers_a,
                     const f16 *b, const struct segment_header *covers_b);
/* A record buffer that can also hold its rows as f16. */
size_t segment_buffer_bytes(const struct segment_shape *shape);

/* Fills in what is known of the header and both hashes, after the rows are in place. */
void segment_seal(const struct segment_shape *shape, uint8_t *record,
                  const struct segment_place *place, const struct segment_header *covers);
/* The header page alone; then the whole record. 0: it is what was asked for. */
enum segment_fault segment_check_header(const struct segment_shape *shape, const uint8_t *record,
                                        const struct segment_place *place);
enum segment_fault segment_check(const struct segment_shape *shape, const uint8_t *record,
                                 const struct segment_place *place);
const char *segment_fault_name(enum segment_fault fault);

#endif
