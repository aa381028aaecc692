/* rm: removes streams with all that they hold. */
#include <errno.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt rm STREAM… [--force]\n"
    "\n"
    "Removes streams: memory, text and segments on disk. There is no way back.\n"
    "\n"
    "  silt rm log              one\n"
    "  silt rm -f old-1 old-2   several, and it is fine when they are not there\n"
    "\n"
    "  -f, --force   a stream that does not exist is no error\n";

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {{"force", no_argument, NULL, 'f'}, SILT_OPTIONS};
    bool force = false;
    int option, r, result = EXIT_DONE;

    while ((option = getopt_long(argc, argv, "c:hf", longs, NULL)) != -1) {
        if (option == 'f') {
            force = true;
            continue;
        }
        r = silt_option(silt, &command_rm, option);
        if (r >= 0)
            return r;
    }
    if (optind == argc)
        return silt_usage(silt, "name a stream");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    for (int i = optind; i < argc; i++) {
        r = client_stream_remove(silt->client, argv[i], &silt->error);
        if (r && !(force && r == -ENOENT))
            result = silt_fail(silt);
        if (result == EXIT_AWAY || result == EXIT_STOPPED)
            break;
    }
    return result;
}

const struct command command_rm = {
    .name = "rm",
    .summary = "remove streams with all that they hold",
    .help = help,
    .run = run,
};
