"""The connection: one DEALER socket after the other, and who waits for which reply.

A socket lives from one connection to the next: when a connection goes, the socket goes with all
that was queued in it, so that nothing old reaches a new siltd behind the back of the sequence
numbers. Whoever waits is told by the number of the epoch that ended, and sends again what may be
sent again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Callable, Dict, Optional, Protocol, Tuple, Union

import zmq
import zmq.asyncio
from google.protobuf.message import DecodeError
from zmq.utils.monitor import parse_monitor_message

from . import silt_pb2 as pb
from ._errors import Denied, Invalid, Lost, Silent, TooLarge, Unreachable, of_wire
from ._keys import Curve, is_strangers
from ._types import FRAME_BYTES_MAX

RECONNECT_FIRST_MS = 50  # doubles up to the last
RECONNECT_LAST_MS = 2000
HEARTBEAT_MS = 5000  # finds a peer that is gone without a word, over TCP
HEARTBEAT_DEAD_MS = 20000
SEND_QUEUE_MAX = 256
BLOCKED_SECONDS = 0.005  # until the next try to send
LATER_MAX = 150  # sends of one request
BUSY_SECONDS = 5.0  # to try again for, where siltd is busy: a stream comes back, a question ends
REPLIES_PER_TURN = 64
LAST_REPLIES_MAX = 1024
EVENT_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH


class Listener(Protocol):
    """A feed: gets what no request waits for."""

    def reply(self, reply: pb.Reply) -> bool: ...
    def link_changed(self) -> None: ...


class Link:
    def __init__(self, endpoint: str, curve: Optional[Curve], connect_timeout: float,
                 reconnect_timeout: float, timeout: float,
                 on_link: Optional[Callable[[bool], None]]) -> None:
        self.endpoint = endpoint
        self._curve = curve
        self._denied = False
        self._stranger = False  # who listens there is another user, and gets nothing
        self._closed = False
        self.connect_timeout = connect_timeout
        self.reconnect_timeout = reconnect_timeout
        self.timeout = timeout
        self.on_link = on_link
        self.epoch = 0  # connections so far
        self.connected = False
        self.listeners: Dict[Tuple[str, str], Listener] = {}
        self._waiting: Dict[int, asyncio.Queue[Union[pb.Reply, int]]] = {}
        self._id_last = 0
        self._misses = 0  # connections in a row that brought no reply
        self._down_since = time.monotonic()
        self._context: Optional[zmq.asyncio.Context] = None
        self._socket: Optional[zmq.asyncio.Socket] = None
        self._task: Optional[asyncio.Task[None]] = None

    async def start(self) -> None:
        """Before every use: the first one makes the socket, in the loop that uses it."""
        if self._closed:
            raise Lost("the client is closed")
        if self._task is not None:
            return
        self._up = asyncio.Event()
        self._down_since = time.monotonic()
        self._context = zmq.asyncio.Context()
        first = self._open_socket()  # a wrong endpoint is said at once
        self._task = asyncio.get_running_loop().create_task(self._run(first))

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._up.set()  # whoever waits need not any longer
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._context is not None:
            self._context.term()
            self._context = None

    def _open_socket(self) -> Tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]:
        assert self._context is not None
        socket = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.IMMEDIATE, 1), (zmq.SNDHWM, SEND_QUEUE_MAX),
                              (zmq.RECONNECT_IVL, RECONNECT_FIRST_MS),
                              (zmq.RECONNECT_IVL_MAX, RECONNECT_LAST_MS),
                              (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
                              (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_DEAD_MS),
                              (zmq.MAXMSGSIZE, FRAME_BYTES_MAX)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IPV6, "[" in self.endpoint)
        if self._curve is not None:
            socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = self._curve
        monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED |
                                            EVENT_DENIED | zmq.EVENT_DISCONNECTED)
        monitor.setsockopt(zmq.LINGER, 0)
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self._close_sockets(socket, monitor)
            assert self._context is not None
            self._context.term()
            self._context = None
            raise Invalid(f'cannot connect to "{self.endpoint}": {error.strerror}. An endpoint '
                          "looks like ipc:///run/silt/silt.sock or tcp://HOST:PORT") from None
        self._socket = socket
        return socket, monitor

    @staticmethod
    def _close_sockets(socket: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket) -> None:
        socket.disable_monitor()
        monitor.close()
        socket.close()

    async def _run(self, sockets: Tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]) -> None:
        while True:
            try:
                await self._serve(*sockets)
            finally:
                self._close_sockets(*sockets)
                self._gone()
            await self._pause()
            sockets = await self._open_again()

    async def _pause(self) -> None:
        """libzmq pauses where nobody listens; who takes the connection and cuts it, again and
        again, as a siltd with another key does, is given the same pauses here."""
        if self._misses:
            pause_ms = RECONNECT_FIRST_MS << min(self._misses - 1, 7)
            await asyncio.sleep(min(pause_ms, RECONNECT_LAST_MS) / 1000)
        self._misses += 1

    async def _open_again(self) -> Tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]:
        while True:
            try:
                return self._open_socket()
            except zmq.ZMQError:  # too many open files: there may be room later
                await asyncio.sleep(RECONNECT_LAST_MS / 1000)

    async def _serve(self, socket: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket) -> None:
        """Until the connection ends."""
        poller = zmq.asyncio.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        while True:
            ready = dict(await poller.poll())
            if socket in ready:  # replies before the news that their connection is gone
                await self._receive(socket, REPLIES_PER_TURN)
            if monitor not in ready:
                continue
            event = parse_monitor_message(await monitor.recv_multipart())
            if event["event"] == zmq.EVENT_CONNECTED:
                self._stranger = is_strangers(self.endpoint, event["value"])
                if not self._stranger:
                    continue
                self._up.set()  # whoever waits need not any longer
                return
            if event["event"] == EVENT_DENIED:
                self._denied = True
                self._up.set()  # whoever waits need not any longer
                continue
            if event["event"] == zmq.EVENT_DISCONNECTED:
                await self._receive(socket, LAST_REPLIES_MAX)
                return
            self._come()

    async def _receive(self, socket: zmq.asyncio.Socket, most: int) -> None:
        for _ in range(most):
            try:
                frame = await socket.recv(zmq.DONTWAIT)
                reply = pb.Reply.FromString(frame)
            except zmq.Again:
                return
            except DecodeError:  # no reply of ours: whoever asked runs into the time limit
                continue
            self._reply(reply)

    def _reply(self, reply: pb.Reply) -> None:
        self._misses = 0
        waiting = self._waiting.get(reply.id)
        if waiting is not None:
            waiting.put_nowait(reply)
            return
        if reply.WhichOneof("body") == "ack":
            listener = self.listeners.get((reply.ack.stream, reply.ack.producer))
            if listener is not None:
                listener.reply(reply)
            return
        for listener in list(self.listeners.values()):
            if listener.reply(reply):
                return

    def _come(self) -> None:
        self.epoch += 1
        self.connected = True
        self._denied = False
        self._up.set()
        self._tell(self.epoch > 1, True)

    def _gone(self) -> None:
        was, self.connected = self.connected, False
        self._up.clear()
        if not was:
            return
        self._down_since = time.monotonic()
        for waiting in self._waiting.values():
            waiting.put_nowait(self.epoch)
        self._tell(True, False)

    def _tell(self, loud: bool, up: bool) -> None:
        for listener in list(self.listeners.values()):
            listener.link_changed()
        if not loud or self.on_link is None:
            return
        try:
            self.on_link(up)
        except Exception as error:  # the caller's; the connection goes on
            asyncio.get_running_loop().call_exception_handler(
                {"message": "on_link of a silt client failed", "exception": error})

    def next_id(self) -> int:
        self._id_last += 1
        return self._id_last

    async def wait_up(self) -> None:
        """Until there is a connection; Unreachable after the time the client allows."""
        patience = self.reconnect_timeout if self.epoch else self.connect_timeout
        while self._closed or not self.connected:
            if self._closed:
                raise Lost("the client is closed")
            if self._denied and self._curve is not None:
                raise Denied(f"siltd at {self.endpoint} does not take this client's key: on its "
                             "machine, `silt key allow '"
                             f"{self._curve.public_key.decode()}' STREAM` lets it in")
            if self._stranger:
                raise Denied(f"{self.endpoint} is not this user's siltd: another user has made "
                             "that folder and listens there; have it removed, or name another "
                             "endpoint by endpoint= or SILT_ENDPOINT")
            left = patience - (time.monotonic() - self._down_since)
            if left <= 0:
                raise Unreachable(
                    f"siltd at {self.endpoint} went away and has not come back" if self.epoch else
                    f"no siltd answers at {self.endpoint}: start one (siltd --listen ENDPOINT), or "
                    "name another by endpoint= or SILT_ENDPOINT")
            try:
                await asyncio.wait_for(self._up.wait(), min(left, 3600))
            except asyncio.TimeoutError:
                pass

    async def send(self, frame: bytes) -> int:
        """Sends when it can; returns the epoch it was sent in."""
        while True:
            await self.wait_up()
            assert self._socket is not None
            try:
                await self._socket.send(frame, zmq.DONTWAIT)
                return self.epoch
            except zmq.Again:
                await asyncio.sleep(BLOCKED_SECONDS)

    def expect(self, request_id: int) -> "asyncio.Queue[Union[pb.Reply, int]]":
        queue: asyncio.Queue[Union[pb.Reply, int]] = asyncio.Queue()
        self._waiting[request_id] = queue
        return queue

    def forget(self, request_id: int) -> None:
        self._waiting.pop(request_id, None)

    async def call(self, change: bool = False, gone: bool = False, **body: Any) -> pb.Reply:
        """A request with one reply, asked again on a new connection and, for BUSY_SECONDS, where
        siltd is busy. change: siltd does not do it twice; gone: NotFound, when it was asked again
        on a new connection, says that it is done."""
        await self.start()
        request_id = self.next_id()
        if change:
            body["change"] = 1 + secrets.randbits(63)
        frame = pack(request_id, body)
        queue = self.expect(request_id)
        sends, lost, busy = 1, False, Patience()
        try:
            epoch = await self.send(frame)
            while True:
                try:
                    reply = await asyncio.wait_for(queue.get(), self.timeout)
                except asyncio.TimeoutError:
                    raise Silent(f"siltd at {self.endpoint} did not answer in "
                                 f"{self.timeout:.0f} s") from None
                if isinstance(reply, int):
                    if reply >= epoch:
                        epoch = await self.send(frame)
                        sends, lost = sends + 1, True
                    continue
                if reply.WhichOneof("body") != "error":
                    return reply
                if gone and lost and reply.error.code == pb.Error.NOT_FOUND:
                    return pb.Reply()
                # It may be in siltd's hands from the first time: its end says what became of it.
                still = change and lost and sends <= LATER_MAX
                if not busy.lasts(reply.error, still):
                    raise of_wire(reply.error)
                await asyncio.sleep(reply.error.retry_us / 1e6)
                epoch = await self.send(frame)
                sends += 1
        finally:
            self.forget(request_id)


class Patience:
    """How long siltd has been busy for one request."""

    def __init__(self) -> None:
        self._since = 0.0

    def lasts(self, error: pb.Error, longer: bool = False) -> bool:
        """Whether to try again after error.retry_us."""
        self._since = self._since or time.monotonic()
        return error.code == pb.Error.BUSY and error.retry_us > 0 and (
            longer or time.monotonic() < self._since + BUSY_SECONDS)


def pack(request_id: int, body: Dict[str, Any]) -> bytes:
    frame: bytes = pb.Request(id=request_id, **body).SerializeToString()
    if len(frame) > FRAME_BYTES_MAX:
        raise TooLarge(f"a message is at most {FRAME_BYTES_MAX} bytes on the wire")
    return frame
