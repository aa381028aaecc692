#!/usr/bin/env python3
"""siltd on a device: what it reads of many streams at once, and what a question waits for then.

    tests/bench/gpu_siltd.py --model GGUF --adapter GGUF [--device cuda] [--streams 200]

Questions are asked first of an idle siltd. Then every stream is fed the same text through `silt
feed`, and when all is read once more, while one question is asked after the other, until all
is read or ten times as many are answered: passes are small then (daemon/sched.h). CSV rows: seconds
from question to first token and how many, and tokens read a second by the daemon's own count.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import lib  # noqa: E402


def first_token(endpoint, stream):
    out = lib.silt(endpoint, "ask", stream, "What was said last?", "--json", "--tokens", "8",
                   seconds=300).out
    last = json.loads(out.decode().strip().splitlines()[-1])
    return last["timings"]["wait_seconds"] + last["timings"]["prefill_seconds"]


def computed(endpoint):
    return json.loads(lib.silt(endpoint, "stat", "--json").out)["tokens_computed"]


def lag(endpoint):
    """Tokens that are acked and wait to be read."""
    lines = lib.silt(endpoint, "ls", "--json").out.decode().splitlines()
    return sum(json.loads(line)["lag_tokens"] for line in lines)


def feed(endpoint, stream, text, failed):
    done = subprocess.run([str(lib.SILT), "-c", endpoint, "feed", stream], input=text,
                          capture_output=True, check=False)
    if done.returncode:
        failed.append(done.stderr.decode(errors="replace"))


def read_all(endpoint, streams, text, ask=None):
    """Feeds every stream the text; tokens read a second until all are read, or while ask() asks."""
    failed = []
    feeders = [threading.Thread(target=feed, args=(endpoint, f"s{i}", text, failed))
               for i in range(streams)]
    before, start = computed(endpoint), time.monotonic()
    for thread in feeders:
        thread.start()
    rate = 0
    while any(thread.is_alive() for thread in feeders) or lag(endpoint):
        if not ask:
            time.sleep(0.05)
        elif not ask():
            break
        rate = (computed(endpoint) - before) / (time.monotonic() - start)
    for thread in feeders:
        thread.join()
    while lag(endpoint):
        time.sleep(0.05)
    if failed:
        sys.exit(f"{len(failed)} of {streams} streams were not fed: {failed[0]}")
    return rate


def row(name, streams, value, unit):
    print(f"{name},,{streams},{value:.6g},{unit},gpu_siltd.py", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=200_000, help="of text, each stream")
    parser.add_argument("--questions", type=int, default=20)
    options = parser.parse_args()
    streams = options.streams
    source = pathlib.Path(__file__).resolve().parents[2] / "LICENSE"
    text = (source.read_bytes() * (options.bytes // 10_000 + 1))[:options.bytes]
    args = ["--device", options.device, "--streams-max", streams + 1, "--clients-max",
            streams + 32, "--forks-max", 4]
    with lib.Daemon(options.model, options.adapter, args, threads=2) as daemon:
        endpoint = daemon.endpoint
        lib.silt(endpoint, "feed", "asked", "--wait", stdin=text[:20_000], seconds=600)
        idle = [first_token(endpoint, "asked") for _ in range(options.questions)]
        print("figure,ratio,streams,value,unit,command")
        row("first-token-idle", 0, statistics.median(idle), "s")
        row("ingest-siltd-alone", streams, read_all(endpoint, streams, text), "tokens/s")
        busy = []

        def ask():
            if len(busy) < 10 * options.questions:
                busy.append(first_token(endpoint, "asked"))
                return True
            return False

        rate = read_all(endpoint, streams, text, ask)
        if busy:
            row("first-token-beside-ingest", streams, statistics.median(busy), "s")
            row("first-token-beside-ingest-most", streams, max(busy), "s")
            row("first-token-questions", streams, len(busy), "1")
            row("ingest-siltd", streams, rate, "tokens/s")
        daemon.stop(seconds=120)


if __name__ == "__main__":
    main()
