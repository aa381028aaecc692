"""The silt command and its library against a siltd that fails on purpose: what arrives is what was
fed, once, whatever happens between."""

import json
import os
import pty
import random
import signal
import subprocess
import termios
import threading
import time

import lib
from mock import Cutter, Mock, pb


def some_text(bytes_count, seed=1):
    random.seed(seed)
    words = ["alpha", "beta", "gamma", "naïve", "δέλτα", "42", "\n"]
    text = " ".join(random.choice(words) for _ in range(bytes_count // 5)).encode()
    return text[:bytes_count]


def file_of(home, name, text):
    path = home / name
    path.write_bytes(text)
    return path


def test_feed_file_goes_on():
    mock = Mock()
    text = some_text(300_000)
    path = file_of(mock.home, "a", text[:200_000])
    lib.silt(mock.endpoint, "feed", "s", path)
    assert mock.text("s") == text[:200_000]
    assert mock.marks[0][1] == pb.Mark.END_OF_INPUT and len(mock.marks) == 1
    again = lib.silt(mock.endpoint, "feed", "s", path)
    assert b"nothing new" in again.err and mock.text("s") == text[:200_000]
    with open(path, "ab") as file:
        file.write(text[200_000:])
    more = lib.silt(mock.endpoint, "feed", "s", path)
    assert b"goes on after byte 200000" in more.err and mock.text("s") == text
    assert len(mock.streams["s"][1]) == 1


def test_feed_short_file_that_grows_keeps_its_name():
    mock = Mock()
    path, text = mock.home / "a", some_text(5000)
    for size in (3, 10, 40, 100, 400, 5000):
        path.write_bytes(b"")  # same inode
        path.write_bytes(text[:size])
        lib.silt(mock.endpoint, "feed", "s", path)
    assert mock.text("s") == text and len(mock.streams["s"][1]) == 1


def test_feed_changed_file_is_new():
    mock = Mock()
    path = file_of(mock.home, "a", b"one two three four five\n" * 100)
    lib.silt(mock.endpoint, "feed", "s", path)
    before = mock.text("s")
    path.write_bytes(b"one two three four five\n" * 50)
    shorter = lib.silt(mock.endpoint, "feed", "s", path)
    assert b"shorter" in shorter.err and mock.text("s") == before + before[:1200]
    path.write_bytes(b"other first bytes\n" * 500)
    lib.silt(mock.endpoint, "feed", "s", path)
    assert mock.text("s").endswith(b"other first bytes\n" * 500)
    assert len(mock.streams["s"][1]) == 3


def test_feed_stdin_as_it_comes():
    mock = Mock()
    feed = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", stdin=subprocess.PIPE)
    feed.stdin.write(b"half a li")
    feed.stdin.flush()
    lib.wait_until("first bytes", lambda: "s" in mock.streams and mock.text("s") == b"half a li")
    feed.stdin.write(b"ne\n")
    feed.stdin.close()
    assert lib.ends(feed) == 0 and mock.text("s") == b"half a line\n" and len(mock.marks) == 1


def test_feed_turn():
    mock = Mock()
    lib.silt(mock.endpoint, "feed", "s", "--turn", "system", stdin=b"Be brief.\n")
    for nothing in (b"", b"\n"):
        said = lib.silt(mock.endpoint, "feed", "s", "--turn", "user", stdin=nothing, code=1)
        assert "no turn to add" in said.text()
    assert mock.turns == [("system", b"Be brief.")] and not mock.marks


def test_feed_turn_from_a_pipe_that_does_not_block():
    """As some programs leave theirs to whom they start."""
    mock = Mock()
    source, sink = os.pipe()
    os.set_blocking(source, False)
    feed = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", "--turn", "user", stdin=source)
    time.sleep(0.5)
    os.write(sink, b"Be brief.\n")
    os.close(sink)
    os.close(source)
    assert lib.ends(feed) == 0 and mock.turns == [("user", b"Be brief.")], mock.turns


def test_feed_several_files_in_order():
    mock = Mock()
    paths = [file_of(mock.home, name, some_text(70_000, seed)) for seed, name in enumerate("abc")]
    lib.silt(mock.endpoint, "feed", "s", *paths)
    assert mock.text("s") == b"".join(p.read_bytes() for p in paths) and len(mock.marks) == 3


def resume(when):
    mock = Mock()
    text = some_text(2_000_000)
    path = file_of(mock.home, "a", text)
    mock.die_at = (7, when)
    feed = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", path, stderr=subprocess.PIPE)
    lib.wait_until("siltd dies", lambda: not mock.alive)
    said = lib.Listener(feed.stderr)
    said.wait(b"went away")
    mock.start()
    assert b"is back" in said.all() and lib.ends(feed) == 0, said.said
    assert mock.text("s") == text


def test_feed_resumes_what_was_lost():
    resume("before")


def test_feed_repeats_nothing_that_was_stored():
    resume("after")


def test_feed_says_when_acked_data_is_gone():
    mock = Mock()
    path = file_of(mock.home, "a", some_text(2_000_000))
    mock.die_at = (7, "after")
    feed = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", path, stderr=subprocess.PIPE)
    lib.wait_until("siltd dies", lambda: not mock.alive)
    mock.forget()
    mock.start()
    said = feed.stderr.read()
    assert lib.ends(feed) == 1 and b"older than the acks" in said, said


def test_feed_gives_up_in_time():
    mock = Mock()
    path = file_of(mock.home, "a", some_text(2_000_000))
    mock.die_at = (7, "after")
    start = time.monotonic()
    gone = lib.silt(mock.endpoint, "feed", "s", path, "--patience", 1, code=3)
    assert b"has not come back" in gone.err and time.monotonic() - start < 10 * lib.SLOW


def test_who_cuts_every_connection_has_pauses():
    """As many as where nobody listens: they had been some thousand a second."""
    cutter = Cutter()
    lib.silt(cutter.endpoint, "ls", code=3)
    assert 2 <= cutter.taken < 20, cutter.taken


def test_feed_is_told_to_wait():
    mock = Mock()
    mock.busy = 3
    text = some_text(500_000)
    lib.silt(mock.endpoint, "feed", "s", file_of(mock.home, "a", text))
    assert mock.text("s") == text and mock.busy == 0


def test_feed_obeys_credit():
    mock = Mock(credit=1000)
    text = some_text(50_000)
    lib.silt(mock.endpoint, "feed", "s", file_of(mock.home, "a", text))
    assert mock.text("s") == text


def test_feed_waits_without_credit():
    mock = Mock(credit=4096)
    text = some_text(100_000)
    path = file_of(mock.home, "a", text)
    mock.credit = 0
    feed = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", path)
    time.sleep(1)
    assert feed.poll() is None and mock.text("s") == b""
    mock.dry_at = 20_000
    mock.credit = 4096
    lib.wait_until("dry again", lambda: mock.credit == 0)
    time.sleep(0.5)
    assert len(mock.text("s")) <= 20_000 + 4096 and feed.poll() is None
    mock.credit = 60_000
    assert lib.ends(feed, 30) == 0 and mock.text("s") == text


def test_feed_stops_cleanly():
    mock = Mock(credit=1)
    path = file_of(mock.home, "a", some_text(1_000_000))
    feed = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", path, stderr=subprocess.PIPE)
    lib.wait_until("some bytes", lambda: "s" in mock.streams and len(mock.text("s")) > 5)
    feed.send_signal(signal.SIGINT)
    said = feed.stderr.read().decode()
    assert lib.ends(feed) == 130
    acked = int(said.split("up to byte ")[1].split(";")[0])
    assert acked == len(mock.text("s")) and mock.text("s") == path.read_bytes()[:acked], said


class Follow:
    def __init__(self, mock, *paths):
        self.process = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", "--follow", *paths,
                                 stderr=subprocess.PIPE)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        said = self.process.stderr.read().decode()
        assert lib.ends(self.process) == 130, said
        return said


def append(path, text):
    with open(path, "ab") as file:
        file.write(text)


def has(mock, text):
    return lambda: "s" in mock.streams and mock.text("s") == text


def test_follow_rotation():
    mock = Mock()
    path = mock.home / "log"
    follow = Follow(mock, path)
    time.sleep(0.3)
    append(path, b"first line\n")
    lib.wait_until("first", has(mock, b"first line\n"))
    append(path, b"second ")
    lib.wait_until("as it comes", has(mock, b"first line\nsecond "))
    os.rename(path, str(path) + ".1")
    append(str(path) + ".1", b"line\n")  # the writer has not noticed yet
    append(path, b"third line\n")
    lib.wait_until("rotated", has(mock, b"first line\nsecond line\nthird line\n"))
    said = follow.stop()
    assert "rotated" in said and not mock.marks
    append(path, b"fourth line\n")
    follow = Follow(mock, path)
    lib.wait_until("goes on", lambda: mock.text("s").endswith(b"third line\nfourth line\n"))
    follow.stop()
    assert mock.text("s").count(b"third") == 1


def test_follow_goes_on_in_what_was_rotated_away():
    """What was written between the feed's end and the rotation is not left behind."""
    mock = Mock()
    path = mock.home / "log"
    path.write_bytes(b"one\n")
    follow = Follow(mock, path)
    lib.wait_until("first", has(mock, b"one\n"))
    follow.stop()
    append(path, b"two\n")
    os.rename(path, f"{path}.1")
    path.write_bytes(b"three\n")
    os.rename(f"{path}.1", path.with_name(time.strftime("log-%Y%m%d")))  # twice, by number and day
    os.rename(path, f"{path}.1")
    path.write_bytes(b"four\n")
    (mock.home / "log.3").write_bytes(b"of before anybody read this name\n")
    os.utime(mock.home / "log.3", (1e9, 1e9))
    (mock.home / "log.old").write_bytes(b"of another making\n")
    (mock.home / "log.4.gz").write_bytes(b"\x1f\x8b packed")
    (mock.home / "log-book").write_bytes(b"something else\n")
    follow = Follow(mock, path)
    lib.wait_until("goes on", has(mock, b"one\ntwo\nthree\nfour\n"))
    said = follow.stop()
    assert "meanwhile: the old file goes on at byte 4" in said and "packed" not in said, said
    follow = Follow(mock, path)
    append(path, b"five\n")
    lib.wait_until("once", has(mock, b"one\ntwo\nthree\nfour\nfive\n"))
    assert "meanwhile" not in follow.stop()


def test_follow_copy_truncate():
    mock = Mock()
    path = file_of(mock.home, "log", b"2026 one\n2026 two\n")
    follow = Follow(mock, path)
    lib.wait_until("first", has(mock, b"2026 one\n2026 two\n"))
    with open(path, "r+b") as file:
        file.truncate(0)
    lib.wait_until("seen", lambda: True)
    append(path, b"2026 three\n")
    lib.wait_until("shorter", has(mock, b"2026 one\n2026 two\n2026 three\n"))
    # And emptied and grown longer than it was, between two looks.
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(b"another start\n" * 10)
    lib.wait_until("longer", has(mock, b"2026 one\n2026 two\n2026 three\n" +
                                 b"another start\n" * 10))
    assert "cut short" in follow.stop()


def test_follow_several_by_lines():
    mock = Mock()
    paths = [mock.home / name for name in ("a", "b")]
    follow = Follow(mock, *paths)
    for i in range(20):
        for path in paths:
            append(path, f"{path.name} line ".encode())
        time.sleep(0.02)
        for path in paths:
            append(path, f"{i}\n".encode())
    lib.wait_until("all lines", lambda: mock.text("s").count(b"\n") == 40)
    append(paths[0], b"unfinished")
    time.sleep(0.5)
    follow.stop()
    lines = mock.text("s").decode().splitlines()
    assert len(lines) == 40
    for name in "ab":
        assert [l for l in lines if l[0] == name] == [f"{name} line {i}" for i in range(20)]


def test_follow_survives_siltd():
    mock = Mock()
    path = file_of(mock.home, "log", b"one\n")
    follow = Follow(mock, path)
    lib.wait_until("one", has(mock, b"one\n"))
    mock.kill()
    append(path, b"two\n")
    time.sleep(0.6)
    append(path, b"three\n")
    mock.start()
    lib.wait_until("back", has(mock, b"one\ntwo\nthree\n"))
    follow.stop()


def test_full_disk():
    mock = Mock()
    path = file_of(mock.home, "log", b"one\n")
    follow = Follow(mock, path)
    lib.wait_until("one", has(mock, b"one\n"))
    mock.full = True
    refused = lib.silt(mock.endpoint, "feed", "s", "--patience", 9, stdin=b"x", code=1)
    assert b"the disk is full" in refused.err
    append(path, b"two\n")
    before = mock.feeds
    lib.wait_until("it was told so more than once", lambda: mock.feeds > before + 1)
    assert mock.text("s") == b"one\n" and follow.process.poll() is None
    mock.full = False
    lib.wait_until("two", has(mock, b"one\ntwo\n"))
    assert "waiting: the disk is full" in follow.stop()


def test_feed_that_fails_says_how_far():
    mock = Mock(credit=2000)
    path = file_of(mock.home, "log", some_text(3_000_000))
    feeding = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", "--patience", 1, path,
                        stderr=subprocess.PIPE)
    lib.wait_until("some of it", lambda: "s" in mock.streams and len(mock.text("s")) > 10_000)
    mock.full = True
    said = lib.Listener(feeding.stderr).all()
    assert lib.ends(feeding) == 1 and b"the disk is full" in said, said
    assert b"is acked up to byte %d; the same command" % len(mock.text("s")) in said, said


