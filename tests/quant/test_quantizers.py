"""What all quantizers share, then RD-FSQ."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from quantizer_examples import WIDTH, features, rate_fsq, rd_fsq, step_fsq, tensor_rd_fsq

from bitseam.codecs import Fp16, Stochastic
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import RDFSQ, LearnedClipFSQ, Quantizer, RateFSQ, StepFSQ, TanhFSQ, semi_orthogonal
from bitseam.quant.uniform import level_values
from bitseam.streams.through_codec import ThroughCodec
from bitseam.testing import QuantizerChecklist

per_channel = pytest.mark.parametrize("kind", [RDFSQ, TanhFSQ, LearnedClipFSQ])


class TestQuantizers(QuantizerChecklist):
    cases: ClassVar = {
        "rd": rd_fsq,
        "rd-narrow": lambda: rd_fsq(channels=5, levels=3),
        "rd-tensor": tensor_rd_fsq,
        "tanh": lambda: rd_fsq(channels=6, kind=TanhFSQ),
        "learned-clip": lambda: rd_fsq(levels=3, kind=LearnedClipFSQ),
        "step": step_fsq,
        "rate": rate_fsq,
        "through-codec": lambda: ThroughCodec(WIDTH, WIDTH, Fp16()),
        "through-codec-narrow": lambda: ThroughCodec(WIDTH, 5, Stochastic(4)),
    }


@per_channel
def test_what_is_projected_is_what_is_calibrated_to(kind: type[RDFSQ]) -> None:
    quantizer, x = rd_fsq(channels=5, kind=kind), features()
    quantizer.calibrate(x)
    z = quantizer.projected(x)
    assert z.shape == (*x.shape[:-1], 5)
    torch.testing.assert_close(quantizer.statistics()[0], z.flatten(0, 1).mean(0))


@pytest.mark.parametrize("make", [rd_fsq, rate_fsq])
def test_what_is_projected_and_calibrated_to_is_in_float32(make: Callable[[], RDFSQ | RateFSQ]) -> None:
    quantizer, x = make(), features().bfloat16()
    plain = quantizer.projected(x.float())
    quantizer.calibrate(x.float())
    due = quantizer.statistics()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.projected(x), plain)
        quantizer.calibrate(x)
    assert all(torch.equal(told, right) for told, right in zip(quantizer.statistics(), due, strict=True))
    with pytest.raises(CodecError, match="width 8"):
        quantizer.projected(torch.zeros(2, 7))


def test_levels_are_the_table_to_the_last_bit() -> None:
    out = rd_fsq(levels=5, clip=1.7).train()(features())
    assert torch.isin(out.levels, level_values(5, 1.7)).all()
    assert out.levels.unique().numel() == 5


def test_gradient_is_straight_through_inside_the_clip_and_zero_outside() -> None:
    quantizer = rd_fsq(clip=1.0).eval()
    x = features().requires_grad_()
    weight = torch.randn(3, 16, WIDTH, generator=torch.Generator().manual_seed(1))
    (quantizer(x).levels * weight).sum().backward()
    mean, std = quantizer.statistics()
    inside = ((x - mean) / std).abs() <= 1
    assert 0.2 < inside.float().mean() < 0.8
    torch.testing.assert_close(x.grad, torch.where(inside, weight / std, 0))


def test_distortion_is_the_mean_angle_between_normalised_features_and_levels() -> None:
    quantizer = rd_fsq().eval()
    x = features()
    mean, std = quantizer.statistics()
    z, out = (x - mean) / std, quantizer(x)
    cosine = (z * out.levels).sum(-1) / (z.norm(dim=-1) * out.levels.norm(dim=-1))
    torch.testing.assert_close(out.distortion, (1 - cosine).mean())
    assert 0.01 < out.distortion < 0.2


@per_channel
def test_an_image_is_coded_alike_whatever_its_neighbours(kind: type[RDFSQ]) -> None:
    quantizer = rd_fsq(kind=kind).train()
    x, others = features(), features(seed=7) * 10 + 3
    mixed = torch.cat([x[:1], others[1:]])
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    codes = []
    for batch in (x, mixed, x[:1]):
        quantizer.load_state_dict(state)
        codes.append(quantizer(batch).levels[0])
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("kind", [RDFSQ, TanhFSQ, LearnedClipFSQ, StepFSQ])
def test_statistics_follow_by_a_tenth_or_the_given_momentum(kind: type[RDFSQ]) -> None:
    clip = () if kind is StepFSQ else (1.5,)
    assert kind(4, 4, 3, *clip).normalise.momentum == 0.1
    assert kind(4, 4, 3, *clip, momentum=0.3).normalise.momentum == 0.3


@per_channel
def test_statistics_rest_once_frozen(kind: type[RDFSQ]) -> None:
    quantizer = rd_fsq(kind=kind).train()
    quantizer.freeze()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(features(seed=7) * 10 + 3)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


OVERFLOWS = [
    (step_fsq, lambda quantizer: quantizer.step.fill_(1e-3), "features in steps"),
    (
        lambda: rd_fsq(kind=LearnedClipFSQ),
        lambda quantizer: quantizer.log_clip.fill_(-99),
        "features in units of the learned clip",
    ),
    (rate_fsq, lambda quantizer: quantizer.principal.scale.fill_(1e-3), "principal components"),
]


@pytest.mark.parametrize(("make", "shrink", "what"), OVERFLOWS, ids=["step", "learned-clip", "rate"])
def test_what_overflows_where_units_are_small_is_refused(
    make: Callable[[], Quantizer], shrink: Callable[[Quantizer], object], what: str
) -> None:
    quantizer = make().eval()
    with torch.no_grad():
        shrink(quantizer)
    with pytest.raises(NonFiniteError, match=what):
        quantizer(1e37 * features())


def test_one_token_has_the_distortion_of_its_own_angle() -> None:
    quantizer, x = rd_fsq().eval(), features()[0, :2]
    apart = [quantizer(token).distortion for token in x]
    torch.testing.assert_close(quantizer(x).distortion, sum(apart) / 2)


@per_channel
def test_weights_that_diverged_are_refused_and_spoil_no_statistics(kind: type[RDFSQ]) -> None:
    quantizer = rd_fsq(kind=kind).train()
    mean = quantizer.normalise.mean.clone()
    with torch.no_grad():
        quantizer.project.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="projected features"):
        quantizer(features())
    assert torch.equal(quantizer.normalise.mean, mean)


@per_channel
def test_uncalibrated_is_refused(kind: type[RDFSQ]) -> None:
    quantizer = kind(4, 4, 4, 1.5)
    with pytest.raises(CodecError, match="calibrate"):
        quantizer(torch.zeros(2, 4))
    with pytest.raises(CodecError, match="calibrate"):
        quantizer.statistics()


@pytest.mark.parametrize("channels", [0, 5])
def test_channels_from_one_to_the_width(channels: int) -> None:
    with pytest.raises(CodecError, match="channels"):
        RDFSQ(4, channels, 4, 1.5)


@pytest.mark.parametrize(("channels", "width"), [(1, 1), (1, 9), (3, 8), (7, 8), (64, 1280)])
def test_semi_orthogonal(channels: int, width: int) -> None:
    matrix = semi_orthogonal(channels, width)
    assert matrix.shape == (channels, width)
    gram = matrix.double() @ matrix.double().T
    torch.testing.assert_close(gram, torch.eye(channels).double(), atol=5e-7, rtol=0)
    assert torch.equal(matrix, semi_orthogonal(channels, width))
    assert torch.equal(semi_orthogonal(width, width), torch.eye(width))
    if channels < width:
        angles = np.pi / width * np.outer(np.arange(channels), np.arange(width) + 0.5)
        due = np.cos(angles) * np.sqrt(2 / width)
        due[0] /= np.sqrt(2)
        np.testing.assert_allclose(matrix, due, rtol=6e-8, atol=1e-12)
