"""Whatever arrives, `receive` gives a message or raises a WireError: never anything else, and the state then stays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_examples import GOLDEN, due, listener_at, pair_at, wrap

from bitseam.errors import MalformedError, WireError
from bitseam.wire import Limits, Protocol, State
from bitseam.wire import messages_pb2 as pb

KINDS = st.sampled_from(list(GOLDEN))


def hear(listener: Protocol, frame: bytes) -> Any:
    """The invariant itself; what is accepted is sound enough to be sent again."""
    before = listener.state
    try:
        message = listener.receive(frame)
    except WireError:
        assert listener.state is before
        return None
    wrap(message)
    return message


@pytest.mark.parametrize("kind", GOLDEN)
def test_truncations_and_trailing_data_are_malformed(kind: type[Any]) -> None:
    message, golden = GOLDEN[kind]
    frame = bytes.fromhex(golden)
    for end in range(len(frame)):
        with pytest.raises(MalformedError):
            listener_at(due(kind), message).receive(frame[:end])
    goodbye = bytes.fromhex(GOLDEN[pb.Goodbye][1])
    for trailing in (b"\0", b"\xff", frame, goodbye, frame[:2], b"\x78\x01"):
        with pytest.raises(MalformedError, match="not one message"):
            listener_at(due(kind), message).receive(frame + trailing)
        with pytest.raises(MalformedError, match="not one message"):
            listener_at(due(kind), message).receive(trailing + frame)


@settings(deadline=None)  # of others' work on this machine
@given(st.sampled_from(State), st.sampled_from((0, 1)), st.binary(max_size=200))
def test_random_bytes(state: State, side: int, frame: bytes) -> None:
    hear(pair_at(state)[side], frame)


@settings(deadline=None)  # of others' work on this machine
@given(KINDS, st.binary(max_size=100))
def test_random_bodies_in_a_sound_envelope(kind: type[Any], body: bytes) -> None:
    first = bytes.fromhex(GOLDEN[kind][1])[:1]
    hear(listener_at(due(kind), kind()), first + bytes([len(body)]) + body)


@settings(deadline=None)  # of others' work on this machine
@given(KINDS, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_mutated_frames(kind: type[Any], changes: list[tuple[int, int]], whole: bool) -> None:
    frame = bytearray.fromhex(GOLDEN[kind][1])
    for place, value in changes:
        frame[place % len(frame)] = value
    if whole:  # past the envelope, into the message
        frame[:2] = bytes([bytes.fromhex(GOLDEN[kind][1])[0], len(frame) - 2])
    hear(listener_at(due(kind), kind()), bytes(frame))


number = st.integers(0, 2**64 - 1)
field = st.integers(0, 2**32 - 1)
coded = st.builds(
    pb.Coded,
    stream=st.integers(0, 3),
    shape=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    payload=st.binary(max_size=9),
)
small = st.builds(pb.Coded, stream=st.integers(0, 3), shape=st.lists(st.integers(0, 3), max_size=3))
text = st.builds(
    pb.Text,
    sequences=st.integers(0, 4) | field,
    tokens=st.integers(0, 9) | field,
    symbols=st.binary(max_size=4),
)
streams = st.lists(coded | small, max_size=3)


@settings(deadline=None)  # of others' work on this machine
@given(
    st.builds(pb.Forward, step=number, micro=field, text=text, streams=streams)
    | st.builds(pb.Ask, text=text, streams=streams, max_new_tokens=field)
    | st.builds(pb.Hello, version=field, purpose=st.integers(-3, 3), terms=st.dictionaries(st.text(), st.text()))
)
def test_well_formed_messages_with_any_fields(message: Any) -> None:
    accepted = hear(listener_at(due(type(message)), message), wrap(message))
    if isinstance(accepted, pb.Forward | pb.Ask):
        assert 1 <= accepted.text.sequences <= Limits().batch
        assert accepted.text.tokens <= Limits().tokens
        assert all(min(stream.shape) >= 1 for stream in accepted.streams)
        numbers = [stream.stream for stream in accepted.streams]
        assert numbers == sorted(set(numbers))
