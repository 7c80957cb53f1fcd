"""Whole steps at a learned rate: the codes' own bits are part of the loss (Ballé et al., arXiv 1611.01704, 1802.01436).

x (..., D) -> z = W x + b -> (z - mean) / step * gain -> nearest whole number within L levels, straight-through
"""

import math

import torch
from torch import Tensor, nn

from bitseam.quant.base import Quantized, straight_through
from bitseam.quant.finite import require_finite
from bitseam.quant.rd_fsq import RDFSQ
from bitseam.quant.uniform import from_indices, to_indices

LEAST_PROBABILITY = 2.0**-16  # of a level in a table, so no code takes more bits


class RateFSQ(RDFSQ):
    """Nothing is normalised while training, so the loss can make a channel quiet and its codes cheap, or silent.

    The distortion of this quantizer is the rate: the mean over elements of -log2 p, with p a logistic distribution's
    share of a bin. It has a learned scale for each channel, and stands in for the tables that code on the wire. The
    rate is taken of y + u, u uniform over a bin, as in the papers; the task sees rounded y, straight-through, with the
    gradient of the clip. `calibrate` fixes mean and step, so that the outermost level is `clip` deviations away.
    """

    def __init__(self, width: int, channels: int, levels: int, clip: float, momentum: float = 0.1) -> None:
        """Raises CodecError for levels, clip, channels or momentum out of range."""
        super().__init__(width, channels, levels, clip, momentum)
        self.reach = (levels - 1) / 2
        self.log_gain = nn.Parameter(torch.zeros(channels))
        # A logistic's deviation is pi / sqrt(3) of its scale; steps are clip / reach deviations.
        scale = self.reach / clip * math.sqrt(3) / math.pi
        self.log_scale = nn.Parameter(torch.full((channels,), math.log(scale)))
        self.normalise.freeze()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (C,), and what one level is worth (C,) before any learning; both stay."""
        mean, std = super().statistics()
        return mean, std * (self.clip / self.reach)

    def _quantize(self, x: Tensor) -> Quantized:
        y = self.normalise(self._projected(x)) * (self.reach / self.clip * self.log_gain.exp())
        require_finite(y, "features in steps")
        snapped = from_indices(to_indices(y.detach(), self.levels, self.reach), self.levels, self.reach)
        seen = y + torch.rand_like(y) - 0.5 if self.training else snapped
        return Quantized(straight_through(y.clamp(-self.reach, self.reach), snapped), self._bits(seen))

    def _bits(self, y: Tensor) -> Tensor:
        """Mean bits an element, (), of values y (..., C) in steps."""
        scale = self.log_scale.exp()
        far = y.abs()  # the share of a bin is the same on both sides, and exact far out on this one
        share = torch.sigmoid((0.5 - far) / scale) - torch.sigmoid((-0.5 - far) / scale)
        return -share.clamp_min(LEAST_PROBABILITY).log2().sum() / max(y.numel(), 1)
