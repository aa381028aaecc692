/* fit: the engine opened, and the plan made to fit it. */
#ifndef SILT_DAEMON_FIT_H
#define SILT_DAEMON_FIT_H

#include "daemon/core.h"

#ifdef __SANITIZE_THREAD__
enum { THREAD_STACK_BYTES = 4 << 20 }; /* the sanitizer takes most of a megabyte for itself */
#else
enum { THREAD_STACK_BYTES = 1 << 20 };
#endif

/* The model with its adapter: core->engine and core->info. 0, or what error says. */
int fit_engine(struct core *core, char *error, size_t error_bytes);
/* What it costs, measured; core->plan; then the memory of the plan: the arena, carved and sealed,
 * and a GPU's. 0, or what error says. */
int fit_plan(struct core *core, char *error, size_t error_bytes);

#endif
