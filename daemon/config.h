/* config: what siltd was asked to do, from the command line and an optional file of `key = value`.
 */
#ifndef SILT_DAEMON_CONFIG_H
#define SILT_DAEMON_CONFIG_H

#include "daemon/daemon.h"
#include "daemon/search.h"

enum meter_choice { METER_AUTO /* where it fits the plan */, METER_NO, METER_YES };

struct config {
    char listen[ENDPOINT_BYTES_MAX];         /* ipc:// */
    char listen_network[ENDPOINT_BYTES_MAX]; /* tcp://; empty: none */
    char data[PATH_BYTES_MAX];
    char model[PATH_BYTES_MAX];
    char adapter[PATH_BYTES_MAX]; /* empty: none */
    uint64_t memory_bytes;        /* 0: half of RAM or of the cgroup */
    uint64_t device_bytes;        /* of a GPU's memory; 0: what is free */
    uint64_t disk_bytes;          /* 0: no bound */
    uint32_t streams_max;         /* live ones; 0: what fits, at most 16 */
    uint32_t forks_max;           /* 0: what fits, at most 4 */
    uint32_t clients_max;
    uint32_t lag_tokens_max;
    uint32_t pin_tokens_max; /* a stream's */
    uint32_t threads;        /* 0: as many as the process may use */
    uint32_t feature_mask;   /* instruction sets it may use */
    enum device device;
    enum device_weights device_weights;
    enum meter_choice loss_meter;
    double loss_flag; /* nats a token */
    enum search_by find;
    bool adapter_given; /* named by the user: then it must be there and fit */
    bool when_full_trim;
    enum segment_dtype segments; /* NONE: cold ones are not kept */
    bool rebuild;                /* replay all streams with another adapter */
    bool debug;
};

enum config_answer { CONFIG_RUN, CONFIG_HELP, CONFIG_VERSION };

void config_defaults(struct config *config);
/* 0 or -EINVAL with a sentence in error. The command line wins over the file. */
int config_read(struct config *config, int argc, char **argv, enum config_answer *answer,
                char *error, size_t error_bytes);
void config_help(void);
/* "512M", "2G", "1.5GiB", of 1,024s; "512MB", "2GB", of 1,000s; "4096"; -EINVAL. */
int config_size(const char *text, uint64_t *out);

#endif
