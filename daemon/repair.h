/*
 * repair: cold segments that were found unfit are computed again, in a stream of their own.
 *
 * From the nearest checkpoint before it the text is read again up to the segment's last chunk: what
 * comes out is the same to the bit. Where that is farther than tokens_max, the stream is begun near
 * the segment instead: its ring from cold segments, summary and sinks from the nearest checkpoint,
 * two chunks of warm-up; then it is near what it was (`approximate`). Live memory is not touched.
 * Where the text for either was trimmed away, the segment stays away.
 * It is the compute thread's, block by block when little else is to do.
 */
#ifndef SILT_DAEMON_REPAIR_H
#define SILT_DAEMON_REPAIR_H

#include "daemon/keeper.h"
#include "daemon/search.h"

enum { REPAIR_TOKENS_MAX = 65536, REPAIR_WARM_CHUNKS = 2 };
enum repair_phase { REPAIR_IDLE, REPAIR_SEED, REPAIR_FEED, REPAIR_END };

struct repair {
    struct engine *engine;
    struct spill *spill;
    struct keeper *keeper;
    struct reader *reader;
    struct slot *slots; /* [slot_count] */
    uint32_t slot_count, chunk_tokens;
    uint64_t tokens_max; /* read again for one segment */
    void *memory;        /* [memory_bytes] of the stream */
    size_t memory_bytes;

    enum repair_phase phase;
    struct spill_damage damage;
    const struct slot *slot; /* of the stream that has it */
    uint64_t streams;        /* slot->streams: it may have left, lost text and come back */
    struct stream *stream;
    bool approximate;
    uint64_t text_from;       /* the first token whose text is left */
    uint64_t position;        /* tokens the stream has */
    uint64_t seeded, seed_to; /* chunks of the ring */
    struct spill_fetch *fetch;
    struct reader_place place;
    const int32_t *tokens; /* read and not yet fed: [taken, count) */
    uint32_t count, taken;
    uint64_t time_us;
    struct chunk_time time; /* of the chunk being fed */
};

size_t repair_bytes(size_t stream_bytes, uint32_t item_tokens_max);
/* memory: of repair_bytes. Fills in its parts; the fields above `phase` are set but for reader and
 * memory. */
int repair_open(struct repair *repair, const char *folder, const struct tokenizer *tokenizer,
                uint32_t item_tokens_max, void *memory, size_t bytes);
void repair_close(struct repair *repair);
/* One block. False: nothing to do now. */
bool repair_step(void *repair);

#endif
