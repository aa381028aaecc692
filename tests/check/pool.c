/* The worker pool: every index once, whatever the counts, with sleeps between. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/check/check.h"

enum { PIECES_MAX = 1000 };

struct tally {
    _Atomic uint32_t runs[PIECES_MAX];
    uint64_t plain[PIECES_MAX]; /* written by the worker, read by the caller: no atomics */
};

static void tally_piece(void *argument, uint32_t index)
{
    struct tally *tally = argument;
    atomic_fetch_add(&tally->runs[index], 1);
    tally->plain[index] = index * 7u + 1;
}

static void pool_case(struct check *c, struct kernels *k, uint32_t pieces)
{
    case_begin(c, "pool of %u, %u pieces", k->threads, pieces);
    static struct tally tally;
    memset(&tally, 0, sizeof tally);
    pool_run(k->pool, tally_piece, &tally, pieces);
    for (uint32_t i = 0; i < PIECES_MAX; i++) {
        uint32_t runs = atomic_load(&tally.runs[i]);
        if (runs != (i < pieces) || tally.plain[i] != (i < pieces ? i * 7u + 1 : 0))
            case_fail(c, "piece %u ran %u times", i, runs);
    }
    case_end(c);
}

void check_pool(struct check *c)
{
    static const uint32_t pieces[] = {0, 1, 2, 3, 5, 64, 999, 1000};
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        pool_case(c, c->one, pieces[i]);
        pool_case(c, c->two, pieces[i]);
        pool_case(c, c->five, pieces[i]);
    }
    case_begin(c, "pools opened, used and closed");
    for (uint32_t threads = 1; threads <= 5; threads++) {
        struct kernels_options options = {DEVICE_CPU, threads, 0};
        struct kernels *k = NULL;
        if (kernels_open(&k, &options) != 0) {
            case_fail(c, "%u threads not opened", threads);
            continue;
        }
        static struct tally tally;
        memset(&tally, 0, sizeof tally);
        for (uint32_t turn = 0; turn < 300; turn++) {
            pool_run(k->pool, tally_piece, &tally, 7);
            if (turn % 100 == 50) /* long enough for the workers to go to sleep */
                nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
        }
        for (uint32_t i = 0; i < 7; i++)
            if (atomic_load(&tally.runs[i]) != 300)
                case_fail(c, "%u threads: piece %u ran %u times", threads, i,
                          atomic_load(&tally.runs[i]));
        kernels_close(&k);
        kernels_close(&k); /* again: nothing happens */
    }
    case_end(c);
}

static void nothing_piece(void *argument, uint32_t index)
{
    (void)argument;
    (void)index;
}

void bench_pool(struct check *c)
{
    double seconds;
    BENCH_SECONDS(seconds, pool_run(c->two->pool, nothing_piece, NULL, 2));
    bench_line(c->two, "pool_run of 2 empty pieces", seconds, BOUND_NONE, 0);
}
