/*
 * Attention on a device against a softmax in double: items whose keys lie in any mix of spans,
 * window buffers, kept rows and tails, of odd lengths that differ by head; blocks, single tokens,
 * and what the plain kernel alone can do.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check/device.h"

enum { LAYER = 1, LAYERS = 2, BLOCK = CUDA_ITEM_ROWS, KEYS_MAX = 6000, ITEMS = 3 };

/* The keys of one item and KV head, gathered on the host while they are laid out for the device. */
struct keys {
    double (*k)[KERNELS_HEAD_DIM_MAX], (*v)[KERNELS_HEAD_DIM_MAX]; /* [KEYS_MAX] */
    uint32_t count;
};

struct attend_case {
    struct on_device *d;
    uint32_t dim, kv_heads, group, heads, rows; /* heads: layers * kv_heads */
    struct cuda_item item[ITEMS];
    struct keys keys[ITEMS][4]; /* of the layer's KV heads */
    uint32_t *held;             /* [ITEMS][kv_heads] */
    f16 *edge[2], *before[2], *local[2];
};

static double all[ITEMS][2][2][KEYS_MAX][KERNELS_HEAD_DIM_MAX]; /* item, head, keys and values */

static f16 *random_rows(struct attend_case *a, size_t rows)
{
    f16 *out = case_buffer(a->d->c, (rows ? rows : 1) * a->dim * sizeof *out);
    fill_halves(a->d->c, out, (rows ? rows : 1) * a->dim, 1);
    return out;
}

static f16 *put_rows(struct attend_case *a, const f16 *rows, size_t count)
{
    return device_put(a->d, rows, (count ? count : 1) * a->dim * sizeof *rows);
}

/* Rows [first, first + count) of a head, which lie `stride` rows apart, become keys. */
static void see(struct attend_case *a, struct keys *to, const f16 *k, const f16 *v, size_t first,
                uint32_t count)
{
    if (to->count + count > KEYS_MAX)
        abort();
    for (uint32_t i = 0; i < count; i++, to->count++)
        for (uint32_t n = 0; n < a->dim; n++) {
            to->k[to->count][n] = double_of(k[(first + i) * a->dim + n]);
            to->v[to->count][n] = double_of(v[(first + i) * a->dim + n]);
        }
}

static uint32_t pick(struct attend_case *a, uint32_t most)
{
    return random_u32(a->d->c) % (most + 1);
}

static void add_spans(struct attend_case *a, uint32_t at, uint32_t most)
{
    struct cuda_item *item = &a->item[at];
    uint32_t spans = pick(a, CUDA_SPANS_MAX);
    for (uint32_t i = 0; i < spans; i++) {
        uint32_t first = pick(a, 9), rows = 1 + pick(a, most), stride = first + rows + pick(a, 5);
        f16 *k = random_rows(a, (size_t)a->heads * stride);
        f16 *v = random_rows(a, (size_t)a->heads * stride);
        for (uint32_t h = 0; h < a->kv_heads; h++)
            see(a, &a->keys[at][h], k, v, (size_t)(LAYER * a->kv_heads + h) * stride + first, rows);
        item->span[item->span_count++] =
            (struct cuda_span){put_rows(a, k, (size_t)a->heads * stride),
                               put_rows(a, v, (size_t)a->heads * stride), stride, first, rows};
    }
}

/* Both window buffers; joins: the item's rows are a stream's. */
static void add_window(struct attend_case *a, uint32_t at, bool merges, bool joins)
{
    enum { ROOM = 70 };
    struct cuda_item *item = &a->item[at];
    uint32_t start[64], previous[64], open[64];
    f16 *rows[4];
    for (int i = 0; i < 4; i++)
        rows[i] = random_rows(a, (size_t)a->heads * ROOM);
    for (uint32_t h = 0; h < a->heads; h++) {
        start[h] = h * ROOM;
        previous[h] = pick(a, ROOM);
        open[h] = pick(a, ROOM);
    }
    for (uint32_t h = 0; h < a->kv_heads; h++) {
        uint32_t index = LAYER * a->kv_heads + h, held = joins ? pick(a, open[index]) : open[index];
        size_t edge = (size_t)at * a->kv_heads + h;
        struct keys *to = &a->keys[at][h];
        a->held[edge] = held;
        see(a, to, rows[0], rows[1], start[index], previous[index]);
        see(a, to, rows[2], rows[3], start[index], merges && joins && held ? held - 1 : held);
        if (merges && joins && held)
            see(a, to, a->edge[0], a->edge[1], edge, 1);
    }
    size_t bytes = a->heads * sizeof(uint32_t);
    item->window_row = device_put(a->d, start, bytes);
    item->previous_count = device_put(a->d, previous, bytes);
    item->open_count = device_put(a->d, open, bytes);
    item->previous_k = put_rows(a, rows[0], (size_t)a->heads * ROOM);
    item->previous_v = put_rows(a, rows[1], (size_t)a->heads * ROOM);
    item->open_k = put_rows(a, rows[2], (size_t)a->heads * ROOM);
    item->open_v = put_rows(a, rows[3], (size_t)a->heads * ROOM);
    item->z = merges ? device_put(a->d, NULL, bytes) : NULL;
    item->flags |= joins ? CUDA_STREAM : CUDA_COMP;
}

