/*
 * Golden vectors of the PyTorch code against the engine: decisions, segments, logits, NLL
 * (tests/golden/README.md).
 *
 * The tiny model's vectors are made at test time (SILT_GOLDEN_DIR), the real model's are committed
 * and need the model file (SILT_MODEL). What is absent is skipped with a word.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stream/internal.h"

/* What a comparison may differ by. `exact` is fp32 throughout, as PyTorch computes: it ties the
 * algorithm to the training code. The int8 activations that ingest runs with add a rounding of
 * their own, measured and bounded here, not hidden: over 1,536 tokens it is noise of either sign,
 * which one flipped decision in a repeated phrase can carry. */
struct bounds {
    double nll_mean;       /* nats a token, mean over the file */
    double near_tie;       /* |logit| under which rounding may turn a decision */
    double near_tie_share; /* of all decisions */
    double other_share;    /* turned farther from zero: what a rounded row before them moved */
    double segment_alike;  /* ||c - golden|| / ||golden||, worst chunk before any decision turned */
    double segment;        /* and behind one: a merge more or less moves entries of its run */
    double logit_rms;      /* of the top logits, root mean square */
    double fork;           /* worst logit of a fork */
};
static const struct bounds exact_bounds = {0.002, 0.01, 0.001, 2e-5, 0.004, 0.04, 0.02, 0.1};
static const struct bounds int8_bounds = {0.01, 0.05, 0.01, 0.004, 0.15, 0.15, 0.6, 1.5};

struct golden {
    uint8_t *file;
    uint32_t tokens_count, ratio, ring, chunk, comp, layers, kv_heads, dim, chunks, segment_layers,
        tops, decided, top;
    const int32_t *tokens;
    const float *nll;
    const uint32_t *segment_layer;
    const f16 *segments;
    const uint32_t *top_position;
    const int32_t *top_id;
    const float *top_logit;
    const uint8_t *a;
    const float *logit;
    uint32_t forks, asked;
    const uint32_t *fork_position;
    const int32_t *question, *fork_id;
    const float *fork_logit;
};

static const void *take(const uint8_t **at, size_t bytes)
{
    const uint8_t *here = *at;
    *at += (bytes + 3) & ~(size_t)3;
    return here;
}

static bool golden_read(struct golden *g, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    fseek(f, 0, SEEK_END);
    long bytes = ftell(f);
    rewind(f);
    g->file = malloc((size_t)bytes);
    assert_int_equal(fread(g->file, 1, (size_t)bytes, f), (size_t)bytes);
    fclose(f);
    uint32_t h[16];
    memcpy(h, g->file, sizeof h);
    assert_memory_equal(g->file, "SILTGOLD", 8);
    assert_int_equal(h[2], 2);
    uint32_t *to[] = {&g->tokens_count, &g->ratio,    &g->ring, &g->chunk,  &g->comp,
                      &g->layers,       &g->kv_heads, &g->dim,  &g->chunks, &g->segment_layers,
                      &g->tops,         &g->decided,  &g->top};
    for (size_t i = 0; i < sizeof to / sizeof *to; i++)
        *to[i] = h[3 + i];
    const uint8_t *at = g->file + 80;
    size_t n = g->tokens_count, columns = (size_t)g->layers * g->kv_heads;
    g->tokens = take(&at, n * 4);
    g->nll = take(&at, n * 4);
    g->segment_layer = take(&at, g->segment_layers * 4);
    g->segments =
        take(&at, (size_t)g->chunks * g->segment_layers * g->kv_heads * g->comp * 2 * g->dim * 2);
    g->top_position = take(&at, g->tops * 4);
    g->top_id = take(&at, (size_t)g->tops * g->top * 4);
    g->top_logit = take(&at, (size_t)g->tops * g->top * 4);
    if (g->decided) {
        g->a = take(&at, n * columns);
        g->logit = take(&at, n * columns * 4);
    }
    g->forks = *(const uint32_t *)take(&at, 4);
    g->asked = *(const uint32_t *)take(&at, 4);
    g->fork_position = take(&at, g->forks * 4);
    g->question = take(&at, g->asked * 4);
    g->fork_id = take(&at, (size_t)g->forks * g->top * 4);
    g->fork_logit = take(&at, (size_t)g->forks * g->top * 4);
    assert_int_equal(at - g->file, bytes);
    return true;
}

