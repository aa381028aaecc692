/* Writes the tiny model and its adapter: a GGUF writer, the quantisers, the tensors. */
#include "tests/unit/tiny_model.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_F32 = 6, GGUF_BOOL = 7, GGUF_STRING = 8, GGUF_ARRAY = 9 };
enum { ALIGNMENT = 32, SPECIAL_COUNT = 3 };

/* In order of rank; each side is a byte or the result of an earlier one, and no two give the same.
 * "_" stands for a space, "\\n" for a line feed. */
static const char *const merges[] = {
    "_ t",  "_ a",  "i n",   "h e",   "_ _",   "r e",   "o n",   "e r",  "_t he",  "a t", "_ s",
    "_ o",  "e n",  "_ c",   "e s",   "_ w",   "n d",   "i t",   "o r",  "i s",    "a l", "_ p",
    "in g", "_ f",  "e d",   "_ b",   "_a nd", "_o f",  "o u",   "_ m",  "_t o",   "_ d", "l e",
    "_ h",  "_ in", "r o",   "a r",   "v e",   "__ __", "s t",   "er s", "_the r", "l l", "\\n \\n",
    "- -",  "= =",  "-- --", "== ==", ". \\n", "_a s",  "_c on",
};

struct bytes {
    uint8_t *data;
    size_t count, room;
    int error; /* sticky -ENOMEM */
};

/* The three parts of the file, joined at the end. */
struct writer {
    struct bytes keys, tensors, data;
    uint64_t key_count, tensor_count, random;
};

static void put(struct bytes *b, const void *from, size_t count)
{
    if (!b->error && b->count + count > b->room) {
        size_t room = (b->count + count) * 2;
        uint8_t *data = realloc(b->data, room);
        if (data) {
            b->data = data;
            b->room = room;
        } else {
            b->error = -ENOMEM;
        }
    }
    if (b->error || !count)
        return;
    memcpy(b->data + b->count, from, count);
    b->count += count;
}

static void put_u32(struct bytes *b, uint32_t value)
{
    put(b, &value, sizeof value);
}

static void put_u64(struct bytes *b, uint64_t value)
{
    put(b, &value, sizeof value);
}

