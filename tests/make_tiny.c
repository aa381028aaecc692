/* make-tiny DIR [SEED]: writes DIR/tiny.gguf, DIR/tiny-adapter.gguf and, with a map of the summary,
 * DIR/tiny-map.gguf, for scripts and trials. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/tiny_model.h"

int main(int argc, char **argv)
{
    struct tiny_options options = TINY_DEFAULTS;
    char model[4096], adapter[4096], map[4096];
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: make-tiny DIR [SEED]\n");
        return 2;
    }
    if (argc == 3)
        options.seed = strtoull(argv[2], NULL, 0);
    snprintf(model, sizeof model, "%s/tiny.gguf", argv[1]);
    snprintf(adapter, sizeof adapter, "%s/tiny-adapter.gguf", argv[1]);
    snprintf(map, sizeof map, "%s/tiny-map.gguf", argv[1]);
    int result = tiny_model_write(model, &options);
    if (!result)
        result = tiny_adapter_write(adapter, model, &options);
    options.map = TINY_MAP_RANDOM;
    if (!result)
        result = tiny_adapter_write(map, model, &options);
    if (result)
        fprintf(stderr, "make-tiny: %s: %s\n", argv[1], strerror(-result));
    return result ? 1 : 0;
}
