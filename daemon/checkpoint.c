#include "daemon/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const char magic[8] = {'S', 'I', 'L', 'T', 'C', 'K', 'P', 'T'};

struct checkpoint_head {
    char magic[8];
    uint32_t version, head_bytes;
    uint64_t model_fingerprint, adapter_fingerprint;
    uint64_t stream_id, tokens;
    uint64_t state_bytes, state_hash;
    uint64_t head_hash; /* of all before */
};
_Static_assert(sizeof(struct checkpoint_head) <= CHECKPOINT_HEAD_BYTES, "the head fits its block");

enum { NAME_MAX_BYTES = PATH_BYTES_MAX + 64 };

static void folder_of(const struct checkpoints *at, uint64_t stream_id, char *out)
{
    snprintf(out, NAME_MAX_BYTES, "%s/%016" PRIx64, at->folder, stream_id);
}

static void path_of(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens, char *out)
{
    snprintf(out, NAME_MAX_BYTES, "%s/%016" PRIx64 "/%016" PRIx64, at->folder, stream_id, tokens);
}

/* What a name in a stream's folder says; origin: whose it was made. False: it is no checkpoint. */
static bool parse_name(const char *name, uint64_t stream_id, uint64_t *tokens, uint64_t *origin)
{
    char *end, *last;

    *tokens = strtoull(name, &end, 16);
    *origin = stream_id;
    if (end != name + 16)
        return false;
    if (!*end)
        return true;
    *origin = strtoull(end + 1, &last, 16);
    return *end == '.' && last == end + 17 && !*last;
}

/* The path of the stream's checkpoint at `tokens`, its own or one it has of another. Returns the
 * stream that made it. */
static uint64_t find_path(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens,
                          char *out)
{
    char folder[NAME_MAX_BYTES];
    struct dirent *entry;
    uint64_t found, origin, result = stream_id;
    DIR *list;

    path_of(at, stream_id, tokens, out);
    folder_of(at, stream_id, folder);
    list = opendir(folder);
    while (list && (entry = readdir(list)))
        if (parse_name(entry->d_name, stream_id, &found, &origin) && found == tokens) {
            if (origin != stream_id)
                snprintf(out, NAME_MAX_BYTES, "%s/%016" PRIx64 "/%.40s", at->folder, stream_id,
                         entry->d_name);
            result = origin;
            if (origin == stream_id)
                break; /* its own comes first */
        }
    if (list)
        closedir(list);
    if (result == stream_id)
        path_of(at, stream_id, tokens, out);
    return result;
}

static uint64_t head_hash(const struct checkpoint_head *head)
{
    return XXH3_64bits(head, offsetof(struct checkpoint_head, head_hash));
}

static int make_folder(const struct checkpoints *at, uint64_t stream_id, char *folder)
{
    folder_of(at, stream_id, folder);
    if (mkdir(at->folder, 0700) != 0 && errno != EEXIST)
        return -errno;
    if (mkdir(folder, 0700) == 0)
        return files_sync_folder(at->files, at->folder);
    return errno == EEXIST ? 0 : -errno;
}

static int write_file(const struct checkpoints *at, const char *path,
                      const struct checkpoint_head *head, const void *state)
{
    static const uint8_t padding[CHECKPOINT_HEAD_BYTES - sizeof *head];
    const struct files *files = at->files;
    int fd = files->open(files->user, path, O_WRONLY | O_CREAT | O_TRUNC);
    int result, closed;

    if (fd < 0)
        return fd;
    result = files_write_all(files, fd, head, sizeof *head, 0);
    if (!result)
        result = files_write_all(files, fd, padding, sizeof padding, sizeof *head);
    if (!result)
        result = files_write_all(files, fd, state, head->state_bytes, CHECKPOINT_HEAD_BYTES);
    if (!result)
        result = files->sync(files->user, fd);
    closed = files->close(files->user, fd);
    return result ? result : closed;
}

int checkpoint_write(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens,
                     const void *state, size_t bytes)
{
    struct checkpoint_head head = {.version = CHECKPOINT_VERSION,
                                   .head_bytes = CHECKPOINT_HEAD_BYTES,
                                   .model_fingerprint = at->model_fingerprint,
                                   .adapter_fingerprint = at->adapter_fingerprint,
                                   .stream_id = stream_id,
                                   .tokens = tokens,
                                   .state_bytes = bytes,
                                   .state_hash = XXH3_64bits(state, bytes)};
    char folder[NAME_MAX_BYTES], path[NAME_MAX_BYTES], temporary[NAME_MAX_BYTES + 8];
    int result = make_folder(at, stream_id, folder);

    if (result)
        return result;
    memcpy(head.magic, magic, sizeof magic);
    head.head_hash = head_hash(&head);
    path_of(at, stream_id, tokens, path);
    snprintf(temporary, sizeof temporary, "%s.new", path);
    result = write_file(at, temporary, &head, state);
    if (!result)
        result = at->files->rename(at->files->user, temporary, path);
    if (!result)
        return files_sync_folder(at->files, folder);
    at->files->unlink(at->files->user, temporary);
    return result;
}

