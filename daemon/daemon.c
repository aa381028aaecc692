/* Start order: lock, engine, plan, arena, journal, socket, threads; the end goes backwards. */
#include "daemon/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/clock.h"
#include "daemon/confine.h"
#include "daemon/fit.h"
#include "daemon/log.h"
#include "daemon/serve.h"

struct daemon {
    struct core core;
};

/* ---- data folder ---- */

static int make_folders(const char *path, char *error, size_t error_bytes)
{
    char part[PATH_BYTES_MAX];

    for (size_t i = 1; path[i - 1]; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        if (mkdir(part, 0700) != 0 && errno != EEXIST) {
            snprintf(error, error_bytes, "--data %s: %s cannot be made: %s; give another folder",
                     path, part, strerror(errno));
            return -errno;
        }
    }
    return 0;
}

static int lock_folder(struct core *core, char *error, size_t error_bytes)
{
    const char *folder = core->config.data;
    char path[PATH_BYTES_MAX + 8];
    struct stat status;
    int result = make_folders(folder, error, error_bytes);

    if (result)
        return result;
    snprintf(path, sizeof path, "%s/lock", folder);
    core->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (core->lock_fd < 0) {
        result = -errno;
        snprintf(error, error_bytes,
                 "--data %s cannot be written: %s; make it writable or give another folder", folder,
                 strerror(errno));
        return result;
    }
    if (stat(folder, &status) == 0 && status.st_mode & 077)
        say(SAY_WARN,
            "--data %s can be entered by others: chmod 700 it (what siltd makes in it is "
            "closed to them)",
            folder);
    if (flock(core->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        snprintf(error, error_bytes,
                 "--data %s is in use by another siltd: stop it or give another folder", folder);
        return -EBUSY;
    }
    return 0;
}

/* ---- parts that talk ---- */

static struct checkpoints checkpoints_of(const struct core *core)
{
    struct checkpoints at = {.files = &files_real,
                             .model_fingerprint = core->info.model_fingerprint,
                             .adapter_fingerprint = core->info.adapter_fingerprint};

    snprintf(at.folder, sizeof at.folder, "%.*s/checkpoints", PATH_BYTES_MAX - 16,
             core->config.data);
    return at;
}

static bool is_full(const char *folder)
{
    enum { LEAST_BYTES = 1 << 20 };
    struct statvfs disk;

    return statvfs(folder, &disk) == 0 && disk.f_bavail * disk.f_frsize < LEAST_BYTES;
}

/* Streams are removed by siltd alone: so it starts on a disk that is full to the last byte too, at
 * the price of checkpoints, which save time and no more. */
static int open_journal(struct core *core, char *error, size_t error_bytes)
{
    struct journal_options options = {
        .folder = core->config.data,
        .model_fingerprint = core->info.model_fingerprint,
        .adapter_fingerprint = core->info.adapter_fingerprint,
        .model_name = core->info.model_name,
        .kernels_name = core->info.kernels_name,
        .kernels_revision = core->info.kernels_revision,
        .rebuild = core->config.rebuild,
    };
    struct checkpoints at = checkpoints_of(core);
    mode_t mask = umask(0077);
    int result = journal_open(&core->journal, &options, error, error_bytes);
    uint32_t gone = 0, more;

    /* SQLite calls it an I/O error where the memory that it shares with others finds no room. */
    while ((result == -ENOSPC || result == -EIO) && is_full(core->config.data) &&
           (more = checkpoint_spare(&at))) {
        gone += more;
        result = journal_open(&core->journal, &options, error, error_bytes);
    }
    if (gone)
        say(SAY_WARN, "the disk is full: %u old checkpoints went so that siltd starts; make room",
            gone);
    umask(mask);
    return result;
}

static int open_bells(struct core *core, char *error, size_t error_bytes)
{
    struct doorbell *bells[] = {&core->journal_bell, &core->compute_bell, &core->loop_bell,
                                &core->stop_bell, &core->keeper.bell};

    for (size_t i = 0; i < sizeof bells / sizeof *bells; i++) {
        int result = doorbell_open(bells[i]);

        if (result) {
            snprintf(error, error_bytes, "no eventfd: %s", strerror(-result));
            return result;
        }
    }
    return 0;
}

static void wire_keeper(struct core *core)
{
    struct keeper *keeper = &core->keeper;

    pthread_mutex_init(&keeper->lock, NULL);
    keeper->at = checkpoints_of(core);
    keeper->compute_bell = &core->compute_bell;
    keeper->stopping = &core->keeper_stopping;
    atomic_init(&keeper->room, core->config.disk_bytes ? KEEPER_WAIT : KEEPER_ANY);
    core->ingest.keeper = core->sched.keeper = keeper;
}

static void open_meter(struct core *core)
{
    struct meter *meter = &core->meter;

    if (!core->meter_memory) {
        if (core->config.loss_meter == METER_AUTO && core->info.adapter_fingerprint)
            say(SAY_INFO, "no loss meter: its memory does not fit the plan");
        return;
    }
    meter_open(meter, core->engine, &core->info, core->meter_memory);
    meter->slots = core->slots;
    meter->slot_count = core->plan.streams_max;
    meter->flag = core->config.loss_flag;
    meter->compute_us = &core->sched.compute_us;
    meter->batched = core->info.batch_tokens > STREAM_BLOCK_TOKENS;
    core->sched.meter = meter;
}

static void wire_threads(struct core *core)
{
    struct ingest *ingest = &core->ingest;
    struct sched *sched = &core->sched;

    ingest->journal = core->journal;
    sched->tokenizer = ingest->tokenizer = engine_tokenizer(core->engine);
    sched->slots = ingest->slots = core->slots;
    sched->slot_count = ingest->slot_count = core->plan.streams_max;
    sched->lag_tokens_max = ingest->lag_tokens_max = core->config.lag_tokens_max;
    ingest->inbox = &core->journal_queue;
    sched->inbox = &core->compute_queue;
    sched->loop = ingest->loop = &core->loop_queue;
    ingest->bell = sched->journal_bell = &core->journal_bell;
    sched->bell = ingest->compute_bell = &core->compute_bell;
    sched->stopping = ingest->stopping = &core->stopping;
    ingest->chunk_tokens = core->info.chunk_tokens;
    ingest->sink_tokens = core->info.sink_tokens;
    ingest->pin_tokens_max = core->info.pin_tokens_max;
    ingest->disk_failed = &core->disk_failed;
    ingest->disk_bytes = &core->disk_bytes;
    ingest->disk_full = &core->disk_full;
    ingest->disk_grant = core->config.disk_bytes ? &core->disk_grant : NULL;
    ingest->trims = core->config.when_full_trim;
    sched->engine = core->engine;
    sched->info = core->info;
    sched->asks = core->asks;
    sched->ask_count = core->plan.forks_max;
    sched->tokens_computed = &core->tokens_computed;
}

static int open_gate(struct core *core, char *error, size_t error_bytes)
{
    const struct config *config = &core->config;
    int result = gate_open(&core->gate, config->listen, error, error_bytes);

    core->gate.clients.max = config->clients_max;

    if (result || !config->listen_network[0])
        return result;
    return gate_open_network(&core->gate, config->listen_network, &core->keys, error, error_bytes);
}

int daemon_open(struct daemon **out, const struct config *config, char *error, size_t error_bytes)
{
    struct daemon *daemon = calloc(1, sizeof *daemon);
    struct core *core = daemon ? &daemon->core : NULL;
    int result;

    *out = NULL;
    if (!daemon) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    say_ends();
    core->config = *config;
    core->lock_fd = core->journal_bell.fd = core->compute_bell.fd = -1;
    core->loop_bell.fd = core->stop_bell.fd = core->keeper.bell.fd = -1;
    core->started_us = clock_us();
    result = lock_folder(core, error, error_bytes);
    if (!result)
        result = open_bells(core, error, error_bytes);
    if (!result)
        result = fit_engine(core, error, error_bytes);
    if (!result)
        result = open_journal(core, error, error_bytes);
    if (!result)
        result = fit_plan(core, error, error_bytes);
    if (result)
        goto error;
    wire_threads(core);
    wire_keeper(core);
    open_meter(core);
    result = cold_open(core, error, error_bytes);
    if (!result)
        result = keys_open(&core->keys, &files_real, config->data, error, error_bytes);
    if (!result)
        result = open_gate(core, error, error_bytes);
    if (!result)
        result = serve_start(core, error, error_bytes);
    if (result)
        goto error;
    *out = daemon;
    return 0;

error:
    if (!error[0])
        snprintf(error, error_bytes, "siltd cannot start: %s%s", strerror(-result),
                 result == -ENOMEM ? "; free some memory" : "");
    daemon_close(&daemon);
    return result;
}

/* ---- running ---- */

static void *run_journal(void *user)
{
    struct core *core = user;

    ingest_main(&core->ingest);
    atomic_store(&core->journal_done, true);
    doorbell_ring(&core->loop_bell);
    return NULL;
}

static void *run_compute(void *user)
{
    struct core *core = user;

    sched_main(&core->sched);
    atomic_store(&core->compute_done, true);
    if (core->sched.failed)
        doorbell_ring(&core->stop_bell); /* nothing can be computed any more: siltd ends */
    doorbell_ring(&core->loop_bell);
    return NULL;
}

static void *run_keeper(void *user)
{
    struct core *core = user;

    return keeper_main(&core->keeper);
}

static void *run_search(void *user)
{
    struct core *core = user;

    return search_main(core->search);
}

/* Signals belong to the loop thread. */
static int start_thread(pthread_t *thread, void *(*body)(void *), struct core *core)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    int result;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = -pthread_create(thread, &attributes, body, core);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return result;
}

