/* text: numbers, times, bytes and tables as people and JSON readers want them. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/silt/silt.h"

const char *text_bytes(char *out, uint64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 999.95 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(out, TEXT_BYTES, "%.*f %s", unit ? 1 : 0, value, units[unit]);
    return out;
}

const char *text_count(char *out, uint64_t count)
{
    char digits[TEXT_BYTES];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, count);
    char *at = out;

    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = 0;
    return out;
}

const char *text_seconds(char *out, double seconds)
{
    uint64_t whole = seconds > 0 ? (uint64_t)seconds : 0;

    if (seconds < 100)
        snprintf(out, TEXT_BYTES, "%.1f s", seconds);
    else if (whole < 3600)
        snprintf(out, TEXT_BYTES, "%" PRIu64 ":%02u", whole / 60, (unsigned)(whole % 60));
    else
        snprintf(out, TEXT_BYTES, "%" PRIu64 ":%02u:%02u", whole / 3600,
                 (unsigned)(whole / 60 % 60), (unsigned)(whole % 60));
    return out;
}

const char *text_time(char *out, uint64_t time_us)
{
    time_t seconds = (time_t)(time_us / 1000000);
    struct tm tm;

    localtime_r(&seconds, &tm);
    strftime(out, TEXT_BYTES, "%Y-%m-%d %H:%M:%S", &tm);
    return out;
}

const char *text_time_iso(char *out, uint64_t time_us)
{
    time_t seconds = (time_t)(time_us / 1000000);
    struct tm tm;
    size_t n;

    gmtime_r(&seconds, &tm);
    n = strftime(out, TEXT_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, TEXT_BYTES - n, ".%03uZ", (unsigned)(time_us / 1000 % 1000));
    return out;
}

size_t text_whole(const char *text, size_t bytes, size_t most)
{
    if (bytes <= most)
        return bytes;
    while (most && (text[most] & 0xc0) == 0x80)
        most--;
    return most;
}

void text_print(FILE *out, const void *bytes, size_t bytes_count)
{
    static uint8_t before; /* text comes in pieces, cut anywhere */
    const uint8_t *at = bytes;

    if (!isatty(fileno(out))) {
        fwrite(bytes, 1, bytes_count, out);
        return;
    }
    /* Text of a log may carry escape sequences that somebody put there for whoever reads it; U+0080
     * to U+009F, which 0xc2 begins, are such too. */
    for (size_t i = 0; i < bytes_count; i++) {
        bool steers = (at[i] < 32 && at[i] != '\n' && at[i] != '\t') || at[i] == 127 ||
                      (before == 0xc2 && at[i] < 0xa0);

        before = at[i];
        putc(steers ? '?' : at[i], out);
    }
}

/* Bytes of the UTF-8 character at `at`; 0: it is none. */
static size_t utf8_length(const uint8_t *at, size_t left)
{
    size_t length = at[0] < 0x80 ? 1 : at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;

    if (at[0] > 0xf4 || length > left)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
        (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
        return 0;
    return length;
}

json_t *text_json(const void *bytes, size_t bytes_count)
{
    const uint8_t *from = bytes;
    char *clean = malloc(bytes_count * 3 + 1);
    size_t n = 0;
    json_t *json;

    if (!clean)
        return NULL;
    for (size_t i = 0; i < bytes_count;) {
        size_t length = utf8_length(from + i, bytes_count - i);

        memcpy(clean + n, length ? (const char *)from + i : "\xef\xbf\xbd", length ? length : 3);
        n += length ? length : 3;
        i += length ? length : 1;
    }
    json = json_stringn(clean, n);
    free(clean);
    return json;
}

int text_json_print(json_t *json)
{
    int r = json ? json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(8)) : -1;

    json_decref(json);
    if (!r)
        putchar('\n');
    if (!r || ferror(stdout))
        return EXIT_DONE; /* main says what cannot be written */
    silt_say("out of memory");
    return EXIT_REFUSED;
}

void text_tiers(const struct client_tier *tiers, size_t count, uint64_t bytes_plan,
                uint64_t bytes_used)
{
    char used[TEXT_BYTES], plan[TEXT_BYTES], plan_bytes[TEXT_BYTES];
    uint64_t sum = 0, device_sum = 0, device_used = 0;

    printf("  %-28s %10s %10s %16s\n", "memory", "used", "plan", "plan, bytes");
    for (size_t i = 0; i < count; i++) {
        printf("  %-28s %10s %10s %16s\n", tiers[i].name, text_bytes(used, tiers[i].bytes_used),
               text_bytes(plan, tiers[i].bytes_plan), text_count(plan_bytes, tiers[i].bytes_plan));
        if (tiers[i].on_device) {
            device_sum += tiers[i].bytes_plan;
            device_used += tiers[i].bytes_used;
        } else {
            sum += tiers[i].bytes_plan;
        }
    }
    /* The lines add up to the plan; where an older siltd names fewer, the rest is said. */
    if (sum < bytes_plan)
        printf("  %-28s %10s %10s %16s\n", "other", "", text_bytes(plan, bytes_plan - sum),
               text_count(plan_bytes, bytes_plan - sum));
    printf("  %-28s %10s %10s %16s\n", "total", text_bytes(used, bytes_used),
           text_bytes(plan, bytes_plan), text_count(plan_bytes, bytes_plan));
    if (device_sum)
        printf("  %-28s %10s %10s %16s\n", "total of the GPU", text_bytes(used, device_used),
               text_bytes(plan, device_sum), text_count(plan_bytes, device_sum));
}
