"""What goes wrong with a stream is said by name, and leaves it as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from stream_models import WIDTH, pair, x

from bitseam import Stream
from bitseam.api.message import FEATURES, seal
from bitseam.errors import (
    CodecError,
    ConfigError,
    LimitError,
    MalformedError,
    NonFiniteError,
    StateError,
    UsageError,
    WireError,
)
from bitseam.wire import messages_pb2 as pb


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"chanels": 6}, "^Stream: chanels: unknown key$"),
        ({"levels": 1}, "^Stream: levels: .* greater than or equal to 2"),
        ({"width": 0}, "^Stream: width: a whole number from 1 on .got 0."),
        ({"width": True}, "^Stream: width: "),
        ({"width": "12"}, "^Stream: width: "),
        ({"name": ""}, "^Stream: name: "),
        ({"channels": 13}, "^Stream: a quantizer of 13 channels needs a width of at least that, not 12$"),
        ({"codec": "nope"}, "^Stream: .*codec nope takes features as they are"),
        ({"quantizer": "none", "codec": "nope"}, "^Stream: codec: .*nope"),
        ({"quantizer": "nope"}, "^Stream: quantizer: "),
        ({"gradient": {"id": "stochastic", "levls": 3}}, "^Stream: gradient: codec stochastic has no option 'levls'"),
        ({"quantizer": "step-fsq", "steps": [1.0]}, "^Stream: 1 steps for 12 channels$"),
    ],
)
def test_wrong_keywords_are_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Stream(**{"width": WIDTH} | keys)


@pytest.mark.parametrize("call", ["__call__", "encode", "calibrate"])
@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        (torch.zeros(2, WIDTH, 5), CodecError, r"stream 'eyes': .* \(2, 12, 5\) do not end in the width 12; .*movedim"),
        (torch.zeros(()), CodecError, r"do not end in the width 12"),
        (torch.zeros(2, WIDTH, dtype=torch.int64), UsageError, "not a tensor of torch.int64"),
        ([[0.0] * WIDTH], UsageError, "floating-point numbers, not list"),
        (torch.zeros(2, WIDTH, device="meta"), UsageError, "is on cpu, the features on meta"),
        (torch.full((2, WIDTH), torch.nan), NonFiniteError, "24 of 24 values are NaN"),
    ],
)
def test_what_are_no_features_is_named(call: str, given: Any, error: type[Exception], named: str) -> None:
    stream = Stream(WIDTH, "eyes")
    stream.calibrate(x())
    before = deepcopy(stream.state_dict())
    with pytest.raises(error, match=named):
        getattr(stream, call)(given)
    assert all(torch.equal(value, before[name]) for name, value in stream.state_dict().items())
    assert stream.sent.total == 0


def test_before_any_calibration() -> None:
    with pytest.raises(CodecError, match=r"not calibrated: call calibrate\(features\) first"):
        Stream(WIDTH).eval()(x())
    with pytest.raises(CodecError, match="two tokens at least, not 1"):
        Stream(WIDTH)(x()[0, :1])
    with pytest.raises(UsageError, match="no features have been encoded, so there is no distortion yet"):
        _ = Stream(WIDTH).distortion


def damaged(message: bytes, at: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def test_garbage_and_damage_are_refused_at_every_byte() -> None:
    here, there = pair(codec="entropy-uniform")
    message = here.encode(x())
    bad = [
        b"",
        b"\0" * 40,
        b"garbage",
        message[:-1],
        message + b"\0",
        *(damaged(message, at) for at in range(len(message))),
    ]
    for raw in bad:
        with pytest.raises(MalformedError, match="that are no message of a stream, or were damaged"):
            there.decode(raw)
        with pytest.raises(MalformedError, match="no message of a stream"):
            here.backward(raw)
    with pytest.raises(UsageError, match="a message is bytes, not str"):
        there.decode("text")  # type: ignore[arg-type]
    there.decode(memoryview(message))  # type: ignore[arg-type]


def forged(here: Stream, change: Callable[[pb.Forward], None]) -> bytes:
    """A message whose tag fits, with something else in it."""
    message = here.encode(x())
    forward = pb.Forward.FromString(message[25:])
    change(forward)
    return seal(FEATURES, message[9:17], message[17:25], forward.SerializeToString(deterministic=True))


def reshape(*shape: int) -> Callable[[pb.Forward], None]:
    def change(forward: pb.Forward) -> None:
        forward.streams[0].shape[:] = shape

    return change


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (reshape(2, 3, 7), MalformedError, "where 6 channels are due"),
        (reshape(), MalformedError, "where 6 channels are due"),
        (reshape(*[1] * 8, 6), MalformedError, "where 6 channels are due"),
        (reshape(2**30, 6), LimitError, "the limit is 268,435,456 values"),
        (reshape(2, 4, 6), CodecError, "codes: codec uniform: shape .* takes 12 bytes, not the 9 received"),
        (lambda forward: forward.ClearField("streams"), MalformedError, "0 tensors, not of one"),
        (lambda forward: forward.streams.add(), MalformedError, "2 tensors, not of one"),
        (lambda forward: setattr(forward.streams[0], "rate", 3), CodecError, "rate 3 where 1 were agreed"),
        (lambda forward: setattr(forward.streams[0], "payload", b""), CodecError, "not the 0 received"),
        (lambda forward: forward.ClearField("news"), StateError, "have not been told here"),
        (lambda forward: setattr(forward.news.streams[0], "mean", b"\0"), StateError, "have not been told here"),
        (
            lambda forward: forward.streams[0].samples.append(1),
            CodecError,
            "numbers of samples, where nobody remembers them",
        ),
    ],
)
def test_what_no_stream_sends_is_refused(
    change: Callable[[pb.Forward], None], error: type[Exception], named: str
) -> None:
    here, there = pair()
    with pytest.raises(error, match=named):
        there.decode(forged(here, change))
    assert there.sent.total == 0
    here.retell()
    there.decode(here.encode(x()))


def test_what_cannot_be_parsed_is_refused() -> None:
    here, there = pair()
    head = here.encode(x())
    with pytest.raises(MalformedError, match="cannot be parsed"):
        there.decode(seal(FEATURES, head[9:17], head[17:25], b"\xff\xff\xff"))
    assert hashlib.sha256(head[8:]).digest()[:8] == head[:8]


@pytest.mark.parametrize(
    "keys",
    [
        {"levels": 8},
        {"clip": 2.0},
        {"quantizer": "tanh-fsq"},
        {"codec": "entropy-uniform"},
        {"gradient": "fp16"},
        {"channels": 5},
        {"width": 13},
        {"name": "ears"},
    ],
)
def test_messages_of_another_stream_are_refused(keys: dict[str, Any]) -> None:
    mine: dict[str, Any] = {"width": WIDTH, "name": "eyes", "channels": 6}
    here, there = Stream(**mine), Stream(**mine | keys)
    message = here.encode(x())
    with pytest.raises(WireError, match=r"of another stream .* both ends need the same width, name and keywords"):
        there.decode(message)
    features = here.decode(message)
    features.sum().backward()
    with pytest.raises(WireError, match="of another stream"):
        there.backward(here.encode_gradient(features))
    Stream(**mine, distortion_weight=0.5, projection="fixed").decode(message)  # each side's own


def test_messages_of_the_other_kind_are_refused() -> None:
    here, there = pair()
    message = here.encode(x())
    features = there.decode(message)
    features.sum().backward()
    back = there.encode_gradient(features)
    with pytest.raises(StateError, match="a message of a gradient where one of features is due"):
        there.decode(back)
    with pytest.raises(StateError, match="a message of features where one of a gradient is due"):
        here.backward(message)


@pytest.mark.parametrize("keys", [{}, {"codec": "entropy-uniform"}, {"quantizer": "learned-clip-fsq"}])
def test_a_message_that_rests_on_another_is_refused_before_it(keys: dict[str, Any]) -> None:
    here, there = pair(**keys)
    first, second = here.encode(x(0)), here.encode(x(1))
    with pytest.raises(
        StateError, match=r"decode messages in the order of encoding; .* call retell\(\) on the other side"
    ):
        there.decode(second)
    assert torch.equal(there.decode(first), here.decode(first))
    assert torch.equal(there.decode(second), here.decode(second))
    assert torch.equal(
        there.decode(first), here.decode(first)
    )  # neither order nor repetition matters where all is told


def test_a_lost_message_is_noticed_and_mended_by_telling_all_again() -> None:
    here, there = pair(codec="entropy-uniform")
    there.decode(here.encode(x(0)))
    lost = [here.encode(x(seed, 4.0 + seed)) for seed in range(1, 6)]
    assert len(lost) == 5
    with pytest.raises(StateError, match="one is lost"):
        there.decode(here.eval().encode(x(6)))
    here.retell()
    assert torch.equal(there.decode(here.encode(x(6))), here(x(6)))
    fresh = Stream(WIDTH, channels=6, codec="entropy-uniform")
    with pytest.raises(StateError):
        fresh.decode(here.encode(x(7)))


def test_gradients_before_their_time_twice_or_of_nothing_are_refused() -> None:
    here, there = pair()
    message = here.encode(x())
    features = there.decode(message)
    with pytest.raises(UsageError, match=r"no gradient has reached these features; call loss.backward\(\) first"):
        there.encode_gradient(features)
    features.sum().backward()
    with pytest.raises(UsageError, match=r"takes the tensor that decode\(\) gave"):
        there.encode_gradient(features * 1)
    back = there.encode_gradient(features)
    with pytest.raises(UsageError, match="with gradients enabled, once"):
        there.encode_gradient(features)
    with pytest.raises(UsageError, match="no message waits for this gradient: it came twice, before"):
        there.backward(back)
    here.backward(back)
    with pytest.raises(UsageError, match="no message waits for this gradient: it came twice"):
        here.backward(back)
    with torch.no_grad():
        unheard = there.decode(here.encode(x(1)))
    with pytest.raises(UsageError, match="with gradients enabled"):
        there.encode_gradient(unheard)
    for wrong in (None, "features"):
        with pytest.raises(UsageError, match="takes the tensor"):
            there.encode_gradient(wrong)  # type: ignore[arg-type]


def test_a_gradient_of_another_shape_is_refused_and_the_right_one_still_taken() -> None:
    here, there = pair(gradient="fp16")
    message = here.encode(x())
    features = there.decode(message)
    features.sum().backward()
    back = there.encode_gradient(features)
    coded = pb.Coded(shape=[6], payload=bytes(12))
    with pytest.raises(CodecError, match=r"gradient of stream: shape \(6,\) where \(2, 3, 6\) is due"):
        here.backward(seal(2, back[9:17], back[17:25], coded.SerializeToString()))
    here.backward(back)


def test_a_gradient_that_is_not_finite_is_named_in_one_process_and_in_two() -> None:
    here, there = pair()
    with pytest.raises(NonFiniteError, match=r"gradient of stream 'stream': .* NaN or infinite"):
        (here(x()) * torch.inf).sum().backward()
    features = there.decode(here.encode(x()))
    (features * torch.nan).sum().backward()
    with pytest.raises(NonFiniteError, match="gradient of stream 'stream'"):
        there.encode_gradient(features)


def test_delta_needs_numbers_and_both_memories() -> None:
    keys: dict[str, Any] = {
        "quantizer": "none",
        "codec": {"id": "delta", "first": "fp16", "inner": "nf", "capacity": 10**6},
    }
    keys["codec"]["inner"] = {"id": "nf", "bits": 4}
    here, there = Stream(WIDTH, **keys), Stream(WIDTH, **keys)
    with pytest.raises(
        UsageError, match=r"the codec delta needs the number of each item in training: .* 2 numbers .got 0."
    ):
        here.encode(x())
    whole, change = here.encode(x(), [4, 7]), here.encode(x(), [4, 7])
    assert len(change) < len(whole)
    with pytest.raises(CodecError, match="visit 1 came, 0 is due"):
        there.decode(change)
    there.decode(whole)
    there.decode(change)
    here.retell()
    with pytest.raises(CodecError, match="both ends must start anew"):
        there.decode(here.encode(x(), [4, 7]))
    for side in (here, there):
        side.retell()
    there.decode(here.encode(x(), [4, 7]))
