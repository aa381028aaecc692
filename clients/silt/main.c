/* main: options of every command, help, errors, exit codes. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/silt/silt.h"
#include "proto/endpoint.h"

enum { FULL_SAY_US = 60000000, WAIT_SAY_US = 1000000, BUSY_MS = 5000 };

atomic_bool silt_stop;

static const struct command *const commands[] = {
    &command_feed, &command_ask, &command_stat, &command_plan,   &command_ls,
    &command_open, &command_rm,  &command_fork, &command_forget, &command_gateway,
    &command_top,  &command_key, &command_pin,  &command_unpin,  &command_pins,
};
enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static const char help_head[] =
    "silt feeds endless text to siltd, which keeps each stream in a fixed memory and answers\n"
    "questions from it.\n"
    "\n"
    "  silt feed log /var/log/syslog                 read a file into the stream \"log\"\n"
    "  silt ask log \"What failed this night?\"        ask what was read\n"
    "  journalctl -f | silt feed journal             or whatever comes down a pipe\n"
    "  silt feed app --follow /var/log/app.log       or a file that grows and rotates\n"
    "  silt stat log                                 what it holds, in bytes\n"
    "\n"
    "Commands (silt COMMAND --help tells more):\n";
static const char help_tail[] =
    "\n"
    "Options of every command:\n"
    "  -c, --endpoint ENDPOINT   where siltd listens: ipc:///PATH or tcp://HOST:PORT. Else\n"
    "                            SILT_ENDPOINT, else ipc://$XDG_RUNTIME_DIR/silt.sock, else\n"
    "                            ipc:///tmp/silt-UID/silt.sock\n"
    "      --server-key KEY      siltd's public key, for tcp:// (SILT_SERVER_KEY)\n"
    "      --client-key FILE     this client's key, for tcp:// (SILT_CLIENT_KEY, else\n"
    "                            ~/.config/silt/client.key); silt key --help\n"
    "  -h, --help\n"
    "\n"
    "Exit codes: 0 done, 1 refused (the sentence says why), 2 wrong command line, 3 no siltd\n"
    "answers there, 4 busy: try again, 130 stopped by Ctrl-C.\n";

int64_t silt_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void help_all(FILE *out)
{
    fputs(help_head, out);
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-7s %s\n", commands[i]->name, commands[i]->summary);
    fputs(help_tail, out);
}

void silt_say(const char *format, ...)
{
    va_list list;

    progress_hide();
    va_start(list, format);
    fputs("silt: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
}

int silt_usage(const struct silt *silt, const char *format, ...)
{
    va_list list;

    va_start(list, format);
    fprintf(stderr, "silt %s: ", silt->command);
    vfprintf(stderr, format, list);
    fprintf(stderr, ". Try: silt %s --help\n", silt->command);
    va_end(list);
    return EXIT_USAGE;
}

int silt_option(struct silt *silt, const struct command *command, int option)
{
    switch (option) {
    case 'c':
        silt->endpoint = optarg;
        return -1;
    case OPTION_SERVER_KEY:
        silt->server_key = optarg;
        return -1;
    case OPTION_CLIENT_KEY:
        silt->client_key = optarg;
        return -1;
    case 'h':
        fputs(command->help, stdout);
        return EXIT_DONE;
    default:
        fprintf(stderr, "Try: silt %s --help\n", command->name);
        return EXIT_USAGE;
    }
}

int silt_options_json(struct silt *silt, const struct command *command, int argc, char **argv,
                      bool *as_json)
{
    static const struct option longs[] = {{"json", no_argument, NULL, 'j'}, SILT_OPTIONS};
    int option, r = -1;

    while (r < 0 && (option = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
        if (option == 'j')
            *as_json = true;
        else
            r = silt_option(silt, command, option);
    }
    return r;
}

int silt_number(const struct silt *silt, const char *option, const char *text, uint64_t least,
                uint64_t most, uint64_t *out)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || *end || end == text || text[0] == '-' || value < least || value > most)
        return silt_usage(silt,
                          "%s takes a whole number from %" PRIu64 " to %" PRIu64 ", not \"%s\"",
                          option, least, most, text);
    *out = value;
    return 0;
}

int silt_real(const struct silt *silt, const char *option, const char *text, double least,
              double most, float *out)
{
    char *end;
    double value = strtod(text, &end);

    if (*end || end == text || !isfinite(value) || value < least || value > most)
        return silt_usage(silt, "%s takes a number from %g to %g, not \"%s\"", option, least, most,
                          text);
    *out = (float)value;
    return 0;
}

static void on_link(void *user, bool up)
{
    const struct silt *silt = user;

    if (up)
        silt_say("siltd at %s is back", client_endpoint(silt->client));
    else
        silt_say("siltd at %s went away: trying again", client_endpoint(silt->client));
}

/* A feed without end outlasts a full disk. */
static void on_full(void *user, const struct client_error *why)
{
    struct silt *silt = user;
    int64_t now = silt_now_us();

    if (silt->full_us && now - silt->full_us < FULL_SAY_US)
        return;
    silt->full_us = now;
    silt_say("waiting: %s", why->text);
}

