#!/usr/bin/env python3
"""siltd on a device: what it reads of many streams at once, and what a question waits for then.

    tests/bench/gpu_siltd.py --model GGUF --adapter GGUF [--device cuda] [--streams 200]

Questions are asked first of an idle siltd. Then every stream is fed the same text through `silt
feed`, and when all is read once more, while one question is asked after the other, until all
is read or ten times as many are answered: passes are small then (daemon/sched.h). CSV rows: seconds
from question to first token and how many, and tokens read a second by the daemon's own count; and
where its compute thread was meanwhile, in shares of that time: idle (there was no text to read),
in passes over text, in these waiting for the device alone, handing segments on, in that waiting for
the disk, and behind passes (statistics, checkpoints). Arguments that are not known go to siltd.
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


def process(endpoint):
    return json.loads(lib.silt(endpoint, "stat", "--json").out)


def acked(endpoint):
    lines = lib.silt(endpoint, "ls", "--json").out.decode().splitlines()
    return sum(json.loads(line)["tokens_acked"] for line in lines)


def feed(endpoint, stream, text, failed):
    done = subprocess.run([str(lib.SILT), "-c", endpoint, "feed", stream], input=text,
                          capture_output=True, check=False)
    if done.returncode:
        failed.append(done.stderr.decode(errors="replace"))


def read_all(endpoint, streams, text, ask=None):
    """Feeds every stream the text, and says what siltd said of itself until all was read, or ask()
    had asked enough. Without questions the tenths are left out in which the programs that feed
    start, and in which the last text is read."""
    failed, before, fed = [], acked(endpoint), None
    feeders = [threading.Thread(target=feed, args=(endpoint, f"s{i}", text, failed))
               for i in range(streams)]
    said = [process(endpoint)]
    first, start = said[0]["tokens_computed"], time.monotonic()
    for thread in feeders:
        thread.start()
    while fed is None or said[-1]["tokens_computed"] < first + fed:
        if ask and not ask():
            break
        time.sleep(0 if ask else 0.05)
        said.append(process(endpoint))
        if fed is None and not any(thread.is_alive() for thread in feeders):
            seconds, fed = time.monotonic() - start, acked(endpoint) - before
    for thread in feeders:
        thread.join()
    if failed:
        sys.exit(f"{len(failed)} of {streams} streams were not fed: {failed[0]}")
    if ask:
        return said
    row("acked-siltd-alone", streams, fed / seconds, "tokens/s")
    return [s for s in said if fed / 10 <= s["tokens_computed"] - first <= fed * 9 / 10]


def rows(name, streams, said):
    """Of what siltd said first and last."""
    if len(said) < 2:
        print(f"# {name}: all was read too soon to tell", flush=True)
        return
    much = {key: said[-1][key] - said[0][key] for key, value in said[0].items()
            if isinstance(value, (int, float))}
    row(name, streams, much["tokens_computed"] / much["uptime_us"] * 1e6, "tokens/s")
    row(f"{name}-pass", streams, much["tokens_computed"] / max(much["passes"], 1), "tokens")
    row(f"{name}-idle", streams, 1 - much["compute_us"] / much["uptime_us"], "1")
    for part in "read", "wait", "leave", "disk", "save":
        row(f"{name}-{part}", streams, much[f"{part}_us"] / much["uptime_us"], "1")


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
    parser.add_argument("--data", help="a folder on the disk that is meant; emptied by nobody")
    options, more = parser.parse_known_args()
    streams = options.streams
    source = pathlib.Path(__file__).resolve().parents[2] / "LICENSE"
    text = (source.read_bytes() * (options.bytes // 10_000 + 1))[:options.bytes]
    args = ["--device", options.device, "--streams-max", streams + 1, "--clients-max",
            streams + 32, "--forks-max", 4, *more]
    with lib.Daemon(options.model, options.adapter, args, options.data) as daemon:
        endpoint = daemon.endpoint
        lib.silt(endpoint, "feed", "asked", "--wait", stdin=text[:20_000], seconds=600)
        idle = [first_token(endpoint, "asked") for _ in range(options.questions)]
        print("figure,ratio,streams,value,unit,command")
        row("first-token-idle", 0, statistics.median(idle), "s")
        rows("ingest-siltd-alone", streams, read_all(endpoint, streams, text))
        busy = []

        def ask():
            if len(busy) < 10 * options.questions:
                busy.append(first_token(endpoint, "asked"))
                return True
            return False

        said = read_all(endpoint, streams, text, ask)
        if busy:
            row("first-token-beside-ingest", streams, statistics.median(busy), "s")
            row("first-token-beside-ingest-most", streams, max(busy), "s")
            row("first-token-questions", streams, len(busy), "1")
            rows("ingest-siltd", streams, said)
        daemon.stop(seconds=120)


if __name__ == "__main__":
    main()
