/*
 * What a device does beside ingest and questions, against the CPU: pins, recall keys, streams begun
 * in the middle, the loss meter's two sides, windows for evaluation.
 */
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

#include "tests/emulate/gpu_rig.h"

enum {
    RING = 2,
    ROOM = 96 << 20,
    VALUES = TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM
};

/* [from, to) of tokens behind the stream's first ones. text: [TINY_SINKS + RIG_PINS] */
static struct stream_pin pin_of(uint32_t from, uint32_t to, int32_t *text)
{
    uint32_t before = from < TINY_SINKS ? from : TINY_SINKS;
    memcpy(text, tokens, before * sizeof *text);
    memcpy(text + before, tokens + from, (to - from) * sizeof *text);
    return (struct stream_pin){from, to, text, before};
}

static double mean(const float *nll, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += (double)nll[i] / count;
    return sum;
}

static double score(struct held *h, uint32_t from, uint32_t count)
{
    static float nll[TOKENS];
    assert_int_equal(stream_score(h->stream, tokens + from, tokens + from + 1, count, nll), 0);
    return mean(nll, count);
}

static char *copy_of(const struct held *h, size_t *bytes)
{
    const void *state = stream_state(h->stream, bytes);
    char *copy = malloc(*bytes);
    assert_non_null(state);
    assert_non_null(copy);
    memcpy(copy, state, *bytes);
    return copy;
}

static void pins_are_the_cpus(void **state)
{
    (void)state;
    int32_t one[TINY_SINKS + RIG_PINS], two[TINY_SINKS + RIG_PINS];
    struct stream_pin pins[2] = {pin_of(0, 20, one), pin_of(300, 312, two)};
    for (uint32_t ratio = 1; ratio <= 2; ratio++) {
        struct held a = stream_of(cpu, ratio, RING), b = stream_of(gpu, ratio, RING);
        struct held plain = stream_of(gpu, ratio, RING), crossed = stream_of(cpu, ratio, RING);
        struct held *held[] = {&a, &b, &plain};
        size_t bytes;
        for (int i = 0; i < 3; i++)
            assert_int_equal(stream_feed(held[i]->stream, tokens, 3 * TINY_CHUNK), 0);
        for (int i = 0; i < 2; i++)
            assert_int_equal(stream_pins(held[i]->stream, pins, 2), 0);
        assert_int_equal(pin_rows(&b.stream->layout, b.stream->state), 32);
        const struct layout *l = &b.stream->layout;
        char *now = copy_of(&b, &bytes);
        const f16 *x = STATE_AT_CONST(a.stream->state, l->pin_k, f16);
        const f16 *y = STATE_AT_CONST(now, l->pin_k, f16);
        double far = 0;
        for (size_t h = 0; h < l->heads; h++)
            for (uint32_t i = 0; i < 32 * l->head_dim; i++) {
                size_t at = h * l->pin_rows * l->head_dim + i;
                far = fmax(far, fabs((double)f16_to_f32(x[at]) - (double)f16_to_f32(y[at])));
            }
        assert_int_equal(stream_restore(crossed.stream, now, bytes), 0);
        free(now);
        double cpus = score(&a, 3 * TINY_CHUNK, 2 * TINY_CHUNK);
        double gpus = score(&b, 3 * TINY_CHUNK, 2 * TINY_CHUNK);
        double without = score(&plain, 3 * TINY_CHUNK, 2 * TINY_CHUNK);
        double across = score(&crossed, 3 * TINY_CHUNK, 2 * TINY_CHUNK);
        printf("ratio %u, pinned: keys at most %.4f apart, loss %.5f and %.5f, across %.5f; "
               "without pins %.5f\n",
               ratio, far, cpus, gpus, across, without);
        assert_true(far < 0.1);
        assert_true(fabs(cpus - gpus) < 0.02 && fabs(across - gpus) < 0.02);
        assert_true(without != gpus && hash_of(&b) != hash_of(&plain));
        drop(&a);
        drop(&b);
        drop(&plain);
        drop(&crossed);
    }
}

