"""Two machines: siltd on one, silt on the other, and nothing but a wire between them. Each is a
network namespace, the second with a file system that lacks siltd's folder; every byte on the wire
is kept. As root, or as anybody whom the kernel lets have namespaces."""

import json
import os
import pathlib
import subprocess
import sys
import time

import lib

sys.path.append(str(lib.ROOT / "soak"))
import rig

SERVER, CLIENT, PORT = "10.77.0.1", "10.77.0.2", 8178
WIRE = "wire0"
SECRET = "the vault opens at 0419 with the word heliotrope. "

# Keeps every frame that passes the wire's end in a file; says so once it listens.
TAP = """
import socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
tap.bind((sys.argv[1], 0))
print("listens", flush=True)
with open(sys.argv[2], "ab", 0) as seen:
    while True:
        seen.write(tap.recv(1 << 17))
"""


class Machine:
    """A network namespace and a mount namespace, held by a process that sleeps."""

    def __init__(self, enter):
        """enter: what comes before a command to make the namespaces, or to be in the first."""
        hold = [*enter, "unshare", "--net", "--mount", "sh", "-c", "echo $$; exec sleep 1000000"]
        if not enter and os.getuid():
            hold[1:1] = ["--user", "--map-root-user"]
        self.process = lib.spawn(*hold, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if not self.process.stdout.readline():
            raise lib.Skip("no namespaces here: " + self.process.stderr.read().decode().strip())
        user = ["--user", "--preserve-credentials"] if os.getuid() else []
        self.enter = ["nsenter", "-t", str(self.process.pid), *user, "--net", "--mount", "--"]

    def run(self, *command, code=0, stdin=b"", home=None):
        env = {name: text for name, text in os.environ.items() if not name.startswith("SILT_")}
        done = subprocess.run([*self.enter, *map(str, command)], input=stdin, capture_output=True,
                              env={**env, **({"XDG_CONFIG_HOME": str(home)} if home else {})},
                              timeout=100 * lib.SLOW, check=False)
        result = lib.Result(done)
        assert code is None or result.code == code, (command, result.code, result.text())
        return result

    def wire(self, address):
        for command in (["addr", "add", f"{address}/24", "dev", WIRE], ["link", "set", "lo", "up"],
                        ["link", "set", WIRE, "up"]):
            self.run("ip", *command)

    def link(self, state):
        self.run("ip", "link", "set", WIRE, state)


class Pair:
    """Both machines, the wire, and what passed on it."""

    def __init__(self):
        self.server = Machine([])
        self.client = Machine(self.server.enter)
        made = self.server.run("ip", "link", "add", WIRE, "type", "veth", "peer", "name", WIRE,
                               "netns", self.client.process.pid, code=None)
        if made.code:
            raise lib.Skip("no wire between namespaces: " + made.text().strip())
        self.server.wire(SERVER)
        self.client.wire(CLIENT)
        self.seen_path = lib.folder() / "wire"
        tap = lib.spawn(*self.server.enter, sys.executable, "-c", TAP, WIRE, self.seen_path,
                        stdout=subprocess.PIPE)
        assert tap.stdout.readline() == b"listens\n"
        self.homes = lib.folder()

    def seen(self):
        return self.seen_path.read_bytes()

    def silt(self, name, *args, code=0, stdin=b""):
        """The command on the client's machine, as a user with a configuration of that name."""
        return self.client.run(lib.SILT, *args, code=code, stdin=stdin, home=self.homes / name)


class Siltd(lib.Daemon):
    """siltd on the first machine; its folder cannot be seen on the second."""

    def __init__(self, pair):
        self.machine = pair.server
        super().__init__(*lib.tiny(), ["--listen", f"tcp://{SERVER}:{PORT}"])
        pair.client.run("mount", "-t", "tmpfs", "none", self.home)
        pair.client.run("test", "!", "-e", self.log_path)
        self.remote = ["-c", f"tcp://{SERVER}:{PORT}", "--server-key", self.key("server").strip()]

    def start(self, ready=True):
        if self.process is None:
            self.command = [*self.machine.enter, *self.command]
        super().start(ready)

    def key(self, *args):
        return lib.silt(self.endpoint, "key", *args).out.decode()


def new_key(pair, name):
    return pair.silt(name, "key", "new").out.decode().strip()


def test_only_keys_and_only_their_streams():
    pair = Pair()
    (pair.homes / "own").mkdir()
    (pair.homes / "other").mkdir()
    with Siltd(pair) as siltd:
        own, other = new_key(pair, "own"), new_key(pair, "other")
        siltd.key("allow", own, "heliotrope-log", "app")
        siltd.key("allow", other, "elsewhere")
        text = (SECRET * 400).encode()
        pair.silt("own", *siltd.remote, "feed", "heliotrope-log", "--wait", stdin=text)
        answer = json.loads(pair.silt("own", *siltd.remote, "ask", "heliotrope-log", "--json",
                                      "Which word opens the vault?", "--tokens", 20).out)
        assert pair.silt("own", *siltd.remote, "ls", "-q").out == b"heliotrope-log\n"
        assert json.loads(pair.silt("own", *siltd.remote, "stat", "heliotrope-log", "--json").out)[
            "bytes_text"] == len(text)
        # Nobody else's: no key, a key nobody allowed, one that is allowed another stream.
        refused = pair.silt("none", *siltd.remote, "ls", code=1).text()
        assert "silt key new" in refused, refused
        (pair.homes / "stranger").mkdir()
        stranger = new_key(pair, "stranger")
        refused = pair.silt("stranger", *siltd.remote, "ls", code=1).text()
        assert f"silt key allow '{stranger}'" in refused, refused
        for command in (["stat", "heliotrope-log"], ["ask", "heliotrope-log", "Which word?"],
                        ["feed", "heliotrope-log"], ["rm", "heliotrope-log"]):
            refused = pair.silt("other", *siltd.remote, *command, code=1, stdin=b"x").text()
            assert "may not use 'heliotrope-log'" in refused, refused
            assert "0419" not in refused
        assert pair.silt("other", *siltd.remote, "ls", "-q").out == b""
        # What all of them said passed the wire, and none of it can be read there.
        lib.wait_until("all has passed", lambda: len(pair.seen()) > len(text))
        seen = pair.seen()
        for piece in (b"heliotrope", b"0419", b"the vault", b"Which word", b"elsewhere",
                      b"may not use", own.encode(), *answer["answer"].encode().split()):
            assert len(piece) < 6 or piece not in seen, piece
        # The tap does see what is not encrypted: the test can fail.
        plain = lib.spawn(*pair.server.enter, sys.executable, "-c", "import socket; "
                          f"s = socket.create_server(('{SERVER}', 9000)); print(flush=True); "
                          "s.accept()[0].recv(99)", stdout=subprocess.PIPE)
        plain.stdout.readline()
        pair.client.run(sys.executable, "-c", "import socket, sys; socket.create_connection("
                        f"('{SERVER}', 9000)).send(sys.argv[1].encode())", SECRET)
        lib.wait_until("the tap sees", lambda: b"heliotrope" in pair.seen())


def test_wire_cut_and_siltd_killed():
    """A remote feed goes on by itself, and nothing is lost or there twice."""
    pair = Pair()
    (pair.homes / "own").mkdir()
    with Siltd(pair) as siltd:
        siltd.key("allow", new_key(pair, "own"), "log")
        pair.silt("own", *siltd.remote, "open", "log")
        feed = lib.spawn(*pair.client.enter, lib.SILT, *siltd.remote, "feed", "log", "-q",
                         stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                         env={**os.environ, "XDG_CONFIG_HOME": str(pair.homes / "own")})
        fed = bytearray()

        def write(lines):
            for _ in range(lines):
                line = b"line %06d of a log that is written on another machine\n" % len(fed)
                feed.stdin.write(line)
                fed.extend(line)
            feed.stdin.flush()

        def acked():
            return lib.stat(siltd.endpoint, "log")["bytes_text"] == len(fed)

        write(300)
        lib.wait_until("all is acked", acked)
        pair.client.link("down")
        write(300)
        time.sleep(2)
        assert not acked()
        pair.client.link("up")
        lib.wait_until("all is acked behind the cut", acked, 60)
        write(300)
        siltd.kill()
        write(300)
        siltd.start()
        lib.wait_until("all is acked behind the kill", acked, 60)
        write(300)
        feed.stdin.close()
        assert lib.ends(feed, 60) == 0, feed.stderr.read()
        siltd.stop()
        assert dict(rig.journal_texts(pathlib.Path(siltd.data)))["log"] == bytes(fed)


if __name__ == "__main__":
    lib.main(globals())
