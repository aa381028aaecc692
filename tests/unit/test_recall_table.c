/* What a question asks for by meaning: the engine's table against FORMAT.md's formula in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stream/internal.h"
#include "tests/unit/tiny_model.h"

static char model_path[80], adapter_path[80];

static struct engine *open_engine(uint32_t layer)
{
    struct tiny_options options = TINY_DEFAULTS;
    struct engine_options want = {.model_path = model_path,
                                  .adapter_path = adapter_path,
                                  .threads = 1,
                                  .feature_mask = UINT32_MAX};
    struct engine *engine;
    char error[300];

    options.weight_type = options.embed_type = TENSOR_F32;
    options.recall = true;
    options.recall_layer = layer;
    snprintf(model_path, sizeof model_path, "/tmp/silt-keys-%d.gguf", getpid());
    snprintf(adapter_path, sizeof adapter_path, "/tmp/silt-keys-%d.a.gguf", getpid());
    assert_int_equal(tiny_model_write(model_path, &options), 0);
    assert_int_equal(tiny_adapter_write(adapter_path, model_path, &options), 0);
    if (engine_open(&engine, &want, error, sizeof error))
        fail_msg("%s", error);
    unlink(model_path);
    unlink(adapter_path);
    return engine;
}

struct asked {
    struct engine *engine;
    struct stream *stream;
    struct fork *fork;
    void *memory[2];
    uint8_t *table;
    uint32_t vocab;
};

/* On a stream that has read `fed` tokens. */
static void open_asked(struct asked *a, uint32_t layer, uint32_t fed)
{
    struct stream_options options = {0};
    struct engine_info info;
    char error[200];
    size_t bytes;

    a->engine = open_engine(layer);
    engine_info(a->engine, &info);
    a->vocab = info.vocab_count;
    bytes = stream_bytes(a->engine, &options, error, sizeof error);
    a->memory[0] = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_int_equal(stream_open(&a->stream, a->engine, &options, a->memory[0], bytes), 0);
    for (uint32_t i = 0; i < fed; i++)
        assert_int_equal(stream_feed(a->stream, &(int32_t){(int32_t)(3 + i * 11 % 200)}, 1), 0);
    bytes = fork_bytes(a->engine, &options);
    a->memory[1] = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_int_equal(fork_open(&a->fork, a->stream, a->memory[1], bytes), 0);
    assert_int_equal(recall_table_bytes(a->engine), (size_t)a->vocab * RECALL_QUERY_TOKENS);
    a->table = malloc(recall_table_bytes(a->engine));
}

static void close_asked(struct asked *a)
{
    fork_close(&a->fork);
    stream_close(&a->stream);
    engine_close(&a->engine);
    free(a->memory[0]);
    free(a->memory[1]);
    free(a->table);
}

/* FORMAT.md's formula in double, for an adapter that takes hidden states before the first layer. */
static void reference(const struct asked *a, int32_t token, double *near)
{
    const char *names[] = {"recall.token",      "recall.token.bias", "recall.gain",
                           "recall.query",      "recall.query.bias", "recall.weight",
                           "recall.weight_deep"};
    static float part[7][2 * TINY_KEY * TINY_DIM + 2048];
    static double embedding[2048][TINY_DIM];
    double query[TINY_KEY], weight, length = 0;

    for (int i = 0; i < 7; i++) {
        const struct gguf_tensor *t = gguf_tensor(a->engine->adapter, names[i]);

        for (uint64_t r = 0; r < t->dim[1]; r++)
            tensor_row(part[i] + r * t->dim[0],
                       (const char *)t->data + r * tensor_row_bytes(t->type, (uint32_t)t->dim[0]),
                       t->type, (uint32_t)t->dim[0]);
    }
    for (uint32_t v = 0; v < a->vocab; v++) {
        const float *row = (const float *)a->engine->embedding->data + (size_t)v * TINY_DIM;
        double sum = 0;

        for (int j = 0; j < TINY_DIM; j++)
            sum += (double)row[j] * (double)row[j];
        for (int j = 0; j < TINY_DIM; j++)
            embedding[v][j] = (double)row[j] / sqrt(sum / TINY_DIM + 1e-5);
    }
    weight = (double)part[5][token];
    for (int j = 0; j < TINY_DIM; j++)
        weight += embedding[token][j] * (double)part[6][j];
    weight = log1p(exp(weight));
    for (int i = 0; i < TINY_KEY; i++) {
        query[i] = (double)part[4][i];
        for (int j = 0; j < TINY_DIM; j++)
            query[i] += embedding[token][j] * ((double)part[3][i * 2 * TINY_DIM + j] +
                                               (double)part[3][i * 2 * TINY_DIM + TINY_DIM + j]);
        length += query[i] * query[i];
    }
    for (uint32_t v = 0; v < a->vocab; v++) {
        double sum = 0, product = 0;

        for (int i = 0; i < TINY_KEY; i++) {
            double key = (double)part[1][i];

            for (int j = 0; j < TINY_DIM; j++)
                key += embedding[v][j] * (double)part[0][i * TINY_DIM + j];
            sum += key * key;
            product += key * query[i];
        }
        near[v] = fmax(0, weight * (double)part[2][v] * product / sqrt(sum * length));
    }
}

