/*
 * What the model file and the adapter file say of themselves: shapes, RoPE frequencies, the
 * adapter's constants.
 *
 * Every number is held to a range before it sizes anything; a file that asks for more is refused
 * with the key's name.
 */
#include "stream/internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { KEY_BYTES_MAX = 128, SCALING_MAX = 1024 };
enum { WINDOW_ONLY_CHUNK_MAX = 1024, WINDOW_ONLY_SINKS = 8 };

static int model_u32(struct engine *e, const char *key, uint32_t *out, uint32_t most, char *error,
                     size_t error_bytes)
{
    char name[KEY_BYTES_MAX];
    uint64_t value = 0;
    snprintf(name, sizeof name, "llama.%s", key);
    if (!gguf_u64(e->model, name, &value) || value < 1 || value > most)
        return fail_with(error, error_bytes, -EBADMSG,
                         "model file: '%s' is missing or not in 1..%u", name, most);
    *out = (uint32_t)value;
    return 0;
}

/* By how much all positions lie closer (position interpolation, arXiv 2306.15595): 1 where the file
 * says nothing. A factor without a type is linear, as llama.cpp reads it; older files call it
 * scale_linear. */
static int read_scaling(struct engine *e, double *factor, char *error, size_t error_bytes)
{
    struct gguf_string type;
    bool named = gguf_string(e->model, "llama.rope.scaling.type", &type);
    *factor = 1;
    if (named && type.bytes == 4 && memcmp(type.text, "none", 4) == 0)
        return 0;
    if (named && (type.bytes != 6 || memcmp(type.text, "linear", 6) != 0))
        return fail_with(error, error_bytes, -ENOTSUP,
                         "model file: RoPE scaling '%.*s' is not supported, only linear",
                         (int)(type.bytes < 64 ? type.bytes : 64), type.text);
    bool found = gguf_f64(e->model, "llama.rope.scaling.factor", factor) ||
                 gguf_f64(e->model, "llama.rope.scale_linear", factor);
    if ((named && !found) || !(*factor >= 1) || *factor > SCALING_MAX)
        return fail_with(error, error_bytes, -EBADMSG,
                         "model file: 'llama.rope.scaling.factor' is missing or not in 1..%d",
                         SCALING_MAX);
    return 0;
}

/* The file's own divisors of the frequencies, where it has them. */
static int read_factors(struct engine *e, char *error, size_t error_bytes)
{
    uint32_t half = e->shape.head_dim / 2;
    const struct gguf_tensor *t = gguf_tensor(e->model, "rope_freqs.weight");
    bool right = !t || (t->type == TENSOR_F32 && t->dim[0] == half);
    for (uint32_t i = 0; t && right && i < half; i++) {
        double factor = (double)((const float *)t->data)[i];
        right = factor > 0 && isfinite(factor);
        e->inverse_frequency[i] /= factor;
    }
    return right
               ? 0
               : fail_with(error, error_bytes, -EBADMSG,
                           "model file: 'rope_freqs.weight' is not %u positive F32 numbers", half);
}

/* RoPE frequencies theta^(-2i/d) (RoFormer, arXiv 2104.09864). */
static int read_rope(struct engine *e, char *error, size_t error_bytes)
{
    uint32_t half = e->shape.head_dim / 2;
    double theta = 10000, factor;
    int code = read_scaling(e, &factor, error, error_bytes);
    if (code)
        return code;
    (void)gguf_f64(e->model, "llama.rope.freq_base", &theta);
    if (!(theta > 0) || !isfinite(theta))
        return fail_with(error, error_bytes, -EBADMSG,
                         "model file: 'llama.rope.freq_base' is not a positive number");
    e->inverse_frequency = calloc(half, sizeof(double));
    if (!e->inverse_frequency)
        return -ENOMEM;
    for (uint32_t i = 0; i < half; i++)
        e->inverse_frequency[i] = pow(theta, -2.0 * i / e->shape.head_dim) / factor;
    return read_factors(e, error, error_bytes);
}

/* No projection is computed with one. */
static int refuse_biases(const struct gguf *model, char *error, size_t error_bytes)
{
    for (size_t i = 0; i < gguf_tensor_count(model); i++) {
        const struct gguf_string *name = &gguf_tensor_at(model, i)->name;
        if (name->bytes >= 5 && memcmp(name->text + name->bytes - 5, ".bias", 5) == 0)
            return fail_with(error, error_bytes, -ENOTSUP,
                             "model file: biases, as '%.*s', are not supported",
                             (int)(name->bytes < 64 ? name->bytes : 64), name->text);
    }
    return 0;
}

