"""What all quantizers share, then RD-FSQ, ours and the paper's, and the float formats."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch

from bitseam.codecs import Fp16, Stochastic
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import (
    RDFSQ,
    Float,
    LearnedClipFSQ,
    LevelProjection,
    RateFSQ,
    StepFSQ,
    TanhFSQ,
    TensorRDFSQ,
    semi_orthogonal,
)
from bitseam.quant.uniform import level_values
from bitseam.streams.through_codec import ThroughCodec
from bitseam.testing import QuantizerChecklist

WIDTH = 8


def features(seed: int = 0, batch: int = 3, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 5, width)
    return torch.randn(batch, 16, width, generator=generator) * spread + spread.flip(0)


def rd_fsq(channels: int = WIDTH, levels: int = 4, clip: float = 1.49, kind: type[RDFSQ] = RDFSQ) -> RDFSQ:
    quantizer = kind(WIDTH, channels, levels, clip)
    quantizer.calibrate(features(100))
    return quantizer


def tensor_rd_fsq() -> TensorRDFSQ:
    torch.manual_seed(0)
    return TensorRDFSQ(WIDTH, WIDTH, 4)


def step_fsq() -> StepFSQ:
    quantizer = StepFSQ(WIDTH, WIDTH, 5, (0.0, *(0.5, 1.0) * 3, 2.0))
    quantizer.calibrate(features(100))
    return quantizer


def rate_fsq() -> RateFSQ:
    quantizer = RateFSQ(WIDTH, 6, 9, 4.0)
    quantizer.calibrate(features(100))
    quantizer.use(4.0, torch.arange(-4.0, 5.0).square().expand(6, 1, 9))
    return quantizer


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
        "fp32": lambda: Float(WIDTH, torch.float32),
        "fp16": lambda: Float(WIDTH, torch.float16),
        "bf16": lambda: Float(WIDTH, torch.bfloat16),
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


@per_channel
def test_statistics_rest_once_frozen(kind: type[RDFSQ]) -> None:
    quantizer = rd_fsq(kind=kind).train()
    assert quantizer.normalise.momentum == 0.1
    quantizer.freeze()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(features(seed=7) * 10 + 3)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_the_papers_variant_is_three_deviations_of_the_batch() -> None:
    quantizer, x = tensor_rd_fsq(), features().requires_grad_()
    out = quantizer(x)
    z = (x @ quantizer.project.weight.T + quantizer.project.bias).detach()
    unit = (z - z.mean()) / (3 * z.std(correction=0))
    table = level_values(4, 1.0)
    assert torch.equal(out.levels, table[(unit[..., None] - table).abs().argmin(-1)])
    weight = torch.randn(out.levels.shape, generator=torch.Generator().manual_seed(1))
    (out.levels * weight).sum().backward()  # by z, the statistics held constant
    inside = torch.where(unit.abs() <= 1, weight / (3 * z.std(correction=0)), 0)
    torch.testing.assert_close(x.grad, inside @ quantizer.project.weight.detach())


def test_the_papers_variant_of_equal_features_is_in_the_middle() -> None:
    quantizer = TensorRDFSQ(2, 2, 5)
    with torch.no_grad():
        quantizer.project.weight.copy_(torch.eye(2))
        quantizer.project.bias.zero_()
    assert (quantizer(torch.full((4, 2), 3.0)).levels == 0).all()


def test_the_papers_variant_breaks_that() -> None:
    quantizer = tensor_rd_fsq()
    x, others = features(), features(seed=7) * 10 + 3
    alone, mixed = quantizer(x).levels[0], quantizer(torch.cat([x[:1], others[1:]])).levels[0]
    assert (alone != mixed).float().mean() > 0.2


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


@pytest.mark.parametrize(("kind", "clip"), [(RDFSQ, 6.0), (LearnedClipFSQ, 6.0), (TanhFSQ, 99.0)])
def test_projection_undoes_the_quantizer_when_levels_are_fine(kind: type[RDFSQ], clip: float) -> None:
    quantizer, projection = rd_fsq(levels=65536, clip=clip, kind=kind).eval(), LevelProjection(WIDTH, WIDTH)
    projection.calibrate(*quantizer.statistics())
    x = features()
    torch.testing.assert_close(projection(quantizer(x).levels), x, atol=2e-2, rtol=0)


def test_projection_of_fewer_channels_is_the_orthogonal_projection() -> None:
    quantizer, projection = rd_fsq(channels=5, levels=4096, clip=6.0).eval(), LevelProjection(5, WIDTH)
    projection.calibrate(*quantizer.statistics())
    x, basis = features(), semi_orthogonal(5, WIDTH)
    torch.testing.assert_close(projection(quantizer(x).levels), x @ basis.T @ basis, atol=2e-2, rtol=0)


@pytest.mark.parametrize("rotated", [False, True])
def test_projection_is_of_levels_turned_spread_and_moved(rotated: bool) -> None:
    projection = LevelProjection(3, 4, rotated)
    due = {"weight", "bias", "mean", "std"} | ({"rotation"} if rotated else set())
    assert projection.state_dict().keys() == due
    generator = torch.Generator().manual_seed(0)
    levels, mean = torch.randn(2, 3, generator=generator), torch.randn(3, generator=generator)
    std, turn = torch.tensor([0.5, 2.0, 3.0]), torch.randint(-127, 128, (3, 3), generator=generator).to(torch.int8)
    torch.testing.assert_close(projection(levels), levels @ semi_orthogonal(3, 4))  # fresh
    projection.calibrate(mean, std)
    if rotated:
        projection.rotate(turn)
    with torch.no_grad():
        projection.bias.copy_(torch.arange(4.0))
    spread = levels * std @ (turn.float() / 127 if rotated else torch.eye(3)).T + mean
    torch.testing.assert_close(projection(levels), spread @ semi_orthogonal(3, 4) + torch.arange(4.0))


def test_projection_refuses_bad_statistics() -> None:
    projection, ones = LevelProjection(5, WIDTH), torch.ones(5)
    with pytest.raises(CodecError, match="std has shape"):
        projection.calibrate(ones, torch.ones(6))
    with pytest.raises(NonFiniteError, match="mean"):
        projection.calibrate(ones * float("nan"), ones)
    for bad in (ones * 0, -ones, torch.tensor([1.0, 1, 1, 1, 0])):
        with pytest.raises(CodecError, match="positive"):
            projection.calibrate(ones, bad)
    with pytest.raises(CodecError, match="mean has shape"):
        projection.calibrate(torch.ones(1, 5), ones)
    with pytest.raises(NonFiniteError, match="std"):
        projection.calibrate(ones, ones * float("inf"))
    assert projection.std.tolist() == [1] * 5


def test_float32_is_the_identity() -> None:
    x = features().requires_grad_()
    out = Float(WIDTH, torch.float32)(x)
    assert torch.equal(out.levels, x)
    assert out.distortion == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float_formats_round_forward_and_not_backward(dtype: torch.dtype) -> None:
    x = features().requires_grad_()
    levels = Float(WIDTH, dtype)(x).levels
    assert torch.equal(levels, x.to(dtype).float())
    gradient = torch.full_like(levels, 1e-12) * features(1)  # fp16 would flush this to zero
    levels.backward(gradient)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)


def test_float16_overflow_is_refused_with_the_value() -> None:
    x = features()
    x[0, 1, 2] = -70000
    with pytest.raises(NonFiniteError, match=r"-70000 at index \(0, 1, 2\) overflows fp16"):
        Float(WIDTH, torch.float16)(x)


def test_other_float_formats_are_refused() -> None:
    with pytest.raises(CodecError, match="fp32, fp16, bf16"):
        Float(4, torch.float64)