/* Whenever they are computed, and when one before them has gone. */
static void pinned_rows_are_the_same_at_any_time(void **state)
{
    (void)state;
    int32_t one[TINY_SINKS + RIG_PINS], two[TINY_SINKS + RIG_PINS];
    struct stream_pin pins[2] = {pin_of(40, 47, one), pin_of(200, 220, two)};
    struct held early = stream_of(gpu, 2, RING), late = stream_of(gpu, 2, RING);
    size_t bytes;
    void *memory;
    assert_int_equal(stream_feed(early.stream, tokens, 2 * TINY_CHUNK), 0);
    assert_int_equal(stream_pins(early.stream, pins, 2), 0);
    assert_int_equal(stream_feed(early.stream, tokens + 2 * TINY_CHUNK, 2 * TINY_CHUNK), 0);
    assert_int_equal(stream_pins(early.stream, pins + 1, 1), 0); /* the first goes */
    assert_int_equal(stream_feed(late.stream, tokens, 4 * TINY_CHUNK), 0);
    struct fork *f = fork_of(&late, &memory);
    assert_int_equal(fork_pins(f, pins, 2), 0);
    assert_int_equal(pin_rows(&f->stream.layout, f->stream.state), 27);
    assert_int_equal(fork_feed(f, tokens, 5), 0);
    assert_int_equal(fork_pins(f, NULL, 0), -EBUSY);
    fork_close(&f);
    free(memory);
    assert_int_equal(stream_pins(late.stream, pins + 1, 1), 0);
    const struct layout *l = &late.stream->layout;
    char *x = copy_of(&early, &bytes), *y = copy_of(&late, &bytes);
    const size_t parts[] = {l->pin_raw, l->pin_k, l->pin_v};
    for (int p = 0; p < 3; p++)
        for (size_t h = 0; h < l->heads; h++) {
            size_t at = parts[p] + h * l->pin_rows * l->head_dim * sizeof(f16);
            assert_memory_equal(x + at, y + at, 20 * l->head_dim * sizeof(f16));
        }
    free(x);
    free(y);
    drop(&early);
    drop(&late);
}

static void questions_ask_for_the_same(void **state)
{
    (void)state;
    struct held a = stream_of(cpu, 2, RING), b = stream_of(gpu, 2, RING);
    size_t bytes = recall_table_bytes(gpu);
    void *memory[2];
    assert_true(bytes > 0 && bytes == recall_table_bytes(cpu));
    uint8_t *x = malloc(bytes), *y = malloc(bytes), *again = malloc(bytes);
    assert_int_equal(stream_feed(a.stream, tokens, TINY_CHUNK + 9), 0);
    assert_int_equal(stream_feed(b.stream, tokens, TINY_CHUNK + 9), 0);
    struct fork *f = fork_of(&a, &memory[0]), *g = fork_of(&b, &memory[1]);
    assert_int_equal(fork_recall_table(f, tokens + 40, 45, 3, x), 0);
    assert_int_equal(fork_recall_table(g, tokens + 40, 45, 3, y), 0);
    assert_int_equal(fork_recall_table(g, tokens + 40, 45, 3, again), 0);
    assert_memory_equal(y, again, bytes);
    double off = 0, size = 0;
    for (size_t i = 0; i < bytes; i++) {
        off += abs(x[i] - y[i]);
        size += x[i];
    }
    printf("recall table: %.4f of its size apart\n", off / size);
    assert_true(size > 0 && off / size < 0.05);
    fork_close(&f);
    fork_close(&g);
    free(memory[0]);
    free(memory[1]);
    free(x);
    free(y);
    free(again);
    drop(&a);
    drop(&b);
}

static double distance(const f16 *a, const f16 *b)
{
    double sum = 0;
    for (int i = 0; i < VALUES; i++) {
        double d = (double)f16_to_f32(a[i]) - (double)f16_to_f32(b[i]);
        sum += d * d;
    }
    return sqrt(sum / VALUES);
}

static f16 left_rows[8][VALUES];
static uint32_t left;