/* Rows of the item before: in the batch, kept as the pass began, or as the stream has them. */
static void add_before(struct attend_case *a, uint32_t at, int where)
{
    struct cuda_item *item = &a->item[at];
    uint32_t rows = BLOCK;
    item->before_rows = rows;
    item->before_row = where == 0 && at ? (int32_t)a->item[at - 1].row : -1;
    if (item->before_row >= 0)
        item->before_rows = rows = a->item[at - 1].rows;
    f16 *k = random_rows(a, (size_t)a->heads * BLOCK),
        *v = random_rows(a, (size_t)a->heads * BLOCK);
    item->raw_k = put_rows(a, k, (size_t)a->heads * BLOCK);
    item->raw_v = put_rows(a, v, (size_t)a->heads * BLOCK);
    for (uint32_t h = 0; h < a->kv_heads; h++) {
        struct keys *to = &a->keys[at][h];
        size_t index = LAYER * a->kv_heads + h, kept = (size_t)item->run * a->kv_heads + h;
        for (uint32_t i = 0; item->before_row >= 0 && i < rows; i++)
            see(a, to, a->local[0], a->local[1], ((size_t)item->before_row + i) * a->kv_heads + h,
                1);
        if (item->before_row < 0 && item->flags & CUDA_STREAM)
            see(a, to, a->before[0], a->before[1], kept * BLOCK, rows);
        else if (item->before_row < 0)
            see(a, to, k, v, index * BLOCK, rows);
    }
}

static void put_tail(struct attend_case *a, uint32_t at, uint32_t capacity, uint32_t rows,
                     uint32_t first)
{
    struct cuda_item *item = &a->item[at];
    f16 *k = random_rows(a, (size_t)a->heads * capacity);
    f16 *v = random_rows(a, (size_t)a->heads * capacity);
    item->flags |= CUDA_TAIL;
    item->tail_capacity = capacity;
    item->tail_rows = rows;
    item->tail_first = first;
    item->tail_k = put_rows(a, k, (size_t)a->heads * capacity);
    item->tail_v = put_rows(a, v, (size_t)a->heads * capacity);
    for (uint32_t h = 0; h < a->kv_heads; h++)
        see(a, &a->keys[at][h], k, v,
            (size_t)(LAYER * a->kv_heads + h) * capacity + item->tail_first,
            item->tail_rows - item->tail_first);
}

static void add_tail(struct attend_case *a, uint32_t at, uint32_t most)
{
    uint32_t rows = pick(a, most);
    put_tail(a, at, most + 40, rows, pick(a, rows));
}

/* One query head of one row, over the keys gathered and the item's own rows up to its own. */
static void check_query(struct attend_case *a, uint32_t at, uint32_t row, uint32_t query_head,
                        const float *qkv, const float *rotation, const bf16 *got)
{
    struct keys *keys = &a->keys[at][query_head / a->group];
    uint32_t dim = a->dim, count = keys->count, seen = count + row + 1;
    static double weight[KEYS_MAX + BLOCK];
    double q[KERNELS_HEAD_DIM_MAX], total = 0, top = -INFINITY;
    see(a, keys, a->local[0], a->local[1], 0, 0);
    for (uint32_t i = 0; i <= row; i++)
        see(a, keys, a->local[0], a->local[1],
            (size_t)(a->item[at].row + i) * a->kv_heads + query_head / a->group, 1);
    for (uint32_t i = 0; i < dim; i += 2) {
        double x = (double)qkv[query_head * dim + i], y = (double)qkv[query_head * dim + i + 1];
        q[i] = x * (double)rotation[i] - y * (double)rotation[i + 1];
        q[i + 1] = x * (double)rotation[i + 1] + y * (double)rotation[i];
    }
    for (uint32_t j = 0; j < seen; j++) {
        weight[j] = 0;
        for (uint32_t i = 0; i < dim; i++)
            weight[j] += q[i] * keys->k[j][i] / sqrt(dim);
        top = fmax(top, weight[j]);
    }
    for (uint32_t j = 0; j < seen; j++)
        total += weight[j] = exp(weight[j] - top);
    for (uint32_t i = 0; i < dim; i++) {
        double want = 0, size = 0;
        for (uint32_t j = 0; j < seen; j++) {
            want += weight[j] / total * keys->v[j][i];
            size += weight[j] / total * fabs(keys->v[j][i]);
        }
        /* Queries and weights are rounded to f16 on their way into the tensor cores. */
        if (!(fabs(double_of_bf16(got[i]) - want) <= 0x1p-8 * fabs(want) + 0x1p-8 * size + 1e-5)) {
            case_fail(a->d->c, "item %u, row %u, head %u, column %u: %g, not %g (%u keys)", at, row,
                      query_head, i, double_of_bf16(got[i]), want, seen);
            break;
        }
    }
    keys->count = count;
}

