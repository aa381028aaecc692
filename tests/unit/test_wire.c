/* Requests parse into what they say, and everything that is wrong is refused with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/wire.h"

enum { VOCAB = 1000 };

static struct bump bump;
static uint8_t *frame;
static struct wire_request request;
static struct wire_fault fault;

static int set_up(void **state)
{
    (void)state;
    bump.capacity = UNPACK_BYTES_MAX;
    bump.bytes = aligned_alloc(64, bump.capacity);
    frame = malloc(2 * FRAME_BYTES_MAX);
    return bump.bytes && frame ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    free(bump.bytes);
    free(frame);
    return 0;
}

static int parse(const Silt__V1__Request *message)
{
    size_t bytes = silt__v1__request__get_packed_size(message);

    assert_true(bytes <= 2 * FRAME_BYTES_MAX);
    silt__v1__request__pack(message, frame);
    return wire_parse(&bump, frame, bytes, VOCAB, &request, &fault);
}

static int parse_open(const char *name)
{
    Silt__V1__Request message = SILT__V1__REQUEST__INIT;
    Silt__V1__Open open = SILT__V1__OPEN__INIT;

    message.id = 7;
    message.body_case = SILT__V1__REQUEST__BODY_OPEN;
    message.open = &open;
    open.stream = (char *)(uintptr_t)name;
    open.dmc_ratio = 4;
    return parse(&message);
}

static void names(void **state)
{
    char name[NAME_BYTES_MAX + 2];

    (void)state;
    assert_int_equal(parse_open("a.log_2-B"), 0);
    assert_string_equal(request.stream, "a.log_2-B");
    assert_int_equal(request.id, 7);
    assert_int_equal(request.dmc_ratio, 4);
    memset(name, 'x', sizeof name);
    name[NAME_BYTES_MAX] = '\0';
    assert_int_equal(parse_open(name), 0);
    name[NAME_BYTES_MAX] = 'x';
    name[NAME_BYTES_MAX + 1] = '\0';
    for (const char *const *bad = (const char *const[]){"", ".", ".a", "a/b", "a b", "\xc3\xa4",
                                                        "a\xff", "a\n", name, NULL};
         *bad; bad++) {
        assert_int_equal(parse_open(*bad), -EINVAL);
        assert_int_equal(fault.code, SILT__V1__ERROR__CODE__INVALID);
        assert_int_equal(fault.id, 7);
        assert_non_null(strstr(fault.message, "name"));
    }
}

static int parse_feed(Silt__V1__Item **items, size_t count)
{
    Silt__V1__Request message = SILT__V1__REQUEST__INIT;
    Silt__V1__Feed feed = SILT__V1__FEED__INIT;

    message.body_case = SILT__V1__REQUEST__BODY_FEED;
    message.feed = &feed;
    feed.stream = (char *)(uintptr_t) "s";
    feed.producer = (char *)(uintptr_t) "p";
    feed.sequence = 3;
    feed.items = items;
    feed.n_items = count;
    return parse(&message);
}

static void items(void **state)
{
    Silt__V1__Item text, tokens, turn, mark;
    Silt__V1__Tokens ids = SILT__V1__TOKENS__INIT;
    Silt__V1__Turn said = SILT__V1__TURN__INIT;
    Silt__V1__Mark end = SILT__V1__MARK__INIT;
    Silt__V1__Item *list[] = {&text, &tokens, &turn, &mark};
    uint32_t numbers[] = {1, 999};

    (void)state;
    for (int i = 0; i < 4; i++)
        silt__v1__item__init(list[i]);
    text.body_case = SILT__V1__ITEM__BODY_TEXT;
    text.text.data = (uint8_t *)(uintptr_t) "\xff\x00ok";
    text.text.len = 4;
    tokens.body_case = SILT__V1__ITEM__BODY_TOKENS;
    tokens.tokens = &ids;
    ids.ids = numbers;
    ids.n_ids = 2;
    turn.body_case = SILT__V1__ITEM__BODY_TURN;
    turn.turn = &said;
    said.role = (char *)(uintptr_t) "assistant";
    said.text.data = (uint8_t *)(uintptr_t) "yes";
    said.text.len = 3;
    mark.body_case = SILT__V1__ITEM__BODY_MARK;
    mark.mark = &end;
    end.kind = SILT__V1__MARK__KIND__END_OF_INPUT;
    assert_int_equal(parse_feed(list, 4), 0);
    assert_int_equal(request.item_count, 4);
    assert_int_equal(request.sequence, 3);
    assert_int_equal(request.items[0].kind, ITEM_TEXT);
    assert_memory_equal(request.items[0].bytes, "\xff\x00ok", 4);
    assert_int_equal(request.items[1].bytes_count, 8);
    assert_memory_equal(request.items[1].bytes, numbers, 8);
    assert_int_equal(request.items[2].detail, ROLE_ASSISTANT);
    assert_int_equal(request.items[3].detail, MARK_END_OF_INPUT);
    numbers[1] = VOCAB;
    assert_int_equal(parse_feed(list, 4), -EINVAL);
    assert_non_null(strstr(fault.message, "vocabulary"));
    numbers[1] = 5;
    said.role = (char *)(uintptr_t) "robot";
    assert_int_equal(parse_feed(list, 4), -EINVAL);
    said.role = (char *)(uintptr_t) "user";
    end.kind = (Silt__V1__Mark__Kind)9;
    assert_int_equal(parse_feed(list, 4), -EINVAL);
    assert_int_equal(parse_feed(list, 0), -EINVAL);
}

static void too_much(void **state)
{
    static Silt__V1__Item item;
    static Silt__V1__Item *list[200000];

    (void)state;
    silt__v1__item__init(&item);
    item.body_case = SILT__V1__ITEM__BODY_TEXT;
    item.text.data = calloc(1, FRAME_BYTES_MAX);
    item.text.len = FRAME_BYTES_MAX - 64;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        list[i] = &item;
    assert_int_equal(parse_feed(list, 1), 0);
    item.text.len = FRAME_BYTES_MAX;
    assert_int_equal(parse_feed(list, 1), -EINVAL);
    assert_int_equal(fault.code, SILT__V1__ERROR__CODE__TOO_LARGE);
    free(item.text.data);
    item.text.data = NULL;
    item.text.len = 0;
    assert_int_equal(parse_feed(list, ITEMS_MAX), 0);
    assert_int_equal(parse_feed(list, ITEMS_MAX + 1), -EINVAL);
    /* A frame that unpacks to far more than its size. */
    assert_int_equal(parse_feed(list, sizeof list / sizeof *list), -EINVAL);
    assert_int_equal(fault.code, SILT__V1__ERROR__CODE__TOO_LARGE);
}

