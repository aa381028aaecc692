/* top: the streams live, and one stream's memory as a strip. */
#include <curses.h>
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/silt/strip.h"
#include "clients/silt/table.h"

static const char help[] =
    "silt top [STREAM] [--delay SECONDS]\n"
    "\n"
    "Shows the streams live: tokens, rate, lag, ratio, memory, what the memory loses (nats a "
    "token),\n"
    "and in a wide terminal disk, plan, cold segments, pinned tokens. * marks the column that "
    "sorts,\n"
    "! a stream that works with less than it should: open it to see why. Enter shows one stream's\n"
    "memory as a strip, oldest first, as questions read it: cold on disk, sinks, pins, summary, "
    "ring,\n"
    "window. Cold chunks that a question just brought back light up.\n"
    "\n"
    "  silt top              all streams\n"
    "  silt top log          that one's memory\n"
    "\n"
    "  --delay SECONDS   between two looks (1)\n"
    "\n"
    "Keys: up and down choose, Enter opens, Backspace goes back, s sorts by the next column, q "
    "ends.\n";

enum { ROWS_MAX = 10000, HEADER_LINES = 4, ESCAPE_MS = 50, HIT_US = 8000000 };

struct rows {
    struct row *list; /* [room], by name */
    size_t count, room;
    int64_t taken_us;
};
struct top {
    struct silt *silt;
    struct rows now, before;
    size_t *order; /* [now.room] rows as they are shown */
    struct client_process_stat process;
    struct client_stream_stat stream; /* of the open one */
    char chosen[132];
    bool open, away;
    enum sort sort;
    size_t first;         /* shown */
    int64_t hit_until_us; /* what was recalled lights up */
};

/* ---- looking ---- */

static int row_add(void *user, const struct client_stream_stat *stat)
{
    struct top *top = user;
    struct rows *rows = &top->now;
    struct row *row;

    if (rows->count == rows->room) {
        size_t room = rows->room ? rows->room * 2 : 64;
        struct row *list = realloc(rows->list, room * sizeof *list);

        if (!list)
            return -ENOMEM;
        rows->list = list;
        rows->room = room;
    }
    row = &rows->list[rows->count++];
    *row = (struct row){.acked = stat->tokens_acked,
                        .computed = stat->tokens_computed,
                        .lag = stat->lag_tokens,
                        .used = stat->bytes_used,
                        .plan = stat->bytes_plan,
                        .disk = stat->bytes_disk,
                        .cold = stat->segments_cold,
                        .pinned = stat->pin_tokens,
                        .ratio = stat->dmc_ratio,
                        .loss = stat->loss.chunks ? stat->loss.difference : NAN,
                        .degraded = stat->degraded_count > 0};
    memcpy(row->stream, stat->stream, sizeof row->stream);
    return rows->count == ROWS_MAX;
}

/* Both are by name, so one walk finds each row's former self. */
static void rates(struct top *top)
{
    double seconds = (double)(top->now.taken_us - top->before.taken_us) / 1e6;
    size_t j = 0;

    for (size_t i = 0; i < top->now.count; i++) {
        struct row *row = &top->now.list[i];

        while (j < top->before.count && strcmp(top->before.list[j].stream, row->stream) < 0)
            j++;
        if (j < top->before.count && !strcmp(top->before.list[j].stream, row->stream) &&
            row->computed >= top->before.list[j].computed && seconds > 0)
            row->rate = (double)(row->computed - top->before.list[j].computed) / seconds;
    }
}

static struct top *sorted; /* qsort has no argument for it */

static int compare(const void *left, const void *right)
{
    const struct row *list = sorted->now.list;

    return table_compare(sorted->sort, &list[*(const size_t *)left], &list[*(const size_t *)right]);
}

static int order_rows(struct top *top)
{
    size_t *order = realloc(top->order, (top->now.count + 1) * sizeof *order);

    if (!order)
        return -ENOMEM;
    top->order = order;
    for (size_t i = 0; i < top->now.count; i++)
        order[i] = i;
    sorted = top;
    qsort(order, top->now.count, sizeof *order, compare);
    return 0;
}

static int look(struct top *top)
{
    struct silt *silt = top->silt;
    struct client_process_stat process;
    struct rows before = top->before;
    int r = client_process_stat(silt->client, &process, &silt->error);

    if (r)
        return r;
    client_process_stat_free(&top->process);
    top->process = process;
    top->before = top->now;
    top->now = before;
    top->now.count = 0;
    top->now.taken_us = silt_now_us();
    r = client_list(silt->client, row_add, top, &silt->error);
    if (r < 0)
        return r;
    rates(top);
    if (top->open) {
        struct client_stream_stat stream;

        r = client_stat(silt->client, top->chosen, &stream, &silt->error);
        if (r == -ENOENT)
            top->open = false; /* removed */
        else if (r)
            return r;
        if (!strcmp(stream.stream, top->stream.stream) &&
            stream.recall_hits > top->stream.recall_hits)
            top->hit_until_us = silt_now_us() + HIT_US;
        client_stat_free(&top->stream);
        top->stream = stream;
    }
    return order_rows(top);
}

