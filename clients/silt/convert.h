/*
 * convert: captions and transcripts become lines "[H:MM:SS] Speaker: text".
 *
 * A converter takes bytes as they come and gives text as soon as a line or a cue is whole. Its
 * output is a function of its input alone, however that was cut: so a feed that was interrupted
 * converts from the start again and leaves out what siltd has already acked.
 *
 *   plain        nothing is changed
 *   transcript   lines that begin with a time, or with a speaker and a time in brackets, and blocks
 *                under a line with speaker and time: all become the form above
 *   vtt, srt     WebVTT and SubRip: headers, numbers, notes, styles and tags go; speakers come from
 *                <v Name>; a line that the cue before has shown already is left out
 *
 * Limits: a line longer than 16 KiB is cut. Errors: -ENOMEM.
 */
#ifndef SILT_CONVERT_H
#define SILT_CONVERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum convert_format { FORMAT_PLAIN, FORMAT_TRANSCRIPT, FORMAT_VTT, FORMAT_SRT, FORMAT_COUNT };
extern const char *const convert_names[FORMAT_COUNT];

struct convert;
/* *out is NULL for FORMAT_PLAIN; every call below takes that as a converter that holds nothing. */
int convert_open(struct convert **out, enum convert_format format);
void convert_close(struct convert **convert);
/* `end`: nothing follows, what is held is whole. */
int convert_push(struct convert *convert, const uint8_t *bytes, size_t bytes_count, bool end);
/* Text that is ready; stays until it is taken. */
const uint8_t *convert_text(const struct convert *convert, size_t *bytes_count);
void convert_take(struct convert *convert, size_t bytes_count);

#endif
