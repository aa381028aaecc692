/* The GGUF file's number formats, one row at a time, and binary16. */
#include "kernels/internal.h"

float f16_to_f32(f16 h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    uint32_t bits;
    float f;
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent != 0)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {
        f = (float)mantissa * 0x1p-24f; /* zero or subnormal: exact */
        return sign ? -f : f;
    }
    memcpy(&f, &bits, sizeof f);
    return f;
}

f16 f16_from_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN: kept, made quiet */
        return (f16)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520 and above round to infinity */
        return (f16)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u) { /* normal: the carry of the rounding may reach the exponent */
        uint32_t odd = magnitude >> 13 & 1u;
        return (f16)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
    }
    /* Subnormal: adding 0.5 puts the unit of 2^-24 at the end of the mantissa, and the hardware
     * rounds to nearest even. */
    float positive, shifted;
    memcpy(&positive, &magnitude, sizeof positive);
    shifted = positive + 0.5f;
    memcpy(&bits, &shifted, sizeof bits);
    return (f16)(sign | (bits - 0x3f000000u));
}

static size_t block_bytes(enum tensor_type type)
{
    switch (type) {
    case TENSOR_Q4_0:
        return Q4_0_BYTES;
    case TENSOR_Q4_1:
        return Q4_1_BYTES;
    case TENSOR_Q8_0:
        return Q8_0_BYTES;
    default:
        return 0;
    }
}

size_t tensor_row_bytes(enum tensor_type type, uint32_t cols)
{
    switch (type) {
    case TENSOR_F32:
        return (size_t)cols * 4;
    case TENSOR_F16:
    case TENSOR_BF16:
        return (size_t)cols * 2;
    case TENSOR_Q4_0:
    case TENSOR_Q4_1:
    case TENSOR_Q8_0:
        return cols % KERNELS_BLOCK == 0 ? cols / KERNELS_BLOCK * block_bytes(type) : 0;
    default:
        return 0;
    }
}

static void q4_block(float *out, const uint8_t *codes, float d, float m)
{
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(codes[i] & 15) + m;
        out[i + 16] = d * (float)(codes[i] >> 4) + m;
    }
}

void tensor_row(float *out, const void *row, enum tensor_type type, uint32_t cols)
{
    const uint8_t *bytes = row;
    assert(tensor_row_bytes(type, cols) != 0 || cols == 0);
    switch (type) {
    case TENSOR_F32:
        memcpy(out, bytes, (size_t)cols * 4);
        return;
    case TENSOR_F16:
        for (uint32_t i = 0; i < cols; i++)
            out[i] = f16_to_f32(load_f16(bytes + 2 * (size_t)i));
        return;
    case TENSOR_BF16:
        for (uint32_t i = 0; i < cols; i++)
            out[i] = bf16_to_f32(load_f16(bytes + 2 * (size_t)i));
        return;
    default:
        break;
    }
    for (uint32_t b = 0; b < cols / KERNELS_BLOCK; b++, out += KERNELS_BLOCK) {
        const uint8_t *block = bytes + b * block_bytes(type);
        float d = f16_to_f32(load_f16(block));
        if (type == TENSOR_Q4_0)
            q4_block(out, block + 2, d, -8.0f * d);
        else if (type == TENSOR_Q4_1)
            q4_block(out, block + 4, d, f16_to_f32(load_f16(block + 2)));
        else
            for (int i = 0; i < KERNELS_BLOCK; i++)
                out[i] = d * (float)(int8_t)block[2 + i];
    }
}

/* An exponent of all ones carries into the sign's place when its lowest bit is added. Some are
 * looked at together, of floats those of a whole word; of a block they stand at its beginning. */
bool tensor_finite(const void *rows, enum tensor_type type, size_t bytes)
{
    const uint64_t halves = 0x0001000100010001;
    size_t block = block_bytes(type), step = block ? block : sizeof(uint64_t), at = 0;
    uint64_t unit = 0x0400, ones = 0x1f, carried = 0, word;
    if (type == TENSOR_F32 || type == TENSOR_BF16) {
        unit = type == TENSOR_F32 ? 0x0080000000800000 : 0x0080 * halves;
        ones = 0xff;
    } else if (type != TENSOR_Q4_0 && type != TENSOR_Q8_0) {
        unit *= type == TENSOR_Q4_1 ? 0x00010001 : halves;
    }
    for (; at + sizeof word <= bytes; at += step) {
        memcpy(&word, (const char *)rows + at, sizeof word);
        carried |= (word & unit * ones) + unit;
    }
    if (at < bytes) { /* the last few floats */
        word = 0;
        memcpy(&word, (const char *)rows + at, bytes - at);
        carried |= (word & unit * ones) + unit;
    }
    return !(carried & (unit * ones + unit));
}
