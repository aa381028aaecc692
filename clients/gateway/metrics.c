/* GET /metrics in Prometheus' text form: siltd, every stream, the gateway itself.
 * Names end in their unit, counters in _total; the samples of one name stand together. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/gateway.h"

static const double bounds[BUCKETS] = {0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60};

uint64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void count_request(struct counters *counters, unsigned code)
{
    for (int i = 0; i < CODES_MAX; i++) {
        unsigned free_code = 0;

        if (atomic_load(&counters->code[i]) == code ||
            atomic_compare_exchange_strong(&counters->code[i], &free_code, code) ||
            free_code == code) {
            atomic_fetch_add(&counters->requests[i], 1);
            return;
        }
    }
}

void histogram_add(struct histogram *histogram, uint64_t us)
{
    int i = 0;

    while (i < BUCKETS && (double)us > bounds[i] * 1e6)
        i++;
    atomic_fetch_add(&histogram->buckets[i], 1);
    atomic_fetch_add(&histogram->sum_us, us);
}

/* ---- text ---- */

static void family(struct text *out, const char *name, const char *type, const char *help)
{
    text_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: backslash, quote and newline are escaped. */
static void label(struct text *out, const char *name, const char *value)
{
    text_addf(out, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            text_add(out, "\\", 1);
        text_add(out, *value == '\n' ? "\\n" : value, *value == '\n' ? 2 : 1);
    }
    text_add(out, "\"", 1);
}

static void single(struct text *out, const char *name, const char *type, const char *help,
                   double value)
{
    family(out, name, type, help);
    text_addf(out, "%s %.17g\n", name, value);
}

/* ---- the process ---- */

static void tiers(struct text *out, const struct client_process_stat *stat)
{
    static const char *const names[] = {"silt_memory_plan_bytes", "silt_memory_used_bytes"};
    static const char *const helps[] = {"Bytes planned at start, by what they are for.",
                                        "Bytes in use of the plan, by what they are for."};

    for (int used = 0; used < 2; used++) {
        family(out, names[used], "gauge", helps[used]);
        for (size_t i = 0; i < stat->tier_count; i++) {
            text_addf(out, "%s{", names[used]);
            label(out, "tier", stat->tiers[i].name);
            text_addf(out, ",");
            label(out, "memory", stat->tiers[i].on_device ? "device" : "main");
            text_addf(out, "} %" PRIu64 "\n",
                      used ? stat->tiers[i].bytes_used : stat->tiers[i].bytes_plan);
        }
    }
}

static void process(struct text *out, const struct client_process_stat *stat)
{
    family(out, "silt_info", "gauge", "What runs, in its labels.");
    text_addf(out, "silt_info{");
    label(out, "version", stat->version);
    text_addf(out, ",");
    label(out, "model", stat->model);
    text_addf(out, ",");
    label(out, "kernels", stat->kernels);
    text_addf(out, ",");
    label(out, "device", stat->device);
    text_addf(out, "} 1\n");
    single(out, "silt_compression_enabled", "gauge", "1: the model has an adapter.",
           stat->adapter[0] != 0);
    single(out, "silt_uptime_seconds", "gauge", "Since siltd started.",
           (double)stat->uptime_us / 1e6);
    single(out, "silt_tokens_computed_total", "counter", "Tokens computed since siltd started.",
           (double)stat->tokens_computed);
    single(out, "silt_compute_seconds_total", "counter", "Time the compute thread was at work.",
           (double)stat->compute_us / 1e6);
    single(out, "silt_loss_meter_seconds_total", "counter", "Part of it that the loss meter took.",
           (double)stat->meter_us / 1e6);
    single(out, "silt_passes_total", "counter", "Passes over streams' text.", (double)stat->passes);
    single(out, "silt_read_seconds_total", "counter", "Part of its time that these took.",
           (double)stat->read_us / 1e6);
    single(out, "silt_device_wait_seconds_total", "counter", "Part of that for the device alone.",
           (double)stat->wait_us / 1e6);
    single(out, "silt_leave_seconds_total", "counter",
           "Part of its time to hand segments to the disk's thread.", (double)stat->leave_us / 1e6);
    single(out, "silt_disk_wait_seconds_total", "counter", "Part of that for the disk alone.",
           (double)stat->disk_us / 1e6);
    single(out, "silt_save_seconds_total", "counter",
           "Part of its time behind passes: statistics and checkpoints.",
           (double)stat->save_us / 1e6);
    single(out, "silt_loss_flag_nats", "gauge", "A stream that surely loses more is flagged.",
           stat->loss_flag);
    single(out, "silt_resident_bytes", "gauge", "Memory of the process as the kernel counts it.",
           (double)stat->bytes_resident);
    single(out, "silt_disk_bytes", "gauge", "Bytes under the data folder.",
           (double)stat->bytes_disk);
    single(out, "silt_streams", "gauge", "Streams there are.", stat->streams);
    single(out, "silt_streams_live_max", "gauge", "Streams that can be live at once.",
           stat->streams_max);
    single(out, "silt_questions", "gauge", "Questions under way.", stat->forks);
    single(out, "silt_questions_max", "gauge", "Questions that can be under way at once.",
           stat->forks_max);
    tiers(out, stat);
    family(out, "silt_degraded", "gauge", "1 for each reason why siltd is not well.");
    for (size_t i = 0; i < stat->degraded_count; i++) {
        text_addf(out, "silt_degraded{");
        label(out, "reason", stat->degraded[i]);
        text_addf(out, "} 1\n");
    }
}

/* ---- streams ---- */

struct streams {
    size_t count, room;
    struct client_stream_stat *list; /* [room], without what they point to but tiers, degraded */
};

static int streams_add(void *user, const struct client_stream_stat *stat)
{
    struct streams *streams = user;
    struct client_stream_stat *one;

    if (streams->count == streams->room) {
        size_t room = streams->room ? streams->room * 2 : 64;
        void *list = realloc(streams->list, room * sizeof *streams->list);

        if (!list)
            return -ENOMEM;
        streams->list = list;
        streams->room = room;
    }
    one = &streams->list[streams->count];
    *one = *stat;
    one->head_ratio = NULL;
    one->head_ratio_count = 0;
    one->tiers = calloc(stat->tier_count + 1, sizeof *one->tiers);
    one->degraded = calloc(stat->degraded_count + 1, sizeof *one->degraded);
    streams->count++;
    if (!one->tiers || !one->degraded) {
        one->degraded_count = 0;
        return -ENOMEM;
    }
    if (stat->tier_count)
        memcpy(one->tiers, stat->tiers, stat->tier_count * sizeof *one->tiers);
    for (size_t i = 0; i < stat->degraded_count; i++)
        one->degraded[i] = strdup(stat->degraded[i]);
    return streams->count >= STREAMS_SHOWN_MAX;
}

static void streams_free(struct streams *streams)
{
    for (size_t i = 0; i < streams->count; i++)
        client_stat_free(&streams->list[i]);
    free(streams->list);
    *streams = (struct streams){0};
}

enum kind { U64, REAL };
static const struct stream_field {
    const char *name, *type, *help;
    enum kind kind;
    size_t offset;
} fields[] = {
#define FIELD(name, type, help, kind, field)                                                       \
    {                                                                                              \
        "silt_stream_" name, type, help, kind, offsetof(struct client_stream_stat, field)          \
    }
    FIELD("tokens_acked_total", "counter", "Tokens that are in the journal.", U64, tokens_acked),
    FIELD("tokens_computed_total", "counter", "Tokens that are in memory.", U64, tokens_computed),
    FIELD("lag_tokens", "gauge", "Tokens acked and not yet computed.", U64, lag_tokens),
    FIELD("tokens_per_second", "gauge", "Rate while it is behind; 0: it is not.", REAL,
          tokens_per_second),
    FIELD("text_bytes_total", "counter", "Bytes of text read.", U64, bytes_text),
    FIELD("disk_bytes", "gauge", "Bytes on disk.", U64, bytes_disk),
    FIELD("chunks_total", "counter", "Chunks folded.", U64, chunks),
    FIELD("segments_ring", "gauge", "Segments attended by every token.", U64, segments_ring),
    FIELD("segments_cold", "gauge", "Segments on disk, for recall.", U64, segments_cold),
    FIELD("dmc_ratio", "gauge", "Tokens of closed chunks per entry kept.", REAL, dmc_ratio),
    FIELD("rows_mean", "gauge", "Rows of memory attended, mean of the heads.", REAL, rows_mean),
    FIELD("recall_hits_total", "counter", "Cold segments that came back for questions.", U64,
          recall_hits),
    FIELD("segments_merged_total", "counter", "Cold segments merged for the quota's sake.", U64,
          segments_merged),
    FIELD("segments_dropped_total", "counter", "Cold segments dropped for the quota's sake.", U64,
          segments_dropped),
    FIELD("segments_repaired_total", "counter", "Found unfit, and made again as they were.", U64,
          segments_repaired),
    FIELD("segments_approximate_total", "counter", "Found unfit, and made from their neighbours.",
          U64, segments_approximate),
    FIELD("pinned_tokens", "gauge", "Tokens that pins keep uncompressed.", U64, pin_tokens),
    FIELD("loss_chunks_total", "counter", "Chunks scored by the loss meter.", U64, loss.chunks),
    FIELD("indexed_tokens", "gauge", "Tokens whose text can be searched.", U64, indexed_to),
};

static void stream_tiers(struct text *out, const struct streams *streams, const char *name,
                         const char *help, bool used)
{
    family(out, name, "gauge", help);
    for (size_t s = 0; s < streams->count; s++)
        for (size_t i = 0; i < streams->list[s].tier_count; i++) {
            const struct client_tier *tier = &streams->list[s].tiers[i];

            text_addf(out, "%s{stream=\"%s\",", name, streams->list[s].stream);
            label(out, "tier", tier->name);
            text_addf(out, "} %" PRIu64 "\n", used ? tier->bytes_used : tier->bytes_plan);
        }
}

/* Of streams that have been scored: no number is better than a zero that means nothing. */
static void losses(struct text *out, const struct streams *streams)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } parts[] = {
        {"silt_stream_loss_nats", "What the memory loses a token against 2,048 raw ones, mean.",
         offsetof(struct client_loss, difference)},
        {"silt_stream_loss_low_nats", "Lower end of its 95 % interval.",
         offsetof(struct client_loss, low)},
        {"silt_stream_loss_high_nats", "Upper end of its 95 % interval.",
         offsetof(struct client_loss, high)},
    };

    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        family(out, parts[p].name, "gauge", parts[p].help);
        for (size_t s = 0; s < streams->count; s++) {
            const struct client_loss *loss = &streams->list[s].loss;
            double value;

            memcpy(&value, (const char *)loss + parts[p].offset, sizeof value);
            if (loss->chunks > (p ? 1 : 0))
                text_addf(out, "%s{stream=\"%s\"} %.9g\n", parts[p].name, streams->list[s].stream,
                          value);
        }
    }
    family(out, "silt_stream_loss_flagged", "gauge",
           "1: the memory surely loses more than siltd's --loss-flag.");
    for (size_t s = 0; s < streams->count; s++)
        if (streams->list[s].loss.chunks)
            text_addf(out, "silt_stream_loss_flagged{stream=\"%s\"} %d\n", streams->list[s].stream,
                      streams->list[s].loss.flagged);
}

