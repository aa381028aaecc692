#include "tests/sim/model.h"

#include <string.h>

void model_append(struct model *m, struct message message)
{
    m->message[m->count++] = message;
    m->acked[message.producer] = message.sequence;
}

/* The messages of one commit that failed, as they would follow what is sure; the acks they lead to.
 */
static uint32_t follow(const struct model *m, uint64_t batch, struct message *out, uint64_t *acked)
{
    uint32_t count = 0;

    memcpy(acked, m->acked, sizeof m->acked);
    for (uint32_t i = 0; i < m->doubt_count; i++) {
        struct message message = m->doubt[i];

        if (message.batch != batch || message.sequence != acked[message.producer] + 1)
            continue;
        acked[message.producer]++;
        message.batch = 0;
        out[count++] = message;
    }
    return count;
}

bool model_settle(struct model *m, const uint64_t *stored)
{
    static struct message chosen[SENT_MAX], other[SENT_MAX];
    uint64_t acked[PRODUCERS], batch = 0;
    uint32_t chosen_count = 0;
    bool found = memcmp(m->acked, stored, sizeof m->acked) == 0;

    for (uint32_t i = m->doubt_count; i-- > 0 && memcmp(m->acked, stored, sizeof m->acked) != 0;) {
        uint32_t count;

        if (m->doubt[i].batch == batch)
            continue;
        batch = m->doubt[i].batch;
        count = follow(m, batch, other, acked);
        if (memcmp(acked, stored, sizeof acked) != 0)
            continue;
        if (!found) {
            found = true;
            chosen_count = count;
            memcpy(chosen, other, count * sizeof *other);
        } else if (count != chosen_count || memcmp(chosen, other, count * sizeof *other) != 0) {
            m->unsure = true;
        }
    }
    for (uint32_t i = 0; i < chosen_count; i++)
        model_append(m, chosen[i]);
    m->doubt_count = 0;
    return found;
}
