#!/usr/bin/env python3
"""What a data folder was made with: another model, adapter or format is refused, with the way out,
and nothing is lost by the attempt; another kernel path is only recorded."""

import json
import sqlite3
import subprocess

import lib
import raw
import texts

pb = raw.pb


def changed(path, home):
    """The same file, but some weights have the other sign."""
    other = home / f"other-{path.name}"
    data = bytearray(path.read_bytes())
    for i in range(30_001, 34_001, 2):
        data[i] ^= 0x80
    other.write_bytes(data)
    return other


def refused(siltd, *args):
    """What siltd says who will not start in that folder."""
    done = subprocess.run([str(word) for word in [*siltd.command, *args]], capture_output=True,
                          timeout=60 * lib.SLOW, check=False)
    assert done.returncode == 1, done
    return done.stderr.decode().splitlines()[-1]


def memory(siltd):
    wire = raw.Raw(siltd.endpoint)
    raw.patient(wire.call, attach=pb.Attach(stream="s", producer="p"))
    stat = wire.settled("s")
    return stat.memory_hash, stat.hash_chunk, stat.tokens_acked, stat.bytes_text


def feed(siltd):
    wire = raw.Raw(siltd.endpoint)
    wire.open("s")
    wire.feed_all("s", "p", [texts.text(30_000, seed=5)])
    return memory(siltd)


def test_another_adapter_computes_again_from_the_journal():
    model, adapter = lib.tiny()
    other = changed(adapter, lib.folder())
    with lib.Daemon(model, other) as fresh:
        expect = feed(fresh)
    with lib.Daemon(model, adapter) as siltd:
        before = feed(siltd)
        assert before[:2] != expect[:2] and before[2:] == expect[2:]
        siltd.stop()
        assert list((siltd.data / "checkpoints").glob("*/*"))
        said = refused(siltd, "--adapter", other)
        assert "start with the old --adapter" in said and "add --rebuild" in said, said
        siltd.start()  # nothing has happened
        assert memory(siltd) == before
        siltd.stop()
        first = siltd.command
        siltd.command = [*first, "--adapter", other, "--rebuild"]
        siltd.start()
        assert memory(siltd) == expect, "as of a siltd that never had another"
        got = json.loads(lib.silt(siltd.endpoint, "ask", "s", "What is it?", "--json").out)
        assert got["position"] == expect[2]
        siltd.kill()
        siltd.command = [*first, "--adapter", other]  # once is enough
        siltd.start()
        assert memory(siltd) == expect
        siltd.stop()
        assert "start with the old --adapter" in refused(siltd, "--adapter", adapter)


def test_another_model_is_refused():
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter) as siltd:
        before = feed(siltd)
        siltd.stop()
        said = refused(siltd, "--model", changed(model, lib.folder()), "--adapter", "none")
        assert "start with the old --model" in said and "another --data folder" in said, said
        siltd.start()
        assert memory(siltd) == before
        siltd.stop()


def test_a_folder_without_streams_takes_another_model():
    model, adapter = lib.tiny()
    with lib.Daemon(model, "none") as siltd:
        lib.silt(siltd.endpoint, "open", "s")
        siltd.stop()
        first, siltd.command = siltd.command, [*siltd.command, "--adapter", adapter]
        assert "with adapter none, this one is" in refused(siltd)
        siltd.command = first
        siltd.start()
        lib.silt(siltd.endpoint, "rm", "s")
        siltd.stop()
        siltd.command = [*first, "--adapter", adapter]
        siltd.start()
        siltd.stop()
        siltd.command = [*first, "--model", changed(model, lib.folder())]
        siltd.start()
        feed(siltd)
        siltd.stop()
        siltd.command = first
        assert "start with the old --model" in refused(siltd)


def test_another_format_is_refused():
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter) as siltd:
        siltd.stop()
        path, = siltd.data.glob("journal*.db")
        with sqlite3.connect(siltd.home / "old.db") as old:  # its pages have no hash
            old.execute("CREATE TABLE meta (name TEXT, value TEXT)")
        old.close()
        (siltd.home / "old.db").rename(path)
        was = path.read_bytes()
        said = refused(siltd)
        assert "use the siltd that wrote it" in said and "another --data folder" in said, said
        assert path.read_bytes() == was


def test_another_kernel_path_is_recorded():
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter) as siltd:
        before = feed(siltd)
        epoch = raw.Raw(siltd.endpoint).stat("s").numerics_epoch
        siltd.stop()
        siltd.command = [*siltd.command, "--kernels", "0"]
        for _ in range(2):
            siltd.start()
            assert memory(siltd) == before, "what was computed is kept"
            assert raw.Raw(siltd.endpoint).stat("s").numerics_epoch == epoch + 1
            siltd.stop()


if __name__ == "__main__":
    lib.main(globals())
