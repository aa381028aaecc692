#!/usr/bin/env python3
"""Many clients, and some that do wrong by the others: memory is bounded, the rest hardly notice."""

import os
import resource
import signal
import socket as plain
import statistics
import struct
import time

import zmq

import lib
import raw

pb = raw.pb

CLIENTS = 1000
STREAMS = 8
HALVES = 200  # connections that hold half of a message each
SLOWER_MAX = 50  # times a stat's median may grow while somebody floods, beyond 20 ms


def resident(siltd):
    pages = int(open(f"/proc/{siltd.process.pid}/statm").read().split()[1])
    return pages * resource.getpagesize()


def latency(probe, count=100):
    """Median seconds of a small request of somebody who has nothing to do with it."""
    took = []
    for _ in range(count):
        start = time.monotonic()
        probe.call(stat=pb.Stat(stream="probe"))
        took.append(time.monotonic() - start)
    return statistics.median(took)


class Crowd:
    """Plain sockets that share one context."""

    def __init__(self, endpoint, count):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 4 * count:
            raise lib.Skip(f"only {hard} open files allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 4 * count)
        self.sockets = [self.connect(endpoint) for _ in range(count)]

    def connect(self, endpoint):
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        return socket

    def send(self, socket, **body):
        try:
            socket.send(pb.Request(id=1, **body).SerializeToString(), zmq.DONTWAIT)
            return True
        except zmq.Again:
            return False

    def go(self):
        for socket in self.sockets:
            socket.close()


def test_a_thousand_clients():
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter, ("--streams-max", STREAMS + 1, "--clients-max", CLIENTS + 8,
                                     "--memory", "8G")) as siltd:
        probe = raw.Raw(siltd.endpoint)
        probe.open("probe")
        quiet = latency(probe)
        crowd = Crowd(siltd.endpoint, CLIENTS)
        for i, socket in enumerate(crowd.sockets):
            crowd.send(socket, open=pb.Open(stream=f"s{i % STREAMS}"))
        for socket in crowd.sockets:
            assert socket.poll(30_000 * lib.SLOW), "a client without an answer"
            assert pb.Reply.FromString(socket.recv()).WhichOneof("body") == "opened"
        plan = probe.call(stat=pb.Stat()).process.bytes_plan
        peak = resident(siltd)
        # All send more than may wait, and read nothing.
        feed = raw.feed("s0", "x", 1, b"a " * 30_000)
        for socket in crowd.sockets:
            for _ in range(3):
                crowd.send(socket, feed=feed)
        worst = 0
        for _ in range(5):
            peak, worst = max(peak, resident(siltd)), max(worst, latency(probe, 20))
        # One asks for lists without end and reads none.
        for _ in range(20_000):
            if not crowd.send(crowd.sockets[0], list=pb.List()):
                break
        for _ in range(5):
            peak, worst = max(peak, resident(siltd)), max(worst, latency(probe, 20))
        # All vanish, in the middle of whatever they were at.
        crowd.go()
        peak, worst = max(peak, resident(siltd)), max(worst, latency(probe))
        if lib.BUILD.name == "build":  # a sanitizer's memory is not siltd's
            assert peak <= plan, (peak, plan)
            assert peak < 256 * 2**20, peak  # far below what all at their limits would take
        assert worst < 0.02 * lib.SLOW + SLOWER_MAX * quiet, (quiet, worst)
        print(f"{CLIENTS} clients: resident {peak / 1e6:.1f} MB at most, plan "
              f"{plan / 1e6:.1f}; somebody else's stat took {quiet * 1e3:.2f} ms, and "
              f"{worst * 1e3:.2f} at worst: {worst / quiet:.1f} times as long")
        siltd.stop()


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\0")
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def half_a_message(endpoint, frame):
    """A connection that says a frame's length and sends half of it (ZMTP 3.0, ZeroMQ RFC 23)."""
    connection = plain.socket(plain.AF_UNIX)
    connection.connect(endpoint.removeprefix("ipc://"))
    connection.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
    connection.sendall(b"\x02" + struct.pack(">Q", len(frame)) + frame[:len(frame) // 2])
    return connection


def test_halves_of_messages():
    """Nothing of them is taken; nobody waits for the rest; what they hold goes with them."""
    feed = raw.feed("s", "p", 1, b"never stored " * 75_000)
    frame = pb.Request(id=1, feed=feed).SerializeToString()
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter, ("--clients-max", 4)) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("probe")
        wire.open("s")
        quiet, before = latency(wire), resident(siltd)
        halves = [half_a_message(siltd.endpoint, frame) for _ in range(HALVES)]
        worst, held = latency(wire), resident(siltd)
        assert wire.feed("s", "q", 1, b"of one who is whole ").sequence == 1
        for connection in halves:
            connection.close()
        worst = max(worst, latency(wire))
        after = lib.wait_until("what they held is given back", lambda: given_back(siltd, before))
        assert wire.stat("s").bytes_text == 20
        assert wire.call(attach=pb.Attach(stream="s", producer="p")).next_sequence == 1
        assert worst < 0.02 * lib.SLOW + SLOWER_MAX * quiet, (quiet, worst)
        if lib.BUILD.name == "build":
            assert held - before < HALVES * (len(frame) + 65_536), (before, held)
        print(f"{HALVES} halves of {len(frame)} bytes: resident {before / 1e6:.1f} MB, "
              f"{held / 1e6:.1f} with them, {after / 1e6:.1f} after; somebody else's stat took "
              f"{quiet * 1e3:.2f} ms, and {worst * 1e3:.2f} at worst")
        siltd.stop()


def given_back(siltd, before):
    now = resident(siltd)
    return now if lib.BUILD.name != "build" or now < before + 32 * 2**20 else None


def test_who_takes_no_answer_loses_it():
    """A question holds one of few places: of a client that reads nothing, not for ever."""
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter, ("--forks-max", 1)) as siltd:
        wire = raw.Raw(siltd.endpoint)
        wire.open("s")
        wire.feed_all("s", "p", [b"a few words "])
        slow = Crowd(siltd.endpoint, 1)
        unread = "does not read its replies"
        while unread not in siltd.log_text():
            for _ in range(200):
                slow.send(slow.sockets[0], stat=pb.Stat())
        ask = pb.Ask(stream="s", question="What is it?", tokens_max=8)
        lib.wait_until("its question gets through", lambda: slow.send(slow.sockets[0], ask=ask))
        lib.wait_until("it has the place", lambda: wire.call(stat=pb.Stat()).process.forks)
        raw.refused(pb.Error.BUSY, "", wire.ask, "s", "What is it?", tokens_max=8)
        assert wire.feed("s", "q", 1, b"and some more").sequence == 1
        start = time.monotonic()
        lib.wait_until("its place is free",
                       lambda: not wire.call(stat=pb.Stat()).process.forks, 90, 0.5)
        took = time.monotonic() - start
        assert "takes no answer for 30 s: its question is dropped" in siltd.log_text()
        assert wire.ask("s", "What is it?", tokens_max=8)[1].answer_tokens
        print(f"its place was free after {took:.0f} s")
        siltd.stop()


