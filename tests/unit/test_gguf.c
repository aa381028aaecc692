/* The GGUF reader on good, cut, bent and hostile files. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "stream/internal.h"
#include "tests/unit/tiny_model.h"

static char folder[] = "/tmp/silt-test-gguf-XXXXXX";
static char path[64];

/* A file under construction. */
static uint8_t file[1 << 16];
static size_t file_bytes;
static const uint8_t zeros[64];

static void put(const void *from, size_t bytes)
{
    assert_true(file_bytes + bytes <= sizeof file);
    memcpy(file + file_bytes, from, bytes);
    file_bytes += bytes;
}

static void put32(uint32_t value)
{
    put(&value, sizeof value);
}

static void put64(uint64_t value)
{
    put(&value, sizeof value);
}

static void put_text(const char *text)
{
    put64(strlen(text));
    put(text, strlen(text));
}

static void begin(uint64_t tensors, uint64_t keys)
{
    file_bytes = 0;
    put("GGUF", 4);
    put32(3);
    put64(tensors);
    put64(keys);
}

static void put_key_u32(const char *name, uint32_t value)
{
    put_text(name);
    put32(4);
    put32(value);
}

static void put_tensor(const char *name, uint64_t dim, uint32_t type, uint64_t offset)
{
    put_text(name);
    put32(1);
    put64(dim);
    put32(type);
    put64(offset);
}

static void save(const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
    close(fd);
}

/* Opens what was built; an error must say something and leave no object behind. */
static int open_built(struct gguf **gguf, char error[static 512])
{
    save(file, file_bytes);
    error[0] = 0;
    int result = gguf_open(gguf, path, error, 512);
    if (result) {
        assert_null(*gguf);
        assert_non_null(strstr(error, path));
    }
    return result;
}

static void expect_broken(const char *word)
{
    struct gguf *gguf;
    char error[512];
    assert_int_equal(open_built(&gguf, error), -EBADMSG);
    if (!strstr(error, word))
        fail_msg("\"%s\" does not say \"%s\"", error, word);
}

static void test_good(void **state)
{
    (void)state;
    struct gguf *gguf;
    char error[512];
    uint64_t number;
    double real;
    bool truth;
    struct gguf_string text;
    begin(1, 9);
    put_key_u32("u", 7);
    put_text("i"), put32(5), put32(UINT32_MAX); /* -1 */
    put_text("f"), put32(6), put(&(float){0.5f}, 4);
    put_text("b"), put32(7), put("\1", 1);
    put_text("s"), put32(8), put_text("word");
    put_text("au"), put32(9), put32(0), put64(3), put("\1\2\3", 3);
    put_text("as"), put32(9), put32(8), put64(2), put_text("x"), put_text("");
    put_text("ad"), put32(9), put32(12), put64(1), put(&(double){2.5}, 8);
    put_text("ae"), put32(9), put32(4), put64(0);
    put_tensor("t", 3, 0, 0);
    while (file_bytes % 32)
        put("", 1);
    put((float[]){1, 2, 3}, 12);
    assert_int_equal(open_built(&gguf, error), 0);

    assert_true(gguf_u64(gguf, "u", &number) && number == 7);
    assert_false(gguf_u64(gguf, "i", &number));
    assert_false(gguf_u64(gguf, "f", &number));
    assert_false(gguf_u64(gguf, "au", &number));
    assert_false(gguf_u64(gguf, "none", &number));
    assert_true(gguf_f64(gguf, "f", &real) && real == 0.5);
    assert_true(gguf_bool(gguf, "b", &truth) && truth);
    assert_true(gguf_string(gguf, "s", &text) && text.bytes == 4);
    assert_memory_equal(text.text, "word", 4);
    assert_int_equal(gguf_array_count(gguf, "au"), 3);
    assert_int_equal(gguf_array_count(gguf, "ae"), 0);
    assert_int_equal(gguf_array_count(gguf, "u"), 0);
    assert_true(gguf_array_u64(gguf, "au", 2, &number) && number == 3);
    assert_false(gguf_array_u64(gguf, "au", 3, &number));
    assert_true(gguf_array_f64(gguf, "ad", 0, &real) && real == 2.5);

    struct gguf_array_cursor cursor;
    assert_false(gguf_array_strings(gguf, "au", &cursor));
    assert_true(gguf_array_strings(gguf, "as", &cursor));
    assert_true(gguf_array_string_next(&cursor, &text) && text.bytes == 1);
    assert_true(gguf_array_string_next(&cursor, &text) && text.bytes == 0);
    assert_false(gguf_array_string_next(&cursor, &text));

    const struct gguf_tensor *tensor = gguf_tensor(gguf, "t");
    assert_non_null(tensor);
    assert_ptr_equal(tensor, gguf_tensor_at(gguf, 0));
    assert_null(gguf_tensor_at(gguf, 1));
    assert_int_equal(tensor->data_bytes, 12);
    assert_int_equal(tensor->dim[0], 3);
    assert_int_equal(tensor->dim[3], 1);
    assert_memory_equal(tensor->data, ((float[]){1, 2, 3}), 12);
    gguf_close(&gguf);
    assert_null(gguf);
    gguf_close(&gguf);
}

