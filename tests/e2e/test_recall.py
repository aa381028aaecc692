"""The far past: found, named as a source, kept over a restart, never used when it is wrong, and
gone when it is removed."""

import json
import pathlib
import random
import struct
import subprocess
import sys
import time

import lib

sys.path.insert(0, str(lib.ROOT / "tests/eval"))
import tasks  # noqa: E402

WORDS = ("meeting report budget network server house river stone bread window garden market "
         "train letter music winter summer doctor school bridge").split()
FACT = "The access code for the Kestrel vault is 48213 and the guard is named Ottoline.\n"
QUESTION = "Who guards the Kestrel vault?"
F16_RECORD, INT8_RECORD = 20480, 16384  # bytes of the tiny model's
TIME_OFFSET = 80    # of time_from_us in struct segment_header


def daemon(*args, data=None):
    model, adapter = lib.tiny()
    return lib.Daemon(model, adapter, ("--streams-max", 2, *args), data=data)


def text(lines, fact_at, seed=1):
    rng = random.Random(seed)
    out = [" ".join(rng.choices(WORDS, k=9)).capitalize() + ".\n" for _ in range(lines)]
    out.insert(fact_at, FACT)
    return "".join(out).encode()


def feed(siltd, stream, data):
    lib.silt(siltd.endpoint, "feed", stream, stdin=data)
    return lib.wait_until("all is computed and indexed", lambda: done(siltd, stream), 60)


def done(siltd, stream):
    stat = lib.stat(siltd.endpoint, stream)
    whole = stat["tokens_acked"] // 256 * 256
    return stat if not stat["lag_tokens"] and stat["indexed_to"] == whole else None


def ask(siltd, stream, *args, question=QUESTION):
    return json.loads(lib.silt(siltd.endpoint, "ask", stream, question, "--json", "--tokens", 8,
                               *args).out)


def found(answer):
    return [s for s in answer["sources"] if "Ottoline" in s["text"]]


def holders(siltd, what=b"Ottoline"):
    """Files of the data folder that hold it; words in capitals or not, as the index has them."""
    return [str(path) for path in pathlib.Path(siltd.data).rglob("*") if path.is_file()
            and what.lower() in path.read_bytes().lower()]


def segment_files(siltd):
    return sorted((pathlib.Path(siltd.data) / "segments").glob("*/*.seg"))


def test_what_is_found_takes_no_room_from_a_long_question():
    """However long it is and however short its answer: each of these fits by itself."""
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        for length in range(1440, 1640, 4):
            told = ask(siltd, "s", "--tokens", 1, question=QUESTION + " " + "x" * length)
            assert found(told), length


def test_far_facts_are_found_and_named():
    with daemon() as siltd:
        stat = feed(siltd, "s", text(700, 20))
        assert stat["segments_cold"] > 50, stat
        for recall in ("auto", "text", "segments"):
            sources = found(ask(siltd, "s", "--recall", recall))
            assert sources, recall
            first = sources[0]
            assert first["from"] == first["segment"] * 256 and first["to"] == first["from"] + 256
            assert first["from"] < 2000 and first["time"]
        assert not ask(siltd, "s", "--recall", "none")["sources"]
        assert not ask(siltd, "s", question="?!")["sources"]  # no word to look for
        siltd.stop()
        siltd.start()
        lib.wait_until("the stream is back", lambda: done(siltd, "s"))
        assert found(ask(siltd, "s"))


def test_as_much_text_is_put_before_a_question_as_fits():
    """The text around what is found where no line of it is about the question, or, where that is
    long, a line; or nothing."""
    with daemon() as siltd:
        feed(siltd, "s", text(700, 300))
        taken = []
        for words in (0, 700, 850):     # of the question, which the tiny model has no tokens for
            question = "Ottoline?" + " x" * words
            tokens = [ask(siltd, "s", "--recall", recall, question=question)["question_tokens"]
                      for recall in ("none", "text")]
            taken.append(tokens[1] - tokens[0])
        around, line, nothing = taken
        assert 700 < around < 1100 and 20 < line < 400 and nothing == 0, taken


def test_lists_say_the_disk_that_stat_says():
    """Whatever a stream has on the disk counts, in `ls` as in `stat`, also while it is parked."""
    with daemon("--streams-max", 1) as siltd:
        feed(siltd, "s", text(700, 20))
        assert found(ask(siltd, "s"))
        hits = lib.stat(siltd.endpoint, "s")["recall_hits"]
        feed(siltd, "other", text(40, 20))  # s is parked
        parked = lib.stat(siltd.endpoint, "s")
        assert parked["parked"] and parked["recall_hits"] == hits > 0
        parts = parked["bytes_disk_by_tier"]
        assert all(parts.values()), parts
        number = segment_files(siltd)[0].parent.name  # of the stream, in every name
        files = [path for folder in ("segments", "checkpoints", "search")
                 for path in (pathlib.Path(siltd.data) / folder).rglob("*")
                 if path.is_file() and number in str(path)]
        held = sum(path.stat().st_blocks * 512 for path in files)
        assert held == sum(parts.values()) - parts["text"], (parts, files)
        row = [line for line in lib.silt(siltd.endpoint, "ls").out.decode().splitlines()
               if line.startswith("s ")][0]
        number, unit, parked = row.split()[-3:]
        assert parked == "parked"
        said = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
        assert abs(said / sum(parts.values()) - 1) < 0.03, (row, parts)