static void leaves(void *user, const struct segment_view *segment)
{
    (void)user;
    memcpy(left_rows[segment->number], segment->rows, segment->rows_bytes);
    left++;
}

/* What a damaged cold segment is made again from. */
static void begun_near_it_comes_near(void **state)
{
    (void)state;
    enum { WARM = 2, CHUNK = 6 };
    static f16 rows[7][VALUES];
    struct held whole = stream_of(gpu, 4, RING), part = stream_of(gpu, 4, RING);
    struct segment_view segment;
    size_t bytes;
    left = 0;
    stream_on_segment_leave(whole.stream, leaves, NULL);
    assert_false(stream_newest_segment(whole.stream, &segment));
    for (uint32_t n = 0; n < 7; n++) {
        assert_int_equal(stream_feed(whole.stream, tokens + n * TINY_CHUNK, TINY_CHUNK), 0);
        assert_true(stream_newest_segment(whole.stream, &segment));
        assert_int_equal(segment.number, n);
        memcpy(rows[n], segment.rows, sizeof rows[n]);
    }
    assert_int_equal(left, 5);
    for (uint32_t n = 0; n < left; n++) /* the one that is newest is the one that leaves later */
        assert_memory_equal(left_rows[n], rows[n], sizeof rows[n]);
    char *far = copy_of(&whole, &bytes);
    assert_int_equal(stream_restore(part.stream, far, bytes), 0);
    assert_int_equal(stream_seed(part.stream, RING), -EINVAL);
    assert_int_equal(stream_seed(part.stream, CHUNK - WARM), 0);
    for (uint32_t n = CHUNK - WARM - RING; n < CHUNK - WARM; n++)
        assert_int_equal(stream_seed_segment(part.stream, n, rows[n]), 0);
    assert_int_equal(stream_seed_segment(part.stream, CHUNK, rows[CHUNK]), -EINVAL);
    for (uint32_t n = CHUNK - WARM; n <= CHUNK; n++)
        assert_int_equal(stream_feed(part.stream, tokens + n * TINY_CHUNK, TINY_CHUNK), 0);
    assert_true(stream_newest_segment(part.stream, &segment));
    assert_int_equal(segment.number, CHUNK);
    double near = distance(segment.rows, rows[CHUNK]), other = distance(rows[5], rows[CHUNK]);
    printf("begun near it: %.2g away, its neighbour %.2g\n", near, other);
    assert_true(near < other / 4);
    free(far);
    drop(&whole);
    drop(&part);
}

static void the_meters_reference(void **state)
{
    (void)state;
    enum { ROWS = 96 };
    static float nll[2][ROWS];
    struct engine *on[2] = {cpu, gpu};
    for (int i = 0; i < 2; i++) {
        size_t bytes = (raw_bytes(on[i], ROWS) + 63) & ~(size_t)63;
        void *memory = aligned_alloc(64, bytes);
        struct raw *raw;
        assert_int_equal(raw_open(&raw, on[i], ROWS, memory, bytes), 0);
        for (int again = 0; again < 2; again++) {
            raw_reset(raw);
            for (uint32_t at = 0; at < ROWS; at += STREAM_BLOCK_TOKENS)
                assert_int_equal(
                    raw_score(raw, tokens + at, tokens + at + 1, STREAM_BLOCK_TOKENS, nll[i] + at),
                    0);
        }
        assert_int_equal(raw_score(raw, tokens, NULL, 1, NULL), -ENOSPC);
        free(memory);
    }
    double far = 0;
    for (uint32_t i = 0; i < ROWS; i++)
        far = fmax(far, fabs((double)nll[0][i] - (double)nll[1][i]));
    printf("raw rows: loss %.5f and %.5f, at most %.4f apart\n", mean(nll[0], ROWS),
           mean(nll[1], ROWS), far);
    assert_true(fabs(mean(nll[0], ROWS) - mean(nll[1], ROWS)) < 0.02 && far < 0.5);
}

