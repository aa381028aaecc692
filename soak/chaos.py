#!/usr/bin/env python3
"""chaos: siltd under a bad disk, bad clients and kill -9, for minutes or days.

Producers feed and a questioner asks without pause while, in a seeded order, siltd is killed, is
stopped for a while, has its disk filled up (where a small file system can be mounted), has bits of
its checkpoints flipped while it is down, and is talked to by clients that ask and never read,
that send what is no message, and that go in the middle. Nothing acked may be lost, a question must
get an answer again after each fault, facts planted in the text must be found, and at the end every
stream's memory must be, to the bit, that of a siltd to which nothing ever happened.
"""

import pathlib
import random
import subprocess
import sys
import threading
import time

import zmq

import rig
from rig import patient

import silt
from silt import silt_pb2 as pb

STREAMS = ("one", "two", "three", "four")
LIVE = 3
DISK_MB = 512
DISK_SHARE = 0.6  # then producers rest: the disk is full when we say so
FOUND_MIN = {"real": 0.9, "tiny": 0.7}  # recall keys of a random model are noise beside the words
ANSWER_SECONDS = 120  # after a fault, a question must be answered within this
WORDS = ("water runs down to the sea by slow degrees, 17 of them, gate closed ERROR 5 naïve "
         "x=1\n").split(" ")


def message(stream, number):
    """The same for ever. Some hold a fact."""
    rng = random.Random(f"{stream} {number}")
    text = " ".join(rng.choice(WORDS) for _ in range(rng.choice((1, 30, 300))))
    if number % 20 == 0:
        text += f"\nThe keeper of lock {stream}{number} is called Q{rng.randrange(10**9)}.\n"
    return text + " "


class Producer(threading.Thread):
    """Feeds one stream, message by message, whatever happens; goes on where siltd says it is."""

    def __init__(self, stream, siltd, go):
        super().__init__(daemon=True)
        self.stream, self.endpoint, self.go, self.siltd = stream, siltd.endpoint, go, siltd
        self.acked = 0
        self.error = None

    def run(self):
        try:
            with silt.Client(self.endpoint, connect_timeout=600, reconnect_timeout=600) as client:
                while self.go.is_set():
                    try:
                        self.feed(client)
                    except (silt.Busy, silt.NoSpace, silt.ShuttingDown, silt.Silent, silt.Lost):
                        time.sleep(0.2)
        except Exception as error:  # said at the end
            self.error = error

    def feed(self, client):
        client.open(self.stream)
        feed = client.feed(self.stream, "chaos")
        try:
            self.attached(feed.sequence_acked)
            number = self.acked
            while self.go.is_set():
                number = max(number, feed.sequence_acked) + 1
                feed.write(message(self.stream, number))
                self.acked = max(self.acked, feed.sequence_acked)
                time.sleep(0.05)
                while self.go.is_set() and self.siltd.disk() > DISK_SHARE * DISK_MB * 1e6:
                    time.sleep(1)
            feed.drain()
            self.acked = feed.sequence_acked
        finally:
            self.acked = max(self.acked, feed.sequence_acked)
            feed.close()

    def attached(self, there):
        if there < self.acked:
            raise AssertionError(f"{self.stream}: {self.acked} messages acked, {there} there")
        self.acked = there


