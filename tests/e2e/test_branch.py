#!/usr/bin/env python3
"""Branches of a stream, and questions about its past: both see exactly what was there."""

import contextlib
import json
import random
import time

import lib
import raw
import texts
from test_recall import done

pb = raw.pb

QUESTION = {"question": "What is it?", "tokens_max": 12, "recall": pb.Ask.NONE,
            "sampling": pb.Sampling(temperature=0)}


def feed(wire, stream, producer, first, pieces):
    for i, piece in enumerate(pieces):
        raw.patient(wire.feed, stream, producer, first + i, piece)


def memory(wire, stream):
    """Hashes of a stream that was woken and has computed everything; its counts."""
    raw.patient(wire.call, attach=pb.Attach(stream=stream, producer="p"))
    stat = wire.settled(stream)
    return (stat.memory_hash, stat.hash_chunk, stat.tokens_acked, stat.bytes_text)


def answer(wire, stream, **more):
    return raw.patient(wire.ask, stream, **{**QUESTION, **more})


def start(*args):
    model, adapter = lib.tiny()
    return lib.Daemon(model, adapter, args)


def clean(pieces):
    """Memory and answer of a stream that was never anything else."""
    with start() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("clean")
        feed(wire, "clean", "p", 1, pieces)
        got = memory(wire, "clean")
        return got, answer(wire, "clean")[0]


def test_branches_go_their_own_way():
    common = texts.cuts(texts.text(12_000, seed=1), seed=1)
    left = texts.cuts(texts.text(5_000, seed=2), seed=2)
    right = texts.cuts(texts.text(7_000, seed=3), seed=3)
    n = len(common)
    with start("--streams-max", 2) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("a")
        feed(wire, "a", "p", 1, common)
        told = wire.call(fork=pb.Fork(stream="a", branch="b"))
        assert told.tokens == wire.stat("a").tokens_acked and told.branch == "b"
        raw.refused(pb.Error.EXISTS, "exists", wire.call, fork=pb.Fork(stream="a", branch="b"))
        raw.refused(pb.Error.NOT_FOUND, "no stream", wire.call,
                    fork=pb.Fork(stream="nobody", branch="c"))
        raw.refused(pb.Error.INVALID, "name", wire.call, fork=pb.Fork(stream="a", branch=".c"))
        # The branch knows the producer: what was sent to the parent is a repeat.
        state = raw.patient(wire.call, attach=pb.Attach(stream="b", producer="p"))
        assert state.next_sequence == n + 1
        feed(wire, "b", "p", n + 1, right)
        feed(wire, "a", "p", n + 1, left)
        # A branch of a branch, with something of its own.
        wire.call(fork=pb.Fork(stream="b", branch="c"))
        feed(wire, "c", "q", 1, left)
        ended = {name: memory(wire, name) for name in "abc"}
        said = {name: answer(wire, name)[0] for name in "ab"}
        # Killed, and the middle one removed: the others do not notice.
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        assert {name: memory(wire, name) for name in "abc"} == ended
        raw.patient(wire.call, remove=pb.Remove(stream="b"))
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        assert {name: memory(wire, name) for name in "ac"} == {k: ended[k] for k in "ac"}
        raw.patient(wire.call, remove=pb.Remove(stream="a"))
        assert memory(wire, "c") == ended["c"]
        # Without its checkpoints too: everything is in the journal.
        siltd.stop()
        for path in (siltd.data / "checkpoints").glob("*/*"):
            path.unlink()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        assert memory(wire, "c") == ended["c"]
    assert clean(common + left) == (ended["a"], said["a"])
    assert clean(common + right) == (ended["b"], said["b"])


def on_disk(siltd):
    """Bytes under --data, those of several names once, and how many files have several."""
    files = {}
    for path in siltd.data.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                stat = path.stat()
                files[stat.st_ino] = (stat.st_blocks * 512, stat.st_nlink > 1)
    return sum(size for size, _ in files.values()), sum(shared for _, shared in files.values())


