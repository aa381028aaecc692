/*
 * From a model file and an adapter file (weights_adapter.c) to packed weights.
 *
 * Every tensor's shape is checked before it is used. Two passes over the same code fill the
 * weights: the first only adds up bytes, the second packs into the one block that the sum asked
 * for.
 */
#include "stream/weights.h"
#include "stream/token.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

enum { HUGE_PAGE_BYTES = 2 << 20 };

int fail_with(char *error, size_t error_bytes, int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (error && error_bytes)
        vsnprintf(error, error_bytes, format, list);
    va_end(list);
    return code;
}

void *loader_take(struct loader *l, size_t bytes)
{
    size_t at = l->used;
    l->used += (bytes + 63) & ~(size_t)63;
    return l->memory ? l->memory + at : NULL;
}

const struct gguf_tensor *loader_find(struct loader *l, const struct gguf *file, const char *name,
                                      uint64_t rows, uint64_t cols)
{
    const struct gguf_tensor *t = gguf_tensor(file, name);
    const char *which = file == l->engine->model ? "model" : "adapter";
    if (!t) {
        fail_with(l->error, l->error_bytes, 0,
                  "%s file has no tensor '%s'; it is not complete, or not of a Llama-family model",
                  which, name);
        return NULL;
    }
    uint64_t t_rows = t->dim[1] * t->dim[2] * t->dim[3];
    if (t->dim[0] != cols || t_rows != rows) {
        fail_with(
            l->error, l->error_bytes, 0,
            "%s tensor '%s' is %llu x %llu where %llu x %llu is needed: the file is of another "
            "model",
            which, name, (unsigned long long)t_rows, (unsigned long long)t->dim[0],
            (unsigned long long)rows, (unsigned long long)cols);
        return NULL;
    }
    /* What an adapter's matrices meet are fp32 rows, never quantised ones. */
    bool model = file == l->engine->model;
    bool quantized = t->type != TENSOR_F32 && t->type != TENSOR_F16 && t->type != TENSOR_BF16;
    if (!tensor_row_bytes(t->type, (uint32_t)cols) || (quantized && !model)) {
        fail_with(
            l->error, l->error_bytes, 0,
            "%s tensor '%s' has type %d, which silt does not read there; convert to F32, F16%s",
            which, name, (int)t->type, model ? ", BF16, Q8_0, Q4_0 or Q4_1" : " or BF16");
        return NULL;
    }
    if (l->memory && !tensor_finite(t->data, t->type, t->data_bytes)) {
        fail_with(l->error, l->error_bytes, 0,
                  "%s tensor '%s' holds infinities or what is no number: the file is damaged",
                  which, name);
        return NULL;
    }
    return t;
}

int loader_floats(struct loader *l, const float **out, const struct gguf *file, const char *name,
                  uint32_t rows, uint32_t cols)
{
    const struct gguf_tensor *t = loader_find(l, file, name, rows, cols);
    if (!t)
        return -EBADMSG;
    float *to = loader_take(l, (size_t)rows * cols * sizeof(float));
    size_t row_bytes = tensor_row_bytes(t->type, cols);
    for (uint32_t i = 0; to && i < rows; i++)
        tensor_row(to + (size_t)i * cols, (const char *)t->data + i * row_bytes, t->type, cols);
    *out = to;
    return 0;
}

/* The exact engine's weights: fp32, from whatever the file holds. */
static int pack_exact(struct loader *l, struct weight *out, void *memory, const void *rows_data,
                      enum tensor_type type, uint32_t rows, uint32_t cols)
{
    const struct kernels *k = l->engine->kernels;
    size_t row_bytes = tensor_row_bytes(type, cols);
    float *exact = malloc((size_t)rows * cols * sizeof *exact);
    if (!exact)
        return -ENOMEM;
    for (uint32_t i = 0; i < rows; i++)
        tensor_row(exact + (size_t)i * cols, (const char *)rows_data + i * row_bytes, type, cols);
    int code = k->weight_pack(k, out, memory, exact, TENSOR_F32, rows, cols);
    free(exact);
    return code;
}

int loader_refer(struct loader *l, struct weight *out, const void *rows_data, enum tensor_type type,
                 uint32_t rows, uint32_t cols, bool ours)
{
    size_t bytes = rows * tensor_row_bytes(type, cols);
    void *copy = ours ? loader_take(l, bytes) : NULL;
    *out = (struct weight){.rows = rows, .cols = cols, .layout = type, .data = rows_data};
    if (ours && l->memory)
        memcpy(copy, rows_data, bytes);
    if (ours)
        out->data = copy;
    return 0;
}

