"""What the two ends of a `Stream` send each other: bytes that say what they are, of which stream, and read with what.

    tag 8 | kind 1 | stream 8 | about 8 | protobuf

tag: the first bytes of the SHA-256 of all that follows; it shows damage, and names the message. stream: the fingerprint
of the settings that both ends must have alike. about: of features, the fingerprint of the statistics and tables that
they are read with; of a gradient, the tag of the message of features that it belongs to.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError

from bitseam.codecs.base import MAX_DIMENSIONS
from bitseam.errors import LimitError, MalformedError, StateError, UsageError, WireError
from bitseam.wire import Limits
from bitseam.wire import messages_pb2 as pb

P = TypeVar("P", pb.Forward, pb.Coded)
FEATURES, GRADIENT = 1, 2
_KINDS = {FEATURES: "features", GRADIENT: "a gradient"}
_HEAD = struct.Struct("<8sB8s8s")


@dataclass(frozen=True)
class Message:
    """An opened one; its fields are as above."""

    tag: bytes
    about: bytes
    body: bytes


def fingerprint(*parts: bytes) -> bytes:
    """8 bytes that differ where the parts do."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()[:8]


def seal(kind: int, stream: bytes, about: bytes, body: bytes) -> bytes:
    """A message, in bytes."""
    rest = _HEAD.pack(b"", kind, stream, about)[8:] + body
    return hashlib.sha256(rest).digest()[:8] + rest


def unseal(raw: bytes, kind: int, stream: bytes, what: str) -> Message:
    """Bytes that should be a message of this kind and stream.

    what: the stream, in errors. Raises UsageError for what is no bytes, MalformedError for what `seal` has not made,
    StateError for the other kind and WireError for a message of a stream with other settings.
    """
    if not isinstance(raw, bytes | bytearray | memoryview):
        raise UsageError(f"{what}: a message is bytes, not {type(raw).__name__}")
    raw = bytes(raw)
    if len(raw) < _HEAD.size or hashlib.sha256(raw[8:]).digest()[:8] != raw[:8]:
        raise MalformedError(f"{what}: {len(raw)} bytes that are no message of a stream, or were damaged on the way")
    tag, came, of, about = _HEAD.unpack_from(raw)
    if came != kind:
        raise StateError(f"{what}: a message of {_KINDS.get(came, 'another kind')} where one of {_KINDS[kind]} is due")
    if of != stream:
        raise WireError(
            f"{what}: this message is of another stream ({of.hex()}, where this one is {stream.hex()}): both ends need "
            "the same width, name and keywords"
        )
    return Message(tag, about, raw[_HEAD.size :])


def features_in(message: Message, channels: int, what: str) -> pb.Forward:
    """The body of a message of features (..., C), its shape within bounds. Raises MalformedError and LimitError."""
    forward = _parsed(pb.Forward, message, what)
    if len(forward.streams) != 1 or len(forward.news.streams) > 1:
        raise MalformedError(f"{what}: a message of {len(forward.streams)} tensors, not of one")
    shape, most = list(forward.streams[0].shape), Limits().elements
    if not 1 <= len(shape) <= MAX_DIMENSIONS or shape[-1] != channels:
        raise MalformedError(f"{what}: features of shape {shape[:MAX_DIMENSIONS]} where {channels} channels are due")
    if math.prod(shape) > most:
        raise LimitError(f"{what}: features of shape {shape}; the limit is {most:,} values")
    return forward


def gradient_in(message: Message, what: str) -> pb.Coded:
    """The body of a message of a gradient. Raises MalformedError."""
    return _parsed(pb.Coded, message, what)


def _parsed(kind: type[P], message: Message, what: str) -> P:
    try:
        return kind.FromString(message.body)
    except DecodeError as error:
        raise MalformedError(f"{what}: a message that cannot be parsed: {error}") from error
