"""Normalised values at the nearest of L uniform levels, packed at a fixed rate."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs import fused, fused_gpu
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

    def _encode_from(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        if fused_gpu.takes(x.device, x.numel(), self.levels):
            return fused_gpu.encode(x.to(torch.float32).reshape(-1), self.levels, self.clip)
        return super()._encode_from(x, generator)

    def _decode_to(self, payload: bytes, shape: tuple[int, ...], device: torch.device) -> Tensor:
        if fused_gpu.takes(device, math.prod(shape), self.levels):
            return fused_gpu.decode(payload, math.prod(shape), self.levels, self.clip, device)
        return self._decode(payload, shape).to(device)  # levels of a grid, which need no look at each

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        x = x.reshape(-1)
        at, whole_bytes = fused.whole(len(x), self.levels), CHUNK // group(self.levels) * group(self.levels)
        parts = [fused.encode(x[:at].numpy(), self.levels, self.clip)] if at else []
        for chunk in x[at:].split(whole_bytes):
            parts.append(pack(to_indices(chunk, self.levels, self.clip).numpy(), self.levels))
        return b"".join(parts)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        return unpack_levels(payload, math.prod(shape), self.levels, self.clip)


def unpack_levels(payload: bytes, count: int, levels: int, clip: float) -> Tensor:
    """Packed indices -> their levels: (count,) float32. Raises CodecError as `packing.unpack` does."""
    out, at = np.empty(count, np.float32), fused.whole(count, levels)
    if at:
        end = packed_bytes(at, levels)
        fused.decode(np.frombuffer(payload, np.uint8, end), levels, clip, out[:at])
        payload = payload[end:]
    table, indices, rest = level_values(levels, clip).numpy(), unpack(payload, count - at, levels), out[at:]
    for start in range(0, len(rest), CHUNK):
        part = slice(start, start + CHUNK)
        table.take(indices[part], out=rest[part], mode="clip")  # in range already; this mode alone writes in place
    return torch.from_numpy(out)
