/* silt-gateway: options, the folder of chains, start and end. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/gateway/gateway.h"

enum { EXIT_REFUSED = 1, EXIT_USAGE = 2 };

static const char help[] =
    "silt gateway [options]\n"
    "\n"
    "Serves siltd over HTTP on this machine: OpenAI's chat for agents, metrics for Prometheus, and "
    "a\n"
    "page that shows the streams and their memory and lets you ask.\n"
    "\n"
    "  silt gateway                                then open http://127.0.0.1:8177/\n"
    "  curl 127.0.0.1:8177/v1/chat/completions -H 'Content-Type: application/json' -d \\\n"
    "    '{\"user\": \"my-agent\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n"
    "\n"
    "A conversation is a stream, named by the field \"user\" or the header X-Silt-Stream. Only\n"
    "messages that the stream does not have go to siltd. A history that was edited, or asked "
    "again,\n"
    "goes on from its last common turn in a branch, the stream NAME.edit-N (8 at most, then the\n"
    "longest unused makes room). The header X-Silt-History: strict refuses it instead (409), "
    "append\n"
    "says that all messages sent are new, adopt that all but the last are in the stream already.\n"
    "\n"
    "  -l, --listen [ADDRESS:]PORT   (127.0.0.1:8177); [::1]:PORT for IPv6; port 0: any\n"
    "      --key-file FILE           ask for the key in this file: Authorization: Bearer KEY\n"
    "      --anyone                  listen for other machines without a key\n"
    "      --state DIR               where conversations are recorded\n"
    "                                ($XDG_STATE_HOME/silt/gateway or "
    "~/.local/state/silt/gateway)\n"
    "      --connections N           at once (64)\n"
    "      --siltd-connections N     of them at siltd (16): the others wait a little. Each takes "
    "one of\n"
    "                                siltd's --clients-max (32) places from other clients\n"
    "      --body BYTES              of one request at most (4194304)\n"
    "      --answer-seconds N        of one answer at most (600)\n"
    "  -c, --endpoint ENDPOINT       where siltd listens (SILT_ENDPOINT, else its default)\n"
    "      --server-key KEY, --client-key FILE   for an endpoint of tcp:// (SILT_SERVER_KEY,\n"
    "                                SILT_CLIENT_KEY); the key must be allowed --all streams\n"
    "  -h, --help\n"
    "\n"
    "Paths: /v1/chat/completions /v1/models /metrics /healthz /api/status /api/streams/NAME /\n";

static int refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int refuse(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    fputs("silt gateway: ", stderr);
    vfprintf(stderr, format, list);
    fputs(". Try: silt gateway --help\n", stderr);
    va_end(list);
    return EXIT_USAGE;
}

static int number(const char *option, const char *text, uint64_t least, uint64_t most,
                  uint64_t *out)
{
    char *end;

    errno = 0;
    *out = strtoull(text, &end, 10);
    if (errno || *end || end == text || text[0] == '-' || *out < least || *out > most)
        return refuse("%s takes a whole number from %llu to %llu, not \"%s\"", option,
                      (unsigned long long)least, (unsigned long long)most, text);
    return 0;
}

/* Only numeric addresses: what a name stands for may change behind one's back. */
static int listen_option(struct gateway_options *options, const char *text)
{
    const char *colon = strrchr(text, ':');
    size_t bytes = colon ? (size_t)(colon - text) : 0;
    struct in_addr v4;
    struct in6_addr v6;
    uint64_t port;

    if (!isdigit((unsigned char)(colon ? colon[1] : text[0])))
        return refuse("--listen takes a port, or an address in digits and a port, as "
                      "127.0.0.1:8177");
    if (number("--listen", colon ? colon + 1 : text, 0, 65535, &port))
        return EXIT_USAGE;
    options->port = (uint16_t)port;
    if (bytes >= 2 && text[0] == '[' && text[bytes - 1] == ']') {
        text++;
        bytes -= 2;
    }
    if (colon)
        snprintf(options->host, sizeof options->host, "%.*s", (int)bytes, text);
    if (inet_pton(AF_INET, options->host, &v4) == 1)
        options->loopback = ntohl(v4.s_addr) >> 24 == 127;
    else if (inet_pton(AF_INET6, options->host, &v6) == 1)
        options->loopback = IN6_IS_ADDR_LOOPBACK(&v6);
    else
        return refuse("--listen takes an address in digits and a port, as 127.0.0.1:8177");
    return 0;
}

static int key_option(struct gateway_options *options, const char *path)
{
    FILE *file = fopen(path, "re");
    struct stat stat;

    if (!file || fstat(fileno(file), &stat)) {
        if (file)
            fclose(file);
        return refuse("cannot read %s: %s", path, strerror(errno));
    }
    if (!fgets(options->key, sizeof options->key, file))
        options->key[0] = '\0';
    fclose(file);
    options->key[strcspn(options->key, "\r\n")] = '\0';
    if (stat.st_mode & 077)
        return refuse("%s can be read by others: chmod 600 %s", path, path);
    if (strlen(options->key) < 16)
        return refuse("the key in %s is shorter than 16 characters", path);
    return 0;
}

