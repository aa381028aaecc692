#!/usr/bin/env python3
"""One stream without end: memory flat, time a chunk flat, disk at its quota, spilling nearly free.

Two siltds read the same text in turn, piece by piece: one spills its cold segments under a disk
quota, the other keeps none (--segments none). The difference of their times is what spilling costs;
the first one's times, memory and disk say whether it stays flat.

    soak/flat.py                                    2,000,000 tokens, tiny model
    soak/flat.py --model real --tokens 200000       with the default model, on a quiet machine
"""

import random
import statistics
import subprocess
import sys
import time

import rig

PIECES = 80
WARM = 8  # pieces before these are warm-up
COST_MAX = 0.03
DRIFT_MAX = 0.10  # of the time a chunk takes, last quarter against the first after the warm-up
WORDS = ("gate river paper window letter garden number market answer winter story captain silver "
         "bridge music doctor engine minute summer harbour").split()


def piece(siltd, text, stop):
    """Feeds and waits until it is computed: tokens held then, seconds, and seconds of CPU."""
    begin, cpu = time.monotonic(), siltd.cpu_seconds()
    subprocess.run([rig.SILT, "-c", siltd.endpoint, "feed", "-q", "s", "--patience", "600"],
                   input=text.encode(), check=True, capture_output=True)
    while time.monotonic() < stop:
        stat = rig.stat(siltd, "s")
        if stat["lag_tokens"] < 32:
            return (stat["tokens_acked"], time.monotonic() - begin, siltd.cpu_seconds() - cpu)
        time.sleep(0.02)
    raise SystemExit("flat: a piece is not computed in time")


def main():
    parser = rig.arguments(__doc__.splitlines()[0], 600)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--disk", type=int, help="quota in MiB (tokens / 32 KiB, at least 48)")
    options = parser.parse_args()
    quota = (options.disk or max(48, options.tokens >> 15)) << 20
    common = [*rig.model(options.model), "--streams-max", 1, "--forks-max", 1]
    record = rig.Record("flat", options, ("tokens", "on_seconds", "off_seconds", "resident",
                                          "disk", "ratio", "cpu_ratio"))
    on = rig.Siltd([*common, "--disk", quota])
    off = rig.Siltd([*common, "--segments", "none"])
    rng = random.Random(options.seed)
    tokens, each = 0, options.tokens // PIECES
    per_token = 1.0
    while tokens < options.tokens:
        text = ""
        while len(text) < each * per_token:
            text += " ".join(rng.choices(WORDS, k=12)) + ".\n"
        order = [on, off] if rng.random() < 0.5 else [off, on]
        took, cpu = {}, {}
        for siltd in order:
            held, took[siltd], cpu[siltd] = piece(siltd, text, record.end)
        per_token, tokens = len(text) / max(1, held - tokens), held
        record.sample(f"{tokens} tokens, {took[on]:.2f} s with, {took[off]:.2f} s without", tokens,
                      round(took[on], 4), round(took[off], 4), on.resident(), on.disk(),
                      round(took[on] / took[off], 4), round(cpu[on] / cpu[off], 4))
    rows = record.rows[WARM:]
    ratios = sorted(row[6] for row in rows)
    cost = statistics.median(ratios) - 1
    quarter = len(rows) // 4
    early = statistics.median(row[2] for row in rows[:quarter])
    late = statistics.median(row[2] for row in rows[-quarter:])
    record.held(f"spilling costs {cost:+.2%} of ingest time (median of {len(rows)} pieces in turn, "
                f"quartiles {ratios[len(ratios) // 4] - 1:+.2%} to "
                f"{ratios[len(ratios) * 3 // 4] - 1:+.2%}; of CPU time "
                f"{statistics.median(row[7] for row in rows) - 1:+.2%})", cost < COST_MAX)
    record.held(f"a piece takes {early:.3f} s at first, {late:.3f} s at the end "
                f"({late / early - 1:+.1%})", late < early * (1 + DRIFT_MAX))
    first = max(row[4] for row in rows[:quarter])
    most = max(row[4] for row in rows)
    record.held(f"resident memory {first} bytes at first, at most {most}",
                most <= first * 1.01 + (1 << 20))
    disk = max(row[5] for row in rows)
    record.held(f"disk at most {disk} of {quota} bytes", disk <= quota)
    stat = rig.stat(on, "s")
    print(f"flat: {stat['tokens_acked']} tokens, {stat['segments_merged']} segments averaged, "
          f"{stat['segments_dropped']} dropped, {stat['bytes_disk_by_tier']}", flush=True)
    for siltd in (on, off):
        siltd.stop()
    sys.exit(record.finish())


if __name__ == "__main__":
    main()
