#include "tests/unit/search_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

void search_rig_start(struct search_rig *p)
{
    struct search_options options = {.folder = p->folder,
                                     .keys = p->keys,
                                     .model_fingerprint = 1,
                                     .tokenizer = engine_tokenizer(rig_engine()),
                                     .engine = rig_engine(),
                                     .chunk_tokens = SEARCH_RIG_CHUNK,
                                     .item_tokens_max = 1 << 17,
                                     .slots = p->rig.slots,
                                     .slot_count = SEARCH_RIG_SLOTS,
                                     .stopping = &p->stopping};
    size_t bytes = (search_bytes(SEARCH_RIG_SLOTS, options.item_tokens_max) + 63) / 64 * 64;
    char error[400] = "";

    p->memory = aligned_alloc(64, bytes);
    if (search_open(&p->search, &options, p->memory, error, sizeof error))
        fail_msg("%s", error);
}

void search_rig_stop(struct search_rig *p)
{
    search_close(&p->search);
    free(p->memory);
}

void search_rig_start_all(struct search_rig *p)
{
    struct rig_options options = {.slots = SEARCH_RIG_SLOTS, .asks = 1, .lag_tokens_max = 1 << 16};

    assert_int_equal(rig_open(&p->rig, p->folder, &options), 0);
    rig_stream(&p->rig, 0, "s", 4);
    rig_settle(&p->rig);
    search_rig_start(p);
}

struct search_rig *search_rig_open(bool keys)
{
    struct search_rig *p = calloc(1, sizeof *p);

    p->keys = keys;
    rig_folder(p->folder, sizeof p->folder);
    search_rig_start_all(p);
    return p;
}

void search_rig_close(struct search_rig *p)
{
    search_rig_stop(p);
    rig_close(&p->rig);
    rig_folder_drop(p->folder);
    free(p->table);
    free(p);
}

void search_rig_index(struct search_rig *p)
{
    while (search_step(p->search))
        ;
}

int search_rig_run(struct search_rig *p, struct search_job *job)
{
    atomic_store(&job->done, false);
    assert_int_equal(search_submit(p->search, job), 0);
    search_step(p->search);
    assert_true(atomic_load(&job->done));
    return job->result;
}

void search_rig_find(struct search_rig *p, struct search_job *job, const char *question)
{
    memset(job, 0, sizeof *job);
    job->stream_id = atomic_load(&p->rig.slots[0].stream_id);
    job->question = (const uint8_t *)question;
    job->question_bytes = (uint32_t)strlen(question);
    job->chunk_end = UINT32_MAX;
    job->table = p->table;
    assert_int_equal(search_rig_run(p, job), 0);
}

/* As ask_recall.c does it. */
void search_rig_read(struct search_rig *p, struct search_job *job)
{
    job->kind = SEARCH_TEXTS;
    for (job->text_count = 0;
         job->text_count < job->hit_count && job->text_count < STREAM_RECALL_MAX; job->text_count++)
        job->text[job->text_count].chunk = job->hits[job->text_count].chunk;
    assert_int_equal(search_rig_run(p, job), 0);
}

void search_rig_look(struct search_rig *p, struct search_job *job, const char *question)
{
    search_rig_find(p, job, question);
    search_rig_read(p, job);
}

void search_rig_mean(struct search_rig *p)
{
    p->table = calloc(1 << 16, RECALL_QUERY_TOKENS);
}

void search_rig_near(struct search_rig *p, const char *text)
{
    struct token_text held = {0};
    int32_t tokens[8];

    if (!p->table)
        search_rig_mean(p);
    token_feed(engine_tokenizer(rig_engine()), &held, (const uint8_t *)text, strlen(text), tokens);
    p->table[(size_t)tokens[0] * RECALL_QUERY_TOKENS] = 200;
}
