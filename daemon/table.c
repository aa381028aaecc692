/* Chained hash for finding, a sorted list of numbers for listing. */
#include "daemon/table.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

static uint32_t *bucket_of(const struct table *table, const char *name)
{
    return &table->buckets[XXH3_64bits(name, strlen(name)) % table->bucket_count];
}

void table_init(struct table *table, struct record *records, uint32_t *buckets, uint32_t *order,
                uint32_t record_max)
{
    *table = (struct table){.records = records,
                            .buckets = buckets,
                            .order = order,
                            .record_max = record_max,
                            .bucket_count = TABLE_BUCKETS};
    for (uint32_t i = 0; i < TABLE_BUCKETS; i++)
        buckets[i] = RECORD_NONE;
    for (uint32_t i = 0; i < record_max; i++) {
        records[i].state = RECORD_FREE;
        records[i].next = i + 1 < record_max ? i + 1 : RECORD_NONE;
    }
    table->free = record_max ? 0 : RECORD_NONE;
}

uint32_t table_find(const struct table *table, const char *name)
{
    uint32_t at = *bucket_of(table, name);

    while (at != RECORD_NONE && strcmp(table->records[at].name, name) != 0)
        at = table->records[at].next;
    return at;
}

uint32_t table_after(const struct table *table, const char *name)
{
    uint32_t low = 0, high = table->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (strcmp(table->records[table->order[middle]].name, name) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t table_add(struct table *table, const char *name)
{
    uint32_t index = table->free, place;
    uint32_t *bucket = bucket_of(table, name);
    struct record *record;

    assert(table_find(table, name) == RECORD_NONE);
    if (index == RECORD_NONE)
        return RECORD_NONE;
    record = &table->records[index];
    table->free = record->next;
    memset(record, 0, sizeof *record);
    snprintf(record->name, sizeof record->name, "%s", name);
    record->state = RECORD_PARKED;
    record->slot = SLOT_NONE;
    record->next = *bucket;
    *bucket = index;
    place = table_after(table, name);
    memmove(&table->order[place + 1], &table->order[place],
            (table->count - place) * sizeof *table->order);
    table->order[place] = index;
    table->count++;
    return index;
}

void table_drop(struct table *table, uint32_t index)
{
    struct record *record = &table->records[index];
    uint32_t *link = bucket_of(table, record->name);
    uint32_t place = table_after(table, record->name) - 1;

    assert(record->state != RECORD_FREE && table->order[place] == index);
    while (*link != index)
        link = &table->records[*link].next;
    *link = record->next;
    table->count--;
    memmove(&table->order[place], &table->order[place + 1],
            (table->count - place) * sizeof *table->order);
    record->state = RECORD_FREE;
    record->next = table->free;
    table->free = index;
}
