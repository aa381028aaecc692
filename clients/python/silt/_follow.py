"""Follows a file that grows, and a stream's stat: iterators without an end.

A name may have gone to another file while nobody looked, or more than once between two looks: what
rotation left of the files it had before is read first, from the first of them that siltd knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import AsyncIterator, BinaryIO, List, Optional, Protocol, Union

from ._feed import PIECE_BYTES, AsyncFeed
from ._types import StreamStat

HEAD_BYTES = 1024
QUIET_SECONDS = 2.0  # a writer may still hold the old file for a moment
ROTATED_MAX = 8  # FILE.1 to FILE.8, and FILE-20260531 of as many days
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")

Path = Union[str, "os.PathLike[str]"]


class _Client(Protocol):
    async def feed(self, stream: str, producer: str) -> AsyncFeed: ...

    async def stat(self, stream: str) -> StreamStat: ...


def _open(path: Path) -> Optional[BinaryIO]:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        return None


def _same(file: BinaryIO, path: Path) -> bool:
    """Whether the name still leads to the file; a name that is gone for a moment does."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return True


def _head(file: BinaryIO) -> bytes:
    """Its first line, which with device and inode is what it is known by; empty: none yet."""
    head = os.pread(file.fileno(), HEAD_BYTES, 0)
    end = head.find(b"\n") + 1
    return head[:end] if end else head if len(head) == HEAD_BYTES else b""


def _producer(file: BinaryIO, head: bytes, generation: int) -> str:
    stat = os.fstat(file.fileno())
    known = hashlib.sha256(b"%d %d %d " % (stat.st_dev, stat.st_ino, generation) + head)
    return f"pyfile-{known.hexdigest()[:24]}"


async def _attach(client: _Client, stream: str, file: BinaryIO, head: bytes) -> AsyncFeed:
    """A file shorter than what was acked of it was emptied: its next generation starts anew."""
    generation = 0
    while True:
        feed = await client.feed(stream, _producer(file, head, generation))
        if feed.bytes_acked <= os.fstat(file.fileno()).st_size:
            return feed
        await feed.close()
        generation += 1


def _rotated(path: Path, now: BinaryIO) -> List[BinaryIO]:
    """What is left of the files that the name had before, by names that rotation gives, oldest
    first; packed ones cannot be read, and the one that has the name now is none of them."""
    name, today = os.fspath(path), time.time()
    files: List[BinaryIO] = []
    for i in reversed(range(ROTATED_MAX)):  # of equals the higher number is older
        day = time.strftime("%Y%m%d", time.localtime(today - i * 86400))
        for old in (f"{name}.{i + 1}", f"{name}-{day}"):
            file = _open(old) if os.path.isfile(old) else None
            if file is None:
                continue
            if os.pread(file.fileno(), 8, 0).startswith(PACKED) or os.path.samestat(
                    os.fstat(file.fileno()), os.fstat(now.fileno())):
                file.close()
            else:
                files.append(file)
    files.sort(key=lambda file: os.fstat(file.fileno()).st_mtime_ns)
    for file in files[:-ROTATED_MAX]:
        file.close()
    return files[-ROTATED_MAX:]


async def _behind(client: _Client, stream: str, path: Path, now: BinaryIO) -> AsyncIterator[int]:
    """Feeds what siltd has not of the files that the name had before `now`."""
    files, known = _rotated(path, now), False
    try:
        for file in files:
            head = _head(file)
            feed = await _attach(client, stream, file, head) if head else None
            if feed is None:
                continue
            try:
                at = feed.bytes_acked
                known = known or at > 0
                while known and (piece := os.pread(file.fileno(), PIECE_BYTES, at)):
                    await feed.write(piece)
                    at += len(piece)
                if at > feed.bytes_acked:
                    await feed.drain()
                    yield feed.bytes_acked
            finally:
                await feed.close()
    finally:
        for file in files:
            file.close()


async def _one(feed: AsyncFeed, file: BinaryIO, head: bytes, path: Path,
               poll: float) -> AsyncIterator[int]:
    """Feeds one file until its name goes to another, or it is emptied."""
    at, acked, quiet = feed.bytes_acked, feed.bytes_acked, time.monotonic()
    while True:
        if os.fstat(file.fileno()).st_size < at or os.pread(file.fileno(), len(head), 0) != head:
            await feed.drain()
            return
        piece = os.pread(file.fileno(), PIECE_BYTES, at)
        if piece:
            await feed.write(piece)
            at += len(piece)
            quiet = time.monotonic()
        else:
            feed.check()  # what was refused is said now, not when the file grows again
            await asyncio.sleep(poll)
        if feed.bytes_acked != acked:
            acked = feed.bytes_acked
            yield acked
        if not piece and acked == at and not _same(file, path) and (
                time.monotonic() - quiet > QUIET_SECONDS):
            return


async def follow(client: _Client, stream: str, path: Path, poll: float) -> AsyncIterator[int]:
    before = None  # device and inode of the file that was read last
    while True:
        file = _open(path)
        if file is None:
            await asyncio.sleep(poll)
            continue
        with file:
            head = _head(file)
            if not head:
                await asyncio.sleep(poll)
                continue
            stat = os.fstat(file.fileno())
            if before != (stat.st_dev, stat.st_ino):
                async for acked in _behind(client, stream, path, file):
                    yield acked
            before = (stat.st_dev, stat.st_ino)
            feed = await _attach(client, stream, file, head)
            try:
                async for acked in _one(feed, file, head, path, poll):
                    yield acked
            finally:
                await feed.close()


async def watch(client: _Client, stream: str, interval: float) -> AsyncIterator[StreamStat]:
    last: Optional[StreamStat] = None
    while True:
        stat = await client.stat(stream)
        if stat != last:
            last = stat
            yield stat
        await asyncio.sleep(interval)