def test_the_log_does_not_grow_with_who_reads_nothing():
    with lib.Daemon(*lib.tiny()) as siltd:
        slow = Crowd(siltd.endpoint, 1)
        for _ in range(5000):
            lib.wait_until("it is sent", lambda: slow.send(slow.sockets[0], stat=pb.Stat()), 20, 0)
        lib.wait_until("it is said", lambda: "does not read its" in siltd.log_text())
        assert siltd.log_text().count("does not read its") < 5, siltd.log_text()[-2000:]


def test_one_client_too_many():
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter, ("--clients-max", 3)) as siltd:
        clients = [raw.Raw(siltd.endpoint) for _ in range(3)]
        for i, wire in enumerate(clients):
            raw.patient(wire.call, open=pb.Open(stream=f"s{i}"))
        late = raw.Raw(siltd.endpoint)
        for _ in range(300):  # a flood of what is refused disturbs nobody, and none of it is kept
            raw.refused(pb.Error.BUSY, "--clients-max", late.call, open=pb.Open(stream="late"))
        assert [s.stream for s in clients[0].call(list=pb.List()).streams] == ["s0", "s1", "s2"]
        clients[1].close()
        raw.patient(late.call, open=pb.Open(stream="late"))
        for i in (0, 2):
            assert clients[i].stat(f"s{i}").stream == f"s{i}"
        # Many that come and go one after the other are never too many.
        late.close()
        for i in range(40):
            wire = raw.Raw(siltd.endpoint)
            raw.patient(wire.call, stat=pb.Stat())
            wire.close()


def test_last_words_take_no_place():
    """Clients are gone before their last request is looked at, as when siltd gets no time."""
    with lib.Daemon(*lib.tiny(), ("--clients-max", 4)) as siltd:
        clients = [raw.Raw(siltd.endpoint) for _ in range(8)]
        time.sleep(0.5)  # all are connected
        os.kill(siltd.process.pid, signal.SIGSTOP)
        for wire in clients[4:]:
            wire.socket.setsockopt(zmq.LINGER, 10000)
            wire.send(stat=pb.Stat())
        for wire in clients:
            wire.close()
        os.kill(siltd.process.pid, signal.SIGCONT)
        time.sleep(0.5)
        wire = raw.Raw(siltd.endpoint)
        raw.patient(wire.call, stat=pb.Stat())


def test_many_parked_streams():
    count = int(os.environ.get("SILT_PARKED", "300"))
    model, adapter = lib.tiny()
    with lib.Daemon(model, adapter, ("--streams-max", 4)) as siltd:
        wire = raw.Raw(siltd.endpoint)
        start = time.monotonic()
        for i in range(count):
            raw.patient(wire.call, open=pb.Open(stream=f"s{i:05}"))
            raw.patient(wire.feed, f"s{i:05}", "p", 1, b"a few words of stream %d\n" % i)
        took = time.monotonic() - start
        names, after = [], ""
        while True:
            page = wire.call(list=pb.List(after=after))
            names += [stream.stream for stream in page.streams]
            if not page.more:
                break
            after = names[-1]
        assert names == [f"s{i:05}" for i in range(count)]
        siltd.kill()
        siltd.start()
        wire = raw.Raw(siltd.endpoint)
        for i in (0, 7, count - 1):
            state = raw.patient(wire.call, attach=pb.Attach(stream=f"s{i:05}", producer="p"))
            assert state.next_sequence == 2
        print(f"{count} streams in 4 places, {took / count * 1e3:.1f} ms each")


if __name__ == "__main__":
    lib.main(globals())
