/* One write(2) a line, so that lines of several threads never mix. */
#include "daemon/log.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 1024 };

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

static struct sigaction abort_before;

/* In whatever thread it is, at whatever it was at: no more than write(2). */
static void say_aborted(int number)
{
    static const char text[] =
        "siltd: ended by itself or by a library, as libzmq does where it is refused memory (what "
        "it said stands above); nothing that was acked is lost: start it again\n";

    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
        /* Nothing can be done about that either. */
    }
    sigaction(number, &abort_before, NULL);
    raise(number);
}

void say_when_aborted(void)
{
    struct sigaction action = {.sa_handler = say_aborted};

    sigemptyset(&action.sa_mask);
    if (sigaction(SIGABRT, &action, &abort_before) != 0 || abort_before.sa_handler == say_aborted)
        abort_before = (struct sigaction){.sa_handler = SIG_DFL};
}
