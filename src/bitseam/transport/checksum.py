"""A checksum for frames that cross without TLS.

TCP's own has 16 bits, and HTTP/2, gRPC and protobuf have none: a bit that flips in a codec's payload would be trained
on. TLS has better, so frames that cross by it carry nothing. It is against accidents, not against people.
"""

from __future__ import annotations

import zlib

from bitseam.errors import PeerGoneError

_SIZE = 4


class Checksum:
    """CRC-32 of all frames of one direction so far, little-endian behind each: one lost or repeated is noticed too."""

    def __init__(self) -> None:
        self._sum = 0

    def seal(self, frame: bytes) -> bytes:
        """A frame -> what is sent."""
        self._sum = zlib.crc32(frame, self._sum)
        return frame + self._sum.to_bytes(_SIZE, "little")

    def open(self, sealed: bytes) -> bytes:
        """What was received -> the frame. Raises PeerGoneError: a new connection may do better."""
        frame, told = sealed[:-_SIZE], sealed[-_SIZE:]
        self._sum = zlib.crc32(frame, self._sum)
        if told != self._sum.to_bytes(_SIZE, "little"):
            raise PeerGoneError("what the peer sent was damaged on the way: its checksum does not fit")
        return frame
