/* The client library against a ROUTER socket of the test's own: what the silt command does not use,
 * and what it says before a siltd is asked. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

#include "clients/client.h"
#include "proto/endpoint.h"
#include "proto/silt.pb-c.h"

enum { PATH_MAX_BYTES = 64, CREDIT = 100000 };

/* Acks every feed and remembers the last one; anything else gets an Error of `code`. */
struct peer {
    char endpoint[PATH_MAX_BYTES], folder[PATH_MAX_BYTES];
    void *context;
    pthread_t thread;
    atomic_bool stop;
    atomic_int code; /* -1: attach and feed are taken */
    uint64_t sequence, bytes;
    pthread_mutex_t lock; /* of seen: that libzmq hands it over no sanitizer sees */
    struct seen {
        size_t tokens; /* of the last Tokens item */
        uint32_t token_last;
        char role[16];
    } seen;
};

static void peer_items(struct peer *peer, const Silt__V1__Feed *feed)
{
    pthread_mutex_lock(&peer->lock);
    for (size_t i = 0; i < feed->n_items; i++) {
        const Silt__V1__Item *item = feed->items[i];

        if (item->body_case == SILT__V1__ITEM__BODY_TEXT)
            peer->bytes += item->text.len;
        if (item->body_case == SILT__V1__ITEM__BODY_TURN)
            snprintf(peer->seen.role, sizeof peer->seen.role, "%s", item->turn->role);
        if (item->body_case == SILT__V1__ITEM__BODY_TOKENS) {
            peer->seen.tokens = item->tokens->n_ids;
            peer->seen.token_last = item->tokens->ids[item->tokens->n_ids - 1];
        }
    }
    pthread_mutex_unlock(&peer->lock);
}

static void peer_reply(struct peer *peer, const Silt__V1__Request *request, Silt__V1__Reply *reply,
                       Silt__V1__Attached *attached, Silt__V1__Ack *ack, Silt__V1__Error *error)
{
    int code = atomic_load(&peer->code);

    reply->id = request->id;
    if (code < 0 && request->body_case == SILT__V1__REQUEST__BODY_ATTACH) {
        attached->stream = request->attach->stream;
        attached->producer = request->attach->producer;
        attached->next_sequence = peer->sequence + 1;
        attached->credit_bytes = CREDIT;
        reply->body_case = SILT__V1__REPLY__BODY_ATTACHED;
        reply->attached = attached;
    } else if (code < 0 && request->body_case == SILT__V1__REQUEST__BODY_FEED) {
        peer_items(peer, request->feed);
        peer->sequence = request->feed->sequence;
        ack->stream = request->feed->stream;
        ack->producer = request->feed->producer;
        ack->sequence = peer->sequence;
        ack->bytes_acked = peer->bytes;
        ack->credit_bytes = CREDIT;
        reply->body_case = SILT__V1__REPLY__BODY_ACK;
        reply->ack = ack;
    } else {
        error->code = (Silt__V1__Error__Code)(code < 0 ? 0 : code);
        error->message = (char *)"no such luck";
        error->retry_us = 7;
        reply->body_case = SILT__V1__REPLY__BODY_ERROR;
        reply->error = error;
    }
}

static void peer_turn(struct peer *peer, void *socket)
{
    Silt__V1__Reply reply = SILT__V1__REPLY__INIT;
    Silt__V1__Attached attached = SILT__V1__ATTACHED__INIT;
    Silt__V1__Ack ack = SILT__V1__ACK__INIT;
    Silt__V1__Error error = SILT__V1__ERROR__INIT;
    Silt__V1__Request *request;
    uint8_t who[64], out[1024];
    zmq_msg_t frame;
    int who_bytes = zmq_recv(socket, who, sizeof who, ZMQ_DONTWAIT);

    if (who_bytes < 0)
        return;
    zmq_msg_init(&frame);
    zmq_msg_recv(&frame, socket, 0);
    request = silt__v1__request__unpack(NULL, zmq_msg_size(&frame), zmq_msg_data(&frame));
    zmq_msg_close(&frame);
    if (!request)
        return;
    peer_reply(peer, request, &reply, &attached, &ack, &error);
    zmq_send(socket, who, (size_t)who_bytes, ZMQ_SNDMORE);
    zmq_send(socket, out, protobuf_c_message_pack(&reply.base, out), 0);
    silt__v1__request__free_unpacked(request, NULL);
}

static void *peer_main(void *user)
{
    struct peer *peer = user;
    void *socket = zmq_socket(peer->context, ZMQ_ROUTER);
    zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};

    if (zmq_bind(socket, peer->endpoint) == 0)
        while (!atomic_load(&peer->stop))
            if (zmq_poll(&item, 1, 20) > 0)
                peer_turn(peer, socket);
    zmq_close(socket);
    return NULL;
}