/* Scored or not, cut anyhow: the same memory; and the losses are those of stream_score. */
static void scored_as_it_is_fed(void **state)
{
    (void)state;
    enum { COUNT = 2 * TINY_CHUNK };
    static float nll[COUNT];
    struct held a = stream_of(gpu, 2, RING), b = stream_of(gpu, 2, RING);
    double sum = 0, expected = 0;
    uint32_t scored = 0;
    for (uint32_t at = 0; at < COUNT; at += 23) {
        uint32_t n = COUNT - at < 23 ? COUNT - at : 23;
        assert_int_equal(stream_feed_scored(a.stream, tokens + at, n, &sum, &scored), 0);
    }
    assert_int_equal(stream_score(b.stream, tokens, tokens + 1, COUNT, nll), 0);
    for (uint32_t i = 0; i < COUNT; i++)
        if (i % STREAM_BLOCK_TOKENS + 1 < STREAM_BLOCK_TOKENS)
            expected += (double)nll[i];
    assert_int_equal(scored, COUNT / STREAM_BLOCK_TOKENS * (STREAM_BLOCK_TOKENS - 1));
    assert_true(fabs(sum - expected) < 1e-6 * expected);
    assert_true(hash_of(&a) == hash_of(&b));
    drop(&a);
    drop(&b);
}

static void windows_are_the_cpus(void **state)
{
    (void)state;
    enum { COUNT = 200, MOST = 64 };
    static float nll[2][COUNT];
    static uint32_t visible[COUNT];
    struct engine *on[2] = {cpu, gpu};
    for (uint32_t i = 0; i < COUNT; i++)
        visible[i] = 30 + i * 7 % 34;
    for (int lora = 0; lora < 2; lora++) {
        for (int i = 0; i < 2; i++) {
            struct history *h;
            assert_int_equal(history_open(&h, on[i], MOST, lora), 0);
            assert_int_equal(
                history_score(h, tokens, tokens + 1, COUNT, lora ? visible : NULL, nll[i]), 0);
            assert_int_equal(history_score(h, tokens, NULL, 1, &(uint32_t){MOST + 1}, NULL),
                             -EINVAL);
            history_close(&h);
        }
        double far = 0;
        for (uint32_t i = 0; i < COUNT; i++)
            far = fmax(far, fabs((double)nll[0][i] - (double)nll[1][i]));
        printf("window of %s rows: loss %.5f and %.5f, at most %.4f apart\n",
               lora ? "changing" : "64", mean(nll[0], COUNT), mean(nll[1], COUNT), far);
        assert_true(fabs(mean(nll[0], COUNT) - mean(nll[1], COUNT)) < 0.02 && far < 0.5);
    }
}

