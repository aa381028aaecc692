/* One table of options serves the command line, the file and --help. */
#include "daemon/config.h"
#include "daemon/meter.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define MODEL_FILE   "smollm2-135m-instruct-q4_1.gguf"
#define ADAPTER_FILE "smollm2-135m-instruct.gguf"

enum { CLIENTS_DEFAULT = 32, THREADS_LIMIT = 1024 };

enum option_kind {
    OPTION_PATH,
    OPTION_ENDPOINT,
    OPTION_SIZE,
    OPTION_COUNT,
    OPTION_CHOICE,
    OPTION_SEGMENTS,
    OPTION_REAL,
    OPTION_FLAG
};

struct option_row {
    const char *name, *argument, *help;
    enum option_kind kind;
    size_t offset;
    uint32_t min, max;    /* of a count */
    const char *no, *yes; /* of a choice: the value is 0 or 1 */
};

#define AT(field) offsetof(struct config, field)

static const struct option_row rows[] = {
    {"listen", "ENDPOINT",
     "ipc://PATH to listen on (default: $XDG_RUNTIME_DIR/silt.sock or\n"
     "/tmp/silt-UID/silt.sock; readable by this user alone). A second --listen\n"
     "tcp://ADDRESS:PORT takes clients over the network: always encrypted, and\n"
     "only keys that `silt key allow` let in",
     OPTION_ENDPOINT, AT(listen), 0, 0, NULL, NULL},
    {"data", "DIR", "folder of the journal and all that is kept (default: ~/.local/share/silt)",
     OPTION_PATH, AT(data), 0, 0, NULL, NULL},
    {"model", "GGUF", "base model of the Llama family (default: the one `make model` fetches)",
     OPTION_PATH, AT(model), 0, 0, NULL, NULL},
    {"adapter", "GGUF", "silt adapter of that model; `none`: sliding window only, no compression",
     OPTION_PATH, AT(adapter), 0, 0, NULL, NULL},
    {"memory", "SIZE",
     "most memory the process may plan (default: half of RAM or of the cgroup's limit);\n"
     "siltd refuses to start where its plan is larger",
     OPTION_SIZE, AT(memory_bytes), 0, 0, NULL, NULL},
    {"streams-max", "N", "live streams (default: what fits, at most 16)", OPTION_COUNT,
     AT(streams_max), 1, STREAMS_LIVE_MAX, NULL, NULL},
    {"forks-max", "N", "questions at once (default: what fits, at most 4); more are told to wait",
     OPTION_COUNT, AT(forks_max), 1, FORKS_LIVE_MAX, NULL, NULL},
    {"clients-max", "N",
     "clients served at once, of which a key has at most half and the network three\n"
     "quarters (default: 32); more are told to wait until one has left",
     OPTION_COUNT, AT(clients_max), 1, CLIENTS_LIVE_MAX, NULL, NULL},
    {"disk", "SIZE", "most bytes under --data (default: no bound)", OPTION_SIZE, AT(disk_bytes), 0,
     0, NULL, NULL},
    {"when-full", "stop|trim", "at the bound: stop taking text, or drop the oldest (default: stop)",
     OPTION_CHOICE, AT(when_full_trim), 0, 0, "stop", "trim"},
    {"segments", "f16|int8|none",
     "how cold segments are kept: int8 takes half the disk for a little loss; none:\n"
     "not at all (default: f16)",
     OPTION_SEGMENTS, AT(segments), 0, 0, NULL, NULL},
    {"find", "both|words|keys",
     "what finds far chunks for a question: their words, recall keys (their meaning),\n"
     "or both (default: both, where the adapter has keys)",
     OPTION_CHOICE, AT(find), 0, 0, NULL, NULL},
    {"lag-tokens-max", "N",
     "tokens of a stream acked and not yet computed (default: 65536);\n"
     "a producer that is further ahead waits",
     OPTION_COUNT, AT(lag_tokens_max), LAG_TOKENS_MIN, LAG_TOKENS_LIMIT, NULL, NULL},
    {"pin-tokens-max", "N",
     "tokens that a stream may keep uncompressed, by `silt pin` (default: 128, which\n"
     "are 4.4 MB a stream with the default model; 0: none)",
     OPTION_COUNT, AT(pin_tokens_max), 0, PIN_TOKENS_LIMIT, NULL, NULL},
    {"loss-meter", "no|yes",
     "score a chunk now and then with and without compression, in at most 2 % of the\n"
     "computing (default: where its memory fits the plan)",
     OPTION_CHOICE, AT(loss_meter), 0, 0, "no", "yes"},
    {"loss-flag", "NATS",
     "a stream whose memory surely loses more than this a token is flagged, once 8\n"
     "chunks are scored (default: 0.1)",
     OPTION_REAL, AT(loss_flag), 0, 0, NULL, NULL},
    {"device", "cpu|cuda",
     "where the model runs (default: cpu); cuda: the machine's first GPU, or the first\n"
     "that CUDA_VISIBLE_DEVICES names",
     OPTION_CHOICE, AT(device), 0, 0, "cpu", "cuda"},
    {"device-memory", "SIZE",
     "with --device cuda: most of the GPU's memory (default: what is free)", OPTION_SIZE,
     AT(device_bytes), 0, 0, NULL, NULL},
    {"device-weights", "bf16|file",
     "with --device cuda: weights as bf16, or quantised ones as they are in the file:\n"
     "less memory, slower reading (default: bf16 where they and the plan fit)",
     OPTION_CHOICE, AT(device_weights), 0, 0, "bf16", "file"},
    {"threads", "N", "compute threads (default: as many as the process may use)", OPTION_COUNT,
     AT(threads), 1, THREADS_LIMIT, NULL, NULL},
    {"kernels", "MASK",
     "instruction sets it may use, as the bits of kernels.h's enum feature; 0: the\n"
     "reference (default: all the machine has)",
     OPTION_COUNT, AT(feature_mask), 0, UINT32_MAX, NULL, NULL},
    {"rebuild", NULL, "the adapter has changed: compute every stream again from its journal",
     OPTION_FLAG, AT(rebuild), 0, 0, NULL, NULL},
    {"debug", NULL, "log more", OPTION_FLAG, AT(debug), 0, 0, NULL, NULL},
};
enum { ROW_COUNT = sizeof rows / sizeof *rows };