def test_ask():
    mock = Mock()
    lib.silt(mock.endpoint, "open", "s")
    out = lib.silt(mock.endpoint, "ask", "s", "Where?").out
    assert out.startswith("It was Köln.\n".encode()) and b"token 7 of 9" in out
    assert b"segment 2, tokens 256 to 512" in out
    mock.source = "x" + 100 * "ä"  # of 201 bytes 160 are shown, and no half of a character
    shown = lib.silt(mock.endpoint, "ask", "s", "Where?").out.decode()
    assert f"x{79 * 'ä'} …\n" in shown, shown
    options = ["--recall", "text", "--wait", "--keep", "--at", "5", "--temperature", "0.5",
               "--seed", "3", "--stop", "x", "--tokens", "9", "--system", "Brief.", "--json"]
    answer = json.loads(lib.silt(mock.endpoint, "ask", "s", "Where?", *options).out)
    assert answer["answer"] == "It was Köln." and answer["position"] == 7
    assert answer["sources"][0]["time"] == "1970-01-01T00:00:01.500Z"
    sent = mock.asks[-1]
    assert sent.recall == pb.Ask.TEXT and sent.wait and sent.keep and sent.at_position == 5
    assert sent.at_given and sent.sampling.seed == 3 and sent.stop == ["x"]
    assert sent.tokens_max == 9 and sent.system == "Brief." and sent.sampling.temperature == 0.5
    assert not mock.asks[0].HasField("sampling")


