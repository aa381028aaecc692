"""silt top on a terminal: what is on its screen."""

import os
import pty
import re
import select
import time

import lib
import texts


class Screen:
    """The cells that an xterm shows after the bytes that silt top sends, wraps and all."""

    SEQUENCE = re.compile(r"\x1b\[[?]?([0-9;]*)([a-zA-Z@])|\x1b[()].|\x1b[=>78]|(.)", re.DOTALL)

    def __init__(self, columns, lines=30):
        self.columns, self.lines = columns, lines
        self.cells = [[" "] * columns for _ in range(lines)]
        self.x = self.y = 0
        self.last, self.wrapped, self.left = " ", False, ""

    def put(self, char):
        if self.x == self.columns:
            self.x, self.y, self.wrapped = 0, min(self.y + 1, self.lines - 1), True
        self.cells[self.y][self.x] = self.last = char
        self.x += 1

    def erase(self, start, end):
        for at in range(start, min(end, self.columns * self.lines)):
            self.cells[at // self.columns][at % self.columns] = " "

    def control(self, final, given):
        first = given[0] if given else 0
        at = self.y * self.columns + min(self.x, self.columns - 1)
        line = self.y * self.columns
        if final in "Hf":
            self.y, self.x = max(first, 1) - 1, max(given[1] if len(given) > 1 else 1, 1) - 1
        elif final in "Gd":
            setattr(self, "x" if final == "G" else "y", max(first, 1) - 1)
        elif final in "ABCD":
            step = max(first, 1) * (-1 if final in "AD" else 1)
            setattr(self, "y" if final in "AB" else "x",
                    (self.y if final in "AB" else self.x) + step)
        elif final == "K":
            self.erase(line if first else at, at + 1 if first == 1 else line + self.columns)
        elif final == "J":
            self.erase(0 if first else at, at if first == 1 else self.columns * self.lines)
        elif final == "X":
            self.erase(at, at + max(first, 1))
        elif final == "P":
            row = self.cells[self.y]
            row[self.x:] = row[self.x + max(first, 1):] + [" "] * max(first, 1)
        elif final == "@":
            row = self.cells[self.y]
            row[self.x:] = ([" "] * max(first, 1) + row[self.x:])[:self.columns - self.x]
        elif final == "b":
            for _ in range(max(first, 1)):
                self.put(self.last)
        else:
            assert final in "mrhlt", f"a sequence this screen does not know: {final}"

    def feed(self, text):
        text = self.left + text
        cut = text.rfind("\x1b", len(text) - 12 if len(text) > 12 else 0)
        if cut >= 0 and not self.SEQUENCE.fullmatch(text, cut) and \
                not re.match(r"\x1b(\[[?]?[0-9;]*[a-zA-Z@]|[()].|[=>78])", text[cut:]):
            text, self.left = text[:cut], text[cut:]
        else:
            self.left = ""
        for numbers, final, char in self.SEQUENCE.findall(text):
            if final:
                self.control(final, [int(n or 0) for n in numbers.split(";")])
            elif char == "\r":
                self.x = 0
            elif char == "\n":
                self.y = min(self.y + 1, self.lines - 1)
            elif char == "\b":
                self.x = max(self.x - 1, 0)
            elif char >= " ":
                self.put(char)

    def rows(self):
        return ["".join(row).rstrip() for row in self.cells]

    def text(self):
        return "\n".join(self.rows())


class Terminal:
    """A silt top in a terminal."""

    def __init__(self, endpoint, *args, columns=120):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", LANG="C.UTF-8", COLUMNS=str(columns),
                              LINES="30")
            os.execv(lib.SILT, ["silt", "-c", endpoint, "top", "--delay", "0.2", *args])
        self.screen = Screen(columns)

    def wait(self, text, seconds=20):
        """Until the text is on a screen that was drawn to its end, and returns its rows."""
        end = time.monotonic() + seconds * lib.SLOW
        drawing = True
        while drawing or text not in self.screen.text():
            assert time.monotonic() < end, f"no {text!r} on\n{self.screen.text()}"
            drawing = bool(select.select([self.fd], [], [], 0.05)[0])
            if not drawing:
                continue
            try:
                self.screen.feed(os.read(self.fd, 65536).decode(errors="replace"))
            except OSError:  # it has ended
                drawing = False
        return self.screen.rows()

    def key(self, key):
        os.write(self.fd, key)

    def end(self):
        assert not self.screen.wrapped
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
        top.wait("*stream")
        top.key(b"\n")
        top.wait("summary")
        top.key(b"\x7f")
        top.wait("*stream")
        top.key(b"s")
        top.wait("*tokens")
        daemon.kill()
        top.wait("went away")
        daemon.start()
        top.key(b"\n")
        top.wait("hash")
        assert top.end() == 0
        top = Terminal(daemon.endpoint, "beta")
        top.wait("window")
        assert top.end() == 0


def test_every_width():
    """What matters most is there at 80 columns, all of it at 200; nothing ever wraps."""
    most = ["stream", "tokens", "rate/s", "lag", "ratio", "memory", "loss"]
    rest = ["disk", "plan", "cold", "pinned"]
    with lib.Daemon(*lib.tiny(), args=("--pin-tokens-max", "64")) as daemon:
        long = "a-name-as-long-as-" + "a-name-can-be-" * 7
        for name in ("log", long):
            path = daemon.home / f"{name[:20]}.txt"
            path.write_bytes(texts.text(9000))
            lib.silt(daemon.endpoint, "feed", name, path, "--wait")
        lib.silt(daemon.endpoint, "pin", "log", "--from", "3", "--to", "45")
        for columns, heads in ((40, most[:2]), (80, most), (120, most + rest), (200, most + rest)):
            top = Terminal(daemon.endpoint, columns=columns)
            top.wait("\nlog ")
            rows = top.wait(long[:16])
            head = rows[3].replace("*", " ").split()
            assert head[0] == "stream" and set(head) >= set(heads), (columns, head)
            assert columns > 40 or "disk" not in head
            log, other = sorted(rows[4:6], reverse=True)
            assert not rows[6] and log.startswith("log "), rows
            assert len(log) == len(other) == len(rows[3]) < columns, rows
            acked = f"{lib.stat(daemon.endpoint, 'log')['tokens_acked']:,}"
            assert log.index(acked) + len(acked) == rows[3].index("tokens") + len("tokens")
            if "pinned" in head:
                assert log[:rows[3].index("pinned") + len("pinned")].endswith(" 42"), rows
            for mark in ("*tokens", "*rate/s", "*lag", "*memory", "*stream"):
                top.key(b"s")
                if mark[1:] in head:
                    top.wait(mark)
            top.key(b"\n")
            rows = top.wait("window")
            assert "memory" in rows[1] and "planned" in rows[1], rows
            top.key(b"\x7f")
            top.wait("*stream")
            assert top.end() == 0
        top = Terminal(daemon.endpoint, "log", columns=80)
        rows = top.wait("pinned tokens 3 to 45")
        for part in ("cold", "sinks", "pins", "summary", "ring", "window"):
            assert part in rows[6], rows
        assert top.end() == 0


def test_no_terminal_no_stream():
    with lib.Daemon(*lib.tiny()) as daemon:
        assert b"needs a terminal" in lib.silt(daemon.endpoint, "top", code=2).err
        top = Terminal(daemon.endpoint, "none")
        top.wait("no stream is called")
        os.waitpid(top.pid, 0)


if __name__ == "__main__":
    lib.main(globals())
