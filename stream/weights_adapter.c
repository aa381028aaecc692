/*
 * An adapter file's tensors: the COMP and DMC updates, ratios and quotas, the map of the summary,
 * recall keys.
 */
#include "stream/weights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANK_MAX = 1024 };

static const struct gguf_tensor *lora_part(struct loader *l, uint32_t n, const char *kind,
                                           char target, char side)
{
    char name[KEY_BYTES_MAX];
    snprintf(name, sizeof name, "blk.%u.%s_%c.%c", n, kind, target, side);
    return gguf_tensor(l->engine->adapter, name);
}

/* Stacks the A matrices of q, k, v, and the decision rows, as fp32: they may be stored in different
 * types. */
static int load_lora_in(struct loader *l, struct lora *lora, uint32_t n, const char *kind,
                        bool decide)
{
    const struct shape *s = &l->engine->shape;
    uint32_t rows = lora->rank[0] + lora->rank[1] + lora->rank[2];
    lora->decide_column = rows;
    if (decide)
        rows += 2 * s->kv_heads;
    if (!rows)
        return 0;
    float *stack = calloc((size_t)rows * s->dim, sizeof(float));
    if (!stack)
        return -ENOMEM;
    uint32_t at = 0;
    for (uint32_t i = 0; i < 4; i++) {
        char name[KEY_BYTES_MAX];
        const struct gguf_tensor *t = i < 3 ? lora_part(l, n, kind, "qkv"[i], 'a') : NULL;
        if (i == 3 && decide) {
            snprintf(name, sizeof name, "blk.%u.dmc_decide", n);
            t = loader_find(l, l->engine->adapter, name, 2 * s->kv_heads, s->dim);
        }
        for (uint32_t r = 0; t && r < t->dim[1]; r++, at++)
            tensor_row(stack + (size_t)at * s->dim,
                       (const char *)t->data + r * tensor_row_bytes(t->type, s->dim), t->type,
                       s->dim);
    }
    int code = at != rows       ? -EBADMSG
               : l->engine->gpu ? loader_refer(l, &lora->in, stack, TENSOR_F32, rows, s->dim, true)
                                : loader_pack(l, &lora->in, stack, TENSOR_F32, rows, s->dim);
    free(stack);
    return code;
}

static int load_lora(struct loader *l, struct lora *lora, uint32_t n, const char *kind, bool decide)
{
    const struct shape *s = &l->engine->shape;
    const uint32_t out[4] = {s->heads * s->head_dim, s->kv_dim, s->kv_dim, s->dim};
    int code = 0;
    for (int i = 0; i < 4 && !code; i++) {
        const struct gguf_tensor *a = lora_part(l, n, kind, "qkvo"[i], 'a');
        uint32_t in = i == 3 ? s->heads * s->head_dim : s->dim;
        char name[KEY_BYTES_MAX];
        lora->rank[i] = 0;
        if (!a)
            continue;
        if (a->dim[1] < 1 || a->dim[1] > RANK_MAX)
            return fail_with(l->error, l->error_bytes, -EBADMSG,
                             "adapter: rank of blk.%u.%s_%c is not in 1..%d", n, kind, "qkvo"[i],
                             RANK_MAX);
        uint32_t rank = (uint32_t)a->dim[1];
        snprintf(name, sizeof name, "blk.%u.%s_%c.a", n, kind, "qkvo"[i]);
        a = loader_find(l, l->engine->adapter, name, rank, in);
        snprintf(name, sizeof name, "blk.%u.%s_%c.b", n, kind, "qkvo"[i]);
        const struct gguf_tensor *b = loader_find(l, l->engine->adapter, name, out[i], rank);
        if (!a || !b)
            return -EBADMSG;
        lora->rank[i] = rank;
        code = loader_pack(l, i == 3 ? &lora->o_b : &lora->b[i], b->data, b->type, out[i], rank);
        if (i == 3 && !code)
            code = loader_pack(l, &lora->o_a, a->data, a->type, rank, in);
    }
    if (!code)
        code = load_lora_in(l, lora, n, kind, decide);
    if (!code && decide) {
        char name[KEY_BYTES_MAX];
        snprintf(name, sizeof name, "blk.%u.dmc_decide.bias", n);
        code = loader_floats(l, &lora->decide_bias, l->engine->adapter, name, 1, 2 * s->kv_heads);
    }
    return code;
}

