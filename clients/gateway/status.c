/* What siltd and its streams hold, as JSON: for the page, for OpenAI's clients, for a watchdog. */
#include <errno.h>
#include <string.h>

#include "clients/gateway/gateway.h"

static json_t *tiers_json(const struct client_tier *tiers, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "name", tiers[i].name,
                                              "bytes_plan", (json_int_t)tiers[i].bytes_plan,
                                              "bytes_used", (json_int_t)tiers[i].bytes_used));
    return list;
}

static json_t *texts_json(char *const *texts, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_string(texts[i]));
    return list;
}

/* What came back from the disk for the last question, and what the loss meter has measured. */
static void recall_and_loss(json_t *json, const struct client_stream_stat *stat)
{
    json_t *recalled = json_array();

    for (size_t i = 0; i < stat->recalled_count; i++)
        json_array_append_new(recalled, json_integer((json_int_t)stat->recalled[i]));
    json_object_set_new(json, "recall_hits", json_integer((json_int_t)stat->recall_hits));
    json_object_set_new(json, "recalled_us", json_integer((json_int_t)stat->recalled_us));
    json_object_set_new(json, "recalled", recalled);
    if (stat->loss.chunks)
        json_object_set_new(json, "loss",
                            json_pack("{s:I, s:f, s:f, s:f, s:b}", "chunks",
                                      (json_int_t)stat->loss.chunks, "difference",
                                      stat->loss.difference, "low", stat->loss.low, "high",
                                      stat->loss.high, "flagged", (int)stat->loss.flagged));
}

/* The ranges are known of one stream alone; of a list, how many tokens they are. */
static void pins(json_t *json, const struct client_stream_stat *stat)
{
    json_t *list = json_array();

    for (size_t i = 0; i < stat->pins.count; i++)
        json_array_append_new(
            list, json_pack("{s:I, s:I, s:b}", "from", (json_int_t)stat->pins.pin[i].from, "to",
                            (json_int_t)stat->pins.pin[i].to, "held", stat->pins.pin[i].held));
    json_object_set_new(json, "pins", list);
    json_object_set_new(json, "pin_tokens", json_integer((json_int_t)stat->pin_tokens));
    json_object_set_new(json, "pin_tokens_max", json_integer(stat->pins.tokens_max));
}

static json_t *stream_json(const struct client_stream_stat *stat)
{
    char hash[24];
    json_t *json = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:I}", "stream",
        stat->stream, "tokens_acked", (json_int_t)stat->tokens_acked, "tokens_computed",
        (json_int_t)stat->tokens_computed, "lag_tokens", (json_int_t)stat->lag_tokens, "chunks",
        (json_int_t)stat->chunks, "segments_ring", (json_int_t)stat->segments_ring, "segments_cold",
        (json_int_t)stat->segments_cold, "bytes_plan", (json_int_t)stat->bytes_plan, "bytes_used",
        (json_int_t)stat->bytes_used, "bytes_disk", (json_int_t)stat->bytes_disk, "bytes_text",
        (json_int_t)stat->bytes_text, "dmc_ratio", stat->dmc_ratio, "tokens_per_second",
        stat->tokens_per_second, "ring_segments", (json_int_t)stat->ring_segments);

    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)stat->memory_hash);
    json_object_set_new(json, "memory_hash", stat->hash_known ? json_string(hash) : json_null());
    json_object_set_new(json, "parked", json_boolean(stat->parked));
    json_object_set_new(json, "rows_mean", json_real(stat->rows_mean));
    json_object_set_new(json, "indexed_to", json_integer((json_int_t)stat->indexed_to));
    json_object_set_new(json, "layers", json_integer(stat->layers));
    json_object_set_new(json, "kv_heads", json_integer(stat->kv_heads));
    json_object_set_new(json, "tiers", tiers_json(stat->tiers, stat->tier_count));
    json_object_set_new(json, "degraded", texts_json(stat->degraded, stat->degraded_count));
    recall_and_loss(json, stat);
    pins(json, stat);
    return json;
}

