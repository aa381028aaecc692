#!/usr/bin/python3
"""siltd as a whole: start to ready, and tokens a second over the wire into the journal.

    tests/bench/daemon.py [--text FILE] [--rounds 5] [--seconds 5]     part of `make bench`

Start: from the exec of siltd with the default model and an empty data folder to its first answer on
its socket; cold: with model, adapter and program put out of the page cache before.  Wire: a siltd
that computes nothing (tests/bench/idle.c) is fed as fast as it acks by one client, as text and as
token ids, into one stream and into four; the text is this repository's own, or FILE.  What is acked
is on disk.  Also with the text index at work beside it; and the tokenizer alone on the same text in
processor time, and what a synced write takes.
"""
import argparse
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

import zmq  # noqa: E402

import first_token  # noqa: E402
import lib  # noqa: E402
import raw  # noqa: E402

MESSAGE_BYTES, SYNCS = 64 << 10, 32
WIRE = ((1, False, False), (4, False, False), (4, True, False), (4, False, True))


def forget_file(path):
    """Out of the page cache, where nobody else holds it."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Siltd:
    def __init__(self, program, args=(), env=None):
        self.home = lib.folder()
        self.endpoint = f"ipc://{self.home}/s"
        model, adapter = lib.real()
        begin = time.monotonic()
        with open(self.home / "log", "wb") as log:
            self.process = lib.spawn(
                lib.BUILD / program, "--listen", self.endpoint, "--data", self.home / "data",
                "--model", model, "--adapter", adapter, "--threads", 2, *args, stdout=log,
                stderr=log, env={**os.environ, **(env or {})})
        self.ready = self.first_answer() - begin

    def first_answer(self):
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 2)
        socket.connect(self.endpoint)
        socket.send(raw.pb.Request(id=1, stat=raw.pb.Stat()).SerializeToString())
        if not socket.poll(60000):
            sys.exit("siltd does not answer:\n" + (self.home / "log").read_text())
        at = time.monotonic()
        context.destroy(0)
        return at

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def start_seconds(cold):
    if cold:
        for path in (*lib.real(), lib.SILTD):
            forget_file(path)
    siltd = Siltd("siltd")
    siltd.stop()
    return siltd.ready


def wire_rate(streams, ids, index, text, seconds):
    siltd = Siltd("siltd-idle", ["--streams-max", streams, "--loss-meter", "no"],
                  {"SILT_IDLE_INDEX": "1"} if index else None)
    out = subprocess.run([lib.BUILD / "bench-wire", siltd.endpoint, str(streams), str(seconds),
                          text, *(["ids", lib.MODEL] if ids else [])], check=True,
                         capture_output=True, text=True).stdout
    siltd.stop()
    return float(out.split()[1])


def sync_ms():
    """What the disk takes for a write of one message that is synced, as a commit's is."""
    times = []
    with open(lib.folder() / "sync", "wb", buffering=0) as file:
        for _ in range(SYNCS):
            begin = time.monotonic()
            file.write(bytes(MESSAGE_BYTES))
            os.fdatasync(file.fileno())
            times.append(time.monotonic() - begin)
    return 1e3 * statistics.median(times)


def tokenizer_rate(text):
    out = subprocess.run([lib.BUILD / "tests/token-dump", lib.MODEL, "--time", text], check=True,
                         capture_output=True, text=True).stdout
    return float(re.search(r"([\d.]+) MB/s", out).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--keep", help="a file that gets a line a figure and round")
    arguments = parser.parse_args()
    lib.real()
    text = arguments.text
    if not text:
        with tempfile.NamedTemporaryFile(delete=False, dir=lib.folder()) as file:
            file.write(first_token.own_text())
            text = file.name
    rows = {}
    for _ in range(arguments.rounds):
        rows.setdefault(("start-cold", "s from exec to the first answer"), []).append(
            start_seconds(True))
        rows.setdefault(("start-warm", "s from exec to the first answer"), []).append(
            start_seconds(False))
        rows.setdefault(("tokenizer", "MB/s a core"), []).append(tokenizer_rate(text))
        rows.setdefault(("disk-sync", "ms a write of 64 KiB, synced"), []).append(sync_ms())
        for streams, ids, index in WIRE:
            name = f"wire-{'ids' if ids else 'text'}-{streams}{'-indexed' if index else ''}"
            rows.setdefault((name, "tokens/s acked, that is on disk"), []).append(
                wire_rate(streams, ids, index, text, arguments.seconds))
    for (name, unit), values in rows.items():
        print(f"{name:<22} {statistics.median(values):12.2f} {unit}"
              f" ({min(values):.2f} to {max(values):.2f})", flush=True)
        first_token.keep(arguments.keep, name, values, unit)


if __name__ == "__main__":
    try:
        main()
    except lib.Skip as why:
        print(f"skip: {why}")
        sys.exit(lib.EXIT_SKIP)
