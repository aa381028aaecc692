/*
 * Entries on a device against DMC's rule, token after token: what a run of items leaves in its
 * window, what each item is to see of it, and the rows as they are.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check/device.h"

enum {
    KV_HEADS = 3,
    GROUP = 2,
    LAYER = 1,
    HEADS = 2 * KV_HEADS,
    BLOCK = CUDA_ITEM_ROWS,
    SINKS = 8
};

/* A run of whole blocks from a chunk's start, on the host. */
struct run_case {
    uint32_t dim, items, rows, capacity, stride;
    float *qkv, *decide, *rotation;
    float bias[2 * KV_HEADS], ratio_bias[HEADS];
    uint32_t window_row[HEADS], most[HEADS];
};

static void fill_case(struct check *c, struct run_case *r, float lean)
{
    r->rows = r->items * BLOCK;
    r->stride = (KV_HEADS * GROUP + 2 * KV_HEADS) * r->dim;
    r->qkv = case_floats(c, (size_t)r->rows * r->stride);
    r->decide = case_floats(c, (size_t)r->rows * 2 * KV_HEADS);
    r->rotation = case_floats(c, (size_t)r->rows * r->dim);
    fill_floats(c, r->qkv, (size_t)r->rows * r->stride, FILL_NORMAL);
    fill_rotation(c, r->rotation, r->rows, r->dim);
    for (uint32_t i = 0; i < r->rows * 2 * KV_HEADS; i++) { /* no decision is a near thing */
        float x = random_normal(c) + lean;
        r->decide[i] = fabsf(x) < 0.01f ? 0.01f : x;
    }
    memset(r->bias, 0, sizeof r->bias);
    memset(r->ratio_bias, 0, sizeof r->ratio_bias);
    for (uint32_t h = 0; h < HEADS; h++) {
        r->most[h] = r->capacity - h;
        r->window_row[h] = h * r->capacity;
    }
}

/* One head, token after token. */
struct walk {
    uint32_t held;
    double z, *sum_k, *sum_v;          /* [dim] */
    double (*k)[KERNELS_HEAD_DIM_MAX]; /* [capacity] entries as they are now, rotated */
    double (*v)[KERNELS_HEAD_DIM_MAX];
};

static const float *kv_of(const struct run_case *r, uint32_t t, uint32_t head, bool value)
{
    return r->qkv + (size_t)t * r->stride +
           ((value ? KV_HEADS * GROUP + KV_HEADS : KV_HEADS * GROUP) + head) * (size_t)r->dim;
}

static void turn(const struct run_case *r, uint32_t t, const double *in, double *out)
{
    for (uint32_t i = 0; i < r->dim; i += 2) {
        double cosine = (double)r->rotation[(size_t)t * r->dim + i];
        double sine = (double)r->rotation[(size_t)t * r->dim + i + 1];
        out[i] = in[i] * cosine - in[i + 1] * sine;
        out[i + 1] = in[i] * sine + in[i + 1] * cosine;
    }
}

static void take_token(const struct run_case *r, struct walk *w, uint32_t t, uint32_t head)
{
    const float *logit = r->decide + (size_t)t * 2 * KV_HEADS + head;
    bool merges = t && (logit[0] > 0 || w->held >= r->most[LAYER * KV_HEADS + head]);
    double o = 1 / (1 + exp(-(double)logit[KV_HEADS])) + 0.0078125, key[KERNELS_HEAD_DIM_MAX];
    w->held += !merges;
    w->z = merges ? w->z + o : o;
    for (uint32_t i = 0; i < r->dim; i++) {
        double k = (double)kv_of(r, t, head, false)[i], v = (double)kv_of(r, t, head, true)[i];
        w->sum_k[i] = merges ? w->sum_k[i] + o * k : o * k;
        w->sum_v[i] = merges ? w->sum_v[i] + o * v : o * v;
        key[i] = w->sum_k[i] / w->z;
        w->v[w->held - 1][i] = w->sum_v[i] / w->z;
    }
    turn(r, t, key, w->k[w->held - 1]);
}

