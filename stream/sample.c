/*
 * Picking a token, and noticing the end of an answer.
 *
 * Filters look at the distribution before temperature, so that a high temperature makes the choice
 * among the likely tokens more even without letting unlikely ones in: repeat penalty, top-k, top-p,
 * min-p, then temperature. Each filter keeps a head of the tokens in order of logit; a heap brings
 * up just that head, since sorting a whole vocabulary would cost more than computing it.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "stream/stream.h"

/* splitmix64: one word of state, good enough for picking tokens, the same on every machine. */
static double random_unit(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

void sampler_init(struct sampler *sampler, const struct sample_options *options)
{
    sampler->options = *options;
    sampler->state = options->seed;
}

/* Equal logits go by id, so that the order is total and the pick the same everywhere. */
static bool before(struct sample_candidate a, struct sample_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void heap_sift(struct sample_candidate *heap, uint32_t at, uint32_t count)
{
    struct sample_candidate moved = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void candidates_fill(const struct sampler *sampler, const float *logits,
                            uint32_t vocab_count, const int32_t *recent, uint32_t recent_count,
                            struct sample_candidate *out)
{
    float penalty = sampler->options.repeat_penalty;
    for (uint32_t i = 0; i < vocab_count; i++)
        out[i] = (struct sample_candidate){isnan(logits[i]) ? -INFINITY : logits[i], (int32_t)i};
    if (penalty <= 0.0f || penalty == 1.0f)
        return;
    for (uint32_t i = 0; i < recent_count; i++) {
        int32_t id = recent[i];
        if (id < 0 || (uint32_t)id >= vocab_count)
            continue;
        /* From the logit itself: a token that stands in recent twice is not punished twice. */
        float logit = logits[id];
        out[id].logit = isnan(logit) ? -INFINITY : logit > 0.0f ? logit / penalty : logit * penalty;
    }
}

static int32_t best_of(const struct sample_candidate *candidates, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (before(candidates[i], candidates[best]))
            best = i;
    return candidates[best].id;
}

/* Brings the candidates that the filters keep to the end of the array, best last. Returns how many;
 * at least one. */
static uint32_t filter(const struct sample_options *o, struct sample_candidate *c, uint32_t count)
{
    const bool by_rank = o->top_k > 0 && o->top_k < count;
    const uint32_t most = by_rank ? o->top_k : count;
    double total = 0.0, reached = 0.0;
    uint32_t kept = 0, left = count;
    for (uint32_t i = count / 2; i-- > 0;)
        heap_sift(c, i, count);
    const float highest = c[0].logit;
    if (!by_rank)
        for (uint32_t i = 0; i < count; i++)
            total += exp((double)(c[i].logit - highest));
    while (kept < most) {
        struct sample_candidate next = c[0];
        double share = exp((double)(next.logit - highest));
        bool within = (by_rank || o->top_p >= 1.0f || reached < (double)o->top_p * total) &&
                      (o->min_p <= 0.0f || share >= (double)o->min_p);
        if (kept && !within)
            break;
        reached += share;
        c[0] = c[--left];
        heap_sift(c, 0, left);
        c[left] = next;
        kept++;
    }
    /* With top-k, top-p counts within what top-k left, whose sum is known only now. */
    if (by_rank && o->top_p < 1.0f) {
        double limit = (double)o->top_p * reached;
        reached = 0.0;
        for (uint32_t i = 0; i < kept; i++) {
            if (i && reached >= limit)
                return i;
            reached += exp((double)(c[count - 1 - i].logit - highest));
        }
    }
    return kept;
}

int32_t sample_token(struct sampler *sampler, const float *logits, uint32_t vocab_count,
                     const int32_t *recent, uint32_t recent_count, struct sample_candidate *scratch)
{
    const struct sample_options *o = &sampler->options;
    uint32_t count = vocab_count;
    assert(vocab_count > 0);
    candidates_fill(sampler, logits, vocab_count, recent, recent_count, scratch);
    if (o->temperature <= 0.0f)
        return best_of(scratch, count);
    if (o->top_k > 0 || o->top_p < 1.0f || o->min_p > 0.0f) {
        uint32_t kept = filter(o, scratch, count);
        scratch += count - kept;
        count = kept;
    }
    float highest = -INFINITY;
    for (uint32_t i = 0; i < count; i++)
        highest = scratch[i].logit > highest ? scratch[i].logit : highest;
    if (isinf(highest)) /* nothing to weigh */
        return best_of(scratch, count);
    double total = 0.0;
    for (uint32_t i = 0; i < count; i++)
        total += exp((double)(scratch[i].logit - highest) / (double)o->temperature);
    double wanted = random_unit(&sampler->state) * total;
    for (uint32_t i = 0; i < count; i++) {
        wanted -= exp((double)(scratch[i].logit - highest) / (double)o->temperature);
        if (wanted < 0.0)
            return scratch[i].id;
    }
    return best_of(scratch, count); /* rounding left a crumb */
}

/* ---- stop strings ---- */

/* Bytes of the longest stop string that the held bytes end in, 0: none. */
static uint32_t stop_met(const struct stop_strings *stop)
{
    uint32_t met = 0;
    for (uint32_t i = 0; i < stop->count; i++) {
        uint32_t bytes = stop->bytes[i];
        if (bytes > met && bytes <= stop->held_bytes &&
            memcmp(stop->held + stop->held_bytes - bytes, stop->text[i], bytes) == 0)
            met = bytes;
    }
    return met;
}

/* Where in the held bytes the longest beginning of a stop string starts that they end in. */
static uint32_t stop_begins(const struct stop_strings *stop)
{
    for (uint32_t at = 0; at < stop->held_bytes; at++) {
        uint32_t left = stop->held_bytes - at;
        for (uint32_t i = 0; i < stop->count; i++)
            if (left < stop->bytes[i] && memcmp(stop->held + at, stop->text[i], left) == 0)
                return at;
    }
    return stop->held_bytes;
}

static void stop_release(struct stop_strings *stop, uint32_t bytes, uint8_t *out, size_t *out_bytes)
{
    memcpy(out + *out_bytes, stop->held, bytes);
    *out_bytes += bytes;
    stop->held_bytes -= bytes;
    memmove(stop->held, stop->held + bytes, stop->held_bytes);
}

bool stop_feed(struct stop_strings *stop, const uint8_t *bytes, size_t bytes_count, uint8_t *out,
               size_t *out_bytes)
{
    *out_bytes = 0;
    for (size_t i = 0; i < bytes_count; i++) {
        assert(stop->held_bytes < STOP_BYTES_MAX);
        stop->held[stop->held_bytes++] = bytes[i];
        uint32_t met = stop_met(stop);
        if (met) {
            stop_release(stop, stop->held_bytes - met, out, out_bytes);
            stop->held_bytes = 0;
            return true;
        }
        stop_release(stop, stop_begins(stop), out, out_bytes);
    }
    return false;
}

size_t stop_flush(struct stop_strings *stop, uint8_t *out)
{
    size_t bytes = 0;
    stop_release(stop, stop->held_bytes, out, &bytes);
    return bytes;
}
