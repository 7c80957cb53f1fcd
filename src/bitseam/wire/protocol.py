"""The protocol of the seam as a state machine, without I/O: messages in, bytes out, and back.

One table says which message is allowed in which state and what state follows. At each state one side speaks, so both
sides run the same table. The manner is that of h11 and websockets (sans-I/O).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from google.protobuf.message import DecodeError

from bitseam.errors import LimitError, MalformedError, StateError
from bitseam.wire import messages_pb2 as pb
from bitseam.wire.checks import check
from bitseam.wire.limits import Limits

VERSION = 1

Role = Literal["client", "server"]


class State(Enum):
    """Where a session stands, and who speaks next."""

    START = "start"  # client
    OFFERED = "offered"  # server: Welcome or Refuse
    TRAINING = "training"  # client
    ASKING = "asking"  # client; a session that may only ask
    STEPPING = "stepping"  # server: Backward
    ACKNOWLEDGING = "acknowledging"  # server: Ack
    AVERAGING = "averaging"  # server: Averaged
    ANSWERING = "answering"  # server: Tokens, until the last
    CLOSED = "closed"  # nobody


READY = "ready"  # stands for TRAINING or ASKING, whichever the Hello asked for

TABLE: dict[tuple[State, type[Any]], State | str] = {
    (State.START, pb.Hello): State.OFFERED,
    (State.OFFERED, pb.Welcome): READY,
    (State.TRAINING, pb.Calibrate): State.ACKNOWLEDGING,
    (State.TRAINING, pb.Forward): State.STEPPING,
    (State.TRAINING, pb.Checkpoint): State.ACKNOWLEDGING,
    (State.TRAINING, pb.Average): State.AVERAGING,
    (State.TRAINING, pb.Ask): State.ANSWERING,
    (State.ASKING, pb.Ask): State.ANSWERING,
    (State.STEPPING, pb.Backward): READY,
    (State.ACKNOWLEDGING, pb.Ack): READY,
    (State.AVERAGING, pb.Averaged): READY,
    (State.ANSWERING, pb.Tokens): State.ANSWERING,  # READY after the last
    **{(state, pb.Goodbye): State.CLOSED for state in (State.START, State.TRAINING, State.ASKING)},
    **{
        (state, pb.Refuse): State.CLOSED
        for state in State
        if state is not State.CLOSED  # a server may refuse at any time, even while the client is to speak
    },
}

SPEAKER: dict[type[Any], Role] = {
    **dict.fromkeys((pb.Hello, pb.Calibrate, pb.Forward, pb.Checkpoint, pb.Average, pb.Ask, pb.Goodbye), "client"),
    **dict.fromkeys((pb.Welcome, pb.Refuse, pb.Ack, pb.Backward, pb.Averaged, pb.Tokens), "server"),
}

HEAVY = (pb.Calibrate, pb.Forward, pb.Backward, pb.Ask, pb.Average, pb.Averaged)  # hold tensors; all others are small

_FIELDS = {kind: kind.__name__.lower() for kind in SPEAKER}
# The first byte of a frame: the field's number, and wire type 2 for "a length and so many bytes".
_KINDS = {pb.Envelope.DESCRIPTOR.fields_by_name[name].number << 3 | 2: kind for kind, name in _FIELDS.items()}


class Protocol:
    """One side's view of one session.

    Errors of `receive` are the other side's fault, and say so; those of `send` are a mistake of the caller's.
    """

    def __init__(self, role: Role, limits: Limits | None = None) -> None:
        self.role: Role = role
        self.state = State.START
        self.limits = limits or Limits()  # a client's are narrowed to those that the Welcome tells
        self._ready = State.ASKING
        self._last = (0, -1)  # (step, micro) of the latest Forward

    def may_send(self, kind: type[Any]) -> bool:
        """Whether the state allows this side to send a message of that kind."""
        return SPEAKER[kind] == self.role and (self.state, kind) in TABLE

    @property
    def most(self) -> int:
        """Bytes of the longest frame that the other side may send now."""
        heavy = any(SPEAKER[kind] != self.role and (self.state, kind) in TABLE for kind in HEAVY)
        return self.limits.frame_bytes if heavy else self.limits.control_bytes

    def send(self, message: Any) -> bytes:
        """A body message -> a frame. Raises StateError, LimitError or MalformedError; the state then stays."""
        kind = type(message)
        self._check_state(kind, self.role)
        self._check_steps(message, self.role)
        check(message, self.limits)
        frame = pb.Envelope(**{_FIELDS[kind]: message}).SerializeToString(deterministic=True)
        self._check_size(len(frame), kind, self.role)
        self._enter(message)
        return frame

    def receive(self, frame: bytes) -> Any:
        """A frame -> its body message. Raises StateError, LimitError or MalformedError; the state then stays."""
        other: Role = "server" if self.role == "client" else "client"
        kind = _kind(frame)
        if kind is None:
            raise MalformedError(f"the {other} sent {len(frame)} bytes that are not one message of this version")
        self._check_state(kind, other)
        self._check_size(len(frame), kind, other)
        try:
            message = getattr(pb.Envelope.FromString(frame), _FIELDS[kind])
        except DecodeError as error:
            raise MalformedError(f"the {other} sent a {kind.__name__} that cannot be parsed: {error}") from error
        self._check_steps(message, other)
        try:
            check(message, self.limits)
        except (LimitError, MalformedError) as error:
            raise type(error)(f"the {other} sent a {kind.__name__} where {error}") from error
        self._enter(message)
        return message

    def _check_state(self, kind: type[Any], speaker: Role) -> None:
        if SPEAKER[kind] != speaker or (self.state, kind) not in TABLE:
            raise StateError(f"the {speaker} sent {kind.__name__}, which the state '{self.state.value}' does not allow")

    def _check_steps(self, message: Any, speaker: Role) -> None:
        """A step happens once, and is answered by its own gradient."""
        if isinstance(message, pb.Forward):
            here, right = (message.step, message.micro), (message.step, message.micro) > self._last
        elif isinstance(message, pb.Backward):
            here, right = (message.step, message.micro), (message.step, message.micro) == self._last
        elif isinstance(message, pb.Checkpoint):
            here, right = (message.step, 0), message.step >= self._last[0]
        else:
            return
        if not right:
            raise StateError(
                f"the {speaker} sent {type(message).__name__} of step {here[0]}, micro-batch {here[1]}, when the last "
                f"Forward was of step {self._last[0]}, micro-batch {self._last[1]}"
            )

    def _check_size(self, size: int, kind: type[Any], speaker: Role) -> None:
        limit = self.limits.frame_bytes if kind in HEAVY else self.limits.control_bytes
        if size > limit:
            raise LimitError(f"the {speaker} sent a {kind.__name__} of {size} bytes; the limit is {limit}")

    def _enter(self, message: Any) -> None:
        following = TABLE[self.state, type(message)]
        if isinstance(message, pb.Hello):
            self._ready = State.TRAINING if message.purpose == pb.TRAIN else State.ASKING
        elif isinstance(message, pb.Welcome) and self.role == "client":
            self.limits = self.limits.narrowed(message.limits)
        elif isinstance(message, pb.Forward):
            self._last = (message.step, message.micro)
        elif isinstance(message, pb.Tokens) and message.last:
            following = READY
        self.state = following if isinstance(following, State) else self._ready


def _kind(frame: bytes) -> type[Any] | None:
    """What a frame says it is, read without parsing it; None where it is not one tag, one length and so many bytes.

    Protobuf alone would merge what follows a message into it, or let it replace the message.
    """
    size = shift = 0
    for at in range(1, min(len(frame), 6)):
        size |= (frame[at] & 0x7F) << shift
        if frame[at] < 0x80:
            return _KINDS.get(frame[0]) if at + 1 + size == len(frame) else None
        shift += 7
    return None