struct found {
    double nll_difference, nll_worst, segment_alike, segment_error, logit_squares, logit_worst,
        fork_error;
    double *segment_errors; /* [chunks] */
    uint64_t logits, decisions, near_ties, followed, wrong;
    uint32_t first_turned; /* the first chunk with a decision that turned; chunks if none */
};

static void compare_segment(const struct golden *g, const struct engine *e, uint32_t chunk,
                            struct found *found)
{
    size_t slots = (size_t)g->kv_heads * g->comp * 2 * g->dim;
    double error = 0, norm = 0;
    for (uint32_t s = 0; s < g->segment_layers; s++) {
        const f16 *want = g->segments + ((size_t)chunk * g->segment_layers + s) * slots;
        const f16 *have = e->segment + g->segment_layer[s] * slots;
        for (size_t i = 0; i < slots; i++) {
            double w = (double)f16_to_f32(want[i]), d = (double)f16_to_f32(have[i]) - w;
            error += d * d;
            norm += w * w;
        }
    }
    found->segment_errors[chunk] = sqrt(error / norm);
}

static void compare_logits(const struct golden *g, struct engine *e, uint32_t block,
                           struct found *found)
{
    float *logits = malloc(e->shape.vocab * sizeof *logits);
    for (uint32_t p = 0; p < g->tops; p++) {
        uint32_t row = g->top_position[p] - block;
        if (g->top_position[p] < block || row >= STREAM_BLOCK_TOKENS)
            continue;
        forward_logits(e, row, 1, logits);
        for (uint32_t i = 0; i < g->top; i++) {
            size_t at = (size_t)p * g->top + i;
            double d = fabs((double)logits[g->top_id[at]] - (double)g->top_logit[at]);
            found->logit_squares += d * d;
            found->logits++;
            if (d > found->logit_worst)
                found->logit_worst = d;
        }
    }
    free(logits);
}

static void name(const char *what, const struct golden *g, const struct forward_trace *t, size_t i)
{
    size_t columns = (size_t)g->layers * g->kv_heads;
    printf("  %s: token %zu layer %zu head %zu, logit %+.4f here, %+.4f in PyTorch\n", what,
           i / columns, i % columns / g->kv_heads, i % g->kv_heads, (double)t->logit[i],
           (double)g->logit[i]);
}

/* A head that has appended once more or less than PyTorch's meets its quota at another token: such
 * a difference, logits alike, follows from one before it in the chunk. */
static void compare_decisions(const struct golden *g, const struct forward_trace *t,
                              const struct bounds *bounds, struct found *found)
{
    size_t columns = (size_t)g->layers * g->kv_heads;
    uint32_t *differs =
        calloc(columns, sizeof *differs); /* [columns] chunk + 1 of the newest difference */
    assert_int_equal(t->rows, g->tokens_count);
    for (size_t i = 0; i < t->rows * columns; i++) {
        uint32_t chunk = (uint32_t)(i / columns / g->chunk) + 1, *before = &differs[i % columns];
        found->decisions++;
        if (t->merged[i] == g->a[i])
            continue;
        if (chunk - 1 < found->first_turned)
            found->first_turned = chunk - 1;
        if (fabs((double)g->logit[i]) < bounds->near_tie ||
            fabs((double)t->logit[i]) < bounds->near_tie) {
            if (found->near_ties++ < 4)
                name("near-tie", g, t, i);
        } else if (*before == chunk && (t->logit[i] > 0) == (g->logit[i] > 0)) {
            found->followed++;
        } else if (found->wrong++ < 4) {
            name("differs", g, t, i);
        }
        *before = chunk;
    }
    free(differs);
}

