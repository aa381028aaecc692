/* The text index: a question's words, chunks as text, tokens read again from the journal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/search_rig.h"

enum { CHUNK = SEARCH_RIG_CHUNK, TEXT_MAX = 64 << 10 };

static const char *expression(const char *question)
{
    static char out[EXPRESSION_BYTES];
    size_t bytes = search_expression((const uint8_t *)question, strlen(question), out, sizeof out);

    assert_true(bytes < sizeof out);
    out[bytes] = '\0';
    return out;
}

static void words_of_questions(void **state)
{
    char small[20], long_word[400];

    (void)state;
    assert_string_equal(expression("What is the code of the Kestrel vault?"),
                        "\"code\" OR \"kestrel\" OR \"vault\"");
    assert_string_equal(expression("Who was it?"), "\"who\" OR \"was\" OR \"it\"");
    assert_string_equal(expression("VAULT vault, Vault!"), "\"vault\"");
    assert_string_equal(expression("\" OR NEAR(a*) : x^2 -y \"\""), "\"near\" OR \"2\"");
    assert_string_equal(expression("Grüße aus Köln"), "\"grüße\" OR \"aus\" OR \"köln\"");
    assert_string_equal(expression(" ?!. \n"), "");
    assert_int_equal(search_expression((const uint8_t *)"abc defghijklmnopq", 18, small, 12), 5);
    memset(long_word, 'x', sizeof long_word - 1);
    long_word[sizeof long_word - 1] = '\0';
    assert_int_equal(strlen(expression(long_word)), SEARCH_WORD_BYTES_MAX + 2);
}

static void chunks_as_text(void **state)
{
    const struct tokenizer *tokenizer = engine_tokenizer(rig_engine());
    const char *text = "Köln am Rhein ";
    struct token_text held = {0};
    int32_t tokens[256];
    uint8_t out[256];
    size_t count, bytes;

    (void)state;
    count = token_feed(tokenizer, &held, (const uint8_t *)text, strlen(text), tokens);
    count += token_flush(tokenizer, &held, tokens + count);
    for (uint32_t from = 0; from < count; from++)
        for (uint32_t to = from; to <= count; to++) {
            struct search_tokens parts[] = {{tokens + from, 0}, {tokens + from, to - from}};

            bytes = search_chunk_text(tokenizer, parts, 2, out, sizeof out);
            assert_true(wire_utf8_valid(out, bytes));
        }
    bytes = search_chunk_text(tokenizer, &(struct search_tokens){tokens, (uint32_t)count}, 1, out,
                              sizeof out);
    assert_int_equal(bytes, strlen(text));
    assert_memory_equal(out, text, bytes);
    bytes =
        search_chunk_text(tokenizer, &(struct search_tokens){tokens, (uint32_t)count}, 1, out, 5);
    assert_true(bytes <= 5);
}

static void feed(struct search_rig *p, uint64_t sequence, const char *text)
{
    rig_text(&p->rig, 0, "p", sequence, text, strlen(text));
    rig_settle(&p->rig);
}

static void filler(char *out, uint32_t seed, size_t bytes)
{
    static const char *const words[] = {"river ", "stone ", "bread ", "market ", "train. "};
    size_t used = 0;

    while (used + 8 < bytes) {
        seed = seed * 1664525 + 1013904223;
        used += (size_t)snprintf(out + used, bytes - used, "%s", words[seed >> 24 & 3]);
    }
}

/* Appends to a text of TEXT_MAX. */
static void add(char *text, const char *more)
{
    size_t used = strlen(text);

    snprintf(text + used, TEXT_MAX - used, "%s", more);
}

/* What of a text is put before a question that `word` of it is about. */
static void expect_focus(const char *text, const char *word, const char *want)
{
    uint32_t from = (uint32_t)(strstr(text, word) - text), to = from + (uint32_t)strlen(word);

    search_focus((const uint8_t *)text, (uint32_t)strlen(text), &from, &to);
    assert_int_equal(to - from, strlen(want));
    assert_memory_equal(text + from, want, strlen(want));
}