static void put_string(struct bytes *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void put_align(struct bytes *b)
{
    static const uint8_t zeros[ALIGNMENT];
    put(b, zeros, (ALIGNMENT - b->count % ALIGNMENT) % ALIGNMENT);
}

static void key_begin(struct writer *w, const char *name, uint32_t type)
{
    w->key_count++;
    put_string(&w->keys, name);
    put_u32(&w->keys, type);
}

static void key_string(struct writer *w, const char *name, const char *value)
{
    key_begin(w, name, GGUF_STRING);
    put_string(&w->keys, value);
}

static void key_u32(struct writer *w, const char *name, uint32_t value)
{
    key_begin(w, name, GGUF_U32);
    put_u32(&w->keys, value);
}

static void key_f32(struct writer *w, const char *name, float value)
{
    key_begin(w, name, GGUF_F32);
    put(&w->keys, &value, sizeof value);
}

static void key_bool(struct writer *w, const char *name, bool value)
{
    uint8_t byte = value;
    key_begin(w, name, GGUF_BOOL);
    put(&w->keys, &byte, 1);
}

static void key_array(struct writer *w, const char *name, uint32_t type, uint64_t count)
{
    key_begin(w, name, GGUF_ARRAY);
    put_u32(&w->keys, type);
    put_u64(&w->keys, count);
}

static uint64_t random_u64(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Near enough to a normal variate of deviation 1, without libm, so that the files are the same
 * everywhere: the sum of four uniform 16-bit numbers. */
static float random_normal(uint64_t *state)
{
    uint64_t z = random_u64(state);
    uint32_t sum = (uint32_t)(z & 0xffff) + (uint32_t)(z >> 16 & 0xffff) +
                   (uint32_t)(z >> 32 & 0xffff) + (uint32_t)(z >> 48);
    return ((float)sum - 131070.0f) * (1.7320508f / 65536.0f);
}

static void put_f16(struct bytes *b, float value)
{
    f16 half = f16_from_f32(value);
    put(b, &half, sizeof half);
}

/* Blocks of 32 as ggml lays them out: scale (and minimum) in f16, then the quants; 4-bit ones hold
 * value i in the low half of byte i and value i + 16 in the high half. */
static void put_block(struct bytes *b, enum tensor_type type, const float *x)
{
    float lowest = x[0], highest = x[0];
    uint8_t q[KERNELS_BLOCK];
    for (int i = 1; i < KERNELS_BLOCK; i++) {
        lowest = x[i] < lowest ? x[i] : lowest;
        highest = x[i] > highest ? x[i] : highest;
    }
    float largest = -lowest > highest ? lowest : highest;
    float scale = type == TENSOR_Q8_0   ? fabsf(largest) / 127.0f
                  : type == TENSOR_Q4_0 ? largest / -8.0f
                                        : (highest - lowest) / 15.0f;
    float minimum = type == TENSOR_Q4_1 ? lowest : 0.0f;
    float shift = type == TENSOR_Q4_0 ? 8.5f : 0.5f;
    put_f16(b, scale);
    if (type == TENSOR_Q4_1)
        put_f16(b, minimum);
    for (int i = 0; i < KERNELS_BLOCK; i++) {
        float value = scale != 0.0f ? (x[i] - minimum) / scale : 0.0f;
        if (type == TENSOR_Q8_0)
            q[i] = (uint8_t)(int8_t)floorf(value + shift);
        else
            q[i] = (uint8_t)fminf(floorf(value + shift), 15.0f);
    }
    if (type != TENSOR_Q8_0)
        for (int i = 0; i < KERNELS_BLOCK / 2; i++)
            q[i] = (uint8_t)(q[i] | q[i + KERNELS_BLOCK / 2] << 4);
    put(b, q, type == TENSOR_Q8_0 ? KERNELS_BLOCK : KERNELS_BLOCK / 2);
}

static void put_values(struct bytes *b, enum tensor_type type, const float *x, uint32_t count)
{
    switch (type) {
    case TENSOR_F32:
        put(b, x, count * sizeof *x);
        return;
    case TENSOR_F16:
        for (uint32_t i = 0; i < count; i++)
            put_f16(b, x[i]);
        return;
    case TENSOR_BF16:
        for (uint32_t i = 0; i < count; i++) {
            uint32_t bits;
            memcpy(&bits, &x[i], sizeof bits);
            uint16_t high = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            put(b, &high, sizeof high);
        }
        return;
    case TENSOR_Q8_0:
    case TENSOR_Q4_0:
    case TENSOR_Q4_1:
        for (uint32_t i = 0; i < count; i += KERNELS_BLOCK)
            put_block(b, type, x + i);
        return;
    }
    b->error = -ENOTSUP;
}

/* Enters a tensor [rows][cols] in the table; rows 0: a vector. Its values follow by put_values. */
static void tensor_begin(struct writer *w, const char *name, enum tensor_type type, uint32_t rows,
                         uint32_t cols)
{
    put_align(&w->data);
    w->tensor_count++;
    put_string(&w->tensors, name);
    put_u32(&w->tensors, rows ? 2 : 1);
    put_u64(&w->tensors, cols);
    if (rows)
        put_u64(&w->tensors, rows);
    put_u32(&w->tensors, (uint32_t)type);
    put_u64(&w->tensors, w->data.count);
}

enum { VALUES_MAX = 1024 }; /* of a row */

/* A tensor of mean + deviation * normal. */
static void tensor_random(struct writer *w, const char *name, enum tensor_type type, uint32_t rows,
                          uint32_t cols, float mean, float deviation)
{
    float row[VALUES_MAX];
    assert(cols <= VALUES_MAX);
    tensor_begin(w, name, type, rows, cols);
    for (uint32_t r = 0; r < (rows ? rows : 1); r++) {
        for (uint32_t c = 0; c < cols; c++)
            row[c] = mean + deviation * random_normal(&w->random);
        put_values(&w->data, type, row, cols);
    }
}

static void layer_tensor(struct writer *w, uint32_t layer, const char *name, enum tensor_type type,
                         uint32_t rows, uint32_t cols, float mean, float deviation)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    tensor_random(w, full, type, rows, cols, mean, deviation);
}

static int writer_finish(struct writer *w, const char *path)
{
    static const uint32_t version = 3;
    struct bytes head = {0};
    FILE *file = NULL;
    int result;
    put(&head, "GGUF", 4);
    put(&head, &version, sizeof version);
    put_u64(&head, w->tensor_count);
    put_u64(&head, w->key_count);
    if (!w->keys.error)
        put(&head, w->keys.data, w->keys.count);
    if (!w->tensors.error)
        put(&head, w->tensors.data, w->tensors.count);
    put_align(&head);
    result = w->keys.error      ? w->keys.error
             : w->tensors.error ? w->tensors.error
             : w->data.error    ? w->data.error
                                : head.error;
    if (result)
        goto end;
    file = fopen(path, "wb");
    if (!file || fwrite(head.data, 1, head.count, file) != head.count ||
        fwrite(w->data.data, 1, w->data.count, file) != w->data.count)
        result = -errno;
    if (file && fclose(file) != 0 && !result)
        result = -errno;
end:
    free(head.data);
    free(w->keys.data);
    free(w->tensors.data);
    free(w->data.data);
    return result;
}

/* ---- the vocabulary ---- */

/* GPT-2's printable stand-in for a byte, in UTF-8: itself for visible Latin-1, else 256 + n. */
static size_t byte_letter(uint8_t byte, char out[static 2])
{
    uint32_t code = byte;
    if (byte < '!' || (byte > '~' && byte < 0xa1) || byte == 0xad)
        code = byte <= 32 ? 256u + byte : byte < 0xa1 ? 289u + byte - 127u : 323u;
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
}

/* A merge of the table above in the file's letters; joined: without the space between its sides. */
static void merge_text(const char *merge, bool joined, char *out)
{
    size_t n = 0;
    for (const char *c = merge; *c; c++) {
        if (*c == ' ') {
            if (!joined)
                out[n++] = ' ';
        } else if (*c == '\\') {
            n += byte_letter('\n', out + n);
            c++;
        } else {
            n += byte_letter((uint8_t)(*c == '_' ? ' ' : *c), out + n);
        }
    }
    out[n] = 0;
}

enum { VOCAB_COUNT = SPECIAL_COUNT + 256 + sizeof merges / sizeof *merges };

static uint32_t put_vocabulary(struct writer *w)
{
    static const char *const special[SPECIAL_COUNT] = {"<|endoftext|>", "<|im_start|>",
                                                       "<|im_end|>"};
    char text[64];
    const uint32_t merge_count = sizeof merges / sizeof *merges;
    uint32_t vocab = SPECIAL_COUNT + 256 + merge_count;
    key_string(w, "tokenizer.ggml.model", "gpt2");
    key_string(w, "tokenizer.ggml.pre", "smollm");
    key_array(w, "tokenizer.ggml.tokens", GGUF_STRING, vocab);
    for (int i = 0; i < SPECIAL_COUNT; i++)
        put_string(&w->keys, special[i]);
    for (int i = 0; i < 256; i++) {
        text[byte_letter((uint8_t)i, text)] = 0;
        put_string(&w->keys, text);
    }
    for (uint32_t i = 0; i < merge_count; i++) {
        merge_text(merges[i], true, text);
        put_string(&w->keys, text);
    }
    key_array(w, "tokenizer.ggml.token_type", GGUF_I32, vocab);
    for (uint32_t i = 0; i < vocab; i++)
        put_u32(&w->keys, i < SPECIAL_COUNT ? 3 : 1);
    key_array(w, "tokenizer.ggml.merges", GGUF_STRING, merge_count);
    for (uint32_t i = 0; i < merge_count; i++) {
        merge_text(merges[i], false, text);
        put_string(&w->keys, text);
    }
    key_u32(w, "tokenizer.ggml.bos_token_id", 1);
    key_u32(w, "tokenizer.ggml.eos_token_id", 2);
    key_u32(w, "tokenizer.ggml.unknown_token_id", 0);
    key_u32(w, "tokenizer.ggml.padding_token_id", 2);
    key_bool(w, "tokenizer.ggml.add_space_prefix", false);
    key_bool(w, "tokenizer.ggml.add_bos_token", false);
    return vocab;
}

/* ---- the model ---- */

static struct tiny_shape shape_of(const struct tiny_options *options)
{
    static const struct tiny_shape usual = {TINY_HEADS, TINY_KV_HEADS, TINY_HEAD_DIM,
                                            TINY_CHUNK, TINY_COMP,     TINY_RING};
    return options->shape.heads ? options->shape : usual;
}

int tiny_model_write(const char *path, const struct tiny_options *options)
{
    struct writer w = {.random = options->seed};
    const enum tensor_type type = options->weight_type;
    const struct tiny_shape s = shape_of(options);
    const uint32_t q_dim = s.heads * s.head_dim, kv_dim = s.kv_heads * s.head_dim;
    const float by_dim = 1.0f / sqrtf(TINY_DIM), by_ff = 1.0f / sqrtf(TINY_FF);
    key_string(&w, "general.architecture", "llama");
    key_string(&w, "general.type", "model");
    key_string(&w, "general.name", "silt tiny test model");
    key_u32(&w, "llama.block_count", TINY_LAYERS);
    key_u32(&w, "llama.context_length", TINY_CONTEXT);
    key_u32(&w, "llama.embedding_length", TINY_DIM);
    key_u32(&w, "llama.feed_forward_length", TINY_FF);
    key_u32(&w, "llama.attention.head_count", s.heads);
    key_u32(&w, "llama.attention.head_count_kv", s.kv_heads);
    if (s.heads * s.head_dim != TINY_DIM)
        key_u32(&w, "llama.attention.key_length", s.head_dim);
    key_f32(&w, "llama.rope.freq_base", 100000.0f);
    key_f32(&w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    key_u32(&w, "llama.rope.dimension_count", s.head_dim);
    uint32_t vocab = put_vocabulary(&w);
    key_u32(&w, "llama.vocab_size", vocab);
    tensor_random(&w, "token_embd.weight", options->embed_type, vocab, TINY_DIM, 0.0f, 0.25f);
    for (uint32_t i = 0; i < TINY_LAYERS; i++) {
        layer_tensor(&w, i, "attn_norm.weight", TENSOR_F32, 0, TINY_DIM, 1.0f, 0.1f);
        /* Scores of deviation 2: peaked enough that single rows matter. */
        layer_tensor(&w, i, "attn_q.weight", type, q_dim, TINY_DIM, 0.0f, 2.0f * by_dim);
        layer_tensor(&w, i, "attn_k.weight", type, kv_dim, TINY_DIM, 0.0f, by_dim);
        layer_tensor(&w, i, "attn_v.weight", type, kv_dim, TINY_DIM, 0.0f, by_dim);
        layer_tensor(&w, i, "attn_output.weight", type, TINY_DIM, q_dim, 0.0f,
                     1.0f / sqrtf((float)q_dim));
        layer_tensor(&w, i, "ffn_norm.weight", TENSOR_F32, 0, TINY_DIM, 1.0f, 0.1f);
        layer_tensor(&w, i, "ffn_gate.weight", type, TINY_FF, TINY_DIM, 0.0f, by_dim);
        layer_tensor(&w, i, "ffn_up.weight", type, TINY_FF, TINY_DIM, 0.0f, by_dim);
        layer_tensor(&w, i, "ffn_down.weight", type, TINY_DIM, TINY_FF, 0.0f, by_ff);
    }
    tensor_random(&w, "output_norm.weight", TENSOR_F32, 0, TINY_DIM, 1.0f, 0.1f);
    if (options->untied)
        tensor_random(&w, "output.weight", options->embed_type, vocab, TINY_DIM, 0.0f, 0.25f);
    return writer_finish(&w, path);
}

/* ---- the adapter ---- */

static int file_fingerprint(const char *path, char text[static 17])
{
    uint8_t buffer[65536];
    size_t count;
    int result = 0;
    XXH3_state_t *state = XXH3_createState();
    FILE *file = fopen(path, "rb");
    if (!state || !file) {
        result = file ? -ENOMEM : -errno;
        goto end;
    }
    XXH3_64bits_reset(state);
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0)
        XXH3_64bits_update(state, buffer, count);
    if (ferror(file))
        result = -EIO;
    snprintf(text, 17, "%016llx", (unsigned long long)XXH3_64bits_digest(state));
end:
    if (file)
        fclose(file);
    XXH3_freeState(state);
    return result;
}

/* LoRA over q, k, v and o: the first factor keeps the input's scale, so that the second's is the
 * share of the base projection's output that it adds. */
static void put_lora(struct writer *w, const struct tiny_shape *s, uint32_t layer, const char *kind,
                     enum tensor_type type, float share)
{
    static const char names[] = {'q', 'k', 'v', 'o'};
    const uint32_t q_dim = s->heads * s->head_dim, kv_dim = s->kv_heads * s->head_dim;
    const uint32_t rows[] = {q_dim, kv_dim, kv_dim, TINY_DIM};
    const uint32_t cols[] = {TINY_DIM, TINY_DIM, TINY_DIM, q_dim};
    char name[32];
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s_%c.a", kind, names[i]);
        layer_tensor(w, layer, name, type, TINY_LORA_RANK, cols[i], 0.0f,
                     1.0f / sqrtf((float)cols[i]));
        snprintf(name, sizeof name, "%s_%c.b", kind, names[i]);
        layer_tensor(w, layer, name, type, rows[i], TINY_LORA_RANK, 0.0f,
                     share / sqrtf(TINY_LORA_RANK));
    }
}

