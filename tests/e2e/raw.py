"""The wire without the client library: frames as a test wants them, well-formed or not."""

import time

import zmq

import lib

pb = lib.wire()


class Refused(Exception):
    """An Error came; `error` is the message, str() names its code and text."""

    def __init__(self, error):
        super().__init__(f"{pb.Error.Code.Name(error.code)}: {error.message}")
        self.error = error
        self.code = error.code


class Raw:
    """One DEALER socket. Requests of any number may be under way; replies are told apart by id."""

    def __init__(self, endpoint, curve=None, name=None):
        """curve: siltd's public key and the client's public and secret one; name: a routing id."""
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if curve:
            (self.socket.curve_serverkey, self.socket.curve_publickey,
             self.socket.curve_secretkey) = curve
        if name:
            self.socket.setsockopt(zmq.ROUTING_ID, name)
        self.socket.connect(endpoint)
        self.id = 0

    def close(self):
        self.socket.close()
        self.context.term()

    def send(self, **body):
        self.id += 1
        self.socket.send(pb.Request(id=self.id, **body).SerializeToString())
        return self.id

    def send_bytes(self, frame):
        self.socket.send(frame)

    def reply(self, seconds=30):
        """The next reply of any request; None: none came."""
        if not self.socket.poll(seconds * 1000 * lib.SLOW):
            return None
        return pb.Reply.FromString(self.socket.recv())

    def hears_nothing(self):
        """Whether no reply comes; a slow machine is waited for no longer."""
        return not self.socket.poll(1000)

    def call(self, **body):
        """Sends and waits for this request's (first) reply."""
        asked = self.send(**body)
        while True:
            reply = self.reply()
            assert reply is not None, f"no reply to {body}"
            if reply.id != asked:
                continue
            if reply.WhichOneof("body") == "error":
                raise Refused(reply.error)
            return getattr(reply, reply.WhichOneof("body"))

    def open(self, stream, **options):
        return self.call(open=pb.Open(stream=stream, **options))

    def stat(self, stream):
        return self.call(stat=pb.Stat(stream=stream)).stream

    def feed(self, stream, producer, sequence, *items):
        return self.call(feed=feed(stream, producer, sequence, *items))

    def feed_all(self, stream, producer, pieces, end=True):
        """Feeds pieces of text, many under way, within the credit; then marks the end of input."""
        attached = self.call(attach=pb.Attach(stream=stream, producer=producer))
        sequence, credit, acked = attached.next_sequence, attached.credit_bytes, 0
        first = sequence
        todo = [text_item(piece) for piece in pieces]
        if end:
            todo.append(pb.Item(mark=pb.Mark(kind=pb.Mark.END_OF_INPUT)))
        flying = {}
        while todo or flying:
            if todo and not flying and 0 < credit < len(todo[0].text):
                whole = todo.pop(0).text  # never an ack would come for what does not fit
                todo[:0] = [text_item(whole[:credit]), text_item(whole[credit:])]
            while todo and len(flying) < 16 and (
                    sum(flying.values()) + len(todo[0].text) <= credit):
                item = todo.pop(0)
                flying[sequence] = len(item.text)
                self.send(feed=feed(stream, producer, sequence, item))
                sequence += 1
            reply = self.reply(60)
            assert reply is not None, f"no ack after {acked} of {sequence - first} messages"
            if reply.WhichOneof("body") == "error":
                raise Refused(reply.error)
            if reply.WhichOneof("body") == "ack" and reply.ack.producer == producer:
                credit, acked = reply.ack.credit_bytes, reply.ack.sequence
                flying = {s: n for s, n in flying.items() if s > acked}
        return acked

    def settled(self, stream, seconds=120):
        """The stat of a stream that has computed all it can."""
        return lib.wait_until(f"{stream} is computed", lambda: done(self.stat(stream)), seconds)

    def ask(self, stream, question, **options):
        """The answer's bytes and the Done."""
        asked = self.send(ask=pb.Ask(stream=stream, question=question, **options))
        text = b""
        while True:
            reply = self.reply(120)
            assert reply is not None, "no answer"
            if reply.id != asked:
                continue
            body = reply.WhichOneof("body")
            if body == "error":
                raise Refused(reply.error)
            if body == "done":
                return text, reply.done
            text += reply.token.text


def text_item(text):
    return pb.Item(text=text)


def feed(stream, producer, sequence, *items):
    return pb.Feed(stream=stream, producer=producer, sequence=sequence, items=[
        text_item(item) if isinstance(item, bytes) else item for item in items])


def done(stat):
    return stat if stat.tokens_computed == stat.tokens_acked else None


def refused(code, text, call, *args, **more):
    """The call must be refused with this code and have the text in its sentence."""
    try:
        call(*args, **more)
    except Refused as error:
        assert error.code == code, error
        assert text.lower() in str(error).lower(), error
        return error.error
    raise AssertionError(f"not refused: {args} {more}")


def patient(call, *args, **more):
    """A call that is tried again while a stream changes places."""
    end = time.monotonic() + 60 * lib.SLOW
    while True:
        try:
            return call(*args, **more)
        except Refused as error:
            if error.code != pb.Error.BUSY or time.monotonic() > end:
                raise
            time.sleep(0.005)


def quiet(raw, seconds=0.5):
    """Drops replies that still come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and raw.reply(0.1) is not None:
        pass
