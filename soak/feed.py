#!/usr/bin/env python3
"""feed: `silt feed --follow` on logs that grow and rotate, for minutes or days.

Writers append lines to so many files, each in bursts of its own; files are renamed away under the
reader, and siltd is killed and started again in between. At the end every stream's text in siltd's
journal must be, byte for byte, what was written to its file and to those that had the name before.

  soak/feed.py --minutes 20                     one log, as `make soak` does
  soak/feed.py --files 1000 --minutes 3         a thousand streams at once
"""

import os
import random
import signal
import subprocess
import sys
import time

import rig

STILL_SECONDS = 300  # to catch up, at the end
HOLD_SECONDS = 5.0  # a name stays with a file for so long at least
SOURCES = ("/var/log/dpkg.log", "/var/log/alternatives.log", "/var/log/bootstrap.log")


class Log:
    """One file that grows under its name, and what was ever written to it."""

    def __init__(self, folder, name, rng, phrases):
        self.path, self.rng, self.phrases = folder / name, rng, phrases
        self.size, self.hash, self.lines, self.rotations = 0, rig.hashlib.sha256(), 0, 0
        self.file = open(self.path, "ab", buffering=0)
        self.since = time.monotonic()

    def write(self, lines):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()).encode()
        for _ in range(lines):
            self.lines += 1
            text = b"%sZ %s[%d] %s\n" % (stamp, self.path.name.encode(), self.lines,
                                         self.rng.choice(self.phrases))
            cut = self.rng.randrange(1, len(text))  # a writer's buffer ends where it ends
            for part in (text[:cut], text[cut:]):
                self.file.write(part)
            self.size += len(text)
            self.hash.update(text)

    def rotate(self, away):
        """As logrotate does with `create`: some writers notice at once, some a moment later."""
        os.rename(self.path, away / f"{self.path.name}.{self.rotations}")
        if self.rng.random() < 0.5:
            self.write(2)
        self.file.close()
        self.file = open(self.path, "ab", buffering=0)
        self.rotations += 1
        self.since = time.monotonic()


def phrases():
    """Lines of this machine's logs, without their dates."""
    found = []
    for source in SOURCES:
        try:
            with open(source, "rb") as file:
                found += [line.strip()[20:180] for line in file.read(400_000).splitlines()]
        except OSError:
            continue
    return [line for line in found if line] or [b"nothing to log on this machine"]


def follow(siltd, stream, pattern, log):
    """What it says goes to a file: a pipe that nobody reads would stop it after some days."""
    with open(log, "wb") as file:
        process = subprocess.Popen([rig.SILT, "-c", siltd.endpoint, "feed", stream, "--follow",
                                    "--quiet", pattern], stderr=file)
    rig.atexit.register(process.kill)
    return process


def status(siltd):
    """Streams, bytes of text acked, tokens that lag."""
    done = subprocess.run([rig.SILT, "-c", siltd.endpoint, "ls", "--json"], capture_output=True,
                          check=False)
    if done.returncode:
        return 0, 0, 0
    streams = [rig.json.loads(line) for line in done.stdout.splitlines()]
    return (len(streams), sum(s["bytes_text"] for s in streams),
            sum(s["tokens_acked"] - s["tokens_computed"] for s in streams))


def write_for_a_while(options, siltd, logs, record, rng, away):
    kill_at = record.begin + options.kill_seconds
    sample_at = 0.0
    while record.going():
        turn = time.monotonic()
        share = options.rate / 10  # lines each tenth of a second, in bursts
        for log in rng.sample(logs, min(len(logs), max(1, len(logs) // 10))):
            log.write(max(1, round(share / max(1, len(logs) // 10) * rng.choice((0, 1, 1, 2)))))
            if turn - log.since > HOLD_SECONDS and rng.random() < options.rotate:
                log.rotate(away)
        if turn > kill_at:
            siltd.kill()
            time.sleep(rng.uniform(0, 3))
            siltd.start()
            record.kills += 1
            kill_at = time.monotonic() + options.kill_seconds
        if turn > sample_at:
            sample(siltd, logs, record)
            sample_at = turn + max(1, options.minutes / 4)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - turn)))


def sample(siltd, logs, record):
    written = sum(log.size for log in logs)
    streams, acked, lag = status(siltd)
    record.sample(f"{streams} streams, {sum(log.lines for log in logs):,} lines, "
                  f"{sum(log.rotations for log in logs)} rotations, {record.kills} kills, "
                  f"{written - acked:,} bytes behind", written, acked, lag, siltd.resident(),
                  sum(log.rotations for log in logs), record.kills)
    return written - acked


def compare(siltd, logs, record, each):
    siltd.stop()
    wrong, lines = [], 0
    texts = dict(rig.journal_texts(siltd.data))
    for log in logs:
        text = texts.get(log.path.name if each else "log", b"")
        lines += text.count(b"\n")
        if rig.hashlib.sha256(text).digest() != log.hash.digest():
            wrong.append(log.path.name)
    if wrong:
        print(f"not equal: {', '.join(wrong[:10])}")
    wrote = sum(log.lines for log in logs)
    record.held(f"{wrote:,} lines written, {lines:,} in the journal", wrote and wrote == lines)
    record.held(f"{len(logs) - len(wrong)} of {len(logs)} streams equal their files byte for byte, "
                f"{sum(log.size for log in logs):,} bytes, over "
                f"{sum(log.rotations for log in logs)} rotations and {record.kills} kills of siltd",
                not wrong)


def main():
    parser = rig.arguments(__doc__.splitlines()[0], 20)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100, help="lines a second, of all files")
    parser.add_argument("--rotate", type=float, default=0.01,
                        help="chance of a file that was written to, each tenth of a second")
    parser.add_argument("--kill-seconds", type=float, default=150)
    parser.add_argument("--live", type=int, default=0,
                        help="streams in memory at once, the others are parked (all)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    siltd = rig.Siltd([*rig.model(options.model), "--streams-max", options.live or options.files])
    home = rig.folder()
    logs_folder, away = home / "logs", home / "away"
    logs_folder.mkdir()
    away.mkdir()
    words = phrases()
    each = options.files > 1
    logs = [Log(logs_folder, f"app{i}.log" if each else "log", random.Random(rng.random()), words)
            for i in range(options.files)]
    record = rig.Record("feed", options, ("written_bytes", "acked_bytes", "lag_tokens",
                                          "resident_bytes", "rotations", "kills"))
    record.kills = 0
    feed = follow(siltd, "%" if each else "log", f"{logs_folder}/*", home / "said")
    write_for_a_while(options, siltd, logs, record, rng, away)
    end = time.monotonic() + STILL_SECONDS
    while sample(siltd, logs, record) and time.monotonic() < end and feed.poll() is None:
        time.sleep(1)
    feed.send_signal(signal.SIGINT)
    try:
        feed.wait(STILL_SECONDS)
    except subprocess.TimeoutExpired:
        feed.kill()
    record.held(f"silt feed ran to the end ({feed.wait()})", feed.returncode == 130)
    print((home / "said").read_text(errors="replace")[-2000:], end="")
    compare(siltd, logs, record, each)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