/* Nothing new is taken; what is under way ends within one commit and one block. An answer that is
 * on its way to the journal is kept by then, and its client told. */
static void begin_stop(void *user)
{
    struct core *core = user;
    const char *why = atomic_load(&core->compute_done) && core->sched.failed
                          ? "siltd ends: its device has failed, see its log"
                          : "siltd is stopping: ask again when it is back";

    doorbell_clear(&core->stop_bell);
    if (atomic_exchange(&core->stopping, true))
        return;
    say(SAY_INFO, "stopping");
    for (uint32_t i = 0; i < core->plan.forks_max; i++) {
        struct ask *ask = &core->asks[i];

        if (ask->stage == ASK_KEEPING)
            continue;
        if (ask->stage != ASK_FREE && ask->client.bytes)
            reply_error(core, &ask->client, ask->request_id, SILT__V1__ERROR__CODE__SHUTTING_DOWN,
                        "%s", why);
        ask->client.bytes = 0;
    }
    doorbell_ring(&core->journal_bell);
    doorbell_ring(&core->compute_bell);
}

static void announce(const struct core *core)
{
    if (core->info.adapter_fingerprint == 0)
        say(SAY_WARN, "COMPRESSION IS OFF: no adapter for this model, streams keep a sliding "
                      "window only and forget what leaves it");
    say(SAY_INFO, "%s, %s kernels, %u threads; listening on %s", core->info.model_name,
        core->info.kernels_name, core->info.threads, core->config.listen);
    if (core->gate.network[0])
        say(SAY_INFO,
            "and on %s for clients with a key that is allowed (%u grants); its own key "
            "is %s",
            core->gate.network, core->keys.count, core->keys.public_key);
}