static int peer_start(void **state)
{
    struct peer *peer = calloc(1, sizeof *peer);

    snprintf(peer->folder, sizeof peer->folder, "/tmp/silt-unit-XXXXXX");
    if (!mkdtemp(peer->folder))
        return -1;
    snprintf(peer->endpoint, sizeof peer->endpoint, "ipc://%.40s/s", peer->folder);
    atomic_store(&peer->code, -1);
    pthread_mutex_init(&peer->lock, NULL);
    peer->context = zmq_ctx_new();
    *state = peer;
    return pthread_create(&peer->thread, NULL, peer_main, peer);
}

static int peer_stop(void **state)
{
    struct peer *peer = *state;

    atomic_store(&peer->stop, true);
    pthread_join(peer->thread, NULL);
    zmq_ctx_term(peer->context);
    unlink(peer->endpoint + strlen("ipc://"));
    rmdir(peer->folder);
    free(peer);
    return 0;
}

static struct client *connected(const struct peer *peer)
{
    struct client_options options = {.endpoint = peer->endpoint};
    struct client *client;

    assert_int_equal(client_open(&client, &options, NULL), 0);
    return client;
}

static void names_are_checked_before_siltd_is_asked(void **state)
{
    static const char *const bad[] = {"", ".a", "a/b", "a b", "\xc3\xa9"};
    struct client *client = connected(*state);
    struct client_error error;
    struct producer *producer;
    char long_name[WIRE_NAME_BYTES_MAX + 2];

    memset(long_name, 'a', sizeof long_name);
    long_name[sizeof long_name - 1] = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(client_stream_remove(client, bad[i], &error), -EINVAL);
        assert_int_equal(error.code, -EINVAL);
        assert_non_null(strstr(error.text, "not a stream name"));
    }
    assert_int_equal(client_stream_open(client, long_name, NULL, NULL, &error), -EINVAL);
    assert_int_equal(producer_open(&producer, client, "s", "no/where", &error), -EINVAL);
    assert_null(producer);
    client_close(&client);
    client_close(&client);
}

/* Whatever libzmq is about to say of a connection when its client goes. */
static void clients_come_and_go(void **state)
{
    for (int i = 0; i < 100; i++) {
        struct client *client = connected(*state);

        client_close(&client);
        assert_null(client);
    }
}

enum { EVENT_SECOND_BYTES = 8 }; /* that the library reads of an event's second part */
static bool events_part;         /* by a signal between its two parts */

int __real_zmq_recv(void *socket, void *out, size_t bytes, int flags);
int __wrap_zmq_recv(void *socket, void *out, size_t bytes, int flags);

int __wrap_zmq_recv(void *socket, void *out, size_t bytes, int flags)
{
    static unsigned calls;

    if (!events_part || bytes != EVENT_SECOND_BYTES || calls++ % 2)
        return __real_zmq_recv(socket, out, bytes, flags);
    errno = EINTR;
    return -1;
}

/* Else each would be read for a part of the one before: that there is a connection is not heard. */
static void a_signal_parts_no_event(void **state)
{
    struct peer *peer = *state;
    struct client_options options = {.endpoint = peer->endpoint, .connect_ms = 2000};
    struct client *client;

    atomic_store(&peer->code, 0);
    events_part = true;
    assert_int_equal(client_open(&client, &options, NULL), 0);
    assert_int_equal(client_stream_remove(client, "s", NULL), -EIO);
    events_part = false;
    client_close(&client);
}

static void tick(int signal_number)
{
    (void)signal_number;
}

