/*
 * stream_rig: the tiny model and its adapter as files of this process, tokens for it, and streams
 * in memory of their own.
 */
#ifndef SILT_STREAM_RIG_H
#define SILT_STREAM_RIG_H

#include "stream/internal.h"
#include "tests/unit/tiny_model.h"

struct held_stream {
    struct stream *stream;
    void *memory;
    size_t bytes; /* of it */
};

extern char stream_rig_model[80], stream_rig_adapter[80]; /* paths */

/* Writes both; stream_rig_tear_down removes them and closes the engine. 0 or -errno. */
int stream_rig_write(const struct tiny_options *options);
/* An engine of the model, whose path need not be given. Fails the test where none opens. */
struct engine *stream_rig_engine(struct engine_options options);
void stream_rig_tear_down(struct engine **engine);
/* Text of the engine's vocabulary, the same each time. */
void stream_rig_tokens(const struct engine *engine, int32_t *tokens, size_t count);

/* ring: segments, 0 for the adapter's. */
struct held_stream stream_rig_open(struct engine *engine, uint32_t ratio, uint32_t ring);
void stream_rig_close(struct held_stream *h);
struct stream_stat stream_rig_stat(const struct held_stream *h);

#endif
