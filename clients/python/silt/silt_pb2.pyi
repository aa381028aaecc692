from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ack(_message.Message):
    __slots__ = ["bytes_acked", "credit_bytes", "producer", "sequence", "stream", "tokens_acked", "tokens_computed"]
    BYTES_ACKED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ACKED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    bytes_acked: int
    credit_bytes: int
    producer: str
    sequence: int
    stream: str
    tokens_acked: int
    tokens_computed: int
    def __init__(self, stream: _Optional[str] = ..., producer: _Optional[str] = ..., sequence: _Optional[int] = ..., bytes_acked: _Optional[int] = ..., tokens_acked: _Optional[int] = ..., tokens_computed: _Optional[int] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ["at_given", "at_position", "keep", "question", "recall", "sampling", "stop", "stream", "system", "tokens_max", "wait"]
    class Recall(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    AT_GIVEN_FIELD_NUMBER: _ClassVar[int]
    AT_POSITION_FIELD_NUMBER: _ClassVar[int]
    AUTO: Ask.Recall
    KEEP_FIELD_NUMBER: _ClassVar[int]
    NONE: Ask.Recall
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS: Ask.Recall
    STOP_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    TEXT: Ask.Recall
    TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    at_given: bool
    at_position: int
    keep: bool
    question: str
    recall: Ask.Recall
    sampling: Sampling
    stop: _containers.RepeatedScalarFieldContainer[str]
    stream: str
    system: str
    tokens_max: int
    wait: bool
    def __init__(self, stream: _Optional[str] = ..., question: _Optional[str] = ..., recall: _Optional[_Union[Ask.Recall, str]] = ..., wait: bool = ..., at_position: _Optional[int] = ..., at_given: bool = ..., keep: bool = ..., tokens_max: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop: _Optional[_Iterable[str]] = ..., system: _Optional[str] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ["producer", "stream"]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    producer: str
    stream: str
    def __init__(self, stream: _Optional[str] = ..., producer: _Optional[str] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ["bytes_acked", "credit_bytes", "next_sequence", "producer", "stream"]
    BYTES_ACKED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    bytes_acked: int
    credit_bytes: int
    next_sequence: int
    producer: str
    stream: str
    def __init__(self, stream: _Optional[str] = ..., producer: _Optional[str] = ..., next_sequence: _Optional[int] = ..., bytes_acked: _Optional[int] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ["ask_id"]
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    ask_id: int
    def __init__(self, ask_id: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ["acked", "answer_tokens", "decode_us", "finish", "position", "prefill_us", "question_tokens", "rebuilding_to", "sources", "wait_us"]
    class Finish(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    ACKED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED: Done.Finish
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    END: Done.Finish
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LENGTH: Done.Finish
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_FIELD_NUMBER: _ClassVar[int]
    QUESTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REBUILDING_TO_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    STOP: Done.Finish
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    acked: int
    answer_tokens: int
    decode_us: int
    finish: Done.Finish
    position: int
    prefill_us: int
    question_tokens: int
    rebuilding_to: int
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    wait_us: int
    def __init__(self, position: _Optional[int] = ..., acked: _Optional[int] = ..., question_tokens: _Optional[int] = ..., answer_tokens: _Optional[int] = ..., finish: _Optional[_Union[Done.Finish, str]] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., wait_us: _Optional[int] = ..., prefill_us: _Optional[int] = ..., decode_us: _Optional[int] = ..., rebuilding_to: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ["code", "expected_sequence", "message", "retry_us"]
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    BUSY: Error.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    DENIED: Error.Code
    EXISTS: Error.Code
    EXPECTED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GAP: Error.Code
    INTERNAL: Error.Code
    INVALID: Error.Code
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NOT_FOUND: Error.Code
    NO_SPACE: Error.Code
    RETRY_US_FIELD_NUMBER: _ClassVar[int]
    SHUTTING_DOWN: Error.Code
    TOO_LARGE: Error.Code
    UNSUPPORTED: Error.Code
    code: Error.Code
    expected_sequence: int
    message: str
    retry_us: int
    def __init__(self, code: _Optional[_Union[Error.Code, str]] = ..., message: _Optional[str] = ..., retry_us: _Optional[int] = ..., expected_sequence: _Optional[int] = ...) -> None: ...

class Feed(_message.Message):
    __slots__ = ["items", "producer", "sequence", "stream", "time_us"]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    producer: str
    sequence: int
    stream: str
    time_us: int
    def __init__(self, stream: _Optional[str] = ..., producer: _Optional[str] = ..., sequence: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., time_us: _Optional[int] = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ["stream", "to"]
    FROM_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    stream: str
    to: int
    def __init__(self, stream: _Optional[str] = ..., to: _Optional[int] = ..., **kwargs) -> None: ...

class Forgotten(_message.Message):
    __slots__ = ["stream", "to", "tokens"]
    FROM_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    stream: str
    to: int
    tokens: int
    def __init__(self, stream: _Optional[str] = ..., to: _Optional[int] = ..., tokens: _Optional[int] = ..., **kwargs) -> None: ...

class Fork(_message.Message):
    __slots__ = ["branch", "stream"]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    branch: str
    stream: str
    def __init__(self, stream: _Optional[str] = ..., branch: _Optional[str] = ...) -> None: ...

class Forked(_message.Message):
    __slots__ = ["branch", "stream", "tokens"]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    branch: str
    stream: str
    tokens: int
    def __init__(self, stream: _Optional[str] = ..., branch: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ["key", "name", "stream"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    key: str
    name: str
    stream: str
    def __init__(self, key: _Optional[str] = ..., name: _Optional[str] = ..., stream: _Optional[str] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ["mark", "text", "tokens", "turn"]
    MARK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    mark: Mark
    text: bytes
    tokens: Tokens
    turn: Turn
    def __init__(self, text: _Optional[bytes] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ..., mark: _Optional[_Union[Mark, _Mapping]] = ...) -> None: ...

class Keys(_message.Message):
    __slots__ = ["after", "all", "key", "name", "stream", "verb"]
    class Verb(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    AFTER_FIELD_NUMBER: _ClassVar[int]
    ALLOW: Keys.Verb
    ALL_FIELD_NUMBER: _ClassVar[int]
    DENY: Keys.Verb
    KEY_FIELD_NUMBER: _ClassVar[int]
    LIST: Keys.Verb
    NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    after: int
    all: bool
    key: str
    name: str
    stream: str
    verb: Keys.Verb
    def __init__(self, verb: _Optional[_Union[Keys.Verb, str]] = ..., key: _Optional[str] = ..., name: _Optional[str] = ..., stream: _Optional[str] = ..., all: bool = ..., after: _Optional[int] = ...) -> None: ...

class KeysReply(_message.Message):
    __slots__ = ["grants", "listen", "more", "server_key"]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SERVER_KEY_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    listen: str
    more: bool
    server_key: str
    def __init__(self, server_key: _Optional[str] = ..., grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ..., more: bool = ..., listen: _Optional[str] = ...) -> None: ...

class List(_message.Message):
    __slots__ = ["after"]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: str
    def __init__(self, after: _Optional[str] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ["more", "streams"]
    MORE_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    more: bool
    streams: _containers.RepeatedCompositeFieldContainer[StreamStat]
    def __init__(self, streams: _Optional[_Iterable[_Union[StreamStat, _Mapping]]] = ..., more: bool = ...) -> None: ...

class LossMeter(_message.Message):
    __slots__ = ["chunks", "difference", "flagged", "high", "low", "with_memory", "with_window"]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    WITH_MEMORY_FIELD_NUMBER: _ClassVar[int]
    WITH_WINDOW_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    difference: float
    flagged: bool
    high: float
    low: float
    with_memory: float
    with_window: float
    def __init__(self, chunks: _Optional[int] = ..., with_memory: _Optional[float] = ..., with_window: _Optional[float] = ..., difference: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., flagged: bool = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ["kind"]
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    END_OF_INPUT: Mark.Kind
    FLUSH: Mark.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_CHANGE: Mark.Kind
    kind: Mark.Kind
    def __init__(self, kind: _Optional[_Union[Mark.Kind, str]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ["dmc_auto", "dmc_ratio", "ring_segments", "stream"]
    DMC_AUTO_FIELD_NUMBER: _ClassVar[int]
    DMC_RATIO_FIELD_NUMBER: _ClassVar[int]
    RING_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    dmc_auto: bool
    dmc_ratio: int
    ring_segments: int
    stream: str
    def __init__(self, stream: _Optional[str] = ..., dmc_ratio: _Optional[int] = ..., ring_segments: _Optional[int] = ..., dmc_auto: bool = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ["bytes_plan", "compression_off", "created", "dmc_ratio", "ring_segments", "stream"]
    BYTES_PLAN_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_OFF_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    DMC_RATIO_FIELD_NUMBER: _ClassVar[int]
    RING_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    bytes_plan: int
    compression_off: bool
    created: bool
    dmc_ratio: int
    ring_segments: int
    stream: str
    def __init__(self, stream: _Optional[str] = ..., created: bool = ..., dmc_ratio: _Optional[int] = ..., ring_segments: _Optional[int] = ..., bytes_plan: _Optional[int] = ..., compression_off: bool = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ["held", "to"]
    FROM_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    held: bool
    to: int
    def __init__(self, to: _Optional[int] = ..., held: bool = ..., **kwargs) -> None: ...

class Pins(_message.Message):
    __slots__ = ["stream", "to", "verb"]
    class Verb(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    FROM_FIELD_NUMBER: _ClassVar[int]
    LIST: Pins.Verb
    PIN: Pins.Verb
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    UNPIN: Pins.Verb
    VERB_FIELD_NUMBER: _ClassVar[int]
    stream: str
    to: int
    verb: Pins.Verb
    def __init__(self, stream: _Optional[str] = ..., verb: _Optional[_Union[Pins.Verb, str]] = ..., to: _Optional[int] = ..., **kwargs) -> None: ...

class PinsReply(_message.Message):
    __slots__ = ["pins", "stream", "tokens_max"]
    PINS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    stream: str
    tokens_max: int
    def __init__(self, stream: _Optional[str] = ..., pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ..., tokens_max: _Optional[int] = ...) -> None: ...

class ProcessStat(_message.Message):
    __slots__ = ["adapter", "bytes_disk", "bytes_plan", "bytes_resident", "bytes_used", "compute_us", "degraded", "device", "disk_us", "forks", "forks_max", "kernels", "leave_us", "loss_flag", "meter_us", "model", "passes", "read_us", "save_us", "streams", "streams_max", "threads", "tiers", "tokens_computed", "uptime_us", "version", "wait_us"]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    BYTES_DISK_FIELD_NUMBER: _ClassVar[int]
    BYTES_PLAN_FIELD_NUMBER: _ClassVar[int]
    BYTES_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DISK_US_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    FORKS_MAX_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    LEAVE_US_FIELD_NUMBER: _ClassVar[int]
    LOSS_FLAG_FIELD_NUMBER: _ClassVar[int]
    METER_US_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    READ_US_FIELD_NUMBER: _ClassVar[int]
    SAVE_US_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_MAX_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    UPTIME_US_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    bytes_disk: int
    bytes_plan: int
    bytes_resident: int
    bytes_used: int
    compute_us: int
    degraded: _containers.RepeatedScalarFieldContainer[str]
    device: str
    disk_us: int
    forks: int
    forks_max: int
    kernels: str
    leave_us: int
    loss_flag: float
    meter_us: int
    model: str
    passes: int
    read_us: int
    save_us: int
    streams: int
    streams_max: int
    threads: int
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    tokens_computed: int
    uptime_us: int
    version: str
    wait_us: int
    def __init__(self, bytes_plan: _Optional[int] = ..., bytes_used: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ..., bytes_disk: _Optional[int] = ..., bytes_resident: _Optional[int] = ..., streams: _Optional[int] = ..., streams_max: _Optional[int] = ..., forks: _Optional[int] = ..., forks_max: _Optional[int] = ..., model: _Optional[str] = ..., adapter: _Optional[str] = ..., kernels: _Optional[str] = ..., threads: _Optional[int] = ..., device: _Optional[str] = ..., uptime_us: _Optional[int] = ..., tokens_computed: _Optional[int] = ..., degraded: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., compute_us: _Optional[int] = ..., meter_us: _Optional[int] = ..., loss_flag: _Optional[float] = ..., read_us: _Optional[int] = ..., passes: _Optional[int] = ..., wait_us: _Optional[int] = ..., leave_us: _Optional[int] = ..., disk_us: _Optional[int] = ..., save_us: _Optional[int] = ...) -> None: ...

class Remove(_message.Message):
    __slots__ = ["stream"]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class Removed(_message.Message):
    __slots__ = ["stream"]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ["ack", "attached", "done", "error", "forgotten", "forked", "id", "keys", "list", "opened", "pins", "removed", "stat", "token"]
    ACK_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    STAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    attached: Attached
    done: Done
    error: Error
    forgotten: Forgotten
    forked: Forked
    id: int
    keys: KeysReply
    list: ListReply
    opened: Opened
    pins: PinsReply
    removed: Removed
    stat: StatReply
    token: Token
    def __init__(self, id: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., attached: _Optional[_Union[Attached, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., stat: _Optional[_Union[StatReply, _Mapping]] = ..., list: _Optional[_Union[ListReply, _Mapping]] = ..., removed: _Optional[_Union[Removed, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., forgotten: _Optional[_Union[Forgotten, _Mapping]] = ..., keys: _Optional[_Union[KeysReply, _Mapping]] = ..., pins: _Optional[_Union[PinsReply, _Mapping]] = ..., forked: _Optional[_Union[Forked, _Mapping]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ["ask", "attach", "cancel", "change", "feed", "forget", "fork", "id", "keys", "list", "open", "pins", "remove", "stat"]
    ASK_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    STAT_FIELD_NUMBER: _ClassVar[int]
    ask: Ask
    attach: Attach
    cancel: Cancel
    change: int
    feed: Feed
    forget: Forget
    fork: Fork
    id: int
    keys: Keys
    list: List
    open: Open
    pins: Pins
    remove: Remove
    stat: Stat
    def __init__(self, id: _Optional[int] = ..., change: _Optional[int] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., feed: _Optional[_Union[Feed, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., stat: _Optional[_Union[Stat, _Mapping]] = ..., list: _Optional[_Union[List, _Mapping]] = ..., remove: _Optional[_Union[Remove, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ..., keys: _Optional[_Union[Keys, _Mapping]] = ..., pins: _Optional[_Union[Pins, _Mapping]] = ..., fork: _Optional[_Union[Fork, _Mapping]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ["min_p", "repeat_penalty", "seed", "temperature", "top_k", "top_p"]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPEAT_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    min_p: float
    repeat_penalty: float
    seed: int
    temperature: float
    top_k: int
    top_p: float
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., top_k: _Optional[int] = ..., repeat_penalty: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ["segment", "text", "time_to_us", "time_us", "to"]
    FROM_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_US_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    segment: int
    text: str
    time_to_us: int
    time_us: int
    to: int
    def __init__(self, segment: _Optional[int] = ..., to: _Optional[int] = ..., time_us: _Optional[int] = ..., text: _Optional[str] = ..., time_to_us: _Optional[int] = ..., **kwargs) -> None: ...

class Stat(_message.Message):
    __slots__ = ["stream"]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class StatReply(_message.Message):
    __slots__ = ["process", "stream"]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    process: ProcessStat
    stream: StreamStat
    def __init__(self, process: _Optional[_Union[ProcessStat, _Mapping]] = ..., stream: _Optional[_Union[StreamStat, _Mapping]] = ...) -> None: ...

class StreamStat(_message.Message):
    __slots__ = ["bytes_checkpoints", "bytes_disk", "bytes_index", "bytes_plan", "bytes_segments", "bytes_text", "chunks", "created_us", "degraded", "dmc_ratio", "dmc_ratio_asked", "first_position", "hash_chunk", "head_ratio", "indexed_to", "kv_heads", "lag_tokens", "layers", "loss", "memory_hash", "numerics_epoch", "parked", "pin_tokens", "pin_tokens_max", "pins", "rebuilding_to", "recall_hits", "recalled", "recalled_us", "ring_segments", "rows_mean", "segments_approximate", "segments_cold", "segments_dropped", "segments_merged", "segments_repaired", "segments_ring", "stopped", "stream", "tiers", "tokens_acked", "tokens_computed", "tokens_per_second"]
    BYTES_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_DISK_FIELD_NUMBER: _ClassVar[int]
    BYTES_INDEX_FIELD_NUMBER: _ClassVar[int]
    BYTES_PLAN_FIELD_NUMBER: _ClassVar[int]
    BYTES_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_TEXT_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DMC_RATIO_ASKED_FIELD_NUMBER: _ClassVar[int]
    DMC_RATIO_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    HASH_CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEAD_RATIO_FIELD_NUMBER: _ClassVar[int]
    INDEXED_TO_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    LAG_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HASH_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    PIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PIN_TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    REBUILDING_TO_FIELD_NUMBER: _ClassVar[int]
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    RECALLED_US_FIELD_NUMBER: _ClassVar[int]
    RECALL_HITS_FIELD_NUMBER: _ClassVar[int]
    RING_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_MEAN_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_APPROXIMATE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_COLD_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_MERGED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_REPAIRED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_RING_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ACKED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    bytes_checkpoints: int
    bytes_disk: int
    bytes_index: int
    bytes_plan: int
    bytes_segments: int
    bytes_text: int
    chunks: int
    created_us: int
    degraded: _containers.RepeatedScalarFieldContainer[str]
    dmc_ratio: float
    dmc_ratio_asked: int
    first_position: int
    hash_chunk: int
    head_ratio: _containers.RepeatedScalarFieldContainer[float]
    indexed_to: int
    kv_heads: int
    lag_tokens: int
    layers: int
    loss: LossMeter
    memory_hash: int
    numerics_epoch: int
    parked: bool
    pin_tokens: int
    pin_tokens_max: int
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    rebuilding_to: int
    recall_hits: int
    recalled: _containers.RepeatedScalarFieldContainer[int]
    recalled_us: int
    ring_segments: int
    rows_mean: float
    segments_approximate: int
    segments_cold: int
    segments_dropped: int
    segments_merged: int
    segments_repaired: int
    segments_ring: int
    stopped: bool
    stream: str
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    tokens_acked: int
    tokens_computed: int
    tokens_per_second: float
    def __init__(self, stream: _Optional[str] = ..., tokens_acked: _Optional[int] = ..., tokens_computed: _Optional[int] = ..., chunks: _Optional[int] = ..., segments_ring: _Optional[int] = ..., segments_cold: _Optional[int] = ..., bytes_plan: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ..., bytes_disk: _Optional[int] = ..., memory_hash: _Optional[int] = ..., hash_chunk: _Optional[int] = ..., indexed_to: _Optional[int] = ..., dmc_ratio: _Optional[float] = ..., dmc_ratio_asked: _Optional[int] = ..., ring_segments: _Optional[int] = ..., degraded: _Optional[_Iterable[str]] = ..., rows_mean: _Optional[float] = ..., head_ratio: _Optional[_Iterable[float]] = ..., layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., lag_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., bytes_text: _Optional[int] = ..., created_us: _Optional[int] = ..., numerics_epoch: _Optional[int] = ..., first_position: _Optional[int] = ..., rebuilding_to: _Optional[int] = ..., segments_merged: _Optional[int] = ..., segments_dropped: _Optional[int] = ..., segments_repaired: _Optional[int] = ..., segments_approximate: _Optional[int] = ..., bytes_segments: _Optional[int] = ..., bytes_checkpoints: _Optional[int] = ..., bytes_index: _Optional[int] = ..., recall_hits: _Optional[int] = ..., recalled: _Optional[_Iterable[int]] = ..., recalled_us: _Optional[int] = ..., loss: _Optional[_Union[LossMeter, _Mapping]] = ..., pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ..., pin_tokens_max: _Optional[int] = ..., pin_tokens: _Optional[int] = ..., parked: bool = ..., stopped: bool = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ["bytes_plan", "bytes_used", "name", "on_device"]
    BYTES_PLAN_FIELD_NUMBER: _ClassVar[int]
    BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ON_DEVICE_FIELD_NUMBER: _ClassVar[int]
    bytes_plan: int
    bytes_used: int
    name: str
    on_device: bool
    def __init__(self, name: _Optional[str] = ..., bytes_plan: _Optional[int] = ..., bytes_used: _Optional[int] = ..., on_device: bool = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ["text"]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    def __init__(self, text: _Optional[bytes] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ["ids"]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ["role", "text"]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    role: str
    text: bytes
    def __init__(self, role: _Optional[str] = ..., text: _Optional[bytes] = ...) -> None: ...
