"""What the soaks in Python share: a siltd of one's own, a record that becomes a CSV and a live
line, and the journal read back.

A soak prints its seed first, a line of progress while it runs (over itself on a terminal, twice a
minute elsewhere), and what held last; exit status 0: all of it did.
"""

import argparse
import atexit
import csv
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build")).resolve()
sys.path.insert(0, str(ROOT / "clients/python"))

SILT, SILTD = BUILD / "silt", BUILD / "siltd"
MODEL = ROOT / "build/models/smollm2-135m-instruct-q4_1.gguf"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # atexit: no siltd is left behind
ITEM_TEXT, ITEM_TURN = 1, 3  # of the journal, daemon/wire.h
ORDINAL_BITS = 40
SAY_SECONDS = 30


def arguments(what, minutes):
    """The options of every soak; a soak may add its own before parse()."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--csv", type=pathlib.Path, help="samples go there, beside a plot")
    parser.add_argument("--model", choices=("tiny", "real"), default="tiny",
                        help="a random model of a few layers, or the default one (tiny)")
    return parser


def folder():
    path = pathlib.Path(tempfile.mkdtemp(prefix="silt-soak-", dir="/tmp"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def model(name):
    """Options of siltd for it."""
    if name == "real":
        if not MODEL.exists():
            sys.exit(f"soak: no {MODEL.relative_to(ROOT)}: make model fetches it")
        return ["--model", MODEL]
    out, maker = BUILD / "tests/tiny", ROOT / "build/tests/make-tiny"
    if not list(out.glob("*.gguf")):
        if not maker.exists():
            sys.exit("soak: no build/tests/make-tiny: make soak builds it")
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = tempfile.mkdtemp(dir=out.parent)
        subprocess.run([maker, fresh], check=True, stdout=subprocess.DEVNULL)
        try:
            os.rename(fresh, out)
        except OSError:  # another soak was quicker
            shutil.rmtree(fresh)
    return ["--model", out / "tiny.gguf", "--adapter", out / "tiny-adapter.gguf"]


class Siltd:
    """Started on a private socket, watched, killed, stopped."""

    def __init__(self, options, data=None, procs=None):
        """procs: cgroup.procs of the group that it is to live in, from its first instruction."""
        self.home = folder()
        self.within = ["sh", "-c", f"echo $$ >{procs} && exec \"$@\"", "sh"] if procs else []
        self.data = pathlib.Path(data) if data else self.home / "data"
        self.endpoint = f"ipc://{self.home}/s"
        self.log = self.home / "log"
        self.options = options
        self.process = None
        atexit.register(self.end)
        self.start()

    def start(self, seconds=60):
        """Returns how long it took until it answered."""
        begin = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                list(map(str, [*self.within, SILTD, "--listen", self.endpoint, "--data", self.data,
                               *self.options])),
                stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while time.monotonic() < begin + seconds:
            if self.process.poll() is not None:
                break
            if not subprocess.run([SILT, "-c", self.endpoint, "ls", "-q"], check=False,
                                  capture_output=True).returncode:
                return time.monotonic() - begin
            time.sleep(0.02)
        raise SystemExit(f"soak: siltd does not answer:\n{self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-3000:]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM: ends by itself, with 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"soak: siltd has not ended 120 s after SIGTERM:\n{self.tail()}") \
                from None
        if code:
            raise SystemExit(f"soak: siltd ended with {code} after SIGTERM:\n{self.tail()}")

    def end(self):
        if self.process and self.process.poll() is None:
            self.kill()

    def resident(self):
        try:
            pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def cpu_seconds(self):
        """Of all its threads, in user and kernel, by the process's own clock (in C,
        clock_getcpuclockid): /proc counts in hundredths."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def handles(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def disk(self):
        """Bytes under the data folder, of which files may go while we look."""
        total = 0
        for path in self.data.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except OSError:
                continue
        return total


