/* Records of cold segments: written once, believed only when everything matches. */
#include "stream/segment.h"

#include <string.h>
#include <xxhash.h>

enum { AVERAGE_VALUES = 512 }; /* at a time: what is between f16 and f16 stays near */

static size_t blocks(size_t bytes)
{
    return (bytes + DISK_ALIGN - 1) & ~(size_t)(DISK_ALIGN - 1);
}

static size_t scales_count(const struct segment_shape *shape)
{
    return shape->values / shape->head_dim;
}

void segment_shape_make(struct segment_shape *out, const struct engine *engine,
                        enum segment_dtype dtype)
{
    const struct shape *s = &engine->shape;
    *out = (struct segment_shape){.layers = s->layers,
                                  .kv_heads = s->kv_heads,
                                  .slots = s->comp,
                                  .head_dim = s->head_dim,
                                  .model_fingerprint = engine->info.model_fingerprint,
                                  .adapter_fingerprint = engine->info.adapter_fingerprint,
                                  .dtype = dtype,
                                  .kernels = engine->kernels};
    out->values = (size_t)s->layers * s->kv_heads * s->comp * 2 * s->head_dim;
    out->payload_bytes = dtype == SEGMENT_INT8
                             ? out->values + (out->values / s->head_dim) * sizeof(float)
                             : out->values * sizeof(f16);
    out->record_bytes = SEGMENT_HEADER_BYTES + blocks(out->payload_bytes);
}

size_t segment_buffer_bytes(const struct segment_shape *shape)
{
    size_t rows = SEGMENT_HEADER_BYTES + blocks(shape->values * sizeof(f16));
    /* int8: the scales are set aside behind the rows while these spread out */
    if (shape->dtype == SEGMENT_INT8)
        rows += blocks(scales_count(shape) * sizeof(float));
    return rows > shape->record_bytes ? rows : shape->record_bytes;
}

/* int8 payload: [values] int8, then [values / head_dim] float scales. */
static float *scales_of(const struct segment_shape *shape, uint8_t *payload)
{
    return (float *)(void *)(payload + shape->values);
}

static void put_int8(const struct segment_shape *shape, uint8_t *payload, const f16 *rows)
{
    struct kernels *k = shape->kernels;
    k->pack_int8(k, (int8_t *)payload, scales_of(shape, payload), rows,
                 (uint32_t)scales_count(shape), shape->head_dim);
}

static void take_int8(const struct segment_shape *shape, uint8_t *payload)
{
    struct kernels *k = shape->kernels;
    float *aside = (float *)(void *)(payload + blocks(shape->values * sizeof(f16)));
    memcpy(aside, scales_of(shape, payload), scales_count(shape) * sizeof *aside);
    k->unpack_int8(k, (f16 *)(void *)payload, (const int8_t *)payload, aside,
                   (uint32_t)scales_count(shape), shape->head_dim);
}

void segment_put_rows(const struct segment_shape *shape, uint8_t *record, const f16 *rows)
{
    uint8_t *payload = record + SEGMENT_HEADER_BYTES;
    if (shape->dtype == SEGMENT_INT8)
        put_int8(shape, payload, rows);
    else
        memcpy(payload, rows, shape->payload_bytes);
    memset(payload + shape->payload_bytes, 0,
           shape->record_bytes - SEGMENT_HEADER_BYTES - shape->payload_bytes);
}

const f16 *segment_take_rows(const struct segment_shape *shape, uint8_t *record)
{
    if (shape->dtype == SEGMENT_INT8)
        take_int8(shape, record + SEGMENT_HEADER_BYTES);
    return (const f16 *)(const void *)(record + SEGMENT_HEADER_BYTES);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return !a || (b && b < a) ? b : a;
}

void segment_raise(struct segment_header *covers, bool second)
{
    uint32_t chunks = 1u << covers->level++;
    if (second && chunks == 64) {
        covers->held[1] = covers->held[0];
        covers->held[0] = 0;
    } else if (second) {
        covers->held[0] <<= chunks;
    }
}

bool segment_holds(const struct segment_header *covers, uint64_t chunk)
{
    uint64_t i = chunk - (covers->number << covers->level);
    return chunk >> covers->level == covers->number && covers->held[i / 64] >> i % 64 & 1;
}

bool segment_lacks_some(const struct segment_header *covers)
{
    return covers->weight < 1u << covers->level;
}

void segment_average(const struct segment_shape *shape, f16 *a, struct segment_header *covers_a,
                     const f16 *b, const struct segment_header *covers_b)
{
    struct kernels *k = shape->kernels;
    float weight_a = (float)covers_a->weight, weight_b = (float)covers_b->weight;
    float share = weight_b / (weight_a + weight_b), mean[AVERAGE_VALUES];
    for (size_t i = 0; i < shape->values; i += AVERAGE_VALUES) {
        size_t rest = shape->values - i, count = rest < AVERAGE_VALUES ? rest : AVERAGE_VALUES;
        memset(mean, 0, sizeof mean);
        k->fold(k, mean, a + i, count, 1); /* a itself */
        k->fold(k, mean, b + i, count, share);
        k->pack_f16(k, a + i, mean, count);
    }
    covers_a->weight += covers_b->weight;
    covers_a->held[0] |= covers_b->held[0];
    covers_a->held[1] |= covers_b->held[1];
    covers_a->token_to = covers_b->token_to;
    covers_a->time_from_us = earlier(covers_a->time_from_us, covers_b->time_from_us);
    if (covers_b->time_to_us > covers_a->time_to_us)
        covers_a->time_to_us = covers_b->time_to_us;
}

