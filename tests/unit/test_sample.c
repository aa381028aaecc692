/* Sampling against known distributions, and stop strings over pieces. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "stream/stream.h"

enum { VOCAB = 8, DRAWS = 40000 };

/* Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 in a scrambled order, three that never come. */
static const float probability[VOCAB] = {0.1f, 0.0f, 0.4f, 0.05f, 0.0f, 0.3f, 0.15f, 0.0f};
static float logits[VOCAB];

static const struct sample_options plain = {
    .temperature = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.0f, .seed = 42};

static int setup(void **state)
{
    (void)state;
    for (int i = 0; i < VOCAB; i++)
        logits[i] = probability[i] > 0.0f ? logf(probability[i]) + 3.0f : -INFINITY;
    return 0;
}

static void draw(const struct sample_options *options, const int32_t *recent, uint32_t recent_count,
                 double share[static VOCAB])
{
    struct sampler sampler;
    struct sample_candidate scratch[VOCAB];
    memset(share, 0, VOCAB * sizeof *share);
    sampler_init(&sampler, options);
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = sample_token(&sampler, logits, VOCAB, recent, recent_count, scratch);
        assert_in_range(id, 0, VOCAB - 1);
        share[id] += 1.0 / DRAWS;
    }
}

/* Every token's share within five standard deviations of what is wanted. */
static void expect_shares(const double share[static VOCAB], const double wanted[static VOCAB])
{
    for (int i = 0; i < VOCAB; i++) {
        double deviation = sqrt(wanted[i] * (1.0 - wanted[i]) / DRAWS);
        if (fabs(share[i] - wanted[i]) > 5.0 * deviation + 1e-9)
            fail_msg("token %d: %.4f, wanted %.4f", i, share[i], wanted[i]);
    }
}

static void test_plain(void **state)
{
    (void)state;
    double share[VOCAB];
    draw(&plain, NULL, 0, share);
    expect_shares(share, (double[VOCAB]){0.1, 0, 0.4, 0.05, 0, 0.3, 0.15, 0});
}

static void test_temperature(void **state)
{
    (void)state;
    double share[VOCAB], wanted[VOCAB], total = 0.0;
    struct sample_options options = plain;
    options.temperature = 2.0f;
    for (int i = 0; i < VOCAB; i++)
        total += wanted[i] = sqrt((double)probability[i]);
    for (int i = 0; i < VOCAB; i++)
        wanted[i] /= total;
    draw(&options, NULL, 0, share);
    expect_shares(share, wanted);
}

static void test_filters(void **state)
{
    (void)state;
    double share[VOCAB];
    struct sample_options options = plain;
    options.top_k = 2;
    draw(&options, NULL, 0, share);
    expect_shares(share, (double[VOCAB]){0, 0, 4.0 / 7, 0, 0, 3.0 / 7, 0, 0});
    options = plain;
    options.top_p = 0.8f; /* 0.4 + 0.3 fall short, with 0.15 it is reached */
    draw(&options, NULL, 0, share);
    expect_shares(share, (double[VOCAB]){0, 0, 0.4 / 0.85, 0, 0, 0.3 / 0.85, 0.15 / 0.85, 0});
    options = plain;
    options.min_p = 0.3f; /* at least 0.12 */
    draw(&options, NULL, 0, share);
    expect_shares(share, (double[VOCAB]){0, 0, 0.4 / 0.85, 0, 0, 0.3 / 0.85, 0.15 / 0.85, 0});
    options = plain;
    options.top_k = 3;
    options.top_p = 0.8f; /* of 0.85: 0.4 + 0.3 are enough */
    draw(&options, NULL, 0, share);
    expect_shares(share, (double[VOCAB]){0, 0, 4.0 / 7, 0, 0, 3.0 / 7, 0, 0});
    options = plain;
    options.top_p = 0.0f; /* the best alone */
    draw(&options, NULL, 0, share);
    expect_shares(share, (double[VOCAB]){0, 0, 1, 0, 0, 0, 0, 0});
}

static void test_greedy_and_penalty(void **state)
{
    (void)state;
    struct sampler sampler;
    struct sample_candidate scratch[VOCAB];
    struct sample_options options = plain;
    options.temperature = 0.0f;
    sampler_init(&sampler, &options);
    assert_int_equal(sample_token(&sampler, logits, VOCAB, NULL, 0, scratch), 2);
    options.repeat_penalty = 1.5f;
    sampler_init(&sampler, &options);
    /* Said twice is punished once; tokens out of range do no harm. */
    const int32_t recent[] = {2, 2, -5, 1000};
    assert_int_equal(sample_token(&sampler, logits, VOCAB, recent, 4, scratch), 5);
    float equal[VOCAB] = {0}, none[VOCAB];
    assert_int_equal(sample_token(&sampler, equal, VOCAB, NULL, 0, scratch), 0);
    for (int i = 0; i < VOCAB; i++)
        none[i] = NAN;
    options.temperature = 1.0f;
    sampler_init(&sampler, &options);
    assert_int_equal(sample_token(&sampler, none, VOCAB, recent, 4, scratch), 0);
}

