"""silt feed on real sources: transcripts and captions, times, patterns, many files at once, names
that go from file to file while siltd is away."""

import calendar
import gzip
import os
import random
import signal
import subprocess
import time

import lib
from mock import Mock

VTT = """\ufeffWEBVTT - a meeting
Kind: captions

NOTE what follows is not said

STYLE
::cue { color: red }

intro
00:01.500 --> 00:04.000 align:start
<v Ann Lee>Good <i>morning</i> &amp; welcome.

2
00:00:05.000 --> 00:00:07.000
<v.loud Bob>Thanks.
<v Ann Lee>So:

01:02:03.000 --> 01:02:09.000
rolling one

01:02:04.000 --> 01:02:10.000
rolling one
and two
"""
VTT_TEXT = """[0:00:01] Ann Lee: Good morning & welcome.
[0:00:05] Bob: Thanks.
[0:00:05] Ann Lee: So:
[1:02:03] rolling one
[1:02:04] and two
"""
SRT = """1
00:00:01,600 --> 00:00:02,000
{\\an8}<b>ANN:</b> Hello.

2
00:10:00,000 --> 00:10:01,000
- Yes?
- No.
"""
SRT_TEXT = "[0:00:01] ANN: Hello.\n[0:10:00] - Yes?\n[0:10:00] - No.\n"
TRANSCRIPT = """The minutes
[00:00:05] Ann: We begin.
(1:10) Bob: Late.
0:02:00 - Carol: On time, 10:30 sharp.
Ann Lee (00:03:00): Said so.
Bob Ray  4:05
I move.
And more.

00:05:00.100 --> 00:05:02.000
Ann: Second.
At 12:30 we eat.
"""
TRANSCRIPT_TEXT = """The minutes
[0:00:05] Ann: We begin.
[0:01:10] Bob: Late.
[0:02:00] Carol: On time, 10:30 sharp.
[0:03:00] Ann Lee: Said so.
[0:04:05] Bob Ray: I move.
And more.

[0:05:00] Ann: Second.
At 12:30 we eat.
"""
FORMATS = {"vtt": (VTT, VTT_TEXT), "srt": (SRT, SRT_TEXT),
           "transcript": (TRANSCRIPT, TRANSCRIPT_TEXT)}


def test_formats():
    mock = Mock()
    for name, (source, text) in FORMATS.items():
        path = mock.home / f"a.{name}"
        for ends in ("\n", "\r\n"):
            path.unlink(missing_ok=True)
            path.write_bytes(source.replace("\n", ends).encode())
            stream = f"{name}{len(ends)}"
            lib.silt(mock.endpoint, "feed", stream, path, "--format", name)
            assert mock.text(stream).decode() == text, mock.text(stream).decode()
            again = lib.silt(mock.endpoint, "feed", stream, path, "--format", name)
            assert b"goes on" in again.err and mock.text(stream).decode() == text
        lib.silt(mock.endpoint, "feed", f"{name}-pipe", "--format", name, stdin=source.encode())
        assert mock.text(f"{name}-pipe").decode() == text
    plain = mock.home / "a.vtt"
    lib.silt(mock.endpoint, "feed", "plain", plain)  # the same file as it is: another text
    assert mock.text("plain") == plain.read_bytes()