static void put_dmc(struct writer *w, const struct tiny_shape *s, enum tensor_type type)
{
    /* Logits of a are near normal with deviation 2: these biases merge 1 - 1/ratio of them. */
    static const uint32_t ratio[TINY_RATIOS] = {2, 4, 8};
    static const float bias[TINY_RATIOS] = {0.0f, 1.35f, 2.3f};
    enum { HEADS_MAX = 64 };
    const uint32_t heads = TINY_LAYERS * s->kv_heads;
    float row[HEADS_MAX];
    assert(heads <= HEADS_MAX);
    for (uint32_t i = 0; i < TINY_LAYERS; i++) {
        put_lora(w, s, i, "dmc", type, 0.3f);
        layer_tensor(w, i, "dmc_decide", TENSOR_F32, 2 * s->kv_heads, TINY_DIM, 0.0f,
                     2.0f / sqrtf(TINY_DIM));
        layer_tensor(w, i, "dmc_decide.bias", TENSOR_F32, 0, 2 * s->kv_heads, 0.0f, 0.2f);
    }
    tensor_begin(w, "dmc.ratio_bias", TENSOR_F32, TINY_RATIOS, heads);
    for (uint32_t r = 0; r < TINY_RATIOS; r++) {
        for (uint32_t h = 0; h < heads; h++)
            row[h] = bias[r] + 0.1f * random_normal(&w->random);
        put_values(&w->data, TENSOR_F32, row, heads);
    }
    /* From below the expected appends, so that some heads are forced, to the most allowed. */
    tensor_begin(w, "dmc.quota", TENSOR_F32, TINY_RATIOS, heads);
    for (uint32_t r = 0; r < TINY_RATIOS; r++) {
        uint32_t least = s->chunk / ratio[r] * 3 / 4, most = 2 * s->chunk / ratio[r];
        most = most < s->chunk ? most : s->chunk;
        for (uint32_t h = 0; h < heads; h++)
            row[h] = (float)(least + random_u64(&w->random) % (most - least + 1));
        put_values(&w->data, TENSOR_F32, row, heads);
    }
}

