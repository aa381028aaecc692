/*
 * Bits flip and files lose their ends, anywhere in a data folder: what siltd then says is right, or
 * it says that something is wrong.
 *
 * A folder with two streams and a branch, as a kill leaves it and as a clean end does, is damaged
 * in one place and read again whole: journal, memories, cold segments, passages. Each round ends
 * refused (the folder is not opened), noticed (a warning, a fault that is counted, an error instead
 * of an answer) or harmless (all as before, without a word). Anything else fails the test.
 * SILT_ROUNDS=10000, SILT_SEED, SILT_FROM: more and others; SILT_CSV=FILE: counts by kind of file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/search.h"
#include "tests/unit/rig.h"

enum {
    STREAMS = 3,
    CHUNKS_MAX = 24,
    FILES_MAX = 96,
    KINDS_MAX = 16,
    NAME_BYTES = 200,
    EPOCH = 1,
    FED_BYTES = 9000,
    LATE_BYTES = 500, /* behind the last checkpoint */
};
enum fate { REFUSED, NOTICED, HARMLESS, FATES };

static const char *const stream_names[STREAMS] = {"first", "second", "branch"};
static const struct rig_options options = {
    .slots = 1, .asks = 1, .lag_tokens_max = 32768, .checkpoints = true};

/* What a stream says of itself. */
struct answer {
    uint64_t memory, text_hash, tokens, bytes_text, sources;
    uint64_t segment[CHUNKS_MAX]; /* hash of its rows, 0: not there */
    uint64_t common[CHUNKS_MAX];  /* of the stream it branched from, which a replay makes again */
};
struct kind {
    char name[24];
    uint64_t count[2][FATES]; /* flips, cuts */
};

static struct rig rig;
static struct search *search;
static struct spill *spill;
static void *search_memory, *spill_memory;
static struct answer right[STREAMS];
static struct kind kinds[KINDS_MAX];
static uint64_t seed;
static int said_fd, stderr_fd;
static uint64_t faults, faults_before; /* a branch has no segments of before it was one */

static uint64_t below(uint64_t n)
{
    return faults_random(&seed) % n;
}

/* ---- a siltd without a socket ---- */

static bool open_cold(const char *folder)
{
    struct search_options words = {.folder = folder,
                                   .tokenizer = engine_tokenizer(rig_engine()),
                                   .chunk_tokens = 256,
                                   .item_tokens_max = 1 << 16,
                                   .slots = rig.slots,
                                   .slot_count = options.slots,
                                   .stopping = &rig.stopping};
    struct spill_options cold = {.folder = folder,
                                 .streams_max = 4,
                                 .staging_max = 8,
                                 .fetches_max = 2,
                                 .dtype = SEGMENT_F16,
                                 .plain = true};
    size_t bytes = (spill_bytes(rig_engine(), &cold) + 4095) / 4096 * 4096;
    char error[200];

    search_memory = aligned_alloc(64, search_bytes(options.slots, words.item_tokens_max));
    spill_memory = aligned_alloc(4096, bytes);
    if (spill_open(&spill, rig_engine(), &cold, spill_memory, bytes, error, sizeof error) != 0)
        return false;
    if (search_open(&search, &words, search_memory, error, sizeof error) != 0)
        return false;
    rig.sched.spill = spill;
    rig.slots[0].spill = spill;
    rig.sched.search = search;
    return true;
}

static void close_all(void)
{
    spill_close(&spill);
    search_close(&search);
    rig_close(&rig);
    free(search_memory);
    free(spill_memory);
    search_memory = spill_memory = NULL;
}

/* Until nothing moves; false: something is stuck, which nobody would be told. */
static bool settle(void)
{
    for (int idle = 0, round = 0; idle < 4; round++) {
        size_t bytes;
        bool moved = rig_ingest(&rig);

        moved |= rig_compute(&rig);
        moved |= search_step(search);
        moved |= spill_step(spill, false) > 0;
        moved |= queue_front(&rig.journal_queue, &bytes) != NULL;
        idle = moved ? 0 : idle + 1;
        if (round > 200000)
            return false;
    }
    return true;
}

