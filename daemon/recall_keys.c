/* Pages are whole blocks of the disk; the last one is written again as it fills. */
#include "daemon/recall_keys.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "stream/ring.h"

/* Two megabytes under way: a disk that takes long for a read takes as long for many. */
enum { READ_PAGES = 32, READS = 16, KEY_VERSION = 1 };
/* Of fewer than BOUND_KEYS each is scored: a bound takes time to begin. */
enum { BOUND_KEYS = 2048, SAMPLE_KEYS = 256 };
#define KEY_MAGIC 0x31474b544c4953u /* "SILTKG1" */

struct page {
    uint64_t hash; /* of all behind it */
    uint64_t magic;
    uint64_t model_fingerprint, stream_id;
    uint64_t chunk; /* the first */
    uint32_t version, count;
    uint16_t token_count[RECALL_PAGE_KEYS + 1];
    uint16_t token[RECALL_PAGE_KEYS][RECALL_KEY_TOKENS]; /* distinct, rising */
    uint8_t rest[DISK_ALIGN - 64 - RECALL_PAGE_KEYS * RECALL_KEY_TOKENS * 2];
};
_Static_assert(sizeof(struct page) == DISK_ALIGN, "a page is one block");

struct key_file {
    bool used;
    uint32_t slot; /* of the disk */
    uint64_t stream_id;
    uint64_t chunks;   /* that have a key */
    bool dirty;        /* the last page is not on disk as it is here */
    struct page *last; /* the page that fills; count 0: none yet */
};

/* What keys score at most for one question. */
struct bound {
    const uint8_t *table; /* the question's */
    bool used;
    uint32_t sampled;                  /* keys */
    uint32_t sum[RECALL_QUERY_TOKENS]; /* of the best that each of them has */
    uint8_t base[RECALL_QUERY_TOKENS]; /* the mean of it */
    uint32_t base_sum, known;
    uint16_t over[1 << 16]; /* [known] by token: how much nearer than the base it is */
};

struct recall_keys {
    uint64_t model_fingerprint;
    struct disk disk;
    bool direct;
    struct bound bound;
    struct page *reads; /* [READS][READ_PAGES] */
    struct disk_op read[READS];
    struct key_file file[RECALL_KEYS_OPEN];
};

static size_t buffers_bytes(void)
{
    return (size_t)(READS * READ_PAGES + RECALL_KEYS_OPEN) * sizeof(struct page);
}

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

size_t recall_keys_bytes(void)
{
    return DISK_ALIGN + buffers_bytes() + round_up(sizeof(struct recall_keys), 64) +
           disk_engine_bytes();
}

int recall_keys_open(struct recall_keys **out, uint64_t model_fingerprint, void *memory)
{
    uint8_t *buffers = (void *)round_up((uintptr_t)memory, DISK_ALIGN);
    struct recall_keys *k = (void *)(buffers + buffers_bytes());
    void *engine_memory = (uint8_t *)k + round_up(sizeof *k, 64);
    struct disk_engine *engine;
    int code;

    *out = NULL;
    *k = (struct recall_keys){.model_fingerprint = model_fingerprint, .reads = (void *)buffers};
    for (int i = 0; i < RECALL_KEYS_OPEN; i++)
        k->file[i].last = k->reads + READS * READ_PAGES + i;
    code = disk_engine_uring(&engine, engine_memory, buffers, buffers_bytes(), -1);
    k->direct = !code;
    if (code)
        code = disk_engine_plain(&engine, engine_memory);
    if (code)
        return code;
    disk_init(&k->disk, engine);
    *out = k;
    return 0;
}

/* Where the engine itself failed amid a search its reads are under way still, into our buffers:
 * they end first. */
static int settle(struct recall_keys *k)
{
    struct disk_op *ended[READS];

    while (!disk_idle(&k->disk))
        if (!disk_reap(&k->disk, ended, READS, true))
            return -EIO;
    return 0;
}

void recall_keys_close(struct recall_keys **keys)
{
    struct recall_keys *k = *keys;

    if (!k)
        return;
    for (uint32_t i = 0; i < RECALL_KEYS_OPEN; i++)
        recall_file_close(k, i);
    if (!settle(k))
        k->disk.engine->close(k->disk.engine);
    *keys = NULL;
}

struct disk *recall_keys_disk(struct recall_keys *k)
{
    return &k->disk;
}

/* ---- pages ---- */

