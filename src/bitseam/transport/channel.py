"""What a transport gives: frames of bytes, both ways, in order."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque

from bitseam.errors import PeerGoneError, TransportError


class Channel(ABC):
    """One session's way to its peer.

    peer: who that is, for logs. name: the common name of its certificate; empty without one.
    """

    peer: str
    name: str

    @abstractmethod
    def send(self, frame: bytes) -> None:
        """Hand over one frame; what the peer has said must be received first, even if it went away since.

        Raises PeerGoneError where the peer went away and nothing of it is left to receive, or after `close`.
        """

    @abstractmethod
    def receive(self, timeout: float | None = None) -> bytes:
        """The next frame. Raises PeerGoneError where the peer went away or `timeout` seconds ran out, UntrustedError
        where a side does not let the other speak (any more)."""

    @abstractmethod
    def close(self) -> None:
        """End the session; frames already handed over still arrive."""

    @abstractmethod
    def socket_bytes(self) -> tuple[int, int] | None:
        """(sent, received) bytes that crossed the network, all framing and encryption included; None where unknown."""


class Inbox:
    """Frames that have arrived, and the reason why no more will."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._over: tuple[type[TransportError], str] | None = None
        self._changed = threading.Condition()

    def put(self, frame: bytes) -> None:
        with self._changed:
            self._frames.append(frame)
            self._changed.notify()

    def end(self, reason: str, error: type[TransportError] = PeerGoneError) -> None:
        """No frame follows; what has arrived is still given out first, then `error`. The first reason stays."""
        with self._changed:
            self._over = self._over or (error, reason)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what `end` was given where all is over and everything has been given out."""
        if self._over and not self._frames:
            error, reason = self._over
            raise error(reason)

    def get(self, timeout: float | None) -> bytes:
        """The next frame. Raises what `end` was given, from then on always; PeerGoneError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames or self._over, timeout):
                raise PeerGoneError(f"the peer sent nothing for {timeout:g} seconds")
            self.check()
            return self._frames.popleft()
