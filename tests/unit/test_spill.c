/*
 * Cold segments: what is put comes back bit for bit, from staging and from disk, after a restart,
 * by either engine; what is not right never does; a quota holds.
 */
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

#include "stream/spill.h"
#include "tests/unit/disk_fault.h"
#include "tests/unit/tiny_model.h"

enum {
    VALUES = TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM,
    STAGING = 4,
    FETCHES = 2
};

static char model_path[80], adapter_path[80], folder[80];
static struct engine *engine;

struct held {
    struct spill *spill;
    void *memory;
};

static struct held open_with(bool plain, enum segment_dtype dtype)
{
    struct spill_options options = {.folder = folder,
                                    .streams_max = 4,
                                    .staging_max = STAGING,
                                    .fetches_max = FETCHES,
                                    .dtype = dtype,
                                    .plain = plain};
    struct held h = {0};
    char error[200] = "";
    size_t bytes = (spill_bytes(engine, &options) + 4095) / 4096 * 4096;
    h.memory = aligned_alloc(4096, bytes);
    if (spill_open(&h.spill, engine, &options, h.memory, bytes, error, sizeof error))
        fail_msg("%s", error);
    return h;
}

static void drop(struct held *h)
{
    spill_close(&h->spill);
    free(h->memory);
}

static void clear_folder(void)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s && mkdir %s", folder, folder);
    assert_int_equal(system(command), 0);
}

static int set_up(void **state)
{
    (void)state;
    const char *under = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    snprintf(model_path, sizeof model_path, "%s/silt-spill-%d.gguf", under, getpid());
    snprintf(adapter_path, sizeof adapter_path, "%s/silt-spill-%d.a.gguf", under, getpid());
    snprintf(folder, sizeof folder, "%s/silt-spill-%d", under, getpid());
    struct tiny_options options = TINY_DEFAULTS;
    if (tiny_model_write(model_path, &options) ||
        tiny_adapter_write(adapter_path, model_path, &options))
        return -1;
    struct engine_options want = {.model_path = model_path,
                                  .adapter_path = adapter_path,
                                  .threads = 1,
                                  .feature_mask = UINT32_MAX};
    char error[200];
    clear_folder();
    return engine_open(&engine, &want, error, sizeof error);
}

static int tear_down(void **state)
{
    (void)state;
    engine_close(&engine);
    unlink(model_path);
    unlink(adapter_path);
    clear_folder();
    return rmdir(folder);
}

/* The rows of a segment follow from where it belongs. */
static void make_rows(uint64_t stream, uint64_t number, f16 *rows)
{
    uint64_t x = stream * 1000003 + number * 7919 + 1;
    for (int i = 0; i < VALUES; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        rows[i] = f16_from_f32((float)(int32_t)(x >> 33) / 1e9f - 1);
    }
}

static int put(struct spill *spill, uint64_t stream, uint64_t number)
{
    static f16 rows[VALUES];
    make_rows(stream, number, rows);
    struct segment_view view = {number, number * TINY_CHUNK, (number + 1) * TINY_CHUNK, rows,
                                sizeof rows};
    return spill_put(spill, stream, &view, number + 1, number + 2);
}

static void put_many(struct spill *spill, uint64_t stream, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++) {
        int code;
        while ((code = put(spill, stream, i)) == -EAGAIN)
            spill_step(spill, true);
        assert_int_equal(code, 0);
    }
}

static bool is_segment(const struct cold_segment *s, uint64_t stream)
{
    static f16 rows[VALUES];
    make_rows(stream, s->number, rows);
    return s->token_from == s->number * TINY_CHUNK && s->token_to == (s->number + 1) * TINY_CHUNK &&
           s->weight == 1 && s->time_from_us == s->number + 1 &&
           memcmp(rows, s->rows, sizeof rows) == 0;
}

/* Fetches chunks and says which of them came back right, as bits; wrong ones fail the test. */
static uint32_t fetch(struct spill *spill, uint64_t stream, const uint64_t *chunks, uint32_t count)
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

static uint32_t fetch_one(struct spill *spill, uint64_t stream, uint64_t chunk)
{
    return fetch(spill, stream, &chunk, 1);
}

static uint64_t faults(struct spill *spill, enum segment_fault fault)
{
    struct spill_stat stat;
    spill_stat(spill, &stat);
    return stat.faults[fault];
}

