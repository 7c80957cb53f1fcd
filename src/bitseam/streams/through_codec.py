"""Features as a codec of floats gives them back: what stands in a quantizer's place where there is none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitseam.codecs import Codec
from bitseam.quant import Quantized, Quantizer, semi_orthogonal
from bitseam.quant.base import straight_through
from bitseam.quant.finite import require_finite


class ThroughCodec(Quantizer):
    """x (..., D) -> z = W x + b (..., C) -> levels = decode(encode(z)), with the gradient of z and no distortion.

    W starts semi-orthogonal; where C == D there is no map, and z = x. seed: of what a codec draws at random for one
    batch of training; None takes PyTorch's own generator. In evaluation the codec's `settled` form codes, and what
    still draws begins from the same seed each time, so that the same question has the same answer.
    """

    def __init__(self, width: int, channels: int, codec: Codec) -> None:
        """Raises CodecError for channels out of range."""
        super().__init__(width, channels)
        self.codec = codec
        self.seed: int | None = None
        self.project = nn.Identity() if channels == width else semi_orthogonal_map(width, channels)

    def projected(self, features: Tensor) -> Tensor:
        """What is coded: (..., D) -> (..., C). Raises as `forward` does."""
        with torch.autocast(features.device.type, enabled=False):
            return self._projected(self._checked(features))

    def _quantize(self, x: Tensor) -> Quantized:
        z = self._projected(x)
        codec, seed = (self.codec, self.seed) if self.training else (self.codec.settled(), 0)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        payload = codec.encode(z.detach(), generator)
        decoded = codec.decode(payload, tuple(z.shape), z.device)
        return Quantized(straight_through(z, decoded), z.new_zeros(()), payload)

    def _projected(self, x: Tensor) -> Tensor:
        z = self.project(x)
        require_finite(z, "projected features at the codec")
        return z


def semi_orthogonal_map(width: int, channels: int) -> nn.Linear:
    """A map to fewer channels, or back to the width; it starts semi-orthogonal, the two as each other's transpose."""
    linear = nn.Linear(width, channels)
    with torch.no_grad():
        few, many = sorted((width, channels))
        rows = semi_orthogonal(few, many)
        linear.weight.copy_(rows if channels == few else rows.T)
        linear.bias.zero_()
    return linear