static bool head_valid(const struct checkpoints *at, const struct checkpoint_head *head,
                       uint64_t stream_id, uint64_t tokens)
{
    return memcmp(head->magic, magic, sizeof magic) == 0 && head->version == CHECKPOINT_VERSION &&
           head->head_bytes == CHECKPOINT_HEAD_BYTES && head->head_hash == head_hash(head) &&
           head->model_fingerprint == at->model_fingerprint &&
           head->adapter_fingerprint == at->adapter_fingerprint && head->stream_id == stream_id &&
           head->tokens == tokens;
}

int checkpoint_read(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens, void *state,
                    size_t bytes_max, size_t *bytes)
{
    const struct files *files = at->files;
    struct checkpoint_head head;
    char path[NAME_MAX_BYTES];
    uint64_t origin = find_path(at, stream_id, tokens, path);
    int fd, result;

    fd = files->open(files->user, path, O_RDONLY);
    if (fd < 0)
        return fd;
    result = files_read_all(files, fd, &head, sizeof head, 0);
    if (!result && (!head_valid(at, &head, origin, tokens) || head.state_bytes > bytes_max))
        result = -EBADMSG;
    if (!result)
        result = files_read_all(files, fd, state, head.state_bytes, CHECKPOINT_HEAD_BYTES);
    if (!result && XXH3_64bits(state, head.state_bytes) != head.state_hash)
        result = -EBADMSG;
    if (!result)
        *bytes = head.state_bytes;
    files->close(files->user, fd);
    return result;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Of equal ones, which a branch and its parent may both have made, one stays. */
static uint32_t unique(uint64_t *tokens, uint32_t count)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < count; i++)
        if (!kept || tokens[kept - 1] != tokens[i])
            tokens[kept++] = tokens[i];
    return kept;
}

uint32_t checkpoint_list(const struct checkpoints *at, uint64_t stream_id, uint64_t *tokens)
{
    char folder[NAME_MAX_BYTES];
    struct dirent *entry;
    uint32_t count = 0;
    DIR *list;

    folder_of(at, stream_id, folder);
    list = opendir(folder);
    if (!list)
        return 0;
    while (count < CHECKPOINTS_SEEN_MAX && (entry = readdir(list))) {
        uint64_t origin;

        count += parse_name(entry->d_name, stream_id, &tokens[count], &origin);
    }
    closedir(list);
    qsort(tokens, count, sizeof *tokens, by_value);
    return unique(tokens, count);
}

int checkpoint_branch(const struct checkpoints *at, uint64_t parent, uint64_t branch,
                      uint64_t tokens_max)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(at, parent, tokens);
    char folder[NAME_MAX_BYTES], from[NAME_MAX_BYTES], to[NAME_MAX_BYTES];
    int result = checkpoint_cut(at, branch, 0);

    if (!result && count)
        result = make_folder(at, branch, folder);

    for (uint32_t i = 0; i < count && !result && tokens[i] <= tokens_max; i++) {
        uint64_t origin = find_path(at, parent, tokens[i], from);

        snprintf(to, sizeof to, "%s/%016" PRIx64 "/%016" PRIx64 ".%016" PRIx64, at->folder, branch,
                 tokens[i], origin);
        result = link(from, to) == 0 ? 0 : -errno;
    }
    return result || !count ? result : files_sync_folder(at->files, folder);
}

/* Which of count > CHECKPOINTS_MAX ascending positions to drop: the one whose loss widens a gap
 * least for its age; the last two and the first never go. */
static uint32_t find_stale(const uint64_t *tokens, uint32_t count)
{
    uint64_t newest = tokens[count - 1];
    double least = 0;
    uint32_t stale = 1;

    for (uint32_t i = 1; i + 2 < count; i++) {
        double gap = (double)(tokens[i + 1] - tokens[i - 1]);
        double widening = gap / (double)(newest - tokens[i] + 1);

        if (i == 1 || widening < least) {
            least = widening;
            stale = i;
        }
    }
    return stale;
}

