/*
 * libFuzzer: any bytes through the tiny vocabulary, whole and in cuts that the bytes themselves
 * choose. Both give the same tokens, which give the bytes back.
 *
 *     clang -g -O1 -std=c17 -D_GNU_SOURCE -I. -fsanitize=fuzzer,address,undefined \
 *         tests/fuzz/fuzz_token.c tests/unit/tiny_model.c kernels/tensor.c \
 *         stream/{gguf,pretoken,token,vocab}.c -lutf8proc -lxxhash -lm
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "stream/token.h"
#include "tests/unit/tiny_model.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static struct tokenizer *tokenizer;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    const struct tiny_options options = TINY_DEFAULTS;
    struct gguf *gguf = NULL;
    char path[64], error[512];
    snprintf(path, sizeof path, "/proc/self/fd/%d", memfd_create("tiny", 0));
    if (tiny_model_write(path, &options) || gguf_open(&gguf, path, error, sizeof error) ||
        tokenizer_open(&tokenizer, gguf, error, sizeof error))
        abort();
    gguf_close(&gguf);
    return 0;
}

static size_t in_cuts(const uint8_t *data, size_t bytes, int32_t *out)
{
    struct token_text text = {0};
    size_t tokens = 0, cut;
    for (size_t at = 0; at < bytes; at += cut) {
        cut = 1u + data[at] % 37u * (data[at] & 0x40 ? 40u : 1u);
        cut = cut < bytes - at ? cut : bytes - at;
        size_t most = token_count_max(&text, cut);
        size_t formed = token_feed(tokenizer, &text, data + at, cut, out + tokens);
        if (formed > most || text.held_bytes > sizeof text.held)
            abort();
        tokens += formed;
    }
    return tokens + token_flush(tokenizer, &text, out + tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct token_text text = {0};
    int32_t *whole = malloc((bytes + 1) * sizeof *whole), *cut = malloc((bytes + 1) * sizeof *cut);
    size_t at = 0, length;
    if (!whole || !cut)
        abort();
    size_t count = token_feed(tokenizer, &text, data, bytes, whole);
    count += token_flush(tokenizer, &text, whole + count);
    if (in_cuts(data, bytes, cut) != count || memcmp(cut, whole, count * sizeof *cut) != 0)
        abort();
    for (size_t i = 0; i < count; i++, at += length) {
        const uint8_t *piece = token_bytes(tokenizer, whole[i], &length);
        if (length > bytes - at || memcmp(piece, data + at, length) != 0)
            abort();
    }
    if (at != bytes)
        abort();
    free(whole);
    free(cut);
    return 0;
}
