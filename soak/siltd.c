#include "soak/siltd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START_MS_MAX = 60000, POLL_MS = 20 };

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static void child(const struct siltd *s, const char *program, const struct siltd_options *o)
{
    const char *const given[][2] = {{"--model", o->model},
                                    {"--adapter", o->adapter},
                                    {"--device", o->device},
                                    {"--threads", o->threads},
                                    {"--disk", o->disk}};
    char data[160], log[160];
    const char *argv[16] = {program, "--listen", s->endpoint, "--data", data};
    int n = 5, fd;

    snprintf(data, sizeof data, "%s/data", s->folder);
    snprintf(log, sizeof log, "%s/log", s->folder);
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        if (given[i][1])
            argv[n++] = given[i][0], argv[n++] = given[i][1];
    fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd >= 0) {
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
    }
    execv(program, (char *const *)(uintptr_t)argv);
    _exit(127);
}

static void print_log(const struct siltd *s)
{
    char path[160], line[512];
    FILE *f;

    snprintf(path, sizeof path, "%s/log", s->folder);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        fprintf(stderr, "    siltd: %s", line);
    if (f)
        fclose(f);
}

int siltd_start(struct siltd *out, const char *program, const struct siltd_options *options)
{
    *out = (struct siltd){0};
    snprintf(out->folder, sizeof out->folder, "/tmp/silt-soak-XXXXXX");
    if (!mkdtemp(out->folder))
        return -errno;
    snprintf(out->endpoint, sizeof out->endpoint, "ipc://%s/socket", out->folder);
    out->pid = fork();
    if (out->pid < 0)
        return -errno;
    if (!out->pid)
        child(out, program, options);
    for (int waited = 0; waited < START_MS_MAX; waited += POLL_MS) {
        int status;
        if (waitpid(out->pid, &status, WNOHANG) == out->pid) {
            fprintf(stderr, "soak: siltd ended at once\n");
            print_log(out);
            out->pid = 0;
            siltd_stop(out);
            return -ECHILD;
        }
        if (!access(out->endpoint + strlen("ipc://"), F_OK))
            return 0;
        sleep_ms(POLL_MS);
    }
    fprintf(stderr, "soak: siltd does not listen after %d s\n", START_MS_MAX / 1000);
    print_log(out);
    siltd_stop(out);
    return -ETIMEDOUT;
}

int siltd_stop(struct siltd *s)
{
    char command[160];
    int status = 0;

    if (s->pid > 0) {
        kill(s->pid, SIGTERM);
        if (waitpid(s->pid, &status, 0) < 0)
            status = -1;
        s->pid = 0;
    }
    /* The folder's name is ours, made by mkdtemp above: no quoting to get wrong. */
    snprintf(command, sizeof command, "rm -rf %s", s->folder);
    if (s->folder[0] && system(command) != 0)
        fprintf(stderr, "soak: cannot remove %s\n", s->folder);
    s->folder[0] = 0;
    return status;
}

uint64_t siltd_resident_bytes(const struct siltd *s)
{
    char path[64], line[256];
    uint64_t kb = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/status", (int)s->pid);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmRSS: %lu", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb << 10;
}

double siltd_cpu_seconds(const struct siltd *s)
{
    char path[64], line[1024];
    const char *at;
    unsigned long user = 0, system = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)s->pid);
    f = fopen(path, "r");
    /* The name in brackets may hold anything; fields 14 and 15 come after it. */
    if (f && fgets(line, sizeof line, f) && (at = strrchr(line, ')')))
        sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    if (f)
        fclose(f);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}
