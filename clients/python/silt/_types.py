"""What calls return, apart from the wire: frozen, typed, and compared by value."""

from __future__ import annotations

import dataclasses
import re
from typing import Iterable, Optional, Tuple

from . import silt_pb2 as pb
from ._errors import Invalid

FRAME_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 128
PRODUCER_BYTES_MAX = 64
STOP_MAX = 8
TOP_P_LEAST = 2.0 ** -126  # the least that a float holds in full: the likeliest token alone


@dataclasses.dataclass(frozen=True)
class Opened:
    stream: str
    created: bool
    dmc_ratio: int
    ring_segments: int
    bytes_plan: int
    compression_off: bool


@dataclasses.dataclass(frozen=True)
class Tier:
    name: str
    bytes_plan: int
    bytes_used: int
    on_device: bool = False  # of the GPU's memory


@dataclasses.dataclass(frozen=True)
class Pin:
    """Tokens [start, end) of a stream that stay uncompressed in its memory."""

    start: int
    end: int
    held: bool  # the stream attends to it; False: only questions do, until its next chunk


@dataclasses.dataclass(frozen=True)
class Pins:
    tokens_max: int  # of all pins of a stream together; 0: this siltd keeps none
    pins: Tuple[Pin, ...]


@dataclasses.dataclass(frozen=True)
class Grant:
    """A key that may reach siltd over the network, and what it may reach."""

    key: str  # public
    name: str  # what people call it
    stream: Optional[str]  # None: every stream


@dataclasses.dataclass(frozen=True)
class Keys:
    server_key: str  # public; clients need it
    listen: str  # the endpoint that takes keys; empty: none does
    grants: Tuple[Grant, ...]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a stream's memory costs: as it reads, against the newest 2,048 tokens uncompressed."""

    chunks: int  # scored
    with_memory: float  # mean nats a token
    with_window: float
    difference: float  # above 0: the memory loses
    low: float  # of its 95 % interval
    high: float
    flagged: bool  # low is above siltd's --loss-flag


@dataclasses.dataclass(frozen=True)
class StreamStat:
    stream: str
    tokens_acked: int
    tokens_computed: int
    lag_tokens: int
    tokens_per_second: float
    chunks: int
    segments_ring: int
    segments_cold: int
    bytes_plan: int
    bytes_disk: int
    bytes_text: int
    bytes_segments: int  # parts of bytes_disk
    bytes_checkpoints: int
    bytes_index: int
    tiers: Tuple[Tier, ...]
    memory_hash: Optional[str]  # 16 hex digits; None: not known while it is parked
    hash_chunk: int
    indexed_to: int
    dmc_ratio: float  # realised
    dmc_ratio_asked: int
    ring_segments: int
    rows_mean: float
    head_ratio: Tuple[float, ...]  # [layers * kv_heads]
    layers: int
    kv_heads: int
    created_us: int
    numerics_epoch: int
    first_position: int  # text before it was trimmed away
    rebuilding_to: int  # read again from the journal up to here; 0: no
    segments_merged: int  # cold, for the quota's sake, since siltd started
    segments_dropped: int
    segments_repaired: int  # found unfit, and made again as they were
    segments_approximate: int  # the same, from their neighbours
    degraded: Tuple[str, ...]  # empty: well
    pin_tokens: int  # of all pins together
    pin_tokens_max: int
    pins: Tuple[Pin, ...]  # of stat(); list() leaves them out; parked: not known
    parked: bool  # on the disk alone, until it is fed or asked
    stopped: bool  # computed no further until siltd is started again: degraded says why
    loss: Optional[Loss]  # None: not measured yet
    recall_hits: int  # cold segments that came back for questions
    recalled: Tuple[int, ...]  # the last ones, by chunk
    recalled_us: int  # when, wall clock; 0: never

    @property
    def memory_bytes_used(self) -> int:
        return sum(tier.bytes_used for tier in self.tiers)


@dataclasses.dataclass(frozen=True)
class ProcessStat:
    version: str
    model: str
    adapter: str  # empty: compression is off
    kernels: str
    device: str
    threads: int
    uptime_us: int
    streams: int
    streams_max: int
    forks: int
    forks_max: int
    tokens_computed: int
    compute_us: int  # of the compute thread
    meter_us: int  # of that, the loss meter's
    read_us: int  # in passes over streams' text,
    passes: int  # so many,
    wait_us: int  # for the device alone in these
    leave_us: int  # handing segments to the disk's thread,
    disk_us: int  # for the disk alone in that
    save_us: int  # behind passes: statistics and checkpoints
    loss_flag: float  # a stream that surely loses more is flagged
    bytes_plan: int
    bytes_used: int
    bytes_disk: int
    bytes_resident: int
    tiers: Tuple[Tier, ...]
    degraded: Tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    segment: int
    start: int  # tokens, half-open
    end: int
    time_us: int
    text: str


@dataclasses.dataclass(frozen=True)
class Done:
    """How an answer ended, and what it saw."""

    position: int  # tokens of the stream that the answer saw
    acked: int
    question_tokens: int
    answer_tokens: int
    finish: str  # end, length, stop or cancelled
    sources: Tuple[Source, ...]
    wait_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    temperature: float = 0.2
    top_p: float = 0.95
    min_p: float = 0.0
    top_k: int = 0
    repeat_penalty: float = 1.1
    seed: int = 1


