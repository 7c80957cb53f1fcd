"""What a transport gives: frames of bytes, both ways, in order."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque

from bitseam.errors import BitseamError, PeerGoneError
from bitseam.wire import Limits

_ROOM = 2**16  # bytes of frames that may wait to be received when another piece is taken
_FRAMES = 64  # and how many


class Channel(ABC):
    """One session's way to its peer.

    peer: who that is, for logs. name: the common name of its certificate; empty without one. most: the bytes of the
    longest frame that may come now; a longer one ends the session with a LimitError.
    """

    peer: str
    name: str
    most: int = Limits().control_bytes

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether nothing crosses any more, even where something is left to receive."""

    @abstractmethod
    def send(self, frame: bytes) -> None:
        """Hand over one frame; what the peer has said must be received first, even if it went away since.

        Raises PeerGoneError where the peer went away and nothing of it is left to receive, or after `close`.
        """

    @abstractmethod
    def receive(self, timeout: float | None = None) -> bytes:
        """The next frame. Raises PeerGoneError where the peer went away or `timeout` seconds ran out, UntrustedError
        where a side does not let the other speak (any more), LimitError for a frame of more than `most` bytes,
        MalformedError for what is no frame."""

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
        self._over: tuple[type[BitseamError], str] | None = None
        self._bytes = 0
        self._shut = False
        self._changed = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether no frame follows those that have arrived."""
        return self._over is not None or self._shut

    def put(self, frame: bytes) -> None:
        with self._changed:
            if not self._shut:
                self._frames.append(frame)
                self._bytes += len(frame)
                self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Until little waits to be received, or no more will be: who reads from a network then takes more of it."""

        def room() -> bool:
            return bool(self._over) or self._shut or (self._bytes <= _ROOM and len(self._frames) < _FRAMES)

        with self._changed:
            self._changed.wait_for(room)

    def end(self, reason: str, error: type[BitseamError] = PeerGoneError) -> None:
        """No frame follows; what has arrived is still given out first, then `error`. The first reason stays."""
        with self._changed:
            self._over = self._over or (error, reason)
            self._changed.notify_all()

    def shut(self) -> None:
        """Nobody will receive any more: nothing is kept."""
        with self._changed:
            self._shut, self._bytes = True, 0
            self._frames.clear()
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
            frame = self._frames.popleft()
            self._bytes -= len(frame)
            self._changed.notify_all()
            return frame
