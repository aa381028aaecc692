/* request: what a client asks of siltd in one message and gets in one reply: open, remove, stat,
 * list, fork. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "clients/link.h"

enum { LIST_PAGES_MAX = 1 << 20 };

static int run(struct client *client, wire_request *request, bool change,
               int (*reply)(struct pending *, const wire_reply *), void *user,
               struct client_error *error)
{
    struct pending pending = {
        .reply = reply,
        .user = user,
        .error = error,
        .again = true,
        .change = change,
        .timeout_ms = client->options.timeout_ms,
    };

    return client_request(client, request, &pending);
}

int client_run(struct client *client, wire_request *request,
               int (*reply)(struct pending *, const wire_reply *), void *user,
               struct client_error *error)
{
    return run(client, request, false, reply, user, error);
}

int client_change(struct client *client, wire_request *request,
                  int (*reply)(struct pending *, const wire_reply *), void *user,
                  struct client_error *error)
{
    if (getrandom(&request->change, sizeof request->change, 0) != sizeof request->change)
        return client_fail(error, -EIO, "the system gives no random number");
    return run(client, request, true, reply, user, error);
}

int client_odd(struct client_error *error)
{
    return client_fail(error, -EPROTO,
                       "siltd's reply does not fit the question: its version is another's");
}

static int opened_reply(struct pending *pending, const wire_reply *reply)
{
    struct client_opened *out = pending->user;
    const Silt__V1__Opened *opened = reply->opened;

    if (reply->body_case != SILT__V1__REPLY__BODY_OPENED)
        return client_odd(pending->error);
    if (out)
        *out = (struct client_opened){
            .created = opened->created,
            .compression_off = opened->compression_off,
            .dmc_ratio = opened->dmc_ratio,
            .ring_segments = opened->ring_segments,
            .bytes_plan = opened->bytes_plan,
        };
    return 0;
}

int client_stream_open(struct client *client, const char *stream,
                       const struct client_open_options *options, struct client_opened *out,
                       struct client_error *error)
{
    Silt__V1__Open open = SILT__V1__OPEN__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;
    int r = client_name_check(stream, error);

    if (r)
        return r;
    open.stream = (char *)stream;
    if (options) {
        open.dmc_ratio = options->dmc_ratio;
        open.ring_segments = options->ring_segments;
        open.dmc_auto = options->dmc_auto;
    }
    request.body_case = SILT__V1__REQUEST__BODY_OPEN;
    request.open = &open;
    return client_change(client, &request, opened_reply, out, error);
}

static int forked_reply(struct pending *pending, const wire_reply *reply)
{
    uint64_t *tokens = pending->user;

    if (reply->body_case != SILT__V1__REPLY__BODY_FORKED)
        return client_odd(pending->error);
    if (tokens)
        *tokens = reply->forked->tokens;
    return 0;
}

int client_stream_fork(struct client *client, const char *stream, const char *branch,
                       uint64_t *tokens, struct client_error *error)
{
    Silt__V1__Fork fork = SILT__V1__FORK__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;
    int r = client_name_check(stream, error);

    if (!r)
        r = client_name_check(branch, error);
    if (r)
        return r;
    fork.stream = (char *)stream;
    fork.branch = (char *)branch;
    request.body_case = SILT__V1__REQUEST__BODY_FORK;
    request.fork = &fork;
    return client_change(client, &request, forked_reply, tokens, error);
}

static int removed_reply(struct pending *pending, const wire_reply *reply)
{
    if (reply->body_case != SILT__V1__REPLY__BODY_REMOVED)
        return client_odd(pending->error);
    return 0;
}

int client_stream_remove(struct client *client, const char *stream, struct client_error *error)
{
    Silt__V1__Remove remove = SILT__V1__REMOVE__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;
    int r = client_name_check(stream, error);

    if (r)
        return r;
    remove.stream = (char *)stream;
    request.body_case = SILT__V1__REQUEST__BODY_REMOVE;
    request.remove = &remove;
    return client_change(client, &request, removed_reply, NULL, error);
}

static int forgotten_reply(struct pending *pending, const wire_reply *reply)
{
    struct client_forgotten *out = pending->user;

    if (reply->body_case != SILT__V1__REPLY__BODY_FORGOTTEN)
        return client_odd(pending->error);
    *out = (struct client_forgotten){
        .from = reply->forgotten->from,
        .to = reply->forgotten->to,
        .tokens = reply->forgotten->tokens,
    };
    return 0;
}

int client_stream_forget(struct client *client, const char *stream, uint64_t from, uint64_t to,
                         struct client_forgotten *out, struct client_error *error)
{
    Silt__V1__Forget forget = SILT__V1__FORGET__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;
    int r = client_name_check(stream, error);

    if (r)
        return r;
    forget.stream = (char *)stream;
    forget.from = from;
    forget.to = to;
    request.body_case = SILT__V1__REQUEST__BODY_FORGET;
    request.forget = &forget;
    return client_change(client, &request, forgotten_reply, out, error);
}

/* ---- stat ---- */

