"""--when-full: the far past grows coarser, then ends; then acks stop, or the oldest text is trimmed
away, each said; the quota holds over restarts too."""

import contextlib
import pathlib
import re
import subprocess
import time

import lib
import raw
import texts
from test_recall import ask, daemon, done, feed, found, text

QUOTA = 12 << 20
FACT = b"The access code for the Kestrel vault is 48213 and the guard is named Ottoline.\n"


def used(siltd):
    return sum(p.stat().st_blocks * 512 for p in pathlib.Path(siltd.data).rglob("*") if p.is_file())


def parts(siltd):
    """What takes how much."""
    return sorted((p.stat().st_blocks * 512, str(p.relative_to(siltd.data)))
                  for p in pathlib.Path(siltd.data).rglob("*") if p.is_file())


def fill(siltd, rounds, lines=1500):
    """Text without the fact, until the disk is full."""
    for i in range(rounds):
        body = text(lines, 0, seed=i + 10)
        lib.silt(siltd.endpoint, "feed", "s", "--patience", "60", stdin=body.replace(FACT, b""))
        lib.wait_until("all is computed and indexed", lambda: done(siltd, "s"), 60)
        assert used(siltd) <= QUOTA, (i, used(siltd), parts(siltd))
        if lib.stat(siltd.endpoint, "s")["first_position"]:
            return i


def test_the_oldest_text_is_trimmed():
    with daemon("--disk", QUOTA, "--when-full", "trim") as siltd:
        feed(siltd, "s", text(700, 20))
        assert found(ask(siltd, "s"))
        fill(siltd, 60)
        stat = lib.stat(siltd.endpoint, "s")
        first = stat["first_position"]
        log = siltd.log_text()
        assert first > 5000, stat
        shown = lib.silt(siltd.endpoint, "stat", "s").out
        for words in (f"the text before token {first:,} is gone", "averaged with a neighbour",
                      f"{stat['segments_dropped']:,} dropped since"):
            assert words.encode() in shown, shown
        assert f"before token {first} was trimmed away" in log
        said = [log.index(words) for words in ("averaged with their neighbours", "trimmed away")]
        assert said == sorted(said), "coarser first, then trimmed"
        assert not found(ask(siltd, "s")), "its text is gone"
        assert ask(siltd, "s", question="Which river garden?")["sources"]
        for path in (pathlib.Path(siltd.data)).glob("journal.db"):
            assert b"Ottoline" not in path.read_bytes()
        early = lib.silt(siltd.endpoint, "ask", "s", "What?", "--at", 100, code=None)
        assert early.code and "was trimmed" in early.text(), early.text()
        lib.silt(siltd.endpoint, "fork", "s", "branch")
        assert lib.stat(siltd.endpoint, "branch")["first_position"] == first
        early = lib.silt(siltd.endpoint, "ask", "branch", "What?", "--at", 100, code=None)
        assert early.code and "was trimmed" in early.text(), early.text()
        lib.silt(siltd.endpoint, "rm", "branch")
        memory = stat["memory_hash"]
        siltd.kill()
        siltd.start()
        stat = lib.wait_until("the stream is back", lambda: done(siltd, "s"), 60)
        assert stat["memory_hash"] == memory and stat["first_position"] == first
        assert used(siltd) <= QUOTA, (used(siltd), parts(siltd))
        fill(siltd, 2)
        lost = sorted((pathlib.Path(siltd.data) / "checkpoints").glob("*/*"))
        siltd.stop()
        for path in lost:
            path.unlink(missing_ok=True)
        for path in (pathlib.Path(siltd.data) / "checkpoints").glob("*/*"):
            path.unlink()
        siltd.start()  # nothing to begin from: it is read again with a gap where the text was
        again = lib.wait_until("the stream is back", lambda: done(siltd, "s"), 120)
        assert again["tokens_acked"] >= stat["tokens_acked"]
        assert "its memory holds nothing of that text" in siltd.log_text()


