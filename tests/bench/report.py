#!/usr/bin/env python3
"""The table of `make bench`: silt's figures, the machine's limits, a peer's figures.

report.py FOLDER [CSV]: FOLDER holds `limits` (of `check --bench limits`), `silt` ("name value unit"
a line, any number of rounds), `siltd` (the same, of the daemon as a whole) and, where a peer ran,
`peer.csv` (its own rows, the format of the model in front). Medians are shown. A figure with a line
"name.macs" or "name.bytes" is shown as a share of the machine's best int8 dot-product rate or of
its read bandwidth, at as many threads: in each round of what was measured in that round.
"""

import collections
import csv
import os
import re
import statistics
import subprocess
import sys

THREADS = int(os.environ.get("THREADS", "2"))
# What each of our figures is held against: the peer's test, at the depth of its context.
RIVALS = {
    "prefill-512": ("pp512", 0),
    "decode-0": ("tg64", 0),
    "decode-4096": ("tg64", 4096),
    "ingest-long": ("pp512", 0),
    "answer-long": ("tg64", 4096),
}
WHOLE_CONTEXT = ("pp8192", 0)


def command(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def topology():
    """Cores as the system tells them, and whether threads share one."""
    fields = dict(re.findall(r"^(.+?):\s+(.*)$", command("lscpu"), re.M))
    parts = [fields.get("Model name", "unknown processor")]
    for name in ("CPU(s)", "Thread(s) per core", "Core(s) per socket", "L2 cache", "L3 cache"):
        parts.append(f"{name} {fields.get(name, '?')}")
    return ", ".join(parts)


def read_limits(path):
    """Lines to show, and {"int8"|"read": {threads: [most, a round]}} in 1e9 a second."""
    values, most = collections.defaultdict(list), {"int8": {}, "read": {}}
    rounds = 0
    for line in open(path):
        rounds += line.startswith("limit  this machine has")
        found = re.match(r"limit\s+(.+?)\s+(\d+) threads?\s+([\d.]+) (\S+)", line)
        if not found:
            continue
        name, threads, value, unit = found.groups()
        values[f"{name}, {threads} threads", unit].append(float(value))
        kind = name.split()[0]
        if kind in most:
            each = most[kind].setdefault(int(threads), [])
            each += [0.0] * (rounds - len(each))
            each[-1] = max(each[-1], float(value))
    return [(name, statistics.median(v), unit) for (name, unit), v in values.items()], most


def read_own(path):
    """{name: ([value a round], unit)} and {name: {"macs"|"bytes": amount}}."""
    values, units, takes = collections.defaultdict(list), {}, collections.defaultdict(dict)
    for line in open(path) if os.path.exists(path) else []:
        name, value, unit = line.split(maxsplit=2)
        if "." in name:
            name, what = name.rsplit(".", 1)
            takes[name][what] = float(value)
            continue
        values[name].append(float(value))
        units[name] = unit.strip()
    return {n: (v, units[n]) for n, v in values.items()}, takes


def read_peer(path):
    """{(test, depth): {format: median}}; a CSV whose header comes again with each run."""
    runs = collections.defaultdict(lambda: collections.defaultdict(list))
    if not os.path.exists(path):
        return {}
    for row in csv.reader(open(path)):
        if "avg_ts" in row:
            head = row[1:]
            continue
        cell = dict(zip(head, row[1:]))
        prompt, answer = int(cell["n_prompt"]), int(cell["n_gen"])
        test = f"pp{prompt}" if prompt else f"tg{answer}"
        runs[test, int(cell.get("n_depth", 0))][row[0]].append(float(cell["avg_ts"]))
    return {test: {name: statistics.median(v) for name, v in formats.items()}
            for test, formats in runs.items()}


def share(name, values, takes, most):
    """Of the limit that bounds a figure, and that limit's name."""
    threads = 1 if name.startswith("1-thread-") else THREADS
    for what, kind in (("macs", "int8"), ("bytes", "read")):
        limits = most[kind].get(threads)
        if what not in takes or not limits:
            continue
        if len(limits) != len(values):
            limits = [statistics.median(limits)] * len(values)
        part = statistics.median(v * takes[what] / (l * 1e9) for v, l in zip(values, limits))
        return part, {"int8": "dot", "read": "read"}[kind]
    return None, ""


def two_to_one(own):
    """Rows of prefill with all threads over one thread's: of the rounds, and of each."""
    alone = own.get("1-thread-prefill-512")
    if not alone:
        return
    ratios = [a / b for a, b in zip(own["prefill-512"][0], alone[0])]
    name, unit = f"prefill-{THREADS}-to-1", "times one thread's"
    yield (name, statistics.median(ratios), unit, None, "", *[None] * 5)
    for number, ratio in enumerate(ratios, 1):
        yield (f"{name}-round-{number}", ratio, unit, None, "", *[None] * 5)


def table(own, takes, most, peer):
    """Rows: figure, silt, unit, share, of which limit, peer on the same file, ratio, peer at its
    best, in which format, ratio."""
    for name, (values, unit) in own.items():
        value = statistics.median(values)
        part, limit = share(name, values, takes[name], most)
        formats = peer.get(RIVALS.get(name), {})
        same = formats.get("q4_1")
        best = max(formats, key=formats.get) if formats else None
        yield (name, value, unit, part, limit, same, value / same if same else None,
               formats.get(best), best, value / formats[best] if best else None)
    yield from two_to_one(own)
    for form, rate in peer.get(WHOLE_CONTEXT, {}).items():
        mine = statistics.median(own["ingest-long"][0])
        yield (f"ingest-long-{form}-8k", mine, "tokens/s, peer in an 8k context", None, "",
               None, None, rate, form, mine / rate)


def text(value, form):
    return "" if value is None else format(value, form)


def main():
    folder = sys.argv[1]
    limits, most = read_limits(f"{folder}/limits")
    own, takes = read_own(f"{folder}/silt")
    own |= read_own(f"{folder}/siltd")[0]
    peer = read_peer(f"{folder}/peer.csv")
    rows = list(table(own, takes, most, peer))
    commit = command("git", "rev-parse", "--short", "HEAD").strip() or "unknown"
    knobs = " ".join(f"{name}={os.environ[name]}" for name in ("ROUNDS", "TOKENS", "LONG")
                     if name in os.environ)
    head = [f"{topology()}; {THREADS} threads; commit {commit}",
            f"{knobs} make bench; the long text has {os.environ.get('LONG', 65536)} tokens",
            "medians, rounds in turn; shares are of the best int8 dot-product rate (dot) or of "
            "read bandwidth (read), in each round of that round's"]
    for line in head:
        print("#", line)
    for name, value, unit in limits:
        print(f"{'limit: ' + name:<60} {value:9.1f} {unit}")
    print(f"{'figure':<32}{'silt':>11} {'share':>10} {'peer, same':>11}{'':>8} {'peer, best':>11}"
          f"{'':>13}  unit")
    for name, value, unit, part, limit, same, ratio, best, form, best_ratio in rows:
        print(f"{name:<32}{value:>11.2f} {text(part, '.0%'):>5} {limit:<4} {text(same, '.1f'):>11}"
              f" {text(ratio, '.2f') + 'x' if ratio else '':>7} {text(best, '.1f'):>11}"
              f" {form or '':<5}{text(best_ratio, '.2f') + 'x' if best_ratio else '':>7}  {unit}")
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w", newline="") as file:
            file.write("".join(f"# {line}\n" for line in head))
            out = csv.writer(file, lineterminator="\n")
            out.writerow("figure silt unit share of peer_same ratio peer_best format "
                         "ratio_best".split())
            for name, value, unit in limits:
                out.writerow([f"limit: {name}", value, unit] + [""] * 7)
            for row in rows:
                out.writerow([f"{c:.4g}" if isinstance(c, float) and abs(c) < 100 else
                              f"{c:.1f}" if isinstance(c, float) else "" if c is None else c
                              for c in row])


if __name__ == "__main__":
    main()
