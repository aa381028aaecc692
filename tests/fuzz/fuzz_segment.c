/*
 * libFuzzer: any bytes as a record of cold segments. What passes the check must be what it says it
 * is, and what is read out of it lies inside it.
 *
 * The hashes are mended where the first byte asks for it, so that what stands behind them is
 * reached too.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "stream/segment.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static struct engine engine = {.shape = {.layers = 2,
                                         .heads = 2,
                                         .kv_heads = 2,
                                         .head_dim = 16,
                                         .kv_dim = 32,
                                         .chunk = 64,
                                         .comp = 4}};

/* Rows as int8 are packed and spread out by kernels. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const struct kernels_options options = {.threads = 1, .feature_mask = UINT32_MAX};

    (void)argc, (void)argv;
    if (kernels_open(&engine.kernels, &options))
        abort();
    return 0;
}

static void mend(const struct segment_shape *shape, uint8_t *record,
                 const struct segment_place *place, bool header_too)
{
    struct segment_header covers;
    memcpy(&covers, record, sizeof covers);
    segment_seal(shape, record, place, &covers);
    if (header_too)
        return;
    /* The fuzzer's own header, with hashes that hold. */
    struct segment_header sealed;
    memcpy(&sealed, record, sizeof sealed);
    covers.payload_hash = sealed.payload_hash;
    memcpy(record, &covers, sizeof covers);
    size_t at = offsetof(struct segment_header, header_hash), behind = at + sizeof(uint64_t);
    uint64_t hash = XXH3_64bits_withSeed(record + behind, SEGMENT_HEADER_BYTES - behind,
                                         XXH3_64bits(record, at));
    memcpy(record + at, &hash, sizeof hash);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct segment_shape shape;
    struct segment_place place = {.stream_id = 1, .number = 2, .offset = 8192};
    if (!bytes)
        return 0;
    segment_shape_make(&shape, &engine, data[0] & 1 ? SEGMENT_INT8 : SEGMENT_F16);
    uint8_t *record = calloc(1, segment_buffer_bytes(&shape));
    if (!record)
        return 0;
    memcpy(record, data + 1, bytes - 1 < shape.record_bytes ? bytes - 1 : shape.record_bytes);
    if (data[0] & 2)
        mend(&shape, record, &place, data[0] & 4);
    if (segment_check(&shape, record, &place) == SEGMENT_FINE) {
        struct segment_header h;
        memcpy(&h, record, sizeof h);
        if (h.stream_id != 1 || h.number != 2 || h.offset != 8192 || h.token_from >= h.token_to ||
            !h.weight || h.payload_bytes != shape.payload_bytes)
            abort();
        const f16 *rows = segment_take_rows(&shape, record);
        volatile f16 sink = rows[0];
        sink = rows[shape.values - 1];
        (void)sink;
    }
    free(record);
    return 0;
}
