/* stat: what a stream holds, or the whole process, in bytes by tier. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt stat [STREAM] [--json]\n"
    "\n"
    "Shows what a stream has read and what it holds: bytes by tier, whose plans add up to the\n"
    "stream's, lag, and how far each KV head is merged. Without STREAM: the same of siltd.\n"
    "\n"
    "  silt stat log\n"
    "  silt stat log --json | jq .memory_hash\n"
    "  silt stat                     the whole daemon\n"
    "\n"
    "  --json   one JSON object; sizes are bytes, positions are tokens, hashes 16 hex digits;\n"
    "           what is not known while a stream is parked is null\n";

static json_t *tiers_json(const struct client_tier *tiers, size_t count, bool plan)
{
    json_t *json = json_object();

    for (size_t i = 0; i < count; i++)
        json_object_set_new(
            json, tiers[i].name,
            json_integer((json_int_t)(plan ? tiers[i].bytes_plan : tiers[i].bytes_used)));
    return json;
}

static json_t *texts_json(char *const *texts, size_t count)
{
    json_t *json = json_array();

    for (size_t i = 0; i < count; i++)
        json_array_append_new(json, text_json(texts[i], strlen(texts[i])));
    return json;
}

static void set_count(json_t *json, const char *name, uint64_t value)
{
    json_object_set_new(json, name, json_integer((json_int_t)value));
}

static void set_text(json_t *json, const char *name, const char *value)
{
    json_object_set_new(json, name, text_json(value, strlen(value)));
}

static json_t *pins_json(const struct client_pins *pins)
{
    json_t *json = json_array();

    for (size_t i = 0; i < pins->count; i++)
        json_array_append_new(
            json, json_pack("{s:I, s:I, s:b}", "from", (json_int_t)pins->pin[i].from, "to",
                            (json_int_t)pins->pin[i].to, "held", pins->pin[i].held));
    return json;
}

/* null: nothing scored yet. */
static json_t *loss_json(const struct client_loss *loss)
{
    json_t *json = loss->chunks ? json_object() : json_null();

    if (!loss->chunks)
        return json;
    set_count(json, "chunks", loss->chunks);
    json_object_set_new(json, "with_memory", json_real(loss->with_memory));
    json_object_set_new(json, "with_window", json_real(loss->with_window));
    json_object_set_new(json, "difference", json_real(loss->difference));
    json_object_set_new(json, "low", json_real(loss->low));
    json_object_set_new(json, "high", json_real(loss->high));
    json_object_set_new(json, "flagged", json_boolean(loss->flagged));
    return json;
}