static void run_stream(const struct golden *g, struct engine *e, const struct bounds *bounds,
                       struct found *found)
{
    struct stream_options options = {.dmc_ratio = g->ratio, .ring_segments = g->ring};
    size_t bytes = stream_bytes(e, &options, NULL, 0), columns = (size_t)g->layers * g->kv_heads;
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    struct forward_trace trace = {.rows_max = g->tokens_count};
    struct stream *stream;
    float nll[STREAM_BLOCK_TOKENS];
    double sum = 0;
    found->first_turned = g->chunks;
    found->segment_errors = calloc(g->chunks, sizeof(double));
    trace.merged = calloc(g->tokens_count, columns);
    trace.logit = calloc(g->tokens_count * columns, sizeof(float));
    e->trace = g->decided ? &trace : NULL;
    assert_int_equal(stream_open(&stream, e, &options, memory, bytes), 0);
    for (uint32_t at = 0; at < g->tokens_count; at += STREAM_BLOCK_TOKENS) {
        int32_t targets[STREAM_BLOCK_TOKENS];
        for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS; i++)
            targets[i] = at + i + 1 < g->tokens_count ? g->tokens[at + i + 1] : -1;
        bool closes = (at + STREAM_BLOCK_TOKENS) % g->chunk == 0;
        assert_int_equal(stream_score(stream, g->tokens + at, targets, STREAM_BLOCK_TOKENS, nll),
                         0);
        if (!closes) /* the COMP pass has replaced the block's hidden rows */
            compare_logits(g, e, at, found);
        else
            compare_segment(g, e, at / g->chunk, found);
        for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS && targets[i] >= 0; i++) {
            double d = (double)nll[i] - (double)g->nll[at + i + 1];
            sum += d;
            found->nll_worst = fmax(found->nll_worst, fabs(d));
        }
    }
    found->nll_difference = sum / (g->tokens_count - 1);
    if (g->decided)
        compare_decisions(g, &trace, bounds, found);
    for (uint32_t c = 0; c < g->chunks; c++) {
        double *worst = c < found->first_turned ? &found->segment_alike : &found->segment_error;
        *worst = fmax(*worst, found->segment_errors[c]);
    }
    free(found->segment_errors);
    e->trace = NULL;
    stream_close(&stream);
    free(trace.merged);
    free(trace.logit);
    free(memory);
}

/* The file's question in a fork at each of its positions, of one stream that goes on. */
static void run_forks(const struct golden *g, struct engine *e, struct found *found)
{
    struct stream_options options = {.dmc_ratio = g->ratio, .ring_segments = g->ring};
    size_t bytes = stream_bytes(e, &options, NULL, 0), more = fork_bytes(e, &options);
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    void *fork_memory = aligned_alloc(64, (more + 63) & ~(size_t)63);
    struct stream *stream;
    uint32_t fed = 0;
    assert_int_equal(stream_open(&stream, e, &options, memory, bytes), 0);
    for (uint32_t f = 0; f < g->forks; f++) {
        struct fork *fork;
        assert_int_equal(stream_feed(stream, g->tokens + fed, g->fork_position[f] - fed), 0);
        fed = g->fork_position[f];
        assert_int_equal(fork_open(&fork, stream, fork_memory, more), 0);
        assert_int_equal(fork_position(fork), fed);
        assert_int_equal(fork_feed(fork, g->question, g->asked), 0);
        for (uint32_t i = 0; i < g->top; i++) {
            size_t at = (size_t)f * g->top + i;
            double d = fabs((double)fork_logits(fork)[g->fork_id[at]] - (double)g->fork_logit[at]);
            found->fork_error = fmax(found->fork_error, d);
        }
        fork_close(&fork);
    }
    stream_close(&stream);
    free(memory);
    free(fork_memory);
}

