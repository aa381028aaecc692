/* The memory plan, the options it comes from, and the pieces it is handed out in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/layout.h"
#include "tests/unit/rig.h"

static char error[ERROR_BYTES_MAX];

static struct plan_costs costs = {.weights_bytes = 130u << 20,
                                  .work_bytes = 8u << 20,
                                  .stream_bytes = 16u << 20,
                                  .fork_bytes = 50u << 20,
                                  .open_bytes = 22u << 20,
                                  .state_bytes = 22u << 20,
                                  .heads = 90,
                                  .vocab_count = 49152,
                                  .library_bytes = 30u << 20};

static int read_line(struct config *config, const char *first, const char *second)
{
    char *argv[] = {(char *)(uintptr_t) "siltd", (char *)(uintptr_t)first,
                    (char *)(uintptr_t)second, NULL};
    enum config_answer answer;

    return config_read(config, second ? 3 : 2, argv, &answer, error, sizeof error);
}

static void the_sum_is_what_is_planned(void **state)
{
    struct config config;
    struct plan plan;
    uint64_t sum = 0, arena = 0;

    (void)state;
    config_defaults(&config);
    config.memory_bytes = 4ull << 30;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), 0);
    assert_int_equal(plan.streams_max, 16);
    assert_int_equal(plan.forks_max, 4);
    for (uint32_t i = 0; i < plan.line_count; i++) {
        assert_int_equal(plan.line[i].bytes, plan.line[i].count * plan.line[i].each_bytes);
        sum += plan.line[i].bytes;
        arena += plan.line[i].in_arena ? plan.line[i].bytes : 0;
    }
    assert_int_equal(sum, plan.bytes);
    assert_int_equal(arena, plan.arena_bytes);
    /* One byte less than the sum is too little, to the byte. */
    config.streams_max = 16;
    config.forks_max = 4;
    config.memory_bytes = plan.bytes;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), 0);
    config.memory_bytes = plan.bytes - 1;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), -ENOSPC);
    assert_non_null(strstr(error, "--streams-max"));
    assert_non_null(strstr(error, "--memory"));
}

/* A GPU's bytes have lines and a sum of their own, and what does not fit there is refused too. */
static void a_device_has_a_sum_of_its_own(void **state)
{
    struct plan_costs gpu = costs;
    struct config config;
    struct plan plan;
    uint64_t sum = 0;

    (void)state;
    gpu.device_weights_bytes = 400u << 20;
    gpu.device_work_bytes = 900u << 20;
    gpu.device_stream_bytes = 14u << 20;
    gpu.device_fork_bytes = 80u << 20;
    gpu.device_repair_bytes = 20u << 20;
    gpu.device_memory_bytes = 4ull << 30;
    config_defaults(&config);
    config.memory_bytes = 8ull << 30;
    config.streams_max = 16;
    config.forks_max = 4;
    assert_int_equal(plan_make(&plan, &config, &gpu, error, sizeof error), 0);
    for (uint32_t i = 0; i < plan.line_count; i++)
        sum += plan.line[i].on_device ? plan.line[i].bytes : 0;
    assert_int_equal(sum, plan.device_bytes);
    assert_int_equal(plan.device_pool_bytes, 16 * gpu.device_stream_bytes);
    gpu.device_memory_bytes = sum;
    assert_int_equal(plan_make(&plan, &config, &gpu, error, sizeof error), 0);
    gpu.device_memory_bytes = sum - 1;
    assert_int_equal(plan_make(&plan, &config, &gpu, error, sizeof error), -ENOSPC);
    assert_non_null(strstr(error, "GPU's memory"));
    assert_non_null(strstr(error, "--forks-max"));
    config.streams_max = 0; /* left open: as many as fit */
    assert_int_equal(plan_make(&plan, &config, &gpu, error, sizeof error), 0);
    assert_int_equal(plan.streams_max, 15);
}

