/* gateway: a program of its own, so that HTTP's libraries are no part of silt. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/silt/silt.h"

/* The one that was built or installed with this program, else the one the shell would find. */
static void gateway_exec(char **argv)
{
    static const char name[] = "silt-gateway";
    char path[1024];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof name - 1);
    char *slash;

    if (n > 0) {
        path[n] = '\0';
        slash = strrchr(path, '/');
        memcpy(slash ? slash + 1 : path, name, sizeof name);
        execv(path, argv);
    }
    execvp(name, argv);
}

static int pass_on(const char *variable, const char *value)
{
    return value ? setenv(variable, value, 1) : 0;
}

static int run(struct silt *silt, int argc, char **argv)
{
    (void)argc;
    if (pass_on("SILT_ENDPOINT", silt->endpoint) || pass_on("SILT_SERVER_KEY", silt->server_key) ||
        pass_on("SILT_CLIENT_KEY", silt->client_key)) {
        silt_say("%s", strerror(errno));
        return EXIT_REFUSED;
    }
    gateway_exec(argv);
    silt_say("cannot start silt-gateway: %s. It is built with libmicrohttpd-dev: make deps, make",
             strerror(errno));
    return EXIT_REFUSED;
}

const struct command command_gateway = {
    .name = "gateway",
    .summary = "serve OpenAI's chat, Prometheus and a page over HTTP",
    .help = NULL, /* the program's own */
    .run = run,
};
