/* pin, unpin, pins: ranges of a stream that stay word by word in its memory. */
#include <inttypes.h>

#include "clients/silt/silt.h"

static const char pin_help[] =
    "silt pin STREAM --from A --to B [--json]\n"
    "\n"
    "Keeps tokens A to B (half-open) of a stream uncompressed in its memory, however far back "
    "they\n"
    "come to lie: rules, a system prompt. It takes room that siltd's plan has for it\n"
    "(--pin-tokens-max). Questions see the range once it has left the window; what the stream "
    "reads\n"
    "does so from the next chunk on. silt unpin lets it go.\n"
    "\n"
    "  silt pin chat --from 0 --to 90\n"
    "\n"
    "  --from A   first token\n"
    "  --to B     the one behind the last\n"
    "  --json     what is pinned afterwards, as JSON\n";
static const char unpin_help[] = "silt unpin STREAM --from A --to B [--json]\n"
                                 "\n"
                                 "Lets go of every pinned range that has some of tokens A to B. "
                                 "For questions at once, for what\n"
                                 "the stream reads from its next chunk on.\n"
                                 "\n"
                                 "  silt unpin chat --from 0 --to 90\n"
                                 "\n"
                                 "  --from A   first token\n"
                                 "  --to B     the one behind the last\n"
                                 "  --json     what is pinned afterwards, as JSON\n";
static const char pins_help[] = "silt pins STREAM [--json]\n"
                                "\n"
                                "Lists what is pinned of a stream, one range of tokens a line, "
                                "the end not in it, and\n"
                                "below how many tokens that is of those that may be "
                                "(siltd --pin-tokens-max).\n"
                                "\n"
                                "  silt pins chat\n"
                                "\n"
                                "  --json   as JSON\n";

static int print(const struct client_pins *pins, bool as_json)
{
    uint64_t tokens = 0;
    json_t *json = as_json ? json_object() : NULL, *list = as_json ? json_array() : NULL;

    for (size_t i = 0; i < pins->count; i++) {
        const struct client_pin *pin = &pins->pin[i];

        tokens += pin->to - pin->from;
        if (as_json)
            json_array_append_new(list, json_pack("{s:I, s:I, s:b}", "from", (json_int_t)pin->from,
                                                  "to", (json_int_t)pin->to, "held", pin->held));
        else
            printf("%" PRIu64 " to %" PRIu64 "%s\n", pin->from, pin->to,
                   pin->held ? "" : " (for questions; for the stream from its next chunk on)");
    }
    if (as_json) {
        json_object_set_new(json, "pins", list);
        json_object_set_new(json, "tokens", json_integer((json_int_t)tokens));
        json_object_set_new(json, "tokens_max", json_integer(pins->tokens_max));
        return text_json_print(json);
    }
    printf("%" PRIu64 " of %u tokens pinned\n", tokens, pins->tokens_max);
    return EXIT_DONE;
}

static int run(struct silt *silt, const struct command *command, int argc, char **argv)
{
    static const struct option longs[] = {{"from", required_argument, NULL, 'a'},
                                          {"to", required_argument, NULL, 'b'},
                                          {"json", no_argument, NULL, 'j'},
                                          SILT_OPTIONS};
    bool lists = command == &command_pins, json = false, given[2] = {false, false};
    struct client_pins pins;
    uint64_t from = 0, to = 0;
    int option, r;

    while ((option = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
        if (option == 'j') {
            json = true;
        } else if (!lists && (option == 'a' || option == 'b')) {
            r = silt_number(silt, option == 'a' ? "--from" : "--to", optarg, 0, INT64_MAX,
                            option == 'a' ? &from : &to);
            if (r)
                return r;
            given[option == 'b'] = true;
        } else {
            r = silt_option(silt, command, option);
            if (r >= 0)
                return r;
        }
    }
    if (argc - optind != 1)
        return silt_usage(silt, "name one stream");
    if (!lists && (!given[0] || !given[1] || from >= to))
        return silt_usage(
            silt, "give a range, --from A --to B with A before B (silt pins STREAM lists them)");
    r = silt_connect(silt, 0);
    if (r)
        return r;
    if (lists)
        r = client_pins(silt->client, argv[optind], &pins, &silt->error);
    else
        r = (command == &command_pin ? client_pin : client_unpin)(silt->client, argv[optind], from,
                                                                  to, &pins, &silt->error);
    return r ? silt_fail(silt) : print(&pins, json);
}

static int run_pin(struct silt *silt, int argc, char **argv)
{
    return run(silt, &command_pin, argc, argv);
}

static int run_unpin(struct silt *silt, int argc, char **argv)
{
    return run(silt, &command_unpin, argc, argv);
}

static int run_pins(struct silt *silt, int argc, char **argv)
{
    return run(silt, &command_pins, argc, argv);
}

const struct command command_pin = {
    .name = "pin",
    .summary = "keep a range of a stream uncompressed",
    .help = pin_help,
    .run = run_pin,
};
const struct command command_unpin = {
    .name = "unpin",
    .summary = "let a pinned range go",
    .help = unpin_help,
    .run = run_unpin,
};
const struct command command_pins = {
    .name = "pins",
    .summary = "what is pinned of a stream",
    .help = pins_help,
    .run = run_pins,
};
