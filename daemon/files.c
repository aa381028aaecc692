#include "daemon/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int real_open(void *user, const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);

    (void)user;
    return fd < 0 ? -errno : fd;
}

static ssize_t real_read(void *user, int fd, void *bytes, size_t count, off_t at)
{
    ssize_t n = pread(fd, bytes, count, at);

    (void)user;
    return n < 0 ? -errno : n;
}

static ssize_t real_write(void *user, int fd, const void *bytes, size_t count, off_t at)
{
    ssize_t n = pwrite(fd, bytes, count, at);

    (void)user;
    return n < 0 ? -errno : n;
}

static int real_sync(void *user, int fd)
{
    (void)user;
    return fsync(fd) != 0 ? -errno : 0;
}

static int real_close(void *user, int fd)
{
    (void)user;
    return close(fd) != 0 ? -errno : 0;
}

static int real_rename(void *user, const char *from, const char *to)
{
    (void)user;
    return rename(from, to) != 0 ? -errno : 0;
}

static int real_unlink(void *user, const char *path)
{
    (void)user;
    return unlink(path) != 0 ? -errno : 0;
}

const struct files files_real = {.open = real_open,
                                 .read = real_read,
                                 .write = real_write,
                                 .sync = real_sync,
                                 .close = real_close,
                                 .rename = real_rename,
                                 .unlink = real_unlink};

int files_read_all(const struct files *files, int fd, void *bytes, size_t count, off_t at)
{
    uint8_t *to = bytes;

    while (count) {
        ssize_t n = files->read(files->user, fd, to, count, at);

        if (n == -EINTR)
            continue;
        if (n < 0)
            return (int)n;
        if (n == 0)
            return -EBADMSG;
        to += n;
        at += n;
        count -= (size_t)n;
    }
    return 0;
}

int files_write_all(const struct files *files, int fd, const void *bytes, size_t count, off_t at)
{
    const uint8_t *from = bytes;

    while (count) {
        ssize_t n = files->write(files->user, fd, from, count, at);

        if (n == -EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? (int)n : -EIO;
        from += n;
        at += n;
        count -= (size_t)n;
    }
    return 0;
}

int files_sync_folder(const struct files *files, const char *path)
{
    int fd = files->open(files->user, path, O_RDONLY | O_DIRECTORY);
    int result;

    if (fd < 0)
        return fd;
    result = files->sync(files->user, fd);
    files->close(files->user, fd);
    return result;
}
