#!/usr/bin/env python3
"""siltd on a device: one that is emulated (tests/emulate), and this machine's where it has none.

Its streams, questions, pins and cold segments are those of a CPU; the plan counts its bytes;
a device that breaks costs nothing that was acked, and another goes on from the same data folder.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import lib
import texts

sys.path.insert(0, str(lib.ROOT / "clients/python"))
import silt  # noqa: E402

EMULATED = lib.BUILD / "emulated/siltd"


class Device(lib.Daemon):
    """On the emulated device; it breaks once the file `broken` is there."""

    def __init__(self, args=(), data=None, device="cuda"):
        if not EMULATED.exists():
            raise lib.Skip("no emulated/siltd: make build/emulated/siltd")
        self.broken = lib.folder() / "broken"
        self.device = device
        model, adapter = lib.tiny()
        super().__init__(model, adapter, ["--device", device, *args], data=data, threads=1)

    def start(self, ready=True):
        self.command[0] = EMULATED
        os.environ["SILT_EMULATE_BREAK"] = str(self.broken)
        try:
            super().start(ready)
        finally:
            del os.environ["SILT_EMULATE_BREAK"]


def feed(daemon, stream, text, *options):
    return lib.silt(daemon.endpoint, "feed", stream, *options, stdin=text, seconds=600)


def settled(daemon, stream):
    """The stream's state once all that was acked is computed, but for what waits for its block."""
    def done():
        stat = lib.stat(daemon.endpoint, stream)
        return stat if stat["tokens_acked"] - stat["tokens_computed"] < 32 else None
    return lib.wait_until(f"{stream} is computed", done, 300)


def test_streams_together_and_a_question():
    """Many at once, in any cuts, over kill -9: the memory is that of the text."""
    names = ["a", "b", "c"]
    text = texts.text(1900, seed=5)
    with Device(["--streams-max", "3"]) as daemon:
        for name in names:
            feed(daemon, name, text[:700])
        for name in names[1:]:
            feed(daemon, name, text[700:])
        for at in range(700, len(text), 400):
            feed(daemon, "a", text[at:at + 400])
        answer = lib.silt(daemon.endpoint, "ask", "b", "What is it?", "--json", "--wait",
                          "--tokens", "4", seconds=600)
        assert b'"position"' in answer.out, answer.text()
        hashes = {settled(daemon, name)["memory_hash"] for name in names}
        assert len(hashes) == 1, hashes
        daemon.kill()
        daemon.start()
        hashes |= {settled(daemon, name)["memory_hash"] for name in names}
        assert len(hashes) == 1 and hashes != {"0" * 16}, hashes
        log = daemon.log_text()
        for line in ("GPU: weights", "GPU: streams", "sum of the GPU"):
            assert line in log, log
        daemon.stop()


def test_a_device_that_breaks():
    """siltd says so and ends; on the CPU all that was acked is there and goes on."""
    text = texts.text(1500, seed=6)
    with Device() as daemon:
        feed(daemon, "s", text)
        before = settled(daemon, "s")
        daemon.stop()  # with a checkpoint
        daemon.start()
        settled(daemon, "s")
        daemon.broken.touch()
        subprocess.run([str(lib.SILT), "-c", daemon.endpoint, "feed", "s"], input=text,
                       capture_output=True, timeout=60 * lib.SLOW, check=False)
        code = daemon.process.wait(timeout=60 * lib.SLOW)
        log = daemon.log_text()
        assert code == 1 and "the device has failed" in log and "--device cpu" in log, log
        acked = before["tokens_acked"]
        with Device(data=daemon.data, device="cpu") as after:
            stat = settled(after, "s")
            assert stat["tokens_acked"] >= acked, stat
            assert "is not used" not in after.log_text(), after.log_text()
            answer = lib.silt(after.endpoint, "ask", "s", "What is it?", "--json", "--tokens", "4")
            assert b'"position"' in answer.out, answer.text()
            after.stop()


