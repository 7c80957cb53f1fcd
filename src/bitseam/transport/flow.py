"""How frames cross, and how many of their bytes a session holds.

gRPC gives a message when all of it has arrived, and has one limit for all sessions of a server. So frames cross in
pieces: every gRPC message is one, and a piece of fewer than PIECE bytes, perhaps of none, is the last of its frame. A
frame that is longer than the session may send at that time is then refused before memory is taken for the rest of it.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator

from bitseam.errors import LimitError, PeerGoneError

PIECE = 2**20  # bytes

# Beside the frame that it works on: what gRPC reads ahead, a piece in hand, answers that wait.
HELD_BYTES = 16 * 2**20

_FRAME = 512  # bytes that a frame takes beside its own, so that many small ones count
_WAITING = 4 * 2**20  # bytes that wait to be sent, beyond which no further frame is taken


def pieces(frame: bytes) -> Iterator[bytes]:
    """What a frame crosses as."""
    for start in range(0, len(frame) + 1, PIECE):
        yield frame[start : start + PIECE]


class Assembly:
    """Pieces -> frames."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes, most: int) -> bytes | None:
        """The frame that a piece completes. Raises LimitError where that frame is longer than `most` bytes."""
        self._size += len(piece)
        if self._size > most:
            self._pieces.clear()
            raise LimitError(f"the peer sent a frame of over {most} bytes, the most that may come now")
        self._pieces.append(piece)
        if len(piece) == PIECE:
            return None
        frame = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return frame


class Outbox:
    """Frames that are handed over to be sent."""

    def __init__(self) -> None:
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0  # bytes, without the frame that is being sent
        self._lock = threading.Lock()

    def put(self, frame: bytes) -> None:
        """Hand over a frame, without waiting. Raises PeerGoneError where the peer does not take those before it."""
        with self._lock:
            if self._waiting > _WAITING:
                raise PeerGoneError(f"the peer does not take what we send: {self._waiting} bytes wait for it")
            self._waiting += len(frame) + _FRAME
        self._frames.put(frame)

    def end(self) -> None:
        """No frame follows."""
        self._frames.put(None)

    def pieces(self) -> Iterator[bytes]:
        """What is to be sent, until the end."""
        while (frame := self._frames.get()) is not None:
            with self._lock:
                self._waiting -= len(frame) + _FRAME
            yield from pieces(frame)


class Places:
    """Sessions that each client has open: `each` at the most, so that none takes those of all.

    A client is one name; those without one are not counted.
    """

    def __init__(self, each: int) -> None:
        self.each = each
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, client: str) -> bool:
        """Whether there was a place; `free` gives it back."""
        with self._lock:
            if client and self._taken[client] >= self.each:
                return False
            self._taken[client] += 1
            return True

    def free(self, client: str) -> None:
        with self._lock:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
