/*
 * GGUF version 2 and 3 files, read-only
 * (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
 *
 * The file is mapped and checked whole at open: every length, offset, count and alignment against
 * the file's size, so that what the getters return can be read without a further check. Nothing in
 * the file is trusted. Nothing is copied: pointers are into the map and live until close. Strings
 * are not terminated.
 */
#ifndef SILT_GGUF_H
#define SILT_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    GGUF_DIMS_MAX = 4,
    GGUF_NAME_BYTES_MAX = 256,
    GGUF_KEYS_MAX = 65536,
    GGUF_TENSORS_MAX = 65536
};

struct gguf;

struct gguf_string {
    const char *text; /* not terminated */
    size_t bytes;
};

struct gguf_tensor {
    struct gguf_string name;
    enum tensor_type type; /* may be one that this build does not know; row_bytes is then 0 */
    uint32_t dim_count;
    uint64_t dim[GGUF_DIMS_MAX]; /* dim[0] is the row length; unused ones are 1 */
    const void *data;            /* rows * row_bytes, inside the map */
    size_t data_bytes;
};

/* 0; -ENOENT and the like from the system; -EBADMSG: not a GGUF file or a broken one. error says
 * which and where. */
int gguf_open(struct gguf **out, const char *path, char *error, size_t error_bytes);
void gguf_close(struct gguf **gguf);

/* The whole map (for fingerprints). */
const void *gguf_map(const struct gguf *gguf, size_t *bytes);

/* NULL where there is none of that name. */
const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name);
size_t gguf_tensor_count(const struct gguf *gguf);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, size_t index);

/* False where the key is absent or of another kind. Any integer type serves gguf_u64 where the
 * value is not negative. */
bool gguf_u64(const struct gguf *gguf, const char *key, uint64_t *out);
bool gguf_f64(const struct gguf *gguf, const char *key, double *out);
bool gguf_bool(const struct gguf *gguf, const char *key, bool *out);
bool gguf_string(const struct gguf *gguf, const char *key, struct gguf_string *out);
/* Arrays. Elements of a string array are walked in order with gguf_array_string_next. */
size_t gguf_array_count(const struct gguf *gguf, const char *key); /* 0: absent or not an array */
bool gguf_array_u64(const struct gguf *gguf, const char *key, size_t index, uint64_t *out);
bool gguf_array_f64(const struct gguf *gguf, const char *key, size_t index, double *out);
struct gguf_array_cursor {
    const uint8_t *next;
    size_t left;
};
bool gguf_array_strings(const struct gguf *gguf, const char *key, struct gguf_array_cursor *out);
bool gguf_array_string_next(struct gguf_array_cursor *cursor, struct gguf_string *out);

#endif