/* ---- drawing ---- */

static void draw_head(const struct top *top)
{
    const struct client_process_stat *p = &top->process;
    char a[TEXT_BYTES], b[TEXT_BYTES];

    move(0, 0);
    if (!p->adapter[0])
        table_part("COMPRESSION IS OFF  ");
    table_part("siltd %s  ", p->version);
    table_cut("%s, %s, %u threads", p->model, p->kernels, p->threads);
    move(1, 0);
    table_part("memory %s of %s planned", text_bytes(a, p->bytes_used),
               text_bytes(b, p->bytes_plan));
    table_part("  disk %s", text_bytes(a, p->bytes_disk));
    table_part("  questions %u of %u", p->forks, p->forks_max);
    table_part("  resident %s", text_bytes(a, p->bytes_resident));
    table_part("  tokens %s", text_count(a, p->tokens_computed));
    move(2, 0);
    strip_paint(PAINT_BAD, true);
    if (top->away)
        table_cut("%s", top->silt->error.text);
    else if (p->degraded_count)
        table_cut("%s", p->degraded[0]);
    strip_paint(PAINT_BAD, false);
}

static size_t chosen_at(const struct top *top)
{
    for (size_t i = 0; i < top->now.count; i++)
        if (!strcmp(top->now.list[top->order[i]].stream, top->chosen))
            return i;
    return 0;
}

static void draw_table(struct top *top)
{
    size_t room = LINES > HEADER_LINES ? (size_t)(LINES - HEADER_LINES) : 1;
    size_t chosen = chosen_at(top);

    table_head(top->sort, 3);
    if (chosen < top->first)
        top->first = chosen;
    if (chosen >= top->first + room)
        top->first = chosen - room + 1;
    for (size_t i = 0; i < room && top->first + i < top->now.count; i++)
        table_row(&top->now.list[top->order[top->first + i]], HEADER_LINES + (int)i,
                  top->first + i == chosen);
    if (!top->now.count) {
        move(HEADER_LINES, 0);
        table_cut("no streams yet: silt feed NAME FILE");
    }
}

/* What the meter says, what questions brought back, what is pinned: a line each. */
static void draw_measured(const struct client_stream_stat *stat, int line)
{
    const struct client_loss *loss = &stat->loss;
    char when[TEXT_BYTES];

    move(line, 0);
    if (loss->chunks) {
        table_part("loss %+.3f nats a token (%+.3f to %+.3f, %" PRIu64 " chunks)", loss->difference,
                   loss->low, loss->high, loss->chunks);
        table_part("%s", loss->flagged ? " FLAGGED" : "");
    }
    move(line + 1, 0);
    if (stat->recalled_us)
        table_part("recalled %" PRIu64 " times, last at %s: chunks", stat->recall_hits,
                   text_time(when, stat->recalled_us));
    for (size_t i = 0; i < stat->recalled_count && stat->recalled_us; i++)
        table_part(" %" PRIu64, stat->recalled[i]);
    move(line + 2, 0);
    if (stat->pins.count)
        table_part("pinned tokens");
    for (size_t i = 0; i < stat->pins.count; i++)
        table_part("%s %" PRIu64 " to %" PRIu64, i ? "," : "", stat->pins.pin[i].from,
                   stat->pins.pin[i].to);
}

static void draw_tiers(const struct client_stream_stat *stat, int line)
{
    char used[TEXT_BYTES], plan[TEXT_BYTES];

    for (size_t i = 0; i < stat->tier_count; i++) {
        const struct client_tier *tier = &stat->tiers[i];

        move(line++, 0);
        table_cut("%-10s %10s of %10s", tier->name, text_bytes(used, tier->bytes_used),
                  text_bytes(plan, tier->bytes_plan));
    }
    move(line++, 0);
    table_cut("%-10s %10s of %10s", "all", text_bytes(used, stat->bytes_used),
              text_bytes(plan, stat->bytes_plan));
    move(line++, 0);
    table_cut("%-10s %10s", "disk", text_bytes(used, stat->bytes_disk));
    strip_heads(stat, line + 1);
}

static void draw_stream(const struct client_stream_stat *stat, bool hit)
{
    char text[TEXT_BYTES];

    move(3, 0);
    attr_on(A_BOLD, NULL);
    table_cut("%.*s", COLS / 2, stat->stream);
    attr_off(A_BOLD, NULL);
    table_part("  %s tokens", text_count(text, stat->tokens_acked));
    table_part(", %s behind", text_count(text, stat->lag_tokens));
    table_part(", %.1fx merged", stat->dmc_ratio);
    table_part(", %s cold segments", text_count(text, stat->segments_cold));
    table_part(", %s chunks", text_count(text, stat->chunks));
    if (stat->hash_known)
        table_part(", hash %016" PRIx64, stat->memory_hash);
    table_part("%s", stat->parked ? ", parked" : "");
    strip_draw(stat, hit, HEADER_LINES + 1);
    draw_measured(stat, HEADER_LINES + 3);
    if (stat->degraded_count) {
        strip_paint(PAINT_BAD, true);
        move(HEADER_LINES + 6, 0);
        table_cut("%s", stat->degraded[0]);
        strip_paint(PAINT_BAD, false);
    }
    draw_tiers(stat, HEADER_LINES + 8);
}

