/* What hot.c and hot_search.c share: counting under callgrind. */
#ifndef SILT_BENCH_HOT_H
#define SILT_BENCH_HOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;
struct tokenizer;

/* Ends the program where what it did before was not right. */
void hot_check(bool right, const char *what);
/* 64-byte aligned, the caller's. */
void *hot_memory(size_t bytes);
/* What stands between the two is the figure, over so many units. */
void hot_begin(void);
void hot_end(const char *figure, double units);

/* hot_search.c: a question over a stream of some hundred chunks. folder: scratch, its own; words:
 * text [bytes] whose words the stream is made of. */
void hot_search(const char *folder, const struct engine *engine, const struct tokenizer *tokenizer,
                const uint8_t *words, size_t bytes);

#endif
