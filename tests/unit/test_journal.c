/* What the journal says of the arithmetic that its streams were computed with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/journal.h"
#include "tests/unit/rig.h"

static char folder[128];

static uint64_t epoch_of(const char *kernels_name, uint32_t kernels_revision)
{
    const struct journal_options options = {.folder = folder,
                                            .model_name = "tiny",
                                            .kernels_name = kernels_name,
                                            .kernels_revision = kernels_revision};
    struct journal *journal;
    char error[ERROR_BYTES_MAX];
    uint64_t epoch;

    assert_int_equal(journal_open(&journal, &options, error, sizeof error), 0);
    epoch = journal_epoch(journal);
    journal_close(&journal);
    return epoch;
}

static void other_bits_are_another_epoch(void **state)
{
    (void)state;
    rig_folder(folder, sizeof folder);
    assert_int_equal(epoch_of("avx2", 1), 1);
    assert_int_equal(epoch_of("avx2", 1), 1);
    assert_int_equal(epoch_of("avx512", 1), 2);
    assert_int_equal(epoch_of("avx512", 2), 3);
    assert_int_equal(epoch_of("avx512", 2), 3);
    assert_int_equal(epoch_of("avx512", 1), 4);
    rig_folder_drop(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(other_bits_are_another_epoch)};
    return cmocka_run_group_tests_name("journal", tests, NULL, NULL);
}