/* Streams of all ratios and windows in one pass, of different lengths: as each alone. */
static void scored_together_as_alone(void **state)
{
    (void)state;
    enum { LANES = 3, COUNT = 2 * TINY_CHUNK + 96, MOST = 64 };
    static float nll[2][LANES][COUNT];
    struct held h[2][LANES];
    struct history *window[2][LANES];
    struct stream_work work[LANES];
    struct stream_targets score[LANES];
    struct history_work some[LANES];
    double far = 0;
    for (uint32_t i = 0; i < LANES; i++) {
        uint32_t count = COUNT - 32 * i;
        for (int j = 0; j < 2; j++) {
            h[j][i] = stream_of(gpu, 1u << i, RING);
            assert_int_equal(history_open(&window[j][i], gpu, MOST, false), 0);
        }
        work[i] = (struct stream_work){h[0][i].stream, tokens + i, count, 1};
        score[i] = (struct stream_targets){tokens + i + 1, nll[0][i]};
        assert_int_equal(stream_score(h[1][i].stream, tokens + i, tokens + i + 1, count, nll[1][i]),
                         0);
    }
    assert_int_equal(streams_score(work, score, LANES), 0);
    for (uint32_t i = 0; i < LANES; i++) {
        assert_true(hash_of(&h[0][i]) == hash_of(&h[1][i]));
        for (uint32_t t = 0; t < COUNT - 32 * i; t++)
            far = fmax(far, fabs((double)nll[0][i][t] - (double)nll[1][i][t]));
    }
    for (uint32_t at = 0; at < 5 * STREAM_BLOCK_TOKENS; at += STREAM_BLOCK_TOKENS) {
        for (uint32_t i = 0; i < LANES; i++) {
            some[i] = (struct history_work){
                window[0][i], tokens + at + i, tokens + at + i + 1, STREAM_BLOCK_TOKENS,
                NULL,         nll[0][i] + at};
            assert_int_equal(history_score(window[1][i], tokens + at + i, tokens + at + i + 1,
                                           STREAM_BLOCK_TOKENS, NULL, nll[1][i] + at),
                             0);
        }
        assert_int_equal(histories_score(some, LANES), 0);
        for (uint32_t i = 0; i < LANES; i++)
            for (uint32_t t = at; t < at + STREAM_BLOCK_TOKENS; t++)
                far = fmax(far, fabs((double)nll[0][i][t] - (double)nll[1][i][t]));
    }
    printf("losses side by side and alone at most %.6f apart\n", far);
    assert_true(far < 0.01);
    some[0].count = STREAM_BLOCK_TOKENS + 1;
    assert_int_equal(histories_score(some, LANES), -EINVAL);
    for (uint32_t i = 0; i < LANES; i++)
        for (int j = 0; j < 2; j++) {
            history_close(&window[j][i]);
            drop(&h[j][i]);
        }
}

/* A chunk block by block, and a few tokens of an answer: all passes that come again. */
static uint64_t read_and_answer(struct engine *e, float *logits)
{
    struct held h = stream_of(e, 2, RING);
    void *memory;
    for (uint32_t at = 0; at < 3 * TINY_CHUNK; at += STREAM_BLOCK_TOKENS)
        assert_int_equal(stream_feed(h.stream, tokens + at, STREAM_BLOCK_TOKENS), 0);
    struct fork *f = fork_of(&h, &memory);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(fork_feed(f, tokens + i, 1), 0);
    memcpy(logits, fork_logits(f), e->shape.vocab * sizeof *logits);
    fork_close(&f);
    free(memory);
    uint64_t hash = hash_of(&h);
    drop(&h);
    return hash;
}

static void graphs_change_nothing(void **state)
{
    (void)state;
    static const enum trouble troubles[] = {NO_GRAPHS, NO_CAPTURE, NO_UPLOAD};
    char error[256];
    int code;
    size_t bytes = gpu->shape.vocab * sizeof(float);
    float *with = malloc(bytes), *without = malloc(bytes);
    uint64_t recorded = read_and_answer(gpu, with);
    printf("%u graphs\n", gpu->gpu->cuda->graphs);
    assert_true(gpu->gpu->cuda->graphs > 2);
    for (int i = 0; i < 3; i++) {
        struct engine *e = engine_on(DEVICE_CUDA, error, sizeof error, &code);
        simt_trouble(troubles[i], 0);
        uint64_t plain = read_and_answer(e, without);
        assert_int_equal(e->gpu->cuda->graphs, 0);
        assert_int_equal(e->gpu->cuda->sync(e->gpu->cuda), 0);
        simt_trouble(FINE, 0);
        assert_true(plain == recorded);
        assert_memory_equal(with, without, bytes);
        engine_close(&e);
    }
    free(with);
    free(without);
}