def at_rest(siltd):
    """on_disk once nothing is added any more: segments are written, and files for them made, after
    the text is computed and indexed."""
    seen = [None]

    def same():
        last, seen[0] = seen[0], on_disk(siltd)
        time.sleep(1)
        return seen[0] == last

    lib.wait_until("nothing is written any more", same, 60)
    return seen[0]


def test_what_is_common_is_there_once():
    text = texts.text(60_000, seed=8)
    with start("--streams-max", 2) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("a")
        wire.feed_all("a", "p", [text])
        wire.settled("a")
        lib.wait_until("its text is indexed", lambda: done(siltd, "a"), 60)
        before = at_rest(siltd)
        for i in range(5):
            wire.call(fork=pb.Fork(stream="a", branch=f"b{i}"))
        after = on_disk(siltd)
        assert after[1] > before[1] == 0, "its checkpoints are its branches' too"
        assert after[0] - before[0] < 256 << 10, (before, after)
        ended = memory(wire, "a")
        for i in range(5):
            assert memory(wire, f"b{i}") == ended
        print(f"{ended[2]} tokens: {before[0]} bytes, with 5 branches {after[0]}")
        siltd.stop()


def test_what_nobody_has_any_more_is_gone():
    with start() as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("a")
        feed(wire, "a", "p", 1, [b"the common part is MARMOT here. "])
        for name in "bc":
            wire.call(fork=pb.Fork(stream="a", branch=name))
        feed(wire, "a", "p", 2, [b"the parent says WOMBAT. "])
        feed(wire, "b", "p", 2, [b"the branch says NUMBAT. "])

        def on_disk(word):
            return any(word in path.read_bytes() for path in siltd.data.rglob("*")
                       if path.is_file())

        assert on_disk(b"MARMOT") and on_disk(b"WOMBAT") and on_disk(b"NUMBAT")
        raw.patient(wire.call, remove=pb.Remove(stream="a"))
        assert on_disk(b"MARMOT") and not on_disk(b"WOMBAT") and on_disk(b"NUMBAT")
        raw.patient(wire.call, remove=pb.Remove(stream="b"))
        assert on_disk(b"MARMOT") and not on_disk(b"NUMBAT")
        raw.patient(wire.call, remove=pb.Remove(stream="c"))
        assert not on_disk(b"MARMOT")


def test_many_branches():
    """A bush of branches, fed, killed and pruned at random, against what each must hold."""
    rng = random.Random(5)
    holds, sent = {"s0": []}, {"s0": 0}
    with start("--streams-max", 3) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s0")
        for i in range(1, 60):
            name = rng.choice(sorted(holds))
            what = rng.randrange(10)
            if what < 5:
                piece = texts.text(rng.randrange(1, 900), seed=i)
                sent[name] += 1
                feed(wire, name, "p", sent[name], [piece])
                holds[name] = holds[name] + [piece]
            elif what < 8 and len(holds) < 8:
                raw.patient(wire.call, fork=pb.Fork(stream=name, branch=f"s{i}"))
                holds[f"s{i}"], sent[f"s{i}"] = holds[name], sent[name]
            elif what == 8 and len(holds) > 3:
                raw.patient(wire.call, remove=pb.Remove(stream=name))
                del holds[name]
            elif what == 9:
                siltd.kill()
                siltd.start()
                wire = raw.Raw(siltd.endpoint)
        got = {name: memory(wire, name) for name in holds}
        for name, pieces in sorted(holds.items()):
            raw.patient(wire.open, f"clean-{name}")
            feed(wire, f"clean-{name}", "p", 1, pieces)
            assert memory(wire, f"clean-{name}") == got[name], name
            raw.patient(wire.call, remove=pb.Remove(stream=f"clean-{name}"))