def test_ask_waits_while_siltd_is_busy():
    mock = Mock()
    lib.silt(mock.endpoint, "open", "s")
    mock.busy = 3
    assert lib.silt(mock.endpoint, "ask", "s", "Where?", "-q").out == "It was Köln.\n".encode()
    assert len(mock.asks) == 1 and mock.busy == 0
    mock.busy = 1 << 30
    start = time.monotonic()
    refused = lib.silt(mock.endpoint, "ask", "s", "Where?", code=4)
    assert "later (try again in 0.0 s)" in refused.text() and not refused.out.strip()
    assert 4 < time.monotonic() - start < 20 * lib.SLOW
    ask = lib.spawn(lib.SILT, "-c", mock.endpoint, "ask", "s", "Where?")
    time.sleep(0.5)
    ask.send_signal(signal.SIGINT)
    assert lib.ends(ask) == 130


def test_ask_cancel():
    mock = Mock()
    lib.silt(mock.endpoint, "open", "s")
    ask = lib.spawn(lib.SILT, "-c", mock.endpoint, "ask", "s", "endless", stdout=subprocess.PIPE)
    lib.wait_until("asked", lambda: mock.asks)
    out = lib.Listener(ask.stdout)
    out.wait(b"It was")
    ask.send_signal(signal.SIGINT)
    assert b"(stopped)" in out.all() and lib.ends(ask) == 130, out.said


