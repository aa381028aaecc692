/* One write(2) a line, so that lines of several threads never mix. */
#include "daemon/log.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/clock.h"

enum { LINE_BYTES_MAX = 1024, AGAIN_US = 10000000 };

static _Atomic int level_min = SAY_INFO;

void say_level_set(enum say_level level)
{
    atomic_store(&level_min, (int)level);
}

/* Whether stderr is the journal's, as systemd.exec(5) says to find out: it keeps the time itself,
 * and the level by a number in front. */
static bool to_journal(void)
{
    static _Atomic int known; /* 0: not yet, 1: it is not, 2: it is */
    uintmax_t device, inode;
    struct stat st;

    if (!atomic_load(&known)) {
        const char *named = getenv("JOURNAL_STREAM");
        bool is = named && sscanf(named, "%ju:%ju", &device, &inode) == 2 &&
                  !fstat(STDERR_FILENO, &st) && st.st_dev == device && st.st_ino == inode;

        atomic_store(&known, 1 + is);
    }
    return atomic_load(&known) == 2;
}

/* What stands before the text: returns its bytes. */
static size_t prefix(enum say_level level, char *line, size_t room)
{
    static const struct {
        const char *name;
        int priority; /* of syslog(3) */
    } levels[] = {{"debug", 7}, {"info", 6}, {"warn", 4}, {"error", 3}};
    struct timespec now;
    struct tm utc;
    size_t used;
    int n;

    if (to_journal()) {
        n = snprintf(line, room, "<%d>", levels[level].priority);
        return n > 0 ? (size_t)n : 0;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    used = strftime(line, room, "%Y-%m-%dT%H:%M:%S", &utc);
    n = snprintf(line + used, room - used, ".%03ldZ %s ", now.tv_nsec / 1000000,
                 levels[level].name);
    return used + (n > 0 ? (size_t)n : 0);
}

void say(enum say_level level, const char *format, ...)
{
    char line[LINE_BYTES_MAX];
    size_t used;
    int n;
    va_list arguments;

    if ((int)level < atomic_load(&level_min))
        return;
    used = prefix(level, line, sizeof line);
    va_start(arguments, format);
    n = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    used += n > 0 ? (size_t)n : 0;
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';
    /* Nothing can be done about a log that cannot be written. */
    if (write(STDERR_FILENO, line, used) < 0)
        return;
}

bool say_again(uint64_t *said_us)
{
    uint64_t now = clock_us();

    if (*said_us && now - *said_us < AGAIN_US)
        return false;
    *said_us = now;
    return true;
}

enum { ENDS = 2 };
static const int end_signal[ENDS] = {SIGABRT, SIGSEGV};
static struct sigaction end_before[ENDS];

/* In whatever thread it is, at whatever it was at: no more than write(2). A fault comes again when
 * this returns, as it was; what was sent does not. */
static void say_end(int number, siginfo_t *info, void *context)
{
    static const char text[] =
        "siltd: ended by itself or by a library, as libzmq does where it is refused memory (what "
        "it said stands above); nothing that was acked is lost: start it again\n";

    (void)context;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
        /* Nothing can be done about that either. */
    }
    for (int i = 0; i < ENDS; i++)
        if (end_signal[i] == number)
            sigaction(number, &end_before[i], NULL);
    if (info->si_code <= 0)
        raise(number);
}

void say_ends(void)
{
    struct sigaction action = {.sa_sigaction = say_end, .sa_flags = SA_SIGINFO}, before;

    sigemptyset(&action.sa_mask);
    for (int i = 0; i < ENDS; i++)
        if (sigaction(end_signal[i], &action, &before) == 0 && before.sa_sigaction != say_end)
            end_before[i] = before;
}
