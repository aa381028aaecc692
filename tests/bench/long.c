/*
 * Long runs: one stream of millions of tokens, or a thousand of some hundred thousand each, with
 * their cold segments on a real disk; flat in memory, time and loss, or not.
 *
 *   bench-long -n STREAMS -T TOKENS_EACH [-S FOLDER [-p SHARE]] [-D cpu] …
 *
 * CSV, a row each -e chunks: tokens of a stream so far, seconds a chunk (of all streams), tokens a
 * second, resident and device bytes, loss of the first stream's last chunk, segments written, bytes
 * of them, seconds spent waiting for the disk. The last row, "tenths", is the last tenth of the run
 * over the first, for seconds a chunk, resident and device bytes and loss; before it what segments
 * took in both. Before the first row the disk's own bandwidth is said, by as many records as are
 * written through its queue in two seconds. All streams begin a file of segments with the same
 * chunk, one in SPILL_FILE_RECORDS: with that many in a row, rows are alike.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "stream/gpu.h"
#include "stream/spill.h"
#include "tests/bench/measure.h"

enum {
    STREAMS_MAX = 4096,
    TEXT_BYTES_MAX = 64 << 20,
    STAGING = 64,
    PROBE_STREAM = 1 << 20, /* the first of */
    PROBE_STREAMS = 16,
    CHUNKS_CALL = 8
};

struct run {
    struct engine *engine;
    struct engine_info info;
    int32_t *tokens; /* [count] */
    size_t count;
    uint32_t streams, ratio, share, every; /* share: of streams that spill, percent */
    uint64_t tokens_each;
    const char *folder, *commit;
    uint64_t disk_limit;
    struct spill *spill;
    pthread_t disk;
    _Atomic bool ending;
    double put_seconds; /* of the thread that feeds: int8 rows made, hashed, handed to the disk */
    struct row *rows;   /* [row_count] */
    uint32_t row_count;
};

struct held {
    struct run *run;
    struct stream *stream;
    void *memory;
    uint64_t id;
};

struct row {
    double seconds, resident, device, nll; /* seconds: a chunk */
    double all, put, waited, segments;     /* seconds, and segments that went to the disk */
};

static double resident_bytes(void)
{
    unsigned long long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f || fscanf(f, "%llu %llu", &pages, &resident) != 2)
        die("no /proc/self/statm");
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

/* ---- the disk ---- */

static void *step(void *user)
{
    struct run *run = user;
    struct timespec pause = {.tv_nsec = 100000};
    while (!atomic_load(&run->ending))
        if (!spill_step(run->spill, false))
            nanosleep(&pause, NULL);
    return NULL;
}

static void disk_begin(struct run *run)
{
    atomic_store(&run->ending, false);
    if (pthread_create(&run->disk, NULL, step, run))
        die("no thread");
}

/* Streams come and go while no thread steps. */
static void disk_end(struct run *run)
{
    atomic_store(&run->ending, true);
    pthread_join(run->disk, NULL);
    spill_drain(run->spill);
}

static void probe(struct run *run)
{
    size_t bytes = run->spill->shape.values * sizeof(f16), chunk = run->info.chunk_tokens;
    f16 *rows = calloc(1, bytes);
    struct spill_stat stat;
    uint64_t n = 0;
    for (uint32_t i = 0; i < PROBE_STREAMS; i++)
        if (!rows || spill_attach(run->spill, PROBE_STREAM + i, 1))
            die("no probe of the disk");
    disk_begin(run);
    double start = seconds();
    for (; seconds() - start < 2; n++) {
        uint64_t at = n / PROBE_STREAMS;
        struct segment_view view = {at, at * chunk, (at + 1) * chunk, rows, bytes};
        if (spill_put_wait(run->spill, PROBE_STREAM + n % PROBE_STREAMS, &view, 0, 0))
            die("the disk takes no segment");
    }
    disk_end(run);
    spill_stat(run->spill, &stat);
    printf("# disk: %.1f MB/s of segment records (%s, %zu bytes each)\n",
           (double)n * (double)run->spill->shape.record_bytes / (seconds() - start) / 1e6,
           stat.engine_name, run->spill->shape.record_bytes);
    for (uint32_t i = 0; i < PROBE_STREAMS; i++) {
        spill_detach(run->spill, PROBE_STREAM + i);
        (void)spill_erase(run->spill, PROBE_STREAM + i, 0);
    }
    free(rows);
}