static void tables_are_what_format_says(void **state)
{
    enum { FROM = 3, QUESTION = 6 };
    int32_t tokens[FROM + QUESTION] = {1, 40, 41, 90, 7, 120, 33, 250, 90};
    static double near[QUESTION][2048];
    struct asked a;
    double top = 0, scale;

    (void)state;
    open_asked(&a, 0, 0);
    assert_int_equal(fork_recall_table(a.fork, tokens, FROM + QUESTION, FROM, a.table), 0);
    for (int i = 0; i < QUESTION; i++) {
        reference(&a, tokens[FROM + i], near[i]);
        for (uint32_t v = 0; v < a.vocab; v++)
            top = fmax(top, near[i][v]);
    }
    scale = 255 / top;
    for (uint32_t v = 0; v < a.vocab; v++)
        for (int i = 0; i < RECALL_QUERY_TOKENS; i++) {
            int got = a.table[(size_t)v * RECALL_QUERY_TOKENS + (size_t)i];
            double want = i < QUESTION ? near[i][v] * scale : 0;

            if (fabs(got - want) > 5) /* int8 keys and queries */
                fail_msg("token %u for the question's %d: %d, not %.1f", v, i, got, want);
        }
    close_asked(&a);
}

static void questions_are_read_alone(void **state)
{
    int32_t tokens[100], text[600];
    uint8_t *first;
    struct asked a, b;

    (void)state;
    for (int i = 0; i < 600; i++)
        text[i] = 3 + i * 7 % 200;
    for (int i = 0; i < 100; i++)
        tokens[i] = 3 + i * 13 % 200;
    open_asked(&a, 2, 0);
    open_asked(&b, 2, 1200 + 7); /* seven wait for their block */
    assert_int_equal(fork_recall_table(a.fork, tokens, 100, 3, a.table), 0); /* 64 of 97 count */
    first = b.table;
    assert_int_equal(fork_feed(b.fork, text, 20), 0);
    assert_int_equal(fork_recall_table(b.fork, tokens, 100, 3, first), -EBUSY);
    fork_rewind(b.fork);
    assert_int_equal(fork_recall_table(b.fork, tokens, 100, 3, first), 0);
    assert_memory_equal(a.table, first, recall_table_bytes(a.engine));
    assert_int_equal(fork_room(b.fork), FORK_TOKENS_MAX); /* nothing stays in the fork */
    assert_int_equal(fork_recall_table(b.fork, tokens, 3, 3, first), -EINVAL);
    tokens[5] = (int32_t)b.vocab;
    assert_int_equal(fork_recall_table(b.fork, tokens, 100, 3, first), -EINVAL);
    close_asked(&a);
    close_asked(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_what_format_says),
        cmocka_unit_test(questions_are_read_alone),
    };

    return cmocka_run_group_tests_name("recall table", tests, NULL, NULL);
}