json_t *stat_json(const struct client_stream_stat *stat)
{
    json_t *json = json_object(), *heads = json_array(), *recalled = json_array();
    char hash[24];

    snprintf(hash, sizeof hash, "%016" PRIx64, stat->memory_hash);
    set_text(json, "stream", stat->stream);
    json_object_set_new(json, "parked", json_boolean(stat->parked));
    json_object_set_new(json, "stopped", json_boolean(stat->stopped));
    set_count(json, "tokens_acked", stat->tokens_acked);
    set_count(json, "tokens_computed", stat->tokens_computed);
    set_count(json, "lag_tokens", stat->lag_tokens);
    json_object_set_new(json, "tokens_per_second", json_real(stat->tokens_per_second));
    set_count(json, "chunks", stat->chunks);
    set_count(json, "segments_ring", stat->segments_ring);
    set_count(json, "segments_cold", stat->segments_cold);
    set_count(json, "ring_segments", stat->ring_segments);
    set_count(json, "bytes_plan", stat->bytes_plan);
    json_object_set_new(json, "bytes_plan_by_tier",
                        tiers_json(stat->tiers, stat->tier_count, true));
    json_object_set_new(json, "bytes_used", tiers_json(stat->tiers, stat->tier_count, false));
    set_count(json, "bytes_used_total", stat->bytes_used);
    set_count(json, "bytes_disk", stat->bytes_disk);
    set_count(json, "bytes_text", stat->bytes_text);
    json_object_set_new(json, "memory_hash", stat->hash_known ? json_string(hash) : json_null());
    set_count(json, "hash_chunk", stat->hash_chunk);
    set_count(json, "numerics_epoch", stat->numerics_epoch);
    set_count(json, "indexed_to", stat->indexed_to);
    set_count(json, "first_position", stat->first_position);
    set_count(json, "rebuilding_to", stat->rebuilding_to);
    set_count(json, "segments_merged", stat->segments_merged);
    set_count(json, "segments_dropped", stat->segments_dropped);
    set_count(json, "segments_repaired", stat->segments_repaired);
    set_count(json, "segments_approximate", stat->segments_approximate);
    json_object_set_new(json, "bytes_disk_by_tier",
                        json_pack("{s:I, s:I, s:I, s:I}", "text", (json_int_t)stat->bytes_text,
                                  "segments", (json_int_t)stat->bytes_segments, "checkpoints",
                                  (json_int_t)stat->bytes_checkpoints, "index",
                                  (json_int_t)stat->bytes_index));
    json_object_set_new(json, "dmc_ratio", stat->parked ? json_null() : json_real(stat->dmc_ratio));
    set_count(json, "dmc_ratio_asked", stat->dmc_ratio_asked);
    json_object_set_new(json, "rows_mean", stat->parked ? json_null() : json_real(stat->rows_mean));
    set_count(json, "layers", stat->layers);
    set_count(json, "kv_heads", stat->kv_heads);
    for (size_t i = 0; i < stat->head_ratio_count; i++)
        json_array_append_new(heads, json_real(stat->head_ratio[i]));
    json_object_set_new(json, "head_ratio", heads);
    for (size_t i = 0; i < stat->recalled_count; i++)
        json_array_append_new(recalled, json_integer((json_int_t)stat->recalled[i]));
    json_object_set_new(json, "pins", stat->parked ? json_null() : pins_json(&stat->pins));
    json_object_set_new(json, "pin_tokens",
                        stat->parked ? json_null() : json_integer((json_int_t)stat->pin_tokens));
    set_count(json, "pin_tokens_max", stat->pins.tokens_max);
    json_object_set_new(json, "loss", loss_json(&stat->loss));
    set_count(json, "recall_hits", stat->recall_hits);
    json_object_set_new(json, "recalled", recalled);
    set_count(json, "recalled_us", stat->recalled_us);
    set_count(json, "created_us", stat->created_us);
    json_object_set_new(json, "degraded", texts_json(stat->degraded, stat->degraded_count));
    return json;
}

static json_t *process_json(const struct client_process_stat *stat)
{
    json_t *json = json_object();

    set_text(json, "version", stat->version);
    set_text(json, "model", stat->model);
    set_text(json, "adapter", stat->adapter);
    set_text(json, "device", stat->device);
    set_text(json, "kernels", stat->kernels);
    set_count(json, "threads", stat->threads);
    set_count(json, "streams", stat->streams);
    set_count(json, "streams_max", stat->streams_max);
    set_count(json, "forks", stat->forks);
    set_count(json, "forks_max", stat->forks_max);
    set_count(json, "tokens_computed", stat->tokens_computed);
    set_count(json, "uptime_us", stat->uptime_us);
    set_count(json, "compute_us", stat->compute_us);
    set_count(json, "meter_us", stat->meter_us);
    set_count(json, "read_us", stat->read_us);
    set_count(json, "passes", stat->passes);
    set_count(json, "wait_us", stat->wait_us);
    set_count(json, "leave_us", stat->leave_us);
    set_count(json, "disk_us", stat->disk_us);
    set_count(json, "save_us", stat->save_us);
    json_object_set_new(json, "loss_flag", json_real(stat->loss_flag));
    set_count(json, "bytes_plan", stat->bytes_plan);
    json_object_set_new(json, "bytes_plan_by_tier",
                        tiers_json(stat->tiers, stat->tier_count, true));
    json_object_set_new(json, "bytes_used", tiers_json(stat->tiers, stat->tier_count, false));
    set_count(json, "bytes_used_total", stat->bytes_used);
    set_count(json, "bytes_resident", stat->bytes_resident);
    set_count(json, "bytes_disk", stat->bytes_disk);
    json_object_set_new(json, "degraded", texts_json(stat->degraded, stat->degraded_count));
    return json;
}

