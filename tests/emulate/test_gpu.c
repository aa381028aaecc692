/*
 * Streams on a device against streams on the CPU, with the tiny model and the device emulated: what
 * a chunk leaves behind, losses, cuts, batches, states, forks, recall, and a device in trouble.
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

enum { SCORED = 3 * TINY_CHUNK + 96 };

static double mean_loss(struct stream *s, uint32_t count, float *nll)
{
    double sum = 0;
    assert_int_equal(stream_score(s, tokens, tokens + 1, count, nll), 0);
    for (uint32_t i = 0; i < count; i++)
        sum += (double)nll[i];
    return sum / count;
}

static void loss_and_ratio_are_the_cpus(void **state)
{
    (void)state;
    static float nll[2][SCORED];
    for (uint32_t ratio = 1; ratio <= 8; ratio *= 2)
        for (int simple = 0; simple < 1 + (ratio == 2); simple++) {
            /* The plain kernel is a slow one, here most of all. */
            uint32_t count = simple ? TINY_CHUNK + 64 : SCORED;
            struct held a = stream_of(cpu, ratio, 2), b = stream_of(gpu, ratio, 2);
            struct stream_stat sa, sb;
            gpu->gpu->cuda->simple = simple;
            double x = mean_loss(a.stream, count, nll[0]);
            double y = mean_loss(b.stream, count, nll[1]), far = 0;
            for (uint32_t i = 0; i < count; i++)
                far = fmax(far, fabs((double)nll[0][i] - (double)nll[1][i]));
            stream_stat(a.stream, &sa);
            stream_stat(b.stream, &sb);
            printf("ratio %u: loss %.5f and %.5f, at most %.4f apart, realised %.4f and %.4f\n",
                   ratio, x, y, far, sa.ratio_realised, sb.ratio_realised);
            /* A decision that falls the other way moves all behind it in a model of random
             * weights; trained ones agree to 0.002 at any ratio (tests/bench/results). */
            assert_true(fabs(x - y) < (ratio == 1 ? 0.002 : 0.02));
            assert_true(ratio > 1 || far < 0.5);
            assert_true(fabs(sa.ratio_realised / sb.ratio_realised - 1) < 0.01);
            assert_int_equal(sa.segments_cold, sb.segments_cold);
            assert_true(fabs(sa.rows_mean - sb.rows_mean) < 0.01 * sa.rows_mean);
            gpu->gpu->cuda->simple = false;
            drop(&a);
            drop(&b);
        }
}

static void cuts_and_company_do_not_matter(void **state)
{
    (void)state;
    enum { STREAMS = 4 };
    struct held alone[STREAMS], cut[STREAMS], together[STREAMS];
    struct stream_work work[STREAMS];
    for (uint32_t i = 0; i < STREAMS; i++) {
        uint32_t count = 4 * TINY_CHUNK + 70 * i, step = 1;
        alone[i] = stream_of(gpu, 1u << i, 2);
        cut[i] = stream_of(gpu, 1u << i, 2);
        together[i] = stream_of(gpu, 1u << i, 2);
        assert_int_equal(stream_feed(alone[i].stream, tokens, count), 0);
        for (uint32_t at = 0; at < count; at += step, step = step % 97 + 13) {
            step = step < count - at ? step : count - at;
            assert_int_equal(stream_feed(cut[i].stream, tokens + at, step), 0);
        }
        work[i] = (struct stream_work){together[i].stream, tokens, count, 1};
    }
    assert_int_equal(streams_feed(work, STREAMS), 0);
    for (uint32_t i = 0; i < STREAMS; i++) {
        size_t bytes;
        char *first = NULL;
        const void *state_now = stream_state(alone[i].stream, &bytes);
        assert_non_null(first = malloc(bytes));
        memcpy(first, state_now, bytes);
        assert_true(hash_of(&alone[i]) != 0);
        assert_true(hash_of(&alone[i]) == hash_of(&cut[i]));
        assert_true(hash_of(&alone[i]) == hash_of(&together[i]));
        const struct layout *l = &alone[i].stream->layout;
        /* From the counts to the window: before it lie old pending tokens, in it old entries. */
        size_t from = l->capacity, most = l->window_k[0] - from;
        const char *same = stream_state(cut[i].stream, &bytes);
        assert_memory_equal(first + from, same + from, most);
        same = stream_state(together[i].stream, &bytes);
        assert_memory_equal(first + from, same + from, most);
        free(first);
        drop(&alone[i]);
        drop(&cut[i]);
        drop(&together[i]);
    }
}

