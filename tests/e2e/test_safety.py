"""Who may do what: over the local socket its owner everything, over the network only keys, each
what it was allowed; and whatever a message says, it stays inside the data folder."""

import asyncio
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time

import zmq

import lib
import raw
import texts

pb = raw.pb
SECRET = b"the vault opens at 0419 with the word heliotrope. "
OTHERS = "others"  # a stream that the key under test may not touch
NOWHERE = "nowhere"  # one that does not exist


class Networked(lib.Daemon):
    """A siltd that also listens on a port of this machine."""

    def __init__(self, args=(), data=None):
        super().__init__(*lib.tiny(), ["--listen", "tcp://127.0.0.1:*", *args], data)
        self.local = raw.Raw(self.endpoint)
        reply = self.local.call(keys=pb.Keys())
        self.network, self.key = reply.listen, reply.server_key

    def new_key(self, *streams, all_streams=False):
        """A client's curve, allowed these streams."""
        public, secret = zmq.curve_keypair()
        for stream in streams:
            self.allow(public, stream=stream)
        if all_streams:
            self.allow(public, all=True)
        return self.key.encode(), public, secret

    def allow(self, public, **what):
        self.local.call(keys=pb.Keys(verb=pb.Keys.ALLOW, key=public.decode(), name="n", **what))

    def deny(self, public, **what):
        self.local.call(keys=pb.Keys(verb=pb.Keys.DENY, key=public.decode(), **what))


