/*
 * Reads a vocabulary, its merges and its special tokens out of a GGUF.
 *
 * Vocabularies that were trained without some bytes exist (SmolLM2's lacks 21: a few control
 * characters and bytes that UTF-8 never or hardly uses). Such a byte becomes the token of the
 * replacement character U+FFFD, or "?" where that is not one token: the place stays visible to the
 * model and nothing around it joins up. All else round-trips byte for byte, invalid UTF-8 included.
 */
#include "stream/vocab.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    VOCAB_MAX = 1 << 22,
    TOKEN_BYTES_MAX = 1 << 16,
    LETTER_MAX = 0x144, /* the letters that stand for bytes lie below */
};

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_BYTE = 6 };

static int fail(int result, char *error, size_t error_bytes, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static int fail(int result, char *error, size_t error_bytes, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (error_bytes)
        vsnprintf(error, error_bytes, format, arguments);
    va_end(arguments);
    return result;
}

/* ---- tables ---- */

/* Byte that each of GPT-2's letters stands for, TOKEN_NONE for the others. */
static void letters_fill(int16_t letters[static LETTER_MAX])
{
    int16_t next = 0x100;
    for (int i = 0; i < LETTER_MAX; i++)
        letters[i] = TOKEN_NONE;
    for (int16_t byte = 0; byte < 256; byte++) {
        bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        letters[visible ? byte : next++] = byte;
    }
}

/* Bytes of a token or merge side written in those letters. False: another letter is in it. */
static bool letters_decode(const int16_t letters[static LETTER_MAX], const char *text, size_t bytes,
                           uint8_t *out, size_t *out_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t code = (uint8_t)text[i];
        if (code >= 0xc2 && code < 0xe0 && i + 1 < bytes && ((uint8_t)text[i + 1] & 0xc0) == 0x80)
            code = (code & 0x1f) << 6 | ((uint8_t)text[++i] & 0x3f);
        else if (code >= 0x80)
            return false;
        if (code >= LETTER_MAX || letters[code] < 0)
            return false;
        out[n++] = (uint8_t)letters[code];
    }
    *out_bytes = n;
    return true;
}

static uint32_t table_mask(size_t count)
{
    uint32_t slots = 64;
    while (slots < count * 2)
        slots *= 2;
    return slots - 1;
}

int32_t vocab_find(const struct tokenizer *t, const uint8_t *bytes, size_t count)
{
    uint32_t slot = (uint32_t)XXH3_64bits(bytes, count) & t->lookup_mask;
    for (; t->lookup[slot] != TOKEN_NONE; slot = (slot + 1) & t->lookup_mask) {
        int32_t id = t->lookup[slot];
        if (t->offset[id + 1] - t->offset[id] == count &&
            memcmp(t->text + t->offset[id], bytes, count) == 0)
            return id;
    }
    return TOKEN_NONE;
}

static void vocab_add(struct tokenizer *t, int32_t id)
{
    const uint8_t *bytes = t->text + t->offset[id];
    size_t count = t->offset[id + 1] - t->offset[id];
    if (!count || vocab_find(t, bytes, count) != TOKEN_NONE) /* the first of two stands */
        return;
    uint32_t slot = (uint32_t)XXH3_64bits(bytes, count) & t->lookup_mask;
    while (t->lookup[slot] != TOKEN_NONE)
        slot = (slot + 1) & t->lookup_mask;
    t->lookup[slot] = id;
}

static uint32_t merge_slot(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (uint32_t)(pair * 0x9e3779b97f4a7c15u >> 32) & t->merge_mask;
}

const struct merge *merge_find(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint32_t slot = merge_slot(t, left, right);
    for (; t->merges[slot].id != TOKEN_NONE; slot = (slot + 1) & t->merge_mask)
        if (t->merges[slot].left == left && t->merges[slot].right == right)
            return &t->merges[slot];
    return NULL;
}

static void merge_add(struct tokenizer *t, struct merge merge)
{
    if (merge_find(t, merge.left, merge.right)) /* the lower rank stands */
        return;
    uint32_t slot = merge_slot(t, merge.left, merge.right);
    while (t->merges[slot].id != TOKEN_NONE)
        slot = (slot + 1) & t->merge_mask;
    t->merges[slot] = merge;
}

