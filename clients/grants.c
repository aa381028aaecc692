/* grants: siltd's keys, as an administrator reads and changes them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "clients/link.h"

enum { PAGES_MAX = 1 << 12 };

struct grants {
    struct client_server *server; /* NULL: nobody asks */
    client_grant_fn *each;
    void *user;
    uint32_t seen;
    int stopped; /* what `each` returned */
    bool more;
};

static int keys_reply(struct pending *pending, const wire_reply *reply)
{
    struct grants *grants = pending->user;
    const Silt__V1__KeysReply *keys = reply->keys;

    if (reply->body_case != SILT__V1__REPLY__BODY_KEYS)
        return client_odd(pending->error);
    grants->more = keys->more && keys->n_grants;
    if (grants->server) {
        snprintf(grants->server->key, sizeof grants->server->key, "%s", keys->server_key);
        snprintf(grants->server->listen, sizeof grants->server->listen, "%s", keys->listen);
    }
    for (size_t i = 0; i < keys->n_grants && grants->each && !grants->stopped; i++) {
        struct client_grant grant;

        snprintf(grant.key, sizeof grant.key, "%s", keys->grants[i]->key);
        snprintf(grant.name, sizeof grant.name, "%s", keys->grants[i]->name);
        snprintf(grant.stream, sizeof grant.stream, "%s", keys->grants[i]->stream);
        grants->stopped = grants->each(grants->user, &grant);
    }
    grants->seen += (uint32_t)keys->n_grants;
    return 0;
}

static int keys_run(struct client *client, Silt__V1__Keys *keys, struct grants *grants,
                    struct client_error *error)
{
    wire_request request = SILT__V1__REQUEST__INIT;

    request.body_case = SILT__V1__REQUEST__BODY_KEYS;
    request.keys = keys;
    return client_run(client, &request, keys_reply, grants, error);
}

int client_keys(struct client *client, struct client_server *out, client_grant_fn *each, void *user,
                struct client_error *error)
{
    struct grants grants = {.server = out, .each = each, .user = user, .more = true};

    for (int page = 0; page < PAGES_MAX && grants.more && !grants.stopped; page++) {
        Silt__V1__Keys keys = SILT__V1__KEYS__INIT;
        int r;

        keys.after = grants.seen;
        r = keys_run(client, &keys, &grants, error);
        if (r)
            return r;
    }
    return grants.stopped;
}

static int change(struct client *client, Silt__V1__Keys__Verb verb, const char *key,
                  const char *name, const char *stream, struct client_error *error)
{
    Silt__V1__Keys keys = SILT__V1__KEYS__INIT;
    struct grants grants = {0};
    int r = stream ? client_name_check(stream, error) : 0;

    if (r)
        return r;
    if (!client_key_valid(key))
        return client_fail(error, -EINVAL, "\"%.60s\" is no public key: `silt key new` prints one",
                           key);
    keys.verb = verb;
    keys.key = (char *)key;
    keys.name = (char *)name;
    keys.stream = stream ? (char *)stream : "";
    keys.all = !stream;
    return keys_run(client, &keys, &grants, error);
}

int client_key_allow(struct client *client, const char *key, const char *name, const char *stream,
                     struct client_error *error)
{
    return change(client, SILT__V1__KEYS__VERB__ALLOW, key, name, stream, error);
}

int client_key_deny(struct client *client, const char *key, const char *stream,
                    struct client_error *error)
{
    int r = change(client, SILT__V1__KEYS__VERB__DENY, key, "", stream, error);

    /* Asked again after a lost connection: the key has it no more, whoever saw to that. */
    if (r == -ENOENT && client->resent) {
        client_fail(error, 0, "%s", "");
        r = 0;
    }
    return r;
}