static void golden_matches(const char *model, const char *adapter, const char *path,
                           uint32_t features, bool exact)
{
    const struct bounds *bounds = exact ? &exact_bounds : &int8_bounds;
    struct golden g = {0};
    if (access(model, R_OK) || access(adapter, R_OK) || !golden_read(&g, path)) {
        printf("skip: %s, its model or its adapter is not here (make model; build/golden is made "
               "by make test)\n",
               path);
        skip();
    }
    struct engine_options options = {
        .model_path = model, .adapter_path = adapter, .feature_mask = features, .exact = exact};
    char error[256] = "";
    struct engine *e;
    struct found found = {0};
    int code = engine_open(&e, &options, error, sizeof error);
    if (code)
        printf("engine_open: %s\n", error);
    assert_int_equal(code, 0);
    run_stream(&g, e, bounds, &found);
    run_forks(&g, e, &found);
    double logit_rms = sqrt(found.logit_squares / (double)(found.logits + !found.logits));
    printf("%s, %s kernels, %s: NLL differs by %+.5f nats/token in the mean (worst token %.3f), "
           "segments by %.4f and, behind a decision that turned, %.4f, top logits by %.4f (worst "
           "%.3f), of %u forks by %.3f; %llu "
           "decisions, %llu near-ties, %llu that follow from one, "
           "%llu others\n",
           path, e->info.kernels_name, exact ? "fp32" : "as it runs", found.nll_difference,
           found.nll_worst, found.segment_alike, found.segment_error, logit_rms, found.logit_worst,
           g.forks, found.fork_error, (unsigned long long)found.decisions,
           (unsigned long long)found.near_ties, (unsigned long long)found.followed,
           (unsigned long long)found.wrong);
    assert_true(fabs(found.nll_difference) <= bounds->nll_mean);
    assert_true(found.segment_alike <= bounds->segment_alike);
    assert_true(found.segment_error <= bounds->segment);
    assert_true(logit_rms <= bounds->logit_rms);
    assert_true(found.fork_error <= bounds->fork);
    assert_true((double)found.wrong <= bounds->other_share * (double)found.decisions);
    assert_true((double)found.near_ties <= bounds->near_tie_share * (double)found.decisions + 1);
    engine_close(&e);
    free(g.file);
}

static void tiny(const char *name, uint32_t features)
{
    const char *folder = getenv("SILT_GOLDEN_DIR") ? getenv("SILT_GOLDEN_DIR") : "build/golden";
    char model[512], adapter[512], path[512];
    snprintf(model, sizeof model, "%s/tiny.gguf", folder);
    snprintf(adapter, sizeof adapter, "%s/tiny.adapter.gguf", folder);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    golden_matches(model, adapter, path, features, true); /* its weights are fp32 anyway */
}

static void real(const char *name, bool exact)
{
    const char *model = getenv("SILT_MODEL") ? getenv("SILT_MODEL")
                                             : "build/models/smollm2-135m-instruct-q4_1.gguf";
    char path[512];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    golden_matches(model, "stream/adapters/smollm2-135m-instruct.gguf", path, UINT32_MAX, exact);
}

static void tiny_1x_reference(void **state)
{
    (void)state;
    tiny("tiny.r1.golden", 0);
}

static void tiny_4x_reference(void **state)
{
    (void)state;
    tiny("tiny.r4.golden", 0);
}

static void tiny_1x_best(void **state)
{
    (void)state;
    tiny("tiny.r1.golden", UINT32_MAX);
}

static void tiny_4x_best(void **state)
{
    (void)state;
    tiny("tiny.r4.golden", UINT32_MAX);
}

static void real_1x_exact(void **state)
{
    (void)state;
    real("smollm2-135m-instruct.r1.golden", true);
}

static void real_4x_exact(void **state)
{
    (void)state;
    real("smollm2-135m-instruct.r4.golden", true);
}

static void real_1x_as_it_runs(void **state)
{
    (void)state;
    real("smollm2-135m-instruct.r1.golden", false);
}

static void real_4x_as_it_runs(void **state)
{
    (void)state;
    real("smollm2-135m-instruct.r4.golden", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_1x_reference),  cmocka_unit_test(tiny_4x_reference),
        cmocka_unit_test(tiny_1x_best),       cmocka_unit_test(tiny_4x_best),
        cmocka_unit_test(real_1x_exact),      cmocka_unit_test(real_4x_exact),
        cmocka_unit_test(real_1x_as_it_runs), cmocka_unit_test(real_4x_as_it_runs),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