static void whole_lines_stand_before_a_question(void **state)
{
    static const char line[] = "The code of the vault behind the second door on the left is 48213.";
    char text[1024], sentence[512];

    (void)state;
    snprintf(text, sizeof text, "An end of a line\n%s\nA line of something else\n", line);
    expect_focus(text, "vault", line);
    /* A short line with what follows it, the last one with what stands before it. */
    expect_focus(
        "Not this line, which has nothing to do with it\nWhich door?\nThe one on the left, "
        "behind the stairs, I would think.\n",
        "door", "Which door?\nThe one on the left, behind the stairs, I would think.");
    expect_focus("Is there a code, and who of us has it today?\nYes: 48213", "48213",
                 "Is there a code, and who of us has it today?\nYes: 48213");
    expect_focus("48213", "48213", "48213");
    /* Of a long line the sentence, of a long sentence what is around the words. */
    snprintf(text, sizeof text, "%s %s %s %s %s %s", line, line, line,
             "This is where they meet on the last Friday of any month, I am told.", line, line);
    expect_focus(text, "Friday",
                 "This is where they meet on the last Friday of any month, I am told.");
    memset(sentence, 'x', sizeof sentence);
    memcpy(sentence + 250, "\xc3\xa9 here \xc3\xa9", 10);
    sentence[511] = '\0';
    uint32_t from = 255, to = 259;
    search_focus((const uint8_t *)sentence, 511, &from, &to);
    assert_in_range(to - from, SEARCH_FOCUS_MAX - 3, SEARCH_FOCUS_MAX);
    assert_true(from < 250 && to > 260);
    memset(sentence, 0xa9, 511); /* no character begins anywhere */
    from = to = 300;
    search_focus((const uint8_t *)sentence, 511, &from, &to);
    assert_true(from <= to && to <= 511);
}

/* Wherever a sentence lies in the chunks, and over a new start in the middle of them. */
static void sentences_are_found(void **state)
{
    static char text[TEXT_MAX];
    struct search_rig *p = search_rig_open(true);
    struct search_job *job = malloc(sizeof *job);
    char question[64], fact[64];

    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        filler(text, i, 2000 + i * 211);
        snprintf(fact, sizeof fact, "The keeper of gate%u is person%u. ", i, i);
        add(text, fact);
        feed(p, i + 1, text);
        if (i % 4 == 1) {
            search_step(p->search);
            search_rig_stop(p);
            search_rig_start(p);
        }
    }
    filler(text, 99, 4000);
    feed(p, 13, text);
    for (int times = 0; times < 2; times++) { /* it was parked, and is back before anybody looked */
        atomic_store(&p->rig.slots[0].indexed_to, 0);
        search_rig_index(p);
        assert_int_equal(atomic_load(&p->rig.slots[0].indexed_to),
                         atomic_load(&p->rig.slots[0].tokens_acked) / CHUNK * CHUNK);
    }
    for (uint32_t i = 0; i < 12; i++) {
        snprintf(question, sizeof question, "Who keeps gate%u?", i);
        snprintf(fact, sizeof fact, "gate%u is person%u", i, i);
        search_rig_look(p, job, question);
        assert_true(job->hit_count >= 1);
        assert_non_null(strstr(job->text[0].text, fact));
        assert_true(job->text[0].bytes < SEARCH_TEXT_MAX);
        assert_int_equal(job->text[0].token_from, job->text[0].chunk * CHUNK);
    }
    search_rig_look(p, job, "Zeppelin?");
    assert_int_equal(job->hit_count, 0);
    free(job);
    search_rig_close(p);
}

static void words_near_in_meaning(void **state)
{
    struct near_word near[4];

    (void)state;
    assert_int_equal(engine_near_words(rig_engine(), "car", near, 4), 2);
    assert_string_equal(near[0].text, "auto");
    assert_string_equal(near[1].text, "automobile");
    assert_int_equal(engine_near_words(rig_engine(), "car", near, 1), 1);
    assert_int_equal(engine_near_words(rig_engine(), "ca", near, 4), 0);
    assert_int_equal(engine_near_words(rig_engine(), "cars", near, 4), 0);
    assert_int_equal(engine_near_words(rig_engine(), "", near, 4), 0);
    assert_int_equal(engine_near_words(rig_engine(), "ruined", near, 4), 0);
    assert_int_equal(engine_near_words(rig_engine(), "rust", near, 4), 1);
    assert_string_equal(near[0].text, "oxide"); /* the longer one is not a word */
}

