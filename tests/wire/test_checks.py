"""What a message may hold: every rule broken once, every limit at its bound and one over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from wire_examples import DIFFERENCE, GOLDEN, TEXT, due, listener_at, speaker_at, wrap

from bitseam.errors import LimitError, MalformedError, WireError
from bitseam.wire import Limits, Protocol, same_terms
from bitseam.wire import messages_pb2 as pb


def reordered(message: pb.Forward) -> None:
    first = message.streams[0]
    message.streams.insert(0, pb.Coded(stream=1, shape=first.shape))


def changed(kind: type[Any], change: Callable[[Any], Any]) -> Any:
    message = kind()
    message.CopyFrom(GOLDEN[kind][0])
    change(message)
    return message


def numbered(message: pb.Forward, samples: list[int]) -> None:
    message.streams[0].shape[0] = 2
    message.streams[0].samples.extend(samples)


def hear(message: Any, limits: Limits | None = None) -> None:
    listener = listener_at(due(type(message)), message)
    if limits is not None:
        listener.limits = limits
    state = listener.state
    try:
        listener.receive(wrap(message))
    except WireError:
        assert listener.state == state
        raise


MALFORMED: list[tuple[str, type[Any], Callable[[Any], Any]]] = [
    ("weights: not a row of numbers", pb.Average, lambda m: m.weights.shape.append(1)),
    ("weights: not a row of numbers", pb.Averaged, lambda m: m.ClearField("weights")),
    ("weights: not a row of numbers", pb.Average, lambda m: m.weights.shape.extend([1, 1, 1, 2**31])),
    ("purpose: 0 is unknown", pb.Hello, lambda m: m.ClearField("purpose")),
    ("purpose: 9 is unknown", pb.Hello, lambda m: setattr(m, "purpose", 9)),
    ("session: 15 bytes", pb.Hello, lambda m: setattr(m, "session", bytes(15))),
    ("run: 17 bytes", pb.Hello, lambda m: setattr(m, "run", bytes(17))),
    ("run: 0 bytes", pb.Welcome, lambda m: m.ClearField("run")),
    ("session: 15 bytes", pb.Welcome, lambda m: setattr(m, "session", bytes(15))),
    ("session: 17 bytes", pb.Welcome, lambda m: setattr(m, "session", bytes(17))),
    ("limits: absent", pb.Welcome, lambda m: m.ClearField("limits")),
    ("step: 300, where the session was resumed", pb.Welcome, lambda m: setattr(m, "resumed", True)),
    ("fault: 0 is unknown", pb.Refuse, lambda m: m.ClearField("fault")),
    ("fault: 99 is unknown", pb.Refuse, lambda m: setattr(m, "fault", 99)),
    ("stream 2: statistics of 4 and 0 bytes", pb.Forward, lambda m: m.news.streams.add(stream=2, mean=bytes(4))),
    ("stream 0: statistics of 4 and 8 bytes", pb.Calibrate, lambda m: setattr(m.streams[0], "std", bytes(8))),
    ("stream 1: statistics of 3 and 3", pb.Calibrate, lambda m: m.streams.add(stream=1, mean=b"abc", std=b"abc")),
    (r"streams \[0, 0\]: not each once", pb.Calibrate, lambda m: m.streams.add()),
    ("text.sequences: 0", pb.Forward, lambda m: m.ClearField("text")),
    ("stream 1: no shape", pb.Forward, lambda m: m.streams.add(stream=1, payload=b"x")),
    ("stream 0: shape .* empty dimension", pb.Forward, lambda m: m.streams[0].shape.__setitem__(2, 0)),
    (r"streams \[0, 0\]: not each once", pb.Forward, lambda m: m.streams.append(m.streams[0])),
    ("stream 0: 3 samples of shape", pb.Forward, lambda m: numbered(m, [0] * 3)),
    (r"stream 0: a sample's number is 2\^63 or more", pb.Forward, lambda m: numbered(m, [0, 2**63])),
    (r"streams \[1, 0\]: not each once, in their order", pb.Forward, reordered),
    ("loss: nan", pb.Backward, lambda m: setattr(m, "loss", float("nan"))),
    ("loss: -inf", pb.Backward, lambda m: setattr(m, "loss", float("-inf"))),
    ("stream 0: no shape", pb.Backward, lambda m: m.streams[0].ClearField("shape")),
    ("stream 1: no shape", pb.Backward, lambda m: m.streams.add(stream=1)),
    ("max_new_tokens: 0", pb.Ask, lambda m: setattr(m, "max_new_tokens", 0)),
    (r"streams \[0, 0\]: not each once", pb.Ask, lambda m: m.streams.append(m.streams[0])),
]


@pytest.mark.parametrize(("complaint", "kind", "change"), MALFORMED)
def test_a_broken_rule_is_named(complaint: str, kind: type[Any], change: Callable[[Any], Any]) -> None:
    message = changed(kind, change)
    side = "client" if listener_at(due(kind), message).role == "server" else "server"
    with pytest.raises(MalformedError, match=f"the {side} sent a {kind.__name__} where .*{complaint}"):
        hear(message)
    with pytest.raises(MalformedError, match=f"^{complaint}"):  # one's own mistake
        speaker_at(due(kind), message).send(message)


def test_a_session_and_a_run_have_sixteen_bytes_and_may_be_left_out_of_a_hello() -> None:
    for session, run in ((b"", b""), (bytes(16), b""), (b"", bytes(16)), (bytes(16), bytes(16))):
        hear(pb.Hello(version=1, purpose=pb.TRAIN, session=session, run=run))


def test_a_client_narrows_its_limits_to_those_it_is_told_and_widens_none() -> None:
    told = Limits(batch=3, new_tokens=10**6).told()
    client, server = Protocol("client"), Protocol("server")
    server.receive(client.send(GOLDEN[pb.Hello][0]))
    client.receive(server.send(pb.Welcome(session=bytes(16), run=bytes(16), limits=told)))
    assert client.limits == Limits(batch=3)
    with pytest.raises(LimitError, match=r"^text.sequences: 4; the limit is 3$"):
        client.send(text(4, 0))
    client.send(text(3, 0))
    assert server.limits == Limits()


def test_one_new_token_may_be_asked_for() -> None:
    hear(changed(pb.Ask, lambda m: setattr(m, "max_new_tokens", 1)))


UNKNOWN = b"\xfa\x7f\x01x"  # field 2047, one byte


@pytest.mark.parametrize(
    "message",
    [pb.Ack(step=1), GOLDEN[pb.Forward][0], pb.Refuse(fault=pb.STOPPING, differences=[DIFFERENCE])],
    ids=["message", "message of a message", "message of a list"],
)
def test_unknown_fields_are_refused_at_every_depth(message: Any) -> None:
    hear(message)
    part = {"Ack": lambda m: m, "Forward": lambda m: m.text, "Refuse": lambda m: m.differences[0]}
    copy = type(message)()
    copy.CopyFrom(message)
    part[type(message).__name__](copy).MergeFromString(UNKNOWN)
    with pytest.raises(MalformedError, match="fields that this version does not know"):
        hear(copy)


def text(sequences: int, tokens: int) -> pb.Forward:
    return pb.Forward(step=1, text=pb.Text(sequences=sequences, tokens=tokens), streams=[pb.Coded(shape=[1, 1])])


def image(*shape: int) -> pb.Forward:
    return pb.Forward(step=1, text=TEXT, streams=[pb.Coded(shape=[2, *shape])])


def hello(terms: dict[str, str]) -> pb.Hello:
    return pb.Hello(version=1, purpose=pb.TRAIN, terms=terms)


def statistics(channels: int) -> pb.Calibrate:
    return pb.Calibrate(streams=[pb.Statistics(mean=bytes(4 * channels), std=bytes(4 * channels))])


def tables(size: int) -> pb.Calibrate:
    return pb.Calibrate(streams=[pb.Statistics(stream=1, tables=[pb.Tables(frequencies=bytes(size))])])


def rotation(size: int) -> pb.Calibrate:
    return pb.Calibrate(streams=[pb.Statistics(rotation=bytes(size))])


# name of the limit, a value for it, a message at the limit, a message one over it
LIMITS: list[tuple[str, int, Any, Any]] = [
    ("terms", 2, hello({"a": "", "b": ""}), hello({"a": "", "b": "", "c": ""})),
    ("text", 6, hello({"abc": "def"}), hello({"abc": "defg"})),
    ("text", 6, pb.Goodbye(reason="a" * 6), pb.Goodbye(reason="a" * 7)),
    ("text", 6, pb.Refuse(fault=2, reason="a" * 6), pb.Refuse(fault=2, reason="a" * 7)),
    *(
        (
            "text",
            6,
            pb.Refuse(fault=1, differences=[pb.Difference(**{part: "a" * 6})]),
            pb.Refuse(fault=1, differences=[pb.Difference(**{part: "a" * 7})]),
        )
        for part in ("field", "client", "server")
    ),
    (
        "terms",
        1,
        pb.Refuse(fault=1, differences=[DIFFERENCE] * 2),  # both sides' terms may differ
        pb.Refuse(fault=1, differences=[DIFFERENCE] * 3),
    ),
    (
        "checkpoints",
        2,
        pb.Hello(version=1, purpose=pb.ASK, steps=[1, 2]),
        pb.Hello(version=1, purpose=1, steps=[1, 2, 3]),
    ),
    ("channels", 3, statistics(3), statistics(4)),
    ("tables", 8, tables(8), tables(9)),
    ("rotation", 9, rotation(9), rotation(10)),
    ("batch", 2, text(2, 0), text(3, 0)),
    ("batch", 2, pb.Tokens(ids=[1, 1]), pb.Tokens(ids=[1, 1, 1])),
    ("tokens", 17, text(1, 17), text(1, 18)),
    ("streams", 1, image(1, 1), changed(pb.Forward, lambda m: m.streams.add(stream=1, shape=[1]))),
    ("rates", 1, tables(8), changed(pb.Calibrate, lambda m: m.streams[0].tables.extend([pb.Tables()] * 2))),
    ("rank", 3, image(1, 1), image(1, 1, 1)),
    ("elements", 12, image(2, 3), image(7)),
    (
        "elements",
        12,
        pb.Backward(step=1, micro=2, streams=[pb.Coded(shape=[12])]),
        pb.Backward(step=1, micro=2, streams=[pb.Coded(shape=[13])]),
    ),
    (
        "weights",
        2,
        pb.Average(step=7, weights=pb.Coded(shape=[2])),
        pb.Average(step=7, weights=pb.Coded(shape=[3])),
    ),
    ("new_tokens", 8, GOLDEN[pb.Ask][0], changed(pb.Ask, lambda m: setattr(m, "max_new_tokens", 9))),
]


@pytest.mark.parametrize(("name", "value", "at", "over"), LIMITS)
def test_every_limit_at_and_over_its_bound(name: str, value: int, at: Any, over: Any) -> None:
    hear(at, Limits(**{name: value}))
    with pytest.raises(LimitError, match=r"the limit is \d+$"):
        hear(over, Limits(**{name: value}))


def test_every_limit_is_tested() -> None:
    sizes = {"frame_bytes", "control_bytes"}  # in test_protocol
    waits = {"hello_seconds", "idle_seconds"}  # in tests/hostile
    rows = {"sequence_tokens", "image_tokens", "positions"}  # in tests/sessions/test_limits.py
    assert {name for name, *_ in LIMITS} | sizes | waits | rows == set(Limits.__dataclass_fields__)


def test_a_product_over_64_bits_does_not_wrap() -> None:
    huge = 2**32 - 1
    with pytest.raises(LimitError, match=f"{2 * huge**3}"):
        hear(image(huge, huge, huge))
    with pytest.raises(LimitError, match=f"{2 * 2**30 * 2**30 * 8}"):  # 0 modulo 2**64
        hear(image(2**30, 2**30, 8))


def test_terms_that_differ_are_named_with_both_values() -> None:
    assert same_terms({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == []
    assert same_terms({"b": "2", "d": "x"}, {"a": "1", "b": "3", "d": "x"}) == [
        pb.Difference(field="a", client="(absent)", server="1"),
        pb.Difference(field="b", client="2", server="3"),
    ]


def test_an_absent_term_is_not_an_equal_one() -> None:
    assert same_terms({"a": ""}, {}) == [pb.Difference(field="a", client="", server="(absent)")]
    assert len(same_terms({"a": "(absent)"}, {})) == 1


def test_the_largest_number_of_a_sample() -> None:
    hear(changed(pb.Forward, lambda m: numbered(m, [0, 2**63 - 1])))
