"""silt top on a terminal: what is on the screen, by the bytes that put it there."""

import os
import pty
import re
import select
import time

import lib
import texts


class Terminal:
    """A silt top in a terminal of 120 columns."""

    def __init__(self, endpoint, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", LANG="C.UTF-8", COLUMNS="120", LINES="30")
            os.execv(lib.SILT, ["silt", "-c", endpoint, "top", "--delay", "0.2", *args])
        self.seen = ""

    def wait(self, text, seconds=20):
        """Until the text was drawn; what was seen before is forgotten."""
        end = time.monotonic() + seconds * lib.SLOW
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen[-2000:]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                more = os.read(self.fd, 65536).decode(errors="replace")
                self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\([AB0]", " ", more)
        self.seen = ""

    def key(self, key):
        os.write(self.fd, key)

    def end(self):
        self.key(b"q")
        end = time.monotonic() + 20 * lib.SLOW
        while time.monotonic() < end:
            done, code = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(code)
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:
                    pass
        os.kill(self.pid, 9)
        raise AssertionError("q did not end it")


def test_table_and_strip():
    with lib.Daemon(*lib.tiny()) as daemon:
        for name in ("alpha", "beta"):
            path = daemon.home / name
            path.write_bytes(texts.text(6000))
            lib.silt(daemon.endpoint, "feed", name, path, "--wait")
        top = Terminal(daemon.endpoint)
        top.wait("by name")
        top.key(b"\n")
        top.wait("summary")
        top.key(b"\x7f")
        top.wait("by name")
        top.key(b"s")
        top.wait("tokens")
        daemon.kill()
        top.wait("went away")
        daemon.start()
        top.key(b"\n")
        top.wait("hash")
        assert top.end() == 0
        top = Terminal(daemon.endpoint, "beta")
        top.wait("window")
        assert top.end() == 0


def test_no_terminal_no_stream():
    with lib.Daemon(*lib.tiny()) as daemon:
        assert b"needs a terminal" in lib.silt(daemon.endpoint, "top", code=2).err
        top = Terminal(daemon.endpoint, "none")
        top.wait("no stream is called")
        os.waitpid(top.pid, 0)


if __name__ == "__main__":
    lib.main(globals())