/* ---- opening ---- */

/* Token texts and kinds, and the table that finds a token by its bytes. */
static int load_tokens(struct tokenizer *t, const struct gguf *gguf,
                       const int16_t letters[static LETTER_MAX], char *error, size_t error_bytes)
{
    struct gguf_array_cursor cursor;
    struct gguf_string token;
    size_t total = 0, at = 0;
    uint64_t type;
    bool typed = gguf_array_count(gguf, "tokenizer.ggml.token_type") == t->vocab_count;
    gguf_array_strings(gguf, "tokenizer.ggml.tokens", &cursor);
    while (gguf_array_string_next(&cursor, &token)) {
        if (token.bytes > TOKEN_BYTES_MAX)
            return fail(-EBADMSG, error, error_bytes, "a token of %zu bytes is too long (%d)",
                        token.bytes, TOKEN_BYTES_MAX);
        total += token.bytes;
    }
    if (total > UINT32_MAX)
        return fail(-EBADMSG, error, error_bytes, "its tokens have %zu bytes, too many", total);
    t->lookup_mask = table_mask(t->vocab_count);
    t->offset = malloc((t->vocab_count + 1u) * sizeof *t->offset);
    t->text = malloc(total + 1);
    t->flags = calloc(t->vocab_count, 1);
    t->lookup = malloc((t->lookup_mask + 1u) * sizeof *t->lookup);
    if (!t->offset || !t->text || !t->flags || !t->lookup)
        return fail(-ENOMEM, error, error_bytes, "not enough memory for the vocabulary");
    t->memory_bytes += (t->vocab_count + 1u) * sizeof *t->offset + total + 1 + t->vocab_count +
                       (t->lookup_mask + 1u) * sizeof *t->lookup;
    for (uint32_t i = 0; i <= t->lookup_mask; i++)
        t->lookup[i] = TOKEN_NONE;
    gguf_array_strings(gguf, "tokenizer.ggml.tokens", &cursor);
    for (uint32_t i = 0; gguf_array_string_next(&cursor, &token); i++) {
        size_t bytes;
        bool normal = typed ? gguf_array_u64(gguf, "tokenizer.ggml.token_type", i, &type) &&
                                  (type == TYPE_NORMAL || type == TYPE_BYTE)
                            : token.bytes < 5 || memcmp(token.text, "<|", 2) != 0;
        if (normal)
            normal = letters_decode(letters, token.text, token.bytes, t->text + at, &bytes);
        if (!normal) {
            t->flags[i] = TOKEN_SPECIAL;
            bytes = token.bytes;
            memcpy(t->text + at, token.text, bytes);
        }
        t->offset[i] = (uint32_t)at;
        at += bytes;
        t->offset[i + 1] = (uint32_t)at;
        if (normal)
            vocab_add(t, (int32_t)i);
    }
    return 0;
}

/* A byte without a token of its own gets one that is seen. */
static int load_bytes(struct tokenizer *t, char *error, size_t error_bytes)
{
    int32_t replacement = vocab_find(t, (const uint8_t *)"\xef\xbf\xbd", 3);
    if (replacement == TOKEN_NONE)
        replacement = vocab_find(t, (const uint8_t *)"?", 1);
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        t->byte_id[i] = vocab_find(t, &byte, 1);
        if (t->byte_id[i] != TOKEN_NONE)
            continue;
        if (replacement == TOKEN_NONE)
            return fail(-EBADMSG, error, error_bytes,
                        "byte %d has no token, nor has U+FFFD or \"?\" to stand for it", i);
        t->byte_id[i] = replacement;
        t->missing_bytes++;
    }
    return 0;
}