static struct spill_stream_stat stream_stat_of(struct spill *spill, uint64_t stream)
{
    struct spill_stream_stat stat;
    assert_int_equal(spill_stream_stat(spill, stream, &stat), 0);
    return stat;
}

/* ---- records ---- */

static void a_record_is_told_from_others(void **state)
{
    (void)state;
    for (enum segment_dtype dtype = SEGMENT_F16; dtype <= SEGMENT_INT8; dtype++) {
        struct segment_shape shape;
        segment_shape_make(&shape, engine, dtype);
        uint8_t *record = calloc(1, segment_buffer_bytes(&shape));
        f16 *rows = malloc(sizeof(f16) * VALUES);
        struct segment_place place = {
            .stream_id = 5, .stream_epoch = 1, .number = 9, .offset = 9 * shape.record_bytes};
        struct segment_header covers = {.token_from = 2304, .token_to = 2560, .weight = 1};
        assert_int_equal(segment_check(&shape, record, &place), SEGMENT_MISSING);
        make_rows(5, 9, rows);
        segment_put_rows(&shape, record, rows);
        segment_seal(&shape, record, &place, &covers);
        assert_int_equal(segment_check(&shape, record, &place), SEGMENT_FINE);
        for (size_t i = 0; i < shape.record_bytes; i += i < 256 ? 1 : 61) {
            record[i] ^= 1;
            assert_int_not_equal(segment_check(&shape, record, &place), SEGMENT_FINE);
            record[i] ^= 1;
        }
        struct segment_place other = place;
        other.number++;
        assert_int_equal(segment_check(&shape, record, &other), SEGMENT_MISDIRECTED);
        other = place;
        other.stream_id++;
        assert_int_equal(segment_check(&shape, record, &other), SEGMENT_MISDIRECTED);
        other = place;
        other.stream_epoch++;
        assert_int_equal(segment_check(&shape, record, &other), SEGMENT_STALE);
        shape.adapter_fingerprint++;
        assert_int_equal(segment_check(&shape, record, &place), SEGMENT_STALE);
        const f16 *back = segment_take_rows(&shape, record);
        double error = 0, norm = 0;
        for (int i = 0; i < VALUES; i++) {
            double d = (double)f16_to_f32(back[i]) - (double)f16_to_f32(rows[i]);
            error += d * d;
            norm += (double)f16_to_f32(rows[i]) * (double)f16_to_f32(rows[i]);
        }
        printf("dtype %d: record of %zu bytes, rows differ by %.2g of their norm\n", dtype,
               shape.record_bytes, sqrt(error / norm));
        assert_true(dtype == SEGMENT_F16 ? error <= 0 : sqrt(error / norm) < 0.01);
        free(record);
        free(rows);
    }
}

/* ---- the store ---- */

static void comes_back(void **state)
{
    (void)state;
    for (int plain = 0; plain < 2; plain++) {
        clear_folder();
        struct held h = open_with(plain, SEGMENT_F16);
        struct spill_stat stat;
        spill_stat(h.spill, &stat);
        printf("engine: %s\n", stat.engine_name);
        assert_int_equal(put(h.spill, 7, 0), -ENOENT);
        assert_int_equal(spill_attach(h.spill, 7, 1), 0);
        assert_int_equal(spill_attach(h.spill, 8, 1), 0);
        assert_int_equal(spill_attach(h.spill, 7, 1), -EEXIST);
        put_many(h.spill, 7, 0, 3);
        assert_int_equal(fetch_one(h.spill, 7, 2), 1); /* perhaps still in staging */
        put_many(h.spill, 7, 3, 300);
        put_many(h.spill, 8, 0, 20);
        assert_int_equal(fetch(h.spill, 7, (uint64_t[]){299, 0, 255, 256, 17, 100, 3, 298}, 8),
                         255);
        assert_int_equal(fetch(h.spill, 8, (uint64_t[]){19, 20, 0}, 3), 5);
        drop(&h);
        h = open_with(plain, SEGMENT_F16);
        assert_int_equal(spill_attach(h.spill, 7, 1), 0);
        assert_int_equal(stream_stat_of(h.spill, 7).chunks_to, 300);
        assert_int_equal(stream_stat_of(h.spill, 7).chunks_from, 0);
        assert_int_equal(fetch(h.spill, 7, (uint64_t[]){299, 0, 255, 256, 17, 100, 3, 298}, 8),
                         255);
        put_many(h.spill, 7, 290, 310); /* a replay brings some of them again */
        assert_int_equal(fetch(h.spill, 7, (uint64_t[]){295, 309}, 2), 3);
        for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
            assert_int_equal(faults(h.spill, (enum segment_fault)i), 0);
        drop(&h);
    }
}

