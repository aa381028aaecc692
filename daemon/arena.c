/* The one piece of memory siltd lives in. Nothing is taken once it is sealed. */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/plan.h"

enum { EXTENT_ALIGN = 64, PAGE = 4096 };

int arena_open(struct arena *arena, size_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    memset(arena, 0, sizeof *arena);
    if (base == MAP_FAILED)
        return -errno;
    arena->base = base;
    arena->bytes = bytes;
    return 0;
}

void *arena_take(struct arena *arena, size_t count, size_t each_bytes, size_t align)
{
    size_t from = (arena->used + align - 1) / align * align;

    assert(!arena->sealed);
    assert(count == 0 || each_bytes <= SIZE_MAX / count);
    if (from > arena->bytes || count * each_bytes > arena->bytes - from) {
        assert(!"the plan counts less than is taken");
        return NULL;
    }
    arena->used = from + count * each_bytes;
    return arena->base + from;
}

void arena_settle(struct arena *arena, const void *from)
{
    volatile uint8_t *base = arena->base;

    assert((const uint8_t *)from >= arena->base);
    for (size_t at = (size_t)((const uint8_t *)from - arena->base); at < arena->used; at += PAGE)
        base[at] = base[at];
}

void arena_seal(struct arena *arena)
{
    arena->sealed = true;
}

void arena_close(struct arena *arena)
{
    if (arena->base)
        munmap(arena->base, arena->bytes);
    memset(arena, 0, sizeof *arena);
}

void *extents_take(struct extents *extents, size_t bytes)
{
    size_t from = 0;
    uint32_t at;

    bytes = (bytes + EXTENT_ALIGN - 1) / EXTENT_ALIGN * EXTENT_ALIGN;
    if (extents->count == extents->list_max || !bytes)
        return NULL;
    for (at = 0; at < extents->count; at++) {
        if (extents->list[at].from - from >= bytes)
            break;
        from = extents->list[at].from + extents->list[at].bytes;
    }
    if (bytes > extents->bytes - from)
        return NULL;
    memmove(&extents->list[at + 1], &extents->list[at],
            (extents->count - at) * sizeof *extents->list);
    extents->list[at] = (struct extent){from, bytes};
    extents->count++;
    extents->used += bytes;
    return extents->base + from;
}

size_t extents_room(const struct extents *extents)
{
    size_t from = 0, most = 0;

    if (extents->count == extents->list_max)
        return 0;
    for (uint32_t at = 0; at <= extents->count; at++) {
        const struct extent *next = at < extents->count ? &extents->list[at] : NULL;
        size_t room = (next ? next->from : extents->bytes) - from;

        most = room > most ? room : most;
        if (next)
            from = next->from + next->bytes;
    }
    return most / EXTENT_ALIGN * EXTENT_ALIGN;
}

void extents_give(struct extents *extents, void *memory)
{
    size_t from = (size_t)((uint8_t *)memory - extents->base);

    for (uint32_t at = 0; at < extents->count; at++) {
        if (extents->list[at].from != from)
            continue;
        extents->used -= extents->list[at].bytes;
        extents->count--;
        memmove(&extents->list[at], &extents->list[at + 1],
                (extents->count - at) * sizeof *extents->list);
        return;
    }
    assert(!"not taken from here");
}
