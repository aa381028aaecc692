/*
 * libFuzzer: any bytes as the head of an adapter for the tiny model: keys, names, shapes, types,
 * offsets. Values are the tensors', which lie behind it and are always the same. What loads must
 * also serve: words near in meaning; a stream of each ratio takes text up to its second chunk.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stream/stream.h"
#include "tests/unit/tiny_model.h"

enum { DATA_BYTES = 512 << 10, STREAM_BYTES_MAX = 64 << 20, BLOCKS = 2 * TINY_CHUNK / 32 + 1 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static char model_path[64], adapter_path[64];
static int adapter_fd;
static uint8_t values[DATA_BYTES];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const struct tiny_options options = TINY_DEFAULTS;

    (void)argc, (void)argv;
    snprintf(model_path, sizeof model_path, "/proc/self/fd/%d", memfd_create("model", 0));
    adapter_fd = memfd_create("adapter", 0);
    snprintf(adapter_path, sizeof adapter_path, "/proc/self/fd/%d", adapter_fd);
    if (tiny_model_write(model_path, &options))
        abort();
    /* Small and sound as fp32 and as f16: quotas of 2.0 in one, near 2 in the other. */
    for (size_t i = 0; i < sizeof values; i += 4)
        memcpy(values + i, &(uint32_t){0x40004000}, 4);
    return 0;
}

/* Fails where a sound file could not: the memory it asks for is bounded by its own ranges. */
static void serve(struct engine *engine, uint32_t ratio)
{
    struct stream_options options = {.dmc_ratio = ratio};
    struct stream *stream = NULL;
    int32_t tokens[STREAM_BLOCK_TOKENS];
    char error[256];
    size_t bytes = stream_bytes(engine, &options, error, sizeof error);
    void *memory;

    if (!bytes || bytes > STREAM_BYTES_MAX)
        return;
    memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        return;
    if (stream_open(&stream, engine, &options, memory, bytes))
        abort();
    for (uint32_t i = 0; i < BLOCKS; i++) {
        for (uint32_t j = 0; j < STREAM_BLOCK_TOKENS; j++)
            tokens[j] = (int32_t)(3 + (i * 31 + j * 7) % 250);
        if (stream_feed(stream, tokens, STREAM_BLOCK_TOKENS))
            abort();
    }
    stream_close(&stream);
    free(memory);
}

/* Whatever the lexicon holds, what comes out of it can stand in a query. */
static void look_up(const struct engine *engine)
{
    static const char *const words[] = {"red", "car", "ruined", "rust", "a"};
    struct near_word near[8];

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        uint32_t count = engine_near_words(engine, words[i], near, 8);

        for (uint32_t j = 0; j < count; j++)
            for (const char *c = near[j].text; *c || c == near[j].text; c++)
                if ((uint8_t)*c < 0x80 && !isalnum((uint8_t)*c))
                    abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct engine_options options = {.model_path = model_path,
                                     .adapter_path = adapter_path,
                                     .threads = 1,
                                     .feature_mask = UINT32_MAX};
    struct engine *engine = NULL;
    struct engine_info info;
    char error[512] = "";

    if (ftruncate(adapter_fd, 0) || pwrite(adapter_fd, data, bytes, 0) != (ssize_t)bytes ||
        pwrite(adapter_fd, values, sizeof values, (off_t)bytes) != (ssize_t)sizeof values)
        abort();
    if (engine_open(&engine, &options, error, sizeof error)) {
        if (!error[0])
            abort(); /* a refusal has a sentence */
        return 0;
    }
    look_up(engine);
    engine_info(engine, &info);
    for (uint32_t i = 0; i < info.ratio_count; i++)
        serve(engine, info.ratio[i]);
    engine_close(&engine);
    return 0;
}
