#!/usr/bin/env python3
"""Streams up to the plan, fed and asked at once: the process never passes what it printed at start.

siltd runs from its start in a memory cgroup, whose limit is its plan plus 2 % as soon as it says
what that is, where this machine lets us make one (v2, or v1's memory controller); else, and beside
it, its resident memory is polled and the kernel's own high-water mark (VmHWM) is read at the end.
Then a plan that is too large must be refused, with the name of the limit to lower; that one byte
decides, tests/unit/test_plan.c shows.

    soak/budget.py                                  16 streams of 200,000 tokens, tiny model
    soak/budget.py --model real --tokens 4000       the same with the default model
"""

import concurrent.futures
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import rig

SHARE = 1.02  # of the plan, the cgroup's limit
FEEDERS = 4
QUESTIONS = ("Which gate?", "Who was called?", "What is the last word?")
WORDS = ("gate river paper window letter garden number market answer winter story captain silver "
         "bridge music doctor engine minute summer harbour").split()


class Group:
    """A memory cgroup of our own, or none: then `why` says so."""

    def __init__(self):
        self.path, self.why = None, ""
        name = f"silt-budget-{os.getpid()}"
        for base, limit, peak in (("/sys/fs/cgroup", "memory.max", "memory.peak"),
                                  ("/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                   "memory.max_usage_in_bytes")):
            path = pathlib.Path(base) / name
            try:
                path.mkdir()
            except OSError as error:
                self.why = f"{base}: {error.strerror}"
                continue
            if (path / limit).exists() and (path / peak).exists():
                self.path, self.limit, self.peak = path, path / limit, path / peak
                return
            self.why = f"{base}: no memory controller"
            path.rmdir()

    def procs(self):
        """cgroup.procs, if processes may be put there."""
        path = self.path / "cgroup.procs" if self.path else None
        try:
            if path:
                with subprocess.Popen(["sh", "-c", "read _"], stdin=subprocess.PIPE) as probe:
                    path.write_text(str(probe.pid))
        except OSError as error:
            self.why, path = str(error), None
            self.close()
        return path

    def hold(self, limit):
        self.limit.write_text(str(limit))

    def peak_bytes(self):
        return int(self.peak.read_text())

    def failures(self):
        """Times the limit made the kernel kill; None: it does not say."""
        for name in ("memory.events", "memory.oom_control"):
            path = self.path / name
            found = re.search(r"oom_kill (\d+)", path.read_text()) if path.exists() else None
            if found:
                return int(found.group(1))
        return None

    def close(self):
        if self.path:
            try:
                self.path.rmdir()
            except OSError:
                pass
            self.path = None


def feed(siltd, name, tokens, seed):
    """Words until the stream holds so many tokens."""
    rng = random.Random(seed)
    while True:
        text = " ".join(rng.choices(WORDS, k=min(8000, tokens))) + "\n"
        rig.silt(siltd, "feed", "-q", name, "--patience", "600", stdin=text.encode())
        held = int(rig.stat(siltd, name)["tokens_acked"])
        if held >= tokens:
            return held


def ask(siltd, rng, names):
    """Whether it was answered: a stream may not be there yet, or no place free."""
    return not subprocess.run([rig.SILT, "-c", siltd.endpoint, "ask", rng.choice(names),
                               rng.choice(QUESTIONS), "--tokens", "8", "-q"], check=False,
                              capture_output=True).returncode


def high_water(siltd):
    status = pathlib.Path(f"/proc/{siltd.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) << 10


def run(record, siltd, options, plan):
    names = [f"s{i}" for i in range(options.streams)]
    rng, answered = random.Random(options.seed), 0
    with concurrent.futures.ThreadPoolExecutor(FEEDERS) as pool:
        waiting = [pool.submit(feed, siltd, name, options.tokens, options.seed + i)
                   for i, name in enumerate(names)]
        while not all(done.done() for done in waiting):
            answered += ask(siltd, rng, names)
            tokens = sum(done.result() for done in waiting if done.done())
            record.sample(f"{sum(d.done() for d in waiting)} of {len(names)} streams fed, "
                          f"{siltd.resident() / 1e6:.1f} of {plan / 1e6:.1f} MB",
                          siltd.resident(), plan, tokens)
            time.sleep(0.2)
        tokens = sum(done.result() for done in waiting)
    while True:     # --minutes, at most
        lag = sum(rig.stat(siltd, name)["lag_tokens"] for name in names)
        record.sample(f"{lag} tokens to compute", siltd.resident(), plan, tokens - lag)
        if lag < 32 * len(names) or not record.going():
            break
        answered += ask(siltd, rng, names)
        time.sleep(0.5)
    record.held(f"{len(names)} streams hold {tokens} tokens, all computed", lag < 32 * len(names))
    record.held(f"{answered} questions were answered meanwhile", answered)


def refused(record, options, plan):
    """Below its own sum, with every limit fixed, siltd does not start and names one to lower. The
    loss meter is off: where memory is short it goes first, and nothing is refused."""
    try:
        done = subprocess.run([rig.SILTD, "--listen", f"ipc://{rig.folder()}/s", "--data",
                               rig.folder() / "d", *map(str, options), "--memory", str(plan)],
                              capture_output=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        record.held(f"a plan too large for {plan} bytes is refused: siltd has started", False)
        return
    said = (done.stderr.decode().strip().splitlines() or ["not a word"])[-1]
    needs = re.search(r"needs .*? \((\d+) bytes\).*lower (--\S+),", said)
    record.held(f"a plan too large by {int(needs.group(1)) - plan if needs else '?'} bytes is "
                f"refused: \"{said}\"", done.returncode and needs)


def main():
    parser = rig.arguments(__doc__.splitlines()[0], 60)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200_000, help="of each stream")
    options = parser.parse_args()
    limits = [*rig.model(options.model), "--streams-max", options.streams, "--forks-max", 4,
              "--loss-meter", "no"]
    record = rig.Record("budget", options, ("resident_bytes", "plan_bytes", "tokens"))
    group = Group()
    rig.atexit.register(group.close)  # after siltd's end
    siltd = rig.Siltd(limits, procs=group.procs())
    plan = int(rig.stat(siltd)["bytes_plan"])
    if group.path:
        group.hold(int(plan * SHARE))
    print(f"budget: plan {plan} bytes, " + (f"cgroup {group.path} at plan + 2 %" if group.path else
                                           f"no cgroup ({group.why}): resident memory is polled"),
          flush=True)
    run(record, siltd, options, plan)
    peak = max(high_water(siltd), *record.column("resident_bytes"))
    record.held(f"resident memory at most {peak} of {plan} bytes ({peak / plan:.1%})", peak <= plan)
    if group.path:
        record.held(f"the cgroup's peak is {group.peak_bytes()} bytes "
                    f"({group.peak_bytes() / plan:.1%} of the plan), killed {group.failures()}",
                    group.peak_bytes() <= plan and group.failures() == 0)
    siltd.stop()
    group.close()
    refused(record, limits, plan - (1 << 20))
    sys.exit(record.finish())


if __name__ == "__main__":
    main()
