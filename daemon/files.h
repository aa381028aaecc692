/* files: the file calls that must be able to fail in a test. One table; files_real is the kernel's.
 */
#ifndef SILT_DAEMON_FILES_H
#define SILT_DAEMON_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* As the system's calls of the same name, but a negative errno instead of -1. */
struct files {
    int (*open)(void *user, const char *path, int flags);
    ssize_t (*read)(void *user, int fd, void *bytes, size_t count, off_t at);
    ssize_t (*write)(void *user, int fd, const void *bytes, size_t count, off_t at);
    int (*sync)(void *user, int fd);
    int (*close)(void *user, int fd);
    int (*rename)(void *user, const char *from, const char *to);
    int (*unlink)(void *user, const char *path);
    void *user;
};
extern const struct files files_real;

/* All of it: goes on after a short one. 0 or a negative errno; -EBADMSG: the file ends before. */
int files_read_all(const struct files *files, int fd, void *bytes, size_t count, off_t at);
int files_write_all(const struct files *files, int fd, const void *bytes, size_t count, off_t at);
/* Makes the names in a folder durable. */
int files_sync_folder(const struct files *files, const char *path);

#endif
