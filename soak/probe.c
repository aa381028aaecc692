/* probe: see probe.h. */
#include "soak/probe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LOCK_BYTES = 16, ANSWER_BYTES = 512, TRIES = 200, TRY_MS = 50, ANSWER_TOKENS = 24 };

struct text {
    char bytes[ANSWER_BYTES]; /* terminated */
    size_t count;
};

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The keeper's name is a word and a number: no other fact has it. */
static void name_of(const struct probe *probe, uint32_t fact, char out[FACT_BYTES])
{
    static const char *const words[] = {"walnut", "cobalt",  "heron", "saffron",
                                        "basalt", "juniper", "otter", "quartz"};
    uint64_t x = mix(probe->seed ^ (uint64_t)fact << 20);

    snprintf(out, FACT_BYTES, "%s-%u", words[x % 8], (unsigned)(x >> 8) % 1000000);
}

/* A word that stands nowhere else in the stream. */
static const char *lock_of(const struct probe *probe, uint32_t fact, char out[LOCK_BYTES])
{
    snprintf(out, LOCK_BYTES, "L%06x", (unsigned)(mix(~probe->seed ^ fact) & 0xffffff));
    return out;
}

size_t probe_plant(struct probe *probe, char *out)
{
    char name[FACT_BYTES], lock[LOCK_BYTES];
    int bytes;

    if (probe->planted == FACTS_MAX)
        return 0;
    name_of(probe, probe->planted, name);
    bytes = snprintf(out, FACT_BYTES, "\nThe keeper of lock %s is called %.40s.\n",
                     lock_of(probe, probe->planted, lock), name);
    return (size_t)bytes;
}

void probe_planted(struct probe *probe, uint64_t end)
{
    if (probe->planted < FACTS_MAX)
        probe->end[probe->planted++] = end;
}

static int on_text(void *user, const uint8_t *bytes, size_t bytes_count)
{
    struct text *text = user;
    size_t room = sizeof text->bytes - 1 - text->count;

    if (bytes_count > room)
        bytes_count = room;
    memcpy(text->bytes + text->count, bytes, bytes_count);
    text->count += bytes_count;
    text->bytes[text->count] = '\0';
    return 0;
}

static int ask_once(struct client *client, const struct client_ask *ask, const char *name,
                    struct probe *probe, struct client_error *error)
{
    struct client_answer answer = {0};
    struct text text = {0};
    bool found = false;
    int r = client_ask(client, ask, on_text, &text, &answer, error);

    if (r)
        return r;
    for (size_t i = 0; i < answer.source_count; i++)
        found |= answer.sources[i].text && strstr(answer.sources[i].text, name);
    probe->asked++;
    probe->found += found;
    probe->answered += strstr(text.bytes, name) != NULL;
    client_answer_free(&answer);
    return 0;
}

int probe_ask(struct probe *probe, struct client *client, const char *stream, uint64_t before,
              struct client_error *error)
{
    static const struct client_sampling greedy = {.repeat_penalty = 1};
    char name[FACT_BYTES], question[FACT_BYTES], lock[LOCK_BYTES];
    struct client_ask ask = {.stream = stream,
                             .question = question,
                             .recall = RECALL_TEXT,
                             .tokens_max = ANSWER_TOKENS,
                             .sampling = &greedy};
    uint32_t fact, known = probe->planted;
    int r = -EBUSY;

    while (known && probe->end[known - 1] > before)
        known--;
    if (!known)
        return 0;
    fact = (uint32_t)(mix(probe->seed + probe->asked) % known);
    name_of(probe, fact, name);
    snprintf(question, sizeof question, "What is the keeper of lock %s called?",
             lock_of(probe, fact, lock));
    for (int i = 0; i < TRIES && r == -EBUSY; i++) {
        r = ask_once(client, &ask, name, probe, error);
        if (r == -EBUSY)
            nanosleep(&(struct timespec){.tv_nsec = TRY_MS * 1000000L}, NULL);
    }
    return r;
}
