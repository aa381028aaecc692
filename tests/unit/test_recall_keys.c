/* Recall keys on disk, what becomes of damaged ones, and their fusion with words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/recall_keys.h"
#include "daemon/search.h"
#include "tests/unit/disk_fault.h"
#include "tests/unit/faults.h"

enum { VOCAB = 1000, MODEL = 77, STREAM = 5, CHUNKS = 1000, PAGE = 4096, TOKENS = 200 };

struct shelf {
    char path[100];
    void *memory;
    struct recall_keys *keys;
    uint8_t *table;
};

static void open_shelf(struct shelf *s)
{
    s->memory = aligned_alloc(64, (recall_keys_bytes() + 63) / 64 * 64);
    assert_int_equal(recall_keys_open(&s->keys, MODEL, s->memory), 0);
}

static void close_shelf(struct shelf *s)
{
    recall_keys_close(&s->keys);
    free(s->memory);
}

/* A chunk has token `chunk % VOCAB` and others; the question asks for 500, less for 499, … */
static void chunk_tokens(uint64_t chunk, int32_t *tokens)
{
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = 600 + i / 2;
    tokens[17] = (int32_t)(chunk % 590);
}

static int set_up(void **state)
{
    struct shelf *s = calloc(1, sizeof *s);
    int32_t tokens[TOKENS];

    snprintf(s->path, sizeof s->path, "/tmp/silt-shelf-%d.keys", getpid());
    unlink(s->path);
    open_shelf(s);
    assert_int_equal(recall_file_open(s->keys, 0, s->path, STREAM), 0);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        chunk_tokens(i, tokens);
        assert_int_equal(recall_file_add(s->keys, 0, i, tokens, TOKENS), 0);
    }
    s->table = calloc(VOCAB, RECALL_QUERY_TOKENS);
    for (uint32_t v = 400; v <= 500; v++)
        s->table[v * RECALL_QUERY_TOKENS + 3] = (uint8_t)(v - 300);
    *state = s;
    return 0;
}

static int tear_down(void **state)
{
    struct shelf *s = *state;

    close_shelf(s);
    unlink(s->path);
    free(s->table);
    free(s);
    return 0;
}

static void check_best(const struct shelf *s, uint64_t chunk_end, uint64_t first)
{
    struct recall_hit hits[8];
    int count = recall_file_find(s->keys, 0, s->table, 0, chunk_end, hits, 8);

    assert_int_equal(count, 8);
    for (uint32_t i = 0; i < 8; i++) {
        assert_int_equal(hits[i].chunk, first - i);
        assert_int_equal(hits[i].score, 200 - (500 - first) - i);
    }
}

static void the_nearest_come_first(void **state)
{
    struct shelf *s = *state;
    struct recall_hit hits[8];
    int32_t tokens[TOKENS];

    check_best(s, CHUNKS, 500);
    check_best(s, 450, 449); /* later chunks are not of this question */
    /* Nor earlier ones. */
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 500, 501, hits, 8), 1);
    assert_int_equal(hits[0].chunk, 500);
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 498, 590, hits, 8), 3);
    assert_int_equal(hits[2].chunk, 498);
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 500, 500, hits, 8), 0);
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, 0, hits, 8), 0);
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, 300, hits, 8), 0);
    chunk_tokens(500, tokens); /* as near as 500: behind it */
    assert_int_equal(recall_file_add(s->keys, 0, CHUNKS, tokens, TOKENS), 0);
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, UINT64_MAX, hits, 2), 2);
    assert_int_equal(hits[0].chunk, 500);
    assert_int_equal(hits[1].chunk, CHUNKS);
    assert_int_equal(recall_file_add(s->keys, 0, CHUNKS, tokens, TOKENS), -EINVAL);
    assert_int_equal(recall_file_add(s->keys, 0, CHUNKS + 2, tokens, TOKENS), -EINVAL);
}

