/* binary16 and the file's number formats. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check/check.h"

static void check_f16_all(struct check *c)
{
    case_begin(c, "f16 there and back");
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_to_f32((f16)h);
        bool nan = (h & 0x7fff) > 0x7c00;
        if (nan != (isnan(f) != 0))
            case_fail(c, "%04x is NaN or not", h);
        if (!nan && (h & 0x7c00) != 0x7c00 && (double)f != double_of((f16)h))
            case_fail(c, "%04x became %g", h, (double)f);
        if (!nan && f16_from_f32(f) != h)
            case_fail(c, "%04x came back as %04x", h, f16_from_f32(f));
        if (nan && !isnan(f16_to_f32(f16_from_f32(f))))
            case_fail(c, "%04x came back as a number", h);
    }
    case_end(c);
}

/* Between each f16 and the next: the half-way point goes to the even one, its neighbours to theirs.
 */
static void check_f16_ties(struct check *c)
{
    case_begin(c, "f16 ties");
    for (uint32_t h = 0; h < 0x7bff; h++) {
        double low = double_of((f16)h), high = double_of((f16)(h + 1));
        float half = (float)((low + high) / 2.0);
        f16 even = (f16)(h & 1 ? h + 1 : h);
        if (f16_from_f32(half) != even || f16_from_f32(-half) != (even | 0x8000))
            case_fail(c, "tie after %04x", h);
        if (f16_from_f32(nextafterf(half, 0.0f)) != h ||
            f16_from_f32(nextafterf(half, INFINITY)) != h + 1)
            case_fail(c, "near the tie after %04x", h);
    }
    if (f16_from_f32(65519.996f) != 0x7bff || f16_from_f32(65520.0f) != 0x7c00)
        case_fail(c, "largest");
    case_end(c);
}

static void check_rows(struct check *c, enum tensor_type type, const char *name)
{
    enum { COLS = 96 };
    case_begin(c, "row of %s", name);
    size_t bytes = tensor_row_bytes(type, COLS), block = bytes / 3;
    uint8_t *row = case_buffer(c, bytes);
    float *out = case_floats(c, COLS);
    double want[COLS], tolerance[COLS];
    for (size_t i = 0; i < bytes; i++)
        row[i] = (uint8_t)random_u32(c);
    for (size_t b = 0; b < 3; b++) { /* finite scales */
        f16 d = f16_from_f32(random_normal(c)), m = f16_from_f32(random_normal(c));
        memcpy(row + b * block, &d, 2);
        if (type == TENSOR_Q4_1)
            memcpy(row + b * block + 2, &m, 2);
        for (uint32_t i = 0; i < 32; i++) {
            const uint8_t *codes = row + b * block + (type == TENSOR_Q4_1 ? 4 : 2);
            int code = type == TENSOR_Q8_0 ? (int8_t)codes[i]
                       : i < 16            ? codes[i] & 15
                                           : codes[i - 16] >> 4;
            double offset = type == TENSOR_Q4_1   ? double_of(m)
                            : type == TENSOR_Q4_0 ? -8.0 * double_of(d)
                                                  : 0.0;
            want[b * 32 + i] = double_of(d) * code + offset;
            tolerance[b * 32 + i] = 2.0 * EPSILON * (fabs(double_of(d) * code) + fabs(offset));
        }
    }
    tensor_row(out, row, type, COLS);
    case_near(c, "row", out, want, tolerance, COLS);
    case_end(c);
}

/* Rows of finite numbers, then each number of them in turn infinite or none: its exponent is all
 * ones. Codes may be anything. */
static void check_finite(struct check *c, enum tensor_type type, const char *name)
{
    enum { COLS = 96 };
    uint32_t cols = type == TENSOR_F16 || type == TENSOR_F32 || type == TENSOR_BF16 ? 13 : COLS;
    size_t bytes = tensor_row_bytes(type, cols), unit = cols == COLS ? bytes / 3 : bytes / cols;
    size_t numbers = type == TENSOR_Q4_1 ? 2 : 1, last = type == TENSOR_F32 ? 2 : 0;
    uint16_t ones = type == TENSOR_F32 || type == TENSOR_BF16 ? 0x7f80 : 0x7c00;
    case_begin(c, "infinities and NaN in a row of %s", name);
    uint8_t *row = case_buffer(c, bytes);
    for (size_t at = 0; at < bytes; at += unit)
        for (size_t n = 0; n < numbers; n++) { /* the largest of each sign */
            uint16_t most = (uint16_t)((random_u32(c) & 0x8000u) | (ones - 1u));
            memcpy(row + at + last + 2 * n, &most, 2);
        }
    if (!tensor_finite(row, type, bytes) || !tensor_finite(row, type, 0))
        case_fail(c, "finite ones are taken for others");
    for (size_t at = 0; at < bytes; at += unit)
        for (size_t n = 0; n < numbers; n++) {
            uint16_t was, now;
            uint8_t *number = row + at + last + 2 * n;
            memcpy(&was, number, 2);
            now = (uint16_t)((was & 0x8000u) | ones | (random_u32(c) & 1u));
            memcpy(number, &now, 2);
            if (tensor_finite(row, type, bytes))
                case_fail(c, "%04x at byte %td is not seen", now, number - row);
            memcpy(number, &was, 2);
        }
    case_end(c);
}

void check_tensor(struct check *c)
{
    check_f16_all(c);
    check_f16_ties(c);
    check_rows(c, TENSOR_Q4_0, "q4_0");
    check_rows(c, TENSOR_Q4_1, "q4_1");
    check_rows(c, TENSOR_Q8_0, "q8_0");
    check_finite(c, TENSOR_F32, "f32");
    check_finite(c, TENSOR_F16, "f16");
    check_finite(c, TENSOR_BF16, "bf16");
    check_finite(c, TENSOR_Q4_0, "q4_0");
    check_finite(c, TENSOR_Q4_1, "q4_1");
    check_finite(c, TENSOR_Q8_0, "q8_0");
    case_begin(c, "row bytes");
    if (tensor_row_bytes(TENSOR_Q4_1, 576) != 360 || tensor_row_bytes(TENSOR_Q8_0, 33) != 0 ||
        tensor_row_bytes((enum tensor_type)77, 32) != 0 || tensor_row_bytes(TENSOR_BF16, 3) != 6)
        case_fail(c, "wrong");
    case_end(c);
}

void bench_tensor(struct check *c)
{
    enum { COLS = 576 };
    uint8_t row[COLS * 2] = {0};
    float out[COLS];
    double seconds;
    BENCH_SECONDS(seconds, tensor_row(out, row, TENSOR_Q8_0, COLS));
    bench_line(c->one, "tensor_row q8_0 576", seconds, BOUND_NONE, 0);
}