static void staging_is_bounded(void **state)
{
    (void)state;
    clear_folder();
    struct held h = open_with(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t i = 0; i < STAGING; i++)
        assert_int_equal(put(h.spill, 1, i), 0);
    assert_int_equal(put(h.spill, 1, STAGING), -EAGAIN);
    assert_int_equal(fetch_one(h.spill, 1, 1), 1);
    while (put(h.spill, 1, STAGING) == -EAGAIN)
        spill_step(h.spill, true);
    struct spill_fetch *f[FETCHES + 1];
    uint64_t chunk = 0;
    for (int i = 0; i < FETCHES; i++)
        assert_int_equal(spill_fetch(h.spill, 1, &chunk, 1, &f[i]), 0);
    assert_int_equal(spill_fetch(h.spill, 1, &chunk, 1, &f[FETCHES]), -EAGAIN);
    for (int i = 0; i < FETCHES; i++)
        spill_release(&f[i]); /* perhaps not read yet */
    spill_drain(h.spill);
    assert_int_equal(fetch_one(h.spill, 1, 1), 1);
    drop(&h);
}

static void *putter(void *user)
{
    static f16 rows[VALUES];
    struct spill *spill = user;
    for (uint64_t i = 0; i < 60; i++) {
        make_rows(3, i, rows);
        struct segment_view view = {i, i * TINY_CHUNK, (i + 1) * TINY_CHUNK, rows, sizeof rows};
        if (spill_put_wait(spill, 3, &view, i + 1, i + 2))
            return spill;
    }
    return NULL;
}

static void threads_meet(void **state)
{
    (void)state;
    clear_folder();
    struct held h = open_with(false, SEGMENT_F16);
    pthread_t thread;
    void *result;
    struct spill_stat stat;
    assert_int_equal(spill_attach(h.spill, 3, 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, putter, h.spill), 0);
    do {
        spill_step(h.spill, false);
        spill_stat(h.spill, &stat);
    } while (stat.segments_written < 60);
    pthread_join(thread, &result);
    assert_null(result);
    assert_int_equal(fetch(h.spill, 3, (uint64_t[]){0, 59, 31}, 3), 7);
    drop(&h);
}

/* ---- what is not right ---- */

static void change_file(uint64_t stream, size_t at, const char *from_path, size_t bytes)
{
    char path[160];
    snprintf(path, sizeof path, "%s/segments/%016llx/0-00000000.seg", folder,
             (unsigned long long)stream);
    uint8_t *buffer = malloc(bytes);
    int fd = open(path, O_RDWR), from = open(from_path ? from_path : path, O_RDONLY);
    assert_true(fd >= 0 && from >= 0);
    assert_int_equal(pread(from, buffer, bytes, (off_t)at), bytes);
    if (!from_path)
        buffer[bytes / 2] ^= 16;
    assert_int_equal(pwrite(fd, buffer, bytes, (off_t)at), bytes);
    close(fd);
    close(from);
    free(buffer);
}

