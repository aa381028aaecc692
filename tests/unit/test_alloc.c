/*
 * Memory that is refused while siltd starts: the n-th allocation fails, for n = 1, 2, ... until a
 * start that asks for fewer. Each time it ends by itself with a sentence, or starts all the same;
 * what is in its folder stays.
 *
 * libzmq, and the libraries below it, end the process where they get no memory, which no C can
 * catch: that comes with siltd's sentence too, is counted apart, and said which.
 * SILT_STRIDE=1: every one of them; else as many as fit a minute of a core. SILT_FROM=2
 * SILT_STRIDE=8: the second of eight shares.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/journal.h"
#include "tests/unit/rig.h"
#include "tests/unit/tiny_model.h"

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
int main(void)
{
    puts("skip: the sanitizer has an allocator of its own");
    return 77;
}
#else

enum { SECONDS = 60, CHILD_SECONDS = 60, TEXT_BYTES = 4096, EXIT_LIBRARY = 42 };
enum ending { ENDED_WELL, REFUSED, LIBRARY_ENDED };

/* ---- the C library's allocator, but for one call ---- */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);

static _Atomic uint64_t calls, fail_at;

static bool fails(void)
{
    return atomic_load(&fail_at) && atomic_fetch_add(&calls, 1) + 1 == atomic_load(&fail_at);
}

static void *none(void)
{
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t bytes)
{
    return fails() ? none() : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    return fails() ? none() : __libc_calloc(count, bytes);
}

void *realloc(void *memory, size_t bytes)
{
    return fails() ? none() : __libc_realloc(memory, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    return fails() ? none() : __libc_memalign(align, bytes);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    *out = fails() ? NULL : __libc_memalign(align, bytes);
    return *out ? 0 : ENOMEM;
}

static _Atomic bool *met; /* shared: as many allocations were asked for */

/* Whose the end is: libzmq's, or that of libraries that it begins, or ours. */
static void on_signal(int number)
{
    void *frame[64];
    int count = backtrace(frame, 64);
    Dl_info info;

    for (int i = 0; i < count; i++)
        if (dladdr(frame[i], &info) && strstr(info.dli_fname, "libzmq"))
            _exit(EXIT_LIBRARY);
    signal(number, SIG_DFL);
    raise(number);
}

/* ---- one start ---- */

static char folder[64];
static struct config config;

static void make_config(void)
{
    struct tiny_options tiny = TINY_DEFAULTS;

    rig_folder(folder, sizeof folder);
    config_defaults(&config);
    snprintf(config.data, sizeof config.data, "%s/data", folder);
    snprintf(config.listen, sizeof config.listen, "ipc://%s/s", folder);
    snprintf(config.model, sizeof config.model, "%s/tiny.gguf", folder);
    snprintf(config.adapter, sizeof config.adapter, "%s/adapter.gguf", folder);
    config.adapter_given = true;
    config.threads = 1;
    config.streams_max = 2;
    config.forks_max = 1;
    config.memory_bytes = (uint64_t)1 << 32;
    assert_int_equal(tiny_model_write(config.model, &tiny), 0);
    assert_int_equal(tiny_adapter_write(config.adapter, config.model, &tiny), 0);
}

/* In a process of its own. Its exit status, and what it said. */
static int start(uint64_t at, char *said, bool *was_met)
{
    int fd = memfd_create("said", 0), status;
    ssize_t bytes;
    pid_t child;

    assert_true(fd >= 0);
    atomic_store(met, false);
    child = fork();
    if (child == 0) {
        char error[ERROR_BYTES_MAX] = "";
        struct daemon *daemon = NULL;
        int result;

        alarm(CHILD_SECONDS);
        dup2(fd, STDERR_FILENO);
        (void)backtrace((void *[1]){NULL}, 1); /* loads what it needs */
        for (int i = 0; i < 5; i++)
            signal((int[]){SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}[i], on_signal);
        atomic_store(&fail_at, at);
        result = daemon_open(&daemon, &config, error, sizeof error);
        atomic_store(met, atomic_load(&calls) >= at);
        atomic_store(&fail_at, 0);
        if (result)
            dprintf(STDERR_FILENO, "siltd: %s\n", error);
        daemon_close(&daemon);
        _exit(result ? 1 : 0);
    }
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    bytes = pread(
        fd, said, TEXT_BYTES - 1,
        lseek(fd, 0, SEEK_END) > TEXT_BYTES - 1 ? lseek(fd, 0, SEEK_END) - (TEXT_BYTES - 1) : 0);
    said[bytes > 0 ? bytes : 0] = '\0';
    *was_met = atomic_load(met) || WIFSIGNALED(status) || WEXITSTATUS(status) == EXIT_LIBRARY;
    close(fd);
    return status;
}

static enum ending judge(uint64_t at, int status, const char *said)
{
    const char *last = strstr(said, "siltd: ");

    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_LIBRARY) {
        if (!last || !strstr(last, "nothing that was acked is lost"))
            fail_msg("allocation %llu: libzmq ends it without a sentence\n%s",
                     (unsigned long long)at, said);
        return LIBRARY_ENDED;
    }
    if (!WIFEXITED(status))
        fail_msg("allocation %llu: signal %d behind\n%.*s", (unsigned long long)at,
                 WTERMSIG(status), 300, strlen(said) > 300 ? said + strlen(said) - 300 : said);
    if (WEXITSTATUS(status) && (!last || strlen(last) < 15))
        fail_msg("allocation %llu: it ends without a sentence\n%s", (unsigned long long)at, said);
    return WEXITSTATUS(status) ? REFUSED : ENDED_WELL;
}

