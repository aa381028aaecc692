/* key: who may reach siltd over the network, and this client's own key. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/silt/silt.h"

static const char help[] =
    "silt key new [FILE] | server | list [--json] | allow KEY STREAM… | deny KEY [STREAM…]\n"
    "\n"
    "Over the network siltd speaks to keys alone, each allowed the streams that were named for "
    "it.\n"
    "A client makes its key and hands out the public part; whoever runs siltd lets it in. All but\n"
    "`new` work over siltd's local socket only.\n"
    "\n"
    "  silt key new                              on the client: makes ~/.config/silt/client.key\n"
    "  silt key allow 'rq5<…>Hx' web app         on siltd's machine: that key, these streams\n"
    "  silt key allow 'rq5<…>Hx' --all --name ops   every stream; a name to tell keys apart\n"
    "  silt key server                           siltd's public key, which clients need\n"
    "  silt -c tcp://HOST:8178 --server-key 'Zf…' ls   on the client, from then on\n"
    "  silt key deny ops                         by key or name: out, at once\n"
    "\n"
    "Keys hold characters that a shell reads: put them in single quotes. One that begins with a\n"
    "dash, as none of silt's does, comes behind `--`, and options before it. A client finds keys\n"
    "in ~/.config/silt/client.conf too, as lines `endpoint = …`, `server-key = …`,\n"
    "`client-key = FILE`.\n"
    "\n"
    "  --all         allow: every stream\n"
    "  --name NAME   allow: what list calls the key (its first letters)\n"
    "  --json        list: as JSON\n";

struct key_options {
    const char *name;
    bool all, json;
};

static int key_new(struct silt *silt, const char *path)
{
    char place[PATH_MAX], public_key[CLIENT_KEY_BYTES + 1];

    if (!path) {
        if (client_key_path(place, sizeof place))
            return silt_usage(silt, "the key's path is too long: name a file");
        path = place;
        /* ~/.config/silt, and ~/.config where even that is missing */
        for (int up = 2; up; up--) {
            char folder[PATH_MAX];

            snprintf(folder, sizeof folder, "%s", place);
            for (int i = 0; i < up; i++)
                *strrchr(folder, '/') = '\0';
            if (mkdir(folder, 0700) && errno != EEXIST) {
                silt_say("the folder %s cannot be made: %s; name a file: silt key new FILE", folder,
                         strerror(errno));
                return EXIT_REFUSED;
            }
        }
    }
    if (client_key_new(path, public_key, &silt->error))
        return silt_fail(silt);
    fprintf(stderr, "silt: the key is in %s; on siltd's machine: silt key allow '%s' STREAM\n",
            path, public_key);
    puts(public_key);
    return EXIT_DONE;
}

static int key_server(struct silt *silt)
{
    struct client_server server;

    if (client_keys(silt->client, &server, NULL, NULL, &silt->error))
        return silt_fail(silt);
    puts(server.key);
    if (!server.listen[0])
        silt_say("it does not listen on the network: siltd --listen tcp://ADDRESS:PORT does");
    return EXIT_DONE;
}

/* ---- list ---- */

static int grant_print(void *user, const struct client_grant *grant)
{
    (void)user;
    printf("%s  %-16s %s\n", grant->key, grant->name, grant->stream[0] ? grant->stream : "(all)");
    return 0;
}

static int grant_json(void *user, const struct client_grant *grant)
{
    json_t *json = json_object();

    json_object_set_new(json, "key", text_json(grant->key, strlen(grant->key)));
    json_object_set_new(json, "name", text_json(grant->name, strlen(grant->name)));
    json_object_set_new(json, "stream",
                        grant->stream[0] ? text_json(grant->stream, strlen(grant->stream))
                                         : json_null());
    return json_array_append_new(user, json);
}

static int key_list(struct silt *silt, bool as_json)
{
    json_t *json = as_json ? json_object() : NULL, *list = as_json ? json_array() : NULL;
    struct client_server server;

    if (client_keys(silt->client, &server, as_json ? grant_json : grant_print, list,
                    &silt->error)) {
        json_decref(json);
        json_decref(list);
        return silt_fail(silt);
    }
    if (!as_json)
        return EXIT_DONE;
    json_object_set_new(json, "server_key", text_json(server.key, strlen(server.key)));
    json_object_set_new(json, "listen", text_json(server.listen, strlen(server.listen)));
    json_object_set_new(json, "grants", list);
    return text_json_print(json);
}

/* ---- allow, deny ---- */

struct named {
    const char *name;
    char key[CLIENT_KEY_BYTES + 1];
    bool found, twice;
    bool all; /* it is allowed every stream */
};

static int grant_named(void *user, const struct client_grant *grant)
{
    struct named *named = user;

    if (strcmp(grant->name, named->name) != 0)
        return 0;
    named->twice |= named->found && strcmp(named->key, grant->key) != 0;
    named->found = true;
    memcpy(named->key, grant->key, sizeof named->key);
    return 0;
}