static void authenticate(void *user)
{
    gate_authenticate(&((struct core *)user)->gate);
}

static void watch_clients(void *user)
{
    clients_drain(&((struct core *)user)->gate.clients);
}

static int add_doors(struct core *core)
{
    struct gate *gate = &core->gate;
    int result = loop_add_socket(&core->loop, gate->socket[DOOR_LOCAL], serve_frames, core);

    for (int door = 0; !result && door < GATE_DOORS; door++)
        if (gate->clients.monitor[door])
            result = loop_add_socket(&core->loop, gate->clients.monitor[door], watch_clients, core);

    if (!result && gate->zap)
        result = loop_add_socket(&core->loop, gate->zap, authenticate, core);
    if (!result && gate->socket[DOOR_NETWORK])
        result = loop_add_socket(&core->loop, gate->socket[DOOR_NETWORK], serve_frames, core);
    return result;
}

int daemon_run(struct daemon *daemon)
{
    struct core *core = &daemon->core;
    int result = start_thread(&core->journal_thread, run_journal, core);

    core->journal_runs = result == 0;
    if (!result)
        result = start_thread(&core->compute_thread, run_compute, core);
    core->compute_runs = core->journal_runs && result == 0;
    if (!result)
        result = start_thread(&core->keeper_thread, run_keeper, core);
    core->keeper_runs = core->compute_runs && result == 0;
    if (!result)
        result = start_thread(&core->search_thread, run_search, core);
    core->search_runs = core->keeper_runs && result == 0;
    if (!result)
        result = loop_add_fd(&core->loop, core->stop_bell.fd, begin_stop, core);
    if (!result)
        result = loop_add_fd(&core->loop, core->loop_bell.fd, serve_news, core);
    if (!result)
        result = add_doors(core);
    if (result)
        return result;
    loop_every(&core->loop, (uint64_t)TICK_MS * 1000, serve_tick, core);
    result = confine();
    if (result)
        say(SAY_WARN, "seccomp is not to be had (%s): siltd runs unconfined", strerror(-result));
    announce(core);
    result = loop_run(&core->loop);
    say(SAY_INFO, "stopped");
    return result ? result : core->compute_done && core->sched.failed ? -EIO : 0;
}