/* Two answers' next tokens in one product, each as alone; no matrix is made for them. */
static void tokens_together(struct engine *e)
{
    enum { FORKS = 2 };
    struct gpu *g = e->gpu;
    uint8_t *scratch = malloc(g->scratch_bytes);
    struct held h = stream_of(e, 2, RING);
    struct fork *alone[FORKS], *together[FORKS];
    struct fork_work work[FORKS];
    void *memory[2 * FORKS];
    assert_int_equal(stream_feed(h.stream, tokens, STREAM_BLOCK_TOKENS), 0);
    g->cuda->clear(g->cuda, g->scratch, g->scratch_bytes);
    for (uint32_t i = 0; i < FORKS; i++) {
        alone[i] = fork_of(&h, &memory[i]);
        together[i] = fork_of(&h, &memory[FORKS + i]);
        assert_int_equal(fork_feed(alone[i], tokens + 9 * i, 1), 0);
        work[i] = (struct fork_work){.fork = together[i], .tokens = tokens + 9 * i, .count = 1};
    }
    assert_int_equal(forks_feed(work, FORKS), 0);
    g->cuda->copy_out(g->cuda, scratch, g->scratch, g->scratch_bytes);
    assert_int_equal(g->cuda->sync(g->cuda), 0);
    for (size_t i = 0; i < g->scratch_bytes; i++)
        assert_int_equal(scratch[i], 0);
    free(scratch);
    for (uint32_t i = 0; i < FORKS; i++) {
        assert_memory_equal(fork_logits(alone[i]), fork_logits(together[i]),
                            e->shape.vocab * sizeof(float));
        fork_close(&alone[i]);
        fork_close(&together[i]);
        free(memory[i]);
        free(memory[FORKS + i]);
    }
    drop(&h);
}

/* Of all four kinds of rows. Single tokens take a product of their own, that sums in another order,
 * unless weights are made for them too. */
static void kept_weights_give_the_same(void **state)
{
    (void)state;
    enum { BF16, MADE, FILE_ROWS, WAYS };
    static const struct {
        enum tensor_type weights, embeddings;
        bool untied;
    } models[] = {{TENSOR_Q4_1, TENSOR_Q8_0, false},
                  {TENSOR_Q4_0, TENSOR_F16, true},
                  {TENSOR_Q8_0, TENSOR_Q4_0, true}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct tiny_options model = TINY_DEFAULTS;
        uint64_t hash[WAYS];
        float *logits[WAYS];
        size_t weights[WAYS], vocab = 0;
        double far = 0, top = 0;
        model.weight_type = models[i].weights;
        model.embed_type = models[i].embeddings;
        model.untied = models[i].untied;
        for (int way = 0; way < WAYS; way++) {
            char error[256] = "";
            int code;
            struct engine *e =
                engine_of(DEVICE_CUDA, &model, way == BF16 ? WEIGHTS_BF16 : WEIGHTS_FILE, ROOM,
                          error, sizeof error, &code);
            if (!e)
                fail_msg("%d: %s", code, error);
            assert_int_equal(e->info.device_scratch_bytes > 0, way != BF16);
            e->gpu->makes = way == MADE;
            weights[way] = e->info.device_weights_bytes;
            vocab = e->shape.vocab;
            logits[way] = malloc(vocab * sizeof(float));
            hash[way] = read_and_answer(e, logits[way]);
            assert_true(e->gpu->cuda->graphs > 2);
            if (way == FILE_ROWS)
                tokens_together(e);
            engine_close(&e);
        }
        for (size_t v = 0; v < vocab; v++) {
            far = fmax(far, fabs((double)logits[BF16][v] - (double)logits[FILE_ROWS][v]));
            top = fmax(top, fabs((double)logits[BF16][v]));
        }
        printf("%zu bytes of weights as bf16, %zu kept; logits %.5f of their size apart\n",
               weights[BF16], weights[MADE], far / top);
        assert_memory_equal(logits[BF16], logits[MADE], vocab * sizeof(float));
        assert_true(far < 0.01 * top); /* few terms may come to the same in any order */
        assert_true(hash[BF16] == hash[MADE] && hash[BF16] == hash[FILE_ROWS]);
        assert_true(weights[MADE] < weights[BF16]);
        for (int way = 0; way < WAYS; way++)
            free(logits[way]);
    }
}

