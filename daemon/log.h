/* Plain lines to stderr: time, level, text. Any thread. */
#ifndef SILT_DAEMON_LOG_H
#define SILT_DAEMON_LOG_H

enum say_level { SAY_DEBUG, SAY_INFO, SAY_WARN, SAY_ERROR };

void say_level_set(enum say_level level); /* below it nothing is written; SAY_INFO at start */
void say(enum say_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
