/* fork: a branch of a stream, which shares what both have so far. */
#include <inttypes.h>
#include <stdlib.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt fork STREAM NEW\n"
    "\n"
    "Makes NEW, a stream that has read all that STREAM has read so far. Both share it on disk, "
    "and\n"
    "from there on each goes its own way: what is fed to one, or forgotten, is not seen by the\n"
    "other, and either may be removed.\n"
    "\n"
    "  silt fork chat what-if                     then: silt feed what-if --turn user\n"
    "  silt fork log monday && silt ask monday \"What failed?\"\n"
    "\n"
    "NEW knows the producers of STREAM: a file fed to it goes on after its last acked byte. Text\n"
    "counts as acked, computed or not. To ask the past of a stream, see silt ask --at.\n"
    "\n"
    "  --json   one JSON object: stream, branch, tokens in common\n";

static int run(struct silt *silt, int argc, char **argv)
{
    char count[TEXT_BYTES];
    uint64_t tokens;
    bool json = false;
    int r = silt_options_json(silt, &command_fork, argc, argv, &json);

    if (r >= 0)
        return r;
    if (argc - optind != 2)
        return silt_usage(silt, "name a stream and its branch");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    r = client_stream_fork(silt->client, argv[optind], argv[optind + 1], &tokens, &silt->error);
    if (r)
        return silt_fail(silt);
    if (json)
        return text_json_print(json_pack("{s:s, s:s, s:I}", "stream", argv[optind], "branch",
                                         argv[optind + 1], "tokens", (json_int_t)tokens));
    printf("%s: %s tokens in common with %s\n", argv[optind + 1], text_count(count, tokens),
           argv[optind]);
    return EXIT_DONE;
}

const struct command command_fork = {
    .name = "fork",
    .summary = "make a branch of a stream",
    .help = help,
    .run = run,
};