def test_a_question_on_a_device_that_breaks():
    """It ends with what has happened, not with what it may be on another day."""
    with Device() as daemon:
        feed(daemon, "s", texts.text(700, seed=6))
        settled(daemon, "s")
        daemon.broken.touch()
        done = lib.silt(daemon.endpoint, "ask", "s", "What is it?", code=None)
        assert done.code == 1, done.text()
        assert b"device has failed" in done.err or b"went away" in done.err, done.text()
        assert daemon.process.wait(timeout=60 * lib.SLOW) == 1, daemon.log_text()


def test_pins_and_repair():
    """What was refused on a device once: a pin, and a cold segment that rotted."""
    with Device(["--streams-max", "2"]) as daemon:
        lib.silt(daemon.endpoint, "open", "s", "--dmc", "4", "--ring", "2")
        feed(daemon, "s", texts.text(2600, seed=7))
        settled(daemon, "s")
        lib.silt(daemon.endpoint, "pin", "s", "--from", "8", "--to", "40")
        feed(daemon, "s", texts.text(700, seed=8))
        stat = settled(daemon, "s")
        assert stat["bytes_used"]["pins"] > 0, stat
        assert sum(stat["bytes_plan_by_tier"].values()) == stat["bytes_plan"], stat
        shown = lib.silt(daemon.endpoint, "stat").out.decode()
        assert "total of the GPU" in shown and "other" not in shown, shown
        with silt.Client(daemon.endpoint) as client:
            process = client.process()
        assert {t.name for t in process.tiers if t.on_device} == {
            t.name for t in process.tiers if t.name.startswith("GPU: ")}, process
        assert sum(t.bytes_plan for t in process.tiers if not t.on_device) == process.bytes_plan
        daemon.stop()
        for path in sorted(daemon.data.glob("segments/**/*.seg")):
            data = bytearray(path.read_bytes())
            data[6000] ^= 1
            path.write_bytes(data)
        daemon.start()
        lib.silt(daemon.endpoint, "ask", "s", "What is it?", "--recall", "segments", "--tokens",
                 "4", seconds=600)
        lib.wait_until("the segment is made again",
                       lambda: "is made again" in daemon.log_text(), 300)
        daemon.stop()


def test_plan_of_a_device():
    """What does not fit its memory is refused before anything is allocated, with the limit."""
    with Device() as daemon:
        daemon.stop()
    for limits, says in ((["--device-memory", "1M"], "no room"),
                         (["--streams-max", "4096"], "GPU's memory")):
        done = subprocess.run([*map(str, daemon.command), *limits], capture_output=True,
                              timeout=120 * lib.SLOW, check=False, text=True)
        assert done.returncode == 1 and says in done.stderr, done.stderr[-600:]


def test_a_ring_larger_than_planned():
    """Questions and checkpoints have the room of the adapter's own ring, on either device."""
    for device in ("cuda", "cpu"):
        with Device(device=device) as daemon:
            done = lib.silt(daemon.endpoint, "open", "s", "--dmc", "1", "--ring", "10", code=1)
            assert b"does not fit the plan's forks" in done.err, done.text()
            lib.silt(daemon.endpoint, "open", "s", "--dmc", "8", "--ring", "5")
            daemon.stop()


