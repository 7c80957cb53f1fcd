"""What a hostile client does to the link: floods, silence, connections without end, bytes that are no HTTP."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from arena import Arena, Raw
from hostile_cases import ask, case, cases, forward, refused

from bitseam.transport.flow import PIECE
from bitseam.wire import messages_pb2 as pb


@case
def an_oversized_message_of_grpc(arena: Arena) -> None:
    refused(arena.raw().pour(iter([bytes(64 * 2**20)])), "RESOURCE_EXHAUSTED")


def piece(**fields: Any) -> bytes:
    return pb.Piece(**fields).SerializeToString()


FULL = piece(data=bytes(PIECE))  # with more to come


@case
def an_oversized_frame_in_pieces(arena: Arena) -> None:
    refused(arena.welcomed().pour(FULL for _ in range(200)), "the most that may come now")


@case
def a_frame_without_end_before_the_hello(arena: Arena) -> None:
    refused(arena.raw().pour(FULL for _ in itertools.count()), "the most that may come now")


@case
def a_frame_of_a_byte_a_piece(arena: Arena) -> None:
    """It is no error, and takes no more memory than its bytes."""
    frame = pb.Envelope(hello=arena.hello()).SerializeToString()
    raw = arena.raw().pour(piece(data=frame[at : at + 1], last=at + 1 == len(frame)) for at in range(len(frame)))
    assert isinstance(raw.hear(), pb.Welcome)
    refused(raw.pour(piece(data=b"\0") for _ in range(2**19)), "closed")  # and then waits for the rest, for a while


@case
def a_flood_of_small_frames(arena: Arena) -> None:
    frame = pb.Envelope(hello=arena.hello()).SerializeToString()
    refused(arena.raw().pour(piece(data=frame, last=True) for _ in itertools.count()), "does not allow")


@case
def a_flood_of_empty_frames(arena: Arena) -> None:
    refused(arena.welcomed().pour(piece(last=True) for _ in itertools.count()), "not one message")


@cases(
    "a bad piece",
    that_is_none=(b"\xff", "the peer sent a gRPC message of 1 bytes that is no Piece"),
    of_another_version=(piece(data=b"x") + b"\xfa\x7f\x01x", "the peer sent a Piece with fields that this version"),
    too_large=(piece(data=bytes(PIECE + 1)), "the peer sent a Piece of 1048577 bytes of data"),
    without_data=(b"", "the peer sent a Piece without data that is not the last"),
    with_a_checksum=(piece(data=b"x", last=True, crc=1), "the checksum of a Piece does not fit"),
)
def a_bad_piece(arena: Arena, bad: tuple[bytes, str]) -> None:
    refused(arena.raw().pour(iter([bad[0]])), f"BAD_MESSAGE: {bad[1]}")


@case
def eight_floods_at_once(arena: Arena) -> None:
    raws = [arena.raw() for _ in range(8)]
    for raw in raws:
        raw.say(arena.hello()).pour(FULL for _ in itertools.count())
    for raw in raws:  # they are one client, that trains in its newest session alone
        refused(raw, "the most that may come now", "has come back through another")


@case
def who_never_says_hello(arena: Arena) -> None:
    start = time.monotonic()
    refused(arena.raw(), "closed")
    assert time.monotonic() - start < 10


@case
def who_says_nothing_after_the_welcome(arena: Arena) -> None:
    refused(arena.welcomed(), "closed")


@case
def a_hello_that_dribbles(arena: Arena) -> None:
    """HTTP/2 by hand (RFC 9113, 7541): a request, then a message of 1000 bytes, one at a time."""
    with arena.socket() as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0))
        fields = {
            ":method": "POST",
            ":scheme": "https",
            ":path": "/bitseam.v1.Seam/Session",
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        plain.sendall(_frame(1, 4, 1, block) + _frame(0, 0, 1, b"\0\0\0\x03\xe8"))
        plain.settimeout(0.1)
        heard, deadline = b"", time.monotonic() + 20
        while b"grpc-status" not in heard:  # its trailers: the session is over
            assert time.monotonic() < deadline
            plain.sendall(_frame(0, 0, 1, b"x"))
            try:
                heard += plain.recv(4096)
            except TimeoutError:
                continue


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _text(plain: str) -> bytes:
    return bytes([len(plain)]) + plain.encode()


@case
def bytes_that_are_no_http(arena: Arena) -> None:
    for _ in range(20):
        with arena.socket() as plain:
            plain.sendall(np.random.default_rng(0).bytes(2000))
            plain.settimeout(20)
            try:
                while plain.recv(4096):
                    pass
            except OSError:
                pass


@case
def a_long_question_and_nobody_there(arena: Arena) -> None:
    raw = arena.welcomed().say(ask(arena, 64, 256))
    raw.hear()
    raw.leave()


@case
def questions_of_one_who_reads_nothing(arena: Arena) -> None:
    raw = arena.welcomed()
    for _ in range(3):
        raw.say(ask(arena, 2, 64))
    time.sleep(1)


@case
def more_sessions_than_one_may_have(arena: Arena) -> None:
    raws = [arena.raw() for _ in range(40)]
    told = [raw.end() for raw in raws]
    assert sum("a client may have 8 sessions" in why for why in told) >= 32, told
    arena.honest_dial().close()


@case
def connections_that_say_nothing(arena: Arena) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("localhost", arena.port), 20))
        arena.honest_dial().close()


@cases(
    "who disconnects",
    at_once=lambda arena: arena.raw(),
    after_the_hello=lambda arena: arena.raw(arena.hello()),
    after_the_welcome=lambda arena: arena.welcomed(),
    in_a_frame=lambda arena: arena.welcomed().pour(iter([FULL])),
    after_the_statistics=lambda arena: arena.welcomed().say(forward(arena).news),
    in_a_step=lambda arena: arena.welcomed().say(forward(arena)),
    in_an_answer=lambda arena: arena.welcomed().say(ask(arena, 8, 200)),
    after_goodbye=lambda arena: arena.welcomed().say(pb.Goodbye()),
)
def who_disconnects(arena: Arena, begin: Callable[[Arena], Raw]) -> None:
    for wait in (0.0, 0.05):
        raw = begin(arena)
        time.sleep(wait)
        raw.leave()


@case
def who_comes_again_and_again(arena: Arena) -> None:
    for _ in range(30):
        raw = arena.raw(arena.hello(terms={}))
        refused(raw, "TERMS_DIFFER")
        raw.leave()
