"""What is forgotten is gone from disk when the command returns; the stream goes on, from before the
range, and says so. Killed at any moment, nothing is half gone."""

import pathlib
import random
import subprocess
import threading
import time

import lib
import test_recall
from test_fault import LATE, PUT, Disk
from test_recall import (F16_RECORD, FACT, ask, daemon, done, feed, found, holders, segment_files,
                         text)
from test_python import silt

CHUNK = 256


def range_of(siltd, stream):
    """Tokens around the chunk that holds the fact."""
    source = found(ask(siltd, stream))[0]
    return max(0, source["from"] - CHUNK), source["to"] + CHUNK


def forget(siltd, start, end, stream="s", **more):
    return lib.silt(siltd.endpoint, "forget", stream, "--from", start, "--to", end, **more)


def test_a_range_is_gone_and_the_rest_is_not():
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        lib.silt(siltd.endpoint, "feed", "s", stdin=b"The last word is Perpetua.\n")
        start, end = range_of(siltd, "s")
        before = lib.stat(siltd.endpoint, "s")
        assert holders(siltd)
        out = forget(siltd, start, end).out.decode()
        assert not holders(siltd), holders(siltd)
        assert f"{end - start} tokens are gone" in out.replace(",", ""), out
        stat = lib.wait_until("it is read again", lambda: done(siltd, "s"), 60)
        assert stat["tokens_acked"] == before["tokens_acked"] - (end - start)
        assert stat["chunks"] == stat["tokens_acked"] // CHUNK
        assert not stat["degraded"] and not stat["rebuilding_to"]
        assert not found(ask(siltd, "s")) and not holders(siltd)
        assert holders(siltd, b"Perpetua")
        memory = stat["memory_hash"]
        siltd.stop()
        siltd.start()
        stat = lib.wait_until("the stream is back", lambda: done(siltd, "s"), 60)
        assert stat["memory_hash"] == memory
        feed(siltd, "s", b"It goes on.\n" * 200)