static void run_case(struct attend_case *a, uint32_t keys_max, bool simple)
{
    struct on_device *d = a->d;
    uint32_t q_dim = a->kv_heads * a->group * a->dim, stride = q_dim + 2 * a->kv_heads * a->dim;
    float *qkv = case_floats(d->c, (size_t)a->rows * stride);
    float *rotation = case_floats(d->c, (size_t)a->rows * a->dim);
    bf16 *att = case_buffer(d->c, (size_t)a->rows * q_dim * sizeof *att);
    size_t lanes = (size_t)ITEMS * a->kv_heads;
    struct cuda_batch b = {.shape = {.heads = a->kv_heads * a->group,
                                     .kv_heads = a->kv_heads,
                                     .group = a->group,
                                     .head_dim = a->dim},
                           .rows = a->rows,
                           .items = ITEMS,
                           .runs = ITEMS,
                           .keys_max = keys_max};
    fill_floats(d->c, qkv, (size_t)a->rows * stride, FILL_NORMAL);
    fill_rotation(d->c, rotation, a->rows, a->dim);
    for (uint32_t i = 0; i < ITEMS; i++)
        b.rows_most = a->item[i].rows > b.rows_most ? a->item[i].rows : b.rows_most;
    b.item = device_put(d, a->item, sizeof a->item);
    b.qkv = device_put(d, qkv, (size_t)a->rows * stride * sizeof *qkv);
    b.rotation = device_put(d, rotation, (size_t)a->rows * a->dim * sizeof *rotation);
    b.att = device_put(d, NULL, (size_t)a->rows * q_dim * sizeof *att);
    b.k_local = put_rows(a, a->local[0], (size_t)a->rows * a->kv_heads);
    b.v_local = put_rows(a, a->local[1], (size_t)a->rows * a->kv_heads);
    b.held = device_put(d, a->held, lanes * sizeof *a->held);
    b.edge_k = put_rows(a, a->edge[0], lanes);
    b.edge_v = put_rows(a, a->edge[1], lanes);
    b.before_k = put_rows(a, a->before[0], lanes * BLOCK);
    b.before_v = put_rows(a, a->before[1], lanes * BLOCK);
    b.partial = device_put(d, NULL, d->cuda->partial_bytes(&b.shape, ITEMS, keys_max));
    d->cuda->simple = simple;
    d->cuda->attend(d->cuda, &b, LAYER);
    d->cuda->simple = false;
    device_get(d, att, b.att, (size_t)a->rows * q_dim * sizeof *att);
    for (uint32_t i = 0; i < ITEMS; i++)
        for (uint32_t r = 0; r<a->item[i].rows; r += a->item[i].rows> 8 ? 5 : 1)
            for (uint32_t h = 0; h < a->kv_heads * a->group; h++) {
                size_t row = a->item[i].row + r;
                check_query(a, i, r, h, qkv + row * stride, rotation + row * a->dim,
                            att + row * q_dim + h * a->dim);
            }
}

enum mix { MIX_TAIL, MIX_PLAIN, MIX_MERGING, MIX_COMP, MIX_ALONE, MIX_COUNT };