static void test_hostile(void **state)
{
    (void)state;
    file_bytes = 0;
    put("GGML", 4);
    expect_broken("not a GGUF file");
    begin(0, 0), file[4] = 1;
    expect_broken("version 1");
    begin(0, UINT64_MAX);
    expect_broken("keys");
    begin(UINT64_MAX, 0);
    expect_broken("tensors");
    begin(0, 60000);
    expect_broken("keys");
    begin(0, 1), put64(UINT64_MAX - 3), put("abcdefghijklmnop", 16);
    expect_broken("past the end");
    begin(0, 1), put64(0), put("abcdefghijklmnop", 16);
    expect_broken("name of a key");
    begin(0, 1), put_text("k"), put32(13), put64(0);
    expect_broken("unknown type");
    begin(0, 1), put_text("k"), put32(9), put32(9), put64(1), put32(4), put64(1);
    expect_broken("array of arrays");
    begin(0, 1), put_text("k"), put32(9), put32(10), put64(UINT64_MAX / 8 + 2), put64(0);
    expect_broken("more than the file holds");
    begin(0, 1), put_text("k"), put32(9), put32(8), put64(UINT64_MAX), put64(0);
    expect_broken("more than the file holds");
    begin(0, 1), put_text("k"), put32(9), put32(8), put64(2), put_text("a"), put64(UINT64_MAX);
    expect_broken("past the end");
    begin(0, 2), put_key_u32("k", 1), put_key_u32("k", 2);
    expect_broken("twice");
    for (uint32_t odd = 0; odd < 40; odd += odd == 1 ? 2 : 1) {
        if (odd == 8 || odd == 16 || odd == 32)
            continue;
        begin(0, 1), put_key_u32("general.alignment", odd);
        expect_broken("general.alignment");
    }
    begin(0, 1), put_text("general.alignment"), put32(8), put_text("32");
    expect_broken("general.alignment");
}

