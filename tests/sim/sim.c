/*
 * siltd's core under schedules that a seed makes up: who sends what, which part takes its step
 * when, what the disk does, when the process dies or the power goes.
 *
 *     sim [FIRST [COUNT [CANARY]]]     `sim NUMBER 1` plays one that failed again
 *
 * After each schedule every stream must hold exactly the messages that were acked, in order, plus
 * at most those under way at the end; and its memory must be that of the same messages fed to a
 * stream that knew no trouble. Odd ones compute streams together, as a device does. All follows
 * from the seed: now and then one is played twice, which must be the same twice. A canary must be
 * found: `disk` lies about its syncs, `stream` and `place` put cold segments where they do not
 * belong (cold.h).
 */
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/log.h"
#include "tests/sim/change.h"
#include "tests/sim/cold.h"
#include "tests/sim/model.h"
#include "tests/unit/rig.h"
#include "tests/unit/vfs_fault.h"

enum { SLOTS = 2, ACTIONS = 300, AGAIN = 50 };

/* Under checkpoints the power never goes: test_checkpoint_fault.c fails each
 * of their calls. */
static int no_sync(void *user, int fd)
{
    (void)user, (void)fd;
    return 0;
}

static struct files files;
static const struct rig_options options = {
    .slots = SLOTS, .asks = 2, .lag_tokens_max = 4096, .checkpoints = true, .files = &files};

static struct rig rig;
static struct model model[STREAMS];
static struct { /* in the journal's queue, in order */
    struct model *model;
    struct message message;
} flying[SENT_MAX];
static uint32_t flying_count;
static char folder[64];
static uint64_t seed, schedule, lost;
static bool asking[2]; /* handed over and not ended */
static bool canary, lies, broken;
static uint64_t trace; /* of the schedule */
static const char *const producer_names[PRODUCERS] = {"p", "q"};

static uint64_t below(uint64_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % n;
}

static void expect(bool right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "schedule %" PRIu64 ": %s\n", schedule, what);
    if (!canary)
        exit(1);
    lost++;
}

/* ---- messages ---- */

/* Text of any bytes, turns, tokens and marks: always the same for the same stream and message. */
static void build(uint32_t slot, const struct message *message)
{
    uint64_t own = schedule * 1000003 + message->stream * 7919 + message->producer * 104729 +
                   message->sequence * 15485863;
    uint64_t saved = seed;
    uint8_t text[1200];

    seed = own;
    rig_feed_begin(&rig, slot, producer_names[message->producer], message->sequence);
    for (uint64_t items = 1 + below(4); items; items--) {
        uint64_t kind = below(10);
        size_t bytes = below(3) ? below(40) : below(sizeof text);

        for (size_t i = 0; i < bytes; i++)
            text[i] = below(6) ? (uint8_t)(below(2) ? 'a' + below(26) : below(256)) : ' ';
        if (kind < 7)
            rig_item(&rig, ITEM_TEXT, 0, text, bytes);
        else if (kind == 7)
            rig_item(&rig, ITEM_MARK, (uint32_t)below(3), NULL, 0);
        else if (kind == 8)
            rig_item(&rig, ITEM_TURN, (uint32_t)below(4), text, bytes % 100);
        else
            rig_item(&rig, ITEM_TOKENS, 0, (int32_t[]){5, 6, 7, (int32_t)below(60)}, 16);
    }
    seed = saved;
}

static struct model *of_slot(uint32_t slot)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        if (model[i].exists && model[i].slot == slot)
            return &model[i];
    return NULL;
}

/* Where those that failed would. */
static void commit_stands(void)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        model[i].doubt_count = 0;
        model[i].may_be_there = model[i].may_be_gone = false;
    }
}

static void take_result(const struct ingest_result *result, uint64_t batch)
{
    struct model *m = flying[0].model;
    struct message message = flying[0].message;

    memmove(flying, flying + 1, --flying_count * sizeof *flying);
    if (result->error == 1 + SILT__V1__ERROR__CODE__NO_SPACE) {
        message.batch = batch;
        m->doubt[m->doubt_count++] = message;
        return;
    }
    if (result->error)
        return;
    if (message.sequence == m->acked[message.producer] + 1) {
        model_append(m, message);
        commit_stands();
    }
    expect(result->sequence == m->acked[message.producer], "an ack that names another number");
}

static void take_results(void)
{
    for (uint32_t i = 0; i < rig.result_count; i++)
        if (rig.results[i].kind == INGEST_FEED)
            take_result(&rig.results[i], rig.batches[i]);
        else if (change_took(model, &rig.results[i]))
            commit_stands();
    rig_forget(&rig);
}

/* ---- actions ---- */

static uint32_t any_slot(void)
{
    uint32_t slot = (uint32_t)below(SLOTS);

    return of_slot(slot) ? slot : SLOT_NONE;
}

