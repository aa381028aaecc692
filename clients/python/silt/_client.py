"""AsyncClient: one connection, for asyncio. Client is the same on a thread of its own."""

from __future__ import annotations

import asyncio
import codecs
import re
from typing import Any, AsyncIterator, Callable, Dict, List, Optional, Sequence, Union

from . import silt_pb2 as pb
from ._errors import Error, Invalid, Lost, of_wire
from ._feed import AsyncFeed
from ._follow import Path, follow, watch
from ._keys import is_key, settings
from ._link import Link, Patience, pack
from ._types import (PRODUCER_BYTES_MAX, STOP_MAX, Done, Grant, Keys, Opened, Pins, ProcessStat,
                     Sampling, StreamStat, check_name, done_of, grant_of, opened_of, pins_of,
                     process_of, sampling_to, stream_of)

LIST_PAGES_MAX = 1 << 16
RECALL = {"auto": pb.Ask.AUTO, "none": pb.Ask.NONE, "segments": pb.Ask.SEGMENTS,
          "text": pb.Ask.TEXT}


class AsyncAnswer:
    """An answer on its way: iterate its pieces, or await text(); then `done` says what it saw.

    Leaving the loop early and closing (`async with`, or aclose()) cancels it: siltd stops, and a
    question asked with keep is not kept.
    """

    def __init__(self, link: Link, ask: pb.Ask) -> None:
        self.done: Optional[Done] = None
        self._link = link
        self._ask = ask
        self._id = 0
        self._epoch = 0
        self._frame = b""
        self._busy = Patience()
        self._queue: Optional[asyncio.Queue[Union[pb.Reply, int]]] = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended = False

    async def _start(self) -> None:
        await self._link.start()
        self._id = self._link.next_id()
        self._frame = pack(self._id, {"ask": self._ask})
        self._queue = self._link.expect(self._id)
        await self._send()

    async def _send(self) -> None:
        try:
            self._epoch = await self._link.send(self._frame)
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        self._ended = True
        self._link.forget(self._id)

    def __del__(self) -> None:
        self._link.forget(self._id)  # of a loop that was left early: nobody reads its replies

    async def __aenter__(self) -> "AsyncAnswer":
        return self

    async def __aexit__(self, kind: object, value: object, trace: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._ended:
            assert self._queue is not None
            reply = await self._queue.get()
            if isinstance(reply, int):
                if reply < self._epoch:
                    continue
                self._finish()
                raise Lost(f"siltd at {self._link.endpoint} went away before the end")
            kind = reply.WhichOneof("body")
            if kind == "error" and self._busy.lasts(reply.error):
                await asyncio.sleep(reply.error.retry_us / 1e6)
                await self._send()
                continue
            if kind == "error":
                self._finish()
                raise of_wire(reply.error)
            if kind == "done":
                self._finish()
                self.done = done_of(reply.done)
                rest = self._decoder.decode(b"", True)
                if rest:
                    return rest
            elif kind == "token":
                piece = self._decoder.decode(reply.token.text)
                if piece:
                    return piece
        raise StopAsyncIteration

    async def text(self) -> str:
        """All that is still to come."""
        return "".join([piece async for piece in self])

    async def aclose(self) -> None:
        if self._ended:
            return
        self._finish()
        if self._link.connected and self._link.epoch == self._epoch:
            try:
                await self._link.send(pack(self._link.next_id(),
                                           {"cancel": pb.Cancel(ask_id=self._id)}))
            except Error:
                pass  # it went away, and the question with it


class AsyncClient:
    """One connection to siltd, in one event loop.

    connect_timeout: seconds to try to reach siltd; reconnect_timeout: the same once it had been
    reached (math.inf: for ever); timeout: for an answer that needs no computing. on_link is called
    with False when the connection goes and with True when it comes back. An endpoint of tcp://
    needs server_key, siltd's public key, and client_key, the file that `silt key new` made; both
    are also found as _keys.py says.
    """

    def __init__(self, endpoint: Optional[str] = None, *, server_key: Optional[str] = None,
                 client_key: Optional[str] = None, connect_timeout: float = 5.0,
                 reconnect_timeout: float = 60.0, timeout: float = 30.0,
                 on_link: Optional[Callable[[bool], None]] = None) -> None:
        self.endpoint, curve = settings(endpoint, server_key, client_key)
        self._link = Link(self.endpoint, curve, connect_timeout, reconnect_timeout, timeout,
                          on_link)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: object, value: object, trace: object) -> None:
        await self.close()

    async def close(self) -> None:
        for feed in list(self._link.listeners.values()):
            assert isinstance(feed, AsyncFeed)
            await feed.close()
        await self._link.close()

    async def open(self, stream: str, *, dmc: Union[int, str] = 0, ring: int = 0) -> Opened:
        """Creates a stream or confirms one. dmc: 1, 2, 4, 8, "auto" or 0 for the default."""
        if isinstance(dmc, str) and dmc != "auto":
            raise Invalid(f'dmc is 1, 2, 4, 8 or "auto", not "{dmc}"')
        reply = await self._link.call(change=True, open=pb.Open(
            stream=check_name(stream), dmc_ratio=dmc if isinstance(dmc, int) else 0,
            dmc_auto=dmc == "auto", ring_segments=ring))
        return opened_of(reply.opened)

    async def feed(self, stream: str, producer: str) -> AsyncFeed:
        """Attaches to a stream that exists. `producer` names this source of text for ever: its
        messages are numbered under it, and a program that starts anew goes on where it was."""
        check_name(producer, "producer", PRODUCER_BYTES_MAX)
        feed = AsyncFeed(self._link, check_name(stream), producer)
        await feed._start()
        return feed

    async def ask(self, stream: str, question: str, *, recall: str = "auto", wait: bool = False,
                  keep: bool = False, at: Optional[int] = None, tokens_max: int = 0,
                  sampling: Optional[Sampling] = None, stop: Sequence[str] = (),
                  system: str = "") -> AsyncAnswer:
        """Asks what the stream has read. wait: first compute all that was acked by now; keep:
        question and answer become turns of the stream; at: as it was at that token."""
        check_name(stream)
        if not question:
            raise Invalid("the question is empty")
        if recall not in RECALL:
            raise Invalid(f'recall is none, segments, text or auto, not "{recall}"')
        if len(stop) > STOP_MAX:
            raise Invalid(f"at most {STOP_MAX} stop strings")
        if any("\0" in text for text in (question, system, *stop)):
            raise Invalid("U+0000 in a question, a system text or a stop string: siltd would see "
                          "it end there")
        answer = AsyncAnswer(self._link, pb.Ask(
            stream=stream, question=question, recall=RECALL[recall], wait=wait, keep=keep,
            at_position=at or 0, at_given=at is not None, tokens_max=tokens_max,
            sampling=sampling_to(sampling), stop=list(stop), system=system))
        await answer._start()
        return answer

    async def stat(self, stream: str) -> StreamStat:
        reply = await self._link.call(stat=pb.Stat(stream=check_name(stream)))
        return stream_of(reply.stat.stream)

    def follow(self, stream: str, path: Path, *, poll: float = 0.2) -> AsyncIterator[int]:
        """Feeds a file as it grows, over rotation and truncation, for as long as you iterate; the
        stream must exist. Yields how many bytes of the file siltd has on disk. A later call goes on
        after the last acked byte, first in what was rotated away meanwhile: FILE.1 to FILE.8 or
        FILE-20260531 of the last eight days, from the first that siltd knows; not packed ones."""
        return follow(self, check_name(stream), path, poll)

    def watch(self, stream: str, interval: float = 1.0) -> AsyncIterator[StreamStat]:
        """The stream's stat each time it has changed, without an end."""
        return watch(self, check_name(stream), interval)

    async def process(self) -> ProcessStat:
        """siltd as a whole."""
        reply = await self._link.call(stat=pb.Stat())
        return process_of(reply.stat.process)

    async def list(self) -> AsyncIterator[StreamStat]:
        """All streams in order of name."""
        after = ""
        for _ in range(LIST_PAGES_MAX):
            reply = await self._link.call(list=pb.List(after=after))
            for stat in reply.list.streams:
                yield stream_of(stat)
                after = stat.stream
            if not reply.list.more or not reply.list.streams:
                return

    async def fork(self, stream: str, branch: str) -> int:
        """Makes a branch that has all that was acked of the stream; how many tokens that is."""
        reply = await self._link.call(change=True, fork=pb.Fork(
            stream=check_name(stream), branch=check_name(branch)))
        return int(reply.forked.tokens)

    async def remove(self, stream: str) -> None:
        await self._link.call(change=True, remove=pb.Remove(stream=check_name(stream)))

    async def forget(self, stream: str, start: int, end: int) -> int:
        """Takes tokens [start, end) out for good; returns how many the stream has then."""
        wire: Dict[str, Any] = {"stream": check_name(stream), "from": start, "to": end}
        reply = await self._link.call(change=True, forget=pb.Forget(**wire))
        return int(reply.forgotten.tokens)

    async def pins(self, stream: str) -> Pins:
        """What is pinned of a stream."""
        return await self._pins(stream, pb.Pins.LIST)

    async def pin(self, stream: str, start: int, end: int) -> Pins:
        """Keeps tokens [start, end) uncompressed in the stream's memory: rules, a system prompt.
        Returns what is pinned then."""
        return await self._pins(stream, pb.Pins.PIN, start, end)

    async def unpin(self, stream: str, start: int, end: int) -> Pins:
        """Lets go of every pin that has some of [start, end); returns what is pinned then."""
        return await self._pins(stream, pb.Pins.UNPIN, start, end)

    async def _pins(self, stream: str, verb: "pb.Pins.Verb", start: int = 0, end: int = 1) -> Pins:
        if not 0 <= start < end:
            raise Invalid(f"tokens {start} to {end} are no range: start comes before end")
        wire: Dict[str, Any] = {"stream": check_name(stream), "verb": verb, "from": start,
                                "to": end}
        change = verb != pb.Pins.LIST
        return pins_of((await self._link.call(change=change, pins=pb.Pins(**wire))).pins)

    async def keys(self) -> Keys:
        """siltd's own public key, and the keys that may reach it over the network. This and the
        next two are answered on siltd's local socket alone; `silt key new` makes a key."""
        grants: List[Grant] = []
        for _ in range(LIST_PAGES_MAX):
            reply = (await self._link.call(keys=pb.Keys(after=len(grants)))).keys
            grants += map(grant_of, reply.grants)
            if not reply.more or not reply.grants:
                break
        return Keys(reply.server_key, reply.listen, tuple(grants))

    async def key_allow(self, key: str, stream: Optional[str], *, name: str = "") -> None:
        """Lets a public key reach a stream, or with None every stream."""
        # Letters of the key itself, as far as a name may have them: as `silt key allow`.
        await self._key(pb.Keys.ALLOW, key, stream,
                        name or re.sub("[^A-Za-z0-9]", "", key)[:8])

    async def key_deny(self, key: str, stream: Optional[str] = None) -> None:
        """Takes a stream from a key, or with None all that it has, at once."""
        await self._key(pb.Keys.DENY, key, stream, "")

    async def _key(self, verb: "pb.Keys.Verb", key: str, stream: Optional[str], name: str) -> None:
        if not is_key(key):
            raise Invalid(f'"{key[:60]}" is no public key: `silt key new` prints one')
        await self._link.call(gone=verb == pb.Keys.DENY, keys=pb.Keys(
            verb=verb, key=key, name=name,
            stream=check_name(stream) if stream is not None else "", all=stream is None))