static int parse_ask(Silt__V1__Ask *ask)
{
    Silt__V1__Request message = SILT__V1__REQUEST__INIT;

    message.body_case = SILT__V1__REQUEST__BODY_ASK;
    message.ask = ask;
    return parse(&message);
}

static void questions(void **state)
{
    static char longest[QUESTION_BYTES_MAX + 2];
    Silt__V1__Ask ask = SILT__V1__ASK__INIT;
    Silt__V1__Sampling sampling = SILT__V1__SAMPLING__INIT;
    char *stops[STOP_STRINGS_MAX + 1];

    (void)state;
    ask.stream = (char *)(uintptr_t) "s";
    ask.question = (char *)(uintptr_t) "Wer z\xc3\xa4hlt?";
    assert_int_equal(parse_ask(&ask), 0);
    assert_string_equal(request.ask->question, ask.question);
    ask.question = (char *)(uintptr_t) "bad \xc3(";
    assert_int_equal(parse_ask(&ask), -EINVAL);
    assert_non_null(strstr(fault.message, "UTF-8"));
    ask.question = (char *)(uintptr_t) "";
    assert_int_equal(parse_ask(&ask), -EINVAL);
    memset(longest, 'x', sizeof longest - 1);
    ask.question = longest;
    assert_int_equal(parse_ask(&ask), -EINVAL);
    longest[QUESTION_BYTES_MAX] = '\0';
    assert_int_equal(parse_ask(&ask), 0);
    ask.recall = (Silt__V1__Ask__Recall)9;
    assert_int_equal(parse_ask(&ask), -EINVAL);
    assert_non_null(strstr(fault.message, "recall"));
    ask.recall = SILT__V1__ASK__RECALL__TEXT;
    assert_int_equal(parse_ask(&ask), 0);
    for (size_t i = 0; i <= STOP_STRINGS_MAX; i++)
        stops[i] = (char *)(uintptr_t) "stop";
    ask.stop = stops;
    ask.n_stop = STOP_STRINGS_MAX;
    assert_int_equal(parse_ask(&ask), 0);
    ask.n_stop++;
    assert_int_equal(parse_ask(&ask), -EINVAL);
    ask.n_stop = 0;
    ask.sampling = &sampling;
    sampling.temperature = 1;
    assert_int_equal(parse_ask(&ask), 0);
    sampling.temperature = -1;
    assert_int_equal(parse_ask(&ask), -EINVAL);
    sampling.temperature = 0.0f / 0.0f;
    assert_int_equal(parse_ask(&ask), -EINVAL);
}