static int load_ratios(struct loader *l)
{
    struct engine *e = l->engine;
    const struct shape *s = &e->shape;
    uint32_t ratios = e->info.ratio_count - 1, heads = s->layers * s->kv_heads;
    const float *quota = NULL;
    int code = loader_floats(l, &e->ratio_bias, e->adapter, "dmc.ratio_bias", ratios, heads);
    if (!code)
        code = loader_floats(l, &quota, e->adapter, "dmc.quota", ratios, heads);
    uint32_t *whole = loader_take(l, (size_t)ratios * heads * sizeof *whole);
    if (code || !whole)
        return code;
    for (uint32_t r = 0; r < ratios; r++) {
        uint32_t ratio = e->info.ratio[1 + r];
        uint64_t sum = 0, most = (uint64_t)heads * 2 * s->chunk / ratio;
        for (uint32_t i = r * heads; i < (r + 1) * heads; i++) {
            if (!(quota[i] >= 1 && quota[i] <= (float)s->chunk))
                return fail_with(l->error, l->error_bytes, -EBADMSG,
                                 "adapter: dmc.quota holds %g, outside 1..%u", (double)quota[i],
                                 s->chunk);
            whole[i] = (uint32_t)quota[i];
            sum += whole[i];
        }
        if (sum > most)
            return fail_with(l->error, l->error_bytes, -EBADMSG,
                             "adapter: the quotas of %ux add up to %llu entries a chunk, over the "
                             "%llu that the ratio allows",
                             ratio, (unsigned long long)sum, (unsigned long long)most);
    }
    e->quota = whole;
    return 0;
}

/* Keys of the vocabulary are made here, from the map and the embeddings: many times smaller in the
 * file. */
static int load_recall_tokens(struct loader *l, uint32_t c)
{
    struct engine *e = l->engine;
    const struct kernels *k = e->kernels;
    const struct gguf_tensor *map = loader_find(l, e->adapter, "recall.token", c, e->shape.dim);
    const float *bias, *gain;
    uint8_t *rows = NULL;
    float *scratch = NULL;
    void *memory = NULL;
    struct weight packed;

    int code = map ? 0 : -EBADMSG;
    if (!code)
        code = loader_floats(l, &bias, e->adapter, "recall.token.bias", 1, c);
    if (!code)
        code = loader_floats(l, &gain, e->adapter, "recall.gain", 1, e->shape.vocab);
    if (!code && l->memory) {
        rows = malloc(e->shape.vocab * tensor_row_bytes(TENSOR_Q8_0, c));
        memory = aligned_alloc(64, (k->weight_bytes(k, map->type, c, e->shape.dim) + 63) / 64 * 64);
        scratch = malloc((size_t)KERNELS_ROWS_MAX * (e->shape.dim + c) * sizeof *scratch);
        code = rows && memory && scratch ? 0 : -ENOMEM;
        if (!code)
            code = k->weight_pack(k, &packed, memory, map->data, map->type, c, e->shape.dim);
        if (!code)
            recall_key_rows(e, &packed, bias, gain, scratch, rows);
    }
    if (!code)
        code = loader_pack(l, &e->recall.token, rows, TENSOR_Q8_0, e->shape.vocab, c);
    free(memory);
    free(scratch);
    free(rows);
    return code;
}

