/* What the checks of a device's ops share: buffers there, between guard bands. */
#ifndef SILT_CHECK_DEVICE_H
#define SILT_CHECK_DEVICE_H

#include "kernels/cuda.h"
#include "tests/check/check.h"

struct on_device {
    struct check *c;
    struct cuda *cuda;
    bool small; /* few sizes */
};

/* A copy of `bytes` on the device, or that many of NaNs where from is NULL; end frees it. */
void *device_put(struct on_device *d, const void *from, size_t bytes);
/* To the host; waits. */
void device_get(struct on_device *d, void *to, const void *from, size_t bytes);
/* Looks at the guard bands of all that was put, and at the device's error. */
void device_end(struct on_device *d);

bf16 bf16_of(float f);
double double_of_bf16(bf16 b);
/* Random values rounded to bf16: as floats, and packed. */
void fill_bf16(struct check *c, float *values, bf16 *packed, size_t count, float scale);

void check_device_rows(struct on_device *d);   /* make_rows: device_rows.c */
void bench_device_file(struct on_device *d);   /* matmul_file: device_bench.c */
void check_device_attend(struct on_device *d); /* device_attend.c */
void check_device_logits(struct on_device *d); /* nll, best: device_logits.c */
void check_device_slide(struct on_device *d);  /* device_slide.c */

#endif
