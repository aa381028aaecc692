/*
 * plan: every byte siltd may hold, as a sum of named limits, known before anything is allocated.
 *
 * plan_make adds the lines up, fills in what the user left open and refuses a sum over --memory.
 * The arena is then taken once, carved at start and sealed; streams of different sizes share one
 * pool of it.
 */
#ifndef SILT_DAEMON_PLAN_H
#define SILT_DAEMON_PLAN_H

#include "daemon/config.h"

enum { PLAN_LINES_MAX = 28, PLAN_STREAMS_DEFAULT = 16 };

/* What the engine and the process cost, measured or asked. */
struct plan_costs {
    uint64_t weights_bytes, work_bytes;
    uint64_t stream_bytes; /* default options */
    uint64_t fork_bytes;   /* the largest over the ratios */
    uint64_t open_bytes;   /* so are this, of a stream, */
    uint64_t state_bytes;  /* and this, of a checkpoint */
    uint64_t spill_bytes;  /* cold segments on their way */
    uint64_t search_bytes; /* text index, without SQLite's part */
    uint64_t meter_bytes;  /* loss meter; 0: it has nothing to measure */
    uint64_t table_bytes;  /* what a question asks for by meaning; 0: no recall keys */
    uint64_t repair_bytes; /* cold segments being computed again */
    /* Of a GPU's memory: what the engine took there, then what lies in its arena. */
    uint64_t device_memory_bytes, device_weights_bytes, device_work_bytes;
    uint64_t device_scratch_bytes; /* of the weights, where quantised ones are made bf16 */
    uint64_t device_stream_bytes, device_fork_bytes; /* as the first two above */
    uint64_t device_meter_bytes, device_repair_bytes;
    uint64_t heads; /* layers * kv_heads */
    uint64_t vocab_count;
    uint64_t library_bytes; /* resident at start without the engine, with a margin */
};
struct plan_line {
    const char *name;
    const char *option; /* that lowers it; NULL: none */
    uint64_t count, each_bytes, bytes;
    bool in_arena, on_device;
};
struct plan {
    struct plan_line line[PLAN_LINES_MAX];
    uint32_t line_count;
    uint64_t bytes, memory_bytes, arena_bytes;
    uint32_t streams_max, forks_max;
    uint64_t pool_bytes, fork_bytes, state_bytes, spill_bytes, search_bytes, table_bytes;
    uint64_t repair_bytes;
    uint64_t meter_bytes; /* 0: no loss meter */
    /* On a GPU: the sum of the lines there, what there is, and the arena's part for streams. */
    uint64_t device_bytes, device_memory_bytes, device_pool_bytes;
};
/* 0, or -ENOSPC with the limit to lower. config's open limits are filled in the plan. */
int plan_make(struct plan *plan, const struct config *config, const struct plan_costs *costs,
              char *error, size_t error_bytes);
void plan_print(const struct plan *plan);
uint64_t plan_resident_bytes(void); /* RSS of this process */
/* Its parts: memory of ours, pages of files. */
void plan_resident_parts(uint64_t *anonymous, uint64_t *files);

struct arena {
    uint8_t *base;
    size_t bytes, used;
    bool sealed;
};
int arena_open(struct arena *arena, size_t bytes);
/* Zeroed memory for ever; the plan has counted it, so it is always there. */
void *arena_take(struct arena *arena, size_t count, size_t each_bytes, size_t align);
/* Makes what was taken from `from` on resident now, so that memory in use is what it will be: side
 * buffers that fill up only hours later would look like a leak, and could fail then. */
void arena_settle(struct arena *arena, const void *from);
void arena_seal(struct arena *arena);
void arena_close(struct arena *arena);

/* Blocks of any size out of one piece: first fit between neighbours kept in order. */
struct extent {
    size_t from, bytes;
};
struct extents {
    uint8_t *base;
    size_t bytes, used;
    struct extent *list; /* [list_max], by from */
    uint32_t count, list_max;
};
void *extents_take(struct extents *extents, size_t bytes); /* 64-aligned; NULL: no room */
void extents_give(struct extents *extents, void *memory);
/* The most that extents_take gives now. */
size_t extents_room(const struct extents *extents);

#endif