/* "left right"; the first character may itself be a blank in files that do not use letters. */
static bool merge_parse(struct tokenizer *t, const int16_t letters[static LETTER_MAX],
                        struct gguf_string text, uint8_t *scratch, struct merge *out)
{
    size_t left, right;
    const char *blank = text.bytes > 2 && text.bytes <= 2 * TOKEN_BYTES_MAX
                            ? memchr(text.text + 1, ' ', text.bytes - 1)
                            : NULL;
    if (!blank)
        return false;
    size_t before = (size_t)(blank - text.text);
    if (!letters_decode(letters, text.text, before, scratch, &left) ||
        !letters_decode(letters, blank + 1, text.bytes - before - 1, scratch + left, &right))
        return false;
    out->left = vocab_find(t, scratch, left);
    out->right = vocab_find(t, scratch + left, right);
    out->id = vocab_find(t, scratch, left + right);
    return out->left != TOKEN_NONE && out->right != TOKEN_NONE && out->id != TOKEN_NONE;
}

static int load_merges(struct tokenizer *t, const struct gguf *gguf,
                       const int16_t letters[static LETTER_MAX], char *error, size_t error_bytes)
{
    struct gguf_array_cursor cursor = {0};
    struct gguf_string text;
    struct merge merge = {0};
    int result = 0;
    size_t count = gguf_array_count(gguf, "tokenizer.ggml.merges");
    if (count > VOCAB_MAX || !gguf_array_strings(gguf, "tokenizer.ggml.merges", &cursor))
        return fail(-EBADMSG, error, error_bytes, "it has no usable tokenizer.ggml.merges");
    uint8_t *scratch = malloc(2 * TOKEN_BYTES_MAX);
    t->merge_mask = table_mask(count);
    t->merges = malloc((t->merge_mask + 1u) * sizeof *t->merges);
    if (!scratch || !t->merges) {
        result = fail(-ENOMEM, error, error_bytes, "not enough memory for the merges");
        goto end;
    }
    t->memory_bytes += (t->merge_mask + 1u) * sizeof *t->merges;
    for (uint32_t i = 0; i <= t->merge_mask; i++)
        t->merges[i].id = TOKEN_NONE;
    for (; gguf_array_string_next(&cursor, &text); merge.rank++) {
        if (!merge_parse(t, letters, text, scratch, &merge)) {
            result = fail(-EBADMSG, error, error_bytes,
                          "merge %" PRIu32 " (\"%.*s\") does not join two tokens into a third",
                          merge.rank, (int)(text.bytes < 80 ? text.bytes : 80), text.text);
            goto end;
        }
        merge_add(t, merge);
    }
end:
    free(scratch);
    return result;
}

/* Marks the tokens that a pre-token of their very bytes becomes. Llama 3's rule is to take a
 * pre-token that is in the vocabulary as it is, whatever its merges would say. */
static void mark_whole(struct tokenizer *t)
{
    int32_t out[PRETOKEN_BYTES_MAX];
    for (uint32_t i = 0; i < t->vocab_count; i++) {
        size_t bytes = t->offset[i + 1] - t->offset[i];
        if ((t->flags[i] & TOKEN_SPECIAL) || bytes == 0 || bytes > PRETOKEN_BYTES_MAX)
            continue;
        if (t->rule == PRETOKEN_LLAMA3 ||
            (merge_bytes(t, t->text + t->offset[i], bytes, out) == 1 && out[0] == (int32_t)i))
            t->flags[i] |= TOKEN_WHOLE;
    }
}

static int32_t special_find(const struct tokenizer *t, const char *name)
{
    size_t bytes = strlen(name);
    for (uint32_t i = 0; i < t->vocab_count; i++)
        if ((t->flags[i] & TOKEN_SPECIAL) && t->offset[i + 1] - t->offset[i] == bytes &&
            memcmp(t->text + t->offset[i], name, bytes) == 0)
            return (int32_t)i;
    return TOKEN_NONE;
}

