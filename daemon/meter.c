#include "daemon/meter.h"

#include <math.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/log.h"

/* ---- statistics ---- */

/* The 97.5 % quantile of Student's t: exact for few degrees of freedom, then the expansion of
 * Cornish and Fisher, good to 0.004 from five on. */
static double student(double freedom)
{
    static const double few[] = {12.706, 4.303, 3.182, 2.776};
    const double z = 1.959964;

    if (freedom <= 4)
        return few[(int)freedom - 1];
    return z + (z * z * z + z) / (4 * freedom) +
           (5 * pow(z, 5) + 16 * pow(z, 3) + 3 * z) / (96 * freedom * freedom) +
           (3 * pow(z, 7) + 19 * pow(z, 5) + 17 * pow(z, 3) - 15 * z) / (384 * pow(freedom, 3));
}

void loss_add(struct loss *loss, double with_memory, double with_window)
{
    double difference = with_memory - with_window, off = difference - loss->difference;

    loss->chunks++;
    loss->with_memory += with_memory;
    loss->with_window += with_window;
    loss->difference += off / (double)loss->chunks;
    loss->square += off * (difference - loss->difference);
}

void loss_interval(const struct loss *loss, double *low, double *high)
{
    double n = (double)loss->chunks, half;

    *low = *high = 0;
    if (loss->chunks < 2)
        return;
    half = student(n - 1) * sqrt(loss->square / (n - 1) / n);
    *low = loss->difference - half;
    *high = loss->difference + half;
}

/* ---- memory ---- */

static uint32_t window_of(const struct engine_info *info)
{
    uint32_t window =
        info->context_tokens < METER_WINDOW_TOKENS ? info->context_tokens : METER_WINDOW_TOKENS;

    window -= window % STREAM_BLOCK_TOKENS;
    return info->adapter_fingerprint && window >= 2 * info->chunk_tokens ? window : 0;
}

static size_t tokens_bytes(uint32_t window)
{
    return (window * sizeof(int32_t) + 63) / 64 * 64;
}

size_t meter_bytes(const struct engine *engine)
{
    struct engine_info info;
    uint32_t window;

    engine_info(engine, &info);
    window = window_of(&info);
    if (!window || !raw_bytes(engine, window))
        return 0;
    return raw_bytes(engine, window) + tokens_bytes(window) +
           STREAMS_KNOWN_MAX * sizeof(struct loss);
}

size_t meter_device_bytes(const struct engine *engine)
{
    struct engine_info info;

    engine_info(engine, &info);
    return window_of(&info) ? raw_device_bytes(engine, window_of(&info)) : 0;
}

void meter_open(struct meter *meter, struct engine *engine, const struct engine_info *info,
                void *memory)
{
    uint8_t *at = memory;

    *meter = (struct meter){.window = window_of(info),
                            .chunk = info->chunk_tokens,
                            .flag = METER_FLAG_DEFAULT,
                            .last_slot = SLOT_NONE};
    pthread_mutex_init(&meter->lock, NULL);
    (void)raw_open(&meter->raw, engine, meter->window, at, raw_bytes(engine, meter->window));
    at += raw_bytes(engine, meter->window);
    meter->tokens = (int32_t *)(void *)at;
    at += tokens_bytes(meter->window);
    meter->losses = (struct loss *)(void *)at;
}

/* ---- one sample ---- */

static bool lagging(const struct meter *meter)
{
    for (uint32_t i = 0; i < meter->slot_count; i++)
        if (atomic_load(&meter->slots[i].ready) && slot_lag(&meter->slots[i]) > METER_LAG_TOKENS)
            return true;
    return false;
}

/* The share of what was computed pays for a whole sample: the reference, and the scoring of the
 * chunk itself, which is less than as much again for the chunk. */
static bool affordable(const struct meter *meter)
{
    uint64_t blocks = (meter->window + meter->chunk) / STREAM_BLOCK_TOKENS;
    double spent = (double)atomic_load(&meter->meter_us);

    return meter->block_us && spent + (double)(blocks * meter->block_us) <
                                  METER_SHARE * (double)atomic_load(meter->compute_us);
}

