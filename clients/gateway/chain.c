/* chain: see chain.h. The file: a header of 32 bytes, then 16 bytes a message. */
#include "clients/gateway/chain.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY /* the state on the stack */
#include <xxhash.h>

struct chain_header {
    char magic[8];
    uint64_t created_us, doubt, tokens_before;
};
static const char magic[8] = "siltchn1";

static int write_all(int fd, const void *data, size_t bytes, off_t at)
{
    ssize_t n = pwrite(fd, data, bytes, at);

    if (n < 0)
        return -errno;
    return (size_t)n == bytes ? 0 : -ENOSPC;
}

static int header_write(struct chain *chain)
{
    struct chain_header header = {.created_us = chain->created_us,
                                  .doubt = chain->doubt,
                                  .tokens_before = chain->tokens_before};
    int r;

    memcpy(header.magic, magic, sizeof magic);
    r = write_all(chain->fd, &header, sizeof header, 0);
    return !r && fdatasync(chain->fd) ? -errno : r;
}

static off_t hash_at(uint64_t index)
{
    return (off_t)(sizeof(struct chain_header) + index * sizeof(struct chain_hash));
}

static int hash_read(const struct chain *chain, uint64_t index, struct chain_hash *out)
{
    ssize_t n = pread(chain->fd, out, sizeof *out, hash_at(index));

    return n == (ssize_t)sizeof *out ? 0 : n < 0 ? -errno : -EIO;
}

int chain_reset(struct chain *chain)
{
    chain->count = 0;
    chain->doubt = false;
    chain->last = (struct chain_hash){{0}};
    if (ftruncate(chain->fd, (off_t)sizeof(struct chain_header)))
        return -errno;
    return header_write(chain);
}

static int load(struct chain *chain, uint64_t created_us)
{
    struct chain_header header = {.doubt = 0};
    struct stat stat;

    if (fstat(chain->fd, &stat))
        return -errno;
    chain->created_us = created_us;
    if (pread(chain->fd, &header, sizeof header, 0) != sizeof header ||
        memcmp(header.magic, magic, sizeof magic) != 0 || header.created_us != created_us)
        return chain_reset(chain);
    chain->doubt = header.doubt != 0;
    chain->tokens_before = header.tokens_before;
    chain->count = ((uint64_t)stat.st_size - sizeof header) / sizeof(struct chain_hash);
    return chain->count ? hash_read(chain, chain->count - 1, &chain->last) : 0;
}

int chain_open(struct chain *chain, const char *folder, const char *stream, uint64_t created_us)
{
    char path[1280];
    int r;

    *chain = (struct chain){.fd = -1};
    if (snprintf(path, sizeof path, "%s/%s.chain", folder, stream) >= (int)sizeof path)
        return -ENAMETOOLONG;
    chain->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (chain->fd < 0)
        return -errno;
    r = flock(chain->fd, LOCK_EX | LOCK_NB) ? (errno == EWOULDBLOCK ? -EBUSY : -errno) : 0;
    if (!r)
        r = load(chain, created_us);
    if (r)
        chain_close(chain);
    return r;
}

void chain_close(struct chain *chain)
{
    if (chain->fd >= 0)
        close(chain->fd);
    chain->fd = -1;
}

/* Clients trim what they send back, so white space at either end does not count. */
static struct chain_hash hash_next(const struct chain_hash *before, const char *role,
                                   const char *content)
{
    XXH3_state_t state;
    XXH128_canonical_t canonical;
    struct chain_hash out;
    size_t bytes;

    while (isspace((unsigned char)*content))
        content++;
    bytes = strlen(content);
    while (bytes && isspace((unsigned char)content[bytes - 1]))
        bytes--;
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, before, sizeof *before);
    XXH3_128bits_update(&state, role, strlen(role) + 1);
    XXH3_128bits_update(&state, content, bytes);
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    memcpy(out.bytes, canonical.digest, sizeof out.bytes);
    return out;
}

int chain_match(const struct chain *chain, const struct message *messages, size_t count,
                size_t *differs)
{
    struct chain_hash hash = {{0}}, kept;

    for (size_t i = 0; i < chain->count; i++) {
        int r;

        *differs = i;
        if (i == count)
            return -ESTALE;
        hash = hash_next(&hash, messages[i].role, messages[i].content);
        r = hash_read(chain, i, &kept);
        if (r)
            return r;
        if (memcmp(&hash, &kept, sizeof hash) != 0)
            return -ESTALE;
    }
    return 0;
}

int chain_append(struct chain *chain, const char *role, const char *content)
{
    struct chain_hash hash = hash_next(&chain->last, role, content);
    int r = write_all(chain->fd, &hash, sizeof hash, hash_at(chain->count));

    if (r)
        return r;
    chain->last = hash;
    chain->count++;
    return 0;
}

int chain_begin(struct chain *chain, uint64_t tokens_before)
{
    chain->doubt = true;
    chain->tokens_before = tokens_before;
    return header_write(chain);
}

int chain_end(struct chain *chain)
{
    chain->doubt = false;
    return header_write(chain);
}
