/* What the engine costs is known once it is open: then a plan is made, and memory taken. */
#include "daemon/fit.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/clock.h"
#include "daemon/layout.h"
#include "daemon/log.h"
#include "daemon/serve.h"

enum {
    THREAD_COUNT = 4,                /* beside the loop: journal, compute, keeper, search */
    LIBRARY_MARGIN_BYTES = 16 << 20, /* what libzmq, the C library and stacks grow by */
    /* What a GPU's driver takes here beside the engine: for kernels (180 MB on an H200), and
     * recorded passes (at most 64, of 1.7 MB). */
    GPU_DRIVER_BYTES = 320 << 20,
    /* By which what is left beside weights may be more than they are less: a device gives memory
     * in units. */
    PIECES_BYTES = 64 << 20,
    WARM_SAID_US = 1000000, /* a start that takes as long is told why */
};

/* The default one does not serve: that is said once, however often the engine is opened. */
static const char *without_adapter(struct config *config, const char *why)
{
    say(SAY_WARN, "%s", why);
    config->adapter[0] = '\0';
    return NULL;
}

static int open_engine(struct core *core, enum device_weights weights, char *error,
                       size_t error_bytes)
{
    struct config *config = &core->config;
    struct engine_options options = {.model_path = config->model,
                                     .adapter_path = config->adapter[0] ? config->adapter : NULL,
                                     .device = config->device,
                                     .threads = config->threads,
                                     .feature_mask = config->feature_mask,
                                     .pin_tokens_max = config->pin_tokens_max,
                                     .device_bytes = config->device_bytes,
                                     .device_weights = weights};
    int result;

    if (access(config->model, R_OK) != 0) {
        snprintf(error, error_bytes,
                 "the model %s cannot be read (%s): `make model` fetches the default one, --model "
                 "names another",
                 config->model, strerror(errno));
        return -ENOENT;
    }
    if (options.adapter_path && access(options.adapter_path, R_OK) != 0) {
        snprintf(error, error_bytes,
                 "the adapter %s cannot be read (%s): --adapter names another, --adapter none runs "
                 "without compression",
                 options.adapter_path, strerror(errno));
        if (config->adapter_given)
            return -ENOENT;
        options.adapter_path = without_adapter(config, error);
    }
    result = engine_open(&core->engine, &options, error, error_bytes);
    if (result == -ESTALE && !config->adapter_given) {
        options.adapter_path = without_adapter(config, error);
        result = engine_open(&core->engine, &options, error, error_bytes);
    }
    if (result)
        return result;
    engine_info(core->engine, &core->info);
    if (core->info.layer_count * core->info.kv_head_count > HEADS_MAX) {
        snprintf(error, error_bytes, "the model has more than %d KV heads", HEADS_MAX);
        return -ENOTSUP;
    }
    return 0;
}