def check_name(name: str, what: str = "stream", most: int = NAME_BYTES_MAX) -> str:
    if len(name) > most or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise Invalid(f'"{name[:140]}" is not a {what}\'s name: use 1 to {most} of '
                      "A-Z a-z 0-9 . _ - and no dot at the start")
    return name


def _tiers(tiers: Iterable[pb.Tier]) -> Tuple[Tier, ...]:
    return tuple(Tier(t.name, t.bytes_plan, t.bytes_used, t.on_device) for t in tiers)


def opened_of(wire: pb.Opened) -> Opened:
    return Opened(wire.stream, wire.created, wire.dmc_ratio, wire.ring_segments, wire.bytes_plan,
                  wire.compression_off)


def stream_of(wire: pb.StreamStat) -> StreamStat:
    return StreamStat(
        stream=wire.stream, tokens_acked=wire.tokens_acked, tokens_computed=wire.tokens_computed,
        lag_tokens=wire.lag_tokens, tokens_per_second=wire.tokens_per_second, chunks=wire.chunks,
        segments_ring=wire.segments_ring, segments_cold=wire.segments_cold,
        bytes_plan=wire.bytes_plan, bytes_disk=wire.bytes_disk, bytes_text=wire.bytes_text,
        tiers=_tiers(wire.tiers),
        memory_hash=f"{wire.memory_hash:016x}" if wire.hash_chunk or not wire.chunks else None,
        hash_chunk=wire.hash_chunk, indexed_to=wire.indexed_to, dmc_ratio=wire.dmc_ratio,
        dmc_ratio_asked=wire.dmc_ratio_asked, ring_segments=wire.ring_segments,
        rows_mean=wire.rows_mean, head_ratio=tuple(wire.head_ratio), layers=wire.layers,
        kv_heads=wire.kv_heads, created_us=wire.created_us, numerics_epoch=wire.numerics_epoch,
        bytes_segments=wire.bytes_segments, bytes_checkpoints=wire.bytes_checkpoints,
        bytes_index=wire.bytes_index, first_position=wire.first_position,
        rebuilding_to=wire.rebuilding_to, segments_merged=wire.segments_merged,
        segments_dropped=wire.segments_dropped, segments_repaired=wire.segments_repaired,
        segments_approximate=wire.segments_approximate, pin_tokens=wire.pin_tokens,
        pin_tokens_max=wire.pin_tokens_max, pins=_pins(wire.pins), parked=wire.parked,
        stopped=wire.stopped,
        degraded=tuple(wire.degraded), loss=_loss(wire), recall_hits=wire.recall_hits,
        recalled=tuple(wire.recalled), recalled_us=wire.recalled_us)


def _pins(pins: Iterable[pb.Pin]) -> Tuple[Pin, ...]:
    return tuple(Pin(getattr(pin, "from"), pin.to, pin.held) for pin in pins)


def pins_of(wire: pb.PinsReply) -> Pins:
    return Pins(wire.tokens_max, _pins(wire.pins))


def grant_of(wire: pb.Grant) -> Grant:
    return Grant(wire.key, wire.name, wire.stream or None)


def _loss(wire: pb.StreamStat) -> Optional[Loss]:
    if not wire.HasField("loss"):
        return None
    loss = wire.loss
    return Loss(loss.chunks, loss.with_memory, loss.with_window, loss.difference, loss.low,
                loss.high, loss.flagged)


def process_of(wire: pb.ProcessStat) -> ProcessStat:
    return ProcessStat(
        version=wire.version, model=wire.model, adapter=wire.adapter, kernels=wire.kernels,
        device=wire.device, threads=wire.threads, uptime_us=wire.uptime_us, streams=wire.streams,
        streams_max=wire.streams_max, forks=wire.forks, forks_max=wire.forks_max,
        tokens_computed=wire.tokens_computed, compute_us=wire.compute_us, meter_us=wire.meter_us,
        read_us=wire.read_us, passes=wire.passes, wait_us=wire.wait_us, leave_us=wire.leave_us,
        disk_us=wire.disk_us, save_us=wire.save_us,
        loss_flag=wire.loss_flag, bytes_plan=wire.bytes_plan, bytes_used=wire.bytes_used,
        bytes_disk=wire.bytes_disk, bytes_resident=wire.bytes_resident,
        tiers=_tiers(wire.tiers), degraded=tuple(wire.degraded))


def done_of(wire: pb.Done) -> Done:
    sources = (Source(s.segment, getattr(s, "from"), s.to, s.time_us, s.text)
               for s in wire.sources)
    names = ("end", "length", "stop", "cancelled")
    return Done(wire.position, wire.acked, wire.question_tokens, wire.answer_tokens,
                names[wire.finish] if wire.finish < len(names) else "end", tuple(sources),
                wire.wait_us / 1e6, wire.prefill_us / 1e6, wire.decode_us / 1e6)


def sampling_to(sampling: Optional[Sampling]) -> Optional[pb.Sampling]:
    if sampling is None:
        return None
    wire = pb.Sampling(**dataclasses.asdict(sampling))
    wire.top_p = wire.top_p or TOP_P_LEAST  # 0 on the wire is all, as it is where nothing is said
    return wire
