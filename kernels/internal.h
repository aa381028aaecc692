/*
 * What the files of this folder share and callers never see: the versions of each op, by the
 * instruction set that they need, and the few helpers under them.
 *
 * A version of an op is one function OP_ISA with the op's type. cpu.c puts them into the table.
 */
#ifndef SILT_KERNELS_INTERNAL_H
#define SILT_KERNELS_INTERNAL_H

#include <assert.h>
#include <string.h>

#include "kernels/kernels.h"

/* File blocks of 32 values. */
enum {
    Q4_0_BYTES = 18, /* f16 d, 16 bytes of codes: value i low nibble of byte i, i + 16 its high */
    Q4_1_BYTES = 20, /* f16 d, f16 m, codes as Q4_0 */
    Q8_0_BYTES = 34, /* f16 d, 32 signed bytes */
};

/* Below this a block's largest magnitude counts as zero: its reciprocal would overflow. */
#define QUANTIZE_TINY 0x1p-118f

/* ---- pool ---- */

int pool_open(struct pool **out, uint32_t threads);
void pool_close(struct pool **pool);
/* Runs task(argument, from, to) over 0..total in steps of `step`, in parallel. */
typedef void range_task(void *argument, uint32_t from, uint32_t to);
void pool_ranges(struct pool *pool, range_task *task, void *argument, uint32_t total,
                 uint32_t step);
/* A step that gives every thread about `parts` pieces of total, a multiple of unit. */
uint32_t pool_step(const struct kernels *k, uint32_t total, uint32_t unit, uint32_t parts);

/* ---- reference ---- */

weight_bytes_fn weight_bytes_ref;
weight_pack_fn weight_pack_ref;
quantize_bytes_fn quantize_bytes_ref;
quantize_fn quantize_ref;
norm_fn norm_ref;
matmul_fn matmul_ref;
swiglu_fn swiglu_ref;
rope_fn rope_ref;
rotate_fn rotate_ref;
merge_fn merge_ref;
attend_fn attend_ref;
fold_fn fold_ref;
pack_f16_fn pack_f16_ref;
pack_int8_fn pack_int8_ref;
unpack_int8_fn unpack_int8_ref;
nll_fn nll_ref;

/* ---- small inline helpers ---- */

static inline f16 load_f16(const uint8_t *bytes)
{
    f16 h;
    memcpy(&h, bytes, sizeof h);
    return h;
}

static inline size_t round_up(size_t value, size_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline float bf16_to_f32(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

#endif
