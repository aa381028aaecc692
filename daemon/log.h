/* Plain lines to stderr: time, level, text; where that is the journal, level and text. Any thread.
 */
#ifndef SILT_DAEMON_LOG_H
#define SILT_DAEMON_LOG_H

enum say_level { SAY_DEBUG, SAY_INFO, SAY_WARN, SAY_ERROR };

void say_level_set(enum say_level level); /* below it nothing is written; SAY_INFO at start */
void say(enum say_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* From then on abort() and a fault come with a sentence; they still end the process as they did.
 * libzmq and the libraries below it do so where they get no memory: no C can catch that. */
void say_ends(void);

#endif
