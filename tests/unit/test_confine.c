/* What siltd takes from itself is gone, and what it needs is not. In a child: it is for good. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/confine.h"

enum { EXIT_GOOD = 0, EXIT_HELD = 1, EXIT_ABSENT = 77 };

static atomic_int go, other_denied;

/* A thread that was there before. */
static void *try_exec(void *unused)
{
    char *const argv[] = {"true", NULL};

    while (!atomic_load(&go))
        sched_yield();
    atomic_store(&other_denied, execv("/bin/true", argv) == -1 && errno == EPERM);
    return unused;
}

static int in_child(void)
{
    char *const argv[] = {"true", NULL};
    pthread_t thread;
    char byte;
    int fd;

    if (pthread_create(&thread, NULL, try_exec, NULL) != 0)
        return 2;
    if (confine() != 0)
        return EXIT_ABSENT;
    atomic_store(&go, 1);
    pthread_join(thread, NULL);
    if (!atomic_load(&other_denied))
        return 3;
    if (execv("/bin/true", argv) != -1 || errno != EPERM)
        return 4;
    if (unshare(CLONE_NEWUSER) != -1 || errno != EPERM)
        return 5;
    if (mount("none", "/tmp", "tmpfs", 0, NULL) != -1 || errno != EPERM)
        return 6;
    if (setuid(getuid()) != -1 || errno != EPERM)
        return 7;
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
        return 8;
    fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, &byte, 1) != 1)
        return 9;
    return EXIT_GOOD;
}

static void test_denied_for_all_threads(void **state)
{
    pid_t child = fork();
    int status = 0;

    (void)state;
    if (child == 0)
        _exit(in_child());
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == EXIT_ABSENT) {
        puts("skip: this kernel has no seccomp");
        exit(EXIT_ABSENT);
    }
    assert_int_equal(WEXITSTATUS(status), EXIT_GOOD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_denied_for_all_threads)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