def test_a_checkpoint_has_its_room_before_it_comes():
    """Near a quota that little more than two checkpoints fit into, segments have gone by then. On a
    busy machine all that is acked may be computed before they have: then it comes at the end."""
    quota = 3 << 20
    with daemon("--disk", quota) as siltd:
        def settled():
            assert used(siltd) <= quota, (used(siltd), parts(siltd))
            stat = lib.stat(siltd.endpoint, "s")
            return stat if (stat["lag_tokens"] < 32 and
                            stat["indexed_to"] + 256 > stat["tokens_acked"]) else None

        for i in range(40):
            sent = lib.silt(siltd.endpoint, "feed", "s", "--patience", "2",
                            stdin=text(300, 0, seed=i), code=None)
            assert used(siltd) <= quota, (i, used(siltd), parts(siltd))
            if sent.code:
                break
        stat = lib.wait_until("all is computed and indexed", settled, 120)
        time.sleep(2)  # room is measured some times
        siltd.stop()
        assert used(siltd) <= quota, (used(siltd), parts(siltd))
        checkpoints = list((pathlib.Path(siltd.data) / "checkpoints").glob("*/*"))
        assert len(checkpoints) >= 2 and stat["segments_merged"], (i, stat, parts(siltd))


def test_streams_change_places_under_a_quota():
    """A checkpoint that waits for its room comes once there is some, also where nothing else does:
    all else waits for that stream to leave."""
    with lib.Daemon(*lib.tiny(), ("--disk", "64M", "--streams-max", "1")) as siltd:
        wire = raw.Raw(siltd.endpoint)
        for i in range(18):
            name = f"s{i % 3}"
            raw.patient(wire.open, name)
            raw.patient(wire.feed, name, "p", 1 + i // 3, texts.text(1500, seed=i))
            wire.settled(name)
        siltd.stop()


def test_acks_stop_by_default():
    with daemon("--disk", QUOTA) as siltd:
        feed(siltd, "s", text(700, 20))
        for i in range(60):
            sent = lib.silt(siltd.endpoint, "feed", "s", "--patience", "1",
                            stdin=text(1500, 0, seed=i + 10), code=None)
            assert used(siltd) <= QUOTA, (i, used(siltd), parts(siltd))
            if sent.code:
                break
        assert sent.code == 1 and "--disk" in sent.text(), sent.text()
        assert "nothing is acked" in siltd.log_text()
        assert lib.stat(siltd.endpoint, "s")["first_position"] == 0
        assert found(ask(siltd, "s"))


@contextlib.contextmanager
def small_disk():
    """A folder on a disk of 12 MB, 2 of which are held by a file."""
    at = lib.folder()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "silt-full", at],
                             capture_output=True, check=False)
    if mounted.returncode:
        raise lib.Skip("no file system can be mounted here")
    try:
        (at / "filler").write_bytes(bytes(2 << 20))
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=False)


def feed_until_full(siltd, at):
    """Returns the bytes of stream s that are acked; not one is free then."""
    (siltd.home / "text").write_bytes(text(20_000, 0))
    full = lib.silt(siltd.endpoint, "feed", "s", siltd.home / "text", code=1)
    acked = re.search(rb"is acked up to byte (\d+)", full.err)
    assert acked, full.err
    take_the_rest(at)
    return int(acked[1])


def take_the_rest(at):
    with contextlib.suppress(OSError), open(at / "filler", "ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_starts_on_a_disk_without_a_byte():
    """And what half a write left in the journal's log there is not missed where there is room."""
    for stop in (lib.Daemon.kill, lib.Daemon.stop):
        with small_disk() as at, daemon(data=at / "data") as siltd:
            acked = feed_until_full(siltd, at)
            stop(siltd)
            take_the_rest(at)
            siltd.start()
            assert lib.stat(siltd.endpoint, "s")["bytes_text"] == acked
            siltd.stop()
            (at / "filler").unlink()
            siltd.start()
            assert lib.stat(siltd.endpoint, "s")["bytes_text"] == acked
            lib.silt(siltd.endpoint, "feed", "s", stdin=b"there is room again\n")


def test_removes_on_a_disk_without_a_byte():
    """To make room none is needed: the small stream, the one that filled it, a part of it."""
    for what in (["rm", "small"], ["rm", "s"], ["forget", "s", "--from", "100", "--to", "9000"],
                 ["forget", "small", "--from", "10", "--to", "2000"]):
        with small_disk() as at, daemon(data=at / "data") as siltd:
            lib.silt(siltd.endpoint, "feed", "small", stdin=text(200, 0))
            feed_until_full(siltd, at)
            take_the_rest(at)
            lib.silt(siltd.endpoint, *what)
            names = lib.silt(siltd.endpoint, "ls", "-q").out.decode().split()
            assert (what[1] in names) == (what[0] == "forget"), (what, names)


if __name__ == "__main__":
    lib.main({name: test for name, test in globals().items() if name.startswith("test_")
              and callable(test)})