static uint64_t change_of(uint64_t number, const char *stream, const char *branch)
{
    Silt__V1__Request message = SILT__V1__REQUEST__INIT;
    Silt__V1__Remove remove = SILT__V1__REMOVE__INIT;
    Silt__V1__Fork fork = SILT__V1__FORK__INIT;

    message.change = number;
    message.body_case = branch ? SILT__V1__REQUEST__BODY_FORK : SILT__V1__REQUEST__BODY_REMOVE;
    if (branch)
        message.fork = &fork;
    else
        message.remove = &remove;
    remove.stream = fork.stream = (char *)(uintptr_t)stream;
    fork.branch = (char *)(uintptr_t)branch;
    assert_int_equal(parse(&message), 0);
    return request.change;
}

/* The same request with the same number is the same change; nothing else is. */
static void changes(void **state)
{
    uint64_t one = change_of(9, "a", NULL);

    (void)state;
    assert_true(one && one == change_of(9, "a", NULL));
    assert_true(one != change_of(8, "a", NULL) && one != change_of(9, "b", NULL));
    assert_true(one != change_of(9, "a", "b"));
    assert_true(change_of(9, "a", "b") != change_of(9, "b", "a"));
    assert_int_equal(change_of(0, "a", NULL), 0);
    assert_int_equal(parse_open("a"), 0);
    assert_int_equal(request.change, 0);
}

static void utf8(void **state)
{
    static const struct {
        const char *text;
        bool valid;
    } cases[] = {
        {"", true},
        {"plain", true},
        {"\xc2\x80", true},
        {"\xe2\x82\xac", true},
        {"\xf0\x9f\x98\x80", true},
        {"\xf4\x8f\xbf\xbf", true},
        {"\x80", false},
        {"\xc0\x80", false},
        {"\xc3", false},
        {"\xe0\x80\x80", false},
        {"\xed\xa0\x80", false},
        {"\xf4\x90\x80\x80", false},
        {"\xf8\x88\x80\x80\x80", false},
        {"a\xc3(", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(wire_utf8_valid((const uint8_t *)cases[i].text, strlen(cases[i].text)),
                         cases[i].valid);
}

/* Random bytes, and good frames with some bytes changed or cut off: refused or parsed, never worse;
 * the sanitizers watch. */
static void garbage(void **state)
{
    uint64_t seed = 42;
    size_t bytes;

    (void)state;
    assert_int_equal(parse_open("stream"), 0);
    bytes = 7 + 4;
    for (int round = 0; round < 20000; round++) {
        uint8_t copy[64];
        size_t count = sizeof copy;

        for (size_t i = 0; i < sizeof copy; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            copy[i] = (uint8_t)(seed >> 56);
        }
        if (round % 2) {
            uint8_t noise = copy[0], at = copy[1];

            memcpy(copy, frame, bytes);
            copy[at % bytes] ^= noise;
            count = bytes - noise % 3;
        }
        if (wire_parse(&bump, copy, count, VOCAB, &request, &fault) != 0)
            assert_true(fault.message[0] != '\0');
    }
    assert_int_equal(wire_parse(&bump, frame, 0, VOCAB, &request, &fault), -EINVAL);
}

static void replies(void **state)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT, *back;
    Silt__V1__Ack ack = SILT__V1__ACK__INIT;
    uint8_t out[256];
    int bytes;

    (void)state;
    reply.id = 9;
    reply.body_case = SILT__V1__REPLY__BODY_ACK;
    reply.ack = &ack;
    ack.stream = (char *)(uintptr_t) "s";
    ack.tokens_acked = UINT64_MAX;
    bytes = wire_pack(&reply, out, sizeof out);
    assert_true(bytes > 0);
    assert_int_equal(wire_pack(&reply, out, (size_t)bytes - 1), -EMSGSIZE);
    back = silt__v1__reply__unpack(NULL, (size_t)bytes, out);
    assert_non_null(back);
    assert_true(back->id == 9 && back->ack->tokens_acked == UINT64_MAX);
    silt__v1__reply__free_unpacked(back, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),     cmocka_unit_test(items),   cmocka_unit_test(too_much),
        cmocka_unit_test(questions), cmocka_unit_test(utf8),    cmocka_unit_test(garbage),
        cmocka_unit_test(replies),   cmocka_unit_test(changes),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