/* Other words than the question's, in one place; another chunk has them far from each other. */
static void other_words_are_found_in_one_place(void **state)
{
    static char text[TEXT_MAX];
    struct search_rig *p = search_rig_open(true);
    struct search_job *job = malloc(sizeof *job);

    (void)state;
    filler(text, 1, 6000);
    add(text, "The ruddy automobile is Ottoline's. ");
    filler(text + strlen(text), 2, 6000);
    add(text, "A crimson gate. ");
    filler(text + strlen(text), 3, 300);
    add(text, "An auto came. ");
    filler(text + strlen(text), 4, 6000);
    feed(p, 1, text);
    search_rig_index(p);
    search_rig_look(p, job, "Who owns the red car?");
    assert_true(job->hit_count >= 2);
    assert_non_null(strstr(job->text[0].text, "Ottoline"));
    search_rig_look(p, job,
                    "\xe2\x80\x94 The red car \xe2\x80\xa6"); /* words that are none to FTS5 */
    assert_non_null(strstr(job->text[0].text, "Ottoline"));
    p->search->options.by = SEARCH_BY_WORDS;
    search_rig_look(p, job, "Who owns the red car?");
    assert_int_equal(job->hit_count, 0);
    search_rig_look(p, job, "The ruddy thing?");
    assert_int_equal(job->hit_count, 1);
    free(job);
    search_rig_close(p);
}

/* What is put before a question, of the best chunk. */
static void expect_line(const struct search_job *job, const char *want)
{
    const struct search_text *text = &job->text[0];

    assert_int_equal(text->focus_to - text->focus_from, strlen(want));
    assert_memory_equal(text->text + text->focus_from, want, strlen(want));
}

/* Questions that take turns about one chunk: each has the line of its own words. */
static void places_are_of_their_own_question(void **state)
{
    static const char first[] = "The keeper of the eastern gate is Ottoline.",
                      second[] = "The captain of the yellow boat is Barnaby.";
    static char text[TEXT_MAX];
    struct search_rig *p = search_rig_open(true);
    struct search_job *jobs = calloc(2, sizeof *jobs);

    (void)state;
    search_rig_mean(p); /* nothing is near */
    filler(text, 1, 1100);
    snprintf(text + strlen(text), 200, "\n%s\n", first);
    filler(text + strlen(text), 2, 150);
    snprintf(text + strlen(text), 200, "\n%s\n", second);
    filler(text + strlen(text), 3, 3000);
    feed(p, 1, text);
    search_rig_index(p);
    search_rig_find(p, &jobs[0], "Who keeps the eastern gate?");
    search_rig_find(p, &jobs[1], "Which captain has the yellow boat?");
    assert_int_equal(jobs[0].hits[0].chunk, jobs[1].hits[0].chunk);
    search_rig_read(p, &jobs[0]);
    search_rig_read(p, &jobs[1]);
    expect_line(&jobs[0], first);
    expect_line(&jobs[1], second);
    assert_true(jobs[0].text[0].about && jobs[1].text[0].about);
    search_rig_look(p, &jobs[0], "What is a boat about?"); /* one word of it says too little */
    expect_line(&jobs[0], second);
    assert_false(jobs[0].text[0].about);
    free(jobs);
    search_rig_close(p);
}

