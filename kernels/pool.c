/*
 * The worker pool. An op is a few microseconds long and there are hundreds of them in a block of
 * tokens, so a worker spins a short while for the next one before it sleeps, and the caller takes
 * part and waits only for pieces that some worker has claimed: a worker that the system has not
 * scheduled costs nothing.
 *
 * Each thread has a share of a job's pieces, a lane: the same part of 0..count-1 in every job, so
 * that what a piece reads is what the same thread has written in the job before, and lies in its
 * cache. Who has none left takes from the others' lanes.
 *
 * One word holds the whole state of a lane: which job it is, where its pieces end and the next one
 * to take. A piece is claimed by compare-and-swap on that word, so a claim is always of the job
 * that is running, and what the job points at may be read after it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "kernels/internal.h"

enum {
    COUNT_BITS = 20, /* most pieces of a job: 2^20 - 1 */
    SPIN_MAX = 2000, /* pauses before a thread sleeps: some tens of microseconds */
    STACK_BYTES = 2 << 20,
};

#define INDEX_MASK ((UINT64_C(1) << COUNT_BITS) - 1)

struct pool_lane {
    _Alignas(64) _Atomic uint64_t work; /* job number | end of its pieces | next piece */
    struct pool *pool;
};

struct pool {
    _Alignas(64) _Atomic uint32_t done; /* pieces finished of this job */
    _Alignas(64) _Atomic uint32_t sleepers;
    _Atomic bool stop, waiting; /* waiting: the caller sleeps until `done` is full */
    void (*task)(void *argument, uint32_t index); /* of the job that runs */
    void *argument;
    uint32_t count;        /* its pieces */
    pthread_mutex_t mutex; /* for the sleep alone */
    pthread_cond_t wake, finished;
    uint32_t lane_count, worker_count;
    struct pool_lane *lane; /* [lane_count], the caller's first */
    pthread_t worker[];
};

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline bool work_waits(uint64_t work)
{
    return (work & INDEX_MASK) < (work >> COUNT_BITS & INDEX_MASK);
}

/* Counts a piece as done. The count is raised before the look at `waiting`, and the caller looks at
 * it after it has set `waiting`: one of the two sees the other. */
static void pool_done(struct pool *pool, uint32_t count)
{
    if (atomic_fetch_add(&pool->done, 1) + 1 != count || !atomic_load(&pool->waiting))
        return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_signal(&pool->finished);
    pthread_mutex_unlock(&pool->mutex);
}

