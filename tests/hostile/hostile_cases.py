"""What a hostile client does, and how it must end: each a case, by name. A case raises where it is not contained.

Here is what its messages say; what it does to the link is in `hostile_links`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from arena import Arena, Raw
from pairs import alike

from bitseam.streams.coded import encode
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import DICTIONARY, _symbol_type, deflate, text_message
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
    return alike(sequences, words, answers, image_at=1)


def text(arena: Arena, **shape: int) -> pb.Text:
    return text_message(batch(**shape), arena.honest.prompter.vocabulary)


def image(arena: Arena, sequences: int = 2, tokens: int = 4) -> pb.Coded:
    return encode(arena.codec, torch.zeros(sequences, tokens, 32))


def forward(arena: Arena, sequences: int = 2, tokens: int = 4, words: int = 4) -> pb.Forward:
    """A sound first half of a step; no step of the hostile client is ever whole, so that no weight changes."""
    mean, std, tables = bytes(4 * 32), b"\0\0\x80?" * 32, arena.codec.table_bytes()
    told = pb.Statistics(mean=mean, std=std, tables=[pb.Tables(frequencies=tables)])
    body = image(arena, sequences, tokens)
    return pb.Forward(
        step=1, text=text(arena, sequences=sequences, words=words), streams=[body], news=pb.Calibrate(streams=[told])
    )


def ask(arena: Arena, sequences: int = 2, new: int = 8) -> pb.Ask:
    words = text_message(batch(sequences, answers=False), arena.honest.prompter.vocabulary)
    return pb.Ask(text=words, streams=[image(arena, sequences)], max_new_tokens=new)


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


STRANGE = {
    "welcome": pb.Welcome(session=bytes(16), run=bytes(16), limits=pb.Limits()),
    "backward": pb.Backward(step=1, streams=[pb.Coded(shape=[1])]),
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
    message.streams[0].shape[:] = shape
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
    message.news.streams[0].tables[0].frequencies = rows.tobytes()
    message.streams[0].payload = payload
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
    image_last=(2, 4, deflate(np.array([0, 10, 3, 10, 2, 0, 10, 3, 10, 2]).astype(_symbol_type(16)).tobytes())),
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
    message.news.dictionary = deflated
    refused(arena.welcomed().say(message), "dictionary")


@cases(
    "statistics that nobody can compute with",
    nan_mean=("mean", np.full(32, np.nan)),
    infinite_mean=("mean", np.full(32, np.inf)),
    nan_deviation=("std", np.full(32, np.nan)),
    no_deviation=("std", np.zeros(32)),
    negative_deviation=("std", -np.ones(32)),
    huge_deviation=("std", np.full(32, 3e38)),
    huge_mean=("mean", np.full(32, 3e38)),
)
def statistics_that_nobody_can_compute_with(arena: Arena, what: tuple[str, Any]) -> None:
    message = forward(arena)
    setattr(message.news.streams[0], what[0], what[1].astype("<f4").tobytes())
    refused(arena.welcomed().say(message), f"BAD_MESSAGE: image: statistics: {what[0]}")


@cases("tables that are none", zeros=np.zeros(8), over=np.full(8, 65535), short=np.full(3, 16384))
def tables_that_are_none(arena: Arena, rows: Any) -> None:
    tables = pb.Tables(frequencies=rows.astype("<u2").tobytes())
    news = pb.Calibrate(streams=[pb.Statistics(tables=[tables])])
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
