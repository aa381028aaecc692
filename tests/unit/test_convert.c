/* Captions and transcripts: the text does not depend on how the input was cut, whatever the input;
 * times are read for what they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "clients/silt/convert.h"
#include "clients/silt/stamp.h"

enum { INPUT_BYTES = 20000, ROUNDS = 60 };

static uint64_t seed = 1;

static uint32_t below(uint32_t most)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % most;
}

/* Lines of all formats in a wild order, and bytes of none. */
static size_t wild(uint8_t *out)
{
    static const char *const lines[] = {"WEBVTT",
                                        "NOTE what",
                                        "1",
                                        "00:01.000 --> 00:02.000",
                                        "01:02:03,500 --> 01:02:04,000",
                                        "<v Ann Lee>Good <i>day</i> &amp; so",
                                        "{\\an8}up",
                                        "<v",
                                        "&",
                                        "<",
                                        "-->",
                                        "",
                                        "",
                                        "\r",
                                        "[0:01:02] Ann: hi",
                                        "Ann (00:03): hi",
                                        "Bob Ray  4:05",
                                        "Ann: at 12:30",
                                        "99:99:99 x"};
    size_t bytes = 0;

    while (bytes < INPUT_BYTES - 300) {
        const char *line = lines[below(sizeof lines / sizeof *lines)];

        memcpy(out + bytes, line, strlen(line));
        bytes += strlen(line);
        if (!below(8))
            for (uint32_t i = below(200); i; i--)
                out[bytes++] = (uint8_t)below(256);
        if (below(20))
            out[bytes++] = '\n';
    }
    return bytes;
}

/* All of the text, in pieces of at most `cut` bytes; the caller frees it. */
static uint8_t *convert(enum convert_format format, const uint8_t *input, size_t bytes,
                        uint32_t cut, size_t *text_bytes)
{
    struct convert *c;
    const uint8_t *ready;
    uint8_t *text;

    assert_int_equal(convert_open(&c, format), 0);
    while (bytes) {
        size_t piece = 1 + below(cut);

        piece = piece < bytes ? piece : bytes;
        assert_int_equal(convert_push(c, input, piece, piece == bytes), 0);
        input += piece;
        bytes -= piece;
    }
    ready = convert_text(c, text_bytes);
    text = malloc(*text_bytes + 1);
    assert_non_null(text);
    if (*text_bytes)
        memcpy(text, ready, *text_bytes);
    convert_take(c, *text_bytes);
    convert_close(&c);
    return text;
}

static void test_cuts_do_not_matter(void **state)
{
    static uint8_t input[INPUT_BYTES];

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        size_t bytes = wild(input);

        for (int f = FORMAT_TRANSCRIPT; f < FORMAT_COUNT; f++) {
            size_t whole_bytes, cut_bytes;
            uint8_t *whole =
                convert((enum convert_format)f, input, bytes, INPUT_BYTES * 2, &whole_bytes);
            uint8_t *cut = convert((enum convert_format)f, input, bytes, 1 + below(40), &cut_bytes);

            assert_int_equal(whole_bytes, cut_bytes);
            assert_memory_equal(whole, cut, cut_bytes);
            assert_true(f != FORMAT_TRANSCRIPT || whole_bytes > 0);
            free(whole);
            free(cut);
        }
    }
}

static void test_offsets(void **state)
{
    static const struct {
        const char *text;
        size_t bytes;
        double seconds;
    } cases[] = {{"0:05", 4, 5},
                 {"1:02:03.5 x", 9, 3723.5},
                 {"12:34,250", 9, 754.25},
                 {"100:00:00", 9, 360000},
                 {"5", 0, 0},
                 {"1:2", 0, 0},
                 {"1:60", 0, 0},
                 {":30", 0, 0},
                 {"1:00:", 0, 0}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double seconds = 0;
        size_t bytes = stamp_offset(cases[i].text, strlen(cases[i].text), &seconds);

        if (bytes != cases[i].bytes || (bytes && seconds != cases[i].seconds))
            fail_msg("%s: %zu characters, %g s", cases[i].text, bytes, seconds);
    }
}

/* Any bytes, of any length, are a time out of our days or none. */
static void test_stamps_of_anything(void **state)
{
    static const char alphabet[] = "0123456789-:/T Z+[](),.JanMay";

    (void)state;
    for (int round = 0; round < 200000; round++) {
        size_t bytes = below(60);
        char *line = malloc(bytes + 1);
        uint64_t time_us;

        assert_non_null(line);
        for (size_t i = 0; i < bytes; i++)
            line[i] = below(9) ? alphabet[below(sizeof alphabet - 1)] : (char)below(256);
        if (stamp_read(line, bytes, &time_us))
            assert_true(time_us < UINT64_C(4000000000) * 1000000);
        stamp_span(line, &bytes, below(2), below(2));
        free(line);
    }
}

/* One wall clock stands for lines of about one time, and never for less than half a KiB of them. */
static void test_spans(void **state)
{
    enum { LINES = 3000, LINE_BYTES = 40, DAY = 20 };
    char *text = malloc(LINES * LINE_BYTES + 1);
    size_t at = 0, pieces = 0;

    (void)state;
    assert_non_null(text);
    for (int i = 0; i < LINES; i++) /* a minute's lines, thirty a minute; then the next day's */
        snprintf(text + (size_t)i * LINE_BYTES, LINE_BYTES + 1,
                 "2026-05-%02dT07:%02d:%02dZ what happened %3d.\n", 1 + i / (LINES / DAY),
                 i / 30 % 60, i % 30 * 2, i % 999);
    while (at < LINES * LINE_BYTES) {
        size_t bytes = LINES * LINE_BYTES - at, line = at / LINE_BYTES, last;
        uint64_t time_us = stamp_span(text + at, &bytes, true, 0), want_us, last_us;

        assert_true(stamp_read(text + at, LINE_BYTES, &want_us));
        assert_int_equal(time_us, want_us);
        assert_true(bytes && bytes % LINE_BYTES == 0);
        last = line + bytes / LINE_BYTES - 1;
        assert_true(stamp_read(text + last * LINE_BYTES, LINE_BYTES, &last_us));
        assert_true(bytes <= 2 * 512 || last_us - time_us <= UINT64_C(60) * 1000000 ||
                    at + bytes == LINES * LINE_BYTES);
        at += bytes;
        pieces++;
    }
    assert_in_range(pieces, DAY, 2 * LINES / 30 + DAY);
    free(text);
}

static void test_spans_of_captions(void **state)
{
    static const char text[] = "of a line\n[0:00:10] Ann: so\n[0:00:20] Bob: yes\n";
    size_t bytes = sizeof text - 1;

    (void)state;
    assert_int_equal(stamp_span(text, &bytes, false, 7000000), 17000000);
    assert_int_equal(bytes, sizeof text - 1);
    assert_int_equal(stamp_span(text, &bytes, true, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts_do_not_matter), cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_stamps_of_anything), cmocka_unit_test(test_spans),
        cmocka_unit_test(test_spans_of_captions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