def test_ask_when_siltd_dies():
    mock = Mock()
    lib.silt(mock.endpoint, "open", "s")
    died = lib.silt(mock.endpoint, "ask", "s", "die", code=3)
    assert b"It was" in died.out and b"went away before the end" in died.err, died.text()


def test_stat_ls_rm():
    mock = Mock()
    for name in ("a", "b", "c", "d", "e"):
        lib.silt(mock.endpoint, "open", name)
    assert lib.silt(mock.endpoint, "ls", "-q").out == b"a\nb\nc\nd\ne\n"
    assert len(lib.silt(mock.endpoint, "ls").out.splitlines()) == 6
    one = lib.stat(mock.endpoint, "a")
    assert one["memory_hash"] == "fedcba9876543210" and one["bytes_used"]["ring"] == 300
    assert sum(one["bytes_plan_by_tier"].values()) == one["bytes_plan"] == 1000
    table = lib.silt(mock.endpoint, "stat", "a").out.decode()
    assert "total" in table and "fedcba9876543210" in table and "least 1.0x" in table
    process = json.loads(lib.silt(mock.endpoint, "stat", "--json").out)
    assert process["bytes_plan"] == 50 and process["version"] == "mock"
    assert b"mock" in lib.silt(mock.endpoint, "stat").out
    plan = json.loads(lib.silt(mock.endpoint, "plan", "--json").out)
    assert plan == {"bytes_plan": 50, "bytes_plan_by_tier": {"all": 50}}, plan
    plan = json.loads(lib.silt(mock.endpoint, "plan", "a", "--json").out)["bytes_plan_by_tier"]
    assert plan == one["bytes_plan_by_tier"]
    table = lib.silt(mock.endpoint, "plan", "a").out.decode()
    assert table.splitlines()[-1].split()[-1] == "1,000" and "ring" in table, table
    lib.silt(mock.endpoint, "rm", "a", "b")
    assert b"no stream a" in lib.silt(mock.endpoint, "rm", "a", code=1).err
    lib.silt(mock.endpoint, "rm", "-f", "a", "c")
    assert lib.silt(mock.endpoint, "ls", "-q").out == b"d\ne\n"