static void keys_outlive_the_process(void **state)
{
    struct shelf *s = *state;
    int32_t tokens[TOKENS];

    assert_int_equal(recall_file_write(s->keys, 0), 0);
    close_shelf(s);
    open_shelf(s);
    assert_int_equal(recall_file_open(s->keys, 0, s->path, STREAM), CHUNKS);
    check_best(s, CHUNKS, 500);
    for (uint64_t i = CHUNKS; i < CHUNKS + 20; i++) {
        chunk_tokens(i, tokens);
        assert_int_equal(recall_file_add(s->keys, 0, i, tokens, TOKENS), 0);
        assert_int_equal(recall_file_write(s->keys, 0), 0); /* a page again and again */
    }
    close_shelf(s);
    open_shelf(s);
    assert_int_equal(recall_file_open(s->keys, 0, s->path, STREAM), CHUNKS + 20);
    check_best(s, CHUNKS, 500);
}

/* Reopens after `bytes` at `offset` were changed, or the file cut there. */
static int64_t reopen_damaged(struct shelf *s, off_t offset, bool cut)
{
    uint8_t byte;
    int fd;

    assert_int_equal(recall_file_write(s->keys, 0), 0);
    close_shelf(s);
    fd = open(s->path, O_RDWR);
    if (cut) {
        assert_int_equal(ftruncate(fd, offset), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, offset), 1);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    }
    close(fd);
    open_shelf(s);
    return recall_file_open(s->keys, 0, s->path, STREAM);
}

static void torn_ends_are_left_out(void **state)
{
    struct shelf *s = *state;

    assert_int_equal(reopen_damaged(s, 100 * PAGE + 999, true), 100 * RECALL_PAGE_KEYS);
    check_best(s, CHUNKS, 500);
    assert_int_equal(reopen_damaged(s, 99 * PAGE + 999, false), 99 * RECALL_PAGE_KEYS);
    check_best(s, CHUNKS, 500);
}

static void a_flipped_bit_is_seen(void **state)
{
    struct shelf *s = *state;
    struct recall_hit hits[8];

    assert_int_equal(reopen_damaged(s, 80 * PAGE + 999, false), CHUNKS);
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, CHUNKS, hits, 8), -EBADMSG);
    check_best(s, 80 * RECALL_PAGE_KEYS, 500); /* what comes before it is good */
}

/* Its reads are still under way: they end before anything else begins. */
static void an_engine_that_fails_amid_a_search(void **state)
{
    struct shelf *s = *state;
    struct disk_fault fault;
    struct recall_hit hits[8];
    int32_t tokens[TOKENS];

    assert_int_equal(recall_file_write(s->keys, 0), 0);
    disk_fault_init(&fault, recall_keys_disk(s->keys), PAGE);
    for (uint32_t n = 1; n < 4; n++) {
        fault.broken = n;
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, CHUNKS, hits, 8), -EIO);
        check_best(s, CHUNKS, 500);
    }
    fault.broken = 1;
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, CHUNKS, hits, 8), -EIO);
    chunk_tokens(CHUNKS, tokens);
    assert_int_equal(recall_file_add(s->keys, 0, CHUNKS, tokens, TOKENS), 0);
    assert_int_equal(recall_file_write(s->keys, 0), 0);
    check_best(s, CHUNKS, 500);
    fault.broken = 1;
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, CHUNKS, hits, 8), -EIO);
    recall_file_close(s->keys, 0);
    assert_int_equal(recall_file_open(s->keys, 0, s->path, STREAM), CHUNKS + 1);
    check_best(s, CHUNKS, 500);
    fault.broken = 1;
    assert_int_equal(recall_file_find(s->keys, 0, s->table, 0, CHUNKS, hits, 8), -EIO);
    close_shelf(s);
    open_shelf(s);
}

static void keys_of_others_are_not_used(void **state)
{
    struct shelf *s = *state;

    assert_int_equal(recall_file_write(s->keys, 0), 0);
    recall_file_close(s->keys, 0);
    assert_int_equal(recall_file_open(s->keys, 0, s->path, STREAM + 1), 0);
}

static int better_first(const void *a, const void *b)
{
    const struct recall_hit *x = a, *y = b;

    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return x->chunk < y->chunk ? -1 : 1;
}

