/*
 * serve: what the loop thread does with requests, with news of the other threads, and on its tick.
 */
#ifndef SILT_DAEMON_SERVE_H
#define SILT_DAEMON_SERVE_H

#include "daemon/core.h"

/* Loop callbacks; user is the core. */
void serve_frames(void *core);
void serve_news(void *core);
void serve_tick(void *core);

/* serve_stream.c: live and parked */
/* Puts every stream of the journal in the table and brings as many as fit to life. */
int serve_start(struct core *core, char *error, size_t error_bytes);
/* The record's slot, waking it where it is parked. 0; -EBUSY: something is on its way out, so soon;
 * -EAGAIN: every place is at work; -ENOSPC: it can never fit. */
int serve_wake(struct core *core, uint32_t record);
void serve_slot_closed(struct core *core, uint32_t slot);
/* Takes the record to where nobody holds it, as far as that is possible now. */
void serve_leave(struct core *core, uint32_t record);

/* cold.c: the far past of streams, on disk */
struct spill_options cold_options(const struct core *core, uint32_t streams_max);
int cold_open(struct core *core, char *error, size_t error_bytes);
void cold_close(struct core *core);
void cold_tick(struct core *core);
void cold_trimmed(struct core *core, const struct ingest_result *result);
/* Removes what streams left that the journal does not know; with --rebuild all segments. */
void cold_sweep(struct core *core, bool (*known)(void *core, uint64_t stream_id));
void cold_attach(struct core *core, uint64_t stream_id);
void cold_detach(struct core *core, uint64_t stream_id);
/* Disk that a stream's cold segments, its checkpoints and its text index take. */
void cold_stream_bytes(const struct core *core, uint64_t stream_id, uint64_t *segments,
                       uint64_t *checkpoints, uint64_t *index);

/* erase.c */
void serve_erase(struct core *core, const struct wire_client *client,
                 const struct wire_request *request);
/* The record is in no slot any more; false: nobody waited for that. */
bool serve_erase_left(struct core *core, uint32_t record);
void serve_send_removed(struct core *core, const struct wire_client *client, uint64_t id,
                        const char *stream);
/* Tokens [from, to) are gone; the stream had `tokens` then. */
void serve_send_forgotten(struct core *core, const struct wire_client *client, uint64_t id,
                          const char *stream, uint64_t from, uint64_t to, uint64_t tokens);
void serve_erased(struct core *core, const struct ingest_result *result);
void serve_erase_tick(struct core *core);
/* A range of the record's stream, or all of it, is being taken out. */
bool serve_erasing(struct core *core, uint32_t record);

/* serve_branch.c */
void serve_fork(struct core *core, const struct wire_client *client,
                const struct wire_request *request);
/* "": there is none any more. */
const char *serve_stream_name(const struct core *core, uint64_t stream_id);
void serve_forked(struct core *core, const struct ingest_result *result);
void serve_send_forked(struct core *core, const struct wire_client *client, uint64_t id,
                       const char *stream, const char *branch, uint64_t tokens);
uint64_t serve_acked(const struct core *core, const struct record *record);
/* The live stream stands at this position now. */
bool serve_is_present(const struct core *core, uint32_t record, uint64_t position);
/* A record, on its way to life, of the stream as it was at the position the question names;
 * RECORD_NONE and the client is told. */
uint32_t serve_past(struct core *core, const struct wire_client *client,
                    const struct wire_request *request, uint32_t record);
/* Its question has ended. */
void serve_past_end(struct core *core, uint32_t record);
void serve_past_tick(struct core *core);

/* serve_ask.c */
void serve_ask(struct core *core, const struct wire_client *client,
               const struct wire_request *request);
void serve_cancel(struct core *core, const struct wire_client *client,
                  const struct wire_request *request);
void serve_ask_text(struct core *core, struct ask *ask, const uint8_t *text, uint32_t bytes_count);
void serve_ask_end(struct core *core, struct ask *ask, const struct ask_end *end);
void serve_ask_kept(struct core *core, struct ask *ask, const struct ingest_result *result);
/* Nobody gets any more of it. */
void serve_ask_abandon(struct core *core, struct ask *ask);
void serve_ask_tick(struct core *core);

/* serve_keys.c: who may do what */
/* False: the client is told. Asked before anything is done for a request. */
bool serve_permitted(struct core *core, const struct wire_client *client,
                     const struct wire_request *request);
bool serve_may_see(const struct core *core, const struct wire_client *client, const char *stream);
/* A key over the network has at most half of the places for questions. */
bool serve_may_ask(const struct core *core, const struct wire_client *client);
/* The same connection, or over the network the same key: limits are for whom. */
bool serve_same_owner(const struct wire_client *a, const struct wire_client *b);
void serve_keys(struct core *core, const struct wire_client *client,
                const struct wire_request *request);

/* reply.c */
int reply_send(struct core *core, const struct wire_client *client, const Silt__V1__Reply *reply);
void reply_error(struct core *core, const struct wire_client *client, uint64_t id,
                 Silt__V1__Error__Code code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void reply_busy(struct core *core, const struct wire_client *client, uint64_t id,
                const char *message);

/* stats.c */
void stats_process(struct core *core, const struct wire_client *client, uint64_t id);
void stats_stream(struct core *core, const struct wire_client *client, uint64_t id,
                  uint32_t record);
void stats_pins(struct core *core, const struct wire_client *client, uint64_t id, uint32_t record);
void stats_list(struct core *core, const struct wire_client *client, uint64_t id,
                const char *after);

bool serve_same_client(const struct wire_client *a, const struct wire_client *b);
void serve_send_opened(struct core *core, const struct wire_client *client, uint64_t id,
                       const struct record *record, bool created);
/* What serve_wake says. */
void serve_refuse_place(struct core *core, const struct wire_client *client, uint64_t id,
                        int result);
void serve_owed_tick(struct core *core);
void serve_result_error(struct core *core, const struct ingest_result *result);
/* A request has come back from the journal. */
void serve_land(struct core *core, const struct wire_client *client, uint32_t bytes);
/* A request on its way to the journal; flights bound what one client may have there. */
int serve_push(struct core *core, const struct ingest_request *request, size_t bytes_count);

#endif
