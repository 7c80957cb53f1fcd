"""Both ends of a stream, side by side: codes one way, gradients the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_ends import ENTROPY, FLOATS, RATED, WIDTH, ends, features

from bitseam.errors import CodecError
from bitseam.streams.coded import decode
from bitseam.wire import messages_pb2 as pb


@pytest.mark.parametrize("settings", [{}, ENTROPY, RATED, FLOATS, {"quantizer": "rd-fsq-tensor", "channels": 4}])
def test_levels_and_gradients_cross(settings: dict[str, Any]) -> None:
    sender, receiver = ends(**settings | {"gradient": "fp32"})
    sender.calibrate(features())
    quantized = sender(features(seed=2))
    if (news := sender.news(quantized)) is not None:
        receiver.learn(news)
    coded = sender.encode(quantized)
    assert (coded.stream, coded.rate, list(coded.shape)) == (3, 0, list(quantized.levels.shape))
    levels = receiver.decode(coded, (2, 4))
    assert torch.equal(levels, quantized.levels)
    out = receiver(levels.requires_grad_())
    assert out.shape == (2, 4, WIDTH)
    assert torch.equal(out, receiver.projection(levels))
    out.square().sum().backward()
    back = receiver.encode_gradient(levels)
    assert (back.stream, list(back.shape)) == (3, list(levels.shape))
    assert levels.grad is not None
    assert torch.equal(sender.gradient(back, quantized), levels.grad)


def test_a_gradient_that_the_loss_does_not_feel_is_zero() -> None:
    _, receiver = ends(**FLOATS)
    levels = features().requires_grad_()
    assert receiver.encode_gradient(levels).payload == bytes(4 * levels.numel())


def test_what_a_gradient_codec_draws_is_the_generators() -> None:
    sender, receiver = ends(**FLOATS | {"gradient": {"id": "stochastic", "levels": 2}})
    levels = features(8, 8).requires_grad_()
    levels.grad = features(8, 8, seed=5)

    def payload(seed: int) -> bytes:
        return receiver.encode_gradient(levels, torch.Generator().manual_seed(seed)).payload

    assert payload(1) == payload(1) != payload(2)
    drawn = sender.gradient_codec.encode(levels.grad, torch.Generator().manual_seed(1))
    assert payload(1) == drawn


def test_a_message_of_another_shape_or_rate_is_named() -> None:
    sender, receiver = ends(**FLOATS)
    quantized = sender(features())
    coded = sender.encode(quantized)
    with pytest.raises(CodecError, match=r"^image codes: shape \(2, 4, 6\) where \(4, 2, 6\) is due$"):
        receiver.decode(coded, (4, 2))
    with pytest.raises(CodecError, match=r"^gradient of image: shape \(2, 4, 6\) where \(2, 3, 6\) is due$"):
        sender.gradient(coded, sender(features(2, 3)))
    coded.payload = coded.payload[:-1]
    with pytest.raises(CodecError, match=r"^image codes: codec fp32: shape \(2, 4, 6\) takes 192 bytes, not the 191 "):
        receiver.decode(coded, (2, 4))
    with pytest.raises(CodecError, match=r"^image: rate 1 where 1 were agreed"):
        receiver.decode(pb.Coded(rate=1), (2, 4))
    with pytest.raises(CodecError, match=r"^image codes: numbers of samples, where nobody remembers them$"):
        receiver.decode(pb.Coded(samples=[1]), (2, 4))


def test_a_fault_keeps_its_kind() -> None:
    class Peculiar(CodecError):
        """Of a codec."""

    class Broken:
        def decode(self, *_: object) -> torch.Tensor:
            raise Peculiar("is broken")

    with pytest.raises(Peculiar, match=r"^this: is broken$"):
        decode(Broken(), pb.Coded(shape=[2]), (2,), "this", "cpu")  # type: ignore[arg-type]


def test_a_payload_that_the_quantizer_gives_is_sent_as_it_is() -> None:
    sender, receiver = ends(**FLOATS | {"codec": {"id": "stochastic", "levels": 3}})
    sender.begin(seed=7)
    quantized = sender(features())
    again = sender(features())
    sender.begin(seed=8)
    other = sender(features())
    assert quantized.payload == again.payload != other.payload
    assert quantized.payload is not None
    assert sender.encode(quantized).payload == quantized.payload
    assert torch.equal(receiver.decode(sender.encode(quantized), (2, 4)), quantized.levels)