/* Keys and queries by the same random map, and a little of the hidden state; last of the adapter,
 * so that it is otherwise the same with and without. */
static void put_recall(struct writer *w)
{
    static float map[TINY_KEY][TINY_DIM];
    float row[2 * TINY_DIM];
    for (uint32_t i = 0; i < TINY_KEY; i++)
        for (uint32_t j = 0; j < TINY_DIM; j++)
            map[i][j] = random_normal(&w->random) / sqrtf(TINY_DIM);
    tensor_begin(w, "recall.token", TENSOR_F16, TINY_KEY, TINY_DIM);
    put_values(&w->data, TENSOR_F16, map[0], TINY_KEY * TINY_DIM);
    tensor_random(w, "recall.token.bias", TENSOR_F32, 0, TINY_KEY, 0.0f, 0.02f);
    tensor_random(w, "recall.gain", TENSOR_F32, 0, (uint32_t)VOCAB_COUNT, 1.0f, 0.1f);
    tensor_begin(w, "recall.query", TENSOR_F16, TINY_KEY, 2 * TINY_DIM);
    for (uint32_t i = 0; i < TINY_KEY; i++) {
        memcpy(row, map[i], sizeof map[i]);
        for (uint32_t j = TINY_DIM; j < 2 * TINY_DIM; j++)
            row[j] = 0.1f * random_normal(&w->random) / sqrtf(TINY_DIM);
        put_values(&w->data, TENSOR_F16, row, 2 * TINY_DIM);
    }
    tensor_random(w, "recall.query.bias", TENSOR_F32, 0, TINY_KEY, 0.0f, 0.02f);
    tensor_random(w, "recall.weight", TENSOR_F32, 0, (uint32_t)VOCAB_COUNT, 1.0f, 0.3f);
    tensor_random(w, "recall.weight_deep", TENSOR_F32, 0, TINY_DIM, 0.0f, 0.02f);
}