def test_captions_that_grow_go_on():
    mock = Mock()
    path = mock.home / "live.vtt"
    cues = [f"{i // 60:02}:{i % 60:02}.000 --> {i // 60:02}:{i % 60:02}.900\nline {i}\n\n".encode()
            for i in range(60)]
    path.write_bytes(b"WEBVTT\n\n" + b"".join(cues[:20]))
    for part in (cues[20:40], cues[40:]):
        follow = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", "--follow", path,
                           "--format", "vtt", stderr=subprocess.PIPE)
        time.sleep(0.5)
        for cue in part:
            with open(path, "ab") as file:
                file.write(cue[:9])
                file.flush()
                file.write(cue[9:])
        last = b"line %d\n" % (int(part[-1].split(b"line ")[1]))
        lib.wait_until("all cues", lambda: "s" in mock.streams and
                       mock.text("s").endswith(last))
        follow.send_signal(signal.SIGINT)
        assert lib.ends(follow) == 130
    want = b"".join(b"[0:%02d:%02d] line %d\n" % (i // 60, i % 60, i) for i in range(60))
    assert mock.text("s") == want


def test_times_are_kept():
    mock = Mock()
    here = time.localtime()
    syslog = time.strftime("%b ", here) + f"{here.tm_mday:2} 00:00:01"
    midnight = int(time.mktime((*here[:3], 0, 0, 1, 0, 0, -1)))
    cases = {
        "2026-05-31T09:30:00.25+02:00 web up": 1780212600.25,
        "2026-05-31 07:30:00,5Z web up": 1780212600.5,
        "[2026-05-31T07:30:00Z] web up": 1780212600,
        "1780212600.125 web up": 1780212600.125,
        '10.0.0.1 - - [31/May/2026:09:30:00 +0200] "GET /"': 1780212600,
        f"{syslog} host cron[1]: ran": midnight,
        "no time, then\n2026-05-31T07:30:00Z late": 1780212600,
        "12345 items and 2026-99-99T00:00:00Z": 0,
        "3026-05-31T07:30:00Z is ahead": 0,
    }
    for i, (line, seconds) in enumerate(cases.items()):
        path = mock.home / f"t{i}"
        path.write_text(line + "\n")
        lib.silt(mock.endpoint, "feed", "s", path)
        text, time_us = mock.times[-1]
        assert text.decode() == line + "\n" and time_us == round(seconds * 1e6), (line, time_us)
    lib.silt(mock.endpoint, "feed", "s", stdin=b"2026-05-31T07:30:00Z piped\n")
    assert mock.times[-2][1] == 1780212600 * 10**6, mock.times
    path = mock.home / "b.srt"
    path.write_text("7\n" + SRT.split("\n\n")[1][2:])
    lib.silt(mock.endpoint, "feed", "s", path, "--format", "srt", "--start", "2026-05-31T07:30:00Z")
    begin = calendar.timegm((2026, 5, 31, 7, 30, 0))
    assert mock.times[-1][1] == (begin + 600) * 10**6


def test_each_time_stands_for_its_own_lines():
    """A piece of a log may hold years: what is far from its first line has a clock of its own."""
    mock = Mock()
    days = [(f"2026-05-{day:02} 07:30:00Z web up, and what else it says\n" * 40).encode()
            for day in range(1, 29)]
    path = mock.home / "log"
    path.write_bytes(b"".join(days))
    lib.silt(mock.endpoint, "feed", "file", path)
    lib.silt(mock.endpoint, "feed", "pipe", stdin=path.read_bytes())
    for stream in ("file", "pipe"):
        assert mock.text(stream) == path.read_bytes()
    told = [(text, time_us) for text, time_us in mock.times if text]
    assert [text for text, _ in told] == 2 * days
    assert [time_us // 10**6 for _, time_us in told] == 2 * [
        calendar.timegm((2026, 5, day, 7, 30, 0)) for day in range(1, 29)]
    cues = b"".join(b"%02d:00:00.000 --> %02d:00:01.000\n%d %s\n\n" % (i, i, i, b"word " * 150)
                    for i in range(20))
    (mock.home / "talk.vtt").write_bytes(b"WEBVTT\n\n" + cues)
    del mock.times[:]
    lib.silt(mock.endpoint, "feed", "talk", mock.home / "talk.vtt", "--format", "vtt",
             "--start", "2026-05-31T07:30:00Z")
    begin = calendar.timegm((2026, 5, 31, 7, 30, 0))
    assert [time_us // 10**6 - begin for _, time_us in mock.times] == [i * 3600 for i in range(20)]


def test_what_cannot_be_fed_leaves_nothing():
    """Refused before siltd is asked for anything: no stream of nothing, no first file without its
    second."""
    mock = Mock()
    (mock.home / "good").write_text("good\n")
    (mock.home / "folder").mkdir()
    (mock.home / "old.gz").write_bytes(gzip.compress(b"x"))
    for bad, why in (("none", b"No such file"), ("folder", b"folder/*.log"), ("old.gz", b"zcat"),
                     ("/proc/self/status", b"by a pipe")):
        refused = lib.silt(mock.endpoint, "feed", "s", mock.home / "good", mock.home / bad, code=1)
        assert why in refused.err and not mock.streams, refused.err
    lib.silt(mock.endpoint, "feed", "s", f"{mock.home}/*.no", code=1)
    assert not mock.streams
    (mock.home / "talk.vtt").write_text("no captions\n")
    assert b"is --format right?" in lib.silt(mock.endpoint, "feed", "talk", mock.home / "talk.vtt",
                                             "--format", "vtt", code=1).err
    # A pattern means files alone; one that leads to several streams says what became of them.
    said = lib.silt(mock.endpoint, "feed", "by-%", f"{mock.home}/[fg]o*").err
    assert b"5 B of 1 files acked" in said and mock.text("by-good") == b"good\n", said
    lib.silt(mock.endpoint, "feed", "s", "-", stdin=b"of a pipe\n")
    assert mock.text("s") == b"of a pipe\n"


def test_follow_says_that_it_waits():
    mock = Mock()
    path = mock.home / "late.log"
    follow = lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", "s", "--follow",
                       f"{mock.home}/*.log", stderr=subprocess.PIPE)
    listener = lib.Listener(follow.stderr)
    listener.wait(b"no file matches")
    path.write_text("here\n")
    lib.wait_until("it is fed", lambda: "s" in mock.streams and mock.text("s") == b"here\n")
    # What takes its name and is no file is named once, not at every look.
    path.unlink()
    path.mkdir()
    listener.wait(b"is a folder")
    time.sleep(1)
    assert listener.said.count(b"is a folder") == 1, listener.said
    follow.send_signal(signal.SIGINT)
    assert lib.ends(follow) == 130


def test_patterns_and_streams_by_file():
    mock = Mock()
    for name in ("b.log", "a.log", "c d.log", "x.txt"):
        (mock.home / name).write_text(name + "\n")
    lib.silt(mock.endpoint, "feed", "all", f"{mock.home}/*.log")
    assert mock.text("all") == b"a.log\nb.log\nc d.log\n"
    lib.silt(mock.endpoint, "feed", "one-%", f"{mock.home}/?.log", mock.home / "c d.log")
    assert mock.text("one-a.log") == b"a.log\n" and mock.text("one-c_d.log") == b"c d.log\n"
    assert b"no file matches" in lib.silt(mock.endpoint, "feed", "s", f"{mock.home}/*.no",
                                          code=1).err
    (mock.home / "old.gz").write_bytes(gzip.compress(b"x"))
    assert b"zcat" in lib.silt(mock.endpoint, "feed", "s", mock.home / "old.gz", code=1).err
    for bad in (["feed", "a-%"], ["feed", "%%", "x"], ["feed", "s", "--format", "doc"],
                ["feed", "s", "--turn", "king"], ["feed", "s", "--start", "noon"],
                ["feed", "s", "x", "--start", "2026-05-31T07:30:00Z"],
                ["feed", "s", "--turn", "user", "--format", "vtt"],
                ["feed", "s", "x", "--producer", "p"], ["feed", "%", "x", "--wait"]):
        assert b"--help" in lib.silt(mock.endpoint, *bad, code=2).err, bad


def follow(mock, *args):
    return lib.spawn(lib.SILT, "-c", mock.endpoint, "feed", *args, "--follow",
                     stderr=subprocess.PIPE)


def stop(process):
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    assert lib.ends(process, 30) == 130, said
    return said


def test_follow_a_pattern():
    mock = Mock()
    (mock.home / "a.log").write_text("a1\n")
    (mock.home / "old.log.gz").write_bytes(gzip.compress(b"old"))
    process = follow(mock, "s", f"{mock.home}/*.log*")
    lib.wait_until("a", lambda: "s" in mock.streams and mock.text("s") == b"a1\n")
    (mock.home / "b.log").write_text("b1\n")
    lib.wait_until("b", lambda: mock.text("s") == b"a1\nb1\n")
    # Rotated into the pattern: it is the same file, and is not read twice.
    os.rename(mock.home / "a.log", mock.home / "a.log.1")
    (mock.home / "a.log").write_text("a2\n")
    lib.wait_until("rotated", lambda: mock.text("s") == b"a1\nb1\na2\n")
    (mock.home / "b.log").unlink()
    said = lib.Listener(process.stderr)
    said.wait(b"is gone")
    process.send_signal(signal.SIGINT)
    assert b"old.log.gz is compressed" in said.all() and lib.ends(process, 30) == 130, said.said
    assert mock.text("s") == b"a1\nb1\na2\n"


def test_follow_names_that_change_hands_while_siltd_is_away():
    mock = Mock()
    path = mock.home / "log"
    path.write_text("0 begins\n")
    process = follow(mock, "s", path)
    lib.wait_until("0", lambda: "s" in mock.streams and mock.text("s") == b"0 begins\n")
    mock.kill()
    want = b"0 begins\n"
    for i in range(1, 8):
        os.rename(path, mock.home / f"log.{i}")
        text = f"{i} written while away\n" * 500
        path.write_text(text)
        want += text.encode()
        lib.wait_until("it is seen", lambda: lib.has_open(process, path))
    mock.start()
    lib.wait_until("all of them in order", lambda: mock.text("s") == want, 60)
    stop(process)


def test_follow_names_that_change_hands_while_siltd_hangs():
    """It waits for an answer that does not come, and watches on."""
    mock = Mock()
    path = mock.home / "log"
    path.write_text("0 begins\n")
    process = follow(mock, "s", path)
    lib.wait_until("0", lambda: "s" in mock.streams and mock.text("s") == b"0 begins\n")
    mock.silent = True
    want = b"0 begins\n"
    for i in range(1, 8):
        os.rename(path, mock.home / f"log.{i}")
        text = f"{i} written meanwhile\n" * 50
        path.write_text(text)
        want += text.encode()
        lib.wait_until("it is seen", lambda: lib.has_open(process, path))
    mock.silent = False
    lib.wait_until("all of them in order", lambda: mock.text("s") == want, 90)
    stop(process)


def test_follow_many_files():
    """Each a stream of its own, siltd killed in between; every line once and in order."""
    mock = Mock()
    count, rng = 120, random.Random(5)
    folder = mock.home / "logs"
    folder.mkdir()
    process = follow(mock, "%", f"{folder}/*")
    wrote, new_at = {f"f{i}": b"" for i in range(count)}, {}
    for turn in range(600):
        name = f"f{rng.randrange(count)}"
        line = b"%s line %d\n" % (name.encode(), turn)
        now = time.monotonic()
        if wrote[name] and now - new_at[name] > 2 and lib.has_open(process, folder / name):
            os.rename(folder / name, mock.home / f"{name}.{turn}")
            new_at[name] = now
        new_at.setdefault(name, now)
        with open(folder / name, "ab") as file:
            file.write(line)
        wrote[name] += line
        if turn in (200, 400):
            mock.kill()
            time.sleep(0.3)
            mock.start()
        time.sleep(0.01)

    def all_there():
        return all(not text or (name in mock.streams and mock.text(name) == text)
                   for name, text in wrote.items())

    lib.wait_until("every line", all_there, 60)
    stop(process)


if __name__ == "__main__":
    lib.main(globals())