static void test_hostile_tensors(void **state)
{
    (void)state;
    begin(1, 0), put_tensor("t", 8, 0, 0);
    expect_broken("past the end");
    begin(1, 0), put_tensor("t", UINT64_MAX / 2, 0, 0);
    expect_broken("not possible");
    begin(1, 0), put_tensor("t", UINT64_MAX / 16 + 1, 0, 0);
    expect_broken("not possible");
    begin(1, 0), put_tensor("t", 0, 0, 0);
    expect_broken("is 0");
    begin(1, 0), put_tensor("t", 33, 2, 0);
    expect_broken("not possible");
    begin(1, 0), put_tensor("t", 1, 0, 4), put(zeros, 64);
    expect_broken("multiple of 32");
    begin(1, 0), put_tensor("t", 1, 0, UINT64_MAX - 31);
    expect_broken("past the end");
    begin(1, 0), put_text("t"), put32(2), put64(1ull << 40), put64(1ull << 40), put32(0), put64(0);
    expect_broken("not possible");
    begin(1, 0), put_text("t"), put32(5), put(zeros, 24), put(zeros, 24);
    expect_broken("dimensions");
    begin(2, 0), put_tensor("t", 1, 0, 0), put_tensor("t", 1, 0, 0), put(zeros, 24), put(zeros, 24);
    expect_broken("twice");
    /* A type that nobody knows yet is no error of the file. */
    struct gguf *gguf;
    char error[512];
    begin(1, 0), put_tensor("t", 7, 1000, 0), put(zeros, 24), put(zeros, 24);
    assert_int_equal(open_built(&gguf, error), 0);
    assert_int_equal(gguf_tensor(gguf, "t")->data_bytes, 0);
    gguf_close(&gguf);
}

/* Reads all that a file offers, as its users would. */
static void read_whole(const struct gguf *gguf)
{
    struct gguf_array_cursor cursor;
    struct gguf_string text;
    volatile uint8_t sink = 0;
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        if (tensor->data_bytes)
            sink = ((const uint8_t *)tensor->data)[tensor->data_bytes - 1];
    }
    if (gguf_array_strings(gguf, "tokenizer.ggml.tokens", &cursor))
        while (gguf_array_string_next(&cursor, &text))
            sink = (uint8_t)(sink + text.bytes);
}

/* The tiny model cut at every length of its head and with every byte of it bent in three ways. */
static void test_damaged(void **state)
{
    (void)state;
    const struct tiny_options options = TINY_DEFAULTS;
    struct gguf *gguf;
    char error[512];
    assert_int_equal(tiny_model_write(path, &options), 0);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    uint8_t *whole = malloc(1 << 20);
    assert_non_null(whole);
    size_t bytes = fread(whole, 1, 1 << 20, in);
    fclose(in);
    assert_int_equal(gguf_open(&gguf, path, error, sizeof error), 0);
    read_whole(gguf);
    size_t head = (size_t)((const uint8_t *)gguf_tensor_at(gguf, 0)->data -
                           (const uint8_t *)gguf_map(gguf, &bytes));
    gguf_close(&gguf);

    for (size_t cut = 1; cut < head; cut += 7) {
        save(whole, cut);
        assert_int_equal(gguf_open(&gguf, path, error, sizeof error), -EBADMSG);
    }
    save(whole, bytes - 1);
    assert_int_equal(gguf_open(&gguf, path, error, sizeof error), -EBADMSG);
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd, whole, bytes), (ssize_t)bytes);
    for (size_t at = 0; at < head; at += at < 2000 || at > head - 4000 ? 1 : 13) {
        static const uint8_t bends[] = {0xff, 0x80, 0x01};
        for (int i = 0; i < 3; i++) {
            uint8_t bent = whole[at] ^ bends[i];
            assert_int_equal(pwrite(fd, &bent, 1, (off_t)at), 1);
            if (gguf_open(&gguf, path, error, sizeof error) == 0)
                read_whole(gguf);
            gguf_close(&gguf);
        }
        assert_int_equal(pwrite(fd, &whole[at], 1, (off_t)at), 1);
    }
    close(fd);
    assert_int_equal(gguf_open(&gguf, path, error, sizeof error), 0);
    gguf_close(&gguf);
    free(whole);
}

