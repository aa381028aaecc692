/*
 * libFuzzer: any bytes as a GGUF file, and what opens as a tokenizer too.
 *
 *     clang -g -O1 -std=c17 -D_GNU_SOURCE -I. -fsanitize=fuzzer,address,undefined \
 *         tests/fuzz/fuzz_gguf.c stream/{gguf,pretoken,token,vocab}.c -lutf8proc -lxxhash
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stream/token.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void read_tensors(const struct gguf *gguf)
{
    volatile uint8_t sink;
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        if (tensor->data_bytes) {
            sink = ((const uint8_t *)tensor->data)[0];
            sink = ((const uint8_t *)tensor->data)[tensor->data_bytes - 1];
        }
    }
    (void)sink;
}

/* Whatever the vocabulary, text comes out in no more tokens than it has bytes. */
static void read_text(const struct tokenizer *tokenizer, const uint8_t *data, size_t bytes)
{
    struct token_text text = {0};
    int32_t *tokens = malloc((bytes + 1) * sizeof *tokens);
    if (!tokens)
        return;
    size_t count = token_feed(tokenizer, &text, data, bytes, tokens);
    count += token_flush(tokenizer, &text, tokens + count);
    for (size_t i = 0; i < count; i++)
        if (token_is_special(tokenizer, tokens[i]))
            abort();
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gguf *gguf = NULL;
    struct tokenizer *tokenizer = NULL;
    char path[64], error[512];
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (gguf_open(&gguf, path, error, sizeof error) == 0) {
        read_tensors(gguf);
        if (tokenizer_open(&tokenizer, gguf, error, sizeof error) == 0)
            read_text(tokenizer, data, bytes < 4096 ? bytes : 4096);
        tokenizer_close(&tokenizer);
    }
    gguf_close(&gguf);
    close(fd);
    return 0;
}
