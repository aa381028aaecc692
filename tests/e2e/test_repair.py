"""A cold segment that is not what it should be is never used, said, and made again: bit for bit
where a checkpoint is near, else near what it was; and the answer is right all the while."""

import pathlib
import shutil

import lib
from test_recall import F16_RECORD, ask, daemon, done, feed, found, segment_files, text

FILE_RECORDS = 64


def spoilt(siltd, spoil, fault, how="repaired"):
    """Spoils the record of the chunk with the fact while siltd is down; the record it was, and the
    one that is there once it is made again."""
    place = found(ask(siltd, "s"))[0]["segment"]
    before = lib.stat(siltd.endpoint, "s")
    siltd.stop()
    path = segment_files(siltd)[place // FILE_RECORDS]
    place %= FILE_RECORDS
    was = path.read_bytes()[place * F16_RECORD:][:F16_RECORD]
    spoil(path, place)
    siltd.start()
    lib.wait_until("the stream is back", lambda: done(siltd, "s"), 120)
    assert found(ask(siltd, "s"))  # its text is still there
    stat = lib.wait_until("it is made again", lambda: mended(siltd, how), 120)
    assert any(fault in line and f"1 {how}" in line for line in stat["degraded"]), stat["degraded"]
    assert "is made again: " + how in siltd.log_text()
    assert stat["memory_hash"] == before["memory_hash"]
    assert found(ask(siltd, "s", "--recall", "segments"))
    again = lib.stat(siltd.endpoint, "s")
    assert again["degraded"] == stat["degraded"], "it is fit for use now"
    siltd.stop()
    return was, path.read_bytes()[place * F16_RECORD:][:F16_RECORD]


def mended(siltd, how):
    stat = lib.stat(siltd.endpoint, "s")
    return stat if stat[f"segments_{how}"] else None


def check(spoil, fault):
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        was, now = spoilt(siltd, spoil, fault)
        assert now == was


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_flipped_bit():
    def spoil(path, place):
        at = place * F16_RECORD + 9000
        overwrite(path, at, bytes([path.read_bytes()[at] ^ 16]))

    check(spoil, "1 rotten")


def test_a_torn_write():
    check(lambda path, place: overwrite(path, place * F16_RECORD + 100, bytes(3000)), "1 torn")


def test_half_a_record():
    check(lambda path, place: overwrite(path, place * F16_RECORD + 8192, bytes(8192)), "1 rotten")


def test_a_record_of_another_stream():
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        feed(siltd, "other", text(700, 20, seed=9))

        def spoil(path, place):
            other, = (file.read_bytes() for file in segment_files(siltd)
                      if file.name == path.name and file.parent != path.parent)
            overwrite(path, place * F16_RECORD, other[place * F16_RECORD:][:F16_RECORD])

        was, now = spoilt(siltd, spoil, "1 misdirected")
        assert now == was


def test_a_record_of_another_model():
    with daemon() as other:
        model, adapter = lib.tiny()
        home = other.home / "model"
        home.mkdir()
        shutil.copy(model, home / "m.gguf")
        shutil.copy(adapter, home / "a.gguf")
        with open(home / "a.gguf", "r+b") as file:  # the last weight, by a bit
            file.seek(-2, 2)
            last = file.read(1)
            file.seek(-2, 2)
            file.write(bytes([last[0] ^ 1]))
        with lib.Daemon(home / "m.gguf", home / "a.gguf", ("--streams-max", 2)) as stranger:
            feed(stranger, "s", text(700, 20))
            stranger.stop()
            strange = {file.name: file.read_bytes() for file in segment_files(stranger)}
        feed(other, "s", text(700, 20))

        def spoil(path, place):
            record = strange[path.name][place * F16_RECORD:][:F16_RECORD]
            overwrite(path, place * F16_RECORD, record)

        was, now = spoilt(other, spoil, "1 stale")
        assert now == was


def test_a_deleted_file():
    with daemon() as siltd:
        feed(siltd, "s", text(700, 20))
        was, now = spoilt(siltd, lambda path, place: path.unlink(), "missing")
        assert now == was


def test_far_from_every_checkpoint_it_is_approximate():
    with daemon() as siltd:
        feed(siltd, "s", text(2300, 1900))

        def spoil(path, place):
            assert path in segment_files(siltd)[256 // FILE_RECORDS:], "past 65,536 tokens"
            folder, = (pathlib.Path(siltd.data) / "checkpoints").iterdir()
            for checkpoint in sorted(folder.iterdir())[:-1]:
                checkpoint.unlink()
            overwrite(path, place * F16_RECORD + 100, bytes(3000))

        was, now = spoilt(siltd, spoil, "1 torn", "approximate")
        assert now[:80] == was[:80], "the header says the same of where it belongs"
        assert now != was


if __name__ == "__main__":
    lib.main({name: test for name, test in globals().items() if name.startswith("test_")
              and callable(test)})
