/* forget: takes a range of tokens out of a stream's journal, and what was derived from them. */
#ifndef SILT_DAEMON_FORGET_H
#define SILT_DAEMON_FORGET_H

#include "daemon/ingest.h"

/*
 * The stream must be in no slot. The items are changed in the open transaction; checkpoints,
 * segments and index are gone when it returns, before the commit: a crash between loses time alone,
 * for all of them can be computed again from the journal, old or new. stream->tokens and the like
 * become what they are without the range. The log that still holds the text is cut by the caller,
 * after the commit. Refused, with no item changed: -EINVAL, the range is not in the stream;
 * -EMSGSIZE, as forget_form. With other errors the transaction is to be rolled back.
 */
int forget_range(struct ingest *ingest, struct journal_stream *stream, uint64_t from, uint64_t to);
/* Text before this token was trimmed away; 0: none was. */
int forget_first(struct ingest *ingest, uint64_t stream_id, uint64_t *token);
/* Trims the oldest text, up to a checkpoint not past `most`, from the journal; the stream's memory
 * and positions stay. *first: the first token that is left. -ENODATA: there is
 * nothing that may go: the last two checkpoints and what branches share stay. */
int forget_oldest(struct ingest *ingest, struct journal_stream *stream, uint64_t most,
                  uint64_t *first);
/* Checkpoints and words of text before `first`, behind the commit of that. */
void forget_trimmed(struct ingest *ingest, uint64_t stream_id, uint64_t first);
/* What a stream has outside the journal, before the commit of its removal, which needs room that a
 * full disk has not: where that fails all of it can be computed again. Else it stays: checkpoints
 * may be all that knows of text that was trimmed away. */
void forget_for_room(struct ingest *ingest, uint64_t stream_id);
/* All of it, behind the commit. What stays is said, and goes when siltd is started again. */
void forget_derived(struct ingest *ingest, uint64_t stream_id);
/* Tokens an item forms behind `text`, into scratch. How many, or -EMSGSIZE: more than scratch has
 * room for, being of a siltd with a larger --lag-tokens-max. */
int forget_form(struct ingest *ingest, struct token_text *text, const struct journal_item *item);

#endif
