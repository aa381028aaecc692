/*
 * wire: frames to structs and back. Nothing of a frame is trusted.
 *
 * A request is unpacked by protobuf-c into a bump arena of fixed size, checked whole, and handed on
 * as plain structs whose pointers live until the next wire_parse. A reply is packed into the
 * caller's buffer.
 */
#ifndef SILT_DAEMON_WIRE_H
#define SILT_DAEMON_WIRE_H

#include "daemon/daemon.h"
#include "proto/silt.pb-c.h"

enum wire_door { DOOR_LOCAL, DOOR_NETWORK };
struct wire_client {
    uint8_t bytes; /* of id; 0: nobody */
    uint8_t door;
    char key[WIRE_KEY_BYTES + 1]; /* of who came through DOOR_NETWORK, as CURVE proved it */
    uint8_t id[CLIENT_ID_BYTES_MAX];
};

struct bump {
    uint8_t *bytes; /* [capacity] */
    size_t capacity, used;
    bool full; /* an allocation was refused */
};

enum request_kind {
    REQUEST_OPEN,
    REQUEST_ATTACH,
    REQUEST_FEED,
    REQUEST_ASK,
    REQUEST_CANCEL,
    REQUEST_STAT,
    REQUEST_LIST,
    REQUEST_REMOVE,
    REQUEST_FORK,
    REQUEST_KEYS,
    REQUEST_PINS,
    REQUEST_FORGET,
};

enum item_kind {
    ITEM_TEXT = 1,
    ITEM_TOKENS = 2,
    ITEM_TURN = 3,
    ITEM_MARK = 4,
    ITEM_GAP = 5, /* the journal's alone: tokens that were trimmed away, their number as u64 */
};
enum { GAP_TOKEN = 0 /* read in their place */ };
enum turn_role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, ROLE_COUNT };
enum mark_kind { MARK_FLUSH, MARK_END_OF_INPUT, MARK_PRODUCER_CHANGE };

struct wire_item {
    enum item_kind kind;
    uint32_t detail;      /* of a turn its role, of a mark its kind */
    const uint8_t *bytes; /* text, or token ids as int32 */
    uint32_t bytes_count;
};

struct wire_request {
    uint64_t id;
    uint64_t change; /* what a repeat of the same request has too, and no other; 0: it has none */
    enum request_kind kind;
    const char *stream;   /* all but cancel; "" where it may be */
    const char *producer; /* attach, feed */
    const char *branch;   /* fork */
    /* open */
    uint32_t dmc_ratio, ring_segments;
    bool dmc_auto;
    /* feed */
    uint64_t sequence, time_us;
    const struct wire_item *items; /* [item_count] */
    uint32_t item_count;
    /* ask */
    const Silt__V1__Ask *ask;
    /* pins */
    Silt__V1__Pins__Verb verb;
    /* keys */
    const Silt__V1__Keys *keys;
    /* cancel */
    uint64_t ask_id;
    /* forget, pins */
    uint64_t from, to;
};

struct wire_fault {
    Silt__V1__Error__Code code;
    uint64_t id; /* of the request, where it could be read */
    char message[ERROR_BYTES_MAX];
};

const char *wire_role_name(uint32_t role);
/* vocab_count bounds token ids. 0, or -EINVAL with the fault to answer. */
int wire_parse(struct bump *bump, const uint8_t *frame, size_t frame_bytes, uint32_t vocab_count,
               struct wire_request *out, struct wire_fault *fault);
/* Bytes written, or -EMSGSIZE. */
int wire_pack(const Silt__V1__Reply *reply, uint8_t *out, size_t out_bytes);
/* 1 to bytes_max of A-Z a-z 0-9 . _ - that do not start with a dot. */
bool wire_name_valid(const char *name, size_t bytes_max);
bool wire_utf8_valid(const uint8_t *text, size_t bytes);

#endif
