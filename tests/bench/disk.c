/*
 * How fast segments go to the disk and come back: bandwidth of writing them, of fetching them with
 * two questions at a time, and how long one question waits for its eight.
 *
 *   bench-disk FOLDER SEGMENTS FETCHES      FOLDER is left with the segment files, for fio
 *
 * Prints "name value unit" lines; tests/bench/disk runs fio on the same files beside it. The engine
 * here is only a shape, that of the default model: no weights are needed to move bytes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stream/spill.h"
#include "tests/bench/measure.h"

enum { STREAM = 1, STAGING = 16, LATENCIES_MAX = 1 << 16 };

static struct engine engine = {.shape = {.layers = 30,
                                         .heads = 9,
                                         .kv_heads = 3,
                                         .group = 3,
                                         .head_dim = 64,
                                         .kv_dim = 192,
                                         .dim = 576,
                                         .chunk = 256,
                                         .comp = 16,
                                         .ring = 14}};
static double latency[LATENCIES_MAX];

static void check(bool right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "bench-disk: %s\n", what);
    exit(1);
}

static uint64_t next_random(void)
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x;
}

static void write_all(struct spill *spill, uint64_t count)
{
    struct segment_shape shape = spill->shape;
    f16 *rows = malloc(shape.values * sizeof *rows);
    check(rows, "no memory");
    for (size_t i = 0; i < shape.values; i++)
        rows[i] = (f16)next_random() & 0x3fff;
    double start = seconds(), putting = 0;
    for (uint64_t n = 0; n < count; n++) {
        struct segment_view view = {n, n * 256, (n + 1) * 256, rows, shape.values * sizeof *rows};
        int code;
        double before = seconds();
        while ((code = spill_put(spill, STREAM, &view, 0, 0)) == -EAGAIN) {
            putting += seconds() - before;
            spill_step(spill, true);
            before = seconds();
        }
        putting += seconds() - before;
        check(code == 0, "a segment is not taken");
        spill_step(spill, false);
    }
    spill_drain(spill);
    double took = seconds() - start;
    printf("write %.1f MB/s\n", (double)(count * shape.record_bytes) / took / 1e6);
    printf("put %.1f us\n", putting / (double)count * 1e6);
    free(rows);
}

static struct spill_fetch *begin(struct spill *spill, uint64_t count)
{
    struct spill_fetch *fetch;
    uint64_t chunks[STREAM_RECALL_MAX];
    for (uint32_t i = 0; i < STREAM_RECALL_MAX; i++)
        chunks[i] = next_random() % count;
    check(spill_fetch(spill, STREAM, chunks, STREAM_RECALL_MAX, &fetch) == 0, "no fetch");
    return fetch;
}

static uint32_t finish(struct spill *spill, struct spill_fetch **fetch)
{
    struct cold_segment segments[STREAM_RECALL_MAX];
    while (!spill_fetched(*fetch))
        spill_step(spill, true);
    uint32_t n = spill_segments(*fetch, segments);
    check(n > 0, "nothing came back");
    spill_release(fetch);
    return n;
}

static void fetch_one_by_one(struct spill *spill, uint64_t count, uint32_t fetches)
{
    for (uint32_t i = 0; i < fetches; i++) {
        double start = seconds();
        struct spill_fetch *fetch = begin(spill, count);
        spill_step(spill, false);
        finish(spill, &fetch);
        latency[i] = seconds() - start;
    }
    qsort(latency, fetches, sizeof *latency, compare_values);
    printf("fetch8_p50 %.1f us\n", latency[fetches / 2] * 1e6);
    printf("fetch8_p99 %.1f us\n", latency[(size_t)fetches * 99 / 100] * 1e6);
}

static void fetch_by_two(struct spill *spill, uint64_t count, uint32_t fetches)
{
    struct spill_fetch *flying[2];
    uint64_t segments = 0;
    double start = seconds();
    for (int i = 0; i < 2; i++)
        flying[i] = begin(spill, count);
    for (uint32_t i = 0; i < fetches; i++) {
        spill_step(spill, false);
        segments += finish(spill, &flying[i % 2]);
        flying[i % 2] = begin(spill, count);
    }
    double took = seconds() - start;
    for (int i = 0; i < 2; i++)
        segments += finish(spill, &flying[i]);
    printf("read %.1f MB/s\n", (double)(segments * spill->shape.record_bytes) / took / 1e6);
}

int main(int argc, char **argv)
{
    check(argc == 4, "usage: bench-disk FOLDER SEGMENTS FETCHES");
    struct spill_options options = {.folder = argv[1],
                                    .streams_max = 1,
                                    .staging_max = STAGING,
                                    .fetches_max = 2,
                                    .dtype = SEGMENT_F16};
    uint64_t count = strtoull(argv[2], NULL, 10);
    uint32_t fetches = (uint32_t)strtoul(argv[3], NULL, 10);
    check(count && fetches && fetches <= LATENCIES_MAX, "numbers out of range");
    size_t bytes = (spill_bytes(&engine, &options) + 4095) / 4096 * 4096;
    void *memory = aligned_alloc(4096, bytes);
    struct spill *spill;
    struct spill_stat stat;
    char error[200] = "no memory";
    check(memory && spill_open(&spill, &engine, &options, memory, bytes, error, sizeof error) == 0,
          error);
    check(spill_attach(spill, STREAM, 1) == 0, "cannot attach");
    spill_stat(spill, &stat);
    printf("# %s, records of %zu bytes, depth %d\n", stat.engine_name, spill->shape.record_bytes,
           STAGING);
    write_all(spill, count);
    fetch_one_by_one(spill, count, fetches);
    fetch_by_two(spill, count, fetches);
    spill_stat(spill, &stat);
    for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
        check(stat.faults[i] == 0, "a segment came back wrong");
    spill_close(&spill);
    free(memory);
    return 0;
}
