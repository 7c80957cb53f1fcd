"""Each limit that a Welcome tells is the one that its server enforces, and a client keeps to it before it sends."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import ENTROPY, Pair, alike, batches, pair

from bitseam.errors import LimitError, RefusedError
from bitseam.sessions import party
from bitseam.streams.coded import encode
from bitseam.text.symbols import text_message
from bitseam.wire import Limits
from bitseam.wire import messages_pb2 as pb

VOCABULARY = 16
Make = Callable[[Pair, int], Any]


def ask(split: Pair, sequences: int = 1, words: int = 4, tokens: int = 4, new: int = 1) -> pb.Ask:
    codes = encode(split.client.streams["image"].codec(0), torch.zeros(sequences, tokens, 32))
    return pb.Ask(
        text=text_message(alike(sequences, words, answers=False), VOCABULARY), streams=[codes], max_new_tokens=new
    )


def padded(split: Pair, size: int) -> pb.Ask:
    """A question whose frame has so many bytes."""
    question, count = ask(split), size
    while (frame := len(pb.Envelope(ask=question).SerializeToString())) != size:
        count += size - frame  # a length takes a byte more as it grows
        question.streams[0].payload = bytes(count)
    return question


def spread(split: Pair, tokens: int) -> pb.Ask:
    """So many tokens of all sequences, none of them long."""
    question = ask(split)
    question.text.tokens = tokens
    return question


def statistics(channels: int, rotation: int = 0, tables: int = 0) -> pb.Calibrate:
    one = np.ones(channels, "<f4").tobytes()
    told = pb.Statistics(mean=one, std=one, rotation=bytes(rotation))
    if tables:
        told.tables.add(frequencies=bytes(tables))
    return pb.Calibrate(streams=[told])


# What holds so much, and what is said of more than that.
HOLDS: dict[str, tuple[Make, str]] = {
    "frame_bytes": (padded, "a Ask of|frame of over"),
    "batch": (lambda split, n: ask(split, sequences=n), "text.sequences: "),
    "tokens": (spread, "text.tokens: "),
    "sequence_tokens": (lambda split, n: ask(split, words=n), "a sequence of .* tokens"),
    "image_tokens": (lambda split, n: ask(split, tokens=n), "image: .* tokens"),
    "positions": (lambda split, n: ask(split, words=24, tokens=6, new=n - 30), "positions"),
    "new_tokens": (lambda split, n: ask(split, new=n), "max_new_tokens: "),
    "elements": (
        lambda split, n: pb.Ask(text=pb.Text(sequences=1), streams=[pb.Coded(shape=[n])], max_new_tokens=1),
        "elements: ",
    ),
    "channels": (lambda split, n: statistics(n), "channels: "),
    "tables": (lambda split, n: statistics(32, tables=n), "bytes of tables: "),
    "rotation": (lambda split, n: statistics(32, rotation=n), "bytes of a rotation: "),
    "weights": (lambda split, n: pb.Average(weights=pb.Coded(shape=[n], payload=bytes(4 * n))), "weights: elements"),
}
SMALL = {"seam__max_tokens": 6, "text__max_tokens": 24}


def recipe_for(name: str, tiny: Tiny) -> Any:
    if name == "weights":
        return make_recipe(tiny, **SMALL, train__sharing="averaged", train__clients=2)
    if name == "rotation":
        rate = {"quantizer": "rate-fsq", "codec": {"id": "entropy-uniform"}, "levels": 15, "clip": 7.0}
        return make_recipe(tiny, **SMALL, streams__image=rate)
    return make_recipe(tiny, **SMALL, **(ENTROPY if name == "tables" else {}))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers whose models have 280 positions, where the tiny one has no end, and which average few numbers."""
    whole = party.session_limits

    def limits(*given: Any) -> Limits:
        found = whole(*given)
        return replace(found, positions=min(found.positions, 280), weights=min(found.weights, 100))

    monkeypatch.setattr(party, "session_limits", limits)


def told_by_the_server(split: Pair, message: Any) -> str:
    """Why it refuses a message that its client has not checked; empty where it answers."""
    peer = split.client._connection._peer
    peer._protocol.limits = Limits()
    try:
        peer.send(message)
        peer.receive(20)
    except RefusedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", HOLDS)
def test_a_told_limit_is_the_one_enforced(tiny: Tiny, name: str) -> None:
    make, complaint = HOLDS[name]
    for over in (0, 1):
        with pair(recipe_for(name, tiny)) as split:
            limit = getattr(split.client._connection.limits, name)
            assert limit < getattr(Limits(), name)
            told = told_by_the_server(split, make(split, limit + over))
        assert bool(re.search(complaint, told)) == bool(over), told


def test_every_told_limit_is_tried() -> None:
    assert {*HOLDS, "idle_seconds"} == set(pb.Limits.DESCRIPTOR.fields_by_name)  # that one in tests/hostile


@pytest.mark.parametrize("name", ["batch", "sequence_tokens", "positions", "new_tokens"])
def test_a_client_sends_nothing_over_a_told_limit(tiny: Tiny, name: str) -> None:
    over = {"batch": (65, 4, 1), "sequence_tokens": (1, 25, 1), "positions": (1, 24, 253), "new_tokens": (1, 4, 257)}
    sequences, words, new = over[name]
    recipe = make_recipe(tiny, **SMALL)
    with pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        sent = split.client.ledger.total("up").bytes
        with pytest.raises(LimitError, match=HOLDS[name][1]):
            list(split.client.ask(features[:1].expand(sequences, -1, -1), alike(sequences, words, answers=False), new))
        if name in ("batch", "sequence_tokens"):
            with pytest.raises(LimitError, match=HOLDS[name][1]):
                split.client.step(
                    1, 0, True, features[:1].expand(sequences, -1, -1), alike(sequences, words, answers=True)
                )
        assert split.client.ledger.total("up").bytes == sent
        split.client.step(1, 0, True, features, text)  # and goes on
    assert not split.failures
