/* Who may do what: over the local socket everything, over the network what the client's key is
 * allowed. Also the requests that manage keys, which only the local socket takes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/serve.h"

enum { GRANTS_PAGE_MAX = 24 };
_Static_assert(GRANTS_PAGE_MAX *(sizeof(struct grant) + 16) + ENDPOINT_BYTES_MAX + 256 <=
                   REPLY_BYTES_MAX,
               "a page of grants fits a reply");

/* Every kind stands here: one that is new does not compile before it has a rule. */
static bool permitted(const struct core *core, const struct wire_client *client,
                      const struct wire_request *request)
{
    const struct keys *keys = &core->keys;

    switch (request->kind) {
    case REQUEST_OPEN:
    case REQUEST_ATTACH:
    case REQUEST_FEED:
    case REQUEST_ASK:
    case REQUEST_PINS:
    case REQUEST_REMOVE:
    case REQUEST_FORGET:
        return keys_may(keys, client->key, request->stream);
    case REQUEST_FORK:
        return keys_may(keys, client->key, request->stream) &&
               keys_may(keys, client->key, request->branch);
    case REQUEST_STAT:
        /* Of siltd itself: what all streams do together shows what others' do. */
        return keys_may(keys, client->key, request->stream[0] ? request->stream : NULL);
    case REQUEST_CANCEL: /* of the client's own questions */
    case REQUEST_LIST:   /* shows what the key may use */
        return keys_known(keys, client->key);
    case REQUEST_KEYS:
        return false;
    }
    return false;
}

bool serve_permitted(struct core *core, const struct wire_client *client,
                     const struct wire_request *request)
{
    const char *stream = request->stream;

    if (client->door == DOOR_LOCAL || permitted(core, client, request))
        return true;
    if (request->kind == REQUEST_FORK && keys_may(&core->keys, client->key, stream))
        stream = request->branch;
    /* The same words whether the stream exists or not. */
    if (request->kind == REQUEST_KEYS)
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__DENIED,
                    "keys are managed on siltd's own machine, over its local socket alone");
    else if (stream && stream[0])
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__DENIED,
                    "this client's key may not use '%s': on siltd's machine, `silt key allow "
                    "'%s' %s` lets it",
                    stream, client->key, stream);
    else
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__DENIED,
                    "this client's key is not allowed every stream, which that needs: on siltd's "
                    "machine, `silt key allow '%s' --all` lets it",
                    client->key);
    return false;
}

bool serve_may_see(const struct core *core, const struct wire_client *client, const char *stream)
{
    return client->door == DOOR_LOCAL || keys_may(&core->keys, client->key, stream);
}

bool serve_same_owner(const struct wire_client *a, const struct wire_client *b)
{
    if (a->door == DOOR_NETWORK && b->door == DOOR_NETWORK)
        return strcmp(a->key, b->key) == 0;
    return serve_same_client(a, b);
}

bool serve_may_ask(const struct core *core, const struct wire_client *client)
{
    uint32_t most = core->plan.forks_max > 1 ? core->plan.forks_max / 2 : 1, count = 0;

    for (uint32_t i = 0; i < core->plan.forks_max; i++)
        count += core->asks[i].stage != ASK_FREE && core->asks[i].client.bytes &&
                 core->asks[i].client.door == DOOR_NETWORK &&
                 serve_same_owner(&core->asks[i].client, client);
    return client->door == DOOR_LOCAL || count < most;
}

/* ---- keys ---- */

/* What a key may no longer see stops at once, not when the answer ends. */
static void enforce(struct core *core)
{
    for (uint32_t i = 0; i < core->plan.forks_max; i++) {
        struct ask *ask = &core->asks[i];
        uint64_t stream_id = core->table.records[ask->record].stream_id;

        /* By its id: what is asked of the past runs under another name. */
        if (ask->stage != ASK_FREE && ask->client.bytes &&
            !serve_may_see(core, &ask->client, serve_stream_name(core, stream_id)))
            serve_ask_abandon(core, ask);
    }
    for (uint32_t i = 0; i < WAITERS_MAX; i++)
        if (core->waiters[i].used &&
            !serve_may_see(core, &core->waiters[i].client,
                           core->table.records[core->waiters[i].record].name))
            core->waiters[i].used = false;
}

static void send_list(struct core *core, const struct wire_client *client,
                      const struct wire_request *request)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__KeysReply list = SILT__V1__KEYS_REPLY__INIT;
    Silt__V1__Grant grants[GRANTS_PAGE_MAX], *page[GRANTS_PAGE_MAX];
    uint32_t at =
        request->keys->verb == SILT__V1__KEYS__VERB__LIST ? request->keys->after : core->keys.count;

    for (; at < core->keys.count && list.n_grants < GRANTS_PAGE_MAX; at++) {
        Silt__V1__Grant *grant = &grants[list.n_grants];

        silt__v1__grant__init(grant);
        grant->key = core->keys.grants[at].key;
        grant->name = core->keys.grants[at].name;
        grant->stream = core->keys.grants[at].stream;
        page[list.n_grants++] = grant;
    }
    list.grants = page;
    list.more = at < core->keys.count;
    list.server_key = core->keys.public_key;
    list.listen = core->gate.network;
    reply.id = request->id;
    reply.body_case = SILT__V1__REPLY__BODY_KEYS;
    reply.keys = &list;
    reply_send(core, client, &reply);
}

void serve_keys(struct core *core, const struct wire_client *client,
                const struct wire_request *request)
{
    const Silt__V1__Keys *from = request->keys;
    const char *stream = from->all ? NULL : from->stream;
    bool holds = false;
    int result = 0;

    if (from->verb == SILT__V1__KEYS__VERB__ALLOW)
        result = keys_allow(&core->keys, from->key, from->name, stream, &holds);
    else if (from->verb == SILT__V1__KEYS__VERB__DENY)
        result = keys_deny(&core->keys, from->key, stream, &holds);
    if (holds)
        enforce(core);
    if (holds && !keys_known(&core->keys, from->key))
        clients_deny(&core->gate.clients, from->key);
    if (result == -ENOENT && holds) { /* else the folder is gone */
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NOT_FOUND,
                    "key %s is not allowed that: `silt key list` shows what is", from->key);
    } else if (result == -ENOSPC && core->keys.count == GRANTS_MAX) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__NO_SPACE,
                    "siltd keeps at most %d grants: deny old ones, or allow a key --all",
                    GRANTS_MAX);
    } else if (result) {
        reply_error(core, client, request->id, SILT__V1__ERROR__CODE__INTERNAL,
                    holds
                        ? "the keys are as asked, but %s cannot be synced: %s; until that succeeds "
                          "a power loss may undo it: send this again"
                        : "the keys cannot be written to %s: %s; nothing has changed",
                    core->keys.folder, strerror(-result));
    } else {
        send_list(core, client, request);
    }
}
