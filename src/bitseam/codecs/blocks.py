"""Blocks of elements that share a scale: what the block-scaled codecs have in common.

Scales cross as bfloat16, little-endian: the range of float32, so that tiny gradients keep one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bitseam.codecs.floating import from_little_endian
from bitseam.errors import CodecError, NonFiniteError

CHUNK = 1 << 16  # elements at a time: what lies between float and bytes stays in the cache


def check_block(block: int | str) -> None:
    """Raise CodecError unless the block is "token" or a positive whole number."""
    if block != "token" and (type(block) is not int or block < 1):
        raise CodecError(f'block must be "token" or a positive whole number, not {block!r}')


def check_bits(bits: int) -> None:
    """Raise CodecError unless elements of so many bits can have 2^bits values within a byte, zero among them."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise CodecError(f"bits must be a whole number from 2 to 8, not {bits!r}")


@dataclass(frozen=True)
class Blocks:
    """A tensor (..., C) as tokens (T, C), each cut into `per_token` blocks of `size`, the last one filled up.

    A block never reaches into the next token: what an item decodes to depends on that item alone.
    """

    tokens: int
    width: int
    size: int

    @classmethod
    def of(cls, shape: tuple[int, ...], block: int | str) -> "Blocks":
        """Blocks of the last dimension; `block` is a count of elements, or "token" for all of it."""
        width = max(math.prod(shape[-1:]), 1)
        return cls(math.prod(shape) // width, width, min(block, width) if isinstance(block, int) else width)

    @property
    def per_token(self) -> int:
        return -(-self.width // self.size)

    @property
    def count(self) -> int:
        return self.tokens * self.per_token

    def split(self, x: Tensor) -> Tensor:
        """x, T C elements in any shape -> (blocks, size), filled up with zeros."""
        return F.pad(x.reshape(self.tokens, self.width), (0, -self.width % self.size)).reshape(-1, self.size)

    def join(self, blocks: Tensor) -> Tensor:
        """Inverse of `split`: (blocks, size) -> (T C,)."""
        return blocks.reshape(self.tokens, self.per_token * self.size)[:, : self.width].reshape(-1)


def per_block(blocks: Tensor, scale: Tensor, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """`function` of each block (blocks, size) divided by its scale (blocks,), as `dtype`.

    Where the scale is zero, the block is not divided. `function` may write in what it is given.
    """
    divisor = scale.float().where(scale > 0, 1)[:, None]
    out = torch.empty(blocks.shape, dtype=dtype)
    rows = max(CHUNK // blocks.shape[1], 1)
    for part, by, into in zip(blocks.split(rows), divisor.split(rows), out.split(rows), strict=True):
        into.copy_(function(part / by))
    return out


def bfloat16_up(x: Tensor, codec_id: str) -> Tensor:
    """The least bfloat16 that is not under x >= 0, float32. Raises NonFiniteError where that is infinity."""
    return _finite(((x.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16), x, codec_id)


def bfloat16_nearest(x: Tensor, codec_id: str) -> Tensor:
    """The bfloat16 nearest to x >= 0, float32. Raises NonFiniteError where that is infinity.

    It is within 1/256 of x, so that x itself, divided by it, still takes the outermost of up to 256 levels, and decodes
    to the scale to the last bit: what was decoded has the same scale again.
    """
    return _finite(x.bfloat16(), x, codec_id)


def read_scales(payload: bytes, codec_id: str) -> Tensor:
    """Bytes -> scales (count,) float32. Raises CodecError for a scale that is negative, NaN or infinite."""
    scale = from_little_endian(payload, torch.bfloat16).float()
    if not (torch.isfinite(scale) & (scale >= 0)).all():
        raise CodecError(f"codec {codec_id}: a scale in the payload is negative, NaN or infinite")
    return scale


def _finite(scale: Tensor, x: Tensor, codec_id: str) -> Tensor:
    if torch.isinf(scale).any():
        raise NonFiniteError(f"codec {codec_id}: value {x.max().item():g} is too large for a bfloat16 scale")
    return scale