static int folder_make(char *path)
{
    for (char *at = path + 1;; at++) {
        char here = *at;

        if (here != '/' && here)
            continue;
        *at = '\0';
        if (mkdir(path, 0700) && errno != EEXIST)
            return -errno;
        *at = here;
        if (!here)
            return 0;
    }
}

static int state_default(struct gateway_options *options)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n;

    if (options->state[0])
        return 0;
    if (state && state[0] == '/')
        n = snprintf(options->state, sizeof options->state, "%s/silt/gateway", state);
    else
        n = snprintf(options->state, sizeof options->state, "%s/.local/state/silt/gateway",
                     home ? home : "");
    return n >= (int)sizeof options->state ? refuse("the folder's name is too long") : 0;
}

static int option_take(struct gateway_options *options, int option)
{
    uint64_t value = 0;
    int r;

    switch (option) {
    case 'c':
        options->endpoint = optarg;
        return 0;
    case 'S':
        options->server_key = optarg;
        return 0;
    case 'C':
        options->client_key = optarg;
        return 0;
    case 'l':
        return listen_option(options, optarg);
    case 'k':
        return key_option(options, optarg);
    case 'a':
        options->anyone = true;
        return 0;
    case 's':
        if (snprintf(options->state, sizeof options->state, "%s", optarg) >=
            (int)sizeof options->state)
            return refuse("--state: the name is too long");
        return 0;
    case 'n':
        r = number("--connections", optarg, 1, CONNECTIONS_LIMIT, &value);
        options->connections_max = (uint32_t)value;
        return r;
    case 'N':
        r = number("--siltd-connections", optarg, 1, CONNECTIONS_LIMIT, &value);
        options->siltd_connections_max = (uint32_t)value;
        return r;
    case 'b':
        r = number("--body", optarg, 1024, 256 << 20, &value);
        options->body_bytes_max = (size_t)value;
        return r;
    case 't':
        r = number("--answer-seconds", optarg, 1, 86400, &value);
        options->answer_seconds = (uint32_t)value;
        return r;
    case 'h':
        fputs(help, stdout);
        return -1;
    default:
        fputs("Try: silt gateway --help\n", stderr);
        return EXIT_USAGE;
    }
}

static int options_take(struct gateway_options *options, int argc, char **argv)
{
    static const struct option longs[] = {{"endpoint", required_argument, NULL, 'c'},
                                          {"listen", required_argument, NULL, 'l'},
                                          {"key-file", required_argument, NULL, 'k'},
                                          {"anyone", no_argument, NULL, 'a'},
                                          {"state", required_argument, NULL, 's'},
                                          {"connections", required_argument, NULL, 'n'},
                                          {"siltd-connections", required_argument, NULL, 'N'},
                                          {"body", required_argument, NULL, 'b'},
                                          {"answer-seconds", required_argument, NULL, 't'},
                                          {"server-key", required_argument, NULL, 'S'},
                                          {"client-key", required_argument, NULL, 'C'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    int option, r;

    while ((option = getopt_long(argc, argv, "c:l:h", longs, NULL)) != -1) {
        r = option_take(options, option);
        if (r)
            return r;
    }
    if (optind != argc)
        return refuse("there is nothing to name: \"%s\"", argv[optind]);
    if (!options->loopback && !options->key[0] && !options->anyone)
        return refuse("%s can be reached by other machines: give a --key-file, or --anyone if all "
                      "may read and ask",
                      options->host);
    return state_default(options);
}

/* Blocked in every thread but this one. */
static void wait_for_signal(const sigset_t *signals)
{
    int signal_number;

    sigwait(signals, &signal_number);
}

int main(int argc, char **argv)
{
    static struct gateway gateway;
    struct gateway_options *options = &gateway.options;
    const union MHD_DaemonInfo *info;
    sigset_t signals;
    int r;

    *options = (struct gateway_options){.host = "127.0.0.1",
                                        .port = 8177,
                                        .loopback = true,
                                        .connections_max = 64,
                                        .siltd_connections_max = 16,
                                        .answer_seconds = 600,
                                        .body_bytes_max = 4 << 20};
    r = options_take(options, argc, argv);
    if (r)
        return r < 0 ? 0 : r;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    r = folder_make(options->state);
    if (r) {
        fprintf(stderr, "silt gateway: cannot make %s: %s; name another with --state\n",
                options->state, strerror(-r));
        return EXIT_REFUSED;
    }
    r = pool_open(&gateway.pool, options->siltd_connections_max);
    if (!r)
        r = http_open(&gateway);
    if (r) {
        fprintf(stderr, "silt gateway: cannot listen on %s port %u: %s%s\n", options->host,
                options->port, strerror(-r),
                r == -EADDRINUSE ? "; name another with --listen" : "");
        return EXIT_REFUSED;
    }
    info = MHD_get_daemon_info(gateway.http, MHD_DAEMON_INFO_BIND_PORT);
    printf(strchr(options->host, ':') ? "http://[%s]:%u/\n" : "http://%s:%u/\n", options->host,
           info ? info->port : options->port);
    fflush(stdout);
    wait_for_signal(&signals);
    pool_stop(&gateway.pool);
    http_close(&gateway);
    pool_close(&gateway.pool);
    return 0;
}