static char *state_copy(const struct held *h, size_t *bytes)
{
    const void *now = stream_state(h->stream, bytes);
    char *copy = malloc(*bytes);
    assert_true(now && copy);
    memcpy(copy, now, *bytes);
    return copy;
}

/* Two chunks, a block at a time and then some together, and a question. Few entries: most items
 * have none of their own. */
static char *read_with_few_entries(uint32_t ratio, float *logits, size_t *bytes)
{
    static uint32_t few[TINY_RATIOS * TINY_LAYERS * TINY_KV_HEADS];
    const uint32_t *quota = gpu->quota;
    void *memory;
    for (size_t i = 0; i < sizeof few / sizeof *few; i++)
        few[i] = 5 + (uint32_t)i % 7;
    gpu->quota = few;
    struct held h = stream_of(gpu, ratio, 1);
    for (uint32_t at = 0, step; at < 2 * TINY_CHUNK; at += step) {
        step = at % TINY_CHUNK < TINY_CHUNK / 2 ? STREAM_BLOCK_TOKENS : TINY_CHUNK / 2;
        assert_int_equal(stream_feed(h.stream, tokens + at, step), 0);
    }
    assert_int_equal(stream_feed(h.stream, tokens, STREAM_BLOCK_TOKENS + 7), 0);
    struct fork *f = fork_of(&h, &memory);
    assert_int_equal(fork_feed(f, tokens, 40), 0);
    assert_int_equal(fork_feed(f, tokens + 40, 1), 0);
    memcpy(logits, fork_logits(f), gpu->shape.vocab * sizeof *logits);
    char *state = state_copy(&h, bytes);
    fork_close(&f);
    free(memory);
    drop(&h);
    gpu->quota = quota;
    return state;
}

static void threads_do_not_race(void **state)
{
    (void)state;
    size_t bytes[2], vocab = gpu->shape.vocab * sizeof(float);
    float *logits[2] = {malloc(vocab), malloc(vocab)};
    for (uint32_t ratio = 1; ratio <= 4; ratio *= 4) {
        char *forth = read_with_few_entries(ratio, logits[0], &bytes[0]);
        simt_backwards(true);
        char *back = read_with_few_entries(ratio, logits[1], &bytes[1]);
        simt_backwards(false);
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(forth, back, bytes[0]);
        assert_memory_equal(logits[0], logits[1], vocab);
        free(forth);
        free(back);
    }
    free(logits[0]);
    free(logits[1]);
}

/* One chunk with its COMP rows at a time, and a window row by row. */
static void small_passes_are_as_large_ones(void **state)
{
    (void)state;
    enum { STREAMS = 3, COUNT = 2 * TINY_CHUNK + 40, ROWS = 96, WINDOW = 34 };
    struct engine *on[2] = {gpu, engine_in_passes_of(1)};
    uint64_t hash[2][STREAMS];
    float nll[2][ROWS];
    for (int i = 0; i < 2; i++) {
        struct held h[STREAMS];
        struct stream_work work[STREAMS];
        struct history *history;
        for (uint32_t n = 0; n < STREAMS; n++) {
            h[n] = stream_of(on[i], 1u << n, 1);
            work[n] = (struct stream_work){h[n].stream, tokens + n, COUNT, 1};
        }
        assert_int_equal(streams_feed(work, STREAMS), 0);
        for (uint32_t n = 0; n < STREAMS; n++) {
            hash[i][n] = hash_of(&h[n]);
            drop(&h[n]);
        }
        assert_int_equal(history_open(&history, on[i], WINDOW, false), 0);
        assert_int_equal(history_score(history, tokens, tokens + 1, ROWS, NULL, nll[i]), 0);
        history_close(&history);
    }
    assert_memory_equal(hash[0], hash[1], sizeof hash[0]);
    assert_memory_equal(nll[0], nll[1], sizeof nll[0]);
    engine_close(&on[1]);
}