static void per_stream(struct text *out, const struct streams *streams)
{
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
        family(out, fields[f].name, fields[f].type, fields[f].help);
        for (size_t s = 0; s < streams->count; s++) {
            const char *at = (const char *)&streams->list[s] + fields[f].offset;
            double real;
            uint64_t number;

            memcpy(&real, at, sizeof real);
            memcpy(&number, at, sizeof number);
            text_addf(out, "%s{stream=\"%s\"} %.17g\n", fields[f].name, streams->list[s].stream,
                      fields[f].kind == REAL ? real : (double)number);
        }
    }
    stream_tiers(out, streams, "silt_stream_memory_plan_bytes",
                 "Bytes a stream may hold, by tier of its memory.", false);
    stream_tiers(out, streams, "silt_stream_memory_used_bytes",
                 "Bytes a stream holds, by tier of its memory.", true);
    losses(out, streams);
    family(out, "silt_stream_degraded", "gauge", "1 for each reason why a stream is not well.");
    for (size_t s = 0; s < streams->count; s++)
        for (size_t i = 0; i < streams->list[s].degraded_count; i++) {
            const char *why = streams->list[s].degraded[i];

            text_addf(out, "silt_stream_degraded{stream=\"%s\",", streams->list[s].stream);
            label(out, "reason", why ? why : "?");
            text_addf(out, "} 1\n");
        }
}

