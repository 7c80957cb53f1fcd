"""What a transport gives: frames of bytes, both ways, in order."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque

from bitseam.errors import PeerGoneError


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
        """The next frame. Raises PeerGoneError where the peer went away or `timeout` seconds ran out."""

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
        self._over = ""
        self._changed = threading.Condition()

    def put(self, frame: bytes) -> None:
        with self._changed:
            self._frames.append(frame)
            self._changed.notify()

    def end(self, reason: str) -> None:
        """No frame follows; what has arrived is still given out first. The first reason stays."""
        with self._changed:
            self._over = self._over or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise PeerGoneError where all is over and everything has been given out."""
        if self._over and not self._frames:
            raise PeerGoneError(self._over)

    def get(self, timeout: float | None) -> bytes:
        """The next frame. Raises PeerGoneError at the end, from then on always, or after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames or self._over, timeout):
                raise PeerGoneError(f"the peer sent nothing for {timeout:g} seconds")
            self.check()
            return self._frames.popleft()
