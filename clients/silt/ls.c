/* ls: the streams, a line each. */
#include "clients/silt/silt.h"

static const char help[] =
    "silt ls [--json] [--quiet]\n"
    "\n"
    "Lists the streams, a line each: what was read, how far behind, memory in use of its plan,\n"
    "disk. One that is parked is on the disk alone until it is fed or asked.\n"
    "\n"
    "  silt ls\n"
    "  silt ls -q | xargs silt rm        names alone, for other programs\n"
    "\n"
    "  -q, --quiet   names alone\n"
    "  --json        one JSON object a line, as `silt stat STREAM --json`\n";

struct listing {
    bool quiet, json;
    unsigned count;
};

static int list_one(void *user, const struct client_stream_stat *stat)
{
    struct listing *listing = user;
    char acked[TEXT_BYTES], lag[TEXT_BYTES], used[TEXT_BYTES], plan[TEXT_BYTES], disk[TEXT_BYTES];
    char ratio[TEXT_BYTES] = "-";

    if (silt_stop)
        return EXIT_STOPPED;
    if (listing->json)
        return text_json_print(stat_json(stat));
    if (listing->quiet)
        return puts(stat->stream) == EOF;
    if (!listing->count++)
        printf("%-24s %14s %10s %6s %10s %10s %10s\n", "stream", "tokens", "lag", "ratio", "memory",
               "plan", "disk");
    if (stat->dmc_ratio > 0)
        snprintf(ratio, sizeof ratio, "%.1fx", stat->dmc_ratio);
    printf("%-24s %14s %10s %6s %10s %10s %10s%s%s\n", stat->stream,
           text_count(acked, stat->tokens_acked), text_count(lag, stat->lag_tokens), ratio,
           text_bytes(used, stat->bytes_used), text_bytes(plan, stat->bytes_plan),
           text_bytes(disk, stat->bytes_disk), stat->parked ? "  parked" : "",
           stat->degraded_count ? "  degraded" : "");
    return 0;
}

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {
        {"json", no_argument, NULL, 'j'}, {"quiet", no_argument, NULL, 'q'}, SILT_OPTIONS};
    struct listing listing = {0};
    int option, r;

    while ((option = getopt_long(argc, argv, "c:hq", longs, NULL)) != -1) {
        if (option == 'j') {
            listing.json = true;
        } else if (option == 'q') {
            listing.quiet = true;
        } else {
            r = silt_option(silt, &command_ls, option);
            if (r >= 0)
                return r;
        }
    }
    if (optind != argc)
        return silt_usage(silt, "ls takes no names; silt stat STREAM tells of one");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    r = client_list(silt->client, list_one, &listing, &silt->error);
    if (r < 0)
        return silt_fail(silt);
    return r;
}

const struct command command_ls = {
    .name = "ls",
    .summary = "list the streams",
    .help = help,
    .run = run,
};