/* What is put around a line is the stream's own text, of as many tokens as are wanted. */
static void text_around_is_as_it_was(void **state)
{
    static char text[TEXT_MAX];
    static const uint32_t wanted[] = {1, 40, 256, 600, 700};
    const struct tokenizer *tokenizer = engine_tokenizer(rig_engine());
    static int32_t tokens[SEARCH_AROUND_MAX + PRETOKEN_BYTES_MAX];
    struct search_rig *p = search_rig_open(true);
    struct search_job *job = malloc(sizeof *job);
    char question[64];

    (void)state;
    search_rig_mean(p); /* nothing is near */
    for (uint32_t i = 0; i < 40; i++) {
        filler(text + strlen(text), i / 2, 90 + i * 7); /* twice the same */
        snprintf(question, sizeof question, " Köln — the keeper of gate%u\n", i);
        add(text, question);
    }
    feed(p, 1, text);
    search_rig_index(p);
    for (uint32_t i = 0; i < 40; i++) {
        snprintf(question, sizeof question, "What of gate%u?", i);
        search_rig_find(p, job, question);
        if (!job->hit_count)
            continue; /* in the open chunk */
        for (uint32_t k = 0; k < 2 * sizeof wanted / sizeof *wanted; k++) {
            struct token_text held = {0};
            size_t count;

            job->around_tokens = wanted[k / 2];
            job->chunk_end = k % 2 ? job->hits[0].chunk + 1 : UINT32_MAX;
            search_rig_read(p, job);
            assert_true(wire_utf8_valid(job->around, job->around_bytes));
            assert_non_null(memmem(text, strlen(text), job->around, job->around_bytes));
            count = token_feed(tokenizer, &held, job->around, job->around_bytes, tokens);
            count += token_flush(tokenizer, &held, tokens + count);
            assert_true(count <= job->around_tokens + 2); /* a cut one may become two */
            if (wanted[k / 2] > CHUNK / 2 && i >= 10 && i < 36)
                assert_non_null(memmem(job->around, job->around_bytes, question + 8, 6));
            if (k % 2 == 0 && i > 10 && i < 20)
                assert_true(count + 8 >= job->around_tokens || wanted[k / 2] == 1);
        }
    }
    job->around_tokens = 0;
    search_rig_read(p, job);
    assert_int_equal(job->around_bytes, 0);
    search_rig_find(p, job, "Who is the keeper of gate7?");
    job->around_tokens = 100;
    search_rig_read(p, job);
    assert_true(job->text[0].about); /* the line is enough */
    assert_int_equal(job->around_bytes, 0);
    free(job);
    search_rig_close(p);
}

static bool index_has(const struct search_rig *p, const char *word)
{
    char command[300];

    snprintf(command, sizeof command, "grep -rqa %s %s/search", word, p->folder);
    return system(command) == 0;
}

static void what_is_forgotten_is_gone(void **state)
{
    static char text[TEXT_MAX];
    struct search_rig *p = search_rig_open(true);

    (void)state;
    filler(text, 1, 3000);
    add(text, "Ottoline. ");
    filler(text + strlen(text), 2, 3000);
    feed(p, 1, text);
    search_rig_index(p);
    assert_true(index_has(p, "Ottoline"));
    uint64_t id = atomic_exchange(&p->rig.slots[0].stream_id, 0);
    assert_int_equal(search_forget(p->search, id), 0);
    assert_false(index_has(p, "Ottoline"));
    search_rig_index(p);
    assert_false(index_has(p, "Ottoline"));
    search_rig_close(p);
}