static void act_feed(void)
{
    uint32_t slot = any_slot();
    struct model *m = slot == SLOT_NONE ? NULL : of_slot(slot);
    struct message message = {.producer = (uint32_t)below(PRODUCERS)};
    uint64_t way = below(10);

    if (!m || m->count + flying_count + 2 >= MESSAGES_MAX || flying_count + 1 >= SENT_MAX ||
        m->doubt_count + flying_count + 1 >= SENT_MAX)
        return;
    message.sequence = m->acked[message.producer] + 1;
    for (uint32_t i = 0; way < 7 && i < flying_count; i++) /* the next, many under way */
        if (flying[i].model == m && flying[i].message.producer == message.producer &&
            flying[i].message.sequence >= message.sequence)
            message.sequence = flying[i].message.sequence + 1;
    if (way == 7 && message.sequence > 1) /* a repeat */
        message.sequence -= 1 + below(message.sequence - 1);
    if (way == 8) /* a gap */
        message.sequence += 1 + below(3);
    message.stream = (uint32_t)(m - model);
    build(slot, &message);
    if (rig_push(&rig) == 0) {
        flying[flying_count].model = m;
        flying[flying_count++].message = message;
    }
}

static void act_ask(void)
{
    uint32_t slot = any_slot(), ask = (uint32_t)below(2);

    asking[ask] = asking[ask] && !rig.ended[ask];
    if (slot == SLOT_NONE || !rig.slots[slot].stream)
        return;
    if (asking[ask]) {
        atomic_store(&rig.asks[ask].cancelled, true);
        return;
    }
    rig_ask(&rig, ask, slot, "What?", (uint32_t)below(30) + 1);
    asking[ask] = true;
}

static bool asked(uint32_t slot)
{
    for (uint32_t i = 0; i < options.asks; i++)
        if (asking[i] && !rig.ended[i] && rig.asks[i].slot == slot)
            return true;
    return false;
}

static uint64_t id_of(const struct model *m)
{
    struct journal_stream stream;

    return journal_stream_find(rig.journal, stream_names[m - model], &stream) ? 0 : stream.id;
}

static void close_stream(uint32_t slot)
{
    uint64_t id = atomic_load(&rig.slots[slot].stream_id);

    rig_order(&rig, SCHED_CLOSE, slot, 0, 0);
    rig_settle(&rig);
    cold_go(id);
}

static void start_cold(void)
{
    struct spill *spill = cold_start(folder);

    for (uint32_t i = 0; i < SLOTS; i++)
        rig.slots[i].spill = spill;
    rig.ingest.spill = spill;
}

/* As the loop thread does it: only a stream that has computed everything leaves its slot; but to
 * lose text it leaves at once, whatever is under way. */
static void act_park(void)
{
    uint32_t slot = any_slot();
    struct model *m = slot == SLOT_NONE ? NULL : of_slot(slot);
    bool at_once = below(2);

    if (!m || asked(slot))
        return;
    if (!at_once) {
        rig_settle(&rig);
        take_results();
        if (slot_lag(&rig.slots[slot]) || !atomic_load(&rig.slots[slot].ready))
            return;
    }
    rig_request(&rig, INGEST_UNLOAD, slot, "");
    rig_settle(&rig);
    take_results();
    close_stream(slot);
    m->slot = SLOT_NONE;
}

static void act_open(void)
{
    struct model *m = &model[below(STREAMS)];
    uint32_t slot = 0;

    while (slot < SLOTS && of_slot(slot))
        slot++;
    if (slot == SLOTS || m->changing || (m->exists && m->slot != SLOT_NONE))
        return;
    rig_settle(&rig);
    take_results();
    cold_come(id_of(m));
    if (rig_stream(&rig, slot, stream_names[m - model], 4)) {
        cold_go(id_of(m));
        return;
    }
    rig_settle(&rig);
    cold_come(atomic_load(&rig.slots[slot].stream_id));
    for (uint32_t i = 0; i < rig.result_count; i++)
        if (rig.results[i].slot == slot && rig.results[i].error) {
            close_stream(slot); /* the journal could not */
            rig_forget(&rig);
            return;
        }
    take_results();
    m->exists = true;
    m->may_be_there = false;
    m->slot = slot;
}

static void act_cold(void)
{
    uint32_t slot = any_slot();
    uint64_t id = slot == SLOT_NONE ? 0 : atomic_load(&rig.slots[slot].stream_id);

    cold_act(below(1u << 31), id);
}

static void act_disk_fails(void)
{
    vfs_fault_at(1 + below(30), below(2) ? SQLITE_IOERR : SQLITE_FULL, below(2));
}