/* Whoever looks at a terminal hears why nothing comes yet. */
static void note_waiting(struct silt *silt)
{
    bool connected = client_connected(silt->client);

    if (!silt->asked_us)
        silt->asked_us = silt_now_us();
    if (!connected && !silt->reached && silt_now_us() - silt->asked_us > WAIT_SAY_US)
        progress_note("silt: waiting for siltd at %s", client_endpoint(silt->client));
    if (connected && !silt->reached)
        progress_hide();
    silt->reached |= connected;
}

static void on_turn(void *user)
{
    struct silt *silt = user;

    note_waiting(silt);
    if (silt->turn)
        silt->turn(silt->turn_user);
}

int silt_connect(struct silt *silt, int reconnect_ms)
{
    struct client_options options = {
        .endpoint = silt->endpoint,
        .server_key = silt->server_key,
        .client_key = silt->client_key,
        .reconnect_ms = reconnect_ms,
        .busy_ms = reconnect_ms ? 0 : BUSY_MS, /* who feeds has others to see to meanwhile */
        .interrupted = &silt_stop,
        .on_link = reconnect_ms ? on_link : NULL, /* others do not go on */
        .on_full = reconnect_ms == CLIENT_WAIT_FOREVER ? on_full : NULL,
        .on_turn = on_turn,
        .user = silt,
    };

    return client_open(&silt->client, &options, &silt->error) ? silt_fail(silt) : 0;
}

int silt_fail(const struct silt *silt)
{
    switch (silt->error.code) {
    case -EINTR:
        return EXIT_STOPPED;
    case -ECONNREFUSED:
    case -ETIMEDOUT:
    case -ECONNRESET:
        silt_say("%s", silt->error.text);
        return EXIT_AWAY;
    case -EBUSY:
        if (silt->error.retry_us)
            silt_say("%s (try again in %.1f s)", silt->error.text,
                     (double)silt->error.retry_us / 1e6);
        else
            silt_say("%s", silt->error.text);
        return EXIT_BUSY;
    default:
        silt_say("%s", silt->error.text);
        return EXIT_REFUSED;
    }
}

static void on_signal(int signal_number)
{
    (void)signal_number;
    silt_stop = true;
}

static const struct command *command_find(const char *name)
{
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(commands[i]->name, name))
            return commands[i];
    return NULL;
}

static int options_first(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {{"version", no_argument, NULL, 'V'}, SILT_OPTIONS};

    for (;;) {
        int option = getopt_long(argc, argv, "+c:hV", longs, NULL);

        switch (option) {
        case -1:
            return -1;
        case 'c':
            silt->endpoint = optarg;
            break;
        case OPTION_SERVER_KEY:
            silt->server_key = optarg;
            break;
        case OPTION_CLIENT_KEY:
            silt->client_key = optarg;
            break;
        case 'h':
            help_all(stdout);
            return EXIT_DONE;
        case 'V':
            puts("silt " SILT_VERSION);
            return EXIT_DONE;
        default:
            fputs("Try: silt --help\n", stderr);
            return EXIT_USAGE;
        }
    }
}

/* Whether all that was printed could be written. Where the reader of a pipe has gone, as `head`
 * does, we end as other programs do. */
static int output_end(int result)
{
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    int r = fflush(stdout) ? errno : 0;

    if (!r && !ferror(stdout))
        return result;
    if (poll(&out, 1, 0) > 0 && out.revents & POLLERR) {
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    if (result != EXIT_DONE && result != EXIT_STOPPED)
        return result;
    silt_say("cannot write what was asked for: %s", strerror(r ? r : EIO));
    return EXIT_REFUSED;
}

/* One of the three that is closed would be libzmq's next, and be read or written in its place: it
 * gets what can be neither. */
static void reserve_standard(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct silt silt = {0};
    const struct command *command;
    char name[32], help[] = "--help";
    int r;

    reserve_standard();
    r = options_first(&silt, argc, argv);
    if (r >= 0)
        return r;
    if (optind == argc) {
        help_all(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[optind], "help")) { /* as some ask for it */
        if (optind + 1 == argc) {
            help_all(stdout);
            return EXIT_DONE;
        }
        argv[optind] = argv[optind + 1];
        argv[optind + 1] = help;
    }
    command = command_find(argv[optind]);
    if (!command) {
        silt_say("there is no command \"%s\". Try: silt --help", argv[optind]);
        return EXIT_USAGE;
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    silt.command = command->name;
    argc -= optind;
    argv += optind;
    snprintf(name, sizeof name, "silt %s", command->name);
    argv[0] = name; /* what getopt says is said by that */
    optind = 0;     /* a new scan, with another set of options */
    r = command->run(&silt, argc, argv);
    client_close(&silt.client);
    return silt_stop ? r : output_end(r);
}