def test_errors_say_what_to_do():
    mock = Mock()
    assert b"open it first" in lib.silt(mock.endpoint, "ask", "no", "x", code=1).err
    assert b"not a stream name" in lib.silt(mock.endpoint, "feed", "a/b", code=1).err
    lib.silt(mock.endpoint, "open", "s")
    assert b"No such file" in lib.silt(mock.endpoint, "feed", "s", "/nowhere", code=1).err
    assert b"silt feed: unrecognized" in lib.silt(mock.endpoint, "feed", "--no", code=2).err
    said = lib.silt(mock.endpoint, "feed", "s", "/", code=1).err
    assert b"is a folder: name its files, as in '/*.log'" in said, said
    assert b"'/usr/*.log'" in lib.silt(mock.endpoint, "feed", "s", "/usr", code=1).err
    for bad in (["feed"], ["ask", "s"], ["nothing"], ["ask", "s", "q", "--at", "x"],
                ["open", "s", "--dmc", "99"], ["feed", "s", "--follow"], ["stat", "a", "b"]):
        assert b"--help" in lib.silt(mock.endpoint, *bad, code=2).err
    for command in ("feed", "ask", "stat", "ls", "open", "rm"):
        assert b"silt " + command.encode() in lib.silt("x", command, "--help").out
        assert lib.silt("x", "help", command).out == lib.silt("x", command, "--help").out
    start = time.monotonic()
    away = lib.silt(f"ipc://{mock.home}/nobody", "ls", code=3)
    assert b"no siltd answers" in away.err and time.monotonic() - start < 8 * lib.SLOW
    assert b"endpoint looks like" in lib.silt("nonsense", "ls", code=1).err


