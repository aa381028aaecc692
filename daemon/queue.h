/*
 * queue: fixed byte rings between threads, and the doorbell that wakes their reader.
 *
 * A message is any number of bytes, kept together, 16-aligned. Any number of writers, one reader.
 * A full queue says -EAGAIN: the writer decides what that means for its client.
 */
#ifndef SILT_DAEMON_QUEUE_H
#define SILT_DAEMON_QUEUE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct doorbell {
    int fd; /* eventfd: can stand in a poll set */
};
int doorbell_open(struct doorbell *bell);
void doorbell_close(struct doorbell *bell);
void doorbell_ring(const struct doorbell *bell);                 /* safe in a signal handler */
void doorbell_wait(const struct doorbell *bell, int timeout_ms); /* and clears; -1: for ever */
void doorbell_clear(const struct doorbell *bell);

struct queue_part {
    const void *bytes;
    size_t count;
};
struct queue {
    pthread_mutex_t lock;
    pthread_cond_t room;
    uint8_t *bytes; /* [capacity] */
    size_t capacity, head, used;
    bool closed;
    const struct doorbell *bell; /* rung at every push */
};
/* memory: 16-aligned, bytes a multiple of 16. */
void queue_init(struct queue *queue, void *memory, size_t bytes, const struct doorbell *bell);
/* 0; -EAGAIN: no room now; -EMSGSIZE: never; -ESHUTDOWN: closed. */
int queue_push(struct queue *queue, const struct queue_part *parts, uint32_t part_count);
/* Waits for room; only for writers that the reader never waits for. -ESHUTDOWN, -EMSGSIZE. */
int queue_push_wait(struct queue *queue, const struct queue_part *parts, uint32_t part_count);
/* The oldest message, NULL if none; valid until queue_pop. */
const void *queue_front(struct queue *queue, size_t *bytes_count);
void queue_pop(struct queue *queue);
/* Writers get -ESHUTDOWN from now on; what is in it can still be read. */
void queue_close(struct queue *queue);

#endif
