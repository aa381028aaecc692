/* Messages lie in one ring, each behind a 16-byte head; one that would wrap leaves a skip mark. */
#include "daemon/queue.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { QUEUE_ALIGN = 16 };
#define QUEUE_SKIP UINT64_MAX

struct queue_head {
    uint64_t bytes_count; /* of the message, QUEUE_SKIP: the rest of the ring is empty */
    uint64_t space;       /* taken in the ring, this head included */
};
_Static_assert(sizeof(struct queue_head) == QUEUE_ALIGN, "messages stay aligned");

int doorbell_open(struct doorbell *bell)
{
    bell->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return bell->fd < 0 ? -errno : 0;
}

void doorbell_close(struct doorbell *bell)
{
    if (bell->fd >= 0)
        close(bell->fd);
    bell->fd = -1;
}

void doorbell_ring(const struct doorbell *bell)
{
    uint64_t one = 1;

    /* Fails only when the count is at its end: then it is rung already. */
    if (write(bell->fd, &one, sizeof one) < 0)
        return;
}

void doorbell_clear(const struct doorbell *bell)
{
    uint64_t count;

    if (read(bell->fd, &count, sizeof count) < 0)
        return;
}

void doorbell_wait(const struct doorbell *bell, int timeout_ms)
{
    struct pollfd set = {.fd = bell->fd, .events = POLLIN};

    poll(&set, 1, timeout_ms);
    doorbell_clear(bell);
}

void queue_init(struct queue *queue, void *memory, size_t bytes, const struct doorbell *bell)
{
    assert(bytes % QUEUE_ALIGN == 0 && bytes > 4 * QUEUE_ALIGN);
    assert((uintptr_t)memory % QUEUE_ALIGN == 0);
    memset(queue, 0, sizeof *queue);
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->room, NULL);
    queue->bytes = memory;
    queue->capacity = bytes;
    queue->bell = bell;
}

static size_t space_of(size_t bytes_count)
{
    return sizeof(struct queue_head) + (bytes_count + QUEUE_ALIGN - 1) / QUEUE_ALIGN * QUEUE_ALIGN;
}

/* A place of `space` bytes in one piece, or NULL. Called locked. */
static struct queue_head *queue_place(struct queue *queue, size_t space)
{
    size_t tail = (queue->head + queue->used) % queue->capacity;
    size_t to_end = queue->capacity - tail;
    struct queue_head *head = (struct queue_head *)(void *)(queue->bytes + tail);

    if (queue->used == queue->capacity)
        return NULL;
    if (tail < queue->head)
        return queue->head - tail >= space ? head : NULL;
    if (to_end >= space)
        return head;
    if (queue->head < space)
        return NULL;
    *head = (struct queue_head){.bytes_count = QUEUE_SKIP, .space = to_end};
    queue->used += to_end;
    return (struct queue_head *)(void *)queue->bytes;
}

static int push_locked(struct queue *queue, const struct queue_part *parts, uint32_t part_count,
                       size_t bytes_count)
{
    size_t space = space_of(bytes_count);
    struct queue_head *head;
    uint8_t *out;

    if (queue->closed)
        return -ESHUTDOWN;
    if (queue->used == 0)
        queue->head = 0; /* the longest message fits an empty ring */
    head = queue_place(queue, space);
    if (!head)
        return -EAGAIN;
    *head = (struct queue_head){.bytes_count = bytes_count, .space = space};
    out = (uint8_t *)(head + 1);
    for (uint32_t i = 0; i < part_count; i++) {
        if (parts[i].count)
            memcpy(out, parts[i].bytes, parts[i].count);
        out += parts[i].count;
    }
    queue->used += space;
    assert(queue->used <= queue->capacity);
    return 0;
}

static int push(struct queue *queue, const struct queue_part *parts, uint32_t part_count, bool wait)
{
    size_t bytes_count = 0;
    int result;

    for (uint32_t i = 0; i < part_count; i++)
        bytes_count += parts[i].count;
    if (space_of(bytes_count) > queue->capacity)
        return -EMSGSIZE;
    pthread_mutex_lock(&queue->lock);
    result = push_locked(queue, parts, part_count, bytes_count);
    while (wait && result == -EAGAIN) {
        pthread_cond_wait(&queue->room, &queue->lock);
        result = push_locked(queue, parts, part_count, bytes_count);
    }
    pthread_mutex_unlock(&queue->lock);
    if (!result && queue->bell)
        doorbell_ring(queue->bell);
    return result;
}

int queue_push(struct queue *queue, const struct queue_part *parts, uint32_t part_count)
{
    return push(queue, parts, part_count, false);
}

int queue_push_wait(struct queue *queue, const struct queue_part *parts, uint32_t part_count)
{
    return push(queue, parts, part_count, true);
}

static void drop_front(struct queue *queue, size_t space)
{
    assert(space <= queue->used);
    queue->head = (queue->head + space) % queue->capacity;
    queue->used -= space;
}

const void *queue_front(struct queue *queue, size_t *bytes_count)
{
    const struct queue_head *head = NULL;

    pthread_mutex_lock(&queue->lock);
    if (queue->used) {
        head = (const struct queue_head *)(const void *)(queue->bytes + queue->head);
        if (head->bytes_count == QUEUE_SKIP) {
            drop_front(queue, head->space);
            head = (const struct queue_head *)(const void *)(queue->bytes + queue->head);
        }
        *bytes_count = head->bytes_count;
    }
    pthread_mutex_unlock(&queue->lock);
    return head ? head + 1 : NULL;
}

void queue_pop(struct queue *queue)
{
    const struct queue_head *head;

    pthread_mutex_lock(&queue->lock);
    assert(queue->used);
    head = (const struct queue_head *)(const void *)(queue->bytes + queue->head);
    drop_front(queue, head->space);
    pthread_cond_broadcast(&queue->room);
    pthread_mutex_unlock(&queue->lock);
}

void queue_close(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    pthread_cond_broadcast(&queue->room);
    pthread_mutex_unlock(&queue->lock);
}
