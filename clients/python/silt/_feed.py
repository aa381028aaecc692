"""A feed: appends to one stream, exactly once.

Messages are numbered and held until siltd's ack says that they are in its journal. After a lost
connection the feed attaches again, learns what arrived, and sends the rest. What is held is
bounded by a number of messages and of bytes, and by the credit of the newest ack.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from typing import Deque, List, Optional, Sequence, Union

from . import silt_pb2 as pb
from ._errors import Busy, Error, Exists, Gap, Invalid, ShuttingDown, TooLarge, of_wire
from ._link import Link, pack

HELD_MAX = 16
HELD_BYTES_MAX = 1 << 20
ITEM_BYTES_MAX = 512 << 10
TOKENS_MAX = 64 << 10
PIECE_BYTES = 64 << 10  # text of one message of write()
CREDIT_ASK_SECONDS = 1.0  # no credit for so long: ask again
ACK_ASK_SECONDS = 5.0  # no ack for so long
WAIT_SECONDS = 0.2
BUSY_SECONDS = 0.2

Text = Union[str, bytes, bytearray, memoryview]


def as_bytes(text: Text) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


@dataclasses.dataclass
class _Held:
    sequence: int
    request_id: int
    payload: int  # counts against credit
    frame: bytes
    sent: bool = False


class AsyncFeed:
    """Made by AsyncClient.feed(). `async with` drains it at the end."""

    def __init__(self, link: Link, stream: str, producer: str) -> None:
        self.stream = stream
        self.producer = producer
        self.bytes_acked = 0  # of this producer's text, over its whole life
        self.sequence_acked = 0
        self.tokens_acked = 0  # of the stream
        self.tokens_computed = 0
        self.credit_bytes = 0
        self._link = link
        self._epoch = 0  # of the connection it is attached on
        self._next = 0
        self._held: Deque[_Held] = collections.deque()
        self._fault: Optional[Error] = None
        self._retry_at = 0.0
        self._news_at = 0.0
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._closed = False
        self._task: Optional[asyncio.Task[None]] = None

    @property
    def unacked(self) -> int:
        """Messages held."""
        return len(self._held)

    @property
    def _held_bytes(self) -> int:
        return sum(held.payload for held in self._held)

    async def _start(self) -> None:
        if (self.stream, self.producer) in self._link.listeners:
            raise Exists(f"this client feeds {self.stream} as {self.producer} already")
        self._link.listeners[self.stream, self.producer] = self
        try:
            await self._attach()
        except BaseException:
            self._leave()
            raise
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def __aenter__(self) -> "AsyncFeed":
        return self

    async def __aexit__(self, kind: object, value: object, trace: object) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    async def close(self) -> None:
        """Does not wait for acks: drain() does."""
        self._closed = True
        self._leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _leave(self) -> None:
        if self._link.listeners.get((self.stream, self.producer)) is self:
            del self._link.listeners[self.stream, self.producer]

    # ---- what the link brings ----

    def link_changed(self) -> None:
        self._news.set()

    def reply(self, reply: pb.Reply) -> bool:
        kind = reply.WhichOneof("body")
        if kind == "ack":
            self._on_ack(reply.ack)
            return True
        if kind != "error" or all(held.request_id != reply.id for held in self._held if held.sent):
            return False
        error = of_wire(reply.error)
        if isinstance(error, (Busy, Gap, ShuttingDown)):
            # All of it again from where siltd says it is, after the pause it asks for.
            self._epoch = 0
            self._retry_at = time.monotonic() + (error.retry_after or BUSY_SECONDS)
        else:
            self._fault = error
        self._news.set()
        return True

    def _on_ack(self, ack: pb.Ack) -> None:
        if self._epoch != self._link.epoch or ack.sequence < self.sequence_acked:
            return
        self._drop(ack.sequence)
        self.bytes_acked = ack.bytes_acked
        self.tokens_acked = ack.tokens_acked
        self.tokens_computed = ack.tokens_computed
        self.credit_bytes = ack.credit_bytes
        self._news_at = time.monotonic()
        self._news.set()

    def _drop(self, acked: int) -> None:
        while self._held and self._held[0].sequence <= acked:
            self._held.popleft()
        self.sequence_acked = max(self.sequence_acked, acked)

    async def _attach(self) -> None:
        reply = await self._link.call(
            attach=pb.Attach(stream=self.stream, producer=self.producer))
        epoch, attached = self._link.epoch, reply.attached
        if self._next and attached.next_sequence <= self.sequence_acked:
            raise Gap(f"siltd has {attached.next_sequence - 1} messages of producer "
                      f"{self.producer} where it had acked {self.sequence_acked}: its data folder "
                      "is older than the acks", expected_sequence=attached.next_sequence)
        self._next = self._next or attached.next_sequence
        if self._next < attached.next_sequence:
            raise Exists(f"another client feeds as producer {self.producer} too: one at a time")
        self._drop(attached.next_sequence - 1)
        self._epoch = epoch
        self.bytes_acked = attached.bytes_acked
        self.credit_bytes = attached.credit_bytes
        self._news_at = time.monotonic()
        for held in self._held:
            held.sent = False
        self._news.set()

    def _silent(self) -> bool:
        quiet = time.monotonic() - self._news_at
        if self._held:
            return quiet > ACK_ASK_SECONDS
        return self.credit_bytes == 0 and quiet > CREDIT_ASK_SECONDS

    async def _work(self) -> None:
        # wait_for of Python before 3.12 may swallow a cancellation, so `_closed` counts too.
        while self._fault is None and not self._closed:
            self._news.clear()
            try:
                pause = self._retry_at - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                if self._epoch != self._link.epoch or not self._link.connected or self._silent():
                    await self._link.wait_up()
                    await self._attach()
                await self._send_held()
            except (Busy, ShuttingDown) as error:
                self._retry_at = time.monotonic() + (error.retry_after or BUSY_SECONDS)
                continue
            except Error as error:
                self._fault = error
            except Exception as error:  # of this package: whoever waits is told, not left waiting
                self._fault = Error(f"the feed of {self.stream} failed: {error!r}")
            if self._fault is not None:
                self._news.set()
                return
            await self._wait_news()

    async def _send_held(self) -> None:
        for held in list(self._held):
            if self._epoch != self._link.epoch or not self._link.connected:
                return
            if not held.sent:
                held.sent = True
                await self._link.send(held.frame)
                self._news_at = time.monotonic()

    async def _wait_news(self) -> None:
        try:
            await asyncio.wait_for(self._news.wait(), WAIT_SECONDS)
        except asyncio.TimeoutError:
            pass

    # ---- what the caller does ----

    def check(self) -> None:
        """Raises what ended the feed, if anything has."""
        if self._fault is not None:
            raise self._fault
        if self._closed:
            raise Invalid("the feed is closed")

    def _room(self) -> int:
        """Bytes of text that can be sent now."""
        if len(self._held) >= HELD_MAX or not self._epoch:
            return 0
        most = min(self.credit_bytes, HELD_BYTES_MAX) - self._held_bytes
        return max(0, min(most, ITEM_BYTES_MAX))

    def _fits(self, payload: int) -> bool:
        """One that no credit could ever cover goes alone: siltd says whether it takes it."""
        if not self._epoch or len(self._held) >= HELD_MAX:
            return False
        if not self._held:
            return payload == 0 or self.credit_bytes > 0
        return self._held_bytes + payload <= min(self.credit_bytes, HELD_BYTES_MAX)

    async def _wait_for(self, payload: int) -> None:
        while not self._fits(payload):
            self.check()
            await asyncio.sleep(0)
            self._news.clear()
            if not self._fits(payload):
                await self._wait_news()
        self.check()

    def _hold(self, items: Sequence[pb.Item], payload: int, time_us: int) -> int:
        request_id = self._link.next_id()
        feed = pb.Feed(stream=self.stream, producer=self.producer, sequence=self._next,
                       items=items, time_us=time_us)
        frame = pack(request_id, {"feed": feed})
        self._held.append(_Held(self._next, request_id, payload, frame))
        self._next += 1
        self._news.set()
        return self._next - 1

    async def send(self, items: Sequence[pb.Item], time_us: int = 0) -> int:
        """One message, whole or not at all; waits for room, not for its ack. Returns its number."""
        payload = sum(len(i.text) + len(i.turn.text) + 4 * len(i.tokens.ids) for i in items)
        if not items or payload > ITEM_BYTES_MAX:
            raise TooLarge(f"a message holds 1 item or more and at most {ITEM_BYTES_MAX} bytes")
        async with self._writing:
            await self._wait_for(payload)
            return self._hold(items, payload, time_us)

    async def write(self, text: Text, time_us: int = 0) -> int:
        """Text of any length, in as many messages as it takes. Returns the last one's number."""
        data, at = as_bytes(text), 0
        async with self._writing:
            self.check()
            while at < len(data):
                await self._wait_for(1)
                piece = data[at:at + max(1, min(self._room(), PIECE_BYTES))]
                at += len(piece)
                self._hold([pb.Item(text=piece)], len(piece), time_us)
            return self._next - 1

    async def turn(self, role: str, text: Text, time_us: int = 0) -> int:
        """A turn of a conversation: system, user, assistant or tool."""
        return await self.send([pb.Item(turn=pb.Turn(role=role, text=as_bytes(text)))], time_us)

    async def tokens(self, ids: List[int], time_us: int = 0) -> int:
        if len(ids) > TOKENS_MAX:
            raise TooLarge(f"a message holds at most {TOKENS_MAX} tokens")
        return await self.send([pb.Item(tokens=pb.Tokens(ids=ids))], time_us)

    async def flush(self) -> int:
        """What waits for the rest of its word is computed as it is."""
        return await self.send([pb.Item(mark=pb.Mark(kind=pb.Mark.FLUSH))])

    async def end(self) -> int:
        """The input has ended."""
        return await self.send([pb.Item(mark=pb.Mark(kind=pb.Mark.END_OF_INPUT))])

    async def drain(self) -> None:
        """Until all is acked, that is on siltd's disk."""
        while self._held:
            self.check()
            self._news.clear()
            if self._held:
                await self._wait_news()
        if self._fault is not None:
            raise self._fault
