"""Whole numbers of a few bits in units of the largest magnitude of a block.

Block-wise quantization with linear levels (Dettmers et al., 8-bit optimizers, arXiv 2110.02861); with 8 bits and the
token as the block it is the vector-wise absmax of LLM.int8() (arXiv 2208.07339).

Payload: the scale of each block as bfloat16, little-endian, then the indices of all elements, packed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import Blocks, bfloat16_nearest, bfloat16_up, check_bits, check_block, per_block, read_scales
from bitseam.codecs.floating import little_endian
from bitseam.codecs.packing import pack, packed_bytes
from bitseam.codecs.stochastic import round_at_random
from bitseam.codecs.uniform import unpack_levels
from bitseam.errors import CodecError
from bitseam.quant.uniform import to_indices


@dataclass(frozen=True)
class BlockwiseInt(Codec):
    """2^bits - 1 even levels from -scale to scale, zero among them; 8 bits are -127 to 127.

    `block` counts elements of the last dimension, or is "token" for all of it. `rounding` is "nearest", for features,
    or "stochastic", for gradients: that one is unbiased.
    """

    codec_id: ClassVar[str] = "blockwise-int"
    bits: int
    block: int | str = "token"
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_block(self.block)
        if self.rounding not in ("nearest", "stochastic"):
            raise CodecError(f'rounding must be "nearest" or "stochastic", not {self.rounding!r}')

    @property
    def unbiased(self) -> bool:
        return self.rounding == "stochastic"

    @property
    def levels(self) -> int:
        return 2**self.bits - 1

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return 2 * Blocks.of(shape, self.block).count + packed_bytes(math.prod(shape), self.levels)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        layout = Blocks.of(tuple(x.shape), self.block)
        blocks = layout.split(x)
        # No value may lie over the scale where rounding is at random: it would be clipped, a bias.
        scale = (bfloat16_up if self.unbiased else bfloat16_nearest)(blocks.abs().amax(dim=1), self.codec_id)

        def rounded(unit: Tensor) -> Tensor:
            return round_at_random(unit, self.levels, generator) if self.unbiased else to_indices(unit, self.levels, 1)

        indices = layout.join(per_block(blocks, scale, rounded, torch.uint8))
        return little_endian(scale) + pack(indices.numpy(), self.levels)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        layout = Blocks.of(shape, self.block)
        scale = read_scales(payload[: 2 * layout.count], self.codec_id)
        units = unpack_levels(payload[2 * layout.count :], math.prod(shape), self.levels, 1)
        return layout.join(layout.split(units) * scale[:, None])
