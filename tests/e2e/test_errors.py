"""What a user does wrong, and the sentence by which --help alone mends it: each names what was
wrong and what is right instead, on stderr, with the exit code that --help promises."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import lib
import texts

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
USAGE = [  # argument words, words of the sentence
    (["frobnicate"], "no command \"frobnicate\""),
    (["--bogus"], "Try: silt --help"),
    (["ask", "s"], "one question in quotes"),
    (["ask", "s", "two", "words"], "one question in quotes"),
    (["ask", "s", "Q?", "--recall", "all"], "none, segments, text or auto"),
    (["ask", "s", "Q?", "--at", "noon"], "--at takes a whole number"),
    (["ask", "s", "Q?", "--tokens", "0"], "from 1"),
    (["ask", "s", "Q?", "--temperature", "hot"], "a number from 0"),
    (["ask", "s", "Q?", "--top-p", "3"], "from 0 to 1"),
    (["ask", "s", "Q?"] + ["--stop", "x"] * 9, "at most 8"),
    (["feed"], "name a stream"),
    (["feed", "s", "--follow"], "a pipe is followed anyway"),
    (["feed", "s", "--follow", "--wait", "t"], "no end to --wait for"),
    (["feed", "s", "--format", "pdf", "t"], "plain, transcript, vtt or srt"),
    (["feed", "s", "--turn", "boss"], "system, user, assistant or tool"),
    (["feed", "s", "--turn", "user", "t"], "reads stdin"),
    (["feed", "s", "--start", "yesterday", "t"], "2026-05-31T09:30:00+02:00"),
    (["feed", "s", "--patience", "-1", "t"], "from 0"),
    (["feed", "s", "--producer", "x", "t"], "a FILE is known by itself"),
    (["feed", "s", "--ring", "0", "t"], "from 1 to 256"),
    (["feed", "%"], "stands for a FILE's name"),
    (["feed", "a%b%", "t"], "one %"),
    (["open"], "name one stream"),
    (["stat", "a", "b"], "one stream, or none"),
    (["plan", "a", "b"], "one stream, or none"),
    (["stat", "s", "--jsn"], "silt stat --help"),
    (["ls", "s"], "silt stat STREAM"),
    (["rm"], "name a stream"),
    (["fork", "s"], "a stream and its branch"),
    (["forget", "s"], "--from and --to"),
    (["forget", "s", "--from", "5", "--to", "3"], "less than"),
    (["pin", "s", "--from", "0"], "A before B"),
    (["pins"], "name one stream"),
    (["key"], "new, server, list, allow or deny"),
    (["key", "make"], "new, server, list, allow or deny"),
    (["key", "server", "x"], "takes no more words"),
    (["key", "allow", KEY], "streams, or a key and --all"),
    (["top"], "needs a terminal; silt ls"),
    (["top", "--delay", "0"], "from 0.1"),
    (["gateway", "--listen", "nowhere"], "127.0.0.1:8177"),
    (["gateway", "--listen", "127.0.0.1:99999"], "to 65535"),
    (["gateway", "--listen", "0.0.0.0:0"], "--key-file"),
    (["gateway", "--key-file", "absent"], "No such file"),
    (["gateway", "--connections", "0"], "from 1 to 1024"),
]
REFUSED = [
    (["ask", "s", ""], "question is empty"),
    (["ask", "nope", "Q?"], "`silt ls` lists them"),
    (["ask", "s", "Q?", "--at", "99999999"], "0 to "),
    (["ask", "s", "Q?", "--keep", "--at", "5"], "without one of both"),
    (["ask", "s", "Q?", "--stop", ""], "1 to 64"),
    (["feed", "bad name"], "A-Z a-z 0-9 . _ -"),
    (["feed", "../x", "t"], "A-Z a-z 0-9 . _ -"),
    (["feed", "x" * 129, "t"], "1 to 128"),
    (["feed", "s", "absent"], "No such file"),
    (["feed", "s", "folder"], "'folder/*.log'"),
    (["feed", "s", "--follow", "folder"], "'folder/*.log'"),
    (["feed", "s", "*.nothing"], "--follow waits for one"),
    (["feed", "s", "--producer", "a b"], "1 to 64"),
    (["feed", "s", "--dmc", "2", "t"], "open it without options"),
    (["open", "s", "--ring", "2"], "remove it first"),
    (["open", "t", "--dmc", "3"], "choose of 1, 2"),
    (["rm", "nope"], "`silt ls` lists them"),
    (["fork", "s", "s"], "another name"),
    (["forget", "s", "--from", "0", "--to", "99999999"], "which holds"),
    (["pin", "s", "--from", "0", "--to", "65"], "--pin-tokens-max"),
    (["pin", "s", "--from", "9999999", "--to", "9999999999"], "silt stat says"),
    (["unpin", "s", "--from", "0", "--to", "5"], "silt pins lists"),
    (["key", "new", "t"], "never written over"),
    (["key", "allow", "short", "s"], "silt key new"),
    (["key", "deny", "ops"], "silt key list"),
    (["key", "allow", KEY, "s", "--name", "two words"], "A-Z a-z 0-9 . _ -"),
    (["gateway", "--state", "/proc/nowhere"], "another with --state"),
]
AWAY = [     ("tcp://127.0.0.1:99999", [], 1, "1 to 65535"),
    ("tcp://127.0.0.1", [], 1, "tcp://HOST:PORT"),
 # endpoint, options, exit code, words
    ("http://x", [], 1, "looks like ipc:///"),
    ("/tmp/x.sock", [], 1, "looks like ipc:///"),
    ("ipc://" + "/x" * 80, [], 1, "too long"),
    ("tcp://127.0.0.1:1", [], 1, "silt key server"),
    ("tcp://127.0.0.1:1", ["--server-key", "abc"], 1, "40 characters"),
    ("tcp://127.0.0.1:1", ["--server-key", KEY, "--client-key", "absent"], 1, "silt key new"),
    ("tcp://127.0.0.1:1", ["--server-key", KEY, "--client-key", "open-key"], 1, "chmod 600"),
    ("tcp://127.0.0.1:1", ["--server-key", KEY, "--client-key", "t"], 1, "chmod 600"),
    ("ipc:///tmp/no-such.sock", [], 3, "siltd --listen"),
]
DAEMON = [
    (["--bogus"], 2, "siltd --help"),
    (["--memory", "lots"], 2, "512M or 2G"),
    (["--memory", "10M"], 1, "lower --"),
    (["--streams-max", "0"], 2, "from 1"),
    (["--disk", "1Q"], 2, "512M or 2G"),
    (["--when-full", "panic"], 2, "stop nor trim"),
    (["--device", "tpu"], 2, "cpu nor cuda"),
    (["--device-weights", "int4"], 2, "bf16 nor file"),
    (["--model", "absent"], 1, "`make model`"),
    (["--model", "t"], 1, "GGUF"),
    (["--model", lib.BUILD / "tests/tiny/tiny-adapter.gguf"], 1, "name it with --adapter"),
    (["--adapter", "absent"], 1, "--adapter none"),
    (["--data", "/proc/x"], 1, "another folder"),
    (["--config", "absent"], 2, "No such file"),
    (["--config", "wrong.conf"], 2, "memry"),
    # Of a variable that is not set: an empty --data was the root folder.
    (["--data", ""], 2, "--data needs a value"),
    (["--model="], 2, "--model needs a value"),
    (["--adapter", ""], 2, "--adapter needs a value"),
    (["--config", "empty.conf"], 2, "empty.conf line 1: --data needs a value"),
    (["--listen", "tcp://127.0.0.1:99999"], 2, "up to 65535"),
    (["--listen", "tcp://localhost"], 2, "tcp://ADDRESS:PORT"),
]


def check(done, code, words, args):
    said = done.stderr.decode()
    assert done.returncode == code and words in said, \
        f"{args}: exit code {done.returncode}, not {code}; {words!r} not in\n{said}"
    assert not done.stdout, (args, done.stdout)


def silt(home, *args, **more):
    return subprocess.run([lib.SILT, *args], cwd=home, stdin=subprocess.DEVNULL,
                          capture_output=True, check=False, timeout=60 * lib.SLOW, **more)


def fill(home):
    (home / "t").write_bytes(texts.text(9000))
    (home / "folder").mkdir()
    (home / "notes.vtt").write_text("no captions in here\n")
    (home / "wrong.conf").write_text("memry = 1G\n")
    (home / "empty.conf").write_text("data =\n")
    silt(home, "key", "new", "open-key")
    for name in ("open-key", "t"):
        (home / name).chmod(0o644)


def test_every_command():
    with lib.Daemon(*lib.tiny(), args=("--pin-tokens-max", "64")) as daemon:
        fill(daemon.home)
        lib.silt(daemon.endpoint, "feed", "s", daemon.home / "t", "--wait")
        for code, cases in ((2, USAGE), (1, REFUSED)):
            for args, words in cases:
                done = silt(daemon.home, "-c", daemon.endpoint, *args)
                check(done, code, words, args)
                assert code == 1 or b"--help" in done.stderr, (args, done.stderr)
        done = silt(daemon.home, "-c", daemon.endpoint, "feed", "talk", "--format", "vtt",
                    "notes.vtt")
        assert done.returncode == 1 and b"is --format right?" in done.stderr, done.stderr
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = silt(daemon.home, "-c", daemon.endpoint, "gateway", "--listen",
                        f"127.0.0.1:{taken.getsockname()[1]}")
            assert done.returncode == 1 and b"in use; name another" in done.stderr, done.stderr
        for args in (["ls"], ["stat", "s"], ["stat", "s", "--json"], ["ask", "s", "Why?"]):
            with open("/dev/full", "wb") as full:
                done = subprocess.run([lib.SILT, "-c", daemon.endpoint, *args], stdout=full,
                                      stderr=subprocess.PIPE, check=False)
            assert done.returncode == 1 and b"cannot write" in done.stderr, (args, done.stderr)
            reader, writer = os.pipe()
            os.close(reader)  # as `head` does when it has seen enough
            done = subprocess.run([lib.SILT, "-c", daemon.endpoint, *args], stdout=writer,
                                  stderr=subprocess.PIPE, check=False)
            os.close(writer)
            assert done.returncode == -signal.SIGPIPE and not done.stderr, (args, done)


def test_no_siltd_and_wrong_keys():
    home = lib.folder()
    fill(home)
    for endpoint, options, code, words in AWAY:
        check(silt(home, "-c", endpoint, *options, "ls"), code, words, [endpoint, *options])
    config = home / "config/silt"
    config.mkdir(parents=True)
    (config / "client.conf").write_text("endpont = x\n")
    check(silt(home, "ls", env={**os.environ, "XDG_CONFIG_HOME": str(home / "config")}), 1,
          "client.conf line 1", "a configuration")


def test_another_users_socket():
    if os.getuid() != 0:
        raise lib.Skip("needs root, to become another user")
    with lib.Daemon(*lib.tiny()) as daemon:
        daemon.home.chmod(0o755)
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        start = time.monotonic()
        check(silt("/", "-c", daemon.endpoint, "ls", **nobody), 3, "another user's", "ls as nobody")
        assert time.monotonic() - start < 4 * lib.SLOW  # to wait would mend nothing
        check(silt("/", "key", "new", env={"HOME": "/none"}, **nobody), 1, "silt key new FILE",
              "a home that is not there")


THIEF = """
import os, sys, zmq
os.umask(0)
os.mkdir(os.path.dirname(sys.argv[1]), 0o777)
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind("ipc://" + sys.argv[1])
print("ready", flush=True)
print(socket.recv_multipart(), flush=True)
"""


def test_another_user_in_our_place():
    """Who was quicker to make this user's folder in /tmp gets nothing of what is fed."""
    if os.getuid() != 0:
        raise lib.Skip("needs root, to become other users")
    place = pathlib.Path("/tmp/silt-65533")
    python = {"HOME": "/", "PYTHONPATH": str(lib.ROOT / "clients/python")}
    victim = {"user": 65533, "group": 65533, "extra_groups": []}
    try:
        thief = lib.spawn(sys.executable, "-c", THIEF, place / "silt.sock", user=65534,
                          group=65534, extra_groups=[], stdout=subprocess.PIPE)
        said = lib.Listener(thief.stdout)
        said.wait(b"ready")
        check(silt("/", "open", "secret", env=python, **victim), 1, "another user", "open")
        done = subprocess.run([sys.executable, "-c", "import silt; silt.Client().open('secret')"],
                              capture_output=True, env=python, timeout=60 * lib.SLOW, check=False,
                              **victim)
        assert b"another user" in done.stderr, done.stderr
        lib.reap(thief)
        assert said.all() == b"ready\n", said.said
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_siltd():
    home = lib.folder()
    fill(home)
    model, adapter = lib.tiny()
    for args, code, words in DAEMON:
        done = subprocess.run([lib.SILTD, "--listen", f"ipc://{home}/s", "--data", home / "data",
                               "--model", model, "--adapter", adapter, *args], cwd=home,
                              capture_output=True, check=False, timeout=30 * lib.SLOW)
        check(done, code, words, args)
    with lib.Daemon(model, adapter) as daemon:
        for more, words in ((["--data", home / "data"], "another siltd listens there"),
                            (["--listen", f"ipc://{home}/s"], "in use by another siltd")):
            done = subprocess.run([lib.SILTD, "--listen", daemon.endpoint, "--data", daemon.data,
                                   "--model", model, "--adapter", adapter, *more],
                                  capture_output=True, check=False, timeout=30 * lib.SLOW)
            assert done.returncode == 1 and words in done.stderr.decode(), done.stderr


if __name__ == "__main__":
    lib.main(globals())