static void leave(void)
{
    rig_request(&rig, INGEST_UNLOAD, 0, "");
    settle();
    rig_order(&rig, SCHED_CLOSE, 0, 0, 0);
    settle();
    spill_detach(spill, atomic_load(&rig.slots[0].stream_id));
}

static bool wake(const char *name)
{
    struct journal_stream stream;

    if (journal_stream_find(rig.journal, name, &stream) == 0)
        spill_attach(spill, stream.id, EPOCH);
    rig_forget(&rig);
    if (rig_stream(&rig, 0, name, 4) != 0 || !settle())
        return false;
    for (uint32_t i = 0; i < rig.result_count; i++)
        if (rig.results[i].error)
            return false;
    return rig.slots[0].stream && !atomic_load(&rig.slots[0].unread);
}

static void fetch_segments(struct answer *out, uint64_t stream_id, uint64_t chunks)
{
    for (uint64_t chunk = 0; chunk < chunks && chunk < CHUNKS_MAX; chunk++) {
        struct cold_segment segment[STREAM_RECALL_MAX];
        struct spill_fetch *fetch;

        if (spill_fetch(spill, stream_id, &chunk, 1, &fetch) != 0)
            continue;
        while (!spill_fetched(fetch))
            spill_step(spill, true);
        if (spill_segments(fetch, segment) == 1)
            out->segment[chunk] = XXH3_64bits(segment[0].rows, (size_t)4 * 2 * 16 * 2 * 32 * 2);
        spill_release(&fetch);
    }
}

/* False: it does not answer, and says so. */
static bool ask(const char *name, struct answer *out)
{
    struct stream_stat stat;
    const struct ask *a = &rig.asks[0];

    memset(out, 0, sizeof *out);
    if (!wake(name))
        return false;
    stream_stat(rig.slots[0].stream, &stat);
    out->tokens = atomic_load(&rig.slots[0].tokens_acked);
    out->bytes_text = atomic_load(&rig.slots[0].bytes_text);
    out->memory = rig_hash(&rig, 0);
    rig_ask(&rig, 0, 0, "What of kestrel 7 and kestrel 19?", 6);
    if (!settle() || !rig.ended[0] || rig.ends[0].error)
        return false;
    out->text_hash = XXH3_64bits(rig.text[0], rig.text_bytes[0]);
    for (uint32_t i = 0; i < a->job.text_count; i++)
        out->sources ^=
            XXH3_64bits(a->job.text[i].text, a->job.text[i].bytes) * (2 * a->job.text[i].chunk + 1);
    fetch_segments(out, atomic_load(&rig.slots[0].stream_id), stat.segments_cold);
    leave();
    return true;
}

/* ---- the folder ---- */

static void feed(const char *producer, uint64_t sequence, size_t bytes, uint32_t salt)
{
    static char text[FED_BYTES + 100];
    size_t used = 0;

    for (uint32_t i = 0; used < bytes; i++)
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "line %u says kestrel %u and heron %u. ", i, i % 40,
                                 (i * 7 + salt) % 50);
    rig_text(&rig, 0, producer, sequence, text, bytes);
    settle();
}

static void copy_file(const char *from, const char *to)
{
    static uint8_t bytes[1 << 16];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t n;

    assert_true(in >= 0 && out >= 0);
    while ((n = read(in, bytes, sizeof bytes)) > 0)
        assert_int_equal(write(out, bytes, (size_t)n), n);
    close(in);
    close(out);
}

static void copy_folder(const char *from, const char *to)
{
    DIR *list = opendir(from);
    struct dirent *entry;
    struct stat status;

    rig_folder_drop(to);
    assert_true(list && mkdir(to, 0700) == 0);
    while ((entry = readdir(list))) {
        char a[2 * NAME_BYTES], b[2 * NAME_BYTES];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(a, sizeof a, "%s/%s", from, entry->d_name);
        snprintf(b, sizeof b, "%s/%s", to, entry->d_name);
        if (lstat(a, &status) == 0 && S_ISDIR(status.st_mode))
            copy_folder(a, b);
        else
            copy_file(a, b);
    }
    closedir(list);
}