static uint64_t page_hash(const struct page *page)
{
    return XXH3_64bits(&page->magic, sizeof *page - sizeof page->hash);
}

static bool page_good(const struct recall_keys *k, const struct key_file *f,
                      const struct page *page, uint64_t number)
{
    if (page->magic != KEY_MAGIC || page->version != KEY_VERSION ||
        page->model_fingerprint != k->model_fingerprint || page->stream_id != f->stream_id ||
        page->chunk != number * RECALL_PAGE_KEYS || page->count < 1 ||
        page->count > RECALL_PAGE_KEYS || page->hash != page_hash(page))
        return false;
    for (uint32_t i = 0; i < page->count; i++)
        if (page->token_count[i] > RECALL_KEY_TOKENS)
            return false;
    return true;
}

static void page_begin(const struct recall_keys *k, struct key_file *f)
{
    memset(f->last, 0, sizeof *f->last);
    f->last->magic = KEY_MAGIC;
    f->last->version = KEY_VERSION;
    f->last->model_fingerprint = k->model_fingerprint;
    f->last->stream_id = f->stream_id;
    f->last->chunk = f->chunks;
}

static int page_io(struct recall_keys *k, const struct key_file *f, enum disk_kind kind,
                   uint64_t number)
{
    struct disk_op op = {.kind = kind,
                         .file = f->slot,
                         .bytes = (uint8_t *)f->last,
                         .count = sizeof *f->last,
                         .offset = number * sizeof *f->last};
    int code = settle(k);

    if (!code)
        code = disk_run(&k->disk, &op);
    return code ? code : op.done == op.count ? 0 : -EIO;
}

/* ---- files ---- */

/* Where the file is good: from its end back, which is what a crash may have torn. */
static void find_end(struct recall_keys *k, struct key_file *f, uint64_t pages)
{
    f->chunks = 0;
    for (; pages; pages--) {
        if (page_io(k, f, DISK_READ, pages - 1) || !page_good(k, f, f->last, pages - 1))
            continue;
        f->chunks = f->last->chunk + f->last->count;
        if (f->last->count == RECALL_PAGE_KEYS)
            f->last->count = 0;
        return;
    }
    f->last->count = 0;
}

int64_t recall_file_open(struct recall_keys *k, uint32_t file, const char *path, uint64_t stream_id)
{
    struct key_file *f = &k->file[file];
    int flags = O_RDWR | O_CREAT | O_CLOEXEC;
    int fd = k->direct ? open(path, flags | O_DIRECT, 0600) : -1;
    struct stat status;
    int slot;

    assert(file < RECALL_KEYS_OPEN && !f->used);
    if (fd < 0)
        fd = open(path, flags, 0600);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &status) != 0) {
        int code = -errno;

        close(fd);
        return code;
    }
    slot = disk_file_add(&k->disk, fd);
    if (slot < 0) {
        close(fd);
        return slot;
    }
    f->used = true;
    f->slot = (uint32_t)slot;
    f->stream_id = stream_id;
    f->dirty = false;
    find_end(k, f, (uint64_t)status.st_size / sizeof *f->last);
    if (!f->chunks && status.st_size && ftruncate(fd, 0) != 0) {
        recall_file_close(k, file);
        return -EIO;
    }
    return (int64_t)f->chunks;
}

void recall_file_close(struct recall_keys *k, uint32_t file)
{
    struct key_file *f = &k->file[file];

    if (!f->used)
        return;
    (void)settle(k);
    disk_file_drop(&k->disk, f->slot);
    f->used = false;
}

static int compare(const void *a, const void *b)
{
    return *(const uint16_t *)a - *(const uint16_t *)b;
}

int recall_file_add(struct recall_keys *k, uint32_t file, uint64_t chunk, const int32_t *tokens,
                    uint32_t count)
{
    struct key_file *f = &k->file[file];
    uint16_t sorted[2 * RECALL_KEY_TOKENS], *out;
    uint32_t n = count < 2 * RECALL_KEY_TOKENS ? count : 2 * RECALL_KEY_TOKENS, distinct = 0;

    if (!f->used || chunk != f->chunks)
        return -EINVAL;
    if (!f->last->count)
        page_begin(k, f);
    for (uint32_t i = 0; i < n; i++)
        sorted[i] = (uint16_t)tokens[i];
    qsort(sorted, n, sizeof *sorted, compare);
    out = f->last->token[f->last->count];
    for (uint32_t i = 0; i < n && distinct < RECALL_KEY_TOKENS; i++)
        if (!i || sorted[i] != sorted[i - 1])
            out[distinct++] = sorted[i];
    f->last->token_count[f->last->count++] = (uint16_t)distinct;
    f->chunks++;
    f->dirty = true;
    return f->last->count == RECALL_PAGE_KEYS ? recall_file_write(k, file) : 0;
}

