/* See stream_rig.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/stream_rig.h"

char stream_rig_model[80], stream_rig_adapter[80];

int stream_rig_write(const struct tiny_options *options)
{
    const char *under = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    int result;

    snprintf(stream_rig_model, sizeof stream_rig_model, "%s/silt-test-%d.gguf", under, getpid());
    snprintf(stream_rig_adapter, sizeof stream_rig_adapter, "%s/silt-test-%d.a.gguf", under,
             getpid());
    result = tiny_model_write(stream_rig_model, options);
    return result ? result : tiny_adapter_write(stream_rig_adapter, stream_rig_model, options);
}

struct engine *stream_rig_engine(struct engine_options options)
{
    struct engine *engine = NULL;
    char error[400] = "";

    if (!options.model_path)
        options.model_path = stream_rig_model;
    if (engine_open(&engine, &options, error, sizeof error))
        fail_msg("%s", error);
    return engine;
}

void stream_rig_tear_down(struct engine **engine)
{
    engine_close(engine);
    unlink(stream_rig_model);
    unlink(stream_rig_adapter);
}

void stream_rig_tokens(const struct engine *engine, int32_t *tokens, size_t count)
{
    uint64_t x = 88172645463325252u;

    for (size_t i = 0; i < count; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        tokens[i] = (int32_t)(3 + x % (engine->shape.vocab - 3));
    }
}

struct held_stream stream_rig_open(struct engine *engine, uint32_t ratio, uint32_t ring)
{
    struct stream_options options = {.dmc_ratio = ratio, .ring_segments = ring};
    struct held_stream h = {.bytes = stream_bytes(engine, &options, NULL, 0)};

    h.memory = aligned_alloc(64, (h.bytes + 63) & ~(size_t)63);
    assert_non_null(h.memory);
    assert_int_equal(stream_open(&h.stream, engine, &options, h.memory, h.bytes), 0);
    return h;
}

void stream_rig_close(struct held_stream *h)
{
    stream_close(&h->stream);
    free(h->memory);
}

struct stream_stat stream_rig_stat(const struct held_stream *h)
{
    struct stream_stat s;

    stream_stat(h->stream, &s);
    return s;
}