static struct client_tier *tiers_copy(Silt__V1__Tier *const *tiers, size_t count)
{
    struct client_tier *out = calloc(count + 1, sizeof *out);

    for (size_t i = 0; out && i < count; i++) {
        size_t bytes = strnlen(tiers[i]->name, sizeof out[i].name - 1);

        memcpy(out[i].name, tiers[i]->name, bytes);
        out[i].bytes_plan = tiers[i]->bytes_plan;
        out[i].bytes_used = tiers[i]->bytes_used;
        out[i].on_device = tiers[i]->on_device;
    }
    return out;
}

static void texts_free(char **texts, size_t count)
{
    for (size_t i = 0; texts && i < count; i++)
        free(texts[i]);
    free(texts);
}

static char **texts_copy(char *const *texts, size_t count)
{
    char **out = calloc(count + 1, sizeof *out);

    for (size_t i = 0; out && i < count; i++) {
        out[i] = strdup(texts[i]);
        if (!out[i]) {
            texts_free(out, count);
            return NULL;
        }
    }
    return out;
}

void client_stat_free(struct client_stream_stat *stat)
{
    free(stat->tiers);
    free(stat->head_ratio);
    texts_free(stat->degraded, stat->degraded_count);
    *stat = (struct client_stream_stat){0};
}

static void stream_stat_numbers(struct client_stream_stat *out, const Silt__V1__StreamStat *stat)
{
    *out = (struct client_stream_stat){
        .tokens_acked = stat->tokens_acked,
        .tokens_computed = stat->tokens_computed,
        .lag_tokens = stat->lag_tokens,
        .chunks = stat->chunks,
        .segments_ring = stat->segments_ring,
        .segments_cold = stat->segments_cold,
        .bytes_plan = stat->bytes_plan,
        .bytes_disk = stat->bytes_disk,
        .bytes_text = stat->bytes_text,
        .memory_hash = stat->memory_hash,
        .hash_chunk = stat->hash_chunk,
        .indexed_to = stat->indexed_to,
        .created_us = stat->created_us,
        .numerics_epoch = stat->numerics_epoch,
        .first_position = stat->first_position,
        .rebuilding_to = stat->rebuilding_to,
        .segments_merged = stat->segments_merged,
        .segments_dropped = stat->segments_dropped,
        .segments_repaired = stat->segments_repaired,
        .segments_approximate = stat->segments_approximate,
        .bytes_segments = stat->bytes_segments,
        .bytes_checkpoints = stat->bytes_checkpoints,
        .bytes_index = stat->bytes_index,
        .dmc_ratio = stat->dmc_ratio,
        .rows_mean = stat->rows_mean,
        .tokens_per_second = stat->tokens_per_second,
        .dmc_ratio_asked = stat->dmc_ratio_asked,
        .ring_segments = stat->ring_segments,
        .layers = stat->layers,
        .kv_heads = stat->kv_heads,
        .tier_count = stat->n_tiers,
        .head_ratio_count = stat->n_head_ratio,
        .degraded_count = stat->n_degraded,
    };
    out->parked = stat->parked;
    out->stopped = stat->stopped;
    out->hash_known = stat->hash_chunk || !stat->chunks;
    out->recall_hits = stat->recall_hits;
    out->recalled_us = stat->recalled_us;
    for (size_t i = 0; i < stat->n_recalled && i < CLIENT_RECALLED_MAX; i++)
        out->recalled[out->recalled_count++] = stat->recalled[i];
    out->pin_tokens = stat->pin_tokens;
    out->pins.tokens_max = stat->pin_tokens_max;
    for (size_t i = 0; i < stat->n_pins && i < CLIENT_PINS_MAX; i++)
        out->pins.pin[out->pins.count++] =
            (struct client_pin){stat->pins[i]->from, stat->pins[i]->to, stat->pins[i]->held};
    if (stat->loss)
        out->loss = (struct client_loss){
            .chunks = stat->loss->chunks,
            .with_memory = stat->loss->with_memory,
            .with_window = stat->loss->with_window,
            .difference = stat->loss->difference,
            .low = stat->loss->low,
            .high = stat->loss->high,
            .flagged = stat->loss->flagged,
        };
    for (size_t i = 0; i < stat->n_tiers; i++)
        out->bytes_used += stat->tiers[i]->bytes_used;
}

static int stream_stat_copy(struct client_stream_stat *out, const Silt__V1__StreamStat *stat)
{
    stream_stat_numbers(out, stat);
    memcpy(out->stream, stat->stream, strnlen(stat->stream, sizeof out->stream - 1));
    out->tiers = tiers_copy(stat->tiers, stat->n_tiers);
    out->degraded = texts_copy(stat->degraded, stat->n_degraded);
    out->head_ratio = calloc(stat->n_head_ratio + 1, sizeof *out->head_ratio);
    if (!out->tiers || !out->degraded || !out->head_ratio) {
        client_stat_free(out);
        return -ENOMEM;
    }
    if (stat->n_head_ratio)
        memcpy(out->head_ratio, stat->head_ratio, stat->n_head_ratio * sizeof *out->head_ratio);
    return 0;
}