static void rest(struct meter *meter)
{
    meter->phase = METER_REST;
    meter->same_blocks = 0;
}

/* Another stream than the last one where there is one. */
static void consider(struct meter *meter, const struct slot *slot)
{
    if (!affordable(meter) || atomic_load(&slot->past) || !atomic_load(&slot->stream_id))
        return;
    if (slot->index == meter->last_slot && meter->same_blocks++ < METER_SAME_BLOCKS)
        return;
    meter->phase = METER_COLLECT;
    meter->slot = meter->last_slot = slot->index;
    meter->stream_id = atomic_load(&slot->stream_id);
    meter->held = 0;
}

static void collect(struct meter *meter, const int32_t *tokens, uint32_t count)
{
    memmove(meter->tokens, meter->tokens + count, (meter->window - count) * sizeof *tokens);
    memcpy(meter->tokens + meter->window - count, tokens, count * sizeof *tokens);
    meter->held += count;
}

/* At a chunk's begin, with a window behind it. */
static bool may_score(const struct meter *meter, const struct slot *slot)
{
    struct stream_stat stat;

    if (meter->held < meter->window - meter->chunk)
        return false;
    stream_stat(slot->stream, &stat);
    return stat.tokens_pending == 0 && stat.tokens_computed % meter->chunk == 0 &&
           affordable(meter) && !lagging(meter);
}

static int feed_scored(struct meter *meter, struct slot *slot, const int32_t *tokens,
                       uint32_t count)
{
    uint64_t start = clock_us(), took, anyway;
    uint32_t before = meter->scored;
    int result =
        stream_feed_scored(slot->stream, tokens, count, &meter->memory_nll, &meter->scored);
    struct stream_stat stat;

    took = clock_us() - start;
    /* The blocks would have been computed anyway; on a device, beside others. */
    anyway = (meter->scored - before) / (STREAM_BLOCK_TOKENS - 1) * meter->block_us;
    if (!meter->batched)
        took -= took < anyway ? took : anyway;
    atomic_fetch_add(&meter->meter_us, took);
    stream_stat(slot->stream, &stat);
    if (!result && stat.tokens_pending == 0 && stat.tokens_computed % meter->chunk == 0) {
        meter->phase = METER_REFER;
        meter->referred = meter->counted = 0;
        meter->nll = 0;
        raw_reset(meter->raw);
    }
    return result;
}

void meter_note_pass(struct meter *meter, uint64_t took_us)
{
    meter->block_us = meter->block_us ? (7 * meter->block_us + took_us) / 8 : took_us;
}

static int feed_plain(struct meter *meter, struct slot *slot, const int32_t *tokens, uint32_t count)
{
    uint64_t start = clock_us();
    int result = stream_feed(slot->stream, tokens, count);

    if (count % STREAM_BLOCK_TOKENS == 0)
        meter_note_pass(meter, (clock_us() - start) / (count / STREAM_BLOCK_TOKENS));
    return result;
}

/* What is to be done with a slot's next tokens. True: it is the meter's stream. */
static bool take_turn(struct meter *meter, const struct slot *slot)
{
    bool reads = meter->phase == METER_COLLECT || meter->phase == METER_SCORE, ours;
    uint64_t now = clock_us();

    if (reads && slot->index != meter->slot &&
        now - meter->read_us > METER_IDLE_S * UINT64_C(1000000))
        rest(meter);
    if (meter->phase == METER_REST)
        consider(meter, slot);
    ours = meter->phase != METER_REST && slot->index == meter->slot;
    if (ours)
        meter->read_us = now;
    if (ours && atomic_load(&slot->stream_id) != meter->stream_id) {
        rest(meter); /* its place is another's by now */
        ours = false;
    }
    if (ours && meter->phase == METER_COLLECT && may_score(meter, slot)) {
        meter->phase = METER_SCORE;
        meter->memory_nll = 0;
        meter->scored = 0;
    }
    return ours;
}

