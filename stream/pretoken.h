/*
 * Cuts text into pre-tokens, the pieces inside which byte-pair merges happen.
 *
 * The cut is a pure function of the text from the piece's start on, so it does not matter in which
 * portions the text arrives. Unicode classes are libutf8proc's; a byte that is no part of a valid
 * UTF-8 character counts as a character of its own that is neither letter, number nor space. A
 * piece that would be longer than PRETOKEN_BYTES_MAX ends at the last whole character that fits,
 * and what follows is cut afresh.
 */
#ifndef SILT_PRETOKEN_H
#define SILT_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pretoken_rule {
    PRETOKEN_GPT2,
    PRETOKEN_SMOLLM, /* each digit is cut out first, then GPT-2's rule on what lies between */
    PRETOKEN_LLAMA3, /* numbers in threes, a letter run may begin with any one sign */
    PRETOKEN_QWEN2,  /* the same with single digits */
};

/* The rule that tokenizer.ggml.pre names. False: not known. */
bool pretoken_rule_find(const char *name, size_t name_bytes, enum pretoken_rule *out);

/* Bytes of the first pre-token of text, which must not be empty. 0: more text is needed to tell,
 * never so where final, nor with PRETOKEN_BYTES_MAX + 8 bytes at hand. */
size_t pretoken_next(enum pretoken_rule rule, const uint8_t *text, size_t bytes, bool final);

#endif