def pieces(data, size):
    """64 bytes out of every `size` that are like no others: numbers, neither zeros nor heads."""
    out = []
    for at in range(0, len(data), size):
        last = len(data[at:at + size].rstrip(b"\0"))
        piece = data[at + last - 128:at + last - 64]
        out.append(piece if last > size // 4 and len(set(piece)) > 24 else None)
    return out


def test_what_was_learned_of_it_is_gone():
    """Segments of the range and behind it, and checkpoints that have seen it, hold no text, but
    what was made of it."""
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        start, end = range_of(siltd, "s")
        segments = pieces(segment_files(siltd)[0].read_bytes(), F16_RECORD)
        checkpoint, = (pathlib.Path(siltd.data) / "checkpoints").glob("*/*")
        assert int(checkpoint.name, 16) > end
        seen = [piece for piece in pieces(checkpoint.read_bytes(), 65536) if piece]
        before = [piece for piece in segments[:start // CHUNK] if piece]
        behind = [piece for piece in segments[start // CHUNK:] if piece]
        assert before and seen and len(behind) > (end - start) // CHUNK
        assert all(holders(siltd, piece) for piece in (*before, behind[0], behind[-1], *seen))
        forget(siltd, start, end)
        left = [piece for piece in (*behind, *seen) if holders(siltd, piece)]
        assert not left, f"{len(left)} of {len(behind)} and {len(seen)}"
        assert all(holders(siltd, piece) for piece in before)
        lib.wait_until("it is read again", lambda: done(siltd, "s"), 60)
        assert not any(holders(siltd, piece) for piece in (*behind, *seen))


def test_nothing_comes_back_meanwhile():
    """The index is made by a thread of its own: while the disk is slow to take what the journal
    has become, it does not read what was there before."""
    model, adapter = lib.tiny()
    disk = Disk()
    with lib.Daemon(model, adapter, ("--streams-max", 2), env=disk.env) as siltd:
        feed(siltd, "s", text(300, 20))
        feed(siltd, "other", text(300, 20, seed=2).replace(b"Ottoline", b"Perpetua"))
        start, end = range_of(siltd, "s")
        disk.fail("journal", PUT, LATE)
        forget(siltd, start, end)
        lib.silt(siltd.endpoint, "rm", "other")
        disk.mend()
        assert not holders(siltd), holders(siltd)
        assert not holders(siltd, b"Perpetua"), holders(siltd, b"Perpetua")
        lib.wait_until("it is read again", lambda: done(siltd, "s"), 60)
        assert not holders(siltd) and not found(ask(siltd, "s"))


def test_it_answers_and_says_so_while_it_reads_again():
    with daemon() as siltd:
        words = text(700, 20)
        feed(siltd, "s", words)
        for _ in range(6):
            lib.silt(siltd.endpoint, "feed", "s", stdin=words.replace(FACT.encode(), b""))
        stat = lib.wait_until("all is computed", lambda: done(siltd, "s"), 120)
        start, end = range_of(siltd, "s")
        forget(siltd, start, end)
        answer = ask(siltd, "s", "--recall", "none")
        again = lib.stat(siltd.endpoint, "s")
        total = stat["tokens_acked"] - (end - start)
        assert again["tokens_acked"] == total
        # The tiny model reads fast: what is said must fit where it is.
        if answer["position"] < total:
            assert answer["rebuilding_to"] == total, answer
        if again["tokens_computed"] < total:
            assert again["rebuilding_to"] == total
            assert any(line.startswith("rebuilding ") and line.endswith(f"/{total}")
                       for line in again["degraded"]), again
        lib.wait_until("it is read again", lambda: done(siltd, "s"), 120)


def test_a_branch_keeps_what_it_has():
    with daemon() as siltd:
        feed(siltd, "s", text(300, 20))
        start, end = range_of(siltd, "s")
        lib.silt(siltd.endpoint, "fork", "s", "b")
        forget(siltd, start, end)
        lib.wait_until("it is read again", lambda: done(siltd, "s"), 60)
        assert not found(ask(siltd, "s"))
        lib.silt(siltd.endpoint, "feed", "b", stdin=b"More.\n")
        lib.wait_until("the branch is read", lambda: done(siltd, "b"), 60)
        assert found(ask(siltd, "b"))
        forget(siltd, start, end, stream="b")
        assert not holders(siltd), holders(siltd)


def test_wrong_ranges_are_refused():
    with daemon() as siltd:
        feed(siltd, "s", text(50, 20))
        tokens = lib.stat(siltd.endpoint, "s")["tokens_acked"]
        assert "which holds" in forget(siltd, 0, tokens + 1, code=1).text()
        # It left its place for that, and reads on in it.
        lib.wait_until("it is back", lambda: not lib.stat(siltd.endpoint, "s")["parked"])
        assert "--from must be less" in forget(siltd, 5, 5, code=2).text()
        unknown = lib.silt(siltd.endpoint, "forget", "no", "--from", 0, "--to", 5, code=1)
        assert "no stream is called" in unknown.text()
        assert lib.stat(siltd.endpoint, "s")["tokens_acked"] == tokens
        forget(siltd, 0, tokens)
        assert lib.stat(siltd.endpoint, "s")["tokens_acked"] == 0 and not holders(siltd)


def test_what_is_fed_meanwhile_is_kept():
    """Message after message, while the stream leaves its place again and again: to the token."""
    def work(endpoint):
        with silt.Client(endpoint) as client, client.feed("s", "p") as feeding:
            for _ in range(3000):
                feeding.tokens([40] * 10)

    with daemon() as siltd, silt.Client(siltd.endpoint) as client:
        client.open("s")
        with client.feed("s", "first") as feeding:
            feeding.tokens([41] * 600)
        feeder = threading.Thread(target=work, args=(siltd.endpoint,))
        feeder.start()
        gone = 0
        while feeder.is_alive() and gone < 20:
            time.sleep(0.25)  # siltd has told the feeder to come again after 0.2 s
            client.forget("s", 0, 1)
            gone += 1
        feeder.join()
        assert gone > 2 and client.stat("s").tokens_acked == 30_600 - gone, gone
        assert " error " not in siltd.log_text(), siltd.log_text()
        lib.wait_until("it is read again", lambda: done(siltd, "s"), 60)
        siltd.kill()
        siltd.start()
        assert lib.wait_until("it is back", lambda: done(siltd, "s"), 60)["tokens_acked"] == \
            30_600 - gone
        print(f"forgotten {gone} times meanwhile")


def test_killed_in_the_middle():
    rng = random.Random(7)
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        start, end = range_of(siltd, "s")
        tokens = lib.stat(siltd.endpoint, "s")["tokens_acked"]
        for i in range(12):
            command = [str(lib.SILT), "-c", siltd.endpoint, "forget", "s", "--from", str(start),
                       "--to", str(end)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as client:
                time.sleep(rng.uniform(0, 0.06))
                siltd.kill()
                client.kill()
            siltd.start()
            stat = lib.wait_until("the stream is back", lambda: done(siltd, "s"), 60)
            if stat["tokens_acked"] == tokens:
                assert found(ask(siltd, "s")), "it was not done, so nothing is missing"
                continue
            assert stat["tokens_acked"] == tokens - (end - start), (i, stat["tokens_acked"], tokens)
            assert not holders(siltd), holders(siltd)
            break
        else:
            forget(siltd, start, end)
        assert not holders(siltd)
        lib.wait_until("it is read again", lambda: done(siltd, "s"), 60)
        assert test_recall.segment_files(siltd)


if __name__ == "__main__":
    lib.main({name: test for name, test in globals().items() if name.startswith("test_")
              and callable(test)})
