"""What a hostile client does, and how it must end: each a case, by name. A case raises where it is not contained."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from arena import Arena, Raw

from bitseam.sessions.peer import encode
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import DICTIONARY, _symbol_type, deflate, text_message
from bitseam.transport.flow import PIECE
from bitseam.wire import messages_pb2 as pb

Case = Callable[[Arena], None]
CASES: dict[str, Case] = {}


def case(attack: Case) -> Case:
    CASES[attack.__name__.replace("_", " ")] = attack
    return attack


def cases(name: str, **variants: Any) -> Callable[[Callable[[Arena, Any], None]], Callable[[Arena, Any], None]]:
    """One attack in several variants."""

    def register(attack: Callable[[Arena, Any], None]) -> Callable[[Arena, Any], None]:
        for variant, value in variants.items():
            CASES[f"{name}: {variant.replace('_', ' ')}"] = lambda arena, value=value: attack(arena, value)
        return attack

    return register


def batch(sequences: int = 2, words: int = 4, answers: bool = True) -> TextBatch:
    count = sequences * words
    return TextBatch(
        ids=torch.full((count,), 5),
        lengths=torch.full((sequences,), words),
        image_at=torch.ones(sequences, dtype=torch.int64),
        image=torch.arange(sequences),
        answers=(torch.arange(count) % words >= words - 1) & answers,
    )


def text(arena: Arena, **shape: int) -> pb.Text:
    return text_message(batch(**shape), arena.honest.prompter.vocabulary)


def image(arena: Arena, sequences: int = 2, tokens: int = 4) -> pb.Coded:
    return encode(arena.seam.image.up, torch.zeros(sequences, tokens, 32))


def forward(arena: Arena, sequences: int = 2, tokens: int = 4, words: int = 4) -> pb.Forward:
    """A sound first half of a step; no step of the hostile client is ever whole, so that no weight changes."""
    mean, std, tables = bytes(4 * 32), b"\0\0\x80?" * 32, arena.seam.image.up.table_bytes()
    news = pb.Calibrate(image=pb.Statistics(mean=mean, std=std, tables=tables))
    body = image(arena, sequences, tokens)
    return pb.Forward(step=1, text=text(arena, sequences=sequences, words=words), image=body, statistics=news)


def ask(arena: Arena, sequences: int = 2, new: int = 8) -> pb.Ask:
    words = text_message(batch(sequences, answers=False), arena.honest.prompter.vocabulary)
    return pb.Ask(text=words, image=image(arena, sequences), max_new_tokens=new)


def refused(raw: Raw, *named: str, seconds: float = 20) -> None:
    """The session ends, and what is told holds one of these."""
    told = raw.end(seconds)
    assert any(name in told for name in named), told


@case
def an_oversized_hello(arena: Arena) -> None:
    terms = {f"{i}": "x" * 4000 for i in range(70)}
    refused(arena.raw(arena.hello(terms=terms)), "over 262144 bytes")


@case
def many_terms_and_many_steps(arena: Arena) -> None:
    refused(arena.raw(arena.hello(terms={f"{i}": "" for i in range(9000)})), "terms: 9000; the limit is 64")
    refused(arena.raw(arena.hello(steps=range(50_000))), "steps: 50000; the limit is 64")


@case
def an_oversized_message_of_grpc(arena: Arena) -> None:
    refused(arena.raw().pour(iter([bytes(64 * 2**20)])), "RESOURCE_EXHAUSTED")


@case
def an_oversized_frame_in_pieces(arena: Arena) -> None:
    refused(arena.welcomed().pour(bytes(PIECE) for _ in range(200)), "the most that may come now")


@case
def a_frame_without_end_before_the_hello(arena: Arena) -> None:
    refused(arena.raw().pour(bytes(PIECE) for _ in itertools.count()), "the most that may come now")


@case
def a_flood_of_small_frames(arena: Arena) -> None:
    frame = pb.Envelope(hello=arena.hello()).SerializeToString()
    refused(arena.raw().pour(frame for _ in itertools.count()), "does not allow")


@case
def a_flood_of_empty_frames(arena: Arena) -> None:
    refused(arena.welcomed().pour(b"" for _ in itertools.count()), "not one message")


@case
def eight_floods_at_once(arena: Arena) -> None:
    raws = [arena.raw() for _ in range(8)]
    for raw in raws:
        raw.say(arena.hello()).pour(bytes(PIECE) for _ in itertools.count())
    for raw in raws:  # they are one client, that trains in its newest session alone
        refused(raw, "the most that may come now", "has begun another")


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


STRANGE = {
    "welcome": pb.Welcome(session=bytes(16), run=bytes(16)),
    "backward": pb.Backward(step=1, image=pb.Coded(shape=[1])),
    "tokens": pb.Tokens(ids=[1]),
    "ack": pb.Ack(step=1),
    "refuse": pb.Refuse(fault=pb.STOPPING),
    "checkpoint": pb.Checkpoint(step=1),
    "calibrate": pb.Calibrate(),
}


@cases("out of state before the hello", **STRANGE)
def out_of_state(arena: Arena, message: Any) -> None:
    refused(arena.raw(message), "BAD_MESSAGE: the client sent", "the server sent")


@cases("out of state after the welcome", **{k: v for k, v in STRANGE.items() if k not in ("checkpoint", "calibrate")})
def out_of_state_later(arena: Arena, message: Any) -> None:
    refused(arena.welcomed().say(message), "does not allow")


@case
def a_second_hello(arena: Arena) -> None:
    refused(arena.welcomed().say(arena.hello()), "does not allow")


@case
def a_message_while_the_answer_is_due(arena: Arena) -> None:
    refused(arena.welcomed().say(forward(arena), forward(arena), b"\x32\x02\x08\x01"), "step 1", "Forward", "not allow")


@cases(
    "a step that is not due",
    far=lambda m: setattr(m, "step", 2**64 - 1),
    past=lambda m: setattr(m, "step", 0),
    micro=lambda m: setattr(m, "micro", 2**32 - 1),
)
def not_due(arena: Arena, change: Callable[[Any], None]) -> None:
    message = forward(arena)
    change(message)
    refused(arena.welcomed().say(message), "is due", "when the last")


@case
def a_checkpoint_that_is_not_due(arena: Arena) -> None:
    refused(arena.welcomed().say(pb.Checkpoint(step=2**40)), "checkpoint of step")


@case
def another_session_claimed(arena: Arena) -> None:
    session = arena.honest.session._connection._session
    assert len(session) == 16
    heard = arena.raw(arena.hello(session=session)).hear()
    assert isinstance(heard, pb.Welcome)
    assert heard.session != session
    assert not heard.resumed


@cases(
    "a shape that lies",
    long=[2, 65, 32],
    huge=[2, 2**32 - 1, 2**32 - 1],
    wide=[2, 4, 33],
    flat=[2, 128],
    empty=[2, 0, 32],
    none=[],
    deep=[2, 4, 4, 4, 2],
    very_deep=[1] * 20_000,
    other_images=[1, 8, 32],
    more_images=[3, 4, 32],
    more_elements=[2, 5, 32],
)
def a_shape_that_lies(arena: Arena, shape: list[int]) -> None:
    message = forward(arena)
    message.image.shape[:] = shape
    refused(arena.welcomed().say(message), "BAD_MESSAGE")


@cases(
    "a stream that decodes for ever",
    zeros=b"",
    ones=b"\xff" * 600,
    lanes=b"\xff\xff" * 100,
    long=bytes(100_000),
)
def decodes_for_ever(arena: Arena, payload: bytes) -> None:
    message = forward(arena, sequences=64, tokens=64)
    rows = np.array([[65533, 1, 1, 1]] * 2, "<u2")
    message.statistics.image.tables = rows.tobytes()
    message.image.payload = payload
    start = time.monotonic()
    heard = arena.welcomed().say(message).hear()
    assert isinstance(heard, pb.Refuse | pb.Backward), heard  # all zeros is the shortest stream there is, and sound
    assert time.monotonic() - start < 15


@cases(
    "text that lies",
    bomb=(2, 8, deflate(bytes(2**26))),
    more_tokens=(2, 2048, b""),
    many=(64, 2**31, b""),
    no_deflate=(2, 8, b"\xff" * 5000),
    nothing=(2, 8, b""),
    long_row=(
        2,
        64,
        deflate(np.array([0, 3, *[10] * 60, 0, 3, *[10] * 4]).astype(_symbol_type(16)).tobytes()),
    ),
)
def text_that_lies(arena: Arena, parts: tuple[int, int, bytes]) -> None:
    message = forward(arena)
    message.text.sequences, message.text.tokens, message.text.symbols = parts
    refused(arena.welcomed().say(message), "text")


@cases(
    "a dictionary that lies",
    bomb=deflate(bytes(2**26)),
    long=deflate(bytes(DICTIONARY + 1)),
    no_deflate=b"\xff" * 5000,
)
def a_dictionary_that_lies(arena: Arena, deflated: bytes) -> None:
    message = forward(arena)
    message.statistics.dictionary = deflated
    refused(arena.welcomed().say(message), "dictionary")


@cases(
    "numbers that are none",
    nan_mean=("mean", np.full(32, np.nan)),
    infinite_mean=("mean", np.full(32, np.inf)),
    nan_deviation=("std", np.full(32, np.nan)),
    no_deviation=("std", np.zeros(32)),
    negative_deviation=("std", -np.ones(32)),
    huge_deviation=("std", np.full(32, 3e38)),
    huge_mean=("mean", np.full(32, 3e38)),
)
def numbers_that_are_none(arena: Arena, what: tuple[str, Any]) -> None:
    message = forward(arena)
    setattr(message.statistics.image, what[0], what[1].astype("<f4").tobytes())
    heard = arena.welcomed().say(message).hear()
    if not isinstance(heard, pb.Backward):  # numbers may be huge, and the loss still finite
        assert any(word in heard.reason for word in ("NaN", "infinit", "positive", "loss of step")), heard


@cases("tables that are none", zeros=np.zeros(8), over=np.full(8, 65535), short=np.full(3, 16384))
def tables_that_are_none(arena: Arena, rows: Any) -> None:
    news = pb.Calibrate(image=pb.Statistics(tables=rows.astype("<u2").tobytes()))
    refused(arena.welcomed().say(news), "table")


@case
def weights_where_none_are_averaged(arena: Arena) -> None:
    weights = pb.Coded(shape=[1000], payload=np.full(1000, np.nan, "<f4").tobytes())
    refused(
        arena.welcomed().say(pb.Average(step=1, weights=weights)), "weights: elements: 1000; the limit is 0", "Aver"
    )


@cases("a question without end", tokens={"new": 2**32 - 1}, sequences={"sequences": 65}, none={"new": 0})
def a_question_without_end(arena: Arena, shape: dict[str, int]) -> None:
    refused(arena.welcomed().say(ask(arena, **shape)), "the limit is", "max_new_tokens: 0")


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


@case
def lines_for_the_log(arena: Arena) -> None:
    forged = "\x1b[2J\n2026-01-01 INFO client 'client': session over\r"
    refused(arena.raw(arena.hello(terms=dict(arena.terms) | {"x": forged})), "TERMS_DIFFER")
    raw = arena.welcomed().say(pb.Goodbye(reason=forged * 9))
    raw.end()
    told = arena.server.told()
    assert "\x1b[2J" not in told
    assert "\n2026-01-01 INFO client" not in told


DAMAGED = {
    "nothing": b"",
    "zeros": bytes(1000),
    "cut": b"\x32\xff\xff\xff\x7f\x01",
    "unknown_field": b"\x32\x04\xfa\x7f\x01x",
    "groups": b"\x32\x40" + b"\x0b" * 64,
    "two": b"\x42\x02\x08\x01\x42\x02\x08\x01",
    "no_text": b"\x0a\x06\x1a\x04\x0a\x02\xff\xfe",
}


@cases("a message that is none", **DAMAGED)
def a_message_that_is_none(arena: Arena, frame: bytes) -> None:
    refused(arena.welcomed().say(frame), "BAD_MESSAGE")


@cases(
    "who disconnects",
    at_once=lambda arena: arena.raw(),
    after_the_hello=lambda arena: arena.raw(arena.hello()),
    after_the_welcome=lambda arena: arena.welcomed(),
    in_a_frame=lambda arena: arena.welcomed().pour(iter([bytes(PIECE)])),
    after_the_statistics=lambda arena: arena.welcomed().say(pb.Calibrate(image=forward(arena).statistics.image)),
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
