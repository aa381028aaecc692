/* open: creates a stream with options of its own, or says what it was created with. */
#include <stdlib.h>
#include <string.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt open STREAM [--dmc 1|2|4|8|auto] [--ring N] [--json]\n"
    "\n"
    "Creates a stream, or says what it was created with: ratio and ring stay for its life.\n"
    "`silt feed` opens with the defaults by itself.\n"
    "\n"
    "  silt open log                 the defaults: 4x\n"
    "  silt open talk --dmc 8        less memory in the window, more loss\n"
    "  silt open log --dmc auto      the lowest ratio that fits the memory left\n"
    "\n"
    "  --dmc RATIO   how far KV entries are merged inside a chunk\n"
    "  --ring N      newest chunks kept as segments of their own (the adapter says how many)\n"
    "  --json        print what was opened as JSON\n";

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {{"dmc", required_argument, NULL, 'd'},
                                          {"ring", required_argument, NULL, 'r'},
                                          {"json", no_argument, NULL, 'j'},
                                          SILT_OPTIONS};
    struct client_open_options options = {0};
    struct client_opened opened;
    char plan[TEXT_BYTES];
    bool json = false;
    uint64_t number;
    int option, r;

    while ((option = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
        r = -1;
        if (option == 'd' && !strcmp(optarg, "auto")) {
            options.dmc_auto = true;
        } else if (option == 'd') {
            r = silt_number(silt, "--dmc", optarg, 1, 8, &number);
            options.dmc_ratio = (uint32_t)number;
        } else if (option == 'r') {
            r = silt_number(silt, "--ring", optarg, 1, 256, &number);
            options.ring_segments = (uint32_t)number;
        } else if (option == 'j') {
            json = true;
        } else {
            r = silt_option(silt, &command_open, option);
            if (r >= 0)
                return r;
        }
        if (r > 0)
            return r;
    }
    if (argc - optind != 1)
        return silt_usage(silt, "name one stream");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    r = client_stream_open(silt->client, argv[optind], &options, &opened, &silt->error);
    if (r)
        return silt_fail(silt);
    if (json)
        return text_json_print(
            json_pack("{s:s, s:b, s:I, s:I, s:I, s:b}", "stream", argv[optind], "created",
                      opened.created, "dmc_ratio_asked", (json_int_t)opened.dmc_ratio,
                      "ring_segments", (json_int_t)opened.ring_segments, "bytes_plan",
                      (json_int_t)opened.bytes_plan, "compression_off", opened.compression_off));
    printf("%s: %s, %ux, ring of %u segments, plan %s\n", argv[optind],
           opened.created ? "created" : "exists", opened.dmc_ratio, opened.ring_segments,
           text_bytes(plan, opened.bytes_plan));
    if (opened.compression_off)
        silt_say("siltd has no adapter for its model: compression is off, the stream keeps a "
                 "sliding window only");
    return EXIT_DONE;
}

const struct command command_open = {
    .name = "open",
    .summary = "create a stream with options of its own",
    .help = help,
    .run = run,
};
