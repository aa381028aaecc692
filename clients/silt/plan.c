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

static int show_stream(const struct client_stream_stat *stat, bool json)
{
    return print(stat->tiers, stat->tier_count, stat->bytes_plan, stat->bytes_used, json);
}

static int show_process(const struct client_process_stat *stat, bool json)
{
    return print(stat->tiers, stat->tier_count, stat->bytes_plan, stat->bytes_used, json);
}

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct stat_views views = {show_stream, show_process};

    return silt_stat(silt, &command_plan, argc, argv, &views);
}

const struct command command_plan = {
    .name = "plan",
    .summary = "what siltd or a stream may take, in bytes",
    .help = help,
    .run = run,
};
