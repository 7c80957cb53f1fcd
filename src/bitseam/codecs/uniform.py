"""Normalised values at the nearest of L uniform levels, packed at a fixed rate."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import CHUNK
from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.quant.uniform import check_grid, level_values, to_indices


@dataclass(frozen=True)
class Uniform(Codec):
    """`levels` evenly spaced from -clip to clip (the outermost levels), as quant.RDFSQ and TanhFSQ make them.

    Coding levels gives back the same levels, bit for bit. With clip 1 it serves TensorRDFSQ and LearnedClipFSQ too.
    """

    codec_id: ClassVar[str] = "uniform"
    levels: int
    clip: float

    def __post_init__(self) -> None:
        check_grid(self.levels, self.clip)
        object.__setattr__(self, "clip", float(self.clip))  # 2 and 2.0 are one codec, and one text in the handshake

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return packed_bytes(math.prod(shape), self.levels)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        whole_bytes = CHUNK // group(self.levels) * group(self.levels)
        chunks = x.reshape(-1).split(whole_bytes)
        return b"".join(pack(to_indices(chunk, self.levels, self.clip).numpy(), self.levels) for chunk in chunks)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        return unpack_levels(payload, math.prod(shape), self.levels, self.clip)


def unpack_levels(payload: bytes, count: int, levels: int, clip: float) -> Tensor:
    """Packed indices -> their levels: (count,) float32. Raises CodecError as `packing.unpack` does."""
    table = level_values(levels, clip).numpy()
    if levels in (2, 4, 16):  # whole symbols in a byte: each byte looks its levels up at once
        if rest := count % group(levels):
            unpack(payload[-1:], rest, levels)  # refuses padding that is not zero
        by_byte = table.take(unpack(bytes(range(256)), 256 * group(levels), levels)).reshape(256, -1)
        return torch.from_numpy(by_byte.take(np.frombuffer(payload, np.uint8), axis=0).reshape(-1)[:count])
    indices = unpack(payload, count, levels)
    out = np.empty(count, np.float32)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        table.take(indices[part], out=out[part], mode="clip")  # in range already; this mode alone writes in place
    return torch.from_numpy(out)