bool meter_alone(struct meter *meter, const struct slot *slot)
{
    return take_turn(meter, slot) && meter->phase == METER_SCORE;
}

void meter_collect(struct meter *meter, const struct slot *slot, const int32_t *tokens,
                   uint32_t count)
{
    if (meter->phase == METER_COLLECT && slot->index == meter->slot)
        collect(meter, tokens, count);
}

int meter_feed(struct meter *meter, struct slot *slot, const int32_t *tokens, uint32_t count)
{
    bool ours = take_turn(meter, slot);
    int result;

    if (ours && (meter->phase == METER_COLLECT || meter->phase == METER_SCORE))
        collect(meter, tokens, count);
    result = ours && meter->phase == METER_SCORE ? feed_scored(meter, slot, tokens, count)
                                                 : feed_plain(meter, slot, tokens, count);
    if (result && ours)
        rest(meter);
    return result;
}

/* ---- the reference ---- */

static void flag_if_due(struct meter *meter, struct loss *loss)
{
    double low, high;
    bool flagged;

    loss_interval(loss, &low, &high);
    flagged = loss->chunks >= METER_FLAG_CHUNKS && low > meter->flag;
    if (flagged != loss->flagged)
        say(SAY_WARN,
            flagged ? "the memory of stream %s loses %.3f nats a token (%.3f to %.3f, "
                      "%llu chunks), more than --loss-flag %.3f: a lower --dmc would lose less"
                    : "the memory of stream %s loses %.3f nats a token (%.3f to %.3f, "
                      "%llu chunks), no longer surely more than --loss-flag %.3f",
            meter->slots[meter->slot].name, loss->difference, low, high,
            (unsigned long long)loss->chunks, meter->flag);
    loss->flagged = flagged;
}

static void finish(struct meter *meter)
{
    const struct slot *slot = &meter->slots[meter->slot];
    struct loss *loss;

    rest(meter);
    if (atomic_load(&slot->stream_id) != meter->stream_id || !meter->scored || !meter->counted)
        return;
    loss = &meter->losses[slot->record];
    pthread_mutex_lock(&meter->lock);
    if (loss->stream_id != meter->stream_id)
        *loss = (struct loss){.stream_id = meter->stream_id};
    loss_add(loss, meter->memory_nll / meter->scored, meter->nll / meter->counted);
    flag_if_due(meter, loss);
    pthread_mutex_unlock(&meter->lock);
}

static void refer_block(struct meter *meter)
{
    const int32_t *tokens = meter->tokens + meter->referred;
    bool counts = meter->referred >= meter->window - meter->chunk;
    int32_t targets[STREAM_BLOCK_TOKENS];
    float nll[STREAM_BLOCK_TOKENS];

    for (uint32_t i = 0; i < STREAM_BLOCK_TOKENS; i++)
        targets[i] = i + 1 < STREAM_BLOCK_TOKENS ? tokens[i + 1] : -1;
    if (raw_score(meter->raw, tokens, counts ? targets : NULL, STREAM_BLOCK_TOKENS, nll) != 0) {
        rest(meter);
        return;
    }
    for (uint32_t i = 0; counts && i + 1 < STREAM_BLOCK_TOKENS; i++)
        meter->nll += nll[i];
    meter->counted += counts ? STREAM_BLOCK_TOKENS - 1 : 0;
    meter->referred += STREAM_BLOCK_TOKENS;
    if (meter->referred == meter->window)
        finish(meter);
}

bool meter_step(struct meter *meter)
{
    uint64_t start;

    if (meter->phase != METER_REFER || lagging(meter))
        return false;
    start = clock_us();
    refer_block(meter);
    atomic_fetch_add(&meter->meter_us, clock_us() - start);
    return true;
}

bool meter_read(struct meter *meter, uint32_t record, uint64_t stream_id, struct loss *out)
{
    pthread_mutex_lock(&meter->lock);
    *out = meter->losses[record];
    pthread_mutex_unlock(&meter->lock);
    return stream_id && out->stream_id == stream_id && out->chunks;
}