static int stream_stat_reply(struct pending *pending, const wire_reply *reply)
{
    if (reply->body_case != SILT__V1__REPLY__BODY_STAT || !reply->stat->stream)
        return client_odd(pending->error);
    return stream_stat_copy(pending->user, reply->stat->stream);
}

int client_stat(struct client *client, const char *stream, struct client_stream_stat *out,
                struct client_error *error)
{
    Silt__V1__Stat stat = SILT__V1__STAT__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;
    int r = client_name_check(stream, error);

    *out = (struct client_stream_stat){0};
    if (r)
        return r;
    stat.stream = (char *)stream;
    request.body_case = SILT__V1__REQUEST__BODY_STAT;
    request.stat = &stat;
    return client_run(client, &request, stream_stat_reply, out, error);
}

void client_process_stat_free(struct client_process_stat *stat)
{
    free(stat->tiers);
    texts_free(stat->degraded, stat->degraded_count);
    free(stat->model);
    free(stat->adapter);
    free(stat->kernels);
    free(stat->device);
    free(stat->version);
    *stat = (struct client_process_stat){0};
}

static int process_stat_reply(struct pending *pending, const wire_reply *reply)
{
    struct client_process_stat *out = pending->user;
    const Silt__V1__ProcessStat *stat =
        reply->body_case == SILT__V1__REPLY__BODY_STAT ? reply->stat->process : NULL;

    if (!stat)
        return client_odd(pending->error);
    *out = (struct client_process_stat){
        .bytes_plan = stat->bytes_plan,
        .bytes_used = stat->bytes_used,
        .bytes_disk = stat->bytes_disk,
        .bytes_resident = stat->bytes_resident,
        .uptime_us = stat->uptime_us,
        .tokens_computed = stat->tokens_computed,
        .compute_us = stat->compute_us,
        .meter_us = stat->meter_us,
        .read_us = stat->read_us,
        .passes = stat->passes,
        .wait_us = stat->wait_us,
        .leave_us = stat->leave_us,
        .disk_us = stat->disk_us,
        .save_us = stat->save_us,
        .loss_flag = stat->loss_flag,
        .streams = stat->streams,
        .streams_max = stat->streams_max,
        .forks = stat->forks,
        .forks_max = stat->forks_max,
        .threads = stat->threads,
        .tier_count = stat->n_tiers,
        .degraded_count = stat->n_degraded,
        .tiers = tiers_copy(stat->tiers, stat->n_tiers),
        .degraded = texts_copy(stat->degraded, stat->n_degraded),
        .model = strdup(stat->model),
        .adapter = strdup(stat->adapter),
        .kernels = strdup(stat->kernels),
        .device = strdup(stat->device),
        .version = strdup(stat->version),
    };
    if (out->tiers && out->degraded && out->model && out->adapter && out->kernels && out->device &&
        out->version)
        return 0;
    client_process_stat_free(out);
    return -ENOMEM;
}

int client_process_stat(struct client *client, struct client_process_stat *out,
                        struct client_error *error)
{
    Silt__V1__Stat stat = SILT__V1__STAT__INIT;
    wire_request request = SILT__V1__REQUEST__INIT;

    *out = (struct client_process_stat){0};
    request.body_case = SILT__V1__REQUEST__BODY_STAT;
    request.stat = &stat;
    return client_run(client, &request, process_stat_reply, out, error);
}

/* ---- list ---- */

struct list {
    client_list_fn *each;
    void *user;
    int stopped; /* what `each` returned */
    bool more;
    char after[WIRE_NAME_BYTES_MAX + 1];
};

static int list_reply(struct pending *pending, const wire_reply *reply)
{
    struct list *list = pending->user;

    if (reply->body_case != SILT__V1__REPLY__BODY_LIST)
        return client_odd(pending->error);
    list->more = reply->list->more && reply->list->n_streams;
    for (size_t i = 0; i < reply->list->n_streams && !list->stopped; i++) {
        struct client_stream_stat stat;
        int r = stream_stat_copy(&stat, reply->list->streams[i]);

        if (r)
            return r;
        list->stopped = list->each(list->user, &stat);
        snprintf(list->after, sizeof list->after, "%.*s", WIRE_NAME_BYTES_MAX, stat.stream);
        client_stat_free(&stat);
    }
    return 0;
}

int client_list(struct client *client, client_list_fn *each, void *user, struct client_error *error)
{
    struct list list = {.each = each, .user = user, .more = true};

    for (int page = 0; page < LIST_PAGES_MAX && list.more && !list.stopped; page++) {
        Silt__V1__List names = SILT__V1__LIST__INIT;
        wire_request request = SILT__V1__REQUEST__INIT;
        int r;

        names.after = list.after;
        request.body_case = SILT__V1__REQUEST__BODY_LIST;
        request.list = &names;
        r = client_run(client, &request, list_reply, &list, error);
        if (r)
            return r;
    }
    return list.stopped;
}