/* Either device goes on from what the other has read. */
static void states_cross_over(void **state)
{
    (void)state;
    enum { FIRST = 3 * TINY_CHUNK + 96 };
    static float nll[3][TOKENS];
    for (uint32_t ratio = 1; ratio <= 4; ratio *= 4) {
        struct engine *to[3] = {cpu, gpu, gpu}, *from[3] = {gpu, cpu, gpu};
        double loss[3] = {0};
        for (int i = 0; i < 3; i++) {
            struct held a = stream_of(from[i], ratio, 2), b = stream_of(to[i], ratio, 2);
            size_t bytes;
            assert_int_equal(stream_feed(a.stream, tokens, FIRST), 0);
            const void *block = stream_state(a.stream, &bytes);
            assert_int_equal(stream_restore(b.stream, block, bytes), 0);
            assert_int_equal(stream_restore(b.stream, block, bytes - 1), -EINVAL);
            assert_int_equal(
                stream_score(b.stream, tokens + FIRST, tokens + FIRST + 1, 320, nll[i]), 0);
            for (int t = 0; t < 320; t++)
                loss[i] += (double)nll[i][t] / 320;
            drop(&a);
            drop(&b);
        }
        printf("ratio %u: from device to CPU %.5f, back %.5f, device alone %.5f\n", ratio, loss[0],
               loss[1], loss[2]);
        assert_true(fabs(loss[0] - loss[2]) < 0.02 && fabs(loss[1] - loss[2]) < 0.02);
    }
}

static void forks_answer_as_the_cpus(void **state)
{
    (void)state;
    for (uint32_t ratio = 1; ratio <= 4; ratio *= 2) {
        struct held a = stream_of(cpu, ratio, 2), b = stream_of(gpu, ratio, 2);
        void *memory[2];
        rig_left[0] = rig_left[1] = 0;
        stream_on_segment_leave(a.stream, rig_leaves, &rig_left[0]);
        stream_on_segment_leave(b.stream, rig_leaves, &rig_left[1]);
        assert_int_equal(stream_feed(a.stream, tokens, 6 * TINY_CHUNK + 77), 0);
        assert_int_equal(stream_feed(b.stream, tokens, 6 * TINY_CHUNK + 77), 0);
        assert_int_equal(rig_left[0], 4);
        assert_int_equal(rig_left[1], 4);
        uint64_t before = hash_of(&b);
        struct fork *x = fork_of(&a, &memory[0]), *y = fork_of(&b, &memory[1]);
        assert_int_equal(fork_feed(x, NULL, 0), 0);
        assert_int_equal(fork_feed(y, NULL, 0), 0);
        assert_true(!fork_logits(x) && !fork_logits(y));
        assert_int_equal(fork_feed(x, tokens + 5, 45), 0);
        assert_int_equal(fork_feed(y, tokens + 5, 45), 0);
        double apart = logits_apart(x, y);
        for (int i = 0; i < 3; i++) { /* single tokens take another kernel */
            assert_int_equal(fork_feed(x, tokens + 60 + i, 1), 0);
            assert_int_equal(fork_feed(y, tokens + 60 + i, 1), 0);
            apart = fmax(apart, logits_apart(x, y));
        }
        assert_true(fork_room(x) == fork_room(y) && fork_position(x) == fork_position(y));
        struct cold_segment cold[2] = {{.number = 1, .rows = rig_left_rows[1]},
                                       {.number = 3, .rows = rig_left_rows[3]}};
        fork_rewind(x);
        fork_rewind(y);
        assert_int_equal(fork_recall(x, cold, 2), 0);
        assert_int_equal(fork_recall(y, cold, 2), 0);
        assert_int_equal(fork_feed(x, tokens + 5, 33), 0);
        assert_int_equal(fork_feed(y, tokens + 5, 33), 0);
        printf("ratio %u: logits %.4f of their size apart, %.4f with recall\n", ratio, apart,
               logits_apart(x, y));
        assert_true(apart < 0.1 && logits_apart(x, y) < 0.1);
        assert_true(before == hash_of(&b));
        fork_close(&x);
        fork_close(&y);
        free(memory[0]);
        free(memory[1]);
        drop(&a);
        drop(&b);
    }
}

