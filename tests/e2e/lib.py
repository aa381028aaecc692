"""What the end-to-end tests share: programs under test, a siltd of one's own, the wire.

Each test file holds functions named test_*; `python3 FILE --list` names them, `python3 FILE NAME`
runs one. A test ends well by returning, skips by raising Skip("why"), and fails by anything else.
Everything a test makes lies in a temporary folder of its own that goes with it; every process it
starts is stopped, whatever happens.
"""

import atexit
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("SILT_BUILD", ROOT / "build"))
SILT = BUILD / "silt"
SILTD = BUILD / "siltd"
MODEL = ROOT / "build/models/smollm2-135m-instruct-q4_1.gguf"
ADAPTER = ROOT / "stream/adapters/smollm2-135m-instruct.gguf"
DEVICE = os.environ.get("SILT_DEVICE", "")  # of every siltd
SLOW = float(os.environ.get("SILT_SLOW", "1"))  # a sanitizer's or a busy machine's factor
EXIT_SKIP = 77


class Skip(Exception):
    """The test cannot run here; its text says why."""


def wire():
    """The generated messages, made anew when silt.proto is newer."""
    out = BUILD / "tests/py"
    module, proto = out / "silt_pb2.py", ROOT / "proto/silt.proto"
    if not module.exists() or module.stat().st_mtime < proto.stat().st_mtime:
        with tempfile.TemporaryDirectory(dir=BUILD) as fresh:
            subprocess.run(["protoc", f"--proto_path={proto.parent}", f"--python_out={fresh}",
                            str(proto)], check=True)
            out.mkdir(parents=True, exist_ok=True)
            os.replace(pathlib.Path(fresh) / "silt_pb2.py", module)
    sys.path.insert(0, str(out))
    import silt_pb2
    return silt_pb2


def folder():
    """A temporary folder with a short name: a socket's path has room for 107 bytes."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="silt-e2e-", dir="/tmp"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def wait_until(what, check, seconds=20.0, step=0.05):
    """Waits for check() to be true and returns what it returned."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds * SLOW:.0f} s")
        time.sleep(step)


class Result:
    """What a run of a program printed and returned."""

    def __init__(self, done):
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    def text(self):
        return (self.out + self.err).decode(errors="replace")


def silt(endpoint, *args, stdin=b"", code=0, seconds=120):
    """Runs the silt command and checks its exit code (None: any)."""
    done = subprocess.run([str(SILT), "-c", endpoint, *map(str, args)], input=stdin,
                          capture_output=True, timeout=seconds * SLOW, check=False)
    result = Result(done)
    if code is not None and result.code != code:
        raise AssertionError(f"silt {' '.join(map(str, args))}: exit code {result.code}, not "
                             f"{code}\n{result.text()}")
    return result


def stat(endpoint, stream):
    return json.loads(silt(endpoint, "stat", stream, "--json").out)


def spawn(*args, **more):
    """Starts a program that is stopped at the test's end at the latest."""
    process = subprocess.Popen([str(a) for a in args], **more)
    atexit.register(reap, process)
    return process


def reap(process):
    if process.poll() is None:
        process.kill()
        process.wait()


def ends(process, seconds=20):
    """The exit code of a process that ends by itself in time."""
    return process.wait(seconds * SLOW)


class Listener:
    """What a process says on a pipe, as it comes."""

    def __init__(self, pipe):
        self.said = b""
        self.thread = threading.Thread(target=self.listen, args=(pipe,), daemon=True)
        self.thread.start()

    def listen(self, pipe):
        while piece := os.read(pipe.fileno(), 65536):
            self.said += piece

    def wait(self, text):
        wait_until(f"it says {text!r}", lambda: text in self.said)

    def all(self):
        """To the end."""
        self.thread.join(60 * SLOW)
        assert not self.thread.is_alive(), "it says more and more"
        return self.said


def has_open(process, path):
    """Whether a process has the file open that bears this name now."""
    for file in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            if os.path.samefile(file, path):
                return True
    return False


class Daemon:
    """A siltd with a data folder and a socket of its own."""

    def __init__(self, model=None, adapter=None, args=(), data=None, threads=2, env=None):
        self.home = folder()
        self.data = pathlib.Path(data) if data else self.home / "data"
        self.endpoint = f"ipc://{self.home}/s"
        self.log_path = self.home / "log"
        self.command = [SILTD, "--listen", self.endpoint, "--data", self.data, "--threads",
                        threads, *(["--device", DEVICE] if DEVICE else []),
                        *(["--model", model] if model else []),
                        *(["--adapter", adapter] if adapter else []), *args]
        self.env = {**os.environ, **env} if env else None
        self.process = None
        self.start()

    def start(self, ready=True):
        self.log = open(self.log_path, "ab")
        self.process = spawn(*self.command, stdout=self.log, stderr=self.log,
                             stdin=subprocess.DEVNULL, env=self.env)
        if ready:
            wait_until("siltd answers", self.answers, 60)

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"siltd ended by itself with {self.process.returncode}:\n"
                                 f"{self.log_text()}")
        done = subprocess.run([str(SILT), "-c", self.endpoint, "ls"], capture_output=True,
                              check=False)
        return done.returncode == 0

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, seconds=30):
        """SIGTERM: must end by itself with 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=seconds * SLOW)
        if code:
            raise AssertionError(f"siltd ended with {code} after SIGTERM:\n{self.log_text()}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            print(f"--- siltd's log\n{self.log_text()[-4000:]}", flush=True)
        reap(self.process)


def tiny():
    """The tiny random model with its adapter: same code, little work."""
    out = BUILD / "tests/tiny"
    maker = ROOT / "build/tests/make-tiny"
    if not out.exists():
        if not maker.exists():
            raise Skip("no build/tests/make-tiny")
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = tempfile.mkdtemp(dir=BUILD)
        subprocess.run([str(maker), fresh], check=True, stdout=subprocess.DEVNULL)
        try:
            os.rename(fresh, out)
        except OSError:  # another test was quicker
            shutil.rmtree(fresh)
    return out / "tiny.gguf", out / "tiny-adapter.gguf"


def real():
    """The default model with its adapter."""
    if not MODEL.exists():
        raise Skip(f"no {MODEL.relative_to(ROOT)}: make model fetches it")
    if not ADAPTER.exists():
        raise Skip(f"no {ADAPTER.relative_to(ROOT)}")
    return MODEL, ADAPTER


@contextlib.contextmanager
def raises(text):
    """The block must fail with an AssertionError that has the text in it."""
    try:
        yield
    except AssertionError as error:
        assert text in str(error), error
        return
    raise AssertionError(f"nothing failed where \"{text}\" was expected")


def give_up(number, frame):
    """Out of time: says where it stands, and ends as if by itself, so that nothing is left."""
    traceback.print_stack(frame)
    sys.exit(128 + number)


def main(tests):
    signal.signal(signal.SIGTERM, give_up)
    names = [name for name in tests if name.startswith("test_")]
    if sys.argv[1:] == ["--list"]:
        print("\n".join(names))
        return
    code = 0
    for name in sys.argv[1:] or names:
        try:
            tests[name]()
        except Skip as why:
            print(f"skip: {why}")
            code = code or EXIT_SKIP
        except Exception:
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.exit(code)