def environment(home, **more):
    """The environment without what would name a siltd."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SILT_")}
    return {**kept, "XDG_CONFIG_HOME": str(home), **more}


def run(command, code=0, **environ):
    done = subprocess.run([str(word) for word in command], env=environ, capture_output=True,
                          timeout=60 * lib.SLOW, check=False)
    assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
    return (done.stdout + done.stderr).decode()


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_are_their_users_alone():
    os.umask(0o022)
    with Networked() as siltd:
        siltd.local.open("s")
        siltd.local.feed_all("s", "p", [texts.text(60000)])
        siltd.local.settled("s")
        assert mode(siltd.home / "s") == 0o600
        public = siltd.new_key("s")[1].decode()
        for path in [siltd.data, *siltd.data.rglob("*")]:
            assert mode(path) == (0o700 if path.is_dir() else 0o600), (path, oct(mode(path)))
        before = siltd.key
        siltd.stop()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        reply = wire.call(keys=pb.Keys())
        assert reply.server_key == before and [g.key for g in reply.grants] == [public]
        siltd.stop()
        # A key file that others can read, or a list that cannot be understood, is no start.
        for name, change, says in (("server", lambda p: p.chmod(0o640), "chmod 600"),
                                   ("clients", lambda p: p.write_text("anyone\n"), "line 1")):
            path = siltd.data / "keys" / name
            kept = path.read_text()
            change(path)
            siltd.start(ready=False)
            assert lib.ends(siltd.process) == 1
            assert says in siltd.log_text().splitlines()[-1], siltd.log_text()
            path.write_text(kept)
            path.chmod(0o600)


def test_listens_to_nothing_else():
    for endpoint in ("udp://127.0.0.1:1", "inproc://x", "ws://127.0.0.1:1", "127.0.0.1:1"):
        done = subprocess.run([lib.SILTD, "--listen", endpoint, "--data", lib.folder()],
                              capture_output=True, timeout=60 * lib.SLOW, check=False)
        assert done.returncode == 1 and b"tcp://ADDRESS:PORT" in done.stderr, done
    done = subprocess.run([lib.SILT, "-c", "tcp://127.0.0.1:1", "ls"], capture_output=True,
                          env=environment(lib.folder()), check=False)
    assert done.returncode == 1 and b"silt key server" in done.stderr, done


def test_without_the_key_nothing_is_read():
    with Networked() as siltd:
        siltd.local.open(OTHERS)
        siltd.local.feed_all(OTHERS, "p", [SECRET * 40])
        good = siltd.new_key(OTHERS)
        public, secret = zmq.curve_keypair()
        strange = zmq.curve_keypair()[0]
        assert raw.Raw(siltd.network, good).stat(OTHERS).bytes_text == 40 * len(SECRET)
        for curve in (None,                          # no CURVE at all
                      (good[0], public, secret),     # a key that nobody allowed
                      (strange, good[1], good[2]),   # not this server's
                      (good[0], good[1], secret)):   # an allowed key without its secret half
            wire = raw.Raw(siltd.network, curve)
            for body in ({"stat": pb.Stat(stream=OTHERS)}, {"list": pb.List()},
                         {"ask": pb.Ask(stream=OTHERS, question="What is the word?")}):
                wire.send(**body)
            assert wire.hears_nothing(), curve
            wire.close()
        # Nor by bytes that are no ZeroMQ, and siltd is still there.
        address, port = re.fullmatch(r"tcp://(.*):(\d+)", siltd.network).groups()
        for junk in (b"GET /v1/models HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f", bytes(500)):
            with socket.create_connection((address, int(port)), 10) as plain:
                plain.sendall(junk)
                plain.settimeout(1)
                try:
                    assert SECRET[:9] not in plain.recv(4096)
                except (TimeoutError, ConnectionError):
                    pass
        # Nor under a routing id of one's own, behind which another's replies could be caught.
        named = raw.Raw(siltd.network, good, b"\x00me")
        named.send(stat=pb.Stat(stream=OTHERS))
        assert named.hears_nothing()
        assert raw.Raw(siltd.network, good).stat(OTHERS).tokens_acked
        assert "is not allowed" in siltd.log_text()


class Tap(threading.Thread):
    """Stands between client and siltd and keeps every byte that goes either way."""

    def __init__(self, to):
        super().__init__(daemon=True)
        self.to = to
        self.seen = bytearray()
        self.cut = False  # nothing comes through any more, and nobody is told
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self):
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(self.to)
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self.pump, args=(a, b), daemon=True).start()

    def pump(self, come, go):
        while True:
            try:
                data = come.recv(65536)
                self.seen += data
                if self.cut:
                    continue
                go.sendall(data)
            except OSError:
                return
            if not data:
                go.close()
                return


def test_no_text_on_the_wire():
    with Networked() as siltd:
        address, port = re.fullmatch(r"tcp://(.*):(\d+)", siltd.network).groups()
        tap = Tap((address, int(port)))
        wire = raw.Raw(tap.endpoint, siltd.new_key("heliotrope-stream"))
        wire.open("heliotrope-stream")
        wire.feed_all("heliotrope-stream", "producer-of-secrets", [SECRET * 100])
        answer = wire.ask("heliotrope-stream", "Which word opens the vault?", tokens_max=30)[0]
        wire.stat("heliotrope-stream")
        wire.close()
        assert len(tap.seen) > 100 * len(SECRET)
        for piece in (SECRET[:8], b"heliotrope", b"producer-of", b"Which word",
                      siltd.local.stat("heliotrope-stream").stream.encode(), *answer.split()[:3]):
            assert len(piece) < 6 or piece not in tap.seen, piece
        # The tap does see text where there is no CURVE: the test can fail.
        context = zmq.Context()
        plain = context.socket(zmq.ROUTER)
        tap = Tap(("127.0.0.1", plain.bind_to_random_port("tcp://127.0.0.1")))
        open_wire = raw.Raw(tap.endpoint)
        open_wire.send(stat=pb.Stat(stream="heliotrope-stream"))
        lib.wait_until("the tap sees", lambda: b"heliotrope" in tap.seen)
        open_wire.close()
        context.destroy(0)


def test_who_vanishes_without_a_word_is_cut():
    with Networked(["--clients-max", 5]) as siltd:  # two of them for a key
        address, port = re.fullmatch(r"tcp://(.*):(\d+)", siltd.network).groups()
        key, tap = siltd.new_key("s"), Tap((address, int(port)))
        gone, idle = raw.Raw(tap.endpoint, key), raw.Raw(siltd.network, key)
        gone.open("s")
        before = idle.stat("s").stream
        cut = idle.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        late = raw.Raw(siltd.network, key)
        raw.refused(pb.Error.BUSY, "--clients-max", late.call, stat=pb.Stat(stream="s"))
        tap.cut = True
        gone.send(stat=pb.Stat(stream="s"))

        def admitted():
            try:
                return late.stat("s").stream == before
            except raw.Refused:
                return False

        start = time.monotonic()
        lib.wait_until("its place is free", admitted, 90)
        print(f"its place was free after {time.monotonic() - start:.1f} s")
        assert not cut.poll(0), "who has nothing to say is not cut"
        assert idle.stat("s").stream == before
        idle.socket.disable_monitor()
        cut.close()


class FewFiles(Networked):
    """A siltd that may have 300 files open."""

    def start(self, ready=True):
        self.command = ["bash", "-c", 'ulimit -n 300 && exec "$@"', "-", *self.command]
        super().start(ready)


def test_connections_leave_files():
    """Somebody without a key makes more than there may be files, and libzmq ends a process that has
    none for a local client."""
    with FewFiles() as siltd:
        address, port = re.fullmatch(r"tcp://(.*):(\d+)", siltd.network).groups()
        crowd = []
        for _ in range(600):
            crowd.append(socket.create_connection((address, int(port))))
        lib.wait_until("it is said", lambda: "files are short" in siltd.log_text())
        lib.silt(siltd.endpoint, "ls")
        assert siltd.local.open("s").created
        for link in crowd:
            link.close()


def requests_of(stream, own):
    """Every request there is, with the stream wherever it names one."""
    return {
        "open": [pb.Open(stream=stream)],
        "attach": [pb.Attach(stream=stream, producer="p")],
        "feed": [raw.feed(stream, "p", 1, b"x")],
        "ask": [pb.Ask(stream=stream, question="x"),
                pb.Ask(stream=stream, question="x", at_position=1, at_given=True)],
        "stat": [pb.Stat(stream=stream), pb.Stat()],
        "remove": [pb.Remove(stream=stream)],
        "forget": [pb.Forget(stream=stream, to=1)],
        "fork": [pb.Fork(stream=stream, branch=own), pb.Fork(stream=own, branch=stream)],
        "pins": [pb.Pins(stream=stream, verb=verb, to=4) for verb in (0, 1, 2)],
        "keys": [pb.Keys(), pb.Keys(verb=pb.Keys.ALLOW, key=zmq.curve_keypair()[0].decode(),
                                    name="n", stream=stream)],
        "cancel": [],  # of one's own questions: below
        "list": [],
    }


def test_one_key_cannot_reach_anothers_streams():
    with Networked() as siltd:
        siltd.local.open(OTHERS)
        siltd.local.feed_all(OTHERS, "p", [SECRET * 20])
        siltd.local.settled(OTHERS)
        before = siltd.local.stat(OTHERS)
        wire = raw.Raw(siltd.network, siltd.new_key("own", "own-2"))
        wire.open("own")
        all_requests = requests_of(OTHERS, "own")
        known = {field.name for field in pb.Request.DESCRIPTOR.oneofs_by_name["body"].fields}
        assert set(all_requests) == known, "a request that this test does not try"
        for kind, bodies in all_requests.items():
            for body, ghost in zip(bodies, requests_of(NOWHERE, "own")[kind]):
                said = []
                for one in (body, ghost):
                    try:
                        wire.call(**{kind: one})
                    except raw.Refused as error:
                        unknown = error.code == pb.Error.UNSUPPORTED and "not know" in str(error)
                        assert error.code == pb.Error.DENIED or unknown, (kind, error)
                        said.append(str(error))
                    else:
                        raise AssertionError(f"{kind} was answered: {one}")
                # Whether the stream exists cannot be told from the answer.
                assert said[0].replace(OTHERS, NOWHERE) == said[1], said
        assert [s.stream for s in wire.call(list=pb.List()).streams] == ["own"]
        assert [s.stream for s in wire.call(list=pb.List(after="a")).streams] == ["own"]
        after = siltd.local.stat(OTHERS)
        assert (after.memory_hash, after.tokens_acked) == (before.memory_hash, before.tokens_acked)
        # Another's question is not one's to cancel, even by its number.
        asked = siltd.local.send(ask=pb.Ask(stream=OTHERS, question="x", tokens_max=40))
        raw.refused(pb.Error.NOT_FOUND, "of this client", wire.call,
                    cancel=pb.Cancel(ask_id=asked))
        while siltd.local.reply().WhichOneof("body") != "done":
            pass
        # What it may, it can.
        wire.feed_all("own", "p", [texts.text(4000)])
        assert wire.settled("own").tokens_acked
        wire.ask("own", "x", tokens_max=3)
        assert raw.Raw(siltd.network, siltd.new_key(all_streams=True)).stat("own").tokens_acked


def test_denied_is_at_once():
    with Networked() as siltd:
        curve = siltd.new_key("a", "b")
        wire = raw.Raw(siltd.network, curve)
        for stream in "ab":
            wire.open(stream)
            wire.feed_all(stream, "p", [texts.text(3000)])
            wire.settled(stream)
        asked = wire.send(ask=pb.Ask(stream="a", question="x", tokens_max=2000))
        assert wire.reply().WhichOneof("body") == "token"
        siltd.deny(curve[1], stream="a")
        lib.wait_until("the question ends",
                       lambda: siltd.local.call(stat=pb.Stat()).process.forks == 0)
        raw.quiet(wire)
        raw.refused(pb.Error.DENIED, "may not use 'a'", wire.stat, "a")
        assert wire.stat("b").tokens_acked and asked
        siltd.deny(curve[1], all=True)
        raw.refused(pb.Error.DENIED, "may not use 'b'", wire.stat, "b")
        late = raw.Raw(siltd.network, curve)
        late.send(stat=pb.Stat(stream="b"))
        assert late.hears_nothing()
        raw.refused(pb.Error.NOT_FOUND, "not allowed that", siltd.deny, curve[1], all=True)


def test_limits_of_a_key():
    with Networked(["--forks-max", "4"]) as siltd:
        curve = siltd.new_key("a")
        wires = [raw.Raw(siltd.network, curve) for _ in range(3)]
        wires[0].open("a")
        wires[0].feed_all("a", "p", [texts.text(2000)])

        def full():
            """Both places are taken when the third asks: an answer may have ended before."""
            for wire in wires[:2]:
                wire.send(ask=pb.Ask(stream="a", question="x", tokens_max=2000))
                wire.socket.poll(10000 * lib.SLOW)
            try:
                wires[2].ask("a", "x", tokens_max=1)
            except raw.Refused as error:
                assert error.code == pb.Error.BUSY and "one key may" in str(error), error
                return True
            return False

        lib.wait_until("a key's places are taken", full)
        siltd.local.ask("a", "x", tokens_max=2)  # the others' places are theirs


def test_places_of_a_key():
    """However many connections it makes: others have places, and who may deny it above all."""
    with Networked(["--clients-max", 8]) as siltd:
        greedy, other = siltd.new_key("a"), siltd.new_key("b")
        wires = [raw.Raw(siltd.network, greedy) for _ in range(10)]
        for wire in wires[:4]:
            raw.patient(wire.open, "a")
        for wire in wires[4:]:
            raw.refused(pb.Error.BUSY, "half of them", wire.stat, "a")
        more = [raw.Raw(siltd.network, other) for _ in range(3)]
        for wire in more[:2]:
            wire.open("b")
        raw.refused(pb.Error.BUSY, "three quarters", more[2].stat, "b")
        lib.silt(siltd.endpoint, "key", "deny", greedy[1].decode())
        raw.refused(pb.Error.DENIED, "may not use", wires[0].stat, "a")
        assert more[2].stat("b").stream == "b"  # the place of one that is still connected


def fill(message, hostile):
    """Every string and bytes field of a message, and of those inside it, set to a text."""
    for field in message.DESCRIPTOR.fields:
        repeated = field.label == field.LABEL_REPEATED
        if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            value = hostile.encode() if field.type == field.TYPE_BYTES else hostile
            if field.containing_oneof:
                continue
            setattr(message, field.name, value) if not repeated else getattr(
                message, field.name).append(value)
        elif field.type == field.TYPE_MESSAGE and not field.containing_oneof:
            inner = getattr(message, field.name)
            fill(inner.add() if repeated else inner, hostile)


def test_no_field_reaches_a_path():
    marker = "e5cape"
    hostile = [f"../{marker}", f"../../{marker}", f"/tmp/{marker}", f"./{marker}/x", marker,
               f"{marker}\0/../x".replace("\0", "%00"), f"~/{marker}", f"{marker}/../../../x",
               "..", ".", f"keys/../{marker}", f"-{marker}", f"$({marker})", f"{marker}\n"]
    with Networked() as siltd:
        wire = siltd.local
        for text in hostile:
            for field in pb.Request.DESCRIPTOR.oneofs_by_name["body"].fields:
                request = pb.Request(id=1)
                body = getattr(request, field.name)
                body.SetInParent()
                fill(body, text)
                wire.send_bytes(request.SerializeToString())
                # and with a name that is good, so that the other fields are looked at
                if "stream" in {f.name for f in body.DESCRIPTOR.fields}:
                    body.stream = "good"
                    wire.send_bytes(request.SerializeToString())
            raw.quiet(wire, 0.2)
        wire.open("good")
        wire.feed("good", marker, 1, marker.encode() * 3000)
        wire.settled("good")
        siltd.stop()
        names = [p.relative_to(siltd.home) for p in siltd.home.rglob("*")]
        assert not [n for n in names if marker in str(n)], names
        assert not [p for p in (pathlib.Path("/tmp") / marker, pathlib.Path(marker),
                                pathlib.Path.home() / marker) if p.exists()]
        top = {n.parts[0] for n in names}
        assert top <= {"data", "log", "s"}, top
        assert {n.parts[1] for n in names if n.parts[0] == "data" and len(n.parts) > 1} <= {
            "journal.db", "journal.db-wal", "journal.db-shm", "keys", "lock", "search", "segments",
            "checkpoints"}, names


def test_silt_finds_its_keys():
    with Networked() as siltd:
        home = lib.folder()
        env = environment(home)
        public = run([lib.SILT, "key", "new"], **env).splitlines()[0]
        file = home / "silt/client.key"
        assert mode(file) == 0o600 and f"public-key = {public}" in file.read_text()
        assert "exists" in run([lib.SILT, "key", "new"], 1, **env)
        local = [lib.SILT, "-c", siltd.endpoint, "key"]
        assert run([*local, "server"], **env).strip() == siltd.key
        run([*local, "allow", public, "s", "t", "--name", "laptop"], **env)
        grants = json.loads(run([*local, "list", "--json"], **env))["grants"]
        assert grants == [{"key": public, "name": "laptop", "stream": s} for s in "st"]
        flags = [lib.SILT, "-c", siltd.network, "--server-key", siltd.key]
        run([*flags, "open", "s"], **env)
        run([*flags, "--client-key", file, "stat", "s"], **env)
        run([*flags, "stat", "s", "--client-key", home / "none"], 1, **env)
        run([lib.SILT, "stat", "s"], SILT_ENDPOINT=siltd.network, SILT_SERVER_KEY=siltd.key, **env)
        (home / "silt/client.conf").write_text(
            f"# mine\nendpoint = {siltd.network}\nserver-key = {siltd.key}\n"
            f"client-key = {file}\n")
        assert run([lib.SILT, "ls", "-q"], **env).split() == ["s"]
        assert "over its local socket" in run([lib.SILT, "key", "list"], 1, **env)
        (home / "silt/client.conf").write_text("server key = x\n")
        assert "line 1" in run([lib.SILT, "ls"], 1, **env)
        (home / "silt/client.conf").unlink()
        file.chmod(0o644)
        assert "chmod 600" in run([*flags, "ls"], 1, **env)
        file.chmod(0o600)
        wrong = zmq.curve_keypair()[0].decode()
        started = time.monotonic()
        assert "server key" in run([*flags[:3], "--server-key", wrong, "ls"], 3, **env)
        run([*local, "deny", "laptop"], **env)
        assert "does not take" in run([*flags, "ls"], 1, **env)
        assert time.monotonic() - started < 20 * lib.SLOW


def test_keys_by_name():
    with Networked() as siltd:
        home = lib.folder()
        env = environment(home)
        local = [lib.SILT, "-c", siltd.endpoint, "key"]
        # silt's own never begin with a dash, as one of 85 that zmq makes does.
        keys = [run([lib.SILT, "key", "new", home / f"k{i}"], **env).split()[0] for i in range(2)]
        for key in keys:
            run([*local, "allow", key, "s", "--name", "laptop"], **env)
        assert "name of several keys" in run([*local, "deny", "laptop"], 1, **env)
        assert len(json.loads(run([*local, "list", "--json"], **env))["grants"]) == 2
        run([*local, "deny", keys[0]], **env)
        run([*local, "deny", "laptop"], **env)  # there is one of that name now
        dash = "-" + keys[0][1:]
        run([*local, "allow", "--name", "dash", "--", dash, "s"], **env)
        run([*local, "deny", "--", dash], **env)
        assert "neither a public key" in run([*local, "deny", "laptop"], 1, **env)
        assert "a key and streams" in run([*local, "allow", keys[0]], 2, **env)
        # What takes nothing back, as the key has every stream, says so.
        run([*local, "allow", keys[0], "s"], **env)
        run([*local, "allow", keys[0], "--all"], **env)
        for stream in ("s", "t"):
            assert "allowed every stream" in run([*local, "deny", keys[0], stream], 1, **env)
        run([*local, "deny", keys[0], "s", "--all"], 2, **env)
        run([*local, "deny", keys[0]], **env)
        assert "not allowed that" in run([*local, "deny", keys[0], "t"], 1, **env)
        # As many as a page of the plan holds, and no more; one that goes makes room.
        for i in range(1024):
            siltd.allow(keys[0].encode(), stream=f"s{i}")
        raw.refused(pb.Error.NO_SPACE, "at most 1024 grants", siltd.allow, keys[1].encode(),
                    stream="s")
        siltd.allow(keys[0].encode(), stream="s7")  # it is there
        siltd.deny(keys[0].encode(), stream="s7")
        siltd.allow(keys[1].encode(), stream="s")


def test_python_and_gateway_by_key():
    sys.path.insert(0, str(lib.ROOT / "clients/python"))
    import silt
    with Networked() as siltd:
        home = lib.folder()
        env = environment(home)
        public = run([lib.SILT, "key", "new", home / "k"], **env).splitlines()[0]
        keys = {"server_key": siltd.key, "client_key": str(home / "k")}
        os.environ["XDG_CONFIG_HOME"] = str(home)
        with silt.Client(siltd.network, **keys) as client:
            try:
                client.list()
                raise AssertionError("a key that nobody allowed was let in")
            except silt.Denied as error:
                assert public in str(error)
        siltd.allow(public.encode(), all=True)
        with silt.Client(siltd.network, **keys) as client:
            client.open("s")
            with client.feed("s", producer="p") as feed:
                feed.write("text " * 100)
            assert client.process().streams == 1

        async def check():
            async with silt.AsyncClient(siltd.network, **keys) as client:
                return (await client.stat("s")).bytes_text
        assert asyncio.run(check()) == 500
        for bad in ({}, {"server_key": '"' * 40, "client_key": str(home / "k")},
                    {"server_key": siltd.key, "client_key": str(home / "none")}):
            try:
                silt.Client(siltd.network, **bad)
                raise AssertionError(f"no error for {bad}")
            except (silt.Denied, silt.Invalid):
                pass
        if not (lib.BUILD / "silt-gateway").exists() or not shutil.which("curl"):
            return
        where = ["-c", siltd.network, "--server-key", siltd.key, "--client-key", home / "k"]
        serve = ["-l", "127.0.0.1:0", "--state", home / "state"]
        for command in ([lib.BUILD / "silt-gateway", *serve, *where],
                        [lib.SILT, *where, "gateway", *serve]):
            gateway = lib.spawn(*command, stdout=subprocess.PIPE)
            url = gateway.stdout.readline().decode().strip()
            out = subprocess.run(["curl", "-s", url + "metrics"], capture_output=True, check=True)
            assert b"silt_up 1" in out.stdout and b'stream="s"' in out.stdout, out.stdout[:400]
            lib.reap(gateway)


def test_unit_is_confined():
    if not shutil.which("systemd-analyze"):
        raise lib.Skip("no systemd-analyze")
    out = lib.folder() / "siltd.service"
    unit = (lib.ROOT / "daemon/dist/systemd/siltd.service").read_text()
    out.write_text(unit.replace("@PREFIX@", "/usr"))
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(out)],
                          capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for siltd.service: ([0-9.]+)", done.stdout)
    if not found:
        raise lib.Skip("this systemd-analyze rates no unit file")
    print(found.group(0))
    assert float(found.group(1)) <= 2.0, done.stdout


if __name__ == "__main__":
    lib.main(globals())