static void kept_weights_have_lines_of_their_own(void **state)
{
    struct plan_costs gpu = costs;
    struct config config;
    struct plan plan[2];

    (void)state;
    gpu.device_weights_bytes = 300u << 20;
    gpu.device_stream_bytes = 14u << 20;
    gpu.device_fork_bytes = 80u << 20;
    gpu.device_memory_bytes = 4ull << 30;
    config_defaults(&config);
    config.memory_bytes = 8ull << 30;
    assert_int_equal(config.device_weights, WEIGHTS_AUTO);
    for (int kept = 0; kept < 2; kept++) {
        gpu.device_scratch_bytes = kept ? 56u << 20 : 0;
        assert_int_equal(plan_make(&plan[kept], &config, &gpu, error, sizeof error), 0);
    }
    assert_int_equal(plan[0].device_bytes, plan[1].device_bytes);
    assert_int_equal(plan[0].line_count + 1, plan[1].line_count);
    for (uint32_t i = 0; i < plan[1].line_count; i++) {
        const struct plan_line *line = &plan[1].line[i];

        if (strcmp(line->name, "GPU: weights, quantised") == 0)
            assert_int_equal(line->bytes, 244u << 20);
        if (strcmp(line->name, "GPU: one matrix made bf16") == 0)
            assert_int_equal(line->bytes, 56u << 20);
        assert_string_not_equal(line->name, "GPU: weights");
    }
    assert_int_equal(read_line(&config, "--device-weights", "file"), 0);
    assert_int_equal(config.device_weights, WEIGHTS_FILE);
    assert_int_equal(read_line(&config, "--device-weights", "bf16"), 0);
    assert_int_equal(config.device_weights, WEIGHTS_BF16);
    assert_int_equal(read_line(&config, "--device-weights", "int4"), -EINVAL);
    assert_non_null(strstr(error, "neither bf16 nor file"));
}

/* To the byte: what the plan needs is enough, one less is refused, with the limit to lower. */
static void one_byte_decides(void **state)
{
    struct config config;
    struct plan plan;

    (void)state;
    config_defaults(&config);
    config.streams_max = 8;
    config.forks_max = 2;
    config.memory_bytes = 8ull << 30;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), 0);
    config.memory_bytes = plan.bytes;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), 0);
    config.memory_bytes--;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), -ENOSPC);
    assert_non_null(strstr(error, "lower --"));
}

static void what_is_left_open_is_fitted(void **state)
{
    struct config config;
    struct plan plan;

    (void)state;
    config_defaults(&config);
    config.memory_bytes = 800u << 20;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), 0);
    assert_true(plan.bytes <= config.memory_bytes);
    assert_true(plan.streams_max >= 1 && plan.streams_max < 16);
    config.streams_max = 16;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), 0);
    assert_int_equal(plan.streams_max, 16);
    assert_true(plan.forks_max < 4);
    config.memory_bytes = 200u << 20;
    assert_int_equal(plan_make(&plan, &config, &costs, error, sizeof error), -ENOSPC);
}

/* What is carved is what was planned: arena_take asserts that it fits. */
static void the_layout_fits_the_plan(void **state)
{
    static struct core core;
    struct engine_info info;

    (void)state;
    engine_info(rig_engine(), &info);
    for (uint32_t streams = 1; streams < 40; streams += 13) {
        memset(&core, 0, sizeof core);
        config_defaults(&core.config);
        core.info = info;
        core.config.memory_bytes = 8ull << 30;
        core.config.streams_max = streams;
        core.config.forks_max = 1 + streams % 5;
        core.config.lag_tokens_max = LAG_TOKENS_MIN + streams;
        costs.vocab_count = info.vocab_count;
        costs.heads = (uint64_t)info.layer_count * info.kv_head_count;
        assert_int_equal(plan_make(&core.plan, &core.config, &costs, error, sizeof error), 0);
        assert_int_equal(arena_open(&core.arena, core.plan.arena_bytes), 0);
        layout_carve(&core, (uint32_t)costs.heads);
        assert_true(core.arena.used <= core.arena.bytes);
        assert_true(core.arena.bytes - core.arena.used < 64 << 10);
        arena_seal(&core.arena);
        arena_close(&core.arena);
    }
}

static void sizes(void **state)
{
    uint64_t n;

    (void)state;
    assert_int_equal(config_size("4096", &n), 0);
    assert_int_equal(n, 4096);
    assert_int_equal(config_size("512M", &n), 0);
    assert_int_equal(n, 512u << 20);
    assert_int_equal(config_size("1.5GiB", &n), 0);
    assert_int_equal(n, 3ull << 29);
    assert_int_equal(config_size("2g", &n), 0);
    assert_int_equal(n, 2ull << 30);
    assert_int_equal(config_size("2GB", &n), 0); /* as the plan is printed */
    assert_int_equal(n, 2000000000);
    assert_int_equal(config_size("1.5kB", &n), 0);
    assert_int_equal(n, 1500);
    for (const char *const *bad = (const char *const[]){"", "M", "-1", "12X", "1e400", "3M3",
                                                        "3MBB", "3B", " 4", "nan", NULL};
         *bad; bad++)
        assert_int_equal(config_size(*bad, &n), -EINVAL);
}

