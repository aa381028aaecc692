/* How the engine makes its tokenizer; the rest of the tokenizer's face is in stream.h. */
#ifndef SILT_TOKEN_H
#define SILT_TOKEN_H

#include "stream/gguf.h"
#include "stream/stream.h"

/* From the file's own tokens and merges. 0; -ENOTSUP: tokenizer.ggml.model or .pre is not one we
 * know (gpt2 with smollm, llama-bpe, gpt-2 … as listed in pretoken.c); -EBADMSG: broken lists;
 * -ENOMEM. The tokenizer copies what it needs. */
int tokenizer_open(struct tokenizer **out, const struct gguf *gguf, char *error,
                   size_t error_bytes);
void tokenizer_close(struct tokenizer **tokenizer);
size_t tokenizer_memory_bytes(const struct tokenizer *tokenizer);
uint32_t tokenizer_vocab_count(const struct tokenizer *tokenizer);
/* Byte values for which the vocabulary has no token: they are read as U+FFFD (see vocab.c). */
uint32_t tokenizer_missing_bytes(const struct tokenizer *tokenizer);
/* The token to begin a text with, where the file asks for one (tokenizer.ggml.add_bos_token); else
 * -1. */
int32_t tokenizer_bos(const struct tokenizer *tokenizer);

#endif
