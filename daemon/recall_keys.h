/*
 * recall_keys: which chunks of a stream a question is about, by meaning.
 *
 * A chunk's key is the set of its tokens; all keys of a stream lie in one file beside its text
 * index, in pages that check themselves. A question brings a table of how near each token of the
 * vocabulary is (stream.h, fork_recall_table); a search reads the whole file through the disk seam
 * (io_uring and O_DIRECT where there are) and keeps the best. What is lost or damaged is made again
 * from the journal. One thread, the search thread, uses all of it.
 * Limits: RECALL_KEYS_OPEN files at a time; a vocabulary of at most 65,536.
 */
#ifndef SILT_DAEMON_RECALL_KEYS_H
#define SILT_DAEMON_RECALL_KEYS_H

#include <stddef.h>
#include <stdint.h>

#include "stream/stream.h"

enum {
    RECALL_KEY_TOKENS = 256, /* distinct ones of a chunk that count */
    RECALL_PAGE_KEYS = 7,
    RECALL_KEYS_OPEN = 4,
};

struct recall_hit {
    uint64_t chunk;
    uint32_t score; /* larger is nearer */
};

struct recall_keys;
/* Memory needs no more than 64-byte alignment. */
size_t recall_keys_bytes(void);
int recall_keys_open(struct recall_keys **out, uint64_t model_fingerprint, void *memory);
void recall_keys_close(struct recall_keys **keys);
/* What it reads and writes through, for tests that put a disk that fails before it. */
struct disk;
struct disk *recall_keys_disk(struct recall_keys *keys);

/* Opens the file at path, made if it is not there, in place `file` (under RECALL_KEYS_OPEN), which
 * must be free. Chunks from 0 on that have a key, or negative errno. A file of another model or
 * stream, or with a damaged end, begins anew where it is good. */
int64_t recall_file_open(struct recall_keys *keys, uint32_t file, const char *path,
                         uint64_t stream_id);
void recall_file_close(struct recall_keys *keys, uint32_t file);
/* The key of the next chunk, from its tokens in any order. It is on disk with recall_file_write.
 * -EINVAL: not the next chunk. */
int recall_file_add(struct recall_keys *keys, uint32_t file, uint64_t chunk, const int32_t *tokens,
                    uint32_t count);
int recall_file_write(struct recall_keys *keys, uint32_t file);
/* Keys of chunks before `chunk` are not needed any more: what they take is given back, and where
 * they have yet to be made they are not. Chunks from 0 on that have a key or need none. */
uint64_t recall_file_trim(struct recall_keys *keys, uint32_t file, uint64_t chunk);
/* The best of chunks [chunk_from, chunk_end), best first, older before newer where they are equal:
 * at most hit_max, how many. -EBADMSG: a page is damaged, close the file and remove it. */
int recall_file_find(struct recall_keys *keys, uint32_t file, const uint8_t *table,
                     uint64_t chunk_from, uint64_t chunk_end, struct recall_hit *hits,
                     uint32_t hit_max);

#endif
