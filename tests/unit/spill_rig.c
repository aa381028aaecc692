/* See spill_rig.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/spill_rig.h"

static char model_path[80], adapter_path[80];
char spill_rig_folder[80];
struct engine *spill_rig_engine;

struct held spill_rig_open(bool plain, enum segment_dtype dtype)
{
    struct spill_options options = {.folder = spill_rig_folder,
                                    .streams_max = 4,
                                    .staging_max = STAGING,
                                    .fetches_max = FETCHES,
                                    .dtype = dtype,
                                    .plain = plain};
    struct held h = {0};
    char error[200] = "";
    size_t bytes = (spill_bytes(spill_rig_engine, &options) + 4095) / 4096 * 4096;
    h.memory = aligned_alloc(4096, bytes);
    if (spill_open(&h.spill, spill_rig_engine, &options, h.memory, bytes, error, sizeof error))
        fail_msg("%s", error);
    return h;
}

void spill_rig_close(struct held *h)
{
    spill_close(&h->spill);
    free(h->memory);
}

void spill_rig_clear(void)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s && mkdir %s", spill_rig_folder, spill_rig_folder);
    assert_int_equal(system(command), 0);
}

int spill_rig_set_up(void **state)
{
    (void)state;
    const char *under = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    snprintf(model_path, sizeof model_path, "%s/silt-spill-%d.gguf", under, getpid());
    snprintf(adapter_path, sizeof adapter_path, "%s/silt-spill-%d.a.gguf", under, getpid());
    snprintf(spill_rig_folder, sizeof spill_rig_folder, "%s/silt-spill-%d", under, getpid());
    struct tiny_options options = TINY_DEFAULTS;
    if (tiny_model_write(model_path, &options) ||
        tiny_adapter_write(adapter_path, model_path, &options))
        return -1;
    struct engine_options want = {.model_path = model_path,
                                  .adapter_path = adapter_path,
                                  .threads = 1,
                                  .feature_mask = UINT32_MAX};
    char error[200];
    spill_rig_clear();
    return engine_open(&spill_rig_engine, &want, error, sizeof error);
}

int spill_rig_tear_down(void **state)
{
    (void)state;
    engine_close(&spill_rig_engine);
    unlink(model_path);
    unlink(adapter_path);
    spill_rig_clear();
    return rmdir(spill_rig_folder);
}

/* The rows of a segment follow from where it belongs. */
void spill_rig_rows(uint64_t stream, uint64_t number, f16 *rows)
{
    uint64_t x = stream * 1000003 + number * 7919 + 1;
    for (int i = 0; i < VALUES; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        rows[i] = f16_from_f32((float)(int32_t)(x >> 33) / 1e9f - 1);
    }
}

int spill_rig_put(struct spill *spill, uint64_t stream, uint64_t number)
{
    static f16 rows[VALUES];
    spill_rig_rows(stream, number, rows);
    struct segment_view view = {number, number * TINY_CHUNK, (number + 1) * TINY_CHUNK, rows,
                                sizeof rows};
    return spill_put(spill, stream, &view, number + 1, number + 2);
}

void spill_rig_put_many(struct spill *spill, uint64_t stream, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++) {
        int code;
        while ((code = spill_rig_put(spill, stream, i)) == -EAGAIN)
            spill_step(spill, true);
        assert_int_equal(code, 0);
    }
}

static bool is_segment(const struct cold_segment *s, uint64_t stream)
{
    static f16 rows[VALUES];
    spill_rig_rows(stream, s->number, rows);
    return s->token_from == s->number * TINY_CHUNK && s->token_to == (s->number + 1) * TINY_CHUNK &&
           s->weight == 1 && s->time_from_us == s->number + 1 &&
           memcmp(rows, s->rows, sizeof rows) == 0;
}

/* Fetches chunks and says which of them came back right, as bits; wrong ones fail the test. */
uint32_t spill_rig_fetch(struct spill *spill, uint64_t stream, const uint64_t *chunks,
                         uint32_t count)
{
    struct spill_fetch *f;
    struct cold_segment out[STREAM_RECALL_MAX];
    uint32_t right = 0;
    assert_int_equal(spill_fetch(spill, stream, chunks, count, &f), 0);
    while (!spill_fetched(f))
        spill_step(spill, true);
    uint32_t n = spill_segments(f, out);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(is_segment(&out[i], stream));
        assert_true(!i || out[i - 1].number < out[i].number);
        for (uint32_t j = 0; j < count; j++)
            if (chunks[j] == out[i].number)
                right |= 1u << j;
    }
    spill_release(&f);
    assert_null(f);
    return right;
}

uint32_t spill_rig_fetch_one(struct spill *spill, uint64_t stream, uint64_t chunk)
{
    return spill_rig_fetch(spill, stream, &chunk, 1);
}

uint64_t spill_rig_faults(struct spill *spill, enum segment_fault fault)
{
    struct spill_stat stat;
    spill_stat(spill, &stat);
    return stat.faults[fault];
}

struct spill_stream_stat spill_rig_stat(struct spill *spill, uint64_t stream)
{
    struct spill_stream_stat stat;
    assert_int_equal(spill_stream_stat(spill, stream, &stat), 0);
    return stat;
}

uint64_t spill_rig_disk_use(void)
{
    char command[160];
    unsigned long long kib = 0;
    snprintf(command, sizeof command, "find %s/segments -type f -printf '%%b\\n'",
             spill_rig_folder);
    FILE *pipe = popen(command, "r");
    unsigned long long blocks;
    while (fscanf(pipe, "%llu", &blocks) == 1)
        kib += blocks;
    pclose(pipe);
    return kib * 512;
}

void spill_rig_check_disk(uint64_t bytes_said)
{
    assert_in_range(spill_rig_disk_use() + 8 * 4096, bytes_said, bytes_said + 16 * 4096);
}
