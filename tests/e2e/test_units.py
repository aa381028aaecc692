"""The system call filters of the units: each program at its work, under strace, calls nothing that
its unit would end it for. So the programs are known to live there without systemd as process 1."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

import lib
import texts

UNITS = lib.ROOT / "daemon/dist/systemd"
AS_ROOT = {"fchown"}  # SQLite's, which root alone makes; the units' user is another


def analyze(name):
    done = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", name],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise lib.Skip(f"systemd-analyze knows no filter {name}: {done.stderr.strip()}")
    return [line.strip() for line in done.stdout.splitlines()[1:]]


def calls(name):
    """The system calls of a set, those of sets within it included."""
    if not name.startswith("@"):
        return {name}
    return set().union(*(calls(inner) for inner in analyze(name) if inner and inner[0] != "#"))


def allowed(unit):
    """What the lines SystemCallFilter= of a unit add up to, in their order."""
    result = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", (UNITS / unit).read_text(), re.M):
        named = set().union(*(calls(name) for name in line.lstrip("~").split()))
        result = result - named if line.startswith("~") else result | named
    return result


def called(path):
    return set(re.findall(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?:\(| resumed)", path.read_text(), re.M))


def strace(path):
    for tool in ("strace", "systemd-analyze"):
        if not shutil.which(tool):
            raise lib.Skip(f"no {tool}")
    return ["strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", str(path)]


def check(unit, path):
    seen = called(path)
    assert {"execve", "futex", "openat"} <= seen, seen
    refused = seen - allowed(unit) - AS_ROOT
    assert not refused, f"{unit} has no room for {sorted(refused)}"


def test_units_allow_what_is_called():
    home = lib.folder()
    traces = {name: home / name for name in ("siltd", "feed", "gateway")}
    before = strace(traces["siltd"])

    class Traced(lib.Daemon):
        def start(self, ready=True):
            if self.process is None:
                self.command = [*before, *self.command]
            super().start(ready)

    log = home / "log"
    log.write_bytes(texts.text(20000))
    with Traced(*lib.tiny()) as siltd:
        assert "seccomp is not to be had" not in siltd.log_text()
        feed = lib.spawn(*strace(traces["feed"]), lib.SILT, "-c", siltd.endpoint, "feed", "s",
                         "--quiet", "--follow", log, f"{home}/*.txt")
        lib.wait_until("it is fed", lambda: b"s" in lib.silt(siltd.endpoint, "ls", "-q").out)
        gateway = lib.spawn(*strace(traces["gateway"]), lib.BUILD / "silt-gateway", "-l",
                            "127.0.0.1:0", "--state", home / "state", "-c", siltd.endpoint,
                            stdout=subprocess.PIPE)
        url = gateway.stdout.readline().decode().strip()
        chat = {"model": "silt", "user": "a", "max_tokens": 4,
                "messages": [{"role": "user", "content": "Hello."}]}
        for path, body in (("metrics", None), ("", None), ("v1/models", None),
                           ("v1/chat/completions", json.dumps(chat).encode())):
            urllib.request.urlopen(urllib.request.Request(
                url + path, body, {"Content-Type": "application/json"}), timeout=60 * lib.SLOW)
        log.rename(home / "log.1")
        log.write_bytes(texts.text(5000, 2))
        lib.silt(siltd.endpoint, "ask", "s", "What?", "--wait", "--tokens", 4)
        time.sleep(1)
        for process in (gateway, feed):
            process.terminate()
            lib.ends(process, 30)
        siltd.stop(60)
    assert "seccomp" in called(traces["siltd"]) and "sched_setscheduler" in called(traces["feed"])
    check("siltd.service", traces["siltd"])
    check("silt-feed@.service", traces["feed"])
    check("silt-gateway.service", traces["gateway"])


def test_log_of_the_journal():
    """Where stderr is the journal's, lines have a level and no time; where its name is stale, as
    it is behind a pipe, they are as ever."""
    class Journaled(lib.Daemon):
        def start(self, ready=True):
            self.log_path.touch()
            file = self.log_path.stat()
            self.env = {**os.environ, "JOURNAL_STREAM": f"{file.st_dev}:{file.st_ino + stale}"}
            super().start(ready)

    for stale, start in ((0, "<6>"), (1, "20..-..-..T..:..:..[.]...Z info ")):
        with Journaled(*lib.tiny()) as siltd:
            said = siltd.log_text()
            assert re.search(f"^{start}silt tiny test model.* listening on", said, re.M), said
            siltd.stop()


if __name__ == "__main__":
    lib.main(globals())
