/*
 * Every tensor type that a model file may come in: the same weights, so nearly the same loss.
 *
 * The tiny model is written once in F32 and again in each type from the same seed; what differs is
 * rounding alone. Tied and untied heads, with an adapter and without.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "stream/stream.h"
#include "tests/unit/tiny_model.h"

enum { TOKENS = 640 }; /* two chunks and a half: COMP and the first segment's use are in it */

static char folder[] = "/tmp/silt-test-types-XXXXXX";
static char model[64], adapter[64];

/* Mean loss of a fixed text under a model of these types; ratio 0: without the adapter. */
static double loss(const struct tiny_options *options, uint32_t ratio)
{
    struct engine_options engine_options = {.model_path = model,
                                            .adapter_path = ratio ? adapter : NULL,
                                            .threads = 1,
                                            .feature_mask = UINT32_MAX};
    struct stream_options stream_options = {.dmc_ratio = ratio};
    struct engine *engine = NULL;
    struct stream *stream = NULL;
    static int32_t tokens[TOKENS], targets[TOKENS];
    static float nll[TOKENS];
    char error[512] = "";
    double sum = 0.0;
    assert_int_equal(tiny_model_write(model, options), 0);
    assert_int_equal(tiny_adapter_write(adapter, model, options), 0);
    if (engine_open(&engine, &engine_options, error, sizeof error))
        fail_msg("%s", error);
    size_t bytes = stream_bytes(engine, &stream_options, error, sizeof error);
    if (!bytes)
        fail_msg("%s", error);
    bytes = (bytes + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, bytes);
    assert_non_null(memory);
    assert_int_equal(stream_open(&stream, engine, &stream_options, memory, bytes), 0);
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(3 + (i * i * 7 + i / 5) % 300);
    for (uint32_t i = 0; i < TOKENS; i++)
        targets[i] = i + 1 < TOKENS ? tokens[i + 1] : -1;
    assert_int_equal(stream_score(stream, tokens, targets, TOKENS, nll), 0);
    for (uint32_t i = 0; i < TOKENS; i++) {
        assert_true(isfinite(nll[i]));
        sum += (double)nll[i];
    }
    stream_close(&stream);
    free(memory);
    engine_close(&engine);
    return sum / (TOKENS - 1);
}

/* How far rounding of each type may move the loss of a model whose weights are noise. */
static const struct {
    const char *name;
    enum tensor_type type;
    double tolerance;
} types[] = {
    {"F16", TENSOR_F16, 0.01},  {"BF16", TENSOR_BF16, 0.02}, {"Q8_0", TENSOR_Q8_0, 0.03},
    {"Q4_1", TENSOR_Q4_1, 0.3}, {"Q4_0", TENSOR_Q4_0, 0.3},
};

static struct tiny_options of_type(enum tensor_type weights, enum tensor_type embeddings,
                                   bool untied)
{
    struct tiny_options options = TINY_DEFAULTS;
    options.weight_type = weights;
    options.embed_type = embeddings;
    options.lora_type = TENSOR_F32;
    options.untied = untied;
    return options;
}

static void expect_near(const char *name, double got, double wanted, double tolerance)
{
    print_message("%s: loss %.4f, F32 %.4f\n", name, got, wanted);
    if (!(fabs(got - wanted) <= tolerance))
        fail_msg("%s: %.4f is not within %.2f of %.4f", name, got, tolerance, wanted);
}

static void compare_all(uint32_t ratio, bool untied)
{
    struct tiny_options exact = of_type(TENSOR_F32, TENSOR_F32, untied);
    double wanted = loss(&exact, ratio);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct tiny_options options = of_type(types[i].type, types[i].type, untied);
        expect_near(types[i].name, loss(&options, ratio), wanted, types[i].tolerance);
    }
}

static void test_tied(void **state)
{
    (void)state;
    compare_all(0, false);
}

static void test_untied(void **state)
{
    (void)state;
    compare_all(0, true);
}

static void test_with_adapter(void **state)
{
    (void)state;
    compare_all(1, false);
}

/* An adapter in f16 does what it does in f32. */
static void test_lora_types(void **state)
{
    (void)state;
    struct tiny_options options = of_type(TENSOR_F32, TENSOR_F32, false);
    double wanted = loss(&options, 1);
    options.lora_type = TENSOR_F16;
    expect_near("LoRA in F16", loss(&options, 1), wanted, 0.02);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(model, sizeof model, "%s/tiny.gguf", folder);
    snprintf(adapter, sizeof adapter, "%s/adapter.gguf", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(model);
    unlink(adapter);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_untied),
        cmocka_unit_test(test_with_adapter),
        cmocka_unit_test(test_lora_types),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
