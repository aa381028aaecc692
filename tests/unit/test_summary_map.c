/*
 * An adapter's map of the summary: what queries see of it, that nothing else changes, and that a
 * map which is not whole is refused.
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
#include <unistd.h>

#include "tests/unit/stream_rig.h"

enum { RING = 2, TOKENS = 5 * TINY_CHUNK, HEADS = TINY_LAYERS * TINY_KV_HEADS };
enum { SLOTS = TINY_COMP * 2 * TINY_HEAD_DIM }; /* values of a head's segment */

static struct engine *engine; /* of a random map */
static int32_t tokens[TOKENS];
static const uint32_t masks[] = {0, FEATURE_AVX2, UINT32_MAX};

static struct engine *engine_with(const char *adapter, uint32_t threads, uint32_t mask)
{
    return stream_rig_engine(
        (struct engine_options){.adapter_path = adapter, .threads = threads, .feature_mask = mask});
}

static int set_up(void **state)
{
    (void)state;
    struct tiny_options options = TINY_DEFAULTS;
    options.map = TINY_MAP_RANDOM;
    if (stream_rig_write(&options))
        return -1;
    engine = engine_with(stream_rig_adapter, 2, UINT32_MAX);
    stream_rig_tokens(engine, tokens, TOKENS);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    stream_rig_tear_down(&engine);
    return 0;
}

/* x + W x + b of one slot, x [TINY_HEAD_DIM], as the adapter's file says. */
static void mapped(const struct engine *e, uint32_t head, bool value, const float *x, double *out)
{
    char name[64];
    float row[TINY_HEAD_DIM], bias[2 * TINY_KV_HEADS * TINY_HEAD_DIM];
    uint32_t part = head % TINY_KV_HEADS + (value ? TINY_KV_HEADS : 0);
    snprintf(name, sizeof name, "blk.%u.summary", head / TINY_KV_HEADS);
    const struct gguf_tensor *w = gguf_tensor(e->adapter, name);
    snprintf(name, sizeof name, "blk.%u.summary.bias", head / TINY_KV_HEADS);
    const struct gguf_tensor *b = gguf_tensor(e->adapter, name);
    size_t row_bytes = tensor_row_bytes(w->type, TINY_HEAD_DIM);
    tensor_row(bias, b->data, b->type, 2 * TINY_KV_HEADS * TINY_HEAD_DIM);
    for (uint32_t i = 0; i < TINY_HEAD_DIM; i++) {
        size_t at = part * TINY_HEAD_DIM + i;
        tensor_row(row, (const char *)w->data + at * row_bytes, w->type, TINY_HEAD_DIM);
        out[i] = (double)x[i] + (double)bias[at];
        for (uint32_t j = 0; j < TINY_HEAD_DIM; j++)
            out[i] += (double)row[j] * (double)x[j];
    }
}

static void near(const char *what, uint32_t head, uint32_t slot, f16 got, double want, double slack)
{
    if (!(fabs((double)f16_to_f32(got) - want) <= slack))
        fail_msg("%s of head %u, slot %u: %g, not %g", what, head, slot, (double)f16_to_f32(got),
                 want);
}

/* All rows of the summary that queries of the stream see. */
static void rows_are_mapped(const struct stream *s, uint32_t recalled)
{
    const double half = 0x1p-11;
    const struct layout *l = &s->layout;
    int64_t at = ccm_ring_start(s->engine, s->state) - (int64_t)recalled * TINY_CHUNK - TINY_COMP;
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t slot = 0; slot < TINY_COMP; slot++) {
            const float *mean = STATE_AT_CONST(s->state, l->summary, float) + h * SLOTS +
                                (size_t)slot * 2 * TINY_HEAD_DIM;
            size_t row = ((size_t)h * l->fixed_rows + slot) * TINY_HEAD_DIM;
            const f16 *key = STATE_AT_CONST(s->state, l->fixed_k, f16) + row;
            const f16 *value = STATE_AT_CONST(s->state, l->fixed_v, f16) + row;
            float turn[TINY_HEAD_DIM];
            double k[TINY_HEAD_DIM], v[TINY_HEAD_DIM];
            mapped(s->engine, h, false, mean, k);
            mapped(s->engine, h, true, mean + TINY_HEAD_DIM, v);
            rotation_row(s->engine, at + slot, turn);
            for (uint32_t i = 0; i < TINY_HEAD_DIM; i += 2) {
                double c = (double)turn[i], n = (double)turn[i + 1];
                double slack = 2 * half * (fabs(k[i]) + fabs(k[i + 1])) + 1e-5;
                near("key", h, slot, key[i], k[i] * c - k[i + 1] * n, slack);
                near("key", h, slot, key[i + 1], k[i] * n + k[i + 1] * c, slack);
                near("value", h, slot, value[i], v[i], half * fabs(v[i]) + 1e-5);
                near("value", h, slot, value[i + 1], v[i + 1], half * fabs(v[i + 1]) + 1e-5);
            }
        }
}

