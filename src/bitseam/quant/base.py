"""What every quantizer gives and promises.

    features (..., D) -> forward -> Quantized: levels (..., C) float32, what the other side will decode, bit for bit
                                               distortion (), a loss term

Leading dimensions are free. A quantizer works in float32 whatever the features' dtype, also under autocast; keep its
own parameters and buffers in float32.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitseam.errors import CodecError
from bitseam.quant.finite import require_finite


@dataclass(frozen=True)
class Quantized:
    """Levels (..., C) float32 with a straight-through gradient, and the distortion, a scalar to add to the loss.

    payload: the levels as a codec has written them already, where one gave them; it may have drawn random numbers.
    samples: the numbers of the images that it is of, where it holds what has changed of each.
    """

    levels: Tensor
    distortion: Tensor
    payload: bytes | None = None
    samples: tuple[int, ...] = ()


def straight_through(z: Tensor, levels: Tensor) -> Tensor:
    """`levels` to the last bit, with the gradient of `z` (Bengio et al., arXiv 1308.3432).

    z - z is exactly zero; the usual z + (levels - z) would round, and training would differ from the wire.
    """
    return levels.detach() + (z - z.detach())


class Quantizer(nn.Module, ABC):
    """Features (..., width) -> Quantized of `channels` channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        if not 1 <= channels <= width:
            raise CodecError(f"a quantizer of {channels} channels needs a width of at least that, not {width}")
        self.width = width
        self.channels = channels

    def forward(self, features: Tensor) -> Quantized:
        """Quantize features (..., D).

        Raises NonFiniteError for NaN or infinity, CodecError for another width or for statistics never calibrated.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._quantize(self._checked(features))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Set the statistics, where there are any, from features (..., D) of at least two tokens."""
        with torch.autocast(features.device.type, enabled=False):
            self._calibrate(self._checked(features))

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean (C,) and standard deviation (C,) that the levels are normalised by, or None where they are not."""
        return None

    def rotation(self) -> Tensor | None:
        """Directions int8 (C, C) that the levels are along, or None where they are along the channels."""
        return None

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim == 0 or features.shape[-1] != self.width:
            raise CodecError(
                f"features of shape {tuple(features.shape)} do not end in the quantizer's width {self.width}"
            )
        require_finite(features, "features at the quantizer")
        return features.float()

    @abstractmethod
    def _quantize(self, x: Tensor) -> Quantized: ...

    def _calibrate(self, x: Tensor) -> None:
        """Nothing to set, unless a quantizer says otherwise."""