static void same_row(struct on_device *d, const char *what, uint32_t head, uint32_t row,
                     const f16 *got, const double *want, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++) {
        double off = fabs(double_of(got[i]) - want[i]);
        if (!(off <= 0x1p-10 * fabs(want[i]) + 1e-4)) {
            case_fail(d->c, "%s, head %u, row %u: %g, not %g", what, head, row, double_of(got[i]),
                      want[i]);
            return;
        }
    }
}

/* What the device has of the case. */
struct there {
    struct cuda_batch b;
    struct cuda_item item;
    f16 *open[2], *grown[2], *raw[2], *local[2];
    uint32_t *count, *held, *grows;
};

static void put_case(struct on_device *d, struct run_case *r, struct there *t)
{
    size_t dim = r->dim, row = dim * sizeof(f16), window = (size_t)HEADS * r->capacity * row;
    uint32_t zero[HEADS] = {0}, lanes = r->items;
    struct cuda_item *items = calloc(r->items, sizeof *items);
    for (int i = 0; i < 2; i++) {
        t->open[i] = device_put(d, NULL, window);
        t->grown[i] = device_put(d, NULL, HEADS * row);
        t->raw[i] = device_put(d, NULL, HEADS * BLOCK * row);
        t->local[i] = device_put(d, NULL, (size_t)r->rows * KV_HEADS * row);
    }
    t->count = device_put(d, zero, sizeof zero);
    t->held = device_put(d, zero, sizeof zero);
    t->grows = device_put(d, zero, sizeof zero);
    t->item = (struct cuda_item){.rows = BLOCK,
                                 .flags = CUDA_STREAM | CUDA_MERGES,
                                 .before_row = -1,
                                 .open_count = t->count,
                                 .held = t->held,
                                 .grown = t->grows,
                                 .open_k = t->open[0],
                                 .open_v = t->open[1],
                                 .grown_k = t->grown[0],
                                 .grown_v = t->grown[1],
                                 .raw_k = t->raw[0],
                                 .raw_v = t->raw[1],
                                 .sinks = SINKS,
                                 .fixed_rows = SINKS};
    t->item.window_row = device_put(d, r->window_row, sizeof r->window_row);
    t->item.capacity = device_put(d, r->most, sizeof r->most);
    t->item.z = device_put(d, NULL, HEADS * sizeof(float));
    t->item.sum_k = device_put(d, NULL, HEADS * dim * sizeof(float));
    t->item.sum_v = device_put(d, NULL, HEADS * dim * sizeof(float));
    t->item.ratio_bias = device_put(d, r->ratio_bias, sizeof r->ratio_bias);
    t->item.sink_k = device_put(d, NULL, HEADS * SINKS * row);
    t->item.sink_v = device_put(d, NULL, HEADS * SINKS * row);
    for (uint32_t i = 0; i < r->items; i++) {
        items[i] = t->item;
        items[i].row = i * BLOCK;
        items[i].tokens = i * BLOCK;
        items[i].chunk_tokens = i * BLOCK;
    }
    struct cuda_run run = {0, r->items};
    t->b = (struct cuda_batch){.shape = {.heads = KV_HEADS * GROUP,
                                         .kv_heads = KV_HEADS,
                                         .group = GROUP,
                                         .head_dim = r->dim},
                               .rows = r->rows,
                               .items = r->items,
                               .items_most = r->items,
                               .runs = 1};
    t->b.item = device_put(d, items, r->items * sizeof *items);
    t->b.run = device_put(d, &run, sizeof run);
    t->b.qkv = device_put(d, r->qkv, (size_t)r->rows * r->stride * sizeof(float));
    t->b.decide = device_put(d, r->decide, (size_t)r->rows * 2 * KV_HEADS * sizeof(float));
    t->b.rotation = device_put(d, r->rotation, (size_t)r->rows * dim * sizeof(float));
    t->b.k_local = t->local[0];
    t->b.v_local = t->local[1];
    t->b.held = device_put(d, NULL, lanes * KV_HEADS * sizeof(uint32_t));
    t->b.edge_k = device_put(d, NULL, lanes * KV_HEADS * row);
    t->b.edge_v = device_put(d, NULL, lanes * KV_HEADS * row);
    t->b.before_k = device_put(d, NULL, KV_HEADS * BLOCK * row);
    t->b.before_v = device_put(d, NULL, KV_HEADS * BLOCK * row);
    free(items);
}