static json_t *process_json(const struct client_process_stat *stat)
{
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "model",
        stat->model, "adapter", stat->adapter, "kernels", stat->kernels, "device", stat->device,
        "version", stat->version, "threads", (json_int_t)stat->threads, "bytes_plan",
        (json_int_t)stat->bytes_plan, "bytes_used", (json_int_t)stat->bytes_used, "bytes_disk",
        (json_int_t)stat->bytes_disk, "bytes_resident", (json_int_t)stat->bytes_resident,
        "uptime_seconds", (json_int_t)(stat->uptime_us / 1000000), "streams",
        (json_int_t)stat->streams, "streams_max", (json_int_t)stat->streams_max, "forks",
        (json_int_t)stat->forks, "forks_max", (json_int_t)stat->forks_max);

    json_object_set_new(json, "tokens_computed", json_integer((json_int_t)stat->tokens_computed));
    json_object_set_new(json, "tiers", tiers_json(stat->tiers, stat->tier_count));
    json_object_set_new(json, "degraded", texts_json(stat->degraded, stat->degraded_count));
    return json;
}

static int each_stream(void *user, const struct client_stream_stat *stat)
{
    json_t *list = user;

    json_array_append_new(list, stream_json(stat));
    return json_array_size(list) >= STREAMS_SHOWN_MAX;
}

static int whole(struct client *client, json_t **out, struct client_error *error)
{
    struct client_process_stat stat;
    json_t *list;
    int r = client_process_stat(client, &stat, error);

    if (r)
        return r;
    list = json_array();
    r = client_list(client, each_stream, list, error);
    if (r < 0)
        json_decref(list);
    else
        *out = json_pack("{s:o, s:o}", "process", process_json(&stat), "streams", list);
    client_process_stat_free(&stat);
    return r < 0 ? r : 0;
}

enum MHD_Result status_get(struct gateway *gateway, struct MHD_Connection *connection,
                           struct request *request)
{
    static const char one[] = "/api/streams/";
    struct client_error error;
    struct pooled *pooled = pool_take(gateway, false, &error);
    json_t *json = NULL;
    int r = error.code;

    if (pooled && !strncmp(request->url, one, sizeof one - 1)) {
        struct client_stream_stat stat;

        r = client_stat(pooled->client, request->url + sizeof one - 1, &stat, &error);
        if (!r) {
            json = stream_json(&stat);
            client_stat_free(&stat);
        }
    } else if (pooled) {
        r = whole(pooled->client, &json, &error);
    }
    pool_give(gateway, &pooled, r);
    return r || !json ? reply_client_error(gateway, connection, &error)
                      : reply_json(gateway, connection, 200, &json);
}

/* The one model siltd runs, under its own name and under "silt". */
enum MHD_Result models_get(struct gateway *gateway, struct MHD_Connection *connection,
                           struct request *request)
{
    struct client_error error;
    struct pooled *pooled = pool_take(gateway, false, &error);
    struct client_process_stat stat;
    json_t *json;
    int r = pooled ? client_process_stat(pooled->client, &stat, &error) : error.code;

    (void)request;
    pool_give(gateway, &pooled, r);
    if (r)
        return reply_client_error(gateway, connection, &error);
    json = json_pack("{s:s, s:[{s:s, s:s, s:i, s:s, s:s}]}", "object", "list", "data", "id", "silt",
                     "object", "model", "created", 0, "owned_by", "silt", "base", stat.model);
    client_process_stat_free(&stat);
    return reply_json(gateway, connection, 200, &json);
}

enum MHD_Result health_get(struct gateway *gateway, struct MHD_Connection *connection,
                           struct request *request)
{
    struct client_error error;
    struct pooled *pooled = pool_take(gateway, false, &error);
    struct client_process_stat stat;
    struct text text = {0};
    int r = pooled ? client_process_stat(pooled->client, &stat, &error) : error.code;

    (void)request;
    pool_give(gateway, &pooled, r);
    if (r)
        return reply_client_error(gateway, connection, &error);
    text_addf(&text, "%s\n", stat.degraded_count ? stat.degraded[0] : "ok");
    client_process_stat_free(&stat);
    return reply_text(gateway, connection, 200, "text/plain", &text);
}
