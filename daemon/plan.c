/* A line of the plan names the limit that lowers it: that is what a refusal tells the user. */
#include "daemon/plan.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/journal.h"
#include "daemon/layout.h"
#include "daemon/search.h"

enum { FORKS_DEFAULT = 4, EXTENT_ALIGN = 64, COLD_ALIGN = 4096 /* the arena may skip as much */ };

static void add(struct plan *plan, const char *name, const char *option, uint64_t count,
                uint64_t each_bytes, bool in_arena)
{
    struct plan_line *line = &plan->line[plan->line_count++];

    assert(plan->line_count <= PLAN_LINES_MAX);
    *line =
        (struct plan_line){name, option, count, each_bytes, count * each_bytes, in_arena, false};
    plan->bytes += line->bytes;
    if (in_arena)
        plan->arena_bytes += line->bytes;
}

static void add_device(struct plan *plan, const char *name, const char *option, uint64_t count,
                       uint64_t each_bytes)
{
    struct plan_line *line = &plan->line[plan->line_count++];

    assert(plan->line_count <= PLAN_LINES_MAX);
    *line = (struct plan_line){name, option, count, each_bytes, count * each_bytes, false, true};
    plan->device_bytes += line->bytes;
}

static uint64_t align_up(uint64_t bytes)
{
    return (bytes + EXTENT_ALIGN - 1) / EXTENT_ALIGN * EXTENT_ALIGN;
}

/* A GPU's memory has a sum of its own. */
static void add_device_lines(struct plan *plan, const struct plan_costs *costs, uint32_t streams,
                             uint32_t forks)
{
    plan->device_bytes = plan->device_pool_bytes = 0;
    if (!plan->device_memory_bytes)
        return;
    plan->device_pool_bytes = streams * costs->device_stream_bytes;
    if (costs->device_scratch_bytes) {
        add_device(plan, "GPU: weights, quantised", NULL, 1,
                   costs->device_weights_bytes - costs->device_scratch_bytes);
        add_device(plan, "GPU: one matrix made bf16", NULL, 1, costs->device_scratch_bytes);
    } else {
        add_device(plan, "GPU: weights", NULL, 1, costs->device_weights_bytes);
    }
    add_device(plan, "GPU: activations", NULL, 1, costs->device_work_bytes);
    add_device(plan, "GPU: streams", "streams-max", streams, costs->device_stream_bytes);
    add_device(plan, "GPU: forks (questions)", "forks-max", forks, costs->device_fork_bytes);
    add_device(plan, "GPU: segments made again", NULL, 1, costs->device_repair_bytes);
    if (plan->meter_bytes)
        add_device(plan, "GPU: loss meter", "loss-meter", 1, costs->device_meter_bytes);
}

static bool too_large(const struct plan *plan)
{
    return plan->bytes > plan->memory_bytes || plan->device_bytes > plan->device_memory_bytes;
}

static void add_lines(struct plan *plan, const struct config *config,
                      const struct plan_costs *costs, uint32_t streams, uint32_t forks)
{
    uint64_t stream = align_up(costs->stream_bytes);
    uint64_t fork = align_up(costs->fork_bytes);

    plan->line_count = 0;
    plan->bytes = plan->arena_bytes = 0;
    plan->streams_max = streams;
    plan->forks_max = forks;
    plan->pool_bytes = streams * stream;
    plan->fork_bytes = fork;
    add(plan, "model and adapter weights", NULL, 1, costs->weights_bytes, false);
    add(plan, "activations and scratch", NULL, 1, costs->work_bytes, false);
    add(plan, "streams", "streams-max", streams, stream, true);
    add(plan, "forks (questions)", "forks-max", forks, fork, true);
    plan->state_bytes = align_up(costs->state_bytes);
    add(plan, "checkpoints on their way", NULL, 2, plan->state_bytes, true);
    plan->table_bytes = align_up(costs->table_bytes);
    if (plan->table_bytes)
        add(plan, "recall tables (questions)", "forks-max", forks, plan->table_bytes, true);
    plan->spill_bytes = align_up(costs->spill_bytes);
    add(plan, "cold segments on their way", NULL, 1, plan->spill_bytes + COLD_ALIGN, true);
    plan->repair_bytes = align_up(costs->repair_bytes);
    add(plan, "cold segments made again", NULL, 1, plan->repair_bytes, true);
    plan->search_bytes = align_up(costs->search_bytes);
    add(plan, "text index", NULL, 1, plan->search_bytes, true);
    if (plan->meter_bytes)
        add(plan, "loss meter", "loss-meter", 1, plan->meter_bytes, true);
    add(plan, "token queues", "lag-tokens-max", streams, layout_ring_bytes(config->lag_tokens_max),
        true);
    add(plan, "stream and question records", "streams-max", 1,
        layout_record_bytes(streams, forks, (uint32_t)costs->heads), true);
    add(plan, "queues between threads", NULL, 1, layout_queue_bytes(), true);
    add(plan, "work of the threads", "lag-tokens-max", 1,
        layout_work_bytes(config->lag_tokens_max, (uint32_t)costs->vocab_count), true);
    add(plan, "messages on the wire", "clients-max", config->clients_max,
        layout_client_bytes(config->listen_network[0] != 0), false);
    add(plan, "journal cache", NULL, 1, JOURNAL_HEAP_BYTES, false);
    add(plan, "text index cache", NULL, 1, SEARCH_HEAP_BYTES, false);
    add(plan, "libraries and program", NULL, 1, costs->library_bytes, false);
    add_device_lines(plan, costs, streams, forks);
}