static int real_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Heads differ a lot: the spread, and the layers that merge least and most. */
static void print_heads(const struct client_stream_stat *stat)
{
    size_t n = stat->head_ratio_count, heads = stat->kv_heads;
    double *sorted, mean_least = 0, mean_most = 0;
    size_t least = 0, most = 0;

    if (!n || !stat->chunks || !heads || n != (size_t)stat->layers * heads)
        return;
    sorted = malloc(n * sizeof *sorted);
    if (!sorted)
        return;
    memcpy(sorted, stat->head_ratio, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, real_compare);
    for (size_t layer = 0; layer < stat->layers; layer++) {
        double mean = 0;

        for (size_t head = 0; head < heads; head++)
            mean += stat->head_ratio[layer * heads + head] / (double)heads;
        if (!layer || mean < mean_least) {
            least = layer;
            mean_least = mean;
        }
        if (!layer || mean > mean_most) {
            most = layer;
            mean_most = mean;
        }
    }
    printf("  merged by head: least %.1fx, median %.1fx, most %.1fx of %zu heads; layer %zu least "
           "(%.1fx), layer %zu most (%.1fx)\n",
           sorted[0], sorted[n / 2], sorted[n - 1], n, least, mean_least, most, mean_most);
    free(sorted);
}

static void print_degraded(char *const *texts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("  degraded: %s\n", texts[i]);
}

static void print_loss(const struct client_loss *loss)
{
    if (!loss->chunks) {
        printf("  loss meter      no chunk scored since siltd started\n");
        return;
    }
    printf("  loss meter      %+.3f nats a token against 2,048 uncompressed tokens",
           loss->difference);
    if (loss->chunks > 1)
        printf(" (95 %%: %+.3f to %+.3f)", loss->low, loss->high);
    printf(", %" PRIu64 " chunk%s scored\n", loss->chunks, loss->chunks == 1 ? "" : "s");
}

/* Cold segments that are not what they were: half as many for the quota's sake, or made again. */
static void print_cold(const struct client_stream_stat *stat)
{
    char a[TEXT_BYTES], b[TEXT_BYTES];

    if (stat->first_position)
        printf("  trimmed         the text before token %s is gone\n",
               text_count(a, stat->first_position));
    if (stat->segments_merged || stat->segments_dropped)
        printf("  cold, for room  %s averaged with a neighbour, %s dropped since siltd started: "
               "raise --disk to keep more\n",
               text_count(a, stat->segments_merged), text_count(b, stat->segments_dropped));
    if (stat->segments_repaired || stat->segments_approximate)
        printf("  cold, unfit     %s made again as they were, %s from their neighbours\n",
               text_count(a, stat->segments_repaired), text_count(b, stat->segments_approximate));
}