static void wrong_records_are_not_used(void **state)
{
    (void)state;
    char path[160];
    clear_folder();
    struct held h = open_with(false, SEGMENT_F16);
    size_t record = h.spill->shape.record_bytes;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_attach(h.spill, 2, 1), 0);
    put_many(h.spill, 1, 0, 20);
    put_many(h.spill, 2, 0, 20);
    drop(&h);
    snprintf(path, sizeof path, "%s/segments/%016llx/0-00000000.seg", folder, 2ull);
    change_file(1, 3 * record, path, record);           /* of another stream */
    change_file(1, 4 * record + 8192, NULL, 512);       /* a bit of its rows */
    change_file(1, 5 * record, NULL, sizeof(uint64_t)); /* and of its header */
    h = open_with(false, SEGMENT_F16);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(fetch(h.spill, 1, (uint64_t[]){2, 3, 4, 5, 6}, 5), 1 | 16);
    assert_int_equal(faults(h.spill, SEGMENT_MISDIRECTED), 1);
    assert_int_equal(faults(h.spill, SEGMENT_ROTTEN), 1);
    assert_int_equal(faults(h.spill, SEGMENT_TORN), 1);
    /* What is computed again heals. */
    put_many(h.spill, 1, 3, 6);
    spill_drain(h.spill);
    assert_int_equal(fetch(h.spill, 1, (uint64_t[]){2, 3, 4, 5, 6}, 5), 31);
    spill_detach(h.spill, 1);
    /* The file ends in a record, as when power went. */
    snprintf(path, sizeof path, "%s/segments/%016llx/0-00000000.seg", folder, 1ull);
    assert_int_equal(truncate(path, (off_t)(18 * record + 4096)), 0);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(stream_stat_of(h.spill, 1).chunks_to, 19); /* its header is whole */
    assert_int_equal(fetch(h.spill, 1, (uint64_t[]){17, 18}, 2), 1);
    spill_detach(h.spill, 1);
    /* A stream computed anew does not take its old segments for its own. */
    assert_int_equal(spill_attach(h.spill, 1, 2), 0);
    assert_int_equal(stream_stat_of(h.spill, 1).chunks_to, 0);
    assert_true(faults(h.spill, SEGMENT_STALE) > 0);
    /* A file that somebody deletes is missing, not an error. */
    put_many(h.spill, 1, 0, 5);
    spill_detach(h.spill, 1);
    assert_int_equal(spill_attach(h.spill, 1, 2), 0);
    spill_files_drop(h.spill, 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(fetch(h.spill, 1, (uint64_t[]){1, 2}, 2), 0);
    assert_int_equal(faults(h.spill, SEGMENT_MISSING), 2);
    drop(&h);
}

static uint64_t disk_use(void)
{
    char command[160];
    unsigned long long kib = 0;
    snprintf(command, sizeof command, "find %s/segments -type f -printf '%%b\\n'", folder);
    FILE *pipe = popen(command, "r");
    unsigned long long blocks;
    while (fscanf(pipe, "%llu", &blocks) == 1)
        kib += blocks;
    pclose(pipe);
    return kib * 512;
}

static void removing_and_cutting(void **state)
{
    (void)state;
    clear_folder();
    struct held h = open_with(false, SEGMENT_F16);
    struct spill_stat stat;
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    assert_int_equal(spill_attach(h.spill, 2, 1), 0);
    put_many(h.spill, 1, 0, 40);
    put_many(h.spill, 2, 0, 40);
    assert_int_equal(spill_cut(h.spill, 1, 10), 0);
    assert_int_equal(stream_stat_of(h.spill, 1).chunks_to, 10);
    assert_int_equal(fetch(h.spill, 1, (uint64_t[]){9, 10, 11}, 3), 1);
    put_many(h.spill, 1, 10, 12);
    spill_drain(h.spill);
    assert_int_equal(fetch(h.spill, 1, (uint64_t[]){9, 10, 11, 12}, 4), 7);
    spill_stat(h.spill, &stat);
    assert_int_equal(stat.bytes_disk, disk_use());
    assert_int_equal(spill_remove(h.spill, 1), 0);
    assert_int_equal(spill_stream_stat(h.spill, 1, &(struct spill_stream_stat){0}), -ENOENT);
    assert_int_equal(fetch(h.spill, 2, (uint64_t[]){9, 39}, 2), 3);
    spill_stat(h.spill, &stat);
    assert_int_equal(stat.bytes_disk, disk_use());
    assert_int_equal(spill_remove(h.spill, 2), 0);
    assert_int_equal(disk_use(), 0);
    drop(&h);
}

/* ---- the quota ---- */

/* Rows of a merged segment are near the mean of what it stands for. */
static void check_mean(const struct cold_segment *s, uint64_t stream)
{
    static f16 rows[VALUES];
    static double mean[VALUES];
    memset(mean, 0, sizeof mean);
    uint64_t first = s->token_from / TINY_CHUNK;
    assert_int_equal(s->number - first + 1, s->weight);
    for (uint64_t n = first; n <= s->number; n++) {
        make_rows(stream, n, rows);
        for (int i = 0; i < VALUES; i++)
            mean[i] += (double)f16_to_f32(rows[i]) / s->weight;
    }
    for (int i = 0; i < VALUES; i++)
        assert_true(fabs(mean[i] - (double)f16_to_f32(s->rows[i])) < 4e-3);
}

