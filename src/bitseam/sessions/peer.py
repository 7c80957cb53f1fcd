"""One side's end of a session: channel + protocol + ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from bitseam.errors import PeerGoneError, RefusedError, printable
from bitseam.sessions.ledger import Ledger
from bitseam.transport import Channel
from bitseam.wire import Limits, Protocol
from bitseam.wire import messages_pb2 as pb

T = TypeVar("T")
_SAID = 2000  # characters of a reason that are told


class Peer:
    """Sends and receives messages, counting each frame."""

    def __init__(
        self, channel: Channel, role: Literal["client", "server"], ledger: Ledger, limits: Limits | None = None
    ) -> None:
        self.channel = channel
        self.ledger = ledger
        self._protocol = Protocol(role, limits or Limits())
        channel.most = self._protocol.most
        self._out: Literal["up", "down"] = "up" if role == "client" else "down"
        self._in: Literal["up", "down"] = "down" if role == "client" else "up"

    @property
    def limits(self) -> Limits:
        """What the other side takes at the most, as far as it has told."""
        return self._protocol.limits

    def send(self, message: Any) -> None:
        frame = self._protocol.send(message)
        self.channel.most = self._protocol.most  # before the other side can know that it may
        self.channel.send(frame)
        self.ledger.record(self._out, message, frame)

    def receive(self, timeout: float | None = None) -> Any:
        """The next message. Raises RefusedError where the server refuses, PeerGoneError where it is being stopped."""
        frame = self.channel.receive(timeout)
        message = self._protocol.receive(frame)
        self.channel.most = self._protocol.most
        self.ledger.record(self._in, message, frame)
        if isinstance(message, pb.Refuse):
            if message.fault == pb.STOPPING:
                raise PeerGoneError(printable(message.reason, _SAID))  # another may take its place
            raise RefusedError(_explain(message))
        return message

    def exchange(self, message: Any, answer: type[T]) -> T:
        """Send, and wait for an `answer`; the protocol lets nothing else through."""
        self.send(message)
        received = self.receive()
        assert isinstance(received, answer)
        return received

    def say_goodbye(self, reason: str = "") -> None:
        """Leave where the protocol allows it, telling the server why."""
        if self._protocol.may_send(pb.Goodbye):
            self.send(pb.Goodbye(reason=printable(reason, None)[:500]))


class Stopwatch:
    """Seconds by name, summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _explain(refusal: pb.Refuse) -> str:
    fault = pb.Fault.Name(refusal.fault).lower().replace("_", " ")
    lines = [f"the server refuses ({fault}): {printable(refusal.reason, _SAID)}"]
    for d in refusal.differences:
        field, ours, theirs = (printable(text, _SAID) for text in (d.field, d.client, d.server))
        lines.append(f"  {field}: client has {ours}, server has {theirs}")
    return "\n".join(lines)
