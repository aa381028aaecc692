/* Plain lines to stderr: time, level, text; where that is the journal, level and text. Any thread.
 */
#ifndef SILT_DAEMON_LOG_H
#define SILT_DAEMON_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum say_level { SAY_DEBUG, SAY_INFO, SAY_WARN, SAY_ERROR };

void say_level_set(enum say_level level); /* below it nothing is written; SAY_INFO at start */
void say(enum say_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Of what a client can bring about again and again: true when it is to be said, once in ten
 * seconds. One thread; *said_us begins as 0. */
bool say_again(uint64_t *said_us);
/* From then on abort() and a fault come with a sentence; they still end the process as they did.
 * libzmq and the libraries below it do so where they get no memory: no C can catch that. */
void say_ends(void);

#endif