static void a_quota_holds(void **state)
{
    (void)state;
    clear_folder();
    struct held h = open_with(false, SEGMENT_F16);
    struct spill_stat stat;
    uint64_t limit = 160 * h.spill->shape.record_bytes;
    spill_limit(h.spill, limit);
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    for (uint64_t n = 0; n < 1000; n += 20) {
        put_many(h.spill, 1, n, n + 20);
        spill_stat(h.spill, &stat);
        assert_true(stat.bytes_disk <= limit);
    }
    spill_drain(h.spill);
    struct spill_stream_stat before = stream_stat_of(h.spill, 1);
    spill_stat(h.spill, &stat);
    printf("quota of 160 records: chunks %llu to %llu in %llu records, %llu merged, %llu dropped\n",
           (unsigned long long)before.chunks_from, (unsigned long long)before.chunks_to,
           (unsigned long long)before.records, (unsigned long long)stat.segments_merged,
           (unsigned long long)stat.segments_dropped);
    assert_int_equal(before.chunks_to, 1000);
    assert_int_equal(stat.segments_lost, 0);
    assert_int_equal(stat.last_error, 0);
    assert_true(before.chunks_from < 500);
    assert_int_equal(stat.bytes_disk, disk_use());
    drop(&h);
    h = open_with(true, SEGMENT_F16); /* the other engine reads the same files */
    assert_int_equal(spill_attach(h.spill, 1, 1), 0);
    struct spill_stream_stat after = stream_stat_of(h.spill, 1);
    assert_int_equal(after.records, before.records);
    assert_int_equal(after.chunks_from, before.chunks_from);
    assert_int_equal(after.bytes_disk, before.bytes_disk);
    for (uint64_t n = before.chunks_from; n < 1000; n += 37) {
        struct spill_fetch *f;
        struct cold_segment out[STREAM_RECALL_MAX];
        assert_int_equal(spill_fetch(h.spill, 1, (uint64_t[]){n, n}, 2, &f), 0);
        while (!spill_fetched(f))
            spill_step(h.spill, true);
        assert_int_equal(spill_segments(f, out), 1);
        assert_true(out[0].token_from <= n * TINY_CHUNK && n * TINY_CHUNK < out[0].token_to);
        check_mean(&out[0], 1);
        spill_release(&f);
    }
    drop(&h);
}

/* ---- a disk that fails ---- */

static void check_after(struct held *h, const char *what, uint32_t at)
{
    struct spill_stat stat;
    uint32_t right = 0;
    for (uint64_t n = 0; n < 12; n += 4)
        right += (uint32_t)__builtin_popcount(
            fetch(h->spill, 1, (uint64_t[]){n, n + 1, n + 2, n + 3}, 4));
    spill_stat(h->spill, &stat);
    uint64_t found = 0;
    for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
        found += stat.faults[i];
    /* Whatever happened: at most two records suffer, and each of them is counted. */
    if (right < 10 || right + found < 12)
        fail_msg("%s of operation %u: %u segments right, %llu faults", what, at, right,
                 (unsigned long long)found);
}

static void every_operation_may_fail(void **state)
{
    (void)state;
    for (enum disk_fault_kind kind = FAULT_EIO; kind < FAULT_KINDS; kind++)
        for (enum disk_kind of = DISK_READ; of <= DISK_WRITE; of++)
            for (uint32_t at = 1; at <= 13; at += 3) {
                clear_folder();
                struct held h = open_with(at & 1, SEGMENT_F16);
                struct disk_fault fault;
                disk_fault_init(&fault, &h.spill->disk, h.spill->shape.record_bytes);
                disk_fault_set(&fault, kind, of, at);
                assert_int_equal(spill_attach(h.spill, 1, 1), 0);
                put_many(h.spill, 1, 0, 12);
                spill_drain(h.spill);
                check_after(&h, disk_fault_name(kind), at);
                disk_fault_set(&fault, FAULT_NONE, DISK_READ, 0);
                put_many(h.spill, 1, 0, 14);
                spill_drain(h.spill);
                assert_int_equal(fetch(h.spill, 1, (uint64_t[]){0, 3, 6, 9, 11, 12, 13}, 7), 127);
                drop(&h);
            }
}