static void test_no_file(void **state)
{
    (void)state;
    struct gguf *gguf;
    char error[512];
    assert_int_equal(gguf_open(&gguf, "/nowhere/model.gguf", error, sizeof error), -ENOENT);
    assert_non_null(strstr(error, "/nowhere/model.gguf"));
    assert_int_equal(gguf_open(&gguf, folder, error, sizeof error), -EBADMSG);
    assert_int_equal(gguf_open(&gguf, "/dev/zero", error, sizeof error), -EBADMSG);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(gguf_open(&gguf, path, error, sizeof error), -EBADMSG);
    unlink(path);
    save("", 0);
    assert_int_equal(gguf_open(&gguf, path, NULL, 0), -EBADMSG);
}

/* What a file calls its model goes to logs, JSON and terminals. */
static void test_model_name(void **state)
{
    static const char *const names[][2] = {
        {"Größe \xe2\x82\xac", "Größe \xe2\x82\xac"},
        {"a\x1b[2Jb\n", "a?[2Jb?"},
        {"bad \xff\xc3", "bad ??"},
        {"\xe2\x80\xae"
         "evil",
         "?evil"},                                  /* right to left from here */
        {"0123456789 \xe2\x82\xac", "0123456789 "}, /* the last does not fit whole */
        {"", ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct gguf *gguf;
        char error[512], name[14];
        begin(0, 1);
        put_text("general.name");
        put32(8);
        put_text(names[i][0]);
        assert_int_equal(open_built(&gguf, error), 0);
        metadata_model_name(gguf, name, sizeof name);
        assert_string_equal(name, names[i][1]);
        gguf_close(&gguf);
    }
    begin(0, 0);
    struct gguf *gguf;
    char error[512], name[14] = "x";
    assert_int_equal(open_built(&gguf, error), 0);
    metadata_model_name(gguf, name, sizeof name);
    assert_string_equal(name, "");
    gguf_close(&gguf);
}

/* A model file as far as its metadata is read, and what is odd in it. */
struct odd {
    uint32_t heads, head_dim;
    const char *key; /* of a float; NULL: none */
    float value;
    const char *tensor; /* of zeros; NULL: none */
    uint32_t dim, type;
};

static int read_odd(struct engine *e, const struct odd *odd, char error[static 512])
{
    struct gguf *gguf;
    begin(1 + (odd->tensor != NULL), 7 + (odd->key != NULL));
    put_text("general.architecture");
    put32(8);
    put_text("llama");
    put_key_u32("llama.block_count", 1);
    put_key_u32("llama.attention.head_count", odd->heads);
    put_key_u32("llama.attention.key_length", odd->head_dim);
    put_key_u32("llama.embedding_length", 64);
    put_key_u32("llama.feed_forward_length", 64);
    put_key_u32("llama.context_length", 8192);
    if (odd->key) {
        put_text(odd->key);
        put32(6);
        put(&odd->value, sizeof odd->value);
    }
    put_tensor("token_embd.weight", 64, TENSOR_F32, 0);
    if (odd->tensor)
        put_tensor(odd->tensor, odd->dim, odd->type, 0);
    put(zeros, (32 - file_bytes % 32) % 32);
    for (int i = 0; i < 4; i++)
        put(zeros, sizeof zeros);
    assert_int_equal(open_built(&gguf, error), 0);
    *e = (struct engine){.model = gguf};
    int code = metadata_read_model(e, error, 512);
    gguf_close(&e->model);
    return code;
}

/* What would be computed otherwise than the file means is refused, and by its name. */
static void test_odd_models(void **state)
{
    static const struct {
        struct odd odd;
        const char *word;
    } bad[] = {
        {{3, 16, NULL, 0, NULL, 0, 0}, "fit together"}, /* 48 columns are no whole blocks */
        {{2, 32, NULL, 0, "blk.0.ffn_up.bias", 64, TENSOR_F32}, "blk.0.ffn_up.bias"},
        {{2, 32, NULL, 0, "blk.7.attn_k.bias", 64, TENSOR_F32}, "blk.7.attn_k.bias"},
        {{2, 32, NULL, 0, "rope_freqs.weight", 16, TENSOR_F16}, "rope_freqs.weight"},
        {{2, 32, NULL, 0, "rope_freqs.weight", 8, TENSOR_F32}, "rope_freqs.weight"},
        {{2, 32, NULL, 0, "rope_freqs.weight", 16, TENSOR_F32}, "rope_freqs.weight"}, /* zeros */
        {{2, 32, "llama.rope.freq_base", 0, NULL, 0, 0}, "freq_base"},
        {{2, 32, "llama.rope.freq_base", NAN, NULL, 0, 0}, "freq_base"},
        {{2, 32, "llama.rope.scaling.factor", 0.5f, NULL, 0, 0}, "factor"},
        {{2, 32, "llama.attention.layer_norm_rms_epsilon", 0, NULL, 0, 0}, "epsilon"},
        {{2, 32, "llama.attention.layer_norm_rms_epsilon", -1e-5f, NULL, 0, 0}, "epsilon"},
        {{2, 32, "llama.attention.layer_norm_rms_epsilon", NAN, NULL, 0, 0}, "epsilon"},
    };
    static const struct {
        struct odd odd;
        double first;
    } good[] = {
        {{2, 32, NULL, 0, NULL, 0, 0}, 1},
        {{2, 32, "llama.rope.scaling.factor", 8, NULL, 0, 0}, 0.125}, /* linear by default */
        {{2, 32, "llama.rope.scale_linear", 4, NULL, 0, 0}, 0.25},    /* of older files */
    };
    static struct engine e;
    char error[512];
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(read_odd(&e, &bad[i].odd, error) < 0);
        free(e.inverse_frequency);
        if (!strstr(error, bad[i].word))
            fail_msg("\"%s\" does not say \"%s\"", error, bad[i].word);
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(read_odd(&e, &good[i].odd, error), 0);
        assert_true(e.inverse_frequency[0] == good[i].first);
        free(e.inverse_frequency);
    }
}