/* One bit of one checkpoint. */
static void damage(uint64_t stream_id)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(&rig.keeper.at, stream_id, tokens);
    char path[PATH_BYTES_MAX + 64];
    FILE *file;
    int byte;

    for (uint32_t i = 0; i < STREAMS; i++)
        if (model[i].trimmed)
            return;
    if (!count || below(2))
        return;
    snprintf(path, sizeof path, "%s/%016" PRIx64 "/%016" PRIx64, rig.keeper.at.folder, stream_id,
             tokens[below(count)]);
    file = fopen(path, "r+e");
    if (!file)
        return;
    fseek(file, (long)below(CHECKPOINT_HEAD_BYTES + 100), SEEK_SET);
    byte = fgetc(file);
    fseek(file, -1, SEEK_CUR);
    fputc(byte ^ (1 << below(8)), file);
    fclose(file);
}

/* What the producers learn when they attach again. */
static void attach_all(uint32_t slot, struct model *m)
{
    uint64_t stored[PRODUCERS] = {0};

    for (uint32_t producer = 0; producer < PRODUCERS; producer++) {
        const struct ingest_result *result;

        rig_forget(&rig);
        rig_request(&rig, INGEST_ATTACH, slot, producer_names[producer]);
        rig_settle(&rig);
        result = rig_last(&rig, INGEST_ATTACH);
        if (!result || result->error) {
            expect(false, "a stream that was acked is gone");
            return;
        }
        stored[producer] = result->sequence;
        expect(stored[producer] >= m->acked[producer], "what was acked is lost");
    }
    if (!lost)
        expect(model_settle(m, stored), "something is there that nobody sent");
}

static void wake_all(void)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct journal_stream stream;
        struct model *m = &model[i];

        m->slot = SLOT_NONE;
        if (journal_stream_find(rig.journal, stream_names[i], &stream) != 0) {
            expect(!m->exists || change_explains(&rig, m, 0), "a stream is gone");
            m->exists = false;
            continue;
        }
        if (!m->exists && m->may_be_there) {
            expect(change_explains(&rig, m, stream.id), "a branch of a commit that failed stays");
            continue;
        }
        m->exists = true;
        cold_come(stream.id);
        rig_stream(&rig, 0, stream_names[i], 4);
        m->slot = 0;
        rig_settle(&rig);
        attach_all(0, m);
        expect(slot_lag(&rig.slots[0]) == 0, "the journal is not computed to its end");
        rig_request(&rig, INGEST_UNLOAD, 0, "");
        rig_settle(&rig);
        close_stream(0);
        rig_forget(&rig);
        m->slot = SLOT_NONE;
    }
}

static void end_all(uint64_t random, bool power)
{
    sim_engine_crash();
    cold_crash(random, power);
    rig_close(&rig);
}

static void act_crash(void)
{
    bool power = lies || below(2);
    char path[96];

    /* What is in the queue was never applied. */
    flying_count = 0;
    change_crash(model);
    memset(asking, 0, sizeof asking);
    if (power)
        vfs_fault_cut(below(1000000));
    end_all(below(1000000), power);
    vfs_fault_lie(false);
    vfs_fault_mend();
    if (power) {
        snprintf(path, sizeof path, "%s/journal.db-shm", folder);
        unlink(path);
    }
    if (rig_open(&rig, folder, &options) != 0) {
        expect(false, "the journal cannot be opened again");
        broken = true; /* the canary was found */
        return;
    }
    start_cold();
    for (uint32_t i = 0; i < STREAMS; i++)
        damage(1 + below(STREAMS));
    wake_all();
    vfs_fault_lie(lies);
}

static void act(void)
{
    uint64_t what = below(100);

    if (what < 36)
        act_feed();
    else if (what < 40)
        change_act(&rig, model, below(1u << 16));
    else if (what < 60)
        rig_ingest(&rig);
    else if (what < 75)
        for (uint64_t n = below(24); n; n--)
            rig_compute(&rig);
    else if (what < 82)
        act_cold();
    else if (what < 85)
        act_ask();
    else if (what < 89)
        act_park();
    else if (what < 95)
        act_open();
    else if (what < 97)
        act_disk_fails();
    else if (what < 99)
        vfs_fault_mend();
    else
        act_crash();
    take_results();
    expect(!cold_wrong(), cold_wrong());
    for (uint32_t i = 0; i < SLOTS; i++)
        if (of_slot(i)) {
            expect(slot_lag(&rig.slots[i]) <= options.lag_tokens_max, "the lag is over its bound");
            expect(ring_count(&rig.slots[i].ring) <= rig.slots[i].ring.capacity, "a ring ran over");
        }
}

/* ---- the end of a schedule ---- */

