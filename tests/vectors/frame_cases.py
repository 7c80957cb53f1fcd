"""Messages as fields, frames and pieces; and those that a receiver refuses, with the error that it has."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict

from bitseam.errors import BitseamError
from bitseam.transport.flow import Assembly, Pieces
from bitseam.wire import Limits
from bitseam.wire import messages_pb2 as pb

sys.path.append(str(Path(__file__).parent.parent / "wire"))
from wire_examples import GOLDEN, TEXT, due, listener_at, wrap

SESSION, RUN = bytes(range(16)), bytes(range(16, 32))
ONES = np.ones(2, "<f4").tobytes()
NEWS = pb.Calibrate(
    streams=[
        pb.Statistics(mean=bytes(8), std=ONES, rotation=b"\x7f\0\0\x7f"),
        pb.Statistics(stream=1, tables=[pb.Tables(rate=1, frequencies=b"\x01\0\xff\xff")]),
    ],
    dictionary=b"\x78\x9c",
)
CODED = [pb.Coded(shape=[1, 1, 2], payload=b"\x05", samples=[2**63 - 1]), pb.Coded(stream=1, shape=[3, 2], rate=1)]
MESSAGES: dict[str, Any] = {
    **{f"the least of each: {kind.__name__}": message for kind, (message, _) in GOLDEN.items()},
    "a client that comes back": pb.Hello(
        version=1, purpose=pb.TRAIN, terms={"b": "é", "a": ""}, session=SESSION, run=RUN, steps=[0, 300], image_tokens=4
    ),
    "a session that goes on": pb.Welcome(session=SESSION, run=RUN, resumed=True, limits=Limits().told()),
    "a server that is being stopped": pb.Refuse(fault=pb.STOPPING, reason="the server is being stopped"),
    "everything that a Forward may hold": pb.Forward(step=2**40, micro=1, text=TEXT, streams=CODED, news=NEWS),
    "after this step, a checkpoint": pb.Backward(step=1, micro=2, loss=-0.0, stopping=True),
    "the end of an answer": pb.Tokens(last=True),
    "all is well": pb.Goodbye(),
}
_ACK = bytes.fromhex("2a020807")
_UNKNOWN = b"\xfa\x7f\x01x"  # field 2047, one byte
_DEEP = pb.Text(sequences=1)
_DEEP.MergeFromString(_UNKNOWN)
FRAMES: dict[str, tuple[type[Any], bytes]] = {
    "a byte too many": (pb.Ack, _ACK + b"\0"),
    "a byte too few": (pb.Ack, _ACK[:-1]),
    "nothing": (pb.Ack, b""),
    "the same message twice": (pb.Ack, _ACK * 2),
    "two messages": (pb.Ack, _ACK + bytes.fromhex("5a00")),
    "a message that is none": (pb.Ack, bytes.fromhex("720208077a")),
    "a length of six bytes": (pb.Ack, bytes.fromhex("2a828080808000") + b"\x08\x07"),
    "an unknown field": (pb.Ack, b"\x2a\x06\x08\x07" + _UNKNOWN),
    "an unknown field within": (pb.Forward, wrap(pb.Forward(step=1, text=_DEEP))),
    "a field of another type": (pb.Ack, bytes.fromhex("2a030a0107")),
    "a message of the other side": (pb.Ack, wrap(pb.Checkpoint(step=7))),
    "another message than is due": (pb.Ack, wrap(pb.Tokens(ids=[1]))),
    "no purpose": (pb.Hello, wrap(pb.Hello(version=1))),
    "a session of 15 bytes": (pb.Hello, wrap(pb.Hello(version=1, purpose=pb.ASK, session=bytes(15)))),
    "no limits": (pb.Welcome, wrap(pb.Welcome(session=SESSION, run=RUN))),
    "a step where the session goes on": (
        pb.Welcome,
        wrap(pb.Welcome(session=SESSION, run=RUN, step=1, resumed=True, limits=Limits().told())),
    ),
    "no sequence": (pb.Forward, wrap(pb.Forward(step=1))),
    "an empty dimension": (pb.Forward, wrap(pb.Forward(step=1, text=TEXT, streams=[pb.Coded(shape=[2, 0])]))),
    "a stream twice": (pb.Forward, wrap(pb.Forward(step=1, text=TEXT, streams=[pb.Coded(shape=[1])] * 2))),
    "a loss that is not a number": (pb.Backward, wrap(pb.Backward(step=1, micro=2, loss=float("nan")))),
    "a gradient of another step, where the Forward was of step 1, micro 2": (
        pb.Backward,
        wrap(pb.Backward(step=1, micro=3)),
    ),
    "too many sequences": (pb.Ask, wrap(pb.Ask(text=pb.Text(sequences=4097), max_new_tokens=1))),
    "a tensor too large": (
        pb.Ask,
        wrap(pb.Ask(text=TEXT, streams=[pb.Coded(shape=[2**31, 2**31])], max_new_tokens=1)),
    ),
}


def _piece(**fields: Any) -> bytes:
    return pb.Piece(**fields).SerializeToString()


_TWO = [_piece(data=b"ab", last=True, crc=zlib.crc32(b"ab")), _piece(data=b"c", last=True, crc=zlib.crc32(b"abc"))]
PIECES: list[tuple[str, bool, list[bytes]]] = [
    ("a frame in one piece", False, [_piece(data=b"abc", last=True)]),
    ("a frame in three pieces", False, [_piece(data=b"a"), _piece(data=b"bc"), _piece(data=b"d", last=True)]),
    ("an end without data", False, [_piece(data=b"abc"), _piece(last=True)]),
    ("two frames", False, [_piece(data=b"ab", last=True), _piece(data=b"c", last=True)]),
    ("fields that are written though they hold their default", False, [b"\x0a\x01a\x10\0\x1d\0\0\0\0", b"\x10\x01"]),
    ("the checksum runs on from frame to frame", True, _TWO),
    ("the end alone has a checksum", True, [_piece(data=b"ab"), _piece(data=b"c", last=True, crc=zlib.crc32(b"abc"))]),
    ("no gRPC message of this service", False, [b"\xff"]),
    ("an unknown field", False, [_piece(data=b"a", last=True) + _UNKNOWN]),
    ("no data, and more to come", False, [_piece()]),
    ("a checksum over TLS", False, [_piece(data=b"abc", last=True, crc=zlib.crc32(b"abc"))]),
    ("no checksum", True, [_piece(data=b"abc", last=True)]),
    ("a checksum before the end", True, [_piece(data=b"abc", crc=zlib.crc32(b"abc"))]),
    ("a bit that has flipped", True, [_piece(data=b"abb", last=True, crc=zlib.crc32(b"abc"))]),
    ("a frame that was lost", True, _TWO[1:]),
    ("a frame that came twice", True, [_TWO[0], *_TWO]),
]


def fields_of(message: Any) -> dict[str, Any]:
    """A message as JSON; what is absent has its default. Terms are in the order of their bytes."""
    told: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    if "terms" in told:
        told["terms"] = dict(sorted(told["terms"].items()))
    return told


def refusal(kind: type[Any], frame: bytes) -> str:
    """The error of a receiver that waits for such a message; empty where it takes the frame."""
    try:
        listener_at(due(kind), kind()).receive(frame)
    except BitseamError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def assembled(plaintext: bool, pieces: list[bytes]) -> dict[str, Any]:
    """The frames that pieces make, or the error."""
    assembly, frames = Assembly(plaintext), []
    try:
        for piece in pieces:
            if (frame := assembly.add(piece, 2**20)) is not None:
                frames.append(frame.hex())
    except BitseamError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"frames": frames}


def vectors() -> list[dict[str, Any]]:
    """Messages with their frames and pieces, and frames that are refused."""
    found: list[dict[str, Any]] = []
    for name, message in MESSAGES.items():
        frame = wrap(message)
        ways = {way: [p.hex() for p in Pieces(way == "plaintext").cut(frame)] for way in ("tls", "plaintext")}
        told = {"name": name, "message": type(message).__name__, "fields": fields_of(message), "frame": frame.hex()}
        found.append(told | ways)
    for name, (kind, frame) in FRAMES.items():
        told = {"name": name, "message": kind.__name__, "frame": frame.hex()}
        found.append(told | {"refused": refusal(kind, frame)})
    return found


def pieces() -> list[dict[str, Any]]:
    """Pieces as they come one after another."""
    return [
        {"name": name, "plaintext" if plaintext else "tls": [p.hex() for p in rows], **assembled(plaintext, rows)}
        for name, plaintext, rows in PIECES
    ]