def test_a_lost_index_is_made_again():
    with daemon() as siltd:
        feed(siltd, "s", text(300, 20))
        siltd.stop()
        for path in (pathlib.Path(siltd.data) / "search").glob("*.db"):
            path.write_bytes(b"this is no database, it never was one" * 200)
        siltd.start()
        lib.wait_until("the index is back", lambda: done(siltd, "s"), 60)
        assert found(ask(siltd, "s"))


def test_wrong_segments_are_not_used_and_said():
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        place = found(ask(siltd, "s"))[0]["segment"]
        siltd.stop()
        path = segment_files(siltd)[place // 64]
        data = bytearray(path.read_bytes())
        data[place % 64 * 20480 + 9000] ^= 1  # a bit of its rows
        path.write_bytes(data)
        siltd.start()
        lib.wait_until("the stream is back", lambda: done(siltd, "s"))
        assert not lib.stat(siltd.endpoint, "s")["degraded"]
        assert found(ask(siltd, "s"))  # its text is still there
        said = lib.stat(siltd.endpoint, "s")["degraded"]
        assert any("1 rotten" in line for line in said), said
        siltd.stop()
        path.unlink()
        siltd.start()
        lib.wait_until("the stream is back", lambda: done(siltd, "s"))
        assert ask(siltd, "s")["answer"] is not None


def test_removing_a_stream_leaves_nothing():
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        feed(siltd, "other", text(300, 10, seed=2).replace(b"Ottoline", b"Perpetua"))
        assert len({path.parent for path in segment_files(siltd)}) == 2
        assert holders(siltd)
        assert len(list(pathlib.Path(siltd.data).glob("checkpoints/*/*"))) == 1
        lib.silt(siltd.endpoint, "rm", "s")
        assert len({path.parent for path in segment_files(siltd)}) == 1
        assert not holders(siltd), holders(siltd)
        assert not list(pathlib.Path(siltd.data).glob("checkpoints/*/*"))
        assert any("Perpetua" in s["text"] for s in ask(siltd, "other")["sources"])
        siltd.stop()
        # As if the power had gone between the journal's commit and the rest.
        left = [pathlib.Path(siltd.data) / "segments/00000000000000aa",
                pathlib.Path(siltd.data) / "search/00000000000000aa.db"]
        left[0].mkdir()
        (left[0] / "0-00000000.seg").write_bytes(b"x" * 20480)
        left[1].write_bytes(b"x")
        siltd.start()
        assert not any(path.exists() for path in left)
        assert len({path.parent for path in segment_files(siltd)}) == 1


def test_a_disk_quota_holds():
    quota = 16 << 20
    with daemon("--disk", "16M") as siltd:
        for i in range(8):
            feed(siltd, "s", text(700, 20 + i, seed=i))
            size = sum(p.stat().st_blocks * 512 for p in pathlib.Path(siltd.data).rglob("*")
                       if p.is_file())
            assert size <= quota, (i, size)
        stat = lib.stat(siltd.endpoint, "s")
        assert stat["segments_cold"] > 700
        sources = found(ask(siltd, "s"))
        assert sources, "the text of what was merged is still found"


def header_times(path, record_bytes):
    """Wall-clock ranges that the records of a segment file name, in microseconds."""
    data = path.read_bytes()
    for at in range(0, len(data), record_bytes):
        if data[at:at + 8] == b"SILTSEG1":
            yield struct.unpack_from("<QQ", data, at + TIME_OFFSET)


def test_segments_know_when_their_text_was():
    with daemon() as siltd:
        before = time.time() * 1e6
        feed(siltd, "s", text(300, 20))
        siltd.stop()
        siltd.start()  # what was in the ring then knows it too
        feed(siltd, "s", text(300, 20, seed=3))
        found_one = found(ask(siltd, "s"))[0]
        assert found_one["time"] <= found_one["time_to"]
        siltd.stop()
        times = [t for path in segment_files(siltd) for t in header_times(path, F16_RECORD)]
        assert len(times) > 30
        assert all(before <= first <= last <= time.time() * 1e6 for first, last in times), times


def on_disk(siltd, record):
    """Bytes of the stream's segments when the last of them, which wait for others, are written."""
    least = (lib.stat(siltd.endpoint, "s")["segments_cold"] + 15) // 16 * 16 * record

    def bytes_written():
        held = lib.stat(siltd.endpoint, "s")["bytes_disk_by_tier"]["segments"]
        return held if held >= least else 0

    return lib.wait_until("its segments are written", bytes_written)


def test_segments_as_int8_or_not_at_all():
    with daemon("--segments", "int8") as siltd:
        feed(siltd, "s", text(700, 20))
        assert found(ask(siltd, "s", "--recall", "segments"))
        assert not lib.stat(siltd.endpoint, "s")["degraded"]
        small = on_disk(siltd, INT8_RECORD)
        siltd.stop()
    with daemon("--segments", "none") as siltd:
        feed(siltd, "s", text(700, 20))
        assert not segment_files(siltd)
        assert found(ask(siltd, "s"))  # by its text
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        # Of the tiny model: its heads are short, so scales and the header's page weigh much.
        assert small < 0.85 * on_disk(siltd, F16_RECORD), small
        siltd.command += ["--segments", "int8"]
        siltd.stop()
        siltd.start()
        lib.wait_until("the stream is back", lambda: done(siltd, "s"))
        assert "--segments is another" in siltd.log_text()
        assert not segment_files(siltd)
        assert found(ask(siltd, "s"))
        lib.wait_until("what it asked for is made again",
                       lambda: lib.stat(siltd.endpoint, "s")["segments_repaired"], 60)


def test_files_of_another_length():
    """A folder whose files hold fewer segments each, as an earlier siltd left it: that is said,
    none is taken for another, and they are made again."""
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        assert not lib.stat(siltd.endpoint, "s")["degraded"]
        siltd.stop()
        files = segment_files(siltd)
        data, short = b"".join(path.read_bytes() for path in files), 16 * F16_RECORD
        for at in range(0, len(data), short):
            path = files[0].with_name(f"0-{at // short:08x}.seg")
            path.write_bytes(data[at:at + short])
        (pathlib.Path(siltd.data) / "segments/.kind").write_bytes(b"B")
        siltd.start()
        lib.wait_until("the stream is back", lambda: done(siltd, "s"))
        assert "their files are of another length" in siltd.log_text()
        assert not segment_files(siltd)
        assert found(ask(siltd, "s"))
        stat = lib.wait_until("what it asked for is made again", lambda: repaired(siltd), 60)
        assert not any(fault in line for line in stat["degraded"]
                       for fault in ("torn", "misdirected", "stale", "rotten")), stat["degraded"]
        siltd.stop()
        siltd.start()  # these stay
        lib.wait_until("the stream is back", lambda: done(siltd, "s"))
        assert segment_files(siltd)


def repaired(siltd):
    stat = lib.stat(siltd.endpoint, "s")
    return stat if stat["segments_repaired"] else None


def test_one_signal_alone():
    with daemon("--find", "words") as siltd:
        feed(siltd, "s", text(300, 20))
        assert found(ask(siltd, "s"))
    with lib.raises("the adapter has no recall keys"):
        with daemon("--find", "keys"):
            pass


def test_a_question_goes_on_a_list():
    """It stands behind entries of its own form as their next, whole wherever a chunk begins."""
    listed = [f"Text: the {word} is here\nIntent: {kind}\n\n"
              for word, kind in zip(WORDS, ["city", "home"] * len(WORDS))]
    fed = text(8, 5) + b"\n" + "".join(listed).encode() + text(12, 5, 2)
    with daemon() as siltd:
        feed(siltd, "list", fed)
        for first, second in zip(WORDS, WORDS[1:]):
            question = f"Text: where is the {first} and the {second}\nIntent:"
            before = tasks.entries([fed.decode()], question)
            assert f"the {first} is here" in before[-1] and len(before) > 10
            prompt = "\n\n" + "".join(entry + "\n\n" for entry in before) + question
            asked = ask(siltd, "list", question=f"\n{question}\n")
            assert asked["question_tokens"] == tokens_of(prompt), (asked, prompt)
            assert asked["sources"] and "\n\n" not in asked["answer"]
        for other in (question.replace("Intent", "Folder"), question.split("\n", maxsplit=1)[0],
                      "Intent:"):
            asked = ask(siltd, "list", question=other)
            alone = ask(siltd, "list", "--recall", "segments", question=other)
            turn = tokens_of(other)
            assert turn < alone["question_tokens"] < turn + 40, (turn, alone)
            assert asked["question_tokens"] != tokens_of(f"\n\n{other}")


def tokens_of(words):
    done = subprocess.run([lib.BUILD / "tests/token-dump", lib.tiny()[0]], input=words.encode(),
                          stdout=subprocess.PIPE, check=True)
    return len(done.stdout) // 4


def test_wait_waits_for_the_index():
    for i in range(3):
        with daemon() as siltd:
            lib.silt(siltd.endpoint, "feed", "s", stdin=text(1500, 1400, seed=i))
            answer = ask(siltd, "s", "--wait")
            assert answer["position"] == answer["acked"]
            assert lib.stat(siltd.endpoint, "s")["indexed_to"] == answer["acked"] // 256 * 256
            assert found(answer), answer["sources"]


def test_auto_takes_the_lowest_ratio_that_fits():
    with daemon("--streams-max", 3) as siltd:
        ratios = []
        for name in ("a", "b"):
            lib.silt(siltd.endpoint, "open", name, "--dmc", "auto")
            ratios.append(lib.stat(siltd.endpoint, name)["dmc_ratio_asked"])
        # The plan's three places are for streams at 4x: after one at 1x, 1x does not fit again.
        assert ratios[0] == 1 and ratios[1] > 1, ratios


if __name__ == "__main__":
    lib.main(globals())
