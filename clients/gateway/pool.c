/* Connections to siltd: opened when first needed, some kept for the next, one user each. siltd has
 * --clients-max places for all its clients, so there are fewer than browsers may be, who wait. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/gateway/gateway.h"

enum {
    CONNECT_MS = 2000,
    TIMEOUT_MS = 10000,
    BUSY_MS = 5000, /* a stream comes back to its place, or a question ends */
    EVENTS_MAX = 4,
    WAIT_SECONDS = 5, /* for another to be given back */
    IDLE_MAX = 4,     /* kept: each takes one of siltd's --clients-max places from others */
};

int pool_open(struct pool *pool, uint32_t count)
{
    pthread_condattr_t attributes;
    int r;

    pool->clients = calloc(count, sizeof *pool->clients);
    if (!pool->clients)
        return -ENOMEM;
    pool->count = count;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    r = pthread_mutex_init(&pool->lock, NULL);
    r = r ? r : pthread_cond_init(&pool->given, &attributes);
    pthread_condattr_destroy(&attributes);
    return -r;
}

void pool_close(struct pool *pool)
{
    for (uint32_t i = 0; i < pool->count; i++)
        client_close(&pool->clients[i].client);
    free(pool->clients);
    pool->clients = NULL;
    pool->count = 0;
}

void pool_stop(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    for (uint32_t i = 0; i < pool->count; i++)
        pool->clients[i].interrupted = true;
    pthread_cond_broadcast(&pool->given);
    pthread_mutex_unlock(&pool->lock);
}

/* Under the lock. One that is connected before one that is not. */
static struct pooled *find_free(struct pool *pool, bool long_use)
{
    uint32_t most = long_use ? pool->count - pool->count / 4 : pool->count;
    struct pooled *found = NULL;

    for (uint32_t i = 0; i < pool->count && pool->used < most && !pool->stopping; i++)
        if (!pool->clients[i].used && (!found || (!found->client && pool->clients[i].client)))
            found = &pool->clients[i];
    return found;
}

static struct pooled *pool_wait(struct pool *pool, bool long_use)
{
    struct pooled *found;
    struct timespec end;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += WAIT_SECONDS;
    pthread_mutex_lock(&pool->lock);
    while (!(found = find_free(pool, long_use)) && !pool->stopping && !r)
        r = pthread_cond_timedwait(&pool->given, &pool->lock, &end);
    if (found) {
        found->used = true;
        found->interrupted = false;
        pool->used++;
    }
    pthread_mutex_unlock(&pool->lock);
    return found;
}

struct pooled *pool_take(struct gateway *gateway, bool long_use, struct client_error *error)
{
    struct pooled *pooled = pool_wait(&gateway->pool, long_use);
    struct client_options options = {.endpoint = gateway->options.endpoint,
                                     .server_key = gateway->options.server_key,
                                     .client_key = gateway->options.client_key,
                                     .connect_ms = CONNECT_MS,
                                     .timeout_ms = TIMEOUT_MS,
                                     .busy_ms = BUSY_MS};

    *error = (struct client_error){.code = -EBUSY, .retry_us = 1000000};
    snprintf(error->text, sizeof error->text,
             "too many requests at once: try again in a moment, or start the gateway with a larger "
             "--siltd-connections than %u, and siltd with a --clients-max beyond it",
             gateway->options.siltd_connections_max);
    if (!pooled)
        return NULL;
    /* What became of the link while nobody used it is learned before a question relies on it. */
    for (int i = 0; i < EVENTS_MAX && pooled->client; i++)
        client_poll(pooled->client, -1, 0);
    if (pooled->client)
        return pooled;
    options.interrupted = &pooled->interrupted;
    if (client_open(&pooled->client, &options, error))
        pool_give(gateway, &pooled, error->code);
    return pooled;
}

/* Under the lock. */
static uint32_t count_idle(const struct pool *pool)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < pool->count; i++)
        count += !pool->clients[i].used && pool->clients[i].client;
    return count;
}

void pool_give(struct gateway *gateway, struct pooled **pooled, int result)
{
    struct pool *pool = &gateway->pool;
    struct client *spare = NULL;

    if (!*pooled)
        return;
    if (result == -ECONNREFUSED || result == -ECONNRESET || result == -ETIMEDOUT)
        client_close(&(*pooled)->client);
    pthread_mutex_lock(&pool->lock);
    if (count_idle(pool) >= IDLE_MAX) {
        spare = (*pooled)->client;
        (*pooled)->client = NULL;
    }
    (*pooled)->used = false;
    pool->used--;
    pthread_cond_broadcast(&pool->given); /* a question may not take what the page may */
    pthread_mutex_unlock(&pool->lock);
    client_close(&spare);
    *pooled = NULL;
}
