#!/usr/bin/env python3
"""Whatever clients may ask for, by several at once, on more streams than have a place: all of it is
answered in time, and what streams remember afterwards is what their journal alone gives.

SILT_SECONDS=60 SILT_SEED=7 tests/e2e/test_mixture.py: longer, and in another order."""

import collections
import os
import random
import shutil
import threading
import time

import lib
import texts
from test_python import silt, siltd

SECONDS = float(os.environ.get("SILT_SECONDS", "8"))
SEED = int(os.environ.get("SILT_SEED", "1"))
STREAMS = [f"s{i}" for i in range(7)]
CLIENTS = 4
LATE_SECONDS = 30 * lib.SLOW
# What others have done meanwhile, or what was asked for cannot be: no failure.
REFUSALS = (silt.NotFound, silt.Exists, silt.Invalid, silt.NoSpace, silt.Busy)


class Meddler(threading.Thread):
    """A client that does one thing after the other, each to any stream."""

    def __init__(self, endpoint, number):
        super().__init__(daemon=True)
        self.endpoint, self.number = endpoint, number
        self.rng = random.Random(SEED * CLIENTS + number)
        self.done, self.late, self.error = collections.Counter(), [], None
        self.start()

    def run(self):
        end = time.monotonic() + SECONDS
        try:
            with silt.Client(self.endpoint) as client:
                while time.monotonic() < end:
                    self.one(client)
        except BaseException as error:
            self.error = error

    def one(self, client):
        names = ["feed"] * 4 + ["ask"] * 3 + ["open", "past", "keep", "pin", "unpin", "forget",
                                              "fork", "remove", "look"]
        name, start = self.rng.choice(names), time.monotonic()
        try:
            getattr(self, name)(client, self.rng.choice(STREAMS))
            self.done[name] += 1
        except REFUSALS:
            pass
        if time.monotonic() > start + LATE_SECONDS:
            self.late.append((name, time.monotonic() - start))

    def open(self, client, stream):
        client.open(stream, dmc=self.rng.choice([0, 1, 4]))

    def feed(self, client, stream):
        with client.feed(stream, f"p{self.number}") as feed:
            feed.write(texts.text(self.rng.choice([30, 700, 3000, 9000]),
                                  seed=self.rng.randrange(99)))

    def ask(self, client, stream):
        client.ask(stream, "Which river?", tokens_max=3, wait=self.rng.random() < 0.7).text()

    def past(self, client, stream):
        tokens = client.stat(stream).tokens_acked
        client.ask(stream, "Which river?", tokens_max=3, at=self.rng.randrange(tokens + 1)).text()

    def keep(self, client, stream):
        client.ask(stream, "Hm?", tokens_max=3, wait=True, keep=True).text()

    def pin(self, client, stream):
        start = self.rng.randrange(500)
        client.pin(stream, start, start + 20)

    def unpin(self, client, stream):
        client.unpin(stream, 0, 600)

    def forget(self, client, stream):
        start = self.rng.randrange(400)
        client.forget(stream, start, start + self.rng.choice([1, 50]))

    def fork(self, client, stream):
        client.fork(stream, self.rng.choice(STREAMS))

    def remove(self, client, stream):
        if self.rng.random() < 0.4:
            client.remove(stream)

    def look(self, client, stream):
        stat = client.stat(stream)
        assert stat.memory_hash or stat.parked, stat
        assert not stat.parked or not stat.memory_bytes_used, stat
        client.pins(stream)
        list(client.list())


def memory(client, stream):
    """What it has and remembers, once it has been woken and has computed everything."""
    def settled():
        stat = client.stat(stream)
        assert not stat.stopped, stat
        return stat if not stat.parked and stat.tokens_computed == stat.tokens_acked else None

    client.feed(stream, "look").close()
    stat = lib.wait_until(f"{stream} is computed", settled, 60)
    return stat.tokens_acked, stat.bytes_text, stat.memory_hash, stat.hash_chunk, stat.pins


def memories(daemon):
    with silt.Client(daemon.endpoint) as client:
        return {stream: memory(client, stream)
                for stream in [stat.stream for stat in client.list()]}


def test_everything_at_once():
    with siltd("--streams-max", "2") as daemon:
        meddlers = [Meddler(daemon.endpoint, number) for number in range(CLIENTS)]
        for meddler in meddlers:
            meddler.join(SECONDS + 2 * LATE_SECONDS)
            assert not meddler.is_alive(), f"client {meddler.number} waits for ever, seed {SEED}"
            assert not meddler.error and not meddler.late, (meddler.error, meddler.late, SEED)
        assert " error " not in daemon.log_text(), daemon.log_text()
        held = memories(daemon)
        daemon.kill()
        shutil.rmtree(daemon.data / "checkpoints", ignore_errors=True)
        daemon.start()
        again = memories(daemon)
    assert held == again, (SEED, held, again)
    done = sum((meddler.done for meddler in meddlers), collections.Counter())
    assert len(done) > 8, done
    print(f"seed {SEED}: {sum(done.values())} things done to {len(held)} streams in 2 places")


if __name__ == "__main__":
    lib.main({"test_everything_at_once": test_everything_at_once})
