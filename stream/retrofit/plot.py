"""Plots as SVG, without a plotting package."""
import math

LOSS_COLOURS = ("#1b6", "#27c", "#c72", "#b24", "#75b", "#555")       # 1x, then ratios
COLOURS = ("#27c", "#b24", "#1a7", "#c72", "#75b", "#555")
PAGE = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" '
        'font-size="12"><rect width="%d" height="%d" fill="#fff"/>')


def text(x, y, words, more=""):
    return '<text x="%.1f" y="%.1f" %s>%s</text>' % (x, y, more, words)


def save(path, width, height, parts):
    with open(path, "w") as file:
        file.write("\n".join([PAGE % (width, height, width, height)] + parts + ["</svg>\n"]))


def panel(left, top, width, height, title, lines, log=False):
    """One plot: lines is a list of (name, [(x, y)], colour, dash)."""
    xs = [x for _, points, _, _ in lines for x, _ in points]
    ys = [y for _, points, _, _ in lines for _, y in points]
    low, high = min(ys), max(ys)
    room = 0.08 * (high - low) or 0.01
    low, high = low - room, high + room
    first, last = min(xs), max(xs)

    def across(x):
        span = math.log(last / first) if log else last - first
        return left + width * ((math.log(x / first) if log else x - first) / (span or 1))

    def down(y):
        return top + height * (high - y) / (high - low)

    out = ['<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#ccc"/>'
           % (left, top, width, height), text(left, top - 6, title, 'font-weight="bold"')]
    for y in (low + room, high - room):
        out.append(text(left - 4, down(y) + 4, "%.2f" % y, 'text-anchor="end"'))
    for x in sorted(set(xs)):
        out.append(text(across(x), top + height + 14, "%g" % x,
                        'text-anchor="middle" font-size="9"'))
    for name, points, colour, dash in lines:
        places = " ".join("%.1f,%.1f" % (across(x), down(y)) for x, y in points)
        out.append('<polyline fill="none" stroke="%s" stroke-width="1.6" %s points="%s"/>'
                   % (colour, 'stroke-dasharray="4 3"' if dash else "", places))
        out += ['<circle cx="%.1f" cy="%.1f" r="2.4" fill="%s"/>' % (across(x), down(y), colour)
                for x, y in points]
    return out


def legend(x, y, names):
    out = []
    for place, (name, colour) in enumerate(names):
        out.append('<rect x="%d" y="%d" width="10" height="10" fill="%s"/>'
                   % (x + 130 * place, y - 9, colour))
        out.append(text(x + 130 * place + 14, y, name))
    return out