static void open_spill(struct run *run)
{
    struct spill_options options = {.folder = run->folder,
                                    .streams_max = run->streams + PROBE_STREAMS,
                                    .staging_max = STAGING,
                                    .fetches_max = 1,
                                    .dtype = SEGMENT_INT8};
    size_t bytes = (spill_bytes(run->engine, &options) + 4095) / 4096 * 4096;
    char error[200] = "no memory";
    void *memory = aligned_alloc(4096, bytes);
    if (mkdir(run->folder, 0700) && errno != EEXIST)
        die("the folder for segments cannot be made");
    if (!memory ||
        spill_open(&run->spill, run->engine, &options, memory, bytes, error, sizeof error))
        die(error);
    probe(run);
    spill_limit(run->spill, run->disk_limit);
}

static void leave(void *user, const struct segment_view *segment)
{
    struct held *h = user;
    double start = seconds();
    int code = spill_put_wait(h->run->spill, h->id, segment, 0, 0);
    h->run->put_seconds += seconds() - start;
    if (code)
        die(strerror(-code));
}

/* ---- streams ---- */

static void open_stream(struct run *run, struct held *h, uint64_t id)
{
    struct stream_options options = {.dmc_ratio = run->ratio};
    char error[256] = "no memory";
    size_t bytes = stream_bytes(run->engine, &options, error, sizeof error);
    *h = (struct held){.run = run, .id = id, .memory = aligned_alloc(64, (bytes + 63) & ~63ul)};
    if (!bytes || !h->memory || stream_open(&h->stream, run->engine, &options, h->memory, bytes))
        die(bytes ? "no room for so many streams" : error);
    if (!run->spill)
        return;
    if (id % 100 >= run->share)
        return;
    stream_on_segment_leave(h->stream, leave, h);
    if (spill_attach(run->spill, id, 1))
        die("a stream cannot be attached");
}

static const int32_t *text_at(const struct run *run, uint64_t id, uint64_t position, uint32_t count)
{
    return run->tokens + (id * 7919 + position) % (run->count - count - 1);
}

/* The next tokens of streams from the first one on. */
static void feed(struct run *run, struct held *h, uint32_t first, uint64_t position, uint32_t count)
{
    static struct stream_work work[STREAMS_MAX];
    for (uint32_t i = first; i < run->streams; i++)
        work[i] =
            (struct stream_work){h[i].stream, text_at(run, h[i].id, position, count), count, 0};
    if (run->streams > first && streams_feed(work + first, run->streams - first))
        die(engine_failure(run->engine) ? engine_failure(run->engine) : "a stream fails");
}

/* Chunks of every stream, some in a call, as they come where text waits. */
static void feed_chunks(struct run *run, struct held *h, uint64_t position, uint64_t chunks)
{
    uint32_t chunk = run->info.chunk_tokens;
    for (uint64_t at = 0, some; at < chunks; at += some) {
        some = chunks - at < CHUNKS_CALL ? chunks - at : CHUNKS_CALL;
        feed(run, h, 0, position + at * chunk, (uint32_t)some * chunk);
    }
}

/* A chunk of every stream, and the first one's loss. */
static double score_chunk(struct run *run, struct held *h, uint64_t position)
{
    static float nll[4096];
    uint32_t chunk = run->info.chunk_tokens;
    double sum = 0;
    const int32_t *text = text_at(run, h->id, position, chunk);
    if (stream_score(h->stream, text, text + 1, chunk, nll))
        die("the first stream cannot be scored");
    for (uint32_t i = 0; i < chunk; i++)
        sum += (double)nll[i] / chunk;
    feed(run, h, 1, position, chunk);
    return sum;
}