int loader_pack(struct loader *l, struct weight *out, const void *rows_data, enum tensor_type type,
                uint32_t rows, uint32_t cols)
{
    const struct kernels *k = l->engine->kernels;
    enum tensor_type as = l->engine->exact ? TENSOR_F32 : type;
    if (l->refers)
        return loader_refer(l, out, rows_data, type, rows, cols, false);
    void *memory = loader_take(l, k->weight_bytes(k, as, rows, cols));
    *out = (struct weight){.rows = rows, .cols = cols};
    if (!memory)
        return 0;
    if (as != type)
        return pack_exact(l, out, memory, rows_data, type, rows, cols);
    return k->weight_pack(k, out, memory, rows_data, type, rows, cols);
}

/* Stacks tensors of one type into one matrix; false where their types differ or a row cannot be
 * moved as bytes. */
static bool stackable(const struct gguf_tensor **t, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        if (t[i]->type != t[0]->type)
            return false;
    return count > 1;
}

static int load_stacked(struct loader *l, struct weight *out, const struct gguf_tensor **t,
                        uint32_t count)
{
    uint32_t rows = 0, cols = (uint32_t)t[0]->dim[0];
    size_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        rows += (uint32_t)t[i]->dim[1];
        bytes += t[i]->data_bytes;
    }
    if (bytes > l->stack_bytes) {
        void *stack = realloc(l->stack, bytes);
        if (!stack)
            return -ENOMEM;
        l->stack = stack;
        l->stack_bytes = bytes;
    }
    size_t at = 0;
    for (uint32_t i = 0; l->memory && i < count; i++) {
        memcpy((char *)l->stack + at, t[i]->data, t[i]->data_bytes);
        at += t[i]->data_bytes;
    }
    return loader_pack(l, out, l->stack, t[0]->type, rows, cols);
}

static int load_projection(struct loader *l, struct projection *p, const char *const *names,
                           const uint32_t *rows, uint32_t count, uint32_t cols)
{
    const struct gguf_tensor *t[PROJECTION_PARTS_MAX];
    uint32_t column = 0;
    int code = 0;
    assert(count <= PROJECTION_PARTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        t[i] = loader_find(l, l->engine->model, names[i], rows[i], cols);
        if (!t[i])
            return -EBADMSG;
    }
    if (!l->engine->gpu && stackable(t, count)) {
        p->count = 1;
        p->column[0] = 0;
        return load_stacked(l, &p->part[0], t, count);
    }
    p->count = count;
    for (uint32_t i = 0; i < count && !code; i++) {
        p->column[i] = column;
        column += rows[i];
        code = loader_pack(l, &p->part[i], t[i]->data, t[i]->type, rows[i], cols);
    }
    return code;
}