/* The source tree that this binary was built in, or empty: TREE/build/siltd -> TREE. */
static void source_tree(char *out, size_t out_bytes)
{
    char path[PATH_BYTES_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    char *cut;

    out[0] = '\0';
    if (n <= 0)
        return;
    path[n] = '\0';
    cut = strstr(path, "/build/");
    for (char *next = cut; next; next = strstr(next + 1, "/build/"))
        cut = next;
    if (cut && (size_t)(cut - path) < out_bytes) {
        memcpy(out, path, (size_t)(cut - path));
        out[cut - path] = '\0';
    }
}

/* TREE/inside where that file exists, else the installed one where that exists, else the first. */
static void default_file(char *out, const char *tree, const char *inside, const char *installed)
{
    static const char *const shares[] = {"/usr/local/share/silt", "/usr/share/silt"};
    char place[PATH_BYTES_MAX];

    snprintf(out, PATH_BYTES_MAX, "%s%s%s", tree, tree[0] ? "/" : "", inside);
    for (size_t i = 0; i < 2 && access(out, F_OK) != 0; i++) {
        snprintf(place, sizeof place, "%s/%s", shares[i], installed);
        if (access(place, F_OK) == 0)
            snprintf(out, PATH_BYTES_MAX, "%s", place);
    }
}

void config_defaults(struct config *config)
{
    const char *home = getenv("HOME");
    const char *share = getenv("XDG_DATA_HOME");
    char tree[PATH_BYTES_MAX / 2];

    memset(config, 0, sizeof *config);
    config->clients_max = CLIENTS_DEFAULT;
    config->lag_tokens_max = LAG_TOKENS_DEFAULT;
    config->pin_tokens_max = PIN_TOKENS_DEFAULT;
    config->device = DEVICE_CPU;
    config->segments = SEGMENT_F16;
    config->loss_flag = METER_FLAG_DEFAULT;
    config->feature_mask = UINT32_MAX;
    if (endpoint_default(config->listen, sizeof config->listen))
        config->listen[0] = '\0';
    if (share && share[0] == '/')
        snprintf(config->data, sizeof config->data, "%s/silt", share);
    else
        snprintf(config->data, sizeof config->data, "%s/.local/share/silt", home ? home : "");
    source_tree(tree, sizeof tree);
    default_file(config->model, tree, "build/models/" MODEL_FILE, "models/" MODEL_FILE);
    default_file(config->adapter, tree, "stream/adapters/" ADAPTER_FILE, "adapters/" ADAPTER_FILE);
}

int config_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    char *end;
    double value;
    const char *unit;
    int power;

    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    errno = 0;
    value = strtod(text, &end);
    if (errno || !isfinite(value))
        return -EINVAL;
    if (*end && (unit = strchr(units, toupper((unsigned char)*end)))) {
        power = (int)(unit - units) + 1;
        end++;
        value *= pow(strcasecmp(end, "B") == 0 ? 1000 : 1024, power);
        if (strcasecmp(end, "iB") == 0 || strcasecmp(end, "B") == 0)
            end += strlen(end);
    }
    if (*end || value >= 9e18)
        return -EINVAL;
    *out = (uint64_t)value;
    return 0;
}

