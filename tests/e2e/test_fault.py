#!/usr/bin/env python3
"""siltd whose disk fails while it runs: it says so, goes on where it can, and loses nothing acked.

SILT_FAULTS=1000 SILT_SEED=7 tests/e2e/test_fault.py test_one_call_after_the_other: more of them,
from another seed.
"""

import contextlib
import mmap
import os
import random
import struct
import subprocess

import lib
import raw
import test_kill as killing
import texts

pb = raw.pb

FAULTS = int(os.environ.get("SILT_FAULTS", "40"))
SEED = int(os.environ.get("SILT_SEED", "1"))
PARTS = ("journal", "checkpoints", "index", "segments")
GET, PUT = 0, 1
EIO, ENOSPC, SHORT, LATE = 5, 28, -1, -2
WAYS = {EIO: "EIO", ENOSPC: "ENOSPC", SHORT: "short", LATE: "late"}


class Disk:
    """The calls of a siltd that is started with `env`, through tests/e2e/fault_io.c."""

    def __init__(self):
        library = lib.ROOT / "build/tests/fault-io.so"
        if not library.exists():
            raise lib.Skip("no build/tests/fault-io.so")
        if lib.BUILD.name != "build":
            raise lib.Skip("a sanitizer comes before all other libraries")
        self.path = lib.folder() / "faults"
        self.path.write_bytes(bytes(3 * 4 * 2 * 4))
        with open(self.path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.env = {"LD_PRELOAD": str(library), "SILT_FAULT_IO": str(self.path)}

    def set(self, table, part, way, value):
        struct.pack_into("<i", self.memory, 4 * (8 * table + 2 * PARTS.index(part) + way), value)

    def fail(self, part, way, code, at=0):
        """Every call of this kind, or only the at-th from now."""
        self.set(1, part, way, at)
        self.set(0, part, way, code)

    def mend(self):
        self.memory[:32] = bytes(32)

    def met(self, part, way):
        return struct.unpack_from("<i", self.memory, 64 + 4 * (2 * PARTS.index(part) + way))[0]


def start(disk, *args):
    model, adapter = lib.tiny()
    return lib.Daemon(model, adapter, args, env=disk.env)


@contextlib.contextmanager
def fed(disk, count):
    """A siltd whose stream "s" has read so many pieces, and its wire."""
    with start(disk) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        wire.feed_all("s", "p", pieces(0, count), end=False)
        wire.settled("s")
        yield siltd, wire


def pieces(first, count):
    return [texts.text(1500, seed=i) for i in range(first, first + count)]


def process(wire):
    return list(wire.call(stat=pb.Stat()).process.degraded)


def ask(siltd):
    done = subprocess.run([str(lib.SILT), "-c", siltd.endpoint, "ask", "s", "What is it?",
                           "--tokens", "4"], capture_output=True, timeout=120 * lib.SLOW,
                          check=False)
    assert done.returncode == 0, done.stderr


def same_memory(stat, count):
    """As of a siltd whose disk never failed."""
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        wire.feed_all("s", "p", pieces(0, count), end=False)
        clean = wire.settled("s")
    assert (stat.memory_hash, stat.tokens_acked) == (clean.memory_hash, clean.tokens_acked)


def fails_and_goes_on(part, way, code, said_by):
    """Fed, then fed and asked while all calls of a kind fail, then when none does."""
    disk = Disk()
    with fed(disk, 12) as (siltd, wire):
        ask(siltd)
        disk.fail(part, way, code)
        wire.feed_all("s", "p", pieces(12, 30), end=False)
        wire.settled("s")
        ask(siltd)
        lib.wait_until(f"{part}: {WAYS[code]} is met", lambda: disk.met(part, way))
        lib.wait_until("it says so", lambda: said_by in " ".join(
            [*process(wire), *wire.stat("s").degraded]))
        disk.mend()
        wire.feed_all("s", "p", pieces(42, 30), end=False)
        wire.settled("s")
        ask(siltd)
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        ended = killing.settle(wire, "s")
        ask(siltd)
        assert not process(wire), process(wire)
    same_memory(ended, 72)


def test_checkpoints_cannot_be_written():
    fails_and_goes_on("checkpoints", PUT, EIO, "checkpoints cannot be written")


def test_the_index_cannot_be_written():
    fails_and_goes_on("index", PUT, ENOSPC, "text index")


def test_the_index_cannot_be_read():
    disk = Disk()
    with fed(disk, 12) as (siltd, wire):
        siltd.stop()
        disk.fail("index", GET, EIO)
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        killing.settle(wire, "s")
        ask(siltd)
        lib.wait_until("it says so", lambda: "text index" in " ".join(wire.stat("s").degraded))
        disk.mend()
        wire.feed_all("s", "p", pieces(12, 2), end=False)
        ended = wire.settled("s")
        ask(siltd)
        lib.wait_until("it is indexed", lambda: not wire.stat("s").degraded)
    same_memory(ended, 14)


def test_segments_cannot_be_written():
    fails_and_goes_on("segments", PUT, EIO, "not written")


def test_the_journal_cannot_be_written():
    for code in (EIO, ENOSPC):
        disk = Disk()
        with fed(disk, 3) as (siltd, wire):
            disk.fail("journal", PUT, code)
            for _ in range(3):
                try:
                    wire.feed("s", "p", 4, raw.text_item(pieces(3, 1)[0]))
                    raise AssertionError("acked what cannot be stored")
                except raw.Refused as error:
                    assert error.code == pb.Error.NO_SPACE, error
            assert any("nothing is acked" in line for line in process(wire))
            ask(siltd)  # from its memory, which needs no journal
            disk.mend()
            wire.feed_all("s", "p", pieces(3, 3), end=False)
            assert not process(wire), process(wire)
            siltd.kill()
            siltd.start()
            ended = killing.settle(raw.Raw(siltd.endpoint), "s")
        same_memory(ended, 6)


def test_a_stop_says_what_was_kept():
    """Question and answer are on their way to the disk when siltd is told to stop."""
    disk = Disk()
    with fed(disk, 3) as (siltd, wire):
        before, met = wire.stat("s").tokens_acked, disk.met("journal", PUT)
        disk.fail("journal", PUT, LATE)
        wire.send(ask=pb.Ask(stream="s", question="What is it?", tokens_max=4, keep=True))
        lib.wait_until("it is being kept", lambda: disk.met("journal", PUT) > met, step=0.001)
        siltd.process.terminate()
        while (said := wire.reply().WhichOneof("body")) == "token":
            pass
        disk.mend()
        lib.ends(siltd.process)
        siltd.start()
        kept = raw.Raw(siltd.endpoint).stat("s").tokens_acked > before
        assert (said == "done") == kept, (said, kept)
        assert kept, "it was to be"


def test_what_could_not_be_made_takes_no_place():
    """Whatever was sent for it before the answer came."""
    disk = Disk()
    with start(disk, "--streams-max", "1") as siltd:
        wire = raw.Raw(siltd.endpoint)
        disk.fail("journal", PUT, EIO)
        wire.send(open=pb.Open(stream="new"))
        wire.send(attach=pb.Attach(stream="new", producer="p"))
        # The second comes before the first has failed, while its place is given back, or later.
        refusals = (pb.Error.NO_SPACE, pb.Error.BUSY, pb.Error.NOT_FOUND)
        replies = [wire.reply() for _ in range(2)]
        assert replies[0].error.code == pb.Error.NO_SPACE, replies
        assert replies[1].error.code in refusals, replies
        disk.mend()
        lib.wait_until("the place is free", lambda: opens(wire, "other"), 20)
        lib.silt(siltd.endpoint, "stat", "new", code=1)


def opens(wire, stream):
    try:
        return wire.open(stream)
    except raw.Refused as refused:
        assert refused.code == pb.Error.BUSY, refused
        return None


def test_one_call_after_the_other():
    """One call of some part fails in some way while it feeds, answers, branches and parks, over and
    over, and now and then it is killed behind it."""
    rng = random.Random(SEED)
    feeders = [killing.Feeder(stream) for stream in killing.STREAMS]
    disk, met, kills, log = Disk(), dict.fromkeys(PARTS, 0), 0, killing.Log()
    with start(disk, "--streams-max", killing.LIVE, "--lag-tokens-max", 8192) as siltd:
        wire = raw.Raw(siltd.endpoint)
        for feeder in feeders:
            raw.patient(wire.call, open=pb.Open(stream=feeder.stream))
        for number in range(1, FAULTS + 1):
            part, way = rng.choice(PARTS), rng.randrange(2)
            before = disk.met(part, way)
            disk.fail(part, way, rng.choice(list(WAYS)), 1 + int(rng.expovariate(0.05)))
            killing.work(wire, feeders, rng, rng.uniform(0.05, 0.4))
            assert siltd.process.poll() is None, siltd.log_text()
            disk.mend()
            met[part] += disk.met(part, way) - before
            if rng.randrange(4) == 0 or number == FAULTS:
                wire = killing.kill(siltd, wire, feeders, rng, number, log)[0]
                kills += 1
        ended = [killing.settle(wire, feeder.stream) for feeder in feeders]
    killing.expect_never_killed(ended, feeders)
    print(f"seed {SEED}: {FAULTS} faults, of which came to pass "
          f"{', '.join(f'{part} {count}' for part, count in met.items())}; {kills} kills; "
          f"{len(feeders)} streams, {sum(stat.tokens_acked for stat in ended)} tokens acked, lost "
          f"0, memories that differ from a run without faults 0")


if __name__ == "__main__":
    lib.main(globals())