/* A scale or value becomes no number: what is computed with it would be none either or, once it is
 * quantised, anything. */
static void test_weights_that_are_no_numbers(void **state)
{
    static const enum tensor_type types[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_BF16,
                                             TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q4_1};
    static const char *const names[] = {"token_embd.weight", "blk.0.attn_norm.weight",
                                        "blk.1.attn_k.weight", "blk.3.ffn_down.weight"};
    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
            struct tiny_options tiny = TINY_DEFAULTS;
            struct engine_options options = {.model_path = path};
            const uint16_t nan = 0x7fff;
            struct engine *e;
            struct gguf *gguf;
            char error[512] = "";
            size_t bytes;
            tiny.weight_type = tiny.embed_type = types[i];
            assert_int_equal(tiny_model_write(path, &tiny), 0);
            assert_int_equal(engine_open(&e, &options, error, sizeof error), 0);
            engine_close(&e);
            assert_int_equal(gguf_open(&gguf, path, error, sizeof error), 0);
            const struct gguf_tensor *t = gguf_tensor(gguf, names[n]);
            size_t row = tensor_row_bytes(t->type, (uint32_t)t->dim[0]);
            off_t at = (const char *)t->data - (const char *)gguf_map(gguf, &bytes);
            at += (off_t)(t->dim[1] / 2 * row) + (t->type == TENSOR_F32 ? 2 : 0);
            gguf_close(&gguf);
            int fd = open(path, O_WRONLY);
            assert_int_equal(pwrite(fd, &nan, sizeof nan, at), sizeof nan);
            close(fd);
            assert_int_equal(engine_open(&e, &options, error, sizeof error), -EBADMSG);
            if (!strstr(error, names[n]) || !strstr(error, "no number"))
                fail_msg("\"%s\" does not say which", error);
        }
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/built.gguf", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_hostile_tensors),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_model_name),
        cmocka_unit_test(test_odd_models),
        cmocka_unit_test(test_weights_that_are_no_numbers),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