static int set_text(char *field, size_t field_bytes, const struct option_row *row,
                    const char *value, char *error, size_t error_bytes)
{
    if (!value[0]) {
        snprintf(error, error_bytes, "--%s needs a value: --%s %s", row->name, row->name,
                 row->argument);
        return -EINVAL;
    }
    if (strlen(value) >= field_bytes) {
        snprintf(error, error_bytes, "--%s: longer than %zu bytes", row->name, field_bytes - 1);
        return -EINVAL;
    }
    snprintf(field, field_bytes, "%s", value);
    return 0;
}

static int set_count(uint32_t *field, const struct option_row *row, const char *value, char *error,
                     size_t error_bytes)
{
    char *end;
    unsigned long long n;

    errno = 0;
    n = strtoull(value, &end, 10);
    if (errno || *end || !isdigit((unsigned char)value[0]) || n < row->min || n > row->max) {
        snprintf(error, error_bytes, "--%s: '%s' is not a number from %u to %u", row->name, value,
                 row->min, row->max);
        return -EINVAL;
    }
    *field = (uint32_t)n;
    return 0;
}

static int set_find(struct config *config, const char *value, char *error, size_t error_bytes)
{
    static const char *const names[] = {
        [SEARCH_BY_BOTH] = "both", [SEARCH_BY_WORDS] = "words", [SEARCH_BY_KEYS] = "keys"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(value, names[i]) == 0) {
            config->find = (enum search_by)i;
            return 0;
        }
    snprintf(error, error_bytes, "--find: '%s' is neither both, words nor keys", value);
    return -EINVAL;
}

static int set_choice(struct config *config, const struct option_row *row, const char *value,
                      char *error, size_t error_bytes)
{
    bool yes;

    if (row->offset == AT(find))
        return set_find(config, value, error, error_bytes);
    yes = strcmp(value, row->yes) == 0;
    if (!yes && strcmp(value, row->no) != 0) {
        snprintf(error, error_bytes, "--%s: '%s' is neither %s nor %s", row->name, value, row->no,
                 row->yes);
        return -EINVAL;
    }
    if (row->offset == AT(device))
        config->device = yes ? DEVICE_CUDA : DEVICE_CPU;
    else if (row->offset == AT(device_weights))
        config->device_weights = yes ? WEIGHTS_FILE : WEIGHTS_BF16;
    else if (row->offset == AT(loss_meter))
        config->loss_meter = yes ? METER_YES : METER_NO;
    else
        config->when_full_trim = yes;
    return 0;
}

static int set_segments(struct config *config, const char *value, char *error, size_t error_bytes)
{
    static const struct {
        const char *name;
        enum segment_dtype dtype;
    } kinds[] = {{"f16", SEGMENT_F16}, {"int8", SEGMENT_INT8}, {"none", SEGMENT_NONE}};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(value, kinds[i].name) == 0) {
            config->segments = kinds[i].dtype;
            return 0;
        }
    snprintf(error, error_bytes, "--segments: '%s' is neither f16, int8 nor none", value);
    return -EINVAL;
}