static uint64_t payload_hash(const struct segment_shape *shape, const uint8_t *record)
{
    return XXH3_64bits(record + SEGMENT_HEADER_BYTES, shape->record_bytes - SEGMENT_HEADER_BYTES);
}

/* The page's hash as if its own field were 0: what stands before it, then what stands behind. */
static uint64_t header_hash(const uint8_t *record)
{
    size_t at = offsetof(struct segment_header, header_hash), behind = at + sizeof(uint64_t);
    uint64_t head = XXH3_64bits(record, at);
    return XXH3_64bits_withSeed(record + behind, SEGMENT_HEADER_BYTES - behind, head);
}

void segment_seal(const struct segment_shape *shape, uint8_t *record,
                  const struct segment_place *place, const struct segment_header *covers)
{
    struct segment_header h = *covers;
    h.magic = SEGMENT_MAGIC;
    h.version = SEGMENT_VERSION;
    h.header_bytes = SEGMENT_HEADER_BYTES;
    h.model_fingerprint = shape->model_fingerprint;
    h.adapter_fingerprint = shape->adapter_fingerprint;
    h.stream_id = place->stream_id;
    h.stream_epoch = place->stream_epoch;
    h.number = place->number;
    h.level = place->level;
    h.dtype = shape->dtype;
    h.layers = shape->layers;
    h.kv_heads = shape->kv_heads;
    h.slots = shape->slots;
    h.head_dim = shape->head_dim;
    h.reserved = 0;
    h.payload_bytes = shape->payload_bytes;
    h.offset = place->offset;
    h.payload_hash = payload_hash(shape, record);
    memcpy(record, &h, sizeof h);
    memset(record + sizeof h, 0, SEGMENT_HEADER_BYTES - sizeof h);
    h.header_hash = header_hash(record);
    memcpy(record + offsetof(struct segment_header, header_hash), &h.header_hash,
           sizeof h.header_hash);
}

/* As many chunks as it says, and all of its place. */
static bool held_is_right(const struct segment_header *h)
{
    uint32_t chunks = 1u << h->level;
    uint64_t first = chunks < 64 ? (1ull << chunks) - 1 : UINT64_MAX;
    uint64_t second = chunks > 64 ? UINT64_MAX : 0;
    return !(h->held[0] & ~first) && !(h->held[1] & ~second) && h->weight &&
           (uint32_t)(__builtin_popcountll(h->held[0]) + __builtin_popcountll(h->held[1])) ==
               h->weight;
}

static bool same_kind(const struct segment_shape *shape, const struct segment_header *h)
{
    return h->version == SEGMENT_VERSION && h->header_bytes == SEGMENT_HEADER_BYTES &&
           h->model_fingerprint == shape->model_fingerprint &&
           h->adapter_fingerprint == shape->adapter_fingerprint && h->dtype == shape->dtype &&
           h->layers == shape->layers && h->kv_heads == shape->kv_heads &&
           h->slots == shape->slots && h->head_dim == shape->head_dim &&
           h->payload_bytes == shape->payload_bytes;
}

enum segment_fault segment_check_header(const struct segment_shape *shape, const uint8_t *record,
                                        const struct segment_place *place)
{
    struct segment_header h;
    memcpy(&h, record, sizeof h);
    if (h.magic == 0)
        return SEGMENT_MISSING; /* never written, or given back to the file system */
    if (h.magic != SEGMENT_MAGIC || h.header_hash != header_hash(record))
        return SEGMENT_TORN;
    if (h.stream_id != place->stream_id || h.level != place->level || h.number != place->number ||
        h.offset != place->offset)
        return SEGMENT_MISDIRECTED;
    if (h.stream_epoch != place->stream_epoch || !same_kind(shape, &h))
        return SEGMENT_STALE;
    if (h.level >= SEGMENT_LEVELS || h.token_from >= h.token_to || !held_is_right(&h))
        return SEGMENT_TORN;
    return SEGMENT_FINE;
}

enum segment_fault segment_check(const struct segment_shape *shape, const uint8_t *record,
                                 const struct segment_place *place)
{
    struct segment_header h;
    enum segment_fault fault = segment_check_header(shape, record, place);
    if (fault)
        return fault;
    memcpy(&h, record, sizeof h);
    return h.payload_hash == payload_hash(shape, record) ? SEGMENT_FINE : SEGMENT_ROTTEN;
}

const char *segment_fault_name(enum segment_fault fault)
{
    static const char *const names[SEGMENT_FAULTS] = {
        "fine", "missing", "torn", "misdirected", "stale", "rotten", "unreadable"};
    return fault < SEGMENT_FAULTS ? names[fault] : "unknown";
}