/* The key itself, or the one of that name. 0 or the exit code after saying so. */
static int key_find(struct silt *silt, const char *text, struct named *out)
{
    *out = (struct named){.name = text};
    if (client_key_valid(text)) {
        memcpy(out->key, text, sizeof out->key);
        return 0;
    }
    if (client_keys(silt->client, NULL, grant_named, out, &silt->error))
        return silt_fail(silt);
    if (out->found && !out->twice)
        return 0;
    silt_say(out->twice ? "\"%s\" is the name of several keys: give the key itself"
                        : "\"%s\" is neither a public key, 40 characters that silt key new "
                          "prints, nor a name that silt key list shows",
             text);
    return EXIT_REFUSED;
}

static int key_allow(struct silt *silt, const struct key_options *options, char **words, int count)
{
    char name[16] = "";
    struct named key;
    int r;

    if (count < 1 || (count == 1) != options->all)
        return silt_usage(silt, "allow takes a key and streams, or a key and --all");
    r = key_find(silt, words[0], &key);
    if (r)
        return r;
    /* Letters of the key itself, as far as a name may have them. */
    for (size_t i = 0, n = 0; i < CLIENT_KEY_BYTES && n < 8; i++)
        if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", key.key[i]))
            name[n++] = key.key[i];
    for (int i = options->all ? 0 : 1; i < count; i++)
        if (client_key_allow(silt->client, key.key,
                             options->name ? options->name
                             : key.found   ? words[0]
                                           : name,
                             options->all ? NULL : words[i], &silt->error))
            return silt_fail(silt);
    return EXIT_DONE;
}

static int grant_of_all(void *user, const struct client_grant *grant)
{
    struct named *named = user;

    named->all |= !grant->stream[0] && strcmp(named->key, grant->key) == 0;
    return 0;
}

/* A key that may use every stream may use this one. 0 or the exit code after saying so. */
static int key_has_all(struct silt *silt, struct named *key)
{
    if (client_keys(silt->client, NULL, grant_of_all, key, &silt->error))
        return silt_fail(silt);
    if (!key->all)
        return 0;
    silt_say("key %s is allowed every stream, and so all of these still: `silt key deny '%s'` "
             "takes back all that it has",
             key->key, key->key);
    return EXIT_REFUSED;
}

static int key_deny(struct silt *silt, const struct key_options *options, char **words, int count)
{
    struct named key;
    int r;

    if (count < 1 || (count > 1 && options->all))
        return silt_usage(silt, "deny takes a key, or a key and streams");
    r = key_find(silt, words[0], &key);
    if (r)
        return r;
    if (count == 1 && client_key_deny(silt->client, key.key, NULL, &silt->error))
        return silt_fail(silt);
    for (int i = 1; i < count; i++) {
        r = client_key_deny(silt->client, key.key, words[i], &silt->error);
        if (r == -ENOENT && key_has_all(silt, &key) == EXIT_REFUSED)
            return EXIT_REFUSED;
        if (r)
            return silt_fail(silt);
    }
    return count > 1 ? key_has_all(silt, &key) : EXIT_DONE;
}

static int key_run(struct silt *silt, const struct key_options *options, char **words, int count)
{
    const char *verb = words[0];
    int r;

    if (!strcmp(verb, "new"))
        return count <= 2 ? key_new(silt, count == 2 ? words[1] : NULL)
                          : silt_usage(silt, "new takes one file");
    if (count > 1 && (!strcmp(verb, "server") || !strcmp(verb, "list")))
        return silt_usage(silt, "%s takes no more words", verb);
    r = silt_connect(silt, 0);
    if (r)
        return r;
    if (!strcmp(verb, "server"))
        return key_server(silt);
    if (!strcmp(verb, "list"))
        return key_list(silt, options->json);
    if (!strcmp(verb, "allow"))
        return key_allow(silt, options, words + 1, count - 1);
    if (!strcmp(verb, "deny"))
        return key_deny(silt, options, words + 1, count - 1);
    return silt_usage(silt, "\"%s\" is not what it does: new, server, list, allow or deny", verb);
}

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {{"all", no_argument, NULL, 'a'},
                                          {"name", required_argument, NULL, 'n'},
                                          {"json", no_argument, NULL, 'j'},
                                          SILT_OPTIONS};
    struct key_options options = {0};
    int option, r;

    while ((option = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
        if (option == 'a') {
            options.all = true;
        } else if (option == 'n') {
            options.name = optarg;
        } else if (option == 'j') {
            options.json = true;
        } else {
            r = silt_option(silt, &command_key, option);
            if (r >= 0)
                return r;
        }
    }
    if (optind == argc)
        return silt_usage(silt, "say new, server, list, allow or deny");
    return key_run(silt, &options, argv + optind, argc - optind);
}

const struct command command_key = {
    .name = "key",
    .summary = "who may reach siltd over the network",
    .help = help,
    .run = run,
};
