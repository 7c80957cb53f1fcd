from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    TRAIN: _ClassVar[Purpose]
    ASK: _ClassVar[Purpose]

class Fault(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_UNSPECIFIED: _ClassVar[Fault]
    TERMS_DIFFER: _ClassVar[Fault]
    BAD_MESSAGE: _ClassVar[Fault]
    SERVER_ERROR: _ClassVar[Fault]
    STOPPING: _ClassVar[Fault]
    OVER_QUOTA: _ClassVar[Fault]
PURPOSE_UNSPECIFIED: Purpose
TRAIN: Purpose
ASK: Purpose
FAULT_UNSPECIFIED: Fault
TERMS_DIFFER: Fault
BAD_MESSAGE: Fault
SERVER_ERROR: Fault
STOPPING: Fault
OVER_QUOTA: Fault

class Piece(_message.Message):
    __slots__ = ("data", "last", "crc")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    last: bool
    crc: int
    def __init__(self, data: _Optional[bytes] = ..., last: _Optional[bool] = ..., crc: _Optional[int] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("hello", "welcome", "refuse", "calibrate", "ack", "forward", "backward", "checkpoint", "ask", "tokens", "goodbye", "average", "averaged")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    AVERAGED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    welcome: Welcome
    refuse: Refuse
    calibrate: Calibrate
    ack: Ack
    forward: Forward
    backward: Backward
    checkpoint: Checkpoint
    ask: Ask
    tokens: Tokens
    goodbye: Goodbye
    average: Average
    averaged: Averaged
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ..., calibrate: _Optional[_Union[Calibrate, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., backward: _Optional[_Union[Backward, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., average: _Optional[_Union[Average, _Mapping]] = ..., averaged: _Optional[_Union[Averaged, _Mapping]] = ...) -> None: ...

class Coded(_message.Message):
    __slots__ = ("stream", "shape", "payload", "rate", "samples")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    stream: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    payload: bytes
    rate: int
    samples: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stream: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., payload: _Optional[bytes] = ..., rate: _Optional[int] = ..., samples: _Optional[_Iterable[int]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "purpose", "terms", "session", "run", "steps", "image_tokens")
    class TermsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    version: int
    purpose: Purpose
    terms: _containers.ScalarMap[str, str]
    session: bytes
    run: bytes
    steps: _containers.RepeatedScalarFieldContainer[int]
    image_tokens: int
    def __init__(self, version: _Optional[int] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., terms: _Optional[_Mapping[str, str]] = ..., session: _Optional[bytes] = ..., run: _Optional[bytes] = ..., steps: _Optional[_Iterable[int]] = ..., image_tokens: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("session", "run", "step", "resumed", "limits")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    run: bytes
    step: int
    resumed: bool
    limits: Limits
    def __init__(self, session: _Optional[bytes] = ..., run: _Optional[bytes] = ..., step: _Optional[int] = ..., resumed: _Optional[bool] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("frame_bytes", "batch", "tokens", "sequence_tokens", "image_tokens", "positions", "new_tokens", "elements", "channels", "tables", "rotation", "weights", "idle_seconds")
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    frame_bytes: int
    batch: int
    tokens: int
    sequence_tokens: int
    image_tokens: int
    positions: int
    new_tokens: int
    elements: int
    channels: int
    tables: int
    rotation: int
    weights: int
    idle_seconds: float
    def __init__(self, frame_bytes: _Optional[int] = ..., batch: _Optional[int] = ..., tokens: _Optional[int] = ..., sequence_tokens: _Optional[int] = ..., image_tokens: _Optional[int] = ..., positions: _Optional[int] = ..., new_tokens: _Optional[int] = ..., elements: _Optional[int] = ..., channels: _Optional[int] = ..., tables: _Optional[int] = ..., rotation: _Optional[int] = ..., weights: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("field", "client", "server")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    field: str
    client: str
    server: str
    def __init__(self, field: _Optional[str] = ..., client: _Optional[str] = ..., server: _Optional[str] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("fault", "reason", "differences")
    FAULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    fault: Fault
    reason: str
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    def __init__(self, fault: _Optional[_Union[Fault, str]] = ..., reason: _Optional[str] = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ...) -> None: ...

class Tables(_message.Message):
    __slots__ = ("rate", "frequencies")
    RATE_FIELD_NUMBER: _ClassVar[int]
    FREQUENCIES_FIELD_NUMBER: _ClassVar[int]
    rate: int
    frequencies: bytes
    def __init__(self, rate: _Optional[int] = ..., frequencies: _Optional[bytes] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("stream", "mean", "std", "rotation", "tables")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    stream: int
    mean: bytes
    std: bytes
    rotation: bytes
    tables: _containers.RepeatedCompositeFieldContainer[Tables]
    def __init__(self, stream: _Optional[int] = ..., mean: _Optional[bytes] = ..., std: _Optional[bytes] = ..., rotation: _Optional[bytes] = ..., tables: _Optional[_Iterable[_Union[Tables, _Mapping]]] = ...) -> None: ...

class Calibrate(_message.Message):
    __slots__ = ("streams", "dictionary")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[Statistics]
    dictionary: bytes
    def __init__(self, streams: _Optional[_Iterable[_Union[Statistics, _Mapping]]] = ..., dictionary: _Optional[bytes] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class Text(_message.Message):
    __slots__ = ("sequences", "tokens", "symbols")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    sequences: int
    tokens: int
    symbols: bytes
    def __init__(self, sequences: _Optional[int] = ..., tokens: _Optional[int] = ..., symbols: _Optional[bytes] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("step", "micro", "last", "text", "streams", "news")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    step: int
    micro: int
    last: bool
    text: Text
    streams: _containers.RepeatedCompositeFieldContainer[Coded]
    news: Calibrate
    def __init__(self, step: _Optional[int] = ..., micro: _Optional[int] = ..., last: _Optional[bool] = ..., text: _Optional[_Union[Text, _Mapping]] = ..., streams: _Optional[_Iterable[_Union[Coded, _Mapping]]] = ..., news: _Optional[_Union[Calibrate, _Mapping]] = ...) -> None: ...

class Backward(_message.Message):
    __slots__ = ("step", "micro", "loss", "answer_tokens", "streams", "stopping")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    step: int
    micro: int
    loss: float
    answer_tokens: int
    streams: _containers.RepeatedCompositeFieldContainer[Coded]
    stopping: bool
    def __init__(self, step: _Optional[int] = ..., micro: _Optional[int] = ..., loss: _Optional[float] = ..., answer_tokens: _Optional[int] = ..., streams: _Optional[_Iterable[_Union[Coded, _Mapping]]] = ..., stopping: _Optional[bool] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("text", "streams", "max_new_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: Text
    streams: _containers.RepeatedCompositeFieldContainer[Coded]
    max_new_tokens: int
    def __init__(self, text: _Optional[_Union[Text, _Mapping]] = ..., streams: _Optional[_Iterable[_Union[Coded, _Mapping]]] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("ids", "last")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    last: bool
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., last: _Optional[bool] = ...) -> None: ...

class Average(_message.Message):
    __slots__ = ("step", "weights")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    step: int
    weights: Coded
    def __init__(self, step: _Optional[int] = ..., weights: _Optional[_Union[Coded, _Mapping]] = ...) -> None: ...

class Averaged(_message.Message):
    __slots__ = ("step", "weights", "clients")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    step: int
    weights: Coded
    clients: int
    def __init__(self, step: _Optional[int] = ..., weights: _Optional[_Union[Coded, _Mapping]] = ..., clients: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