def heads(path, grid):
    """The realised ratio of every layer and KV head, the mean of all kinds."""
    kinds = list(grid)
    ratios = sorted(int(name.split("x")[0]) for name in grid[kinds[0]] if name.endswith("x ccm"))
    ratios = [ratio for ratio in ratios if ratio > 1]
    out, cell, top = [], 19, 48
    for place, ratio in enumerate(ratios):
        tables = [grid[kind]["%dx ccm" % ratio]["heads"] for kind in kinds]
        layers, count = len(tables[0]), len(tables[0][0])
        left = 50 + place * 280
        mean = [[len(tables) / sum(1 / table[layer][head] for table in tables)
                 for head in range(count)] for layer in range(layers)]
        flat = sorted(value for line in mean for value in line)
        out.append(text(left, top - 22, "asked %dx" % ratio, 'font-weight="bold"'))
        out.append(text(left, top - 8, "heads from %.1fx to %.1fx, median %.1fx"
                        % (flat[0], flat[-1], flat[len(flat) // 2]), 'font-size="10"'))
        for layer, line in enumerate(mean):
            if layer % 5 == 0:
                out.append(text(left - 6, top + cell * layer + 14, layer, 'text-anchor="end"'))
            for head, value in enumerate(line):
                depth = min(1.0, math.log(value) / math.log(64))
                colour = "hsl(%d,70%%,%d%%)" % (210 - 170 * depth, 96 - 46 * depth)
                out.append('<rect x="%d" y="%d" width="76" height="%d" fill="%s"/>'
                           % (left + 78 * head, top + cell * layer, cell - 1, colour))
                out.append(text(left + 78 * head + 38, top + cell * layer + 14, "%.1f" % value,
                                'text-anchor="middle" font-size="10"'))
    out.append(text(50, top + cell * layers + 20, "rows: layers, columns: KV heads; tokens a kept "
                    "entry, closed chunks, mean of %s" % ", ".join(kinds)))
    save(path, 60 + 280 * len(ratios), top + cell * layers + 36, out)


def rows(path, grid):
    """Loss over KV rows: silt at its ratios, and windows of the same rows."""
    kinds = list(grid)
    out = []
    for place, kind in enumerate(kinds):
        entry = grid[kind]
        ratios = sorted(int(name.split("x")[0]) for name in entry if name.endswith("x ccm"))
        held = {ratio: entry["%dx ccm" % ratio]["rows"] for ratio in ratios}
        lines = [("silt", [(held[r], entry["%dx ccm" % r]["nll"]) for r in ratios], COLOURS[0], 0),
                 ("window", [(held[r], entry["%dx window" % r]["nll"]) for r in ratios],
                  COLOURS[5], 0),
                 ("full", [(held[r], entry["full"]["nll"]) for r in ratios], "#000", 1)]
        lines = [(name, [(round(x), y) for x, y in points], colour, dash)
                 for name, points, colour, dash in lines]
        out += panel(60 + place % 3 * 300, 40 + place // 3 * 240, 230, 170, kind, lines, log=True)
    height = 40 + (len(kinds) + 2) // 3 * 240 + 20
    out += legend(60, height - 14, (("silt", COLOURS[0]), ("window", COLOURS[5]),
                                    ("full, 8,192 rows", "#000")))
    out.append(text(560, height - 14, "nats a token over KV rows"))
    save(path, 940, height, out)


def rings(path, found, full):
    kinds = list(found)
    out = []
    for place, kind in enumerate(kinds):
        lines = []
        for policy, colour in (("ccm", COLOURS[0]), ("no-summary", COLOURS[3])):
            points = sorted((int(name.split()[0]), entry["nll"])
                            for name, entry in found[kind].items() if name.endswith(" " + policy))
            lines.append((policy, points, colour, 0))
        if kind in full:
            lines.append(("full", [(x, full[kind]) for x, _ in points], "#000", 1))
        out += panel(60 + place % 3 * 300, 40 + place // 3 * 240, 230, 170, kind, lines)
    height = 40 + (len(kinds) + 2) // 3 * 240 + 20
    out += legend(60, height - 14, (("with summary", COLOURS[0]), ("without", COLOURS[3]),
                                    ("full, 8,192 rows", "#000")))
    out.append(text(560, height - 14, "nats a token over ring segments, 1x"))
    save(path, 940, height, out)


def losses(path, history):
    """A training's next-token loss: history has dicts of step, ratio, ce."""
    points = [(item["step"], item["ce"], item["ratio"]) for item in history]
    if len({step for step, _, _ in points}) < 2:
        return
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    last, out = max(p[0] for p in points), []
    for place, ratio in enumerate(sorted({p[2] for p in points})):
        colour = LOSS_COLOURS[place % len(LOSS_COLOURS)]
        line = " ".join("%.1f,%.1f" % (50 + 690 * step / last, 290 - 260 * (value - low)
                                       / max(high - low, 1e-9))
                        for step, value, of in points if of == ratio)
        out.append('<polyline fill="none" stroke="%s" points="%s"/>' % (colour, line))
        out.append(text(60 + 40 * place, 20, "%dx" % ratio, 'fill="%s"' % colour))
    out += [text(4, 34, "%.2f" % high), text(4, 292, "%.2f" % low),
            text(640, 312, "step %d" % last), text(250, 312, "next-token loss, nats")]
    save(path, 760, 320, out)
