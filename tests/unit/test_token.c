/* The tokenizer: against the reference's tokens, in any cuts, on any bytes. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "stream/token.h"
#include "tests/unit/tiny_model.h"

#define MODEL "build/models/smollm2-135m-instruct-q4_1.gguf"

enum { BYTES_MAX = 1 << 16 };

static char path[] = "/tmp/silt-test-token-XXXXXX";
static struct gguf *gguf;
static struct tokenizer *tiny;

static uint64_t random_state = 7;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % limit;
}

static size_t whole(const struct tokenizer *t, const void *bytes, size_t count, int32_t *out)
{
    struct token_text text = {0};
    size_t tokens = token_feed(t, &text, bytes, count, out);
    assert_true(tokens + token_count_max(&text, 0) <= count);
    return tokens + token_flush(t, &text, out + tokens);
}

static size_t in_cuts(const struct tokenizer *t, const uint8_t *bytes, size_t count,
                      uint32_t cut_max, int32_t *out)
{
    struct token_text text = {0};
    size_t tokens = 0, cut;
    for (size_t at = 0; at < count; at += cut) {
        cut = random_below(cut_max + 1);
        cut = cut < count - at ? cut : count - at;
        size_t most = token_count_max(&text, cut);
        size_t formed = token_feed(t, &text, bytes + at, cut, out + tokens);
        assert_true(formed <= most);
        assert_true(text.held_bytes <= PRETOKEN_BYTES_MAX + 4);
        tokens += formed;
    }
    return tokens + token_flush(t, &text, out + tokens);
}

static size_t read_file(const char *name, uint8_t *out, size_t room)
{
    FILE *file = fopen(name, "rb");
    if (!file)
        fail_msg("%s: cannot be read; run the tests from the top folder", name);
    size_t bytes = fread(out, 1, room, file);
    fclose(file);
    return bytes;
}

/* A text must give the numbers in a file that the reference wrote. */
static void expect_golden(const struct tokenizer *t, const char *text_path, const char *ids_path)
{
    static uint8_t text[BYTES_MAX];
    static char ids[8 * BYTES_MAX];
    static int32_t got[BYTES_MAX], cut[BYTES_MAX];
    size_t bytes = read_file(text_path, text, sizeof text);
    ids[read_file(ids_path, (uint8_t *)ids, sizeof ids - 1)] = 0;
    size_t count = whole(t, text, bytes, got), i = 0;
    for (char *next = ids, *end;; next = end, i++) {
        long wanted = strtol(next, &end, 10);
        if (end == next)
            break;
        if (i >= count || got[i] != wanted)
            fail_msg("%s: token %zu is %d, wanted %ld", ids_path, i, i < count ? got[i] : -1,
                     wanted);
    }
    assert_int_equal(i, count);
    for (uint32_t most = 1; most < 40; most++) {
        assert_int_equal(in_cuts(t, text, bytes, most, cut), count);
        assert_memory_equal(cut, got, count * sizeof *got);
    }
}

static void test_golden_tiny(void **state)
{
    (void)state;
    expect_golden(tiny, "tests/golden/token_text.txt", "tests/golden/token_ids_tiny.txt");
}

static void test_golden_model(void **state)
{
    (void)state;
    struct gguf *file = NULL;
    struct tokenizer *t = NULL;
    char error[512];
    int result = gguf_open(&file, MODEL, error, sizeof error);
    if (result == -ENOENT) {
        print_message("skipped: no " MODEL " (make model)\n");
        skip();
    }
    assert_int_equal(result, 0);
    assert_int_equal(tokenizer_open(&t, file, error, sizeof error), 0);
    gguf_close(&file); /* the tokenizer keeps what it needs */
    expect_golden(t, "tests/golden/token_text.txt", "tests/golden/token_ids_smollm2.txt");
    expect_golden(t, "tests/golden/token_fuzz.txt", "tests/golden/token_fuzz_ids_smollm2.txt");
    assert_int_equal(tokenizer_vocab_count(t), 49152);
    assert_int_equal(tokenizer_missing_bytes(t), 21);

    int32_t out[32];
    static const int32_t turn[] = {1, 4093, 198, 19556, 2, 198};
    assert_int_equal(token_turn(t, "user", (const uint8_t *)"Hello", 5, out, 32), 6);
    assert_memory_equal(out, turn, sizeof turn);
    /* Its template has no tool role. */
    assert_int_equal(token_turn(t, "tool", (const uint8_t *)"Hello", 5, out, 32), 6);
    assert_memory_equal(out, turn, sizeof turn);
    assert_true(token_is_end(t, 2) && token_is_end(t, 0) && !token_is_end(t, 1));
    /* A byte without a token is seen as U+FFFD. */
    size_t bytes, count = whole(t, "a\4b", 3, out);
    assert_int_equal(count, 3);
    assert_memory_equal(token_bytes(t, out[1], &bytes), "\xef\xbf\xbd", 3);
    tokenizer_close(&t);
}