/* ---- the gateway ---- */

static void histogram(struct text *out, const char *name, const char *help,
                      struct histogram *histogram)
{
    unsigned long long count = 0;

    family(out, name, "histogram", help);
    for (int i = 0; i < BUCKETS; i++) {
        count += atomic_load(&histogram->buckets[i]);
        text_addf(out, "%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], count);
    }
    count += atomic_load(&histogram->buckets[BUCKETS]);
    text_addf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.6f\n%s_count %llu\n", name, count, name,
              (double)atomic_load(&histogram->sum_us) / 1e6, name, count);
}

static void own(struct text *out, struct counters *counters)
{
    family(out, "silt_gateway_requests_total", "counter", "Requests answered, by status.");
    for (int i = 0; i < CODES_MAX && atomic_load(&counters->code[i]); i++)
        text_addf(out, "silt_gateway_requests_total{code=\"%u\"} %llu\n",
                  atomic_load(&counters->code[i]), atomic_load(&counters->requests[i]));
    family(out, "silt_gateway_questions_total", "counter", "Questions, by how they ended.");
    text_addf(out, "silt_gateway_questions_total{result=\"answered\"} %llu\n",
              atomic_load(&counters->answered));
    text_addf(out, "silt_gateway_questions_total{result=\"refused\"} %llu\n",
              atomic_load(&counters->refused));
    text_addf(out, "silt_gateway_questions_total{result=\"abandoned\"} %llu\n",
              atomic_load(&counters->cancelled));
    single(out, "silt_gateway_questions_under_way", "gauge", "Questions under way.",
           atomic_load(&counters->under_way));
    single(out, "silt_gateway_answer_tokens_total", "counter", "Tokens of answers.",
           (double)atomic_load(&counters->tokens));
    family(out, "silt_gateway_messages_total", "counter",
           "Messages of histories: new ones went to siltd, known ones did not.");
    text_addf(out, "silt_gateway_messages_total{state=\"new\"} %llu\n",
              atomic_load(&counters->new_messages));
    text_addf(out, "silt_gateway_messages_total{state=\"known\"} %llu\n",
              atomic_load(&counters->known_messages));
    histogram(out, "silt_gateway_first_text_seconds",
              "From the request to the answer's first text.", &counters->first_text);
    histogram(out, "silt_gateway_answer_seconds", "From the request to the answer's end.",
              &counters->whole);
}

enum MHD_Result metrics_get(struct gateway *gateway, struct MHD_Connection *connection,
                            struct request *request)
{
    struct client_error error;
    struct pooled *pooled = pool_take(gateway, false, &error);
    struct client_process_stat stat;
    struct streams streams = {0};
    struct text out = {0};
    int r = pooled ? client_process_stat(pooled->client, &stat, &error) : error.code;

    (void)request;
    /* That siltd is away is itself a fact to scrape. */
    single(&out, "silt_up", "gauge", "1: siltd answers.", r == 0);
    if (!r) {
        process(&out, &stat);
        client_process_stat_free(&stat);
        r = client_list(pooled->client, streams_add, &streams, &error);
        per_stream(&out, &streams);
        streams_free(&streams);
    }
    own(&out, &gateway->counters);
    pool_give(gateway, &pooled, r);
    return reply_text(gateway, connection, 200, "text/plain; version=0.0.4", &out);
}