static void print_stream(const struct client_stream_stat *stat)
{
    char a[TEXT_BYTES], b[TEXT_BYTES], c[TEXT_BYTES], d[TEXT_BYTES];

    printf("stream %s\n", stat->stream);
    printf("  read            %s tokens (%s of text), %s computed, lag %s\n",
           text_count(a, stat->tokens_acked), text_bytes(b, stat->bytes_text),
           text_count(c, stat->tokens_computed), text_count(d, stat->lag_tokens));
    printf("  kept            %s chunks: %s segments in the ring of %u, %s cold\n",
           text_count(a, stat->chunks), text_count(b, stat->segments_ring), stat->ring_segments,
           text_count(c, stat->segments_cold));
    print_cold(stat);
    if (stat->parked)
        printf(
            "  parked          on the disk alone, until it is fed or asked; pins are not shown\n");
    else
        printf("  merged          %.2fx of %ux asked; a query attends %.0f rows a head\n",
               stat->dmc_ratio, stat->dmc_ratio_asked, stat->rows_mean);
    print_heads(stat);
    printf("  speed           %s tokens/s\n", text_count(a, (uint64_t)stat->tokens_per_second));
    printf("  disk            %s", text_bytes(a, stat->bytes_disk));
    if (stat->indexed_to || !stat->parked)
        printf(", text searchable up to token %s", text_count(b, stat->indexed_to));
    if (stat->hash_known)
        printf("\n  memory hash     %016" PRIx64 " at chunk %s\n", stat->memory_hash,
               text_count(a, stat->hash_chunk));
    else
        printf("\n  memory hash     not known while it is parked\n");
    for (size_t i = 0; i < stat->pins.count; i++)
        printf("  pinned          tokens %" PRIu64 " to %" PRIu64 "%s\n", stat->pins.pin[i].from,
               stat->pins.pin[i].to,
               stat->pins.pin[i].held ? "" : " (for the stream from its next chunk on)");
    print_loss(&stat->loss);
    print_degraded(stat->degraded, stat->degraded_count);
    putchar('\n');
    text_tiers(stat->tiers, stat->tier_count, stat->bytes_plan, stat->bytes_used);
}

static void print_process(const struct client_process_stat *stat)
{
    char a[TEXT_BYTES], b[TEXT_BYTES], c[TEXT_BYTES];

    printf("siltd %s\n", stat->version);
    printf("  model           %s\n", stat->model);
    printf("  adapter         %s\n",
           stat->adapter[0] ? stat->adapter : "none: compression is off, a sliding window only");
    printf("  runs on         %s, %s kernels, %u threads\n", stat->device, stat->kernels,
           stat->threads);
    printf("  streams         %u, at most %u of them live; %u of %u questions at once\n",
           stat->streams, stat->streams_max, stat->forks, stat->forks_max);
    printf("  computed        %s tokens in %s\n", text_count(a, stat->tokens_computed),
           text_seconds(b, (double)stat->uptime_us / 1e6));
    printf("  resident        %s as the kernel counts; %s on disk\n",
           text_bytes(b, stat->bytes_resident), text_bytes(c, stat->bytes_disk));
    print_degraded(stat->degraded, stat->degraded_count);
    putchar('\n');
    text_tiers(stat->tiers, stat->tier_count, stat->bytes_plan, stat->bytes_used);
}

static int show_stream(const struct client_stream_stat *stat, bool json)
{
    if (json)
        return text_json_print(stat_json(stat));
    print_stream(stat);
    return EXIT_DONE;
}

static int show_process(const struct client_process_stat *stat, bool json)
{
    if (json)
        return text_json_print(process_json(stat));
    print_process(stat);
    return EXIT_DONE;
}

static int of_stream(struct silt *silt, const char *stream, const struct stat_views *views,
                     bool json)
{
    struct client_stream_stat stat;
    int r;

    if (client_stat(silt->client, stream, &stat, &silt->error))
        return silt_fail(silt);
    r = views->stream(&stat, json);
    client_stat_free(&stat);
    return r;
}

static int of_process(struct silt *silt, const struct stat_views *views, bool json)
{
    struct client_process_stat stat;
    int r;

    if (client_process_stat(silt->client, &stat, &silt->error))
        return silt_fail(silt);
    r = views->process(&stat, json);
    client_process_stat_free(&stat);
    return r;
}

int silt_stat(struct silt *silt, const struct command *command, int argc, char **argv,
              const struct stat_views *views)
{
    bool json = false;
    int r = silt_options_json(silt, command, argc, argv, &json);

    if (r >= 0)
        return r;
    if (argc - optind > 1)
        return silt_usage(silt, "name one stream, or none for the daemon");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    return optind < argc ? of_stream(silt, argv[optind], views, json)
                         : of_process(silt, views, json);
}

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct stat_views views = {show_stream, show_process};

    return silt_stat(silt, &command_stat, argc, argv, &views);
}

const struct command command_stat = {
    .name = "stat",
    .summary = "what a stream holds, in bytes by tier",
    .help = help,
    .run = run,
};