/* Merging under a failing disk loses at most what the disk loses. */
static void merging_may_fail(void **state)
{
    (void)state;
    for (enum disk_fault_kind kind = FAULT_EIO; kind < FAULT_KINDS; kind++)
        for (uint32_t at = 1; at <= 100; at += 33) {
            clear_folder();
            struct held h = open_with(false, SEGMENT_F16);
            struct disk_fault fault;
            disk_fault_init(&fault, &h.spill->disk, h.spill->shape.record_bytes);
            assert_int_equal(spill_attach(h.spill, 1, 1), 0);
            spill_limit(h.spill, 120 * h.spill->shape.record_bytes);
            disk_fault_set(&fault, kind, at % 3 ? DISK_WRITE : DISK_READ, at);
            put_many(h.spill, 1, 0, 240);
            spill_drain(h.spill);
            disk_fault_set(&fault, FAULT_NONE, DISK_READ, 0);
            struct spill_stream_stat stat = stream_stat_of(h.spill, 1);
            uint32_t right = 0;
            for (uint64_t n = stat.chunks_from; n < 240; n++) {
                struct spill_fetch *f;
                struct cold_segment out[STREAM_RECALL_MAX];
                assert_int_equal(spill_fetch(h.spill, 1, &n, 1, &f), 0);
                while (!spill_fetched(f))
                    spill_step(h.spill, true);
                right += spill_segments(f, out);
                spill_release(&f);
            }
            assert_true(stat.bytes_disk <= 120 * h.spill->shape.record_bytes);
            assert_true(right + 16 >= 240 - stat.chunks_from);
            drop(&h);
        }
}

/* ---- from a stream ---- */

struct kept {
    struct spill *spill;
    f16 rows[12][VALUES];
    uint32_t count;
};

static void segment_leaves(void *user, const struct segment_view *segment)
{
    struct kept *kept = user;
    memcpy(kept->rows[kept->count++], segment->rows, segment->rows_bytes);
    while (spill_put(kept->spill, 4, segment, 0, 0) == -EAGAIN)
        spill_step(kept->spill, true);
}

static void a_stream_spills(void **state)
{
    (void)state;
    clear_folder();
    struct held h = open_with(false, SEGMENT_F16);
    struct stream_options options = {.dmc_ratio = 4, .ring_segments = 2};
    size_t bytes = stream_bytes(engine, &options, NULL, 0);
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct stream *stream;
    struct kept *kept = calloc(1, sizeof *kept);
    struct spill_fetch *f;
    struct cold_segment out[STREAM_RECALL_MAX];
    kept->spill = h.spill;
    assert_int_equal(spill_attach(h.spill, 4, 1), 0);
    assert_int_equal(stream_open(&stream, engine, &options, memory, bytes), 0);
    stream_on_segment_leave(stream, segment_leaves, kept);
    for (int32_t i = 0; i < 8 * TINY_CHUNK; i++)
        assert_int_equal(stream_feed(stream, &(int32_t){3 + i * 7 % 200}, 1), 0);
    assert_int_equal(kept->count, 5);
    assert_int_equal(spill_fetch(h.spill, 4, (uint64_t[]){0, 1, 2, 3, 4}, 5, &f), 0);
    while (!spill_fetched(f))
        spill_step(h.spill, true);
    assert_int_equal(spill_segments(f, out), 5);
    for (int i = 0; i < 5; i++)
        assert_memory_equal(out[i].rows, kept->rows[i], sizeof kept->rows[i]);
    spill_release(&f);
    stream_close(&stream);
    free(memory);
    free(kept);
    drop(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_record_is_told_from_others),
        cmocka_unit_test(comes_back),
        cmocka_unit_test(staging_is_bounded),
        cmocka_unit_test(threads_meet),
        cmocka_unit_test(wrong_records_are_not_used),
        cmocka_unit_test(removing_and_cutting),
        cmocka_unit_test(a_quota_holds),
        cmocka_unit_test(every_operation_may_fail),
        cmocka_unit_test(merging_may_fail),
        cmocka_unit_test(a_stream_spills),
    };
    return cmocka_run_group_tests_name("spill", tests, set_up, tear_down);
}