/* Which tokens end an answer, and how turns are written. */
static void load_specials(struct tokenizer *t, const struct gguf *gguf)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    static const char *const names[] = {"<|im_end|>",      "<|endoftext|>", "<|eot_id|>",
                                        "<|end_of_text|>", "<|eom_id|>",    "</s>"};
    struct gguf_string chat;
    uint64_t id;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (gguf_u64(gguf, keys[i], &id) && id < t->vocab_count)
            t->flags[id] |= TOKEN_END;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t found = special_find(t, names[i]);
        if (found != TOKEN_NONE)
            t->flags[found] |= TOKEN_END;
    }
    bool add_bos = false;
    t->bos = TOKEN_NONE;
    if (gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &add_bos) && add_bos &&
        gguf_u64(gguf, "tokenizer.ggml.bos_token_id", &id) && id < t->vocab_count)
        t->bos = (int32_t)id;
    t->turn_start = special_find(t, "<|im_start|>");
    t->turn_end = special_find(t, "<|im_end|>");
    if (t->turn_start == TOKEN_NONE || t->turn_end == TOKEN_NONE)
        t->turn_start = t->turn_end = TOKEN_NONE;
    t->tool_role = gguf_string(gguf, "tokenizer.chat_template", &chat) && chat.bytes >= 4 &&
                   memmem(chat.text, chat.bytes, "tool", 4);
}

static int check_kind(struct tokenizer *t, const struct gguf *gguf, char *error, size_t error_bytes)
{
    struct gguf_string model, pre = {"default", 7};
    if (!gguf_string(gguf, "tokenizer.ggml.model", &model))
        return fail(-EBADMSG, error, error_bytes,
                    "it has no tokenizer (tokenizer.ggml.model): convert the model with its own");
    if (model.bytes != 4 || memcmp(model.text, "gpt2", 4) != 0)
        return fail(-ENOTSUP, error, error_bytes,
                    "tokenizer model \"%.*s\" is not supported, only gpt2 (byte-level BPE)",
                    (int)(model.bytes < 80 ? model.bytes : 80), model.text);
    gguf_string(gguf, "tokenizer.ggml.pre", &pre);
    if (!pretoken_rule_find(pre.text, pre.bytes, &t->rule))
        return fail(-ENOTSUP, error, error_bytes,
                    "pre-tokenizer \"%.*s\" is not supported (smollm, gpt-2, llama-bpe, qwen2)",
                    (int)(pre.bytes < 80 ? pre.bytes : 80), pre.text);
    size_t count = gguf_array_count(gguf, "tokenizer.ggml.tokens");
    struct gguf_array_cursor cursor;
    if (count < 1 || count > VOCAB_MAX ||
        !gguf_array_strings(gguf, "tokenizer.ggml.tokens", &cursor))
        return fail(-EBADMSG, error, error_bytes, "it has no usable tokenizer.ggml.tokens");
    t->vocab_count = (uint32_t)count;
    return 0;
}

int tokenizer_open(struct tokenizer **out, const struct gguf *gguf, char *error, size_t error_bytes)
{
    int16_t letters[LETTER_MAX];
    int result;
    *out = NULL;
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return fail(-ENOMEM, error, error_bytes, "not enough memory for the tokenizer");
    t->memory_bytes = sizeof *t;
    letters_fill(letters);
    result = check_kind(t, gguf, error, error_bytes);
    if (!result)
        result = load_tokens(t, gguf, letters, error, error_bytes);
    if (!result)
        result = load_bytes(t, error, error_bytes);
    if (!result)
        result = load_merges(t, gguf, letters, error, error_bytes);
    if (result)
        goto error;
    mark_whole(t);
    load_specials(t, gguf);
    *out = t;
    return 0;

error:
    tokenizer_close(&t);
    return result;
}

void tokenizer_close(struct tokenizer **tokenizer)
{
    struct tokenizer *t = *tokenizer;
    if (!t)
        return;
    free(t->offset);
    free(t->text);
    free(t->flags);
    free(t->lookup);
    free(t->merges);
    free(t);
    *tokenizer = NULL;
}

size_t tokenizer_memory_bytes(const struct tokenizer *tokenizer)
{
    return tokenizer->memory_bytes;
}

uint32_t tokenizer_vocab_count(const struct tokenizer *tokenizer)
{
    return tokenizer->vocab_count;
}

uint32_t tokenizer_missing_bytes(const struct tokenizer *tokenizer)
{
    return tokenizer->missing_bytes;
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos;
}