/* Many forks in one call, each as alone. */
static void forks_together(void **state)
{
    (void)state;
    enum { FORKS = 3 };
    struct held h = stream_of(gpu, 2, 2);
    void *memory[2 * FORKS];
    struct fork *alone[FORKS], *together[FORKS];
    struct fork_work work[FORKS];
    int32_t best[FORKS];
    assert_int_equal(stream_feed(h.stream, tokens, 3 * TINY_CHUNK + 40), 0);
    for (uint32_t i = 0; i < FORKS; i++) {
        alone[i] = fork_of(&h, &memory[i]);
        together[i] = fork_of(&h, &memory[FORKS + i]);
        assert_int_equal(fork_feed(alone[i], tokens + i, 40 + 9 * i), 0);
        work[i] =
            (struct fork_work){.fork = together[i], .tokens = tokens + i, .count = 40 + 9 * i};
    }
    assert_int_equal(forks_feed(work, FORKS), 0);
    for (uint32_t i = 0; i < FORKS; i++) {
        assert_memory_equal(fork_logits(alone[i]), fork_logits(together[i]),
                            gpu->shape.vocab * sizeof(float));
        assert_int_equal(fork_feed(alone[i], tokens + 7, 1), 0);
        work[i].tokens = tokens + 7;
        work[i].count = 1;
        work[i].best = &best[i];
    }
    assert_int_equal(forks_feed(work, FORKS), 0);
    for (uint32_t i = 0; i < FORKS; i++) {
        const float *logits = fork_logits(alone[i]);
        for (uint32_t v = 0; v < gpu->shape.vocab; v++)
            if (!(logits[v] <= logits[best[i]]))
                fail_msg("fork %u: %u has %g, %d %g", i, v, (double)logits[v], best[i],
                         (double)logits[best[i]]);
        fork_close(&alone[i]);
        fork_close(&together[i]);
        free(memory[i]);
        free(memory[FORKS + i]);
    }
    drop(&h);
}

/* A window that slides at the length that the model was trained for: every row begins elsewhere. */
static void windows_as_long_as_the_context(void **state)
{
    (void)state;
    enum { ROWS = 2, HELD = TINY_CONTEXT - 1 };
    struct fork f = {.stream = {.engine = gpu}};
    uint32_t first[ROWS];
    float nll[2][ROWS];
    assert_int_equal(gpu_tail_open(&f, gpu, HELD + ROWS), 0);
    for (uint32_t i = 0; i < ROWS; i++)
        first[i] = i;
    for (int simple = 0; simple < 2; simple++) {
        f.tail.count = HELD;
        struct gpu_rows run = {.tail = &f.tail,
                               .tokens = tokens,
                               .targets = tokens + 1,
                               .first = first,
                               .count = ROWS,
                               .layers = 1,
                               .position = HELD,
                               .nll = nll[simple]};
        gpu->gpu->cuda->simple = simple;
        assert_int_equal(gpu_rows_run(gpu, &run, 1), 0);
    }
    gpu->gpu->cuda->simple = false;
    for (uint32_t i = 0; i < ROWS; i++)
        assert_true(fabs((double)nll[0][i] - (double)nll[1][i]) < 1e-3);
    gpu_fork_close(&f);
}

/* Groups of query heads and sizes of heads that models have, each with a kernel of its own or none;
 * chunks of a block or two, one slot or a block of them, a ring of one. */
static void other_shapes_are_the_cpus(void **state)
{
    (void)state;
    static const struct tiny_shape shapes[] = {
        /* heads, KV heads, head size; chunk, slots, ring */
        {8, 1, 64, 64, 8, 1},   {4, 1, 128, 32, 32, 2}, {6, 2, 128, 32, 1, 1},
        {4, 2, 128, 96, 16, 1}, {3, 3, 64, 64, 4, 1},   {2, 2, 96, 64, 2, 1},
    };
    enum { COUNT = 320, BYTES = 160 << 20 };
    static float nll[COUNT];
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct tiny_options model = TINY_DEFAULTS;
        uint32_t ratio = 1u << i % 3;
        char error[256] = "";
        void *memory[2];
        int code;
        model.weight_type = model.embed_type = TENSOR_F32;
        model.shape = shapes[i];
        struct engine *on[2] = {
            engine_of(DEVICE_CPU, &model, WEIGHTS_AUTO, 0, error, sizeof error, &code),
            engine_of(DEVICE_CUDA, &model, WEIGHTS_AUTO, BYTES, error, sizeof error, &code)};
        if (!on[0] || !on[1])
            fail_msg("shape %zu: %d: %s", i, code, error);
        struct held a = stream_of(on[0], ratio, shapes[i].ring);
        struct held b = stream_of(on[1], ratio, shapes[i].ring);
        struct held cut = stream_of(on[1], ratio, shapes[i].ring);
        double x = mean_loss(a.stream, COUNT, nll), y = mean_loss(b.stream, COUNT, nll);
        for (uint32_t at = 0; at < COUNT; at += 40)
            assert_int_equal(stream_feed(cut.stream, tokens + at, 40), 0);
        assert_true(hash_of(&b) && hash_of(&b) == hash_of(&cut));
        struct fork *f = fork_of(&a, &memory[0]), *g = fork_of(&b, &memory[1]);
        for (uint32_t at = 0, n = 41; at < 43; at += n, n = 1) { /* single tokens, behind blocks */
            assert_int_equal(fork_feed(f, tokens + at, n), 0);
            assert_int_equal(fork_feed(g, tokens + at, n), 0);
        }
        printf("%u heads of %u, %u of keys: loss %.5f and %.5f, logits %.4f of their size apart\n",
               shapes[i].heads, shapes[i].head_dim, shapes[i].kv_heads, x, y, logits_apart(f, g));
        /* Larger logits than those of the usual shape, and fewer tokens. */
        assert_true(fabs(x - y) < 0.03 && logits_apart(f, g) < 0.1);
        fork_close(&f);
        fork_close(&g);
        free(memory[0]);
        free(memory[1]);
        drop(&a);
        drop(&b);
        drop(&cut);
        engine_close(&on[0]);
        engine_close(&on[1]);
    }
}