/* bf16 while it fits, what the file holds where that alone does, and a sentence where neither. */
static void weights_are_kept_where_memory_is_short(void **state)
{
    (void)state;
    struct tiny_options model = TINY_DEFAULTS, plain = TINY_DEFAULTS;
    struct engine_info as[2];
    char error[256] = "";
    int code;
    for (int kept = 0; kept < 2; kept++) {
        struct engine *e = engine_of(DEVICE_CUDA, &model, kept ? WEIGHTS_FILE : WEIGHTS_BF16, ROOM,
                                     error, sizeof error, &code);
        assert_non_null(e);
        as[kept] = e->info;
        engine_close(&e);
    }
    assert_int_equal(as[0].device_kept_bytes, as[1].device_weights_bytes);
    assert_int_equal(as[1].device_kept_bytes, 0);
    size_t least[2];
    for (int kept = 0; kept < 2; kept++)
        least[kept] = as[kept].device_weights_bytes + as[kept].device_work_bytes;
    struct engine *e = engine_of(DEVICE_CUDA, &model, WEIGHTS_AUTO, least[0] + (8 << 20), error,
                                 sizeof error, &code);
    assert_non_null(e);
    assert_int_equal(e->info.device_scratch_bytes, 0);
    engine_close(&e);
    assert_null(engine_of(DEVICE_CUDA, &model, WEIGHTS_BF16, least[0], error, sizeof error, &code));
    assert_int_equal(code, -ENOMEM);
    e = engine_of(DEVICE_CUDA, &model, WEIGHTS_AUTO, least[0], error, sizeof error, &code);
    assert_non_null(e);
    assert_int_equal(e->info.device_scratch_bytes, as[1].device_scratch_bytes);
    engine_close(&e);
    assert_null(engine_of(DEVICE_CUDA, &model, WEIGHTS_AUTO, least[1], error, sizeof error, &code));
    assert_int_equal(code, -ENOMEM);
    assert_non_null(strstr(error, "no room for"));
    plain.weight_type = plain.embed_type = TENSOR_F16; /* nothing to keep */
    e = engine_of(DEVICE_CUDA, &plain, WEIGHTS_FILE, ROOM, error, sizeof error, &code);
    assert_non_null(e);
    assert_int_equal(e->info.device_scratch_bytes + e->info.device_kept_bytes, 0);
    engine_close(&e);
}

/* What one stream and its question do was recorded before, and is what it would be. */
static void passes_are_recorded_ahead(void **state)
{
    (void)state;
    char error[256];
    int code;
    size_t bytes = gpu->shape.vocab * sizeof(float);
    float *ahead = malloc(bytes), *as_it_comes = malloc(bytes);
    struct engine *e = engine_on(DEVICE_CUDA, error, sizeof error, &code);
    assert_int_equal(engine_warm(e, error, sizeof error), 0);
    uint32_t graphs = e->gpu->cuda->graphs, regions = e->gpu->regions;
    printf("%u graphs\n", graphs);
    assert_true(graphs > TINY_CHUNK / STREAM_BLOCK_TOKENS);
    assert_int_equal(regions, 0);
    assert_true(read_and_answer(e, ahead) == read_and_answer(gpu, as_it_comes));
    assert_memory_equal(ahead, as_it_comes, bytes);
    assert_int_equal(e->gpu->cuda->graphs, graphs);
    assert_int_equal(e->gpu->cuda->sync(e->gpu->cuda), 0);
    engine_close(&e);
    free(ahead);
    free(as_it_comes);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pins_are_the_cpus),
        cmocka_unit_test(pinned_rows_are_the_same_at_any_time),
        cmocka_unit_test(questions_ask_for_the_same),
        cmocka_unit_test(begun_near_it_comes_near),
        cmocka_unit_test(the_meters_reference),
        cmocka_unit_test(scored_as_it_is_fed),
        cmocka_unit_test(windows_are_the_cpus),
        cmocka_unit_test(scored_together_as_alone),
        cmocka_unit_test(graphs_change_nothing),
        cmocka_unit_test(kept_weights_give_the_same),
        cmocka_unit_test(weights_are_kept_where_memory_is_short),
        cmocka_unit_test(passes_are_recorded_ahead),
    };
    return cmocka_run_group_tests_name("gpu, emulated, the rest", tests, rig_set_up, rig_tear_down);
}
