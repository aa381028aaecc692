#!/usr/bin/env python3
"""siltd killed at random moments, over and over, while it reads, answers, parks and checkpoints.

What was acked is there after every kill, and at the end the memory is that of a siltd that was
never killed. SILT_KILLS=300 SILT_SEED=7 tests/e2e/test_kill.py: more of it, from another seed.
"""

import os
import random
import time

import lib
import raw
import texts

pb = raw.pb

KILLS = int(os.environ.get("SILT_KILLS", "20"))
SEED = int(os.environ.get("SILT_SEED", "1"))
STREAMS = ("one", "two", "three")
LIVE = 2  # so that one is always on the disk, or on its way


def message(stream, sequence):
    """The same for ever: what is sent again must be what was sent."""
    rng = random.Random(f"{stream} {sequence}")
    text = texts.text(rng.choice((3, 40, 400, 1500)), seed=rng.randrange(10**6))
    kind = rng.randrange(12)
    if kind == 0:
        return pb.Item(turn=pb.Turn(role="user", text=text[:60]))
    if kind == 1:
        return pb.Item(mark=pb.Mark(kind=pb.Mark.FLUSH))
    return raw.text_item(text)


class Feeder:
    """One producer of one stream, as far as it knows."""

    def __init__(self, stream):
        self.stream, self.acked, self.sent = stream, 0, 0

    def attach(self, wire):
        """After a restart: nothing acked may be missing."""
        state = patient(wire, attach=pb.Attach(stream=self.stream, producer="p"))
        assert state.next_sequence > self.acked, (
            f"{self.stream}: {self.acked} acked, {state.next_sequence - 1} there")
        self.acked = self.sent = state.next_sequence - 1

    def send(self, wire, ahead):
        while self.sent < self.acked + ahead:
            self.sent += 1
            wire.send(feed=raw.feed(self.stream, "p", self.sent,
                                    message(self.stream, self.sent)))

    def take(self, reply):
        if reply.ack.stream == self.stream:
            self.acked = max(self.acked, reply.ack.sequence)


def patient(wire, **body):
    """A call that is tried again while a stream changes places."""
    end = time.monotonic() + 60 * lib.SLOW
    while True:
        try:
            return wire.call(**body)
        except raw.Refused as error:
            if error.code != pb.Error.BUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)


def work(wire, feeders, rng, seconds):
    """Feeds and asks; errors on the way (busy, gaps behind them) are put right by attaching."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        feeder = rng.choice(feeders)
        feeder.send(wire, rng.randrange(1, 12))
        if rng.randrange(6) == 0:
            wire.send(ask=pb.Ask(stream=feeder.stream, question="What is it?", tokens_max=8,
                                 keep=False, wait=rng.randrange(4) == 0))
        refused = False
        while (reply := wire.reply(0.02)) is not None:
            if reply.WhichOneof("body") == "ack":
                for each in feeders:
                    each.take(reply)
            refused |= reply.WhichOneof("body") == "error"
        if refused:
            time.sleep(0.02)
            for each in feeders:
                each.sent = each.acked


def damage(siltd, rng):
    """One bit of one checkpoint, as a bad disk would."""
    found = [p for p in (siltd.data / "checkpoints").glob("*/*") if p.stat().st_size]
    if not found or rng.randrange(4):
        return 0
    path = rng.choice(found)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return 1


def never_killed(feeders):
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter) as siltd:
        wire = raw.Raw(siltd.endpoint)
        for feeder in feeders:
            wire.open(feeder.stream)
            for sequence in range(1, feeder.acked + 1):
                patient(wire, feed=raw.feed(feeder.stream, "p", sequence,
                                            message(feeder.stream, sequence)))
        return [wire.settled(feeder.stream) for feeder in feeders]


def settle(wire, stream):
    """The stat of a stream that has been woken and has computed everything."""
    patient(wire, attach=pb.Attach(stream=stream, producer="p"))
    return wire.settled(stream)


def test_killed_over_and_over():
    rng = random.Random(SEED)
    feeders = [Feeder(stream) for stream in STREAMS]
    model, adapter = lib.tiny()
    damaged, recovery = 0, []
    print(f"seed {SEED}, {KILLS} kills", flush=True)
    with lib.Daemon(model, adapter, ("--streams-max", LIVE, "--lag-tokens-max", 8192)) as siltd:
        wire = raw.Raw(siltd.endpoint)
        for feeder in feeders:
            patient(wire, open=pb.Open(stream=feeder.stream))
        for kill in range(KILLS):
            work(wire, feeders, rng, rng.uniform(0.02, 0.5))
            siltd.kill()
            wire.close()
            damaged += damage(siltd, rng)
            start = time.monotonic()
            siltd.start()
            wire = raw.Raw(siltd.endpoint)
            for feeder in feeders:
                feeder.attach(wire)
            recovery.append(time.monotonic() - start)
        ended = [settle(wire, feeder.stream) for feeder in feeders]
    for stat, clean in zip(ended, never_killed(feeders)):
        assert stat.bytes_text == clean.bytes_text, stat.stream
        assert stat.tokens_acked == clean.tokens_acked, stat.stream
        assert (stat.memory_hash, stat.hash_chunk) == (clean.memory_hash, clean.hash_chunk), (
            stat.stream)
    messages = sum(feeder.acked for feeder in feeders)
    print(f"{messages} messages, {sum(s.tokens_acked for s in ended)} tokens; acked and lost: 0; "
          f"checkpoints damaged: {damaged}; ready again after {max(recovery):.2f} s at most, "
          f"{sum(recovery) / len(recovery):.2f} s on average")


if __name__ == "__main__":
    lib.main(globals())