/* The same messages, in order, to a stream that knows no trouble. */
static uint64_t clean_hash(uint32_t stream)
{
    const struct model *m = &model[stream];
    uint64_t hash;
    char other[64];

    rig_folder(other, sizeof other);
    if (rig_open(&rig, other, &options) != 0)
        exit(2);
    rig_stream(&rig, 0, "clean", 4);
    rig_settle(&rig);
    for (uint32_t i = 0; i < m->count; i++) {
        build(0, &m->message[i]);
        rig_push(&rig);
        rig_settle(&rig);
        if (rig_last(&rig, INGEST_FEED)->error) {
            fprintf(stderr, "%s\n", rig_last(&rig, INGEST_FEED)->message);
            exit(2);
        }
        rig_forget(&rig);
    }
    hash = rig_hash(&rig, 0);
    rig_close(&rig);
    rig_folder_drop(other);
    return hash;
}

static void mix(const void *bytes, size_t count)
{
    trace = XXH3_64bits_withSeed(bytes, count, trace);
}

static void check_memories(void)
{
    uint64_t hash[STREAMS] = {0};

    for (uint32_t i = 0; i < STREAMS; i++) {
        if (!model[i].exists)
            continue;
        rig_stream(&rig, 0, stream_names[i], 4);
        rig_settle(&rig);
        hash[i] = rig_hash(&rig, 0);
        rig_request(&rig, INGEST_UNLOAD, 0, "");
        rig_settle(&rig);
        rig_order(&rig, SCHED_CLOSE, 0, 0, 0);
        rig_settle(&rig);
        rig_forget(&rig);
    }
    end_all(0, false);
    mix(hash, sizeof hash);
    for (uint32_t i = 0; i < STREAMS; i++)
        if (model[i].exists && !model[i].unsure)
            expect(clean_hash(i) == hash[i], "a memory is not that of its messages");
}

/* Plays a schedule; what it came to is the same whenever it is played. */
static uint64_t play(uint64_t number)
{
    schedule = number;
    seed = number * 2654435761u + 12345;
    trace = 0;
    sim_batched = number % 2;
    memset(model, 0, sizeof model);
    flying_count = 0;
    memset(asking, 0, sizeof asking);
    rig_folder(folder, sizeof folder);
    vfs_fault_lie(lies);
    if (rig_open(&rig, folder, &options) != 0)
        exit(2);
    cold_forget();
    start_cold();
    for (int i = 0; i < ACTIONS && !broken; i++)
        act();
    vfs_fault_mend();
    if (!broken)
        act_crash();
    vfs_fault_lie(false);
    if (!canary)
        check_memories();
    else if (!broken)
        end_all(0, false);
    expect(!cold_wrong(), cold_wrong());
    rig_folder_drop(folder);
    mix(model, sizeof model);
    mix(&seed, sizeof seed);
    mix(&(uint64_t){cold_trace()}, sizeof(uint64_t));
    return trace;
}

static void set_canary(const char *name)
{
    canary = *name;
    lies = strcmp(name, "disk") == 0;
    cold_plant(strcmp(name, "stream") == 0  ? CANARY_STREAM
               : strcmp(name, "place") == 0 ? CANARY_PLACE
                                            : CANARY_NONE);
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 300;
    uint64_t messages = 0, unsure = 0, twice = 0, all = 0;

    set_canary(argc > 3 ? argv[3] : "");
    if (!sim_engine_open()) {
        fprintf(stderr, "sim: no kernels\n");
        return 1;
    }
    say_level_set((enum say_level)(SAY_ERROR + 1));
    mallopt(M_MMAP_THRESHOLD, 1 << 18); /* large ones are the kernel's zeros each time */
    vfs_fault_install();
    files = files_real;
    files.sync = no_sync;
    for (uint64_t i = first; i < first + count && !lost; i++) {
        uint64_t once = play(i);

        if (!canary && i % AGAIN == 0 && ++twice)
            expect(play(i) == once, "played again it is another: something is not of the seed");
        all ^= once;
        for (uint32_t j = 0; j < STREAMS; j++) {
            messages += model[j].count;
            unsure += model[j].unsure;
        }
    }
    if (canary) {
        printf("the canary was %s\n", lost ? "found" : "NOT found");
        return lost ? 0 : 1;
    }
    printf("%" PRIu64 " schedules from %" PRIu64 ", %" PRIu64 " messages kept: acked and lost 0, "
           "memories wrong 0 (%" PRIu64 " not told apart); %" PRIu64
           " played twice: the same; trace %016" PRIx64 "\n",
           count, first, messages, unsure, twice, all);
    printf("%" PRIu64 " branches, %" PRIu64 " removals, %" PRIu64 " trims\n",
           change_counts.branches, change_counts.removals, change_counts.trims);
    printf("cold segments: %" PRIu64 " put (again as another 0), %" PRIu64
           " fetched and right, %" PRIu64 " merged, %" PRIu64 " missing, %" PRIu64 " faults\n",
           cold_counts.put, cold_counts.fetched, cold_counts.merged, cold_counts.missing,
           cold_counts.faults);
    return 0;
}