int recall_file_write(struct recall_keys *k, uint32_t file)
{
    struct key_file *f = &k->file[file];
    int code;

    if (!f->used || !f->dirty)
        return 0;
    f->last->hash = page_hash(f->last);
    code = page_io(k, f, DISK_WRITE, f->last->chunk / RECALL_PAGE_KEYS);
    f->dirty = false;
    if (f->last->count == RECALL_PAGE_KEYS)
        f->last->count = 0;
    return code;
}

/* Whole pages; a file system that cannot give back a part of a file keeps it. */
uint64_t recall_file_trim(struct recall_keys *k, uint32_t file, uint64_t chunk)
{
    struct key_file *f = &k->file[file];
    uint64_t page = chunk / RECALL_PAGE_KEYS;

    if (!f->used)
        return 0;
    if (f->chunks < page * RECALL_PAGE_KEYS) {
        f->chunks = page * RECALL_PAGE_KEYS;
        f->last->count = 0;
        f->dirty = false;
    }
    if (page)
        (void)fallocate(k->disk.fd[f->slot], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                        (off_t)(page * sizeof *f->last));
    return f->chunks;
}

/* ---- search ---- */

/* The best so far, best first. Chunks come in rising order, so an equal one goes behind. */
struct best {
    struct recall_hit *hits;
    uint32_t count, max;
};

static void keep(struct best *best, uint64_t chunk, uint32_t score)
{
    uint32_t at = best->count;

    if (!score || (best->count == best->max && score <= best->hits[best->max - 1].score))
        return;
    if (at == best->max)
        at--;
    else
        best->count++;
    for (; at && best->hits[at - 1].score < score; at--)
        best->hits[at] = best->hits[at - 1];
    best->hits[at] = (struct recall_hit){chunk, score};
}

static void begin_bound(struct bound *b, const uint8_t *table, uint64_t keys)
{
    b->table = table;
    b->used = keys >= BOUND_KEYS;
    b->sampled = b->base_sum = b->known = 0;
    memset(b->sum, 0, sizeof b->sum);
}

/* Any base is right; about one token of a key being nearer passes over the most keys. */
static void sample_key(struct bound *b, const uint16_t *tokens, uint32_t count)
{
    uint8_t best[RECALL_QUERY_TOKENS] = {0};

    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *near = b->table + (size_t)tokens[i] * RECALL_QUERY_TOKENS;

        for (uint32_t j = 0; j < RECALL_QUERY_TOKENS; j++)
            best[j] = near[j] > best[j] ? near[j] : best[j];
    }
    for (uint32_t j = 0; j < RECALL_QUERY_TOKENS; j++)
        b->sum[j] += best[j];
    if (++b->sampled < SAMPLE_KEYS)
        return;
    for (uint32_t j = 0; j < RECALL_QUERY_TOKENS; j++) {
        b->base[j] = (uint8_t)(b->sum[j] / SAMPLE_KEYS);
        b->base_sum += b->base[j];
    }
}

static uint16_t find_over(const struct bound *b, const uint8_t *near)
{
    uint8_t best[RECALL_QUERY_TOKENS];
    uint32_t sum = 0;

    for (uint32_t j = 0; j < RECALL_QUERY_TOKENS; j++)
        best[j] = near[j] > b->base[j] ? near[j] : b->base[j];
    for (uint32_t j = 0; j < RECALL_QUERY_TOKENS; j++)
        sum += best[j];
    return (uint16_t)(sum - b->base_sum);
}

/* A key has, of each of the question's tokens, at most the base and all that its tokens are nearer:
 * one number of each to look up in place of RECALL_QUERY_TOKENS, and nineteen of twenty keys are
 * passed over. */
static uint32_t score_at_most(struct bound *b, const uint16_t *tokens, uint32_t count)
{
    uint32_t score = b->base_sum;

    /* They rise, and the table goes as far: what lies before the last is there, too. */
    for (; count && b->known <= tokens[count - 1]; b->known++)
        b->over[b->known] = find_over(b, b->table + (size_t)b->known * RECALL_QUERY_TOKENS);
    for (uint32_t i = 0; i < count; i++)
        score += b->over[tokens[i]];
    return score;
}