/* Drops stale ones until at most `most` are left. Returns how many went. */
static uint32_t thin(const struct checkpoints *at, uint64_t stream_id, uint32_t most)
{
    uint64_t tokens[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(at, stream_id, tokens), before = count;

    while (count > most) {
        uint32_t stale = find_stale(tokens, count);
        char path[NAME_MAX_BYTES];

        find_path(at, stream_id, tokens[stale], path);
        if (at->files->unlink(at->files->user, path) != 0)
            break;
        count--;
        memmove(tokens + stale, tokens + stale + 1, (count - stale) * sizeof *tokens);
    }
    return before - count;
}

void checkpoint_thin(const struct checkpoints *at, uint64_t stream_id)
{
    (void)thin(at, stream_id, CHECKPOINTS_MAX);
}

uint32_t checkpoint_spare(const struct checkpoints *at)
{
    DIR *list = opendir(at->folder);
    struct dirent *entry;
    uint32_t gone = 0;

    while (list && !gone && (entry = readdir(list))) {
        char *end;
        uint64_t stream_id = strtoull(entry->d_name, &end, 16);

        if (strlen(entry->d_name) == 16 && !*end)
            gone = thin(at, stream_id, CHECKPOINTS_LEAST);
    }
    if (list)
        closedir(list);
    return gone;
}

void checkpoint_trim(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens)
{
    uint64_t list[CHECKPOINTS_SEEN_MAX];
    uint32_t count = checkpoint_list(at, stream_id, list);
    char path[NAME_MAX_BYTES];

    for (uint32_t i = 0; i < count && list[i] < tokens; i++) {
        find_path(at, stream_id, list[i], path);
        at->files->unlink(at->files->user, path);
    }
}

/* Zeros over a file before its last name goes: its blocks may lie on the disk for long. */
static int erase_file(const struct files *files, const char *path)
{
    static const uint8_t zeros[1 << 16];
    struct stat status;
    int fd = files->open(files->user, path, O_WRONLY), result = 0;

    if (fd < 0)
        return fd;
    if (fstat(fd, &status) != 0)
        result = -errno;
    for (off_t from = 0; !result && status.st_nlink == 1 && from < status.st_size;
         from += (off_t)sizeof zeros) {
        off_t left = status.st_size - from;

        result = files_write_all(files, fd, zeros,
                                 left < (off_t)sizeof zeros ? (size_t)left : sizeof zeros, from);
    }
    if (!result)
        result = files->sync(files->user, fd);
    files->close(files->user, fd);
    return result ? result : files->unlink(files->user, path);
}

/* Every file of the folder of a position past `tokens`, half-written ones too; one that stays keeps
 * no other. */
static int empty_folder(const struct checkpoints *at, const char *folder, uint64_t tokens)
{
    DIR *list = opendir(folder);
    struct dirent *entry;
    int result = 0;

    if (!list)
        return errno == ENOENT ? 0 : -errno;
    while ((entry = readdir(list))) {
        char path[2 * NAME_MAX_BYTES];
        int code;

        if (entry->d_name[0] == '.' || (tokens && strtoull(entry->d_name, NULL, 16) <= tokens))
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        code = erase_file(at->files, path);
        result = result ? result : code;
    }
    closedir(list);
    return result;
}

int checkpoint_cut(const struct checkpoints *at, uint64_t stream_id, uint64_t tokens)
{
    char folder[NAME_MAX_BYTES];
    int result;

    folder_of(at, stream_id, folder);
    result = empty_folder(at, folder, tokens);
    if (result)
        return result;
    if (tokens)
        return access(folder, F_OK) == 0 ? files_sync_folder(at->files, folder) : 0;
    if (rmdir(folder) != 0)
        return errno == ENOENT ? 0 : -errno;
    return files_sync_folder(at->files, at->folder);
}

/* What a crash left half written would lie there for ever: no name of it comes again. */
static int drop_halves(const struct checkpoints *at, uint64_t stream_id)
{
    char folder[NAME_MAX_BYTES], path[2 * NAME_MAX_BYTES];
    struct dirent *entry;
    int result = 0;
    DIR *list;

    folder_of(at, stream_id, folder);
    list = opendir(folder);
    if (!list)
        return -errno;
    while (!result && (entry = readdir(list))) {
        uint64_t tokens, origin;

        if (entry->d_name[0] == '.' || parse_name(entry->d_name, stream_id, &tokens, &origin))
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        result = erase_file(at->files, path);
    }
    closedir(list);
    return result;
}

int checkpoint_sweep(const struct checkpoints *at, checkpoint_known_fn *known, void *user)
{
    DIR *list = opendir(at->folder);
    struct dirent *entry;
    int result = 0;

    if (!list)
        return errno == ENOENT ? 0 : -errno;
    while ((entry = readdir(list))) {
        char *end;
        uint64_t stream_id = strtoull(entry->d_name, &end, 16);
        int code;

        if (strlen(entry->d_name) != 16 || *end)
            continue;
        code = known && known(user, stream_id) ? drop_halves(at, stream_id)
                                               : checkpoint_cut(at, stream_id, 0);
        result = result ? result : code;
    }
    closedir(list);
    return result;
}
