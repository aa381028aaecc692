/* What came out: a table for people, JSON lines for programs, a progress line on a terminal. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/eval/eval.h"

enum { ID_COLUMNS = 32 };

const char *policy_name(enum policy policy)
{
    static const char *const names[POLICY_COUNT] = {
        "full", "window", "window+lora", "none", "ccm", "no-summary", "ccm-swap", "ccm-foreign"};
    return policy < POLICY_COUNT ? names[policy] : NULL;
}

static double mean(double sum, uint64_t count)
{
    return count ? sum / (double)count : 0.0;
}

static double score_mean(const struct score *s, uint64_t *scored)
{
    double nll = 0.0;
    *scored = 0;
    for (int i = 0; i < EVAL_QUARTERS; i++) {
        nll += s->nll[i];
        *scored += s->scored[i];
    }
    return mean(nll, *scored);
}

void report_begin(const struct eval_options *options, const struct engine_info *info,
                  const struct documents *documents)
{
    if (options->json)
        return;
    uint64_t tokens = 0;
    for (size_t i = 0; i < documents->count; i++)
        tokens += documents->list[i].count;
    printf("%s, %s kernels, %u threads; %s over %zu document%s, %llu tokens\n", info->model_name,
           info->kernels_name, info->threads, policy_name(options->policy), documents->count,
           documents->count == 1 ? "" : "s", (unsigned long long)tokens);
    printf("%-*s %8s %7s %9s  %-27s %8s %8s %6s %7s\n", ID_COLUMNS, "document", "tokens", "nll",
           "ppl", "nll by quarter", "KV rows", "KV MB", "dmc", "tok/s");
}

static void report_json(const struct eval_options *options, const struct document *document,
                        const struct score *s)
{
    uint64_t scored;
    double nll = score_mean(s, &scored);
    json_t *line = json_object(), *quarters = json_array();
    if (document) {
        json_object_set_new(line, "document", json_string(document->id));
        if (document->kind[0])
            json_object_set_new(line, "kind", json_string(document->kind));
    } else {
        json_object_set_new(line, "total", json_true());
    }
    for (int i = 0; i < EVAL_QUARTERS; i++)
        json_array_append_new(quarters, s->scored[i] ? json_real(mean(s->nll[i], s->scored[i]))
                                                     : json_null());
    json_object_set_new(line, "policy", json_string(policy_name(options->policy)));
    json_object_set_new(line, "nll", scored ? json_real(nll) : json_null());
    json_object_set_new(line, "nll_quarters", quarters);
    json_object_set_new(line, "perplexity", scored ? json_real(exp(nll)) : json_null());
    json_object_set_new(line, "tokens", json_integer((json_int_t)s->tokens));
    json_object_set_new(line, "tokens_scored", json_integer((json_int_t)scored));
    json_object_set_new(line, "kv_rows_mean",
                        isnan(s->rows) ? json_null() : json_real(mean(s->rows, s->tokens)));
    json_object_set_new(line, "kv_bytes_peak", json_integer((json_int_t)s->kv_bytes_peak));
    json_object_set_new(line, "dmc_ratio",
                        json_real(s->entries > 0.0 ? (double)s->tokens / s->entries : 1.0));
    json_object_set_new(line, "tokens_per_second",
                        json_real(s->seconds > 0.0 ? (double)s->tokens / s->seconds : 0.0));
    json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7));
    putchar('\n');
    json_decref(line);
}

void report_line(const struct eval_options *options, const struct document *document,
                 const struct score *s)
{
    report_progress(NULL);
    if (options->json) {
        report_json(options, document, s);
        fflush(stdout);
        return;
    }
    uint64_t scored;
    double nll = score_mean(s, &scored);
    const char *id = document ? document->id : "total";
    size_t bytes = strlen(id);
    /* The end of a long name says more than its beginning. */
    id += bytes > ID_COLUMNS ? bytes - ID_COLUMNS : 0;
    printf("%-*s %8llu %7.4f %9.4f ", ID_COLUMNS, id, (unsigned long long)s->tokens, nll, exp(nll));
    for (int i = 0; i < EVAL_QUARTERS; i++)
        printf(" %6.3f", mean(s->nll[i], s->scored[i]));
    printf(" %8.1f %8.2f %6.2f %7.0f\n", mean(s->rows, s->tokens), (double)s->kv_bytes_peak * 1e-6,
           s->entries > 0.0 ? (double)s->tokens / s->entries : 1.0,
           s->seconds > 0.0 ? (double)s->tokens / s->seconds : 0.0);
    fflush(stdout);
}

/* A model may say bytes that are no UTF-8, which JSON cannot carry. */
static json_t *text_json(const char *text)
{
    char ascii[sizeof((struct answer *)0)->said];
    json_t *json = json_string(text);
    if (json)
        return json;
    snprintf(ascii, sizeof ascii, "%s", text);
    for (char *c = ascii; *c; c++)
        *c = (unsigned char)*c < 0x80 ? *c : '?';
    return json_string(ascii);
}

void report_answer(const struct eval_options *options, const struct document *document,
                   const struct answer *answer, size_t count)
{
    double n = count ? (double)count : 1.0;
    report_progress(NULL);
    if (!options->json) {
        printf("%-*s %8u %7.4f %5.2f %5.2f  %s\n", ID_COLUMNS, document ? document->id : "mean",
               document ? answer->tokens : (unsigned)count, answer->nll / n, answer->exact / n,
               answer->f1 / n, document ? answer->said : "");
        return;
    }
    json_t *line = json_object();
    json_object_set_new(line, document ? "document" : "total",
                        document ? json_string(document->id) : json_true());
    json_object_set_new(line, "policy", json_string(policy_name(options->policy)));
    json_object_set_new(line, "answer_nll", json_real(answer->nll / n));
    if (options->policy != POLICY_FULL) {
        json_object_set_new(line, "exact", json_real(answer->exact / n));
        json_object_set_new(line, "f1", json_real(answer->f1 / n));
        if (document)
            json_object_set_new(line, "said", text_json(answer->said));
    }
    if (!document)
        json_object_set_new(line, "questions", json_integer((json_int_t)count));
    json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7));
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

void report_chosen(const struct eval_options *options, const struct document *document,
                   const struct chosen *chosen)
{
    json_t *line = json_object(), *questions = json_array();
    for (uint32_t i = 0; i < document->choice_question_count; i++) {
        json_t *question = json_object(), *losses = json_array();
        for (uint32_t c = 0; c < document->choice_questions[i].choice_count; c++)
            json_array_append_new(losses, json_real(chosen[i].loss[c]));
        json_object_set_new(question, "losses", losses);
        json_object_set_new(question, "kv_rows", json_real(chosen[i].rows));
        json_object_set_new(question, "recalled", json_integer(chosen[i].recalled));
        json_object_set_new(question, "tokens", json_integer(chosen[i].tail_tokens));
        json_array_append_new(questions, question);
    }
    json_object_set_new(line, "document", json_string(document->id));
    json_object_set_new(line, "policy", json_string(policy_name(options->policy)));
    json_object_set_new(line, "questions", questions);
    report_progress(NULL);
    json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(7));
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

void report_progress(const char *text)
{
    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r\033[K%s", text ? text : "");
    fflush(stderr);
}