static int set_real(double *field, const struct option_row *row, const char *value, char *error,
                    size_t error_bytes)
{
    char *end;
    double n = strtod(value, &end);

    if (*end || end == value || !isfinite(n)) {
        snprintf(error, error_bytes, "--%s: '%s' is not a number", row->name, value);
        return -EINVAL;
    }
    *field = n;
    return 0;
}

static int set_flag(bool *field, const struct option_row *row, const char *value, char *error,
                    size_t error_bytes)
{
    *field = strcmp(value, "yes") == 0;
    if (*field || strcmp(value, "no") == 0)
        return 0;
    snprintf(error, error_bytes, "--%s: '%s' is neither yes nor no", row->name, value);
    return -EINVAL;
}

static int set_option(struct config *config, const struct option_row *row, const char *value,
                      char *error, size_t error_bytes)
{
    char *field = (char *)config + row->offset;

    switch (row->kind) {
    case OPTION_PATH:
        config->adapter_given |= row->offset == AT(adapter);
        if (row->offset == AT(adapter) && strcmp(value, "none") == 0) {
            field[0] = '\0';
            return 0;
        }
        return set_text(field, PATH_BYTES_MAX, row, value, error, error_bytes);
    case OPTION_ENDPOINT:
        if (strncmp(value, "tcp://", 6) == 0)
            field = config->listen_network;
        if (field == config->listen_network && !endpoint_port_valid(value, true)) {
            snprintf(error, error_bytes,
                     "--listen %s: give tcp://ADDRESS:PORT, the port a number up to 65535", value);
            return -EINVAL;
        }
        return set_text(field, ENDPOINT_BYTES_MAX, row, value, error, error_bytes);
    case OPTION_SIZE:
        if (config_size(value, (uint64_t *)(void *)field) == 0)
            return 0;
        snprintf(error, error_bytes, "--%s: '%s' is not a size like 512M or 2G", row->name, value);
        return -EINVAL;
    case OPTION_COUNT:
        return set_count((uint32_t *)(void *)field, row, value, error, error_bytes);
    case OPTION_CHOICE:
        return set_choice(config, row, value, error, error_bytes);
    case OPTION_SEGMENTS:
        return set_segments(config, value, error, error_bytes);
    case OPTION_REAL:
        return set_real((double *)(void *)field, row, value, error, error_bytes);
    case OPTION_FLAG:
        return set_flag((bool *)(void *)field, row, value, error, error_bytes);
    }
    return -EINVAL;
}

static const struct option_row *find_row(const char *name, size_t bytes)
{
    for (size_t i = 0; i < ROW_COUNT; i++)
        if (strlen(rows[i].name) == bytes && memcmp(rows[i].name, name, bytes) == 0)
            return &rows[i];
    return NULL;
}

static char *trim(char *text)
{
    size_t n;

    while (isspace((unsigned char)*text))
        text++;
    n = strlen(text);
    while (n && isspace((unsigned char)text[n - 1]))
        text[--n] = '\0';
    return text;
}

static int read_line(struct config *config, char *line, char *error, size_t error_bytes)
{
    const struct option_row *row;
    char *key, *value;

    line[strcspn(line, "#")] = '\0';
    key = trim(line);
    if (!key[0])
        return 0;
    value = strchr(key, '=');
    if (!value) {
        snprintf(error, error_bytes, "'%s' is not of the form key = value", key);
        return -EINVAL;
    }
    *value++ = '\0';
    key = trim(key);
    row = find_row(key, strlen(key));
    if (!row) {
        snprintf(error, error_bytes, "no option is called '%s'; siltd --help lists them", key);
        return -EINVAL;
    }
    return set_option(config, row, trim(value), error, error_bytes);
}

static int read_file(struct config *config, const char *path, char *error, size_t error_bytes)
{
    char *line = NULL, why[ERROR_BYTES_MAX / 2];
    size_t capacity = 0;
    FILE *file = fopen(path, "re");
    int result = 0;

    if (!file) {
        snprintf(error, error_bytes, "--config: cannot read %s: %s", path, strerror(errno));
        return -EINVAL;
    }
    for (unsigned n = 1; !result && getline(&line, &capacity, file) >= 0; n++) {
        result = read_line(config, line, why, sizeof why);
        if (result)
            snprintf(error, error_bytes, "%s line %u: %s", path, n, why);
    }
    if (!result && !feof(file)) {
        result = -errno;
        snprintf(error, error_bytes, "--config: cannot read %s: %s", path, strerror(errno));
    }
    free(line);
    fclose(file);
    return result;
}