static void lane_take(struct pool *pool, struct pool_lane *lane)
{
    uint64_t work = atomic_load_explicit(&lane->work, memory_order_acquire);
    while (work_waits(work)) {
        if (!atomic_compare_exchange_weak_explicit(&lane->work, &work, work + 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        uint32_t count = pool->count;
        pool->task(pool->argument, (uint32_t)(work & INDEX_MASK));
        pool_done(pool, count);
        work = atomic_load_explicit(&lane->work, memory_order_acquire);
    }
}

/* Takes pieces until none is left, its own first. */
static void pool_take(struct pool *pool, uint32_t own)
{
    for (uint32_t i = 0; i < pool->lane_count; i++)
        lane_take(pool, &pool->lane[(own + i) % pool->lane_count]);
}

/* Sleeps until there is work or the pool stops. The count of sleepers is raised before the last
 * look at the lane, and pool_run looks at it after it has set the lanes: one of the two sees the
 * other. */
static void pool_sleep(struct pool *pool, const struct pool_lane *lane)
{
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!work_waits(atomic_load(&lane->work)) && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *pool_worker(void *argument)
{
    struct pool_lane *lane = argument;
    struct pool *pool = lane->pool;
    uint32_t spins = 0;
    while (!atomic_load_explicit(&pool->stop, memory_order_relaxed)) {
        if (work_waits(atomic_load_explicit(&lane->work, memory_order_relaxed))) {
            pool_take(pool, (uint32_t)(lane - pool->lane));
            spins = 0;
        } else if (++spins < SPIN_MAX) {
            cpu_pause();
        } else {
            pool_sleep(pool, lane);
            spins = 0;
        }
    }
    return NULL;
}

int pool_open(struct pool **out, uint32_t threads)
{
    assert(threads > 0);
    uint32_t workers = threads - 1;
    size_t lanes_at = round_up(sizeof(struct pool) + workers * sizeof(pthread_t), 64);
    size_t bytes = lanes_at + threads * sizeof(struct pool_lane);
    struct pool *pool = aligned_alloc(64, bytes);
    if (!pool)
        return -ENOMEM;
    memset(pool, 0, bytes);
    pool->lane_count = threads;
    pool->lane = (struct pool_lane *)(void *)((char *)pool + lanes_at);
    for (uint32_t i = 0; i < threads; i++)
        pool->lane[i].pool = pool;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);

    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int error = 0;
    while (pool->worker_count < workers && error == 0) {
        error = pthread_create(&pool->worker[pool->worker_count], &attributes, pool_worker,
                               &pool->lane[1 + pool->worker_count]);
        if (error == 0)
            pool->worker_count++;
    }
    pthread_attr_destroy(&attributes);
    if (error != 0) {
        pool_close(&pool);
        return -EAGAIN;
    }
    *out = pool;
    return 0;
}

void pool_close(struct pool **handle)
{
    struct pool *pool = *handle;
    if (!pool)
        return;
    *handle = NULL;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (uint32_t i = 0; i < pool->worker_count; i++)
        pthread_join(pool->worker[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

/* Until the pieces that workers have claimed are done. A worker that lost its core to another
 * process may take long: sleeping frees this core for it. */
static void pool_wait(struct pool *pool, uint32_t count)
{
    for (uint32_t spins = 0; spins < SPIN_MAX; spins++) {
        if (atomic_load_explicit(&pool->done, memory_order_acquire) == count)
            return;
        cpu_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->waiting, true);
    while (atomic_load(&pool->done) != count)
        pthread_cond_wait(&pool->finished, &pool->mutex);
    atomic_store(&pool->waiting, false);
    pthread_mutex_unlock(&pool->mutex);
}

void pool_run(struct pool *pool, void (*task)(void *argument, uint32_t index), void *argument,
              uint32_t count)
{
    assert(count <= INDEX_MASK);
    if (count <= 1 || pool->worker_count == 0) {
        for (uint32_t i = 0; i < count; i++)
            task(argument, i);
        return;
    }
    pool->task = task;
    pool->argument = argument;
    pool->count = count;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < pool->lane_count; i++) {
        uint64_t work = atomic_load_explicit(&pool->lane[i].work, memory_order_relaxed);
        assert(!work_waits(work)); /* one job at a time, and none from inside a task */
        uint64_t number = (work >> (2 * COUNT_BITS)) + 1;
        uint64_t from = (uint64_t)count * i / pool->lane_count;
        uint64_t to = (uint64_t)count * (i + 1) / pool->lane_count;
        atomic_store(&pool->lane[i].work, number << (2 * COUNT_BITS) | to << COUNT_BITS | from);
    }
    if (atomic_load(&pool->sleepers) != 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
    pool_take(pool, 0);
    pool_wait(pool, count);
}

struct range_job {
    range_task *task;
    void *argument;
    uint32_t total, step;
};

static void range_piece(void *argument, uint32_t index)
{
    const struct range_job *job = argument;
    uint32_t from = index * job->step;
    job->task(job->argument, from, min_u32(from + job->step, job->total));
}

void pool_ranges(struct pool *pool, range_task *task, void *argument, uint32_t total, uint32_t step)
{
    assert(step > 0);
    struct range_job job = {task, argument, total, step};
    if (total <= step)
        task(argument, 0, total);
    else
        pool_run(pool, range_piece, &job, (total + step - 1) / step);
}

uint32_t pool_step(const struct kernels *k, uint32_t total, uint32_t unit, uint32_t parts)
{
    assert(unit > 0 && parts > 0);
    if (k->threads == 1)
        return total > 0 ? total : 1;
    uint32_t pieces = k->threads * parts, step = (total + pieces - 1) / pieces;
    return (uint32_t)round_up(step > 0 ? step : 1, unit);
}
