"""Streams whose codec sends what has changed of each sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_ends import CHANGES, FLOATS, RATED, WIDTH, ends, features

from bitseam.codecs import Delta
from bitseam.errors import CodecError
from bitseam.quant import Quantized
from bitseam.streams.through_codec import ThroughChanges


def test_changes_of_samples_cross() -> None:
    sender, receiver = ends(**CHANGES)
    assert sender.remembers
    known = receiver.changes()
    assert known is not None
    x = features(2, 4)
    for step, samples in enumerate([(5, 9), (5, 9), (9, 7)]):
        sender.begin(step, samples)
        quantized = sender(x)
        coded = sender.encode(quantized)
        assert tuple(coded.samples) == samples
        levels = receiver.decode(coded, (2, 4), known=known)
        assert torch.equal(levels, quantized.levels)
        assert all(torch.equal(one, known.known(s)) for s, one in zip(samples, levels, strict=True))
    codec = sender.codec(0)
    assert isinstance(codec, Delta)
    one = (4, WIDTH)
    assert len(coded.payload) == 8 + codec.inner_codec.payload_bytes(one) + codec.first_codec.payload_bytes(one)
    state = sender.state()
    assert sorted(state["samples"].tolist()) == [5, 7, 9]
    copy, _ = ends(**CHANGES)
    copy.restore(state)
    copy.begin(4, (5, 9))
    sender.begin(4, (5, 9))
    assert torch.equal(copy(x).levels, sender(x).levels)
    sender.forget_samples()
    assert sender.state()["samples"].tolist() == []
    assert len(sender.encode(sender(x)).payload) == 2 * (4 + codec.first_codec.payload_bytes(one))


def test_a_new_side_remembers_no_samples() -> None:
    sender, _ = ends(**CHANGES)
    sender.begin(1, (5, 9))
    sender(features())
    sender.forget()
    assert sender.state()["samples"].tolist() == []


def test_changes_of_other_shapes_numbers_or_lengths_are_refused() -> None:
    sender, receiver = ends(**CHANGES)
    sender.begin(1, (5, 9))
    coded = sender.encode(sender(features()))
    payload = coded.payload

    def refused(match: str, shape: tuple[int, ...] = (2, 4)) -> None:
        with pytest.raises(CodecError, match=match):
            receiver.decode(coded, shape, known=receiver.changes())

    refused(r"^image codes: shape \(2, 4, 6\) of 2 samples where \(2, 5, 6\) is due$", (2, 5))
    coded.payload = payload + b"\0"
    refused("^image codes: 201 bytes where 200 are due$")
    coded.payload = payload[:-1]
    refused("codec fp32: shape")
    coded.payload = payload
    coded.samples.append(4)
    refused(r"shape \(2, 4, 6\) of 3 samples where \(2, 4, 6\) is due")
    del coded.samples[1:]
    refused(r"shape \(2, 4, 6\) of 1 samples")


def test_training_with_changes_takes_a_number_for_each_image_and_questions_take_none() -> None:
    sender, receiver = ends(**CHANGES)
    for samples, x in (((), features()), ((1,), features()), ((1, 2), features(2))):
        sender.begin(1, samples)
        with pytest.raises(CodecError, match=rf"^codec delta needs .*: {len(samples)} were given for 2 images"):
            sender(x)
    sender.eval()
    quantized = sender(features())
    assert quantized.samples == ()
    assert torch.equal(receiver.decode(sender.encode(quantized), (2, 4)), features())


def test_streams_without_changes_remember_nothing() -> None:
    for settings in (FLOATS, {}, RATED):
        sender, receiver = ends(**settings)
        assert not sender.remembers
        assert receiver.changes() is None
        sender.begin(1, (1, 2))
        sender.forget_samples()
        assert not hasattr(sender.quantizer, "samples")
    assert isinstance(ends(**CHANGES)[0].quantizer, ThroughChanges)


def test_what_a_stochastic_codec_draws_in_training_with_changes_is_the_seeds() -> None:
    def inner(seed: int) -> bytes | None:
        sender, _ = ends(**CHANGES)
        sender.begin(1, (5, 9))
        sender(features())
        sender.begin(seed, (5, 9))
        return sender(features(seed=2)).payload

    assert inner(2) == inner(2) != inner(3)


@pytest.mark.parametrize("settings", [FLOATS | {"channels": 4}, CHANGES])
def test_a_codec_of_floats_passes_gradients_on_and_adds_nothing_to_the_loss(settings: dict[str, Any]) -> None:
    sender, _ = ends(**settings)
    sender.begin(1, (5, 9))
    x = features().requires_grad_()
    quantized = sender(x)
    assert quantized.distortion.shape == ()
    assert float(quantized.distortion) == 0
    (quantized.levels * 3).sum().backward()
    assert isinstance(quantized, Quantized)
    due = torch.autograd.grad((sender.quantizer.projected(x) * 3).sum(), x)[0]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, due)
