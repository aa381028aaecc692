/* forget: takes a range out of a stream, for good. */
#include <errno.h>
#include <inttypes.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt forget STREAM --from A --to B\n"
    "\n"
    "Removes tokens A to B (half-open) of a stream for good: their text, and what siltd made of\n"
    "them in segments, checkpoints and the text index, are gone from its disk when this returns.\n"
    "Later tokens move down by as many. The stream then goes on from the last checkpoint before\n"
    "A and reads the rest again; what is asked meanwhile is answered from as far as it has got,\n"
    "and says so. Positions are those that the sources of an answer name. Branches of the\n"
    "stream (silt fork) keep what they have of it. Pinned ranges that have some of it are let\n"
    "go, and all of them where some of the stream's first tokens go, as each has these with it.\n"
    "\n"
    "  silt ask log \"Which password was typed?\" --json | jq '.sources[] | [.from, .to]'\n"
    "  silt forget log --from 5120 --to 5376\n"
    "  silt stat log                          says how far reading again has got\n"
    "\n"
    "  --from A, --to B   both must be given\n";

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {
        {"from", required_argument, NULL, 'f'}, {"to", required_argument, NULL, 't'}, SILT_OPTIONS};
    uint64_t from = UINT64_MAX, to = UINT64_MAX;
    struct client_forgotten done;
    char a[TEXT_BYTES], b[TEXT_BYTES];
    int option, r;

    while ((option = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
        if (option == 'f')
            r = silt_number(silt, "--from", optarg, 0, INT64_MAX, &from);
        else if (option == 't')
            r = silt_number(silt, "--to", optarg, 0, INT64_MAX, &to);
        else if ((r = silt_option(silt, &command_forget, option)) < 0)
            r = 0;
        else
            return r;
        if (r)
            return r;
    }
    if (argc - optind != 1)
        return silt_usage(silt, "name one stream");
    if (from == UINT64_MAX || to == UINT64_MAX)
        return silt_usage(silt, "--from and --to say what goes");
    if (from >= to)
        return silt_usage(silt, "--from must be less than --to");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    r = client_stream_forget(silt->client, argv[optind], from, to, &done, &silt->error);
    if (r)
        return silt_fail(silt);
    printf("%s tokens are gone; stream %s has %s\n", text_count(a, done.to - done.from),
           argv[optind], text_count(b, done.tokens));
    return EXIT_DONE;
}

const struct command command_forget = {
    .name = "forget",
    .summary = "take a range out of a stream, for good",
    .help = help,
    .run = run,
};
