/* Connections to siltd: opened when first needed, some kept for the next, one user each. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/gateway.h"

enum {
    CONNECT_MS = 2000,
    TIMEOUT_MS = 10000,
    EVENTS_MAX = 4,
    IDLE_MAX = 4, /* kept: each takes one of siltd's --clients-max places from others */
};

int pool_open(struct pool *pool, uint32_t count)
{
    pool->clients = calloc(count, sizeof *pool->clients);
    if (!pool->clients)
        return -ENOMEM;
    pool->count = count;
    return -pthread_mutex_init(&pool->lock, NULL);
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
        pool->clients[i].interrupted = 1;
    pthread_mutex_unlock(&pool->lock);
}

static struct pooled *pool_find(struct pool *pool)
{
    struct pooled *found = NULL;

    pthread_mutex_lock(&pool->lock);
    /* One that is connected before one that is not. */
    for (uint32_t i = 0; i < pool->count && !pool->stopping; i++)
        if (!pool->clients[i].used && (!found || (!found->client && pool->clients[i].client)))
            found = &pool->clients[i];
    if (found) {
        found->used = true;
        found->interrupted = 0;
    }
    pthread_mutex_unlock(&pool->lock);
    return found;
}

struct pooled *pool_take(struct gateway *gateway, struct client_error *error)
{
    struct pooled *pooled = pool_find(&gateway->pool);
    struct client_options options = {.endpoint = gateway->options.endpoint,
                                     .server_key = gateway->options.server_key,
                                     .client_key = gateway->options.client_key,
                                     .connect_ms = CONNECT_MS,
                                     .timeout_ms = TIMEOUT_MS};

    *error = (struct client_error){.code = -EBUSY, .retry_us = 1000000};
    snprintf(error->text, sizeof error->text, "too many requests at once: try again in a moment");
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
    pthread_mutex_unlock(&pool->lock);
    client_close(&spare);
    *pooled = NULL;
}
