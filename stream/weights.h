/* What the files that load weights share: weights.c, which begins and ends it, and
 * weights_adapter.c. */
#ifndef SILT_STREAM_WEIGHTS_H
#define SILT_STREAM_WEIGHTS_H

#include "stream/internal.h"

enum { KEY_BYTES_MAX = 128 };

/* One pass of loading: memory is NULL while bytes are only counted. */
struct loader {
    struct engine *engine;
    char *memory;
    size_t used;
    void *stack; /* rows of fused matrices, [stack_bytes] */
    size_t stack_bytes;
    bool refers; /* matrices stay where they lie: a device makes its own copy */
    char *error;
    size_t error_bytes;
};

/* 64-byte aligned, of the engine's block; NULL: only counted. */
void *loader_take(struct loader *l, size_t bytes);
/* A file's tensor of this shape, of a type that is read there, finite; NULL: error says what is
 * wrong. */
const struct gguf_tensor *loader_find(struct loader *l, const struct gguf *file, const char *name,
                                      uint64_t rows, uint64_t cols);
/* fp32 copy of a small tensor. */
int loader_floats(struct loader *l, const float **out, const struct gguf *file, const char *name,
                  uint32_t rows, uint32_t cols);
/* Rows of a matrix, packed for the kernels, or where they lie for a device's own copy. */
int loader_pack(struct loader *l, struct weight *out, const void *rows_data, enum tensor_type type,
                uint32_t rows, uint32_t cols);
/* For a device that makes its own copy: the file's rows where they are mapped, or fp32 rows of
 * ours. */
int loader_refer(struct loader *l, struct weight *out, const void *rows_data, enum tensor_type type,
                 uint32_t rows, uint32_t cols, bool ours);

/* All tensors of the engine's adapter. */
int adapter_load(struct loader *l);

#endif
