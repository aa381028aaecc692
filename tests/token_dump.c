/*
 * token-dump MODEL.gguf [SEED] < text > ids: the tokens of a text as 32-bit little-endian numbers,
 * for tests/token_compare.py. With a SEED the text is fed in random cuts; --time FILE prints the
 * rate instead.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stream/token.h"

static uint8_t *read_all(FILE *file, size_t *bytes)
{
    size_t room = 1 << 20, count;
    uint8_t *data = malloc(room);
    *bytes = 0;
    while (data && (count = fread(data + *bytes, 1, room - *bytes, file)) > 0) {
        *bytes += count;
        if (*bytes == room)
            data = realloc(data, room *= 2);
    }
    return data;
}

/* Pieces of 1 to about 16 bytes, now and then one of thousands. */
static size_t cut_next(uint64_t *seed, size_t left)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    size_t cut = 1 + (*seed >> 40) % ((*seed >> 60) == 0 ? 5000 : 16);
    return cut < left ? cut : left;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv)
{
    struct gguf *gguf = NULL;
    struct tokenizer *tokenizer = NULL;
    struct token_text text = {0};
    char error[512];
    if (argc < 2) {
        fprintf(stderr, "usage: token-dump MODEL.gguf [SEED | --time FILE] < text > ids\n");
        return 2;
    }
    double start = seconds();
    if (gguf_open(&gguf, argv[1], error, sizeof error) ||
        tokenizer_open(&tokenizer, gguf, error, sizeof error)) {
        fprintf(stderr, "token-dump: %s\n", error);
        return 1;
    }
    double opened = seconds();
    bool timed = argc > 3 && strcmp(argv[2], "--time") == 0;
    FILE *file = timed ? fopen(argv[3], "rb") : stdin;
    size_t bytes = 0, count = 0;
    uint8_t *data = file ? read_all(file, &bytes) : NULL;
    int32_t *ids = malloc((bytes + 1) * sizeof *ids);
    if (!data || !ids)
        return 1;
    uint64_t seed = argc == 3 ? strtoull(argv[2], NULL, 0) : 0;
    double began = seconds();
    for (size_t at = 0, cut; at < bytes; at += cut) {
        cut = seed ? cut_next(&seed, bytes - at) : bytes;
        count += token_feed(tokenizer, &text, data + at, cut, ids + count);
    }
    count += token_flush(tokenizer, &text, ids + count);
    if (timed)
        printf("open %.1f ms, %zu bytes, %zu tokens, %.1f MB/s\n", (opened - start) * 1e3, bytes,
               count, (double)bytes / (seconds() - began) * 1e-6);
    else
        fwrite(ids, sizeof *ids, count, stdout);
    free(ids);
    free(data);
    tokenizer_close(&tokenizer);
    gguf_close(&gguf);
    return 0;
}
