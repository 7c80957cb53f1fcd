"""NormalFloat with doubly quantized scales (Dettmers et al., QLoRA, arXiv 2305.14314).

Payload: low and high of each token as bfloat16, little-endian; the scale of each block as a byte, 0 for low to 255 for
high; the indices of all elements, packed.
"""

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import Blocks, bfloat16_nearest, check_bits, check_block, per_block, read_scales
from bitseam.codecs.floating import little_endian
from bitseam.codecs.packing import pack, packed_bytes, unpack
from bitseam.errors import CodecError


@dataclass(frozen=True)
class NormalFloat(Codec):
    """Each block is scaled by its largest magnitude and takes the nearest of 2^bits quantiles of a Gaussian; biased.

    `block` counts elements of the last dimension, or is "token" for all of it. Departing from the paper, the scales of
    one token (not of 256 blocks, which would tie it to its neighbours) are quantized together, and between their least
    and largest (not about their mean): that uses all 256 steps, and what was decoded codes again to the same bytes.
    """

    codec_id: ClassVar[str] = "nf"
    bits: int
    block: int | str = 64

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_block(self.block)

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        layout = Blocks.of(shape, self.block)
        return 4 * layout.tokens + layout.count + packed_bytes(math.prod(shape), 2**self.bits)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        layout, values = Blocks.of(tuple(x.shape), self.block), normal_values(self.bits)
        blocks = layout.split(x)
        largest = blocks.abs().amax(dim=1)
        ends, steps = self._quantize_scales(largest.reshape(layout.tokens, layout.per_token))
        # Divided by its true scale, the largest takes -1 or 1, and decodes to the quantized scale. A block whose scale
        # is quantized to zero decodes to zeros, and is written as zeros.
        seen = blocks.where(_scales(ends.float(), steps).reshape(-1, 1) > 0, 0)
        middles = (values[1:] + values[:-1]) / 2
        indices = per_block(seen, largest, lambda unit: torch.bucketize(unit, middles), torch.uint8)
        return little_endian(ends) + steps.numpy().tobytes() + pack(layout.join(indices).numpy(), 2**self.bits)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        layout = Blocks.of(shape, self.block)
        ends_bytes = 4 * layout.tokens
        ends = read_scales(payload[:ends_bytes], self.codec_id).reshape(layout.tokens, 2)
        if (ends[:, 0] > ends[:, 1]).any():
            raise CodecError("codec nf: the least scale of a token is over its largest")
        steps = np.frombuffer(payload, np.uint8, layout.count, offset=ends_bytes).copy()
        scale = _scales(ends, torch.from_numpy(steps).reshape(layout.tokens, layout.per_token))
        indices = unpack(payload[ends_bytes + layout.count :], math.prod(shape), 2**self.bits)
        units = torch.from_numpy(normal_values(self.bits).numpy().take(indices))
        return layout.join(layout.split(units) * scale.reshape(-1, 1))

    def _quantize_scales(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Scales (T, per_token) -> low and high (T, 2) bfloat16, steps (T, per_token) uint8."""
        low, high = scale.amin(dim=1).double(), scale.amax(dim=1).double()
        ends = bfloat16_nearest(torch.stack([low, high], dim=1).float(), self.codec_id)
        # Between the true ends, so that both are always taken: those of what was decoded are then the same again.
        spread = (high - low).where(ends[:, 0] < ends[:, 1], torch.inf)[:, None]
        return ends, ((scale - low[:, None]) / spread * 255).round_().to(torch.uint8)


@cache
def normal_values(bits: int) -> Tensor:
    """The levels, ascending: float32 (2^bits,), from -1 through 0 to 1, one more above zero than below.

    Each half is evenly spaced in probability, from zero's .5 to an end that is the mean of two: the middle of the
    outermost of 2^bits bins, and of 2^bits - 1. Four bits give the NF4 of the paper's appendix.
    """
    levels = 2**bits
    end = 1 - (1 / levels + 1 / (levels - 1)) / 4
    quantile = NormalDist().inv_cdf
    above, below = (
        [quantile(0.5 + (end - 0.5) * i / count) for i in range(1, count + 1)]
        for count in (levels // 2, levels // 2 - 1)
    )
    exact = [-x for x in reversed(below)] + [0.0] + above
    return torch.tensor([x / exact[-1] for x in exact])


def _scales(ends: Tensor, steps: Tensor) -> Tensor:
    """Low and high (T, 2), steps (T, per_token) -> scales (T, per_token) float32; in double, so that 255 is high."""
    low, high = ends.double().split(1, dim=1)
    return (low + (high - low) * (steps.double() / 255)).float()
