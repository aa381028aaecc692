/* pins: ranges of a stream that siltd keeps uncompressed. */
#include "clients/link.h"

static int pins_reply(struct pending *pending, const wire_reply *reply)
{
    struct client_pins *out = pending->user;
    const Silt__V1__PinsReply *pins = reply->pins;

    if (reply->body_case != SILT__V1__REPLY__BODY_PINS)
        return client_odd(pending->error);
    if (!out)
        return 0;
    *out = (struct client_pins){.tokens_max = pins->tokens_max};
    for (size_t i = 0; i < pins->n_pins && i < CLIENT_PINS_MAX; i++)
        out->pin[out->count++] =
            (struct client_pin){pins->pins[i]->from, pins->pins[i]->to, pins->pins[i]->held};
    return 0;
}

static int pins_run(struct client *client, const char *stream, Silt__V1__Pins__Verb verb,
                    uint64_t from, uint64_t to, struct client_pins *out, struct client_error *error)
{
    wire_request request = SILT__V1__REQUEST__INIT;
    Silt__V1__Pins pins = SILT__V1__PINS__INIT;
    int r = client_name_check(stream, error);

    if (r)
        return r;
    pins.stream = (char *)stream;
    pins.verb = verb;
    pins.from = from;
    pins.to = to;
    request.body_case = SILT__V1__REQUEST__BODY_PINS;
    request.pins = &pins;
    if (verb == SILT__V1__PINS__VERB__LIST)
        return client_run(client, &request, pins_reply, out, error);
    return client_change(client, &request, pins_reply, out, error);
}

int client_pins(struct client *client, const char *stream, struct client_pins *out,
                struct client_error *error)
{
    return pins_run(client, stream, SILT__V1__PINS__VERB__LIST, 0, 0, out, error);
}

int client_pin(struct client *client, const char *stream, uint64_t from, uint64_t to,
               struct client_pins *out, struct client_error *error)
{
    return pins_run(client, stream, SILT__V1__PINS__VERB__PIN, from, to, out, error);
}

int client_unpin(struct client *client, const char *stream, uint64_t from, uint64_t to,
                 struct client_pins *out, struct client_error *error)
{
    return pins_run(client, stream, SILT__V1__PINS__VERB__UNPIN, from, to, out, error);
}