static void trouble_is_said(void **state)
{
    (void)state;
    static const struct {
        enum trouble trouble;
        size_t memory_bytes;
        int code;
        const char *says;
    } cases[] = {
        {NO_DEVICE, 0, -ENODEV, "no usable GPU"},
        {OLD_DEVICE, 0, -ENODEV, "older than compute capability"},
        {OTHER_DEVICE, 0, -ENODEV, "make CUDA_ARCH=86"},
        {FINE, 100 << 10, -ENOMEM, "no room for the weights"},
        {FINE, 8 << 20, -ENOMEM, "no room for"},
    };
    char error[400];
    int code;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        simt_trouble(cases[i].trouble, cases[i].memory_bytes);
        assert_null(engine_on(DEVICE_CUDA, error, sizeof error, &code));
        printf("%d: %s\n", code, error);
        assert_int_equal(code, cases[i].code);
        assert_non_null(strstr(error, cases[i].says));
    }
    simt_trouble(FINE, 0);
}

/* Where nothing is asked for: what is free, but for the libraries' share. */
static void the_arena_is_of_what_is_free(void **state)
{
    (void)state;
    enum { LEFT = 512 << 20 };
    char error[256] = "";
    int code;
    simt_trouble(FINE, 1 << 30); /* on a real one others take some meanwhile */
    struct engine *e =
        engine_of(DEVICE_CUDA, &TINY_DEFAULTS, WEIGHTS_BF16, 0, error, sizeof error, &code);
    if (!e)
        fail_msg("%d: %s", code, error);
    const struct gpu *g = e->gpu;
    size_t free_bytes = g->cuda->memory_bytes - g->cuda->memory_used(g->cuda);
    printf("%zu of %zu bytes\n", g->arena_bytes, free_bytes);
    assert_true(g->arena_bytes + LEFT <= free_bytes && g->arena_bytes + LEFT + 4096 > free_bytes);
    engine_close(&e);
}

/* Small ones before large ones, in an arena of two large ones and a fork: what is free is had, in
 * however many pieces it lies, and those that move for it go on as they were. */
static void streams_of_any_size_come_and_go(void **state)
{
    (void)state;
    enum { MORE = TINY_CHUNK + 64 };
    struct stream_options large = {.dmc_ratio = 1, .ring_segments = 4};
    char error[256];
    void *memory;
    int code;
    struct engine *e = engine_on(DEVICE_CUDA, error, sizeof error, &code);
    assert_non_null(e);
    size_t bytes = 2 * stream_device_bytes(e, &large) + fork_device_bytes(e, &large);
    assert_int_equal(gpu_arena(e->gpu, bytes, error, sizeof error), 0);
    struct held small[2] = {stream_of(e, 8, 2), stream_of(e, 8, 2)};
    drop(&small[0]);
    struct held first = stream_of(e, 1, 4), alone = stream_of(gpu, 1, 4);
    struct fork *f = fork_of(&first, &memory), *g;
    assert_int_equal(stream_feed(first.stream, tokens, MORE), 0);
    assert_int_equal(stream_feed(alone.stream, tokens, MORE), 0);
    drop(&small[1]);
    struct held second = stream_of(e, 1, 4);
    assert_int_equal(stream_feed(first.stream, tokens + MORE, MORE), 0);
    assert_int_equal(stream_feed(second.stream, tokens, 2 * MORE), 0);
    assert_int_equal(stream_feed(alone.stream, tokens + MORE, MORE), 0);
    assert_true(hash_of(&first) == hash_of(&alone) && hash_of(&second) == hash_of(&alone));
    assert_int_equal(fork_feed(f, tokens, 40), 0); /* of the beginning */
    fork_close(&f);
    free(memory);
    f = fork_of(&first, &memory);
    void *memory_alone;
    g = fork_of(&alone, &memory_alone);
    assert_int_equal(fork_feed(f, tokens, 40), 0);
    assert_int_equal(fork_feed(g, tokens, 40), 0);
    assert_memory_equal(fork_logits(f), fork_logits(g), gpu->shape.vocab * sizeof(float));
    fork_close(&f);
    fork_close(&g);
    free(memory);
    free(memory_alone);
    drop(&first);
    drop(&second);
    drop(&alone);
    engine_close(&e);
}