def test_the_past_is_as_it_was():
    pieces = texts.cuts(texts.text(24_000, seed=4), seed=4)
    with start("--streams-max", 2) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("a")
        then = {}
        for i, piece in enumerate(pieces):
            feed(wire, "a", "p", i + 1, [piece])
            if i % (len(pieces) // 4) == 3:
                stat = wire.settled("a")
                text, done = answer(wire, "a")
                assert done.position == stat.tokens_acked
                then[done.position] = text
        end = wire.settled("a").tokens_acked
        for position, text in then.items():
            got, done = answer(wire, "a", at_position=position, at_given=True)
            assert (got, done.position, done.acked) == (text, position, end)
        # Between two messages, in the middle of a block; twice the same; and the present.
        first = answer(wire, "a", at_position=end // 2 + 7, at_given=True)
        again = answer(wire, "a", at_position=end // 2 + 7, at_given=True)
        assert first[0] == again[0] and first[1].position == end // 2 + 7
        assert answer(wire, "a", at_position=0, at_given=True)[1].position == 0
        assert answer(wire, "a", at_position=end, at_given=True)[0] == answer(wire, "a")[0]
        raw.refused(pb.Error.INVALID, f"0 to {end} are", wire.ask, "a", at_position=end + 1,
                    at_given=True, **QUESTION)
        raw.refused(pb.Error.INVALID, "kept", wire.ask, "a", at_position=5, at_given=True,
                    keep=True, **QUESTION)
        # Nothing of it stays: one stream, its memory as before, both places free.
        assert [s.stream for s in wire.call(list=pb.List()).streams] == ["a"]
        before = memory(wire, "a")
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        assert memory(wire, "a") == before
        # From a parked stream, while others work; and with the command.
        raw.patient(wire.open, "b")
        raw.patient(wire.open, "c")
        some = sorted(then)[1]
        assert answer(wire, "a", at_position=some, at_given=True)[0] == then[some]
        got = json.loads(lib.silt(siltd.endpoint, "ask", "a", QUESTION["question"], "--at", some,
                                  "--recall", "none", "--temperature", "0", "--json").out)
        assert got["position"] == some and got["acked"] == end
        # Removed under a question of its past: the question ends, the stream is gone.
        raw.patient(wire.call, attach=pb.Attach(stream="a", producer="p"))
        asked = wire.send(ask=pb.Ask(stream="a", at_position=end - 1, at_given=True,
                                     question="?", tokens_max=500))
        raw.patient(wire.call, remove=pb.Remove(stream="a"))
        siltd.stop()
        assert asked


def test_ingest_goes_on_beside_the_past():
    text = texts.text(60_000, seed=6)
    with start("--streams-max", 3) as siltd:
        wire, other = raw.Raw(siltd.endpoint), raw.Raw(siltd.endpoint)
        wire.open("a")
        wire.feed_all("a", "p", [text[i:i + 4000] for i in range(0, len(text), 4000)])
        end = wire.settled("a").tokens_acked
        siltd.stop()
        for path in (siltd.data / "checkpoints").glob("*/*"):
            path.unlink()  # so that all of it is computed again
        siltd.start()
        wire, other = raw.Raw(siltd.endpoint), raw.Raw(siltd.endpoint)
        wire.settled("a")
        other.send(ask=pb.Ask(stream="a", at_position=end - 100, at_given=True, **QUESTION))
        raw.patient(wire.open, "b")
        wire.feed_all("b", "p", [text[:8000]])
        assert wire.settled("b").tokens_acked > 0
        while True:
            reply = other.reply(120)
            assert reply is not None, "no answer"
            if reply.WhichOneof("body") == "done":
                assert reply.done.position == end - 100
                break
            assert reply.WhichOneof("body") == "token", reply


def test_fork_command():
    with start() as siltd:
        lib.silt(siltd.endpoint, "feed", "a", stdin=b"one two three four\n" * 20)
        got = json.loads(lib.silt(siltd.endpoint, "fork", "a", "b", "--json").out)
        assert got["tokens"] == lib.stat(siltd.endpoint, "a")["tokens_acked"] > 0
        assert b"exists" in lib.silt(siltd.endpoint, "fork", "a", "b", code=1).err
        lib.silt(siltd.endpoint, "fork", "a", code=2)
        lib.silt(siltd.endpoint, "feed", "b", stdin=b"five\n")
        assert lib.silt(siltd.endpoint, "ls", "-q").out.split() == [b"a", b"b"]


if __name__ == "__main__":
    lib.main(globals())