static void attend_case(struct on_device *d, uint32_t dim, uint32_t group, uint32_t rows,
                        enum mix mix, uint32_t most, bool simple)
{
    static const char *const name[] = {"tails", "windows", "merging", "COMP", "own rows"};
    struct attend_case a = {.d = d, .dim = dim, .kv_heads = 2, .group = group};
    case_begin(d->c, "attend%s, %s, head size %u, group %u, %u rows, spans to %u",
               simple ? " (plain)" : "", name[mix], dim, group, rows, most);
    a.heads = LAYERS * a.kv_heads;
    for (uint32_t i = 0; i < ITEMS; i++) {
        uint32_t own = i == 1 && rows > 1 ? 1 + pick(&a, rows - 1) : rows;
        a.item[i] = (struct cuda_item){.row = a.rows, .rows = own, .run = i, .before_row = -1};
        a.rows += own;
        for (uint32_t h = 0; h < a.kv_heads; h++)
            a.keys[i][h] = (struct keys){all[i][h][0], all[i][h][1], 0};
    }
    a.held = case_buffer(d->c, (size_t)ITEMS * a.kv_heads * sizeof *a.held);
    memset(a.held, 0, (size_t)ITEMS * a.kv_heads * sizeof *a.held);
    for (int i = 0; i < 2; i++) {
        a.edge[i] = random_rows(&a, (size_t)ITEMS * a.kv_heads);
        a.before[i] = random_rows(&a, (size_t)ITEMS * a.kv_heads * BLOCK);
        a.local[i] = random_rows(&a, (size_t)a.rows * a.kv_heads);
    }
    for (uint32_t i = 0; i < ITEMS; i++) {
        if (mix != MIX_ALONE && i != 2) /* one without any, beside them */
            add_spans(&a, i, most);
        if (mix == MIX_PLAIN || mix == MIX_MERGING || mix == MIX_COMP)
            add_window(&a, i, mix != MIX_PLAIN, mix != MIX_COMP);
        if (mix == MIX_MERGING || mix == MIX_COMP)
            add_before(&a, i, (int)i % 2);
        if (mix == MIX_TAIL)
            add_tail(&a, i, most);
    }
    run_case(&a, KEYS_MAX, simple);
    device_end(d);
}

/* Single tokens that see as many keys as the bound says, or one less: of the blocks of threads that
 * share them, 1,024 each, the last has one key alone, or none. */
static void edge_case(struct on_device *d, uint32_t dim, uint32_t group, uint32_t keys)
{
    struct attend_case a = {.d = d, .dim = dim, .kv_heads = 2, .group = group, .rows = ITEMS};
    case_begin(d->c, "attend, head size %u, group %u, %u keys and no more", dim, group, keys);
    a.heads = LAYERS * a.kv_heads;
    a.held = case_buffer(d->c, (size_t)ITEMS * a.kv_heads * sizeof *a.held);
    for (int i = 0; i < 2; i++) {
        a.edge[i] = random_rows(&a, (size_t)ITEMS * a.kv_heads);
        a.before[i] = random_rows(&a, (size_t)ITEMS * a.kv_heads * BLOCK);
        a.local[i] = random_rows(&a, (size_t)a.rows * a.kv_heads);
    }
    for (uint32_t i = 0; i < ITEMS; i++) {
        a.item[i] = (struct cuda_item){.row = i, .rows = 1, .run = i, .before_row = -1};
        for (uint32_t h = 0; h < a.kv_heads; h++)
            a.keys[i][h] = (struct keys){all[i][h][0], all[i][h][1], 0};
        put_tail(&a, i, keys, keys - 1 - i % 2, 0);
    }
    run_case(&a, keys, false);
    device_end(d);
}

void check_device_attend(struct on_device *d)
{
    static const uint32_t dims[] = {64, 128, 32, 48};
    for (size_t i = 0; i < (d->small ? 1 : 4); i++)
        for (enum mix mix = 0; mix < MIX_COUNT; mix++) {
            attend_case(d, dims[i], 3, 32, mix, 40, false);
            attend_case(d, dims[i], 3, 1, mix, d->small ? 40 : 500, false);
            if (d->small)
                continue;
            attend_case(d, dims[i], 1, 31, mix, 7, false);
            attend_case(d, dims[i], 4, 4, mix, 130, false);
            attend_case(d, dims[i], 8, 17, mix, 60, false);
            attend_case(d, dims[i], 3, 9, mix, 20, true);
            attend_case(d, dims[i], 2, 32, mix, 33, false);
        }
    for (uint32_t keys = 1023; keys <= 1025; keys++)
        edge_case(d, 64, 3, keys);
    for (uint32_t keys = 2047; keys <= 2049 && !d->small; keys++)
        edge_case(d, 128, 4, keys);
    /* More heads, and wider ones, than tensor cores are used for: by the plain kernel. */
    for (enum mix mix = 0; mix < (d->small ? 1 : MIX_COUNT); mix++) {
        attend_case(d, 64, 16, 1, mix, 60, false); /* the most that are, of single tokens */
        attend_case(d, 64, 20, 1, mix, 60, false);
        attend_case(d, 128, 7, 18, mix, 30, false);
        attend_case(d, 256, 2, 3, mix, 30, false);
        attend_case(d, 2, 2, 32, mix, 30, false);
    }
}
