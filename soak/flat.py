#!/usr/bin/env python3
"""One stream without end: memory flat, time a chunk flat, disk at its quota, spilling nearly free.

Two siltds read the same text in turn, piece by piece: one spills its cold segments under a disk
quota, the other keeps none (--segments none). The difference of their times is what spilling costs;
the first one's times, memory and disk say whether it stays flat. Each difference is the median of
the pieces' ratios, shown with its interval, and the median itself is held to the limit, in
processor time and on the wall: for a machine without other work, which costs more than that.

    soak/flat.py                                    2,000,000 tokens, tiny model
    soak/flat.py --model real --tokens 200000       with the default model, on a quiet machine
"""

import random
import statistics
import sys
import time

import rig
import silt

PIECES = 80
WARM = 8  # pieces before these are warm-up
COST_MAX = 0.03
DRIFT_MAX = 0.10  # of a piece's processor time, last quarter against first, without the other's
SLOWER_MAX = 0.25  # the same with the machine's own changes in it, as soak/endless.c
WORDS = ("gate river paper window letter garden number market answer winter story captain silver "
         "bridge music doctor engine minute summer harbour").split()


class Side:
    """One of the two siltds, and how long its last piece took."""

    def __init__(self, options):
        self.siltd = rig.Siltd(options)
        self.client = silt.Client(self.siltd.endpoint)
        self.held = 0
        self.seconds_each = 1e-5  # a token

    def piece(self, text, stop):
        """Feeds and waits until it is computed: seconds, and seconds of CPU."""
        begin, cpu, before = time.monotonic(), self.siltd.cpu_seconds(), self.held
        rig.silt(self.siltd, "feed", "-q", "s", "--patience", "600", stdin=text.encode())
        while time.monotonic() < stop:
            stat = self.client.stat("s")
            if stat.lag_tokens < 32:
                took, self.held = time.monotonic() - begin, stat.tokens_acked
                self.seconds_each = took / max(1, self.held - before)
                return took, self.siltd.cpu_seconds() - cpu
            # It costs time to ask, and what is asked late ends late: its end is neared by halves.
            time.sleep(max(0.001, stat.lag_tokens * self.seconds_each / 2))
        raise SystemExit("flat: a piece is not computed in time")

    def stop(self):
        self.client.close()
        self.siltd.stop()


def median_of(values):
    """The median between the ends of its 95 % interval, by order statistics."""
    values = sorted(values)
    half = 0.98 * len(values) ** 0.5
    low, high = int(len(values) / 2 - half), int(len(values) / 2 + half)
    return values[max(0, low)], statistics.median(values), values[min(high, len(values) - 1)]


def main():
    parser = rig.arguments(__doc__.splitlines()[0], 600)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--disk", type=int, help="quota in MiB (tokens / 32 KiB, at least 48; 128 "
                        "with the default model, whose two checkpoints take 42 MB)")
    options = parser.parse_args()
    least = 128 if options.model == "real" else 48
    quota = (options.disk or max(least, options.tokens >> 15)) << 20
    common = [*rig.model(options.model), "--streams-max", 1, "--forks-max", 1]
    record = rig.Record("flat", options, ("tokens", "on_seconds", "off_seconds", "resident_bytes",
                                          "disk_bytes", "ratio", "on_cpu", "off_cpu"))
    on = Side([*common, "--disk", quota])
    off = Side([*common, "--segments", "none"])
    rng = random.Random(options.seed)
    tokens, each = 0, options.tokens // PIECES
    per_token = 1.0
    while tokens < options.tokens:
        text = ""
        while len(text) < each * per_token:
            text += " ".join(rng.choices(WORDS, k=12)) + ".\n"
        order = [on, off] if rng.random() < 0.5 else [off, on]
        took, cpu = {}, {}
        for side in order:
            took[side], cpu[side] = side.piece(text, record.end)
        per_token, tokens = len(text) / max(1, on.held - tokens), on.held
        record.sample(f"{tokens} tokens, {took[on]:.2f} s with, {took[off]:.2f} s without", tokens,
                      round(took[on], 4), round(took[off], 4), on.siltd.resident(),
                      on.siltd.disk(),
                      round(took[on] / took[off], 4), round(cpu[on], 4), round(cpu[off], 4))
    rows = record.rows[WARM:]
    quarter = len(rows) // 4
    low, cost, high = median_of(row[6] - 1 for row in rows)
    cpu_low, cpu_cost, cpu_high = median_of(row[7] / row[8] - 1 for row in rows)
    record.held(f"of at most {COST_MAX:.0%}, spilling costs {cpu_cost:+.2%} of processor time "
                f"({cpu_low:+.2%} to {cpu_high:+.2%}, 95 % of the median of {len(rows)} pieces in "
                f"turn), {cost:+.2%} on the wall ({low:+.2%} to {high:+.2%})",
                cpu_cost < COST_MAX and cost < COST_MAX)
    early, late, early_off, late_off = (statistics.median(row[at] for row in part)
                                        for at in (7, 8) for part in (rows[:quarter],
                                                                      rows[-quarter:]))
    drift, machine = late / early - 1, late_off / early_off - 1
    record.held(f"a piece takes {early:.3f} s of processor time at first, {late:.3f} s at the end "
                f"({drift:+.1%}; with none spilled {machine:+.1%})",
                drift < SLOWER_MAX and (1 + drift) / (1 + machine) - 1 < DRIFT_MAX)
    record.flat("resident_bytes", 1e6, 0.01, 1 << 20)
    disk = max(row[5] for row in rows)
    record.held(f"disk at most {disk} of {quota} bytes", disk <= quota)
    stat = rig.stat(on.siltd, "s")
    spilled, none = (rig.stat(side.siltd, "s")["bytes_disk_by_tier"]["segments"]
                     for side in (on, off))
    record.held(f"{spilled} bytes of segments on the disk, {none} of the other's",
                spilled and not none)
    print(f"flat: {stat['tokens_acked']} tokens, {stat['segments_merged']} segments averaged, "
          f"{stat['segments_dropped']} dropped, {stat['bytes_disk_by_tier']}", flush=True)
    for side in (on, off):
        side.stop()
    sys.exit(record.finish())


if __name__ == "__main__":
    main()