class Chaos:
    def __init__(self, options):
        self.rng = random.Random(options.seed)
        self.disk = self.mount()
        self.siltd = rig.Siltd([*rig.model(options.model), "--streams-max", LIVE],
                               self.disk and self.disk / "data")
        self.record = rig.Record("chaos", options, (
            "messages", "faults", "resident_bytes", "disk_bytes", "recovery_s", "recall_found",
            "recall_asked"))
        self.go = threading.Event()
        self.go.set()
        self.producers = [Producer(s, self.siltd, self.go) for s in STREAMS]
        self.faults = dict.fromkeys(("kill", "pause", "fill", "flip", "deaf", "noise", "leave"), 0)
        self.recovery, self.found, self.asked = 0.0, 0, 0

    def mount(self):
        """A small file system of its own, where this machine lets us have one."""
        at = rig.folder()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "silt-chaos", at],
                              capture_output=True, check=False)
        if done.returncode:
            print("chaos: no file system can be mounted here: the disk is not filled", flush=True)
            return None
        rig.atexit.register(subprocess.run, ["umount", "-l", at], check=False, capture_output=True)
        return at

    # ---- faults ----

    def kill(self):
        self.siltd.kill()
        if self.rng.random() < 0.5:
            self.flip()
        self.recovery = max(self.recovery, self.siltd.start())

    def flip(self):
        """One bit of one checkpoint, as a bad disk would."""
        files = [p for p in (self.siltd.data / "checkpoints").glob("*/*") if p.stat().st_size]
        if files:
            path = self.rng.choice(sorted(files))
            data = bytearray(path.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)
            self.faults["flip"] += 1

    def pause(self):
        self.siltd.process.send_signal(rig.signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.2, 3))
        self.siltd.process.send_signal(rig.signal.SIGCONT)

    def fill(self):
        filler = self.disk / "filler"
        try:
            with open(filler, "wb", buffering=0) as file:
                while file.write(b"\0" * 65536):
                    pass
        except OSError:
            pass  # full, as it should be
        time.sleep(self.rng.uniform(0.5, 3))
        if self.rng.random() < 0.3:
            self.siltd.kill()
            filler.unlink()
            self.siltd.start()
        filler.unlink(missing_ok=True)

    def socket(self, **body):
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.siltd.endpoint)
        for number in range(1, 200):
            try:
                socket.send(pb.Request(id=number, **body).SerializeToString(), zmq.DONTWAIT)
            except zmq.Again:
                break
        return socket

    def deaf(self):
        """Asks a lot and never reads an answer."""
        socket = self.socket(ask=pb.Ask(stream="one", question="Why?", tokens_max=64))
        time.sleep(self.rng.uniform(0.1, 1))
        socket.close()

    def noise(self):
        socket = self.socket(list=pb.List())
        for _ in range(50):
            size = self.rng.choice((0, 1, 9, 1000, 100_000))
            try:
                socket.send(self.rng.randbytes(size), zmq.DONTWAIT)
            except zmq.Again:
                break
        time.sleep(0.1)
        socket.close()

    def leave(self):
        """Goes in the middle of an answer and of a feed."""
        self.socket(ask=pb.Ask(stream="two", question="Who?", tokens_max=256)).close()

    # ---- what must hold ----

    def probe(self):
        """A fact of the text so far, asked for and found in the sources of the answer."""
        producer = self.rng.choice(self.producers)
        number = self.rng.randrange(0, max(1, producer.acked - 60)) // 20 * 20  # read and indexed
        if not number:
            return
        fact = message(producer.stream, number).split(" is called ")[1].split(".")[0]
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                with silt.Client(self.siltd.endpoint) as client:
                    answer = client.ask(producer.stream, "Who is the keeper of lock "
                                        f"{producer.stream}{number}?", recall="text", tokens_max=4)
                    answer.text()
                break
            except (silt.Error, TimeoutError) as error:
                if time.monotonic() > end:
                    self.record.held(f"a question is answered: {error}", False)
                    return
                time.sleep(0.1)
        self.asked += 1
        self.found += any(fact in source.text for source in answer.done.sources)

    def run(self):
        for producer in self.producers:
            producer.start()
        while self.record.going() and not any(p.error for p in self.producers):
            time.sleep(self.rng.uniform(0.5, 3))
            fault = self.rng.choice(("kill", "pause", *(("fill",) if self.disk else ()), "deaf",
                                     "noise", "leave"))
            self.faults[fault] += 1
            getattr(self, fault)()
            self.probe()
            self.record.sample(
                f"{sum(p.acked for p in self.producers)} messages acked, "
                f"{', '.join(f'{n} {f}' for f, n in self.faults.items())}, "
                f"recall {self.found}/{self.asked}",
                sum(p.acked for p in self.producers), sum(self.faults.values()),
                self.siltd.resident(), self.siltd.disk(), round(self.recovery, 2), self.found,
                self.asked)
        self.go.clear()
        for producer in self.producers:
            producer.join(600)

    def states(self, siltd, fed):
        """Stats of all streams, each computed to its end; fed: first feed them their messages."""
        out = {}
        with silt.Client(siltd.endpoint) as client:
            for producer in self.producers:
                patient(lambda: client.open(producer.stream))
                with patient(lambda: client.feed(producer.stream, "chaos")) as feed:
                    for number in range(feed.sequence_acked + 1, fed and producer.acked + 1):
                        feed.write(message(producer.stream, number))
                out[producer.stream] = settled(client, producer.stream)
        return out


def settled(client, stream):
    last = None
    for _ in range(6000):
        stat = client.stat(stream)
        if stat.tokens_acked - stat.tokens_computed < 32 and last == stat.tokens_computed:
            return (stat.tokens_acked, stat.bytes_text, stat.memory_hash, stat.hash_chunk)
        last = stat.tokens_computed
        time.sleep(0.1)
    raise SystemExit(f"chaos: {stream} is not computed within 10 minutes")


def main():
    options = rig.arguments(__doc__.splitlines()[0], 5).parse_args()
    chaos = Chaos(options)
    record = chaos.record
    chaos.run()
    for producer in chaos.producers:
        why = "it has not ended" if producer.is_alive() else \
            repr(producer.error) if producer.error else ""
        record.held(f"{producer.stream}: {producer.acked} messages acked, "
                    + (why or "0 lost"), producer.acked and not why)
    ended = chaos.states(chaos.siltd, 0)
    chaos.siltd.stop()
    texts = dict(rig.journal_texts(pathlib.Path(chaos.siltd.data)))
    same = [s for s in chaos.producers if texts[s.stream] == "".join(
        message(s.stream, n) for n in range(1, s.acked + 1)).encode()]
    record.held(f"{len(same)} of {len(STREAMS)} streams have in the journal what was fed, byte for "
                "byte", len(same) == len(STREAMS))
    quiet = rig.Siltd([*rig.model(options.model), "--streams-max", LIVE])
    clean = chaos.states(quiet, 1)
    quiet.stop()
    record.held(f"{sum(ended[s] == clean[s] for s in STREAMS)} of {len(STREAMS)} streams have the "
                "memory of a siltd to which nothing happened", ended == clean)
    found = f"{chaos.found} of {chaos.asked} planted facts were among the answers' sources"
    if chaos.asked or options.minutes >= 1:
        record.held(found, chaos.asked and chaos.found >= FOUND_MIN[options.model] * chaos.asked)
    else:
        print(f"not judged: {found}, a run of {options.minutes:g} minutes is too short")
    print(f"chaos: {', '.join(f'{n} {f}' for f, n in chaos.faults.items())}; ready again after at "
          f"most {chaos.recovery:.2f} s")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