static void queries_see_the_map(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof masks / sizeof *masks; m++) {
        struct engine *e = engine_with(stream_rig_adapter, 1, masks[m]);
        struct held_stream h = stream_rig_open(e, 1u << m, RING);
        for (uint32_t at = 0; at < TOKENS; at += TINY_CHUNK) {
            assert_int_equal(stream_feed(h.stream, tokens + at, TINY_CHUNK), 0);
            if (h.stream->state->summary_count)
                rows_are_mapped(h.stream, 0);
        }
        stream_rig_close(&h);
        engine_close(&e);
    }
}

/* A question's recalled segments move the summary: it is mapped there too. */
static void recall_keeps_the_map(void **state)
{
    (void)state;
    static f16 rows[HEADS * SLOTS];
    struct held_stream h = stream_rig_open(engine, 1, RING);
    struct stream_options options = {.dmc_ratio = 1, .ring_segments = RING};
    struct cold_segment cold = {.number = 1, .rows = rows};
    size_t bytes = fork_bytes(engine, &options);
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    struct fork *fork;
    assert_int_equal(stream_feed(h.stream, tokens, TOKENS), 0);
    assert_int_equal(fork_open(&fork, h.stream, memory, bytes), 0);
    rows_are_mapped(&fork->stream, 0);
    assert_int_equal(fork_recall(fork, &cold, 1), 0);
    rows_are_mapped(&fork->stream, 1);
    rows_are_mapped(h.stream, 0);
    fork_close(&fork);
    free(memory);
    stream_rig_close(&h);
}

static void keep_segment(void *user, const struct segment_view *segment)
{
    assert_int_equal(segment->rows_bytes, HEADS * SLOTS * sizeof(f16));
    memcpy(user, segment->rows, segment->rows_bytes);
}

/* What is kept is the mean of segments as they were made: of the first, itself. */
static void the_mean_stays_as_it_is(void **state)
{
    (void)state;
    static f16 left[HEADS * SLOTS];
    struct held_stream h = stream_rig_open(engine, 2, RING);
    stream_on_segment_leave(h.stream, keep_segment, left);
    assert_int_equal(stream_feed(h.stream, tokens, (RING + 1) * TINY_CHUNK), 0);
    assert_int_equal(h.stream->state->summary_count, 1);
    const float *mean = STATE_AT_CONST(h.stream->state, h.stream->layout.summary, float);
    for (size_t i = 0; i < HEADS * SLOTS; i++)
        assert_true(mean[i] == f16_to_f32(left[i]));
    stream_rig_close(&h);
}

/* The state but for its header, and what text behind it costs. */
static void remember(struct engine *e, char **memory, size_t *bytes, float *nll)
{
    struct held_stream h = stream_rig_open(e, 2, RING);
    size_t from = h.stream->layout.capacity;
    assert_int_equal(stream_score(h.stream, tokens, tokens + 1, TOKENS - TINY_CHUNK, nll), 0);
    const char *now = stream_state(h.stream, bytes);
    *bytes -= from;
    *memory = malloc(*bytes);
    memcpy(*memory, now + from, *bytes);
    stream_rig_close(&h);
}

static void a_map_of_zeros_is_none(void **state)
{
    (void)state;
    static const enum tiny_map maps[] = {TINY_MAP_NONE, TINY_MAP_ZERO, TINY_MAP_RANDOM};
    static float nll[3][TOKENS];
    char path[96], *memory[3];
    size_t bytes[3];
    snprintf(path, sizeof path, "%s.other", stream_rig_adapter);
    for (size_t m = 0; m < sizeof masks / sizeof *masks; m++) {
        for (int i = 0; i < 3; i++) {
            struct tiny_options options = TINY_DEFAULTS;
            options.map = maps[i];
            options.lora_type = m == 1 ? TENSOR_F32 : TENSOR_F16;
            assert_int_equal(tiny_adapter_write(path, stream_rig_model, &options), 0);
            struct engine *e = engine_with(path, 1, masks[m]);
            remember(e, &memory[i], &bytes[i], nll[i]);
            engine_close(&e);
        }
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(memory[0], memory[1], bytes[0]);
        assert_memory_equal(nll[0], nll[1], sizeof nll[0]);
        assert_memory_not_equal(memory[0], memory[2], bytes[0]);
        size_t same = (RING + 1) * TINY_CHUNK; /* no summary yet */
        assert_memory_equal(nll[0], nll[2], same * sizeof nll[0][0]);
        assert_memory_not_equal(nll[0] + same, nll[2] + same, TINY_CHUNK * sizeof nll[0][0]);
        for (int i = 0; i < 3; i++)
            free(memory[i]);
    }
    unlink(path);
}

