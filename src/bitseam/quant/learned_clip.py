"""Uniform levels out to a learned clip of each channel (PACT, arXiv 1805.06085; LSQ, arXiv 1902.08153).

x (..., D) -> z = W x + b (..., C) -> normalise -> divide by the clip -> nearest of L uniform levels in [-1, 1]
"""

import math

import torch
from torch import Tensor, nn

from bitseam.quant.base import Quantized, straight_through
from bitseam.quant.finite import require_finite
from bitseam.quant.rd_fsq import RDFSQ
from bitseam.quant.statistics import VARIANCE_FLOOR
from bitseam.quant.uniform import from_indices, to_indices


class LearnedClipFSQ(RDFSQ):
    """Levels cross in units of the clip: the grid stays fixed while the clip moves, and the server's projection takes
    up the scale.

    The clip, in deviations, has two gradients. The task's reaches it through clamp(z / clip), straight-through: -z /
    clip^2 inside, zero outside. PACT and LSQ see more there because they multiply by the clip again; here that factor
    is the server's. What is missing comes from the distortion, the relative squared error of clip * levels, which
    draws the clip to the least error (for a Gaussian at four levels, 1.494 deviations). LSQ's gradient scale is left
    out: optimisers that divide by the gradient's size cancel it.
    """

    GRID = 1.0

    def __init__(self, width: int, channels: int, levels: int, clip: float, momentum: float = 0.1) -> None:
        """`clip` is where learning starts. Raises CodecError for levels, clip, channels or momentum out of range."""
        super().__init__(width, channels, levels, clip, momentum)
        self.log_clip = nn.Parameter(torch.full((channels,), math.log(clip)))  # clips stay positive, whatever the step

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) and what one unit of the levels is worth (C,): the clip times the deviation."""
        mean, std = super().statistics()
        return mean, std * self.log_clip.detach().exp()

    def _quantize(self, x: Tensor) -> Quantized:
        z = self.normalise(self._projected(x))
        clip = self.log_clip.exp()
        unit = z / clip
        require_finite(unit, "features in units of the learned clip")
        snapped = from_indices(to_indices(unit.detach(), self.levels, self.GRID), self.levels, self.GRID)
        error = (z - clip * snapped).square().sum() / z.square().sum().clamp_min(VARIANCE_FLOOR)
        return Quantized(straight_through(unit.clamp(-self.GRID, self.GRID), snapped), error)
