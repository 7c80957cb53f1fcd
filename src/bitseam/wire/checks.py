"""What must hold of a message whatever the model: counts, sizes and shapes that agree with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from bitseam.errors import LimitError, MalformedError
from bitseam.wire import messages_pb2 as pb
from bitseam.wire.limits import Limits

ABSENT = "(absent)"
MOST_SAMPLES = 2**63  # so that a number fits a signed one
ID = 16  # bytes of a session's or a run's name


def same_terms(client: Mapping[str, str], server: Mapping[str, str]) -> list[pb.Difference]:
    """Every field in which the two sides differ."""
    return [
        pb.Difference(field=name, client=client.get(name, ABSENT), server=server.get(name, ABSENT))
        for name in sorted({*client, *server})
        if client.get(name) != server.get(name)
    ]


def check(message: Any, limits: Limits) -> None:
    """Raise LimitError or MalformedError, naming the field."""
    if isinstance(message, pb.Hello):
        _at_most("terms", len(message.terms), limits.terms)
        for name, value in message.terms.items():
            _at_most(f"terms: {name[:40]}", len(name) + len(value), limits.text)
        _require(message.purpose in (pb.TRAIN, pb.ASK), f"purpose: {message.purpose} is unknown")
        for name in ("session", "run"):
            _require(len(getattr(message, name)) in (0, ID), f"{name}: {len(getattr(message, name))} bytes, not {ID}")
        _at_most("steps", len(message.steps), limits.checkpoints)
    elif isinstance(message, pb.Welcome):
        for name in ("session", "run"):
            _require(len(getattr(message, name)) == ID, f"{name}: {len(getattr(message, name))} bytes, not {ID}")
        _require(message.HasField("limits"), "limits: absent")
        _require(not (message.resumed and message.step), f"step: {message.step}, where the session was resumed")
    elif isinstance(message, pb.Refuse):
        _require(message.fault in pb.Fault.values()[1:], f"fault: {message.fault} is unknown")
        _at_most("reason", len(message.reason), limits.text)
        _at_most("differences", len(message.differences), 2 * limits.terms)
        for difference in message.differences:
            for name in ("field", "client", "server"):
                _at_most(f"differences: {name}", len(getattr(difference, name)), limits.text)
    elif isinstance(message, pb.Goodbye):
        _at_most("reason", len(message.reason), limits.text)
    elif isinstance(message, pb.Calibrate):
        _statistics(message, limits)
    elif isinstance(message, pb.Forward | pb.Ask):
        _require(message.text.sequences >= 1, "text.sequences: 0")
        _at_most("text.sequences", message.text.sequences, limits.batch)
        _at_most("text.tokens", message.text.tokens, limits.tokens)
        _streams(message.streams, limits)
        if isinstance(message, pb.Ask):
            _require(message.max_new_tokens >= 1, "max_new_tokens: 0")
            _at_most("max_new_tokens", message.max_new_tokens, limits.new_tokens)
        else:
            _statistics(message.news, limits)
    elif isinstance(message, pb.Backward):
        _require(math.isfinite(message.loss), f"loss: {message.loss}")
        _streams(message.streams, limits)
    elif isinstance(message, pb.Average | pb.Averaged):
        _at_most("weights: elements", math.prod(message.weights.shape[: limits.rank]), limits.weights)
        _require(len(message.weights.shape) == 1, "weights: not a row of numbers")
    elif isinstance(message, pb.Tokens):
        _at_most("ids", len(message.ids), limits.batch)
    _no_unknown_fields(message)  # last, when the number of parts is known to be small


def _streams(streams: Sequence[pb.Coded], limits: Limits) -> None:
    _numbers([coded.stream for coded in streams], limits)
    for coded in streams:
        name, shape = f"stream {coded.stream}", list(coded.shape)
        _require(len(shape) >= 1, f"{name}: no shape")
        _at_most(f"{name}: dimensions", len(shape), limits.rank)
        _require(all(size >= 1 for size in shape), f"{name}: shape {shape} has an empty dimension")
        _at_most(f"{name}: elements", math.prod(shape), limits.elements)
        _require(len(coded.samples) in (0, shape[0]), f"{name}: {len(coded.samples)} samples of shape {shape}")
        _require(all(sample < MOST_SAMPLES for sample in coded.samples), f"{name}: a sample's number is 2^63 or more")


def _statistics(message: pb.Calibrate, limits: Limits) -> None:
    _numbers([told.stream for told in message.streams], limits)
    for told in message.streams:
        name, mean, std = f"stream {told.stream}", len(told.mean), len(told.std)
        _require(mean == std and mean % 4 == 0, f"{name}: statistics of {mean} and {std} bytes")
        _at_most(f"{name}: channels", mean // 4, limits.channels)
        _at_most(f"{name}: bytes of a rotation", len(told.rotation), limits.rotation)
        _at_most(f"{name}: tables", len(told.tables), limits.rates)
        for tables in told.tables:
            _at_most(f"{name}: bytes of tables", len(tables.frequencies), limits.tables)


def _numbers(numbers: list[int], limits: Limits) -> None:
    """Streams come once each, in their order."""
    _at_most("streams", len(numbers), limits.streams)
    _require(all(a < b for a, b in pairwise(numbers)), f"streams {numbers}: not each once, in their order")


def _no_unknown_fields(message: Any) -> None:
    _require(len(UnknownFieldSet(message)) == 0, f"{type(message).__name__} has fields that this version does not know")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                if isinstance(part, Message):  # a map gives its keys
                    _no_unknown_fields(part)


def _require(held: bool, complaint: str) -> None:
    if not held:
        raise MalformedError(complaint)


def _at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise LimitError(f"{name}: {value}; the limit is {limit}")