/* Everything that came back, on the host. */
struct back {
    f16 *open[2], *grown[2], *raw[2], *local[2];
    uint32_t count[HEADS], held[HEADS], grows[HEADS], *seen;
};

static void get_case(struct on_device *d, const struct run_case *r, const struct there *t,
                     struct back *b)
{
    size_t row = r->dim * sizeof(f16),
           sizes[4] = {(size_t)HEADS * r->capacity * row, HEADS * row, HEADS * BLOCK * row,
                       (size_t)r->rows * KV_HEADS * row};
    for (int i = 0; i < 2; i++) {
        f16 **to[4] = {&b->open[i], &b->grown[i], &b->raw[i], &b->local[i]};
        const f16 *from[4] = {t->open[i], t->grown[i], t->raw[i], t->local[i]};
        for (int n = 0; n < 4; n++) {
            *to[n] = case_buffer(d->c, sizes[n]);
            device_get(d, *to[n], from[n], sizes[n]);
        }
    }
    b->seen = case_buffer(d->c, r->items * KV_HEADS * sizeof *b->seen);
    device_get(d, b->seen, t->b.held, r->items * KV_HEADS * sizeof *b->seen);
    device_get(d, b->count, t->count, sizeof b->count);
    device_get(d, b->held, t->held, sizeof b->held);
    device_get(d, b->grows, t->grows, sizeof b->grows);
}

static void check_raw(struct on_device *d, const struct run_case *r, const struct back *b,
                      uint32_t head, uint32_t t)
{
    double k[KERNELS_HEAD_DIM_MAX], v[KERNELS_HEAD_DIM_MAX], turned[KERNELS_HEAD_DIM_MAX];
    uint32_t last = t - (r->items - 1) * BLOCK, index = LAYER * KV_HEADS + head;
    for (uint32_t i = 0; i < r->dim; i++) {
        k[i] = (double)kv_of(r, t, head, false)[i];
        v[i] = (double)kv_of(r, t, head, true)[i];
    }
    turn(r, t, k, turned);
    size_t at = ((size_t)t * KV_HEADS + head) * r->dim;
    /* Rounded before it is turned: a unit of the longer of a pair. */
    for (uint32_t i = 0; i < r->dim; i++)
        if (fabs(double_of(b->local[0][at + i]) - turned[i]) >
            0x1p-10 * (fabs(k[i & ~1u]) + fabs(k[i | 1])) + 1e-6)
            case_fail(d->c, "raw key, head %u, row %u", head, t);
    same_row(d, "raw value", head, t, b->local[1] + at, v, r->dim);
    if (t < (r->items - 1) * BLOCK)
        return;
    size_t kept = ((size_t)index * BLOCK + last) * r->dim;
    case_same(d->c, "kept keys", b->raw[0] + kept, b->local[0] + at, r->dim * sizeof(f16));
    case_same(d->c, "kept values", b->raw[1] + kept, b->local[1] + at, r->dim * sizeof(f16));
}