/* Chunks [from, end). */
struct range {
    uint64_t from, end;
};

static void score_page(struct bound *b, const struct page *page, const struct range *range,
                       struct best *best)
{
    uint32_t first = page->chunk < range->from ? (uint32_t)(range->from - page->chunk) : 0;

    for (uint32_t i = first; i < page->count && page->chunk + i < range->end; i++) {
        const uint16_t *tokens = page->token[i];
        uint32_t count = page->token_count[i];

        if (b->used && b->sampled < SAMPLE_KEYS)
            sample_key(b, tokens, count);
        else if (b->used && best->count == best->max &&
                 score_at_most(b, tokens, count) <= best->hits[best->max - 1].score)
            continue;
        keep(best, page->chunk + i, recall_score(b->table, tokens, count));
    }
}

/* A run of pages, READ_PAGES at most, in one of the buffers. */
static void start_read(struct recall_keys *k, const struct key_file *f, struct disk_op *op,
                       uint32_t buffer, uint64_t page, uint64_t pages)
{
    uint64_t count = pages - page < READ_PAGES ? pages - page : READ_PAGES;

    *op = (struct disk_op){.kind = DISK_READ,
                           .file = f->slot,
                           .bytes = (uint8_t *)(k->reads + (size_t)buffer * READ_PAGES),
                           .count = count * sizeof(struct page),
                           .offset = page * sizeof(struct page)};
    disk_start(&k->disk, op);
}

static int score_run(struct recall_keys *k, const struct key_file *f, const struct disk_op *op,
                     const struct range *range, struct best *best)
{
    const struct page *page = (const void *)op->bytes;

    if (op->result || op->done != op->count)
        return op->result ? op->result : -EBADMSG;
    for (uint64_t i = 0; i < op->count / sizeof *page; i++) {
        if (!page_good(k, f, page + i, op->offset / sizeof *page + i))
            return -EBADMSG;
        score_page(&k->bound, page + i, range, best);
    }
    return 0;
}

/* Reads run ahead, READS of them; they are scored in order, so that equal scores always come out
 * the same. */
static int score_pages(struct recall_keys *k, const struct key_file *f, const struct range *range,
                       struct best *best)
{
    struct disk_op *op = k->read, *ended[READS];
    bool done[READS] = {false};
    uint64_t first = range->from / RECALL_PAGE_KEYS;
    uint64_t pages = (range->end + RECALL_PAGE_KEYS - 1) / RECALL_PAGE_KEYS;
    uint64_t started = 0, scored = 0, runs = (pages - first + READ_PAGES - 1) / READ_PAGES;
    int code = settle(k);

    if (code)
        return code;
    while (scored < runs || !disk_idle(&k->disk)) {
        for (; !code && started < runs && started < scored + READS; started++)
            start_read(k, f, &op[started % READS], (uint32_t)(started % READS),
                       first + started * READ_PAGES, pages);
        if (!disk_idle(&k->disk)) {
            uint32_t n = disk_reap(&k->disk, ended, READS, true);

            if (!n)
                return -EIO; /* the engine itself fails: settle */
            for (uint32_t i = 0; i < n; i++)
                done[ended[i] - op] = true;
        }
        for (; !code && scored < started && done[scored % READS]; scored++) {
            done[scored % READS] = false;
            code = score_run(k, f, &op[scored % READS], range, best);
        }
        if (code && disk_idle(&k->disk))
            break;
    }
    return code;
}

int recall_file_find(struct recall_keys *k, uint32_t file, const uint8_t *table,
                     uint64_t chunk_from, uint64_t chunk_end, struct recall_hit *hits,
                     uint32_t hit_max)
{
    struct key_file *f = &k->file[file];
    struct best best = {.hits = hits, .max = hit_max};
    struct range range = {chunk_from, chunk_end};
    int code = recall_file_write(k, file);

    if (code || !f->used)
        return code ? code : -EINVAL;
    range.end = chunk_end < f->chunks ? chunk_end : f->chunks;
    if (range.from >= range.end)
        return 0;
    begin_bound(&k->bound, table, range.end - range.from);
    code = score_pages(k, f, &range, &best);
    return code ? code : (int)best.count;
}