/* Adds to a row about as much as it has. Behind all else, for the same reason. */
static void put_map(struct writer *w, const struct tiny_shape *s,
                    const struct tiny_options *options)
{
    const float share = options->map == TINY_MAP_RANDOM ? 0.7f : 0.0f;
    const uint32_t rows = 2 * s->kv_heads * s->head_dim;
    for (uint32_t i = 0; i < TINY_LAYERS; i++) {
        layer_tensor(w, i, "summary", options->lora_type, rows, s->head_dim, 0.0f,
                     share / sqrtf((float)s->head_dim));
        layer_tensor(w, i, "summary.bias", TENSOR_F32, 0, rows, 0.0f, share);
    }
}

/* In no order, and not all is what FORMAT.md says. */
static const char *const lexicon[] = {"red crimson\" NEAR( ruddy\" crimson ruddy",
                                      "car \" auto (car* automobile", "ruined",
                                      "rust aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa oxide"};

int tiny_adapter_write(const char *path, const char *model_path, const struct tiny_options *options)
{
    struct writer w = {.random = options->seed ^ 0x5eed};
    const struct tiny_shape s = shape_of(options);
    char fingerprint[17];
    int result = file_fingerprint(model_path, fingerprint);
    if (result)
        return result;
    key_string(&w, "general.architecture", "llama");
    key_string(&w, "general.type", "adapter");
    key_string(&w, "adapter.type", "silt");
    key_u32(&w, "silt.version", 1);
    key_string(&w, "silt.base_fingerprint", fingerprint);
    key_u32(&w, "silt.chunk_tokens", s.chunk);
    key_u32(&w, "silt.comp_tokens", s.comp);
    key_u32(&w, "silt.ring_segments", s.ring);
    key_u32(&w, "silt.sink_tokens", TINY_SINKS);
    key_f32(&w, "silt.summary_alpha_min", 0.05f);
    key_array(&w, "silt.dmc_ratios", GGUF_U32, options->without_dmc ? 0 : TINY_RATIOS);
    for (uint32_t i = 0; i < TINY_RATIOS && !options->without_dmc; i++)
        put_u32(&w.keys, 2u << i);
    if (options->recall)
        key_u32(&w, "silt.recall_layer", options->recall_layer);
    key_array(&w, "silt.lexicon", GGUF_STRING, sizeof lexicon / sizeof *lexicon);
    for (size_t i = 0; i < sizeof lexicon / sizeof *lexicon; i++)
        put_string(&w.keys, lexicon[i]);
    tensor_random(&w, "comp.embd", TENSOR_F32, s.comp, TINY_DIM, 0.0f, 0.25f);
    for (uint32_t i = 0; i < TINY_LAYERS; i++)
        put_lora(&w, &s, i, "comp", options->lora_type, 0.5f);
    if (!options->without_dmc)
        put_dmc(&w, &s, options->lora_type);
    if (options->recall)
        put_recall(&w);
    if (options->map)
        put_map(&w, &s, options);
    return writer_finish(&w, path);
}