/* Keys that cannot be among the best are passed over: what is found is as if each were scored. */
static void every_key_counts(void **state)
{
    enum { KEYS = 3000, FOUND = 64 };
    static uint16_t key[KEYS][RECALL_KEY_TOKENS];
    static struct recall_hit all[KEYS], hits[FOUND];
    const struct shelf *s = *state;
    uint64_t seed = faults_number("SILT_SEED", 1);

    print_message("seed %llu\n", (unsigned long long)seed);
    recall_file_close(s->keys, 0);
    unlink(s->path);
    assert_int_equal(recall_file_open(s->keys, 0, s->path, STREAM), 0);
    for (uint32_t i = 0; i < KEYS; i++) {
        int32_t tokens[RECALL_KEY_TOKENS];

        for (uint32_t j = 0; j < RECALL_KEY_TOKENS; j++) { /* low ones are in more of the keys */
            uint32_t most = 1 + (uint32_t)(faults_random(&seed) % VOCAB);

            tokens[j] = (int32_t)(faults_random(&seed) % most);
            key[i][j] = (uint16_t)tokens[j];
        }
        assert_int_equal(recall_file_add(s->keys, 0, i, tokens, RECALL_KEY_TOKENS), 0);
    }
    for (uint32_t round = 0; round < 20; round++) {
        uint32_t end = round % 2 ? (uint32_t)(faults_random(&seed) % KEYS) : KEYS, count = 0;
        uint32_t sparse = 1 + (uint32_t)(faults_random(&seed) % 64);
        uint32_t from = round % 3 ? (uint32_t)(faults_random(&seed) % (end + 1)) : 0;

        for (uint32_t i = 0; i < VOCAB * RECALL_QUERY_TOKENS; i++)
            s->table[i] = faults_random(&seed) % sparse ? 0 : (uint8_t)faults_random(&seed);
        for (uint32_t i = from; i < end; i++) {
            uint32_t score = recall_score(s->table, key[i], RECALL_KEY_TOKENS);

            if (score)
                all[count++] = (struct recall_hit){i, score};
        }
        qsort(all, count, sizeof *all, better_first);
        count = count < FOUND ? count : FOUND;
        assert_int_equal(recall_file_find(s->keys, 0, s->table, from, end, hits, FOUND), count);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(hits[i].chunk, all[i].chunk);
            assert_int_equal(hits[i].score, all[i].score);
        }
    }
}

static void fusion(void **state)
{
    struct search_words words = {{{5, 9.0}, {2, 8.0}, {7, 1.0}}, 3, 15};
    const struct search_hit near[] = {{7, 90}, {4, 80}};
    struct search_hit out[SEARCH_HITS_MAX];

    (void)state;
    assert_int_equal(search_fuse(out, SEARCH_HITS_MAX, &words, near, 2), 4);
    assert_int_equal(out[0].chunk, 5); /* most of what words can say */
    assert_int_equal(out[1].chunk, 2);
    assert_int_equal(out[2].chunk, 7); /* in both, but little of what was asked for */
    assert_int_equal(out[3].chunk, 4); /* last of the keys: as good as none */
    words.most = 120;                  /* the same words of a longer question say less */
    search_fuse(out, SEARCH_HITS_MAX, &words, near, 2);
    assert_int_equal(out[0].chunk, 7);
    assert_int_equal(search_fuse(out, 2, &words, near, 2), 2);
    words.count = 0;
    assert_int_equal(search_fuse(out, 8, &words, near, 0), 0);
    assert_int_equal(search_fuse(out, 8, &words, near, 2), 2);
    assert_int_equal(out[0].chunk, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_nearest_come_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(keys_outlive_the_process, set_up, tear_down),
        cmocka_unit_test_setup_teardown(torn_ends_are_left_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_flipped_bit_is_seen, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_engine_that_fails_amid_a_search, set_up, tear_down),
        cmocka_unit_test_setup_teardown(keys_of_others_are_not_used, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_key_counts, set_up, tear_down),
        cmocka_unit_test(fusion),
    };

    return cmocka_run_group_tests_name("recall keys", tests, NULL, NULL);
}