static int load_base_layer(struct loader *l, uint32_t n)
{
    struct engine *e = l->engine;
    const struct shape *s = &e->shape;
    struct layer *layer = &e->layer[n];
    char name[9][KEY_BYTES_MAX];
    static const char *const part[9] = {"attn_norm",   "ffn_norm", "attn_q", "attn_k",  "attn_v",
                                        "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    for (int i = 0; i < 9; i++)
        snprintf(name[i], sizeof name[i], "blk.%u.%s.weight", n, part[i]);
    uint32_t q_dim = s->heads * s->head_dim;
    int code = loader_floats(l, &layer->attn_norm, e->model, name[0], 1, s->dim);
    if (!code)
        code = loader_floats(l, &layer->ffn_norm, e->model, name[1], 1, s->dim);
    if (!code)
        code = load_projection(l, &layer->qkv, (const char *const[]){name[2], name[3], name[4]},
                               (uint32_t[]){q_dim, s->kv_dim, s->kv_dim}, 3, s->dim);
    if (!code)
        code = load_projection(l, &layer->o, (const char *const[]){name[5]}, (uint32_t[]){s->dim},
                               1, q_dim);
    if (!code)
        code = load_projection(l, &layer->gate_up, (const char *const[]){name[6], name[7]},
                               (uint32_t[]){s->ff, s->ff}, 2, s->dim);
    if (!code)
        code = load_projection(l, &layer->down, (const char *const[]){name[8]},
                               (uint32_t[]){s->dim}, 1, s->ff);
    return code;
}

static int load_base(struct loader *l)
{
    struct engine *e = l->engine;
    const struct shape *s = &e->shape;
    int code = loader_floats(l, &e->output_norm, e->model, "output_norm.weight", 1, s->dim);
    e->embedding = loader_find(l, e->model, "token_embd.weight", s->vocab, s->dim);
    if (!e->embedding)
        return -EBADMSG;
    const char *head =
        gguf_tensor(e->model, "output.weight") ? "output.weight" : "token_embd.weight";
    if (!code)
        code = load_projection(l, &e->head, (const char *const[]){head}, (uint32_t[]){s->vocab}, 1,
                               s->dim);
    for (uint32_t n = 0; n < s->layers && !code; n++)
        code = load_base_layer(l, n);
    return code;
}

static uint64_t fingerprint(const struct gguf *file)
{
    size_t bytes;
    const void *map = gguf_map(file, &bytes);
    return XXH3_64bits(map, bytes);
}

static void fill_info(struct engine *e)
{
    struct engine_info *i = &e->info;
    const struct shape *s = &e->shape;
    metadata_model_name(e->model, i->model_name, sizeof i->model_name);
    i->layer_count = s->layers;
    i->head_count = s->heads;
    i->kv_head_count = s->kv_heads;
    i->head_dim = s->head_dim;
    i->model_dim = s->dim;
    i->vocab_count = s->vocab;
    i->context_tokens = s->context;
    i->chunk_tokens = s->chunk;
    i->comp_tokens = s->comp;
    i->ring_segments = s->ring;
    i->sink_tokens = s->sinks;
    i->kernels_name = e->kernels->name;
    i->kernels_revision = KERNELS_REVISION;
    i->threads = e->kernels->threads;
}

static int load_pass(struct loader *l)
{
    l->refers = l->engine->gpu;
    int code = load_base(l);
    if (!code && l->engine->adapter)
        code = adapter_load(l);
    return code;
}

/* Every token reads all of it: large pages spare it most of the address look-ups. */
static void *weights_take(size_t bytes)
{
    size_t huge = bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    void *memory;
    if (posix_memalign(&memory, huge ? HUGE_PAGE_BYTES : 64, bytes ? bytes : 64))
        return NULL;
    if (huge)
        (void)madvise(memory, huge, MADV_HUGEPAGE);
    return memory;
}

static int load_packed(struct engine *e, char *error, size_t error_bytes)
{
    struct loader l = {.engine = e, .error = error, .error_bytes = error_bytes};
    int code = load_pass(&l);
    if (!code) {
        e->weights_used = l.used;
        e->weights_memory = weights_take(l.used);
        if (!e->weights_memory)
            code = fail_with(error, error_bytes, -ENOMEM, "no memory for %zu MB of weights",
                             l.used / MB);
    }
    if (!code) {
        l.memory = e->weights_memory;
        l.used = 0;
        code = load_pass(&l);
        assert(code || l.used == e->weights_used);
    }
    free(l.stack);
    return code;
}

/* Packed copies serve from now on; of the map only embedding rows are read again. Those come in
 * now, so that the process is as large at its first token as it will be at any later one. */
static void settle_map(struct engine *e)
{
    size_t bytes;
    char *map = (char *)(uintptr_t)gguf_map(e->model, &bytes);
    (void)madvise(map, bytes, MADV_DONTNEED);
    volatile const char *row = e->embedding->data;
    for (size_t at = 0; at < e->embedding->data_bytes; at += 4096)
        (void)row[at];
}

int weights_load(struct engine *e, const struct engine_options *options, char *error,
                 size_t error_bytes)
{
    e->exact = options->exact;
    int code = gguf_open(&e->model, options->model_path, error, error_bytes);
    if (code)
        return code;
    e->info.model_fingerprint = fingerprint(e->model);
    e->info.ratio[0] = e->info.ratio_count = 1;
    code = metadata_read_model(e, error, error_bytes);
    if (!code)
        code = tokenizer_open(&e->tokenizer, e->model, error, error_bytes);
    if (code)
        return code;
    if (tokenizer_vocab_count(e->tokenizer) > e->shape.vocab)
        return fail_with(error, error_bytes, -EBADMSG,
                         "model file: %u tokens but embeddings for %u",
                         tokenizer_vocab_count(e->tokenizer), e->shape.vocab);
    if (options->adapter_path) {
        code = gguf_open(&e->adapter, options->adapter_path, error, error_bytes);
        if (!code)
            code = metadata_read_adapter(e, options->adapter_path, error, error_bytes);
        if (code)
            return code;
        e->info.adapter_fingerprint = fingerprint(e->adapter);
    }
    code = load_packed(e, error, error_bytes);
    if (code)
        return code;
    fill_info(e);
    e->info.weights_bytes =
        e->weights_used + e->embedding->data_bytes + tokenizer_memory_bytes(e->tokenizer);
    settle_map(e);
    return 0;
}

void weights_free(struct engine *e)
{
    free(e->weights_memory);
    free(e->inverse_frequency);
    tokenizer_close(&e->tokenizer);
    gguf_close(&e->adapter);
    gguf_close(&e->model);
    e->weights_memory = NULL;
    e->inverse_frequency = NULL;
}
