/* plan: what siltd, or one stream, takes at most, by what it is for. */
#include "clients/silt/silt.h"

static const char help[] =
    "silt plan [STREAM] [--json]\n"
    "\n"
    "Shows what siltd planned before it took any memory: the bytes of each part, whose sum it\n"
    "never exceeds, beside what is in use. With STREAM: the same of one stream, by tier, for any\n"
    "length of its text. siltd --memory and the limits in siltd --help change it.\n"
    "\n"
    "  silt plan                 the whole daemon\n"
    "  silt plan log             one stream\n"
    "  silt plan --json | jq .bytes_plan\n"
    "\n"
    "  --json   the plan as one JSON object; sizes are bytes\n";

static int print(const struct client_tier *tiers, size_t count, uint64_t plan, uint64_t used,
                 bool as_json)
{
    json_t *by_tier;

    if (!as_json) {
        text_tiers(tiers, count, plan, used);
        return EXIT_DONE;
    }
    by_tier = json_object();
    for (size_t i = 0; i < count; i++)
        json_object_set_new(by_tier, tiers[i].name, json_integer((json_int_t)tiers[i].bytes_plan));
    return text_json_print(
        json_pack("{s:I, s:o}", "bytes_plan", (json_int_t)plan, "bytes_plan_by_tier", by_tier));
}

static int plan_stream(struct silt *silt, const char *stream, bool as_json)
{
    struct client_stream_stat stat;
    int r;

    if (client_stat(silt->client, stream, &stat, &silt->error))
        return silt_fail(silt);
    r = print(stat.tiers, stat.tier_count, stat.bytes_plan, stat.bytes_used, as_json);
    client_stat_free(&stat);
    return r;
}

static int plan_process(struct silt *silt, bool as_json)
{
    struct client_process_stat stat;
    int r;

    if (client_process_stat(silt->client, &stat, &silt->error))
        return silt_fail(silt);
    r = print(stat.tiers, stat.tier_count, stat.bytes_plan, stat.bytes_used, as_json);
    client_process_stat_free(&stat);
    return r;
}

static int run(struct silt *silt, int argc, char **argv)
{
    bool as_json = false;
    int r = silt_options_json(silt, &command_plan, argc, argv, &as_json);

    if (r >= 0)
        return r;
    if (argc - optind > 1)
        return silt_usage(silt, "name one stream, or none for the daemon");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    return optind < argc ? plan_stream(silt, argv[optind], as_json) : plan_process(silt, as_json);
}

const struct command command_plan = {
    .name = "plan",
    .summary = "what siltd or a stream may take, in bytes",
    .help = help,
    .run = run,
};
