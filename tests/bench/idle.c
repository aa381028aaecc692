/*
 * siltd without its compute: the linker puts these in the place of the real ones (--wrap), all else
 * is siltd as it is. What is left is the wire, the tokenizer and the journal.
 *
 * A stream's tokens are counted and nothing is made of them, so there is nothing to checkpoint. The
 * text index, which reads the journal behind the acks at its own pace, is off unless
 * SILT_IDLE_INDEX is set.
 */
#include <stdlib.h>

#include "stream/internal.h"

struct sched;
struct slot;

void __wrap_forward_run(struct engine *e, struct forward_item *items, uint32_t count);
void __wrap_forward_run(struct engine *e, struct forward_item *items, uint32_t count)
{
    (void)e, (void)items, (void)count;
}

void __wrap_ccm_close_chunk(struct stream *stream, bool computed);
void __wrap_ccm_close_chunk(struct stream *stream, bool computed)
{
    (void)computed;
    stream->state->chunks++;
    stream->state->chunk_tokens = 0;
}

void __wrap_sched_checkpoint(struct sched *sched, struct slot *slot);
void __wrap_sched_checkpoint(struct sched *sched, struct slot *slot)
{
    (void)sched, (void)slot;
}

void *__real_search_main(void *search);
void *__wrap_search_main(void *search);
void *__wrap_search_main(void *search)
{
    return getenv("SILT_IDLE_INDEX") ? __real_search_main(search) : NULL;
}
