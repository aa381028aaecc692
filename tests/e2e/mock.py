"""A siltd of a few lines that keeps the wire's promises and breaks down on request, for the tests
of the clients: what it stores is compared with what was fed."""

import socket
import threading
import time

import zmq

import lib

pb = lib.wire()


class Mock:
    """Runs in a thread. `kill()` drops the socket with all that was in flight, `start()` comes back
    with what had been acked; `forget()` loses that too."""

    def __init__(self, credit=65536):
        self.home = lib.folder()
        self.endpoint = f"ipc://{self.home}/s"
        self.credit = credit  # bytes; may be changed at any time
        self.dry_at = None  # credit ends once so many bytes are stored
        self.streams = {}  # name -> [text, producer -> [sequence, bytes]]
        self.marks = []
        self.turns = []
        self.times = []  # (text, wall clock) of each message
        self.feeds = 0
        self.busy = 0  # so many feeds and questions are told to come again
        self.full = False  # every feed is told that the disk is
        self.die_at = None  # this feed's connection dies: "before" it is stored or "after"
        self.unacked_max = 0
        self.asks = []
        self.source = "say \x1b[1m\u009b1m à"  # of every answer
        self.silent = False
        self.context = zmq.Context()
        self.start()

    def start(self):
        self.alive = True
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def kill(self):
        self.alive = False
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def forget(self):
        for stream in self.streams.values():
            stream[1].clear()

    def text(self, stream):
        return bytes(self.streams[stream][0])

    def run(self):
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.endpoint)
        self.ready.set()
        self.owed = []
        while self.alive:
            if self.owed and self.credit:
                for who, reply in self.owed:
                    reply.ack.credit_bytes = self.credit
                    self.send(who, reply)
                self.owed = []
            if not self.socket.poll(20):
                continue
            who, frame = self.socket.recv_multipart()
            request = pb.Request.FromString(frame)
            if not self.silent:
                getattr(self, "on_" + request.WhichOneof("body"))(who, request)
        self.socket.close()

    def send(self, who, reply):
        if self.alive:
            self.socket.send_multipart([who, reply.SerializeToString()])

    def error(self, who, request, code, message, **more):
        self.send(who, pb.Reply(id=request.id, error=pb.Error(code=code, message=message, **more)))

    def stream(self, who, request, name):
        if name not in self.streams:
            self.error(who, request, pb.Error.NOT_FOUND, f"no stream {name}: open it first")
            return None
        return self.streams[name]

    def on_open(self, who, request):
        created = request.open.stream not in self.streams
        self.streams.setdefault(request.open.stream, [bytearray(), {}])
        self.send(who, pb.Reply(id=request.id, opened=pb.Opened(
            stream=request.open.stream, created=created, dmc_ratio=4, ring_segments=14,
            bytes_plan=1000)))

    def on_attach(self, who, request):
        stream = self.stream(who, request, request.attach.stream)
        if stream is None:
            return
        sequence, acked = stream[1].get(request.attach.producer, (0, 0))
        self.send(who, pb.Reply(id=request.id, attached=pb.Attached(
            stream=request.attach.stream, producer=request.attach.producer,
            next_sequence=sequence + 1, bytes_acked=acked, credit_bytes=self.credit)))

    def ack(self, who, request, stream):
        feed = request.feed
        sequence, acked = stream[1].get(feed.producer, (0, 0))
        reply = pb.Reply(id=request.id, ack=pb.Ack(
            stream=feed.stream, producer=feed.producer, sequence=sequence, bytes_acked=acked,
            tokens_acked=len(stream[0]), tokens_computed=len(stream[0]),
            credit_bytes=self.credit))
        self.send(who, reply)
        if not self.credit:
            self.owed.append((who, reply))

    def on_feed(self, who, request):
        feed = request.feed
        stream = self.stream(who, request, feed.stream)
        if stream is None:
            return
        self.feeds += 1
        dies = self.die_at and self.die_at[0] == self.feeds and self.die_at[1]
        if dies == "before":
            self.kill()
            return
        expected = stream[1].get(feed.producer, (0, 0))[0] + 1
        if feed.sequence > expected:
            self.error(who, request, pb.Error.GAP, f"expected {expected}",
                       expected_sequence=expected)
            return
        if self.full:
            self.error(who, request, pb.Error.NO_SPACE, "the disk is full", retry_us=1000)
            return
        if self.busy and feed.sequence == expected:
            self.busy -= 1
            self.error(who, request, pb.Error.BUSY, "later", retry_us=20000)
            return
        if feed.sequence == expected:
            self.store(stream, feed)
        if dies == "after":
            self.kill()
            return
        self.ack(who, request, stream)

    def store(self, stream, feed):
        text = b"".join(item.text for item in feed.items if item.WhichOneof("body") == "text")
        assert self.credit == 0 or len(text) <= max(self.credit, 1), (len(text), self.credit)
        for item in feed.items:
            if item.WhichOneof("body") == "mark":
                self.marks.append((feed.producer, item.mark.kind))
            if item.WhichOneof("body") == "turn":
                self.turns.append((item.turn.role, item.turn.text))
        stream[0] += text
        self.times.append((text, feed.time_us))
        acked = stream[1].get(feed.producer, (0, 0))[1]
        if self.dry_at is not None and len(stream[0]) >= self.dry_at:
            self.credit, self.dry_at = 0, None
        stream[1][feed.producer] = (feed.sequence, acked + len(text))

    def on_ask(self, who, request):
        if self.stream(who, request, request.ask.stream) is None:
            return
        if self.busy:
            self.busy -= 1
            self.error(who, request, pb.Error.BUSY, "later", retry_us=20000)
            return
        self.asks.append(request.ask)
        for piece in (b"It was ", b"K\xc3", b"\xb6ln."):
            self.send(who, pb.Reply(id=request.id, token=pb.Token(text=piece)))
        if request.ask.question == "endless":
            return
        if request.ask.question == "die":
            time.sleep(0.2)
            self.kill()
            return
        done = pb.Done(position=7, acked=9, question_tokens=3, answer_tokens=4, wait_us=1000,
                       finish=pb.Done.END, sources=[pb.Source(segment=2, time_us=1500000, to=512,
                                                              text=self.source,
                                                              **{"from": 256})])
        self.send(who, pb.Reply(id=request.id, done=done))

    def on_cancel(self, who, request):
        self.send(who, pb.Reply(id=request.cancel.ask_id, done=pb.Done(
            position=7, acked=9, finish=pb.Done.CANCELLED)))

    def stat(self, name):
        text = self.streams[name][0]
        return pb.StreamStat(
            stream=name, tokens_acked=len(text), tokens_computed=len(text), bytes_plan=1000,
            tiers=[pb.Tier(name="ring", bytes_plan=700, bytes_used=300),
                   pb.Tier(name="window", bytes_plan=300, bytes_used=100)],
            memory_hash=0xfedcba9876543210, dmc_ratio=3.5, layers=2, kv_heads=2, chunks=1,
            hash_chunk=1, head_ratio=[1, 2, 3, 4])

    def on_stat(self, who, request):
        if not request.stat.stream:
            reply = pb.StatReply(process=pb.ProcessStat(
                version="mock", bytes_plan=50, tiers=[pb.Tier(name="all", bytes_plan=50)]))
        elif self.stream(who, request, request.stat.stream) is None:
            return
        else:
            reply = pb.StatReply(stream=self.stat(request.stat.stream))
        self.send(who, pb.Reply(id=request.id, stat=reply))

    def on_list(self, who, request):
        names = sorted(n for n in self.streams if n > request.list.after)
        self.send(who, pb.Reply(id=request.id, list=pb.ListReply(
            streams=[self.stat(n) for n in names[:2]], more=len(names) > 2)))

    def on_remove(self, who, request):
        if self.stream(who, request, request.remove.stream) is None:
            return
        del self.streams[request.remove.stream]
        self.send(who, pb.Reply(id=request.id, removed=pb.Removed(stream=request.remove.stream)))


class Cutter:
    """Takes every connection and cuts it, as a siltd does that speaks another key."""

    def __init__(self):
        self.taken = 0
        self.socket = socket.socket(socket.AF_UNIX)
        path = lib.folder() / "s"
        self.endpoint = f"ipc://{path}"
        self.socket.bind(str(path))
        self.socket.listen(64)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            self.socket.accept()[0].close()
            self.taken += 1