static struct spill_stat disk_stat(const struct run *run)
{
    struct spill_stat stat = {0};
    if (run->spill)
        spill_stat(run->spill, &stat);
    return stat;
}

/* What the run and the disk had done before the row, and when that was. */
static void print_row(struct run *run, uint64_t position, const struct row *before, double nll)
{
    struct spill_stat stat = disk_stat(run);
    struct gpu *gpu = run->engine->gpu;
    struct row *row = &run->rows[run->row_count++];
    *row = (struct row){.resident = resident_bytes(),
                        .device = gpu ? (double)gpu->cuda->memory_used(gpu->cuda) : 0,
                        .nll = nll,
                        .all = seconds() - before->all,
                        .put = run->put_seconds - before->put,
                        .waited = (double)stat.wait_us * 1e-6 - before->waited,
                        .segments = (double)stat.segments_written - before->segments};
    row->seconds = row->all / run->every;
    printf("%llu,%.6f,%.0f,%.0f,%.0f,%.5f,%llu,%llu,%.3f\n", (unsigned long long)position,
           row->seconds, run->streams * run->info.chunk_tokens / row->seconds, row->resident,
           row->device, nll, (unsigned long long)stat.segments_written,
           (unsigned long long)stat.bytes_disk, (double)stat.wait_us * 1e-6);
    fflush(stdout);
}

static struct row sum_rows(const struct row *rows, uint32_t count)
{
    struct row sum = {0};
    for (uint32_t i = 0; i < count; i++) {
        sum.seconds += rows[i].seconds;
        sum.resident += rows[i].resident;
        sum.device += rows[i].device;
        sum.nll += rows[i].nll;
        sum.all += rows[i].all;
        sum.put += rows[i].put;
        sum.waited += rows[i].waited;
        sum.segments += rows[i].segments;
    }
    return sum;
}

static void print_spent(const struct run *run, const char *name, const struct row *r)
{
    double bytes = r->segments * (double)run->spill->shape.record_bytes;
    printf("# %s: %.0f segments, %.1f MB/s, %.1f us each to make and put and %.1f to wait for the "
           "disk, %.1f %% of all time\n",
           name, r->segments, bytes / r->all / 1e6, (r->put - r->waited) / r->segments * 1e6,
           r->waited / r->segments * 1e6, 100 * r->put / r->all);
}

static void print_tenths(const struct run *run)
{
    uint32_t tenth = run->row_count / 10 ? run->row_count / 10 : 1;
    struct row whole = sum_rows(run->rows, run->row_count), first = sum_rows(run->rows, tenth);
    struct row last = sum_rows(run->rows + run->row_count - tenth, tenth);
    if (whole.segments > 0) {
        print_spent(run, "first tenth", &first);
        print_spent(run, "last tenth", &last);
        print_spent(run, "whole run", &whole);
    }
    printf("tenths,%.4f,,%.4f,%.4f,%.4f,,,\n", last.seconds / first.seconds,
           last.resident / first.resident, first.device > 0 ? last.device / first.device : 1,
           last.nll / first.nll);
}

static void feed_all(struct run *run)
{
    struct held *h = calloc(run->streams, sizeof *h);
    uint64_t chunk = run->info.chunk_tokens, chunks = run->tokens_each / chunk;
    uint64_t fill = run->info.ring_segments + 2; /* before the clock: rings fill */
    run->rows = calloc(chunks / run->every + 1, sizeof *run->rows);
    if (!h || !run->rows)
        die("no memory");
    for (uint32_t i = 0; i < run->streams; i++)
        open_stream(run, &h[i], i + 1);
    if (run->spill)
        disk_begin(run);
    printf("# %s, %u streams of %llu tokens, ratio %u, %u %% of streams spill, commit %s\n",
           run->info.kernels_name, run->streams, (unsigned long long)run->tokens_each, run->ratio,
           run->spill ? run->share : 0, run->commit);
    printf("tokens,seconds_chunk,tokens_per_second,resident_bytes,device_bytes,nll,segments,"
           "segment_bytes,wait_seconds\n");
    feed_chunks(run, h, 0, fill);
    for (uint64_t c = 0; c + run->every <= chunks; c += run->every) {
        struct spill_stat stat = disk_stat(run);
        struct row before = {.all = seconds(),
                             .put = run->put_seconds,
                             .waited = (double)stat.wait_us * 1e-6,
                             .segments = (double)stat.segments_written};
        feed_chunks(run, h, (fill + c) * chunk, run->every - 1);
        double nll = score_chunk(run, h, (fill + c + run->every - 1) * chunk);
        print_row(run, (c + run->every) * chunk, &before, nll);
    }
    print_tenths(run);
    for (uint32_t i = 0; i < run->streams; i++) {
        stream_close(&h[i].stream);
        free(h[i].memory);
    }
    free(h);
}

