/*
 * libFuzzer: any bytes as a frame. What parses must say nothing that the daemon could not use, and
 * a refusal has a sentence.
 *
 *     clang -g -O1 -std=c17 -D_GNU_SOURCE -I. -fsanitize=fuzzer,address,undefined \
 *         tests/fuzz/fuzz_wire.c daemon/wire.c proto/silt.pb-c.c -lprotobuf-c
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/wire.h"

enum { VOCAB = 49152 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check(bool right)
{
    if (!right)
        abort();
}

static void check_items(const struct wire_request *request)
{
    volatile uint8_t sink = 0;
    size_t sum = 0;

    check(request->item_count > 0 && request->item_count <= ITEMS_MAX && request->sequence > 0);
    for (uint32_t i = 0; i < request->item_count; i++) {
        const struct wire_item *item = &request->items[i];

        check(item->kind >= ITEM_TEXT && item->kind <= ITEM_MARK);
        for (uint32_t j = 0; j < item->bytes_count; j++)
            sink ^= item->bytes[j];
        for (uint32_t j = 0; item->kind == ITEM_TOKENS && j < item->bytes_count / 4; j++) {
            uint32_t token;

            memcpy(&token, item->bytes + 4 * j, sizeof token);
            check(token < VOCAB);
        }
        sum += item->bytes_count;
    }
    /* What the loop thread packs them into for the journal. */
    check(sum + request->item_count * (size_t)24 + 1024 <= 2 * (size_t)FRAME_BYTES_MAX);
    (void)sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct bump bump;
    struct wire_request request;
    struct wire_fault fault;

    if (!bump.bytes) {
        bump.capacity = UNPACK_BYTES_MAX;
        bump.bytes = aligned_alloc(64, bump.capacity);
        check(bump.bytes != NULL);
    }
    if (wire_parse(&bump, data, bytes, VOCAB, &request, &fault) != 0) {
        check(fault.message[0] != '\0');
        return 0;
    }
    check(request.kind == REQUEST_CANCEL || strlen(request.stream) <= NAME_BYTES_MAX);
    if (request.kind == REQUEST_FEED)
        check_items(&request);
    if (request.kind == REQUEST_ASK)
        check(strlen(request.ask->question) <= QUESTION_BYTES_MAX);
    return 0;
}
