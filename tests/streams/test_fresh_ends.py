"""Ends just made from a checkpoint, on another device, or with statistics that have moved in part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_ends import CHANGES, DELTA, ENTROPY, FLOATS, ends, features, told

from bitseam.codecs import Delta, Stochastic, codec_from_config
from bitseam.errors import CodecError
from bitseam.quant import RDFSQ
from bitseam.streams.through_codec import ThroughChanges


@pytest.mark.parametrize("settings", [{"levels": 4}, {"levels": 4, **ENTROPY}])
def test_an_end_of_a_checkpoint_tells_its_statistics(settings: dict[str, Any]) -> None:
    sender, _ = ends(**settings)
    sender.eval().calibrate(features(50, 4))
    news = told(sender.news(sender(features(50, 4))))
    fresh, _ = ends(**settings)
    fresh.load_state_dict(sender.state_dict())
    again = told(fresh.eval().news(fresh(features(50, 4))))
    assert (again.stream, again.mean, again.std) == (news.stream, news.mean, news.std)
    assert not again.tables  # they came with the checkpoint


@pytest.mark.parametrize("settings", [FLOATS, CHANGES])
def test_levels_come_on_the_device_that_is_asked_for(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitseam.streams.receiver.require_usable", lambda *_: None)  # meta tensors have no values
    sender, receiver = ends(**settings)
    sender.begin(1, (5, 9))
    coded = sender.encode(sender(features()))
    assert receiver.decode(coded, (2, 4), "meta", known=receiver.changes()).device.type == "meta"


def test_a_mean_that_moves_alone_is_told_with_its_deviation() -> None:
    sender, _ = ends(levels=4)
    sender.eval().calibrate(features(50, 4))
    quantized = sender(features())
    news = told(sender.news(quantized))
    assert isinstance(sender.quantizer, RDFSQ)
    sender.quantizer.normalise.mean.add_(1)
    moved = told(sender.news(quantized))
    assert moved.mean != news.mean
    assert moved.std == news.std
    mean = torch.frombuffer(bytearray(moved.mean), dtype=torch.float32)
    torch.testing.assert_close(mean, sender.quantizer.normalise.mean)


def test_what_is_calibrated_again_is_told_again_and_remembers_no_samples() -> None:
    sender, _ = ends(levels=4, **ENTROPY)
    sender.eval()
    news = []
    for _ in range(2):
        sender.calibrate(features(50, 4))
        news.append(told(sender.news(sender(features(50, 4)))))
    assert news[0] == news[1]
    assert sender.news(sender(features(50, 4))) is None
    sender, _ = ends(**CHANGES)
    sender.begin(1, (5, 9))
    sender(features())
    sender.calibrate(features())
    assert sender.state()["samples"].tolist() == []


def test_a_rate_means_nothing_to_quantizers_of_one() -> None:
    sender, _ = ends(levels=4, **ENTROPY)
    sender.use(0)
    assert sender.rate == 0
    with pytest.raises(CodecError, match="rate 1 where 1 were agreed"):
        sender.use(1)


def test_a_run_that_goes_on_tells_its_statistics_anew() -> None:
    sender, _ = ends(levels=4, **ENTROPY)
    sender.eval().calibrate(features(50, 4))
    quantized = sender(features(50, 4))
    news = told(sender.news(quantized))
    sender.restore(sender.state())
    again = told(sender.news(quantized))
    assert (again.mean, again.std) == (news.mean, news.std)


def test_questions_draw_from_the_seed_zero() -> None:
    sender, _ = ends(**FLOATS | {"codec": {"id": "stochastic", "levels": 3}})
    sender.begin(7)
    x = features()
    due = Stochastic(3).encode(x, torch.Generator().manual_seed(0))
    assert sender.eval()(x).payload == due


def test_changes_are_remembered_from_the_first() -> None:
    codec = codec_from_config(DELTA)
    assert isinstance(codec, Delta)
    quantizer = ThroughChanges(6, 6, codec)
    quantizer.samples = (5,)
    assert torch.equal(quantizer(features(1, 4)).levels, quantizer.changes.known(5)[None])  # type: ignore[index]
