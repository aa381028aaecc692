/*
 * A tiny random Llama GGUF and an adapter for it, made at test time without Python or a network.
 *
 * 4 layers, d 128, 4 heads over 2 KV heads of 32, ff 256, context 8,192; a byte-level BPE
 * vocabulary of three special tokens, the 256 bytes and some merges; the keys of the real file. The
 * adapter: chunk 256, 16 COMP tokens, ring 4, ratios 2, 4 and 8, quotas that some heads reach. Same
 * options, same files, bit for bit, on every machine. Weights are scaled so that attention is
 * neither flat nor one-hot and what is far back still moves the logits.
 */
#ifndef SILT_TINY_MODEL_H
#define SILT_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    TINY_LAYERS = 4,
    TINY_DIM = 128,
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_HEAD_DIM = 32,
    TINY_FF = 256,
    TINY_CONTEXT = 8192,
    TINY_CHUNK = 256,
    TINY_COMP = 16,
    TINY_RING = 4,
    TINY_SINKS = 8,
    TINY_RATIOS = 3, /* 2, 4, 8 */
    TINY_LORA_RANK = 8,
    TINY_KEY = 64, /* width of recall keys */
};

/* In place of the numbers above; 4 layers, d and ff are the same. */
struct tiny_shape {
    uint32_t heads, kv_heads, head_dim; /* at most 1,024 columns of queries */
    uint32_t chunk, comp, ring;
};

/* Of the summary; either has the type of the LoRA. */
enum tiny_map { TINY_MAP_NONE, TINY_MAP_RANDOM, TINY_MAP_ZERO };

struct tiny_options {
    uint64_t seed;
    enum tensor_type weight_type; /* projections; TINY_DEFAULTS: Q4_1 */
    enum tensor_type embed_type;  /* embeddings, and the head where untied; TINY_DEFAULTS: Q8_0 */
    enum tensor_type lora_type;   /* the adapter's LoRA, F16 or F32; TINY_DEFAULTS: F16 */
    bool untied;                  /* a head of its own, output.weight */
    bool without_dmc;             /* an adapter that serves ratio 1 alone */
    bool recall;                  /* recall keys: a token is nearest to itself */
    uint32_t recall_layer;
    enum tiny_map map;
    struct tiny_shape shape; /* heads 0: as above */
};
#define TINY_DEFAULTS                                                                              \
    ((struct tiny_options){.seed = 1,                                                              \
                           .weight_type = TENSOR_Q4_1,                                             \
                           .embed_type = TENSOR_Q8_0,                                              \
                           .lora_type = TENSOR_F16})

/* Types: F32, F16, BF16, Q8_0, Q4_0, Q4_1. 0, -ENOTSUP: another type; or what the system said. */
int tiny_model_write(const char *path, const struct tiny_options *options);
/* The adapter of the model file at model_path (its fingerprint is taken from there). */
int tiny_adapter_write(const char *path, const char *model_path,
                       const struct tiny_options *options);

#endif
