/* The inside of a tokenizer, shared by the file that reads it (vocab.c) and the one that uses it
 * (token.c). */
#ifndef SILT_VOCAB_H
#define SILT_VOCAB_H

#include "stream/pretoken.h"
#include "stream/token.h"

enum { TOKEN_NONE = -1 };

/* Bits of tokenizer.flags. WHOLE: a pre-token of its very bytes becomes this token. */
enum { TOKEN_SPECIAL = 1, TOKEN_END = 2, TOKEN_WHOLE = 4 };

/* Open addressing by the pair; id is TOKEN_NONE in a free slot. */
struct merge {
    int32_t left, right;
    uint32_t rank;
    int32_t id; /* what the pair becomes */
};

struct tokenizer {
    enum pretoken_rule rule;
    uint32_t vocab_count;
    uint32_t missing_bytes;
    uint32_t *offset;     /* [vocab_count + 1] into text */
    uint8_t *text;        /* the bytes of all tokens, one after another */
    uint8_t *flags;       /* [vocab_count] */
    int32_t *lookup;      /* [lookup_mask + 1] token by the hash of its bytes, or TOKEN_NONE */
    struct merge *merges; /* [merge_mask + 1] */
    uint32_t lookup_mask, merge_mask;
    int32_t byte_id[256];
    int32_t turn_start, turn_end; /* <|im_start|>, <|im_end|>, or TOKEN_NONE */
    int32_t bos;                  /* where the file asks for one, or TOKEN_NONE */
    bool tool_role;               /* the chat template knows it */
    size_t memory_bytes;
};

/* Token of these bytes, special ones left aside, or TOKEN_NONE. */
int32_t vocab_find(const struct tokenizer *t, const uint8_t *bytes, size_t count);
/* NULL: the two do not merge. */
const struct merge *merge_find(const struct tokenizer *t, int32_t left, int32_t right);
/* Tokens of one pre-token of at most PRETOKEN_BYTES_MAX, into out[count]. Returns how many. */
size_t merge_bytes(const struct tokenizer *t, const uint8_t *bytes, size_t count, int32_t *out);

#endif