/* A stream with something in it, that must be there at the end. */
static void fill_folder(void)
{
    char said[TEXT_BYTES];
    struct rig_options options = {.slots = 1, .asks = 1, .lag_tokens_max = 8192};
    static struct rig rig;
    bool was_met;

    assert_int_equal(start(0, said, &was_met), 0);
    assert_int_equal(rig_open(&rig, config.data, &options), 0);
    rig_stream(&rig, 0, "a", 4);
    rig_settle(&rig);
    rig_text(&rig, 0, "p", 1, "some words ", 11);
    rig_settle(&rig);
    rig_close(&rig);
}

/* Of the library, before siltd's own. Cuts it off there. */
static const char *last_line(char *said)
{
    char *own = strstr(said, "siltd: ");
    size_t bytes = own ? (size_t)(own - said) : strlen(said);

    said[bytes] = '\0';
    while (bytes && said[bytes - 1] == '\n')
        said[--bytes] = '\0';
    return strrchr(said, '\n') ? strrchr(said, '\n') + 1 : said;
}

static void each_allocation_fails(void **state)
{
    const char *stride_text = getenv("SILT_STRIDE");
    uint64_t stride = faults_number("SILT_STRIDE", 1), first = faults_number("SILT_FROM", 1);
    uint64_t at = first, count[3] = {0};
    struct rusage used;
    char said[TEXT_BYTES];
    bool was_met = true;

    (void)state;
    met = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(met != MAP_FAILED);
    make_config();
    fill_folder();
    for (uint64_t round = 0; was_met; round++, at += was_met ? stride : 0) {
        int status = start(at, said, &was_met);
        enum ending ending = was_met ? judge(at, status, said) : ENDED_WELL;

        count[ending] += was_met;
        if (ending == LIBRARY_ENDED)
            print_message("allocation %llu: ended by libzmq: %s\n", (unsigned long long)at,
                          last_line(said));
        getrusage(RUSAGE_CHILDREN, &used);
        /* As far as time allows one by one, then ever further apart to the last. */
        if (!stride_text && used.ru_utime.tv_sec + used.ru_stime.tv_sec > SECONDS / 2)
            stride = 1 + round / 10;
    }
    assert_int_equal(start(0, said, &(bool){false}), 0);
    print_message(
        "allocations of a start, up to %llu: %llu refused, of which with a sentence %llu, "
        "started all the same %llu, ended by libzmq %llu, each with a sentence\n",
        (unsigned long long)(at - 1),
        (unsigned long long)(count[REFUSED] + count[ENDED_WELL] + count[LIBRARY_ENDED]),
        (unsigned long long)count[REFUSED], (unsigned long long)count[ENDED_WELL],
        (unsigned long long)count[LIBRARY_ENDED]);
    assert_true(first > 1 || count[REFUSED] > 10);
    rig_folder_drop(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_allocation_fails)};

    return cmocka_run_group_tests_name("alloc", tests, NULL, NULL);
}
#endif