int fit_engine(struct core *core, char *error, size_t error_bytes)
{
    return open_engine(core, core->config.device_weights, error, error_bytes);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Streams left open are at most the default: the plan only lowers them. */
static void measure_cold(struct core *core, struct plan_costs *costs)
{
    uint32_t streams = core->config.streams_max ? core->config.streams_max : PLAN_STREAMS_DEFAULT;
    struct spill_options options = cold_options(core, streams);

    costs->spill_bytes = core->info.adapter_fingerprint && options.dtype != SEGMENT_NONE
                             ? spill_bytes(core->engine, &options)
                             : 0;
    costs->table_bytes =
        core->config.find == SEARCH_BY_WORDS ? 0 : recall_table_bytes(core->engine);
    costs->repair_bytes = costs->spill_bytes
                              ? repair_bytes(costs->open_bytes + 64,
                                             ingest_scratch_tokens(core->config.lag_tokens_max))
                              : 0;
    costs->search_bytes = search_bytes(streams, ingest_scratch_tokens(core->config.lag_tokens_max));
}

static int measure(struct core *core, struct plan_costs *costs, char *error, size_t error_bytes)
{
    struct stream_options options = {0};
    uint64_t engine_bytes = core->info.weights_bytes + core->info.work_bytes;
    uint64_t anonymous, files;

    plan_resident_parts(&anonymous, &files);
    *costs = (struct plan_costs){
        .weights_bytes = core->info.weights_bytes,
        .work_bytes = core->info.work_bytes,
        .heads = (uint64_t)core->info.layer_count * core->info.kv_head_count,
        .vocab_count = core->info.vocab_count,
        .device_weights_bytes = core->info.device_weights_bytes,
        .device_scratch_bytes = core->info.device_scratch_bytes,
        .device_work_bytes = core->info.device_work_bytes,
        .device_memory_bytes = core->info.device_weights_bytes + core->info.device_work_bytes +
                               core->info.device_arena_bytes,
        .device_stream_bytes = stream_device_bytes(core->engine, &options),
    };
    costs->stream_bytes = stream_bytes(core->engine, &options, error, error_bytes);
    if (!costs->stream_bytes)
        return -EINVAL;
    for (uint32_t i = 0; i < core->info.ratio_count; i++) {
        uint64_t bytes;

        options.dmc_ratio = core->info.ratio[i];
        bytes = fork_bytes(core->engine, &options);
        costs->fork_bytes = larger(costs->fork_bytes, bytes);
        bytes = stream_bytes(core->engine, &options, error, error_bytes);
        costs->open_bytes = larger(costs->open_bytes, bytes);
        costs->state_bytes = larger(costs->state_bytes, stream_state_bytes(core->engine, &options));
        costs->device_fork_bytes =
            larger(costs->device_fork_bytes, fork_device_bytes(core->engine, &options));
        costs->device_repair_bytes =
            larger(costs->device_repair_bytes, stream_device_bytes(core->engine, &options));
    }
    measure_cold(core, costs);
    costs->meter_bytes = meter_bytes(core->engine);
    costs->device_meter_bytes = meter_device_bytes(core->engine);
    costs->library_bytes = LIBRARY_MARGIN_BYTES + THREAD_COUNT * THREAD_STACK_BYTES + files;
    if (anonymous > engine_bytes)
        costs->library_bytes += anonymous - engine_bytes;
    if (core->info.device_weights_bytes)
        costs->library_bytes += GPU_DRIVER_BYTES;
    return 0;
}

static int make_plan(struct core *core, struct plan_costs *costs, char *error, size_t error_bytes)
{
    int result = measure(core, costs, error, error_bytes);

    return result ? result : plan_make(&core->plan, &core->config, costs, error, error_bytes);
}

/* bf16 weights beside which the plan does not fit, and nobody has asked for them. */
static bool weights_too_large(const struct core *core)
{
    return core->config.device_weights == WEIGHTS_AUTO && core->info.device_kept_bytes &&
           core->plan.device_bytes > core->plan.device_memory_bytes;
}

/* How weights lie on the GPU is settled when the engine is opened: it is opened again, but where
 * the plan does not fit beside those either. */
static int keep_weights(struct core *core, struct plan_costs *costs, char *error,
                        size_t error_bytes)
{
    uint64_t others = core->plan.device_bytes - core->info.device_weights_bytes;
    char why[ERROR_BYTES_MAX];
    int result;

    if (others + core->info.device_kept_bytes > core->plan.device_memory_bytes + PIECES_BYTES) {
        costs->device_weights_bytes = core->info.device_kept_bytes;
        result = plan_make(&core->plan, &core->config, costs, why, sizeof why);
    } else {
        say(SAY_INFO, "the plan does not fit beside bf16 weights: the model is opened again");
        engine_close(&core->engine);
        result = open_engine(core, WEIGHTS_FILE, why, sizeof why);
        if (!result)
            result = make_plan(core, costs, why, sizeof why);
    }
    if (result)
        snprintf(error, error_bytes, "%s%s",
                 result == -ENOSPC || result == -ENOMEM
                     ? "the GPU has no room, with weights neither as bf16 nor kept quantised: "
                     : "",
                 why);
    return result;
}

static void say_weights(const struct core *core)
{
    bool asked = core->config.device_weights == WEIGHTS_FILE;

    if (core->info.device_scratch_bytes)
        say(asked ? SAY_INFO : SAY_WARN,
            "the GPU KEEPS WEIGHTS QUANTISED%s: text is read more slowly, a matrix being made bf16 "
            "before its products",
            asked ? "" : ", as bf16 ones and the plan do not fit its memory");
    else if (asked && core->info.device_weights_bytes)
        say(SAY_WARN, "--device-weights file: none of this model's are quantised, all are bf16");
}

int fit_plan(struct core *core, char *error, size_t error_bytes)
{
    struct plan_costs costs;
    int result = make_plan(core, &costs, error, error_bytes);
    uint64_t start;

    if (result == -ENOSPC && weights_too_large(core))
        result = keep_weights(core, &costs, error, error_bytes);
    if (result)
        return result;
    say_weights(core);
    plan_print(&core->plan);
    if (core->plan.device_bytes)
        result = engine_device_take(core->engine,
                                    core->plan.device_bytes - core->info.device_weights_bytes -
                                        core->info.device_work_bytes,
                                    error, error_bytes);
    start = clock_us();
    if (!result)
        result = engine_warm(core->engine, error, error_bytes);
    if (result)
        return result;
    if (clock_us() - start > WARM_SAID_US)
        say(SAY_INFO, "the GPU took %.1f s to get ready", 1e-6 * (double)(clock_us() - start));
    result = arena_open(&core->arena, core->plan.arena_bytes);
    if (result) {
        snprintf(error, error_bytes, "the plan's memory cannot be had: %s; lower --memory",
                 strerror(-result));
        return result;
    }
    layout_carve(core, (uint32_t)costs.heads);
    arena_seal(&core->arena);
    return 0;
}
