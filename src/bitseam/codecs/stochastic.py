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
from bitseam.codecs.floating import from_little_endian, little_endian
from bitseam.codecs.packing import pack, packed_bytes
from bitseam.codecs.uniform import CHUNK, unpack_levels
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant.uniform import check_grid, index_dtype


@dataclass(frozen=True)
class Stochastic(Codec):
    """Each block is scaled by its largest magnitude and rounded up or down at random: E[decode(encode(x))] = x.

    `block` is "token" (the last dimension) or a count of elements of the flattened tensor. Bits an element are log2
    `levels`: 2 levels are one bit, 3 ternary, 4 two bits. A block of zeros stays zeros.
    """

    codec_id: ClassVar[str] = "stochastic"
    unbiased: ClassVar[bool] = True  # of rule 5's two ways, this is stochastic rounding, not error feedback
    levels: int
    block: int | str = "token"

    def __post_init__(self) -> None:
        check_grid(self.levels, 1.0)
        if self.block != "token" and (type(self.block) is not int or self.block < 1):
            raise CodecError(f'block must be "token" or a positive whole number, not {self.block!r}')

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        count = math.prod(shape)
        return 2 * self._blocks(shape) + packed_bytes(count, self.levels)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        blocks = self._in_blocks(x)
        scale = _bfloat16_up(blocks.abs().amax(dim=1))
        divisor = scale.float().where(scale > 0, 1)[:, None]
        indices = torch.empty(blocks.shape, dtype=index_dtype(self.levels))
        rows = max(CHUNK // blocks.shape[1], 1)
        for part, by, out in zip(blocks.split(rows), divisor.split(rows), indices.split(rows), strict=True):
            place = (part / by).add_(1).mul_((self.levels - 1) / 2)  # in [0, L - 1]
            below = place.floor()
            chance = place.sub_(below)  # exact, so the rounding adds no bias of its own
            out.copy_(below.add_(torch.rand(part.shape, generator=generator) < chance))
        return little_endian(scale) + pack(indices.reshape(-1)[: x.numel()].numpy(), self.levels)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        count, scales = math.prod(shape), self._blocks(shape)
        scale = from_little_endian(payload[: 2 * scales], torch.bfloat16).float()
        if not (torch.isfinite(scale) & (scale >= 0)).all():
            raise CodecError("codec stochastic: a scale in the payload is negative, NaN or infinite")
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


def _bfloat16_up(x: Tensor) -> Tensor:
    """The least bfloat16 that is not under x >= 0, float32. Raises NonFiniteError where that is infinity."""
    up = ((x.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    if torch.isinf(up).any():
        raise NonFiniteError(f"codec stochastic: value {x.max().item():g} is too large for a bfloat16 scale")
    return up