static void read_text(struct run *run, const char *path)
{
    FILE *f = fopen(path, "rbe");
    uint8_t *text = malloc(TEXT_BYTES_MAX);
    struct token_text state = {0};
    if (!f || !text)
        die("cannot read the text: -t FILE");
    size_t bytes = fread(text, 1, TEXT_BYTES_MAX, f), least = 16384;
    fclose(f);
    run->tokens = malloc((token_count_max(&state, bytes) + least) * sizeof *run->tokens);
    if (!run->tokens)
        die("no memory");
    run->count = token_feed(engine_tokenizer(run->engine), &state, text, bytes, run->tokens);
    if (!run->count)
        die("the text is empty");
    for (size_t i = 0; run->count < least; i++) /* a short text again */
        run->tokens[run->count++] = run->tokens[i];
    free(text);
}

int main(int argc, char **argv)
{
    struct engine_options options = {.model_path = "build/models/smollm2-135m-instruct-q4_1.gguf",
                                     .adapter_path = "stream/adapters/smollm2-135m-instruct.gguf",
                                     .device = DEVICE_CUDA,
                                     .feature_mask = UINT32_MAX};
    struct run run = {.streams = 1, .ratio = 2, .share = 100, .every = 40, .commit = "unknown"};
    const char *text = "LICENSE";
    char error[512];
    run.tokens_each = 1000000;
    for (int c; (c = getopt(argc, argv, "m:a:t:n:d:T:S:L:p:e:k:M:D:")) != -1;) {
        unsigned long long n = optarg ? strtoull(optarg, NULL, 0) : 0;
        if (c == 'm')
            options.model_path = optarg;
        else if (c == 'a')
            options.adapter_path = *optarg ? optarg : NULL;
        else if (c == 't')
            text = optarg;
        else if (c == 'n')
            run.streams = n && n < STREAMS_MAX ? (uint32_t)n : STREAMS_MAX;
        else if (c == 'd')
            run.ratio = (uint32_t)n;
        else if (c == 'T')
            run.tokens_each = n;
        else if (c == 'S')
            run.folder = optarg;
        else if (c == 'L')
            run.disk_limit = n;
        else if (c == 'p')
            run.share = (uint32_t)n;
        else if (c == 'e')
            run.every = n ? (uint32_t)n : 1;
        else if (c == 'k')
            run.commit = optarg;
        else if (c == 'M')
            options.device_bytes = n;
        else if (c == 'D')
            options.device = strcmp(optarg, "cpu") ? DEVICE_CUDA : DEVICE_CPU;
        else
            die("-m GGUF -a ADAPTER -t TEXT -n STREAMS -d RATIO -T TOKENS_EACH -S FOLDER -L BYTES "
                "-p SHARE -e CHUNKS -k COMMIT -M DEVICE_BYTES -D cpu|cuda");
    }
    if (engine_open(&run.engine, &options, error, sizeof error))
        die(error);
    engine_info(run.engine, &run.info);
    read_text(&run, text);
    if (run.folder)
        open_spill(&run);
    feed_all(&run);
    if (run.spill) {
        disk_end(&run);
        spill_close(&run.spill);
    }
    engine_close(&run.engine);
    return 0;
}
