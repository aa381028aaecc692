/* Fibers, barriers and warps; see simt.h. */
#include "tests/emulate/simt.h"

#include <stdio.h>
#include <stdlib.h>

enum { STACK_BYTES = 128 << 10, THREADS_MAX = 1024, WARPS_MAX = THREADS_MAX / 32 };

struct fiber {
    struct simt_thread self;
    void *stack_pointer;
    bool done;
};

static struct fiber fibers[THREADS_MAX];
static char *stacks;
static void *scheduler;
static uint32_t count, running;
static const std::function<void()> *body;
static bool backwards;

void simt_backwards(bool now)
{
    backwards = now;
}

/* A barrier of a group: those who come wait until its round changes. */
struct barrier {
    uint32_t round, arrived, members;
};
static struct barrier block_barrier, warp_barrier[WARPS_MAX];
alignas(16) static simt_values values[WARPS_MAX][2];

struct simt_thread *simt_now;
dim3 simt_block, simt_threads;

/* Saves what a call must keep and goes on with another stack (System V x86-64). */
extern "C" void simt_switch(void **from, void *to);
__asm__(".text\n.globl simt_switch\nsimt_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void yield(void)
{
    struct fiber *f = &fibers[running];
    simt_switch(&f->stack_pointer, scheduler);
}

static void barrier_pass(struct barrier *b)
{
    uint32_t round = b->round;
    if (++b->arrived == b->members) {
        b->arrived = 0;
        b->round++;
        return;
    }
    while (b->round == round)
        yield();
}

void __syncthreads(void)
{
    barrier_pass(&block_barrier);
}

const simt_values *simt_exchange(const void *value, size_t bytes)
{
    uint32_t warp = simt_now->warp, turn = simt_now->collectives++ % 2;
    memcpy(values[warp][turn][simt_now->lane], value, bytes);
    barrier_pass(&warp_barrier[warp]);
    return &values[warp][turn];
}

static void fiber_main(void)
{
    (*body)();
    fibers[running].done = true;
    for (;;)
        yield();
}

static void fiber_begin(uint32_t i)
{
    struct fiber *f = &fibers[i];
    f->self = {dim3(i, 0, 0), i % 32, i / 32, 0};
    f->done = false;
    void **top = (void **)(stacks + (size_t)(i + 1) * STACK_BYTES);
    *--top = NULL; /* keeps the stack as a call would leave it */
    *--top = (void *)fiber_main;
    for (int saved = 0; saved < 6; saved++)
        *--top = NULL;
    f->stack_pointer = top;
}

static void block_run(void)
{
    uint32_t left = count;
    block_barrier = {0, 0, count};
    for (uint32_t w = 0; w * 32 < count; w++)
        warp_barrier[w] = {0, 0, count - w * 32 < 32 ? count - w * 32 : 32};
    for (uint32_t i = 0; i < count; i++)
        fiber_begin(i);
    for (uint32_t rounds = 0; left; rounds++) {
        if (rounds == 1u << 28) {
            fprintf(stderr, "simt: threads wait for each other for ever\n");
            abort();
        }
        for (uint32_t i = 0; i < count; i++) {
            running = backwards ? count - 1 - i : i;
            struct fiber *f = &fibers[running];
            if (f->done)
                continue;
            simt_now = &f->self;
            simt_switch(&scheduler, f->stack_pointer);
            left -= f->done;
        }
    }
}

std::vector<std::function<void()>> *simt_recording;

void simt_queue(std::function<void()> work)
{
    if (simt_recording)
        simt_recording->push_back(std::move(work));
    else
        work();
}

static void launch(dim3 grid, dim3 block, const std::function<void()> &kernel)
{
    count = block.x;
    simt_threads = block;
    body = &kernel;
    if (!stacks)
        stacks = (char *)aligned_alloc(64, (size_t)THREADS_MAX * STACK_BYTES);
    if (!stacks || !count || count > THREADS_MAX || block.y != 1 || block.z != 1)
        abort();
    uint32_t blocks = grid.x * grid.y * grid.z;
    for (uint32_t i = 0; i < blocks; i++) {
        uint32_t at = backwards ? blocks - 1 - i : i;
        simt_block = dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y);
        block_run();
    }
}

void simt_launch(dim3 grid, dim3 block, const std::function<void()> &kernel)
{
    simt_queue([=] { launch(grid, block, kernel); });
}

/* ---- instructions ---- */

/* All halves as floats, looked up: products take most of a run's time. */
static const float *half_values(void)
{
    static float *values;
    if (!values) {
        values = (float *)malloc(sizeof(float) << 16);
        if (!values)
            abort();
        for (uint32_t bits = 0; bits < 1u << 16; bits++)
            values[bits] = f16_to_f32((uint16_t)bits);
    }
    return values;
}

/* Register layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16". mine: the lane's 12 values. */
static void multiply_fragments(float d[4], const float mine[12])
{
    uint32_t lane = simt_now->lane;
    const float(*all)[16] = (const float(*)[16])simt_exchange(mine, 12 * sizeof *mine);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        for (uint32_t k = 0; k < 16; k++)
            d[i] += all[row % 8 * 4 + k % 8 / 2][(row / 8 + k / 8 * 2) * 2 + k % 2] *
                    all[col * 4 + k % 8 / 2][(4 + k / 8) * 2 + k % 2];
    }
}

void mma_16x8x16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    const float *value = half_values();
    uint32_t packed[6] = {a[0], a[1], a[2], a[3], b0, b1};
    float mine[12];
    for (int i = 0; i < 6; i++) {
        mine[2 * i] = value[packed[i] & 0xffff];
        mine[2 * i + 1] = value[packed[i] >> 16];
    }
    multiply_fragments(d, mine);
}

void mma_16x8x16_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    uint32_t packed[6] = {a[0], a[1], a[2], a[3], b0, b1};
    float mine[12];
    for (int i = 0; i < 6; i++) {
        mine[2 * i] = __uint_as_float(packed[i] << 16);
        mine[2 * i + 1] = __uint_as_float(packed[i] & 0xffff0000u);
    }
    multiply_fragments(d, mine);
}

void load_matrices(uint32_t out[4], const uint16_t *row, bool transpose)
{
    uint32_t lane = simt_now->lane;
    const simt_values *all = simt_exchange(&row, sizeof row);
    for (uint32_t m = 0; m < 4; m++) {
        const uint16_t *low, *high;
        if (transpose) {
            memcpy(&low, (*all)[m * 8 + lane % 4 * 2], sizeof low);
            memcpy(&high, (*all)[m * 8 + lane % 4 * 2 + 1], sizeof high);
            out[m] = low[lane / 4] | (uint32_t)high[lane / 4] << 16;
        } else {
            memcpy(&low, (*all)[m * 8 + lane / 4], sizeof low);
            out[m] = low[lane % 4 * 2] | (uint32_t)low[lane % 4 * 2 + 1] << 16;
        }
    }
}