static size_t threads_count(void)
{
    DIR *folder = opendir("/proc/self/task");
    size_t count = 0;

    assert_non_null(folder);
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

/* Closing one waits for libzmq's threads, which a signal interrupts. */
static void signals_leave_nothing_of_a_client(void **state)
{
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    const struct sigaction action = {.sa_handler = tick};
    size_t threads;

    clients_come_and_go(state);
    threads = threads_count();
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    clients_come_and_go(state);
    setitimer(ITIMER_REAL, &never, NULL);
    assert_int_equal(threads_count(), threads);
}

static void errors_have_a_code_and_a_sentence(void **state)
{
    static const int expect[] = {-EIO,      -EINVAL, -ENOENT, -EEXIST,     -EBUSY,    -EILSEQ,
                                 -EMSGSIZE, -ENOSPC, -EACCES, -EOPNOTSUPP, -ESHUTDOWN};
    struct peer *peer = *state;
    struct client *client = connected(peer);
    struct client_error error;

    for (int code = 0; code < (int)(sizeof expect / sizeof *expect); code++) {
        atomic_store(&peer->code, code);
        assert_int_equal(client_stream_remove(client, "s", &error), expect[code]);
        assert_string_equal(error.text, "no such luck");
        assert_int_equal(error.retry_us, 7);
        assert_int_equal(client_stream_remove(client, "s", NULL), expect[code]);
    }
    client_close(&client);
}

static void items_of_every_kind_arrive(void **state)
{
    struct peer *peer = *state;
    struct client *client = connected(peer);
    struct client_error error;
    struct producer *producer;
    struct producer_status status;
    struct seen seen;
    static uint8_t text[CLIENT_ITEM_BYTES_MAX + 1];
    uint32_t tokens[1000];
    struct client_item item = {.kind = ITEM_TOKENS, .tokens = tokens, .tokens_count = 1000};

    for (uint32_t i = 0; i < 1000; i++)
        tokens[i] = i;
    assert_int_equal(producer_open(&producer, client, "s", "p", &error), 0);
    assert_int_equal(producer_room(producer), CREDIT);
    assert_int_equal(producer_send(producer, &item, 1, 0, &error), 0);
    item = (struct client_item){.kind = ITEM_TURN, .bytes = text, .bytes_count = 5, .role = "tool"};
    assert_int_equal(producer_send(producer, &item, 1, 0, &error), 0);
    assert_int_equal(producer_write(producer, text, 3 * CREDIT + 7, &error), 0);
    assert_int_equal(producer_drain(producer, 10000, &error), 0);
    pthread_mutex_lock(&peer->lock);
    seen = peer->seen;
    pthread_mutex_unlock(&peer->lock);
    assert_int_equal(seen.tokens, 1000);
    assert_int_equal(seen.token_last, 999);
    assert_string_equal(seen.role, "tool");
    producer_status(producer, &status);
    assert_int_equal(status.bytes_acked, 3 * CREDIT + 7);
    assert_int_equal(status.sequence_acked, status.sequence_sent);
    assert_int_equal(status.held_count, 0);

    item = (struct client_item){
        .kind = ITEM_TEXT, .bytes = text, .bytes_count = CLIENT_ITEM_BYTES_MAX + 1};
    assert_int_equal(producer_send(producer, &item, 1, 0, &error), -EMSGSIZE);
    assert_int_equal(producer_send(producer, &item, 0, 0, &error), -EINVAL);
    producer_close(&producer);
    client_close(&client);
}

static void a_refused_producer_says_why(void **state)
{
    struct peer *peer = *state;
    struct client *client = connected(peer);
    struct client_item mark = {.kind = ITEM_MARK, .mark = MARK_FLUSH};
    struct client_error error;
    struct producer *producer;

    atomic_store(&peer->code, SILT__V1__ERROR__CODE__NOT_FOUND);
    assert_int_equal(producer_open(&producer, client, "s", "p", &error), -ENOENT);
    assert_null(producer);
    atomic_store(&peer->code, -1);
    assert_int_equal(producer_open(&producer, client, "s", "p", &error), 0);
    atomic_store(&peer->code, SILT__V1__ERROR__CODE__NO_SPACE);
    assert_int_equal(producer_send(producer, &mark, 1, 0, &error), 0);
    assert_int_equal(producer_drain(producer, 10000, &error), -ENOSPC);
    assert_int_equal(producer_fault(producer, &error), -ENOSPC);
    assert_string_equal(error.text, "no such luck");
    producer_close(&producer);
    client_close(&client);
}

static void waiting_ends(void **state)
{
    static atomic_bool interrupted;
    struct client_options options = {
        .endpoint = "ipc:///nowhere/at/all", .connect_ms = 300, .interrupted = &interrupted};
    struct client_process_stat stat;
    struct client_error error;
    struct client *client;

    (void)state;
    assert_int_equal(client_open(&client, &options, &error), 0);
    assert_int_equal(client_process_stat(client, &stat, &error), -ECONNREFUSED);
    assert_non_null(strstr(error.text, "no siltd answers at ipc:///nowhere/at/all"));
    client_close(&client);
    options.connect_ms = CLIENT_WAIT_FOREVER;
    assert_int_equal(client_open(&client, &options, &error), 0);
    interrupted = true;
    assert_int_equal(client_process_stat(client, &stat, &error), -EINTR);
    interrupted = false;
    client_close(&client);
    options.endpoint = "no endpoint";
    assert_true(client_open(&client, &options, &error) < 0);
    assert_null(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names_are_checked_before_siltd_is_asked, peer_start,
                                        peer_stop),
        cmocka_unit_test_setup_teardown(clients_come_and_go, peer_start, peer_stop),
        cmocka_unit_test_setup_teardown(a_signal_parts_no_event, peer_start, peer_stop),
        cmocka_unit_test_setup_teardown(signals_leave_nothing_of_a_client, peer_start, peer_stop),
        cmocka_unit_test_setup_teardown(errors_have_a_code_and_a_sentence, peer_start, peer_stop),
        cmocka_unit_test_setup_teardown(items_of_every_kind_arrive, peer_start, peer_stop),
        cmocka_unit_test_setup_teardown(a_refused_producer_says_why, peer_start, peer_stop),
        cmocka_unit_test(waiting_ends),
    };

    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
