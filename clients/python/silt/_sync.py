"""Blocking calls: an AsyncClient on a thread of its own, so that acks and reconnects go on while
the caller does other things. May be used from several threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from typing import (Any, AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, List,
                    Optional, Sequence, TypeVar, Union)

from . import silt_pb2 as pb
from ._client import AsyncAnswer, AsyncClient
from ._errors import Lost
from ._feed import AsyncFeed, Text
from ._follow import Path
from ._types import Done, Keys, Opened, Pins, ProcessStat, Sampling, StreamStat

T = TypeVar("T")


async def _end_all() -> None:
    # wait_for of Python before 3.12 may swallow a cancellation, so it is said until it is heard.
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=0.1)


class _Loop:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # of _open, so that no work comes behind the last
        self._open = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="silt", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if not self._open:
                work.close()
                raise Lost("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Lost("the client was closed meanwhile") from None
        except BaseException:
            future.cancel()  # Ctrl-C: the work is not left behind
            raise

    def stop(self) -> None:
        """What other threads wait for ends too."""
        with self._lock:
            was, self._open = self._open, False
        if not was:
            return
        asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Feed:
    """Made by Client.feed(). `with` drains it at the end."""

    def __init__(self, loop: _Loop, feed: AsyncFeed) -> None:
        self._loop = loop
        self._feed = feed
        self.stream = feed.stream
        self.producer = feed.producer

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._loop.run(self._feed.__aexit__(kind, value, trace))

    @property
    def bytes_acked(self) -> int:
        """Of this producer's text, over its whole life: where a source goes on."""
        return self._feed.bytes_acked

    @property
    def sequence_acked(self) -> int:
        return self._feed.sequence_acked

    @property
    def tokens_acked(self) -> int:
        return self._feed.tokens_acked

    @property
    def tokens_computed(self) -> int:
        return self._feed.tokens_computed

    @property
    def credit_bytes(self) -> int:
        return self._feed.credit_bytes

    @property
    def unacked(self) -> int:
        return self._feed.unacked

    def write(self, text: Text, time_us: int = 0) -> int:
        """Text of any length, in as many messages as it takes. Returns the last one's number."""
        return self._loop.run(self._feed.write(text, time_us))

    def send(self, items: Sequence[pb.Item], time_us: int = 0) -> int:
        return self._loop.run(self._feed.send(items, time_us))

    def turn(self, role: str, text: Text, time_us: int = 0) -> int:
        """A turn of a conversation: system, user, assistant or tool."""
        return self._loop.run(self._feed.turn(role, text, time_us))

    def tokens(self, ids: List[int], time_us: int = 0) -> int:
        return self._loop.run(self._feed.tokens(ids, time_us))

    def flush(self) -> int:
        """What waits for the rest of its word is computed as it is."""
        return self._loop.run(self._feed.flush())

    def end(self) -> int:
        """The input has ended."""
        return self._loop.run(self._feed.end())

    def drain(self) -> None:
        """Until all is acked, that is on siltd's disk."""
        self._loop.run(self._feed.drain())

    def close(self) -> None:
        """Does not wait for acks: drain() does."""
        self._loop.run(self._feed.close())


