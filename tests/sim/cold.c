#include "tests/sim/cold.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "stream/spill.h"
#include "tests/unit/disk_fault.h"

enum { STREAM_IDS = 64, CHUNKS = 512, TRIES = 200, EPOCH = 1, PLANTED_EVERY = 4 };

struct cold_counts cold_counts;
static struct cold_counts before; /* this schedule */
static struct spill *spill;
static void *memory;
static struct disk_fault fault;
static char cold_folder[128];
static float expected[STREAM_IDS][CHUNKS]; /* 0: has not left yet */
static enum cold_canary planted;
static uint64_t puts_planted;
static const char *wrong;

struct spill *cold_start(const char *folder)
{
    struct spill_options options = {.folder = folder,
                                    .streams_max = 4,
                                    .staging_max = 3,
                                    .fetches_max = 2,
                                    .dtype = SEGMENT_F16,
                                    .plain = true};
    size_t bytes = (spill_bytes(&sim_engine, &options) + 4095) / 4096 * 4096;
    char error[200];

    memory = aligned_alloc(4096, bytes);
    snprintf(cold_folder, sizeof cold_folder, "%s/segments", folder);
    if (!memory ||
        spill_open(&spill, &sim_engine, &options, memory, bytes, error, sizeof error) != 0)
        abort();
    disk_fault_init(&fault, &spill->disk, spill->shape.record_bytes);
    return spill;
}

/* Some file of some stream loses its end, or has a block of zeros in it. By name: a folder's order
 * is another on each machine. */
static uint64_t tear(const char *folder, uint64_t random)
{
    static const uint8_t zeros[4096];
    struct dirent **list;
    int count = scandir(folder, &list, NULL, alphasort);
    struct stat status;
    char path[512];
    int fd;

    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, list[i]->d_name);
        if (list[i]->d_name[0] != '.' && stat(path, &status) == 0) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            if (S_ISDIR(status.st_mode)) {
                random = tear(path, random);
            } else if (random >> 62 == 0 && status.st_size &&
                       (fd = open(path, O_RDWR | O_CLOEXEC)) >= 0) {
                off_t at = (off_t)((random >> 20) % (uint64_t)status.st_size) / 4096 * 4096;

                if (random >> 40 & 1 ? ftruncate(fd, at) != 0
                                     : pwrite(fd, zeros, sizeof zeros, at) != (ssize_t)sizeof zeros)
                    abort();
                close(fd);
            }
        }
        free(list[i]);
    }
    if (count >= 0)
        free(list);
    return random;
}

void cold_crash(uint64_t random, bool power)
{
    struct spill_stat stat;

    if (!spill)
        return;
    spill_stat(spill, &stat);
    cold_counts.merged += stat.segments_merged;
    for (int i = SEGMENT_MISSING; i < SEGMENT_FAULTS; i++)
        cold_counts.faults += stat.faults[i];
    disk_fault_set(&fault, power ? FAULT_TORN : FAULT_EIO, DISK_WRITE, 1);
    spill_close(&spill);
    free(memory);
    if (power)
        tear(cold_folder, random);
}

void cold_forget(void)
{
    memset(expected, 0, sizeof expected);
    before = cold_counts;
    wrong = NULL;
}

void cold_plant(enum cold_canary canary)
{
    planted = canary;
}

const char *cold_wrong(void)
{
    return wrong;
}

uint64_t cold_trace(void)
{
    uint64_t put = cold_counts.put - before.put, fetched = cold_counts.fetched - before.fetched;

    return XXH3_64bits_withSeed(expected, sizeof expected, put << 32 | fetched);
}

void cold_come(uint64_t stream_id)
{
    if (stream_id)
        spill_attach(spill, stream_id, EPOCH);
}

void cold_go(uint64_t stream_id)
{
    spill_detach(spill, stream_id);
}

/* All that leaves was acked, so whatever was lost or replayed since, a chunk leaves as it did. */
static void expect_chunk(uint64_t id, uint64_t chunk, float value)
{
    float *known = &expected[id][chunk];

    if (*known > 0 && *known != value)
        wrong = "a chunk leaves its ring again as another";
    *known = value;
}

void cold_leave(uint64_t id, const struct segment_view *segment)
{
    struct segment_view as = *segment;
    int result = -EAGAIN;

    if (!id || id >= STREAM_IDS || segment->number >= CHUNKS)
        return;
    if (planted && ++puts_planted % PLANTED_EVERY == 0) {
        id = planted == CANARY_STREAM ? 1 + id % 3 : id;
        if (planted == CANARY_PLACE && as.number)
            as.number--, as.token_from -= SIM_CHUNK, as.token_to -= SIM_CHUNK;
    }
    expect_chunk(id, segment->number, f16_to_f32(segment->rows[0]));
    for (int i = 0; i < TRIES && result == -EAGAIN; i++) {
        result = spill_put(spill, id, &as, 0, 0);
        if (result == -EAGAIN)
            spill_step(spill, true);
    }
    cold_counts.put += result == 0;
}

static void check_segment(uint64_t id, uint64_t asked, const struct cold_segment *segment)
{
    float least = INFINITY, most = 0, value = f16_to_f32(segment->rows[0]);

    for (uint64_t chunk = segment->token_from / SIM_CHUNK;
         chunk < segment->token_to / SIM_CHUNK && chunk < CHUNKS; chunk++) {
        least = fminf(least, expected[id][chunk]);
        most = fmaxf(most, expected[id][chunk]);
    }
    if (asked < segment->token_from / SIM_CHUNK || asked >= segment->token_to / SIM_CHUNK)
        wrong = "a cold segment of another chunk";
    if (!(value >= least - 0.02f && value <= most + 0.02f))
        wrong = "a cold segment that is another";
    for (int i = 1; i < SIM_VALUES; i++)
        if (segment->rows[i] != segment->rows[0])
            wrong = "a cold segment with rows of two";
    cold_counts.fetched++;
}

static void fetch(uint64_t id, uint64_t random)
{
    struct cold_segment segment[STREAM_RECALL_MAX];
    struct spill_fetch *f;
    uint64_t count = 0, chunk;

    while (count < CHUNKS && expected[id][count] > 0)
        count++;
    chunk = count ? random % count : 0;
    if (!count || spill_fetch(spill, id, &chunk, 1, &f) != 0)
        return;
    for (int i = 0; i < TRIES && !spill_fetched(f); i++)
        spill_step(spill, true);
    if (spill_fetched(f) && spill_segments(f, segment) == 1)
        check_segment(id, chunk, &segment[0]);
    else
        cold_counts.missing++;
    spill_release(&f);
}

void cold_act(uint64_t random, uint64_t stream_id)
{
    uint64_t more = random >> 8;

    switch (random % 8) {
    case 0:
        disk_fault_set(&fault, (enum disk_fault_kind)(more % FAULT_KINDS),
                       more >> 8 & 1 ? DISK_READ : DISK_WRITE, 1 + (uint32_t)(more >> 16) % 6);
        break;
    case 1:
        disk_fault_set(&fault, FAULT_NONE, DISK_READ, 0);
        break;
    case 2: /* so little that much is merged, or no limit */
        spill_limit(spill, more % 3 ? (8 + more % 24) * spill->shape.record_bytes : 0);
        break;
    case 3:
    case 4:
        for (uint64_t i = more % 5; i; i--)
            spill_step(spill, false);
        break;
    default:
        if (stream_id && stream_id < STREAM_IDS)
            fetch(stream_id, more);
    }
}
