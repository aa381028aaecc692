/* Growing text, and bytes made UTF-8. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/gateway.h"

static bool text_fit(struct text *text, size_t bytes)
{
    size_t room = text->room ? text->room : 1024;
    char *data;

    if (text->failed)
        return false;
    if (text->bytes + bytes < text->room)
        return true;
    while (room <= text->bytes + bytes)
        room *= 2;
    data = realloc(text->data, room);
    if (!data) {
        text->failed = true;
        return false;
    }
    text->data = data;
    text->room = room;
    return true;
}

void text_add(struct text *text, const void *data, size_t bytes)
{
    if (!text_fit(text, bytes))
        return;
    if (bytes)
        memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
}

void text_addf(struct text *text, const char *format, ...)
{
    va_list list;
    int bytes;

    va_start(list, format);
    bytes = vsnprintf(NULL, 0, format, list);
    va_end(list);
    if (bytes < 0 || !text_fit(text, (size_t)bytes))
        return;
    va_start(list, format);
    vsnprintf(text->data + text->bytes, (size_t)bytes + 1, format, list);
    va_end(list);
    text->bytes += (size_t)bytes;
}

void text_free(struct text *text)
{
    free(text->data);
    *text = (struct text){0};
}

static size_t replacement(char *out)
{
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}

static unsigned length_of(uint8_t lead)
{
    if (lead < 0x80)
        return lead != 0; /* JSON's readers, ours too, refuse U+0000 */
    if (lead >= 0xc2 && lead <= 0xdf)
        return 2;
    if (lead >= 0xe0 && lead <= 0xef)
        return 3;
    return lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
}

/* Overlong forms, surrogates and what is beyond U+10FFFF show in the second byte. */
static bool continues(const struct utf8 *utf8, uint8_t byte)
{
    uint8_t lead = utf8->held[0];
    uint8_t least = 0x80, most = 0xbf;

    if (utf8->have == 1) {
        least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    }
    return byte >= least && byte <= most;
}

size_t utf8_push(struct utf8 *utf8, uint8_t byte, char out[UTF8_OUT_MAX])
{
    size_t bytes = 0;

    if (utf8->have && continues(utf8, byte)) {
        utf8->held[utf8->have++] = byte;
        if (utf8->have < utf8->need)
            return 0;
        bytes = utf8->have;
        memcpy(out, utf8->held, bytes);
        utf8->have = 0;
        return bytes;
    }
    bytes = utf8_end(utf8, out);
    utf8->need = length_of(byte);
    if (utf8->need == 0)
        return bytes + replacement(out + bytes);
    if (utf8->need == 1) {
        out[bytes] = (char)byte;
        return bytes + 1;
    }
    utf8->held[0] = byte;
    utf8->have = 1;
    return bytes;
}

size_t utf8_end(struct utf8 *utf8, char out[UTF8_OUT_MAX])
{
    if (!utf8->have)
        return 0;
    utf8->have = 0;
    return replacement(out);
}
