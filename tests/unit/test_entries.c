/* Entries of a list that a question goes on: which are put before it, and in what order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "daemon/search.h"

static const char *entries(const char *text, const char *question)
{
    static char out[SEARCH_ENTRIES_BYTES + 1];
    uint32_t bytes =
        search_entries((const uint8_t *)text, (uint32_t)strlen(text), (const uint8_t *)question,
                       (uint32_t)strlen(question), (uint8_t *)out);

    assert_true(bytes <= SEARCH_ENTRIES_BYTES);
    out[bytes] = '\0';
    return out;
}

static const char list[] = "the end of a talk.\n\nText: my card is lost\nIntent: lost card\n\n"
                           "Text: what is the rate of the yen\nIntent: rate\n\n \n"
                           "Text: top up my card\nIntent: top up\n\n"
                           "Text: the rate of the euro\nIntent: rate\n\nIntent:\n\n"
                           "Text: the card was stolen\nIntent: lost card\n\n"
                           "Text: the card was stolen\nIntent: lost card\n\nanother talk: lost";

static void a_question_goes_on_a_list(void **state)
{
    char text[4096], most[SEARCH_ENTRIES_BYTES + 8];
    uint32_t seed = 7;

    (void)state;
    /* Each once, whole; those that share most with it last. */
    assert_string_equal(entries(list, "Text: I lost a card\nIntent:"),
                        "Text: what is the rate of the yen\nIntent: rate\n\n"
                        "Text: the rate of the euro\nIntent: rate\n\n"
                        "Text: top up my card\nIntent: top up\n\n"
                        "Text: the card was stolen\nIntent: lost card\n\n"
                        "Text: my card is lost\nIntent: lost card\n\n");
    assert_string_equal(entries("Q: who?\nA: he\n\nA: 6", "\nQ: when?\nA: \n"),
                        "A: 6\n\nQ: who?\nA: he\n\n");
    /* No list, or none that is of the question's form: one alone would be the answer to all. */
    assert_string_equal(entries("Q: who?\nA: he\n\nQ: who?\nA: he", "Q: when?\nA:"), "");
    assert_string_equal(entries(list, "I lost a card\nFolder:"), "");
    assert_string_equal(entries(list, "Intent:"), "");
    assert_string_equal(entries(list, "\nText: my card is lost\n"), "");
    assert_string_equal(entries(list, "Text: I lost a card\n "), "");
    assert_string_equal(entries("Thanks a lot\n\nThanks to all", "Where is it?\nThanks"), "");
    assert_string_equal(entries("a => 1\n\nb => 2\n\nc =>\n\nd:\n=> 4\n\ne\n=> 5", "f\n=> "),
                        "e\n=> 5\n\nd:\n=> 4\n\n");
    assert_string_equal(entries(list, ""), "");
    assert_string_equal(entries("", "a\nIntent:"), "");
    /* One that has no room is none; as many others as fit. */
    memset(most, 'x', sizeof most - 1);
    most[sizeof most - 1] = '\0';
    snprintf(text, sizeof text, "A: %s\n\nA: small\n\nA: b", most);
    assert_string_equal(entries(text, "b\nA:"), "A: small\n\nA: b\n\n");
    most[300] = '\0';
    snprintf(text, sizeof text, "A: 1%s\n\nA: 2%s\n\nA: 3%s", most, most, most);
    assert_int_equal(strlen(entries(text, "b\nA:")), 2 * 306);
    /* Any bytes at all. */
    for (int i = 0; i < 2000; i++) {
        for (size_t j = 0; j + 1 < sizeof text; j++) {
            seed = seed * 1664525 + 1013904223;
            text[j] = "a\n\n: b\xc3"[seed >> 24 & 7];
            text[j] = text[j] ? text[j] : 'c';
        }
        text[sizeof text - 1] = '\0';
        (void)entries(text, "a b\na");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_question_goes_on_a_list),
    };

    return cmocka_run_group_tests_name("entries", tests, NULL, NULL);
}