/* Without an adapter: two chunks are the window, as long as a question beside it leaves room for in
 * the trained context. */
static uint32_t window_chunk(uint32_t context)
{
    uint32_t beside = FORK_TOKENS_MAX + WINDOW_ONLY_SINKS;
    uint32_t chunk = context > beside ? (context - beside) / 2 : 0;
    chunk -= chunk % STREAM_BLOCK_TOKENS;
    chunk = chunk < WINDOW_ONLY_CHUNK_MAX ? chunk : WINDOW_ONLY_CHUNK_MAX;
    return chunk ? chunk : STREAM_BLOCK_TOKENS; /* which layout_make refuses */
}

int metadata_read_model(struct engine *e, char *error, size_t error_bytes)
{
    struct shape *s = &e->shape;
    struct gguf_string arch = {0}, type = {0};
    if (gguf_string(e->model, "general.type", &type) && type.bytes == 7 &&
        !memcmp(type.text, "adapter", 7))
        return fail_with(error, error_bytes, -EBADMSG,
                         "the model file is an adapter: name it with --adapter, and with --model "
                         "the one it was trained for");
    if (!gguf_string(e->model, "general.architecture", &arch) || arch.bytes != 5 ||
        memcmp(arch.text, "llama", 5))
        return fail_with(
            error, error_bytes, -ENOTSUP,
            "model file: architecture '%.*s' is not supported; silt reads Llama-family "
            "files (general.architecture = llama)",
            (int)(arch.bytes < 64 ? arch.bytes : 64), arch.text ? arch.text : "");
    struct {
        const char *key;
        uint32_t *out, most;
    } want[] = {{"block_count", &s->layers, LAYERS_MAX},
                {"attention.head_count", &s->heads, 256},
                {"embedding_length", &s->dim, 1 << 16},
                {"feed_forward_length", &s->ff, 1 << 18},
                {"context_length", &s->context, 1u << 24}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        int code = model_u32(e, want[i].key, want[i].out, want[i].most, error, error_bytes);
        if (code)
            return code;
    }
    uint64_t value;
    s->kv_heads =
        gguf_u64(e->model, "llama.attention.head_count_kv", &value) ? (uint32_t)value : s->heads;
    s->head_dim = gguf_u64(e->model, "llama.attention.key_length", &value) ? (uint32_t)value
                                                                           : s->dim / s->heads;
    const struct gguf_tensor *embedding = gguf_tensor(e->model, "token_embd.weight");
    s->vocab = embedding && embedding->dim[1] < (1u << 24) ? (uint32_t)embedding->dim[1] : 0;
    if (!s->kv_heads || s->kv_heads > s->heads || s->heads % s->kv_heads || !s->head_dim ||
        s->head_dim % 2 || s->head_dim > KERNELS_HEAD_DIM_MAX || !s->vocab ||
        s->dim % KERNELS_BLOCK || s->ff % KERNELS_BLOCK || s->heads * s->head_dim % KERNELS_BLOCK)
        return fail_with(
            error, error_bytes, -EBADMSG,
            "model file: heads %u, kv heads %u, head size %u, vocabulary %u do not fit together",
            s->heads, s->kv_heads, s->head_dim, s->vocab);
    if (gguf_u64(e->model, "llama.rope.dimension_count", &value) && value != s->head_dim)
        return fail_with(error, error_bytes, -ENOTSUP,
                         "model file: RoPE over %llu of %u dimensions of a head is not supported",
                         (unsigned long long)value, s->head_dim);
    s->group = s->heads / s->kv_heads;
    s->kv_dim = s->kv_heads * s->head_dim;
    double eps = 1e-5;
    (void)gguf_f64(e->model, "llama.attention.layer_norm_rms_epsilon", &eps);
    s->norm_eps = (float)eps;
    if (!(s->norm_eps > 0 && s->norm_eps <= 1)) /* a row of zeros has a norm all the same */
        return fail_with(error, error_bytes, -EBADMSG,
                         "model file: 'llama.attention.layer_norm_rms_epsilon' is not in 0..1");
    s->chunk = window_chunk(s->context);
    s->sinks = WINDOW_ONLY_SINKS;
    int code = refuse_biases(e->model, error, error_bytes);
    return code ? code : read_rope(e, error, error_bytes);
}