static void flip(const struct search_rig *p, off_t offset)
{
    char path[200];
    uint8_t byte;
    int fd;

    snprintf(path, sizeof path, "%s/search/%016llx.db-keys", p->folder,
             (unsigned long long)atomic_load(&p->rig.slots[0].stream_id));
    fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

/* Chunk 3 alone has the letter Z, which no question names. */
static void keys_find_what_words_do_not(void **state)
{
    static char text[TEXT_MAX];
    struct search_rig *p = search_rig_open(true);
    struct search_job *job = malloc(sizeof *job);
    char command[300];

    (void)state;
    filler(text, 1, 20000);
    feed(p, 1, text);
    snprintf(text, sizeof text, " Z ");
    feed(p, 2, text);
    filler(text, 2, 20000);
    feed(p, 3, text);
    search_rig_index(p);
    search_rig_look(p, job, "Whoever?");
    assert_int_equal(job->hit_count, 0);
    search_rig_near(p, "Z Z");
    search_rig_look(p, job, "Whoever?");
    assert_in_range(job->hit_count, 1, 2); /* twice where it is near a chunk's end */
    assert_non_null(strchr(job->text[job->hit_count - 1].text, 'Z'));
    uint64_t chunk = job->hits[0].chunk;

    flip(p, 4096 + 100); /* damaged: not used, and made again */
    search_rig_look(p, job, "Whoever?");
    assert_int_equal(job->hit_count, 0);
    search_rig_index(p);
    search_rig_look(p, job, "Whoever?");
    assert_int_equal(job->hits[0].chunk, chunk);

    search_step(p->search);
    search_rig_stop(p);
    snprintf(command, sizeof command, "rm %s/search/*-keys", p->folder);
    assert_int_equal(system(command), 0);
    search_rig_start(p);
    search_rig_index(p);
    search_rig_look(p, job, "Whoever?");
    assert_int_equal(job->hits[0].chunk, chunk);
    assert_int_equal(search_forget(p->search, atomic_exchange(&p->rig.slots[0].stream_id, 0)), 0);
    assert_int_not_equal(system(command), 0); /* gone with the text */
    free(job);
    search_rig_close(p);
}

static struct search_job *amid;

/* A question comes amid a batch, whose lock is held. */
static int ask_amid(void *user)
{
    struct search_rig *p = user;

    assert_int_equal(search_submit(p->search, amid), 0);
    amid = NULL;
    return 0;
}

static void a_question_waits_for_one_batch(void **state)
{
    struct search_rig *p = search_rig_open(true);
    struct search_job *job = calloc(1, sizeof *job);
    struct slot *slots = p->rig.slots;
    const char *question = "Which river?";
    char text[4 * CHUNK + 1];

    (void)state;
    rig_stream(&p->rig, 1, "t", 4);
    rig_settle(&p->rig);
    for (uint64_t sequence = 1; sequence <= 2; sequence++) {
        for (uint32_t i = 0; i < 2; i++) {
            filler(text, i, sizeof text);
            rig_text(&p->rig, i, "p", sequence, text, strlen(text));
            rig_settle(&p->rig);
        }
        if (sequence == 1)
            search_rig_index(p);
    }
    uint64_t before[] = {atomic_load(&slots[0].indexed_to), atomic_load(&slots[1].indexed_to)};
    assert_true(before[0] && before[1]);
    job->stream_id = atomic_load(&slots[0].stream_id);
    job->question = (const uint8_t *)question;
    job->question_bytes = (uint32_t)strlen(question);
    job->chunk_end = UINT32_MAX;
    amid = job;
    struct word_table *first = search_table(p->search, job->stream_id, false);
    sqlite3_commit_hook(first->db, ask_amid, p);

    assert_true(search_step(p->search));
    assert_null(amid);
    assert_true(atomic_load(&slots[0].indexed_to) > before[0]);
    assert_int_equal(atomic_load(&slots[1].indexed_to), before[1]); /* the round ends for it */
    assert_false(atomic_load(&job->done));
    sqlite3_commit_hook(first->db, NULL, NULL);
    search_step(p->search);
    assert_true(atomic_load(&job->done));
    assert_true(job->hit_count > 0);
    assert_true(atomic_load(&slots[1].indexed_to) > before[1]); /* whose turn it was */
    free(job);
    search_rig_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_of_questions),
        cmocka_unit_test(chunks_as_text),
        cmocka_unit_test(whole_lines_stand_before_a_question),
        cmocka_unit_test(sentences_are_found),
        cmocka_unit_test(what_is_forgotten_is_gone),
        cmocka_unit_test(keys_find_what_words_do_not),
        cmocka_unit_test(words_near_in_meaning),
        cmocka_unit_test(other_words_are_found_in_one_place),
        cmocka_unit_test(places_are_of_their_own_question),
        cmocka_unit_test(text_around_is_as_it_was),
        cmocka_unit_test(a_question_waits_for_one_batch),
    };

    return cmocka_run_group_tests_name("search", tests, NULL, NULL);
}
