/* Queues between threads, and the table of streams. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/queue.h"
#include "daemon/table.h"

enum { BYTES = 4096, WRITERS = 3, MESSAGES = 20000 };

static _Alignas(64) uint8_t memory[BYTES];

static uint32_t mix(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* Every message comes out as it went in, in order, whatever the sizes. */
static void in_is_out(void **state)
{
    struct queue queue;
    uint8_t text[BYTES];
    size_t size[BYTES]; /* of what is in it, by number */
    uint64_t put = 1, got = 1, sizes = 7, choice = 3;

    (void)state;
    queue_init(&queue, memory, BYTES, NULL);
    for (int round = 0; round < 200000; round++) {
        size_t bytes_count;
        const uint8_t *front;

        if (mix(&choice) % 2) {
            uint64_t before = sizes;
            size_t count = mix(&sizes) % (round % 10 ? 200 : 2000);
            struct queue_part parts[2] = {{text, count / 3}, {text + count / 3, count - count / 3}};

            memset(text, (int)(put & 0xff), count);
            size[put % BYTES] = count;
            if (queue_push(&queue, parts, 2) == 0)
                put++;
            else
                sizes = before;
            continue;
        }
        front = queue_front(&queue, &bytes_count);
        if (!front)
            continue;
        assert_int_equal((uintptr_t)front % 16, 0);
        assert_int_equal(bytes_count, size[got % BYTES]);
        for (size_t i = 0; i < bytes_count; i++)
            assert_int_equal(front[i], (uint8_t)got);
        got++;
        queue_pop(&queue);
    }
    assert_true(put > 10000 && got <= put);
}

static void limits(void **state)
{
    struct queue queue;
    static uint8_t text[BYTES];
    struct queue_part part = {text, BYTES - 16};
    size_t bytes_count;

    (void)state;
    queue_init(&queue, memory, BYTES, NULL);
    assert_int_equal(queue_push(&queue, &part, 1), 0); /* the longest fits an empty queue */
    assert_int_equal(queue_push(&queue, &(struct queue_part){text, 1}, 1), -EAGAIN);
    assert_non_null(queue_front(&queue, &bytes_count));
    assert_int_equal(bytes_count, BYTES - 16);
    queue_pop(&queue);
    assert_null(queue_front(&queue, &bytes_count));
    part.count = BYTES - 15;
    assert_int_equal(queue_push(&queue, &part, 1), -EMSGSIZE);
    /* Also where the ring's end is in the way. */
    part.count = 1000;
    assert_int_equal(queue_push(&queue, &part, 1), 0);
    queue_pop(&queue);
    part.count = BYTES - 16;
    assert_int_equal(queue_push(&queue, &part, 1), 0);
    queue_close(&queue);
    assert_int_equal(queue_push(&queue, &part, 1), -ESHUTDOWN);
    assert_int_equal(queue_push_wait(&queue, &part, 1), -ESHUTDOWN);
    assert_non_null(queue_front(&queue, &bytes_count));
}

static void *write_many(void *user)
{
    struct queue *queue = user;
    static _Atomic uint32_t names;
    uint32_t message[16] = {names++, 0};

    for (uint32_t i = 0; i < MESSAGES; i++) {
        struct queue_part part = {message, 8 + i % 14 * 4};

        message[1] = i;
        if (queue_push_wait(queue, &part, 1))
            abort();
    }
    return NULL;
}

static void threads(void **state)
{
    struct doorbell bell;
    struct queue queue;
    pthread_t writers[WRITERS];
    uint32_t next[WRITERS] = {0};
    size_t bytes_count;

    (void)state;
    assert_int_equal(doorbell_open(&bell), 0);
    queue_init(&queue, memory, BYTES, &bell);
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&writers[i], NULL, write_many, &queue), 0);
    for (int got = 0; got < WRITERS * MESSAGES;) {
        const uint32_t *front = queue_front(&queue, &bytes_count);

        if (!front) {
            doorbell_wait(&bell, 1000);
            continue;
        }
        assert_true(front[0] < WRITERS);
        assert_int_equal(front[1], next[front[0]]++);
        assert_int_equal(bytes_count, 8 + front[1] % 14 * 4);
        queue_pop(&queue);
        got++;
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    doorbell_close(&bell);
}

static void names_are_found_and_ordered(void **state)
{
    enum { RECORDS = 300 };
    static struct record records[RECORDS];
    static uint32_t buckets[TABLE_BUCKETS], order[RECORDS];
    struct table table;
    char name[32];
    uint64_t seed = 1;

    (void)state;
    table_init(&table, records, buckets, order, RECORDS);
    for (int round = 0; round < 20000; round++) {
        uint32_t at;

        snprintf(name, sizeof name, "s%u", mix(&seed) % 500);
        at = table_find(&table, name);
        if (at != RECORD_NONE) {
            assert_string_equal(records[at].name, name);
            table_drop(&table, at);
            assert_int_equal(table_find(&table, name), RECORD_NONE);
        } else if (table.count < RECORDS) {
            assert_int_not_equal(table_add(&table, name), RECORD_NONE);
        } else {
            assert_int_equal(table_add(&table, name), RECORD_NONE);
        }
        for (uint32_t i = 1; round % 100 == 0 && i < table.count; i++)
            assert_true(strcmp(records[order[i - 1]].name, records[order[i]].name) < 0);
    }
    assert_int_equal(table_after(&table, ""), 0);
    assert_int_equal(table_after(&table, "zzz"), table.count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_is_out),
        cmocka_unit_test(limits),
        cmocka_unit_test(threads),
        cmocka_unit_test(names_are_found_and_ordered),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
