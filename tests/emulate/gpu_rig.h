/* What the tests of the emulated device share: the tiny model on the CPU and on the device. */
#ifndef SILT_TESTS_EMULATE_GPU_RIG_H
#define SILT_TESTS_EMULATE_GPU_RIG_H

#include "stream/gpu.h"
#include "tests/unit/tiny_model.h"

enum { TOKENS = 7 * TINY_CHUNK, RIG_PINS = 40 };

/* simt.h is C++; see tests/emulate/cuda_runtime.h */
enum trouble {
    FINE,
    NO_DEVICE,
    OLD_DEVICE,
    NO_MEMORY,
    BROKEN,
    NO_GRAPHS,
    OTHER_DEVICE,
    NO_CAPTURE,
    NO_UPLOAD
};
void simt_trouble(enum trouble trouble, size_t memory_bytes);
void simt_backwards(bool now);

extern struct engine *cpu, *gpu;
extern int32_t tokens[TOKENS + 1];

struct held {
    struct stream *stream;
    void *memory;
};

struct held stream_of(struct engine *e, uint32_t ratio, uint32_t ring);
void drop(struct held *h);
uint64_t hash_of(const struct held *h);
/* With the rig's model; NULL: code and error say why. */
struct engine *engine_on(enum device device, char *error, size_t error_bytes, int *code);
struct engine *engine_in_passes_of(uint32_t rows); /* on the device */
/* With a model and an adapter of its own, written for it; NULL: code and error say why. */
struct engine *engine_of(enum device device, const struct tiny_options *model,
                         enum device_weights weights, size_t device_bytes, char *error,
                         size_t error_bytes, int *code);
struct fork *fork_of(const struct held *h, void **memory);
/* Their largest difference, as a share of the largest logit. */
double logits_apart(struct fork *a, struct fork *b);

int rig_set_up(void **state);
int rig_tear_down(void **state);

/* A stream's segments as they leave, user one of rig_left: counted, checked to be the next, and of
 * rig_left[0]'s kept. */
extern uint32_t rig_left[2];
extern f16 rig_left_rows[8][TINY_LAYERS * TINY_KV_HEADS * TINY_COMP * 2 * TINY_HEAD_DIM];
void rig_leaves(void *user, const struct segment_view *segment);

#endif
