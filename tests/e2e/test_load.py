#!/usr/bin/env python3
"""Many clients, and some that do wrong by the others: memory is bounded, the rest hardly notice."""

import os
import resource
import statistics
import time

import zmq

import lib
import raw

pb = raw.pb

CLIENTS = 1000
STREAMS = 8
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
        print(f"{CLIENTS} clients: resident {peak / 2**20:.1f} MiB at most, plan "
              f"{plan / 2**20:.1f}; somebody else's stat took {quiet * 1e3:.2f} ms, and "
              f"{worst * 1e3:.2f} at worst: {worst / quiet:.1f} times as long")
        siltd.stop()


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
