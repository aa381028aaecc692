/* siltd: options and signals; everything else is behind daemon.h. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "daemon/config.h"
#include "daemon/log.h"

static struct daemon *running;

static void stop(int signal)
{
    int saved = errno;

    (void)signal;
    if (running)
        daemon_stop(running);
    errno = saved;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};

    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* A client is a file descriptor: as many as the system lets us have. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
    struct config config;
    enum config_answer answer;
    char error[ERROR_BYTES_MAX] = "";
    int result;

    config_defaults(&config);
    if (config_read(&config, argc, argv, &answer, error, sizeof error) != 0) {
        fprintf(stderr, "siltd: %s\n", error);
        return 2;
    }
    if (answer == CONFIG_HELP) {
        config_help();
        return 0;
    }
    if (answer == CONFIG_VERSION) {
        printf("siltd " SILT_VERSION "\n");
        return 0;
    }
    if (config.debug)
        say_level_set(SAY_DEBUG);
    raise_file_limit();
    umask(0077); /* whatever it makes is its user's alone */
    if (daemon_open(&running, &config, error, sizeof error) != 0) {
        fprintf(stderr, "siltd: %s\n", error[0] ? error : "cannot start");
        return 1;
    }
    catch_signals();
    result = daemon_run(running);
    daemon_close(&running);
    return result == 0 ? 0 : 1;
}