/* Splits argv[*i] into name and value ("--name=value" or "--name value"). */
static int read_argument(int argc, char **argv, int *i, const struct option_row **row,
                         const char **value, char *error, size_t error_bytes)
{
    const char *text = argv[*i];
    const char *equals = strchr(text, '=');
    size_t bytes = equals ? (size_t)(equals - text) : strlen(text);

    *row = bytes > 2 && text[0] == '-' && text[1] == '-' ? find_row(text + 2, bytes - 2) : NULL;
    if (!*row) {
        snprintf(error, error_bytes, "'%s' is not an option; siltd --help lists them", text);
        return -EINVAL;
    }
    if (equals)
        *value = equals + 1;
    else if ((*row)->kind == OPTION_FLAG)
        *value = "yes";
    else if (*i + 1 < argc)
        *value = argv[++*i];
    else {
        snprintf(error, error_bytes, "--%s needs a value: --%s %s", (*row)->name, (*row)->name,
                 (*row)->argument);
        return -EINVAL;
    }
    return 0;
}

/* Files first, wherever --config stands, so that the command line wins. */
static int read_config_options(struct config *config, int argc, char **argv, char *error,
                               size_t error_bytes)
{
    int result = 0;

    for (int i = 1; !result && i < argc; i++) {
        if (strncmp(argv[i], "--config=", 9) == 0) {
            result = read_file(config, argv[i] + 9, error, error_bytes);
        } else if (strcmp(argv[i], "--config") == 0 && i + 1 < argc) {
            result = read_file(config, argv[++i], error, error_bytes);
        } else if (strcmp(argv[i], "--config") == 0) {
            snprintf(error, error_bytes, "--config needs a value: --config FILE");
            result = -EINVAL;
        }
    }
    return result;
}

int config_read(struct config *config, int argc, char **argv, enum config_answer *answer,
                char *error, size_t error_bytes)
{
    int result = read_config_options(config, argc, argv, error, error_bytes);

    *answer = CONFIG_RUN;
    for (int i = 1; !result && i < argc; i++) {
        const struct option_row *row;
        const char *value;

        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            *answer = CONFIG_HELP;
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0) {
            *answer = CONFIG_VERSION;
            return 0;
        }
        if (strcmp(argv[i], "--config") == 0) {
            i++;
            continue;
        }
        if (strncmp(argv[i], "--config=", 9) == 0)
            continue;
        result = read_argument(argc, argv, &i, &row, &value, error, error_bytes);
        if (!result)
            result = set_option(config, row, value, error, error_bytes);
    }
    return result;
}

void config_help(void)
{
    printf("siltd: reads token streams that never end, keeps each in a fixed number of bytes and\n"
           "answers questions from what it has read. Talk to it with `silt`.\n\n"
           "usage: siltd [options]\n\n");
    for (size_t i = 0; i < ROW_COUNT; i++) {
        char left[64];
        const char *text = rows[i].help;

        snprintf(left, sizeof left, "--%s%s%s", rows[i].name, rows[i].argument ? " " : "",
                 rows[i].argument ? rows[i].argument : "");
        while (*text) {
            int n = (int)strcspn(text, "\n");

            printf("  %-27s %.*s\n", left, n, text);
            left[0] = '\0';
            text += n + (text[n] == '\n');
        }
    }
    printf("  %-27s options from FILE, one `key = value` a line, `rebuild = yes` where an\n"
           "  %-27s option has no value; # comments\n",
           "--config FILE", "");
    printf("  %-27s\n  %-27s\n\n", "--version", "--help");
    printf(
        "SIZE is a number of bytes, or as 512M, 2G or 1.5GiB, of 1,024s, or as 512MB or 2GB, of\n"
        "1,000s, which is how siltd and silt print them.\n\n");
    printf("Start it, then in another terminal:\n"
           "  silt feed log /var/log/dpkg.log --wait\n"
           "  silt ask log \"When was libssl3 installed?\"\n\n"
           "SIGTERM and SIGINT end it cleanly: what was acked is on disk, a restart goes on.\n");
}
