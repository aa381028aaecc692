/*
 * pages: what SQLite does not promise, that what it reads is what it wrote.
 *
 * A VFS over the system's. Each page of a database ends in a hash of the rest and of its number,
 * checked whenever the page is read: rot, or a page that went astray, is an error
 * (SQLITE_IOERR_DATA), never another text. Pages in the write-ahead log have SQLite's own sums, but
 * where the log is damaged SQLite ends it there without a word, as after a crash; so
 * DATA/journal.db-synced says up to where the journal's log was synced, which is what has been
 * acked, and pages_log_check says whether all of it is still there.
 *
 * The witness never says more than is on disk: it is written behind the sync and lowered, synced
 * itself, before that part of the log is written over. Limits: pages of PAGES_BYTES.
 */
#ifndef SILT_DAEMON_PAGES_H
#define SILT_DAEMON_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include <sqlite3.h>

enum { PAGES_BYTES = 4096, PAGES_HASH_BYTES = 8 };
/* Of SQLite's write-ahead log: its own head, and that of each page in it. */
enum { LOG_HEAD_BYTES = 32, FRAME_HEAD_BYTES = 24, FRAME_BYTES = FRAME_HEAD_BYTES + PAGES_BYTES };

#define PAGES_VFS "silt"

/* Registers it over the VFS that is the default now. Any number of times. */
int pages_register(void);
/* Of a connection just opened with PAGES_VFS, before anything is read. */
int pages_reserve(sqlite3 *db);
/* By how much files of this VFS have become longer by writes since the process began, all together;
 * what is cut off is not taken away again. Any thread. */
uint64_t pages_grown(void);
/* Before the journal is opened. 0; -EBADMSG: acked frames of its log are gone or damaged, said in
 * error with the way out. */
int pages_log_check(const char *database, char *error, size_t error_bytes);

/* What the witness holds; bytes 0: the log need hold nothing. */
struct pages_witness {
    uint8_t salt[8]; /* of the log's header: another one begins a new log */
    uint64_t bytes;  /* synced */
    uint64_t hash;   /* of the two */
};

#endif