def test_weights_stay_quantised_where_memory_is_short():
    """By themselves where bf16 ones and the plan do not fit; the memory they make is the same."""
    text = texts.text(1100, seed=9)
    limits = ["--streams-max", "1", "--forks-max", "1", "--loss-meter", "no"]
    with Device([*limits, "--device-weights", "bf16"]) as daemon:
        feed(daemon, "s", text)
        memory = settled(daemon, "s")["memory_hash"]
        shown = json.loads(lib.silt(daemon.endpoint, "stat", "--json").out)["bytes_plan_by_tier"]
        daemon.stop()
        log = daemon.log_text()
    gpu = {name: value for name, value in shown.items() if name.startswith("GPU: ")}
    assert "GPU: weights" in gpu and "QUANTISED" not in log, (gpu, log)
    least = sum(gpu.values())
    short = ["--device-memory", str(least - 1)]
    for asked in (short, ["--device-weights", "file", "--device-memory", "9M"]):  # the last counts
        done = subprocess.run([*map(str, daemon.command), *asked], capture_output=True,
                              timeout=120 * lib.SLOW, check=False, text=True)
        assert done.returncode == 1, done.stderr[-600:]
        assert "GPU's memory" in done.stderr or "no room" in done.stderr, done.stderr[-600:]
    with Device([*limits, *short]) as daemon:
        feed(daemon, "s", text)
        assert settled(daemon, "s")["memory_hash"] == memory
        answer = lib.silt(daemon.endpoint, "ask", "s", "What is it?", "--json", "--tokens", "4")
        assert b'"position"' in answer.out, answer.text()
        shown = lib.silt(daemon.endpoint, "plan").out.decode()
        daemon.stop()
        log = daemon.log_text()
    for line in ("GPU: weights, quantised", "GPU: one matrix made bf16"):
        assert line in shown and line in log, shown + log
    assert "KEEPS WEIGHTS QUANTISED, as bf16 ones and the plan do not fit" in log, log
    assert log.count("opened again") == 1, log


def test_what_fits_in_neither_form_says_so_once():
    """As bf16 and kept quantised: one error names both, and no warning of the start comes twice."""
    with Device() as daemon:
        daemon.stop()
    command = [str(word) for word in daemon.command]
    at = command.index("--adapter")
    del command[at:at + 2]  # the default one, which is another model's
    done = subprocess.run([*command, "--data", str(daemon.home / "other"), "--streams-max", "4096"],
                          capture_output=True, timeout=120 * lib.SLOW, check=False, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(" warn adapter ") == 1, done.stderr
    assert "opened again" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "neither as bf16 nor kept quantised" in last and "--streams-max" in last, last


def test_a_machine_without_one():
    """This siltd, as it was built: no GPU is said, with what to do."""
    if os.path.exists("/dev/nvidia0"):
        raise lib.Skip("this machine has a GPU")
    model, adapter = lib.tiny()
    home = lib.folder()
    start = time.monotonic()
    done = subprocess.run([str(lib.BUILD / "siltd"), "--device", "cuda", "--listen",
                           f"ipc://{home}/s", "--data", str(home / "data"), "--model", str(model),
                           "--adapter", str(adapter)], capture_output=True, timeout=60, check=False,
                          text=True)
    assert done.returncode == 1 and "--device cpu" in done.stderr, done.stderr
    assert "GPU" in done.stderr or "CUDA" in done.stderr, done.stderr
    assert time.monotonic() - start < 30


def test_a_wrong_driver():
    """One that is no driver: the toolkit's own stub, under the driver's name."""
    stubs = [pathlib.Path(home, "lib64/stubs/libcuda.so") for home in
             (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda")]
    stub = next((path for path in stubs if path.exists()), None)
    if stub is None:
        raise lib.Skip("no stub of a driver: the CUDA toolkit is not installed")
    model, adapter = lib.tiny()
    home = lib.folder()
    (home / "libcuda.so.1").symlink_to(stub)
    paths = f"{home}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    done = subprocess.run([str(lib.BUILD / "siltd"), "--device", "cuda", "--listen",
                           f"ipc://{home}/s", "--data", str(home / "data"), "--model", str(model),
                           "--adapter", str(adapter)], capture_output=True, timeout=60, check=False,
                          text=True, env={**os.environ, "LD_LIBRARY_PATH": paths})
    assert done.returncode == 1 and "--device cpu" in done.stderr, done.stderr
    assert "driver" in done.stderr or "built without CUDA" in done.stderr, done.stderr
    assert not (home / "data").exists() or not list((home / "data").glob("journal*")), "begun"


if __name__ == "__main__":
    lib.main(globals())
