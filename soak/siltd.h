/* A siltd of one's own for a soak: started on a private socket and data folder, watched, stopped.
 */
#ifndef SILT_SOAK_SILTD_H
#define SILT_SOAK_SILTD_H

#include <stdint.h>
#include <sys/types.h>

struct siltd {
    pid_t pid;
    char folder[96]; /* holds data, socket and log; removed at stop */
    char endpoint[128];
};

/* siltd's options of the same names, as text; NULL: its own default. */
struct siltd_options {
    const char *model, *adapter, *device, *threads, *disk;
};

/* Returns 0 or a negative errno with a sentence on stderr. Waits until it listens. */
int siltd_start(struct siltd *out, const char *program, const struct siltd_options *options);
/* SIGTERM, then its exit status: 0 is a clean end. Removes the folder. */
int siltd_stop(struct siltd *siltd);
/* Bytes of memory that the kernel counts as resident, 0: it is gone. */
uint64_t siltd_resident_bytes(const struct siltd *siltd);
/* Seconds of processor that it has used, of all threads. */
double siltd_cpu_seconds(const struct siltd *siltd);

#endif