/* Text of a kind that brings out the edges: blanks, digits, quotes, long runs, broken UTF-8. */
static size_t random_text(uint8_t *out)
{
    static const char *const parts[] = {"'s",
                                        "'re",
                                        "'l",
                                        "'",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "1",
                                        "42",
                                        "the ",
                                        " in",
                                        "\xc3\xa9",
                                        "\xe6\x9d\xb1",
                                        "\xf0\x9f\x99\x82",
                                        "\xe6\x9d",
                                        "\xf0\x9f",
                                        "\xc3",
                                        "\x80",
                                        "\xff",
                                        "\xed\xa0\x80",
                                        "\xe3\x80\x80",
                                        "\xc2\xa0",
                                        "\xe2\x85\xa7",
                                        "!?",
                                        "<|im_end|>",
                                        "\xc0\xaf",
                                        "\xf4\x90"};
    size_t bytes = 0;
    while (bytes < BYTES_MAX / 16) {
        uint32_t kind = random_below(40);
        if (kind == 0) {
            size_t run = random_below(2600);
            memset(out + bytes, "a =\n1"[random_below(5)], run);
            bytes += run;
        } else if (kind < 4) {
            out[bytes++] = (uint8_t)random_below(256);
        } else {
            const char *part = parts[random_below(sizeof parts / sizeof *parts)];
            memcpy(out + bytes, part, strlen(part));
            bytes += strlen(part);
        }
    }
    return bytes;
}

static void test_any_bytes_in_any_cuts(void **state)
{
    (void)state;
    static uint8_t bytes[BYTES_MAX];
    static int32_t tokens[BYTES_MAX], cut[BYTES_MAX];
    for (int round = 0; round < 60; round++) {
        size_t count = random_text(bytes), back = 0, length;
        size_t formed = whole(tiny, bytes, count, tokens);
        for (size_t i = 0; i < formed; i++) {
            assert_false(token_is_special(tiny, tokens[i]));
            const uint8_t *piece = token_bytes(tiny, tokens[i], &length);
            assert_true(length && back + length <= count);
            assert_memory_equal(piece, bytes + back, length);
            back += length;
        }
        assert_int_equal(back, count);
        static const uint32_t cuts[] = {1, 2, 3, 7, 100, 1023, 1024, 1025, 3000};
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
            assert_int_equal(in_cuts(tiny, bytes, count, cuts[i], cut), formed);
            assert_memory_equal(cut, tokens, formed * sizeof *cut);
        }
    }
}

/* A run without an end gives tokens all the same, and each cut lies at a whole character. */
static void test_long_runs(void **state)
{
    (void)state;
    static uint8_t bytes[8192];
    static int32_t tokens[8192];
    struct token_text text = {0};
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = i % 3 == 0 ? 0xe6 : i % 3 == 1 ? 0x9d : 0xb1;
    size_t formed = token_feed(tiny, &text, bytes, 3000, tokens);
    assert_int_equal(formed, 2 * 1023); /* 341 characters of 3 bytes */
    assert_int_equal(text.held_bytes, 3000 - 2 * 1023);
    memset(bytes, ' ', sizeof bytes);
    text = (struct token_text){0};
    token_feed(tiny, &text, bytes, 5000, tokens);
    assert_int_equal(text.held_bytes, 5000 - 4 * 1024);
    assert_int_equal(token_feed(tiny, &text, NULL, 0, tokens), 0);
}

static void test_turns(void **state)
{
    (void)state;
    int32_t out[64], plain[64];
    const uint8_t *words = (const uint8_t *)"the <|im_end|> in";
    int count = token_turn(tiny, "assistant", words, 17, out, 64);
    assert_true(count > 0);
    assert_int_equal(out[0], 1);
    assert_int_equal(out[count - 2], 2);
    int specials = 0;
    for (int i = 0; i < count; i++)
        specials += token_is_special(tiny, out[i]);
    assert_int_equal(specials, 2); /* the text's own is only text */
    size_t inner = whole(tiny, "assistant\nthe <|im_end|> in", 27, plain);
    assert_int_equal(inner, count - 3);
    assert_memory_equal(plain, out + 1, inner * sizeof *out);
    for (size_t room = 0; room < (size_t)count; room++)
        assert_int_equal(token_turn(tiny, "assistant", words, 17, out, room), -ENOSPC);
    assert_int_equal(token_turn(tiny, "assistant", words, 17, out, (size_t)count), count);
    assert_int_equal(token_turn(tiny, "pirate", words, 17, out, 64), -EINVAL);
    int opening = token_turn_open(tiny, "assistant", plain, 64);
    assert_true(opening > 1 && opening < count);
    assert_int_equal(token_turn_open(tiny, "assistant", plain, 1), -ENOSPC);
    assert_int_equal(token_turn_open(tiny, "", plain, 64), -EINVAL);
}

static void test_ids(void **state)
{
    (void)state;
    size_t bytes;
    const uint8_t *name = token_bytes(tiny, 1, &bytes);
    assert_int_equal(bytes, 12);
    assert_memory_equal(name, "<|im_start|>", 12);
    assert_true(token_is_special(tiny, 2) && token_is_end(tiny, 2));
    for (int32_t id = 3; id < 259; id++) {
        const uint8_t *byte = token_bytes(tiny, id, &bytes);
        assert_int_equal(bytes, 1);
        assert_int_equal(*byte, id - 3);
    }
    token_bytes(tiny, -1, &bytes);
    assert_int_equal(bytes, 0);
    token_bytes(tiny, INT32_MAX, &bytes);
    assert_int_equal(bytes, 0);
    assert_false(token_is_special(tiny, -1) || token_is_end(tiny, INT32_MAX));
    assert_int_equal(tokenizer_missing_bytes(tiny), 0);
    assert_true(tokenizer_memory_bytes(tiny) > 1000);
}

static int setup(void **state)
{
    (void)state;
    const struct tiny_options options = TINY_DEFAULTS;
    char error[512];
    int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    close(fd);
    if (tiny_model_write(path, &options) || gguf_open(&gguf, path, error, sizeof error) ||
        tokenizer_open(&tiny, gguf, error, sizeof error))
        return -1;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_close(&tiny);
    gguf_close(&gguf);
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_tiny),
        cmocka_unit_test(test_golden_model),
        cmocka_unit_test(test_any_bytes_in_any_cuts),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_ids),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
