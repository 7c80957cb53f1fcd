"""Which step and how many levels each channel is worth: reverse water-filling, then what was measured.

With var_c the variance of channel c and w_c = E[g_c^2] what the loss feels of an error there, the least loss for the
bits is (Cover and Thomas, "Elements of Information Theory", ch. 10; Gish and Pierce, 1968, for the step)

    R_c = max(0, 0.5 log2(w_c var_c / theta)) bits        at the water level theta
    step_c = sqrt(12 theta / w_c)                          whose error, step^2 / 12, weighs w_c step_c^2 / 12 = theta

Shapes: N values of each of C channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitseam.errors import CodecError
from bitseam.quant.statistics import VARIANCE_FLOOR
from bitseam.quant.step_fsq import LEAST_STEP, MOST_STEP

MOST_LEVELS = 255  # odd, so that zero is a level; a byte a symbol
OVERLOAD = 0.05  # of the granular distortion


@dataclass(frozen=True)
class ChannelPlan:
    """variance, sensitivity, rate, step, levels: (C,). step: in deviations, 0 for a dropped channel; levels: odd, 1 for
    a dropped one."""

    theta: float
    variance: Tensor
    sensitivity: Tensor
    rate: Tensor
    step: Tensor
    levels: Tensor

    @property
    def clip(self) -> Tensor:
        """The outermost level (C,), in deviations."""
        return self.step * (self.levels - 1) / 2


def plan_channels(z: Tensor, sensitivity: Tensor, theta: float) -> ChannelPlan:
    """Steps and levels for z (N, C) at a water level.

    A channel is dropped where water-filling gives it no rate, or where what it takes away from the loss is worth less
    than its bits at the slope of the water level, d(w D) / dR = -2 ln 2 theta. At low rates the second decides: a
    scalar quantizer pays 0.1 to 0.5 bit more there than R_c says.
    """
    var, mean = torch.var_mean(z, dim=0, correction=0)
    weight, unit = sensitivity.double().clamp_min(1e-30), (z - mean) / var.clamp_min(VARIANCE_FLOOR).sqrt()
    rate = water_filling(var.double(), weight, theta)
    step = (12 * theta / (weight * var.double().clamp_min(VARIANCE_FLOOR))).sqrt().clamp(LEAST_STEP, MOST_STEP)
    step = _rounded(step.maximum(unit.abs().amax(0) / (MOST_LEVELS // 2)))  # no finer than so many levels reach
    levels = enough_levels(unit / step.float())
    reach = ((levels - 1) / 2).float()
    symbols = (unit / step.float()).round().clamp(-reach, reach)
    left = (unit - symbols * step.float()).square().double().mean(0)
    bits = entropy(symbol_counts(symbols, MOST_LEVELS))
    gain = weight * var.double() * (1 - left)
    kept = (rate > 0) & (gain > 2 * math.log(2) * theta * bits)
    return ChannelPlan(theta, var.double(), weight, rate, step * kept, torch.where(kept, levels, 1))


def water_filling(variance: Tensor, sensitivity: Tensor, theta: float | Tensor) -> Tensor:
    """R_c (C,) in bits at a water level, or at each of several: theta (T, 1) gives (T, C)."""
    return (0.5 * torch.log2(sensitivity * variance / theta)).clamp_min(0)


def enough_levels(unit: Tensor, share: float = OVERLOAD, most: int = MOST_LEVELS) -> Tensor:
    """The least odd L (C,) from 3 to `most` at which values in steps (N, C) lose no more than `share` of the granular
    distortion to overload. The error of a value is granular as far as endless levels would leave it."""
    size = unit.abs()
    nearest = size.round()
    granular = (size - nearest).square()
    low, high = torch.zeros(unit.shape[1]), torch.full((unit.shape[1],), float(most // 2))
    while (high - low > 1).any():  # `high` is enough, or all there is; `low` is not
        middle = ((low + high) / 2).floor().maximum(low + 1)
        overload = torch.where(nearest > middle, (size - middle).square() - granular, 0).double().mean(0)
        enough = (overload <= share * granular.double().mean(0)) | (high - low <= 1)
        low, high = torch.where(enough, low, middle), torch.where(enough, high.minimum(middle), high)
    return (2 * high + 1).long()


def symbol_counts(symbols: Tensor, levels: int) -> Tensor:
    """How often each channel has each whole number from -(levels // 2): (N, C) -> (C, levels) int64."""
    channels = symbols.shape[1]
    places = symbols.long() + levels // 2 + levels * torch.arange(channels)
    return torch.bincount(places.reshape(-1), minlength=channels * levels).view(channels, levels)


def entropy(counts: Tensor) -> Tensor:
    """Bits a symbol (C,) of counts (C, L)."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    return -torch.xlogy(share, share).sum(-1) / math.log(2)


def differential_entropy(z: Tensor) -> Tensor:
    """h (C,) in bits of continuous values (N, C), from the spacings of order statistics (Vasicek, 1976), unbiased for
    flat densities. -infinity for a channel of equal values."""
    count = len(z)
    if count < 2:
        raise CodecError(f"an entropy needs two values at least, not {count}")
    apart = max(1, round(count ** (1 / 3) / 2))
    ordered = z.double().sort(dim=0).values
    spacing = (ordered[apart:] - ordered[:-apart]).log().mean(0)
    known = torch.digamma(torch.tensor([count + 1.0, apart], dtype=torch.float64))
    return (spacing + known[0] - known[1]) / math.log(2)


def gaussian_rate(variance: Tensor, distortion: Tensor) -> Tensor:
    """R(D) of Gaussian values, in bits: no values of this variance need more (Cover and Thomas, exercise 10.8)."""
    return (0.5 * torch.log2(variance / distortion.clamp_min(1e-30))).clamp_min(0)


def shannon_lower_bound(bits: Tensor, distortion: Tensor) -> Tensor:
    """The least that any code needs for values of differential entropy `bits`: h - 0.5 log2(2 pi e D), and never less
    than nothing."""
    return (bits - 0.5 * torch.log2(2 * math.pi * math.e * distortion.clamp_min(1e-30))).clamp_min(0)


def crossing(value: Callable[[float], float], target: float, low: float, high: float, near: float) -> float:
    """Where a monotone `value` comes within `near` of its target (a share of it), by bisection of the logarithm.

    Raises CodecError where low and high do not hold the target between them. A target inside a jump of `value` ends
    at the jump.
    """
    ends = value(low), value(high)
    if not min(ends) <= target <= max(ends):
        raise CodecError(
            f"the target of {target:g} is out of reach: from {min(ends):.4g} to {max(ends):.4g} can be had"
        )
    rising = ends[0] < ends[1]
    for _ in range(40):
        middle = math.sqrt(low * high)
        got = value(middle)
        if abs(got - target) <= near * target:
            break
        low, high = (low, middle) if (got > target) == rising else (middle, high)
    return middle


def _rounded(step: Tensor) -> Tensor:
    """To four digits: what a recipe says is then what was measured."""
    return torch.tensor([float(f"{value:.4g}") for value in step.tolist()], dtype=torch.float64)
