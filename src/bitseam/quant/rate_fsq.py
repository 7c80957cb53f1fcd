"""One step for all principal directions, and its bits in the loss (Ballé et al., arXiv 1611.01704).

x (..., D) -> z = W x + b (..., C) -> principal components, in deviations -> nearest of L levels, straight-through
"""

import torch
from torch import Tensor

from bitseam.errors import CodecError
from bitseam.quant.base import Quantized, straight_through
from bitseam.quant.contexts import check_contexts, contexts_of
from bitseam.quant.finite import require_finite
from bitseam.quant.principal import PrincipalDirections
from bitseam.quant.rd_fsq import ProjectingQuantizer
from bitseam.quant.uniform import check_grid, from_indices, to_indices


class RateFSQ(ProjectingQuantizer):
    """Reverse water-filling (Cover and Thomas, chapter 10) of features that vary together: the transform that leaves
    least to code is the Karhunen-Loeve transform, and all its components get the same step. Weak ones fall silent.

    Levels go out to `clip` root mean square deviations of a channel, so the noise keeps its share whatever the scale
    of the features. Their number is odd, or nothing could be silent. `use` sets another clip, and with it another step
    and rate; whether directions have drifted is still judged by the first one's step, so that a run at several rates
    does not renew them each time that its rate changes.

    The distortion of this quantizer is the rate: mean bits an element at the prices of the tables that code on the
    wire. Between two levels a price is interpolated, which gives its gradient; its value is what the levels take. What
    a level does to its neighbours' contexts has no gradient. The
    step follows the features' scale, so the gradient of the rate leaves that alone.
    """

    def __init__(self, width: int, channels: int, levels: int, clip: float) -> None:
        """Raises CodecError for levels, clip or channels out of range."""
        super().__init__(width, channels)
        check_grid(levels, clip)
        if levels % 2 == 0:
            raise CodecError(f"rate-fsq needs an odd number of levels, not {levels}: zero must be one of them")
        self.levels = levels
        self.principal = PrincipalDirections(channels, 2 * clip / (levels - 1))
        self.use(clip, torch.zeros(channels, 1, levels))

    def use(self, clip: float, prices: Tensor) -> None:
        """From now on quantize out to this clip. prices: bits of each level of each component, in each context of it
        (`bitseam.quant.contexts`): (C, contexts, L).

        Raises CodecError for a clip out of range, or prices of another shape.
        """
        check_grid(self.levels, clip)
        if prices.ndim != 3 or prices.shape[::2] != (self.channels, self.levels):
            raise CodecError(f"prices of shape {tuple(prices.shape)}, not {(self.channels, 'contexts', self.levels)}")
        check_contexts(prices.shape[1])
        self.clip, self._prices = clip, prices.float()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) of the channels, and the deviation (C,), the same for all components."""
        self.principal.require_calibrated()
        return self.principal.mean.clone(), self.principal.scale.expand(self.channels).clone()

    def rotation(self) -> Tensor:
        """int8 (C, C): columns / 127 are the directions that the components are along."""
        return self.principal.rotation.clone()

    def _quantize(self, x: Tensor) -> Quantized:
        clip = self.clip
        y = self.principal(self._projected(x))
        require_finite(y, "principal components at the quantizer")
        indices = to_indices(y.detach(), self.levels, clip)
        levels = straight_through(y.clamp(-clip, clip), from_indices(indices, self.levels, clip))
        return Quantized(levels, self._rate(y * ((self.levels - 1) / (2 * clip)), indices))

    def _rate(self, steps: Tensor, indices: Tensor) -> Tensor:
        """Mean bits an element, (), of components in steps, with the indices of their levels."""
        size, prices = steps.square().mean().sqrt(), self._prices.to(steps.device)
        place = (steps * (size.detach() / size) + (self.levels - 1) / 2).clamp(0, self.levels - 1)
        below = place.detach().floor().clamp_max(self.levels - 2).long()
        contexts = prices.shape[1]
        rows = contexts_of(indices, self.levels, contexts) + contexts * torch.arange(self.channels).to(steps.device)
        prices, first = prices.flatten(), rows * self.levels
        sloped = torch.lerp(prices[first + below], prices[first + below + 1], place - below)
        return straight_through(sloped, prices[first + indices]).sum() / max(steps.numel(), 1)

    def _calibrate(self, x: Tensor) -> None:
        self.principal.calibrate(self._projected(x))