def silt(siltd, *args, stdin=b""):
    """What the command prints; where it fails, the soak ends with its words."""
    done = subprocess.run([SILT, "-c", siltd.endpoint, *args], input=stdin, check=False,
                          capture_output=True)
    if done.returncode:
        raise SystemExit(f"soak: silt {' '.join(args)} ended with {done.returncode}: "
                         f"{done.stderr.decode(errors='replace').strip()}\n{siltd.tail()}")
    return done.stdout


def stat(siltd, *stream):
    """What `silt stat --json` says of a stream, or of siltd."""
    return json.loads(silt(siltd, "stat", "--json", *stream))


def journal_texts(data):
    """Text of each stream as the journal has it: name -> bytes. Of a siltd that has stopped."""
    database = sqlite3.connect(f"file:{data}/journal.db?mode=ro", uri=True)
    for stream, name in database.execute("SELECT id, name FROM streams ORDER BY name"):
        rows = database.execute(
            "SELECT payload FROM items WHERE key BETWEEN ? AND ? AND kind = ? ORDER BY key",
            (stream << ORDINAL_BITS, (stream + 1 << ORDINAL_BITS) - 1, ITEM_TEXT))
        yield name, b"".join(payload for (payload,) in rows)
    database.close()


def patient(work, seconds=60):
    """What is told to come again comes again."""
    import silt
    end = time.monotonic() + seconds
    while True:
        try:
            return work()
        except silt.Busy as busy:
            if time.monotonic() > end:
                raise
            time.sleep(busy.retry_after or 0.05)


class Record:
    """Samples on their way to a CSV, and what held."""

    def __init__(self, name, options, columns):
        self.name, self.options = name, options
        self.begin = self.said = time.monotonic()
        self.end = self.begin + options.minutes * 60
        self.columns = ("seconds", *columns)
        self.rows, self.ok = [], True
        self.terminal = sys.stderr.isatty()
        print(f"{name}: seed {options.seed}, {options.minutes:g} minutes, model {options.model}",
              flush=True)

    @property
    def seconds(self):
        return time.monotonic() - self.begin

    def going(self):
        return time.monotonic() < self.end

    def sample(self, line, *values):
        self.rows.append((round(self.seconds, 1), *values))
        if self.terminal:
            print(f"\r{self.name} {self.seconds:.0f} s: {line}\033[K", end="", file=sys.stderr,
                  flush=True)
        elif time.monotonic() - self.said > SAY_SECONDS:
            self.said = time.monotonic()
            print(f"{self.name} {self.seconds:.0f} s: {line}", file=sys.stderr, flush=True)

    def column(self, name):
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def held(self, what, held):
        """A promise and whether it held."""
        self.ok &= bool(held)
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(f"{'held' if held else 'DID NOT HOLD'}: {what}", flush=True)

    def flat(self, name, unit, share, slack=0.0):
        """The second half's level is the first half's, but for a share and a slack of noise."""
        values = [v for v in self.column(name) if v]
        half = len(values) // 2
        if half < 4:
            if self.options.minutes < 1:
                print(f"not judged: {name}, a run of {self.options.minutes:g} minutes is too short")
            else:
                self.held(f"{name}: {len(values)} samples are too few", False)
            return
        early, late = max(values[half // 4:half]), max(values[half:])
        self.held(f"{name}: at most {late / unit:.1f} in the second half, {early / unit:.1f} in "
                  f"the first", late <= early * (1 + share) + slack)

    def finish(self):
        """Writes the CSV, of which soak/run makes a plot; the exit status."""
        if self.options.csv:
            with open(self.options.csv, "w", newline="", encoding="ascii") as file:
                file.write(f"# {self.name}: seed {self.options.seed}, model {self.options.model}, "
                           f"{os.cpu_count()} threads\n")
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(self.columns)
                writer.writerows(self.rows)
        print(f"{self.name}: {'all held' if self.ok else 'not all held'} in {self.seconds:.0f} s",
              flush=True)
        return 0 if self.ok else 1
