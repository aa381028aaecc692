/* What stat says of a stream is of one moment, whenever it is asked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "daemon/serve.h"
#include "tests/unit/rig.h"

enum { TEXT_BYTES = 3000 };

static const struct rig_options options = {.slots = 1, .lag_tokens_max = 8192, .checkpoints = true};
static struct rig rig;
static struct core core;
static struct record record;
static bool looking;
static uint32_t looks, ends; /* how often it was asked, and said that all is computed */

/* The linker sends the daemon's calls here, and what it would have sent to a client. */
void __real_stream_stat(const struct stream *stream, struct stream_stat *out);
void __wrap_stream_stat(const struct stream *stream, struct stream_stat *out);
int __wrap_reply_send(struct core *to, const struct wire_client *client,
                      const Silt__V1__Reply *reply);

int __wrap_reply_send(struct core *to, const struct wire_client *client,
                      const Silt__V1__Reply *reply)
{
    const Silt__V1__StreamStat *stat = reply->stat->stream;
    uint64_t plan = 0;

    (void)to, (void)client;
    for (size_t i = 0; i < stat->n_tiers; i++)
        plan += stat->tiers[i]->bytes_plan;
    assert_true(plan > 0 && plan == stat->bytes_plan);
    assert_int_equal(stat->chunks, stat->tokens_computed / core.info.chunk_tokens);
    assert_int_equal(stat->hash_chunk, stat->chunks);
    assert_true((stat->memory_hash != 0) == (stat->hash_chunk != 0));
    assert_int_equal(stat->lag_tokens, stat->tokens_acked - stat->tokens_computed);
    looks++;
    ends += stat->tokens_computed > 0 && !stat->lag_tokens;
    return 0;
}

/* The compute thread is about to say how far a stream is: a client asks now, and once it has. */
void __wrap_stream_stat(const struct stream *stream, struct stream_stat *out)
{
    if (looking)
        stats_stream(&core, &(struct wire_client){0}, 1, 0);
    __real_stream_stat(stream, out);
}

static void set_up_core(void)
{
    core.info = rig.sched.info;
    core.engine = rig.engine;
    core.journal = rig.journal;
    core.slots = rig.slots;
    core.table.records = &record;
    core.stats = calloc(1, STATS_BYTES);
    assert_non_null(core.stats);
    record.stream_id = atomic_load(&rig.slots[0].stream_id);
}

/* While it is read, when it is parked behind its last token, and as it comes back from there. */
static void of_one_moment(void **state)
{
    static char text[TEXT_BYTES];
    uint32_t before;

    (void)state;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 6 == 5 ? ' ' : (char)('a' + i * i % 23);
    assert_int_equal(rig_open(&rig, rig_own_folder, &options), 0);
    assert_int_equal(rig_stream(&rig, 0, "s", 4), 0);
    rig_settle(&rig);
    set_up_core();
    looking = true;
    assert_int_equal(rig_text(&rig, 0, "p", 1, text, sizeof text), 0);
    rig_settle(&rig);
    assert_true(looks > 4);
    stats_stream(&core, &(struct wire_client){0}, 1, 0);
    assert_true(ends > 0);

    rig_order(&rig, SCHED_CLOSE, 0, record.stream_id, 0);
    rig_settle(&rig);
    assert_int_equal(rig.closed, 1);
    assert_int_equal(rig_stream(&rig, 0, "s", 4), 0);
    before = looks;
    rig_settle(&rig);
    assert_true(looks > before);
    ends = 0;
    stats_stream(&core, &(struct wire_client){0}, 1, 0);
    assert_int_equal(ends, 1);
    assert_int_equal(rig.slots[0].checkpoint, atomic_load(&rig.slots[0].tokens_acked));
    looking = false;
    free(core.stats);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {rig_folder_test(of_one_moment)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
