"""Ends just made from a checkpoint, on another device, or with statistics that have moved in part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_ends import CHANGES, ENTROPY, FLOATS, ends, features, told

from bitseam.quant import RDFSQ


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
def test_levels_come_on_the_device_that_is_asked_for(settings: dict[str, Any]) -> None:
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