static void options(void **state)
{
    struct config config;
    char path[96], folder[64], argument[128], more[128];
    FILE *file;

    (void)state;
    config_defaults(&config);
    assert_int_equal(read_line(&config, "--streams-max", "3"), 0);
    assert_int_equal(config.streams_max, 3);
    assert_int_equal(read_line(&config, "--streams-max=0", NULL), -EINVAL);
    assert_non_null(strstr(error, "1 to"));
    assert_int_equal(read_line(&config, "--strams-max", "3"), -EINVAL);
    assert_non_null(strstr(error, "--help"));
    assert_int_equal(read_line(&config, "--memory", NULL), -EINVAL);
    assert_int_equal(read_line(&config, "--when-full", "panic"), -EINVAL);
    assert_int_equal(read_line(&config, "--device=cuda", NULL), 0);
    assert_int_equal(config.device, DEVICE_CUDA);
    assert_int_equal(read_line(&config, "--adapter=none", NULL), 0);
    assert_string_equal(config.adapter, "");
    assert_int_equal(read_line(&config, "--rebuild=false", NULL), -EINVAL); /* no `yes` */
    assert_non_null(strstr(error, "neither yes nor no"));
    assert_int_equal(read_line(&config, "--rebuild=no", NULL), 0);
    assert_false(config.rebuild);
    assert_int_equal(read_line(&config, "--rebuild", NULL), 0);
    assert_true(config.rebuild);
    rig_folder(folder, sizeof folder);
    snprintf(path, sizeof path, "%s/conf", folder);
    file = fopen(path, "we");
    fputs("# limits\nmemory = 2G\n\nforks-max=7 # few\ndata = /srv/silt\n", file);
    fclose(file);
    config_defaults(&config);
    snprintf(argument, sizeof argument, "--config=%s", path);
    assert_int_equal(read_line(&config, "--forks-max=2", argument), 0);
    assert_int_equal(config.memory_bytes, 2ull << 30);
    assert_int_equal(config.forks_max, 2);
    assert_string_equal(config.data, "/srv/silt");
    snprintf(more, sizeof more, "--config=%s2", path);
    file = fopen(more + strlen("--config="), "we");
    fputs("forks-max = 5\n", file);
    fclose(file);
    assert_int_equal(read_line(&config, argument, more), 0); /* both, the later one wins */
    assert_int_equal(config.forks_max, 5);
    file = fopen(path, "we");
    fputs("memory = 2G\nforks = 7\n", file);
    fclose(file);
    assert_int_equal(read_line(&config, argument, NULL), -EINVAL);
    assert_non_null(strstr(error, "line 2"));
    rig_folder_drop(folder);
}

static void extents_are_given_back(void **state)
{
    static _Alignas(64) uint8_t memory[64 * 32];
    struct extent list[8];
    struct extents extents = {.base = memory, .bytes = sizeof memory, .list = list, .list_max = 8};
    void *a, *b, *c;

    (void)state;
    a = extents_take(&extents, 64 * 10);
    b = extents_take(&extents, 64 * 10 - 1);
    c = extents_take(&extents, 64 * 12);
    assert_non_null(a);
    assert_non_null(b);
    assert_non_null(c);
    assert_int_equal(extents.used, sizeof memory);
    assert_null(extents_take(&extents, 1));
    extents_give(&extents, b);
    assert_null(extents_take(&extents, 64 * 11));
    assert_ptr_equal(extents_take(&extents, 64 * 10), b);
    extents_give(&extents, a);
    extents_give(&extents, b);
    assert_ptr_equal(extents_take(&extents, 64 * 20), a);
    extents_give(&extents, c);
    extents_give(&extents, a);
    assert_int_equal(extents.count, 0);
    for (int i = 0; i < 8; i++)
        assert_non_null(extents_take(&extents, 64));
    assert_null(extents_take(&extents, 64));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sum_is_what_is_planned),
        cmocka_unit_test(one_byte_decides),
        cmocka_unit_test(a_device_has_a_sum_of_its_own),
        cmocka_unit_test(kept_weights_have_lines_of_their_own),
        cmocka_unit_test(what_is_left_open_is_fitted),
        cmocka_unit_test(the_layout_fits_the_plan),
        cmocka_unit_test(sizes),
        cmocka_unit_test(options),
        cmocka_unit_test(extents_are_given_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
