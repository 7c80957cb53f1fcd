"""Against closed forms of Gaussian and uniform sources."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.special import ndtr

from bitseam.codecs import EntropyUniform
from bitseam.errors import CodecError
from bitseam.quant import StepFSQ
from bitseam.quant.planning import (
    ChannelPlan,
    crossing,
    differential_entropy,
    enough_levels,
    entropy,
    gaussian_rate,
    plan_channels,
    shannon_lower_bound,
    symbol_counts,
    water_filling,
)

WEIGHT = torch.logspace(-3, 1, 24, dtype=torch.float64)
SPREAD = torch.linspace(0.2, 6, 24)


def gaussians(seed: int, count: int = 6000) -> Tensor:
    """(count, 24) channels that differ in mean and deviation."""
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed)) * SPREAD + SPREAD.flip(0)


def coded(plan: ChannelPlan, seen: Tensor, held: Tensor) -> tuple[float, float]:
    """Bits an element, of the seen values under their tables, and of a real payload of held-out ones."""
    levels = int(plan.levels.max())
    quantizer = StepFSQ(24, 24, levels, plan.step.tolist()).eval()
    quantizer.calibrate(seen)
    codec = EntropyUniform(levels, (levels - 1) / 2, groups=24)
    with torch.no_grad():
        counts = codec.counts(quantizer(seen).levels)
        codec = codec.learned(counts)
        payload = codec.encode(quantizer(held).levels)
    return codec.bits(counts) / seen.numel(), 8 * len(payload) / held.numel()


def gaussian_entropy(step: Tensor) -> Tensor:
    """Bits of a unit Gaussian rounded to whole steps."""
    edges = (torch.arange(-300, 301, dtype=torch.float64) - 0.5) * step[:, None].double()
    share = ndtr(edges).diff()
    return -torch.xlogy(share, share).sum(1) / math.log(2)


def test_water_filling_of_parallel_gaussians() -> None:
    # Cover and Thomas, section 10.3.3: D = sum of min(theta, variance), R = sum of 0.5 log2(variance / theta) above it.
    variance, one = torch.tensor([4.0, 1.0, 0.25]), torch.ones(3)
    assert water_filling(variance, one, 0.25).tolist() == [2, 1, 0]
    assert water_filling(variance, one, 1.0).tolist() == [1, 0, 0]
    assert water_filling(variance, torch.tensor([1.0, 4.0, 16.0]), 1.0).tolist() == [1, 1, 1]
    assert water_filling(variance, one, 8.0).tolist() == [0, 0, 0]


def test_steps_put_every_kept_channels_error_at_the_water_level() -> None:
    z, theta = gaussians(0), 0.1
    plan = plan_channels(z, WEIGHT, theta)
    kept = plan.step > 0
    assert kept.sum() >= 8
    width = plan.step * z.std(0, correction=0)
    assert (WEIGHT * width**2 / 12)[kept].tolist() == pytest.approx([theta] * int(kept.sum()), rel=2e-3)
    centred = (z - z.mean(0)).double()
    left = centred - (centred / width).round() * width
    fine = kept & (plan.rate > 1.5)
    assert (WEIGHT * left.square().mean(0))[fine].tolist() == pytest.approx([theta] * int(fine.sum()), rel=0.05)


@pytest.mark.parametrize("theta", [1e-4, 1e-3, 1e-2, 0.1])
def test_held_out_payloads_take_the_predicted_bits(theta: float) -> None:
    seen, held = gaussians(1), gaussians(2)
    plan = plan_channels(seen, WEIGHT, theta)
    predicted, measured = coded(plan, seen, held)
    kept = plan.step > 0
    closed = float(gaussian_entropy(plan.step[kept]).sum()) / 24
    assert measured == pytest.approx(predicted, rel=0.02)
    assert measured == pytest.approx(closed, rel=0.02)


def test_more_bits_for_a_lower_water_level() -> None:
    seen, held = gaussians(1, 2000), gaussians(2, 2000)
    plans = [plan_channels(seen, WEIGHT, theta) for theta in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e4)]
    bits = [coded(plan, seen, held)[1] for plan in plans[:-1]]
    assert bits == sorted(bits, reverse=True)
    assert len(set(bits)) == len(bits)
    kept = [int((plan.step > 0).sum()) for plan in plans]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0


def test_a_channel_is_dropped_where_its_bits_are_worth_more_elsewhere() -> None:
    # A unit Gaussian in whole steps of 2.1 gains .63 of the variance for 1.18 bits: more than the slope; at 2.3 less.
    z = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]
    for step, kept in ((2.1, True), (2.3, False)):
        plan = plan_channels(z, torch.ones(1), step**2 / 12)
        assert plan.rate > 0
        assert bool(plan.step > 0) == kept
        assert (int(plan.levels) > 1) == kept


def test_a_channel_that_gains_nothing_is_dropped() -> None:
    z = torch.tensor([[-1.0], [1.0]])  # both are nearest to zero in steps of 2.5
    plan = plan_channels(z, torch.ones(1), 2.5**2 / 12)
    assert plan.rate > 0
    assert plan.step.tolist() == [0]


def test_dead_and_unfelt_channels_are_dropped() -> None:
    z = gaussians(0)
    z[:, 3] = 7.0
    weight = WEIGHT.clone()
    weight[20] = 0
    plan = plan_channels(z, weight, 1e-4)
    assert plan.step[3] == plan.step[20] == 0
    assert plan.sensitivity[20] == 1e-30
    assert plan.step[19] > 0


@pytest.mark.parametrize("step", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("tail", [1.0, 1.7])
def test_levels_are_just_enough(step: float, tail: float) -> None:
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    unit = z.sign() * z.abs() ** tail / step
    levels = int(enough_levels(unit))

    def share(levels: int) -> float:
        granular = (unit - unit.round()).square().mean()
        reach = (levels - 1) / 2
        return float((unit - unit.round().clamp(-reach, reach)).square().mean() / granular - 1)

    assert levels % 2 == 1
    assert share(levels) <= 0.05
    assert levels == 3 or share(levels - 2) > 0.05


def least_levels(unit: Tensor, most: int = 255) -> int:
    """Of one channel, by trying them all."""
    size = unit.double().abs()
    granular = (size - size.round()).square()
    for reach in range(1, most // 2):
        lost = (size - size.round().clamp_max(reach)).square() - granular
        if lost.mean() <= 0.05 * granular.mean():
            return 2 * reach + 1
    return 2 * (most // 2) + 1


def test_enough_levels_of_many_channels_at_once() -> None:
    z = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    unit = z.sign() * z.abs() ** torch.linspace(0.5, 2, 8) / torch.tensor([2, 0.01, 1, 0.2, 3, 0.005, 0.7, 0.1])
    due = [least_levels(channel) for channel in unit.T]
    assert enough_levels(unit).tolist() == due
    assert max(due) == 255
    assert min(due) == 3
    assert enough_levels(unit, most=20).tolist() == [min(levels, 21) for levels in due]


def test_enough_levels_at_the_bound() -> None:
    whole = torch.tensor([-2.0, -1, 0, 1, 2])[:, None]
    assert enough_levels(whole).tolist() == [5]  # without granular distortion no overload is allowed
    # Off by 0.4 everywhere, so granular 0.16; one value at 2.4 would be off by 1.4 with three levels.
    for count, levels in ((250, 3), (220, 5)):
        unit = torch.cat([torch.full((count - 1, 1), 0.4), torch.tensor([[2.4]])])
        assert enough_levels(unit).tolist() == [levels]


def test_a_plan_by_hand() -> None:
    # Of deviation 2 about 10, or 1 about -5, in equal halves: no step is finer than reaches them with 255 levels.
    z = torch.tensor([[8.0, -6.0], [12.0, -4.0]]).repeat(2, 1)
    plan = plan_channels(z, torch.tensor([3.0, 0.5]), 1e-9)
    assert plan.theta == 1e-9
    assert plan.variance.tolist() == [4, 1]
    assert plan.sensitivity.tolist() == [3, 0.5]
    assert plan.rate.tolist() == pytest.approx([0.5 * math.log2(12e9), 0.5 * math.log2(0.5e9)])
    assert plan.step.dtype == torch.float64
    assert plan.step.tolist() == [0.007874] * 2  # 1 / 127 to four digits
    assert plan.levels.tolist() == [255, 255]
    assert plan.clip.tolist() == pytest.approx([0.007874 * 127] * 2)
    coarse = plan_channels(z, torch.tensor([3.0, 0.5]), 0.01)
    assert coarse.step.tolist() == [0.1, float(f"{math.sqrt(0.24):.4g}")]
    assert coarse.levels.tolist() == [21, 5]


def test_channels_are_kept_exactly_where_the_slope_says() -> None:
    z = 2 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 3
    unit = ((z - z.mean()) / z.std(correction=0)).double()
    decided = []
    for step in torch.linspace(2.08, 2.28, 201).tolist():  # so near that the few values of overload decide
        plan = plan_channels(z, torch.ones(1), float(z.var(correction=0)) * step**2 / 12)
        scaled = unit / float(f"{step:.4g}")
        reach = (least_levels(scaled) - 1) / 2
        symbols = scaled.round().clamp(-reach, reach)
        left = (scaled - symbols).square().mean() * step**2
        bits = float(entropy(symbol_counts(symbols, 255)))
        margin = (1 - float(left)) / (math.log(2) / 6 * step**2 * bits) - 1
        if abs(margin) > 1e-4:
            decided.append(margin > 0)
            assert bool(plan.step > 0) == (margin > 0), (step, margin)
    assert 40 < sum(decided) < len(decided) - 40
    assert len(decided) > 200


def test_no_step_is_finer_than_its_levels_reach() -> None:
    plan = plan_channels(gaussians(0), WEIGHT, 1e-12)
    assert plan.levels.max() <= 255
    assert (plan.clip > 3).all()


def test_entropy_of_counts() -> None:
    symbols = torch.tensor([[-1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    counts = symbol_counts(symbols, 3)
    assert counts.tolist() == [[1, 1, 2], [0, 0, 4]]
    assert entropy(counts).tolist() == [1.5, 0]
    assert entropy(torch.tensor([[0, 1, 0], [0, 0, 0]])).tolist() == [0, 0]


def test_differential_entropy_of_known_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(8000, 1, generator=generator) * 3
    flat = torch.rand(8000, 1, generator=generator) * 8
    laplace = -torch.rand(8000, 1, generator=generator).log() * torch.randn(8000, 1, generator=generator).sign()
    h = differential_entropy(torch.cat([normal, flat, laplace], dim=1))
    due = [0.5 * math.log2(2 * math.pi * math.e * 9), 3.0, math.log2(2 * math.e)]
    assert h.tolist() == pytest.approx(due, abs=0.03)
    with pytest.raises(CodecError, match="two values"):
        differential_entropy(torch.zeros(1, 3))


@pytest.mark.parametrize(("count", "apart"), [(2, 1), (3, 1), (26, 1), (64, 2), (1000, 5)])
def test_differential_entropy_of_even_spacings(count: int, apart: int) -> None:
    # Vasicek's spacings over `apart` values, and digamma of whole numbers: H(n) - H(apart - 1) of harmonic numbers.
    z = 0.25 * torch.arange(count, dtype=torch.float64).flip(0)[:, None]
    harmonic = sum(1 / n for n in range(apart, count + 1))
    due = (math.log(0.25 * apart) + harmonic) / math.log(2)
    assert differential_entropy(z).item() == pytest.approx(due, rel=1e-12)


def test_a_constant_has_no_differential_entropy() -> None:
    assert differential_entropy(torch.ones(50, 1)).item() == -math.inf


def test_bounds() -> None:
    variance, distortion = torch.tensor([1.0, 1.0, 4.0]), torch.tensor([0.25, 2.0, 0.25])
    assert gaussian_rate(variance, distortion).tolist() == [1, 0, 2]
    gaussian = 0.5 * torch.log2(2 * math.pi * math.e * variance)
    torch.testing.assert_close(shannon_lower_bound(gaussian, distortion), torch.tensor([1.0, 0, 2]))
    # No distortion at all counts as 1e-30.
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert gaussian_rate(one, none).item() == pytest.approx(15 * math.log2(10))
    due = 1 - 0.5 * math.log2(2 * math.pi * math.e) + 15 * math.log2(10)
    assert shannon_lower_bound(one, none).item() == pytest.approx(due)


def test_crossing_stops_when_it_is_near() -> None:
    asked = []
    assert crossing(lambda x: asked.append(x) or x, 2.0, 1.0, 3.24, 0.1) == pytest.approx(1.8)
    assert len(asked) == 3  # both ends, and their middle, which is off by a tenth
    asked.clear()
    assert crossing(lambda x: asked.append(x) or x, 1.0, 0.5, 2.0, 0.0) == 1.0
    assert asked == [0.5, 2.0, 1.0]
    asked.clear()
    crossing(lambda x: asked.append(x) or float(x > 2), 0.5, 1e-3, 1e3, 1e-3)
    assert len(asked) == 2 + 40  # nothing is near in a jump


def test_crossing_at_an_end() -> None:
    for target in (1.0, 4.0):
        assert crossing(lambda x: x**2, target, 1.0, 2.0, 1e-9) ** 2 == pytest.approx(target)


def test_crossing() -> None:
    assert crossing(lambda x: 1 / x, 5.0, 1e-3, 1e3, 1e-3) == pytest.approx(0.2, rel=1e-3)
    assert crossing(lambda x: x**2, 5.0, 1e-3, 1e3, 1e-3) == pytest.approx(5**0.5, rel=1e-3)
    assert crossing(lambda x: float(x > 2), 0.5, 1e-3, 1e3, 1e-3) == pytest.approx(2, rel=1e-6)
    with pytest.raises(CodecError, match=r"7 is out of reach: from 1 to 4 can be had"):
        crossing(lambda x: x**2, 7.0, 1.0, 2.0, 1e-3)
