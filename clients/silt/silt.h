/*
 * silt: the command. One file a command, each a `struct command` in main.c's table.
 *
 * A command gets its arguments without the program's own options, prints what it was asked for on
 * stdout and everything else on stderr, and returns the exit code.
 */
#ifndef SILT_COMMAND_H
#define SILT_COMMAND_H

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>

#include "clients/client.h"

enum silt_exit {
    EXIT_DONE = 0,
    EXIT_REFUSED = 1,   /* siltd, a file or the machine said no: the sentence says what */
    EXIT_USAGE = 2,     /* the command line is wrong */
    EXIT_AWAY = 3,      /* no siltd answers there */
    EXIT_BUSY = 4,      /* not now: try again */
    EXIT_STOPPED = 130, /* Ctrl-C */
};

struct silt {
    const char *endpoint; /* each NULL: the default */
    const char *server_key, *client_key;
    const char *command;
    struct client *client;
    struct client_error error;
    int64_t asked_us;         /* since when siltd is waited for; 0: not yet */
    bool reached;             /* it has answered */
    int64_t full_us;          /* when it was last said that siltd is full */
    void (*turn)(void *user); /* see client_options.on_turn; NULL: nothing */
    void *turn_user;
};

struct command {
    const char *name;
    const char *summary; /* a line of `silt --help` */
    const char *help;    /* all of `silt NAME --help` */
    int (*run)(struct silt *silt, int argc, char **argv);
};

extern const struct command command_open, command_feed, command_ask, command_stat, command_ls,
    command_rm, command_forget, command_gateway, command_top, command_fork, command_key,
    command_pin, command_unpin, command_pins, command_plan;

/* Set by Ctrl-C and SIGTERM. */
extern atomic_bool silt_stop;

enum { OPTION_SERVER_KEY = 0x1000, OPTION_CLIENT_KEY };
/* Options every command takes; its own long options come before SILT_OPTIONS in the array. */
#define SILT_OPTIONS                                                                               \
    {"endpoint", required_argument, NULL, 'c'}, {"help", no_argument, NULL, 'h'},                  \
        {"server-key", required_argument, NULL, OPTION_SERVER_KEY},                                \
        {"client-key", required_argument, NULL, OPTION_CLIENT_KEY},                                \
    {                                                                                              \
        NULL, 0, NULL, 0                                                                           \
    }
/* Takes an option that is every command's: -1 when there is nothing to exit for, else the code. */
int silt_option(struct silt *silt, const struct command *command, int option);
/* All options of a command that has but --json of its own; returns as silt_option. */
int silt_options_json(struct silt *silt, const struct command *command, int argc, char **argv,
                      bool *as_json);
/* How a command shows what siltd says of a stream, or of itself: the exit code. */
struct stat_views {
    int (*stream)(const struct client_stream_stat *stat, bool as_json);
    int (*process)(const struct client_process_stat *stat, bool as_json);
};
/* All of a command of [STREAM] [--json]: the exit code. */
int silt_stat(struct silt *silt, const struct command *command, int argc, char **argv,
              const struct stat_views *views);
/* "silt NAME: sentence. Try silt NAME --help" */
int silt_usage(const struct silt *silt, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A number of an option's argument within limits: 0, or the exit code after saying so. */
int silt_number(const struct silt *silt, const char *option, const char *text, uint64_t least,
                uint64_t most, uint64_t *out);
int silt_real(const struct silt *silt, const char *option, const char *text, double least,
              double most, float *out);

/* Connects: 0 or the exit code after saying so. reconnect_ms as in client_options. */
int silt_connect(struct silt *silt, int reconnect_ms);
/* Says silt->error and returns its exit code. */
int silt_fail(const struct silt *silt);
int64_t silt_now_us(void); /* of a clock that only goes forward */
/* "silt: sentence" on stderr. */
void silt_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- text.c: what people read ---- */

enum { TEXT_BYTES = 32 };
/* Each writes into out [TEXT_BYTES] and returns it. */
const char *text_bytes(char *out, uint64_t bytes);      /* 17.3 MB */
const char *text_count(char *out, uint64_t count);      /* 1,234,567 */
const char *text_seconds(char *out, double seconds);    /* 0.4 s, 3:07, 2:10:33 */
const char *text_time(char *out, uint64_t time_us);     /* 2026-05-31 09:30:00, of here */
const char *text_time_iso(char *out, uint64_t time_us); /* 2026-05-31T07:30:00.000Z */
/* How many bytes of text are shown, at most `most`, so that its last character is whole. */
size_t text_whole(const char *text, size_t bytes, size_t most);
/* Prints bytes; where out is a terminal, control characters that could steer it show as "?". */
void text_print(FILE *out, const void *bytes, size_t bytes_count);
/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD. */
json_t *text_json(const void *bytes, size_t bytes_count);
/* Prints and frees. */
int text_json_print(json_t *json);
/* "memory" table by tier, its last line the plan. */
void text_tiers(const struct client_tier *tiers, size_t count, uint64_t bytes_plan,
                uint64_t bytes_used);

/* stat.c: all that is known of a stream, as JSON. */
json_t *stat_json(const struct client_stream_stat *stat);

/* ---- progress.c: one line on a terminal ---- */

struct progress {
    bool on;
    struct client *client;
    const char *stream, *what;
    uint64_t bytes_done, bytes_all; /* all 0: not known */
    uint64_t tokens_acked, tokens_computed;
    uint64_t memory_used, memory_plan;
    uint64_t tokens_before;
    int64_t drawn_us, stat_us, rate_us;
    double rate; /* tokens computed a second */
};
/* Draws at most five times a second; asks siltd for the memory once a second. */
void progress_draw(struct progress *progress);
void progress_clear(struct progress *progress);
/* Shows one line where stderr is a terminal, drawn over by the next, or taken away. */
void progress_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void progress_hide(void);

#endif