/* Pinned memory is of the plan: a checkpoint takes no more. */
static void states_are_read_into_what_was_planned(void **state)
{
    (void)state;
    char error[256];
    int code;
    struct engine *e = engine_on(DEVICE_CUDA, error, sizeof error, &code);
    assert_non_null(e);
    const char *before = e->gpu->state_host;
    assert_non_null(before);
    for (uint32_t ratio = 1; ratio <= 8; ratio *= 2) {
        struct held h = stream_of(e, ratio, 0);
        size_t bytes;
        assert_ptr_equal(stream_state(h.stream, &bytes), before);
        assert_true(bytes <= e->info.work_bytes);
        drop(&h);
    }
    engine_close(&e);
}

/* A CPU takes adapters of up to 96 slots. */
static void an_adapter_of_many_slots_is_refused(void **state)
{
    (void)state;
    struct engine_options options = {.device = DEVICE_CUDA};
    struct engine e = {.shape = gpu->shape, .gpu = calloc(1, sizeof *e.gpu)};
    char error[256] = "";
    e.shape.comp = 2 * CUDA_ITEM_ROWS;
    assert_int_equal(cuda_open(&e.gpu->cuda, error, sizeof error), 0);
    assert_int_equal(gpu_open(&e, &options, error, sizeof error), -ENOTSUP);
    printf("%s\n", error);
    assert_non_null(strstr(error, "64 slots"));
    gpu_close(&e);
}

/* A device that breaks says so from then on; what the stream had when it was last saved still
 * serves, on the CPU. */
static void a_broken_device_stays_broken(void **state)
{
    (void)state;
    char error[256];
    int code;
    struct engine *e = engine_on(DEVICE_CUDA, error, sizeof error, &code);
    assert_non_null(e);
    struct held h = stream_of(e, 2, 2), saved = stream_of(cpu, 2, 2);
    struct segment_view segment;
    size_t bytes;
    assert_int_equal(stream_feed(h.stream, tokens, 600), 0);
    const void *block = stream_state(h.stream, &bytes);
    assert_int_equal(stream_restore(saved.stream, block, bytes), 0);
    assert_true(stream_newest_segment(h.stream, &segment));
    simt_trouble(BROKEN, 0);
    assert_false(stream_newest_segment(h.stream, &segment)); /* of rows that never came */
    assert_int_equal(stream_feed(h.stream, tokens + 600, 64), -EIO);
    simt_trouble(FINE, 0);
    assert_int_equal(stream_feed(h.stream, tokens + 600, 64), -EIO);
    printf("%s\n", e->gpu->cuda->error_text);
    assert_non_null(strstr(e->gpu->cuda->error_text, "unspecified launch failure"));
    assert_null(stream_state(h.stream, &bytes));
    assert_int_equal(stream_feed(saved.stream, tokens + 600, 64), 0);
    drop(&h);
    drop(&saved);
    engine_close(&e);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_and_ratio_are_the_cpus),
        cmocka_unit_test(cuts_and_company_do_not_matter),
        cmocka_unit_test(small_passes_are_as_large_ones),
        cmocka_unit_test(threads_do_not_race),
        cmocka_unit_test(states_cross_over),
        cmocka_unit_test(forks_answer_as_the_cpus),
        cmocka_unit_test(forks_together),
        cmocka_unit_test(windows_as_long_as_the_context),
        cmocka_unit_test(other_shapes_are_the_cpus),
        cmocka_unit_test(trouble_is_said),
        cmocka_unit_test(the_arena_is_of_what_is_free),
        cmocka_unit_test(streams_of_any_size_come_and_go),
        cmocka_unit_test(states_are_read_into_what_was_planned),
        cmocka_unit_test(an_adapter_of_many_slots_is_refused),
        cmocka_unit_test(a_broken_device_stays_broken),
    };
    return cmocka_run_group_tests_name("gpu, emulated", tests, rig_set_up, rig_tear_down);
}
