"""RD-FSQ, the quantizer of Quantized-TinyLLaVA (arXiv 2511.23402), per channel and as published.

x (..., D) -> z = W x + b (..., C) -> normalise -> clip -> nearest of L uniform levels, straight-through
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitseam.quant.base import Quantized, Quantizer, straight_through
from bitseam.quant.finite import require_finite
from bitseam.quant.statistics import VARIANCE_FLOOR, ChannelStatistics
from bitseam.quant.uniform import check_grid, from_indices, to_indices


def semi_orthogonal(channels: int, width: int) -> Tensor:
    """Matrix P float32 (C, D), C <= D, with P P^T = I, the same wherever it is built; the identity when C == D.

    Its rows are the first C of the orthonormal discrete cosine transform (DCT-II), so each channel mixes every feature.
    """
    if channels == width:
        return torch.eye(width)
    row = torch.arange(channels, dtype=torch.float64)[:, None]
    column = torch.arange(width, dtype=torch.float64)
    basis = torch.cos(math.pi / width * (column + 0.5) * row) * math.sqrt(2 / width)
    basis[0] /= math.sqrt(2)
    return basis.float()


def semi_orthogonal_map(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that starts as `semi_orthogonal` where it narrows, as its transpose where it widens."""
    linear = nn.Linear(inputs, outputs)
    narrow = semi_orthogonal(min(inputs, outputs), max(inputs, outputs))
    with torch.no_grad():
        linear.weight.copy_(narrow if outputs <= inputs else narrow.T)
        linear.bias.zero_()
    return linear


def snap(z: Tensor, levels: int, clip: float) -> Quantized:
    """Normalised z (..., C) -> its nearest levels, with the gradient of the clip: one inside, zero outside.

    The distortion is the mean over tokens of 1 - cos(z, levels), levels held constant; the paper adds a quarter of it
    to the loss. It is zero where there are no tokens.
    """
    snapped = from_indices(to_indices(z.detach(), levels, clip), levels, clip)
    misfit = 1 - F.cosine_similarity(z, snapped, dim=-1)
    return Quantized(straight_through(z.clamp(-clip, clip), snapped), misfit.sum() / max(misfit.numel(), 1))


class ProjectingQuantizer(Quantizer):
    """x (..., D) -> z = W x + b (..., C), of which a subclass makes levels.

    Starts near the identity: z = x where C == D, else a fixed semi-orthogonal projection.
    """

    project: nn.Module

    def __init__(self, width: int, channels: int, square: bool = True) -> None:
        """square: whether there is a map where C == D too."""
        super().__init__(width, channels)
        self.project = semi_orthogonal_map(width, channels) if square or channels < width else nn.Identity()

    def projected(self, features: Tensor) -> Tensor:
        """What is normalised and quantized: (..., D) -> (..., C). Raises as `forward` does."""
        with torch.autocast(features.device.type, enabled=False):
            return self._projected(self._checked(features))

    def _projected(self, x: Tensor) -> Tensor:
        z = self.project(x)
        require_finite(z, "projected features at the quantizer")  # weights that diverged must not spoil the statistics
        return z


class RDFSQ(ProjectingQuantizer):
    """RD-FSQ with running statistics of each channel, so that an image's code depends on that image alone.

    Levels are in units of a channel's deviation, from -clip to clip. `calibrate` before the first forward.
    """

    def __init__(self, width: int, channels: int, levels: int, clip: float, momentum: float = 0.1) -> None:
        """Raises CodecError for levels, clip, channels or momentum out of range."""
        super().__init__(width, channels)
        check_grid(levels, clip)
        self.levels = levels
        self.clip = clip
        self.normalise = ChannelStatistics(channels, momentum)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) and standard deviation (C,). Raises CodecError before the first `calibrate`."""
        self.normalise.require_calibrated()
        return self.normalise.mean.clone(), self.normalise.std.clone()

    def freeze(self) -> None:
        """Keep the statistics as they are from now on."""
        self.normalise.freeze()

    def _quantize(self, x: Tensor) -> Quantized:
        return snap(self.normalise(self._projected(x)), self.levels, self.clip)

    def _calibrate(self, x: Tensor) -> None:
        self.normalise.calibrate(self._projected(x))


class TensorRDFSQ(Quantizer):
    """RD-FSQ as published, to compare with: one mean and one deviation over the whole batch, levels in [-1, 1] at 3 sd.

    What is wrong with it: an image's code changes with its batch neighbours; channels wider or narrower than the
    average waste levels or clip; and three deviations is far too wide a grid for few levels (at four, .336 of the
    variance is lost, against .119 at the best clip).
    """

    DEVIATIONS = 3
    CLIP = 1.0

    def __init__(self, width: int, channels: int, levels: int) -> None:
        """Raises CodecError for levels or channels out of range."""
        super().__init__(width, channels)
        check_grid(levels, self.CLIP)
        self.levels = levels
        self.project = nn.Linear(width, channels)

    def _quantize(self, x: Tensor) -> Quantized:
        z = self.project(x)
        require_finite(z, "projected features at the quantizer")
        with torch.no_grad():
            # Without tokens there is nothing to take statistics of, and nothing to normalise by them.
            var, mean = torch.var_mean(z, correction=0) if z.numel() else (z.new_ones(()), z.new_zeros(()))
            reach = self.DEVIATIONS * var.clamp_min(VARIANCE_FLOOR).sqrt()
        return snap((z - mean) / reach, self.levels, self.CLIP)
