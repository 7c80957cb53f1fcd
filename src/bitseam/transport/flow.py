"""How frames cross, and how many of their bytes a session holds.

gRPC gives a message when all of it has arrived, and has one limit for all sessions of a server. So frames cross in
pieces, each a protobuf `Piece`. A frame that is longer than the session may send at that time is then refused before
memory is taken for the rest of it.

In plaintext the last piece of a frame has a checksum. TCP's own has 16 bits, and HTTP/2, gRPC and protobuf have none:
a bit that flips in a codec's payload would be trained on. It runs over all data of a direction, so that a frame lost,
repeated or moved is noticed as well as a bit; and no other piece has one, so that `last` itself is covered. TLS has
better. It is against accidents, not against people.
"""

from __future__ import annotations

import queue
import threading
import zlib
from collections import Counter
from collections.abc import Iterator

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from bitseam.errors import LimitError, MalformedError, PeerGoneError
from bitseam.wire import messages_pb2 as pb

PIECE = 2**20  # bytes of data

# Beside the frame that it works on: what gRPC reads ahead, a piece in hand, answers that wait.
HELD_BYTES = 16 * 2**20

_FRAME = 512  # bytes that a frame takes beside its own, so that many small ones count
_WAITING = 4 * 2**20  # bytes that wait to be sent, beyond which no further frame is taken


class Pieces:
    """Frames of one direction -> the pieces that they cross in, serialized."""

    def __init__(self, plaintext: bool) -> None:
        self._plaintext, self._sum = plaintext, 0

    def cut(self, frame: bytes) -> Iterator[bytes]:
        """A frame as gRPC's messages."""
        if self._plaintext:
            self._sum = zlib.crc32(frame, self._sum)
        for start in range(0, len(frame) or 1, PIECE):
            last = start + PIECE >= len(frame)
            piece = pb.Piece(data=frame[start : start + PIECE], last=last, crc=self._sum if last else 0)
            yield piece.SerializeToString()


class Assembly:
    """Pieces of one direction -> frames."""

    def __init__(self, plaintext: bool) -> None:
        self._plaintext, self._sum = plaintext, 0
        self._begun = bytearray()  # pieces may be of a byte each, and objects are larger

    def add(self, message: bytes, most: int) -> bytes | None:
        """The frame that a piece completes; None where it does not.

        Raises LimitError where that frame is longer than `most` bytes, or the piece than PIECE, and MalformedError for
        what is no piece. In plaintext damage cannot be told from the latter: both are a PeerGoneError then, since a new
        connection may do better.
        """
        try:
            piece = self._read(message)
        except MalformedError as error:
            if self._plaintext:
                raise PeerGoneError(f"what the peer sent was damaged on the way: {error}") from error
            raise
        size = len(self._begun) + len(piece.data)
        if size > most:
            self._begun.clear()
            raise LimitError(f"the peer sent a frame of over {most} bytes, the most that may come now")
        if piece.last and not self._begun:
            return piece.data
        self._begun += piece.data
        if not piece.last:
            return None
        frame = bytes(self._begun)
        self._begun = bytearray()
        return frame

    def _read(self, message: bytes) -> pb.Piece:
        try:
            piece = pb.Piece.FromString(message)
        except DecodeError as error:
            raise MalformedError(f"the peer sent a gRPC message of {len(message)} bytes that is no Piece") from error
        if len(UnknownFieldSet(piece)):
            raise MalformedError("the peer sent a Piece with fields that this version does not know")
        if len(piece.data) > PIECE:
            raise LimitError(f"the peer sent a Piece of {len(piece.data)} bytes of data; the limit is {PIECE}")
        if not (piece.data or piece.last):
            raise MalformedError("the peer sent a Piece without data that is not the last of its frame")
        if self._plaintext:
            self._sum = zlib.crc32(piece.data, self._sum)
        if piece.crc != (self._sum if piece.last else 0):
            raise MalformedError("the checksum of a Piece does not fit")
        return piece


class Outbox:
    """Frames that are handed over to be sent."""

    def __init__(self, plaintext: bool) -> None:
        self._pieces = Pieces(plaintext)
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
            yield from self._pieces.cut(frame)


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