static void check_head(struct on_device *d, const struct run_case *r, const struct back *b,
                       uint32_t head)
{
    static double k[300][KERNELS_HEAD_DIM_MAX], v[300][KERNELS_HEAD_DIM_MAX];
    double sums[2][KERNELS_HEAD_DIM_MAX] = {{0}};
    struct walk w = {.sum_k = sums[0], .sum_v = sums[1], .k = k, .v = v};
    uint32_t begun[16] = {0}, index = LAYER * KV_HEADS + head, dim = r->dim;
    size_t first = (size_t)r->window_row[index] * dim;
    double edge_k[KERNELS_HEAD_DIM_MAX], edge_v[KERNELS_HEAD_DIM_MAX];
    for (uint32_t t = 0; t < r->rows; t++) {
        if (t % BLOCK == 0)
            begun[t / BLOCK] = w.held;
        if (t == r->rows - BLOCK && w.held) {
            memcpy(edge_k, k[w.held - 1], sizeof edge_k);
            memcpy(edge_v, v[w.held - 1], sizeof edge_v);
        }
        take_token(r, &w, t, head);
        check_raw(d, r, b, head, t);
    }
    uint32_t seen = begun[r->items - 1];
    for (uint32_t i = 0; i < r->items; i++)
        if (b->seen[i * KV_HEADS + head] != (i ? begun[i - 1] : 0))
            case_fail(d->c, "item %u of head %u sees %u entries, not %u", i, head,
                      b->seen[i * KV_HEADS + head], i ? begun[i - 1] : 0);
    bool first_merges =
        r->decide[(size_t)(r->rows - BLOCK) * 2 * KV_HEADS + head] > 0 || seen >= r->most[index];
    if (b->held[index] != w.held || b->count[index] != seen ||
        b->grows[index] != (r->items > 1 && first_merges))
        case_fail(d->c, "head %u holds %u, %u in view, grown %u; not %u and %u", head,
                  b->held[index], b->count[index], b->grows[index], w.held, seen);
    for (uint32_t i = 0; i < w.held; i++) {
        bool edge = seen && i + 1 == seen; /* stays as it was; what it has grown to lies apart */
        same_row(d, "entry's key", head, i, b->open[0] + first + i * dim, edge ? edge_k : k[i],
                 dim);
        same_row(d, "entry's value", head, i, b->open[1] + first + i * dim, edge ? edge_v : v[i],
                 dim);
    }
    if (b->grows[index]) {
        same_row(d, "grown key", head, 0, b->grown[0] + index * dim, k[seen - 1], dim);
        same_row(d, "grown value", head, 0, b->grown[1] + index * dim, v[seen - 1], dim);
    }
}

static void rows_case(struct on_device *d, uint32_t dim, uint32_t items, uint32_t capacity,
                      float lean)
{
    struct run_case r = {.dim = dim, .items = items, .capacity = capacity};
    struct there there;
    struct back back;
    case_begin(d->c, "rows, %u items of %u, room for %u, lean %g", items, dim, capacity,
               (double)lean);
    fill_case(d->c, &r, lean);
    put_case(d, &r, &there);
    d->cuda->make_rows(d->cuda, &there.b, LAYER, device_put(d, r.bias, sizeof r.bias));
    get_case(d, &r, &there, &back);
    for (uint32_t head = 0; head < KV_HEADS; head++)
        check_head(d, &r, &back, head);
    device_end(d);
}

void check_device_rows(struct on_device *d)
{
    static const uint32_t dims[] = {32, 64, 128, 48, 256, 2};
    for (size_t i = 0; i < (d->small ? 2 : 6); i++)
        for (uint32_t items = 1; items <= 8; items += items < 3 ? 1 : 5) {
            rows_case(d, dims[i], items, 256 + KV_HEADS * 2, 0);
            rows_case(d, dims[i], items, 256 + KV_HEADS * 2, 5); /* nearly all merge */
            rows_case(d, dims[i], items, 256 + KV_HEADS * 2, -5);
            rows_case(d, dims[i], items, 20, -1); /* until the quota is reached */
        }
}