void metadata_model_name(const struct gguf *model, char *out, size_t out_bytes)
{
    struct gguf_string name = {0};
    size_t used = 0;
    (void)gguf_string(model, "general.name", &name);
    while (name.bytes) {
        utf8proc_int32_t code;
        utf8proc_ssize_t n =
            utf8proc_iterate((const uint8_t *)name.text, (utf8proc_ssize_t)name.bytes, &code);
        bool shown = n > 0 && utf8proc_category(code) != UTF8PROC_CATEGORY_CC &&
                     utf8proc_category(code) != UTF8PROC_CATEGORY_CF;
        size_t bytes = n > 0 ? (size_t)n : 1;
        if (used + (shown ? bytes : 1) >= out_bytes)
            break;
        memcpy(out + used, shown ? name.text : "?", shown ? bytes : 1);
        used += shown ? bytes : 1;
        name.text += bytes;
        name.bytes -= bytes;
    }
    out[used] = '\0';
}

static int adapter_u32(struct engine *e, const char *key, uint32_t *out, uint32_t least,
                       uint32_t most, char *error, size_t error_bytes)
{
    uint64_t value = 0;
    if (!gguf_u64(e->adapter, key, &value) || value < least || value > most)
        return fail_with(error, error_bytes, -EBADMSG,
                         "adapter file: '%s' is missing or not in %u..%u", key, least, most);
    *out = (uint32_t)value;
    return 0;
}

static int read_ratios(struct engine *e, char *error, size_t error_bytes)
{
    size_t count = gguf_array_count(e->adapter, "silt.dmc_ratios");
    if (count > STREAM_RATIOS_MAX - 1)
        return fail_with(error, error_bytes, -EBADMSG, "adapter file: more than %d DMC ratios",
                         STREAM_RATIOS_MAX - 1);
    for (size_t i = 0; i < count; i++) {
        uint64_t ratio = 0;
        if (!gguf_array_u64(e->adapter, "silt.dmc_ratios", i, &ratio) ||
            ratio <= e->info.ratio[i] || ratio > STREAM_RATIO_MAX)
            return fail_with(error, error_bytes, -EBADMSG,
                             "adapter file: silt.dmc_ratios must rise from above 1 to at most %d",
                             STREAM_RATIO_MAX);
        e->info.ratio[1 + i] = (uint32_t)ratio;
    }
    e->info.ratio_count = 1 + (uint32_t)count;
    return 0;
}

int metadata_read_adapter(struct engine *e, const char *path, char *error, size_t error_bytes)
{
    struct shape *s = &e->shape;
    struct gguf_string text = {0};
    char fingerprint[17];
    if (!gguf_string(e->adapter, "adapter.type", &text) || text.bytes != 4 ||
        memcmp(text.text, "silt", 4))
        return fail_with(error, error_bytes, -EBADMSG,
                         "%s is not a silt adapter (adapter.type is not 'silt')", path);
    snprintf(fingerprint, sizeof fingerprint, "%016llx",
             (unsigned long long)e->info.model_fingerprint);
    if (!gguf_string(e->adapter, "silt.base_fingerprint", &text) || text.bytes != 16 ||
        memcmp(text.text, fingerprint, 16))
        return fail_with(error, error_bytes, -ESTALE,
                         "adapter %s was trained for another model (it wants fingerprint %.*s, the "
                         "model has %s); name the adapter made "
                         "for this model, or train one with stream/retrofit",
                         path, (int)(text.bytes < 16 ? text.bytes : 16), text.text ? text.text : "",
                         fingerprint);
    uint32_t version;
    int code = adapter_u32(e, "silt.version", &version, 1, 1, error, error_bytes);
    if (!code)
        code = adapter_u32(e, "silt.chunk_tokens", &s->chunk, STREAM_BLOCK_TOKENS, 4096, error,
                           error_bytes);
    if (!code)
        code =
            adapter_u32(e, "silt.comp_tokens", &s->comp, 1, FORWARD_ROWS_MAX, error, error_bytes);
    if (!code)
        code =
            adapter_u32(e, "silt.ring_segments", &s->ring, 1, STREAM_RING_MAX, error, error_bytes);
    if (!code)
        code = adapter_u32(e, "silt.sink_tokens", &s->sinks, 0, STREAM_SINK_TOKENS_MAX, error,
                           error_bytes);
    if (code)
        return code;
    if (s->chunk % STREAM_BLOCK_TOKENS || s->chunk % s->comp)
        return fail_with(
            error, error_bytes, -EBADMSG,
            "adapter file: chunk of %u tokens is no multiple of the block (%d) and of %u slots",
            s->chunk, STREAM_BLOCK_TOKENS, s->comp);
    double alpha = 0;
    (void)gguf_f64(e->adapter, "silt.summary_alpha_min", &alpha);
    if (!(alpha >= 0 && alpha <= 1))
        return fail_with(error, error_bytes, -EBADMSG,
                         "adapter file: silt.summary_alpha_min is not in 0..1");
    s->alpha_min = (float)alpha;
    return read_ratios(e, error, error_bytes);
}
