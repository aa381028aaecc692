/* A fuzz target without its fuzzer: the inputs of the committed corpus, once each.
 *
 *     fuzz-NAME FILE…     what breaks ends the program
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    long bytes;

    if (!file || fseek(file, 0, SEEK_END) || (bytes = ftell(file)) < 0) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(2);
    }
    rewind(file);
    /* As much as it has, so that a sanitizer sees the first byte beyond. */
    data = malloc(bytes ? (size_t)bytes : 1);
    if (!data || fread(data, 1, (size_t)bytes, file) != (size_t)bytes)
        exit(2);
    fclose(file);
    LLVMFuzzerTestOneInput(data, (size_t)bytes);
    free(data);
}

int main(int argc, char **argv)
{
    if (LLVMFuzzerInitialize)
        LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    printf("%d inputs\n", argc - 1);
    return 0;
}