/* Lowers what the user left open until the sum fits. */
static void fit(struct plan *plan, const struct config *config, const struct plan_costs *costs)
{
    uint32_t streams = config->streams_max ? config->streams_max : PLAN_STREAMS_DEFAULT;
    uint32_t forks = config->forks_max ? config->forks_max : FORKS_DEFAULT;

    plan->meter_bytes = config->loss_meter == METER_NO ? 0 : align_up(costs->meter_bytes);
    add_lines(plan, config, costs, streams, forks);
    if (too_large(plan) && config->loss_meter == METER_AUTO) {
        plan->meter_bytes = 0;
        add_lines(plan, config, costs, streams, forks);
    }
    while (too_large(plan)) {
        if (!config->streams_max && streams > 1 && (streams > forks || config->forks_max))
            streams--;
        else if (!config->forks_max && forks > 1)
            forks--;
        else if (!config->streams_max && streams > 1)
            streams--;
        else
            break;
        add_lines(plan, config, costs, streams, forks);
    }
}

/* "12.3 MB", as silt has them. */
static void size_text(uint64_t bytes, char *out, size_t out_bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 999.95 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(out, out_bytes, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

/* The largest line that an option lowers, on the device or not. */
static const struct plan_line *largest_line(const struct plan *plan, bool on_device)
{
    const struct plan_line *largest = NULL;

    for (uint32_t i = 0; i < plan->line_count; i++) {
        const struct plan_line *line = &plan->line[i];

        if (line->on_device == on_device && line->option &&
            (!largest || line->bytes > largest->bytes))
            largest = line;
    }
    return largest;
}

static int refuse_device(const struct plan *plan, char *error, size_t error_bytes)
{
    const struct plan_line *largest = largest_line(plan, true);
    char need[32], have[32], part[32];

    size_text(plan->device_bytes, need, sizeof need);
    size_text(plan->device_memory_bytes, have, sizeof have);
    size_text(largest->bytes, part, sizeof part);
    snprintf(error, error_bytes,
             "the plan needs %s (%llu bytes) of the GPU's memory and there are %s (%llu): lower "
             "--%s, whose %s take %s, or raise --device-memory where it is given",
             need, (unsigned long long)plan->device_bytes, have,
             (unsigned long long)plan->device_memory_bytes, largest->option,
             largest->name + sizeof "GPU: " - 1, part);
    return -ENOSPC;
}

static int refuse(const struct plan *plan, char *error, size_t error_bytes)
{
    const struct plan_line *largest = largest_line(plan, false);
    char need[32], have[32], part[32];

    size_text(plan->bytes, need, sizeof need);
    size_text(plan->memory_bytes, have, sizeof have);
    if (largest) {
        size_text(largest->bytes, part, sizeof part);
        snprintf(error, error_bytes,
                 "the plan needs %s (%llu bytes) and --memory allows %s (%llu): lower --%s, whose "
                 "%s take %s, or raise --memory",
                 need, (unsigned long long)plan->bytes, have,
                 (unsigned long long)plan->memory_bytes, largest->option, largest->name, part);
    } else {
        snprintf(error, error_bytes,
                 "the plan needs %s (%llu bytes) at the least and --memory allows %s (%llu): raise "
                 "--memory or use a smaller --model",
                 need, (unsigned long long)plan->bytes, have,
                 (unsigned long long)plan->memory_bytes);
    }
    return -ENOSPC;
}

static uint64_t read_number(const char *path)
{
    FILE *file = fopen(path, "re");
    unsigned long long n = 0;

    if (!file)
        return 0;
    if (fscanf(file, "%llu", &n) != 1)
        n = 0; /* "max" */
    fclose(file);
    return n;
}

/* The smallest limit on the way from this process's cgroup (v2) up to the root; 0: none. */
static uint64_t cgroup_limit(void)
{
    char line[PATH_BYTES_MAX / 2], path[PATH_BYTES_MAX];
    uint64_t least = 0;
    FILE *file = fopen("/proc/self/cgroup", "re");
    char *group = NULL;

    if (!file)
        return 0;
    while (!group && fgets(line, sizeof line, file))
        if (strncmp(line, "0::/", 4) == 0)
            group = line + 3;
    fclose(file);
    if (!group)
        return read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    group[strcspn(group, "\n")] = '\0';
    for (;;) {
        uint64_t n;
        char *cut;

        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
        n = read_number(path);
        if (n && (!least || n < least))
            least = n;
        cut = strrchr(group, '/');
        if (!cut || !group[0])
            return least;
        *cut = '\0';
    }
}

/* Half of RAM, or of the cgroup's limit where that is less. */
static uint64_t memory_default(void)
{
    uint64_t ram = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t group = cgroup_limit();

    return (group && group < ram ? group : ram) / 2;
}

int plan_make(struct plan *plan, const struct config *config, const struct plan_costs *costs,
              char *error, size_t error_bytes)
{
    memset(plan, 0, sizeof *plan);
    plan->memory_bytes = config->memory_bytes ? config->memory_bytes : memory_default();
    plan->device_memory_bytes = costs->device_memory_bytes;
    fit(plan, config, costs);
    if (plan->device_bytes > plan->device_memory_bytes)
        return refuse_device(plan, error, error_bytes);
    if (plan->bytes > plan->memory_bytes)
        return refuse(plan, error, error_bytes);
    return 0;
}

void plan_print(const struct plan *plan)
{
    char each[32], sum[32];

    fprintf(stderr, "memory plan\n");
    for (uint32_t i = 0; i < plan->line_count; i++) {
        const struct plan_line *line = &plan->line[i];

        size_text(line->each_bytes, each, sizeof each);
        size_text(line->bytes, sum, sizeof sum);
        if (line->count > 1)
            fprintf(stderr, "  %-28s %6llu x %10s %14s\n", line->name,
                    (unsigned long long)line->count, each, sum);
        else
            fprintf(stderr, "  %-28s %19s %14s\n", line->name, "", sum);
    }
    size_text(plan->bytes, sum, sizeof sum);
    size_text(plan->memory_bytes, each, sizeof each);
    fprintf(stderr, "  %-28s %19s %14s  of %s\n", "sum", "", sum, each);
    if (!plan->device_memory_bytes)
        return;
    size_text(plan->device_bytes, sum, sizeof sum);
    size_text(plan->device_memory_bytes, each, sizeof each);
    fprintf(stderr, "  %-28s %19s %14s  of %s\n", "sum of the GPU", "", sum, each);
}

uint64_t plan_resident_bytes(void)
{
    unsigned long long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (!file)
        return 0;
    if (fscanf(file, "%llu %llu", &pages, &resident) != 2)
        resident = 0;
    fclose(file);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

void plan_resident_parts(uint64_t *anonymous, uint64_t *files)
{
    FILE *file = fopen("/proc/self/status", "re");
    unsigned long long kib;
    char line[128];

    *anonymous = *files = 0;
    if (!file)
        return;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "RssAnon: %llu", &kib) == 1)
            *anonymous = kib << 10;
        if (sscanf(line, "RssFile: %llu", &kib) == 1)
            *files = kib << 10;
    }
    fclose(file);
}
