#!/usr/bin/env python3
"""siltd killed at random moments, over and over, while it reads, answers (the past too), branches,
parks, spills, compacts and checkpoints.

What was acked is there after every kill, and at the end the memory is that of a siltd that was
never killed. SILT_KILLS=300 SILT_SEED=7 tests/e2e/test_kill.py: more of it, from another seed;
SILT_CSV=FILE: a line for each kill. The seed gives what is done, in which order and for how long;
where siltd then is, the machine decides.
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
BRANCHES_MAX = 3
LIVE = 2  # so that one is always on the disk, or on its way
DISK = f"{14 + KILLS // 6}M"  # so little that segments are merged


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

    def __init__(self, stream, parent=None):
        self.stream, self.parent = stream, parent
        self.acked = self.sent = self.tokens = 0
        self.common = None if parent else 0  # messages it has of its parent; None: not known yet

    def message(self, sequence):
        if sequence <= self.common:
            return self.parent.message(sequence)
        return message(self.stream, sequence)

    def attach(self, wire):
        """After a restart: nothing acked may be missing. False: a branch that never came to be."""
        try:
            state = raw.patient(wire.call, attach=pb.Attach(stream=self.stream, producer="p"))
        except raw.Refused as error:
            assert error.code == pb.Error.NOT_FOUND and self.common is None, error
            return False
        assert state.next_sequence > self.acked, (
            f"{self.stream}: {self.acked} acked, {state.next_sequence - 1} there")
        found = wire.stat(self.stream).tokens_acked
        assert found >= self.tokens, f"{self.stream}: {self.tokens} tokens acked, {found} there"
        self.acked = self.sent = state.next_sequence - 1
        self.tokens = found
        if self.common is None:
            self.common = self.acked
        return True

    def send(self, wire, ahead):
        while self.common is not None and self.sent < self.acked + ahead:
            self.sent += 1
            wire.send(feed=raw.feed(self.stream, "p", self.sent, self.message(self.sent)))

    def take(self, reply):
        if reply.ack.stream == self.stream:
            self.acked = max(self.acked, reply.ack.sequence)
            self.tokens = max(self.tokens, reply.ack.tokens_acked)


def ask(wire, feeder, rng):
    past = rng.randrange(3) == 0
    wire.send(ask=pb.Ask(stream=feeder.stream, question="What is it?", tokens_max=8, keep=False,
                         wait=rng.randrange(4) == 0, at_given=past,
                         at_position=rng.randrange(feeder.tokens + 1) if past else 0))


def branch(wire, feeders, rng):
    parent = rng.choice([f for f in feeders if f.common is not None])
    feeders.append(Feeder(f"{parent.stream}-{len(feeders)}", parent))
    wire.send(fork=pb.Fork(stream=parent.stream, branch=feeders[-1].stream))


def work(wire, feeders, rng, seconds):
    """Feeds, asks, branches; errors on the way (busy, gaps behind them) are put right by sending
    again. How often it asked."""
    end, asked = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        feeder = rng.choice(feeders)
        feeder.send(wire, rng.randrange(1, 12))
        if rng.randrange(6) == 0:
            ask(wire, feeder, rng)
            asked += 1
        if rng.randrange(60) == 0 and len(feeders) < len(STREAMS) + BRANCHES_MAX:
            branch(wire, feeders, rng)
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
    return asked


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


def held(stat):
    """What a stream has and what became of it, to compare and to show."""
    return (f"{stat.bytes_text} bytes, {stat.tokens_computed} of {stat.tokens_acked} tokens, "
            f"{stat.memory_hash:016x} at chunk {stat.hash_chunk}")


def expect_never_killed(ended, feeders):
    """Their stats are those of a siltd that was fed the same and to which nothing happened."""
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter) as siltd:
        wire = raw.Raw(siltd.endpoint)
        for feeder in feeders:
            wire.open(feeder.stream)
            for sequence in range(1, feeder.acked + 1):
                raw.patient(wire.feed, feeder.stream, "p", sequence, feeder.message(sequence))
        clean = [wire.settled(feeder.stream) for feeder in feeders]
    for stat, same in zip(ended, clean):
        assert held(stat) == held(same), (
            f"{stat.stream}: {held(stat)}, and {held(same)} where nothing happened; "
            f"{'; '.join(stat.degraded)}")


def settle(wire, stream):
    """The stat of a stream that has been woken and has computed everything."""
    raw.patient(wire.call, attach=pb.Attach(stream=stream, producer="p"))
    return wire.settled(stream)


class Log:
    """A line for each kill."""

    def __init__(self):
        self.file = open(os.environ["SILT_CSV"], "w") if "SILT_CSV" in os.environ else None
        self.write("kill", "seconds_at_work", "streams", "questions", "acked_tokens",
                   "found_tokens", "lost_tokens", "segment_files", "merged_files", "checkpoints",
                   "checkpoints_damaged", "recovery_seconds")

    def write(self, *fields):
        if self.file:
            print(*fields, sep=",", file=self.file, flush=True)


def disk(siltd):
    """Files of segments, those of merged ones, checkpoints."""
    segments = [p.name for p in (siltd.data / "segments").glob("*/*.seg")]
    return (len(segments), sum(not name.startswith("0-") for name in segments),
            len(list((siltd.data / "checkpoints").glob("*/*"))))


def kill(siltd, wire, feeders, rng, number, log):
    """Works, kills, starts again, finds everything. The new wire, seconds until it was found."""
    seconds = rng.uniform(0.02, 0.5)
    asked = work(wire, feeders, rng, seconds)
    siltd.kill()
    wire.close()
    acked, files = sum(f.tokens for f in feeders), disk(siltd)
    damaged = damage(siltd, rng)
    start = time.monotonic()
    siltd.start()
    wire = raw.Raw(siltd.endpoint)
    feeders[:] = [feeder for feeder in feeders if feeder.attach(wire)]
    took = time.monotonic() - start
    found = sum(f.tokens for f in feeders)
    log.write(number, f"{seconds:.3f}", len(feeders), asked, acked, found, max(0, acked - found),
              *files, damaged, f"{took:.3f}")
    return wire, took, damaged, files


def test_killed_over_and_over():
    rng = random.Random(SEED)
    feeders = [Feeder(stream) for stream in STREAMS]
    model, adapter = lib.tiny()
    damaged, recovery, merged, log = 0, [], 0, Log()
    print(f"seed {SEED}, {KILLS} kills", flush=True)
    options = ("--streams-max", LIVE, "--lag-tokens-max", 8192, "--disk", DISK)
    with lib.Daemon(model, adapter, options) as siltd:
        wire = raw.Raw(siltd.endpoint)
        for feeder in feeders:
            raw.patient(wire.call, open=pb.Open(stream=feeder.stream))
        for number in range(1, KILLS + 1):
            wire, took, spoilt, files = kill(siltd, wire, feeders, rng, number, log)
            recovery.append(took)
            damaged += spoilt
            merged = max(merged, files[1])
        ended = [settle(wire, feeder.stream) for feeder in feeders]
    expect_never_killed(ended, feeders)
    messages = sum(feeder.acked for feeder in feeders)
    tokens = sum(stat.tokens_acked for stat in ended)
    print(f"{len(feeders)} streams, {messages} messages, {tokens} tokens; acked tokens lost: 0; "
          f"memories that differ from a run never killed: 0; checkpoints "
          f"damaged: {damaged}; files of merged segments: {merged}; ready again after "
          f"{max(recovery):.2f} s at most, {sum(recovery) / len(recovery):.2f} s on average")


AGAIN_MAX = 16384 + 32  # tokens behind the newest checkpoint, and a block


def test_a_start_computes_little_again():
    """However long the stream and wherever it is killed: what lies behind its newest checkpoint,
    twice that where the newest one is damaged."""
    model, adapter = lib.tiny()
    again, recovery = [], []
    with lib.Daemon(model, adapter) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")

        def checkpoints():
            return sorted(path for path in (siltd.data / "checkpoints").glob("*/*")
                          if path.suffix != ".new")

        for number in range(12):
            wire.feed_all("s", "p", [texts.text(9000, seed=number)], end=False)
            stat = wire.settled("s")
            lib.wait_until("the newest checkpoint is near", lambda: stat.tokens_computed - (
                int(checkpoints()[-1].name, 16) if checkpoints() else 0) <= AGAIN_MAX)
            siltd.kill()
            assert len(checkpoints()) <= 8
            kept = [int(path.name, 16) for path in checkpoints()] or [0]
            if number % 4 == 3:
                path = checkpoints()[-1]
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
                kept = kept[:-1] or [0]
            again.append(stat.tokens_computed - kept[-1])
            assert again[-1] <= AGAIN_MAX * (2 if number % 4 == 3 else 1), (kept, stat)
            start = time.monotonic()
            siltd.start()
            wire = raw.Raw(siltd.endpoint)
            back = settle(wire, "s")
            recovery.append(time.monotonic() - start)
            assert (back.memory_hash, back.tokens_computed) == (
                stat.memory_hash, stat.tokens_computed)
    print(f"{stat.tokens_computed} tokens, {len(again)} kills: {max(again)} tokens computed again "
          f"at most, all of it after {max(recovery):.2f} s at most")


if __name__ == "__main__":
    lib.main(globals())