static void cuts_and_threads_do_not_matter(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof masks / sizeof *masks; m++) {
        uint64_t first = 0;
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            struct engine *e = engine_with(stream_rig_adapter, threads, masks[m]);
            struct held_stream h = stream_rig_open(e, 2, RING);
            for (uint32_t at = 0, step; at < TOKENS; at += step) {
                step = threads * 107 < TOKENS - at ? threads * 107 : TOKENS - at;
                assert_int_equal(stream_feed(h.stream, tokens + at, step), 0);
            }
            uint64_t hash = stream_rig_stat(&h).memory_hash;
            first = first ? first : hash;
            assert_true(hash && hash == first);
            stream_rig_close(&h);
            engine_close(&e);
        }
    }
}

/* ---- files ---- */

static void write_at(const char *path, off_t at, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

/* Where a tensor's entry in the file's table begins with its name, and where its values do. */
static off_t find_tensor(const char *path, const char *name, off_t *values)
{
    struct gguf *file;
    char error[256], entry[64];
    size_t bytes;
    uint64_t length = strlen(name);
    assert_int_equal(gguf_open(&file, path, error, sizeof error), 0);
    const char *map = gguf_map(file, &bytes);
    memcpy(entry, &length, sizeof length);
    memcpy(entry + sizeof length, name, length);
    const char *at = memmem(map, bytes, entry, sizeof length + length);
    assert_non_null(at);
    off_t place = at - map + (off_t)sizeof length;
    *values = (const char *)gguf_tensor(file, name)->data - map;
    gguf_close(&file);
    return place;
}

static void refused(const char *path, const char *word, const char *also)
{
    struct engine_options options = {
        .model_path = stream_rig_model, .adapter_path = path, .threads = 1};
    struct engine *e;
    char error[400] = "";
    assert_int_equal(engine_open(&e, &options, error, sizeof error), -EBADMSG);
    if (!strstr(error, word) || !strstr(error, also))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", error, word, also);
}

static void what_is_not_whole_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *hidden[2], *word, *also;
    } missing[] = {
        {{"blk.2.summary", "blk.2.summary.bias"}, "blk.2 has no map", "blk.0 has one"},
        {{"blk.0.summary", "blk.0.summary.bias"}, "blk.1 has a map", "blk.0 has none"},
        {{"blk.1.summary.bias", NULL}, "no tensor", "'blk.1.summary.bias'"},
        {{"blk.0.summary", NULL}, "no tensor", "'blk.0.summary'"},
    };
    static const char *const names[] = {"blk.3.summary", "blk.1.summary.bias"};
    const uint64_t dim[2] = {TINY_HEAD_DIM * 2, TINY_KV_HEADS * TINY_HEAD_DIM};
    const uint32_t nan = 0x7fc07fff; /* as f16 and as fp32 */
    struct tiny_options options = TINY_DEFAULTS;
    char path[96];
    off_t values;
    options.map = TINY_MAP_RANDOM;
    snprintf(path, sizeof path, "%s.other", stream_rig_adapter);
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        assert_int_equal(tiny_adapter_write(path, stream_rig_model, &options), 0);
        for (int n = 0; n < 2 && missing[i].hidden[n]; n++)
            write_at(path, find_tensor(path, missing[i].hidden[n], &values), "BLK", 3);
        refused(path, missing[i].word, missing[i].also);
    }
    assert_int_equal(tiny_adapter_write(path, stream_rig_model, &options), 0);
    off_t at = find_tensor(path, names[0], &values) + (off_t)strlen(names[0]);
    write_at(path, at + (off_t)sizeof(uint32_t), dim, sizeof dim);
    refused(path, "'blk.3.summary' is 64 x 64", "128 x 32 is needed");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(tiny_adapter_write(path, stream_rig_model, &options), 0);
        (void)find_tensor(path, names[i], &values);
        write_at(path, values + 40, &nan, sizeof nan);
        refused(path, names[i], "no number");
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queries_see_the_map),
        cmocka_unit_test(recall_keeps_the_map),
        cmocka_unit_test(the_mean_stays_as_it_is),
        cmocka_unit_test(a_map_of_zeros_is_none),
        cmocka_unit_test(cuts_and_threads_do_not_matter),
        cmocka_unit_test(what_is_not_whole_is_refused),
    };
    return cmocka_run_group_tests_name("summary map", tests, set_up, tear_down);
}
