"""Eight-bit floats with a scale for each block (Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433).

Payload: the scale of each block as bfloat16, little-endian, then a byte for each element.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import Blocks, bfloat16_nearest, check_block, per_block, read_scales
from bitseam.codecs.floating import little_endian
from bitseam.errors import CodecError

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Fp8(Codec):
    """The largest magnitude of a block becomes the largest number of the format; nearest even, so biased.

    `format` is "e4m3" (more precision: features) or "e5m2" (more range: gradients). `block` counts elements of the last
    dimension, or is "token" for all of it.
    """

    codec_id: ClassVar[str] = "fp8"
    format: str
    block: int | str = "token"

    def __post_init__(self) -> None:
        if not isinstance(self.format, str) or self.format not in FORMATS:
            raise CodecError(f"format must be {' or '.join(FORMATS)}, not {self.format!r}")
        check_block(self.block)

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return 2 * Blocks.of(shape, self.block).count + math.prod(shape)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        layout, dtype = Blocks.of(tuple(x.shape), self.block), FORMATS[self.format]
        blocks, largest = layout.split(x), torch.finfo(dtype).max
        scale = bfloat16_nearest(blocks.abs().amax(dim=1), self.codec_id)
        # Clamped: bfloat16 keeps so little of a scale under 1e-38 that a value may be far over it, as NaN or infinity.
        floats = per_block(blocks, scale, lambda unit: unit.mul_(largest).clamp_(-largest, largest), dtype)
        return little_endian(scale) + layout.join(floats.view(torch.uint8)).numpy().tobytes()

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        layout, dtype = Blocks.of(shape, self.block), FORMATS[self.format]
        scale = read_scales(payload[: 2 * layout.count], self.codec_id)
        octets = np.frombuffer(payload, np.uint8, offset=2 * layout.count).copy()
        floats = torch.from_numpy(octets).view(dtype).float()
        # Numbers are divided, not scales: of a tiny one, nothing would be left.
        return layout.join(layout.split(floats / torch.finfo(dtype).max) * scale[:, None])
