"""Stochastic rounding to L levels of a block's own scale: the codec of gradients (QSGD, arXiv 1610.02132).

Payload: the scale of each block as bfloat16, little-endian, then the indices of all elements, packed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import bfloat16_up, check_block, per_block, read_scales
from bitseam.codecs.floating import little_endian
from bitseam.codecs.packing import pack, packed_bytes
from bitseam.codecs.uniform import unpack_levels
from bitseam.quant.uniform import check_grid, index_dtype


@dataclass(frozen=True)
class Stochastic(Codec):
    """Each block is scaled by its largest magnitude and rounded up or down at random: E[decode(encode(x))] = x.

    `block` is "token" (the last dimension) or a count of elements of the flattened tensor. Bits an element are log2
    `levels`: 2 levels are one bit, 3 ternary, 4 two bits. A block of zeros stays zeros.
    """

    codec_id: ClassVar[str] = "stochastic"
    unbiased = True
    levels: int = 4
    block: int | str = "token"

    def __post_init__(self) -> None:
        check_grid(self.levels, 1.0)
        check_block(self.block)

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        count = math.prod(shape)
        return 2 * self._blocks(shape) + packed_bytes(count, self.levels)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        blocks = self._in_blocks(x)
        scale = bfloat16_up(blocks.abs().amax(dim=1), self.codec_id)
        indices = per_block(
            blocks, scale, lambda unit: round_at_random(unit, self.levels, generator), index_dtype(self.levels)
        )
        return little_endian(scale) + pack(indices.reshape(-1)[: x.numel()].numpy(), self.levels)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        count, scales = math.prod(shape), self._blocks(shape)
        scale = read_scales(payload[: 2 * scales], self.codec_id)
        units = unpack_levels(payload[2 * scales :], count, self.levels, 1.0)
        return (self._in_blocks(units.reshape(shape)) * scale[:, None]).reshape(-1)[:count]

    def _block_size(self, shape: tuple[int, ...]) -> int:
        size = self.block if isinstance(self.block, int) else math.prod(shape[-1:])
        return max(min(size, math.prod(shape)), 1)

    def _blocks(self, shape: tuple[int, ...]) -> int:
        return -(-math.prod(shape) // self._block_size(shape))

    def _in_blocks(self, x: Tensor) -> Tensor:
        """x (...) -> (blocks, size), the last block filled up with zeros."""
        size = self._block_size(tuple(x.shape))
        return F.pad(x.reshape(-1), (0, -x.numel() % size)).reshape(-1, size)


def round_at_random(unit: Tensor, levels: int, generator: torch.Generator | None) -> Tensor:
    """Values in [-1, 1], written over -> indices, in floats, of one of the two neighbours of L levels, unbiased."""
    place = unit.add_(1).mul_((levels - 1) / 2)  # in [0, L - 1]
    below = place.floor()
    chance = place.sub_(below)  # exact, so the rounding adds no bias of its own
    return below.add_(torch.rand(unit.shape, generator=generator) < chance)
