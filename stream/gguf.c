/*
 * GGUF reader: one pass over the map at open checks everything, afterwards the getters just read.
 *
 * The pass keeps a cursor and never moves it past what is left in the file: each length is compared
 * with the bytes left before it is used, and each count with the fewest bytes that so many things
 * take, before memory is reserved for them. So a file cannot ask for more than a small multiple of
 * its own size.
 *
 * A file that shrinks while it is mapped kills its readers (SIGBUS), as with any map: replace a
 * model by renaming a new file over it, never by writing into it.
 */
#include "stream/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF is read in place");

enum value_type {
    VALUE_U8,
    VALUE_I8,
    VALUE_U16,
    VALUE_I16,
    VALUE_U32,
    VALUE_I32,
    VALUE_F32,
    VALUE_BOOL,
    VALUE_STRING,
    VALUE_ARRAY,
    VALUE_U64,
    VALUE_I64,
    VALUE_F64,
    VALUE_TYPE_COUNT
};

/* Bytes of one value; 0 where it is not fixed. */
static const uint8_t value_bytes[VALUE_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

enum {
    VALUE_ALIGNMENT_DEFAULT = 32,
    VALUE_ALIGNMENT_MAX = 1 << 20,
    KEY_FILE_BYTES_MIN = 8 + 1 + 4 + 1,            /* length, name, type, value */
    TENSOR_FILE_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* length, name, dims, dim, type, offset */
};

/* Values per block and bytes per block of ggml's types: the kernels know a few, the bounds of the
 * others are checked all the same. Types missing here have data_bytes 0. */
struct type_size {
    uint16_t values, bytes;
};
static const struct type_size type_sizes[] = {
    [0] = {1, 4},      [1] = {1, 2},      [2] = {32, 18},    [3] = {32, 20},    [6] = {32, 22},
    [7] = {32, 24},    [8] = {32, 34},    [9] = {32, 36},    [10] = {256, 84},  [11] = {256, 110},
    [12] = {256, 144}, [13] = {256, 176}, [14] = {256, 210}, [15] = {256, 292}, [20] = {32, 18},
    [23] = {256, 136}, [24] = {1, 1},     [25] = {1, 2},     [26] = {1, 4},     [27] = {1, 8},
    [28] = {1, 8},     [30] = {1, 2},
};

struct key {
    struct gguf_string name; /* first, for by_name */
    uint32_t type;           /* enum value_type; an array's element type */
    bool array;
    uint64_t count;       /* elements, 1 for a single value */
    const uint8_t *value; /* first element, not aligned */
    size_t bytes;         /* of all elements */
};

struct gguf {
    const uint8_t *map;
    size_t map_bytes;
    size_t key_count, tensor_count;
    struct key *keys;            /* [key_count] */
    struct gguf_tensor *tensors; /* [tensor_count] */
    /* Pointers to the names at the head of keys and tensors, in order of name. */
    const struct gguf_string **key_index, **tensor_index;
};

struct reader {
    struct gguf *gguf;
    const uint8_t *next;
    size_t left;
    const char *path;
    char *error;
    size_t error_bytes;
};

static void say(char *error, size_t error_bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void say(char *error, size_t error_bytes, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (error_bytes)
        vsnprintf(error, error_bytes, format, arguments);
    va_end(arguments);
}

/* Names the file, the place and what to do. Always -EBADMSG. */
static int broken(const struct reader *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static int broken(const struct reader *r, const char *format, ...)
{
    char what[384];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    say(r->error, r->error_bytes,
        "%s: byte %zu: %s. The file is damaged or cut short: fetch or convert it again", r->path,
        (size_t)(r->next - r->gguf->map), what);
    return -EBADMSG;
}

static bool take(struct reader *r, void *out, size_t bytes)
{
    if (r->left < bytes)
        return false;
    if (out)
        memcpy(out, r->next, bytes);
    r->next += bytes;
    r->left -= bytes;
    return true;
}

static bool take_string(struct reader *r, struct gguf_string *out)
{
    uint64_t bytes;
    if (r->left < sizeof bytes)
        return false;
    memcpy(&bytes, r->next, sizeof bytes);
    if (bytes > r->left - sizeof bytes)
        return false;
    *out = (struct gguf_string){(const char *)r->next + sizeof bytes, (size_t)bytes};
    r->next += sizeof bytes + out->bytes;
    r->left -= sizeof bytes + out->bytes;
    return true;
}

static int take_name(struct reader *r, struct gguf_string *out, const char *of_what)
{
    struct reader at = *r;
    if (!take_string(r, out))
        return broken(r, "the name of a %s goes past the end of the file", of_what);
    if (out->bytes == 0 || out->bytes > GGUF_NAME_BYTES_MAX || memchr(out->text, 0, out->bytes))
        return broken(&at, "the name of a %s has %zu bytes, not 1 to %d without zeros", of_what,
                      out->bytes, GGUF_NAME_BYTES_MAX);
    return 0;
}

/* A name for an error message: cut to what fits, without control characters. */
static const char *shown(const struct gguf_string *name, char text[static 65])
{
    size_t bytes = name->bytes < 64 ? name->bytes : 64;
    for (size_t i = 0; i < bytes; i++)
        text[i] = (unsigned char)name->text[i] < 32 ? '?' : name->text[i];
    text[bytes] = 0;
    return text;
}

static int take_key(struct reader *r, struct key *key)
{
    char name[65];
    uint32_t type = 0;
    int result = take_name(r, &key->name, "key");
    if (result)
        return result;
    shown(&key->name, name);
    key->count = 1;
    if (!take(r, &type, sizeof type))
        return broken(r, "key %s ends with the file", name);
    if (type == VALUE_ARRAY) {
        key->array = true;
        if (!take(r, &type, sizeof type) || !take(r, &key->count, sizeof key->count))
            return broken(r, "array %s ends with the file", name);
        if (type == VALUE_ARRAY)
            return broken(r, "key %s is an array of arrays, which silt does not read", name);
    }
    if (type >= VALUE_TYPE_COUNT)
        return broken(r, "key %s has the unknown type %" PRIu32, name, type);
    key->type = type;
    key->value = r->next;
    if (type == VALUE_STRING) {
        struct gguf_string string;
        if (key->count > r->left / sizeof(uint64_t))
            return broken(r, "key %s counts %" PRIu64 " strings, more than the file holds", name,
                          key->count);
        for (uint64_t i = 0; i < key->count; i++)
            if (!take_string(r, &string))
                return broken(r, "string %" PRIu64 " of key %s goes past the end of the file", i,
                              name);
    } else {
        if (key->count > r->left / value_bytes[type])
            return broken(r, "key %s counts %" PRIu64 " values, more than the file holds", name,
                          key->count);
        take(r, NULL, (size_t)key->count * value_bytes[type]);
    }
    key->bytes = (size_t)(r->next - key->value);
    return 0;
}

/* Bytes of a tensor's data. False: overflow, or rows that are not whole blocks. */
static bool tensor_bytes(const struct gguf_tensor *tensor, uint64_t *out)
{
    uint64_t rows = 1, bytes;
    *out = 0;
    for (uint32_t i = 1; i < GGUF_DIMS_MAX; i++)
        if (__builtin_mul_overflow(rows, tensor->dim[i], &rows))
            return false;
    /* The count of values must fit too: callers multiply dimensions. */
    if (__builtin_mul_overflow(rows, tensor->dim[0], &bytes) || bytes > INT64_MAX / 16)
        return false;
    if ((size_t)tensor->type >= sizeof type_sizes / sizeof *type_sizes)
        return true;
    struct type_size size = type_sizes[tensor->type];
    if (!size.values)
        return true;
    if (tensor->dim[0] % size.values)
        return false;
    return !__builtin_mul_overflow(tensor->dim[0] / size.values * size.bytes, rows, out);
}

/* The offset is relative to the data section, which begins after the last tensor info. */
static int take_tensor(struct reader *r, struct gguf_tensor *tensor, uint64_t *offset)
{
    char name[65];
    uint32_t type;
    int result = take_name(r, &tensor->name, "tensor");
    if (result)
        return result;
    shown(&tensor->name, name);
    if (!take(r, &tensor->dim_count, sizeof tensor->dim_count))
        return broken(r, "tensor %s ends with the file", name);
    if (tensor->dim_count < 1 || tensor->dim_count > GGUF_DIMS_MAX)
        return broken(r, "tensor %s has %" PRIu32 " dimensions, not 1 to %d", name,
                      tensor->dim_count, GGUF_DIMS_MAX);
    for (uint32_t i = 0; i < GGUF_DIMS_MAX; i++) {
        tensor->dim[i] = 1;
        if (i < tensor->dim_count && !take(r, &tensor->dim[i], sizeof tensor->dim[i]))
            return broken(r, "tensor %s ends with the file", name);
        if (tensor->dim[i] == 0)
            return broken(r, "dimension %" PRIu32 " of tensor %s is 0", i, name);
    }
    if (!take(r, &type, sizeof type) || !take(r, offset, sizeof *offset))
        return broken(r, "tensor %s ends with the file", name);
    tensor->type = (enum tensor_type)type;
    uint64_t bytes;
    if (!tensor_bytes(tensor, &bytes))
        return broken(r,
                      "the dimensions of tensor %s (%" PRIu64 " x %" PRIu64 " x %" PRIu64
                      " x %" PRIu64 ", type %" PRIu32 ") are not possible",
                      name, tensor->dim[0], tensor->dim[1], tensor->dim[2], tensor->dim[3], type);
    tensor->data_bytes = (size_t)bytes;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct gguf_string *x = *(const struct gguf_string *const *)a;
    const struct gguf_string *y = *(const struct gguf_string *const *)b;
    size_t bytes = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(x->text, y->text, bytes);
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Sorts an index and refuses a name that stands twice: which of the two is meant cannot be known.
 */
static int index_names(const struct reader *r, const struct gguf_string **index, size_t count,
                       const char *of_what)
{
    char name[65];
    if (count)
        qsort(index, count, sizeof *index, by_name);
    for (size_t i = 1; i < count; i++)
        if (by_name(&index[i - 1], &index[i]) == 0)
            return broken(r, "the %s %s stands in it twice", of_what, shown(index[i], name));
    return 0;
}

static const struct gguf_string *find_name(const struct gguf_string *const *index, size_t count,
                                           const char *name)
{
    struct gguf_string wanted = {name, strlen(name)};
    const struct gguf_string *key = &wanted;
    if (!count)
        return NULL;
    const struct gguf_string *const *found = bsearch(&key, index, count, sizeof *index, by_name);
    return found ? *found : NULL;
}

static int read_header(struct reader *r, uint64_t *tensors, uint64_t *keys)
{
    uint32_t version = 0;
    struct reader start = *r;
    if (r->left < 4 || memcmp(r->next, "GGUF", 4) != 0) {
        say(r->error, r->error_bytes,
            "%s: this is not a GGUF file (it does not begin with \"GGUF\"): name one that is",
            r->path);
        return -EBADMSG;
    }
    take(r, NULL, 4);
    if (!take(r, &version, sizeof version) || !take(r, tensors, sizeof *tensors) ||
        !take(r, keys, sizeof *keys))
        return broken(&start, "the header is cut short");
    if (version != 2 && version != 3) {
        say(r->error, r->error_bytes,
            "%s: byte 4: GGUF version %" PRIu32 "%s, silt reads 2 and 3: convert the file again",
            r->path, version, (version & 0xffff) == 0 ? " (big-endian)" : "");
        return -EBADMSG;
    }
    if (*keys > GGUF_KEYS_MAX || *keys > r->left / KEY_FILE_BYTES_MIN)
        return broken(&start, "%" PRIu64 " keys are more than it can hold", *keys);
    if (*tensors > GGUF_TENSORS_MAX || *tensors > r->left / TENSOR_FILE_BYTES_MIN)
        return broken(&start, "%" PRIu64 " tensors are more than it can hold", *tensors);
    return 0;
}

static int read_keys(struct reader *r)
{
    struct gguf *gguf = r->gguf;
    for (size_t i = 0; i < gguf->key_count; i++) {
        int result = take_key(r, &gguf->keys[i]);
        if (result)
            return result;
        gguf->key_index[i] = &gguf->keys[i].name;
    }
    return index_names(r, gguf->key_index, gguf->key_count, "key");
}

/* Tensor infos, then the places of their data, which are known only after the last of them. */
static int read_tensors(struct reader *r, uint64_t *offsets)
{
    struct gguf *gguf = r->gguf;
    char name[65];
    uint64_t alignment = VALUE_ALIGNMENT_DEFAULT;
    if (find_name(gguf->key_index, gguf->key_count, "general.alignment") &&
        (!gguf_u64(gguf, "general.alignment", &alignment) || alignment < 8 ||
         alignment > VALUE_ALIGNMENT_MAX || (alignment & (alignment - 1))))
        return broken(r, "general.alignment is not a power of two from 8 to %d",
                      VALUE_ALIGNMENT_MAX);
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        int result = take_tensor(r, &gguf->tensors[i], &offsets[i]);
        if (result)
            return result;
        gguf->tensor_index[i] = &gguf->tensors[i].name;
    }
    uint64_t at = (uint64_t)(r->next - gguf->map);
    uint64_t data = (at + alignment - 1) & ~(alignment - 1);
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        struct gguf_tensor *tensor = &gguf->tensors[i];
        if (offsets[i] & (alignment - 1))
            return broken(r,
                          "the data of tensor %s lies at %" PRIu64 ", not a multiple of %" PRIu64,
                          shown(&tensor->name, name), offsets[i], alignment);
        if (data > gguf->map_bytes || offsets[i] > gguf->map_bytes - data ||
            tensor->data_bytes > gguf->map_bytes - data - offsets[i])
            return broken(r,
                          "the data of tensor %s (%zu bytes at %" PRIu64 " + %" PRIu64
                          ") goes past the end of the file (%zu bytes)",
                          shown(&tensor->name, name), tensor->data_bytes, data, offsets[i],
                          gguf->map_bytes);
        tensor->data = gguf->map + data + offsets[i];
    }
    return index_names(r, gguf->tensor_index, gguf->tensor_count, "tensor");
}

static int map_file(struct gguf *gguf, const char *path, char *error, size_t error_bytes)
{
    struct stat status;
    int result = 0;
    /* Without O_NONBLOCK a FIFO would hold us here. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &status) < 0) {
        result = -errno;
        say(error, error_bytes, "%s: %s: name a GGUF file that can be read", path, strerror(errno));
        goto end;
    }
    if (!S_ISREG(status.st_mode) || status.st_size <= 0) {
        result = -EBADMSG;
        say(error, error_bytes, "%s: this is %s: name a GGUF file", path,
            S_ISREG(status.st_mode) ? "an empty file" : "not a file");
        goto end;
    }
    gguf->map_bytes = (size_t)status.st_size;
    void *map = mmap(NULL, gguf->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        result = -errno;
        say(error, error_bytes, "%s: cannot be mapped: %s", path, strerror(errno));
        goto end;
    }
    gguf->map = map;
end:
    if (fd >= 0)
        close(fd);
    return result;
}

int gguf_open(struct gguf **out, const char *path, char *error, size_t error_bytes)
{
    uint64_t tensors = 0, keys = 0, *offsets = NULL;
    int result;
    *out = NULL;
    struct gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) {
        result = -ENOMEM;
        goto memory;
    }
    result = map_file(gguf, path, error, error_bytes);
    if (result)
        goto error;
    struct reader r = {gguf, gguf->map, gguf->map_bytes, path, error, error_bytes};
    result = read_header(&r, &tensors, &keys);
    if (result)
        goto error;
    gguf->key_count = (size_t)keys;
    gguf->tensor_count = (size_t)tensors;
    /* One more of each, since calloc(0) may give NULL. */
    gguf->keys = calloc(keys + 1, sizeof *gguf->keys);
    gguf->key_index = calloc(keys + 1, sizeof *gguf->key_index);
    gguf->tensors = calloc(tensors + 1, sizeof *gguf->tensors);
    gguf->tensor_index = calloc(tensors + 1, sizeof *gguf->tensor_index);
    offsets = calloc(tensors + 1, sizeof *offsets);
    if (!gguf->keys || !gguf->key_index || !gguf->tensors || !gguf->tensor_index || !offsets) {
        result = -ENOMEM;
        goto memory;
    }
    result = read_keys(&r);
    if (!result)
        result = read_tensors(&r, offsets);
    if (result)
        goto error;
    free(offsets);
    *out = gguf;
    return 0;

memory:
    say(error, error_bytes, "%s: not enough memory for its table of contents", path);
error:
    free(offsets);
    gguf_close(&gguf);
    return result;
}

void gguf_close(struct gguf **gguf)
{
    struct gguf *g = *gguf;
    if (!g)
        return;
    if (g->map)
        munmap((void *)(uintptr_t)g->map, g->map_bytes);
    free(g->keys);
    free(g->key_index);
    free(g->tensors);
    free(g->tensor_index);
    free(g);
    *gguf = NULL;
}

const void *gguf_map(const struct gguf *gguf, size_t *bytes)
{
    *bytes = gguf->map_bytes;
    return gguf->map;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name)
{
    return (const struct gguf_tensor *)find_name(gguf->tensor_index, gguf->tensor_count, name);
}

size_t gguf_tensor_count(const struct gguf *gguf)
{
    return gguf->tensor_count;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, size_t index)
{
    return index < gguf->tensor_count ? &gguf->tensors[index] : NULL;
}

/* The key, where it is a single value or an array as wanted. */
static const struct key *key_find(const struct gguf *gguf, const char *name, bool array)
{
    const struct key *key = (const struct key *)find_name(gguf->key_index, gguf->key_count, name);
    return key && key->array == array ? key : NULL;
}

static bool value_u64(const struct key *key, size_t index, uint64_t *out)
{
    if (!key || index >= key->count)
        return false;
    bool is_signed = key->type == VALUE_I8 || key->type == VALUE_I16 || key->type == VALUE_I32 ||
                     key->type == VALUE_I64;
    if (!is_signed && key->type != VALUE_U8 && key->type != VALUE_U16 && key->type != VALUE_U32 &&
        key->type != VALUE_U64)
        return false;
    size_t bytes = value_bytes[key->type];
    const uint8_t *value = key->value + index * bytes;
    if (is_signed && (value[bytes - 1] & 0x80))
        return false;
    *out = 0;
    memcpy(out, value, bytes);
    return true;
}

static bool value_f64(const struct key *key, size_t index, double *out)
{
    float f;
    if (!key || index >= key->count)
        return false;
    if (key->type == VALUE_F32) {
        memcpy(&f, key->value + index * sizeof f, sizeof f);
        *out = (double)f;
        return true;
    }
    if (key->type != VALUE_F64)
        return false;
    memcpy(out, key->value + index * sizeof *out, sizeof *out);
    return true;
}

bool gguf_u64(const struct gguf *gguf, const char *key, uint64_t *out)
{
    return value_u64(key_find(gguf, key, false), 0, out);
}

bool gguf_f64(const struct gguf *gguf, const char *key, double *out)
{
    return value_f64(key_find(gguf, key, false), 0, out);
}

bool gguf_bool(const struct gguf *gguf, const char *key, bool *out)
{
    const struct key *found = key_find(gguf, key, false);
    if (!found || found->type != VALUE_BOOL)
        return false;
    *out = *found->value != 0;
    return true;
}

bool gguf_string(const struct gguf *gguf, const char *key, struct gguf_string *out)
{
    const struct key *found = key_find(gguf, key, false);
    if (!found || found->type != VALUE_STRING)
        return false;
    *out = (struct gguf_string){(const char *)found->value + sizeof(uint64_t),
                                found->bytes - sizeof(uint64_t)};
    return true;
}

size_t gguf_array_count(const struct gguf *gguf, const char *key)
{
    const struct key *found = key_find(gguf, key, true);
    return found ? (size_t)found->count : 0;
}

bool gguf_array_u64(const struct gguf *gguf, const char *key, size_t index, uint64_t *out)
{
    return value_u64(key_find(gguf, key, true), index, out);
}

bool gguf_array_f64(const struct gguf *gguf, const char *key, size_t index, double *out)
{
    return value_f64(key_find(gguf, key, true), index, out);
}

bool gguf_array_strings(const struct gguf *gguf, const char *key, struct gguf_array_cursor *out)
{
    const struct key *found = key_find(gguf, key, true);
    if (!found || found->type != VALUE_STRING)
        return false;
    *out = (struct gguf_array_cursor){found->value, (size_t)found->count};
    return true;
}

bool gguf_array_string_next(struct gguf_array_cursor *cursor, struct gguf_string *out)
{
    uint64_t bytes;
    if (!cursor->left)
        return false;
    memcpy(&bytes, cursor->next, sizeof bytes);
    *out = (struct gguf_string){(const char *)cursor->next + sizeof bytes, (size_t)bytes};
    cursor->next += sizeof bytes + out->bytes;
    cursor->left--;
    return true;
}