/* Streams with a past on disk; a copy made while they are open is what a kill leaves. */
static void make_folders(const char *folder, const char *killed)
{
    for (uint32_t i = 0; i < 2; i++) {
        assert_true(wake(stream_names[i]));
        spill_attach(spill, atomic_load(&rig.slots[0].stream_id), EPOCH);
        feed("p", 1, FED_BYTES, i);
        leave();
    }
    assert_true(wake("second"));
    feed("p", 2, LATE_BYTES, 9);
    {
        struct journal_stream branch = {0};
        uint64_t parent = atomic_load(&rig.slots[0].stream_id);

        snprintf(branch.name, sizeof branch.name, "branch");
        assert_int_equal(journal_begin(rig.journal), 0);
        assert_int_equal(journal_stream_branch(rig.journal, parent, &branch), 0);
        assert_int_equal(journal_commit(rig.journal), 0);
        keeper_branch(&rig.keeper, parent, branch.id, branch.tokens);
    }
    feed("p", 3, LATE_BYTES, 10);
    copy_folder(folder, killed);
}

static uint32_t list_files(const char *folder, char (*out)[NAME_BYTES], uint32_t count)
{
    DIR *list = opendir(folder);
    struct dirent *entry;
    struct stat status;

    while (list && (entry = readdir(list)) && count < FILES_MAX) {
        char path[2 * NAME_BYTES];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (lstat(path, &status) != 0)
            continue;
        if (S_ISDIR(status.st_mode))
            count = list_files(path, out, count);
        else if (status.st_size)
            snprintf(out[count++], NAME_BYTES, "%.*s", NAME_BYTES - 1, path);
    }
    if (list)
        closedir(list);
    return count;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static const char *kind_of(const char *path)
{
    if (strstr(path, "/segments/"))
        return "segments";
    if (strstr(path, "/checkpoints/"))
        return "checkpoint";
    if (strstr(path, "/search/"))
        return strstr(path, "-wal") ? "index-log" : strstr(path, "-shm") ? "index-shm" : "index";
    if (strstr(path, ".db-synced"))
        return "journal-witness";
    return strstr(path, "-wal")   ? "journal-log"
           : strstr(path, "-shm") ? "journal-shm"
           : strstr(path, ".db")  ? "journal"
                                  : "other";
}

static struct kind *kind_at(const char *path)
{
    const char *name = kind_of(path);
    int i = 0;

    while (kinds[i].name[0] && strcmp(kinds[i].name, name) != 0)
        i++;
    snprintf(kinds[i].name, sizeof kinds[i].name, "%s", name);
    return &kinds[i];
}

/* One bit, or all behind some byte. */
static void damage(const char *path, bool cut, off_t *at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    uint8_t byte;

    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    *at = (off_t)below((uint64_t)status.st_size);
    if (cut) {
        assert_int_equal(ftruncate(fd, *at), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, *at), 1);
        byte ^= (uint8_t)(1u << below(8));
        assert_int_equal(pwrite(fd, &byte, 1, *at), 1);
    }
    close(fd);
}

/* ---- a round ---- */

/* Right but for what is missing, and that must have been said. False: something is wrong. */
static bool compare(const struct answer *got, const struct answer *want, bool *less)
{
    bool segments = true, missing = false;

    if (got->memory != want->memory || got->tokens != want->tokens ||
        got->bytes_text != want->bytes_text)
        return false;
    for (int i = 0; i < CHUNKS_MAX; i++) {
        if (got->segment[i] && got->segment[i] != want->segment[i] &&
            (want->segment[i] || got->segment[i] != want->common[i]))
            return false;
        segments &= got->segment[i] == want->segment[i];
        missing |= !got->segment[i] && want->segment[i];
    }
    if (got->sources == want->sources && segments && got->text_hash != want->text_hash)
        return false;
    *less |= got->sources != want->sources || missing;
    return true;
}

/* 0 to FATES - 1; -1: something wrong was served, or less than there was without a word. */
static int read_all(const char *folder)
{
    struct spill_stat cold;
    bool silent = false, less = false, wrong = false;

    faults = 0;
    if (ftruncate(said_fd, 0) != 0)
        return -1;
    if (rig_open(&rig, folder, &options) != 0)
        return REFUSED;
    if (!open_cold(folder)) {
        close_all();
        return REFUSED;
    }
    for (uint32_t i = 0; i < STREAMS && !silent; i++) {
        struct answer got;

        if (ask(stream_names[i], &got))
            wrong |= !compare(&got, &right[i], &less);
        else
            silent = true; /* no more is asked of it */
    }
    spill_stat(spill, &cold);
    for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
        faults += cold.faults[i];
    close_all();
    if (wrong)
        return -1;
    if (silent || faults > faults_before || lseek(said_fd, 0, SEEK_END) > 0)
        return NOTICED;
    return less ? -1 : HARMLESS;
}