static void test_seed(void **state)
{
    (void)state;
    struct sampler a, b, c;
    struct sample_candidate scratch[VOCAB];
    struct sample_options options = plain;
    int differ = 0;
    sampler_init(&a, &options);
    sampler_init(&b, &options);
    options.seed = 43;
    sampler_init(&c, &options);
    for (int i = 0; i < 200; i++) {
        int32_t id = sample_token(&a, logits, VOCAB, NULL, 0, scratch);
        assert_int_equal(id, sample_token(&b, logits, VOCAB, NULL, 0, scratch));
        differ += id != sample_token(&c, logits, VOCAB, NULL, 0, scratch);
    }
    assert_true(differ > 20);
}

static void stop_add(struct stop_strings *stop, const char *text)
{
    stop->bytes[stop->count] = (uint32_t)strlen(text);
    memcpy(stop->text[stop->count++], text, strlen(text));
}

/* Feeds a text in pieces of one size; what was shown and whether it stopped. */
static bool stop_run(struct stop_strings stop, const char *text, size_t piece,
                     char shown[static 256])
{
    uint8_t out[256 + STOP_BYTES_MAX];
    size_t bytes, total = 0, length = strlen(text);
    for (size_t at = 0; at < length; at += piece) {
        size_t count = length - at < piece ? length - at : piece;
        bool met = stop_feed(&stop, (const uint8_t *)text + at, count, out, &bytes);
        memcpy(shown + total, out, bytes);
        total += bytes;
        shown[total] = 0;
        if (met)
            return true;
    }
    total += stop_flush(&stop, (uint8_t *)shown + total);
    shown[total] = 0;
    return false;
}

static void test_stop(void **state)
{
    (void)state;
    static const struct {
        const char *text, *shown;
        bool met;
    } cases[] = {
        {"hello world", "hello world", false},
        {"hello ENDING", "hello ", true},
        {"ENDEN\nQ", "ENDEN\nQ", false},
        {"aENENDI", "aENENDI", false},
        {"aENENDING", "aEN", true},
        {"line\n\nQ: next", "line", true},
        {"line\n\n\nQ:", "line\n", true},
        {"\n\nQ:", "", true},
        {"tail EN", "tail EN", false},
        {"", "", false},
    };
    struct stop_strings stop = {0};
    char shown[256] = "";
    stop_add(&stop, "ENDING");
    stop_add(&stop, "\n\nQ:");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t piece = 1; piece < 13; piece++) {
            shown[0] = 0;
            assert_int_equal(stop_run(stop, cases[i].text, piece, shown), cases[i].met);
            assert_string_equal(shown, cases[i].shown);
        }
    }
    struct stop_strings none = {0};
    assert_false(stop_run(none, "anything", 3, shown));
    assert_string_equal(shown, "anything");
}

/* Nothing is held longer than it must be, and the longest stop string fits. */
static void test_stop_held(void **state)
{
    (void)state;
    struct stop_strings stop = {0};
    uint8_t out[256];
    size_t bytes;
    memset(stop.text[0], 'x', STOP_BYTES_MAX);
    stop.bytes[0] = STOP_BYTES_MAX;
    stop.count = 1;
    for (int i = 1; i < STOP_BYTES_MAX; i++) {
        assert_false(stop_feed(&stop, (const uint8_t *)"x", 1, out, &bytes));
        assert_int_equal(bytes, 0);
    }
    assert_false(stop_feed(&stop, (const uint8_t *)"y", 1, out, &bytes));
    assert_int_equal(bytes, STOP_BYTES_MAX);
    assert_int_equal(stop.held_bytes, 0);
    for (int i = 1; i < STOP_BYTES_MAX; i++)
        assert_false(stop_feed(&stop, (const uint8_t *)"x", 1, out, &bytes));
    assert_true(stop_feed(&stop, (const uint8_t *)"x", 1, out, &bytes));
    assert_int_equal(bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),     cmocka_unit_test(test_temperature),
        cmocka_unit_test(test_filters),   cmocka_unit_test(test_greedy_and_penalty),
        cmocka_unit_test(test_seed),      cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_held),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
