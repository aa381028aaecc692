#!/usr/bin/env python3
"""A change whose reply was lost is asked for again: it is done once, and the answer is the first
one's, whatever siltd and other clients did meanwhile. From C and from Python."""

import contextlib
import json
import select
import socket
import threading

import lib
import texts
from test_python import refused, settled, silt, siltd


class Lossy:
    """A socket before siltd's own. The connection that first sends `marker` ends there: with the
    request (`before`), or with its reply; then `between` runs, and later ones pass."""

    def __init__(self, daemon, name):
        path = daemon.home / name
        self.endpoint = f"ipc://{path}"
        self.behind = daemon.endpoint[len("ipc://"):]
        self.marker = None
        self.losses = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self.run, daemon=True).start()

    def lose(self, marker, between=lambda: None, before=False):
        self.marker, self.between, self.before = marker.encode(), between, before

    def run(self):
        while True:
            near = self.listener.accept()[0]
            with near, socket.socket(socket.AF_UNIX) as far:
                with contextlib.suppress(ConnectionError):
                    far.connect(self.behind)
                    self.carry(near, far)
            if self.marker is None and self.between:
                self.losses += 1
                self.between, between = None, self.between
                between()

    def carry(self, near, far):
        while True:
            for end in select.select([near, far], [], [])[0]:
                data = end.recv(1 << 16)
                if not data:
                    return
                lost = end is near and self.marker and self.marker in data
                if lost:
                    self.marker = None
                if lost and self.before:
                    return
                (far if end is near else near).sendall(data)
                if lost:
                    while b"PONG" in far.recv(1 << 16):  # a heartbeat's; the reply: it is done
                        pass
                    return


class FromC:
    def __init__(self, endpoint):
        self.endpoint = endpoint

    def open(self, stream):
        out = lib.silt(self.endpoint, "open", stream, "--json").out
        return json.loads(out)["created"]

    def remove(self, stream):
        lib.silt(self.endpoint, "rm", stream)

    def fork(self, stream, branch):
        return json.loads(lib.silt(self.endpoint, "fork", stream, branch, "--json").out)["tokens"]

    def forget(self, stream, start, end):
        out = lib.silt(self.endpoint, "forget", stream, "--from", start, "--to", end).text()
        return int(out.split(" has ")[1].replace(",", ""))

    def pin(self, stream, start, end):
        lib.silt(self.endpoint, "pin", stream, "--from", start, "--to", end)

    def unpin(self, stream, start, end):
        lib.silt(self.endpoint, "unpin", stream, "--from", start, "--to", end)

    def key_deny(self, key):
        lib.silt(self.endpoint, "key", "deny", key)

    def exists(self, *args):
        lib.silt(self.endpoint, *args, code=1)


class FromPython(silt.Client):
    def open(self, stream, **more):
        return super().open(stream, **more).created

    def exists(self, *args):
        with refused(silt.Exists, "exists"):
            getattr(self, args[0])(*args[1:])


@contextlib.contextmanager
def both():
    """siltd with a stream `s` of some tokens, and for each client the way there that loses."""
    with siltd("--pin-tokens-max", "64") as daemon, silt.Client(daemon.endpoint) as direct:
        direct.open("s")
        with direct.feed("s", "p") as feed:
            feed.write(texts.text(6000))
        settled(direct, "s")
        yield daemon, direct, lambda: clients(daemon)


@contextlib.contextmanager
def clients(daemon):
    one, other = Lossy(daemon, "to-c"), Lossy(daemon, "to-py")
    with FromPython(other.endpoint) as python:
        yield (FromC(one.endpoint), one, "c"), (python, other, "py")


def test_done_once_and_said_so():
    with both() as (daemon, direct, ways), ways() as each:
        for client, lossy, name in each:
            def again(call, *args, marker=f"{name}-", before=False, lossy=lossy, client=client,
                      between=lambda: None):
                losses = lossy.losses
                lossy.lose(marker, between, before)
                out = getattr(client, call)(*args)
                assert lossy.losses == losses + 1, (call, lossy.losses)
                return out

            for before in (False, True):
                assert again("open", f"{name}-new", before=before) is True
                tokens = again("fork", "s", f"{name}-branch", before=before)
                assert tokens == direct.stat("s").tokens_acked == \
                    direct.stat(f"{name}-branch").tokens_acked
                again("pin", f"{name}-branch", 0, 20, before=before)
                assert len(direct.pins(f"{name}-branch").pins) == 1
                again("unpin", f"{name}-branch", 5, 6, before=before)
                assert not direct.pins(f"{name}-branch").pins
                left = again("forget", f"{name}-branch", 10, 30, before=before)
                assert left == tokens - 20 == direct.stat(f"{name}-branch").tokens_acked
                again("remove", f"{name}-branch", before=before)
                again("remove", f"{name}-new", before=before)
                assert [stat.stream for stat in direct.list()] == ["s"]


def test_not_to_what_others_made_meanwhile():
    with both() as (daemon, direct, ways), ways() as each:
        for client, lossy, name in each:
            name += "-stream"

            def anew(name=name):
                direct.open(name)
                with direct.feed(name, "q") as feed:
                    feed.write("Others wrote this.\n")

            direct.open(name)
            lossy.lose(name, anew)
            client.remove(name)
            assert lossy.losses == 1 and direct.stat(name).bytes_text == 19
            # What did not come, and was there when it came again, is another's.
            branch = f"{name}-branch"
            lossy.lose(branch, lambda branch=branch: direct.open(branch), before=True)
            client.exists("fork", "s", branch)
            assert lossy.losses == 2 and not direct.stat(branch).tokens_acked


def test_siltd_was_killed_meanwhile():
    with both() as (daemon, direct, ways), ways() as each:
        def die():
            daemon.kill()
            daemon.start()

        for client, lossy, name in each:
            branch = f"{name}-branch"
            lossy.lose(branch, die)
            tokens = client.fork("s", branch)
            assert tokens == direct.stat("s").tokens_acked
            lossy.lose(branch, die)
            assert client.forget(branch, 10, 30) == tokens - 20
            assert direct.stat(branch).tokens_acked == tokens - 20
            lossy.lose(branch, die)
            client.remove(branch)
            assert lossy.losses == 3 and [stat.stream for stat in direct.list()] == ["s"]


def test_a_key_that_is_denied():
    with both() as (daemon, direct, ways), ways() as each:
        for client, lossy, name in each:
            out = lib.silt(daemon.endpoint, "key", "new", daemon.home / f"{name}-key").out
            public = out.decode().strip()
            direct.key_allow(public, None)
            lossy.lose(public)
            client.key_deny(public)
            assert lossy.losses == 1 and not direct.keys().grants


if __name__ == "__main__":
    lib.main(globals())