static void write_csv(uint64_t rounds)
{
    const char *path = getenv("SILT_CSV");
    FILE *file = path ? fopen(path, "we") : NULL;
    uint64_t sum[FATES] = {0};

    if (file)
        fprintf(file, "file,damage,refused,noticed,harmless,wrong\n");
    for (int i = 0; i < KINDS_MAX && kinds[i].name[0]; i++)
        for (int cut = 0; cut < 2; cut++) {
            const uint64_t *count = kinds[i].count[cut];

            for (int fate = 0; fate < FATES; fate++)
                sum[fate] += count[fate];
            if (file)
                fprintf(file, "%s,%s,%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",0\n", kinds[i].name,
                        cut ? "cut" : "flip", count[REFUSED], count[NOTICED], count[HARMLESS]);
        }
    if (file)
        fclose(file);
    print_message("damages: %" PRIu64 ", refused %" PRIu64 ", noticed %" PRIu64
                  ", harmless %" PRIu64 ", wrong 0\n",
                  rounds, sum[REFUSED], sum[NOTICED], sum[HARMLESS]);
}

static void nothing_wrong_is_served(void **state)
{
    uint64_t rounds = faults_number("SILT_ROUNDS", 250), first = faults_number("SILT_SEED", 1);
    uint64_t from = faults_number("SILT_FROM", 0);
    static char files[FILES_MAX][NAME_BYTES];
    char base[64], ended[96], killed[96], work[96];

    (void)state;
    rig_folder(base, sizeof base);
    snprintf(ended, sizeof ended, "%s/ended", base);
    snprintf(killed, sizeof killed, "%s/killed", base);
    snprintf(work, sizeof work, "%s/work", base);
    assert_int_equal(mkdir(ended, 0700), 0);
    assert_int_equal(rig_open(&rig, ended, &options), 0);
    assert_true(open_cold(ended));
    make_folders(ended, killed);
    leave();
    for (uint32_t i = 0; i < STREAMS; i++)
        assert_true(ask(stream_names[i], &right[i]));
    memcpy(right[2].common, right[1].segment, sizeof right[2].common);
    close_all();
    for (int i = 0; i < 2; i++) { /* both are whole */
        copy_folder(i ? killed : ended, work);
        read_all(work);
        faults_before = faults;
        assert_int_equal(read_all(work), HARMLESS);
    }
    for (uint64_t round = from; round < from + rounds; round++) {
        bool cut;
        off_t at;
        int fate;
        uint32_t count;

        seed = first * 1000003 + round;
        below(1);
        copy_folder(below(2) ? killed : ended, work);
        count = list_files(work, files, 0);
        qsort(files, count, sizeof *files, by_name);
        cut = below(4) == 0;
        {
            const char *path = files[below(count)];

            damage(path, cut, &at);
            fate = read_all(work);
            if (fate < 0) {
                dprintf(stderr_fd, "round %" PRIu64 " of seed %" PRIu64 ": %s of %s at %lld\n",
                        round, first, cut ? "a cut" : "a flip", path, (long long)at);
                fail();
            }
            kind_at(path)->count[cut][fate]++;
        }
    }
    write_csv(rounds);
    rig_folder_drop(base);
}

static int hear(void **state)
{
    (void)state;
    stderr_fd = dup(STDERR_FILENO);
    said_fd = memfd_create("said", MFD_CLOEXEC);
    return stderr_fd < 0 || said_fd < 0 || dup2(said_fd, STDERR_FILENO) < 0;
}

static int hear_no_more(void **state)
{
    (void)state;
    return dup2(stderr_fd, STDERR_FILENO) < 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_wrong_is_served, hear, hear_no_more),
    };

    return cmocka_run_group_tests_name("rot", tests, NULL, NULL);
}