static void draw(struct top *top)
{
    erase();
    if (top->process.version)
        draw_head(top);
    if (top->open && top->stream.stream[0])
        draw_stream(&top->stream, silt_now_us() < top->hit_until_us);
    else
        draw_table(top);
    refresh();
}

/* ---- keys ---- */

static void choose(struct top *top, long step)
{
    long at = (long)chosen_at(top) + step, last = (long)top->now.count - 1;

    if (last < 0)
        return;
    at = at < 0 ? 0 : at > last ? last : at;
    memcpy(top->chosen, top->now.list[top->order[at]].stream, sizeof top->chosen);
}

/* True: look again at once. False with silt_stop: the end. */
static bool key_take(struct top *top, int key)
{
    switch (key) {
    case 'q':
        silt_stop = true;
        return false;
    case KEY_UP:
    case 'k':
    case KEY_DOWN:
    case 'j':
        choose(top, key == KEY_UP || key == 'k' ? -1 : 1);
        return top->open;
    case KEY_PPAGE:
    case KEY_NPAGE:
        choose(top, (key == KEY_PPAGE ? -1L : 1L) * (LINES - HEADER_LINES));
        return top->open;
    case '\n':
    case '\r':
    case KEY_ENTER:
    case KEY_RIGHT:
        choose(top, 0); /* the first one where none was chosen */
        top->open = top->now.count > 0;
        return true;
    case KEY_BACKSPACE:
    case KEY_LEFT:
    case 127:
    case 27:
        top->open = false;
        return false;
    case 's':
        top->sort = (enum sort)((top->sort + 1) % SORT_COUNT);
        order_rows(top);
        return false;
    default:
        return false;
    }
}

static void screen_open(void)
{
    static const short colors[] = {COLOR_BLUE,   COLOR_RED,   COLOR_CYAN,
                                   COLOR_YELLOW, COLOR_GREEN, COLOR_MAGENTA};

    initscr();
    cbreak();
    noecho();
    keypad(stdscr, TRUE);
    nodelay(stdscr, TRUE);
    set_escdelay(ESCAPE_MS);
    curs_set(0);
    if (!has_colors())
        return;
    start_color();
    use_default_colors();
    for (short i = PAINT_COLD; i <= PAINT_WINDOW; i++)
        init_pair(i, COLOR_WHITE, colors[i - 1]);
    init_pair(PAINT_LAG, COLOR_YELLOW, -1);
    init_pair(PAINT_BAD, COLOR_RED, -1);
    init_pair(PAINT_HIT, COLOR_BLACK, COLOR_CYAN);
}

/* Until the time is over or a key asks for a new look. */
static void wait_for(struct top *top, int64_t until_us)
{
    while (!silt_stop) {
        int64_t left_ms = (until_us - silt_now_us()) / 1000;
        int key;

        if (left_ms <= 0)
            return;
        client_poll(top->silt->client, STDIN_FILENO, (int)left_ms);
        while ((key = getch()) != ERR) {
            if (key_take(top, key))
                return;
            draw(top);
        }
    }
}

static void watch(struct top *top, double delay)
{
    while (!silt_stop) {
        int64_t until_us = silt_now_us() + (int64_t)(delay * 1e6);

        top->away = look(top) < 0;
        if (silt_stop)
            break;
        draw(top);
        wait_for(top, until_us);
    }
}

static int run(struct silt *silt, int argc, char **argv)
{
    static const struct option longs[] = {{"delay", required_argument, NULL, 'd'}, SILT_OPTIONS};
    struct top top = {.silt = silt};
    float delay = 1;
    int option, r;

    while ((option = getopt_long(argc, argv, "c:hd:", longs, NULL)) != -1) {
        r = option == 'd' ? silt_real(silt, "--delay", optarg, 0.1, 3600, &delay)
                          : silt_option(silt, &command_top, option);
        if (r > 0 || (option != 'd' && r == 0))
            return r;
    }
    if (argc - optind > 1)
        return silt_usage(silt, "top shows one stream or all");
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return silt_usage(silt, "top needs a terminal; silt ls and silt stat print");
    if (optind < argc) {
        snprintf(top.chosen, sizeof top.chosen, "%s", argv[optind]);
        top.open = true;
    }
    r = silt_connect(silt, 0);
    if (r)
        return r;
    if (look(&top)) {
        r = silt_fail(silt);
    } else if (optind < argc && !top.open) {
        silt_say("no stream is called \"%s\": silt ls lists them", argv[optind]);
        r = EXIT_REFUSED;
    } else {
        setlocale(LC_CTYPE, "");
        screen_open();
        watch(&top, delay);
        endwin();
    }
    client_process_stat_free(&top.process);
    client_stat_free(&top.stream);
    free(top.now.list);
    free(top.before.list);
    free(top.order);
    return r;
}

const struct command command_top = {
    .name = "top",
    .summary = "watch the streams and their memory",
    .help = help,
    .run = run,
};