void daemon_stop(struct daemon *daemon)
{
    doorbell_ring(&daemon->core.stop_bell);
}

static void join_threads(struct core *core)
{
    atomic_store(&core->stopping, true);
    if (core->journal_runs || core->compute_runs)
        queue_close(&core->loop_queue);
    if (core->journal_runs) {
        doorbell_ring(&core->journal_bell);
        pthread_join(core->journal_thread, NULL);
    }
    if (core->compute_runs) {
        doorbell_ring(&core->compute_bell);
        pthread_join(core->compute_thread, NULL);
    }
    if (core->search_runs) {
        search_wake(core->search);
        pthread_join(core->search_thread, NULL);
    }
    atomic_store(&core->keeper_stopping, true);
    if (core->keeper_runs) {
        doorbell_ring(&core->keeper.bell);
        pthread_join(core->keeper_thread, NULL);
    }
}

void daemon_close(struct daemon **daemon)
{
    struct core *core;

    if (!*daemon)
        return;
    core = &(*daemon)->core;
    join_threads(core);
    gate_close(&core->gate);
    keys_close(&core->keys);
    for (uint32_t i = 0; core->asks && i < core->plan.forks_max; i++)
        fork_close(&core->asks[i].fork);
    for (uint32_t i = 0; core->slots && i < core->plan.streams_max; i++)
        stream_close(&core->slots[i].stream);
    cold_close(core);
    journal_close(&core->journal);
    engine_close(&core->engine);
    arena_close(&core->arena);
    doorbell_close(&core->journal_bell);
    doorbell_close(&core->compute_bell);
    doorbell_close(&core->loop_bell);
    doorbell_close(&core->stop_bell);
    doorbell_close(&core->keeper.bell);
    if (core->lock_fd >= 0)
        close(core->lock_fd);
    free(*daemon);
    *daemon = NULL;
}