def test_feed_waits_for_what_is_left():
    """Of what it waits for, some is forgotten meanwhile."""
    mock = Mock()
    stat, looks = mock.stat, []

    def stat_of(name):
        looks.append(name)
        now = stat(name)
        now.tokens_computed = 0 if len(looks) < 3 else 400
        now.tokens_acked = 1000 if len(looks) < 3 else 400
        return now

    mock.stat = stat_of
    lib.silt(mock.endpoint, "feed", "s", "--wait", stdin=b"text", seconds=20)
    assert len(looks) > 2


def test_feed_without_stdin():
    """It is closed: what libzmq opens is not read for it."""
    mock = Mock()
    done = subprocess.run(["bash", "-c", '"$@" <&-', "-", lib.SILT, "-c", mock.endpoint, "feed",
                           "s"], capture_output=True, timeout=20 * lib.SLOW, check=False)
    assert done.returncode == 1 and b"cannot read stdin" in done.stderr, done


def on_terminal(channel, *args, **more):
    """What a program shows where stdout or stderr is a terminal."""
    try:
        leader, follower = pty.openpty()
    except OSError as error:
        raise lib.Skip(f"no terminal to be had: {error}")
    termios.tcsetwinsize(follower, (24, 200))
    process = lib.spawn(*args, **{channel: follower}, **more)
    os.close(follower)
    shown = bytearray()

    def read():
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                return
            if not piece:
                return
            shown.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    assert lib.ends(process, 60) == 0
    reader.join()
    return bytes(shown)


def test_progress_on_a_terminal():
    mock = Mock(credit=2000)
    path = file_of(mock.home, "a", some_text(300_000))
    shown = on_terminal("stderr", lib.SILT, "-c", mock.endpoint, "feed", "s", path)
    assert b"tokens" in shown and b"%" in shown and b"memory 400 B of 1.0 kB" in shown, shown


def test_feed_of_what_is_typed():
    mock = Mock()
    leader, follower = pty.openpty()
    os.write(leader, b"typed\n\x04")
    shown = on_terminal("stderr", lib.SILT, "-c", mock.endpoint, "feed", "s", stdin=follower)
    os.close(leader)
    os.close(follower)
    assert b"Ctrl-D" in shown and b"tokens  " not in shown and mock.text("s") == b"typed\n", shown


def test_ask_says_what_it_waits_for():
    mock = Mock()
    lib.silt(mock.endpoint, "open", "s")
    mock.busy = 100  # of 20 ms each
    shown = on_terminal("stderr", lib.SILT, "-c", mock.endpoint, "ask", "s", "Where?",
                        stdout=subprocess.DEVNULL)
    assert b"silt: the question is read" in shown and shown.endswith(b"\r\x1b[K"), shown


def test_text_does_not_steer_a_terminal():
    """Neither by ESC nor by the one character that stands for ESC and a bracket, U+009B."""
    mock = Mock()
    lib.silt(mock.endpoint, "open", "s")
    shown = on_terminal("stdout", lib.SILT, "-c", mock.endpoint, "ask", "s", "Where?")
    assert "say ?[1m".encode() in shown and "1m à".encode() in shown, shown
    assert b"\x1b" not in shown and b"\xc2\x9b" not in shown, shown


if __name__ == "__main__":
    lib.main(globals())