class Answer:
    """An answer on its way: iterate its pieces, or call text(); then `done` says what it saw."""

    def __init__(self, loop: _Loop, answer: AsyncAnswer) -> None:
        self._loop = loop
        self._answer = answer

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self._loop.run(self._answer.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None
        except KeyboardInterrupt:
            self.close()
            raise

    @property
    def done(self) -> Optional[Done]:
        return self._answer.done

    def text(self) -> str:
        """All that is still to come."""
        return "".join(self)

    def close(self) -> None:
        """Cancels what is still to come."""
        self._loop.run(self._answer.aclose())


class Client:
    """One connection to siltd; see AsyncClient for the arguments. Connects with the first call."""

    def __init__(self, endpoint: Optional[str] = None, *, server_key: Optional[str] = None,
                 client_key: Optional[str] = None, connect_timeout: float = 5.0,
                 reconnect_timeout: float = 60.0, timeout: float = 30.0,
                 on_link: Optional[Callable[[bool], None]] = None) -> None:
        self._client = AsyncClient(endpoint, server_key=server_key, client_key=client_key,
                                   connect_timeout=connect_timeout,
                                   reconnect_timeout=reconnect_timeout, timeout=timeout,
                                   on_link=on_link)
        self._loop = _Loop()
        self.endpoint = self._client.endpoint

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._loop.run(self._client.close())
        except Lost:
            pass
        self._loop.stop()

    def open(self, stream: str, *, dmc: Union[int, str] = 0, ring: int = 0) -> Opened:
        """Creates a stream or confirms one. dmc: 1, 2, 4, 8, "auto" or 0 for the default."""
        return self._loop.run(self._client.open(stream, dmc=dmc, ring=ring))

    def feed(self, stream: str, producer: str) -> Feed:
        """Attaches to a stream that exists, as the source of text that `producer` names."""
        return Feed(self._loop, self._loop.run(self._client.feed(stream, producer)))

    def ask(self, stream: str, question: str, *, recall: str = "auto", wait: bool = False,
            keep: bool = False, at: Optional[int] = None, tokens_max: int = 0,
            sampling: Optional[Sampling] = None, stop: Sequence[str] = (),
            system: str = "") -> Answer:
        """Asks what the stream has read; see AsyncClient.ask."""
        return Answer(self._loop, self._loop.run(self._client.ask(
            stream, question, recall=recall, wait=wait, keep=keep, at=at, tokens_max=tokens_max,
            sampling=sampling, stop=stop, system=system)))

    def stat(self, stream: str) -> StreamStat:
        return self._loop.run(self._client.stat(stream))

    def follow(self, stream: str, path: Path, *, poll: float = 0.2) -> Iterator[int]:
        """Feeds a file as it grows; see AsyncClient.follow."""
        return self._iterate(self._client.follow(stream, path, poll=poll))

    def watch(self, stream: str, interval: float = 1.0) -> Iterator[StreamStat]:
        """The stream's stat each time it has changed."""
        return self._iterate(self._client.watch(stream, interval))

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T:
            return await items.__anext__()

        async def close() -> None:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
        try:
            while True:
                try:
                    item = self._loop.run(following())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            with contextlib.suppress(Lost):  # left behind, and the client is closed already
                self._loop.run(close())

    def process(self) -> ProcessStat:
        """siltd as a whole."""
        return self._loop.run(self._client.process())

    def list(self) -> List[StreamStat]:
        """All streams in order of name."""
        async def collect() -> "list[StreamStat]":
            return [stat async for stat in self._client.list()]
        return self._loop.run(collect())

    def fork(self, stream: str, branch: str) -> int:
        """Makes a branch that has all that was acked of the stream; how many tokens that is."""
        return self._loop.run(self._client.fork(stream, branch))

    def remove(self, stream: str) -> None:
        self._loop.run(self._client.remove(stream))

    def forget(self, stream: str, start: int, end: int) -> int:
        """Takes tokens [start, end) out for good; returns how many the stream has then."""
        return self._loop.run(self._client.forget(stream, start, end))

    def pins(self, stream: str) -> Pins:
        """What is pinned of a stream."""
        return self._loop.run(self._client.pins(stream))

    def pin(self, stream: str, start: int, end: int) -> Pins:
        """Keeps tokens [start, end) uncompressed; see AsyncClient.pin."""
        return self._loop.run(self._client.pin(stream, start, end))

    def unpin(self, stream: str, start: int, end: int) -> Pins:
        """Lets go of every pin that has some of [start, end); returns what is pinned then."""
        return self._loop.run(self._client.unpin(stream, start, end))

    def keys(self) -> Keys:
        """The keys that may reach siltd over the network; see AsyncClient.keys."""
        return self._loop.run(self._client.keys())

    def key_allow(self, key: str, stream: Optional[str], *, name: str = "") -> None:
        """Lets a public key reach a stream, or with None every stream."""
        self._loop.run(self._client.key_allow(key, stream, name=name))

    def key_deny(self, key: str, stream: Optional[str] = None) -> None:
        """Takes a stream from a key, or with None all that it has, at once."""
        self._loop.run(self._client.key_deny(key, stream))