/* Optional: without them far chunks are found by words alone. */
static int load_recall(struct loader *l)
{
    struct engine *e = l->engine;
    const struct shape *s = &e->shape;
    struct recall_key *r = &e->recall;
    const struct gguf_tensor *t = gguf_tensor(e->adapter, "recall.query");
    uint64_t layer = 0;

    if (!t)
        return 0;
    if (t->dim[1] < KERNELS_BLOCK || t->dim[1] > RECALL_DIM_MAX || t->dim[1] % KERNELS_BLOCK ||
        s->vocab > RECALL_VOCAB_MAX || !gguf_u64(e->adapter, "silt.recall_layer", &layer) ||
        layer > s->layers)
        return fail_with(l->error, l->error_bytes, -EBADMSG,
                         "adapter: recall keys want a width in %d..%d by %d, silt.recall_layer of "
                         "at most %u and a vocabulary of at most %d",
                         KERNELS_BLOCK, RECALL_DIM_MAX, KERNELS_BLOCK, s->layers, RECALL_VOCAB_MAX);
    uint32_t c = (uint32_t)t->dim[1];
    r->layer = (uint32_t)layer;
    t = loader_find(l, e->adapter, "recall.query", c, 2 * s->dim);
    int code = t ? loader_pack(l, &r->query, t->data, t->type, c, 2 * s->dim) : -EBADMSG;
    if (!code)
        code = loader_floats(l, &r->query_bias, e->adapter, "recall.query.bias", 1, c);
    if (!code)
        code = loader_floats(l, &r->weight, e->adapter, "recall.weight", 1, s->vocab);
    if (!code)
        code = loader_floats(l, &r->weight_deep, e->adapter, "recall.weight_deep", 1, s->dim);
    if (!code)
        code = load_recall_tokens(l, c);
    r->input = loader_take(l, (size_t)STREAM_BLOCK_TOKENS * 2 * s->dim * sizeof(float));
    r->queries = loader_take(l, (size_t)RECALL_QUESTION_MAX * c * sizeof(float));
    r->dim = code ? 0 : c;
    return code;
}

static bool has_map(const struct gguf *adapter, uint32_t n, char *name, char *bias)
{
    snprintf(name, KEY_BYTES_MAX, "blk.%u.summary", n);
    snprintf(bias, KEY_BYTES_MAX, "blk.%u.summary.bias", n);
    return gguf_tensor(adapter, name) || gguf_tensor(adapter, bias);
}

/* Optional, in all layers or in none: see struct layer. */
static int load_summary_map(struct loader *l, uint32_t n)
{
    struct engine *e = l->engine;
    const struct shape *s = &e->shape;
    uint32_t count = 2 * s->kv_heads, dim = s->head_dim;
    struct weight only_counted, *map;
    char name[KEY_BYTES_MAX], bias[KEY_BYTES_MAX];
    bool first = has_map(e->adapter, 0, name, bias), own = has_map(e->adapter, n, name, bias);

    if (own != first)
        return fail_with(l->error, l->error_bytes, -EBADMSG,
                         "adapter: blk.%u has %s map of the summary where blk.0 has %s: all layers "
                         "have one, or none has",
                         n, own ? "a" : "no", own ? "none" : "one");
    if (!own)
        return 0;
    const struct gguf_tensor *t = loader_find(l, e->adapter, name, count * dim, dim);
    int code = t ? loader_floats(l, &e->layer[n].summary_bias, e->adapter, bias, 1, count * dim)
                 : -EBADMSG;
    map = loader_take(l, count * sizeof *map);
    for (uint32_t i = 0; i < count && !code; i++)
        code = loader_pack(l, map ? &map[i] : &only_counted,
                           (const char *)t->data + i * dim * tensor_row_bytes(t->type, dim),
                           t->type, dim, dim);
    e->layer[n].summary_map = map;
    return code;
}

int adapter_load(struct loader *l)
{
    struct engine *e = l->engine;
    const struct shape *s = &e->shape;
    bool dmc = e->info.ratio_count > 1;
    int code = loader_floats(l, &e->comp_embedding, e->adapter, "comp.embd", s->comp, s->dim);
    for (uint32_t n = 0; n < s->layers && !code; n++) {
        code = load_lora(l, &e->layer[n].comp, n, "comp", false);
        if (!code && dmc)
            code = load_lora(l, &e->layer[n].dmc, n, "dmc", true);
        if (!code)
            code = load_summary_map(l, n);
    }
    if (!code && dmc)
        code = load_ratios(l);
    l->refers = false; /* what looks through the keys is the CPU, on any device */
    return code ? code : load_recall(l);
}
