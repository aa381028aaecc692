#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "daemon/log.h"
#include "daemon/serve.h"

int reply_send(struct core *core, const struct wire_client *client, const Silt__V1__Reply *reply)
{
    int bytes = wire_pack(reply, core->reply, REPLY_BYTES_MAX);
    int result;

    if (bytes < 0) {
        say(SAY_ERROR, "a reply does not fit %d bytes", REPLY_BYTES_MAX);
        return bytes;
    }
    result = gate_send(&core->gate, client, core->reply, (size_t)bytes);
    if (result == -EAGAIN && reply->body_case != SILT__V1__REPLY__BODY_TOKEN &&
        reply->body_case != SILT__V1__REPLY__BODY_DONE &&
        reply->body_case != SILT__V1__REPLY__BODY_ACK && say_again(&core->dropped_us))
        say(SAY_WARN, "a client does not read its replies: they are dropped");
    return result;
}

static void send_error(struct core *core, const struct wire_client *client, uint64_t id,
                       Silt__V1__Error *error)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;

    reply.id = id;
    reply.body_case = SILT__V1__REPLY__BODY_ERROR;
    reply.error = error;
    reply_send(core, client, &reply);
}

void reply_error(struct core *core, const struct wire_client *client, uint64_t id,
                 Silt__V1__Error__Code code, const char *format, ...)
{
    Silt__V1__Error error = SILT__V1__ERROR__INIT;
    char message[ERROR_BYTES_MAX];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    error.code = code;
    error.message = message;
    if (code == SILT__V1__ERROR__CODE__BUSY || code == SILT__V1__ERROR__CODE__NO_SPACE)
        error.retry_us = BUSY_RETRY_US;
    send_error(core, client, id, &error);
}

void reply_busy(struct core *core, const struct wire_client *client, uint64_t id,
                const char *message)
{
    reply_error(core, client, id, SILT__V1__ERROR__CODE__BUSY, "%s", message);
}
